//! An agent, or a server, that has the gate hold more than it may: many bodies, answers and messages, each within its own
//! bound, that must be whole and never are.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "this is test code")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use ringfence_gate::Barriers;
use ringfence_gate::shelf::MAX_HELD_BYTES;
use ringfence_gate::websocket::frame::{Opcode, write};
use ringfence_model::manifest::{Grant, RpcRules, Scheme};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const MIB: usize = 1 << 20;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn down() -> Barriers {
    Barriers { held_bodies: false, ..Barriers::default() }
}

fn cleartext(address: SocketAddr) -> Grant {
    Grant { scheme: Scheme::Http, port: 80, connect_to: Some(address), ..Grant::to(HOST.parse().unwrap()) }
}

/// Calls of a language model, whose model decides.
async fn models(barriers: Barriers) -> (Fence, SocketAddr) {
    let upstream = Upstream::start(None).await;
    let granted = Grant { models: vec!["gpt-4o-mini".into()], ..cleartext(upstream.address) };
    let fence = Fence::with(&config(vec![granted]), barriers);
    let to = fence.to_name(HOST, 80).await;
    (fence, to)
}

/// A call of a model: a head and a body of so many bytes.
fn call(bytes: usize) -> (String, String) {
    let start = r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"1"}],"user":""#;
    let end = r#""}"#;
    let body = format!("{start}{}{end}", "x".repeat(bytes - start.len() - end.len()));
    (format!("POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {bytes}\r\n\r\n"), body)
}

/// Says all of it but the last byte, and hears what is answered.
async fn stall(to: SocketAddr, said: (String, String)) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let all = [said.0, said.1].concat();
    let _ = stream.write_all(&all.as_bytes()[..all.len() - 1]).await;
    heard(&mut stream).await
}

/// Says all of it.
async fn whole(to: SocketAddr, said: (String, String)) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all([said.0, said.1].concat().as_bytes()).await.unwrap();
    heard(&mut stream).await
}

async fn heard(stream: &mut TcpStream) -> String {
    let mut answer = Vec::with_capacity(4096);
    let _ = tokio::time::timeout(Duration::from_secs(8), stream.read_buf(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Waits until so much is held, and sees that it is never more than may be.
async fn held(fence: &Fence, least: usize, most: usize) {
    let all = || {
        let held = fence.gate.held_bytes();
        assert!(held <= most, "{held} bytes are held");
        (held >= least).then_some(())
    };
    wait(all, || format!("{} bytes are held", fence.gate.held_bytes())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_are_held_are_bounded_in_all_and_the_others_are_told_to_come_again() {
    let (fence, to) = models(Barriers::default()).await;
    let mut stalled = JoinSet::new();
    for _ in 0..24 {
        stalled.spawn(stall(to, call(4 * MIB - 10)));
    }
    held(&fence, MAX_HELD_BYTES - 4 * MIB, MAX_HELD_BYTES).await;
    let refused = || {
        assert!(fence.gate.held_bytes() <= MAX_HELD_BYTES);
        let intents = fence.log.intents();
        assert!(intents.iter().all(|i| i.reason == "too_many_bodies"));
        intents.len()
    };
    wait(|| (refused() >= 8).then_some(()), || format!("{}", refused())).await;
    let mut told = 0;
    while told < 8 {
        let said = stalled.join_next().await.unwrap().unwrap();
        assert!(said.starts_with("HTTP/1.1 503") && said.contains("retry-after: 1"), "{said}");
        assert!(said.contains("ringfence.busy") && said.contains("application/problem+json"), "{said}");
        told += 1;
    }
    // Where two gave up at once there is room again.
    for _ in 0..4 {
        stalled.spawn(stall(to, call(4 * MIB - 10)));
    }
    held(&fence, MAX_HELD_BYTES, MAX_HELD_BYTES).await;
    // Others wait, and go on when these end.
    let late: Vec<_> = [200, 3 * MIB].map(|bytes| tokio::spawn(whole(to, call(bytes)))).into();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(late.iter().all(|one| !one.is_finished()));
    stalled.abort_all();
    for one in late {
        let said = one.await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
    held(&fence, 0, MAX_HELD_BYTES).await;
    wait(|| (fence.gate.held_bytes() == 0).then_some(()), || format!("{}", fence.gate.held_bytes())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_bound_they_hold_more() {
    let (fence, to) = models(down()).await;
    let mut stalled = JoinSet::new();
    for _ in 0..24 {
        stalled.spawn(stall(to, call(4 * MIB - 10)));
    }
    held(&fence, 23 * 4 * MIB, usize::MAX).await;
    assert!(fence.log.intents().is_empty());
}

/// An upstream that says this to whoever asks, and no more.
async fn says(words: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let words = words.clone();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(&words).await;
                let _ = stream.read(&mut [0; 4096]).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_held_are_bounded_in_all() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4194304\r\n\r\n";
    let event = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ";
    for (head, told) in [(head, true), (event, false)] {
        let upstream = says([head.as_bytes(), &vec![b' '; 4 * MIB - 100]].concat()).await;
        for (barriers, most) in [(Barriers::default(), MAX_HELD_BYTES), (down(), usize::MAX)] {
            let granted = Grant { rpc: Some(RpcRules::default()), ..cleartext(upstream) };
            let fence = Fence::with(&config(vec![granted]), barriers);
            let to = fence.to_name(HOST, 80).await;
            let mut waiting = JoinSet::new();
            let ask = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
            let ask = format!("POST /mcp HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{ask}", ask.len());
            for _ in 0..20 {
                let ask = ask.clone();
                waiting.spawn(async move {
                    let mut stream = TcpStream::connect(to).await.unwrap();
                    stream.write_all(ask.as_bytes()).await.unwrap();
                    let mut answer = Vec::new();
                    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
                    String::from_utf8_lossy(&answer).into_owned()
                });
            }
            let least = if most == usize::MAX { 19 * 4 * MIB } else { MAX_HELD_BYTES - 4 * MIB };
            held(&fence, least, most).await;
            if most == usize::MAX {
                continue;
            }
            let full = || {
                assert!(fence.gate.held_bytes() <= MAX_HELD_BYTES);
                let all = fence.log.outcomes();
                all.iter().filter(|o| o.error.as_ref().is_some_and(|e| e.starts_with("too_many_bodies: "))).count()
            };
            wait(|| (full() >= 4).then_some(()), || format!("{}", full())).await;
            let said = waiting.join_all().await;
            let said = said.iter().filter(|s| s.contains(r#""code":-32603"#) && s.contains("no room")).count();
            assert_eq!(said, if told { full() } else { 0 });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_held_are_bounded_in_all() {
    let accept = derive_accept_key(KEY.as_bytes());
    let switching = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    let part = write(false, Opcode::Text, &vec![b'x'; MIB], None);
    let upstream = says([switching.as_bytes(), &part].concat()).await;
    for (barriers, most) in [(Barriers::default(), MAX_HELD_BYTES), (down(), usize::MAX)] {
        let fence = Fence::with(&config(vec![cleartext(upstream)]), barriers);
        let to = fence.to_name(HOST, 80).await;
        let mut sockets = Vec::new();
        for _ in 0..80 {
            let mut agent = TcpStream::connect(to).await.unwrap();
            let ask = format!(
                "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
            );
            agent.write_all(ask.as_bytes()).await.unwrap();
            sockets.push(agent);
        }
        let least = if most == usize::MAX { 80 * MIB } else { MAX_HELD_BYTES - MIB };
        held(&fence, least, most).await;
        if most == usize::MAX {
            continue;
        }
        let full = || {
            assert!(fence.gate.held_bytes() <= MAX_HELD_BYTES);
            let all = fence.log.outcomes();
            all.iter().filter(|o| o.error.as_ref().is_some_and(|e| e.starts_with("too_many_bodies: "))).count()
        };
        wait(|| (full() >= 16).then_some(()), || format!("{}", full())).await;
        drop(sockets);
        wait(|| (fence.gate.held_bytes() == 0).then_some(()), || format!("{}", fence.gate.held_bytes())).await;
    }
}
