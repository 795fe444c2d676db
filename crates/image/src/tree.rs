//! A folder that becomes a layer, written by hostile archives without letting them out.
//!
//! Nothing here follows a symbolic link of the host: links within the tree are followed by hand, as if the tree
//! were the root, and every path that is opened has real folders only.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::error::{ImageError, OnPath};

const HOPS: u32 = 16;

/// How much an archive may unpack to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of all files.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// A folder that becomes a layer.
pub(crate) struct Tree<'a> {
    root: &'a Path,
    /// Whom to blame.
    owner: &'a str,
    left: Bounds,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(root: &'a Path, owner: &'a str, bounds: Bounds) -> Self {
        Self { root, owner, left: bounds }
    }

    pub(crate) fn hostile(&self, why: impl Into<String>) -> ImageError {
        ImageError::Hostile { package: self.owner.into(), why: why.into() }
    }

    /// Makes a folder and its parents.
    pub(crate) fn folder(&mut self, path: &[String]) -> Result<(), ImageError> {
        self.count(0)?;
        self.real(path).map(|_| ())
    }

    /// Writes a file, replacing a file or link that is there.
    pub(crate) fn file(
        &mut self,
        path: &[String],
        executable: bool,
        size: u64,
        from: &mut dyn Read,
    ) -> Result<(), ImageError> {
        self.count(size)?;
        let place = self.vacate(path)?;
        let mode = if executable { 0o755 } else { 0o644 };
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&place).on("make file", &place)?;
        let written = io::copy(&mut from.take(size), &mut file).on("write", &place)?;
        if written != size {
            return Err(self.hostile(format!("`{}` is cut short", path.join("/"))));
        }
        Ok(())
    }

    /// Makes a symbolic link; where it points is looked at only when something is written through it.
    pub(crate) fn link(&mut self, path: &[String], target: &str) -> Result<(), ImageError> {
        self.count(0)?;
        if target.is_empty() || target.contains('\0') || target.len() > 4095 {
            return Err(self.hostile(format!("link `{}` has no usable target", path.join("/"))));
        }
        let place = self.vacate(path)?;
        symlink(target, &place).on("make link", &place)
    }

    /// Makes a second copy of a file that the same archive already gave.
    pub(crate) fn hard_link(&mut self, path: &[String], original: &[String]) -> Result<(), ImageError> {
        let from = self.place(original)?;
        let meta = fs::symlink_metadata(&from);
        let Some(meta) = meta.ok().filter(fs::Metadata::is_file) else {
            return Err(self.hostile(format!("hard link to `{}`, which is no file of it", original.join("/"))));
        };
        let mut source = File::open(&from).on("open", &from)?;
        self.file(path, meta.permissions().mode() & 0o111 != 0, meta.len(), &mut source)
    }

    fn count(&mut self, bytes: u64) -> Result<(), ImageError> {
        let left = self.left.bytes.checked_sub(bytes).zip(self.left.entries.checked_sub(1));
        let (bytes, entries) = left.ok_or_else(|| self.hostile("it unpacks to more than it may"))?;
        self.left = Bounds { bytes, entries };
        Ok(())
    }

    /// The host path for a new entry, with real parents, after removing what is there.
    fn vacate(&self, path: &[String]) -> Result<PathBuf, ImageError> {
        let place = self.place(path)?;
        match fs::symlink_metadata(&place) {
            Ok(meta) if meta.is_dir() => {
                Err(self.hostile(format!("`{}` is a folder and something else at once", path.join("/"))))
            }
            Ok(_) => fs::remove_file(&place).on("replace", &place).map(|()| place),
            Err(_) => Ok(place),
        }
    }

    fn place(&self, path: &[String]) -> Result<PathBuf, ImageError> {
        let Some((name, parent)) = path.split_last() else {
            return Err(self.hostile("an entry has no name"));
        };
        Ok(self.real(parent)?.join(name))
    }

    /// Walks `path` inside the tree, following its links as if the tree were the root, making missing folders.
    fn real(&self, path: &[String]) -> Result<PathBuf, ImageError> {
        let mut left: VecDeque<String> = path.iter().cloned().collect();
        let mut here: Vec<String> = Vec::new();
        let mut hops = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                if here.pop().is_none() {
                    return Err(self.hostile(format!("`{}` leads out through a link", path.join("/"))));
                }
                continue;
            }
            let next = here.iter().fold(self.root.to_path_buf(), |p, c| p.join(c)).join(&name);
            match fs::symlink_metadata(&next) {
                Ok(meta) if meta.is_dir() => here.push(name),
                Ok(meta) if meta.is_symlink() => {
                    hops += 1;
                    if hops > HOPS {
                        return Err(self.hostile(format!("`{}` passes too many links", path.join("/"))));
                    }
                    let target = fs::read_link(&next).on("read link", &next)?;
                    let target = target.to_str().ok_or_else(|| self.hostile("a link target is not text"))?.to_owned();
                    if target.starts_with('/') {
                        here.clear();
                    }
                    for part in target.split('/').rev().filter(|p| !p.is_empty() && *p != ".") {
                        left.push_front(part.to_owned());
                    }
                }
                Ok(_) => return Err(self.hostile(format!("`{}` passes through a file", path.join("/")))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(&next).on("make folder", &next)?;
                    here.push(name);
                }
                Err(e) => return Err(ImageError::io("look at", &next, e)),
            }
        }
        Ok(here.iter().fold(self.root.to_path_buf(), |p, c| p.join(c)))
    }
}

/// Splits the path of an archive entry, refusing what leads elsewhere.
pub(crate) fn parts(path: &[u8]) -> Result<Vec<String>, &'static str> {
    let path = std::str::from_utf8(path).map_err(|_| "a path is not UTF-8")?;
    if path.starts_with('/') {
        return Err("a path is absolute");
    }
    if path.len() > 4095 || path.bytes().any(|b| b == 0 || b == b'\n') {
        return Err("a path is malformed");
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err("a path climbs with `..`"),
            part if part.len() > 255 => return Err("a path is malformed"),
            part => parts.push(part.to_owned()),
        }
    }
    Ok(parts)
}

/// Writes a file of ours below `root`, making its folders.
pub(crate) fn put(root: &Path, path: &str, bytes: &[u8]) -> Result<(), ImageError> {
    let place = root.join(path);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).on("make folder", parent)?;
    }
    fs::write(&place, bytes).on("write", &place)
}

/// Makes a link of ours below `root`, replacing what is there.
pub(crate) fn put_link(root: &Path, path: &str, target: &str) -> Result<(), ImageError> {
    let place = root.join(path);
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent).on("make folder", parent)?;
    }
    match fs::symlink_metadata(&place) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&place).on("replace", &place)?,
        Ok(_) => fs::remove_file(&place).on("replace", &place)?,
        Err(_) => {}
    }
    symlink(target, &place).on("make link", &place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: Bounds = Bounds { bytes: 1000, entries: 100 };

    fn p(path: &str) -> Vec<String> {
        parts(path.as_bytes()).unwrap()
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for bad in ["/etc/passwd", "../x", "a/../../x", "a\0b", "a\nb"] {
            assert!(parts(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parts(b"\xff").is_err());
        assert_eq!(p("./a//b/./c/"), ["a", "b", "c"]);
    }

    #[test]
    fn a_link_out_of_the_tree_is_not_written_through() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("root");
        let outside = home.path().join("outside");
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        let mut tree = Tree::new(&root, "evil", MANY);
        tree.link(&p("abs"), outside.to_str().unwrap()).unwrap();
        tree.file(&p("abs/x"), false, 1, &mut b"x".as_slice()).unwrap();
        assert!(!outside.join("x").exists(), "an absolute link is a link within the tree");
        assert!(root.join(outside.strip_prefix("/").unwrap()).join("x").exists());

        tree.link(&p("up"), "../outside").unwrap();
        assert!(matches!(tree.file(&p("up/x"), false, 1, &mut b"x".as_slice()), Err(ImageError::Hostile { .. })));
        assert!(!outside.join("x").exists());
    }

    #[test]
    fn a_file_replaces_a_link_and_does_not_follow_it() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("root");
        fs::create_dir_all(&root).unwrap();
        fs::write(home.path().join("victim"), "safe").unwrap();
        let mut tree = Tree::new(&root, "evil", MANY);
        tree.link(&p("x"), home.path().join("victim").to_str().unwrap()).unwrap();
        tree.file(&p("x"), false, 4, &mut b"evil".as_slice()).unwrap();
        assert_eq!(fs::read(home.path().join("victim")).unwrap(), b"safe");
    }

    #[test]
    fn loops_bombs_and_odd_hard_links_end() {
        let home = tempfile::tempdir().unwrap();
        let mut tree = Tree::new(home.path(), "evil", MANY);
        tree.link(&p("a"), "b").unwrap();
        tree.link(&p("b"), "a").unwrap();
        assert!(tree.file(&p("a/x"), false, 0, &mut io::empty()).is_err());
        assert!(tree.hard_link(&p("h"), &p("etc/shadow")).is_err());
        assert!(tree.file(&p("big"), false, 1001, &mut io::repeat(0)).is_err());
        assert!(tree.file(&p("cut"), false, 10, &mut b"x".as_slice()).is_err());
        for n in 0..200 {
            if tree.folder(&p(&format!("d{n}"))).is_err() {
                return;
            }
        }
        unreachable!("entries are bounded");
    }
}
