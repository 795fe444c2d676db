//! The MCP servers of an agent: each is an agent of its own, which lives as long as the one that it serves.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ringfence_fleet::Caller;
use ringfence_fleet::api::{State, UpReport, UpRequest};
use ringfence_model::manifest::{Door, Server};
use ringfence_model::{AgentName, Fault, Manifest, Report, SecretText};
use ringfence_sandbox::control::Request;
use ringfence_sandbox::spec::SLOTS;

use super::db::Agent;
use super::recorder::tracing_line;
use super::start;
use super::up::{Telling, Took, With};
use super::{Supervisor, about, lock, step};
use crate::paths::HostPolicy;

/// How long a server may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// What all servers of a start have in common.
pub(super) struct Start<'a> {
    pub(super) caller: Caller,
    pub(super) folder: &'a Path,
    pub(super) image: &'a str,
    /// The uid range of the agent that they serve, which may not be remembered yet.
    pub(super) slot: u32,
    pub(super) given: &'a BTreeMap<String, SecretText>,
    pub(super) host: &'a HostPolicy,
    pub(super) telling: &'a Arc<Telling>,
}

impl Supervisor {
    /// Starts the servers of an agent, then the agent.
    ///
    /// # Errors
    /// The report of the first that did not come up; then none of them is.
    pub(super) async fn start_with_servers(
        &self,
        agent: Agent,
        mut secrets: BTreeMap<String, SecretText>,
        ingress: Option<OwnedFd>,
        start: &Start<'_>,
        took: &mut Took,
    ) -> Result<UpReport, Report> {
        let (doors, tokens) = self.bring_servers(&agent.manifest, start, took).await?;
        secrets.extend(tokens);
        let with = With { secrets, doors, host: start.host.clone(), ingress };
        let up = self.start_and_validate(agent.clone(), with, start.telling, took).await;
        if up.is_err() {
            self.end_servers(&agent.manifest).await?;
        }
        up
    }

    /// Starts the servers of an agent anew; gives what leads to them, and what lets its gate in.
    ///
    /// # Errors
    /// The report of the first that did not come up; then none of them is.
    async fn bring_servers(
        &self,
        manifest: &Manifest,
        start: &Start<'_>,
        took: &mut Took,
    ) -> Result<(Vec<Door>, BTreeMap<String, SecretText>), Report> {
        let (mut doors, mut tokens) = (Vec::new(), BTreeMap::new());
        for server in manifest.servers.keys() {
            let Some(own) = manifest.of_server(server) else { continue };
            match self.bring_server(own, server, start, took).await {
                Ok((door, token)) => {
                    doors.push(door);
                    tokens.insert(Server::credential(server), token);
                }
                Err(mut report) => {
                    self.end_servers(manifest).await?;
                    report.message = format!("MCP server `{server}` is not up: {}", report.message);
                    return Err(report);
                }
            }
        }
        Ok((doors, tokens))
    }

    async fn bring_server(
        &self,
        mut manifest: Manifest,
        server: &str,
        start: &Start<'_>,
        took: &mut Took,
    ) -> Result<(Door, SecretText), Report> {
        let name = manifest.name.clone();
        // An earlier one may just be ending.
        let until = Instant::now() + 2 * GRACE;
        let _busy = loop {
            match self.hold(&name) {
                Err(_) if Instant::now() < until => tokio::time::sleep(Duration::from_millis(20)).await,
                held => break held?,
            }
        };
        let before = lock(&self.db).agent(&name)?;
        if let Some(before) = &before {
            if before.manifest.server_of != manifest.server_of {
                let report = Report::new("agent.exists", Fault::Caller, format!("an agent is called `{name}` already"));
                return Err(report.hint(format!("end that one with `ringfence down {name}`, or rename the server")));
            }
            self.end(before, GRACE).await?;
        }
        self.record_operator(start.caller, "up", about(&name), "begun")?;
        ringfence_policy::Policy::compile(&name, &manifest.grants, &start.host.guardrails)?;
        let prefix = UpRequest::secret_of(server, "");
        let given = start.given.iter().filter_map(|(name, secret)| Some((name.strip_prefix(&prefix)?, secret)));
        let given = given.map(|(name, secret)| (name.to_owned(), secret.clone())).collect();
        let secrets = self.gather(&manifest, &given)?;
        for (credential, secret) in &secrets {
            lock(&self.vault).put(&format!("agent/{name}/{credential}"), secret)?;
        }
        let slot = match &before {
            Some(before) => before.slot,
            None => lock(&self.db).free_slot(&[start.slot], SLOTS - 100)?,
        };
        let Some(ingress) = &mut manifest.ingress else {
            return Err(Report::new("supervisor.step", Fault::Us, "an MCP server has no door"));
        };
        let listener = start::listen(ingress.publish)?;
        let address = std::net::TcpListener::from(listener.try_clone().map_err(|e| step("listen", &e))?).local_addr();
        ingress.publish = address.map_err(|e| step("listen", &e))?;
        let door = Door { server: server.into(), address: ingress.publish, ca_pem: self.authority.pem().to_owned() };
        let agent = Agent {
            name: name.clone(),
            slot,
            folder: start.folder.to_path_buf(),
            manifest,
            image: start.image.to_owned(),
            state: State::Starting,
            reason: None,
            sandbox: None,
            since: Some(Timestamp::now()),
        };
        let with = With { secrets, doors: Vec::new(), host: start.host.clone(), ingress: Some(listener) };
        let up = self.start_and_validate(agent.clone(), with, start.telling, took).await;
        if up.is_err() && before.is_none() {
            self.forget(&name)?;
        }
        up?;
        Ok((door, self.token(&agent)?))
    }

    /// What leads to the servers of an agent that is up.
    pub(super) fn doors(&self, manifest: &Manifest) -> Result<Vec<Door>, Report> {
        let mut doors = Vec::new();
        for server in manifest.servers.keys() {
            let Some(own) = manifest.of_server(server) else { continue };
            let found = lock(&self.db).agent(&own.name)?;
            let address = found.and_then(|agent| agent.manifest.ingress).map(|ingress| ingress.publish);
            let Some(address) = address else { continue };
            doors.push(Door { server: server.clone(), address, ca_pem: self.authority.pem().to_owned() });
        }
        Ok(doors)
    }

    /// The servers of an agent that are remembered.
    fn servers(&self, agent: &AgentName) -> Result<Vec<Agent>, Report> {
        let all = lock(&self.db).agents()?;
        let of = |a: &Agent| a.manifest.server_of.as_ref().is_some_and(|of| of.agent == *agent);
        Ok(all.into_iter().filter(of).collect())
    }

    /// Ends the servers of an agent.
    pub(super) async fn end_servers(&self, manifest: &Manifest) -> Result<(), Report> {
        for server in self.servers(&manifest.name)? {
            if matches!(server.state, State::Running | State::Frozen | State::Starting) {
                self.set_state(&server.name, State::Stopped, None)?;
            }
            self.end(&server, GRACE).await?;
        }
        Ok(())
    }

    /// Forgets servers of an agent that have ended: all, or those that its manifest no longer has.
    pub(super) fn forget_servers(&self, manifest: &Manifest, all: bool) -> Result<(), Report> {
        for server in self.servers(&manifest.name)? {
            let of = server.manifest.server_of.as_ref();
            if all || of.is_none_or(|of| !manifest.servers.contains_key(&of.server)) {
                self.forget(&server.name)?;
            }
        }
        Ok(())
    }

    fn forget(&self, name: &AgentName) -> Result<(), Report> {
        lock(&self.db).remove(name)?;
        lock(&self.vault).remove_below(&format!("agent/{name}/"))?;
        let home = self.paths.agent(name);
        if home.exists() {
            std::fs::remove_dir_all(&home).map_err(|e| step("remove the server's folder", &e))?;
        }
        Ok(())
    }

    /// Asks the shims of an agent's servers for the same, and notes their state.
    pub(super) fn ask_servers(&self, agent: &AgentName, request: &Request, state: State) -> Result<(), Report> {
        for server in self.servers(agent)? {
            let fit = match state {
                State::Frozen => server.state == State::Running,
                _ => server.state == State::Frozen,
            };
            if fit {
                self.ask(&server.name, request)?;
                self.set_state(&server.name, state, None)?;
            }
        }
        Ok(())
    }

    /// Ends servers whose agent is no more. Where a verb is at work on the agent, the verb does it.
    pub(super) async fn end_orphans(&self) {
        let agents = lock(&self.db).agents().unwrap_or_default();
        let lives = |name: &AgentName| {
            let found = agents.iter().find(|agent| agent.name == *name);
            found.is_some_and(|agent| matches!(agent.state, State::Running | State::Frozen | State::Starting))
        };
        let living = agents.iter().filter(|agent| lives(&agent.name));
        let orphans = living.filter_map(|agent| Some((agent, &agent.manifest.server_of.as_ref()?.agent)));
        for (server, agent) in orphans.filter(|(_, agent)| !lives(agent)) {
            let at_work = lock(&self.busy).contains(agent);
            let Some(_busy) = self.hold(&server.name).ok().filter(|_| !at_work) else { continue };
            let ended = match self.set_state(&server.name, State::Stopped, Some(format!("`{agent}` ended"))) {
                Ok(server) => self.end(&server, GRACE).await,
                Err(report) => Err(report),
            };
            if let Err(report) = ended {
                tracing_line(&format!("cannot end `{}`: {report}", server.name));
            }
        }
    }
}
