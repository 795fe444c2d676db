//! Messages of PostgreSQL's protocol, as bytes; no I/O.
//!
//! # Source
//! PostgreSQL 17, chapter 53: Frontend/Backend Protocol.

/// A request for TLS, in place of a first message.
pub const SSL_REQUEST: u32 = 80_877_103;

/// A request for GSSAPI encryption.
pub const GSSENC_REQUEST: u32 = 80_877_104;

/// A request to cancel what another session does.
pub const CANCEL_REQUEST: u32 = 80_877_102;

/// Version 3.0, which every server and client of today speaks.
pub const VERSION: u32 = 3 << 16;

/// The longest first message.
pub const MAX_STARTUP: usize = 10_000;

/// Builds one message. Its length is put in at the end.
pub struct Message(Vec<u8>);

impl Message {
    /// A message of this type.
    #[must_use]
    pub fn new(kind: u8) -> Self {
        Self(vec![kind, 0, 0, 0, 0])
    }

    /// A first message, which has no type.
    #[must_use]
    pub fn untyped() -> Self {
        Self(vec![0, 0, 0, 0])
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds a number of 32 bits.
    #[must_use]
    pub fn u32(self, number: u32) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// Adds a text and the NUL that ends it. A NUL in the text would end it early, so what is behind one is left out.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        let text = text.split('\0').next().unwrap_or_default();
        self.bytes(text.as_bytes()).bytes(&[0])
    }

    /// The message with its length in it. `None` if it is longer than a length can say.
    #[must_use]
    pub fn finish(self) -> Option<Vec<u8>> {
        let Self(mut bytes) = self;
        let typed = usize::from(bytes.first().is_some_and(|kind| *kind != 0));
        let length = u32::try_from(bytes.len() - typed).ok().filter(|length| *length <= i32::MAX.unsigned_abs())?;
        bytes.get_mut(typed..typed + 4)?.copy_from_slice(&length.to_be_bytes());
        Some(bytes)
    }
}

/// The body of `Parse` or `Query`, or any other, as it is read from the front.
pub struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    /// Reads this.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next text, without the NUL that ends it.
    pub fn text(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(0, self.0)?;
        let (text, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..)?;
        Some(text)
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The next number of 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        let (number, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*number))
    }

    /// What is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// The head of a message: its type, and how long its body is.
///
/// # Errors
/// If the length is none.
pub fn head(bytes: [u8; 5]) -> Result<(u8, usize), &'static str> {
    let [kind, length @ ..] = bytes;
    let length = i32::from_be_bytes(length);
    let body = length.checked_sub(4).and_then(|body| usize::try_from(body).ok());
    body.map(|body| (kind, body)).ok_or("a message has an impossible length")
}

/// The parameters of a first message, behind its version.
///
/// # Errors
/// Why they cannot be read.
pub fn parameters(body: &[u8]) -> Result<Vec<(String, String)>, &'static str> {
    let mut body = Body::new(body);
    let mut found = Vec::new();
    loop {
        let name = body.text().ok_or("the first message does not end")?;
        if name.is_empty() {
            return if body.rest().is_empty() { Ok(found) } else { Err("the first message goes on behind its end") };
        }
        let value = body.text().ok_or("the first message does not end")?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| "the first message is not UTF-8");
        found.push((text(name)?, text(value)?));
    }
}

/// Cuts the parameter `options` into settings.
///
/// # Errors
/// If it has anything but settings.
///
/// # Source
/// `pg_split_opts` and `process_postgres_switches` of PostgreSQL.
pub fn options(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let mut words: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.extend(characters.next()),
            c if c.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    let mut found = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(rest), _) => rest.to_owned(),
            (None, Some("")) => words.next().ok_or("`options` ends early")?,
            (None, Some(rest)) => rest.to_owned(),
            (None, None) => return Err("`options` has something other than settings"),
        };
        let (name, value) = setting.split_once('=').ok_or("`options` has a setting without a value")?;
        found.push((name.replace('-', "_").to_ascii_lowercase(), value.to_owned()));
    }
    Ok(found)
}

/// An error as the agent is told it.
#[must_use]
pub fn error(severity: &str, code: &str, message: &str, hint: Option<&str>) -> Vec<u8> {
    let mut built = Message::new(b'E').bytes(b"S").text(severity).bytes(b"V").text(severity);
    built = built.bytes(b"C").text(code).bytes(b"M").text(message);
    if let Some(hint) = hint {
        built = built.bytes(b"H").text(hint);
    }
    built.bytes(&[0]).finish().unwrap_or_default()
}

/// The severity and the code of an error or a notice.
#[must_use]
pub fn error_code(body: &[u8]) -> String {
    let mut body = Body::new(body);
    while let Some(kind) = body.byte().filter(|kind| *kind != 0) {
        let Some(text) = body.text() else { break };
        if kind == b'C' {
            return String::from_utf8_lossy(text).chars().filter(char::is_ascii_alphanumeric).take(5).collect();
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_have_their_length() {
        assert_eq!(Message::new(b'Q').text("ab").finish().unwrap(), b"Q\0\0\0\x07ab\0");
        assert_eq!(Message::untyped().u32(7).finish().unwrap(), b"\0\0\0\x08\0\0\0\x07");
        assert_eq!(Message::new(b'Q').text("a\0b").finish().unwrap(), b"Q\0\0\0\x06a\0");
        assert_eq!(head(*b"Q\0\0\0\x04"), Ok((b'Q', 0)));
        assert!(head(*b"Q\0\0\0\x03").is_err());
        assert!(head(*b"Q\xff\xff\xff\xff").is_err());
        assert_eq!(error_code(error("ERROR", "42501", "no", None).get(5..).unwrap()), "42501");
    }

    #[test]
    fn options_are_settings_and_nothing_else() {
        let text = r"-c Statement-Timeout=5 --search_path=a\ b -cx=";
        let want = [("statement_timeout", "5"), ("search_path", "a b"), ("x", "")];
        assert_eq!(options(text).unwrap(), want.map(|(a, b)| (a.to_owned(), b.to_owned())));
        for bad in ["-c", "-d 5", "x=y", "-c x", "--x"] {
            assert!(options(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = parameters(&bytes);
            let _ = error_code(&bytes);
            let _ = options(&String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn parameters_come_back(pairs in prop::collection::vec(("[a-z]{1,8}", "[^\0]{0,8}"), 0..5)) {
            let mut message = Message::untyped();
            for (name, value) in &pairs {
                message = message.text(name).text(value);
            }
            let message = message.bytes(&[0]).finish().unwrap();
            prop_assert_eq!(parameters(&message[4..]).unwrap(), pairs);
        }
    }
}
