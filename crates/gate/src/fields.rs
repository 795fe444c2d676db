//! A field of a request's body gets another value: of JSON, of an urlencoded form, or of a multipart form.
//!
//! The body must have the field just once. Whatever stands in it is replaced; all else keeps its meaning.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use memchr::memmem;
use ringfence_inspect::json::{self, Limits, Value};
use ringfence_model::manifest::Place;
use ringfence_policy::Denial;

use crate::needle::percent;

/// Parts of a multipart form that are looked at, at most.
const MAX_PARTS: usize = 1000;

/// The body with `value` in the credential's field.
///
/// # Errors
/// A denial: `body_encoded`, `body_unreadable`, or `credential_field` if the field is not there just once.
pub fn replace(place: &Place, headers: &HeaderMap, body: &[u8], value: &str) -> Result<Vec<u8>, Denial> {
    if headers.get_all(CONTENT_ENCODING).iter().any(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Denial::new("body_encoded", "the credential goes into the body, and the body is encoded"));
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|t| t.to_str().ok()).unwrap_or_default();
    match place {
        Place::Json { keys } => in_json(keys, body, value),
        Place::Form { name } => {
            let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            match kind.as_str() {
                "application/x-www-form-urlencoded" => in_urlencoded(name, body, value),
                "multipart/form-data" => in_multipart(name, content_type, body, value),
                _ => Err(unreadable("its content type is of no form")),
            }
        }
        _ => Err(unreadable("the credential does not go into a body")),
    }
}

fn unreadable(why: &str) -> Denial {
    Denial::new("body_unreadable", format!("the credential goes into the body, which cannot be read: {why}"))
}

fn not_once(field: &str, count: usize) -> Denial {
    Denial::new("credential_field", format!("the body has the credential's field `{field}` {count} times, not once"))
}

fn in_json(keys: &[String], body: &[u8], value: &str) -> Result<Vec<u8>, Denial> {
    let limits = Limits { bytes: crate::inspect::MAX_BODY_BYTES, ..Limits::default() };
    let mut whole = json::parse(body, &limits).map_err(|e| unreadable(&e.to_string()))?;
    let path: Vec<&str> = keys.iter().map(String::as_str).collect();
    let field = whole.at_mut(&path).ok_or_else(|| not_once(&path.join("."), 0))?;
    *field = Value::text(value);
    Ok(whole.to_bytes())
}

fn in_urlencoded(name: &str, body: &[u8], value: &str) -> Result<Vec<u8>, Denial> {
    let text = std::str::from_utf8(body).map_err(|_| unreadable("it is not text"))?;
    // Servers of some languages split at `;` too.
    if text.contains(';') {
        return Err(unreadable("it has a `;`, at which some servers split and some do not"));
    }
    let mut count = 0;
    let pairs: Vec<String> = text
        .split('&')
        .map(|pair| {
            let key = pair.split('=').next().unwrap_or_default();
            if decoded(key) == name.as_bytes() {
                count += 1;
                format!("{key}={}", percent(value, b"-._~"))
            } else {
                pair.to_owned()
            }
        })
        .collect();
    if count == 1 { Ok(pairs.join("&").into_bytes()) } else { Err(not_once(name, count)) }
}

/// Decodes a name or value as forms encode it.
#[must_use]
pub(crate) fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, behind @ ..]) if digit(*high).is_some() && digit(*low).is_some() => {
                out.extend(digit(*high).zip(digit(*low)).map(|(high, low)| high << 4 | low));
                rest = behind;
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(*byte),
        }
    }
    out
}

/// # Source
/// RFC 7578 §4, RFC 2046 §5.1.1.
fn in_multipart(name: &str, content_type: &str, body: &[u8], value: &str) -> Result<Vec<u8>, Denial> {
    let boundary =
        parameter(content_type, "boundary").ok_or_else(|| unreadable("its content type names no boundary"))?;
    if boundary.is_empty() || boundary.len() > 70 || value.contains(&*boundary) {
        return Err(unreadable("its boundary is not usable"));
    }
    let delimiter = format!("--{boundary}");
    let mut starts = memmem::find_iter(body, delimiter.as_bytes());
    if starts.next() != Some(0) {
        return Err(unreadable("it does not begin with its boundary"));
    }
    let mut out = Vec::with_capacity(body.len() + value.len());
    let (mut at, mut count) = (0, 0);
    for next in starts.take(MAX_PARTS + 1).collect::<Vec<_>>() {
        let part = body.get(at..next).unwrap_or_default();
        at = next;
        let inner = part
            .strip_prefix(delimiter.as_bytes())
            .and_then(|part| part.strip_prefix(b"\r\n"))
            .and_then(|part| part.strip_suffix(b"\r\n"))
            .ok_or_else(|| unreadable("a boundary stands within a line"))?;
        let split = memmem::find(inner, b"\r\n\r\n").ok_or_else(|| unreadable("a part has no head"))?;
        let head = inner.get(..split).unwrap_or_default();
        let head = std::str::from_utf8(head).map_err(|_| unreadable("the head of a part is not text"))?;
        out.extend_from_slice(delimiter.as_bytes());
        out.extend_from_slice(b"\r\n");
        if part_name(head)?.as_deref() == Some(name) {
            count += 1;
            out.extend_from_slice(inner.get(..split + 4).unwrap_or_default());
            out.extend_from_slice(value.as_bytes());
        } else {
            out.extend_from_slice(inner);
        }
        out.extend_from_slice(b"\r\n");
    }
    let end = body.get(at..).unwrap_or_default();
    if !end.strip_prefix(delimiter.as_bytes()).is_some_and(|end| end == b"--" || end == b"--\r\n") {
        return Err(unreadable("it does not end with its boundary, or has too many parts"));
    }
    out.extend_from_slice(end);
    if count == 1 { Ok(out) } else { Err(not_once(name, count)) }
}

/// The name of a part, by the one header that says it.
fn part_name(head: &str) -> Result<Option<String>, Denial> {
    let mut found = None;
    for line in head.split("\r\n") {
        let (key, value) = line.split_once(':').ok_or_else(|| unreadable("a line of a part's head has no colon"))?;
        if key.contains([' ', '\t', '\n', '\r']) {
            return Err(unreadable("the head of a part is folded"));
        }
        if key.eq_ignore_ascii_case("content-transfer-encoding") {
            return Err(unreadable("a part is in a transfer encoding"));
        }
        if key.eq_ignore_ascii_case("content-disposition") {
            if value.to_ascii_lowercase().contains("name*") {
                return Err(unreadable("the name of a part is in an extended form"));
            }
            if found.replace(parameter(value, "name")).is_some() {
                return Err(unreadable("a part has two names"));
            }
        }
    }
    Ok(found.flatten())
}

/// A parameter of a header's value, plain or quoted; `None` too if it is there twice.
fn parameter(value: &str, name: &str) -> Option<String> {
    let mut found = None;
    let mut rest = value.split_once(';').map_or("", |(_, rest)| rest);
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (text, behind) = match after.strip_prefix('"') {
            Some(quoted) => {
                // A backslash is read by some as an escape and by some as itself.
                let (text, behind) = quoted.split_once('"').filter(|(text, _)| !text.contains('\\'))?;
                (text, behind.trim_start().strip_prefix(';').or(behind.trim().is_empty().then_some(""))?)
            }
            None => after.split_once(';').unwrap_or((after, "")),
        };
        if key.trim().eq_ignore_ascii_case(name) && found.replace(text.trim().to_owned()).is_some() {
            return None;
        }
        rest = behind;
    }
    found
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn typed(kind: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers
    }

    fn run(place: &Place, kind: &'static str, body: &str, value: &str) -> Result<String, &'static str> {
        replace(place, &typed(kind), body.as_bytes(), value)
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .map_err(|denial| denial.code)
    }

    #[test]
    fn a_field_of_json_is_replaced_and_numbers_stay_as_they_are() {
        let place = Place::Json { keys: vec!["auth".into(), "key".into()] };
        let json = |body| run(&place, "application/json", body, "s\"e\\c");
        let body = r#"{"n": 1.10, "big": 9007199254740993, "auth": {"key": "P", "z": [1]}, "a": null}"#;
        assert_eq!(
            json(body).unwrap(),
            r#"{"n":1.10,"big":9007199254740993,"auth":{"key":"s\"e\\c","z":[1]},"a":null}"#
        );
        assert_eq!(json(r#"{"auth":{}}"#), Err("credential_field"));
        assert_eq!(json(r#"{"auth":"key"}"#), Err("credential_field"));
        assert_eq!(json(r#"{"auth":{"key":1,"key":2}}"#), Err("body_unreadable"));
        assert_eq!(json(r#"{"auth":{"key":1}} {}"#), Err("body_unreadable"));
        assert_eq!(json(""), Err("body_unreadable"));
        let mut headers = typed("application/json");
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        assert_eq!(replace(&place, &headers, b"x", "s").unwrap_err().code, "body_encoded");
    }

    #[test]
    fn a_field_of_a_form_is_replaced() {
        let place = Place::Form { name: "api key".into() };
        let form = |body| run(&place, "application/x-www-form-urlencoded; charset=utf-8", body, "a&b=1");
        assert_eq!(form("x=1&api+key=P&y=%20").unwrap(), "x=1&api+key=a%26b%3D1&y=%20");
        assert_eq!(form("x=1&a%70i%20key"), Ok("x=1&a%70i%20key=a%26b%3D1".into()));
        assert_eq!(form("api+key=1&api%20key=2"), Err("credential_field"));
        assert_eq!(form("x=1;api+key=2"), Err("body_unreadable"));
        assert_eq!(form(""), Err("credential_field"));
        assert_eq!(run(&place, "text/plain", "api+key=1", "s"), Err("body_unreadable"));
    }

    #[test]
    fn a_field_of_a_multipart_form_is_replaced() {
        let place = Place::Form { name: "token".into() };
        let kind = "multipart/form-data; boundary=\"xyz\"";
        let part = |name: &str, text: &str| {
            format!("--xyz\r\nContent-Disposition: form-data; name=\"{name}\"\r\nX: y\r\n\r\n{text}\r\n")
        };
        let body = |parts: &[String]| format!("{}--xyz--\r\n", parts.concat());
        let multi = |parts: &[String]| run(&place, kind, &body(parts), "secret");
        let file = part("file", "bytes\r\n\r\nof it");
        assert_eq!(multi(&[part("token", "P"), file.clone()]), Ok(body(&[part("token", "secret"), file.clone()])));
        assert_eq!(multi(&[file.clone(), part("token", "")]), Ok(body(&[file.clone(), part("token", "secret")])));
        assert_eq!(multi(std::slice::from_ref(&file)), Err("credential_field"));
        assert_eq!(multi(&[part("token", "1"), part("token", "2")]), Err("credential_field"));
        assert_eq!(multi(&[part("to\\ken", "1")]), Err("credential_field"));
        let text = body(&[part("token", "P")]);
        assert_eq!(run(&place, kind, text.trim_end_matches("--\r\n"), "s"), Err("body_unreadable"));
        assert_eq!(run(&place, kind, &format!("preamble\r\n{text}"), "s"), Err("body_unreadable"));
        assert_eq!(run(&place, "multipart/form-data", &text, "s"), Err("body_unreadable"));
        assert_eq!(run(&place, kind, &text, "has xyz in it"), Err("body_unreadable"));
        let extended = text.replace("name=\"token\"", "name=\"a\"; name*=utf-8''token");
        assert_eq!(run(&place, kind, &extended, "s"), Err("body_unreadable"));
    }

    proptest! {
        #[test]
        fn no_body_does_harm(body in prop::collection::vec(any::<u8>(), 0..300), name in "[a-z]{1,3}") {
            for kind in ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b"] {
                let _ = replace(&Place::Form { name: name.clone() }, &typed(kind), &body, "s");
            }
            let _ = replace(&Place::Json { keys: vec![name.clone()] }, &HeaderMap::new(), &body, "s");
        }
    }
}
