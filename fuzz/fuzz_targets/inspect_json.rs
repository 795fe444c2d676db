//! JSON that a gate decides by.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::json::{Limits, parse};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { bytes: 1 << 16, depth: 32, values: 4096 };
    if let Ok(value) = parse(bytes, &limits) {
        let (plain, canonical) = (value.to_bytes(), value.canonical());
        let again = parse(&plain, &limits).expect("what is written is read");
        assert_eq!(again, value);
        assert_eq!(again.canonical(), canonical);
        // A large float has the canonical form of an integer that is not read.
        if let Ok(read) = parse(&canonical, &limits) {
            assert_eq!(read.canonical(), canonical);
        }
        assert_eq!(value.clone().into_owned(), value);
    }
});
