//! `ringfence up`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ringfence_fleet::api::{UpEvent, UpReport, UpRequest};
use ringfence_model::diagnosis::Health;
use ringfence_model::manifest::{FILE_NAME, ManifestFile};
use ringfence_model::{Diagnosis, Fault, Manifest, Report};
use serde::Serialize;

use crate::args::Up;
use crate::connect;
use crate::print::{self, Ink, Steps};

pub async fn run(args: Up) -> Result<ExitCode, Report> {
    let mut request = request(&args.folder, args.manifest.as_deref())?;
    request.replace = args.replace;
    let client = connect::client_or_start().await?;
    let mut story = Story::new();
    let result = client
        .up(&request, |event| {
            story.take(event);
            true
        })
        .await;
    story.finish(result, args.output.json)
}

/// A start, as programs read it.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    up: &'a UpReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    diagnosis: Option<&'a Diagnosis>,
}

/// What is known of a start that failed, as programs read it.
#[derive(Serialize)]
struct Failed<'a> {
    diagnosis: &'a Diagnosis,
}

/// A start, as it is shown.
pub struct Story {
    steps: Steps,
    up: Option<UpReport>,
    found: Option<Diagnosis>,
}

impl Story {
    /// Nothing yet.
    pub fn new() -> Self {
        Self { steps: Steps::new(), up: None, found: None }
    }

    /// Takes in one event.
    pub fn take(&mut self, event: UpEvent) {
        match event {
            UpEvent::Step(step) => self.steps.take(&step),
            UpEvent::Up(report) => self.up = Some(*report),
            UpEvent::Locked(found) => self.found = Some(*found),
            UpEvent::Built { .. } => {}
        }
    }

    /// Shows how it ended.
    pub fn finish(self, result: Result<(), Report>, json: bool) -> Result<ExitCode, Report> {
        if let Err(report) = result {
            self.steps.failed();
            if let Some(found) = self.found.as_ref().filter(|_| json) {
                print::json(&Failed { diagnosis: found });
            }
            // What it waited for when it was tried is most likely why it did not come up.
            let waits = self.found.filter(|found| matches!(found.health, Health::Waits | Health::Broken));
            return Err(match waits.and_then(|found| found.why) {
                Some(why) => report.cause(format!("when it was tried: {why}")),
                None => report,
            });
        }
        self.steps.done();
        let Some(up) = self.up else {
            return Err(Report::new("supervisor.lost", Fault::Us, "the supervisor ended without a report"));
        };
        if json {
            print::json(&Shown { up: &up, diagnosis: self.found.as_ref() });
            return Ok(ExitCode::SUCCESS);
        }
        show(&up);
        if let Some(found) = &self.found {
            super::doctor::show_changes(found);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(up: &UpReport) {
    let held = up.probes.iter().filter(|p| p.held).count();
    print::line(&format!(
        "{} {} is up",
        print::paint(Ink::Good, "\u{2713}"),
        print::paint(Ink::Bold, up.agent.as_str())
    ));
    print::line(&format!("  image    {}", up.image));
    print::line(&format!("  sandbox  {}", up.sandbox));
    print::line(&format!("  probes   {held} of {} held", up.probes.len()));
    for probe in up.probes.iter().filter(|p| !p.held) {
        print::line(&format!("           {} {}: {}", print::paint(Ink::Bad, "\u{2717}"), probe.barrier, probe.detail));
    }
    for given_up in &up.danger {
        print::line(&format!("  {}   given up in the manifest: {given_up}", print::paint(Ink::Warn, "danger")));
    }
    if let Some(url) = &up.url {
        print::line(&format!("  open     {}", print::paint(Ink::Bold, url)));
    }
    if let Some(ca) = &up.ca {
        print::line(&print::paint(
            Ink::Dim,
            &format!("           (its certificate is from this host's own authority: {})", ca.display()),
        ));
    }
}

/// The folder, absolute, and where its manifest is.
///
/// # Errors
/// A report for a folder that is not there.
pub fn places(folder: &Path, manifest: Option<&Path>) -> Result<(PathBuf, PathBuf), Report> {
    let folder = std::fs::canonicalize(folder).map_err(|e| {
        Report::new("folder.missing", Fault::Caller, format!("cannot use folder `{}`", folder.display()))
            .cause(&e)
            .hint("name the folder with the agent's source")
    })?;
    if !folder.is_dir() {
        return Err(Report::new("folder.missing", Fault::Caller, format!("`{}` is not a folder", folder.display()))
            .hint("name the folder with the agent's source"));
    }
    let path = manifest.map_or_else(|| folder.join(FILE_NAME), PathBuf::from);
    Ok((folder, path))
}

/// Reads the manifest and what it points to, with the caller's own rights.
///
/// # Errors
/// A report for a folder or file that is not there, or a manifest that is not right.
pub fn request(folder: &Path, manifest: Option<&Path>) -> Result<UpRequest, Report> {
    let (folder, path) = places(folder, manifest)?;
    let (manifest, written) = self::manifest(&path, manifest.is_none().then_some(&*folder))?;
    let own = manifest.credentials.iter().map(|(name, credential)| (name.clone(), credential));
    let servers = manifest.servers.iter().flat_map(|(server, of)| {
        of.credentials.iter().map(move |(name, credential)| (UpRequest::secret_of(server, name), credential))
    });
    let mut secrets = BTreeMap::new();
    for (name, credential) in own.chain(servers) {
        match ringfence_secrets::fetch(&name, &credential.from, &folder, &|variable| std::env::var(variable).ok()) {
            Ok(Some(secret)) => {
                secrets.insert(name, secret);
            }
            // The supervisor may hold it from an earlier start; if not, it says what is absent.
            Ok(None) => {}
            Err(error) if matches!(credential.from, ringfence_model::manifest::SecretSource::Env(_)) => drop(error),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(UpRequest { folder, manifest: written.text, ca_files: written.ca_files, secrets, replace: false })
}

/// A manifest as it was written.
pub struct Written {
    /// Its text.
    pub text: String,
    /// Text of the `ca` files that its grants name, by the name written.
    pub ca_files: BTreeMap<String, String>,
}

/// Reads a manifest and the certificates that it names. `of` is the folder whose own manifest it is, if it is one's.
///
/// # Errors
/// A report for a file that is not there, or a manifest that is not right.
pub fn manifest(path: &Path, of: Option<&Path>) -> Result<(Manifest, Written), Report> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let report =
            Report::new("manifest.missing", Fault::Caller, format!("cannot read the manifest `{}`", path.display()))
                .cause(&e);
        match of {
            Some(folder) if e.kind() == std::io::ErrorKind::NotFound => {
                report.hint(format!("write one with `ringfence init {}`", folder.display()))
            }
            _ => report,
        }
    })?;
    let beside = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut ca_files = BTreeMap::new();
    for name in ManifestFile::parse(&text)?.ca_files() {
        if let Ok(pem) = std::fs::read_to_string(beside.join(name)) {
            ca_files.insert(name.to_owned(), pem);
        }
    }
    let manifest = Manifest::parse(&text, &|name| {
        ca_files.get(name).cloned().ok_or_else(|| "it is not a readable file".to_owned())
    })?;
    Ok((manifest, Written { text, ca_files }))
}
