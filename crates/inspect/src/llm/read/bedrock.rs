//! Bedrock's bodies: one form for `Converse`, and each model maker's own for `InvokeModel`.
//!
//! # Source
//! Amazon Bedrock API reference (`Converse`, `InvokeModel`), and "Inference request parameters" of its user guide.

use super::super::LlmError;
use super::super::fields::Fields;
use super::super::request::{ReferenceKind, Request, Tool, ToolChoice, ToolKind};
use super::{Bounds, choice, prompt, reference, tools};
use crate::json::Value;

const KNOWN: &[&str] = &[
    "model",
    "messages",
    "system",
    "inferenceConfig",
    "toolConfig",
    "additionalModelRequestFields",
    "textGenerationConfig",
    "max_tokens",
    "max_completion_tokens",
    "max_new_tokens",
    "max_gen_len",
    "maxTokens",
    "tools",
    "tool_choice",
    "n",
    "num_generations",
    "numResults",
    "prompt",
];

/// Reads the body of `Converse` or `ConverseStream`.
pub(super) fn converse(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    let mut bounds = Bounds::default();
    common(request, &fields, &mut bounds)?;
    // These go to the model as they are, past the fields of `Converse`.
    if let Some(more) = fields.object("additionalModelRequestFields", KNOWN)? {
        bounds.take(&more, &["max_tokens", "max_completion_tokens", "max_new_tokens", "max_gen_len", "maxTokens"])?;
        tools(request, more.list("tools")?)?;
    }
    request.max_output_tokens = bounds.bound();
    Ok(())
}

/// Reads the body of `InvokeModel`. Which maker's it is does not matter: no two use a field for different things.
pub(super) fn invoke(request: &mut Request, body: &Value<'_>) -> Result<(), LlmError> {
    let fields = Fields::of(body, "body", KNOWN)?;
    if let Some(model) = fields.text("model")? {
        request.named(model)?;
    }
    let mut bounds = Bounds::default();
    common(request, &fields, &mut bounds)?;
    bounds.take(&fields, &["max_tokens", "max_completion_tokens", "max_new_tokens", "max_gen_len", "maxTokens"])?;
    if let Some(titan) = fields.object("textGenerationConfig", &["maxTokenCount"])?
        && let Some(bound) = titan.get("maxTokenCount")
    {
        bounds.add("maxTokenCount", bound, true)?;
    }
    request.max_output_tokens = bounds.bound();
    for name in ["n", "num_generations", "numResults"] {
        request.answers = request.answers.max(fields.count(name)?.unwrap_or(1));
    }
    tools(request, fields.list("tools")?)?;
    if let Some(value) = fields.get("tool_choice") {
        request.tool_choice = Some(choice(value)?);
    }
    Ok(())
}

/// What `Converse` and the bodies of Amazon's own models share.
fn common(request: &mut Request, fields: &Fields<'_, '_>, bounds: &mut Bounds) -> Result<(), LlmError> {
    if let Some(stored) = request.model.clone().filter(|model| model.contains(":prompt/")) {
        reference(request, ReferenceKind::Prompt, &stored);
    }
    if let Some(system) = fields.get("system") {
        prompt(request, system);
    }
    super::messages(request, fields.list("messages")?)?;
    if let Some(config) = fields.object("inferenceConfig", &["maxTokens", "max_new_tokens"])? {
        bounds.take(&config, &["maxTokens", "max_new_tokens"])?;
    }
    let Some(config) = fields.object("toolConfig", &["tools", "toolChoice"])? else { return Ok(()) };
    for tool in config.list("tools")? {
        let (value, kind) = match (tool.get("toolSpec"), tool.get("systemTool"), tool.get("cachePoint")) {
            (Some(spec), _, _) => (spec, ToolKind::Function),
            (_, Some(system), _) => (system, ToolKind::WebSearch),
            (_, _, Some(_)) => continue,
            _ => (tool, ToolKind::Other),
        };
        let name = value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        request.tools.push(Tool { name, kind, target: None });
    }
    request.tool_choice = config.get("toolChoice").map(|choice| {
        match (choice.at(&["tool", "name"]).and_then(Value::as_str), choice.get("any")) {
            (Some(name), _) => ToolChoice::Named(name.to_owned()),
            (_, Some(_)) => ToolChoice::Required,
            _ => ToolChoice::Auto,
        }
    });
    Ok(())
}
