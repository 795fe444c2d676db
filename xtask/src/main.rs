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
    wrong
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
}
