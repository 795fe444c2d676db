//! Where a process of ours writes an entry before the thing it describes happens.
//!
//! A spool is a file of JSON lines with one writer. The supervisor moves its entries into the log and
//! frees the space behind them. A write is one `write(2)` on an append-only descriptor, so the entry
//! survives the writer's `kill -9`; a half line, as a crash of the host or a full disk leaves it, is cut
//! off by the next writer and never read. What announces nothing, such as the end of a call, may wait a
//! moment and be written together with what comes next.

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

    /// Records an event that announces nothing: in its place before all that is recorded after it, and at the latest
    /// with the next [`Record::settle`], which the caller owes it.
    ///
    /// # Errors
    /// [`RecordError`]; then the event is in no log.
    fn record_soon(&self, time: Timestamp, event: Event) -> Result<u64, RecordError> {
        self.record(time, event)
    }

    /// Returns once the event that [`Record::record_soon`] gave this number is as durable as one by [`Record::record`],
    /// and with it all before it.
    ///
    /// # Errors
    /// [`RecordError`]; then what the event announces must not happen, and the caller owes the log an event that says so.
    fn durable(&self, _: u64) -> Result<(), RecordError> {
        self.settle()
    }

    /// Makes durable what [`Record::record_soon`] took.
    ///
    /// # Errors
    /// [`RecordError`]; what could not be written is tried again with the next entry.
    fn settle(&self) -> Result<(), RecordError> {
        Ok(())
    }
}

/// How much may wait to be settled.
const MAX_WAITING_BYTES: usize = 256 * 1024;

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
    frame: Frame,
    /// Whether an entry counts as durable only once the disk has it.
    strict: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    bytes: u64,
    next_seq: u64,
    /// Whole lines that are not in the file yet; all before `next_seq` and without gaps.
    waiting: Vec<u8>,
    /// Up to which number, itself excluded, entries are in the file; and on the disk.
    written: u64,
    synced: u64,
}

/// What is the same in all entries of a spool, as JSON: an [`Entry`] is written around it, field by field in their order.
struct Frame {
    /// Behind the time.
    source: String,
    /// Behind the number; the event's own fields follow.
    owner: String,
}

impl Frame {
    fn new(origin: &Origin) -> serde_json::Result<Self> {
        let source = format!("\",\"source\":{},\"seq\":", serde_json::to_string(&origin.source)?);
        let mut owner = String::new();
        if let Some(agent) = &origin.agent {
            owner = format!(",\"agent\":{}", serde_json::to_string(agent)?);
        }
        if let Some(sandbox) = &origin.sandbox {
            owner = format!("{owner},\"sandbox\":{}", serde_json::to_string(sandbox)?);
        }
        Ok(Self { source, owner })
    }

    fn write(&self, to: &mut Vec<u8>, time: Timestamp, seq: u64, event: &Event) -> std::io::Result<()> {
        let Self { source, owner } = self;
        write!(to, "{{\"v\":{VERSION},\"time\":\"{time}{source}{seq}{owner}")?;
        let at = to.len();
        serde_json::to_writer(&mut *to, event)?;
        // The event's own object goes on where the entry's stopped.
        if let Some(brace) = to.get_mut(at) {
            *brace = b',';
        }
        Ok(())
    }
}

impl Inner {
    /// Puts an entry behind those that wait; leaves nothing of it on error.
    fn append(&mut self, frame: &Frame, time: Timestamp, event: &Event) -> Result<u64, RecordError> {
        let (before, seq) = (self.waiting.len(), self.next_seq);
        let put = frame.write(&mut self.waiting, time, seq, event).map_err(RecordError::Write);
        let bytes = self.waiting.len() - before;
        let fits = if bytes > MAX_ENTRY_BYTES { Err(RecordError::TooLarge { bytes }) } else { Ok(()) };
        if let Err(error) = put.and(fits) {
            self.waiting.truncate(before);
            return Err(error);
        }
        self.waiting.push(b'\n');
        self.next_seq += 1;
        Ok(seq)
    }

    /// Writes all that waits by one `write(2)`; what could not be written waits on.
    fn write(&mut self) -> Result<(), RecordError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let wrote = self.file.write(&self.waiting).map_err(RecordError::Write)?;
        if wrote != self.waiting.len() {
            // A short write means a full disk: take it back, so that nothing half is read.
            self.file.set_len(self.bytes).map_err(RecordError::Write)?;
            return Err(RecordError::Write(std::io::ErrorKind::StorageFull.into()));
        }
        self.bytes += self.waiting.len() as u64;
        self.written = self.next_seq;
        self.waiting.clear();
        // One burst need not be remembered for ever.
        self.waiting.shrink_to(16 * 1024);
        Ok(())
    }

    /// Has the disk take what is in the file.
    fn sync(&mut self) -> Result<(), RecordError> {
        let written = self.written;
        self.file.sync_data().map_err(RecordError::Write)?;
        self.synced = written;
        Ok(())
    }
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
        let waiting = Vec::with_capacity(4096);
        let inner = Inner { file, bytes: keep, next_seq, waiting, written: next_seq, synced: next_seq };
        Ok(Self { frame: Frame::new(&origin)?, strict: false, inner: Mutex::new(inner) })
    }

    /// Counts an entry as durable only once the disk has it, so that it outlives a crash of the host.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }
}

impl Record for Spool {
    fn record(&self, time: Timestamp, event: Event) -> Result<u64, RecordError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inner.waiting.len();
        let seq = inner.append(&self.frame, time, &event)?;
        if let Err(error) = inner.write() {
            // It did not happen; those before it, which did, wait on.
            inner.waiting.truncate(before);
            inner.next_seq = seq;
            return Err(error);
        }
        if self.strict {
            inner.sync()?;
        }
        Ok(seq)
    }

    fn durable(&self, seq: u64) -> Result<(), RecordError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.written <= seq {
            inner.write()?;
        }
        if self.strict && inner.synced <= seq { inner.sync() } else { Ok(()) }
    }

    fn record_soon(&self, time: Timestamp, event: Event) -> Result<u64, RecordError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.waiting.len() >= MAX_WAITING_BYTES {
            inner.write()?;
        }
        inner.append(&self.frame, time, &event)
    }

    fn settle(&self) -> Result<(), RecordError> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).write()
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Nobody is left to be told if it fails.
        let _ = self.settle();
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
        let sandbox = SandboxId::from_parts(1, [7; 8]);
        Origin { source: "gate:\"sb-1\"".into(), agent: "analyst".parse().ok(), sandbox: Some(sandbox) }
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
    fn what_may_wait_is_written_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        let spool = Spool::open(open(&path), origin(), 1).unwrap();
        spool.record_soon(Timestamp::UNIX_EPOCH, event(1)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
        let big = Event::UdpDrop { destination: "x".repeat(MAX_ENTRY_BYTES), bytes: 0, count: 0 };
        assert!(spool.record_soon(Timestamp::UNIX_EPOCH, big).is_err());
        assert_eq!(spool.record(Timestamp::UNIX_EPOCH, event(2)).unwrap(), 2);
        spool.record_soon(Timestamp::UNIX_EPOCH, event(3)).unwrap();
        spool.settle().unwrap();
        spool.record_soon(Timestamp::UNIX_EPOCH, event(4)).unwrap();
        drop(spool);
        let lines = read_lines(&mut open(&path), 0, 100).unwrap();
        let entries: Vec<Entry> = lines.iter().map(|(line, _)| serde_json::from_slice(line).unwrap()).collect();
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(entries.iter().map(|e| e.event.clone()).collect::<Vec<_>>(), [1, 2, 3, 4].map(event));
        for ((line, _), entry) in lines.iter().zip(&entries) {
            assert_eq!(line, &serde_json::to_vec(entry).unwrap(), "the two forms of an entry are one");
        }
    }

    #[test]
    fn a_full_disk_takes_back_what_it_refuses_and_keeps_what_waits() {
        // Every write to it fails for want of space.
        let full = || File::options().read(true).write(true).open("/dev/full").unwrap();
        let inner = Inner { file: full(), bytes: 0, next_seq: 1, waiting: Vec::new(), written: 1, synced: 1 };
        let spool = Spool { frame: Frame::new(&origin()).unwrap(), strict: false, inner: Mutex::new(inner) };
        spool.record_soon(Timestamp::UNIX_EPOCH, event(1)).unwrap();
        assert!(spool.record(Timestamp::UNIX_EPOCH, event(2)).is_err());
        assert!(spool.settle().is_err());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        spool.inner.lock().unwrap().file = open(&path);
        assert_eq!(spool.record(Timestamp::UNIX_EPOCH, event(3)).unwrap(), 2);
        let entries: Vec<Entry> = read_lines(&mut open(&path), 0, 9)
            .unwrap()
            .iter()
            .map(|(l, _)| serde_json::from_slice(l).unwrap())
            .collect();
        assert_eq!(
            entries.iter().map(|e| (e.seq, e.event.clone())).collect::<Vec<_>>(),
            [(1, event(1)), (2, event(3))]
        );
    }

    #[test]
    fn intents_of_one_turn_are_one_write_and_none_is_durable_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spool");
        for strict in [false, true] {
            let _ = std::fs::remove_file(&path);
            let spool = Spool::open(open(&path), origin(), 1).unwrap().strict(strict);
            let first = spool.record_soon(Timestamp::UNIX_EPOCH, event(1)).unwrap();
            let last = spool.record_soon(Timestamp::UNIX_EPOCH, event(2)).unwrap();
            assert_eq!((first, last, std::fs::metadata(&path).unwrap().len()), (1, 2, 0));
            spool.durable(first).unwrap();
            assert_eq!(read_lines(&mut open(&path), 0, 9).unwrap().len(), 2);
            spool.durable(last).unwrap();
            let inner = spool.inner.lock().unwrap();
            assert_eq!((inner.written, inner.synced), (3, if strict { 3 } else { 1 }));
        }
        let inner = Inner {
            file: File::options().write(true).open("/dev/full").unwrap(),
            bytes: 0,
            next_seq: 1,
            waiting: Vec::new(),
            written: 1,
            synced: 1,
        };
        let spool = Spool { frame: Frame::new(&origin()).unwrap(), strict: false, inner: Mutex::new(inner) };
        let seq = spool.record_soon(Timestamp::UNIX_EPOCH, event(1)).unwrap();
        assert!(spool.durable(seq).is_err(), "what is not written is not durable");
        spool.inner.lock().unwrap().file = open(&path);
        spool.durable(seq).unwrap();
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
