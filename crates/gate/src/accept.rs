//! Phase one: a connection comes in, whatever its destination.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ringfence_audit::Direction;
use ringfence_model::HostName;
use ringfence_model::manifest::{self as spoken, Scheme, TlsMode, Trust};
use ringfence_policy::{Denial, Policy};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;

use crate::budget::{Amounts, Behalf};
use crate::call::{self, Line};
use crate::dial::NoAddress;
use crate::identify::{self, ClientHello, Speech};
use crate::record::Subject;
use crate::resolver::Meaning;
use crate::stream::{Gather, ReadAhead};
use crate::{Gate, decide, postgres, proxy, relay, resolver, ssh, tcp};

/// How long a client may take to say its first words. Servers of some protocols speak first; those end here.
const FIRST_WORDS: Duration = Duration::from_secs(8);

/// How long a client may take over a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a client may take over the head of a request; idle connections end so too.
pub(crate) const HEAD: Duration = Duration::from_secs(75);

/// The largest request head.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The headers of a request over HTTP/2, as their sum is counted there.
const MAX_HEADERS: u32 = 64 * 1024;

/// Requests at once on a connection of HTTP/2.
const MAX_STREAMS: u32 = 128;

/// What an agent may send ahead on one stream, and on all of a connection. There is no distance between agent and gate that
/// a larger one would bridge; but the library also takes it for how many small frames may wait.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 512 * 1024;

/// What is held of an answer that the agent does not read, on a stream.
const MAX_UNSENT_BYTES: usize = 64 * 1024;

/// Streams that an agent reset before they were looked at; beyond it the connection ends.
///
/// # Source
/// CVE-2023-44487.
const MAX_RESET_STREAMS: usize = 20;

/// Malformed requests on a connection of HTTP/2; beyond it the connection ends.
const MAX_MALFORMED_STREAMS: usize = 64;

/// TLS alert: fatal, `access_denied`.
///
/// # Source
/// RFC 8446 §6.2.
const ACCESS_DENIED: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 49];

/// How the original destination of a connection is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// The listener gets connections for one destination only.
    Fixed(SocketAddr),
    /// The listener gets every connection; its local address is where it was meant to go.
    Transparent,
}

/// A connection that came in.
struct Arrival {
    stream: TcpStream,
    destination: SocketAddr,
}

/// Accepts connections for ever.
///
/// # Errors
/// If the listener breaks.
pub async fn serve(gate: Arc<Gate>, listener: TcpListener, capture: Capture) -> io::Result<()> {
    loop {
        let Ok(permit) = Arc::clone(&gate.connections).acquire_owned().await else { return Ok(()) };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let destination = match capture {
            Capture::Fixed(destination) => Ok(destination),
            Capture::Transparent => stream.local_addr(),
        };
        let Ok(destination) = destination else { continue };
        let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            handle(gate, Arrival { stream, destination }).await;
            drop(permit);
        });
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

async fn handle(gate: Arc<Gate>, arrival: Arrival) {
    let Arrival { stream, destination } = arrival;
    let gate = gate.latest();
    if destination.port() == 53 {
        // The end of a DNS connection, however it comes, is nobody's concern.
        let _ = resolver::serve_stream(&gate, stream).await;
        return;
    }
    if proxy::is_at(destination) {
        return proxy::serve(gate, stream).await;
    }
    let meaning = gate.names.meaning(destination.ip());
    let shown = match &meaning {
        Meaning::Address(host) | Meaning::Name(host) => host.to_string(),
        Meaning::Nothing => destination.ip().to_string(),
    };
    converse(gate, stream, Toward { meaning, shown, port: destination.port() }).await;
}

/// Where a connection means to go, whichever way it came in.
pub(crate) struct Toward {
    pub(crate) meaning: Meaning,
    /// How the log tells it.
    pub(crate) shown: String,
    pub(crate) port: u16,
}

/// Hears what a connection has to say, and serves what may be served.
pub(crate) async fn converse<S>(gate: Arc<Gate>, mut stream: S, to: Toward)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Meaning::Address(host) | Meaning::Name(host) = &to.meaning
        && let Some((_, grant)) = gate.policy.other_than_http(host, to.port)
    {
        let (host, protocol) = (host.clone(), grant.protocol.clone());
        return other(gate, stream, host, to.port, &protocol).await;
    }
    let (speech, first) = listen(&mut stream).await;
    let stream = ReadAhead::new(stream, first);
    let Toward { meaning, shown, port } = to;
    match (speech, meaning) {
        (Speech::Unknown(why), _) => {
            deny(&gate, "tcp", shown, port, &Denial::new("protocol_unknown", why)).await;
        }
        (Speech::Tls(hello), meaning) => tls(gate, stream, hello, Toward { meaning, shown, port }).await,
        (_, Meaning::Nothing) => {
            let denial = Denial::new("unknown_address", "no name was given this address");
            deny(&gate, "tcp", shown, port, &denial).await;
        }
        (speech, Meaning::Address(host) | Meaning::Name(host)) => {
            let protocol = if speech == Speech::Http2 { Protocol::H2 } else { Protocol::Http1 };
            http(Line { gate, host, port, scheme: Scheme::Http }, stream, protocol).await;
        }
    }
}

/// Serves a connection of which a grant says what is spoken. Nothing is waited for: the server may speak first.
async fn other<S>(gate: Arc<Gate>, stream: S, host: HostName, port: u16, protocol: &spoken::Protocol)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match protocol {
        // No grant for HTTP is a route of this kind.
        spoken::Protocol::Http => {}
        spoken::Protocol::Postgres(_) => postgres::serve(gate, stream, host, port).await,
        spoken::Protocol::Ssh(_) => ssh::serve(gate, stream, host, port).await,
        spoken::Protocol::Tcp(_) => tcp::serve(gate, stream, host, port).await,
    }
}

/// What a connection speaks, and the bytes that say so.
pub(crate) async fn listen<S: AsyncRead + Unpin>(stream: &mut S) -> (Speech, Bytes) {
    match tokio::time::timeout(FIRST_WORDS, first_words(stream)).await {
        Ok(Ok(heard)) => heard,
        Ok(Err(_)) => (Speech::Unknown("it broke off before it said anything"), Bytes::new()),
        Err(_) => (Speech::Unknown("the client waits for the server to speak"), Bytes::new()),
    }
}

/// Reads until it is clear what is spoken.
async fn first_words<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(Speech, Bytes)> {
    let mut bytes = BytesMut::with_capacity(2048);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            let why = if bytes.is_empty() { "it closed without a word" } else { "it broke off in its first words" };
            return Ok((Speech::Unknown(why), bytes.freeze()));
        }
        match identify::speech(&bytes) {
            Speech::More => {}
            speech => return Ok((speech, bytes.freeze())),
        }
    }
}

async fn tls<S>(gate: Arc<Gate>, stream: ReadAhead<S>, hello: ClientHello, to: Toward)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Toward { meaning, shown, port } = to;
    let denied = match whom(&hello, &meaning) {
        Ok(host) => match gate.decisions.connection(&gate.policy, &host, port, Scheme::Https).map_or_else(
            |denial| Err(identify::renamed(denial, port)),
            |mode| identify::hello(&hello, mode, port, gate.barriers),
        ) {
            Ok(TlsMode::Inspect) => return intercept(gate, stream, &hello, host, port).await,
            Ok(TlsMode::Passthrough) => return pass_through(gate, stream, host, port).await,
            Err(denial) => (host.to_string(), denial),
        },
        Err(denial) => (hello.server_name.unwrap_or(shown), denial),
    };
    deny(&gate, "tls", denied.0, port, &denied.1).await;
    refuse_tls(stream).await;
}

/// The host that a TLS connection is for, if server name and destination agree.
fn whom(hello: &ClientHello, meaning: &Meaning) -> Result<HostName, Denial> {
    let mismatch = |why: String| Err(Denial::new("host_mismatch", why));
    match (meaning, &hello.server_name) {
        (Meaning::Nothing, _) => Err(Denial::new("unknown_address", "no name was given this address")),
        (Meaning::Name(host), None) => {
            Err(Denial::new("no_sni", format!("the connection was made for {host}, and TLS names no server")))
        }
        (Meaning::Address(address), None) => Ok(address.clone()),
        (Meaning::Name(host), Some(name)) => match name.parse::<HostName>() {
            Ok(named) if named == *host => Ok(named),
            _ => mismatch(format!("TLS names `{name}`, but the connection was made for {host}")),
        },
        (Meaning::Address(address), Some(name)) => {
            mismatch(format!("TLS names `{name}`, but the connection was made for the address {address}"))
        }
    }
}

/// Opens TLS as the host would, and serves what is inside.
async fn intercept<S>(gate: Arc<Gate>, stream: ReadAhead<S>, hello: &ClientHello, host: HostName, port: u16)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = match gate.authority.server_config(&host) {
        Ok(config) => config,
        Err(error) => {
            let denial = Denial::new("no_certificate", relay::chain(&error));
            return deny(&gate, "tls", host.to_string(), port, &denial).await;
        }
    };
    let handshake = async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        // Two parsers read this name; were they to disagree, the wrong one might have been decided about.
        if start.client_hello().server_name() != hello.server_name.as_deref().map(str::to_ascii_lowercase).as_deref() {
            return Err(io::Error::other("the server name can be read in two ways"));
        }
        start.into_stream(config).await
    };
    let failed = match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => {
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let protocol = if h2 { Protocol::H2 } else { Protocol::Http1 };
            return http(Line { gate, host, port, scheme: Scheme::Https }, Gather::new(stream), protocol).await;
        }
        Ok(Err(error)) => format!("the agent's TLS handshake failed: {error}"),
        Err(_) => "the agent's TLS handshake took too long".to_owned(),
    };
    deny(&gate, "tls", host.to_string(), port, &Denial::new("tls_handshake", failed)).await;
}

/// Relays TLS that stays closed.
async fn pass_through<S>(gate: Arc<Gate>, stream: ReadAhead<S>, host: HostName, port: u16)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    const PROTOCOL: &str = "tls-passthrough";
    let permit = match decide::passthrough(&gate.policy, &host, port) {
        Ok(permit) => permit,
        Err(denial) => {
            deny(&gate, PROTOCOL, host.to_string(), port, &denial).await;
            return refuse_tls(stream).await;
        }
    };
    let way = match relay::way(&gate, &permit, &host, port, true).await {
        Err(NoAddress::Denied(denial)) => {
            deny(&gate, PROTOCOL, host.to_string(), port, &denial).await;
            return refuse_tls(stream).await;
        }
        Err(NoAddress::Failed(why)) => Err(why),
        Ok(way) => Ok(way),
    };
    let subject = Subject {
        direction: Direction::Egress,
        protocol: PROTOCOL,
        host: host.to_string(),
        port,
        method: None,
        path: None,
        model: None,
        llm: None,
        rpc: Vec::new(),
        after: None,
        trace: None,
        sql: None,
        git: None,
    };
    let account = match call::account(&gate, Amounts::CALL, Behalf::default()).await {
        Ok(account) => account,
        Err(spent) => {
            deny(&gate, PROTOCOL, host.to_string(), port, &Denial::new("budget_exhausted", spent.why())).await;
            return refuse_tls(stream).await;
        }
    };
    let untrusted = gate.grant(&permit).is_some_and(|grant| grant.trust == Trust::Untrusted);
    let Ok(call) = gate.recorder.allow(subject, &permit, untrusted).await else { return refuse_tls(stream).await };
    let done = match way {
        Ok(way) => {
            let allows = |policy: &Policy| decide::passthrough(policy, &host, port).is_ok();
            tokio::select! {
                done = relay::passthrough(&gate, permit, way, stream, &call, account.as_deref()) => done,
                () = gate.until_denied(allows) => Err(relay::REVOKED.to_owned()),
            }
        }
        Err(why) => Err(why),
    };
    if let Err(why) = done {
        call.failed(why);
    }
}

/// Says no in the words of TLS.
async fn refuse_tls<S: AsyncRead + AsyncWrite + Unpin>(mut stream: ReadAhead<S>) {
    // The client may be gone already; then there is nobody to tell.
    let _ = stream.write_all(&ACCESS_DENIED).await;
    let _ = stream.shutdown().await;
}

pub(crate) async fn deny(gate: &Gate, protocol: &'static str, host: String, port: u16, denial: &Denial) {
    gate.recorder.deny(Subject::connection(protocol, host, port), denial).await;
}

/// What HTTP is spoken on a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    H2,
    Http1,
}

/// Comes to an end if nothing was asked in time. HTTP/2 has no bound of its own on its preface or on the first request.
async fn silence(spoke: &AtomicBool, patience: Duration) {
    tokio::time::sleep(patience).await;
    if spoke.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Serves HTTP; every request is decided by itself.
async fn http<S>(line: Line, stream: S, protocol: Protocol)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let line = Arc::new(line);
    let spoke = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&spoke);
    let service = service_fn(move |request| {
        let line = Arc::clone(&line);
        heard.store(true, Ordering::Relaxed);
        async move { Ok::<_, std::convert::Infallible>(call::answer(&line, request).await) }
    });
    let io = TokioIo::new(stream);
    let served = match protocol {
        Protocol::H2 => {
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEADERS)
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(MAX_UNSENT_BYTES)
                .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
                .max_local_error_reset_streams(MAX_MALFORMED_STREAMS)
                .enable_connect_protocol()
                .keep_alive_interval(HEAD)
                .auto_date_header(false)
                .serve_connection(io, service);
            tokio::select! {
                served = serving => served,
                () = silence(&spoke, HEAD) => Ok(()),
            }
        }
        Protocol::Http1 => {
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(MAX_HEAD_BYTES)
                .half_close(true)
                .auto_date_header(false)
                .serve_connection(io, service)
                .with_upgrades()
                .await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the agent ended");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn who_asks_nothing_does_not_stay() {
        silence(&AtomicBool::new(false), Duration::ZERO).await;
        let spoke = AtomicBool::new(true);
        let mut stays = std::pin::pin!(silence(&spoke, Duration::ZERO));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(stays.as_mut().now_or_never().is_none());
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(stays.now_or_never().is_none(), "whoever asked something does");
    }
}
