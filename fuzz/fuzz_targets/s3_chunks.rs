//! Bodies in signed chunks, as an agent sends them to S3. However they are cut, the same goes on, and no length changes.
#![no_main]

use http::HeaderMap;
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use ringfence_gate::sigv4::chunks::{self, Chunks};
use ringfence_gate::sigv4::{Keys, Request, sign};
use ringfence_model::SecretText;
use ringfence_model::manifest::Sigv4;

fn chunks(payload: &str) -> Box<Chunks> {
    let place = Sigv4 { region: "r".into(), service: "s3".into(), access_key_id: Some("AKIA".into()) };
    let keys = Keys::read(&place, &SecretText::new("secret".into())).expect("the keys are right");
    let request = Request { method: "PUT", authority: "h", path: "/", query: None, payload };
    let signed = sign(&place, &keys, &request, &mut HeaderMap::new(), Timestamp::UNIX_EPOCH);
    signed.expect("the headers are right").expect("the payload is in chunks")
}

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (trailers, cut, body) = input;
    let payload = if trailers { chunks::WITH_TRAILER } else { chunks::SIGNED };
    let mut whole = chunks(payload);
    let Ok(sent) = whole.push(body) else { return };
    assert!(sent.len() <= body.len());
    assert!(whole.finish().is_err() || sent.len() == body.len());
    let mut parts = chunks(payload);
    let mut again = Vec::new();
    for part in body.chunks(usize::from(cut).max(1)) {
        again.extend_from_slice(&parts.push(part).expect("it is the same body"));
    }
    assert_eq!(sent, again);
    assert_eq!(whole.finish(), parts.finish());
});
