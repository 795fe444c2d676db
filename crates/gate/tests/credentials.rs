//! Credentials: every place that a secret can go to, placeholders that go astray, secrets that come back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ringfence_audit::Outcome;
use ringfence_gate::Barriers;
use ringfence_gate::config::{CredentialLease, GateConfig};
use ringfence_model::SecretText;
use ringfence_model::manifest::{
    AssumeRole, ClientAuth, Endpoint, GithubApp, GoogleServiceAccount, Oauth2, Oauth2Grant, Place, Sigv4,
};
use support::*;
use tokio::net::TcpListener;

const ONE: &[&[u8]] = &[b"http/1.1"];
const BOTH: &[&[u8]] = &[b"h2", b"http/1.1"];
const MISDIRECTED: &str = "placeholder_misdirected";

async fn world(alpn: &[&[u8]]) -> (TestCa, Upstream) {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, alpn))).await;
    (ca, upstream)
}

fn at(upstream: &Upstream, ca: &TestCa, place: Place, secret: &str) -> GateConfig {
    let mut config = config(vec![keyed(grant(upstream.address, ca))]);
    let lease = config.credentials.get_mut("openai").unwrap();
    lease.place = place;
    lease.secret = SecretText::new(secret.into());
    config
}

fn typed(
    path: &str,
    kind: &str,
    body: impl Into<Bytes>,
) -> Request<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>> {
    Request::post(path).header("host", HOST).header("content-type", kind).body(text(body)).unwrap()
}

async fn status(
    fence: &Fence,
    request: Request<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>,
) -> StatusCode {
    fence.h1().await.send_request(request).await.unwrap().status()
}

#[tokio::test]
async fn a_secret_in_the_path_is_seen_by_the_upstream_alone() {
    for alpn in [ONE, BOTH] {
        let (ca, upstream) = world(alpn).await;
        let place = Place::Path { before: "bot".into(), after: String::new() };
        let mut config = at(&upstream, &ca, place, "12345678:AAsecret");
        config.grants[0].paths = vec!["/bot*/getMe".into()];
        let fence = Fence::of(&config);
        assert_eq!(status(&fence, get(&format!("/bot{PLACEHOLDER}/getMe?a=1"))).await, StatusCode::OK);
        assert_eq!(upstream.heads()[0].1, "/bot12345678:AAsecret/getMe?a=1");
        assert_eq!(fence.log.intent(0).await.path, Some(format!("/bot{PLACEHOLDER}/getMe")));
        for path in ["/bot999:own-key/getMe".to_owned(), format!("/bot{PLACEHOLDER}/{PLACEHOLDER}/getMe")] {
            assert_eq!(status(&fence, get(&path)).await, StatusCode::FORBIDDEN);
        }
        assert_eq!(fence.log.intent(1).await.reason, "credential_path");
        assert_eq!(fence.log.intent(2).await.reason, MISDIRECTED);
        assert_eq!(upstream.heads().len(), 1);
        assert!(!format!("{:?}", fence.log.events.lock().unwrap()).contains("AAsecret"));
    }
}

#[tokio::test]
async fn a_secret_goes_into_a_field_of_a_body() {
    let (ca, upstream) = world(BOTH).await;
    let json = Fence::of(&at(&upstream, &ca, Place::Json { keys: vec!["auth".into(), "key".into()] }, "s\"1-secret"));
    let body = format!("{{\"n\": 1.0, \"auth\": {{\"key\": \"{PLACEHOLDER}\"}}}}");
    assert_eq!(status(&json, typed("/v1", "application/json", body)).await, StatusCode::OK);
    let form = Fence::of(&at(&upstream, &ca, Place::Form { name: "token".into() }, "s&1-secret"));
    let body = format!("a=1&token={PLACEHOLDER}");
    assert_eq!(status(&form, typed("/v1", "application/x-www-form-urlencoded", body)).await, StatusCode::OK);
    let part = |text: &str| format!("--b\r\nContent-Disposition: form-data; name=\"token\"\r\n\r\n{text}\r\n--b--\r\n");
    assert_eq!(status(&form, typed("/v1", "multipart/form-data; boundary=b", part(PLACEHOLDER))).await, StatusCode::OK);
    let want = ["{\"n\":1.0,\"auth\":{\"key\":\"s\\\"1-secret\"}}", "a=1&token=s%261-secret", &part("s&1-secret")];
    assert_eq!(*upstream.bodies.lock().unwrap(), want);
    for (nth, body) in want.iter().enumerate() {
        assert_eq!(upstream.heads()[nth].2["content-length"], body.len().to_string().as_str());
    }

    let mut gzip = typed("/v1", "application/json", "x");
    gzip.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    let denied = [
        (gzip, "body_encoded"),
        (typed("/v1", "application/json", "{\"auth\":{}}"), "credential_field"),
        (typed("/v1", "application/json", "{\"auth\":{\"key\":1,\"key\":2}}"), "body_unreadable"),
        (typed("/v1", "application/json", vec![b' '; 5 << 20]), "body_too_large"),
        (
            typed("/v1", "application/json", format!("{{\"auth\":{{\"key\":\"\"}},\"x\":\"{PLACEHOLDER}\"}}")),
            MISDIRECTED,
        ),
    ];
    for (nth, (request, reason)) in denied.into_iter().enumerate() {
        assert_eq!(status(&json, request).await, StatusCode::FORBIDDEN, "{reason}");
        assert_eq!(json.log.intent(nth + 1).await.reason, reason);
    }
    assert_eq!(upstream.heads().len(), 3);
}

#[tokio::test]
async fn basic_authentication_takes_the_secret_as_password() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::of(&at(&upstream, &ca, Place::Basic { template: "me:{}".into() }, SECRET));
    let mut request = get("/echo-secret");
    let own = format!("Basic {}", STANDARD.encode(format!("me:{PLACEHOLDER}")));
    request.headers_mut().insert("authorization", own.parse().unwrap());
    let body = body_of(fence.h1().await.send_request(request).await.unwrap()).await;
    let sent = upstream.heads()[0].2["authorization"].to_str().unwrap().to_owned();
    assert_eq!(sent, format!("Basic {}", STANDARD.encode(format!("me:{SECRET}"))));
    let echoed = body.split('"').nth(3).unwrap().trim_start_matches("Basic ");
    assert!(!body.contains(&sent[10..]) && echoed.contains(PLACEHOLDER), "{body}");
    assert_eq!(fence.log.outcome(0).await.findings, ["secret_echo_redacted"]);
}

#[tokio::test]
async fn a_request_is_signed_for_aws_and_nothing_of_the_agents_signature_is_left() {
    for alpn in [ONE, BOTH] {
        let (ca, upstream) = world(alpn).await;
        let sigv4 = |service: &str| {
            Place::Sigv4(Sigv4 {
                region: "eu-central-1".into(),
                service: service.into(),
                access_key_id: Some("AKIAREAL".into()),
                assume_role: None,
            })
        };
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        let signed = |mut request: Request<_>, hash: &str| {
            let headers: &mut http::HeaderMap = Request::headers_mut(&mut request);
            let own =
                "AWS4-HMAC-SHA256 Credential=AKIAFAKE/20200101/x/y/aws4_request, SignedHeaders=host, Signature=00";
            headers.insert("authorization", own.parse().unwrap());
            headers.insert("x-amz-date", "20200101T000000Z".parse().unwrap());
            headers.insert("x-amz-security-token", "agents-own".parse().unwrap());
            headers.insert("x-amz-content-sha256", hash.parse().unwrap());
            request
        };
        let fence = Fence::of(&at(&upstream, &ca, sigv4("dynamodb"), secret));
        let request = signed(typed("/v1/a%3Ab?X-Amz-Credential=AKIAFAKE&b=2&a=1", "application/json", "{}"), "0");
        assert_eq!(status(&fence, request).await, StatusCode::OK);
        let (_, target, headers, _) = upstream.heads()[0].clone();
        assert_eq!(target, "/v1/a%3Ab?b=2&a=1");
        assert_eq!(headers["x-amz-content-sha256"], "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        assert!(!headers.contains_key("x-amz-security-token"));
        assert_ne!(headers["x-amz-date"], "20200101T000000Z");
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(authorization.starts_with("AWS4-HMAC-SHA256 Credential=AKIAREAL/"), "{authorization}");
        assert!(
            authorization.contains("SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date, Signature="),
            "{authorization}"
        );

        let fence = Fence::of(&at(&upstream, &ca, sigv4("s3"), secret));
        for hash in ["UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"] {
            let request = signed(typed("/bucket/key", "text/plain", vec![b'x'; 200_000]), hash);
            assert_eq!(status(&fence, request).await, StatusCode::OK);
            assert_eq!(upstream.heads().last().unwrap().2["x-amz-content-sha256"], hash);
        }
        let request = signed(typed("/bucket/key", "text/plain", "x"), "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD");
        assert_eq!(status(&fence, request).await, StatusCode::FORBIDDEN);
        assert_eq!(fence.log.intent(2).await.reason, "body_signed_by_agent");
    }
}

/// A body in signed chunks, as S3 would check it: the data, and whether every signature follows from the one before.
fn chunks_checked(body: &[u8], authorization: &str, date: &str, secret: &str) -> (Vec<u8>, bool) {
    use aws_lc_rs::{digest, hmac};
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sign = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let scope = [&date[..8], "eu-central-1", "s3", "aws4_request"];
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope {
        key = sign(&key, part).as_ref().to_vec();
    }
    let mut last = authorization.rsplit_once("Signature=").unwrap().1.to_owned();
    let (mut rest, mut data, mut fits) = (body, Vec::new(), true);
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let line = std::str::from_utf8(&rest[..end]).unwrap();
        let (size, signature) = line.split_once(";chunk-signature=").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        let chunk = &rest[end + 2..end + 2 + size];
        let hash = |bytes| hex(digest::digest(&digest::SHA256, bytes).as_ref());
        let text = format!(
            "AWS4-HMAC-SHA256-PAYLOAD\n{date}\n{}\n{last}\n{}\n{}",
            scope.join("/"),
            hash(b"".as_slice()),
            hash(chunk)
        );
        last = hex(sign(&key, &text).as_ref());
        fits &= signature == last;
        data.extend_from_slice(chunk);
        assert_eq!(&rest[end + 2 + size..end + 4 + size], b"\r\n");
        rest = &rest[end + 4 + size..];
        if size == 0 {
            assert!(rest.is_empty());
            return (data, fits);
        }
    }
}

#[tokio::test]
async fn chunks_that_the_agent_signed_with_its_placeholder_are_signed_anew() {
    const SECRET_KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
    let chunked = |sizes: &[usize]| {
        let mut body = Vec::new();
        for size in sizes.iter().chain(&[0]) {
            body.extend(format!("{size:x};chunk-signature={}\r\n", "5".repeat(64)).bytes());
            body.extend((0..*size).map(|n| b'a' + u8::try_from(n % 26).unwrap()));
            body.extend(b"\r\n");
        }
        body
    };
    for alpn in [ONE, BOTH] {
        let (ca, upstream) = world(alpn).await;
        let place = Sigv4 {
            region: "eu-central-1".into(),
            service: "s3".into(),
            access_key_id: Some("AKIAREAL".into()),
            assume_role: None,
        };
        let fence = Fence::of(&at(&upstream, &ca, Place::Sigv4(place), SECRET_KEY));
        let put = |body: Vec<u8>| {
            let mut request = typed("/bucket/key", "text/plain", body);
            request.headers_mut().insert("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD".parse().unwrap());
            request.headers_mut().insert("content-encoding", "aws-chunked".parse().unwrap());
            request
        };
        // One that is read whole before it is sent, and one that streams.
        for sizes in [&[700, 20][..], &[70_000, 65_536, 1]] {
            let sent = chunked(sizes);
            assert_eq!(status(&fence, put(sent.clone())).await, StatusCode::OK);
            let arrived = upstream.bodies.lock().unwrap().last().unwrap().clone();
            assert_eq!(arrived.len(), sent.len());
            let head = upstream.heads().last().unwrap().2.clone();
            let (authorization, date) = (head["authorization"].to_str().unwrap(), head["x-amz-date"].to_str().unwrap());
            let (data, fits) = chunks_checked(&arrived, authorization, date, SECRET_KEY);
            assert!(fits, "S3 would refuse it");
            assert_eq!(data.len(), sizes.iter().sum::<usize>());
            assert!(
                !chunks_checked(&sent, authorization, date, SECRET_KEY).1,
                "the agent's own signatures are nobody's"
            );
        }
        let reached = upstream.bodies.lock().unwrap().len();
        for bad in [b"no chunks at all".to_vec(), chunked(&[70_000])[..70_000].to_vec()] {
            assert_eq!(status(&fence, put(bad)).await, StatusCode::BAD_GATEWAY);
        }
        let after = upstream.bodies.lock().unwrap().split_off(reached);
        assert!(after.iter().all(Bytes::is_empty), "nothing goes on unsigned");
        let outcome = fence.log.outcome(3).await;
        assert!(outcome.error.unwrap().contains("body_unsigned"), "it says why");
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    to.write_all(text.as_bytes()).unwrap();
    to.finish().unwrap()
}

/// Requests that carry the placeholder where it does not belong, in every form.
fn astray() -> Vec<Request<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>>> {
    let percent: String = PLACEHOLDER.bytes().map(|b| format!("%{b:02X}")).collect();
    let hex: String = PLACEHOLDER.bytes().map(|b| format!("{b:02x}")).collect();
    let json: String = PLACEHOLDER.bytes().map(|b| format!("\\u{b:04x}")).collect();
    let mut all = vec![
        get(&format!("/x/{PLACEHOLDER}")),
        get(&format!("/x?k={PLACEHOLDER}")),
        get(&format!("/x?k={percent}")),
        post("/x", &format!("please use {PLACEHOLDER}")),
        post("/x", &format!("{PLACEHOLDER} and {PLACEHOLDER}")),
        post("/x", &percent),
        post("/x", &hex),
        post("/x", &format!("{{\"a\":\"{json}\"}}")),
        post("/x", &format!("{}{PLACEHOLDER}", "x".repeat(60_000))),
    ];
    for before in ["", "a", "ab"] {
        all.push(post("/x", &STANDARD.encode(format!("{before}{PLACEHOLDER}"))));
    }
    for (name, value) in [
        ("x-note", PLACEHOLDER.to_owned()),
        ("authorization", format!("Basic {}", STANDARD.encode(format!("me:{PLACEHOLDER}")))),
        ("cookie", format!("a=1; k={PLACEHOLDER}")),
    ] {
        let mut request = get("/x");
        request.headers_mut().insert(name, value.parse().unwrap());
        all.push(request);
    }
    for (coding, body) in [
        ("gzip", gzip(PLACEHOLDER)),
        ("zstd", zstd::encode_all(PLACEHOLDER.as_bytes(), 3).unwrap()),
        ("deflate", {
            let mut to = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
            to.write_all(PLACEHOLDER.as_bytes()).unwrap();
            to.finish().unwrap()
        }),
    ] {
        let mut request = typed("/x", "text/plain", body);
        request.headers_mut().insert("content-encoding", coding.parse().unwrap());
        all.push(request);
    }
    all
}

#[tokio::test]
async fn a_placeholder_that_goes_astray_denies_the_call_before_anything_leaves() {
    let (ca, upstream) = world(ONE).await;
    // To a grant of no credential, and to one of another.
    let plain = config(vec![grant(upstream.address, &ca)]);
    let mut other = config(vec![keyed(grant(upstream.address, &ca))]);
    other.grants[0].credential = Some("other".into());
    let lease = CredentialLease {
        place: Place::Header { name: "x-key".into(), template: "{}".into() },
        placeholder: "another-placeholder-1234567890".into(),
        secret: SecretText::new("another-secret-0987654321".into()),
    };
    other.credentials.insert("other".into(), lease);
    for config in [plain, other] {
        let fence = Fence::of(&config);
        for (nth, request) in astray().into_iter().enumerate() {
            let shown = format!("{request:?}");
            assert_eq!(status(&fence, request).await, StatusCode::FORBIDDEN, "{shown}");
            let intent = fence.log.intent(nth).await;
            assert_eq!((intent.decision, intent.reason.as_str()), (Outcome::Deny, MISDIRECTED), "{shown}");
            assert!(intent.why.contains("`openai`"), "{}", intent.why);
        }
        assert_eq!(upstream.connections.load(Ordering::Relaxed), 0);
    }

    let config = config(vec![grant(upstream.address, &ca)]);
    let fence = Fence::with(&config, Barriers { misdirected_placeholders: false, ..Barriers::default() });
    for request in astray() {
        assert_eq!(status(&fence, request).await, StatusCode::OK, "with the barrier off it arrives");
    }
    assert_eq!(upstream.heads()[1].1, format!("/x?k={PLACEHOLDER}"));
    assert!(upstream.bodies.lock().unwrap().iter().any(|body| body.ends_with(PLACEHOLDER.as_bytes())));
}

#[tokio::test]
async fn a_placeholder_is_fine_in_its_own_place_and_nowhere_else_on_its_own_grant() {
    let (ca, upstream) = world(ONE).await;
    let fence = Fence::of(&config(vec![keyed(grant(upstream.address, &ca))]));
    let own = |mut request: Request<_>| {
        let headers: &mut http::HeaderMap = Request::headers_mut(&mut request);
        headers.insert("authorization", format!("Bearer {PLACEHOLDER}").parse().unwrap());
        request
    };
    assert_eq!(status(&fence, own(post("/x", "hello"))).await, StatusCode::OK);
    for request in [post("/x", &format!("{{\"key\":\"{PLACEHOLDER}\"}}")), get(&format!("/x?key={PLACEHOLDER}"))] {
        assert_eq!(status(&fence, own(request)).await, StatusCode::FORBIDDEN);
    }
    assert_eq!(fence.log.intent(1).await.reason, MISDIRECTED);
    assert_eq!(upstream.heads().len(), 1);
}

#[tokio::test]
async fn a_placeholder_in_a_streaming_body_cuts_it_off() {
    for alpn in [ONE, BOTH] {
        let (ca, upstream) = world(alpn).await;
        let fence = Fence::of(&config(vec![grant(upstream.address, &ca)]));
        let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::convert::Infallible>::new(1);
        let request = Request::post("/x").header("host", HOST).body(BodyExt::boxed(body)).unwrap();
        let mut client = fence.h1().await;
        let answer = tokio::spawn(async move { client.send_request(request).await.map(|r| r.status()) });
        sender.send_data(Bytes::from("first part ")).await.unwrap();
        wait(|| upstream.heads().first().cloned(), || "the first part did not arrive".into()).await;
        let (one, two) = PLACEHOLDER.split_at(9);
        sender.send_data(Bytes::from(one)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let _ = sender.send_data(Bytes::from(two)).await;
        drop(sender);
        let answer = answer.await.unwrap();
        assert!(!matches!(answer, Ok(StatusCode::OK)), "{answer:?}");
        let outcome = fence.log.outcome(0).await;
        assert_eq!(outcome.findings, [MISDIRECTED]);
        assert!(outcome.error.unwrap().starts_with(MISDIRECTED));
        let arrived = upstream.bodies.lock().unwrap().concat();
        assert!(!String::from_utf8_lossy(&arrived).contains(PLACEHOLDER));
    }
}

#[tokio::test]
async fn an_echo_in_base64_or_hex_is_replaced() {
    let (ca, upstream) = world(BOTH).await;
    let fence = Fence::of(&config(vec![keyed(grant(upstream.address, &ca))]));
    let body = body_of(fence.h1().await.send_request(get("/echo-coded")).await.unwrap()).await;
    assert_eq!(body.matches(PLACEHOLDER).count(), 2, "{body}");
    assert_eq!(fence.log.outcome(0).await.findings, ["secret_echo_redacted"]);
}

/// A token endpoint with a certificate of its own, which counts, and answers what it is told.
struct Issuer {
    address: std::net::SocketAddr,
    asked: Arc<std::sync::Mutex<Vec<(http::HeaderMap, String, String)>>>,
    count: Arc<AtomicUsize>,
}

type Answer = Arc<dyn Fn(usize) -> (u16, String) + Send + Sync>;

impl Issuer {
    async fn start(ca: &TestCa, name: &str, answer: Answer) -> Self {
        let acceptor = ca.acceptor(name, ONE);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, count) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let issuer = Self { address, asked: Arc::clone(&asked), count: Arc::clone(&count) };
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let (asked, count, answer) = (Arc::clone(&asked), Arc::clone(&count), Arc::clone(&answer));
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let (asked, nth) = (Arc::clone(&asked), count.fetch_add(1, Ordering::SeqCst));
                        let answer = Arc::clone(&answer);
                        async move {
                            let (parts, body) = request.into_parts();
                            let body = body.collect().await.unwrap().to_bytes();
                            let body = String::from_utf8(body.to_vec()).unwrap();
                            asked.lock().unwrap().push((parts.headers, parts.uri.to_string(), body));
                            tokio::time::sleep(Duration::from_millis(50)).await;
                            let (status, body) = answer(nth);
                            let response = http::Response::builder().status(status).body(text(body)).unwrap();
                            Ok::<_, std::convert::Infallible>(response)
                        }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        issuer
    }

    fn endpoint(&self, ca: &TestCa, name: &str, path: &str) -> Endpoint {
        Endpoint {
            host: name.parse().unwrap(),
            port: 443,
            path: path.into(),
            connect_to: Some(self.address),
            ca_pem: Some(ca.pem.clone()),
            allow_private: false,
        }
    }
}

const LOGIN: &str = "login.example.org";

fn oauth2(endpoint: Endpoint, grant: Oauth2Grant) -> Place {
    Place::Oauth2(Oauth2 {
        endpoint,
        client_id: "client".into(),
        scopes: vec!["read".into(), "write".into()],
        grant,
        audience: Some("https://api".into()),
        client_auth: ClientAuth::Basic,
    })
}

#[tokio::test]
async fn an_access_token_is_got_once_for_many_calls_and_masked() {
    let (ca, upstream) = world(BOTH).await;
    let answer: Answer = Arc::new(|nth| {
        (
            200,
            format!(
                "{{\"access_token\":\"tok-{nth}-0123456789abcdef\",\"token_type\":\"Bearer\",\"expires_in\":3600}}"
            ),
        )
    });
    let issuer = Issuer::start(&ca, LOGIN, answer).await;
    let place = oauth2(issuer.endpoint(&ca, LOGIN, "/token"), Oauth2Grant::ClientCredentials);
    let fence = Fence::of(&at(&upstream, &ca, place, "client-secret-1"));
    let client = fence.h2().await;
    let calls = (0..20).map(|_| {
        let mut client = client.clone();
        async move {
            let request = Request::get(format!("https://{HOST}/echo-secret")).body(text("")).unwrap();
            body_of(client.send_request(request).await.unwrap()).await
        }
    });
    let bodies = futures_util::future::join_all(calls).await;
    assert!(bodies.iter().all(|body| body.contains(PLACEHOLDER) && !body.contains("tok-0")), "{bodies:?}");
    assert_eq!(issuer.count.load(Ordering::SeqCst), 1, "one request for all");
    assert!(upstream.heads().iter().all(|head| head.2["authorization"] == "Bearer tok-0-0123456789abcdef"));
    let (headers, path, body) = issuer.asked.lock().unwrap()[0].clone();
    assert_eq!(path, "/token");
    assert_eq!(headers["authorization"], format!("Basic {}", STANDARD.encode("client:client-secret-1")).as_str());
    assert_eq!(body, "grant_type=client_credentials&scope=read%20write&audience=https%3A%2F%2Fapi");
    let own: Vec<_> = fence.log.intents().into_iter().filter(|i| i.reason == "credential_token").collect();
    assert_eq!(own.len(), 1);
    assert_eq!((own[0].host.as_str(), own[0].path.as_deref()), (LOGIN, Some("/token")));
    assert_eq!(own[0].credential.as_deref(), Some("openai"));
    let log = format!("{:?}", fence.log.events.lock().unwrap());
    assert!(!log.contains("tok-0") && !log.contains("client-secret-1"));
}

#[tokio::test]
async fn a_refresh_token_that_is_replaced_is_used_and_tokens_are_renewed() {
    let (ca, upstream) = world(ONE).await;
    let answer: Answer = Arc::new(|nth| {
        (200, format!("{{\"access_token\":\"tok-{nth}\",\"expires_in\":\"1\",\"refresh_token\":\"refresh-{nth}\"}}"))
    });
    let issuer = Issuer::start(&ca, LOGIN, answer).await;
    let place = oauth2(issuer.endpoint(&ca, LOGIN, "/token"), Oauth2Grant::RefreshToken);
    let secret = "{\"refresh_token\":\"first\",\"client_secret\":\"s\"}";
    let fence = Fence::of(&at(&upstream, &ca, place, secret));
    for nth in 0..2 {
        assert_eq!(status(&fence, get("/x")).await, StatusCode::OK);
        assert_eq!(upstream.heads()[nth].2["authorization"], format!("Bearer tok-{nth}").as_str());
        tokio::time::sleep(Duration::from_millis(1050)).await;
    }
    let asked = issuer.asked.lock().unwrap();
    assert!(asked[0].2.starts_with("grant_type=refresh_token&refresh_token=first&"), "{}", asked[0].2);
    assert!(asked[1].2.starts_with("grant_type=refresh_token&refresh_token=refresh-0&"), "{}", asked[1].2);
}

#[tokio::test]
async fn a_call_without_its_token_is_not_made() {
    let (ca, upstream) = world(ONE).await;
    let answers: [(u16, &str, &str); 5] = [
        (
            401,
            "{\"error\":\"invalid_client\",\"error_description\":\"client-secret-1\"}",
            "answered 401, `invalid_client`",
        ),
        (500, "client-secret-1", "answered 500"),
        (200, "<html>", "not the JSON of a token"),
        (200, "{\"access_token\":\"a b\"}", "characters that none may hold"),
        (200, "{\"access_token\":\"x\",\"token_type\":\"mac\"}", "not a bearer token"),
    ];
    for (code, body, want) in answers {
        let issuer = Issuer::start(&ca, LOGIN, Arc::new(move |_| (code, body.to_owned()))).await;
        let place = oauth2(issuer.endpoint(&ca, LOGIN, "/token"), Oauth2Grant::ClientCredentials);
        let fence = Fence::of(&at(&upstream, &ca, place, "client-secret-1"));
        for _ in 0..3 {
            assert_eq!(status(&fence, get("/x")).await, StatusCode::BAD_GATEWAY);
        }
        assert_eq!(issuer.count.load(Ordering::SeqCst), 1, "a failure is an answer for a while");
        let outcomes = wait(|| Some(fence.log.outcomes()).filter(|o| o.len() == 4), || "outcomes".into()).await;
        for outcome in outcomes {
            let error = outcome.error.unwrap();
            assert!(error.starts_with("token_failed: ") && error.contains(want), "{error}");
            assert!(!error.contains("client-secret-1"));
        }
    }
    assert!(upstream.heads().is_empty());
}

#[tokio::test]
async fn a_token_endpoint_at_a_private_address_is_not_dialled() {
    let (ca, upstream) = world(ONE).await;
    for allow_private in [false, true] {
        let answer: Answer = Arc::new(|_| (200, "{\"access_token\":\"tok\",\"expires_in\":60}".to_owned()));
        let issuer = Issuer::start(&ca, "localhost", answer).await;
        let mut endpoint = issuer.endpoint(&ca, "localhost", "/token");
        (endpoint.connect_to, endpoint.port) = (None, issuer.address.port());
        endpoint.allow_private = allow_private;
        let fence = Fence::of(&at(&upstream, &ca, oauth2(endpoint, Oauth2Grant::ClientCredentials), "s"));
        let status = status(&fence, get("/x")).await;
        if allow_private {
            assert_eq!(status, StatusCode::OK, "with the barrier off it is dialled");
        } else {
            assert_eq!(status, StatusCode::BAD_GATEWAY);
            assert_eq!(issuer.count.load(Ordering::SeqCst), 0);
            assert!(fence.log.outcome(0).await.error.unwrap().contains("private_address"));
        }
    }
}

/// A key made for the test, its PEM, and what its signatures are checked with.
fn role(nth: usize, lives: i64) -> String {
    let ends = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(lives);
    format!(
        "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser>\
         <Arn>arn:aws:sts::1:assumed-role/agent/x</Arn></AssumedRoleUser><Credentials>\
         <AccessKeyId>ASIATEMPORARY{nth}</AccessKeyId><SecretAccessKey>temporary/secret+{nth}</SecretAccessKey>\
         <SessionToken>temporary/session+token{nth}==</SessionToken><Expiration>{}</Expiration></Credentials>\
         </AssumeRoleResult></AssumeRoleResponse>",
        ends.strftime("%Y-%m-%dT%H:%M:%SZ")
    )
}

fn assumed(endpoint: Endpoint) -> Place {
    Place::Sigv4(Sigv4 {
        region: "eu-central-1".into(),
        service: "dynamodb".into(),
        access_key_id: Some("AKIALONGLIVED".into()),
        assume_role: Some(AssumeRole {
            endpoint,
            role_arn: "arn:aws:iam::1:role/agent".into(),
            external_id: Some("ours:1".into()),
            session_name: "ringfence".into(),
        }),
    })
}

/// The signature that AWS would hold against the one that came, of a request by POST whose headers are all signed.
fn signature(headers: &http::HeaderMap, path: &str, body: &str, secret: &str, scope: &str) -> String {
    use aws_lc_rs::{digest, hmac};
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let sha = |text: &str| hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    let said = headers["authorization"].to_str().unwrap();
    let names = said.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
    let lines: String = names.split(';').map(|n| format!("{n}:{}\n", headers[n].to_str().unwrap())).collect();
    let canonical = format!("POST\n{path}\n\n{lines}\n{names}\n{}", sha(body));
    let date = headers["x-amz-date"].to_str().unwrap();
    let day = &date[..8];
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{day}/{scope}/aws4_request\n{}", sha(&canonical));
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day].into_iter().chain(scope.split('/')).chain(["aws4_request", text.as_str()]) {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    hex(&key)
}

const STS: &str = "sts.eu-central-1.amazonaws.com";

#[tokio::test]
async fn a_role_of_aws_is_assumed_once_for_many_calls_and_its_keys_sign_them() {
    let (ca, upstream) = world(ONE).await;
    let issuer = Issuer::start(&ca, STS, Arc::new(|nth| (200, role(nth, 3600)))).await;
    let config = at(&upstream, &ca, assumed(issuer.endpoint(&ca, STS, "/")), "long/lived+secret");
    let fence = Fence::of(&config);
    let calls = (0..8).map(|_| status(&fence, typed("/table", "application/json", "{}")));
    assert!(futures_util::future::join_all(calls).await.iter().all(|status| *status == StatusCode::OK));
    assert_eq!(issuer.count.load(Ordering::SeqCst), 1);

    let (headers, path, body) = issuer.asked.lock().unwrap()[0].clone();
    assert_eq!((path.as_str(), &headers["accept"]), ("/", &http::HeaderValue::from_static("text/xml")));
    for part in
        ["Action=AssumeRole&Version=2011-06-15", "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fagent", "ExternalId=ours%3A1"]
    {
        assert!(body.contains(part), "{body}");
    }
    let said = headers["authorization"].to_str().unwrap();
    assert!(said.contains("Credential=AKIALONGLIVED/"), "{said}");
    assert!(said.ends_with(&signature(&headers, "/", &body, "long/lived+secret", "eu-central-1/sts")), "{said}");

    for (_, _, headers, _) in upstream.heads() {
        assert_eq!(headers["x-amz-security-token"], "temporary/session+token0==");
        let said = headers["authorization"].to_str().unwrap();
        assert!(said.contains("Credential=ASIATEMPORARY0/"), "{said}");
        let want = signature(&headers, "/table", "{}", "temporary/secret+0", "eu-central-1/dynamodb");
        assert!(said.ends_with(&want), "{said}");
    }
    assert!(fence.log.intents().iter().any(|i| i.reason == "credential_token"));
    let log = format!("{:?}", fence.log.events.lock().unwrap());
    assert!(!log.contains("temporary") && !log.contains("long/lived"), "{log}");
}

#[tokio::test]
async fn keys_of_a_role_are_renewed_before_they_end_and_a_call_without_them_is_not_made() {
    let (ca, upstream) = world(ONE).await;
    let answer: Answer = Arc::new(|nth| match nth {
        // Beyond its early share a life of two seconds has little left.
        0 | 1 => (200, role(nth, 2)),
        2 => {
            (403, "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>".into())
        }
        3 => (200, "<Credentials><AccessKeyId>A</AccessKeyId></Credentials>".into()),
        _ => (200, role(nth, 3600).replace("<SessionToken>", "<SessionToken>&amp;")),
    });
    let issuer = Issuer::start(&ca, STS, answer).await;
    let fence = Fence::of(&at(&upstream, &ca, assumed(issuer.endpoint(&ca, STS, "/")), "long/lived+secret"));
    let call = async || status(&fence, typed("/table", "application/json", "{}")).await;
    for nth in 0..2 {
        assert_eq!(call().await, StatusCode::OK);
        assert_eq!(upstream.heads()[nth].2["x-amz-security-token"], format!("temporary/session+token{nth}==").as_str());
        tokio::time::sleep(Duration::from_millis(2100)).await;
    }
    for why in ["the endpoint answered 403, `AccessDenied`", "not the XML", "not the XML"] {
        assert_eq!(call().await, StatusCode::BAD_GATEWAY);
        let failed = || fence.log.outcomes().iter().any(|o| o.error.as_ref().is_some_and(|e| e.contains(why)));
        wait(|| failed().then_some(()), || format!("{:?}", fence.log.outcomes())).await;
        tokio::time::sleep(Duration::from_millis(2100)).await;
    }
    assert_eq!((upstream.heads().len(), issuer.count.load(Ordering::SeqCst)), (2, 5));
}

fn rsa() -> (String, Vec<u8>) {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::signature::KeyPair;
    let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
    (pem, key.public_key().as_ref().to_vec())
}

/// The claims of a token whose signature holds.
fn claims(jwt: &str, public: &[u8]) -> serde_json::Value {
    let (signed, signature) = jwt.rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public).verify(signed.as_bytes(), &signature).unwrap();
    let head: serde_json::Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split('.').next().unwrap()).unwrap()).unwrap();
    assert_eq!(head["alg"], "RS256");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_google_service_account_signs_for_its_token() {
    let (ca, upstream) = world(BOTH).await;
    let answer: Answer = Arc::new(|_| (200, "{\"access_token\":\"ya29.real-token-1\",\"expires_in\":3599}".to_owned()));
    let issuer = Issuer::start(&ca, LOGIN, answer).await;
    let (pem, public) = rsa();
    let secret = serde_json::json!({"client_email": "a@p.iam", "private_key": pem, "private_key_id": "k1"}).to_string();
    let place = Place::GoogleServiceAccount(GoogleServiceAccount {
        endpoint: issuer.endpoint(&ca, LOGIN, "/token"),
        scopes: vec!["https://www.googleapis.com/auth/cloud-platform".into()],
        subject: None,
    });
    let fence = Fence::of(&at(&upstream, &ca, place, &secret));
    assert_eq!(status(&fence, get("/x")).await, StatusCode::OK);
    assert_eq!(upstream.heads()[0].2["authorization"], "Bearer ya29.real-token-1");
    let body = issuer.asked.lock().unwrap()[0].2.clone();
    let jwt = body.strip_prefix("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=").unwrap();
    let claims = claims(jwt, &public);
    assert_eq!(claims["iss"], "a@p.iam");
    assert_eq!(claims["aud"], format!("https://{LOGIN}/token"));
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
}

#[tokio::test]
async fn a_github_app_serves_the_api_and_git() {
    let (ca, upstream) = world(BOTH).await;
    let answer: Answer = Arc::new(|_| {
        let at = jiff::Timestamp::now() + Duration::from_secs(3600);
        (201, format!("{{\"token\":\"ghs_real0123456789\",\"expires_at\":\"{at:.0}\"}}"))
    });
    let issuer = Issuer::start(&ca, LOGIN, answer).await;
    let (pem, public) = rsa();
    let place = Place::GithubApp(GithubApp {
        api: issuer.endpoint(&ca, LOGIN, "/api/v3/"),
        app_id: "123".into(),
        installation_id: "456".into(),
    });
    let fence = Fence::of(&at(&upstream, &ca, place, &pem));
    for path in ["/repos/o/r", "/o/r.git/info/refs?service=git-upload-pack"] {
        assert_eq!(status(&fence, get(path)).await, StatusCode::OK);
    }
    let heads = upstream.heads();
    assert_eq!(heads[0].2["authorization"], "Bearer ghs_real0123456789");
    let basic = format!("Basic {}", STANDARD.encode("x-access-token:ghs_real0123456789"));
    assert_eq!(heads[1].2["authorization"], basic.as_str());
    let (headers, path, _) = issuer.asked.lock().unwrap()[0].clone();
    assert_eq!(path, "/api/v3/app/installations/456/access_tokens");
    let jwt = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
    assert_eq!(claims(&jwt, &public)["iss"], "123");
    assert_eq!(issuer.count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_secret_that_is_not_what_its_place_needs_opens_no_gate() {
    let (ca, upstream) = world(ONE).await;
    let endpoint = Endpoint {
        host: LOGIN.parse().unwrap(),
        port: 443,
        path: "/".into(),
        connect_to: None,
        ca_pem: Some(ca.pem.clone()),
        allow_private: false,
    };
    let places = [
        Place::GithubApp(GithubApp { api: endpoint.clone(), app_id: "1".into(), installation_id: "2".into() }),
        Place::GoogleServiceAccount(GoogleServiceAccount { endpoint, scopes: vec!["s".into()], subject: None }),
        Place::Sigv4(Sigv4 { region: "r".into(), service: "s3".into(), access_key_id: None, assume_role: None }),
        Place::Basic { template: "{}".into() },
    ];
    for place in places {
        let config = at(&upstream, &ca, place, "not-it");
        let log: Arc<dyn ringfence_audit::Record> = Arc::new(Log::default());
        let error = ringfence_gate::Gate::open(&config, log).err().unwrap().to_string();
        assert!(error.starts_with("the secret of credential `openai` cannot be put into a call: "), "{error}");
        assert!(!error.contains("not-it"));
    }
}
