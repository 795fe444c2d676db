//! Calls of language models, in the shapes of the APIs that are in use.
//!
//! [`Route::of`] tells from method and path which API a call belongs to; [`Route::read`] reads the body and gives the
//! [`Request`]: model, bounds, tools, prompts and what else a policy asks for, in one form for all APIs. What contradicts
//! itself, or what some reader would read otherwise, is an error.
//!
//! [`edit`] changes a call before it is sent on; [`Meter`] counts its answer while that goes by and gives a [`Usage`];
//! [`Refusal`] is the answer of a call that is not sent on, or the end of a stream that may not go on.

pub mod edit;
mod error;
mod fields;
pub mod form;
mod meter;
mod read;
mod refusal;
mod request;
mod route;
mod scan;
mod shape;
mod usage;
mod weigh;

#[cfg(test)]
mod tests;

pub use error::LlmError;
pub use meter::{Framing, Meter, Metered};
pub use refusal::{Answer, Reason, Refusal};
pub use request::{Format, Reading, Reference, ReferenceKind, Request, Tool, ToolChoice, ToolKind, prompt_digest};
pub use route::Route;
pub use shape::{Api, Shape, Work};
pub use usage::{Source, Suspicion, Usage};
pub use weigh::{IMAGE_TOKENS, PAGE_BYTES_PER_TOKEN, SOUND_BYTES_PER_TOKEN, estimate_tokens};
