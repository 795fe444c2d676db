//! Where things lie on a host.

use std::path::{Path, PathBuf};

use ringfence_inspect::price::Prices;
use ringfence_model::manifest::Budget;
use ringfence_model::{AgentName, Fault, Report, SandboxId};

use serde::Deserialize;

use crate::env;
use crate::upstream_proxy::ProxySettings;

/// The files with the host's budget and the operator's own prices, in the folder of the guard-rails.
const BUDGET: &str = "budget.toml";
const PRICES: &str = "prices.toml";
/// The file with the proxy that calls go through, there too.
const UPSTREAM_PROXY: &str = "upstream-proxy.toml";
/// The file that says what counts as recorded, there too.
const AUDIT: &str = "audit.toml";

/// The file with an agent's captured bodies, in its folder.
pub const CAPTURES: &str = "captures";

/// What the operator says for all agents of the host.
#[derive(Clone, Debug, Default)]
pub struct HostPolicy {
    /// Guard-rail files: name and Cedar text.
    pub guardrails: Vec<(String, String)>,
    /// What all agents may spend together.
    pub budget: Budget,
    /// The operator's own table of prices.
    pub prices: Option<String>,
    /// Whom calls go through.
    pub upstream_proxy: Option<ProxySettings>,
    /// Whether what announces a call must be on the disk before the call is made.
    pub strict_audit: bool,
}

/// `audit.toml`, as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AuditFile {
    #[serde(default)]
    sync: Sync,
}

/// What counts as recorded.
#[derive(Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sync {
    /// What a crash of ours does not lose.
    #[default]
    Normal,
    /// What a crash of the host does not lose either.
    Strict,
}

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

    /// Where the operator says who gets spans of calls.
    pub fn telemetry() -> PathBuf {
        Self::guardrails().join("telemetry.toml")
    }

    /// Where what all agents spend together is counted.
    pub fn host_ledger(&self) -> PathBuf {
        self.state.join("budget")
    }

    /// Reads what the operator says for all agents of the host: guard-rails, `budget.toml`, `prices.toml`,
    /// `upstream-proxy.toml` and `audit.toml`.
    ///
    /// # Errors
    /// A report for a file that is there and cannot be read or understood: what is not seen is not enforced.
    pub fn read_host_policy() -> Result<HostPolicy, Report> {
        let read = |name: &str| {
            let path = Self::guardrails().join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(Report::new("policy.host", Fault::Host, format!("cannot read `{}`", path.display()))
                    .cause(&e)
                    .hint("make it readable for the user that runs this, or remove it")),
            }
        };
        let inside =
            |name: &str, report: Report| report.cause(format!("in `{}`", Self::guardrails().join(name).display()));
        let budget = match read(BUDGET)? {
            Some(text) => Budget::parse_shared(&text).map_err(|e| inside(BUDGET, Report::from(e)))?,
            None => Budget::default(),
        };
        let prices = read(PRICES)?;
        if let Some(text) = &prices {
            Prices::parse(text).map_err(|e| inside(PRICES, Report::from(e)))?;
        }
        let upstream_proxy = match read(UPSTREAM_PROXY)? {
            Some(text) => Some(ProxySettings::parse(&text).map_err(|report| inside(UPSTREAM_PROXY, report))?),
            None => None,
        };
        let audit: AuditFile = match read(AUDIT)? {
            Some(text) => toml::from_str(&text).map_err(|e| {
                let message = e.message().replace('\n', " ");
                let report = Report::new("policy.audit", Fault::Host, format!("cannot read how to record: {message}"));
                inside(AUDIT, report.hint("write `sync = \"strict\"` or `sync = \"normal\"`"))
            })?,
            None => AuditFile::default(),
        };
        let strict_audit = audit.sync == Sync::Strict;
        Ok(HostPolicy { guardrails: Self::read_guardrails()?, budget, prices, upstream_proxy, strict_audit })
    }

    /// Reads the operator's guard-rails: file name and Cedar text, by name.
    ///
    /// # Errors
    /// A report for a file that is there and cannot be read: a rule that is not seen is not enforced.
    pub fn read_guardrails() -> Result<Vec<(String, String)>, Report> {
        let folder = Self::guardrails();
        let failed = |path: &Path, e: &std::io::Error| {
            Report::new("policy.guardrails", Fault::Host, format!("cannot read the guard-rails `{}`", path.display()))
                .cause(e)
                .hint("make them readable for the user that runs this, or name another folder")
        };
        let mut files = Vec::new();
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(files),
            Err(e) => return Err(failed(&folder, &e)),
        };
        for entry in entries {
            let path = entry.map_err(|e| failed(&folder, &e))?.path();
            if path.extension().is_some_and(|e| e == "cedar") {
                let text = std::fs::read_to_string(&path).map_err(|e| failed(&path, &e))?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                files.push((name, text));
            }
        }
        files.sort();
        Ok(files)
    }
}
