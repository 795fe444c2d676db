//! Phase five: the placeholder becomes the secret, in the one place that the credential names.

use std::fmt::Write as _;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use ringfence_model::manifest::Place;

use crate::config::CredentialLease;

/// Whether a lease can be injected at all.
///
/// # Errors
/// Why not, in words.
pub fn check(lease: &CredentialLease) -> Result<(), &'static str> {
    if lease.secret.is_empty() {
        return Err("it is empty");
    }
    match &lease.place {
        Place::Header { .. } => header(lease).map(drop),
        Place::Query { .. } => Ok(()),
    }
}

/// The header that carries the secret, where the lease's place is one.
pub(crate) fn own_header(lease: &CredentialLease) -> Option<HeaderName> {
    match &lease.place {
        Place::Header { name, .. } => name.parse().ok(),
        Place::Query { .. } => None,
    }
}

/// Puts the secret into a call. What the agent wrote in that place is gone, whatever it was, so that no key
/// but the granted one is used.
///
/// # Errors
/// Why it cannot stand there, in words; the call must then not be made.
pub fn inject(
    lease: &CredentialLease,
    headers: &mut HeaderMap,
    query: &mut Option<String>,
) -> Result<(), &'static str> {
    match &lease.place {
        Place::Header { .. } => {
            let (name, value) = header(lease)?;
            headers.insert(name, value);
        }
        Place::Query { name } => {
            let others = query.as_deref().unwrap_or_default().split('&').filter(|pair| {
                let key = pair.split('=').next().unwrap_or_default();
                !pair.is_empty() && decoded(key) != name.as_bytes()
            });
            let mut all: Vec<&str> = others.collect();
            let own = format!("{name}={}", percent_encoded(lease.secret.reveal()));
            all.push(&own);
            *query = Some(all.join("&"));
        }
    }
    Ok(())
}

fn header(lease: &CredentialLease) -> Result<(HeaderName, HeaderValue), &'static str> {
    let Place::Header { name, template } = &lease.place else { return Err("its place is not a header") };
    let name = name.parse().map_err(|_| "its header has no valid name")?;
    let text = template.replacen("{}", lease.secret.reveal(), 1);
    let mut value = HeaderValue::from_str(&text).map_err(|_| "it has a character that no header may hold")?;
    value.set_sensitive(true);
    Ok((name, value))
}

/// Decodes a query parameter's name as forms encode it.
fn decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let pair = bytes.as_slice_pair();
        match (byte, pair) {
            (b'%', Some(value)) => {
                out.push(value);
                bytes.nth(1);
            }
            (b'+', _) => out.push(b' '),
            _ => out.push(byte),
        }
    }
    out
}

/// Percent-encodes everything but unreserved characters.
#[must_use]
pub(crate) fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Reads two hexadecimal digits ahead.
trait HexAhead {
    fn as_slice_pair(&self) -> Option<u8>;
}

impl HexAhead for std::str::Bytes<'_> {
    fn as_slice_pair(&self) -> Option<u8> {
        let mut ahead = self.clone();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
        Some(digit(ahead.next()?)? << 4 | digit(ahead.next()?)?)
    }
}

#[cfg(test)]
mod tests {
    use ringfence_model::SecretText;

    use super::*;

    fn lease(place: Place, secret: &str) -> CredentialLease {
        CredentialLease { place, placeholder: "rf-x".into(), secret: SecretText::new(secret.into()) }
    }

    #[test]
    fn a_header_is_overwritten_whatever_stood_there() {
        let lease = lease(Place::Header { name: "authorization".into(), template: "Bearer {}".into() }, "real");
        let mut headers = HeaderMap::new();
        headers.append("authorization", "Bearer attackers-own-key".parse().unwrap());
        headers.append("authorization", "Bearer rf-x".parse().unwrap());
        inject(&lease, &mut headers, &mut None).unwrap();
        assert_eq!(headers.get_all("authorization").iter().collect::<Vec<_>>(), ["Bearer real"]);
        assert!(headers["authorization"].is_sensitive());
    }

    #[test]
    fn a_query_parameter_is_overwritten_however_its_name_is_written() {
        let lease = lease(Place::Query { name: "key".into() }, "re&al=1");
        for (before, after) in [
            (None, "key=re%26al%3D1"),
            (Some("a=b"), "a=b&key=re%26al%3D1"),
            (Some("key=own&a=b&%6bey=own&key"), "a=b&key=re%26al%3D1"),
            (Some("keys=1&%6"), "keys=1&%6&key=re%26al%3D1"),
        ] {
            let mut query = before.map(str::to_owned);
            inject(&lease, &mut HeaderMap::new(), &mut query).unwrap();
            assert_eq!(query.as_deref(), Some(after));
        }
    }

    #[test]
    fn a_secret_that_would_break_a_header_is_refused() {
        let place = Place::Header { name: "x-key".into(), template: "{}".into() };
        assert!(check(&lease(place.clone(), "a\r\nx-evil: 1")).is_err());
        assert!(check(&lease(place.clone(), "")).is_err());
        assert!(check(&lease(place, "fine")).is_ok());
    }
}
