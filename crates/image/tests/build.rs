//! Images out of real packages from the host's mirror: reproducible, whole, and taken by other tools.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

mod fence;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fence::{CalledOff, Fence, folder, lay_host_python};
use ringfence_image::{BasePlan, BuildInput, Built, ImageError, Layer, Profile, Store, build, build_base};
use ringfence_image::{build_dependencies, plan_base};
use ringfence_model::work::{Job, Runner, Silent};
use ringfence_model::{Bytes, Digest, Explain, Manifest};

const MANIFEST: &str = "[agent]\nname = \"probe\"\nentry = [\"python3\", \"app.py\"]\n[ingress]\nport = 8000\n";
const APP: &str = "import json, os, sqlite3, ssl, zoneinfo, ctypes, lzma, bz2, decimal\n\
                   import six\n\
                   assert six.__cached__.endswith('.pyc') and os.path.exists(json.__cached__)\n\
                   ssl.create_default_context()\n\
                   zoneinfo.ZoneInfo('Europe/Paris')\n\
                   print('ready', os.getcwd(), os.getuid(), os.environ['HOME'], os.path.exists('/bin/sh'))\n";

fn manifest() -> Manifest {
    Manifest::parse(MANIFEST, &|_| Err("none".into())).unwrap()
}

fn dependencies(store: &Store, base: &[Layer], python: &str, fence: &Fence) -> Layer {
    let key = Digest::of(b"one module");
    build_dependencies(store, &key, base, python, fence, &Silent, &mut |venv| {
        let module = venv.join(format!("lib/python{python}/site-packages/six.py"));
        fs::write(module, "PY3 = True\nassert __file__\n").unwrap();
        let certifi = venv.join(format!("lib/python{python}/site-packages/certifi"));
        fs::create_dir(&certifi).unwrap();
        fs::write(certifi.join("cacert.pem"), "pem").unwrap();
        Ok(())
    })
    .unwrap()
}

fn built(store: &Store, plan: &BasePlan, source: &Path, fence: &Fence) -> Built {
    let base = build_base(store, plan, fence, &Silent).unwrap();
    let dependencies = dependencies(store, &base, &plan.python, fence);
    let profile = Profile { manifest: b"{}".to_vec(), seccomp: b"{}".to_vec(), policy: Digest::of(b"policy") };
    let (manifest, digest) = (manifest(), Digest::of(MANIFEST.as_bytes()));
    let input = BuildInput {
        manifest: &manifest,
        manifest_digest: &digest,
        folder: source,
        base: &base,
        dependencies: &dependencies,
        lock_digest: &Digest::of(b"lock"),
        profile: &profile,
    };
    build(store, &input, &Silent).unwrap()
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{what}: {:.3} s", start.elapsed().as_secs_f64());
    done
}

fn tool(program: &str, args: &[&str]) -> String {
    tool_in(Path::new("/"), program, args)
}

fn tool_in(folder: &Path, program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).current_dir(folder).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn two_builds_in_two_stores_give_one_digest_that_other_tools_take() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(one.path()).unwrap();
    let fence = Fence::default();
    let image = manifest().image;
    let plan = timed("plan", || plan_base(&store, &image, &Silent)).unwrap();
    for name in ["libc6", "python3.11", "tzdata", "ca-certificates", "libssl3"] {
        assert!(plan.packages.iter().any(|p| p.name == name), "{name}");
    }
    assert_eq!(plan_base(&store, &image, &Silent).unwrap(), plan);

    let source = folder(&[("app.py", APP), ("data/x.txt", "x")]);
    let first = timed("first build", || built(&store, &plan, source.path(), &fence));
    let jobs = fence.jobs.load(Ordering::SeqCst);
    let again = timed("unchanged build", || built(&store, &plan, source.path(), &fence));
    assert_eq!(first, again);
    assert_eq!(fence.jobs.load(Ordering::SeqCst), jobs, "nothing is made twice");
    for layer in &first.layers {
        println!("{} {} → {} bytes", layer.name, layer.unpacked, layer.size);
    }

    // Another store, another folder, packages from the first so as not to load the mirror.
    let other = Store::open(two.path()).unwrap();
    for entry in fs::read_dir(one.path().join("debs")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), two.path().join("debs").join(entry.file_name())).unwrap();
    }
    let elsewhere = folder(&[("data/x.txt", "x"), ("app.py", APP)]);
    let second = timed("second store", || built(&other, &plan, elsewhere.path(), &fence));
    for (a, b) in first.layers.iter().zip(&second.layers) {
        assert_eq!(a, b, "layer {}", a.name);
    }
    assert_eq!(first.digest, second.digest);

    let verified = timed("verify", || store.verify(&first.digest)).unwrap();
    assert_eq!(verified.entry(), ["/opt/venv/bin/python3", "app.py"]);
    assert_eq!(verified.user(), (65532, 65532));
    assert_eq!(
        verified.trust_stores(),
        ["/etc/ssl/certs/ca-certificates.crt", "/opt/venv/lib/python3.11/site-packages/certifi/cacert.pem"]
    );
    no_shell_nor_setuid(verified.layers());
    store.tag("probe", &first.digest).unwrap();
    taken_by_skopeo_and_umoci(&store, one.path());
    runs_under_podman(&store);
    survives_damage(&store, &first, &plan, source.path(), &fence);
}

fn no_shell_nor_setuid(layers: &[std::path::PathBuf]) {
    for layer in layers {
        for program in ["sh", "bash", "dash", "apt", "dpkg", "perl", "su", "mount"] {
            assert!(!layer.join("usr/bin").join(program).exists(), "{program}");
        }
        let found = tool("find", &[layer.to_str().unwrap(), "-perm", "/6000", "-o", "-type", "b", "-o", "-type", "c"]);
        assert_eq!(found, "");
    }
}

fn taken_by_skopeo_and_umoci(store: &Store, scratch: &Path) {
    let image = format!("oci:{}:probe", store.layout().display());
    let text = tool("skopeo", &["inspect", &image]);
    assert!(text.contains("dev.ringfence.manifest"), "{text}");
    let bundle = scratch.join("bundle");
    let layout = format!("{}:probe", store.layout().display());
    tool("umoci", &["unpack", "--image", &layout, bundle.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(bundle.join("rootfs/app/app.py")).unwrap(), APP);
}

fn runs_under_podman(store: &Store) {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    let (root, runroot, tmp) = (path("root"), path("run"), path("tmp"));
    let common = ["--root", &root, "--runroot", &runroot, "--tmpdir", &tmp, "--storage-driver", "vfs"];
    let podman = |args: &[&str]| {
        let all: Vec<&str> = common.iter().chain(args).copied().collect();
        // A relative name, because podman makes a reference of the path and takes no capitals in it.
        tool_in(store.root(), "podman", &all)
    };
    let id = podman(&["pull", "-q", "oci:oci:probe"]);
    let mut run = vec![
        "--runtime",
        "runc",
        "--cgroup-manager",
        "cgroupfs",
        "run",
        "--rm",
        "--ulimit",
        "nofile=256:256",
        "--ulimit",
        "nproc=256:256",
    ];
    run.extend(["--network", "none", "--security-opt", "seccomp=unconfined", "--read-only", id.trim()]);
    let said = podman(&run);
    assert_eq!(said, "ready /app 65532 /state False\n");
}

fn survives_damage(store: &Store, image: &Built, plan: &BasePlan, source: &Path, fence: &Fence) {
    // A damaged blob is mended from its unpacked layer.
    let layer = &image.layers[1];
    let blob = store.layout().join("blobs/sha256").join(layer.blob.hex());
    fs::write(&blob, "damage").unwrap();
    timed("verify, mending", || store.verify(&image.digest)).unwrap();

    // An unpacked layer that somebody touched is made anew from its blob.
    let tree = store.layer_dir(&layer.diff_id);
    fs::write(tree.join("usr/lib/python3.11/json/__init__.py"), "evil").unwrap();
    timed("verify, unpacking", || store.verify(&image.digest)).unwrap();
    assert_ne!(fs::read_to_string(tree.join("usr/lib/python3.11/json/__init__.py")).unwrap(), "evil");

    // Both at once: named, removed, and made by the next build.
    fs::write(&blob, "damage").unwrap();
    fs::write(tree.join("usr/lib/python3.11/json/__init__.py"), "evil").unwrap();
    let error = store.verify(&image.digest).unwrap_err();
    assert_eq!(error.code(), "store.corrupt");
    assert!(error.to_string().contains(&layer.blob.to_string()), "{error}");
    assert_eq!(built(store, plan, source, fence), *image);
    store.verify(&image.digest).unwrap();

    // What nobody needs goes, what a tag needs stays.
    store.collect(&[]).unwrap();
    store.verify(&image.digest).unwrap();
    store.untag("probe").unwrap();
    assert_eq!(store.collect(&[]).unwrap().layers, 5);
    assert!(matches!(store.verify(&image.digest), Err(ImageError::StoreMissing { .. })));
}

#[test]
fn work_that_is_called_off_leaves_nothing_half_made() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    let off = CalledOff(AtomicUsize::new(0), 1);
    let error = plan_base(&store, &manifest().image, &off).unwrap_err();
    assert_eq!(error.code(), "cancelled");
    assert_eq!(fs::read_dir(home.path().join("debs")).unwrap().count(), 0);
}

#[test]
fn a_full_disk_has_one_clear_error() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap().to_owned();
    tool("mount", &["-t", "tmpfs", "-o", "size=2m", "tmpfs", &path]);
    let store = Store::open(home.path()).unwrap();
    let plan = plan_base(&store, &manifest().image, &Silent);
    let full = plan.unwrap_err();
    assert_eq!(full.code(), "store.full", "{full:?}");
    assert_eq!(fs::read_dir(home.path().join("debs")).unwrap().count(), 0, "nothing half-made");
    drop(store);
    tool("umount", &[&path]);
}

#[test]
fn a_package_that_no_mirror_has_is_told_apart() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    let mut plan = plan_base(&store, &manifest().image, &Silent).unwrap();
    plan.packages.truncate(1);
    plan.packages[0].path = "pool/main/n/none/none_0_all.deb".into();
    let error = build_base(&store, &plan, &Fence::default(), &Silent).unwrap_err();
    assert_eq!(error.code(), "mirror.gone", "{error:?}");
    plan.packages[0] = plan_base(&store, &manifest().image, &Silent).unwrap().packages[0].clone();
    plan.packages[0].sha256 = Digest::of(b"another");
    let error = build_base(&store, &plan, &Fence::default(), &Silent).unwrap_err();
    assert_eq!(error.code(), "mirror.hash", "{error:?}");
}

#[test]
fn a_mirror_that_is_not_there_is_named() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    let mut image = manifest().image;
    image.mirror = Some("http://user:word@127.0.0.1:9/debian".into());
    let error = plan_base(&store, &image, &Silent).unwrap_err();
    assert_eq!(error.code(), "mirror.unreachable");
    assert!(error.to_string().contains("127.0.0.1:9/debian/dists/bookworm/InRelease"), "{error}");
    assert!(!error.to_string().contains("word"));
}

#[test]
fn other_suites_come_with_their_python() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    for (suite, python) in [("bullseye", "3.9"), ("trixie", "3.13")] {
        let mut image = manifest().image;
        image.python = Some(python.into());
        let plan = plan_base(&store, &image, &Silent).unwrap();
        assert_eq!((plan.suite.as_str(), plan.python.as_str()), (suite, python));
        let layers = build_base(&store, &plan, &Fence::default(), &Silent).unwrap();
        assert!(store.layer_dir(&layers[1].diff_id).join("usr/bin/python3").exists());
    }
    let mut image = manifest().image;
    image.python = None;
    image.packages = vec!["bash".into()];
    assert_eq!(plan_base(&store, &image, &Silent).unwrap_err().code(), "image.package_refused");
    image.packages = vec!["no-such-package".into()];
    assert_eq!(plan_base(&store, &image, &Silent).unwrap_err().code(), "image.no_package");
}

const MODULES: &str = "import ssl, sqlite3, ctypes, lzma, bz2, zlib, hashlib, uuid, sys, os; \
                       assert os.path.exists(ssl.__cached__), ssl.__cached__; \
                       ssl.create_default_context(); print('%d.%d' % sys.version_info[:2], sys.prefix)";

fn runs_in_the_fence(store: &Store, layers: &[Layer], python: &str) {
    let layers = layers.iter().map(|l| store.layer_dir(&l.diff_id)).collect();
    let job = Job {
        purpose: "test".into(),
        layers,
        mounts: Vec::new(),
        argv: ["/usr/bin/python3", "-c", MODULES].map(str::to_owned).to_vec(),
        env: Default::default(),
        cwd: "/".into(),
        hosts: Vec::new(),
        memory: Bytes::gib(1),
        timeout: Duration::from_secs(60),
    };
    let output = Fence::default().run(&job).unwrap();
    assert_eq!((output.code, output.stdout), (0, format!("{python} /usr\n")), "{}", output.stderr);
}

/// What must hold of any interpreter of the host on top of any suite.
fn is_a_base(suite: &str, python: &str, lay: &dyn Fn(&Store)) -> (tempfile::TempDir, Store, BasePlan) {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(one.path()).unwrap();
    lay(&store);
    let mut image = manifest().image;
    (image.suite, image.python) = (Some(suite.into()), Some(python.into()));
    let plan = timed("plan", || plan_base(&store, &image, &Silent)).unwrap();
    let chosen = plan.interpreter.clone().expect("no Debian Python");
    assert_eq!((plan.suite.as_str(), plan.python.as_str()), (suite, python));
    assert!(chosen.version.starts_with(&format!("{python}.")), "{chosen:?}");
    println!("{python} on {suite}: {chosen:?}");
    assert!(!plan.packages.iter().any(|p| p.name.contains("python3")), "Debian's Python stays out");
    assert!(plan.packages.iter().any(|p| p.name.starts_with("libssl")), "its libraries come");
    let fence = Fence::default();
    let layers = timed("base", || build_base(&store, &plan, &fence, &Silent)).unwrap();
    runs_in_the_fence(&store, &layers, python);
    let below = store.layer_dir(&layers[1].diff_id).join(format!("usr/lib/python{python}"));
    for gone in ["ensurepip", "idlelib", "site-packages", "test", "tkinter", "turtledemo"] {
        assert!(!below.join(gone).exists(), "{gone}");
    }

    // Another store, where it was laid at another time: the same layers.
    let other = Store::open(two.path()).unwrap();
    lay(&other);
    for entry in fs::read_dir(one.path().join("debs")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), two.path().join("debs").join(entry.file_name())).unwrap();
    }
    assert_eq!(build_base(&other, &plan, &fence, &Silent).unwrap(), layers);
    (one, store, plan)
}

#[test]
fn a_python_of_the_host_is_the_python_layer() {
    // Debian's own 3.11 stands for one that somebody built: on a suite that has another it is one.
    let (_home, store, plan) = is_a_base("trixie", "3.11", &|store| lay_host_python(store, "bookworm", "3.11"));
    let home = tempfile::tempdir().unwrap();
    let elsewhere = Store::open(home.path()).unwrap();
    let missing = build_base(&elsewhere, &plan, &Fence::default(), &Silent).unwrap_err();
    assert_eq!(missing.code(), "image.interpreter_missing", "{missing:?}");
    let hint = missing.hint().unwrap();
    assert!(hint.contains("pythons") && hint.contains("pylock.toml"), "{hint}");

    // One byte of it is another: noticed, and not taken.
    lay_host_python(&elsewhere, "bookworm", "3.11");
    let changed = elsewhere.root().join("pythons/3.11-of-bookworm/lib/python3.11/json/__init__.py");
    fs::write(&changed, fs::read_to_string(&changed).unwrap() + "#").unwrap();
    let error = build_base(&elsewhere, &plan, &Fence::default(), &Silent).unwrap_err();
    assert_eq!(error.code(), "image.interpreter_missing");
    assert!(ringfence_model::Report::from(error).to_string().contains("other files"));

    // Debian's Python cannot come in beside it.
    let mut image = manifest().image;
    (image.suite, image.python) = (Some("trixie".into()), Some("3.11".into()));
    image.packages = vec!["python3-six".into()];
    assert_eq!(plan_base(&store, &image, &Silent).unwrap_err().code(), "image.two_pythons");

    // One that does not start is found out inside the fence.
    let broken = store.root().join("pythons/3.11-of-bookworm/lib/python3.11/ssl.py");
    fs::write(&broken, "raise SystemExit('broken')").unwrap();
    image.packages.clear();
    let plan = plan_base(&store, &image, &Silent).unwrap();
    let error = build_base(&store, &plan, &Fence::default(), &Silent).unwrap_err();
    assert_eq!(error.code(), "image.interpreter", "{error:?}");
    assert!(error.to_string().contains("broken"), "{error}");
}

#[test]
fn a_python_of_the_host_for_a_newer_glibc_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    lay_host_python(&store, "bookworm", "3.11");
    let mut image = manifest().image;
    (image.suite, image.python) = (Some("bullseye".into()), Some("3.11".into()));
    // The store's own folder comes first, whatever else the host has, and the first refusal is told.
    let error = plan_base(&store, &image, &Silent).unwrap_err();
    assert_eq!(error.code(), "image.interpreter", "{error:?}");
    assert!(error.to_string().contains("built for glibc") && error.to_string().contains("has 2.31"), "{error}");
}

#[test]
fn pythons_that_pyenv_has_are_bases_too() {
    // Debian's stands in where there is no pyenv, so that the same things are always shown.
    let versions = Path::new("/root/.pyenv/versions");
    let mut cases = 0;
    for (name, python) in [("3.12.1", "3.12"), ("3.10.13", "3.10")] {
        let prefix = versions.join(name);
        if prefix.is_dir() {
            cases += 1;
            is_a_base("bookworm", python, &|store| {
                fs::create_dir_all(store.root().join("pythons")).unwrap();
                std::os::unix::fs::symlink(&prefix, store.root().join("pythons").join(name)).unwrap();
            });
        }
    }
    if cases == 0 {
        is_a_base("trixie", "3.11", &|store| lay_host_python(store, "bookworm", "3.11"));
    }
}

#[test]
fn a_python_that_nobody_has_is_named_before_any_download() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    let mut image = manifest().image;
    image.python = Some("3.99".into());
    image.mirror = Some("http://127.0.0.1:9/debian".into());
    let error = plan_base(&store, &image, &Silent).unwrap_err();
    assert_eq!(error.code(), "image.no_python");
    let hint = error.hint().unwrap();
    assert!(hint.contains("3.11 (bookworm)") && hint.contains("uv python install 3.99"), "{hint}");
}
