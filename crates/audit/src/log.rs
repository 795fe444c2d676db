//! The log itself: entries come in from spools in batches, and each batch is committed by one signed checkpoint.
//!
//! Every file is written whole beside its place and renamed into it; the checkpoint comes last and is the commit.
//! What lies beyond the checkpoint after a crash is written again with the same or other content before any
//! checkpoint covers it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointError, Signer};
use crate::entry::Entry;
use crate::rfc6962::{Edge, TILE_WIDTH, leaf_hash};
use crate::spool;
use crate::tiles::{self, Kind};

/// How many entries one batch takes from one spool.
const BATCH: usize = 4096;

/// Space behind moved entries is freed in steps of this many bytes.
const PUNCH_BYTES: u64 = 1 << 20;

/// Why the log cannot be opened or extended.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The checkpoint on disk is not ours.
    #[error("the audit log's checkpoint is not believed")]
    Checkpoint(#[source] CheckpointError),
    /// The file system refused.
    #[error("cannot {doing} `{path}`")]
    File {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Its word.
        #[source]
        source: io::Error,
    },
}

impl ringfence_model::Explain for LogError {
    fn code(&self) -> &'static str {
        match self {
            Self::Checkpoint(_) => "audit.checkpoint",
            Self::File { .. } => "audit.file",
        }
    }

    fn fault(&self) -> ringfence_model::Fault {
        ringfence_model::Fault::Us
    }

    fn hint(&self) -> Option<String> {
        Some("run `ringfence audit verify`".into())
    }
}

/// How far a source has been moved into the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    seq: u64,
    offset: u64,
    freed: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Cursors {
    /// The size of the log that this file speaks of.
    size: u64,
    sources: BTreeMap<String, Cursor>,
}

/// The log, open for appending. One process holds it.
pub struct Log {
    folder: PathBuf,
    signer: Signer,
    edge: Edge,
    /// Entries of the unfinished bundle.
    tail: Vec<Vec<u8>>,
    cursors: Cursors,
    _lock: File,
}

/// What one round of moving did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Entries appended.
    pub appended: u64,
    /// Lines that were no entries of that source, and were left out.
    pub refused: u64,
    /// Places where numbers of a source were missing: source, number expected, number found.
    pub gaps: Vec<(String, u64, u64)>,
}

impl Log {
    /// Opens or begins the log in `folder`.
    ///
    /// # Errors
    /// [`LogError`]; a log whose checkpoint is not signed by `signer` is not touched.
    pub fn open(folder: &Path, signer: Signer) -> Result<Self, LogError> {
        let file = |doing, path: &Path| {
            let path = path.to_path_buf();
            move |source| LogError::File { doing, path, source }
        };
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        let lock_path = folder.join("lock");
        let lock = File::create(&lock_path).map_err(file("create", &lock_path))?;
        lock.try_lock().map_err(|e| file("lock", &lock_path)(e.into()))?;
        let at = folder.join("checkpoint");
        let size = match fs::read_to_string(&at) {
            Ok(note) => Checkpoint::open(&note, &signer.verifier()).map_err(LogError::Checkpoint)?.size,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(file("read", &at)(e)),
        };
        let edge = Edge::load(size, |level, number, width| tiles::read_hashes(folder, level, number, width))
            .map_err(file("read tiles of", folder))?;
        let width = usize::try_from(size % TILE_WIDTH as u64).unwrap_or(0);
        let tail = if width == 0 {
            Vec::new()
        } else {
            tiles::read_entries(folder, size / TILE_WIDTH as u64, width).map_err(file("read entries of", folder))?
        };
        let mut log = Self { folder: folder.into(), signer, edge, tail, cursors: Cursors::default(), _lock: lock };
        log.load_cursors().map_err(file("read entries of", folder))?;
        Ok(log)
    }

    fn load_cursors(&mut self) -> io::Result<()> {
        if let Ok(bytes) = fs::read(self.folder.join("cursors.json"))
            && let Ok(cursors) = serde_json::from_slice::<Cursors>(&bytes)
            && cursors.size <= self.size()
        {
            self.cursors = cursors;
        }
        // The file is written after the checkpoint, so it may be behind: read on from where it stands.
        for index in self.cursors.size..self.size() {
            for bytes in read_range(&self.folder, self.size(), index, index + 1)? {
                if let Ok(entry) = serde_json::from_slice::<Entry>(&bytes) {
                    let cursor = self.cursors.sources.entry(entry.source).or_default();
                    cursor.seq = cursor.seq.max(entry.seq);
                }
            }
        }
        self.cursors.size = self.size();
        Ok(())
    }

    /// How many entries the log holds.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.edge.size()
    }

    /// The folder it lies in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The signed checkpoint over everything in it.
    #[must_use]
    pub fn checkpoint(&self) -> String {
        self.signer.sign(self.size(), self.edge.root())
    }

    /// How far `source` has come in.
    #[must_use]
    pub fn seq_of(&self, source: &str) -> u64 {
        self.cursors.sources.get(source).map_or(0, |c| c.seq)
    }

    /// Moves what the spools hold into the log and commits it. `spools` are (path, source) pairs.
    ///
    /// # Errors
    /// [`LogError`]; then nothing was committed, and the same call may be made again.
    pub fn take_from(&mut self, spools: &[(PathBuf, String)]) -> Result<Moved, LogError> {
        let mut moved = Moved::default();
        let mut batch = Vec::new();
        let mut cursors = self.cursors.sources.clone();
        for (path, source) in spools {
            let mut file = match File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(LogError::File { doing: "open", path: path.clone(), source }),
            };
            let cursor = cursors.entry(source.clone()).or_default();
            let lines = spool::read_lines(&mut file, cursor.offset, BATCH).map_err(|source| LogError::File {
                doing: "read",
                path: path.clone(),
                source,
            })?;
            for (line, offset) in lines {
                cursor.offset = offset;
                let line = match line.iter().position(|b| *b != 0) {
                    Some(at) => line.get(at..).unwrap_or_default(),
                    None => continue,
                };
                match serde_json::from_slice::<Entry>(line) {
                    Ok(entry) if entry.source == *source => {
                        if entry.seq <= cursor.seq {
                            continue; // moved before the last crash
                        }
                        if entry.seq != cursor.seq + 1 {
                            moved.gaps.push((source.clone(), cursor.seq + 1, entry.seq));
                        }
                        cursor.seq = entry.seq;
                        batch.push(line.to_vec());
                    }
                    _ => moved.refused += 1,
                }
            }
        }
        moved.appended = batch.len() as u64;
        if !batch.is_empty() {
            self.commit(batch)?;
        }
        let changed = self.cursors.sources != cursors;
        self.cursors = Cursors { size: self.size(), sources: cursors };
        if changed {
            self.free(spools);
            let text = serde_json::to_vec(&self.cursors).unwrap_or_default();
            let path = self.folder.join("cursors.json");
            tiles::write_whole(&path, &text).map_err(|source| LogError::File { doing: "write", path, source })?;
        }
        Ok(moved)
    }

    fn commit(&mut self, batch: Vec<Vec<u8>>) -> Result<(), LogError> {
        let mut edge = self.edge.clone();
        let mut tail = self.tail.clone();
        let write = |path: PathBuf, bytes: &[u8]| {
            let path = self.folder.join(path);
            tiles::write_whole(&path, bytes).map_err(|source| LogError::File { doing: "write", path, source })
        };
        let before: Vec<(usize, u64, usize)> = edge.unfinished().map(|(l, n, h)| (l, n, h.len())).collect();
        for entry in batch {
            let finished = edge.append(leaf_hash(&entry));
            tail.push(entry);
            if tail.len() == TILE_WIDTH {
                let number = edge.size() / TILE_WIDTH as u64 - 1;
                write(tiles::path(Kind::Entries, number, TILE_WIDTH), &tiles::bundle(&tail))?;
                tail.clear();
            }
            for tile in finished {
                write(tiles::path(Kind::Hashes(tile.level), tile.number, TILE_WIDTH), &tile.hashes.concat())?;
            }
        }
        if !tail.is_empty() {
            let number = edge.size() / TILE_WIDTH as u64;
            write(tiles::path(Kind::Entries, number, tail.len()), &tiles::bundle(&tail))?;
        }
        let after: Vec<(usize, u64, usize)> = edge.unfinished().map(|(l, n, h)| (l, n, h.len())).collect();
        for (level, number, hashes) in edge.unfinished() {
            write(tiles::path(Kind::Hashes(level), number, hashes.len()), &hashes.concat())?;
        }
        write("checkpoint".into(), self.signer.sign(edge.size(), edge.root()).as_bytes())?;
        // Committed. Partial tiles that others replace may go.
        for old in before.iter().filter(|old| !after.contains(old)) {
            let (level, number, width) = *old;
            let _ = fs::remove_file(self.folder.join(tiles::path(Kind::Hashes(level), number, width)));
            if level == 0 {
                let _ = fs::remove_file(self.folder.join(tiles::path(Kind::Entries, number, width)));
            }
        }
        self.edge = edge;
        self.tail = tail;
        Ok(())
    }

    /// Gives the disk back what lies behind the cursors.
    fn free(&mut self, spools: &[(PathBuf, String)]) {
        use rustix::fs::{FallocateFlags, fallocate};
        for (path, source) in spools {
            let Some(cursor) = self.cursors.sources.get_mut(source) else { continue };
            if cursor.offset.saturating_sub(cursor.freed) < PUNCH_BYTES {
                continue;
            }
            let Ok(file) = File::options().write(true).open(path) else { continue };
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Whole pages only; the rest goes next time. Where the file system cannot, the space stays taken.
            let end = cursor.offset & !4095;
            if fallocate(&file, flags, 0, end).is_ok() {
                cursor.freed = end;
            }
        }
    }
}

/// Reads entries `from..to` of a log of `size` entries, as they were recorded.
///
/// # Errors
/// Whatever the file system says.
pub fn read_range(folder: &Path, size: u64, from: u64, to: u64) -> io::Result<Vec<Vec<u8>>> {
    let mut entries = Vec::new();
    let to = to.min(size);
    let mut at = from;
    while at < to {
        let number = at / TILE_WIDTH as u64;
        let first = number * TILE_WIDTH as u64;
        let width = usize::try_from((size - first).min(TILE_WIDTH as u64)).unwrap_or(TILE_WIDTH);
        let bundle = tiles::read_entries(folder, number, width)?;
        let skip = usize::try_from(at - first).unwrap_or(0);
        let take = usize::try_from(to - at).unwrap_or(usize::MAX);
        let before = entries.len();
        entries.extend(bundle.into_iter().skip(skip).take(take));
        at += (entries.len() - before) as u64;
    }
    Ok(entries)
}

/// The size that the checkpoint in `folder` speaks of, unverified; 0 where there is none.
#[must_use]
pub fn size_on_disk(folder: &Path) -> u64 {
    fs::read_to_string(folder.join("checkpoint")).ok().and_then(|note| note.lines().nth(1)?.parse().ok()).unwrap_or(0)
}
