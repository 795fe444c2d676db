//! Fewer and larger reads, below TLS and above it. The TLS library reads 4 KiB at a time and gives one record at a
//! time, which is right for heads and dear for bodies.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once while a peer sends more than its reader takes.
const AHEAD_BYTES: usize = 64 * 1024;

/// From this much on, a read is of a body, and there may be more.
const BULK_BYTES: usize = 4 * 1024;

/// A stream below TLS. It holds a buffer only while the peer sends more than was asked for.
pub(crate) struct ReadAhead<S> {
    /// What was read before, or ahead.
    first: Bytes,
    ahead: Vec<u8>,
    /// What of `ahead` was not given on yet.
    at: usize,
    end: usize,
    /// Whether the last read took all that was asked for.
    more: bool,
    stream: S,
}

impl<S> ReadAhead<S> {
    /// A stream whose first bytes were read already.
    pub(crate) const fn new(stream: S, first: Bytes) -> Self {
        Self { first, ahead: Vec::new(), at: 0, end: 0, more: false, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self;
        if !me.first.is_empty() {
            let count = me.first.len().min(buffer.remaining());
            buffer.put_slice(me.first.get(..count).unwrap_or_default());
            me.first.advance(count);
            return Poll::Ready(Ok(()));
        }
        if me.at == me.end {
            if !me.more {
                me.ahead = Vec::new();
                let before = buffer.filled().len();
                ready!(Pin::new(&mut me.stream).poll_read(cx, buffer))?;
                me.more = buffer.remaining() == 0 && buffer.filled().len() - before >= BULK_BYTES;
                return Poll::Ready(Ok(()));
            }
            if buffer.remaining() >= AHEAD_BYTES {
                return Pin::new(&mut me.stream).poll_read(cx, buffer);
            }
            me.ahead.resize(AHEAD_BYTES, 0);
            let mut ahead = ReadBuf::new(&mut me.ahead);
            let polled = Pin::new(&mut me.stream).poll_read(cx, &mut ahead);
            (me.at, me.end) = (0, ahead.filled().len());
            me.more = ahead.remaining() == 0;
            if polled.is_pending() {
                me.ahead = Vec::new();
            }
            ready!(polled)?;
        }
        let held = me.ahead.get(me.at..me.end).unwrap_or_default();
        let count = held.len().min(buffer.remaining());
        buffer.put_slice(held.get(..count).unwrap_or_default());
        me.at += count;
        Poll::Ready(Ok(()))
    }
}

/// A stream above TLS: while records are waiting, a read takes as many as fit.
pub(crate) struct Gather<S> {
    stream: S,
    /// What broke the stream behind bytes that were still given.
    broken: Option<io::Error>,
}

impl<S> Gather<S> {
    pub(crate) const fn new(stream: S) -> Self {
        Self { stream, broken: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        let start = buffer.filled().len();
        loop {
            let before = buffer.filled().len();
            let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
            let read = buffer.filled().len() - before;
            match polled {
                Poll::Ready(Ok(())) if read >= BULK_BYTES && buffer.remaining() > 0 => {}
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                _ if before == start => return polled,
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// Writes go through as they are.
macro_rules! writes_through {
    ($kind:ident) => {
        impl<S: AsyncWrite + Unpin> AsyncWrite for $kind<S> {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write(cx, bytes)
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                parts: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
            }

            fn is_write_vectored(&self) -> bool {
                self.stream.is_write_vectored()
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_shutdown(cx)
            }
        }
    };
}

pub(crate) use writes_through;

writes_through!(Gather);
writes_through!(ReadAhead);

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    /// Gives its parts one at a time, and is not ready in between.
    struct Parts(VecDeque<Result<Vec<u8>, io::ErrorKind>>, bool);

    impl AsyncRead for Parts {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1 = !self.1;
            if self.1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match self.0.pop_front() {
                Some(Ok(mut part)) => {
                    let rest = part.split_off(part.len().min(buffer.remaining()));
                    buffer.put_slice(&part);
                    if !rest.is_empty() {
                        self.0.push_front(Ok(rest));
                        // More is ready at once, as from a full socket.
                        self.1 = true;
                    }
                    Poll::Ready(Ok(()))
                }
                Some(Err(kind)) => Poll::Ready(Err(kind.into())),
                None => Poll::Ready(Ok(())),
            }
        }
    }

    fn read_all(mut stream: impl AsyncRead + Unpin, step: usize) -> (Vec<u8>, Option<io::ErrorKind>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut all, mut buffer) = (Vec::new(), vec![0; step]);
            loop {
                match stream.read(&mut buffer).await {
                    Ok(0) => return (all, None),
                    Ok(count) => all.extend_from_slice(&buffer[..count]),
                    Err(error) => return (all, Some(error.kind())),
                }
            }
        })
    }

    proptest! {
        #[test]
        fn bytes_come_through_as_they_are(
            sizes in proptest::collection::vec(1_usize..200_000, 0..6),
            step in prop_oneof![1_usize..5000, Just(4096), Just(70_000)],
            first in 0_usize..5000,
            breaks in any::<bool>(),
        ) {
            let step = step.max(64);
            let whole: Vec<u8> = (0_u8..251).cycle().take(first + sizes.iter().sum::<usize>()).collect();
            let mut at = first;
            let mut parts = VecDeque::new();
            for size in &sizes {
                parts.push_back(Ok(whole[at..at + size].to_vec()));
                at += size;
            }
            parts.extend(breaks.then_some(Err(io::ErrorKind::ConnectionReset)));
            let first = Bytes::copy_from_slice(&whole[..first]);
            let (read, error) = read_all(Gather::new(ReadAhead::new(Parts(parts, false), first)), step);
            prop_assert!(read == whole);
            prop_assert_eq!(error, breaks.then_some(io::ErrorKind::ConnectionReset));
        }
    }
}
