//! Answers of our own to requests that are not sent on.

use super::message::{Id, Kind, Message, Payload};
use crate::json::Value;

/// The code of an error that says that a request is not granted.
///
/// # Source
/// Model Context Protocol 2026-07-28, "Error codes": `-32000` to `-32019` are for implementations.
pub const DENIED: i64 = -32_010;

/// An error of JSON-RPC. Without an id it answers something that was no request.
#[must_use]
pub fn error(id: Option<&Id>, code: i64, message: &str, data: Option<Value<'static>>) -> Value<'static> {
    let mut error = vec![("code", Value::integer(code)), ("message", Value::text(message.to_owned()))];
    error.extend(data.map(|data| ("data", data)));
    Value::object([
        ("jsonrpc", Value::text("2.0")),
        ("id", id.map_or(Value::Null, Id::to_value)),
        ("error", Value::object(error)),
    ])
}

/// The answer to a request that is not granted. `call` is the id by which the operator finds it.
#[must_use]
pub fn denied(id: &Id, call: &str) -> Value<'static> {
    let data = Value::object([("ringfence", Value::text(call.to_owned()))]);
    error(Some(id), DENIED, "this call is not granted", Some(data))
}

/// The answer to a call of a tool that is not granted, as a result that failed: the model reads `words`, where an error
/// would end the agent's turn.
#[must_use]
pub fn denied_tool(id: &Id, words: &str) -> Value<'static> {
    let text = Value::object([("type", Value::text("text")), ("text", Value::text(words.to_owned()))]);
    let result = Value::object([
        // Since revision 2026-07-28; earlier readers pass over it.
        ("resultType", Value::text("complete")),
        ("content", Value::List(vec![text])),
        ("isError", Value::Bool(true)),
    ]);
    Value::object([("jsonrpc", Value::text("2.0")), ("id", id.to_value()), ("result", result)])
}

/// The answers to messages that are not sent on: one to each request, none to all else.
#[must_use]
pub fn deny(messages: &[Message<'_>], call: &str) -> Vec<Value<'static>> {
    let asked = messages.iter().filter_map(|message| match message.kind() {
        Kind::Request { id, .. } => Some(id),
        _ => None,
    });
    asked.map(|id| denied(id, call)).collect()
}

/// The body of an answer: a list if the payload was a batch. `None` if there is nothing to answer, for which HTTP has 202.
#[must_use]
pub fn body(batch: bool, mut answers: Vec<Value<'static>>) -> Option<Vec<u8>> {
    if batch && !answers.is_empty() {
        return Some(Value::List(answers).to_bytes());
    }
    answers.pop().map(|one| one.to_bytes())
}

/// Puts answers of our own to those of a server that got the rest of a batch.
#[must_use]
pub fn merged(of_server: Payload<'_>, ours: Vec<Value<'static>>) -> Vec<u8> {
    let theirs = of_server.messages.into_iter().map(Message::into_value);
    theirs.chain(ours).collect::<Value<'_>>().to_bytes()
}
