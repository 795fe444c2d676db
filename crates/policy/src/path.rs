//! The one form of a path: what is decided is what is sent.
//!
//! Servers disagree about what `%2e%2e/`, `//` or `..;x` mean. A path that two servers could read in two
//! ways is refused, so that no upstream can see another path than the one decided.

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `\`, also percent-encoded.
    #[error("it has a backslash")]
    Backslash,
    /// A control character or a space, also percent-encoded.
    #[error("it has a control character")]
    Control,
    /// A `.` or `..` segment, also percent-encoded or with parameters.
    #[error("it has a `.` or `..` segment")]
    DotSegment,
    /// `//`.
    #[error("it has an empty segment")]
    EmptySegment,
    /// `%2f`.
    #[error("it has an encoded slash")]
    EncodedSlash,
    /// `%` without two hexadecimal digits behind it.
    #[error("it has a broken percent-escape")]
    Escape,
    /// It does not begin with `/`.
    #[error("it does not begin with `/`")]
    NotAbsolute,
    /// A character that no path may hold unescaped.
    #[error("it has a character that must be escaped")]
    Unescaped,
}

/// Brings a path, without query, to the form that is decided and sent.
///
/// Percent-escapes of unreserved characters are decoded; all others are kept, in upper case.
///
/// # Errors
/// [`PathError`] where servers could read the path in more than one way.
///
/// # Source
/// RFC 3986 §2.3, §3.3 and §6.2.2.
pub fn normalise(raw: &str) -> Result<String, PathError> {
    if !raw.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let mut out = String::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (Some(high), Some(low)) = (bytes.next().and_then(hex), bytes.next().and_then(hex)) else {
                    return Err(PathError::Escape);
                };
                match high << 4 | low {
                    0..=0x1f | 0x7f => return Err(PathError::Control),
                    b'/' => return Err(PathError::EncodedSlash),
                    b'\\' => return Err(PathError::Backslash),
                    plain if is_unreserved(plain) => out.push(char::from(plain)),
                    _ => {
                        out.push('%');
                        out.push(digit(high));
                        out.push(digit(low));
                    }
                }
            }
            b'\\' => return Err(PathError::Backslash),
            0..=b' ' | 0x7f => return Err(PathError::Control),
            b'?' | b'#' | 0x80.. => return Err(PathError::Unescaped),
            _ => out.push(char::from(byte)),
        }
    }
    let mut segments = out.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let bare = segment.split(';').next().unwrap_or_default();
        // `%3B` is a `;` to servers that decode before they split.
        let bare = bare.split("%3B").next().unwrap_or_default();
        if bare == "." || bare == ".." {
            return Err(PathError::DotSegment);
        }
        if segment.is_empty() && segments.peek().is_some() {
            return Err(PathError::EmptySegment);
        }
    }
    Ok(out)
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn digit(value: u8) -> char {
    char::from(if value < 10 { b'0' + value } else { b'A' + value - 10 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_form_for_one_path() {
        for (raw, want) in [
            ("/", "/"),
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/", "/v1/"),
            ("/%7euser/%41", "/~user/A"),
            ("/a%20b%c3%a4", "/a%20b%C3%A4"),
            ("/a;b=c/d", "/a;b=c/d"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a*b", "/a*b"),
            ("/%2525", "/%2525"),
        ] {
            assert_eq!(normalise(raw).as_deref(), Ok(want), "{raw}");
        }
    }

    #[test]
    fn what_servers_read_in_two_ways_is_refused() {
        for (raw, want) in [
            ("", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("http://x/", PathError::NotAbsolute),
            ("/a/../b", PathError::DotSegment),
            ("/a/..", PathError::DotSegment),
            ("/./a", PathError::DotSegment),
            ("/a/%2e%2E/b", PathError::DotSegment),
            ("/a/.%2e/b", PathError::DotSegment),
            ("/a/..;x=1/b", PathError::DotSegment),
            ("/a/..%3bx/b", PathError::DotSegment),
            ("/a%2fb", PathError::EncodedSlash),
            ("/a%2Fb", PathError::EncodedSlash),
            ("/a%5cb", PathError::Backslash),
            ("/a\\b", PathError::Backslash),
            ("//a", PathError::EmptySegment),
            ("/a//b", PathError::EmptySegment),
            ("/a//", PathError::EmptySegment),
            ("/a%00", PathError::Control),
            ("/a%0d%0a", PathError::Control),
            ("/a b", PathError::Control),
            ("/a\u{1}", PathError::Control),
            ("/a%", PathError::Escape),
            ("/a%2", PathError::Escape),
            ("/a%zz", PathError::Escape),
            ("/a?b", PathError::Unescaped),
            ("/ä", PathError::Unescaped),
        ] {
            assert_eq!(normalise(raw), Err(want), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_the_form_is_stable(raw in "\\PC{0,60}") {
            if let Ok(once) = normalise(&raw) {
                prop_assert_eq!(normalise(&once), Ok(once.clone()));
            }
        }

        #[test]
        fn no_dot_segment_survives_any_encoding(raw in "/(\\.|%2e|%2E|a|/|;|%3b|%25){0,12}") {
            if let Ok(path) = normalise(&raw) {
                prop_assert!(path.split('/').all(|s| s != "." && s != ".."));
            }
        }
    }
}
