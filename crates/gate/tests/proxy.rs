//! Clients that insist on a proxy: the same calls by another way, and the ways around that it must not open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::net::SocketAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, RecordType};
use http::{Request, StatusCode, Version};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringfence_audit::Outcome;
use ringfence_gate::proxy::{ADDRESS, NAME, PORT};
use ringfence_model::manifest::{Grant, Scheme, TlsMode};
use rustls_pki_types::ServerName;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
const ONE: &[&[u8]] = &[b"http/1.1"];
const FILES: &str = "files.example.org";

/// Two granted hosts: one with TLS and a secret, one in cleartext.
struct World {
    fence: Fence,
    api: Upstream,
    files: Upstream,
}

impl World {
    async fn new() -> Self {
        let ca = TestCa::new();
        let api = Upstream::start(Some(ca.acceptor(HOST, BOTH))).await;
        let files = Upstream::start(None).await;
        let plain = cleartext(&files);
        let fence = Fence::new(vec![keyed(grant(api.address, &ca)), plain]);
        Self { fence, api, files }
    }

    fn connections(&self) -> usize {
        let count = |upstream: &Upstream| upstream.connections.load(std::sync::atomic::Ordering::Relaxed);
        count(&self.api) + count(&self.files)
    }

    /// The reason of each denial so far, with its host and port.
    fn denials(&self) -> Vec<(String, String, u16)> {
        let denied = self.fence.log.intents().into_iter().filter(|intent| intent.decision == Outcome::Deny);
        denied.map(|intent| (intent.reason, intent.host, intent.port)).collect()
    }

    async fn denied(&self, count: usize) -> Vec<(String, String, u16)> {
        wait(|| (self.denials().len() >= count).then(|| self.denials()), || format!("{:?}", self.denials())).await
    }
}

fn cleartext(upstream: &Upstream) -> Grant {
    Grant { scheme: Scheme::Http, port: 80, connect_to: Some(upstream.address), ..Grant::to(FILES.parse().unwrap()) }
}

async fn proxy(fence: &Fence) -> TcpStream {
    let stream = TcpStream::connect(fence.to((ADDRESS, PORT).into()).await).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Says something to the proxy, and gives the head of its answer.
async fn say(stream: &mut TcpStream, words: &str) -> String {
    stream.write_all(words.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Opens a tunnel; `None` if it is refused.
async fn connect(fence: &Fence, to: &str) -> Option<TcpStream> {
    let mut stream = proxy(fence).await;
    let words = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Basic eA==\r\n\r\n");
    let head = say(&mut stream, &words).await;
    if head.starts_with("HTTP/1.1 200") {
        assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
        return Some(stream);
    }
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    None
}

async fn tls_over(
    fence: &Fence,
    stream: TcpStream,
    sni: &str,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    connector(fence.gate.ca_pem(), alpn).connect(ServerName::try_from(sni.to_owned()).unwrap(), stream).await
}

fn url(url: &str, host: &str) -> Request<http_body_util::combinators::BoxBody<bytes::Bytes, std::convert::Infallible>> {
    Request::get(url).header("host", host).header("proxy-authorization", "Basic eA==").body(text("")).unwrap()
}

#[tokio::test]
async fn the_resolver_knows_the_gates_own_name() {
    let world = World::new().await;
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(format!("{NAME}.")).unwrap(), RecordType::A));
    let query = query.to_vec().unwrap();
    let mut stream = TcpStream::connect(world.fence.to("198.18.0.2:53".parse().unwrap()).await).await.unwrap();
    stream.write_u16(query.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&query).await.unwrap();
    let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut reply).await.unwrap();
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers[0].data, RData::A(A(ADDRESS)));
}

#[tokio::test]
async fn whole_urls_are_decided_each_by_itself() {
    let world = World::new().await;
    let mut client = h1_over(proxy(&world.fence).await).await;
    for (target, host, want) in [
        (format!("http://{FILES}/a?b"), FILES, StatusCode::OK),
        (format!("https://{HOST}/v1"), HOST, StatusCode::OK),
        (format!("http://{FILES}:80/"), FILES, StatusCode::OK),
        ("http://evil.example/".into(), "evil.example", StatusCode::FORBIDDEN),
        (format!("http://{HOST}/v1"), HOST, StatusCode::FORBIDDEN),
        (format!("https://{FILES}/a"), FILES, StatusCode::FORBIDDEN),
        (format!("http://{FILES}:8080/"), "files.example.org:8080", StatusCode::FORBIDDEN),
        (format!("https://{HOST}/v2"), HOST, StatusCode::OK),
    ] {
        client.ready().await.unwrap();
        let response = client.send_request(url(&target, host)).await.unwrap();
        assert_eq!(response.status(), want, "{target}");
        body_of(response).await;
    }
    let paths = |upstream: &Upstream| upstream.heads().into_iter().map(|head| head.1).collect::<Vec<_>>();
    assert_eq!(paths(&world.files), ["/a?b", "/"]);
    assert_eq!(paths(&world.api), ["/v1", "/v2"]);
    for head in [world.files.heads(), world.api.heads()].concat() {
        assert!(!head.2.contains_key("proxy-authorization"), "what is said to the proxy stays there");
    }
    assert_eq!(world.api.heads()[0].2["authorization"], format!("Bearer {SECRET}").as_str());
    assert!(world.denials().iter().all(|(reason, ..)| reason == "no_grant"), "{:?}", world.denials());
}

#[tokio::test]
async fn a_url_that_its_host_header_contradicts_is_refused() {
    let world = World::new().await;
    for (target, host, reason) in [
        (format!("http://{FILES}/"), "evil.example", "host_mismatch"),
        ("http://evil.example/".into(), FILES, "host_mismatch"),
        (format!("https://{HOST}/"), FILES, "host_mismatch"),
        (format!("http://{FILES}/"), "files.example.org:81", "host_mismatch"),
        (format!("http://x@{FILES}/"), FILES, "proxy_form"),
        (format!("http://{FILES}:99999/"), FILES, "proxy_form"),
        (format!("http://{FILES}:/"), FILES, "proxy_form"),
        (format!("ftp://{FILES}/"), FILES, "proxy_form"),
        ("http://127.1/".into(), "127.1", "proxy_form"),
        ("/".into(), FILES, "proxy_form"),
        ("/".into(), NAME, "proxy_form"),
    ] {
        let count = world.denials().len();
        let words = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let head = say(&mut proxy(&world.fence).await, &words).await;
        assert!(head.starts_with("HTTP/1.1 403"), "{target} {host}: {head}");
        assert_eq!(world.denied(count + 1).await[count].0, reason, "{target} {host}");
    }
    assert_eq!(world.connections(), 0);
}

#[tokio::test]
async fn a_tunnel_is_a_connection_as_any_other() {
    let world = World::new().await;
    let tunnel = connect(&world.fence, &format!("{HOST}:443")).await.unwrap();
    let mut client = h1_over(tls_over(&world.fence, tunnel, HOST, ONE).await.unwrap()).await;
    assert_eq!(client.send_request(get("/one")).await.unwrap().status(), StatusCode::OK);

    let tunnel = connect(&world.fence, &format!("{HOST}:443")).await.unwrap();
    let stream = tls_over(&world.fence, tunnel, HOST, &[b"h2"]).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("https://{HOST}/two")).body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::OK);

    let tunnel = connect(&world.fence, &format!("{FILES}:80")).await.unwrap();
    let mut client = h1_over(tunnel).await;
    let request = Request::get("/three").header("host", FILES).body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::OK);

    let heads = [world.api.heads(), world.files.heads()].concat();
    assert_eq!(heads.iter().map(|head| head.1.as_str()).collect::<Vec<_>>(), ["/one", "/two", "/three"]);
    assert!(heads[..2].iter().all(|head| head.2["authorization"] == format!("Bearer {SECRET}").as_str()));
    assert_eq!(world.fence.log.intent(1).await.protocol, "h2");
}

#[tokio::test]
async fn passthrough_stays_closed_in_a_tunnel_and_is_not_opened_for_a_url() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, ONE))).await;
    let closed = Grant { tls: TlsMode::Passthrough, ca_pem: None, ..grant(upstream.address, &ca) };
    let fence = Fence::new(vec![closed]);
    let tunnel = connect(&fence, &format!("{HOST}:443")).await.unwrap();
    let stream = connector(&ca.pem, ONE).connect(HOST.try_into().unwrap(), tunnel).await.unwrap();
    let mut client = h1_over(stream).await;
    assert_eq!(body_of(client.send_request(post("/", "closed")).await.unwrap()).await, "closed");
    let mut client = h1_over(proxy(&fence).await).await;
    let response = client.send_request(url(&format!("https://{HOST}/"), HOST)).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(upstream.heads().len(), 1);
}

/// A proxy that opens every tunnel, and passes on what is in it.
async fn proxy_for_all() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let mut to = TcpStream::connect(head.split(' ').nth(1).unwrap()).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
    });
    address
}

#[tokio::test]
async fn a_proxy_that_asks_no_policy_leads_anywhere() {
    let world = World::new().await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let reached = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    });
    let ours = world.fence.to((ADDRESS, PORT).into()).await;
    for (proxy, tunnelled) in [(ours, false), (proxy_for_all().await, true)] {
        let mut stream = TcpStream::connect(proxy).await.unwrap();
        stream
            .write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        stream.shutdown().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said.starts_with("HTTP/1.1 200"), tunnelled, "{said}");
        assert_eq!(said.contains("SSH-2.0"), tunnelled, "{said}");
        assert_eq!(reached.is_finished(), tunnelled);
    }
}

#[tokio::test]
async fn no_tunnel_is_opened_to_what_no_grant_covers() {
    let world = World::new().await;
    let assigned = world.fence.gate.names().assign(&HOST.parse().unwrap()).unwrap();
    for (nth, (to, reason, host, port)) in [
        ("evil.example:443".to_owned(), "no_grant", "evil.example", 443),
        (format!("{HOST}:22"), "no_grant", HOST, 22),
        (format!("{HOST}:25"), "no_grant", HOST, 25),
        (format!("{HOST}:80"), "no_grant", HOST, 80),
        ("192.0.2.1:443".into(), "no_grant", "192.0.2.1", 443),
        ("[2001:db8::1]:443".into(), "no_grant", "2001:db8::1", 443),
        ("127.0.0.1:443".into(), "no_grant", "127.0.0.1", 443),
        ("169.254.169.254:80".into(), "no_grant", "169.254.169.254", 80),
        ("198.18.200.200:443".into(), "unknown_address", "198.18.200.200", 443),
        (format!("{NAME}:{PORT}"), "proxy_loop", NAME, PORT),
        (format!("{ADDRESS}:{PORT}"), "proxy_loop", "198.18.0.1", PORT),
        (format!("{ADDRESS}:443"), "proxy_loop", "198.18.0.1", 443),
        (format!("{assigned}:22"), "no_grant", HOST, 22),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(connect(&world.fence, &to).await.is_none(), "{to}");
        let want = (reason.to_owned(), host.to_owned(), port);
        let got = world.denied(nth + 1).await[nth].clone();
        if to.starts_with(&assigned.to_string()) {
            assert_eq!(got.0, "no_grant");
        } else {
            assert_eq!(got, want, "{to}");
        }
    }
    assert_eq!(world.connections(), 0);
}

#[tokio::test]
async fn connect_names_one_host_and_port() {
    let world = World::new().await;
    for (line, headers, reason) in [
        (format!("CONNECT {HOST}:443"), "Host: evil.example\r\n", "host_mismatch"),
        (format!("CONNECT {HOST}:443"), "Host: api.example.org:22\r\n", "host_mismatch"),
        (format!("CONNECT {HOST}:443"), "Host: api.example.org\r\nHost: evil.example\r\n", "host_mismatch"),
        (format!("CONNECT {HOST}:443"), "Host: api.example.org\r\nContent-Length: 4\r\n", "framing_ambiguous"),
        (format!("CONNECT {HOST}"), "Host: api.example.org\r\n", "proxy_form"),
        (format!("CONNECT x@{HOST}:443"), "Host: api.example.org\r\n", "proxy_form"),
        ("CONNECT 0x7f.1:443".into(), "Host: 0x7f.1\r\n", "proxy_form"),
    ] {
        let count = world.denials().len();
        let head = say(&mut proxy(&world.fence).await, &format!("{line} HTTP/1.1\r\n{headers}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 403"), "{line} {headers}: {head}");
        assert_eq!(world.denied(count + 1).await[count].0, reason, "{line} {headers}");
    }
    // A URL in place of host and port is not even a request.
    let words = format!("CONNECT https://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    assert!(!say(&mut proxy(&world.fence).await, &words).await.starts_with("HTTP/1.1 2"));
}

#[tokio::test]
async fn inside_a_tunnel_no_other_host_is_reached() {
    let world = World::new().await;
    // Another server name than the one of CONNECT, and none.
    for (nth, (sni, reason)) in
        [("evil.example", "host_mismatch"), (FILES, "host_mismatch"), ("192.0.2.1", "no_sni")].into_iter().enumerate()
    {
        let tunnel = connect(&world.fence, &format!("{HOST}:443")).await.unwrap();
        tls_over(&world.fence, tunnel, sni, ONE).await.unwrap_err();
        assert_eq!(world.denied(nth + 1).await[nth].0, reason, "{sni}");
    }
    // Another host in a request, also in the second one.
    let tunnel = connect(&world.fence, &format!("{HOST}:443")).await.unwrap();
    let mut client = h1_over(tls_over(&world.fence, tunnel, HOST, ONE).await.unwrap()).await;
    assert_eq!(client.send_request(get("/first")).await.unwrap().status(), StatusCode::OK);
    client.ready().await.unwrap();
    let other = Request::get("/second").header("host", FILES).body(text("")).unwrap();
    assert_eq!(client.send_request(other).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(world.denied(4).await[3].0, "host_mismatch");
    // The same in HTTP/2.
    let tunnel = connect(&world.fence, &format!("{HOST}:443")).await.unwrap();
    let stream = tls_over(&world.fence, tunnel, HOST, &[b"h2"]).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let other = Request::get("https://evil.example/").body(text("")).unwrap();
    assert_eq!(client.send_request(other).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(world.denied(5).await[4].0, "host_mismatch");
    // A proxy in the proxy: whole URLs and CONNECT are for the gate's own address alone.
    for words in [
        format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n"),
        format!("GET http://{FILES}/ HTTP/1.1\r\nHost: {FILES}\r\n\r\n"),
    ] {
        let count = world.denials().len();
        let mut tunnel = connect(&world.fence, &format!("{FILES}:80")).await.unwrap();
        assert!(say(&mut tunnel, &words).await.starts_with("HTTP/1.1 403"));
        assert_eq!(world.denied(count + 1).await[count].0, "proxy_form");
    }
    assert_eq!(world.api.heads().len(), 1);
    assert!(world.files.heads().is_empty());
}

#[tokio::test]
async fn a_tunnel_is_never_raw() {
    let world = World::new().await;
    let mut shell = connect(&world.fence, &format!("{HOST}:443")).await.unwrap();
    shell.write_all(b"SSH-2.0-OpenSSH_9.9\r\n").await.unwrap();
    assert_eq!(shell.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(world.denied(1).await[0].0, "protocol_unknown");
    // Cleartext where TLS is granted is what it is.
    let mut client = h1_over(connect(&world.fence, &format!("{HOST}:443")).await.unwrap()).await;
    assert_eq!(client.send_request(get("/")).await.unwrap().status(), StatusCode::FORBIDDEN);
    // A client that waits for the server to speak waits in vain.
    let mut waiting = connect(&world.fence, &format!("{HOST}:443")).await.unwrap();
    assert_eq!(waiting.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(world.denied(3).await[2].0, "protocol_unknown");
    assert_eq!(world.connections(), 0);
}

#[tokio::test]
async fn elsewhere_there_is_no_proxy() {
    let world = World::new().await;
    for (nth, words) in [
        format!("CONNECT {FILES}:80 HTTP/1.1\r\nHost: {FILES}:80\r\n\r\n"),
        format!("GET http://{FILES}/ HTTP/1.1\r\nHost: {FILES}\r\n\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut stream = TcpStream::connect(world.fence.to_name(FILES, 80).await).await.unwrap();
        assert!(say(&mut stream, &words).await.starts_with("HTTP/1.1 403"));
        assert_eq!(world.denied(nth + 1).await[nth].0, "proxy_form");
    }
    let other_port = world.fence.to((ADDRESS, 80).into()).await;
    let mut stream = TcpStream::connect(other_port).await.unwrap();
    stream.write_all(format!("GET http://{FILES}/ HTTP/1.1\r\nHost: {FILES}\r\n\r\n").as_bytes()).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(world.denied(3).await[2].0, "unknown_address");
}

#[tokio::test]
async fn the_proxy_speaks_neither_tls_nor_http2() {
    let world = World::new().await;
    for words in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"\x16\x03\x01\x00\x05hello", b"EHLO\r\n"] {
        let mut stream = proxy(&world.fence).await;
        stream.write_all(words).await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    }
    assert!(world.denied(3).await.iter().all(|(reason, host, _)| reason == "protocol_unknown" && host == NAME));
}

/// Asks for a connection in the words of SOCKS5, and gives the reply's code.
async fn socks(stream: &mut TcpStream, command: u8, kind: u8, address: &[u8], port: u16) -> u8 {
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await.unwrap();
    assert_eq!(chosen, [5, 0]);
    stream.write_all(&[&[5, command, 0, kind], address, &port.to_be_bytes()].concat()).await.unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await.unwrap();
    assert_eq!((reply[0], reply[3]), (5, 1));
    reply[1]
}

fn name(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

#[tokio::test]
async fn socks5_leads_where_a_tunnel_would() {
    let world = World::new().await;
    let mut stream = proxy(&world.fence).await;
    assert_eq!(socks(&mut stream, 1, 3, &name(HOST), 443).await, 0);
    let mut client = h1_over(tls_over(&world.fence, stream, HOST, ONE).await.unwrap()).await;
    let response = client.send_request(get("/one")).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_11));
    // By the address that the resolver gave for the name.
    let address = world.fence.gate.names().assign(&FILES.parse().unwrap()).unwrap();
    let mut stream = proxy(&world.fence).await;
    assert_eq!(socks(&mut stream, 1, 1, &address.octets(), 80).await, 0);
    let mut client = h1_over(stream).await;
    let request = Request::get("/two").header("host", FILES).body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::OK);
    assert_eq!((world.api.heads().len(), world.files.heads().len()), (1, 1));
}

#[tokio::test]
async fn socks5_leads_nowhere_else() {
    let world = World::new().await;
    let mapped = std::net::Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped().octets();
    for (command, kind, address, port, code, reason) in [
        (1, 3, name("evil.example"), 443, 2, "no_grant"),
        (1, 3, name(HOST), 22, 2, "no_grant"),
        (1, 3, name("192.0.2.1"), 443, 2, "no_grant"),
        (1, 3, name(NAME), PORT, 2, "proxy_loop"),
        (1, 1, ADDRESS.octets().to_vec(), PORT, 2, "proxy_loop"),
        (1, 1, vec![198, 18, 200, 200], 443, 2, "unknown_address"),
        (1, 1, vec![192, 0, 2, 1], 443, 2, "no_grant"),
        (1, 4, mapped.to_vec(), 443, 2, "no_grant"),
        (2, 3, name(HOST), 443, 7, "socks_command"),
        (3, 3, name(HOST), 443, 7, "socks_command"),
    ] {
        let count = world.denials().len();
        let mut stream = proxy(&world.fence).await;
        assert_eq!(socks(&mut stream, command, kind, &address, port).await, code, "{address:?}");
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "and it is closed");
        assert_eq!(world.denied(count + 1).await[count].0, reason, "{address:?}");
    }
    // Inside, another host is another host; and what is no protocol is none.
    let mut stream = proxy(&world.fence).await;
    assert_eq!(socks(&mut stream, 1, 3, &name(HOST), 443).await, 0);
    tls_over(&world.fence, stream, "evil.example", ONE).await.unwrap_err();
    assert_eq!(world.denied(11).await[10].0, "host_mismatch");
    let mut stream = proxy(&world.fence).await;
    assert_eq!(socks(&mut stream, 1, 3, &name(HOST), 443).await, 0);
    stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(world.denied(12).await[11].0, "protocol_unknown");
    // SOCKS4, and a client that insists on a password.
    let mut stream = proxy(&world.fence).await;
    stream.write_all(&[4, 1, 1, 187, 0, 0, 0, 1, 0]).await.unwrap();
    let mut rejected = [0; 8];
    stream.read_exact(&mut rejected).await.unwrap();
    assert_eq!(rejected[..2], [0, 0x5b]);
    let mut stream = proxy(&world.fence).await;
    stream.write_all(&[5, 1, 2]).await.unwrap();
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await.unwrap();
    assert_eq!(chosen, [5, 0xff]);
    assert_eq!(world.connections(), 0);
}

/// Sends an `Upgrade` that is none of a WebSocket, and behind it what would be decided by nobody were it believed.
async fn upgrade_to(protocol: &str, more: &str, behind: &[u8]) -> (World, String) {
    let world = World::new().await;
    let mut stream = TcpStream::connect(world.fence.to_name(FILES, 80).await).await.unwrap();
    let head = format!(
        "GET /first HTTP/1.1\r\nHost: {FILES}\r\nConnection: Upgrade{more}\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(behind).await.unwrap();
    let mut out = Vec::new();
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), stream.read_to_end(&mut out)).await;
    (world, String::from_utf8_lossy(&out).into_owned())
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_not_heeded_and_nothing_behind_it_escapes() {
    let mut behind = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    behind.extend(b"GET /smuggled HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    for (protocol, more) in [("h2c", ", HTTP2-Settings"), ("H2C, websocket2", ""), ("TLS/1.2", ""), ("tcp", "")] {
        let (world, out) = upgrade_to(protocol, more, &behind).await;
        assert!(out.starts_with("HTTP/1.1 200"), "{protocol}: {out}");
        assert!(!out.contains("101"), "{protocol}: {out}");
        let heads = world.files.heads();
        assert_eq!(heads.len(), 1, "{protocol}: {heads:?}");
        for name in ["upgrade", "connection", "http2-settings"] {
            assert!(!heads[0].2.contains_key(name), "{protocol}: {name}");
        }
    }
}

#[tokio::test]
async fn http2_without_tls_is_served_where_cleartext_is_granted() {
    let world = World::new().await;
    let stream = TcpStream::connect(world.fence.to_name(FILES, 80).await).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (host, want) in [(FILES, StatusCode::OK), ("evil.example", StatusCode::FORBIDDEN)] {
        let request = Request::get(format!("http://{host}/")).body(text("")).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), want);
    }
    // CONNECT in it asks for a proxy, too.
    let request = Request::connect(format!("{FILES}:80")).body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(world.denied(2).await[1].0, "proxy_form");
    assert_eq!(world.files.heads().len(), 1);
}
