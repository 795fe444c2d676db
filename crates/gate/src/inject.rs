//! Phase five: the placeholder becomes the secret, in the one place that the credential names.
//!
//! In two steps. [`Credential::take_out`] takes away whatever the agent wrote in that place, so that no key but the
//! granted one is used, and so that a placeholder that is found afterwards is one that does not belong there.
//! [`Credential::put_in`] puts in the secret, an access token, or a signature.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use ringfence_model::SecretText;
use ringfence_model::manifest::Place;
use ringfence_policy::Denial;
use russh::keys::PrivateKey;
use rustls::ClientConfig;

use crate::config::CredentialLease;
use crate::dial::Dialler;
use crate::echo::{EchoGuard, Hold, Masks};
use crate::fields::{self, decoded};
use crate::needle::percent;
use crate::record::Recorder;
use crate::sigv4::chunks::Chunks;
use crate::sigv4::{self, Keys};
use crate::tls::ClientCertificate;
use crate::token::Tokens;

/// Stands in a path for the secret to be; no path that was decided holds it.
const GAP: char = '\0';

/// A lease, ready for use.
pub struct Credential {
    lease: CredentialLease,
    masks: Arc<Masks>,
    kind: Kind,
}

enum Kind {
    Plain,
    Signed(Keys),
    Token(Box<Tokens>),
    SshKey(Arc<PrivateKey>),
}

/// What of a request goes before its body.
pub struct Head {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its path, as it was decided.
    pub path: String,
    /// Its query.
    pub query: Option<String>,
    /// Whether the agent meant to use `Authorization: Basic`.
    basic: bool,
}

impl Head {
    /// The head of a request as the agent wrote it, with the path as it was decided.
    #[must_use]
    pub fn new(headers: HeaderMap, path: &str, query: Option<&str>) -> Self {
        let basic = headers
            .get(AUTHORIZATION)
            .is_some_and(|value| value.as_bytes().get(..6).is_some_and(|word| word.eq_ignore_ascii_case(b"basic ")));
        Self { headers, path: path.to_owned(), query: query.map(str::to_owned), basic }
    }
}

/// Of a request to be signed, what its head does not hold.
pub struct Target<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its host, with the port where it is sent.
    pub authority: &'a str,
    /// What stands for its body, where a signature needs it.
    pub payload: Option<&'a str>,
}

/// Whether the body has to be read before the secret can be put into the call.
#[must_use]
pub fn needs_body(lease: &CredentialLease) -> bool {
    match &lease.place {
        Place::Form { .. } | Place::Json { .. } => true,
        Place::Sigv4(sigv4) => !sigv4::is_s3(&sigv4.service),
        _ => false,
    }
}

/// The body with the secret in it, and the same without; `None` for a place that is not in the body.
///
/// # Errors
/// The denial, as [`fields::replace`] says.
pub fn into_body(lease: &CredentialLease, headers: &HeaderMap, body: &[u8]) -> Result<Option<(Bytes, Bytes)>, Denial> {
    if !matches!(lease.place, Place::Form { .. } | Place::Json { .. }) {
        return Ok(None);
    }
    let with = fields::replace(&lease.place, headers, body, lease.secret.reveal())?;
    let without = fields::replace(&lease.place, headers, body, "")?;
    Ok(Some((with.into(), without.into())))
}

impl Credential {
    /// Reads the secret. `tls` is for the endpoint where tokens are got, if they are.
    ///
    /// # Errors
    /// Why it cannot be used, in words.
    pub fn read(name: &str, lease: &CredentialLease, tls: Option<Arc<ClientConfig>>) -> Result<Self, &'static str> {
        if lease.secret.is_empty() {
            return Err("it is empty");
        }
        let own = |secrets: &[&SecretText]| Masks::new(secrets.iter().copied(), &lease.placeholder);
        if lease.place == Place::ClientCertificate {
            ClientCertificate::read(name, &lease.secret)
                .map_err(|_| "it is not PEM of a certificate chain and the private key that belongs to it")?;
            // It goes into handshakes, never into a call, so no answer can hold it.
            return Ok(Self { lease: lease.clone(), masks: own(&[]), kind: Kind::Plain });
        }
        if lease.place == Place::SshKey {
            let key = crate::ssh::host::private_key(lease.secret.reveal())?;
            return Ok(Self { lease: lease.clone(), masks: own(&[]), kind: Kind::SshKey(Arc::new(key)) });
        }
        let tokens = Tokens::read(name, &lease.place, &lease.secret, &lease.placeholder, tls)?;
        if tokens.is_none() && lease.secret.reveal().chars().any(char::is_control) {
            return Err("it has a control character");
        }
        let (kind, masks) = match &lease.place {
            Place::Basic { template } => {
                let pair = SecretText::new(template.replacen("{}", lease.secret.reveal(), 1));
                let (_, password) = pair.reveal().split_once(':').ok_or("it has no `:` between user and password")?;
                // Where the secret is the user name the password may be empty.
                let password = SecretText::new(password.to_owned());
                (Kind::Plain, own(&[&pair, &password, &lease.secret]))
            }
            Place::Header { .. } => {
                header(lease)?;
                (Kind::Plain, own(&[&lease.secret]))
            }
            Place::Sigv4(place) if place.assume_role.is_none() => {
                let keys = Keys::read(place, &lease.secret)?;
                let masks = Masks::new(keys.secrets(), &lease.placeholder);
                (Kind::Signed(keys), masks)
            }
            _ => match tokens {
                // What is exchanged for tokens never goes to who might send it back.
                Some(tokens) => (Kind::Token(Box::new(tokens)), own(&[])),
                None => (Kind::Plain, own(&[&lease.secret])),
            },
        };
        Ok(Self { lease: lease.clone(), masks, kind })
    }

    /// The lease.
    #[must_use]
    pub const fn lease(&self) -> &CredentialLease {
        &self.lease
    }

    /// The key, if it is one for SSH.
    #[must_use]
    pub fn ssh_key(&self) -> Option<Arc<PrivateKey>> {
        match &self.kind {
            Kind::SshKey(key) => Some(Arc::clone(key)),
            _ => None,
        }
    }

    /// What stands for the body in a signature; `None` for places that sign nothing.
    ///
    /// # Errors
    /// The denial, as [`sigv4::payload`] says.
    pub fn payload(&self, headers: &HeaderMap, body: Option<&[u8]>) -> Result<Option<String>, Denial> {
        match &self.lease.place {
            Place::Sigv4(place) => sigv4::payload(&place.service, headers, body).map(Some),
            _ => Ok(None),
        }
    }

    /// Takes away what the agent wrote in the credential's place, whatever it was. Of a path the placeholder must be
    /// there, in one segment: a path without it would mean something else.
    ///
    /// # Errors
    /// The denial `credential_path`.
    pub fn take_out(&self, head: &mut Head) -> Result<(), Denial> {
        match &self.lease.place {
            Place::Basic { .. } | Place::GithubApp(_) | Place::GoogleServiceAccount(_) | Place::Oauth2(_) => {
                head.headers.remove(AUTHORIZATION);
            }
            Place::ClientCertificate | Place::Form { .. } | Place::Json { .. } | Place::Password | Place::SshKey => {}
            Place::Header { name, .. } => {
                head.headers.remove(name.as_str());
            }
            Place::Path { before, after } => {
                let own = format!("{before}{}{after}", self.lease.placeholder);
                let is_own = |segment: &&str| decoded(&segment.replace('+', "%2B")) == own.as_bytes();
                let mut found = head.path.split('/').filter(is_own);
                let (Some(segment), None) = (found.next(), found.next()) else {
                    let why = format!("the path has no segment `{before}{{}}{after}` with the placeholder, or several");
                    return Err(Denial::new("credential_path", why));
                };
                let segment = segment.to_owned();
                let segments = head.path.split('/').map(|s| if s == segment { "\0" } else { s });
                head.path = segments.collect::<Vec<_>>().join("/");
            }
            Place::Query { name } => {
                let text = head.query.take().unwrap_or_default();
                let others = text.split('&').filter(|pair| {
                    let key = pair.split('=').next().unwrap_or_default();
                    !pair.is_empty() && decoded(key) != name.as_bytes()
                });
                let others = others.collect::<Vec<_>>().join("&");
                head.query = (!others.is_empty()).then_some(others);
            }
            Place::Sigv4(_) => sigv4::take_out(&mut head.headers, &mut head.query),
        }
        Ok(())
    }

    /// Puts the secret into a call, or what is made of it, and gives what guards its answer, and what signs its body where
    /// that is signed in chunks.
    ///
    /// # Errors
    /// Why it cannot, with a stable code before the first colon; the call must then not be made.
    pub async fn put_in(
        &self,
        head: &mut Head,
        target: &Target<'_>,
        dialler: &Dialler,
        recorder: &Arc<Recorder>,
    ) -> Result<(EchoGuard, Option<Box<Chunks>>), String> {
        let mut chunks = None;
        let failed = |why: &'static str| format!("inject: {why}");
        let secret = &self.lease.secret;
        match (&self.kind, &self.lease.place) {
            (Kind::Signed(_) | Kind::Token(_), Place::Sigv4(place)) => {
                let held = match &self.kind {
                    Kind::Token(tokens) => Some(tokens.token(dialler, recorder).await?),
                    _ => None,
                };
                let keys = match (&self.kind, &held) {
                    (Kind::Signed(keys), _) => keys,
                    (_, Some(held)) => held.keys.as_ref().ok_or_else(|| failed("there are no keys to sign with"))?,
                    _ => return Err(failed("there are no keys to sign with")),
                };
                let payload = target.payload.ok_or_else(|| failed("nothing stands for the body"))?;
                let request = sigv4::Request {
                    method: target.method.as_str(),
                    authority: target.authority,
                    path: &head.path,
                    query: head.query.as_deref(),
                    payload,
                };
                chunks = sigv4::sign(place, keys, &request, &mut head.headers, Timestamp::now()).map_err(failed)?;
                if let Some(held) = held {
                    return Ok((EchoGuard::new(Arc::clone(&held.masks), Hold::All), chunks));
                }
            }
            (Kind::Token(tokens), place) => {
                let held = tokens.token(dialler, recorder).await?;
                let git = matches!(place, Place::GithubApp(_)) && (head.basic || is_git(&head.path));
                let value = if git { basic("x-access-token:{}", &held.token) } else { bearer(&held.token) };
                head.headers.insert(AUTHORIZATION, value.map_err(failed)?);
                return Ok((EchoGuard::new(Arc::clone(&held.masks), Hold::All), None));
            }
            (_, Place::Basic { template }) => {
                head.headers.insert(AUTHORIZATION, basic(template, secret).map_err(failed)?);
            }
            (_, Place::Header { .. }) => {
                let (name, value) = header(&self.lease).map_err(failed)?;
                head.headers.insert(name, value);
            }
            (_, Place::Path { before, after }) => {
                let own = format!("{before}{}{after}", percent(secret.reveal(), b"-._~!$&'()*,=:@"));
                head.path = head.path.replace(GAP, &own);
            }
            (_, Place::Query { name }) => {
                let own = format!("{name}={}", percent_encoded(secret.reveal()));
                head.query = Some(match head.query.take() {
                    Some(others) => format!("{others}&{own}"),
                    None => own,
                });
            }
            // It is in the body already.
            (_, Place::Form { .. } | Place::Json { .. }) => {}
            (Kind::Plain | Kind::Signed(_) | Kind::SshKey(_), _) => {
                return Err(failed("its place needs something else"));
            }
        }
        Ok((EchoGuard::new(Arc::clone(&self.masks), Hold::All), chunks))
    }
}

fn header(lease: &CredentialLease) -> Result<(HeaderName, HeaderValue), &'static str> {
    let Place::Header { name, template } = &lease.place else { return Err("its place is not a header") };
    let name = name.parse().map_err(|_| "its header has no valid name")?;
    sensitive(&template.replacen("{}", lease.secret.reveal(), 1)).map(|value| (name, value))
}

fn bearer(token: &SecretText) -> Result<HeaderValue, &'static str> {
    sensitive(&format!("Bearer {}", token.reveal()))
}

/// # Source
/// RFC 7617 §2.
fn basic(template: &str, secret: &SecretText) -> Result<HeaderValue, &'static str> {
    let pair = SecretText::new(template.replacen("{}", secret.reveal(), 1));
    sensitive(&format!("Basic {}", STANDARD.encode(pair.reveal())))
}

fn sensitive(text: &str) -> Result<HeaderValue, &'static str> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "it has a character that no header may hold")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether a path is one of git over HTTPS, where GitHub takes no bearer.
///
/// # Source
/// gitprotocol-http(5); Git LFS, "Server Discovery".
fn is_git(path: &str) -> bool {
    path.contains("/info/lfs/")
        || ["/info/refs", "/git-upload-pack", "/git-receive-pack"].iter().any(|p| path.ends_with(p))
}

/// Percent-encodes everything but unreserved characters.
#[must_use]
pub(crate) fn percent_encoded(text: &str) -> String {
    percent(text, b"-._~")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(place: Place, secret: &str) -> Credential {
        let lease = CredentialLease { place, placeholder: "rf-x:1".into(), secret: SecretText::new(secret.into()) };
        Credential::read("key", &lease, None).unwrap()
    }

    async fn through(credential: &Credential, headers: &[(&str, &str)], path: &str, query: Option<&str>) -> Head {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let mut head = Head::new(map, path, query);
        credential.take_out(&mut head).unwrap();
        let log = Recorder::new(Arc::new(NoLog));
        let target = Target { method: &Method::GET, authority: "a.example", payload: Some("UNSIGNED-PAYLOAD") };
        credential.put_in(&mut head, &target, &Dialler::system().unwrap(), &Arc::new(log)).await.unwrap();
        head
    }

    struct NoLog;

    impl ringfence_audit::Record for NoLog {
        fn record(&self, _: Timestamp, _: ringfence_audit::Event) -> Result<u64, ringfence_audit::RecordError> {
            Ok(1)
        }
    }

    #[tokio::test]
    async fn a_header_is_overwritten_whatever_stood_there() {
        let own = credential(Place::Header { name: "authorization".into(), template: "Bearer {}".into() }, "real");
        let wrote = [("authorization", "Bearer attackers-own-key"), ("authorization", "Bearer rf-x")];
        let head = through(&own, &wrote, "/", None).await;
        assert_eq!(head.headers.get_all("authorization").iter().collect::<Vec<_>>(), ["Bearer real"]);
        assert!(head.headers["authorization"].is_sensitive());
    }

    #[tokio::test]
    async fn a_query_parameter_is_overwritten_however_its_name_is_written() {
        let own = credential(Place::Query { name: "key".into() }, "re&al=1");
        for (before, after) in [
            (None, "key=re%26al%3D1"),
            (Some("a=b"), "a=b&key=re%26al%3D1"),
            (Some("key=own&a=b&%6bey=own&key"), "a=b&key=re%26al%3D1"),
            (Some("keys=1&%6"), "keys=1&%6&key=re%26al%3D1"),
        ] {
            assert_eq!(through(&own, &[], "/", before).await.query.as_deref(), Some(after));
        }
    }

    #[tokio::test]
    async fn a_segment_of_the_path_is_replaced_and_must_be_there_once() {
        let own = credential(Place::Path { before: "bot".into(), after: String::new() }, "12:se/cr");
        for path in ["/botrf-x:1/getMe", "/botrf-x%3A1/getMe"] {
            assert_eq!(through(&own, &[], path, None).await.path, "/bot12:se%2Fcr/getMe");
        }
        for path in ["/botother/getMe", "/getMe", "/botrf-x:1/botrf-x:1", "/xbotrf-x:1/", "/botrf-x:1z/"] {
            let mut head = Head::new(HeaderMap::new(), path, None);
            assert_eq!(own.take_out(&mut head).unwrap_err().code, "credential_path", "{path}");
        }
    }

    #[tokio::test]
    async fn basic_has_the_secret_as_password_user_or_both() {
        for (template, secret, want) in
            [("me:{}", "pass", "me:pass"), ("{}:", "sk_live", "sk_live:"), ("{}", "user:pass", "user:pass")]
        {
            let own = credential(Place::Basic { template: template.into() }, secret);
            let head = through(&own, &[("authorization", "Basic cmYteA==")], "/", None).await;
            assert_eq!(head.headers["authorization"], format!("Basic {}", STANDARD.encode(want)).as_str());
        }
        let lease = CredentialLease {
            place: Place::Basic { template: "{}".into() },
            placeholder: "rf-x".into(),
            secret: SecretText::new("no-colon".into()),
        };
        assert!(Credential::read("key", &lease, None).is_err());
    }

    #[test]
    fn a_secret_that_would_break_a_call_is_refused() {
        let read = |place: &Place, secret: &str| {
            let lease = CredentialLease {
                place: place.clone(),
                placeholder: "rf-x".into(),
                secret: SecretText::new(secret.into()),
            };
            Credential::read("key", &lease, None).is_ok()
        };
        let header = Place::Header { name: "x-key".into(), template: "{}".into() };
        assert!(!read(&header, "a\r\nx-evil: 1") && !read(&header, "") && read(&header, "fine"));
        let query = Place::Query { name: "key".into() };
        assert!(!read(&query, "a\nb") && read(&query, "fine"));
    }

    #[test]
    fn paths_of_git_are_known() {
        assert!(
            is_git("/o/r.git/info/refs")
                && is_git("/o/r.git/git-receive-pack")
                && is_git("/o/r/info/lfs/objects/batch")
        );
        assert!(!is_git("/repos/o/r/contents/info"));
    }
}
