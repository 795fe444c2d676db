//! Forms with files, strictly: sound and images come to a model in such bodies.
//!
//! What readers of forms disagree about is refused, so that no upstream finds another field than is found here.
//!
//! # Source
//! RFC 7578; RFC 2046 §5.1.

use std::str;

/// The most parts of a form.
const MAX_PARTS: usize = 256;

/// The most bytes of a part's head.
const MAX_HEAD_BYTES: usize = 4096;

/// A form, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form<'a> {
    parts: Vec<Part<'a>>,
}

/// A field or file of a form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'a> {
    /// The field.
    pub name: &'a str,
    /// The file's name, if it is one.
    pub file_name: Option<&'a str>,
    /// Its content.
    pub body: &'a [u8],
}

/// Why a form is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// No boundary, two, or one that may not be.
    #[error("it has no plain boundary")]
    Boundary,
    /// A field that decides is there twice.
    #[error("it has a field twice")]
    FieldTwice,
    /// A part whose head readers may understand in more than one way.
    #[error("a part of it has a head that is not plain")]
    Head,
    /// Something before the first part or behind the last.
    #[error("something is around its parts")]
    Outside,
    /// A field that is not UTF-8.
    #[error("a field of it is no text")]
    Text,
    /// More bytes or parts than are read.
    #[error("it is too large")]
    TooLarge,
    /// It ends within a part.
    #[error("it breaks off")]
    Truncated,
}

impl FormError {
    /// A stable code such as `form_boundary`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Boundary => "form_boundary",
            Self::FieldTwice => "form_field_twice",
            Self::Head => "form_head",
            Self::Outside => "form_outside",
            Self::Text => "form_text",
            Self::TooLarge => "form_too_large",
            Self::Truncated => "form_truncated",
        }
    }
}

impl<'a> Form<'a> {
    /// Takes a body apart; `None` if its content type is not `multipart/form-data`.
    #[must_use]
    pub fn read(content_type: &str, body: &'a [u8], limit: usize) -> Option<Result<Self, FormError>> {
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let multipart = kind.trim().get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/"));
        multipart.then(|| {
            if body.len() > limit {
                return Err(FormError::TooLarge);
            }
            Ok(Self { parts: parts(&boundary(parameters)?, body)? })
        })
    }

    /// The parts, in order.
    #[must_use]
    pub fn parts(&self) -> &[Part<'a>] {
        &self.parts
    }

    /// The text of a field that decides.
    ///
    /// # Errors
    /// [`FormError::FieldTwice`], also if one differs from the other by case only or has brackets behind it;
    /// [`FormError::Text`].
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, FormError> {
        let alike = |part: &&Part<'a>| {
            let bare = part.name.trim_end_matches("[]").trim();
            bare.eq_ignore_ascii_case(name)
        };
        let mut found = self.parts.iter().filter(alike);
        let Some(part) = found.next() else { return Ok(None) };
        if found.next().is_some() || part.name != name {
            return Err(FormError::FieldTwice);
        }
        str::from_utf8(part.body).map(Some).map_err(|_| FormError::Text)
    }
}

/// The boundary, from the parameters of the content type.
fn boundary(parameters: &str) -> Result<String, FormError> {
    let mut found = None;
    for parameter in parameters.split(';') {
        let Some((name, value)) = parameter.split_once('=') else { continue };
        if !name.trim().eq_ignore_ascii_case("boundary") {
            continue;
        }
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&b);
        if value.is_empty() || value.len() > 70 || !value.bytes().all(plain) || found.is_some() {
            return Err(FormError::Boundary);
        }
        found = Some(value.to_owned());
    }
    found.ok_or(FormError::Boundary)
}

fn parts<'a>(boundary: &str, body: &'a [u8]) -> Result<Vec<Part<'a>>, FormError> {
    let opening = format!("--{boundary}");
    let between = format!("\r\n--{boundary}");
    let finder = memchr::memmem::Finder::new(&between);
    let mut rest = body.strip_prefix(opening.as_bytes()).ok_or(FormError::Outside)?;
    let mut parts = Vec::new();
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            return if matches!(end, b"" | b"\r\n") { Ok(parts) } else { Err(FormError::Outside) };
        }
        rest = rest.strip_prefix(b"\r\n").ok_or(FormError::Head)?;
        if parts.len() == MAX_PARTS {
            return Err(FormError::TooLarge);
        }
        let head_end = memchr::memmem::find(rest, b"\r\n\r\n").ok_or(FormError::Truncated)?;
        let head = rest.get(..head_end).filter(|head| head.len() <= MAX_HEAD_BYTES).ok_or(FormError::Head)?;
        let content = rest.get(head_end + 4..).unwrap_or_default();
        // The content may be empty, and then the line that ends it is the one that ends the head.
        let end = if content.starts_with(opening.as_bytes()) {
            return Err(FormError::Head);
        } else {
            finder.find(content).ok_or(FormError::Truncated)?
        };
        let (name, file_name) = head_of(head)?;
        parts.push(Part { name, file_name, body: content.get(..end).unwrap_or_default() });
        rest = content.get(end + between.len()..).unwrap_or_default();
    }
}

/// The names that a part's head gives.
fn head_of(head: &[u8]) -> Result<(&str, Option<&str>), FormError> {
    let head = str::from_utf8(head).map_err(|_| FormError::Head)?;
    let mut disposition = None;
    for line in head.split("\r\n") {
        // A line that begins with space would go on from the one before it.
        if line.starts_with([' ', '\t']) || line.contains(['\r', '\n', '\0']) {
            return Err(FormError::Head);
        }
        let (name, value) = line.split_once(':').ok_or(FormError::Head)?;
        match name.to_ascii_lowercase().as_str() {
            "content-disposition" if disposition.is_some() => return Err(FormError::Head),
            "content-disposition" => disposition = Some(value.trim()),
            "content-transfer-encoding"
                if !matches!(value.trim().to_ascii_lowercase().as_str(), "binary" | "8bit" | "7bit") =>
            {
                return Err(FormError::Head);
            }
            _ => {}
        }
    }
    let rest = disposition.and_then(|d| d.strip_prefix("form-data")).ok_or(FormError::Head)?;
    let (mut name, mut file_name) = (None, None);
    let mut rest = rest.trim_start();
    while let Some(parameter) = rest.strip_prefix(';') {
        let (key, value) = parameter.split_once('=').ok_or(FormError::Head)?;
        let quoted = value.strip_prefix('"').ok_or(FormError::Head)?;
        let (value, behind) = quoted.split_once('"').ok_or(FormError::Head)?;
        let place = match key.trim() {
            "name" => &mut name,
            "filename" => &mut file_name,
            _ => return Err(FormError::Head),
        };
        // Readers unescape these differently.
        if value.contains(['\\', '%']) && key.trim() == "name" || place.is_some() {
            return Err(FormError::Head);
        }
        *place = Some(value);
        rest = behind.trim_start();
    }
    match name {
        Some(name) if rest.is_empty() => Ok((name, file_name)),
        _ => Err(FormError::Head),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIND: &str = "multipart/form-data; boundary=xyz";

    fn read(body: &str) -> Result<Form<'_>, FormError> {
        Form::read(KIND, body.as_bytes(), 4096).unwrap()
    }

    fn field(head: &str) -> Result<(), FormError> {
        read(&format!("--xyz\r\n{head}\r\n\r\nx\r\n--xyz--\r\n")).map(|_| ())
    }

    #[test]
    fn forms_are_taken_apart() {
        let body = "--xyz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--xyz\r\n\
            Content-Disposition: form-data; name=\"file\"; filename=\"a%22.wav\"\r\nContent-Type: audio/wav\r\n\r\n\
            \r\n--xy\r\n\r\n--xyz\r\nContent-Disposition: form-data; name=\"empty\"\r\n\r\n\r\n--xyz--\r\n";
        let form = read(body).unwrap();
        assert_eq!(form.text("model"), Ok(Some("whisper-1")));
        assert_eq!(form.text("empty"), Ok(Some("")));
        assert_eq!(form.text("prompt"), Ok(None));
        assert_eq!(form.parts()[1], Part { name: "file", file_name: Some("a%22.wav"), body: b"\r\n--xy\r\n" });
        assert_eq!(Form::read("application/json", b"", 9), None);
    }

    #[test]
    fn what_readers_understand_differently_is_refused() {
        for (head, want) in [
            ("Content-Disposition: form-data; name=model", FormError::Head),
            ("Content-Disposition: form-data; name*=utf-8''model", FormError::Head),
            ("Content-Disposition: form-data; name=\"a\"; name=\"model\"", FormError::Head),
            ("Content-Disposition: form-data; name=\"mo\\del\"", FormError::Head),
            ("Content-Disposition: form-data; name=\"mo%64el\"", FormError::Head),
            ("Content-Disposition: form-data", FormError::Head),
            ("Content-Disposition: attachment; name=\"a\"", FormError::Head),
            ("Content-Disposition: form-data;\r\n name=\"a\"", FormError::Head),
            ("Content-Disposition: form-data; name=\"a\"\nX: y", FormError::Head),
            (
                "Content-Disposition: form-data; name=\"a\"\r\nContent-Disposition: form-data; name=\"b\"",
                FormError::Head,
            ),
            ("Content-Disposition: form-data; name=\"a\"\r\nContent-Transfer-Encoding: base64", FormError::Head),
            ("Content-Type: text/plain", FormError::Head),
            ("nothing", FormError::Head),
        ] {
            assert_eq!(field(head), Err(want), "{head}");
        }
        let one = "--xyz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\na\r\n";
        let cases = [
            (format!("preamble\r\n{one}--xyz--"), FormError::Outside),
            (format!("{one}--xyz--epilogue"), FormError::Outside),
            (one.to_owned(), FormError::Truncated),
            (format!("{one}--xyz"), FormError::Head),
            (format!("{one}--xyzz--"), FormError::Head),
            (String::new(), FormError::Outside),
        ];
        for (body, want) in cases {
            assert_eq!(read(&body), Err(want), "{body}");
        }
        for other in ["model", "Model", "model[]", " model"] {
            let body = format!("{one}--xyz\r\nContent-Disposition: form-data; name=\"{other}\"\r\n\r\nb\r\n--xyz--");
            assert_eq!(read(&body).unwrap().text("model"), Err(FormError::FieldTwice), "{other}");
        }
        for kind in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/mixed; boundary=\"a b\"",
            "Multipart/form-data; boundary=a; boundary=b",
        ] {
            assert_eq!(Form::read(kind, b"--a--", 99), Some(Err(FormError::Boundary)), "{kind}");
        }
        assert_eq!(Form::read(KIND, &[b'x'; 100], 99), Some(Err(FormError::TooLarge)));
        assert!(Form::read("multipart/form-data; boundary=\"a\"", b"--a--", 99).unwrap().is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(parts in prop::collection::vec(prop::sample::select(&[
            "--xyz", "\r\n", "--", "Content-Disposition: form-data", "; name=", "\"", "a", ";", "filename=", ":", "\u{e9}",
        ][..]), 0..30)) {
            if let Ok(form) = read(&parts.concat()) {
                let _ = form.text("a");
            }
        }
    }
}
