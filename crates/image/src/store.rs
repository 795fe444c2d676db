//! Where images, layers and packages are kept: an OCI image layout, and beside it what makes it fast.
//!
//! ```text
//! root/
//! ├── oci/            oci-layout, index.json, blobs/sha256/<hex>
//! ├── layers/<hex>/   unpacked layers by diff id, used as overlay lower directories; <hex>.seal beside each
//! ├── debs/<hex>      downloaded packages and package lists, by their own digest
//! ├── cache/<hex>     which result came from which inputs
//! ├── bench/          mount points for jobs
//! ├── locks/<name>    who makes what just now
//! └── tmp/            one folder per living process
//! ```
//!
//! INVARIANT: whatever has its final name is whole. Everything is written below `tmp/` and renamed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_model::Digest;
use ringfence_model::digest::Hasher;
use ringfence_model::work::Progress;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ImageError, OnPath};
use crate::oci::{Descriptor, Index, REF_NAME};

/// An open store. Several processes may have the same one open.
pub struct Store {
    root: PathBuf,
    work: PathBuf,
    /// Held for as long as the process lives, so that others leave its folder below `tmp/` alone.
    _alive: File,
}

/// A right to use what is stored: while anybody holds one, nothing is collected.
pub struct Using(#[expect(dead_code, reason = "held for its lock")] File);

/// A hold on one name of the store.
pub(crate) struct Alone(#[expect(dead_code, reason = "held for its lock")] File);

/// A tag and what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// The tag.
    pub name: String,
    /// The image's digest.
    pub digest: Digest,
}

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs removed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Unpacked layers removed.
    pub layers: u64,
}

impl Store {
    /// Opens the store at `root`, making it where it is missing, and clears what dead processes left half-made.
    ///
    /// # Errors
    /// [`ImageError::StoreIo`] or [`ImageError::StoreFull`].
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        for folder in ["oci/blobs/sha256", "layers", "debs", "cache", "locks", "tmp"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).on("make folder", &path)?;
        }
        let root = root.canonicalize().on("find", root)?;
        let tmp = root.join("tmp");
        let door = lock_file(&tmp.join(".lock"))?;
        door.lock().on("lock", &tmp)?;
        sweep(&tmp)?;
        let (work, alive) = living_folder(&tmp)?;
        drop(door);
        let store = Self { root, work, _alive: alive };
        store.lay_bench()?;
        let layout = store.root.join("oci/oci-layout");
        if !layout.exists() {
            store.write_atomic(&layout, b"{\"imageLayoutVersion\":\"1.0.0\"}")?;
        }
        if !store.index_path().exists() {
            store.write_index(&Index::default())?;
        }
        Ok(store)
    }

    /// The folder it was opened at.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The OCI image layout, for tools that read one.
    #[must_use]
    pub fn layout(&self) -> PathBuf {
        self.root.join("oci")
    }

    /// The unpacked layer with this diff id, whether it is there or not.
    #[must_use]
    pub fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    /// A layer of empty mount points (`/src`, `/out`, `/cache`, `/opt/venv`, `/opt/uv/uv`), to lay on top of the
    /// layers of a job.
    #[must_use]
    pub fn bench(&self) -> PathBuf {
        self.root.join("bench")
    }

    /// Keeps the collector away while the result lives.
    ///
    /// # Errors
    /// [`ImageError::StoreIo`].
    pub fn using(&self) -> Result<Using, ImageError> {
        let path = self.root.join("store.lock");
        let file = lock_file(&path)?;
        file.lock_shared().on("lock", &path)?;
        Ok(Using(file))
    }

    /// Waits until nobody else makes what `key` stands for, so that it is made once. Held until dropped.
    ///
    /// # Errors
    /// [`ImageError::Cancelled`]; [`ImageError::StoreIo`].
    pub(crate) fn alone(&self, key: &Digest, progress: &dyn Progress) -> Result<Alone, ImageError> {
        let path = self.lock_path(key);
        let file = lock_file(&path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Alone(file)),
                Err(TryLockError::WouldBlock) if progress.is_cancelled() => {
                    return Err(ImageError::Cancelled("waiting for another build"));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
                Err(TryLockError::Error(e)) => return Err(ImageError::io("lock", &path, e)),
            }
        }
    }

    /// Keeps away whoever would replace what `key` stands for. Held until dropped.
    ///
    /// # Errors
    /// [`ImageError::StoreIo`].
    pub(crate) fn together(&self, key: &Digest) -> Result<Alone, ImageError> {
        let path = self.lock_path(key);
        let file = lock_file(&path)?;
        file.lock_shared().on("lock", &path)?;
        Ok(Alone(file))
    }

    fn lock_path(&self, key: &Digest) -> PathBuf {
        self.root.join("locks").join(key.hex())
    }

    /// A fresh empty folder that goes away when dropped.
    ///
    /// # Errors
    /// [`ImageError::StoreIo`] or [`ImageError::StoreFull`].
    pub fn stage(&self, name: &str) -> Result<tempfile::TempDir, ImageError> {
        let stage = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&self.work);
        let stage = stage.on("make folder", &self.work)?;
        fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755)).on("set mode of", stage.path())?;
        Ok(stage)
    }

    /// Gives `name` to an image, taking it from whatever had it.
    ///
    /// # Errors
    /// [`ImageError::StoreMissing`] if there is no such image.
    pub fn tag(&self, name: &str, digest: &Digest) -> Result<(), ImageError> {
        let size = self.blob_size(digest)?;
        self.change_index(|index| {
            index.manifests.retain(|d| d.annotations.get(REF_NAME).is_none_or(|n| n != name));
            let mut descriptor = Descriptor::manifest(*digest, size);
            descriptor.annotations.insert(REF_NAME.into(), name.into());
            index.manifests.push(descriptor);
            index.manifests.sort_by(|a, b| a.annotations.get(REF_NAME).cmp(&b.annotations.get(REF_NAME)));
        })
    }

    /// Takes a name away; says whether there was one.
    ///
    /// # Errors
    /// [`ImageError::StoreIo`].
    pub fn untag(&self, name: &str) -> Result<bool, ImageError> {
        let mut found = false;
        self.change_index(|index| {
            let before = index.manifests.len();
            index.manifests.retain(|d| d.annotations.get(REF_NAME).is_none_or(|n| n != name));
            found = index.manifests.len() != before;
        })?;
        Ok(found)
    }

    /// All names, sorted.
    ///
    /// # Errors
    /// [`ImageError::StoreSyntax`] if the index does not parse.
    pub fn tags(&self) -> Result<Vec<Tag>, ImageError> {
        let named = |d: Descriptor| d.annotations.get(REF_NAME).map(|n| Tag { name: n.clone(), digest: d.digest });
        Ok(self.read_index()?.manifests.into_iter().filter_map(named).collect())
    }

    /// The image that a name stands for.
    ///
    /// # Errors
    /// [`ImageError::StoreMissing`].
    pub fn resolve(&self, name: &str) -> Result<Digest, ImageError> {
        let tags = self.tags()?;
        tags.into_iter()
            .find(|tag| tag.name == name)
            .map(|tag| tag.digest)
            .ok_or_else(|| ImageError::StoreMissing { what: "tag", name: name.into() })
    }

    /// Removes every blob, layer and cached result that no tagged image and none of `keep` needs.
    ///
    /// Waits until nobody uses the store.
    ///
    /// # Errors
    /// [`ImageError::StoreIo`]; [`ImageError::StoreSyntax`] if a tagged image does not parse, and then nothing is
    /// removed.
    pub fn collect(&self, keep: &[Digest]) -> Result<Collected, ImageError> {
        let path = self.root.join("store.lock");
        let file = lock_file(&path)?;
        file.lock().on("lock", &path)?;
        crate::verify::collect(self, keep)
    }

    // ---- below: for the modules of this crate ----

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("oci/blobs/sha256").join(digest.hex())
    }

    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<u64, ImageError> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok(meta.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                Err(ImageError::StoreMissing { what: "blob", name: digest.to_string() })
            }
            Err(e) => Err(ImageError::io("look at", &path, e)),
        }
    }

    /// Reads a small blob and checks it against its name; a damaged one is removed.
    pub(crate) fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
        let size = self.blob_size(digest)?;
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        if size <= limit {
            File::open(&path).and_then(|f| f.take(limit).read_to_end(&mut bytes)).on("read", &path)?;
        }
        if size > limit || Digest::of(&bytes) != *digest {
            let _ = fs::remove_file(&path);
            return Err(ImageError::StoreCorrupt { what: "blob", digest: *digest });
        }
        Ok(bytes)
    }

    pub(crate) fn write_blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let mut writer = self.blob_writer()?;
        writer.write_all(bytes).on("write", &self.work)?;
        Ok(writer.finish()?.0)
    }

    pub(crate) fn blob_writer(&self) -> Result<BlobWriter<'_>, ImageError> {
        let file = tempfile::NamedTempFile::new_in(&self.work).on("make file in", &self.work)?;
        Ok(BlobWriter { store: self, file, hasher: Hasher::new(), size: 0 })
    }

    /// Where a download with this digest is kept.
    pub(crate) fn deb_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("debs").join(digest.hex())
    }

    pub(crate) fn temp_file(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::NamedTempFile::new_in(&self.work)
    }

    /// Moves a whole temporary file to its final name.
    pub(crate) fn settle(&self, file: tempfile::NamedTempFile, to: &Path) -> Result<(), ImageError> {
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).on("set mode of", to)?;
        file.as_file().sync_data().on("write", to)?;
        file.persist(to).map_err(|e| ImageError::io("write", to, e.error))?;
        Ok(())
    }

    pub(crate) fn write_atomic(&self, to: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let mut file = self.temp_file().on("make file in", &self.work)?;
        file.write_all(bytes).on("write", to)?;
        self.settle(file, to)
    }

    /// What was once made from inputs with this digest.
    pub(crate) fn recall<T: DeserializeOwned>(&self, key: &Digest) -> Option<T> {
        // WHY errors are misses: a cache entry that cannot be read is made again.
        let bytes = fs::read(self.cache_path(key)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(crate) fn remember<T: Serialize>(&self, key: &Digest, made: &T) -> Result<(), ImageError> {
        let path = self.cache_path(key);
        let bytes = serde_json::to_vec(made).map_err(|e| ImageError::io("write", &path, e.into()))?;
        self.write_atomic(&path, &bytes)
    }

    pub(crate) fn cache_path(&self, key: &Digest) -> PathBuf {
        self.root.join("cache").join(key.hex())
    }

    pub(crate) fn read_index(&self) -> Result<Index, ImageError> {
        let path = self.index_path();
        let bytes = fs::read(&path).on("read", &path)?;
        serde_json::from_slice(&bytes).map_err(|e| ImageError::StoreSyntax {
            what: "index",
            name: "index.json".into(),
            why: e.to_string(),
        })
    }

    fn change_index(&self, change: impl FnOnce(&mut Index)) -> Result<(), ImageError> {
        let path = self.root.join("index.lock");
        let lock = lock_file(&path)?;
        lock.lock().on("lock", &path)?;
        let mut index = self.read_index()?;
        change(&mut index);
        self.write_index(&index)
    }

    fn write_index(&self, index: &Index) -> Result<(), ImageError> {
        let path = self.index_path();
        let bytes = serde_json::to_vec(index).map_err(|e| ImageError::io("write", &path, e.into()))?;
        self.write_atomic(&path, &bytes)
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("oci/index.json")
    }

    fn lay_bench(&self) -> Result<(), ImageError> {
        let bench = self.bench();
        for folder in ["src", "out", "cache", "opt/venv", "opt/uv"] {
            let path = bench.join(folder);
            fs::create_dir_all(&path).on("make folder", &path)?;
        }
        let file = bench.join("opt/uv/uv");
        OpenOptions::new().append(true).create(true).open(&file).on("make file", &file)?;
        crate::layer::open_to_jobs(&bench)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.work);
    }
}

/// A blob on its way; it has no name until it is whole.
pub(crate) struct BlobWriter<'a> {
    store: &'a Store,
    file: tempfile::NamedTempFile,
    hasher: Hasher,
    size: u64,
}

impl BlobWriter<'_> {
    pub(crate) fn finish(self) -> Result<(Digest, u64), ImageError> {
        let digest = self.hasher.finish();
        self.store.settle(self.file, &self.store.blob_path(&digest))?;
        Ok((digest, self.size))
    }
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Hashes a file in one pass.
pub(crate) fn hash_file(path: &Path) -> Result<(Digest, u64), ImageError> {
    let mut file = File::open(path).on("open", path)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0u8; 256 << 10];
    let mut size = 0u64;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(n) => {
                size += n as u64;
                hasher.update(buffer.get(..n).unwrap_or_default());
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(ImageError::io("read", path, e)),
        }
    }
}

fn lock_file(path: &Path) -> Result<File, ImageError> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).on("open", path)
}

fn living_folder(tmp: &Path) -> Result<(PathBuf, File), ImageError> {
    let made = tempfile::Builder::new().prefix(&format!("{}-", std::process::id())).tempdir_in(tmp);
    let work = made.on("make folder in", tmp)?.keep();
    // Jobs with another uid must be able to pass through to what is mounted from below.
    fs::set_permissions(&work, fs::Permissions::from_mode(0o711)).on("set mode of", &work)?;
    let alive = lock_file(&work.join(".alive"))?;
    alive.lock().on("lock", &work)?;
    Ok((work, alive))
}

/// Removes the folders of processes that no longer hold their lock. Called with `tmp/.lock` held.
fn sweep(tmp: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(tmp).on("list", tmp)? {
        let path = entry.on("list", tmp)?.path();
        if !path.is_dir() {
            continue;
        }
        let dead = match File::open(path.join(".alive")) {
            Ok(file) => file.try_lock().is_ok(),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if dead {
            // WHY the result is let go: a leftover costs space only, and the next opening tries again.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_move_and_go() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let one = store.write_blob(b"one").unwrap();
        let two = store.write_blob(b"two").unwrap();
        store.tag("a", &one).unwrap();
        store.tag("b", &one).unwrap();
        store.tag("a", &two).unwrap();
        assert_eq!(store.resolve("a").unwrap(), two);
        assert_eq!(store.tags().unwrap().len(), 2);
        assert!(store.untag("a").unwrap());
        assert!(!store.untag("a").unwrap());
        assert!(matches!(store.resolve("a"), Err(ImageError::StoreMissing { .. })));
        assert!(matches!(store.tag("x", &Digest::of(b"none")), Err(ImageError::StoreMissing { .. })));
    }

    #[test]
    fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
        let home = tempfile::tempdir().unwrap();
        let living = Store::open(home.path()).unwrap();
        let stage = living.stage("half").unwrap();
        let dead = home.path().join("tmp/1-dead");
        fs::create_dir_all(dead.join("half-made")).unwrap();
        fs::write(dead.join(".alive"), "").unwrap();
        let _other = Store::open(home.path()).unwrap();
        assert!(stage.path().exists());
        assert!(!dead.exists());
    }

    #[test]
    fn a_damaged_blob_is_named_and_removed() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let digest = store.write_blob(b"good").unwrap();
        fs::write(store.blob_path(&digest), b"evil").unwrap();
        let error = store.read_blob(&digest, 100).unwrap_err();
        assert!(matches!(error, ImageError::StoreCorrupt { digest: d, .. } if d == digest));
        assert!(!store.blob_path(&digest).exists());
    }

    #[test]
    fn many_writers_lose_no_tag() {
        let home = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for n in 0..4 {
                let home = home.path();
                scope.spawn(move || {
                    let store = Store::open(home).unwrap();
                    for m in 0..10 {
                        let digest = store.write_blob(format!("{n}-{m}").as_bytes()).unwrap();
                        store.tag(&format!("t{n}-{m}"), &digest).unwrap();
                    }
                });
            }
        });
        assert_eq!(Store::open(home.path()).unwrap().tags().unwrap().len(), 40);
    }
}
