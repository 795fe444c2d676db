//! An MCP server that speaks over its standard input and output, as one that speaks over HTTP.
//!
//! This runs inside the sandbox of the server, as its first process and under its fence; nothing here is trusted by what
//! is outside. Each session has a process of its own, so that no session sees another's. Calls that name no session
//! share one.
//!
//! # Source
//! Model Context Protocol, "Transports": stdio and Streamable HTTP, revisions 2025-03-26 to 2026-07-28.

mod http;
mod message;
mod process;
mod reap;
mod sessions;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub use crate::http::{HEALTH, PATH};
use crate::sessions::Sessions;

/// The port that it listens on in its sandbox.
pub const PORT: u16 = 8000;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take over the head of a request.
const HEAD: Duration = Duration::from_secs(75);

/// A program that speaks MCP over its standard input and output.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its command line; the first is a path.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
}

/// Serves `server` on `port` of 127.0.0.1 until the process ends.
///
/// # Errors
/// If it cannot listen, or the listener breaks.
pub fn serve(server: Server, port: u16) -> io::Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        reap::orphans()?;
        serve_on(server, listener).await
    })
}

/// Serves `server` on a listener.
///
/// # Errors
/// If the listener breaks.
pub async fn serve_on(server: Server, listener: TcpListener) -> io::Result<Infallible> {
    let sessions = Arc::new(Sessions::new(server));
    tokio::spawn(Arc::clone(&sessions).expire());
    let open = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = Arc::clone(&open).acquire_owned().await.map_err(io::Error::other)?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        // Small messages must not wait for more.
        let _ = stream.set_nodelay(true);
        let sessions = Arc::clone(&sessions);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let sessions = Arc::clone(&sessions);
                async move { Ok::<_, Infallible>(http::answer(&sessions, request).await) }
            });
            // How a connection ends is the client's concern.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .half_close(true)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}
