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
use ringfence_gate::config::GateConfig;
use ringfence_gate::hash::MAX_HASHED_BYTES;
use ringfence_model::Digest;
use ringfence_model::manifest::{Grant, Place, RpcRules};
use serde_json::{Value, json};
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

const CODINGS: [&str; 5] = ["br", "deflate", "gzip", "zstd", "gzip, zstd"];
const CHAT: &str = "/v1/chat/completions";

fn with(
    mut request: Request<BoxBody<Bytes, Infallible>>,
    headers: &[(&'static str, &str)],
) -> Request<BoxBody<Bytes, Infallible>> {
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// A request whose body is in these codings.
fn post_coded(path: &str, codings: &str, body: &str) -> Request<BoxBody<Bytes, Infallible>> {
    let request = Request::post(path).header("host", HOST).body(text(coded(codings, body.as_bytes()))).unwrap();
    with(request, &[("content-encoding", codings), ("content-type", "application/json")])
}

fn ask(model: &str, words: u64, stream: bool) -> String {
    let said = [json!({"role": "user", "content": words.to_string()})];
    json!({"model": model, "messages": said, "stream": stream}).to_string()
}

async fn send(fence: &Fence, request: Request<BoxBody<Bytes, Infallible>>) -> (StatusCode, String) {
    let response = fence.h1().await.send_request(request).await.unwrap();
    (response.status(), body_of(response).await)
}

#[tokio::test]
async fn a_model_in_a_coded_body_is_decided_and_what_was_read_is_what_is_sent() {
    let (upstream, mut grant) = world(ONE).await;
    grant.models = vec!["small".into()];
    let fence = Fence::new(vec![grant]);
    for (nth, codings) in CODINGS.into_iter().enumerate() {
        for path in [CHAT, "/v1/own"] {
            let (status, _) = send(&fence, post_coded(path, codings, &ask("large", 3, false))).await;
            assert_eq!(status, StatusCode::FORBIDDEN);
            assert_eq!(fence.log.intents().last().unwrap().reason, "model_not_granted", "{codings}");
        }
        let (status, answer) = send(&fence, post_coded(CHAT, codings, &ask("small", 3, false))).await;
        assert!(status == StatusCode::OK && answer.contains("word word word "), "{codings}: {answer}");
        let plain = ask("small", 3, false);
        assert_eq!(send(&fence, post_coded("/v1/own", codings, &plain)).await, (StatusCode::OK, plain.clone()));
        assert_eq!(fence.log.outcome(2 * nth + 1).await.digest_up, Some(Digest::of(plain.as_bytes())));
    }
    let heads = upstream.heads();
    assert_eq!(heads.len(), 2 * CODINGS.len(), "what was denied did not leave");
    for (_, _, headers, _) in heads {
        assert!(!headers.contains_key("content-encoding"));
    }
}

#[tokio::test]
async fn a_coded_body_that_cannot_be_decoded_within_bounds_is_denied() {
    let (upstream, mut grant) = world(ONE).await;
    grant.models = vec!["small".into()];
    let fence = Fence::new(vec![grant]);
    let bomb = format!("{}{}", ask("small", 3, false), " ".repeat(3 << 20));
    let large = format!("{}{}", ask("small", 3, false), (0..700_000).map(|n| format!(" {n}")).collect::<String>());
    let whole = ask("small", 3, false);
    let cut = || with(post("/v1/own", "x"), &[("content-encoding", "gzip")]);
    let framed = || with(post("/v1/own", &whole), &[("content-encoding", "aws-chunked")]);
    for (request, reason) in [
        (post_coded(CHAT, "gzip", &bomb), "body_too_large"),
        (post_coded(CHAT, "gzip, zstd", &bomb), "body_too_large"),
        (post_coded(CHAT, "zstd", &large), "body_too_large"),
        (post_coded(CHAT, "snappy", &whole), "body_encoded"),
        (post_coded(CHAT, "gzip, gzip, gzip", &whole), "body_encoded"),
        (cut(), "body_encoded"),
        (framed(), "body_encoded"),
    ] {
        assert_eq!(send(&fence, request).await.0, StatusCode::FORBIDDEN);
        assert_eq!(fence.log.intents().last().unwrap().reason, reason);
    }
    assert!(upstream.heads().is_empty());
}

#[tokio::test]
async fn a_coded_body_that_nobody_must_read_goes_on_as_it_came() {
    let (upstream, grant) = world(ONE).await;
    let fence = Fence::new(vec![grant]);
    let plain = ask("large", 3, false);
    let request = post_coded("/v1/own", "gzip", &plain);
    fence.h1().await.send_request(request).await.unwrap();
    assert_eq!(upstream.bodies.lock().unwrap()[0], coded("gzip", plain.as_bytes()));
    assert_eq!(upstream.heads()[0].2["content-encoding"], "gzip");
}

#[tokio::test]
async fn a_tool_in_a_coded_body_is_decided_and_a_coded_list_is_filtered() {
    let (upstream, mut grant) = world(ONE).await;
    grant.rpc = Some(RpcRules { tools: Some(vec!["search".into()]), ..RpcRules::default() });
    let fence = Fence::new(vec![grant]);
    let say = |method: &str, params: Value| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    for codings in CODINGS {
        let shell = say("tools/call", json!({"name": "shell", "arguments": {}})).to_string();
        send(&fence, post_coded("/mcp", codings, &shell)).await;
        assert_eq!(fence.log.intents().last().unwrap().reason, "rpc_not_granted", "{codings}");
        let search = say("tools/call", json!({"name": "search", "arguments": {}})).to_string();
        assert!(send(&fence, post_coded("/mcp", codings, &search)).await.1.contains("search"));
        let list = with(post("/mcp", &say("tools/list", json!({})).to_string()), &[("x-coding", codings)]);
        let (_, answer) = send(&fence, list).await;
        assert!(answer.contains("does search") && !answer.contains("shell"), "{codings}: {answer}");
    }
    assert_eq!(upstream.heads().len(), 2 * CODINGS.len());
}

#[tokio::test]
async fn what_a_coded_answer_used_is_counted() {
    let (upstream, grant) = world(ONE).await;
    let config = GateConfig { budget: budget("[budget]\ntokens_per_month = 100000\n"), ..config(vec![grant]) };
    let fence = Fence::counting(&config, &ledger());
    let mut nth = 0;
    for codings in CODINGS {
        for stream in [true, false] {
            let request = with(post(CHAT, &ask("gpt-4o-mini", 20, stream)), &[("x-coding", codings)]);
            let response = fence.h1().await.send_request(request).await.unwrap();
            assert!(!response.headers().contains_key("content-encoding"), "{codings}");
            assert_eq!(response.headers()["etag"], "W/\"coded\"");
            let answer = body_of(response).await;
            assert_eq!(answer.matches("word ").count(), 20, "{codings}: {answer}");
            assert!(!stream || answer.ends_with("data: [DONE]\n\n") && !answer.contains("prompt_tokens"));
            let outcome = fence.log.outcome(nth).await;
            let used = outcome.llm.unwrap();
            assert_eq!((used.input_tokens, used.output_tokens, used.estimated), (10, 20, false), "{codings}");
            assert!(outcome.bytes_down > 0 && outcome.digest_down.is_some_and(|d| d != Digest::of(answer.as_bytes())));
            nth += 1;
        }
    }
    let request = with(post(CHAT, &ask("gpt-4o-mini", 20, true)), &[("x-coding", "snappy")]);
    assert_eq!(send(&fence, request).await.0, StatusCode::BAD_GATEWAY, "what cannot be counted is not let through");
    assert!(fence.log.outcome(nth).await.error.unwrap().starts_with("encoded_uncountable"));
    assert_eq!(upstream.heads().len(), nth + 1);
}

#[tokio::test]
async fn a_secret_in_a_coded_answer_comes_back_as_the_placeholder() {
    let (_upstream, grant) = world(ONE).await;
    let fence = Fence::new(vec![keyed(grant)]);
    for (nth, codings) in CODINGS.into_iter().enumerate() {
        let (status, answer) = send(&fence, with(get("/echo-secret"), &[("x-coding", codings)])).await;
        assert!(status == StatusCode::OK && answer.contains(PLACEHOLDER) && !answer.contains(SECRET), "{answer}");
        assert_eq!(fence.log.outcome(nth).await.findings, ["secret_echo_redacted"]);
    }
    let (status, _) = send(&fence, with(get("/echo-secret"), &[("x-coding", "snappy")])).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "what cannot be searched is not let through");
    assert!(fence.log.outcome(CODINGS.len()).await.error.unwrap().starts_with("encoded_echo_uninspectable"));
}

#[tokio::test]
async fn an_answer_that_grows_beyond_bounds_is_cut_off() {
    let (_upstream, grant) = world(ONE).await;
    let fence = Fence::new(vec![keyed(grant)]);
    for (nth, codings) in ["gzip", "zstd", "zstd, gzip"].into_iter().enumerate() {
        let request = with(upload(parts(vec![Bytes::from(vec![0; 16 << 20])])), &[("x-coding", codings)]);
        let mut body = fence.h1().await.send_request(request).await.unwrap().into_body();
        let mut got = 0;
        let ended = loop {
            match body.frame().await {
                Some(Ok(frame)) => got += frame.into_data().map_or(0, |data| data.len()),
                other => break other,
            }
        };
        assert!(matches!(ended, Some(Err(_))) && got < 8 << 20, "{codings}: {got}");
        let outcome = fence.log.outcome(nth).await;
        assert!(outcome.error.unwrap().starts_with("response_encoded"));
        assert_eq!(outcome.digest_down, None);
    }
}
