//! OCI documents, written so that equal meaning gives equal bytes.
//!
//! # Source
//! OCI Image Format Specification 1.1. Decision 0020 says why these are not the types of a library.

use std::collections::BTreeMap;

use ringfence_model::Digest;
use serde::{Deserialize, Serialize};

/// Annotation that carries a tag in `index.json`.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a gzipped layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A pointer to a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// Further words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, annotations: BTreeMap::new() }
    }

    pub(crate) fn manifest(digest: Digest, size: u64) -> Self {
        Self::new(MANIFEST, digest, size)
    }
}

/// `index.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Tagged images.
    pub manifests: Vec<Descriptor>,
}

impl Default for Index {
    fn default() -> Self {
        Self { schema_version: 2, manifests: Vec::new() }
    }
}

/// An image manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST`].
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Further words.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made: always the same instant.
    pub created: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// How to run it.
    pub config: RunConfig,
    /// What it is made of.
    pub rootfs: RootFs,
    /// One line per layer.
    #[serde(default)]
    pub history: Vec<History>,
}

/// How to run an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `uid:gid`.
    #[serde(default)]
    pub user: String,
    /// `NAME=value`, sorted.
    #[serde(default)]
    pub env: Vec<String>,
    /// Command line.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Where it starts.
    #[serde(default)]
    pub working_dir: String,
    /// Ports it listens on, as `8501/tcp`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Further words.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `{}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// What an image is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the unpacked tars, lowest first.
    pub diff_ids: Vec<Digest>,
}

/// How a layer came to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct History {
    /// Always the same instant.
    pub created: String,
    /// The layer's name.
    pub created_by: String,
}
