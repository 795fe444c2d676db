//! People come in: TLS, authentication, the policy, and then the agent's own port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, ORIGIN,
    REFERRER_POLICY, SET_COOKIE,
};
use http::request::Parts;
use http::{Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use ringfence_audit::Direction;
use ringfence_model::manifest::IngressAuth;
use ringfence_model::{HostName, SecretText};
use ringfence_policy::{Decision, Denial, IngressRequest, Request as Question};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::accept::MAX_HEAD_BYTES;
use crate::arrival::Arrival;
use crate::body::{Count, DownBody};
use crate::call::{ask_for_websocket, is_websocket};
use crate::config::IngressConfig;
use crate::hash::BodyHash;
use crate::llm::Content;
use crate::record::{Call, Subject};
use crate::relay::{self, Agent, Upstream};
use crate::tls::TlsError;
use crate::upload::Upload;
use crate::{Gate, MAX_CONNECTIONS, framing, tls, trace};

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(75);

/// The header that carries the token, for programs.
const TOKEN_HEADER: &str = "x-ringfence-token";

/// Makes sockets in the agent's network namespace.
pub trait Sockets: Send + Sync + 'static {
    /// A TCP socket over IPv4, not yet connected.
    ///
    /// # Errors
    /// Whatever the kernel says.
    fn socket(&self) -> impl Future<Output = std::io::Result<TcpSocket>> + Send;
}

/// The agent lives in the same namespace as the gate.
pub struct Here;

impl Sockets for Here {
    async fn socket(&self) -> std::io::Result<TcpSocket> {
        TcpSocket::new_v4()
    }
}

/// The door that people come in by.
pub struct Ingress<S> {
    gate: Arc<Gate>,
    acceptor: TlsAcceptor,
    auth: IngressAuth,
    token: SecretText,
    session: SecretText,
    cookie: String,
    origin: String,
    authority: String,
    host: HostName,
    port: u16,
    agent: Agent<S>,
}

/// How a request stands.
enum Standing {
    /// It shows token or session, or needs none.
    In,
    /// It shows the token in its URL; it gets a session and the same URL without the token.
    Login(String),
    /// It shows nothing that is valid.
    Out,
}

impl<S: Sockets> Ingress<S> {
    /// Prepares the door.
    ///
    /// # Errors
    /// [`TlsError`] if certificate, key or origin are not usable.
    pub fn new(gate: Arc<Gate>, config: &IngressConfig, sockets: S) -> Result<Self, TlsError> {
        let origin = config.public_origin.trim_end_matches('/').to_ascii_lowercase();
        let bad = || TlsError::Name(config.public_origin.clone());
        let uri: Uri = origin.parse().map_err(|_| bad())?;
        let authority = uri.authority().ok_or_else(bad)?.clone();
        let port = authority.port_u16().unwrap_or(443);
        // `localhost` is a host here, like any name.
        let host: HostName = authority.host().parse().map_err(|_| bad())?;
        // The session is derived from the token, so that it outlives the gate, and yet does not show it.
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, config.token.reveal().as_bytes());
        let session = aws_lc_rs::hmac::sign(&key, b"ringfence ingress session 1");
        Ok(Self {
            acceptor: TlsAcceptor::from(tls::ingress_config(&config.cert_chain_pem, config.key_pem.reveal())?),
            auth: config.auth,
            token: config.token.clone(),
            session: SecretText::new(URL_SAFE_NO_PAD.encode(session.as_ref())),
            cookie: format!("ringfence_{port}"),
            authority: authority.as_str().to_owned(),
            origin,
            port,
            agent: Agent {
                upstream: Upstream { grant: usize::MAX, host: host.clone(), port: config.agent_port },
                address: SocketAddr::from(([127, 0, 0, 1], config.agent_port)),
                sockets,
            },
            host,
            gate,
        })
    }

    /// Lets people in for ever.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let ingress = Arc::new(self);
        let open = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return Ok(()) };
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            // Small answers must not wait for more.
            let _ = stream.set_nodelay(true);
            let ingress = Arc::clone(&ingress);
            tokio::spawn(async move {
                ingress.connection(stream, peer).await;
                drop(permit);
            });
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(stream)).await else { return };
        let service = service_fn(move |request| {
            let ingress = Arc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(ingress.answer(request, peer).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(MAX_HEAD_BYTES)
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a connection of a person ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: SocketAddr) -> Response<DownBody> {
        let (mut parts, body) = request.into_parts();
        let body = Upload::new(&parts.headers, body);
        let websocket = is_websocket(&parts);
        let subject = Subject {
            direction: Direction::Ingress,
            protocol: if websocket { "websocket" } else { "http/1.1" },
            host: self.host.to_string(),
            port: self.port,
            method: Some(parts.method.as_str().to_owned()),
            path: Some(parts.uri.path().to_owned()),
            model: None,
            llm: None,
            rpc: Vec::new(),
            after: None,
            trace: trace::of(&parts.headers),
            sql: None,
            git: None,
        };
        let standing = self.standing(&parts);
        let own_rule = self.host_named(&parts).and_then(|()| self.same_origin(&parts, websocket));
        if let Err(denial) = own_rule {
            self.gate.recorder.deny(subject, &denial).await;
            return page(StatusCode::FORBIDDEN, "Not from here", "This page may only be used from its own address.");
        }
        let question = IngressRequest {
            host: &self.host,
            port: self.port,
            method: parts.method.as_str(),
            path: parts.uri.path(),
            websocket,
            authenticated: !matches!(standing, Standing::Out),
        };
        let permit = match self.gate.latest().policy.decide(&Question::Ingress(question)) {
            Decision::Allow(permit) => permit,
            Decision::Deny(denial) => {
                let out = denial.code == "not_authenticated";
                self.gate.recorder.deny(subject, &denial).await;
                return if out {
                    page(StatusCode::UNAUTHORIZED, "Sign in", "Open the link that `ringfence up` printed.")
                } else {
                    page(StatusCode::FORBIDDEN, "Not allowed", "A rule of this agent's operator forbids it.")
                };
            }
        };
        let Ok(call) = self.gate.recorder.allow(subject, &permit, false).await else {
            return page(StatusCode::SERVICE_UNAVAILABLE, "Not recorded", "The audit log cannot be written.");
        };
        if let Standing::Login(to) = standing {
            call.status(StatusCode::SEE_OTHER.as_u16());
            return self.login(&to);
        }
        let person = parts.extensions.remove::<OnUpgrade>();
        if let Err(why) = self.prepare(&mut parts, peer, websocket) {
            call.failed(why);
            return page(StatusCode::BAD_REQUEST, "Bad request", "The request cannot be understood.");
        }
        trace::go_on(&mut parts.headers, call.id());
        let body = Content::Stream(body).into_body(&call, BodyHash::default(), None, None, None, false);
        let request = Request::from_parts(parts, body);
        let sent = relay::send_inward(&self.gate.pool, permit, &self.agent, request, websocket).await;
        match sent {
            Ok((response, checkin)) => {
                call.status(response.status().as_u16());
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    return upgraded(response, person.filter(|_| websocket), call);
                }
                let (mut parts, body) = response.into_parts();
                if let Err(why) = framing::check(&parts.headers) {
                    call.failed(format!("framing_ambiguous: where the answer ends is unclear: {why}"));
                    return page(StatusCode::BAD_GATEWAY, "The agent does not answer", "It cannot be understood.");
                }
                relay::strip_hop_by_hop(&mut parts.headers);
                Response::from_parts(
                    parts,
                    DownBody::relayed(Arrival::new(body, None), call, None, Count::default(), checkin, None),
                )
            }
            Err(why) => {
                call.failed(why);
                page(StatusCode::BAD_GATEWAY, "The agent does not answer", "It may still be starting. Try again.")
            }
        }
    }

    fn standing(&self, parts: &Parts) -> Standing {
        if self.auth == IngressAuth::None {
            return Standing::In;
        }
        let same = |text: &str, secret: &SecretText| !secret.is_empty() && SecretText::new(text.to_owned()) == *secret;
        let by_header = parts.headers.get(TOKEN_HEADER).and_then(|v| v.to_str().ok());
        if by_header.is_some_and(|token| same(token, &self.token)) {
            return Standing::In;
        }
        let mut sessions = cookies(&parts.headers).filter(|(name, _)| *name == self.cookie);
        if sessions.any(|(_, value)| same(value, &self.session)) {
            return Standing::In;
        }
        let query = parts.uri.query().unwrap_or_default();
        let token = query.split('&').find_map(|pair| pair.strip_prefix("token="));
        if token.is_some_and(|token| same(token, &self.token)) && !is_websocket(parts) {
            let rest: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("token=")).collect();
            // A path of two slashes would send the browser to another host.
            let path = format!("/{}", parts.uri.path().trim_start_matches(['/', '\\']));
            let to = if rest.is_empty() { path } else { format!("{path}?{}", rest.join("&")) };
            return Standing::Login(to);
        }
        Standing::Out
    }

    fn login(&self, to: &str) -> Response<DownBody> {
        let mut response = page(StatusCode::SEE_OTHER, "Signed in", "Go on to the agent.");
        let cookie = format!("{}={}; Path=/; HttpOnly; Secure; SameSite=Lax", self.cookie, self.session.reveal());
        let headers = response.headers_mut();
        if let (Ok(cookie), Ok(to)) = (HeaderValue::from_str(&cookie), HeaderValue::from_str(to)) {
            headers.insert(SET_COOKIE, cookie);
            headers.insert(LOCATION, to);
        }
        response
    }

    /// Without authentication, a page of another name that resolves to this address must not get in.
    fn host_named(&self, parts: &Parts) -> Result<(), Denial> {
        if self.auth == IngressAuth::Token {
            return Ok(());
        }
        let named = parts.headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        let host = named.parse::<http::uri::Authority>().map(|a| a.host().to_owned()).unwrap_or_default();
        let literal = matches!(host.parse::<HostName>(), Ok(HostName::Address(_))) || host == "localhost";
        if named == self.authority || literal {
            return Ok(());
        }
        Err(Denial::new("host_mismatch", format!("the request names `{named}`, which is not this agent's address")))
    }

    /// A WebSocket may only be opened by this agent's own pages.
    fn same_origin(&self, parts: &Parts, websocket: bool) -> Result<(), Denial> {
        let Some(origin) = parts.headers.get(ORIGIN).filter(|_| websocket) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        let host = parts.headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
        if origin == self.origin || origin == format!("https://{host}") {
            return Ok(());
        }
        Err(Denial::new("origin_mismatch", format!("a page of `{origin}` opened a WebSocket to this agent")))
    }

    /// The request as the agent gets it: without what let it in, and with who made it.
    fn prepare(&self, parts: &mut Parts, peer: SocketAddr, websocket: bool) -> Result<(), &'static str> {
        let headers = &mut parts.headers;
        let host = headers.get(HOST).cloned().ok_or("host: the request names none")?;
        relay::strip_hop_by_hop(headers);
        headers.remove(EXPECT);
        headers.remove(TOKEN_HEADER);
        let kept: Vec<String> = cookies(headers)
            .filter(|(name, _)| *name != self.cookie)
            .map(|(name, value)| if value.is_empty() { name.to_owned() } else { format!("{name}={value}") })
            .collect();
        headers.remove(COOKIE);
        if let Ok(kept) = HeaderValue::from_str(&kept.join("; "))
            && !kept.is_empty()
        {
            headers.insert(COOKIE, kept);
        }
        for name in ["forwarded", "x-forwarded-port", "x-forwarded-server", "x-real-ip"] {
            headers.remove(name);
        }
        let peer = HeaderValue::from_str(&peer.ip().to_canonical().to_string()).map_err(|_| "peer: no address")?;
        headers.insert(HeaderName::from_static("x-forwarded-for"), peer);
        headers.insert(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("https"));
        headers.insert(HeaderName::from_static("x-forwarded-host"), host);
        if websocket {
            ask_for_websocket(headers);
        }
        let query = parts.uri.query().unwrap_or_default();
        let kept: Vec<&str> = query.split('&').filter(|p| !p.is_empty() && !self.is_token(p)).collect();
        let path = parts.uri.path();
        let target = if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
        parts.uri = target.parse().map_err(|_| "uri: it cannot be sent on")?;
        parts.version = Version::HTTP_11;
        Ok(())
    }

    fn is_token(&self, pair: &str) -> bool {
        pair.strip_prefix("token=").is_some_and(|token| SecretText::new(token.to_owned()) == self.token)
    }
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn upgraded(mut response: Response<Incoming>, person: Option<OnUpgrade>, call: Arc<Call>) -> Response<DownBody> {
    let Some(person) = person else {
        call.failed("unasked_upgrade: the agent switched protocols unasked");
        return page(StatusCode::BAD_GATEWAY, "The agent does not answer", "It switched protocols unasked.");
    };
    let agent = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    relay::strip_hop_by_hop(&mut parts.headers);
    ask_for_websocket(&mut parts.headers);
    parts.extensions.clear();
    tokio::spawn(async move {
        let done = match tokio::try_join!(person, agent) {
            Ok((person, agent)) => relay::tunnel(TokioIo::new(person), TokioIo::new(agent), &call, None).await,
            Err(error) => Err(format!("upgrade_failed: {error}")),
        };
        if let Err(why) = done {
            call.failed(why);
        }
    });
    Response::from_parts(parts, DownBody::Own(None))
}

/// A small page of our own. Its texts are ours, never a request's.
fn page(status: StatusCode, title: &str, text: &str) -> Response<DownBody> {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>body{{font:16px/1.5 system-ui,sans-serif;max-width:32rem;margin:15vh auto;padding:0 1rem}}\
         </style><h1>{title}</h1><p>{text}</p></html>\n"
    );
    let mut response = Response::new(DownBody::own(html));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
