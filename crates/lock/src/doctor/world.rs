//! A world: what the resolver is told, and why. A repair makes another of it.

use std::collections::BTreeSet;

use ringfence_model::manifest::{Dependencies, Image};
use serde::{Deserialize, Serialize};

use crate::declared::name_of;

/// What kind of change cures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// What the agent imports and does not declare is added.
    UndeclaredImport,
    /// What a library imports lazily and does not require is added.
    OptionalDependency,
    /// A distribution is held before the release that took a module or a name out.
    MovedName,
    /// Compiled packages are held to versions that fit each other.
    BinaryFit,
    /// A distribution is held before a release whose calls changed.
    ChangedCall,
    /// Releases after a date do not count.
    Date,
    /// Pins that fight are loosened.
    PinConflict,
    /// A distribution that is none, or hides a module of Python's, is left out.
    LeftOut,
    /// A library of the system is added to the base.
    SystemLibrary,
}

/// How sure a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sure {
    /// It follows from what was seen.
    Certain,
    /// It is what most likely was meant.
    Likely,
}

/// A change, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its kind.
    pub repair: Repair,
    /// What is told to the resolver, such as `langchain<0.2`.
    pub what: String,
    /// Why, for people.
    pub why: String,
    /// How sure.
    pub sure: Sure,
}

/// What the resolver is told.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Requirements, bounds and the date.
    pub dependencies: Dependencies,
    /// Python and Debian packages.
    pub image: Image,
    /// How it differs from what the folder says.
    pub changes: Vec<Change>,
}

impl World {
    /// What the folder says.
    #[must_use]
    pub const fn plain(dependencies: Dependencies, image: Image) -> Self {
        Self { dependencies, image, changes: Vec::new() }
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
    pub fn dated(&self, moment: jiff::Timestamp, why: String) -> Self {
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
        let mut world = Self { dependencies, image: self.image.clone(), changes };
        world.changed(Repair::Date, &moment.to_string(), why, Sure::Likely);
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
}
