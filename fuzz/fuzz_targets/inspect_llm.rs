//! Calls of models: a path in the first line, the body behind it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::json::Limits;
use ringfence_inspect::llm::edit::{ask_for_usage, bound_output, forbid_store};
use ringfence_inspect::llm::{Reason, Refusal, Request, Route};

fuzz_target!(|bytes: &[u8]| {
    let (line, body) = bytes.iter().position(|b| *b == b'\n').map_or((bytes, &b""[..]), |at| bytes.split_at(at));
    let Ok(line) = std::str::from_utf8(line) else { return };
    let (path, query) = line.split_once('?').map_or((line, None), |(path, query)| (path, Some(query)));
    let limits = Limits { bytes: 1 << 16, depth: 32, values: 4096 };
    for method in ["POST", "GET"] {
        let Ok(Some(route)) = Route::of(method, path, query) else { continue };
        let _ = Refusal { reason: Reason::NotGranted, call: "c" }.answer(route.shape);
        let _ = route.read(Some("multipart/form-data; boundary=x"), body, &limits);
        let Ok(reading) = route.read(None, body, &limits) else { continue };
        let Some(mut body) = reading.body else { continue };
        let sent = body.to_bytes();
        let again = route.read(None, &sent, &limits).expect("what is sent on is read");
        assert_eq!(again.request, reading.request, "what is sent on is read otherwise");
        ask_for_usage(&reading.request, &mut body);
        forbid_store(&reading.request, &mut body);
        if bound_output(&reading.request, &mut body, 100) {
            let bounded = Request::of(&route, &body).expect("what was changed is read");
            let most = bounded.max_output_tokens.expect("an answer is bounded");
            assert!(most <= 100 * bounded.requests, "an answer is not bounded");
            assert_eq!(bounded.models().collect::<Vec<_>>(), reading.request.models().collect::<Vec<_>>());
        }
    }
});
