//! How a call is refused: in the words of the protocol that the agent speaks, so that its library understands and it does
//! not try again at once; and with no more than the agent may know. The operator finds the rest by the call's id.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Response, StatusCode};
use ringfence_inspect::llm::{Reason, Refusal, Shape};
use ringfence_model::CallId;

use crate::body::DownBody;

/// What the agent is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A budget is used up; when there is some again.
    Budget(Option<Duration>),
    /// Too much is going on at once, and of what.
    Busy(&'static str),
    /// It is not granted.
    Denied,
    /// It is not granted with this model.
    Model(String),
    /// It was granted and failed, and how.
    Failed(&'static str),
}

/// Which protocol's form an answer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// gRPC.
    Grpc,
    /// An API of language models.
    Llm(Shape),
    /// Anything else over HTTP.
    #[default]
    Problem,
}

impl Form {
    /// The form that a request with these headers understands.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let grpc = headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if grpc { Self::Grpc } else { Self::Problem }
    }
}

impl Told {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Budget(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Denied | Self::Model(_) => StatusCode::FORBIDDEN,
            Self::Failed(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// A stable code.
    const fn code(&self) -> &'static str {
        match self {
            Self::Budget(_) => "ringfence.budget",
            Self::Busy(_) => "ringfence.busy",
            Self::Denied | Self::Model(_) => "ringfence.denied",
            Self::Failed(_) => "ringfence.upstream",
        }
    }

    const fn words(&self) -> &'static str {
        match self {
            Self::Budget(_) => "the budget is used up",
            Self::Busy(words) | Self::Failed(words) => words,
            Self::Denied | Self::Model(_) => "this call is not granted",
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn answer(&self, form: Form, id: Option<&CallId>) -> Response<DownBody> {
        let call = id.map_or("", CallId::as_str);
        match form {
            Form::Grpc => self.grpc(call),
            Form::Llm(shape) if !matches!(self, Self::Busy(_) | Self::Failed(_)) => self.llm(shape, call),
            Form::Llm(_) | Form::Problem => self.problem(call),
        }
    }

    fn llm(&self, shape: Shape, call: &str) -> Response<DownBody> {
        let reason = match self {
            Self::Budget(again) => Reason::BudgetExhausted { retry_after_s: again.map(seconds) },
            Self::Model(model) => Reason::ModelNotGranted { model },
            Self::Busy(_) | Self::Denied | Self::Failed(_) => Reason::NotGranted,
        };
        let answer = Refusal { reason, call }.answer(shape);
        let mut response = Response::new(DownBody::own(Bytes::from(answer.body)));
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::FORBIDDEN);
        for (name, value) in answer.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        response
    }

    /// # Source
    /// RFC 9457.
    fn problem(&self, call: &str) -> Response<DownBody> {
        let (status, code, words) = (self.status(), self.code(), self.words());
        let kind = code.replace('.', ":");
        let text = format!(
            r#"{{"type":"urn:{kind}","title":"{words}","status":{},"code":"{code}","call":"{call}"}}"#,
            status.as_u16()
        );
        let mut response = Response::new(DownBody::own(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Self::Budget(Some(again)) = self {
            headers.insert(RETRY_AFTER, seconds(*again).into());
        }
        if matches!(self, Self::Busy(_)) {
            headers.insert(RETRY_AFTER, 1.into());
        }
        response
    }

    /// An answer of headers alone.
    ///
    /// # Source
    /// gRPC over HTTP/2, "Trailers-Only"; gRPC status codes.
    fn grpc(&self, call: &str) -> Response<DownBody> {
        let code = match self {
            Self::Budget(_) => 8,
            Self::Denied | Self::Model(_) => 7,
            Self::Busy(_) | Self::Failed(_) => 14,
        };
        let mut response = Response::new(DownBody::Own(None));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(HeaderName::from_static("grpc-status"), code.into());
        if let Ok(words) = HeaderValue::from_str(&format!("{} (ringfence {call})", self.words())) {
            headers.insert(HeaderName::from_static("grpc-message"), words);
        }
        response
    }
}

/// Answers of JSON-RPC to what was not sent on.
#[must_use]
pub fn rpc(answers: &[u8], id: &CallId) -> Response<DownBody> {
    let text = String::from_utf8_lossy(answers).replace(crate::rpc::CALL, id.as_str());
    let mut response = Response::new(DownBody::own(Bytes::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Whole seconds, never too few.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
