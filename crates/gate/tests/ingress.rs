//! People who come in, to a real server that stands for the agent.
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

use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use ringfence_audit::{Direction, Outcome};
use ringfence_gate::config::IngressConfig;
use ringfence_gate::ingress::{Here, Ingress};
use ringfence_model::SecretText;
use ringfence_model::manifest::IngressAuth;
use support::*;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

const TOKEN: &str = "t0ken-of-the-link";

struct World {
    ca: TestCa,
    agent: Upstream,
    fence: Fence,
    door: SocketAddr,
}

async fn world(auth: IngressAuth) -> World {
    let ca = TestCa::new();
    let agent = Upstream::start(None).await;
    let fence = Fence::new(vec![]);
    let (chain, key) = ca.leaf("localhost");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = listener.local_addr().unwrap();
    let config = IngressConfig {
        agent_port: agent.address.port(),
        listener_fd: 0,
        cert_chain_pem: chain,
        key_pem: SecretText::new(key.serialize_pem()),
        auth,
        token: SecretText::new(TOKEN.into()),
        public_origin: "https://agent.example.org:8501".into(),
    };
    let ingress = Ingress::new(Arc::clone(&fence.gate), &config, Here).unwrap();
    tokio::spawn(ingress.serve(listener));
    World { ca, agent, fence, door }
}

impl World {
    async fn send(&self, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        let stream = TcpStream::connect(self.door).await.unwrap();
        let connector = connector(&self.ca.pem, &[b"http/1.1"]);
        let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let mut request = Request::builder().uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "agent.example.org:8501");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        h1_over(stream).await.send_request(request.body(text("")).unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn nobody_comes_in_without_the_link() {
    let world = world(IngressAuth::Token).await;
    for (path, headers) in [
        ("/", &[][..]),
        ("/?token=wrong", &[]),
        ("/?token=", &[]),
        ("/", &[("x-ringfence-token", "wrong")]),
        ("/", &[("cookie", "ringfence_8501=wrong")]),
        ("/", &[("cookie", "ringfence_8501=t0ken-of-the-link")]),
    ] {
        let response = world.send(path, headers).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{path} {headers:?}");
        assert!(body_of(response).await.contains("Open the link"));
    }
    assert!(world.agent.heads().is_empty());
    let intent = world.fence.log.intent(0).await;
    assert_eq!((intent.direction, intent.decision), (Direction::Ingress, Outcome::Deny));
    assert_eq!(intent.reason, "not_authenticated");
}

#[tokio::test]
async fn the_link_gives_a_session_that_is_not_the_token() {
    let world = world(IngressAuth::Token).await;
    let response = world.send(&format!("/app?a=b&token={TOKEN}"), &[]).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    assert_eq!(response.headers()["location"], "/app?a=b");
    assert_eq!(world.fence.log.outcome(0).await.status, Some(303), "a login is recorded too");
    assert_eq!(world.fence.log.intent(0).await.path.as_deref(), Some("/app"), "without the token");
    let cookie = response.headers()["set-cookie"].to_str().unwrap().to_owned();
    for part in ["ringfence_8501=", "HttpOnly", "Secure", "SameSite=Lax"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains(TOKEN));
    let session = cookie.split(';').next().unwrap();
    let cookies = format!("theme=dark; {session}; x=1");
    let response = world.send("/app?a=b", &[("cookie", &cookies), ("x-forwarded-for", "6.6.6.6")]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let (_, target, headers, _) = world.agent.heads()[0].clone();
    assert_eq!(target, "/app?a=b");
    assert_eq!(headers["cookie"], "theme=dark; x=1", "the session is not the agent's to see");
    assert_eq!(headers["host"], "agent.example.org:8501");
    assert_eq!(headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "https");
    let response = world.send("//evil.example/?token=t0ken-of-the-link", &[]).await;
    assert_eq!(response.headers()["location"], "/evil.example/", "a login leads nowhere else");
}

#[tokio::test]
async fn a_program_comes_in_by_header() {
    let world = world(IngressAuth::Token).await;
    let response = world.send("/api?token=not-the-gates", &[("x-ringfence-token", TOKEN)]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let (_, target, headers, _) = world.agent.heads()[0].clone();
    assert_eq!(target, "/api?token=not-the-gates");
    assert!(!headers.contains_key("x-ringfence-token"));
    assert_eq!(world.fence.log.outcome(0).await.status, Some(200));
}

#[tokio::test]
async fn an_open_door_is_not_open_to_other_sites() {
    let world = world(IngressAuth::None).await;
    assert_eq!(world.send("/", &[]).await.status(), StatusCode::OK);
    assert_eq!(world.send("/", &[("host", "127.0.0.1:8501")]).await.status(), StatusCode::OK);
    assert_eq!(world.send("/", &[("host", "rebound.evil.example")]).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(world.agent.heads().len(), 2);
}

#[tokio::test]
async fn websockets_come_in_from_the_agents_own_pages_only() {
    let world = world(IngressAuth::Token).await;
    let handshake = [
        ("x-ringfence-token", TOKEN),
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let with = |origin: &'static str| [&handshake[..], &[("origin", origin)]].concat();
    let response = world.send("/ws", &with("https://evil.example")).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(world.fence.log.intent(0).await.reason, "origin_mismatch");
    for headers in [with("https://agent.example.org:8501"), handshake.to_vec()] {
        let mut response = world.send("/ws", &headers).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
        socket.send(Message::text("hello")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("hello"));
    }
}

#[tokio::test]
async fn an_agent_that_is_not_up_yet_is_said_to_be() {
    let world = world(IngressAuth::None).await;
    let mut config = IngressConfig {
        agent_port: 1,
        listener_fd: 0,
        cert_chain_pem: String::new(),
        key_pem: SecretText::new(String::new()),
        auth: IngressAuth::None,
        token: SecretText::new(TOKEN.into()),
        public_origin: "https://agent.example.org:8501".into(),
    };
    assert!(Ingress::new(Arc::clone(&world.fence.gate), &config, Here).is_err(), "no certificate, no door");
    let (chain, key) = world.ca.leaf("localhost");
    (config.cert_chain_pem, config.key_pem) = (chain, SecretText::new(key.serialize_pem()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = listener.local_addr().unwrap();
    tokio::spawn(Ingress::new(Arc::clone(&world.fence.gate), &config, Here).unwrap().serve(listener));
    let world = World { door, ..world };
    assert_eq!(world.send("/", &[]).await.status(), StatusCode::BAD_GATEWAY);
    assert!(world.fence.log.outcome(0).await.error.unwrap().starts_with("agent_unreachable"));
}
