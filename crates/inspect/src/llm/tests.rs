//! Bodies as clients send them, and what is read in them.

use proptest::prelude::*;
use ringfence_model::Digest;

use super::*;
use crate::json::{Limits, Value, parse};

fn try_read(call: &str, body: &str) -> Result<Request, LlmError> {
    let (method, path) = call.split_once(' ').unwrap();
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let route = Route::of(method, path, query)?.expect("a path of a model's API");
    route.read(Some("application/json"), body.as_bytes(), &Limits::default()).map(|reading| reading.request)
}

fn read(call: &str, body: &str) -> Request {
    try_read(call, body).unwrap()
}

fn code(call: &str, body: &str) -> &'static str {
    match try_read(call, body) {
        Ok(request) => panic!("{call} {body} was read as {request:?}"),
        Err(error) => error.code(),
    }
}

fn digest(texts: &[&str]) -> Digest {
    Digest::of(serde_json::to_string(texts).unwrap().as_bytes())
}

fn kinds(request: &Request) -> Vec<(&str, ToolKind)> {
    request.tools.iter().map(|tool| (tool.name.as_str(), tool.kind)).collect()
}

fn refers(request: &Request) -> Vec<(ReferenceKind, &str)> {
    request.references.iter().map(|reference| (reference.kind, reference.id.as_str())).collect()
}

const CHAT: &str = "POST /v1/chat/completions";

#[test]
fn an_openai_chat_is_read() {
    let request = read(
        CHAT,
        r#"{"model":"gpt-4o-mini","messages":[
            {"role":"system","content":"Be brief."},
            {"role":"developer","content":[{"type":"text","text":"Be"},{"type":"text","text":"kind"}]},
            {"role":"user","content":[{"type":"text","text":"What is this?"},
                {"type":"image_url","image_url":{"url":"https://example.org/x.png"}},
                {"type":"file","file":{"file_id":"file-1"}}]}],
            "max_completion_tokens":200,"n":2,"stream":true,"store":true,
            "response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{}}},
            "tools":[{"type":"function","function":{"name":"get_weather","parameters":{}}},
                {"type":"custom","custom":{"name":"shout"}}],
            "web_search_options":{},"tool_choice":{"type":"function","function":{"name":"get_weather"}}}"#,
    );
    assert_eq!(request.shape, Shape::OpenAiChat);
    assert_eq!(request.model.as_deref(), Some("gpt-4o-mini"));
    assert_eq!(request.prompts, [digest(&["Be brief."]), digest(&["Be", "kind"])]);
    assert_eq!((request.max_output_tokens, request.answers, request.most_output_tokens()), (Some(200), 2, Some(400)));
    assert!(request.streams && request.store == Some(true));
    assert_eq!(request.format, Format::JsonSchema);
    assert_eq!(
        kinds(&request),
        [
            ("get_weather", ToolKind::Function),
            ("shout", ToolKind::Function),
            ("web_search_options", ToolKind::WebSearch)
        ]
    );
    assert_eq!(request.tool_choice, Some(ToolChoice::Named("get_weather".into())));
    assert_eq!(refers(&request), [(ReferenceKind::Url, "https://example.org/x.png"), (ReferenceKind::File, "file-1")]);
    assert!((IMAGE_TOKENS..IMAGE_TOKENS + 250).contains(&request.input_tokens), "{}", request.input_tokens);
}

#[test]
fn models_in_every_place_are_found() {
    let request = read(CHAT, r#"{"model":"a","models":["b","a"],"fallbacks":["c",{"model":"d"}],"messages":[]}"#);
    assert_eq!(request.models().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let request = read("POST /v1/responses", r#"{"model":"a","tools":[{"type":"image_generation","model":"i"}]}"#);
    assert_eq!(request.models().collect::<Vec<_>>(), ["a", "i"]);
    let azure = "POST /openai/deployments/mine/chat/completions?api-version=2024-10-21";
    assert_eq!(read(azure, r#"{"messages":[]}"#).model.as_deref(), Some("mine"));
    assert_eq!(read(azure, r#"{"model":"mine","messages":[]}"#).model.as_deref(), Some("mine"));
    assert_eq!(code(azure, r#"{"model":"other","messages":[]}"#), "llm_model_contradiction");
    assert_eq!(code(CHAT, r#"{"model":["a"],"messages":[]}"#), "llm_field");
    assert_eq!(code(CHAT, r#"{"model":"a","models":"b"}"#), "llm_field");
    assert_eq!(code(CHAT, r#"{"model":"a","models":[1]}"#), "llm_field");
}

#[test]
fn what_may_run_in_the_place_of_a_model_is_found() {
    let fallbacks = r#"{"model":"a","max_tokens":10,"messages":[],"speed":"fast","thread":{"id":"t_1"},
        "fallbacks":[{"model":"b","max_tokens":50}],"tools":[{"type":"advisor_20260301","name":"advisor","model":"c"}]}"#;
    let request = read("POST /v1/messages", fallbacks);
    assert_eq!(request.models().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((request.max_output_tokens, request.tier.as_deref()), (Some(50), Some("fast")));
    assert_eq!(refers(&request), [(ReferenceKind::Conversation, "t_1")]);
    let chosen = read("POST /v1/messages", r#"{"model":"a","messages":[],"fallbacks":"default"}"#);
    assert_eq!(chosen.models().collect::<Vec<_>>(), ["a", "default"]);
    assert_eq!(
        code("POST /v1/messages", r#"{"model":"a","messages":[],"fallbacks":[{"Model":"b","model":"c"}]}"#),
        "llm_key_case"
    );
    let judged = read(CHAT, r#"{"model":"a","moderation":{"model":"m"},"service_tier":"priority","messages":[]}"#);
    assert_eq!((judged.models().collect::<Vec<_>>(), judged.tier.as_deref()), (vec!["a", "m"], Some("priority")));
    let spaces = r#"{"model":"a","tools":[{"type":"namespace","name":"n","tools":[{"type":"function","name":"f"}]},
        {"type":"tool_search"},{"type":"programmatic_tool_calling"},{"type":"mcp","server_label":"l","tunnel_id":"t"}]}"#;
    let request = read("GET /v1/responses", spaces);
    assert_eq!(
        kinds(&request),
        [
            ("f", ToolKind::Function),
            ("tool_search", ToolKind::Other),
            ("programmatic_tool_calling", ToolKind::CodeExecution),
            ("l", ToolKind::Mcp),
        ]
    );
    assert_eq!((request.tools[3].target.as_deref(), request.streams), (Some("t"), true));
}

#[test]
fn an_interaction_is_read() {
    let request = read(
        "POST /v1beta/interactions",
        r#"{"model":"gemini-3.5-flash","system_instruction":"Be brief.","stream":true,"store":false,"background":true,
            "input":[{"type":"text","text":"hi"},{"type":"image","uri":"https://example.org/x.png"}],
            "generation_config":{"max_output_tokens":10,"tool_choice":"any"},"previous_interaction_id":"i_1",
            "tools":[{"type":"function","name":"f"},{"type":"google_search"},{"type":"url_context"},
                {"type":"mcp_server","name":"m","url":"https://mcp.example.org/"}],
            "environment":"env_1","webhook_config":{"uris":["https://example.org/hook"]}}"#,
    );
    assert_eq!((request.model.as_deref(), request.max_output_tokens), (Some("gemini-3.5-flash"), Some(10)));
    assert_eq!(request.prompts, [digest(&["Be brief."])]);
    assert!(request.streams && request.background && request.store == Some(false));
    assert_eq!(
        kinds(&request),
        [
            ("f", ToolKind::Function),
            ("google_search", ToolKind::WebSearch),
            ("url_context", ToolKind::WebFetch),
            ("m", ToolKind::Mcp),
        ]
    );
    assert_eq!(request.tools[3].target.as_deref(), Some("https://mcp.example.org/"));
    assert_eq!(
        refers(&request),
        [
            (ReferenceKind::Url, "https://example.org/x.png"),
            (ReferenceKind::Response, "i_1"),
            (ReferenceKind::Container, "env_1"),
            (ReferenceKind::Url, "https://example.org/hook"),
        ]
    );
    // An agent at the provider may bear a granted model's name.
    let agent = read("POST /v1beta/interactions", r#"{"agent":"gemini-3.5-flash","input":"x"}"#);
    assert_eq!(agent.model.as_deref(), Some("agents/gemini-3.5-flash"));
    assert_eq!(code("POST /v1beta/interactions", r#"{"agent":"a","model":"b"}"#), "llm_model_contradiction");
}

#[test]
fn what_another_reader_reads_otherwise_is_refused() {
    for (body, want) in [
        (r#"{"model":"a","model":"b"}"#, "json_duplicate_key"),
        (r#"{"model":"a","Model":"b"}"#, "llm_key_case"),
        (r#"{"MODEL":"b"}"#, "llm_key_case"),
        (r#"{"model":"a","messages":[{"Role":"system","content":""}]}"#, "llm_key_case"),
        ("\u{feff}{\"model\":\"a\"}", "json_bom"),
        (r#"{"model":"a"}{"model":"b"}"#, "json_trailing"),
        (r#"["model"]"#, "llm_field"),
        ("", "json_empty"),
        (r#"{"model":"a","stream":"true"}"#, "llm_field"),
        (r#"{"model":"a","stream":1}"#, "llm_field"),
        (r#"{"model":"a","max_tokens":"10"}"#, "llm_field"),
        (r#"{"model":"a","max_tokens":1.5}"#, "llm_field"),
        (r#"{"model":"a","n":-1}"#, "llm_field"),
        (r#"{"model":"a","tools":{"type":"function"}}"#, "llm_field"),
        (r#"{"model":"a","max_tokens":10,"max_completion_tokens":20}"#, "llm_max_tokens_contradiction"),
        (r#"{"model":"a","max_tokens":10,"n_predict":-1}"#, "llm_max_tokens_contradiction"),
    ] {
        assert_eq!(code(CHAT, body), want, "{body}");
    }
}

#[test]
fn bounds_are_read_in_every_spelling() {
    let bedrock = "POST /model/m/invoke";
    for (call, body, want) in [
        (CHAT, r#"{"model":"a","max_tokens":10}"#, Some(10)),
        (CHAT, r#"{"model":"a","max_tokens":1e1,"max_completion_tokens":10}"#, Some(10)),
        (CHAT, r#"{"model":"a","max_tokens":null}"#, None),
        (CHAT, r#"{"model":"a","max_tokens":-1}"#, None),
        // A field that this API does not heed bounds nothing.
        (CHAT, r#"{"model":"a","max_output_tokens":10}"#, None),
        ("POST /v1/completions", r#"{"model":"a","prompt":"x","max_tokens":10}"#, Some(10)),
        ("POST /v1/responses", r#"{"model":"a","input":"x","max_output_tokens":10}"#, Some(10)),
        ("POST /v1/messages", r#"{"model":"a","messages":[],"max_tokens":10}"#, Some(10)),
        ("POST /v1/complete", r#"{"model":"a","prompt":"x","max_tokens_to_sample":10}"#, Some(10)),
        ("POST /v1beta/models/m:generateContent", r#"{"generationConfig":{"maxOutputTokens":10}}"#, Some(10)),
        ("POST /v1beta/models/m:generateContent", r#"{"generation_config":{"max_output_tokens":10}}"#, Some(10)),
        ("POST /v1/x/endpoints/1:predict", r#"{"instances":[],"parameters":{"maxOutputTokens":10}}"#, Some(10)),
        ("POST /model/m/converse", r#"{"messages":[],"inferenceConfig":{"maxTokens":10}}"#, Some(10)),
        (bedrock, r#"{"max_tokens":10}"#, Some(10)),
        (bedrock, r#"{"max_gen_len":10}"#, Some(10)),
        (bedrock, r#"{"textGenerationConfig":{"maxTokenCount":10}}"#, Some(10)),
        (bedrock, r#"{"inferenceConfig":{"max_new_tokens":10}}"#, Some(10)),
        ("POST /api/chat", r#"{"model":"a","messages":[],"options":{"num_predict":10}}"#, Some(10)),
        ("POST /api/chat", r#"{"model":"a","messages":[],"options":{"num_predict":-2}}"#, None),
        ("POST /completion", r#"{"prompt":"x","n_predict":10}"#, Some(10)),
        ("GET /v1/realtime?model=m", r#"{"type":"session.update","session":{"max_output_tokens":"inf"}}"#, None),
        ("GET /v1/realtime?model=m", r#"{"type":"response.create","response":{"max_output_tokens":10}}"#, Some(10)),
    ] {
        assert_eq!(read(call, body).max_output_tokens, want, "{call} {body}");
    }
    for (call, body) in [
        (bedrock, r#"{"max_tokens":10,"max_gen_len":11}"#),
        (bedrock, r#"{"max_tokens":10,"textGenerationConfig":{"maxTokenCount":11}}"#),
        (
            "POST /model/m/converse",
            r#"{"inferenceConfig":{"maxTokens":1},"additionalModelRequestFields":{"max_tokens":2}}"#,
        ),
        ("POST /v1/messages", r#"{"messages":[],"max_tokens":10,"max_tokens_to_sample":11}"#),
    ] {
        assert_eq!(code(call, body), "llm_max_tokens_contradiction", "{call} {body}");
    }
    let both = r#"{"generationConfig":{"maxOutputTokens":10,"max_output_tokens":10}}"#;
    assert_eq!(code("POST /v1beta/models/m:generateContent", both), "llm_field_twice");
    let both = r#"{"generationConfig":{},"generation_config":{"maxOutputTokens":10}}"#;
    assert_eq!(code("POST /v1beta/models/m:generateContent", both), "llm_field_twice");
}

#[test]
fn an_openai_response_is_read() {
    let request = read(
        "POST /v1/responses",
        r#"{"model":"gpt-4.1","instructions":"Be brief.","input":[
            {"role":"developer","content":"Be kind."},
            {"type":"message","role":"user","content":[{"type":"input_image","image_url":"https://example.org/x.png"},
                {"type":"input_file","file_id":"file-1"},{"type":"input_file","file_url":"https://example.org/y.pdf"}]},
            {"type":"item_reference","id":"msg_1"},
            {"type":"function_call_output","call_id":"c","output":"{\"url\":\"https://no.example\"}"}],
            "previous_response_id":"resp_1","conversation":{"id":"conv_1"},"prompt":{"id":"pmpt_1"},
            "store":false,"background":true,"stream":true,"text":{"format":{"type":"json_object"}},
            "tools":[{"type":"web_search_preview"},{"type":"code_interpreter","container":{"type":"auto","file_ids":["file-2"]}},
                {"type":"file_search","vector_store_ids":["vs_1"]},{"type":"function","name":"f"},
                {"type":"mcp","server_label":"dw","server_url":"https://mcp.example.org/"},
                {"type":"computer_use_preview"},{"type":"local_shell"},
                {"type":"shell","environment":{"type":"container_auto"}},{"type":"new_thing"}],
            "tool_choice":"required"}"#,
    );
    assert_eq!(request.prompts, [digest(&["Be brief."]), digest(&["Be kind."])]);
    assert_eq!(
        refers(&request),
        [
            (ReferenceKind::File, "file-2"),
            (ReferenceKind::VectorStore, "vs_1"),
            (ReferenceKind::Url, "https://example.org/x.png"),
            (ReferenceKind::File, "file-1"),
            (ReferenceKind::Url, "https://example.org/y.pdf"),
            (ReferenceKind::Response, "msg_1"),
            (ReferenceKind::Prompt, "pmpt_1"),
            (ReferenceKind::Response, "resp_1"),
            (ReferenceKind::Conversation, "conv_1"),
        ]
    );
    assert_eq!(
        kinds(&request),
        [
            ("web_search_preview", ToolKind::WebSearch),
            ("code_interpreter", ToolKind::CodeExecution),
            ("file_search", ToolKind::FileSearch),
            ("f", ToolKind::Function),
            ("dw", ToolKind::Mcp),
            ("computer_use_preview", ToolKind::Computer),
            ("local_shell", ToolKind::Shell),
            ("shell", ToolKind::CodeExecution),
            ("new_thing", ToolKind::Other),
        ]
    );
    assert_eq!(request.tools[4].target.as_deref(), Some("https://mcp.example.org/"));
    assert_eq!((request.format, request.tool_choice), (Format::Json, Some(ToolChoice::Required)));
    assert!(request.background && request.store == Some(false));
}

#[test]
fn an_anthropic_message_and_a_batch_are_read() {
    let params = |model: &str, most: u64| {
        format!(
            r#"{{"model":"{model}","max_tokens":{most},"system":[{{"type":"text","text":"Be brief.","cache_control":{{"type":"ephemeral"}}}}],
            "messages":[{{"role":"user","content":[{{"type":"image","source":{{"type":"url","url":"https://example.org/x.png"}}}}]}}],
            "tools":[{{"name":"f","input_schema":{{}}}},{{"type":"web_search_20250305","name":"web_search"}},
                {{"type":"bash_20250124","name":"bash"}},{{"type":"code_execution_20250522","name":"code_execution"}},
                {{"type":"computer_20250124","name":"computer"}},{{"type":"web_fetch_20250910","name":"web_fetch"}}],
            "mcp_servers":[{{"type":"url","url":"https://mcp.example.org/","name":"m"}}],
            "tool_choice":{{"type":"any"}},"stream":true}}"#
        )
    };
    let request = read("POST /v1/messages", &params("claude-sonnet-4-0", 100));
    assert_eq!(request.model.as_deref(), Some("claude-sonnet-4-0"));
    assert_eq!(request.prompts, [digest(&["Be brief."])]);
    assert_eq!(request.tool_choice, Some(ToolChoice::Required));
    assert_eq!(
        request.tools.iter().map(|tool| tool.kind.word()).collect::<Vec<_>>(),
        ["function", "web_search", "shell", "code_execution", "computer", "web_fetch", "mcp"]
    );
    assert_eq!(refers(&request), [(ReferenceKind::Url, "https://example.org/x.png")]);
    let batch = format!(
        r#"{{"requests":[{{"custom_id":"1","params":{}}},{{"custom_id":"2","params":{}}}]}}"#,
        params("a", 100),
        params("b", 50)
    );
    let request = read("POST /v1/messages/batches", &batch);
    assert_eq!(request.models().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((request.requests, request.max_output_tokens, request.prompts.len()), (2, Some(150), 2));
    assert_eq!(code("POST /v1/messages/batches", r#"{"requests":[{"custom_id":"1"}]}"#), "llm_field");
    let vertex = "POST /v1/projects/p/locations/l/publishers/anthropic/models/claude-x:streamRawPredict";
    let request = read(vertex, r#"{"anthropic_version":"vertex-2023-10-16","messages":[],"max_tokens":5}"#);
    assert_eq!(
        (request.model.as_deref(), request.streams, request.max_output_tokens),
        (Some("claude-x"), true, Some(5))
    );
    assert_eq!(read("POST /v1/messages/count_tokens", r#"{"model":"a","messages":[]}"#).shape, Shape::AnthropicCount);
}

#[test]
fn google_content_is_read() {
    let body = r#"{"systemInstruction":{"parts":[{"text":"Be brief."}]},
        "contents":[{"role":"user","parts":[{"text":"hi"},{"fileData":{"mimeType":"image/png","fileUri":"gs://b/x"}}]}],
        "tools":[{"functionDeclarations":[{"name":"f"},{"name":"g"}]},{"google_search":{}},{"codeExecution":{}},
            {"urlContext":{}},{"newThing":{}}],
        "toolConfig":{"functionCallingConfig":{"mode":"ANY"}},"cachedContent":"cachedContents/1",
        "generationConfig":{"candidateCount":3,"maxOutputTokens":7,"responseMimeType":"application/json"}}"#;
    let request = read("POST /v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", body);
    assert_eq!((request.model.as_deref(), request.streams), (Some("gemini-2.5-pro"), true));
    assert_eq!(request.prompts, [digest(&["Be brief."])]);
    assert_eq!((request.answers, request.most_output_tokens()), (3, Some(21)));
    assert_eq!((request.format, request.tool_choice.clone()), (Format::Json, Some(ToolChoice::Required)));
    assert_eq!(
        kinds(&request),
        [
            ("f", ToolKind::Function),
            ("g", ToolKind::Function),
            ("google_search", ToolKind::WebSearch),
            ("codeExecution", ToolKind::CodeExecution),
            ("urlContext", ToolKind::WebFetch),
            ("newThing", ToolKind::Other),
        ]
    );
    assert_eq!(
        refers(&request),
        [(ReferenceKind::Url, "gs://b/x"), (ReferenceKind::CachedContent, "cachedContents/1")]
    );
    let embed = "POST /v1beta/models/text-embedding-004:batchEmbedContents";
    let one = r#"{"model":"models/text-embedding-004","content":{"parts":[{"text":"x"}]}}"#;
    assert_eq!(read(embed, &format!(r#"{{"requests":[{one},{one}]}}"#)).requests, 2);
    let other = r#"{"requests":[{"model":"models/other"}]}"#;
    assert_eq!(code(embed, other), "llm_model_contradiction");
    let count = r#"{"generateContentRequest":{"model":"models/other","contents":[]}}"#;
    assert_eq!(code("POST /v1beta/models/m:countTokens", count), "llm_model_contradiction");
    let live = "GET /ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";
    assert_eq!(read(live, r#"{"setup":{"model":"models/m"}}"#).model.as_deref(), Some("m"));
}

#[test]
fn bedrock_bodies_are_read() {
    let request = read(
        "POST /model/us.amazon.nova-pro-v1%3A0/converse-stream",
        r#"{"system":[{"text":"Be brief."},{"cachePoint":{"type":"default"}}],
            "messages":[{"role":"user","content":[{"text":"hi"},
                {"document":{"format":"pdf","name":"d","source":{"s3Location":{"uri":"s3://b/d.pdf"}}}}]}],
            "toolConfig":{"tools":[{"toolSpec":{"name":"f","inputSchema":{"json":{}}}},{"systemTool":{"name":"nova_grounding"}},
                {"cachePoint":{"type":"default"}}],"toolChoice":{"tool":{"name":"f"}}},
            "additionalModelRequestFields":{"tools":[{"type":"computer_20250124","name":"computer"}]}}"#,
    );
    assert_eq!((request.model.as_deref(), request.streams), (Some("us.amazon.nova-pro-v1:0"), true));
    assert_eq!(request.prompts, [digest(&["Be brief."])]);
    assert_eq!(
        kinds(&request),
        [("f", ToolKind::Function), ("nova_grounding", ToolKind::WebSearch), ("computer", ToolKind::Computer)]
    );
    assert_eq!(request.tool_choice, Some(ToolChoice::Named("f".into())));
    assert_eq!(refers(&request), [(ReferenceKind::Url, "s3://b/d.pdf")]);
    let arn = "POST /model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aprompt%2FP%3A1/converse";
    assert_eq!(refers(&read(arn, "{}")), [(ReferenceKind::Prompt, "arn:aws:bedrock:us-east-1:1:prompt/P:1")]);
    let claude = r#"{"anthropic_version":"bedrock-2023-05-31","max_tokens":9,"system":"Be brief.","messages":[]}"#;
    let request = read("POST /model/anthropic.claude-3-haiku-20240307-v1%3A0/invoke", claude);
    assert_eq!((request.prompts.clone(), request.streams), (vec![digest(&["Be brief."])], false));
    assert_eq!(code("POST /model/m/invoke", r#"{"model":"other"}"#), "llm_model_contradiction");
    let command = r#"{"prompt":"x","num_generations":4,"max_tokens":5}"#;
    assert_eq!(read("POST /model/cohere.command-text-v14/invoke", command).most_output_tokens(), Some(20));
}

#[test]
fn local_servers_bodies_are_read() {
    let request = read(
        "POST /api/chat",
        r#"{"model":"llama3.2","messages":[{"role":"system","content":"Be brief."}],"format":"json"}"#,
    );
    assert_eq!((request.streams, request.format, request.prompts.len()), (true, Format::Json, 1));
    assert!(!read("POST /api/generate", r#"{"model":"llama3.2","prompt":"x","stream":false}"#).streams);
    assert_eq!(code("POST /api/chat", r#"{"model":"a","Model":"b","messages":[]}"#), "llm_key_case");
    assert_eq!(code("POST /api/chat", r#"{"model":"a","options":{"Num_Predict":9}}"#), "llm_key_case");
    assert_eq!(code("POST /api/chat", r#"{"MODEL":"b","messages":[]}"#), "llm_key_case");
    assert_eq!(code("POST /v1/messages", r#"{"Messages":[]}"#), "llm_key_case");
    assert_eq!(code("POST /api/chat", r#"{"text":"another API"}"#), "llm_other_shape");
    assert_eq!(code("POST /api/chat", "[]"), "llm_other_shape");
    assert_eq!(code("POST /completion", r#"{"text":"another API"}"#), "llm_other_shape");
    assert_eq!(code("POST /v1/messages", r#"{"to":"you","text":"another API"}"#), "llm_other_shape");
    let copy = read("POST /api/copy", r#"{"source":"a","destination":"b"}"#);
    assert_eq!(copy.models().collect::<Vec<_>>(), ["a", "b"]);
    let request = read("POST /completion", r#"{"prompt":"x","grammar":"root ::= \"a\"","stream":true}"#);
    assert_eq!((request.format, request.streams), (Format::Grammar, true));
}

#[test]
fn calls_without_json_are_read() {
    let limits = Limits::default();
    let route = |method, path| Route::of(method, path, None).unwrap().unwrap();
    let models = route("GET", "/v1/models").read(None, b"", &limits).unwrap();
    assert!(models.body.is_none() && models.request.model.is_none());
    let form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--x\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--x--\r\n";
    let kind = Some("multipart/form-data; boundary=x");
    let heard = route("POST", "/v1/audio/transcriptions").read(kind, form.as_bytes(), &limits).unwrap();
    assert_eq!(heard.request.model.as_deref(), Some("whisper-1"));
    let talk = "--x\r\nContent-Disposition: form-data; name=\"sdp\"\r\n\r\nv=0\r\n--x\r\n\
        Content-Disposition: form-data; name=\"session\"\r\n\r\n{\"model\":\"gpt-realtime\"}\r\n--x--\r\n";
    let talk = route("POST", "/v1/realtime/calls").read(kind, talk.as_bytes(), &limits).unwrap();
    assert_eq!(talk.request.model.as_deref(), Some("gpt-realtime"));
    let chat = route("POST", "/v1/chat/completions").read(kind, form.as_bytes(), &limits);
    assert_eq!(chat.unwrap_err(), LlmError::OtherShape);
    let file = route("POST", "/v1/files").read(kind, form.as_bytes(), &limits).unwrap();
    assert_eq!(file.request.shape, Shape::OpenAiFiles);
    let part = route("PUT", "/v1/uploads/u/parts").read(Some("application/octet-stream"), b"\xff", &limits);
    assert!(part.unwrap().body.is_none());
    let mint = read(
        "POST /v1/realtime/client_secrets",
        r#"{"session":{"type":"realtime","model":"gpt-realtime","instructions":"Be brief.",
            "audio":{"input":{"transcription":{"model":"whisper-1"}}}}}"#,
    );
    assert_eq!(mint.models().collect::<Vec<_>>(), ["gpt-realtime", "whisper-1"]);
    let session = r#"{"type":"session.update","session":{"model":"b"}}"#;
    assert_eq!(code("GET /v1/realtime?model=a", session), "llm_model_contradiction");
    let item = r#"{"type":"conversation.item.create","item":{"type":"message","role":"system","content":[{"type":"input_text","text":"Be brief."}]}}"#;
    assert_eq!(read("GET /v1/realtime?model=a", item).prompts, [digest(&["Be brief."])]);
}

#[test]
fn a_prompt_has_one_digest_whichever_api_carries_it() {
    let want = digest(&["Be brief."]);
    for (call, body) in [
        (CHAT, r#"{"model":"m","messages":[{"role":"system","content":"Be brief."}]}"#),
        (CHAT, r#"{"model":"m","messages":[{"role":"system","content":[{"type":"text","text":"Be brief."}]}]}"#),
        ("POST /v1/responses", r#"{"model":"m","instructions":"Be brief."}"#),
        ("POST /v1/messages", r#"{"model":"m","system":"Be brief.","messages":[]}"#),
        ("POST /v1beta/models/m:generateContent", r#"{"system_instruction":{"parts":{"text":"Be brief."}}}"#),
        ("POST /model/m/converse", r#"{"system":[{"text":"Be brief."}]}"#),
        ("POST /api/generate", r#"{"model":"m","system":"Be brief."}"#),
    ] {
        assert_eq!(read(call, body).prompts, [want], "{call} {body}");
    }
    let other = read(CHAT, r#"{"model":"m","messages":[{"role":"system","content":"Be brief"}]}"#);
    assert_ne!(other.prompts, [want]);
}

#[test]
fn words_are_distinct() {
    let mut words: Vec<&str> = ALL_CALLS
        .iter()
        .map(|(call, _)| {
            let (method, path) = call.split_once(' ').unwrap();
            Route::of(method, path, None).unwrap().unwrap().shape.word()
        })
        .collect();
    let calls = words.len();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), calls);
}

/// A call of every shape that has a body.
const ALL_CALLS: &[(&str, &str)] = &[
    ("POST /v1/messages/batches", "requests"),
    ("POST /v1/complete", "prompt"),
    ("POST /v1/messages/count_tokens", "messages"),
    ("POST /v1/messages", "messages"),
    ("POST /model/m/converse", "messages"),
    ("POST /model/m/converse-stream", "messages"),
    ("POST /model/m/count-tokens", "input"),
    ("POST /model/m/invoke", "prompt"),
    ("POST /model/m/invoke-with-response-stream", "prompt"),
    ("POST /v1beta/models/m:batchEmbedContents", "requests"),
    ("POST /v1beta/models/m:countTokens", "contents"),
    ("POST /v1beta/models/m:embedContent", "content"),
    ("POST /v1beta/models/m:generateContent", "contents"),
    ("POST /v1beta/interactions", "input"),
    ("POST /v1beta/models/m:predict", "instances"),
    ("POST /v1beta/models/m:streamGenerateContent", "contents"),
    ("POST /completion", "prompt"),
    ("POST /embedding", "content"),
    ("POST /api/chat", "messages"),
    ("POST /api/embed", "input"),
    ("POST /api/generate", "prompt"),
    ("POST /api/pull", "name"),
    ("POST /api/show", "name"),
    ("POST /v1/batches", "input_file_id"),
    ("POST /v1/chat/completions", "messages"),
    ("POST /v1/completions", "prompt"),
    ("POST /v1/responses/input_tokens", "input"),
    ("POST /v1/embeddings", "input"),
    ("POST /v1/images/generations", "prompt"),
    ("POST /v1/realtime/client_secrets", "session"),
    ("POST /v1/moderations", "input"),
    ("GET /v1/realtime", "session"),
    ("POST /v1/responses", "input"),
    ("GET /v1/responses", "input"),
    ("POST /v1/audio/speech", "input"),
    ("POST /v1/audio/transcriptions", "file"),
];

/// Values that are as often as not of a type that a field has.
fn any_field() -> impl Strategy<Value = Value<'static>> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-2..1000_i64).prop_map(Value::integer),
        prop::sample::select(
            &["system", "user", "m", "inf", "text", "function", "mcp", "data:image/png;base64,AA"][..]
        )
        .prop_map(Value::text),
    ];
    let key = prop::sample::select(
        &[
            "role",
            "content",
            "type",
            "text",
            "name",
            "function",
            "params",
            "model",
            "parts",
            "maxTokens",
            "url",
            "maxOutputTokens",
            "max_output_tokens",
            "num_predict",
            "source",
            "file_id",
            "id",
            "item",
            "Role",
        ][..],
    );
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::List),
            prop::collection::btree_map(key.clone(), inner, 0..4).prop_map(Value::object),
        ]
    })
}

proptest! {
    #[test]
    fn no_body_makes_it_panic(
        call in prop::sample::select(ALL_CALLS),
        field in any_field(),
        more in prop::collection::btree_map(prop::sample::select(&[
            "model", "models", "max_tokens", "maxTokens", "n", "stream", "tools", "tool_choice", "system", "instructions",
            "generationConfig", "toolConfig", "options", "fallbacks", "agent", "generation_config", "moderation", "session", "response", "container", "mcp_servers", "input",
        ][..]), any_field(), 0..4),
    ) {
        let mut body = Value::object(more);
        body.set(&[call.1], field);
        let (method, path) = call.0.split_once(' ').unwrap();
        let route = Route::of(method, path, None).unwrap().unwrap();
        let bytes = body.to_bytes();
        if let Ok(reading) = route.read(None, &bytes, &Limits::default()) {
            // What is sent on is read the same.
            let sent = reading.body.unwrap().to_bytes();
            let again = route.read(None, &sent, &Limits::default()).unwrap();
            prop_assert_eq!(again.request, reading.request);
        }
    }

    #[test]
    fn more_said_never_counts_less(said in "\\PC{0,40}", more in "\\PC{0,40}") {
        let body = |text: &str| Value::object([("model", "m".into()), ("input", Value::text(text.to_owned()))]).to_bytes();
        let route = Route::of("POST", "/v1/embeddings", None).unwrap().unwrap();
        let count = |bytes: &[u8]| Request::of(&route, &parse(bytes, &Limits::default()).unwrap()).unwrap().input_tokens;
        let both = format!("{said}{more}");
        prop_assert!(count(&body(&both)) >= count(&body(&said)));
    }
}
