//! `ringfence lock`

use std::path::Path;
use std::process::ExitCode;

use ringfence_fleet::api::{LockRequest, UpgradeWanted};
use ringfence_lock::is_current;
use ringfence_model::Report;

use super::NOT_PASSED;
use crate::args::Lock;
use crate::print::{self, Ink};

pub async fn run(args: Lock) -> Result<ExitCode, Report> {
    if args.check {
        return check(&args);
    }
    let mut request = request(&args.folder, args.manifest.as_deref())?;
    request.as_of = args.as_of;
    request.upgrade = match args.upgrade {
        Some(names) if names.is_empty() => UpgradeWanted::All,
        Some(names) => UpgradeWanted::These(names),
        // Another date is another lock.
        None if args.as_of.is_some() => UpgradeWanted::All,
        None => UpgradeWanted::Nothing,
    };
    super::doctor::diagnose(&request, args.output.json, false).await?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the lock fits, without changing anything and without a supervisor.
fn check(args: &Lock) -> Result<ExitCode, Report> {
    let (folder, path) = super::up::places(&args.folder, args.manifest.as_deref())?;
    let (manifest, _) = super::up::manifest(&path, args.manifest.is_none().then_some(&*folder))?;
    let current = is_current(&folder, &manifest)?;
    if args.output.json {
        print::json(&serde_json::json!({ "current": current }));
    } else if current {
        print::line(&format!("{} the lock fits what is declared", print::paint(Ink::Good, "\u{2713}")));
    } else {
        print::line(&format!("{} the lock does not fit what is declared", print::paint(Ink::Bad, "\u{2717}")));
        print::line(&format!("Next: ringfence lock {}", args.folder.display()));
    }
    Ok(if current { ExitCode::SUCCESS } else { ExitCode::from(NOT_PASSED) })
}

/// Reads the manifest and the certificates that it names.
///
/// # Errors
/// A report for a folder or file that is not there, or a manifest that is not right.
pub fn request(folder: &Path, manifest: Option<&Path>) -> Result<LockRequest, Report> {
    let (folder, path) = super::up::places(folder, manifest)?;
    let (_, written) = super::up::manifest(&path, manifest.is_none().then_some(&*folder))?;
    Ok(LockRequest {
        folder,
        manifest: written.text,
        ca_files: written.ca_files,
        upgrade: UpgradeWanted::Nothing,
        as_of: None,
    })
}
