//! From a source folder to pinned inputs: looks at what it declares and imports, resolves, locks, installs.
//!
//! Nothing of the folder runs here. Resolving and installing may run foreign code (source distributions), so both are
//! jobs given to a [`Runner`](ringfence_model::work::Runner) with the package index as their only host. `uv` does the
//! resolving; this crate tells it what is wanted and reads what it says.
//!
//! Leans on `model` and on `image` (the store, the base plan, HTTP).

pub mod declared;
pub mod doctor;
pub mod error;
pub mod export;
pub mod history;
mod index;
pub mod infer;
mod install;
mod lockfile;
mod others;
mod python;
mod resolve;
mod syntax;
mod uv;

pub use declared::{Declared, Requirement, Seen};
pub use error::{InferError, LockError};
pub use infer::{Inference, Options, look, requirements};
pub use install::{InstallInput, install};
pub use lockfile::{FILE_NAME, Lock, PythonPackage};
pub use resolve::{LockInput, Upgrade, is_current, lock};
pub use uv::{ENV_UV, Uv};
