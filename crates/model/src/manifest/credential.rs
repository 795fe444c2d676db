//! `[credential.NAME]`: a secret, where it comes from, and where the gate puts it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::check::{ManifestError, is_env_name, value};
use super::{AssumeRoleFile, CredentialFile, GithubFile, GoogleFile, Id, Oauth2File, Sigv4File};
use crate::HostName;

/// The longest beginning of a placeholder.
const MAX_PREFIX: usize = 32;

/// A secret and where the gate puts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// Where the secret comes from.
    pub from: SecretSource,
    /// Where it goes in a call.
    pub place: Place,
    /// The environment variable in which the agent sees the placeholder.
    pub env: Option<String>,
    /// How the placeholder begins. `None`: as the secret's provider has its keys begin.
    #[serde(default)]
    pub placeholder: Option<String>,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// An environment variable of whoever runs `up`.
    Env(String),
    /// Standard output of a program, one trailing newline dropped.
    Exec(Vec<String>),
    /// A file, one trailing newline dropped.
    File(String),
    /// A secret kept in the vault under this name.
    Vault(String),
}

/// Where a secret goes in a call, or what the gate makes of it for each call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The header `Authorization: Basic`.
    Basic {
        /// `user:password` with `{}` once.
        template: String,
    },
    /// The TLS handshake with the upstream; the secret is PEM of a certificate chain and its key.
    ClientCertificate,
    /// A field of a form, urlencoded or multipart.
    Form {
        /// Its name.
        name: String,
    },
    /// An installation token of a GitHub App; the secret is the app's private key.
    GithubApp(GithubApp),
    /// An access token of a Google service account; the secret is its key as JSON.
    GoogleServiceAccount(GoogleServiceAccount),
    /// A header; `{}` in `template` stands for the secret.
    Header {
        /// Header name, lower case.
        name: String,
        /// Its value with `{}`.
        template: String,
    },
    /// A field of a JSON body.
    Json {
        /// The keys that lead to it.
        keys: Vec<String>,
    },
    /// An access token by OAuth 2.0; the secret is the client's secret or a refresh token.
    Oauth2(Oauth2),
    /// A segment of the path. The agent writes its placeholder there, and the policy decides about that path.
    Path {
        /// What stands before the secret in its segment.
        before: String,
        /// What stands after it.
        after: String,
    },
    /// The password of a database session.
    Password,
    /// A query parameter.
    Query {
        /// Its name.
        name: String,
    },
    /// A signature of the whole request; the secret is the secret access key.
    Sigv4(Sigv4),
    /// The authentication of a session over SSH; the secret is a private key as OpenSSH writes it.
    SshKey,
}

impl Place {
    /// The key in the manifest.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Basic { .. } => "basic",
            Self::ClientCertificate => "client_certificate",
            Self::Form { .. } => "form",
            Self::GithubApp(_) => "github_app",
            Self::GoogleServiceAccount(_) => "google_service_account",
            Self::Header { .. } => "header",
            Self::Json { .. } => "json",
            Self::Oauth2(_) => "oauth2",
            Self::Password => "password",
            Self::Path { .. } => "path",
            Self::Query { .. } => "query",
            Self::Sigv4(_) => "sigv4",
            Self::SshKey => "ssh_key",
        }
    }

    /// Where access tokens are got, for places that need one.
    #[must_use]
    pub const fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Self::GithubApp(app) => Some(&app.api),
            Self::GoogleServiceAccount(account) => Some(&account.endpoint),
            Self::Oauth2(oauth2) => Some(&oauth2.endpoint),
            Self::Sigv4(Sigv4 { assume_role: Some(role), .. }) => Some(&role.endpoint),
            _ => None,
        }
    }
}

/// AWS Signature Version 4.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sigv4 {
    /// Region.
    pub region: String,
    /// Service.
    pub service: String,
    /// Access key id. `None`: the secret is JSON that names it.
    pub access_key_id: Option<String>,
    /// A role whose temporary keys sign in place of the secret.
    #[serde(default)]
    pub assume_role: Option<AssumeRole>,
}

/// A role of AWS, whose temporary keys are got for a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssumeRole {
    /// The endpoint of AWS's Security Token Service.
    pub endpoint: Endpoint,
    /// The role.
    pub role_arn: String,
    /// What the role's owner demands to hear.
    pub external_id: Option<String>,
    /// How the session is called in AWS's logs.
    pub session_name: String,
}

/// How access tokens are got by OAuth 2.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oauth2 {
    /// The token endpoint.
    pub endpoint: Endpoint,
    /// Client id.
    pub client_id: String,
    /// Scopes asked for; empty: the server's default.
    pub scopes: Vec<String>,
    /// By which right.
    pub grant: Oauth2Grant,
    /// Audience asked for.
    pub audience: Option<String>,
    /// How the client shows who it is.
    pub client_auth: ClientAuth,
}

/// By which right an access token is asked for.
///
/// # Source
/// RFC 6749 §4.4 and §6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Oauth2Grant {
    /// The client's own.
    ClientCredentials,
    /// A user's, who consented before.
    RefreshToken,
}

/// How a client shows who it is.
///
/// # Source
/// RFC 6749 §2.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// By `Authorization: Basic`.
    Basic,
    /// In the body.
    Post,
}

/// A Google service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoogleServiceAccount {
    /// The token endpoint.
    pub endpoint: Endpoint,
    /// Scopes asked for.
    pub scopes: Vec<String>,
    /// The user on whose behalf.
    pub subject: Option<String>,
}

/// A GitHub App as it is installed somewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GithubApp {
    /// The API's address.
    pub api: Endpoint,
    /// App id, or client id.
    pub app_id: String,
    /// Installation id.
    pub installation_id: String,
}

/// Where the gate itself asks for access tokens; always HTTPS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Host.
    pub host: HostName,
    /// Port.
    pub port: u16,
    /// Path, with query if there is one.
    pub path: String,
    /// Where to dial instead; a metadata service stays out of reach.
    pub connect_to: Option<SocketAddr>,
    /// PEM text of the only certificate authorities believed. `None`: the host's trust store.
    pub ca_pem: Option<String>,
    /// Whether the host may resolve to private, loopback or link-local addresses.
    pub allow_private: bool,
}

impl Endpoint {
    /// The address as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        match self.port {
            443 => format!("https://{}{}", self.host, self.path),
            port => format!("https://{}:{port}{}", self.host, self.path),
        }
    }
}

type CaFiles<'a> = &'a dyn Fn(&str) -> Result<String, String>;

pub(super) fn understand(name: &str, file: CredentialFile, ca_files: CaFiles<'_>) -> Result<Credential, ManifestError> {
    let table = Table { name, ca_files };
    let from = table.source(&file.from)?;
    let env = match (&file.env, &from) {
        (Some(env), _) if is_env_name(env) => Some(env.clone()),
        (Some(env), _) => {
            return Err(table.wrong("env", format!("`{env}` is not a variable name"), "use A-Z, 0-9 and `_`"));
        }
        (None, SecretSource::Env(env)) => Some(env.clone()),
        (None, _) => None,
    };
    if let Some(prefix) = &file.placeholder
        && (prefix.len() > MAX_PREFIX || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
    {
        return Err(table.wrong(
            "placeholder",
            format!("`{prefix}` is no beginning of a key"),
            "write up to 32 of A-Z, a-z, 0-9, `-`, `_` and `.`, such as `sk-`",
        ));
    }
    let unseen = [
        (file.client_certificate == Some(true), "client_certificate", "a certificate"),
        (file.ssh_key, "ssh_key", "a private key"),
    ];
    let unseen = unseen.into_iter().find(|(set, ..)| *set);
    if let Some((_, key, what)) = unseen.filter(|_| file.env.is_some() || file.placeholder.is_some()) {
        let why = format!("the agent sees nothing of {what}, so it has no placeholder");
        return Err(table.wrong(key, why, "drop `env` and `placeholder`"));
    }
    let env = env.filter(|_| unseen.is_none());
    let placeholder = file.placeholder.clone();
    let place = table.place(file)?;
    Ok(Credential { from, place, env, placeholder })
}

/// One `[credential.NAME]`.
struct Table<'a> {
    name: &'a str,
    ca_files: CaFiles<'a>,
}

impl Table<'_> {
    fn wrong(&self, key: &str, why: impl ToString, hint: &str) -> ManifestError {
        value(format!("[credential.{}] {key}", self.name), why, hint)
    }

    fn source(&self, from: &str) -> Result<SecretSource, ManifestError> {
        let forms = "write `env:NAME`, `file:PATH`, `exec:PROGRAM ARG…` or `vault:NAME`";
        let (kind, rest) = from.split_once(':').ok_or_else(|| self.wrong("from", "no source kind", forms))?;
        if rest.trim().is_empty() {
            return Err(self.wrong("from", "nothing after the colon", forms));
        }
        match kind {
            "env" if is_env_name(rest) => Ok(SecretSource::Env(rest.into())),
            "env" => Err(self.wrong("from", format!("`{rest}` is not a variable name"), forms)),
            "exec" => Ok(SecretSource::Exec(rest.split_whitespace().map(str::to_owned).collect())),
            "file" => Ok(SecretSource::File(rest.into())),
            "vault" => Ok(SecretSource::Vault(rest.into())),
            _ => Err(self.wrong("from", format!("no source kind `{kind}`"), forms)),
        }
    }

    fn place(&self, file: CredentialFile) -> Result<Place, ManifestError> {
        let mut found: Vec<Result<Place, ManifestError>> = Vec::new();
        found.extend(file.basic.as_deref().map(|text| self.basic(text)));
        found.extend(file.client_certificate.filter(|wanted| *wanted).map(|_| Ok(Place::ClientCertificate)));
        found.extend(file.form.map(|name| self.form(name)));
        found.extend(file.github_app.map(|app| self.github(app)));
        found.extend(file.google_service_account.map(|account| self.google(account)));
        found.extend(file.header.as_deref().map(|text| self.header(text)));
        found.extend(file.json.as_deref().map(|text| self.json(text)));
        found.extend(file.oauth2.map(|oauth2| self.oauth2(oauth2)));
        found.extend(file.password.then_some(Ok(Place::Password)));
        found.extend(file.path.as_deref().map(|text| self.path(text)));
        found.extend(file.query.map(|name| self.query(name)));
        found.extend(file.sigv4.map(|sigv4| self.sigv4(sigv4)));
        found.extend(file.ssh_key.then_some(Ok(Place::SshKey)));
        match (found.pop(), found.is_empty()) {
            (Some(place), true) => place,
            _ => Err(value(
                format!("[credential.{}]", self.name),
                "it needs just one of `basic`, `client_certificate`, `form`, `github_app`, `google_service_account`, \
                 `header`, `json`, `oauth2`, `password`, `path`, `query`, `sigv4` and `ssh_key`",
                "say where the secret goes, such as `header = \"Authorization: Bearer {}\"`",
            )),
        }
    }

    fn header(&self, text: &str) -> Result<Place, ManifestError> {
        let hint = "write it as `header = \"Authorization: Bearer {}\"`";
        let (name, template) = text.split_once(':').ok_or_else(|| self.wrong("header", "no colon", hint))?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(self.wrong("header", "not a header name", hint));
        }
        const FRAMES: [&str; 5] = ["connection", "content-length", "host", "transfer-encoding", "upgrade"];
        if FRAMES.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(self.wrong("header", "this header frames the call or says whose it is", "name another header"));
        }
        if template.matches("{}").count() != 1 {
            return Err(self.wrong("header", "it needs `{}` once, where the secret goes", hint));
        }
        Ok(Place::Header { name: name.to_ascii_lowercase(), template: template.trim().into() })
    }

    fn query(&self, name: String) -> Result<Place, ManifestError> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(self.wrong("query", "not a parameter name", "write it as `query = \"key\"`"));
        }
        Ok(Place::Query { name })
    }

    fn path(&self, text: &str) -> Result<Place, ManifestError> {
        let hint = "write the segment with `{}`, such as `path = \"/bot{}/\"`";
        let segment = text.strip_prefix('/').unwrap_or(text);
        let segment = segment.strip_suffix('…').unwrap_or(segment);
        let segment = segment.strip_suffix('/').unwrap_or(segment);
        let (before, after) = segment
            .split_once("{}")
            .filter(|(_, after)| !after.contains("{}"))
            .ok_or_else(|| self.wrong("path", "it needs `{}` once, where the secret goes", hint))?;
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~:@=,".contains(&b));
        if !plain(before) || !plain(after) {
            return Err(self.wrong("path", "it is not one segment of a path", hint));
        }
        Ok(Place::Path { before: before.into(), after: after.into() })
    }

    fn json(&self, text: &str) -> Result<Place, ManifestError> {
        let hint = "write it as `json = \"auth.api_key\"` or `json = \"/auth/api_key\"`";
        let keys: Vec<String> = match text.strip_prefix('/') {
            // RFC 6901 §4.
            Some(pointer) => pointer.split('/').map(|key| key.replace("~1", "/").replace("~0", "~")).collect(),
            None => text.split('.').map(str::to_owned).collect(),
        };
        if keys.iter().any(String::is_empty) {
            return Err(self.wrong("json", format!("`{text}` names no field"), hint));
        }
        if keys.len() > 16 {
            return Err(self.wrong("json", "it is deeper than 16 keys", hint));
        }
        Ok(Place::Json { keys })
    }

    fn form(&self, name: String) -> Result<Place, ManifestError> {
        if name.is_empty() || name.chars().any(|c| c.is_control() || c == '"') {
            return Err(self.wrong("form", "not a field name", "write it as `form = \"token\"`"));
        }
        Ok(Place::Form { name })
    }

    fn basic(&self, text: &str) -> Result<Place, ManifestError> {
        let hint = "write the user name, or a template such as `{}:` where the secret is the user name";
        let template = match text.matches("{}").count() {
            0 if text.contains(':') => return Err(self.wrong("basic", "a user name has no colon", hint)),
            0 => format!("{text}:{{}}"),
            1 => text.to_owned(),
            _ => return Err(self.wrong("basic", "it has `{}` more than once", hint)),
        };
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(self.wrong("basic", "it is empty or has control characters", hint));
        }
        Ok(Place::Basic { template })
    }

    fn sigv4(&self, file: Sigv4File) -> Result<Place, ManifestError> {
        let word = |text: &str| {
            !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !word(&file.region) {
            return Err(self.wrong(
                "sigv4.region",
                format!("`{}` is no region", file.region),
                "such as `eu-central-1`",
            ));
        }
        if !word(&file.service) {
            return Err(self.wrong("sigv4.service", format!("`{}` is no service", file.service), "such as `s3`"));
        }
        if let Some(id) = file.access_key_id.as_deref().filter(|id| !word(id)) {
            return Err(self.wrong("sigv4.access_key_id", format!("`{id}` is no id"), "such as `AKIA…`"));
        }
        let assume_role = file.assume_role.map(|role| self.assume_role(role, &file.region)).transpose()?;
        let Sigv4File { region, service, access_key_id, .. } = file;
        Ok(Place::Sigv4(Sigv4 { region, service, access_key_id, assume_role }))
    }

    fn assume_role(&self, file: AssumeRoleFile, region: &str) -> Result<AssumeRole, ManifestError> {
        let key = |key: &str| format!("sigv4.assume_role.{key}");
        if !file.role_arn.starts_with("arn:aws") || !file.role_arn.bytes().all(|b| b.is_ascii_graphic()) {
            let hint = "such as `arn:aws:iam::123456789012:role/agent`";
            return Err(self.wrong(&key("role_arn"), format!("`{}` is no ARN of a role", file.role_arn), hint));
        }
        // AWS Security Token Service API Reference, "AssumeRole".
        let word = |text: &str, least: usize, most: usize, marks: &[u8]| {
            (least..=most).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || marks.contains(&b))
        };
        let session_name = file.session_name.unwrap_or_else(|| "ringfence".into());
        if !word(&session_name, 2, 64, b"_+=,.@-") {
            let hint = "write 2 to 64 of A-Z, a-z, 0-9 and `_+=,.@-`";
            return Err(self.wrong(&key("session_name"), format!("`{session_name}` is no name of a session"), hint));
        }
        if let Some(id) = file.external_id.as_deref().filter(|id| !word(id, 2, 1224, b"_+=,.@:/-")) {
            let hint = "write 2 to 1224 of A-Z, a-z, 0-9 and `_+=,.@:/-`";
            return Err(self.wrong(&key("external_id"), format!("`{id}` is no external id"), hint));
        }
        let end = if region.starts_with("cn-") { ".cn" } else { "" };
        let usual = format!("https://sts.{region}.amazonaws.com{end}/");
        let endpoint = self.endpoint(
            &key("sts_url"),
            file.sts_url.as_deref().unwrap_or(&usual),
            file.connect_to.as_deref(),
            file.ca.as_deref(),
            file.allow_private,
        )?;
        if endpoint.path.contains('?') {
            return Err(self.wrong(
                &key("sts_url"),
                "it has a query",
                "write it as `https://sts.eu-central-1.amazonaws.com/`",
            ));
        }
        Ok(AssumeRole { endpoint, role_arn: file.role_arn, external_id: file.external_id, session_name })
    }

    fn oauth2(&self, file: Oauth2File) -> Result<Place, ManifestError> {
        let texts = file.scopes.iter().chain(&file.audience).chain([&file.client_id]);
        if let Some(bad) = texts.into_iter().find(|t| t.is_empty() || t.chars().any(|c| c.is_control() || c == ' ')) {
            return Err(self.wrong("oauth2", format!("`{bad}` is empty or has a space"), "write one scope a text"));
        }
        let endpoint = self.endpoint(
            "oauth2.token_url",
            &file.token_url,
            file.connect_to.as_deref(),
            file.ca.as_deref(),
            file.allow_private,
        )?;
        Ok(Place::Oauth2(Oauth2 {
            endpoint,
            client_id: file.client_id,
            scopes: file.scopes,
            grant: file.grant,
            audience: file.audience,
            client_auth: file.client_auth.unwrap_or(ClientAuth::Basic),
        }))
    }

    fn google(&self, file: GoogleFile) -> Result<Place, ManifestError> {
        if file.scopes.is_empty() || file.scopes.iter().any(|s| s.is_empty() || s.contains(char::is_whitespace)) {
            return Err(self.wrong(
                "google_service_account.scopes",
                "it needs scopes, one a text",
                "such as `[\"https://www.googleapis.com/auth/cloud-platform\"]`",
            ));
        }
        let endpoint = self.endpoint(
            "google_service_account.token_url",
            file.token_url.as_deref().unwrap_or("https://oauth2.googleapis.com/token"),
            file.connect_to.as_deref(),
            file.ca.as_deref(),
            file.allow_private,
        )?;
        Ok(Place::GoogleServiceAccount(GoogleServiceAccount { endpoint, scopes: file.scopes, subject: file.subject }))
    }

    fn github(&self, file: GithubFile) -> Result<Place, ManifestError> {
        let id = |key: &str, id: Id| {
            let text = match id {
                Id::Number(number) => number.to_string(),
                Id::Text(text) => text,
            };
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
            plain.then_some(text).ok_or_else(|| {
                self.wrong(&format!("github_app.{key}"), "not an id", "write the number that GitHub shows")
            })
        };
        let app_id = id("app_id", file.app_id)?;
        let installation_id = id("installation_id", file.installation_id)?;
        let api = self.endpoint(
            "github_app.api",
            file.api.as_deref().unwrap_or("https://api.github.com/"),
            file.connect_to.as_deref(),
            file.ca.as_deref(),
            file.allow_private,
        )?;
        Ok(Place::GithubApp(GithubApp { api, app_id, installation_id }))
    }

    fn endpoint(
        &self,
        key: &str,
        url: &str,
        connect_to: Option<&str>,
        ca: Option<&str>,
        allow_private: bool,
    ) -> Result<Endpoint, ManifestError> {
        let hint = "write it as `https://login.example.org/token`";
        let wrong = |why: String| self.wrong(key, why, hint);
        let rest = url.strip_prefix("https://").ok_or_else(|| {
            wrong(format!("`{url}` is not `https://`: a secret would cross the network in cleartext"))
        })?;
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if path.bytes().any(|b| b <= b' ' || b >= 0x7f || b == b'#') || authority.contains('@') {
            return Err(wrong(format!("`{url}` is not a plain address")));
        }
        let bracketed = authority.strip_prefix('[').and_then(|a| a.split_once(']'));
        let (host, port) = match bracketed {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None => 443,
            Some(port) => port.parse().map_err(|e| wrong(format!("port `{port}`: {e}")))?,
        };
        Ok(Endpoint {
            host: host.parse().map_err(|e| wrong(format!("host `{host}`: {e}")))?,
            port,
            path: path.into(),
            connect_to: connect_to
                .map(|text| text.parse().map_err(|e| wrong(format!("connect_to `{text}`: {e}"))))
                .transpose()?,
            ca_pem: ca.map(|file| (self.ca_files)(file).map_err(|e| wrong(format!("ca `{file}`: {e}")))).transpose()?,
            allow_private,
        })
    }
}
