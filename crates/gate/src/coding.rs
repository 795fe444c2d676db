//! Content codings undone, within bounds: what is read of them, and how much they may grow.
//!
//! # Source
//! RFC 9110 §8.4; RFC 7932 for `br`, RFC 8878 for `zstd`.

use std::io::{self, Write};

use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

/// How much larger than its coded form a body may be, once it is larger than [`FREE_BYTES`].
///
/// Text and code come to 3 to 20; what is a hundred times larger is made to be.
pub const MAX_RATIO: u64 = 100;

/// What a body may be decoded to whatever its ratio.
pub const FREE_BYTES: u64 = 64 * 1024;

/// The largest window of `zstd`, as a power of two: 8 MiB, what RFC 8878 §3.1.1.1.2 asks decoders to take.
const ZSTD_WINDOW_LOG: u32 = 23;

const BUFFER: usize = 4096;

/// Why a body cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodingError {
    /// It is not what its header says.
    #[error("it is not {coding}: {why}")]
    Broken {
        /// The coding.
        coding: &'static str,
        /// What is wrong.
        why: String,
    },
    /// It grows beyond a bound.
    #[error("decoded it is larger than {limit} bytes, or {MAX_RATIO} times its coded form")]
    TooLarge {
        /// The most bytes.
        limit: u64,
    },
    /// A coding that nobody here undoes, or several on top of each other.
    #[error("its coding `{0}` is not known")]
    Unknown(String),
}

/// One coding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Brotli.
    Br,
    /// zlib, or raw deflate as some write it.
    Deflate,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Coding {
    /// The coding of a body. `aws-chunked` counts as none: it frames what it holds and changes none of it.
    ///
    /// # Errors
    /// [`CodingError::Unknown`].
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, CodingError> {
        let mut found = None;
        for value in headers.get_all(CONTENT_ENCODING) {
            let text = value.to_str().map_err(|_| CodingError::Unknown("?".into()))?;
            for word in text.split(',').map(|word| word.trim().to_ascii_lowercase()) {
                let coding = match word.as_str() {
                    "" | "aws-chunked" | "identity" => continue,
                    "br" => Self::Br,
                    "deflate" => Self::Deflate,
                    "gzip" | "x-gzip" => Self::Gzip,
                    "zstd" => Self::Zstd,
                    _ => return Err(CodingError::Unknown(word.chars().take(40).collect())),
                };
                if found.replace(coding).is_some() {
                    return Err(CodingError::Unknown(text.chars().take(40).collect()));
                }
            }
        }
        Ok(found)
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Br => "br",
            Self::Deflate => "deflate",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Decodes a body piece by piece.
pub struct Decoder {
    coding: Coding,
    inner: Inner,
    taken: u64,
    given: u64,
    limit: u64,
}

enum Inner {
    Br(Box<brotli_decompressor::DecompressorWriter<Sink>>),
    /// Which of the two forms it is shows in its first byte.
    Deflate,
    Gzip(MultiGzDecoder<Sink>),
    Raw(DeflateDecoder<Sink>),
    Zlib(ZlibDecoder<Sink>),
    Zstd(Box<zstd::stream::write::Decoder<'static, Sink>>),
}

/// Where decoded bytes gather until they are taken; it refuses more than it was allowed.
#[derive(Default)]
struct Sink {
    bytes: Vec<u8>,
    room: usize,
    full: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.room {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.room -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Decoder {
    /// Decodes at most `limit` bytes.
    ///
    /// # Errors
    /// [`CodingError::Broken`] if the decoder cannot be made.
    pub fn new(coding: Coding, limit: u64) -> Result<Self, CodingError> {
        let sink = Sink::default();
        let broken = |e: io::Error| CodingError::Broken { coding: coding.word(), why: e.to_string() };
        let inner = match coding {
            Coding::Br => Inner::Br(Box::new(brotli_decompressor::DecompressorWriter::new(sink, BUFFER))),
            Coding::Deflate => Inner::Deflate,
            Coding::Gzip => Inner::Gzip(MultiGzDecoder::new(sink)),
            Coding::Zstd => {
                let mut decoder = zstd::stream::write::Decoder::new(sink).map_err(broken)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { coding, inner, taken: 0, given: 0, limit })
    }

    /// Takes a piece and gives what it decodes to.
    ///
    /// # Errors
    /// [`CodingError`]; the decoder is of no use then.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<u8>, CodingError> {
        if let (Inner::Deflate, Some(first)) = (&self.inner, piece.first()) {
            // RFC 1950 §2.2: the lower half of zlib's first byte is 8, which begins no useful raw stream.
            self.inner = if first & 0x0f == 8 {
                Inner::Zlib(ZlibDecoder::new(Sink::default()))
            } else {
                Inner::Raw(DeflateDecoder::new(Sink::default()))
            };
        }
        self.taken += piece.len() as u64;
        let most = self.limit.min(FREE_BYTES.max(self.taken.saturating_mul(MAX_RATIO)));
        let room = usize::try_from(most.saturating_sub(self.given)).unwrap_or(usize::MAX);
        if let Some(sink) = self.inner.sink() {
            sink.room = room;
        }
        let all = |decoder: &mut dyn Write| decoder.write_all(piece).and_then(|()| decoder.flush());
        let done = match &mut self.inner {
            Inner::Br(decoder) => all(decoder),
            Inner::Deflate => Ok(()),
            Inner::Gzip(decoder) => all(decoder),
            Inner::Raw(decoder) => all(decoder),
            Inner::Zlib(decoder) => all(decoder),
            Inner::Zstd(decoder) => all(decoder),
        };
        let Some(sink) = self.inner.sink() else { return Ok(Vec::new()) };
        let (bytes, full) = (std::mem::take(&mut sink.bytes), sink.full);
        self.given += bytes.len() as u64;
        match done {
            _ if full => Err(CodingError::TooLarge { limit: self.limit }),
            Ok(()) => Ok(bytes),
            Err(e) => Err(CodingError::Broken { coding: self.coding.word(), why: e.to_string() }),
        }
    }
}

impl Inner {
    fn sink(&mut self) -> Option<&mut Sink> {
        Some(match self {
            Self::Br(decoder) => decoder.get_mut(),
            Self::Deflate => return None,
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Raw(decoder) => decoder.get_mut(),
            Self::Zlib(decoder) => decoder.get_mut(),
            Self::Zstd(decoder) => decoder.get_mut(),
        })
    }
}

/// Decodes a body that is there as a whole, up to its end.
///
/// # Errors
/// [`CodingError`].
pub fn decode(coding: Coding, body: &[u8], limit: u64) -> Result<Vec<u8>, CodingError> {
    Decoder::new(coding, limit)?.push(body)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn coded(coding: Coding, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::best();
        match coding {
            Coding::Br => samples::brotli(plain),
            Coding::Deflate => {
                let mut to = flate2::write::ZlibEncoder::new(Vec::new(), level);
                to.write_all(plain).unwrap();
                to.finish().unwrap()
            }
            Coding::Gzip => {
                let mut to = flate2::write::GzEncoder::new(Vec::new(), level);
                to.write_all(plain).unwrap();
                to.finish().unwrap()
            }
            Coding::Zstd => zstd::encode_all(plain, 19).unwrap(),
        }
    }

    const ALL: [Coding; 4] = [Coding::Br, Coding::Deflate, Coding::Gzip, Coding::Zstd];

    #[test]
    fn every_coding_is_undone_wherever_it_is_cut() {
        let plain = b"{\"key\": \"value\", \"key2\": \"value, value, value\"}".repeat(20);
        for coding in ALL {
            let body = coded(coding, &plain);
            assert_eq!(decode(coding, &body, 1 << 20).unwrap(), plain, "{coding:?}");
            let mut decoder = Decoder::new(coding, 1 << 20).unwrap();
            let mut got = Vec::new();
            for byte in &body {
                got.extend(decoder.push(std::slice::from_ref(byte)).unwrap());
            }
            assert_eq!(got, plain, "{coding:?}");
        }
        let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        raw.write_all(&plain).unwrap();
        assert_eq!(decode(Coding::Deflate, &raw.finish().unwrap(), 1 << 20).unwrap(), plain);
    }

    #[test]
    fn what_grows_beyond_bounds_is_refused() {
        let plain = vec![0; 8 << 20];
        for coding in [Coding::Deflate, Coding::Gzip, Coding::Zstd] {
            let bomb = coded(coding, &plain);
            assert!(
                matches!(decode(coding, &bomb, 64 << 20), Err(CodingError::TooLarge { .. })),
                "{coding:?}, by ratio"
            );
            let noise: Vec<u8> = (0..200_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            let body = coded(coding, &noise);
            assert!(decode(coding, &body, 1 << 20).is_ok());
            assert!(matches!(decode(coding, &body, 1 << 17), Err(CodingError::TooLarge { .. })), "{coding:?}, by size");
        }
    }

    #[test]
    fn what_is_not_what_it_says_is_refused() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            assert!(matches!(decode(coding, b"plain text, not coded", 1 << 20), Err(CodingError::Broken { .. })));
        }
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(text));
            Coding::of(&headers)
        };
        assert_eq!(of("GZIP"), Ok(Some(Coding::Gzip)));
        assert_eq!(of("aws-chunked"), Ok(None));
        assert_eq!(of("identity"), Ok(None));
        assert_eq!(of("aws-chunked, gzip"), Ok(Some(Coding::Gzip)));
        assert_eq!(of("snappy"), Err(CodingError::Unknown("snappy".into())));
        assert_eq!(of("gzip, gzip"), Err(CodingError::Unknown("gzip, gzip".into())));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), which in 0..4_usize) {
            if let Ok(out) = decode(ALL[which], &bytes, 1 << 16) {
                prop_assert!(out.len() <= 1 << 16);
            }
        }
    }
}

/// Coded texts for tests; there is no encoder of Brotli among our dependencies.
#[cfg(test)]
pub(crate) mod samples {
    /// A Brotli stream that holds `plain` uncompressed.
    ///
    /// # Source
    /// RFC 7932 §9.2: `WBITS` 16, then one meta-block with `ISUNCOMPRESSED`, then an empty last one.
    pub(crate) fn brotli(plain: &[u8]) -> Vec<u8> {
        assert!((1..=1 << 16).contains(&plain.len()));
        // WBITS 0 (16), ISLAST 0, MNIBBLES 00 (4), MLEN-1 in 16 bits, ISUNCOMPRESSED 1: 21 bits.
        let bits = (u32::try_from(plain.len()).unwrap() - 1) << 4 | 1 << 20;
        let mut out = bits.to_le_bytes()[..3].to_vec();
        out.extend_from_slice(plain);
        // ISLAST 1, ISLASTEMPTY 1.
        out.push(0b11);
        out
    }
}
