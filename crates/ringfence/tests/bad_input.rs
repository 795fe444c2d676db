//! What cannot be: each is refused with one clear message and a documented exit code, and leaves nothing half-made.
//! The real binary, real sandboxes, real full disks. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use serde_json::Value;
use support::{Host, Refusal, free_port};

/// A folder with this manifest, below `[agent]` that starts `main.py`.
fn agent(host: &Host, name: &str, rest: &str) -> String {
    let folder = host.dir.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("main.py"), "import time\nprint('hello')\ntime.sleep(600)\n").unwrap();
    let manifest = format!("[agent]\nname = \"{name}\"\nentry = [\"python3\", \"main.py\"]\n\n{rest}");
    fs::write(folder.join("ringfence.toml"), manifest).unwrap();
    folder.to_str().unwrap().to_owned()
}

/// What needs no supervisor to be refused does not even start one.
#[test]
fn what_is_wrong_on_its_face_starts_nothing() {
    let host = Host::new();
    let dir = host.dir.path();
    fs::create_dir(dir.join("empty")).unwrap();
    fs::create_dir(dir.join("two")).unwrap();
    for name in ["people.py", "sales.py"] {
        fs::write(dir.join("two").join(name), "import streamlit as st\nst.title('hello')\n").unwrap();
    }
    agent(&host, "typo", "[[grant]]\nhost = \"api.example.com\"\nmethod = [\"GET\"]\n");
    agent(&host, "closed", "[[grant]]\nhost = \"a.example\"\ntls = \"passthrough\"\npaths = [\"/v1\"]\n");
    agent(&host, "loose", "[[grant]]\nhost = \"a.example\"\ncredential = \"openai\"\n");
    agent(&host, "torn", "[[grant\n");
    for (args, code, says) in [
        (["init", "nowhere"], "infer.missing_folder", "`nowhere`"),
        (["up", "nowhere"], "folder.missing", "`nowhere`"),
        (["build", "nowhere"], "folder.missing", "`nowhere`"),
        (["init", "empty"], "infer.empty", "empty`"),
        (["up", "empty"], "manifest.missing", "hint: write one with `ringfence init"),
        (["init", "two"], "infer.ambiguous_entry", "hint: say which with `--entry`"),
        (["up", "two"], "manifest.missing", "hint: write one with `ringfence init"),
        (["up", "typo"], "manifest.unknown_key", "hint: did you mean `methods`?"),
        (["build", "typo"], "manifest.unknown_key", "hint: did you mean `methods`?"),
        (["up", "closed"], "manifest.unenforceable", "hint: drop `paths`, or drop `tls = \"passthrough\"`"),
        (["up", "loose"], "manifest.value", "hint: add a `[credential.openai]` table"),
        (["up", "torn"], "manifest.syntax", "line 5"),
    ] {
        let refusal = host.turned_away(&args);
        assert_eq!(refusal.codes(), (2, code), "{}", refusal.text);
        assert!(refusal.text.contains(says), "{}", refusal.text);
    }
    assert!(!host.run.exists(), "a supervisor was started");
    assert_eq!(fs::read_dir(host.state()).unwrap().count(), 1, "there is more than the store");
    assert!(!dir.join("two/ringfence.toml").exists() && !dir.join("empty/ringfence.toml").exists());
}

#[test]
fn a_credential_without_a_source_is_named_with_its_remedy() {
    let host = Host::new();
    let credential = |from: &str| {
        let grant = "[[grant]]\nhost = \"api.example.com\"\ncredential = \"k\"\n";
        format!("{grant}[credential.k]\nfrom = \"{from}\"\nheader = \"Authorization: Bearer {{}}\"\n")
    };
    for (name, from, cause, hint) in [
        ("a", "env:NO_SUCH_KEY", "the environment has no `NO_SUCH_KEY`", "`export NO_SUCH_KEY=…`"),
        ("b", "vault:no-such", "the vault holds no secret `no-such`", "`ringfence secret put no-such`"),
        ("c", "file:no-such-file", "no-such-file", "hint: "),
    ] {
        let folder = agent(&host, name, &credential(from));
        let refusal = host.turned_away(&["up", &folder]);
        assert_eq!(refusal.exit, 2, "{}", refusal.text);
        assert!(refusal.code.starts_with("credential."), "{}", refusal.text);
        assert!(refusal.text.contains(cause) && refusal.text.contains(hint), "{}", refusal.text);
    }
    host.assert_nothing_half_made();
}

#[test]
fn requirements_that_cannot_be_met_are_told_shortly() {
    let host = Host::new();
    let folder = agent(&host, "needy", "[dependencies]\ncure = false\n");
    fs::write(Path::new(&folder).join("requirements.txt"), "flask==3.0.0\nwerkzeug==1.0.0\n").unwrap();
    let refusal = host.turned_away(&["up", &folder]);
    assert_eq!(refusal.codes(), (2, "lock.unresolvable"), "{}", refusal.text);
    assert!(refusal.text.contains("werkzeug>=3.0.0"), "{}", refusal.text);
    fs::write(Path::new(&folder).join("requirements.txt"), "ringfence-has-no-such-package==1.0\n").unwrap();
    let refusal = host.turned_away(&["up", &folder]);
    assert_eq!(refusal.exit, 2, "{}", refusal.text);
    assert!(refusal.text.contains("ringfence-has-no-such-package"), "{}", refusal.text);
    host.assert_nothing_half_made();
    assert!(!Path::new(&folder).join("pylock.toml").exists());
}

#[test]
fn an_index_that_is_down_is_somebody_else_s_failure() {
    let host = Host::new();
    let folder = agent(&host, "needy", "");
    fs::write(Path::new(&folder).join("requirements.txt"), "flask\n").unwrap();
    let args = ["up", &folder];
    // The supervisor has it from the command that starts it.
    let output = host.command(&args).env("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple").output().unwrap();
    let refusal = Refusal::of(&args, &output);
    assert_eq!(refusal.codes(), (4, "lock.index_unreachable"), "{}", refusal.text);
    host.assert_nothing_half_made();
    assert!(!Path::new(&folder).join("pylock.toml").exists());
}

#[test]
fn a_port_that_is_taken_is_named_before_anything_is_built() {
    let host = Host::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = agent(&host, "late", &format!("[ingress]\nport = {port}\n"));
    let refusal = host.turned_away(&["up", &folder]);
    assert_eq!(refusal.codes(), (2, "ingress.port_in_use"), "{}", refusal.text);
    assert!(refusal.text.contains(&format!("`ss -ltnp sport = :{port}`")), "{}", refusal.text);
    host.assert_nothing_half_made();
}

#[test]
fn a_second_agent_of_a_name_or_on_a_port_changes_nothing() {
    let host = Host::new();
    let up = host.small("first");
    let before = host.agent("first").unwrap();
    let refusal = host.turned_away(&["up", "first"]);
    assert_eq!(refusal.codes(), (2, "agent.exists"), "{}", refusal.text);
    assert!(refusal.text.contains("hint: replace it with `ringfence up [DIR]/first --replace`"), "{}", refusal.text);
    let port = up["url"].as_str().unwrap().split(':').nth(2).unwrap().split('/').next().unwrap();
    let other = agent(&host, "other", &format!("[ingress]\nport = {port}\n"));
    let refusal = host.turned_away(&["up", &other]);
    assert_eq!(refusal.codes(), (2, "ingress.port_in_use"), "{}", refusal.text);
    assert!(host.agent("other").is_none() && !host.state().join("agents/other").exists());
    let after = host.agent("first").unwrap();
    assert_eq!((&before["agent_pid"], &before["sandbox"]), (&after["agent_pid"], &after["sandbox"]));
    assert!(host.ask(&up).unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(fs::read_dir(host.run.join("sandboxes")).unwrap().count(), 1);
}

#[test]
fn of_two_starts_at_once_one_is_told_to_wait() {
    let host = Host::new();
    let folder = agent(&host, "popular", "");
    let args = ["up", folder.as_str()];
    let spawn = || host.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    host.ok(&["build", &folder]);
    let both = [spawn(), spawn()].map(|child| child.wait_with_output().unwrap());
    let (up, not): (Vec<_>, Vec<_>) = both.iter().partition(|o| o.status.success());
    assert_eq!((up.len(), not.len()), (1, 1));
    let refusal = Refusal::of(&args, not[0]);
    assert!(["agent.busy", "agent.exists"].contains(&refusal.code.as_str()), "{}", refusal.text);
    assert_eq!(refusal.exit, 2);
    assert_eq!(host.agent("popular").unwrap()["state"], "running");
    assert_eq!(fs::read_dir(host.run.join("sandboxes")).unwrap().count(), 1);
    host.ok(&["stop", "popular", "--grace", "0"]);
}

/// A small disk over a folder, for as long as it lives.
struct Disk(PathBuf);

impl Disk {
    fn over(folder: PathBuf, options: &std::ffi::CStr, flags: MountFlags) -> Self {
        mount("rf-test", &folder, "tmpfs", flags, Some(options)).unwrap();
        Self(folder)
    }

    fn grow(&self, options: &std::ffi::CStr) {
        mount_remount(&self.0, MountFlags::empty(), options).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_disk_that_is_full_while_building_is_said_so() {
    let host = Host::without_store();
    let folder = agent(&host, "big", "");
    // The first holds no package list, the second no base.
    for (options, before) in [(c"size=1m", "/state/store/debs/"), (c"size=40m", "/state/store/tmp/")] {
        let disk = Disk::over(host.state(), options, MountFlags::empty());
        let refusal = host.turned_away(&["up", &folder]);
        assert_eq!(refusal.codes(), (3, "store.full"), "{}", refusal.text);
        assert!(refusal.text.contains(before) && refusal.text.contains("hint: free some space"), "{}", refusal.text);
        host.assert_nothing_half_made();
        host.ok(&["serve", "--stop"]);
        let left = fs::read_dir(host.state().join("store/tmp")).unwrap().flatten().filter(|e| e.path().is_dir());
        assert_eq!(left.count(), 0, "half a build was left");
        drop(disk);
    }
}

#[test]
fn a_disk_that_is_full_while_starting_is_said_so_and_the_next_try_works() {
    let host = Host::new();
    let folder = agent(&host, "big", "");
    host.ok(&["build", &folder]);
    host.ok(&["serve", "--stop"]);
    {
        // Too little for the supervisor's own state, and even for its words.
        let _disk = Disk::over(host.state(), c"size=16k", MountFlags::empty());
        let refusal = host.turned_away(&["ps"]);
        assert_eq!(refusal.codes(), (3, "supervisor.start"), "{}", refusal.text);
        assert!(refusal.text.contains("`df -h`"), "{}", refusal.text);
    }
    // Enough for that, but not for the agent's.
    fs::create_dir(host.state().join("agents")).unwrap();
    let disk = Disk::over(host.state().join("agents"), c"size=16k", MountFlags::empty());
    let refusal = host.turned_away(&["up", &folder]);
    assert_eq!(refusal.codes(), (3, "sandbox.disk_full"), "{}", refusal.text);
    assert!(refusal.text.contains("free some space"), "{}", refusal.text);
    host.assert_nothing_half_made();
    disk.grow(c"size=64m");
    assert_eq!(host.json(&["up", &folder])["agent"], "big");
    assert_eq!(host.json(&["audit", "verify"])["whole"], true);
    host.ok(&["stop", "big", "--grace", "0"]);
    host.ok(&["down", "big"]);
    host.assert_nothing_half_made();
}

/// The blob of the layer with the agent's own files, and that layer as it is unpacked.
fn own_layer(host: &Host, digest: &str) -> (PathBuf, PathBuf) {
    let store = host.state().join("store");
    let blob = |digest: &str| store.join("oci/blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let manifest = read(&blob(digest));
    let config = read(&blob(manifest["config"]["digest"].as_str().unwrap()));
    let layers = manifest["layers"].as_array().unwrap();
    // The last layer with the folder's files in it.
    for (at, layer) in layers.iter().enumerate().rev() {
        let diff_id = config["rootfs"]["diff_ids"][at].as_str().unwrap().trim_start_matches("sha256:");
        let tree = store.join("layers").join(diff_id);
        if tree.join("app/main.py").exists() {
            return (blob(layer["digest"].as_str().unwrap()), tree);
        }
    }
    panic!("no layer has the agent's own files: {manifest}");
}

/// Changes one byte in the middle.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_store_is_found_out_and_made_anew() {
    let host = Host::new();
    // Files of its own, so that no other test needs the same layer.
    let folder = agent(&host, "brittle", "");
    let own = format!("# {}\nimport time\ntime.sleep(600)\n", host.run.display());
    fs::write(Path::new(&folder).join("main.py"), &own).unwrap();
    let image = host.ok(&["build", &folder]).trim().to_owned();
    let (blob, tree) = own_layer(&host, &image);
    let whole = fs::read(&blob).unwrap();
    let source = || host.ok(&["exec", "brittle", "--", "python3", "-c", "print(open('/app/main.py').read(), end='')"]);

    // The blob alone: it is mended from the unpacked layer, whose seal is whole.
    flip(&blob);
    assert_eq!(host.json(&["up", &folder])["image"], image.as_str());
    assert_eq!(fs::read(&blob).unwrap(), whole, "the blob was not mended");
    host.ok(&["stop", "brittle", "--grace", "0"]);

    // The unpacked layer alone: what an agent runs is made from the blob.
    let program = tree.join("app/main.py");
    let planted = own.replace("time.sleep(600)", "print('planted')");
    fs::write(&program, &planted).unwrap();
    host.ok(&["start", "brittle"]);
    assert_eq!(source(), own, "the agent runs what was planted");
    host.ok(&["stop", "brittle", "--grace", "0"]);

    // Both: nothing can mend that. It is refused, and the next build makes it anew.
    flip(&blob);
    fs::write(tree.join("app/main.py"), &planted).unwrap();
    let refusal = host.turned_away(&["start", "brittle"]);
    assert_eq!(refusal.codes(), (3, "store.corrupt"), "{}", refusal.text);
    assert!(refusal.text.contains("hint: "), "{}", refusal.text);
    assert_eq!(fs::read_dir(host.run.join("sandboxes")).unwrap().count(), 0);
    assert_eq!(host.json(&["up", &folder])["image"], image.as_str());
    assert_eq!(fs::read(&blob).unwrap(), whole);
    assert_eq!(source(), own);
    host.ok(&["stop", "brittle", "--grace", "0"]);

    // The image's own document.
    flip(&host.state().join("store/oci/blobs/sha256").join(image.trim_start_matches("sha256:")));
    let refusal = host.turned_away(&["start", "brittle"]);
    assert_eq!(refusal.codes(), (3, "store.corrupt"), "{}", refusal.text);
    assert_eq!(host.json(&["up", &folder])["image"], image.as_str());
    host.ok(&["stop", "brittle", "--grace", "0"]);
}

#[test]
fn a_state_folder_that_cannot_be_used_fails_every_verb() {
    let verbs: [&[&str]; 5] =
        [&["ps"], &["ps", "--json"], &["logs", "a"], &["audit", "verify"], &["secret", "rm", "a"]];
    let all_fail = |host: &Host, code: &str, says: &str| {
        for verb in verbs {
            let refusal = host.turned_away(verb);
            assert_eq!(refusal.codes(), (3, code), "{}", refusal.text);
            assert!(refusal.text.contains(says) && refusal.text.contains("hint: "), "{}", refusal.text);
        }
    };
    let host = Host::without_store();
    {
        let _disk = Disk::over(host.state(), c"size=1m", MountFlags::RDONLY);
        all_fail(&host, "supervisor.start", "Read-only file system");
    }
    fs::write(host.state().join("state.db"), "this is no database").unwrap();
    all_fail(&host, "state.sqlite", "`state.db`");
    fs::remove_dir_all(host.state()).unwrap();
    fs::write(host.state(), "a file").unwrap();
    all_fail(&host, "supervisor.start", "[DIR]/state`");
    fs::remove_file(host.state()).unwrap();
    std::os::unix::fs::symlink("nowhere", host.state()).unwrap();
    all_fail(&host, "supervisor.start", "[DIR]/state`");
    fs::remove_file(host.state()).unwrap();
    let _ = fs::remove_dir_all(&host.run);
    fs::write(&host.run, "a file").unwrap();
    fs::create_dir(host.state()).unwrap();
    all_fail(&host, "supervisor.folder", "[RUN]`");
    fs::remove_file(&host.run).unwrap();
}

/// Somebody without root, with folders of their own: the message names what is missing before anything is downloaded.
#[test]
fn without_root_nothing_is_built_and_the_remedy_is_named() {
    let host = Host::without_store();
    let dir = host.dir.path();
    let folder = agent(&host, "humble", "");
    let (program, run) = (dir.join("ringfence"), dir.join("r"));
    fs::copy(env!("CARGO_BIN_EXE_ringfence"), &program).unwrap();
    fs::create_dir(&run).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    for path in [&run, &host.state(), Path::new(&folder)] {
        chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    let somebody = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).env_clear().env("PATH", "/usr/bin:/bin").uid(65_534).gid(65_534).current_dir("/");
        command.env("RINGFENCE_STATE", host.state()).env("RINGFENCE_RUN", &run).stdin(Stdio::null());
        command.output().unwrap()
    };
    for verb in ["up", "build"] {
        let args = [verb, &folder];
        let refusal = Refusal::of(&args, &somebody(&args));
        assert_eq!(refusal.codes(), (3, "host.not_root"), "{}", refusal.text);
        assert!(refusal.text.contains("uid 65534") && refusal.text.contains("as root"), "{}", refusal.text);
    }
    assert_eq!(String::from_utf8(somebody(&["ps", "--json"]).stdout).unwrap(), "[]\n");
    let checks = somebody(&["host"]);
    assert_eq!(checks.status.code(), Some(5));
    let checks = String::from_utf8(checks.stdout).unwrap();
    assert!(checks.contains("✗  root") && checks.contains("  root: run as root"), "{checks}");
    assert_eq!(somebody(&["serve", "--stop"]).status.code(), Some(0));
    assert_eq!(fs::read_dir(run.join("sandboxes")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(host.state().join("store/debs")).unwrap().count(), 0, "packages were downloaded");
    // Root's own folders are closed to them.
    let output = Command::new(&program)
        .arg("logs")
        .arg("a")
        .env_clear()
        .uid(65_534)
        .gid(65_534)
        .env("RINGFENCE_STATE", dir.join("new"))
        .env("RINGFENCE_RUN", &run)
        .current_dir("/")
        .output()
        .unwrap();
    let refusal = Refusal::of(&["logs", "a"], &output);
    assert_eq!(refusal.codes(), (3, "supervisor.start"), "{}", refusal.text);
    assert!(refusal.text.contains("hint: run as root"), "{}", refusal.text);
}

/// As in a container whose profile forbids user namespaces: `unshare` and `clone` refuse, `clone3` is not there.
const NO_USER_NAMESPACES: &str = r#"{
  "refuse": {
    "mismatch_action": "allow",
    "match_action": {"errno": 1},
    "filter": [
      {"syscall": "unshare", "args": [{"index": 0, "type": "qword", "op": {"masked_eq": 268435456}, "val": 268435456}]},
      {"syscall": "clone", "args": [{"index": 0, "type": "qword", "op": {"masked_eq": 268435456}, "val": 268435456}]}
    ]
  },
  "absent": {
    "mismatch_action": "allow",
    "match_action": {"errno": 38},
    "filter": [{"syscall": "clone3"}]
  }
}"#;

/// Runs something in a thread whose children have no user namespaces.
fn without_user_namespaces<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let arch = std::env::consts::ARCH.try_into().unwrap();
            for filter in seccompiler::compile_from_json(NO_USER_NAMESPACES.as_bytes(), arch).unwrap().values() {
                seccompiler::apply_filter(filter).unwrap();
            }
            work()
        });
        thread.join().unwrap_or_else(|why| std::panic::resume_unwind(why))
    })
}

#[test]
fn a_host_without_user_namespaces_is_named_with_its_remedy() {
    let host = Host::new();
    let folder = agent(&host, "homeless", "");
    host.ok(&["build", &folder]);
    host.ok(&["serve", "--stop"]);
    without_user_namespaces(|| {
        let refusal = host.turned_away(&["up", &folder]);
        assert_eq!(refusal.codes(), (3, "sandbox.missing_mechanism"), "{}", refusal.text);
        assert!(refusal.text.contains("`user-namespace`") && refusal.text.contains("hint: "), "{}", refusal.text);
        let checks = host.run(&["host"]);
        assert_eq!(checks.status.code(), Some(5));
        let checks = String::from_utf8(checks.stdout).unwrap();
        assert!(checks.contains("✗  user-namespace") && checks.contains("  user-namespace: "), "{checks}");
    });
    host.assert_nothing_half_made();
}

#[test]
fn an_agent_that_never_answers_is_ended_and_its_last_words_are_told() {
    let host = Host::new();
    let port = free_port();
    let folder = agent(&host, "mute", &format!("start_timeout_s = 2\n\n[ingress]\nport = {port}\n"));
    let refusal = host.turned_away(&["up", &folder]);
    assert_eq!(refusal.codes(), (2, "agent.unhealthy"), "{}", refusal.text);
    assert!(refusal.text.contains("cause: it said: hello"), "{}", refusal.text);
    host.assert_nothing_half_made();
}

#[test]
fn a_lock_that_is_absent_old_or_unfit_is_not_exported() {
    let host = Host::new();
    let folder = agent(&host, "parcel", "");
    let refusal = host.turned_away(&["export", "requirements", &folder]);
    assert_eq!(refusal.codes(), (2, "export.no_lock"), "{}", refusal.text);
    host.ok(&["lock", &folder]);
    assert!(host.ok(&["export", "requirements", &folder]).contains("pylock.toml"));
    let refusal = host.turned_away(&["export", "streamlit", &folder]);
    assert_eq!(refusal.codes(), (2, "export.unfit"), "{}", refusal.text);
    let out = Path::new(&folder).join("out");
    host.ok(&["export", "docker", &folder, "--out", out.to_str().unwrap()]);
    assert!(fs::read_to_string(out.join("Dockerfile")).unwrap().contains("CMD [\"python3\", \"main.py\"]"));
    fs::write(out.join("Dockerfile"), "FROM scratch\n").unwrap();
    let refusal = host.turned_away(&["export", "docker", &folder, "--out", out.to_str().unwrap()]);
    assert_eq!(refusal.codes(), (2, "export.there"), "{}", refusal.text);
    host.ok(&["export", "docker", &folder, "--force", "--out", out.to_str().unwrap()]);
    fs::write(Path::new(&folder).join("requirements.txt"), "six\n").unwrap();
    let refusal = host.turned_away(&["export", "requirements", &folder]);
    assert_eq!(refusal.codes(), (2, "export.old_lock"), "{}", refusal.text);
}
