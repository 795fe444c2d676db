//! Where a message ends. Whoever stands behind the gate must find the same end, or what follows it is a message of the
//! agent's own making.
//!
//! # Source
//! RFC 9112 §6.3; RFC 9113 §8.1.1; CVE-2021-21295.

use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};

/// Why a message's end can be found in two places.
///
/// # Errors
/// What is wrong.
pub fn check(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(()) };
    // Of equal ones the parsers of HTTP/2 and of answers take no notice, and the writer of HTTP/1.1 writes them all.
    if lengths.next().is_some() {
        return Err("it says its length twice");
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err("it says its length in two ways");
    }
    let digits = length.as_bytes();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("its length is not one number");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_length_is_one_number() {
        let checked = |fields: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            check(&headers)
        };
        for fields in
            [&[][..], &[("content-length", "0")], &[("content-length", "5")], &[("transfer-encoding", "chunked")]]
        {
            assert_eq!(checked(fields), Ok(()), "{fields:?}");
        }
        for fields in [
            &[("content-length", "0"), ("content-length", "5")][..],
            &[("content-length", "5"), ("content-length", "5")],
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            &[("content-length", "+5")],
            &[("content-length", "5, 5")],
            &[("content-length", "5 5")],
            &[("content-length", "")],
            &[("content-length", "0x5")],
        ] {
            assert!(checked(fields).is_err(), "{fields:?}");
        }
    }
}
