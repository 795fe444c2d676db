//! The supervisor's side of a start: it makes the files, spawns the shim and waits for its word.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Stdio};

use ringfence_model::Report;
use ringfence_sys::spawn::{Spawn, sealed};

use crate::control::Status;
use crate::error::SandboxError;
use crate::shim::{Exit, Ready};
use crate::spec::{SandboxSpec, fds};

/// A sandbox that was just started.
pub struct Launched {
    /// Its shim, as a child of this process; it lives on when this process dies.
    pub shim: Child,
    /// How it is.
    pub status: Status,
}

/// Starts a sandbox and returns once its first instruction may run.
///
/// `gate_config` is passed on to the gate in memory and is never written to a disk. `program` is our own binary.
///
/// # Errors
/// The report of whatever step failed; nothing of the sandbox is left then.
pub fn launch(
    spec: &SandboxSpec,
    gate_config: &[u8],
    ingress: Option<OwnedFd>,
    program: &Path,
) -> Result<Launched, Report> {
    private_folder(&spec.run_dir)?;
    private_folder(&spec.spools)?;
    fs::create_dir_all(&spec.mount_dir)
        .map_err(SandboxError::step(format!("create `{}`", spec.mount_dir.display())))?;
    let text = serde_json::to_vec(spec)
        .map_err(|e| SandboxError::Runtime { doing: "describe the sandbox", why: e.to_string() })?;
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SandboxError::step("make a pipe")(e.into()))?;
    let memory = |name, bytes: &[u8]| sealed(name, bytes).map_err(SandboxError::step("make a memory file"));
    let mut given = vec![
        (memory("ringfence-spec", &text)?, fds::SHIM_SPEC),
        (memory("ringfence-gate", gate_config)?, fds::SHIM_GATE_CONFIG),
        (writer, fds::SHIM_READY),
    ];
    if let Some(ingress) = ingress {
        given.push((ingress, fds::SHIM_INGRESS));
    }
    let log = fs::File::options().create(true).append(true).open(spec.run_dir.join("shim.log"));
    let mut shim = Spawn {
        program: program.to_path_buf(),
        arg0: "ringfence-shim".into(),
        args: vec!["shim-process".into()],
        fds: given,
        stderr: log.map_or_else(|_| Stdio::null(), Stdio::from),
        session: true,
        env: std::env::vars().filter(|(k, _)| k.starts_with("SSL_CERT_") || k == "RUST_BACKTRACE").collect(),
    }
    .start()
    .map_err(SandboxError::step("start the shim"))?;
    let mut line = String::new();
    let heard = BufReader::new(fs::File::from(reader)).read_line(&mut line);
    let failed = match heard.map(|_| serde_json::from_str(&line)) {
        Ok(Ok(Ready::Running(status))) => return Ok(Launched { shim, status }),
        Ok(Ok(Ready::Failed(report))) => report,
        _ => {
            let log = fs::read_to_string(spec.run_dir.join("shim.log")).unwrap_or_default();
            let why = log.lines().last().unwrap_or("it ended without a word").to_owned();
            SandboxError::Runtime { doing: "hear from the shim", why }.into()
        }
    };
    let _ = shim.wait();
    let _ = fs::remove_dir_all(&spec.run_dir);
    Err(failed)
}

/// How the sandbox with this run folder ended, if it did.
#[must_use]
pub fn exit_of(run_dir: &Path) -> Option<Exit> {
    serde_json::from_slice(&fs::read(run_dir.join("exit.json")).ok()?).ok()
}

fn private_folder(path: &Path) -> Result<(), Report> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .map_err(|e| SandboxError::step(format!("create `{}`", path.display()))(e).into())
}
