//! Phase six: the call is sent, and its answer brought back. Nothing is sent without a [`Permit`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use http::{Method, Request, Response, Uri, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ringfence_model::HostName;
use ringfence_model::manifest::{Grant, Scheme};
use ringfence_policy::Permit;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use crate::Gate;
use crate::body::UpBody;
use crate::budget::{Account, Amounts};
use crate::dial::{NoAddress, Route};
use crate::ingress::Sockets;
use crate::record::Call;
use crate::stream::Gather;
use crate::tls::{self, Offer};

/// How long an upstream may take over its side of a TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an upstream may think before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// The largest head of an answer, in HTTP/1.1 and in HTTP/2; and, in HTTP/1.1, what is held of it that the agent does not
/// read.
const MAX_ANSWER_HEAD_BYTES: usize = 128 * 1024;
const MAX_ANSWER_HEADERS: u32 = 64 * 1024;

/// Interim answers (1xx) to one request.
const MAX_INTERIM: usize = 1024;

/// When an upstream is asked over HTTP/2 whether it is still there, while calls wait for it, and how long it may take.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an idle connection is kept, and how many per upstream.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
const MAX_IDLE: usize = 32;

/// Upstreams that have connections at once.
const MAX_UPSTREAMS: usize = 256;

/// One direction's buffer of a tunnel.
const TUNNEL_BUFFER: usize = 16 * 1024;

/// One upstream as calls share it. A connection made for one grant never serves another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    pub(crate) grant: usize,
    pub(crate) host: HostName,
    pub(crate) port: u16,
}

/// Open connections by upstream.
#[derive(Default)]
pub struct Pool {
    slots: Mutex<HashMap<Upstream, Slot>>,
}

#[derive(Default)]
struct Slot {
    idle: Vec<(Instant, Open<http1::SendRequest<UpBody>>)>,
    shared: Option<Open<http2::SendRequest<UpBody>>>,
}

/// A connection and the address that it leads to.
#[derive(Clone)]
struct Open<S> {
    sender: S,
    address: Arc<str>,
}

enum Sender {
    H1(Open<http1::SendRequest<UpBody>>),
    H2(Open<http2::SendRequest<UpBody>>),
}

/// How a call will reach its upstream.
pub struct Way(Inner);

enum Inner {
    Dial(Route),
    Open(Sender),
}

/// A request as it will be sent.
pub struct Outgoing {
    /// Its method.
    pub method: Method,
    /// Its headers, with the secret in them.
    pub headers: HeaderMap,
    /// The path that was decided, with the secret in it where the credential's place is there; `None`: as it was
    /// decided.
    pub path: Option<String>,
    /// Its query, with the secret in it.
    pub query: Option<String>,
    /// Its body.
    pub body: UpBody,
    /// Whether it asks to become a WebSocket.
    pub websocket: bool,
}

/// Gives a connection back once its answer is read.
pub struct Checkin {
    pool: Arc<Pool>,
    upstream: Upstream,
    open: Open<http1::SendRequest<UpBody>>,
}

impl Checkin {
    pub(crate) fn back(self) {
        let mut slots = self.pool.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if !slots.contains_key(&self.upstream) && slots.len() >= MAX_UPSTREAMS {
            slots.retain(|_, slot| {
                slot.idle.retain(|(since, open)| now.duration_since(*since) < IDLE_TIMEOUT && !open.sender.is_closed());
                !slot.idle.is_empty() || slot.shared.as_ref().is_some_and(|open| !open.sender.is_closed())
            });
            if slots.len() >= MAX_UPSTREAMS {
                return;
            }
        }
        let slot = slots.entry(self.upstream).or_default();
        if slot.idle.len() < MAX_IDLE && !self.open.sender.is_closed() {
            slot.idle.push((now, self.open));
        }
    }
}

impl Pool {
    fn checkout(&self, upstream: &Upstream) -> Option<Sender> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get_mut(upstream)?;
        slot.shared.take_if(|open| open.sender.is_closed());
        if let Some(open) = &slot.shared {
            return Some(Sender::H2(open.clone()));
        }
        let now = Instant::now();
        while let Some((since, open)) = slot.idle.pop() {
            if now.duration_since(since) < IDLE_TIMEOUT && !open.sender.is_closed() {
                return Some(Sender::H1(open));
            }
        }
        None
    }

    /// Ends the connections that nobody uses, so that others can be made.
    pub(crate) fn drop_idle(&self) {
        for slot in self.slots.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
            slot.idle.clear();
        }
    }

    fn share(&self, upstream: &Upstream, open: &Open<http2::SendRequest<UpBody>>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.contains_key(upstream) || slots.len() < MAX_UPSTREAMS {
            slots.entry(upstream.clone()).or_default().shared = Some(open.clone());
        }
    }
}

/// Finds how a permitted call will reach its upstream: an open connection, or addresses that may be dialled.
/// Sends nothing to the upstream.
///
/// # Errors
/// [`NoAddress`].
pub async fn way(gate: &Gate, permit: &Permit, host: &HostName, port: u16, fresh: bool) -> Result<Way, NoAddress> {
    let (Some(at), Some(grant)) = (permit.grant(), gate.grant(permit)) else {
        return Err(NoAddress::Failed("the permit names no grant".into()));
    };
    if !fresh {
        let upstream = Upstream { grant: at, host: host.clone(), port };
        if let Some(sender) = gate.pool.checkout(&upstream) {
            return Ok(Way(Inner::Open(sender)));
        }
    }
    gate.dialler.addresses(grant, host, port, &gate.recorder).await.map(|addresses| Way(Inner::Dial(addresses)))
}

/// Sends a permitted request and brings back the head of its answer.
///
/// # Errors
/// What failed, with a stable code before the first colon.
pub async fn send(
    gate: &Gate,
    permit: &Permit,
    way: Way,
    host: &HostName,
    port: u16,
    outgoing: Outgoing,
    call: &Arc<Call>,
) -> Result<(Response<Incoming>, Option<Checkin>), String> {
    let (Some(at), Some(grant), Some(path)) = (permit.grant(), gate.grant(permit), permit.path()) else {
        return Err("permit: it allows no request".into());
    };
    let path = outgoing.path.as_deref().unwrap_or(path);
    let upstream = Upstream { grant: at, host: host.clone(), port };
    let target = match &outgoing.query {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let websocket = outgoing.websocket;
    let mut request = Request::new(outgoing.body);
    *request.method_mut() = outgoing.method;
    *request.headers_mut() = outgoing.headers;
    let mut sender = match way.0 {
        Inner::Open(sender) => match sender.free().await {
            Some(sender) => sender,
            None => dial(gate, grant, &upstream, websocket).await?,
        },
        Inner::Dial(addresses) => open(gate, grant, &upstream, &addresses, websocket).await?,
    };
    let mut retried = false;
    loop {
        address(&mut request, &target, grant.scheme, host, port, &sender)?;
        call.address(Arc::clone(sender.address()));
        let flood = bound_interim(&mut request);
        let answer = async {
            tokio::select! {
                answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.try_send(request)) => answer.ok(),
                () = flood.notified() => None,
            }
        };
        match answer.await {
            None => return Err("answer_timeout: the upstream did not answer, or only with interim answers".into()),
            Some(Ok(response)) => {
                let checkin = match sender {
                    Sender::H1(open) if !websocket => Some(Checkin { pool: Arc::clone(&gate.pool), upstream, open }),
                    _ => None,
                };
                return Ok((response, checkin));
            }
            Some(Err(mut failed)) => match failed.take_message() {
                // An idle connection that the upstream closed meanwhile: nothing of the request was sent.
                Some(unsent) if !retried => {
                    retried = true;
                    request = unsent;
                    sender = dial(gate, grant, &upstream, websocket).await?;
                }
                _ => {
                    let error = failed.into_error();
                    return Err(tls::alert(&error).unwrap_or_else(|| format!("upstream_broke: {}", chain(&error))));
                }
            },
        }
    }
}

/// Says when there were too many interim answers. Over HTTP/2 they are not counted: there [`ANSWER_TIMEOUT`] alone bounds
/// them.
fn bound_interim(request: &mut Request<UpBody>) -> Arc<Notify> {
    let flood = Arc::new(Notify::new());
    let (left, told) = (AtomicUsize::new(MAX_INTERIM), Arc::clone(&flood));
    hyper::ext::on_informational(request, move |_| {
        if left.fetch_sub(1, Ordering::Relaxed) == 0 {
            told.notify_one();
        }
    });
    flood
}

impl Sender {
    fn address(&self) -> &Arc<str> {
        match self {
            Self::H1(open) => &open.address,
            Self::H2(open) => &open.address,
        }
    }

    /// Itself, once it can take a request. Where the answer before came ahead of its request's end, that end may never come.
    async fn free(mut self) -> Option<Self> {
        if let Self::H1(open) = &mut self
            && !open.sender.is_ready()
        {
            // The last byte of the answer before was just read; its task needs one more turn.
            let ready = tokio::time::timeout(Duration::from_millis(200), open.sender.ready()).await;
            ready.ok()?.ok()?;
        }
        Some(self)
    }

    async fn try_send(
        &mut self,
        request: Request<UpBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<UpBody>>> {
        match self {
            Self::H1(open) => open.sender.try_send_request(request).await,
            Self::H2(open) => open.sender.try_send_request(request).await,
        }
    }
}

/// Writes a request's target in the form of the protocol that it goes out by.
fn address(
    request: &mut Request<UpBody>,
    target: &str,
    scheme: Scheme,
    host: &HostName,
    port: u16,
    sender: &Sender,
) -> Result<(), String> {
    let broken = |e: http::Error| format!("request: {e}");
    let authority = authority(scheme, host, port);
    match sender {
        Sender::H1(_) => {
            let value = HeaderValue::try_from(authority).map_err(|e| broken(e.into()))?;
            request.headers_mut().insert(HOST, value);
            request.headers_mut().remove(TE);
            *request.uri_mut() = target.parse::<Uri>().map_err(|e| broken(e.into()))?;
            *request.version_mut() = Version::HTTP_11;
        }
        Sender::H2(_) => {
            request.headers_mut().remove(HOST);
            *request.uri_mut() = Uri::builder()
                .scheme(scheme.word())
                .authority(authority)
                .path_and_query(target)
                .build()
                .map_err(broken)?;
            *request.version_mut() = Version::HTTP_2;
        }
    }
    Ok(())
}

/// A host as requests name it, with the port where that is not its scheme's own.
#[must_use]
pub fn authority(scheme: Scheme, host: &HostName, port: u16) -> String {
    let name = match host {
        HostName::Address(std::net::IpAddr::V6(v6)) => format!("[{v6}]"),
        _ => host.to_string(),
    };
    match (scheme, port) {
        (Scheme::Http, 80) | (Scheme::Https, 443) => name,
        _ => format!("{name}:{port}"),
    }
}

/// Finds an upstream's addresses anew, and dials it.
async fn dial(gate: &Gate, grant: &Grant, upstream: &Upstream, websocket: bool) -> Result<Sender, String> {
    let found = gate.dialler.addresses(grant, &upstream.host, upstream.port, &gate.recorder).await;
    let route = found.map_err(|none| match none {
        NoAddress::Denied(denial) => format!("{}: {}", denial.code, denial.why),
        NoAddress::Failed(why) => why,
    })?;
    open(gate, grant, upstream, &route, websocket).await
}

/// Dials an upstream and makes ready to speak HTTP with it.
async fn open(
    gate: &Gate,
    grant: &Grant,
    upstream: &Upstream,
    route: &Route,
    websocket: bool,
) -> Result<Sender, String> {
    let (stream, address) = gate.dialler.connect(route).await?;
    if grant.scheme == Scheme::Http {
        return http1_over(stream, address).await.map(Sender::H1);
    }
    let offer = if websocket { Offer::Http1 } else { Offer::Any };
    let config = gate.trust.client(upstream.grant, offer).ok_or("tls_failed: no trust anchors")?;
    let name = tls::server_name(&upstream.host).ok_or("tls_failed: the host has no name for TLS")?;
    let stream = match tokio::time::timeout(TLS_TIMEOUT, TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(tls::failure(&error)),
        Err(_) => return Err("tls_failed: timed out".into()),
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_ANSWER_HEADERS)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(Gather::new(stream)))
            .await
            .map_err(|e| format!("upstream_broke: {}", chain(&e)))?;
        tokio::spawn(connection);
        let open = Open { sender, address };
        gate.pool.share(upstream, &open);
        return Ok(Sender::H2(open));
    }
    http1_over(Gather::new(stream), address).await.map(Sender::H1)
}

async fn http1_over<S>(stream: S, address: Arc<str>) -> Result<Open<http1::SendRequest<UpBody>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_ANSWER_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| format!("upstream_broke: {}", chain(&e)))?;
    tokio::spawn(connection.with_upgrades());
    Ok(Open { sender, address })
}

/// Sends a person's request to the agent. The permit is for ingress.
///
/// # Errors
/// What failed, with a stable code before the first colon.
pub async fn send_inward<S: Sockets>(
    pool: &Arc<Pool>,
    permit: Permit,
    agent: &Agent<S>,
    mut request: Request<UpBody>,
    websocket: bool,
) -> Result<(Response<Incoming>, Option<Checkin>), String> {
    if permit.reason() != "ingress" {
        return Err("permit: it does not allow ingress".into());
    }
    let kept = match pool.checkout(&agent.upstream).filter(|_| !websocket) {
        Some(sender) => sender.free().await,
        None => None,
    };
    let mut sender = match kept {
        Some(sender) => sender,
        None => agent.dial().await?,
    };
    let mut retried = false;
    loop {
        match sender.try_send(request).await {
            Ok(response) => {
                let checkin = match sender {
                    Sender::H1(open) if !websocket => {
                        Some(Checkin { pool: Arc::clone(pool), upstream: agent.upstream.clone(), open })
                    }
                    _ => None,
                };
                return Ok((response, checkin));
            }
            Err(mut failed) => match failed.take_message() {
                Some(unsent) if !retried => {
                    retried = true;
                    request = unsent;
                    sender = agent.dial().await?;
                }
                _ => return Err(format!("agent_broke: {}", chain(&failed.into_error()))),
            },
        }
    }
}

/// The agent's own port, as people's requests reach it.
pub struct Agent<S> {
    pub(crate) upstream: Upstream,
    pub(crate) address: SocketAddr,
    pub(crate) sockets: S,
}

impl<S: Sockets> Agent<S> {
    async fn dial(&self) -> Result<Sender, String> {
        let unreachable = |e: std::io::Error| format!("agent_unreachable: {e}");
        let socket = self.sockets.socket().await.map_err(unreachable)?;
        let stream = socket.connect(self.address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        http1_over(stream, "agent".into()).await.map(Sender::H1)
    }
}

/// Whether a header is between two neighbours, whether `Connection` names it or not. Of `TE`, its value decides.
fn is_between_neighbours(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "http2-settings"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Takes away what is between two neighbours only.
///
/// # Source
/// RFC 9110 §7.6.1.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let mut taken: Vec<HeaderName> = headers.keys().filter(|name| is_between_neighbours(name)).cloned().collect();
    if taken.is_empty() {
        return;
    }
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok());
    // Nobody may talk the gate into dropping what was decided or injected, or what frames the message.
    taken.extend(named.filter(|name| name != HOST && name != CONTENT_LENGTH));
    let trailers = headers.get(TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in taken {
        if name != TE || !trailers {
            headers.remove(name);
        }
    }
}

/// Why something that ran on ends.
pub(crate) const REVOKED: &str = "revoked: the policy that is in force now does not allow it";

/// Relays TLS that stays closed. The permit must be for just that.
///
/// # Errors
/// What failed, with a stable code before the first colon.
pub async fn passthrough<S>(
    gate: &Gate,
    permit: Permit,
    way: Way,
    agent: S,
    call: &Call,
    account: Option<&Account>,
) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (Inner::Dial(addresses), Some(_)) = (way.0, gate.grant(&permit)) else {
        return Err("permit: it allows no connection".into());
    };
    let (upstream, address) = gate.dialler.connect(&addresses).await?;
    call.address(address);
    tunnel(agent, upstream, call, account).await
}

/// Relays bytes both ways until both sides are done.
///
/// # Errors
/// What failed, with a stable code before the first colon.
pub async fn tunnel<A, B>(agent: A, upstream: B, call: &Call, account: Option<&Account>) -> Result<(), String>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut agent_read, mut agent_write) = tokio::io::split(agent);
    let (mut upstream_read, mut upstream_write) = tokio::io::split(upstream);
    let spend = |count| match account {
        Some(account) if !account.bytes(count) => Err("budget_exhausted: no bytes are left".to_owned()),
        _ => Ok(()),
    };
    let up = async {
        let mut buffer = vec![0; TUNNEL_BUFFER];
        loop {
            let count = agent_read.read(&mut buffer).await.map_err(|e| format!("tunnel_up: {e}"))?;
            if count == 0 {
                return upstream_write.shutdown().await.map_err(|e| format!("tunnel_up: {e}"));
            }
            let bytes = buffer.get(..count).unwrap_or_default();
            upstream_write.write_all(bytes).await.map_err(|e| format!("tunnel_up: {e}"))?;
            call.sent(count);
            spend(count)?;
        }
    };
    let down = async {
        let mut buffer = vec![0; TUNNEL_BUFFER];
        loop {
            let count = upstream_read.read(&mut buffer).await.map_err(|e| format!("tunnel_down: {e}"))?;
            let bytes = buffer.get(..count).unwrap_or_default();
            agent_write.write_all(bytes).await.map_err(|e| format!("tunnel_down: {e}"))?;
            call.received(count);
            spend(count)?;
            if count == 0 {
                return agent_write.shutdown().await.map_err(|e| format!("tunnel_down: {e}"));
            }
        }
    };
    let done = tokio::try_join!(up, down).map(drop);
    if let Some(account) = account {
        account.settle(Amounts::CALL);
    }
    done
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_neighbours_is_taken_away_and_no_more() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, X-Private, authorization2, host, content-length"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("host", "a"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ] {
            headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host", "te"]);
    }
}
