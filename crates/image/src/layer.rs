//! A folder becomes a layer: one deterministic tar, gzipped, and the folder itself kept for overlay mounts.
//!
//! Equal folders give equal bytes: entries sorted, one time for all, owners and modes normalised, hard links
//! written as files, extended attributes left out.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use ringfence_model::Digest;
use ringfence_model::digest::Hasher;
use ringfence_model::work::Progress;
use serde::{Deserialize, Serialize};
use tar::{EntryType, Header};

use crate::error::{ImageError, OnPath};
use crate::seal;
use crate::store::Store;
use crate::tree::{Bounds, Tree, parts};

/// The one instant that everything in an image bears: 1980-01-01, the oldest that zip files can say.
pub const EPOCH: i64 = 315_532_800;
/// [`EPOCH`] as RFC 3339.
pub const EPOCH_TEXT: &str = "1980-01-01T00:00:00Z";
/// The agent's uid and gid in an image.
pub const AGENT_ID: u32 = 65532;

/// Level 1: measured in decision 0021.
const LEVEL: u32 = 1;
const UNPACKED: Bounds = Bounds { bytes: 32 << 30, entries: 2_000_000 };

/// A finished layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// `base`, `python`, `dependencies`, `app` or `profile`.
    pub name: String,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Digest of the gzipped tar.
    pub blob: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the tar.
    pub unpacked: u64,
    /// Certificate bundles in it, as absolute paths in the image, sorted.
    pub trust_stores: Vec<String>,
}

/// Turns the folder `tree` into a layer; the folder is moved away into the store.
pub(crate) fn commit(store: &Store, name: &str, tree: &Path, progress: &dyn Progress) -> Result<Layer, ImageError> {
    normalise(tree)?;
    let mut blob = store.blob_writer()?;
    let packed = pack(tree, &mut blob, progress)?;
    let (digest, size) = blob.finish()?;
    let _alone = store.alone(&packed.diff_id, progress)?;
    adopt(store, tree, &packed.diff_id)?;
    Ok(Layer {
        name: name.into(),
        diff_id: packed.diff_id,
        blob: digest,
        size,
        unpacked: packed.bytes,
        trust_stores: packed.trust_stores,
    })
}

/// Whether all of a remembered layer is there.
pub(crate) fn is_whole(store: &Store, layer: &Layer) -> bool {
    store.blob_size(&layer.blob).is_ok_and(|size| size == layer.size) && store.layer_dir(&layer.diff_id).is_dir()
}

struct Packed {
    diff_id: Digest,
    bytes: u64,
    trust_stores: Vec<String>,
}

/// Moves a folder to where layers are kept, unless an equal one is there.
///
/// PRECONDITION: the caller is alone with this layer. Between the move and the seal it looks damaged, and another
/// builder would throw it away under whoever reads it.
fn adopt(store: &Store, tree: &Path, diff_id: &Digest) -> Result<(), ImageError> {
    let home = store.layer_dir(diff_id);
    if home.is_dir() && seal::check(store, diff_id)? {
        return Ok(());
    }
    if home.exists() {
        discard(store, &home)?;
    }
    fs::rename(tree, &home).on("move", tree)?;
    seal::write(store, diff_id)
}

/// Takes a folder out of sight in one step, then removes it.
pub(crate) fn discard(store: &Store, folder: &Path) -> Result<(), ImageError> {
    let bin = store.stage("discard")?;
    fs::rename(folder, bin.path().join("x")).on("remove", folder)
}

/// Lets every uid read a folder of ours, whatever the umask was: jobs run with another one.
///
/// # Errors
/// [`ImageError::StoreIo`].
pub fn open_to_jobs(folder: &Path) -> Result<(), ImageError> {
    let mut open = |path: &Path, _: &str, meta: &Metadata| -> Result<(), ImageError> {
        if meta.is_symlink() {
            return Ok(());
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode("", meta))).on("set mode of", path)
    };
    let meta = fs::symlink_metadata(folder).on("look at", folder)?;
    open(folder, "", &meta)?;
    walk(folder, "", &mut open)
}

/// Gives every entry its one mode and time, and to root where we are root.
fn normalise(tree: &Path) -> Result<(), ImageError> {
    let root = rustix::process::geteuid().is_root();
    let mut worker = |path: &Path, relative: &str, meta: &Metadata| -> Result<(), ImageError> {
        if root {
            let (uid, gid) = owner(relative);
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).on("set owner of", path)?;
        }
        if !meta.is_symlink() {
            fs::set_permissions(path, fs::Permissions::from_mode(mode(relative, meta))).on("set mode of", path)?;
        }
        let stamp = rustix::fs::Timespec { tv_sec: EPOCH, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .on("set time of", path)
    };
    walk_after(tree, "", &mut worker)
}

/// Owners are root, except for the agent's own folder.
fn owner(relative: &str) -> (u32, u32) {
    if relative == "state" { (AGENT_ID, AGENT_ID) } else { (0, 0) }
}

fn mode(relative: &str, meta: &Metadata) -> u32 {
    match relative {
        "tmp" => 0o1777,
        "state" => 0o700,
        _ if meta.is_dir() || meta.permissions().mode() & 0o111 != 0 => 0o755,
        _ => 0o644,
    }
}

/// Entries of a folder, sorted by their bytes.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).on("list", folder)? {
        paths.push(entry.on("list", folder)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn child(relative: &str, path: &Path) -> Result<String, ImageError> {
    let name = path.file_name().and_then(OsStr::to_str).ok_or_else(|| ImageError::AppFile {
        path: path.to_string_lossy().into_owned(),
        why: "its name is not UTF-8".into(),
    })?;
    Ok(if relative.is_empty() { name.to_owned() } else { format!("{relative}/{name}") })
}

type Visit<'v> = dyn FnMut(&Path, &str, &Metadata) -> Result<(), ImageError> + 'v;

/// Visits what is below a folder, each folder before what is in it.
pub(crate) fn walk(folder: &Path, relative: &str, visit: &mut Visit<'_>) -> Result<(), ImageError> {
    for path in sorted(folder)? {
        let meta = fs::symlink_metadata(&path).on("look at", &path)?;
        let name = child(relative, &path)?;
        visit(&path, &name, &meta)?;
        if meta.is_dir() {
            walk(&path, &name, visit)?;
        }
    }
    Ok(())
}

/// Visits what is below a folder, each folder after what is in it, so that its time stays set.
fn walk_after(folder: &Path, relative: &str, visit: &mut Visit<'_>) -> Result<(), ImageError> {
    for path in sorted(folder)? {
        let meta = fs::symlink_metadata(&path).on("look at", &path)?;
        let name = child(relative, &path)?;
        if meta.is_dir() {
            walk_after(&path, &name, visit)?;
        }
        visit(&path, &name, &meta)?;
    }
    Ok(())
}

/// Hashes the tar of a folder without writing it.
pub(crate) fn diff_id(tree: &Path, progress: &dyn Progress) -> Result<Digest, ImageError> {
    let mut tar = TarWriter { out: Counted::new(io::sink()), trust_stores: Vec::new() };
    tar.tree(tree, progress)?;
    Ok(tar.out.hasher.finish())
}

fn pack(tree: &Path, to: &mut dyn Write, progress: &dyn Progress) -> Result<Packed, ImageError> {
    let gzip = GzEncoder::new(to, Compression::new(LEVEL));
    let mut tar = TarWriter { out: Counted::new(gzip), trust_stores: Vec::new() };
    tar.tree(tree, progress)?;
    let TarWriter { out, mut trust_stores } = tar;
    out.inner.finish().on("write", tree)?;
    trust_stores.sort();
    Ok(Packed { diff_id: out.hasher.finish(), bytes: out.bytes, trust_stores })
}

/// Packs an unpacked layer again; says which blob came of it.
pub(crate) fn repack(store: &Store, tree: &Path, progress: &dyn Progress) -> Result<(Digest, Digest), ImageError> {
    let mut blob = store.blob_writer()?;
    let packed = pack(tree, &mut blob, progress)?;
    Ok((packed.diff_id, blob.finish()?.0))
}

struct Counted<W> {
    inner: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W: Write> Counted<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Hasher::new(), bytes: 0 }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.inner.write_all(bytes)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % 512).unwrap_or_default();
        if over == 0 { Ok(()) } else { self.put([0u8; 512].get(over..).unwrap_or_default()) }
    }
}

struct TarWriter<W> {
    out: Counted<W>,
    trust_stores: Vec<String>,
}

impl<W: Write> TarWriter<W> {
    fn tree(&mut self, tree: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
        let mut buffer = vec![0u8; 256 << 10];
        walk(tree, "", &mut |path, relative, meta| {
            if progress.is_cancelled() {
                return Err(ImageError::Cancelled("packing a layer"));
            }
            self.entry(path, relative, meta, &mut buffer)
        })?;
        self.out.put(&[0u8; 1024]).on("write", tree)
    }

    fn entry(&mut self, path: &Path, relative: &str, meta: &Metadata, buffer: &mut [u8]) -> Result<(), ImageError> {
        let mut header = Header::new_ustar();
        let (uid, gid) = owner(relative);
        header.set_uid(u64::from(uid));
        header.set_gid(u64::from(gid));
        header.set_mtime(u64::try_from(EPOCH).unwrap_or_default());
        header.set_mode(mode(relative, meta));
        header.set_size(0);
        if meta.is_dir() {
            header.set_entry_type(EntryType::Directory);
            return self.head(path, &format!("{relative}/"), None, header);
        }
        if meta.is_symlink() {
            let target = fs::read_link(path).on("read link", path)?;
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            return self.head(path, relative, Some(target.as_os_str().as_bytes()), header);
        }
        if !meta.is_file() {
            return Err(ImageError::AppFile {
                path: relative.into(),
                why: "it is neither file, folder nor link".into(),
            });
        }
        header.set_entry_type(EntryType::Regular);
        header.set_size(meta.len());
        self.head(path, relative, None, header)?;
        self.content(path, meta.len(), buffer)?;
        if is_trust_store(relative) {
            self.trust_stores.push(format!("/{relative}"));
        }
        Ok(())
    }

    /// Writes a header, with a PAX header before it where names are too long for the plain one.
    fn head(&mut self, path: &Path, name: &str, link: Option<&[u8]>, mut header: Header) -> Result<(), ImageError> {
        let mut pax = Vec::new();
        if header.set_path(name).is_err() {
            pax_record(&mut pax, "path", name.as_bytes());
            put_name(&mut header, "long-name");
        }
        if let Some(link) = link
            && header.set_link_name_literal(link).is_err()
        {
            pax_record(&mut pax, "linkpath", link);
        }
        header.set_cksum();
        let mut write = || -> io::Result<()> {
            if !pax.is_empty() {
                let mut extra = Header::new_ustar();
                put_name(&mut extra, "pax-header");
                extra.set_entry_type(EntryType::XHeader);
                extra.set_mode(0o644);
                extra.set_uid(0);
                extra.set_gid(0);
                extra.set_mtime(u64::try_from(EPOCH).unwrap_or_default());
                extra.set_size(pax.len() as u64);
                extra.set_cksum();
                self.out.put(extra.as_bytes())?;
                self.out.put(&pax)?;
                self.out.pad(pax.len() as u64)?;
            }
            self.out.put(header.as_bytes())
        };
        write().on("write", path)
    }

    fn content(&mut self, path: &Path, size: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        let mut file = File::open(path).on("open", path)?;
        let mut done = 0u64;
        loop {
            let n = match file.read(buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(ImageError::io("read", path, e)),
            };
            done += n as u64;
            self.out.put(buffer.get(..n).unwrap_or_default()).on("write", path)?;
        }
        if done != size {
            return Err(ImageError::AppFile {
                path: path.to_string_lossy().into_owned(),
                why: "it changed while it was read".into(),
            });
        }
        self.out.pad(size).on("write", path)
    }
}

fn put_name(header: &mut Header, name: &str) {
    let field = &mut header.as_old_mut().name;
    field.fill(0);
    for (to, from) in field.iter_mut().zip(name.bytes()) {
        *to = from;
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn pax_record(to: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend_from_slice(format!("{length} {key}=").as_bytes());
    to.extend_from_slice(value);
    to.push(b'\n');
}

/// Bundles that libraries carry inside themselves and believe instead of the system's.
fn is_trust_store(path: &str) -> bool {
    const NAMES: [&str; 4] = ["cacert.pem", "cacerts.txt", "ca-certificates.crt", "roots.pem"];
    path.rsplit('/').next().is_some_and(|name| NAMES.contains(&name))
}

/// Unpacks a layer blob, already known to be what its name says, to where layers are kept.
///
/// PRECONDITION: the caller is alone with this layer.
pub(crate) fn unpack(
    store: &Store,
    blob: &Digest,
    diff_id: &Digest,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let stage = store.stage("unpack")?;
    let root = stage.path().join("tree");
    fs::create_dir(&root).on("make folder", &root)?;
    let path = store.blob_path(blob);
    let file = File::open(&path).on("open", &path)?;
    let mut counted = HashRead { inner: MultiGzDecoder::new(io::BufReader::new(file)), hasher: Hasher::new() };
    let owner = format!("layer {}", blob.short());
    unpack_tar(&mut counted, &root, &owner, &path, progress)?;
    io::copy(&mut counted, &mut io::sink()).on("read", &path)?;
    if counted.hasher.finish() != *diff_id {
        return Err(ImageError::Hostile { package: owner, why: "its contents do not match its diff id".into() });
    }
    normalise(&root)?;
    adopt(store, &root, diff_id)
}

fn unpack_tar(
    from: &mut dyn Read,
    root: &Path,
    owner: &str,
    blob: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let mut tree = Tree::new(root, owner, UNPACKED);
    let mut archive = tar::Archive::new(from);
    for entry in archive.entries().on("read", blob)? {
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled("unpacking a layer"));
        }
        let mut entry = entry.on("read", blob)?;
        let path = parts(&entry.path_bytes()).map_err(|why| tree.hostile(why))?;
        let link = entry.link_name_bytes().map(|l| String::from_utf8_lossy(&l).into_owned()).unwrap_or_default();
        let (size, executable) = (entry.size(), entry.header().mode().unwrap_or_default() & 0o111 != 0);
        match entry.header().entry_type() {
            EntryType::Directory => tree.folder(&path)?,
            EntryType::Regular => tree.file(&path, executable, size, &mut entry)?,
            EntryType::Symlink => tree.link(&path, &link)?,
            other => return Err(tree.hostile(format!("it has an entry of kind {other:?}"))),
        }
    }
    Ok(())
}

struct HashRead<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for HashRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// What a folder looks like from outside, for [`seal`].
pub(crate) fn outline(tree: &Path) -> Result<Digest, ImageError> {
    let mut hasher = Hasher::new();
    walk(tree, "", &mut |_, relative, meta| {
        hasher.update(relative.as_bytes());
        let numbers = [
            u64::from(meta.mode()),
            u64::from(meta.uid()),
            u64::from(meta.gid()),
            meta.ino(),
            if meta.is_dir() { 0 } else { meta.len() },
            meta.ctime().cast_unsigned(),
            meta.ctime_nsec().cast_unsigned(),
        ];
        hasher.update(&[0]);
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        Ok(())
    })?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use ringfence_model::work::Silent;

    use super::*;

    fn sample(root: &Path) {
        fs::create_dir_all(root.join("b/deep")).unwrap();
        fs::write(root.join("b/deep/run"), "#!x").unwrap();
        fs::set_permissions(root.join("b/deep/run"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::write(root.join("a"), "a").unwrap();
        symlink("../nowhere", root.join("b/link")).unwrap();
        let long = "d".repeat(120);
        fs::create_dir(root.join(&long)).unwrap();
        fs::write(root.join(&long).join("é".repeat(60)), "long").unwrap();
        symlink("t".repeat(150), root.join("longlink")).unwrap();
        fs::create_dir(root.join("empty")).unwrap();
    }

    #[test]
    fn equal_folders_give_equal_layers_however_they_were_made() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let mut layers = Vec::new();
        for round in 0..2 {
            let stage = store.stage("t").unwrap();
            let root = stage.path().join("r");
            fs::create_dir(&root).unwrap();
            sample(&root);
            if round == 1 {
                fs::hard_link(root.join("a"), root.join("c")).unwrap();
                fs::remove_file(root.join("a")).unwrap();
                fs::rename(root.join("c"), root.join("a")).unwrap();
                fs::set_permissions(root.join("b"), fs::Permissions::from_mode(0o700)).unwrap();
            }
            layers.push(commit(&store, "base", &root, &Silent).unwrap());
        }
        assert_eq!(layers[0], layers[1]);
        assert!(is_whole(&store, &layers[0]));
    }

    #[test]
    fn a_layer_unpacks_to_what_it_was() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let stage = store.stage("t").unwrap();
        let root = stage.path().join("r");
        fs::create_dir(&root).unwrap();
        sample(&root);
        let layer = commit(&store, "base", &root, &Silent).unwrap();
        let dir = store.layer_dir(&layer.diff_id);
        fs::remove_dir_all(&dir).unwrap();
        unpack(&store, &layer.blob, &layer.diff_id, &Silent).unwrap();
        assert_eq!(diff_id(&dir, &Silent).unwrap(), layer.diff_id);
        assert_eq!(fs::metadata(dir.join("b/deep/run")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(repack(&store, &dir, &Silent).unwrap(), (layer.diff_id, layer.blob));
    }

    #[test]
    fn many_builders_of_one_layer_pull_it_from_under_nobody() {
        for _ in 0..10 {
            let home = tempfile::tempdir().unwrap();
            let start = std::sync::Barrier::new(4);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let store = Store::open(home.path()).unwrap();
                        let stage = store.stage("t").unwrap();
                        let root = stage.path().join("r");
                        for n in 0..100 {
                            fs::create_dir_all(root.join(format!("{n}"))).unwrap();
                            fs::write(root.join(format!("{n}/file")), "x").unwrap();
                        }
                        start.wait();
                        let layer = commit(&store, "base", &root, &Silent).unwrap();
                        // As a job that has it mounted sees it: whole, at any moment.
                        for _ in 0..20 {
                            let mut seen = 0;
                            let mut count = |_: &Path, _: &str, _: &Metadata| {
                                seen += 1;
                                Ok(())
                            };
                            walk(&store.layer_dir(&layer.diff_id), "", &mut count).unwrap();
                            assert_eq!(seen, 200);
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn pax_lengths_count_themselves() {
        for (value, want) in [("x".to_owned(), 9), ("x".repeat(90), 99), ("x".repeat(91), 101)] {
            let mut out = Vec::new();
            pax_record(&mut out, "path", value.as_bytes());
            let text = String::from_utf8(out).unwrap();
            let length: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(length, text.len());
            assert_eq!(length, want, "{}", value.len());
        }
    }
}
