//! A model service that speaks as OpenAI's chat completions do, over HTTPS.
//!
//! Its model is a script ([`script`]) that reads the conversation, uses the tools it is offered, and does what
//! it is told, by anybody: a page with an instruction in it is obeyed, as a real model might.

mod script;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Method, Request, Response, StatusCode};
use rustls::ServerConfig;
use serde_json::{Value, json};

use crate::https::{Body, Server, events, text};
pub use script::{Reply, ToolCall, reply};

/// The service's name.
pub const HOST: &str = "api.openai.com";

/// The one model there is.
pub const MODEL: &str = "gpt-4o-mini";

/// Requests that are kept; older ones are forgotten.
const KEPT: usize = 256;

/// The pause between two pieces of a streamed answer.
const PAUSE: Duration = Duration::from_millis(4);

/// A request that came in.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Its `Authorization` header.
    pub authorization: Option<String>,
    /// Its body; null if that is not JSON.
    pub body: Value,
}

/// The service.
pub struct ModelServer {
    server: Server,
    recorded: Arc<Mutex<Vec<Recorded>>>,
}

impl ModelServer {
    /// Starts it. It answers whoever shows `key` and nobody else. `observe` is told of each request, before it is
    /// answered.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start(
        tls: Arc<ServerConfig>,
        key: &str,
        observe: impl Fn(&Recorded) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let recorded = Arc::<Mutex<Vec<Recorded>>>::default();
        let expected = format!("Bearer {key}");
        let (kept, ids) = (Arc::clone(&recorded), AtomicU64::new(1));
        let handler = move |request: Request<Bytes>| {
            let authorization = request.headers().get(AUTHORIZATION);
            let record = Recorded {
                authorization: authorization.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
                body: serde_json::from_slice(request.body()).unwrap_or(Value::Null),
            };
            observe(&record);
            let known = record.authorization.as_deref() == Some(&expected);
            let response = answer(&request, &record, known, ids.fetch_add(1, Ordering::Relaxed));
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == KEPT {
                kept.remove(0);
            }
            kept.push(record);
            response
        };
        Ok(Self { server: Server::start(tls, Arc::new(handler)).await?, recorded })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// The requests that came in, the last ones if they were many.
    #[must_use]
    pub fn recorded(&self) -> Vec<Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(request: &Request<Bytes>, record: &Recorded, known: bool, id: u64) -> Response<Body> {
    if !known {
        let shown = record.authorization.as_deref().and_then(|a| a.strip_prefix("Bearer ")).unwrap_or_default();
        let message = format!("Incorrect API key provided: {}.", masked(shown));
        return refusal(StatusCode::UNAUTHORIZED, "invalid_api_key", &message);
    }
    if request.uri().path() != "/v1/chat/completions" {
        return refusal(StatusCode::NOT_FOUND, "unknown_url", "Unknown request URL.");
    }
    if *request.method() != Method::POST {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_supported", "Only POST is supported.");
    }
    let Some(messages) = record.body.get("messages").and_then(Value::as_array) else {
        return refusal(StatusCode::BAD_REQUEST, "invalid_body", "The body has no `messages`.");
    };
    let model = record.body.get("model").and_then(Value::as_str).unwrap_or_default();
    if model != MODEL {
        let message = format!("The model `{model}` does not exist or you do not have access to it.");
        return refusal(StatusCode::NOT_FOUND, "model_not_found", &message);
    }
    let completion = Completion::new(id, reply(messages), request.body().len());
    if record.body.get("stream") == Some(&Value::Bool(true)) {
        let usage = record.body.pointer("/stream_options/include_usage") == Some(&Value::Bool(true));
        streamed(completion.chunks(usage))
    } else {
        text(StatusCode::OK, "application/json", completion.whole().to_string())
    }
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let kind = if status == StatusCode::UNAUTHORIZED { "authentication_error" } else { "invalid_request_error" };
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    text(status, "application/json", body.to_string())
}

fn masked(key: &str) -> String {
    let start: String = key.chars().take(5).collect();
    format!("{start}{}", "*".repeat(key.chars().count().saturating_sub(5).min(24)))
}

/// Sends the chunks one by one, as a model finds its words.
fn streamed(chunks: Vec<Value>) -> Response<Body> {
    let lines = chunks
        .iter()
        .map(|chunk| format!("data: {chunk}\n\n"))
        .chain(std::iter::once("data: [DONE]\n\n".to_owned()))
        .collect();
    events(lines, PAUSE)
}

/// An answer of the model, before it is put into one of the two forms.
struct Completion {
    id: String,
    created: u64,
    reply: Reply,
    usage: Value,
}

impl Completion {
    fn new(id: u64, reply: Reply, asked_bytes: usize) -> Self {
        let said: usize = reply.calls.iter().map(|call| call.arguments.len()).sum::<usize>() + reply.content.len();
        // Four bytes to a token, as a rule of thumb.
        let (prompt, completion) = (asked_bytes / 4 + 1, said / 4 + 1);
        Self {
            id: format!("chatcmpl-{id:08x}"),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            usage: json!({
                "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion
            }),
            reply,
        }
    }

    fn finish(&self) -> &'static str {
        if self.reply.calls.is_empty() { "stop" } else { "tool_calls" }
    }

    fn call_id(&self, index: usize) -> String {
        format!("call_{}_{index}", self.id.trim_start_matches("chatcmpl-"))
    }

    fn whole(&self) -> Value {
        let mut message = json!({"role": "assistant", "content": self.reply.content, "refusal": null});
        if !self.reply.calls.is_empty() {
            let calls = self.reply.calls.iter().enumerate().map(|(index, call)| {
                let function = json!({"name": call.name, "arguments": call.arguments});
                json!({"id": self.call_id(index), "type": "function", "function": function})
            });
            set(&mut message, "tool_calls", calls.collect());
        }
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": MODEL,
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": self.finish()}],
            "usage": self.usage,
        })
    }

    /// Content word by word, arguments of tool calls in pieces, the reason for the end, and the usage.
    fn chunks(&self, usage: bool) -> Vec<Value> {
        let mut deltas = vec![json!({"role": "assistant", "content": "", "refusal": null})];
        deltas.extend(self.reply.content.split_inclusive(' ').map(|word| json!({"content": word})));
        for (index, call) in self.reply.calls.iter().enumerate() {
            let function = json!({"name": call.name, "arguments": ""});
            let opening = json!({"index": index, "id": self.call_id(index), "type": "function", "function": function});
            deltas.push(json!({"tool_calls": [opening]}));
            deltas.extend(
                pieces(&call.arguments)
                    .into_iter()
                    .map(|piece| json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})),
            );
        }
        let mut chunks: Vec<Value> = deltas.into_iter().map(|delta| self.chunk(delta, Value::Null, usage)).collect();
        chunks.push(self.chunk(json!({}), self.finish().into(), usage));
        if usage {
            let mut last = self.chunk(Value::Null, Value::Null, true);
            set(&mut last, "choices", json!([]));
            set(&mut last, "usage", self.usage.clone());
            chunks.push(last);
        }
        chunks
    }

    fn chunk(&self, delta: Value, finish: Value, usage: bool) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": MODEL,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        });
        if usage {
            set(&mut chunk, "usage", Value::Null);
        }
        chunk
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}

/// Cuts a text into pieces of a few characters, as tool calls arrive.
fn pieces(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(24).map(|piece| piece.iter().collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(content: &str, calls: &[(&'static str, &str)]) -> Completion {
        let calls = calls.iter().map(|(name, a)| ToolCall { name, arguments: (*a).to_owned() }).collect();
        Completion::new(7, Reply { content: content.into(), calls }, 400)
    }

    #[test]
    fn chunks_put_together_are_the_whole() {
        let completion = completion("Two words.", &[("lookup", r#"{"name":"a-name-that-is-rather-long.example"}"#)]);
        let (mut content, mut arguments) = (String::new(), String::new());
        let chunks = completion.chunks(true);
        for chunk in &chunks {
            let delta = chunk.pointer("/choices/0/delta").cloned().unwrap_or_default();
            content += delta["content"].as_str().unwrap_or_default();
            arguments += delta.pointer("/tool_calls/0/function/arguments").and_then(Value::as_str).unwrap_or_default();
        }
        let whole = completion.whole();
        assert_eq!(whole["choices"][0]["message"]["content"], content);
        assert_eq!(whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], arguments);
        assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(chunks[chunks.len() - 1]["usage"], whole["usage"]);
        assert_eq!(chunks[chunks.len() - 1]["choices"], json!([]));
    }

    #[test]
    fn only_the_right_key_is_answered_and_no_other_is_repeated() {
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hello"}]});
        let request = Request::post("/v1/chat/completions").body(Bytes::from(body.to_string())).unwrap();
        let record = Recorded { authorization: Some("Bearer sk-another-key".into()), body };
        let response = answer(&request, &record, false, 1);
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(answer(&request, &record, true, 1).status(), StatusCode::OK);
        assert_eq!(masked("sk-another-key"), "sk-an*********");
    }
}
