//! The one folder that the demonstration writes to, and the process that plays the upstreams.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};

use crate::product::KEY_VARIABLE;
use crate::upstreams::{self, Config, Ports, Seen};

const PATIENCE: Duration = Duration::from_secs(10);

/// How long the end of an earlier demonstration may take.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// The folder and the process.
pub struct Stage {
    folder: PathBuf,
    /// The folder itself, open and locked: one demonstration at a time has it.
    _ours: File,
    upstreams: Mutex<Option<Child>>,
}

impl Stage {
    /// Clears away what an earlier demonstration left, and takes the folder.
    ///
    /// Its name is always the same, so that a second demonstration finds and replaces the upstreams of the first. Where
    /// the first is still being told, the second is refused.
    pub fn prepare() -> Result<Self, String> {
        Self::take(std::env::temp_dir().join(format!("ringfence-demo-{}", getuid().as_raw())))
    }

    fn take(folder: PathBuf) -> Result<Self, String> {
        let shown = folder.display();
        let began = Instant::now();
        let ours = loop {
            match DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(format!("cannot make `{shown}`: {error}"));
                }
                _ => {}
            }
            let found = match fs::symlink_metadata(&folder) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                found => found.map_err(|e| format!("cannot look at `{shown}`: {e}"))?,
            };
            // Anybody may write to the folder around it, so what is there may be somebody else's trap.
            if !found.is_dir() || found.uid() != getuid().as_raw() || found.mode() & 0o077 != 0 {
                return Err(format!("`{shown}` is not a folder of yours alone; remove it"));
            }
            let open = match File::open(&folder) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                open => open.map_err(|e| format!("cannot open `{shown}`: {e}"))?,
            };
            match open.try_lock() {
                Ok(()) => {}
                // The upstreams of one that is over hold it for the moment in which they remove the folder.
                Err(TryLockError::WouldBlock) if began.elapsed() < LAST_MOMENT => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(format!(
                        "another demonstration of yours is running in `{shown}`; wait for it, or end it"
                    ));
                }
                Err(TryLockError::Error(e)) => return Err(format!("cannot lock `{shown}`: {e}")),
            }
            // One that ended just now may have removed what was opened here.
            let same = |now: fs::Metadata| open.metadata().is_ok_and(|o| (o.dev(), o.ino()) == (now.dev(), now.ino()));
            if fs::symlink_metadata(&folder).is_ok_and(same) {
                break open;
            }
        };
        end_earlier(&folder)?;
        empty(&folder).map_err(|e| format!("cannot clear `{shown}`: {e}"))?;
        Ok(Self { folder, _ours: ours, upstreams: Mutex::new(None) })
    }

    /// The authority that the upstreams' certificates are from.
    pub fn ca(&self) -> PathBuf {
        self.folder.join(upstreams::CA)
    }

    /// Writes the manifest to start the agent by.
    pub fn write_manifest(&self, text: &str) -> Result<PathBuf, String> {
        let path = self.folder.join("ringfence.toml");
        fs::write(&path, text).map_err(|e| format!("cannot write `{}`: {e}", path.display()))?;
        Ok(path)
    }

    /// Starts the upstreams and waits until they listen. `key` is the key that the model service takes; it is
    /// handed over by a pipe, so that no list of processes shows it.
    pub async fn serve(&self, config: &Config, key: &str) -> Result<Ports, String> {
        let failed = |what: &str, why: &dyn std::fmt::Display| format!("cannot {what} the upstreams: {why}");
        upstreams::write(&self.folder, upstreams::CONFIG, config)?;
        let log = self.folder.join("upstreams.log");
        let said = File::create(&log).map_err(|e| failed("log", &e))?;
        let program = std::env::current_exe().map_err(|e| failed("find", &e))?;
        let mut child = Command::new(program)
            .arg("serve-upstreams")
            .arg(&self.folder)
            .env_remove(KEY_VARIABLE)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(said)
            .spawn()
            .map_err(|e| failed("start", &e))?;
        let told = child.stdin.as_mut().map(|stdin| writeln!(stdin, "{key}").and_then(|()| stdin.flush()));
        *self.upstreams.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        told.transpose().map_err(|e| failed("tell", &e))?;
        let started = Instant::now();
        while started.elapsed() < PATIENCE && !self.upstreams_ended() {
            if let Ok(ports) = upstreams::read(&self.folder, upstreams::PORTS) {
                return Ok(ports);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(failed("start", &fs::read_to_string(&log).unwrap_or_default().trim()))
    }

    /// What the upstreams saw so far.
    pub fn seen(&self) -> Result<Seen, String> {
        if self.upstreams_ended() {
            return Err("the upstreams ended".into());
        }
        upstreams::read(&self.folder, upstreams::SEEN)
    }

    fn upstreams_ended(&self) -> bool {
        let mut child = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Leaves the upstreams to themselves: they stay for as long as the agent does.
    pub fn hand_over(self) {
        // The end of their standard input tells them.
        drop(self);
    }

    /// Ends the upstreams and removes the folder.
    pub fn strike(self) {
        let child = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
            if !wait(|| !matches!(child.try_wait(), Ok(None))) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        remove(&self.folder);
    }
}

/// Ends the upstreams of an earlier demonstration, if they are still there.
fn end_earlier(folder: &Path) -> Result<(), String> {
    let Some(pid) = fs::read_to_string(folder.join(upstreams::PID)).ok().and_then(|text| text.trim().parse().ok())
    else {
        return Ok(());
    };
    let Some(process) = Pid::from_raw(pid).filter(|_| plays(pid, folder)) else { return Ok(()) };
    for signal in [Signal::TERM, Signal::KILL] {
        let _ = kill_process(process, signal);
        if wait(|| !plays(pid, folder)) {
            return Ok(());
        }
    }
    Err(format!("cannot end the upstreams of an earlier demonstration, process {pid}"))
}

/// Whether a process plays the upstreams of a folder. Numbers are used again, so the number alone says nothing.
fn plays(pid: i32, folder: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).skip(1);
    words.next() == Some(b"serve-upstreams") && words.next() == Some(folder.as_os_str().as_encoded_bytes())
}

fn wait(mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// Removes all that is in a folder.
fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            crate::show::complain(&format!("cannot remove `{}`: {error}", folder.display()));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_demonstration_at_a_time_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("demo");
        let first = Stage::take(folder.clone()).unwrap();
        fs::write(folder.join("left"), "by the first").unwrap();
        let why = Stage::take(folder.clone()).err().unwrap();
        assert!(why.contains("another demonstration of yours is running"), "{why}");
        assert!(folder.join("left").exists(), "the second touched what is the first's");
        // Handed over, what it left is cleared away by the next.
        first.hand_over();
        let second = Stage::take(folder.clone()).unwrap();
        assert!(!folder.join("left").exists());
        // Struck, the folder is gone, and the next makes it anew.
        second.strike();
        assert!(!folder.exists());
        drop(Stage::take(folder).unwrap());
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("demo");
        DirBuilder::new().mode(0o755).create(&folder).unwrap();
        assert!(Stage::take(folder.clone()).err().unwrap().contains("not a folder of yours alone"));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert!(Stage::take(dir.path().join("link")).err().unwrap().contains("not a folder of yours alone"));
    }
}
