//! The verbs and what they carry.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use ringfence_audit::capture::Way;
use ringfence_audit::{CapturedBody, Verification};
use ringfence_model::manifest::ManifestFile;
use ringfence_model::work::Step;
use ringfence_model::{AgentName, CallId, Diagnosis, SandboxId, SecretText};
use serde::{Deserialize, Serialize};

pub use crate::client::Client;
use crate::define::control_api;

control_api! {
    /// Says that the supervisor is there, and what it is.
    call hello(Nothing) -> Hello;
    /// Lists agents.
    call ps(Nothing) -> Vec<AgentView>;
    /// Locks, builds, starts and validates the agent in a folder.
    stream up(UpRequest) -> UpEvent;
    /// Locks and builds the agent in a folder, without starting it.
    stream build(UpRequest) -> UpEvent;
    /// Locks the agent in a folder with versions with which it starts, and says what was found.
    stream lock(LockRequest) -> LockEvent;
    /// Starts an agent that was stopped, from the image that it had.
    stream start(StartRequest) -> UpEvent;
    /// Stops an agent; it keeps its image, its state and its place.
    call stop(StopRequest) -> AgentView;
    /// Stops every process of an agent from running on.
    call freeze(Named) -> AgentView;
    /// Lets a frozen agent run on.
    call resume(Named) -> AgentView;
    /// Puts another policy in force for an agent that runs: grants, budget and guard-rails.
    call apply(UpRequest) -> AgentView;
    /// Stops an agent and forgets it, its state included.
    call down(DownRequest) -> Nothing;
    /// Gives what an agent printed.
    stream logs(LogsRequest) -> LogLine;
    /// Gives entries of the audit log.
    stream audit(AuditRequest) -> AuditLine;
    /// Explains one entry of the audit log.
    call explain(ExplainRequest) -> Explanation;
    /// Gives a captured body, as the age file that was kept.
    stream body(BodyRequest) -> BodyEvent;
    /// Removes every captured body of an agent, so that there is room for others.
    call forget(Named) -> Forgotten;
    /// Proves the audit log whole.
    call verify(Nothing) -> VerifyAnswer;
    /// Runs a command inside an agent's sandbox.
    stream exec(ExecRequest) -> ExecEvent;
    /// Puts a secret into the vault, or removes it.
    call secret(SecretRequest) -> Nothing;
    /// Ends the supervisor. Agents run on.
    call shutdown(Nothing) -> Nothing;
}

/// What a request is about, for the audit log.
pub trait Subject {
    /// The agent's name or folder, or nothing.
    fn subject(&self) -> String {
        String::new()
    }
}

/// No content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

impl Subject for Nothing {}

/// What a supervisor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Hello {
    /// Its version.
    pub version: String,
    /// Its pid.
    pub pid: u32,
    /// Whether it ends by itself when nothing is left to do.
    pub on_demand: bool,
    /// The key by which anybody verifies the audit log.
    pub log_key: String,
}

/// An agent by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub agent: AgentName,
}

impl Subject for Named {
    fn subject(&self) -> String {
        self.agent.to_string()
    }
}

/// Where an agent stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It ended by itself with an error, or did not start.
    Failed,
    /// Its processes are held.
    Frozen,
    /// It ended by itself with success.
    Exited,
    /// It runs.
    Running,
    /// It is being started.
    Starting,
    /// An operator stopped it.
    Stopped,
}

impl State {
    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Frozen => "frozen",
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Stopped => "stopped",
        }
    }
}

/// An agent as a caller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AgentView {
    /// Its name.
    pub agent: AgentName,
    /// Where it stands.
    pub state: State,
    /// Why, where that needs words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxId>,
    /// Its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Where people reach it, without the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Its folder.
    pub folder: PathBuf,
    /// Its pid on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_pid: Option<i32>,
    /// Its gate's pid on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate_pid: Option<i32>,
    /// Its shim's pid on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shim_pid: Option<i32>,
    /// Memory in use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// What `up` and `build` need.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct UpRequest {
    /// The agent's folder, absolute.
    pub folder: PathBuf,
    /// The manifest's text.
    pub manifest: String,
    /// Text of the `ca` files that grants name, by the name written.
    pub ca_files: BTreeMap<String, String>,
    /// Secrets that the caller fetched, by credential; those of MCP servers as [`UpRequest::secret_of`] names them.
    pub secrets: BTreeMap<String, SecretText>,
    /// Replace a running agent of the same name.
    pub replace: bool,
}

impl UpRequest {
    /// The name under which a secret of the agent's MCP server `server` is sent along.
    #[must_use]
    pub fn secret_of(server: &str, credential: &str) -> String {
        format!("mcp.{server}/{credential}")
    }
}

impl Subject for UpRequest {
    /// The agent's name where the manifest can be read, so that the log of one agent has it; else its folder.
    fn subject(&self) -> String {
        let named = ManifestFile::parse(&self.manifest).ok().and_then(|file| file.agent.name);
        named.unwrap_or_else(|| self.folder.display().to_string())
    }
}

/// What `lock` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LockRequest {
    /// The agent's folder, absolute.
    pub folder: PathBuf,
    /// The manifest's text.
    pub manifest: String,
    /// Text of the `ca` files that grants name, by the name written.
    pub ca_files: BTreeMap<String, String>,
    /// How much of the lock that is there may change, where it would still do.
    pub upgrade: UpgradeWanted,
    /// Releases after it do not count. `None`: all do, or those that the manifest says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
}

impl Subject for LockRequest {
    fn subject(&self) -> String {
        let named = ManifestFile::parse(&self.manifest).ok().and_then(|file| file.agent.name);
        named.unwrap_or_else(|| self.folder.display().to_string())
    }
}

/// How much of a lock may change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpgradeWanted {
    /// Nothing that would still do.
    Nothing,
    /// The versions of these distributions.
    These(Vec<String>),
    /// Everything.
    All,
}

/// What happens during `lock`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LockEvent {
    /// A step went on.
    Step(Step),
    /// The lock is in the folder, and this was found.
    Locked(Box<Diagnosis>),
}

/// What `start` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    /// Which agent.
    pub agent: AgentName,
}

impl Subject for StartRequest {
    fn subject(&self) -> String {
        self.agent.to_string()
    }
}

/// What happens during `up`, `build` and `start`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum UpEvent {
    /// The image is built.
    Built {
        /// Its digest.
        image: String,
    },
    /// The dependencies are locked, and this was found.
    Locked(Box<Diagnosis>),
    /// A step went on.
    Step(Step),
    /// The agent is up.
    Up(Box<UpReport>),
}

/// What `up` reports at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UpReport {
    /// The agent.
    pub agent: AgentName,
    /// This start.
    pub sandbox: SandboxId,
    /// The image.
    pub image: String,
    /// Where people reach it, with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The file with the authority of that address's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// How long each step took, in milliseconds.
    pub took_ms: BTreeMap<String, u64>,
    /// What each probe found.
    pub probes: Vec<ProbeView>,
    /// Barriers that an operator gave up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub danger: Vec<String>,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProbeView {
    /// The barrier or function.
    pub barrier: String,
    /// Whether it held.
    pub held: bool,
    /// What was seen.
    pub detail: String,
}

/// What `stop` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Which agent.
    pub agent: AgentName,
    /// How long it may take to end by itself, in seconds.
    pub grace_s: u64,
}

impl Subject for StopRequest {
    fn subject(&self) -> String {
        self.agent.to_string()
    }
}

/// What `down` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DownRequest {
    /// Which agent; `None`: all.
    pub agent: Option<AgentName>,
    /// Keep `/state` for a later agent of the same name.
    pub keep_state: bool,
}

impl Subject for DownRequest {
    fn subject(&self) -> String {
        self.agent.as_ref().map_or_else(|| "all".into(), ToString::to_string)
    }
}

/// What `logs` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LogsRequest {
    /// Which agent.
    pub agent: AgentName,
    /// Go on with what comes.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<usize>,
}

impl Subject for LogsRequest {
    fn subject(&self) -> String {
        self.agent.to_string()
    }
}

/// A line that an agent printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LogLine {
    /// When.
    pub time: Timestamp,
    /// `out` or `err`.
    pub stream: String,
    /// The text.
    pub text: String,
}

/// What `audit` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AuditRequest {
    /// Only entries about this agent.
    pub agent: Option<AgentName>,
    /// Go on with what comes.
    pub follow: bool,
    /// From this entry on.
    pub from: u64,
    /// Only so many of the last entries.
    pub tail: Option<usize>,
    /// Say of each denied call what would allow it.
    #[serde(default)]
    pub suggest: bool,
}

impl Subject for AuditRequest {
    fn subject(&self) -> String {
        self.agent.as_ref().map_or_else(String::new, ToString::to_string)
    }
}

/// An entry of the audit log with its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AuditLine {
    /// Its number in the log.
    pub index: u64,
    /// The entry.
    #[serde(flatten)]
    pub entry: ringfence_audit::Entry,
    /// What to write into the manifest to allow such a call, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
}

/// What `body` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct BodyRequest {
    /// The call.
    pub call: CallId,
    /// Which of its bodies.
    pub way: Way,
}

impl Subject for BodyRequest {
    fn subject(&self) -> String {
        self.call.to_string()
    }
}

/// A captured body, which was held against the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BodyEvent {
    /// What the log says of it.
    Found(CapturedBody),
    /// The next part of the file, in Base64.
    Part(String),
}

/// What `forget` removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Forgotten {
    /// How much there was.
    pub bytes: u64,
}

/// What `explain` needs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// The entry's number.
    pub entry: u64,
}

impl Subject for ExplainRequest {
    fn subject(&self) -> String {
        self.entry.to_string()
    }
}

/// Why a call was decided as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// The entry.
    pub line: AuditLine,
    /// How the call ended, if the entry is a call's intent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<AuditLine>,
    /// The explanation, paragraph by paragraph.
    pub text: Vec<String>,
    /// What to write into the manifest to allow such a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
}

/// What `verify` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VerifyAnswer {
    /// The verdict.
    #[serde(flatten)]
    pub verification: Verification,
    /// The signed checkpoint.
    pub checkpoint: String,
    /// The key that it was verified with.
    pub key: String,
}

/// What `secret` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SecretRequest {
    /// The name under which manifests speak of it: `vault:NAME`.
    pub name: String,
    /// The value; `None` removes it.
    pub value: Option<SecretText>,
}

impl Subject for SecretRequest {
    fn subject(&self) -> String {
        self.name.clone()
    }
}

/// What `exec` needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Which agent.
    pub agent: AgentName,
    /// Command line.
    pub argv: Vec<String>,
    /// Bytes for its standard input.
    pub stdin: Vec<u8>,
}

impl Subject for ExecRequest {
    fn subject(&self) -> String {
        self.agent.to_string()
    }
}

/// What a command inside says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExecEvent {
    /// It wrote to standard error.
    Err(Vec<u8>),
    /// It ended.
    Exit(i32),
    /// It wrote to standard output.
    Out(Vec<u8>),
}
