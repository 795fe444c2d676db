//! Upstreams that answer with what no answer is: too much, too long, in two ways, before they are asked, or for the next who
//! asks. The agent gets what was meant for its call or an error, and the gate's memory is its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use ringfence_model::manifest::Scheme;
use support::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PUSH_PROMISE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, Wire, code, frame,
};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a scripted upstream says to one request.
#[derive(Clone)]
enum Say {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, and then the connection ends.
    Last(Vec<u8>),
    /// The first, and the second again and again for as long as they are taken.
    Endless(Vec<u8>, Vec<u8>),
    /// These bytes, and a little later, when nobody asked, those.
    Unasked(Vec<u8>, Vec<u8>),
}

/// An upstream that says what the script says, whatever it is asked; after its end it says `fine`.
struct Scripted {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    sent: Arc<AtomicUsize>,
}

fn fine() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine".to_vec()
}

impl Scripted {
    async fn start(script: Vec<Say>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heads, sent) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let script = Arc::new(Mutex::new(script.into_iter()));
        let (seen, count) = (Arc::clone(&heads), Arc::clone(&sent));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen, count) = (Arc::clone(&script), Arc::clone(&seen), Arc::clone(&count));
                tokio::spawn(async move { serve(stream, &script, &seen, &count).await });
            }
        });
        Self { address, heads, sent }
    }
}

async fn serve(
    mut stream: TcpStream,
    script: &Mutex<std::vec::IntoIter<Say>>,
    seen: &Mutex<Vec<String>>,
    count: &AtomicUsize,
) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        seen.lock().unwrap().push(String::from_utf8(head).unwrap());
        let say = script.lock().unwrap().next().unwrap_or(Say::Bytes(fine()));
        match say {
            Say::Bytes(bytes) => drop(stream.write_all(&bytes).await),
            Say::Last(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Say::Endless(first, again) => {
                let _ = stream.write_all(&first).await;
                while stream.write_all(&again).await.is_ok() {
                    count.fetch_add(again.len(), Relaxed);
                }
                return;
            }
            Say::Unasked(first, then) => {
                let _ = stream.write_all(&first).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = stream.write_all(&then).await;
            }
        }
    }
}

fn granted(upstream: SocketAddr) -> Fence {
    let mut granted = grant(upstream, &TestCa::new());
    (granted.scheme, granted.port, granted.ca_pem) = (Scheme::Http, 80, None);
    Fence::new(vec![granted])
}

/// The status of an answer, and its body unless it broke off.
type Got = (StatusCode, Result<String, ()>);

async fn call(fence: &Fence, method: Method) -> Got {
    let to = fence.to_name(HOST, 80).await;
    let mut client = h1_over(TcpStream::connect(to).await.unwrap()).await;
    let request = Request::builder().method(method).uri("/").header("host", HOST).body(text("")).unwrap();
    let sent = tokio::time::timeout(Duration::from_secs(20), client.send_request(request)).await;
    // Where it breaks at once, the head may not be out.
    let Ok(response) = sent.expect("there is an answer") else { return (StatusCode::OK, Err(())) };
    let status = response.status();
    let body = response.into_body().collect().await.map(|b| String::from_utf8(b.to_bytes().to_vec()).unwrap());
    (status, body.map_err(drop))
}

const BAD: StatusCode = StatusCode::BAD_GATEWAY;

#[tokio::test]
async fn what_is_no_answer_is_an_error_and_the_next_call_is_answered() {
    let bytes = |text: &str| Say::Bytes(text.as_bytes().to_vec());
    let last = |text: &str| Say::Last(text.as_bytes().to_vec());
    let head = |fields: &str| bytes(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nok"));
    let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let ok = Ok(());
    let large = format!("X: {}", "y".repeat(256 * 1024));
    let many = (0..2000).map(|n| format!("X-{n}: y")).collect::<Vec<_>>().join("\r\n");
    let cases: Vec<(&str, Say, StatusCode, Result<(), ()>)> = vec![
        (
            "length and chunks",
            bytes("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
            BAD,
            ok,
        ),
        (
            "chunks and length",
            bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
            BAD,
            ok,
        ),
        ("two lengths", head("Content-Length: 2\r\nContent-Length: 1"), BAD, ok),
        ("one length twice", head("Content-Length: 2\r\nContent-Length: 2"), BAD, ok),
        ("a list of lengths", head("Content-Length: 2, 2"), BAD, ok),
        ("a signed length", head("Content-Length: +2"), BAD, ok),
        ("another coding", head("Transfer-Encoding: gzip, chunked"), BAD, ok),
        (
            "chunks in HTTP/1.0",
            bytes("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
            BAD,
            ok,
        ),
        ("a folded line", head("X: a\r\n b\r\nContent-Length: 2"), BAD, ok),
        ("a bare CR", head("X: a\rb\r\nContent-Length: 2"), BAD, ok),
        ("NUL", head("X: a\0\r\nContent-Length: 2"), BAD, ok),
        ("a space before a colon", head("Content-Length : 2"), BAD, ok),
        ("a status of four digits", bytes("HTTP/1.1 1000 OK\r\nContent-Length: 0\r\n\r\n"), BAD, ok),
        ("a status below all", bytes("HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n"), BAD, ok),
        ("HTTP/0.9", last("hello"), BAD, ok),
        ("another protocol", last("SSH-2.0-x\r\n"), BAD, ok),
        ("nothing", last(""), BAD, ok),
        ("a large field", head(&large), BAD, ok),
        ("many fields", head(&many), BAD, ok),
        ("no end of a line", Say::Endless(b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'y'; 16 * 1024]), BAD, ok),
        ("no end of fields", Say::Endless(b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(2000)), BAD, ok),
        ("10,000 interim answers", Say::Bytes([&interim.repeat(10_000)[..], &fine()].concat()), BAD, ok),
        ("interim answers without end", Say::Endless(Vec::new(), interim.repeat(100)), BAD, ok),
        ("some interim answers", Say::Bytes([&interim.repeat(20)[..], &fine()].concat()), StatusCode::OK, ok),
        (
            "another protocol, unasked",
            bytes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x02\x02hi"),
            BAD,
            ok,
        ),
        (
            "HTTP/2, unasked",
            bytes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"),
            BAD,
            ok,
        ),
        ("an early end", last("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok"), StatusCode::OK, Err(())),
        (
            "an early end of chunks",
            last("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"),
            StatusCode::OK,
            Err(()),
        ),
        (
            "a chunk that does not end",
            bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nokXX0\r\n\r\n"),
            StatusCode::OK,
            Err(()),
        ),
        (
            "a chunk of no size",
            bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\nok\r\n0\r\n\r\n"),
            StatusCode::OK,
            Err(()),
        ),
        (
            "a chunk beyond 64 bits",
            bytes("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\nok\r\n0\r\n\r\n"),
            StatusCode::OK,
            Err(()),
        ),
        (
            "an extension without end",
            Say::Endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;".to_vec(), vec![b'y'; 16 * 1024]),
            StatusCode::OK,
            Err(()),
        ),
        (
            "extensions without end",
            Say::Endless(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
                b"1;yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\no\r\n".repeat(500),
            ),
            StatusCode::OK,
            Err(()),
        ),
        (
            "trailers without end",
            Say::Endless(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".to_vec(),
                b"X: y\r\n".repeat(2000),
            ),
            StatusCode::OK,
            Err(()),
        ),
    ];
    let held = cases.into_iter().map(|(name, say, status, whole)| async move {
        let upstream = Scripted::start(vec![say]).await;
        let fence = granted(upstream.address);
        let got = call(&fence, Method::GET).await;
        assert_eq!((got.0, got.1.is_ok()), (status, whole.is_ok()), "{name}: {got:?}");
        let outcome = fence.log.outcome(0).await;
        assert_eq!(outcome.error.is_none(), (status, whole) == (StatusCode::OK, Ok(())), "{name}: {outcome:?}");
        // The kernel's buffers hold most of it.
        let sent = upstream.sent.load(Relaxed);
        assert!(sent < 16 << 20, "{name}: {sent} bytes were taken");
        assert_eq!(call(&fence, Method::GET).await, (StatusCode::OK, Ok("fine".into())), "{name}: the next call");
    });
    all(held).await;
}

/// Answers that hold one for whoever asks next.
fn poisoned() -> Vec<(&'static str, Method, Say)> {
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let with = |head: &str| Say::Bytes(format!("HTTP/1.1 {head}\r\n\r\n{poison}").into_bytes());
    let length = poison.len();
    vec![
        ("behind an answer", Method::GET, Say::Bytes([&fine()[..], poison.as_bytes()].concat())),
        ("behind chunks", Method::GET, with("200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0")),
        ("behind no content", Method::GET, with(&format!("204 No Content\r\nContent-Length: {length}"))),
        ("behind not modified", Method::GET, with(&format!("304 Not Modified\r\nContent-Length: {length}"))),
        ("behind the answer to HEAD", Method::HEAD, with(&format!("200 OK\r\nContent-Length: {length}"))),
        ("behind an empty answer", Method::GET, with("200 OK\r\nContent-Length: 0")),
        ("later, unasked", Method::GET, Say::Unasked(fine(), poison.as_bytes().to_vec())),
    ]
}

#[tokio::test]
async fn no_answer_is_for_the_next_who_asks() {
    let held = poisoned().into_iter().map(|(name, method, say)| async move {
        let upstream = Scripted::start(vec![say]).await;
        let fence = granted(upstream.address);
        let first = call(&fence, method).await;
        assert!(first.0.is_success() || first.0 == StatusCode::NOT_MODIFIED, "{name}: {first:?}");
        assert!(!first.1.unwrap().contains("poison"), "{name}");
        tokio::time::sleep(Duration::from_millis(60)).await;
        let next = call(&fence, Method::GET).await;
        assert_eq!(next, (StatusCode::OK, Ok("fine".into())), "{name}");
        assert_eq!(upstream.heads.lock().unwrap().len(), 2);
    });
    all(held).await;
}

#[tokio::test]
async fn what_keeps_a_connection_without_looking_is_poisoned() {
    for (name, method, say) in poisoned() {
        let upstream = Scripted::start(vec![say]).await;
        let mut stream = TcpStream::connect(upstream.address).await.unwrap();
        let (mut held, mut answers) = (Vec::new(), Vec::new());
        for method in [method, Method::GET] {
            stream.write_all(format!("{method} / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
            loop {
                if let Some((answer, rest)) = first_answer(&held, &method) {
                    answers.push(answer);
                    held = rest;
                    break;
                }
                stream.read_buf(&mut held).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        assert!(answers[1].ends_with("poison"), "{name}: {answers:?}");
    }
}

/// The first answer in `bytes`, and what is behind it.
fn first_answer(bytes: &[u8], method: &Method) -> Option<(String, Vec<u8>)> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let head = text.find("\r\n\r\n")? + 4;
    let bodiless = *method == Method::HEAD || text[9..].starts_with("204") || text[9..].starts_with("304");
    let end = if bodiless {
        head
    } else if text[..head].contains("chunked") {
        text.find("0\r\n\r\n")? + 5
    } else {
        let at = text.find("Content-Length: ")? + 16;
        head + text[at..].split("\r\n").next()?.parse::<usize>().ok()?
    };
    (text.len() >= end).then(|| (text[..end].to_owned(), bytes[end..].to_vec()))
}

#[tokio::test]
async fn an_answer_before_the_body_leaves_no_half_request_for_the_next() {
    let upstream = Scripted::start(vec![Say::Bytes(fine())]).await;
    let fence = granted(upstream.address);
    let to = fence.to_name(HOST, 80).await;
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000000\r\n\r\nsome");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = [0; 15];
    stream.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"HTTP/1.1 200 OK");
    assert_eq!(call(&fence, Method::GET).await, (StatusCode::OK, Ok("fine".into())));
    let heads = upstream.heads.lock().unwrap().clone();
    assert!(heads[0].starts_with("POST") && heads[1].starts_with("GET"), "{heads:?}");
}

/// What an upstream of HTTP/2 says once it was asked on stream 1.
type Answer = Box<dyn Fn() -> Vec<Vec<u8>> + Send + Sync>;

/// Answers the first connection with `answer`, and others as it should be. Gives what the gate said on the first that
/// tells of an end.
async fn upstream_h2(ca: &TestCa, answer: Answer) -> (SocketAddr, Arc<Mutex<Vec<frames::Outcome>>>) {
    let acceptor = ca.acceptor(HOST, &[b"h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&heard);
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer, told) = (acceptor.clone(), Arc::clone(&answer), Arc::clone(&told));
            let (mut asked, is_first) = (false, std::mem::replace(&mut first, false));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let mut wire = Wire::server(stream).await;
                while let Some(heard) = wire.listen().await {
                    match heard.kind {
                        HEADERS if is_first && !asked => {
                            asked = true;
                            for bytes in answer() {
                                if !wire.say(&bytes).await {
                                    break;
                                }
                            }
                        }
                        HEADERS => drop(wire.say(&fine_h2(heard.stream)).await),
                        GOAWAY | RST_STREAM if is_first => {
                            let at = if heard.kind == GOAWAY { 4 } else { 0 };
                            let code = u32::from_be_bytes(heard.payload[at..at + 4].try_into().unwrap());
                            told.lock().unwrap().push(if heard.kind == GOAWAY {
                                frames::Outcome::Away(code)
                            } else {
                                frames::Outcome::Reset(code)
                            });
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    (address, heard)
}

fn fine_h2(stream: u32) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &[0x88]), frame(DATA, END_STREAM, stream, b"fine")].concat()
}

fn head_h2(more: &[(&[u8], &[u8])]) -> Vec<u8> {
    [&[0x88][..], &frames::block(more)].concat()
}

/// The peak of this process's memory in MiB. Other tests of this process are in it too.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[tokio::test]
async fn an_upstream_of_http2_that_breaks_its_rules_is_left() {
    use frames::Outcome::{Away, Reset};
    fn answer(answer: impl Fn() -> Vec<Vec<u8>> + Send + Sync + 'static) -> Answer {
        Box::new(answer)
    }
    let one = |bytes: Vec<u8>| answer(move || vec![bytes.clone()]);
    let ok = StatusCode::OK;
    let settings = |id: u16, value: u32| frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let window = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let promise = [&2_u32.to_be_bytes()[..], &frames::request("GET", "/pushed", &[])].concat();
    // What it answers, the agent's answer, whether its body is whole, and what the gate says of it.
    let cases: Vec<(&str, Answer, StatusCode, bool, Option<frames::Outcome>)> = vec![
        ("a push", one(frame(PUSH_PROMISE, END_HEADERS, 1, &promise)), BAD, true, Some(Away(code::PROTOCOL_ERROR))),
        // RFC 9113 §6.5.2 would have it refused; a push that follows is.
        ("pushes allowed", one([settings(2, 1), fine_h2(1)].concat()), ok, true, None),
        (
            "headers that go on",
            answer(|| {
                let first = frame(HEADERS, 0, 1, &[0x88]);
                let again = frame(CONTINUATION, 0, 1, &frames::block(&[(b"x", &[b'y'; 8000])]));
                std::iter::once(first).chain(std::iter::repeat_n(again, 2000)).collect()
            }),
            BAD,
            true,
            None,
        ),
        (
            "empty headers that go on",
            answer(|| {
                let again = frame(CONTINUATION, 0, 1, &[]).repeat(100);
                std::iter::once(frame(HEADERS, 0, 1, &[0x88])).chain(std::iter::repeat_n(again, 1000)).collect()
            }),
            BAD,
            true,
            Some(Away(code::ENHANCE_YOUR_CALM)),
        ),
        (
            "a table that is a bomb",
            answer(|| {
                let mut block = vec![0x88, 0x40];
                for text in [&b"x"[..], &[b'y'; 4000]] {
                    frames::integer(&mut block, 0, 7, text.len());
                    block.extend_from_slice(text);
                }
                block.extend(std::iter::repeat_n(0xbe, 12_000));
                vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)]
            }),
            BAD,
            true,
            None,
        ),
        (
            "resets of what nobody opened",
            one((0..5000).flat_map(|n| frame(RST_STREAM, 0, 2 * n + 101, &[0; 4])).collect()),
            BAD,
            true,
            Some(Away(code::PROTOCOL_ERROR)),
        ),
        ("an answer to what nobody asked", one(fine_h2(101)), BAD, true, Some(Away(code::PROTOCOL_ERROR))),
        (
            "a stream of its own",
            one(frame(HEADERS, END_HEADERS, 2, &[0x88])),
            BAD,
            true,
            Some(Away(code::PROTOCOL_ERROR)),
        ),
        (
            "settings without end, and an answer",
            answer(move || {
                let flood = frame(SETTINGS, 0, 0, &[]).repeat(100);
                std::iter::repeat_n(flood, 200).chain([fine_h2(1)]).collect()
            }),
            ok,
            true,
            None,
        ),
        (
            "pings without end, and an answer",
            answer(|| std::iter::repeat_n(frame(PING, 0, 0, &[7; 8]).repeat(100), 200).chain([fine_h2(1)]).collect()),
            ok,
            true,
            None,
        ),
        (
            "interim answers, and an answer",
            answer(|| {
                let interim =
                    frame(HEADERS, END_HEADERS, 1, &frames::block(&[(b":status", b"103"), (b"link", b"</a>")]));
                std::iter::repeat_n(interim.repeat(100), 100).chain([fine_h2(1)]).collect()
            }),
            ok,
            true,
            None,
        ),
        (
            "a window beyond its bound",
            one([window(0, 0x7fff_ffff), fine_h2(1)].concat()),
            BAD,
            true,
            Some(Away(code::FLOW_CONTROL_ERROR)),
        ),
        (
            "a window that grows by none",
            one([window(0, 0), fine_h2(1)].concat()),
            BAD,
            true,
            Some(Away(code::PROTOCOL_ERROR)),
        ),
        (
            "a first window beyond its bound",
            one([settings(4, 0x8000_0000), fine_h2(1)].concat()),
            BAD,
            true,
            Some(Away(code::PROTOCOL_ERROR)),
        ),
        ("frames of no allowed size", one(settings(5, 1)), BAD, true, Some(Away(code::PROTOCOL_ERROR))),
        (
            "a frame that is too large",
            one(frames::sized(0xff_ffff, DATA, 0, 1, &[0; 1000])),
            BAD,
            true,
            Some(Away(code::FRAME_SIZE_ERROR)),
        ),
        (
            "more than its window",
            answer(|| {
                let piece = frame(DATA, 0, 1, &[0; 16_000]);
                std::iter::once(frame(HEADERS, END_HEADERS, 1, &[0x88]))
                    .chain(std::iter::repeat_n(piece, 400))
                    .collect()
            }),
            ok,
            false,
            None,
        ),
        (
            "nothing, and nothing again",
            answer(|| {
                let none = frame(DATA, 0, 1, &[]).repeat(1000);
                std::iter::once(frame(HEADERS, END_HEADERS, 1, &[0x88])).chain(std::iter::repeat_n(none, 200)).collect()
            }),
            ok,
            false,
            Some(Away(code::ENHANCE_YOUR_CALM)),
        ),
        (
            "a body longer than it says",
            one([
                frame(HEADERS, END_HEADERS, 1, &head_h2(&[(b"content-length", b"2")])),
                frame(DATA, END_STREAM, 1, b"long"),
            ]
            .concat()),
            ok,
            false,
            Some(Reset(code::PROTOCOL_ERROR)),
        ),
        (
            "a body shorter than it says",
            one([
                frame(HEADERS, END_HEADERS, 1, &head_h2(&[(b"content-length", b"9")])),
                frame(DATA, END_STREAM, 1, b"long"),
            ]
            .concat()),
            ok,
            false,
            Some(Reset(code::PROTOCOL_ERROR)),
        ),
        (
            "two lengths",
            one(frame(HEADERS, END_HEADERS, 1, &head_h2(&[(b"content-length", b"2"), (b"content-length", b"3")]))),
            BAD,
            true,
            Some(Reset(code::PROTOCOL_ERROR)),
        ),
        (
            "no status",
            one(frame(HEADERS, END_HEADERS | END_STREAM, 1, &frames::block(&[(b"x", b"y")]))),
            BAD,
            true,
            None,
        ),
        (
            "capitals in a name",
            one(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head_h2(&[(b"X", b"y")]))),
            BAD,
            true,
            None,
        ),
        (
            "CR LF in a value",
            one(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head_h2(&[(b"x", b"y\r\nset-cookie: z")]))),
            BAD,
            true,
            None,
        ),
        (
            "a field of HTTP/1.1",
            one(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head_h2(&[(b"transfer-encoding", b"chunked")]))),
            BAD,
            true,
            Some(Reset(code::PROTOCOL_ERROR)),
        ),
        (
            "a header block of nonsense",
            one(frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 20])),
            BAD,
            true,
            Some(Away(code::PROTOCOL_ERROR)),
        ),
        ("a reset", one(frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])), BAD, true, None),
        (
            "a reset in the middle",
            one([frame(HEADERS, END_HEADERS, 1, &[0x88]), frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])].concat()),
            ok,
            false,
            None,
        ),
        ("an end at once", one(frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2])), BAD, true, None),
    ];
    let held = cases.into_iter().map(|(name, answer, status, whole, tells)| async move {
        let ca = TestCa::new();
        let (address, heard) = upstream_h2(&ca, answer).await;
        let fence = Fence::new(vec![grant(address, &ca)]);
        let mut client = fence.h1().await;
        let sent = tokio::time::timeout(Duration::from_secs(20), client.send_request(get("/"))).await;
        let got = match sent.unwrap_or_else(|_| panic!("{name}: no answer")) {
            // Where it breaks at once, the head may not be out.
            Err(_) => (StatusCode::OK, false),
            Ok(response) => {
                let status = response.status();
                let body = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect()).await;
                (status, body.unwrap_or_else(|_| panic!("{name}: no end")).is_ok())
            }
        };
        assert_eq!(got, (status, whole), "{name}: {:?}", fence.log.outcome(0).await);
        if let Some(tells) = tells {
            let said = || heard.lock().unwrap().clone();
            wait(|| said().contains(&tells).then_some(()), || format!("{name}: {:?} and not {tells:?}", said())).await;
        }
        let next = fence.h1().await.send_request(get("/")).await.unwrap();
        let got = (next.status(), next.into_body().collect().await.map(|b| b.to_bytes().len()));
        assert!(matches!(got, (StatusCode::OK, Ok(_))), "{name}: the next call: {got:?}");
    });
    all(held).await;
    assert!(peak() < 512, "{} MiB", peak());
}
