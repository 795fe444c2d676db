//! Servers and proxies as they should not be: they read HTTP/1.1 in the ways that request smuggling lives on. One of them
//! behind the gate must not be led astray; behind [`Naive`], which passes bytes on as they came, it is.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// How somebody finds the end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The last length, whatever its form; no chunks.
    LastLength,
    /// The first length, whatever its form; no chunks.
    FirstLength,
    /// Chunks, where a header like `Transfer-Encoding` says something like `chunked`; else the first length.
    Chunks,
    /// No request has a body.
    NoBody,
    /// As [`Self::FirstLength`], and a bare CR ends a line.
    BareCr,
}

/// A request as somebody reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub method: String,
    pub target: String,
    /// The whole of it, as it came.
    pub bytes: Vec<u8>,
}

impl Reading {
    /// The first request of `bytes`, if it is there as a whole.
    pub fn first(self, bytes: &[u8]) -> Option<Read> {
        let text: String = bytes.iter().map(|b| char::from(*b)).collect();
        let (mut at, mut lines) = (0, Vec::new());
        loop {
            let end = text[at..].find(|c| c == '\n' || self == Self::BareCr && c == '\r')?;
            let line = text[at..at + end].trim_end_matches('\r').to_owned();
            at += end + 1;
            if self == Self::BareCr && text[at..].starts_with('\n') {
                at += 1;
            }
            if line.is_empty() {
                break;
            }
            lines.push(line);
        }
        let mut words = lines.first().map(|l| l.split(' ')).into_iter().flatten();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fields: Vec<(String, String)> = lines
            .iter()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_ascii_lowercase().replace('_', "-"), value.to_owned()))
            .collect();
        let lengths: Vec<usize> = fields
            .iter()
            .filter(|(name, _)| name == "content-length")
            .filter_map(|(_, value)| {
                value.trim().trim_start_matches('+').split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().ok()
            })
            .collect();
        let length = match self {
            Self::LastLength => lengths.last(),
            Self::NoBody => None,
            Self::BareCr | Self::Chunks | Self::FirstLength => lengths.first(),
        };
        let chunked = self == Self::Chunks
            && fields.iter().any(|(n, v)| n == "transfer-encoding" && v.to_ascii_lowercase().contains("chunked"));
        let end = if chunked { at + chunks(&bytes[at..])? } else { at + length.copied().unwrap_or(0) };
        let read = Read { method: method.to_owned(), target: target.to_owned(), bytes: bytes.get(..end)?.to_vec() };
        Some(read)
    }

    /// All requests of `bytes`.
    pub fn all(self, mut bytes: &[u8]) -> Vec<Read> {
        let mut all = Vec::new();
        while let Some(read) = self.first(bytes) {
            bytes = &bytes[read.bytes.len()..];
            all.push(read);
        }
        all
    }
}

/// The length of a body in chunks, trailers and all.
fn chunks(bytes: &[u8]) -> Option<usize> {
    let line = |at: usize| {
        let end = at + bytes.get(at..)?.iter().position(|b| *b == b'\n')?;
        Some((String::from_utf8_lossy(&bytes[at..end]).trim().to_owned(), end + 1))
    };
    let mut at = 0;
    loop {
        let (size, next) = line(at)?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        at = next;
        if size == 0 {
            loop {
                let (trailer, next) = line(at)?;
                at = next;
                if trailer.is_empty() {
                    return Some(at);
                }
            }
        }
        at = line(at + size)?.1;
    }
}

/// A server that answers every request that it reads with `ok`, and remembers them and all bytes.
pub struct Lenient {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Read>>>,
    pub bytes: Arc<Mutex<Vec<u8>>>,
}

impl Lenient {
    pub async fn start(reading: Reading, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, bytes) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let seen = (Arc::clone(&requests), Arc::clone(&bytes));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, (requests, bytes)) = (tls.clone(), seen.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(reading, stream, requests, bytes).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                answer(reading, stream, requests, bytes).await;
                            }
                        }
                    }
                });
            }
        });
        Self { address, requests, bytes }
    }

    pub fn targets(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|read| format!("{} {}", read.method, read.target)).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    reading: Reading,
    mut stream: S,
    requests: Arc<Mutex<Vec<Read>>>,
    bytes: Arc<Mutex<Vec<u8>>>,
) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (mut held, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    loop {
        while let Some(read) = reading.first(&held) {
            held.drain(..read.bytes.len());
            requests.lock().unwrap().push(read);
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                held.extend_from_slice(&buffer[..count]);
                bytes.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
            _ => return,
        }
    }
}

/// A proxy that holds the path of each request that it reads against what is granted, and passes on the bytes of those
/// that it allows just as they came.
pub struct Naive;

impl Naive {
    /// Has `bytes` said to such a proxy before `upstream`, until all is answered.
    pub async fn relay(reading: Reading, granted: &str, bytes: &[u8], upstream: SocketAddr) {
        let mut stream = TcpStream::connect(upstream).await.unwrap();
        for read in reading.all(bytes) {
            if read.target == granted {
                stream.write_all(&read.bytes).await.unwrap();
            }
        }
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
}
