//! One entry of the audit log: a JSON object with stable field names.

use jiff::Timestamp;
use ringfence_model::{AgentName, CallId, Digest, SandboxId};
use serde::{Deserialize, Serialize};

use crate::capture::Way;

/// The version of the entry form.
pub const VERSION: u32 = 1;

/// The largest entry, in bytes of JSON. A tlog-tiles bundle prefixes each entry with 16 bits of length.
pub const MAX_ENTRY_BYTES: usize = 65_535;

/// Something that happened, as an entry records it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Entry {
    /// [`VERSION`].
    pub v: u32,
    /// When it happened, by the clock of the process that saw it.
    pub time: Timestamp,
    /// Which process saw it: `supervisor`, `gate:<sandbox>` or `shim:<sandbox>`.
    pub source: String,
    /// Its number in that source, from 1 without gaps.
    pub seq: u64,
    /// Which agent it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentName>,
    /// Which sandbox it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxId>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Allow or deny, as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Allowed.
    Allow,
    /// Denied.
    Deny,
}

/// What happened. `kind` in JSON names the variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "kind")]
pub enum Event {
    /// A call was decided. Recorded before its first byte leaves.
    #[serde(rename = "call.intent")]
    CallIntent(CallIntent),
    /// A call ended.
    #[serde(rename = "call.outcome")]
    CallOutcome(CallOutcome),
    /// Much of a budget is spent; recorded once for each window.
    #[serde(rename = "budget.warning")]
    BudgetWarning {
        /// Whose: `agent`, `host`, `tool` or `user`.
        scope: String,
        /// Which limit, as in the manifest.
        limit: String,
        /// How much is taken, in the limit's unit; of money in millionths of a US dollar.
        used: u64,
    },
    /// A name was asked for.
    #[serde(rename = "dns.query")]
    DnsQuery {
        /// The name as asked, at most 253 characters.
        name: String,
        /// Record type, such as `A`.
        rtype: String,
        /// Whether it was answered.
        decision: Outcome,
        /// Why.
        reason: String,
    },
    /// A datagram was dropped.
    #[serde(rename = "udp.drop")]
    UdpDrop {
        /// Where it was to go.
        destination: String,
        /// Its payload, in bytes.
        bytes: u64,
        /// How many like it since the last record.
        count: u64,
    },
    /// The life of a sandbox: `create`, `start`, `exit`, `freeze`, `resume`, `destroy`, `oom`, `exec`.
    #[serde(rename = "sandbox")]
    Sandbox {
        /// What was done.
        action: String,
        /// Further facts, by stable names.
        #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
        facts: serde_json::Map<String, serde_json::Value>,
    },
    /// What an operator did through the supervisor.
    #[serde(rename = "operator")]
    Operator {
        /// The verb, such as `up`.
        action: String,
        /// Who, such as `uid:0`.
        by: String,
        /// `ok`, or an error code.
        result: String,
        /// Further facts, by stable names.
        #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
        facts: serde_json::Map<String, serde_json::Value>,
    },
    /// A probe of the fence or of a function.
    #[serde(rename = "probe")]
    Probe {
        /// Which.
        name: String,
        /// Whether the barrier held, or the function answered.
        held: bool,
        /// What was seen.
        detail: String,
    },
}

/// Which way a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the agent to the world.
    Egress,
    /// From a person to the agent.
    Ingress,
}

/// A call and what was decided about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CallIntent {
    /// The call's id; its outcome carries the same.
    pub call: CallId,
    /// Which way.
    pub direction: Direction,
    /// `http/1.1`, `h2`, `websocket`, `tls-passthrough`, `tcp`, `postgres`, `ssh`.
    pub protocol: String,
    /// Host as policy saw it, or the address where no name was given.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Method, for HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Path without query, for HTTP, at most 2,048 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Model named in the body, for LLM calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it asks of a language model, if it is such a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<Box<LlmAsked>>,
    /// The messages of MCP or A2A in it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rpc: Vec<RpcSaid>,
    /// The session with a database, or the statement in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<Box<SqlAsked>>,
    /// The command of git over SSH.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<Box<GitAsked>>,
    /// Allow or deny.
    pub decision: Outcome,
    /// Stable code of the reason, such as `grant`, `no_grant`, `private_address`, `host_mismatch`.
    pub reason: String,
    /// The reason in words.
    pub why: String,
    /// Ids of the rules that decided, such as `grant-1`.
    pub rules: Vec<String>,
    /// Credential that is injected, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// `untrusted` where what comes back taints the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// The call that failed, where the gate makes this one in its stead: another try, or another provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<CallId>,
    /// The `traceparent` that it came with, if its maker keeps traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CallOutcome {
    /// The call's id.
    pub call: CallId,
    /// HTTP status, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of body or stream towards the upstream.
    pub bytes_up: u64,
    /// Bytes of body or stream back.
    pub bytes_down: u64,
    /// From intent to end, in microseconds.
    pub duration_us: u64,
    /// Address that was dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Why it failed, where it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What inspection found and did, such as `secret_echo_redacted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
    /// What a language model used for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<Box<LlmUsed>>,
    /// Digest of the request's body as it left, if it had one, left whole, was not too large to be hashed, and holds no
    /// secret that was put into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_up: Option<Digest>,
    /// Digest of the answer's body as it came, under the same conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_down: Option<Digest>,
    /// What was captured of its bodies, where a grant asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<Box<Captured>>,
}

/// What was captured of a call's bodies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Captured {
    /// Of what the agent sent, before secrets were put into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<CapturedBody>,
    /// Of what the agent got, after secrets were taken out of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<CapturedBody>,
    /// Why something that was to be captured was not: `capture_full` or `capture_failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<String>,
}

impl Captured {
    /// What was captured of one body.
    #[must_use]
    pub const fn of(&self, way: Way) -> Option<&CapturedBody> {
        match way {
            Way::Request => self.request.as_ref(),
            Way::Response => self.response.as_ref(),
        }
    }
}

/// A captured body.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CapturedBody {
    /// The length of the encrypted file.
    pub bytes: u64,
    /// The digest of the encrypted file.
    pub digest: Digest,
    /// How much of the body it holds.
    pub holds: u64,
    /// Whether the body went on, or broke off.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cut: bool,
}

/// A message of MCP or A2A.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RpcSaid {
    /// The method; `response` for an answer.
    pub method: String,
    /// What it is about: the tool or prompt by name, the resource by address; at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `sha256:` digest of a tool's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

/// What is asked of a database. It holds no constant of a statement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SqlAsked {
    /// The role of the session.
    pub user: String,
    /// The database.
    pub database: String,
    /// What the statement does, such as `select`; empty for the session itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// First words of the statements that are sent as one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// What they seem to be about; no decision rests on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// Functions that may have effects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<String>,
    /// `sha256:` digest of the text with every constant replaced by `?`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What is asked of a git host over SSH.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GitAsked {
    /// The user that the gate is there.
    pub user: String,
    /// `fetch`, `push` or `archive`; empty for what is no command of git.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// The repository, without `.git` at its end.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// What a push changes, each as `change ref`; empty for the command itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refs: Vec<String>,
    /// What was asked for where it is no command of git, at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
}

/// What a call asks of a language model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LlmAsked {
    /// API and operation, such as `openai.chat`.
    pub api: String,
    /// Every model that may run.
    pub models: Vec<String>,
    /// Names of the tools that a model is offered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// `sha256:` digests of the system prompts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompts: Vec<String>,
    /// Whether the answer comes as a stream.
    pub streaming: bool,
    /// The form that the answer is to have.
    pub format: String,
    /// The most tokens that may come out, where the call bounds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
}

/// What a language model used for a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LlmUsed {
    /// The model that answered, as the answer names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tokens in.
    pub input_tokens: u64,
    /// Of these, those that the provider had kept ready.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cached_tokens: u64,
    /// Tokens out.
    pub output_tokens: u64,
    /// Of these, those that the model thought without saying them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reasoning_tokens: u64,
    /// Whether the upstream reported nothing, so that this is an estimate.
    #[serde(default, skip_serializing_if = "is_false")]
    pub estimated: bool,
    /// `too_low` or `too_high` if what the upstream reports cannot well be what went through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicious: Option<String>,
    /// What it cost, in millionths of a US dollar, if a table knows the price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usd_micro: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl Event {
    /// The stable name of the kind, as in JSON.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::BudgetWarning { .. } => "budget.warning",
            Self::CallIntent(_) => "call.intent",
            Self::CallOutcome(_) => "call.outcome",
            Self::DnsQuery { .. } => "dns.query",
            Self::Operator { .. } => "operator",
            Self::Probe { .. } => "probe",
            Self::Sandbox { .. } => "sandbox",
            Self::UdpDrop { .. } => "udp.drop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_names_are_stable() {
        let entry = Entry {
            v: VERSION,
            time: Timestamp::UNIX_EPOCH,
            source: "gate:sb-1".into(),
            seq: 1,
            agent: Some("analyst".parse().unwrap()),
            sandbox: None,
            event: Event::CallIntent(CallIntent {
                call: CallId::from_parts(0, [0; 8]),
                direction: Direction::Egress,
                protocol: "http/1.1".into(),
                host: "evil.example".into(),
                port: 443,
                method: Some("POST".into()),
                path: Some("/collect".into()),
                model: None,
                llm: None,
                rpc: vec![],
                sql: None,
                git: None,
                decision: Outcome::Deny,
                reason: "no_grant".into(),
                why: "no grant covers evil.example".into(),
                rules: vec![],
                credential: None,
                trust: None,
                after: None,
                trace: None,
            }),
        };
        let json = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            json,
            r#"{"v":1,"time":"1970-01-01T00:00:00Z","source":"gate:sb-1","seq":1,"agent":"analyst","kind":"call.intent","call":"c-000000000000000000000000000","direction":"egress","protocol":"http/1.1","host":"evil.example","port":443,"method":"POST","path":"/collect","decision":"deny","reason":"no_grant","why":"no grant covers evil.example","rules":[]}"#
        );
        assert_eq!(serde_json::from_str::<Entry>(&json).unwrap(), entry);
    }
}
