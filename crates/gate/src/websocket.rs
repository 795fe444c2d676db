//! WebSockets: the handshake over HTTP/2, and the messages of both sides, which are read, searched, and written anew.
//!
//! The gate is a server to the agent and a client to the upstream, so that frames of its own making go either way: what is
//! no frame reaches nobody. It agrees to no extension, so messages are what they look like. One that is not too large
//! goes on once it is whole and was looked through; a larger one in parts, each of them looked through.

pub mod frame;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode, Version, response};
use hyper::ext::Protocol;
use ringfence_policy::Denial;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Mutex, Notify};

use self::frame::{Frames, From, Opcode, Piece};
use crate::Gate;
use crate::budget::{Account, Amounts};
use crate::capture::{Seal, Seals};
use crate::echo::EchoGuard;
use crate::misdirect::Search;
use crate::realtime::{Agent, Realtime};
use crate::record::{Call, Subject};
use crate::relay::REVOKED;
use crate::shelf::{Full, Load};

/// The largest message that goes on as a whole.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// What is read at once, and the least that a part of a larger message has.
const READ_BYTES: usize = 16 * 1024;

/// How long a side has to end what the other one ended.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// How long a side has to take what it is told at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Close codes.
///
/// # Source
/// RFC 6455 §7.4.1, and the registry of close codes.
const PROTOCOL_ERROR: u16 = 1002;
const POLICY: u16 = 1008;
const TOO_BIG: u16 = 1009;
const TRY_AGAIN_LATER: u16 = 1013;

/// A handshake over HTTP/2, which the upstream gets as one over HTTP/1.1.
#[derive(Debug)]
pub struct Bridge {
    /// What the upstream has to answer.
    accept: String,
}

impl Bridge {
    /// Makes a request that asks for a WebSocket by HTTP/2 into one that asks by HTTP/1.1; leaves all others alone.
    ///
    /// # Source
    /// RFC 8441 §5.
    #[must_use]
    pub fn of(parts: &mut Parts) -> Option<Self> {
        let asked = parts.version == Version::HTTP_2
            && parts.method == Method::CONNECT
            && parts.extensions.get::<Protocol>().is_some_and(|protocol| protocol.as_str() == "websocket");
        let mut random = [0; 16];
        if !asked || aws_lc_rs::rand::fill(&mut random).is_err() {
            return None;
        }
        let key = STANDARD.encode(random);
        parts.extensions.remove::<Protocol>();
        parts.method = Method::GET;
        parts.headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).ok()?);
        parts.headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
        Some(Self { accept: accept(&key) })
    }

    /// Makes the upstream's answer into one by HTTP/2.
    ///
    /// # Errors
    /// Why it is none.
    pub fn back(&self, parts: &mut response::Parts) -> Result<(), &'static str> {
        if parts.headers.remove(SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| accept.as_bytes() != self.accept.as_bytes()) {
            return Err("websocket_refused: the upstream's answer to the handshake is wrong");
        }
        parts.headers.remove(CONNECTION);
        parts.headers.remove(UPGRADE);
        parts.status = StatusCode::OK;
        parts.version = Version::HTTP_2;
        Ok(())
    }
}

/// # Source
/// RFC 6455 §4.2.2.
fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Takes extensions away from an offer: with them messages could not be read.
pub fn offer_no_extension(headers: &mut HeaderMap) {
    headers.remove(SEC_WEBSOCKET_EXTENSIONS);
}

/// What a WebSocket is relayed with.
pub struct Socket {
    /// The gate.
    pub gate: Arc<Gate>,
    /// The call that opened it.
    pub call: Arc<Call>,
    /// What it counts against.
    pub account: Option<Arc<Account>>,
    /// What guards the upstream's messages.
    pub echo: Option<EchoGuard>,
    /// What understands the messages, if they are for a language model.
    pub realtime: Option<Box<Realtime>>,
    /// What captures the messages of either side, as frames without a mask.
    pub seals: Seals,
}

/// Why a WebSocket ends before its time.
#[derive(Debug)]
pub(crate) struct End {
    /// What both sides are told.
    pub(crate) code: u16,
    /// For the outcome: a stable code, a colon, and why.
    pub(crate) why: String,
    /// What the outcome tells that was found.
    pub(crate) finding: Option<&'static str>,
    /// A denial to be recorded by itself.
    pub(crate) denied: Option<Box<(Subject, Denial)>>,
    /// What the agent hears before the end, given the id of the denial.
    pub(crate) last_words: Option<Vec<u8>>,
}

impl End {
    pub(crate) fn new(code: u16, why: impl Into<String>) -> Self {
        Self { code, why: why.into(), finding: None, denied: None, last_words: None }
    }

    /// A message that must not go on.
    pub(crate) fn of_denial(denial: &Denial) -> Self {
        Self::new(POLICY, format!("{}: {}", denial.code, denial.why))
    }

    fn no_frame(why: &str) -> Self {
        Self::new(PROTOCOL_ERROR, format!("websocket_broken: {why}"))
    }

    fn full(full: Full) -> Self {
        Self::new(TRY_AGAIN_LATER, full.why())
    }

    fn io(error: &io::Error) -> Self {
        Self::new(PROTOCOL_ERROR, format!("websocket_broken: {error}"))
    }
}

/// Looks through what one side says.
trait Look {
    /// Counts bytes as they came.
    fn count(&mut self, bytes: usize) -> Result<(), End>;
    /// A whole message, as it may go on.
    fn whole(&mut self, message: Bytes) -> Result<Bytes, End>;
    /// A part of a message that is too large to be held.
    fn part(&mut self, part: Bytes, last: bool) -> Result<Bytes, End>;
    /// The payload of a control frame.
    fn control(&mut self, payload: &Bytes) -> Result<(), End>;
    /// What captures what goes on.
    fn seal(&mut self) -> Option<&mut Seal>;

    /// Captures a frame that is about to go on.
    fn capture(&mut self, fin: bool, opcode: Opcode, payload: &[u8]) -> Result<(), End> {
        let Some(seal) = self.seal() else { return Ok(()) };
        let pushed = seal.push(&frame::write(fin, opcode, payload, None));
        // A side that did not say farewell broke off.
        let done = pushed.and_then(|()| if opcode == Opcode::Close { seal.finish() } else { Ok(()) });
        done.map_err(|why| End::new(POLICY, why))
    }
}

struct FromAgent<'a> {
    socket: &'a Shared,
    agent: Option<Agent>,
    /// The search through a message that goes on in parts.
    search: Option<Search>,
    parted: bool,
    /// The end of what went on before.
    tail: Vec<u8>,
    seal: Option<Box<Seal>>,
}

struct FromUpstream<'a> {
    socket: &'a Shared,
    echo: Option<EchoGuard>,
    metered: bool,
    seal: Option<Box<Seal>>,
}

/// What both directions need.
struct Shared {
    gate: Arc<Gate>,
    call: Arc<Call>,
    account: Option<Arc<Account>>,
    realtime: Option<Box<Realtime>>,
}

impl Shared {
    fn spend(&self, bytes: usize) -> Result<(), End> {
        if self.account.as_ref().is_none_or(|account| account.bytes(bytes)) {
            return Ok(());
        }
        Err(End::new(POLICY, "budget_exhausted: no bytes are left"))
    }
}

impl FromAgent<'_> {
    fn search(&self, text: &[u8]) -> Result<(), End> {
        match self.socket.gate.placeholders.find(text) {
            None => Ok(()),
            Some(found) => Err(misdirected(&found.denial("a message"))),
        }
    }

    /// Looks for what is cut between this and what went on before, in other messages or in other parts of this one.
    fn search_between(&mut self, text: &[u8]) -> Result<(), End> {
        let reach = self.socket.gate.placeholders.reach();
        if reach == 0 || !self.socket.gate.barriers.split_messages {
            return Ok(());
        }
        if !self.tail.is_empty() {
            let near = text.get(..reach.min(text.len())).unwrap_or_default();
            self.search(&[&self.tail, near].concat())?;
        }
        let end = text.get(text.len().saturating_sub(reach)..).unwrap_or_default();
        let over = (self.tail.len() + end.len()).saturating_sub(reach).min(self.tail.len());
        self.tail.drain(..over);
        self.tail.extend_from_slice(end);
        Ok(())
    }
}

fn misdirected(denial: &Denial) -> End {
    End { finding: Some(denial.code), ..End::of_denial(denial) }
}

impl Look for FromAgent<'_> {
    fn count(&mut self, bytes: usize) -> Result<(), End> {
        self.socket.call.sent(bytes);
        self.socket.spend(bytes)
    }

    fn whole(&mut self, message: Bytes) -> Result<Bytes, End> {
        self.search(&message)?;
        self.search_between(&message)?;
        match (&mut self.agent, &self.socket.realtime) {
            (Some(agent), Some(realtime)) => agent.said(realtime, &self.socket.gate, message),
            _ => Ok(message),
        }
    }

    fn part(&mut self, part: Bytes, last: bool) -> Result<Bytes, End> {
        if self.socket.realtime.as_ref().is_some_and(|realtime| realtime.is_strict(&self.socket.gate.latest())) {
            return Err(End::new(TOO_BIG, "message_too_large: what the message says decides, and it is too large"));
        }
        if !std::mem::replace(&mut self.parted, !last) {
            self.search = self.socket.gate.placeholders.search_all();
        }
        if let Some(search) = &mut self.search {
            search.check(&part).map_err(|denial| misdirected(&denial))?;
        }
        self.search_between(&part)?;
        Ok(part)
    }

    fn control(&mut self, payload: &Bytes) -> Result<(), End> {
        self.search(payload)
    }

    fn seal(&mut self) -> Option<&mut Seal> {
        self.seal.as_deref_mut()
    }
}

impl FromUpstream<'_> {
    fn guarded(&mut self, text: Bytes, last: bool) -> Bytes {
        let Some(guard) = &mut self.echo else { return text };
        let (mut out, found) = guard.push(text);
        let (tail, more) = match last {
            true if self.socket.gate.barriers.split_messages => guard.end_message(),
            true => (guard.finish(), false),
            false => (Bytes::new(), false),
        };
        let found = found || more;
        if out.is_empty() {
            out = tail;
        } else if !tail.is_empty() {
            out = [out, tail].concat().into();
        }
        if found {
            self.socket.call.found("secret_echo_redacted");
        }
        out
    }
}

impl Look for FromUpstream<'_> {
    fn count(&mut self, bytes: usize) -> Result<(), End> {
        self.socket.call.received(bytes);
        self.socket.spend(bytes)
    }

    fn whole(&mut self, message: Bytes) -> Result<Bytes, End> {
        if let Some(realtime) = self.socket.realtime.as_ref().filter(|_| self.metered) {
            realtime.heard(&message, self.socket.call.id().as_str())?;
        }
        Ok(self.guarded(message, true))
    }

    fn part(&mut self, part: Bytes, last: bool) -> Result<Bytes, End> {
        if self.socket.realtime.as_ref().is_some_and(|realtime| realtime.is_counted()) {
            return Err(End::new(TOO_BIG, "message_too_large: what the message used is counted, and it is too large"));
        }
        Ok(self.guarded(part, last))
    }

    fn control(&mut self, payload: &Bytes) -> Result<(), End> {
        // It may stand within a message, or between two.
        if self.echo.as_ref().is_some_and(|guard| guard.anew().push(payload.clone()).1) {
            self.socket.call.found("secret_echo_redacted");
            // It has no room for another text.
            return Err(End::new(POLICY, "secret_echo: the upstream sent the secret back in a control frame"));
        }
        Ok(())
    }

    fn seal(&mut self) -> Option<&mut Seal> {
        self.seal.as_deref_mut()
    }
}

/// Writes frames to one side.
struct Writer<W> {
    stream: W,
    /// To an upstream frames are masked.
    masks: bool,
    /// Whether a frame is out in part, so that nothing more can be said.
    torn: bool,
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    async fn write(&mut self, fin: bool, opcode: Opcode, payload: &[u8]) -> io::Result<()> {
        if self.torn {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut key = [0; 4];
        if self.masks {
            aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no randomness for a mask"))?;
        }
        let frame = frame::write(fin, opcode, payload, self.masks.then_some(key));
        self.torn = true;
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;
        self.torn = false;
        Ok(())
    }

    async fn end(&mut self, end: &End) {
        let told = async {
            if let Some(words) = end.last_words.as_ref().filter(|_| !self.masks) {
                self.write(true, Opcode::Text, words).await?;
            }
            self.write(true, Opcode::Close, &end.code.to_be_bytes()).await?;
            self.stream.shutdown().await
        };
        // Who does not listen any more is not told.
        let _ = tokio::time::timeout(LAST_WORDS, told).await;
    }
}

/// A message that is on its way.
#[derive(Default)]
struct Message {
    held: BytesMut,
    /// Whether parts of it are out.
    begun: bool,
}

/// Relays what one side says until it ends.
async fn pump<R, W>(
    mut from: R,
    to: &Mutex<Writer<W>>,
    mut frames: Frames,
    (look, load): (&mut (impl Look + Send), &mut Load),
    stop: &Notify,
) -> Result<(), End>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut input = BytesMut::with_capacity(READ_BYTES);
    let mut message = Message::default();
    loop {
        while let Some(piece) = frames.next(&mut input).map_err(End::no_frame)? {
            match piece {
                Piece::Control { opcode, payload } => {
                    look.control(&payload)?;
                    look.capture(true, opcode, &payload)?;
                    to.lock().await.write(true, opcode, &payload).await.map_err(|e| End::io(&e))?;
                    if opcode == Opcode::Close {
                        return Ok(());
                    }
                }
                Piece::Data { kind, payload, last } => {
                    load.hold(message.would_hold(&payload, last)).await.map_err(End::full)?;
                    if let Some((fin, opcode, out)) = message.push(kind, payload, last, look)? {
                        look.capture(fin, opcode, &out)?;
                        to.lock().await.write(fin, opcode, &out).await.map_err(|e| End::io(&e))?;
                        load.shrink(message.held.len());
                    }
                }
            }
        }
        input.reserve(READ_BYTES);
        let read = tokio::select! {
            biased;
            () = stop.notified() => return Ok(()),
            read = from.read_buf(&mut input) => read.map_err(|e| End::io(&e))?,
        };
        if read == 0 {
            if !frames.is_between() || !input.is_empty() {
                return Err(End::no_frame("it broke off in a frame"));
            }
            // Gone without a word of farewell; the other side is told in the same way.
            let _ = to.lock().await.stream.shutdown().await;
            return Ok(());
        }
        look.count(read)?;
    }
}

impl Message {
    /// How much is held with this part of it; nothing where it is a message by itself and goes on as it came.
    fn would_hold(&self, payload: &Bytes, last: bool) -> usize {
        if last && self.held.is_empty() { 0 } else { self.held.len() + payload.len() }
    }

    /// Takes a part of a message, and gives the frame that may go on.
    fn push(
        &mut self,
        kind: Opcode,
        payload: Bytes,
        last: bool,
        look: &mut impl Look,
    ) -> Result<Option<(bool, Opcode, Bytes)>, End> {
        if !self.begun && last && self.held.is_empty() && payload.len() <= MAX_MESSAGE_BYTES {
            return Ok(Some((true, kind, look.whole(payload)?)));
        }
        self.held.extend_from_slice(&payload);
        if !self.begun && self.held.len() <= MAX_MESSAGE_BYTES {
            if !last {
                return Ok(None);
            }
            return Ok(Some((true, kind, look.whole(std::mem::take(&mut self.held).freeze())?)));
        }
        if !last && self.begun && self.held.len() < READ_BYTES {
            return Ok(None);
        }
        let opcode = if self.begun { Opcode::Continuation } else { kind };
        self.begun = !last;
        Ok(Some((last, opcode, look.part(self.held.split().freeze(), last)?)))
    }
}

/// Relays messages both ways until both sides are done, one says what it must not, or what allowed it is `revoked`.
///
/// # Errors
/// Why it ended, with a stable code before the first colon.
pub async fn relay<A, B>(agent: A, upstream: B, socket: Socket, revoked: impl Future<Output = ()>) -> Result<(), String>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let Socket { gate, call, account, echo, realtime, seals } = socket;
    let shared = Shared { gate, call, account, realtime };
    let metered = shared.realtime.is_some();
    let (agent_read, agent_write) = tokio::io::split(agent);
    let (upstream_read, upstream_write) = tokio::io::split(upstream);
    let to_agent = Mutex::new(Writer { stream: agent_write, masks: false, torn: false });
    let to_upstream = Mutex::new(Writer { stream: upstream_write, masks: true, torn: false });
    let agent = metered.then(Agent::default);
    let mut from_agent =
        FromAgent { socket: &shared, agent, search: None, parted: false, tail: Vec::new(), seal: seals.request };
    let mut from_upstream = FromUpstream { socket: &shared, echo, metered, seal: seals.response };
    let stop = Notify::new();
    let (mut up_load, mut down_load) = (shared.gate.shelf.load(), shared.gate.shelf.load());
    let ended = {
        let up = pump(agent_read, &to_upstream, Frames::new(From::Client), (&mut from_agent, &mut up_load), &stop);
        let down =
            pump(upstream_read, &to_agent, Frames::new(From::Server), (&mut from_upstream, &mut down_load), &stop);
        let ended = async {
            match select(std::pin::pin!(up), std::pin::pin!(down)).await {
                Either::Left((first, other)) => both(first, other, &stop).await,
                Either::Right((first, other)) => both(first, other, &stop).await,
            }
        };
        tokio::select! {
            ended = ended => ended,
            () = revoked => Err(End::new(POLICY, REVOKED)),
        }
    };
    let done = match ended {
        Ok(()) => {
            let _ = tokio::time::timeout(LAST_WORDS, async {
                let _ = to_agent.lock().await.stream.shutdown().await;
                let _ = to_upstream.lock().await.stream.shutdown().await;
            })
            .await;
            Ok(())
        }
        Err(mut end) => {
            if let Some(finding) = end.finding {
                shared.call.found(finding);
            }
            if let Some(denied) = end.denied.take() {
                let (subject, denial) = *denied;
                let model = subject.model.clone().filter(|_| denial.code == "model_not_granted");
                let id = shared.gate.recorder.deny(subject, &denial).await;
                end.last_words = shared.realtime.as_ref().map(|realtime| realtime.refusal(model.as_deref(), &id));
            }
            tokio::join!(async { to_agent.lock().await.end(&end).await }, async {
                to_upstream.lock().await.end(&end).await;
            });
            Err(end.why)
        }
    };
    let used = shared.realtime.as_ref().map(|realtime| realtime.used());
    let amounts = used.as_ref().map_or(Amounts::CALL, |(_, amounts)| *amounts);
    if let Some((used, _)) = used {
        shared.call.llm(used);
    }
    if let Some(account) = &shared.account {
        account.settle(amounts);
    }
    done
}

/// One direction ended; the other one has some time to do the same, or stops at once.
async fn both(first: Result<(), End>, other: impl Future<Output = Result<(), End>>, stop: &Notify) -> Result<(), End> {
    match first {
        Ok(()) => tokio::time::timeout(CLOSE_WAIT, other).await.unwrap_or(Ok(())),
        Err(end) => {
            stop.notify_one();
            let _ = tokio::time::timeout(LAST_WORDS, other).await;
            Err(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_handshake_is_the_standards() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_a_websocket_is_bridged() {
        let bridged = |method: Method, version, protocol: Option<&'static str>| {
            let mut request = http::Request::builder().method(method).uri("https://a.example/ws").version(version);
            if let Some(protocol) = protocol {
                request = request.extension(Protocol::from_static(protocol));
            }
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            let bridge = Bridge::of(&mut parts);
            assert_eq!(bridge.is_some(), parts.method == Method::GET && parts.headers.contains_key(SEC_WEBSOCKET_KEY));
            bridge.is_some()
        };
        assert!(bridged(Method::CONNECT, Version::HTTP_2, Some("websocket")));
        assert!(!bridged(Method::CONNECT, Version::HTTP_2, Some("connect-udp")));
        assert!(!bridged(Method::CONNECT, Version::HTTP_2, None));
        assert!(!bridged(Method::CONNECT, Version::HTTP_11, Some("websocket")));
        assert!(!bridged(Method::POST, Version::HTTP_2, Some("websocket")));
    }

    #[test]
    fn an_answer_of_another_key_is_no_answer() {
        let bridge = Bridge { accept: accept("one") };
        for (said, ok) in [(Some(accept("one")), true), (Some(accept("two")), false), (None, false)] {
            let mut response = http::Response::builder().status(101).header(UPGRADE, "websocket");
            if let Some(said) = said {
                response = response.header(SEC_WEBSOCKET_ACCEPT, said);
            }
            let (mut parts, ()) = response.body(()).unwrap().into_parts();
            assert_eq!(bridge.back(&mut parts).is_ok(), ok);
            assert!(!ok || parts.status == 200 && parts.headers.is_empty());
        }
    }
}
