//! Calls of language models: understood before they are decided, bounded before they are sent, counted when answered.
//!
//! Which calls these are is told by the shape of the API, not by the host. A call that nothing asks about is read as far
//! as it can be, so that the log tells its model and what it used, and goes on as it came where it cannot be. Where a
//! grant, a guard-rail or a budget asks, what cannot be read is denied, and what is sent on is what was read.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body::Body;
use http_body_util::BodyExt;
use ringfence_audit::{LlmAsked, LlmUsed};
use ringfence_inspect::json::{self, Limits, Value};
use ringfence_inspect::llm::edit::{self, UsageAsked};
use ringfence_inspect::llm::{self, Format, Framing, Meter, Reason, Refusal, Route, Shape, Usage, Work};
use ringfence_inspect::price::{Cost, Prices};
use ringfence_inspect::sse::Sse;
use ringfence_model::manifest::{LlmRules, Unit};
use ringfence_policy::{Denial, LlmCall};
use tokio::time::Instant;

use crate::body::UpBody;
use crate::budget::{Account, Amounts, Behalf, Ledger};
use crate::capture::Seal;
use crate::coding::{self, CodingError, Codings};
use crate::hash::{BodyHash, MAX_HASHED_BYTES};
use crate::inspect::MAX_BODY_BYTES;
use crate::misdirect::Search;
use crate::record::Call;
use crate::shelf::{FULL, Full, Load};
use crate::sigv4::chunks::{ChunkError, Chunks};
use crate::upload::Upload;

/// What is reserved for an answer, and the most it may be, where a budget counts and the call sets no bound.
const USUAL_OUTPUT: u64 = 16_384;

/// The largest event of a stream that is held until it is whole.
const MAX_EVENT_BYTES: usize = 256 * 1024;

/// How far an answer may go beyond what was reserved before it is cut. What is counted here is an estimate, and a
/// provider that heeds the bound is not to be cut for it.
const SLACK: u64 = 4;

/// How long a body may take that must be whole.
const BODY_TIMEOUT: Duration = Duration::from_secs(120);

/// The body of a request, as far as it was read.
pub enum Content<B = Upload> {
    /// The beginning, and the rest as it comes.
    Begun(Bytes, B),
    /// As it comes.
    Stream(B),
    /// All of it.
    Whole(Bytes),
}

impl Content {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Begun(..) => false,
            Self::Stream(body) => body.is_end_stream(),
            Self::Whole(bytes) => bytes.is_empty(),
        }
    }

    /// The same with its chunks signed anew.
    ///
    /// # Errors
    /// [`ChunkError`] if what was read of it is no such body.
    pub fn signed(self, mut chunks: Box<Chunks>) -> Result<Self, ChunkError> {
        Ok(match self {
            Self::Begun(head, mut rest) => {
                let head = chunks.push(&head)?;
                rest.sign(chunks);
                Self::Begun(head, rest)
            }
            Self::Stream(mut body) => {
                body.sign(chunks);
                Self::Stream(body)
            }
            Self::Whole(bytes) => {
                let bytes = chunks.push(&bytes)?;
                chunks.finish()?;
                Self::Whole(bytes)
            }
        })
    }

    /// The same, held by `load` for as long as any of what was read is there.
    #[must_use]
    pub(crate) fn held_by(self, load: &Load) -> Self {
        match self {
            Self::Begun(head, rest) => Self::Begun(load.around(head), rest),
            Self::Stream(body) => Self::Stream(body),
            Self::Whole(bytes) => Self::Whole(load.around(bytes)),
        }
    }

    /// All of it, if it was read.
    #[must_use]
    pub const fn whole(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::Begun(..) | Self::Stream(_) => None,
        }
    }

    /// The body to be sent.
    #[must_use]
    pub fn into_body(
        self,
        call: &Arc<Call>,
        mut hash: BodyHash,
        search: Option<Box<Search>>,
        account: Option<&Arc<Account>>,
        capture: Option<Box<Seal>>,
        trailers: bool,
    ) -> UpBody {
        let call = Arc::clone(call);
        if let Self::Begun(_, rest) | Self::Stream(rest) = &self
            && rest.size_hint().lower() > MAX_HASHED_BYTES
        {
            hash.stop();
        }
        let account = account.cloned();
        match self {
            Self::Begun(head, inner) => {
                UpBody::Stream { head: Some(head), inner, call, hash, search, account, capture, trailers }
            }
            Self::Stream(inner) => UpBody::Stream { head: None, inner, call, hash, search, account, capture, trailers },
            Self::Whole(bytes) => UpBody::Whole { bytes: Some(bytes), call, hash },
        }
    }
}

/// A call of a language model.
pub struct Asked {
    /// What the policy is asked.
    pub facts: LlmCall,
    /// All of it.
    pub request: llm::Request,
    /// Whether the body must be written anew, so that what one reader read is what the next one gets.
    pub anew: bool,
}

impl Asked {
    /// What the log tells.
    #[must_use]
    pub fn entry(&self) -> LlmAsked {
        let LlmCall { api, models, tools, prompts, streaming, format, max_tokens } = self.facts.clone();
        LlmAsked { api, models, tools, prompts, streaming, format, max_tokens }
    }
}

/// A request, as far as it was understood.
pub struct Looked<B = Upload> {
    /// The body.
    pub content: Content<B>,
    /// The model that the body names, where the decision needs it.
    pub model: Option<String>,
    /// The call, if it is one of a language model.
    pub asked: Option<Asked>,
    /// Whether the body came in a content coding and is not in one any more.
    pub decoded: bool,
}

/// Who asks what a body says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A grant or a guard-rail.
    pub by_policy: bool,
    /// A budget in tokens or money.
    pub by_budget: bool,
}

/// Which call of a language model this is, by method, path and query.
///
/// # Errors
/// A denial if that contradicts itself.
pub fn route(method: &str, path: &str, query: Option<&str>) -> Result<Option<Route>, Denial> {
    // Paths of one segment belong to no API but Ollama's and llama.cpp's, and none of them is asked for with these.
    if matches!(method, "OPTIONS" | "TRACE") {
        return Ok(None);
    }
    Route::of(method, path, query).map_err(|e| Denial::new(e.code(), format!("the call contradicts itself: {e}")))
}

/// Reads as much of a request as somebody asks for. A body in a content coding is decoded if it must be read, and goes on
/// decoded, so that nobody reads it otherwise.
///
/// # Errors
/// A denial: as of [`whole`], `body_unreadable`, or a code of the reader's.
pub(crate) async fn look<B>(
    headers: &HeaderMap,
    route: Option<&Route>,
    content: Content<B>,
    load: &mut Load,
    wanted: Wanted,
) -> Result<Looked<B>, Denial>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let strict = wanted.by_policy || wanted.by_budget && route.is_some();
    let nothing = |content| Looked { content, model: None, asked: None, decoded: false };
    if !strict && route.is_none_or(|route| !route.certain || !route.shape.runs_model()) {
        return Ok(nothing(content));
    }
    let codings = match Codings::to_read(headers) {
        Ok(codings) if strict || codings.is_empty() => codings,
        Err(error) if strict => return Err(encoded(&error)),
        Ok(_) | Err(_) => return Ok(nothing(content)),
    };
    let gathered = match content {
        Content::Stream(body) => gather(headers, body, strict, load).await?,
        read => read,
    };
    let bytes = match gathered {
        Content::Whole(bytes) => bytes,
        partly => return Ok(nothing(partly)),
    };
    let (bytes, decoded) = decode(&codings, bytes, load).await?;
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let limits = Limits { bytes: MAX_BODY_BYTES, ..Limits::default() };
    if let Some(route) = route {
        match route.read(kind, &bytes, &limits) {
            Ok(reading) => {
                let facts = facts(&reading.request);
                let anew = strict && reading.body.is_some();
                let asked = Asked { facts, request: reading.request, anew };
                let model = asked.request.models().next().map(str::to_owned);
                return Ok(Looked { content: Content::Whole(bytes), model, asked: Some(asked), decoded });
            }
            Err(error) if strict && route.certain => {
                let why = format!("the body of the {} call cannot be understood: {error}", route.shape.word());
                return Err(Denial::new("body_unreadable", why));
            }
            Err(_) => {}
        }
    }
    let model = if wanted.by_policy { model_of(headers, &bytes)? } else { None };
    Ok(Looked { content: Content::Whole(bytes), model, asked: None, decoded })
}

fn encoded(error: &CodingError) -> Denial {
    let code = if matches!(error, CodingError::TooLarge { .. }) { "body_too_large" } else { "body_encoded" };
    Denial::new(code, format!("what the body says decides about the call, and the body cannot be decoded: {error}"))
}

/// A body without its codings, and whether it had any.
async fn decode(codings: &Codings, bytes: Bytes, load: &mut Load) -> Result<(Bytes, bool), Denial> {
    if codings.is_empty() {
        return Ok((bytes, false));
    }
    // What it comes to is known afterwards.
    load.hold(MAX_BODY_BYTES).await.map_err(full)?;
    let plain = coding::decode(codings, &bytes, MAX_BODY_BYTES as u64).map_err(|e| encoded(&e))?;
    load.shrink(plain.len());
    Ok((plain.into(), true))
}

/// The whole of a body, of which nothing was read or all. If it came in a content coding it is decoded, and the headers
/// say so.
///
/// # Errors
/// A denial: as of [`gather`], or `body_encoded`.
pub(crate) async fn whole(headers: &mut HeaderMap, content: Content, load: &mut Load) -> Result<Bytes, Denial> {
    let body = match content {
        Content::Whole(bytes) => return Ok(bytes),
        Content::Begun(..) => return Err(Denial::new("body_too_large", "the body cannot be read whole")),
        Content::Stream(body) => body,
    };
    let codings = Codings::to_read(headers).map_err(|e| encoded(&e))?;
    match gather(headers, body, true, load).await? {
        Content::Whole(bytes) => {
            let (bytes, decoded) = decode(&codings, bytes, load).await?;
            if decoded {
                coding::undone(headers);
            }
            Ok(bytes)
        }
        Content::Begun(..) | Content::Stream(_) => Err(Denial::new("body_broken", "the body cannot be read whole")),
    }
}

fn full(full: Full) -> Denial {
    Denial::new(FULL, full.to_string())
}

/// Reads a body whole, if it is not too large, comes in time and finds room. If it need not be whole, it stays a stream
/// where it cannot be.
///
/// # Errors
/// A denial: `body_too_large`, `body_broken`, `body_stalled` or [`FULL`].
pub(crate) async fn gather<B>(
    headers: &HeaderMap,
    mut body: B,
    strict: bool,
    load: &mut Load,
) -> Result<Content<B>, Denial>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let too_large = || {
        let why = format!("what the body says decides about the call, and it is larger than {MAX_BODY_BYTES} bytes");
        Denial::new("body_too_large", why)
    };
    let said = headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()).and_then(|l| l.parse::<usize>().ok());
    if said.is_some_and(|length| length > MAX_BODY_BYTES) {
        return if strict { Err(too_large()) } else { Ok(Content::Stream(body)) };
    }
    let stalled = || {
        let why = format!("the body must be whole, and did not come within {} s", BODY_TIMEOUT.as_secs());
        Denial::new("body_stalled", why)
    };
    let mut whole = BytesMut::new();
    let until = Instant::now() + BODY_TIMEOUT;
    loop {
        let frame = match tokio::time::timeout_at(until, body.frame()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(Content::Whole(whole.freeze())),
            Err(_) if strict => return Err(stalled()),
            Err(_) if whole.is_empty() => return Ok(Content::Stream(body)),
            Err(_) => return Ok(Content::Begun(whole.freeze(), body)),
        };
        let frame = frame.map_err(|e| Denial::new("body_broken", format!("the body broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let held = load.hold((whole.len() + data.len()).min(MAX_BODY_BYTES)).await;
        if let (Err(none), true) = (held, strict) {
            return Err(full(none));
        }
        if held.is_ok() && whole.is_empty() && body.is_end_stream() && data.len() <= MAX_BODY_BYTES {
            return Ok(Content::Whole(data));
        }
        whole.extend_from_slice(&data);
        if held.is_err() {
            return Ok(Content::Begun(whole.freeze(), body));
        }
        if whole.len() > MAX_BODY_BYTES {
            return if strict { Err(too_large()) } else { Ok(Content::Begun(whole.freeze(), body)) };
        }
    }
}

/// The model that a JSON body names that belongs to no API known here.
fn model_of(headers: &HeaderMap, body: &[u8]) -> Result<Option<String>, Denial> {
    let unreadable = |why: String| Err(Denial::new("body_unreadable", why));
    match json::parse(body, &Limits { bytes: MAX_BODY_BYTES, ..Limits::default() }) {
        Ok(Value::Object(object)) => {
            if let Some(key) = object.misspelt(&["model"]) {
                return unreadable(format!("some readers take the body's `{key}` for `model`"));
            }
            match object.get("model") {
                None => Ok(None),
                Some(Value::Text(model)) => Ok(Some(model.to_string())),
                Some(_) => unreadable("the body's `model` is not a text".into()),
            }
        }
        Ok(_) => Ok(None),
        Err(error) => {
            let typed = headers
                .get(CONTENT_TYPE)
                .is_some_and(|t| memchr::memmem::find(&t.as_bytes().to_ascii_lowercase(), b"json").is_some());
            let begins =
                body.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| matches!(b, b'{' | 0xef | 0xfe | 0xff));
            // What this parser refuses another may read, and read a model in it.
            if typed && !body.is_empty() || begins {
                return unreadable(format!("the body is not plain JSON: {error}"));
            }
            Ok(None)
        }
    }
}

pub(crate) fn facts(request: &llm::Request) -> LlmCall {
    LlmCall {
        api: request.shape.word().to_owned(),
        models: request.models().map(str::to_owned).collect(),
        tools: request.tools.iter().map(|tool| tool.name.clone()).collect(),
        prompts: request.prompts.iter().map(ToString::to_string).collect(),
        streaming: request.streams,
        format: match request.format {
            Format::Grammar => "grammar",
            Format::Json => "json",
            Format::JsonSchema => "json_schema",
            Format::Text => "text",
        }
        .to_owned(),
        max_tokens: request.most_output_tokens(),
    }
}

/// What becomes of a call before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What it may take.
    pub want: Amounts,
    /// The most tokens that each answer may have, where something bounds it.
    bound: Option<u64>,
    /// The most tokens that may come out in all, where tokens or money are counted.
    output: Option<u64>,
}

impl Plan {
    /// A call that no model runs for.
    pub const PLAIN: Self = Self { want: Amounts::CALL, bound: None, output: None };
}

/// Plans what a call may take, so that it fits into what is left.
///
/// # Errors
/// A denial: `price_unknown` if money is counted and no table knows the model's price, `mint_unbounded` if the call makes
/// a credential with which models can be called past the gate.
pub fn plan(ledger: &Ledger, behalf: Behalf<'_>, asked: &Asked, rules: &LlmRules) -> Result<Plan, Denial> {
    let request = &asked.request;
    let counted = ledger.counts(Unit::Tokens) || ledger.counts(Unit::Usd);
    if counted && request.shape.work() == Work::Mint {
        let why = "the call makes a credential with which models can be called past the gate, and a budget counts them";
        return Err(Denial::new("mint_unbounded", why));
    }
    if !request.shape.runs_model() {
        return Ok(Plan::PLAIN);
    }
    let writes = request.shape.work() == Work::Complete;
    let answers = request.answers.max(1);
    // Each of a batch's requests has the bound; what the call says itself is their sum.
    let per_answer = request.max_output_tokens.map(|most| most.div_ceil(request.requests.max(1)));
    let mut bound = match (per_answer, rules.max_tokens) {
        (Some(own), Some(most)) => Some(own.min(most)),
        (own, most) => own.or(most),
    };
    if !counted {
        let bound = bound.filter(|bound| writes && Some(*bound) != per_answer);
        return Ok(Plan { bound, ..Plan::PLAIN });
    }
    let count = answers.saturating_mul(request.requests.max(1));
    let mut output = if writes { bound.unwrap_or(USUAL_OUTPUT).saturating_mul(count) } else { 0 };
    let input = request.input_tokens;
    if let Some(left) = ledger.left(Unit::Tokens, behalf) {
        output = output.min(left.saturating_sub(input).max(1));
    }
    let cost = |output: u64| cost(ledger.prices(), request, input, output);
    let mut usd = 0;
    if let Some(left) = ledger.left(Unit::Usd, behalf) {
        let (least, most) = (cost(0)?, cost(output)?);
        if most > left && most > least && writes {
            let part = u128::from(output) * u128::from(left.saturating_sub(least)) / u128::from(most - least);
            output = u64::try_from(part).unwrap_or(output).max(1);
        }
        usd = cost(output)?;
    }
    if writes {
        bound = Some((output / count).max(1));
    }
    let tokens = input.saturating_add(output);
    let want = Amounts { bytes: 0, requests: 1, tokens, usd };
    Ok(Plan { want, bound: bound.filter(|_| writes), output: Some(output) })
}

/// What a call costs at most, in millionths of a dollar: the dearest of its models counts.
fn cost(prices: &Prices, request: &llm::Request, input: u64, output: u64) -> Result<u64, Denial> {
    let usage = Usage::estimated(input, output);
    let mut most = 0;
    let mut named = false;
    for model in request.models() {
        named = true;
        match prices.cost(model, &usage) {
            Cost::Known(sum) => most = sum.micro_dollars().max(most),
            Cost::Unknown => {
                let why = format!("a budget counts money, and no table of prices knows `{model}`");
                return Err(Denial::new("price_unknown", why));
            }
        }
    }
    if named {
        return Ok(most);
    }
    Err(Denial::new("price_unknown", "a budget counts money, and the call names no model"))
}

/// Bounds a call as planned, has it report what it used where that is counted, and writes it anew if it must be.
///
/// # Errors
/// A denial `max_tokens_unenforceable` if the grant bounds the answer and the API has no way to.
pub fn bind(plan: &Plan, asked: &Asked, rules: &LlmRules, bytes: &Bytes) -> Result<(Bytes, UsageAsked), Denial> {
    let counted = plan.output.is_some();
    let as_it_is = Ok((bytes.clone(), UsageAsked::Needless));
    let bounded = (plan.bound.is_some() || counted) && asked.request.shape.runs_model();
    if !bounded && !asked.anew {
        return as_it_is;
    }
    let unenforceable = || {
        let why = format!("the grant bounds answers, and a call of {} cannot be bounded", asked.request.shape.word());
        Denial::new("max_tokens_unenforceable", why)
    };
    let limits = Limits { bytes: MAX_BODY_BYTES, ..Limits::default() };
    let Ok(mut body) = json::parse(bytes, &limits) else {
        // A form: sound and images, which have no such bound.
        return if bounded && rules.max_tokens.is_some() && asked.request.shape.work() == Work::Complete {
            Err(unenforceable())
        } else {
            as_it_is
        };
    };
    if !bounded {
        return Ok((body.to_bytes().into(), UsageAsked::Needless));
    }
    if let Some(most) = plan.bound
        && !edit::bound_output(&asked.request, &mut body, most)
        && rules.max_tokens.is_some()
    {
        return Err(unenforceable());
    }
    let usage = if counted { edit::ask_for_usage(&asked.request, &mut body) } else { UsageAsked::Needless };
    Ok((body.to_bytes().into(), usage))
}

/// What is held while an answer comes.
pub struct Counting {
    request: llm::Request,
    prices: Option<Arc<Ledger>>,
    output: Option<u64>,
    drop_usage: bool,
}

impl Counting {
    /// Gets ready to count the answer to a call.
    #[must_use]
    pub fn new(ledger: &Arc<Ledger>, asked: Asked, plan: &Plan, usage: UsageAsked) -> Self {
        Self {
            request: asked.request,
            prices: Some(Arc::clone(ledger)),
            output: plan.output,
            drop_usage: usage == UsageAsked::Added,
        }
    }

    /// Whether an answer that cannot be counted must not be let through.
    #[must_use]
    pub const fn is_needed(&self) -> bool {
        self.output.is_some()
    }

    /// Begins to count, once the head of the answer is there.
    #[must_use]
    pub fn begin(self, headers: &HeaderMap) -> Tap {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let messages = self.request.shape.is_websocket();
        let framing = if messages { Framing::Messages } else { Framing::of(kind) };
        let mut meter = Meter::new(&self.request, framing);
        for (name, value) in headers {
            if name.as_str().starts_with("x-amzn-bedrock-")
                && let Ok(value) = value.to_str()
            {
                meter.header(name.as_str(), value);
            }
        }
        let cuts = self.output.is_some() && self.request.streams;
        Tap {
            events: (framing == Framing::Sse && (self.drop_usage || cuts)).then(|| Sse::new(MAX_EVENT_BYTES)),
            drop_usage: self.drop_usage,
            output: self.output,
            shape: self.request.shape,
            models: self.request.models().map(str::to_owned).collect(),
            prices: self.prices,
            cut: false,
            since_look: 0,
            framing,
            meter,
        }
    }
}

/// Counts an answer as it goes by, and ends it where it must not go on.
pub struct Tap {
    meter: Meter,
    framing: Framing,
    shape: Shape,
    models: Vec<String>,
    prices: Option<Arc<Ledger>>,
    /// The stream's events, where they must be told apart.
    events: Option<Sse>,
    drop_usage: bool,
    output: Option<u64>,
    cut: bool,
    since_look: usize,
}

impl Tap {
    /// How many bytes are held because what they are of is not whole.
    #[must_use]
    pub fn held(&self) -> usize {
        self.meter.held() + self.events.as_ref().map_or(0, Sse::held)
    }

    /// Whether what goes on may be another length than what came.
    #[must_use]
    pub const fn changes(&self) -> bool {
        self.drop_usage || self.output.is_some()
    }

    /// Adds tokens that went in after the call began.
    pub const fn input(&mut self, tokens: u64) {
        self.meter.input(tokens);
    }

    /// Takes a chunk and gives what may go on; `true` if the answer ends with it, for `call`.
    pub fn push(&mut self, chunk: Bytes, call: &str) -> (Bytes, bool) {
        if self.cut {
            return (Bytes::new(), true);
        }
        let Some(events) = &mut self.events else {
            self.meter.push(&chunk);
            self.since_look += chunk.len();
            if self.is_beyond() {
                return (self.ending(call), true);
            }
            return (chunk, false);
        };
        let mut out = BytesMut::with_capacity(chunk.len());
        let mut rest = &chunk[..];
        let mut beyond = false;
        while let Some(piece) = events.next(&mut rest) {
            let is_usage =
                self.drop_usage && piece.event.as_ref().is_some_and(|event| edit::is_usage_event(&event.data));
            self.meter.push(piece.raw);
            self.since_look += piece.raw.len();
            if !is_usage {
                out.extend_from_slice(piece.raw);
            }
            let whole = !piece.oversized;
            if whole && is_beyond(&self.meter, self.output, &mut self.since_look) {
                beyond = true;
                break;
            }
        }
        if beyond {
            out.extend_from_slice(&self.ending(call));
        }
        (out.freeze(), beyond)
    }

    /// What is left when the answer has ended.
    pub fn finish(&mut self) -> Bytes {
        let Some(piece) = self.events.as_mut().and_then(Sse::finish).filter(|_| !self.cut) else { return Bytes::new() };
        self.meter.push(piece.raw);
        Bytes::copy_from_slice(piece.raw)
    }

    fn is_beyond(&mut self) -> bool {
        is_beyond(&self.meter, self.output, &mut self.since_look)
    }

    fn ending(&mut self, call: &str) -> Bytes {
        self.cut = true;
        let refusal = Refusal { reason: Reason::BudgetExhausted { retry_after_s: None }, call };
        refusal.ending(self.shape, self.framing, self.meter.metered().sequence).into()
    }

    /// What was used, for the log and for the budget.
    #[must_use]
    pub fn used(&self) -> (LlmUsed, Amounts) {
        let metered = self.meter.metered();
        let charge = metered.charge();
        let mut usd = 0;
        let mut known = false;
        if let Some(ledger) = &self.prices {
            let answered = metered.model.as_deref().map(|model| ledger.prices().cost(model, &charge));
            let asked = self.models.iter().map(|model| ledger.prices().cost(model, &charge));
            // Whichever of the models ran: one that the answer names and no table knows costs what was asked for.
            for cost in asked.chain(answered) {
                if let Cost::Known(sum) = cost {
                    known = true;
                    usd = sum.micro_dollars().max(usd);
                }
            }
        }
        let used = LlmUsed {
            model: metered.model.clone(),
            input_tokens: metered.usage.input,
            cached_tokens: metered.usage.cached,
            output_tokens: metered.usage.output,
            reasoning_tokens: metered.usage.reasoning,
            estimated: metered.usage.source == llm::Source::Estimated,
            suspicious: metered.suspicion().map(|suspicion| match suspicion {
                llm::Suspicion::TooHigh => "too_high".to_owned(),
                llm::Suspicion::TooLow => "too_low".to_owned(),
            }),
            usd_micro: known.then_some(usd),
        };
        (used, Amounts { bytes: 0, requests: 1, tokens: charge.total(), usd })
    }
}

/// Looked at only now and then: it is the sum that costs.
fn is_beyond(meter: &Meter, output: Option<u64>, since_look: &mut usize) -> bool {
    const LOOK_EVERY: usize = 512;
    let Some(most) = output.filter(|_| *since_look >= LOOK_EVERY) else { return false };
    *since_look = 0;
    let said = meter.metered().estimate.output;
    said > most.saturating_add(most / SLACK).saturating_add(64)
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    const POLICY: Wanted = Wanted { by_policy: true, by_budget: false };
    const NOBODY: Wanted = Wanted { by_policy: false, by_budget: false };

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| (name.parse().unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect::<Vec<(http::HeaderName, http::HeaderValue)>>().into_iter().collect()
    }

    fn looked(path: &str, pairs: &[(&str, &str)], body: &str, wanted: Wanted) -> Result<Looked<Full<Bytes>>, Denial> {
        let route = route("POST", path, None)?;
        let content = Content::Stream(Full::new(Bytes::from(body.to_owned())));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut load = crate::shelf::Shelf::new(true).load();
        runtime.block_on(look(&headers(pairs), route.as_ref(), content, &mut load, wanted))
    }

    fn model(pairs: &[(&str, &str)], body: &str) -> Result<Option<String>, &'static str> {
        looked("/predict", pairs, body, POLICY).map(|looked| looked.model).map_err(|denial| denial.code)
    }

    #[test]
    fn a_model_is_read_or_the_call_is_denied() {
        assert_eq!(model(&[], r#"{"messages":[],"model":"small"}"#), Ok(Some("small".into())));
        assert_eq!(model(&[], r#"{"mod\u0065l":"small"}"#), Ok(Some("small".into())));
        assert_eq!(model(&[], r#"{"input":1}"#), Ok(None));
        assert_eq!(model(&[], ""), Ok(None));
        assert_eq!(model(&[], "a=b"), Ok(None));
        assert_eq!(model(&[], r#"{"model":"small","model":"large"}"#), Err("body_unreadable"));
        assert_eq!(model(&[], r#"{"model":"small","Model":"large"}"#), Err("body_unreadable"));
        assert_eq!(model(&[], r#"{"model":["large"]}"#), Err("body_unreadable"));
        assert_eq!(model(&[], "\u{feff}{\"model\":\"large\"}"), Err("body_unreadable"));
        assert_eq!(model(&[("content-type", "application/json")], "[1,"), Err("body_unreadable"));
        assert_eq!(model(&[("content-encoding", "gzip")], "x"), Err("body_encoded"));
        assert_eq!(model(&[("content-length", "99999999")], "x"), Err("body_too_large"));
        assert_eq!(model(&[], &"x".repeat(MAX_BODY_BYTES + 1)), Err("body_too_large"));
    }

    #[test]
    fn what_nobody_asks_about_goes_on_as_it_came() {
        let chat = "/v1/chat/completions";
        let whole = |looked: Looked<Full<Bytes>>| match looked.content {
            Content::Whole(bytes) => Some(bytes),
            Content::Begun(..) | Content::Stream(_) => None,
        };
        let odd = r#"{ "model":"m", "messages":[],  "model":"n" }"#;
        let seen = looked(chat, &[], odd, NOBODY).unwrap();
        assert!(seen.asked.is_none());
        assert_eq!(whole(seen).unwrap(), odd);
        let plain = r#"{ "model":"m", "messages":[{"role":"user","content":"hi"}] }"#;
        let seen = looked(chat, &[], plain, NOBODY).unwrap();
        assert_eq!(seen.asked.as_ref().unwrap().facts.models, ["m"]);
        assert_eq!(whole(seen).unwrap(), plain, "byte for byte");
        assert_eq!(looked(chat, &[], odd, POLICY).map(drop).unwrap_err().code, "body_unreadable");
        let strict = looked(chat, &[], plain, POLICY).unwrap();
        let (Some(asked), Content::Whole(bytes)) = (strict.asked, strict.content) else { panic!("it is read") };
        let (sent, _) = bind(&Plan::PLAIN, &asked, &LlmRules::none(), &bytes).unwrap();
        assert_eq!(sent, plain.replace(' ', ""), "only what was read is sent");
        assert!(whole(looked(chat, &[("content-encoding", "gzip")], "x", NOBODY).unwrap()).is_none());
        assert!(whole(looked("/upload", &[], plain, NOBODY).unwrap()).is_none());
    }
}
