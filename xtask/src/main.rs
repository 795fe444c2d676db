//! Checks of the workspace itself, written in Rust: which crate leans on which, and that what is generated is what the
//! code says. `cargo run -p xtask -- write` writes what is generated.
//!
//! A new arrow between crates is a change of the design, so it shows up here in review.

use std::collections::BTreeMap;
use std::process::ExitCode;

/// The arrows that the design allows: crate, and what of ours it may lean on.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("inspect", &["model"]),
    ("policy", &["inspect", "model"]),
    ("audit", &["model"]),
    ("bridge", &["inspect"]),
    ("sys", &["model"]),
    ("secrets", &["model"]),
    ("identity", &["model"]),
    ("image", &["model"]),
    ("lock", &["image", "model"]),
    ("sandbox", &["audit", "bridge", "model", "sys"]),
    ("gate", &["audit", "inspect", "model", "policy", "sys"]),
    ("fleet", &["audit", "model"]),
    (
        "ringfence",
        &[
            "audit", "fleet", "gate", "identity", "image", "inspect", "lock", "model", "policy", "sandbox", "secrets",
            "sys",
        ],
    ),
];

/// The description of the control API, which `ringfence_fleet::document` generates.
const CONTROL_API: &str = "docs/reference/control-api.json";

/// The list of threats, which names the test that shows each barrier.
const THREATS: &str = "THREATS.md";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => check() == 0,
        ["write"] => write(),
        _ => {
            eprintln!("error: use `xtask`, which checks, or `xtask write`, which writes what is generated");
            false
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn write() -> bool {
    let done = std::fs::write(CONTROL_API, ringfence_fleet::document::text());
    if let Err(why) = &done {
        eprintln!("error: cannot write `{CONTROL_API}`: {why}");
    }
    done.is_ok()
}

/// How many things are wrong.
fn check() -> usize {
    let mut wrong = 0;
    if !std::fs::read_to_string(CONTROL_API).is_ok_and(|text| text == ringfence_fleet::document::text()) {
        eprintln!("error: `{CONTROL_API}` is not what the verbs and their types say");
        eprintln!("  hint: run `cargo run -p xtask -- write`, and look at the difference");
        wrong += 1;
    }
    for (name, allowed) in ARROWS {
        let path = format!("crates/{name}/Cargo.toml");
        let found = match arrows(&path) {
            Ok(found) => found,
            Err(why) => {
                eprintln!("error: cannot read `{path}`: {why}");
                wrong += 1;
                continue;
            }
        };
        for arrow in found.iter().filter(|a| !allowed.contains(&a.as_str())) {
            eprintln!("error: crate `{name}` leans on `{arrow}`, which the design does not have");
            eprintln!("  hint: move the code to where the arrow points down, or change ARROWS and ARCHITECTURE.md");
            wrong += 1;
        }
        for arrow in allowed.iter().filter(|a| !found.iter().any(|f| f == *a)) {
            eprintln!("error: crate `{name}` no longer leans on `{arrow}`: take the arrow out of ARROWS");
            wrong += 1;
        }
    }
    let known: Vec<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    for entry in std::fs::read_dir("crates").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !known.contains(&name.as_str()) {
            eprintln!("error: crate `{name}` is not in ARROWS");
            wrong += 1;
        }
    }
    for name in unshown(std::path::Path::new(".")) {
        eprintln!("error: `{THREATS}` names `{name}`, and no test and no file is called so");
        wrong += 1;
    }
    wrong
}

/// Which tests and source files the list of threats names that are not there.
fn unshown(root: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(root.join(THREATS)).unwrap_or_default();
    let (mut sources, mut files) = (String::new(), Vec::new());
    for folder in ["crates", "testkit", "tests"] {
        read(&root.join(folder), &mut sources, &mut files);
    }
    let quoted = text.split('`').skip(1).step_by(2).filter(|name| !name.contains(char::is_whitespace));
    let missing = |name: &&str| {
        let word = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if word && name.matches('_').count() > 2 {
            // A test, or a trial that is named by a text.
            return !sources.contains(&format!("fn {name}(")) && !sources.contains(&format!("\"{name}\""));
        }
        name.ends_with(".rs") && !name.contains(['{', '*']) && !files.iter().any(|file| file.ends_with(*name))
    };
    quoted.filter(missing).map(str::to_owned).collect()
}

/// Reads all Rust below a folder.
fn read(folder: &std::path::Path, sources: &mut String, files: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read(&path, sources, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            sources.push_str(&std::fs::read_to_string(&path).unwrap_or_default());
            files.push(path.to_string_lossy().into_owned());
        }
    }
}

/// Our own crates that a manifest's `[dependencies]` names.
fn arrows(path: &str) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let manifest: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let none = toml::Table::new();
    let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table).unwrap_or(&none);
    let names: BTreeMap<&str, ()> =
        dependencies.keys().filter_map(|k| k.strip_prefix("ringfence-")).map(|n| (n, ())).collect();
    Ok(names.into_keys().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_of_the_control_api_is_the_one_of_its_verbs() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(CONTROL_API);
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text == ringfence_fleet::document::text(), "run `cargo run -p xtask -- write`");
    }

    #[test]
    fn every_test_that_the_list_of_threats_names_is_there() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut sources = String::new();
        read(&root.join("crates"), &mut sources, &mut Vec::new());
        assert!(sources.contains("fn every_kind_is_found_and_started("), "the sources are read");
        assert_eq!(unshown(&root), Vec::<String>::new());
    }
}
