//! The search for a world in which an agent starts, from the cheapest and newest on.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use pep440_rs::Version;
use ringfence_model::manifest::Dependencies;
use ringfence_model::work::Step;

use super::attempt::{Before, Bench, Tried};
use super::cause::{Cause, Owner, Verdict, judge};
use super::cure::{Known, Question, cure};
use super::fit::{self, Misfit, fit};
use super::world::World;
use super::{table, worked};
use crate::declared::name_of;
use crate::error::{InferError, LockError};
use crate::history::{HistoryError, Past};
use crate::infer;
use crate::resolve::Upgrade;
use crate::syntax::{self, When};

/// How many half years are gone back where nothing dates an agent.
const LADDER: i64 = 7;

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
    /// What it imports anywhere, and is not its own.
    pub imports: BTreeSet<String>,
    /// Bounds on its Python, as written.
    pub python: Vec<String>,
    /// What it declares, as written.
    pub requirements: Vec<String>,
    /// Variables that it reads as keys.
    pub keys: Vec<String>,
    /// When it was worked on last.
    pub worked_on: Option<Timestamp>,
}

impl Hints {
    /// Reads a folder of an agent that is started so.
    ///
    /// # Errors
    /// [`InferError`] if it cannot be read.
    pub fn look(folder: &Path, wanted: &Dependencies, argv: &[String]) -> Result<Self, InferError> {
        let declared = infer::requirements(folder, wanted)?;
        let mut sources = infer::sources(folder)?;
        let hidden = infer::hidden(&sources);
        sources.local.retain(|name| !hidden.contains(name));
        let starts = |import: &&syntax::Import| import.when == When::Start;
        let reached = infer::reached(&sources, argv);
        let run = sources.files.iter().filter(|source| reached.contains(&source.path));
        let imports = run.flat_map(|source| source.syntax.imports.iter().filter(starts));
        let foreign = |module: &&String| {
            let first = module.split('.').next().unwrap_or_default();
            !sources.local.contains(first) && !table::is_standard(first)
        };
        let modules: BTreeSet<String> = imports.map(|import| &import.module).filter(foreign).cloned().collect();
        let all = sources.files.iter().flat_map(|source| &source.syntax.imports).map(|import| &import.module);
        Ok(Self {
            keys: infer::keys(&sources),
            imports: all.filter(foreign).cloned().collect(),
            modules: modules.into_iter().collect(),
            python: declared.python.iter().map(|bound| bound.text.clone()).collect(),
            own: sources.local,
            requirements: declared.requirements.into_iter().map(|requirement| requirement.text).collect(),
            worked_on: worked::worked_on(folder),
        })
    }
}

/// One try.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// How the world differed from the one before, in words.
    pub what: String,
    /// What came of it: a verdict, or why it cannot be resolved or installed.
    pub result: Result<Verdict, Misfit>,
    /// How long it took.
    pub took: Duration,
}

/// How a search ended.
pub(crate) struct Outcome {
    /// The last world, or the one in which the agent starts.
    pub world: World,
    /// What came of it.
    pub verdict: Result<Verdict, Misfit>,
    /// What was installed, where the agent starts, or its own code is why it does not.
    pub tried: Option<Tried>,
    /// All tries.
    pub attempts: Vec<Attempt>,
    /// What only a person can answer.
    pub questions: Vec<Question>,
}

/// A search that is under way.
struct Search<'a, 'b> {
    bench: &'a Bench<'a>,
    hints: &'a Hints,
    past: &'a mut Past<'b>,
    /// The minor version of Python 3 that the folder asks for, or that is usual.
    minor: u8,
    pythons: &'a [u8],
    limits: Limits,
    attempts: Vec<Attempt>,
    questions: Vec<Question>,
    /// Worlds to turn to when nothing more is known of this one, the next one last.
    others: Vec<Other>,
    /// When what is missing went away.
    gone: BTreeSet<Timestamp>,
}

/// A world to turn to.
#[derive(Clone, Debug, PartialEq)]
enum Other {
    /// Of this date.
    Date(Timestamp, String),
    /// This one.
    World(Box<World>),
}

/// What a search stands on.
pub(crate) struct Ground<'a, 'b> {
    /// What is known of the folder.
    pub hints: &'a Hints,
    /// The past of distributions.
    pub past: &'a mut Past<'b>,
    /// The minor version of Python 3 that is taken unless another one is chosen.
    pub minor: u8,
    /// The minor versions of Python 3 that there are.
    pub pythons: &'a [u8],
}

/// `11` of `3.11`.
pub(crate) fn minor_of(python: &str) -> u8 {
    python.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or(11)
}

/// Searches from `first` on; from `plain` where that is another and fails.
///
/// # Errors
/// [`LockError`] if the host, the store or the index fails, or it is called off.
pub(crate) fn search(
    bench: &Bench<'_>,
    plain: &World,
    first: Option<World>,
    before: Before<'_>,
    ground: Ground<'_, '_>,
    limits: Limits,
) -> Result<Outcome, LockError> {
    let Ground { hints, past, minor, pythons } = ground;
    let mut search = Search {
        bench,
        hints,
        past,
        minor,
        pythons,
        limits,
        attempts: Vec::new(),
        questions: Vec::new(),
        others: Vec::new(),
        gone: BTreeSet::new(),
    };
    if let Some(world) = first {
        let (verdict, tried) = search.attempt(&world, before)?;
        if settles(&verdict) {
            return Ok(search.ended(world, verdict, tried));
        }
    }
    search.run(plain, before)
}

/// Whether something is missing that no other release of anything installed brings: nobody knows what does.
fn is_timeless(cause: &Cause, tried: &Tried) -> bool {
    let Cause::NoModule { module, by: Owner::Agent, .. } = cause else { return false };
    let first = module.split('.').next().unwrap_or(module);
    !tried.owners.contains_key(first) && !matches!(table::brings(module), table::Answer::Sure(_))
}

/// Whether nothing is to be cured.
const fn settles(verdict: &Result<Verdict, Misfit>) -> bool {
    matches!(verdict, Ok(Verdict::Started | Verdict::Blocked(_) | Verdict::Broken(_)))
}

impl Search<'_, '_> {
    fn run(mut self, plain: &World, before: Before<'_>) -> Result<Outcome, LockError> {
        let began = Instant::now();
        let mut world = plain.clone();
        let mut before = before;
        let (mut dated, mut locked) = (false, false);
        loop {
            let (verdict, tried) = self.attempt(&world, before)?;
            // Only the first world is the folder's own; the others are resolved afresh.
            before = (None, Upgrade::All);
            if settles(&verdict) {
                return Ok(self.ended(world, verdict, tried));
            }
            let mut next = match (&verdict, &tried) {
                (Ok(Verdict::Failed(causes)), Some(tried)) => self.repaired(&world, causes, tried)?,
                (Err(misfit), _) => self.fitted(&world, misfit)?,
                _ => None,
            };
            let hopeless = match (&verdict, &tried) {
                (Ok(Verdict::Failed(causes)), Some(tried)) => causes.iter().any(|cause| is_timeless(cause, tried)),
                (Err(Misfit::Unreleased { .. }), _) => true,
                _ => false,
            };
            // Versions that somebody locked and used come before any that are thought out.
            if !locked && !hopeless {
                locked = true;
                let mut pinned = plain.clone();
                if pinned.pinned("what is declared does not start, and this is what was locked when it did".into()) {
                    self.others.extend(next.take().map(|next| Other::World(Box::new(next))));
                    next = Some(pinned);
                }
            }
            if next.is_none() && self.others.is_empty() && !dated && !hopeless {
                dated = true;
                let told = !matches!(&verdict, Ok(Verdict::Failed(causes)) if causes.iter().all(|cause| matches!(cause, Cause::Silent { .. })));
                self.others = self.dates(plain, told)?;
            }
            // Before the first release of anything required, nothing older can be.
            if matches!(&verdict, Err(Misfit::Told { whole, .. }) if whole.contains("there are no versions of") && whole.contains("exclude-newer"))
            {
                self.others.retain(|other| !matches!(other, Other::Date(..)));
            }
            if next.is_none() && !hopeless {
                next = self.others.pop().map(|other| match other {
                    Other::Date(moment, why) => world.unpinned().dated(moment, why),
                    Other::World(world) => *world,
                });
            }
            let over = self.attempts.len() >= self.limits.attempts || began.elapsed() >= self.limits.time;
            match next.filter(|_| !over) {
                Some(next) => world = next,
                None => return Ok(self.ended(world, verdict, tried)),
            }
        }
    }

    fn ended(self, world: World, verdict: Result<Verdict, Misfit>, tried: Option<Tried>) -> Outcome {
        Outcome { world, verdict, tried, attempts: self.attempts, questions: self.questions }
    }

    /// Tries a world, and notes what came of it.
    fn attempt(
        &mut self,
        world: &World,
        before: Before<'_>,
    ) -> Result<(Result<Verdict, Misfit>, Option<Tried>), LockError> {
        let since = Instant::now();
        let what = world.changes.last().map_or("what is declared".to_owned(), |change| change.what.clone());
        let doing = format!("try {}: {what}", self.attempts.len() + 1);
        let done = self.attempts.len() as u64;
        self.bench.progress.tell(Step { name: "doctor".into(), doing, done, total: None });
        let (verdict, tried) = match self.bench.try_world(world, &self.hints.modules, before) {
            Ok(tried) => (Ok(judge(&tried.probed, &self.hints.own)), Some(tried)),
            Err(error) => (Err(Misfit::of(error)?), None),
        };
        self.attempts.push(Attempt { what, result: verdict.clone(), took: since.elapsed() });
        Ok((verdict, tried))
    }

    /// The minor version of Python 3 of a world.
    fn minor(&self, world: &World) -> u8 {
        world.image.python.as_deref().map_or(self.minor, minor_of)
    }

    fn fitted(&mut self, world: &World, misfit: &Misfit) -> Result<Option<World>, LockError> {
        let mut next = world.clone();
        let ground = fit::Ground {
            requirements: &self.hints.requirements,
            imports: &self.hints.imports,
            minor: self.minor(world),
            pythons: self.pythons,
            as_of: world.dependencies.as_of,
            package_of: &|sought| self.bench.package_of(world, sought),
        };
        Ok(fit(misfit, &mut next, &ground, self.past).map_err(called_off)?.then_some(next))
    }

    fn repaired(&mut self, world: &World, causes: &[Cause], tried: &Tried) -> Result<Option<World>, LockError> {
        let minor = minor_of(&tried.lock.base().python);
        let declared = self.hints.requirements.iter().filter_map(|text| name_of(text)).collect();
        let as_of = world.dependencies.as_of;
        let known = Known {
            owners: &tried.owners,
            own: &self.hints.own,
            declared: &declared,
            requirements: &self.hints.requirements,
            minor,
            pythons: self.pythons,
            as_of,
            package_of: &|sought| self.bench.package_of(world, sought),
        };
        let (mut next, mut changed) = (world.clone(), false);
        for cause in causes {
            changed |= cure(cause, &mut next, &known, self.past, &mut self.questions).map_err(called_off)?;
        }
        self.gone.extend(next.gone.iter().copied());
        Ok(changed.then_some(next))
    }

    /// Dates to go back to, the first to be tried last: when the code was last changed, when the newest of what is pinned was
    /// released, just before what is missing went away, and some time earlier. Without any of these, and if something is told of
    /// what is wrong, ever earlier years.
    fn dates(&mut self, plain: &World, told: bool) -> Result<Vec<Other>, LockError> {
        let latest = plain.dependencies.as_of;
        let pinned = self.newest_pin().map_err(called_off)?;
        let mut dates = Vec::new();
        if let Some(moment) = self.hints.worked_on {
            dates.push((moment, "when its code was last changed".to_owned()));
        }
        if let Some((moment, what)) = &pinned {
            dates.push((*moment, format!("when {what}, the newest that it pins, was released")));
        }
        if let Some(moment) = self.gone.first().and_then(|gone| gone.checked_sub(SignedDuration::from_secs(1)).ok()) {
            dates.push((moment, "just before what is missing went away".into()));
        }
        let earlier = |from: Option<Timestamp>, days| from?.checked_sub(SignedDuration::from_hours(24 * days)).ok();
        match dates.iter().map(|(moment, _)| *moment).min() {
            Some(oldest) => {
                dates.extend([60, 180].into_iter().filter_map(|days| {
                    Some((earlier(Some(oldest), days)?, format!("{days} days before any of these")))
                }))
            }
            None if !told => {}
            None => {
                let from = latest.unwrap_or_else(Timestamp::now);
                let steps = (1..=LADDER).map(|step| step * 183);
                let back = steps.filter_map(|days| Some((earlier(Some(from), days)?, format!("{days} days back"))));
                dates.extend(back);
            }
        }
        // What is pinned must be there.
        let least = pinned.map(|(moment, _)| moment);
        dates.retain(|(moment, _)| {
            latest.is_none_or(|latest| *moment < latest) && least.is_none_or(|least| *moment >= least)
        });
        // The newest first: old worlds carry old holes.
        dates.sort_by_key(|(moment, _)| *moment);
        dates.dedup_by_key(|(moment, _)| *moment);
        Ok(dates.into_iter().map(|(moment, why)| Other::Date(moment, why)).collect())
    }

    /// When the newest release that a folder pins exactly was released, and which one it is.
    fn newest_pin(&mut self) -> Result<Option<(Timestamp, String)>, HistoryError> {
        const PINS: usize = 60;
        let mut newest = None;
        let pins = self.hints.requirements.iter().filter_map(|text| exact(text));
        for (name, version) in pins.take(PINS) {
            let releases = match self.past.releases(&name) {
                Ok(releases) => releases,
                Err(HistoryError::Cancelled) => return Err(HistoryError::Cancelled),
                Err(_) => continue,
            };
            let time = releases.iter().find(|release| release.version == version).and_then(|release| release.time);
            newest = newest.max(time.map(|time| (time, format!("{name} {version}"))));
        }
        // A day later, so that what was released beside it counts too.
        Ok(newest.and_then(|(time, what)| Some((time.checked_add(SignedDuration::from_hours(24)).ok()?, what))))
    }
}

/// Name and version of a requirement that pins exactly.
fn exact(requirement: &str) -> Option<(String, Version)> {
    let (name, rest) = requirement.split_once("==")?;
    let version = rest.trim_start_matches('=').split([';', ',', ' ']).next()?.trim();
    Some((name_of(name)?, version.parse().ok()?))
}

fn called_off(_: HistoryError) -> LockError {
    LockError::from(ringfence_image::ImageError::Cancelled("searching"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_pins_are_read() {
        assert_eq!(exact("Foo_Bar==1.2 ; python_version<'4'"), Some(("foo-bar".into(), "1.2".parse().unwrap())));
        for loose in ["foo>=1", "foo", "foo==1.*", "foo==x"] {
            assert_eq!(exact(loose), None, "{loose}");
        }
    }
}
