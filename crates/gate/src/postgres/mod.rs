//! PostgreSQL, statement by statement.

pub mod auth;
pub mod classify;
pub mod lex;
mod settings;
pub mod wire;

#[cfg(test)]
mod tests;
