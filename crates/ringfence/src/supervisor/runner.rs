//! Runs the jobs of `lock` and `image` (resolving, building sdists, byte-compiling) in sandboxes of their own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringfence_audit::{Entry, Event, Outcome};
use ringfence_gate::config::GateConfig;
use ringfence_model::manifest::{Grant, Limits, USUAL_CAPTURES};
use ringfence_model::work::{Job, JobOutput, Runner, cancelled};
use ringfence_model::{Bytes, Fault, HostPattern, Report, SandboxId};
use ringfence_sandbox::spec::{Fence, SandboxSpec, SpecMount};
use ringfence_sandbox::{control, launch};

use super::start;
use crate::paths::Paths;

/// Jobs take uid ranges from the top, agents from the bottom.
const FIRST_JOB_SLOT: u32 = 2_900;

/// The ranges that jobs of this process hold.
static SLOTS: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Runs jobs in sandboxes, for one `up`.
pub struct JobRunner<'a> {
    /// Where things lie.
    pub paths: &'a Paths,
    /// Our own binary.
    pub program: &'a Path,
    /// Set when the work is called off.
    pub called_off: &'a AtomicBool,
    /// Barriers given up in writing.
    pub fence: Fence,
}

struct Slot(u32);

impl Slot {
    fn take() -> Result<Self, Report> {
        let mut taken = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (FIRST_JOB_SLOT..ringfence_sandbox::spec::SLOTS).find(|slot| !taken.contains(slot));
        let slot = free.ok_or_else(|| Report::new("job.full", Fault::Host, "too many builds at once"))?;
        taken.push(slot);
        Ok(Self(slot))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        SLOTS.lock().unwrap_or_else(PoisonError::into_inner).retain(|slot| *slot != self.0);
    }
}

impl Runner for JobRunner<'_> {
    fn run(&self, job: &Job) -> Result<JobOutput, Report> {
        if self.called_off.load(Ordering::Relaxed) {
            return Err(cancelled(&job.purpose));
        }
        let slot = Slot::take()?;
        let id = start::new_sandbox_id();
        let work = self.paths.state.join("jobs").join(id.as_str());
        let done = self.run_in(job, &id, slot.0, &work);
        let _ = fs::remove_dir_all(&work);
        let _ = fs::remove_dir_all(self.paths.sandbox(&id));
        let _ = fs::write(self.paths.spools_of(&id).join("over"), []);
        done
    }
}

impl JobRunner<'_> {
    fn run_in(&self, job: &Job, id: &SandboxId, slot: u32, work: &Path) -> Result<JobOutput, Report> {
        fs::create_dir_all(work).map_err(|e| failed("make a folder for the job", &e))?;
        let spec = self.spec(job, id, slot, work)?;
        let owner = spec.agent_host_uid();
        let writable: Vec<&Path> = job.mounts.iter().filter(|m| m.writable).map(|m| m.source.as_path()).collect();
        for folder in &writable {
            give(folder, owner).map_err(|e| failed("give a folder to the job", &e))?;
        }
        let ended = self.start_and_wait(job, &spec);
        for folder in &writable {
            give(folder, 0).map_err(|e| failed("take a folder back from the job", &e))?;
        }
        let code = ended?;
        let (stdout, stderr) = read_output(&spec.log);
        let denied = denied(&spec.spools.join("gate.spool"));
        Ok(JobOutput { code, stdout, stderr, denied })
    }

    fn start_and_wait(&self, job: &Job, spec: &SandboxSpec) -> Result<i32, Report> {
        let grants = job
            .hosts
            .iter()
            .map(|host| {
                let pattern: HostPattern = host.host.parse().map_err(|e| failed("name a host for the job", &e))?;
                Ok(Grant {
                    port: host.port,
                    scheme: host.scheme,
                    methods: vec!["GET".into(), "HEAD".into()],
                    // The operator's own configuration names this index; it may well be on a private network.
                    allow_private: true,
                    ..Grant::to(pattern)
                })
            })
            .collect::<Result<Vec<_>, Report>>()?;
        let uid = spec.gate_uid();
        let closed = GateConfig::closed(spec.agent.clone(), spec.id.clone(), uid, uid, start::gate_fds());
        let gate = GateConfig { grants, ..closed };
        let config = serde_json::to_vec(&gate).map_err(|e| failed("describe the job's gate", &e))?;
        let mut launched = launch::launch(spec, &config, None, self.program)?;
        let deadline = Instant::now() + job.timeout;
        let shim = control::Shim::at(&spec.control());
        let mut wait = Duration::from_millis(2);
        let mut called_off = None;
        loop {
            match launched.shim.try_wait() {
                Ok(None) => {}
                Ok(Some(_)) => break,
                Err(e) => return Err(failed("wait for the job", &e)),
            }
            if called_off.is_none() {
                if self.called_off.load(Ordering::Relaxed) {
                    called_off = Some(cancelled(&job.purpose));
                } else if Instant::now() > deadline {
                    called_off = Some(
                        Report::new(
                            "job.timeout",
                            Fault::Caller,
                            format!("`{}` took longer than {} seconds", job.purpose, job.timeout.as_secs()),
                        )
                        .hint("run it again; a slow network may be the cause"),
                    );
                }
                if called_off.is_some() {
                    let _ = shim.ask(&control::Request::Kill, &[], Duration::from_secs(5));
                }
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(Duration::from_millis(50));
        }
        if let Some(report) = called_off {
            return Err(report);
        }
        match launch::exit_of(&spec.run_dir) {
            Some(exit) if exit.out_of_memory => Err(Report::new(
                "job.memory",
                Fault::Caller,
                format!("`{}` needed more than {} of memory", job.purpose, job.memory),
            )),
            Some(exit) => Ok(exit.code),
            None => Err(Report::new("job.lost", Fault::Us, format!("the sandbox of `{}` was lost", job.purpose))),
        }
    }

    fn spec(&self, job: &Job, id: &SandboxId, slot: u32, work: &Path) -> Result<SandboxSpec, Report> {
        let mut env: BTreeMap<String, String> = job.env.clone();
        for (name, value) in start::trust_env() {
            env.entry(name).or_insert(value);
        }
        let agent = format!("job-{}", job.purpose.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        let agent: String = agent.chars().take(40).collect();
        Ok(SandboxSpec {
            id: id.clone(),
            agent: agent.trim_end_matches('-').parse().map_err(|e| failed("name the job", &e))?,
            slot,
            layers: job.layers.clone(),
            argv: job.argv.clone(),
            env: env.into_iter().collect(),
            bridge: None,
            cwd: job.cwd.clone(),
            limits: Limits {
                memory: job.memory,
                cpus: f64::from(
                    u32::try_from(std::thread::available_parallelism().map_or(1, usize::from)).unwrap_or(1),
                ),
                pids: 512,
                disk: Bytes::gib(1),
                tmp: Bytes::gib(1),
                files: 8192,
                captures: USUAL_CAPTURES,
            },
            mounts: job
                .mounts
                .iter()
                .map(|m| SpecMount {
                    source: m.source.clone(),
                    target: m.target.clone(),
                    writable: m.writable,
                    // What a job builds, it may have to run: sdists build tools that they then use. A job's
                    // sandbox holds no credential and reaches the index only.
                    executable: true,
                })
                .collect(),
            state: None,
            trust_stores: Vec::new(),
            host_roots: None,
            run_dir: self.paths.sandbox(id),
            mount_dir: self.paths.mounts(),
            log: work.join("job.log"),
            spools: self.paths.spools_of(id),
            gate_program: self.program.to_path_buf(),
            fence: self.fence,
            ledger: None,
            host_ledger: None,
            definitions: None,
            captures: None,
            hold: false,
        })
    }
}

fn failed(what: &str, why: &dyn std::error::Error) -> Report {
    Report::new("job.step", Fault::Us, format!("cannot {what}")).because(why)
}

/// Gives a tree to a user, links themselves and not what they point to.
fn give(path: &Path, owner: u32) -> std::io::Result<()> {
    lchown(path, Some(owner), Some(owner))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), owner)?;
        }
    }
    Ok(())
}

fn read_output(log: &Path) -> (String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    for file in [log.with_extension("log.1"), log.to_path_buf()] {
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            if let Ok(line) = serde_json::from_str::<ringfence_sandbox::log::Line>(line) {
                let to = if line.stream == "out" { &mut out } else { &mut err };
                to.push_str(&line.text);
                to.push('\n');
            }
        }
    }
    (last(out, 4 << 20), last(err, 1 << 20))
}

fn last(text: String, bytes: usize) -> String {
    match text.len().checked_sub(bytes) {
        None | Some(0) => text,
        Some(cut) => {
            let cut = (cut..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.get(cut..).unwrap_or_default().to_owned()
        }
    }
}

fn denied(spool: &PathBuf) -> Vec<String> {
    let mut hosts: Vec<String> = fs::read_to_string(spool)
        .unwrap_or_default()
        .lines()
        .filter_map(|line| serde_json::from_str::<Entry>(line.trim_start_matches('\0')).ok())
        .filter_map(|entry| match entry.event {
            Event::CallIntent(call) if call.decision == Outcome::Deny => Some(call.host),
            Event::DnsQuery { name, decision: Outcome::Deny, .. } => Some(name),
            _ => None,
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}
