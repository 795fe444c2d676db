//! The two lowest layers: a Debian without shell and package manager, and Python.
//!
//! What maintainer scripts would do is done here by hand, and it is little: links, users, the certificate bundle.

use std::fs;
use std::path::Path;
use std::time::Duration;

use ringfence_model::digest::Hasher;
use ringfence_model::work::{Job, JobMount, Progress, Runner, Step};
use ringfence_model::{Bytes, Digest};

use crate::bytecode;
use crate::debian::archive::{Drops, MERGED, extract};
use crate::debian::{BasePlan, download, is_python};
use crate::error::{ImageError, OnPath, Said};
use crate::interpreter;
use crate::layer::{self, AGENT_ID, Layer, open_to_jobs};
use crate::store::{Store, hash_file};
use crate::tree::{put, put_link};

/// Counts up when the same plan gives other bytes than before.
const RECIPE: &str = "ringfence base 2\n";

/// Builds the base and python layers of a plan, lowest first.
///
/// # Errors
/// [`ImageError`] of the mirror, of a package, of the byte compiler or of the store.
pub fn build_base(
    store: &Store,
    plan: &BasePlan,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Vec<Layer>, ImageError> {
    let _using = store.using()?;
    let key = key(plan);
    let _alone = store.alone(&key, progress)?;
    if let Some(layers) = store.recall::<Vec<Layer>>(&key)
        && layers.iter().all(|l| layer::is_whole(store, l))
    {
        return Ok(layers);
    }
    fetch(store, plan, progress)?;
    let stage = store.stage("base")?;
    let (base, python) = (stage.path().join("base"), stage.path().join("python"));
    for folder in [&base, &python] {
        fs::create_dir(folder).on("make folder", folder)?;
    }
    let drops = Drops::shipped()?;
    let total = plan.packages.len() as u64;
    for (n, package) in plan.packages.iter().enumerate() {
        tell(progress, &format!("unpacking {}", package.name), n as u64, total)?;
        let root = if is_python(&package.name) { &python } else { &base };
        extract(&store.deb_path(&package.sha256), &package.name, root, &drops)?;
    }
    finish_base(&base)?;
    library_cache(store, runner, &base)?;
    tell(progress, "packing the base", total, total)?;
    let base = layer::commit(store, "base", &base, progress)?;
    if let Some(chosen) = &plan.interpreter {
        tell(progress, &format!("copying CPython {}", chosen.version), total, total)?;
        interpreter::place(store, chosen, &plan.python, &python, progress)?;
        interpreter::probe(store, plan, chosen, store.layer_dir(&base.diff_id), &python, runner)?;
    }
    finish_python(&python, &plan.python)?;
    tell(progress, "byte-compiling Python", total, total)?;
    let roots = [format!("/usr/lib/python{}", plan.python), "/usr/lib/python3".into()];
    let below = vec![store.layer_dir(&base.diff_id), python.clone()];
    bytecode::compile(store, runner, "Python", &plan.python, below, &roots, &python)?;
    tell(progress, "packing Python", total, total)?;
    let python = layer::commit(store, "python", &python, progress)?;
    let layers = vec![base, python];
    store.remember(&key, &layers)?;
    Ok(layers)
}

fn key(plan: &BasePlan) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(RECIPE.as_bytes());
    hasher.update(Drops::text().as_bytes());
    hasher.update(plan.digest().raw());
    hasher.finish()
}

fn tell(progress: &dyn Progress, doing: &str, done: u64, total: u64) -> Result<(), ImageError> {
    if progress.is_cancelled() {
        return Err(ImageError::Cancelled("building the base"));
    }
    progress.tell(Step { name: "base".into(), doing: doing.into(), done, total: Some(total) });
    Ok(())
}

/// Downloads what is missing, and again what is damaged.
fn fetch(store: &Store, plan: &BasePlan, progress: &dyn Progress) -> Result<(), ImageError> {
    for package in &plan.packages {
        let path = store.deb_path(&package.sha256);
        if path.exists() && hash_file(&path)?.0 != package.sha256 {
            fs::remove_file(&path).on("remove", &path)?;
        }
    }
    download(store, plan, &plan.packages, progress)
}

fn finish_base(root: &Path) -> Result<(), ImageError> {
    for name in MERGED {
        let own = root.join("usr").join(name);
        if matches!(name, "bin" | "lib" | "lib64" | "sbin") || own.is_dir() {
            fs::create_dir_all(&own).on("make folder", &own)?;
            put_link(root, name, &format!("usr/{name}"))?;
        }
    }
    for folder in ["app", "dev", "etc", "opt", "proc", "root", "run", "state", "sys", "tmp", "var/tmp"] {
        let path = root.join(folder);
        fs::create_dir_all(&path).on("make folder", &path)?;
    }
    for (path, target) in [("var/run", "/run"), ("var/lock", "/run/lock"), ("etc/mtab", "/proc/self/mounts")] {
        put_link(root, path, target)?;
    }
    put_link(root, "etc/localtime", "/usr/share/zoneinfo/Etc/UTC")?;
    put(root, "etc/timezone", b"Etc/UTC\n")?;
    let id = AGENT_ID;
    put(
        root,
        "etc/passwd",
        format!(
            "root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
             agent:x:{id}:{id}:agent:/state:/usr/sbin/nologin\n"
        )
        .as_bytes(),
    )?;
    put(root, "etc/group", format!("root:x:0:\nnogroup:x:65534:\nagent:x:{id}:\n").as_bytes())?;
    put(
        root,
        "etc/nsswitch.conf",
        b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
    )?;
    put(root, "etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")?;
    put(root, "etc/hostname", b"agent\n")?;
    put(root, "etc/resolv.conf", b"")?;
    if !root.join("etc/os-release").exists() && root.join("usr/lib/os-release").exists() {
        put_link(root, "etc/os-release", "../usr/lib/os-release")?;
    }
    certificates(root)
}

/// What `update-ca-certificates` would write: all of Mozilla's certificates in one file, in the order of their names.
fn certificates(root: &Path) -> Result<(), ImageError> {
    let folder = root.join("usr/share/ca-certificates/mozilla");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).on("list", &folder)? {
        files.push(entry.on("list", &folder)?.path());
    }
    files.sort();
    let mut bundle = Vec::new();
    for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "crt")) {
        bundle.extend(fs::read(file).on("read", file)?);
        if !bundle.ends_with(b"\n") {
            bundle.push(b'\n');
        }
    }
    put(root, "etc/ssl/certs/ca-certificates.crt", &bundle)?;
    put_link(root, "usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt")?;
    put_link(root, "usr/lib/ssl/certs", "/etc/ssl/certs")
}

/// The loader's cache: by it `ldconfig -p`, and with that Python's `ctypes`, finds libraries by their names.
fn library_cache(store: &Store, runner: &dyn Runner, base: &Path) -> Result<(), ImageError> {
    const MOST: u64 = 16 << 20;
    let stage = store.stage("ldconfig")?;
    let out = stage.path().join("out");
    fs::create_dir(&out).on("make folder", &out)?;
    open_to_jobs(base)?;
    let job = Job {
        purpose: "ldconfig".into(),
        layers: vec![base.to_owned(), store.bench()],
        mounts: vec![JobMount { source: out.clone(), target: "/out".into(), writable: true }],
        argv: ["/usr/sbin/ldconfig", "-i", "-X", "-C", "/out/ld.so.cache"].map(str::to_owned).into(),
        env: [("LANG".to_owned(), "C.UTF-8".to_owned())].into(),
        cwd: "/".into(),
        hosts: Vec::new(),
        memory: Bytes::gib(1),
        timeout: Duration::from_secs(120),
    };
    let output = runner.run(&job).map_err(|report| ImageError::job("list the libraries", report))?;
    let made = out.join("ld.so.cache");
    let whole = fs::symlink_metadata(&made).is_ok_and(|meta| meta.is_file() && meta.len() <= MOST);
    if output.code != 0 || !whole {
        let said = Said(output.stderr.lines().next_back().unwrap_or("it wrote none").to_owned());
        return Err(ImageError::LibraryCache { code: output.code, said });
    }
    put(base, "etc/ld.so.cache", &fs::read(&made).on("read", &made)?)
}

fn finish_python(root: &Path, python: &str) -> Result<(), ImageError> {
    put_link(root, "usr/bin/python3", &format!("python{python}"))?;
    // Programs installed by pip land in the virtual environment; a base without it says so by this marker.
    put(
        root,
        &format!("usr/lib/python{python}/EXTERNALLY-MANAGED"),
        b"[externally-managed]\nError=This image is read-only; declare dependencies in the manifest and lock again.\n",
    )
}
