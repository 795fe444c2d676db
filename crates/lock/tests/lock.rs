//! Locks and installs real packages from the index that the host is configured with, inside a test fence.
//!
//! Needs root, `bwrap` and `uv` (on `PATH`, or named by `RINGFENCE_UV`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "../../image/tests/fence/mod.rs"]
mod fence;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fence::{Fence, folder};
use ringfence_image::{Store, build_base};
use ringfence_lock::{InstallInput, Lock, LockInput, Upgrade, Uv, install, is_current, lock};
use ringfence_model::work::{Job, Runner, Silent};
use ringfence_model::{Bytes, Explain, Manifest, Report};

const MANIFEST: &str = "[agent]\nname = \"probe\"\nentry = [\"python3\", \"app.py\"]\n";

fn manifest(more: &str) -> Manifest {
    Manifest::parse(&format!("{MANIFEST}{more}"), &|_| Err("none".into())).unwrap()
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{what}: {:.3} s", start.elapsed().as_secs_f64());
    done
}

struct Bench {
    store: Store,
    fence: Fence,
    uv: Uv,
    _home: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let uv = Uv::find(None).expect("`uv` is on PATH, or RINGFENCE_UV names it");
        Self { store: Store::open(home.path()).unwrap(), fence: Fence::default(), uv, _home: home }
    }

    fn lock(&self, folder: &Path, manifest: &Manifest) -> Result<Lock, ringfence_lock::LockError> {
        lock(
            &self.store,
            &LockInput { folder, manifest, uv: &self.uv, upgrade: Upgrade::Nothing, as_of: None },
            &self.fence,
            &Silent,
        )
    }

    fn install(&self, lock: &Lock) -> Result<ringfence_image::Layer, ringfence_lock::LockError> {
        let base = build_base(&self.store, lock.base(), &self.fence, &Silent).unwrap();
        let agent = "probe".parse().unwrap();
        let input = InstallInput { agent: &agent, lock, base: &base, uv: &self.uv };
        install(&self.store, &input, &self.fence, &Silent)
    }

    fn jobs(&self) -> usize {
        self.fence.jobs.load(Ordering::SeqCst)
    }
}

#[test]
fn a_lock_installs_the_same_everywhere_and_is_not_made_twice() {
    let (one, two) = (Bench::new(), Bench::new());
    // `docopt` has no wheel on the index: it is built from source inside the fence.
    let source = folder(&[("app.py", "import six"), ("requirements.txt", "six==1.16.0\ndocopt==0.6.2\nflask>=3,<4\n")]);
    let manifest = manifest("");
    let made = timed("base and lock", || one.lock(source.path(), &manifest)).unwrap();
    let names: Vec<&str> = made.packages().iter().map(|p| p.name.as_str()).collect();
    assert!(["docopt", "flask", "six", "werkzeug"].iter().all(|n| names.contains(n)), "{names:?}");
    assert!(made.text().contains("[tool.ringfence.base]") && made.text().contains("sha256"));
    assert!(!made.packages().iter().find(|p| p.name == "docopt").unwrap().has_wheel);

    let jobs = one.jobs();
    let again = timed("unchanged lock", || one.lock(source.path(), &manifest)).unwrap();
    assert_eq!(again, made);
    assert_eq!(one.jobs(), jobs, "an unchanged lock runs nothing");
    assert!(is_current(source.path(), &manifest).unwrap());

    let first = timed("install", || one.install(&made)).unwrap();
    let jobs = one.jobs();
    assert_eq!(timed("unchanged install", || one.install(&made)).unwrap(), first);
    assert_eq!(one.jobs(), jobs);
    let venv = one.store.layer_dir(&first.diff_id).join("opt/venv");
    let script = fs::read_to_string(venv.join("bin/flask")).unwrap();
    assert!(script.starts_with("#!/opt/venv/bin/python3"), "{script}");
    let packages = venv.join("lib/python3.11/site-packages");
    assert!(packages.join("__pycache__/six.cpython-311.pyc").exists());
    assert!(packages.join("docopt.py").exists());
    let record = fs::read_to_string(packages.join("six-1.16.0.dist-info/RECORD")).unwrap();
    assert!(!record.contains("REQUESTED") && !record.contains("/tmp"), "{record}");

    let second = timed("base and install elsewhere", || two.install(&made)).unwrap();
    differences(&venv, &two.store.layer_dir(&second.diff_id).join("opt/venv"));
    assert_eq!(first, second);

    // One more requirement moves no other.
    fs::write(source.path().join("requirements.txt"), "six==1.16.0\ndocopt==0.6.2\nflask>=3,<4\nidna\n").unwrap();
    assert!(!is_current(source.path(), &manifest).unwrap());
    let more = timed("lock with one more", || one.lock(source.path(), &manifest)).unwrap();
    assert_eq!(more.packages().len(), made.packages().len() + 1);
    assert_eq!(more.base(), made.base());
    assert!(made.packages().iter().all(|p| more.packages().contains(p)));

    // A digest that does not fit is refused.
    let bent = more.text().replace("8abb2f1d86890a2dfb989f9a77cfcfd3e47c2a354b01111771326f8aa26e0254", &"0".repeat(64));
    assert_ne!(bent, more.text(), "the wheel of six 1.16.0");
    fs::write(source.path().join("pylock.toml"), bent).unwrap();
    let bent = Lock::read(source.path()).unwrap().unwrap();
    let error = two.install(&bent).unwrap_err();
    assert_eq!(error.code(), "lock.install", "{error:?}");
}

fn differences(one: &Path, two: &Path) {
    let output = Command::new("diff").args(["-rq"]).arg(one).arg(two).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn what_cannot_be_resolved_says_why_in_a_few_lines() {
    let bench = Bench::new();
    for (requirements, words) in [
        ("six==1.16.0\nsix==1.15.0\n", "six==1.15.0"),
        ("ringfence-no-such-distribution-9f3a\n", "ringfence-no-such-distribution-9f3a"),
        ("flask==0.0.0.1\n", "flask"),
    ] {
        let source = folder(&[("app.py", ""), ("requirements.txt", requirements)]);
        let error = timed("unresolvable", || bench.lock(source.path(), &manifest(""))).unwrap_err();
        assert_eq!(error.code(), "lock.unresolvable", "{error:?}");
        let report = Report::from(error).to_string();
        assert!(report.contains(words) && report.len() < 1500, "{report}");
        assert!(!source.path().join("pylock.toml").exists(), "nothing half-made");
    }

    let source =
        folder(&[("app.py", ""), ("requirements.txt", "--index-url http://me:word@127.0.0.1:9/simple\nsix\n")]);
    let error = timed("index down", || bench.lock(source.path(), &manifest(""))).unwrap_err();
    let report = Report::from(error).to_string();
    assert!(report.starts_with("error[lock.index_unreachable]") && report.contains("127.0.0.1:9"), "{report}");
    assert!(!report.contains("word"), "{report}");

    let source = folder(&[("app.py", "print(1)")]);
    let empty = bench.lock(source.path(), &manifest("")).unwrap();
    assert!(empty.packages().is_empty());
    bench.install(&empty).unwrap();
}

#[test]
fn the_manifest_bounds_the_world_that_is_resolved_in() {
    let bench = Bench::new();
    let source = folder(&[("app.py", ""), ("requirements.txt", "flask\ncolorama\n")]);
    let made = |more: &str| {
        let lock = bench.lock(source.path(), &manifest(&format!("[dependencies]\n{more}\n"))).unwrap();
        let version = |name: &str| lock.packages().iter().find(|p| p.name == name).and_then(|p| p.version.clone());
        (version("flask"), version("werkzeug"), version("colorama"), lock)
    };
    let (flask, _, colorama, lock) = made("as_of = \"2022-08-01\"");
    assert_eq!((flask.as_deref(), colorama.as_deref()), (Some("2.1.3"), Some("0.4.5")), "{}", lock.text());
    assert!(lock.text().contains("as_of = \"2022-08-02T00:00:00Z\""), "{}", lock.text());
    let again = made("as_of = \"2022-08-01\"").3;
    assert_eq!(lock, again);
    bench.install(&lock).unwrap();
    let (flask, werkzeug, colorama, _) =
        made("constraints = [\"flask<2.3\"]\noverrides = [\"werkzeug==2.2.3\"]\nexclude = [\"colorama\"]");
    assert_eq!(flask.as_deref(), Some("2.1.3"), "what still fits stays");
    assert_eq!((werkzeug.as_deref(), colorama), (Some("2.2.3"), None));
}

#[test]
fn a_python_of_the_host_is_locked_and_installed_for() {
    // Debian's 3.11 on a suite that has another stands for a Python that somebody built: it is there on every host.
    installs_for("trixie", "3.11", &|store| fence::lay_host_python(store, "bookworm", "3.11"));
    let pyenv = Path::new("/root/.pyenv/versions/3.12.1");
    if pyenv.is_dir() {
        installs_for("bookworm", "3.12", &|store| {
            fs::create_dir_all(store.root().join("pythons")).unwrap();
            std::os::unix::fs::symlink(pyenv, store.root().join("pythons/3.12.1")).unwrap();
        });
    }
}

fn installs_for(suite: &str, python: &str, lay: &dyn Fn(&Store)) {
    let bench = Bench::new();
    lay(&bench.store);
    let manifest = manifest(&format!("[image]\nsuite = \"{suite}\"\npython = \"{python}\"\n"));
    let source = folder(&[("app.py", ""), ("requirements.txt", "six==1.16.0\nmarkupsafe==3.0.2\n")]);
    let made = timed("base and lock", || bench.lock(source.path(), &manifest)).unwrap();
    let interpreter = made.base().interpreter.clone().expect("the host's");
    assert!(made.text().contains(&interpreter.tree.to_string()) && made.text().contains("source = \"store\""));
    assert_eq!(Lock::read(source.path()).unwrap().unwrap(), made);

    let dependencies = timed("install", || bench.install(&made)).unwrap();
    let base = build_base(&bench.store, made.base(), &bench.fence, &Silent).unwrap();
    let job = Job {
        purpose: "test".into(),
        layers: base.iter().chain([&dependencies]).map(|l| bench.store.layer_dir(&l.diff_id)).collect(),
        mounts: Vec::new(),
        argv: [
            "/opt/venv/bin/python3",
            "-c",
            "import six, sys, markupsafe._speedups as m; print(m.__file__, sys.prefix)",
        ]
        .map(str::to_owned)
        .to_vec(),
        env: Default::default(),
        cwd: "/".into(),
        hosts: Vec::new(),
        memory: Bytes::gib(1),
        timeout: Duration::from_secs(60),
    };
    let output = bench.fence.run(&job).unwrap();
    let minor = python.replace('.', "");
    assert!(output.stdout.contains(&format!("cpython-{minor}")) && output.stdout.contains(" /opt/venv"), "{output:?}");

    // Another machine without it says what is missing, and where it was looked for.
    let other = Bench::new();
    let error = build_base(&other.store, made.base(), &other.fence, &Silent).map(|_| ());
    if let Err(error) = error {
        assert_eq!(error.code(), "image.interpreter_missing");
        let report = Report::from(error).to_string();
        assert!(report.contains(&interpreter.version) && report.contains("pythons"), "{report}");
    } else {
        assert!(Path::new("/root/.pyenv").is_dir(), "only a host that has the same tree builds it");
    }
}
