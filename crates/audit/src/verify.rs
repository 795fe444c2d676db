//! Proving a log whole, by anybody who has its files and its public key.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Verifier};
use crate::entry::Entry;
use crate::rfc6962::{Edge, TILE_WIDTH, leaf_hash};
use crate::tiles;

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verification {
    /// Whether the log is whole.
    pub whole: bool,
    /// Entries that the checkpoint covers.
    pub size: u64,
    /// The signed root, in hex.
    pub root: String,
    /// The first bad place, if any.
    pub problem: Option<Problem>,
}

/// The first bad place of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Problem {
    /// Number of the first entry concerned, where one can be named.
    pub entry: Option<u64>,
    /// What is wrong.
    pub what: String,
}

fn problem(entry: Option<u64>, what: impl Into<String>) -> Option<Problem> {
    Some(Problem { entry, what: what.into() })
}

/// Checks every entry, every tile and the checkpoint in `folder`.
///
/// `at_least` is the size that somebody remembers from before; a smaller log was cut and signed again, or put
/// back from a copy.
#[must_use]
pub fn verify(folder: &Path, verifier: &Verifier, at_least: u64) -> Verification {
    let mut result = Verification { whole: false, size: 0, root: String::new(), problem: None };
    let note = match fs::read_to_string(folder.join("checkpoint")) {
        Ok(note) => note,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && at_least == 0 => {
            result.whole = true;
            return result;
        }
        Err(e) => {
            result.problem = problem(None, format!("the checkpoint cannot be read: {e}"));
            return result;
        }
    };
    let checkpoint = match Checkpoint::open(&note, verifier) {
        Ok(checkpoint) => checkpoint,
        Err(e) => {
            result.problem = problem(None, format!("the checkpoint is not believed: {e}"));
            return result;
        }
    };
    result.size = checkpoint.size;
    result.root = ringfence_model::Digest::from_raw(checkpoint.root).hex();
    result.problem = if checkpoint.size < at_least {
        problem(
            Some(checkpoint.size),
            format!("the log ends at {} entries, but {at_least} were there before", checkpoint.size),
        )
    } else {
        first_problem(folder, &checkpoint)
    };
    result.whole = result.problem.is_none();
    result
}

fn first_problem(folder: &Path, checkpoint: &Checkpoint) -> Option<Problem> {
    let mut edge = Edge::default();
    let mut seqs = std::collections::BTreeMap::new();
    let bundles = checkpoint.size.div_ceil(TILE_WIDTH as u64);
    for number in 0..bundles {
        let first = number * TILE_WIDTH as u64;
        let width = usize::try_from((checkpoint.size - first).min(TILE_WIDTH as u64)).unwrap_or(TILE_WIDTH);
        let entries = match tiles::read_entries(folder, number, width) {
            Ok(entries) => entries,
            Err(e) => {
                return problem(
                    Some(first),
                    format!("entries {first} to {} are missing or cut: {e}", first + width as u64 - 1),
                );
            }
        };
        let hashes = match tiles::read_hashes(folder, 0, number, width) {
            Ok(hashes) => hashes,
            Err(e) => return problem(Some(first), format!("hashes of entries from {first} are missing or cut: {e}")),
        };
        for ((index, bytes), recorded) in (first..).zip(&entries).zip(&hashes) {
            let leaf = leaf_hash(bytes);
            if leaf != *recorded {
                return problem(
                    Some(index),
                    "the entry does not have the hash recorded for it: it was changed, moved or replaced",
                );
            }
            match serde_json::from_slice::<Entry>(bytes) {
                Ok(entry) => {
                    let last = seqs.insert(entry.source.clone(), entry.seq).unwrap_or(0);
                    if entry.seq <= last {
                        return problem(
                            Some(index),
                            format!("entry {} of `{}` comes after its entry {last}", entry.seq, entry.source),
                        );
                    }
                }
                Err(e) => return problem(Some(index), format!("the entry is not readable: {e}")),
            }
            for whole in edge.append(leaf) {
                let recorded = tiles::read_hashes(folder, whole.level, whole.number, TILE_WIDTH);
                if !recorded.is_ok_and(|hashes| hashes == whole.hashes) {
                    return problem(
                        Some(first),
                        format!("tile {} at level {} does not follow from its entries", whole.number, whole.level),
                    );
                }
            }
        }
    }
    if edge.root() != checkpoint.root {
        let unfinished = checkpoint.size - checkpoint.size % TILE_WIDTH as u64;
        return problem(
            None,
            format!(
                "the signed root does not follow from the entries: something before entry {} was changed together with its hashes (last whole tile ends at {unfinished})",
                checkpoint.size
            ),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Signer;
    use crate::entry::Event;
    use crate::log::Log;
    use crate::spool::{Origin, Record, Spool};
    use jiff::Timestamp;
    use std::fs::File;
    use std::path::PathBuf;

    struct Fixture {
        dir: tempfile::TempDir,
        spools: Vec<(PathBuf, String)>,
    }

    const SEED: [u8; 32] = [3; 32];

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let spools = vec![(dir.path().join("a.spool"), "a".into()), (dir.path().join("b.spool"), "b".into())];
            Self { dir, spools }
        }

        fn log(&self) -> PathBuf {
            self.dir.path().join("log")
        }

        fn signer() -> Signer {
            Signer::from_seed("test", &SEED).unwrap()
        }

        fn write(&self, which: usize, count: u64) {
            let (path, source) = &self.spools[which];
            let file = File::options().read(true).append(true).create(true).open(path).unwrap();
            let spool = Spool::open(file, Origin { source: source.clone(), agent: None, sandbox: None }, 1).unwrap();
            for n in 0..count {
                let event = Event::UdpDrop { destination: "192.0.2.1:9".into(), bytes: n, count: 1 };
                spool.record(Timestamp::UNIX_EPOCH, event).unwrap();
            }
        }

        fn take(&self) -> u64 {
            let mut log = Log::open(&self.log(), Self::signer()).unwrap();
            let moved = log.take_from(&self.spools).unwrap();
            assert_eq!((moved.refused, moved.gaps.len()), (0, 0));
            log.size()
        }

        fn verify(&self, at_least: u64) -> Verification {
            verify(&self.log(), &Self::signer().verifier(), at_least)
        }

        fn bundle(&self, number: u64, width: usize) -> PathBuf {
            self.log().join(tiles::path(tiles::Kind::Entries, number, width))
        }
    }

    fn filled() -> Fixture {
        let fixture = Fixture::new();
        fixture.write(0, 300);
        assert_eq!(fixture.take(), 300);
        fixture.write(1, 260);
        fixture.write(0, 5);
        assert_eq!(fixture.take(), 565);
        assert_eq!(fixture.take(), 565, "nothing is taken twice");
        assert!(fixture.verify(565).whole, "{:?}", fixture.verify(565));
        fixture
    }

    #[test]
    fn a_whole_log_verifies_and_an_empty_one_does() {
        filled();
        assert!(Fixture::new().verify(0).whole);
    }

    #[test]
    fn an_edited_entry_is_named() {
        let fixture = filled();
        let mut entries = tiles::read_entries(&fixture.log(), 1, 256).unwrap();
        let text = String::from_utf8(entries[14].clone()).unwrap().replace("192.0.2.1", "192.0.2.2");
        entries[14] = text.into_bytes();
        fs::write(fixture.bundle(1, 256), tiles::bundle(&entries)).unwrap();
        assert_eq!(fixture.verify(0).problem.unwrap().entry, Some(270));
    }

    #[test]
    fn reordered_entries_are_named() {
        let fixture = filled();
        let mut entries = tiles::read_entries(&fixture.log(), 0, 256).unwrap();
        entries.swap(7, 8);
        fs::write(fixture.bundle(0, 256), tiles::bundle(&entries)).unwrap();
        assert_eq!(fixture.verify(0).problem.unwrap().entry, Some(7));
    }

    #[test]
    fn a_truncated_log_is_named() {
        let fixture = filled();
        fs::remove_file(fixture.bundle(2, 53)).unwrap();
        assert_eq!(fixture.verify(0).problem.unwrap().entry, Some(512));
    }

    #[test]
    fn an_edit_that_also_rewrites_the_tiles_breaks_the_signed_root() {
        let fixture = filled();
        let mut entries = tiles::read_entries(&fixture.log(), 2, 53).unwrap();
        let text = String::from_utf8(entries[3].clone()).unwrap().replace("192.0.2.1", "192.0.2.2");
        entries[3] = text.into_bytes();
        fs::write(fixture.bundle(2, 53), tiles::bundle(&entries)).unwrap();
        let hashes: Vec<_> = entries.iter().map(|e| leaf_hash(e)).collect();
        fs::write(fixture.log().join(tiles::path(tiles::Kind::Hashes(0), 2, 53)), hashes.concat()).unwrap();
        assert!(fixture.verify(0).problem.unwrap().what.contains("signed root"));
    }

    #[test]
    fn an_older_copy_put_back_is_noticed() {
        let fixture = Fixture::new();
        fixture.write(0, 10);
        fixture.take();
        assert!(fixture.verify(10).whole);
        assert_eq!(fixture.verify(11).problem.unwrap().entry, Some(10));
    }

    #[test]
    fn another_key_is_not_believed() {
        let fixture = filled();
        let other = Signer::from_seed("test", &[4; 32]).unwrap().verifier();
        assert!(verify(&fixture.log(), &other, 0).problem.unwrap().what.contains("not believed"));
        assert!(Log::open(&fixture.log(), Signer::from_seed("test", &[4; 32]).unwrap()).is_err());
    }

    /// A crash between any two file writes of a batch: only the old or the new checkpoint is ever there.
    #[test]
    fn a_batch_is_committed_whole_or_not_at_all() {
        let fixture = filled();
        let before = fs::read(fixture.log().join("checkpoint")).unwrap();
        fixture.write(1, 300);
        assert_eq!(fixture.take(), 865);
        // As after a crash just before the commit: everything of the new batch lies there, the checkpoint is old,
        // and the partial tiles of the old size, which are removed after the commit only, are there still.
        fs::write(fixture.log().join("checkpoint"), &before).unwrap();
        fs::remove_file(fixture.log().join("cursors.json")).unwrap();
        let whole = tiles::read_entries(&fixture.log(), 2, 53).unwrap();
        fs::create_dir_all(fixture.bundle(2, 53).parent().unwrap()).unwrap();
        fs::write(fixture.bundle(2, 53), tiles::bundle(&whole)).unwrap();
        let edge = {
            let mut edge = Edge::default();
            for entry in crate::log::read_range(&fixture.log(), 565, 0, 565).unwrap() {
                edge.append(leaf_hash(&entry));
            }
            edge
        };
        for (level, number, hashes) in edge.unfinished() {
            tiles::write_whole(
                &fixture.log().join(tiles::path(tiles::Kind::Hashes(level), number, hashes.len())),
                &hashes.concat(),
            )
            .unwrap();
        }
        assert!(fixture.verify(565).whole);
        assert_eq!(fixture.take(), 865, "the batch comes again from its spool");
        assert!(fixture.verify(865).whole);
    }
}
