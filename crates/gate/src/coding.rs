//! Content codings undone, within bounds: what is read of them, and how much they may grow.
//!
//! # Source
//! RFC 9110 §8.4; RFC 7932 for `br`, RFC 8878 for `zstd`.

use std::io::{self, Write};

use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderValue};

/// How much larger than its coded form a body may be, once it is larger than [`FREE_BYTES`].
///
/// Text and code come to 3 to 20; what is a hundred times larger is made to be.
pub const MAX_RATIO: u64 = 100;

/// What a body may be decoded to whatever its ratio.
pub const FREE_BYTES: u64 = 64 * 1024;

/// How many codings may lie on top of each other.
pub const MAX_CODINGS: usize = 2;

/// What a stream is decoded by at once.
pub const PIECE_BYTES: usize = 1024;

/// The most that so much of a stream may come to.
pub const MAX_PIECE_BYTES: u64 = 1024 * 1024;

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
    #[error("decoded it grows beyond {limit} bytes, or {MAX_RATIO} times its coded form")]
    TooLarge {
        /// The most bytes.
        limit: u64,
    },
    /// A coding that nobody here undoes, or too many on top of each other.
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

/// The codings of a body, in the order in which they were applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Codings {
    all: Vec<Coding>,
    chunks: bool,
}

impl Codings {
    /// The codings of a body. `aws-chunked` counts as none: it frames what it holds and changes none of it.
    ///
    /// # Errors
    /// [`CodingError::Unknown`].
    pub fn of(headers: &HeaderMap) -> Result<Self, CodingError> {
        let mut found = Self::default();
        for value in headers.get_all(CONTENT_ENCODING) {
            let text = value.to_str().map_err(|_| CodingError::Unknown("?".into()))?;
            for word in text.split(',').map(|word| word.trim().to_ascii_lowercase()) {
                let coding = match word.as_str() {
                    "" | "identity" => continue,
                    "aws-chunked" => {
                        found.chunks = true;
                        continue;
                    }
                    "br" => Coding::Br,
                    "deflate" => Coding::Deflate,
                    "gzip" | "x-gzip" => Coding::Gzip,
                    "zstd" => Coding::Zstd,
                    _ => return Err(CodingError::Unknown(word.chars().take(40).collect())),
                };
                found.all.push(coding);
                if found.all.len() > MAX_CODINGS {
                    return Err(CodingError::Unknown(text.chars().take(40).collect()));
                }
            }
        }
        Ok(found)
    }

    /// The codings of a body that is to be read for what it says, so that all of them must be undone.
    ///
    /// # Errors
    /// [`CodingError::Unknown`], also for `aws-chunked`.
    pub fn to_read(headers: &HeaderMap) -> Result<Self, CodingError> {
        let found = Self::of(headers)?;
        if found.chunks { Err(CodingError::Unknown("aws-chunked".into())) } else { Ok(found) }
    }

    /// Whether there is nothing to undo.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What undoes them, up to `limit` bytes.
    ///
    /// # Errors
    /// [`CodingError::Broken`] if a decoder cannot be made.
    pub fn decoder(&self, limit: u64) -> Result<Decoder, CodingError> {
        self.layers(limit, u64::MAX)
    }

    /// What undoes them in a stream of any length, given to it by [`PIECE_BYTES`]: however much came before, and whatever
    /// it comes to, no piece comes to more than [`MAX_PIECE_BYTES`].
    ///
    /// # Errors
    /// [`CodingError::Broken`] if a decoder cannot be made.
    pub fn stream_decoder(&self) -> Result<Decoder, CodingError> {
        self.layers(u64::MAX, MAX_PIECE_BYTES)
    }

    fn layers(&self, limit: u64, step: u64) -> Result<Decoder, CodingError> {
        let layers = self.all.iter().rev().map(|coding| Layer::new(*coding, limit, step));
        Ok(Decoder { layers: layers.collect::<Result<_, _>>()? })
    }
}

/// Makes a head fit its body, which was decoded.
///
/// # Source
/// RFC 9110 §8.8.1: forms that differ in their coding share no strong validator. RFC 9530: digests of the coded form.
pub fn undone(headers: &mut HeaderMap) {
    for name in [CONTENT_ENCODING, CONTENT_LENGTH, ACCEPT_RANGES] {
        headers.remove(name);
    }
    for name in ["content-md5", "content-digest", "repr-digest", "digest"] {
        headers.remove(name);
    }
    let strong = headers.get(ETAG).filter(|tag| tag.as_bytes().first() == Some(&b'"'));
    if let Some(tag) = strong.map(|tag| HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())) {
        match tag {
            Ok(weak) => drop(headers.insert(ETAG, weak)),
            Err(_) => drop(headers.remove(ETAG)),
        }
    }
}

impl Coding {
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
    /// The coding that was applied last comes first.
    layers: Vec<Layer>,
}

impl Decoder {
    /// Takes a piece and gives what it decodes to.
    ///
    /// # Errors
    /// [`CodingError`]; the decoder is of no use then.
    pub fn push(&mut self, piece: &[u8]) -> Result<Vec<u8>, CodingError> {
        let mut layers = self.layers.iter_mut();
        let first = layers.next().map_or_else(|| Ok(piece.to_vec()), |layer| layer.push(piece))?;
        layers.try_fold(first, |piece, layer| layer.push(&piece))
    }

    /// Gives what is left, once all was taken. What ends in the middle is refused, but for `deflate`, whose decoder does
    /// not tell.
    ///
    /// # Errors
    /// [`CodingError`].
    pub fn finish(&mut self) -> Result<Vec<u8>, CodingError> {
        self.layers.iter_mut().try_fold(Vec::new(), |before, layer| {
            let mut out = layer.push(&before)?;
            out.extend(layer.finish()?);
            Ok(out)
        })
    }
}

/// Undoes one coding.
struct Layer {
    coding: Coding,
    inner: Inner,
    taken: u64,
    given: u64,
    limit: u64,
    /// The most that one piece may come to.
    step: u64,
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

impl Layer {
    fn new(coding: Coding, limit: u64, step: u64) -> Result<Self, CodingError> {
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
        Ok(Self { coding, inner, taken: 0, given: 0, limit, step })
    }

    fn push(&mut self, piece: &[u8]) -> Result<Vec<u8>, CodingError> {
        if piece.is_empty() {
            return Ok(Vec::new());
        }
        if let (Inner::Deflate, Some(first)) = (&self.inner, piece.first()) {
            // RFC 1950 §2.2: the lower half of zlib's first byte is 8, which begins no useful raw stream.
            self.inner = if first & 0x0f == 8 {
                Inner::Zlib(ZlibDecoder::new(Sink::default()))
            } else {
                Inner::Raw(DeflateDecoder::new(Sink::default()))
            };
        }
        self.taken += piece.len() as u64;
        let all = |decoder: &mut dyn Write| decoder.write_all(piece).and_then(|()| decoder.flush());
        self.run(|inner| match inner {
            Inner::Br(decoder) => all(decoder),
            Inner::Deflate => Ok(()),
            Inner::Gzip(decoder) => all(decoder),
            Inner::Raw(decoder) => all(decoder),
            Inner::Zlib(decoder) => all(decoder),
            Inner::Zstd(decoder) => all(decoder),
        })
    }

    fn finish(&mut self) -> Result<Vec<u8>, CodingError> {
        if self.taken == 0 {
            return Ok(Vec::new());
        }
        self.run(|inner| match inner {
            Inner::Br(decoder) => decoder.close(),
            Inner::Deflate => Ok(()),
            Inner::Gzip(decoder) => decoder.try_finish(),
            Inner::Raw(decoder) => decoder.try_finish(),
            Inner::Zlib(decoder) => decoder.try_finish(),
            Inner::Zstd(decoder) => decoder.do_finish(),
        })
    }

    /// Lets the decoder work within what is left of the bounds.
    fn run(&mut self, work: impl FnOnce(&mut Inner) -> io::Result<()>) -> Result<Vec<u8>, CodingError> {
        let most = self.limit.min(FREE_BYTES.max(self.taken.saturating_mul(MAX_RATIO)));
        let room = usize::try_from(most.saturating_sub(self.given).min(self.step)).unwrap_or(usize::MAX);
        if let Some(sink) = self.inner.sink() {
            sink.room = room;
        }
        let done = work(&mut self.inner);
        let Some(sink) = self.inner.sink() else { return Ok(Vec::new()) };
        let (bytes, full) = (std::mem::take(&mut sink.bytes), sink.full);
        self.given += bytes.len() as u64;
        match done {
            _ if full => Err(CodingError::TooLarge { limit: self.limit.min(self.step) }),
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
pub fn decode(codings: &Codings, body: &[u8], limit: u64) -> Result<Vec<u8>, CodingError> {
    let mut decoder = codings.decoder(limit)?;
    let mut out = decoder.push(body)?;
    out.extend(decoder.finish()?);
    Ok(out)
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

    fn decode(coding: Coding, body: &[u8], limit: u64) -> Result<Vec<u8>, CodingError> {
        super::decode(&Codings { all: vec![coding], chunks: false }, body, limit)
    }

    const ALL: [Coding; 4] = [Coding::Br, Coding::Deflate, Coding::Gzip, Coding::Zstd];

    #[test]
    fn every_coding_is_undone_wherever_it_is_cut() {
        let plain = b"{\"key\": \"value\", \"key2\": \"value, value, value\"}".repeat(20);
        for coding in ALL {
            let body = coded(coding, &plain);
            assert_eq!(decode(coding, &body, 1 << 20).unwrap(), plain, "{coding:?}");
            let mut decoder = Codings { all: vec![coding], chunks: false }.stream_decoder().unwrap();
            let mut got = Vec::new();
            for byte in &body {
                got.extend(decoder.push(std::slice::from_ref(byte)).unwrap());
            }
            got.extend(decoder.finish().unwrap());
            assert_eq!(got, plain, "{coding:?}");
            let cut = decode(coding, &body[..body.len() - 1], 1 << 20);
            assert!(matches!(cut, Err(CodingError::Broken { .. })) || coding == Coding::Deflate, "{coding:?}");
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
            Codings::of(&headers).map(|codings| codings.all)
        };
        assert_eq!(of("GZIP"), Ok(vec![Coding::Gzip]));
        assert_eq!(of("aws-chunked"), Ok(vec![]));
        assert_eq!(of("identity"), Ok(vec![]));
        assert_eq!(of("aws-chunked, gzip"), Ok(vec![Coding::Gzip]));
        assert_eq!(of("snappy"), Err(CodingError::Unknown("snappy".into())));
        assert_eq!(of("gzip, br"), Ok(vec![Coding::Gzip, Coding::Br]));
        assert_eq!(of("gzip, gzip, gzip"), Err(CodingError::Unknown("gzip, gzip, gzip".into())));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("aws-chunked"));
        assert_eq!(Codings::to_read(&headers), Err(CodingError::Unknown("aws-chunked".into())));
    }

    #[test]
    fn what_was_coded_twice_is_undone_twice_and_each_time_bounded() {
        let both = Codings { all: vec![Coding::Gzip, Coding::Zstd], chunks: false };
        let plain = b"word ".repeat(1000);
        let body = coded(Coding::Zstd, &coded(Coding::Gzip, &plain));
        assert_eq!(super::decode(&both, &body, 1 << 20).unwrap(), plain);
        let bomb = coded(Coding::Zstd, &coded(Coding::Gzip, &vec![0; 8 << 20]));
        assert!(matches!(super::decode(&both, &bomb, 64 << 20), Err(CodingError::TooLarge { .. })));
    }

    #[test]
    fn a_piece_of_a_stream_is_bounded_however_much_came_before() {
        let noise: Vec<u8> = (0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let body = [coded(Coding::Zstd, &noise), coded(Coding::Zstd, &vec![0; 16 << 20])].concat();
        let most = (body.len() as u64 - 2000) * MAX_RATIO;
        assert!(most > 18 << 20, "its ratio is within bounds");
        let mut decoder = Codings { all: vec![Coding::Zstd], chunks: false }.stream_decoder().unwrap();
        let mut pieces = body.chunks(PIECE_BYTES).map(|piece| decoder.push(piece));
        let ended = pieces.find_map(Result::err);
        assert_eq!(ended, Some(CodingError::TooLarge { limit: MAX_PIECE_BYTES }));
    }

    #[test]
    fn the_head_of_what_was_decoded_says_nothing_of_its_coded_form() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-encoding", "gzip"),
            ("content-length", "3"),
            ("content-digest", "sha-256=:x:"),
            ("etag", "\"a\""),
            ("content-type", "text/plain"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        undone(&mut headers);
        assert_eq!((headers.len(), &headers["etag"]), (2, &HeaderValue::from_static("W/\"a\"")));
        undone(&mut headers);
        assert_eq!(headers["etag"], "W/\"a\"");
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
