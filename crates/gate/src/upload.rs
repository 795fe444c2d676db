//! Bodies of requests. Most clients read no answer before they have sent all: where the connection ends under their
//! hands, they tell of a broken connection and not of the refusal. So what nobody wants is taken for a while and thrown
//! away.
//!
//! # Source
//! RFC 9112 §9.6; RFC 9113 §8.1, whose `RST_STREAM` with `NO_ERROR` curl takes for an error (seen with 7.88.1).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::EXPECT;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;

/// How much is thrown away, and for how long.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// The body of a request. If it is given up before its end, what still comes is thrown away, within bounds.
#[derive(Debug)]
pub struct Upload {
    /// Nothing once it has ended.
    body: Option<Incoming>,
    /// Whether its sender waits for leave to send it.
    waits: bool,
}

impl Upload {
    /// The body behind these headers.
    #[must_use]
    pub fn new(headers: &HeaderMap, body: Incoming) -> Self {
        let body = Some(body).filter(|body| !body.is_end_stream());
        Self { body, waits: headers.contains_key(EXPECT) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        // Whoever is read from sends.
        self.waits = false;
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| !self.waits && !body.is_end_stream());
        if let (Some(rest), Ok(runtime)) = (rest, Handle::try_current()) {
            runtime.spawn(tokio::time::timeout(PATIENCE, discard(rest)));
        }
    }
}

async fn discard(mut body: Incoming) {
    let mut left = MAX_DISCARDED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
            Some(left) => left,
            None => return,
        };
    }
}
