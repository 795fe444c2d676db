//! The shim: one small single-threaded process per sandbox, which holds the container, its cgroup and its log.
//!
//! It outlives the supervisor. When it dies, the agent and the gate die with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use ringfence_audit::{Event, Origin, Record, Spool};
use ringfence_model::Report;
use ringfence_sys::cgroup::Group;
use ringfence_sys::process::{self, Forked};
use ringfence_sys::spawn::Spawn;
use ringfence_sys::{capture::Capture, fd, join, netns, spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::control::{self, Answer, Request, Status};
use crate::enter::{self, Entry};
use crate::error::SandboxError;
use crate::log::Log;
use crate::spec::{AGENT_UID, Fence, GATE_MEMORY, GATE_TASKS, SandboxSpec, fds};
use crate::{probe, root, runtime};

/// Says something to whoever reads the standard error, if there is a place left to say it to.
macro_rules! complain {
    ($($what:tt)*) => {{
        let _ = writeln!(std::io::stderr(), "ringfence: {}", format_args!($($what)*));
    }};
}

/// How long a gate may take to come up.
const GATE_PATIENCE: Duration = Duration::from_secs(10);

/// The line that a shim writes when the agent runs, or could not be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ready {
    /// It could not be started.
    Failed(Report),
    /// It runs.
    Running(Status),
}

/// How a sandbox ended; kept in `exit.json` of its run folder until the supervisor has read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// Whether the kernel killed for want of memory.
    pub out_of_memory: bool,
    /// `exited`, `stopped`, `killed` or `gate_died`.
    pub why: String,
    /// When.
    pub time: Timestamp,
}

/// A line that a gate writes: what the agent must trust first, then that it is up; or why it is not.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum GateLine {
    Trust(Trust),
    Up,
    Error(Report),
}

/// What the agent must trust, for the gate to be every host.
#[derive(Default, Deserialize)]
struct Trust {
    ca_pem: String,
    ssh_authority: String,
}

/// The body of `ringfence shim-process`.
#[must_use]
pub fn main() -> std::process::ExitCode {
    // First of all: later a number that was not given could be that of a descriptor of our own.
    let (spec, gate_config) = (fd::adopt(fds::SHIM_SPEC), fd::adopt(fds::SHIM_GATE_CONFIG));
    let (ready, ingress) = (fd::adopt(fds::SHIM_READY), fd::adopt(fds::SHIM_INGRESS).ok());
    let (Ok(spec), Ok(gate_config), Ok(ready)) = (spec, gate_config, ready) else {
        return std::process::ExitCode::FAILURE;
    };
    let mut ready = File::from(ready);
    let started = read_spec(&spec).and_then(|spec| Shim::start(spec, gate_config, ingress));
    let (line, shim) = match started {
        Ok(shim) => (Ready::Running(shim.status()), Some(shim)),
        Err(report) => (Ready::Failed(report), None),
    };
    let mut text = serde_json::to_vec(&line).unwrap_or_default();
    text.push(b'\n');
    let told = ready.write_all(&text);
    drop(ready);
    match shim {
        // Nobody waits for this sandbox any more: the start was called off.
        Some(shim) if told.is_err() => shim.end("killed", 137),
        Some(shim) => shim.serve(),
        None => return std::process::ExitCode::FAILURE,
    }
    std::process::ExitCode::SUCCESS
}

fn read_spec(fd: &OwnedFd) -> Result<SandboxSpec, Report> {
    let bytes = spawn::read_whole(fd, 4 << 20).map_err(SandboxError::step("read the sandbox's description"))?;
    serde_json::from_slice(&bytes)
        .map_err(|e| SandboxError::Runtime { doing: "read the sandbox's description", why: e.to_string() }.into())
}

struct Gate {
    pid: Pid,
    /// Bounds what a flood can make it take; empty by the time that this is dropped.
    _cgroup: Option<Group>,
    /// Keeps the capture attached for as long as the gate may live.
    _link: OwnedFd,
    /// Where it takes new policies.
    control: UnixStream,
}

impl Gate {
    /// Hands over a configuration. The gate gives up on what is not whole, so nothing may be left half sent.
    fn tell(&mut self, config: &File) -> std::io::Result<GateLine> {
        const PATIENCE: Duration = Duration::from_secs(10);
        const MOST: u64 = 16 << 20;
        use std::os::unix::fs::FileExt;
        let length = config.metadata()?.len();
        if length > MOST {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        config.read_exact_at(&mut bytes, 0)?;
        self.control.set_read_timeout(Some(PATIENCE))?;
        self.control.set_write_timeout(Some(PATIENCE))?;
        self.control.write_all(&u32::try_from(length).unwrap_or(0).to_le_bytes())?;
        self.control.write_all(&bytes)?;
        let mut line = String::new();
        BufReader::new((&self.control).take(1 << 20)).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

struct Shim {
    spec: SandboxSpec,
    container: Container,
    agent: Pid,
    gate: Option<Gate>,
    entry: Entry,
    spool: Spool,
    log: Log,
    output: [Option<File>; 2],
    signals: OwnedFd,
    listener: UnixListener,
    cgroups: Vec<PathBuf>,
    begun: bool,
    frozen: bool,
    deadline: Option<Instant>,
    why: &'static str,
}

impl Shim {
    fn start(spec: SandboxSpec, gate_config: OwnedFd, ingress: Option<OwnedFd>) -> Result<Self, Report> {
        rustix::process::set_child_subreaper(Pid::from_raw(1)).ok();
        let signals =
            process::signal_fd(&[libc::SIGCHLD, libc::SIGTERM]).map_err(SandboxError::step("listen for signals"))?;
        let spool = open_spool(&spec, "shim")?;
        let host_netns = File::open("/proc/self/ns/net").map_err(SandboxError::step("open the host's network"))?;
        root::private_mounts()?;
        let capture = if spec.fence.network { Some(make_network()?) } else { None };
        let (gate, mut word) = match capture {
            Some(capture) => {
                let (gate, word) = start_gate(&spec, capture, host_netns.into(), gate_config, ingress)?;
                (Some(gate), Some(word))
            }
            None => (None, None),
        };
        // From here on a failure must take the gate along. What follows happens while the gate gets ready.
        let mut half = Half { gate, agent: None };
        let entry = Entry::prepare(&spec)?;
        let root = root::begin(&spec)?;
        let trust = word.as_mut().map(GateWord::trust).transpose()?.unwrap_or_default();
        let bundle = trust_bundle(&spec, &trust.ca_pem)?;
        root::finish(&spec, &root, &bundle, &known_hosts(&trust.ssh_authority))?;
        let (container, output) = create_container(&spec, &root, &entry)?;
        let agent = container
            .pid()
            .and_then(|pid| Pid::from_raw(pid.as_raw()))
            .ok_or(SandboxError::Runtime { doing: "start the agent", why: "it has no process id".into() })?;
        half.agent = Some(agent);
        word.as_mut().map(GateWord::up).transpose()?;
        let control = spec.control();
        let _ = fs::remove_file(&control);
        let listener =
            UnixListener::bind(&control).map_err(SandboxError::step(format!("listen at `{}`", control.display())))?;
        listener.set_nonblocking(true).map_err(SandboxError::step("set up the control socket"))?;
        let log = Log::open(&spec.log).map_err(SandboxError::step(format!("open `{}`", spec.log.display())))?;
        let cgroups = join::cgroups_of(agent.as_raw_nonzero().get()).unwrap_or_default();
        let mut shim = Self {
            container,
            agent,
            gate: half.gate.take(),
            entry,
            spool,
            log,
            output: output.map(Some),
            signals,
            listener,
            cgroups,
            begun: false,
            frozen: false,
            deadline: None,
            why: "exited",
            spec,
        };
        half.agent = None;
        if !shim.spec.hold
            && let Err(report) = shim.run()
        {
            shim.end("killed", 255);
            return Err(report);
        }
        Ok(shim)
    }

    /// Records the start, then lets the agent's first instruction happen.
    fn run(&mut self) -> Result<(), Report> {
        let mut facts = serde_json::Map::new();
        facts.insert("argv".into(), self.spec.argv.clone().into());
        facts.insert("uid".into(), self.spec.agent_host_uid().into());
        facts.insert("gate_uid".into(), self.spec.gate_uid().into());
        facts.insert("fence".into(), serde_json::to_value(self.spec.fence).unwrap_or_default());
        self.record("start", facts).map_err(|why| SandboxError::Runtime { doing: "record the start", why })?;
        self.begun = true;
        self.container.start().map_err(|e| SandboxError::Runtime { doing: "start the agent", why: chain(&e) })?;
        Ok(())
    }

    fn record(&self, action: &str, facts: serde_json::Map<String, serde_json::Value>) -> Result<u64, String> {
        self.spool.record(Timestamp::now(), Event::Sandbox { action: action.into(), facts }).map_err(|e| chain(&e))
    }

    fn status(&self) -> Status {
        let read = |file: &str| {
            self.cgroups.iter().find_map(|c| fs::read_to_string(c.join(file)).ok()?.trim().parse::<u64>().ok())
        };
        Status {
            agent_pid: self.agent.as_raw_nonzero().get(),
            gate_pid: self.gate.as_ref().map(|g| g.pid.as_raw_nonzero().get()),
            shim_pid: i32::try_from(std::process::id()).unwrap_or(0),
            frozen: self.frozen,
            processes: read("pids.current").and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            memory_bytes: read("memory.current").or_else(|| read("memory.usage_in_bytes")).unwrap_or(0),
        }
    }

    fn serve(mut self) {
        ringfence_sys::memory::forget_code();
        loop {
            let mut watched =
                vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
            let places: Vec<usize> = (0..2).filter(|i| self.output.get(*i).is_some_and(Option::is_some)).collect();
            for place in &places {
                if let Some(Some(output)) = self.output.get(*place) {
                    watched.push(PollFd::new(output, PollFlags::IN));
                }
            }
            let timeout = self.deadline.map(|d| {
                let left = d.saturating_duration_since(Instant::now());
                Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(left.subsec_nanos()),
                }
            });
            let _ = poll(&mut watched, timeout.as_ref());
            let fired: Vec<bool> = watched.iter().map(|w| !w.revents().is_empty()).collect();
            drop(watched);
            for (at, place) in places.iter().enumerate() {
                if fired.get(at + 2).copied().unwrap_or(false) {
                    self.pump(*place);
                }
            }
            if fired.first().copied().unwrap_or(false)
                && let Some(code) = self.reap()
            {
                let why = self.why;
                return self.end(why, code);
            }
            if fired.get(1).copied().unwrap_or(false) {
                self.accept();
            }
            if self.deadline.is_some_and(|d| d <= Instant::now()) {
                self.deadline = None;
                let _ = kill_process(self.agent, Signal::KILL);
            }
        }
    }

    fn pump(&mut self, place: usize) {
        let Some(slot) = self.output.get_mut(place) else { return };
        let Some(output) = slot else { return };
        let mut chunk = [0; 8192];
        match output.read(&mut chunk) {
            Ok(0) => *slot = None,
            Ok(n) => self.log.take(place, chunk.get(..n).unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => *slot = None,
        }
    }

    /// Takes in signals; returns the code when the agent ended.
    fn reap(&mut self) -> Option<i32> {
        while let Ok(Some(signal)) = process::next_signal(&self.signals) {
            if signal == libc::SIGTERM {
                self.stop(Duration::from_secs(5));
            }
        }
        let mut ended = None;
        while let Ok(Some(child)) = process::reap() {
            if child.pid == self.agent.as_raw_nonzero().get() {
                ended = Some(child.code);
            } else if self.gate.as_ref().is_some_and(|g| g.pid.as_raw_nonzero().get() == child.pid) {
                // Without its gate the agent has no network and nothing would be recorded: end it.
                self.gate = None;
                self.why = "gate_died";
                let _ = kill_process(self.agent, Signal::KILL);
            }
        }
        ended
    }

    fn stop(&mut self, grace: Duration) {
        if self.why == "exited" {
            self.why = "stopped";
        }
        if self.frozen {
            let _ = self.container.resume();
            self.frozen = false;
        }
        // WHY: the first process of a PID namespace gets no signal that it has no handler for, so that waiting for
        // it to heed one would only take the time.
        if !process::heeds(self.agent, Signal::TERM) {
            let _ = kill_process(self.agent, Signal::KILL);
            return;
        }
        let _ = kill_process(self.agent, Signal::TERM);
        self.deadline = Some(Instant::now() + grace);
    }

    fn accept(&mut self) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
            let own = rustix::process::geteuid();
            // Only root and our own user may speak to a shim; the socket's folder is closed to others as well.
            let peer = rustix::net::sockopt::socket_peercred(&stream).map(|c| c.uid);
            if !peer.is_ok_and(|uid| uid.is_root() || uid == own) {
                continue;
            }
            let Ok((request, fds)) = control::receive(&stream) else { continue };
            if let Some(answer) = self.handle(request, fds, &stream) {
                let _ = control::answer(&mut stream, &answer);
            }
        }
    }

    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>, stream: &UnixStream) -> Option<Answer> {
        let done = |result: Result<(), String>| match result {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Failed { why },
        };
        let none = serde_json::Map::new;
        let outcome = |result: &Result<(), String>| {
            result.as_ref().err().map(|why| ("failed".to_owned(), why.clone().into())).into_iter().collect()
        };
        Some(match request {
            Request::Start => done(if self.begun {
                Err("it was started before".into())
            } else {
                self.run().map_err(|r| r.to_string())
            }),
            Request::Status => Answer::Status(self.status()),
            Request::Stop { grace_ms } => {
                self.stop(Duration::from_millis(grace_ms.min(600_000)));
                Answer::Done
            }
            Request::Kill => {
                self.why = "killed";
                if self.frozen {
                    let _ = kill_process(self.agent, Signal::KILL);
                    let _ = self.container.resume();
                }
                done(kill_process(self.agent, Signal::KILL).map_err(|e| e.to_string()))
            }
            // Freezing holds an agent back, so it is done even where it cannot be recorded; waking one is not.
            Request::Freeze => {
                let result = self.container.pause().map_err(|e| chain(&e));
                self.frozen = result.is_ok();
                let recorded = self.record("freeze", outcome(&result));
                done(result.and(recorded.map(drop)))
            }
            Request::Resume => {
                if let Err(why) = self.record("resume", none()) {
                    return Some(Answer::Failed { why });
                }
                let result = self.container.resume().map_err(|e| chain(&e));
                self.frozen = self.frozen && result.is_err();
                if result.is_err() {
                    let _ = self.record("resume", outcome(&result));
                }
                done(result)
            }
            Request::Exec { argv, env, cwd } => {
                let mut facts = none();
                facts.insert("argv".into(), argv.clone().into());
                if let Err(why) = self.record("exec", facts) {
                    return Some(Answer::Failed { why });
                }
                return self.aside(stream, |shim| shim.exec(&argv, env, cwd, fds));
            }
            Request::Policy => self.put_in_force(fds),
            Request::Probe { targets } => return self.aside(stream, |shim| shim.probe(&targets)),
        })
    }

    /// Passes a new configuration on to the gate, and its answer back.
    fn put_in_force(&mut self, fds: Vec<OwnedFd>) -> Answer {
        let Some(gate) = &mut self.gate else { return Answer::Failed { why: "it has no gate".into() } };
        let Some(config) = fds.into_iter().next() else {
            return Answer::Failed { why: "no configuration came".into() };
        };
        match gate.tell(&File::from(config)) {
            Ok(GateLine::Up) => Answer::Done,
            Ok(GateLine::Error(report)) => Answer::Refused { report },
            Ok(GateLine::Trust(_)) => Answer::Failed { why: "the gate answered something else".into() },
            Err(error) => Answer::Failed { why: format!("the gate did not answer: {error}") },
        }
    }

    /// Does something slow in a child, which answers by itself.
    fn aside(&self, stream: &UnixStream, work: impl FnOnce(&Self) -> Answer) -> Option<Answer> {
        match process::fork() {
            Ok(Forked::Parent(_)) => None,
            Ok(Forked::Child) => {
                let answer = work(self);
                if let Ok(mut stream) = stream.try_clone() {
                    let _ = control::answer(&mut stream, &answer);
                }
                process::exit_now(0)
            }
            Err(error) => Some(Answer::Failed { why: error.to_string() }),
        }
    }

    /// In a child: enters the sandbox and runs `inside` there as the agent's user; gives its exit code.
    fn inside(&self, inside: impl FnOnce() -> i32) -> Result<i32, String> {
        let agent = self.agent.as_raw_nonzero().get();
        let say = |what: &'static str| move |e: std::io::Error| format!("cannot {what}: {e}");
        process::unblock_signals().map_err(say("unblock signals"))?;
        // As for the agent; before the way in, where raising one may still be allowed.
        for (kind, most) in runtime::resource_limits(&self.spec) {
            join::limit(kind, most).map_err(say("limit the process"))?;
        }
        join::join_cgroups(agent).map_err(say("join the cgroup"))?;
        join::join_namespaces(agent, self.spec.fence.user_namespace).map_err(say("join the namespaces"))?;
        match process::fork().map_err(say("fork"))? {
            Forked::Parent(pid) => process::wait_for(pid).map_err(say("wait")),
            Forked::Child => {
                let ready = std::env::set_current_dir(&self.spec.cwd)
                    .map_err(|e| e.to_string())
                    .and_then(|()| {
                        let Fence { no_privileges, user_namespace, .. } = self.spec.fence;
                        if no_privileges {
                            join::become_unprivileged(AGENT_UID, AGENT_UID).map_err(|e| e.to_string())
                        } else if user_namespace {
                            // As the agent: root of its own user namespace, not the host's root in it.
                            join::become_user(0, 0).map_err(|e| e.to_string())
                        } else {
                            Ok(())
                        }
                    })
                    .and_then(|()| self.entry.confine());
                if let Err(why) = ready {
                    complain!("{why}");
                    process::exit_now(126);
                }
                process::exit_now(inside())
            }
        }
    }

    fn exec(&self, argv: &[String], more: Vec<(String, String)>, cwd: Option<PathBuf>, stdio: Vec<OwnedFd>) -> Answer {
        let mut env: Vec<(String, String)> =
            self.spec.env.iter().filter(|(k, _)| !more.iter().any(|(other, _)| other == k)).cloned().collect();
        env.extend(more);
        if let Err(e) = process::place_stdio(stdio) {
            return Answer::Failed { why: format!("cannot place the standard descriptors: {e}") };
        }
        let result = self.inside(|| {
            if let Some(cwd) = cwd
                && std::env::set_current_dir(&cwd).is_err()
            {
                complain!("no folder `{}` in the sandbox", cwd.display());
                return 126;
            }
            match enter::find_program(argv, &env) {
                Some(path) => {
                    let error = process::exec(argv, &env, &path);
                    complain!("cannot run `{}`: {error}", path.display());
                    126
                }
                None => {
                    complain!("no program `{}` in the image", argv.first().map_or("", String::as_str));
                    127
                }
            }
        });
        match result {
            Ok(code) => Answer::Exited { code },
            Err(why) => Answer::Failed { why },
        }
    }

    fn probe(&self, targets: &probe::Targets) -> Answer {
        let Ok((reader, writer)) = rustix::pipe::pipe() else {
            return Answer::Failed { why: "cannot make a pipe".into() };
        };
        // The findings fit into the pipe, so the child never waits for a reader.
        let result = self.inside(|| {
            let findings = probe::run(targets);
            let text = serde_json::to_vec(&findings).unwrap_or_default();
            match File::from(writer).write_all(&text) {
                Ok(()) => 0,
                Err(_) => 1,
            }
        });
        match result {
            Ok(0) => {}
            Ok(code) => return Answer::Failed { why: format!("the probe process ended with code {code}") },
            Err(why) => return Answer::Failed { why },
        }
        let mut chunk = vec![0; 64 << 10];
        let got = rustix::io::read(&reader, &mut chunk).unwrap_or(0);
        match serde_json::from_slice(chunk.get(..got).unwrap_or_default()) {
            Ok(findings) => Answer::Findings { findings },
            Err(e) => Answer::Failed { why: e.to_string() },
        }
    }

    /// Ends everything and leaves nothing: agent, gate, cgroup, mounts (with this process).
    fn end(mut self, why: &str, code: i32) {
        let out_of_memory = join::oom_kills(&self.cgroups) > 0;
        for place in 0..2 {
            if let Some(Some(output)) = self.output.get(place) {
                let _ = rustix::io::ioctl_fionbio(output, true);
            }
            while self.output.get(place).is_some_and(Option::is_some) {
                let before = self.log.bytes_taken();
                self.pump(place);
                if self.log.bytes_taken() == before {
                    break;
                }
            }
        }
        self.log.flush();
        let _ = kill_process(self.agent, Signal::KILL);
        if let Some(gate) = self.gate.take() {
            end_gate(&gate);
        }
        let exit = Exit { code, out_of_memory, why: why.into(), time: Timestamp::now() };
        let mut facts = serde_json::Map::new();
        facts.insert("code".into(), code.into());
        facts.insert("why".into(), why.into());
        facts.insert("out_of_memory".into(), out_of_memory.into());
        let _ = self.record("exit", facts);
        for _ in 0..50 {
            let _ = process::reap();
            if self.container.delete(true).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        for folder in &self.cgroups {
            // The folder that all sandboxes share goes with the last of them; until then this fails, rightly.
            let _ = folder.parent().map(fs::remove_dir);
        }
        let _ = fs::remove_file(self.spec.control());
        let text = serde_json::to_vec(&exit).unwrap_or_default();
        let path = self.spec.run_dir.join("exit.json");
        let half = path.with_extension("half");
        let _ = fs::write(&half, text).and_then(|()| fs::rename(&half, &path));
    }
}

/// What exists of a sandbox while it is being made; dropped on failure.
struct Half {
    gate: Option<Gate>,
    agent: Option<Pid>,
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            let _ = kill_process(agent, Signal::KILL);
        }
        if let Some(gate) = self.gate.take() {
            end_gate(&gate);
        }
    }
}

fn end_gate(gate: &Gate) {
    let _ = kill_process(gate.pid, Signal::TERM);
    for _ in 0..200 {
        let gone = rustix::process::waitpid(Some(gate.pid), rustix::process::WaitOptions::NOHANG);
        if !matches!(gone, Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = kill_process(gate.pid, Signal::KILL);
    let _ = process::wait_for(gate.pid);
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = source.source();
    }
    text
}

fn open_spool(spec: &SandboxSpec, who: &str) -> Result<Spool, Report> {
    let file = spool_file(spec, who)?;
    let origin = Origin {
        source: format!("{who}:{}", spec.id),
        agent: Some(spec.agent.clone()),
        sandbox: Some(spec.id.clone()),
    };
    Spool::open(file, origin, 1).map_err(|e| SandboxError::step("open the audit spool")(e).into())
}

fn spool_file(spec: &SandboxSpec, who: &str) -> Result<File, Report> {
    let path = spec.spools.join(format!("{who}.spool"));
    File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(&path)
        .map_err(|e| SandboxError::step(format!("open the audit spool `{}`", path.display()))(e).into())
}

fn ledger_file(path: &std::path::Path) -> Result<File, Report> {
    private_file(path, File::options().write(true).truncate(false))
}

/// Nobody but root may open it by name; the gate gets it open.
fn private_file(path: &std::path::Path, options: &mut fs::OpenOptions) -> Result<File, Report> {
    use std::os::unix::fs::OpenOptionsExt;
    options
        .read(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| SandboxError::step(format!("open the gate's file `{}`", path.display()))(e).into())
}

fn make_network() -> Result<Capture, Report> {
    process::new_network_namespace()
        .map_err(|e| SandboxError::missing("network-namespace", e, "run as root, or allow user namespaces"))?;
    netns::make_everything_local()
        .map_err(|e| SandboxError::missing("network-namespace", e, "allow rtnetlink in network namespaces"))?;
    Ok(Capture::attach().map_err(|e| {
        SandboxError::missing(
            "sk-lookup",
            e,
            "run as root on Linux 5.9 or newer with CONFIG_BPF_SYSCALL and CONFIG_INET",
        )
    })?)
}

fn start_gate(
    spec: &SandboxSpec,
    capture: Capture,
    host: OwnedFd,
    config: OwnedFd,
    ingress: Option<OwnedFd>,
) -> Result<(Gate, GateWord), Report> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SandboxError::step("make a pipe")(e.into()))?;
    let Capture { tcp: [t4, t6], dns: [d4, d6], udp: [u4, u6], link } = capture;
    let (control, theirs) = UnixStream::pair().map_err(SandboxError::step("make a pair of sockets"))?;
    let mut given = vec![
        (theirs.into(), fds::GATE_CONTROL),
        (config, fds::GATE_CONFIG),
        (spool_file(spec, "gate")?.into(), fds::GATE_SPOOL),
        (writer, fds::GATE_READY),
        (host, fds::GATE_HOST_NETNS),
    ];
    given.extend(ingress.map(|fd| (fd, fds::GATE_INGRESS)));
    for (path, place) in [(&spec.ledger, fds::GATE_LEDGER), (&spec.host_ledger, fds::GATE_HOST_LEDGER)] {
        given.extend(path.as_deref().map(ledger_file).transpose()?.map(|file| (file.into(), place)));
    }
    for (path, place) in [(&spec.definitions, fds::GATE_DEFINITIONS), (&spec.captures, fds::GATE_CAPTURES)] {
        let file = path.as_deref().map(|path| private_file(path, File::options().append(true))).transpose()?;
        given.extend(file.map(|file| (file.into(), place)));
    }
    let sockets = [t4, t6, d4, d6, u4, u6];
    let places = fds::GATE_TCP.into_iter().chain(fds::GATE_DNS).chain(fds::GATE_UDP);
    given.extend(sockets.into_iter().zip(places));
    let log = File::options().create(true).append(true).open(spec.run_dir.join("gate.log"));
    let child = Spawn {
        program: spec.gate_program.clone(),
        arg0: "ringfence-gate".into(),
        args: vec!["gate-process".into()],
        fds: given,
        stderr: log.map_or_else(|_| Stdio::null(), Stdio::from),
        session: false,
        env: std::env::vars().filter(|(k, _)| k.starts_with("SSL_CERT_") || k == "RUST_BACKTRACE").collect(),
    }
    .start()
    .map_err(SandboxError::step("start the gate"))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| SandboxError::Gate("it has no process id".into()))?;
    let mut gate = Gate { pid, _cgroup: None, _link: link, control };
    if spec.fence.cgroup {
        let group = Group::make(&runtime::gate_cgroup(&spec.id), GATE_MEMORY.0, GATE_TASKS).and_then(|group| {
            group.take(pid.as_raw_nonzero().get())?;
            Ok(group)
        });
        match group {
            Ok(group) => gate._cgroup = Some(group),
            Err(error) => {
                end_gate(&gate);
                return Err(SandboxError::missing("cgroup", error, "mount the memory and pids controllers").into());
            }
        }
    }
    Ok((gate, GateWord(BufReader::new(File::from(reader)))))
}

/// What a gate says while it comes up.
struct GateWord(BufReader<File>);

impl GateWord {
    fn trust(&mut self) -> Result<Trust, Report> {
        match self.next()? {
            GateLine::Trust(trust) => Ok(trust),
            GateLine::Error(report) => Err(report),
            GateLine::Up => Err(SandboxError::Gate("it showed no certificate".into()).into()),
        }
    }

    fn up(&mut self) -> Result<(), Report> {
        match self.next()? {
            GateLine::Up => Ok(()),
            GateLine::Error(report) => Err(report),
            GateLine::Trust(_) => Err(SandboxError::Gate("it showed two certificates".into()).into()),
        }
    }

    fn next(&mut self) -> Result<GateLine, Report> {
        let limit = Timespec { tv_sec: i64::try_from(GATE_PATIENCE.as_secs()).unwrap_or(10), tv_nsec: 0 };
        if self.0.buffer().is_empty() {
            let mut watched = [PollFd::from_borrowed_fd(self.0.get_ref().as_fd(), PollFlags::IN)];
            if poll(&mut watched, Some(&limit)).unwrap_or(0) == 0 {
                let why = format!("no word from it in {} seconds", GATE_PATIENCE.as_secs());
                return Err(SandboxError::Gate(why).into());
            }
        }
        let mut line = String::new();
        self.0.read_line(&mut line).map_err(SandboxError::step("hear from the gate"))?;
        serde_json::from_str(&line)
            .map_err(|_| SandboxError::Gate("it ended before it was up; see gate.log".into()).into())
    }
}

/// The gate's own authority first, then what stays trusted for calls that are relayed closed.
fn trust_bundle(spec: &SandboxSpec, ca_pem: &str) -> Result<Vec<u8>, Report> {
    let mut bundle = ca_pem.as_bytes().to_vec();
    if let Some(roots) = &spec.host_roots {
        let more = fs::read(roots).map_err(SandboxError::step(format!("read `{}`", roots.display())))?;
        bundle.extend_from_slice(&more);
    }
    Ok(bundle)
}

/// The gate's authority for hosts that speak SSH, as OpenSSH reads it. It says nothing of hosts that show a key of their own,
/// as they do under `protocol = "tcp"`.
fn known_hosts(authority: &str) -> String {
    if authority.is_empty() { String::new() } else { format!("@cert-authority * {authority}\n") }
}

fn create_container(spec: &SandboxSpec, root: &root::Root, entry: &Entry) -> Result<(Container, [File; 2]), Report> {
    let bundle = spec.run_dir.join("bundle");
    let state = spec.run_dir.join("oci");
    for folder in [&bundle, &state] {
        fs::create_dir_all(folder).map_err(SandboxError::step(format!("create `{}`", folder.display())))?;
    }
    let specification = runtime::specification(spec, root)?;
    specification
        .save(bundle.join("config.json"))
        .map_err(|e| SandboxError::Runtime { doing: "write the runtime specification", why: e.to_string() })?;
    let pipe = || {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| SandboxError::step("make a pipe")(e.into()))
    };
    let ((out_reader, out_writer), (err_reader, err_writer)) = (pipe()?, pipe()?);
    let null = File::open("/dev/null").map_err(SandboxError::step("open /dev/null"))?;
    let failed = |e: libcontainer::error::LibcontainerError| explain(spec, &chain(&e));
    let container = ContainerBuilder::new(spec.id.to_string(), SyscallType::default())
        .with_root_path(&state)
        .map_err(failed)?
        .with_executor(entry.clone())
        .with_stdin(null)
        .with_stdout(out_writer)
        .with_stderr(err_writer)
        .validate_id()
        .map_err(failed)?
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed)?;
    let readers = [File::from(out_reader), File::from(err_reader)];
    for reader in &readers {
        rustix::io::ioctl_fionbio(reader, true).map_err(|e| SandboxError::step("set up the log pipe")(e.into()))?;
    }
    Ok((container, readers))
}

const USER_NAMESPACE_REMEDY: &str =
    "raise /proc/sys/user/max_user_namespaces, or run where no filter forbids user namespaces";

/// Names the mechanism behind what libcontainer says.
fn explain(spec: &SandboxSpec, why: &str) -> SandboxError {
    if why.contains("is not a program in the image") {
        return SandboxError::Command {
            program: spec.argv.first().cloned().unwrap_or_default(),
            why: "no such program in the image".into(),
        };
    }
    let lower = why.to_lowercase();
    for (word, mechanism, remedy) in [
        ("cgroup", "cgroup", "mount the cpu, memory and pids controllers, or delegate them to this user"),
        ("user namespace", "user-namespace", USER_NAMESPACE_REMEDY),
        ("mapping", "user-namespace", USER_NAMESPACE_REMEDY),
        ("pivot", "mount-namespace", "run where pivot_root is allowed"),
    ] {
        if lower.contains(word) {
            return SandboxError::missing(mechanism, why, remedy);
        }
    }
    SandboxError::Runtime { doing: "create the container", why: why.into() }
}
