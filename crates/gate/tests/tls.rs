//! TLS on both sides of the gate: certificates, resumption, encrypted and scattered ClientHellos.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::StatusCode;
use rcgen::CertificateParams;
use ringfence_audit::Record;
use ringfence_gate::config::{CredentialLease, GateConfig};
use ringfence_gate::{Barriers, Gate};
use ringfence_model::manifest::{Grant, Place, TlsMode};
use ringfence_model::{Explain, SecretText};
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::{HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const ONE: &[&[u8]] = &[b"http/1.1"];

fn server(pem: &str, key: &rcgen::KeyPair, callers: Option<&TestCa>) -> rustls::ServerConfig {
    let chain = vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = ringfence_gate::tls::provider();
    let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = match callers {
        None => config.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = config.with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// One call as an upstream sees it that closes after each.
#[derive(Debug, PartialEq)]
struct Seen {
    path: String,
    kind: HandshakeKind,
    caller: Option<CertificateDer<'static>>,
}

async fn closing(config: rustls::ServerConfig) -> (SocketAddr, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let Some(path) = head.split(' ').nth(1) else { continue };
            let tls = stream.get_ref().1;
            let caller = tls.peer_certificates().map(|chain| chain[0].clone().into_owned());
            log.lock().unwrap().push(Seen { path: path.into(), kind: tls.handshake_kind().unwrap(), caller });
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
            let _ = stream.shutdown().await;
        }
    });
    (address, seen)
}

async fn status(fence: &Fence, path: &str) -> StatusCode {
    let response = fence.h1().await.send_request(get(path)).await.unwrap();
    let status = response.status();
    body_of(response).await;
    status
}

fn on_path(upstream: SocketAddr, ca: &TestCa, path: &str) -> Grant {
    Grant { paths: vec![path.into()], ..grant(upstream, ca) }
}

#[tokio::test]
async fn an_upstream_without_a_valid_certificate_is_refused_with_a_reason() {
    let ca = TestCa::new();
    let year = |from: i32, to: i32| {
        move |params: &mut CertificateParams| {
            params.not_before = rcgen::date_time_ymd(from, 1, 1);
            params.not_after = rcgen::date_time_ymd(to, 1, 1);
        }
    };
    let own_key = rcgen::KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec![HOST.to_owned()]).unwrap().self_signed(&own_key).unwrap().pem();
    for ((pem, key), code, hint) in [
        (ca.leaf_with(HOST, year(2001, 2002)), "tls_expired: ", "renew"),
        (ca.leaf_with(HOST, year(2201, 2202)), "tls_not_yet_valid: ", "clock"),
        (ca.leaf("other.example.org"), "tls_wrong_name: ", "grant the name"),
        (TestCa::new().leaf(HOST), "tls_unknown_issuer: ", "`ca`"),
        ((own, own_key), "tls_unknown_issuer: ", "`ca`"),
    ] {
        let (address, seen) = closing(server(&pem, &key, None)).await;
        let fence = Fence::new(vec![keyed(grant(address, &ca))]);
        assert_eq!(status(&fence, "/").await, StatusCode::BAD_GATEWAY);
        let error = fence.log.outcome(0).await.error.unwrap();
        assert!(error.starts_with(code) && error.contains(hint), "{code}: {error}");
        assert!(seen.lock().unwrap().is_empty(), "and nothing is sent");
    }
    let (pem, key) = ca.leaf(HOST);
    let (address, _) = closing(server(&pem, &key, None)).await;
    assert_eq!(status(&Fence::new(vec![grant(address, &ca)]), "/").await, StatusCode::OK);
}

fn certificate(ca: &TestCa, name: &str) -> (CredentialLease, CertificateDer<'static>) {
    let (pem, key) = ca.leaf(name);
    let secret = SecretText::new(format!("{pem}{}", key.serialize_pem()));
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    (CredentialLease { place: Place::ClientCertificate, placeholder: "rf-none".into(), secret }, der)
}

#[tokio::test]
async fn a_client_certificate_is_shown_for_its_own_grant_alone() {
    let (ca, callers) = (TestCa::new(), TestCa::new());
    let (pem, key) = ca.leaf(HOST);
    let (address, seen) = closing(server(&pem, &key, Some(&callers))).await;
    let ((first, first_der), (second, second_der)) = (certificate(&callers, "one"), certificate(&callers, "two"));
    let with = |path: &str, name: Option<&str>| Grant {
        client_certificate: name.map(str::to_owned),
        ..on_path(address, &ca, path)
    };
    let grants = vec![with("/one", Some("one")), with("/two", Some("two")), with("/none", None)];
    let mut config = GateConfig { ..config(grants) };
    config.credentials.extend([("one".to_owned(), first), ("two".to_owned(), second)]);
    let fence = Fence::of(&config);
    for (path, want) in [("/one", 200), ("/two", 200), ("/none", 502), ("/one", 200), ("/two", 200), ("/none", 502)] {
        assert_eq!(status(&fence, path).await, want, "{path}");
    }
    let seen: Vec<_> = seen.lock().unwrap().drain(..).collect();
    let callers: Vec<_> = seen.iter().map(|s| (s.path.as_str(), s.caller.clone().unwrap())).collect();
    let (one, two) = (("/one", first_der), ("/two", second_der));
    assert_eq!(callers, [one.clone(), two.clone(), one, two], "resumed sessions too are of their own grant");
    for nth in [2, 5] {
        let error = fence.log.outcomes()[nth].error.clone().unwrap();
        assert!(error.starts_with("tls_client_certificate: "), "{error}");
    }
    let log = format!("{:?}", fence.log.events.lock().unwrap());
    assert!(!log.contains("PRIVATE KEY") && !log.contains("CERTIFICATE-----"));
}

#[test]
fn a_client_certificate_that_is_none_opens_no_gate() {
    let (ca, callers) = (TestCa::new(), TestCa::new());
    let (good, _) = certificate(&callers, "one");
    let (pem, _) = callers.leaf("one");
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let escaped = good.secret.reveal().replace('\n', "\\n");
    for (secret, works) in [
        (good.secret.reveal().to_owned(), true),
        (escaped, true),
        (pem.clone(), false),
        (other.clone(), false),
        (format!("{pem}{other}"), false),
        ("sk-not-pem".into(), false),
        (String::new(), false),
    ] {
        let mut config = config(vec![Grant {
            client_certificate: Some("one".into()),
            ..grant("127.0.0.1:1".parse().unwrap(), &ca)
        }]);
        let lease = CredentialLease { secret: SecretText::new(secret.clone()), ..good.clone() };
        config.credentials.insert("one".into(), lease);
        match Gate::open(&config, Arc::new(Log::default()) as Arc<dyn Record>) {
            Ok(_) => assert!(works),
            Err(error) => {
                let report = format!("{:?}", ringfence_model::Report::from(error));
                assert!(!works && !report.contains("BEGIN"), "{report}");
                assert!(report.contains("gate.tls") || report.contains("gate.secret"), "{report}");
            }
        }
    }
    let config =
        config(vec![Grant { client_certificate: Some("absent".into()), ..grant("127.0.0.1:1".parse().unwrap(), &ca) }]);
    let error = Gate::open(&config, Arc::new(Log::default()) as Arc<dyn Record>).err().unwrap();
    assert_eq!(error.code(), "gate.no_lease");
}

#[tokio::test]
async fn sessions_with_upstreams_are_resumed_within_a_grant_and_never_across() {
    let ca = TestCa::new();
    let (pem, key) = ca.leaf(HOST);
    let (address, seen) = closing(server(&pem, &key, None)).await;
    let keyed = keyed(on_path(address, &ca, "/keyed"));
    let fence = Fence::new(vec![keyed, on_path(address, &ca, "/a"), on_path(address, &ca, "/b")]);
    for path in ["/keyed", "/a", "/b", "/keyed", "/a", "/b"] {
        assert_eq!(status(&fence, path).await, StatusCode::OK);
    }
    let kinds: Vec<_> = seen.lock().unwrap().iter().map(|s| s.kind).collect();
    let (full, again) = (HandshakeKind::Full, HandshakeKind::Resumed);
    assert_eq!(kinds, [full, full, full, again, again, again]);
    let fence = Fence::new(vec![on_path(address, &ca, "/a")]);
    assert_eq!(status(&fence, "/a").await, StatusCode::OK);
    assert_eq!(seen.lock().unwrap().last().unwrap().kind, full, "another gate begins anew");
}

#[tokio::test]
async fn the_agents_sessions_are_resumed() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, ONE))).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let to = fence.to_name(HOST, 443).await;
    let connector = connector(fence.gate.ca_pem(), ONE);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        let stream = TcpStream::connect(to).await.unwrap();
        let mut stream = connector.connect(HOST.try_into().unwrap(), stream).await.unwrap();
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said).await;
        assert!(said.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed]);
}

/// A client that sends the extension of an encrypted ClientHello, as browsers do whether they have a key or not.
fn greasing(ca_pem: &str) -> TlsConnector {
    let suite = rustls::crypto::aws_lc_rs::hpke::ALL_SUPPORTED_SUITES[0];
    let (public, _) = suite.generate_key_pair().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(ringfence_gate::tls::provider())
        .with_ech(EchMode::Grease(EchGreaseConfig::new(suite, public)))
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn an_encrypted_hello_counts_by_its_outer_name_and_is_not_relayed_closed() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, ONE))).await;
    let opened = grant(upstream.address, &ca);
    let mut closed = opened.clone();
    (closed.tls, closed.ca_pem) = (TlsMode::Passthrough, None);
    let off = Barriers { encrypted_hello: false, ..Barriers::default() };

    let fence = Fence::new(vec![opened]);
    let stream = TcpStream::connect(fence.to_name(HOST, 443).await).await.unwrap();
    let stream = greasing(fence.gate.ca_pem()).connect(HOST.try_into().unwrap(), stream).await.unwrap();
    assert_eq!(h1_over(stream).await.send_request(get("/")).await.unwrap().status(), StatusCode::OK);
    let stream = TcpStream::connect(fence.to_name(HOST, 443).await).await.unwrap();
    greasing(fence.gate.ca_pem()).connect("evil.example".try_into().unwrap(), stream).await.unwrap_err();
    assert_eq!(fence.log.intent(1).await.reason, "host_mismatch", "the outer name is the one that counts");

    for (barriers, reason) in [(Barriers::default(), "ech_refused"), (off, "grant")] {
        let fence = Fence::with(&config(vec![closed.clone()]), barriers);
        let stream = TcpStream::connect(fence.to_name(HOST, 443).await).await.unwrap();
        let relayed = greasing(&ca.pem).connect(HOST.try_into().unwrap(), stream).await;
        assert_eq!(relayed.is_ok(), reason == "grant");
        assert_eq!(fence.log.intent(0).await.reason, reason);
    }
}

/// Sends every byte by itself.
struct Drip(TcpStream);

impl AsyncRead for Drip {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Drip {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, &buf[..buf.len().min(1)])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_server_name_is_found_however_the_hello_is_scattered() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, ONE))).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let to = fence.to_name(HOST, 443).await;
    for (records, protocols) in [(None, 0), (Some(32), 0), (None, 200), (Some(200), 200)] {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(fence.gate.ca_pem().as_bytes()).unwrap()).unwrap();
        let mut config = rustls::ClientConfig::builder_with_provider(ringfence_gate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // Several KiB, before or behind the name: the library shuffles its extensions.
        config.alpn_protocols = (0..protocols).map(|n| format!("protocol-number-{n:03}").into_bytes()).collect();
        config.alpn_protocols.push(b"http/1.1".to_vec());
        config.max_fragment_size = records;
        let connector = TlsConnector::from(Arc::new(config));
        for name in [HOST, "evil.example"] {
            let stream = TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let opened = connector.connect(name.try_into().unwrap(), Drip(stream)).await;
            assert_eq!(opened.is_ok(), name == HOST, "{records:?} {protocols}");
        }
    }
    assert!(fence.log.intents().iter().all(|intent| intent.reason == "host_mismatch"));
    assert_eq!(fence.log.intents().len(), 4);
}
