//! What RFC 9113 wants of who is spoken to in HTTP/2, section by section, said to the gate frame by frame. Where it is
//! borne with what the standard would end, the case says so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::sync::Arc;

use support::frames::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Outcome, PADDED, PING, PREFACE,
    PRIORITISED, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire, frame, sized,
};
use support::*;

use Outcome::{Away, Closed, Reset, Status};
use frames::code::{COMPRESSION_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, NO_ERROR, PROTOCOL_ERROR, STREAM_CLOSED};

const TWO: &[&[u8]] = &[b"h2"];

/// What is said, after preface and settings, and what may come of it.
struct Case(&'static str, Vec<u8>, Vec<Outcome>);

fn get() -> Vec<u8> {
    frames::request("GET", "/", &[])
}

fn head(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, block)
}

/// A request that is answered at once.
fn asked(stream: u32) -> Vec<u8> {
    head(stream, END_STREAM, &get())
}

/// A request whose body is to come.
fn open(stream: u32) -> Vec<u8> {
    head(stream, 0, &frames::request("POST", "/", &[]))
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn of_frames() -> Vec<Case> {
    // A size that a kind of frame does not have ends the connection with the general code.
    let (connection, size) = (vec![Away(PROTOCOL_ERROR)], vec![Away(FRAME_SIZE_ERROR), Away(PROTOCOL_ERROR)]);
    let stream = vec![Reset(PROTOCOL_ERROR), Away(PROTOCOL_ERROR)];
    let fine = vec![Status(200)];
    let with = |first: Vec<u8>, then: Vec<u8>| [first, then].concat();
    vec![
        Case("4.1 a frame of an unknown kind is ignored", with(frame(0xbe, 0xff, 0, b"?"), asked(1)), fine.clone()),
        Case("4.1 the reserved bit is ignored", head(1 | 1 << 31, END_STREAM, &get()), fine.clone()),
        Case("4.1 undefined flags are ignored", with(frame(PING, 0xfe, 0, &[0; 8]), asked(1)), fine.clone()),
        Case("4.2 data beyond the largest frame", with(open(1), frame(DATA, 0, 1, &[0; 16_385])), size.clone()),
        Case("4.2 headers beyond the largest frame", frame(HEADERS, END_HEADERS, 1, &[0; 16_385]), size.clone()),
        Case(
            "4.3 a header block that cannot be decoded",
            head(1, END_STREAM, &[0xff; 8]),
            vec![Away(COMPRESSION_ERROR), Away(PROTOCOL_ERROR)],
        ),
        Case(
            "4.3 an index of nothing",
            head(1, END_STREAM, &[0xbe]),
            vec![Away(COMPRESSION_ERROR), Away(PROTOCOL_ERROR)],
        ),
        Case(
            "4.3 a table beyond its bound",
            head(1, END_STREAM, &[&[0x3f, 0xff, 0xff, 0x7f][..], &get()].concat()),
            vec![Away(COMPRESSION_ERROR), Away(PROTOCOL_ERROR)],
        ),
        Case(
            "4.3 another stream's frame in a header block",
            [frame(HEADERS, 0, 1, &get()), asked(3)].concat(),
            connection.clone(),
        ),
        Case(
            "4.3 a ping in a header block",
            with(frame(HEADERS, 0, 1, &get()), frame(PING, 0, 0, &[0; 8])),
            connection.clone(),
        ),
        Case("5.1 data on an idle stream", frame(DATA, 0, 1, b"x"), connection.clone()),
        Case("5.1 a reset of an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), connection.clone()),
        Case("5.1 a window of an idle stream", window(1, 1), connection.clone()),
        Case(
            "5.1 the rest of headers on an idle stream",
            frame(CONTINUATION, END_HEADERS, 1, &get()),
            connection.clone(),
        ),
        Case(
            "5.1 data on a half-closed stream",
            with(asked(1), frame(DATA, 0, 1, b"x")),
            vec![Reset(STREAM_CLOSED), Away(STREAM_CLOSED), Away(PROTOCOL_ERROR)],
        ),
        Case(
            "5.1 headers on a half-closed stream",
            with(asked(1), asked(1)),
            vec![Reset(STREAM_CLOSED), Away(STREAM_CLOSED), Away(PROTOCOL_ERROR)],
        ),
        Case(
            "5.1 the rest of headers on a half-closed stream",
            with(asked(1), frame(CONTINUATION, END_HEADERS, 1, &get())),
            vec![Away(STREAM_CLOSED), Away(PROTOCOL_ERROR)],
        ),
        // What follows a reset is ended or ignored; the next request is answered.
        Case(
            "5.1 data after a reset",
            [open(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), frame(DATA, 0, 1, b"x"), asked(3)].concat(),
            vec![Status(200), Reset(STREAM_CLOSED), Away(STREAM_CLOSED), Away(PROTOCOL_ERROR)],
        ),
        Case(
            "5.1 headers after a reset",
            [open(1), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), asked(1), asked(3)].concat(),
            vec![Status(200), Reset(STREAM_CLOSED), Away(STREAM_CLOSED), Away(PROTOCOL_ERROR)],
        ),
        Case("5.1.1 an even stream", asked(2), connection.clone()),
        Case("5.1.1 an earlier stream", with(open(5), asked(3)), connection.clone()),
        Case(
            "5.3 a stream that depends on itself",
            frame(HEADERS, END_HEADERS | END_STREAM | PRIORITISED, 1, &[&[0, 0, 0, 1, 9][..], &get()].concat()),
            stream.clone(),
        ),
        Case(
            "5.3 a priority that depends on itself",
            with(frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 9]), asked(3)),
            vec![Reset(PROTOCOL_ERROR), Away(PROTOCOL_ERROR)],
        ),
        Case(
            "5.5 an unknown frame in a header block",
            with(frame(HEADERS, 0, 1, &get()), frame(0xbe, 0, 1, b"?")),
            connection.clone(),
        ),
        Case("6.1 data on no stream", frame(DATA, 0, 0, b"x"), connection.clone()),
        Case("6.1 padding beyond the data", with(open(1), frame(DATA, PADDED, 1, &[9, b'x'])), connection.clone()),
        Case(
            "6.1 padding without its length",
            with(open(1), frame(DATA, PADDED, 1, &[])),
            vec![Away(PROTOCOL_ERROR), Away(FRAME_SIZE_ERROR)],
        ),
        Case("6.2 headers on no stream", asked(0), connection.clone()),
        Case(
            "6.2 padding beyond the headers",
            frame(HEADERS, END_HEADERS | PADDED, 1, &[0xff, 0x82]),
            connection.clone(),
        ),
        Case("6.3 a priority of no stream", frame(PRIORITY, 0, 0, &[0, 0, 0, 3, 7]), connection.clone()),
        Case("6.3 a priority of another size", with(frame(PRIORITY, 0, 1, &[0; 4]), asked(3)), size.clone()),
        Case("6.4 a reset of no stream", frame(RST_STREAM, 0, 0, &[0; 4]), connection.clone()),
        Case("6.4 a reset of another size", with(open(1), frame(RST_STREAM, 0, 1, &[0; 3])), size.clone()),
        Case("6.5 settings of a stream", frame(SETTINGS, 0, 1, &[]), connection.clone()),
        Case("6.5 settings of another size", frame(SETTINGS, 0, 0, &[0; 5]), size.clone()),
        Case("6.5 an acknowledgement that says something", frame(SETTINGS, ACK, 0, &[0; 6]), size.clone()),
        Case("6.5.2 a push of neither kind", setting(2, 2), connection.clone()),
        Case(
            "6.5.2 a first window beyond its bound",
            setting(4, 1 << 31),
            vec![Away(FLOW_CONTROL_ERROR), Away(PROTOCOL_ERROR)],
        ),
        Case("6.5.2 frames below the least size", setting(5, 16_383), connection.clone()),
        Case("6.5.2 frames beyond the largest size", setting(5, 1 << 24), connection.clone()),
        Case("6.5.2 a setting that nobody knows", with(setting(0xbeef, 7), asked(1)), fine.clone()),
        Case(
            "6.6 a push of a client",
            with(open(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &get()].concat())),
            connection.clone(),
        ),
        Case("6.7 a ping on a stream", frame(PING, 0, 1, &[0; 8]), connection.clone()),
        Case("6.7 a ping of another size", frame(PING, 0, 0, &[0; 7]), size.clone()),
        Case("6.8 an end of a stream's own", frame(GOAWAY, 0, 1, &[0; 8]), connection.clone()),
        Case("6.8 an end of no size", frame(GOAWAY, 0, 0, &[0; 7]), size.clone()),
        Case("6.9 a window that grows by none", window(0, 0), connection.clone()),
        Case("6.9 a stream's window that grows by none", with(open(1), window(1, 0)), stream.clone()),
        Case("6.9 a window of another size", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), size.clone()),
        Case("6.9.1 a window beyond its bound", window(0, 0x7fff_ffff), vec![Away(FLOW_CONTROL_ERROR)]),
        Case(
            "6.9.1 a stream's window beyond its bound",
            with(open(1), window(1, 0x7fff_ffff)),
            vec![Reset(FLOW_CONTROL_ERROR), Away(FLOW_CONTROL_ERROR)],
        ),
        Case(
            "6.9.2 settings that take a window beyond its bound",
            [open(1), window(1, 0x7fff_0000), setting(4, 0x7fff_ffff)].concat(),
            vec![Away(FLOW_CONTROL_ERROR)],
        ),
        Case("6.10 the rest of nothing", frame(CONTINUATION, END_HEADERS, 0, &get()), connection.clone()),
        Case(
            "6.10 the rest behind the end",
            with(asked(1), frame(CONTINUATION, END_HEADERS, 1, &get())),
            connection.clone(),
        ),
        Case(
            "6.10 the rest of another stream",
            with(frame(HEADERS, 0, 1, &get()), frame(CONTINUATION, END_HEADERS, 3, &[])),
            connection.clone(),
        ),
        Case(
            "6.10 the rest in pieces",
            with(
                frame(HEADERS, END_STREAM, 1, &get()[..9]),
                with(frame(CONTINUATION, 0, 1, &[]), frame(CONTINUATION, END_HEADERS, 1, &get()[9..])),
            ),
            fine.clone(),
        ),
        Case(
            "7 an end with a code that nobody knows",
            with(open(1), with(frame(RST_STREAM, 0, 1, &[0xff; 4]), asked(3))),
            fine,
        ),
    ]
}

fn of_messages() -> Vec<Case> {
    let stream = || vec![Reset(PROTOCOL_ERROR), Away(PROTOCOL_ERROR)];
    let malformed = |block: Vec<u8>| head(1, END_STREAM, &block);
    let block = |fields: &[(&[u8], &[u8])]| frames::block(fields);
    let (method, scheme, path) =
        ((&b":method"[..], &b"GET"[..]), (&b":scheme"[..], &b"https"[..]), (&b":path"[..], &b"/"[..]));
    let authority = (&b":authority"[..], HOST.as_bytes());
    let more = |fields: &[(&[u8], &[u8])]| malformed(frames::request("GET", "/", fields));
    vec![
        Case("8.1 a second head", [open(1), open(1)].concat(), stream()),
        Case("8.1 trailers", [open(1), head(1, END_STREAM, &block(&[(b"x", b"y")]))].concat(), vec![Status(200)]),
        // It would be malformed; trailers are dropped, and it with them.
        Case(
            "8.1 a field of the head in trailers",
            [open(1), head(1, END_STREAM, &block(&[method]))].concat(),
            vec![Status(200)],
        ),
        Case("8.1.1 a length beyond the body", more(&[(b"content-length", b"1")]), stream()),
        Case(
            "8.1.1 a length below the body",
            [
                head(1, 0, &frames::request("POST", "/", &[(b"content-length", b"1")])),
                frame(DATA, END_STREAM, 1, b"more"),
            ]
            .concat(),
            stream(),
        ),
        Case("8.1.1 two lengths", more(&[(b"content-length", b"0"), (b"content-length", b"1")]), stream()),
        Case("8.2.1 capitals in a name", more(&[(b"X", b"y")]), stream()),
        Case("8.2.1 a space in a name", more(&[(b"x y", b"z")]), stream()),
        Case("8.2.1 a colon in a name", more(&[(b"x:y", b"z")]), stream()),
        Case("8.2.1 LF in a value", more(&[(b"x", b"y\nz")]), stream()),
        Case("8.2.1 NUL in a value", more(&[(b"x", b"y\0")]), stream()),
        // It would be malformed; it is read without, as in HTTP/1.1.
        Case("8.2.1 a space before a value", more(&[(b"x", b" y")]), vec![Reset(PROTOCOL_ERROR), Status(200)]),
        Case("8.2.2 connection", more(&[(b"connection", b"close")]), stream()),
        Case("8.2.2 keep-alive", more(&[(b"keep-alive", b"5")]), stream()),
        Case("8.2.2 proxy-connection", more(&[(b"proxy-connection", b"close")]), stream()),
        Case("8.2.2 transfer-encoding", more(&[(b"transfer-encoding", b"chunked")]), stream()),
        Case("8.2.2 upgrade", more(&[(b"upgrade", b"h2c")]), stream()),
        Case("8.2.2 te that is not trailers", more(&[(b"te", b"gzip")]), stream()),
        Case("8.2.2 te that is trailers", more(&[(b"te", b"trailers")]), vec![Status(200)]),
        Case("8.3 a field of the head that nobody knows", more(&[(b":x", b"y")]), stream()),
        Case("8.3 the status of an answer", more(&[(b":status", b"200")]), stream()),
        Case(
            "8.3 a field of the head behind others",
            malformed(block(&[method, scheme, authority, (b"x", b"y"), path])),
            stream(),
        ),
        Case("8.3.1 no method", malformed(block(&[scheme, authority, path])), stream()),
        Case("8.3.1 no scheme", malformed(block(&[method, authority, path])), stream()),
        Case("8.3.1 no path", malformed(block(&[method, scheme, authority])), stream()),
        Case("8.3.1 an empty path", malformed(block(&[method, scheme, authority, (b":path", b"")])), stream()),
        Case(
            "8.3.1 no authority and no host",
            malformed(block(&[method, scheme, path])),
            vec![Status(403), Reset(PROTOCOL_ERROR)],
        ),
        Case("8.3.1 two methods", malformed(block(&[method, method, scheme, authority, path])), stream()),
        Case("8.3.1 two schemes", malformed(block(&[method, scheme, scheme, authority, path])), stream()),
        Case("8.3.1 two authorities", malformed(block(&[method, scheme, authority, authority, path])), stream()),
        Case("8.3.1 two paths", malformed(block(&[method, scheme, authority, path, path])), stream()),
        Case(
            "8.5 CONNECT with a path",
            malformed(block(&[(b":method", b"CONNECT"), authority, path])),
            vec![Reset(PROTOCOL_ERROR), Status(403)],
        ),
        Case("8.5 CONNECT", malformed(block(&[(b":method", b"CONNECT"), authority])), vec![Status(403)]),
        Case(
            "RFC 8441 a protocol without CONNECT",
            malformed(block(&[method, (b":protocol", b"websocket"), scheme, authority, path])),
            vec![Reset(PROTOCOL_ERROR), Status(403)],
        ),
    ]
}

#[tokio::test]
async fn what_the_standard_ends_is_ended() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"http/1.1"]))).await;
    let fence = Arc::new(Fence::new(vec![grant(upstream.address, &ca)]));
    let to = fence.to_name(HOST, 443).await;
    let held = of_frames().into_iter().chain(of_messages()).map(|Case(name, bytes, wants)| {
        let fence = Arc::clone(&fence);
        async move {
            let mut wire = Wire::client(fence.tls(to, HOST, TWO).await.unwrap()).await;
            wire.say(&bytes).await;
            let mut all = Vec::new();
            // An answer that overtakes the end of its connection, or of a stream, is none.
            loop {
                let outcome = wire.outcome().await;
                all.push(outcome.clone());
                if wants.contains(&outcome) {
                    return;
                }
                assert!(matches!(outcome, Status(_) | Away(NO_ERROR)), "{name}: {all:?} and not {wants:?}");
            }
        }
    });
    all(held).await;
}

#[tokio::test]
async fn what_is_not_the_preface_is_no_connection() {
    let ca = TestCa::new();
    let fence = Fence::new(vec![grant("127.0.0.1:9".parse().unwrap(), &ca)]);
    let to = fence.to_name(HOST, 443).await;
    let settings = frame(SETTINGS, 0, 0, &[]);
    for bytes in [
        [&PREFACE[..18], b"XX\r\n\r\n", &settings].concat(),
        [&b"GET / HTTP/1.1\r\nHost: api.example.org\r\n\r\n"[..]].concat(),
        settings.repeat(4),
        sized(0xff_ffff, SETTINGS, 0, 0, &[0; 100]),
    ] {
        let mut wire = Wire::raw(fence.tls(to, HOST, TWO).await.unwrap());
        wire.say(&bytes).await;
        let outcome = wire.outcome().await;
        assert!(matches!(outcome, Away(PROTOCOL_ERROR | FRAME_SIZE_ERROR) | Closed), "{bytes:x?}: {outcome:?}");
    }
}

/// RFC 9113 §3.4 wants settings first. Without them the defaults count, so nothing is to be gained.
#[tokio::test]
async fn a_connection_that_begins_without_settings_is_borne() {
    let ca = TestCa::new();
    let upstream = Upstream::start(Some(ca.acceptor(HOST, &[b"http/1.1"]))).await;
    let fence = Fence::new(vec![grant(upstream.address, &ca)]);
    let to = fence.to_name(HOST, 443).await;
    let mut wire = Wire::raw(fence.tls(to, HOST, TWO).await.unwrap());
    wire.say(&[PREFACE, &frame(PING, 0, 0, &[0; 8]), &asked(1)].concat()).await;
    assert_eq!(wire.outcome().await, Status(200));
}

#[tokio::test]
async fn what_is_asked_of_the_connection_is_answered() {
    let ca = TestCa::new();
    let fence = Fence::new(vec![grant("127.0.0.1:9".parse().unwrap(), &ca)]);
    let to = fence.to_name(HOST, 443).await;
    let mut wire = Wire::client(fence.tls(to, HOST, TWO).await.unwrap()).await;
    wire.say(&[frame(PING, ACK, 0, b"answered"), frame(PING, 0, 0, b"question")].concat()).await;
    let (mut acknowledged, mut streams) = (false, None);
    loop {
        let heard = wire.hear().await.unwrap();
        match (heard.kind, heard.flags & ACK) {
            (SETTINGS, ACK) => acknowledged = true,
            (SETTINGS, _) => {
                let values = heard.payload.chunks(6);
                streams =
                    values.filter(|s| s[..2] == [0, 3]).map(|s| u32::from_be_bytes(s[2..].try_into().unwrap())).next();
            }
            (PING, flags) => {
                assert_eq!((flags, &heard.payload[..]), (ACK, &b"question"[..]), "an answer is not answered");
                break;
            }
            _ => {}
        }
    }
    assert!(acknowledged);
    assert_eq!(streams, Some(128));
}
