//! Bodies: the digests of them in the log, and those that come in a content coding.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "this is test code")]

mod support;

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use ringfence_gate::hash::MAX_HASHED_BYTES;
use ringfence_model::Digest;
use ringfence_model::manifest::{Grant, Place};
use support::*;
use tokio::io::AsyncWriteExt;

const ONE: &[&[u8]] = &[b"http/1.1"];
const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];

async fn world(alpn: &[&[u8]]) -> (Upstream, Grant) {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, alpn))).await;
    let grant = grant(upstream.address, &ca);
    (upstream, grant)
}

/// A body of unknown length, in parts.
fn parts(parts: Vec<Bytes>) -> BoxBody<Bytes, Infallible> {
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(parts).map(|part| Ok(Frame::data(part)))))
}

fn upload(body: BoxBody<Bytes, Infallible>) -> Request<BoxBody<Bytes, Infallible>> {
    Request::post("/upload").header("host", HOST).body(body).unwrap()
}

#[tokio::test]
async fn the_log_has_the_digests_of_what_the_upstream_got_and_sent() {
    for alpn in [ONE, BOTH] {
        let (upstream, grant) = world(alpn).await;
        let fence = Fence::new(vec![keyed(grant)]);
        let mut client = fence.h1().await;
        let large: Vec<Bytes> = (0..40_u8).map(|n| Bytes::from(vec![n; 50_000])).collect();
        let bodies =
            [text("short"), parts(vec!["in ".into(), "parts".into()]), parts(large), text("y".repeat(300_000))];
        for (nth, body) in bodies.into_iter().enumerate() {
            client.ready().await.unwrap();
            let answer = client.send_request(upload(body)).await.unwrap().into_body().collect().await.unwrap();
            let outcome = fence.log.outcome(nth).await;
            let reached = Digest::of(&upstream.bodies.lock().unwrap()[nth]);
            assert_eq!(outcome.digest_up, Some(reached), "{nth}");
            assert_eq!(outcome.digest_down, Some(Digest::of(&answer.to_bytes())), "{nth}");
        }
        client.ready().await.unwrap();
        client.send_request(upload(text(""))).await.unwrap().into_body().collect().await.unwrap();
        let outcome = fence.log.outcome(4).await;
        assert_eq!((outcome.digest_up, outcome.digest_down), (None, None), "an empty body has none");
    }
}

#[tokio::test]
async fn what_is_too_large_to_be_hashed_has_no_digest() {
    let (upstream, grant) = world(ONE).await;
    let fence = Fence::new(vec![grant]);
    let piece = Bytes::from(vec![b'z'; 1 << 20]);
    let count = usize::try_from(MAX_HASHED_BYTES >> 20).unwrap();
    for (nth, (more, hashed)) in [("", true), ("x", false)].into_iter().enumerate() {
        let mut all = vec![piece.clone(); count];
        all.push(Bytes::from(more));
        let sent = upload(parts(all));
        fence.h1().await.send_request(sent).await.unwrap().into_body().collect().await.unwrap();
        let outcome = fence.log.outcome(nth).await;
        assert_eq!(outcome.bytes_up, MAX_HASHED_BYTES + more.len() as u64);
        let reached = Some(Digest::of(&upstream.bodies.lock().unwrap()[nth])).filter(|_| hashed);
        assert_eq!((outcome.digest_up, outcome.digest_down), (reached, reached));
    }
}

#[tokio::test]
async fn what_broke_off_has_no_digest() {
    let (upstream, grant) = world(ONE).await;
    let fence = Fence::new(vec![grant]);
    // The answer is given up by the agent.
    let mut body = fence.h1().await.send_request(get("/sse")).await.unwrap().into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    let outcome = fence.log.outcome(0).await;
    assert!(outcome.bytes_down > 0 && outcome.error.is_some());
    assert_eq!(outcome.digest_down, None);
    // The request is.
    let to = fence.to_name(HOST, 443).await;
    let mut stream = fence.tls(to, HOST, ONE).await.unwrap();
    let begun = format!("POST /upload HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n");
    stream.write_all(begun.as_bytes()).await.unwrap();
    wait(|| (upstream.heads().len() == 2).then_some(()), || "the upload does not arrive".into()).await;
    drop(stream);
    let outcome = fence.log.outcome(1).await;
    assert_eq!((outcome.bytes_up, outcome.digest_up), (5, None));
}

#[tokio::test]
async fn a_body_with_a_secret_in_it_has_no_digest() {
    let (upstream, grant) = world(ONE).await;
    let mut config = config(vec![keyed(grant)]);
    let fence = Fence::of(&config);
    let answer = body_of(fence.h1().await.send_request(get("/echo-secret")).await.unwrap()).await;
    assert!(answer.contains(PLACEHOLDER));
    let outcome = fence.log.outcome(0).await;
    assert_eq!((outcome.digest_down, &outcome.findings[..]), (None, &["secret_echo_redacted".to_owned()][..]));
    config.credentials.get_mut("openai").unwrap().place = Place::Json { keys: vec!["key".into()] };
    let fence = Fence::of(&config);
    let mut request = post("/v1", &format!("{{\"key\":\"{PLACEHOLDER}\",\"a\":1}}"));
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    assert_eq!(fence.h1().await.send_request(request).await.unwrap().status(), StatusCode::OK);
    assert!(String::from_utf8_lossy(&upstream.bodies.lock().unwrap()[0]).contains(SECRET));
    assert_eq!(fence.log.outcome(0).await.digest_up, None);
}
