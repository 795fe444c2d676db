//! WebSockets through a gate: what goes both ways, what is found in it, and what ends it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::fs::File;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, StatusCode};
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use ringfence_audit::{CallOutcome, Outcome};
use ringfence_gate::Barriers;
use ringfence_gate::config::GateConfig;
use ringfence_gate::websocket::MAX_MESSAGE_BYTES;
use ringfence_gate::websocket::frame::{Frames, From, Opcode, Piece, write};
use ringfence_model::Manifest;
use ringfence_model::manifest::{Grant, Scheme};
use serde_json::{Value, json};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// An upstream that says what the test says, over cleartext.
struct World {
    fence: Fence,
    upstream: TcpListener,
}

/// One side of a WebSocket, frame by frame.
struct Side {
    stream: TcpStream,
    frames: Frames,
    input: BytesMut,
    mask: Option<[u8; 4]>,
}

impl Side {
    fn new(stream: TcpStream, hears: From) -> Self {
        let mask = if hears == From::Server { MASK } else { None };
        Self { stream, frames: Frames::new(hears), input: BytesMut::new(), mask }
    }

    async fn frame(&mut self, fin: bool, opcode: Opcode, payload: &[u8]) {
        self.raw(&write(fin, opcode, payload, self.mask)).await;
    }

    async fn text(&mut self, text: &str) {
        self.frame(true, Opcode::Text, text.as_bytes()).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        // Who is cut off cannot say more.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next frame, or part of one; `None` at the end.
    async fn piece(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.frames.next(&mut self.input).expect("the gate speaks in frames") {
                return Some(piece);
            }
            if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next message or control frame, whole.
    async fn hear(&mut self) -> Option<(Opcode, Vec<u8>)> {
        let mut whole = Vec::new();
        loop {
            match self.piece().await? {
                Piece::Control { opcode, payload } => return Some((opcode, payload.to_vec())),
                Piece::Data { kind, payload, last } => {
                    whole.extend_from_slice(&payload);
                    if last {
                        return Some((kind, whole));
                    }
                }
            }
        }
    }

    async fn hears(&mut self, text: &str) {
        assert_eq!(self.hear().await, Some((Opcode::Text, text.as_bytes().to_vec())));
    }

    /// Nothing but the end with this code comes.
    async fn is_closed(&mut self, code: u16) {
        assert_eq!(self.hear().await, Some((Opcode::Close, code.to_be_bytes().to_vec())));
        assert_eq!(self.hear().await, None);
    }
}

async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

impl World {
    async fn with(change: impl FnOnce(&mut GateConfig), barriers: Barriers) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = Grant {
            scheme: Scheme::Http,
            port: 80,
            connect_to: Some(upstream.local_addr().unwrap()),
            ..Grant::to(HOST.parse().unwrap())
        };
        let mut config = config(vec![keyed(plain)]);
        change(&mut config);
        Self { fence: Fence::with(&config, barriers), upstream }
    }

    async fn new() -> Self {
        Self::with(|_| {}, Barriers::default()).await
    }

    /// Asks for a WebSocket; the upstream answers with `answer`. Gives both sides, and both heads.
    async fn ask(&self, path: &str, more: &str, answer: &str) -> (TcpStream, TcpStream, String, String) {
        let mut agent = TcpStream::connect(self.fence.to_name(HOST, 80).await).await.unwrap();
        agent.set_nodelay(true).unwrap();
        let asked = format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{more}\r\n"
        );
        agent.write_all(asked.as_bytes()).await.unwrap();
        let (mut upstream, _) = self.upstream.accept().await.unwrap();
        upstream.set_nodelay(true).unwrap();
        let got = head(&mut upstream).await;
        upstream.write_all(answer.as_bytes()).await.unwrap();
        let answered = head(&mut agent).await;
        (agent, upstream, got, answered)
    }

    async fn open(&self, path: &str) -> (Side, Side) {
        let (agent, upstream, got, answered) = self.ask(path, "", &switching("")).await;
        assert!(answered.starts_with("HTTP/1.1 101"), "{answered}");
        assert!(got.contains(SECRET), "{got}");
        (Side::new(agent, From::Server), Side::new(upstream, From::Client))
    }

    async fn outcome(&self) -> CallOutcome {
        self.fence.log.outcome(0).await
    }
}

fn switching(more: &str) -> String {
    let accept = derive_accept_key(KEY.as_bytes());
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n{more}\r\n"
    )
}

fn down() -> Barriers {
    Barriers { misdirected_placeholders: false, ..Barriers::default() }
}

#[tokio::test]
async fn messages_go_both_ways_until_both_sides_end_it() {
    let world = World::new().await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    agent.text("hello").await;
    upstream.hears("hello").await;
    upstream.text("hello yourself").await;
    agent.hears("hello yourself").await;
    // A message in parts is one message, and what comes between goes before it.
    agent.frame(false, Opcode::Binary, b"one ").await;
    agent.frame(true, Opcode::Ping, b"there?").await;
    agent.frame(false, Opcode::Continuation, b"").await;
    agent.frame(true, Opcode::Continuation, b"two").await;
    assert_eq!(upstream.hear().await, Some((Opcode::Ping, b"there?".to_vec())));
    assert_eq!(
        upstream.piece().await,
        Some(Piece::Data { kind: Opcode::Binary, payload: "one two".into(), last: true })
    );
    upstream.frame(true, Opcode::Pong, b"there?").await;
    assert_eq!(agent.hear().await, Some((Opcode::Pong, b"there?".to_vec())));
    let large = vec![b'x'; 3 * MAX_MESSAGE_BYTES];
    let (_, heard) = tokio::join!(agent.frame(true, Opcode::Binary, &large), upstream.hear());
    assert_eq!(heard, Some((Opcode::Binary, large.clone())));
    let (_, heard) = tokio::join!(upstream.frame(true, Opcode::Text, &large), agent.hear());
    assert_eq!(heard, Some((Opcode::Text, large)));
    agent.frame(true, Opcode::Close, &[&1000_u16.to_be_bytes()[..], b"done"].concat()).await;
    assert_eq!(upstream.hear().await, Some((Opcode::Close, b"\x03\xe8done".to_vec())));
    upstream.frame(true, Opcode::Close, &1000_u16.to_be_bytes()).await;
    agent.is_closed(1000).await;
    let outcome = world.outcome().await;
    assert_eq!((outcome.status, outcome.error, outcome.findings), (Some(101), None, vec![]));
    assert!(outcome.bytes_up > 3 * MAX_MESSAGE_BYTES as u64 && outcome.bytes_down > 3 * MAX_MESSAGE_BYTES as u64);
}

#[tokio::test]
async fn what_the_agent_says_before_it_is_answered_is_frames_too() {
    let world = World::new().await;
    let mut agent = TcpStream::connect(world.fence.to_name(HOST, 80).await).await.unwrap();
    let mut words = format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
    .into_bytes();
    words.extend_from_slice(&write(true, Opcode::Text, b"early", MASK));
    words.extend_from_slice(b"GET /smuggled HTTP/1.1\r\n\r\n");
    agent.write_all(&words).await.unwrap();
    let (mut upstream, _) = world.upstream.accept().await.unwrap();
    head(&mut upstream).await;
    upstream.write_all(switching("").as_bytes()).await.unwrap();
    let mut upstream = Side::new(upstream, From::Client);
    upstream.hears("early").await;
    upstream.is_closed(1002).await;
}

#[tokio::test]
async fn no_extension_is_offered_or_agreed_on() {
    let world = World::new().await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\nSec-WebSocket-Protocol: chat\r\n";
    let (_, _, got, answered) = world.ask("/ws", offer, &switching("Sec-WebSocket-Protocol: chat\r\n")).await;
    let (got, answered) = (got.to_ascii_lowercase(), answered.to_ascii_lowercase());
    assert!(!got.contains("extensions") && got.contains("sec-websocket-protocol: chat"), "{got}");
    assert!(answered.contains("sec-websocket-protocol: chat"), "{answered}");
    let agreed = switching("Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let (_, _, _, answered) = world.ask("/ws", offer, &agreed).await;
    assert!(answered.starts_with("HTTP/1.1 502"), "{answered}");
}

#[tokio::test]
async fn without_101_nothing_is_a_websocket() {
    let world = World::new().await;
    let (mut agent, mut upstream, _, answered) =
        world.ask("/ws", "", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
    agent.write_all(&write(true, Opcode::Text, b"hello", MASK)).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(Duration::from_millis(300), upstream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{rest:?}");
}

#[tokio::test]
async fn a_placeholder_in_a_message_ends_the_socket_before_any_of_it_is_out() {
    let escaped: String = PLACEHOLDER.bytes().map(|b| format!("\\u{b:04x}")).collect();
    for text in [format!("my key is {PLACEHOLDER}"), format!("{{\"key\":\"{escaped}\"}}")] {
        for (parts, opcode) in [(1, Opcode::Text), (3, Opcode::Text), (40, Opcode::Binary)] {
            let world = World::new().await;
            let (mut agent, mut upstream) = world.open("/ws").await;
            agent.text("harmless").await;
            upstream.hears("harmless").await;
            let chunks: Vec<&[u8]> = text.as_bytes().chunks(text.len().div_ceil(parts)).collect();
            for (at, chunk) in chunks.iter().enumerate() {
                let opcode = if at == 0 { opcode } else { Opcode::Continuation };
                agent.frame(at + 1 == chunks.len(), opcode, chunk).await;
            }
            agent.text("and more").await;
            upstream.is_closed(1008).await;
            agent.is_closed(1008).await;
            let outcome = world.outcome().await;
            assert_eq!(outcome.findings, ["placeholder_misdirected"]);
            assert!(outcome.error.unwrap().contains("`openai`"));
        }
    }
    // In a control frame.
    let world = World::new().await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    agent.frame(true, Opcode::Ping, PLACEHOLDER.as_bytes()).await;
    upstream.is_closed(1008).await;
    // Far behind in a message that is too large to be held.
    let world = World::new().await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    let mut large = vec![b'x'; 2 * MAX_MESSAGE_BYTES];
    large.extend_from_slice(PLACEHOLDER.as_bytes());
    large.extend_from_slice(&[b'y'; 10]);
    let heard = async {
        let mut heard = Vec::new();
        while let Some(piece) = upstream.piece().await {
            match piece {
                Piece::Data { payload, .. } => heard.extend_from_slice(&payload),
                Piece::Control { payload, .. } => return (heard, payload),
            }
        }
        panic!("it ended without a close");
    };
    let (_, (heard, close)) = tokio::join!(agent.frame(true, Opcode::Binary, &large), heard);
    assert!(heard.len() >= MAX_MESSAGE_BYTES && !heard.ends_with(PLACEHOLDER.as_bytes()));
    assert_eq!(*close, 1008_u16.to_be_bytes());
    assert_eq!(world.outcome().await.findings, ["placeholder_misdirected"]);
}

#[tokio::test]
async fn with_the_barrier_down_a_placeholder_gets_through() {
    let world = World::with(|_| {}, down()).await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    agent.text(&format!("my key is {PLACEHOLDER}")).await;
    upstream.hears(&format!("my key is {PLACEHOLDER}")).await;
}

#[tokio::test]
async fn an_echo_of_the_secret_is_replaced_within_its_message() {
    let world = World::new().await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    let said = format!("you are {SECRET}, {SECRET}!");
    let want = said.replace(SECRET, PLACEHOLDER);
    for parts in [1, 2, 9] {
        let chunks: Vec<&[u8]> = said.as_bytes().chunks(said.len().div_ceil(parts)).collect();
        for (at, chunk) in chunks.iter().enumerate() {
            let opcode = if at == 0 { Opcode::Text } else { Opcode::Continuation };
            upstream.frame(at + 1 == chunks.len(), opcode, chunk).await;
        }
        agent.hears(&want).await;
    }
    // The beginning of a secret at the end of a message is not held back.
    upstream.text(&SECRET[..10]).await;
    agent.hears(&SECRET[..10]).await;
    let large = "x".repeat(MAX_MESSAGE_BYTES + 1000) + SECRET + "tail";
    let (_, heard) = tokio::join!(upstream.frame(true, Opcode::Text, large.as_bytes()), agent.hear());
    assert!(heard.unwrap().1 == large.replace(SECRET, PLACEHOLDER).into_bytes());
    upstream.frame(true, Opcode::Ping, SECRET.as_bytes()).await;
    agent.is_closed(1008).await;
    let outcome = world.outcome().await;
    assert_eq!(outcome.findings, ["secret_echo_redacted"]);
    assert!(outcome.error.unwrap().starts_with("secret_echo:"));
}

fn per_message() -> Barriers {
    Barriers { split_messages: false, ..Barriers::default() }
}

#[tokio::test]
async fn an_echo_that_is_cut_over_messages_is_replaced_from_the_half_on() {
    let (start, rest) = SECRET.split_at(10);
    for (barriers, want) in [(Barriers::default(), format!("{PLACEHOLDER}!")), (per_message(), format!("{rest}!"))] {
        let world = World::with(|_| {}, barriers).await;
        let (mut agent, mut upstream) = world.open("/ws").await;
        upstream.text(start).await;
        agent.hears(start).await;
        // What keeps a connection alive is no message.
        upstream.frame(true, Opcode::Ping, b"there?").await;
        assert_eq!(agent.hear().await, Some((Opcode::Ping, b"there?".to_vec())));
        let (middle, end) = rest.split_at(1);
        upstream.frame(false, Opcode::Text, middle.as_bytes()).await;
        upstream.frame(true, Opcode::Continuation, format!("{end}!").as_bytes()).await;
        agent.hears(&want).await;
        let mut heard = String::new();
        for byte in SECRET.chars() {
            upstream.text(&byte.to_string()).await;
            let (_, said) = agent.hear().await.unwrap();
            heard.push_str(&String::from_utf8(said).unwrap());
        }
        assert_eq!(heard.contains(SECRET), barriers == per_message(), "{heard}");
        assert_eq!(heard.contains(&SECRET[..SECRET.len() / 2]), barriers == per_message(), "{heard}");
        assert!(heard.starts_with(start));
    }
}

#[tokio::test]
async fn a_ping_in_a_large_message_takes_nothing_out_of_it() {
    let world = World::new().await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    let (start, rest) = SECRET.split_at(8);
    let first = "x".repeat(MAX_MESSAGE_BYTES + 1000) + start;
    let saying = async {
        upstream.frame(false, Opcode::Text, first.as_bytes()).await;
        upstream.frame(true, Opcode::Ping, b"there?").await;
        upstream.frame(true, Opcode::Continuation, format!("{rest} sk-live").as_bytes()).await;
    };
    let hearing = async {
        let mut heard = Vec::new();
        loop {
            match agent.piece().await.unwrap() {
                Piece::Control { opcode, .. } => assert_eq!(opcode, Opcode::Ping),
                Piece::Data { payload, last, .. } => {
                    heard.extend_from_slice(&payload);
                    if last {
                        return heard;
                    }
                }
            }
        }
    };
    let ((), heard) = tokio::join!(saying, hearing);
    assert!(heard == (first + rest + " sk-live").replace(SECRET, PLACEHOLDER).into_bytes());
}

#[tokio::test]
async fn a_placeholder_that_is_cut_over_messages_ends_the_socket_before_it_is_whole() {
    let escaped: String = PLACEHOLDER.bytes().map(|b| format!("\\u{b:04x}")).collect();
    for text in [PLACEHOLDER.to_owned(), escaped] {
        for size in [1, 7, text.len() / 2, text.len() - 1] {
            let chunks: Vec<&str> = text.as_bytes().chunks(size).map(|c| std::str::from_utf8(c).unwrap()).collect();
            let (last, first) = chunks.split_last().unwrap();
            let world = World::new().await;
            let (mut agent, mut upstream) = world.open("/ws").await;
            for chunk in ["harmless \\", "and "].iter().chain(first) {
                agent.text(chunk).await;
                upstream.hears(chunk).await;
            }
            agent.text(last).await;
            upstream.is_closed(1008).await;
            assert_eq!(world.outcome().await.findings, ["placeholder_misdirected"]);
        }
    }
    let world = World::with(|_| {}, per_message()).await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    for half in [&PLACEHOLDER[..9], &PLACEHOLDER[9..]] {
        agent.text(half).await;
        upstream.hears(half).await;
    }
}

#[tokio::test]
async fn what_is_no_frame_ends_the_socket_and_reaches_nobody() {
    let from_agent: [&[u8]; 6] = [
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        &write(true, Opcode::Text, b"unmasked", None),
        &write(true, Opcode::Continuation, b"of nothing", MASK),
        &write(true, Opcode::Close, &1005_u16.to_be_bytes(), MASK),
    ];
    for bytes in from_agent {
        let world = World::new().await;
        let (mut agent, mut upstream) = world.open("/ws").await;
        agent.raw(bytes).await;
        upstream.is_closed(1002).await;
        agent.is_closed(1002).await;
        assert!(world.outcome().await.error.unwrap().starts_with("websocket_broken"));
    }
    let mut compressed = write(true, Opcode::Text, b"compressed", None);
    compressed[0] |= 0x40;
    let from_upstream: [&[u8]; 4] =
        [b"HTTP/1.1 200 OK\r\n\r\n", &write(true, Opcode::Text, b"masked", MASK), &compressed, b"\x89\x7e\x01\x00"];
    for bytes in from_upstream {
        let world = World::new().await;
        let (mut agent, mut upstream) = world.open("/ws").await;
        upstream.raw(bytes).await;
        agent.is_closed(1002).await;
        upstream.is_closed(1002).await;
    }
    // One that breaks off, and one that goes without a word.
    for (bytes, error) in [(&b"\x81\x85\x01"[..], true), (b"", false)] {
        let world = World::new().await;
        let (mut agent, mut upstream) = world.open("/ws").await;
        agent.raw(bytes).await;
        drop(agent);
        match upstream.hear().await {
            None => assert!(!error),
            close => assert_eq!((close, error), (Some((Opcode::Close, 1002_u16.to_be_bytes().to_vec())), true)),
        }
        drop(upstream);
        assert_eq!(world.outcome().await.error.is_some(), error);
    }
}

/// An agent that asks by HTTP/2, and an upstream that speaks HTTP/1.1 over TLS.
async fn by_http2(
    path: &str,
    protocol: Option<&'static str>,
) -> (Fence, Upstream, http::Response<hyper::body::Incoming>) {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"h2", b"http/1.1"]))).await;
    let granted = Grant { paths: vec!["/ws".into(), "/plain".into()], ..keyed(grant(upstream.address, &ca)) };
    let fence = Fence::new(vec![granted]);
    let mut client = fence.h2().await;
    // The first answer brings the settings that allow what follows.
    let request = Request::get(format!("https://{HOST}/first")).body(text("")).unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), StatusCode::FORBIDDEN);
    let uri = if protocol.is_some() { format!("https://{HOST}{path}") } else { format!("{HOST}:443") };
    let mut request = Request::builder().method(Method::CONNECT).uri(uri).header("sec-websocket-version", "13");
    if let Some(protocol) = protocol {
        request = request.extension(Protocol::from_static(protocol));
    }
    let response = client.send_request(request.body(text("")).unwrap()).await.unwrap();
    (fence, upstream, response)
}

#[tokio::test]
async fn a_websocket_is_opened_over_http2_too() {
    let (fence, upstream, mut response) = by_http2("/ws", Some("websocket")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!response.headers().contains_key("sec-websocket-accept") && !response.headers().contains_key("upgrade"));
    let io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Client, None).await;
    for n in 0..3 {
        socket.send(Message::text(format!("hello {n}"))).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(format!("hello {n}")));
    }
    socket.send(Message::text("secret?")).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(format!("Bearer {PLACEHOLDER}")));
    socket.send(Message::text(PLACEHOLDER)).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Close(Some(frame)))) if u16::from(frame.code) == 1008));
    let intent = fence.log.intent(1).await;
    assert_eq!((intent.protocol.as_str(), intent.method.as_deref()), ("websocket", Some("GET")));
    assert_eq!(fence.log.outcome(0).await.findings, ["secret_echo_redacted", "placeholder_misdirected"]);
    assert_eq!(upstream.heads()[0].2["authorization"], format!("Bearer {SECRET}").as_str());
}

#[tokio::test]
async fn over_http2_no_other_protocol_and_no_other_path_is_opened() {
    for (path, protocol, reason) in [
        ("/ws", Some("connect-udp"), "proxy_form"),
        ("/ws", Some("connect-ip"), "proxy_form"),
        ("/ws", None, "proxy_form"),
        ("/elsewhere", Some("websocket"), "no_grant"),
    ] {
        let (fence, upstream, response) = by_http2(path, protocol).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path} {protocol:?}");
        let intent = fence.log.intent(1).await;
        assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, reason), "{path} {protocol:?}");
        assert!(upstream.heads().is_empty());
    }
    // An upstream that only answers opens nothing.
    let (_, upstream, response) = by_http2("/plain", Some("websocket")).await;
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(upstream.heads().len(), 1);
}

const REALTIME: &str = "/v1/realtime?model=gpt-realtime";

fn granted(config: &mut GateConfig, tools: Option<&str>) {
    config.grants[0].models = vec!["gpt-realtime".into(), "whisper-1".into()];
    config.grants[0].llm.tools = tools.map(|tool| vec![tool.to_owned()]);
}

fn update(session: Value) -> String {
    json!({"type": "session.update", "session": session}).to_string()
}

#[tokio::test]
async fn what_a_realtime_session_asks_for_is_held_against_the_grant() {
    let tools = json!([{"type": "function", "name": "weather"}]);
    for (message, reason) in [
        (update(json!({"tools": [{"type": "function", "name": "shell"}]})), "llm_not_granted"),
        (update(json!({"model": "gpt-huge"})), "message_unreadable"),
        (update(json!({"audio": {"input": {"transcription": {"model": "whisper-9"}}}})), "model_not_granted"),
        (
            json!({"type": "response.create", "response": {"tools": [{"type": "function", "name": "shell"}]}})
                .to_string(),
            "llm_not_granted",
        ),
        (r#"{"type":"session.update","session":{},"session":{"tools":[]}}"#.into(), "message_unreadable"),
        ("no json".into(), "message_unreadable"),
    ] {
        let world = World::with(|config| granted(config, Some("weather")), Barriers::default()).await;
        let (mut agent, mut upstream) = world.open(REALTIME).await;
        for fine in [update(json!({"tools": tools})), json!({"type": "response.create"}).to_string()] {
            agent.text(&fine).await;
            let (_, got) = upstream.hear().await.unwrap();
            let (got, fine): (Value, Value) = (serde_json::from_slice(&got).unwrap(), fine.parse().unwrap());
            assert_eq!(got, fine);
        }
        agent.text(&message).await;
        upstream.is_closed(1008).await;
        let (kind, told) = agent.hear().await.unwrap();
        let told: Value = serde_json::from_slice(&told).unwrap();
        assert_eq!((kind, &told["type"]), (Opcode::Text, &json!("error")));
        agent.is_closed(1008).await;
        let intent = world.fence.log.intent(1).await;
        assert_eq!(
            (intent.decision, intent.reason.as_str(), intent.protocol.as_str()),
            (Outcome::Deny, reason, "websocket")
        );
        assert!(told.to_string().contains(intent.call.as_str()), "the agent can name the denial");
        assert!(world.outcome().await.error.unwrap().starts_with(reason));
    }
}

#[tokio::test]
async fn without_rules_messages_go_on_as_they_came() {
    let world = World::new().await;
    let (mut agent, mut upstream) = world.open(REALTIME).await;
    for message in
        [r#"{ "type":"session.update", "session": {"tools":[{"name":"shell","type":"function"}]} }"#, "no json"]
    {
        agent.text(message).await;
        upstream.hears(message).await;
    }
}

#[tokio::test]
async fn a_handshake_for_another_model_is_denied() {
    let world = World::with(|config| granted(config, None), Barriers::default()).await;
    let mut agent = TcpStream::connect(world.fence.to_name(HOST, 80).await).await.unwrap();
    for (nth, path) in ["/v1/realtime?model=gpt-huge", "/v1/realtime"].into_iter().enumerate() {
        let asked = format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        );
        agent.write_all(asked.as_bytes()).await.unwrap();
        let answer = head(&mut agent).await;
        assert!(!answer.starts_with("HTTP/1.1 101") && answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert_eq!(world.fence.log.intent(nth).await.reason, "model_not_granted");
        agent = TcpStream::connect(world.fence.to_name(HOST, 80).await).await.unwrap();
    }
}

/// A world that counts.
async fn counting(limits: &str) -> (World, File) {
    let ledger = File::from(rustix::fs::memfd_create("budget", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let text = format!("[agent]\nname = \"a\"\nentry = [\"x\"]\n[budget]\n{limits}\n");
    let budget = Manifest::parse(&text, &|_| Ok(String::new())).unwrap_or_else(|e| panic!("{e:?}")).budget;
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain = Grant {
        scheme: Scheme::Http,
        port: 80,
        connect_to: Some(upstream.local_addr().unwrap()),
        ..Grant::to(HOST.parse().unwrap())
    };
    let config = GateConfig { budget, ..config(vec![keyed(plain)]) };
    (World { fence: Fence::counting(&config, &ledger), upstream }, ledger)
}

fn done(input: u64, output: u64) -> String {
    json!({"type": "response.done", "response": {"usage": {"input_tokens": input, "output_tokens": output}}})
        .to_string()
}

#[tokio::test]
async fn what_a_session_used_is_counted_and_recorded() {
    let (world, _ledger) = counting("tokens_per_month = 100000").await;
    let (mut agent, mut upstream) = world.open(REALTIME).await;
    for _ in 0..2 {
        agent.text(r#"{"type":"response.create"}"#).await;
        upstream.hears(r#"{"type":"response.create"}"#).await;
        upstream.text(&done(1000, 30)).await;
        agent.hears(&done(1000, 30)).await;
    }
    agent.frame(true, Opcode::Close, b"").await;
    upstream.hear().await;
    upstream.frame(true, Opcode::Close, b"").await;
    agent.hear().await;
    let used = world.outcome().await.llm.unwrap();
    assert_eq!((used.input_tokens, used.output_tokens, used.estimated), (2000, 60, false));
    assert_eq!(world.fence.log.intent(0).await.llm.unwrap().models, ["gpt-realtime"]);
}

#[tokio::test]
async fn a_session_ends_where_its_tokens_do() {
    let (world, _ledger) = counting("tokens_per_month = 1000").await;
    let (mut agent, mut upstream) = world.open(REALTIME).await;
    let delta = json!({"type": "response.output_text.delta", "delta": "word ".repeat(400)}).to_string();
    let mut heard = 0;
    for _ in 0..20 {
        upstream.text(&delta).await;
    }
    let told = loop {
        let (opcode, payload) = agent.hear().await.unwrap();
        assert_eq!(opcode, Opcode::Text);
        if payload != delta.as_bytes() {
            break String::from_utf8(payload).unwrap();
        }
        heard += 1;
    };
    assert!((1..6).contains(&heard), "{heard}");
    assert!(told.contains("error"), "{told}");
    agent.is_closed(1008).await;
    let outcome = world.outcome().await;
    assert_eq!(outcome.findings, ["stream_cut_at_budget"]);
    // Nothing is left for another one.
    let mut agent = TcpStream::connect(world.fence.to_name(HOST, 80).await).await.unwrap();
    let asked = format!(
        "GET {REALTIME} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    agent.write_all(asked.as_bytes()).await.unwrap();
    assert!(head(&mut agent).await.starts_with("HTTP/1.1 429"));
}

#[tokio::test]
async fn what_the_agent_says_to_a_model_counts_too() {
    let (world, _ledger) = counting("tokens_per_month = 1000").await;
    let (mut agent, mut upstream) = world.open(REALTIME).await;
    let item = json!({"type": "conversation.item.create", "item": {"type": "message", "role": "user",
        "content": [{"type": "input_text", "text": "word ".repeat(3000)}]}});
    agent.text(&item.to_string()).await;
    upstream.is_closed(1008).await;
    assert_eq!(world.fence.log.intent(1).await.reason, "budget_exhausted");
}

#[tokio::test]
async fn bytes_of_messages_count_against_the_budget() {
    let (world, _ledger) = counting("bytes_per_month = \"64KiB\"").await;
    let (mut agent, mut upstream) = world.open("/ws").await;
    agent.text("hello").await;
    upstream.hears("hello").await;
    agent.frame(true, Opcode::Binary, &vec![0; 100_000]).await;
    upstream.is_closed(1008).await;
    agent.is_closed(1008).await;
    assert!(world.outcome().await.error.unwrap().starts_with("budget_exhausted"));
}
