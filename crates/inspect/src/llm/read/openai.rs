//! OpenAI's bodies, with what Azure, vLLM, llama.cpp, OpenRouter, LiteLLM and others add to them.
//!
//! # Source
//! OpenAI API reference: Chat, Completions, Responses, Embeddings, Images, Audio, Moderations, Batch, Realtime.

use super::super::fields::Fields;
use super::super::request::{Format, ReferenceKind, Request, Tool, ToolKind};
use super::super::{LlmError, Shape};
use super::{Bounds, choice, fallbacks, messages, parts, prompt, refer, reference, reference_in, tier, tools};
use crate::json::Value;

/// The fields that decide something.
const KNOWN: &[&str] = &[
    "model",
    "models",
    "fallbacks",
    "engine",
    "deployment_id",
    "max_completion_tokens",
    "max_tokens",
    "max_output_tokens",
    "max_response_output_tokens",
    "max_tokens_to_sample",
    "max_new_tokens",
    "max_gen_len",
    "n_predict",
    "num_predict",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "store",
    "background",
    "service_tier",
    "moderation",
    "response_format",
    "text",
    "grammar",
    "json_schema",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "tools",
    "functions",
    "tool_choice",
    "function_call",
    "web_search_options",
    "search_parameters",
    "plugins",
    "messages",
    "instructions",
    "input",
    "prompt",
    "previous_response_id",
    "conversation",
    "input_file_id",
    "session",
    "response",
    "item",
    "type",
];

/// Reads a body that is not a session's.
pub(super) fn run(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    models(request, &fields)?;
    let mut bounds = Bounds::default();
    bounds.take(&fields, heeded(request.shape))?;
    request.max_output_tokens = bounds.bound();
    request.answers = fields.count("n")?.unwrap_or(1).max(fields.count("best_of")?.unwrap_or(1)).max(1);
    if let Some(stream) = fields.flag("stream")? {
        request.streams = request.streams || stream;
    }
    request.store = fields.flag("store")?;
    request.background = fields.flag("background")?.unwrap_or(false);
    tier(request, &fields)?;
    request.format = format(request.shape, &fields)?;
    offered(request, &fields)?;
    said(request, &fields)?;
    if let Some(file) = fields.text("input_file_id")? {
        reference(request, ReferenceKind::File, file);
    }
    Ok(())
}

/// The spellings of the bound that the API itself heeds. llama.cpp heeds its own at OpenAI's paths too.
fn heeded(shape: Shape) -> &'static [&'static str] {
    match shape {
        Shape::OpenAiChat => &["max_completion_tokens", "max_tokens"],
        Shape::OpenAiCompletion => &["max_tokens", "n_predict"],
        _ => &["max_output_tokens", "max_response_output_tokens"],
    }
}

/// The model and those that may run in its place.
fn models(request: &mut Request, fields: &Fields<'_, '_>) -> Result<(), LlmError> {
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    for name in ["engine", "deployment_id"] {
        if let Some(model) = fields.text(name)? {
            request.may_run(model);
        }
    }
    if let Some(model) = fields.get("moderation").and_then(|moderation| moderation.get("model")).and_then(Value::as_str)
    {
        request.may_run(model);
    }
    fallbacks(request, fields)
}

fn format(shape: Shape, fields: &Fields<'_, '_>) -> Result<Format, LlmError> {
    const GRAMMARS: [&str; 5] = ["grammar", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"];
    if GRAMMARS.iter().any(|name| fields.get(name).is_some()) {
        return Ok(Format::Grammar);
    }
    if ["json_schema", "guided_json"].iter().any(|name| fields.get(name).is_some()) {
        return Ok(Format::JsonSchema);
    }
    let said = match shape {
        Shape::OpenAiResponses | Shape::OpenAiSocket | Shape::OpenAiCount => {
            fields.get("text").and_then(|text| text.get("format"))
        }
        Shape::OpenAiChat | Shape::OpenAiCompletion => fields.get("response_format"),
        _ => None,
    };
    Ok(match said.and_then(|format| format.get("type")).and_then(Value::as_str) {
        Some("json_object") => Format::Json,
        Some("json_schema") => Format::JsonSchema,
        Some("grammar" | "structural_tag") => Format::Grammar,
        _ => Format::Text,
    })
}

/// The tools that are offered, in every field that offers some.
fn offered(request: &mut Request, fields: &Fields<'_, '_>) -> Result<(), LlmError> {
    tools(request, fields.list("tools")?)?;
    tools(request, fields.list("functions")?)?;
    let mut search = |name: &str| {
        request.tools.push(Tool { name: name.to_owned(), kind: ToolKind::WebSearch, target: None });
    };
    for name in ["web_search_options", "search_parameters"] {
        if fields.get(name).is_some() {
            search(name);
        }
    }
    for plugin in fields.list("plugins")? {
        let id = plugin.get("id").and_then(Value::as_str).unwrap_or("plugin");
        let kind = if id == "web" { ToolKind::WebSearch } else { ToolKind::Other };
        request.tools.push(Tool { name: id.to_owned(), kind, target: None });
    }
    if let Some(value) = fields.get("tool_choice").or_else(|| fields.get("function_call")) {
        request.tool_choice = Some(choice(value)?);
    }
    Ok(())
}

/// What is said to the model: messages, instructions, items, and what was said before.
fn said(request: &mut Request, fields: &Fields<'_, '_>) -> Result<(), LlmError> {
    if let Some(instructions) = fields.get("instructions") {
        prompt(request, instructions);
    }
    messages(request, fields.list("messages")?)?;
    if let Some(Value::List(list)) = fields.get("input") {
        items(request, list)?;
    }
    if let Some(stored) = fields.get("prompt").filter(|prompt| prompt.as_object().is_some()) {
        reference_in(request, ReferenceKind::Prompt, stored);
    }
    if let Some(id) = fields.text("previous_response_id")? {
        reference(request, ReferenceKind::Response, id);
    }
    if let Some(conversation) = fields.get("conversation") {
        reference_in(request, ReferenceKind::Conversation, conversation);
    }
    Ok(())
}

/// The items of a response's input. Texts and lists of tokens, as embeddings have them, say nothing here.
fn items(request: &mut Request, list: &[Value<'_>]) -> Result<(), LlmError> {
    for item in list.iter().filter(|item| item.as_object().is_some()) {
        let fields = Fields::of(item, "input", &["type", "role", "content"])?;
        let role = fields.text("role")?.unwrap_or_default();
        if fields.text("type")? == Some("item_reference") {
            reference_in(request, ReferenceKind::Response, item);
        }
        let content = fields.get("content");
        if let Some(content) = content.filter(|_| role == "system" || role == "developer") {
            prompt(request, content);
        }
        match content {
            Some(content) => parts(content).into_iter().for_each(|part| refer(request, part)),
            None => refer(request, item),
        }
    }
    Ok(())
}

/// Reads a message of a realtime session, or the body that makes a credential for one.
pub(super) fn session(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    for within in ["session", "response"] {
        if let Some(settings) = fields.get(within) {
            session_settings(request, settings)?;
        }
    }
    match fields.get("item") {
        Some(item) => items(request, std::slice::from_ref(item)),
        // Before there was a `session` within, settings stood at the top.
        None if request.shape == Shape::OpenAiMint => session_settings(request, body),
        None => Ok(()),
    }
}

fn session_settings(request: &mut Request, settings: &Value<'_>) -> Result<(), LlmError> {
    run(request, settings)?;
    for path in [&["input_audio_transcription", "model"][..], &["audio", "input", "transcription", "model"]] {
        if let Some(model) = settings.at(path).and_then(Value::as_str) {
            request.may_run(model);
        }
    }
    Ok(())
}
