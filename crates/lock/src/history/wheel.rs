//! A look into a wheel that lies on a server: its list of files, and single files of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Seek, SeekFrom};

use ringfence_image::fetch::{FetchError, Fetcher};
use ringfence_model::work::Progress;
use zip::ZipArchive;

use super::release::File;
use crate::syntax::{self, Exports, MAX_SOURCE};

/// What is fetched at once.
const BLOCK: u64 = 128 << 10;

/// What is fetched of one wheel at most.
const MOST: u64 = 24 << 20;

/// Files of a wheel at most; the largest that are seen have 30,000.
const MAX_FILES: usize = 200_000;

/// How many modules a name is followed through.
const MAX_STARS: usize = 8;

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// Only running it would tell: a compiled module, or names made up as it runs.
    Unknown,
}

/// Bytes that can be read from any place.
trait Bytes: Read + Seek {}

impl<T: Read + Seek> Bytes for T {}

/// What is in a wheel.
pub struct Contents<'a> {
    archive: ZipArchive<Box<dyn Bytes + 'a>>,
    /// Paths, each with its place in the archive.
    files: BTreeMap<String, usize>,
    folders: BTreeSet<String>,
}

impl<'a> Contents<'a> {
    /// Opens a wheel on a server.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    pub fn open(fetcher: &Fetcher, file: &File, progress: &'a dyn Progress) -> Result<Self, String> {
        let size = match file.size {
            Some(size) => size,
            None => return Err("the index does not say how long it is".into()),
        };
        let remote = Remote {
            fetcher: fetcher.clone(),
            url: file.url.clone(),
            size,
            at: 0,
            blocks: BTreeMap::new(),
            fetched: 0,
            progress,
        };
        Self::read(remote)
    }

    /// Reads the list of files of a wheel.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    pub fn read(bytes: impl Read + Seek + 'a) -> Result<Self, String> {
        let bytes: Box<dyn Bytes + 'a> = Box::new(bytes);
        let archive = ZipArchive::new(bytes).map_err(|e| e.to_string())?;
        if archive.len() > MAX_FILES {
            return Err(format!("it has more than {MAX_FILES} files"));
        }
        let place = |at: usize| {
            let path = archive.name_for_index(at)?.ok()?;
            Some((importable(&path)?.to_owned(), at))
        };
        let files: BTreeMap<String, usize> = (0..archive.len()).filter_map(place).collect();
        let mut folders = BTreeSet::new();
        for path in files.keys() {
            let mut folder = path.as_str();
            while let Some((above, _)) = folder.rsplit_once('/') {
                if !folders.insert(above.to_owned()) {
                    break;
                }
                folder = above;
            }
        }
        Ok(Self { archive, files, folders })
    }

    /// Whether a module, or a name in one, is there: `a.b` or `a.b.C`.
    pub fn has(&mut self, dotted: &str) -> Has {
        let path = dotted.replace('.', "/");
        if self.is_module(&path) {
            return Has::Yes;
        }
        let Some((module, name)) = dotted.rsplit_once('.') else { return Has::No };
        self.name(&module.replace('.', "/"), name, &mut 0)
    }

    /// First parts of the names that can be imported.
    #[must_use]
    pub fn modules(&self) -> BTreeSet<&str> {
        let first = |path: &'_ String| -> Option<usize> { path.find(['/', '.']) };
        let modules = self.files.keys().filter_map(|path| path.get(..first(path)?));
        modules.filter(|name| !name.contains('-')).collect()
    }

    /// The text of `METADATA`, if it is as long as one.
    pub fn metadata(&mut self) -> Option<String> {
        let path = self.files.keys().find(|path| path.ends_with(".dist-info/METADATA"))?.clone();
        self.text(&path)
    }

    fn is_module(&self, path: &str) -> bool {
        self.folders.contains(path) || self.source(path).is_some() || self.is_compiled(path)
    }

    fn source(&self, path: &str) -> Option<String> {
        [format!("{path}.py"), format!("{path}/__init__.py")].into_iter().find(|path| self.files.contains_key(path))
    }

    fn is_compiled(&self, path: &str) -> bool {
        let begins = format!("{path}.");
        let next = self.files.range(begins.clone()..).next().map(|(found, _)| found.as_str());
        next.is_some_and(|found| found.starts_with(&begins) && (found.ends_with(".so") || found.ends_with(".pyd")))
    }

    fn name(&mut self, module: &str, name: &str, followed: &mut usize) -> Has {
        let Some(path) = self.source(module) else {
            let known = self.is_compiled(module);
            return if known { Has::Unknown } else { Has::No };
        };
        let Some(text) = self.text(&path) else { return Has::Unknown };
        let exports: Exports = syntax::exports(&text);
        if exports.names.contains(name) {
            return Has::Yes;
        }
        if exports.made {
            // Modules that make their names as they are asked have a list of them.
            let listed =
                [format!("\"{name}\""), format!("'{name}'")].iter().any(|quoted| text.contains(quoted.as_str()));
            return if listed { Has::Yes } else { Has::Unknown };
        }
        let package = if path.ends_with("/__init__.py") {
            module
        } else {
            module.rsplit_once('/').map_or("", |(above, _)| above)
        };
        let mut found = Has::No;
        for (level, star) in exports.stars {
            *followed += 1;
            let Some(star) = absolute(package, level, &star).filter(|_| *followed <= MAX_STARS) else {
                return Has::Unknown;
            };
            match self.is_module(&star).then(|| self.name(&star, name, followed)) {
                Some(Has::Yes) => return Has::Yes,
                Some(Has::No) => {}
                // Of another distribution, or beyond what can be told.
                None | Some(Has::Unknown) => found = Has::Unknown,
            }
        }
        found
    }

    fn text(&mut self, path: &str) -> Option<String> {
        let entry = self.archive.by_index(*self.files.get(path)?).ok()?;
        let mut bytes = Vec::new();
        entry.take(MAX_SOURCE as u64 + 1).read_to_end(&mut bytes).ok()?;
        (bytes.len() <= MAX_SOURCE).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Where a file of a wheel comes to lie among what can be imported.
fn importable(path: &str) -> Option<&str> {
    let data = path.split_once(".data/").filter(|(before, _)| !before.contains('/')).map(|(_, rest)| rest);
    match data {
        Some(rest) => rest.strip_prefix("purelib/").or_else(|| rest.strip_prefix("platlib/")),
        None => Some(path),
    }
}

/// The path of a module that is named from within a package.
fn absolute(package: &str, level: u32, module: &str) -> Option<String> {
    let module = module.replace('.', "/");
    if level == 0 {
        return Some(module);
    }
    let mut base = package;
    for _ in 1..level {
        base = base.rsplit_once('/').map_or("", |(above, _)| above);
    }
    match (base, module.as_str()) {
        ("", _) => None,
        (base, "") => Some(base.to_owned()),
        (base, module) => Some(format!("{base}/{module}")),
    }
}

/// A file on a server, of which what is read is fetched.
struct Remote<'a> {
    fetcher: Fetcher,
    url: String,
    size: u64,
    at: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
    fetched: u64,
    progress: &'a dyn Progress,
}

impl Remote<'_> {
    fn block(&mut self, number: u64) -> io::Result<&[u8]> {
        if !self.blocks.contains_key(&number) {
            let (first, last) = (number * BLOCK, ((number + 1) * BLOCK).min(self.size) - 1);
            let length = last - first + 1;
            if self.fetched + length > MOST {
                return Err(io::Error::other(format!("more than {} MiB of it would have to be fetched", MOST >> 20)));
            }
            self.fetched += length;
            let range = format!("bytes={first}-{last}");
            let fetched = self.fetcher.page(&self.url, &[("range", &range)], length, self.progress);
            let bytes = match fetched {
                Ok(page) if page.body.len() as u64 == length => page.body,
                Ok(_) | Err(FetchError::TooLong(_)) => {
                    return Err(io::Error::other("the server gives no parts of files"));
                }
                Err(error) => return Err(io::Error::other(error.to_string())),
            };
            self.blocks.insert(number, bytes);
        }
        Ok(self.blocks.get(&number).map(Vec::as_slice).unwrap_or_default())
    }
}

impl Read for Remote<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.size || buffer.is_empty() {
            return Ok(0);
        }
        let (number, offset) = (self.at / BLOCK, usize::try_from(self.at % BLOCK).unwrap_or(usize::MAX));
        let block = self.block(number)?;
        let rest = block.get(offset..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Remote<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "before the beginning"))?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn wheel(files: &[(&str, &str)]) -> Contents<'static> {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (path, text) in files {
            writer.start_file(*path, SimpleFileOptions::default()).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        Contents::read(Cursor::new(writer.finish().unwrap().into_inner())).unwrap()
    }

    #[test]
    fn modules_and_names_are_found_where_they_are() {
        let mut wheel = wheel(&[
            ("pack/__init__.py", "from .inner import Shown\nfrom .far import *\nVALUE = 1\nif x:\n    LATER = 2\n"),
            ("pack/inner.py", "class Shown:\n    hidden = 1\ndef call():\n    local = 1\n"),
            ("pack/far/__init__.py", "from ..deep import *\nfrom elsewhere import *\n"),
            ("pack/deep.py", "Deep = 1\n"),
            ("pack/lazy.py", "_names = {'Old': 1}\ndef __getattr__(name):\n    return 1\n"),
            ("pack/fast.cpython-311-x86_64-linux-gnu.so", ""),
            ("space/only/thing.py", ""),
            ("pack-1.0.data/purelib/moved.py", "x = 1\n"),
            ("pack-1.0.data/scripts/run", ""),
            ("pack-1.0.dist-info/METADATA", "Name: pack\n"),
        ]);
        for (name, want) in [
            ("pack", Has::Yes),
            ("pack.inner", Has::Yes),
            ("pack.inner.Shown", Has::Yes),
            ("pack.inner.hidden", Has::No),
            ("pack.inner.local", Has::No),
            ("pack.inner.call", Has::Yes),
            ("pack.Shown", Has::Yes),
            ("pack.VALUE", Has::Yes),
            ("pack.LATER", Has::Yes),
            ("pack.Deep", Has::Yes),
            ("pack.far.Deep", Has::Yes),
            ("pack.far.Other", Has::Unknown),
            ("pack.inner.Gone", Has::No),
            ("pack.gone", Has::Unknown),
            ("pack.deep.Gone", Has::No),
            ("pack.lazy.Old", Has::Yes),
            ("pack.lazy.New", Has::Unknown),
            ("pack.fast", Has::Yes),
            ("pack.fast.anything", Has::Unknown),
            ("pack.gone.Name", Has::No),
            ("space.only", Has::Yes),
            ("space.only.thing", Has::Yes),
            ("space.other", Has::No),
            ("moved.x", Has::Yes),
            ("other", Has::No),
        ] {
            assert_eq!(wheel.has(name), want, "{name}");
        }
        assert_eq!(wheel.modules().into_iter().collect::<Vec<_>>(), ["moved", "pack", "space"]);
        assert_eq!(wheel.metadata().as_deref(), Some("Name: pack\n"));
    }

    #[test]
    fn stars_that_lead_in_a_circle_end() {
        let mut wheel = wheel(&[("a.py", "from b import *\n"), ("b.py", "from a import *\n")]);
        assert_eq!(wheel.has("a.x"), Has::Unknown);
        assert!(Contents::read(Cursor::new(b"no wheel".to_vec())).is_err());
    }
}
