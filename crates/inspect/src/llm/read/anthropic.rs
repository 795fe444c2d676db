//! Anthropic's bodies.
//!
//! # Source
//! Anthropic API reference: Messages, Count tokens, Message Batches, Text Completions.

use super::super::fields::Fields;
use super::super::request::{Format, ReferenceKind, Request, Tool, ToolKind};
use super::super::{LlmError, Route, Shape};
use super::{Bounds, choice, fallbacks, prompt, reference, reference_in, tier, tools};
use crate::json::Value;

const KNOWN: &[&str] = &[
    "model",
    "models",
    "fallbacks",
    "service_tier",
    "speed",
    "thread",
    "max_tokens",
    "max_tokens_to_sample",
    "stream",
    "system",
    "messages",
    "prompt",
    "tools",
    "tool_choice",
    "mcp_servers",
    "container",
    "output_format",
    "output_config",
];

/// Reads the body of a message, or of a count of its tokens.
pub(super) fn messages(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    let mut bounds = Bounds::default();
    bounds.take(&fields, &["max_tokens", "max_tokens_to_sample"])?;
    request.max_output_tokens = bounds.bound();
    fallbacks(request, &fields)?;
    // A fallback may have a bound of its own.
    for entry in fields.get("fallbacks").and_then(Value::as_list).unwrap_or_default() {
        let entry = Fields::of(entry, "fallbacks", &["model", "max_tokens", "speed"])?;
        if let (Some(most), Some(own)) = (request.max_output_tokens, entry.count("max_tokens")?) {
            request.max_output_tokens = Some(most.max(own));
        }
    }
    tier(request, &fields)?;
    if let Some(stream) = fields.flag("stream")? {
        request.streams = request.streams || stream;
    }
    if let Some(system) = fields.get("system") {
        prompt(request, system);
    }
    super::messages(request, fields.list("messages")?)?;
    tools(request, fields.list("tools")?)?;
    for server in fields.list("mcp_servers")? {
        let server = Fields::of(server, "mcp_servers", &["name", "url"])?;
        let name = server.text("name")?.unwrap_or("mcp").to_owned();
        let target = server.text("url")?.map(str::to_owned);
        request.tools.push(Tool { name, kind: ToolKind::Mcp, target });
    }
    if let Some(value) = fields.get("tool_choice") {
        request.tool_choice = Some(choice(value)?);
    }
    if let Some(container) = fields.get("container") {
        reference_in(request, ReferenceKind::Container, container);
    }
    if let Some(thread) = fields.get("thread") {
        let id = thread.as_str().or_else(|| thread.get("id").and_then(Value::as_str)).unwrap_or("thread");
        reference(request, ReferenceKind::Conversation, id);
    }
    if fields.get("output_format").is_some() || fields.get("output_config").is_some_and(|c| c.get("format").is_some()) {
        request.format = Format::JsonSchema;
    }
    Ok(())
}

/// Reads a batch: each of its requests has the body of a message.
pub(super) fn batch(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", &["requests"])?;
    let list = fields.list("requests")?;
    let route = Route { shape: Shape::AnthropicMessages, model: None, streams: None, certain: true };
    request.max_output_tokens = Some(0);
    for one in list {
        let one = Fields::of(one, "requests", &["params"])?;
        let params = one.get("params").ok_or(LlmError::Field { name: "params", wanted: "an object" })?;
        let mut inner = Request::bare(&route);
        messages(&mut inner, params)?;
        request.add(inner);
    }
    request.requests = list.len() as u64;
    Ok(())
}
