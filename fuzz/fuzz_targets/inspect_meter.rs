//! Answers of models. The first two bytes say how they come and how they are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::llm::{Framing, Meter, Metered, Request, Route};

fuzz_target!(|bytes: &[u8]| {
    let [framing, size, answer @ ..] = bytes else { return };
    let framing = match framing % 5 {
        0 => Framing::EventStream,
        1 => Framing::Json,
        2 => Framing::Messages,
        3 => Framing::Opaque,
        _ => Framing::Sse,
    };
    let metered = metered(framing, answer, usize::from(*size).max(1));
    if framing != Framing::Messages {
        assert_eq!(metered, self::metered(framing, answer, answer.len().max(1)), "cuts matter");
    }
    let usage = metered.usage;
    assert!(usage.cached <= usage.input && usage.cache_written <= usage.input && usage.reasoning <= usage.output);
    assert!(usage.cache_written_long <= usage.cache_written);
    assert!(metered.charge().output >= usage.output && metered.charge().input >= usage.input);
});

fn metered(framing: Framing, answer: &[u8], size: usize) -> Metered {
    let route = Route::of("POST", "/v1/chat/completions", None).ok().flatten().expect("a known path");
    let mut meter = Meter::new(&Request::bare(&route), framing);
    answer.chunks(size).for_each(|chunk| meter.push(chunk));
    meter.metered()
}
