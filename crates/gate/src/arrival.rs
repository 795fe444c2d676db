//! The body of an answer as it arrives: hashed as it is on the wire, and decoded where it must be read.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use ringfence_model::Digest;

use crate::coding::{CodingError, Decoder, PIECE_BYTES};
use crate::hash::BodyHash;

/// The body of an answer on its way in.
pub struct Arrival {
    inner: Incoming,
    hash: BodyHash,
    /// What undoes its codings; nothing once it is through.
    decoder: Option<Box<Decoder>>,
    /// What arrived and is not decoded yet.
    coded: Bytes,
    /// Trailers, behind what the decoder gave last.
    trailers: Option<Frame<Bytes>>,
    /// Bytes that arrived and that nobody has asked about.
    arrived: usize,
    plain: bool,
}

impl Arrival {
    /// The body of an answer, decoded if there is something to decode it with.
    #[must_use]
    pub fn new(inner: Incoming, decoder: Option<Decoder>) -> Self {
        let hash = BodyHash::of_length(inner.size_hint().lower());
        let plain = decoder.is_none();
        let decoder = decoder.map(Box::new);
        Self { inner, hash, decoder, coded: Bytes::new(), trailers: None, arrived: 0, plain }
    }

    /// How much arrived on the wire since this was asked last.
    pub const fn arrived(&mut self) -> usize {
        std::mem::replace(&mut self.arrived, 0)
    }

    /// The digest of all that arrived, once all has.
    pub fn digest(&mut self) -> Option<Digest> {
        self.hash.finish()
    }

    /// Gives the digest up.
    pub fn leave_unhashed(&mut self) {
        self.hash.stop();
    }

    /// Whether nothing more comes.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        self.decoder.is_none() && self.trailers.is_none() && self.inner.is_end_stream()
    }

    /// How long it is, as far as that is known.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        if self.plain { self.inner.size_hint() } else { SizeHint::default() }
    }

    /// The next frame; one without bytes if nothing came of what arrived.
    ///
    /// # Errors
    /// Why it broke off, with a stable code before the first colon.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, String>>> {
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(trailers)));
        }
        if self.coded.is_empty() {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.hash.push(&data);
                        self.arrived += data.len();
                        if self.decoder.is_none() {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        self.coded = data;
                    }
                    Err(trailers) => {
                        self.trailers = Some(trailers);
                        return Poll::Ready(self.end());
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(format!("response_body: {error}")))),
                None => return Poll::Ready(self.end()),
            }
        }
        let piece = self.coded.split_to(PIECE_BYTES.min(self.coded.len()));
        let decoded = self.decoder.as_mut().map_or_else(|| Ok(Vec::new()), |decoder| decoder.push(&piece));
        Poll::Ready(Some(decoded.map(|bytes| Frame::data(bytes.into())).map_err(|e| undecodable(&e))))
    }

    /// What comes last: what the decoder still has, then the trailers.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, String>> {
        match self.decoder.take().map(|mut decoder| decoder.finish()) {
            Some(Err(error)) => Some(Err(undecodable(&error))),
            Some(Ok(rest)) if !rest.is_empty() => Some(Ok(Frame::data(rest.into()))),
            Some(Ok(_)) | None => self.trailers.take().map(Ok),
        }
    }
}

fn undecodable(error: &CodingError) -> String {
    format!("response_encoded: the answer cannot be decoded: {error}")
}
