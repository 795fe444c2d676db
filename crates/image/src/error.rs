//! What can go wrong between a source folder and a verified image.

use std::io;
use std::path::{Path, PathBuf};

use ringfence_model::report::one_line;
use ringfence_model::{Digest, Explain, Fault, Report};

/// Why an image could not be planned, built, stored or verified.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A source file or link that cannot go into an image.
    #[error("cannot put `{path}` into the image: {why}")]
    AppFile {
        /// Path within the folder.
        path: String,
        /// Why.
        why: String,
    },
    /// The byte compiler ended badly.
    #[error("cannot byte-compile {what}: the compiler ended with code {code}")]
    Bytecode {
        /// Which tree.
        what: String,
        /// Exit code.
        code: i32,
        /// Its last words.
        #[source]
        said: Said,
    },
    /// The work was called off.
    #[error("{0} was called off")]
    Cancelled(&'static str),
    /// The lister of libraries ended badly.
    #[error("cannot list the libraries of the base: `ldconfig` ended with code {code}")]
    LibraryCache {
        /// Exit code.
        code: i32,
        /// Its last words.
        #[source]
        said: Said,
    },
    /// A job could not be run.
    #[error("cannot {doing} inside the fence")]
    Job {
        /// What the job was for.
        doing: String,
        /// The runner's report.
        #[source]
        report: Nested,
    },
    /// The first word of the entry is no program of the image.
    #[error("the image has no program `{program}` to start")]
    EntryMissing {
        /// The program.
        program: String,
        /// What to do.
        hint: String,
    },
    /// A package whose contents try to leave their place, or are no package at all.
    #[error("package `{package}` is refused: {why}")]
    Hostile {
        /// Package or layer.
        package: String,
        /// Why.
        why: String,
    },
    /// An interpreter of the host that an image cannot have.
    #[error("the CPython at `{}` cannot go into an image: {why}", path.display())]
    Interpreter {
        /// Its prefix, or a file of it.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The interpreter of a plan is not on this host.
    #[error("CPython {version}, as it was locked, is not on this host")]
    InterpreterMissing {
        /// Its version.
        version: String,
        /// What is there instead.
        #[source]
        why: Said,
        /// Where it is looked for.
        places: String,
    },
    /// A package that the suite does not have.
    #[error("suite `{suite}` has no package `{name}`")]
    NoPackage {
        /// The suite.
        suite: String,
        /// The package.
        name: String,
    },
    /// Nothing has the Python version wanted.
    #[error("neither a Debian suite known here nor this host has Python {python}")]
    NoPython {
        /// The version wanted.
        python: String,
        /// Where interpreters of the host are looked for.
        places: String,
        /// The versions that could be had.
        known: String,
    },
    /// A package that no image may have.
    #[error("package `{name}` may not be in an image: shells, package managers and the like stay out")]
    PackageRefused {
        /// The package.
        name: String,
    },
    /// A package that brings Debian's Python beside another.
    #[error("package `{package}` is of Debian's Python {debians}, and the image has Python {python}")]
    TwoPythons {
        /// The package.
        package: String,
        /// The image's.
        python: String,
        /// The suite's.
        debians: String,
    },
    /// A dependency that no package meets.
    #[error("package `{package}` needs `{needs}`, which nothing in suite `{suite}` meets")]
    Unmet {
        /// The suite.
        suite: String,
        /// The package.
        package: String,
        /// The dependency, as written.
        needs: String,
    },
    /// The mirror no longer has a locked package.
    #[error("no mirror has package file `{path}` any more")]
    MirrorGone {
        /// Pool path.
        path: String,
    },
    /// Bytes other than those that were promised.
    #[error("`{url}` is not what was promised")]
    MirrorHash {
        /// Address.
        url: String,
        /// What differs.
        #[source]
        why: Said,
    },
    /// A release file whose signature is not believed.
    #[error("the signature of `{url}` is not believed")]
    MirrorSignature {
        /// Address.
        url: String,
        /// The verifier's word.
        #[source]
        why: Said,
    },
    /// A release file that is too old, or from the future.
    #[error("`{url}` is not current: {why}")]
    MirrorStale {
        /// Address.
        url: String,
        /// What is wrong with its dates.
        why: String,
    },
    /// A release or package list that does not parse.
    #[error("`{url}` cannot be read: {why}")]
    MirrorSyntax {
        /// Address.
        url: String,
        /// Why.
        why: String,
    },
    /// No Debian source in the host's configuration, nor in the manifest.
    #[error("no Debian package source is configured for suite `{suite}`")]
    MirrorUnconfigured {
        /// The suite.
        suite: String,
    },
    /// Nobody answers, or not with what was asked for.
    #[error("cannot fetch `{url}`")]
    MirrorUnreachable {
        /// Address without credentials.
        url: String,
        /// Why.
        #[source]
        why: Said,
    },
    /// Stored bytes that no longer match their name.
    #[error("stored {what} `{digest}` is damaged")]
    StoreCorrupt {
        /// Blob or layer.
        what: &'static str,
        /// Its name.
        digest: Digest,
    },
    /// The disk is full.
    #[error("no space is left on the disk that holds `{}`", path.display())]
    StoreFull {
        /// What was being written.
        path: PathBuf,
    },
    /// The file system said no.
    #[error("cannot {doing} `{}`", path.display())]
    StoreIo {
        /// A verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
    /// A blob or tag that is not there.
    #[error("the store has no {what} `{name}`")]
    StoreMissing {
        /// `image`, `blob`, `tag`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A stored document that does not parse, or says what it must not.
    #[error("stored {what} `{name}` cannot be used: {why}")]
    StoreSyntax {
        /// Which document.
        what: &'static str,
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },
}

/// What somebody else said, as a cause.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Said(pub String);

/// A report from below, as a cause.
#[derive(Debug)]
pub struct Nested(pub Box<Report>);

impl std::fmt::Display for Nested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}] {}", self.0.code, self.0.message)?;
        self.0.causes.iter().try_for_each(|cause| write!(f, ": {cause}"))
    }
}

impl std::error::Error for Nested {}

impl ImageError {
    /// Makes an error of a file system failure; a full disk gets its own.
    pub fn io(doing: &'static str, path: &Path, why: io::Error) -> Self {
        let full = matches!(why.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        if full { Self::StoreFull { path: path.into() } } else { Self::StoreIo { doing, path: path.into(), why } }
    }

    /// Wraps what a runner reported.
    #[must_use]
    pub fn job(doing: impl Into<String>, report: Report) -> Self {
        Self::Job { doing: doing.into(), report: Nested(Box::new(report)) }
    }
}

impl Explain for ImageError {
    fn code(&self) -> &'static str {
        match self {
            Self::AppFile { .. } => "image.app_file",
            Self::Bytecode { .. } => "image.bytecode",
            Self::Cancelled(_) => "cancelled",
            Self::EntryMissing { .. } => "image.entry_missing",
            Self::Hostile { .. } => "image.hostile_package",
            Self::Interpreter { .. } => "image.interpreter",
            Self::InterpreterMissing { .. } => "image.interpreter_missing",
            Self::Job { .. } => "image.job",
            Self::LibraryCache { .. } => "image.library_cache",
            Self::MirrorGone { .. } => "mirror.gone",
            Self::MirrorHash { .. } => "mirror.hash",
            Self::MirrorSignature { .. } => "mirror.signature",
            Self::MirrorStale { .. } => "mirror.stale",
            Self::MirrorSyntax { .. } => "mirror.syntax",
            Self::MirrorUnconfigured { .. } => "mirror.unconfigured",
            Self::MirrorUnreachable { .. } => "mirror.unreachable",
            Self::NoPackage { .. } => "image.no_package",
            Self::NoPython { .. } => "image.no_python",
            Self::PackageRefused { .. } => "image.package_refused",
            Self::StoreCorrupt { .. } => "store.corrupt",
            Self::StoreFull { .. } => "store.full",
            Self::StoreIo { .. } => "store.io",
            Self::StoreMissing { .. } => "store.missing",
            Self::StoreSyntax { .. } => "store.syntax",
            Self::TwoPythons { .. } => "image.two_pythons",
            Self::Unmet { .. } => "image.unmet",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::AppFile { .. }
            | Self::Cancelled(_)
            | Self::EntryMissing { .. }
            | Self::NoPackage { .. }
            | Self::NoPython { .. }
            | Self::PackageRefused { .. }
            | Self::StoreMissing { .. }
            | Self::TwoPythons { .. } => Fault::Caller,
            Self::Interpreter { .. }
            | Self::InterpreterMissing { .. }
            | Self::MirrorUnconfigured { .. }
            | Self::StoreCorrupt { .. }
            | Self::StoreFull { .. }
            | Self::StoreIo { .. } => Fault::Host,
            Self::Hostile { .. }
            | Self::MirrorGone { .. }
            | Self::MirrorHash { .. }
            | Self::MirrorSignature { .. }
            | Self::MirrorStale { .. }
            | Self::MirrorSyntax { .. }
            | Self::MirrorUnreachable { .. }
            | Self::Unmet { .. } => Fault::Peer,
            Self::Bytecode { .. } | Self::LibraryCache { .. } | Self::StoreSyntax { .. } => Fault::Us,
            Self::Job { report, .. } => report.0.fault,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::EntryMissing { hint, .. } => hint.clone(),
            Self::Interpreter { .. } => {
                "choose another `[image] suite` or `[image] python`, or install another build of this version".into()
            }
            Self::InterpreterMissing { version, places, .. } => format!(
                "install the same build of CPython {version} where it is looked for ({places}), or remove `pylock.toml` to lock \
                 with what is there"
            ),
            Self::Job { report, .. } => return report.0.hint.clone(),
            Self::MirrorGone { .. } => "lock the base again: the mirror keeps only the newest versions".into(),
            Self::MirrorSignature { .. } => {
                "install the package `debian-archive-keyring`, or set `Signed-By` in the host's apt sources".into()
            }
            Self::MirrorStale { .. } => "check the host's clock, then the mirror".into(),
            Self::MirrorUnconfigured { .. } => {
                "set `[image] mirror` in the manifest to the address of a Debian mirror".into()
            }
            Self::MirrorUnreachable { .. } => {
                "check the network, the proxy variables, and the host's apt sources or `[image] mirror`".into()
            }
            Self::NoPackage { .. } => "check `[image] packages` and `[image] suite` in the manifest".into(),
            Self::NoPython { known, python, places } => format!(
                "set `[image] python` to one of {known}, or install it where it is looked for, as `uv python install {python}` \
                 does: {places}"
            ),
            Self::TwoPythons { .. } => "take it, or what needs it, out of `[image] packages`".into(),
            Self::StoreCorrupt { .. } => "it was removed; build again to make it anew".into(),
            Self::StoreFull { .. } => "free some space on that disk, and try again".into(),
            Self::StoreMissing { what: "image" | "blob", .. } => "build it again".into(),
            _ => return None,
        };
        Some(one_line(&hint))
    }

    fn may_retry(&self) -> bool {
        match self {
            Self::MirrorHash { .. } | Self::MirrorStale { .. } | Self::MirrorUnreachable { .. } => true,
            Self::Job { report, .. } => report.0.may_retry,
            _ => false,
        }
    }
}

/// Attaches a verb and a path to a file system failure.
pub(crate) trait OnPath<T> {
    /// Says what was being done on what.
    fn on(self, doing: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T> OnPath<T> for io::Result<T> {
    fn on(self, doing: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|why| ImageError::io(doing, path, why))
    }
}

/// Attaches a verb and a path to a `rustix` failure.
impl<T> OnPath<T> for Result<T, rustix::io::Errno> {
    fn on(self, doing: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|why| ImageError::io(doing, path, why.into()))
    }
}
