//! Which packages an image needs: the seeds and all they depend on, less what no image may have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::packages::{Package, Packages, Relation};
use crate::error::ImageError;

const EXCLUDE: &str = include_str!("../../../../policies/image/exclude.txt");

/// Names that never go into an image.
pub(crate) struct Exclusions {
    exact: BTreeSet<String>,
    prefixes: Vec<String>,
}

impl Exclusions {
    /// The list that ships with us.
    pub(crate) fn shipped() -> Self {
        Self::read(EXCLUDE)
    }

    /// No name: for what never goes into an image.
    pub(crate) const fn none() -> Self {
        Self { exact: BTreeSet::new(), prefixes: Vec::new() }
    }

    fn read(text: &str) -> Self {
        let names = text.lines().map(|l| l.split('#').next().unwrap_or_default().trim()).filter(|l| !l.is_empty());
        let (prefixes, exact): (Vec<&str>, Vec<&str>) = names.partition(|n| n.ends_with('*'));
        Self {
            exact: exact.into_iter().map(str::to_owned).collect(),
            prefixes: prefixes.into_iter().map(|p| p.trim_end_matches('*').to_owned()).collect(),
        }
    }

    pub(crate) fn covers(&self, name: &str) -> bool {
        self.exact.contains(name) || self.prefixes.iter().any(|p| name.starts_with(p.as_str()))
    }
}

/// Seeds and all that they depend on, by name.
pub(crate) fn close(
    packages: &Packages,
    seeds: &[String],
    exclude: &Exclusions,
    suite: &str,
) -> Result<Vec<Package>, ImageError> {
    let mut chosen: BTreeMap<String, &Package> = BTreeMap::new();
    let mut queue: VecDeque<&Package> = VecDeque::new();
    for seed in seeds {
        if exclude.covers(seed) {
            return Err(ImageError::PackageRefused { name: seed.clone() });
        }
        let relation = Relation { name: seed.clone(), version: None };
        let package = packages
            .meeting(&relation)
            .filter(|p| !exclude.covers(&p.name))
            .ok_or_else(|| ImageError::NoPackage { suite: suite.into(), name: seed.clone() })?;
        if chosen.insert(package.name.clone(), package).is_none() {
            queue.push_back(package);
        }
    }
    while let Some(package) = queue.pop_front() {
        for need in package.depends.split(',').filter(|n| !n.trim().is_empty()) {
            let Some(found) = choose(packages, need, exclude, &chosen) else {
                return Err(ImageError::Unmet {
                    suite: suite.into(),
                    package: package.name.clone(),
                    needs: need.trim().into(),
                });
            };
            if let Choice::Take(found) = found
                && chosen.insert(found.name.clone(), found).is_none()
            {
                queue.push_back(found);
            }
        }
    }
    Ok(chosen.into_values().cloned().collect())
}

enum Choice<'p> {
    /// An excluded package would meet it; the image does without.
    Forgo,
    Take(&'p Package),
}

/// The alternative that is chosen already, else the first that can be had.
fn choose<'p>(
    packages: &'p Packages,
    need: &str,
    exclude: &Exclusions,
    chosen: &BTreeMap<String, &'p Package>,
) -> Option<Choice<'p>> {
    let alternatives: Vec<Relation> = need.split('|').filter_map(Relation::read).collect();
    let meeting = |relation: &Relation| packages.meeting(relation);
    if let Some(found) = alternatives.iter().filter_map(meeting).find(|p| chosen.contains_key(&p.name)) {
        return Some(Choice::Take(found));
    }
    alternatives.iter().find_map(|relation| {
        if exclude.covers(&relation.name) {
            return Some(Choice::Forgo);
        }
        let found = meeting(relation)?;
        Some(if exclude.covers(&found.name) { Choice::Forgo } else { Choice::Take(found) })
    })
}

#[cfg(test)]
mod tests {
    use super::super::Archive;
    use super::super::packages::tests::list;
    use super::*;

    fn names(lines: &[(&str, &str, &str, &str)], seeds: &[&str], exclude: &str) -> Result<Vec<String>, ImageError> {
        let mut packages = Packages::default();
        packages.read(&list(lines), Archive::Main).unwrap();
        let seeds: Vec<String> = seeds.iter().map(|s| (*s).to_owned()).collect();
        let closed = close(&packages, &seeds, &Exclusions::read(exclude), "s")?;
        Ok(closed.into_iter().map(|p| p.name).collect())
    }

    #[test]
    fn follows_alternatives_bounds_and_providers() {
        let lines = [
            ("app", "1", "b (>= 9) | c, v", ""),
            ("b", "1", "", ""),
            ("c", "1", "app, shell", ""),
            ("p1", "1", "", "v"),
            ("p2", "1", "", "v"),
            ("shell", "1", "big", ""),
            ("big", "1", "", ""),
        ];
        assert_eq!(names(&lines, &["app"], "shell # no").unwrap(), ["app", "c", "p1"]);
        assert_eq!(names(&lines, &["app", "p2"], "shell\nbig").unwrap(), ["app", "c", "p1", "p2"]);
    }

    #[test]
    fn says_what_is_missing() {
        assert!(matches!(names(&[], &["x"], ""), Err(ImageError::NoPackage { .. })));
        assert!(matches!(names(&[("x", "1", "y", "")], &["x"], ""), Err(ImageError::Unmet { .. })));
        assert!(matches!(names(&[("bash", "1", "", "")], &["bash"], "ba*"), Err(ImageError::PackageRefused { .. })));
    }

    #[test]
    fn the_shipped_list_has_no_shell_nor_package_manager() {
        let exclude = Exclusions::shipped();
        for name in [
            "bash",
            "dash",
            "apt",
            "dpkg",
            "perl-base",
            "debconf",
            "coreutils",
            "systemd-sysv",
            "openssh-server",
            "ksh93u+m",
        ] {
            assert!(exclude.covers(name), "{name}");
        }
        for name in ["libc6", "python3.11", "ca-certificates", "libdbus-1-3", "openssh-client"] {
            assert!(!exclude.covers(name), "{name}");
        }
    }
}
