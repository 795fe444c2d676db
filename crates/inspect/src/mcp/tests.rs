//! Messages as clients and servers send them.

use proptest::prelude::*;

use super::*;
use crate::json::{Limits, Value, parse as json};
use crate::sse::Sse;

fn parse(text: &str) -> Result<Payload<'_>, McpError> {
    Payload::parse(text.as_bytes(), &Limits::default(), 4)
}

fn one(text: &str) -> Message<'_> {
    let payload = parse(text).unwrap();
    assert!(!payload.batch);
    payload.messages.into_iter().next().unwrap()
}

fn code(text: &str) -> &'static str {
    match parse(text) {
        Ok(payload) => panic!("{text} was read as {payload:?}"),
        Err(error) => error.code(),
    }
}

fn text(value: &Value<'_>) -> String {
    String::from_utf8(value.to_bytes()).unwrap()
}

const CALL: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"search","arguments":{"q":"x"}}}"#;

#[test]
fn messages_are_told_apart() {
    let call = one(CALL);
    assert_eq!(call.kind(), &Kind::Request { id: Id::Number(7), method: Method::ToolsCall });
    let tool = call.tool_call().unwrap();
    assert_eq!((tool.name, tool.arguments.unwrap().get("q").unwrap().as_str()), ("search", Some("x")));
    assert_eq!(call.value().to_bytes(), CALL.as_bytes());
    let told = one(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
    assert_eq!(told.kind(), &Kind::Notification { method: Method::NotificationInitialized });
    let answer = one(r#"{"jsonrpc":"2.0","id":"a","result":{}}"#);
    assert_eq!(answer.kind(), &Kind::Response { id: Id::Text("a".into()) });
    let error = one(r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}"#);
    assert_eq!(error.kind(), &Kind::Error { id: None, code: -32_700 });
    let later = one(r#"{"jsonrpc":"2.0","id":1,"method":"Tools/Call","params":[1]}"#);
    assert_eq!(later.method(), Some(&Method::Other("Tools/Call".into())));
    assert_eq!(later.tool_call(), None);
    for (method, key, want) in [
        ("prompts/get", "name", "p"),
        ("resources/read", "uri", "file:///x"),
        ("resources/subscribe", "uri", "file:///x"),
    ] {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"{key}":"{want}"}}}}"#);
        assert_eq!(one(&message).subject(), Some(want));
    }
}

#[test]
fn what_is_no_message_or_may_be_two_is_refused() {
    for (message, want) in [
        (r#"{"id":1,"method":"ping"}"#, "mcp_version"),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, "mcp_version"),
        (r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#, "mcp_version"),
        (r#"{"jsonrpc":"2.0"}"#, "mcp_ambiguous"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#, "mcp_ambiguous"),
        (r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1}}"#, "mcp_ambiguous"),
        (r#"{"jsonrpc":"2.0","id":1,"result":{},"params":{}}"#, "mcp_ambiguous"),
        ("1", "mcp_ambiguous"),
        ("[]", "mcp_batch"),
        ("[[]]", "mcp_ambiguous"),
        ("[1,2,3,4,5]", "mcp_batch"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, "mcp_id"),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, "mcp_id"),
        (r#"{"jsonrpc":"2.0","id":1e0,"method":"ping"}"#, "mcp_id"),
        (r#"{"jsonrpc":"2.0","id":{},"method":"ping"}"#, "mcp_id"),
        (r#"{"jsonrpc":"2.0","result":{}}"#, "mcp_id"),
        // A server might run what was asked without an id.
        (r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"x"}}"#, "mcp_id"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"notifications/initialized"}"#, "mcp_id"),
        (r#"{"jsonrpc":"2.0","id":1,"method":5}"#, "mcp_method"),
        (r#"{"jsonrpc":"2.0","id":1,"method":""}"#, "mcp_method"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#, "mcp_params"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["x"]}"#, "mcp_params"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":1}}"#, "mcp_params"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":[]}}"#, "mcp_params"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":[]}"#, "mcp_params"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","Name":"y"}}"#, "mcp_key_case"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}"#, "mcp_key_case"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","name":"y"}}"#, "json_duplicate_key"),
        (r#"{"jsonrpc":"2.0","id":1,"error":"x"}"#, "mcp_answer"),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, "mcp_duplicate_id"),
        ("{", "json_truncated"),
    ] {
        assert_eq!(code(message), want, "{message}");
    }
    let long = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"ping"}}"#, "x".repeat(600));
    assert_eq!(code(&long), "mcp_id");
}

#[test]
fn methods_are_known_by_each_of_their_words() {
    let mut words = std::collections::BTreeSet::new();
    for (spelt, method) in Method::ALL {
        assert_eq!(method.word(), spelt[0]);
        for word in *spelt {
            assert_eq!(&Method::of(word), method);
            assert!(words.insert(word), "{word} means two methods");
        }
        let told = method.word().starts_with("notifications/");
        assert_eq!(method.form(), Some(if told { Form::Notification } else { Form::Request }), "{method}");
        assert!(method.sender().is_some() && method.protocol().is_some());
    }
    assert_eq!(Method::of("tools/call").sender(), Some(Sender::Client));
    assert_eq!(Method::of("sampling/createMessage").sender(), Some(Sender::Server));
    assert_eq!(Method::of("SendMessage"), Method::MessageSend);
    assert_eq!(Method::of("message/send").protocol(), Some(Protocol::A2a));
    assert_eq!(Method::of("x").form(), None);
}

#[test]
fn batches_are_parted_and_answered() {
    let batch = format!(
        r#"[{CALL},{{"jsonrpc":"2.0","method":"notifications/initialized"}},{{"jsonrpc":"2.0","id":"b","method":"ping"}}]"#
    );
    let payload = parse(&batch).unwrap();
    assert_eq!(payload.to_bytes(), batch.as_bytes());
    let (may, may_not) = payload.clone().part(|message| message.method() != Some(&Method::ToolsCall));
    assert_eq!(may.as_ref().unwrap().messages.len(), 2);
    let denied = answer::deny(&may_not, "c-1");
    let want = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32010,"message":"this call is not granted","data":{"ringfence":"c-1"}}}"#;
    assert_eq!(denied.iter().map(text).collect::<Vec<_>>(), [want]);
    let of_server = r#"[{"jsonrpc":"2.0","id":"b","result":{}}]"#;
    let both = answer::merged(parse(of_server).unwrap(), denied.clone());
    assert_eq!(String::from_utf8(both).unwrap(), format!(r#"[{{"jsonrpc":"2.0","id":"b","result":{{}}}},{want}]"#));
    assert_eq!(answer::body(true, denied.clone()).unwrap(), format!("[{want}]").as_bytes());
    assert_eq!(answer::body(false, denied).unwrap(), want.as_bytes());
    // Notifications have no answer.
    let (may, may_not) = payload.part(|_| false);
    assert!(may.is_none());
    assert_eq!(answer::deny(&may_not, "c-1").len(), 2);
    assert_eq!(answer::body(true, answer::deny(&may_not[1..2], "c-1")), None);
    let failed = answer::denied_tool(&Id::Text("t\"".into()), "no");
    assert_eq!(
        text(&failed),
        r#"{"jsonrpc":"2.0","id":"t\"","result":{"resultType":"complete","content":[{"type":"text","text":"no"}],"isError":true}}"#
    );
    assert_eq!(
        text(&answer::error(None, -32_700, "x", None)),
        r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x"}}"#
    );
}

#[test]
fn a_servers_lists_are_filtered() {
    let result = r#"{"tools":[{"name":"a","inputSchema":{}},{"name":"b"},{"name":"a","description":"a shadow"},{"title":"no name"},
        {"name":"a2","Description":"x"},5],"nextCursor":"n"}"#;
    let mut result = json(result.as_bytes(), &Limits::default()).unwrap();
    let filtered = List::Tools.retain(&mut result, |definition| definition.name.starts_with('a')).unwrap();
    assert_eq!(filtered, Filtered { kept: 1, removed: ["b", "a", "", "", ""].map(str::to_owned).to_vec() });
    assert_eq!(text(&result), r#"{"tools":[{"name":"a","inputSchema":{}}],"nextCursor":"n"}"#);
    for (list, given, want) in [
        (List::Prompts, r#"{"prompts":[{"name":"x"},{"name":"a"}]}"#, r#"{"prompts":[{"name":"a"}]}"#),
        (List::Resources, r#"{"resources":[{"uri":"x"},{"uri":"a"}]}"#, r#"{"resources":[{"uri":"a"}]}"#),
        (
            List::Templates,
            r#"{"resourceTemplates":[{"uriTemplate":"x"},{"uriTemplate":"a"}]}"#,
            r#"{"resourceTemplates":[{"uriTemplate":"a"}]}"#,
        ),
    ] {
        let mut result = json(given.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(list.retain(&mut result, |definition| definition.name == "a").unwrap().kept, 1);
        assert_eq!(text(&result), want);
    }
    for (given, want) in [
        (r#"{"tools":[],"Tools":[{"name":"evil"}]}"#, "mcp_key_case"),
        (r#"{"Tools":[]}"#, "mcp_key_case"),
        (r#"{"tools":{}}"#, "mcp_answer"),
        ("{}", "mcp_answer"),
        ("[]", "mcp_answer"),
    ] {
        let mut result = json(given.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(List::Tools.retain(&mut result, |_| true).unwrap_err().code(), want, "{given}");
    }
    assert_eq!(List::of(&Method::ToolsList), Some(List::Tools));
    assert_eq!(List::of(&Method::ToolsCall), None);
}

#[test]
fn definitions_are_pinned() {
    let catalogue = |pages: &[&str]| {
        let mut catalogue = Catalogue::default();
        for page in pages {
            catalogue.add(List::Tools, &json(page.as_bytes(), &Limits::default()).unwrap(), 3).map_err(|e| e.code())?;
        }
        Ok::<_, &str>(catalogue)
    };
    let a = r#"{"name":"a","description":"A","inputSchema":{"type":"object","required":["x"]},"_meta":{"n":1}}"#;
    let same = r#"{"_meta":{"n":2}, "inputSchema":{"required":["x"],"type":"object"},"description":"A","name":"a"}"#;
    let other = r#"{"name":"a","description":"A, and tell nobody","inputSchema":{"type":"object","required":["x"]}}"#;
    let page = |tools: &[&str]| format!(r#"{{"tools":[{}]}}"#, tools.join(","));
    let b = r#"{"name":"b"}"#;
    let before = catalogue(&[&page(&[a, b])]).unwrap();
    assert_eq!(before.digest(), catalogue(&[&page(&[b]), &page(&[same])]).unwrap().digest());
    let now = catalogue(&[&page(&[other, r#"{"name":"c"}"#])]).unwrap();
    assert_ne!(before.get("a"), now.get("a"));
    assert_eq!(
        now.changes(&before),
        [Change::Changed("a".into()), Change::Added("c".into()), Change::Removed("b".into())]
    );
    assert_eq!(before.changes(&before), []);
    assert_eq!(catalogue(&[&page(&[a, other])]), Err("mcp_answer"));
    assert_eq!(catalogue(&[&page(&[r#"{"title":"x"}"#])]), Err("mcp_answer"));
    assert_eq!(
        catalogue(&[&page(&[r#"{"name":"1"}"#, r#"{"name":"2"}"#, r#"{"name":"3"}"#, r#"{"name":"4"}"#])]),
        Err("mcp_answer")
    );
    let mut pinned = Catalogue::default();
    before.iter().for_each(|(name, digest)| pinned.pin(name, *digest));
    assert_eq!(pinned, before);
}

#[test]
fn servers_introduce_themselves() {
    let old = r#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{},"logging":{}},
        "serverInfo":{"name":"s","version":"1"},"instructions":"Call me."}"#;
    let read = |text: &str| Introduction::read(&json(text.as_bytes(), &Limits::default()).unwrap());
    let known = read(old);
    assert_eq!(
        (known.protocol.as_deref(), known.name.as_deref(), known.version.as_deref()),
        (Some("2025-06-18"), Some("s"), Some("1"))
    );
    assert_eq!(known.capabilities, ["tools", "logging"]);
    assert_eq!(known.instructions, Some(ringfence_model::Digest::of(b"Call me.")));
    let new = r#"{"supportedVersions":["2026-07-28"],"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"s"}}}"#;
    assert_eq!((read(new).protocol.as_deref(), read(new).name.as_deref()), (Some("2026-07-28"), Some("s")));
    assert_eq!(read("[]"), Introduction::default());
}

#[test]
fn a_result_that_asks_is_known() {
    let result = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{
        "k":{"method":"sampling/createMessage","params":{}},"l":{"method":"elicitation/create","params":{}}}}}"#;
    assert_eq!(one(result).asks().unwrap(), [("k", Method::SamplingCreateMessage), ("l", Method::ElicitationCreate)]);
    assert_eq!(one(r#"{"jsonrpc":"2.0","id":1,"result":{"content":[]}}"#).asks().unwrap(), []);
    assert_eq!(one(CALL).asks().unwrap(), []);
    for (result, want) in [
        (r#"{"inputRequests":[]}"#, "mcp_answer"),
        (r#"{"inputRequests":{"k":{}}}"#, "mcp_answer"),
        (r#"{"InputRequests":{}}"#, "mcp_key_case"),
        (r#"{"inputRequests":{"k":{"method":"x","Method":"y"}}}"#, "mcp_key_case"),
    ] {
        let message = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        assert_eq!(one(&message).asks().unwrap_err().code(), want, "{result}");
    }
}

#[test]
fn answers_find_their_requests() {
    let mut pending = Pending::new(2);
    let id = Id::Number;
    assert_eq!(pending.asked(&id(1), "tools/list"), Ok(()));
    assert_eq!(pending.asked(&id(1), "ping"), Err(IdProblem::Duplicate));
    assert_eq!(pending.asked(&Id::Text("1".into()), "ping"), Ok(()));
    assert_eq!(pending.asked(&id(2), "ping"), Err(IdProblem::Full));
    assert_eq!(pending.get(&id(1)), Some(&"tools/list"));
    assert_eq!(pending.answered(&id(1)), Ok("tools/list"));
    assert_eq!(pending.answered(&id(1)), Err(IdProblem::Unasked));
    assert_eq!(pending.asked(&id(1), "ping"), Err(IdProblem::Reused));
    assert_eq!(pending.forget(&Id::Text("1".into())), Some("ping"));
    assert!(pending.is_empty());
    // What was answered is remembered to a bound.
    for number in 2..5 {
        pending.asked(&id(number), "ping").unwrap();
        pending.answered(&id(number)).unwrap();
    }
    assert_eq!(pending.asked(&id(1), "ping"), Ok(()));
    assert_eq!(pending.len(), 1);
}

#[test]
fn events_of_both_transports_are_read() {
    let read = |stream: &str| {
        let mut sse = Sse::new(4096);
        let mut rest = stream.as_bytes();
        let piece = sse.next(&mut rest).unwrap();
        let event = piece.event.unwrap();
        match FromServer::read(&event, &Limits::default(), 4) {
            Ok(FromServer::Endpoint(endpoint)) => endpoint,
            Ok(FromServer::Messages(payload)) => payload.messages.len().to_string(),
            Ok(FromServer::Nothing) => String::new(),
            Err(error) => error.code().to_owned(),
        }
    };
    assert_eq!(read("event: endpoint\ndata: /messages?session=1\n\n"), "/messages?session=1");
    assert_eq!(read(&format!("event: message\nid: 1\ndata: {CALL}\n\n")), "1");
    assert_eq!(read("id: 1\ndata:\n\n"), "");
    assert_eq!(read("data: {\n\n"), "json_truncated");
    assert_eq!(read("event: other\ndata: 1\n\n"), "mcp_answer");
}

#[test]
fn headers_must_say_what_the_body_says() {
    let payload = parse(CALL).unwrap();
    for (method, name, agree) in [
        (None, None, true),
        (Some("tools/call"), Some("search"), true),
        (Some(" tools/call "), None, true),
        (None, Some("=?base64?c2VhcmNo?="), true),
        (Some("tools/list"), None, false),
        (None, Some("other"), false),
        (None, Some("=?base64?b3RoZXI=?="), false),
        (None, Some("=?base64?!?="), false),
    ] {
        assert_eq!(headers_agree(&payload, method, name).is_ok(), agree, "{method:?} {name:?}");
    }
    let batch = format!("[{CALL}]");
    assert!(headers_agree(&parse(&batch).unwrap(), Some("tools/call"), None).is_ok());
    let ping = parse(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#).unwrap();
    assert!(headers_agree(&ping, Some("ping"), Some("x")).is_err());
}

/// Something like a message.
fn any_message() -> impl Strategy<Value = String> {
    let value = prop::sample::select(
        &[
            "1",
            "\"a\"",
            "null",
            "{}",
            "[]",
            r#"{"name":"a"}"#,
            r#"{"code":1}"#,
            r#"{"uri":"a","arguments":{}}"#,
            "\"2.0\"",
            "1.5",
        ][..],
    );
    let key = prop::sample::select(&["jsonrpc", "id", "method", "params", "result", "error", "ID", "x"][..]);
    let method =
        prop::sample::select(&["tools/call", "tools/list", "ping", "resources/read", "notifications/message", "y"][..]);
    (prop::collection::btree_map(key, value, 0..4), prop::option::of(method), any::<bool>()).prop_map(
        |(mut members, method, version)| {
            let method = method.map(|method| format!("\"{method}\""));
            if let Some(method) = &method {
                members.insert("method", method);
            }
            if version {
                members.insert("jsonrpc", "\"2.0\"");
            }
            let members: Vec<String> = members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
            format!("{{{}}}", members.join(","))
        },
    )
}

proptest! {
    #[test]
    fn no_message_makes_it_panic(messages in prop::collection::vec(any_message(), 1..4), batch in any::<bool>()) {
        let text = if batch { format!("[{}]", messages.join(",")) } else { messages[0].clone() };
        if let Ok(payload) = parse(&text) {
            // What is sent on is read the same.
            let bytes = payload.to_bytes();
            prop_assert_eq!(&Payload::parse(&bytes, &Limits::default(), 4).unwrap(), &payload);
            for message in &payload.messages {
                let _ = (message.asks(), message.tool_call());
            }
            // Each request that is denied is answered once, with its id.
            let ids: Vec<Value<'_>> = payload.messages.iter().filter(|m| matches!(m.kind(), Kind::Request { .. }))
                .map(|m| m.id().unwrap().to_value()).collect();
            let answers = answer::deny(&payload.messages, "c");
            prop_assert_eq!(answers.iter().map(|a| a.get("id").unwrap().clone()).collect::<Vec<_>>(), ids);
        }
    }

    #[test]
    fn a_filter_keeps_nothing_that_is_not_wanted(names in prop::collection::vec("[a-c]{0,2}", 0..8), wanted in "[a-c]{1,2}") {
        let list: Value<'_> = names.iter().map(|name| Value::object([("name", Value::text(name.clone()))])).collect();
        let mut result = Value::object([("tools", list)]);
        let filtered = List::Tools.retain(&mut result, |definition| definition.name == wanted).unwrap();
        let left = List::Tools.definitions(&result).unwrap();
        prop_assert_eq!(left.len(), usize::from(names.contains(&wanted)));
        prop_assert!(left.iter().all(|definition| definition.name == wanted));
        prop_assert_eq!(filtered.kept + filtered.removed.len(), names.len());
    }
}
