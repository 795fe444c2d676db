//! Every way that we know to have one request arrive as two, or as another one. Each is said to a gate, in cleartext and
//! in TLS, before an upstream that is as careless as the attack needs it. Where the barrier is that the gate writes requests
//! anew, the same bytes go through a proxy that does not, to the same upstream.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use ringfence_audit::Outcome as Decided;
use ringfence_gate::Barriers;
use ringfence_model::manifest::Scheme;
use support::frames::{self, END_HEADERS, END_STREAM, HEADERS, Outcome, Wire, code};
use support::lenient::{Lenient, Naive, Reading};
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const ONE: &[&[u8]] = &[b"http/1.1"];
const TWO: &[&[u8]] = &[b"h2"];

/// What must not arrive.
const SMUGGLED: &str = "GET /admin HTTP/1.1\r\nHost: api.example.org\r\n\r\n";

/// A gate that grants `/ok` of one careless upstream.
struct World {
    fence: Fence,
    upstream: Lenient,
    scheme: Scheme,
}

impl World {
    async fn new(reading: Reading, scheme: Scheme, barriers: Barriers) -> Self {
        Self::with(reading, scheme, barriers, &["/ok"]).await
    }

    async fn with(reading: Reading, scheme: Scheme, barriers: Barriers, paths: &[&str]) -> Self {
        let ca = TestCa::new();
        let acceptor = (scheme == Scheme::Https).then(|| ca.acceptor(HOST, ONE));
        let upstream = Lenient::start(reading, acceptor).await;
        let mut granted = grant(upstream.address, &ca);
        granted.paths = paths.iter().map(|path| (*path).to_owned()).collect();
        if scheme == Scheme::Http {
            (granted.scheme, granted.port, granted.ca_pem) = (Scheme::Http, 80, None);
        }
        Self { fence: Fence::with(&config(vec![granted]), barriers), upstream, scheme }
    }

    /// Says bytes on one connection, nothing more, and gives all that comes back.
    async fn say(&self, bytes: &[u8]) -> String {
        match self.scheme {
            Scheme::Http => {
                let to = self.fence.to_name(HOST, 80).await;
                talk(TcpStream::connect(to).await.unwrap(), bytes).await
            }
            Scheme::Https => {
                let to = self.fence.to_name(HOST, 443).await;
                talk(self.fence.tls(to, HOST, ONE).await.unwrap(), bytes).await
            }
        }
    }
}

async fn talk(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> String {
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut said = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut said)).await;
    let _ = read.expect("the gate comes to an end");
    String::from_utf8_lossy(&said).into_owned()
}

/// The statuses of the answers of HTTP/1.1 in `said`.
fn statuses(said: &str) -> Vec<u16> {
    said.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].parse().unwrap()).collect()
}

struct Attack {
    name: String,
    bytes: Vec<u8>,
    /// How a proxy reads it that is led astray; `None`: nobody is, and the gate is strict all the same.
    front: Option<Reading>,
    /// How the upstream does.
    back: Reading,
    /// What the gate answers.
    answers: &'static [u16],
}

fn post(fields: &str, body: &str) -> Vec<u8> {
    format!("POST /ok HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n{body}").into_bytes()
}

fn attacks() -> Vec<Attack> {
    use Reading::{BareCr, Chunks, FirstLength, LastLength, NoBody};
    let attack = |name: &str, bytes: Vec<u8>, front, back, answers| Attack {
        name: name.to_owned(),
        bytes,
        front,
        back,
        answers,
    };
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    let (length, long) = (SMUGGLED.len(), chunked.len());
    let size = format!("{length:x}");
    let mut all = vec![
        attack(
            "CL.TE",
            post(&format!("Content-Length: {long}\r\nTransfer-Encoding: chunked"), &chunked),
            Some(FirstLength),
            Chunks,
            &[200],
        ),
        attack(
            "TE.CL",
            post(
                &format!("Transfer-Encoding: chunked\r\nContent-Length: {}", size.len() + 2),
                &format!("{size}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
            ),
            Some(Chunks),
            FirstLength,
            &[200],
        ),
        attack(
            "two lengths, the first less",
            post(&format!("Content-Length: 0\r\nContent-Length: {length}"), SMUGGLED),
            Some(LastLength),
            FirstLength,
            &[400],
        ),
        attack(
            "two lengths, the last less",
            post(&format!("Content-Length: {length}\r\nContent-Length: 0"), SMUGGLED),
            Some(FirstLength),
            LastLength,
            &[400],
        ),
        attack(
            "a length on a folded line",
            post(&format!("X: a\r\n Content-Length: {length}"), SMUGGLED),
            Some(FirstLength),
            NoBody,
            &[400],
        ),
        attack(
            "a length behind a bare CR",
            post(&format!("X: a\rContent-Length: {length}"), SMUGGLED),
            Some(BareCr),
            FirstLength,
            &[400],
        ),
        attack(
            "space before a colon",
            post(&format!("Content-Length : {length}"), SMUGGLED),
            Some(FirstLength),
            NoBody,
            &[400],
        ),
        attack(
            "tab before a colon",
            post(&format!("Content-Length\t: {length}"), SMUGGLED),
            Some(FirstLength),
            NoBody,
            &[400],
        ),
        attack(
            "a body behind GET",
            format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{SMUGGLED}").into_bytes(),
            Some(FirstLength),
            NoBody,
            &[403],
        ),
        attack(
            "a body in chunks behind HEAD",
            format!(
                "HEAD /ok HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{size}\r\n{SMUGGLED}\r\n0\r\n\r\n"
            )
            .into_bytes(),
            None,
            NoBody,
            &[403],
        ),
    ];
    for number in [&format!("+{length}"), &format!("{length},{length}"), &format!("{length}, 0"), &format!("{length};")]
    {
        all.push(attack(
            &format!("a length of {number}"),
            post(&format!("Content-Length: {number}"), SMUGGLED),
            Some(FirstLength),
            NoBody,
            &[400],
        ));
    }
    for number in ["-1", "0x10", "18446744073709551616", "99999999999999999999999", "", "1e2", "\u{661}"] {
        all.push(attack(
            &format!("a length of {number:?}"),
            post(&format!("Content-Length: {number}"), SMUGGLED),
            None,
            NoBody,
            &[400],
        ));
    }
    // One reads the length, for it does not know such a coding; the other reads chunks, for it nearly does.
    for (coding, answers) in [
        ("Transfer-Encoding: xchunked", &[400][..]),
        ("Transfer-Encoding: chunked, identity", &[400]),
        ("Transfer-Encoding: chunked, gzip", &[400]),
        ("Transfer-Encoding: chunked;q=1", &[400]),
        ("Transfer-Encoding: \"chunked\"", &[400]),
        ("Transfer-Encoding: \u{b}chunked", &[400]),
        ("Transfer-Encoding: chunked\u{b}", &[400]),
        ("Transfer-Encoding: chunked\0", &[400]),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", &[400]),
        ("Transfer-Encoding : chunked", &[400]),
        ("Transfer-Encoding\t: chunked", &[400]),
        ("X: a\r\n Transfer-Encoding: chunked", &[400]),
        ("X: a\r\n\tTransfer-Encoding: chunked", &[400]),
        // Chunks, and the end of the connection.
        ("Transfer-Encoding:\tchunked", &[200]),
        ("Transfer-Encoding: cHuNkEd", &[200]),
        ("Transfer-Encoding: identity, chunked", &[200]),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked", &[200]),
        ("transfer-encoding:chunked ", &[200]),
        // Another header here, and none upstream: the length counts.
        ("Transfer_Encoding: chunked", &[200]),
    ] {
        for first in [true, false] {
            let said = format!("Content-Length: {long}");
            let fields = if first { format!("{coding}\r\n{said}") } else { format!("{said}\r\n{coding}") };
            let name = format!("TE.TE, {coding:?}, first: {first}");
            all.push(attack(&name, post(&fields, &chunked), Some(FirstLength), Chunks, answers));
        }
    }
    // What is wrong in the chunks shows when the head is out already.
    for (name, body) in [
        ("a size beyond 64 bits", format!("FFFFFFFFFFFFFFFFF\r\n{SMUGGLED}")),
        ("a size that wraps", format!("10000000000000000\r\n\r\n{SMUGGLED}")),
        ("a negative size", format!("-1\r\n{SMUGGLED}")),
        ("a signed size", format!("+0\r\n\r\n{SMUGGLED}")),
        ("a size in C", format!("0x0\r\n\r\n{SMUGGLED}")),
        ("no size", format!("\r\n{SMUGGLED}")),
        ("a size of words", format!("0 0\r\n\r\n{SMUGGLED}")),
        ("no end of a chunk", format!("2\r\nhiXX0\r\n\r\n{SMUGGLED}")),
        ("a line's end of LF CR", format!("0\n\r\n\r{SMUGGLED}")),
        ("a bare CR in a size", format!("0\rX\r\n\r\n{SMUGGLED}")),
        ("a line in an extension", format!("2;\nhi\r\n{size}\r\n0\r\n\r\n{SMUGGLED}\r\n0\r\n\r\n")),
    ] {
        all.push(attack(name, post("Transfer-Encoding: chunked", &body), None, Chunks, &[]));
    }
    for (name, bytes, answers) in [
        ("HTTP/0.9", b"GET /ok\r\n\r\n".to_vec(), &[400][..]),
        ("HTTP/2.0 by name", format!("GET /ok HTTP/2.0\r\nHost: {HOST}\r\n\r\n").into_bytes(), &[400]),
        ("HTTP/1.2", format!("GET /ok HTTP/1.2\r\nHost: {HOST}\r\n\r\n").into_bytes(), &[400]),
        ("HTTP/1.1 and more", format!("GET /ok HTTP/1.1 x\r\nHost: {HOST}\r\n\r\n").into_bytes(), &[400]),
        ("a target of two words", format!("GET /ok /admin HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes(), &[400]),
        ("NUL in the path", format!("GET /ok\0/admin HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes(), &[400]),
        ("NUL in a name", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nX\0: y\r\n\r\n").into_bytes(), &[400]),
        ("NUL in a value", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nX: \0\r\n\r\n").into_bytes(), &[400]),
        ("no name", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\n: y\r\n\r\n").into_bytes(), &[400]),
        ("no colon", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nX\r\n\r\n").into_bytes(), &[400]),
        ("a fold before the first", format!("GET /ok HTTP/1.1\r\n Host: {HOST}\r\n\r\n").into_bytes(), &[400]),
        ("two hosts", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nHost: evil.example\r\n\r\n").into_bytes(), &[403]),
        ("the same host twice", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nHost: {HOST}\r\n\r\n").into_bytes(), &[403]),
        ("no host", b"GET /ok HTTP/1.1\r\n\r\n".to_vec(), &[403]),
        ("another host", b"GET /ok HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec(), &[403]),
        ("a host and more", format!("GET /ok HTTP/1.1\r\nHost: {HOST}, evil.example\r\n\r\n").into_bytes(), &[403]),
        ("a user in a host", format!("GET /ok HTTP/1.1\r\nHost: {HOST}@evil.example\r\n\r\n").into_bytes(), &[403]),
        ("a path in a host", format!("GET /ok HTTP/1.1\r\nHost: {HOST}/admin\r\n\r\n").into_bytes(), &[403]),
        ("a whole URL of another host", format!("GET http://evil.example/ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n").into_bytes(), &[403]),
        ("a whole URL", format!("GET https://{HOST}/ok HTTP/1.1\r\nHost: evil.example\r\n\r\n").into_bytes(), &[403]),
        ("a second request", [format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), SMUGGLED.into()].concat().into_bytes(), &[200, 403]),
        ("a second request behind a body", [post("Content-Length: 2", "hi"), SMUGGLED.into()].concat(), &[200, 403]),
        ("a second request behind a body that waits", [post("Content-Length: 2\r\nExpect: 100-continue", "hi"), SMUGGLED.into()].concat(), &[100, 200, 403]),
        ("an expectation of no kind", [post(&format!("Content-Length: {length}\r\nExpect: y 100-continue"), SMUGGLED)].concat(), &[200]),
        ("a coding in HTTP/1.0", format!("POST /ok HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}").into_bytes(), &[400]),
        ("an upgrade", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n{SMUGGLED}").into_bytes(), &[200, 403]),
    ] {
        all.push(attack(name, bytes, None, FirstLength, answers));
    }
    all
}

#[tokio::test]
async fn no_bytes_of_http1_are_two_requests_to_an_upstream() {
    for scheme in [Scheme::Http, Scheme::Https] {
        let held = attacks().into_iter().map(|attack| async move {
            let name = &attack.name;
            let world = World::new(attack.back, scheme, Barriers::default()).await;
            let said = world.say(&attack.bytes).await;
            if attack.answers.is_empty() {
                assert!(statuses(&said).iter().all(|status| *status >= 400), "{name}: {said}");
            } else {
                assert_eq!(statuses(&said), attack.answers, "{name}: {said}");
            }
            let targets = world.upstream.targets();
            assert!(!targets.iter().any(|target| target.contains("admin")), "{name}: {targets:?}");
            let text = world.upstream.text();
            let count = |word: &str| text.to_ascii_lowercase().matches(word).count();
            assert!(count("\r\ncontent-length:") + count("\r\ntransfer-encoding:") <= 1, "{name}: {text}");
            for gone in ["expect:", "upgrade:", "http2-settings", "transfer_encoding", "\r\n ", "\u{b}", "\0", "evil"] {
                assert_eq!(count(gone), 0, "{name}: {text}");
            }
            assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{name}: {text}");
        });
        all(held).await;
    }
}

#[tokio::test]
async fn what_passes_bytes_on_as_they_came_is_led_astray() {
    for attack in attacks() {
        let Some(front) = attack.front else { continue };
        let upstream = Lenient::start(attack.back, None).await;
        Naive::relay(front, "/ok", &attack.bytes, upstream.address).await;
        let targets = upstream.targets();
        assert!(targets.iter().any(|target| target == "GET /admin"), "{}: {targets:?}", attack.name);
        assert_eq!(front.all(&attack.bytes).len(), 1, "{}: the proxy sees no second request", attack.name);
    }
}

#[tokio::test]
async fn what_trusts_the_address_alone_reaches_another_host() {
    // Whoever is dialled serves many names, as a CDN does.
    for (name, bytes) in [
        ("another host", "GET /ok HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned()),
        ("two hosts", format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nHost: evil.example\r\n\r\n")),
        ("a host and more", format!("GET /ok HTTP/1.1\r\nHost: {HOST}, evil.example\r\n\r\n")),
        ("a user in a host", format!("GET /ok HTTP/1.1\r\nHost: {HOST}@evil.example\r\n\r\n")),
    ] {
        let world = World::new(Reading::FirstLength, Scheme::Http, Barriers::default()).await;
        assert_eq!(statuses(&world.say(bytes.as_bytes()).await), [403], "{name}");
        assert_eq!(world.fence.log.intent(0).await.reason, "host_mismatch", "{name}");
        assert_eq!(world.upstream.text(), "", "{name}");
        Naive::relay(Reading::FirstLength, "/ok", bytes.as_bytes(), world.upstream.address).await;
        assert!(world.upstream.text().contains("evil.example"), "{name}");
    }
}

#[tokio::test]
async fn what_one_reader_tolerates_is_written_anew() {
    // Line ends without CR, chunks with extensions and leading zeros, and trailers.
    let bytes = format!(
        "\r\nPOST /ok HTTP/1.1\nHost: {HOST}\nX-A:  b \t\nTransfer-Encoding: chunked\nTrailer: x-api-key, host\n\n\
         0002;name=\"va;lue\"\r\nhi\r\n0\r\nHost: evil.example\r\nContent-Length: 50\r\nTransfer-Encoding: x\r\n\
         Authorization: own\r\nX-Api-Key: own\r\n\r\n"
    );
    let world = World::new(Reading::Chunks, Scheme::Https, Barriers::default()).await;
    assert_eq!(statuses(&world.say(bytes.as_bytes()).await), [200]);
    let text = world.upstream.text();
    let want = format!(
        "POST /ok HTTP/1.1\r\nhost: {HOST}\r\nx-a: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    );
    assert_eq!(text, want, "{text}");
    assert_eq!(world.fence.log.outcome(0).await.findings, ["request_trailers_dropped"]);

    let off = Barriers { request_trailers: false, ..Barriers::default() };
    let world = World::new(Reading::Chunks, Scheme::Https, off).await;
    assert_eq!(statuses(&world.say(bytes.as_bytes()).await), [200]);
    let text = world.upstream.text();
    assert!(text.ends_with("0\r\nx-api-key: own\r\n\r\n"), "with the barrier off they arrive: {text}");
}

#[tokio::test]
async fn over_http2_no_trailer_becomes_a_header() {
    for (barriers, arrives) in
        [(Barriers::default(), false), (Barriers { request_trailers: false, ..Barriers::default() }, true)]
    {
        let ca = TestCa::new();
        let upstream = Upstream::start(Some(ca.acceptor(HOST, TWO))).await;
        let fence = Fence::with(&config(vec![grant(upstream.address, &ca)]), barriers);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("authorization", "own".parse().unwrap());
        let parts = [Ok::<_, std::convert::Infallible>(Frame::data("body".into())), Ok(Frame::trailers(trailers))];
        let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(parts)));
        let request = Request::post(format!("https://{HOST}/trailing")).body(body).unwrap();
        let response = fence.h2().await.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.unwrap();
        let found = fence.log.outcome(0).await.findings;
        assert_eq!(found.is_empty(), arrives, "{found:?}");
        let last = upstream.trailers.lock().unwrap().last().cloned().unwrap();
        assert_eq!(last.contains_key("authorization"), arrives);
    }
}

/// Headers by which some frameworks and proxies take a request for another one.
const DETOURS: [(&str, &str, &str); 19] = [
    ("X-HTTP-Method-Override", "DELETE", "method_override"),
    ("x-http-method-override", "delete", "method_override"),
    ("X-HTTP-Method", "DELETE", "method_override"),
    ("X-Method-Override", "PUT", "method_override"),
    ("X-Method-Override", "POST, DELETE", "method_override"),
    ("X-Original-URL", "/admin", "path_override"),
    ("X-Original-URL", "/ok/../admin", "path_override"),
    ("X-Original-URL", "https://api.example.org/admin", "path_override"),
    ("X-Original-URL", "", "path_override"),
    ("X-Rewrite-URL", "/admin", "path_override"),
    ("X-Original-URI", "/admin", "path_override"),
    ("X-Forwarded-Uri", "/admin", "path_override"),
    ("X-Forwarded-Host", "evil.example", "host_mismatch"),
    ("X-Forwarded-Host", "api.example.org, evil.example", "host_mismatch"),
    ("X-Forwarded-Server", "evil.example", "host_mismatch"),
    ("X-Host", "evil.example", "host_mismatch"),
    ("X-HTTP-Host-Override", "evil.example", "host_mismatch"),
    ("X-Original-Host", "evil.example", "host_mismatch"),
    ("Forwarded", "for=192.0.2.1;host=evil.example", "host_mismatch"),
];

#[tokio::test]
async fn no_header_makes_a_request_another_one() {
    let off = Barriers { detours: false, ..Barriers::default() };
    for barriers in [Barriers::default(), off] {
        let ca = TestCa::new();
        let upstream = Lenient::start(Reading::FirstLength, Some(ca.acceptor(HOST, ONE))).await;
        let mut granted = grant(upstream.address, &ca);
        (granted.methods, granted.paths) = (vec!["GET".into(), "POST".into()], vec!["/ok".into()]);
        let fence = Fence::with(&config(vec![granted]), barriers);
        let to = fence.to_name(HOST, 443).await;
        for (nth, (name, value, reason)) in DETOURS.into_iter().enumerate() {
            let bytes = format!("POST /ok HTTP/1.1\r\nHost: {HOST}\r\n{name}: {value}\r\nContent-Length: 0\r\n\r\n");
            let said = talk(fence.tls(to, HOST, ONE).await.unwrap(), bytes.as_bytes()).await;
            let intent = fence.log.intent(nth).await;
            if barriers.detours {
                assert_eq!(statuses(&said), [403], "{name}: {value}");
                assert_eq!((intent.decision, intent.reason.as_str()), (Decided::Deny, reason), "{name}: {value}");
            } else {
                assert_eq!(statuses(&said), [200], "with the barrier off {name} arrives");
                let said = format!("\r\n{}: {value}\r\n", name.to_ascii_lowercase());
                assert!(upstream.text().contains(&said), "{name}: {}", upstream.text());
            }
        }
        let harmless = "POST /ok HTTP/1.1\r\nHost: api.example.org\r\nX-HTTP-Method-Override: GET\r\nX-Forwarded-Host: api.example.org\r\nX-Original-URL: /ok?a\r\nX_HTTP_Method_Override: DELETE\r\nContent-Length: 0\r\n\r\n";
        let said = talk(fence.tls(to, HOST, ONE).await.unwrap(), harmless.as_bytes()).await;
        assert_eq!(statuses(&said), [200], "what it may do it may also ask for so");
        assert_eq!(
            upstream.text().contains("x_http_method_override"),
            !barriers.detours,
            "what reads like another header is taken away"
        );
    }
}

#[tokio::test]
async fn what_connection_names_takes_nothing_away_that_counts() {
    let ca = TestCa::new();
    let upstream = Lenient::start(Reading::FirstLength, Some(ca.acceptor(HOST, ONE))).await;
    let mut config = config(vec![keyed(grant(upstream.address, &ca))]);
    config.credentials.get_mut("openai").unwrap().place =
        ringfence_model::manifest::Place::Header { name: "x-api-key".into(), template: "{}".into() };
    let fence = Fence::of(&config);
    let to = fence.to_name(HOST, 443).await;
    let bytes = format!(
        "POST /ok HTTP/1.1\r\nHost: {HOST}\r\nConnection: x-api-key, host, content-length, close, accept-encoding\r\n\
         X-Api-Key: own\r\nX_Api_Key: own\r\nContent-Length: 2\r\n\r\nhi"
    );
    assert_eq!(statuses(&talk(fence.tls(to, HOST, ONE).await.unwrap(), bytes.as_bytes()).await), [200]);
    let text = upstream.text();
    assert!(text.contains(&format!("\r\nx-api-key: {SECRET}\r\n")), "{text}");
    assert!(text.contains(&format!("\r\nhost: {HOST}\r\n")) && text.contains("\r\ncontent-length: 2\r\n"), "{text}");
    assert!(!text.contains("own") && !text.contains("connection"), "{text}");
    assert!(text.ends_with("\r\n\r\nhi"));
}

/// Says one request of HTTP/2 by hand, with what follows its head.
async fn h2(world: &World, block: &[u8], flags: u8, after: &[u8]) -> Outcome {
    let to = world.fence.to_name(HOST, 443).await;
    let mut wire = Wire::client(world.fence.tls(to, HOST, TWO).await.unwrap()).await;
    wire.say(&[&frames::frame(HEADERS, END_HEADERS | flags, 1, block), after].concat()).await;
    wire.outcome().await
}

#[tokio::test]
async fn nothing_of_http2_is_two_requests_in_http1() {
    let smuggled = format!("x\r\n\r\n{SMUGGLED}");
    let ok = |more: &[(&[u8], &[u8])]| frames::request("POST", "/ok", more);
    let whole = |method: &[u8], scheme: &[u8], authority: &[u8], path: &[u8]| {
        frames::block(&[(b":method", method), (b":scheme", scheme), (b":authority", authority), (b":path", path)])
    };
    let host = HOST.as_bytes();
    let (get, https) = (&b"GET"[..], &b"https"[..]);
    let path = format!("/ok HTTP/1.1\r\nHost: {HOST}\r\n\r\n{SMUGGLED}");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("CR LF in a value", ok(&[(b"x", smuggled.as_bytes())])),
        ("LF in a value", ok(&[(b"x", b"y\nz: w")])),
        ("CR in a value", ok(&[(b"x", b"y\rz: w")])),
        ("NUL in a value", ok(&[(b"x", b"y\0")])),
        ("CR LF in a name", ok(&[(b"x: y\r\ntransfer-encoding", b"chunked")])),
        ("a colon in a name", ok(&[(b"transfer-encoding: chunked\r\nx", b"y")])),
        ("a colon at the end of a name", ok(&[(b"transfer-encoding:", b"chunked")])),
        ("a space in a name", ok(&[(b"transfer-encoding ", b"chunked")])),
        ("capitals in a name", ok(&[(b"Transfer-Encoding", b"chunked")])),
        ("an empty name", ok(&[(b"", b"chunked")])),
        ("transfer-encoding", ok(&[(b"transfer-encoding", b"chunked")])),
        ("connection", ok(&[(b"connection", b"keep-alive")])),
        ("upgrade", ok(&[(b"upgrade", b"h2c")])),
        ("proxy-connection", ok(&[(b"proxy-connection", b"keep-alive")])),
        ("keep-alive", ok(&[(b"keep-alive", b"5")])),
        ("te other than trailers", ok(&[(b"te", b"chunked")])),
        ("two lengths", ok(&[(b"content-length", b"0"), (b"content-length", b"50")])),
        ("the same length twice", ok(&[(b"content-length", b"0"), (b"content-length", b"0")])),
        ("a signed length", ok(&[(b"content-length", b"+0")])),
        ("a length of two numbers", ok(&[(b"content-length", b"0, 50")])),
        ("a length and no body", ok(&[(b"content-length", b"50")])),
        ("another host", ok(&[(b"host", b"evil.example")])),
        ("two hosts", ok(&[(b"host", host), (b"host", b"evil.example")])),
        (
            "CR LF in the method",
            whole(format!("GET /admin HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET").as_bytes(), https, host, b"/ok"),
        ),
        ("a space in the method", whole(b"GET /admin", https, host, b"/ok")),
        ("an empty method", whole(b"", https, host, b"/ok")),
        ("CR LF in the path", whole(get, https, host, path.as_bytes())),
        ("a space in the path", whole(get, https, host, b"/ok HTTP/1.1")),
        ("NUL in the path", whole(get, https, host, b"/ok\0")),
        ("no slash before the path", whole(get, https, host, b"ok")),
        ("an empty path", whole(get, https, host, b"")),
        ("a whole URL for a path", whole(get, https, host, b"http://evil.example/ok")),
        ("an authority for a path", whole(get, https, host, b"@evil.example/ok")),
        ("CR LF in the authority", whole(get, https, b"api.example.org\r\nx: y", b"/ok")),
        ("a user in the authority", whole(get, https, b"api.example.org@evil.example", b"/ok")),
        ("a path in the authority", whole(get, https, b"api.example.org/admin?", b"/ok")),
        ("another authority", whole(get, https, b"evil.example", b"/ok")),
        ("another scheme", whole(get, b"http", host, b"/ok")),
        ("a URL for a scheme", whole(get, b"https://evil.example/x?", host, b"/ok")),
        ("a denied path", whole(get, https, host, b"/admin")),
        ("CONNECT", frames::block(&[(b":method", b"CONNECT"), (b":authority", b"evil.example:443")])),
    ];
    let held = cases.into_iter().map(|(name, block)| async move {
        let world = World::new(Reading::LastLength, Scheme::Https, Barriers::default()).await;
        let outcome = h2(&world, &block, END_STREAM, &[]).await;
        let refused = match outcome {
            Outcome::Away(code) | Outcome::Reset(code) => code != code::NO_ERROR,
            Outcome::Status(status) => (400..500).contains(&status),
            Outcome::Closed => false,
        };
        assert!(refused, "{name}: {outcome:?}");
        assert_eq!(world.upstream.text(), "", "{name}");
    });
    all(held).await;
}

#[tokio::test]
async fn over_http2_a_body_is_as_long_as_it_says() {
    for (length, body) in [("5", &b"hi"[..]), ("1", b"hi")] {
        let world = World::new(Reading::LastLength, Scheme::Https, Barriers::default()).await;
        let block = frames::request("POST", "/ok", &[(b"content-length", length.as_bytes())]);
        let data = frames::frame(frames::DATA, END_STREAM, 1, body);
        let outcome = h2(&world, &block, 0, &data).await;
        assert_eq!(outcome, Outcome::Reset(code::PROTOCOL_ERROR), "{length}");
        assert!(world.upstream.targets().is_empty(), "the request never became whole");
    }
    // A body that GET names no length of is written with one.
    let open = World::with(Reading::LastLength, Scheme::Https, Barriers::default(), &[]).await;
    let data = frames::frame(frames::DATA, END_STREAM, 1, b"hi");
    assert_eq!(h2(&open, &frames::request("GET", "/ok", &[]), 0, &data).await, Outcome::Status(200));
    assert!(open.upstream.text().ends_with("\r\ncontent-length: 2\r\n\r\nhi"), "{}", open.upstream.text());
    let limited = World::new(Reading::LastLength, Scheme::Https, Barriers::default()).await;
    assert_eq!(h2(&limited, &frames::request("GET", "/ok", &[]), 0, &data).await, Outcome::Status(403));
    let empty = frames::frame(frames::DATA, END_STREAM, 1, b"");
    assert_eq!(h2(&limited, &frames::request("GET", "/ok", &[]), 0, &empty).await, Outcome::Status(200));
    assert_eq!(limited.upstream.targets(), ["GET /ok"]);
}

#[tokio::test]
async fn a_body_behind_get_arrives_as_a_request_with_the_barrier_off() {
    let off = Barriers { unexpected_bodies: false, ..Barriers::default() };
    let world = World::new(Reading::NoBody, Scheme::Https, off).await;
    let bytes = format!("GET /ok HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
    world.say(bytes.as_bytes()).await;
    let targets = || world.upstream.targets();
    wait(|| (targets().len() > 1).then_some(()), || format!("{:?}", targets())).await;
    assert_eq!(targets(), ["GET /ok", "GET /admin"]);
}
