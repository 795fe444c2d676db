//! Byte-compiles Python trees inside the fence, so that a read-only image starts without compiling.
//!
//! Compiling is running foreign input through a large C program, so it is a job. The result carries hashes instead of
//! times and is never checked against the source again: both are in the same read-only layer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_model::Bytes;
use ringfence_model::work::{Job, JobMount, Runner};

use crate::error::{ImageError, OnPath, Said};
use crate::layer::{open_to_jobs, walk};
use crate::store::Store;

const SCRIPT: &str = include_str!("bytecode.py");

/// Compiles what is below `roots` (paths in the image), and puts the results into `tree`.
///
/// `layers` must hold Python and `tree` itself.
pub(crate) fn compile(
    store: &Store,
    runner: &dyn Runner,
    what: &str,
    python: &str,
    mut layers: Vec<PathBuf>,
    roots: &[String],
    tree: &Path,
) -> Result<(), ImageError> {
    let stage = store.stage("bytecode")?;
    let (source, out) = (stage.path().join("src"), stage.path().join("out"));
    for folder in [&source, &out] {
        fs::create_dir(folder).on("make folder", folder)?;
    }
    let script = source.join("bytecode.py");
    fs::write(&script, SCRIPT).on("write", &script)?;
    for folder in [source.as_path(), tree] {
        open_to_jobs(folder)?;
    }
    layers.push(store.bench());
    let mut argv: Vec<String> = vec![format!("/usr/bin/python{python}")];
    argv.extend(["-S", "-s", "-B", "/src/bytecode.py", "/out"].map(str::to_owned));
    argv.extend(roots.iter().cloned());
    let job = Job {
        purpose: "bytecode".into(),
        layers,
        mounts: vec![
            JobMount { source, target: "/src".into(), writable: false },
            JobMount { source: out.clone(), target: "/out".into(), writable: true },
        ],
        argv,
        env: BTreeMap::from([
            ("LANG".into(), "C.UTF-8".into()),
            ("PATH".into(), "/usr/bin".into()),
            ("PYTHONHASHSEED".into(), "0".into()),
        ]),
        cwd: "/".into(),
        hosts: Vec::new(),
        memory: Bytes::gib(2),
        timeout: Duration::from_secs(900),
    };
    let output = runner.run(&job).map_err(|report| ImageError::job(format!("byte-compile {what}"), report))?;
    if output.code != 0 {
        let said: Vec<&str> = output.stderr.lines().rev().take(3).collect();
        let said = Said(said.into_iter().rev().collect::<Vec<_>>().join("; "));
        return Err(ImageError::Bytecode { what: what.into(), code: output.code, said });
    }
    merge(&out, tree)
}

/// Moves cache files to beside their sources. The job wrote them, so only plain files of that kind are taken.
fn merge(out: &Path, tree: &Path) -> Result<(), ImageError> {
    walk(out, "", &mut |path, relative, meta| {
        if !meta.is_file() || !relative.ends_with(".pyc") {
            return Ok(());
        }
        let place = tree.join(relative);
        let Some(folder) = place.parent() else { return Ok(()) };
        let Some(beside) = folder.parent() else { return Ok(()) };
        // INVARIANT: the source's folder is in the tree for real; a link could lead out of it.
        if beside.canonicalize().ok().as_deref() != Some(beside) {
            return Ok(());
        }
        if fs::symlink_metadata(folder).is_ok_and(|m| !m.is_dir()) {
            return Ok(());
        }
        fs::create_dir_all(folder).on("make folder", folder)?;
        fs::rename(path, &place).on("move", path)
    })
}
