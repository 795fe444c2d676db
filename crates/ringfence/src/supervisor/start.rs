//! Starting one agent: from a verified image to a sandbox that runs.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ringfence_gate::config::{CredentialLease, Fds, GateConfig, IngressConfig};
use ringfence_identity::Authority;
use ringfence_image::VerifiedImage;
use ringfence_model::manifest::{IngressAuth, Kind, Server, TlsMode};
use ringfence_model::{Fault, Manifest, Report, SandboxId, SecretText};
use ringfence_sandbox::launch::{self, Launched};
use ringfence_sandbox::spec::{Fence, SandboxSpec, StateVolume, fds};
use ringfence_secrets::placeholder;

use crate::paths::{CAPTURES, HostPolicy, Paths};
use crate::upstream_proxy::ProxySettings;

/// The system's own trust bundle, for calls that are relayed closed.
const HOST_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// Where the sandbox's trust bundle lies inside.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Variables by which clients find the trust bundle.
pub fn trust_env() -> impl Iterator<Item = (String, String)> {
    [
        "AWS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "GIT_SSL_CAINFO",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "HTTPLIB2_CA_CERTS",
        "NODE_EXTRA_CA_CERTS",
        "PGSSLROOTCERT",
        "PIP_CERT",
        "REQUESTS_CA_BUNDLE",
        "SSL_CERT_FILE",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), BUNDLE.to_owned()))
}

/// Eight random bytes.
pub fn random() -> [u8; 8] {
    let mut bytes = [0; 8];
    // A generator that fails leaves zeros: ids then still differ by time, and a token is never made from this.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

/// A new start's id.
pub fn new_sandbox_id() -> SandboxId {
    let now = jiff::Timestamp::now().as_millisecond();
    SandboxId::from_parts(u64::try_from(now).unwrap_or(0), random())
}

/// Makes a token that nobody guesses.
///
/// # Errors
/// A report if the host has no randomness.
pub fn new_token() -> Result<SecretText, Report> {
    let mut bytes = [0; 24];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Report::new("random", Fault::Host, "the host has no randomness"))?;
    use base64::Engine;
    Ok(SecretText::new(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)))
}

/// The descriptors that a gate inherits from its shim.
pub fn gate_fds() -> Fds {
    Fds {
        tcp: fds::GATE_TCP.to_vec(),
        dns: fds::GATE_DNS.to_vec(),
        udp_sink: fds::GATE_UDP.to_vec(),
        host_netns: Some(fds::GATE_HOST_NETNS),
        spool: fds::GATE_SPOOL,
        ready: fds::GATE_READY,
        control: Some(fds::GATE_CONTROL),
        ..Fds::default()
    }
}

/// Listens where people will reach the agent.
///
/// # Errors
/// `ingress.port_in_use`, or what else the kernel says.
pub fn listen(publish: SocketAddr) -> Result<OwnedFd, Report> {
    let listener = TcpListener::bind(publish).map_err(|e| {
        let report =
            Report::new("ingress.port_in_use", Fault::Caller, format!("cannot listen on `{publish}`")).cause(&e);
        if e.kind() == std::io::ErrorKind::AddrInUse {
            report.hint(format!(
                "find who has it with `ss -ltnp sport = :{}`, or choose another with `publish` in `[ingress]`",
                publish.port()
            ))
        } else {
            report.hint("choose another address with `publish` in `[ingress]`")
        }
    })?;
    Ok(listener.into())
}

/// What a start needs.
pub struct Plan<'a> {
    /// Where things lie.
    pub paths: &'a Paths,
    /// Our own binary.
    pub program: &'a Path,
    /// The host's authority.
    pub authority: &'a Authority,
    /// The manifest.
    pub manifest: &'a Manifest,
    /// The image, verified.
    pub image: &'a VerifiedImage,
    /// The uid range.
    pub slot: u32,
    /// Secrets by credential.
    pub secrets: &'a BTreeMap<String, SecretText>,
    /// The token of the ingress link.
    pub token: &'a SecretText,
    /// What the operator says for all agents of the host.
    pub host: HostPolicy,
    /// The ingress socket, if there is an ingress.
    pub ingress: Option<OwnedFd>,
}

/// A start that succeeded.
pub struct Started {
    /// Its id.
    pub id: SandboxId,
    /// Its shim.
    pub launched: Launched,
    /// Where people reach it, with the token.
    pub url: Option<String>,
}

/// Which barriers stand under this manifest.
pub fn fence(manifest: &Manifest) -> Fence {
    let without = |name: &str| manifest.danger.without.iter().any(|w| w == name);
    Fence { landlock: !without("landlock"), seccomp: !without("seccomp"), ..Fence::default() }
}

/// Starts an agent.
///
/// # Errors
/// The report of the step that failed; nothing is left then.
pub fn start(plan: Plan<'_>, id: SandboxId) -> Result<Started, Report> {
    let stand_ins = stand_ins(&plan)?;
    let spec = spec(&plan, &id, &stand_ins);
    let (gate, url) = gate_config(&plan, &spec, &stand_ins)?;
    let config = serde_json::to_vec(&gate)
        .map_err(|e| Report::new("sandbox.step", Fault::Us, "cannot describe the gate").because(&e))?;
    let launched = launch::launch(&spec, &config, plan.ingress, plan.program)?;
    Ok(Started { id, launched, url })
}

fn spec(plan: &Plan<'_>, id: &SandboxId, stand_ins: &BTreeMap<String, String>) -> SandboxSpec {
    let manifest = plan.manifest;
    let home = plan.paths.agent(&manifest.name);
    let mut env = plan.image.env();
    env.extend(trust_env());
    env.extend(manifest.servers.keys().map(|name| (Server::variable(name), Server::url(name))));
    env.extend(manifest.env.clone());
    for (name, credential) in &manifest.credentials {
        if let (Some(variable), Some(stand_in)) = (&credential.env, stand_ins.get(name)) {
            env.insert(variable.clone(), stand_in.clone());
        }
    }
    env.insert("HOSTNAME".into(), manifest.name.to_string());
    let quota = !manifest.danger.without.iter().any(|w| w == "disk-quota");
    SandboxSpec {
        id: id.clone(),
        agent: manifest.name.clone(),
        slot: plan.slot,
        layers: plan.image.layers().to_vec(),
        argv: manifest.entry.clone(),
        env: env.into_iter().collect(),
        bridge: manifest.ingress.as_ref().filter(|_| manifest.kind == Kind::Mcp).map(|ingress| ingress.port),
        cwd: PathBuf::from(plan.image.working_dir()),
        limits: manifest.limits,
        mounts: Vec::new(),
        state: Some(StateVolume { file: home.join("state.img"), size: manifest.limits.disk, quota }),
        trust_stores: plan.image.trust_stores().into_iter().map(PathBuf::from).collect(),
        host_roots: manifest
            .grants
            .iter()
            .any(|g| g.tls == TlsMode::Passthrough)
            .then(|| HOST_ROOTS.iter().map(PathBuf::from).find(|p| p.exists()))
            .flatten(),
        run_dir: plan.paths.sandbox(id),
        mount_dir: plan.paths.mounts(),
        log: home.join("agent.log"),
        spools: plan.paths.spools_of(id),
        ledger: Some(home.join("budget")),
        definitions: Some(home.join("definitions")),
        captures: Some(home.join(CAPTURES)),
        host_ledger: (!plan.host.budget.is_empty()).then(|| plan.paths.host_ledger()),
        gate_program: plan.program.to_path_buf(),
        fence: fence(manifest),
        hold: true,
    }
}

/// What the agent holds instead of each secret; new at each start.
fn stand_ins(plan: &Plan<'_>) -> Result<BTreeMap<String, String>, Report> {
    let mut all = BTreeMap::new();
    for (name, credential) in &plan.manifest.credentials {
        let Some(secret) = plan.secrets.get(name) else { continue };
        let made = placeholder(&credential.place, secret, credential.placeholder.as_deref());
        let made = made.map_err(|e| {
            Report::new("sandbox.step", Fault::Host, "cannot make placeholders for secrets").because(&e)
        })?;
        all.insert(name.clone(), made);
    }
    Ok(all)
}

fn gate_config(
    plan: &Plan<'_>,
    spec: &SandboxSpec,
    stand_ins: &BTreeMap<String, String>,
) -> Result<(GateConfig, Option<String>), Report> {
    let manifest = plan.manifest;
    let mut credentials = BTreeMap::new();
    for (name, credential) in &manifest.credentials {
        let secret = plan.secrets.get(name).ok_or_else(|| {
            Report::new("credential.absent", Fault::Caller, format!("credential `{name}` has no value"))
                .hint("run `ringfence up` again with its source present")
        })?;
        credentials.insert(
            name.clone(),
            CredentialLease {
                place: credential.place.clone(),
                placeholder: stand_ins.get(name).cloned().unwrap_or_default(),
                secret: secret.clone(),
            },
        );
    }
    let mut url = None;
    let ingress = match &manifest.ingress {
        None => None,
        Some(wanted) => {
            let now = jiff::Timestamp::now().as_second();
            let host = wanted.publish.ip();
            let own = manifest.server_of.as_ref().map(|of| Server::host(&of.server));
            let names: Vec<&str> = std::iter::once("localhost").chain(own.as_deref()).collect();
            let issued = plan.authority.issue(&names, &[host], now)?;
            let origin = format!("https://{}", wanted.publish);
            url = Some(match wanted.auth {
                IngressAuth::None => format!("{origin}/"),
                IngressAuth::Token => format!("{origin}/?token={}", plan.token.reveal()),
            });
            Some(IngressConfig {
                agent_port: wanted.port,
                listener_fd: fds::GATE_INGRESS,
                cert_chain_pem: issued.chain_pem,
                key_pem: issued.key_pem,
                auth: wanted.auth,
                token: plan.token.clone(),
                public_origin: origin,
            })
        }
    };
    let config = GateConfig {
        agent: manifest.name.clone(),
        sandbox: spec.id.clone(),
        grants: manifest.grants.clone(),
        guardrails: plan.host.guardrails.clone(),
        budget: manifest.budget.clone(),
        host_budget: plan.host.budget.clone(),
        prices: plan.host.prices.clone(),
        credentials,
        upstream_proxy: plan.host.upstream_proxy.as_ref().map(ProxySettings::read).transpose()?,
        captures: manifest.limits.captures,
        ingress,
        uid: spec.gate_uid(),
        gid: spec.gate_uid(),
        strict_audit: plan.host.strict_audit,
        danger_unconfined: false,
        fds: Fds {
            definitions: spec.definitions.as_ref().map(|_| fds::GATE_DEFINITIONS),
            captures: spec.captures.as_ref().map(|_| fds::GATE_CAPTURES),
            ledger: spec.ledger.as_ref().map(|_| fds::GATE_LEDGER),
            host_ledger: spec.host_ledger.as_ref().map(|_| fds::GATE_HOST_LEDGER),
            ..gate_fds()
        },
    };
    Ok((config, url))
}
