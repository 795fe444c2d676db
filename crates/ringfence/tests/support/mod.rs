//! A host of its own for one test, with its state, its run folder and its supervisor.
#![allow(
    dead_code,
    clippy::indexing_slicing,
    reason = "each test program uses a part of it; a failure is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;

/// A host of its own: state, run folder, supervisor. Only the store is shared, so that a base is built once.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub run: PathBuf,
}

impl Host {
    pub fn new() -> Self {
        let host = Self::without_store();
        let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("scenario-store");
        fs::create_dir_all(&store).unwrap();
        std::os::unix::fs::symlink(&store, host.state().join("store")).unwrap();
        host
    }

    /// One whose store is its own too, and empty.
    pub fn without_store() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these stories need root: they make sandboxes");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let run = PathBuf::from(format!(
            "/run/rf-{}",
            dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.')
        ));
        Self { dir, run }
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence"));
        command
            .args(args)
            .env("RINGFENCE_STATE", self.state())
            .env("RINGFENCE_RUN", &self.run)
            .env_remove("OPENAI_API_KEY")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "ringfence {args:?}:\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// Runs a verb that must fail; gives its exit code and its message.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(!output.status.success(), "ringfence {args:?} succeeded");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// Runs a verb that must fail, and looks whether its message has the form that every message has: what failed, on
    /// what, why, what to do next.
    #[track_caller]
    pub fn turned_away(&self, args: &[&str]) -> Refusal {
        Refusal::of(args, &self.command(args).current_dir(self.dir.path()).output().unwrap()).without(self)
    }

    /// Asserts that whatever failed has left nothing: no agent, no folder, no mount, no cgroup, no loop device.
    #[track_caller]
    pub fn assert_nothing_half_made(&self) {
        assert_eq!(self.ok(&["ps", "--json"]), "[]\n");
        let until = Instant::now() + Duration::from_secs(10);
        while !self.half_made().is_empty() {
            assert!(Instant::now() < until, "left behind: {:#?}", self.half_made());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn half_made(&self) -> Vec<String> {
        let mut found = self.remains("sb-");
        for folder in
            [self.run.join("sandboxes"), self.run.join("mnt"), self.state().join("agents"), self.state().join("jobs")]
        {
            found.extend(fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path().display().to_string()));
        }
        // Every sandbox that there was has said so in the log.
        let log = self.ok(&["audit", "--json"]);
        let entries = log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let sandboxes: BTreeSet<String> = entries.filter_map(|e| e["sandbox"].as_str().map(str::to_owned)).collect();
        found.extend(sandboxes.iter().flat_map(|id| self.remains(id)));
        found
    }

    /// Copies a folder of the repository to a place of its own.
    pub fn copy(&self, from: &str, name: &str) -> String {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let to = self.dir.path().join(name);
        copy(&top.join(from), &to);
        to.to_str().unwrap().to_owned()
    }

    /// A small agent of this name that is up.
    pub fn small(&self, name: &str) -> Value {
        let folder = self.copy("tests/scenarios/foreign/fieldnotes", name);
        self.ok(&["init", &folder, "--name", name, "--port", &free_port().to_string()]);
        self.json(&["up", &folder])
    }

    pub fn agent(&self, name: &str) -> Option<Value> {
        self.json(&["ps"]).as_array().unwrap().iter().find(|a| a["agent"] == name).cloned()
    }

    pub fn supervisor_pid(&self) -> i32 {
        let wanted = format!("RINGFENCE_STATE={}\0", self.state().display());
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let env = fs::read(entry.path().join("environ")).unwrap_or_default();
            if String::from_utf8_lossy(&command).contains("serve\0--on-demand")
                && String::from_utf8_lossy(&env).contains(&wanted)
            {
                return pid;
            }
        }
        panic!("no supervisor runs");
    }

    /// What of a start is still on the host.
    pub fn remains(&self, sandbox: &str) -> Vec<String> {
        let mut found = Vec::new();
        let root = PathBuf::from("/sys/fs/cgroup");
        let below = fs::read_dir(&root).unwrap().flatten().map(|e| e.path());
        for hierarchy in below.chain([root.clone()]) {
            // The agent's, and its gate's.
            for folder in [sandbox.to_owned(), format!("{sandbox}-gate")] {
                let folder = hierarchy.join("ringfence").join(folder);
                if folder.exists() {
                    found.push(folder.display().to_string());
                }
            }
        }
        if self.run.join("sandboxes").join(sandbox).exists() {
            found.push(format!("run folder of {sandbox}"));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        found.extend(mounts.lines().filter(|l| l.contains(self.run.to_str().unwrap())).map(str::to_owned));
        for entry in fs::read_dir("/sys/block").unwrap().flatten() {
            let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
            if backing.starts_with(self.state().to_str().unwrap()) {
                found.push(format!("loop device on {}", backing.trim()));
            }
        }
        found
    }

    #[track_caller]
    pub fn wait_nothing_remains(&self, sandbox: &str) {
        let until = Instant::now() + Duration::from_secs(10);
        while !self.remains(sandbox).is_empty() {
            assert!(Instant::now() < until, "left behind: {:?}", self.remains(sandbox));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks an agent's page over its ingress, as a person with the link would.
    pub fn ask(&self, up: &Value) -> std::io::Result<String> {
        let url = up["url"].as_str().unwrap();
        let (origin, token) = url.split_once("/?token=").unwrap();
        let address = origin.trim_start_matches("https://");
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(self.run.join("ca.pem")).unwrap() {
            roots.add(cert.unwrap()).unwrap();
        }
        let config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let connection =
            rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(address)?);
        write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nX-Ringfence-Token: {token}\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// How a verb said no.
pub struct Refusal {
    /// Its exit code.
    pub exit: i32,
    /// The code in its first line.
    pub code: String,
    /// All that it said.
    pub text: String,
}

impl Refusal {
    #[track_caller]
    pub fn of(args: &[&str], output: &Output) -> Self {
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        let said = format!("ringfence {args:?}:\n{}{text}", String::from_utf8_lossy(&output.stdout));
        let exit = output.status.code().expect("an exit code");
        assert!((1..=4).contains(&exit), "exit code {exit} of {said}");
        assert!(output.stdout.is_empty(), "{said}");
        let mut lines = text.lines();
        let (code, message) =
            lines.next().and_then(|l| l.strip_prefix("error[")?.split_once("]: ")).unwrap_or_else(|| panic!("{said}"));
        assert!(
            code.contains('.') && !code.contains(|c: char| c != '.' && c != '_' && !c.is_ascii_lowercase()),
            "{said}"
        );
        assert!(!message.ends_with('.') && !message.starts_with(char::is_uppercase), "{said}");
        let words: Vec<&str> = lines.map(|l| l.trim_start().split_once(": ").map_or(l, |(word, _)| word)).collect();
        let (last, before) = words.split_last().map_or((&"", [].as_slice()), |(last, before)| (last, before));
        assert!(before.iter().all(|w| *w == "cause") && ["cause", "hint", ""].contains(last), "{said}");
        assert!(words.len() < 8, "{said}");
        for of_rust in ["panicked", "Error {", "Err(", "Some(", "Os {", "RUST_BACKTRACE"] {
            assert!(!text.contains(of_rust), "{said}");
        }
        Self { exit, code: code.to_owned(), text: text.trim_end().to_owned() }
    }

    /// With a name for what lies where each test has its own.
    pub fn without(mut self, host: &Host) -> Self {
        self.text = self.text.replace(host.dir.path().to_str().unwrap(), "[DIR]");
        self.text = self.text.replace(host.run.to_str().unwrap(), "[RUN]");
        self
    }

    /// The exit code and the code of the message.
    pub fn codes(&self) -> (i32, &str) {
        (self.exit, &self.code)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Nobody waits for agents that do not end by themselves.
        let agents = self.run(&["ps", "--json"]).stdout;
        for agent in serde_json::from_slice::<Vec<Value>>(&agents).unwrap_or_default() {
            self.run(&["stop", agent["agent"].as_str().unwrap_or_default(), "--grace", "0"]);
        }
        self.run(&["down", "--all"]);
        self.run(&["serve", "--stop"]);
        let _ = fs::remove_dir_all(&self.run);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if name == "__pycache__" || name == "ringfence.toml" || name == "pylock.toml" {
            continue;
        }
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(name));
        } else {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

/// A command's line, exit code, and both streams, as a person sees them one after the other.
pub fn transcript(args: &[&str], output: &Output) -> String {
    let mut text = format!("$ ringfence {}\n", args.join(" "));
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        if !bytes.is_empty() {
            text.push_str(&format!("--- {name}\n{}\n", String::from_utf8_lossy(bytes).trim_end()));
        }
    }
    text.push_str(&format!("--- exit code {}", output.status.code().expect("an exit code")));
    text
}

/// An environment with what a file of requirements pins, made once.
pub fn environment(name: &str, requirements: &Path) -> PathBuf {
    let pinned = fs::read_to_string(requirements).unwrap();
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if fs::read_to_string(place.join("pinned")).is_ok_and(|made| made == pinned) {
        return place;
    }
    let uv = std::env::var("RINGFENCE_UV").unwrap_or_else(|_| "uv".into());
    let run = |args: &[&str]| {
        let output = Command::new(&uv).args(args).output().unwrap_or_else(|e| panic!("cannot start `{uv}`: {e}"));
        assert!(output.status.success(), "uv {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let _ = fs::remove_dir_all(&place);
    run(&["venv", "--quiet", "--no-python-downloads", place.to_str().unwrap()]);
    let python = place.join("bin/python");
    run(&["pip", "install", "--quiet", "--python", python.to_str().unwrap(), "-r", requirements.to_str().unwrap()]);
    fs::write(place.join("pinned"), pinned).unwrap();
    place
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn kill(pid: i64, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub fn lives(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    // For a machine that is busy with other tests: what holds comes long before.
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "not within 60 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
