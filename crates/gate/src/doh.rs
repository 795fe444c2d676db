//! DNS inside HTTPS, known by its shape, whoever serves it: the gate's resolver is the only one that an agent has, so that
//! no name is looked up unseen and no key for an encrypted ClientHello is learnt.
//!
//! # Source
//! RFC 8484 §4, §6; "JSON API for DNS over HTTPS (DoH)" of Google Public DNS; RFC 9230 for the oblivious form.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hickory_proto::op::{Message, MessageType};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::request::Parts;
use ringfence_model::HostName;
use ringfence_policy::Denial;

use crate::fields::decoded;

/// Media types of DNS messages, as they begin.
const TYPES: [&str; 5] = [
    "application/dns-message",
    "application/dns-json",
    "application/dns+json",
    "application/oblivious-dns-message",
    "application/dns-udpwireformat",
];

/// The longest query in base64: RFC 1035 lets no name be longer than 255.
const MAX_QUERY_TEXT: usize = 1024;

/// Denies a request that asks for names, unless `paths` of its grant have its very path.
///
/// # Errors
/// The denial `dns_over_https`.
pub fn check(parts: &Parts, path: &str, paths: &[String]) -> Result<(), Denial> {
    let Some(why) = shape(&parts.headers, path, parts.uri.query()) else { return Ok(()) };
    // A glob was written for something else.
    if paths.iter().any(|named| named == path) {
        return Ok(());
    }
    Err(Denial::new("dns_over_https", format!("{why}; a grant whose `paths` have `{path}` allows it")))
}

/// By what a request is known to ask for names.
fn shape(headers: &HeaderMap, path: &str, query: Option<&str>) -> Option<&'static str> {
    if is_typed(headers) {
        return Some("the request has a media type of DNS messages");
    }
    let query = query.filter(|query| !query.is_empty())?;
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let named_for_it = matches!(last.as_str(), "dns-query" | "resolve");
    pairs.find_map(|(name, value)| match decoded(name).as_slice() {
        b"dns" if last == "dns-query" || is_query(&decoded(value)) => Some("its query holds a DNS message"),
        b"name" if named_for_it && is_dotted(&decoded(value)) => Some("its query asks for the records of a name"),
        _ => None,
    })
}

fn is_typed(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CONTENT_TYPE).iter().chain(headers.get_all(ACCEPT));
    values.any(|value| {
        value.as_bytes().split(|byte| *byte == b',').any(|kind| {
            let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            TYPES.iter().any(|name| kind.eq_ignore_ascii_case(name.as_bytes()))
        })
    })
}

/// Whether a text is a DNS query in base64, wherever it is sent.
fn is_query(text: &[u8]) -> bool {
    let text = text.strip_suffix(b"==").or(text.strip_suffix(b"=")).unwrap_or(text);
    if text.len() > MAX_QUERY_TEXT {
        return false;
    }
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(text) else { return false };
    Message::from_vec(&bytes)
        .is_ok_and(|message| message.metadata.message_type == MessageType::Query && message.queries.len() == 1)
}

fn is_dotted(text: &[u8]) -> bool {
    let host = std::str::from_utf8(text).ok().and_then(|text| text.parse::<HostName>().ok());
    host.is_some_and(|host| host.name().is_some_and(|name| name.contains('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8484 §4.1.1: `www.example.com`, type A.
    const QUERY: &str = "AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB";

    fn code(target: &str, headers: &[(&str, &str)], paths: &[&str]) -> &'static str {
        let mut request = http::Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
        check(&parts, parts.uri.path(), &paths).map_or_else(|denial| denial.code, |()| "ok")
    }

    #[test]
    fn names_are_asked_of_the_gate_alone() {
        for (target, headers) in [
            (format!("/dns-query?dns={QUERY}"), &[][..]),
            (format!("/DNS-Query/?dns={QUERY}"), &[]),
            (format!("/x/dns-query?a=b&d%6Es={QUERY}"), &[]),
            (format!("/anything?dns={QUERY}"), &[]),
            (format!("/anything?dns={QUERY}%3D"), &[]),
            ("/dns-query?name=evil.example&type=TXT".into(), &[]),
            ("/resolve?name=evil.example&type=TXT".into(), &[]),
            ("/resolve?type=1&name=evil.example.".into(), &[]),
            ("/".into(), &[("content-type", "application/dns-message")]),
            ("/".into(), &[("content-type", "Application/DNS-Message; x=y")]),
            ("/".into(), &[("accept", "text/html, application/dns-json;q=0.5")]),
            ("/".into(), &[("accept", "*/*"), ("accept", "application/dns-message")]),
            ("/".into(), &[("content-type", "application/oblivious-dns-message")]),
        ] {
            assert_eq!(code(&target, headers, &[]), "dns_over_https", "{target} {headers:?}");
            assert_eq!(code(&target, headers, &["/*", "/dns*", "/other"]), "dns_over_https", "a glob names nothing");
            let path = target.split('?').next().unwrap();
            assert_eq!(code(&target, headers, &[path]), "ok", "it is granted by name");
        }
    }

    #[test]
    fn what_only_looks_alike_is_let_through() {
        for (target, headers) in [
            ("/resolve?name=alice&type=user", &[][..]),
            ("/search?name=evil.example", &[]),
            ("/search?dns=example.org", &[]),
            ("/search?dns=AAAA", &[]),
            ("/dns-query", &[]),
            ("/v1/resolve", &[]),
            ("/", &[("accept", "application/json, */*"), ("content-type", "application/json")]),
        ] {
            assert_eq!(code(target, headers, &[]), "ok", "{target} {headers:?}");
        }
    }
}
