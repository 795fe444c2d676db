//! Ollama's bodies and llama.cpp's own. Ollama reads keys without regard to case, which is why no such key is let through.
//!
//! # Source
//! Ollama, `docs/api.md`; llama.cpp, `tools/server/README.md`.

use super::super::fields::Fields;
use super::super::request::{Format, Request};
use super::super::{LlmError, Shape};
use super::{Bounds, messages, prompt, tools};
use crate::json::Value;

const KNOWN: &[&str] = &[
    "model",
    "name",
    "from",
    "source",
    "destination",
    "messages",
    "system",
    "template",
    "prompt",
    "tools",
    "format",
    "options",
    "stream",
    "images",
    "input",
];

/// Reads a body that makes a model of Ollama's run.
pub(super) fn run(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    let mut bounds = Bounds::default();
    if let Some(options) = fields.object("options", &["num_predict"])? {
        bounds.take(&options, &["num_predict"])?;
    }
    request.max_output_tokens = bounds.bound();
    // A stream unless it is told otherwise.
    request.streams = request.shape != Shape::OllamaEmbed && fields.flag("stream")?.unwrap_or(true);
    for name in ["system", "template"] {
        if let Some(system) = fields.get(name) {
            prompt(request, system);
        }
    }
    messages(request, fields.list("messages")?)?;
    tools(request, fields.list("tools")?)?;
    request.format = match fields.get("format") {
        Some(Value::Text(word)) if word == "json" => Format::Json,
        Some(Value::Object(_)) => Format::JsonSchema,
        _ => Format::Text,
    };
    Ok(())
}

/// Reads a body that changes models of Ollama's, or asks about one.
pub(super) fn manage(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    for name in ["model", "name"] {
        if let Some(model) = fields.text(name)? {
            request.named(model)?;
        }
    }
    for name in ["from", "source", "destination"] {
        if let Some(model) = fields.text(name)? {
            request.may_run(model);
        }
    }
    if let Some(stream) = fields.flag("stream")? {
        request.streams = stream;
    }
    Ok(())
}

/// Reads a body of llama.cpp's own.
pub(super) fn llama(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    const KNOWN: &[&str] =
        &["model", "prompt", "n_predict", "max_tokens", "stream", "n", "grammar", "json_schema", "system_prompt"];
    let fields = Fields::of(body, "body", KNOWN)?;
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    let mut bounds = Bounds::default();
    bounds.take(&fields, &["n_predict", "max_tokens"])?;
    request.max_output_tokens = bounds.bound();
    request.streams = fields.flag("stream")?.unwrap_or(false);
    request.answers = fields.count("n")?.unwrap_or(1).max(1);
    if let Some(system) = fields.get("system_prompt") {
        prompt(request, system);
    }
    request.format = match (fields.get("grammar"), fields.get("json_schema")) {
        (Some(_), _) => Format::Grammar,
        (_, Some(_)) => Format::JsonSchema,
        _ => Format::Text,
    };
    Ok(())
}
