//! The process: it reads its orders, gives up everything it does not need, says that it is ready, and serves.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use ringfence_audit::{Origin, Spool};
use ringfence_model::{Fault, Report};
use ringfence_sys::confine::{self, Calls, ConfineError};
use ringfence_sys::fd;
use ringfence_sys::shared::Counters;
use rustix::process::{Resource, Rlimit};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use zeroize::Zeroize;

use crate::accept::{self, Capture};
use crate::budget::{Files, NUMBERS};
use crate::config::{GateConfig, Ready};
use crate::ingress::{Here, Ingress, Sockets};
use crate::{Gate, datagram, reload};

/// The largest configuration that is read.
const MAX_CONFIG_BYTES: u64 = 16 * 1024 * 1024;

/// Open files that one gate may have: two for each connection and some.
const MAX_FILES: u64 = 8192;

/// Runs the gate of one sandbox until it is killed, or until something that it needs breaks.
///
/// `config_fd` holds a [`GateConfig`] as JSON.
#[must_use]
pub fn main(config_fd: i32) -> ExitCode {
    let config = match read_config(config_fd) {
        Ok(config) => config,
        Err(report) => {
            // Without a configuration there is no pipe to say it on.
            tracing::error!(%report, "cannot start");
            return ExitCode::from(report.exit_code());
        }
    };
    let Ok(ready) = fd::adopt(config.fds.ready) else { return ExitCode::from(1) };
    let mut ready = File::from(ready);
    match prepare(config, &mut ready) {
        Ok(prepared) => match prepared.serve(|| tell(&mut ready, &Ready::Up).map(|()| drop(ready))) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                tracing::error!(%error, "the gate ended");
                ExitCode::from(1)
            }
        },
        Err(report) => {
            let code = report.exit_code();
            // Whoever waits sees the pipe close if this fails.
            let _ = tell(&mut ready, &Ready::Error(report));
            ExitCode::from(code)
        }
    }
}

fn tell(to: &mut File, what: &Ready) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)
}

fn read_config(number: i32) -> Result<GateConfig, Report> {
    let failed = |e: &dyn std::error::Error| {
        Report::new("gate.config", Fault::Us, "cannot read the gate's configuration").because(e)
    };
    let mut file = File::from(fd::adopt(number).map_err(|e| failed(&e))?);
    let mut bytes = Vec::new();
    // Read by position, for whoever wrote it may have left the offset at its end.
    let length = file.metadata().map_err(|e| failed(&e))?.len().min(MAX_CONFIG_BYTES);
    if length > 0 {
        bytes.resize(usize::try_from(length).unwrap_or(0), 0);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).map_err(|e| failed(&e))?;
    } else {
        Read::by_ref(&mut file).take(MAX_CONFIG_BYTES).read_to_end(&mut bytes).map_err(|e| failed(&e))?;
    }
    let config = serde_json::from_slice(&bytes).map_err(|e| failed(&e));
    bytes.zeroize();
    config
}

/// Everything opened and made, and nothing given up yet that is needed.
struct Prepared {
    runtime: tokio::runtime::Runtime,
    gate: Arc<Gate>,
    tcp: Vec<TcpListener>,
    dns: Vec<UdpSocket>,
    udp_sink: Vec<UdpSocket>,
    ingress: Option<(TcpListener, Door)>,
    control: Option<UnixStream>,
}

/// The door, by where the agent is.
enum Door {
    Apart(Ingress<Apart>),
    Here(Ingress<Here>),
}

fn prepare(mut config: GateConfig, ready: &mut File) -> Result<Prepared, Report> {
    let parent = rustix::process::getppid();
    let host = |what: &str| Report::new("gate.start", Fault::Host, format!("cannot {what}"));
    let take = |number: i32, what: &str| {
        fd::adopt(number).map_err(|e| host(&format!("use the inherited descriptor {number} ({what})")).because(&e))
    };
    let authority = Gate::authority(&config)?;
    let trust =
        Ready::Trust { ca_pem: authority.ca_pem().to_owned(), ssh_authority: authority.ssh().public().to_owned() };
    tell(ready, &trust).map_err(|e| host("tell the certificate").because(&e))?;
    raise_open_files();
    let fds = std::mem::take(&mut config.fds);
    let take_all =
        |numbers: Vec<i32>, what: &str| numbers.into_iter().map(|n| take(n, what)).collect::<Result<Vec<_>, Report>>();
    let tcp = take_all(fds.tcp, "tcp")?.into_iter().map(TcpListener::from).collect();
    let dns = take_all(fds.dns, "dns")?.into_iter().map(UdpSocket::from).collect();
    let udp_sink = take_all(fds.udp_sink, "udp_sink")?.into_iter().map(UdpSocket::from).collect();
    let host_netns = fds.host_netns.map(|n| take(n, "host_netns")).transpose()?;
    let origin = Origin {
        source: format!("gate:{}", config.sandbox),
        agent: Some(config.agent.clone()),
        sandbox: Some(config.sandbox.clone()),
    };
    let spool = Spool::open(File::from(take(fds.spool, "spool")?), origin, 1)
        .map_err(|e| host("open the audit spool").because(&e))?
        .strict(config.strict_audit);

    let counters = |number: Option<i32>, what: &str| {
        let map = |number| {
            let file = File::from(take(number, what)?);
            Counters::map(&file, NUMBERS)
                .map(Arc::new)
                .map_err(|e| host(&format!("map the file that {what} is counted in")).because(&e))
        };
        number.map(map).transpose()
    };
    let files =
        Files { own: counters(fds.ledger, "the budget")?, shared: counters(fds.host_ledger, "the host's budget")? };

    let control = fds.control.map(|n| take(n, "control")).transpose()?.map(UnixStream::from);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| host("start the event loop").because(&e))?;
    let gate = {
        let _entered = runtime.enter();
        Gate::open_with(&config, Arc::new(spool), authority, files, crate::Barriers::default()).map_err(Report::from)?
    };

    if let Some(number) = fds.definitions {
        let file = File::from(take(number, "definitions")?);
        gate.remember_definitions(file)
            .map_err(|e| host("read what tools were when they were first seen").because(&e))?;
    }

    if let Some(number) = fds.captures {
        let file = File::from(take(number, "captures")?);
        gate.keep_captures(file, config.captures)
            .map_err(|e| host("read what was captured of earlier calls").because(&e))?;
    }

    let barrier = |e: ConfineError| {
        Report::new("gate.confine", Fault::Host, "cannot confine the gate")
            .because(&e)
            .hint("see `ringfence host` for what this host lacks")
    };
    let confinement = Confinement { uid: config.uid, gid: config.gid, unconfined: config.danger_unconfined };
    // The helper is started here, in the agent's namespace, and stays there; this thread leaves it.
    let sockets = match (&config.ingress, &host_netns) {
        (Some(_), Some(_)) => Some(Apart::start(confinement).map_err(barrier)?),
        _ => None,
    };
    if let Some(namespace) = &host_netns {
        confine::enter_network(namespace.as_fd()).map_err(barrier)?;
    }
    drop(host_netns);
    let ingress = match &config.ingress {
        None => None,
        Some(ingress) => {
            let listener = TcpListener::from(take(ingress.listener_fd, "ingress listener")?);
            let door = match sockets {
                Some(sockets) => Ingress::new(Arc::clone(&gate), ingress, sockets).map(Door::Apart),
                None => Ingress::new(Arc::clone(&gate), ingress, Here).map(Door::Here),
            };
            Some((listener, door.map_err(Report::from)?))
        }
    };
    drop(config);
    confinement.apply_to_main().map_err(barrier)?;
    // Whoever started this may have died before its death was watched.
    if rustix::process::getppid() != parent {
        return Err(Report::new("gate.orphan", Fault::Us, "whoever started the gate is gone"));
    }
    Ok(Prepared { runtime, gate, tcp, dns, udp_sink, ingress, control })
}

/// More connections than the usual limit of files allows.
fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(MAX_FILES).min(MAX_FILES);
    if limit.current.is_some_and(|now| now < most) {
        // A lower limit only means that connections wait earlier.
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum });
    }
}

/// What the process gives up.
#[derive(Clone, Copy)]
struct Confinement {
    uid: u32,
    gid: u32,
    unconfined: bool,
}

impl Confinement {
    fn apply_to_main(self) -> Result<(), ConfineError> {
        confine::become_nobody(self.uid, self.gid)?;
        confine::seal_process()?;
        if self.unconfined {
            return Ok(());
        }
        confine::no_files()?;
        confine::only_calls(Calls::Network)
    }

    fn apply_to_helper(self) -> Result<(), ConfineError> {
        confine::become_nobody(self.uid, self.gid)?;
        confine::seal_thread()?;
        if self.unconfined {
            return Ok(());
        }
        confine::no_files()?;
        confine::only_calls(Calls::SocketMaking)
    }
}

impl Prepared {
    /// Says that it is up, and serves until one of the listeners breaks.
    fn serve(self, ready: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        let Self { runtime, gate, tcp, dns, udp_sink, ingress, control } = self;
        let recorder = Arc::clone(&gate.recorder);
        runtime.block_on(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for listener in tcp {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                tasks.spawn(accept::serve(Arc::clone(&gate), listener, Capture::Transparent));
            }
            for socket in dns {
                tasks.spawn(datagram::serve_dns(Arc::clone(&gate), socket));
            }
            for socket in udp_sink {
                tasks.spawn(datagram::drop_all(Arc::clone(&gate), socket));
            }
            if let Some(control) = control {
                control.set_nonblocking(true)?;
                let control = tokio::net::UnixStream::from_std(control)?;
                let gate = Arc::clone(&gate);
                tokio::spawn(async move {
                    if let Err(error) = reload::serve(gate, control).await {
                        tracing::warn!(%error, "no further policy can be put in force");
                    }
                });
            }
            if let Some((listener, door)) = ingress {
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                match door {
                    Door::Apart(ingress) => tasks.spawn(ingress.serve(listener)),
                    Door::Here(ingress) => tasks.spawn(ingress.serve(listener)),
                };
            }
            ready()?;
            ringfence_sys::memory::forget_code();
            recorder.at_rest(ringfence_sys::memory::forget_code);
            match tasks.join_next().await {
                Some(Ok(ended)) => ended,
                Some(Err(error)) => Err(std::io::Error::other(error)),
                None => Ok(()),
            }
        })
    }
}

/// A thread that stays in the agent's network namespace, and there makes sockets on request.
struct Apart {
    requests: mpsc::Sender<oneshot::Sender<std::io::Result<OwnedFd>>>,
}

impl Apart {
    fn start(confinement: Confinement) -> Result<Self, ConfineError> {
        let (requests, inbox) = mpsc::channel::<oneshot::Sender<std::io::Result<OwnedFd>>>();
        let (confined, outcome) = mpsc::channel();
        let failed = |source| ConfineError { mechanism: "helper thread", source };
        std::thread::Builder::new()
            .name("agent-sockets".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                let done = confinement.apply_to_helper();
                let up = done.is_ok();
                if confined.send(done).is_err() || !up {
                    return;
                }
                for reply in inbox {
                    // Whoever asked may be gone; then the socket closes.
                    let _ = reply.send(socket());
                }
            })
            .map_err(failed)?;
        outcome.recv().map_err(|e| failed(std::io::Error::other(e)))??;
        Ok(Self { requests })
    }
}

fn socket() -> std::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
}

impl Sockets for Apart {
    async fn socket(&self) -> std::io::Result<TcpSocket> {
        let gone = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).map_err(|_| gone())?;
        let socket = answer.await.map_err(|_| gone())??;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}
