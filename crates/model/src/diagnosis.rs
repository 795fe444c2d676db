//! What was found of an agent's dependencies: whether it starts, what was changed so that it does, and on what evidence.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What kind of change cures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Repair {
    /// What the agent imports and does not declare is added.
    UndeclaredImport,
    /// The program that starts the agent is added.
    Launcher,
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
    /// The versions of another tool's lock are taken.
    OtherLock,
    /// Pins that fight are loosened.
    PinConflict,
    /// A distribution that is none, or hides a module of Python's, is left out.
    LeftOut,
    /// A released distribution stands for a repository or a path.
    Released,
    /// A version that has a wheel stands for one that does not build.
    Wheel,
    /// Another Python is taken.
    Python,
    /// A library of the system is added to the base.
    SystemLibrary,
    /// What builds a package from source is laid beneath its build; it is in no image.
    BuildTool,
}

impl Repair {
    /// Its id.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::UndeclaredImport => "undeclared-import",
            Self::Launcher => "launcher",
            Self::OptionalDependency => "optional-dependency",
            Self::MovedName => "moved-name",
            Self::BinaryFit => "binary-fit",
            Self::ChangedCall => "changed-call",
            Self::Date => "date",
            Self::OtherLock => "other-lock",
            Self::PinConflict => "pin-conflict",
            Self::LeftOut => "left-out",
            Self::Released => "released",
            Self::Wheel => "wheel",
            Self::Python => "python",
            Self::SystemLibrary => "system-library",
            Self::BuildTool => "build-tool",
        }
    }
}

/// How sure a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Sure {
    /// It follows from what was seen.
    Certain,
    /// It is what most likely was meant.
    Likely,
}

/// A change to what the resolver is told, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// What only a person can answer, since no answer is sure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Question {
    /// What is missing.
    pub module: String,
    /// What may bring it, the most used first.
    pub candidates: Vec<String>,
}

/// Whether an agent starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// It does.
    Starts,
    /// It does, and stops for want of a key, a host, a service, a file, a device or somebody who types.
    Waits,
    /// Its own code raises an error; its dependencies are not why.
    Broken,
    /// Its dependencies are wrong.
    Fails,
}

/// One try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Try {
    /// How it differed from the one before, in words.
    pub what: String,
    /// What came of it, in words.
    pub result: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// What was locked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Locked {
    /// The digest of the lock.
    pub digest: String,
    /// The version of Python.
    pub python: String,
    /// How many Python packages there are.
    pub packages: usize,
}

/// What was found of an agent's dependencies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Diagnosis {
    /// Whether it starts.
    pub health: Health,
    /// What it waits for, or why it does not start, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was wrong with what the folder says, in words; empty if nothing was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
    /// What was changed so that it starts.
    pub changes: Vec<Change>,
    /// What only a person can answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub questions: Vec<Question>,
    /// What was tried, in order; empty if the lock that is there was taken.
    pub tries: Vec<Try>,
    /// Releases after it do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Timestamp>,
    /// What was locked, if that was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Locked>,
}
