//! A body that is signed chunk by chunk, as clients of S3 send it: the agent signed with its placeholder, so each chunk is
//! signed anew. No byte but those of signatures changes, and no length.
//!
//! # Source
//! Amazon S3 API Reference, "Signature Calculations for the Authorization Header: Transferring Payload in Multiple
//! Chunks", with and without trailing headers.

use aws_lc_rs::{digest, hmac};
use bytes::{Bytes, BytesMut};
use memchr::memchr;

use super::hex;

/// What such a body says of itself where its hash would stand.
pub const SIGNED: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD";

/// The same, with headers behind it.
pub const WITH_TRAILER: &str = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER";

/// The largest chunk: it is held until its signature is known, which goes before it.
const MAX_CHUNK_BYTES: usize = 4 << 20;

/// The longest line before a chunk, and behind the last.
const MAX_LINE_BYTES: usize = 1024;

/// The most lines behind the last chunk.
const MAX_TRAILERS: usize = 16;

const CHUNK_SIGNATURE: &str = ";chunk-signature=";
const TRAILER_SIGNATURE: &[u8] = b"x-amz-trailer-signature:";

/// The SHA-256 of nothing.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Why a body cannot be signed anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Bytes behind its end.
    #[error("it goes on behind its last chunk")]
    Behind,
    /// An end that is too early.
    #[error("it ends before its last chunk")]
    Early,
    /// Something that is no chunk.
    #[error("it is not in chunks that are signed")]
    Form,
    /// A chunk that is too large to be held.
    #[error("it has a chunk of more than {MAX_CHUNK_BYTES} bytes")]
    TooLarge,
}

/// Signs the chunks of one body.
pub struct Chunks {
    key: hmac::Key,
    /// When and for what, as each signature says.
    scope: String,
    /// The signature before.
    last: String,
    trailers: bool,
    state: State,
    /// What did not suffice yet.
    held: BytesMut,
    /// The length of the chunk that is being read, as it is written.
    size: String,
    /// The headers behind the last chunk, in the form that is signed, and how many lines there were.
    headers: Vec<String>,
    lines: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a line that says how long a chunk is.
    Size,
    /// Before so much data and the line end behind it.
    Data(usize),
    /// Behind the last chunk, before the signature of what stands there.
    Trailers,
    /// Before the empty line that ends all.
    End,
    /// Behind it.
    Done,
}

impl Chunks {
    /// Begins behind a head that was signed with `seed`; `scope` is the date, and on the next line the scope.
    pub(super) fn new(key: &[u8], scope: String, seed: String, trailers: bool) -> Self {
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            scope,
            last: seed,
            trailers,
            state: State::Size,
            held: BytesMut::new(),
            size: String::new(),
            headers: Vec::new(),
            lines: 0,
        }
    }

    /// Takes what the agent sent, and gives what goes on instead.
    ///
    /// # Errors
    /// [`ChunkError`]; nothing more may go on.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Bytes, ChunkError> {
        self.held.extend_from_slice(bytes);
        let mut out = BytesMut::with_capacity(self.held.len());
        loop {
            let went_on = match self.state {
                State::Size => self.size(&mut out)?,
                State::Data(size) => self.data(size, &mut out)?,
                State::Trailers => self.trailer(&mut out)?,
                State::End => self.end(&mut out)?,
                State::Done if self.held.is_empty() => false,
                State::Done => return Err(ChunkError::Behind),
            };
            if !went_on {
                return Ok(out.freeze());
            }
        }
    }

    /// The agent has sent all.
    ///
    /// # Errors
    /// [`ChunkError::Early`] if more should come.
    pub fn finish(&self) -> Result<(), ChunkError> {
        if self.state == State::Done { Ok(()) } else { Err(ChunkError::Early) }
    }

    /// One line with its end, if it is there.
    fn line(&mut self) -> Result<Option<BytesMut>, ChunkError> {
        match memchr(b'\n', &self.held) {
            Some(end) if end < MAX_LINE_BYTES => Ok(Some(self.held.split_to(end + 1))),
            None if self.held.len() < MAX_LINE_BYTES => Ok(None),
            _ => Err(ChunkError::Form),
        }
    }

    fn size(&mut self, out: &mut BytesMut) -> Result<bool, ChunkError> {
        let Some(line) = self.line()? else { return Ok(false) };
        let text =
            std::str::from_utf8(&line).ok().and_then(|text| text.strip_suffix("\r\n")).ok_or(ChunkError::Form)?;
        let (size, signature) = text.split_once(CHUNK_SIGNATURE).ok_or(ChunkError::Form)?;
        let plain = !size.is_empty() && size.len() <= 16 && size.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !plain || !is_signature(signature.as_bytes()) {
            return Err(ChunkError::Form);
        }
        let bytes = usize::from_str_radix(size, 16).map_err(|_| ChunkError::TooLarge)?;
        if bytes > MAX_CHUNK_BYTES {
            return Err(ChunkError::TooLarge);
        }
        if bytes > 0 {
            self.state = State::Data(bytes);
            size.clone_into(&mut self.size);
            return Ok(true);
        }
        let header = self.header(size, b"");
        out.extend_from_slice(header.as_bytes());
        self.state = if self.trailers { State::Trailers } else { State::End };
        Ok(true)
    }

    fn data(&mut self, size: usize, out: &mut BytesMut) -> Result<bool, ChunkError> {
        if self.held.len() < size + 2 {
            return Ok(false);
        }
        let chunk = self.held.split_to(size + 2);
        let Some(data) = chunk.strip_suffix(b"\r\n") else { return Err(ChunkError::Form) };
        let size = std::mem::take(&mut self.size);
        out.extend_from_slice(self.header(&size, data).as_bytes());
        out.extend_from_slice(&chunk);
        self.state = State::Size;
        Ok(true)
    }

    /// The line before a chunk, with its own signature.
    fn header(&mut self, size: &str, data: &[u8]) -> String {
        let hash = hex(digest::digest(&digest::SHA256, data).as_ref());
        let text = format!("AWS4-HMAC-SHA256-PAYLOAD\n{}\n{}\n{NOTHING}\n{hash}", self.scope, self.last);
        self.last = hex(hmac::sign(&self.key, text.as_bytes()).as_ref());
        format!("{size}{CHUNK_SIGNATURE}{}\r\n", self.last)
    }

    fn trailer(&mut self, out: &mut BytesMut) -> Result<bool, ChunkError> {
        let Some(line) = self.line()? else { return Ok(false) };
        self.lines += 1;
        if self.lines > MAX_TRAILERS {
            return Err(ChunkError::Form);
        }
        let bare = line.trim_ascii_end();
        let Some(at) = memchr(b':', bare) else {
            // Some writers have an empty line before the signature.
            out.extend_from_slice(&line);
            return if bare.is_empty() { Ok(true) } else { Err(ChunkError::Form) };
        };
        let (name, value) = bare.split_at_checked(at + 1).ok_or(ChunkError::Form)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.trim_ascii().to_vec()).map_err(|_| ChunkError::Form);
        if !name.eq_ignore_ascii_case(TRAILER_SIGNATURE) {
            self.headers.push(format!("{}{}\n", text(name)?.to_ascii_lowercase(), text(value)?));
            out.extend_from_slice(&line);
            return Ok(true);
        }
        if !is_signature(value) {
            return Err(ChunkError::Form);
        }
        self.headers.sort_unstable();
        let hash = hex(digest::digest(&digest::SHA256, self.headers.concat().as_bytes()).as_ref());
        let signed = format!("AWS4-HMAC-SHA256-TRAILER\n{}\n{}\n{hash}", self.scope, self.last);
        out.extend_from_slice(name);
        out.extend_from_slice(hex(hmac::sign(&self.key, signed.as_bytes()).as_ref()).as_bytes());
        out.extend_from_slice(line.get(bare.len()..).unwrap_or_default());
        self.state = State::End;
        Ok(true)
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<bool, ChunkError> {
        let Some(line) = self.line()? else { return Ok(false) };
        if !line.trim_ascii().is_empty() {
            return Err(ChunkError::Form);
        }
        out.extend_from_slice(&line);
        self.state = State::Done;
        Ok(true)
    }
}

fn is_signature(text: &[u8]) -> bool {
    text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use ringfence_model::SecretText;

    use super::super::signing_key;
    use super::super::tests::place;
    use super::*;

    const ZEROS: &str = "0000000000000000000000000000000000000000000000000000000000000000";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const SCOPE: &str = "20130524T000000Z\n20130524/us-east-1/s3/aws4_request";

    fn chunks(seed: &str, trailers: bool) -> Chunks {
        let key = signing_key(&place("s3"), &SecretText::new(SECRET.into()), "20130524");
        Chunks::new(key.as_ref(), SCOPE.into(), seed.into(), trailers)
    }

    fn body(sizes: &[usize], end: &str) -> Vec<u8> {
        let mut body = Vec::new();
        for size in sizes {
            body.extend(format!("{size:x}{CHUNK_SIGNATURE}{ZEROS}\r\n").bytes());
            body.extend(std::iter::repeat_n(b'a', *size));
            body.extend(b"\r\n");
        }
        body.extend(format!("0{CHUNK_SIGNATURE}{ZEROS}\r\n{end}\r\n").bytes());
        body
    }

    fn signatures(sent: &[u8]) -> Vec<String> {
        let text = String::from_utf8(sent.to_vec()).unwrap();
        let found = text.match_indices("signature").filter_map(|(at, word)| text.get(at + word.len() + 1..)?.get(..64));
        found.map(str::to_owned).collect()
    }

    /// Vector: Amazon S3 API Reference, "Transferring Payload in Multiple Chunks", the example.
    #[test]
    fn the_example_of_s3_is_signed_alike() {
        let mut chunks = chunks("4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9", false);
        let body = body(&[65_536, 1_024], "");
        let sent = chunks.push(&body).unwrap();
        assert_eq!(chunks.finish(), Ok(()));
        assert_eq!(sent.len(), body.len(), "its length was told before");
        assert_eq!(
            signatures(&sent),
            [
                "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
                "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
                "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
            ]
        );
        assert_eq!(chunks.push(b"x"), Err(ChunkError::Behind));
    }

    /// Vector: the same reference, "Including Trailing Headers", the example.
    #[test]
    fn the_example_with_trailing_headers_is_signed_alike() {
        for between in ["\r\n", "\n\r\n"] {
            let mut chunks = chunks("106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e", true);
            let end = format!("x-amz-checksum-crc32c:sOO8/Q=={between}x-amz-trailer-signature:{ZEROS}\r\n");
            let body = body(&[65_536, 1_024], &end);
            let sent = chunks.push(&body).unwrap();
            assert_eq!(chunks.finish(), Ok(()));
            assert_eq!(sent.len(), body.len());
            assert_eq!(
                signatures(&sent),
                [
                    "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
                    "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
                    "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
                    "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435",
                ]
            );
        }
    }

    #[test]
    fn what_is_no_such_body_is_refused() {
        let push = |text: &str, trailers| {
            let mut chunks = chunks(ZEROS, trailers);
            chunks.push(text.as_bytes()).map(|_| chunks.finish())
        };
        let zero = format!("0{CHUNK_SIGNATURE}{ZEROS}\r\n");
        assert_eq!(push(&format!("{zero}\r\n"), false), Ok(Ok(())));
        assert_eq!(push(&zero, false), Ok(Err(ChunkError::Early)));
        assert_eq!(push(&format!("{zero}\r\n"), true), Ok(Err(ChunkError::Early)), "its signature is not there");
        for bad in ["5\r\nhello\r\n", "5;chunk-signature=abc\r\nhello\r\n", "\r\n", "hello\n", "-1;x\r\n"] {
            assert_eq!(push(bad, false), Err(ChunkError::Form), "{bad}");
        }
        assert_eq!(push(&format!("5{CHUNK_SIGNATURE}{ZEROS}\r\nhelloo\r\n"), false), Err(ChunkError::Form));
        assert_eq!(push(&format!("5{CHUNK_SIGNATURE}{ZEROS};x=1\r\nhello\r\n"), false), Err(ChunkError::Form));
        assert_eq!(push(&format!("ffffffff{CHUNK_SIGNATURE}{ZEROS}\r\n"), false), Err(ChunkError::TooLarge));
        assert_eq!(push(&format!("ffffffffffffffff{CHUNK_SIGNATURE}{ZEROS}\r\n"), false), Err(ChunkError::TooLarge));
        assert_eq!(push(&"0".repeat(MAX_LINE_BYTES), false), Err(ChunkError::Form));
        assert_eq!(push(&format!("{zero}x-a:b\r\n\r\n"), false), Err(ChunkError::Form), "headers were not announced");
        assert_eq!(push(&format!("{zero}{}", "x-a:b\r\n".repeat(MAX_TRAILERS + 1)), true), Err(ChunkError::Form));
        assert_eq!(push(&format!("{zero}\r\nmore"), false), Err(ChunkError::Behind));
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(sizes in proptest::collection::vec(1_usize..40, 0..4), cut in 1_usize..30) {
            let body = body(&sizes, "");
            let whole = chunks(ZEROS, false).push(&body).unwrap();
            let mut parts = chunks(ZEROS, false);
            let sent: Vec<u8> = body.chunks(cut).flat_map(|part| parts.push(part).unwrap()).collect();
            prop_assert_eq!(sent, whole);
            prop_assert_eq!(parts.finish(), Ok(()));
        }
    }
}
