//! Where things lie on a host.

use std::path::PathBuf;

use ringfence_model::{AgentName, SandboxId};

use crate::env;

/// The folders of one supervisor.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What must outlive a reboot.
    pub state: PathBuf,
    /// What must not.
    pub run: PathBuf,
}

impl Paths {
    /// The folders that the environment names, or the defaults.
    pub fn from_env() -> Self {
        Self {
            state: env::read(env::STATE).map_or_else(|| "/var/lib/ringfence".into(), PathBuf::from),
            run: env::read(env::RUN).map_or_else(|| "/run/ringfence".into(), PathBuf::from),
        }
    }

    /// The supervisor's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("supervisor.sock")
    }

    /// What an on-demand supervisor prints.
    pub fn supervisor_log(&self) -> PathBuf {
        self.state.join("supervisor.log")
    }

    /// Images and layers.
    pub fn store(&self) -> PathBuf {
        self.state.join("store")
    }

    /// The audit log.
    pub fn log(&self) -> PathBuf {
        self.state.join("audit")
    }

    /// The log's private key.
    pub fn log_key(&self) -> PathBuf {
        self.state.join("audit.key")
    }

    /// The log's public key, for everybody.
    pub fn log_public_key(&self) -> PathBuf {
        self.state.join("audit.pub")
    }

    /// Spools, one folder for each start, and the supervisor's own.
    pub fn spools(&self) -> PathBuf {
        self.state.join("spools")
    }

    /// The spools of one start.
    pub fn spools_of(&self, sandbox: &SandboxId) -> PathBuf {
        self.spools().join(sandbox.as_str())
    }

    /// What belongs to one agent.
    pub fn agent(&self, agent: &AgentName) -> PathBuf {
        self.state.join("agents").join(agent.as_str())
    }

    /// The run folder of one start.
    pub fn sandbox(&self, sandbox: &SandboxId) -> PathBuf {
        self.run.join("sandboxes").join(sandbox.as_str())
    }

    /// The folder over which every shim mounts its own.
    pub fn mounts(&self) -> PathBuf {
        self.run.join("mnt")
    }

    /// The operator's guard-rails, as Cedar files.
    pub fn guardrails() -> PathBuf {
        env::read(env::POLICIES).map_or_else(|| "/etc/ringfence/policies".into(), PathBuf::from)
    }
}
