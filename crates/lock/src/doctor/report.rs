//! What the start probe reports: facts, as `data/probe.py` writes them.

use serde::Deserialize;

/// The largest report that the probe writes.
pub const MAX_REPORT: usize = 16 << 20;

/// What happened when an agent was started, or modules imported.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Probed {
    /// How far it came.
    pub phase: Phase,
    /// Whether it answered anything.
    pub answered: bool,
    /// Ports that it listens on.
    pub listening: Vec<u16>,
    /// Pages that were asked for.
    pub requests: Vec<Asked>,
    /// Its exit status, if it ended of its own accord.
    pub exit: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it waits for somebody to type.
    pub waits_for_input: bool,
    /// What was raised.
    pub errors: Vec<Raised>,
    /// What became of each import that was tried.
    pub imports: Vec<Imported>,
    /// The last that it printed.
    pub stdout: String,
    /// The same of its errors.
    pub stderr: String,
    /// Hosts that it could not reach.
    pub refused: Vec<String>,
    /// Why the probe itself failed.
    pub probe_error: Option<String>,
}

/// How far an agent came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its process was started.
    #[default]
    Spawn,
    /// A port of it listens.
    Listen,
    /// It answered.
    Answer,
    /// A user's session began.
    Session,
    /// All that was asked is answered, and it lives; or it ran to its end.
    Settled,
}

/// A page that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Asked {
    /// Its path.
    pub path: String,
    /// The answer's status, if there was an answer.
    pub status: Option<u16>,
}

/// An error of Python's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Raised {
    /// Its type, with or without a module.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its text.
    pub message: String,
    /// Where it was raised, oldest call first.
    pub frames: Vec<Frame>,
    /// Errors that led to it.
    pub chain: Vec<Raised>,
    /// Which text it was found in.
    #[serde(rename = "where")]
    pub seen_in: String,
}

impl Raised {
    /// Its type without a module.
    #[must_use]
    pub fn name(&self) -> &str {
        self.kind.rsplit('.').next().unwrap_or(&self.kind)
    }
}

/// A place in code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Frame {
    /// Its file.
    pub file: String,
    /// Its line.
    pub line: Option<u64>,
    /// Its function.
    pub function: String,
    /// The text of the line.
    pub code: String,
}

/// What became of an import.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Imported {
    /// What was imported.
    pub name: String,
    /// Whether that went well.
    pub ok: bool,
    /// What was raised, if not.
    pub error: Option<Raised>,
    /// Whether the module is there and the name in it is not.
    #[serde(default)]
    pub missing_attribute: bool,
}

impl Probed {
    /// Reads a report.
    ///
    /// # Errors
    /// Why it is none, in words.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.len() > MAX_REPORT {
            return Err(format!("it is larger than {} MiB", MAX_REPORT >> 20));
        }
        serde_json::from_str(text).map_err(|e| e.to_string())
    }
}
