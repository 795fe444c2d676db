//! `ringfence.toml`: what was written ([`ManifestFile`]) and what it means ([`Manifest`]).

mod budget;
mod capture;
mod check;
mod credential;
mod dependencies;
mod file;
mod protocol;
mod server;
mod ssh;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use budget::{Budget, BudgetFile, Limit, ToolBudgetFile, Unit, UserBudget, UserBudgetFile, WhenSpent, Window};
pub use capture::{Capture, CaptureFile, Recipient, RecipientError, USUAL_CAPTURES, bech32};
pub use check::{ManifestError, glob_covers};
pub use credential::{
    AssumeRole, ClientAuth, Credential, Endpoint, GithubApp, GoogleServiceAccount, Oauth2, Oauth2Grant, Place,
    SecretSource, Sigv4,
};
pub use dependencies::moment;
pub use file::{
    A2aFile, AgentFile, AssumeRoleFile, CredentialFile, DangerFile, DependenciesFile, FailoverFile, GithubFile,
    GoogleFile, GrantFile, Id, ImageFile, IngressFile, LimitsFile, LlmFile, ManifestFile, McpFile, Oauth2File,
    ServerFile, Sigv4File,
};
pub use protocol::{PostgresFile, PostgresRules, PostgresTls, Protocol, ProtocolFile, StatementClass, TcpRules};
pub use server::{Door, Server, ServerOf};
pub use ssh::{GitOperation, MAX_GIT_NAME, RefChange, SshFile, SshRules, bare_name, is_of_repository};

use crate::{AgentName, Bytes, Digest, HostName, HostPattern};

/// The name of the manifest in an agent's folder.
pub const FILE_NAME: &str = "ringfence.toml";

/// A manifest that was read, checked and understood: every default is filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The agent's name.
    pub name: AgentName,
    /// What kind of program it is.
    pub kind: Kind,
    /// Its command line; never empty.
    pub entry: Vec<String>,
    /// Plain environment variables; no secrets.
    pub env: BTreeMap<String, String>,
    /// How validation asks whether the agent is healthy.
    pub health: Health,
    /// What its image is made of.
    pub image: Image,
    /// What the lock is resolved from.
    pub dependencies: Dependencies,
    /// What it may use up.
    pub limits: Limits,
    /// Where it may call, in the order written; the first that matches gives a call its credential and route.
    pub grants: Vec<Grant>,
    /// Secrets that the gate injects, by name.
    pub credentials: BTreeMap<String, Credential>,
    /// MCP servers of its own, each in a sandbox of its own, by name.
    #[serde(default)]
    pub servers: BTreeMap<String, Server>,
    /// Whose MCP server this is, if it is one.
    #[serde(default)]
    pub server_of: Option<ServerOf>,
    /// What it may spend.
    #[serde(default)]
    pub budget: Budget,
    /// How people reach it, if they do.
    pub ingress: Option<Ingress>,
    /// Barriers that the operator gave up in writing.
    pub danger: Danger,
}

/// What kind of program an agent is; decides its default port, health question and page probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// FastAPI or any other ASGI application, started by `uvicorn`.
    Asgi,
    /// Chainlit.
    Chainlit,
    /// Gradio.
    Gradio,
    /// An MCP server that speaks over its standard input and output; it is served over HTTP.
    Mcp,
    /// A program without pages: CLI, worker, script.
    Script,
    /// Streamlit.
    Streamlit,
    /// Flask or any other WSGI application.
    Wsgi,
}

impl Kind {
    /// The word for it in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Asgi => "asgi",
            Self::Chainlit => "chainlit",
            Self::Gradio => "gradio",
            Self::Mcp => "mcp",
            Self::Script => "script",
            Self::Streamlit => "streamlit",
            Self::Wsgi => "wsgi",
        }
    }

    /// The port such programs listen on when nothing else is said.
    #[must_use]
    pub const fn default_port(self) -> Option<u16> {
        match self {
            Self::Asgi | Self::Chainlit | Self::Mcp => Some(8000),
            Self::Gradio => Some(7860),
            Self::Script => None,
            Self::Streamlit => Some(8501),
            Self::Wsgi => Some(5000),
        }
    }

    /// The path that answers 2xx once such a program is ready.
    #[must_use]
    pub const fn default_health(self) -> &'static str {
        match self {
            Self::Mcp => "/health",
            Self::Streamlit => "/_stcore/health",
            _ => "/",
        }
    }
}

/// How validation asks whether an agent is healthy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Path to GET on the agent's port.
    pub path: String,
    /// How long the agent may take to become healthy.
    pub start_timeout: Duration,
}

/// What an agent's image is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Debian suite; it decides the Python version. `None`: chosen from the Python version.
    pub suite: Option<String>,
    /// Package mirror. `None`: the host's apt configuration.
    pub mirror: Option<String>,
    /// Python version wanted, such as `3.11`. `None`: the suite's.
    pub python: Option<String>,
    /// Further Debian packages.
    pub packages: Vec<String>,
}

/// What the lock is resolved from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependencies {
    /// Files to read, relative to the folder. Empty: found by looking.
    pub files: Vec<String>,
    /// Requirements to add to what the files declare.
    pub add: Vec<String>,
    /// Bounds on what is required anyhow.
    pub constraints: Vec<String>,
    /// Requirements that stand for whatever asks for the same distribution.
    pub overrides: Vec<String>,
    /// Distributions to leave out, whoever asks for them.
    pub exclude: Vec<String>,
    /// The last moment whose releases count. `None`: now.
    pub as_of: Option<Timestamp>,
    /// Whether to look for versions with which the agent starts, where it does not with what is declared.
    #[serde(default = "usual_cure")]
    pub cure: bool,
}

const fn usual_cure() -> bool {
    true
}

impl Default for Dependencies {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            add: Vec::new(),
            constraints: Vec::new(),
            overrides: Vec::new(),
            exclude: Vec::new(),
            as_of: None,
            cure: usual_cure(),
        }
    }
}

/// What an agent may use up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory, swap excluded.
    pub memory: Bytes,
    /// CPU time per wall time.
    pub cpus: f64,
    /// Processes and threads.
    pub pids: u32,
    /// Size of `/state`.
    pub disk: Bytes,
    /// Size of `/tmp`, which counts as memory.
    pub tmp: Bytes,
    /// Open files per process.
    pub files: u32,
    /// Captured bodies that are kept.
    #[serde(default = "usual_captures")]
    pub captures: Bytes,
}

const fn usual_captures() -> Bytes {
    USUAL_CAPTURES
}

/// One thing that an agent may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Hosts covered.
    pub host: HostPattern,
    /// What is spoken with them. Whatever below is about HTTP means nothing under another.
    #[serde(default)]
    pub protocol: Protocol,
    /// Port covered.
    pub port: u16,
    /// Cleartext or TLS towards the host.
    pub scheme: Scheme,
    /// Methods covered, upper case; empty: all.
    pub methods: Vec<String>,
    /// Path globs covered (`*` within and across segments); empty: all.
    pub paths: Vec<String>,
    /// Credential that the gate injects.
    pub credential: Option<String>,
    /// Credential whose certificate the gate shows the upstream in the TLS handshake.
    #[serde(default)]
    pub client_certificate: Option<String>,
    /// Models that a request body may name; empty: any.
    pub models: Vec<String>,
    /// Whether what comes back is to be trusted.
    pub trust: Trust,
    /// Whether TLS is opened or only its server name read.
    pub tls: TlsMode,
    /// Where to dial instead of the host's own address. Naming it lifts the private-address guard for this
    /// grant; a metadata service stays out of reach.
    pub connect_to: Option<SocketAddr>,
    /// PEM text of the only certificate authorities believed for this grant. `None`: the host's trust store.
    pub ca_pem: Option<String>,
    /// Whether the host may resolve to private, loopback or link-local addresses.
    pub allow_private: bool,
    /// What calls of language models may ask for.
    #[serde(default)]
    pub llm: LlmRules,
    /// What may be said to an MCP server, or to another agent, where the grant is for one.
    #[serde(default)]
    pub rpc: Option<RpcRules>,
    /// Which bodies are kept, and for whom, if any are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<Capture>,
}

/// What calls of language models may ask for, beside the models that [`Grant::models`] names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LlmRules {
    /// The most tokens of one answer; a call that asks for more, or says nothing, is lowered to it.
    pub max_tokens: Option<u64>,
    /// Tools that a model may be offered, by name; those that the provider runs by the word for their kind, such as
    /// `web_search`. `None`: any.
    pub tools: Option<Vec<String>>,
    /// SHA-256 digests of the system prompts that a call may carry, and it must carry one. Empty: any, or none.
    pub system_prompts: Vec<Digest>,
    /// Whether answers may come as a stream.
    pub streaming: Option<bool>,
    /// Forms that an answer may be asked in: `text`, `json`, `json_schema`, `grammar`. Empty: any.
    pub formats: Vec<String>,
    /// How often a call is tried again that the provider did not answer, or could not.
    #[serde(default)]
    pub retries: u8,
    /// Who is asked then, one after the other. Each is covered by a grant of its own.
    #[serde(default)]
    pub failover: Vec<Failover>,
}

/// Another provider with the same API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// Its host.
    pub host: HostName,
    /// Its port.
    pub port: u16,
    /// How it is spoken to, as its grant says.
    pub scheme: Scheme,
    /// The path there, if it is another.
    pub path: Option<String>,
    /// What it calls the model, if by another name.
    pub model: Option<String>,
}

/// What may be said to an MCP server or to another agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcRules {
    /// Which protocol it is.
    pub protocol: RpcProtocol,
    /// Methods that the agent may use. `None`: all of the protocol's.
    pub methods: Option<Vec<String>>,
    /// Tools that may be called and are shown, by name; `*` stands for any text. `None`: any.
    pub tools: Option<Vec<String>>,
    /// Prompts likewise, by name.
    pub prompts: Option<Vec<String>>,
    /// Resources likewise, by address.
    pub resources: Option<Vec<String>>,
    /// What arguments of a tool may be: by tool and argument, globs of which one must match. A nested argument is named
    /// by its path, with `.` between.
    pub arguments: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// What the arguments of a tool may be, by tool, as the text of a JSON Schema.
    #[serde(default)]
    pub schemas: BTreeMap<String, String>,
    /// Digests of definitions, by tool: another definition is held back.
    pub pins: BTreeMap<String, Digest>,
    /// Whether the server may have the agent's model write.
    pub sampling: bool,
    /// Whether the server may ask the person at the agent.
    pub elicitation: bool,
    /// Whether the server may ask where the agent works.
    pub roots: bool,
}

/// A protocol of JSON-RPC messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RpcProtocol {
    /// The Agent2Agent Protocol.
    A2a,
    /// The Model Context Protocol.
    #[default]
    Mcp,
}

impl LlmRules {
    /// No rules.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            max_tokens: None,
            tools: None,
            system_prompts: Vec::new(),
            streaming: None,
            formats: Vec::new(),
            retries: 0,
            failover: Vec::new(),
        }
    }

    /// Whether they ask for nothing that decides about a call.
    #[must_use]
    pub fn decide_nothing(&self) -> bool {
        let Self { max_tokens: _, tools, system_prompts, streaming, formats, retries: _, failover: _ } = self;
        tools.is_none() && system_prompts.is_empty() && *streaming != Some(false) && formats.is_empty()
    }
}

impl Grant {
    /// What a `[[grant]]` with nothing but `host` says: every request over HTTPS, and no more.
    #[must_use]
    pub const fn to(host: HostPattern) -> Self {
        Self {
            host,
            protocol: Protocol::Http,
            port: 443,
            scheme: Scheme::Https,
            methods: Vec::new(),
            paths: Vec::new(),
            credential: None,
            client_certificate: None,
            models: Vec::new(),
            trust: Trust::Trusted,
            tls: TlsMode::Inspect,
            connect_to: None,
            ca_pem: None,
            allow_private: false,
            llm: LlmRules::none(),
            rpc: None,
            capture: None,
        }
    }
}

/// Cleartext or TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Cleartext.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// The word in URLs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Whether content from a host is to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trust {
    /// Content may be acted on.
    Trusted,
    /// Content was written by strangers; the session that reads it is labelled so.
    Untrusted,
}

/// What the gate does with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// Opened, so that every request is seen.
    Inspect,
    /// Relayed closed; only the server name is seen.
    Passthrough,
}

/// How people reach an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// The agent's own port.
    pub port: u16,
    /// Where the gate listens on the host.
    pub publish: SocketAddr,
    /// Who may come in.
    pub auth: IngressAuth,
}

/// Who may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IngressAuth {
    /// Anybody who reaches the port.
    None,
    /// Whoever holds the link that `up` prints.
    Token,
}

/// Barriers given up in writing; each is recorded in the audit log at every start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Danger {
    /// Names of mechanisms that the host may lack.
    pub without: Vec<String>,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// `ca_files` gives the text of each `ca` file that grants name; the caller reads them, since this
    /// crate does no I/O.
    ///
    /// # Errors
    /// [`ManifestError`] names the first fault, with its line where it has one.
    pub fn parse(text: &str, ca_files: &dyn Fn(&str) -> Result<String, String>) -> Result<Self, ManifestError> {
        let file = ManifestFile::parse(text)?;
        check::understand(file, ca_files)
    }
}
