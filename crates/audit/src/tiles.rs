//! Where tiles and entries lie on disk (C2SP `tlog-tiles`), and how they get there whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::rfc6962::{Hash, TILE_WIDTH};

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Entries.
    Entries,
    /// Hashes at a level.
    Hashes(usize),
}

/// The path of a tile below the log's folder; `width` 256 means whole.
#[must_use]
pub fn path(kind: Kind, number: u64, width: usize) -> PathBuf {
    let mut groups = vec![format!("{:03}", number % 1000)];
    let mut rest = number / 1000;
    while rest > 0 {
        groups.push(format!("x{:03}", rest % 1000));
        rest /= 1000;
    }
    groups.reverse();
    let kind = match kind {
        Kind::Entries => "entries".to_owned(),
        Kind::Hashes(level) => level.to_string(),
    };
    let tile = format!("tile/{kind}/{}", groups.join("/"));
    if width == TILE_WIDTH { tile.into() } else { format!("{tile}.p/{width}").into() }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// Whatever the file system says.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let half = path.with_extension("half");
    let mut file = File::create(&half)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&half, path)
}

/// Reads the hashes of a tile; a partial one may also be taken from the front of a wider or the whole one.
///
/// # Errors
/// Whatever the file system says; [`io::ErrorKind::InvalidData`] if it holds another number of bytes.
pub fn read_hashes(log: &Path, level: usize, number: u64, width: usize) -> io::Result<Vec<Hash>> {
    let bytes = match fs::read(log.join(path(Kind::Hashes(level), number, width))) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::read(log.join(path(Kind::Hashes(level), number, TILE_WIDTH)))?
        }
        read => read?,
    };
    let (hashes, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() || hashes.len() < width {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} bytes of hashes", bytes.len())));
    }
    Ok(hashes.iter().take(width).copied().collect())
}

/// Puts entries into the form of a bundle: each with 16 bits of length before it.
#[must_use]
pub fn bundle(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.iter().map(|e| e.len() + 2).sum());
    for entry in entries {
        let length = u16::try_from(entry.len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(entry.get(..usize::from(length)).unwrap_or_default());
    }
    bytes
}

/// Takes a bundle apart. `None` if a length does not fit.
#[must_use]
pub fn unbundle(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>() {
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        entries.push(entry.to_vec());
        bytes = rest;
    }
    bytes.is_empty().then_some(entries)
}

/// Reads the entries of a bundle; a partial one may also be taken from the front of the whole one.
///
/// # Errors
/// As [`read_hashes`].
pub fn read_entries(log: &Path, number: u64, width: usize) -> io::Result<Vec<Vec<u8>>> {
    let bytes = match fs::read(log.join(path(Kind::Entries, number, width))) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::read(log.join(path(Kind::Entries, number, TILE_WIDTH)))?,
        read => read?,
    };
    let mut entries =
        unbundle(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "broken entry bundle"))?;
    if entries.len() < width {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} of {width} entries", entries.len())));
    }
    entries.truncate(width);
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors: the examples of C2SP tlog-tiles.
    #[test]
    fn paths_are_those_of_the_standard() {
        assert_eq!(path(Kind::Hashes(0), 1_234_067, 256), Path::new("tile/0/x001/x234/067"));
        assert_eq!(path(Kind::Hashes(1), 0, 5), Path::new("tile/1/000.p/5"));
        assert_eq!(path(Kind::Entries, 273, 112), Path::new("tile/entries/273.p/112"));
    }

    proptest::proptest! {
        #[test]
        fn bundles_round_trip(entries in proptest::collection::vec(proptest::collection::vec(0u8.., 0..300), 0..50)) {
            proptest::prop_assert_eq!(unbundle(&bundle(&entries)), Some(entries));
        }

        #[test]
        fn hostile_bundles_do_no_harm(bytes in proptest::collection::vec(0u8.., 0..2000)) {
            if let Some(entries) = unbundle(&bytes) {
                proptest::prop_assert_eq!(bundle(&entries), bytes);
            }
        }
    }
}
