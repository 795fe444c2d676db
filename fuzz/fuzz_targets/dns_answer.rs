//! The messages that an agent sends to port 53.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_gate::resolver::{Say, answer};

fuzz_target!(|bytes: &[u8]| {
    if let Some(answer) = answer(bytes, &mut |_| Say::Nothing) {
        assert!(answer.message.len() >= 12, "a header at least");
        // RFC 1035 §4.1.1: bytes 6 and 7 count the answers.
        assert_eq!(&answer.message[6..8], [0, 0], "nothing is said of what is not granted");
        assert!(answer.asked.is_none_or(|asked| !asked.granted));
    }
});
