//! An open session: messages to and fro, one by one.
//!
//! What the server will answer is kept in a queue, so that each answer is known for what it answers. The queue decides
//! nothing: whatever goes to the server was decided by itself. It says whose outcome an answer is, and in place of
//! which of the server's errors the agent is told the gate's.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use ringfence_audit::SqlAsked;
use ringfence_model::CallId;
use ringfence_policy::{Denial, Permit, Policy};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::Notify;

use super::classify::{self, Summary};
use super::startup::{self, Opened};
use super::wire::{self, Body, Message};
use super::{Io, Target};
use crate::budget::{Account, Amounts, Behalf};
use crate::misdirect::Search;
use crate::record::Call;
use crate::shelf::{FULL, Full, Load};
use crate::tcp::{IDLE, Quiet};
use crate::{Gate, call, decide, relay};

/// The longest text of SQL.
pub const MAX_QUERY: usize = 1024 * 1024;

/// The longest of all other messages that are read whole.
const MAX_WHOLE: usize = 64 * 1024;

/// How far into a message its names may reach.
const MAX_NAMES: usize = 4 * 1024;

/// Answers that are waited for at once; beyond them the agent waits to be heard.
const MAX_EXPECTED: usize = 32 * 1024;

/// Prepared statements and portals that are remembered by name; others are recorded without what they are about.
const MAX_REMEMBERED: usize = 4096;

/// Different effects of prepared statements that are remembered.
const MAX_EFFECTS: usize = 256;

/// One direction's buffer.
const BUFFER: usize = 32 * 1024;

/// How long a statement may take to come.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a server may take to close after the agent did.
const FAREWELL: Duration = Duration::from_secs(5);

/// What the server is told in place of what was denied. It is no SQL, so it fails, and a transaction with it.
const DENIED: &str = "RINGFENCE DENIED";

/// Relays a session until either side ends it.
///
/// # Errors
/// Why it was cut, with a stable code before the first colon.
pub async fn run(
    gate: &Arc<Gate>,
    target: &Target,
    agent: Io,
    hello: &startup::Session,
    opened: Opened,
    call: &Arc<Call>,
    account: Option<&Account>,
) -> Result<(), String> {
    let Opened { stream, way, told, cancel } = opened;
    let (from_agent, mut to_agent) = tokio::io::split(agent);
    let (from_server, to_server) = tokio::io::split(stream);
    let entry = cancel.map(|cancel| gate.sessions.enter(target, &way, cancel)).transpose()?;
    let key = entry.as_ref().map(|(_, pid, key)| (*pid, *key));
    let welcome = welcome(hello, &told, key).ok_or("upstream_broke: a message is too long")?;
    to_agent.write_all(&welcome).await.map_err(|e| format!("agent_broke: {e}"))?;

    let session = Session {
        gate,
        target,
        call,
        account,
        quiet: Quiet::new(IDLE),
        flow: Mutex::default(),
        drained: Notify::new(),
        prepared: Mutex::default(),
    };
    let mut up = Pipe::new(from_agent, to_server, gate.shelf.load(), ["agent_broke", "upstream_broke"]);
    let mut down = Pipe::new(from_server, to_agent, gate.shelf.load(), ["upstream_broke", "agent_broke"]);
    let mut names = Names::default();
    let ended = {
        let answers = session.answers(&mut down);
        let questions = session.questions(&mut up, &mut names);
        tokio::pin!(answers);
        tokio::select! {
            ended = &mut answers => ended,
            // Its last answers may still be on their way.
            ended = questions => match ended {
                Ok(()) => tokio::time::timeout(FAREWELL, answers).await.unwrap_or(Ok(())),
                Err(why) => Err(why),
            },
            why = session.quiet.too_long() => Err(why),
            () = gate.until_denied(|policy| session.still_allowed(policy)) => Err(relay::REVOKED.to_owned()),
        }
    };
    // Either side may be gone already.
    let _ = down.to.shutdown().await;
    let _ = up.to.shutdown().await;
    ended
}

/// What the agent hears once its session is open.
fn welcome(hello: &startup::Session, told: &[u8], key: Option<(u32, u32)>) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    if let Some(extensions) = &hello.newer {
        let count = u32::try_from(extensions.len()).ok()?;
        let message = Message::new(b'v').u32(wire::VERSION).u32(count);
        all.extend(extensions.iter().fold(message, |message, name| message.text(name)).finish()?);
    }
    all.extend(Message::new(b'R').u32(0).finish()?);
    all.extend_from_slice(told);
    if let Some((pid, key)) = key {
        all.extend(Message::new(b'K').u32(pid).u32(key).finish()?);
    }
    all.extend(Message::new(b'Z').bytes(b"I").finish()?);
    Some(all)
}

/// What the server will answer.
struct Expected {
    kind: Kind,
    /// The statement that it is about.
    call: Option<Arc<Call>>,
    /// Whether the gate denied it, and the denial's id.
    denied: Option<Option<CallId>>,
}

/// Kinds of messages by the answer that they get.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bind,
    Close,
    Describe,
    Execute,
    Parse,
    /// Ends by `ReadyForQuery`.
    Query,
    Sync,
}

/// What both directions know of the other.
#[derive(Default)]
struct Flow {
    expected: VecDeque<Expected>,
    /// Whether the server passes over messages until the next `Sync`, after an error.
    skipping: bool,
    /// Whether the server waits for the rows of a `COPY`.
    copying: bool,
}

impl Flow {
    fn expect(&mut self, expected: Expected) {
        if self.skipping && expected.kind != Kind::Sync {
            if let Some(call) = &expected.call {
                call.failed("skipped: an earlier message failed");
            }
            return;
        }
        // A `Sync` among the rows of a `COPY` gets no answer.
        if !(self.copying && expected.kind == Kind::Sync) {
            self.expected.push_back(expected);
        }
    }

    fn front_is(&self, kind: Kind) -> bool {
        self.expected.front().is_some_and(|expected| expected.kind == kind)
    }

    fn answered(&mut self, kind: Kind) {
        if self.front_is(kind) {
            self.expected.pop_front();
        }
    }

    /// After an error. The answer is the denial that it stands for, if it does.
    fn failed(&mut self, code: &str) -> Option<Option<CallId>> {
        self.copying = false;
        let front = self.expected.front_mut()?;
        if let Some(call) = &front.call {
            call.failed(format!("sql_error: {code}"));
        }
        let denied = front.denied.take();
        if front.kind != Kind::Query && front.kind != Kind::Sync {
            while self.expected.front().is_some_and(|expected| expected.kind != Kind::Sync) {
                self.expected.pop_front();
            }
            self.skipping = self.expected.is_empty();
        }
        denied
    }

    fn ready(&mut self) {
        (self.skipping, self.copying) = (false, false);
        while let Some(expected) = self.expected.pop_front() {
            if matches!(expected.kind, Kind::Query | Kind::Sync) {
                return;
            }
        }
    }

    fn wants_rows(&mut self) {
        self.copying = true;
        // What the agent sent behind its `COPY` without waiting is passed over.
        let front = self.expected.pop_front();
        self.expected.retain(|expected| expected.kind != Kind::Sync);
        self.expected.extend(front);
        self.expected.rotate_right(usize::from(!self.expected.is_empty()));
    }
}

/// What was prepared, by name.
#[derive(Default)]
struct Names {
    statements: HashMap<Vec<u8>, Arc<Summary>>,
    portals: HashMap<Vec<u8>, Arc<Summary>>,
}

struct Session<'a> {
    gate: &'a Arc<Gate>,
    target: &'a Target,
    /// The session itself, in the log.
    call: &'a Arc<Call>,
    account: Option<&'a Account>,
    quiet: Quiet,
    flow: Mutex<Flow>,
    drained: Notify,
    /// What statements do that the server keeps, and may be told to run by their names.
    prepared: Mutex<Prepared>,
}

/// Kinds and functions of statements.
type Effects = (Vec<&'static str>, Vec<String>);

#[derive(Default)]
struct Prepared {
    effects: BTreeSet<Effects>,
    /// Whether there were more than are remembered.
    more: bool,
}

impl Session<'_> {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn went(&self, bytes: usize) -> Result<(), String> {
        self.quiet.broken();
        match self.account {
            Some(account) if !account.bytes(bytes) => Err("budget_exhausted: no bytes are left".into()),
            _ => Ok(()),
        }
    }

    /// What the agent says.
    async fn questions<R, W>(&self, pipe: &mut Pipe<R, W>, names: &mut Names) -> Result<(), String>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while let Some((kind, length)) = pipe.head().await? {
            self.went(length + 5)?;
            self.call.sent(length + 5);
            while self.flow().expected.len() >= MAX_EXPECTED {
                pipe.flush().await?;
                self.drained.notified().await;
            }
            if self.flow().copying && matches!(kind, b'B' | b'C' | b'D' | b'E' | b'F' | b'P' | b'Q') {
                return Err("protocol: a message among the rows of a copy".into());
            }
            match kind {
                b'Q' => self.query(pipe, length).await?,
                b'P' => self.parse(pipe, length, names).await?,
                b'B' => self.bind(pipe, length, names).await?,
                b'E' => self.execute(pipe, length, names).await?,
                b'C' | b'D' => {
                    let body = pipe.whole(length, MAX_NAMES).await?;
                    let kind_of = if kind == b'C' { Kind::Close } else { Kind::Describe };
                    if kind == b'C' {
                        names.forget(&body);
                    }
                    self.flow().expect(Expected { kind: kind_of, call: None, denied: None });
                    pipe.put(kind, &body)?;
                }
                b'S' => {
                    let body = pipe.whole(length, 0).await?;
                    self.flow().expect(Expected { kind: Kind::Sync, call: None, denied: None });
                    pipe.put(kind, &body)?;
                }
                b'd' => pipe.through(kind, length, self.search()?).await?,
                b'H' | b'c' | b'f' => {
                    let body = pipe.whole(length, MAX_WHOLE).await?;
                    if kind != b'H' {
                        self.flow().copying = false;
                    }
                    pipe.put(kind, &body)?;
                }
                b'F' => {
                    // A function by its number, so that it cannot be known which.
                    pipe.skip(length).await?;
                    let summary = classify::understand("");
                    let denial = Denial::new("statement_not_granted", "no grant allows a call by number");
                    let id = self.deny(&summary, &denial).await;
                    self.refuse(pipe, Kind::Query, Some(id))?;
                }
                b'X' => {
                    pipe.whole(length, 0).await?;
                    pipe.put(kind, &[])?;
                    return pipe.flush().await;
                }
                _ => return Err(format!("protocol: a message of unknown type {kind}")),
            }
        }
        Ok(())
    }

    /// A search for placeholders in what streams.
    fn search(&self) -> Result<Option<Search>, String> {
        self.gate.placeholders.search(&HeaderMap::new()).map_err(|denial| cut(&denial))
    }

    /// Whether a later policy would let this session be as it is. What it is allowed from now on is asked anew, so this
    /// is about what it began with, and about what the server keeps for it.
    fn still_allowed(&self, policy: &Policy) -> bool {
        let Target { host, port, grant, .. } = self.target;
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        policy.other_than_http(host, *port).is_some_and(|(_, now)| now == grant)
            && decide::database(policy, host, *port).is_ok()
            && !prepared.more
            && prepared
                .effects
                .iter()
                .all(|(classes, functions)| decide::statement(policy, host, *port, classes, functions).is_ok())
    }

    /// Remembers what a statement does that the server may keep.
    fn keep(&self, summary: &Summary) {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let effects = (summary.classes.clone(), summary.functions.clone());
        if prepared.effects.len() < MAX_EFFECTS || prepared.effects.contains(&effects) {
            prepared.effects.insert(effects);
        } else {
            prepared.more = true;
        }
    }

    fn subject(&self, summary: &Summary) -> crate::record::Subject {
        self.target.subject(SqlAsked {
            classes: summary.classes.iter().map(ToString::to_string).collect(),
            verbs: summary.verbs.clone(),
            tables: summary.tables.clone(),
            functions: summary.functions.clone(),
            digest: Some(summary.digest.clone()),
            ..SqlAsked::default()
        })
    }

    /// Decides about a text of SQL. What is denied is in the log, and its id is the answer.
    async fn decide(&self, text: &[u8]) -> Result<(Arc<Summary>, Permit), CallId> {
        // Every session has UTF-8, so no other text is what the server would read.
        let summary = match std::str::from_utf8(text) {
            Ok(text) => classify::understand(text),
            Err(_) => classify::unreadable("it is not UTF-8"),
        };
        match self.gate.placeholders.find(text) {
            Some(found) => Err(self.deny(&summary, &found.denial("a statement")).await),
            None => self.decide_about(Arc::new(summary)).await,
        }
    }

    async fn decide_about(&self, summary: Arc<Summary>) -> Result<(Arc<Summary>, Permit), CallId> {
        let Target { host, port, .. } = self.target;
        let gate = self.gate.latest();
        match decide::statement(&gate.policy, host, *port, &summary.classes, &summary.functions) {
            Ok(permit) => Ok((summary, permit)),
            Err(mut denial) => {
                if let Some(note) = &summary.note {
                    denial.why = format!("{}: {note}", denial.why);
                }
                Err(self.deny(&summary, &denial).await)
            }
        }
    }

    async fn deny(&self, summary: &Summary, denial: &Denial) -> CallId {
        self.gate.recorder.deny(self.subject(summary), denial).await
    }

    /// Takes what it costs, and puts the intent into the log. Otherwise it is not carried out, and the answer is the id of
    /// the denial, where there is one.
    async fn intend(&self, summary: &Summary, permit: &Permit, bytes: usize) -> Result<Arc<Call>, Option<CallId>> {
        let price = Amounts { requests: summary.statements.max(1), ..Amounts::default() };
        if let Err(spent) = call::account(&self.gate.latest(), price, Behalf::default()).await {
            return Err(Some(self.deny(summary, &Denial::new("budget_exhausted", spent.why())).await));
        }
        let subject = self.subject(summary);
        let call = self.gate.recorder.allow(subject, permit, self.target.untrusted()).await.map_err(|_| None)?;
        call.sent(bytes);
        Ok(call)
    }

    /// Has the server fail in place of what was denied.
    fn refuse<R, W>(&self, pipe: &mut Pipe<R, W>, kind: Kind, id: Option<CallId>) -> Result<(), String> {
        self.flow().expect(Expected { kind, call: None, denied: Some(id) });
        let message = match kind {
            Kind::Query => Message::new(b'Q').text(DENIED),
            _ => Message::new(b'P').text("").text(DENIED).bytes(&[0, 0]),
        };
        pipe.out.extend(message.finish().ok_or("upstream_broke: a message is too long")?);
        Ok(())
    }

    /// What has statements in it; nothing if it was refused unread.
    async fn statement<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &self,
        pipe: &mut Pipe<R, W>,
        kind: Kind,
        length: usize,
    ) -> Result<Option<Vec<u8>>, String> {
        let (unread, denial) = if length > MAX_QUERY {
            let why = "the statement is longer than 1 MiB";
            ("it is longer than 1 MiB", Denial::new("statement_not_granted", why))
        } else {
            match pipe.room(length).await? {
                Ok(()) => {
                    let whole = tokio::time::timeout(STATEMENT_TIMEOUT, pipe.whole(length, MAX_QUERY)).await;
                    return whole.map_err(|_| "protocol: a statement does not come to its end")?.map(Some);
                }
                Err(full) => ("there is no room for it", Denial::new(FULL, full.to_string())),
            }
        };
        pipe.skip(length).await?;
        let id = self.deny(&classify::unreadable(unread), &denial).await;
        self.refuse(pipe, kind, Some(id))?;
        Ok(None)
    }

    async fn query<R, W>(&self, pipe: &mut Pipe<R, W>, length: usize) -> Result<(), String>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let Some(body) = self.statement(pipe, Kind::Query, length).await? else { return Ok(()) };
        let mut reader = Body::new(&body);
        let text = reader.text().filter(|_| reader.rest().is_empty()).ok_or("protocol: a query does not end once")?;
        match self.decide(text).await {
            Err(id) => self.refuse(pipe, Kind::Query, Some(id)),
            Ok((summary, permit)) => match self.intend(&summary, &permit, length).await {
                Err(id) => self.refuse(pipe, Kind::Query, id),
                Ok(call) => {
                    if summary.keeps {
                        self.keep(&summary);
                    }
                    self.flow().expect(Expected { kind: Kind::Query, call: Some(call), denied: None });
                    pipe.put(b'Q', &body)
                }
            },
        }
    }

    async fn parse<R, W>(&self, pipe: &mut Pipe<R, W>, length: usize, names: &mut Names) -> Result<(), String>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let Some(body) = self.statement(pipe, Kind::Parse, length).await? else { return Ok(()) };
        let mut reader = Body::new(&body);
        let (Some(name), Some(text)) = (reader.text(), reader.text()) else {
            return Err("protocol: a statement does not end".into());
        };
        match self.decide(text).await {
            Err(id) => self.refuse(pipe, Kind::Parse, Some(id)),
            Ok((summary, _)) => {
                self.keep(&summary);
                remember(&mut names.statements, name, Some(summary));
                self.flow().expect(Expected { kind: Kind::Parse, call: None, denied: None });
                pipe.put(b'P', &body)
            }
        }
    }

    async fn bind<R, W>(&self, pipe: &mut Pipe<R, W>, length: usize, names: &mut Names) -> Result<(), String>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let first = pipe.some(length.min(MAX_NAMES)).await?;
        let mut reader = Body::new(&first);
        let (Some(portal), Some(statement)) = (reader.text(), reader.text()) else {
            return Err("protocol: the names of a binding do not end".into());
        };
        remember(&mut names.portals, portal, names.statements.get(statement).cloned());
        self.flow().expect(Expected { kind: Kind::Bind, call: None, denied: None });
        let mut search = self.search()?;
        if let Some(search) = &mut search {
            search.check(&first).map_err(|denial| cut(&denial))?;
        }
        pipe.begin(b'B', length)?;
        pipe.out.extend_from_slice(&first);
        pipe.rest(length - first.len(), search).await
    }

    async fn execute<R, W>(&self, pipe: &mut Pipe<R, W>, length: usize, names: &Names) -> Result<(), String>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let body = pipe.whole(length, MAX_NAMES).await?;
        let portal = Body::new(&body).text().ok_or("protocol: the name of a portal does not end")?;
        let decided = match names.portals.get(portal) {
            // The policy may be another since it was prepared.
            Some(summary) => self.decide_about(Arc::clone(summary)).await,
            // Prepared or declared in SQL, and decided there.
            None => self.decide(b"").await,
        };
        let call = match decided {
            Err(id) => return self.refuse(pipe, Kind::Execute, Some(id)),
            Ok((summary, permit)) => self.intend(&summary, &permit, length).await,
        };
        let call = match call {
            Err(id) => return self.refuse(pipe, Kind::Execute, id),
            Ok(call) => call,
        };
        self.flow().expect(Expected { kind: Kind::Execute, call: Some(call), denied: None });
        pipe.put(b'E', &body)
    }

    /// What the server says.
    async fn answers<R, W>(&self, pipe: &mut Pipe<R, W>) -> Result<(), String>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        while let Some((kind, length)) = pipe.head().await? {
            self.went(length + 5)?;
            self.call.received(length + 5);
            {
                let mut flow = self.flow();
                if let Some(call) = flow.expected.front().and_then(|expected| expected.call.as_ref()) {
                    call.received(length + 5);
                }
                match kind {
                    b'1' => flow.answered(Kind::Parse),
                    b'2' => flow.answered(Kind::Bind),
                    b'3' => flow.answered(Kind::Close),
                    b'n' | b'T' => flow.answered(Kind::Describe),
                    b'C' | b'I' | b's' => flow.answered(Kind::Execute),
                    b'G' => flow.wants_rows(),
                    _ => {}
                }
            }
            match kind {
                // Rows, and whatever else is only shown.
                b'1' | b'2' | b'3' | b'A' | b'C' | b'D' | b'G' | b'H' | b'I' | b'N' | b'T' | b'c' | b'd' | b'n'
                | b's' | b't' => pipe.through(kind, length, None).await?,
                b'E' => {
                    pipe.room(length).await?.map_err(Full::why)?;
                    let body = pipe.whole(length, MAX_QUERY).await?;
                    let denied = self.flow().failed(&wire::error_code(&body));
                    match denied {
                        None => pipe.put(kind, &body)?,
                        Some(id) => pipe.out.extend(denial(id.as_ref())),
                    }
                }
                b'S' => {
                    let body = pipe.whole(length, MAX_WHOLE).await?;
                    if !startup::still_settled(&body, self.target.rules.read_only()) {
                        return Err(startup::UNSETTLED.into());
                    }
                    pipe.put(kind, &body)?;
                }
                b'Z' => {
                    let body = pipe.whole(length, 1).await?;
                    self.flow().ready();
                    pipe.put(kind, &body)?;
                }
                _ => return Err(format!("protocol: the database sends a message of unknown type {kind}")),
            }
            self.drained.notify_one();
        }
        Ok(())
    }
}

/// Why a session is cut, with its code.
fn cut(denial: &Denial) -> String {
    format!("{}: {}", denial.code, denial.why)
}

/// What the agent is told of a denial: that there is one, and its id for the operator.
fn denial(id: Option<&CallId>) -> Vec<u8> {
    let hint = id.map(|id| format!("the operator can explain call {id}"));
    wire::error("ERROR", "42501", "this statement is not granted", hint.as_deref())
}

fn remember(names: &mut HashMap<Vec<u8>, Arc<Summary>>, name: &[u8], decided: Option<Arc<Summary>>) {
    match decided {
        Some(decided) if names.len() < MAX_REMEMBERED || names.contains_key(name) => {
            names.insert(name.to_vec(), decided);
        }
        _ => {
            names.remove(name);
        }
    }
}

impl Names {
    fn forget(&mut self, body: &[u8]) {
        let mut body = Body::new(body);
        match (body.byte(), body.text()) {
            (Some(b'S'), Some(name)) => drop(self.statements.remove(name)),
            (Some(b'P'), Some(name)) => drop(self.portals.remove(name)),
            _ => {}
        }
    }
}

/// One direction. What goes out is gathered for as long as there is more to read.
struct Pipe<R, W> {
    from: BufReader<R>,
    to: W,
    out: Vec<u8>,
    /// What is held for what is read whole, and for what goes out.
    load: Load,
    /// Codes of what breaks when reading and when writing.
    codes: [&'static str; 2],
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Pipe<R, W> {
    fn new(from: R, to: W, load: Load, codes: [&'static str; 2]) -> Self {
        Self { from: BufReader::with_capacity(BUFFER, from), to, out: Vec::new(), load, codes }
    }

    async fn flush(&mut self) -> Result<(), String> {
        let code = self.codes[1];
        let broke = |e: std::io::Error| format!("{code}: {e}");
        if !self.out.is_empty() {
            self.to.write_all(&self.out).await.map_err(broke)?;
            self.out.clear();
            self.out.shrink_to(2 * BUFFER);
            self.load.shrink(0);
        }
        self.to.flush().await.map_err(broke)
    }

    /// Sends what waits, if it would have to wait for what is read next, or is much.
    async fn before(&mut self, length: usize) -> Result<(), String> {
        if !self.out.is_empty() && (self.from.buffer().len() < length || self.out.len() >= BUFFER) {
            self.flush().await?;
        }
        Ok(())
    }

    /// Makes room for a body that is to be read whole.
    async fn room(&mut self, length: usize) -> Result<Result<(), Full>, String> {
        self.before(length).await?;
        Ok(self.load.hold(self.out.len() + length).await)
    }

    /// The type of the next message and the length of its body; `None` at the end.
    async fn head(&mut self) -> Result<Option<(u8, usize)>, String> {
        let code = self.codes[0];
        let broke = |e: std::io::Error| format!("{code}: {e}");
        self.before(5).await?;
        if self.from.fill_buf().await.map_err(broke)?.is_empty() {
            return Ok(None);
        }
        let mut head = [0; 5];
        self.from.read_exact(&mut head).await.map_err(broke)?;
        wire::head(head).map(Some).map_err(|why| format!("protocol: {why}"))
    }

    /// The next bytes.
    async fn some(&mut self, length: usize) -> Result<Vec<u8>, String> {
        self.before(length).await?;
        let code = self.codes[0];
        let mut body = vec![0; length];
        self.from.read_exact(&mut body).await.map_err(|e| format!("{code}: {e}"))?;
        Ok(body)
    }

    /// A whole body.
    async fn whole(&mut self, length: usize, most: usize) -> Result<Vec<u8>, String> {
        if length > most {
            return Err("protocol: a message is too long".into());
        }
        self.some(length).await
    }

    fn begin(&mut self, kind: u8, length: usize) -> Result<(), String> {
        let length = u32::try_from(length + 4).map_err(|_| "protocol: a message is too long")?;
        self.out.push(kind);
        self.out.extend_from_slice(&length.to_be_bytes());
        Ok(())
    }

    fn put(&mut self, kind: u8, body: &[u8]) -> Result<(), String> {
        self.begin(kind, body.len())?;
        self.out.extend_from_slice(body);
        Ok(())
    }

    /// Passes a message on as it comes.
    async fn through(&mut self, kind: u8, length: usize, search: Option<Search>) -> Result<(), String> {
        self.begin(kind, length)?;
        self.rest(length, search).await
    }

    async fn rest(&mut self, length: usize, mut search: Option<Search>) -> Result<(), String> {
        let code = self.codes[0];
        let mut left = length;
        while left > 0 {
            self.before(1).await?;
            let chunk = self.from.fill_buf().await.map_err(|e| format!("{code}: {e}"))?;
            let count = chunk.len().min(left);
            if count == 0 {
                return Err(format!("{code}: it ends within a message"));
            }
            let chunk = chunk.get(..count).unwrap_or_default();
            if let Some(search) = &mut search {
                search.check(chunk).map_err(|denial| cut(&denial))?;
            }
            self.out.extend_from_slice(chunk);
            self.from.consume(count);
            left -= count;
        }
        Ok(())
    }

    async fn skip(&mut self, length: usize) -> Result<(), String> {
        let code = self.codes[0];
        let mut left = length;
        while left > 0 {
            self.before(1).await?;
            let count = self.from.fill_buf().await.map_err(|e| format!("{code}: {e}"))?.len().min(left);
            if count == 0 {
                return Err(format!("{code}: it ends within a message"));
            }
            self.from.consume(count);
            left -= count;
        }
        Ok(())
    }
}
