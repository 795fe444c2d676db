//! Calls through a proxy between the host and the Internet.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use ringfence_audit::Outcome;
use ringfence_gate::Barriers;
use ringfence_gate::config::{GateConfig, UpstreamProxy};
use ringfence_model::SecretText;
use ringfence_model::manifest::{Grant, Scheme, TlsMode};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What a proxy does.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    /// Connects, for whoever shows these credentials, if any are asked for.
    Connect(Option<&'static str>),
    /// Answers this, whatever is asked.
    Say(&'static str),
    /// Answers nothing.
    Stall,
    /// Sends a head that never ends.
    Flood,
}

/// A small proxy. It connects to one upstream, whatever it is asked for, as if it had resolved the name.
struct TestProxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TestProxy {
    async fn start(does: Does, upstream: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, log) = (tls.clone(), Arc::clone(&log));
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            serve(stream, does, upstream, log).await;
                        }
                        None => serve(stream, does, upstream, log).await,
                    }
                });
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn config(&self, grants: Vec<Grant>) -> GateConfig {
        let proxy = UpstreamProxy {
            scheme: Scheme::Http,
            host: "127.0.0.1".parse().unwrap(),
            port: self.address.port(),
            user: None,
            password: None,
            no_proxy: vec![],
            ca_pem: None,
        };
        GateConfig { upstream_proxy: Some(proxy), ..config(grants) }
    }
}

async fn serve<S>(mut stream: S, does: Does, upstream: SocketAddr, log: Arc<Mutex<Vec<String>>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    log.lock().unwrap().push(head.clone());
    match does {
        Does::Connect(wanted) => {
            let known = wanted.is_none_or(|wanted| head.contains(&format!("proxy-authorization: Basic {wanted}\r\n")));
            if !known {
                let say = b"HTTP/1.1 407 Who\r\nproxy-authenticate: Basic realm=\"x\"\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(say).await.unwrap();
                return;
            }
            let mut upstream = TcpStream::connect(upstream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n").await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
        }
        Does::Say(text) => {
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
        Does::Stall => tokio::time::sleep(Duration::from_secs(60)).await,
        Does::Flood => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            while stream.write_all(&[b"x-more: ".as_slice(), &[b'a'; 1000], b"\r\n"].concat()).await.is_ok() {}
        }
    }
}

fn granted(ca: &TestCa) -> Grant {
    Grant { ca_pem: Some(ca.pem.clone()), ..Grant::to(HOST.parse().unwrap()) }
}

async fn world() -> (TestCa, Upstream) {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"http/1.1"]))).await;
    (ca, upstream)
}

fn nowhere() -> Names {
    Names::serve(&[])
}

#[tokio::test]
async fn a_call_goes_through_the_proxy_and_its_tls_ends_at_the_upstream() {
    let (ca, upstream) = world().await;
    let proxy = TestProxy::start(Does::Connect(Some("aG9zdC03OnBhc3M=")), upstream.address, None).await;
    let mut config = proxy.config(vec![keyed(granted(&ca))]);
    let told = config.upstream_proxy.as_mut().unwrap();
    (told.user, told.password) = (Some("host-7".into()), Some(SecretText::new("pass".into())));
    let fence = Fence::asking(&config, Barriers::default(), &nowhere());
    let mut client = fence.h1().await;
    for _ in 0..3 {
        client.ready().await.unwrap();
        assert_eq!(body_of(client.send_request(post("/x", "hello")).await.unwrap()).await, "hello");
    }
    assert_eq!(upstream.heads()[0].2["authorization"], format!("Bearer {SECRET}").as_str());
    assert!(!upstream.heads()[0].2.contains_key("proxy-authorization"), "that is the proxy's alone");
    let asked = proxy.asked();
    assert_eq!(asked.len(), 1, "connections are kept");
    assert!(asked[0].starts_with(&format!("CONNECT {HOST}:443 HTTP/1.1\r\n")), "{asked:?}");
    assert!(!asked[0].contains(SECRET) && !asked[0].contains(PLACEHOLDER));
    let address = fence.log.outcome(0).await.address;
    assert_eq!(address, Some(format!("proxy {}", proxy.address)));

    // A proxy that answers itself is no upstream.
    let evil = Upstream::start(Some(TestCa::new().acceptor(HOST, &[b"http/1.1"]))).await;
    let proxy = TestProxy::start(Does::Connect(None), evil.address, None).await;
    let fence = Fence::asking(&proxy.config(vec![keyed(granted(&ca))]), Barriers::default(), &nowhere());
    assert_eq!(fence.h1().await.send_request(get("/")).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    assert!(fence.log.outcome(0).await.error.unwrap().starts_with("tls_unknown_issuer"));
    assert!(evil.heads().is_empty());
}

#[tokio::test]
async fn a_proxy_over_tls_is_held_against_its_own_authority() {
    let (ca, upstream) = world().await;
    let corp = TestCa::new();
    let proxy = TestProxy::start(Does::Connect(None), upstream.address, Some(corp.acceptor("127.0.0.1", &[]))).await;
    for (pem, want) in [(&corp.pem, StatusCode::OK), (&ca.pem, StatusCode::BAD_GATEWAY)] {
        let mut config = proxy.config(vec![granted(&ca)]);
        let told = config.upstream_proxy.as_mut().unwrap();
        (told.scheme, told.ca_pem) = (Scheme::Https, Some(pem.clone()));
        let fence = Fence::asking(&config, Barriers::default(), &nowhere());
        assert_eq!(fence.h1().await.send_request(get("/")).await.unwrap().status(), want);
        if want != StatusCode::OK {
            let error = fence.log.outcome(0).await.error.unwrap();
            assert!(error.starts_with("upstream_proxy_tls: tls_unknown_issuer"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_proxy_that_fails_fails_the_call_with_a_reason() {
    let (ca, upstream) = world().await;
    for (does, code) in [
        (Does::Connect(Some("other")), "upstream_proxy_auth: "),
        (Does::Say("HTTP/1.1 407 Who\r\ncontent-length: 0\r\n\r\n"), "upstream_proxy_auth: "),
        (Does::Say("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"), "upstream_proxy_refused: "),
        (Does::Say("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"), "upstream_proxy_failed: "),
        (Does::Say("HTTP/1.1 302 Elsewhere\r\nlocation: http://evil/\r\n\r\n"), "upstream_proxy_failed: "),
        (Does::Say("SSH-2.0-OpenSSH\r\n"), "upstream_proxy_broke: "),
        (Does::Say("\0\0\0\0"), "upstream_proxy_broke: "),
        (Does::Say(""), "upstream_proxy_broke: "),
        (Does::Say("HTTP/1.1 200 OK\r\nx: y"), "upstream_proxy_broke: "),
        (Does::Flood, "upstream_proxy_broke: "),
        (Does::Stall, "upstream_proxy_timeout: "),
    ] {
        let proxy = TestProxy::start(does, upstream.address, None).await;
        let fence = Fence::asking(&proxy.config(vec![granted(&ca)]), Barriers::default(), &nowhere());
        let started = Instant::now();
        let response = fence.h1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        assert!(started.elapsed() < Duration::from_secs(25));
        let error = fence.log.outcome(0).await.error.unwrap();
        assert!(error.starts_with(code), "{code}: {error}");
    }
    let gone = TestProxy { address: "127.0.0.1:1".parse().unwrap(), asked: Arc::default() };
    let fence = Fence::asking(&gone.config(vec![granted(&ca)]), Barriers::default(), &nowhere());
    assert_eq!(fence.h1().await.send_request(get("/")).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    assert!(fence.log.outcome(0).await.error.unwrap().starts_with("upstream_proxy_unreachable: "));
    assert!(upstream.heads().is_empty(), "and none is made without it");
}

/// Bytes of the upstream may come in one piece with the proxy's answer, where the server speaks first.
#[tokio::test]
async fn what_comes_behind_the_proxys_answer_is_the_upstreams() {
    let say = "HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nearly";
    let proxy = TestProxy::start(Does::Say(say), "127.0.0.1:1".parse().unwrap(), None).await;
    let mut plain = Grant::to(HOST.parse().unwrap());
    (plain.tls, plain.port) = (TlsMode::Passthrough, 443);
    let fence = Fence::asking(&proxy.config(vec![plain]), Barriers::default(), &nowhere());
    let mut stream = TcpStream::connect(fence.to_name(HOST, 443).await).await.unwrap();
    let mut hello = Vec::new();
    let roots = rustls::RootCertStore::empty();
    let client = rustls::ClientConfig::builder_with_provider(ringfence_gate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    rustls::ClientConnection::new(client.into(), HOST.try_into().unwrap()).unwrap().write_tls(&mut hello).unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said).await;
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200 OK\r\ncontent-length: 5") && said.ends_with("early"), "{said}");
}

#[tokio::test]
async fn a_proxy_turns_no_denial_into_a_call() {
    let (ca, upstream) = world().await;
    let proxy = TestProxy::start(Does::Connect(None), upstream.address, None).await;
    let mut narrow = granted(&ca);
    narrow.paths = vec!["/ok".into()];
    let fence = Fence::asking(&proxy.config(vec![narrow]), Barriers::default(), &nowhere());
    assert_eq!(fence.h1().await.send_request(get("/no")).await.unwrap().status(), StatusCode::FORBIDDEN);
    let evil = fence.to_name("evil.example", 443).await;
    fence.tls(evil, "evil.example", &[]).await.unwrap_err();
    // The proxy itself is the operator's, not the agent's.
    let own = fence.to(proxy.address).await;
    let mut client = h1_over(TcpStream::connect(own).await.unwrap()).await;
    let request = Request::get("/").header("host", proxy.address.to_string()).body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert!(proxy.asked().is_empty());
}

#[tokio::test]
async fn names_that_are_private_here_are_not_asked_of_the_proxy() {
    let upstream = Upstream::start(None).await;
    let port = upstream.address.port();
    let proxy = TestProxy::start(Does::Connect(None), upstream.address, None).await;
    let plain = |host: &str| {
        let mut grant = Grant::to(host.parse().unwrap());
        (grant.scheme, grant.port) = (Scheme::Http, port);
        grant
    };
    let names = Names::serve(&[
        ("inner.example.org", vec![at("10.0.0.1")]),
        ("mixed.example.org", vec![[at("9.9.9.9"), at("10.0.0.1")].concat()]),
        ("meta.example.org", vec![at("169.254.169.254")]),
        ("metadata.google.internal", vec![at("9.9.9.9")]),
    ]);
    let denied = ["inner.example.org", "mixed.example.org", "meta.example.org", "metadata.google.internal", "10.0.0.1"];
    let call = async |fence: &Fence, host: &str| {
        let to = match host.parse() {
            Ok(address) => fence.to(SocketAddr::new(address, port)).await,
            Err(_) => fence.to_name(host, port).await,
        };
        let mut client = h1_over(TcpStream::connect(to).await.unwrap()).await;
        let request = Request::get("/").header("host", format!("{host}:{port}")).body(text("")).unwrap();
        client.send_request(request).await.unwrap().status()
    };
    for host in denied {
        let before = proxy.asked().len();
        let fence = Fence::asking(&proxy.config(vec![plain(host)]), Barriers::default(), &names);
        assert_eq!(call(&fence, host).await, StatusCode::FORBIDDEN, "{host}");
        let intent = fence.log.intent(0).await;
        assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, "private_address"), "{host}");
        assert_eq!(proxy.asked().len(), before);
        let off = Barriers { addresses: false, ..Barriers::default() };
        let fence = Fence::asking(&proxy.config(vec![plain(host)]), off, &names);
        assert_eq!(call(&fence, host).await, StatusCode::OK, "with the barrier off {host} is asked for");
    }
    // A name that only the proxy can resolve: there is nothing to check.
    let fence = Fence::asking(&proxy.config(vec![plain("far.example.org")]), Barriers::default(), &names);
    assert_eq!(call(&fence, "far.example.org").await, StatusCode::OK);
}

#[tokio::test]
async fn what_the_operator_placed_in_the_own_network_bypasses_the_proxy() {
    let upstream = Upstream::start(None).await;
    let port = upstream.address.port();
    let proxy = TestProxy::start(Does::Stall, upstream.address, None).await;
    let names = Names::serve(&[("inner.example.org", vec![at("127.0.0.1")])]);
    let mut private = Grant::to("inner.example.org".parse().unwrap());
    (private.scheme, private.port, private.allow_private) = (Scheme::Http, port, true);
    let mut placed = private.clone();
    (placed.allow_private, placed.connect_to) = (false, Some(upstream.address));
    for grant in [private.clone(), placed] {
        let fence = Fence::asking(&proxy.config(vec![grant]), Barriers::default(), &names);
        let mut client =
            h1_over(TcpStream::connect(fence.to_name("inner.example.org", port).await).await.unwrap()).await;
        let request = Request::get("/").header("host", format!("inner.example.org:{port}")).body(text("")).unwrap();
        assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::OK);
    }
    // `no_proxy` goes past the proxy, and not past the check of addresses.
    private.allow_private = false;
    let mut config = proxy.config(vec![private]);
    config.upstream_proxy.as_mut().unwrap().no_proxy = vec!["*.example.org".parse().unwrap()];
    let fence = Fence::asking(&config, Barriers::default(), &names);
    let mut client = h1_over(TcpStream::connect(fence.to_name("inner.example.org", port).await).await.unwrap()).await;
    let request = Request::get("/").header("host", format!("inner.example.org:{port}")).body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(fence.log.intent(0).await.reason, "private_address");
    assert!(proxy.asked().is_empty());
}
