//! An agent asks for names over TCP; its datagrams take the same way in `process.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use ringfence_audit::{Event, Outcome};
use ringfence_gate::Barriers;
use ringfence_model::manifest::{Grant, TlsMode};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn question(id: u16, name: &str, rtype: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    framed(&message.to_vec().unwrap())
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat()
}

async fn reply(stream: &mut TcpStream) -> Message {
    let mut bytes = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

async fn resolver(fence: &Fence) -> TcpStream {
    TcpStream::connect(fence.to("10.0.0.53:53".parse().unwrap()).await).await.unwrap()
}

fn fence() -> Fence {
    Fence::new(vec![Grant::to(HOST.parse().unwrap()), Grant::to("*.wild.example.org".parse().unwrap())])
}

#[tokio::test]
async fn many_questions_on_one_connection_are_answered_in_their_order() {
    let fence = fence();
    let mut stream = resolver(&fence).await;
    let names = (0..200_u16).map(|n| (n, format!("h{n}.wild.example.org.")));
    let all: Vec<u8> = names.clone().flat_map(|(n, name)| question(n, &name, RecordType::A)).collect();
    // Cut where no message ends, so that lengths and messages arrive in pieces.
    for piece in all.chunks(97) {
        stream.write_all(piece).await.unwrap();
    }
    let mut addresses = std::collections::HashSet::new();
    for (n, name) in names {
        let got = reply(&mut stream).await;
        assert_eq!((got.metadata.id, got.queries[0].name().to_ascii()), (n, name.clone()));
        let RData::A(address) = &got.answers[0].data else { panic!() };
        assert_eq!(fence.gate.names().assign(&name.parse().unwrap()), Some(address.0));
        addresses.insert(address.0);
    }
    assert_eq!(addresses.len(), 200, "an address is of one name");
    let address = fence.gate.names().assign(&HOST.parse().unwrap()).unwrap();
    let [a, b, c, d] = address.octets();
    stream.write_all(&question(7, &format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR)).await.unwrap();
    let got = reply(&mut stream).await;
    assert!(matches!(&got.answers[0].data, RData::PTR(name) if name.0.to_ascii() == format!("{HOST}.")));
}

#[tokio::test]
async fn what_is_denied_does_not_exist_and_is_in_the_log() {
    let fence = fence();
    let mut stream = resolver(&fence).await;
    stream.write_all(&question(1, "c2vjcmv0.evil.example.", RecordType::TXT)).await.unwrap();
    let got = reply(&mut stream).await;
    assert_eq!(got.metadata.response_code, ResponseCode::NXDomain);
    let wanted = Event::DnsQuery {
        name: "c2vjcmv0.evil.example".into(),
        rtype: "TXT".into(),
        decision: Outcome::Deny,
        reason: "no_grant".into(),
    };
    assert_eq!(fence.log.events.lock().unwrap()[..], [wanted]);
    for n in 0..2000 {
        stream.write_all(&question(n, &format!("{n}.evil.example."), RecordType::A)).await.unwrap();
        assert_eq!(reply(&mut stream).await.metadata.response_code, ResponseCode::NXDomain);
    }
    let entries = fence.log.events.lock().unwrap().len();
    assert!(entries < 500, "a flood is counted: {entries}");

    fence.log.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    stream.write_all(&question(2, &format!("{HOST}."), RecordType::A)).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "what cannot be recorded is not answered");
}

#[tokio::test]
async fn garbage_is_answered_with_an_error_or_ends_the_connection() {
    let fence = fence();
    let mut stream = resolver(&fence).await;
    stream.write_all(&framed(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01")).await.unwrap();
    let got = reply(&mut stream).await;
    assert_eq!((got.metadata.id, got.metadata.response_code), (0x1234, ResponseCode::FormErr));
    stream.write_all(&question(3, &format!("{HOST}."), RecordType::A)).await.unwrap();
    assert_eq!(reply(&mut stream).await.answers.len(), 1, "the next question is answered");
    for last in [&b"\0\0"[..], b"\0\x05short", &framed(b"\x12\x34\x81\0\0\x01\0\0\0\0\0\0")] {
        let mut stream = resolver(&fence).await;
        stream.write_all(last).await.unwrap();
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "{last:?}");
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_more_is_closed() {
    let fence = fence();
    let mut stream = resolver(&fence).await;
    // Half a question, and not even its end byte by byte.
    stream.write_all(b"\0\x20half").await.unwrap();
    let started = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut [0; 16])).await.unwrap();
    assert_eq!(ended.unwrap_or(0), 0);
    assert!(started.elapsed() > Duration::from_secs(5), "and not before it had time");
}

#[tokio::test]
async fn dns_inside_https_is_denied_unless_its_path_is_granted() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"http/1.1"]))).await;
    let asking = "/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB";
    let mut globbed = grant(upstream.address, &ca);
    globbed.paths = vec!["/*".into()];
    let mut named = globbed.clone();
    named.paths.push("/dns-query".into());
    let on = Barriers::default();
    let off = Barriers { encrypted_dns: false, ..on };
    for (granted, barriers, want) in [(&globbed, on, 403), (&named, on, 200), (&globbed, off, 200)] {
        let fence = Fence::with(&config(vec![granted.clone()]), barriers);
        let mut client = fence.h1().await;
        let before = upstream.heads().len();
        assert_eq!(client.send_request(get(asking)).await.unwrap().status(), want);
        let mut typed = post("/upload", "message");
        typed.headers_mut().insert("content-type", "application/dns-message".parse().unwrap());
        client.ready().await.unwrap();
        let status = client.send_request(typed).await.unwrap().status();
        assert_eq!(status, if barriers == on { 403 } else { 200 }, "another path is not granted by it");
        if want == 403 {
            assert_eq!(fence.log.intent(0).await.reason, "dns_over_https");
            assert_eq!(upstream.heads().len(), before, "nothing of it left");
        }
    }
}

#[tokio::test]
async fn dns_inside_tls_is_denied_by_its_port_and_by_what_it_offers() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"dot"]))).await;
    let mut closed = grant(upstream.address, &ca);
    (closed.tls, closed.ca_pem) = (TlsMode::Passthrough, None);
    let on = Barriers::default();
    for barriers in [on, Barriers { encrypted_dns: false, ..on }] {
        let fence = Fence::with(&config(vec![closed.clone()]), barriers);
        for (to, name) in
            [(fence.to_name(HOST, 853).await, HOST), (fence.to("1.1.1.1:853".parse().unwrap()).await, "1.1.1.1")]
        {
            fence.tls(to, name, &[]).await.unwrap_err();
        }
        for nth in [0, 1] {
            let intent = fence.log.intent(nth).await;
            assert_eq!(
                (intent.reason.as_str(), intent.port),
                ("dns_over_tls", 853),
                "with no grant it is denied anyway"
            );
        }
        let stream = TcpStream::connect(fence.to_name(HOST, 443).await).await.unwrap();
        let opened = connector(&ca.pem, &[b"dot"]).connect(HOST.try_into().unwrap(), stream).await;
        assert_eq!(opened.is_err(), barriers == on, "at another port it is known by its protocol's name");
        assert_eq!(fence.log.intent(2).await.reason, if barriers == on { "dns_over_tls" } else { "grant" });
    }
    let mut granted = closed.clone();
    granted.port = 853;
    let fence = Fence::new(vec![granted]);
    let stream = TcpStream::connect(fence.to_name(HOST, 853).await).await.unwrap();
    connector(&ca.pem, &[b"dot"]).connect(HOST.try_into().unwrap(), stream).await.unwrap();
}
