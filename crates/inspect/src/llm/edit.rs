//! Changes to a call before it is sent on.

use super::{Request, Shape};
use crate::json::{self, Limits, Value};

/// What became of the wish to have a stream's usage reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UsageAsked {
    /// The body asks now. The agent did not, so the event that [`is_usage_event`] knows must be left out of its answer.
    Added,
    /// The agent asked itself; its answer must stay whole.
    Already,
    /// The API reports without being asked, or has no way to ask.
    Needless,
}

/// Has a stream of OpenAI's shape report what it used, in an event before its end.
///
/// # Source
/// OpenAI API reference, Chat, `stream_options.include_usage`.
pub fn ask_for_usage(request: &Request, body: &mut Value<'_>) -> UsageAsked {
    if !request.streams || !matches!(request.shape, Shape::OpenAiChat | Shape::OpenAiCompletion) {
        return UsageAsked::Needless;
    }
    const FLAG: [&str; 2] = ["stream_options", "include_usage"];
    if body.at(&FLAG) == Some(&Value::Bool(true)) {
        return UsageAsked::Already;
    }
    if !body.set(&FLAG, Value::Bool(true)) {
        // `stream_options` is no object; the upstream will refuse it.
        return UsageAsked::Needless;
    }
    UsageAsked::Added
}

/// Whether the data of an event is the one that is sent only because usage was asked for: no choices, and a usage.
///
/// The other events then say `"usage": null`, which clients do not mind.
#[must_use]
pub fn is_usage_event(data: &[u8]) -> bool {
    // Most events are not, and need not be read.
    let has = |text: &[u8]| memchr::memmem::find(data, text).is_some();
    if !has(b"\"usage\"") || has(b"\"usage\":null") {
        return false;
    }
    let Ok(event) = json::parse(data, &Limits::default()) else { return false };
    let no_choices = event.get("choices").and_then(Value::as_list).is_some_and(<[Value<'_>]>::is_empty);
    no_choices && event.get("usage").is_some_and(|usage| usage.as_object().is_some())
}

/// Bounds each answer of a call to at most `most` tokens.
///
/// A bound that is there in any spelling the API heeds is lowered; where there is none, one is added. Answers `false`,
/// and changes nothing, if the API has no way to bound an answer. Of a batch, each request is bounded.
pub fn bound_output(request: &Request, body: &mut Value<'_>, most: u64) -> bool {
    let lower_one = |body: &mut Value<'_>, path: &[&str]| {
        let place = body.at_mut(path).filter(|place| !place.is_null())?;
        let bound = place.as_u64().unwrap_or(u64::MAX).min(most);
        *place = Value::count(bound);
        Some(bound)
    };
    let lower = |body: &mut Value<'_>, paths: &[&[&str]], preferred: &[&str]| {
        // Spellings that the API does not heed are lowered too, for whoever does; and none may contradict another.
        let others = super::read::BOUNDS.iter().filter_map(|name| lower_one(body, &[name])).min();
        let heeded = paths.iter().filter_map(|path| lower_one(body, path)).min();
        heeded.is_some() || body.set(preferred, Value::count(others.unwrap_or(most)))
    };
    match request.shape {
        Shape::AnthropicBatch => {
            let list = body.at_mut(&["requests"]).and_then(Value::as_list_mut);
            list.is_some_and(|list| {
                list.iter_mut().all(|one| lower(one, &[&["params", "max_tokens"]], &["params", "max_tokens"]))
            })
        }
        Shape::AnthropicComplete => lower(body, &[&["max_tokens_to_sample"]], &["max_tokens_to_sample"]),
        Shape::AnthropicMessages => {
            for fallback in body.at_mut(&["fallbacks"]).and_then(Value::as_list_mut).into_iter().flatten() {
                lower_one(fallback, &["max_tokens"]);
            }
            lower(body, &[&["max_tokens"]], &["max_tokens"])
        }
        Shape::BedrockConverse | Shape::BedrockConverseStream => {
            let more = "additionalModelRequestFields";
            let paths: &[&[&str]] = &[&["inferenceConfig", "maxTokens"], &[more, "max_tokens"], &[more, "maxTokens"]];
            lower(body, paths, &["inferenceConfig", "maxTokens"])
        }
        Shape::BedrockInvoke | Shape::BedrockInvokeStream => {
            // Which field bounds a model that is not known here cannot be guessed, so none is added but where one is.
            let paths: &[&[&str]] = &[
                &["max_tokens"],
                &["max_completion_tokens"],
                &["max_new_tokens"],
                &["max_gen_len"],
                &["maxTokens"],
                &["textGenerationConfig", "maxTokenCount"],
                &["inferenceConfig", "maxTokens"],
                &["inferenceConfig", "max_new_tokens"],
            ];
            let there = paths.iter().any(|path| body.at(path).is_some_and(|bound| !bound.is_null()));
            there && lower(body, paths, &[])
        }
        Shape::GoogleGenerate | Shape::GoogleInteraction | Shape::GoogleStreamGenerate => {
            let snake = body.get("generation_config").is_some() || request.shape == Shape::GoogleInteraction;
            let preferred = if snake {
                ["generation_config", "max_output_tokens"]
            } else {
                ["generationConfig", "maxOutputTokens"]
            };
            let paths: &[&[&str]] = &[
                &["generationConfig", "maxOutputTokens"],
                &["generationConfig", "max_output_tokens"],
                &["generation_config", "maxOutputTokens"],
                &["generation_config", "max_output_tokens"],
            ];
            lower(body, paths, &preferred)
        }
        Shape::LlamaCompletion => lower(body, &[&["n_predict"], &["max_tokens"]], &["n_predict"]),
        Shape::OllamaChat | Shape::OllamaGenerate => {
            lower(body, &[&["options", "num_predict"]], &["options", "num_predict"])
        }
        Shape::OpenAiChat => {
            let preferred = if wants_new_spelling(request) { "max_completion_tokens" } else { "max_tokens" };
            lower(body, &[&["max_completion_tokens"], &["max_tokens"]], &[preferred])
        }
        Shape::OpenAiCompletion => lower(body, &[&["max_tokens"], &["n_predict"]], &["max_tokens"]),
        Shape::OpenAiResponses | Shape::OpenAiSocket => lower(body, &[&["max_output_tokens"]], &["max_output_tokens"]),
        _ => false,
    }
}

/// Whether a model refuses `max_tokens`: OpenAI's that think. All others of OpenAI's shape know it.
fn wants_new_spelling(request: &Request) -> bool {
    let model = request.model.as_deref().unwrap_or_default();
    let model = model.rsplit('/').next().unwrap_or_default();
    let mut chars = model.chars();
    let numbered = chars.next() == Some('o') && chars.next().is_some_and(|c| c.is_ascii_digit());
    numbered || model.starts_with("gpt-5")
}

/// Forbids the provider to keep the answer; `false` if the API has no such field.
pub fn forbid_store(request: &Request, body: &mut Value<'_>) -> bool {
    let known = [Shape::GoogleInteraction, Shape::OpenAiChat, Shape::OpenAiResponses, Shape::OpenAiSocket];
    known.contains(&request.shape) && body.set(&["store"], Value::Bool(false))
}

#[cfg(test)]
mod tests {
    use super::super::Route;
    use super::*;
    use crate::json::parse;

    fn changed(
        call: &str,
        body: &str,
        change: impl FnOnce(&Request, &mut Value<'_>) -> bool,
    ) -> Option<(String, Request)> {
        let (method, path) = call.split_once(' ').unwrap();
        let route = Route::of(method, path, None).unwrap().unwrap();
        let mut body = parse(body.as_bytes(), &Limits::default()).unwrap();
        let request = Request::of(&route, &body).unwrap();
        change(&request, &mut body).then(|| {
            let bytes = body.to_bytes();
            let again = Request::of(&route, &parse(&bytes, &Limits::default()).unwrap()).unwrap();
            (String::from_utf8(bytes).unwrap(), again)
        })
    }

    #[test]
    fn every_bound_is_lowered_or_added() {
        for (call, body, want) in [
            ("POST /v1/chat/completions", r#"{"model":"gpt-4o"}"#, r#"{"model":"gpt-4o","max_tokens":100}"#),
            ("POST /v1/chat/completions", r#"{"model":"o3"}"#, r#"{"model":"o3","max_completion_tokens":100}"#),
            (
                "POST /v1/chat/completions",
                r#"{"model":"openai/gpt-5-mini"}"#,
                r#"{"model":"openai/gpt-5-mini","max_completion_tokens":100}"#,
            ),
            ("POST /v1/chat/completions", r#"{"model":"m","max_tokens":500}"#, r#"{"model":"m","max_tokens":100}"#),
            ("POST /v1/chat/completions", r#"{"model":"m","max_tokens":5}"#, r#"{"model":"m","max_tokens":5}"#),
            ("POST /v1/chat/completions", r#"{"model":"m","max_tokens":null}"#, r#"{"model":"m","max_tokens":100}"#),
            (
                "POST /v1/chat/completions",
                r#"{"model":"m","n_predict":500}"#,
                r#"{"model":"m","n_predict":100,"max_tokens":100}"#,
            ),
            (
                "POST /v1/chat/completions",
                r#"{"model":"m","n_predict":50}"#,
                r#"{"model":"m","n_predict":50,"max_tokens":50}"#,
            ),
            ("POST /v1/completions", r#"{"model":"m"}"#, r#"{"model":"m","max_tokens":100}"#),
            ("POST /v1/responses", r#"{"model":"m"}"#, r#"{"model":"m","max_output_tokens":100}"#),
            ("POST /v1/messages", r#"{"messages":[],"max_tokens":4096}"#, r#"{"messages":[],"max_tokens":100}"#),
            (
                "POST /v1/messages",
                r#"{"messages":[],"max_tokens":9,"fallbacks":[{"model":"m","max_tokens":500}]}"#,
                r#"{"messages":[],"max_tokens":9,"fallbacks":[{"model":"m","max_tokens":100}]}"#,
            ),
            (
                "POST /v1beta/interactions",
                r#"{"model":"m"}"#,
                r#"{"model":"m","generation_config":{"max_output_tokens":100}}"#,
            ),
            (
                "POST /v1/messages/batches",
                r#"{"requests":[{"params":{"max_tokens":1}},{"params":{"max_tokens":500}},{"params":{}}]}"#,
                r#"{"requests":[{"params":{"max_tokens":1}},{"params":{"max_tokens":100}},{"params":{"max_tokens":100}}]}"#,
            ),
            ("POST /v1beta/models/m:generateContent", "{}", r#"{"generationConfig":{"maxOutputTokens":100}}"#),
            (
                "POST /v1beta/models/m:generateContent",
                r#"{"generation_config":{"maxOutputTokens":500}}"#,
                r#"{"generation_config":{"maxOutputTokens":100}}"#,
            ),
            (
                "POST /v1beta/models/m:generateContent",
                r#"{"generation_config":{"top_k":1}}"#,
                r#"{"generation_config":{"top_k":1,"max_output_tokens":100}}"#,
            ),
            ("POST /model/m/converse", "{}", r#"{"inferenceConfig":{"maxTokens":100}}"#),
            ("POST /model/m/invoke", r#"{"max_gen_len":500}"#, r#"{"max_gen_len":100}"#),
            (
                "POST /api/chat",
                r#"{"model":"m","options":{"num_predict":-1}}"#,
                r#"{"model":"m","options":{"num_predict":100}}"#,
            ),
            ("POST /api/chat", r#"{"model":"m"}"#, r#"{"model":"m","options":{"num_predict":100}}"#),
            ("POST /completion", r#"{"prompt":"x"}"#, r#"{"prompt":"x","n_predict":100}"#),
        ] {
            let (text, again) = changed(call, body, |request, body| bound_output(request, body, 100)).unwrap();
            assert_eq!(text, want, "{call} {body}");
            assert!(again.max_output_tokens.is_some_and(|most| most <= 100 * 3), "{call} {body}");
        }
        for (call, body) in [
            ("POST /model/m/invoke", r#"{"prompt":"x"}"#),
            ("POST /v1/embeddings", r#"{"model":"m","input":"x"}"#),
            ("POST /model/m/converse", r#"{"inferenceConfig":null,"system":[]}"#),
        ] {
            let done = changed(call, body, |request, body| bound_output(request, body, 100));
            assert_eq!(done.is_some(), call.ends_with("converse"), "{call}");
        }
    }

    #[test]
    fn usage_is_asked_for_and_known_again() {
        let ask = |body: &str| {
            let mut asked = UsageAsked::Needless;
            let text = changed("POST /v1/chat/completions", body, |request, body| {
                asked = ask_for_usage(request, body);
                true
            });
            (asked, text.unwrap().0)
        };
        let with = r#"{"stream":true,"stream_options":{"include_usage":true}}"#;
        assert_eq!(ask(r#"{"stream":true}"#), (UsageAsked::Added, with.into()));
        assert_eq!(ask(r#"{"stream":true,"stream_options":null}"#), (UsageAsked::Added, with.into()));
        assert_eq!(
            ask(r#"{"stream":true,"stream_options":{"include_usage":false}}"#),
            (UsageAsked::Added, with.into())
        );
        assert_eq!(ask(with), (UsageAsked::Already, with.into()));
        assert_eq!(ask("{}"), (UsageAsked::Needless, "{}".into()));
        assert_eq!(ask(r#"{"stream":true,"stream_options":1}"#).0, UsageAsked::Needless);

        assert!(is_usage_event(br#"{"choices":[],"usage":{"prompt_tokens":1}}"#));
        for other in [
            &br#"{"choices":[],"usage":null}"#[..],
            br#"{"choices":[],"prompt_filter_results":[]}"#,
            br#"{"choices":[{"delta":{"content":"\"usage\""}}],"usage":null}"#,
            br#"{"choices":[{"delta":{}}],"usage":{"prompt_tokens":1}}"#,
            b"[DONE]",
            b"\"usage\"",
        ] {
            assert!(!is_usage_event(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn keeping_is_forbidden() {
        let (text, again) = changed("POST /v1/responses", r#"{"model":"m","store":true}"#, forbid_store).unwrap();
        assert_eq!((text.as_str(), again.store), (r#"{"model":"m","store":false}"#, Some(false)));
        assert!(changed("POST /v1/embeddings", r#"{"model":"m"}"#, forbid_store).is_none());
    }
}
