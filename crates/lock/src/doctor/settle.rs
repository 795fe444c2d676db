//! From a folder to a lock with which its agent starts.

use std::fmt::Write;

use ringfence_image::error::Said;
use ringfence_image::{Layer, Store, available_pythons, build_base, plan_base};
use ringfence_model::Diagnosis;
use ringfence_model::diagnosis::{Health, Locked, Try};
use ringfence_model::work::{Progress, Runner, Step};
use tempfile::TempDir;

use super::attempt::{Bench, Tried};
use super::cause::{Blocked, Cause, Owner, Verdict};
use super::fit::Misfit;
use super::search::{Ground, Hints, Limits, Outcome, minor_of, search};
use super::world::World;
use crate::error::LockError;
use crate::history::Past;
use crate::infer;
use crate::install::{InstallInput, install, keep};
use crate::lockfile::{Lock, Recorded};
use crate::others;
use crate::resolve::{Inputs, LockInput, Resolver, Upgrade, lock};

/// A lock, and what was found while it was made.
pub struct Settled {
    /// The lock; it is in the folder.
    pub lock: Lock,
    /// What was found.
    pub diagnosis: Diagnosis,
    /// Where its packages are installed already, and on which base.
    tried: Option<(TempDir, Vec<Layer>)>,
}

/// Gives the folder's lock: the one that is there if it still fits what is declared, else one with which the agent starts.
///
/// A folder without dependencies, or one whose manifest says `cure = false`, gets a lock of what it declares.
///
/// # Errors
/// [`LockError::Unstartable`] if no lock was found with which it starts; [`LockError`] of the declarations, the mirror, the
/// index or the host.
pub fn settle(
    store: &Store,
    input: &LockInput<'_>,
    limits: Limits,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Settled, LockError> {
    let wanted = &input.manifest.dependencies;
    let declared = infer::requirements(input.folder, wanted)?;
    let inputs = Inputs::of(&declared, input.manifest);
    let old = Lock::read(input.folder).unwrap_or(None);
    let current = old.as_ref().filter(|old| *old.inputs() == inputs.declared && input.upgrade.is_nothing());
    if let Some(lock) = current {
        return Ok(Settled { diagnosis: recorded(lock), lock: lock.clone(), tried: None });
    }
    let mut hints = Hints::look(input.folder, wanted, &input.manifest.entry)?;
    if !wanted.cure || (declared.requirements.is_empty() && hints.modules.is_empty()) {
        let lock = lock(store, input, runner, progress)?;
        return Ok(Settled { diagnosis: recorded(&lock), lock, tried: None });
    }
    hints.keys.extend(input.manifest.credentials.values().filter_map(|credential| credential.env.clone()));
    let bench = Bench {
        store,
        folder: input.folder,
        manifest: input.manifest,
        keys: &hints.keys,
        inputs,
        uv: input.uv,
        runner,
        progress,
    };
    let plan = plan_base(store, &input.manifest.image, progress)?;
    let base = build_base(store, &plan, runner, progress)?;
    let resolver = Resolver { store, uv: input.uv, manifest: input.manifest, runner, progress };
    let mut past = Past::new(resolver.indexes(&declared, &plan, &base)?, progress);
    let mut plain = World::plain(wanted.clone(), input.manifest.image.clone());
    plain.dependencies.as_of = wanted.as_of.or(input.as_of);
    plain.pins = others::pins(input.folder);
    let found_before = old.as_ref().and_then(Lock::recorded).filter(|_| input.upgrade != Upgrade::All);
    let first = found_before.filter(|found| !found.changes.is_empty()).map(|found| plain.clone().with(&found.changes));
    let minor = minor_of(&plan.python);
    let mut pythons: Vec<String> = available_pythons(store);
    // What the folder says of its Python holds, where there is one of which it is true.
    let meant = |python: &&String| hints.python.iter().all(|bound| infer::takes_python(bound, python));
    let bounded: Vec<String> = pythons.iter().filter(meant).cloned().collect();
    if !bounded.is_empty() {
        pythons = bounded;
    }
    let pythons: Vec<u8> = pythons.iter().map(|python| minor_of(python)).collect();
    let ground = Ground { past: &mut past, hints: &hints, minor, pythons: &pythons };
    let outcome = search(&bench, &plain, first, (old.as_ref(), input.upgrade), ground, limits)?;
    progress.tell(Step { name: "doctor".into(), doing: "done".into(), done: 1, total: Some(1) });
    let notes = declared.notes.iter().map(|note| format!("{}: {}", note.seen, note.text)).collect();
    conclude(input, outcome, notes)
}

/// The dependencies layer of a lock: of what was installed when it was tried, if it was.
///
/// # Errors
/// As of [`install`].
pub fn dependencies(
    store: &Store,
    settled: &mut Settled,
    input: &InstallInput<'_>,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Layer, LockError> {
    match settled.tried.take() {
        Some((stage, base)) if base.iter().map(|l| &l.diff_id).eq(input.base.iter().map(|l| &l.diff_id)) => {
            keep(store, input, stage.path(), runner, progress)
        }
        _ => install(store, input, runner, progress),
    }
}

fn conclude(input: &LockInput<'_>, outcome: Outcome, notes: Vec<String>) -> Result<Settled, LockError> {
    let Outcome { world, verdict, tried, attempts, questions } = outcome;
    let mut wrong = notes;
    let first = attempts.iter().take(attempts.len().saturating_sub(1)).take(1);
    wrong.extend(first.flat_map(|attempt| words(&attempt.result)));
    let tries = attempts
        .iter()
        .map(|attempt| Try {
            what: attempt.what.clone(),
            result: words(&attempt.result).join("; "),
            took_ms: u64::try_from(attempt.took.as_millis()).unwrap_or(u64::MAX),
        })
        .collect();
    let health = health(&verdict);
    let why = match &verdict {
        Ok(Verdict::Started) => None,
        verdict => Some(words(verdict).join("; ")),
    };
    let (Some(Tried { lock, stage, base, .. }), true) = (tried, health != Health::Fails) else {
        // What is declared is the user's own, so it is what is told of; the last world is nobody's.
        let first = attempts.first().map(|attempt| words(&attempt.result)).unwrap_or_default();
        let why = first.join("; ");
        let found = Diagnosis {
            health: Health::Fails,
            why: Some(why.clone()),
            wrong: first,
            changes: Vec::new(),
            questions,
            tries,
            as_of: input.as_of,
            lock: None,
        };
        return Err(LockError::Unstartable { why: Said(why), found: Box::new(found) });
    };
    let recorded = Recorded { health, why: why.clone(), wrong: wrong.clone(), changes: world.changes.clone() };
    let lock = lock.recording(&recorded)?;
    lock.write(input.folder)?;
    let mut diagnosis = self::recorded(&lock);
    (diagnosis.tries, diagnosis.questions) = (tries, questions);
    Ok(Settled { lock, diagnosis, tried: Some((stage, base)) })
}

/// What the lock itself says of how it was found.
fn recorded(lock: &Lock) -> Diagnosis {
    let none = || Recorded { health: Health::Starts, why: None, wrong: Vec::new(), changes: Vec::new() };
    let Recorded { health, why, wrong, changes } = lock.recorded().cloned().unwrap_or_else(none);
    Diagnosis {
        health,
        why,
        wrong,
        changes,
        questions: Vec::new(),
        tries: Vec::new(),
        as_of: lock.as_of(),
        lock: Some(Locked {
            digest: lock.digest().to_string(),
            python: lock.base().python.clone(),
            packages: lock.packages().len(),
        }),
    }
}

const fn health(verdict: &Result<Verdict, Misfit>) -> Health {
    match verdict {
        Ok(Verdict::Started) => Health::Starts,
        Ok(Verdict::Blocked(_)) => Health::Waits,
        Ok(Verdict::Broken(_)) => Health::Broken,
        Ok(Verdict::Failed(_)) | Err(_) => Health::Fails,
    }
}

/// What came of a try, in words.
fn words(result: &Result<Verdict, Misfit>) -> Vec<String> {
    match result {
        Ok(Verdict::Started) => vec!["it starts".into()],
        Ok(Verdict::Blocked(blocked)) => vec![format!("it starts, and waits for {}", waits(*blocked))],
        Ok(Verdict::Broken(cause)) => vec![format!("its own code raises an error: {}", told(cause))],
        Ok(Verdict::Failed(causes)) => causes.iter().map(told).collect(),
        Err(misfit) => vec![format!("it cannot be installed: {}", one_line(&misfit.said()))],
    }
}

const fn waits(blocked: Blocked) -> &'static str {
    match blocked {
        Blocked::Secret => "a key, a password or a setting",
        Blocked::Network => "a host on the network",
        Blocked::Service => "a service that should run beside it",
        Blocked::Data => "a file that is not there",
        Blocked::Device => "a screen, a microphone or another device",
        Blocked::Input => "somebody who types",
    }
}

fn told(cause: &Cause) -> String {
    match cause {
        Cause::NoModule { module, by, .. } => format!("{} imports `{module}`, which is not there", who(by)),
        Cause::NoProgram { program } => format!("the agent is started with `{program}`, which is not there"),
        Cause::NoName { module, name, by } => format!("{} uses `{module}.{name}`, which is not there", who(by)),
        Cause::NoLibrary { file, by } => format!("{} loads the system's library {file}, which is not there", who(by)),
        Cause::Binary { of, by, said } => format!("{} was made for another {of}: {}", who(by), one_line(said)),
        Cause::Floor { by, said, .. } | Cause::Told { by, said, .. } => {
            format!("{} asks for more: {}", who(by), one_line(said))
        }
        Cause::Call { said, by, .. } => format!("a call of {} does not fit: {}", who(by), one_line(said)),
        Cause::Syntax { by, at, said } => format!("the syntax of {} is of another Python, at {at}: {said}", who(by)),
        Cause::Other { kind, said, by } => format!("{} raises {kind}: {}", who(by), one_line(said)),
        Cause::Silent { said } => one_line(said),
    }
}

fn who(owner: &Owner) -> String {
    match owner {
        Owner::Agent => "the agent".into(),
        Owner::Python => "Python".into(),
        Owner::Package(name) => format!("package `{name}`"),
    }
}

fn one_line(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()).take(3) {
        let _ = write!(line, "{}{part}", if line.is_empty() { "" } else { " " });
    }
    line.chars().take(400).collect()
}
