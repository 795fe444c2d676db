//! The world outside, played by a process of its own: the model service, the web site, and the attacker's host.
//!
//! It stays for as long as whoever started it, and after that for as long as the agent does.

use std::fs;
use std::io::{BufRead, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence_testkit::ca::Ca;
use ringfence_testkit::canary::{self, Canary};
use ringfence_testkit::model_server::{self, ModelServer};
use ringfence_testkit::site::{self, Site};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::product::{self, Listed};

/// Files in the folder.
pub const CA: &str = "ca.pem";
pub const CONFIG: &str = "config.json";
pub const PID: &str = "upstreams.pid";
pub const PORTS: &str = "ports.json";
pub const SEEN: &str = "seen.json";

/// How often it is asked whether the agent is still there.
const BEAT: Duration = Duration::from_secs(2);

/// Answers without the agent, one after another, after which it is gone.
const MISSES: u32 = 2;

/// Questions without an answer, one after another, after which there is nobody to ask.
const SILENCES: u32 = 30;

/// What the process is told, besides the key.
#[derive(Debug, Serialize, Deserialize)]
pub struct Config {
    /// The agent that it stays for.
    pub agent: String,
    /// The program to ask about it.
    pub ringfence: PathBuf,
    /// Whether to play the model service.
    pub model: bool,
}

/// Where the process listens.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ports {
    /// The model service, if it is played.
    pub model: Option<SocketAddr>,
    /// The web site.
    pub site: SocketAddr,
}

/// What the process saw.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Requests to the model service that showed the real key.
    pub with_key: u64,
    /// Requests to the model service that showed another key, or none.
    pub without_key: u64,
    /// Requests to the web site.
    pub site: u64,
    /// Connections to the attacker's HTTPS host.
    pub collect_connections: u64,
    /// Bytes that arrived there.
    pub collect_bytes: u64,
    /// Connections to the attacker's bare port.
    pub raw_connections: u64,
    /// Bytes that arrived there.
    pub raw_bytes: u64,
}

/// Is the process. It ends when it is no longer needed, and removes the folder.
pub fn main(folder: &Path) -> Result<(), String> {
    let config: Config = read(folder, CONFIG)?;
    // Out of reach of the terminal: the agent that needs it outlives the terminal, too.
    rustix::process::setsid().map_err(|e| format!("cannot leave the terminal: {e}"))?;
    fs::write(folder.join(PID), std::process::id().to_string()).map_err(|e| format!("cannot write a file: {e}"))?;
    let mut key = String::new();
    std::io::stdin().lock().read_line(&mut key).map_err(|e| format!("cannot read the key: {e}"))?;
    let (gone, alone) = oneshot::channel();
    std::thread::spawn(move || {
        // Whoever started this holds the other end, and writes no more.
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        let _ = gone.send(());
    });
    let ended = crate::runtime().and_then(|runtime| runtime.block_on(serve(folder, &config, key.trim(), alone)));
    // Whoever holds the lock has begun another demonstration here, and clears the folder by itself.
    let alone = fs::File::open(folder).and_then(|open| open.try_lock().map(|()| open).map_err(Into::into));
    if let Ok(_alone) = alone
        && fs::read_to_string(folder.join(PID)).is_ok_and(|pid| pid == std::process::id().to_string())
    {
        let _ = fs::remove_dir_all(folder);
    }
    ended
}

async fn serve(folder: &Path, config: &Config, key: &str, alone: oneshot::Receiver<()>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot serve: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| failed(&e))?;
    let ca = Ca::generate("Ringfence demonstration").map_err(|e| failed(&e))?;
    let tls = |name: &str| ca.issue(&[name]).and_then(|leaf| leaf.server_config()).map_err(|e| failed(&e));
    let book = Book { folder: folder.to_path_buf(), seen: Arc::default() };
    book.note(|_| {})?;
    let model = if config.model {
        let (book, bearer) = (book.clone(), format!("Bearer {key}"));
        let observe = move |request: &model_server::Recorded| {
            let known = request.authorization.as_deref() == Some(&bearer);
            book.count(|seen| *(if known { &mut seen.with_key } else { &mut seen.without_key }) += 1);
        };
        Some(ModelServer::start(tls(model_server::HOST)?, key, observe).await.map_err(|e| failed(&e))?)
    } else {
        None
    };
    let noting = book.clone();
    let site = Site::start(tls(site::HOST)?, move |_| noting.count(|seen| seen.site += 1)).await;
    let site = site.map_err(|e| failed(&e))?;
    let noting = book.clone();
    let collect = move |now: canary::Seen| {
        noting.count(|seen| (seen.collect_connections, seen.collect_bytes) = (now.connections, now.bytes));
    };
    let _collect = Canary::start(Some(tls(site::COLLECT_HOST)?), collect).await.map_err(|e| failed(&e))?;
    let noting = book.clone();
    let raw = move |now: canary::Seen| {
        noting.count(|seen| (seen.raw_connections, seen.raw_bytes) = (now.connections, now.bytes));
    };
    let _raw = Canary::start(None, raw).await.map_err(|e| failed(&e))?;
    ca.write_pem(&folder.join(CA)).map_err(|e| failed(&e))?;
    write(folder, PORTS, &Ports { model: model.as_ref().map(ModelServer::address), site: site.address() })?;
    let needed = async {
        let _ = alone.await;
        outlive(config).await;
    };
    tokio::select! {
        () = needed => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Waits until the agent is gone.
///
/// It watches the agent's process, and asks about the agent only when that has ended: to ask may start a
/// supervisor, and an operator who stopped it wants it to stay stopped.
async fn outlive(config: &Config) {
    let (mut misses, mut silences) = (0, 0);
    let mut watched: Option<Process> = None;
    while misses < MISSES && silences < SILENCES {
        tokio::time::sleep(BEAT).await;
        if watched.as_ref().is_some_and(Process::lives) {
            continue;
        }
        match ask(config).await {
            Some(Some(listed)) => {
                (misses, silences) = (0, 0);
                watched = listed.agent_pid.and_then(Process::now);
            }
            Some(None) => (misses, silences) = (misses + 1, 0),
            None => silences += 1,
        }
    }
}

/// A process, told from later ones with the same number by when it began.
struct Process {
    pid: i32,
    began: String,
}

impl Process {
    fn now(pid: i32) -> Option<Self> {
        Some(Self { pid, began: began(pid)? })
    }

    fn lives(&self) -> bool {
        began(self.pid).as_ref() == Some(&self.began)
    }
}

/// When a process began, in ticks since the host did. `None` if it has ended.
fn began(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name is in brackets and may hold anything; the state is what comes after it.
    let (_, after) = stat.rsplit_once(')')?;
    let mut words = after.split_whitespace();
    let state = words.next()?;
    if matches!(state, "X" | "Z") {
        return None;
    }
    words.nth(18).map(str::to_owned)
}

/// What is listed about the agent, if it is. `None` if nobody says.
async fn ask(config: &Config) -> Option<Option<Listed>> {
    let mut ask = tokio::process::Command::new(&config.ringfence);
    ask.args(["ps", "--json"]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(20), ask.output()).await.ok()?.ok()?;
    if !output.status.success() {
        return None;
    }
    let agents = product::agents(&String::from_utf8_lossy(&output.stdout)).ok()?;
    Some(agents.into_iter().find(|listed| listed.agent == config.agent))
}

/// What was seen, in memory and in the folder.
#[derive(Clone)]
struct Book {
    folder: PathBuf,
    seen: Arc<Mutex<Seen>>,
}

impl Book {
    fn note(&self, change: impl FnOnce(&mut Seen)) -> Result<(), String> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut seen);
        write(&self.folder, SEEN, &*seen)
    }

    fn count(&self, change: impl FnOnce(&mut Seen)) {
        if let Err(why) = self.note(change) {
            crate::show::complain(&why);
        }
    }
}

/// Writes a file of the folder, whole or not at all.
pub fn write(folder: &Path, name: &str, value: &impl Serialize) -> Result<(), String> {
    let failed = |why: &dyn std::fmt::Display| format!("cannot write `{}`: {why}", folder.join(name).display());
    let text = serde_json::to_vec(value).map_err(|e| failed(&e))?;
    let fresh = folder.join(format!("{name}.new"));
    fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, folder.join(name))).map_err(|e| failed(&e))
}

/// Reads a file of the folder.
pub fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, String> {
    let path = folder.join(name);
    let text = fs::read(&path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
    serde_json::from_slice(&text).map_err(|e| format!("cannot read `{}`: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_lives_until_it_ends() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::now(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.lives());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.lives());
        let other = Process { began: "0".into(), ..Process::now(i32::try_from(std::process::id()).unwrap()).unwrap() };
        assert!(!other.lives(), "the same number, and another process");
    }
}
