//! The manifest as it is written: plain serde, unknown keys refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check::{self, ManifestError};
use super::{
    BudgetFile, CaptureFile, ClientAuth, IngressAuth, Kind, Oauth2Grant, PostgresFile, ProtocolFile, Scheme, SshFile,
    TlsMode, Trust,
};
use crate::Bytes;

/// The whole file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// `[agent]`
    #[serde(default)]
    pub agent: AgentFile,
    /// `[image]`
    #[serde(default)]
    pub image: ImageFile,
    /// `[dependencies]`
    #[serde(default)]
    pub dependencies: DependenciesFile,
    /// `[limits]`
    #[serde(default)]
    pub limits: LimitsFile,
    /// `[[grant]]`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grant: Vec<GrantFile>,
    /// `[credential.NAME]`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential: BTreeMap<String, CredentialFile>,
    /// `[mcp.NAME]`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub mcp: BTreeMap<String, ServerFile>,
    /// `[budget]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetFile>,
    /// `[ingress]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<IngressFile>,
    /// `[danger]`
    #[serde(default)]
    pub danger: DangerFile,
}

impl ManifestFile {
    /// Reads TOML.
    ///
    /// # Errors
    /// [`ManifestError::UnknownKey`] with the nearest known key, or [`ManifestError::Syntax`].
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        toml::from_str(text).map_err(|error| check::toml_error(text, &error))
    }

    /// The files of certificate authorities that it names.
    pub fn ca_files(&self) -> impl Iterator<Item = &str> {
        let grants = self.grant.iter().chain(self.mcp.values().flat_map(|server| &server.grant));
        let credentials =
            self.credential.values().chain(self.mcp.values().flat_map(|server| server.credential.values()));
        grants.filter_map(|g| g.ca.as_deref()).chain(credentials.flat_map(CredentialFile::ca_files))
    }
}

/// `[mcp.NAME]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFile {
    /// Command line.
    #[serde(default)]
    pub command: Vec<String>,
    /// Plain environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Seconds to answer its first message.
    pub start_timeout_s: Option<u64>,
    /// `trusted` or `untrusted`.
    pub trust: Option<Trust>,
    /// `[mcp.NAME.allow]`: what the agent may say to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<McpFile>,
    /// `[mcp.NAME.limits]`
    #[serde(default)]
    pub limits: LimitsFile,
    /// `[[mcp.NAME.grant]]`: where it may call itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grant: Vec<GrantFile>,
    /// `[mcp.NAME.credential.NAME]`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential: BTreeMap<String, CredentialFile>,
    /// `[mcp.NAME.budget]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetFile>,
}

/// `[agent]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentFile {
    /// Agent name.
    pub name: Option<String>,
    /// `asgi`, `chainlit`, `gradio`, `mcp`, `script`, `streamlit` or `wsgi`.
    pub kind: Option<Kind>,
    /// Command line.
    #[serde(default)]
    pub entry: Vec<String>,
    /// Plain environment variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Health path.
    pub health: Option<String>,
    /// Seconds to become healthy.
    pub start_timeout_s: Option<u64>,
}

/// `[image]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// Debian suite.
    pub suite: Option<String>,
    /// Debian mirror.
    pub mirror: Option<String>,
    /// Python version.
    pub python: Option<String>,
    /// Further Debian packages.
    #[serde(default)]
    pub packages: Vec<String>,
}

/// `[dependencies]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DependenciesFile {
    /// Files to read.
    #[serde(default)]
    pub files: Vec<String>,
    /// Requirements to add.
    #[serde(default)]
    pub add: Vec<String>,
    /// Bounds on what is required anyhow.
    #[serde(default)]
    pub constraints: Vec<String>,
    /// Requirements that stand for whatever asks for the same distribution.
    #[serde(default)]
    pub overrides: Vec<String>,
    /// Distributions to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// The last moment whose releases count: a date or a timestamp.
    pub as_of: Option<String>,
    /// Whether to look for versions with which the agent starts, where it does not with what is declared.
    pub cure: Option<bool>,
}

/// `[limits]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsFile {
    /// Memory.
    pub memory: Option<Bytes>,
    /// CPUs.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Size of `/state`.
    pub disk: Option<Bytes>,
    /// Size of `/tmp`.
    pub tmp: Option<Bytes>,
    /// Open files.
    pub files: Option<u32>,
    /// Captured bodies that are kept.
    pub captures: Option<Bytes>,
}

/// `[[grant]]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantFile {
    /// Host, address or `*.suffix`.
    pub host: String,
    /// `http`, `postgres`, `ssh` or `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ProtocolFile>,
    /// Port; 443 for https, 80 for http, 5432 for postgres, 22 for ssh.
    pub port: Option<u16>,
    /// `https` or `http`.
    pub scheme: Option<Scheme>,
    /// Methods.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Path globs.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Credential name.
    pub credential: Option<String>,
    /// Credential that is a client certificate.
    pub client_certificate: Option<String>,
    /// Models.
    #[serde(default)]
    pub models: Vec<String>,
    /// `trusted` or `untrusted`.
    pub trust: Option<Trust>,
    /// `inspect` or `passthrough`.
    pub tls: Option<TlsMode>,
    /// Address to dial instead.
    pub connect_to: Option<String>,
    /// PEM file of certificate authorities.
    pub ca: Option<String>,
    /// Lift the private-address guard.
    #[serde(default)]
    pub allow_private: bool,
    /// `[grant.llm]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<LlmFile>,
    /// `[grant.mcp]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<McpFile>,
    /// `[grant.a2a]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub a2a: Option<A2aFile>,
    /// Bodies to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureFile>,
    /// Rate of `tcp`, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Bytes>,
    /// Bytes of one connection of `tcp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Bytes>,
    /// `[grant.postgres]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresFile>,
    /// `[grant.ssh]`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshFile>,
}

/// `[grant.mcp]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct McpFile {
    /// Methods that the agent may use.
    pub methods: Option<Vec<String>>,
    /// Tools.
    pub tools: Option<Vec<String>>,
    /// Prompts.
    pub prompts: Option<Vec<String>>,
    /// Resources.
    pub resources: Option<Vec<String>>,
    /// `[grant.mcp.arguments.TOOL]`: globs by argument.
    #[serde(default)]
    pub arguments: BTreeMap<String, BTreeMap<String, Vec<String>>>,
    /// `[grant.mcp.schemas.TOOL]`: a JSON Schema of all its arguments, or its text.
    #[serde(default)]
    pub schemas: BTreeMap<String, serde_json::Value>,
    /// `sha256:` digests of definitions by tool.
    #[serde(default)]
    pub pins: BTreeMap<String, String>,
    /// Whether the server may have the agent's model write.
    #[serde(default)]
    pub sampling: bool,
    /// Whether the server may ask the person at the agent.
    #[serde(default)]
    pub elicitation: bool,
    /// Whether the server may ask where the agent works.
    #[serde(default)]
    pub roots: bool,
}

/// `[grant.a2a]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct A2aFile {
    /// Methods that the agent may use.
    pub methods: Option<Vec<String>>,
}

/// `[grant.llm]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmFile {
    /// The most tokens of one answer.
    pub max_tokens: Option<u64>,
    /// Tools that may be offered.
    pub tools: Option<Vec<String>>,
    /// `sha256:` digests of system prompts.
    #[serde(default)]
    pub system_prompts: Vec<String>,
    /// Whether answers may come as a stream.
    pub streaming: Option<bool>,
    /// `text`, `json`, `json_schema`, `grammar`.
    #[serde(default)]
    pub formats: Vec<String>,
    /// How often a call that failed is tried again.
    pub retries: Option<u8>,
    /// `[[grant.llm.failover]]`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<FailoverFile>,
}

/// `[[grant.llm.failover]]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverFile {
    /// Host of another grant.
    pub host: String,
    /// Port.
    pub port: Option<u16>,
    /// Path there, if it is another.
    pub path: Option<String>,
    /// Model there, if it has another name.
    pub model: Option<String>,
}

/// `[credential.NAME]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CredentialFile {
    /// `env:…`, `file:…`, `exec:…` or `vault:…`.
    pub from: String,
    /// `Name: template with {}`.
    pub header: Option<String>,
    /// Query parameter name.
    pub query: Option<String>,
    /// Path segment with `{}`, such as `/bot{}/`.
    pub path: Option<String>,
    /// Field of a JSON body: `a.b`, or a JSON pointer `/a/b`.
    pub json: Option<String>,
    /// Field of a form, urlencoded or multipart.
    pub form: Option<String>,
    /// User name, or a template of `user:password` with `{}`.
    pub basic: Option<String>,
    /// The TLS handshake: `true`.
    pub client_certificate: Option<bool>,
    /// AWS Signature Version 4.
    pub sigv4: Option<Sigv4File>,
    /// OAuth 2.0.
    pub oauth2: Option<Oauth2File>,
    /// A Google service account.
    pub google_service_account: Option<GoogleFile>,
    /// A GitHub App.
    pub github_app: Option<GithubFile>,
    /// Whether it is the password of a database session.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub password: bool,
    /// Whether it is the private key of sessions over SSH.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ssh_key: bool,
    /// Environment variable that holds the placeholder.
    pub env: Option<String>,
    /// How the placeholder begins.
    pub placeholder: Option<String>,
}

impl CredentialFile {
    fn ca_files(&self) -> impl Iterator<Item = &str> {
        let oauth2 = self.oauth2.as_ref().and_then(|oauth2| oauth2.ca.as_deref());
        let google = self.google_service_account.as_ref().and_then(|google| google.ca.as_deref());
        let github = self.github_app.as_ref().and_then(|github| github.ca.as_deref());
        [oauth2, google, github].into_iter().flatten()
    }
}

/// `sigv4 = { … }`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sigv4File {
    /// Region, such as `eu-central-1`.
    pub region: String,
    /// Service, such as `s3`.
    pub service: String,
    /// Access key id; the secret may name it instead.
    pub access_key_id: Option<String>,
    /// A role whose temporary keys sign in place of the secret.
    pub assume_role: Option<AssumeRoleFile>,
}

/// `sigv4 = { assume_role = { … } }`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssumeRoleFile {
    /// The role.
    pub role_arn: String,
    /// What the role's owner demands to hear.
    pub external_id: Option<String>,
    /// How the session is called in AWS's logs.
    pub session_name: Option<String>,
    /// Where the keys are got; default the region's endpoint.
    pub sts_url: Option<String>,
    /// Where to dial instead.
    pub connect_to: Option<String>,
    /// File of the only certificate authorities believed.
    pub ca: Option<String>,
    /// Whether the endpoint may have a private address.
    #[serde(default)]
    pub allow_private: bool,
}

/// `oauth2 = { … }`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oauth2File {
    /// Token endpoint.
    pub token_url: String,
    /// Client id.
    pub client_id: String,
    /// Scopes.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// `client_credentials` or `refresh_token`.
    pub grant: Oauth2Grant,
    /// Audience.
    pub audience: Option<String>,
    /// `basic` or `post`.
    pub client_auth: Option<ClientAuth>,
    /// PEM file of certificate authorities.
    pub ca: Option<String>,
    /// Address to dial instead.
    pub connect_to: Option<String>,
    /// Lift the private-address guard.
    #[serde(default)]
    pub allow_private: bool,
}

/// `google_service_account = { … }`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoogleFile {
    /// Scopes.
    pub scopes: Vec<String>,
    /// The user on whose behalf, where the domain delegated that.
    pub subject: Option<String>,
    /// Token endpoint.
    pub token_url: Option<String>,
    /// PEM file of certificate authorities.
    pub ca: Option<String>,
    /// Address to dial instead.
    pub connect_to: Option<String>,
    /// Lift the private-address guard.
    #[serde(default)]
    pub allow_private: bool,
}

/// `github_app = { … }`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GithubFile {
    /// App id, or client id.
    pub app_id: Id,
    /// Installation id.
    pub installation_id: Id,
    /// The API's address.
    pub api: Option<String>,
    /// PEM file of certificate authorities.
    pub ca: Option<String>,
    /// Address to dial instead.
    pub connect_to: Option<String>,
    /// Lift the private-address guard.
    #[serde(default)]
    pub allow_private: bool,
}

/// An id as people write it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// As a number.
    Number(u64),
    /// As a text.
    Text(String),
}

/// `[ingress]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IngressFile {
    /// The agent's own port.
    pub port: u16,
    /// Host address, port, or both.
    pub publish: Option<String>,
    /// `token` or `none`.
    pub auth: Option<IngressAuth>,
}

/// `[danger]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DangerFile {
    /// Mechanisms that the host may lack.
    #[serde(default)]
    pub without: Vec<String>,
}
