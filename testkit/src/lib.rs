//! What stands for the world outside the fence: a model service, a web site, an attacker's host, and a person
//! at a browser.
//!
//! It is no part of the product: nothing in here decides, confines or records. It leans on no crate of the
//! product, so that what it shows is what anybody outside would see.
//!
//! - [`ca`]: a throw-away certificate authority
//! - [`https`]: the HTTPS server that the fakes share
//! - [`model_server`]: a model service that speaks as OpenAI's does, and does what it is told, by anybody;
//!   [`claude_server`]: one that speaks as Anthropic's does
//! - [`manifest`]: an example's manifest, with its upstreams on this machine
//! - [`site`]: a web site with a report on it, and an instruction hidden in the report
//! - [`web`]: a web server for clients of many kinds; [`git`]: repositories over HTTP; [`postgres`]: a database;
//!   [`sshd`]: repositories over SSH
//! - [`canary`]: listeners where stolen data would arrive
//! - [`streamlit`]: a person at a browser, for Streamlit's pages; [`streamlit_proto`]: the messages it speaks

pub mod ca;
pub mod canary;
pub mod claude_server;
pub mod git;
pub mod https;
pub mod manifest;
pub mod model_server;
pub mod postgres;
pub mod site;
pub mod sshd;
pub mod streamlit;
// One file for the product's page probe and this person at a browser.
#[path = "../../crates/ringfence/src/supervisor/streamlit_proto.rs"]
pub mod streamlit_proto;
pub mod web;
