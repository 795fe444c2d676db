//! Bodies that are small and grow when they are decoded. The gate decodes what it searches for placeholders, so it would be
//! the one to burst.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use ringfence_audit::Outcome;
use ringfence_gate::Barriers;
use ringfence_model::manifest::Scheme;
use support::*;
use tokio::net::TcpStream;

/// One test at a time: one measures the memory of their process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What a bomb grows to.
const GROWN: usize = 32 << 20;

/// [`BROTLI_GROWN`] zeros in 54 bytes, by Google's encoder at its best.
const BROTLI: [u8; 54] = [
    0xcf, 0xff, 0xff, 0x7f, 0xf8, 0x27, 0x00, 0xe2, 0xb1, 0x40, 0x20, 0xf7, 0xfe, 0x9f, 0xff, 0xff, 0xff, 0xf0, 0x4f,
    0x00, 0xc4, 0x61, 0x01, 0x80, 0xee, 0xfd, 0x3f, 0xff, 0xff, 0xff, 0xe1, 0x9f, 0x00, 0x88, 0xc3, 0x22, 0x00, 0xdd,
    0xfb, 0x7f, 0xfe, 0xff, 0xff, 0xc3, 0x3f, 0x01, 0x10, 0x87, 0x05, 0x00, 0xba, 0xf7, 0xff, 0x03,
];

const BROTLI_GROWN: usize = 64 << 20;

/// Codings, and bodies in them that grow.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let zeros = vec![0; GROWN];
    let best = Compression::best();
    let mut gzip = GzEncoder::new(Vec::new(), best);
    gzip.write_all(&zeros).unwrap();
    let gzip = gzip.finish().unwrap();
    let mut zlib = ZlibEncoder::new(Vec::new(), best);
    zlib.write_all(&zeros).unwrap();
    let mut raw = DeflateEncoder::new(Vec::new(), best);
    raw.write_all(&zeros).unwrap();
    // Many members, each of which is small.
    let mut member = GzEncoder::new(Vec::new(), best);
    member.write_all(&zeros[..1 << 20]).unwrap();
    let members = member.finish().unwrap().repeat(GROWN >> 20);
    vec![
        ("br", BROTLI.to_vec()),
        ("deflate", zlib.finish().unwrap()),
        ("deflate", raw.finish().unwrap()),
        ("gzip", gzip.clone()),
        ("x-gzip", members),
        ("zstd", zstd::encode_all(&zeros[..], 3).unwrap()),
        // One inside the other; what decodes the outer alone sees a harmless one.
        ("gzip, gzip", {
            let mut twice = GzEncoder::new(Vec::new(), best);
            twice.write_all(&gzip).unwrap();
            twice.finish().unwrap()
        }),
        ("identity, gzip, br", gzip),
    ]
}

async fn send(fence: &Fence, coding: &str, pieces: Vec<Bytes>, whole: bool) -> Option<StatusCode> {
    let to = fence.to_name(HOST, 80).await;
    let mut client = h1_over(TcpStream::connect(to).await.unwrap()).await;
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let frames = pieces.into_iter().map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    let body = BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>())));
    let mut request = Request::post("/").header("host", HOST).header("content-encoding", coding);
    if whole {
        request = request.header("content-length", length);
    }
    client.send_request(request.body(body).unwrap()).await.ok().map(|response| response.status())
}

fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
}

#[tokio::test]
async fn bombs_burst_nowhere() {
    let _alone = ALONE.lock().await;
    let bombs = bombs();
    let before = peak();
    let upstream = Upstream::start(None).await;
    let mut granted = grant(upstream.address, &TestCa::new());
    (granted.scheme, granted.port, granted.ca_pem) = (Scheme::Http, 80, None);
    for barriers in [Barriers::default(), Barriers { misdirected_placeholders: false, ..Barriers::default() }] {
        let fence = Arc::new(Fence::with(&config(vec![granted.clone()]), barriers));
        let mut nth = 0;
        for (coding, bomb) in &bombs {
            for whole in [true, false] {
                let pieces: Vec<Bytes> = bomb.chunks(1000).map(Bytes::copy_from_slice).collect();
                let status = send(&fence, coding, pieces, whole).await;
                let intent = fence.log.intent(nth).await;
                if barriers.misdirected_placeholders {
                    assert_ne!(status, Some(StatusCode::OK), "{coding}, whole: {whole}");
                    if intent.decision == Outcome::Allow {
                        let outcome = fence.log.outcomes().last().cloned().unwrap();
                        assert_eq!(outcome.findings, ["body_encoded"], "{coding}, whole: {whole}: it is cut off");
                    } else {
                        assert_eq!((intent.reason.as_str(), status), ("body_encoded", Some(StatusCode::FORBIDDEN)));
                    }
                } else {
                    assert_eq!(status, Some(StatusCode::OK), "{coding}: with the barrier off it arrives");
                }
                nth += 1;
            }
        }
        if barriers.misdirected_placeholders {
            assert!(upstream.bodies.lock().unwrap().iter().all(Bytes::is_empty), "no bomb arrived whole");
        }
    }
    assert_eq!(upstream.bodies.lock().unwrap().iter().filter(|body| !body.is_empty()).count(), 2 * bombs.len());
    let grown = peak() - before;
    assert!(grown < 32, "{grown} MiB, where one bomb comes to {}", GROWN >> 20);
}

/// What each of them does to a decoder without bounds.
#[test]
fn without_bounds_a_bomb_bursts() {
    let _alone = ALONE.blocking_lock();
    let mut grown = Vec::new();
    let mut decoder = brotli_decompressor::Decompressor::new(&BROTLI[..], 4096);
    std::io::Read::read_to_end(&mut decoder, &mut grown).unwrap();
    assert_eq!(grown.len(), BROTLI_GROWN);
    let (_, zstd) = bombs().into_iter().find(|(coding, _)| *coding == "zstd").unwrap();
    assert_eq!(zstd::decode_all(&zstd[..]).unwrap().len(), GROWN);
    let (_, gzip) = bombs().into_iter().find(|(coding, _)| *coding == "gzip").unwrap();
    grown.clear();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&gzip[..]), &mut grown).unwrap();
    assert_eq!(grown.len(), GROWN);
}
