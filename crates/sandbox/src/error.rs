//! Why a sandbox could not be made or reached.

use std::path::PathBuf;

use ringfence_model::{Explain, Fault};

/// Why a sandbox could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A mechanism of the fence is not to be had on this host.
    #[error("this host lacks `{mechanism}`, which the fence needs: {why}")]
    Missing {
        /// Its name, as in `ringfence host`.
        mechanism: &'static str,
        /// The kernel's word.
        why: String,
        /// What to do.
        remedy: String,
    },
    /// The agent's command could not be run.
    #[error("cannot run `{program}` in the sandbox: {why}")]
    Command {
        /// The program.
        program: String,
        /// Why.
        why: String,
    },
    /// The disk has no room for the agent's volume.
    #[error("no room for `{path}`: {why}")]
    Full {
        /// The volume.
        path: PathBuf,
        /// What was said.
        why: String,
    },
    /// The gate did not come up.
    #[error("the gate did not come up: {0}")]
    Gate(String),
    /// A step of making the sandbox failed.
    #[error("cannot {doing}")]
    Step {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The container runtime refused.
    #[error("cannot {doing}: {why}")]
    Runtime {
        /// What was being done.
        doing: &'static str,
        /// Its word.
        why: String,
    },
    /// The shim is not there any more.
    #[error("the sandbox at `{0}` does not answer")]
    Gone(PathBuf),
}

impl SandboxError {
    /// A failed step.
    pub fn step(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Step { doing, source }
    }

    /// A missing mechanism with its remedy.
    pub fn missing(mechanism: &'static str, why: impl ToString, remedy: &str) -> Self {
        Self::Missing { mechanism, why: why.to_string(), remedy: remedy.into() }
    }
}

impl Explain for SandboxError {
    fn code(&self) -> &'static str {
        match self {
            Self::Command { .. } => "sandbox.command",
            Self::Full { .. } => "sandbox.disk_full",
            Self::Gate(_) => "sandbox.gate",
            Self::Gone(_) => "sandbox.gone",
            Self::Missing { .. } => "sandbox.missing_mechanism",
            Self::Runtime { .. } => "sandbox.runtime",
            Self::Step { .. } => "sandbox.step",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Command { .. } => Fault::Caller,
            Self::Full { .. } | Self::Missing { .. } => Fault::Host,
            Self::Step { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Fault::Host,
            Self::Gate(_) | Self::Gone(_) | Self::Runtime { .. } | Self::Step { .. } => Fault::Us,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { remedy, .. } => Some(remedy.clone()),
            Self::Command { .. } => Some("check `[agent] entry` in the manifest".into()),
            Self::Full { path, .. } => {
                Some(format!("free some space: `df -h {}`", path.parent().unwrap_or(path).display()))
            }
            Self::Step { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("free some space: `df -h`".into())
            }
            Self::Step { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some("run it as root, or see `ringfence host`".into())
            }
            _ => None,
        }
    }
}
