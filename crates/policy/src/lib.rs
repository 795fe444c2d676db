//! The one place that says no: compiles grants and guard-rails, and decides.
//!
//! [`Policy::decide`] is total, pure and free of panics: the same request and the same policy give the
//! same [`Decision`] for the gate, for `--explain`, for the red team and for a proof. Nothing here does
//! I/O, reads a clock or draws randomness, and nothing here carries a decision out. It leans on `model`.
//!
//! - [`decide`]: a [`Request`] goes in, [`Decision::Allow`] with a [`Permit`] or [`Decision::Deny`] comes out
//! - [`compile`]: from manifest grants and guard-rail files to Cedar, checked against the schema
//! - [`call`]: a call in words, for tests and questions
//! - [`path`]: the one form of a path that is decided and sent
//! - [`other`]: what is asked about protocols other than HTTP
//! - [`ssh`]: what is asked about git over SSH
//! - `index`: picks the rules that can matter, so that a decision costs the same with ten grants and a thousand

pub mod call;
pub mod compile;
pub mod decide;
mod index;
pub mod other;
pub mod path;
pub mod ssh;

#[cfg(test)]
mod tests;

pub use call::{Call, CallError};
pub use compile::{Policy, PolicyError, SCHEMA};
pub use decide::{Decision, Denial, HttpRequest, IngressRequest, LlmCall, Permit, Request, RpcRequest};
pub use other::PostgresQuery;
pub use ssh::{SshExec, SshPush};
