//! The control API of a host: one definition, from which the trait, the server and the client derive.
//!
//! It does nothing to a sandbox itself; the binary implements [`Control`]. It leans on `model` and `audit`.
//!
//! - [`api`]: the verbs and what they carry
//! - [`server`]: the verbs over a Unix socket, with the caller's kernel-given identity
//! - [`client`]: the same verbs from outside
//! - `document`, with the feature `schema`: the same verbs as an OpenAPI document

pub mod api;
pub mod client;
mod define;
#[cfg(feature = "schema")]
pub mod document;
pub mod server;

pub use api::{Client, Control};
pub use server::{Caller, Sink};
