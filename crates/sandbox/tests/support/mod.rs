//! A sandbox around this host's own files, a gate that only denies, and a world that answers everybody.

use std::io::{Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringfence_model::manifest::{Limits, USUAL_CAPTURES};
use ringfence_model::{Bytes, Report, SandboxId};
use ringfence_sandbox::control::{self, Answer, Request, Shim, Status};
use ringfence_sandbox::probe::{CANARY, Finding, Targets};
use ringfence_sandbox::shim::Exit;
use ringfence_sandbox::spec::{Fence, SLOTS, SpecMount, fds};
use ringfence_sandbox::{SandboxSpec, launch, root};
use ringfence_sys::{fd, process};

/// What the stand-in gate says to every connection.
const DENIAL: &[u8] =
    b"HTTP/1.1 403 Forbidden\r\nContent-Length: 26\r\nConnection: close\r\n\r\n{\"code\":\"ringfence.denied\"}";

/// What the stand-in gate gives out as its authority.
pub const SSH_AUTHORITY: &str = "ssh-ed25519 c3RhbmQtaW4=";
pub const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----\nc3RhbmQtaW4=\n-----END CERTIFICATE-----\n";

/// Plays the helper process that `verb` names, if it names one.
pub fn helper(verb: Option<&str>) -> Option<ExitCode> {
    match verb {
        Some("shim-process") => Some(ringfence_sandbox::shim::main()),
        Some("gate-process") => Some(gate()),
        Some("unfenced-process") => Some(unfenced()),
        _ => None,
    }
}

/// Makes the gate take more memory than it may have, as a flood would that it does not bound itself.
pub const FLOOD: &str = "FLOOD";

/// A gate without a way out: it takes every connection and denies.
fn gate() -> ExitCode {
    process::die_with_parent().unwrap();
    for place in fds::GATE_TCP {
        let listener = TcpListener::from(fd::adopt(place).unwrap());
        listener.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let mut said = [0; 1024];
                let read = stream.read(&mut said).unwrap_or(0);
                if said.get(..read) == Some(FLOOD.as_bytes()) {
                    std::hint::black_box(vec![1u8; 600 << 20]);
                }
                let _ = stream.write_all(DENIAL);
            }
        });
    }
    let mut ready = std::fs::File::from(fd::adopt(fds::GATE_READY).unwrap());
    writeln!(
        ready,
        "{}\n\"up\"",
        serde_json::json!({ "trust": { "ca_pem": AUTHORITY, "ssh_authority": SSH_AUTHORITY } })
    )
    .unwrap();
    drop(ready);
    loop {
        std::thread::park();
    }
}

/// The same attacks, as root with no fence at all.
fn unfenced() -> ExitCode {
    // What the attacks mount stays here.
    root::private_mounts().unwrap();
    println!("{}", serde_json::to_string(&ringfence_sandbox::probe::run(&Targets::default())).unwrap());
    ExitCode::SUCCESS
}

/// One running sandbox; ended, with everything of it, when dropped.
pub struct Sandbox {
    pub spec: SandboxSpec,
    pub status: Status,
    pub process: std::process::Child,
    pub shim: Shim,
    dir: tempfile::TempDir,
}

/// A description of a sandbox with the whole fence, around `sleep`, and the folder that is its own.
pub fn spec() -> (SandboxSpec, tempfile::TempDir) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    assert!(rustix::process::getuid().is_root(), "these tests need root: they make sandboxes");
    let dir = tempfile::Builder::new().prefix("rf").permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    // A mount point below it makes `/app` a folder of the image.
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let unique = (u64::from(std::process::id()) << 32) + u64::from(number);
    let spec = SandboxSpec {
        id: SandboxId::from_parts(u64::try_from(now.as_millis()).unwrap(), unique.to_be_bytes()),
        agent: "attacker".parse().unwrap(),
        slot: (std::process::id() * 16 + number) % SLOTS,
        layers: vec!["/".into()],
        argv: vec!["sleep".into(), "600".into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        bridge: None,
        cwd: "/tmp".into(),
        limits: Limits {
            memory: Bytes::mib(64),
            cpus: 1.0,
            pids: 64,
            disk: Bytes::mib(32),
            tmp: Bytes::mib(16),
            files: 256,
            captures: USUAL_CAPTURES,
        },
        mounts: vec![SpecMount { source: data, target: "/app/data".into(), writable: false, executable: false }],
        state: None,
        trust_stores: vec![],
        host_roots: None,
        run_dir: dir.path().join("run"),
        mount_dir: dir.path().join("mnt"),
        log: dir.path().join("agent.log"),
        spools: dir.path().join("spools"),
        gate_program: std::env::current_exe().unwrap(),
        fence: Fence::default(),
        ledger: None,
        host_ledger: None,
        definitions: None,
        captures: None,
        hold: false,
    };
    (spec, dir)
}

impl Sandbox {
    /// Starts the sandbox that [`spec`] describes, changed by `change`.
    pub fn start(change: impl FnOnce(&mut SandboxSpec, &Path)) -> Self {
        Self::try_start(change).unwrap_or_else(|report| panic!("{report}"))
    }

    /// As [`Self::start`], with the report of why not.
    pub fn try_start(change: impl FnOnce(&mut SandboxSpec, &Path)) -> Result<Self, Report> {
        let (mut spec, dir) = spec();
        change(&mut spec, dir.path());
        let launched = launch::launch(&spec, b"{}", None, &std::env::current_exe().unwrap())?;
        let shim = Shim::at(&spec.control());
        Ok(Self { spec, status: launched.status, process: launched.shim, shim, dir })
    }

    /// Starts a sandbox with this fence.
    pub fn fenced(fence: Fence) -> Self {
        Self::start(|spec, _| spec.fence = fence)
    }

    /// The folder that everything of this sandbox is in.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Attacks the fence from inside.
    pub fn attack(&self, targets: Targets) -> Vec<Finding> {
        control::probe(&self.shim, targets).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Runs a command inside; gives its exit code and what it printed on both streams.
    pub fn exec(&self, argv: &[&str]) -> (i32, String) {
        let mut out = tempfile::tempfile().unwrap();
        let argv: Vec<String> = argv.iter().map(|a| (*a).to_owned()).collect();
        let null = std::fs::File::open("/dev/null").unwrap();
        let code = control::exec(&self.shim, &argv, &[], [&null, &out, &out]).unwrap_or_else(|e| panic!("{e}"));
        let mut text = String::new();
        out.rewind().unwrap();
        out.read_to_string(&mut text).unwrap();
        (code, text)
    }

    /// Runs a shell script inside.
    pub fn sh(&self, script: &str) -> (i32, String) {
        self.exec(&["bash", "-c", script])
    }

    pub fn ask(&self, request: &Request) -> Answer {
        self.shim.ask(request, &[], Duration::from_secs(10)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Waits for the sandbox to end by itself.
    pub fn wait(&mut self) -> Exit {
        self.process.wait().unwrap();
        launch::exit_of(&self.spec.run_dir).expect("the shim says how it ended")
    }

    /// What the agent printed so far.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.spec.log).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str::<ringfence_sandbox::log::Line>(l).unwrap().text).collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.shim.ask(&Request::Kill, &[], Duration::from_secs(10));
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until && matches!(self.process.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        for folder in cgroups_named(self.spec.id.as_str()) {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// The folders of a sandbox and of its gate in all cgroup hierarchies.
pub fn cgroups_named(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).unwrap().flatten().map(|e| e.path());
    hierarchies
        .chain([root.to_path_buf()])
        .flat_map(|hierarchy| [id.to_owned(), format!("{id}-gate")].map(|name| hierarchy.join("ringfence").join(name)))
        .filter(|folder| folder.exists())
        .collect()
}

/// Whether `pid` is a process that still runs, and not one that waits to be reaped.
pub fn alive(pid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Waits until `done`, for at most `limit`; gives whether it came.
pub fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs `work` in a thread whose network is a world of its own, in which a canary answers at every address: a
/// host whose every neighbour answers.
pub fn in_a_world_that_answers(work: impl FnOnce(World) + Send) {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            process::new_network_namespace().unwrap();
            ringfence_sys::netns::make_everything_local().unwrap();
            work(World::new());
        });
        worker.join().unwrap_or_else(|why| std::panic::resume_unwind(why));
    });
}

/// Where the canaries of [`in_a_world_that_answers`] listen.
pub struct World {
    port: u16,
}

impl World {
    fn new() -> Self {
        let tcp = TcpListener::bind("[::]:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let udp = UdpSocket::bind(("::", port)).unwrap();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let _ = stream.unwrap().write_all(CANARY.as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(CANARY.as_bytes(), from);
            }
        });
        Self { port }
    }

    /// Everywhere that an attacker may want to get to.
    pub fn targets(&self) -> Targets {
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), self.port);
        let named = |list: &[(&str, &str)]| list.iter().map(|(n, a)| ((*n).to_owned(), at(a))).collect::<Vec<_>>();
        Targets {
            tcp: named(&[
                ("ipv4", "93.184.216.34"),
                ("ipv6", "2606:2800:220:1::1"),
                ("host-loopback", "127.0.0.1"),
                ("host-loopback-ipv6", "::1"),
                ("metadata", "169.254.169.254"),
            ]),
            udp: named(&[("ipv4", "93.184.216.34"), ("ipv6", "2606:2800:220:1::1"), ("host-loopback", "127.0.0.1")]),
            ..Targets::default()
        }
    }
}
