//! MCP servers and other agents: every message is understood and decided by itself, both ways.
//!
//! What the agent sends is read whole: messages that are not granted are answered here, in a form from which the agent's
//! library recovers, and nothing of the batch leaves. What the server sends, whole or as a stream, is read message by
//! message: lists lose what is not granted or has changed, and requests of the server that are not granted are left out.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName};
use ringfence_audit::RpcSaid;
use ringfence_inspect::json::{Limits, Value};
use ringfence_inspect::llm::Framing;
use ringfence_inspect::mcp::{
    Form, FromServer, Kind, List, Message, Method, Payload, Protocol, Sender, answer, headers_agree,
};
use ringfence_inspect::sse::{self, Sse};
use ringfence_model::manifest::{RpcProtocol, RpcRules};
use ringfence_model::{Digest, HostName};
use ringfence_policy::{Decision, Denial, Policy, Request, RpcRequest};
use serde::{Deserialize, Serialize};

use crate::Gate;
use crate::inspect::MAX_BODY_BYTES;
use crate::record::Call;

/// Messages in one batch.
const MAX_BATCH: usize = 64;

/// The largest message of a stream.
const MAX_EVENT_BYTES: usize = 4 << 20;

/// Arguments of one call that are told apart.
const MAX_ARGUMENTS: usize = 256;

/// Definitions that are remembered, and sessions.
const MAX_DEFINITIONS: usize = 4096;
const MAX_SESSIONS: usize = 256;

/// The header that names a session of MCP.
///
/// # Source
/// Model Context Protocol, "Streamable HTTP", "Session Management".
static SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

const LIMITS: Limits = Limits { bytes: MAX_BODY_BYTES, depth: 100, values: 500_000 };

/// The most that is read of what earlier gates of the agent saw, and that is written to it.
const MAX_MEMORY_BYTES: u64 = 8 << 20;

/// What is known of servers: sessions for as long as the gate lives, definitions for as long as the agent does.
#[derive(Default)]
pub struct Servers {
    known: Mutex<BTreeMap<String, Known>>,
    /// Where definitions are kept, and how much is there.
    memory: Mutex<Option<(File, u64)>>,
}

/// A definition as it was seen first; a line of the memory.
#[derive(Serialize, Deserialize)]
struct Seen<'a> {
    server: Cow<'a, str>,
    tool: Cow<'a, str>,
    digest: Digest,
}

impl Servers {
    /// Takes up what earlier gates of the agent saw, and keeps there what this one sees.
    ///
    /// # Errors
    /// Whatever reading gives.
    pub fn remember(&self, mut file: File) -> std::io::Result<()> {
        file.seek(SeekFrom::Start(0))?;
        let mut text = Vec::new();
        let bytes = (&mut file).take(MAX_MEMORY_BYTES).read_to_end(&mut text)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // A line that a crash of the host left half is nobody's definition.
        for seen in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Seen<'_>>(line).ok()) {
            let known = known.entry(seen.server.into_owned()).or_default();
            known.definitions.entry(seen.tool.into_owned()).or_insert(seen.digest);
        }
        drop(known);
        *self.memory.lock().unwrap_or_else(PoisonError::into_inner) = Some((file, bytes as u64));
        Ok(())
    }

    /// Keeps a definition for the gates that come after this one.
    fn keep(&self, seen: &Seen<'_>) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((file, bytes)) = memory.as_mut() else { return };
        let Ok(line) = serde_json::to_vec(seen) else { return };
        // On a line of its own, whatever stands before it.
        let line = [b"\n", &line[..], b"\n"].concat();
        if *bytes + line.len() as u64 > MAX_MEMORY_BYTES {
            return;
        }
        match file.write_all(&line) {
            Ok(()) => *bytes += line.len() as u64,
            Err(error) => tracing::warn!(%error, "a tool's definition will be forgotten with this gate"),
        }
    }
}

#[derive(Default)]
struct Known {
    /// Definitions as they were seen first.
    definitions: BTreeMap<String, Digest>,
    sessions: BTreeSet<String>,
    order: VecDeque<String>,
}

/// The server that a call is made to, and what is granted of it.
#[derive(Clone)]
pub struct Peer {
    /// What is granted.
    pub rules: RpcRules,
    /// The grant's place.
    pub grant: usize,
    /// The paths that the grant covers, which tell servers of one host apart.
    pub paths: Vec<String>,
    /// The host.
    pub host: HostName,
    /// The port.
    pub port: u16,
}

impl Peer {
    fn server(&self) -> String {
        format!("{}:{} {}", self.host, self.port, self.paths.join(" "))
    }
}

/// What the agent said.
pub struct Said {
    /// What is sent on, which no reader reads otherwise than it was read here.
    pub bytes: Bytes,
    /// Each message, for the log.
    pub entries: Vec<RpcSaid>,
    /// The tool that is called, if one is.
    pub tool: Option<String>,
}

/// What the agent said and may not.
pub struct Refused {
    /// Why.
    pub denial: Denial,
    /// Each message, for the log.
    pub entries: Vec<RpcSaid>,
    /// Answers to what was asked, to be sent with the call's id in the place of [`CALL`]; empty if nothing was asked.
    pub answers: Vec<u8>,
}

/// Stands for a call's id, which is not known yet.
pub const CALL: &str = "c-ringfence-call";

impl Refused {
    fn unreadable(denial: Denial) -> Box<Self> {
        Box::new(Self { denial, entries: Vec::new(), answers: Vec::new() })
    }
}

/// Reads what the agent says and asks the policy about each message.
///
/// # Errors
/// [`Refused`] if any of it is not granted, or cannot be understood.
pub fn said(
    policy: &Policy,
    servers: &Servers,
    peer: &Peer,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Said, Box<Refused>> {
    session_known(servers, peer, headers).map_err(Refused::unreadable)?;
    let payload = Payload::parse(body, &LIMITS, MAX_BATCH)
        .map_err(|e| Refused::unreadable(Denial::new(e.code(), format!("the message cannot be understood: {e}"))))?;
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    headers_agree(&payload, text("mcp-method"), text("mcp-name"))
        .map_err(|e| Refused::unreadable(Denial::new(e.code(), e.to_string())))?;
    let entries: Vec<RpcSaid> = payload.messages.iter().map(entry).collect();
    let mut tool = None;
    for message in &payload.messages {
        let decided = match message.kind() {
            Kind::Request { method, .. } | Kind::Notification { method } => {
                if let Some(call) = message.tool_call() {
                    tool = Some(call.name.to_owned());
                }
                decide(policy, peer, message, method, false).and_then(|()| held(servers, peer, message))
            }
            // Answers to what the server asked, which was decided when it came.
            Kind::Error { .. } | Kind::Response { .. } => Ok(()),
        };
        if let Err(denial) = decided {
            let answers = answer_all(&payload);
            return Err(Box::new(Refused { denial, entries, answers }));
        }
    }
    let mut payload = payload;
    for message in &mut payload.messages {
        unoffer(peer, message);
    }
    Ok(Said { bytes: payload.to_bytes().into(), entries, tool })
}

/// Takes out of a client's introduction what the server is not to ask for, so that servers that keep to the protocol do
/// not.
fn unoffer(peer: &Peer, message: &mut Message<'_>) {
    let RpcRules { sampling, elicitation, roots, .. } = peer.rules;
    if message.method() != Some(&Method::Initialize) {
        return;
    }
    for (capability, granted) in [("sampling", sampling), ("elicitation", elicitation), ("roots", roots)] {
        if !granted {
            message.remove_param(&["capabilities", capability]);
        }
    }
}

/// An answer to each request, as far as each may be told.
fn answer_all(payload: &Payload<'_>) -> Vec<u8> {
    const WORDS: &str = "This call is not granted. Do not try it again; go on without it, or ask the operator.";
    let answers = payload.messages.iter().filter_map(|message| match message.kind() {
        // A tool's result reaches the model, which can go on without it; an error often ends the agent.
        Kind::Request { id, method: Method::ToolsCall } => Some(answer::denied_tool(id, &format!("{WORDS} ({CALL})"))),
        Kind::Request { id, .. } => Some(answer::denied(id, CALL)),
        _ => None,
    });
    answer::body(payload.batch, answers.collect()).unwrap_or_default()
}

fn entry(message: &Message<'_>) -> RpcSaid {
    let arguments = message.tool_call().and_then(|call| {
        call.arguments.map(|_| message.params().and_then(|params| params.get("arguments")).map(Value::digest))
    });
    RpcSaid {
        method: message.method().map_or_else(|| "response".to_owned(), |method| method.word().to_owned()),
        name: message.subject().map(|name| name.chars().take(256).collect()),
        arguments: arguments.flatten().map(|digest| digest.to_string()),
    }
}

/// Whether a session is one that this agent was given.
fn session_known(servers: &Servers, peer: &Peer, headers: &HeaderMap) -> Result<(), Denial> {
    let mut named = headers.get_all(&SESSION).iter();
    let Some(session) = named.next() else { return Ok(()) };
    let known = servers.known.lock().unwrap_or_else(PoisonError::into_inner);
    let session = session.to_str().unwrap_or_default();
    let own = known.get(&peer.server()).is_some_and(|known| known.sessions.contains(session));
    if own && named.next().is_none() {
        return Ok(());
    }
    Err(Denial::new("mcp_session_unknown", "the call names a session that no server gave this agent"))
}

/// Checks a request without messages, such as one for a stream.
///
/// # Errors
/// A denial.
pub fn bodiless(servers: &Servers, peer: &Peer, headers: &HeaderMap) -> Result<(), Denial> {
    session_known(servers, peer, headers)
}

/// Asks the policy about one message.
fn decide(
    policy: &Policy,
    peer: &Peer,
    message: &Message<'_>,
    method: &Method,
    from_server: bool,
) -> Result<(), Denial> {
    let wrong = |why: &str| Err(Denial::new("rpc_not_granted", format!("`{}` {why}", method.word())));
    let own = match (method.protocol(), peer.rules.protocol) {
        (Some(Protocol::Both), _)
        | (Some(Protocol::Mcp), RpcProtocol::Mcp)
        | (Some(Protocol::A2a), RpcProtocol::A2a) => true,
        // What is not known must be listed.
        (None, _) => peer.rules.methods.as_ref().is_some_and(|methods| methods.iter().any(|m| m == method.word())),
        _ => false,
    };
    if !own {
        return wrong("is not of the protocol that the grant is for");
    }
    match (method.sender(), from_server) {
        (Some(Sender::Server), false) => return wrong("is for servers to say"),
        (Some(Sender::Client), true) => return wrong("is for clients to say"),
        _ => {}
    }
    let mut arguments = Vec::new();
    if let Some(call) = message.tool_call() {
        for (key, value) in call.arguments.iter().flat_map(|arguments| arguments.iter()) {
            flatten(key, value, &mut arguments)?;
        }
    }
    let request = RpcRequest {
        grant: peer.grant,
        host: &peer.host,
        port: peer.port,
        method: method.word(),
        name: message.subject(),
        arguments: &arguments,
        value: message.params().and_then(|params| params.get("arguments")),
        from_server,
    };
    match policy.decide(&Request::Rpc(request)) {
        Decision::Allow(_) => Ok(()),
        Decision::Deny(denial) => Err(denial),
    }
}

/// Every value within an argument, by its path.
fn flatten(path: &str, value: &Value<'_>, out: &mut Vec<(String, String)>) -> Result<(), Denial> {
    if out.len() >= MAX_ARGUMENTS {
        return Err(Denial::new("argument_not_granted", format!("the call has more than {MAX_ARGUMENTS} arguments")));
    }
    let text = match value {
        Value::Object(object) => {
            return object.iter().try_for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, out));
        }
        // Each element must match, so all have the list's path.
        Value::List(list) => return list.iter().try_for_each(|value| flatten(path, value, out)),
        Value::Text(text) => text.to_string(),
        other => String::from_utf8_lossy(&other.to_bytes()).into_owned(),
    };
    out.push((path.to_owned(), text));
    Ok(())
}

/// Whether the definition of a tool is the one that is granted.
fn held(servers: &Servers, peer: &Peer, message: &Message<'_>) -> Result<(), Denial> {
    let Some(call) = message.tool_call() else { return Ok(()) };
    let known = servers.known.lock().unwrap_or_else(PoisonError::into_inner);
    let changed = known.get(&peer.server()).is_some_and(|known| known.definitions.contains_key(&changed(call.name)));
    if changed {
        let why = format!("the server changed what tool `{}` is, and nobody has approved that", call.name);
        return Err(Denial::new("mcp_definition_changed", why));
    }
    Ok(())
}

/// The key under which a change is remembered; no tool has a name with NUL in it.
fn changed(name: &str) -> String {
    format!("\0{name}")
}

/// Takes what an answer's head tells: the session that it begins.
pub fn answered(servers: &Servers, peer: &Peer, headers: &HeaderMap) {
    let Some(session) = headers.get(&SESSION).and_then(|value| value.to_str().ok()) else { return };
    let mut known = servers.known.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.entry(peer.server()).or_default();
    if known.sessions.insert(session.to_owned()) {
        known.order.push_back(session.to_owned());
    }
    if known.order.len() > MAX_SESSIONS
        && let Some(oldest) = known.order.pop_front()
    {
        known.sessions.remove(&oldest);
    }
}

/// Reads what a server says, and lets on what may go on.
pub struct Filter {
    gate: Arc<Gate>,
    peer: Peer,
    call: Arc<Call>,
    form: Framed,
}

enum Framed {
    /// Held until it is whole.
    Whole(BytesMut),
    /// As events.
    Events(Sse),
    /// Nothing of it is a message: an answer without content, or a page that says what went wrong.
    Other,
    /// It was cut.
    Over,
}

impl Filter {
    /// Reads an answer with these headers.
    #[must_use]
    pub fn new(gate: Arc<Gate>, peer: Peer, headers: &HeaderMap, success: bool, call: Arc<Call>) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let form = match Framing::of(kind) {
            Framing::Sse => Framed::Events(Sse::new(MAX_EVENT_BYTES)),
            Framing::Json => Framed::Whole(BytesMut::new()),
            _ if success => Framed::Whole(BytesMut::new()),
            _ => Framed::Other,
        };
        Self { gate, peer, call, form }
    }

    /// Takes a chunk and gives what may go on; `true` if the answer ends with it.
    pub fn push(&mut self, chunk: Bytes) -> (Bytes, bool) {
        let Self { gate, peer, call, form } = self;
        match form {
            Framed::Other => (chunk, false),
            Framed::Over => (Bytes::new(), true),
            Framed::Whole(held) => {
                held.extend_from_slice(&chunk);
                if held.len() > MAX_BODY_BYTES {
                    call.found("mcp_answer_too_large");
                    self.form = Framed::Over;
                    return (broken(), true);
                }
                (Bytes::new(), false)
            }
            Framed::Events(events) => {
                let mut out = BytesMut::new();
                let mut rest = &chunk[..];
                let mut over = false;
                while let Some(piece) = events.next(&mut rest) {
                    if piece.oversized {
                        call.found("mcp_answer_too_large");
                        over = true;
                        break;
                    }
                    let Some(event) = &piece.event else {
                        // Comments keep a connection alive.
                        out.extend_from_slice(piece.raw);
                        continue;
                    };
                    match of_event(gate, peer, call, event) {
                        Passed::AsItIs => out.extend_from_slice(piece.raw),
                        Passed::Changed(data) => {
                            let name = Some(&*event.name).filter(|name| *name != "message");
                            out.extend_from_slice(&sse::encode(name, event.id.as_deref(), &data));
                        }
                        Passed::Nothing => {}
                    }
                }
                if over {
                    self.form = Framed::Over;
                }
                (out.freeze(), over)
            }
        }
    }

    /// How much is held because it is not whole.
    pub(crate) fn held(&self) -> usize {
        match &self.form {
            Framed::Whole(held) => held.len(),
            Framed::Events(events) => events.held(),
            Framed::Other | Framed::Over => 0,
        }
    }

    /// Lets go of what is held, for which there is no room. Gives what the agent is told, if it was told nothing yet.
    pub(crate) fn give_up(&mut self) -> Option<Bytes> {
        let whole = matches!(std::mem::replace(&mut self.form, Framed::Over), Framed::Whole(_));
        whole.then(|| failed("the gate has no room for the server's answer; try again later"))
    }

    /// What is left when the answer has ended.
    pub fn finish(&mut self) -> Bytes {
        match std::mem::replace(&mut self.form, Framed::Over) {
            // An event that no empty line ends is none.
            Framed::Events(_) | Framed::Other | Framed::Over => Bytes::new(),
            Framed::Whole(held) if held.iter().all(u8::is_ascii_whitespace) => held.freeze(),
            Framed::Whole(held) => match Payload::parse(&held, &LIMITS, MAX_BATCH) {
                Ok(payload) => match of_payload(&self.gate, &self.peer, &self.call, payload) {
                    Passed::AsItIs => held.freeze(),
                    Passed::Changed(bytes) => bytes.into(),
                    Passed::Nothing => Bytes::new(),
                },
                Err(error) => {
                    self.call.found(error.code());
                    broken()
                }
            },
        }
    }
}

/// What the agent gets in the place of an answer that cannot be understood.
fn broken() -> Bytes {
    failed("the server's answer cannot be understood")
}

fn failed(words: &str) -> Bytes {
    const INTERNAL_ERROR: i64 = -32_603;
    answer::error(None, INTERNAL_ERROR, words, None).to_bytes().into()
}

enum Passed {
    AsItIs,
    Changed(Vec<u8>),
    Nothing,
}

fn of_event(gate: &Gate, peer: &Peer, call: &Call, event: &sse::Event<'_>) -> Passed {
    match FromServer::read(event, &LIMITS, MAX_BATCH) {
        Ok(FromServer::Nothing) => Passed::AsItIs,
        Ok(FromServer::Endpoint(endpoint)) if leads_elsewhere(&endpoint, peer) => {
            call.found("mcp_endpoint_elsewhere");
            Passed::Nothing
        }
        Ok(FromServer::Endpoint(_)) => Passed::AsItIs,
        Ok(FromServer::Messages(payload)) => of_payload(gate, peer, call, payload),
        Err(error) => {
            call.found(error.code());
            Passed::Nothing
        }
    }
}

/// Whether the place that a server names for the agent's messages is another server's.
fn leads_elsewhere(endpoint: &str, peer: &Peer) -> bool {
    let Ok(uri) = endpoint.parse::<http::Uri>() else { return true };
    let Some(authority) = uri.authority() else { return !endpoint.starts_with('/') || endpoint.starts_with("//") };
    !authority.host().parse::<HostName>().is_ok_and(|host| host == peer.host)
        || authority.port_u16().is_some_and(|port| port != peer.port)
}

fn of_payload(gate: &Gate, peer: &Peer, call: &Call, payload: Payload<'_>) -> Passed {
    let mut changed_any = false;
    let mut payload = payload;
    payload.messages.retain(|message| {
        let keeps = may_pass(gate, peer, message);
        if !keeps {
            call.found("mcp_server_message_dropped");
            changed_any = true;
        }
        keeps
    });
    for message in &mut payload.messages {
        changed_any |= filter_lists(gate, peer, call, message);
    }
    match (changed_any, payload.messages.is_empty()) {
        (false, _) => Passed::AsItIs,
        (true, true) => Passed::Nothing,
        (true, false) => Passed::Changed(payload.to_bytes()),
    }
}

/// Whether a message of the server may reach the agent.
fn may_pass(gate: &Gate, peer: &Peer, message: &Message<'_>) -> bool {
    match message.kind() {
        Kind::Request { method, .. } | Kind::Notification { method } => {
            // Whatever an unknown notification tells, it asks for nothing.
            let told = method.form() != Some(Form::Request) && message.id().is_none();
            decide(&gate.policy, peer, message, method, true).is_ok() || told && method.protocol().is_none()
        }
        Kind::Error { .. } => true,
        // Since revision 2026-07-28 a result may itself ask for something.
        Kind::Response { .. } => message
            .asks()
            .is_ok_and(|asks| asks.iter().all(|(_, method)| decide(&gate.policy, peer, message, method, true).is_ok())),
    }
}

/// Takes out of a list what is not granted, and what is not what it was.
fn filter_lists(gate: &Gate, peer: &Peer, call: &Call, message: &mut Message<'_>) -> bool {
    let lists = [
        (List::Tools, "tools"),
        (List::Prompts, "prompts"),
        (List::Resources, "resources"),
        (List::Templates, "resourceTemplates"),
    ];
    let Some(result) = message.result_mut() else { return false };
    let mut any = false;
    for (list, key) in lists {
        if result.get(key).is_none_or(|value| value.as_list().is_none()) {
            continue;
        }
        let granted = match list {
            List::Tools => &peer.rules.tools,
            List::Prompts => &peer.rules.prompts,
            List::Resources | List::Templates => &peer.rules.resources,
        };
        let mut found = BTreeSet::new();
        let filtered = list.retain(result, |definition| {
            let covered = granted.as_ref().is_none_or(|globs| {
                globs.iter().any(|glob| ringfence_model::manifest::glob_covers(glob, definition.name))
            });
            if !covered {
                found.insert("mcp_hidden");
                return false;
            }
            if list == List::Tools && !is_as_before(&gate.servers, peer, definition.name, definition.digest()) {
                found.insert("mcp_definition_changed");
                return false;
            }
            true
        });
        found.into_iter().for_each(|finding| call.found(finding));
        match filtered {
            Ok(filtered) => any |= !filtered.removed.is_empty(),
            Err(error) => {
                // A list that can be read in two ways is shown as none.
                call.found(error.code());
                any |= result.set(&[key], Value::List(Vec::new()));
            }
        }
    }
    any
}

/// Whether a tool is what the operator pinned, or else what it was when it was first seen.
fn is_as_before(servers: &Servers, peer: &Peer, name: &str, digest: Digest) -> bool {
    let mut known = servers.known.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.entry(peer.server()).or_default();
    let first = match peer.rules.pins.get(name) {
        Some(pinned) => *pinned,
        None if known.definitions.len() >= MAX_DEFINITIONS && !known.definitions.contains_key(name) => return false,
        None => match known.definitions.get(name) {
            Some(first) => *first,
            None => {
                known.definitions.insert(name.to_owned(), digest);
                servers.keep(&Seen { server: peer.server().into(), tool: name.into(), digest });
                digest
            }
        },
    };
    if first == digest {
        known.definitions.remove(&changed(name));
        return true;
    }
    known.definitions.insert(changed(name), digest);
    false
}
