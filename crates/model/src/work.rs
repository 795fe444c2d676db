//! What the steps before `run` ask of the rest: a place to run foreign code, and somebody to tell.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::manifest::Scheme;
use crate::{Bytes, Report};

/// A program that may run foreign code (a resolver, an sdist's build, the byte compiler), and the fence it
/// needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What it is for, in a word, such as `resolve`; it names the sandbox in the audit log.
    pub purpose: String,
    /// Unpacked layers that make the read-only root, lowest first.
    pub layers: Vec<PathBuf>,
    /// Host folders and files that it sees.
    pub mounts: Vec<JobMount>,
    /// Command line; the first is an absolute path in the sandbox.
    pub argv: Vec<String>,
    /// Its whole environment (trust store variables are added).
    pub env: BTreeMap<String, String>,
    /// Where it starts.
    pub cwd: PathBuf,
    /// The only hosts that it may reach.
    pub hosts: Vec<JobHost>,
    /// Memory.
    pub memory: Bytes,
    /// When it is ended.
    pub timeout: Duration,
}

/// A host folder or file that a job sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobMount {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path in the sandbox.
    pub target: PathBuf,
    /// Whether the job may write there. The runner gives such a folder to the job's uid before it starts
    /// and back to itself, file by file, when it ended.
    pub writable: bool,
}

/// A host that a job may reach.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobHost {
    /// Cleartext or TLS.
    pub scheme: Scheme,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobOutput {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// At most the last 4 MiB.
    pub stdout: String,
    /// At most the last 1 MiB.
    pub stderr: String,
    /// Hosts that it tried to reach and was denied.
    pub denied: Vec<String>,
}

/// Runs jobs inside the fence.
pub trait Runner: Sync {
    /// Runs `job` to its end.
    ///
    /// # Errors
    /// A report if the sandbox could not be made, or the time was up. A program that ends with a code
    /// other than 0 is no error here.
    fn run(&self, job: &Job) -> Result<JobOutput, Report>;
}

/// How far a step is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Step {
    /// `lock`, `base`, `dependencies`, `app`, `validate`, `run`, …
    pub name: String,
    /// What is being done, for people.
    pub doing: String,
    /// Units done (bytes or things).
    pub done: u64,
    /// Units in all, where known.
    pub total: Option<u64>,
}

/// Somebody who wants to know how far the work is, and may call it off.
pub trait Progress: Sync {
    /// Tells of a step.
    fn tell(&self, step: Step);

    /// Whether the work was called off; long steps ask often and then end with [`cancelled`].
    fn is_cancelled(&self) -> bool;
}

/// Nobody wants to know.
pub struct Silent;

impl Progress for Silent {
    fn tell(&self, _: Step) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// The report of work that was called off.
#[must_use]
pub fn cancelled(what: &str) -> Report {
    Report::new("cancelled", crate::Fault::Caller, format!("{what} was called off"))
}
