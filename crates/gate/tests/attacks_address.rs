//! Every way to have the gate dial what is not on the Internet: each held, and each shown with the barrier off where the
//! kernel of this host would take the call.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::sync::atomic::Ordering::Relaxed;

use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData};
use http::{Request, StatusCode};
use ringfence_audit::Outcome;
use ringfence_gate::Barriers;
use ringfence_gate::identify::{Speech, speech};
use ringfence_model::HostPattern;
use ringfence_model::manifest::{Grant, Scheme};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "rebound.example.org";

/// With the barrier off.
fn off() -> Barriers {
    Barriers { addresses: false, ..Barriers::default() }
}

/// A grant of cleartext to a name, at the port of an upstream.
fn granted(name: &str, upstream: &Upstream) -> Grant {
    let mut grant = Grant::to(name.parse().unwrap());
    (grant.scheme, grant.port) = (Scheme::Http, upstream.address.port());
    grant
}

/// Calls a name once.
async fn call(fence: &Fence, name: &str, port: u16) -> StatusCode {
    let to = fence.to_name(name, port).await;
    let mut client = h1_over(TcpStream::connect(to).await.unwrap()).await;
    let request = Request::get("/").header("host", format!("{name}:{port}")).body(text("")).unwrap();
    client.send_request(request).await.unwrap().status()
}

async fn denied(fence: &Fence, nth: usize) -> String {
    let intent = fence.log.intent(nth).await;
    assert_eq!(intent.decision, Outcome::Deny);
    intent.reason
}

#[tokio::test]
async fn a_name_that_moves_to_a_private_address_is_not_followed() {
    let upstream = Upstream::start(None).await;
    let port = upstream.address.port();
    let cname = |target: &str| RData::CNAME(CNAME(Name::from_ascii(target).unwrap()));
    for (found, works) in [
        (at("127.0.0.1"), true),
        (at("0.0.0.0"), true),
        ([vec![cname("inner.example.org.")], at("127.0.0.1")].concat(), true),
        ([vec![cname("a.example.org."), cname("b.example.org.")], at("127.0.0.1")].concat(), true),
        (at("::"), false),
        (at("::1"), false),
        (at("::ffff:127.0.0.1"), false),
        (at("::127.0.0.1"), false),
        (at("::ffff:0:127.0.0.1"), false),
        (at("64:ff9b::7f00:1"), false),
        (at("64:ff9b::a9fe:a9fe"), false),
        (at("64:ff9b:1::7f00:1"), false),
        (at("2002:7f00:1::"), false),
        (at("2001:0:7f00:1::1"), false),
        (at("fe80::1"), false),
        (at("fd00:ec2::254"), false),
        (at("10.0.0.1"), false),
        (at("172.16.0.1"), false),
        (at("192.168.0.1"), false),
        (at("100.64.0.1"), false),
        (at("169.254.169.254"), false),
        (at("169.254.0.1"), false),
        (at("198.18.1.2"), false),
        (at("255.255.255.255"), false),
        (at("224.0.0.1"), false),
    ] {
        let names = Names::serve(&[(NAME, vec![found.clone()])]);
        let grants = vec![granted(NAME, &upstream)];
        let before = upstream.connections.load(Relaxed);
        let fence = Fence::asking(&config(grants.clone()), Barriers::default(), &names);
        assert_eq!(call(&fence, NAME, port).await, StatusCode::FORBIDDEN, "{found:?}");
        assert_eq!(denied(&fence, 0).await, "private_address", "{found:?}");
        assert_eq!(upstream.connections.load(Relaxed), before);
        if works {
            let fence = Fence::asking(&config(grants), off(), &names);
            assert_eq!(call(&fence, NAME, port).await, StatusCode::OK, "with the barrier off {found:?} is reached");
        }
    }
}

#[tokio::test]
async fn what_was_checked_is_what_is_dialled() {
    let first = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = first.local_addr().unwrap().port();
    let second = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let names = Names::serve(&[(NAME, vec![at("127.0.0.2"), at("127.0.0.3")])]);
    let mut grant = Grant::to(NAME.parse().unwrap());
    (grant.scheme, grant.port, grant.allow_private) = (Scheme::Http, port, true);
    let fence = Fence::asking(&config(vec![grant]), Barriers::default(), &names);
    let answered = tokio::spawn(async move {
        tokio::select! {
            Ok((mut stream, _)) = first.accept() => {
                stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                "the first"
            }
            Ok(_) = second.accept() => "the second",
        }
    });
    assert_eq!(call(&fence, NAME, port).await, StatusCode::NO_CONTENT);
    assert_eq!(answered.await.unwrap(), "the first");
    let asked = names.asked.lock().unwrap().len();
    assert_eq!(asked, 2, "A and AAAA, and never again between check and dial");
    assert_eq!(fence.log.outcome(0).await.address.as_deref(), Some(format!("127.0.0.2:{port}").as_str()));
}

#[tokio::test]
async fn metadata_services_are_refused_by_name_even_where_private_addresses_are_granted() {
    let upstream = Upstream::start(None).await;
    let port = upstream.address.port();
    for name in ["metadata.google.internal", "metadata.goog", "instance-data.ec2.internal", "metadata", "instance-data"]
    {
        let names = Names::serve(&[(name, vec![at("127.0.0.1")])]);
        let mut grant = granted(name, &upstream);
        grant.allow_private = true;
        let fence = Fence::asking(&config(vec![grant.clone()]), Barriers::default(), &names);
        assert_eq!(call(&fence, name, port).await, StatusCode::FORBIDDEN, "{name}");
        assert_eq!(denied(&fence, 0).await, "private_address");
        assert!(names.asked.lock().unwrap().is_empty(), "{name} is not even looked up");
        let fence = Fence::asking(&config(vec![grant]), off(), &names);
        assert_eq!(call(&fence, name, port).await, StatusCode::OK, "with the barrier off {name} is reached");
    }
    let names = Names::serve(&[(NAME, vec![at("169.254.169.254")])]);
    let mut grant = granted(NAME, &upstream);
    grant.allow_private = true;
    let fence = Fence::asking(&config(vec![grant]), Barriers::default(), &names);
    assert_eq!(call(&fence, NAME, port).await, StatusCode::FORBIDDEN, "whatever its name");
}

/// How `inet_aton` and URL libraries write 127.0.0.1 and others.
const ODD: [&str; 12] = [
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0x7f.0x0.0x0.0x1",
    "0177.0.0.1",
    "017700000001",
    "127.0.0.01",
    "1.2.3.4.5",
    "fe80::1%eth0",
    "[fe80::1%25eth0]",
];

#[tokio::test]
async fn an_address_in_an_odd_form_is_neither_granted_nor_named() {
    for odd in ODD {
        assert!(odd.parse::<HostPattern>().is_err(), "{odd} as a grant");
    }
    let upstream = Upstream::start(None).await;
    let fence = Fence::new(vec![granted("127.0.0.1", &upstream)]);
    let port = upstream.address.port();
    let to = fence.to(upstream.address).await;
    for (nth, odd) in ODD.into_iter().enumerate() {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nHost: {odd}:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 403"), "{odd}: {said}");
        assert_eq!(denied(&fence, nth).await, "host_mismatch", "{odd}");
    }
    assert_eq!(upstream.connections.load(Relaxed), 0);
}

/// A ClientHello that names `text`, which no library would send.
fn hello_to(text: &str) -> Vec<u8> {
    let stand_in: String = format!("{}.bcd", "a".repeat(text.len() - 4));
    let mut config = rustls::ClientConfig::builder_with_provider(ringfence_gate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    let name = stand_in.clone().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    let at = bytes.windows(stand_in.len()).position(|w| w == stand_in.as_bytes()).unwrap();
    bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
    bytes
}

#[tokio::test]
async fn a_server_name_in_an_odd_form_is_no_host() {
    let upstream = Upstream::start(None).await;
    let mut grant = granted("127.0.0.1", &upstream);
    grant.scheme = Scheme::Https;
    let fence = Fence::new(vec![grant]);
    let to = fence.to(upstream.address).await;
    let named = fence.to_name(NAME, 443).await;
    let mut nth = 0;
    for odd in ODD.into_iter().chain(["127.0.0.1", "169.254.169.254"]) {
        let bytes = hello_to(odd);
        let Speech::Tls(hello) = speech(&bytes) else { panic!("{odd}") };
        assert_eq!(hello.server_name.as_deref(), Some(odd));
        for to in [to, named] {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            assert_eq!(said, [0x15, 3, 3, 0, 2, 2, 49], "{odd}");
            assert_eq!(denied(&fence, nth).await, "host_mismatch", "{odd}");
            nth += 1;
        }
    }
    assert_eq!(upstream.connections.load(Relaxed), 0);
}

#[tokio::test]
async fn a_literal_private_address_needs_the_operators_word() {
    let upstream = Upstream::start(None).await;
    let port = upstream.address.port();
    let call = async |fence: &Fence| {
        let mut client = h1_over(TcpStream::connect(fence.to(upstream.address).await).await.unwrap()).await;
        let request = Request::get("/").header("host", format!("127.0.0.1:{port}")).body(text("")).unwrap();
        client.send_request(request).await.unwrap().status()
    };
    let mut grant = granted("127.0.0.1", &upstream);
    let fence = Fence::new(vec![grant.clone()]);
    assert_eq!(call(&fence).await, StatusCode::FORBIDDEN);
    assert_eq!(denied(&fence, 0).await, "private_address");
    grant.allow_private = true;
    assert_eq!(call(&Fence::new(vec![grant.clone()])).await, StatusCode::OK);
    (grant.allow_private, grant.connect_to) = (false, Some(upstream.address));
    assert_eq!(call(&Fence::new(vec![grant])).await, StatusCode::OK);
}

/// The host's public addresses are on the Internet by their number, and what listens there is the ingress of agents, the
/// supervisor's, or anything of the host. In a namespace in which every address is local, any is its own.
#[test]
fn the_hosts_own_public_address_is_not_dialled() {
    let inside = || {
        ringfence_sys::process::new_network_namespace().expect("this test needs root: it makes a network namespace");
        ringfence_sys::netns::make_everything_local().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ingress = TcpListener::bind("9.9.9.9:0").await.unwrap();
            let port = ingress.local_addr().unwrap().port();
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = ingress.accept().await {
                    let _ = stream.read(&mut [0; 1024]).await;
                    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await.unwrap();
                }
            });
            let names = Names::serve(&[(NAME, vec![at("9.9.9.9")])]);
            let mut grant = Grant::to(NAME.parse().unwrap());
            (grant.scheme, grant.port) = (Scheme::Http, port);
            let fence = Fence::asking(&config(vec![grant.clone()]), Barriers::default(), &names);
            assert_eq!(call(&fence, NAME, port).await, StatusCode::FORBIDDEN);
            assert_eq!(denied(&fence, 0).await, "private_address");
            let fence = Fence::asking(&config(vec![grant.clone()]), off(), &names);
            assert_eq!(call(&fence, NAME, port).await, StatusCode::NO_CONTENT, "with the barrier off it is");
            grant.allow_private = true;
            let fence = Fence::asking(&config(vec![grant]), Barriers::default(), &names);
            assert_eq!(call(&fence, NAME, port).await, StatusCode::NO_CONTENT, "the operator may mean it");
        });
    };
    std::thread::spawn(inside).join().unwrap();
}
