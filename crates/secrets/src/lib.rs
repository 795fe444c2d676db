//! The vault: secrets sealed at rest, and where secrets come from.
//!
//! It does not decide who may use a secret (that is `policy`), and does not put one into a call (that is `gate`).
//! It leans on `model` alone.
//!
//! - [`Vault`]: seal, open, remove
//! - [`placeholder()`]: what an agent holds in a secret's stead
//! - [`fetch`]: read a secret from where a manifest says it is, with the rights of the caller

mod placeholder;
mod source;
mod vault;

pub use placeholder::{NoRandomness, placeholder};
pub use source::{SourceError, fetch, is_usable, one_line};
pub use vault::{Vault, VaultError};
