//! Watching sandboxes: those that this supervisor started, and those that it finds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringfence_fleet::api::State;
use ringfence_model::{AgentName, SandboxId};
use ringfence_sandbox::control::{Answer, Request, Shim};
use ringfence_sandbox::{launch, runtime};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tokio::io::unix::AsyncFd;

use super::{Supervisor, lock};
use crate::supervisor::recorder::tracing_line;

impl Supervisor {
    /// Takes up every sandbox that an earlier supervisor left, and puts away what is over.
    pub(super) fn adopt_all(self: &Arc<Self>) {
        let agents = lock(&self.db).agents().unwrap_or_default();
        let mut known = Vec::new();
        for agent in agents {
            let Some(id) = agent.sandbox.clone() else { continue };
            let run_dir = self.paths.sandbox(&id);
            known.push(run_dir.clone());
            if !matches!(agent.state, State::Running | State::Frozen | State::Starting) {
                if run_dir.exists() {
                    self.clean(&id, &run_dir);
                }
                continue;
            }
            let shim = Shim::at(&run_dir.join("control"));
            match shim.ask(&Request::Status, &[], Duration::from_secs(5)) {
                // A start that was not finished when its supervisor died was never validated: it does not count.
                Ok(Answer::Status(_)) if agent.state == State::Starting => {
                    let _ = shim.ask(&Request::Kill, &[], Duration::from_secs(5));
                    self.over(&agent.name, &id, Some("the supervisor ended during the start".into()));
                }
                Ok(Answer::Status(status)) => {
                    tracing_line(&format!("adopted agent `{}`", agent.name));
                    // A supervisor that died between a freeze and its note of it left the two apart.
                    let found = if status.frozen { State::Frozen } else { State::Running };
                    if agent.state != found
                        && let Err(report) = self.set_state(&agent.name, found, None)
                    {
                        tracing_line(&report.to_string());
                    }
                    self.watch(agent.name.clone(), id, status.shim_pid);
                }
                _ => self.over(&agent.name, &id, None),
            }
        }
        // Jobs and half-made starts of a supervisor that died.
        for entry in fs::read_dir(self.paths.run.join("sandboxes")).into_iter().flatten().flatten() {
            let run_dir = entry.path();
            if known.contains(&run_dir) {
                continue;
            }
            let _ = Shim::at(&run_dir.join("control")).ask(&Request::Kill, &[], Duration::from_secs(2));
            if let Ok(id) = serde_json::from_value::<SandboxId>(entry.file_name().to_string_lossy().into_owned().into())
            {
                self.clean(&id, &run_dir);
            }
        }
        let _ = fs::remove_dir_all(self.paths.state.join("jobs"));
    }

    /// Watches a shim until it ends, then notes how.
    pub(super) fn watch(self: &Arc<Self>, agent: AgentName, id: SandboxId, shim_pid: i32) {
        let me = Arc::clone(self);
        self.runtime.spawn(async move {
            wait_for_end(shim_pid).await;
            tokio::task::block_in_place(|| me.over(&agent, &id, None));
            me.end_orphans().await;
        });
    }

    /// Notes how a start ended and puts away what it left.
    pub(super) fn over(&self, name: &AgentName, id: &SandboxId, why: Option<String>) {
        let run_dir = self.paths.sandbox(id);
        let exit = launch::exit_of(&run_dir);
        self.clean(id, &run_dir);
        let Ok(Some(mut agent)) = lock(&self.db).agent(name) else { return };
        if agent.sandbox.as_ref() != Some(id) || matches!(agent.state, State::Stopped | State::Failed) {
            return;
        }
        (agent.state, agent.reason) = match (exit, why) {
            (_, Some(why)) => (State::Failed, Some(why)),
            (Some(exit), None) if exit.out_of_memory => {
                (State::Failed, Some(format!("it needed more memory than {}", agent.manifest.limits.memory)))
            }
            (Some(exit), None) if exit.why == "gate_died" => (State::Failed, Some("its gate died".into())),
            (Some(exit), None) if exit.code == 0 => (State::Exited, None),
            (Some(exit), None) => (State::Failed, Some(format!("it ended with code {}", exit.code))),
            (None, None) => (State::Failed, Some("its shim was killed".into())),
        };
        if let Err(error) = lock(&self.db).put(&agent) {
            tracing_line(&format!("cannot note the end of `{name}`: {error}"));
        }
    }
}

/// Waits until process `pid` ends.
async fn wait_for_end(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::NONBLOCK) else { return };
    #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd keeps what that one asks to be promised")]
    let watched = AsyncFd::new(fd);
    match watched {
        Ok(fd) => {
            let _ = fd.readable().await;
        }
        Err(_) => {
            while kill_process(pid, Signal::CHILD).is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    // A child of ours must be reaped; one of an earlier supervisor is not ours to reap.
    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
}

/// Kills what is left in the cgroups of a start whose shim died, and removes them.
pub(super) fn kill_cgroups(id: &SandboxId) {
    let root = Path::new("/sys/fs/cgroup");
    let mut roots: Vec<PathBuf> = vec![root.to_path_buf()];
    roots.extend(fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()));
    let of_sandbox = [Path::new("ringfence").join(id.as_str()), runtime::gate_cgroup(id)];
    for _ in 0..100 {
        let mut left = false;
        for folder in roots.iter().flat_map(|root| of_sandbox.iter().map(|path| root.join(path))) {
            if !folder.exists() {
                continue;
            }
            for pid in fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
                if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            // A frozen process dies only once it is thawed.
            let _ = fs::write(folder.join("freezer.state"), "THAWED");
            let _ = fs::write(folder.join("cgroup.freeze"), "0");
            left |= fs::remove_dir(&folder).is_err();
            let _ = folder.parent().map(fs::remove_dir);
        }
        if !left {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
