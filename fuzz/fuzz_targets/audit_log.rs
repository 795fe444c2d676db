//! Bundles and checkpoints, as whoever can write to the disk may leave them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_audit::tiles::{bundle, unbundle};
use ringfence_audit::{Checkpoint, Verifier};

fuzz_target!(|bytes: &[u8]| {
    if let Some(entries) = unbundle(bytes) {
        assert_eq!(bundle(&entries), bytes);
    }
    let text = String::from_utf8_lossy(bytes);
    let verifier = Verifier { name: "ringfence.dev/audit".into(), public: [7; 32] };
    assert!(Checkpoint::open(&text, &verifier).is_err(), "nobody holds this key");
    if let Some(verifier) = Verifier::from_text(&text) {
        assert_eq!(Verifier::from_text(&verifier.to_text()), Some(verifier));
    }
});
