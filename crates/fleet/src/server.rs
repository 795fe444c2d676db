//! The verbs over a Unix socket: HTTP/1.1, `POST /v1/<verb>`, JSON in, JSON lines out.
//!
//! A verb that fails before its first item answers with a status of its own ([`status`]); after that, a failure is the
//! last line.
//!
//! Who calls is what the kernel says of the socket's peer; nothing in a request can claim otherwise.

use std::convert::Infallible;
use std::fmt::Display;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use ringfence_model::report::one_line;
use ringfence_model::{Fault, Report};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};

use crate::api::{Control, VERBS, dispatch, streams};

/// The largest request, in bytes.
pub(crate) const MAX_REQUEST: usize = 8 << 20;

/// How much of a request that is too large is taken before its sender is cut off, in bytes.
const MAX_TAKEN: usize = 4 * MAX_REQUEST;

/// How many connections are served at a time.
const MAX_CONNECTIONS: usize = 256;

/// How many more are told at a time that they are not.
const MAX_TURNED_AWAY: usize = 64;

/// How long the head of a request may take, which is also how long a connection may be idle.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// How long the body of a request may take.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// How much of a caller's text is repeated, in characters.
const MAX_REPEATED: usize = 256;

/// What requests are written in, and answers that are one object.
pub(crate) const JSON: &str = "application/json";

/// What answers with any number of items are written in: an object a line.
pub(crate) const JSON_LINES: &str = "application/x-ndjson";

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The peer's uid, from the kernel.
    pub uid: u32,
    /// The peer's pid, from the kernel, if it is known.
    pub pid: Option<i32>,
}

/// One line of an answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Line<T> {
    /// Nothing more comes. Without it, or an error, an answer was cut.
    End,
    Error(Report),
    Item(T),
}

/// What a verb says, on its way into an answer.
enum Part {
    /// It took the request; what goes wrong from here on is a last line.
    Begun,
    /// There is more to come.
    Item(Bytes),
    /// The last line.
    End(Bytes),
    /// The last line too, and the status where it is also the first one.
    Failed(StatusCode, Bytes),
}

impl Part {
    fn failed(report: &Report) -> Self {
        Self::Failed(status(report), text(&Line::<&()>::Error(report.clone())).unwrap_or_default())
    }
}

fn text(line: &Line<impl Serialize>) -> Option<Bytes> {
    let mut text = serde_json::to_vec(line).ok()?;
    text.push(b'\n');
    Some(text.into())
}

/// Where the lines of an answer go.
#[derive(Clone)]
pub(crate) struct RawSink(mpsc::Sender<Part>);

impl RawSink {
    /// The one item of a verb that answers once.
    pub(crate) async fn answer(&self, item: &impl Serialize) {
        self.last(&Line::Item(item)).await;
    }

    pub(crate) async fn end(&self) {
        self.last(&Line::<&()>::End).await;
    }

    pub(crate) async fn fail(&self, report: &Report) {
        let _ = self.0.send(Part::failed(report)).await;
    }

    async fn last(&self, line: &Line<impl Serialize>) {
        if let Some(text) = text(line) {
            let _ = self.0.send(Part::End(text)).await;
        }
    }
}

/// Where the items of a stream go.
pub struct Sink<T> {
    raw: RawSink,
    items: PhantomData<fn(T)>,
}

impl<T> Clone for Sink<T> {
    fn clone(&self) -> Self {
        Self::over(self.raw.clone())
    }
}

impl<T> Sink<T> {
    pub(crate) const fn over(raw: RawSink) -> Self {
        Self { raw, items: PhantomData }
    }

    /// Says that the request is taken, so that the caller sees an answer begin before there is an item.
    pub async fn begin(&self) {
        let _ = self.raw.0.send(Part::Begun).await;
    }

    /// Completes when the caller has gone away.
    pub async fn closed(&self) {
        self.raw.0.closed().await;
    }

    /// Whether the caller has gone away.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.raw.0.is_closed()
    }
}

impl<T: Serialize> Sink<T> {
    /// Sends an item; `false` if the caller has gone away.
    pub async fn send(&self, item: &T) -> bool {
        let Some(text) = text(&Line::Item(item)) else { return false };
        self.raw.0.send(Part::Item(text)).await.is_ok()
    }

    /// Sends an item from a thread that is not the runtime's; drops it if the caller is slow.
    pub fn offer(&self, item: &T) -> bool {
        let Some(text) = text(&Line::Item(item)) else { return false };
        !matches!(self.raw.0.try_send(Part::Item(text)), Err(mpsc::error::TrySendError::Closed(_)))
    }
}

/// Reads a request.
///
/// WHY not by serde alone: it takes a list of values for a struct, without their names.
pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Report> {
    let unreadable = |why: &dyn Display| {
        Report::new("api.request", Fault::Caller, "cannot read the request")
            .cause(short(&why.to_string()))
            .hint("docs/reference/control-api.json says what each verb takes")
    };
    if body.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(unreadable(&"it is no JSON object"));
    }
    serde_json::from_slice(body).map_err(|e| unreadable(&e))
}

/// As much of a caller's text as a message or an entry of the log repeats.
pub(crate) fn short(text: &str) -> String {
    let mut cut: String = text.chars().take(MAX_REPEATED).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// That there is no such verb.
pub(crate) fn unknown(verb: &str) -> Report {
    Report::new("api.unknown_verb", Fault::Caller, format!("no verb `{}`", one_line(&short(verb))))
        .hint(format!("use `POST /v1/VERB` with one of: {}", VERBS.join(", ")))
}

/// The status of an answer that is a report: the API's own faults have one each, of all others it says whose doing it is.
fn status(report: &Report) -> StatusCode {
    match report.code.as_str() {
        "api.busy" => StatusCode::SERVICE_UNAVAILABLE,
        "api.media_type" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "api.method" => StatusCode::METHOD_NOT_ALLOWED,
        "api.peer" => StatusCode::FORBIDDEN,
        "api.request" => StatusCode::BAD_REQUEST,
        "api.slow" => StatusCode::REQUEST_TIMEOUT,
        "api.too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "api.unknown_verb" => StatusCode::NOT_FOUND,
        _ => match report.fault {
            Fault::Caller => StatusCode::UNPROCESSABLE_ENTITY,
            Fault::Host => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Peer => StatusCode::BAD_GATEWAY,
            Fault::Us => StatusCode::INTERNAL_SERVER_ERROR,
        },
    }
}

/// Serves `control` on `listener` until `quit` completes, then lets answers that are on their way arrive, for as long
/// as `grace`. `admits` says which uids may speak.
pub async fn serve<C: Control>(
    listener: UnixListener,
    control: Arc<C>,
    admits: impl Fn(u32) -> bool,
    quit: impl Future<Output = ()>,
    grace: Duration,
) {
    let mut quit = std::pin::pin!(quit);
    let open = GracefulShutdown::new();
    let seats = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let porch = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut quit => break,
        };
        let Ok((stream, _)) = stream else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        let caller = Caller { uid: peer.uid(), pid: peer.pid() };
        let (door, place) = if !admits(caller.uid) {
            (Door::Stranger, Arc::clone(&porch).try_acquire_owned())
        } else if let Ok(seat) = Arc::clone(&seats).try_acquire_owned() {
            (Door::Open, Ok(seat))
        } else {
            (Door::Full, Arc::clone(&porch).try_acquire_owned())
        };
        let Ok(place) = place else { continue };
        let control = Arc::clone(&control);
        let service = service_fn(move |request| answer(Arc::clone(&control), caller, door, request));
        let connection = hyper::server::conn::http1::Builder::new()
            .max_buf_size(64 << 10)
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .keep_alive(door == Door::Open)
            .serve_connection(TokioIo::new(stream), service);
        let watched = open.watch(connection);
        tokio::spawn(async move {
            let _ = watched.await;
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(grace, open.shutdown()).await;
}

/// Whether a connection may ask for anything.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    /// Too many have come in.
    Full,
    /// It may.
    Open,
    /// Its user may not.
    Stranger,
}

/// An answer's body: what is known of it, and what is still to come.
struct Lines {
    first: Option<Part>,
    rest: Option<mpsc::Receiver<Part>>,
}

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            let part = match (self.first.take(), &mut self.rest) {
                (Some(part), _) => Some(part),
                (None, Some(rest)) => ready!(rest.poll_recv(context)),
                (None, None) => None,
            };
            return Poll::Ready(match part {
                Some(Part::Begun) => continue,
                Some(Part::Item(line)) => Some(Ok(Frame::data(line))),
                Some(Part::End(line) | Part::Failed(_, line)) => {
                    // Whoever waits for the caller to go away holds a sender too: the last line ends the body.
                    self.rest = None;
                    Some(Ok(Frame::data(line)))
                }
                None => None,
            });
        }
    }
}

async fn answer<C: Control>(
    control: Arc<C>,
    caller: Caller,
    door: Door,
    request: Request<Incoming>,
) -> Result<Response<Lines>, Infallible> {
    let answer = match taken(caller, door, request).await {
        Ok((verb, body)) => dispatched(control, caller, verb, body).await,
        Err(report) => refusal(&report),
    };
    Ok(answer)
}

/// The verb and the body of a request that may be made.
async fn taken(caller: Caller, door: Door, request: Request<Incoming>) -> Result<(String, Bytes), Report> {
    let refused = |code, message: String, hint: &str| Err(Report::new(code, Fault::Caller, message).hint(hint));
    match door {
        Door::Full => {
            let mut report = Report::new("api.busy", Fault::Host, "too many callers speak to this supervisor");
            report.may_retry = true;
            return Err(report.cause(format!("it takes {MAX_CONNECTIONS} connections")).hint("try again in a moment"));
        }
        Door::Open => {}
        Door::Stranger => {
            return refused(
                "api.peer",
                format!("user {} may not speak to this supervisor", caller.uid),
                "run the command as root, or as the user that runs the supervisor",
            );
        }
    }
    let path = request.uri().path();
    let verb = path.strip_prefix("/v1/").filter(|verb| VERBS.contains(verb)).ok_or_else(|| unknown(path))?.to_owned();
    if request.method() != Method::POST {
        let method = short(request.method().as_str());
        return refused("api.method", format!("`{method}` is not how a verb is asked for"), "use POST");
    }
    let said = request.headers().get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap_or_default());
    let kind = said.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case(JSON) {
        let message = format!("`{}` is not what a request is written in", short(kind));
        return refused("api.media_type", message, "send JSON, and `Content-Type: application/json`");
    }
    match tokio::time::timeout(BODY_PATIENCE, whole(request.into_body())).await {
        Ok(body) => Ok((verb, body?)),
        Err(_) => {
            let seconds = BODY_PATIENCE.as_secs();
            refused("api.slow", format!("the request did not arrive within {seconds} s"), "send it at once")
        }
    }
}

/// Reads a body. One that is too large is taken a while longer, so that its sender reads the refusal.
async fn whole(mut body: Incoming) -> Result<Bytes, Report> {
    let (mut held, mut seen) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Report::new("api.request", Fault::Caller, "the request ended before it was whole").because(&e)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen > MAX_TAKEN {
            break;
        }
        if seen > MAX_REQUEST {
            held = Vec::new();
        } else {
            held.extend_from_slice(&data);
        }
    }
    if seen > MAX_REQUEST {
        return Err(Report::new("api.too_large", Fault::Caller, "the request is too large")
            .cause(format!("it is larger than {} MiB", MAX_REQUEST >> 20))
            .hint("send less at once"));
    }
    Ok(held.into())
}

/// Lets a verb run; its first word decides the status.
async fn dispatched<C: Control>(control: Arc<C>, caller: Caller, verb: String, body: Bytes) -> Response<Lines> {
    let (sender, mut receiver) = mpsc::channel(256);
    let sink = RawSink(sender);
    let kind = if streams(&verb) { JSON_LINES } else { JSON };
    // The verb goes on in a task of its own: it sees through its sink that the caller went away, and undoes what it
    // began, instead of being dropped half-way.
    tokio::spawn(async move { dispatch(control, caller, &verb, &body, sink).await });
    match receiver.recv().await {
        Some(Part::Failed(status, line)) => lines(status, JSON, Part::Failed(status, line), None),
        Some(first) => lines(StatusCode::OK, kind, first, Some(receiver)),
        None => refusal(&Report::new("api.lost", Fault::Us, "the verb ended without an answer")),
    }
}

fn refusal(report: &Report) -> Response<Lines> {
    let mut response = lines(status(report), JSON, Part::failed(report), None);
    if response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

fn lines(status: StatusCode, kind: &'static str, first: Part, rest: Option<mpsc::Receiver<Part>>) -> Response<Lines> {
    let mut response = Response::new(Lines { first: Some(first), rest });
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
