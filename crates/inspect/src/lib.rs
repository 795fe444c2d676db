//! Reads what agents and upstreams say to each other: JSON, streams, calls of language models, MCP.
//!
//! Bytes go in, and what they mean comes out, or a problem with a stable code. Nothing here does I/O, reads a clock or
//! draws randomness, nothing here decides, and nothing is sent or held back. Whatever bytes come, time grows with their
//! number, memory and depth have a bound that the caller sets, and nothing panics. It leans on `model`.
//!
//! - [`json`]: strict JSON, which no other reader reads otherwise
//! - [`sse`], [`ndjson`], [`eventstream`]: streams of messages, from chunks however they are cut
//! - [`llm`]: calls of language models, in the shapes of the APIs that are in use
//! - [`price`]: what calls cost
//! - [`schema`]: what a value may be
//! - [`mcp`]: messages of the Model Context Protocol, and of agents to each other

mod base64;
pub mod eventstream;
pub mod json;
pub mod llm;
pub mod mcp;
pub mod ndjson;
pub mod price;
pub mod schema;
pub mod sse;
