//! Which API a call belongs to, told from method and path.
//!
//! Hosts do not matter, and prefixes neither: an API may live below any path. Literal segments are compared without
//! regard to case and without parameters behind `;`, because some servers do so, and to take a call for one of a model
//! only means to look closer.

use std::borrow::Cow;

use super::{LlmError, Shape};

/// The most segments of a path that is looked at.
const MAX_SEGMENTS: usize = 32;

/// What method, path and query say of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The shape.
    pub shape: Shape,
    /// The model (at Azure the deployment) that path or query name.
    pub model: Option<String>,
    /// Whether the path says that the answer is a stream, or that it is none.
    pub streams: Option<bool>,
    /// `false` if others have such paths too, so that only a body with the fields of the API makes it this call. Where it
    /// is `true`, a body that cannot be read is one that must not be sent.
    pub certain: bool,
}

impl Route {
    /// Tells the call apart by its method, its path in the one form that is decided, and its query without `?`.
    ///
    /// `None` if it is none of the calls known here.
    ///
    /// # Errors
    /// [`LlmError::Model`] if the query names another model than the path, or two; [`LlmError::Path`] if what names the
    /// model is not UTF-8 once decoded.
    pub fn of(method: &str, path: &str, query: Option<&str>) -> Result<Option<Self>, LlmError> {
        let Some(raw) = segments(path) else { return Ok(None) };
        let decoded: Vec<Option<Cow<'_, str>>> = raw.iter().map(|segment| decode(segment)).collect();
        let low: Vec<String> = decoded.iter().map(|d| literal(d.as_deref().unwrap_or("\0"))).collect();
        let low: Vec<&str> = low.iter().map(String::as_str).collect();
        let Some(found) = recognise(method, &low) else { return Ok(None) };
        let mut route = Self { shape: found.shape, model: None, streams: found.streams, certain: found.certain };
        if let Some((from, to)) = found.model {
            let mut model = String::new();
            for part in decoded.get(from..to).unwrap_or_default() {
                if !model.is_empty() {
                    model.push('/');
                }
                model.push_str(part.as_deref().ok_or(LlmError::Path)?);
            }
            if found.verb {
                let name = model.rsplit_once(':').map_or("", |(name, _)| name).len();
                model.truncate(name);
            }
            route.model = Some(model).filter(|model| !model.is_empty());
        }
        if let Some(deployment) = low.windows(2).position(|pair| pair == ["openai", "deployments"]) {
            let named = decoded.get(deployment + 2).and_then(|d| d.as_deref());
            route.model = Some(named.ok_or(LlmError::Path)?.to_owned());
        }
        route.ask_query(query)?;
        Ok(Some(route))
    }

    /// The WebSockets name their model in the query.
    fn ask_query(&mut self, query: Option<&str>) -> Result<(), LlmError> {
        if self.shape != Shape::OpenAiRealtime {
            return Ok(());
        }
        for (key, value) in query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
            let key = decode(key).ok_or(LlmError::Path)?;
            if !key.eq_ignore_ascii_case("model") && !key.eq_ignore_ascii_case("deployment") {
                continue;
            }
            let spaced = value.replace('+', " ");
            let model = decode(&spaced).ok_or(LlmError::Path)?.into_owned();
            match &self.model {
                Some(one) if *one != model => return Err(LlmError::Model { one: one.clone(), other: model }),
                _ => self.model = Some(model),
            }
        }
        Ok(())
    }
}

/// What [`recognise`] found.
struct Found {
    shape: Shape,
    /// The segments that name the model.
    model: Option<(usize, usize)>,
    /// Whether a verb stands behind the model, after a colon.
    verb: bool,
    streams: Option<bool>,
    certain: bool,
}

fn plain(shape: Shape) -> Option<Found> {
    Some(Found { shape, model: None, verb: false, streams: None, certain: true })
}

fn uncertain(shape: Shape) -> Option<Found> {
    Some(Found { certain: false, ..plain(shape)? })
}

/// The table of paths; `path` has its segments in lower case.
fn recognise(method: &str, path: &[&str]) -> Option<Found> {
    let method = method.to_ascii_uppercase();
    let (post, get) = (method == "POST", method == "GET" || method == "HEAD");
    let versioned = |path: &[&str]| {
        path.last().is_some_and(|last| *last == "openai" || last.strip_prefix('v').is_some_and(starts_with_digit))
    };
    google(post, get, path).or_else(|| bedrock(post, path)).or_else(|| match path {
        [.., "chat", "completions"] if post => plain(Shape::OpenAiChat),
        [.., "chat", "completions"] | [.., "chat", "completions", _] | [.., "chat", "completions", _, "messages"] => {
            plain(Shape::OpenAiStored)
        }
        [.., "engines", _, "completions"] if post => {
            let model = Some((path.len() - 2, path.len() - 1));
            Some(Found { model, ..plain(Shape::OpenAiCompletion)? })
        }
        [.., "completions"] if post => plain(Shape::OpenAiCompletion),
        [.., "api", "chat"] if post => uncertain(Shape::OllamaChat),
        [.., "api", "generate"] if post => uncertain(Shape::OllamaGenerate),
        [.., "api", "embed" | "embeddings"] if post => uncertain(Shape::OllamaEmbed),
        [.., "api", "pull" | "push" | "create" | "copy"] if post => uncertain(Shape::OllamaManage),
        ["api", "delete"] if method == "DELETE" => plain(Shape::OllamaManage),
        ["api", "blobs", _] if post => plain(Shape::OllamaManage),
        ["api", "tags" | "ps" | "version"] if get => plain(Shape::OllamaModels),
        [.., "api", "show"] if post => uncertain(Shape::OllamaModels),
        [.., "messages", "count_tokens"] if post => plain(Shape::AnthropicCount),
        [.., "messages", "batches"] if post => plain(Shape::AnthropicBatch),
        [.., "messages", "batches"]
        | [.., "messages", "batches", _]
        | [.., "messages", "batches", _, "results" | "cancel"] => plain(Shape::AnthropicStored),
        [before @ .., "messages"] if post && (versioned(before) || before.last() == Some(&"anthropic")) => {
            uncertain(Shape::AnthropicMessages)
        }
        [before @ .., "complete"] if post && versioned(before) => uncertain(Shape::AnthropicComplete),
        [before @ .., "responses"] | [before @ .., "responses", "compact"] if post => {
            Some(Found { certain: versioned(before), ..plain(Shape::OpenAiResponses)? })
        }
        [before @ .., "responses"] if get && versioned(before) => uncertain(Shape::OpenAiSocket),
        [before @ .., "responses", "input_tokens"] if post && versioned(before) => plain(Shape::OpenAiCount),
        [before @ .., "responses", _]
        | [before @ .., "responses", _, "cancel" | "input_items"]
        | [before @ .., "conversations"]
        | [before @ .., "conversations", _]
        | [before @ .., "conversations", _, "items"]
        | [before @ .., "conversations", _, "items", _]
        | [before @ .., "batches", _]
        | [before @ .., "batches", _, "cancel"]
            if versioned(before) =>
        {
            uncertain(Shape::OpenAiStored)
        }
        [before @ .., "batches"] if versioned(before) => {
            uncertain(if post { Shape::OpenAiBatch } else { Shape::OpenAiStored })
        }
        [.., "embeddings"] if post => plain(Shape::OpenAiEmbed),
        [.., "moderations"] if post => plain(Shape::OpenAiModerate),
        [.., "images", "generations" | "edits" | "variations"] if post => plain(Shape::OpenAiImage),
        [.., "audio", "speech"] if post => plain(Shape::OpenAiSpeech),
        [.., "audio", "transcriptions" | "translations"] if post => plain(Shape::OpenAiTranscribe),
        [before @ .., "files" | "uploads"]
        | [before @ .., "files" | "uploads", _]
        | [before @ .., "files" | "uploads", _, "content" | "parts" | "complete" | "cancel"]
            if versioned(before) =>
        {
            uncertain(Shape::OpenAiFiles)
        }
        [before @ .., "models"] | [before @ .., "models", _] if get && versioned(before) => {
            uncertain(Shape::OpenAiModels)
        }
        [before @ .., "models", _] if method == "DELETE" && versioned(before) => uncertain(Shape::OpenAiStored),
        [before @ .., "realtime"] if get && versioned(before) => plain(Shape::OpenAiRealtime),
        [.., "realtime" | "realtimeapi", "sessions" | "client_secrets" | "transcription_sessions" | "calls"]
            if post =>
        {
            plain(Shape::OpenAiMint)
        }
        [.., "completion" | "infill"] if post => uncertain(Shape::LlamaCompletion),
        [.., "embedding"] if post => uncertain(Shape::LlamaEmbed),
        _ => None,
    })
}

/// `…/models/{model}:{verb}`, and the lists.
fn google(post: bool, get: bool, path: &[&str]) -> Option<Found> {
    let last = *path.last()?;
    // A version such as `v1beta`, which only Google has.
    let version = path.iter().position(|s| s.strip_prefix("v1").is_some_and(|rest| rest.starts_with("beta")));
    let of_version = version.and_then(|at| path.get(at + 1..)).unwrap_or_default();
    if get && last.ends_with("generativeservice.bidigeneratecontent") {
        return plain(Shape::GoogleLive);
    }
    match of_version {
        ["models" | "tunedmodels"] | ["models", _] if get => return plain(Shape::GoogleModels),
        ["interactions"] if post => return plain(Shape::GoogleInteraction),
        [
            "agents" | "batches" | "cachedcontents" | "corpora" | "files" | "filesearchstores" | "interactions"
            | "tunedmodels",
            rest @ ..,
        ] if !rest.iter().any(|segment| segment.contains(':')) => {
            return plain(Shape::GoogleStored);
        }
        _ => {}
    }
    let (name, verb) = last.rsplit_once(':')?;
    if !post {
        return None;
    }
    let publisher = path.iter().position(|s| *s == "publishers").and_then(|at| path.get(at + 1)).copied();
    let raw = |streams| match publisher {
        Some("anthropic") if name == "count-tokens" => (Shape::AnthropicCount, None),
        Some("anthropic") => (Shape::AnthropicMessages, Some(streams)),
        Some("mistralai") => (Shape::OpenAiChat, Some(streams)),
        _ => (Shape::GooglePredict, Some(streams)),
    };
    let (shape, streams) = match verb {
        "generatecontent" => (Shape::GoogleGenerate, Some(false)),
        "streamgeneratecontent" => (Shape::GoogleStreamGenerate, Some(true)),
        "embedcontent" => (Shape::GoogleEmbed, Some(false)),
        "batchembedcontents" => (Shape::GoogleBatchEmbed, Some(false)),
        "counttokens" | "computetokens" => (Shape::GoogleCount, Some(false)),
        "predict" | "predictlongrunning" => (Shape::GooglePredict, Some(false)),
        "rawpredict" => raw(false),
        "streamrawpredict" => raw(true),
        _ => return None,
    };
    let at = path.len() - 1;
    // Tuned models and endpoints are named with their kind, so that they are not taken for models of the same name.
    let kind = path.get(at.wrapping_sub(1)).copied();
    let from = if matches!(kind, Some("tunedmodels" | "endpoints")) { at - 1 } else { at };
    let model = (shape != Shape::AnthropicCount).then_some((from, path.len()));
    Some(Found { shape, model, verb: true, streams, certain: true })
}

/// `/model/{id}/{operation}`; the id may be an ARN, with its slash encoded or not.
fn bedrock(post: bool, path: &[&str]) -> Option<Found> {
    let at = path.iter().position(|s| *s == "model")?;
    let (shape, streams) = match *path.last()? {
        "invoke" => (Shape::BedrockInvoke, false),
        "invoke-with-response-stream" => (Shape::BedrockInvokeStream, true),
        "converse" => (Shape::BedrockConverse, false),
        "converse-stream" => (Shape::BedrockConverseStream, true),
        "count-tokens" => (Shape::BedrockCount, false),
        _ => return None,
    };
    let (from, to) = (at + 1, path.len() - 1);
    (post && from < to).then_some(Found {
        shape,
        model: Some((from, to)),
        verb: false,
        streams: Some(streams),
        certain: true,
    })
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

fn segments(path: &str) -> Option<Vec<&str>> {
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    let segments: Vec<&str> = path.split('/').take(MAX_SEGMENTS + 1).collect();
    (segments.len() <= MAX_SEGMENTS).then_some(segments)
}

/// A segment as it is compared: in lower case, without parameters.
fn literal(segment: &str) -> String {
    segment.split(';').next().unwrap_or_default().to_ascii_lowercase()
}

/// Decodes percent-escapes; `None` if what comes out is not UTF-8.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if let (b'%', [high, low, behind @ ..]) = (byte, behind) {
            let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
            out.push(digit(*high)? << 4 | digit(*low)?);
            rest = behind;
        } else if *byte == b'%' {
            return None;
        } else {
            out.push(*byte);
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(call: &str) -> Option<(Shape, Option<String>, Option<bool>)> {
        let (method, path) = call.split_once(' ').unwrap();
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        Route::of(method, path, query).unwrap().map(|route| (route.shape, route.model, route.streams))
    }

    #[test]
    fn shapes_are_told_from_paths() {
        for (call, shape) in [
            ("POST /v1/chat/completions", Shape::OpenAiChat),
            ("POST /v1/chat/completions/", Shape::OpenAiChat),
            ("POST /V1/Chat/Completions", Shape::OpenAiChat),
            ("POST /v1/chat/completions;x=1", Shape::OpenAiChat),
            ("POST /v1/chat/completions%3Bx", Shape::OpenAiChat),
            ("POST /chat/completions", Shape::OpenAiChat),
            ("POST /openai/v1/chat/completions", Shape::OpenAiChat),
            ("POST /v1/projects/p/locations/l/endpoints/openapi/chat/completions", Shape::OpenAiChat),
            ("POST /api/chat/completions", Shape::OpenAiChat),
            ("GET /v1/chat/completions/chatcmpl-1", Shape::OpenAiStored),
            ("POST /v1/completions", Shape::OpenAiCompletion),
            ("POST /v1/responses", Shape::OpenAiResponses),
            ("GET /v1/responses", Shape::OpenAiSocket),
            ("POST /v1/responses/compact", Shape::OpenAiResponses),
            ("POST /v1/responses/input_tokens", Shape::OpenAiCount),
            ("POST /v1/responses/resp_1/cancel", Shape::OpenAiStored),
            ("GET /v1/responses/resp_1", Shape::OpenAiStored),
            ("DELETE /v1/responses/resp_1", Shape::OpenAiStored),
            ("POST /v1/conversations/conv_1/items", Shape::OpenAiStored),
            ("POST /v1/embeddings", Shape::OpenAiEmbed),
            ("POST /v1/files", Shape::OpenAiFiles),
            ("GET /v1/files/file-1/content", Shape::OpenAiFiles),
            ("POST /v1/uploads/up_1/parts", Shape::OpenAiFiles),
            ("POST /v1/images/edits", Shape::OpenAiImage),
            ("POST /v1/audio/speech", Shape::OpenAiSpeech),
            ("POST /v1/audio/translations", Shape::OpenAiTranscribe),
            ("POST /v1/moderations", Shape::OpenAiModerate),
            ("GET /v1/models", Shape::OpenAiModels),
            ("GET /v1/models/gpt-4o", Shape::OpenAiModels),
            ("DELETE /v1/models/ft:x", Shape::OpenAiStored),
            ("POST /v1/batches", Shape::OpenAiBatch),
            ("GET /v1/batches", Shape::OpenAiStored),
            ("POST /v1/realtime/client_secrets", Shape::OpenAiMint),
            ("POST /v1/messages", Shape::AnthropicMessages),
            ("POST /anthropic/v1/messages", Shape::AnthropicMessages),
            ("POST /v1/messages/count_tokens", Shape::AnthropicCount),
            ("POST /v1/messages/batches", Shape::AnthropicBatch),
            ("GET /v1/messages/batches/b_1/results", Shape::AnthropicStored),
            ("POST /v1/complete", Shape::AnthropicComplete),
            ("GET /v1beta/models", Shape::GoogleModels),
            ("GET /v1beta/models/gemini-2.5-pro", Shape::GoogleModels),
            ("POST /v1beta/interactions", Shape::GoogleInteraction),
            ("GET /v1beta/interactions/i_1", Shape::GoogleStored),
            ("POST /upload/v1beta/files", Shape::GoogleStored),
            ("POST /v1beta/agents", Shape::GoogleStored),
            ("GET /ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent", Shape::GoogleLive),
            ("POST /api/chat", Shape::OllamaChat),
            ("POST /api/generate", Shape::OllamaGenerate),
            ("POST /api/embed", Shape::OllamaEmbed),
            ("POST /api/embeddings", Shape::OllamaEmbed),
            ("POST /api/pull", Shape::OllamaManage),
            ("DELETE /api/delete", Shape::OllamaManage),
            ("GET /api/tags", Shape::OllamaModels),
            ("POST /completion", Shape::LlamaCompletion),
            ("POST /completions", Shape::OpenAiCompletion),
            ("POST /infill", Shape::LlamaCompletion),
            ("POST /embedding", Shape::LlamaEmbed),
        ] {
            assert_eq!(told(call), Some((shape, None, None)), "{call}");
        }
        for call in [
            "GET /",
            "POST /",
            "POST /v1",
            "GET /v1/chat",
            "GET /w/completions",
            "POST /v1/threads/t/messages",
            "GET /api/chat",
            "POST /forms/x/messages",
            "GET /forms/x/responses",
            "POST /model/x",
            "POST /model/invoke",
            "GET /models",
            "POST /v1beta/models/x:unknownVerb",
            "POST chat/completions",
        ] {
            assert_eq!(told(call), None, "{call}");
        }
        assert!(Route::of("POST", &format!("{}/chat/completions", "/a".repeat(40)), None).unwrap().is_none());
        assert!(!Route::of("POST", "/api/chat", None).unwrap().unwrap().certain);
        assert!(!Route::of("POST", "/forms/x/responses", None).unwrap().unwrap().certain);
    }

    #[test]
    fn models_are_read_from_paths() {
        for (call, shape, model, streams) in [
            (
                "POST /openai/deployments/my-gpt/chat/completions?api-version=2024-10-21",
                Shape::OpenAiChat,
                "my-gpt",
                None,
            ),
            ("POST /openai/deployments/e%2D1/embeddings", Shape::OpenAiEmbed, "e-1", None),
            ("POST /v1/engines/davinci/completions", Shape::OpenAiCompletion, "davinci", None),
            ("GET /v1/realtime?model=gpt-realtime", Shape::OpenAiRealtime, "gpt-realtime", None),
            ("GET /openai/realtime?api-version=1&deployment=rt", Shape::OpenAiRealtime, "rt", None),
            (
                "POST /v1beta/models/gemini-2.5-pro:generateContent",
                Shape::GoogleGenerate,
                "gemini-2.5-pro",
                Some(false),
            ),
            (
                "POST /v1beta/models/gemini-2.5-pro%3AstreamGenerateContent?alt=sse",
                Shape::GoogleStreamGenerate,
                "gemini-2.5-pro",
                Some(true),
            ),
            ("POST /v1beta/tunedModels/mine:generateContent", Shape::GoogleGenerate, "tunedModels/mine", Some(false)),
            (
                "POST /v1/projects/p/locations/l/publishers/google/models/gemini-2.5-flash:generateContent",
                Shape::GoogleGenerate,
                "gemini-2.5-flash",
                Some(false),
            ),
            ("POST /v1/projects/p/locations/l/endpoints/77:predict", Shape::GooglePredict, "endpoints/77", Some(false)),
            (
                "POST /v1/projects/p/locations/l/publishers/anthropic/models/claude-sonnet-4@20250514:streamRawPredict",
                Shape::AnthropicMessages,
                "claude-sonnet-4@20250514",
                Some(true),
            ),
            (
                "POST /v1beta/models/text-embedding-004:batchEmbedContents",
                Shape::GoogleBatchEmbed,
                "text-embedding-004",
                Some(false),
            ),
            (
                "POST /model/amazon.nova-lite-v1%3A0/converse",
                Shape::BedrockConverse,
                "amazon.nova-lite-v1:0",
                Some(false),
            ),
            (
                "POST /model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.x/converse-stream",
                Shape::BedrockConverseStream,
                "arn:aws:bedrock:us-east-1:1:inference-profile/us.x",
                Some(true),
            ),
            (
                "POST /model/arn:aws:bedrock:us-east-1:1:inference-profile/us.x/invoke-with-response-stream",
                Shape::BedrockInvokeStream,
                "arn:aws:bedrock:us-east-1:1:inference-profile/us.x",
                Some(true),
            ),
        ] {
            assert_eq!(told(call), Some((shape, Some(model.to_owned()), streams)), "{call}");
        }
        let count = "POST /v1/projects/p/locations/l/publishers/anthropic/models/count-tokens:rawPredict";
        assert_eq!(told(count), Some((Shape::AnthropicCount, None, None)));
    }

    #[test]
    fn contradictions_are_refused() {
        let of = |path, query| Route::of("GET", path, Some(query)).map_err(|error| error.code());
        assert_eq!(of("/v1/realtime", "model=a&model=b"), Err("llm_model_contradiction"));
        assert_eq!(of("/v1/realtime", "model=a&MODEL=b"), Err("llm_model_contradiction"));
        assert_eq!(of("/v1/realtime", "model=%ff"), Err("llm_path"));
        assert!(of("/v1/realtime", "model=a&mod%65l=a").is_ok());
        assert_eq!(Route::of("POST", "/model/%FF/invoke", None), Err(LlmError::Path));
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(
            method in "GET|POST|DELETE|x",
            parts in prop::collection::vec(prop::sample::select(&[
                "/", "v1", "openai", "deployments", "models", "model", "m:generateContent", ":", "chat", "completions",
                "invoke", "%3A", "%ff", "%", ";", "messages", "batches", "realtime", "endpoints", "publishers", "é",
            ][..]), 0..12),
            query in "[a-z=&%+]{0,12}",
        ) {
            let _ = Route::of(&method, &parts.concat(), Some(&query));
        }
    }
}
