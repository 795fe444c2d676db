//! The first process of a sandbox inherits whatever loses its parent, and must see it off.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, waitid, waitpid};

/// Processes that are waited for elsewhere.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A process of ours; while this lives, nobody else takes its end.
pub struct Own(i32);

impl Own {
    /// Claims the process that `start` makes, before anybody can see it end.
    ///
    /// # Errors
    /// Those of `start`.
    pub fn claim<T>(start: impl FnOnce() -> io::Result<(T, i32)>) -> io::Result<(T, Self)> {
        let mut own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
        let (made, pid) = start()?;
        own.insert(pid);
        Ok((made, Self(pid)))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        OWN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Reaps orphans for ever.
///
/// # Errors
/// If signals cannot be heard.
pub fn orphans() -> io::Result<()> {
    let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            // One that is claimed hides those behind it until it is taken, which is announced by no further signal.
            while reap() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    });
    Ok(())
}

/// Reaps what may be; `true` if a process of somebody else's stands before the rest.
fn reap() -> bool {
    let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        let Ok(Some(_)) = waitid(WaitId::All, peek) else { return false };
        let own = OWN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pid) = ended_but(&own) else { return true };
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// A process that ended and is none of `own`.
fn ended_but(own: &BTreeSet<i32>) -> Option<Pid> {
    let all = std::fs::read_dir("/proc").ok()?;
    all.flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| !own.contains(pid))
        .find(|pid| is_ended_child(*pid))
        .and_then(Pid::from_raw)
}

fn is_ended_child(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name, in parentheses, may hold anything.
    let mut rest = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    rest.next() == Some("Z") && rest.next().and_then(|ppid| ppid.parse().ok()) == Some(std::process::id())
}
