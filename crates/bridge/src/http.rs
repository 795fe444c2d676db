//! Streamable HTTP, as a server speaks it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use crate::message::{Kind, MAX_BATCH, MAX_BYTES, Message};
use crate::process::{MAX_HELD, Process, Said, complain};
use crate::sessions::Sessions;

/// Where messages go.
pub const PATH: &str = "/mcp";

/// Where is asked whether it is up.
pub const HEALTH: &str = "/health";

/// How often a stream without messages shows that it is alive.
const ALIVE: Duration = Duration::from_secs(15);

/// The header that names a session.
static SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Answers one request.
pub async fn answer(sessions: &Sessions, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    match (parts.uri.path(), &parts.method) {
        (HEALTH, &Method::GET | &Method::HEAD) => plain(StatusCode::OK, "up\n"),
        (PATH, &Method::POST) => match Limited::new(body, MAX_BYTES).collect().await {
            Ok(body) => heard(sessions, &parts.headers, &body.to_bytes()).await,
            Err(_) => plain(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or broke off\n"),
        },
        (PATH, &Method::GET) => match named(sessions, &parts.headers) {
            Named::Open(_, process) => events(Stream::listening(process.listen())),
            Named::Unknown => unknown(),
            Named::None => not_allowed(),
        },
        (PATH, &Method::DELETE) => match parts.headers.get(&SESSION).and_then(|name| name.to_str().ok()) {
            Some(name) if sessions.end(name) => plain(StatusCode::NO_CONTENT, ""),
            Some(_) => unknown(),
            None => not_allowed(),
        },
        (PATH, _) => not_allowed(),
        _ => plain(StatusCode::NOT_FOUND, "messages of MCP go to /mcp\n"),
    }
}

/// The session that a request names.
enum Named {
    Open(String, Arc<Process>),
    Unknown,
    None,
}

fn named(sessions: &Sessions, headers: &HeaderMap) -> Named {
    let Some(name) = headers.get(&SESSION) else { return Named::None };
    let name = name.to_str().unwrap_or_default();
    sessions.of(name).map_or(Named::Unknown, |process| Named::Open(name.to_owned(), process))
}

/// Hears messages of a client.
async fn heard(sessions: &Sessions, headers: &HeaderMap, body: &[u8]) -> Answer {
    let Some((messages, batch)) = Message::read_all(body).filter(|(all, _)| all.len() <= MAX_BATCH) else {
        return json(StatusCode::BAD_REQUEST, parse_error());
    };
    let begins = messages.iter().any(|message| message.method() == Some("initialize"));
    let (session, process) = match named(sessions, headers) {
        Named::Open(name, process) => (Some(name), process),
        Named::Unknown => return unknown(),
        Named::None => {
            let started = if begins {
                sessions.begin().map(|(name, process)| (Some(name), process))
            } else {
                sessions.shared().map(|process| (None, process))
            };
            match started {
                Ok(started) => started,
                Err(error) => {
                    complain(&format!("cannot start the server: {error}"));
                    return plain(StatusCode::SERVICE_UNAVAILABLE, "the MCP server cannot be started\n");
                }
            }
        }
    };
    let (to, from) = mpsc::channel(MAX_HELD);
    let mut asked = 0;
    for message in messages {
        if message.kind() == Kind::Request {
            asked += 1;
            process.ask(message, &to).await;
        } else {
            process.tell(message).await;
        }
    }
    drop(to);
    let mut answer = if asked == 0 {
        plain(StatusCode::ACCEPTED, "")
    } else if takes_events(headers) {
        events(Stream::answering(from, asked))
    } else {
        json(StatusCode::OK, collect(from, batch).await)
    };
    if let Some(name) = session.filter(|_| begins).and_then(|name| HeaderValue::from_str(&name).ok()) {
        answer.headers_mut().insert(SESSION.clone(), name);
    }
    answer
}

fn takes_events(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT);
    accepts.iter().filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/event-stream"))
}

/// The answers of a client that takes no stream; what else is said is lost to it.
async fn collect(mut from: mpsc::Receiver<Said>, batch: bool) -> Bytes {
    let mut answers = Vec::new();
    while let Some(said) = from.recv().await {
        if let Said::Answer(answer) = said {
            answers.push(answer);
        }
    }
    match (batch, answers.first()) {
        (false, Some(answer)) => answer.clone(),
        _ => {
            let mut bytes = BytesMut::from(&b"["[..]);
            for (at, answer) in answers.iter().enumerate() {
                if at > 0 {
                    bytes.put_u8(b',');
                }
                bytes.extend_from_slice(answer);
            }
            bytes.put_u8(b']');
            bytes.freeze()
        }
    }
}

/// Messages as events.
struct Stream {
    from: mpsc::Receiver<Said>,
    /// Answers that still come; without end if none is waited for.
    left: Option<usize>,
    alive: Interval,
}

impl Stream {
    fn answering(from: mpsc::Receiver<Said>, asked: usize) -> Self {
        Self::new(from, Some(asked))
    }

    fn listening(from: mpsc::Receiver<Said>) -> Self {
        Self::new(from, None)
    }

    fn new(from: mpsc::Receiver<Said>, left: Option<usize>) -> Self {
        let mut alive = tokio::time::interval(ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { from, left, alive }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let (message, answered) = match self.from.poll_recv(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Said::Answer(message))) => (message, 1),
            Poll::Ready(Some(Said::More(message))) => (message, 0),
            // The first tick comes at once: a head alone may be held back by what is between.
            Poll::Pending => {
                return self.alive.poll_tick(cx).map(|_| Some(Ok(Frame::data(Bytes::from_static(b": \n\n")))));
            }
        };
        self.left = self.left.map(|left| left.saturating_sub(answered));
        let mut event = BytesMut::with_capacity(message.len() + 32);
        event.extend_from_slice(b"event: message\ndata: ");
        event.extend_from_slice(&message);
        event.extend_from_slice(b"\n\n");
        Poll::Ready(Some(Ok(Frame::data(event.freeze()))))
    }
}

fn events(stream: Stream) -> Answer {
    let mut answer = Response::new(stream.boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    with_type(status, body.into(), "application/json")
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    with_type(status, text.into(), "text/plain")
}

fn with_type(status: StatusCode, body: Bytes, kind: &'static str) -> Answer {
    let empty = body.is_empty();
    let mut answer = Response::new(Full::new(body).boxed_unsync());
    *answer.status_mut() = status;
    if !empty {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    answer
}

fn unknown() -> Answer {
    plain(StatusCode::NOT_FOUND, "no such session; begin another with `initialize`\n")
}

fn not_allowed() -> Answer {
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "POST messages; GET and DELETE need a session\n");
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
    answer
}

fn parse_error() -> Vec<u8> {
    br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"the body holds no messages of JSON-RPC"}}"#
        .to_vec()
}
