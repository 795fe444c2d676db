//! Access tokens that the gate itself gets, outside the fence, in exchange for a secret that no call ever carries.
//!
//! A token is kept in memory and renewed before it ends. Many calls that need one at once make one request. What cannot
//! be had fails the calls that need it.
//!
//! # Source
//! RFC 6749 §4.4, §6; RFC 7523 for Google's service accounts; GitHub Docs, "Authenticating as a GitHub App"; AWS Security
//! Token Service API Reference, "AssumeRole".

use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use ringfence_model::SecretText;
use ringfence_model::manifest::{
    AssumeRole, ClientAuth, Endpoint, GithubApp, GoogleServiceAccount, Grant, Oauth2, Oauth2Grant, Place, Scheme, Sigv4,
};
use rustls::ClientConfig;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use tokio_rustls::TlsConnector;

use crate::dial::{Dialler, NoAddress};
use crate::echo::Masks;
use crate::needle::percent;
use crate::record::{Recorder, Subject};
use crate::sigv4::{self, Keys};
use crate::{relay, tls};

/// How long a token endpoint may take over all.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The largest answer of a token endpoint.
const MAX_ANSWER_BYTES: usize = 256 * 1024;

/// The longest token; a header holds no more.
const MAX_TOKEN_BYTES: usize = 32 * 1024;

/// How long a failure is an answer, so that calls of an agent are no flood at the endpoint.
const FAILED_FOR: Duration = Duration::from_secs(2);

/// How long before its end a token is renewed, and what share of a short life that may be.
const RENEWED_BEFORE: Duration = Duration::from_secs(300);
const RENEWED_SHARE: u32 = 5;

/// How long a token lives of which nobody says it; RFC 6749 §5.1 recommends to say it.
const UNSAID_LIFE: Duration = Duration::from_secs(600);

/// How long temporary keys of AWS are to live: the most that a role grants to another one.
const KEYS_LIFE_S: u32 = 3600;

/// The longest life that is believed.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Gets tokens for one credential.
pub struct Tokens {
    credential: String,
    placeholder: String,
    how: How,
    endpoint: Endpoint,
    /// What the dialler is told about the endpoint; no agent may call by it.
    route: Grant,
    tls: Arc<ClientConfig>,
    slot: tokio::sync::Mutex<Slot>,
}

enum How {
    Aws(Box<(AssumeRole, Sigv4, Keys)>),
    Github(GithubApp, RsaKeyPair),
    Google(GoogleServiceAccount, Account),
    Oauth2(Oauth2, Client),
}

/// The key of a service account.
struct Account {
    email: String,
    key_id: Option<String>,
    key: RsaKeyPair,
}

/// What an OAuth client has.
struct Client {
    secret: Option<SecretText>,
    refresh: Option<SecretText>,
}

#[derive(Default)]
struct Slot {
    held: Option<Arc<Held>>,
    failed: Option<(Instant, String)>,
    /// A refresh token that came in the stead of the first one.
    refresh: Option<SecretText>,
}

/// A token while it is good.
pub struct Held {
    /// The token.
    pub token: SecretText,
    /// What requests are signed with, where the token is a part of that.
    pub keys: Option<Keys>,
    /// What must not come back.
    pub masks: Arc<Masks>,
    renew: Instant,
    ends: Instant,
}

/// What is sent to the endpoint.
struct Ask {
    path: String,
    authorization: Option<SecretText>,
    content_type: &'static str,
    body: SecretText,
    /// What signs it.
    headers: HeaderMap,
}

impl How {
    /// Reads the secret.
    fn read(place: &Place, secret: &SecretText) -> Result<Option<Self>, &'static str> {
        Ok(Some(match place {
            Place::GithubApp(app) => Self::Github(app.clone(), rsa_key(secret.reveal())?),
            Place::GoogleServiceAccount(account) => Self::Google(account.clone(), Account::read(secret)?),
            Place::Oauth2(oauth2) => Self::Oauth2(oauth2.clone(), Client::read(oauth2.grant, secret)?),
            Place::Sigv4(place @ Sigv4 { assume_role: Some(role), .. }) => {
                let keys = Keys::read(place, secret)?;
                // The endpoint of no region is in this one.
                let host = role.endpoint.host.to_string();
                let region = if host == "sts.amazonaws.com" { "us-east-1" } else { &place.region };
                let own = Sigv4 { region: region.to_owned(), service: "sts".into(), ..place.clone() };
                Self::Aws(Box::new((role.clone(), own, keys)))
            }
            _ => return Ok(None),
        }))
    }

    fn ask(&self, endpoint: &Endpoint, refresh: Option<&SecretText>, now: Timestamp) -> Result<Ask, &'static str> {
        const FORM: &str = "application/x-www-form-urlencoded";
        match self {
            Self::Aws(own) => {
                let (role, place, keys) = &**own;
                let part = |text: &str| percent(text, b"-._~");
                let mut body = format!(
                    "Action=AssumeRole&Version=2011-06-15&DurationSeconds={KEYS_LIFE_S}&RoleArn={}&RoleSessionName={}",
                    part(&role.role_arn),
                    part(&role.session_name)
                );
                if let Some(id) = &role.external_id {
                    body.push_str(&format!("&ExternalId={}", part(id)));
                }
                let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(FORM))]);
                let payload = sigv4::payload(&place.service, &headers, Some(body.as_bytes()));
                let request = sigv4::Request {
                    method: "POST",
                    authority: &relay::authority(Scheme::Https, &endpoint.host, endpoint.port),
                    path: &endpoint.path,
                    query: None,
                    payload: &payload.map_err(|_| "its request cannot be signed")?,
                };
                sigv4::sign(place, keys, &request, &mut headers, now)?;
                headers.remove(CONTENT_TYPE);
                let body = SecretText::new(body);
                Ok(Ask { path: endpoint.path.clone(), authorization: None, content_type: FORM, body, headers })
            }
            Self::Github(app, key) => {
                // A minute back, for clocks that differ; ten minutes are the most that GitHub takes.
                let claims = serde_json::json!({
                    "iat": now.as_second() - 60, "exp": now.as_second() + 540, "iss": app.app_id,
                });
                let path = format!(
                    "{}/app/installations/{}/access_tokens",
                    endpoint.path.trim_end_matches('/'),
                    app.installation_id
                );
                let jwt = jwt(key, None, &claims)?;
                Ok(Ask {
                    path,
                    authorization: Some(SecretText::new(format!("Bearer {}", jwt.reveal()))),
                    content_type: "application/json",
                    body: SecretText::new(String::new()),
                    headers: HeaderMap::new(),
                })
            }
            Self::Google(place, account) => {
                let mut claims = serde_json::json!({
                    "iss": account.email, "scope": place.scopes.join(" "), "aud": endpoint.url(),
                    "iat": now.as_second(), "exp": now.as_second() + 3600,
                });
                if let (Some(subject), Some(claims)) = (&place.subject, claims.as_object_mut()) {
                    claims.insert("sub".into(), subject.clone().into());
                }
                let jwt = jwt(&account.key, account.key_id.as_deref(), &claims)?;
                let grant = percent("urn:ietf:params:oauth:grant-type:jwt-bearer", b"-._~");
                let body = SecretText::new(format!("grant_type={grant}&assertion={}", jwt.reveal()));
                Ok(Ask {
                    path: endpoint.path.clone(),
                    authorization: None,
                    content_type: FORM,
                    body,
                    headers: HeaderMap::new(),
                })
            }
            Self::Oauth2(place, client) => {
                let mut pairs: Vec<(&str, &str)> = Vec::new();
                match place.grant {
                    Oauth2Grant::ClientCredentials => pairs.push(("grant_type", "client_credentials")),
                    Oauth2Grant::RefreshToken => {
                        let token = refresh.or(client.refresh.as_ref()).ok_or("there is no refresh token")?;
                        pairs.extend([("grant_type", "refresh_token"), ("refresh_token", token.reveal())]);
                    }
                }
                let scopes = place.scopes.join(" ");
                if !scopes.is_empty() {
                    pairs.push(("scope", &scopes));
                }
                pairs.extend(place.audience.as_deref().map(|audience| ("audience", audience)));
                let mut authorization = None;
                match (&client.secret, place.client_auth) {
                    (Some(secret), ClientAuth::Basic) => {
                        let part = |text: &str| percent(text, b"-._~");
                        let pair = SecretText::new(format!("{}:{}", part(&place.client_id), part(secret.reveal())));
                        authorization = Some(SecretText::new(format!("Basic {}", STANDARD.encode(pair.reveal()))));
                    }
                    (Some(secret), ClientAuth::Post) => {
                        pairs.extend([("client_id", place.client_id.as_str()), ("client_secret", secret.reveal())]);
                    }
                    (None, _) => pairs.push(("client_id", &place.client_id)),
                }
                let body = pairs.iter().map(|(name, value)| format!("{name}={}", percent(value, b"-._~")));
                let body = SecretText::new(body.collect::<Vec<_>>().join("&"));
                Ok(Ask {
                    path: endpoint.path.clone(),
                    authorization,
                    content_type: FORM,
                    body,
                    headers: HeaderMap::new(),
                })
            }
        }
    }
}

impl Account {
    fn read(secret: &SecretText) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Written {
            client_email: String,
            private_key: SecretText,
            private_key_id: Option<String>,
        }
        let written: Written = serde_json::from_str(secret.reveal())
            .map_err(|_| "it is not the JSON key of a service account, with `client_email` and `private_key`")?;
        let key = rsa_key(written.private_key.reveal())?;
        Ok(Self { email: written.client_email, key_id: written.private_key_id, key })
    }
}

impl Client {
    /// A client secret or a refresh token as text, or both as JSON, as `gcloud` keeps them.
    fn read(grant: Oauth2Grant, secret: &SecretText) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Written {
            client_secret: Option<SecretText>,
            refresh_token: Option<SecretText>,
        }
        let read = match (secret.reveal().starts_with('{'), grant) {
            (true, _) => {
                let written: Written = serde_json::from_str(secret.reveal())
                    .map_err(|_| "it is not JSON with `client_secret` and `refresh_token`")?;
                Self { secret: written.client_secret, refresh: written.refresh_token }
            }
            (false, Oauth2Grant::ClientCredentials) => Self { secret: Some(secret.clone()), refresh: None },
            (false, Oauth2Grant::RefreshToken) => Self { secret: None, refresh: Some(secret.clone()) },
        };
        match grant {
            Oauth2Grant::ClientCredentials if read.secret.is_none() => Err("it has no `client_secret`"),
            Oauth2Grant::RefreshToken if read.refresh.is_none() => Err("it has no `refresh_token`"),
            _ => Ok(read),
        }
    }
}

/// Reads a private key as PEM, of either kind in which RSA keys come.
fn rsa_key(pem: &str) -> Result<RsaKeyPair, &'static str> {
    // Variables of the environment often carry line breaks as `\n`.
    let pem = SecretText::new(pem.replace("\\n", "\n"));
    let bad = "it is not an RSA private key as PEM";
    match PrivateKeyDer::from_pem_slice(pem.reveal().as_bytes()).map_err(|_| bad)? {
        PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).map_err(|_| bad),
        PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()).map_err(|_| bad),
        _ => Err(bad),
    }
}

/// # Source
/// RFC 7515 §7.1, RFC 7518 §3.3.
fn jwt(key: &RsaKeyPair, key_id: Option<&str>, claims: &serde_json::Value) -> Result<SecretText, &'static str> {
    let head = match key_id {
        Some(id) => serde_json::json!({"alg": "RS256", "typ": "JWT", "kid": id}),
        None => serde_json::json!({"alg": "RS256", "typ": "JWT"}),
    };
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(head.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
        .map_err(|_| "its key does not sign")?;
    Ok(SecretText::new(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))))
}

/// What an endpoint answers.
#[derive(Deserialize)]
struct Answer {
    /// RFC 6749 §5.1.
    access_token: Option<SecretText>,
    expires_in: Option<serde_json::Value>,
    refresh_token: Option<SecretText>,
    token_type: Option<String>,
    /// GitHub's words.
    token: Option<SecretText>,
    expires_at: Option<String>,
}

impl Tokens {
    /// Reads the secret; `None` for a place that needs no token.
    ///
    /// # Errors
    /// What is wrong with the secret, in words.
    pub fn read(
        credential: &str,
        place: &Place,
        secret: &SecretText,
        placeholder: &str,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Option<Self>, &'static str> {
        let (Some(how), Some(endpoint)) = (How::read(place, secret)?, place.endpoint()) else { return Ok(None) };
        Ok(Some(Self {
            credential: credential.to_owned(),
            placeholder: placeholder.to_owned(),
            how,
            endpoint: endpoint.clone(),
            route: route(endpoint).ok_or("its endpoint has no host")?,
            tls: tls.ok_or("there are no trust anchors for its endpoint")?,
            slot: tokio::sync::Mutex::default(),
        }))
    }

    /// A token that is good, got or renewed if need be.
    ///
    /// # Errors
    /// Why there is none, with a stable code before the first colon.
    pub async fn token(&self, dialler: &Dialler, recorder: &Arc<Recorder>) -> Result<Arc<Held>, String> {
        // Whoever comes while a token is being got waits here, and finds it.
        let mut slot = self.slot.lock().await;
        let now = Instant::now();
        if let Some(held) = slot.held.as_ref().filter(|held| now < held.renew) {
            return Ok(Arc::clone(held));
        }
        if let Some((at, why)) = &slot.failed
            && now.duration_since(*at) < FAILED_FOR
        {
            return slot.held.as_ref().filter(|held| now < held.ends).cloned().ok_or_else(|| why.clone());
        }
        match self.obtain(&mut slot, dialler, recorder).await {
            Ok(held) => {
                slot.failed = None;
                slot.held = Some(Arc::clone(&held));
                Ok(held)
            }
            Err(why) => {
                slot.failed = Some((Instant::now(), why.clone()));
                // An early renewal that fails costs nothing as long as the old token is good.
                slot.held.as_ref().filter(|held| Instant::now() < held.ends).cloned().ok_or(why)
            }
        }
    }

    async fn obtain(&self, slot: &mut Slot, dialler: &Dialler, recorder: &Arc<Recorder>) -> Result<Arc<Held>, String> {
        let failed = |why: &dyn std::fmt::Display| format!("token_failed: {why}");
        let ask = self.how.ask(&self.endpoint, slot.refresh.as_ref(), Timestamp::now()).map_err(|why| failed(&why))?;
        let subject = Subject {
            method: Some(Method::POST.to_string()),
            path: ask.path.split('?').next().map(str::to_owned),
            ..Subject::connection("http/1.1", self.endpoint.host.to_string(), self.endpoint.port)
        };
        let call = recorder
            .own(subject, &self.credential)
            .await
            .map_err(|e| format!("unrecorded: the request for a token cannot be recorded: {e}"))?;
        let asked = Instant::now();
        let answer = match tokio::time::timeout(TIMEOUT, self.exchange(&ask, dialler, recorder, &call)).await {
            Ok(answer) => answer,
            Err(_) => Err("it took too long".into()),
        };
        let held = answer.and_then(|answer| self.understand(&answer, asked, slot));
        held.map_err(|why| {
            call.failed(failed(&why));
            failed(&why)
        })
    }

    async fn exchange(
        &self,
        ask: &Ask,
        dialler: &Dialler,
        recorder: &Recorder,
        call: &crate::record::Call,
    ) -> Result<Bytes, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let addresses = dialler.addresses(&self.route, host, *port, recorder).await.map_err(|none| match none {
            NoAddress::Denied(denial) => format!("{}: {}", denial.code, denial.why),
            NoAddress::Failed(why) => why,
        })?;
        let (stream, address) = dialler.connect(&addresses).await?;
        call.address(address);
        let name = tls::server_name(host).ok_or("the endpoint has no name for TLS")?;
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await;
        let stream = stream.map_err(|e| tls::failure(&e))?;
        let broke = |e: &dyn std::error::Error| format!("the endpoint broke off: {}", relay::chain(e));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| broke(&e))?;
        let _connection = Aborted(tokio::spawn(connection));
        let request = self.request(ask).map_err(|e| broke(&e))?;
        call.sent(ask.body.reveal().len());
        let mut response = sender.send_request(request).await.map_err(|e| broke(&e))?;
        call.status(response.status().as_u16());
        let mut body = BytesMut::new();
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|e| broke(&e))?;
            let Some(data) = frame.data_ref() else { continue };
            call.received(data.len());
            if body.len() + data.len() > MAX_ANSWER_BYTES {
                return Err(format!("the answer is larger than {MAX_ANSWER_BYTES} bytes"));
            }
            body.extend_from_slice(data);
        }
        if response.status().is_success() {
            return Ok(body.freeze());
        }
        Err(format!("the endpoint answered {}{}", response.status().as_u16(), said(&body)))
    }

    fn request(&self, ask: &Ask) -> Result<Request<Full<Bytes>>, http::Error> {
        let authority = relay::authority(Scheme::Https, &self.endpoint.host, self.endpoint.port);
        let mut request = Request::post(&ask.path)
            .header(HOST, authority)
            .header(ACCEPT, if matches!(self.how, How::Aws(..)) { "text/xml" } else { "application/json" })
            .header(ACCEPT_ENCODING, "identity")
            .header(USER_AGENT, "ringfence")
            .header(CONTENT_TYPE, ask.content_type);
        if let Some(authorization) = &ask.authorization {
            let mut value = HeaderValue::from_str(authorization.reveal())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(headers) = request.headers_mut() {
            headers.extend(ask.headers.clone());
        }
        request.body(Full::new(Bytes::copy_from_slice(ask.body.reveal().as_bytes())))
    }

    /// Reads the answer. None of its text goes into an error.
    fn understand(&self, answer: &[u8], asked: Instant, slot: &mut Slot) -> Result<Arc<Held>, String> {
        if matches!(self.how, How::Aws(..)) {
            let (keys, token, ends) = role_keys(answer).ok_or("the answer is not the XML of temporary keys")?;
            let life = u64::try_from(ends.as_second() - Timestamp::now().as_second()).unwrap_or(0);
            let masks = Masks::new(keys.secrets(), &self.placeholder);
            return Ok(held(token, Some(keys), masks, asked, Duration::from_secs(life)));
        }
        let answer: Answer = serde_json::from_slice(answer).map_err(|_| "the answer is not the JSON of a token")?;
        if answer.token_type.as_deref().is_some_and(|kind| !kind.eq_ignore_ascii_case("bearer")) {
            return Err("the token is not a bearer token".into());
        }
        let token = answer.access_token.or(answer.token).filter(|token| !token.is_empty());
        let token = token.ok_or("the answer holds no token")?;
        if token.reveal().len() > MAX_TOKEN_BYTES || !token.reveal().bytes().all(|b| (b'!'..=b'~').contains(&b)) {
            return Err("the token is too long for a header, or has characters that none may hold".into());
        }
        let seconds = match &answer.expires_in {
            Some(serde_json::Value::Number(number)) => number.as_u64(),
            // Some servers write it as text.
            Some(serde_json::Value::String(text)) => text.parse().ok(),
            _ => answer
                .expires_at
                .as_deref()
                .and_then(|at| at.parse::<Timestamp>().ok())
                .map(|at| u64::try_from(at.as_second() - Timestamp::now().as_second()).unwrap_or(0)),
        };
        let life = seconds.map_or(UNSAID_LIFE, Duration::from_secs);
        if let Some(refresh) = answer.refresh_token.filter(|token| !token.is_empty()) {
            slot.refresh = Some(refresh);
        }
        let masks = Masks::new([&token], &self.placeholder);
        Ok(held(token, None, masks, asked, life))
    }
}

fn held(token: SecretText, keys: Option<Keys>, masks: Arc<Masks>, asked: Instant, life: Duration) -> Arc<Held> {
    let life = life.min(LONGEST_LIFE);
    let early = RENEWED_BEFORE.min(life / RENEWED_SHARE);
    Arc::new(Held { token, keys, masks, renew: asked + (life - early), ends: asked + life })
}

/// Temporary keys in an answer of AWS, their session token, and when they end.
fn role_keys(answer: &[u8]) -> Option<(Keys, SecretText, Timestamp)> {
    let answer = std::str::from_utf8(answer).ok()?;
    let credentials = element(answer, "Credentials")?;
    let plain = |name| {
        let text = element(credentials, name)?;
        let plain = !text.is_empty() && text.len() <= MAX_TOKEN_BYTES;
        (plain && text.bytes().all(|b| b.is_ascii_graphic() && !b"<>&".contains(&b))).then_some(text)
    };
    let token = SecretText::new(plain("SessionToken")?.to_owned());
    let secret = SecretText::new(plain("SecretAccessKey")?.to_owned());
    let ends = plain("Expiration")?.parse().ok()?;
    Some((Keys::temporary(plain("AccessKeyId")?.to_owned(), secret, token.clone()), token, ends))
}

/// What is in the one element of this name, which has no attributes.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (inner, rest) = rest.split_once(&format!("</{name}>"))?;
    (!rest.contains(&format!("<{name}>"))).then_some(inner.trim())
}

/// What the dialler is told about an endpoint.
#[must_use]
pub fn route(endpoint: &Endpoint) -> Option<Grant> {
    let mut route = Grant::to(endpoint.host.to_string().parse().ok()?);
    route.port = endpoint.port;
    route.connect_to = endpoint.connect_to;
    route.ca_pem.clone_from(&endpoint.ca_pem);
    route.allow_private = endpoint.allow_private;
    Some(route)
}

/// The error code of an answer that is none; RFC 6749 §5.2, or AWS's.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        error: String,
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b == b'_';
    match serde_json::from_slice::<Said>(body) {
        Ok(Said { error }) if error.len() <= 40 && error.bytes().all(plain) => format!(", `{error}`"),
        _ => match std::str::from_utf8(body).ok().and_then(|body| element(body, "Code")) {
            Some(code) if code.len() <= 40 && code.bytes().all(|b| b.is_ascii_alphanumeric()) => format!(", `{code}`"),
            _ => String::new(),
        },
    }
}

/// Ends a task that nobody needs any more.
pub(crate) struct Aborted<T>(pub(crate) tokio::task::JoinHandle<T>);

impl<T> Drop for Aborted<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
