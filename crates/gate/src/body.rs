//! Bodies on their way: counted, searched and redacted while they stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::arrival::Arrival;
use crate::budget::{Account, Amounts};
use crate::capture::Seal;
use crate::echo::EchoGuard;
use crate::hash::BodyHash;
use crate::llm::Tap;
use crate::misdirect::Search;
use crate::record::Call;
use crate::relay::Checkin;
use crate::rpc::Filter;
use crate::shelf::{Full, Load};
use crate::upload::Upload;

/// Why a body ends early.
const SPENT: &str = "budget_exhausted: no bytes are left";

/// What breaks a body.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body towards an upstream.
pub enum UpBody {
    /// As it comes from the agent.
    Stream {
        /// What was read of it before.
        head: Option<Bytes>,
        /// Where it comes from.
        inner: Upload,
        /// The call, which counts its bytes.
        call: Arc<Call>,
        /// Its digest.
        hash: BodyHash,
        /// What is searched for in its beginning.
        search: Option<Box<Search>>,
        /// What its bytes count against.
        account: Option<Arc<Account>>,
        /// What captures it.
        capture: Option<Box<Seal>>,
        /// Whether its trailers go on; only tests say so.
        trailers: bool,
    },
    /// Read before, because the decision needed it.
    Whole {
        /// What is left to send.
        bytes: Option<Bytes>,
        /// The call, which counts its bytes.
        call: Arc<Call>,
        /// Its digest.
        hash: BodyHash,
    },
}

/// All of a request's body has gone by.
fn gone(call: &Call, hash: &mut BodyHash, capture: &mut Option<Box<Seal>>) -> Result<(), BodyError> {
    if let Some(mut capture) = capture.take() {
        capture.finish().inspect_err(|why| call.failed(*why))?;
    }
    call.digest_up(hash.finish());
    Ok(())
}

impl Body for UpBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Stream { head, inner, call, hash, search, account, capture, trailers } => {
                let frame = match head.take() {
                    Some(head) => Frame::data(head),
                    None => match ready!(Pin::new(&mut *inner).poll_frame(cx)) {
                        // Who merges them with the headers would read a request that nobody decided about.
                        Some(Ok(frame)) if frame.is_trailers() && !*trailers => {
                            call.found("request_trailers_dropped");
                            return Poll::Ready(gone(call, hash, capture).err().map(Err));
                        }
                        Some(Ok(frame)) => frame,
                        Some(Err(error)) => {
                            hash.stop();
                            call.failed(format!("request_body: {error}"));
                            return Poll::Ready(Some(Err(error)));
                        }
                        None => return Poll::Ready(gone(call, hash, capture).err().map(Err)),
                    },
                };
                if let Some(data) = frame.data_ref() {
                    if let Some(Err(denial)) = search.as_mut().map(|search| search.check(data)) {
                        // What went before is out; this and all after it is not.
                        hash.stop();
                        call.found(denial.code);
                        call.failed(format!("{}: {}", denial.code, denial.why));
                        return Poll::Ready(Some(Err(denial.why.into())));
                    }
                    call.sent(data.len());
                    if account.as_ref().is_some_and(|account| !account.bytes(data.len())) {
                        hash.stop();
                        call.failed(SPENT);
                        return Poll::Ready(Some(Err(SPENT.into())));
                    }
                    if let Some(Err(why)) = capture.as_mut().map(|capture| capture.push(data)) {
                        hash.stop();
                        call.failed(why);
                        return Poll::Ready(Some(Err(why.into())));
                    }
                    hash.push(data);
                }
                if inner.is_end_stream()
                    // Whoever knows that this is the end does not ask for more.
                    && let Err(why) = gone(call, hash, capture)
                {
                    return Poll::Ready(Some(Err(why)));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Self::Whole { bytes, call, hash } => {
                let bytes = bytes.take().filter(|bytes| !bytes.is_empty());
                if let Some(bytes) = &bytes {
                    call.sent(bytes.len());
                    hash.push(bytes);
                    call.digest_up(hash.finish());
                }
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Stream { head, inner, .. } => head.is_none() && inner.is_end_stream(),
            Self::Whole { bytes, .. } => bytes.as_ref().is_none_or(Bytes::is_empty),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Stream { head: Some(_), .. } => SizeHint::default(),
            Self::Stream { inner, .. } => inner.size_hint(),
            Self::Whole { bytes, .. } => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
        }
    }
}

/// A body back.
pub enum DownBody {
    /// Our own words.
    Own(Option<Bytes>),
    /// From the upstream.
    Relayed(Box<Relayed>),
}

/// A body from an upstream on its way back.
pub struct Relayed {
    inner: Arrival,
    call: Option<Arc<Call>>,
    echo: Option<EchoGuard>,
    checkin: Option<Checkin>,
    trailers: Option<Frame<Bytes>>,
    count: Count,
    /// What captures it.
    capture: Option<Box<Seal>>,
    /// Whether it ends before the upstream has said all.
    cut: bool,
}

/// What an answer is counted by.
#[derive(Default)]
pub struct Count {
    /// What a language model used.
    pub tap: Option<Box<Tap>>,
    /// What a server of MCP says, or another agent.
    pub rpc: Option<Box<Filter>>,
    /// What it counts against.
    pub account: Option<Arc<Account>>,
    /// What of it is held, where any is.
    pub(crate) load: Option<Load>,
}

impl Count {
    /// Whether what goes on may be another length than what came.
    const fn changes(&self) -> bool {
        self.tap.is_some() || self.rpc.is_some()
    }

    /// Holds what came, once there is room for it; before that no more is taken.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Full>> {
        let Some(load) = &mut self.load else { return Poll::Ready(Ok(())) };
        let held = self.rpc.as_ref().map_or(0, |rpc| rpc.held()) + self.tap.as_ref().map_or(0, |tap| tap.held());
        load.shrink(held);
        load.poll_hold(cx, held)
    }

    /// The answer is over.
    fn close(&mut self, call: &Call) {
        self.load = None;
        let used = self.tap.take().map(|tap| tap.used());
        let amounts = used.as_ref().map_or(Amounts::CALL, |(_, amounts)| *amounts);
        if let Some((used, _)) = used {
            call.llm(used);
        }
        if let Some(account) = self.account.take() {
            account.settle(amounts);
        }
    }
}

impl DownBody {
    /// Our own words.
    #[must_use]
    pub fn own(text: impl Into<Bytes>) -> Self {
        Self::Own(Some(text.into()))
    }

    /// Relays `inner`; at its end the connection goes back to the pool and the call is over.
    #[must_use]
    pub fn relayed(
        inner: Arrival,
        call: Arc<Call>,
        echo: Option<EchoGuard>,
        count: Count,
        checkin: Option<Checkin>,
        capture: Option<Box<Seal>>,
    ) -> Self {
        let mut relayed =
            Relayed { inner, call: Some(call), echo, checkin, trailers: None, count, capture, cut: false };
        if relayed.inner.is_end_stream() {
            relayed.capture = None;
            relayed.whole();
        }
        Self::Relayed(Box::new(relayed))
    }
}

impl Relayed {
    /// The upstream has said all, and all of it was read.
    fn whole(&mut self) {
        if let Some(call) = &self.call {
            call.digest_down(self.inner.digest());
        }
        self.finish();
    }

    /// Nothing more comes.
    fn finish(&mut self) {
        if let Some(checkin) = self.checkin.take() {
            checkin.back();
        }
        self.echo = None;
        if let Some(call) = self.call.take() {
            self.count.close(&call);
        }
    }

    fn found(&mut self, found: bool) {
        if found && let Some(call) = &self.call {
            call.found("secret_echo_redacted");
            // With the rest of the answer known, its digest would tell whether a guess of the secret is right.
            self.inner.leave_unhashed();
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.capture.is_none() {
            return self.next(cx);
        }
        let call = self.call.clone();
        let next = ready!(self.next(cx));
        let over = self.call.is_none() && self.trailers.is_none();
        let Some(capture) = &mut self.capture else { return Poll::Ready(next) };
        let captured = match &next {
            Some(Ok(frame)) => frame.data_ref().map_or(Ok(()), |data| capture.push(data)),
            // What broke off is captured as far as it went.
            Some(Err(_)) => {
                self.capture = None;
                return Poll::Ready(next);
            }
            None => Ok(()),
        };
        let captured = captured.and_then(|()| if over && !self.cut { capture.finish() } else { Ok(()) });
        if over || captured.is_err() {
            self.capture = None;
        }
        if let Err(why) = captured {
            call.iter().for_each(|call| call.failed(why));
            self.checkin = None;
            self.finish();
            return Poll::Ready(Some(Err(why.into())));
        }
        Poll::Ready(next)
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(trailers) = self.trailers.take() {
                self.whole();
                return Poll::Ready(Some(Ok(trailers)));
            }
            if self.call.is_some()
                && let Err(full) = ready!(self.count.poll_room(cx))
            {
                return Poll::Ready(Some(self.no_room(full)));
            }
            let next = match self.call {
                Some(_) => ready!(self.inner.poll_frame(cx)),
                None => None,
            };
            match next {
                Some(Ok(frame)) => {
                    let frame = match frame.into_data() {
                        Ok(data) => match self.data(data) {
                            Ok(frame) => frame,
                            Err(spent) => {
                                if let Some(call) = &self.call {
                                    call.failed(spent);
                                }
                                self.checkin = None;
                                self.finish();
                                return Poll::Ready(Some(Err(spent.into())));
                            }
                        },
                        Err(frame) => self.last(frame),
                    };
                    if self.cut {
                        self.checkin = None;
                        self.finish();
                        return Poll::Ready(frame.map(Ok));
                    }
                    if self.inner.is_end_stream() && self.trailers.is_none() {
                        self.whole();
                    }
                    match frame {
                        Some(frame) => return Poll::Ready(Some(Ok(frame))),
                        None => continue,
                    }
                }
                Some(Err(error)) => {
                    if let Some(call) = &self.call {
                        call.failed(error.as_str());
                    }
                    self.checkin = None;
                    self.finish();
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    let (tail, found) = self.rest();
                    self.found(found);
                    self.whole();
                    return Poll::Ready((!tail.is_empty()).then(|| Ok(Frame::data(tail))));
                }
            }
        }
    }

    /// There is no room for what must be whole; whoever waits for a message is told so in one.
    fn no_room(&mut self, full: Full) -> Result<Frame<Bytes>, BodyError> {
        let told = self.count.rpc.as_mut().and_then(|rpc| rpc.give_up());
        self.call.iter().for_each(|call| call.failed(full.why()));
        (self.checkin, self.cut) = (None, true);
        self.finish();
        told.map(Frame::data).ok_or_else(|| full.why().into())
    }

    fn data(&mut self, data: Bytes) -> Result<Option<Frame<Bytes>>, &'static str> {
        let mut data = data;
        if let Some(call) = &self.call {
            let arrived = self.inner.arrived();
            call.received(arrived);
            let left = self.count.account.as_ref().is_none_or(|account| account.bytes(arrived));
            if let Some(tap) = &mut self.count.tap {
                (data, self.cut) = tap.push(data, call.id().as_str());
                if self.cut {
                    call.found("stream_cut_at_budget");
                }
            }
            if let Some(rpc) = &mut self.count.rpc {
                (data, self.cut) = rpc.push(data);
            }
            if !left && !self.cut {
                return Err(SPENT);
            }
        }
        if self.echo.is_none() && !(self.count.changes() && self.inner.is_end_stream()) {
            return Ok((!data.is_empty()).then(|| Frame::data(data)));
        }
        let (mut out, mut found) = match &mut self.echo {
            Some(echo) => echo.push(data),
            None => (data, false),
        };
        if self.inner.is_end_stream() || self.cut {
            let (tail, more) = self.rest();
            found |= more;
            if !tail.is_empty() {
                out = [out, tail].concat().into();
            }
        }
        self.found(found);
        Ok((!out.is_empty()).then(|| Frame::data(out)))
    }

    /// What was held back, at the end.
    fn rest(&mut self) -> (Bytes, bool) {
        let counted = match (&mut self.count.tap, &mut self.count.rpc) {
            (Some(tap), _) => tap.finish(),
            (None, Some(rpc)) => rpc.finish(),
            (None, None) => Bytes::new(),
        };
        let Some(echo) = &mut self.echo else { return (counted, false) };
        let (mut out, found) = echo.push(counted);
        let tail = echo.finish();
        if !tail.is_empty() {
            out = [out, tail].concat().into();
        }
        (out, found)
    }

    fn last(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        if self.echo.is_none() && !self.count.changes() {
            return Some(frame);
        }
        let (tail, mut found) = self.rest();
        let mut frame = frame;
        if let (Some(echo), Some(trailers)) = (&self.echo, frame.trailers_mut()) {
            found |= echo.clean(trailers);
        }
        self.found(found);
        if tail.is_empty() {
            return Some(frame);
        }
        self.trailers = Some(frame);
        Some(Frame::data(tail))
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call.failed("aborted");
            self.count.close(&call);
        }
    }
}

impl Body for DownBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relayed(relayed) => relayed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Relayed(relayed) => relayed.call.is_none() && relayed.trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Relayed(relayed) if relayed.echo.is_some() || relayed.count.changes() => SizeHint::default(),
            Self::Relayed(relayed) => relayed.inner.size_hint(),
        }
    }
}
