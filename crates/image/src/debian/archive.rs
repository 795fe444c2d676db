//! Unpacks `.deb` files: no maintainer script is run, nothing leaves the tree.
//!
//! # Source
//! `deb(5)`.

use std::io::{self, Read};
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use tar::EntryType;

use crate::error::{ImageError, OnPath};
use crate::tree::{Bounds, Tree, parts};

const DROP: &str = include_str!("../../../../policies/image/drop.txt");
const UNPACKED: Bounds = Bounds { bytes: 4 << 30, entries: 200_000 };
/// Folders that are links into `/usr` in every image.
pub(crate) const MERGED: [&str; 6] = ["bin", "lib", "lib32", "lib64", "libx32", "sbin"];

/// Files of packages that do not go into an image.
pub(crate) struct Drops(Gitignore);

impl Drops {
    /// The list that ships with us.
    pub(crate) fn shipped() -> Result<Self, ImageError> {
        let bad =
            |e: ignore::Error| ImageError::StoreSyntax { what: "list", name: "drop.txt".into(), why: e.to_string() };
        let mut builder = GitignoreBuilder::new("/");
        for line in DROP.lines() {
            builder.add_line(None, line).map_err(bad)?;
        }
        builder.build().map(Self).map_err(bad)
    }

    /// Nothing: for what never goes into an image.
    pub(crate) fn none() -> Self {
        Self(Gitignore::empty())
    }

    /// Digest of the list, for cache keys.
    pub(crate) fn text() -> &'static str {
        DROP
    }

    fn covers(&self, path: &[String], folder: bool) -> bool {
        let path = format!("/{}", path.join("/"));
        self.0.matched(Path::new(&path), folder).is_ignore()
    }
}

/// Unpacks the files of the package at `deb` into `root`.
pub(crate) fn extract(deb: &Path, name: &str, root: &Path, drops: &Drops) -> Result<(), ImageError> {
    let file = std::fs::File::open(deb).on("open", deb)?;
    extract_from(io::BufReader::new(file), name, root, drops)
}

fn extract_from(from: impl Read, name: &str, root: &Path, drops: &Drops) -> Result<(), ImageError> {
    let hostile = |why: String| ImageError::Hostile { package: name.into(), why };
    let mut archive = ar::Archive::new(from);
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(|e| hostile(format!("it is no package: {e}")))?;
        let member_name = String::from_utf8_lossy(member.header().identifier()).trim_end_matches('/').to_owned();
        let reader: Box<dyn Read + '_> = match member_name.as_str() {
            "data.tar" => Box::new(member),
            "data.tar.gz" => Box::new(flate2::read::MultiGzDecoder::new(member)),
            "data.tar.xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(member)),
            "data.tar.zst" => Box::new(
                zstd::stream::read::Decoder::new(member)
                    .map_err(|e| hostile(format!("its data cannot be read: {e}")))?,
            ),
            other if other.starts_with("data.tar.") => {
                return Err(hostile(format!("its data are compressed in an unknown way: `{other}`")));
            }
            _ => continue,
        };
        return unpack(reader, name, root, drops);
    }
    Err(hostile("it has no data".into()))
}

fn unpack(reader: Box<dyn Read + '_>, name: &str, root: &Path, drops: &Drops) -> Result<(), ImageError> {
    let mut tree = Tree::new(root, name, UNPACKED);
    let mut archive = tar::Archive::new(reader);
    let broken = |e: io::Error| ImageError::Hostile { package: name.into(), why: format!("its data are broken: {e}") };
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = merged(parts(&entry.path_bytes()).map_err(|why| tree.hostile(why))?);
        let kind = entry.header().entry_type();
        if path.is_empty() || drops.covers(&path, kind.is_dir()) {
            continue;
        }
        let (size, mode) = (entry.size(), entry.header().mode().unwrap_or_default());
        match kind {
            EntryType::Directory => tree.folder(&path)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                tree.file(&path, mode & 0o111 != 0, size, &mut entry)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = std::str::from_utf8(&target).map_err(|_| tree.hostile("a link target is not UTF-8"))?;
                if !is_merged_folder(&path) {
                    tree.link(&path, target)?;
                }
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let original = merged(parts(&target).map_err(|why| tree.hostile(why))?);
                tree.hard_link(&path, &original)?;
            }
            // Device nodes and pipes have no place in an image.
            EntryType::Block | EntryType::Char | EntryType::Fifo => {}
            other => return Err(tree.hostile(format!("it has an entry of kind {other:?}"))),
        }
    }
    Ok(())
}

/// Whether a path is `usr/bin`, `usr/lib` and so on: such a link is the other half of the merge, and ours to make.
fn is_merged_folder(path: &[String]) -> bool {
    matches!(path, [usr, name] if usr == "usr" && MERGED.contains(&name.as_str()))
}

/// Moves `/bin`, `/lib` and so on, and what is below, to below `/usr`.
fn merged(mut path: Vec<String>) -> Vec<String> {
    if path.first().is_some_and(|first| MERGED.contains(&first.as_str())) {
        path.insert(0, "usr".into());
    }
    path
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use tar::Header;

    use super::*;

    type Made<'a> = (&'a str, EntryType, &'a str, u32, &'a [u8]);

    /// A `.deb` of raw entries: path, kind, link target, mode, content. Names are written as they are.
    fn deb(entries: &[Made<'_>], compression: &str) -> Vec<u8> {
        let mut tar = Vec::new();
        for (path, kind, target, mode, content) in entries {
            let mut header = Header::new_gnu();
            for (to, from) in header.as_old_mut().name.iter_mut().zip(path.bytes()) {
                *to = from;
            }
            for (to, from) in header.as_old_mut().linkname.iter_mut().zip(target.bytes()) {
                *to = from;
            }
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            header.set_cksum();
            tar.extend_from_slice(header.as_bytes());
            tar.extend_from_slice(content);
            tar.resize(tar.len().next_multiple_of(512), 0);
        }
        tar.extend_from_slice(&[0; 1024]);
        let data = match compression {
            ".gz" => {
                let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gz.write_all(&tar).unwrap();
                gz.finish().unwrap()
            }
            ".xz" => {
                let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
                xz.write_all(&tar).unwrap();
                xz.finish().unwrap()
            }
            ".zst" => zstd::encode_all(tar.as_slice(), 1).unwrap(),
            _ => tar,
        };
        let mut out = ar::Builder::new(Vec::new());
        for (name, bytes) in [("debian-binary", b"2.0\n".as_slice()), (&format!("data.tar{compression}"), &data)] {
            out.append(&ar::Header::new(name.as_bytes().to_vec(), bytes.len() as u64), bytes).unwrap();
        }
        out.into_inner().unwrap()
    }

    fn unpacked(entries: &[Made<'_>], compression: &str) -> Result<tempfile::TempDir, ImageError> {
        let home = tempfile::tempdir().unwrap();
        let drops = Drops::shipped().unwrap();
        fs::create_dir(home.path().join("root")).unwrap();
        extract_from(deb(entries, compression).as_slice(), "p", &home.path().join("root"), &drops).map(|()| home)
    }

    const FILE: EntryType = EntryType::Regular;
    const LINK: EntryType = EntryType::Symlink;

    #[test]
    fn every_compression_unpacks() {
        for compression in ["", ".gz", ".xz", ".zst"] {
            let home = unpacked(&[("./usr/bin/x", FILE, "", 0o755, b"hi")], compression).unwrap();
            assert_eq!(fs::read(home.path().join("root/usr/bin/x")).unwrap(), b"hi");
        }
        assert!(extract_from(b"junk".as_slice(), "p", Path::new("/nonexistent"), &Drops::shipped().unwrap()).is_err());
    }

    #[test]
    fn hostile_entries_are_refused() {
        let cases: [&[Made<'_>]; 6] = [
            &[("../../escape", FILE, "", 0o644, b"x")],
            &[("/etc/escape", FILE, "", 0o644, b"x")],
            &[("./a", LINK, "../..", 0o777, b""), ("./a/escape", FILE, "", 0o644, b"x")],
            &[("./a", EntryType::Link, "../../../etc/passwd", 0o644, b"")],
            &[("./a", EntryType::Link, "/etc/passwd", 0o644, b"")],
            &[("./a", FILE, "", 0o644, b"x"), ("./a/b", FILE, "", 0o644, b"x")],
        ];
        for case in cases {
            let refused = unpacked(case, "");
            assert!(matches!(refused, Err(ImageError::Hostile { .. })), "{:?}", case[0].0);
        }
    }

    #[test]
    fn what_an_image_must_not_have_is_left_out() {
        let home = unpacked(
            &[
                ("./bin/sh", FILE, "", 0o755, b"#"),
                ("./bin/su", FILE, "", 0o4755, b"#"),
                ("./bin", LINK, "usr/bin", 0o777, b""),
                ("./dev/sda", EntryType::Block, "", 0o660, b""),
                ("./usr/share/man/man1/x.1", FILE, "", 0o644, b"#"),
                ("./usr/share/doc/x/changelog", FILE, "", 0o644, b"#"),
                ("./usr/share/doc/x/copyright", FILE, "", 0o644, b"#"),
                ("./usr/lib/python3.11/lib2to3/tests/x.py", FILE, "", 0o644, b"#"),
                ("./usr/lib/python3.11/unittest/x.py", FILE, "", 0o644, b"#"),
            ],
            "",
        )
        .unwrap();
        let root = home.path().join("root");
        for gone in
            ["bin", "dev", "usr/bin/sh", "usr/share/man", "usr/share/doc/x/changelog", "usr/lib/python3.11/lib2to3"]
        {
            assert!(!root.join(gone).exists(), "{gone}");
        }
        for kept in ["usr/share/doc/x/copyright", "usr/lib/python3.11/unittest/x.py"] {
            assert!(root.join(kept).exists(), "{kept}");
        }
        assert_eq!(fs::metadata(root.join("usr/bin/su")).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}
