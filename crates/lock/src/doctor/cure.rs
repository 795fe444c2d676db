//! Which change of the world answers a cause.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pep440_rs::Version;
pub use ringfence_model::diagnosis::Question;

use super::cause::{Cause, Owner};
use super::search::UNRELEASED;
use super::table::{self, Answer};
use super::world::{Repair, Sure, World};
use crate::declared::{name_of, normalise};
use crate::history::{HistoryError, Past, Release, Span, Wanted};
use crate::resolve::meant;

/// Sonames whose package of Debian's is not named after them.
const LIBRARIES: [(&str, &str); 8] = [
    ("libGL.so.1", "libgl1"),
    ("libEGL.so.1", "libegl1"),
    ("libglib-2.0.so.0", "libglib2.0-0"),
    ("libgthread-2.0.so.0", "libglib2.0-0"),
    ("libgobject-2.0.so.0", "libglib2.0-0"),
    ("libcairo.so.2", "libcairo2"),
    ("libpango-1.0.so.0", "libpango-1.0-0"),
    ("libpangocairo-1.0.so.0", "libpangocairo-1.0-0"),
];

/// Calls whose meaning changed, by what the text of the error has: what is held before which release.
const CALLS: [(&str, &str); 3] = [
    ("unexpected keyword argument 'proxies'", "httpx<0.28"),
    ("unexpected keyword argument 'proxy'", "httpx>=0.26"),
    ("ForwardRef._evaluate()", "pydantic>=1.10.17"),
];

/// What is known when a cause is cured.
pub struct Known<'a> {
    /// Distributions by the first parts of what they brought.
    pub owners: &'a BTreeMap<String, String>,
    /// First parts of the agent's own modules.
    pub own: &'a BTreeSet<String>,
    /// Names of what the folder declares.
    pub declared: &'a BTreeSet<String>,
    /// The minor version of Python 3.
    pub minor: u8,
    /// Releases after it do not count.
    pub as_of: Option<Timestamp>,
}

/// Changes the world so that a cause is gone; `false` if nothing is known that would.
///
/// # Errors
/// [`HistoryError`] if the index was called off. An index that does not answer knows nothing.
pub fn cure(
    cause: &Cause,
    world: &mut World,
    known: &Known<'_>,
    past: &mut Past<'_>,
    questions: &mut Vec<Question>,
) -> Result<bool, HistoryError> {
    match cause {
        Cause::NoModule { module, by, told } => no_module(module, by, told, world, known, past, questions),
        Cause::NoName { module, name, by } => {
            let whole = format!("{module}.{name}");
            let Some(distribution) = owner_of(&whole, known) else { return Ok(false) };
            let wants = shown(by, known);
            let why = format!("{wants} uses `{whole}`, which {distribution} no longer has");
            held(&distribution, &whole, &why, world, known, past)
        }
        Cause::NoLibrary { file, by } => {
            let Some(package) = library(file) else { return Ok(false) };
            Ok(world.library(&package, format!("{} loads {file}", shown(by, known))))
        }
        Cause::Binary { of, by, said } if of == "numpy" => {
            let why = format!("{} was made for NumPy 1: {}", shown(by, known), first_line(said));
            Ok(world.bound(Repair::BinaryFit, "numpy<2", why, Sure::Certain))
        }
        Cause::Told { distributions, by, said } => {
            let mut changed = false;
            for text in distributions {
                let name = name_of(text).unwrap_or_default();
                if table::is_known(&name) && !known.declared.contains(&name) {
                    let why = format!("{} says so: {}", shown(by, known), first_line(said));
                    changed |= world.add(Repair::OptionalDependency, text, why, Sure::Likely);
                }
            }
            Ok(changed)
        }
        Cause::Call { said, .. } => {
            let found = CALLS.iter().find(|(text, _)| said.contains(text));
            let why = || format!("a call changed its meaning: {}", first_line(said));
            Ok(found.is_some_and(|(_, bound)| world.bound(Repair::ChangedCall, bound, why(), Sure::Likely)))
        }
        Cause::Binary { .. } | Cause::Syntax { .. } | Cause::Other { .. } | Cause::Silent { .. } => Ok(false),
    }
}

fn no_module(
    module: &str,
    by: &Owner,
    told: &[String],
    world: &mut World,
    known: &Known<'_>,
    past: &mut Past<'_>,
    questions: &mut Vec<Question>,
) -> Result<bool, HistoryError> {
    let first = module.split('.').next().unwrap_or(module);
    if known.own.contains(first) || table::is_standard(module) {
        return Ok(false);
    }
    let wants = shown(by, known);
    if let Some(distribution) = owner_of(module, known) {
        let why = format!("{wants} imports `{module}`, which {distribution} no longer has");
        if let Some(span) = span(&distribution, module, known, past)? {
            // What is there and was held already is not added again.
            return Ok(hold(&distribution, span, &why, world));
        }
    }
    if let Owner::Package(package) = by
        && let Some(library) = known.owners.get(package)
    {
        let cure = table::optional(library, module).map(str::to_owned);
        let told = told.iter().find(|text| name_of(text).is_some_and(|name| table::is_known(&name))).cloned();
        if let Some(requirement) = cure.or(told) {
            let why = format!("{library} imports `{module}` and does not require it");
            return Ok(world.add(Repair::OptionalDependency, &requirement, why, Sure::Certain));
        }
    }
    match table::brings(module) {
        Answer::Sure(distribution) => {
            let repair = if *by == Owner::Agent { Repair::UndeclaredImport } else { Repair::OptionalDependency };
            let why = format!("{wants} imports `{module}`, and nothing that is declared brings it");
            let added = world.add(repair, distribution, why, Sure::Certain);
            let why = format!("later releases of {distribution} have no `{module}`");
            // What is added anew is the newest anyhow.
            let bounded =
                span(distribution, module, known, past)?.is_some_and(|span| before(distribution, span, &why, world));
            Ok(added || bounded)
        }
        Answer::Ask(candidates) => {
            let candidates = candidates.into_iter().map(str::to_owned).collect();
            let question = Question { module: module.to_owned(), candidates };
            if !questions.contains(&question) {
                questions.push(question);
            }
            Ok(false)
        }
        Answer::Unknown => Ok(false),
    }
}

/// Holds a distribution to releases that have a module or a name.
fn held(
    distribution: &str,
    name: &str,
    why: &str,
    world: &mut World,
    known: &Known<'_>,
    past: &mut Past<'_>,
) -> Result<bool, HistoryError> {
    Ok(span(distribution, name, known, past)?.is_some_and(|span| hold(distribution, span, why, world)))
}

fn hold(distribution: &str, span: Span, why: &str, world: &mut World) -> bool {
    if span.gone.is_some() {
        return before(distribution, span, why, world);
    }
    let constraint = format!("{distribution}>={}", least(&span.last.version));
    world.bound(Repair::MovedName, &constraint, why.to_owned(), Sure::Likely)
}

/// Holds a distribution before the release that has something no more, if there is such a one.
fn before(distribution: &str, span: Span, why: &str, world: &mut World) -> bool {
    let Some(Release { version, time, .. }) = span.gone else { return false };
    world.gone.extend(time);
    let since = time.map(|time| format!(" since {version} of {}", day(time))).unwrap_or_default();
    world.bound(Repair::MovedName, &format!("{distribution}<{version}"), format!("{why}{since}"), Sure::Certain)
}

/// The newest releases that have something. An index that does not answer knows of none.
fn span(distribution: &str, name: &str, known: &Known<'_>, past: &mut Past<'_>) -> Result<Option<Span>, HistoryError> {
    match past.span(distribution, Wanted { name, minor: known.minor, as_of: known.as_of }) {
        Err(HistoryError::Cancelled) => Err(HistoryError::Cancelled),
        found => Ok(found.unwrap_or_default()),
    }
}

/// The first release of the series that a version is of.
fn least(version: &Version) -> String {
    version.release().iter().take(2).map(ToString::to_string).collect::<Vec<_>>().join(".")
}

fn owner_of(module: &str, known: &Known<'_>) -> Option<String> {
    let first = module.split('.').next()?;
    // A namespace is shared by many: the longest part that the table knows decides.
    match table::brings(module) {
        Answer::Sure(distribution) if known.owners.values().any(|owner| owner == distribution) => {
            Some(distribution.into())
        }
        _ if matches!(first, "google" | "azure") => None,
        _ => known.owners.get(first).cloned(),
    }
}

fn shown(owner: &Owner, known: &Known<'_>) -> String {
    match owner {
        Owner::Agent => "the agent".into(),
        Owner::Python => "Python".into(),
        Owner::Package(module) => known.owners.get(module).cloned().unwrap_or_else(|| normalise(module)),
    }
}

/// Debian's package of a library: `libNAME.so.N` is in `libNAMEN`, and in `libNAME-N` where the name ends in a digit.
fn library(file: &str) -> Option<String> {
    if let Some((_, package)) = LIBRARIES.iter().find(|(name, _)| *name == file) {
        return Some((*package).to_owned());
    }
    let (stem, version) = file.split_once(".so.")?;
    let major =
        version.split('.').next().filter(|major| major.bytes().all(|b| b.is_ascii_digit()) && !major.is_empty())?;
    let plain = stem.starts_with("lib") && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_.".contains(&b));
    let stem = stem.to_lowercase().replace('_', "-");
    let dash = if stem.ends_with(|c: char| c.is_ascii_digit()) { "-" } else { "" };
    plain.then(|| format!("{stem}{dash}{major}"))
}

fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

fn day(time: Timestamp) -> String {
    time.to_string().chars().take(10).collect()
}

/// Changes the world so that it can be resolved; `false` if nothing is known that would.
pub fn loosen(said: &str, world: &mut World, requirements: &[String]) -> bool {
    if let Some(requirement) = said.strip_prefix(UNRELEASED).and_then(|rest| rest.split_once("`: ")) {
        return unreleased(requirement.0, world);
    }
    if let Some(name) = missing(said) {
        return world.leave_out(&name, format!("the package index has no `{name}`"));
    }
    let mut changed = false;
    for requirement in requirements {
        let Some(name) = name_of(requirement) else { continue };
        let mentioned =
            said.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).any(|word| normalise(word) == name);
        if !mentioned {
            continue;
        }
        if let Some((_, pinned)) = requirement.split_once("==") {
            let version: String =
                pinned.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || ".*".contains(*c)).collect();
            let version = version.trim_end_matches(".*").to_owned();
            let why = format!("`{requirement}` cannot be met: {}", first_line(said));
            changed |= world.replace(Repair::PinConflict, &format!("{name}>={version}"), why, Sure::Likely);
        } else if requirement.contains(['<', '>', '~']) {
            let why = format!("`{requirement}` fights with the others: {}", first_line(said));
            changed |= world.replace(Repair::PinConflict, &name, why, Sure::Likely);
        }
    }
    changed
}

/// Lets a released distribution stand for a repository or a path that names it.
fn unreleased(requirement: &str, world: &mut World) -> bool {
    let Some(name) = meant(requirement) else { return false };
    if !table::is_known(&name) {
        return false;
    }
    let why = format!("`{requirement}` is no released distribution, and {name} is");
    world.replace(Repair::Released, &name, why, Sure::Likely)
}

/// The distribution that an index does not have.
fn missing(said: &str) -> Option<String> {
    let (before, _) = said.split_once(" was not found in the package registry")?;
    let name = before.rsplit(' ').next()?;
    name_of(name)
}

#[cfg(test)]
mod tests {
    use ringfence_model::manifest::{Dependencies, Image};

    use super::*;

    fn world() -> World {
        World::plain(Dependencies::default(), Image { suite: None, mirror: None, python: None, packages: Vec::new() })
    }

    #[test]
    fn libraries_have_packages() {
        for (file, package) in [
            ("libGL.so.1", Some("libgl1")),
            ("libportaudio.so.2", Some("libportaudio2")),
            ("libmagic.so.1", Some("libmagic1")),
            ("libfoo2.so.3", Some("libfoo2-3")),
            ("libX11.so.6", Some("libx11-6")),
            ("ld-linux.so", None),
            ("../../etc.so.1", None),
        ] {
            assert_eq!(library(file).as_deref(), package, "{file}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_is_loosened() {
        let mut there = world();
        assert!(loosen("Because nosuch was not found in the package registry and you require nosuch", &mut there, &[]));
        assert_eq!(there.dependencies.exclude, ["nosuch"]);
        let mut there = world();
        let lines = ["httpx==0.27.0".to_owned(), "openai==1.0".into(), "six".into(), "idna>=3".into()];
        let said = "Because openai==1.0 depends on httpx<0.26 and you require httpx==0.27.0, we can conclude";
        assert!(loosen(said, &mut there, &lines));
        assert_eq!(there.dependencies.overrides, ["httpx>=0.27.0", "openai>=1.0"]);
        assert!(!loosen(said, &mut there, &lines), "once");
        assert_eq!(there.changes.len(), 2);
    }
}
