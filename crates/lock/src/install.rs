//! From a lock to the dependencies layer: `uv` installs by digest, inside the fence, into the image's environment.

use std::fs;
use std::path::{Path, PathBuf};

use ringfence_image::error::Said;
use ringfence_image::{ImageError, Layer, Store, TREE, VENV, build_dependencies, build_tools, stage_dependencies};
use ringfence_model::work::{Progress, Runner, Step};
use ringfence_model::{AgentName, Digest, Report};

use crate::error::{LockError, OnPath};
use crate::index;
use crate::lockfile::{FILE_NAME, Lock};
use crate::resolve::redacted;
use crate::uv::{Run, Uv, core_reason, is_network, whole};

/// What installing needs, besides the store.
#[derive(Clone, Copy, Debug)]
pub struct InstallInput<'a> {
    /// The agent's name.
    pub agent: &'a AgentName,
    /// The lock.
    pub lock: &'a Lock,
    /// Base and python layers of the lock's base plan.
    pub base: &'a [Layer],
    /// The installer.
    pub uv: &'a Uv,
}

/// Builds the dependencies layer of a lock, or finds it.
///
/// # Errors
/// [`LockError::Install`], [`LockError::IndexUnreachable`], or of the store.
pub fn install(
    store: &Store,
    input: &InstallInput<'_>,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Layer, LockError> {
    let python = &input.lock.base().python;
    filling(store, input, runner, progress, |fill| {
        build_dependencies(store, &key(input.lock), input.base, python, runner, progress, fill)
    })
}

/// Installs the dependencies of a lock for trying: the root that has them is `TREE` below what is given back.
///
/// # Errors
/// As of [`install`].
pub fn try_out(
    store: &Store,
    input: &InstallInput<'_>,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<tempfile::TempDir, LockError> {
    let python = &input.lock.base().python;
    filling(store, input, runner, progress, |fill| stage_dependencies(store, python, fill))
}

/// Makes the dependencies layer of a lock from what was installed for trying it.
///
/// # Errors
/// [`LockError`] of the store.
pub(crate) fn keep(
    store: &Store,
    input: &InstallInput<'_>,
    tried: &Path,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Layer, LockError> {
    let venv = VENV.trim_start_matches('/');
    let tried = tried.join(TREE).join(venv);
    let python = &input.lock.base().python;
    let mut move_in = |target: &Path| {
        fs::remove_dir_all(target).and_then(|()| fs::rename(&tried, target)).map_err(|error| {
            Report::new("lock.install", ringfence_model::Fault::Host, "cannot take over what was tried").because(&error)
        })
    };
    Ok(build_dependencies(store, &key(input.lock), input.base, python, runner, progress, &mut move_in)?)
}

/// Lets `work` fill an environment, and gives back what failed in that as it was.
fn filling<T>(
    store: &Store,
    input: &InstallInput<'_>,
    runner: &dyn Runner,
    progress: &dyn Progress,
    work: impl FnOnce(&mut dyn FnMut(&Path) -> Result<(), Report>) -> Result<T, ImageError>,
) -> Result<T, LockError> {
    let mut failure = None;
    let done = work(&mut |venv: &Path| {
        fill(store, input, venv, runner, progress).map_err(|error| {
            let report = Report::new("lock.install", ringfence_model::Fault::Us, error.to_string());
            failure = Some(error);
            report
        })
    });
    match (done, failure) {
        (Err(ImageError::Job { .. }), Some(error)) => Err(error),
        (done, _) => Ok(done?),
    }
}

/// The packages alone: the Debian part of the lock is in the base layers, which the image adds to the key.
fn key(lock: &Lock) -> Digest {
    let packages = lock.text().split("[tool.ringfence]").next().unwrap_or_default();
    let tools: String = lock.base().tools.iter().map(|tool| format!("tool {}\n", tool.sha256)).collect();
    Digest::of(format!("ringfence install 1\n{packages}{tools}").as_bytes())
}

fn fill(
    store: &Store,
    input: &InstallInput<'_>,
    venv: &Path,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<(), LockError> {
    let lock = input.lock;
    if lock.packages().is_empty() {
        return Ok(());
    }
    let count = lock.packages().len() as u64;
    progress.tell(Step {
        name: "dependencies".into(),
        doing: "installing packages".into(),
        done: 0,
        total: Some(count),
    });
    let mut indexes = index::of_this_host();
    let mut hosts = lock.hosts().clone();
    if lock.packages().iter().any(|p| !p.has_wheel) {
        // Building from source takes build tools from the index.
        if indexes.default.is_none() {
            let none = Default::default();
            let run = Run {
                store,
                uv: input.uv,
                agent: input.agent,
                base: input.base,
                runner,
                indexes: &indexes,
                hosts: &none,
                as_of: None,
            };
            let found = run.default_index(&lock.base().python)?;
            indexes.default = Some(found);
        }
        hosts.extend(index::hosts(&indexes, &["setuptools".into()], progress)?);
    }
    let mut layers = input.base.to_vec();
    layers.extend(build_tools(store, lock.base(), progress)?);
    let stage = store.stage("install")?;
    let source = stage.path().join("src");
    fs::create_dir(&source).on("make folder", &source)?;
    let path = source.join(FILE_NAME);
    fs::write(&path, lock.text()).on("write", &path)?;
    let python = format!("{VENV}/bin/python3");
    let arguments = [
        "pip",
        "install",
        "--requirements",
        FILE_NAME,
        "--no-deps",
        "--require-hashes",
        "--link-mode",
        "copy",
        "--no-compile-bytecode",
        "--quiet",
        "--python",
        &python,
    ];
    let run = Run {
        store,
        uv: input.uv,
        agent: input.agent,
        base: &layers,
        runner,
        indexes: &indexes,
        hosts: &hosts,
        as_of: lock.as_of(),
    };
    let output = run.run("install", &arguments.map(str::to_owned), &source, (venv, VENV))?;
    if output.code != 0 {
        let reason = redacted(core_reason(&output.stderr), &indexes);
        return Err(if is_network(&output.stderr) {
            let index = hosts.iter().next().map(|h| h.host.clone()).unwrap_or_default();
            LockError::IndexUnreachable { index, why: Said(reason) }
        } else {
            LockError::Install { why: Said(reason), whole: redacted(whole(&output.stderr), &indexes).into() }
        });
    }
    normalise(venv, &lock.base().python)
}

/// Takes out what differs from one installation to the next: the order of records, and files that say where and when.
fn normalise(venv: &Path, python: &str) -> Result<(), LockError> {
    let packages = venv.join(format!("lib/python{python}/site-packages"));
    for entry in fs::read_dir(&packages).on("list", &packages)? {
        let info = entry.on("list", &packages)?.path();
        if info.extension().is_none_or(|e| e != "dist-info") {
            continue;
        }
        for name in ["REQUESTED", "uv_cache.json", "uv_build.json"] {
            let path = info.join(name);
            if path.exists() {
                fs::remove_file(&path).on("remove", &path)?;
            }
        }
        let record = info.join("RECORD");
        if let Ok(text) = fs::read_to_string(&record) {
            fs::write(&record, sorted_record(&text)).on("write", &record)?;
        }
    }
    remove_if_there(&[venv.join(".lock"), packages.join(".lock")])
}

fn sorted_record(text: &str) -> String {
    let gone = |line: &&str| {
        let path = line.split(',').next().unwrap_or_default();
        !["/REQUESTED", "/uv_cache.json", "/uv_build.json", ".pyc"].iter().any(|end| path.ends_with(end))
    };
    let mut lines: Vec<&str> = text.lines().filter(gone).collect();
    lines.sort_unstable();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn remove_if_there(paths: &[PathBuf]) -> Result<(), LockError> {
    for path in paths {
        match fs::remove_file(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            done => done.on("remove", path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_one_order() {
        let one = "b.py,sha256=x,1\na-1.dist-info/REQUESTED,,\na.py,sha256=y,2\n__pycache__/a.pyc,,\n";
        assert_eq!(sorted_record(one), "a.py,sha256=y,2\nb.py,sha256=x,1\n");
    }
}
