//! Phase four: what the content of a call gives away, out and back.
//!
//! Placeholders where they do not belong are searched for in [`crate::misdirect`], the real secret, which an upstream might
//! echo, in [`crate::echo`]; what is said to language models and tools is understood in [`crate::llm`] and
//! [`crate::rpc`]. Bodies stream, but for those that a decision, a credential or a search needs whole.

/// The largest body that is read whole.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
