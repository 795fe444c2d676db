//! Every barrier of the fence: that it holds, and that its attack gets through once the barrier is gone. Needs root.
//!
//! This file is its own shim and its own gate (`support`), so that nothing runs in them that a test runs. The root
//! file system is this host's, read-only; the sandboxes are otherwise as an agent's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use ringfence_model::{Bytes, Report};
use ringfence_sandbox::control::{self, Answer, Request};
use ringfence_sandbox::probe::{Finding, Targets};
use ringfence_sandbox::spec::{AGENT_UID, FIRST_UID, Fence, SpecMount, StateVolume};
use ringfence_sandbox::{SandboxError, launch};
use rustix::process::{Pid, Signal, kill_process};
use support::{
    AUTHORITY, FLOOD, SSH_AUTHORITY, Sandbox, alive, cgroups_named, helper, in_a_world_that_answers, within,
};

fn main() -> ExitCode {
    if let Some(code) = helper(std::env::args().nth(1).as_deref()) {
        return code;
    }
    let mut trials = vec![Trial::test("the_whole_fence_holds_against_every_attack", || held(whole_fence))];
    for row in &ATTACKS {
        trials.push(Trial::test(format!("{}_holds", row.barrier), || held(|| row.holds())));
        let layers: Vec<String> = row.layers.iter().map(|l| format!("{l:?}").to_lowercase()).collect();
        let name = format!("{}_falls_without_{}", row.barrier, layers.join("_and_"));
        trials.push(Trial::test(name, || held(|| row.falls())));
    }
    trials.extend(TESTS.iter().map(|(name, test)| Trial::test(*name, move || held(test))));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

#[expect(clippy::unnecessary_wraps, reason = "what fails here panics; a trial wants a result")]
fn held(test: impl FnOnce()) -> Result<(), Failed> {
    test();
    Ok(())
}

/// One layer of the fence that a test takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Landlock,
    Masks,
    Network,
    Privileges,
    Root,
    Seccomp,
    User,
}

use Layer::{Landlock, Masks, Network, Privileges, Root, Seccomp, User};

fn without(layers: &[Layer]) -> Fence {
    let stands = |layer| !layers.contains(&layer);
    Fence {
        user_namespace: stands(User),
        read_only_root: stands(Root),
        no_privileges: stands(Privileges),
        seccomp: stands(Seccomp),
        landlock: stands(Landlock),
        masks: stands(Masks),
        network: stands(Network),
        cgroup: true,
    }
}

/// An attack of the probes, and the layers that must all be gone before it gets through.
struct Attack {
    barrier: &'static str,
    layers: &'static [Layer],
    /// Whether each of the layers is enough alone. Not told where that is up to a setting of the host.
    each_is_enough: bool,
    /// For an attack at something that not every kernel has.
    kin: Option<Kin>,
}

/// An attack that the same rule stops, at something that every kernel has.
struct Kin {
    /// What the attack itself aims at. Where a host has it, that attack is tried as well.
    aim: &'static str,
    /// The attack, as a command. It ends with success if it gets through.
    argv: &'static [&'static str],
    /// What it says otherwise.
    refusals: &'static [&'static str],
}

/// A socket of a family that is allowed, with a protocol that is not: what is not listed is denied.
const GENERIC_NETLINK: [&str; 3] = ["perl", "-e", "socket(my $socket, 16, 3, 16) or do { print qq($!); exit 1 }"];

const fn attack(barrier: &'static str, layers: &'static [Layer]) -> Attack {
    Attack { barrier, layers, each_is_enough: true, kin: None }
}

impl Attack {
    const fn up_to_the_host(self) -> Self {
        Self { each_is_enough: false, ..self }
    }

    const fn aimed_at(
        self,
        aim: &'static str,
        argv: &'static [&'static str],
        refusals: &'static [&'static str],
    ) -> Self {
        Self { kin: Some(Kin { aim, argv, refusals }), ..self }
    }

    fn holds(&self) {
        let finding = &WHOLE[self.barrier];
        assert!(finding.held, "{finding:?}");
        if let Some(kin) = &self.kin {
            kin.is_refused(&[]);
        }
    }

    fn falls(&self) {
        if let Some(kin) = &self.kin {
            kin.falls(self.layers);
            if !Path::new(kin.aim).exists() {
                return;
            }
        }
        let finding = self.tried_without(self.layers);
        assert!(!finding.held, "with {:?} off it should get through: {finding:?}", self.layers);
        if !self.each_is_enough {
            return;
        }
        for layer in self.layers {
            let others: Vec<Layer> = self.layers.iter().filter(|l| *l != layer).copied().collect();
            let finding = self.tried_without(&others);
            assert!(finding.held, "{layer:?} alone should hold: {finding:?}");
        }
    }

    fn tried_without(&self, layers: &[Layer]) -> Finding {
        by_barrier(Sandbox::fenced(without(layers)).attack(Targets::default())).remove(self.barrier).unwrap()
    }
}

impl Kin {
    fn tried_without(&self, layers: &[Layer]) -> (i32, String) {
        Sandbox::fenced(without(layers)).exec(self.argv)
    }

    fn is_refused(&self, layers: &[Layer]) {
        let (code, said) = self.tried_without(layers);
        let refused = self.refusals.iter().any(|refusal| said.contains(refusal));
        assert!(code != 0 && refused, "{:?} with {layers:?} off: {code}, {said}", self.argv);
    }

    /// Gets through once all layers are gone; each of them is enough alone.
    fn falls(&self, layers: &[Layer]) {
        let (code, said) = self.tried_without(layers);
        assert_eq!(code, 0, "{:?} with {layers:?} off should get through: {said}", self.argv);
        for layer in layers {
            let others: Vec<Layer> = layers.iter().filter(|l| *l != layer).copied().collect();
            self.is_refused(&others);
        }
    }
}

/// Found by taking away every set of layers: these are the least ones.
static ATTACKS: [Attack; 24] = [
    attack("become-root", &[Privileges]),
    attack("bpf", &[User, Privileges, Seccomp]).up_to_the_host(),
    attack("chroot", &[Privileges, Seccomp]),
    // Where the module is not loaded, this kernel may well have none.
    attack("crypto-socket", &[Seccomp]).up_to_the_host().aimed_at(
        "/sys/module/af_alg",
        &GENERIC_NETLINK,
        &["Operation not permitted"],
    ),
    attack("host-keys", &[User, Masks]),
    attack("host-memory", &[User, Privileges, Masks]).up_to_the_host().aimed_at(
        "/proc/kcore",
        &["bash", "-c", "exec 3</proc/timer_list && { read -r line <&3 || { echo empty; exit 1; }; }"],
        &["Permission denied", "empty"],
    ),
    attack("interfaces", &[Network]),
    attack("io-uring", &[Seccomp]),
    attack("kernel-settings", &[User, Privileges, Masks]),
    attack("keyring", &[Seccomp]),
    attack("make-device", &[User, Privileges, Landlock]),
    attack("mount", &[Privileges, Seccomp, Landlock]),
    attack("new-namespace", &[Seccomp]),
    attack("packet-socket", &[User, Privileges, Seccomp]),
    attack("perf-event", &[User, Privileges, Seccomp]).up_to_the_host(),
    attack("ptrace", &[Seccomp]),
    attack("raw-socket", &[User, Privileges, Seccomp]),
    attack("run-anonymous-code", &[Seccomp]),
    attack("sysrq", &[User, Privileges, Masks]).up_to_the_host().aimed_at(
        "/proc/sysrq-trigger",
        &["bash", "-c", "mask=$(cat /proc/irq/default_smp_affinity) && echo $mask >/proc/irq/default_smp_affinity"],
        &["Permission denied", "Read-only file system"],
    ),
    attack("userfaultfd", &[Seccomp]),
    attack("vm-socket", &[Seccomp]).aimed_at("/sys/module/vsock", &GENERIC_NETLINK, &["Operation not permitted"]),
    attack("write-app", &[User, Root, Privileges, Landlock]),
    attack("write-root", &[User, Root, Privileges, Landlock]),
    attack("write-trust", &[User, Root, Privileges, Landlock]),
];

/// What the probes find inside the whole fence.
static WHOLE: LazyLock<BTreeMap<String, Finding>> =
    LazyLock::new(|| by_barrier(Sandbox::fenced(Fence::default()).attack(Targets::default())));

fn by_barrier(findings: Vec<Finding>) -> BTreeMap<String, Finding> {
    findings.into_iter().map(|f| (f.barrier.clone(), f)).collect()
}

fn whole_fence() {
    let open: Vec<&Finding> = WHOLE.values().filter(|f| !f.held).collect();
    assert!(open.is_empty(), "{open:#?}");
    for row in &ATTACKS {
        assert!(WHOLE.contains_key(row.barrier), "no probe is called `{}`", row.barrier);
    }
}

/// The barriers that no single flag takes away, and the life of a sandbox.
const TESTS: [(&str, fn()); 32] = [
    ("a_missing_file_system_maker_is_named_with_its_remedy", a_missing_mechanism_is_named),
    ("a_missing_program_is_named", a_missing_program_is_named),
    ("an_agent_that_is_held_does_nothing_until_it_is_started", a_held_agent_does_nothing),
    ("commands_join_the_whole_fence", commands_join_the_whole_fence),
    ("commands_stand_outside_a_fence_that_is_off", commands_stand_outside_a_fence_that_is_off),
    ("core_dumps_are_off", core_dumps_are_off),
    ("freezing_holds_the_agent_until_it_resumes", freezing_holds_the_agent),
    ("host_processes_are_in_sight_only_without_a_sandbox", host_processes),
    ("memory_is_limited", memory_is_limited),
    ("memory_is_not_limited_without_cgroup", memory_is_not_limited_without_cgroup),
    ("the_gates_memory_is_limited_and_its_end_ends_the_agent", the_gates_memory_is_limited),
    ("the_gates_memory_is_not_limited_without_cgroup", the_gates_memory_is_not_limited_without_cgroup),
    ("nobody_but_root_makes_a_sandbox_and_is_told_why", nobody_makes_no_sandbox),
    ("nothing_is_left_after_the_end", nothing_is_left),
    ("nothing_is_left_after_a_failed_start", nothing_is_left_after_a_failed_start),
    ("open_files_are_limited", open_files_are_limited),
    ("processes_are_limited", processes_are_limited),
    ("processes_are_not_limited_without_cgroup", processes_are_not_limited_without_cgroup),
    ("run_written_code_falls_where_a_mount_allows_it", run_written_code_falls),
    ("run_written_code_holds_by_noexec_and_by_landlock", run_written_code_holds),
    ("state_is_limited", state_is_limited),
    ("state_is_not_limited_without_a_quota", state_is_not_limited_without_a_quota),
    ("the_agent_has_a_uid_that_no_account_has", the_agent_has_a_strange_uid),
    ("the_agent_is_stopped_with_grace", the_agent_is_stopped_with_grace),
    ("the_network_is_open_without_capture", the_network_is_open_without_capture),
    ("the_network_leads_to_the_gate_alone", the_network_leads_to_the_gate_alone),
    ("a_socket_of_the_host_without_a_file_is_out_of_reach", a_socket_of_the_host_without_a_file_is_out_of_reach),
    ("the_supervisor_s_socket_is_out_of_reach", the_supervisor_s_socket_is_out_of_reach),
    ("the_supervisor_s_socket_is_reached_where_it_is_mounted", the_supervisor_s_socket_is_reached_where_mounted),
    ("what_the_agent_prints_and_how_it_ends_is_kept", what_the_agent_prints_is_kept),
    ("with_the_gate_the_agent_dies", with_the_gate_the_agent_dies),
    ("with_the_shim_everything_dies", with_the_shim_everything_dies),
];

fn host_processes() {
    assert!(WHOLE["host-processes"].held, "{:?}", WHOLE["host-processes"]);
    let output = std::process::Command::new(std::env::current_exe().unwrap()).arg("unfenced-process").output().unwrap();
    let findings = by_barrier(serde_json::from_slice(&output.stdout).unwrap());
    assert!(!findings["host-processes"].held, "{:?}", findings["host-processes"]);
}

/// Writes with each of its two layers; they fall together, with a mount that may be written and run.
fn run_written_code_holds() {
    for fence in [Fence::default(), without(&[Landlock]), without(&[User, Root, Privileges, Seccomp, Landlock])] {
        let found = by_barrier(Sandbox::fenced(fence).attack(Targets::default())).remove("run-written-code").unwrap();
        assert!(found.held && found.detail == "permission denied", "{found:?}");
    }
    let found = by_barrier(workshop(false).attack(Targets::default())).remove("run-written-code").unwrap();
    assert!(found.held && found.detail == "permission denied", "{found:?}");
}

fn run_written_code_falls() {
    let found = by_barrier(workshop(true).attack(Targets::default())).remove("run-written-code").unwrap();
    assert!(!found.held, "{found:?}");
}

/// A sandbox with a host folder over `/state` that may be written.
fn workshop(executable: bool) -> Sandbox {
    Sandbox::start(|spec, dir| {
        let source = dir.join("workshop");
        fs::create_dir(&source).unwrap();
        fs::set_permissions(&source, fs::Permissions::from_mode(0o777)).unwrap();
        spec.mounts.push(SpecMount { source, target: "/state".into(), writable: true, executable });
    })
}

fn the_network_leads_to_the_gate_alone() {
    in_a_world_that_answers(|world| {
        let sandbox = Sandbox::fenced(Fence::default());
        let found = by_barrier(sandbox.attack(world.targets()));
        for name in ["ipv4", "ipv6", "metadata"] {
            let found = &found[&format!("connect-{name}")];
            assert!(found.held && found.detail == "denied by the gate", "{found:?}");
        }
        for name in ["connect-host-loopback", "connect-host-loopback-ipv6"] {
            assert!(found[name].held && found[name].detail == "connection refused", "{:?}", found[name]);
        }
        for name in ["datagram-host-loopback", "datagram-ipv4", "datagram-ipv6"] {
            assert!(found[name].held, "{:?}", found[name]);
        }
        let (_, bundle) = sandbox.sh("cat /etc/ssl/certs/ca-certificates.crt");
        assert_eq!(bundle, AUTHORITY, "the agent trusts the gate's authority alone");
        let (_, known_hosts) = sandbox.sh("cat /etc/ssh/ssh_known_hosts");
        assert_eq!(known_hosts, format!("@cert-authority * {SSH_AUTHORITY}\n"), "and for SSH likewise");
    });
}

fn the_network_is_open_without_capture() {
    in_a_world_that_answers(|world| {
        let found = by_barrier(Sandbox::fenced(without(&[Network])).attack(world.targets()));
        let reached: Vec<&str> = found
            .values()
            .filter(|f| (f.barrier.starts_with("connect-") || f.barrier.starts_with("datagram-")) && !f.held)
            .map(|f| f.barrier.as_str())
            .collect();
        let targets = world.targets();
        assert_eq!(reached.len(), targets.tcp.len() + targets.udp.len(), "{reached:?}");
    });
}

/// A socket that anybody may use, in a folder that anybody may pass.
fn open_socket(dir: &Path) -> (PathBuf, UnixListener) {
    let folder = dir.join("sockets");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let listener = UnixListener::bind(folder.join("supervisor.sock")).unwrap();
    fs::set_permissions(folder.join("supervisor.sock"), fs::Permissions::from_mode(0o777)).unwrap();
    (folder, listener)
}

fn the_supervisor_s_socket_is_out_of_reach() {
    let mut kept = None;
    let sandbox = Sandbox::start(|_, dir| kept = Some(open_socket(dir)));
    let (folder, _listener) = kept.unwrap();
    let sockets = vec![folder.join("supervisor.sock"), sandbox.spec.control(), "/run/ringfence/supervisor.sock".into()];
    for found in sandbox.attack(Targets { sockets, ..Targets::default() }) {
        assert!(found.held, "{found:?}");
    }
    let (_, mounts) = sandbox.sh("cat /proc/self/mountinfo");
    for held in [&folder, &sandbox.spec.run_dir] {
        assert!(mounts.contains(" / ") && !mounts.contains(held.to_str().unwrap()), "{mounts}");
    }
}

fn the_supervisor_s_socket_is_reached_where_mounted() {
    let mut kept = None;
    let sandbox = Sandbox::start(|spec, dir| {
        let (source, listener) = open_socket(dir);
        spec.mounts.push(SpecMount { source, target: "/app/sockets".into(), writable: true, executable: false });
        kept = Some(listener);
    });
    let targets = Targets { sockets: vec!["/app/sockets/supervisor.sock".into()], ..Targets::default() };
    let found = by_barrier(sandbox.attack(targets)).remove("supervisor-socket").unwrap();
    assert!(!found.held, "{found:?}");
}

/// Nothing of ours listens without a file; of what else on the host does, nothing is reached.
fn a_socket_of_the_host_without_a_file_is_out_of_reach() {
    let name = format!("ringfence-barriers-{}", std::process::id());
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let sockets = vec![PathBuf::from(format!("@{name}"))];
    let attacked = |fence| {
        let targets = Targets { sockets: sockets.clone(), ..Targets::default() };
        by_barrier(Sandbox::fenced(fence).attack(targets)).remove("supervisor-socket").unwrap()
    };
    let found = attacked(Fence::default());
    assert!(found.held, "{found:?}");
    let found = attacked(without(&[Network, Landlock]));
    assert!(!found.held, "with the barriers off: {found:?}");
    drop(listener);
}

fn the_agent_has_a_strange_uid() {
    let uid_of = |sandbox: &Sandbox| {
        let status = fs::read_to_string(format!("/proc/{}/status", sandbox.status.agent_pid)).unwrap();
        let line = status.lines().find(|l| l.starts_with("Uid:")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap()
    };
    let sandbox = Sandbox::fenced(Fence::default());
    assert!(uid_of(&sandbox) >= FIRST_UID && uid_of(&sandbox) < 1 << 31);
    assert_eq!(uid_of(&sandbox), sandbox.spec.agent_host_uid());
    assert_eq!(uid_of(&Sandbox::fenced(without(&[User]))), AGENT_UID, "with the barrier off");
}

/// Starts up to 200 processes that stay, and prints how many there were.
const FORK: &str = "i=0; while [ $i -lt 200 ]; do sleep 60 >/dev/null 2>&1 & i=$((i+1)); echo $i; done";

fn processes_are_limited() {
    let (code, out) = Sandbox::fenced(Fence::default()).exec(&["dash", "-c", FORK]);
    let most: usize = out.lines().filter_map(|l| l.parse().ok()).max().unwrap();
    assert!(code != 0 && most < 64 && out.contains("Cannot fork"), "{most}: {out}");
}

fn processes_are_not_limited_without_cgroup() {
    let (code, out) = Sandbox::fenced(Fence { cgroup: false, ..Fence::default() }).exec(&["dash", "-c", FORK]);
    assert_eq!((code, out.lines().last()), (0, Some("200")));
}

/// Holds 128 MiB at once, twice what the sandbox may have.
const HOARD: &str = "head -c 128m /dev/zero | tail -c 128m >/dev/null; exit ${PIPESTATUS[1]}";

fn hoarder(cgroup: bool) -> Sandbox {
    Sandbox::start(|spec, _| {
        spec.argv = ["bash", "-c", HOARD].map(str::to_owned).to_vec();
        spec.fence.cgroup = cgroup;
    })
}

fn memory_is_limited() {
    let exit = hoarder(true).wait();
    assert!(exit.out_of_memory && exit.code == 137, "{exit:?}");
}

fn memory_is_not_limited_without_cgroup() {
    let exit = hoarder(false).wait();
    assert!(!exit.out_of_memory && exit.code == 0, "{exit:?}");
}

/// An agent that floods its gate, says what comes back, and waits if that is nothing.
fn flooder(cgroup: bool) -> Sandbox {
    Sandbox::start(|spec, _| {
        let flood = format!(
            "exec 3<>/dev/tcp/192.0.2.1/80; printf {FLOOD} >&3; said=$(cat <&3); \
             echo \"$said\"; [ -n \"$said\" ] || exec sleep 600"
        );
        spec.argv = ["bash".to_owned(), "-c".into(), flood].to_vec();
        spec.fence.cgroup = cgroup;
    })
}

fn the_gates_memory_is_limited() {
    let mut sandbox = flooder(true);
    let exit = sandbox.wait();
    assert_eq!((exit.code, exit.why.as_str()), (137, "gate_died"));
    assert_eq!(cgroups_named(sandbox.spec.id.as_str()), Vec::<PathBuf>::new());
}

fn the_gates_memory_is_not_limited_without_cgroup() {
    let mut sandbox = flooder(false);
    let exit = sandbox.wait();
    assert_eq!((exit.code, exit.why.as_str()), (0, "exited"));
    assert!(sandbox.log().iter().any(|line| line.contains("403")), "{:?}", sandbox.log());
}

fn with_state(quota: bool) -> Sandbox {
    Sandbox::start(|spec, dir| {
        spec.state = Some(StateVolume { file: dir.join("state.img"), size: Bytes::mib(32), quota });
    })
}

const FILL: &str = "dd if=/dev/zero of=/state/x bs=1M count=48; code=$?; stat -c 'bytes %s' /state/x; exit $code";

fn state_is_limited() {
    let (code, out) = with_state(true).sh(FILL);
    let bytes = out.lines().find_map(|l| l.strip_prefix("bytes ")?.parse::<u64>().ok()).unwrap();
    assert!(code == 1 && out.contains("No space left on device") && bytes < 32 << 20 && bytes > 16 << 20, "{out}");
}

fn state_is_not_limited_without_a_quota() {
    let (code, out) = with_state(false).sh(FILL);
    assert!(code == 0 && out.contains(&format!("bytes {}", 48 << 20)), "{out}");
}

/// Opens up to 2,000 files, after trying for a higher limit, and prints how many it got.
const OPEN: &str = "ulimit -n 4096 2>/dev/null && echo raised; i=0; \
    while [ $i -lt 2000 ] && { exec {fd}</dev/null; } 2>/dev/null; do i=$((i+1)); done; echo $i";

fn open_files_are_limited() {
    let opened = |files| {
        let mut sandbox = Sandbox::start(|spec, _| {
            spec.limits.files = files;
            spec.argv = ["bash", "-c", OPEN].map(str::to_owned).to_vec();
            // It stays, so that a command can try the same beside it.
            spec.argv[2].push_str("; exec sleep 600 {fd}<&-");
        });
        let (_, beside) = sandbox.sh(OPEN);
        assert!(within(Duration::from_secs(10), || sandbox.log().iter().any(|l| l.parse::<u32>().is_ok())));
        let agent = sandbox.log().join("\n");
        sandbox.ask(&Request::Kill);
        sandbox.wait();
        [agent, beside.trim().to_owned()].map(|out| out.lines().last().unwrap_or_default().parse::<u32>().unwrap_or(0))
    };
    for number in opened(256) {
        assert!((200..256).contains(&number), "{number}");
    }
    assert_eq!(opened(4096), [2000, 2000], "with a higher limit there is room");
}

fn core_dumps_are_off() {
    let sandbox = Sandbox::fenced(Fence::default());
    let limits = fs::read_to_string(format!("/proc/{}/limits", sandbox.status.agent_pid)).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(line.split_whitespace().filter(|w| *w == "0").count(), 2, "{line}");
    let (_, out) = sandbox.sh("cd /tmp; ulimit -c; ulimit -c unlimited; bash -c 'kill -SEGV $$'; ls -A /tmp");
    assert!(out.starts_with("0\n") && out.contains("cannot modify limit") && !out.contains("\ncore"), "{out}");
}

fn with_the_shim_everything_dies() {
    // The earliest moment counts: an agent that is not tied to its shim yet must find out by itself.
    let mut sandbox = Sandbox::fenced(Fence::default());
    for _ in 0..5 {
        let (agent, gate) = (sandbox.status.agent_pid, sandbox.status.gate_pid.unwrap());
        sandbox.process.kill().unwrap();
        let gone = within(Duration::from_secs(5), || !alive(agent) && !alive(gate));
        assert!(gone, "agent {}, gate {}", alive(agent), alive(gate));
        sandbox = Sandbox::fenced(Fence::default());
    }
    let (agent, gate) = (sandbox.status.agent_pid, sandbox.status.gate_pid.unwrap());
    assert!(alive(agent) && alive(gate));
    sandbox.process.kill().unwrap();
    assert!(within(Duration::from_secs(5), || !alive(agent) && !alive(gate)));
    sandbox.process.wait().unwrap();
    let left = || cgroups_named(sandbox.spec.id.as_str());
    assert!(!left().is_empty(), "nobody was there to remove them");
    let removed = within(Duration::from_secs(1), || left().iter().all(|folder| fs::remove_dir(folder).is_ok()));
    assert!(removed, "{:?}", left());
    assert_eq!(mounts_below(&sandbox.spec.run_dir), Vec::<String>::new());
}

fn with_the_gate_the_agent_dies() {
    let mut sandbox = Sandbox::fenced(Fence::default());
    kill_process(Pid::from_raw(sandbox.status.gate_pid.unwrap()).unwrap(), Signal::KILL).unwrap();
    let exit = sandbox.wait();
    assert_eq!((exit.why.as_str(), exit.code), ("gate_died", 137));
    assert!(!alive(sandbox.status.agent_pid));
}

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid_for_children", "time", "user", "uts"];

/// What a command inside says of itself: its namespaces and its status.
fn itself(sandbox: &Sandbox) -> (Vec<String>, BTreeMap<String, String>) {
    let (code, out) = sandbox.sh(&format!("cd /proc/self/ns && readlink {} && cat ../status", NAMESPACES.join(" ")));
    assert_eq!(code, 0, "{out}");
    let namespaces = out.lines().take(NAMESPACES.len()).map(str::to_owned).collect();
    let status = out.lines().filter_map(|l| l.split_once(":\t")).map(|(k, v)| (k.into(), v.trim().into())).collect();
    (namespaces, status)
}

fn namespaces_of(pid: &str) -> Vec<String> {
    let read = |name| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().display().to_string();
    NAMESPACES.iter().map(read).collect()
}

fn commands_join_the_whole_fence() {
    let sandbox = Sandbox::fenced(Fence::default());
    let (namespaces, status) = itself(&sandbox);
    assert_eq!(namespaces, namespaces_of(&sandbox.status.agent_pid.to_string()));
    let host = namespaces_of("self");
    for (name, (inside, outside)) in NAMESPACES.iter().zip(namespaces.iter().zip(&host)) {
        assert_eq!(inside == outside, *name == "time", "{name}");
    }
    let agent = fs::read_to_string(format!("/proc/{}/status", sandbox.status.agent_pid)).unwrap();
    let agent: BTreeMap<&str, &str> =
        agent.lines().filter_map(|l| l.split_once(":\t")).map(|(k, v)| (k, v.trim())).collect();
    for (key, value) in [
        ("CapAmb", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert_eq!((status[key].as_str(), agent[key]), (value, value), "{key}");
    }
    assert_eq!(status["Seccomp_filters"], agent["Seccomp_filters"]);
    assert_eq!(status["Umask"], agent["Umask"]);
    assert_eq!(status["Groups"], "");
    assert_eq!(sandbox.sh("id -u; id -g").1, "65532\n65532\n");
    let (_, cgroups) = sandbox.sh("cat /proc/self/cgroup");
    assert!(
        !cgroups.is_empty() && cgroups.lines().all(|l| l.ends_with(":/")),
        "its own cgroups are the roots it sees: {cgroups}"
    );
    assert_eq!(sandbox.exec(&["no-such-program"]).0, 127);
}

fn commands_stand_outside_a_fence_that_is_off() {
    let sandbox = Sandbox::fenced(without(&[User, Network, Privileges, Seccomp]));
    let (namespaces, status) = itself(&sandbox);
    let host = namespaces_of("self");
    for name in ["net", "user"] {
        let at = NAMESPACES.iter().position(|n| *n == name).unwrap();
        assert_eq!(namespaces[at], host[at], "{name}");
    }
    assert_ne!(status["CapEff"], "0000000000000000");
    assert_eq!(status["Seccomp"], "0");
}

fn freezing_holds_the_agent() {
    let mut sandbox = Sandbox::start(|spec, _| {
        spec.argv = ["bash", "-c", "while :; do echo tick; sleep 0.02; done"].map(str::to_owned).to_vec();
    });
    let ticks = |sandbox: &Sandbox| sandbox.log().len();
    assert!(within(Duration::from_secs(5), || ticks(&sandbox) > 3), "it ticks");
    assert!(matches!(sandbox.ask(&Request::Freeze), Answer::Done));
    assert!(matches!(sandbox.ask(&Request::Status), Answer::Status(s) if s.frozen && s.processes > 0));
    std::thread::sleep(Duration::from_millis(100));
    let before = ticks(&sandbox);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(ticks(&sandbox), before, "frozen");
    assert!(matches!(sandbox.ask(&Request::Resume), Answer::Done));
    assert!(within(Duration::from_secs(5), || ticks(&sandbox) > before + 3), "it ticks again");
    assert!(matches!(sandbox.ask(&Request::Freeze), Answer::Done));
    assert!(matches!(sandbox.ask(&Request::Kill), Answer::Done));
    assert_eq!(sandbox.wait().why, "killed", "what is frozen can be killed");
}

fn a_held_agent_does_nothing() {
    let mut sandbox = Sandbox::start(|spec, _| {
        spec.argv = ["bash", "-c", "echo begun"].map(str::to_owned).to_vec();
        spec.hold = true;
    });
    let findings = sandbox.attack(Targets::default());
    assert!(findings.iter().all(|f| f.held), "its fence stands already: {findings:#?}");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(sandbox.log(), Vec::<String>::new());
    control::start(&sandbox.shim).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(sandbox.wait().code, 0);
    assert_eq!(sandbox.log(), ["begun"]);
}

fn the_agent_is_stopped_with_grace() {
    let ended = |trap: &str, grace_ms| {
        let mut sandbox = Sandbox::start(|spec, _| {
            let script = format!("{trap}; echo up; while :; do sleep 0.02; done");
            spec.argv = ["bash", "-c", &script].map(str::to_owned).to_vec();
        });
        assert!(within(Duration::from_secs(5), || !sandbox.log().is_empty()));
        let asked = Instant::now();
        sandbox.ask(&Request::Stop { grace_ms });
        let exit = sandbox.wait();
        (exit.why, exit.code, asked.elapsed())
    };
    let (why, code, took) = ended("trap 'exit 3' TERM", 5000);
    assert!(why == "stopped" && code == 3 && took < Duration::from_secs(1), "{why} {code} {took:?}");
    let (why, code, took) = ended("trap ':' TERM", 300);
    assert!(why == "stopped" && code == 137 && took >= Duration::from_millis(300), "{why} {code} {took:?}");
    let (why, code, took) = ended(":", 60_000);
    assert!(why == "stopped" && code == 137, "{why} {code}");
    assert!(took < Duration::from_secs(30), "one that has no handler is not waited for: {took:?}");
}

fn what_the_agent_prints_is_kept() {
    let mut sandbox = Sandbox::start(|spec, _| {
        spec.argv = ["bash", "-c", "echo one; echo two >&2; exit 7"].map(str::to_owned).to_vec();
    });
    let exit = sandbox.wait();
    assert_eq!((exit.code, exit.why.as_str(), exit.out_of_memory), (7, "exited", false));
    let mut log = sandbox.log();
    log.sort();
    assert_eq!(log, ["one", "two"]);
    let spool = fs::read_to_string(sandbox.spec.spools.join("shim.spool")).unwrap();
    let entries: Vec<ringfence_audit::Entry> = spool.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let actions: Vec<String> = entries
        .into_iter()
        .filter_map(|e| match e.event {
            ringfence_audit::Event::Sandbox { action, .. } => Some(action),
            _ => None,
        })
        .collect();
    assert_eq!(actions, ["start", "exit"]);
}

/// The lines of this host's mounts that name something below `folder`.
fn mounts_below(folder: &Path) -> Vec<String> {
    let folder = folder.parent().unwrap().display().to_string();
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|l| l.contains(&folder)).map(str::to_owned).collect()
}

/// The loop devices that are bound to something below `folder`.
fn loops_below(folder: &Path) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    devices
        .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok())
        .filter(|backing| Path::new(backing.trim()).starts_with(folder))
        .collect()
}

fn nothing_is_left() {
    let mut sandbox = with_state(true);
    let (agent, gate) = (sandbox.status.agent_pid, sandbox.status.gate_pid.unwrap());
    assert!(!cgroups_named(sandbox.spec.id.as_str()).is_empty());
    assert_eq!(loops_below(sandbox.dir()).len(), 1);
    assert_eq!(mounts_below(&sandbox.spec.run_dir), Vec::<String>::new(), "nothing is seen on the host even now");
    assert_eq!(sandbox.sh("echo kept > /state/kept").0, 0);
    sandbox.ask(&Request::Kill);
    sandbox.wait();
    assert_eq!(cgroups_named(sandbox.spec.id.as_str()), Vec::<PathBuf>::new());
    assert!(within(Duration::from_secs(1), || loops_below(sandbox.dir()).is_empty()), "the kernel frees it");
    assert_eq!(mounts_below(&sandbox.spec.run_dir), Vec::<String>::new());
    assert!(!alive(agent) && !alive(gate));
    assert!(!sandbox.spec.control().exists());
    let again = Sandbox::start(|spec, dir| {
        let file = dir.join("state.img");
        fs::copy(sandbox.dir().join("state.img"), &file).unwrap();
        spec.slot = sandbox.spec.slot;
        spec.state = Some(StateVolume { file, size: Bytes::mib(32), quota: true });
    });
    assert_eq!(again.sh("cat /state/kept").1, "kept\n", "what the state holds outlives the sandbox");
}

fn a_missing_program_is_named() {
    let error = failure(|spec, _| spec.argv = vec!["no-such-program".into()]);
    assert_eq!(error.code, "sandbox.command");
    assert!(error.message.contains("`no-such-program`") && error.hint.is_some(), "{error}");
    let env = [("PATH".to_owned(), "/bin".to_owned())];
    let found = |name: &str| ringfence_sandbox::enter::find_program(&[name.to_owned()], &env);
    assert!(found("sh").is_some() && found("/bin/sh").is_some());
    assert!(found("no-such-program").is_none() && found("/etc/passwd").is_none());
}

fn failure(change: impl FnOnce(&mut ringfence_sandbox::SandboxSpec, &Path)) -> Report {
    match Sandbox::try_start(change) {
        Ok(_) => panic!("it started"),
        Err(report) => report,
    }
}

fn nothing_is_left_after_a_failed_start() {
    let (mut id, mut dir) = (String::new(), PathBuf::new());
    failure(|spec, own| {
        spec.argv = vec!["no-such-program".into()];
        spec.state = Some(StateVolume { file: own.join("state.img"), size: Bytes::mib(32), quota: true });
        (id, dir) = (spec.id.to_string(), own.to_path_buf());
    });
    assert_eq!(cgroups_named(&id), Vec::<PathBuf>::new());
    assert!(within(Duration::from_secs(1), || loops_below(&dir).is_empty()));
    let ours = fs::read_dir("/proc").unwrap().flatten().filter(|process| {
        // The gate and the shim write their errors there, and an agent was to start there.
        ["cwd", "fd/1", "fd/2"]
            .iter()
            .any(|link| fs::read_link(process.path().join(link)).is_ok_and(|at| at.starts_with(&dir)))
    });
    assert_eq!(ours.count(), 0);
}

fn a_missing_mechanism_is_named() {
    let missing = |report: &Report, mechanism: &str, remedy: &str| {
        assert_eq!(report.code, "sandbox.missing_mechanism", "{report}");
        assert!(report.message.contains(&format!("this host lacks `{mechanism}`")), "{report}");
        assert!(report.hint.as_ref().is_some_and(|h| h.contains(remedy)), "{report}");
        assert_eq!(report.exit_code(), 3);
    };
    // No file system is that small: mkfs refuses, as it would where it is missing.
    let report = failure(|spec, dir| {
        spec.state = Some(StateVolume { file: dir.join("state.img"), size: Bytes(4096), quota: true });
    });
    missing(&report, "disk-quota", "without = [\"disk-quota\"]");
    assert!(report.hint.unwrap().contains("e2fsprogs"));
    let made =
        Report::from(SandboxError::missing("landlock", "the kernel does not answer", "boot with `lsm=landlock`"));
    missing(&made, "landlock", "boot with `lsm=landlock`");
}

fn nobody_makes_no_sandbox() {
    let (mut spec, dir) = support::spec();
    spec.run_dir = dir.path().join("own/run");
    spec.spools = dir.path().join("own/spools");
    spec.mount_dir = dir.path().join("own/mnt");
    fs::create_dir(dir.path().join("own")).unwrap();
    std::os::unix::fs::chown(dir.path().join("own"), Some(65_534), Some(65_534)).unwrap();
    // The test's program may lie where only root can walk.
    let program = dir.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let report = std::thread::spawn(move || {
        ringfence_sys::confine::become_nobody(65_534, 65_534).unwrap();
        match launch::launch(&spec, b"{}", None, &program) {
            Ok(_) => panic!("it started"),
            Err(report) => report,
        }
    })
    .join()
    .unwrap();
    assert_eq!(report.code, "sandbox.missing_mechanism", "{report}");
    assert!(report.message.contains("`mount-namespace`") && report.hint.unwrap().contains("root"));
}
