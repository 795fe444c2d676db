//! Server-Sent Events, read from chunks however they are cut.
//!
//! [`Sse::next`] takes a chunk apart into [`Piece`]s. Every byte of the stream is in exactly one of them, in order, so
//! whoever passes on what is in [`Piece::raw`] passes on the stream unchanged, and whoever leaves a piece out leaves out
//! one event. Nothing is held but the event that is not whole yet, and of that no more than a limit.
//!
//! # Source
//! WHATWG HTML, "Server-sent events", §9.2.5 and §9.2.6.

use std::borrow::Cow;
use std::str;

/// Takes a stream apart.
///
/// ```
/// use ringfence_inspect::sse::Sse;
///
/// let mut sse = Sse::new(1024);
/// let mut said = Vec::new();
/// for mut chunk in [&b"data: o"[..], b"ne\n\nda", b"ta: two\n\n"] {
///     while let Some(piece) = sse.next(&mut chunk) {
///         said.extend(piece.event.map(|event| event.data.into_owned()));
///     }
/// }
/// assert_eq!(said, [b"one", b"two"]);
/// ```
#[derive(Clone, Debug)]
pub struct Sse {
    limit: usize,
    held: Vec<u8>,
    /// Where in the stream `held` begins.
    at: u64,
    /// Whether `held` was given out and is to be forgotten.
    given: bool,
    /// Whether nothing of the current line has come yet.
    line_is_empty: bool,
    /// Whether the last byte was a CR, so that an LF would belong to it.
    after_cr: bool,
    /// Whether the beginning of the current block was given out already, because it is too large.
    oversized: bool,
}

/// A piece of the stream: a block of lines with the empty line that ends it, or a part of one that is too large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its bytes.
    pub raw: &'a [u8],
    /// Where in the stream it begins, in bytes.
    pub at: u64,
    /// What it says; `None` for comments, for fields without data, and for parts of what is too large.
    pub event: Option<Event<'a>>,
    /// Whether it is a part of a block that is larger than the limit.
    pub oversized: bool,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The type; `message` unless the event says another. Bytes that are not UTF-8 are replaced.
    pub name: Cow<'a, str>,
    /// The data, lines joined by LF.
    pub data: Cow<'a, [u8]>,
    /// The id that it sets.
    pub id: Option<Cow<'a, str>>,
    /// The delay before a new connection that it sets, in milliseconds.
    pub retry_ms: Option<u64>,
}

impl Sse {
    /// Begins a stream. `limit` is the size of the largest block of which the event is read, in bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        Self {
            limit: if limit == 0 { 1 } else { limit },
            held: Vec::new(),
            at: 0,
            given: false,
            line_is_empty: true,
            after_cr: false,
            oversized: false,
        }
    }

    /// Takes bytes off the front of `chunk` until a piece is whole; `None` once all of it is taken.
    pub fn next(&mut self, chunk: &mut &[u8]) -> Option<Piece<'_>> {
        self.forget();
        loop {
            if chunk.is_empty() {
                // What is too large is not held.
                return if self.oversized { self.part() } else { None };
            }
            if self.held.len() >= self.limit {
                self.oversized = true;
                return self.part();
            }
            let room = chunk.len().min(self.limit - self.held.len());
            let near = chunk.get(..room).unwrap_or_default();
            if std::mem::take(&mut self.after_cr) && near.first() == Some(&b'\n') {
                self.hold(chunk, 1);
                continue;
            }
            let Some(end) = memchr::memchr2(b'\r', b'\n', near) else {
                self.line_is_empty = false;
                self.hold(chunk, room);
                continue;
            };
            let ends_block = end == 0 && self.line_is_empty;
            self.after_cr = near.get(end) == Some(&b'\r');
            self.line_is_empty = true;
            self.hold(chunk, end + 1);
            if !ends_block {
                continue;
            }
            if self.after_cr && chunk.first() == Some(&b'\n') {
                self.after_cr = false;
                self.hold(chunk, 1);
            }
            self.given = true;
            let oversized = std::mem::take(&mut self.oversized);
            let event = if oversized { None } else { read(&self.held, self.at == 0) };
            return Some(Piece { raw: &self.held, at: self.at, event, oversized });
        }
    }

    /// Gives what is left when the stream has ended.
    ///
    /// Its event was not ended by an empty line. Readers that keep to the standard drop it; some do not.
    pub fn finish(&mut self) -> Option<Piece<'_>> {
        self.forget();
        if self.held.is_empty() {
            return None;
        }
        self.given = true;
        let event = if self.oversized { None } else { read(&self.held, self.at == 0) };
        Some(Piece { raw: &self.held, at: self.at, event, oversized: self.oversized })
    }

    /// How many bytes are held because their event is not whole.
    #[must_use]
    pub const fn held(&self) -> usize {
        if self.given { 0 } else { self.held.len() }
    }

    fn part(&mut self) -> Option<Piece<'_>> {
        if self.held.is_empty() {
            return None;
        }
        self.given = true;
        Some(Piece { raw: &self.held, at: self.at, event: None, oversized: true })
    }

    fn forget(&mut self) {
        if std::mem::take(&mut self.given) {
            self.at += self.held.len() as u64;
            self.held.clear();
        }
    }

    fn hold(&mut self, chunk: &mut &[u8], count: usize) {
        let (taken, rest) = chunk.split_at_checked(count).unwrap_or((chunk, &[]));
        self.held.extend_from_slice(taken);
        *chunk = rest;
    }
}

/// Reads the fields of a block.
fn read(block: &[u8], first: bool) -> Option<Event<'_>> {
    let mut rest = if first { block.strip_prefix(b"\xef\xbb\xbf").unwrap_or(block) } else { block };
    let (mut name, mut id, mut retry_ms) = (Cow::Borrowed("message"), None, None);
    let mut data: Option<Cow<'_, [u8]>> = None;
    while let Some(line) = next_line(&mut rest) {
        let (field, value) = match memchr::memchr(b':', line) {
            Some(colon) => (line.get(..colon), line.get(colon + 1..)),
            None => (Some(line), Some(&b""[..])),
        };
        let value = value.unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field.unwrap_or_default() {
            b"data" => match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(lines) => {
                    let lines = lines.to_mut();
                    lines.push(b'\n');
                    lines.extend_from_slice(value);
                }
            },
            b"event" if value.is_empty() => name = Cow::Borrowed("message"),
            b"event" => name = String::from_utf8_lossy(value),
            b"id" if !value.contains(&0) => id = Some(String::from_utf8_lossy(value)),
            b"retry" if value.iter().all(u8::is_ascii_digit) => {
                retry_ms = str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()).or(retry_ms);
            }
            _ => {}
        }
    }
    data.map(|data| Event { name, data, id, retry_ms })
}

fn next_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    if rest.is_empty() {
        return None;
    }
    let end = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
    let (line, behind) = rest.split_at_checked(end)?;
    *rest = behind
        .strip_prefix(b"\r\n")
        .or_else(|| behind.strip_prefix(b"\r"))
        .or_else(|| behind.strip_prefix(b"\n"))
        .unwrap_or(behind);
    Some(line)
}

/// Writes an event in the one form that all readers read alike: LF, one space behind each colon.
///
/// Line breaks in `name` and `id` are left out, and NUL in `id`, for which readers would pass over it.
#[must_use]
pub fn encode(name: Option<&str>, id: Option<&str>, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 32);
    for (field, value) in [("event", name), ("id", id)] {
        if let Some(value) = value {
            out.extend_from_slice(field.as_bytes());
            out.extend_from_slice(b": ");
            out.extend(value.bytes().filter(|b| !matches!(b, b'\r' | b'\n') && (*b != 0 || field != "id")));
            out.push(b'\n');
        }
    }
    let mut rest = data;
    loop {
        let line = next_line(&mut rest).unwrap_or_default();
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
        if rest.is_empty() {
            break;
        }
    }
    if data.ends_with(b"\n") || data.ends_with(b"\r") {
        out.extend_from_slice(b"data: \n");
    }
    out.push(b'\n');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Said {
        name: String,
        data: String,
        id: Option<String>,
        retry_ms: Option<u64>,
    }

    /// All events of a stream that comes in these chunks. Checks on the way that no byte is lost or moved.
    fn events(limit: usize, chunks: &[&[u8]]) -> Vec<Said> {
        let mut sse = Sse::new(limit);
        let (mut raw, mut said) = (Vec::new(), Vec::new());
        let mut take = |piece: Piece<'_>| {
            assert_eq!(piece.at, raw.len() as u64);
            assert!(!piece.raw.is_empty() && piece.raw.len() <= limit.max(1) + 1);
            assert!(!piece.oversized || piece.event.is_none());
            raw.extend_from_slice(piece.raw);
            said.extend(piece.event.map(|event| Said {
                name: event.name.into_owned(),
                data: String::from_utf8_lossy(&event.data).into_owned(),
                id: event.id.map(Cow::into_owned),
                retry_ms: event.retry_ms,
            }));
        };
        for chunk in chunks {
            let mut rest = *chunk;
            while let Some(piece) = sse.next(&mut rest) {
                take(piece);
            }
            assert!(rest.is_empty() && sse.held() <= limit.max(1));
        }
        // A stream in these tests may break off; its last event is dropped, as the standard says.
        if let Some(piece) = sse.finish() {
            take(Piece { event: None, ..piece });
        }
        assert!(sse.finish().is_none());
        assert_eq!(raw, chunks.concat());
        said
    }

    fn data(limit: usize, stream: &str) -> Vec<String> {
        events(limit, &[stream.as_bytes()]).into_iter().map(|said| said.data).collect()
    }

    /// Vectors: the examples of WHATWG HTML §9.2.6.
    #[test]
    fn the_examples_of_the_standard() {
        assert_eq!(data(99, "data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
        let stream = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        let said = events(99, &[stream.as_bytes()]);
        assert_eq!(
            said.iter().map(|s| s.data.as_str()).collect::<Vec<_>>(),
            ["first event", "second event", " third event"]
        );
        assert_eq!(said.iter().map(|s| s.id.as_deref()).collect::<Vec<_>>(), [Some("1"), Some(""), None]);
        assert_eq!(data(99, "data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
        assert_eq!(data(99, "data:test\n\ndata: test\n\n"), ["test", "test"]);
        let named = events(99, &[b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n"]);
        assert_eq!(named.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["add", "remove"]);
    }

    #[test]
    fn lines_end_in_three_ways() {
        for end in ["\n", "\r", "\r\n"] {
            let stream = format!("event: a{end}data: 1{end}data: 2{end}{end}data: 3{end}{end}");
            let whole = events(99, &[stream.as_bytes()]);
            assert_eq!(whole.iter().map(|s| s.data.as_str()).collect::<Vec<_>>(), ["1\n2", "3"], "{end:?}");
            let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            assert_eq!(events(99, &bytes), whole, "{end:?}");
        }
        assert_eq!(data(99, "data: 1\r\r\n\r\ndata: 2\n\r\n"), ["1", "2"]);
    }

    #[test]
    fn fields_are_read_as_the_standard_says() {
        let stream =
            "\u{feff}data: 1\nretry: 10\nid: a\n\nevent: x\n\ndata: 2\nretry: 1x\nid: b\0c\nother: 3\nevent\n\n";
        let said = events(99, &[stream.as_bytes()]);
        assert_eq!(said.len(), 2);
        assert_eq!((said[0].data.as_str(), said[0].retry_ms, said[0].id.as_deref()), ("1", Some(10), Some("a")));
        assert_eq!((said[1].data.as_str(), said[1].retry_ms, said[1].id.as_deref()), ("2", None, None));
        assert_eq!(said[1].name, "message");
        // A mark is skipped at the beginning of the stream only.
        assert_eq!(data(99, "data: 1\n\n\u{feff}data: 2\n\n"), ["1"]);
        assert_eq!(data(99, "retry: 99999999999999999999\ndata\n\n"), [""]);
    }

    #[test]
    fn what_is_too_large_goes_through_in_parts() {
        let large = "data: 0123456789012345678901234567890123456789\n\n";
        assert_eq!(data(20, &format!("data: 1\n\n{large}data: 2\n\n")), ["1", "2"]);
        assert_eq!(data(1, "data: 1\n\n\n"), [""; 0]);
        assert_eq!(data(9, "data: 1\n\n"), ["1"]);
    }

    #[test]
    fn a_last_event_without_its_end_is_given() {
        let mut sse = Sse::new(99);
        assert!(sse.next(&mut &b"data: 1\n"[..]).is_none());
        assert_eq!(sse.held(), 8);
        assert_eq!(&*sse.finish().unwrap().event.unwrap().data, b"1");
    }

    fn stream() -> impl Strategy<Value = String> {
        let part = prop::sample::select(
            &["data", "event", "id", "retry", ":", " ", "\n", "\r", "\r\n", "x", "1", "\0", "\u{feff}", "é"][..],
        );
        prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(stream in stream(), cuts in prop::collection::vec(0..80_usize, 0..8)) {
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(events(4096, &chunks), events(4096, &[bytes]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), limit in 0..20_usize, size in 1..20_usize) {
            events(limit, &bytes.chunks(size).collect::<Vec<_>>());
        }

        #[test]
        fn what_is_written_is_read(name in "[a-z]{1,8}", id in "[a-z]{0,8}", data in "[a-z:\n ]{0,20}") {
            let bytes = encode(Some(&name), Some(&id), data.as_bytes());
            let said = events(4096, &[&bytes]);
            prop_assert_eq!(said, [Said { name, data, id: Some(id), retry_ms: None }]);
        }
    }
}
