//! `ringfence export`

use std::process::ExitCode;

use ringfence_lock::export::{Target, export, write};
use ringfence_lock::{FILE_NAME, Lock, is_current};
use ringfence_model::{Fault, Report};

use crate::args::{Export, ExportTarget};
use crate::print::{self, Ink};

pub fn run(args: &Export) -> Result<ExitCode, Report> {
    let (folder, path) = super::up::places(&args.folder, args.manifest.as_deref())?;
    let (manifest, _) = super::up::manifest(&path, args.manifest.is_none().then_some(&*folder))?;
    let next = || format!("lock it with `ringfence lock {}`", args.folder.display());
    let Some(lock) = Lock::read(&folder)? else {
        let what = format!("`{}` has no `{FILE_NAME}`", folder.display());
        return Err(Report::new("export.no_lock", Fault::Caller, what).hint(next()));
    };
    if !is_current(&folder, &manifest)? {
        let what = format!("`{FILE_NAME}` does not fit what is declared");
        return Err(Report::new("export.old_lock", Fault::Caller, what).hint(next()));
    }
    let target = match args.target {
        ExportTarget::Requirements => Target::Requirements,
        ExportTarget::Streamlit => Target::Streamlit,
        ExportTarget::Docker => Target::Docker,
    };
    let files = export(&lock, &manifest, target)?;
    if let (ExportTarget::Requirements, None) = (args.target, &args.out) {
        files.iter().for_each(|file| print::line(file.text.trim_end()));
        return Ok(ExitCode::SUCCESS);
    }
    let out = args.out.as_ref().unwrap_or(&folder);
    write(&files, out, args.force)?;
    for file in &files {
        let shown = out.join(file.path);
        print::line(&format!("{} wrote {}", print::paint(Ink::Good, "\u{2713}"), shown.display()));
    }
    if target == Target::Streamlit {
        let python = &lock.base().python;
        print::line(&format!("Next: on Community Cloud, choose Python {python} in the advanced settings of the app"));
    }
    Ok(ExitCode::SUCCESS)
}
