//! A world: what the resolver is told, and why. A repair makes another of it.

use std::collections::BTreeSet;

use jiff::Timestamp;
pub use ringfence_model::diagnosis::{Change, Repair, Sure};
use ringfence_model::manifest::{Dependencies, Image};

use crate::declared::name_of;
use crate::others::Pins;

/// What the resolver is told.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Requirements, bounds and the date.
    pub dependencies: Dependencies,
    /// Python and Debian packages.
    pub image: Image,
    /// Debian packages that build from source, if anything is built with a compiler.
    pub tools: Vec<String>,
    /// How it differs from what the folder says.
    pub changes: Vec<Change>,
    /// When what the agent misses went away.
    pub(crate) gone: BTreeSet<Timestamp>,
    /// What another tool's lock in the folder pins.
    pub(crate) pins: Option<Pins>,
}

impl World {
    /// What the folder says.
    #[must_use]
    pub const fn plain(dependencies: Dependencies, image: Image) -> Self {
        Self { dependencies, image, tools: Vec::new(), changes: Vec::new(), gone: BTreeSet::new(), pins: None }
    }

    /// What the folder says, and changes that were found earlier.
    #[must_use]
    pub fn with(mut self, changes: &[Change]) -> Self {
        for change in changes {
            let Change { repair, what, why, sure } = change.clone();
            match repair {
                Repair::UndeclaredImport | Repair::Launcher | Repair::OptionalDependency => {
                    self.add(repair, &what, why, sure);
                }
                Repair::OtherLock => {
                    self.pinned(why);
                }
                Repair::MovedName | Repair::BinaryFit | Repair::ChangedCall => {
                    self.bound(repair, &what, why, sure);
                }
                Repair::PinConflict | Repair::Released | Repair::Wheel => {
                    self.replace(repair, &what, why, sure);
                }
                Repair::Date => {
                    if let Ok(moment) = what.parse() {
                        self = self.dated(moment, why);
                    }
                }
                Repair::LeftOut => {
                    self.leave_out(&what, why);
                }
                Repair::Python => {
                    self.python(&what, why);
                }
                Repair::SystemLibrary => {
                    self.library(&what, why);
                }
                Repair::BuildTool => {
                    self.tool(&what, why);
                }
            }
        }
        self
    }

    /// Takes another Python.
    pub fn python(&mut self, version: &str, why: String) -> bool {
        if self.image.python.as_deref() == Some(version) {
            return false;
        }
        self.image.python = Some(version.to_owned());
        // A suite decides the Python, so another Python is of another suite.
        self.image.suite = None;
        self.changed(Repair::Python, version, why, Sure::Certain);
        true
    }

    fn changed(&mut self, repair: Repair, what: &str, why: String, sure: Sure) {
        self.changes.push(Change { repair, what: what.to_owned(), why, sure });
    }

    /// Adds a requirement, unless one of that name is there.
    pub fn add(&mut self, repair: Repair, requirement: &str, why: String, sure: Sure) -> bool {
        let there = requirement.contains('[');
        let named = |list: &[String]| !there && list.iter().any(|text| name_of(text) == name_of(requirement));
        if named(&self.dependencies.add) || self.dependencies.add.iter().any(|text| text == requirement) {
            return false;
        }
        self.dependencies.add.push(requirement.to_owned());
        self.changed(repair, requirement, why, sure);
        true
    }

    /// Bounds a distribution, beside the bounds that it has.
    pub fn bound(&mut self, repair: Repair, constraint: &str, why: String, sure: Sure) -> bool {
        if self.dependencies.constraints.iter().any(|text| text == constraint) {
            return false;
        }
        self.dependencies.constraints.push(constraint.to_owned());
        self.changed(repair, constraint, why, sure);
        true
    }

    /// Lets go of the lower ends of bounds that were learnt; `false` if there are none.
    pub fn lowered(&mut self) -> bool {
        let mut changed = false;
        for change in self.changes.iter_mut().filter(|change| change.repair == Repair::MovedName) {
            let Some((name, (_, upper))) =
                change.what.split_once(">=").and_then(|(n, rest)| Some((n, rest.split_once(',')?)))
            else {
                continue;
            };
            let lower = format!("{name}{upper}");
            for text in self.dependencies.constraints.iter_mut().filter(|text| **text == change.what) {
                text.clone_from(&lower);
            }
            change.what = lower;
            changed = true;
        }
        changed
    }

    /// Lets a requirement stand for whatever anybody asks of the same distribution.
    pub fn replace(&mut self, repair: Repair, requirement: &str, why: String, sure: Sure) -> bool {
        let name = name_of(requirement);
        if self.dependencies.overrides.iter().any(|text| name_of(text) == name) {
            return false;
        }
        self.dependencies.overrides.push(requirement.to_owned());
        self.changed(repair, requirement, why, sure);
        true
    }

    /// Leaves a distribution out.
    pub fn leave_out(&mut self, name: &str, why: String) -> bool {
        if self.dependencies.exclude.iter().any(|text| text == name) {
            return false;
        }
        self.dependencies.exclude.push(name.to_owned());
        self.changed(Repair::LeftOut, name, why, Sure::Certain);
        true
    }

    /// Dates it. Bounds that were learnt in another time do not hold any more; what was added stays.
    pub fn dated(&self, moment: Timestamp, why: String) -> Self {
        let learnt: BTreeSet<&str> = self
            .changes
            .iter()
            .filter(|change| {
                matches!(change.repair, Repair::MovedName | Repair::BinaryFit | Repair::ChangedCall | Repair::Date)
            })
            .map(|change| change.what.as_str())
            .collect();
        let mut dependencies = self.dependencies.clone();
        dependencies.constraints.retain(|text| !learnt.contains(text.as_str()));
        dependencies.as_of = Some(moment);
        let changes = self.changes.iter().filter(|change| !learnt.contains(change.what.as_str())).cloned().collect();
        let mut world = Self {
            dependencies,
            image: self.image.clone(),
            tools: self.tools.clone(),
            changes,
            gone: self.gone.clone(),
            pins: self.pins.clone(),
        };
        world.changed(Repair::Date, &moment.to_string(), why, Sure::Likely);
        world
    }

    /// Takes the versions of another tool's lock, where there is one.
    pub fn pinned(&mut self, why: String) -> bool {
        let Some(pins) = self.pins.clone().filter(|_| self.changes.iter().all(|c| c.repair != Repair::OtherLock))
        else {
            return false;
        };
        self.dependencies.constraints.extend(pins.pins);
        self.changed(Repair::OtherLock, &pins.file, why, Sure::Likely);
        true
    }

    /// The same without the versions of another tool's lock.
    #[must_use]
    pub fn unpinned(&self) -> Self {
        let mut world = self.clone();
        let pins: BTreeSet<&String> = self.pins.iter().flat_map(|pins| &pins.pins).collect();
        if world.changes.iter().any(|change| change.repair == Repair::OtherLock) {
            world.dependencies.constraints.retain(|text| !pins.contains(text));
            world.changes.retain(|change| change.repair != Repair::OtherLock);
        }
        world
    }

    /// Adds a package of Debian's to the base.
    pub fn library(&mut self, package: &str, why: String) -> bool {
        if self.image.packages.iter().any(|text| text == package) {
            return false;
        }
        self.image.packages.push(package.to_owned());
        self.changed(Repair::SystemLibrary, package, why, Sure::Certain);
        true
    }

    /// Builds from source with a package of Debian's, and with a compiler.
    pub fn tool(&mut self, package: &str, why: String) -> bool {
        if self.tools.iter().any(|text| text == package) {
            return false;
        }
        self.tools.push(package.to_owned());
        self.changed(Repair::BuildTool, package, why, Sure::Certain);
        true
    }
}
