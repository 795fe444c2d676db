//! Linux: namespaces, cgroups, seccomp, Landlock, mounts, capture of a network namespace. The only crate
//! with `unsafe` in it.
//!
//! It decides nothing: it does to the kernel what it is told, and says by name what the kernel refused.
//! It leans on `model` alone.
//!
//! - [`netns`], [`capture`]: a namespace without wires, and the program that hands all of it to the gate
//! - [`seccomp`], [`landlock`]: what a process may ask of the kernel, and which files it may touch
//! - [`cgroup`], [`disk`]: how much memory, how many tasks, how much of a disk
//! - [`memory`]: giving back what only starting needed; [`shared`]: counters that outlive the processes that count
//! - [`spawn`], [`process`]: starting our own processes, and what they do to themselves
#![allow(unsafe_code, reason = "this crate is where it lives; each block states its SAFETY argument")]

pub mod attack;
pub mod capture;
pub mod cgroup;
pub mod confine;
pub mod disk;
pub mod fd;
pub mod join;
pub mod landlock;
pub mod memory;
pub mod netns;
pub mod process;
pub mod seccomp;
pub mod shared;
pub mod spawn;
