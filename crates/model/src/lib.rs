//! The nouns of Ringfence: ids, digests, hosts, sizes, the manifest, secrets that cannot be printed.
//!
//! Does no I/O, reads no clock, draws no randomness. Everything else leans on this crate; it leans on
//! nothing of ours.
//!
//! - [`AgentName`], [`SandboxId`], [`CallId`], [`Digest`]: ids and names by content
//! - [`HostName`], [`HostPattern`]: where a call goes, and which hosts a grant covers
//! - [`Bytes`]: sizes with their unit in the type
//! - [`Manifest`]: what `ringfence.toml` means; [`manifest::ManifestFile`] is what was written
//! - [`diagnosis`]: what was found of an agent's dependencies
//! - [`SecretText`]: a secret that redacts itself
//! - [`work`]: what the steps before `run` ask of the rest
//! - [`Explain`], [`Report`]: how an error answers what, on what, why, and what to do next

pub mod diagnosis;
pub mod digest;
pub mod host;
pub mod id;
pub mod manifest;
pub mod report;
pub mod secret;
pub mod units;
pub mod work;

pub use diagnosis::Diagnosis;
pub use digest::Digest;
pub use host::{HostName, HostPattern};
pub use id::{AgentName, CallId, SandboxId};
pub use manifest::Manifest;
pub use report::{Explain, Fault, Report};
pub use secret::SecretText;
pub use units::Bytes;
