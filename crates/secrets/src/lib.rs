//! The vault: secrets sealed at rest, and where secrets come from.
//!
//! It does not decide who may use a secret (that is `policy`), and does not put one into a call (that is `gate`).
//! It leans on `model` alone.
//!
//! - [`Vault`]: seal, open, remove
//! - [`fetch`]: read a secret from where a manifest says it is, with the rights of the caller

mod source;
mod vault;

pub use source::{SourceError, fetch, placeholder};
pub use vault::{Vault, VaultError};
