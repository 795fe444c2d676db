//! Asks the package index that the host is configured with for what is past, and so does not change.
//!
//! Needs `uv` (on `PATH`, or named by `RINGFENCE_UV`), which knows the index.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::process::Command;

use ringfence_lock::Uv;
use ringfence_lock::history::{Past, Wanted};
use ringfence_model::work::Silent;

fn index() -> String {
    let uv = Uv::find(None).expect("`uv` is on PATH, or RINGFENCE_UV names it");
    let output = Command::new(uv.path())
        .args(["pip", "compile", "--quiet", "--no-header", "--emit-index-url", "-"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().find_map(|line| line.strip_prefix("--index-url ")).expect("an index").to_owned()
}

#[test]
fn what_went_out_of_a_distribution_is_dated() {
    let index = index();
    let mut past = Past::of(&index, &Silent).unwrap();
    let as_of = Some("2025-06-01T00:00:00Z".parse().unwrap());
    for (distribution, name, last, gone) in [
        ("werkzeug", "werkzeug.urls.url_quote", "2.3.8", Some("3.0.0")),
        ("langchain", "langchain.chat_models.init_chat_model", "0.3.25", None),
        ("openai", "openai.error", "0.28.1", Some("1.0.0")),
        ("gradio", "gradio.inputs", "3.50.2", Some("4.0.0")),
        ("numpy", "numpy.core.multiarray", "2.2.6", None),
    ] {
        let span =
            past.span(distribution, Wanted { name, minor: 11, as_of }).unwrap().unwrap_or_else(|| panic!("{name}"));
        let found = (span.last.version.to_string(), span.gone.map(|release| release.version.to_string()));
        assert_eq!((found.0.as_str(), found.1.as_deref()), (last, gone), "{name}");
    }
    let none = past.span("werkzeug", Wanted { name: "werkzeug.never_there", minor: 11, as_of }).unwrap();
    assert_eq!(none, None);
    assert!(past.releases("ringfence-no-such-distribution-9f3a").is_err());
}
