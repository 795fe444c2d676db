//! TCP that nobody looks into, through a gate to real servers on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringfence_audit::Outcome;
use ringfence_gate::Barriers;
use ringfence_gate::config::GateConfig;
use ringfence_model::Bytes;
use ringfence_model::manifest::{Grant, Protocol, TcpRules};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GIT: &str = "git.example.org";

fn granted(upstream: SocketAddr, rules: TcpRules) -> Grant {
    Grant { port: 22, protocol: Protocol::Tcp(rules), connect_to: Some(upstream), ..Grant::to(GIT.parse().unwrap()) }
}

/// A server that speaks first, as SSH does, gives back what it hears, and after its client's last word has one more.
async fn server() -> SocketAddr {
    counted().await.0
}

async fn counted() -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let connections = Arc::clone(&count);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
                let mut buffer = vec![0; 65536];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..count]).await.is_err() {
                        return;
                    }
                }
                let _ = stream.write_all(b"bye").await;
            });
        }
    });
    (address, count)
}

async fn said(stream: &mut TcpStream, count: usize) -> String {
    let mut buffer = vec![0; count];
    stream.read_exact(&mut buffer).await.unwrap();
    String::from_utf8(buffer).unwrap()
}

#[tokio::test]
async fn a_server_may_speak_first_and_last() {
    let upstream = server().await;
    let fence = Fence::new(vec![granted(upstream, TcpRules::default())]);
    let started = Instant::now();
    let mut stream = TcpStream::connect(fence.to_name(GIT, 22).await).await.unwrap();
    assert_eq!(said(&mut stream, 14).await, "SSH-2.0-test\r\n");
    assert!(started.elapsed() < Duration::from_secs(2), "no first words were waited for");
    let intent = fence.log.intent(0).await;
    assert_eq!((intent.protocol.as_str(), intent.host.as_str(), intent.port), ("tcp", GIT, 22));
    assert_eq!((intent.decision, intent.rules), (Outcome::Allow, vec!["grant-1".to_owned()]));
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(said(&mut stream, 5).await, "hello");
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye", "what comes after the client's end still comes");
    let outcome = fence.log.outcome(0).await;
    assert_eq!((outcome.bytes_up, outcome.bytes_down, outcome.error), (5, 14 + 5 + 3, None));
    assert_eq!(outcome.address, Some(upstream.to_string()));
}

#[tokio::test]
async fn without_such_a_grant_nothing_is_taken_for_tcp() {
    let upstream = server().await;
    let http = Grant { port: 22, connect_to: Some(upstream), ..Grant::to(GIT.parse().unwrap()) };
    let other_port = Grant { port: 2222, ..granted(upstream, TcpRules::default()) };
    let fence = Fence::new(vec![http, other_port]);
    let mut stream = TcpStream::connect(fence.to_name(GIT, 22).await).await.unwrap();
    stream.write_all(b"SSH-2.0-client\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard).await;
    assert!(heard.is_empty(), "{heard:?}");
    let intent = fence.log.intent(0).await;
    assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, "protocol_unknown"));
}

#[tokio::test]
async fn an_address_on_the_host_s_network_needs_to_be_granted() {
    let upstream = server().await;
    let mut grant = granted(upstream, TcpRules::default());
    (grant.connect_to, grant.host, grant.port) = (None, "127.0.0.1".parse().unwrap(), upstream.port());
    for allow_private in [false, true] {
        grant.allow_private = allow_private;
        let fence = Fence::new(vec![grant.clone()]);
        let mut stream = TcpStream::connect(fence.to(upstream).await).await.unwrap();
        let mut first = [0; 3];
        assert_eq!(stream.read_exact(&mut first).await.is_ok(), allow_private);
        let intent = fence.log.intent(0).await;
        let want = if allow_private { "grant" } else { "private_address" };
        assert_eq!(intent.reason, want);
    }
}

#[tokio::test]
async fn a_guard_rail_may_forbid_it() {
    let upstream = server().await;
    let mut config = config(vec![granted(upstream, TcpRules::default())]);
    let rail = "forbid (principal, action == Action::\"tcp:connect\", resource);";
    config.guardrails = vec![("org.cedar".into(), rail.into())];
    let fence = Fence::of(&config);
    let mut stream = TcpStream::connect(fence.to_name(GIT, 22).await).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(fence.log.intent(0).await.reason, "guard_rail");
}

#[tokio::test]
async fn nothing_is_dialled_that_cannot_be_recorded() {
    let (upstream, connections) = counted().await;
    let fence = Fence::new(vec![granted(upstream, TcpRules::default())]);
    for (broken, dialled) in [(true, 0), (false, 1)] {
        fence.log.broken.store(broken, Ordering::Relaxed);
        let mut stream = TcpStream::connect(fence.to_name(GIT, 22).await).await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.is_ok_and(|count| count > 0), !broken);
        assert_eq!(connections.load(Ordering::Relaxed), dialled);
    }
}

#[tokio::test]
async fn a_rate_is_shared_by_the_connections_of_its_grant() {
    let upstream = server().await;
    let rules = TcpRules { bytes_per_second: Some(Bytes(100_000)), max_bytes: None };
    let (limited, free) =
        (Fence::new(vec![granted(upstream, rules)]), Fence::new(vec![granted(upstream, TcpRules::default())]));
    // Twice 100 kB over 100 kB/s with one second's worth at hand: a second, and at once where there is no rate.
    for (fence, least_ms, most_ms) in [(&limited, 900, 5000), (&free, 0, 800)] {
        let started = Instant::now();
        let to = fence.to_name(GIT, 22).await;
        let one = async {
            let (mut read, mut write) = TcpStream::connect(to).await.unwrap().into_split();
            let send = async { write.write_all(&vec![7; 100_000]).await.unwrap() };
            let hear = async { read.read_exact(&mut vec![0; 100_000]).await.map(drop).unwrap() };
            tokio::join!(send, hear);
        };
        let two = async {
            let (mut read, mut write) = TcpStream::connect(to).await.unwrap().into_split();
            let send = async { write.write_all(&vec![7; 100_000]).await.unwrap() };
            let hear = async { read.read_exact(&mut vec![0; 100_000]).await.map(drop).unwrap() };
            tokio::join!(send, hear);
        };
        tokio::join!(one, two);
        let took = started.elapsed().as_millis();
        assert!((least_ms..most_ms).contains(&took), "{took} ms");
    }
}

#[tokio::test]
async fn a_connection_ends_at_its_most_bytes() {
    let upstream = server().await;
    let rules = TcpRules { bytes_per_second: None, max_bytes: Some(Bytes(1024)) };
    let fence = Fence::new(vec![granted(upstream, rules)]);
    let mut stream = TcpStream::connect(fence.to_name(GIT, 22).await).await.unwrap();
    said(&mut stream, 14).await;
    let _ = stream.write_all(&[7; 2000]).await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    let outcome = fence.log.outcome(0).await;
    assert!(outcome.error.unwrap().starts_with("max_bytes"));
    assert_eq!(outcome.bytes_up, 0, "what is beyond does not go");
}

#[tokio::test]
async fn a_placeholder_on_its_way_out_cuts_the_connection() {
    let upstream = server().await;
    let config = config(vec![granted(upstream, TcpRules::default())]);
    let held = Fence::of(&config);
    let open = Fence::with(&config, Barriers { misdirected_placeholders: false, ..Barriers::default() });
    for (fence, goes) in [(held, false), (open, true)] {
        let mut stream = TcpStream::connect(fence.to_name(GIT, 22).await).await.unwrap();
        said(&mut stream, 14).await;
        let (one, two) = PLACEHOLDER.split_at(7);
        stream.write_all(one.as_bytes()).await.unwrap();
        said(&mut stream, one.len()).await;
        stream.write_all(two.as_bytes()).await.unwrap();
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert_eq!(rest.starts_with(two.as_bytes()), goes);
        let outcome = fence.log.outcome(0).await;
        let found: &[&str] = if goes { &[] } else { &["placeholder_misdirected"] };
        assert_eq!(outcome.findings, found);
        assert_eq!(outcome.error.is_some_and(|why| why.starts_with("placeholder_misdirected")), !goes);
    }
}

#[tokio::test]
async fn a_connection_ends_when_its_grant_is_taken_away() {
    let upstream = server().await;
    let fence = Fence::new(vec![granted(upstream, TcpRules::default())]);
    let mut stream = TcpStream::connect(fence.to_name(GIT, 22).await).await.unwrap();
    said(&mut stream, 14).await;
    let same = config(vec![granted(upstream, TcpRules::default())]).policy();
    fence.gate.reload(&same).unwrap();
    stream.write_all(b"hello").await.unwrap();
    assert_eq!(said(&mut stream, 5).await, "hello");
    fence.gate.reload(&config(vec![]).policy()).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert!(fence.log.outcome(0).await.error.unwrap().starts_with("revoked"));
}

#[tokio::test]
async fn connections_and_their_bytes_count_against_the_budget() {
    let upstream = server().await;
    let with = |text: &str| GateConfig { budget: budget(text), ..config(vec![granted(upstream, TcpRules::default())]) };

    let fence = Fence::counting(&with("[budget]\nrequests_per_month = 2\n"), &ledger());
    let to = fence.to_name(GIT, 22).await;
    for (nth, taken) in [true, true, false].into_iter().enumerate() {
        let mut stream = TcpStream::connect(to).await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.is_ok_and(|count| count > 0), taken);
        let want = if taken { "grant" } else { "budget_exhausted" };
        assert_eq!(fence.log.intent(nth).await.reason, want);
    }

    let fence = Fence::counting(&with("[budget]\nbytes_per_month = 1024\n"), &ledger());
    let to = fence.to_name(GIT, 22).await;
    let mut stream = TcpStream::connect(to).await.unwrap();
    said(&mut stream, 14).await;
    let _ = stream.write_all(&[7; 2000]).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 2000, "{}", rest.len());
    assert!(fence.log.outcome(0).await.error.unwrap().starts_with("budget_exhausted"));
    let mut stream = TcpStream::connect(to).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    assert_eq!(fence.log.intent(1).await.reason, "budget_exhausted");
}

#[tokio::test]
async fn a_client_may_come_through_the_proxy() {
    let upstream = server().await;
    let fence = Fence::new(vec![granted(upstream, TcpRules::default())]);
    let at = fence.to((ringfence_gate::proxy::ADDRESS, ringfence_gate::proxy::PORT).into()).await;
    for (port, good) in [(22, true), (23, false)] {
        let mut stream = TcpStream::connect(at).await.unwrap();
        stream
            .write_all(format!("CONNECT {GIT}:{port} HTTP/1.1\r\nhost: {GIT}:{port}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut heard = Vec::new();
        while !["SSH-2.0-test", " 403 "].iter().any(|end| String::from_utf8_lossy(&heard).contains(end)) {
            if stream.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                break;
            }
        }
        assert_eq!(String::from_utf8_lossy(&heard).contains("SSH-2.0-test"), good);
    }
}
