//! Which change of the world answers a cause.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use pep440_rs::Version;
use ringfence_image::Sought;
pub use ringfence_model::diagnosis::Question;

use super::cause::{Cause, Owner};
use super::fit::{Ground, PackageOf, other_python};
use super::table::{self, Answer};
use super::world::{Repair, Sure, World};
use crate::declared::{name_of, normalise};
use crate::history::{HistoryError, Past, Release, Span, Wanted};

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
    /// What the folder declares.
    pub requirements: &'a [String],
    /// The minor version of Python 3.
    pub minor: u8,
    /// The minor versions of Python 3 that there are.
    pub pythons: &'a [u8],
    /// Releases after it do not count.
    pub as_of: Option<Timestamp>,
    /// Debian's package of a file.
    pub package_of: &'a PackageOf<'a>,
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
        Cause::NoProgram { program } => {
            let Answer::Sure(distribution) = table::brings(&program.replace('-', "_")) else { return Ok(false) };
            let why = format!("`{program}` starts the agent, and nothing that is declared brings it");
            Ok(world.add(Repair::Launcher, distribution, why, Sure::Certain))
        }
        Cause::NoName { module, name, by } if table::is_standard(module) => {
            Ok(of_python(&format!("{module}.{name}"), &shown(by, known), world, known))
        }
        Cause::NoName { module, name, by } => {
            let whole = format!("{module}.{name}");
            let Some(distribution) = owner_of(&whole, known) else { return Ok(false) };
            let wants = shown(by, known);
            let why = format!("{wants} uses `{whole}`, which {distribution} no longer has");
            held(&distribution, &whole, &why, world, known, past)
        }
        Cause::NoLibrary { file, by } => {
            let sought = match file.strip_prefix("lib").and_then(|name| name.strip_suffix(".so")) {
                Some(name) => Sought::Named(name),
                None => Sought::Library(file),
            };
            let found = (known.package_of)(sought).or_else(|| library(file));
            let Some(package) = found else { return Ok(false) };
            Ok(world.library(&package, format!("{} loads {file}", shown(by, known))))
        }
        Cause::Binary { of, by, said } if of == "numpy" => {
            let why = format!("{} was made for NumPy 1: {}", shown(by, known), first_line(said));
            Ok(world.bound(Repair::BinaryFit, "numpy<2", why, Sure::Certain))
        }
        Cause::Floor { of, least, by, said } => floor(of, least, by, said, world, known, past),
        Cause::Told { distributions, by, said } => {
            let mut changed = false;
            for text in distributions {
                let name = name_of(text).unwrap_or_default();
                // What is declared lacks at most its extras.
                if table::is_known(&name) && (text.contains('[') || !known.declared.contains(&name)) {
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
        Cause::Other { kind, said, .. } if kind.contains("Pydantic") => {
            let why = format!("it is written for the first version of pydantic: {}", first_line(said));
            Ok(world.bound(Repair::ChangedCall, "pydantic<2", why, Sure::Likely))
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
    if known.own.contains(first) {
        return Ok(false);
    }
    let wants = shown(by, known);
    if table::is_standard(module) {
        return Ok(of_python(module, &wants, world, known));
    }
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

/// What Python had, and from which minor version on no more.
const GONE: [(&str, u8); 42] = [
    ("aifc", 13),
    ("ast.Num", 14),
    ("ast.Str", 14),
    ("asynchat", 12),
    ("asyncio.coroutine", 11),
    ("asyncore", 12),
    ("audioop", 13),
    ("cgi", 13),
    ("cgitb", 13),
    ("chunk", 13),
    ("collections.Callable", 10),
    ("collections.Iterable", 10),
    ("collections.Iterator", 10),
    ("collections.Mapping", 10),
    ("collections.MutableMapping", 10),
    ("collections.MutableSequence", 10),
    ("collections.MutableSet", 10),
    ("collections.Sequence", 10),
    ("collections.Set", 10),
    ("crypt", 13),
    ("distutils", 12),
    ("fractions.gcd", 9),
    ("imghdr", 13),
    ("imp", 12),
    ("inspect.formatargspec", 11),
    ("inspect.getargspec", 11),
    ("lib2to3", 13),
    ("mailcap", 13),
    ("nntplib", 13),
    ("ossaudiodev", 13),
    ("parser", 10),
    ("pipes", 13),
    ("pkgutil.ImpImporter", 12),
    ("smtpd", 12),
    ("sndhdr", 13),
    ("spwd", 13),
    ("sunau", 13),
    ("telnetlib", 13),
    ("typing.io", 13),
    ("typing.re", 13),
    ("uu", 13),
    ("xdrlib", 13),
];

/// Takes a Python that has a module or a name of its own library: an older one of what went away, else the next newer.
fn of_python(name: &str, wants: &str, world: &mut World, known: &Known<'_>) -> bool {
    let ground = Ground {
        requirements: known.requirements,
        imports: &BTreeSet::new(),
        minor: known.minor,
        pythons: known.pythons,
        as_of: known.as_of,
        package_of: known.package_of,
    };
    let below =
        |(gone, _): &&(&str, u8)| name.strip_prefix(gone).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    match GONE.iter().find(below) {
        Some((_, gone)) if known.minor >= *gone => {
            if name.starts_with("distutils") {
                let why = format!("{wants} imports `{name}`, which Python has no more and setuptools brings");
                return world.add(Repair::OptionalDependency, "setuptools", why, Sure::Certain);
            }
            let why = format!("{wants} uses `{name}`, which Python has no more since 3.{gone}");
            other_python(world, &ground, &|minor| minor < *gone, why)
        }
        Some(_) => false,
        None => {
            let why = format!("{wants} uses `{name}`, which Python 3.{} does not have yet", known.minor);
            other_python(world, &ground, &|minor| minor > known.minor, why)
        }
    }
}

/// A newer release of what is too old, where nobody holds it; else an older one of what asks for it.
fn floor(
    of: &str,
    least: &str,
    by: &Owner,
    said: &str,
    world: &mut World,
    known: &Known<'_>,
    past: &mut Past<'_>,
) -> Result<bool, HistoryError> {
    let Owner::Package(package) = by else { return Ok(false) };
    let (Some(library), Ok(least)) = (known.owners.get(package), least.parse::<Version>()) else { return Ok(false) };
    let why = format!("{library} says so: {}", first_line(said));
    if !known.owners.values().any(|owner| owner == of) {
        // It is not there at all.
        return Ok(
            table::is_known(of) && world.add(Repair::OptionalDependency, &format!("{of}>={least}"), why, Sure::Certain)
        );
    }
    let mut time_of = |name: &str, counts: &dyn Fn(&Release) -> bool| match past.releases(name) {
        Err(HistoryError::Cancelled) => Err(HistoryError::Cancelled),
        releases => {
            Ok(releases.unwrap_or_default().iter().find(|release| release.is_usual() && counts(release)).cloned())
        }
    };
    let Some(since) = time_of(of, &|release| release.version >= least)?.and_then(|release| release.time) else {
        return Ok(false);
    };
    let Some(first) = time_of(library, &|release| release.time.is_some_and(|time| time > since))? else {
        return Ok(false);
    };
    let why = format!("{why}; {of} {least} is of {}", day(since));
    Ok(world.bound(Repair::BinaryFit, &format!("{library}<{}", first.version), why, Sure::Likely))
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
    // Of the last series that had it, or a resolver may go back by years to please another distribution.
    let constraint = format!("{distribution}>={},<{version}", least(&span.last.version));
    world.bound(Repair::MovedName, &constraint, format!("{why}{since}"), Sure::Certain)
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
