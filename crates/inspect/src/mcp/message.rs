//! Messages: what they are, and what they are about.

use std::collections::BTreeSet;

use super::method::{Form, Method};
use crate::base64;
use crate::json::{self, JsonError, Limits, Object, Value};
use crate::sse;

/// The longest id that is a text, and the longest method, in bytes.
const MAX_WORD_BYTES: usize = 512;

/// What was sent at once: a message, or a batch of some.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload<'a> {
    /// Whether it is a batch; revisions from 2025-06-18 on have none.
    pub batch: bool,
    /// The messages, in order; at least one.
    pub messages: Vec<Message<'a>>,
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message<'a> {
    kind: Kind,
    value: Value<'a>,
}

/// What a message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An answer that says why there is none.
    Error {
        /// The request's id; `None` if that was not understood.
        id: Option<Id>,
        /// The code.
        code: i64,
    },
    /// Something told.
    Notification {
        /// What.
        method: Method,
    },
    /// Something asked.
    Request {
        /// The id that the answer will have.
        id: Id,
        /// What.
        method: Method,
    },
    /// An answer.
    Response {
        /// The request's id.
        id: Id,
    },
}

/// The id of a request. `1` and `"1"` are two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

/// A call of a tool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ToolCall<'v, 'a> {
    /// The tool.
    pub name: &'v str,
    /// Its arguments, an object.
    pub arguments: Option<&'v Object<'a>>,
}

/// Why something is no message, or may be two.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum McpError {
    /// An answer without the form of one.
    #[error("an answer is malformed")]
    Answer,
    /// A message that could be a request, a response or an error.
    #[error("a message is more than one of request, response and error, or none")]
    Ambiguous,
    /// A batch of nothing, or of too much.
    #[error("a batch has no messages or too many")]
    Batch,
    /// Two requests of one batch with one id.
    #[error("two requests of a batch have one id")]
    DuplicateId,
    /// A header that says another thing than the body.
    #[error("a header and the body name two things")]
    Header,
    /// An id that is no text and no whole number, or none where there must be one, or one where there must be none.
    #[error("a message has not the id that it must have")]
    Id,
    /// Bytes that are not plain JSON.
    #[error("the message is not plain JSON: {0}")]
    Json(#[from] JsonError),
    /// A key that some readers take for another.
    #[error("some readers take the key `{0}` for another")]
    KeyCase(String),
    /// A method that is no text, or too long.
    #[error("a method is no text or too long")]
    Method,
    /// Parameters that lack what the method is about.
    #[error("the parameters of `{0}` do not say what it is about")]
    Params(&'static str),
    /// Not JSON-RPC 2.0.
    #[error("a message does not say that it is JSON-RPC 2.0")]
    Version,
}

impl McpError {
    /// A stable code such as `mcp_ambiguous`, or that of the JSON problem.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Answer => "mcp_answer",
            Self::Ambiguous => "mcp_ambiguous",
            Self::Batch => "mcp_batch",
            Self::DuplicateId => "mcp_duplicate_id",
            Self::Header => "mcp_header",
            Self::Id => "mcp_id",
            Self::Json(error) => error.code(),
            Self::KeyCase(_) => "mcp_key_case",
            Self::Method => "mcp_method",
            Self::Params(_) => "mcp_params",
            Self::Version => "mcp_version",
        }
    }
}

impl<'a> Payload<'a> {
    /// Reads a message, or a batch of at most `most`.
    ///
    /// # Errors
    /// [`McpError`] for whatever is no message, or may be understood in two ways. A request whose method is known to be a
    /// notification is one such, and a notification whose method is known to be a request: a server might run it.
    pub fn parse(bytes: &'a [u8], limits: &Limits, most: usize) -> Result<Self, McpError> {
        Self::of(json::parse(bytes, limits)?, most)
    }

    /// Reads a value that was parsed already; as [`Payload::parse`].
    ///
    /// # Errors
    /// As there.
    pub fn of(value: Value<'a>, most: usize) -> Result<Self, McpError> {
        let (batch, values) = match value {
            Value::List(list) => (true, list),
            one => (false, vec![one]),
        };
        if values.is_empty() || values.len() > most {
            return Err(McpError::Batch);
        }
        let messages: Vec<Message<'a>> = values.into_iter().map(Message::of).collect::<Result<_, _>>()?;
        let mut ids = BTreeSet::new();
        for message in &messages {
            if let Kind::Request { id, .. } = &message.kind
                && !ids.insert(id)
            {
                return Err(McpError::DuplicateId);
            }
        }
        Ok(Self { batch, messages })
    }

    /// The bytes to send on, of which no reader reads another thing than was read here.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let values = || self.messages.iter().map(|message| message.value.clone());
        match (self.batch, values().next()) {
            (false, Some(one)) => one.to_bytes(),
            _ => values().collect::<Value<'a>>().to_bytes(),
        }
    }

    /// Parts the messages that may go on from those that may not. The first is `None` if none may.
    #[must_use]
    pub fn part(self, mut may: impl FnMut(&Message<'a>) -> bool) -> (Option<Self>, Vec<Message<'a>>) {
        let batch = self.batch;
        let (messages, others): (Vec<_>, Vec<_>) = self.messages.into_iter().partition(|message| may(message));
        ((!messages.is_empty()).then_some(Self { batch, messages }), others)
    }
}

impl<'a> Message<'a> {
    /// Reads one message.
    fn of(value: Value<'a>) -> Result<Self, McpError> {
        const KNOWN: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
        let object = value.as_object().ok_or(McpError::Ambiguous)?;
        check_case(object, &KNOWN)?;
        if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(McpError::Version);
        }
        let id = object.get("id");
        let kind = match (object.get("method"), object.get("result"), object.get("error")) {
            (Some(method), None, None) => asked(method, id, object.get("params"))?,
            (None, Some(_), None) => {
                check_no_params(object)?;
                Kind::Response { id: id_of(id.ok_or(McpError::Id)?)? }
            }
            (None, None, Some(error)) => {
                check_no_params(object)?;
                let code = match error.as_object().and_then(|error| error.get("code")) {
                    Some(Value::Number(code)) => code.as_i64(),
                    _ => None,
                };
                let id = id.filter(|id| !id.is_null()).map(id_of).transpose()?;
                Kind::Error { id, code: code.ok_or(McpError::Answer)? }
            }
            _ => return Err(McpError::Ambiguous),
        };
        Ok(Self { kind, value })
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The whole message.
    #[must_use]
    pub const fn value(&self) -> &Value<'a> {
        &self.value
    }

    /// The method, of requests and notifications.
    #[must_use]
    pub const fn method(&self) -> Option<&Method> {
        match &self.kind {
            Kind::Notification { method } | Kind::Request { method, .. } => Some(method),
            Kind::Error { .. } | Kind::Response { .. } => None,
        }
    }

    /// The id, if it has one.
    #[must_use]
    pub const fn id(&self) -> Option<&Id> {
        match &self.kind {
            Kind::Error { id, .. } => id.as_ref(),
            Kind::Notification { .. } => None,
            Kind::Request { id, .. } | Kind::Response { id } => Some(id),
        }
    }

    /// The parameters.
    #[must_use]
    pub fn params(&self) -> Option<&Value<'a>> {
        self.value.get("params")
    }

    /// What was answered.
    #[must_use]
    pub fn result(&self) -> Option<&Value<'a>> {
        self.value.get("result")
    }

    /// What was answered, to be changed.
    #[must_use]
    pub fn result_mut(&mut self) -> Option<&mut Value<'a>> {
        self.value.at_mut(&["result"])
    }

    /// Takes something out of the parameters.
    pub fn remove_param(&mut self, path: &[&str]) -> Option<Value<'a>> {
        self.value.at_mut(&["params"])?.remove(path)
    }

    /// What the method is about: the name of the tool or prompt, the address of the resource. Methods that are about such
    /// a thing always say it.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.params()?.get(subject_key(self.method()?)?)?.as_str()
    }

    /// The call of a tool, if it is one.
    #[must_use]
    pub fn tool_call(&self) -> Option<ToolCall<'_, 'a>> {
        if self.method() != Some(&Method::ToolsCall) {
            return None;
        }
        let arguments = self.params().and_then(|params| params.get("arguments")).and_then(Value::as_object);
        Some(ToolCall { name: self.subject()?, arguments })
    }

    /// What a result asks of the client before it is complete: since revision 2026-07-28 a server asks for sampling, for
    /// roots or for a person in this way. Each has the key under which it is answered.
    ///
    /// # Errors
    /// [`McpError::Answer`] if it asks in a form that is not understood, [`McpError::KeyCase`].
    pub fn asks(&self) -> Result<Vec<(&str, Method)>, McpError> {
        let Some(result) = self.result().and_then(Value::as_object) else { return Ok(Vec::new()) };
        check_case(result, &["resultType", "inputRequests"])?;
        let Some(requests) = result.get("inputRequests").filter(|requests| !requests.is_null()) else {
            return Ok(Vec::new());
        };
        let mut asks = Vec::new();
        for (key, request) in requests.as_object().ok_or(McpError::Answer)?.iter() {
            let request = request.as_object().ok_or(McpError::Answer)?;
            check_case(request, &["method", "params"])?;
            let word = request.get("method").and_then(Value::as_str).ok_or(McpError::Answer)?;
            asks.push((key, Method::of(word)));
        }
        Ok(asks)
    }

    /// The message, taken out.
    #[must_use]
    pub fn into_value(self) -> Value<'a> {
        self.value
    }
}

/// Reads a request or a notification.
fn asked(method: &Value<'_>, id: Option<&Value<'_>>, params: Option<&Value<'_>>) -> Result<Kind, McpError> {
    let word = method.as_str().filter(|word| !word.is_empty() && word.len() <= MAX_WORD_BYTES);
    let method = Method::of(word.ok_or(McpError::Method)?);
    if let Some(key) = subject_key(&method) {
        const KNOWN: [&str; 5] = ["name", "uri", "arguments", "ref", "_meta"];
        let params = params.and_then(Value::as_object).ok_or(McpError::Params(key))?;
        check_case(params, &KNOWN)?;
        params.get(key).and_then(Value::as_str).ok_or(McpError::Params(key))?;
        let arguments = params.get("arguments").filter(|arguments| !arguments.is_null());
        if arguments.is_some_and(|arguments| arguments.as_object().is_none()) {
            return Err(McpError::Params("arguments"));
        }
    } else if method.form().is_some() && params.is_some_and(|p| !p.is_null() && p.as_object().is_none()) {
        return Err(McpError::Params("params"));
    }
    match (id, method.form()) {
        (Some(id), Some(Form::Request) | None) => Ok(Kind::Request { id: id_of(id)?, method }),
        (None, Some(Form::Notification) | None) => Ok(Kind::Notification { method }),
        _ => Err(McpError::Id),
    }
}

/// The parameter that says what a method is about.
const fn subject_key(method: &Method) -> Option<&'static str> {
    match method {
        Method::ToolsCall | Method::PromptsGet => Some("name"),
        Method::ResourcesRead | Method::ResourcesSubscribe | Method::ResourcesUnsubscribe => Some("uri"),
        _ => None,
    }
}

fn id_of(value: &Value<'_>) -> Result<Id, McpError> {
    match value {
        // Written without point and exponent, or another reader might write it otherwise in the answer.
        Value::Number(number) => number.as_str().parse().map(Id::Number).map_err(|_| McpError::Id),
        Value::Text(text) if text.len() <= MAX_WORD_BYTES => Ok(Id::Text(text.clone().into_owned())),
        _ => Err(McpError::Id),
    }
}

/// An answer with parameters might be read as a request by whoever does not look at its method.
fn check_no_params(object: &Object<'_>) -> Result<(), McpError> {
    if object.get("params").is_some() { Err(McpError::Ambiguous) } else { Ok(()) }
}

pub(super) fn check_case(object: &Object<'_>, known: &[&str]) -> Result<(), McpError> {
    match object.misspelt(known) {
        Some(key) => Err(McpError::KeyCase(key.chars().take(80).collect())),
        None => Ok(()),
    }
}

impl Id {
    /// The id as JSON.
    #[must_use]
    pub fn to_value(&self) -> Value<'static> {
        match self {
            Self::Number(number) => Value::integer(*number),
            Self::Text(text) => Value::text(text.clone()),
        }
    }
}

/// What an event of a server's stream brings.
#[derive(Clone, Debug, PartialEq)]
pub enum FromServer<'a> {
    /// Where the client is to send to; only the legacy transport of 2024-11-05 has it. It must not lead elsewhere.
    Endpoint(String),
    /// Messages.
    Messages(Payload<'a>),
    /// Nothing: an event without data, which only sets an id.
    Nothing,
}

impl<'a> FromServer<'a> {
    /// Reads an event of a stream, either transport's.
    ///
    /// # Errors
    /// [`McpError`], also for events of another name: no client should get what is not understood.
    pub fn read(event: &'a sse::Event<'_>, limits: &Limits, most: usize) -> Result<Self, McpError> {
        match &*event.name {
            "endpoint" => {
                let endpoint = std::str::from_utf8(&event.data).map_err(|_| McpError::Answer)?;
                Ok(Self::Endpoint(endpoint.trim().to_owned()))
            }
            "message" if event.data.is_empty() => Ok(Self::Nothing),
            "message" => Ok(Self::Messages(Payload::parse(&event.data, limits, most)?)),
            _ => Err(McpError::Answer),
        }
    }
}

/// Checks the headers `Mcp-Method` and `Mcp-Name` against the message that they stand before: something in between may
/// route by them.
///
/// # Errors
/// [`McpError::Header`].
///
/// # Source
/// Model Context Protocol 2026-07-28, "Streamable HTTP", "Standard Request Headers" and "Value Encoding".
pub fn headers_agree(payload: &Payload<'_>, method: Option<&str>, name: Option<&str>) -> Result<(), McpError> {
    if method.is_none() && name.is_none() {
        return Ok(());
    }
    let [message] = payload.messages.as_slice() else { return Err(McpError::Header) };
    let word = message.value.get("method").and_then(Value::as_str);
    if method.is_some() && method.map(str::trim) != word {
        return Err(McpError::Header);
    }
    let Some(name) = name.map(str::trim) else { return Ok(()) };
    let encoded = name.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?="));
    let plain = match encoded {
        Some(encoded) => base64::decode(encoded).and_then(|bytes| String::from_utf8(bytes).ok()),
        None => Some(name.to_owned()),
    };
    if plain.as_deref() == message.subject() { Ok(()) } else { Err(McpError::Header) }
}
