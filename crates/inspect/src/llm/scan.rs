//! A look at JSON as it comes, in constant memory: scalars, each with the keys on the way to it.
//!
//! It is for counting, not for deciding: it takes whatever comes, and reads on after what is malformed. Lists do not
//! count as steps of a path, so that what is in a list of answers has the path of one answer. Several texts one after
//! the other are read as such, which is how lines of JSON come.

/// The most lists and objects within each other; what is deeper is passed over.
const MAX_DEPTH: usize = 128;

/// The keys of a path that are kept.
const MAX_KEYS: usize = 6;

/// The bytes of a key, a number or a word that are kept.
const MAX_KEPT_BYTES: usize = 48;

/// Takes what a [`Scan`] finds.
pub(super) trait Sink {
    /// A whole number that is not negative.
    fn number(&mut self, path: Path<'_>, number: u64);
    /// `true`, `false` or `null`.
    fn word(&mut self, path: Path<'_>, word: &[u8]);
    /// A text begins.
    fn text_begins(&mut self, path: Path<'_>);
    /// A part of a text, without escapes.
    fn text(&mut self, path: Path<'_>, part: &[u8]);
}

/// The keys on the way to a scalar, outermost first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path<'a> {
    keys: &'a [Vec<u8>],
    /// The number of keys, kept or not.
    depth: usize,
}

impl<'a> Path<'a> {
    /// Whether it is this path.
    pub(super) fn is(&self, keys: &[&str]) -> bool {
        self.depth == keys.len() && self.begins(keys)
    }

    /// Whether it begins with these keys.
    pub(super) fn begins(&self, keys: &[&str]) -> bool {
        self.keys.len() >= keys.len() && self.keys.iter().zip(keys).all(|(own, key)| own == key.as_bytes())
    }

    /// The key at a place, as text.
    pub(super) fn key(&self, place: usize) -> Option<&'a str> {
        self.keys.get(place).and_then(|key| std::str::from_utf8(key).ok())
    }

    /// The last key, if it was kept.
    pub(super) fn last(&self) -> Option<&'a str> {
        self.key(self.depth.checked_sub(1)?)
    }

    /// The number of keys.
    pub(super) const fn len(&self) -> usize {
        self.depth
    }
}

/// Reads JSON as it comes.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    /// For each list or object that is open, whether it is an object.
    open: Vec<bool>,
    /// How many more are open than are kept.
    deeper: usize,
    /// The current keys of the open objects, the outermost first.
    keys: Vec<Vec<u8>>,
    /// How many objects are open.
    depth: usize,
    expects_key: bool,
    state: State,
    kept: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Between tokens.
    #[default]
    Between,
    /// Behind a backslash in a text.
    Escape { key: bool },
    /// In a text.
    Text { key: bool },
    /// In the digits of an escape.
    Unicode { key: bool, digits: u8, code: u32 },
    /// In a number or a word.
    Word,
}

impl Scan {
    /// Forgets what came before: a new text begins.
    pub(super) fn reset(&mut self) {
        self.open.clear();
        self.deeper = 0;
        self.depth = 0;
        self.expects_key = false;
        self.state = State::Between;
        self.kept.clear();
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8], sink: &mut impl Sink) {
        let mut rest = bytes;
        while let Some((byte, behind)) = rest.split_first() {
            match self.state {
                State::Text { key } => rest = self.in_text(key, rest, sink),
                State::Escape { key } => {
                    rest = behind;
                    self.escape(key, *byte, sink);
                }
                State::Unicode { key, digits, code } => {
                    rest = behind;
                    let code = code << 4 | char::from(*byte).to_digit(16).unwrap_or(0);
                    self.state = State::Unicode { key, digits: digits + 1, code };
                    if digits == 3 {
                        self.unicode(key, code, sink);
                    }
                }
                State::Word if is_of_word(*byte) => {
                    let end = rest.iter().position(|byte| !is_of_word(*byte)).unwrap_or(rest.len());
                    let (part, behind) = rest.split_at_checked(end).unwrap_or((rest, &[]));
                    rest = behind;
                    self.keep(part);
                }
                // The byte behind a word is looked at once more.
                State::Word => self.end_word(sink),
                State::Between => {
                    rest = behind;
                    self.between(*byte, sink);
                }
            }
        }
    }

    /// Ends a number that nothing follows.
    pub(super) fn finish(&mut self, sink: &mut impl Sink) {
        if self.state == State::Word {
            self.end_word(sink);
        }
    }

    fn between(&mut self, byte: u8, sink: &mut impl Sink) {
        match byte {
            b'{' | b'[' => self.open(byte == b'{'),
            b'}' | b']' => self.close(),
            b',' => self.expects_key = self.deeper == 0 && self.open.last() == Some(&true),
            b':' => self.expects_key = false,
            b'"' => {
                let key = self.expects_key;
                self.state = State::Text { key };
                self.kept.clear();
                if !key && self.deeper == 0 {
                    sink.text_begins(self.path());
                }
            }
            _ if is_of_word(byte) => {
                self.state = State::Word;
                self.kept.clear();
                self.keep(&[byte]);
            }
            _ => {}
        }
    }

    fn open(&mut self, object: bool) {
        if self.open.len() >= MAX_DEPTH {
            self.deeper += 1;
            return;
        }
        self.open.push(object);
        self.expects_key = object;
        if object {
            if let Some(key) = self.keys.get_mut(self.depth) {
                key.clear();
            } else if self.keys.len() < MAX_KEYS {
                self.keys.push(Vec::new());
            }
            self.depth += 1;
        }
    }

    fn close(&mut self) {
        self.expects_key = false;
        if self.deeper > 0 {
            self.deeper -= 1;
        } else if self.open.pop() == Some(true) {
            self.depth -= 1;
        }
    }

    /// Takes a text up to its end, an escape or the end of what came.
    fn in_text<'b>(&mut self, key: bool, bytes: &'b [u8], sink: &mut impl Sink) -> &'b [u8] {
        let end = memchr::memchr2(b'"', b'\\', bytes);
        let (part, behind) = bytes.split_at_checked(end.unwrap_or(bytes.len())).unwrap_or((bytes, &[]));
        self.part(key, part, sink);
        match behind.split_first() {
            None => behind,
            Some((b'\\', behind)) => {
                self.state = State::Escape { key };
                behind
            }
            Some((_, behind)) => {
                self.state = State::Between;
                if key {
                    self.end_key();
                }
                behind
            }
        }
    }

    fn escape(&mut self, key: bool, byte: u8, sink: &mut impl Sink) {
        self.state = State::Text { key };
        match byte {
            b'u' => self.state = State::Unicode { key, digits: 0, code: 0 },
            b'b' | b'f' | b'n' | b'r' | b't' => self.part(key, b"\n", sink),
            other => self.part(key, &[other], sink),
        }
    }

    fn unicode(&mut self, key: bool, code: u32, sink: &mut impl Sink) {
        self.state = State::Text { key };
        // Of a pair the first half says nothing, and the second stands for the character.
        let character = match code {
            0xd800..0xdc00 => return,
            0xdc00..0xe000 => char::REPLACEMENT_CHARACTER,
            other => char::from_u32(other).unwrap_or(char::REPLACEMENT_CHARACTER),
        };
        self.part(key, character.encode_utf8(&mut [0; 4]).as_bytes(), sink);
    }

    fn part(&mut self, key: bool, part: &[u8], sink: &mut impl Sink) {
        if key {
            self.keep(part);
        } else if self.deeper == 0 && !part.is_empty() {
            sink.text(self.path(), part);
        }
    }

    fn end_key(&mut self) {
        self.expects_key = false;
        if let Some(key) = self.depth.checked_sub(1).and_then(|place| self.keys.get_mut(place)) {
            std::mem::swap(key, &mut self.kept);
        }
    }

    fn end_word(&mut self, sink: &mut impl Sink) {
        self.state = State::Between;
        if self.deeper > 0 {
            return;
        }
        match std::str::from_utf8(&self.kept).ok().and_then(|word| word.parse().ok()) {
            Some(number) => sink.number(self.path(), number),
            None => sink.word(self.path(), &self.kept),
        }
    }

    fn keep(&mut self, part: &[u8]) {
        let room = MAX_KEPT_BYTES.saturating_sub(self.kept.len()).min(part.len());
        self.kept.extend_from_slice(part.get(..room).unwrap_or_default());
    }

    fn path(&self) -> Path<'_> {
        Path { keys: self.keys.get(..self.depth.min(self.keys.len())).unwrap_or_default(), depth: self.depth }
    }
}

const fn is_of_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default, Debug, PartialEq, Eq)]
    struct Heard(Vec<String>);

    impl Heard {
        fn add(&mut self, path: Path<'_>, value: &str) {
            let keys: Vec<&str> = (0..path.len()).map(|at| path.key(at).unwrap_or("?")).collect();
            self.0.push(format!("{}={value}", keys.join(".")));
        }
    }

    impl Sink for Heard {
        fn number(&mut self, path: Path<'_>, number: u64) {
            self.add(path, &number.to_string());
        }
        fn word(&mut self, path: Path<'_>, word: &[u8]) {
            self.add(path, &String::from_utf8_lossy(word));
        }
        fn text_begins(&mut self, path: Path<'_>) {
            self.add(path, "\"");
        }
        fn text(&mut self, _: Path<'_>, part: &[u8]) {
            self.0.last_mut().unwrap().push_str(&String::from_utf8_lossy(part));
        }
    }

    fn heard(chunks: &[&[u8]]) -> Vec<String> {
        let (mut scan, mut sink) = (Scan::default(), Heard::default());
        chunks.iter().for_each(|chunk| scan.push(chunk, &mut sink));
        scan.finish(&mut sink);
        assert!(scan.keys.len() <= MAX_KEYS && scan.kept.len() <= MAX_KEPT_BYTES && scan.open.len() <= MAX_DEPTH);
        sink.0
    }

    #[test]
    fn scalars_come_with_their_paths() {
        let text = br#"{"a":1,"b":{"c":[{"d":"x\n\u00e9\ud83d\ude00","e":true},2],"f":null},"g\"":-1.5} {"h":"i"} 7"#;
        let want = ["a=1", "b.c.d=\"x\né\u{fffd}", "b.c.e=true", "b.c=2", "b.f=null", "g\"=-1.5", "h=\"i", "=7"];
        assert_eq!(heard(&[text]), want);
        for cut in 0..text.len() {
            // Cuts within a character show as replacements; there is none in this text.
            assert_eq!(heard(&[&text[..cut], &text[cut..]]), want, "{cut}");
        }
    }

    #[test]
    fn what_is_deep_or_broken_is_passed_over() {
        let deep = format!("{}1{},2", "[".repeat(200), "]".repeat(200));
        assert_eq!(heard(&[deep.as_bytes()]), ["=2"]);
        let deep = format!("{}1{}", "{\"a\":".repeat(10), "}".repeat(10));
        assert_eq!(heard(&[deep.as_bytes()]), ["a.a.a.a.a.a.?.?.?.?=1"]);
        assert_eq!(heard(&[br#"}}]]{"a":1}"#]), ["a=1"]);
        assert_eq!(heard(&[br#"{"a":1"#]), ["a=1"]);
        let long = format!("{{\"{}\":1}}", "k".repeat(100));
        assert_eq!(heard(&[long.as_bytes()]), [format!("{}=1", "k".repeat(MAX_KEPT_BYTES))]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in "[\\[\\]{}:,\"\\\\ua01 é-]{0,60}", size in 1..9_usize) {
            heard(&text.as_bytes().chunks(size).collect::<Vec<_>>());
        }

        #[test]
        fn cuts_do_not_matter(text in "[\\[\\]{}:,\"\\\\ua01 -]{0,60}", size in 1..9_usize) {
            prop_assert_eq!(heard(&text.as_bytes().chunks(size).collect::<Vec<_>>()), heard(&[text.as_bytes()]));
        }
    }
}
