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

use crate::body::BodyError;
use crate::sigv4::chunks::{ChunkError, Chunks};

/// How much is thrown away, and for how long.
const MAX_DISCARDED_BYTES: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// The body of a request. If it is given up before its end, what still comes is thrown away, within bounds.
pub struct Upload {
    /// Nothing once it has ended.
    body: Option<Incoming>,
    /// Whether its sender waits for leave to send it.
    waits: bool,
    /// What signs its chunks anew.
    chunks: Option<Box<Chunks>>,
}

impl Upload {
    /// The body behind these headers.
    #[must_use]
    pub fn new(headers: &HeaderMap, body: Incoming) -> Self {
        let body = Some(body).filter(|body| !body.is_end_stream());
        Self { body, waits: headers.contains_key(EXPECT), chunks: None }
    }

    /// Has the rest of its chunks signed anew.
    pub fn sign(&mut self, chunks: Box<Chunks>) {
        self.chunks = Some(chunks);
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let me = &mut *self;
        loop {
            let Some(body) = &mut me.body else { return Poll::Ready(None) };
            let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
            // Whoever is read from sends.
            me.waits = false;
            let ended = body.is_end_stream();
            if !matches!(frame, Some(Ok(_))) {
                me.body = None;
            }
            let Some(chunks) = &mut me.chunks else { return Poll::Ready(frame.map(|frame| frame.map_err(Into::into))) };
            let signed = match frame {
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        chunks.push(&data).and_then(|out| if ended { chunks.finish().map(|()| out) } else { Ok(out) })
                    }
                    Err(trailers) => {
                        let done = chunks.finish().map(|()| trailers);
                        return Poll::Ready(Some(done.map_err(|error| unsigned(error).into())));
                    }
                },
                None => match chunks.finish() {
                    Ok(()) => return Poll::Ready(None),
                    Err(error) => Err(error),
                },
            };
            match signed {
                Ok(out) if out.is_empty() && !ended => {}
                Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out)))),
                Err(error) => {
                    me.chunks = None;
                    return Poll::Ready(Some(Err(unsigned(error).into())));
                }
            }
        }
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

/// Why a body ends whose chunks cannot be signed anew.
#[must_use]
pub fn unsigned(error: ChunkError) -> String {
    format!("body_unsigned: its chunks cannot be signed anew: {error}")
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
