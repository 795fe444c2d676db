//! Why an agent does not start, and a world of dependencies in which it does.
//!
//! An agent is tried: resolved, installed and started inside the fence, without a network. What goes wrong is understood, and
//! answered by a change of what the resolver is told, until it starts or nothing more is known.
//!
//! - [`attempt`]: trying a world; `data/probe.py` starts the agent, [`report`] is what it says
//! - [`cause`]: what an error means
//! - [`cure`]: which change answers it, from [`table`] and the past of distributions
//! - [`fit`](mod@fit): which change answers that it cannot be resolved or installed
//! - [`world`]: what the resolver is told, and why
//! - [`worked`]: when the code was worked on last
//! - [`search`](mod@search): one try after the other
//! - [`settle`](mod@settle): the whole way, from a folder to its lock

pub mod attempt;
pub mod cause;
pub mod cure;
pub mod fit;
pub mod report;
pub mod search;
pub mod settle;
pub mod table;
pub mod worked;
pub mod world;

pub use cause::{Blocked, Cause, Owner, Verdict, judge};
pub use report::Probed;
pub use search::Limits;
pub use settle::{Settled, dependencies, settle};
pub use world::World;
