//! Which change of a world answers why it cannot be resolved or installed.

use std::collections::BTreeSet;

use jiff::Timestamp;
use pep440_rs::{Version, VersionSpecifiers};
use ringfence_image::{ImageError, Sought};

use super::table;
use super::world::{Repair, Sure, World};
use crate::declared::{name_of, normalise};
use crate::error::LockError;
use crate::history::{HistoryError, Past, Release};
use crate::resolve::meant;

/// Why a world cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// A requirement means nothing that is released.
    Unreleased {
        /// The requirement.
        requirement: String,
        /// Why.
        why: &'static str,
    },
    /// It cannot be resolved or installed.
    Told {
        /// What is said, shortly.
        said: String,
        /// All that is said.
        whole: String,
    },
}

impl Misfit {
    /// What an error says of a world, where another world may do better.
    ///
    /// # Errors
    /// Any other error as it is.
    pub(super) fn of(error: LockError) -> Result<Self, LockError> {
        match error {
            LockError::Unresolvable { why, whole } | LockError::Install { why, whole } => {
                Ok(Self::Told { said: why.0, whole: whole.into() })
            }
            LockError::Image(error)
                if matches!(
                    *error,
                    ImageError::NoPackage { .. }
                        | ImageError::NoPython { .. }
                        | ImageError::PackageRefused { .. }
                        | ImageError::TwoPythons { .. }
                        | ImageError::Unmet { .. }
                ) =>
            {
                Ok(Self::Told { said: error.to_string(), whole: String::new() })
            }
            LockError::Unsupported { requirement, why, .. } => Ok(Self::Unreleased { requirement, why }),
            other => Err(other),
        }
    }

    /// What is said, shortly.
    #[must_use]
    pub fn said(&self) -> String {
        match self {
            Self::Unreleased { requirement, why } => format!("nothing released is meant by `{requirement}`: {why}"),
            Self::Told { said, whole } => match unbuilt(whole) {
                Some((name, version)) => format!("{name} {version} does not build: {}", last_words(whole)),
                None => said.clone(),
            },
        }
    }
}

/// What is known when a world that cannot be is changed.
pub struct Ground<'a> {
    /// What the folder declares.
    pub requirements: &'a [String],
    /// What it imports anywhere, and is not its own.
    pub imports: &'a BTreeSet<String>,
    /// The minor version of Python 3.
    pub minor: u8,
    /// The minor versions of Python 3 that there are.
    pub pythons: &'a [u8],
    /// Releases after it do not count.
    pub as_of: Option<Timestamp>,
    /// Debian's package of a file.
    pub package_of: &'a PackageOf<'a>,
}

/// Tells Debian's package of a file.
pub type PackageOf<'a> = dyn Fn(Sought<'_>) -> Option<String> + 'a;

/// Changes the world so that it can be resolved and installed; `false` if nothing is known that would.
///
/// # Errors
/// [`HistoryError`] if the index was called off. An index that does not answer knows nothing.
pub fn fit(misfit: &Misfit, world: &mut World, ground: &Ground<'_>, past: &mut Past<'_>) -> Result<bool, HistoryError> {
    let (said, whole) = match misfit {
        Misfit::Unreleased { requirement, .. } => return Ok(unreleased(requirement, world)),
        Misfit::Told { said, whole } => (said.as_str(), whole.as_str()),
    };
    if let Some(name) = missing(whole) {
        return Ok(world.leave_out(&name, format!("the package index has no `{name}`")));
    }
    if let Some(bounds) = pythons_asked(whole)
        && other_python(
            world,
            ground,
            &|minor| takes(&bounds, minor),
            format!("what is required asks for Python{bounds}"),
        )
    {
        return Ok(true);
    }
    if whole.contains("No solution found") && world.lowered() {
        return Ok(true);
    }
    if let Some((name, version)) = unbuilt(whole) {
        return built(&name, &version, whole, world, ground, past);
    }
    // What did not exist yet at a date is no conflict of pins.
    if whole.contains("exclude-newer") {
        return Ok(false);
    }
    Ok(loosen(said, whole, world, ground.requirements))
}

/// Takes another Python, the nearest that will do; `false` if there is none, or two were taken already.
pub(super) fn other_python(world: &mut World, ground: &Ground<'_>, will_do: &dyn Fn(u8) -> bool, why: String) -> bool {
    if world.changes.iter().filter(|change| change.repair == Repair::Python).count() >= 2 {
        return false;
    }
    let others = ground.pythons.iter().filter(|minor| **minor != ground.minor && will_do(**minor));
    // Of two that are as near, the newer.
    let nearest = others.min_by_key(|minor| (minor.abs_diff(ground.minor), u8::MAX - **minor));
    nearest.is_some_and(|minor| world.python(&format!("3.{minor}"), why))
}

/// Whether bounds take a Python of this minor version.
pub(super) fn takes(bounds: &VersionSpecifiers, minor: u8) -> bool {
    // A patch level that no bound excludes by accident.
    bounds.contains(&Version::new([3, u64::from(minor), 30]))
}

/// The Pythons that a resolver says are asked for, all bounds together.
fn pythons_asked(said: &str) -> Option<VersionSpecifiers> {
    let mut bounds = BTreeSet::new();
    for (at, mark) in said.match_indices("does not satisfy Python") {
        let rest = said.get(at + mark.len()..).unwrap_or_default();
        let end = rest.find(|c: char| !(c.is_ascii_digit() || "<>=!~.,* ".contains(c))).unwrap_or(rest.len());
        let text = rest.get(..end).unwrap_or_default().trim().trim_end_matches([',', '.']);
        bounds.extend(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
    }
    let text = bounds.into_iter().collect::<Vec<_>>().join(",");
    (!text.is_empty()).then(|| text.parse().ok()).flatten()
}

/// What a build backend could not build.
fn unbuilt(said: &str) -> Option<(String, Version)> {
    let marks = ["Failed to build `", "Failed to download and build `", "Failed to prepare distributions for `"];
    let rest = marks.iter().find_map(|mark| Some(said.split_once(mark)?.1))?;
    let (name, rest) = rest.split('`').next()?.split_once("==")?;
    Some((name_of(name)?, rest.trim().parse().ok()?))
}

/// Another Python for which the same version has a wheel; else the nearest version that has one.
fn built(
    name: &str,
    version: &Version,
    said: &str,
    world: &mut World,
    ground: &Ground<'_>,
    past: &mut Past<'_>,
) -> Result<bool, HistoryError> {
    let releases = match past.releases(name) {
        Err(HistoryError::Cancelled) => return Err(HistoryError::Cancelled),
        releases => releases.unwrap_or_default().to_vec(),
    };
    let why = |rest: &str| format!("{name} {version} does not build: {}; {rest}", last_words(said));
    let of = releases.iter().find(|release| release.version == *version);
    let wheel_for =
        |release: &Release, minor: u8| release.takes(minor) && release.tags.iter().any(|tag| fits(tag, minor));
    let pinned = ground.requirements.iter().any(|text| name_of(text).as_deref() == Some(name) && text.contains("=="));
    // Of its time, a release had wheels for the Pythons of that time.
    if let Some(release) = of.filter(|_| pinned || ground.as_of.is_some())
        && other_python(world, ground, &|minor| wheel_for(release, minor), why("that Python has a wheel of it"))
    {
        return Ok(true);
    }
    let counts = |release: &&Release| {
        let there = ground.as_of.is_none_or(|moment| release.time.is_none_or(|time| time <= moment));
        release.is_usual() && there && wheel_for(release, ground.minor)
    };
    let later = releases.iter().filter(counts).find(|release| release.version > *version);
    let earlier = releases.iter().filter(counts).rfind(|release| release.version < *version);
    if let Some(release) = later.or(earlier)
        && let requirement = format!("{name}=={}", release.version)
        && world.replace(Repair::Wheel, &requirement, why("the nearest version with a wheel"), Sure::Likely)
    {
        return Ok(true);
    }
    if tooled(said, &why("it is built with what it asks for"), world, ground) {
        return Ok(true);
    }
    // A later release may build where this one does not.
    let there = |release: &&Release| ground.as_of.is_none_or(|moment| release.time.is_none_or(|time| time <= moment));
    let later = releases.iter().filter(there).any(|release| release.is_usual() && release.version > *version);
    let requirement = format!("{name}>{version}");
    if later && world.replace(Repair::Wheel, &requirement, why("a later release is taken"), Sure::Likely) {
        return Ok(true);
    }
    // What is declared and used nowhere is not missed.
    let declared = ground.requirements.iter().any(|text| name_of(text).as_deref() == Some(name));
    let mut modules = table::modules_of(name);
    let plain = name.replace('-', "_");
    modules.push(&plain);
    let used = ground.imports.iter().any(|import| {
        modules
            .iter()
            .any(|module| import.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    });
    Ok(declared && !used && world.leave_out(name, why("nothing of the folder imports it, and it is left out")))
}

/// Builds with what the build asked for, if that can be told.
fn tooled(said: &str, why: &str, world: &mut World, ground: &Ground<'_>) -> bool {
    let words = ["gcc", "g++", "cc1plus", "clang", "compiler", "make: ", "'/bin/sh'"];
    let compiler = words.iter().any(|word| said.contains(word));
    if world.tools.is_empty() && compiler {
        return world.tool("g++", why.to_owned());
    }
    lacks(said)
        .into_iter()
        .filter_map(|sought| (ground.package_of)(sought))
        .any(|package| world.tool(&package, why.to_owned()))
}

/// What a build says that it lacks.
fn lacks(said: &str) -> Vec<Sought<'_>> {
    let mut lacks = Vec::new();
    let word_before = |at: usize| {
        let word = said.get(..at)?.split_whitespace().next_back()?;
        let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        word.rsplit(['/', ':']).next().filter(|word| !word.is_empty())
    };
    for (at, _) in said.match_indices(": No such file or directory").take(8) {
        lacks.extend(word_after(said, "fatal error: ").filter(|name| name.ends_with(".h")).map(Sought::Header));
        let header = said.get(..at).and_then(|before| before.split_whitespace().next_back());
        lacks.extend(header.filter(|name| name.ends_with(".h") || name.ends_with(".hpp")).map(Sought::Header));
    }
    lacks.extend(word_after(said, "No such file or directory: '").map(Sought::Program));
    lacks.extend(word_after(said, "No package '").map(Sought::PkgConfig));
    if let Some(at) = said.find(" was not found in the pkg-config search path") {
        lacks.extend(word_before(at).map(Sought::PkgConfig));
    }
    lacks.extend(word_after(said, "cannot find -l").map(Sought::Linked));
    for mark in [" executable not found", ": command not found", ": not found", " not found"] {
        lacks.extend(said.match_indices(mark).take(8).filter_map(|(at, _)| word_before(at)).map(Sought::Program));
    }
    lacks.dedup();
    lacks
}

fn word_after<'t>(said: &'t str, mark: &str) -> Option<&'t str> {
    let (_, rest) = said.split_once(mark)?;
    let end = rest.find(|c: char| c.is_whitespace() || "'\":,;".contains(c)).unwrap_or(rest.len());
    rest.get(..end).filter(|word| !word.is_empty())
}

/// Whether a wheel with these tags, such as `cp311-cp311-manylinux_2_17_x86_64`, runs on this machine with a Python of this minor
/// version.
fn fits(tags: &str, minor: u8) -> bool {
    let mut parts = tags.rsplitn(3, '-');
    let (Some(platform), Some(abi), Some(python)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let machine = std::env::consts::ARCH;
    let platform_fits = platform.split('.').any(|one| {
        one == "any" || (one.ends_with(machine) && one.starts_with("manylinux")) || one == format!("linux_{machine}")
    });
    // A build number may stand before the tags.
    let python = python.rsplit('-').next().unwrap_or(python);
    let python_fits = python.split('.').any(|one| {
        let of = |digits: &str| digits.parse::<u8>().ok();
        match one.strip_prefix("cp3").and_then(of) {
            Some(of) => of == minor || (abi.contains("abi3") && of <= minor),
            None => one == "py3" || one.strip_prefix("py3").and_then(of).is_some_and(|of| of <= minor),
        }
    });
    platform_fits && python_fits
}

/// The last words of what a build said.
fn last_words(said: &str) -> String {
    let from = said.rfind("[stderr]").map_or(said, |at| said.get(at + 8..).unwrap_or_default());
    let marks = ["error: ", "Error: ", "fatal error: "];
    let at = marks.iter().filter_map(|mark| from.rfind(mark)).max().unwrap_or_default();
    from.get(at..).unwrap_or_default().trim().chars().take(160).collect()
}

/// Lets pins that fight go.
fn loosen(said: &str, whole: &str, world: &mut World, requirements: &[String]) -> bool {
    let mut changed = false;
    let words: BTreeSet<String> =
        whole.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).map(normalise).collect();
    for requirement in requirements {
        let Some(name) = name_of(requirement) else { continue };
        if !words.contains(&name) {
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

fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use ringfence_model::manifest::{Dependencies, Image};
    use ringfence_model::work::Silent;

    use super::*;

    const PYTHONS: [u8; 5] = [9, 10, 11, 12, 13];

    fn world() -> World {
        World::plain(Dependencies::default(), Image { suite: None, mirror: None, python: None, packages: Vec::new() })
    }

    fn told(said: &str) -> Misfit {
        Misfit::Told { said: said.into(), whole: said.into() }
    }

    fn fitted(said: &str, world: &mut World, requirements: &[&str]) -> bool {
        let requirements: Vec<String> = requirements.iter().map(|text| (*text).to_owned()).collect();
        let package_of = |_: Sought<'_>| None;
        let ground = Ground {
            requirements: &requirements,
            imports: &BTreeSet::new(),
            minor: 11,
            pythons: &PYTHONS,
            as_of: None,
            package_of: &package_of,
        };
        let mut past = Past::of("http://127.0.0.1:9/simple", &Silent).unwrap();
        fit(&told(said), world, &ground, &mut past).unwrap()
    }

    #[test]
    fn what_cannot_be_resolved_is_loosened() {
        let mut there = world();
        assert!(fitted("Because nosuch was not found in the package registry and you require nosuch", &mut there, &[]));
        assert_eq!(there.dependencies.exclude, ["nosuch"]);
        let mut there = world();
        let lines = ["httpx==0.27.0", "openai==1.0", "six", "idna>=3"];
        let said = "Because openai==1.0 depends on httpx<0.26 and you require httpx==0.27.0, we can conclude";
        assert!(fitted(said, &mut there, &lines));
        assert_eq!(there.dependencies.overrides, ["httpx>=0.27.0", "openai>=1.0"]);
        assert!(!fitted(said, &mut there, &lines), "once");
        assert_eq!(there.changes.len(), 2);
        let dated = "Because httpx==0.27.0 was filtered by `exclude-newer` and you require httpx==0.27.0";
        assert!(!fitted(dated, &mut world(), &lines));
    }

    #[test]
    fn another_python_is_taken_where_one_is_asked_for() {
        for (said, python) in [
            (
                "Because the current Python version (3.11.2) does not satisfy Python>=3.12 and a==1 depends on Python>=3.12",
                Some("3.12"),
            ),
            ("the current Python version (3.11.2) does not satisfy Python>=3.7,<3.11 and numpy==1.21", Some("3.10")),
            (
                "(3.11.2) does not satisfy Python>=3.12,<3.14 and we can. (3.11.2) does not satisfy Python>=3.13, we",
                Some("3.13"),
            ),
            ("the current Python version (3.11.2) does not satisfy Python>=3.15 and a", None),
        ] {
            let mut there = world();
            assert_eq!(fitted(said, &mut there, &[]), python.is_some(), "{said}");
            assert_eq!(there.image.python.as_deref(), python, "{said}");
        }
    }

    #[test]
    fn what_did_not_build_is_read() {
        let said = "Failed to build `hnswlib==0.8.0` The build backend returned an error [stderr] warning error: command 'gcc' failed";
        assert_eq!(unbuilt(said), Some(("hnswlib".into(), "0.8.0".parse().unwrap())));
        assert_eq!(last_words(said), "error: command 'gcc' failed");
        assert_eq!(unbuilt("nothing"), None);
    }

    #[test]
    fn what_a_build_lacks_is_read() {
        for (said, lack) in [
            (
                "src/x.c:5:10: fatal error: libpq-fe.h: No such file or directory compilation",
                Sought::Header("libpq-fe.h"),
            ),
            ("Error: pg_config executable not found. Please", Sought::Program("pg_config")),
            ("OSError: mariadb_config not found. This error", Sought::Program("mariadb_config")),
            ("/bin/sh: 1: mysql_config: not found", Sought::Program("mysql_config")),
            ("FileNotFoundError: [Errno 2] No such file or directory: 'cmake'", Sought::Program("cmake")),
            ("Package libffi was not found in the pkg-config search path. Perhaps", Sought::PkgConfig("libffi")),
            ("No package 'cairo' found", Sought::PkgConfig("cairo")),
            ("/usr/bin/ld: cannot find -lz: No such file", Sought::Linked("z")),
        ] {
            assert!(lacks(said).contains(&lack), "{said}: {:?}", lacks(said));
        }
        assert!(lacks("nothing of the kind").is_empty());
    }

    #[test]
    fn wheels_fit_or_do_not() {
        let machine = std::env::consts::ARCH;
        for (tags, minor, fit) in [
            ("py3-none-any".to_owned(), 11, true),
            ("py2.py3-none-any".into(), 9, true),
            (format!("cp311-cp311-manylinux_2_17_{machine}.manylinux2014_{machine}"), 11, true),
            (format!("cp311-cp311-manylinux_2_17_{machine}"), 12, false),
            (format!("cp37-abi3-manylinux_2_28_{machine}"), 12, true),
            (format!("1-cp310-cp310-linux_{machine}"), 10, true),
            (format!("cp311-cp311-musllinux_1_1_{machine}"), 11, false),
            ("cp311-cp311-win_amd64".into(), 11, false),
            ("py2-none-any".into(), 11, false),
            ("x".into(), 11, false),
        ] {
            assert_eq!(fits(&tags, minor), fit, "{tags} {minor}");
        }
    }
}
