//! What a package index knows of a distribution's past: its releases with their dates, and what was in them.
//!
//! Whether a release has a module or a name is read from its wheel, of which only the table of contents and that module's
//! source are fetched. Nothing is installed and nothing runs.
//!
//! - [`release`]: the releases; [`wheel`]: a look into one; [`past`]: when something went, or came
//!
//! # Source
//! PEP 503, 691 and 700 (the index), PEP 427 (wheels), PEP 440 (versions).

pub mod past;
pub mod release;
pub mod wheel;

pub use past::{Past, Span, Wanted};
pub use release::{Release, releases};
pub use wheel::{Contents, Has};

/// Why the past cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The index has no such distribution.
    #[error("the package index has no `{0}`")]
    NoDistribution(String),
    /// The index or its files did not answer.
    #[error("cannot read the releases of `{name}`: {why}")]
    Unreachable {
        /// The distribution.
        name: String,
        /// Why.
        why: String,
    },
    /// What it answered is not what an index answers.
    #[error("cannot understand what the index says of `{name}`: {why}")]
    Syntax {
        /// The distribution.
        name: String,
        /// Why.
        why: String,
    },
    /// The caller called it off.
    #[error("reading the releases was called off")]
    Cancelled,
}
