//! Checks of the workspace itself, written in Rust: which crate leans on which.
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

fn main() -> ExitCode {
    let mut wrong = 0;
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
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
