//! The reader: one pass, recursive to the depth that the limits give.

use std::borrow::Cow;

use super::{JsonError, Limits, Number, Object, Problem, Value};

/// The longest number that is read. The shortest form of any `f64` has 25 bytes at most.
const MAX_NUMBER_BYTES: usize = 64;

/// Objects of up to so many members are searched for duplicate keys pair by pair.
const FEW_MEMBERS: usize = 8;

/// Reads a JSON text, and nothing but one.
///
/// Takes time in proportion to the bytes (times the logarithm of the members of one object).
///
/// # Errors
/// [`JsonError`] for every text that is no JSON, that readers may read in more than one way, or that passes `limits`.
pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Result<Value<'a>, JsonError> {
    let fail = |problem, at| Err(JsonError { problem, at });
    if bytes.len() > limits.bytes {
        return fail(Problem::TooLarge, limits.bytes);
    }
    match bytes {
        [0xef, 0xbb, 0xbf, ..] => return fail(Problem::Bom, 0),
        // RFC 4627 §3: a JSON text begins with two ASCII characters, so these are UTF-16 or UTF-32.
        [0xfe, 0xff, ..] | [0xff, 0xfe, ..] | [0, ..] | [_, 0, ..] => return fail(Problem::Encoding, 0),
        _ => {}
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return fail(Problem::Utf8, error.valid_up_to()),
    };
    let mut reader = Reader { text, at: 0, depth_left: limits.depth, values_left: limits.values };
    reader.skip_space();
    if reader.peek().is_none() {
        return fail(Problem::Empty, reader.at);
    }
    let value = reader.value()?;
    reader.skip_space();
    match reader.peek() {
        None => Ok(value),
        Some(b'/' | b'#') => fail(Problem::Comment, reader.at),
        Some(_) => fail(Problem::Trailing, reader.at),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth_left: usize,
    values_left: usize,
}

impl<'a> Reader<'a> {
    fn value(&mut self) -> Result<Value<'a>, JsonError> {
        self.count()?;
        match self.peek() {
            Some(b'"') => Ok(Value::Text(self.string()?)),
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::list),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            _ => Err(self.unexpected()),
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Value<'a>, JsonError>) -> Result<Value<'a>, JsonError> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or_else(|| self.problem(Problem::Depth))?;
        self.at += 1;
        self.skip_space();
        let value = read(self)?;
        self.depth_left += 1;
        Ok(value)
    }

    fn list(&mut self) -> Result<Value<'a>, JsonError> {
        let mut list = Vec::new();
        if self.take(b']') {
            return Ok(Value::List(list));
        }
        loop {
            list.push(self.value()?);
            self.skip_space();
            if self.take(b']') {
                return Ok(Value::List(list));
            }
            self.expect(b',')?;
        }
    }

    fn object(&mut self) -> Result<Value<'a>, JsonError> {
        let begin = self.at;
        let mut members = Vec::new();
        if self.take(b'}') {
            return Ok(Value::Object(Object { members }));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unexpected());
            }
            self.count()?;
            let key_at = self.at;
            let key = self.string()?;
            if key.contains('\0') {
                return Err(JsonError { problem: Problem::NulInKey, at: key_at });
            }
            self.skip_space();
            self.expect(b':')?;
            members.push((key, self.value()?));
            self.skip_space();
            if self.take(b'}') {
                break;
            }
            self.expect(b',')?;
        }
        if has_duplicate(&members) {
            return Err(JsonError { problem: Problem::DuplicateKey, at: begin });
        }
        Ok(Value::Object(Object { members }))
    }

    /// Reads a text, from its first quote past its last.
    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.at += 1;
        let first = self.plain()?;
        if self.take(b'"') {
            return Ok(Cow::Borrowed(first));
        }
        let mut whole = first.to_owned();
        loop {
            self.at += 1;
            whole.push(self.escape()?);
            whole.push_str(self.plain()?);
            if self.take(b'"') {
                return Ok(Cow::Owned(whole));
            }
        }
    }

    /// The characters up to the next quote or backslash.
    fn plain(&mut self) -> Result<&'a str, JsonError> {
        let rest = self.rest();
        let end = memchr::memchr2(b'"', b'\\', rest.as_bytes());
        let plain = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        if let Some(place) = plain.bytes().position(|b| b < b' ') {
            return Err(JsonError { problem: Problem::Control, at: self.at + place });
        }
        self.at += plain.len();
        if end.is_none() {
            return Err(self.problem(Problem::Truncated));
        }
        Ok(plain)
    }

    /// Reads an escape behind its backslash.
    fn escape(&mut self) -> Result<char, JsonError> {
        let plain = match self.peek() {
            None => return Err(self.problem(Problem::Truncated)),
            Some(b'u') => return self.unicode(),
            Some(plain @ (b'"' | b'\\' | b'/')) => char::from(plain),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(_) => return Err(self.problem(Problem::Escape)),
        };
        self.at += 1;
        Ok(plain)
    }

    fn unicode(&mut self) -> Result<char, JsonError> {
        let begin = self.at;
        let first = self.unit()?;
        let lone = JsonError { problem: Problem::LoneSurrogate, at: begin };
        let code = match first {
            0xd800..=0xdbff => {
                if !self.rest().starts_with("\\u") {
                    return Err(lone);
                }
                self.at += 1;
                match self.unit()? {
                    second @ 0xdc00..=0xdfff => 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00),
                    _ => return Err(lone),
                }
            }
            plain => plain,
        };
        char::from_u32(code).ok_or(lone)
    }

    /// Reads `u` and four hexadecimal digits.
    fn unit(&mut self) -> Result<u32, JsonError> {
        self.at += 1;
        let mut unit = 0;
        for _ in 0..4 {
            let Some(byte) = self.peek() else { return Err(self.problem(Problem::Truncated)) };
            let digit = char::from(byte).to_digit(16).ok_or_else(|| self.problem(Problem::Escape))?;
            unit = unit << 4 | digit;
            self.at += 1;
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<Value<'a>, JsonError> {
        let begin = self.at;
        self.take(b'-');
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            Some(b'I') => return Err(self.problem(Problem::NotANumber)),
            _ => return Err(self.malformed()),
        }
        let mut integer = true;
        if self.take(b'.') {
            integer = false;
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            integer = false;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        if matches!(self.peek(), Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'_' | b'+' | b'-')) {
            return Err(self.problem(Problem::Number));
        }
        let text = self.text.get(begin..self.at).unwrap_or_default();
        let held = if integer {
            text.parse::<i64>().is_ok()
        } else {
            text.len() <= MAX_NUMBER_BYTES && text.parse::<f64>().is_ok_and(f64::is_finite)
        };
        if !held {
            return Err(JsonError { problem: Problem::NumberRange, at: begin });
        }
        Ok(Value::Number(Number(Cow::Borrowed(text))))
    }

    fn some_digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.malformed());
        }
        self.digits();
        Ok(())
    }

    fn digits(&mut self) {
        let rest = self.rest();
        self.at += rest.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
    }

    fn malformed(&self) -> JsonError {
        self.problem(if self.peek().is_none() { Problem::Truncated } else { Problem::Number })
    }

    fn word(&mut self, word: &str, value: Value<'a>) -> Result<Value<'a>, JsonError> {
        if self.rest().starts_with(word) {
            self.at += word.len();
            return Ok(value);
        }
        let cut_off = word.starts_with(self.rest());
        Err(self.problem(if cut_off { Problem::Truncated } else { Problem::Syntax }))
    }

    /// What is wrong where a value or a mark was expected and something else stands.
    fn unexpected(&self) -> JsonError {
        self.problem(match self.peek() {
            None => Problem::Truncated,
            Some(b'/' | b'#') => Problem::Comment,
            Some(b'N' | b'I') => Problem::NotANumber,
            Some(b'+' | b'.') => Problem::Number,
            Some(_) => Problem::Syntax,
        })
    }

    /// Passes a mark and the space behind it.
    fn expect(&mut self, mark: u8) -> Result<(), JsonError> {
        if !self.take(mark) {
            return Err(self.unexpected());
        }
        self.skip_space();
        Ok(())
    }

    fn count(&mut self) -> Result<(), JsonError> {
        self.values_left = self.values_left.checked_sub(1).ok_or_else(|| self.problem(Problem::TooManyValues))?;
        Ok(())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    const fn problem(&self, problem: Problem) -> JsonError {
        JsonError { problem, at: self.at }
    }
}

fn has_duplicate(members: &[(Cow<'_, str>, Value<'_>)]) -> bool {
    if members.len() <= FEW_MEMBERS {
        let mut rest = members;
        while let Some(((key, _), others)) = rest.split_first() {
            if others.iter().any(|(other, _)| other == key) {
                return true;
            }
            rest = others;
        }
        return false;
    }
    let mut keys: Vec<&str> = members.iter().map(|(key, _)| &**key).collect();
    keys.sort_unstable();
    keys.windows(2).any(|pair| pair.first() == pair.last())
}
