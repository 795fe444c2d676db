//! What can go wrong between a source folder and its lock.

use std::io;
use std::path::{Path, PathBuf};

use ringfence_image::ImageError;
use ringfence_image::error::{Nested, Said};
use ringfence_model::{Diagnosis, Explain, Fault, Report};

/// Why nothing could be inferred from a folder.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// Several programs could be the agent.
    #[error("`{folder}` has {} programs that could be the agent: {}", candidates.len(), candidates.join(", "))]
    AmbiguousEntry {
        /// The folder.
        folder: String,
        /// The candidates, as `file (kind)`.
        candidates: Vec<String>,
        /// The first of them, as `--entry` takes it.
        example: String,
    },
    /// A dependency file that does not parse.
    #[error("cannot read `{file}`: {why}")]
    Dependencies {
        /// The file, within the folder.
        file: String,
        /// Why.
        why: String,
    },
    /// There is nothing in the folder.
    #[error("folder `{0}` is empty")]
    Empty(String),
    /// A file or folder that cannot be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
    /// No such folder.
    #[error("there is no folder `{0}`")]
    Missing(String),
    /// Python, but nothing that starts.
    #[error("no file in `{folder}` starts a program")]
    NoEntry {
        /// The folder.
        folder: String,
        /// Some Python file in it.
        example: String,
    },
    /// No Python in the folder.
    #[error("folder `{0}` has no Python files")]
    NoPython(String),
    /// `--entry` names nothing in the folder.
    #[error("entry `{entry}` names no Python file in `{folder}`")]
    UnknownEntry {
        /// The folder.
        folder: String,
        /// What was asked for.
        entry: String,
    },
}

impl InferError {
    pub(crate) fn io(path: &Path, why: io::Error) -> Self {
        Self::Io { path: path.into(), why }
    }
}

impl Explain for InferError {
    fn code(&self) -> &'static str {
        match self {
            Self::AmbiguousEntry { .. } => "infer.ambiguous_entry",
            Self::Dependencies { .. } => "infer.dependencies",
            Self::Empty(_) => "infer.empty",
            Self::Io { .. } => "infer.io",
            Self::Missing(_) => "infer.missing_folder",
            Self::NoEntry { .. } => "infer.no_entry",
            Self::NoPython(_) => "infer.no_python",
            Self::UnknownEntry { .. } => "infer.unknown_entry",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Io { .. } => Fault::Host,
            _ => Fault::Caller,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::AmbiguousEntry { example, .. } => format!("say which with `--entry`, such as `--entry {example}`"),
            Self::Dependencies { .. } => "correct the file, or name another in `[dependencies] files`".into(),
            Self::Empty(_) | Self::Missing(_) => "name the folder that holds the agent's source".into(),
            Self::Io { .. } => return None,
            Self::NoEntry { example, .. } => {
                format!("name the file that starts the agent with `--entry`, such as `--entry {example}`")
            }
            Self::NoPython(_) => "name the folder that holds the agent's Python source".into(),
            Self::UnknownEntry { .. } => "name a file of the folder, or `module:object`".into(),
        })
    }
}

/// Why dependencies could not be locked or installed.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Nobody answers at the package index.
    #[error("cannot reach package index `{index}`")]
    IndexUnreachable {
        /// Its address without credentials.
        index: String,
        /// Why.
        #[source]
        why: Said,
    },
    /// The image crate failed.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// Reading the folder failed.
    #[error("cannot tell what the agent depends on")]
    Infer(#[source] Box<InferError>),
    /// Installing failed.
    #[error("cannot install the locked dependencies")]
    Install {
        /// The installer's core reason.
        #[source]
        why: Said,
        /// All that it said, on one line.
        whole: Box<str>,
    },
    /// A file could not be read or written.
    #[error("cannot {doing} `{}`", path.display())]
    Io {
        /// A verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
    /// A job could not be run.
    #[error("cannot {doing} inside the fence")]
    Job {
        /// What the job was for.
        doing: &'static str,
        /// The runner's report.
        #[source]
        report: Nested,
    },
    /// No `uv` on this host.
    #[error("the program `uv` is not on this host")]
    NoUv,
    /// The lock was edited, or made by another version.
    #[error("cannot use `{file}`: {why}")]
    Unusable {
        /// Which file.
        file: &'static str,
        /// Why.
        why: String,
    },
    /// No set of versions fits.
    #[error("no set of packages meets what the agent declares")]
    Unresolvable {
        /// The resolver's core reason.
        #[source]
        why: Said,
        /// All that it said, on one line.
        whole: Box<str>,
    },
    /// No lock was found with which the agent starts.
    #[error("the agent does not start with what it declares, and no versions were found with which it does")]
    Unstartable {
        /// Why it does not start as it is.
        #[source]
        why: Said,
        /// What was found and tried.
        found: Box<Diagnosis>,
    },
    /// A requirement of a kind that cannot be locked.
    #[error("requirement `{requirement}` of `{file}` cannot be locked: {why}")]
    Unsupported {
        /// As written.
        requirement: String,
        /// Where.
        file: String,
        /// Why.
        why: &'static str,
    },
    /// `uv` is there but does not do what it should.
    #[error("the program `uv` does not work")]
    Uv {
        /// What it said.
        #[source]
        why: Said,
    },
}

impl LockError {
    pub(crate) fn job(doing: &'static str, report: Report) -> Self {
        Self::Job { doing, report: Nested(Box::new(report)) }
    }
}

impl From<InferError> for LockError {
    fn from(error: InferError) -> Self {
        Self::Infer(Box::new(error))
    }
}

impl From<ImageError> for LockError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

impl Explain for LockError {
    fn code(&self) -> &'static str {
        match self {
            Self::IndexUnreachable { .. } => "lock.index_unreachable",
            Self::Image(error) => error.code(),
            Self::Infer(error) => error.code(),
            Self::Install { .. } => "lock.install",
            Self::Io { .. } => "lock.io",
            Self::Job { .. } => "lock.job",
            Self::NoUv => "lock.no_uv",
            Self::Unresolvable { .. } => "lock.unresolvable",
            Self::Unstartable { .. } => "lock.unstartable",
            Self::Unsupported { .. } => "lock.unsupported_requirement",
            Self::Unusable { .. } => "lock.unusable",
            Self::Uv { .. } => "lock.uv",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::IndexUnreachable { .. } => Fault::Peer,
            Self::Image(error) => error.fault(),
            Self::Infer(error) => error.fault(),
            Self::Job { report, .. } => report.0.fault,
            Self::Io { .. } | Self::NoUv | Self::Uv { .. } => Fault::Host,
            Self::Install { .. }
            | Self::Unresolvable { .. }
            | Self::Unstartable { .. }
            | Self::Unsupported { .. }
            | Self::Unusable { .. } => Fault::Caller,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::IndexUnreachable { .. } => {
                "check the network, the proxy variables and the index that pip or uv is configured with".into()
            }
            Self::Image(error) => return error.hint(),
            Self::Infer(error) => return error.hint(),
            Self::Install { why, .. } if why.0.contains("Failed to build") || why.0.contains("build backend") => {
                "a package has no wheel for this Python and platform and does not build without a compiler; choose a \
                 version that has one, or another `[image] python`"
                    .into()
            }
            Self::Install { .. } => "lock again, and check the versions that were chosen".into(),
            Self::Io { .. } => return None,
            Self::Job { report, .. } => return report.0.hint.clone(),
            Self::NoUv => "install it with `pip install uv`, or give its path in `RINGFENCE_UV`".into(),
            Self::Unresolvable { .. } => {
                "change the requirements that contradict each other, or `[image] python`".into()
            }
            Self::Unstartable { found, .. } => match found.questions.first() {
                Some(question) => format!(
                    "say what brings `{}` in `[dependencies] add`: {}",
                    question.module,
                    question.candidates.join(", or ")
                ),
                None => {
                    "see what was tried with `ringfence doctor --explain`, and correct what it names; `[dependencies] \
                         cure = false` starts it as it is"
                        .into()
                }
            },
            Self::Unsupported { .. } => "name a released package, or the address of a wheel".into(),
            Self::Unusable { .. } => "lock again".into(),
            Self::Uv { .. } => "install a current one with `pip install --upgrade uv`".into(),
        })
    }

    fn may_retry(&self) -> bool {
        match self {
            Self::IndexUnreachable { .. } => true,
            Self::Image(error) => error.may_retry(),
            Self::Job { report, .. } => report.0.may_retry,
            _ => false,
        }
    }
}

/// Attaches a verb and a path to a file system failure.
pub(crate) trait OnPath<T> {
    fn on(self, doing: &'static str, path: &Path) -> Result<T, LockError>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on(self, doing: &'static str, path: &Path) -> Result<T, LockError> {
        // A full disk has one error of its own, whoever meets it.
        self.map_err(|why| match ImageError::io(doing, path, why) {
            ImageError::StoreIo { why, .. } => LockError::Io { doing, path: path.into(), why },
            full => LockError::Image(Box::new(full)),
        })
    }
}
