//! What a call asks of a model.

use ringfence_model::Digest;

use super::form::Form;
use super::read;
use super::weigh::Tally;
use super::{LlmError, Route, Shape, Work};
use crate::json::{self, Limits, Value};

/// What a call asks of a model, in one form for all APIs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which API and operation it is.
    pub shape: Shape,
    /// The model that is to run, as the call names it.
    pub model: Option<String>,
    /// Further models that may run: fallbacks, a batch's, those of tools. All must be granted. `default` stands for those
    /// that the provider chooses; an agent that the provider runs has `agents/` before its name.
    pub other_models: Vec<String>,
    /// The most tokens that each answer may have, summed over the requests of a batch; `None` if the call sets no bound.
    pub max_output_tokens: Option<u64>,
    /// How many answers are made for each request, at most: `n`, `best_of`, `candidateCount`.
    pub answers: u64,
    /// How many requests there are: 1, but for batches.
    pub requests: u64,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Whether it must or may not call any.
    pub tool_choice: Option<ToolChoice>,
    /// The SHA-256 of each system prompt, in order; see [`prompt_digest`].
    pub prompts: Vec<Digest>,
    /// Whether the answer comes as a stream.
    pub streams: bool,
    /// The form that the answer is to have.
    pub format: Format,
    /// What the call refers to and does not contain, so that nothing here speaks of it.
    pub references: Vec<Reference>,
    /// Whether the provider is to keep the answer, where the call says; OpenAI keeps responses unless it says no.
    pub store: Option<bool>,
    /// Whether the answer is to be fetched later.
    pub background: bool,
    /// The tier or speed of service that the call asks for; some cost more than the list price.
    pub tier: Option<String>,
    /// An estimate of the tokens that go in; what is referred to is not in it.
    pub input_tokens: u64,
}

/// A tool that the model is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name, or that of its kind where it has none.
    pub name: String,
    /// What it is.
    pub kind: ToolKind,
    /// The server that the provider is to call, for [`ToolKind::Mcp`].
    pub target: Option<String>,
}

/// What a tool is, and so who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ToolKind {
    /// Runs code at the provider.
    CodeExecution,
    /// Asks the agent to use a computer.
    Computer,
    /// Searches files that the provider keeps.
    FileSearch,
    /// Asks the agent to call a function of its own.
    Function,
    /// Makes images at the provider.
    ImageGeneration,
    /// Has the provider call a remote MCP server.
    Mcp,
    /// Not known here; taken for one that the provider runs.
    Other,
    /// Asks the agent to run commands or to edit files.
    Shell,
    /// Has the provider fetch pages.
    WebFetch,
    /// Has the provider search the web.
    WebSearch,
}

impl ToolKind {
    /// A stable word, such as `web_search`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::CodeExecution => "code_execution",
            Self::Computer => "computer",
            Self::FileSearch => "file_search",
            Self::Function => "function",
            Self::ImageGeneration => "image_generation",
            Self::Mcp => "mcp",
            Self::Other => "other",
            Self::Shell => "shell",
            Self::WebFetch => "web_fetch",
            Self::WebSearch => "web_search",
        }
    }

    /// Whether the provider runs it, out of the gate's sight.
    #[must_use]
    pub const fn runs_at_provider(self) -> bool {
        !matches!(self, Self::Computer | Self::Function | Self::Shell)
    }
}

/// Whether the model must or may not call tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// It may.
    Auto,
    /// It must not.
    Never,
    /// It must call this one, or one of this kind.
    Named(String),
    /// It must call one.
    Required,
}

/// The form that an answer is to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Format {
    /// A grammar, pattern or choice.
    Grammar,
    /// Any JSON.
    Json,
    /// JSON of a schema.
    JsonSchema,
    /// Nothing said.
    #[default]
    Text,
}

/// Something that a call refers to and does not contain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// What it is.
    pub kind: ReferenceKind,
    /// Its id or address.
    pub id: String,
}

/// What a call may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReferenceKind {
    /// Content that the provider keeps ready.
    CachedContent,
    /// A container in which the provider runs code.
    Container,
    /// A conversation that goes on.
    Conversation,
    /// A file that was sent before; for a batch, the requests themselves.
    File,
    /// A prompt that is kept at the provider, and may name a model and tools.
    Prompt,
    /// An earlier response that this one goes on from.
    Response,
    /// An address that the provider is to fetch from.
    Url,
    /// A store of vectors.
    VectorStore,
}

/// A call, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<'a> {
    /// What it asks for.
    pub request: Request,
    /// Its body, where that is JSON. [`Value::to_bytes`] of it is what the upstream should get.
    pub body: Option<Value<'a>>,
}

impl Route {
    /// Reads the body of a call, and with it what the call asks for.
    ///
    /// A body that is not a form (by `content_type`) is read as JSON, whatever it says it is: many upstreams do so.
    ///
    /// # Errors
    /// [`LlmError`] for a body that is not plain, or that contradicts itself or the path.
    pub fn read<'a>(
        &self,
        content_type: Option<&str>,
        body: &'a [u8],
        limits: &Limits,
    ) -> Result<Reading<'a>, LlmError> {
        let bodiless =
            matches!(self.shape.work(), Work::List | Work::Store | Work::Manage) || self.shape.is_websocket();
        if bodiless && body.is_empty() {
            return Ok(Reading { request: Request::bare(self), body: None });
        }
        if let Some(form) = content_type.and_then(|kind| Form::read(kind, body, limits.bytes)).transpose()? {
            let request = Request::from_form(self, &form, limits)?;
            return Ok(Reading { request, body: None });
        }
        if self.shape.work() == Work::Store && self.shape != Shape::OpenAiBatch {
            // What is stored is not read here, and may be no JSON at all.
            return Ok(Reading { request: Request::bare(self), body: None });
        }
        let body = json::parse(body, limits)?;
        let request = Request::of(self, &body)?;
        Ok(Reading { request, body: Some(body) })
    }
}

impl Request {
    /// A call without a body.
    #[must_use]
    pub fn bare(route: &Route) -> Self {
        Self {
            shape: route.shape,
            model: route.model.clone(),
            other_models: Vec::new(),
            max_output_tokens: None,
            answers: 1,
            requests: 1,
            tools: Vec::new(),
            tool_choice: None,
            prompts: Vec::new(),
            streams: route.streams.unwrap_or(route.shape.is_websocket()),
            format: Format::Text,
            references: Vec::new(),
            store: None,
            background: false,
            tier: None,
            input_tokens: 0,
        }
    }

    /// What a call with this JSON body asks for; also what a message of the agent over a WebSocket asks for, which sets
    /// up a session, asks for an answer, or does neither.
    ///
    /// # Errors
    /// [`LlmError`] if the body contradicts itself or the path, or if the path is not certain and the body another's.
    pub fn of(route: &Route, body: &Value<'_>) -> Result<Self, LlmError> {
        let mut request = Self::bare(route);
        read::body(&mut request, body, route.certain)?;
        let mut tally = Tally::default();
        tally.value(body);
        request.input_tokens = tally.total();
        Ok(request)
    }

    /// What a call with this form asks for: sound to be understood, images to be changed, a file to be kept, or a session
    /// to be opened.
    fn from_form(route: &Route, form: &Form<'_>, limits: &Limits) -> Result<Self, LlmError> {
        if !matches!(route.shape.work(), Work::Media | Work::Mint | Work::Store) {
            return Err(LlmError::OtherShape);
        }
        let mut request = Self::bare(route);
        if let Some(session) = form.text("session")?.filter(|_| route.shape.work() == Work::Mint) {
            let session = json::parse(session.as_bytes(), limits)?;
            read::body(&mut request, &Value::object([("session", session)]), true)?;
        }
        let mut tally = Tally::default();
        for part in form.parts() {
            match part.file_name {
                Some(_) if route.shape == Shape::OpenAiImage => tally.tokens(super::IMAGE_TOKENS),
                Some(_) => {}
                None => {
                    tally.begin();
                    tally.bytes(part.body);
                }
            }
        }
        request.input_tokens = tally.total();
        if let Some(model) = form.text("model")? {
            request.named(model)?;
        }
        request.streams = form.text("stream")?.is_some_and(|stream| stream.eq_ignore_ascii_case("true"));
        if let Some(count) = form.text("n")? {
            let wanted = LlmError::Field { name: "n", wanted: "a whole number that is not negative" };
            request.answers = count.parse::<u64>().map_err(|_| wanted)?.max(1);
        }
        Ok(request)
    }

    /// All models that the call may make run.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.model.iter().chain(&self.other_models).map(String::as_str)
    }

    /// The most tokens that may come out of the whole call, if it sets a bound.
    #[must_use]
    pub fn most_output_tokens(&self) -> Option<u64> {
        self.max_output_tokens.map(|most| most.saturating_mul(self.answers))
    }

    /// Takes the model that the body names; it must be the one that the path names.
    pub(super) fn named(&mut self, model: &str) -> Result<(), LlmError> {
        // Google's bodies name a model with its collection.
        let plain = model.strip_prefix("models/").filter(|_| self.shape.api() == super::Api::Google);
        let model = plain.unwrap_or(model);
        match &self.model {
            Some(one) if one != model && !one.ends_with(&format!("/{model}")) => {
                Err(LlmError::Model { one: clip(one), other: clip(model) })
            }
            Some(_) => Ok(()),
            None => {
                self.model = Some(model.to_owned());
                Ok(())
            }
        }
    }

    /// Takes a further model that may run.
    pub(super) fn may_run(&mut self, model: &str) {
        if !self.models().any(|known| known == model) {
            self.other_models.push(model.to_owned());
        }
    }

    /// Adds what another request of the same batch asks for.
    pub(super) fn add(&mut self, other: Self) {
        other.models().for_each(|model| self.may_run(model));
        self.max_output_tokens = match (self.max_output_tokens, other.max_output_tokens) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            _ => None,
        };
        self.answers = self.answers.max(other.answers);
        self.tools.extend(other.tools);
        self.prompts.extend(other.prompts);
        self.references.extend(other.references);
    }
}

/// The digest of a system prompt, the same whichever API carries it.
///
/// It is the SHA-256 of the prompt's parts as a JSON list, in the form of [`Value::canonical`]: each text part is its
/// text, every other part is the whole part. What a part says of caching does not count. So `"system": "Be brief."`,
/// `"system": [{"type": "text", "text": "Be brief."}]` and a system message of `Be brief.` have one digest.
#[must_use]
pub fn prompt_digest<'a>(parts: &[&'a Value<'a>]) -> Digest {
    let part = |part: &&'a Value<'a>| match part {
        Value::Object(object) => match (object.get("type").and_then(Value::as_str), object.get("text")) {
            (None | Some("text" | "input_text" | "output_text"), Some(Value::Text(text))) => Value::text(&**text),
            _ => (*part).clone(),
        },
        _ => (*part).clone(),
    };
    parts.iter().map(part).collect::<Value<'a>>().digest()
}

/// As much of a text as a message needs.
pub(super) fn clip(text: &str) -> String {
    text.chars().take(120).collect()
}
