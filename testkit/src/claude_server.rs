//! A model service that speaks as Anthropic's messages do, over HTTPS. Its model uses the first tool that it is
//! offered, and says what came of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use serde_json::{Value, json};

use crate::https::{Body, Server, events, text};

/// The service's name.
pub const HOST: &str = "api.anthropic.com";

/// The pause between two pieces of a streamed answer.
const PAUSE: Duration = Duration::from_millis(4);

/// The service.
pub struct ClaudeServer {
    server: Server,
}

impl ClaudeServer {
    /// Starts it. It answers whoever shows `key` and nobody else.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start(tls: Arc<ServerConfig>, key: &str) -> std::io::Result<Self> {
        let key = key.to_owned();
        let handler = move |request: Request<Bytes>| answer(&request, &key);
        Ok(Self { server: Server::start(tls, Arc::new(handler)).await? })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

fn answer(request: &Request<Bytes>, key: &str) -> Response<Body> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    // Its library says it in the one way or the other, by version.
    let shown = header("x-api-key").or_else(|| header(AUTHORIZATION.as_str())?.strip_prefix("Bearer "));
    if shown != Some(key) {
        return refusal(StatusCode::UNAUTHORIZED, "authentication_error", "invalid x-api-key");
    }
    if (request.method(), request.uri().path()) != (&Method::POST, "/v1/messages") {
        return refusal(StatusCode::NOT_FOUND, "not_found_error", "Not found");
    }
    let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let Some(messages) = body.get("messages").and_then(Value::as_array) else {
        return refusal(StatusCode::BAD_REQUEST, "invalid_request_error", "messages: Field required");
    };
    let said = Said::to(messages, body.pointer("/tools/0/name").and_then(Value::as_str));
    let model = body.get("model").cloned().unwrap_or_default();
    // Four bytes to a token, as a rule of thumb.
    let usage = json!({"input_tokens": request.body().len() / 4 + 1, "output_tokens": said.tokens()});
    if body.get("stream") == Some(&Value::Bool(true)) {
        events(said.events(&model, &usage), PAUSE)
    } else {
        text(StatusCode::OK, "application/json", said.message(&model, &usage).to_string())
    }
}

fn refusal(status: StatusCode, kind: &str, message: &str) -> Response<Body> {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}});
    text(status, "application/json", body.to_string())
}

/// What the model says: words, or the use of a tool.
enum Said {
    Words(String),
    Use(String),
}

/// What it asks of the tool.
const ARGUMENTS: &str = r#"{"city":"Bern"}"#;

impl Said {
    fn to(messages: &[Value], tool: Option<&str>) -> Self {
        let last = messages.last().and_then(|m| m.get("content"));
        let result = last.and_then(|content| content.pointer("/0/content")).filter(|_| tool.is_some());
        match (result, tool) {
            (None, Some(tool)) => Self::Use(tool.to_owned()),
            (Some(result), _) => Self::Words(format!("The tool says: {}", plain(result))),
            (None, None) => Self::Words("Three short words.".into()),
        }
    }

    const fn tokens(&self) -> usize {
        match self {
            Self::Words(words) => words.len() / 4 + 1,
            Self::Use(_) => ARGUMENTS.len() / 4 + 1,
        }
    }

    const fn stop(&self) -> &'static str {
        if matches!(self, Self::Use(_)) { "tool_use" } else { "end_turn" }
    }

    fn block(&self, whole: bool) -> Value {
        match self {
            Self::Words(words) => json!({"type": "text", "text": if whole { words } else { "" }}),
            Self::Use(tool) => {
                let input = if whole { json!({"city": "Bern"}) } else { json!({}) };
                json!({"type": "tool_use", "id": "toolu_01", "name": tool, "input": input})
            }
        }
    }

    fn message(&self, model: &Value, usage: &Value) -> Value {
        json!({
            "id": "msg_01", "type": "message", "role": "assistant", "model": model, "content": [self.block(true)],
            "stop_reason": self.stop(), "stop_sequence": null, "usage": usage,
        })
    }

    fn events(&self, model: &Value, usage: &Value) -> Vec<String> {
        let start = json!({
            "id": "msg_01", "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": usage["input_tokens"], "output_tokens": 1},
        });
        let pieces: Vec<Value> = match self {
            Self::Words(words) => {
                words.split_inclusive(' ').map(|word| json!({"type": "text_delta", "text": word})).collect()
            }
            Self::Use(_) => vec![json!({"type": "input_json_delta", "partial_json": ARGUMENTS})],
        };
        let mut all = vec![
            json!({"type": "message_start", "message": start}),
            json!({"type": "content_block_start", "index": 0, "content_block": self.block(false)}),
            json!({"type": "ping"}),
        ];
        all.extend(pieces.into_iter().map(|p| json!({"type": "content_block_delta", "index": 0, "delta": p})));
        all.push(json!({"type": "content_block_stop", "index": 0}));
        let delta = json!({"stop_reason": self.stop(), "stop_sequence": null});
        all.push(json!({
            "type": "message_delta", "delta": delta, "usage": {"output_tokens": usage["output_tokens"]}
        }));
        all.push(json!({"type": "message_stop"}));
        all.iter()
            .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()))
            .collect()
    }
}

/// The text of a tool's result, which is a text or a list of blocks.
fn plain(result: &Value) -> String {
    let first = result.pointer("/0/text").and_then(Value::as_str);
    result.as_str().or(first).unwrap_or_default().to_owned()
}
