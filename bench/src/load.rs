//! The client: so many connections, as many requests as go through, and how long each took.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::wire::{self, Head};
use crate::{Done, Failure, pki};

/// What a client is told, as JSON in its only argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Where it connects.
    pub to: SocketAddr,
    /// The host and port that it means; also the name in TLS.
    pub host: String,
    /// The port that it means.
    pub port: u16,
    /// Whether it asks a proxy by `CONNECT` first.
    pub by_connect: bool,
    /// PEM file of the authority that it believes.
    pub ca: String,
    /// What it does.
    pub work: Work,
    /// How many at once.
    pub connections: usize,
    /// How long.
    pub seconds: f64,
}

/// What a client does.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Work {
    /// One connection, many requests, answered with so many bytes.
    KeepAlive(u64),
    /// A connection for each request; `true`: TLS sessions are resumed.
    Anew(bool),
    /// One answer of so many bytes.
    Download(u64),
    /// One request of so many bytes.
    Upload(u64),
    /// The time from a request to its first event.
    FirstEvent,
    /// A call of a language model, answered whole.
    Chat,
    /// A call of a language model, and the time to the first event of its answer.
    ChatStream,
}

/// What a client of a language model asks, as usual clients write it.
const CHAT: &str = r#"{"model":"gpt-4o-mini","stream":STREAM,"max_tokens":256,"messages":[{"role":"system","content":"You are an analyst. Answer in short sentences, and name the table that each number comes from. Do not guess."},{"role":"user","content":"Which region sold more in the third quarter than in the second, and by how much? Leave out regions with fewer than a hundred orders."}],"tools":[{"type":"function","function":{"name":"query","description":"Runs a query on the sales table.","parameters":{"type":"object","properties":{"sql":{"type":"string"}},"required":["sql"]}}}]}"#;

/// What a client saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Requests answered.
    pub requests: u64,
    /// Time taken.
    pub seconds: f64,
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// TLS handshakes that resumed a session.
    pub resumed: u64,
}

/// Does as told, and prints what it saw.
pub fn main(order: &str) -> Done {
    let order: Order = serde_json::from_str(order)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = tokio::task::LocalSet::new().block_on(&runtime, run(order))?;
    println!("{}", serde_json::to_string(&seen)?);
    Ok(())
}

async fn run(order: Order) -> Result<Seen, Failure> {
    let mut config: ClientConfig = pki::client_config(&order.ca)?;
    config.resumption = match order.work {
        Work::Anew(true) => Resumption::in_memory_sessions(256),
        _ => Resumption::disabled(),
    };
    let client = Rc::new(Client { connector: Arc::new(config).into(), order, times: RefCell::default() });
    // Connections are made before the clock starts, but where they are what is measured.
    let mut lines = Vec::new();
    for _ in 0..client.order.connections {
        let mut line = client.connect().await?;
        if !matches!(client.order.work, Work::Download(_) | Work::Upload(_)) {
            client.once(&mut line).await?;
        }
        lines.push(line);
    }
    *client.times.borrow_mut() = Times::default();
    let started = Instant::now();
    let tasks: Vec<_> = lines
        .into_iter()
        .map(|line| {
            let client = Rc::clone(&client);
            tokio::task::spawn_local(async move { client.until(started, line).await.map_err(|e| e.to_string()) })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let Times { mut each, resumed } = client.times.take();
    each.sort_by(f32::total_cmp);
    let nth = |share: usize| f64::from(each.get(each.len().saturating_sub(1) * share / 100).copied().unwrap_or(0.0));
    Ok(Seen { requests: each.len() as u64, seconds, p50_us: nth(50), p99_us: nth(99), resumed })
}

#[derive(Default)]
struct Times {
    each: Vec<f32>,
    resumed: u64,
}

struct Client {
    connector: TlsConnector,
    order: Order,
    times: RefCell<Times>,
}

/// An open connection and what is needed to use it.
struct Line {
    stream: TlsStream<TcpStream>,
    kept: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    async fn until(&self, started: Instant, mut line: Line) -> Result<(), Failure> {
        let end = Duration::from_secs_f64(self.order.seconds);
        while started.elapsed() < end {
            let at = Instant::now();
            if let Work::Anew(_) = self.order.work {
                line = self.connect().await?;
                self.times.borrow_mut().resumed +=
                    u64::from(line.stream.get_ref().1.handshake_kind() == Some(rustls::HandshakeKind::Resumed));
            }
            let took = match self.once(&mut line).await? {
                Some(first) => first.duration_since(at),
                None => at.elapsed(),
            };
            self.times.borrow_mut().each.push(took.as_secs_f32() * 1e6);
        }
        Ok(())
    }

    async fn connect(&self) -> Result<Line, Failure> {
        let Order { to, host, port, by_connect, .. } = &self.order;
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let mut kept = Vec::new();
        let mut buffer = vec![0; 16 * 1024];
        if *by_connect {
            let ask = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
            stream.write_all(ask.as_bytes()).await?;
            let head = Head::read(&mut stream, &mut kept, &mut buffer).await?.ok_or("the proxy closed")?;
            if head.target() != "200" {
                return Err(format!("the proxy answered {}", head.target()).into());
            }
        }
        let stream = self.connector.connect(ServerName::try_from(host.clone())?, stream).await?;
        if matches!(self.order.work, Work::Download(_) | Work::Upload(_)) {
            buffer.resize(wire::CHUNK, 0);
        }
        Ok(Line { stream, kept, buffer })
    }

    /// One request and its whole answer; gives the time of the first byte of its body where that is asked for.
    async fn once(&self, line: &mut Line) -> Result<Option<Instant>, Failure> {
        let Order { host, port, work, .. } = &self.order;
        let (method, path, up) = match work {
            Work::KeepAlive(bytes) | Work::Download(bytes) => ("GET", format!("/bytes/{bytes}"), 0),
            Work::Anew(_) => ("GET", "/bytes/1024".to_owned(), 0),
            Work::Upload(bytes) => ("POST", "/sink".to_owned(), *bytes),
            Work::FirstEvent => ("GET", "/sse".to_owned(), 0),
            Work::Chat | Work::ChatStream => ("POST", "/v1/chat/completions".to_owned(), 0),
        };
        let chat = match work {
            Work::Chat => CHAT.replace("STREAM", "false"),
            Work::ChatStream => CHAT.replace("STREAM", "true"),
            _ => String::new(),
        };
        // The headers of a usual client of a language model.
        let port = if *port == 443 { String::new() } else { format!(":{port}") };
        let body = up + chat.len() as u64;
        let length = if body > 0 { format!("Content-Length: {body}\r\n") } else { String::new() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}{port}\r\nAccept: application/json\r\nAccept-Encoding: gzip, deflate\r\n\
             Connection: keep-alive\r\nUser-Agent: OpenAI/Python 1.99.1\r\nX-Stainless-Lang: python\r\nX-Stainless-Os: Linux\r\n\
             X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.13.5\r\nContent-Type: application/json\r\n{length}\r\n{chat}"
        );
        line.stream.write_all(request.as_bytes()).await?;
        let mut left = up;
        while left > 0 {
            let part = usize::try_from(left)?.min(line.buffer.len());
            line.stream.write_all(&line.buffer[..part]).await?;
            left -= part as u64;
        }
        line.stream.flush().await?;
        let head = Head::read(&mut line.stream, &mut line.kept, &mut line.buffer).await?.ok_or("the peer closed")?;
        if head.target() != "200" {
            return Err(format!("the answer is {}", head.target()).into());
        }
        let first_event = matches!(work, Work::FirstEvent | Work::ChatStream);
        let Some(length) = head.length else { return chunked(line).await.map(|at| first_event.then_some(at)) };
        let mut left = length.saturating_sub(line.kept.len() as u64);
        line.kept.clear();
        while left > 0 {
            let count = line.stream.read(&mut line.buffer).await?;
            if count == 0 {
                return Err("the answer broke off".into());
            }
            left = left.saturating_sub(count as u64);
        }
        Ok(None)
    }
}

/// Reads a chunked body to its end; gives the time of its first byte.
async fn chunked(line: &mut Line) -> Result<Instant, Failure> {
    const END: &[u8] = b"0\r\n\r\n";
    let mut first = (!line.kept.is_empty()).then(Instant::now);
    loop {
        // What upstreams here send never looks like the end.
        if line.kept.ends_with(END) {
            line.kept.clear();
            return Ok(first.ok_or("no body came")?);
        }
        let count = line.stream.read(&mut line.buffer).await?;
        if count == 0 {
            return Err("the body broke off".into());
        }
        first.get_or_insert_with(Instant::now);
        let part = &line.buffer[count.saturating_sub(END.len())..count];
        line.kept.drain(..line.kept.len().saturating_sub(END.len()));
        line.kept.extend_from_slice(part);
    }
}
