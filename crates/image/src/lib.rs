//! Images: assembled here, without daemon, Dockerfile or shell, the same to the bit on every machine.
//!
//! Layers, lowest first: base (a minimal Debian of signed packages) → python → dependencies → app → profile.
//! This crate plans and builds the base, packs every layer, keeps them in an OCI layout, and verifies them again
//! before anything starts. It does *not* resolve or install Python packages (`lock` does, and hands the result to
//! [`build_dependencies`]), does not sign, and starts nothing but jobs given to a
//! [`Runner`](ringfence_model::work::Runner).
//!
//! - [`Store`]: where everything is kept; tags; collection
//! - [`plan_base`], [`build_base`]: which Debian packages, and the two lowest layers
//! - [`Interpreter`]: the python layer from a CPython of the host, where no suite has the version wanted
//! - [`build_dependencies`], [`build`]: the rest, and the image
//! - [`Store::verify`] → [`VerifiedImage`]: what may be started
//! - [`fetch`]: bounded HTTP, for this crate and `lock`
//!
//! Leans on `model`.

mod app;
mod assemble;
mod base;
mod bytecode;
pub mod debian;
pub mod error;
pub mod fetch;
pub mod interpreter;
mod layer;
pub mod oci;
mod seal;
mod store;
mod tools;
mod tree;
mod verify;

pub use app::build as build_app;
pub use assemble::{
    BuildInput, Built, LABEL_AGENT, LABEL_LOCK, LABEL_MANIFEST, LABEL_POLICY, LABEL_TRUST_STORES, Profile, TREE, VENV,
    build, build_dependencies, environment, stage_dependencies,
};
pub use base::build_base;
pub use debian::contents::{Sought, package_of};
pub use debian::{BasePlan, LockedPackage, plan_base, plan_tools};
pub use error::ImageError;
pub use interpreter::{Interpreter, available_pythons, host_pythons};
pub use layer::{AGENT_ID, EPOCH, Layer, open_to_jobs};
pub use store::{Collected, Store, Tag, Using};
pub use tools::build_tools;
pub use verify::VerifiedImage;
