//! An agent that wants its gate to do or hold too much: floods of frames, streams without end, connections that stall. Each
//! ends at a bound, what is held stays small, and the next call works.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use ringfence_gate::MAX_CONNECTIONS;
use ringfence_gate::room::{MAX_CONNECTIONS_TO_ONE, MAX_UPSTREAM_CONNECTIONS};
use ringfence_model::manifest::Scheme;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Outcome, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, Wire, code, frame,
};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};

const TWO: &[&[u8]] = &[b"h2"];

/// One test at a time: they measure the memory of their process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// This process's memory, in MiB.
fn held() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
}

/// Holds it against what all of the test may take: gate, agent, upstream and their buffers.
fn bounded(most: usize) {
    let held = held();
    assert!(held < most, "{held} MiB are held");
}

fn many_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(8192), maximum }).unwrap();
}

fn cleartext(address: SocketAddr) -> Fence {
    let mut granted = grant(address, &TestCa::new());
    (granted.scheme, granted.port, granted.ca_pem) = (Scheme::Http, 80, None);
    Fence::new(vec![granted])
}

/// Says pieces over HTTP/2 for as long as they are taken, and hears at the same time. Gives the first outcome.
async fn flood(fence: &Fence, pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> Outcome {
    let to = fence.to_name(HOST, 443).await;
    let stream = fence.tls(to, HOST, TWO).await.unwrap();
    let (read, mut write) = tokio::io::split(stream);
    let saying = tokio::spawn(async move {
        for piece in std::iter::once([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).chain(pieces) {
            if write.write_all(&piece).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
        // Open until all is heard.
        std::future::pending::<()>().await;
    });
    let outcome = Wire::raw(read).outcome().await;
    saying.abort();
    outcome
}

fn head(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &frames::request("GET", "/", &[]))
}

/// A stream's header block of `more` fields, over as many frames as it needs.
fn blocks(stream: u32, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(16_000).peekable();
    let mut out = Vec::new();
    let mut kind = HEADERS;
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if kind == HEADERS { flags | END_STREAM } else { flags };
        out.extend(frame(kind, flags, stream, piece));
        kind = CONTINUATION;
    }
    out
}

type Pieces = Box<dyn Iterator<Item = Vec<u8>> + Send>;

#[tokio::test]
async fn floods_over_http2_end_their_connection_or_nothing() {
    let _alone = ALONE.lock().await;
    let calm = Outcome::Away(code::ENHANCE_YOUR_CALM);
    let fine = Outcome::Status(200);
    let away = Outcome::Away(code::PROTOCOL_ERROR);
    fn pieces<I: Iterator<Item = Vec<u8>> + Send + 'static>(pieces: I) -> Pieces {
        Box::new(pieces)
    }
    let then_ask =
        |piece: Vec<u8>, times: usize| pieces(std::iter::repeat_n(piece, times).chain([head(1, END_STREAM)]));
    let bomb = {
        let mut block = frames::request("GET", "/", &[]);
        block.push(0x40);
        for text in [&b"x"[..], &[b'y'; 4000]] {
            frames::integer(&mut block, 0, 7, text.len());
            block.extend_from_slice(text);
        }
        block.extend(std::iter::repeat_n(0xbe, 15_000));
        block
    };
    let many: Vec<(&[u8], &[u8])> = vec![(b"x", b""); 5_000];
    let large: Vec<(&[u8], &[u8])> = vec![(b"x", &[b'y'; 10_000]); 10];
    let malformed = frames::request("GET", "/", &[(b"connection", b"close")]);
    let cases: Vec<(&str, Pieces, Vec<Outcome>)> = vec![
        // CVE-2023-44487.
        (
            "streams opened and reset",
            pieces(
                (0..20_000)
                    .map(|n| [head(2 * n + 1, END_STREAM), frame(RST_STREAM, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()),
            ),
            vec![calm.clone()],
        ),
        // CVE-2024-27316 and its like.
        (
            "headers that go on",
            pieces(std::iter::once(frame(HEADERS, 0, 1, &frames::request("GET", "/", &[]))).chain(
                std::iter::repeat_n(frame(CONTINUATION, 0, 1, &frames::block(&[(b"x", &[b'y'; 8000])])), 20_000),
            )),
            vec![calm.clone(), away.clone()],
        ),
        (
            "empty headers that go on",
            pieces(
                std::iter::once(frame(HEADERS, 0, 1, &frames::request("GET", "/", &[])))
                    .chain(std::iter::repeat_n(frame(CONTINUATION, 0, 1, &[]).repeat(100), 1000)),
            ),
            vec![calm.clone()],
        ),
        // CVE-2019-9512, -9515, -9513, -9511.
        ("pings", then_ask(frame(PING, 0, 0, &[7; 8]).repeat(100), 200), vec![fine.clone()]),
        ("settings", then_ask(frame(SETTINGS, 0, 0, &[]).repeat(100), 200), vec![fine.clone()]),
        ("priorities", then_ask(frame(PRIORITY, 0, 5, &[0, 0, 0, 3, 7]).repeat(100), 200), vec![fine.clone()]),
        (
            "windows that grow by one",
            then_ask(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(100), 200),
            vec![fine.clone()],
        ),
        ("frames of no known kind", then_ask(frame(0xbe, 0, 0, &[7; 1000]).repeat(10), 200), vec![fine.clone()]),
        // CVE-2019-9518.
        (
            "empty data",
            pieces(std::iter::once(head(1, 0)).chain(std::iter::repeat_n(frame(DATA, 0, 1, &[]).repeat(100), 1000))),
            vec![calm.clone()],
        ),
        // CVE-2016-6581.
        (
            "a table that is a bomb",
            pieces(std::iter::once(blocks(1, &bomb))),
            vec![Outcome::Status(431), away.clone(), calm.clone()],
        ),
        (
            "many fields",
            pieces(std::iter::once(blocks(1, &frames::request("GET", "/", &many)))),
            vec![Outcome::Status(431), away.clone()],
        ),
        (
            "large fields",
            pieces(std::iter::once(blocks(1, &frames::request("GET", "/", &large)))),
            vec![Outcome::Status(431), away.clone()],
        ),
        (
            "streams beyond those at once",
            pieces((0..129).map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &frames::request("POST", "/", &[])))),
            vec![Outcome::Reset(code::REFUSED_STREAM)],
        ),
    ];
    for (name, pieces, wants) in cases {
        let ca = TestCa::new();
        let upstream = Upstream::start(Some(ca.acceptor(HOST, TWO))).await;
        let fence = Fence::new(vec![grant(upstream.address, &ca)]);
        let outcome = flood(&fence, pieces).await;
        assert!(wants.contains(&outcome), "{name}: {outcome:?}");
        assert!(upstream.heads().len() < 1000, "{name}: {} reached the upstream", upstream.heads().len());
        let next = fence.h1().await.send_request(get("/")).await.unwrap();
        assert_eq!(next.status(), StatusCode::OK, "{name}: the next call");
    }
    // Malformed requests one by one are each refused, until it is enough.
    let ca = TestCa::new();
    let fence = Fence::new(vec![grant("127.0.0.1:9".parse().unwrap(), &ca)]);
    let to = fence.to_name(HOST, 443).await;
    let mut wire = Wire::client(fence.tls(to, HOST, TWO).await.unwrap()).await;
    let mut refused = 0;
    for n in 0.. {
        if !wire.say(&frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &malformed)).await {
            break;
        }
        match wire.outcome().await {
            Outcome::Reset(code::PROTOCOL_ERROR) => refused += 1,
            outcome => {
                assert_eq!(outcome, calm);
                break;
            }
        }
    }
    assert!((32..=65).contains(&refused), "{refused}");
    bounded(200);
}

/// An upstream that, where it has something to say, hears one read of a request and says `head`, and `piece` so many times.
/// It reads nothing more. It counts connections.
async fn deaf(address: &str, head: &'static str, piece: &'static [u8], times: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                if !head.is_empty() {
                    let _ = stream.read(&mut [0; 4096]).await;
                    for said in std::iter::once(head.as_bytes()).chain(std::iter::repeat_n(piece, times)) {
                        if stream.write_all(said).await.is_err() {
                            return;
                        }
                    }
                }
                while stream.ready(Interest::READABLE).await.is_ok_and(|ready| !ready.is_read_closed()) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn connections_that_stall_in_their_heads_are_bounded_and_cost_little() {
    let _alone = ALONE.lock().await;
    many_files();
    let upstream = Upstream::start(None).await;
    let fence = cleartext(upstream.address);
    let to = fence.to_name(HOST, 80).await;
    let mut stalled = Vec::new();
    // A head of 60 KiB without its end, which is what one may be held of.
    let head = format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nX: {}", "y".repeat(60_000));
    for _ in 0..MAX_CONNECTIONS + 50 {
        let mut stream = TcpStream::connect(to).await.unwrap();
        tokio::time::timeout(Duration::from_millis(200), stream.write_all(head.as_bytes()))
            .await
            .map(Result::unwrap)
            .ok();
        stalled.push(stream);
    }
    let mut late = TcpStream::connect(to).await.unwrap();
    late.write_all(format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(200), late.readable()).await;
    assert!(waits.is_err(), "nobody accepts it");
    bounded(256);
    drop(stalled);
    let mut said = String::new();
    late.read_to_string(&mut said).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "once there is room it is served: {said}");
}

#[tokio::test]
async fn calls_that_stall_in_their_bodies_have_so_many_connections_and_no_more() {
    let _alone = ALONE.lock().await;
    many_files();
    let (upstream, connections) = deaf("127.0.0.1", "", b"", 0).await;
    let fence = cleartext(upstream);
    let to = fence.to_name(HOST, 80).await;
    let mut stalled = Vec::new();
    let body = vec![b'y'; 1 << 20];
    let head = format!("POST /ok HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000000\r\n\r\n");
    for _ in 0..MAX_CONNECTIONS_TO_ONE + 20 {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // As much as the gate and the kernel take.
        let _ = stream.try_write(&body);
        stalled.push(stream);
    }
    let refused = || {
        let all = fence.log.outcomes();
        all.iter().filter(|o| o.error.as_ref().is_some_and(|why| why.starts_with("too_many_connections: "))).count()
    };
    wait(|| (refused() == 20).then_some(()), || format!("{} were refused", refused())).await;
    let mut busy = 0;
    for stream in &stalled {
        let mut said = vec![0; 400];
        let Ok(count) = stream.try_read(&mut said) else { continue };
        let said = String::from_utf8_lossy(&said[..count]).into_owned();
        assert!(said.starts_with("HTTP/1.1 503") && said.contains("retry-after: 1"), "{said}");
        assert!(said.contains("ringfence.busy"), "{said}");
        busy += 1;
    }
    assert_eq!(connections.load(Relaxed), MAX_CONNECTIONS_TO_ONE);
    assert!(busy > 0, "they are told");
    bounded(256);
    drop(stalled);
    wait(|| (fence.log.outcomes().len() == MAX_CONNECTIONS_TO_ONE + 20).then_some(()), || "not all ended".into()).await;
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let count = || connections.load(Relaxed);
    wait(|| (count() > MAX_CONNECTIONS_TO_ONE).then_some(()), || format!("{}", count())).await;
}

/// An upstream that answers every request after a moment, and keeps its connections. It counts them.
async fn slow(address: &str) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Relaxed);
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0) {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
            });
        }
    });
    (address, count)
}

#[tokio::test]
async fn idle_connections_give_way() {
    let _alone = ALONE.lock().await;
    many_files();
    // Hosts that each keep as many connections as they may, half of them at each address; and one more.
    const EACH: usize = 32;
    let upstreams = [slow("127.0.0.1").await, slow("127.0.0.2").await, slow("127.0.0.3").await];
    let count = |at: usize| upstreams[at].1.load(Relaxed);
    let hosts: Vec<String> = (0..=MAX_UPSTREAM_CONNECTIONS / EACH).map(|n| format!("h{n}.example.org")).collect();
    let grants = hosts.iter().enumerate().map(|(n, host)| {
        let to = upstreams[if n == hosts.len() - 1 { 2 } else { n % 2 }].0;
        let mut granted = grant(to, &TestCa::new());
        (granted.scheme, granted.port, granted.ca_pem, granted.host) = (Scheme::Http, 80, None, host.parse().unwrap());
        granted
    });
    let fence = Fence::new(grants.collect());
    let call = async |to: SocketAddr, host: &String| {
        let mut client = h1_over(TcpStream::connect(to).await.unwrap()).await;
        let request = Request::get("/").header("host", host).body(text("")).unwrap();
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{host}");
        response.into_body().collect().await.unwrap();
    };
    let (last, others) = hosts.split_last().unwrap();
    for host in others {
        let to = fence.to_name(host, 80).await;
        futures_util::future::join_all((0..EACH).map(|_| call(to, host))).await;
    }
    assert_eq!(count(0) + count(1), MAX_UPSTREAM_CONNECTIONS, "all of them are open");
    call(fence.to_name(last, 80).await, last).await;
    assert_eq!(count(2), 1);
}

#[tokio::test]
async fn answers_that_nobody_reads_are_not_held() {
    let _alone = ALONE.lock().await;
    many_files();
    static PIECE: [u8; 64 * 1024] = [b'y'; 64 * 1024];
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 65536000\r\n\r\n";
    let (front, _) = deaf("127.0.0.1", head, &PIECE, 1000).await;
    // HTTP/1.1: 100 connections.
    let fence = cleartext(front);
    let to = fence.to_name(HOST, 80).await;
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    bounded(200);
    drop(stalled);

    // HTTP/2 with prior knowledge: 2 connections of 100 streams each, and windows of nothing.
    let fence = cleartext(front);
    let to = fence.to_name(HOST, 80).await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let none = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        let block = frames::block(&[
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":authority", HOST.as_bytes()),
            (b":path", b"/"),
        ]);
        let heads: Vec<u8> =
            (0..100).flat_map(|n| frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block)).collect();
        stream.write_all(&[PREFACE, &none, &heads].concat()).await.unwrap();
        stalled.push(stream);
    }
    wait(|| (fence.log.intents().len() == 200).then_some(()), || format!("{}", fence.log.intents().len())).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    bounded(256);
    drop(stalled);
    wait(|| (fence.log.outcomes().len() == 200).then_some(()), || format!("{}", fence.log.outcomes().len())).await;
}

#[tokio::test]
async fn bodies_sent_ahead_over_http2_stop_at_the_window() {
    let _alone = ALONE.lock().await;
    many_files();
    let (upstream, _) = deaf("127.0.0.1", "", b"", 0).await;
    let fence = cleartext(upstream);
    let to = fence.to_name(HOST, 80).await;
    let mut stalled = Vec::new();
    let piece = frame(DATA, 0, 1, &[b'y'; 16_000]);
    for _ in 0..100 {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let block = frames::block(&[
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":authority", HOST.as_bytes()),
            (b":path", b"/"),
        ]);
        stream
            .write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &block)].concat())
            .await
            .unwrap();
        // The window of one stream, and no more than that is let through.
        for _ in 0..(256 * 1024) / 16_000 {
            stream.write_all(&piece).await.unwrap();
        }
        stalled.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    bounded(150);
    // Beyond it, it is the agent's error.
    let mut beyond = Wire::raw(stalled.pop().unwrap());
    for _ in 0..200 {
        if beyond.stream.write_all(&piece).await.is_err() {
            break;
        }
    }
    let outcome = beyond.outcome().await;
    assert!(
        matches!(outcome, Outcome::Away(code::FLOW_CONTROL_ERROR) | Outcome::Reset(code::FLOW_CONTROL_ERROR)),
        "{outcome:?}"
    );
}
