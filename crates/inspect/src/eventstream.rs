//! The framing of AWS event streams (`application/vnd.amazon.eventstream`), read from chunks however they are cut.
//!
//! A message is a prelude (total length, length of the headers, CRC-32 of both), headers, a payload and the CRC-32 of
//! all before it; numbers are big-endian. Nothing is held but the message that is not whole yet, which has a limit.
//! Where one is broken, no later one can be found, so the stream is broken from there on.
//!
//! # Source
//! Smithy, "Amazon Event Stream Specification" (`vnd.amazon.eventstream`).

use std::str;

/// The prelude with its checksum.
const PRELUDE_BYTES: usize = 12;

/// A message without headers and payload.
const SMALLEST_BYTES: usize = PRELUDE_BYTES + 4;

/// The most that the headers of a message may take.
const MAX_HEADER_BYTES: usize = 128 * 1024;

/// Takes a stream apart into messages.
#[derive(Clone, Debug)]
pub struct EventStream {
    limit: usize,
    held: Vec<u8>,
    at: u64,
    given: bool,
    broken: Option<FrameError>,
}

/// Why a stream cannot be taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A checksum is wrong.
    #[error("a message of the event stream has a wrong checksum")]
    Checksum,
    /// Headers that are not formed as headers are.
    #[error("a message of the event stream has malformed headers")]
    Headers,
    /// Lengths that cannot be.
    #[error("a message of the event stream has impossible lengths")]
    Lengths,
    /// A message larger than the limit.
    #[error("a message of the event stream is too large")]
    TooLarge,
    /// The stream ended within a message.
    #[error("the event stream breaks off")]
    Truncated,
}

impl FrameError {
    /// A stable code such as `frame_checksum`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Checksum => "frame_checksum",
            Self::Headers => "frame_headers",
            Self::Lengths => "frame_lengths",
            Self::TooLarge => "frame_too_large",
            Self::Truncated => "frame_truncated",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<'a> {
    /// Its bytes, framing included.
    pub raw: &'a [u8],
    /// Where in the stream it begins, in bytes.
    pub at: u64,
    /// Its headers, in order.
    pub headers: Vec<(&'a str, HeaderValue<'a>)>,
    /// Its payload.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// A header that is a text, such as `:event-type`, `:message-type` or `:exception-type`; the first of its name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        match self.headers.iter().find(|(n, _)| *n == name) {
            Some((_, HeaderValue::Text(text))) => Some(text),
            _ => None,
        }
    }
}

/// The value of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderValue<'a> {
    /// Type 0 or 1.
    Bool(bool),
    /// Type 6.
    Bytes(&'a [u8]),
    /// Types 2 to 5.
    Integer(i64),
    /// Type 7.
    Text(&'a str),
    /// Type 8, in milliseconds since 1970.
    TimestampMs(i64),
    /// Type 9.
    Uuid([u8; 16]),
}

impl EventStream {
    /// Begins a stream. `limit` is the size of the largest message, in bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self { limit, held: Vec::new(), at: 0, given: false, broken: None }
    }

    /// How many bytes are held because their message is not whole.
    #[must_use]
    pub const fn held(&self) -> usize {
        if self.given { 0 } else { self.held.len() }
    }

    /// Takes bytes off the front of `chunk` until a message is whole; `Ok(None)` once all of it is taken.
    ///
    /// # Errors
    /// [`FrameError`]; every later call gives the same one.
    pub fn next(&mut self, chunk: &mut &[u8]) -> Result<Option<Message<'_>>, FrameError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if std::mem::take(&mut self.given) {
            self.at += self.held.len() as u64;
            self.held.clear();
        }
        if let Err(error) = self.fill(chunk) {
            self.broken = Some(error);
            return Err(error);
        }
        if !self.given {
            return Ok(None);
        }
        match message(&self.held, self.at) {
            Ok(message) => Ok(Some(message)),
            Err(error) => {
                self.broken = Some(error);
                Err(error)
            }
        }
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// The error that broke it, or [`FrameError::Truncated`] if a message is not whole.
    pub const fn finish(&self) -> Result<(), FrameError> {
        match self.broken {
            Some(error) => Err(error),
            None if self.given || self.held.is_empty() => Ok(()),
            None => Err(FrameError::Truncated),
        }
    }

    /// Holds bytes of the chunk; sets `given` once they are a whole message.
    fn fill(&mut self, chunk: &mut &[u8]) -> Result<(), FrameError> {
        self.hold(chunk, PRELUDE_BYTES);
        let Some(prelude) = self.held.get(..PRELUDE_BYTES) else { return Ok(()) };
        let total = prelude_of(prelude)?.0;
        if total > self.limit {
            return Err(FrameError::TooLarge);
        }
        self.hold(chunk, total);
        self.given = self.held.len() == total;
        Ok(())
    }

    /// Holds bytes of the chunk until so many are held.
    fn hold(&mut self, chunk: &mut &[u8], until: usize) {
        let wanted = until.saturating_sub(self.held.len()).min(chunk.len());
        let (taken, rest) = chunk.split_at_checked(wanted).unwrap_or((chunk, &[]));
        self.held.extend_from_slice(taken);
        *chunk = rest;
    }
}

/// The lengths of the message and of its headers.
fn prelude_of(prelude: &[u8]) -> Result<(usize, usize), FrameError> {
    let mut rest = prelude;
    let (total, headers, sum) = (take_u32(&mut rest), take_u32(&mut rest), take_u32(&mut rest));
    let (Some(total), Some(headers), Some(sum)) = (total, headers, sum) else { return Err(FrameError::Truncated) };
    if sum != crc32(prelude.get(..8).unwrap_or_default()) {
        return Err(FrameError::Checksum);
    }
    let (Ok(total), Ok(headers)) = (usize::try_from(total), usize::try_from(headers)) else {
        return Err(FrameError::Lengths);
    };
    if total < SMALLEST_BYTES || headers > (total - SMALLEST_BYTES).min(MAX_HEADER_BYTES) {
        return Err(FrameError::Lengths);
    }
    Ok((total, headers))
}

/// Reads a whole message.
fn message(raw: &[u8], at: u64) -> Result<Message<'_>, FrameError> {
    let (prelude, behind) = raw.split_at_checked(PRELUDE_BYTES).ok_or(FrameError::Truncated)?;
    let (_, header_bytes) = prelude_of(prelude)?;
    let (content, mut sum) = behind.split_at_checked(behind.len().saturating_sub(4)).ok_or(FrameError::Truncated)?;
    let summed = raw.get(..raw.len().saturating_sub(4)).unwrap_or_default();
    if take_u32(&mut sum) != Some(crc32(summed)) {
        return Err(FrameError::Checksum);
    }
    let (mut head, payload) = content.split_at_checked(header_bytes).ok_or(FrameError::Lengths)?;
    let mut headers = Vec::new();
    while !head.is_empty() {
        headers.push(header(&mut head).ok_or(FrameError::Headers)?);
    }
    Ok(Message { raw, at, headers, payload })
}

fn header<'a>(rest: &mut &'a [u8]) -> Option<(&'a str, HeaderValue<'a>)> {
    let [length] = take::<1>(rest)?;
    let name = str::from_utf8(take_slice(rest, usize::from(length))?).ok()?;
    let [kind] = take::<1>(rest)?;
    let value = match kind {
        0 => HeaderValue::Bool(true),
        1 => HeaderValue::Bool(false),
        2 => HeaderValue::Integer(i64::from(i8::from_be_bytes(take(rest)?))),
        3 => HeaderValue::Integer(i64::from(i16::from_be_bytes(take(rest)?))),
        4 => HeaderValue::Integer(i64::from(i32::from_be_bytes(take(rest)?))),
        5 => HeaderValue::Integer(i64::from_be_bytes(take(rest)?)),
        6 | 7 => {
            let length = u16::from_be_bytes(take(rest)?);
            let bytes = take_slice(rest, usize::from(length))?;
            if kind == 6 { HeaderValue::Bytes(bytes) } else { HeaderValue::Text(str::from_utf8(bytes).ok()?) }
        }
        8 => HeaderValue::TimestampMs(i64::from_be_bytes(take(rest)?)),
        9 => HeaderValue::Uuid(take(rest)?),
        _ => return None,
    };
    (!name.is_empty()).then_some((name, value))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*taken)
}

fn take_slice<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(count)?;
    *rest = behind;
    Some(taken)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_be_bytes)
}

/// Writes a message whose headers are texts; `None` if it is larger than the framing can say.
#[must_use]
pub fn encode(headers: &[(&str, &str)], payload: &[u8]) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(u8::try_from(name.len()).ok().filter(|length| *length > 0)?);
        head.extend_from_slice(name.as_bytes());
        head.push(7);
        head.extend_from_slice(&u16::try_from(value.len()).ok()?.to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    if head.len() > MAX_HEADER_BYTES {
        return None;
    }
    let total = u32::try_from(SMALLEST_BYTES + head.len() + payload.len()).ok()?;
    let mut out = total.to_be_bytes().to_vec();
    out.extend_from_slice(&u32::try_from(head.len()).ok()?.to_be_bytes());
    let sum = crc32(&out);
    out.extend_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
    let sum = crc32(&out);
    out.extend_from_slice(&sum.to_be_bytes());
    Some(out)
}

/// CRC-32 of ISO 3309, as in gzip (RFC 1952 §8).
fn crc32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0_u32, |sum, byte| {
        let [low, ..] = sum.to_le_bytes();
        sum >> 8 ^ TABLE.get(usize::from(low ^ byte)).copied().unwrap_or_default()
    }) ^ !0
}

#[expect(clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "evaluated when this is compiled")]
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut at = 0;
    while at < table.len() {
        let mut value = at as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ 0xedb8_8320 } else { value >> 1 };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// All payloads of a stream, or the error that breaks it.
    fn payloads(limit: usize, chunks: &[&[u8]]) -> Result<Vec<Vec<u8>>, FrameError> {
        let mut stream = EventStream::new(limit);
        let mut payloads = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            while let Some(message) = stream.next(&mut rest)? {
                payloads.push(message.payload.to_vec());
            }
            assert!(rest.is_empty() && stream.held.len() <= limit.max(PRELUDE_BYTES));
        }
        stream.finish().map(|()| payloads)
    }

    /// Vectors: the event stream test suite of the AWS SDKs (`empty_message`, `payload_no_headers`,
    /// `payload_one_str_header`, `int32_header`).
    #[test]
    fn messages_are_read() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let empty = hex("000000100000000005c248eb7d98c8ff");
        assert_eq!(payloads(99, &[&empty]), Ok(vec![vec![]]));
        let bare = hex("0000001d00000000fd528c5a7b27666f6f273a27626172277dc36539 36".replace(' ', "").as_str());
        assert_eq!(payloads(99, &[&bare]), Ok(vec![b"{'foo':'bar'}".to_vec()]));
        let typed = hex(concat!(
            "0000003d0000002007fd8396",
            "0c636f6e74656e742d74797065070010",
            "6170706c69636174696f6e2f6a736f6e",
            "7b27666f6f273a27626172277d",
            "8d9c08b1"
        ));
        let mut stream = EventStream::new(99);
        let message = stream.next(&mut &typed[..]).unwrap().unwrap();
        assert_eq!(message.header("content-type"), Some("application/json"));
        assert_eq!((message.payload, message.raw), (&b"{'foo':'bar'}"[..], &typed[..]));
        let counted = hex(concat!(
            "0000002d0000001041c424b8",
            "0a6576656e742d74797065040000a00c",
            "7b27666f6f273a27626172277d",
            "36f480a0"
        ));
        let mut stream = EventStream::new(99);
        let message = stream.next(&mut &counted[..]).unwrap().unwrap();
        assert_eq!(message.headers, [("event-type", HeaderValue::Integer(0xa00c))]);
        assert_eq!(message.header("event-type"), None);
    }

    #[test]
    fn headers_of_every_type_are_read() {
        let mut head = Vec::new();
        for (kind, value) in [
            (0, &b""[..]),
            (1, b""),
            (2, b"\xff"),
            (3, b"\xff\xfe"),
            (4, b"\0\0\0\x04"),
            (5, b"\0\0\0\0\0\0\0\x05"),
            (6, b"\0\x02ab"),
            (7, b"\0\x02cd"),
            (8, b"\0\0\0\0\0\0\0\x08"),
            (9, b"0123456789abcdef"),
        ] {
            head.extend_from_slice(&[1, b'a' + kind, kind]);
            head.extend_from_slice(value);
        }
        let mut read = Vec::new();
        let mut rest = &head[..];
        while !rest.is_empty() {
            read.push(header(&mut rest).unwrap());
        }
        assert_eq!(
            read.into_iter().map(|(_, value)| value).collect::<Vec<_>>(),
            [
                HeaderValue::Bool(true),
                HeaderValue::Bool(false),
                HeaderValue::Integer(-1),
                HeaderValue::Integer(-2),
                HeaderValue::Integer(4),
                HeaderValue::Integer(5),
                HeaderValue::Bytes(b"ab"),
                HeaderValue::Text("cd"),
                HeaderValue::TimestampMs(8),
                HeaderValue::Uuid(*b"0123456789abcdef"),
            ]
        );
    }

    #[test]
    fn what_is_broken_stays_broken() {
        let good = encode(&[(":event-type", "chunk")], b"{}").unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            assert!(payloads(1 << 20, &[&bad]).is_err(), "{place}");
        }
        let mut bad = good.clone();
        bad[0] = 1;
        let mut stream = EventStream::new(99);
        assert_eq!(stream.next(&mut &bad[..]), Err(FrameError::Checksum));
        assert_eq!(stream.next(&mut &good[..]), Err(FrameError::Checksum));
        assert_eq!(stream.finish(), Err(FrameError::Checksum));
        assert_eq!(payloads(good.len() - 1, &[&good]), Err(FrameError::TooLarge));
        assert_eq!(payloads(99, &[&good[..good.len() - 1]]), Err(FrameError::Truncated));
        assert_eq!(payloads(99, &[&good[..5]]), Err(FrameError::Truncated));
        for (total, headers) in [(15_u32, 0_u32), (16, 1), (0, 0), (u32::MAX, u32::MAX)] {
            let mut bad = total.to_be_bytes().to_vec();
            bad.extend_from_slice(&headers.to_be_bytes());
            bad.extend_from_slice(&crc32(&bad).to_be_bytes());
            assert_eq!(payloads(99, &[&bad]), Err(FrameError::Lengths), "{total} {headers}");
        }
        let nameless = {
            let mut raw = encode(&[("x", "y")], b"").unwrap();
            raw[12] = 0;
            let end = raw.len() - 4;
            let sum = crc32(&raw[..end]).to_be_bytes();
            raw[end..].copy_from_slice(&sum);
            raw
        };
        assert_eq!(payloads(99, &[&nameless]), Err(FrameError::Headers));
        assert_eq!(encode(&[("", "x")], b""), None);
        assert_eq!(encode(&[(&"x".repeat(256), "x")], b""), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            sent in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..5),
            size in 1..40_usize,
        ) {
            let stream: Vec<u8> = sent.iter().flat_map(|p| encode(&[(":event-type", "x")], p).unwrap()).collect();
            prop_assert_eq!(payloads(99, &stream.chunks(size).collect::<Vec<_>>()), Ok(sent));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), size in 1..20_usize) {
            let _ = payloads(64, &bytes.chunks(size).collect::<Vec<_>>());
        }

        #[test]
        fn no_headers_make_it_panic(head in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut rest = &head[..];
            while !rest.is_empty() && header(&mut rest).is_some() {}
        }
    }
}
