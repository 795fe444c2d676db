//! Linux: namespaces, cgroups, seccomp, Landlock, mounts, capture of a network namespace. The only crate
//! with `unsafe` in it.
//!
//! It decides nothing: it does to the kernel what it is told, and says by name what the kernel refused.
//! It leans on `model` alone.
//!
//! - [`netns`], [`capture`]: a namespace without wires, and the program that hands all of it to the gate
#![allow(unsafe_code, reason = "this crate is where it lives; each block states its SAFETY argument")]

pub mod capture;
pub mod netns;
