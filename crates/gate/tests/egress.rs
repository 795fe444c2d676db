//! Calls of an agent through a gate to real upstreams on loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode, Version};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use ringfence_audit::Outcome;
use ringfence_gate::config::GateConfig;
use ringfence_model::manifest::{Place, Scheme, TlsMode, Trust};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
const ONE: &[&[u8]] = &[b"http/1.1"];

async fn world(alpn: &[&[u8]]) -> (TestCa, Upstream) {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, alpn))).await;
    (ca, upstream)
}

#[tokio::test]
async fn a_granted_call_goes_through_with_the_secret_and_is_recorded_before_and_after() {
    for (alpn, version) in [(ONE, Version::HTTP_11), (BOTH, Version::HTTP_2)] {
        let (ca, upstream) = world(alpn).await;
        let mut granted = keyed(grant(upstream.address, &ca));
        granted.trust = Trust::Untrusted;
        let fence = Fence::new(vec![granted]);
        let mut client = fence.h1().await;
        for round in 0..3 {
            let mut request = post("/v1/%63hat?a=b", "hello");
            request.headers_mut().insert("authorization", format!("Bearer {PLACEHOLDER}").parse().unwrap());
            client.ready().await.unwrap();
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(body_of(response).await, "hello");
            let (method, target, headers, got) = upstream.heads()[round].clone();
            assert_eq!((method.as_str(), target.as_str(), got), ("POST", "/v1/chat?a=b", version));
            assert_eq!(headers["authorization"], format!("Bearer {SECRET}").as_str());
            let outcome = fence.log.outcome(round).await;
            assert_eq!((outcome.status, outcome.bytes_up, outcome.bytes_down), (Some(200), 5, 5));
            assert_eq!(outcome.address, Some(upstream.address.to_string()));
            assert_eq!((outcome.error, outcome.findings), (None, vec![]));
        }
        let intent = fence.log.intent(0).await;
        assert_eq!(intent.decision, Outcome::Allow);
        assert_eq!(intent.rules, ["grant-1", "grant-1/secret"]);
        assert_eq!(intent.credential.as_deref(), Some("openai"));
        assert_eq!(intent.trust.as_deref(), Some("untrusted"));
        assert_eq!(intent.call, fence.log.outcome(0).await.call);
        assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::Relaxed), 1, "connections are kept");
    }
}

#[tokio::test]
async fn http2_of_the_agent_meets_either_protocol_upstream() {
    for (alpn, version) in [(ONE, Version::HTTP_11), (BOTH, Version::HTTP_2)] {
        let (ca, upstream) = world(alpn).await;
        let fence = Fence::new(vec![grant(upstream.address, &ca)]);
        let client = fence.h2().await;
        let calls = (0..20).map(|n| {
            let mut client = client.clone();
            async move {
                let request = Request::post(format!("https://{HOST}/{n}")).body(text(format!("body {n}"))).unwrap();
                body_of(client.send_request(request).await.unwrap()).await
            }
        });
        let bodies = futures_util::future::join_all(calls).await;
        assert!(bodies.iter().enumerate().all(|(n, body)| *body == format!("body {n}")));
        assert!(upstream.heads().iter().all(|head| head.3 == version));
        assert_eq!(fence.log.intent(19).await.protocol, "h2");
    }
}

#[tokio::test]
async fn what_is_not_granted_is_denied_and_nothing_of_it_leaves() {
    let (ca, upstream) = world(ONE).await;
    let mut granted = grant(upstream.address, &ca);
    granted.methods = vec!["POST".into()];
    granted.paths = vec!["/v1/*".into()];
    let fence = Fence::new(vec![granted]);
    let mut client = fence.h1().await;
    for (nth, (request, reason)) in [
        (get("/v1/chat"), "no_grant"),
        (post("/v2", "data"), "no_grant"),
        (post("/v1/../v2", "data"), "path_ambiguous"),
        (post("/v1/%2e%2e/v2", "data"), "path_ambiguous"),
        (Request::post("/v1/chat").header("host", "evil.example").body(text("data")).unwrap(), "host_mismatch"),
        (Request::post(format!("https://{HOST}/v1/chat")).header("host", HOST).body(text("")).unwrap(), "proxy_form"),
    ]
    .into_iter()
    .enumerate()
    {
        if client.ready().await.is_err() {
            client = fence.h1().await;
        }
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let body: serde_json::Value = serde_json::from_str(&body_of(response).await).unwrap();
        let intent = fence.log.intent(nth).await;
        assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, reason));
        assert_eq!(body["code"], "ringfence.denied");
        assert_eq!(body["call"], intent.call.as_str());
        assert_eq!(body.as_object().unwrap().len(), 5, "and nothing more");
    }
    assert!(upstream.heads().is_empty());
    client.ready().await.unwrap();
    let response = client.send_request(post("/v1/chat", "x")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "with the grant the same client gets through");
}

#[tokio::test]
async fn a_call_that_cannot_be_recorded_is_not_made() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let mut client = fence.h1().await;
    fence.log.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let response = client.send_request(get("/")).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn the_agents_own_key_never_reaches_a_granted_host() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::new(vec![keyed(grant(upstream.address, &ca))]);
    let mut client = fence.h1().await;
    let mut request = get("/");
    request.headers_mut().insert("authorization", "Bearer attackers-own".parse().unwrap());
    request.headers_mut().append("connection", "authorization".parse().unwrap());
    client.send_request(request).await.unwrap();
    let heads = upstream.heads();
    let sent: Vec<_> = heads[0].2.get_all("authorization").iter().collect();
    assert_eq!(sent, [format!("Bearer {SECRET}").as_str()]);

    let open = Fence::new(vec![grant(upstream.address, &ca)]);
    let mut client = open.h1().await;
    let mut request = get("/");
    request.headers_mut().insert("authorization", "Bearer attackers-own".parse().unwrap());
    client.send_request(request).await.unwrap();
    assert_eq!(upstream.heads()[1].2["authorization"], "Bearer attackers-own", "with the barrier off it does");
}

#[tokio::test]
async fn an_echo_of_the_secret_comes_back_as_the_placeholder() {
    for alpn in [ONE, BOTH] {
        let (ca, upstream) = world(alpn).await;
        let fence = Fence::new(vec![keyed(grant(upstream.address, &ca))]);
        let mut client = fence.h1().await;
        for (nth, path) in ["/echo-secret", "/echo-secret-slowly"].into_iter().enumerate() {
            client.ready().await.unwrap();
            let body = body_of(client.send_request(get(path)).await.unwrap()).await;
            assert!(body.contains(PLACEHOLDER) && !body.contains(SECRET), "{body}");
            assert_eq!(fence.log.outcome(nth).await.findings, ["secret_echo_redacted"]);
        }
        client.ready().await.unwrap();
        let response = client.send_request(get("/echo-secret-header")).await.unwrap();
        assert_eq!(response.headers()["x-echo"], format!("Bearer {PLACEHOLDER}").as_str());
        client.ready().await.unwrap();
        // What cannot be searched is not let through, neither with its head nor without.
        if let Ok(response) = client.send_request(get("/gzip")).await {
            assert!(response.into_body().collect().await.is_err());
        }
        let error = fence.log.outcome(3).await.error.unwrap();
        assert!(error.starts_with("response_encoded"), "{error}");
    }
}

#[tokio::test]
async fn a_secret_in_the_query_replaces_what_the_agent_wrote() {
    let (ca, upstream) = world(ONE).await;
    let mut config: GateConfig = config(vec![keyed(grant(upstream.address, &ca))]);
    config.credentials.get_mut("openai").unwrap().place = Place::Query { name: "key".into() };
    let fence = Fence::of(&config);
    let mut client = fence.h1().await;
    client.send_request(get("/v1?key=own&a=b&%6Bey=own")).await.unwrap();
    assert_eq!(upstream.heads()[0].1, format!("/v1?a=b&key={SECRET}"));
}

#[tokio::test]
async fn a_grant_with_models_reads_the_body_and_denies_other_models() {
    let (ca, upstream) = world(ONE).await;
    let mut granted = grant(upstream.address, &ca);
    granted.models = vec!["small".into()];
    let fence = Fence::new(vec![granted]);
    let mut client = fence.h1().await;
    let json = r#"{"messages":[],"model":"small"}"#;
    let response = client.send_request(post("/v1", json)).await.unwrap();
    assert_eq!(body_of(response).await, json);
    assert_eq!(fence.log.intent(0).await.model.as_deref(), Some("small"));
    let bodies = [
        (r#"{"model":"large"}"#, "model_not_granted"),
        ("{}", "model_not_granted"),
        (r#"{"model":"small","model":"large"}"#, "body_unreadable"),
    ];
    for (nth, (body, reason)) in bodies.into_iter().enumerate() {
        client.ready().await.unwrap();
        let response = client.send_request(post("/v1", body)).await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(fence.log.intent(nth + 1).await.reason, reason);
    }
    assert_eq!(upstream.heads().len(), 1);
}

#[tokio::test]
async fn events_stream_as_they_come() {
    let (ca, upstream) = world(BOTH).await;
    let fence = Fence::new(vec![keyed(grant(upstream.address, &ca))]);
    let mut client = fence.h1().await;
    let started = Instant::now();
    let mut body = client.send_request(get("/sse")).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let first_after = started.elapsed();
    assert_eq!(first, "data: 0\n\n");
    body.collect().await.unwrap();
    assert!(started.elapsed() > first_after + Duration::from_millis(100), "the first came before the last was sent");
    assert_eq!(fence.log.outcome(0).await.bytes_down, 45);
}

#[tokio::test]
async fn trailers_come_through() {
    let (ca, upstream) = world(BOTH).await;
    let fence = Fence::new(vec![keyed(grant(upstream.address, &ca))]);
    let mut client = fence.h2().await;
    let request = Request::get(format!("https://{HOST}/trailers")).header("te", "trailers").body(text("")).unwrap();
    let collected = client.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "body");
}

async fn websocket(fence: &Fence) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
    let mut client = fence.h1().await;
    let request = Request::get("/ws")
        .header("host", HOST)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .body(text(""))
        .unwrap();
    let mut response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

#[tokio::test]
async fn websockets_are_relayed_and_an_echo_of_the_secret_comes_back_as_the_placeholder() {
    let (ca, upstream) = world(BOTH).await;
    let fence = Fence::new(vec![keyed(grant(upstream.address, &ca))]);
    let mut socket = websocket(&fence).await;
    for n in 0..10 {
        socket.send(Message::text(format!("hello {n} sk-"))).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(format!("hello {n} sk-")));
    }
    socket.send(Message::text("secret?")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(format!("Bearer {PLACEHOLDER}")));
    drop(socket);
    let outcome = fence.log.outcome(0).await;
    assert_eq!((outcome.status, outcome.findings), (Some(101), vec!["secret_echo_redacted".to_owned()]));
    assert!(outcome.bytes_up > 100 && outcome.bytes_down > 100);
    assert_eq!(fence.log.intent(0).await.protocol, "websocket");
}

#[tokio::test]
async fn a_tls_connection_to_an_ungranted_host_gets_an_alert() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let evil = fence.to_name("evil.example", 443).await;
    let error = fence.tls(evil, "evil.example", ONE).await.unwrap_err().to_string();
    assert!(error.contains("AccessDenied"), "{error}");
    assert_eq!(fence.log.intent(0).await.reason, "no_grant");
    let granted = fence.to_name(HOST, 443).await;
    fence.tls(granted, "evil.example", ONE).await.unwrap_err();
    assert_eq!(fence.log.intent(1).await.reason, "host_mismatch", "SNI of another name");
    fence.tls(granted, "192.0.2.1", ONE).await.unwrap_err();
    assert_eq!(fence.log.intent(2).await.reason, "no_sni");
    let bare = fence.to("192.0.2.1:443".parse().unwrap()).await;
    fence.tls(bare, HOST, ONE).await.unwrap_err();
    assert_eq!(fence.log.intent(3).await.reason, "host_mismatch", "a granted name at an address");
    fence.tls(bare, "192.0.2.1", ONE).await.unwrap_err();
    assert_eq!(fence.log.intent(4).await.reason, "no_grant", "an address without a grant");
    let unassigned = fence.to("198.18.200.200:443".parse().unwrap()).await;
    fence.tls(unassigned, HOST, ONE).await.unwrap_err();
    assert_eq!(fence.log.intent(5).await.reason, "unknown_address");
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_address_is_reached_only_by_a_grant_for_it() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor("192.0.2.1", ONE))).await;
    let mut granted = grant(upstream.address, &ca);
    granted.host = "192.0.2.1".parse().unwrap();
    let fence = Fence::new(vec![granted]);
    let to = fence.to("192.0.2.1:443".parse().unwrap()).await;
    let mut client = h1_over(fence.tls(to, "192.0.2.1", ONE).await.unwrap()).await;
    let request = Request::get("/").header("host", "192.0.2.1").body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_upstream_must_show_a_certificate_for_the_granted_host() {
    let ca = TestCa::new();
    let wrong_name = Upstream::start(Some(ca.acceptor("other.example.org", ONE))).await;
    let stranger = Upstream::start(Some(TestCa::new().acceptor(HOST, ONE))).await;
    for (upstream, code) in [(&wrong_name, "tls_wrong_name: "), (&stranger, "tls_unknown_issuer: ")] {
        let fence = Fence::new(vec![keyed(grant(upstream.address, &ca))]);
        let response = fence.h1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let outcome = fence.log.outcome(0).await;
        assert!(outcome.error.unwrap().starts_with(code));
        assert!(upstream.heads().is_empty());
    }
}

#[tokio::test]
async fn a_name_at_a_private_address_is_not_dialled() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor("localhost", ONE))).await;
    for allow_private in [false, true] {
        let mut granted = grant(upstream.address, &ca);
        granted.host = "localhost".parse().unwrap();
        granted.port = upstream.address.port();
        granted.connect_to = None;
        granted.allow_private = allow_private;
        let fence = Fence::new(vec![granted]);
        let to = fence.to_name("localhost", upstream.address.port()).await;
        let mut client = h1_over(fence.tls(to, "localhost", ONE).await.unwrap()).await;
        let request = Request::get("/").header("host", format!("localhost:{}", upstream.address.port()));
        let response = client.send_request(request.body(text("")).unwrap()).await.unwrap();
        let intent = fence.log.intent(0).await;
        if allow_private {
            assert_eq!(response.status(), StatusCode::OK, "with the barrier off it is dialled");
        } else {
            assert_eq!(response.status(), StatusCode::FORBIDDEN);
            assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, "private_address"));
            assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
        }
    }
}

#[tokio::test]
async fn cleartext_is_served_only_where_it_is_granted() {
    let upstream = Upstream::start(None).await;
    let ca = TestCa::new();
    let mut granted = grant(upstream.address, &ca);
    (granted.scheme, granted.port, granted.ca_pem) = (Scheme::Http, 80, None);
    let fence = Fence::new(vec![granted]);
    let to = fence.to_name(HOST, 80).await;
    let mut client = h1_over(TcpStream::connect(to).await.unwrap()).await;
    assert_eq!(body_of(client.send_request(post("/x", "plain")).await.unwrap()).await, "plain");
    let other = fence.to_name("other.example.org", 80).await;
    let mut client = h1_over(TcpStream::connect(other).await.unwrap()).await;
    let request = Request::get("/").header("host", "other.example.org").body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn passthrough_relays_tls_closed() {
    let (ca, upstream) = world(ONE).await;
    let mut closed = grant(upstream.address, &ca);
    (closed.tls, closed.ca_pem) = (TlsMode::Passthrough, None);
    let fence = Fence::new(vec![closed]);
    let to = fence.to_name(HOST, 443).await;
    let stream = TcpStream::connect(to).await.unwrap();
    let stream = connector(&ca.pem, ONE).connect(HOST.try_into().unwrap(), stream).await.unwrap();
    let mut client = h1_over(stream).await;
    assert_eq!(body_of(client.send_request(post("/", "closed")).await.unwrap()).await, "closed");
    drop(client);
    let outcome = fence.log.outcome(0).await;
    assert!(outcome.bytes_up > 100 && outcome.bytes_down > 100 && outcome.address.is_some());
    assert_eq!(fence.log.intent(0).await.protocol, "tls-passthrough");
}

#[tokio::test]
async fn what_is_neither_tls_nor_http_is_denied() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let to = fence.to_name(HOST, 22).await;
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    let intent = fence.log.intent(0).await;
    assert_eq!((intent.protocol.as_str(), intent.reason.as_str(), intent.port), ("tcp", "protocol_unknown", 22));
}

/// Sends raw bytes as one TLS connection and reads all that comes back.
async fn raw(fence: &Fence, bytes: &str) -> String {
    let to = fence.to_name(HOST, 443).await;
    let mut stream = fence.tls(to, HOST, ONE).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    let _ = tokio::time::timeout(Duration::from_millis(500), stream.read_to_end(&mut out)).await;
    String::from_utf8_lossy(&out).into_owned()
}

#[tokio::test]
async fn no_request_is_smuggled_in_another() {
    let (ca, upstream) = world(ONE).await;
    let mut granted = grant(upstream.address, &ca);
    granted.paths = vec!["/ok".into()];
    let fence = Fence::new(vec![granted]);
    let smuggled = "GET /admin HTTP/1.1\r\nHost: api.example.org\r\n\r\n";
    let length = smuggled.len() + 5;
    for head in [
        // Both lengths: what follows the chunk is the next request to one who believes in chunks.
        format!(
            "POST /ok HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!(
            "POST /ok HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n0\r\n\r\n{smuggled}"
        ),
        format!("POST /ok HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{smuggled}"),
        format!("POST /ok HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("POST /ok HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: +0\r\n\r\n{smuggled}"),
        format!("POST /ok HTTP/1.1\r\nHost : {HOST}\r\nContent-Length: 0\r\n\r\n{smuggled}"),
    ] {
        raw(&fence, &head).await;
    }
    for (_, target, headers, _) in upstream.heads() {
        assert_eq!(target, "/ok");
        assert!(!(headers.contains_key("content-length") && headers.contains_key("transfer-encoding")));
    }
    assert!(
        fence.log.intents().iter().filter(|i| i.path.as_deref() == Some("/admin")).all(|i| i.decision == Outcome::Deny)
    );
}

#[tokio::test]
async fn a_denied_upload_gets_to_its_end_and_its_sender_to_the_refusal() {
    const PIECES: usize = 128;
    let (ca, upstream) = world(BOTH).await;
    let mut granted = grant(upstream.address, &ca);
    granted.paths = vec!["/ok".into()];
    let fence = Fence::new(vec![granted]);
    let piece = Bytes::from(vec![7; 64 * 1024]);

    // As most clients of HTTP/1.1 do it: all of it first, then the answer; then the next request.
    let to = fence.to_name(HOST, 443).await;
    let mut stream = fence.tls(to, HOST, ONE).await.unwrap();
    let head = format!("PUT /shut HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n", PIECES * piece.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..PIECES {
        stream.write_all(&piece).await.expect("the gate goes on reading");
    }
    let next = format!("PUT /ok HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
    stream.write_all(next.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answers = Vec::new();
    stream.read_to_end(&mut answers).await.unwrap();
    let answers = String::from_utf8_lossy(&answers);
    assert!(answers.starts_with("HTTP/1.1 403 Forbidden") && answers.ends_with("hi"), "{answers}");

    // HTTP/2: the stream is not reset under the upload.
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::convert::Infallible>::new(1);
    let request = Request::put(format!("https://{HOST}/shut")).body(body.boxed()).unwrap();
    let mut client = fence.h2().await;
    let answered = client.send_request(request);
    let uploaded = async {
        for _ in 0..PIECES {
            sender.send_data(piece.clone()).await.expect("the gate goes on reading");
        }
    };
    let (answer, ()) = tokio::join!(answered, uploaded);
    assert_eq!(answer.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(upstream.heads().len(), 1, "nothing of what was denied left");
}

#[tokio::test]
async fn a_body_is_asked_for_only_once_the_call_is_allowed() {
    let (ca, upstream) = world(ONE).await;
    let mut granted = grant(upstream.address, &ca);
    granted.paths = vec!["/ok".into()];
    let fence = Fence::new(vec![granted]);
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    };
    assert!(raw(&fence, &head("/ok")).await.starts_with("HTTP/1.1 100 Continue"));
    assert!(raw(&fence, &head("/no")).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn an_aborted_call_has_an_outcome() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let mut client = fence.h1().await;
    let mut response = client.send_request(get("/sse")).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop((response, client));
    assert_eq!(fence.log.outcome(0).await.error.as_deref(), Some("aborted"));
}

#[tokio::test]
async fn a_trace_goes_on_through_the_gate_and_none_is_begun() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (nth, traceparents) in [&[told][..], &[], &["made up"], &[told, told]].into_iter().enumerate() {
        let mut request = get("/");
        for traceparent in traceparents {
            request.headers_mut().append("traceparent", traceparent.parse().unwrap());
        }
        request.headers_mut().insert("tracestate", "a=b".parse().unwrap());
        assert_eq!(fence.h1().await.send_request(request).await.unwrap().status(), StatusCode::OK);
        let intent = fence.log.intent(nth).await;
        let sent = upstream.heads()[nth].2.clone();
        let sent_on: Vec<_> = sent.get_all("traceparent").iter().map(|v| v.to_str().unwrap().to_owned()).collect();
        assert_eq!(sent["tracestate"], "a=b");
        if nth == 0 {
            assert_eq!(intent.trace.as_deref(), Some(told));
            let id = intent.call.as_str();
            let child = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", &id[id.len() - 16..]);
            assert_eq!(sent_on, [child], "what the call leads to is below it");
        } else {
            assert_eq!((intent.trace, sent_on), (None, traceparents.iter().map(|t| (*t).to_owned()).collect()));
        }
    }
}
