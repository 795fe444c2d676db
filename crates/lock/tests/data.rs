//! Runs the tests of what this crate ships that is not Rust: the start probe, and the tables.
//!
//! Needs `python3`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::process::Command;

fn unittest(file: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let output = Command::new("python3")
        .args(["-B", file])
        .current_dir(folder)
        .output()
        .unwrap_or_else(|e| panic!("cannot start python3: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stdout));
    // A file that tests nothing ends well, too.
    let ran = said.split_once("Ran ").and_then(|(_, rest)| rest.split(' ').next()?.parse::<u32>().ok());
    assert!(ran.is_some_and(|count| count > 10), "{said}");
}

#[test]
fn the_probe_says_what_happened() {
    unittest("probe_test.py");
}

#[test]
fn the_tables_hold_what_they_promise() {
    unittest("modules_test.py");
}
