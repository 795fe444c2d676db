//! The verbs over a Unix socket: HTTP/1.1, `POST /v1/<verb>`, JSON in, JSON lines out.
//!
//! Who calls is what the kernel says of the socket's peer; nothing in a request can claim otherwise.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use ringfence_model::{Fault, Report};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use crate::api::{Control, dispatch};

/// The largest request, in bytes.
const MAX_REQUEST: usize = 8 << 20;

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
    /// Nothing more comes.
    ///
    /// WHY not the end of the body: whoever waits for the caller to go away holds a sender too, so the body ends
    /// only when the caller hangs up.
    End,
    Error(Report),
    Item(T),
}

/// Where the lines of an answer go.
#[derive(Clone)]
pub(crate) struct RawSink(mpsc::Sender<Bytes>);

impl RawSink {
    async fn line(&self, line: &Line<&impl Serialize>) -> bool {
        let Ok(mut text) = serde_json::to_vec(line) else { return false };
        text.push(b'\n');
        self.0.send(text.into()).await.is_ok()
    }

    pub(crate) async fn item(&self, item: &impl Serialize) {
        self.line(&Line::Item(item)).await;
    }

    pub(crate) async fn end(&self) {
        self.line(&Line::<&()>::End).await;
    }

    pub(crate) async fn fail(&self, report: &Report) {
        self.line(&Line::<&()>::Error(report.clone())).await;
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
        self.raw.line(&Line::Item(item)).await
    }

    /// Sends an item from a thread that is not the runtime's; drops it if the caller is slow.
    pub fn offer(&self, item: &T) -> bool {
        let Ok(mut text) = serde_json::to_vec(&Line::Item(item)) else { return false };
        text.push(b'\n');
        !matches!(self.raw.0.try_send(text.into()), Err(mpsc::error::TrySendError::Closed(_)))
    }
}

pub(crate) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Report> {
    serde_json::from_slice(body)
        .map_err(|e| Report::new("api.request", Fault::Caller, "cannot read the request").cause(e))
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
        let admitted = admits(caller.uid);
        let control = Arc::clone(&control);
        let service = service_fn(move |request| answer(Arc::clone(&control), caller, admitted, request));
        let connection = hyper::server::conn::http1::Builder::new()
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(open.watch(connection));
    }
    drop(listener);
    let _ = tokio::time::timeout(grace, open.shutdown()).await;
}

/// The lines of an answer, as a body.
struct Lines(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|bytes| Ok(Frame::data(bytes))))
    }
}

async fn answer<C: Control>(
    control: Arc<C>,
    caller: Caller,
    admitted: bool,
    request: Request<Incoming>,
) -> Result<Response<Lines>, Infallible> {
    let (sender, receiver) = mpsc::channel(256);
    let sink = RawSink(sender);
    let mut response = Response::new(Lines(receiver));
    if !admitted {
        *response.status_mut() = StatusCode::FORBIDDEN;
        let report =
            Report::new("api.peer", Fault::Caller, format!("user {} may not speak to this supervisor", caller.uid))
                .hint("run the command as root, or as the user that runs the supervisor");
        sink.fail(&report).await;
        return Ok(response);
    }
    let verb = request.uri().path().strip_prefix("/v1/").unwrap_or_default().to_owned();
    if request.method() != Method::POST {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        sink.fail(&Report::new("api.method", Fault::Caller, "use POST")).await;
        return Ok(response);
    }
    let body = match Limited::new(request.into_body(), MAX_REQUEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            sink.fail(&Report::new("api.request", Fault::Caller, "cannot read the request").cause(error)).await;
            return Ok(response);
        }
    };
    // The verb goes on in a task of its own: it sees through its sink that the caller went away, and undoes what it
    // began, instead of being dropped half-way.
    tokio::spawn(async move { dispatch(control, caller, &verb, &body, sink).await });
    Ok(response)
}
