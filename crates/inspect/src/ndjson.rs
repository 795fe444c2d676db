//! Lines of JSON, read from chunks however they are cut.
//!
//! As with [`crate::sse`], every byte of the stream is in exactly one [`Line`], and nothing is held but the line that is
//! not whole yet, and of that no more than a limit.

/// Takes a stream apart into lines.
#[derive(Clone, Debug)]
pub struct Ndjson {
    limit: usize,
    held: Vec<u8>,
    at: u64,
    given: bool,
    oversized: bool,
}

/// A line with its end, or a part of one that is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its bytes.
    pub raw: &'a [u8],
    /// Where in the stream it begins, in bytes.
    pub at: u64,
    /// What it says, without its end; `None` for an empty line, and for parts of what is too large.
    pub text: Option<&'a [u8]>,
    /// Whether it is a part of a line that is larger than the limit.
    pub oversized: bool,
}

impl Ndjson {
    /// Begins a stream. `limit` is the size of the largest line that is read, in bytes.
    #[must_use]
    pub const fn new(limit: usize) -> Self {
        let limit = if limit == 0 { 1 } else { limit };
        Self { limit, held: Vec::new(), at: 0, given: false, oversized: false }
    }

    /// Takes bytes off the front of `chunk` until a line is whole; `None` once all of it is taken.
    pub fn next(&mut self, chunk: &mut &[u8]) -> Option<Line<'_>> {
        self.forget();
        let room = self.limit - self.held.len();
        let near = chunk.get(..room.min(chunk.len())).unwrap_or_default();
        let end = memchr::memchr(b'\n', near).map(|end| end + 1);
        self.held.extend_from_slice(near.get(..end.unwrap_or(near.len())).unwrap_or_default());
        *chunk = chunk.get(end.unwrap_or(near.len())..).unwrap_or_default();
        if end.is_some() {
            return Some(self.give(false));
        }
        if self.held.len() >= self.limit {
            self.oversized = true;
        }
        (self.oversized && !self.held.is_empty()).then(|| self.give(true))
    }

    /// Gives what is left when the stream has ended: a last line without an end.
    pub fn finish(&mut self) -> Option<Line<'_>> {
        self.forget();
        (!self.held.is_empty()).then(|| self.give(false))
    }

    fn give(&mut self, goes_on: bool) -> Line<'_> {
        self.given = true;
        let oversized = self.oversized;
        self.oversized = goes_on;
        let text = self.held.strip_suffix(b"\n").unwrap_or(&self.held);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        Line { raw: &self.held, at: self.at, text: (!oversized && !text.is_empty()).then_some(text), oversized }
    }

    fn forget(&mut self) {
        if std::mem::take(&mut self.given) {
            self.at += self.held.len() as u64;
            self.held.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(limit: usize, chunks: &[&[u8]]) -> Vec<String> {
        let mut ndjson = Ndjson::new(limit);
        let (mut raw, mut said) = (Vec::new(), Vec::new());
        let mut take = |line: Line<'_>| {
            assert_eq!(line.at, raw.len() as u64);
            assert!(!line.raw.is_empty() && line.raw.len() <= limit.max(1));
            raw.extend_from_slice(line.raw);
            said.extend(line.text.map(|text| String::from_utf8_lossy(text).into_owned()));
        };
        for chunk in chunks {
            let mut rest = *chunk;
            while let Some(line) = ndjson.next(&mut rest) {
                take(line);
            }
            assert!(rest.is_empty());
        }
        if let Some(line) = ndjson.finish() {
            take(line);
        }
        assert_eq!(raw, chunks.concat());
        said
    }

    #[test]
    fn lines_are_lines() {
        assert_eq!(lines(99, &[b"{}\n{\"a\"", b":1}\r", b"\n\n[", b"]"]), ["{}", "{\"a\":1}", "[]"]);
        assert_eq!(lines(8, &[b"1\n0123456789012345\n2\n0123456\n3"]), ["1", "2", "0123456", "3"]);
        assert_eq!(lines(8, &[b"0123456789", b"0", b"1\n2\n"]), ["2"]);
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(bytes in prop::collection::vec(prop::sample::select(&b"ab\r\n"[..]), 0..60), size in 1..20_usize) {
            prop_assert_eq!(lines(99, &bytes.chunks(size).collect::<Vec<_>>()), lines(99, &[&bytes]));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), limit in 0..9_usize, size in 1..20_usize) {
            lines(limit, &bytes.chunks(size).collect::<Vec<_>>());
        }
    }
}
