//! The tamper-evident log: entries, Merkle tree, tiles, signed checkpoints, proofs; and the [`Record`]
//! trait through which every effect announces what it is about to do.
//!
//! It does not decide anything and knows no network. It leans on `model` alone.
//!
//! - [`entry`]: what one entry says
//! - [`spool`]: how an entry is durable before the thing it describes happens
//! - [`log`]: how entries become part of the log
//! - [`otel`]: how a call is told to others
//! - [`verify`]: how anybody proves it whole
//! - [`capture`]: bodies that are kept beside it, and [`age`]: so that only the holder of a key reads them
//! - [`rfc6962`], [`tiles`], [`checkpoint`]: the standards it follows

pub mod age;
pub mod capture;
pub mod checkpoint;
pub mod entry;
pub mod log;
pub mod otel;
pub mod rfc6962;
pub mod spool;
pub mod tiles;
pub mod verify;

pub use checkpoint::{Checkpoint, Signer, Verifier};
pub use entry::{
    CallIntent, CallOutcome, Captured, CapturedBody, Direction, Entry, Event, GitAsked, LlmAsked, LlmUsed, Outcome,
    RpcSaid, SqlAsked,
};
pub use log::{Log, LogError, Moved};
pub use spool::{Origin, Record, RecordError, Spool};
pub use verify::{Problem, Verification, verify};
