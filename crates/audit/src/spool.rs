//! Where a process of ours writes an entry before the thing it describes happens.
//!
//! A spool is a file of JSON lines with one writer. The supervisor moves its entries into the log and
//! frees the space behind them. A write is one `write(2)` on an append-only descriptor, so the entry
//! survives the writer's `kill -9`; a half line, as a crash of the host or a full disk leaves it, is cut
//! off by the next writer and never read.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use ringfence_model::{AgentName, SandboxId};

use crate::entry::{Entry, Event, MAX_ENTRY_BYTES, VERSION};

/// Takes events and makes them durable before it returns.
pub trait Record: Send + Sync {
    /// Records `event`; when this returns `Ok`, no crash of ours loses it.
    ///
    /// # Errors
    /// [`RecordError`]; then what the event announces must not happen.
    fn record(&self, time: Timestamp, event: Event) -> Result<u64, RecordError>;
}

/// Why an event could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The entry is larger than the log takes.
    #[error("audit entry of {bytes} bytes is larger than {MAX_ENTRY_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The spool could not be written.
    #[error("cannot write to the audit spool")]
    Write(#[source] std::io::Error),
}

/// What every entry of a spool says about its origin.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `supervisor`, `gate:<sandbox>` or `shim:<sandbox>`.
    pub source: String,
    /// The agent, where there is one.
    pub agent: Option<AgentName>,
    /// The sandbox, where there is one.
    pub sandbox: Option<SandboxId>,
}

/// A spool file that this process alone writes.
pub struct Spool {
    origin: Origin,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    bytes: u64,
    next_seq: u64,
    line: Vec<u8>,
}

impl Spool {
    /// Takes over a spool file opened for reading and appending, cutting off a half line.
    ///
    /// `next_seq` follows the last whole entry found, or is `first_seq` where there is none (the space
    /// behind entries that were moved into the log reads as zeros and is passed over).
    ///
    /// # Errors
    /// Whatever reading or truncating gives.
    pub fn open(mut file: File, origin: Origin, first_seq: u64) -> std::io::Result<Self> {
        let end = file.seek(SeekFrom::End(0))?;
        // A line is at most MAX_ENTRY_BYTES, so the last whole line lies within two of them.
        let window = (MAX_ENTRY_BYTES as u64 + 1) * 2;
        let start = end.saturating_sub(window);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        Read::by_ref(&mut file).take(window).read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let keep = if whole == 0 && start > 0 { end } else { start + whole as u64 };
        if keep < end {
            file.set_len(keep)?;
        }
        let next_seq = tail
            .get(..whole)
            .unwrap_or_default()
            .split(|b| *b == b'\n')
            .filter_map(|line| line.iter().position(|b| *b != 0).and_then(|at| line.get(at..)))
            .filter_map(|line| serde_json::from_slice::<Entry>(line).ok())
            .next_back()
            .map_or(first_seq, |entry| entry.seq + 1);
        Ok(Self { origin, inner: Mutex::new(Inner { file, bytes: keep, next_seq, line: Vec::with_capacity(1024) }) })
    }
}

impl Record for Spool {
    fn record(&self, time: Timestamp, event: Event) -> Result<u64, RecordError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = inner.next_seq;
        let entry = Entry {
            v: VERSION,
            time,
            source: self.origin.source.clone(),
            seq,
            agent: self.origin.agent.clone(),
            sandbox: self.origin.sandbox.clone(),
            event,
        };
        let mut line = std::mem::take(&mut inner.line);
        line.clear();
        let written = serde_json::to_writer(&mut line, &entry).map_err(|e| RecordError::Write(e.into()));
        let done = written.and_then(|()| {
            if line.len() > MAX_ENTRY_BYTES {
                return Err(RecordError::TooLarge { bytes: line.len() });
            }
            line.push(b'\n');
            let wrote = inner.file.write(&line).map_err(RecordError::Write)?;
            if wrote != line.len() {
                // A short write means a full disk: take the half line back, so that nothing half is read.
                inner.file.set_len(inner.bytes).map_err(RecordError::Write)?;
                return Err(RecordError::Write(std::io::ErrorKind::StorageFull.into()));
            }
            Ok(())
        });
        if done.is_ok() {
            inner.bytes += line.len() as u64;
            inner.next_seq += 1;
        }
        inner.line = line;
        done.map(|()| seq)
    }
}

/// Reads whole lines of a spool from an offset on.
///
/// Returns each line with the offset behind it. A half last line is left for later.
///
/// # Errors
/// Whatever reading gives.
pub fn read_lines(file: &mut File, from: u64, at_most: usize) -> std::io::Result<Vec<(Vec<u8>, u64)>> {
    file.seek(SeekFrom::Start(from))?;
    let mut chunk = Vec::new();
    Read::by_ref(file).take((at_most.max(1) as u64) * 2048 + MAX_ENTRY_BYTES as u64 + 1).read_to_end(&mut chunk)?;
    let mut lines = Vec::new();
    let mut offset = from;
    let mut rest = chunk.as_slice();
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        if lines.len() == at_most {
            break;
        }
        let (line, tail) = rest.split_at(end);
        offset += end as u64 + 1;
        rest = tail.get(1..).unwrap_or_default();
        lines.push((line.to_vec(), offset));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { source: "gate:sb-1".into(), agent: None, sandbox: None }
    }

    fn event(n: u64) -> Event {
        Event::UdpDrop { destination: "1.1.1.1:9".into(), bytes: n, count: 1 }
    }

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).append(true).create(true).open(path).unwrap()
    }

    #[test]
    fn numbers_go_on_after_a_crash_and_half_lines_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let spool = Spool::open(open(&path), origin(), 1).unwrap();
        assert_eq!(spool.record(Timestamp::UNIX_EPOCH, event(1)).unwrap(), 1);
        assert_eq!(spool.record(Timestamp::UNIX_EPOCH, event(2)).unwrap(), 2);
        drop(spool);
        open(&path).write_all(b"{\"v\":1,\"half").unwrap();
        let spool = Spool::open(open(&path), origin(), 1).unwrap();
        assert_eq!(spool.record(Timestamp::UNIX_EPOCH, event(3)).unwrap(), 3);
        let lines = read_lines(&mut open(&path), 0, 100).unwrap();
        assert_eq!(lines.len(), 3);
        for (line, _) in &lines {
            serde_json::from_slice::<Entry>(line).unwrap();
        }
        let after_two = lines[1].1;
        assert_eq!(read_lines(&mut open(&path), after_two, 100).unwrap().len(), 1);
    }

    #[test]
    fn an_entry_too_large_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let spool = Spool::open(open(&path), origin(), 1).unwrap();
        let big = Event::UdpDrop { destination: "x".repeat(MAX_ENTRY_BYTES), bytes: 0, count: 0 };
        assert!(matches!(spool.record(Timestamp::UNIX_EPOCH, big), Err(RecordError::TooLarge { .. })));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        assert_eq!(spool.record(Timestamp::UNIX_EPOCH, event(1)).unwrap(), 1);
    }
}
