//! `[mcp.NAME]`: an MCP server that speaks over its standard input and output, in a sandbox of its own.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{self, ManifestError, value};
use super::{
    Budget, Credential, Grant, Health, Ingress, IngressAuth, Kind, Limits, Manifest, Place, RpcRules, SecretSource,
    ServerFile, Trust,
};
use crate::{AgentName, HostName, HostPattern};

/// Under it the agent finds its servers, each by its name.
const DOMAIN: &str = "mcp.ringfence.internal";

/// How names end that mean something of ours.
const OWN: &str = ".ringfence.internal";

/// Where a server takes messages.
const PATH: &str = "/mcp";

/// An MCP server that only one agent speaks to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Server {
    /// Its command line; never empty.
    pub command: Vec<String>,
    /// Plain environment variables; no secrets.
    pub env: BTreeMap<String, String>,
    /// How long it may take to answer its first message.
    pub start_timeout: Duration,
    /// Whether what it says is to be trusted.
    pub trust: Trust,
    /// What the agent may say to it.
    pub allow: RpcRules,
    /// What it may use up.
    pub limits: Limits,
    /// Where it may call itself.
    pub grants: Vec<Grant>,
    /// Secrets that its gate injects, by name.
    pub credentials: BTreeMap<String, Credential>,
    /// What it may spend.
    pub budget: Budget,
}

impl Server {
    /// The name under which the agent of a server finds it.
    #[must_use]
    pub fn host(name: &str) -> String {
        format!("{name}.{DOMAIN}")
    }

    /// The address under which the agent of a server finds it.
    #[must_use]
    pub fn url(name: &str) -> String {
        format!("https://{}{PATH}", Self::host(name))
    }

    /// The variable that tells the agent this address.
    #[must_use]
    pub fn variable(name: &str) -> String {
        format!("MCP_{}_URL", name.to_ascii_uppercase().replace('-', "_"))
    }

    /// The credential by which the agent's gate is let in.
    #[must_use]
    pub fn credential(name: &str) -> String {
        format!("mcp.{name}")
    }
}

/// Whose MCP server an agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerOf {
    /// The agent that alone speaks to it.
    pub agent: AgentName,
    /// Its name there.
    pub server: String,
}

/// Where a server of an agent listens on the host.
#[derive(Clone, Debug)]
pub struct Door {
    /// The server's name.
    pub server: String,
    /// Where.
    pub address: SocketAddr,
    /// PEM of the authority that its certificate is under.
    pub ca_pem: String,
}

impl Manifest {
    /// The name that a server of this agent has as an agent.
    ///
    /// # Errors
    /// If the two names together are too long.
    pub fn server_name(agent: &AgentName, server: &str) -> Result<AgentName, crate::id::AgentNameError> {
        format!("{agent}-mcp-{server}").parse()
    }

    /// The manifest of a server's own sandbox. It shares image and given-up barriers with the agent, and nothing else.
    #[must_use]
    pub fn of_server(&self, server: &str) -> Option<Self> {
        let name = Self::server_name(&self.name, server).ok()?;
        let of = ServerOf { agent: self.name.clone(), server: server.to_owned() };
        let server = self.servers.get(server)?;
        Some(Self {
            name,
            kind: Kind::Mcp,
            entry: server.command.clone(),
            env: server.env.clone(),
            health: Health { path: Kind::Mcp.default_health().into(), start_timeout: server.start_timeout },
            image: self.image.clone(),
            dependencies: self.dependencies.clone(),
            limits: server.limits,
            grants: server.grants.clone(),
            credentials: server.credentials.clone(),
            servers: BTreeMap::new(),
            server_of: Some(of),
            budget: server.budget.clone(),
            ingress: Some(Ingress {
                port: Kind::Mcp.default_port().unwrap_or_default(),
                // Any port that is free.
                publish: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                auth: IngressAuth::Token,
            }),
            danger: self.danger.clone(),
        })
    }

    /// This manifest, with its grants for servers leading to where they are.
    #[must_use]
    pub fn with_doors(&self, doors: &[Door]) -> Self {
        let mut manifest = self.clone();
        for Door { server, address, ca_pem } in doors {
            let Ok(host) = Server::host(server).parse::<HostPattern>() else { continue };
            let credential = Server::credential(server);
            for grant in manifest.grants.iter_mut().filter(|grant| grant.host == host) {
                grant.connect_to = Some(*address);
                grant.ca_pem = Some(ca_pem.clone());
                grant.credential = Some(credential.clone());
            }
            manifest.credentials.insert(
                credential.clone(),
                Credential {
                    from: SecretSource::Vault(credential),
                    place: Place::Header { name: "x-ringfence-token".into(), template: "{}".into() },
                    env: None,
                    placeholder: None,
                },
            );
        }
        manifest
    }
}

pub(super) fn understand(
    agent: &AgentName,
    written: BTreeMap<String, ServerFile>,
    ca_files: &dyn Fn(&str) -> Result<String, String>,
) -> Result<BTreeMap<String, Server>, ManifestError> {
    let understood = written.into_iter().map(|(name, file)| {
        let table = format!("[mcp.{name}]");
        let within = |error| within(&table, error);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !name.chars().all(plain) || Server::host(&name).parse::<HostName>().is_err() {
            return Err(value(&table, "not a name that a host can have", "use a-z, 0-9 and `-`"));
        }
        if Manifest::server_name(agent, &name).is_err() {
            let why = "its name and the agent's together are too long";
            return Err(value(&table, why, "use at most 35 characters for both"));
        }
        if file.command.first().is_none_or(String::is_empty) {
            let hint = "write its command line, such as `command = [\"python3\", \"-m\", \"my_server\"]`";
            return Err(value(format!("{table} command"), "it is missing", hint));
        }
        check::env_names(&table, &file.env)?;
        let credentials = check::credentials(file.credential, ca_files).map_err(within)?;
        let server = Server {
            command: file.command,
            env: file.env,
            start_timeout: Duration::from_secs(file.start_timeout_s.unwrap_or(60)),
            trust: file.trust.unwrap_or(Trust::Trusted),
            allow: check::rpc(&table, Some(file.allow.unwrap_or_default()), None)?.unwrap_or_default(),
            limits: check::limits(file.limits).map_err(within)?,
            grants: check::grants(file.grant, &credentials, ca_files).map_err(within)?,
            credentials,
            budget: file.budget.map(super::budget::understand).transpose().map_err(within)?.unwrap_or_default(),
        };
        Ok((name, server))
    });
    understood.collect()
}

/// Says in which table something is wrong.
fn within(table: &str, error: ManifestError) -> ManifestError {
    match error {
        ManifestError::Value { place, why, hint } => {
            ManifestError::Value { place: format!("{table} {place}"), why, hint }
        }
        other => other,
    }
}

/// Grants the agent its servers.
pub(super) fn grant_all(servers: &BTreeMap<String, Server>, grants: &mut Vec<Grant>) -> Result<(), ManifestError> {
    for (index, grant) in grants.iter().enumerate() {
        if format!(".{}", grant.host).ends_with(OWN) {
            let place = format!("grant {} host `{}`", index + 1, grant.host);
            let hint = "an MCP server of the agent's own is granted by its table `[mcp.NAME]`";
            return Err(value(place, "names there are Ringfence's own", hint));
        }
    }
    for (name, server) in servers {
        let host = Server::host(name).parse().map_err(|e| value(format!("[mcp.{name}]"), e, "pick another name"))?;
        grants.push(Grant {
            methods: ["DELETE", "GET", "POST"].map(String::from).to_vec(),
            paths: vec![PATH.into()],
            trust: server.trust,
            rpc: Some(server.allow.clone()),
            ..Grant::to(host)
        });
    }
    Ok(())
}
