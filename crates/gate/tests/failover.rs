//! A call of a language model that was not answered is tried again, or asked of another provider, where a grant says so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "this is test code")]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ringfence_audit::Outcome;
use ringfence_gate::config::{CredentialLease, GateConfig};
use ringfence_model::manifest::{Failover, Grant, LlmRules, Place, Scheme};
use ringfence_model::{Manifest, SecretText};
use serde_json::{Value, json};
use support::*;
use tokio::net::TcpListener;

const CHAT: &str = "/v1/chat/completions";
const BACKUP: &str = "backup.example.org";
const OTHER: &str = "other.example.org";
const BACKUP_SECRET: &str = "sk-of-the-backup";

type Got = (String, HeaderMap, Value);

/// A provider that answers as it is told, one status after the other, and then well.
struct Provider {
    address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Provider {
    async fn start(ca: &TestCa, name: &str, statuses: &[u16], retry_after: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tls, got) = (ca.acceptor(name, &[b"http/1.1"]), Arc::new(Mutex::new(Vec::new())));
        let left = Arc::new(Mutex::new(statuses.iter().rev().copied().collect::<Vec<_>>()));
        let heard = Arc::clone(&got);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, heard, left) = (tls.clone(), Arc::clone(&heard), Arc::clone(&left));
                tokio::spawn(async move {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(|request: Request<Incoming>| {
                        let (heard, left) = (Arc::clone(&heard), Arc::clone(&left));
                        async move {
                            let path = request.uri().path().to_owned();
                            let headers = request.headers().clone();
                            let body = request.into_body().collect().await.unwrap().to_bytes();
                            heard.lock().unwrap().push((path, headers, serde_json::from_slice(&body).unwrap()));
                            let status = left.lock().unwrap().pop().unwrap_or(200);
                            let mut response = Response::builder().status(status);
                            if let Some(seconds) = retry_after.filter(|_| status != 200) {
                                response = response.header("retry-after", seconds);
                            }
                            let said = json!({"choices": [{"message": {"content": "hi"}}], "n": status,
                                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}});
                            let response = response.header("content-type", "application/json");
                            Ok::<_, Infallible>(response.body(text(said.to_string())).unwrap())
                        }
                    });
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, got }
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    fn grant(&self, ca: &TestCa, host: &str) -> Grant {
        Grant { host: host.parse().unwrap(), ..grant(self.address, ca) }
    }
}

fn to(host: &str) -> Failover {
    Failover { host: host.parse().unwrap(), port: 443, scheme: Scheme::Https, path: None, model: None }
}

fn rules(retries: u8, failover: Vec<Failover>) -> LlmRules {
    LlmRules { retries, failover, ..LlmRules::default() }
}

async fn call(fence: &Fence) -> (StatusCode, Value) {
    let body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "5"}]}).to_string();
    let mut request = post(CHAT, &body);
    request.headers_mut().insert("authorization", format!("Bearer {PLACEHOLDER}").parse().unwrap());
    let response = fence.h1().await.send_request(request).await.unwrap();
    let status = response.status();
    (status, serde_json::from_str(&body_of(response).await).unwrap())
}

#[tokio::test]
async fn a_provider_that_is_busy_is_asked_again_and_each_try_is_a_call_in_the_log() {
    let ca = TestCa::new();
    let busy = Provider::start(&ca, HOST, &[503, 429], Some("0")).await;
    let fence = Fence::new(vec![Grant { llm: rules(2, vec![]), ..keyed(busy.grant(&ca, HOST)) }]);
    let (status, answer) = call(&fence).await;
    assert_eq!((status, &answer["n"]), (StatusCode::OK, &json!(200)));
    let got = busy.got();
    assert_eq!(got.len(), 3);
    assert!(got.iter().all(|(_, headers, body)| {
        headers["authorization"] == format!("Bearer {SECRET}").as_str() && body["model"] == "gpt-4o-mini"
    }));
    fence.log.outcome(2).await;
    let (intents, outcomes) = (fence.log.intents(), fence.log.outcomes());
    assert_eq!(outcomes.iter().map(|o| o.status.unwrap()).collect::<Vec<_>>(), [503, 429, 200]);
    assert_eq!(intents[0].after, None);
    assert_eq!(intents[1].after.as_ref(), Some(&intents[0].call));
    assert_eq!(intents[2].after.as_ref(), Some(&intents[1].call));
}

#[tokio::test]
async fn without_leave_nothing_is_tried_again_and_what_is_wrong_stays_wrong() {
    let ca = TestCa::new();
    let busy = Provider::start(&ca, HOST, &[503], None).await;
    let fence = Fence::new(vec![keyed(busy.grant(&ca, HOST))]);
    assert_eq!(call(&fence).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(busy.got().len(), 1);

    let strict = Provider::start(&ca, HOST, &[400, 503, 503, 503], Some("0")).await;
    let fence = Fence::new(vec![Grant { llm: rules(1, vec![]), ..keyed(strict.grant(&ca, HOST)) }]);
    assert_eq!(call(&fence).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(strict.got().len(), 1);
    // The last answer is the agent's, once nothing is left to try.
    assert_eq!(call(&fence).await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(strict.got().len(), 3);
}

#[tokio::test]
async fn another_provider_gets_the_call_with_its_own_secret_path_and_model() {
    let ca = TestCa::new();
    let down = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let backup = Provider::start(&ca, BACKUP, &[500], None).await;
    let other = Provider::start(&ca, OTHER, &[], None).await;
    let elsewhere =
        Failover { path: Some("/openai/chat/completions".into()), model: Some("mini-2".into()), ..to(OTHER) };
    let first = Grant { llm: rules(0, vec![to(BACKUP), elsewhere]), ..keyed(grant(down.local_addr().unwrap(), &ca)) };
    drop(down);
    let second = Grant { credential: Some("backup".into()), ..backup.grant(&ca, BACKUP) };
    let third = Grant { models: vec!["mini-2".into()], ..other.grant(&ca, OTHER) };
    let mut config = config(vec![first, second, third]);
    config.credentials.insert(
        "backup".into(),
        CredentialLease {
            place: Place::Header { name: "api-key".into(), template: "{}".into() },
            placeholder: "rf-placeholder-of-the-backup".into(),
            secret: SecretText::new(BACKUP_SECRET.into()),
        },
    );
    let fence = Fence::of(&config);
    let (status, answer) = call(&fence).await;
    assert_eq!((status, &answer["n"]), (StatusCode::OK, &json!(200)));

    let [(path, headers, body)] = &backup.got()[..] else { panic!() };
    assert_eq!((path.as_str(), &body["model"]), (CHAT, &json!("gpt-4o-mini")));
    assert_eq!(headers["api-key"], BACKUP_SECRET);
    assert_eq!(headers["host"], BACKUP);
    assert!(!headers.contains_key("authorization"), "the first provider's is not shown to the second");
    let [(path, headers, body)] = &other.got()[..] else { panic!() };
    assert_eq!((path.as_str(), &body["model"]), ("/openai/chat/completions", &json!("mini-2")));
    assert!(!headers.contains_key("authorization") && !headers.contains_key("api-key"));

    fence.log.outcome(2).await;
    let intents = fence.log.intents();
    let hosts: Vec<&str> = intents.iter().map(|intent| intent.host.as_str()).collect();
    assert_eq!(hosts, [HOST, BACKUP, OTHER]);
    assert_eq!(intents[2].after.as_ref(), Some(&intents[1].call));
    assert_eq!(intents[2].model.as_deref(), Some("mini-2"));
}

#[tokio::test]
async fn a_provider_that_is_not_granted_is_passed_over() {
    let ca = TestCa::new();
    let busy = Provider::start(&ca, HOST, &[503], None).await;
    let backup = Provider::start(&ca, BACKUP, &[], None).await;
    let other = Provider::start(&ca, OTHER, &[], None).await;
    let first = Grant { llm: rules(0, vec![to(BACKUP), to(OTHER)]), ..keyed(busy.grant(&ca, HOST)) };
    let refuses = Grant { models: vec!["another".into()], ..backup.grant(&ca, BACKUP) };
    let fence = Fence::new(vec![first.clone(), refuses.clone(), other.grant(&ca, OTHER)]);
    assert_eq!(call(&fence).await.0, StatusCode::OK);
    assert!(backup.got().is_empty());
    let decided: Vec<Outcome> = fence.log.intents().iter().map(|intent| intent.decision).collect();
    assert_eq!(decided, [Outcome::Allow, Outcome::Deny, Outcome::Allow]);

    let busy = Provider::start(&ca, HOST, &[503], None).await;
    let first = Grant { connect_to: Some(busy.address), llm: rules(0, vec![to(BACKUP)]), ..first };
    let (status, answer) = call(&Fence::new(vec![first, refuses])).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{answer}");
    assert!(answer.to_string().contains("no provider could answer"), "{answer}");
}

#[tokio::test]
async fn a_provider_that_asks_for_a_long_rest_gets_it() {
    let ca = TestCa::new();
    let busy = Provider::start(&ca, HOST, &[429], Some("3600")).await;
    let backup = Provider::start(&ca, BACKUP, &[], None).await;
    let first = Grant { llm: rules(5, vec![to(BACKUP)]), ..keyed(busy.grant(&ca, HOST)) };
    let fence = Fence::new(vec![first, backup.grant(&ca, BACKUP)]);
    assert_eq!(call(&fence).await.0, StatusCode::OK);
    assert_eq!((busy.got().len(), backup.got().len()), (1, 1));
}

#[tokio::test]
async fn tries_that_ran_no_model_cost_no_tokens() {
    let ca = TestCa::new();
    let busy = Provider::start(&ca, HOST, &[503, 503], Some("0")).await;
    let budget = "[agent]\nname = \"a\"\nentry = [\"x\"]\n[budget]\ntokens_per_month = 20000\nrequests_per_month = 3\n";
    let budget = Manifest::parse(budget, &|_| Ok(String::new())).unwrap().budget;
    let grants = vec![Grant { llm: rules(2, vec![]), ..keyed(busy.grant(&ca, HOST)) }];
    let ledger = std::fs::File::from(rustix::fs::memfd_create("budget", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    // Each try reserves nearly all of it, since the call sets no bound.
    let fence = Fence::counting(&GateConfig { budget, ..config(grants) }, &ledger);
    assert_eq!(call(&fence).await.0, StatusCode::OK);
    assert_eq!(call(&fence).await.0, StatusCode::TOO_MANY_REQUESTS, "each try is a request");
}
