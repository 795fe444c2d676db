//! `up`, `build` and `start`: from a folder to an agent that has proved itself inside its fence.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ringfence_audit::Event;
use ringfence_fleet::api::{
    AgentView, LockEvent, LockRequest, ProbeView, StartRequest, State, UpEvent, UpReport, UpRequest,
};
use ringfence_fleet::{Caller, Sink};
use ringfence_gate::config::NewPolicy;
use ringfence_image::VerifiedImage;
use ringfence_lock::LockError;
use ringfence_model::manifest::{Door, Grant, SecretSource, TlsMode};
use ringfence_model::work::{Progress, Step, cancelled};
use ringfence_model::{Digest, Fault, Manifest, Report, SecretText};
use ringfence_sandbox::control::{self, Shim};
use ringfence_sandbox::probe::{CANARY, Targets};
use ringfence_sandbox::spec::SLOTS;
use serde::Serialize;

use super::db::Agent;
use super::function::{Entrance, view};
use super::pipeline::{self, Prepared};
use super::servers::Start;
use super::start::{self, Plan};
use super::{Supervisor, lock, step};
use crate::paths::{HostPolicy, Paths};

/// A program without pages counts as up when it lives this long, or ends with success.
const ALIVE: Duration = Duration::from_millis(500);

/// Tells the caller how far the work is.
pub(super) struct Telling<T = UpEvent> {
    sink: Sink<T>,
    called_off: Arc<AtomicBool>,
}

/// What a step can be told as.
trait Told: Serialize + Send + Sync + 'static {
    fn step(step: Step) -> Self;
}

impl Told for UpEvent {
    fn step(step: Step) -> Self {
        Self::Step(step)
    }
}

impl Told for LockEvent {
    fn step(step: Step) -> Self {
        Self::Step(step)
    }
}

impl<T: Told> Progress for Telling<T> {
    fn tell(&self, step: Step) {
        if !self.sink.offer(&T::step(step)) {
            self.called_off.store(true, Ordering::Relaxed);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.called_off.load(Ordering::Relaxed) || self.sink.is_closed()
    }
}

impl Telling {
    fn say(&self, name: &str, doing: &str) {
        self.tell(Step { name: name.into(), doing: doing.into(), done: 0, total: None });
    }
}

/// How long each step took.
#[derive(Default)]
pub(super) struct Took(BTreeMap<String, u64>);

impl Took {
    fn note(&mut self, step: &str, since: Instant) {
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        *self.0.entry(step.into()).or_default() += ms;
    }
}

/// What an agent is started with, beside its manifest.
pub(super) struct With {
    /// Secrets by credential.
    pub(super) secrets: BTreeMap<String, SecretText>,
    /// Where its MCP servers are.
    pub(super) doors: Vec<Door>,
    /// What the operator says for all agents of the host.
    pub(super) host: HostPolicy,
    /// The ingress socket, if there is an ingress.
    pub(super) ingress: Option<OwnedFd>,
}

/// A policy that is to be put in force.
struct Change {
    agent: Agent,
    shim: Shim,
    policy: NewPolicy,
}

impl Supervisor {
    /// Puts the policy of a manifest in force for the agent that runs.
    pub(super) fn put_in_force(&self, caller: Caller, request: &UpRequest) -> Result<AgentView, Report> {
        let manifest = understand(request)?;
        let _busy = self.hold(&manifest.name)?;
        let host = Paths::read_host_policy()?;
        let mut changes = vec![self.change(request, manifest.clone(), &host)?];
        for own in manifest.servers.keys().filter_map(|server| manifest.of_server(server)) {
            changes.push(self.change(request, own, &host)?);
        }
        self.record_operator(caller, "policy.apply", super::about(&manifest.name), "begun")?;
        let done = changes.iter().try_for_each(|change| hand_over(&change.shim, &change.policy));
        let result = done.as_ref().err().map_or("ok", |report| report.code.as_str());
        self.record_operator(caller, "policy.apply", super::about(&manifest.name), result)?;
        done?;
        for change in &changes {
            lock(&self.db).put(&change.agent)?;
        }
        Ok(self.view(&self.agent(&manifest.name)?))
    }

    /// What puts the policy of `manifest` in force for an agent that runs, if nothing else changed.
    fn change(&self, request: &UpRequest, mut manifest: Manifest, host: &HostPolicy) -> Result<Change, Report> {
        let (mut agent, shim) = self.living(&manifest.name)?;
        if manifest.server_of.is_some() {
            // Its door is where it was found free.
            manifest.ingress.clone_from(&agent.manifest.ingress);
        }
        if let Some(key) = beyond_policy(&agent.manifest, &manifest) {
            return Err(Report::new(
                "policy.apply",
                Fault::Caller,
                format!("`{key}` changed, which needs a new start"),
            )
            .hint(format!("put it back, or start anew with `ringfence up {} --replace`", request.folder.display())));
        }
        let host = host.clone();
        let policy = NewPolicy {
            agent: manifest.name.clone(),
            grants: manifest.with_doors(&self.doors(&manifest)?).grants,
            guardrails: host.guardrails,
            budget: manifest.budget.clone(),
            host_budget: host.budget,
            prices: host.prices,
            system_pem: Some(ringfence_gate::tls::system_pem()),
        };
        agent.manifest = manifest;
        Ok(Change { agent, shim, policy })
    }

    pub(super) async fn bring_up(&self, caller: Caller, request: UpRequest, sink: Sink<UpEvent>) -> Result<(), Report> {
        let manifest = understand(&request)?;
        only_root()?;
        let _busy = self.hold(&manifest.name)?;
        self.record_operator(caller, "up", super::about(&manifest.name), "begun")?;
        let before = lock(&self.db).agent(&manifest.name)?;
        if let Some(of) = before.as_ref().and_then(|before| before.manifest.server_of.as_ref()) {
            let report = Report::new(
                "agent.exists",
                Fault::Caller,
                format!("`{}` is the MCP server `{}` of `{}`", manifest.name, of.server, of.agent),
            );
            return Err(report.hint("pick another `name` in the manifest"));
        }
        let living =
            before.as_ref().is_some_and(|a| matches!(a.state, State::Running | State::Frozen | State::Starting));
        if living && !request.replace {
            return Err(Report::new("agent.exists", Fault::Caller, format!("agent `{}` is up already", manifest.name))
                .hint(format!(
                    "replace it with `ringfence up {} --replace`, or end it with `ringfence down {}`",
                    request.folder.display(),
                    manifest.name
                )));
        }
        // What can fail at once, fails before anything is downloaded.
        let host = Paths::read_host_policy()?;
        ringfence_policy::Policy::compile(&manifest.name, &manifest.grants, &host.guardrails)?;
        let secrets = self.gather(&manifest, &request.secrets)?;
        let ingress = match &manifest.ingress {
            Some(wanted) if !living => Some(start::listen(wanted.publish)?),
            _ => None,
        };
        let telling = self.telling(&sink);
        let mut took = Took::default();
        let prepared = self.prepare(&request, &manifest, &telling, &sink, &mut took).await?;
        if let Some(before) = &before {
            if living {
                self.end(before, Duration::from_secs(5)).await?;
            }
            self.end_servers(&before.manifest).await?;
            self.forget_servers(&manifest, false)?;
        }
        let ingress = match (&manifest.ingress, ingress) {
            (Some(wanted), None) => Some(start::listen(wanted.publish)?),
            (_, held) => held,
        };
        for (name, secret) in &secrets {
            lock(&self.vault).put(&format!("agent/{}/{name}", manifest.name), secret)?;
        }
        let slot = match &before {
            Some(before) => before.slot,
            None => lock(&self.db).free_slot(&[], SLOTS - 100)?,
        };
        let agent = Agent {
            name: manifest.name.clone(),
            slot,
            folder: request.folder.clone(),
            manifest,
            image: prepared.digest.to_string(),
            state: State::Starting,
            reason: None,
            sandbox: None,
            since: Some(Timestamp::now()),
        };
        let home = self.paths.agent(&agent.name);
        let had_home = home.exists();
        let servers = Start {
            caller,
            folder: &request.folder,
            image: &agent.image,
            slot: agent.slot,
            given: &request.secrets,
            host: &host,
            telling: &telling,
        };
        let result = self.start_with_servers(agent.clone(), secrets, ingress, &servers, &mut took).await;
        if result.is_err() && before.is_none() {
            self.forget_servers(&agent.manifest, true)?;
            // A first start that failed leaves no agent behind; its image stays, so that the next try is quick.
            lock(&self.db).remove(&agent.name)?;
            lock(&self.vault).remove_below(&format!("agent/{}/", agent.name))?;
            // What `down --keep-state` kept is there for the next try.
            if !had_home && home.exists() {
                std::fs::remove_dir_all(&home).map_err(|e| step("remove the agent's folder", &e))?;
            }
        }
        let report = result?;
        sink.send(&UpEvent::Up(Box::new(report))).await;
        Ok(())
    }

    pub(super) async fn only_build(
        &self,
        caller: Caller,
        request: UpRequest,
        sink: Sink<UpEvent>,
    ) -> Result<(), Report> {
        let manifest = understand(&request)?;
        only_root()?;
        let _busy = self.hold(&manifest.name)?;
        self.record_operator(caller, "build", super::about(&manifest.name), "begun")?;
        let telling = self.telling(&sink);
        let prepared = self.prepare(&request, &manifest, &telling, &sink, &mut Took::default()).await?;
        sink.send(&UpEvent::Built { image: prepared.digest.to_string() }).await;
        Ok(())
    }

    pub(super) async fn start_again(
        &self,
        caller: Caller,
        request: StartRequest,
        sink: Sink<UpEvent>,
    ) -> Result<(), Report> {
        let _busy = self.hold(&request.agent)?;
        let mut agent = self.agent(&request.agent)?;
        if matches!(agent.state, State::Running | State::Frozen | State::Starting) {
            return Err(Report::new(
                "agent.exists",
                Fault::Caller,
                format!("agent `{}` is {} already", agent.name, agent.state.word()),
            )
            .hint(format!("stop it first with `ringfence stop {}`", agent.name)));
        }
        self.record_operator(caller, "start", super::about(&agent.name), "begun")?;
        let host = Paths::read_host_policy()?;
        let secrets = self.gather(&agent.manifest, &BTreeMap::new())?;
        let ingress = agent.manifest.ingress.as_ref().map(|w| start::listen(w.publish)).transpose()?;
        let telling = self.telling(&sink);
        let mut took = Took::default();
        agent.state = State::Starting;
        agent.reason = None;
        agent.since = Some(Timestamp::now());
        let (folder, image) = (agent.folder.clone(), agent.image.clone());
        let given = BTreeMap::new();
        let slot = agent.slot;
        let start =
            Start { caller, folder: &folder, image: &image, slot, given: &given, host: &host, telling: &telling };
        let report = self.start_with_servers(agent, secrets, ingress, &start, &mut took).await?;
        sink.send(&UpEvent::Up(Box::new(report))).await;
        Ok(())
    }

    pub(super) async fn only_lock(
        &self,
        caller: Caller,
        request: LockRequest,
        sink: Sink<LockEvent>,
    ) -> Result<(), Report> {
        let manifest = parse(&request.manifest, &request.ca_files)?;
        only_root()?;
        let _busy = self.hold(&manifest.name)?;
        self.record_operator(caller, "lock", super::about(&manifest.name), "begun")?;
        let telling = self.telling(&sink);
        let me = self.myself()?;
        let work = tokio::task::spawn_blocking(move || {
            let progress = telling.as_ref();
            pipeline::lock(&me.paths, &me.program, &me.store, &request, &manifest, progress, &telling.called_off)
        });
        let found = work.await.map_err(|e| step("lock the dependencies", &e));
        ringfence_sys::memory::trim_heap();
        match found? {
            Ok(found) => {
                sink.send(&LockEvent::Locked(Box::new(found))).await;
                Ok(())
            }
            Err(error) => {
                if let LockError::Unstartable { found, .. } = &error {
                    sink.send(&LockEvent::Locked(found.clone())).await;
                }
                Err(error.into())
            }
        }
    }

    fn myself(&self) -> Result<Arc<Self>, Report> {
        self.me.upgrade().ok_or_else(|| Report::new("supervisor.ending", Fault::Us, "the supervisor is ending"))
    }

    fn telling<T: Told>(&self, sink: &Sink<T>) -> Arc<Telling<T>> {
        let called_off = Arc::new(AtomicBool::new(false));
        let (flag, watched) = (Arc::clone(&called_off), sink.clone());
        self.runtime.spawn(async move {
            watched.closed().await;
            flag.store(true, Ordering::Relaxed);
        });
        Arc::new(Telling { sink: sink.clone(), called_off })
    }

    /// Secrets from the caller, or from the vault where the caller had none.
    pub(super) fn gather(
        &self,
        manifest: &Manifest,
        given: &BTreeMap<String, SecretText>,
    ) -> Result<BTreeMap<String, SecretText>, Report> {
        let vault = lock(&self.vault);
        let mut secrets = BTreeMap::new();
        for (name, credential) in &manifest.credentials {
            let kept = match &credential.from {
                SecretSource::Vault(key) => vault.get(&format!("secret/{key}"))?,
                _ => vault.get(&format!("agent/{}/{name}", manifest.name))?,
            };
            let secret = given.get(name).cloned().or(kept).ok_or_else(|| {
                let (why, hint) = match &credential.from {
                    SecretSource::Env(variable) => (
                        format!("the environment has no `{variable}`"),
                        format!("set it: `export {variable}=…`, then run the command again"),
                    ),
                    SecretSource::Vault(key) => (
                        format!("the vault holds no secret `{key}`"),
                        format!("put it there: `ringfence secret put {key}`"),
                    ),
                    _ => ("its source gave nothing".into(), "check `from` in the manifest".into()),
                };
                Report::new("credential.absent", Fault::Caller, format!("credential `{name}` has no value"))
                    .cause(why)
                    .hint(hint)
            })?;
            secrets.insert(name.clone(), secret);
        }
        Ok(secrets)
    }

    async fn prepare(
        &self,
        request: &UpRequest,
        manifest: &Manifest,
        telling: &Arc<Telling>,
        sink: &Sink<UpEvent>,
        took: &mut Took,
    ) -> Result<Prepared, Report> {
        let began = Instant::now();
        let me = self.myself()?;
        let (request, manifest, telling) = (request.clone(), manifest.clone(), Arc::clone(telling));
        let work = tokio::task::spawn_blocking(move || {
            let mut found = None;
            let prepared = pipeline::prepare(
                &me.paths,
                &me.program,
                &me.store,
                &request,
                &manifest,
                telling.as_ref(),
                &telling.called_off,
                &mut found,
            );
            (prepared, found)
        });
        let done = work.await.map_err(|e| step("build the image", &e));
        ringfence_sys::memory::trim_heap();
        let (prepared, found) = done?;
        if let Some(found) = found {
            sink.send(&UpEvent::Locked(found)).await;
        }
        let prepared = prepared?;
        for (name, ms) in &prepared.took_ms {
            took.0.insert(name.clone(), *ms);
        }
        took.note("build_total", began);
        Ok(prepared)
    }

    pub(super) async fn start_and_validate(
        &self,
        mut agent: Agent,
        with: With,
        telling: &Arc<Telling>,
        took: &mut Took,
    ) -> Result<UpReport, Report> {
        let stopped = |me: &Self, agent: &Agent, why: &Report| {
            let mut agent = agent.clone();
            agent.state = State::Failed;
            agent.reason = Some(why.message.clone());
            let _ = lock(&me.db).put(&agent);
        };
        let id = start::new_sandbox_id();
        agent.sandbox = Some(id.clone());
        std::fs::create_dir_all(self.paths.agent(&agent.name)).map_err(|e| step("make the agent's folder", &e))?;
        lock(&self.db).put(&agent)?;
        let started = tokio::task::block_in_place(|| {
            let began = Instant::now();
            telling.say("verify", "checking the image against its digests");
            let image = self.verify_image(&agent, telling.as_ref())?;
            took.note("verify", began);
            let token = self.token(&agent)?;
            let began = Instant::now();
            telling.say("run", "starting the sandbox and its gate");
            let plan = Plan {
                paths: &self.paths,
                program: &self.program,
                authority: &self.authority,
                manifest: &agent.manifest.with_doors(&with.doors),
                image: &image,
                slot: agent.slot,
                secrets: &with.secrets,
                token: &token,
                host: with.host,
                ingress: with.ingress,
            };
            let started = start::start(plan, id.clone())?;
            took.note("start", began);
            Ok::<_, Report>((started, token))
        });
        let (started, token) = match started {
            Ok(started) => started,
            Err(report) => {
                self.clean(&id, &self.paths.sandbox(&id));
                stopped(self, &agent, &report);
                return Err(report);
            }
        };
        if let Some(me) = self.me.upgrade() {
            me.watch(agent.name.clone(), id.clone(), started.launched.status.shim_pid);
        }
        let validated = self.validate(&agent, &started, &token, telling, took).await;
        match validated {
            Ok(probes) => {
                agent.state = State::Running;
                // It may have ended between its last probe and now; then the watcher has noted that already.
                if lock(&self.db).agent(&agent.name)?.is_some_and(|a| a.state == State::Starting) {
                    lock(&self.db).put(&agent)?;
                }
                Ok(UpReport {
                    agent: agent.name.clone(),
                    sandbox: id,
                    image: agent.image.clone(),
                    ca: started.url.as_ref().map(|_| self.paths.run.join("ca.pem")),
                    url: started.url,
                    took_ms: std::mem::take(&mut took.0),
                    probes,
                    danger: agent.manifest.danger.without.clone(),
                })
            }
            Err(report) => {
                stopped(self, &agent, &report);
                self.end(&agent, Duration::ZERO).await?;
                Err(report)
            }
        }
    }

    fn verify_image(&self, agent: &Agent, progress: &dyn Progress) -> Result<VerifiedImage, Report> {
        let digest: Digest = agent.image.parse().map_err(|e| step("read the image's digest", &e))?;
        Ok(self.store.verify_telling(&digest, progress)?)
    }

    pub(super) fn token(&self, agent: &Agent) -> Result<SecretText, Report> {
        let name = format!("agent/{}/.ingress-token", agent.name);
        let mut vault = lock(&self.vault);
        if let Some(token) = vault.get(&name)? {
            return Ok(token);
        }
        let token = start::new_token()?;
        vault.put(&name, &token)?;
        Ok(token)
    }

    async fn validate(
        &self,
        agent: &Agent,
        started: &start::Started,
        token: &SecretText,
        telling: &Arc<Telling>,
        took: &mut Took,
    ) -> Result<Vec<ProbeView>, Report> {
        let run_dir = self.paths.sandbox(&started.id);
        let shim = Shim::at(&run_dir.join("control"));
        let began = Instant::now();
        telling.say("validate", "attacking the fence from inside");
        let mut probes = tokio::task::block_in_place(|| self.fence_probes(&shim, &run_dir))?;
        took.note("fence_probes", began);
        self.refuse_breach(agent, &probes)?;
        let fence = probes.len();
        tokio::task::block_in_place(|| control::start(&shim))?;
        let began = Instant::now();
        telling.say("validate", "waiting for the agent to answer");
        let gone = || {
            if telling.is_cancelled() {
                return Some("the start was called off".to_owned());
            }
            let lives = lock(&self.db).agent(&agent.name).ok().flatten();
            match lives {
                Some(a) if a.state == State::Starting => None,
                Some(a) => Some(a.reason.unwrap_or_else(|| format!("it {}", a.state.word()))),
                None => Some("it was removed".into()),
            }
        };
        let until = began + agent.manifest.health.start_timeout;
        match &agent.manifest.ingress {
            Some(ingress) => {
                let door = Entrance::new(ingress.publish, self.authority.pem(), token).ok_or_else(|| {
                    Report::new("identity.certificate", Fault::Us, "the host's authority cannot be used")
                })?;
                let health = door.wait_healthy(&agent.manifest.health.path, until, &gone).await;
                let well = health.held;
                probes.push(health);
                if well {
                    probes.push(door.first_page(agent.manifest.kind, until).await);
                }
            }
            None => {
                tokio::time::sleep(ALIVE).await;
                let ended = lock(&self.db).agent(&agent.name)?.map(|a| (a.state, a.reason));
                probes.push(match ended {
                    Some((State::Failed | State::Stopped, reason)) => {
                        view("alive", Err(reason.unwrap_or_else(|| "it ended".into())))
                    }
                    Some((State::Exited, _)) => view("alive", Ok("it ran and ended with success".into())),
                    _ => view("alive", Ok("it runs".into())),
                });
            }
        }
        took.note("app_start", began);
        if telling.is_cancelled() {
            return Err(cancelled(&format!("the start of `{}`", agent.name)));
        }
        for probe in &probes {
            self.recorder.record(Event::Probe {
                name: format!("{}: {}", agent.name, probe.barrier),
                held: probe.held,
                detail: probe.detail.clone(),
            })?;
        }
        match probes.iter().skip(fence).find(|p| !p.held) {
            None => Ok(probes),
            Some(failed) => Err(self.unhealthy(agent, failed)),
        }
    }

    fn refuse_breach(&self, agent: &Agent, probes: &[ProbeView]) -> Result<(), Report> {
        // A barrier that an operator gave up in writing is expected to be open.
        let given_up = !agent.manifest.danger.without.is_empty();
        match probes.iter().find(|p| !p.held) {
            Some(breach) if !given_up => {
                self.recorder.record(Event::Probe {
                    name: format!("{}: {}", agent.name, breach.barrier),
                    held: false,
                    detail: breach.detail.clone(),
                })?;
                Err(Report::new(
                    "fence.breach",
                    Fault::Host,
                    format!("barrier `{}` does not hold for `{}`", breach.barrier, agent.name),
                )
                .cause(&breach.detail)
                .hint("the agent was not started; run `ringfence host` to see what this host can enforce"))
            }
            _ => Ok(()),
        }
    }

    fn unhealthy(&self, agent: &Agent, failed: &ProbeView) -> Report {
        let mut report = Report::new(
            "agent.unhealthy",
            Fault::Caller,
            format!("agent `{}` did not pass `{}`", agent.name, failed.barrier),
        )
        .cause(&failed.detail);
        let log = std::fs::read_to_string(self.paths.agent(&agent.name).join("agent.log")).unwrap_or_default();
        let said: Vec<String> = log
            .lines()
            .filter_map(|l| serde_json::from_str::<ringfence_sandbox::log::Line>(l).ok())
            .map(|l| l.text)
            .filter(|t| !t.trim().is_empty())
            .collect();
        for line in said.iter().rev().take(3).rev() {
            report = report.cause(format!("it said: {line}"));
        }
        report.hint("run it again with what it lacks, or see what it may need in `ringfence.toml`")
    }

    /// Runs the attacks, aimed at canaries of this process and at addresses that no grant covers.
    fn fence_probes(&self, shim: &Shim, run_dir: &std::path::Path) -> Result<Vec<ProbeView>, Report> {
        let canaries = Canaries::open().map_err(|e| step("open the canaries", &e))?;
        let mut targets = Targets {
            names: vec!["ringfence-probe.example".into()],
            sockets: vec![self.paths.socket(), run_dir.join("control")],
            ..Targets::default()
        };
        for address in &canaries.tcp {
            targets.tcp.push((if address.is_ipv4() { "host-v4" } else { "host-v6" }.into(), *address));
        }
        for address in &canaries.udp {
            targets.udp.push(("host".into(), *address));
        }
        let outside = |name: &str, ip: std::net::IpAddr, port| (name.to_owned(), SocketAddr::new(ip, port));
        targets.tcp.extend([
            outside("ipv4", Ipv4Addr::new(203, 0, 113, 1).into(), 443),
            outside("ipv6", Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(), 443),
            outside("metadata", Ipv4Addr::new(169, 254, 169, 254).into(), 80),
        ]);
        targets.udp.push(outside("outside", Ipv4Addr::new(203, 0, 113, 1).into(), 9));
        let findings = control::probe(shim, targets)?;
        Ok(findings.into_iter().map(|f| ProbeView { barrier: f.barrier, held: f.held, detail: f.detail }).collect())
    }
}

/// Refuses at once what would fail after all packages were downloaded.
fn only_root() -> Result<(), Report> {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return Ok(());
    }
    Err(Report::new("host.not_root", Fault::Host, "cannot make sandboxes without root")
        .cause(format!("the supervisor runs as uid {}; namespaces, uid ranges and mounts are root's", uid.as_raw()))
        .hint("stop it with `ringfence serve --stop`, then run the command as root"))
}

/// What a change of a manifest changes beside the policy, if anything.
fn beyond_policy(before: &Manifest, after: &Manifest) -> Option<&'static str> {
    let Manifest { name: _, kind, entry, env, health, image, dependencies, limits, grants, credentials, .. } = before;
    let changed = [
        (*kind != after.kind || *entry != after.entry || *env != after.env || *health != after.health, "[agent]"),
        (*image != after.image, "[image]"),
        (*dependencies != after.dependencies, "[dependencies]"),
        (*limits != after.limits, "[limits]"),
        (*credentials != after.credentials, "[credential]"),
        (before.ingress != after.ingress, "[ingress]"),
        (before.danger != after.danger, "[danger]"),
        (!before.servers.keys().eq(after.servers.keys()), "[mcp]"),
    ];
    // The agent trusts the host's own authorities only if a grant was closed when it started.
    let closed = |grants: &[Grant]| grants.iter().any(|grant| grant.tls == TlsMode::Passthrough);
    if closed(&after.grants) && !closed(grants) {
        return Some("tls = \"passthrough\"");
    }
    changed.into_iter().find(|(changed, _)| *changed).map(|(_, key)| key)
}

fn hand_over(shim: &Shim, policy: &NewPolicy) -> Result<(), Report> {
    let failed =
        |e: &dyn std::error::Error| Report::new("policy.apply", Fault::Us, "cannot hand the policy over").because(e);
    let bytes = serde_json::to_vec(policy).map_err(|e| failed(&e))?;
    let file = ringfence_sys::spawn::sealed("policy", &bytes).map_err(|e| failed(&e))?;
    tokio::task::block_in_place(|| control::policy(shim, file.as_fd()))
}

fn understand(request: &UpRequest) -> Result<Manifest, Report> {
    parse(&request.manifest, &request.ca_files)
}

fn parse(manifest: &str, ca_files: &BTreeMap<String, String>) -> Result<Manifest, Report> {
    Ok(Manifest::parse(manifest, &|name| {
        ca_files.get(name).cloned().ok_or_else(|| "it was not sent along".to_owned())
    })?)
}

/// Listeners of this process outside the fence, which tell whoever reaches them.
struct Canaries {
    tcp: Vec<SocketAddr>,
    udp: Vec<SocketAddr>,
    over: Arc<AtomicBool>,
}

impl Canaries {
    fn open() -> std::io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for local in [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))] {
            let listener = match TcpListener::bind(local) {
                Ok(listener) => listener,
                Err(_) if local.is_ipv6() => continue, // a host without IPv6
                Err(e) => return Err(e),
            };
            tcp.push(listener.local_addr()?);
            listener.set_nonblocking(true)?;
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((mut stream, _)) => {
                            let _ = stream.write_all(CANARY.as_bytes());
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(20)),
                    }
                }
            });
        }
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        udp.push(socket.local_addr()?);
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let flag = Arc::clone(&over);
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !flag.load(Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(CANARY.as_bytes(), from);
                }
            }
        });
        Ok(Self { tcp, udp, over })
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
