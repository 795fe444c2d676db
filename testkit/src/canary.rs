//! Listeners where stolen data would arrive. They count what reaches them, and that should be nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// How long a silent sender is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a canary saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Connections accepted.
    pub connections: u64,
    /// Bytes received; over TLS, those inside it.
    pub bytes: u64,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    bytes: AtomicU64,
}

/// A listener that counts. It ends when it is dropped.
pub struct Canary {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Canary {
    /// Listens on a free port of 127.0.0.1: as an HTTPS server that takes everything if there is `tls`, else
    /// for bare TCP. `observe` is told of every change.
    ///
    /// # Errors
    /// If no port can be listened on.
    pub async fn start(
        tls: Option<Arc<ServerConfig>>,
        observe: impl Fn(Seen) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let counts = Arc::new(Counts::default());
        let shared = Arc::clone(&counts);
        let observe: Arc<dyn Fn(Seen) + Send + Sync> = Arc::new(observe);
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                observe(shared.seen());
                tokio::spawn(take(stream, tls.clone(), Arc::clone(&shared), Arc::clone(&observe)));
            }
        });
        Ok(Self { address, counts, task })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it saw so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.counts.seen()
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counts {
    fn seen(&self) -> Seen {
        Seen { connections: self.connections.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

type Observe = Arc<dyn Fn(Seen) + Send + Sync>;

async fn take(stream: TcpStream, tls: Option<Arc<ServerConfig>>, counts: Arc<Counts>, observe: Observe) {
    match tls {
        None => swallow(stream, b"ok\n", &counts, &observe).await,
        Some(config) => {
            let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
            let thanks = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
            swallow(stream, thanks, &counts, &observe).await;
        }
    }
}

/// Reads all there is, and thanks for the first of it.
async fn swallow(mut stream: impl AsyncRead + AsyncWrite + Unpin, thanks: &[u8], counts: &Counts, observe: &Observe) {
    let mut buffer = vec![0; 16 * 1024];
    let mut thanked = false;
    while let Ok(Ok(got @ 1..)) = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await {
        counts.bytes.fetch_add(got as u64, Ordering::Relaxed);
        observe(counts.seen());
        if !std::mem::replace(&mut thanked, true) && stream.write_all(thanks).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_arrives_is_counted() {
        let canary = Canary::start(None, |_| {}).await.unwrap();
        assert_eq!(canary.seen(), Seen::default());
        let mut stream = TcpStream::connect(canary.address()).await.unwrap();
        stream.write_all(b"stolen").await.unwrap();
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(canary.seen(), Seen { connections: 1, bytes: 6 });
    }
}
