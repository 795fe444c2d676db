//! What builds packages from source: a compiler and headers, in a layer that jobs see and no image has.

use std::fs;
use std::path::Path;

use ringfence_model::Digest;
use ringfence_model::digest::Hasher;
use ringfence_model::work::{Progress, Step};

use crate::debian::archive::{Drops, extract};
use crate::debian::{BasePlan, download};
use crate::error::{ImageError, OnPath};
use crate::interpreter;
use crate::layer::{self, Layer};
use crate::store::Store;
use crate::tree::put_link;

/// Counts up when the same plan gives other bytes than before.
const RECIPE: &str = "ringfence tools 1\n";

/// Links that maintainer scripts would make.
const LINKS: [(&str, &str); 4] =
    [("usr/bin/awk", "mawk"), ("usr/bin/c++", "g++"), ("usr/bin/cc", "gcc"), ("usr/bin/sh", "dash")];

/// Builds the layer of a plan's build tools, to lay on top of its base for a job; `None` if it has none.
///
/// # Errors
/// [`ImageError`] of the mirror, of a package or of the store.
pub fn build_tools(store: &Store, plan: &BasePlan, progress: &dyn Progress) -> Result<Option<Layer>, ImageError> {
    if plan.tools.is_empty() {
        return Ok(None);
    }
    let _using = store.using()?;
    let key = key(plan);
    let _alone = store.alone(&key, progress)?;
    if let Some(layer) = store.recall::<Layer>(&key).filter(|layer| layer::is_whole(store, layer)) {
        return Ok(Some(layer));
    }
    download(store, plan, &plan.tools, progress)?;
    let stage = store.stage("tools")?;
    let root = stage.path();
    let drops = Drops::none();
    for (at, package) in plan.tools.iter().enumerate() {
        tell(progress, &format!("unpacking {}", package.name), at, plan.tools.len())?;
        extract(&store.deb_path(&package.sha256), &package.name, root, &drops)?;
    }
    for (path, target) in LINKS {
        let folder = root.join(path);
        let there = folder.parent().is_some_and(|folder| folder.join(target).exists());
        if there && fs::symlink_metadata(&folder).is_err() {
            put_link(root, path, target)?;
        }
    }
    if let Some(chosen) = &plan.interpreter
        && let Some(headers) = interpreter::headers(store, chosen, &plan.python)
    {
        copy(&headers, &root.join(format!("usr/include/python{}", plan.python)))?;
    }
    tell(progress, "packing build tools", plan.tools.len(), plan.tools.len())?;
    let layer = layer::commit(store, "tools", root, progress)?;
    store.remember(&key, &layer)?;
    Ok(Some(layer))
}

fn key(plan: &BasePlan) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(RECIPE.as_bytes());
    hasher.update(plan.digest().raw());
    plan.tools.iter().for_each(|package| hasher.update(package.sha256.raw()));
    hasher.finish()
}

fn tell(progress: &dyn Progress, doing: &str, done: usize, total: usize) -> Result<(), ImageError> {
    if progress.is_cancelled() {
        return Err(ImageError::Cancelled("unpacking build tools"));
    }
    progress.tell(Step { name: "tools".into(), doing: doing.into(), done: done as u64, total: Some(total as u64) });
    Ok(())
}

/// Copies the plain files below a folder of the host.
fn copy(from: &Path, to: &Path) -> Result<(), ImageError> {
    layer::walk(from, "", &mut |path, relative, meta| {
        let place = to.join(relative);
        if meta.is_file() {
            let folder = place.parent().unwrap_or(to);
            fs::create_dir_all(folder).on("make folder", folder)?;
            fs::copy(path, &place).on("copy", path)?;
        }
        Ok(())
    })
}
