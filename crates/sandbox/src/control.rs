//! How the supervisor talks to a shim: one JSON line each way over a Unix socket, descriptors beside it.

use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_model::Report;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::error::SandboxError;
use crate::probe::Finding;

/// What the supervisor asks of a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a command inside; three descriptors come beside it.
    Exec {
        /// Command line.
        argv: Vec<String>,
        /// Variables over those of the agent.
        env: Vec<(String, String)>,
        /// Where it starts; the agent's own folder if absent.
        cwd: Option<PathBuf>,
    },
    /// Stop every process inside from running.
    Freeze,
    /// Kill everything at once.
    Kill,
    /// Put another policy in force; the gate's new configuration comes beside it, passed on unread.
    Policy,
    /// Attack the fence from inside.
    Probe {
        /// What the probes aim at.
        targets: crate::probe::Targets,
    },
    /// Let the processes inside run on.
    Resume,
    /// Let the first instruction of an agent that is held happen.
    Start,
    /// Say how it is.
    Status,
    /// Ask the agent to end, and kill it after the grace.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
}

/// What a shim answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Done.
    Done,
    /// A command inside ended.
    Exited {
        /// Exit code, or 128 + signal.
        code: i32,
    },
    /// It could not be done.
    Failed {
        /// Why.
        why: String,
    },
    /// What the probes found.
    Findings {
        /// One for each probe.
        findings: Vec<Finding>,
    },
    /// The gate refused, and goes on as before.
    Refused {
        /// Why.
        report: Report,
    },
    /// How the sandbox is.
    Status(Status),
}

/// How a sandbox is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's pid on the host.
    pub agent_pid: i32,
    /// The gate's pid on the host, if it has one.
    pub gate_pid: Option<i32>,
    /// The shim's pid.
    pub shim_pid: i32,
    /// Whether it is frozen.
    pub frozen: bool,
    /// Processes inside.
    pub processes: u32,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
}

/// A client of one shim.
pub struct Shim {
    socket: PathBuf,
}

impl Shim {
    /// Names the shim behind `socket`.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] if no shim listens there.
    pub fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>], patience: Duration) -> Result<Answer, SandboxError> {
        let gone = |_| SandboxError::Gone(self.socket.clone());
        let stream = UnixStream::connect(&self.socket).map_err(gone)?;
        stream.set_read_timeout(Some(patience)).map_err(gone)?;
        send(&stream, request, fds).map_err(gone)?;
        let mut line = String::new();
        BufReader::new((&stream).take(1 << 20)).read_line(&mut line).map_err(gone)?;
        serde_json::from_str(&line).map_err(|_| SandboxError::Gone(self.socket.clone()))
    }
}

/// Sends one JSON line with descriptors beside it.
fn send(stream: &UnixStream, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&line)], &mut beside, SendFlags::NOSIGNAL)?;
    let mut rest = stream;
    rest.write_all(line.get(sent..).unwrap_or_default())
}

/// Receives one JSON line with the descriptors beside it.
///
/// # Errors
/// Whatever reading gives; a line over 1 MiB is refused.
pub fn receive(stream: &UnixStream) -> std::io::Result<(Request, Vec<OwnedFd>)> {
    let mut bytes = Vec::new();
    let mut fds = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let got =
            rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut chunk)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        bytes.extend_from_slice(chunk.get(..got.bytes).unwrap_or_default());
        if got.bytes == 0 || bytes.ends_with(b"\n") {
            break;
        }
        if bytes.len() > 1 << 20 {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
    }
    Ok((serde_json::from_slice(&bytes)?, fds))
}

/// Answers with one JSON line.
///
/// # Errors
/// Whatever writing gives.
pub fn answer(stream: &mut UnixStream, answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Asks a shim to attack its own fence.
///
/// # Errors
/// As [`Shim::ask`], and [`SandboxError::Runtime`] if the probes could not be run.
pub fn probe(shim: &Shim, targets: crate::probe::Targets) -> Result<Vec<Finding>, SandboxError> {
    match shim.ask(&Request::Probe { targets }, &[], Duration::from_secs(60))? {
        Answer::Findings { findings } => Ok(findings),
        Answer::Failed { why } => Err(SandboxError::Runtime { doing: "probe the fence", why }),
        other => Err(SandboxError::Runtime { doing: "probe the fence", why: format!("answer {other:?}") }),
    }
}

/// Puts another policy in force. `config` holds the gate's new configuration.
///
/// # Errors
/// As [`Shim::ask`], and the gate's own report if it refuses; it goes on as before then.
pub fn policy(shim: &Shim, config: BorrowedFd<'_>) -> Result<(), Report> {
    match shim.ask(&Request::Policy, &[config], Duration::from_secs(30))? {
        Answer::Done => Ok(()),
        Answer::Refused { report } => Err(report),
        Answer::Failed { why } => Err(SandboxError::Runtime { doing: "change the policy", why }.into()),
        other => Err(SandboxError::Runtime { doing: "change the policy", why: format!("answer {other:?}") }.into()),
    }
}

/// Lets the first instruction of a held agent happen.
///
/// # Errors
/// As [`Shim::ask`], and [`SandboxError::Runtime`] if it could not be started.
pub fn start(shim: &Shim) -> Result<(), SandboxError> {
    match shim.ask(&Request::Start, &[], Duration::from_secs(30))? {
        Answer::Done => Ok(()),
        Answer::Failed { why } => Err(SandboxError::Runtime { doing: "start the agent", why }),
        other => Err(SandboxError::Runtime { doing: "start the agent", why: format!("answer {other:?}") }),
    }
}

/// Runs a command inside with the given standard descriptors, to its end.
///
/// # Errors
/// As [`Shim::ask`], and [`SandboxError::Command`] if it could not be run.
pub fn exec(
    shim: &Shim,
    argv: &[String],
    env: &[(String, String)],
    stdio: [impl AsFd; 3],
) -> Result<i32, SandboxError> {
    let request = Request::Exec { argv: argv.to_vec(), env: env.to_vec(), cwd: None };
    let fds: Vec<BorrowedFd<'_>> = stdio.iter().map(AsFd::as_fd).collect();
    match shim.ask(&request, &fds, Duration::from_secs(24 * 3600))? {
        Answer::Exited { code } => Ok(code),
        Answer::Failed { why } => {
            Err(SandboxError::Command { program: argv.first().cloned().unwrap_or_default(), why })
        }
        other => Err(SandboxError::Runtime { doing: "run a command inside", why: format!("answer {other:?}") }),
    }
}
