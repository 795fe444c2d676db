//! A seal says that an unpacked layer was once hashed whole and has not been touched since.
//!
//! It holds the layer's outline: names, inodes, sizes, modes and change times, which the kernel alone sets. A broken
//! seal is no error: the layer is hashed whole again, and only a wrong hash is.

use std::fs;
use std::path::PathBuf;

use ringfence_model::Digest;

use crate::error::ImageError;
use crate::layer;
use crate::store::Store;

pub(crate) fn path(store: &Store, diff_id: &Digest) -> PathBuf {
    store.root().join("layers").join(format!("{}.seal", diff_id.hex()))
}

/// Seals a layer whose contents are known to be right.
pub(crate) fn write(store: &Store, diff_id: &Digest) -> Result<(), ImageError> {
    let outline = layer::outline(&store.layer_dir(diff_id))?;
    store.write_atomic(&path(store, diff_id), outline.to_string().as_bytes())
}

/// Whether the seal is there and whole.
pub(crate) fn check(store: &Store, diff_id: &Digest) -> Result<bool, ImageError> {
    match fs::read_to_string(path(store, diff_id)) {
        Ok(text) => Ok(layer::outline(&store.layer_dir(diff_id))?.to_string() == text),
        Err(_) => Ok(false),
    }
}
