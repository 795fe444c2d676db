//! The life of a sandbox: create, start, freeze, resume, destroy; and the shim that holds it.
//!
//! It decides nothing about calls and knows nothing of what the gate is told: the gate's configuration passes
//! through unread. It leans on `model`, `audit` and `sys`.
//!
//! - [`spec`]: what a sandbox is made from
//! - [`launch`]: the supervisor's side of a start
//! - [`shim`]: the process that holds one sandbox
//! - [`root`], [`runtime`], [`enter`]: its files, its description, its last steps inside
//! - [`control`]: how the supervisor talks to a shim
//! - [`probe`]: attacks on the fence from inside

pub mod control;
pub mod enter;
pub mod error;
pub mod launch;
pub mod log;
pub mod probe;
pub mod root;
pub mod runtime;
pub mod shim;
pub mod spec;

pub use error::SandboxError;
pub use spec::SandboxSpec;
