//! The tamper-evident log: entries, Merkle tree, tiles, signed checkpoints, proofs; and the [`Record`]
//! trait through which every effect announces what it is about to do.
//!
//! It does not decide anything and knows no network. It leans on `model` alone.
//!
//! - [`entry`]: what one entry says
//! - [`spool`]: how an entry is durable before the thing it describes happens

pub mod entry;
pub mod spool;

pub use entry::{CallIntent, CallOutcome, Direction, Entry, Event, Outcome};
pub use spool::{Origin, Record, RecordError, Spool};
