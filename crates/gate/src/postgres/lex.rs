//! SQL as PostgreSQL's own scanner cuts it, as far as a decision needs it; what could be cut in two ways is refused.
//!
//! It presumes what [`super::startup`] settles for each session: `standard_conforming_strings` is on and the client's
//! encoding is UTF-8, so that no byte of a character is taken for a quote or a backslash.
//!
//! # Source
//! `src/backend/parser/scan.l` of PostgreSQL 9.6 to 18.

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    start: u32,
    end: u32,
    /// How far it is to the parenthesis that belongs to this one; 0 for none.
    pub(super) pair: i32,
}

/// What a part of a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// `$1`.
    Parameter,
    /// An identifier in quotes.
    Quoted,
    /// One character of an operator, a parenthesis, a comma and the like.
    Symbol(u8),
    /// A string of any form.
    Text,
    /// An identifier or keyword.
    Word,
}

impl Token {
    /// Its text as it was written.
    #[must_use]
    pub fn of<'a>(&self, text: &'a str) -> &'a str {
        text.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Whether nothing stands between this one and the next.
    #[must_use]
    pub const fn touches(&self, next: &Self) -> bool {
        self.end == next.start
    }
}

/// Why a text cannot be cut, in words.
pub type Unreadable = &'static str;

/// Cuts a text; comments and spaces fall out.
///
/// # Errors
/// [`Unreadable`].
pub fn tokens(text: &str) -> Result<Vec<Token>, Unreadable> {
    let mut scanner = Scanner { bytes: text.as_bytes(), at: 0 };
    let mut found: Vec<Token> = Vec::new();
    let mut after_escaped = false;
    loop {
        scanner.space()?;
        let start = scanner.at;
        let Some(byte) = scanner.peek(0) else {
            pair(&mut found);
            return Ok(found);
        };
        let kind = scanner.token(byte)?;
        // WHY: a string goes on over a line break, in the form in which it began. What follows one with escapes is
        // therefore not what it looks like.
        if after_escaped && byte == b'\'' {
            return Err("a string with escapes goes on in another");
        }
        after_escaped = kind == Kind::Text && matches!(byte, b'e' | b'E');
        let place = |at: usize| u32::try_from(at).map_err(|_| "it is too long");
        found.push(Token { kind, start: place(start)?, end: place(scanner.at)?, pair: 0 });
    }
}

/// Finds for each parenthesis the one that belongs to it.
fn pair(tokens: &mut [Token]) {
    let mut open: Vec<usize> = Vec::new();
    for at in 0..tokens.len() {
        match tokens.get(at).map(|token| token.kind) {
            Some(Kind::Symbol(b'(')) => open.push(at),
            Some(Kind::Symbol(b')')) => {
                let Some(from) = open.pop() else { continue };
                let Ok(steps) = i32::try_from(at - from) else { continue };
                for (place, steps) in [(from, steps), (at, -steps)] {
                    if let Some(token) = tokens.get_mut(place) {
                        token.pair = steps;
                    }
                }
            }
            _ => {}
        }
    }
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

const fn begins_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

const fn continues_word(byte: u8) -> bool {
    begins_word(byte) || byte.is_ascii_digit() || byte == b'$'
}

impl Scanner<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&wanted) {
            self.at += 1;
        }
    }

    /// Passes over spaces and comments.
    fn space(&mut self) -> Result<(), Unreadable> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b' ' | b'\t' | b'\n' | b'\r' | 0x0c), _) => self.at += 1,
                (Some(b'-'), Some(b'-')) => self.skip_while(|b| b != b'\n' && b != b'\r'),
                (Some(b'/'), Some(b'*')) => self.comment()?,
                // Among them is the vertical tab, which is a space to some versions alone.
                (Some(0..=0x1f | 0x7f), _) => return Err("it has a control character"),
                _ => return Ok(()),
            }
        }
    }

    fn comment(&mut self) -> Result<(), Unreadable> {
        let mut depth = 0_u32;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return Err("a comment does not end"),
            }
        }
    }

    fn token(&mut self, byte: u8) -> Result<Kind, Unreadable> {
        match byte {
            b'\'' => self.quoted(b'\'', false).map(|()| Kind::Text),
            b'"' => self.quoted(b'"', false).map(|()| Kind::Quoted),
            b'$' => self.dollar(),
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_some_and(|b| b.is_ascii_digit()) => self.number(),
            _ if begins_word(byte) => self.word(),
            _ => {
                self.at += 1;
                Ok(Kind::Symbol(byte))
            }
        }
    }

    /// From the opening quote to behind the closing one; a doubled quote stands for itself.
    fn quoted(&mut self, quote: u8, escapes: bool) -> Result<(), Unreadable> {
        self.at += 1;
        loop {
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Err("a string or quoted name does not end"),
                (Some(b'\\'), Some(_)) if escapes => self.at += 2,
                (Some(byte), Some(next)) if byte == quote && next == quote => self.at += 2,
                (Some(byte), _) => {
                    self.at += 1;
                    if byte == quote {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn word(&mut self) -> Result<Kind, Unreadable> {
        let start = self.at;
        self.skip_while(continues_word);
        let word = self.bytes.get(start..self.at).unwrap_or_default();
        match (word, self.peek(0), self.peek(1)) {
            (b"e" | b"E", Some(b'\''), _) => self.quoted(b'\'', true).map(|()| Kind::Text),
            (b"b" | b"B" | b"x" | b"X" | b"n" | b"N", Some(b'\''), _) => self.quoted(b'\'', false).map(|()| Kind::Text),
            (b"u" | b"U", Some(b'&'), Some(b'\'')) => {
                self.at += 1;
                self.quoted(b'\'', false).map(|()| Kind::Text)
            }
            (b"u" | b"U", Some(b'&'), Some(b'"')) => Err("it has a name with Unicode escapes"),
            _ => Ok(Kind::Word),
        }
    }

    /// `$1`, or a string between two tags such as `$$` or `$tag$`.
    fn dollar(&mut self) -> Result<Kind, Unreadable> {
        let start = self.at;
        self.at += 1;
        if self.peek(0).is_some_and(|b| b.is_ascii_digit()) {
            self.skip_while(|b| b.is_ascii_digit());
            return match self.peek(0) {
                Some(byte) if begins_word(byte) => Err("letters follow a parameter"),
                _ => Ok(Kind::Parameter),
            };
        }
        if self.peek(0).is_some_and(begins_word) {
            self.skip_while(|b| begins_word(b) || b.is_ascii_digit());
        }
        if self.peek(0) != Some(b'$') {
            return Err("it has a `$` that begins nothing");
        }
        self.at += 1;
        let tag = self.bytes.get(start..self.at).unwrap_or_default();
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let end = memchr::memmem::find(rest, tag).ok_or("a string between dollars does not end")?;
        self.at += end + tag.len();
        Ok(Kind::Text)
    }

    /// Plain decimal numbers. Versions differ in what follows a number at once, so nothing may.
    fn number(&mut self) -> Result<Kind, Unreadable> {
        self.skip_while(|b| b.is_ascii_digit());
        if self.peek(0) == Some(b'.') {
            self.at += 1;
            self.skip_while(|b| b.is_ascii_digit());
        }
        if matches!(self.peek(0), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(self.peek(1), Some(b'+' | b'-')));
            if self.peek(1 + sign).is_some_and(|b| b.is_ascii_digit()) {
                self.at += 1 + sign;
                self.skip_while(|b| b.is_ascii_digit());
            }
        }
        match self.peek(0) {
            Some(byte) if continues_word(byte) => Err("letters follow a number"),
            _ => Ok(Kind::Number),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(text: &str) -> Result<Vec<&str>, Unreadable> {
        Ok(tokens(text)?.iter().map(|token| token.of(text)).collect())
    }

    #[test]
    fn texts_are_cut_as_postgresql_cuts_them() {
        for (text, want) in [
            ("select 1", &["select", "1"][..]),
            ("'a''b' c", &["'a''b'", "c"]),
            (r"'a\' b", &[r"'a\'", "b"]),
            (r"E'a\'' b", &[r"E'a\''", "b"]),
            (r"E'a\\' b", &[r"E'a\\'", "b"]),
            (r"fe'a\' b", &["fe", r"'a\'", "b"]),
            ("U&'a''b' c", &["U&'a''b'", "c"]),
            ("u & 'a'", &["u", "&", "'a'"]),
            ("$$a'b$$ c", &["$$a'b$$", "c"]),
            ("$a$ $b$ $a$ c", &["$a$ $b$ $a$", "c"]),
            ("a$b$c", &["a$b$c"]),
            ("$1,$23", &["$1", ",", "$23"]),
            ("\"a\"\"b\".c", &["\"a\"\"b\"", ".", "c"]),
            ("a/* b /* c */ d */e", &["a", "e"]),
            ("a/*/**/*/b", &["a", "b"]),
            ("a--b\nc--d\re", &["a", "c", "e"]),
            ("1--2\n", &["1"]),
            ("1+--2\n3", &["1", "+", "3"]),
            ("a@/*b*/c", &["a", "@", "c"]),
            ("1.5e-3 .5 1. a.b", &["1.5e-3", ".5", "1.", "a", ".", "b"]),
            ("1-2", &["1", "-", "2"]),
            ("é\u{a0}x", &["é\u{a0}x"]),
            ("'/*' a '*/'", &["'/*'", "a", "'*/'"]),
            ("\"--\" a", &["\"--\"", "a"]),
            ("x::int", &["x", ":", ":", "int"]),
        ] {
            assert_eq!(cut(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn what_can_be_cut_in_two_ways_is_refused() {
        for text in [
            "'a",
            "\"a",
            "/* a",
            "/* /* */",
            "$$ a",
            "$a$ $b$",
            "$a",
            "1a",
            "1$a$b$a$",
            "0x1f",
            "1_000",
            "1E'\\''",
            "$1a",
            "U&\"a\"",
            "E'a'\n'b\\''",
            "E'a' 'b'",
            "a\u{b}b",
            "a\u{1}",
            "E'a\\",
            "1$a$b$a$",
        ] {
            assert!(cut(text).is_err(), "{text}: {:?}", cut(text));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_cut_or_refused_and_nothing_but_space_falls_out(text in "[-/*'\"$\\\\eEuU&aé1.;() \n\r]{0,24}") {
            if let Ok(found) = tokens(&text) {
                let mut at = 0;
                for token in &found {
                    prop_assert!(token.start as usize >= at && token.end > token.start);
                    let between = &text[at..token.start as usize];
                    prop_assert!(tokens(between).is_ok_and(|none| none.is_empty()) || between.contains("--"), "{between:?}");
                    at = token.end as usize;
                }
            }
        }

        #[test]
        fn a_string_hides_whatever_is_in_it(inside in "\\PC{0,40}") {
            let plain = format!("'{}' x", inside.replace('\'', "''"));
            prop_assert_eq!(tokens(&plain).unwrap().len(), 2);
            let escaped = format!("E'{}' x", inside.replace('\\', "\\\\").replace('\'', "\\'"));
            prop_assert_eq!(tokens(&escaped).unwrap().len(), 2);
            let name = format!("\"{}\" x", inside.replace('"', "\"\""));
            prop_assert_eq!(tokens(&name).unwrap().len(), 2);
            if !inside.contains("$q$") && !inside.ends_with("$q") && !inside.ends_with('$') {
                prop_assert_eq!(tokens(&format!("$q${inside}$q$ x")).unwrap().len(), 2);
            }
        }
    }
}
