//! A connection that can be cut from outside. The library runs each of its sessions as a task of its own, which ends when
//! its connection does.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// Cuts its connection when dropped.
pub(super) struct Leash {
    _end: oneshot::Sender<()>,
}

/// A connection on a leash.
pub(super) struct Leashed<S> {
    stream: S,
    /// `None` once it is cut.
    cut: Option<oneshot::Receiver<()>>,
}

/// Puts a connection on a leash.
pub(super) fn leash<S>(stream: S) -> (Leash, Leashed<S>) {
    let (end, cut) = oneshot::channel();
    (Leash { _end: end }, Leashed { stream, cut: Some(cut) })
}

impl<S> Leashed<S> {
    fn held(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.as_mut().is_some_and(|cut| Pin::new(cut).poll(cx).is_ready()) {
            self.cut = None;
        }
        if self.cut.is_some() { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Leashed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.held(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Leashed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.held(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_is_cut_while_somebody_waits_for_it() {
        let (near, mut far) = tokio::io::duplex(64);
        let (leash, mut near) = leash(near);
        far.write_all(b"x").await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        let waiting = tokio::spawn(async move { (near.read_u8().await.is_err(), near.write_u8(1).await.is_err()) });
        tokio::task::yield_now().await;
        drop(leash);
        assert_eq!(waiting.await.unwrap(), (true, true));
    }
}
