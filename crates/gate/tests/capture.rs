//! Bodies that a grant has captured: encrypted, bound to the log, and bounded.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "this is test code"
)]

mod support;

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use ringfence_audit::age::{self, Identity};
use ringfence_audit::capture::{self, HEAD_BYTES, Way};
use ringfence_audit::{CallOutcome, CapturedBody};
use ringfence_gate::config::GateConfig;
use ringfence_model::manifest::{Capture, Grant, Place, Recipient};
use ringfence_model::{Bytes as Size, Digest};
use support::*;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

const ONE: &[&[u8]] = &[b"http/1.1"];
const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];

/// A key of the stock tool's own.
struct Key {
    text: String,
    to: Recipient,
}

impl Key {
    fn new() -> Self {
        let made = Command::new("age-keygen").output().expect("age-keygen: run `tools/setup --tests`");
        assert!(made.status.success());
        let text = String::from_utf8(made.stdout).unwrap();
        let to = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap().parse().unwrap();
        Self { text, to }
    }

    /// What the stock tool makes of a file.
    fn age(&self, file: &[u8]) -> Vec<u8> {
        let key = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(key.path(), &self.text).unwrap();
        let mut age = Command::new("age");
        age.arg("-d").arg("-i").arg(key.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = age.spawn().expect("age: run `tools/setup --tests`");
        let (mut stdin, file) = (child.stdin.take().unwrap(), file.to_vec());
        let feed = std::thread::spawn(move || stdin.write_all(&file));
        let done = child.wait_with_output().unwrap();
        feed.join().unwrap().unwrap();
        assert!(done.status.success());
        done.stdout
    }

    fn open(&self, file: &[u8]) -> Vec<u8> {
        age::open(&Identity::from_text(&self.text).unwrap(), file).unwrap()
    }
}

/// A gate whose captures are kept in a file.
struct World {
    upstream: Upstream,
    fence: Fence,
    file: File,
    key: Key,
}

fn rules(key: &Key) -> Capture {
    Capture { to: vec![key.to], request: true, response: true, most: Size::mib(1), required: false }
}

impl World {
    async fn new(alpn: &[&[u8]], change: impl FnOnce(&mut Capture, &mut GateConfig)) -> Self {
        let (ca, key) = (TestCa::new(), Key::new());
        let upstream = Upstream::start(Some(ca.acceptor(HOST, alpn))).await;
        let mut rules = rules(&key);
        let mut config = config(vec![]);
        change(&mut rules, &mut config);
        config.grants = vec![Grant { capture: Some(rules), ..keyed(grant(upstream.address, &ca)) }];
        let fence = Fence::of(&config);
        let file = tempfile::tempfile().unwrap();
        let append = std::os::fd::AsRawFd::as_raw_fd(&file);
        let append = File::options().read(true).append(true).open(format!("/proc/self/fd/{append}")).unwrap();
        fence.gate.keep_captures(append, config.captures).unwrap();
        Self { upstream, fence, file, key }
    }

    fn raw(&self) -> Vec<u8> {
        let mut raw = vec![0; usize::try_from(self.file.metadata().unwrap().len()).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut raw, 0).unwrap();
        raw
    }

    /// What was captured of a body, held against the log.
    fn captured(&self, outcome: &CallOutcome, way: Way) -> Option<(Vec<u8>, CapturedBody)> {
        let told = *outcome.captured.as_ref()?.of(way)?;
        let file = capture::read(std::io::Cursor::new(self.raw()), &outcome.call, way, told.bytes).unwrap();
        assert_eq!((file.len() as u64, Digest::of(&file)), (told.bytes, told.digest));
        let plain = self.key.open(&file);
        assert_eq!(plain.len() as u64, told.holds);
        assert!(self.key.age(&file) == plain, "the stock tool reads something else");
        Some((plain, told))
    }

    fn missed(outcome: &CallOutcome) -> Option<String> {
        outcome.captured.as_ref().and_then(|captured| captured.missed.clone())
    }
}

fn parts(parts: Vec<Bytes>) -> BoxBody<Bytes, Infallible> {
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(parts).map(|part| Ok(Frame::data(part)))))
}

fn upload(body: BoxBody<Bytes, Infallible>) -> Request<BoxBody<Bytes, Infallible>> {
    Request::post(format!("https://{HOST}/upload")).header("host", HOST).body(body).unwrap()
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(all, part).is_some()
}

#[tokio::test]
async fn both_bodies_are_captured_as_they_went_by_whatever_is_spoken() {
    for (alpn, h2) in [(ONE, false), (BOTH, false), (BOTH, true)] {
        let world = World::new(alpn, |_, _| {}).await;
        let large: Vec<Bytes> = (0..12_u8).map(|n| Bytes::from(vec![b'a' + n; 50_000])).collect();
        let all = large.concat();
        for (nth, body) in
            [text("plainly readable"), parts(vec!["in ".into(), "parts".into()]), parts(large)].into_iter().enumerate()
        {
            let answer = match h2 {
                true => world.fence.h2().await.send_request(upload(body)).await.unwrap(),
                false => {
                    let mut request = upload(body);
                    *request.uri_mut() = "/upload".parse().unwrap();
                    world.fence.h1().await.send_request(request).await.unwrap()
                }
            };
            let got = answer.into_body().collect().await.unwrap().to_bytes();
            let outcome = world.fence.log.outcome(nth).await;
            let (sent, told) = world.captured(&outcome, Way::Request).unwrap();
            assert_eq!(Some(Digest::of(&sent)), outcome.digest_up, "{nth}");
            assert!(!told.cut);
            let (back, told) = world.captured(&outcome, Way::Response).unwrap();
            assert!(back == got && back == sent && !told.cut && World::missed(&outcome).is_none());
        }
        let raw = world.raw();
        for plain in [&b"plainly readable"[..], b"parts", &all[..64]] {
            assert!(!contains(&raw, plain), "it can be read without the key");
        }
        assert!(contains(&raw, b"age-encryption.org/v1"));
    }
}

#[tokio::test]
async fn a_stream_is_captured_as_the_agent_saw_it_also_when_it_breaks_off() {
    let world = World::new(ONE, |_, _| {}).await;
    let whole = body_of(world.fence.h1().await.send_request(get("/sse")).await.unwrap()).await;
    let outcome = world.fence.log.outcome(0).await;
    assert!(world.captured(&outcome, Way::Request).is_none(), "an empty body");
    let (back, told) = world.captured(&outcome, Way::Response).unwrap();
    assert_eq!((String::from_utf8(back).unwrap(), told.cut), (whole, false));
    let mut body = world.fence.h1().await.send_request(get("/sse")).await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    drop(body);
    let (back, told) = world.captured(&world.fence.log.outcome(1).await, Way::Response).unwrap();
    assert!(back.starts_with(&first) && told.cut);
    // A request that breaks off.
    let to = world.fence.to_name(HOST, 443).await;
    let mut stream = world.fence.tls(to, HOST, ONE).await.unwrap();
    let begun = format!("POST /upload HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n");
    stream.write_all(begun.as_bytes()).await.unwrap();
    wait(|| (world.upstream.heads().len() == 3).then_some(()), || "the upload does not arrive".into()).await;
    drop(stream);
    let (sent, told) = world.captured(&world.fence.log.outcome(2).await, Way::Request).unwrap();
    assert_eq!((&sent[..], told.cut), (&b"begun"[..], true));
}

#[tokio::test]
async fn no_injected_secret_is_ever_captured() {
    let world = World::new(ONE, |_, _| {}).await;
    for path in ["/echo-secret", "/echo-secret-slowly"] {
        let answer = body_of(world.fence.h1().await.send_request(get(path)).await.unwrap()).await;
        let outcome = world.fence.log.outcome(usize::from(path.ends_with("slowly"))).await;
        let (back, _) = world.captured(&outcome, Way::Response).unwrap();
        assert_eq!(String::from_utf8(back).unwrap(), answer);
        assert!(answer.contains(PLACEHOLDER) && !answer.contains(SECRET));
    }
    let json = |_: &mut Capture, config: &mut GateConfig| {
        config.credentials.get_mut("openai").unwrap().place = Place::Json { keys: vec!["key".into()] };
    };
    let world = World::new(ONE, json).await;
    let written = format!("{{\"key\":\"{PLACEHOLDER}\",\"a\":1}}");
    let mut request = post("/v1", &written);
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let answer = body_of(world.fence.h1().await.send_request(request).await.unwrap()).await;
    assert!(contains(&world.upstream.bodies.lock().unwrap()[0], SECRET.as_bytes()));
    let outcome = world.fence.log.outcome(0).await;
    let (sent, _) = world.captured(&outcome, Way::Request).unwrap();
    assert_eq!(String::from_utf8(sent).unwrap(), written);
    let (back, _) = world.captured(&outcome, Way::Response).unwrap();
    assert!(back == answer.as_bytes() && !contains(&back, SECRET.as_bytes()));
}

#[tokio::test]
async fn only_what_is_asked_for_is_captured_and_no_more_than_its_bound() {
    let world = World::new(ONE, |rules, _| rules.most = Size(70_000)).await;
    for (nth, length) in [70_000, 70_001, 300_000].into_iter().enumerate() {
        let body = parts(vec![Bytes::from(vec![b'x'; length / 2]), Bytes::from(vec![b'y'; length - length / 2])]);
        let mut request = upload(body);
        *request.uri_mut() = "/upload".parse().unwrap();
        let got = world.fence.h1().await.send_request(request).await.unwrap();
        assert_eq!(got.into_body().collect().await.unwrap().to_bytes().len(), length, "the call is not cut");
        let outcome = world.fence.log.outcome(nth).await;
        for way in [Way::Request, Way::Response] {
            let (plain, told) = world.captured(&outcome, way).unwrap();
            assert_eq!((plain.len(), told.cut), (70_000, length > 70_000));
        }
    }
    for (request, response) in [(true, false), (false, true)] {
        let world = World::new(ONE, |rules, _| (rules.request, rules.response) = (request, response)).await;
        body_of(world.fence.h1().await.send_request(post("/upload", "body")).await.unwrap()).await;
        let outcome = world.fence.log.outcome(0).await;
        assert_eq!(world.captured(&outcome, Way::Request).is_some(), request);
        assert_eq!(world.captured(&outcome, Way::Response).is_some(), response);
    }
}

#[tokio::test]
async fn without_capture_nothing_is_written() {
    let (ca, key) = (TestCa::new(), Key::new());
    let upstream = Upstream::start(Some(ca.acceptor(HOST, ONE))).await;
    let elsewhere = Grant { capture: Some(rules(&key)), ..Grant::to("other.example.org".parse().unwrap()) };
    let fence = Fence::new(vec![elsewhere, grant(upstream.address, &ca)]);
    let file = tempfile::tempfile().unwrap();
    fence.gate.keep_captures(file.try_clone().unwrap(), Size::mib(8)).unwrap();
    body_of(fence.h1().await.send_request(post("/upload", "body")).await.unwrap()).await;
    assert_eq!((fence.log.outcome(0).await.captured, file.metadata().unwrap().len()), (None, 0));
}

#[tokio::test]
async fn when_all_room_is_taken_calls_go_uncaptured_or_do_not_go() {
    for required in [false, true] {
        let world = World::new(ONE, |rules, config| {
            (rules.required, rules.most, rules.response) = (required, Size(100_000), false);
            config.captures = Size(300_000);
        })
        .await;
        let mut captured = Vec::new();
        for _ in 0..5 {
            let answer = world.fence.h1().await.send_request(post("/upload", &"z".repeat(90_000))).await.unwrap();
            let status = answer.status();
            let _ = body_of(answer).await;
            captured.push(status);
        }
        let length = world.raw().len();
        assert!((270_000..300_000).contains(&length), "{length}");
        let before = world.raw();
        let outcomes = world.fence.log.outcomes();
        if required {
            let denied = StatusCode::FORBIDDEN;
            assert_eq!(captured, [StatusCode::OK, StatusCode::OK, StatusCode::OK, denied, denied]);
            let intents = world.fence.log.intents();
            assert_eq!((intents[3].reason.as_str(), outcomes.len()), ("capture_full", 3));
            assert_eq!(world.upstream.heads().len(), 3, "it was not made");
        } else {
            assert_eq!(captured, [StatusCode::OK; 5]);
            let last = world.fence.log.outcome(4).await;
            assert_eq!(World::missed(&last).as_deref(), Some("capture_full"));
            assert!(world.captured(&last, Way::Request).is_none());
        }
        // What was captured first is not pushed out.
        assert!(world.raw() == before);
        let (plain, _) = world.captured(&world.fence.log.outcome(0).await, Way::Request).unwrap();
        assert_eq!(plain.len(), 90_000);
        // An operator makes room.
        world.file.set_len(0).unwrap();
        let answer = world.fence.h1().await.send_request(post("/upload", "again")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let _ = body_of(answer).await;
        let last = world.fence.log.outcome(if required { 3 } else { 5 }).await;
        assert_eq!(world.captured(&last, Way::Request).unwrap().0, b"again");
    }
}

#[tokio::test]
async fn room_is_promised_only_once_and_given_back() {
    let world = World::new(ONE, |rules, config| {
        (rules.required, rules.most, rules.request) = (true, Size(100_000), false);
        config.captures = Size(250_000);
    })
    .await;
    // Two streams may grow to what is left.
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut body = world.fence.h1().await.send_request(get("/sse")).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        open.push(body);
    }
    assert_eq!(world.fence.h1().await.send_request(get("/sse")).await.unwrap().status(), StatusCode::FORBIDDEN);
    drop(open);
    world.fence.log.outcome(1).await;
    assert_eq!(world.fence.h1().await.send_request(get("/fast")).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_fails_the_call_or_is_told() {
    for required in [false, true] {
        let world = World::new(ONE, |rules, _| rules.required = required).await;
        let unwritable = File::open("/dev/null").unwrap();
        world.fence.gate.keep_captures(unwritable, Size::mib(8)).unwrap();
        let answer = world.fence.h1().await.send_request(post("/upload", "body")).await.unwrap();
        let outcome = world.fence.log.outcome(0).await;
        assert_eq!(World::missed(&outcome).as_deref(), Some("capture_failed"));
        assert_eq!(answer.status(), if required { StatusCode::BAD_GATEWAY } else { StatusCode::OK });
        assert_eq!(world.upstream.heads().len(), usize::from(!required), "nothing left before it was captured");
        if required {
            assert!(outcome.error.unwrap().starts_with("capture_failed: "));
            // An answer breaks off.
            let body = world.fence.h1().await.send_request(get("/sse")).await.unwrap().into_body();
            assert!(body.collect().await.is_err());
        }
    }
}

#[tokio::test]
async fn no_place_to_keep_captures_is_as_good_as_no_room() {
    let (ca, key) = (TestCa::new(), Key::new());
    let upstream = Upstream::start(Some(ca.acceptor(HOST, ONE))).await;
    for (required, status) in [(false, StatusCode::OK), (true, StatusCode::FORBIDDEN)] {
        let rules = Capture { required, ..rules(&key) };
        let fence = Fence::new(vec![Grant { capture: Some(rules), ..grant(upstream.address, &ca) }]);
        assert_eq!(fence.h1().await.send_request(get("/fast")).await.unwrap().status(), status);
    }
}

#[tokio::test]
async fn what_a_crash_tore_does_not_hide_what_comes_behind_it() {
    let world = World::new(ONE, |_, _| {}).await;
    body_of(world.fence.h1().await.send_request(post("/upload", "first")).await.unwrap()).await;
    let first = world.fence.log.outcome(0).await;
    let mut file = world.file.try_clone().unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).unwrap();
    let mut torn = Vec::new();
    capture::write(&mut torn, &first.call, Way::Response, &[7; 90]).unwrap();
    file.write_all(&torn[..HEAD_BYTES + 12]).unwrap();
    let again = std::os::fd::AsRawFd::as_raw_fd(&world.file);
    let again = File::options().read(true).append(true).open(format!("/proc/self/fd/{again}")).unwrap();
    world.fence.gate.keep_captures(again, Size::mib(8)).unwrap();
    body_of(world.fence.h1().await.send_request(post("/upload", "second")).await.unwrap()).await;
    let second = world.fence.log.outcome(1).await;
    assert_eq!(world.captured(&first, Way::Request).unwrap().0, b"first");
    assert_eq!(world.captured(&second, Way::Request).unwrap().0, b"second");
}

#[tokio::test]
async fn messages_of_a_websocket_are_captured_as_frames() {
    let world = World::new(ONE, |_, _| {}).await;
    let to = world.fence.to_name(HOST, 443).await;
    let stream = world.fence.tls(to, HOST, ONE).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(format!("wss://{HOST}/ws"), stream).await.unwrap();
    for said in ["hello", "secret?"] {
        socket.send(Message::text(said)).await.unwrap();
        socket.next().await.unwrap().unwrap();
    }
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    let outcome = world.fence.log.outcome(0).await;
    let (sent, told) = world.captured(&outcome, Way::Request).unwrap();
    assert!(sent.starts_with(b"\x81\x05hello\x81\x07secret?\x88") && !told.cut, "{sent:?}");
    let (back, _) = world.captured(&outcome, Way::Response).unwrap();
    assert!(back.starts_with(b"\x81\x05hello\x81") && contains(&back, PLACEHOLDER.as_bytes()), "{back:?}");
    assert!(!contains(&back, SECRET.as_bytes()));
}

#[tokio::test]
async fn a_recipient_that_would_protect_nothing_opens_no_gate() {
    let mut rules = rules(&Key::new());
    rules.to = vec![Recipient::from_raw([0; 32])];
    let config = config(vec![Grant { capture: Some(rules), ..Grant::to(HOST.parse().unwrap()) }]);
    let log = std::sync::Arc::new(Log::default());
    let error = ringfence_gate::Gate::open(&config, log).err().unwrap();
    assert_eq!(ringfence_model::Explain::code(&error), "gate.capture");
}
