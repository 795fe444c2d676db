//! Streams that an upstream sends: events, lines, AWS messages. The first byte says how they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::eventstream::EventStream;
use ringfence_inspect::ndjson::Ndjson;
use ringfence_inspect::sse::{Sse, encode};

const LIMIT: usize = 256;

fuzz_target!(|bytes: &[u8]| {
    let Some((size, stream)) = bytes.split_first() else { return };
    let size = usize::from(*size).max(1);
    assert_eq!(events(stream, size), events(stream, stream.len().max(1)), "cuts matter");
    assert_eq!(lines(stream, size), lines(stream, stream.len().max(1)), "cuts matter");
    assert_eq!(messages(stream, size), messages(stream, stream.len().max(1)), "cuts matter");
});

fn events(stream: &[u8], size: usize) -> Vec<(String, Vec<u8>)> {
    let (mut sse, mut raw, mut said) = (Sse::new(LIMIT), Vec::new(), Vec::new());
    for mut chunk in stream.chunks(size) {
        while let Some(piece) = sse.next(&mut chunk) {
            assert_eq!(piece.at, raw.len() as u64);
            raw.extend_from_slice(piece.raw);
            said.extend(piece.event.map(|event| (event.name.into_owned(), event.data.into_owned())));
        }
        assert!(sse.held() <= LIMIT);
    }
    raw.extend_from_slice(sse.finish().map(|piece| piece.raw).unwrap_or_default());
    assert_eq!(raw, stream, "bytes are lost");
    for (name, data) in &said {
        let written = encode(Some(name), None, data);
        let (mut sse, mut rest) = (Sse::new(1 << 16), &written[..]);
        let event = sse.next(&mut rest).and_then(|piece| piece.event).expect("what is written is read");
        // Names with line breaks cannot be: none was read.
        assert_eq!((&*event.name, &*event.data), (name.as_str(), &data[..]));
    }
    said
}

fn lines(stream: &[u8], size: usize) -> Vec<Vec<u8>> {
    let (mut ndjson, mut raw, mut said) = (Ndjson::new(LIMIT), Vec::new(), Vec::new());
    for mut chunk in stream.chunks(size) {
        while let Some(line) = ndjson.next(&mut chunk) {
            raw.extend_from_slice(line.raw);
            said.extend(line.text.map(<[u8]>::to_vec));
        }
    }
    if let Some(line) = ndjson.finish() {
        raw.extend_from_slice(line.raw);
        said.extend(line.text.map(<[u8]>::to_vec));
    }
    assert_eq!(raw, stream, "bytes are lost");
    said
}

fn messages(stream: &[u8], size: usize) -> Result<Vec<Vec<u8>>, Vec<Vec<u8>>> {
    let (mut frames, mut said) = (EventStream::new(1 << 16), Vec::new());
    for mut chunk in stream.chunks(size) {
        loop {
            match frames.next(&mut chunk) {
                Ok(Some(message)) => said.push(message.raw.to_vec()),
                Ok(None) => break,
                Err(_) => return Err(said),
            }
        }
    }
    Ok(said)
}
