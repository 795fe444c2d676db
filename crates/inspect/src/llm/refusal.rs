//! Answers of our own, in the form in which each API says no, so that an agent's client library understands them.

use super::{Api, Framing, Shape};
use crate::json::Value;
use crate::{eventstream, sse};

/// Why a call of a model is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason<'a> {
    /// The budget is used up.
    BudgetExhausted {
        /// When there is some again, in seconds from now.
        retry_after_s: Option<u64>,
    },
    /// The model is not granted.
    ModelNotGranted {
        /// The model, as the call names it.
        model: &'a str,
    },
    /// The call is not granted.
    NotGranted,
}

/// A refusal of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// Why.
    pub reason: Reason<'a>,
    /// The id by which the operator finds the call.
    pub call: &'a str,
}

/// An answer to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers beside the length.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Refusal<'_> {
    /// The whole answer to a call that was not sent on.
    ///
    /// # Source
    /// The APIs' references: OpenAI, "Error codes"; Anthropic, "Errors"; Google, `google.rpc.Status`; Amazon Bedrock,
    /// "Common errors"; Ollama, "Errors". `x-should-retry` is what the libraries of OpenAI and Anthropic heed.
    #[must_use]
    pub fn answer(&self, shape: Shape) -> Answer {
        let mut headers = vec![("content-type", "application/json".to_owned())];
        if let Reason::BudgetExhausted { retry_after_s } = self.reason {
            headers.extend(retry_after_s.map(|seconds| ("retry-after", seconds.to_string())));
        }
        match shape.api() {
            // A second try at once would only be refused again.
            Api::Anthropic | Api::OpenAi => headers.push(("x-should-retry", "false".to_owned())),
            Api::Bedrock => headers.push(("x-amzn-errortype", self.bedrock_error().0.to_owned())),
            _ => {}
        }
        Answer { status: self.status(), headers, body: self.error(shape.api()).to_bytes() }
    }

    /// The bytes that end a stream with an error, after whole events.
    ///
    /// `sequence` is the number of the last event, where they are numbered ([`super::Metered::sequence`]). Of
    /// [`Framing::Json`], only lines have such an end, and so it is empty for others; there and for [`Framing::Opaque`]
    /// a stream can only be broken off.
    #[must_use]
    pub fn ending(&self, shape: Shape, framing: Framing, sequence: Option<u64>) -> Vec<u8> {
        match (framing, shape) {
            (Framing::Opaque, _) => Vec::new(),
            (Framing::EventStream, _) => self.bedrock_exception(),
            (Framing::Messages, _) => self.message().to_bytes(),
            (Framing::Json, Shape::OllamaChat | Shape::OllamaGenerate | Shape::OllamaManage) => {
                [self.error(Api::Ollama).to_bytes(), b"\n".to_vec()].concat()
            }
            (Framing::Json, _) => Vec::new(),
            (Framing::Sse, Shape::OpenAiResponses) => {
                let event = Value::object([
                    ("type", Value::text("error")),
                    ("code", Value::text(self.word())),
                    ("message", Value::text(self.words())),
                    ("param", Value::Null),
                    ("sequence_number", Value::count(sequence.map_or(0, |last| last.saturating_add(1)))),
                ]);
                sse::encode(Some("error"), None, &event.to_bytes())
            }
            (Framing::Sse, shape) => match shape.api() {
                Api::Anthropic => sse::encode(Some("error"), None, &self.error(Api::Anthropic).to_bytes()),
                Api::OpenAi => {
                    [sse::encode(None, None, &self.error(Api::OpenAi).to_bytes()), sse::encode(None, None, b"[DONE]")]
                        .concat()
                }
                api => sse::encode(None, None, &self.error(api).to_bytes()),
            },
        }
    }

    const fn status(&self) -> u16 {
        match self.reason {
            Reason::BudgetExhausted { .. } => 429,
            Reason::ModelNotGranted { .. } | Reason::NotGranted => 403,
        }
    }

    /// A stable word for the reason.
    const fn word(&self) -> &'static str {
        match self.reason {
            Reason::BudgetExhausted { .. } => "insufficient_quota",
            Reason::ModelNotGranted { .. } => "model_not_found",
            Reason::NotGranted => "permission_denied",
        }
    }

    /// The reason in words: as much as the agent may know.
    fn words(&self) -> String {
        let call = self.call;
        match self.reason {
            Reason::BudgetExhausted { retry_after_s: Some(seconds) } => {
                format!("the budget is used up; there is some again in {seconds} s (ringfence {call})")
            }
            Reason::BudgetExhausted { retry_after_s: None } => format!("the budget is used up (ringfence {call})"),
            Reason::ModelNotGranted { model } => {
                format!("model `{}` is not granted (ringfence {call})", super::request::clip(model))
            }
            Reason::NotGranted => format!("this call is not granted (ringfence {call})"),
        }
    }

    /// The error as an API says it.
    fn error(&self, api: Api) -> Value<'static> {
        let words = Value::text(self.words());
        match api {
            Api::Anthropic => Value::object([
                ("type", Value::text("error")),
                ("error", Value::object([("type", Value::text(self.anthropic_type())), ("message", words)])),
                ("request_id", Value::text(self.call.to_owned())),
            ]),
            Api::Bedrock => Value::object([("message", words)]),
            Api::Google => {
                let (code, status) = match self.reason {
                    Reason::BudgetExhausted { .. } => (429, "RESOURCE_EXHAUSTED"),
                    _ => (403, "PERMISSION_DENIED"),
                };
                let mut error =
                    vec![("code", Value::integer(code)), ("message", words), ("status", Value::text(status))];
                if let Reason::BudgetExhausted { retry_after_s: Some(seconds) } = self.reason {
                    let delay = Value::object([
                        ("@type", Value::text("type.googleapis.com/google.rpc.RetryInfo")),
                        ("retryDelay", Value::text(format!("{seconds}s"))),
                    ]);
                    error.push(("details", Value::List(vec![delay])));
                }
                Value::object([("error", Value::object(error))])
            }
            Api::Llama => Value::object([(
                "error",
                Value::object([
                    ("code", Value::integer(i64::from(self.status()))),
                    ("message", words),
                    ("type", Value::text(self.anthropic_type())),
                ]),
            )]),
            Api::Ollama => Value::object([("error", words)]),
            Api::OpenAi => Value::object([("error", self.openai_error())]),
        }
    }

    fn openai_error(&self) -> Value<'static> {
        let kind = match self.reason {
            Reason::BudgetExhausted { .. } => "insufficient_quota",
            _ => "invalid_request_error",
        };
        Value::object([
            ("message", Value::text(self.words())),
            ("type", Value::text(kind)),
            ("param", Value::Null),
            ("code", Value::text(self.word())),
        ])
    }

    const fn anthropic_type(&self) -> &'static str {
        match self.reason {
            Reason::BudgetExhausted { .. } => "rate_limit_error",
            _ => "permission_error",
        }
    }

    /// The error of an answer, and that of a stream, which knows fewer.
    const fn bedrock_error(&self) -> (&'static str, &'static str) {
        match self.reason {
            Reason::BudgetExhausted { .. } => ("ThrottlingException", "throttlingException"),
            _ => ("AccessDeniedException", "validationException"),
        }
    }

    fn bedrock_exception(&self) -> Vec<u8> {
        let headers = [
            (":message-type", "exception"),
            (":exception-type", self.bedrock_error().1),
            (":content-type", "application/json"),
        ];
        eventstream::encode(&headers, &self.error(Api::Bedrock).to_bytes()).unwrap_or_default()
    }

    /// An error as a message of a WebSocket.
    fn message(&self) -> Value<'static> {
        Value::object([
            ("type", Value::text("error")),
            ("event_id", Value::text(self.call.to_owned())),
            ("error", self.openai_error()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::eventstream::EventStream;
    use crate::sse::Sse;

    const BUDGET: Refusal<'_> = Refusal { reason: Reason::BudgetExhausted { retry_after_s: Some(60) }, call: "c-1" };
    const MODEL: Refusal<'_> = Refusal { reason: Reason::ModelNotGranted { model: "gpt-9" }, call: "c-1" };
    const CALL: Refusal<'_> = Refusal { reason: Reason::NotGranted, call: "c-1" };

    fn said(refusal: &Refusal<'_>, shape: Shape) -> (u16, String) {
        let answer = refusal.answer(shape);
        (answer.status, String::from_utf8(answer.body).unwrap())
    }

    #[test]
    fn each_api_says_no_in_its_own_form() {
        for (refusal, shape, status, body) in [
            (
                CALL,
                Shape::OpenAiChat,
                403,
                r#"{"error":{"message":"this call is not granted (ringfence c-1)","type":"invalid_request_error","param":null,"code":"permission_denied"}}"#,
            ),
            (
                MODEL,
                Shape::OpenAiResponses,
                403,
                r#"{"error":{"message":"model `gpt-9` is not granted (ringfence c-1)","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
            ),
            (
                BUDGET,
                Shape::OpenAiEmbed,
                429,
                r#"{"error":{"message":"the budget is used up; there is some again in 60 s (ringfence c-1)","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
            ),
            (
                CALL,
                Shape::AnthropicMessages,
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"this call is not granted (ringfence c-1)"},"request_id":"c-1"}"#,
            ),
            (
                BUDGET,
                Shape::GoogleGenerate,
                429,
                r#"{"error":{"code":429,"message":"the budget is used up; there is some again in 60 s (ringfence c-1)","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"60s"}]}}"#,
            ),
            (CALL, Shape::BedrockConverse, 403, r#"{"message":"this call is not granted (ringfence c-1)"}"#),
            (CALL, Shape::OllamaChat, 403, r#"{"error":"this call is not granted (ringfence c-1)"}"#),
            (
                CALL,
                Shape::LlamaCompletion,
                403,
                r#"{"error":{"code":403,"message":"this call is not granted (ringfence c-1)","type":"permission_error"}}"#,
            ),
        ] {
            assert_eq!(said(&refusal, shape), (status, body.to_owned()));
        }
        let headers = BUDGET.answer(Shape::OpenAiChat).headers;
        assert!(
            headers.contains(&("retry-after", "60".into())) && headers.contains(&("x-should-retry", "false".into()))
        );
        assert!(
            BUDGET.answer(Shape::BedrockInvoke).headers.contains(&("x-amzn-errortype", "ThrottlingException".into()))
        );
        assert!(CALL.answer(Shape::OllamaChat).headers.iter().all(|(name, _)| *name != "retry-after"));
    }

    #[test]
    fn streams_end_with_an_error_of_their_form() {
        let text = |shape, framing| String::from_utf8(BUDGET.ending(shape, framing, Some(6))).unwrap();
        assert!(text(Shape::OpenAiChat, Framing::Sse).starts_with("data: {\"error\":{"));
        assert!(text(Shape::OpenAiChat, Framing::Sse).ends_with("}\n\ndata: [DONE]\n\n"));
        let responses = text(Shape::OpenAiResponses, Framing::Sse);
        assert!(responses.starts_with("event: error\ndata: {\"type\":\"error\",\"code\":\"insufficient_quota\""));
        assert!(responses.contains("\"sequence_number\":7"));
        assert!(text(Shape::AnthropicMessages, Framing::Sse).starts_with("event: error\ndata: {\"type\":\"error\""));
        assert!(text(Shape::GoogleStreamGenerate, Framing::Sse).starts_with("data: {\"error\":{\"code\":429"));
        assert!(text(Shape::OllamaChat, Framing::Json).ends_with("\"}\n"));
        assert!(text(Shape::OpenAiRealtime, Framing::Messages).starts_with("{\"type\":\"error\""));
        assert_eq!(text(Shape::OpenAiSpeech, Framing::Opaque), "");
        let frame = BUDGET.ending(Shape::BedrockConverseStream, Framing::EventStream, None);
        let mut stream = EventStream::new(4096);
        let message = stream.next(&mut &frame[..]).unwrap().unwrap();
        assert_eq!(message.header(":message-type"), Some("exception"));
        assert_eq!(message.header(":exception-type"), Some("throttlingException"));
    }

    proptest! {
        #[test]
        fn no_name_breaks_the_form(model in ".{0,200}", call in ".{0,20}") {
            let refusal = Refusal { reason: Reason::ModelNotGranted { model: &model }, call: &call };
            for shape in [Shape::OpenAiChat, Shape::AnthropicMessages, Shape::GoogleGenerate, Shape::OllamaChat] {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&refusal.answer(shape).body).is_ok());
                let ending = refusal.ending(shape, Framing::Sse, None);
                let (mut sse, mut rest, mut events) = (Sse::new(1 << 16), &ending[..], 0);
                while let Some(piece) = sse.next(&mut rest) {
                    events += usize::from(piece.event.is_some());
                }
                prop_assert_eq!((events, sse.held()), (if shape == Shape::OpenAiChat { 2 } else { 1 }, 0));
            }
        }
    }
}
