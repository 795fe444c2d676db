//! The last steps inside: death with the shim, Landlock, the system call filter, the program.
//!
//! The agent, every `exec` and every probe goes through [`Entry::confine`], so that what a probe finds is
//! what the agent has.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::Spec;
use ringfence_sys::landlock::Domain;
use ringfence_sys::seccomp::Filters;
use ringfence_sys::{process, seccomp};

use crate::error::SandboxError;
use crate::spec::{Fence, SandboxSpec};

/// What a process does to itself before it becomes the agent's program.
#[derive(Clone)]
pub struct Entry {
    shim: Arc<OwnedFd>,
    domain: Option<Domain>,
    filters: Option<Filters>,
    bridge: Option<u16>,
}

impl Entry {
    /// Prepares the steps outside, where failing is still easy to explain.
    ///
    /// # Errors
    /// [`SandboxError::Missing`] if the kernel lacks one of them.
    pub fn prepare(spec: &SandboxSpec) -> Result<Self, SandboxError> {
        let Fence { landlock, seccomp, .. } = spec.fence;
        if landlock && ringfence_sys::landlock::kernel_abi().is_none() {
            return Err(SandboxError::missing(
                "landlock",
                "the kernel does not answer",
                "boot with `lsm=landlock,…`, or give it up with `[danger] without = [\"landlock\"]`",
            ));
        }
        let mut writable = vec![PathBuf::from("/state")];
        let mut runnable = Vec::new();
        for mount in &spec.mounts {
            if mount.writable {
                writable.push(mount.target.clone());
            }
            if mount.executable {
                runnable.push(mount.target.clone());
            }
        }
        let mut domain = ringfence_sys::landlock::agent_domain(&writable);
        domain.run.extend(runnable);
        let filters = seccomp
            .then(|| Filters::compile(seccomp::AGENT_PROFILE))
            .transpose()
            .map_err(|e| SandboxError::Runtime { doing: "compile the system call filter", why: e.to_string() })?;
        let shim = process::own_name().map_err(|e| SandboxError::missing("pidfd", e, "run Linux 5.3 or newer"))?;
        Ok(Self { shim: Arc::new(shim), domain: landlock.then_some(domain), filters, bridge: spec.bridge })
    }

    /// Confines the calling process for good.
    ///
    /// # Errors
    /// What failed, in words; the caller must then end the process.
    pub fn confine(&self) -> Result<(), String> {
        process::die_with(&self.shim).map_err(|e| format!("cannot tie the process to its shim: {e}"))?;
        if let Some(domain) = &self.domain {
            domain.enter().map_err(|e| format!("cannot enter the Landlock domain: {e}"))?;
        }
        if let Some(filters) = &self.filters {
            filters.apply().map_err(|e| format!("cannot apply the system call filter: {e}"))?;
        }
        Ok(())
    }
}

impl Executor for Entry {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let argv = process.args().clone().unwrap_or_default();
        let env: Vec<(String, String)> = process
            .env()
            .iter()
            .flatten()
            .filter_map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect();
        let path = find_program(&argv, &env).ok_or(ExecutorError::InvalidArg)?;
        process::unblock_signals().map_err(|e| ExecutorError::Other(e.to_string()))?;
        self.confine().map_err(ExecutorError::Other)?;
        if let Some(port) = self.bridge {
            return Err(ExecutorError::Other(bridge(&path, argv, env, port)));
        }
        Err(ExecutorError::Other(process::exec(&argv, &env, &path).to_string()))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let process = spec.process().as_ref();
        let argv = process.and_then(|p| p.args().clone()).unwrap_or_default();
        let env: Vec<(String, String)> = process
            .and_then(|p| p.env().clone())
            .unwrap_or_default()
            .iter()
            .filter_map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
            .collect();
        match find_program(&argv, &env) {
            Some(_) => Ok(()),
            None => Err(ExecutorValidationError::ArgValidationError(format!(
                "`{}` is not a program in the image",
                argv.first().map_or("", String::as_str)
            ))),
        }
    }
}

/// Goes on as the first process of the sandbox, in which `path` speaks MCP; returns why it could not.
///
/// This process was forked off the shim, so what it inherited must be out of the agent's reach: descriptors are closed,
/// and as nobody may look into it, its memory is its own.
fn bridge(path: &Path, argv: Vec<String>, env: Vec<(String, String)>, port: u16) -> String {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    let sealed = set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(std::io::Error::from);
    if let Err(error) = sealed.and_then(|()| process::close_all_but_standard()) {
        return format!("cannot leave the shim's descriptors behind: {error}");
    }
    let argv = std::iter::once(path.to_string_lossy().into_owned()).chain(argv.into_iter().skip(1)).collect();
    let Err(error) = ringfence_bridge::serve(ringfence_bridge::Server { argv, env }, port);
    // Not by returning: what owned the descriptors would be dropped.
    let _ = writeln!(std::io::stderr(), "ringfence: cannot serve the MCP server: {error}");
    process::exit_now(1)
}

/// Finds a program as `execvp` would, by the environment that it will have.
#[must_use]
pub fn find_program(argv: &[String], env: &[(String, String)]) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runnable =
        |path: &Path| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let name = argv.first()?;
    if name.contains('/') {
        let path = PathBuf::from(name);
        return runnable(&path).then_some(path);
    }
    let path = env.iter().find(|(k, _)| k == "PATH").map_or("/usr/local/bin:/usr/bin:/bin", |(_, v)| v);
    path.split(':').map(|folder| Path::new(folder).join(name)).find(|p| runnable(p))
}
