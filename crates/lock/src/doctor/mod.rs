//! Why an agent does not start, and what would cure it.
//!
//! - [`report`]: what the start probe (`data/probe.py`) says happened
//! - [`cause`]: what that means

pub mod cause;
pub mod report;

pub use cause::{Blocked, Cause, Owner, Verdict, judge};
pub use report::Probed;
