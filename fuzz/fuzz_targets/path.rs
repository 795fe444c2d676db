//! Request paths.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_policy::path::normalise;

fuzz_target!(|raw: &str| {
    if let Ok(once) = normalise(raw) {
        assert_eq!(normalise(&once).as_ref(), Ok(&once));
        assert!(once.starts_with('/') && !once.contains("//") && !once.split('/').any(|s| s == "." || s == ".."));
    }
});
