//! Clients that insist on a proxy: `HTTP_PROXY`, `ALL_PROXY`. The gate answers to a name of its own, and there to requests
//! for whole URLs, to `CONNECT`, and to SOCKS5.
//!
//! Nothing is easier this way. A request for a URL is decided as any other; what is inside a tunnel is taken for a fresh
//! connection to the name and port that it was opened for, and must say what it is. A tunnel is opened only where a grant
//! could allow something.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use ringfence_model::HostName;
use ringfence_model::manifest::{Scheme, TlsMode};
use ringfence_policy::Denial;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Gate;
use crate::accept::{self, HEAD, MAX_HEAD_BYTES, Toward};
use crate::body::DownBody;
use crate::call::{self, Line};
use crate::identify::{self, Speech};
use crate::record::Subject;
use crate::refuse::{Form, Told};
use crate::resolver::Meaning;
use crate::stream::ReadAhead;

/// The name that the gate has for itself.
pub const NAME: &str = "proxy.ringfence.internal";

/// The address of [`NAME`]: a synthetic one, below those that are given to granted names.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// The port that a proxy is expected at.
pub const PORT: u16 = 3128;

/// How long a client may take over the words of SOCKS.
const NEGOTIATION: Duration = Duration::from_secs(10);

/// Whether a connection is to the gate itself.
#[must_use]
pub fn is_at(destination: SocketAddr) -> bool {
    destination == SocketAddr::from((ADDRESS, PORT))
}

/// Whether a host is the gate itself.
#[must_use]
pub fn is_named(host: &HostName) -> bool {
    match host {
        HostName::Address(address) => address.to_canonical() == IpAddr::V4(ADDRESS),
        HostName::Name(name) => name == NAME,
    }
}

/// Serves a connection to the gate itself.
pub(crate) async fn serve(gate: Arc<Gate>, stream: TcpStream) {
    let mut first = [0];
    match tokio::time::timeout(NEGOTIATION, stream.peek(&mut first)).await {
        Ok(Ok(1)) if first == [4] || first == [5] => socks(gate, stream).await,
        _ => http(gate, stream).await,
    }
}

/// What a host means that a client names to the proxy; an address may be one that stands for a name.
fn meant(gate: &Gate, host: &HostName) -> Result<(HostName, Meaning), Denial> {
    if is_named(host) {
        return Err(Denial::new("proxy_loop", "the gate is asked to lead to itself"));
    }
    let meaning = match host {
        HostName::Address(address) => gate.names.meaning(*address),
        HostName::Name(_) => Meaning::Name(host.clone()),
    };
    match &meaning {
        Meaning::Nothing => Err(Denial::new("unknown_address", "no name was given this address")),
        Meaning::Address(whom) | Meaning::Name(whom) => Ok((whom.clone(), meaning)),
    }
}

/// Where a tunnel leads, if a grant could allow anything in it.
fn toward(gate: &Gate, host: &HostName, port: u16) -> Result<Toward, Denial> {
    let (whom, meaning) = meant(gate, host)?;
    if gate.policy.other_than_http(&whom, port).is_some() {
        return Ok(Toward { meaning, shown: whom.to_string(), port });
    }
    let could = |scheme| gate.decisions.connection(&gate.policy, &whom, port, scheme);
    could(Scheme::Https).or_else(|denial| could(Scheme::Http).map_err(|_| denial))?;
    Ok(Toward { meaning, shown: whom.to_string(), port })
}

/// A tunnel that is to be opened once its answer is out.
type Slot = Mutex<Option<(OnUpgrade, Toward)>>;

/// Serves requests, and at most one tunnel after them.
async fn http(gate: Arc<Gate>, mut stream: TcpStream) {
    let (speech, first) = accept::listen(&mut stream).await;
    let why = match speech {
        Speech::Http1 => None,
        Speech::Unknown(why) => Some(why),
        Speech::Http2 | Speech::More | Speech::Tls(_) => Some("a proxy is spoken to in HTTP/1.1 or SOCKS5"),
    };
    if let Some(why) = why {
        let denial = Denial::new("protocol_unknown", why);
        return accept::deny(&gate, "proxy", NAME.to_owned(), PORT, &denial).await;
    }
    let tunnel = Arc::new(Slot::default());
    let service = service_fn(|request| {
        let (gate, tunnel) = (Arc::clone(&gate), Arc::clone(&tunnel));
        async move { Ok::<_, std::convert::Infallible>(answer(&gate, &tunnel, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD_BYTES)
        .half_close(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(ReadAhead::new(stream, first)), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the proxy ended");
        return;
    }
    let opened = tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, to)) = opened
        && let Ok(inside) = upgrade.await
    {
        accept::converse(gate.latest(), TokioIo::new(inside), to).await;
    }
}

/// Answers a request to a proxy.
async fn answer(gate: &Arc<Gate>, tunnel: &Slot, request: Request<Incoming>) -> Response<DownBody> {
    let gate = &gate.latest();
    let form = Form::of(request.headers());
    let (mut parts, body) = request.into_parts();
    let asked = if parts.method == Method::CONNECT { connect(gate, &parts) } else { url(gate, &parts) };
    match asked {
        Ok(Asked::Tunnel(to)) => {
            let upgrade = parts.extensions.remove::<OnUpgrade>();
            *tunnel.lock().unwrap_or_else(PoisonError::into_inner) = upgrade.map(|upgrade| (upgrade, to));
            Response::new(DownBody::Own(None))
        }
        Ok(Asked::Url { host, port, scheme, target }) => {
            parts.uri = target;
            let line = Line { gate: Arc::clone(gate), host, port, scheme };
            call::answer(&line, Request::from_parts(parts, body)).await
        }
        Err(refused) => {
            let mut subject = Subject::connection("proxy", refused.host, refused.port);
            subject.method = Some(parts.method.as_str().to_owned());
            let id = gate.recorder.deny(subject, &refused.denial).await;
            Told::Denied.answer(form, Some(&id))
        }
    }
}

/// What a client asks of a proxy.
enum Asked {
    Tunnel(Toward),
    Url { host: HostName, port: u16, scheme: Scheme, target: Uri },
}

/// What a client asks in vain, and of whom.
struct Refused {
    host: String,
    port: u16,
    denial: Denial,
}

impl Refused {
    fn form(said: &str, why: &'static str) -> Self {
        let host = said.chars().take(253).collect();
        Self { host, port: 0, denial: Denial::new("proxy_form", why) }
    }
}

/// # Source
/// RFC 9110 §9.3.6.
fn connect(gate: &Gate, parts: &Parts) -> Result<Asked, Refused> {
    let said = parts.uri.authority().map_or("", Authority::as_str);
    if parts.uri.scheme().is_some() || parts.uri.path_and_query().is_some() || said.contains('@') {
        return Err(Refused::form(said, "CONNECT names more than a host and a port"));
    }
    let named = parts.uri.authority().and_then(|a| Some((a.host().parse::<HostName>().ok()?, a.port_u16()?)));
    let Some((host, port)) = named else {
        return Err(Refused::form(said, "CONNECT names no host and port"));
    };
    let refused = |denial| Refused { host: host.to_string(), port, denial };
    if parts.headers.contains_key(CONTENT_LENGTH) || parts.headers.contains_key(TRANSFER_ENCODING) {
        let denial = Denial::new("framing_ambiguous", "CONNECT has no content, and a length is named");
        return Err(refused(denial));
    }
    if let Some(other) = parts
        .headers
        .get_all(HOST)
        .iter()
        .find(|value| !value.to_str().is_ok_and(|text| identify::names(text, &host, port)))
    {
        let other: String = String::from_utf8_lossy(other.as_bytes()).chars().take(120).collect();
        let why = format!("CONNECT is to {host}:{port}, and its `Host` is `{other}`");
        return Err(refused(Denial::new("host_mismatch", why)));
    }
    toward(gate, &host, port).map(Asked::Tunnel).map_err(refused)
}

/// # Source
/// RFC 9112 §3.2.2.
fn url(gate: &Gate, parts: &Parts) -> Result<Asked, Refused> {
    let (Some(scheme), Some(authority)) = (parts.uri.scheme_str(), parts.uri.authority()) else {
        return Err(Refused::form(NAME, "a request to a proxy names a whole URL"));
    };
    let said = authority.as_str();
    let (scheme, usual) = match scheme {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        _ => return Err(Refused::form(said, "the URL's scheme is neither http nor https")),
    };
    if said.contains('@') {
        return Err(Refused::form(said, "the URL names a user"));
    }
    let Ok(host) = authority.host().parse::<HostName>() else {
        return Err(Refused::form(said, "the URL names no host"));
    };
    // A port that is no number would else be the usual one here, and something else elsewhere.
    let bare = said == authority.host();
    let Some(port) = authority.port_u16().or(bare.then_some(usual)).filter(|port| *port > 0) else {
        return Err(Refused::form(said, "the URL's port is none"));
    };
    let refused = |denial| Refused { host: host.to_string(), port, denial };
    let (whom, _) = meant(gate, &host).map_err(refused)?;
    if scheme == Scheme::Https
        && let Ok(TlsMode::Passthrough) = gate.decisions.connection(&gate.policy, &whom, port, scheme)
    {
        let why = "the grant is for TLS that stays closed, and the gate would have to open it";
        return Err(refused(Denial::new("no_grant", why)));
    }
    let target = Uri::from(parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/")));
    Ok(Asked::Url { host: whom, port, scheme, target })
}

/// Replies of SOCKS5.
///
/// # Source
/// RFC 1928 §6.
mod reply {
    pub(super) const SUCCEEDED: u8 = 0;
    pub(super) const FAILED: u8 = 1;
    pub(super) const NOT_ALLOWED: u8 = 2;
    pub(super) const COMMAND_UNSUPPORTED: u8 = 7;
    pub(super) const ADDRESS_UNSUPPORTED: u8 = 8;
}

/// SOCKS4: request rejected.
const SOCKS4_REJECTED: [u8; 8] = [0, 0x5b, 0, 0, 0, 0, 0, 0];

/// Why a negotiation in SOCKS came to nothing, and what the client is told.
#[derive(Debug)]
struct Unmet {
    told: Vec<u8>,
    code: &'static str,
    why: &'static str,
}

/// Serves a connection that speaks SOCKS.
async fn socks(gate: Arc<Gate>, mut stream: TcpStream) {
    let asked = tokio::time::timeout(NEGOTIATION, socks_request(&mut stream)).await;
    let refused = match asked {
        Ok(Ok(Ok((host, port)))) => match toward(&gate, &host, port) {
            Ok(to) => {
                if stream.write_all(&socks_reply(reply::SUCCEEDED)).await.is_ok() {
                    accept::converse(gate, stream, to).await;
                }
                return;
            }
            Err(denial) => (host.to_string(), port, denial, socks_reply(reply::NOT_ALLOWED)),
        },
        Ok(Ok(Err(unmet))) => (NAME.to_owned(), PORT, Denial::new(unmet.code, unmet.why), unmet.told),
        Ok(Err(_)) => (NAME.to_owned(), PORT, Denial::new("protocol_unknown", "it broke off in SOCKS"), Vec::new()),
        Err(_) => (NAME.to_owned(), PORT, Denial::new("protocol_unknown", "its SOCKS took too long"), Vec::new()),
    };
    let (host, port, denial, told) = refused;
    // The client may be gone already; then there is nobody to tell.
    let _ = stream.write_all(&told).await;
    let _ = stream.shutdown().await;
    accept::deny(&gate, "socks", host, port, &denial).await;
}

/// Hears what a client of SOCKS wants. Reads no byte beyond it.
///
/// # Source
/// RFC 1928 §3 to §5.
async fn socks_request<S>(stream: &mut S) -> io::Result<Result<(HostName, u16), Unmet>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let unmet = |told: u8, code, why| Ok(Err(Unmet { told: socks_reply(told), code, why }));
    if stream.read_u8().await? != 5 {
        stream.read_exact(&mut [0; 7]).await?;
        let why = "it speaks SOCKS4, which is not served";
        return Ok(Err(Unmet { told: SOCKS4_REJECTED.to_vec(), code: "protocol_unknown", why }));
    }
    let mut methods = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&0) {
        let why = "its SOCKS offers no method without authentication";
        return Ok(Err(Unmet { told: vec![5, 0xff], code: "protocol_unknown", why }));
    }
    stream.write_all(&[5, 0]).await?;
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [version, command, reserved, kind] = head;
    if version != 5 || reserved != 0 {
        return unmet(reply::FAILED, "protocol_unknown", "its SOCKS is malformed");
    }
    let host = match kind {
        1 => {
            let mut address = [0; 4];
            stream.read_exact(&mut address).await?;
            Some(HostName::from_address(IpAddr::from(address)))
        }
        3 => {
            let mut name = vec![0; usize::from(stream.read_u8().await?)];
            stream.read_exact(&mut name).await?;
            String::from_utf8(name).ok().and_then(|name| name.parse().ok())
        }
        4 => {
            let mut address = [0; 16];
            stream.read_exact(&mut address).await?;
            Some(HostName::from_address(Ipv6Addr::from(address).to_canonical()))
        }
        _ => {
            return unmet(reply::ADDRESS_UNSUPPORTED, "protocol_unknown", "its SOCKS names an unknown kind of address");
        }
    };
    let port = stream.read_u16().await?;
    if command != 1 {
        let why = "its SOCKS asks for something else than CONNECT";
        return unmet(reply::COMMAND_UNSUPPORTED, "socks_command", why);
    }
    match host {
        Some(host) => Ok(Ok((host, port))),
        None => unmet(reply::ADDRESS_UNSUPPORTED, "protocol_unknown", "its SOCKS names no host"),
    }
}

/// A reply that tells no address.
fn socks_reply(code: u8) -> Vec<u8> {
    vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    /// What a client that says this is taken to want; `Err` if it broke off, or what it is told.
    fn heard(words: &[u8]) -> Result<(String, u16), Vec<u8>> {
        let (mut client, mut gate) = tokio::io::duplex(4096);
        let said = async {
            client.write_all(words).await.unwrap();
            client.shutdown().await.unwrap();
        };
        said.now_or_never().unwrap();
        match socks_request(&mut gate).now_or_never().expect("waits for nothing but bytes") {
            Ok(Ok((host, port))) => Ok((host.to_string(), port)),
            Ok(Err(unmet)) => Err(unmet.told),
            Err(_) => Err(Vec::new()),
        }
    }

    fn request(head: &[u8], address: &[u8]) -> Vec<u8> {
        [&[5, 2, 2, 0], head, address, &[1, 187]].concat()
    }

    #[test]
    fn socks5_is_understood() {
        let named = [&[11][..], b"example.org"].concat();
        let six = "2001:db8::1".parse::<Ipv6Addr>().unwrap().octets();
        let mapped = Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets();
        for (kind, address, want) in [
            (1, &[192, 0, 2, 1][..], "192.0.2.1"),
            (3, &named, "example.org"),
            (3, &[&[9][..], b"192.0.2.1"].concat(), "192.0.2.1"),
            (4, &six, "2001:db8::1"),
            (4, &mapped, "192.0.2.1"),
        ] {
            assert_eq!(heard(&request(&[5, 1, 0, kind], address)), Ok((want.to_owned(), 443)));
        }
        for (words, told) in [
            (request(&[5, 2, 0, 3], &named), socks_reply(7)),
            (request(&[5, 3, 0, 3], &named), socks_reply(7)),
            (request(&[5, 1, 0, 9], &named), socks_reply(8)),
            (request(&[5, 1, 0, 3], &[3, b'a', b' ', b'b']), socks_reply(8)),
            (request(&[5, 1, 0, 3], &[5, b'1', b'2', b'7', b'.', b'1']), socks_reply(8)),
            (request(&[4, 1, 0, 3], &named), socks_reply(1)),
            (vec![5, 1, 2], vec![5, 0xff]),
            (vec![5, 0], vec![5, 0xff]),
            (vec![4, 1, 0, 80, 0, 0, 0, 1, b'x', 0], SOCKS4_REJECTED.to_vec()),
            (vec![5, 1, 0, 5, 1, 0, 3, 200, b'a'], Vec::new()),
        ] {
            assert_eq!(heard(&words), Err(told), "{words:?}");
        }
    }

    #[test]
    fn the_gate_knows_itself() {
        assert!(is_at("198.18.0.1:3128".parse().unwrap()) && !is_at("198.18.0.1:80".parse().unwrap()));
        for (host, itself) in [
            ("proxy.ringfence.internal", true),
            ("PROXY.ringfence.internal.", true),
            ("198.18.0.1", true),
            ("::ffff:198.18.0.1", true),
            ("198.18.1.1", false),
            ("ringfence.internal", false),
        ] {
            assert_eq!(is_named(&host.parse().unwrap()), itself, "{host}");
        }
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(words in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = heard(&words);
            let _ = heard(&[&[5, 1, 0, 5][..], &words].concat());
        }
    }
}
