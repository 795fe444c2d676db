//! What the process is told by whoever starts it, as JSON on one descriptor.

use std::collections::BTreeMap;

use ringfence_model::manifest::{Budget, Grant, IngressAuth, Place, Scheme, USUAL_CAPTURES};
use ringfence_model::{AgentName, Bytes, HostName, HostPattern, Report, SandboxId, SecretText};
use serde::{Deserialize, Serialize};

/// Everything that one gate process is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GateConfig {
    /// The agent.
    pub agent: AgentName,
    /// This start of its sandbox.
    pub sandbox: SandboxId,
    /// Where the agent may call, in manifest order.
    pub grants: Vec<Grant>,
    /// Guard-rail files: name and Cedar text.
    #[serde(default)]
    pub guardrails: Vec<(String, String)>,
    /// What the agent may spend.
    #[serde(default)]
    pub budget: Budget,
    /// What all agents of the host may spend together.
    #[serde(default)]
    pub host_budget: Budget,
    /// The operator's own table of prices, over the one that ships.
    #[serde(default)]
    pub prices: Option<String>,
    /// Leased credentials by name.
    #[serde(default)]
    pub credentials: BTreeMap<String, CredentialLease>,
    /// Whom calls go through, where the operator says so.
    #[serde(default)]
    pub upstream_proxy: Option<UpstreamProxy>,
    /// How much of captured bodies is kept.
    #[serde(default = "usual_captures")]
    pub captures: Bytes,
    /// How people reach the agent, if they do.
    #[serde(default)]
    pub ingress: Option<IngressConfig>,
    /// The user that the process becomes.
    pub uid: u32,
    /// The group that the process becomes.
    pub gid: u32,
    /// Whether an intent must be on the disk before its call is made.
    #[serde(default)]
    pub strict_audit: bool,
    /// Whether the process stays unconfined; an operator's written choice.
    #[serde(default)]
    pub danger_unconfined: bool,
    /// Descriptors that the process inherits.
    pub fds: Fds,
}

const fn usual_captures() -> Bytes {
    USUAL_CAPTURES
}

/// What may change while an agent runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewPolicy {
    /// The agent.
    pub agent: AgentName,
    /// Where it may call, in manifest order. Credentials that they name must have been leased at the start.
    pub grants: Vec<Grant>,
    /// Guard-rail files: name and Cedar text.
    pub guardrails: Vec<(String, String)>,
    /// What the agent may spend.
    pub budget: Budget,
    /// What all agents of the host may spend together.
    pub host_budget: Budget,
    /// The operator's own table of prices.
    pub prices: Option<String>,
    /// The host's trust store as PEM text, for a gate that did not need it when it started.
    pub system_pem: Option<String>,
}

impl GateConfig {
    /// What of it may change.
    #[must_use]
    pub fn policy(&self) -> NewPolicy {
        NewPolicy {
            agent: self.agent.clone(),
            grants: self.grants.clone(),
            guardrails: self.guardrails.clone(),
            budget: self.budget.clone(),
            host_budget: self.host_budget.clone(),
            prices: self.prices.clone(),
            system_pem: None,
        }
    }

    /// A gate for an agent that may reach nothing, has no secrets and nobody who calls it.
    #[must_use]
    pub fn closed(agent: AgentName, sandbox: SandboxId, uid: u32, gid: u32, fds: Fds) -> Self {
        Self {
            agent,
            sandbox,
            grants: Vec::new(),
            guardrails: Vec::new(),
            budget: Budget::default(),
            host_budget: Budget::default(),
            prices: None,
            credentials: BTreeMap::new(),
            upstream_proxy: None,
            captures: USUAL_CAPTURES,
            ingress: None,
            uid,
            gid,
            strict_audit: false,
            danger_unconfined: false,
            fds,
        }
    }
}

/// A secret, where it goes, and what the agent holds in its stead.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CredentialLease {
    /// Where it goes in a call.
    pub place: Place,
    /// What the agent sees.
    pub placeholder: String,
    /// The real value.
    pub secret: SecretText,
}

/// A proxy between this host and the Internet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamProxy {
    /// Cleartext or TLS towards the proxy.
    pub scheme: Scheme,
    /// Its host.
    pub host: HostName,
    /// Its port.
    pub port: u16,
    /// The user that it knows this host as.
    #[serde(default)]
    pub user: Option<String>,
    /// That user's password.
    #[serde(default)]
    pub password: Option<SecretText>,
    /// Hosts that are dialled without it.
    #[serde(default)]
    pub no_proxy: Vec<HostPattern>,
    /// PEM text of the only certificate authorities believed for the proxy. `None`: the host's trust store.
    #[serde(default)]
    pub ca_pem: Option<String>,
}

/// How people reach the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IngressConfig {
    /// The agent's own port, on its 127.0.0.1.
    pub agent_port: u16,
    /// A TCP socket that listens on the host.
    pub listener_fd: i32,
    /// Certificate chain, leaf first.
    pub cert_chain_pem: String,
    /// The leaf's private key.
    pub key_pem: SecretText,
    /// Who may come in.
    pub auth: IngressAuth,
    /// What the link that `up` prints carries.
    pub token: SecretText,
    /// What people type, such as `https://localhost:8501`.
    pub public_origin: String,
}

/// Descriptors by number. All but `host_netns` and `spool` are of the agent's network namespace.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Fds {
    /// Listening TCP sockets that get every connection, whatever its destination.
    #[serde(default)]
    pub tcp: Vec<i32>,
    /// UDP sockets bound to port 53 that get every datagram to port 53, whatever its address.
    #[serde(default)]
    pub dns: Vec<i32>,
    /// UDP sockets that get every other datagram.
    #[serde(default)]
    pub udp_sink: Vec<i32>,
    /// The host's network namespace. `None`: the process is in it already.
    #[serde(default)]
    pub host_netns: Option<i32>,
    /// Where the agent's budget is counted.
    #[serde(default)]
    pub ledger: Option<i32>,
    /// Where the host's budget is counted.
    #[serde(default)]
    pub host_ledger: Option<i32>,
    /// Where definitions of MCP tools are kept from one gate of the agent to the next, opened to read and append.
    #[serde(default)]
    pub definitions: Option<i32>,
    /// Where captured bodies are kept, opened to read and append.
    #[serde(default)]
    pub captures: Option<i32>,
    /// A Unix socket on which new policies come.
    #[serde(default)]
    pub control: Option<i32>,
    /// The audit spool, opened to read and append.
    pub spool: i32,
    /// Where lines of [`Ready`] go.
    pub ready: i32,
}

/// What the process says, a line each: first what the agent must trust, then that it is up; or, at any point, why it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// The agent must trust these. Nothing is served yet.
    Trust {
        /// The authority's certificate.
        ca_pem: String,
        /// The key of the authority for hosts of SSH.
        ssh_authority: String,
    },
    /// It is up.
    Up,
    /// It is not, and nothing was let through.
    Error(Report),
}
