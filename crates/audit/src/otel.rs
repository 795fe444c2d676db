//! A call as a span of OpenTelemetry: made of the entries of the log, so that both say the same.
//!
//! # Source
//! OTLP 1.x in its JSON form; the semantic conventions for HTTP, generative AI (`gen_ai.*`) and MCP (`mcp.*`); W3C Trace
//! Context.

use serde_json::{Map, Value, json};

use crate::{CallIntent, CallOutcome, Direction, Entry, Outcome};

/// The trace that a call belongs to, and the span that it was made in, if its maker told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub span: String,
    /// Two hexadecimal digits.
    pub flags: String,
}

impl Parent {
    /// Reads a `traceparent`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let whole = hex(version, 2)
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && hex(trace, 32)
            && hex(span, 16)
            && hex(flags, 2);
        let zero = |text: &str| text.bytes().all(|b| b == b'0');
        (whole && !zero(trace) && !zero(span)).then(|| Self {
            trace: trace.into(),
            span: span.into(),
            flags: flags.into(),
        })
    }

    /// The `traceparent` of whatever `call` leads to.
    #[must_use]
    pub fn of_child(&self, call: &str) -> String {
        format!("00-{}-{}-{}", self.trace, span_id(call), self.flags)
    }
}

/// The span's id: the part of a call's id that was drawn by lot.
fn span_id(call: &str) -> &str {
    call.len().checked_sub(16).and_then(|from| call.get(from..)).unwrap_or_default()
}

/// The trace of a call that nobody has put into one.
fn trace_id(call: &str) -> String {
    format!("{:0>32}", call.strip_prefix("c-").unwrap_or(call))
}

/// A span of the call that `entry` announces, and that ended with `outcome`; as OTLP has it in JSON. Nothing if the entry
/// announces no call.
#[must_use]
pub fn span(entry: &Entry, outcome: Option<&CallOutcome>) -> Option<Value> {
    let crate::Event::CallIntent(intent) = &entry.event else { return None };
    let call = intent.call.as_str();
    let parent = intent.trace.as_deref().and_then(Parent::parse);
    let start = entry.time.as_nanosecond();
    let end = start + outcome.map_or(0, |outcome| i128::from(outcome.duration_us) * 1000);
    let mut span = json!({
        "traceId": parent.as_ref().map_or_else(|| trace_id(call), |parent| parent.trace.clone()),
        "spanId": span_id(call),
        "name": name(intent),
        "kind": match intent.direction { Direction::Egress => 3, Direction::Ingress => 2 },
        "startTimeUnixNano": start.to_string(),
        "endTimeUnixNano": end.to_string(),
        "attributes": attributes(intent, outcome),
    });
    if let (Some(parent), Some(span)) = (parent, span.as_object_mut()) {
        span.insert("parentSpanId".into(), parent.span.into());
    }
    let wrong = wrong(intent, outcome);
    if let (Some(wrong), Some(span)) = (wrong, span.as_object_mut()) {
        span.insert("status".into(), json!({ "code": 2, "message": wrong }));
    }
    Some(span)
}

/// Why a call counts as failed.
fn wrong(intent: &CallIntent, outcome: Option<&CallOutcome>) -> Option<String> {
    if intent.decision == Outcome::Deny {
        return Some(intent.reason.clone());
    }
    let outcome = outcome?;
    let least = match intent.direction {
        Direction::Egress => 400,
        Direction::Ingress => 500,
    };
    let status = outcome.status.filter(|status| *status >= least).map(|status| status.to_string());
    let broken = outcome.error.as_deref().map(|error| error.split(':').next().unwrap_or(error).to_owned());
    broken.or(status)
}

/// What a model is asked for, in the words of the conventions.
fn operation(api: &str) -> (&str, &str) {
    let (family, what) = api.split_once('.').unwrap_or((api, ""));
    let provider = match family {
        "azure" => "azure.ai.openai",
        "bedrock" => "aws.bedrock",
        "gemini" | "google" => "gcp.gemini",
        other => other,
    };
    let begins = |words: &[&str]| words.iter().any(|word| what.starts_with(word));
    let operation = match what {
        _ if what.contains("embed") => "embeddings",
        "generate" | "stream_generate" if family == "google" => "generate_content",
        "complete" | "completion" | "completions" | "generate" => "text_completion",
        _ if begins(&["chat", "converse", "interaction", "invoke", "live", "messages", "realtime", "response"]) => {
            "chat"
        }
        other => other,
    };
    (provider, operation)
}

fn name(intent: &CallIntent) -> String {
    if let Some(llm) = &intent.llm {
        let (_, operation) = operation(&llm.api);
        return format!("{operation} {}", intent.model.as_deref().unwrap_or_default()).trim_end().to_owned();
    }
    if let [said] = &intent.rpc[..] {
        return format!("{} {}", said.method, said.name.as_deref().unwrap_or_default()).trim_end().to_owned();
    }
    if let Some([verb]) = intent.sql.as_ref().map(|sql| &sql.verbs[..]) {
        return verb.clone();
    }
    if let Some(git) = intent.git.as_ref().filter(|git| !git.operation.is_empty()) {
        return format!("git {}", git.operation);
    }
    intent.method.clone().unwrap_or_else(|| intent.protocol.clone())
}

/// Attributes, each once.
struct Attributes(Vec<Value>);

impl Attributes {
    fn put(&mut self, key: &str, value: Value) {
        self.0.push(json!({ "key": key, "value": value }));
    }

    fn text(&mut self, key: &str, text: impl Into<String>) {
        let text: String = text.into();
        self.put(key, json!({ "stringValue": text }));
    }

    /// A number as OTLP has it in JSON: 64 bits are a text.
    fn number(&mut self, key: &str, number: u64) {
        self.put(key, json!({ "intValue": number.to_string() }));
    }

    fn list<'a>(&mut self, key: &str, all: impl IntoIterator<Item = &'a String>) {
        let values: Vec<Value> = all.into_iter().map(|text| json!({ "stringValue": text })).collect();
        if !values.is_empty() {
            self.put(key, json!({ "arrayValue": { "values": values } }));
        }
    }
}

fn attributes(intent: &CallIntent, outcome: Option<&CallOutcome>) -> Vec<Value> {
    let mut all = Attributes(Vec::new());
    all.text("ringfence.call", intent.call.as_str());
    all.text("ringfence.decision", if intent.decision == Outcome::Allow { "allow" } else { "deny" });
    all.text("ringfence.reason", &intent.reason);
    all.list("ringfence.rules", &intent.rules);
    for (key, value) in [("ringfence.credential", &intent.credential), ("ringfence.trust", &intent.trust)] {
        value.iter().for_each(|value| all.text(key, value.as_str()));
    }
    intent.after.iter().for_each(|after| all.text("ringfence.after", after.as_str()));
    all.text("server.address", &intent.host);
    all.number("server.port", intent.port.into());
    if let Some(method) = &intent.method {
        all.text("http.request.method", method.as_str());
        intent.path.iter().for_each(|path| all.text("url.path", path.as_str()));
        let version = if intent.protocol == "h2" { "2" } else { "1.1" };
        all.text("network.protocol.name", "http");
        all.text("network.protocol.version", version);
    } else {
        all.text("network.protocol.name", &intent.protocol);
    }
    if let Some(llm) = &intent.llm {
        let (provider, operation) = operation(&llm.api);
        all.text("gen_ai.provider.name", provider);
        all.text("gen_ai.operation.name", operation);
        intent.model.iter().for_each(|model| all.text("gen_ai.request.model", model.as_str()));
        llm.max_tokens.into_iter().for_each(|most| all.number("gen_ai.request.max_tokens", most));
        all.text("gen_ai.output.type", if llm.format.starts_with("json") { "json" } else { "text" });
        all.list("ringfence.tools", &llm.tools);
    }
    if let Some(sql) = &intent.sql {
        all.text("db.system.name", "postgresql");
        all.text("db.namespace", &sql.database);
        if let [verb] = &sql.verbs[..] {
            all.text("db.operation.name", verb.as_str());
        }
        all.list("ringfence.sql_classes", &sql.classes);
    }
    if let Some(git) = &intent.git {
        let of_git = [("ringfence.git_operation", &git.operation), ("ringfence.git_repository", &git.repository)];
        of_git.into_iter().filter(|(_, text)| !text.is_empty()).for_each(|(key, text)| all.text(key, text.as_str()));
        all.list("ringfence.git_refs", &git.refs);
    }
    if let [said] = &intent.rpc[..] {
        all.text("mcp.method.name", &said.method);
        if said.method == "tools/call" {
            all.text("gen_ai.operation.name", "execute_tool");
            said.name.iter().for_each(|name| all.text("gen_ai.tool.name", name.as_str()));
        }
    }
    let Some(outcome) = outcome else {
        all.text("error.type", &intent.reason);
        return all.0;
    };
    outcome.status.into_iter().for_each(|status| all.number("http.response.status_code", status.into()));
    wrong(intent, Some(outcome)).into_iter().for_each(|wrong| all.text("error.type", wrong));
    outcome.address.iter().for_each(|address| all.text("network.peer.address", address.as_str()));
    all.number("ringfence.bytes_up", outcome.bytes_up);
    all.number("ringfence.bytes_down", outcome.bytes_down);
    for (key, digest) in [("ringfence.digest_up", outcome.digest_up), ("ringfence.digest_down", outcome.digest_down)] {
        digest.into_iter().for_each(|digest| all.text(key, digest.to_string()));
    }
    all.list("ringfence.findings", &outcome.findings);
    if let Some(used) = &outcome.llm {
        used.model.iter().for_each(|model| all.text("gen_ai.response.model", model.as_str()));
        all.number("gen_ai.usage.input_tokens", used.input_tokens);
        all.number("gen_ai.usage.output_tokens", used.output_tokens);
        used.usd_micro.into_iter().for_each(|usd| all.number("ringfence.usd_micro", usd));
    }
    all.0
}

/// Spans as one request of OTLP; each with the agent and sandbox that it is about.
#[must_use]
pub fn request(spans: Vec<(&Entry, Value)>, version: &str) -> Value {
    let mut by_sandbox: Map<String, Value> = Map::new();
    let mut resources: Vec<(Vec<Value>, Vec<Value>)> = Vec::new();
    for (entry, span) in spans {
        let place = by_sandbox.entry(entry.source.clone()).or_insert_with(|| resources.len().into());
        let place = place.as_u64().and_then(|place| usize::try_from(place).ok()).unwrap_or(0);
        if place == resources.len() {
            let mut resource = Attributes(Vec::new());
            resource.text("service.name", entry.agent.as_ref().map_or("ringfence", |agent| agent.as_str()));
            entry.sandbox.iter().for_each(|sandbox| resource.text("service.instance.id", sandbox.as_str()));
            resources.push((resource.0, Vec::new()));
        }
        if let Some((_, spans)) = resources.get_mut(place) {
            spans.push(span);
        }
    }
    let resources: Vec<Value> = resources
        .into_iter()
        .map(|(attributes, spans)| {
            json!({
                "resource": { "attributes": attributes },
                "scopeSpans": [{ "scope": { "name": "ringfence", "version": version }, "spans": spans }],
            })
        })
        .collect();
    json!({ "resourceSpans": resources })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Event, LlmAsked, LlmUsed, RpcSaid};
    use ringfence_model::{CallId, Digest};

    fn entry(intent: CallIntent) -> Entry {
        Entry {
            v: 1,
            time: jiff::Timestamp::from_second(10).unwrap(),
            source: "gate:sb-1".into(),
            seq: 1,
            agent: Some("analyst".parse().unwrap()),
            sandbox: None,
            event: Event::CallIntent(intent),
        }
    }

    fn any_call() -> CallIntent {
        serde_json::from_value(json!({
            "call": CallId::from_parts(0xabc, [0x11; 8]), "direction": "egress", "protocol": "h2",
            "host": "api.example.org", "port": 443, "method": "POST", "path": "/v1", "decision": "allow",
            "reason": "grant", "why": "", "rules": ["grant-1"],
        }))
        .unwrap()
    }

    fn outcome(status: u16) -> CallOutcome {
        serde_json::from_value(json!({
            "call": CallId::from_parts(0xabc, [0x11; 8]), "status": status, "bytes_up": 1, "bytes_down": 2,
            "duration_us": 1500,
        }))
        .unwrap()
    }

    fn of<'a>(span: &'a Value, key: &str) -> &'a Value {
        let found = span["attributes"].as_array().unwrap().iter().find(|attribute| attribute["key"] == key);
        found.map_or(&Value::Null, |found| found["value"].as_object().unwrap().values().next().unwrap())
    }

    #[test]
    fn a_call_is_a_span_whose_ids_are_the_calls() {
        let hashed = CallOutcome { digest_up: Some(Digest::of(b"up")), ..outcome(200) };
        let span = span(&entry(any_call()), Some(&hashed)).unwrap();
        assert_eq!(span["spanId"], "1111111111111111");
        assert_eq!(span["traceId"], "0000000000000abc1111111111111111");
        assert_eq!(
            (&span["startTimeUnixNano"], &span["endTimeUnixNano"]),
            (&json!("10000000000"), &json!("10001500000"))
        );
        assert_eq!((&span["name"], &span["kind"], &span["status"]), (&json!("POST"), &json!(3), &Value::Null));
        assert_eq!(of(&span, "http.response.status_code"), "200");
        assert_eq!(of(&span, "network.protocol.version"), "2");
        assert_eq!(of(&span, "ringfence.digest_up"), &Digest::of(b"up").to_string());
        assert_eq!(of(&span, "ringfence.digest_down"), &Value::Null);
        assert!(span.get("parentSpanId").is_none());
    }

    #[test]
    fn a_trace_that_the_agent_is_in_goes_on() {
        let told = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let span = span(&entry(CallIntent { trace: Some(told.into()), ..any_call() }), Some(&outcome(503))).unwrap();
        assert_eq!(span["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
        assert_eq!((&span["status"]["code"], of(&span, "error.type")), (&json!(2), &json!("503")));
        let child = Parent::parse(told).unwrap().of_child(any_call().call.as_str());
        assert_eq!(child, "00-4bf92f3577b34da6a3ce929d0e0e4736-1111111111111111-01");
        for wrong in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(Parent::parse(wrong), None, "{wrong}");
        }
        assert!(Parent::parse("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more").is_some());
    }

    #[test]
    fn calls_of_models_and_tools_speak_the_conventions() {
        let llm = LlmAsked { api: "openai.chat".into(), format: "json_schema".into(), ..LlmAsked::default() };
        let intent = CallIntent { llm: Some(Box::new(llm)), model: Some("gpt-4o".into()), ..any_call() };
        let used = LlmUsed { input_tokens: 10, output_tokens: 5, usd_micro: Some(7), ..LlmUsed::default() };
        let asked = span(&entry(intent), Some(&CallOutcome { llm: Some(Box::new(used)), ..outcome(200) })).unwrap();
        assert_eq!(asked["name"], "chat gpt-4o");
        for (key, value) in [
            ("gen_ai.provider.name", "openai"),
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.request.model", "gpt-4o"),
            ("gen_ai.output.type", "json"),
            ("gen_ai.usage.input_tokens", "10"),
            ("gen_ai.usage.output_tokens", "5"),
            ("ringfence.usd_micro", "7"),
        ] {
            assert_eq!(of(&asked, key), value, "{key}");
        }
        let said = RpcSaid { method: "tools/call".into(), name: Some("search".into()), arguments: None };
        let told = CallIntent { rpc: vec![said], decision: Outcome::Deny, reason: "no_grant".into(), ..any_call() };
        let denied = span(&entry(told), None).unwrap();
        assert_eq!((&denied["name"], &denied["status"]["message"]), (&json!("tools/call search"), &json!("no_grant")));
        assert_eq!(
            (of(&denied, "gen_ai.tool.name"), of(&denied, "error.type")),
            (&json!("search"), &json!("no_grant"))
        );
        assert_eq!(denied["startTimeUnixNano"], denied["endTimeUnixNano"]);
    }

    #[test]
    fn spans_of_one_sandbox_share_a_resource() {
        let (one, other) = (entry(any_call()), Entry { source: "gate:sb-2".into(), ..entry(any_call()) });
        let spans = [&one, &other, &one].map(|entry| (entry, span(entry, None).unwrap())).to_vec();
        let request = request(spans, "1");
        let resources = request["resourceSpans"].as_array().unwrap();
        let count = |nth: usize| resources[nth]["scopeSpans"][0]["spans"].as_array().unwrap().len();
        assert_eq!((resources.len(), count(0), count(1)), (2, 2, 1));
        assert_eq!(of(&resources[0]["resource"], "service.name"), "analyst");
    }
}
