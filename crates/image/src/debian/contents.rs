//! Which package has a file, from a suite's `Contents` lists.
//!
//! # Source
//! Debian's repository format, "Contents indices".

use std::io::{BufRead, BufReader};

use ringfence_model::manifest;
use ringfence_model::work::Progress;

use super::{architecture, lists, opened, suite_for, tell};
use crate::error::{ImageError, OnPath};
use crate::fetch::Fetcher;
use crate::store::Store;

/// The longest line that is read; the longest that there is has some thousand characters.
const LINE: usize = 64 << 10;

/// A file of which the package is sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought<'a> {
    /// A shared library by its soname, such as `libGL.so.1`.
    Library(&'a str),
    /// A shared library by its name without version, such as `portaudio`.
    Named(&'a str),
    /// A shared library by what the linker is told, such as `z` of `-lz`.
    Linked(&'a str),
    /// A header by what `#include` says, such as `libpq-fe.h`.
    Header(&'a str),
    /// A program by its name.
    Program(&'a str),
    /// What `pkg-config` is asked for.
    PkgConfig(&'a str),
}

impl Sought<'_> {
    /// How well a path fits; the least is the best.
    fn fit(self, path: &str) -> Option<usize> {
        let below = |folders: &[&str], name: &str| {
            let folder = path.strip_suffix(name)?.strip_suffix('/')?;
            folders.iter().position(|known| folder == *known || triplet(folder) == Some(*known))
        };
        match self {
            Self::Library(name) => below(&["usr/lib", "lib"], name),
            Self::Named(name) => {
                let (folder, file) = path.rsplit_once('/')?;
                let version = file.strip_prefix("lib")?.strip_prefix(name)?.strip_prefix(".so.")?;
                let plain = version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
                let place =
                    ["usr/lib", "lib"].iter().position(|known| folder == *known || triplet(folder) == Some(*known))?;
                plain.then_some(place)
            }
            Self::Linked(name) => below(&["usr/lib"], &format!("lib{name}.so")),
            Self::Program(name) => below(&["usr/bin", "bin"], name),
            Self::PkgConfig(name) => below(&["usr/lib/pkgconfig", "usr/share/pkgconfig"], &format!("{name}.pc")),
            Self::Header(name) => {
                let folder = path.strip_suffix(name)?.strip_suffix('/')?.strip_prefix("usr/include")?;
                Some(folder.matches('/').count())
            }
        }
    }
}

/// `usr/lib` of `usr/lib/x86_64-linux-gnu`, and `usr/lib/pkgconfig` of `usr/lib/x86_64-linux-gnu/pkgconfig`.
fn triplet(folder: &str) -> Option<&'static str> {
    let arch = std::env::consts::ARCH;
    let rest = folder.strip_prefix("usr/").unwrap_or(folder).strip_prefix("lib/")?.strip_prefix(arch)?;
    match rest.strip_prefix("-linux-gnu")? {
        "" if folder.starts_with("usr/") => Some("usr/lib"),
        "" => Some("lib"),
        "/pkgconfig" => Some("usr/lib/pkgconfig"),
        _ => None,
    }
}

/// The package of the suite that has a file; `None` if none has, or the mirror has no such list.
///
/// # Errors
/// [`ImageError`] of the mirror.
pub fn package_of(
    store: &Store,
    image: &manifest::Image,
    sought: Sought<'_>,
    progress: &dyn Progress,
) -> Result<Option<String>, ImageError> {
    let suite = suite_for(image);
    let fetcher = Fetcher::new();
    let name = format!("Contents-{}", architecture());
    let mut best: Option<(usize, usize, String)> = None;
    for list in lists(store, &fetcher, &suite, image.mirror.as_deref(), &name, progress)? {
        tell(progress, "looking for the package of a file", 0, None);
        let mut lines = BufReader::new(opened(&list)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = std::io::Read::take(&mut lines, LINE as u64).read_until(b'\n', &mut line);
            if read.on("read", &list.path)? == 0 {
                break;
            }
            let Ok(text) = std::str::from_utf8(&line) else { continue };
            let Some((path, packages)) = text.trim_end().rsplit_once([' ', '\t']) else { continue };
            let Some(fit) = sought.fit(path.trim_end()) else { continue };
            for package in packages.split(',').filter_map(|package| package.rsplit('/').next()) {
                let found = (fit, package.len(), package.to_owned());
                best = Some(best.map_or(found.clone(), |best| best.min(found)));
            }
        }
    }
    Ok(best.map(|(_, _, package)| package))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_fit_or_do_not() {
        let triplet = format!("{}-linux-gnu", std::env::consts::ARCH);
        for (sought, path, fit) in [
            (Sought::Library("libGL.so.1"), format!("usr/lib/{triplet}/libGL.so.1"), Some(0)),
            (Sought::Library("libz.so.1"), format!("lib/{triplet}/libz.so.1"), Some(1)),
            (Sought::Library("libGL.so.1"), "usr/lib/other/libGL.so.1".into(), None),
            (Sought::Named("portaudio"), format!("usr/lib/{triplet}/libportaudio.so.2"), Some(0)),
            (Sought::Named("portaudio"), format!("usr/lib/{triplet}/libportaudiocpp.so.0"), None),
            (Sought::Named("portaudio"), format!("usr/lib/{triplet}/libportaudio.so"), None),
            (Sought::Header("libpq-fe.h"), "usr/include/postgresql/libpq-fe.h".into(), Some(1)),
            (Sought::Header("zlib.h"), "usr/include/zlib.h".into(), Some(0)),
            (Sought::Header("zlib.h"), "usr/share/doc/zlib.h".into(), None),
            (Sought::Header("lib.h"), "usr/include/zlib.h".into(), None),
            (Sought::Program("pg_config"), "usr/bin/pg_config".into(), Some(0)),
            (Sought::PkgConfig("libffi"), format!("usr/lib/{triplet}/pkgconfig/libffi.pc"), Some(0)),
            (Sought::PkgConfig("xproto"), "usr/share/pkgconfig/xproto.pc".into(), Some(1)),
        ] {
            assert_eq!(sought.fit(&path), fit, "{sought:?} {path}");
        }
    }
}
