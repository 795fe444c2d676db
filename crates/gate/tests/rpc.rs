//! MCP servers and other agents: what a grant lets be said, and what a server may say back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "this is test code")]

mod support;

use http::{Request, StatusCode};
use ringfence_model::manifest::{Grant, RpcProtocol, RpcRules};
use serde_json::{Value, json};
use support::*;

struct World {
    upstream: Upstream,
    fence: Fence,
}

impl World {
    async fn new(rules: Option<RpcRules>) -> Self {
        let ca = TestCa::new();
        let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"http/1.1"]))).await;
        let grant = Grant { rpc: rules, ..grant(upstream.address, &ca) };
        let fence = Fence::new(vec![grant]);
        Self { upstream, fence }
    }

    async fn say(&self, message: &Value) -> (StatusCode, Value) {
        let (status, text) = self.say_with(message, &[]).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn say_with(&self, message: &Value, headers: &[(&str, &str)]) -> (StatusCode, String) {
        self.say_text(&message.to_string(), headers).await
    }

    async fn say_text(&self, message: &str, headers: &[(&str, &str)]) -> (StatusCode, String) {
        let mut request = post("/mcp", message);
        for (name, value) in headers {
            request.headers_mut().insert(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let response = self.fence.h1().await.send_request(request).await.unwrap();
        (response.status(), body_of(response).await)
    }

    fn last_reason(&self) -> String {
        self.fence.log.intents().last().unwrap().reason.clone()
    }

    fn reached(&self) -> usize {
        self.upstream.heads().len()
    }
}

fn tools(names: &[&str]) -> Option<RpcRules> {
    Some(RpcRules { tools: Some(names.iter().map(ToString::to_string).collect()), ..RpcRules::default() })
}

fn ask(method: &str, params: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
}

fn tool_call(name: &str, arguments: Value) -> Value {
    ask("tools/call", json!({"name": name, "arguments": arguments}))
}

#[tokio::test]
async fn a_tool_that_is_granted_is_called_and_another_is_not() {
    let world = World::new(tools(&["sea*"])).await;
    let (_, answer) = world.say(&tool_call("search", json!({"q": "x"}))).await;
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("search"));
    let intent = world.fence.log.intent(0).await;
    assert_eq!((intent.rpc[0].method.as_str(), intent.rpc[0].name.as_deref()), ("tools/call", Some("search")));
    assert!(intent.rpc[0].arguments.as_ref().unwrap().starts_with("sha256:"));

    let (status, answer) = world.say(&tool_call("shell", json!({}))).await;
    assert_eq!(status, StatusCode::OK, "an agent goes on from a result, not from an error of HTTP");
    assert_eq!(answer["result"]["isError"], true);
    let intent = world.fence.log.intents().pop().unwrap();
    assert_eq!((intent.reason.as_str(), intent.rules.is_empty()), ("rpc_not_granted", true));
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains(intent.call.as_str()));
    assert_eq!(world.reached(), 1);
}

#[tokio::test]
async fn without_rules_every_tool_is_called() {
    let world = World::new(None).await;
    let (_, answer) = world.say(&tool_call("shell", json!({}))).await;
    assert!(answer["result"]["content"][0]["text"].as_str().unwrap().contains("shell"));
}

#[tokio::test]
async fn lists_show_what_is_granted() {
    let world = World::new(tools(&["search"])).await;
    let (_, answer) = world.say(&ask("tools/list", json!({}))).await;
    let names: Vec<&str> =
        answer["result"]["tools"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["search"]);
    assert_eq!(world.fence.log.outcome(0).await.findings, ["mcp_hidden"]);
}

#[tokio::test]
async fn a_tool_that_became_another_is_held_until_somebody_approves() {
    let world = World::new(tools(&["*"])).await;
    let list = ask("tools/list", json!({}));
    let first = world.say(&list).await.1;
    assert_eq!(first["result"]["tools"].as_array().unwrap().len(), 2);
    let (_, text) = world.say_with(&list, &[("x-changed", "1")]).await;
    assert!(!text.contains("evil.example") && text.contains("shell"), "{text}");
    assert_eq!(world.fence.log.outcome(1).await.findings, ["mcp_definition_changed"]);
    let (_, answer) = world.say(&tool_call("search", json!({}))).await;
    assert_eq!(answer["result"]["isError"], true);
    assert_eq!(world.last_reason(), "mcp_definition_changed");
    // The server put it back.
    assert_eq!(world.say(&list).await.1["result"]["tools"].as_array().unwrap().len(), 2);
    assert_eq!(world.say(&tool_call("search", json!({}))).await.1["result"]["isError"], Value::Null);
}

#[tokio::test]
async fn arguments_are_held_against_a_schema() {
    let schema = r#"{"type":"object","properties":{"path":{"type":"string","pattern":"^/data/[a-z]+$"},
        "lines":{"type":"integer","maximum":100}},"required":["path"],"additionalProperties":false}"#;
    let schemas = [("search".to_owned(), schema.to_owned())].into();
    let world = World::new(Some(RpcRules { schemas, ..RpcRules::default() })).await;
    for (arguments, fits) in [
        (json!({"path": "/data/x", "lines": 5}), true),
        (json!({"path": "/data/x", "lines": 500}), false),
        (json!({"path": "/data/../etc/passwd"}), false),
        (json!({"path": ["/data/x"]}), false),
        (json!({"path": "/data/x", "more": 1}), false),
        (json!({}), false),
    ] {
        let before = world.reached();
        let (_, answer) = world.say(&tool_call("search", arguments.clone())).await;
        assert_eq!(answer["result"]["isError"] != true, fits, "{arguments}: {answer}");
        assert_eq!(world.reached() > before, fits, "{arguments}");
        if !fits {
            assert_eq!(world.last_reason(), "argument_not_granted");
        }
    }
    let why = world.fence.log.intents()[1].why.clone();
    assert_eq!(why, "grant 1 covers the tool, but /lines does not fit `maximum`");
    // Without it, all of them pass.
    let world = World::new(Some(RpcRules::default())).await;
    world.say(&tool_call("search", json!({"path": "/data/../etc/passwd"}))).await;
    assert_eq!(world.reached(), 1);
}

#[tokio::test]
async fn what_a_tool_was_outlives_the_gate() {
    let dir = tempfile::tempdir().unwrap();
    let memory = || {
        let path = dir.path().join("definitions");
        std::fs::File::options().read(true).append(true).create(true).open(path).unwrap()
    };
    let list = ask("tools/list", json!({}));
    let world = World::new(tools(&["*"])).await;
    world.fence.gate.remember_definitions(memory()).unwrap();
    world.say(&list).await;
    // A crash of the host left half a line.
    std::io::Write::write_all(&mut memory(), b"{\"server\":\"half").unwrap();

    let world = World::new(tools(&["*"])).await;
    world.fence.gate.remember_definitions(memory()).unwrap();
    let (_, text) = world.say_with(&list, &[("x-changed", "1")]).await;
    assert!(!text.contains("evil.example") && text.contains("shell"), "{text}");
    assert_eq!(world.fence.log.outcome(0).await.findings, ["mcp_definition_changed"]);
    assert_eq!(world.say(&list).await.1["result"]["tools"].as_array().unwrap().len(), 2);

    // Without the memory, what comes first is believed.
    let world = World::new(tools(&["*"])).await;
    assert!(world.say_with(&list, &[("x-changed", "1")]).await.1.contains("evil.example"));
    let written = std::fs::read_to_string(dir.path().join("definitions")).unwrap();
    assert_eq!(written.lines().filter(|line| line.contains("digest")).count(), 2, "each once: {written}");
}

#[tokio::test]
async fn a_pinned_definition_is_the_only_one() {
    let other = ringfence_model::Digest::of(b"another definition");
    let rules = RpcRules { pins: [("search".to_owned(), other)].into(), ..RpcRules::default() };
    let world = World::new(Some(rules)).await;
    let text = world.say(&ask("tools/list", json!({}))).await.1.to_string();
    assert!(!text.contains("\"search\"") && text.contains("\"shell\""));
}

#[tokio::test]
async fn arguments_are_held_to_their_globs() {
    let globs = [("path".to_owned(), vec!["/data/*".to_owned()])].into();
    let rules = RpcRules { arguments: [("search".to_owned(), globs)].into(), ..RpcRules::default() };
    let world = World::new(Some(rules)).await;
    assert_eq!(world.say(&tool_call("search", json!({"path": "/data/x"}))).await.1["result"]["isError"], Value::Null);
    for arguments in [
        json!({}),
        json!({"path": "/etc/shadow"}),
        json!({"path": ["/data/x", "/etc/shadow"]}),
        json!({"path": {"of": "/data/x"}}),
        json!({"Path": "/data/x"}),
        json!({"path": null}),
    ] {
        let (_, answer) = world.say(&tool_call("search", arguments.clone())).await;
        assert_eq!(answer["result"]["isError"], true, "{arguments}");
        assert_eq!(world.last_reason(), "argument_not_granted");
    }
    let text = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","arguments":{"path":"/data/x","path":"/etc/shadow"}}}"#;
    assert_eq!(world.say_text(text, &[]).await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.reached(), 1);
}

#[tokio::test]
async fn one_message_that_is_not_granted_stops_its_batch() {
    let world = World::new(tools(&["search"])).await;
    let mut second = tool_call("shell", json!({}));
    second["id"] = json!(2);
    let batch = json!([tool_call("search", json!({})), second]);
    let (_, answers) = world.say(&batch).await;
    assert_eq!(answers.as_array().unwrap().len(), 2);
    assert!(answers.as_array().unwrap().iter().all(|answer| answer["result"]["isError"] == true));
    assert_eq!(world.reached(), 0);
    assert_eq!(world.say(&json!([tool_call("search", json!({}))])).await.1.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_does_not_ask_for_what_is_not_granted() {
    for granted in [false, true] {
        let world = World::new(Some(RpcRules { sampling: granted, ..RpcRules::default() })).await;
        let (_, text) = world.say_with(&tool_call("search", json!({})), &[("x-sampling", "1")]).await;
        assert_eq!(text.contains("sampling/createMessage"), granted, "{text}");
        assert!(text.contains("notifications/progress") && text.contains("\"result\""));
        let hello = ask("initialize", json!({"capabilities": {"sampling": {}, "x": {}}}));
        let (_, answer) = world.say(&hello).await;
        let seen = answer["result"]["seen"].as_object().unwrap();
        assert_eq!((seen.contains_key("sampling"), seen.contains_key("x")), (granted, true));
    }
}

#[tokio::test]
async fn a_session_of_somebody_else_is_none() {
    let world = World::new(tools(&["*"])).await;
    let list = ask("tools/list", json!({}));
    assert_eq!(world.say_with(&list, &[("mcp-session-id", "session-1")]).await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.last_reason(), "mcp_session_unknown");
    assert_eq!(world.say(&ask("initialize", json!({}))).await.0, StatusCode::OK);
    assert_eq!(world.say_with(&list, &[("mcp-session-id", "session-1")]).await.0, StatusCode::OK);
    let stream = |session: &str| {
        Request::builder().uri("/mcp").header("host", HOST).header("mcp-session-id", session).body(text("")).unwrap()
    };
    let status = |response: http::Response<_>| {
        let _: &hyper::body::Incoming = response.body();
        response.status()
    };
    let own = world.fence.h1().await.send_request(stream("session-1")).await.unwrap();
    assert_eq!(status(own), StatusCode::OK);
    let other = world.fence.h1().await.send_request(stream("session-2")).await.unwrap();
    assert_eq!(status(other), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_can_be_understood_in_two_ways_is_not_said_and_not_heard() {
    let world = World::new(tools(&["search"])).await;
    for text in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search","Name":"shell"}}"#,
        r#"{"jsonrpc":"1.0","id":1,"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"search"}}"#,
        "",
    ] {
        assert_eq!(world.say_text(text, &[]).await.0, StatusCode::FORBIDDEN, "{text}");
    }
    let call = tool_call("search", json!({}));
    assert_eq!(world.say_with(&call, &[("mcp-name", "shell")]).await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.say_with(&call, &[("content-encoding", "gzip")]).await.0, StatusCode::FORBIDDEN);
    assert_eq!(world.reached(), 0);
    let (_, text) = world.say_with(&ask("tools/list", json!({})), &[("x-broken", "1")]).await;
    assert!(!text.contains("evil") && text.contains("cannot be understood"), "{text}");
}

#[tokio::test]
async fn a_method_must_be_of_the_protocol_or_listed() {
    let world = World::new(tools(&["*"])).await;
    for method in ["message/send", "admin/reset", "sampling/createMessage"] {
        let (_, answer) = world.say(&ask(method, json!({"message": {"parts": []}}))).await;
        assert_eq!(answer["error"]["code"], -32_010, "{method}: {answer}");
    }
    let a2a =
        RpcRules { protocol: RpcProtocol::A2a, methods: Some(vec!["message/send".into()]), ..RpcRules::default() };
    let world = World::new(Some(a2a)).await;
    assert!(world.say(&ask("message/send", json!({"message": {"parts": []}}))).await.1["result"].is_object());
    for method in ["message/stream", "tools/list"] {
        assert_eq!(
            world.say(&ask(method, json!({"message": {"parts": []}}))).await.1["error"]["code"],
            -32_010,
            "{method}"
        );
    }
}
