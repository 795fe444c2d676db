//! The upstream: HTTP/1.1 over TLS, answering as fast as it can. Written by hand, because what it costs is taken from
//! the core that it shares with the client.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::wire::{self, Head};
use crate::{Done, pki};

/// How long `/sse` waits between its first event and its end.
const SSE_PAUSE: Duration = Duration::from_millis(5);

/// Serves for ever on `port`, with certificate and key from `dir`.
pub fn main(port: u16, dir: &str) -> Done {
    let acceptor = TlsAcceptor::from(pki::server_config(dir)?);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that goes away is no concern of the upstream's.
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = serve(stream).await;
                }
            });
        }
    })
}

fn contains_stream(part: &[u8]) -> bool {
    part.get(..256).unwrap_or(part).windows(13).any(|w| w == b"\"stream\":true")
}

/// Answers as a language model's provider.
async fn chat<S: AsyncWrite + Unpin>(stream: &mut S, events: bool) -> Done {
    const USAGE: &str = r#""usage":{"prompt_tokens":120,"completion_tokens":200,"total_tokens":320}"#;
    if !events {
        let said = "word ".repeat(200);
        let body = format!(
            r#"{{"id":"c1","object":"chat.completion","model":"gpt-4o-mini","choices":[{{"index":0,"message":{{"role":"assistant","content":"{said}"}},"finish_reason":"stop"}}],{USAGE}}}"#
        );
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await?;
        return Ok(stream.flush().await?);
    }
    let chunk = |data: &str| format!("{:x}\r\ndata: {data}\n\n\r\n", data.len() + 8);
    let word = r#"{"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":"word "}}],"usage":null}"#;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all((head.to_owned() + &chunk(word)).as_bytes()).await?;
    stream.flush().await?;
    tokio::time::sleep(SSE_PAUSE).await;
    let last = format!(r#"{{"id":"c1","object":"chat.completion.chunk","model":"gpt-4o-mini","choices":[],{USAGE}}}"#);
    stream.write_all((chunk(&last) + &chunk("[DONE]") + "0\r\n\r\n").as_bytes()).await?;
    Ok(stream.flush().await?)
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Done {
    let filler: Arc<[u8]> = vec![b'x'; wire::CHUNK].into();
    let mut buffer = vec![0; wire::CHUNK];
    let mut kept = Vec::new();
    loop {
        let Some(head) = Head::read(&mut stream, &mut kept, &mut buffer).await? else { return Ok(()) };
        let path = head.target().to_owned();
        // Only in its first bytes does a call say whether it wants a stream.
        let mut stream_wanted = contains_stream(&kept);
        let mut left = head.length.unwrap_or(0).saturating_sub(kept.len() as u64);
        kept.clear();
        while left > 0 {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            stream_wanted |= contains_stream(&buffer[..count]);
            left = left.saturating_sub(count as u64);
        }
        if path == "/sse" {
            let first = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 0\n\n\r\n";
            stream.write_all(first.as_bytes()).await?;
            stream.flush().await?;
            tokio::time::sleep(SSE_PAUSE).await;
            stream.write_all(b"0\r\n\r\n").await?;
            stream.flush().await?;
            continue;
        }
        if path == "/v1/chat/completions" {
            chat(&mut stream, stream_wanted).await?;
            continue;
        }
        let length: u64 = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()).unwrap_or(2);
        let mut out = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n")
            .into_bytes();
        let first = usize::try_from(length)?.min(filler.len());
        out.extend_from_slice(&filler[..first]);
        stream.write_all(&out).await?;
        let mut left = length - first as u64;
        while left > 0 {
            let part = usize::try_from(left)?.min(filler.len());
            stream.write_all(&filler[..part]).await?;
            left -= part as u64;
        }
        stream.flush().await?;
        if head.closes() {
            return Ok(());
        }
    }
}
