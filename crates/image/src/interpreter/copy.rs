//! What of an installed CPython goes into an image, and its digest.
//!
//! The prefix becomes `/usr`: CPython finds its library from where its program is, and everything that looks for
//! Python in an image looks there.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use ringfence_model::Digest;
use ringfence_model::digest::Hasher;
use ringfence_model::work::Progress;

use crate::error::{ImageError, OnPath};

const ENTRIES: usize = 50_000;
const BYTES: u64 = 1 << 30;
const DEPTH: usize = 16;
/// Folders left out wherever they are.
const NEVER: [&str; 4] = ["__pycache__", "idle_test", "test", "tests"];
/// What is left out right below `lib/pythonX.Y`: installers, toys, what needs a screen, packages, the host's own hooks.
const NEVER_ON_TOP: [&str; 9] = [
    "dist-packages",
    "ensurepip",
    "idlelib",
    "site-packages",
    "sitecustomize.py",
    "tkinter",
    "turtle.py",
    "turtledemo",
    "usercustomize.py",
];

/// One entry of a tree.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Where it is on the host.
    pub from: PathBuf,
    /// Where it goes, below the image's root.
    pub to: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    File { executable: bool },
    Link(String),
}

impl Entry {
    /// Whether it is machine code: the program, its library, an extension module.
    pub(crate) fn is_code(&self) -> bool {
        let library = self.to.ends_with(".so") || self.to.contains(".so.");
        matches!(self.kind, Kind::File { .. }) && (library || self.to.starts_with("usr/bin/"))
    }

    /// Its last part.
    pub(crate) fn name(&self) -> &str {
        self.to.rsplit('/').next().unwrap_or_default()
    }
}

/// Lists what goes in, sorted by its place in the image.
pub(crate) fn list(prefix: &Path, python: &str) -> Result<Vec<Entry>, ImageError> {
    let mut listing = Listing { entries: Vec::new(), prefix };
    let program = prefix.join(format!("bin/python{python}"));
    let meta = fs::symlink_metadata(&program).on("look at", &program)?;
    if !meta.is_file() {
        return Err(listing.refuse("its program is no plain file"));
    }
    listing.push(program, format!("usr/bin/python{python}"), Kind::File { executable: true })?;
    // Libraries that its program is linked with; where that names a folder of the host, the loader finds them here.
    let (lib, shared) = (prefix.join("lib"), format!("libpython{python}.so."));
    for entry in fs::read_dir(&lib).on("list", &lib)? {
        let path = entry.on("list", &lib)?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| n.starts_with(&shared)) else { continue };
        if fs::symlink_metadata(&path).on("look at", &path)?.is_file() {
            let to = format!("usr/lib/{name}");
            listing.push(path, to, Kind::File { executable: false })?;
        }
    }
    listing.folder(&lib.join(format!("python{python}")), &format!("usr/lib/python{python}"), 0)?;
    let mut entries = listing.entries;
    entries.sort_by(|a, b| a.to.cmp(&b.to));
    Ok(entries)
}

struct Listing<'p> {
    entries: Vec<Entry>,
    prefix: &'p Path,
}

impl Listing<'_> {
    fn refuse(&self, why: impl Into<String>) -> ImageError {
        ImageError::Interpreter { path: self.prefix.into(), why: why.into() }
    }

    fn push(&mut self, from: PathBuf, to: String, kind: Kind) -> Result<(), ImageError> {
        if self.entries.len() >= ENTRIES {
            return Err(self.refuse(format!("it has more than {ENTRIES} files")));
        }
        self.entries.push(Entry { from, to, kind });
        Ok(())
    }

    fn folder(&mut self, folder: &Path, to: &str, depth: usize) -> Result<(), ImageError> {
        if depth > DEPTH {
            return Err(self.refuse("its folders are too deep"));
        }
        for entry in fs::read_dir(folder).on("list", folder)? {
            let path = entry.on("list", folder)?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| !n.contains(['\n', '\0'])) else {
                return Err(self.refuse("a file of it has no usable name"));
            };
            let meta = fs::symlink_metadata(&path).on("look at", &path)?;
            if is_left_out(name, &meta, to, depth) {
                continue;
            }
            let place = format!("{to}/{name}");
            if meta.is_dir() {
                self.folder(&path, &place, depth + 1)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).on("read link", &path)?;
                // What a link out of the tree means is up to the host, and nothing that an image could have.
                if let Some(target) = target.to_str().filter(|t| stays_within(t, depth)) {
                    let target = target.to_owned();
                    self.push(path, place, Kind::Link(target))?;
                }
            } else if meta.is_file() {
                self.push(path, place, Kind::File { executable: meta.permissions().mode() & 0o111 != 0 })?;
            }
        }
        Ok(())
    }
}

fn is_left_out(name: &str, meta: &Metadata, folder: &str, depth: usize) -> bool {
    let of_tests = ["_test", "_ctypes_test", "_xx", "xx", "_tkinter"];
    (meta.is_dir() && (NEVER.contains(&name) || (depth == 0 && name.starts_with("config-"))))
        || (depth == 0 && NEVER_ON_TOP.contains(&name))
        || [".a", ".pyc", ".pyo"].iter().any(|end| name.ends_with(end))
        || (folder.ends_with("/lib-dynload") && of_tests.iter().any(|start| name.starts_with(start)))
}

/// Whether a link in a folder so far down leads to a place in the tree.
fn stays_within(target: &str, depth: usize) -> bool {
    let mut here = depth;
    !target.contains(['\n', '\0'])
        && Path::new(target).components().all(|part| match part {
            Component::ParentDir => here.checked_sub(1).map(|up| here = up).is_some(),
            Component::Normal(_) => {
                here += 1;
                true
            }
            Component::CurDir => true,
            Component::Prefix(_) | Component::RootDir => false,
        })
}

/// Digests the entries, and copies them below `into` if that is wanted: both of the same bytes.
pub(crate) fn take(
    entries: &[Entry],
    without: &[String],
    into: Option<&Path>,
    progress: &dyn Progress,
) -> Result<Digest, ImageError> {
    let mut all = Hasher::new();
    all.update(b"ringfence interpreter 1\n");
    let mut left = BYTES;
    let mut buffer = vec![0u8; 256 << 10];
    for entry in entries.iter().filter(|e| !without.iter().any(|w| w == e.name())) {
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled("copying Python"));
        }
        let place = into.map(|root| root.join(&entry.to));
        if let Some(folder) = place.as_deref().and_then(Path::parent) {
            fs::create_dir_all(folder).on("make folder", folder)?;
        }
        match &entry.kind {
            Kind::Link(target) => {
                all.update(format!("l {}\0{target}\n", entry.to).as_bytes());
                if let Some(place) = place {
                    symlink(target, &place).on("make link", &place)?;
                }
            }
            Kind::File { executable } => {
                let mut hasher = Hasher::new();
                let mut from = open(&entry.from)?;
                let mode = if *executable { 0o755 } else { 0o644 };
                let mut to = match &place {
                    Some(p) => {
                        Some(OpenOptions::new().write(true).create_new(true).mode(mode).open(p).on("make file", p)?)
                    }
                    None => None,
                };
                loop {
                    let n = from.read(&mut buffer).on("read", &entry.from)?;
                    let bytes = buffer.get(..n).unwrap_or_default();
                    if bytes.is_empty() {
                        break;
                    }
                    left = left.checked_sub(n as u64).ok_or_else(|| ImageError::Interpreter {
                        path: entry.from.clone(),
                        why: format!("it has more than {BYTES} bytes"),
                    })?;
                    hasher.update(bytes);
                    if let Some(to) = &mut to {
                        to.write_all(bytes).on("write", &entry.from)?;
                    }
                }
                all.update(format!("f {} {executable} {}\n", entry.to, hasher.finish()).as_bytes());
            }
        }
    }
    Ok(all.finish())
}

/// Opens a plain file, and nothing that stands in for one since it was listed.
pub(crate) fn open(path: &Path) -> Result<File, ImageError> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).on("open", path)?;
    if !file.metadata().on("look at", path)?.is_file() {
        return Err(ImageError::Interpreter { path: path.into(), why: "it is no plain file".into() });
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use ringfence_model::work::Silent;

    use super::*;

    fn prefix(files: &[&str]) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        for name in ["bin/python3.12", "lib/python3.12/os.py"].iter().chain(files) {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        home
    }

    fn names(home: &Path) -> Vec<String> {
        list(home, "3.12").unwrap().into_iter().map(|e| e.to).collect()
    }

    #[test]
    fn tests_toys_packages_and_hooks_stay_out() {
        let home = prefix(&[
            "bin/pip3",
            "lib/libpython3.12.a",
            "lib/libpython3.12.so.1.0",
            "lib/python3.12/__pycache__/os.cpython-312.pyc",
            "lib/python3.12/config-3.12-x86_64-linux-gnu/Makefile",
            "lib/python3.12/ensurepip/__init__.py",
            "lib/python3.12/json/__init__.py",
            "lib/python3.12/lib-dynload/_ssl.cpython-312-x86_64-linux-gnu.so",
            "lib/python3.12/lib-dynload/_testcapi.cpython-312-x86_64-linux-gnu.so",
            "lib/python3.12/lib-dynload/_tkinter.cpython-312-x86_64-linux-gnu.so",
            "lib/python3.12/site-packages/evil.pth",
            "lib/python3.12/sitecustomize.py",
            "lib/python3.12/test/support.py",
            "lib/python3.12/unittest/mock.py",
        ]);
        assert_eq!(
            names(home.path()),
            [
                "usr/bin/python3.12",
                "usr/lib/libpython3.12.so.1.0",
                "usr/lib/python3.12/json/__init__.py",
                "usr/lib/python3.12/lib-dynload/_ssl.cpython-312-x86_64-linux-gnu.so",
                "usr/lib/python3.12/os.py",
                "usr/lib/python3.12/unittest/mock.py",
            ]
        );
    }

    #[test]
    fn links_out_of_the_tree_are_not_followed() {
        let home = prefix(&["lib/python3.12/json/__init__.py", "lib/secret.py"]);
        let lib = home.path().join("lib/python3.12");
        for (name, target) in
            [("a.py", "/etc/shadow"), ("b.py", "../secret.py"), ("c", "/etc"), ("json/d.py", "../os.py")]
        {
            symlink(target, lib.join(name)).unwrap();
        }
        let entries = list(home.path(), "3.12").unwrap();
        let links: Vec<&str> =
            entries.iter().filter(|e| matches!(e.kind, Kind::Link(_))).map(|e| e.to.as_str()).collect();
        assert_eq!(links, ["usr/lib/python3.12/json/d.py"]);
        assert!(!entries.iter().any(|e| e.to.contains("/c/")));

        // A file that becomes a link between listing and copying is not followed either.
        fs::remove_file(lib.join("os.py")).unwrap();
        symlink("/etc/passwd", lib.join("os.py")).unwrap();
        let out = tempfile::tempdir().unwrap();
        assert!(take(&entries, &[], Some(out.path()), &Silent).is_err());
    }

    #[test]
    fn the_digest_is_of_what_is_copied() {
        let (one, two) = (prefix(&["lib/python3.12/x.so"]), prefix(&["lib/python3.12/x.so"]));
        let digest =
            |home: &Path, without: &[String]| take(&list(home, "3.12").unwrap(), without, None, &Silent).unwrap();
        let first = digest(one.path(), &[]);
        assert_eq!(first, digest(two.path(), &[]));
        let out = tempfile::tempdir().unwrap();
        assert_eq!(take(&list(one.path(), "3.12").unwrap(), &[], Some(out.path()), &Silent).unwrap(), first);
        assert_eq!(fs::read_to_string(out.path().join("usr/bin/python3.12")).unwrap(), "bin/python3.12");
        assert_ne!(digest(one.path(), &["x.so".into()]), first);
        fs::write(two.path().join("lib/python3.12/os.py"), "evil").unwrap();
        assert_ne!(digest(two.path(), &[]), first);
        fs::set_permissions(one.path().join("lib/python3.12/os.py"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(digest(one.path(), &[]), first);
    }
}
