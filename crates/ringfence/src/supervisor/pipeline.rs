//! From a folder to an image: lock, base, dependencies, app; whatever did not change is taken from the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use ringfence_fleet::api::{LockRequest, UpRequest, UpgradeWanted};
use ringfence_image::{BuildInput, Profile, Store, build, build_base};
use ringfence_lock::doctor::{Limits, dependencies, settle};
use ringfence_lock::{InstallInput, LockError, LockInput, Upgrade, Uv};
use ringfence_model::work::{Progress, Step, cancelled};
use ringfence_model::{Diagnosis, Digest, Manifest, Report};
use ringfence_policy::Policy;

use super::runner::JobRunner;
use super::start;
use crate::env;
use crate::paths::Paths;

/// An image that is ready to be started.
pub(super) struct Prepared {
    /// Its digest.
    pub digest: Digest,
    /// How long each step took.
    pub took_ms: BTreeMap<String, u64>,
}

/// Locks the agent in a folder with versions with which it starts.
///
/// # Errors
/// [`LockError`]; [`LockError::Unstartable`] tells what was tried.
pub(super) fn lock(
    paths: &Paths,
    program: &Path,
    store: &Store,
    request: &LockRequest,
    manifest: &Manifest,
    progress: &dyn Progress,
    called_off: &AtomicBool,
) -> Result<Diagnosis, LockError> {
    let uv = Uv::find(env::read(env::UV).map(PathBuf::from).as_deref())?;
    let _using = store.using()?;
    let runner = JobRunner { paths, program, called_off, fence: start::fence(manifest) };
    let upgrade = match &request.upgrade {
        UpgradeWanted::Nothing => Upgrade::Nothing,
        UpgradeWanted::These(names) => Upgrade::These(names),
        UpgradeWanted::All => Upgrade::All,
    };
    let input = LockInput { folder: &request.folder, manifest, uv: &uv, upgrade, as_of: request.as_of };
    Ok(settle(store, &input, Limits::default(), &runner, progress)?.diagnosis)
}

/// Locks and builds the agent in a folder; `found` takes what was found of its dependencies, whether it starts or not.
#[expect(clippy::too_many_arguments, reason = "each is another part of the supervisor")]
pub(super) fn prepare(
    paths: &Paths,
    program: &Path,
    store: &Store,
    request: &UpRequest,
    manifest: &Manifest,
    progress: &dyn Progress,
    called_off: &AtomicBool,
    found: &mut Option<Box<Diagnosis>>,
) -> Result<Prepared, Report> {
    let mut took_ms = BTreeMap::new();
    let mut timed = |step: &str, since: Instant| {
        took_ms.insert(step.to_owned(), u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
    };
    let go_on = |what: &str| {
        if progress.is_cancelled() { Err(cancelled(what)) } else { Ok(()) }
    };
    let say = |name: &str, doing: &str| {
        progress.tell(Step { name: name.into(), doing: doing.into(), done: 0, total: None });
    };
    let uv = Uv::find(env::read(env::UV).map(PathBuf::from).as_deref())?;
    // From the first layer to the tag: what a collection takes in between would be missing later.
    let _using = store.using()?;
    let runner = JobRunner { paths, program, called_off, fence: start::fence(manifest) };

    let began = Instant::now();
    say("lock", "reading what the agent declares");
    let input = LockInput { folder: &request.folder, manifest, uv: &uv, upgrade: Upgrade::Nothing, as_of: None };
    let mut settled = settle(store, &input, Limits::default(), &runner, progress).inspect_err(|error| {
        if let LockError::Unstartable { found: tried, .. } = error {
            *found = Some(tried.clone());
        }
    })?;
    *found = Some(Box::new(settled.diagnosis.clone()));
    let locked = settled.lock.clone();
    timed("lock", began);
    go_on("locking")?;

    let began = Instant::now();
    let base = build_base(store, locked.base(), &runner, progress)?;
    timed("base", began);
    go_on("building the base")?;

    let began = Instant::now();
    let input = InstallInput { agent: &manifest.name, lock: &locked, base: &base, uv: &uv };
    let dependencies = dependencies(store, &mut settled, &input, &runner, progress)?;
    timed("dependencies", began);
    go_on("installing dependencies")?;

    let began = Instant::now();
    say("app", "packing the agent");
    let policy = Policy::compile(&manifest.name, &manifest.grants, &[])?;
    let policy: String = policy.sources().iter().map(|(id, text)| format!("// {id}\n{text}\n")).collect();
    let profile = Profile {
        manifest: serde_json::to_vec(manifest).map_err(|e| super::step("describe the manifest", &e))?,
        seccomp: ringfence_sys::seccomp::AGENT_PROFILE.as_bytes().to_vec(),
        policy: Digest::of(policy.as_bytes()),
    };
    let manifest_digest = Digest::of(&profile.manifest);
    let lock_digest = locked.digest();
    let built = build(
        store,
        &BuildInput {
            manifest,
            manifest_digest: &manifest_digest,
            folder: &request.folder,
            base: &base,
            dependencies: &dependencies,
            lock_digest: &lock_digest,
            profile: &profile,
        },
        progress,
    )?;
    timed("app", began);
    go_on("building the image")?;
    store.tag(manifest.name.as_str(), &built.digest)?;
    Ok(Prepared { digest: built.digest, took_ms })
}
