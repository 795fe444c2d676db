//! From a digest to an image that may be started: every byte is hashed again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringfence_model::Digest;
use ringfence_model::work::{Progress, Silent};
use serde::de::DeserializeOwned;

use crate::assemble::{LABEL_LOCK, LABEL_MANIFEST, LABEL_TRUST_STORES};
use crate::error::{ImageError, OnPath};
use crate::layer::{self, Layer};
use crate::oci::{self, Descriptor, ImageConfig, ImageManifest, RunConfig};
use crate::seal;
use crate::store::{Collected, Store, hash_file};

const DOCUMENT_LIMIT: u64 = 4 << 20;
const WORKERS: usize = 2;

/// An image whose manifest, configuration and layers are what their digests say.
///
/// Only [`Store::verify`] makes one, so whatever starts an image can demand this value.
#[derive(Clone, Debug)]
pub struct VerifiedImage {
    digest: Digest,
    config: ImageConfig,
    layers: Vec<PathBuf>,
    diff_ids: Vec<Digest>,
}

impl VerifiedImage {
    /// The digest of its manifest.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Unpacked layers, lowest first.
    #[must_use]
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }

    /// Digests of the unpacked layers, lowest first.
    #[must_use]
    pub fn diff_ids(&self) -> &[Digest] {
        &self.diff_ids
    }

    /// How to run it, as the OCI configuration says.
    #[must_use]
    pub const fn run(&self) -> &RunConfig {
        &self.config.config
    }

    /// Command line; the first is an absolute path.
    #[must_use]
    pub fn entry(&self) -> &[String] {
        &self.config.config.entrypoint
    }

    /// Environment.
    #[must_use]
    pub fn env(&self) -> BTreeMap<String, String> {
        let split = |pair: &String| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        self.config.config.env.iter().filter_map(split).collect()
    }

    /// Where it starts.
    #[must_use]
    pub fn working_dir(&self) -> &str {
        match self.config.config.working_dir.as_str() {
            "" => "/",
            folder => folder,
        }
    }

    /// Its uid and gid.
    #[must_use]
    pub fn user(&self) -> (u32, u32) {
        let (uid, gid) = self.config.config.user.split_once(':').unwrap_or((&self.config.config.user, ""));
        let uid = uid.parse().unwrap_or(layer::AGENT_ID);
        (uid, gid.parse().unwrap_or(uid))
    }

    /// Certificate bundles in its layers, which libraries believe instead of the system's.
    #[must_use]
    pub fn trust_stores(&self) -> Vec<String> {
        self.label(LABEL_TRUST_STORES).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// Digest of the manifest that it was built from.
    #[must_use]
    pub fn manifest_digest(&self) -> Option<Digest> {
        self.label(LABEL_MANIFEST)?.parse().ok()
    }

    /// Digest of the lock that it was built from.
    #[must_use]
    pub fn lock_digest(&self) -> Option<Digest> {
        self.label(LABEL_LOCK)?.parse().ok()
    }

    /// A label of its configuration.
    #[must_use]
    pub fn label(&self, name: &str) -> Option<&str> {
        self.config.config.labels.get(name).map(String::as_str)
    }
}

impl Store {
    /// Hashes an image again, all of it, and unpacks layers that are not unpacked.
    ///
    /// A damaged blob that its unpacked layer can make anew is mended on the way; any other is removed, so that the
    /// next build makes it.
    ///
    /// # Errors
    /// [`ImageError::StoreCorrupt`] names what is damaged; [`ImageError::StoreMissing`] what is not there.
    pub fn verify(&self, digest: &Digest) -> Result<VerifiedImage, ImageError> {
        self.verify_telling(digest, &Silent)
    }

    /// [`Store::verify`] that can be called off.
    ///
    /// # Errors
    /// As [`Store::verify`].
    pub fn verify_telling(&self, digest: &Digest, progress: &dyn Progress) -> Result<VerifiedImage, ImageError> {
        let _using = self.using()?;
        let (manifest, config) = documents(self, digest)?;
        let pairs: Vec<(&Descriptor, &Digest)> = manifest.layers.iter().zip(&config.rootfs.diff_ids).collect();
        if manifest.layers.len() != config.rootfs.diff_ids.len() || pairs.is_empty() {
            return Err(unusable(digest, "its layers and diff ids do not pair"));
        }
        let next = AtomicUsize::new(0);
        let failure: Mutex<Option<ImageError>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..WORKERS.min(pairs.len()) {
                scope.spawn(|| {
                    while let Some((blob, diff_id)) = pairs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if let Err(error) = check_layer(self, blob, diff_id, progress) {
                            if let Ok(mut slot) = failure.lock() {
                                slot.get_or_insert(error);
                            }
                            return;
                        }
                    }
                });
            }
        });
        if let Ok(Some(error)) = failure.into_inner() {
            return Err(error);
        }
        let diff_ids = config.rootfs.diff_ids.clone();
        let layers = diff_ids.iter().map(|d| self.layer_dir(d)).collect();
        Ok(VerifiedImage { digest: *digest, config, layers, diff_ids })
    }
}

fn unusable(digest: &Digest, why: &str) -> ImageError {
    ImageError::StoreSyntax { what: "image", name: digest.to_string(), why: why.into() }
}

fn documents(store: &Store, digest: &Digest) -> Result<(ImageManifest, ImageConfig), ImageError> {
    let manifest: ImageManifest = match document(store, digest, "image manifest") {
        Err(ImageError::StoreMissing { .. }) => {
            return Err(ImageError::StoreMissing { what: "image", name: digest.to_string() });
        }
        other => other?,
    };
    if manifest.layers.iter().any(|l| l.media_type != oci::LAYER) || manifest.config.media_type != oci::CONFIG {
        return Err(unusable(digest, "it has parts of a kind that is not known here"));
    }
    let config = document(store, &manifest.config.digest, "image configuration")?;
    Ok((manifest, config))
}

fn document<T: DeserializeOwned>(store: &Store, digest: &Digest, what: &'static str) -> Result<T, ImageError> {
    let bytes = store.read_blob(digest, DOCUMENT_LIMIT)?;
    serde_json::from_slice(&bytes).map_err(|e| ImageError::StoreSyntax {
        what,
        name: digest.to_string(),
        why: e.to_string(),
    })
}

/// The blob by its digest, then the unpacked layer by its seal or else by its diff id.
fn check_layer(store: &Store, blob: &Descriptor, diff_id: &Digest, progress: &dyn Progress) -> Result<(), ImageError> {
    if progress.is_cancelled() {
        return Err(ImageError::Cancelled("verifying an image"));
    }
    let tree = store.layer_dir(diff_id);
    {
        // The usual case, in which many may look at the same time.
        let _together = store.together(diff_id)?;
        if tree.is_dir() && seal::check(store, diff_id)? && blob_is_right(store, blob)? {
            return Ok(());
        }
    }
    let _alone = store.alone(diff_id, progress)?;
    let tree_is_right = tree.is_dir()
        && (seal::check(store, diff_id)? || {
            let right = layer::diff_id(&tree, progress).is_ok_and(|found| found == *diff_id);
            if right {
                seal::write(store, diff_id)?;
            }
            right
        });
    if progress.is_cancelled() {
        return Err(ImageError::Cancelled("verifying an image"));
    }
    if !blob_is_right(store, blob)? {
        let path = store.blob_path(&blob.digest);
        if path.exists() {
            fs::remove_file(&path).on("remove", &path)?;
        }
        let mended = tree_is_right && layer::repack(store, &tree, progress)? == (*diff_id, blob.digest);
        return if mended { Ok(()) } else { Err(ImageError::StoreCorrupt { what: "blob", digest: blob.digest }) };
    }
    if !tree_is_right {
        if tree.exists() {
            layer::discard(store, &tree)?;
        }
        layer::unpack(store, &blob.digest, diff_id, progress)?;
    }
    Ok(())
}

fn blob_is_right(store: &Store, blob: &Descriptor) -> Result<bool, ImageError> {
    match store.blob_size(&blob.digest) {
        Ok(size) if size == blob.size => Ok(hash_file(&store.blob_path(&blob.digest))?.0 == blob.digest),
        Ok(_) | Err(ImageError::StoreMissing { .. }) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes what no tagged image and none of `keep` needs. Called with the store locked.
pub(crate) fn collect(store: &Store, keep: &[Digest]) -> Result<Collected, ImageError> {
    let mut blobs: BTreeSet<String> = BTreeSet::new();
    let mut layers: BTreeSet<String> = BTreeSet::new();
    let mut wanted: Vec<Digest> = store.tags()?.into_iter().map(|tag| tag.digest).collect();
    wanted.extend(keep);
    for digest in wanted {
        match documents(store, &digest) {
            Ok((manifest, config)) => {
                blobs.extend([digest.hex(), manifest.config.digest.hex()]);
                blobs.extend(manifest.layers.iter().map(|l| l.digest.hex()));
                for diff_id in &config.rootfs.diff_ids {
                    layers.extend([diff_id.hex(), format!("{}.seal", diff_id.hex())]);
                }
            }
            // An image that is gone keeps nothing.
            Err(ImageError::StoreMissing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let mut collected = Collected::default();
    for (path, name) in list(&store.layout().join("blobs/sha256"))? {
        if !blobs.contains(&name) {
            collected.bytes += fs::metadata(&path).map_or(0, |m| m.len());
            collected.blobs += 1;
            fs::remove_file(&path).on("remove", &path)?;
        }
    }
    for (path, name) in list(&store.root().join("layers"))? {
        if !layers.contains(&name) {
            if path.is_dir() {
                collected.layers += 1;
                layer::discard(store, &path)?;
            } else {
                fs::remove_file(&path).on("remove", &path)?;
            }
        }
    }
    for (path, _) in list(&store.root().join("cache"))? {
        if !is_live(store, &path) {
            fs::remove_file(&path).on("remove", &path)?;
        }
    }
    Ok(collected)
}

/// Whether a remembered result still has all its layers.
fn is_live(store: &Store, path: &Path) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    if let Ok(layer) = serde_json::from_slice::<Layer>(&bytes) {
        return layer::is_whole(store, &layer);
    }
    serde_json::from_slice::<Vec<Layer>>(&bytes).is_ok_and(|layers| layers.iter().all(|l| layer::is_whole(store, l)))
}

fn list(folder: &Path) -> Result<Vec<(PathBuf, String)>, ImageError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).on("list", folder)? {
        let entry = entry.on("list", folder)?;
        found.push((entry.path(), entry.file_name().to_string_lossy().into_owned()));
    }
    Ok(found)
}
