//! AWS Signature Version 4, as the sender of a request.
//!
//! # Source
//! AWS General Reference, "Signing AWS API requests"; Amazon S3 API Reference, "Authenticating Requests".

pub mod chunks;

use aws_lc_rs::{digest, hmac};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE};
use jiff::Timestamp;
use ringfence_model::SecretText;
use ringfence_model::manifest::Sigv4;
use ringfence_policy::Denial;
use serde::Deserialize;

use self::chunks::Chunks;
use crate::fields::decoded;
use crate::needle::percent;

const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const HASH: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Payloads that S3 takes without their hash, where TLS keeps them whole.
const UNHASHED: [&str; 2] = [UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"];

/// Payloads of which each chunk is signed.
const CHUNKED: [&str; 2] = [chunks::SIGNED, chunks::WITH_TRAILER];

/// Characters that stand for themselves in a canonical request.
const UNRESERVED: &[u8] = b"-._~";

/// What a request is signed with.
pub struct Keys {
    access_key_id: String,
    secret: SecretText,
    session_token: Option<SecretText>,
}

impl Keys {
    /// Reads a secret access key, or keys as JSON in the form of `credential_process`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(place: &Sigv4, secret: &SecretText) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Written {
            access_key_id: String,
            secret_access_key: SecretText,
            session_token: Option<SecretText>,
        }
        if !secret.reveal().starts_with('{') {
            let access_key_id =
                place.access_key_id.clone().ok_or("neither it nor the manifest names an access key id")?;
            return Ok(Self { access_key_id, secret: secret.clone(), session_token: None });
        }
        let written: Written = serde_json::from_str(secret.reveal())
            .map_err(|_| "it is not JSON with `AccessKeyId`, `SecretAccessKey` and perhaps `SessionToken`")?;
        if place.access_key_id.as_ref().is_some_and(|id| *id != written.access_key_id) {
            return Err("it names another access key id than the manifest");
        }
        Ok(Self {
            access_key_id: written.access_key_id,
            secret: written.secret_access_key,
            session_token: written.session_token.filter(|token| !token.is_empty()),
        })
    }

    /// Temporary keys.
    #[must_use]
    pub const fn temporary(access_key_id: String, secret: SecretText, session_token: SecretText) -> Self {
        Self { access_key_id, secret, session_token: Some(session_token) }
    }

    /// What must not come back.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretText> {
        [&self.secret].into_iter().chain(&self.session_token)
    }
}

/// Whether a service takes bodies without their hash.
#[must_use]
pub fn is_s3(service: &str) -> bool {
    matches!(service, "s3" | "s3express" | "s3-object-lambda" | "s3-outposts")
}

/// What stands for the body in the signature; `body` if it is known.
///
/// # Errors
/// The denial `body_signed_by_agent` for a body whose chunks are signed in a way in which they cannot be signed anew.
pub fn payload(service: &str, headers: &HeaderMap, body: Option<&[u8]>) -> Result<String, Denial> {
    let said = headers.get(HASH).and_then(|value| value.to_str().ok()).filter(|_| is_s3(service));
    match (said, body) {
        (Some(said), _) if UNHASHED.contains(&said) || CHUNKED.contains(&said) => Ok(said.to_owned()),
        (Some(said), _) if said.starts_with("STREAMING-") => Err(Denial::new(
            "body_signed_by_agent",
            format!("the body's chunks are signed as `{said}` says, and only the agent's own key would fit"),
        )),
        (_, Some(body)) => Ok(hash(body)),
        // A hash that does not fit the body is refused by S3.
        (Some(said), None) if said.len() == 64 && said.bytes().all(|b| b.is_ascii_hexdigit()) => Ok(said.to_owned()),
        _ => Ok(UNSIGNED.to_owned()),
    }
}

/// Takes away every trace of the agent's own signature.
pub fn take_out(headers: &mut HeaderMap, query: &mut Option<String>) {
    for name in [AUTHORIZATION, DATE, TOKEN] {
        headers.remove(name);
    }
    let presigned = [
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-security-token",
        "x-amz-signature",
        "x-amz-signedheaders",
    ];
    let kept = |pair: &&str| {
        let key = decoded(pair.split('=').next().unwrap_or_default()).to_ascii_lowercase();
        !pair.is_empty() && !presigned.iter().any(|name| name.as_bytes() == key)
    };
    if let Some(text) = query {
        let rest: Vec<String> = text.split('&').filter(kept).map(plain_pair).collect();
        *query = (!rest.is_empty()).then(|| rest.join("&"));
    }
}

/// A pair of a query in the one way in which everybody reads it.
fn plain_pair(pair: &str) -> String {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    format!("{}={}", plain(key, true), plain(value, true))
}

/// Decodes and encodes anew, so that there is one form.
fn plain(text: &str, form: bool) -> String {
    let text = if form { decoded(text) } else { decoded(&text.replace('+', "%2B")) };
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            _ if byte.is_ascii_alphanumeric() || UNRESERVED.contains(&byte) => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// A request, as far as it is signed.
pub struct Request<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its host, with the port where it is sent.
    pub authority: &'a str,
    /// Its path, as it is sent.
    pub path: &'a str,
    /// Its query, as it is sent.
    pub query: Option<&'a str>,
    /// What stands for its body.
    pub payload: &'a str,
}

/// Signs a request: puts date, hash, session token and signature into its headers. Gives what signs the chunks of its
/// body, where they are signed one by one.
///
/// # Errors
/// If keys do not fit into headers.
pub fn sign(
    place: &Sigv4,
    keys: &Keys,
    request: &Request<'_>,
    headers: &mut HeaderMap,
    now: Timestamp,
) -> Result<Option<Box<Chunks>>, &'static str> {
    let bad = "its keys have a character that no header may hold";
    let date = stamp(now);
    headers.insert(DATE, HeaderValue::from_str(&date).map_err(|_| bad)?);
    headers.insert(HASH, HeaderValue::from_str(request.payload).map_err(|_| bad)?);
    if let Some(token) = &keys.session_token {
        let mut value = HeaderValue::from_str(token.reveal()).map_err(|_| bad)?;
        value.set_sensitive(true);
        headers.insert(TOKEN, value);
    }
    let (signed, key) = authorization(place, keys, request, headers, &date);
    headers.insert(AUTHORIZATION, HeaderValue::from_str(&signed).map_err(|_| bad)?);
    if !CHUNKED.contains(&request.payload) {
        return Ok(None);
    }
    let seed = signed.rsplit('=').next().unwrap_or_default().to_owned();
    let scope = format!("{date}\n{}", scope(place, &date));
    Ok(Some(Box::new(Chunks::new(key.as_ref(), scope, seed, request.payload == chunks::WITH_TRAILER))))
}

fn scope(place: &Sigv4, date: &str) -> String {
    format!("{}/{}/{}/aws4_request", date.get(..8).unwrap_or_default(), place.region, place.service)
}

fn stamp(now: Timestamp) -> String {
    now.strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// The header, and what it was signed with.
fn authorization(
    place: &Sigv4,
    keys: &Keys,
    request: &Request<'_>,
    headers: &HeaderMap,
    date: &str,
) -> (String, hmac::Tag) {
    let (canonical, names) = canonical(place, request, headers);
    let scope = scope(place, date);
    let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{}", hash(canonical.as_bytes()));
    let key = signing_key(place, &keys.secret, date.get(..8).unwrap_or_default());
    let signature = hex(mac(key.as_ref(), &to_sign).as_ref());
    let id = &keys.access_key_id;
    (format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"), key)
}

/// The canonical request, and the names of the headers that are part of it.
fn canonical(place: &Sigv4, request: &Request<'_>, headers: &HeaderMap) -> (String, String) {
    let path = if is_s3(&place.service) {
        request.path.split('/').map(|segment| plain(segment, false)).collect::<Vec<_>>().join("/")
    } else {
        percent(request.path, b"-._~/")
    };
    let mut pairs: Vec<(String, String)> = request
        .query
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (plain(key, true), plain(value, true)))
        .collect();
    pairs.sort_unstable();
    let query = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join("&");
    let mut lines = vec![("host".to_owned(), request.authority.to_owned())];
    for name in headers.keys().filter(|name| is_signed(name)) {
        // RFC 9110 §5.2: several values are one list.
        let values = headers.get_all(name).iter().map(|value| {
            String::from_utf8_lossy(value.as_bytes()).split_ascii_whitespace().collect::<Vec<_>>().join(" ")
        });
        lines.push((name.as_str().to_owned(), values.collect::<Vec<_>>().join(",")));
    }
    lines.sort_unstable();
    let names = lines.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let lines: String = lines.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    (format!("{}\n{path}\n{query}\n{lines}\n{names}\n{}", request.method, request.payload), names)
}

/// What AWS demands, and what nobody on the way changes.
fn is_signed(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-amz-") || [CONTENT_TYPE, RANGE].contains(name) || name.as_str() == "content-md5"
}

/// What all of a day is signed with.
fn signing_key(place: &Sigv4, secret: &SecretText, day: &str) -> hmac::Tag {
    let first = SecretText::new(format!("AWS4{}", secret.reveal()));
    let parts = [place.region.as_str(), place.service.as_str(), "aws4_request"];
    parts.iter().fold(mac(first.reveal().as_bytes(), day), |key, part| mac(key.as_ref(), part))
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    pub(super) fn place(service: &str) -> Sigv4 {
        Sigv4 {
            region: "us-east-1".into(),
            service: service.into(),
            access_key_id: Some("AKIDEXAMPLE".into()),
            assume_role: None,
        }
    }

    fn signed(place: &Sigv4, secret: &str, request: &Request<'_>, headers: &[(&str, &str)], date: &str) -> String {
        let keys = Keys::read(place, &SecretText::new(secret.into())).unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        authorization(place, &keys, request, &map, date).0
    }

    /// Vectors: AWS Signature Version 4 test suite, `aws4_testsuite`.
    #[test]
    fn the_suite_of_aws_is_signed_alike() {
        let place = place("service");
        for (method, path, query, want) in [
            ("GET", "/", None, "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("POST", "/", None, "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            (
                "GET",
                "/",
                Some("Param2=value2&Param1=value1"),
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            // The path as it stands in the suite, not encoded yet.
            ("GET", "/\u{1234}", None, "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"),
        ] {
            let request = Request { method, authority: "example.amazonaws.com", path, query, payload: &hash(b"") };
            let date = "20150830T123600Z";
            let got = signed(&place, SECRET, &request, &[("x-amz-date", date)], date);
            assert!(got.ends_with(want), "{method} {path} {query:?} gave {got}");
        }
    }

    /// Vector: Amazon S3 API Reference, "Example: GET Object".
    #[test]
    fn the_example_of_s3_is_signed_alike() {
        let mut place = place("s3");
        place.access_key_id = Some("AKIAIOSFODNN7EXAMPLE".into());
        let payload = hash(b"");
        let request = Request {
            method: "GET",
            authority: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: None,
            payload: &payload,
        };
        let date = "20130524T000000Z";
        let headers = [("range", "bytes=0-9"), ("x-amz-content-sha256", payload.as_str()), ("x-amz-date", date)];
        let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
        assert_eq!(
            signed(&place, secret, &request, &headers, date),
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    /// Vectors: made with `botocore` (`SigV4Auth`, `S3SigV4Auth`) for the moment 2026-01-02T03:04:05Z.
    #[test]
    fn botocore_signs_alike() {
        let date = "20260102T030405Z";
        let check = |service: &str, request: &Request<'_>, headers: &[(&str, &str)], want: &str| {
            let place = Sigv4 { region: "eu-central-1".into(), ..place(service) };
            let got = signed(&place, SECRET, request, headers, date);
            assert!(got.ends_with(want), "{service} gave {got}");
        };
        check(
            "bedrock",
            &Request {
                method: "POST",
                authority: "bedrock-runtime.eu-central-1.amazonaws.com",
                path: "/model/anthropic.claude-v2%3A1/invoke",
                query: None,
                payload: &hash(b"{\"a\":1}"),
            },
            &[("content-type", "application/json"), ("x-amz-date", date), ("x-amz-security-token", "the/token==")],
            "SignedHeaders=content-type;host;x-amz-date;x-amz-security-token, \
             Signature=487db8026e463d4e7bc900a8235f8986d4016278782ab6095122b390455b186d",
        );
        check(
            "execute-api",
            &Request {
                method: "GET",
                authority: "x.execute-api.eu-central-1.amazonaws.com",
                path: "/p%20q/r",
                query: Some("b=2&a=1%2F2&a=0&c="),
                payload: &hash(b""),
            },
            &[("x-amz-date", date)],
            "Signature=5132cd9ffb393aee80b3fec612d0c0dda7660a92b311af33cb85e8fef6c3d265",
        );
        check(
            "s3",
            &Request {
                method: "PUT",
                authority: "bucket.s3.eu-central-1.amazonaws.com",
                path: "/a%20b/%C3%A9%2Bc~d",
                query: Some("partNumber=1&uploadId=x%2By"),
                payload: &hash(b"hello"),
            },
            &[
                ("content-type", "text/plain"),
                ("x-amz-content-sha256", &hash(b"hello")),
                ("x-amz-date", date),
                ("x-amz-meta-a", "one  two"),
            ],
            "SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date;x-amz-meta-a, \
             Signature=7116c737658ac9e4789b03b019b16be85a2d7aa7cfa5f36f5e1985a0e171cf93",
        );
    }

    #[test]
    fn nothing_of_the_agents_signature_is_left() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "x-amz-date", "x-amz-security-token", "x-amz-meta-a"] {
            headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
        }
        let mut query = Some("list-type=2&X-Amz-Signature=abc&prefix=a/b+c&X-Amz-%43redential=AKIA&uploads".to_owned());
        take_out(&mut headers, &mut query);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-amz-meta-a"]);
        assert_eq!(query.as_deref(), Some("list-type=2&prefix=a%2Fb%20c&uploads="));
        let mut query = Some("X-Amz-Signature=abc".to_owned());
        take_out(&mut headers, &mut query);
        assert_eq!(query, None);
    }

    #[test]
    fn a_payload_is_hashed_where_it_can_be() {
        let with = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HASH, HeaderValue::from_static(text));
            headers
        };
        let of = |service, headers: &HeaderMap, body| payload(service, headers, body).map_err(|d| d.code);
        let none = HeaderMap::new();
        assert_eq!(of("bedrock", &with(UNSIGNED), Some(b"x")), Ok(hash(b"x")), "no service but S3 takes it unhashed");
        assert_eq!(of("s3", &with(UNSIGNED), Some(b"x")).as_deref(), Ok(UNSIGNED));
        assert_eq!(of("s3", &with(UNHASHED[1]), None).as_deref(), Ok(UNHASHED[1]));
        assert_eq!(of("s3", &none, None).as_deref(), Ok(UNSIGNED));
        assert_eq!(of("s3", &none, Some(b"x")), Ok(hash(b"x")));
        for chunked in CHUNKED {
            assert_eq!(of("s3", &with(chunked), None).as_deref(), Ok(chunked));
        }
        assert_eq!(of("s3", &with("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"), None), Err("body_signed_by_agent"));
    }

    #[test]
    fn keys_are_read_as_text_or_as_json() {
        let mut place = place("s3");
        let read = |place: &Sigv4, text: &str| {
            Keys::read(place, &SecretText::new(text.into()))
                .map(|keys| (keys.access_key_id.clone(), keys.secrets().count()))
        };
        assert_eq!(read(&place, "abc"), Ok(("AKIDEXAMPLE".into(), 1)));
        let json = r#"{"Version":1,"AccessKeyId":"ASIA1","SecretAccessKey":"s","SessionToken":"t"}"#;
        assert!(read(&place, json).is_err());
        place.access_key_id = None;
        assert_eq!(read(&place, json), Ok(("ASIA1".into(), 2)));
        assert!(read(&place, "abc").is_err());
        assert!(read(&place, "{}").is_err());
    }
}
