//! Answers as upstreams send them, and what is counted.

use proptest::prelude::*;

use super::super::{Route, Shape, Source};
use super::*;
use crate::eventstream;

fn request(shape: Shape, input_tokens: u64) -> Request {
    let route = Route { shape, model: None, streams: None, certain: true };
    Request { input_tokens, ..Request::bare(&route) }
}

fn metered(framing: Framing, chunks: &[&[u8]]) -> Metered {
    let mut meter = Meter::new(&request(Shape::OpenAiChat, 10), framing);
    chunks.iter().for_each(|chunk| meter.push(chunk));
    meter.metered()
}

/// What a whole text reports: input, cached, written, output, reasoning.
fn counts(framing: Framing, text: &str) -> Option<[u64; 5]> {
    let whole = metered(framing, &[text.as_bytes()]);
    let bytes: Vec<&[u8]> = text.as_bytes().chunks(7).collect();
    assert_eq!(metered(framing, &bytes).usage, whole.usage, "cuts matter in {text}");
    let usage = whole.usage;
    (usage.source == Source::Reported).then_some([
        usage.input,
        usage.cached,
        usage.cache_written,
        usage.output,
        usage.reasoning,
    ])
}

#[test]
fn whole_answers_are_counted() {
    for (text, want) in [
        // OpenAI: cached within input, reasoning within output.
        (
            r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":20,"completion_tokens":30,"total_tokens":50,
                "prompt_tokens_details":{"cached_tokens":5},"completion_tokens_details":{"reasoning_tokens":25}}}"#,
            [20, 5, 0, 30, 25],
        ),
        (
            r#"{"output":[],"usage":{"input_tokens":20,"input_tokens_details":{"cached_tokens":5},"output_tokens":30,
                "output_tokens_details":{"reasoning_tokens":25},"total_tokens":50}}"#,
            [20, 5, 0, 30, 25],
        ),
        (r#"{"data":[{"embedding":[0.1,2]}],"usage":{"prompt_tokens":8,"total_tokens":8}}"#, [8, 0, 0, 0, 0]),
        (r#"{"data":[],"usage":{"total_tokens":8}}"#, [8, 0, 0, 0, 0]),
        // Thought that is counted in the total only.
        (r#"{"usage":{"prompt_tokens":20,"completion_tokens":30,"total_tokens":150}}"#, [20, 0, 0, 130, 0]),
        (r#"{"choices":[{"usage":{"prompt_tokens":1,"completion_tokens":2}}]}"#, [1, 0, 0, 2, 0]),
        // Anthropic: cached and written beside input.
        (
            r#"{"content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":20,"cache_read_input_tokens":100,
                "cache_creation_input_tokens":50,"output_tokens":30}}"#,
            [170, 100, 50, 30, 0],
        ),
        (
            r#"{"usage":{"input_tokens":20,"cache_creation_input_tokens":50,"cache_creation":{"ephemeral_1h_input_tokens":40},
                "output_tokens":30,"output_tokens_details":{"thinking_tokens":9}}}"#,
            [70, 0, 50, 30, 9],
        ),
        (
            r#"{"usage":{"prompt_tokens":90,"prompt_tokens_details":{"cached_tokens":5,"cache_write_tokens":50},"completion_tokens":1}}"#,
            [90, 5, 50, 1, 0],
        ),
        // Google's interactions: thought is in the total only.
        (
            r#"{"steps":[],"usage":{"total_input_tokens":20,"total_cached_tokens":5,"total_output_tokens":30,
                "total_thought_tokens":9,"total_tokens":59}}"#,
            [20, 5, 0, 39, 9],
        ),
        // Cohere.
        (r#"{"usage":{"tokens":{"input_tokens":20,"output_tokens":30}}}"#, [20, 0, 0, 30, 0]),
        // A mixture that counts what is cached within the input.
        (
            r#"{"usage":{"prompt_tokens":120,"cache_read_input_tokens":100,"completion_tokens":30}}"#,
            [120, 100, 0, 30, 0],
        ),
        (
            r#"{"candidates":[],"usageMetadata":{"promptTokenCount":20,"candidatesTokenCount":30,"thoughtsTokenCount":40,
                "toolUsePromptTokenCount":5,"cachedContentTokenCount":10,"totalTokenCount":95}}"#,
            [25, 10, 0, 70, 40],
        ),
        (
            r#"{"output":{"message":{"content":[{"text":"hi"}]}},"usage":{"inputTokens":20,"outputTokens":30,"totalTokens":150,
                "cacheReadInputTokens":100,"cacheWriteInputTokens":0}}"#,
            [120, 100, 0, 30, 0],
        ),
        (r#"{"message":{"content":"hi"},"done":true,"prompt_eval_count":20,"eval_count":30}"#, [20, 0, 0, 30, 0]),
        (r#"{"content":"hi","tokens_predicted":30,"tokens_evaluated":20}"#, [20, 0, 0, 30, 0]),
        (r#"{"inputTextTokenCount":20,"results":[{"tokenCount":30,"outputText":"hi"}]}"#, [20, 0, 0, 30, 0]),
        (r#"{"generation":"hi","prompt_token_count":20,"generation_token_count":30}"#, [20, 0, 0, 30, 0]),
        // Google without `alt=sse`: a list that grows.
        (
            r#"[{"usageMetadata":{"promptTokenCount":20,"candidatesTokenCount":1}},
                {"usageMetadata":{"promptTokenCount":20,"candidatesTokenCount":30}}]"#,
            [20, 0, 0, 30, 0],
        ),
        // Ollama: lines.
        (
            "{\"message\":{\"content\":\"h\"},\"done\":false}\n{\"done\":true,\"prompt_eval_count\":20,\"eval_count\":30}\n",
            [20, 0, 0, 30, 0],
        ),
    ] {
        assert_eq!(counts(Framing::Json, text), Some(want), "{text}");
    }
}

#[test]
fn what_a_model_says_is_no_usage() {
    for text in [
        r#"{"content":[{"type":"tool_use","input":{"usage":{"input_tokens":1,"output_tokens":1}}}]}"#,
        r#"{"choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":1}"}}]}"#,
        r#"{"output":{"usage":{"inputTokens":1}}}"#,
        r#"{"candidates":[{"content":{"parts":[{"functionCall":{"args":{"usageMetadata":{"promptTokenCount":1}}}}]}}]}"#,
        r#"{"usage":{"prompt_tokens":-1,"completion_tokens":1.5}}"#,
        r#"{"usage":{"prompt_tokens":99999999999999}}"#,
        r#"{"usage":null}"#,
        "not json at all",
        "",
    ] {
        assert_eq!(counts(Framing::Json, text), None, "{text}");
    }
}

#[test]
fn streams_are_counted() {
    let chat = "data: {\"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{\"delta\":{\"content\":\"hi \"}}],\"usage\":null}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"there\"}}],\"usage\":null}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":30}}\n\ndata: [DONE]\n\n";
    assert_eq!(counts(Framing::Sse, chat), Some([20, 0, 0, 30, 0]));
    let heard = metered(Framing::Sse, &[chat.as_bytes()]);
    assert_eq!((heard.estimate.output, heard.model.as_deref()), (2, Some("gpt-4o-mini-2024-07-18")));

    let anthropic = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\
        \"usage\":{\"input_tokens\":20,\"cache_read_input_tokens\":7,\"output_tokens\":1}}}\n\n\
        event: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"hi there\"}}\n\n\
        event: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":30}}\n\n";
    assert_eq!(counts(Framing::Sse, anthropic), Some([27, 7, 0, 30, 0]));
    assert_eq!(metered(Framing::Sse, &[anthropic.as_bytes()]).model.as_deref(), Some("claude-x"));

    let responses = "event: response.output_text.delta\ndata: {\"delta\":\"hi there\",\"sequence_number\":4}\n\n\
        event: response.output_text.done\ndata: {\"sequence_number\":5,\"text_\":\"hi there\"}\n\n\
        event: response.completed\ndata: {\"sequence_number\":6,\"response\":{\"output\":[{\"text\":\"hi there\"}],\
        \"usage\":{\"input_tokens\":20,\"output_tokens\":30,\"output_tokens_details\":{\"reasoning_tokens\":9}}}}\n\n";
    assert_eq!(counts(Framing::Sse, responses), Some([20, 0, 0, 30, 9]));
    let heard = metered(Framing::Sse, &[responses.as_bytes()]);
    assert_eq!((heard.estimate.output, heard.sequence), (2, Some(6)));

    let google = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"hi\"}]}}],\"usageMetadata\":{\"promptTokenCount\":20}}\r\n\r\n\
        data: {\"usageMetadata\":{\"promptTokenCount\":20,\"candidatesTokenCount\":30}}\r\n\r\n";
    assert_eq!(counts(Framing::Sse, google), Some([20, 0, 0, 30, 0]));

    let interaction = "event: step.delta\ndata: {\"delta\":{\"type\":\"text\",\"text\":\"hi there\"},\"event_type\":\"step.delta\"}\n\n\
        event: interaction.completed\ndata: {\"interaction\":{\"usage\":{\"total_input_tokens\":20,\"total_output_tokens\":30}}}\n\n";
    assert_eq!(counts(Framing::Sse, interaction), Some([20, 0, 0, 30, 0]));
    assert_eq!(metered(Framing::Sse, &[interaction.as_bytes()]).estimate.output, 2);

    let groq = "data: {\"choices\":[],\"x_groq\":{\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":30}}}\n\n";
    assert_eq!(counts(Framing::Sse, groq), Some([20, 0, 0, 30, 0]));
}

#[test]
fn an_event_too_large_to_hold_is_counted() {
    let image = "A".repeat(3 * MAX_EVENT_BYTES);
    let stream = format!(
        "event: response.completed\ndata: {{\"response\":{{\"output\":[{{\"result\":\"{image}\"}}],\
        \"usage\":{{\"input_tokens\":20,\"output_tokens\":30}}}}}}\n\ndata: {{\"delta\":\"x\"}}\n\n"
    );
    assert_eq!(counts(Framing::Sse, &stream), Some([20, 0, 0, 30, 0]));
}

#[test]
fn streams_of_bedrock_are_counted() {
    let frame = |kind: &str, payload: &str| eventstream::encode(&[(":event-type", kind)], payload.as_bytes()).unwrap();
    let converse = [
        frame("contentBlockDelta", r#"{"delta":{"text":"hi there"}}"#),
        frame(
            "metadata",
            r#"{"usage":{"inputTokens":20,"outputTokens":30,"totalTokens":50},"metrics":{"latencyMs":1}}"#,
        ),
    ]
    .concat();
    let heard = metered(Framing::EventStream, &converse.chunks(5).collect::<Vec<_>>());
    assert_eq!((heard.usage.input, heard.usage.output, heard.estimate.output, heard.broken), (20, 30, 2, false));
    // {"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":20,"outputTokenCount":30}}
    let chunk = "eyJ0eXBlIjoibWVzc2FnZV9zdG9wIiwiYW1hem9uLWJlZHJvY2staW52b2NhdGlvbk1ldHJpY3MiOnsiaW5wdXRUb2tlbkNvdW50Ijoy\
        MCwib3V0cHV0VG9rZW5Db3VudCI6MzB9fQ==";
    let invoke = frame("chunk", &format!(r#"{{"bytes":"{chunk}","p":"abc"}}"#));
    let heard = metered(Framing::EventStream, &[&invoke]);
    assert_eq!((heard.usage.input, heard.usage.output), (20, 30));
    assert!(metered(Framing::EventStream, &[b"no frame of an event stream"]).broken);
    let mut meter = Meter::new(&request(Shape::BedrockInvoke, 1), Framing::Json);
    meter.header("X-Amzn-Bedrock-Input-Token-Count", "20");
    meter.header("x-amzn-bedrock-output-token-count", "30");
    meter.push(br#"{"completion":"hi"}"#);
    assert_eq!((meter.metered().usage.input, meter.metered().usage.output), (20, 30));
}

#[test]
fn messages_of_a_websocket_add_up() {
    let mut meter = Meter::new(&request(Shape::OpenAiRealtime, 0), Framing::Opaque);
    let done = br#"{"type":"response.done","response":{"usage":{"input_tokens":20,"output_tokens":30,
        "input_token_details":{"cached_tokens":5}}}}"#;
    meter.input(9);
    meter.push(br#"{"type":"response.output_text.delta","delta":"hi there"}"#);
    meter.push(done);
    meter.push(done);
    let heard = meter.metered();
    assert_eq!((heard.usage.input, heard.usage.cached, heard.usage.output), (40, 10, 60));
    assert_eq!(heard.estimate, Usage::estimated(9, 2));
}

#[test]
fn what_is_not_reported_is_estimated_and_what_is_false_is_suspected() {
    let said = "word ".repeat(1000);
    let stream = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{said}\"}}}}]}}\n\n");
    let silent = metered(Framing::Sse, &[stream.as_bytes()]);
    assert_eq!((silent.usage, silent.suspicion()), (Usage::estimated(10, 1250), None));
    let lie = format!("{stream}data: {{\"usage\":{{\"prompt_tokens\":10,\"completion_tokens\":1}}}}\n\n");
    let lied = metered(Framing::Sse, &[lie.as_bytes()]);
    assert_eq!((lied.usage.output, lied.suspicion()), (1, Some(Suspicion::TooLow)));
    assert_eq!((lied.charge().input, lied.charge().output), (10, 1250));
    let much = r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":10,"completion_tokens":90000}}"#;
    assert_eq!(metered(Framing::Json, &[much.as_bytes()]).suspicion(), Some(Suspicion::TooHigh));
    let thought = r#"{"choices":[{"message":{"content":"hi"}}],"usage":{"prompt_tokens":10,"completion_tokens":90000,
        "completion_tokens_details":{"reasoning_tokens":89999}}}"#;
    assert_eq!(metered(Framing::Json, &[thought.as_bytes()]).suspicion(), None);
    assert_eq!(metered(Framing::Opaque, &[b"RIFF"]).usage, Usage::estimated(10, 0));
}

#[test]
fn framings_are_told_from_content_types() {
    for (kind, want) in [
        ("text/event-stream; charset=utf-8", Framing::Sse),
        ("application/json", Framing::Json),
        ("Application/X-NDJSON", Framing::Json),
        ("application/vnd.amazon.eventstream", Framing::EventStream),
        ("audio/mpeg", Framing::Opaque),
        ("", Framing::Opaque),
    ] {
        assert_eq!(Framing::of(kind), want, "{kind}");
    }
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80),
        framing in prop::sample::select(&[Framing::EventStream, Framing::Json, Framing::Messages, Framing::Opaque, Framing::Sse][..]),
        size in 1..20_usize,
    ) {
        let heard = metered(framing, &bytes.chunks(size).collect::<Vec<_>>());
        prop_assert!(heard.charge().output >= heard.usage.output);
    }

    #[test]
    fn no_report_makes_it_overflow(numbers in prop::collection::vec(any::<u64>(), 9)) {
        let n = |at: usize| numbers[at];
        let text = format!(
            r#"{{"usage":{{"prompt_tokens":{},"input_tokens":{},"output_tokens":{},"total_tokens":{},"cache_read_input_tokens":{},
                "cache_creation_input_tokens":{},"thoughtsTokenCount":{},"toolUsePromptTokenCount":{},"cachedContentTokenCount":{}}}}}"#,
            n(0), n(1), n(2), n(3), n(4), n(5), n(6), n(7), n(8),
        );
        let usage = metered(Framing::Json, &[text.as_bytes()]).usage;
        prop_assert!(usage.cached <= usage.input && usage.reasoning <= usage.output);
    }
}
