//! The thread that moves every spool into the audit log, and records what the supervisor itself does.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use ringfence_audit::{Event, Log, Origin, Record, Signer, Spool, Verifier};
use ringfence_model::{Explain, Fault, Report};

use super::db::Db;
use crate::paths::Paths;

/// How long an entry waits in a spool at the most before it is moved.
const ROUND: Duration = Duration::from_millis(250);

/// The log's name: the origin line of its checkpoints.
pub const LOG_NAME: &str = "ringfence.dev/audit";

/// The fact that remembers how long the log was.
const SIZE: &str = "audit.size";

enum Ask {
    Flush(mpsc::Sender<u64>),
    Stop,
}

/// Why the recorder could not begin.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} `{path}`")]
pub struct RecorderError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

impl Explain for RecorderError {
    fn code(&self) -> &'static str {
        "audit.file"
    }

    fn fault(&self) -> Fault {
        Fault::Us
    }
}

/// Records what the supervisor does, and keeps the log.
pub struct Recorder {
    spool: Spool,
    ask: mpsc::Sender<Ask>,
    verifier: Verifier,
    folder: PathBuf,
    size: tokio::sync::watch::Receiver<u64>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Recorder {
    /// Opens the log and starts the thread.
    ///
    /// # Errors
    /// A report; the supervisor must not go on without its log.
    pub fn start(paths: &Paths, db: Arc<Mutex<Db>>) -> Result<Self, Report> {
        let failed = |doing, path: &Path| {
            let path = path.to_path_buf();
            move |source| RecorderError { doing, path, source }
        };
        let key = paths.log_key();
        let signer = Signer::load_or_create(LOG_NAME, &key).map_err(failed("use the log's key", &key))?;
        let verifier = signer.verifier();
        let public = paths.log_public_key();
        // Without a supervisor, which cannot begin, the log is verified by its files.
        let log = Log::open(&paths.log(), signer).map_err(|e| {
            let (log, key) = (paths.log(), public.display());
            Report::from(e).hint(format!("run `ringfence audit verify --log {} --key {key}`", log.display()))
        })?;
        // Only now: where the private key was lost and made anew, the old public one is what proves the log.
        fs::write(&public, format!("{}\n", verifier.to_text())).map_err(failed("write", &public))?;
        let spools = paths.spools();
        fs::create_dir_all(&spools).map_err(failed("create", &spools))?;
        let own = spools.join("supervisor.spool");
        let file = fs::File::options().read(true).append(true).create(true).open(&own).map_err(failed("open", &own))?;
        let origin = Origin { source: "supervisor".into(), agent: None, sandbox: None };
        let spool = Spool::open(file, origin, log.seq_of("supervisor") + 1).map_err(failed("open", &own))?;
        let (ask, asked) = mpsc::channel();
        let (tell, size) = tokio::sync::watch::channel(log.size());
        let folder = log.folder().to_path_buf();
        let thread = std::thread::Builder::new()
            .name("recorder".into())
            .spawn(move || keep(log, &spools, &db, &asked, &tell))
            .map_err(failed("start the recorder of", &folder))?;
        Ok(Self { spool, ask, verifier, folder, size, thread: Mutex::new(Some(thread)) })
    }

    /// Records an event of the supervisor's own.
    ///
    /// # Errors
    /// A report; then what the event announces must not happen.
    pub fn record(&self, event: Event) -> Result<(), Report> {
        self.spool.record(Timestamp::now(), event).map(|_| ()).map_err(|e| {
            Report::new("audit.record", Fault::Us, "cannot write to the audit log")
                .because(&e)
                .hint("nothing is done that is not recorded; see whether the disk is full: `df -h`")
        })
    }

    /// Moves what is in the spools now; returns the log's size.
    pub fn flush(&self) -> u64 {
        let (sender, receiver) = mpsc::channel();
        if self.ask.send(Ask::Flush(sender)).is_err() {
            return *self.size.borrow();
        }
        receiver.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| *self.size.borrow())
    }

    /// Tells of the log's size whenever it grows.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<u64> {
        self.size.clone()
    }

    /// The log's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The log's public key.
    pub const fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Moves what is left and ends the thread.
    pub fn stop(&self) {
        let _ = self.ask.send(Ask::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// The size that the log had when the supervisor last looked, as the state remembers it.
pub fn remembered_size(db: &Mutex<Db>) -> u64 {
    let db = db.lock().unwrap_or_else(PoisonError::into_inner);
    db.fact(SIZE).ok().flatten().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn keep(
    mut log: Log,
    spools: &Path,
    db: &Mutex<Db>,
    asked: &mpsc::Receiver<Ask>,
    tell: &tokio::sync::watch::Sender<u64>,
) {
    loop {
        let ask = asked.recv_timeout(ROUND);
        // Every spool is moved until none has anything left, so that a flush is complete.
        loop {
            match log.take_from(&list(spools)) {
                Ok(moved) => {
                    for (source, expected, found) in &moved.gaps {
                        tracing_line(&format!("audit: `{source}` lacks entries {expected} to {}", found - 1));
                    }
                    if moved.refused > 0 {
                        tracing_line(&format!("audit: {} lines of spools were no entries", moved.refused));
                    }
                    if moved.appended == 0 {
                        break;
                    }
                    let db = db.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Err(error) = db.put_fact(SIZE, &log.size().to_string()) {
                        tracing_line(&format!("audit: cannot remember the log's size: {error}"));
                    }
                }
                Err(error) => {
                    // The spools keep everything; the next round tries again.
                    tracing_line(&format!("audit: {}", Report::from(error)));
                    break;
                }
            }
        }
        tell.send_if_modified(|size| std::mem::replace(size, log.size()) != log.size());
        remove_finished(spools, &log);
        match ask {
            Ok(Ask::Flush(answer)) => {
                let _ = answer.send(log.size());
            }
            Ok(Ask::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Spools of sandboxes first, the supervisor's own last: what it says about them comes after what they say.
fn list(spools: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(spools).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            for who in ["shim", "gate"] {
                let path = entry.path().join(format!("{who}.spool"));
                if path.exists() {
                    found.push((path, format!("{who}:{name}")));
                }
            }
        }
    }
    found.sort();
    found.push((spools.join("supervisor.spool"), "supervisor".into()));
    found
}

/// A start that is over leaves a mark beside its spools; once all of it is in the log, they go.
fn remove_finished(spools: &Path, log: &Log) {
    for entry in fs::read_dir(spools).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !folder.join("over").exists() {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let moved = ["shim", "gate"].iter().all(|who| {
            let Ok(mut file) = fs::File::open(folder.join(format!("{who}.spool"))) else { return true };
            let last = last_seq(&mut file);
            last <= log.seq_of(&format!("{who}:{name}"))
        });
        if moved {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

fn last_seq(file: &mut fs::File) -> u64 {
    let end = file.metadata().map_or(0, |m| m.len());
    let from = end.saturating_sub(128 << 10);
    ringfence_audit::spool::read_lines(file, from, usize::MAX >> 12)
        .unwrap_or_default()
        .iter()
        .filter_map(|(line, _)| serde_json::from_slice::<ringfence_audit::Entry>(line).ok())
        .map(|entry| entry.seq)
        .max()
        .unwrap_or(0)
}

/// Says a line in the supervisor's own output.
pub fn tracing_line(line: &str) {
    // WHY: not `eprintln`, which panics where that output is a file on a full disk.
    let _ = std::io::stderr().write_all(format!("{} {line}\n", Timestamp::now()).as_bytes());
}
