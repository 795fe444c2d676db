//! JSON-RPC messages of the Model Context Protocol, and of the Agent2Agent Protocol.
//!
//! [`Payload::parse`] reads what a client or a server sends: one message, or a batch. Each [`Message`] says what it is,
//! which [`Method`] it names, and what that is about: a tool, a prompt, a resource. [`Pending`] knows which answer belongs
//! to which request. [`List`] takes tools, prompts and resources out of a server's lists and pins what is left by digest;
//! [`answer`] makes the answers of requests that are not sent on.
//!
//! Nothing here is refused for being unknown: a method of a later revision is [`Method::Other`]. What two readers would
//! read differently is refused.
//!
//! # Source
//! JSON-RPC 2.0; Model Context Protocol, revisions 2024-11-05 to 2026-07-28; Agent2Agent Protocol, 0.2 to 1.0.

pub mod answer;
mod list;
mod message;
mod method;
mod pending;

#[cfg(test)]
mod tests;

pub use list::{Catalogue, Change, Definition, Filtered, Introduction, List};
pub use message::{FromServer, Id, Kind, McpError, Message, Payload, ToolCall, headers_agree};
pub use method::{Form, Method, Protocol, Sender};
pub use pending::{IdProblem, Pending};
