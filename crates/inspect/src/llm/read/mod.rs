//! The readers of bodies, one file for each family of APIs.

mod anthropic;
mod bedrock;
mod google;
mod ollama;
mod openai;

use super::fields::Fields;
use super::request::{Reference, ReferenceKind, Request, Tool, ToolChoice, ToolKind, prompt_digest};
use super::{LlmError, Shape};
use crate::json::Value;

/// Reads a body into `request`. If the path was not `certain`, the body must have the fields of the API.
pub(super) fn body(request: &mut Request, body: &Value<'_>, certain: bool) -> Result<(), LlmError> {
    if !certain && !fits(request.shape, body) {
        return Err(LlmError::OtherShape);
    }
    match request.shape {
        Shape::AnthropicBatch => anthropic::batch(request, body),
        Shape::AnthropicComplete | Shape::AnthropicCount | Shape::AnthropicMessages => {
            anthropic::messages(request, body)
        }
        Shape::BedrockConverse | Shape::BedrockConverseStream => bedrock::converse(request, body),
        Shape::BedrockInvoke | Shape::BedrockInvokeStream => bedrock::invoke(request, body),
        Shape::GoogleBatchEmbed | Shape::GoogleEmbed => google::embed(request, body),
        Shape::GoogleCount | Shape::GoogleGenerate | Shape::GoogleLive | Shape::GoogleStreamGenerate => {
            google::generate(request, body)
        }
        Shape::GoogleInteraction => google::interaction(request, body),
        Shape::GooglePredict => google::predict(request, body),
        Shape::LlamaCompletion | Shape::LlamaEmbed => ollama::llama(request, body),
        Shape::OllamaChat | Shape::OllamaEmbed | Shape::OllamaGenerate => ollama::run(request, body),
        Shape::OllamaManage | Shape::OllamaModels => ollama::manage(request, body),
        Shape::OpenAiMint | Shape::OpenAiRealtime => openai::session(request, body),
        Shape::OpenAiBatch
        | Shape::OpenAiChat
        | Shape::OpenAiCompletion
        | Shape::OpenAiCount
        | Shape::OpenAiEmbed
        | Shape::OpenAiImage
        | Shape::OpenAiModerate
        | Shape::OpenAiResponses
        | Shape::OpenAiSocket
        | Shape::OpenAiSpeech
        | Shape::OpenAiTranscribe => openai::run(request, body),
        // What is counted or stored runs no model.
        Shape::AnthropicStored
        | Shape::BedrockCount
        | Shape::GoogleModels
        | Shape::GoogleStored
        | Shape::OpenAiFiles
        | Shape::OpenAiModels
        | Shape::OpenAiStored => Ok(()),
    }
}

/// Whether a body has the fields without which it would not be a call of this API.
fn fits(shape: Shape, body: &Value<'_>) -> bool {
    let Some(object) = body.as_object() else { return false };
    // A misspelt one counts, so that what only some readers take for a call is not taken for none.
    let has = |names: &[&str]| names.iter().any(|name| object.get(name).is_some()) || object.misspelt(names).is_some();
    match shape {
        Shape::AnthropicComplete => has(&["model"]) && has(&["prompt"]),
        Shape::AnthropicMessages => has(&["messages"]),
        Shape::LlamaCompletion => has(&["prompt", "input_prefix", "input_suffix"]),
        Shape::LlamaEmbed => has(&["content"]),
        Shape::OllamaChat | Shape::OllamaEmbed | Shape::OllamaGenerate => has(&["model"]),
        Shape::OllamaManage | Shape::OllamaModels => has(&["model", "name", "source"]),
        Shape::OpenAiBatch => has(&["input_file_id"]),
        Shape::OpenAiResponses => has(&["model", "prompt", "previous_response_id"]),
        _ => true,
    }
}

/// Every spelling of the bound of an answer that stands at the top of some API's body.
pub(super) const BOUNDS: &[&str] = &[
    "max_completion_tokens",
    "max_tokens",
    "max_output_tokens",
    "max_response_output_tokens",
    "max_tokens_to_sample",
    "max_new_tokens",
    "max_gen_len",
    "maxTokens",
    "maxOutputTokens",
    "n_predict",
    "num_predict",
];

/// Bounds of the answer, which must not contradict each other.
#[derive(Default)]
struct Bounds {
    /// Any spelling, heeded by this API or not: another reader of the body might heed it.
    seen: Option<(&'static str, u64)>,
    /// The bound that this API heeds; `u64::MAX` for one that says "none".
    heeded: Option<u64>,
}

impl Bounds {
    /// Takes all spellings at the top of `fields`; the API heeds those in `heeded`.
    fn take(&mut self, fields: &Fields<'_, '_>, heeded: &[&str]) -> Result<(), LlmError> {
        for name in BOUNDS {
            if let Some(value) = fields.get(name) {
                self.add(name, value, heeded.contains(name))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &'static str, value: &Value<'_>, heeded: bool) -> Result<(), LlmError> {
        let bound = match value {
            Value::Number(number) => match number.as_i64() {
                // llama.cpp and Ollama take a negative number for "no bound".
                Some(negative) if negative < 0 => Some(u64::MAX),
                _ => number.as_u64(),
            },
            // As OpenAI's realtime API writes it.
            Value::Text(text) if text == "inf" => Some(u64::MAX),
            _ => None,
        };
        let bound = bound.ok_or(LlmError::Field { name, wanted: "a whole number" })?;
        match self.seen {
            Some((one, other)) if other != bound => return Err(LlmError::MaxTokens { one, other: name }),
            _ => self.seen = Some((name, bound)),
        }
        if heeded {
            self.heeded = Some(bound);
        }
        Ok(())
    }

    fn bound(&self) -> Option<u64> {
        self.heeded.filter(|bound| *bound != u64::MAX)
    }
}

/// The parts of a content: a text is one part.
fn parts<'v, 'a>(content: &'v Value<'a>) -> Vec<&'v Value<'a>> {
    match content {
        Value::List(list) => list.iter().collect(),
        other => vec![other],
    }
}

/// Takes a system prompt.
fn prompt(request: &mut Request, content: &Value<'_>) {
    let parts: Vec<&Value<'_>> = parts(content).into_iter().filter(|part| part.get("cachePoint").is_none()).collect();
    request.prompts.push(prompt_digest(&parts));
}

/// Takes messages with `role` and `content`, as most of these APIs have them.
fn messages(request: &mut Request, list: &[Value<'_>]) -> Result<(), LlmError> {
    for message in list {
        let message = Fields::of(message, "messages", &["role", "content"])?;
        let role = message.text("role")?.unwrap_or_default();
        let Some(content) = message.get("content") else { continue };
        if role == "system" || role == "developer" {
            prompt(request, content);
        }
        parts(content).into_iter().for_each(|part| refer(request, part));
    }
    Ok(())
}

/// Takes lists of models that may run in the place of another.
fn fallbacks(request: &mut Request, fields: &Fields<'_, '_>) -> Result<(), LlmError> {
    for name in ["models", "fallbacks"] {
        // A word leaves the choice to the provider.
        if let Some(word) = fields.get(name).and_then(Value::as_str).filter(|_| name == "fallbacks") {
            request.may_run(word);
            continue;
        }
        for entry in fields.list(name)? {
            let model = entry.as_str().or_else(|| entry.get("model").and_then(Value::as_str));
            request.may_run(model.ok_or(LlmError::Field { name, wanted: "a list of models" })?);
        }
    }
    Ok(())
}

/// Takes the tier of service.
fn tier(request: &mut Request, fields: &Fields<'_, '_>) -> Result<(), LlmError> {
    // A speed that is not the usual one says more of the price.
    let speed = fields.text("speed")?.filter(|speed| *speed != "standard");
    request.tier = speed.or(fields.text("service_tier")?).map(str::to_owned);
    Ok(())
}

/// Takes what a part of a content refers to.
fn refer(request: &mut Request, part: &Value<'_>) {
    let Some(object) = part.as_object() else { return };
    for (key, value) in object.iter() {
        match (key, value) {
            ("url" | "image_url" | "file_url" | "fileUri" | "file_uri" | "uri", Value::Text(address))
                if !address.starts_with("data:") =>
            {
                reference(request, ReferenceKind::Url, address);
            }
            ("file_id", Value::Text(id)) => reference(request, ReferenceKind::File, id),
            (
                "image_url" | "file" | "source" | "video_url" | "audio_url" | "fileData" | "file_data" | "s3Location"
                | "image" | "document" | "video",
                Value::Object(_),
            ) => refer(request, value),
            // The answer of a tool, which has parts of its own.
            ("content" | "output", Value::List(list)) => list.iter().for_each(|part| refer(request, part)),
            ("toolResult", Value::Object(_)) => refer(request, value),
            _ => {}
        }
    }
}

fn reference(request: &mut Request, kind: ReferenceKind, id: &str) {
    request.references.push(Reference { kind, id: id.to_owned() });
}

/// Takes a reference that is an id, or an object with one.
fn reference_in(request: &mut Request, kind: ReferenceKind, value: &Value<'_>) {
    if let Some(id) = value.as_str().or_else(|| value.get("id").and_then(Value::as_str)) {
        reference(request, kind, id);
    }
}

/// Takes tools in the form of OpenAI or Anthropic: each an object with a type, or a function's definition.
fn tools(request: &mut Request, list: &[Value<'_>]) -> Result<(), LlmError> {
    const KNOWN: &[&str] = &[
        "type",
        "name",
        "function",
        "custom",
        "server_label",
        "server_url",
        "connector_id",
        "tunnel_id",
        "url",
        "tools",
        "execution",
        "model",
        "environment",
        "container",
        "vector_store_ids",
    ];
    for tool in list {
        let tool = Fields::of(tool, "tools", KNOWN)?;
        let said = tool.text("type")?;
        if said == Some("namespace") {
            // Functions under one name.
            tools(request, tool.list("tools")?)?;
            continue;
        }
        let own = tool.get("function").or_else(|| tool.get("custom")).and_then(|f| f.get("name")?.as_str());
        let name = own.or(tool.text("name")?).or(tool.text("server_label")?);
        let kind = match said {
            None if name.is_some() => ToolKind::Function,
            None => ToolKind::Other,
            Some("shell") if tool.get("environment").is_some_and(|e| e.get("type") != Some(&Value::text("local"))) => {
                ToolKind::CodeExecution
            }
            Some("tool_search") if tool.text("execution")? == Some("client") => ToolKind::Function,
            Some(said) => kind_of(said),
        };
        let mut target = None;
        for place in ["server_url", "url", "connector_id", "tunnel_id"] {
            target = target.or(tool.text(place)?).filter(|_| kind == ToolKind::Mcp);
        }
        let target = target.map(str::to_owned);
        let name = name.or(said).unwrap_or_default().to_owned();
        request.tools.push(Tool { name, kind, target });
        if let Some(model) = tool.text("model")? {
            request.may_run(model);
        }
        if let Some(container) = tool.get("container") {
            reference_in(request, ReferenceKind::Container, container);
            let files = container.get("file_ids").and_then(Value::as_list).unwrap_or_default();
            files.iter().for_each(|file| reference_in(request, ReferenceKind::File, file));
        }
        tool.list("vector_store_ids")?.iter().for_each(|id| reference_in(request, ReferenceKind::VectorStore, id));
    }
    Ok(())
}

/// What a tool's type means. Anthropic puts a date behind its types, others a version.
fn kind_of(said: &str) -> ToolKind {
    let begins = |with: &[&str]| with.iter().any(|with| said.starts_with(with));
    match said {
        "function" | "custom" => ToolKind::Function,
        "mcp" | "mcp_server" | "mcp_toolset" => ToolKind::Mcp,
        _ if begins(&["web_search", "browser_search", "x_search", "live_search", "google_search", "google_maps"]) => {
            ToolKind::WebSearch
        }
        _ if begins(&["web_fetch", "url_context"]) => ToolKind::WebFetch,
        _ if begins(&["code_interpreter", "code_execution", "programmatic_tool_calling"]) => ToolKind::CodeExecution,
        _ if begins(&["file_search", "collections_search", "retrieval"]) => ToolKind::FileSearch,
        _ if begins(&["computer"]) => ToolKind::Computer,
        _ if begins(&["image_generation"]) => ToolKind::ImageGeneration,
        _ if begins(&["bash", "text_editor", "shell", "local_shell", "apply_patch", "memory"]) => ToolKind::Shell,
        _ => ToolKind::Other,
    }
}

/// The choice of tools in the form of OpenAI or Anthropic: a word, or an object with a type.
fn choice(value: &Value<'_>) -> Result<ToolChoice, LlmError> {
    let word = |word: &str| match word {
        "none" | "NONE" => ToolChoice::Never,
        "auto" | "AUTO" | "VALIDATED" => ToolChoice::Auto,
        "required" | "any" | "ANY" => ToolChoice::Required,
        other => ToolChoice::Named(other.to_owned()),
    };
    let wanted = LlmError::Field { name: "tool_choice", wanted: "a choice of tools" };
    if let Some(said) = value.as_str() {
        return Ok(word(said));
    }
    let name = value.get("name").or_else(|| value.at(&["function", "name"])).or_else(|| value.at(&["custom", "name"]));
    if let Some(name) = name.and_then(Value::as_str) {
        return Ok(ToolChoice::Named(name.to_owned()));
    }
    value.get("mode").or_else(|| value.get("type")).and_then(Value::as_str).map(word).ok_or(wanted)
}
