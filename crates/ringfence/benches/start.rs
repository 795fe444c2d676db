//! Numbers of SPEC.md that concern a whole host: how fast a sandbox starts beside `runc` and `bwrap` on the same root,
//! how long `up` takes when nothing changed, and how much memory a further agent costs.
//!
//! Needs root, `runc`, `bwrap` and `uv`. Everything it makes lies in a folder of its own and is removed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement that fails should stop at once"
)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringfence_gate::config::{Fds, GateConfig};
use ringfence_image::Store;
use ringfence_model::manifest::{Limits, USUAL_CAPTURES};
use ringfence_model::{Bytes, SandboxId};
use ringfence_sandbox::launch;
use ringfence_sandbox::spec::{Fence, SandboxSpec, StateVolume, fds};

const ROUNDS: usize = 40;
const PROGRAM: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "--version"];

struct Place {
    state: PathBuf,
    run: PathBuf,
    binary: PathBuf,
}

impl Place {
    fn ringfence(&self, args: &[&str]) -> std::process::Output {
        Command::new(&self.binary)
            .args(args)
            .env("RINGFENCE_STATE", &self.state)
            .env("RINGFENCE_RUN", &self.run)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.ringfence(args);
        assert!(output.status.success(), "ringfence {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.ringfence(&["down", "--all"]);
        self.ringfence(&["serve", "--stop"]);
        let _ = fs::remove_dir_all(&self.run);
        // The store stays: the next run need not download again.
        for left in ["agents", "spools", "audit", "jobs"] {
            let _ = fs::remove_dir_all(self.state.join(left));
        }
    }
}

fn main() {
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let place = Place {
        state: target.join("bench-state"),
        run: PathBuf::from(format!("/run/ringfence-bench-{}", std::process::id())),
        binary: PathBuf::from(env!("CARGO_BIN_EXE_ringfence")),
    };
    let folder = target.join("bench-agent");
    let _ = fs::remove_dir_all(&folder);
    copy(&top.join("tests/scenarios/foreign/fieldnotes"), &folder);
    place.ok(&["init", folder.to_str().unwrap(), "--name", "bench-one", "--port", "18501"]);
    place.ok(&["build", folder.to_str().unwrap()]);
    starts(&place);
    ups(&place, &folder);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == "__pycache__" {
            continue;
        }
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(name));
        } else {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

/// Sorted times, in milliseconds.
struct Times(Vec<f64>);

impl Times {
    fn take(rounds: usize, mut one: impl FnMut(usize) -> Duration) -> Self {
        one(usize::MAX); // warm
        let mut times: Vec<f64> = (0..rounds).map(|n| one(n).as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    fn at(&self, part: f64) -> f64 {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small index")]
        let index = ((self.0.len() - 1) as f64 * part) as usize;
        self.0[index]
    }
}

fn starts(place: &Place) {
    let store = Store::open(&place.state.join("store")).unwrap();
    let image = store.verify(&store.resolve("bench-one").unwrap()).unwrap();
    let layers = image.layers().to_vec();
    // One root for all three: the same layers, mounted once.
    let root = place.run.join("root");
    fs::create_dir_all(&root).unwrap();
    let lower: Vec<String> = layers.iter().rev().map(|l| l.display().to_string()).collect();
    let mounted = Command::new("mount")
        .args(["-t", "overlay", "bench", "-o", &format!("ro,lowerdir={}", lower.join(":"))])
        .arg(&root)
        .status()
        .unwrap();
    assert!(mounted.success());
    let ours = Times::take(ROUNDS, |n| ringfence_start(place, &layers, n));
    let runc = Times::take(ROUNDS, |n| runc_start(place, &root, n));
    let bwrap = Times::take(ROUNDS, |_| bwrap_start(&root));
    let unmounted = Command::new("umount").arg(&root).status().unwrap();
    assert!(unmounted.success());
    println!("\nsandbox create -> first output of the agent, same root, {ROUNDS} rounds each");
    println!("{:<44} {:>9} {:>9} {:>12}", "", "p50 ms", "p95 ms", "ratio to runc");
    for (name, times) in [
        ("ringfence (shim, network capture, gate, fence)", &ours),
        ("runc run (namespaces only, no network set up)", &runc),
        ("bwrap --unshare-all", &bwrap),
    ] {
        println!("{name:<46} {:>7.1} {:>9.1} {:>12.2}", times.at(0.5), times.at(0.95), times.at(0.5) / runc.at(0.5));
    }
    println!("target: p50 <= 60 ms; below 1.5 x runc");
}

fn ringfence_start(place: &Place, layers: &[PathBuf], round: usize) -> Duration {
    let id = SandboxId::from_parts(round as u64 & 0xff_ffff, [7; 8]);
    let home = place.run.join("home");
    fs::create_dir_all(&home).unwrap();
    fs::create_dir_all(place.run.join("mnt")).unwrap();
    fs::set_permissions(&place.run, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let log = home.join("agent.log");
    let _ = fs::remove_file(&log);
    let spec = SandboxSpec {
        id: id.clone(),
        agent: "bench".parse().unwrap(),
        slot: 2800,
        layers: layers.to_vec(),
        argv: PROGRAM.map(str::to_owned).to_vec(),
        env: vec![("PATH".into(), "/usr/bin".into())],
        bridge: None,
        cwd: "/app".into(),
        limits: Limits {
            memory: Bytes::mib(256),
            cpus: 1.0,
            pids: 64,
            disk: Bytes::mib(64),
            tmp: Bytes::mib(16),
            files: 1024,
            captures: USUAL_CAPTURES,
        },
        mounts: Vec::new(),
        state: Some(StateVolume { file: home.join("state.img"), size: Bytes::mib(64), quota: true }),
        trust_stores: Vec::new(),
        host_roots: None,
        run_dir: place.run.join("sandboxes").join(id.as_str()),
        mount_dir: place.run.join("mnt"),
        log: log.clone(),
        spools: home.join("spools"),
        gate_program: place.binary.clone(),
        fence: Fence::default(),
        ledger: None,
        host_ledger: None,
        definitions: None,
        captures: None,
        hold: false,
    };
    let inherited = Fds {
        tcp: fds::GATE_TCP.to_vec(),
        dns: fds::GATE_DNS.to_vec(),
        udp_sink: fds::GATE_UDP.to_vec(),
        host_netns: Some(fds::GATE_HOST_NETNS),
        spool: fds::GATE_SPOOL,
        ready: fds::GATE_READY,
        ..Fds::default()
    };
    let gate = GateConfig::closed(spec.agent.clone(), id, spec.gate_uid(), spec.gate_uid(), inherited);
    let config = serde_json::to_vec(&gate).unwrap();
    let began = Instant::now();
    let mut launched = launch::launch(&spec, &config, None, &place.binary).unwrap();
    while !fs::metadata(&log).is_ok_and(|m| m.len() > 0) {
        assert!(began.elapsed() < Duration::from_secs(20), "no output");
        std::thread::sleep(Duration::from_micros(100));
    }
    let took = began.elapsed();
    launched.shim.wait().unwrap();
    fs::remove_dir_all(&spec.run_dir).unwrap();
    took
}

fn first_byte(command: &mut Command) -> Duration {
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let took = began.elapsed();
    let mut rest = Vec::new();
    child.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    took
}

fn runc_start(place: &Place, root: &Path, round: usize) -> Duration {
    let bundle = place.run.join("bundle");
    if !bundle.exists() {
        fs::create_dir_all(&bundle).unwrap();
        assert!(Command::new("runc").args(["spec", "--bundle"]).arg(&bundle).status().unwrap().success());
        let path = bundle.join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        spec["root"] = serde_json::json!({ "path": root, "readonly": true });
        spec["process"]["args"] = serde_json::json!(PROGRAM);
        spec["process"]["terminal"] = false.into();
        spec["process"]["cwd"] = "/".into();
        let mounts = spec["mounts"].as_array().unwrap();
        let kept: Vec<_> = mounts
            .iter()
            .filter(|m| !m["destination"].as_str().unwrap().starts_with("/sys") && m["destination"] != "/dev/mqueue")
            .cloned()
            .collect();
        spec["mounts"] = kept.into();
        fs::write(&path, serde_json::to_vec(&spec).unwrap()).unwrap();
    }
    first_byte(
        Command::new("runc")
            .arg("--root")
            .arg(place.run.join("runc"))
            .args(["run", "--bundle"])
            .arg(&bundle)
            .arg(format!("bench-{}-{}", std::process::id(), round & 0xffff)),
    )
}

fn bwrap_start(root: &Path) -> Duration {
    first_byte(
        Command::new("bwrap")
            .arg("--ro-bind")
            .arg(root)
            .args([
                "/",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--tmpfs",
                "/tmp",
                "--unshare-all",
                "--die-with-parent",
                "--",
            ])
            .args(PROGRAM),
    )
}

fn rss_kib(pid: i64) -> (u64, u64) {
    let read = |file: &str, key: &str| {
        let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    (read("status", "VmRSS:"), read("smaps_rollup", "Pss:"))
}

fn ups(place: &Place, folder: &Path) {
    let folder = folder.to_str().unwrap();
    let mut fastest: Option<serde_json::Value> = None;
    for _ in 0..5 {
        let report: serde_json::Value = serde_json::from_str(&place.ok(&["up", folder, "--json"])).unwrap();
        place.ok(&["down", "bench-one"]);
        let own = |r: &serde_json::Value| {
            let took = |k: &str| r["took_ms"][k].as_u64().unwrap_or(0);
            took("build_total") + took("verify") + took("start") + took("fence_probes")
        };
        if fastest.as_ref().is_none_or(|f| own(&report) < own(f)) {
            fastest = Some(report);
        }
    }
    let report = fastest.unwrap();
    let took = |k: &str| report["took_ms"][k].as_u64().unwrap_or(0);
    println!("\n`up` when nothing changed, best of 5, in ms");
    for step in ["lock", "base", "dependencies", "app", "build_total", "verify", "start", "fence_probes", "app_start"] {
        println!("{step:<20} {:>8}", took(step));
    }
    println!(
        "without the app's own start: {} ms (target: 1000)",
        took("build_total") + took("verify") + took("start") + took("fence_probes")
    );

    // Memory: one agent, then a second; the difference is what a further agent costs.
    place.ok(&["up", folder, "--json"]);
    let supervisor = supervisor_pid(place);
    let (before, before_pss) = rss_kib(supervisor);
    let second = format!("{folder}-two");
    copy(Path::new(folder), Path::new(&second));
    fs::remove_file(Path::new(&second).join("ringfence.toml")).unwrap();
    place.ok(&["init", &second, "--name", "bench-two", "--port", "18502"]);
    place.ok(&["up", &second, "--json"]);
    let (after, after_pss) = rss_kib(supervisor);
    let agents: serde_json::Value = serde_json::from_str(&place.ok(&["ps", "--json"])).unwrap();
    let two = agents.as_array().unwrap().iter().find(|a| a["agent"] == "bench-two").unwrap().clone();
    let (shim, shim_pss) = rss_kib(two["shim_pid"].as_i64().unwrap());
    let (gate, gate_pss) = rss_kib(two["gate_pid"].as_i64().unwrap());
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!("\nmemory per further agent, MiB            RSS      PSS");
    println!("shim                                {:>8.1} {:>8.1}", mib(shim), mib(shim_pss));
    println!("gate                                {:>8.1} {:>8.1}", mib(gate), mib(gate_pss));
    let (more, more_pss) = (after.saturating_sub(before), after_pss.saturating_sub(before_pss));
    println!("supervisor, more than with one agent{:>8.1} {:>8.1}", mib(more), mib(more_pss));
    println!(
        "together                            {:>8.1} {:>8.1}   (target: 25 RSS)",
        mib(shim + gate + more),
        mib(shim_pss + gate_pss + more_pss)
    );
    println!("supervisor itself                   {:>8.1} {:>8.1}", mib(after), mib(after_pss));
    let _ = fs::remove_dir_all(&second);
}

fn supervisor_pid(place: &Place) -> i64 {
    let wanted = format!("RINGFENCE_STATE={}", place.state.display());
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i64>().ok()) else { continue };
        let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let env = fs::read(entry.path().join("environ")).unwrap_or_default();
        if command.contains("serve\0--on-demand") && String::from_utf8_lossy(&env).contains(&wanted) {
            return pid;
        }
    }
    panic!("no supervisor");
}
