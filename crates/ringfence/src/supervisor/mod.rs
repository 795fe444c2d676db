//! The supervisor: it holds state, vault, authority and audit log, and does what the control API asks.
//!
//! Sandboxes are held by their shims, so agents outlive this process; the next one adopts them.

mod adopt;
mod captures;
mod db;
mod function;
mod pipeline;
mod read;
mod recorder;
mod runner;
mod servers;
mod start;
mod telemetry;
mod up;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringfence_audit::{Event, Verification};
use ringfence_fleet::api::{
    AgentView, AuditLine, AuditRequest, BodyEvent, BodyRequest, DownRequest, ExecEvent, ExecRequest, ExplainRequest,
    Explanation, Forgotten, Hello, LockEvent, LockRequest, LogLine, LogsRequest, Named, Nothing, SecretRequest,
    StartRequest, State, StopRequest, UpEvent, UpRequest, VerifyAnswer,
};
use ringfence_fleet::{Caller, Control, Sink};
use ringfence_identity::Authority;
use ringfence_image::Store;
use ringfence_model::report::one_line;
use ringfence_model::{AgentName, Fault, Report, SecretText};
use ringfence_sandbox::control::{Answer, Request, Shim};
use ringfence_secrets::Vault;
use tokio::net::UnixListener;
use tokio::sync::Notify;

use crate::paths::Paths;
use db::{Agent, Db};
use recorder::{Recorder, tracing_line};

/// An on-demand supervisor ends after so long without agents and without callers.
const IDLE: Duration = Duration::from_secs(20);

/// How long an ending supervisor waits for its last answers to arrive.
const GRACE: Duration = Duration::from_millis(500);

/// How `serve` was asked to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// It was started by a command that needed it, and ends when nothing is left to do.
    pub on_demand: bool,
}

/// A running supervisor.
pub struct Supervisor {
    paths: Paths,
    program: PathBuf,
    options: Options,
    db: Arc<Mutex<Db>>,
    vault: Mutex<Vault>,
    authority: Authority,
    store: Store,
    recorder: Recorder,
    /// Agents on which a verb is at work.
    busy: Mutex<HashSet<AgentName>>,
    calls: AtomicUsize,
    quit: Notify,
    /// The runtime's own handle, for tasks that outlive a verb.
    runtime: tokio::runtime::Handle,
    me: std::sync::Weak<Self>,
}

/// Held while a verb is at work on an agent.
struct Busy<'a> {
    supervisor: &'a Supervisor,
    agent: AgentName,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        lock(&self.supervisor.busy).remove(&self.agent);
    }
}

/// Locks, also after a panic of another holder: what is kept here is consistent between statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a supervisor until it is told to end.
///
/// # Errors
/// A report if it cannot begin.
pub fn serve(paths: Paths, options: Options) -> Result<(), Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_stack_size(512 << 10)
        .enable_all()
        .build()
        .map_err(|e| step("start the runtime", &e))?;
    let handle = runtime.handle().clone();
    take_hold(&paths)?;
    let supervisor = Supervisor::open(paths, options, handle)?;
    // Nobody finds a door before there is somebody to answer it.
    let listener = {
        let _guard = runtime.enter();
        listen(&supervisor.paths)?
    };
    runtime.block_on(async {
        telemetry::start(
            supervisor.recorder.folder().to_path_buf(),
            Arc::clone(&supervisor.db),
            supervisor.recorder.watch(),
            &supervisor.runtime,
        );
        supervisor.adopt_all();
        supervisor.end_orphans().await;
        if !options.on_demand {
            tracing_line(&format!("listening at `{}`", supervisor.paths.socket().display()));
        }
        let uid = rustix::process::geteuid().as_raw();
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
            .map_err(|e| step("listen for signals", &e))?;
        let mut int = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
            .map_err(|e| step("listen for signals", &e))?;
        let quit = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                () = supervisor.quit.notified() => {}
                () = supervisor.idle(), if options.on_demand => {}
            }
            // Nobody finds a door that is about to close; whoever has come in gets the answer.
            let _ = fs::remove_file(supervisor.paths.socket());
        };
        let admits = move |peer| peer == 0 || peer == uid;
        ringfence_fleet::server::serve(listener, Arc::clone(&supervisor), admits, quit, GRACE).await;
        Ok::<_, Report>(())
    })?;
    supervisor.recorder.stop();
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(())
}

fn step(what: &str, why: &dyn std::error::Error) -> Report {
    Report::new("supervisor.step", Fault::Us, format!("cannot {what}")).because(why)
}

fn folder(path: &Path, mode: u32) -> Result<(), Report> {
    fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode))).map_err(|e| {
        let report = Report::new("supervisor.folder", Fault::Host, format!("cannot use folder `{}`", path.display()))
            .because(&e);
        if e.kind() == std::io::ErrorKind::PermissionDenied {
            report.hint("run as root")
        } else {
            report.hint("see whether the disk is full or read-only: `df -h`; or set RINGFENCE_STATE and RINGFENCE_RUN to other folders")
        }
    })
}

/// Makes the folders, and sees that no other supervisor works on this state as long as this process lives.
fn take_hold(paths: &Paths) -> Result<(), Report> {
    folder(&paths.state, 0o700)?;
    folder(&paths.run, 0o711)?;
    folder(&paths.mounts(), 0o711)?;
    folder(&paths.run.join("sandboxes"), 0o700)?;
    let socket = paths.socket();
    // One supervisor for a state folder: the lock is held by the kernel for as long as the process lives.
    let lock_path = paths.state.join("supervisor.lock");
    let lock = fs::File::create(&lock_path).map_err(|e| step("create the supervisor's lock", &e))?;
    // One that is just ending holds it a moment longer than its socket.
    let until = std::time::Instant::now() + Duration::from_secs(5);
    while lock.try_lock().is_err() && std::time::Instant::now() < until {
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    if lock.try_lock().is_err() {
        return Err(Report::new("supervisor.running", Fault::Caller, "another supervisor runs on this state")
            .hint("use it, or stop it with `ringfence serve --stop`"));
    }
    std::mem::forget(lock);
    Ok(())
}

fn listen(paths: &Paths) -> Result<UnixListener, Report> {
    let socket = paths.socket();
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(|e| {
        Report::new("supervisor.folder", Fault::Host, format!("cannot listen at `{}`", socket.display()))
            .because(&e)
            .hint("set RINGFENCE_RUN to a folder with a short path, on a file system that can hold sockets")
    })?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600))
        .map_err(|e| step("close the socket to others", &e))?;
    Ok(listener)
}

impl Supervisor {
    fn open(paths: Paths, options: Options, runtime: tokio::runtime::Handle) -> Result<Arc<Self>, Report> {
        let db = Arc::new(Mutex::new(Db::open(&paths.state.join("state.db"))?));
        let vault = Vault::open(&paths.state)?;
        let authority = Authority::load_or_create(&paths.state, jiff::Timestamp::now().as_second())?;
        // For everybody to read: the state folder is closed to others.
        let public = paths.run.join("ca.pem");
        fs::write(&public, authority.pem()).map_err(|e| step(&format!("write `{}`", public.display()), &e))?;
        let store = Store::open(&paths.store())?;
        let recorder = Recorder::start(&paths, Arc::clone(&db))?;
        let program = std::env::current_exe().map_err(|e| step("find our own program", &e))?;
        Ok(Arc::new_cyclic(|me| Self {
            paths,
            program,
            options,
            db,
            vault: Mutex::new(vault),
            authority,
            store,
            recorder,
            busy: Mutex::new(HashSet::new()),
            calls: AtomicUsize::new(0),
            quit: Notify::new(),
            runtime,
            me: me.clone(),
        }))
    }

    /// Completes when nothing was to do for a while.
    async fn idle(&self) {
        let mut quiet = Duration::ZERO;
        let mut seen = 0;
        let beat = Duration::from_secs(1);
        while quiet < IDLE {
            tokio::time::sleep(beat).await;
            let calls = self.calls.load(Ordering::Relaxed);
            let living = lock(&self.db).agents().map_or(true, |all| {
                all.iter().any(|a| matches!(a.state, State::Running | State::Frozen | State::Starting))
            });
            if living || calls != seen || !lock(&self.busy).is_empty() {
                quiet = Duration::ZERO;
                seen = calls;
            } else {
                quiet += beat;
            }
        }
    }

    fn hold(&self, agent: &AgentName) -> Result<Busy<'_>, Report> {
        if !lock(&self.busy).insert(agent.clone()) {
            return Err(Report::new(
                "agent.busy",
                Fault::Caller,
                format!("another command is at work on agent `{agent}`"),
            )
            .hint("wait for it, or end it with Ctrl-C where it runs"));
        }
        Ok(Busy { supervisor: self, agent: agent.clone() })
    }

    fn agent(&self, name: &AgentName) -> Result<Agent, Report> {
        // Two statements: the first one's lock is gone before the second takes it.
        let found = lock(&self.db).agent(name)?;
        found.ok_or_else(|| {
            let known: Vec<String> =
                lock(&self.db).agents().unwrap_or_default().iter().map(|a| a.name.to_string()).collect();
            let report = Report::new("agent.unknown", Fault::Caller, format!("no agent `{name}`"));
            if known.is_empty() {
                report.hint("start one with `ringfence up FOLDER`")
            } else {
                report.hint(format!("agents here: {}", known.join(", ")))
            }
        })
    }

    fn living(&self, name: &AgentName) -> Result<(Agent, Shim), Report> {
        let agent = self.agent(name)?;
        match &agent.sandbox {
            Some(id) if matches!(agent.state, State::Running | State::Frozen | State::Starting) => {
                let socket = self.paths.sandbox(id).join("control");
                Ok((agent.clone(), Shim::at(&socket)))
            }
            _ => Err(Report::new(
                "agent.not_running",
                Fault::Caller,
                format!("agent `{name}` is {}", agent.state.word()),
            )
            .hint(format!("start it with `ringfence start {name}`"))),
        }
    }

    /// The shim of an agent that is up and not frozen.
    fn awake(&self, name: &AgentName, what_if_not: &str) -> Result<Shim, Report> {
        let (agent, shim) = self.living(name)?;
        if agent.state == State::Frozen {
            return Err(Report::new("agent.frozen", Fault::Caller, format!("agent `{name}` is {what_if_not}"))
                .hint(format!("let it run on with `ringfence resume {name}`")));
        }
        Ok(shim)
    }

    fn view(&self, agent: &Agent) -> AgentView {
        let mut view = AgentView {
            agent: agent.name.clone(),
            state: agent.state,
            reason: agent.reason.clone(),
            sandbox: agent.sandbox.clone(),
            image: Some(agent.image.clone()),
            url: agent.manifest.ingress.as_ref().map(|i| format!("https://{}/", i.publish)),
            since: agent.since,
            folder: agent.folder.clone(),
            agent_pid: None,
            gate_pid: None,
            shim_pid: None,
            memory_bytes: None,
        };
        if let (Some(id), State::Running | State::Frozen | State::Starting) = (&agent.sandbox, agent.state) {
            let shim = Shim::at(&self.paths.sandbox(id).join("control"));
            if let Ok(Answer::Status(status)) = shim.ask(&Request::Status, &[], Duration::from_secs(2)) {
                view.agent_pid = Some(status.agent_pid);
                view.gate_pid = status.gate_pid;
                view.shim_pid = Some(status.shim_pid);
                view.memory_bytes = Some(status.memory_bytes);
            }
        }
        view
    }

    fn record_operator(
        &self,
        caller: Caller,
        action: &str,
        facts: serde_json::Map<String, serde_json::Value>,
        result: &str,
    ) -> Result<(), Report> {
        self.recorder.record(Event::Operator {
            action: action.into(),
            by: format!("uid:{}", caller.uid),
            result: result.into(),
            facts,
        })
    }

    /// Asks a shim for something short.
    fn ask(&self, name: &AgentName, request: &Request) -> Result<(), Report> {
        let (_, shim) = self.living(name)?;
        match shim.ask(request, &[], Duration::from_secs(10))? {
            Answer::Failed { why } => {
                Err(Report::new("sandbox.refused", Fault::Us, format!("agent `{name}` could not be reached"))
                    .cause(why))
            }
            _ => Ok(()),
        }
    }

    fn set_state(&self, name: &AgentName, state: State, reason: Option<String>) -> Result<Agent, Report> {
        let mut agent = self.agent(name)?;
        agent.state = state;
        agent.reason = reason;
        lock(&self.db).put(&agent)?;
        Ok(agent)
    }

    /// Ends a living sandbox and waits until nothing of it is left.
    async fn end(&self, agent: &Agent, grace: Duration) -> Result<(), Report> {
        let Some(id) = &agent.sandbox else { return Ok(()) };
        let run_dir = self.paths.sandbox(id);
        if !run_dir.exists() {
            return Ok(());
        }
        let shim = Shim::at(&run_dir.join("control"));
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let request = if grace.is_zero() { Request::Kill } else { Request::Stop { grace_ms } };
        let asked = tokio::task::block_in_place(|| shim.ask(&request, &[], Duration::from_secs(5)));
        let until = tokio::time::Instant::now() + grace + Duration::from_secs(10);
        if asked.is_ok() {
            while run_dir.exists() && tokio::time::Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        if run_dir.exists() {
            tokio::task::block_in_place(|| self.clean(id, &run_dir));
        }
        Ok(())
    }

    /// Removes what a start that is over left on the host, whoever of its processes died how.
    fn clean(&self, id: &ringfence_model::SandboxId, run_dir: &Path) {
        adopt::kill_cgroups(id);
        let _ = fs::remove_dir_all(run_dir);
        let spools = self.paths.spools_of(id);
        if spools.exists() {
            let _ = fs::write(spools.join("over"), []);
        }
    }

    async fn verified(&self) -> Result<VerifyAnswer, Report> {
        let me = self.me.upgrade();
        let work = tokio::task::spawn_blocking(move || {
            let me = me?;
            let at_least = recorder::remembered_size(&me.db);
            me.recorder.flush();
            let verification = ringfence_audit::verify(me.recorder.folder(), me.recorder.verifier(), at_least);
            let checkpoint = fs::read_to_string(me.recorder.folder().join("checkpoint")).unwrap_or_default();
            Some((verification, checkpoint, me.recorder.verifier().to_text()))
        });
        let nothing = || Report::new("supervisor.ending", Fault::Us, "the supervisor is ending");
        let (verification, checkpoint, key): (Verification, String, String) =
            work.await.map_err(|e| step("verify the log", &e))?.ok_or_else(nothing)?;
        Ok(VerifyAnswer { verification, checkpoint, key })
    }
}

impl Control for Supervisor {
    async fn hello(&self, _: Caller, _: Nothing) -> Result<Hello, Report> {
        Ok(Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            on_demand: self.options.on_demand,
            log_key: self.recorder.verifier().to_text(),
        })
    }

    async fn ps(&self, _: Caller, _: Nothing) -> Result<Vec<AgentView>, Report> {
        let agents = lock(&self.db).agents()?;
        Ok(tokio::task::block_in_place(|| agents.iter().map(|agent| self.view(agent)).collect()))
    }

    async fn up(&self, caller: Caller, request: UpRequest, sink: Sink<UpEvent>) -> Result<(), Report> {
        self.bring_up(caller, request, sink).await
    }

    async fn build(&self, caller: Caller, request: UpRequest, sink: Sink<UpEvent>) -> Result<(), Report> {
        self.only_build(caller, request, sink).await
    }

    async fn lock(&self, caller: Caller, request: LockRequest, sink: Sink<LockEvent>) -> Result<(), Report> {
        self.only_lock(caller, request, sink).await
    }

    async fn start(&self, caller: Caller, request: StartRequest, sink: Sink<UpEvent>) -> Result<(), Report> {
        self.start_again(caller, request, sink).await
    }

    async fn stop(&self, caller: Caller, request: StopRequest) -> Result<AgentView, Report> {
        let _busy = self.hold(&request.agent)?;
        let (agent, _) = self.living(&request.agent)?;
        self.record_operator(caller, "stop", about(&request.agent), "begun")?;
        self.set_state(&request.agent, State::Stopped, None)?;
        self.end(&agent, Duration::from_secs(request.grace_s.min(600))).await?;
        self.end_servers(&agent.manifest).await?;
        Ok(self.view(&self.agent(&request.agent)?))
    }

    async fn freeze(&self, caller: Caller, request: Named) -> Result<AgentView, Report> {
        self.awake(&request.agent, "frozen already")?;
        self.record_operator(caller, "freeze", about(&request.agent), "begun")?;
        tokio::task::block_in_place(|| self.ask(&request.agent, &Request::Freeze))?;
        let agent = self.set_state(&request.agent, State::Frozen, None)?;
        tokio::task::block_in_place(|| self.ask_servers(&request.agent, &Request::Freeze, State::Frozen))?;
        Ok(self.view(&agent))
    }

    async fn resume(&self, caller: Caller, request: Named) -> Result<AgentView, Report> {
        let (agent, _) = self.living(&request.agent)?;
        self.record_operator(caller, "resume", about(&request.agent), "begun")?;
        tokio::task::block_in_place(|| self.ask_servers(&request.agent, &Request::Resume, State::Running))?;
        // The shim is asked even if we think that nothing is frozen: a supervisor may have died before it noted that.
        tokio::task::block_in_place(|| self.ask(&request.agent, &Request::Resume)).map_err(|report| {
            if agent.state == State::Frozen {
                return report;
            }
            Report::new("agent.not_frozen", Fault::Caller, format!("agent `{}` is not frozen", request.agent))
                .hint("only what was frozen with `ringfence freeze` can be resumed")
        })?;
        let agent = self.set_state(&request.agent, State::Running, None)?;
        Ok(self.view(&agent))
    }

    async fn apply(&self, caller: Caller, request: UpRequest) -> Result<AgentView, Report> {
        self.put_in_force(caller, &request)
    }

    async fn down(&self, caller: Caller, request: DownRequest) -> Result<Nothing, Report> {
        let names = match request.agent {
            Some(name) => vec![self.agent(&name)?.name],
            None => lock(&self.db).agents()?.into_iter().map(|a| a.name).collect(),
        };
        for name in names {
            let _busy = self.hold(&name)?;
            // A server goes with its agent.
            let found = lock(&self.db).agent(&name)?;
            let Some(agent) = found else { continue };
            self.record_operator(caller, "down", about(&name), "begun")?;
            self.set_state(&name, State::Stopped, None)?;
            self.end(&agent, Duration::from_secs(5)).await?;
            self.end_servers(&agent.manifest).await?;
            self.forget_servers(&agent.manifest, true)?;
            lock(&self.db).remove(&name)?;
            lock(&self.vault).remove_below(&format!("agent/{name}/"))?;
            self.store.untag(name.as_str())?;
            let home = self.paths.agent(&name);
            if request.keep_state {
                let _ = fs::remove_file(home.join("agent.log"));
                captures::remove(&home)?;
            } else if home.exists() {
                fs::remove_dir_all(&home).map_err(|e| step("remove the agent's folder", &e))?;
            }
        }
        Ok(Nothing {})
    }

    async fn logs(&self, _: Caller, request: LogsRequest, sink: Sink<LogLine>) -> Result<(), Report> {
        self.agent(&request.agent)?;
        read::logs(&self.paths.agent(&request.agent).join("agent.log"), &request, &sink, || {
            self.living(&request.agent).is_ok()
        })
        .await
    }

    async fn audit(&self, _: Caller, request: AuditRequest, sink: Sink<AuditLine>) -> Result<(), Report> {
        tokio::task::block_in_place(|| self.recorder.flush());
        let manifest_of = |name: &AgentName| lock(&self.db).agent(name).ok().flatten().map(|a| a.manifest);
        read::audit(self.recorder.folder(), self.recorder.watch(), &request, &manifest_of, &sink).await
    }

    async fn explain(&self, _: Caller, request: ExplainRequest) -> Result<Explanation, Report> {
        tokio::task::block_in_place(|| {
            let size = self.recorder.flush();
            read::explain(self.recorder.folder(), size, request.entry, &|name| {
                lock(&self.db).agent(name).ok().flatten().map(|a| a.manifest)
            })
        })
    }

    async fn body(&self, _: Caller, request: BodyRequest, sink: Sink<BodyEvent>) -> Result<(), Report> {
        let (told, file) = tokio::task::block_in_place(|| {
            let size = self.recorder.flush();
            captures::body(self.recorder.folder(), size, &request, &|agent| self.paths.agent(agent))
        })?;
        captures::send(told, &file, &sink).await;
        Ok(())
    }

    async fn forget(&self, caller: Caller, request: Named) -> Result<Forgotten, Report> {
        self.agent(&request.agent)?;
        self.record_operator(caller, "forget", about(&request.agent), "begun")?;
        captures::forget(&self.paths.agent(&request.agent)).map(|bytes| Forgotten { bytes })
    }

    async fn verify(&self, _: Caller, _: Nothing) -> Result<VerifyAnswer, Report> {
        self.verified().await
    }

    async fn exec(&self, _: Caller, request: ExecRequest, sink: Sink<ExecEvent>) -> Result<(), Report> {
        // A command joins the agent's cgroup: in a frozen one it would never begin.
        let shim = self.awake(&request.agent, "frozen")?;
        read::exec(shim, request, sink).await
    }

    async fn secret(&self, caller: Caller, request: SecretRequest) -> Result<Nothing, Report> {
        let fit = !request.name.is_empty()
            && request.name.len() <= 64
            && request.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !fit {
            let name: String = request.name.chars().take(64).collect();
            return Err(Report::new(
                "secret.name",
                Fault::Caller,
                format!("`{}` is not a name of a secret", one_line(&name)),
            )
            .hint("use up to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`"));
        }
        if let Some(value) = &request.value {
            check_secret(&request.name, value)?;
        }
        let facts = [("name", request.name.as_str()), ("change", if request.value.is_some() { "put" } else { "rm" })];
        let facts = facts.map(|(name, value)| (name.to_owned(), value.into()));
        self.record_operator(caller, "secret", facts.into_iter().collect(), "begun")?;
        let key = format!("secret/{}", request.name);
        let mut vault = lock(&self.vault);
        match &request.value {
            Some(value) => vault.put(&key, value)?,
            None if vault.get(&key)?.is_none() => {
                return Err(Report::new(
                    "secret.unknown",
                    Fault::Caller,
                    format!("the vault holds no secret `{}`", request.name),
                ));
            }
            None => vault.remove(&key)?,
        }
        Ok(Nothing {})
    }

    async fn shutdown(&self, _: Caller, _: Nothing) -> Result<Nothing, Report> {
        self.quit.notify_one();
        Ok(Nothing {})
    }

    fn ended(&self, caller: Caller, verb: &'static str, subject: &str, result: Result<(), &Report>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        // Verbs that only look are not recorded; those that change something are, whatever their outcome.
        if matches!(verb, "hello" | "ps" | "logs" | "audit" | "explain" | "verify") {
            return;
        }
        let mut facts = serde_json::Map::new();
        if !subject.is_empty() {
            facts.insert("subject".into(), subject.into());
        }
        let word = match result {
            Ok(()) => "ok",
            Err(report) => report.code.as_str(),
        };
        if let Err(report) = self.record_operator(caller, verb, facts, word) {
            tracing_line(&report.to_string());
        }
    }
}

/// Refuses what could not be put into a request. The command line looks too, before it asks.
fn check_secret(name: &str, value: &SecretText) -> Result<(), Report> {
    if ringfence_secrets::is_usable(value.reveal()) {
        return Ok(());
    }
    Err(Report::new("secret.input", Fault::Caller, format!("cannot take secret `{name}`"))
        .cause("it is empty, too long, or has several lines or control characters")
        .hint("give one line of at most 64 KiB, or PEM"))
}

fn about(agent: &AgentName) -> serde_json::Map<String, serde_json::Value> {
    let facts: BTreeMap<&str, &str> = [("agent", agent.as_str())].into();
    facts.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect()
}
