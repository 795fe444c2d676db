//! The search for a world in which an agent starts, from the cheapest and newest on.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ringfence_model::manifest::Dependencies;
use ringfence_model::work::Step;

use super::attempt::{Bench, Tried};
use super::cause::{Cause, Verdict, judge};
use super::cure::{Known, Question, cure, loosen};
use super::table;
use super::world::World;
use crate::declared::name_of;
use crate::error::{InferError, LockError};
use crate::history::{HistoryError, Past};
use crate::infer;
use crate::lockfile::Lock;
use crate::syntax::{self, When};

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Worlds.
    pub attempts: usize,
    /// Time; a try that began is ended.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { attempts: 16, time: Duration::from_secs(20 * 60) }
    }
}

/// What is known of a folder before anything is tried.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// First parts of its own modules.
    pub own: BTreeSet<String>,
    /// What it imports as it starts, and is not its own.
    pub modules: Vec<String>,
    /// What it declares, as written.
    pub requirements: Vec<String>,
    /// When it was worked on last.
    pub worked_on: Option<Timestamp>,
}

impl Hints {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`InferError`] if it cannot be read.
    pub fn look(folder: &Path, wanted: &Dependencies) -> Result<Self, InferError> {
        let declared = infer::requirements(folder, wanted)?;
        let sources = infer::sources(folder)?;
        let starts = |import: &&syntax::Import| import.when == When::Start;
        let imports = sources.files.iter().flat_map(|source| source.syntax.imports.iter().filter(starts));
        let foreign = |module: &&String| {
            let first = module.split('.').next().unwrap_or_default();
            !sources.local.contains(first) && !table::is_standard(first)
        };
        let modules: BTreeSet<String> = imports.map(|import| &import.module).filter(foreign).cloned().collect();
        Ok(Self {
            modules: modules.into_iter().collect(),
            own: sources.local,
            requirements: declared.requirements.into_iter().map(|requirement| requirement.text).collect(),
            worked_on: None,
        })
    }
}

/// One try.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// How many changes the world had.
    pub changes: usize,
    /// What came of it: a verdict, or why it could not be resolved or installed.
    pub result: Result<Verdict, String>,
    /// How long it took.
    pub took: Duration,
}

/// How a search ended.
pub struct Outcome {
    /// Whether it starts.
    pub verdict: Result<Verdict, String>,
    /// The last world.
    pub world: World,
    /// Its lock, where there is one.
    pub lock: Option<Lock>,
    /// All tries.
    pub attempts: Vec<Attempt>,
    /// What only a person can answer.
    pub questions: Vec<Question>,
}

impl Outcome {
    /// Whether the agent starts.
    #[must_use]
    pub const fn starts(&self) -> bool {
        matches!(self.verdict, Ok(Verdict::Started | Verdict::Blocked(_)))
    }
}

/// Searches.
///
/// # Errors
/// [`LockError`] if the host, the store or the index fails, or it is called off.
pub fn search(
    bench: &Bench<'_>,
    start: World,
    hints: &Hints,
    past: &mut Past<'_>,
    limits: Limits,
) -> Result<Outcome, LockError> {
    let began = Instant::now();
    let mut dates = dates(hints);
    let (mut world, mut attempts, mut questions) = (start, Vec::new(), Vec::new());
    loop {
        let since = Instant::now();
        tell(bench, &world, attempts.len());
        let tried = match bench.try_world(&world, &hints.modules) {
            Ok(tried) => Ok(tried),
            Err(error) => Err(about_the_world(error)?),
        };
        let verdict = tried.as_ref().map(|tried| judge(&tried.probed, &hints.own)).map_err(Clone::clone);
        let changes = world.changes.len();
        attempts.push(Attempt { changes, result: verdict.clone(), took: since.elapsed() });
        let next = match (&verdict, &tried) {
            (Ok(Verdict::Failed(causes)), Ok(tried)) => repaired(&world, causes, tried, hints, past, &mut questions)?,
            (Err(said), _) => {
                let mut next = world.clone();
                loosen(said, &mut next, &hints.requirements).then_some(next)
            }
            _ => None,
        };
        let over = !matches!(verdict, Ok(Verdict::Failed(_)) | Err(_))
            || attempts.len() >= limits.attempts
            || began.elapsed() >= limits.time;
        let next = next.or_else(|| dates.pop().map(|(moment, why)| world.dated(moment, why)));
        match next.filter(|_| !over) {
            Some(next) => world = next,
            None => {
                let lock = tried.ok().map(|tried| tried.lock);
                return Ok(Outcome { verdict, world, lock, attempts, questions });
            }
        }
    }
}

/// Dates to go back to, the latest last.
fn dates(hints: &Hints) -> Vec<(Timestamp, String)> {
    let Some(worked_on) = hints.worked_on else { return Vec::new() };
    let month = jiff::SignedDuration::from_hours(24 * 30);
    let mut dates = Vec::new();
    for months in [6, 2] {
        if let Ok(moment) = worked_on.checked_sub(month * months) {
            dates.push((moment, format!("{months} months before its code was last changed")));
        }
    }
    dates.push((worked_on, "when its code was last changed".into()));
    dates
}

fn repaired(
    world: &World,
    causes: &[Cause],
    tried: &Tried,
    hints: &Hints,
    past: &mut Past<'_>,
    questions: &mut Vec<Question>,
) -> Result<Option<World>, LockError> {
    let minor = tried.lock.base().python.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(11);
    let declared = hints.requirements.iter().filter_map(|text| name_of(text)).collect();
    let as_of = world.dependencies.as_of;
    let known = Known { owners: &tried.owners, own: &hints.own, declared: &declared, minor, as_of };
    let (mut next, mut changed) = (world.clone(), false);
    for cause in causes {
        changed |= cure(cause, &mut next, &known, past, questions).map_err(called_off)?;
    }
    Ok(changed.then_some(next))
}

fn called_off(_: HistoryError) -> LockError {
    LockError::from(ringfence_image::ImageError::Cancelled("searching"))
}

/// What is said of a world that cannot be, where another one may do better.
fn about_the_world(error: LockError) -> Result<String, LockError> {
    match error {
        LockError::Unresolvable { why } | LockError::Install { why } => Ok(why.0),
        other => Err(other),
    }
}

fn tell(bench: &Bench<'_>, world: &World, tries: usize) {
    let doing = match world.changes.last() {
        None => "trying what is declared".to_owned(),
        Some(change) => format!("try {}: {}", tries + 1, change.what),
    };
    bench.progress.tell(Step { name: "doctor".into(), doing, done: tries as u64, total: None });
}
