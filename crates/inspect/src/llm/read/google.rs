//! Google's bodies. Protocol Buffers let every field be spelt `likeThis` or `like_this`; both at once is refused.
//!
//! # Source
//! Gemini API reference (`models.generateContent`, `models.embedContent`, Live API); Vertex AI, `predict`.

use super::super::fields::Fields;
use super::super::request::{Format, ReferenceKind, Request, Tool, ToolKind};
use super::super::{LlmError, Shape};
use super::{Bounds, choice, parts, prompt, refer, reference, reference_in, tier};
use crate::json::Value;

const KNOWN: &[&str] = &[
    "model",
    "contents",
    "systemInstruction",
    "system_instruction",
    "generationConfig",
    "generation_config",
    "tools",
    "toolConfig",
    "tool_config",
    "cachedContent",
    "cached_content",
    "generateContentRequest",
    "generate_content_request",
    "setup",
    "content",
    "requests",
];

/// Reads a body that asks for content, that counts one, or that sets a live session up.
pub(super) fn generate(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    if request.shape == Shape::GoogleCount
        && let Some(inner) = fields.either("generateContentRequest", "generate_content_request")?
    {
        return content(request, &Fields::of(inner, "generateContentRequest", KNOWN)?);
    }
    if request.shape == Shape::GoogleLive {
        let Some(setup) = fields.get("setup") else { return Ok(()) };
        return content(request, &Fields::of(setup, "setup", KNOWN)?);
    }
    content(request, &fields)
}

fn content(request: &mut Request, fields: &Fields<'_, '_>) -> Result<(), LlmError> {
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    if let Some(system) = fields.either("systemInstruction", "system_instruction")? {
        prompt(request, system.get("parts").unwrap_or(system));
    }
    for content in fields.list("contents")? {
        let content = Fields::of(content, "contents", &["role", "parts"])?;
        let parts = content.list("parts")?;
        if content.text("role")? == Some("system") {
            request.prompts.push(super::prompt_digest(&parts.iter().collect::<Vec<_>>()));
        }
        parts.iter().for_each(|part| refer(request, part));
    }
    if let Some(config) = fields.either("generationConfig", "generation_config")? {
        self::config(request, config)?;
    }
    tools(request, fields.list("tools")?)?;
    if let Some(config) = fields.either("toolConfig", "tool_config")? {
        let config = Fields::of(config, "toolConfig", &["functionCallingConfig", "function_calling_config"])?;
        if let Some(calling) = config.either("functionCallingConfig", "function_calling_config")? {
            request.tool_choice = calling.get("mode").map(choice).transpose()?;
        }
    }
    if let Some(Value::Text(cached)) = fields.either("cachedContent", "cached_content")? {
        reference(request, ReferenceKind::CachedContent, cached);
    }
    Ok(())
}

fn config(request: &mut Request, config: &Value<'_>) -> Result<(), LlmError> {
    const KNOWN: &[&str] = &[
        "maxOutputTokens",
        "max_output_tokens",
        "candidateCount",
        "candidate_count",
        "responseMimeType",
        "response_mime_type",
        "responseSchema",
        "response_schema",
        "responseJsonSchema",
        "response_json_schema",
    ];
    let config = Fields::of(config, "generationConfig", KNOWN)?;
    let mut bounds = Bounds::default();
    if let Some(bound) = config.either("maxOutputTokens", "max_output_tokens")? {
        bounds.add("maxOutputTokens", bound, true)?;
    }
    request.max_output_tokens = bounds.bound();
    if let Some(count) = config.either("candidateCount", "candidate_count")? {
        let wanted = LlmError::Field { name: "candidateCount", wanted: "a whole number that is not negative" };
        request.answers = count.as_u64().ok_or(wanted)?.max(1);
    }
    let schema = [("responseSchema", "response_schema"), ("responseJsonSchema", "response_json_schema")];
    for (camel, snake) in schema {
        if config.either(camel, snake)?.is_some() {
            request.format = Format::JsonSchema;
        }
    }
    let mime = config.either("responseMimeType", "response_mime_type")?.and_then(Value::as_str);
    if mime.is_some_and(|mime| mime.contains("json")) && request.format == Format::Text {
        request.format = Format::Json;
    }
    Ok(())
}

/// Each tool is an object with one member, whose key says what it is.
fn tools(request: &mut Request, list: &[Value<'_>]) -> Result<(), LlmError> {
    for tool in list {
        let tool = tool.as_object().ok_or(LlmError::Field { name: "tools", wanted: "a list of objects" })?;
        for (key, value) in tool.iter().filter(|(_, value)| !value.is_null()) {
            let bare: String = key.chars().filter(|c| *c != '_').map(|c| c.to_ascii_lowercase()).collect();
            let kind = match bare.as_str() {
                "functiondeclarations" => {
                    for function in value.as_list().unwrap_or_default() {
                        let name = function.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
                        request.tools.push(Tool { name, kind: ToolKind::Function, target: None });
                    }
                    continue;
                }
                "googlesearch" | "googlesearchretrieval" | "enterprisewebsearch" | "googlemaps" => ToolKind::WebSearch,
                "codeexecution" => ToolKind::CodeExecution,
                "urlcontext" => ToolKind::WebFetch,
                "filesearch" | "retrieval" => ToolKind::FileSearch,
                "computeruse" => ToolKind::Computer,
                "mcpservers" => ToolKind::Mcp,
                _ => ToolKind::Other,
            };
            request.tools.push(Tool { name: key.to_owned(), kind, target: None });
        }
    }
    Ok(())
}

/// Reads the body of an interaction, which names a model, or an agent that runs at the provider.
pub(super) fn interaction(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    const KNOWN: &[&str] = &[
        "model",
        "agent",
        "input",
        "system_instruction",
        "systemInstruction",
        "generation_config",
        "generationConfig",
        "tools",
        "stream",
        "store",
        "background",
        "service_tier",
        "previous_interaction_id",
        "environment",
        "webhook_config",
        "response_format",
        "response_mime_type",
    ];
    let fields = Fields::of(body, "body", KNOWN)?;
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    if let Some(agent) = fields.text("agent")? {
        request.named(&format!("agents/{agent}"))?;
    }
    if let Some(system) = fields.either("systemInstruction", "system_instruction")? {
        prompt(request, system.get("parts").unwrap_or(system));
    }
    if let Some(config) = fields.either("generationConfig", "generation_config")? {
        self::config(request, config)?;
        request.tool_choice = config.get("tool_choice").filter(|choice| !choice.is_null()).map(choice).transpose()?;
    }
    super::tools(request, fields.list("tools")?)?;
    request.streams = fields.flag("stream")?.unwrap_or(false);
    request.store = fields.flag("store")?;
    request.background = fields.flag("background")?.unwrap_or(false);
    tier(request, &fields)?;
    for part in fields.get("input").map(parts).unwrap_or_default() {
        refer(request, part);
    }
    if let Some(id) = fields.text("previous_interaction_id")? {
        reference(request, ReferenceKind::Response, id);
    }
    if let Some(environment) = fields.get("environment") {
        let id =
            environment.as_str().or_else(|| environment.get("id").and_then(Value::as_str)).unwrap_or("environment");
        reference(request, ReferenceKind::Container, id);
    }
    // Where the provider is to send what came out.
    let uris = fields.get("webhook_config").and_then(|config| config.get("uris")).and_then(Value::as_list);
    uris.unwrap_or_default().iter().for_each(|uri| reference_in(request, ReferenceKind::Url, uri));
    if fields.get("response_format").is_some() {
        request.format = Format::JsonSchema;
    } else if fields.text("response_mime_type")?.is_some_and(|mime| mime.contains("json")) {
        request.format = Format::Json;
    }
    Ok(())
}

/// Reads a body that asks for vectors; a batch names the model in each of its requests too.
pub(super) fn embed(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    let list = fields.list("requests")?;
    for one in list {
        let one = Fields::of(one, "requests", KNOWN)?;
        if let Some(model) = one.text("model")? {
            request.named(model)?;
        }
    }
    request.requests = (list.len() as u64).max(1);
    Ok(())
}

/// Reads the body of a prediction: anything in `instances`, and bounds in `parameters` or at the top.
pub(super) fn predict(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", &["model", "instances", "parameters", "max_tokens", "stream"])?;
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    let mut bounds = Bounds::default();
    bounds.take(&fields, &["max_tokens", "max_completion_tokens"])?;
    if let Some(parameters) = fields.object("parameters", &["maxOutputTokens", "candidateCount", "sampleCount"])? {
        bounds.take(&parameters, &["maxOutputTokens"])?;
        let answers = parameters.count("candidateCount")?.or(parameters.count("sampleCount")?);
        request.answers = answers.unwrap_or(1).max(1);
    }
    request.max_output_tokens = bounds.bound();
    request.requests = (fields.list("instances")?.len() as u64).max(1);
    Ok(())
}
