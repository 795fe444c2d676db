//! From what was written to what it means.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::{
    A2aFile, Credential, CredentialFile, Danger, Failover, FailoverFile, Grant, GrantFile, Health, Image, Ingress,
    IngressAuth, IngressFile, Kind, Limits, LimitsFile, LlmFile, LlmRules, Manifest, ManifestFile, McpFile, Place,
    RpcProtocol, RpcRules, Scheme, TlsMode, Trust, USUAL_CAPTURES, credential,
};
use crate::report::{Explain, Fault, one_line};
use crate::{AgentName, Bytes, Digest, HostPattern};

/// Names of mechanisms that `[danger] without` may give up.
pub const MECHANISMS: [&str; 3] = ["disk-quota", "landlock", "seccomp"];

/// The most tries after the first.
const MAX_RETRIES: u8 = 5;

/// Why a manifest is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// TOML that does not parse, or a value of the wrong shape.
    #[error("cannot read the manifest at line {line}: {message}")]
    Syntax {
        /// 1-based line.
        line: usize,
        /// The parser's word.
        message: String,
    },
    /// A key that does not exist.
    #[error("unknown manifest key `{key}` at line {line}")]
    UnknownKey {
        /// 1-based line.
        line: usize,
        /// The key.
        key: String,
        /// The known key that is nearest.
        nearest: Option<String>,
        /// All keys known there.
        known: Vec<String>,
    },
    /// A value that means nothing here.
    #[error("manifest value {place} is not usable: {why}")]
    Value {
        /// Which value, with its text.
        place: String,
        /// Why.
        why: String,
        /// What to write instead.
        hint: String,
    },
    /// A grant that asks for what cannot be enforced.
    #[error("grant {number} for `{host}` cannot be enforced: {why}")]
    Unenforceable {
        /// 1-based number of the grant.
        number: usize,
        /// Its host.
        host: String,
        /// Why.
        why: String,
        /// What to do.
        hint: String,
    },
}

impl Explain for ManifestError {
    fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "manifest.syntax",
            Self::UnknownKey { .. } => "manifest.unknown_key",
            Self::Value { .. } => "manifest.value",
            Self::Unenforceable { .. } => "manifest.unenforceable",
        }
    }

    fn fault(&self) -> Fault {
        Fault::Caller
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Syntax { .. } => None,
            Self::UnknownKey { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            Self::UnknownKey { known, .. } => Some(format!("keys known here: {}", known.join(", "))),
            Self::Value { hint, .. } | Self::Unenforceable { hint, .. } => Some(hint.clone()),
        }
    }
}

/// Turns the parser's error into ours, with the line and the nearest known key.
pub(super) fn toml_error(text: &str, error: &toml::de::Error) -> ManifestError {
    let at = error.span().map_or(0, |span| span.start);
    let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    let message = one_line(error.message());
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let mut quoted = rest.split('`');
        let key = quoted.next().unwrap_or_default().to_owned();
        let known: Vec<String> = quoted.skip(1).step_by(2).map(str::to_owned).collect();
        let nearest = known
            .iter()
            .map(|k| (strsim::damerau_levenshtein(k, &key), k))
            .filter(|(distance, k)| *distance <= 1 + k.len().max(key.len()) / 3)
            .min()
            .map(|(_, k)| k.clone());
        return ManifestError::UnknownKey { line, key, nearest, known };
    }
    ManifestError::Syntax { line, message }
}

pub(super) fn value(place: impl Into<String>, why: impl ToString, hint: impl Into<String>) -> ManifestError {
    ManifestError::Value { place: place.into(), why: why.to_string(), hint: hint.into() }
}

pub(super) fn understand(
    file: ManifestFile,
    ca_files: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Manifest, ManifestError> {
    let written = file.agent.name.unwrap_or_default();
    if written.is_empty() {
        return Err(value("[agent] name", "it is missing", "write `name = \"my-agent\"` below `[agent]`"));
    }
    let name: AgentName = written.parse().map_err(|e| value("[agent] name", e, "pick another name"))?;
    let kind = file.agent.kind.unwrap_or(Kind::Script);
    if file.agent.entry.first().is_none_or(String::is_empty) {
        return Err(value(
            "[agent] entry",
            "it is missing",
            "write the command line, such as `entry = [\"streamlit\", \"run\", \"app.py\"]`",
        ));
    }
    env_names("[agent]", &file.agent.env)?;
    let credentials = credentials(file.credential, ca_files)?;
    let mut grants = grants(file.grant, &credentials, ca_files)?;
    let servers = super::server::understand(&name, file.mcp, ca_files)?;
    super::server::grant_all(&servers, &mut grants)?;
    for mechanism in &file.danger.without {
        if !MECHANISMS.contains(&mechanism.as_str()) {
            return Err(value(
                format!("[danger] without `{mechanism}`"),
                "no such mechanism",
                format!("known: {}", MECHANISMS.join(", ")),
            ));
        }
    }
    let health = Health {
        path: file.agent.health.unwrap_or_else(|| kind.default_health().into()),
        start_timeout: Duration::from_secs(file.agent.start_timeout_s.unwrap_or(120)),
    };
    if !health.path.starts_with('/') {
        return Err(value(format!("[agent] health `{}`", health.path), "not a path", "begin it with `/`"));
    }
    if kind == Kind::Mcp && file.ingress.is_none() {
        let hint =
            "add `[ingress]` with `port = 8000`; a server of one agent alone is a table `[mcp.NAME]` of that agent";
        return Err(value("[agent] kind `mcp`", "nobody could reach it", hint));
    }
    Ok(Manifest {
        name,
        kind,
        entry: file.agent.entry,
        env: file.agent.env,
        health,
        image: image(file.image)?,
        dependencies: super::dependencies::understand(file.dependencies)?,
        limits: limits(file.limits)?,
        grants,
        credentials,
        servers,
        server_of: None,
        budget: file.budget.map(super::budget::understand).transpose()?.unwrap_or_default(),
        ingress: file.ingress.map(ingress).transpose()?,
        danger: Danger { without: file.danger.without },
    })
}

pub(super) fn credentials(
    written: BTreeMap<String, CredentialFile>,
    ca_files: &dyn Fn(&str) -> Result<String, String>,
) -> Result<BTreeMap<String, Credential>, ManifestError> {
    let understood = written.into_iter().map(|(name, file)| {
        let credential = credential::understand(&name, file, ca_files)?;
        Ok((name, credential))
    });
    understood.collect()
}

pub(super) fn grants(
    written: Vec<GrantFile>,
    credentials: &BTreeMap<String, Credential>,
    ca_files: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Vec<Grant>, ManifestError> {
    let mut grants = Vec::with_capacity(written.len());
    for (index, written) in written.into_iter().enumerate() {
        let grant = grant(index + 1, written, ca_files)?;
        if let Some(wanted) = &grant.credential
            && !credentials.contains_key(wanted)
        {
            return Err(value(
                format!("grant {} credential `{wanted}`", index + 1),
                "no such credential",
                format!("add a `[credential.{wanted}]` table"),
            ));
        }
        certified(index + 1, &grant, credentials)?;
        if let Some(credential) = grant.credential.as_ref().and_then(|name| credentials.get(name)) {
            super::protocol::check_place(index + 1, &grant, credential)?;
        }
        grants.push(grant);
    }
    super::protocol::check_overlaps(&grants)?;
    lead_failovers(&mut grants)?;
    Ok(grants)
}

/// Holds what a grant shows in handshakes, and puts into calls, against what the credentials are for.
fn certified(number: usize, grant: &Grant, credentials: &BTreeMap<String, Credential>) -> Result<(), ManifestError> {
    let is_certificate = |name: &String| credentials.get(name).map(|c| c.place == Place::ClientCertificate);
    if let Some(name) = grant.credential.as_ref().filter(|name| is_certificate(name) == Some(true)) {
        return Err(value(
            format!("grant {number} credential `{name}`"),
            "it is a client certificate, and goes into no call",
            format!("write `client_certificate = \"{name}\"`"),
        ));
    }
    match grant.client_certificate.as_ref().map(|name| (name, is_certificate(name))) {
        Some((name, None)) => Err(value(
            format!("grant {number} client_certificate `{name}`"),
            "no such credential",
            format!("add `[credential.{name}]` with `client_certificate = true`"),
        )),
        Some((name, Some(false))) => Err(value(
            format!("grant {number} client_certificate `{name}`"),
            "that credential is no client certificate",
            format!("write `client_certificate = true` in `[credential.{name}]`, in the stead of its place"),
        )),
        _ => Ok(()),
    }
}

fn image(file: super::ImageFile) -> Result<Image, ManifestError> {
    let plain = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:~".contains(&b));
    for (key, text) in file.packages.iter().map(|p| ("packages", p)).chain(file.suite.iter().map(|s| ("suite", s))) {
        if !plain(text) {
            return Err(value(format!("[image] {key} `{text}`"), "not a Debian name", "use a-z, 0-9, `+`, `-`, `.`"));
        }
    }
    if let Some(python) = &file.python
        && !python.split_once('.').is_some_and(|(major, minor)| {
            major == "3" && !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit())
        })
    {
        return Err(value(format!("[image] python `{python}`"), "not a version", "write it as `3.11`"));
    }
    Ok(Image { suite: file.suite, mirror: file.mirror, python: file.python, packages: file.packages })
}

pub(super) fn limits(file: LimitsFile) -> Result<Limits, ManifestError> {
    let limits = Limits {
        memory: file.memory.unwrap_or(Bytes::gib(1)),
        cpus: file.cpus.unwrap_or(1.0),
        pids: file.pids.unwrap_or(128),
        disk: file.disk.unwrap_or(Bytes::gib(1)),
        tmp: file.tmp.unwrap_or(Bytes::mib(256)),
        files: file.files.unwrap_or(4096),
        captures: file.captures.unwrap_or(USUAL_CAPTURES),
    };
    if !(limits.cpus.is_finite() && limits.cpus >= 0.01 && limits.cpus <= 4096.0) {
        return Err(value(format!("[limits] cpus `{}`", limits.cpus), "out of range", "use 0.01 to 4096"));
    }
    for (key, size, least) in [
        ("memory", limits.memory, Bytes::mib(16)),
        ("disk", limits.disk, Bytes::mib(16)),
        ("tmp", limits.tmp, Bytes::mib(1)),
        ("captures", limits.captures, Bytes::mib(1)),
    ] {
        if size < least {
            return Err(value(format!("[limits] {key} `{size}`"), "too small", format!("use {least} or more")));
        }
    }
    if limits.pids < 4 {
        return Err(value(format!("[limits] pids `{}`", limits.pids), "too small", "use 4 or more"));
    }
    Ok(limits)
}

fn grant(
    number: usize,
    file: GrantFile,
    ca_files: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Grant, ManifestError> {
    let place = |key: &str, text: &str| format!("grant {number} {key} `{text}`");
    let host: HostPattern = file
        .host
        .parse()
        .map_err(|e| value(place("host", &file.host), e, "name the host, or `*.suffix` with two labels or more"))?;
    let (protocol, port) = super::protocol::understand(number, &file)?;
    let scheme = file.scheme.unwrap_or(Scheme::Https);
    let tls = file.tls.unwrap_or(TlsMode::Inspect);
    let unenforceable = |why: &str, hint: &str| ManifestError::Unenforceable {
        number,
        host: file.host.clone(),
        why: why.into(),
        hint: hint.into(),
    };
    if tls == TlsMode::Passthrough {
        let needs_content = [
            (!file.methods.is_empty(), "methods"),
            (!file.paths.is_empty(), "paths"),
            (file.credential.is_some(), "credential"),
            (file.client_certificate.is_some(), "client_certificate"),
            (!file.models.is_empty(), "models"),
            (file.trust == Some(Trust::Untrusted), "trust"),
            (file.ca.is_some(), "ca"),
            (file.llm.is_some(), "llm"),
            (file.mcp.is_some(), "mcp"),
            (file.a2a.is_some(), "a2a"),
            (file.capture.is_some(), "capture"),
        ];
        if let Some((_, key)) = needs_content.iter().find(|(set, _)| *set) {
            return Err(unenforceable(
                &format!("`{key}` needs the content of the call, and `tls = \"passthrough\"` leaves it closed"),
                &format!("drop `{key}`, or drop `tls = \"passthrough\"`"),
            ));
        }
        if scheme == Scheme::Http {
            return Err(unenforceable("`tls` is set but the scheme is `http`", "drop one of them"));
        }
    }
    if scheme == Scheme::Http && file.credential.is_some() && file.connect_to.is_none() && !file.allow_private {
        return Err(unenforceable(
            "a credential would cross the network in cleartext",
            "use `scheme = \"https\"`, or name a private upstream with `connect_to`",
        ));
    }
    if scheme == Scheme::Http && file.client_certificate.is_some() {
        return Err(unenforceable(
            "a client certificate is shown in TLS, and there is none",
            "use `scheme = \"https\"`",
        ));
    }
    let mut methods = Vec::new();
    for method in &file.methods {
        if method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
            return Err(value(place("methods", method), "not a method", "write it as `GET`"));
        }
        methods.push(method.to_ascii_uppercase());
    }
    for path in &file.paths {
        if !path.starts_with('/') || path.contains(['?', '#', '\\', '"']) || path.bytes().any(|b| b <= b' ' || b > b'~')
        {
            return Err(value(
                place("paths", path),
                "not a path glob",
                "begin it with `/`, without query; `*` stands for any text",
            ));
        }
    }
    let connect_to = file
        .connect_to
        .as_deref()
        .map(|text| {
            text.parse::<SocketAddr>()
                .map_err(|e| value(place("connect_to", text), e, "write `address:port`, such as `127.0.0.1:8443`"))
        })
        .transpose()?;
    let ca_pem = file
        .ca
        .as_deref()
        .map(|path| ca_files(path).map_err(|e| value(place("ca", path), e, "name a readable PEM file")))
        .transpose()?;
    Ok(Grant {
        host,
        protocol,
        port: port.or(file.port).unwrap_or(match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }),
        scheme,
        methods,
        paths: file.paths,
        credential: file.credential,
        client_certificate: file.client_certificate,
        models: file.models,
        trust: file.trust.unwrap_or(Trust::Trusted),
        tls,
        connect_to,
        ca_pem,
        allow_private: file.allow_private,
        rpc: rpc(&format!("grant {number}"), file.mcp, file.a2a)?,
        capture: file.capture.map(|file| super::capture::understand(number, file)).transpose()?,
        llm: file.llm.map(|rules| llm(number, rules)).transpose()?.unwrap_or_default(),
    })
}

pub(super) fn rpc(place: &str, mcp: Option<McpFile>, a2a: Option<A2aFile>) -> Result<Option<RpcRules>, ManifestError> {
    let file = match (mcp, a2a) {
        (None, None) => return Ok(None),
        (None, Some(a2a)) => {
            return Ok(Some(RpcRules { protocol: RpcProtocol::A2a, methods: a2a.methods, ..RpcRules::default() }));
        }
        (Some(_), Some(_)) => {
            let place = format!("{place} mcp and a2a");
            return Err(value(place, "one server speaks one of them", "write two grants with a path each"));
        }
        (Some(file), None) => file,
    };
    let place = |key: &str, text: &str| format!("{place} mcp {key} `{text}`");
    for tool in file.schemas.keys() {
        let listed = file.tools.as_ref().is_none_or(|tools| tools.iter().any(|glob| glob_covers(glob, tool)));
        if !listed {
            return Err(value(place("schemas", tool), "`tools` does not list it", "add it there, or drop its schema"));
        }
    }
    for (tool, arguments) in &file.arguments {
        let listed = file.tools.as_ref().is_none_or(|tools| tools.iter().any(|glob| glob_covers(glob, tool)));
        if !listed {
            return Err(value(place("arguments", tool), "`tools` does not list it", "add it there, or drop its rules"));
        }
        if let Some((argument, _)) = arguments.iter().find(|(_, globs)| globs.is_empty()) {
            let why = "nothing matches no glob, so the tool could never be called";
            return Err(value(place("arguments", &format!("{tool}.{argument}")), why, "write at least one glob"));
        }
    }
    let pin = |(tool, text): (String, String)| {
        let digest = text.parse::<Digest>();
        let digest = digest.map_err(|e| value(place("pins", &tool), e, "write `sha256:` and 64 hexadecimal digits"))?;
        Ok((tool, digest))
    };
    let pins = file.pins.into_iter().map(pin).collect::<Result<_, ManifestError>>()?;
    // As a text, for schemas that come as JSON; what it says is read where it is enforced.
    let schema = |(tool, written): (String, serde_json::Value)| match written {
        serde_json::Value::String(text) => (tool, text),
        table => (tool, table.to_string()),
    };
    let schemas = file.schemas.into_iter().map(schema).collect();
    let McpFile { methods, tools, prompts, resources, arguments, sampling, elicitation, roots, .. } = file;
    let protocol = RpcProtocol::Mcp;
    Ok(Some(RpcRules {
        protocol,
        methods,
        tools,
        prompts,
        resources,
        arguments,
        schemas,
        pins,
        sampling,
        elicitation,
        roots,
    }))
}

/// Whether `text` matches `glob`, where `*` stands for any text.
#[must_use]
pub fn glob_covers(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let Some(rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = glob.rsplit_once('*').map(|(_, last)| last) else { return rest.is_empty() };
    let middle = parts.clone().count().saturating_sub(1);
    let mut rest = rest;
    for part in parts.take(middle) {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn llm(number: usize, file: LlmFile) -> Result<LlmRules, ManifestError> {
    let place = |key: &str, text: &str| format!("grant {number} llm {key} `{text}`");
    if file.max_tokens == Some(0) {
        return Err(value(place("max_tokens", "0"), "no answer has no tokens", "use 1 or more"));
    }
    const FORMATS: [&str; 4] = ["grammar", "json", "json_schema", "text"];
    if let Some(format) = file.formats.iter().find(|format| !FORMATS.contains(&format.as_str())) {
        return Err(value(place("formats", format), "not known", format!("known: {}", FORMATS.join(", "))));
    }
    let digest = |text: &String| {
        text.parse::<Digest>().map_err(|e| {
            value(
                place("system_prompts", text),
                e,
                "write `sha256:` and 64 hexadecimal digits, as the audit log has it",
            )
        })
    };
    let system_prompts = file.system_prompts.iter().map(digest).collect::<Result<_, _>>()?;
    let retries = file.retries.unwrap_or(0);
    if retries > MAX_RETRIES {
        let why = "each may be waited for";
        return Err(value(place("retries", &retries.to_string()), why, format!("use at most {MAX_RETRIES}")));
    }
    let failover = file.failover.into_iter().map(|file| failover(number, file)).collect::<Result<_, _>>()?;
    let LlmFile { max_tokens, tools, streaming, formats, .. } = file;
    Ok(LlmRules { max_tokens, tools, system_prompts, streaming, formats, retries, failover })
}

fn failover(number: usize, file: FailoverFile) -> Result<Failover, ManifestError> {
    let place = |key: &str, text: &str| format!("grant {number} llm failover {key} `{text}`");
    let host = file.host.parse();
    let host = host.map_err(|e| value(place("host", &file.host), e, "name one host, as its own grant covers it"))?;
    if let Some(path) = file.path.as_ref().filter(|path| !path.starts_with('/') || path.contains(['?', '#', '*'])) {
        return Err(value(place("path", path), "not a path", "begin it with `/`, without query"));
    }
    // How it is spoken to is told by its own grant.
    let (port, scheme) = (file.port.unwrap_or(0), Scheme::Https);
    Ok(Failover { host, port, scheme, path: file.path, model: file.model })
}

/// Finds, for each provider that a grant falls back on, the grant that covers it.
fn lead_failovers(grants: &mut [Grant]) -> Result<(), ManifestError> {
    let known: Vec<(HostPattern, u16, Scheme)> = grants
        .iter()
        .filter(|grant| grant.protocol.is_http() && grant.tls == TlsMode::Inspect)
        .map(|grant| (grant.host.clone(), grant.port, grant.scheme))
        .collect();
    for (index, grant) in grants.iter_mut().enumerate() {
        for failover in &mut grant.llm.failover {
            let covers = |(host, port, _): &&(HostPattern, u16, Scheme)| {
                host.covers(&failover.host) && (failover.port == 0 || failover.port == *port)
            };
            let Some((_, port, scheme)) = known.iter().find(covers) else {
                let place = format!("grant {} llm failover `{}`", index + 1, failover.host);
                let hint = format!("add a `[[grant]]` with `host = \"{}\"`", failover.host);
                return Err(value(place, "no grant covers it", hint));
            };
            (failover.port, failover.scheme) = (*port, *scheme);
        }
    }
    Ok(())
}

fn ingress(file: IngressFile) -> Result<Ingress, ManifestError> {
    let hint = "write a port, an address or both, such as `127.0.0.1:8501`";
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if file.port == 0 {
        return Err(value("[ingress] port `0`", "not a port", "write the port that the agent listens on"));
    }
    let publish = match file.publish.as_deref() {
        None => SocketAddr::new(local, file.port),
        Some(text) => {
            if let Ok(port) = text.parse::<u16>() {
                SocketAddr::new(local, port)
            } else if let Ok(address) = text.parse::<IpAddr>() {
                SocketAddr::new(address, file.port)
            } else {
                text.parse().map_err(|e| value(format!("[ingress] publish `{text}`"), e, hint))?
            }
        }
    };
    let auth = file.auth.unwrap_or(IngressAuth::Token);
    if auth == IngressAuth::None && !publish.ip().is_loopback() {
        return Err(value(
            format!("[ingress] publish `{publish}`"),
            "`auth = \"none\"` would open the agent to the network",
            "publish on 127.0.0.1, or use `auth = \"token\"`",
        ));
    }
    Ok(Ingress { port: file.port, publish, auth })
}

pub(super) fn env_names(table: &str, env: &BTreeMap<String, String>) -> Result<(), ManifestError> {
    match env.keys().find(|key| !is_env_name(key)) {
        Some(key) => Err(value(format!("{table} env `{key}`"), "not a variable name", "use A-Z, 0-9 and `_`")),
        None => Ok(()),
    }
}

pub(super) fn is_env_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
