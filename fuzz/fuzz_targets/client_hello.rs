//! The first bytes that an agent sends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_gate::identify::{Speech, speech};

fuzz_target!(|bytes: &[u8]| {
    let whole = speech(bytes);
    for cut in 0..bytes.len().min(512) {
        match speech(&bytes[..cut]) {
            Speech::More => {}
            early => assert_eq!(early, whole, "known after {cut} bytes"),
        }
    }
});
