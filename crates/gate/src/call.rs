//! The life of one HTTP request of the agent, phase by phase.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue,
    SEC_WEBSOCKET_EXTENSIONS, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ringfence_audit::{Direction, Event, RecordError};
use ringfence_inspect::llm::Route;
use ringfence_inspect::llm::edit::UsageAsked;
use ringfence_model::manifest::{LlmRules, Place, Scheme, Trust, Unit};
use ringfence_model::{CallId, HostName};
use ringfence_policy::{Denial, HttpRequest, Permit, Policy};

use crate::arrival::Arrival;
use crate::body::{Count, DownBody};
use crate::budget::{Account, Amounts, Behalf, Spent, Warning};
use crate::capture::{Seal, Seals, Wanted as Kept};
use crate::coding::{self, Codings, Decoder};
use crate::dial::NoAddress;
use crate::echo::EchoGuard;
use crate::failover::Chances;
use crate::hash::BodyHash;
use crate::inject::{Credential, Head, Target};
use crate::llm::{Asked, Content, Counting, Looked, Plan, Wanted};
use crate::misdirect::{MAX_SEARCHED_BYTES, Search};
use crate::realtime::Realtime;
use crate::record::{Call, Subject};
use crate::refuse::{Form, Told};
use crate::relay::{Checkin, Outgoing};
use crate::rpc::{Filter, Peer};
use crate::shelf::Load;
use crate::upload::Upload;
use crate::websocket::{self, Bridge, Socket};
use crate::{
    Gate, decide, detour, doh, framing, identify, inject, llm, refuse, relay, room, rpc, shelf, trace, upload,
};

/// A connection of the agent that speaks HTTP, with the host and port that it was made for.
pub struct Line {
    pub(crate) gate: Arc<Gate>,
    pub(crate) host: HostName,
    pub(crate) port: u16,
    pub(crate) scheme: Scheme,
}

/// Why a request got no answer of the upstream.
enum Refused {
    /// Too much is going on at once.
    Busy(CallId),
    /// The policy, or a rule of the gate, said no.
    Denied(Box<Subject>, Denial),
    /// It was allowed and failed.
    Failed(CallId, &'static str),
    /// A message of MCP or A2A was not granted; answers to what it asked.
    Rpc(Box<Subject>, Denial, Vec<u8>),
    /// Nothing is left to spend.
    Spent(Box<Subject>, Spent),
    /// It was allowed and not answered, and something is left to try.
    Again,
    /// It was allowed, and could not be recorded.
    Unrecorded(RecordError),
}

/// Answers one request.
pub async fn answer(line: &Line, request: Request<Incoming>) -> Response<DownBody> {
    let mut form = Form::of(request.headers());
    let recorder = &line.gate.recorder;
    let (parts, body) = request.into_parts();
    let body = Content::Stream(Upload::new(&parts.headers, body));
    let mut chances = Chances::default();
    let mut load = line.gate.shelf.load();
    let mut result = serve(line, parts, (body, &mut load), &mut form, &mut chances).await;
    loop {
        match result {
            Err(Refused::Again) => {}
            // The policy knows nothing of whose stead a call is made in.
            Err(Refused::Denied(subject, denial)) if chances.are_used() => {
                recorder.deny(*subject, &denial).await;
            }
            other => break result = other,
        }
        let Some(again) = chances.next(line).await else {
            return Told::Failed("no provider could answer").answer(form, chances.after.as_ref());
        };
        let line = again.line.as_ref().unwrap_or(line);
        result = serve(line, again.parts, (Content::Whole(again.bytes), &mut load), &mut form, &mut chances).await;
    }
    match result {
        Ok(response) => response,
        Err(Refused::Denied(subject, denial)) => {
            let model = subject.model.clone().filter(|_| denial.code == "model_not_granted");
            let id = recorder.deny(*subject, &denial).await;
            let told = match model {
                Some(model) => Told::Model(model),
                None if denial.code == shelf::FULL => Told::Busy("too many large bodies are on their way"),
                None => Told::Denied,
            };
            told.answer(form, Some(&id))
        }
        Err(Refused::Spent(subject, spent)) => {
            let id = recorder.deny(*subject, &Denial::new("budget_exhausted", spent.why())).await;
            Told::Budget(spent.again).answer(form, Some(&id))
        }
        Err(Refused::Rpc(subject, denial, answers)) => {
            let id = recorder.deny(*subject, &denial).await;
            refuse::rpc(&answers, &id)
        }
        Err(Refused::Busy(id)) => Told::Busy("too many connections are open").answer(form, Some(&id)),
        Err(Refused::Failed(id, message)) => Told::Failed(message).answer(form, Some(&id)),
        Err(Refused::Again) => Told::Failed("no provider could answer").answer(form, chances.after.as_ref()),
        Err(Refused::Unrecorded(error)) => {
            tracing::error!(%error, "a call was refused because it could not be recorded");
            Told::Denied.answer(form, None)
        }
    }
}

async fn serve(
    line: &Line,
    mut parts: Parts,
    (body, load): (Content, &mut Load),
    form: &mut Form,
    chances: &mut Chances,
) -> Result<Response<DownBody>, Refused> {
    let gate = &line.gate.latest();
    let bridge = Bridge::of(&mut parts);
    let websocket = bridge.is_some() || is_websocket(&parts);
    let mut subject = subject(line, &parts, websocket);
    subject.after.clone_from(&chances.after);
    let denied = |subject: &Subject, denial| Refused::Denied(Box::new(subject.clone()), denial);

    // identify
    identify::request(&parts, &line.host, line.port, line.scheme).map_err(|denial| denied(&subject, denial))?;
    let route = route(&parts, websocket).map_err(|denial| denied(&subject, denial))?;
    if let Some(route) = route.as_ref().filter(|route| route.certain) {
        *form = Form::Llm(route.shape);
    }

    // decide
    let question = decide::question(&line.host, line.port, line.scheme, &parts, websocket);
    let known = gate.decisions.known(&question).filter(|_| route.is_none());
    let (permit, looked) = match known {
        Some(permit) => (permit, Looked { content: body, model: None, asked: None, decoded: false }),
        None => {
            let decided =
                decide_content(gate, &parts, question, route.as_ref(), (body, load), &mut subject, form).await;
            decided.map_err(|denial| denied(&subject, denial))?
        }
    };
    if gate.barriers.encrypted_dns
        && let Some(grant) = gate.grant(&permit)
    {
        let asked = doh::check(&parts, permit.path().unwrap_or_default(), &grant.paths);
        asked.map_err(|denial| denied(&subject, denial))?;
    }
    let Looked { mut content, asked, model, decoded } = looked;
    if gate.barriers.detours {
        let facts = asked.as_ref().map(|asked| &asked.facts);
        let question = decide::question(&line.host, line.port, line.scheme, &parts, websocket);
        let question = HttpRequest { model: model.as_deref(), llm: facts, ..question };
        detour::check(&gate.policy, &question, permit.path().unwrap_or_default(), &parts.headers)
            .map_err(|denial| denied(&subject, denial))?;
    }
    if decoded {
        coding::undone(&mut parts.headers);
    }
    let peer = gate.grant(&permit).and_then(|granted| {
        let (rules, paths) = (granted.rpc.clone()?, granted.paths.clone());
        Some(Peer { rules, grant: permit.grant()?, paths, host: line.host.clone(), port: line.port })
    });
    let mut tool = None;
    if let Some(peer) = &peer {
        (content, tool) = hear(gate, peer, &mut parts, websocket, (content, load), &mut subject).await?;
    }

    const NO_RULES: &LlmRules = &LlmRules::none();
    let rules = gate.grant(&permit).map_or(NO_RULES, |grant| &grant.llm);
    let credential = match permit.credential().map(|name| gate.credentials.get(name)) {
        Some(None) => return Err(denied(&subject, Denial::new("no_lease", "its credential is not leased"))),
        credential => credential.flatten(),
    };
    if let (Some(_), Content::Whole(bytes), false) = (&asked, &content, websocket) {
        let path = permit.path().unwrap_or_default();
        chances.keep(&parts, path, bytes, rules, credential).map_err(|denial| denied(&subject, denial))?;
    }

    // take what it may cost
    let user = gate.ledger.user_header().and_then(|name| parts.headers.remove(name));
    let behalf = Behalf { user: user.as_ref().and_then(|user| user.to_str().ok()), tool: tool.as_deref() };
    let plan = match &asked {
        None => Plan::PLAIN,
        Some(asked) => llm::plan(&gate.ledger, behalf, asked, rules).map_err(|denial| denied(&subject, denial))?,
    };
    let (content, usage) = bind(content, asked.as_ref(), &plan, rules).map_err(|denial| denied(&subject, denial))?;

    // inspect: what is wrong with it is found before any of it leaves, as far as it is there
    let agent_side = parts.extensions.remove::<OnUpgrade>();
    let spoken = asked.as_ref().filter(|asked| websocket && asked.request.shape.is_websocket());
    let realtime = route.zip(spoken).map(|(route, asked)| talk((gate, line), &permit, route, asked, (&subject, &plan)));
    let (method, was_http10) = (parts.method.clone(), parts.version == Version::HTTP_10);
    let readable = credential.is_some() || asked.is_some() || peer.is_some();
    let prepared = prepare(line, &permit, parts, (content, load), (&method, websocket), credential, readable).await;
    let prepared = prepared.map_err(|denial| denied(&subject, denial))?;

    let capture = Kept::of(gate, &permit, prepared.bare().filter(|_| !websocket).map(Bytes::len))
        .map_err(|denial| denied(&subject, denial))?;
    let account = account(gate, plan.want, behalf).await;
    let account = account.map_err(|spent| Refused::Spent(Box::new(subject.clone()), spent))?;
    if let (Some(account), Content::Whole(bytes)) = (&account, &prepared.content) {
        account.bytes(bytes.len());
    }
    let give_back = || account.iter().for_each(|account| account.give_back());

    let way = match relay::way(gate, &permit, &line.host, line.port, websocket).await {
        Ok(way) => Ok(way),
        Err(NoAddress::Denied(denial)) => {
            give_back();
            return Err(denied(&subject, denial));
        }
        Err(NoAddress::Failed(why)) => Err(why),
    };

    // record the intent; without it nothing leaves
    let untrusted = gate.grant(&permit).is_some_and(|grant| grant.trust == Trust::Untrusted);
    let call = gate.recorder.allow(subject, &permit, untrusted).await.map_err(|error| {
        give_back();
        Refused::Unrecorded(error)
    })?;
    let failed = |why: String, message: &'static str| {
        call.failed(why);
        Refused::Failed(call.id().clone(), message)
    };
    let mut seals = capture.map(|capture| capture.begin(&call)).unwrap_or_default();
    const UNREACHABLE: &str = "the upstream could not be reached";
    let way = match way {
        Ok(way) => way,
        Err(why) => {
            give_back();
            let refused = failed(why, UNREACHABLE);
            return Err(if chances.are_left(call.id(), None) { Refused::Again } else { refused });
        }
    };

    // inject
    let spending = (&call, account.as_ref(), &mut seals);
    let injected = inject(line, (prepared, load), &method, websocket, credential, spending).await;
    if !chances.keep_a_call() {
        load.shrink(0);
    }
    let (outgoing, echo) = injected.map_err(|why| {
        give_back();
        failed(why, "the credential could not be used")
    })?;

    // relay
    let sent = relay::send(gate, &permit, way, &line.host, line.port, outgoing, &call).await;
    let (response, checkin) = match sent {
        Ok(sent) => sent,
        Err(why) => {
            let never_left = ["connect_failed", "dns_failed", "tls_", room::FULL, "upstream_proxy_"];
            if never_left.iter().any(|early| why.starts_with(early)) {
                give_back();
            }
            let busy = why.starts_with(room::FULL);
            let refused = failed(why, UNREACHABLE);
            return Err(match chances.are_left(call.id(), None) {
                true => Refused::Again,
                false if busy => Refused::Busy(call.id().clone()),
                false => refused,
            });
        }
    };
    call.status(response.status().as_u16());
    if response.status().as_u16() >= 400 && asked.is_some() {
        account.iter().for_each(|account| account.ran_no_model());
    }
    if chances.are_left(call.id(), Some((response.status(), response.headers()))) {
        return Err(Refused::Again);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (later, host, port, scheme) = (Arc::clone(gate), line.host.clone(), line.port, line.scheme);
        let (path, method) = (permit.path().unwrap_or_default().to_owned(), method.clone());
        let facts = asked.map(|asked| asked.facts);
        let revoked = async move {
            let allows = |policy: &Policy| {
                let (method, path, llm) = (method.as_str(), path.as_str(), facts.as_ref());
                let model = llm.and_then(|llm| llm.models.first()).map(String::as_str);
                let question = HttpRequest { host: &host, port, scheme, method, path, websocket: true, model, llm };
                decide::http(policy, question).is_ok()
            };
            later.until_denied(allows).await;
        };
        let socket = Socket { gate: Arc::clone(gate), call, account, echo, realtime, seals };
        return upgraded(response, agent_side.filter(|_| websocket), bridge.as_ref(), socket, revoked)
            .map_err(|(why, id)| Refused::Failed(id, why));
    }
    if bridge.is_some() && response.status().is_success() {
        let why = "websocket_refused: the upstream answered without switching protocols";
        return Err(failed(why.into(), "the upstream opened no WebSocket"));
    }

    // inspect and count what comes back; the outcome is recorded when its last byte is through
    let counting = asked.filter(|_| response.status().is_success());
    let counting = counting.map(|asked| Counting::new(&gate.ledger, asked, &plan, usage));
    let rpc = peer.map(|peer| (Arc::clone(gate), peer));
    brought_back(
        response,
        &method,
        was_http10,
        Back { echo, counting, rpc, account, load: gate.shelf.load(), checkin, seal: seals.response },
        &call,
    )
    .map_err(|why| failed(why, "the answer could not be inspected"))
}

/// The call of a language model that a request may be, by its head.
fn route(parts: &Parts, websocket: bool) -> Result<Option<Route>, Denial> {
    if !websocket && matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE) {
        return Ok(None);
    }
    // A path of no single form is denied by the policy.
    let Ok(path) = ringfence_policy::path::normalise(parts.uri.path()) else { return Ok(None) };
    llm::route(parts.method.as_str(), &path, parts.uri.query())
}

/// Decides about a request that was not decided before, or that may be one of a language model.
async fn decide_content(
    gate: &Gate,
    parts: &Parts,
    question: HttpRequest<'_>,
    route: Option<&Route>,
    (body, load): (Content, &mut Load),
    subject: &mut Subject,
    form: &mut Form,
) -> Result<(Arc<Permit>, Looked), Denial> {
    // What was allowed before with its body unread needs none of it.
    let by_policy = gate.decisions.known(&question).is_none() && gate.policy.needs_content(&question);
    let by_budget = gate.ledger.counts(Unit::Tokens) || gate.ledger.counts(Unit::Usd);
    if route.is_none() && !by_policy {
        let looked = Looked { content: body, model: None, asked: None, decoded: false };
        return Ok((gate.decisions.decide(&gate.policy, question, false)?, looked));
    }
    if !by_policy {
        // What would be denied anyway is not read.
        gate.decisions.decide(&gate.policy, question.clone(), false)?;
    }
    let looked = llm::look(&parts.headers, route, body, load, Wanted { by_policy, by_budget }).await?;
    subject.model.clone_from(&looked.model);
    if let Some(asked) = &looked.asked {
        *form = Form::Llm(asked.request.shape);
        subject.llm = Some(asked.entry());
    }
    let facts = looked.asked.as_ref().map(|asked| &asked.facts);
    let question = HttpRequest { model: looked.model.as_deref(), llm: facts, ..question };
    Ok((gate.decisions.decide(&gate.policy, question, true)?, looked))
}

/// Hears what the agent says to a server of MCP, or to another agent.
async fn hear(
    gate: &Gate,
    peer: &Peer,
    parts: &mut Parts,
    websocket: bool,
    (content, load): (Content, &mut Load),
    subject: &mut Subject,
) -> Result<(Content, Option<String>), Refused> {
    let denied = |subject: &Subject, denial| Refused::Denied(Box::new(subject.clone()), denial);
    if websocket {
        let why = "the grant is for messages over HTTP, and the request asks for a WebSocket";
        return Err(denied(subject, Denial::new("rpc_not_granted", why)));
    }
    if parts.method != Method::POST {
        rpc::bodiless(&gate.servers, peer, &parts.headers).map_err(|denial| denied(subject, denial))?;
        if matches!(parts.method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS) {
            return Ok((content, None));
        }
        let why = format!("messages are sent by POST, not by {}", parts.method);
        return Err(denied(subject, Denial::new("rpc_not_granted", why)));
    }
    let bytes = llm::whole(&mut parts.headers, content, load).await.map_err(|denial| denied(subject, denial))?;
    match rpc::said(&gate.policy, &gate.servers, peer, &parts.headers, &bytes) {
        Ok(said) => {
            subject.rpc = said.entries;
            Ok((Content::Whole(said.bytes), said.tool))
        }
        Err(refused) => {
            subject.rpc = refused.entries;
            if refused.answers.is_empty() {
                return Err(denied(subject, refused.denial));
            }
            Err(Refused::Rpc(Box::new(subject.clone()), refused.denial, refused.answers))
        }
    }
}

/// Bounds the call of a language model as planned.
fn bind(
    content: Content,
    asked: Option<&Asked>,
    plan: &Plan,
    rules: &LlmRules,
) -> Result<(Content, UsageAsked), Denial> {
    match (content, asked) {
        (Content::Whole(bytes), Some(asked)) => {
            let (bytes, usage) = llm::bind(plan, asked, rules, &bytes)?;
            Ok((Content::Whole(bytes), usage))
        }
        (content, _) => Ok((content, UsageAsked::Needless)),
    }
}

/// Takes what a call may cost, where anything is limited.
///
/// # Errors
/// [`Spent`].
pub(crate) async fn account(gate: &Gate, want: Amounts, behalf: Behalf<'_>) -> Result<Option<Arc<Account>>, Spent> {
    if gate.ledger.is_empty() {
        return Ok(None);
    }
    let (reservation, warnings) = gate.ledger.reserve(want, behalf).await?;
    for Warning { scope, limit, used } in warnings {
        let warning = Event::BudgetWarning { scope: scope.word().into(), limit: limit.to_string(), used };
        // The calls' own intents fail as well, and stop them.
        let _ = gate.recorder.event(warning);
    }
    Ok(Some(Arc::new(Account::new(reservation))))
}

fn subject(line: &Line, parts: &Parts, websocket: bool) -> Subject {
    Subject {
        direction: Direction::Egress,
        protocol: match parts.version {
            _ if websocket => "websocket",
            Version::HTTP_2 => "h2",
            _ => "http/1.1",
        },
        host: line.host.to_string(),
        port: line.port,
        method: Some(parts.method.as_str().to_owned()),
        path: Some(parts.uri.path().to_owned()),
        model: None,
        llm: None,
        rpc: Vec::new(),
        after: None,
        trace: trace::of(&parts.headers),
        sql: None,
        git: None,
    }
}

/// Whether a request asks to become a WebSocket.
///
/// # Source
/// RFC 6455 §4.1.
pub(crate) fn is_websocket(parts: &Parts) -> bool {
    let has = |name, token: &str| {
        parts
            .headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|value| value.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
    };
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && has(UPGRADE, "websocket")
        && has(CONNECTION, "upgrade")
}

/// Puts back what makes a WebSocket handshake, after the rest between neighbours was taken away.
pub(crate) fn ask_for_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// A request as it will be sent, but for the secret in its head.
struct Prepared {
    head: Head,
    content: Content,
    /// What is searched for in the body while it streams.
    search: Option<Box<Search>>,
    /// What stands for the body in a signature.
    payload: Option<String>,
    /// The body's digest.
    hash: BodyHash,
    /// The body without the secret, where there is one in it.
    bare: Option<Bytes>,
}

impl Prepared {
    /// All of the body as the agent wrote it, where it was read.
    fn bare(&self) -> Option<&Bytes> {
        self.bare.as_ref().or(self.content.whole())
    }
}

/// Takes away what is between neighbours and what the agent wrote in the credential's place, and looks through the rest.
async fn prepare(
    line: &Line,
    permit: &Permit,
    parts: Parts,
    (content, load): (Content, &mut Load),
    (method, websocket): (&Method, bool),
    credential: Option<&Credential>,
    readable: bool,
) -> Result<Prepared, Denial> {
    let placeholders = &line.gate.placeholders;
    let mut head = Head::new(parts.headers, permit.path().unwrap_or_default(), parts.uri.query());
    relay::strip_hop_by_hop(&mut head.headers);
    // The gate itself answers with 100, as soon as it wants the body.
    head.headers.remove(EXPECT);
    if line.gate.barriers.detours {
        let place = credential.and_then(|credential| match &credential.lease().place {
            Place::Header { name, .. } => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        detour::strip_lookalikes(&mut head.headers, place.as_deref());
    }
    if line.gate.barriers.request_trailers {
        head.headers.remove(TRAILER);
    }
    if websocket {
        ask_for_websocket(&mut head.headers);
        websocket::offer_no_extension(&mut head.headers);
    }
    if let Some(credential) = credential {
        credential.take_out(&mut head)?;
    }
    if readable {
        // What comes back must be readable, or an echo of the secret could pass, and what was used would not be known.
        head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    placeholders.check_head(&line.host.to_string(), &head.path, head.query.as_deref(), &head.headers)?;

    let needed = credential.is_some_and(|credential| inject::needs_body(credential.lease()));
    let length = head.headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()).and_then(|l| l.parse::<usize>().ok());
    let short = !placeholders.is_empty() && length.is_some_and(|length| length <= MAX_SEARCHED_BYTES);
    let unexpected = matches!(*method, Method::GET | Method::HEAD);
    let mut content = match content {
        Content::Begun(..) if needed => {
            return Err(Denial::new("body_too_large", "the credential needs the body, which was not read whole"));
        }
        // The writer of HTTP/1.1 leaves a body out where these methods name no length.
        Content::Stream(body) if needed || short || (unexpected && length.is_none() && !body.is_end_stream()) => {
            llm::gather(&head.headers, body, true, load).await?
        }
        content => content,
    };
    let limited = line.gate.grant(permit).is_some_and(|grant| !grant.methods.is_empty() || !grant.paths.is_empty());
    if unexpected && limited && line.gate.barriers.unexpected_bodies && !content.is_empty() {
        let why = format!(
            "servers that expect no body behind {method} may take it for the next request, which is not decided"
        );
        return Err(Denial::new("framing_ambiguous", why));
    }
    let known = if let Content::Whole(bytes) = &content { Some(&**bytes) } else { None };
    let payload = match credential {
        Some(credential) => credential.payload(&head.headers, known)?,
        None => None,
    };
    let mut hash = BodyHash::default();
    let Content::Whole(bytes) = &mut content else {
        let search = placeholders.search(&head.headers)?.map(Box::new);
        return Ok(Prepared { head, content, search, payload, hash, bare: None });
    };
    let mut bare = None;
    match credential.map(|c| inject::into_body(c.lease(), &head.headers, bytes)).transpose()?.flatten() {
        None => placeholders.check_body(&head.headers, bytes)?,
        Some((with, without)) => {
            placeholders.check_body(&head.headers, &without)?;
            bare = Some(std::mem::replace(bytes, with));
            // With the rest of the body known, its digest would tell whether a guess of the secret is right.
            hash.stop();
        }
    }
    // It may be another length by now; the relay writes it anew.
    head.headers.remove(CONTENT_LENGTH);
    Ok(Prepared { head, content, search: None, payload, hash, bare })
}

/// The request as it will be sent, with the secret in its place, and what guards its answer.
async fn inject(
    line: &Line,
    (prepared, load): (Prepared, &Load),
    method: &Method,
    websocket: bool,
    credential: Option<&Credential>,
    (call, account, seals): (&Arc<Call>, Option<&Arc<Account>>, &mut Seals),
) -> Result<(Outgoing, Option<EchoGuard>), String> {
    if let (Some(body), false) = (prepared.bare(), websocket) {
        seals.whole_request(body)?;
    }
    let Prepared { mut head, mut content, search, payload, hash, bare: _ } = prepared;
    trace::go_on(&mut head.headers, call.id());
    let echo = match credential {
        None => None,
        Some(credential) => {
            let authority = relay::authority(line.scheme, &line.host, line.port);
            let target = Target { method, authority: &authority, payload: payload.as_deref() };
            let put = credential.put_in(&mut head, &target, &line.gate.dialler, &line.gate.recorder);
            let (echo, chunks) = put.await?;
            if let Some(chunks) = chunks {
                content = content.signed(chunks).map_err(upload::unsigned)?;
            }
            Some(echo)
        }
    };
    let capture = if websocket { None } else { seals.request.take() };
    let body =
        content.held_by(load).into_body(call, hash, search, account, capture, !line.gate.barriers.request_trailers);
    let Head { headers, path, query, .. } = head;
    Ok((Outgoing { method: method.clone(), headers, path: Some(path), query, body, websocket }, echo))
}

/// What an answer goes through on its way back.
struct Back {
    echo: Option<EchoGuard>,
    counting: Option<Counting>,
    rpc: Option<(Arc<Gate>, Peer)>,
    account: Option<Arc<Account>>,
    load: Load,
    checkin: Option<Checkin>,
    seal: Option<Box<Seal>>,
}

/// The answer as the agent gets it.
fn brought_back(
    response: Response<Incoming>,
    method: &Method,
    was_http10: bool,
    back: Back,
    call: &Arc<Call>,
) -> Result<Response<DownBody>, String> {
    let Back { echo, counting, rpc, account, load, checkin, seal } = back;
    let (mut parts, body) = response.into_parts();
    let coded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if parts.headers.get_all(TRANSFER_ENCODING).iter().any(coded) {
        return Err("transfer_coded: the upstream sent its answer in a transfer coding that was not asked for".into());
    }
    framing::check(&parts.headers)
        .map_err(|why| format!("framing_ambiguous: where the answer ends is unclear: {why}"))?;
    relay::strip_hop_by_hop(&mut parts.headers);
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    let messages = parts.headers.get(CONTENT_TYPE).is_some_and(grpc);
    let mut echo = if messages { echo.map(EchoGuard::of_messages) } else { echo };
    let bodiless = *method == Method::HEAD
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || body.is_end_stream();
    let encoded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    let encoded = !bodiless && parts.headers.get_all(CONTENT_ENCODING).iter().any(encoded);
    let read = echo.is_some() || rpc.is_some() || counting.as_ref().is_some_and(Counting::is_needed);
    let decoder = if encoded && read { Some(decoder(&parts, echo.is_some())?) } else { None };
    if decoder.is_some() {
        coding::undone(&mut parts.headers);
    }
    let tap =
        counting.filter(|_| !bodiless && (!encoded || read)).map(|counting| Box::new(counting.begin(&parts.headers)));
    if let Some((gate, peer)) = &rpc {
        rpc::answered(&gate.servers, peer, &parts.headers);
    }
    let rpc = rpc.filter(|_| !bodiless).map(|(gate, peer)| {
        Box::new(Filter::new(gate, peer, &parts.headers, parts.status.is_success(), Arc::clone(call)))
    });
    if rpc.is_some() || tap.as_ref().is_some_and(|tap| tap.changes()) {
        parts.headers.remove(CONTENT_LENGTH);
    }
    if let Some(guard) = &echo {
        if guard.clean(&mut parts.headers) {
            call.found("secret_echo_redacted");
        }
        if bodiless {
            echo = None;
        } else {
            // Its length may change.
            parts.headers.remove(CONTENT_LENGTH);
        }
    }
    parts.version = if was_http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(Response::from_parts(
        parts,
        DownBody::relayed(
            Arrival::new(body, decoder),
            Arc::clone(call),
            echo,
            Count { load: (tap.is_some() || rpc.is_some()).then_some(load), tap, rpc, account },
            checkin,
            seal,
        ),
    ))
}

/// What undoes the codings of an answer that has to be read. It was asked for without any.
fn decoder(head: &http::response::Parts, searched: bool) -> Result<Decoder, String> {
    let failed = |why: String| match searched {
        true => format!("encoded_echo_uninspectable: the upstream encoded an answer that was to be searched: {why}"),
        false => format!("encoded_uncountable: the upstream encoded an answer that was to be read: {why}"),
    };
    if head.status == StatusCode::PARTIAL_CONTENT {
        return Err(failed("only a part of it came".into()));
    }
    let codings = Codings::to_read(&head.headers).map_err(|e| failed(e.to_string()))?;
    codings.stream_decoder().map_err(|e| failed(e.to_string()))
}

/// What understands the messages of a WebSocket to a language model.
fn talk(
    (gate, line): (&Arc<Gate>, &Line),
    permit: &Permit,
    route: Route,
    asked: &Asked,
    (subject, plan): (&Subject, &Plan),
) -> Box<Realtime> {
    let counted = gate.ledger.counts(Unit::Tokens) || gate.ledger.counts(Unit::Usd);
    let asked = Asked { facts: asked.facts.clone(), request: asked.request.clone(), anew: false };
    Box::new(Realtime {
        route,
        subject: subject.clone(),
        host: line.host.clone(),
        port: line.port,
        scheme: line.scheme,
        grant: permit.grant(),
        most_tokens: counted.then_some(plan.want.tokens),
        tap: Mutex::new(Counting::new(&gate.ledger, asked, plan, UsageAsked::Needless).begin(&HeaderMap::new())),
    })
}

/// The upstream agreed to a WebSocket; from here on messages are relayed both ways.
fn upgraded(
    mut response: Response<Incoming>,
    agent: Option<OnUpgrade>,
    bridge: Option<&Bridge>,
    socket: Socket,
    revoked: impl Future<Output = ()> + Send + 'static,
) -> Result<Response<DownBody>, (&'static str, CallId)> {
    let call = Arc::clone(&socket.call);
    let failed = |why: &str| {
        call.failed(why);
        Err(("the upstream could not be understood", call.id().clone()))
    };
    let Some(agent) = agent else { return failed("unasked_upgrade: the upstream switched protocols unasked") };
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    if parts.headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return failed("websocket_refused: the upstream agreed to an extension that nobody offered");
    }
    relay::strip_hop_by_hop(&mut parts.headers);
    ask_for_websocket(&mut parts.headers);
    if let Some(Err(why)) = bridge.map(|bridge| bridge.back(&mut parts)) {
        return failed(why);
    }
    parts.extensions.clear();
    if socket.echo.as_ref().is_some_and(|guard| guard.clean(&mut parts.headers)) {
        call.found("secret_echo_redacted");
    }
    tokio::spawn(async move {
        let done = match tokio::try_join!(agent, upstream) {
            Ok((agent, upstream)) => {
                websocket::relay(TokioIo::new(agent), TokioIo::new(upstream), socket, revoked).await
            }
            Err(error) => Err(format!("upgrade_failed: {error}")),
        };
        if let Err(why) = done {
            call.failed(why);
        }
    });
    Ok(Response::from_parts(parts, DownBody::Own(None)))
}
