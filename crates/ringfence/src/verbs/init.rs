//! `ringfence init`

use std::io::Write;
use std::process::ExitCode;

use ringfence_lock::{Inference, Options, look};
use ringfence_model::manifest::FILE_NAME;
use ringfence_model::{Fault, Manifest, Report};

use crate::args::Init;
use crate::print::{self, Ink};

pub fn run(args: Init) -> Result<ExitCode, Report> {
    let asked = Asked { name: args.name.is_some(), kind: args.kind.is_some(), port: args.port.is_some() };
    let options = Options { entry: args.entry, kind: args.kind, name: args.name, port: args.port };
    let folder = &args.folder;
    let found = look(&std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone()), &options)?;
    let text = found.to_toml();
    // What is written must be readable: a manifest that `up` would refuse is our own fault.
    Manifest::parse(&text, &|_| Ok(String::new())).map_err(|e| {
        Report::new("init.manifest", Fault::Us, "the manifest that was inferred is not right").because(&e)
    })?;
    let path = folder.join(FILE_NAME);
    if path.exists() && !args.force {
        return Err(Report::new("init.exists", Fault::Caller, format!("`{}` is there already", path.display()))
            .hint("edit it, or write it anew with `--force`"));
    }
    let half = folder.join(format!(".{FILE_NAME}.half"));
    let written = std::fs::File::create(&half)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&half, &path));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&half);
        return Err(
            Report::new("init.write", Fault::Host, format!("cannot write `{}`", path.display())).because(&error)
        );
    }
    if args.output.json {
        print::json(
            &serde_json::json!({ "manifest": path, "agent": found.name, "kind": found.kind, "entry": found.entry }),
        );
        return Ok(ExitCode::SUCCESS);
    }
    print::line(&format!("{} wrote {}", print::paint(Ink::Good, "\u{2713}"), path.display()));
    for (what, value, seen) in said(&found, &asked) {
        print::line(&format!("  {what:<12} {value}  {}", print::paint(Ink::Dim, &format!("({seen})"))));
    }
    print::line(&format!("Next: ringfence up {}", folder.display()));
    Ok(ExitCode::SUCCESS)
}

/// What the caller said, so that it need not be inferred.
struct Asked {
    name: bool,
    kind: bool,
    port: bool,
}

/// What was inferred, each with where from.
fn said(found: &Inference, asked: &Asked) -> Vec<(&'static str, String, String)> {
    let or_asked = |asked: bool, option: &str, seen: String| if asked { format!("as asked, {option}") } else { seen };
    let list =
        |seen: &[ringfence_lock::Seen]| seen.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut lines = vec![
        ("agent", found.name.to_string(), or_asked(asked.name, "--name", "the folder's name".into())),
        ("kind", found.kind.word().to_owned(), or_asked(asked.kind, "--kind", found.entry_seen.to_string())),
        ("entry", found.entry.join(" "), found.entry_seen.to_string()),
    ];
    if let Some(port) = found.port {
        let own = if found.kind.default_port() == Some(port) {
            format!("the usual one of {}", found.kind.word())
        } else {
            found.entry_seen.to_string()
        };
        lines.push(("port", port.to_string(), or_asked(asked.port, "--port", own)));
    }
    if let Some(python) = &found.python {
        lines.push(("python", python.version.clone(), list(&python.seen)));
        if let Some(note) = &python.note {
            lines.push(("", note.clone(), list(&python.seen)));
        }
    }
    let count = found.declared.requirements.len();
    if count > 0 {
        lines.push(("requires", format!("{count} declared"), found.declared.files.join(", ")));
    }
    for added in &found.added {
        lines.push(("adds", added.requirement.clone(), format!("{}, {}", added.why, added.seen)));
    }
    for missing in &found.undeclared {
        lines.push(("undeclared", missing.requirement.clone(), format!("{}, {}", missing.why, missing.seen)));
    }
    for secret in &found.suggestions.secrets {
        lines.push(("credential", secret.env.clone(), format!("{}; commented in the manifest", list(&secret.seen))));
    }
    for grant in &found.suggestions.grants {
        lines.push(("host", grant.host.clone(), format!("{}; commented in the manifest", list(&grant.seen))));
    }
    lines
}
