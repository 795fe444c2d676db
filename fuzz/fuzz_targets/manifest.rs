//! Manifests, which come with somebody else's source.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_model::{Manifest, Report};

fuzz_target!(|text: &str| {
    if let Err(error) = Manifest::parse(text, &|_| Err("it is not a readable file".into())) {
        let report = Report::from(error);
        assert!(!report.code.is_empty() && !report.message.contains('\n'), "{report}");
    }
});
