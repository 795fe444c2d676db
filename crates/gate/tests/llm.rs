//! Calls of language models: what a grant allows of them, what they used, and what a budget leaves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "this is test code")]

mod support;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::BodyExt;
use ringfence_audit::Event;
use ringfence_gate::config::GateConfig;
use ringfence_model::manifest::Grant;
use serde_json::{Value, json};
use support::*;

const CHAT: &str = "/v1/chat/completions";

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

    fn grant(&self) -> Grant {
        grant(self.upstream.address, &self.ca)
    }

    fn config(&self, text: &str) -> GateConfig {
        GateConfig { budget: budget(text), ..config(vec![self.grant()]) }
    }

    fn fence(&self, text: &str) -> Fence {
        Fence::counting(&self.config(text), &ledger())
    }
}

fn ask(words: u64, more: Value) -> String {
    let mut body = json!({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": words.to_string()}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

async fn call(fence: &Fence, body: &str) -> (StatusCode, String) {
    let response = fence.h1().await.send_request(post(CHAT, body)).await.unwrap();
    (response.status(), body_of(response).await)
}

#[tokio::test]
async fn what_a_model_used_is_in_the_log_and_what_was_sent_is_untouched() {
    let world = World::new().await;
    let fence = Fence::new(vec![world.grant()]);
    let (status, answer) =
        call(&fence, &ask(5, json!({"tools": [{"type": "function", "function": {"name": "f"}}]}))).await;
    assert_eq!(status, StatusCode::OK);
    assert!(answer.contains("word word word word word "));
    let intent = fence.log.intent(0).await;
    let asked = intent.llm.unwrap();
    assert_eq!(
        (asked.api.as_str(), asked.models, asked.tools),
        ("openai.chat", vec!["gpt-4o-mini".to_owned()], vec!["f".to_owned()])
    );
    let used = fence.log.outcome(0).await.llm.unwrap();
    assert_eq!((used.input_tokens, used.output_tokens, used.estimated), (10, 5, false));
    // 10 tokens at 0.15 dollars a million, 5 at 0.60: 4.5 millionths of a dollar, rounded up.
    assert_eq!(used.usd_micro, Some(5));
}

#[tokio::test]
async fn a_spent_budget_answers_in_the_form_of_the_api_and_nothing_leaves() {
    let world = World::new().await;
    let fence = world.fence("[budget]\ntokens_per_month = 100\n");
    assert_eq!(call(&fence, &ask(80, json!({}))).await.0, StatusCode::OK);
    fence.log.outcome(0).await;
    assert_eq!(world.upstream.heads().len(), 1);
    let response = fence.h1().await.send_request(post(CHAT, &ask(80, json!({"max_tokens": 50})))).await.unwrap();
    // Ten are left: less than the question alone may take.
    if response.status() == StatusCode::OK {
        panic!("{}", body_of(response).await);
    }
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() <= 31 * 86_400);
    let answer: Value = serde_json::from_str(&body_of(response).await).unwrap();
    assert_eq!(answer["error"]["code"], "insufficient_quota");
    assert_eq!(fence.log.intent(1).await.reason, "budget_exhausted");
    assert_eq!(world.upstream.heads().len(), 1);
}

#[tokio::test]
async fn calls_at_once_do_not_pass_a_nearly_spent_budget() {
    let world = World::new().await;
    let fence = world.fence("[budget]\ntokens_per_month = 1000\n");
    let body = ask(200, json!({"max_tokens": 200}));
    let all = join_all((0..24).map(|_| call(&fence, &body))).await;
    let served: u64 = all.iter().filter(|(status, _)| *status == StatusCode::OK).count() as u64;
    let used: u64 =
        fence.log.outcomes().iter().map(|o| o.llm.as_ref().unwrap()).map(|u| u.input_tokens + u.output_tokens).sum();
    assert!((4..=6).contains(&served), "{served}");
    assert!(used <= 1000, "{used}");
    assert_eq!(world.upstream.heads().len() as u64, served);
}

#[tokio::test]
async fn without_a_budget_all_of_them_pass() {
    let world = World::new().await;
    let fence = Fence::new(vec![world.grant()]);
    let body = ask(200, json!({"max_tokens": 200}));
    let all = join_all((0..24).map(|_| call(&fence, &body))).await;
    assert!(all.iter().all(|(status, _)| *status == StatusCode::OK));
}

#[tokio::test]
async fn a_stream_reports_what_it_used_and_the_agent_sees_no_event_that_it_did_not_ask_for() {
    let world = World::new().await;
    let ledger = ledger();
    let fence = Fence::counting(&world.config("[budget]\ntokens_per_month = 1000\n"), &ledger);
    let (_, own) = call(&fence, &ask(6, json!({"stream": true}))).await;
    assert_eq!(own.matches("word ").count(), 6);
    assert!(own.ends_with("data: [DONE]\n\n") && !own.contains("prompt_tokens"), "{own}");
    let (_, whole) = call(&fence, &ask(6, json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
    assert!(whole.contains("prompt_tokens"));
    for nth in 0..2 {
        let used = fence.log.outcome(nth).await.llm.unwrap();
        assert_eq!((used.input_tokens, used.output_tokens, used.estimated), (10, 6, false));
    }
}

#[tokio::test]
async fn a_stream_that_heeds_no_bound_is_cut_with_an_error_that_clients_understand() {
    let world = World::new().await;
    let fence = world.fence("[budget]\ntokens_per_month = 300\n");
    let mut client = fence.h1().await;
    let body = ask(5000, json!({"stream": true, "model": "deaf"}));
    let response = client.send_request(post(CHAT, &body)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let answer = body_of(response).await;
    let said = answer.matches("word ").count();
    assert!(said < 1000, "{said}");
    assert!(answer.ends_with("data: [DONE]\n\n"));
    let last = answer.trim_end().rsplit("\n\n").nth(1).unwrap().strip_prefix("data: ").unwrap();
    assert_eq!(serde_json::from_str::<Value>(last).unwrap()["error"]["code"], "insufficient_quota");
    let outcome = fence.log.outcome(0).await;
    assert_eq!(outcome.findings, ["stream_cut_at_budget"]);
    assert!(outcome.llm.unwrap().estimated);
    assert_eq!(call(&fence, &ask(1, json!({}))).await.0, StatusCode::TOO_MANY_REQUESTS, "what was cut is not free");
}

#[tokio::test]
async fn without_a_budget_such_a_stream_runs_on() {
    let world = World::new().await;
    let fence = Fence::new(vec![world.grant()]);
    let (_, answer) = call(&fence, &ask(5000, json!({"stream": true, "model": "deaf"}))).await;
    assert_eq!(answer.matches("word ").count(), 5000);
}

#[tokio::test]
async fn a_grant_bounds_answers_and_denies_what_cannot_be_bounded() {
    let world = World::new().await;
    let mut granted = world.grant();
    granted.llm.max_tokens = Some(7);
    let fence = Fence::new(vec![granted]);
    for more in [json!({}), json!({"max_tokens": 500}), json!({"max_tokens": 7})] {
        assert_eq!(call(&fence, &ask(50, more)).await.1.matches("word ").count(), 7);
    }
    assert_eq!(call(&fence, &ask(50, json!({"max_tokens": 3}))).await.1.matches("word ").count(), 3);
    let invoke = post("/model/meta.llama3-8b/invoke", r#"{"prompt":"hi"}"#);
    let response = fence.h1().await.send_request(invoke).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(fence.log.intents().last().unwrap().reason, "max_tokens_unenforceable");
}

#[tokio::test]
async fn money_is_counted_and_a_model_without_a_price_is_denied() {
    let world = World::new().await;
    let fence = world.fence("[budget]\nusd_per_month = 0.001\n");
    let unknown = ask(5, json!({"model": "nobody/knows"}));
    assert_eq!(call(&fence, &unknown).await.0, StatusCode::FORBIDDEN);
    assert_eq!(fence.log.intent(0).await.reason, "price_unknown");
    // 0.001 dollars buy 1,666 tokens of answer: each call takes 1,000 of them.
    let body = ask(1000, json!({"max_tokens": 1000}));
    assert_eq!(call(&fence, &body).await.1.matches("word ").count(), 1000);
    fence.log.outcome(0).await;
    let (status, answer) = call(&fence, &body).await;
    assert_eq!(status, StatusCode::OK);
    let rest = answer.matches("word ").count();
    assert!((500..700).contains(&rest), "the answer is bounded by what is left: {rest}");
    fence.log.outcome(1).await;
    assert_eq!(call(&fence, &body).await.0, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn bytes_end_a_download() {
    let world = World::new().await;
    let fence = world.fence("[budget]\nbytes_per_month = \"64KiB\"\n");
    let mut client = fence.h1().await;
    if let Ok(response) = client.send_request(post("/back", &"x".repeat(60_000))).await {
        assert!(response.into_body().collect().await.is_err(), "a body that is cut is no whole body");
    }
    assert!(fence.log.outcome(0).await.error.unwrap().starts_with("budget_exhausted"));
    let again = fence.h1().await.send_request(get("/")).await.unwrap();
    assert_eq!(again.status(), StatusCode::TOO_MANY_REQUESTS);
    let problem: Value = serde_json::from_str(&body_of(again).await).unwrap();
    assert_eq!((problem["code"].as_str(), problem["status"].as_u64()), (Some("ringfence.budget"), Some(429)));
}

#[tokio::test]
async fn what_was_spent_outlives_the_gate() {
    let world = World::new().await;
    let (ledger, config) = (ledger(), world.config("[budget]\nrequests_per_month = 2\n"));
    for (nth, want) in [(0, StatusCode::OK), (1, StatusCode::OK), (2, StatusCode::TOO_MANY_REQUESTS)] {
        let fence = Fence::counting(&config, &ledger);
        let response = fence.h1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), want, "{nth}");
    }
}

#[tokio::test]
async fn a_user_s_budget_is_a_user_s_own_and_the_header_stays_inside() {
    let world = World::new().await;
    let fence = world.fence("[budget.user]\nheader = \"x-on-behalf-of\"\nrequests_per_month = 1\n");
    for (user, want) in [("ann", StatusCode::OK), ("ann", StatusCode::TOO_MANY_REQUESTS), ("bob", StatusCode::OK)] {
        let mut request = get("/");
        request.headers_mut().insert("x-on-behalf-of", user.parse().unwrap());
        assert_eq!(fence.h1().await.send_request(request).await.unwrap().status(), want, "{user}");
    }
    assert!(world.upstream.heads().iter().all(|(_, _, headers, _)| !headers.contains_key("x-on-behalf-of")));
}

#[tokio::test]
async fn a_call_that_never_left_costs_nothing() {
    let world = World::new().await;
    let mut config = world.config("[budget]\nrequests_per_month = 1\n");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.grants[0].connect_to = Some(listener.local_addr().unwrap());
    drop(listener);
    let fence = Fence::counting(&config, &ledger());
    for _ in 0..3 {
        assert_eq!(fence.h1().await.send_request(get("/")).await.unwrap().status(), StatusCode::BAD_GATEWAY);
    }
}

#[tokio::test]
async fn a_call_waits_its_turn_where_the_operator_wants_that() {
    let world = World::new().await;
    let fence = world.fence("[budget]\ntokens_per_month = 1000\nwhen_spent = \"wait\"\nwait_s = 10\n");
    // Each takes all that is left while it runs, and gives most of it back.
    let body = ask(5, json!({"max_tokens": 900}));
    let began = Instant::now();
    let all = join_all((0..6).map(|_| call(&fence, &body))).await;
    assert!(all.iter().all(|(status, _)| *status == StatusCode::OK), "{all:?}");
    assert!(began.elapsed() < Duration::from_secs(9));
}

#[tokio::test]
async fn much_of_a_budget_is_told_once() {
    let world = World::new().await;
    let fence = world.fence("[budget]\nrequests_per_month = 4\nwarn_at = 0.5\n");
    for _ in 0..4 {
        fence.h1().await.send_request(get("/")).await.unwrap();
    }
    let events = fence.log.events.lock().unwrap();
    let warnings: Vec<_> = events.iter().filter(|e| matches!(e, Event::BudgetWarning { .. })).collect();
    assert!(matches!(&warnings[..], [Event::BudgetWarning { scope, used: 2, .. }] if scope == "agent"), "{warnings:?}");
}

#[tokio::test]
async fn what_a_grant_does_not_allow_is_refused_in_the_api_s_own_words() {
    let world = World::new().await;
    let mut granted = world.grant();
    granted.models = vec!["gpt-4o-mini".into(), "claude-x".into()];
    granted.llm.tools = Some(vec!["search".into()]);
    granted.llm.streaming = Some(false);
    let fence = Fence::new(vec![granted]);
    let tool = |name: &str| json!({"tools": [{"type": "function", "function": {"name": name}}]});
    assert_eq!(call(&fence, &ask(1, tool("search"))).await.0, StatusCode::OK);
    for (more, reason, code) in [
        (tool("shell"), "llm_not_granted", "permission_denied"),
        (json!({"stream": true}), "llm_not_granted", "permission_denied"),
        (json!({"model": "gpt-5"}), "model_not_granted", "model_not_found"),
    ] {
        let (status, answer) = call(&fence, &ask(1, more)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["error"]["code"], code, "{answer}");
        assert_eq!(fence.log.intents().last().unwrap().reason, reason);
    }
    let anthropic = json!({"model": "claude-y", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]});
    let response = fence.h1().await.send_request(post("/v1/messages", &anthropic.to_string())).await.unwrap();
    let answer: Value = serde_json::from_str(&body_of(response).await).unwrap();
    assert_eq!(answer["type"], "error");
    assert_eq!(world.upstream.heads().len(), 1);
}

#[tokio::test]
async fn two_readers_of_one_body_read_the_same() {
    let world = World::new().await;
    let mut granted = world.grant();
    granted.models = vec!["gpt-4o-mini".into()];
    let fence = Fence::new(vec![granted]);
    let whole = ask(1, json!({}));
    let inner = whole.strip_prefix('{').unwrap();
    for body in [
        format!(r#"{{"model":"gpt-5",{inner}"#),
        format!(r#"{{"Model":"gpt-5",{inner}"#),
        format!("\u{feff}{whole}"),
        whole.replace("\"1\"", "NaN"),
        format!("{whole} {{}}"),
        String::from_utf8_lossy(&whole.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()).into_owned(),
    ] {
        assert_eq!(call(&fence, &body).await.0, StatusCode::FORBIDDEN, "{body}");
        assert_eq!(fence.log.intents().last().unwrap().reason, "body_unreadable");
    }
    assert!(world.upstream.heads().is_empty());
}
