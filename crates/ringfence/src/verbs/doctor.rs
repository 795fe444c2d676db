//! `ringfence doctor`

use std::path::Path;
use std::process::ExitCode;

use ringfence_fleet::api::{LockEvent, LockRequest, UpgradeWanted};
use ringfence_lock::{Options, look};
use ringfence_model::diagnosis::{Change, Diagnosis, Health, Sure};
use ringfence_model::manifest::FILE_NAME;
use ringfence_model::{Fault, Report};

use crate::args::Doctor;
use crate::connect;
use crate::print::{self, Ink, Steps};

pub async fn run(args: Doctor) -> Result<ExitCode, Report> {
    let written = args.manifest.is_some() || args.folder.join(FILE_NAME).exists();
    let mut request = if written {
        super::lock::request(&args.folder, args.manifest.as_deref())?
    } else {
        inferred(&args.folder, args.entry)?
    };
    if args.again {
        request.upgrade = UpgradeWanted::All;
    }
    request.as_of = args.as_of;
    let found = diagnose(&request, args.output.json, args.explain).await?;
    if !args.output.json && found.health != Health::Broken {
        let next = if written { "up" } else { "init" };
        print::line(&format!("Next: ringfence {next} {}", args.folder.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A request for a folder that has no manifest yet.
fn inferred(folder: &Path, entry: Option<String>) -> Result<LockRequest, Report> {
    let folder = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.into());
    let found = look(&folder, &Options { entry, ..Options::default() })?;
    Ok(LockRequest {
        folder,
        manifest: found.to_toml(),
        ca_files: Default::default(),
        upgrade: UpgradeWanted::Nothing,
        as_of: None,
    })
}

/// Has an agent locked, and shows what was found.
///
/// # Errors
/// The supervisor's report; what was found until then is shown all the same.
pub async fn diagnose(request: &LockRequest, json: bool, explain: bool) -> Result<Diagnosis, Report> {
    let client = connect::client_or_start().await?;
    let mut steps = Steps::new();
    let mut found = None;
    let result = client
        .lock(request, |event| {
            match event {
                LockEvent::Step(step) => steps.take(&step),
                LockEvent::Locked(diagnosis) => found = Some(*diagnosis),
            }
            true
        })
        .await;
    match &result {
        Ok(()) => steps.done(),
        Err(_) => steps.failed(),
    }
    if let Some(found) = &found {
        if json { print::json(found) } else { show(found, explain) }
    }
    result?;
    found.ok_or_else(|| Report::new("supervisor.lost", Fault::Us, "the supervisor ended without a diagnosis"))
}

/// Shows what was found.
pub fn show(found: &Diagnosis, explain: bool) {
    let (mark, ink) = mark(found.health);
    print::line(&format!("{} {}", print::paint(ink, mark), print::paint(Ink::Bold, headline(found.health))));
    if let Some(why) = found.why.as_ref().filter(|_| found.health != Health::Fails) {
        row("because", why);
    }
    for wrong in &found.wrong {
        row("wrong", wrong);
    }
    for change in &found.changes {
        show_change(change, explain);
    }
    for question in &found.questions {
        row("unsure", &format!("`{}` may be brought by {}", question.module, question.candidates.join(", or by ")));
    }
    if explain {
        for (at, tried) in found.tries.iter().enumerate() {
            let seconds = tried.took_ms as f64 / 1000.0;
            row(&format!("try {}", at + 1), &format!("{}, {seconds:.1} s: {}", tried.what, tried.result));
        }
    }
    if let Some(lock) = &found.lock {
        let as_of = found.as_of.map(|moment| format!(", as of {moment}")).unwrap_or_default();
        row("lock", &format!("{} packages for Python {}{as_of}", lock.packages, lock.python));
    }
}

/// Shows what was changed, in the midst of something else.
pub fn show_changes(found: &Diagnosis) {
    for change in &found.changes {
        show_change(change, false);
    }
    if found.health == Health::Broken {
        row("broken", found.why.as_deref().unwrap_or("its own code raises an error"));
    }
}

fn show_change(change: &Change, explain: bool) {
    let sure = match change.sure {
        Sure::Certain => "",
        Sure::Likely => ", likely",
    };
    row(
        "changed",
        &format!("{}  {}", change.what, print::paint(Ink::Dim, &format!("({}{sure})", change.repair.word()))),
    );
    if explain {
        row("", &change.why);
    }
}

fn row(what: &str, text: &str) {
    print::line(&format!("  {what:<8} {}", print::safe(text)));
}

const fn mark(health: Health) -> (&'static str, Ink) {
    match health {
        Health::Starts | Health::Waits => ("\u{2713}", Ink::Good),
        Health::Broken => ("!", Ink::Warn),
        Health::Fails => ("\u{2717}", Ink::Bad),
    }
}

const fn headline(health: Health) -> &'static str {
    match health {
        Health::Starts => "it starts",
        Health::Waits => "it starts, and waits for something",
        Health::Broken => "its dependencies are right, and its own code raises an error",
        Health::Fails => "it does not start",
    }
}
