//! Another policy takes the place of one, on connections that are open.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "this is test code")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use ringfence_gate::config::{GateConfig, Ready};
use ringfence_gate::reload;
use ringfence_model::manifest::{Grant, TlsMode};
use support::*;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_tungstenite::tungstenite::Message;

struct World {
    ca: TestCa,
    upstream: Upstream,
}

impl World {
    async fn new() -> Self {
        let ca = TestCa::new();
        let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"http/1.1"]))).await;
        Self { ca, upstream }
    }

    fn paths(&self, paths: &[&str]) -> GateConfig {
        let paths = paths.iter().map(ToString::to_string).collect();
        config(vec![Grant { paths, ..grant(self.upstream.address, &self.ca) }])
    }
}

async fn status(
    client: &mut hyper::client::conn::http1::SendRequest<
        http_body_util::combinators::BoxBody<bytes::Bytes, std::convert::Infallible>,
    >,
    path: &str,
) -> StatusCode {
    client.ready().await.unwrap();
    let response = client.send_request(get(path)).await.unwrap();
    let status = response.status();
    body_of(response).await;
    status
}

#[tokio::test]
async fn the_next_request_on_an_open_connection_is_decided_by_the_new_policy() {
    let world = World::new().await;
    let fence = Fence::of(&world.paths(&["/old"]));
    let mut client = fence.h1().await;
    assert_eq!(status(&mut client, "/old").await, StatusCode::OK);
    assert_eq!(status(&mut client, "/new").await, StatusCode::FORBIDDEN);
    fence.gate.reload(&world.paths(&["/new"]).policy()).unwrap();
    assert_eq!(status(&mut client, "/old").await, StatusCode::FORBIDDEN);
    assert_eq!(status(&mut client, "/new").await, StatusCode::OK);
    fence.gate.reload(&world.paths(&["/old"]).policy()).unwrap();
    assert_eq!(status(&mut client, "/old").await, StatusCode::OK);
}

#[tokio::test]
async fn a_policy_that_is_not_right_leaves_the_old_one_in_force() {
    let world = World::new().await;
    let fence = Fence::of(&world.paths(&["/old"]));
    let mut client = fence.h1().await;
    for bad in [
        GateConfig {
            guardrails: vec![("rail".into(), "permit (principal, action, resource);".into())],
            ..world.paths(&["/new"])
        },
        GateConfig { guardrails: vec![("rail".into(), "forbid (".into())], ..world.paths(&["/new"]) },
        config(vec![Grant { credential: Some("nobody".into()), ..grant(world.upstream.address, &world.ca) }]),
        config(vec![Grant { ca_pem: Some("no pem".into()), ..grant(world.upstream.address, &world.ca) }]),
    ] {
        assert!(fence.gate.reload(&bad.policy()).is_err());
        assert_eq!(status(&mut client, "/new").await, StatusCode::FORBIDDEN);
        assert_eq!(status(&mut client, "/old").await, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_policy_does_not_make_a_tool_that_changed_believed_anew() {
    let world = World::new().await;
    let rules = |paths: &[&str]| {
        let mut config = world.paths(paths);
        config.grants[0].rpc = Some(ringfence_model::manifest::RpcRules::default());
        config
    };
    let fence = Fence::of(&rules(&["/mcp"]));
    let list = async |changed: bool| {
        let mut request = post("/mcp", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}"#);
        if changed {
            request.headers_mut().insert("x-changed", "1".parse().unwrap());
        }
        body_of(fence.h1().await.send_request(request).await.unwrap()).await
    };
    assert!(list(false).await.contains("search"));
    let mut other = rules(&["/mcp"]);
    other.grants.push(Grant { host: "more.example.org".parse().unwrap(), ..grant(world.upstream.address, &world.ca) });
    fence.gate.reload(&other.policy()).unwrap();
    assert!(!list(true).await.contains("evil.example"));
}

#[tokio::test]
async fn what_runs_on_ends_once_it_is_not_granted_and_not_before() {
    let world = World::new().await;
    let fence = Fence::of(&world.paths(&["/ws"]));
    let to = fence.to_name(HOST, 443).await;
    let stream = fence.tls(to, HOST, &[b"http/1.1"]).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("wss://{HOST}/ws"), stream).await.unwrap();
    let mut echoed = async |text: &'static str| {
        if socket.send(Message::text(text)).await.is_err() {
            return false;
        }
        matches!(tokio::time::timeout(Duration::from_secs(5), socket.next()).await.unwrap(), Some(Ok(Message::Text(t))) if t.as_str() == text)
    };
    assert!(echoed("one").await);
    fence.gate.reload(&world.paths(&["/ws", "/more"]).policy()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(echoed("two").await, "it is granted still");
    fence.gate.reload(&world.paths(&["/more"]).policy()).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!echoed("three").await);
    assert!(fence.log.outcome(0).await.error.unwrap().starts_with("revoked"));
}

#[tokio::test]
async fn a_closed_connection_ends_once_it_is_not_granted() {
    let world = World::new().await;
    let closed = Grant { tls: TlsMode::Passthrough, ca_pem: None, ..grant(world.upstream.address, &world.ca) };
    let fence = Fence::of(&config(vec![closed]));
    let to = fence.to_name(HOST, 443).await;
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from(HOST).unwrap();
    let mut stream = connector(&world.ca.pem, &[b"http/1.1"]).connect(name, stream).await.unwrap();
    fence.gate.reload(&config(vec![]).policy()).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    let outcome = fence.log.outcome(0).await;
    assert!(outcome.error.unwrap().starts_with("revoked"));
}

#[tokio::test]
async fn policies_come_by_a_channel_and_each_is_answered() {
    let world = World::new().await;
    let fence = Fence::of(&world.paths(&["/old"]));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = tokio::spawn(reload::serve(Arc::clone(&fence.gate), theirs));
    let (answers, mut orders) = ours.into_split();
    let mut answers = BufReader::new(answers).lines();
    let mut send = async |bytes: Vec<u8>| {
        orders.write_all(&u32::try_from(bytes.len()).unwrap().to_le_bytes()).await.unwrap();
        orders.write_all(&bytes).await.unwrap();
        serde_json::from_str::<Ready>(&answers.next_line().await.unwrap().unwrap()).unwrap()
    };
    assert_eq!(send(serde_json::to_vec(&world.paths(&["/new"]).policy()).unwrap()).await, Ready::Up);
    let Ready::Error(report) = send(b"{}".to_vec()).await else { panic!() };
    assert_eq!(report.code, "gate.config");
    let mut client = fence.h1().await;
    assert_eq!(status(&mut client, "/new").await, StatusCode::OK);
    orders.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(served.await.unwrap().is_err());
}

#[tokio::test]
async fn a_budget_that_changes_keeps_what_was_spent() {
    let world = World::new().await;
    let file = std::fs::File::from(rustix::fs::memfd_create("budget", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let limit = |text: &str| {
        let text = format!("[agent]\nname = \"a\"\nentry = [\"x\"]\n[budget]\nrequests_per_month = {text}\n");
        let budget = ringfence_model::Manifest::parse(&text, &|_| Ok(String::new())).unwrap().budget;
        GateConfig { budget, ..world.paths(&[]) }
    };
    let fence = Fence::counting(&limit("1"), &file);
    let mut client = fence.h1().await;
    assert_eq!(status(&mut client, "/").await, StatusCode::OK);
    assert_eq!(status(&mut client, "/").await, StatusCode::TOO_MANY_REQUESTS);
    fence.gate.reload(&limit("2").policy()).unwrap();
    assert_eq!(status(&mut client, "/").await, StatusCode::OK);
    assert_eq!(status(&mut client, "/").await, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_trust_store_that_was_not_needed_before_is_handed_over() {
    let world = World::new().await;
    let fence = Fence::of(&world.paths(&["/old"]));
    let by_the_host = Grant { ca_pem: None, ..grant(world.upstream.address, &world.ca) };
    let mut policy = config(vec![by_the_host]).policy();
    assert!(fence.gate.reload(&policy).is_err(), "its files may be out of reach");
    policy.system_pem = Some(world.ca.pem.clone());
    fence.gate.reload(&policy).unwrap();
    assert_eq!(status(&mut fence.h1().await, "/new").await, StatusCode::OK);
}
