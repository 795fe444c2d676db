//! What is measured: each peer a process of its own, pinned to the proxies' core.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringfence_gate::config::{CredentialLease, Fds, GateConfig, Ready};
use ringfence_model::manifest::{Grant, Place};
use ringfence_model::{Manifest, SandboxId, SecretText};
use ringfence_sys::capture::Capture;
use ringfence_sys::spawn::{Spawn, sealed};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::load::{Order, Seen, Work};
use crate::{Done, Failure, HOST, PROXY_CORE, WORLD_CORE};

/// A way to the upstream, and the process that is measured on it.
pub struct Peer {
    /// What the table calls it.
    pub name: String,
    to: SocketAddr,
    port: u16,
    by_connect: bool,
    ca: PathBuf,
    site: Site,
    child: Option<Child>,
}

/// Where its clients run.
enum Site {
    Host,
    /// In the namespace of this thread, which started the gate and must outlive it.
    Namespace(mpsc::Sender<Job>),
}

type Job = (Command, mpsc::Sender<std::io::Result<std::process::Output>>);

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The whole of one run.
pub struct World {
    /// Where certificates, configurations and spools are.
    pub dir: PathBuf,
    /// Where the upstream listens.
    pub upstream: SocketAddr,
    _upstream: Own,
}

struct Own(Child);

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl World {
    /// Makes certificates and starts the upstream.
    pub fn new(dir: &Path) -> Result<Self, Failure> {
        crate::pki::write(dir)?;
        let port = free_port()?;
        let mut command = own("upstream");
        command.arg(port.to_string()).arg(dir);
        let child = pinned(WORLD_CORE, || Ok(command.spawn()?))?;
        let upstream = SocketAddr::from(([127, 0, 0, 1], port));
        wait_for(upstream)?;
        Ok(Self { dir: dir.to_owned(), upstream, _upstream: Own(child) })
    }

    fn peer(&self, name: &str, to: SocketAddr, ca: &str) -> Peer {
        Peer {
            name: name.to_owned(),
            to,
            port: self.upstream.port(),
            by_connect: false,
            ca: self.dir.join(ca),
            site: Site::Host,
            child: None,
        }
    }

    /// No proxy at all.
    pub fn direct(&self) -> Peer {
        self.peer("direct", self.upstream, "up-ca.pem")
    }

    /// Hudsucker.
    pub fn hudsucker(&self) -> Result<Peer, Failure> {
        let port = free_port()?;
        let mut command = own("hudsucker");
        command.arg(port.to_string()).arg(&self.dir);
        self.proxy("hudsucker", port, command)
    }

    /// Squid, which decrypts after it has read the server's name, and neither caches nor logs.
    pub fn squid(&self) -> Result<Peer, Failure> {
        let port = free_port()?;
        let dir = self.dir.join("squid");
        std::fs::create_dir(&dir)?;
        std::fs::set_permissions(&self.dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (here, up) = (text(&dir), text(&self.dir));
        std::fs::write(dir.join("hosts"), format!("127.0.0.1 {HOST}\n"))?;
        std::fs::write(
            dir.join("squid.conf"),
            format!(
                "http_port 127.0.0.1:{port} ssl-bump generate-host-certificates=on dynamic_cert_mem_cache_size=16MB \
                 tls-cert={up}/mitm.pem tls-key={up}/mitm.key\n\
                 sslcrtd_program /usr/lib/squid/security_file_certgen -s {here}/certs -M 16MB\n\
                 sslcrtd_children 2 startup=1 idle=1\n\
                 tls_outgoing_options cafile={up}/up-ca.pem\n\
                 acl step1 at_step SslBump1\nssl_bump peek step1\nssl_bump bump all\n\
                 http_access allow all\nhosts_file {here}/hosts\ncache deny all\naccess_log none\ncache_store_log none\n\
                 cache_log {here}/cache.log\npid_filename {here}/squid.pid\ncoredump_dir {here}\npinger_enable off\n\
                 cache_effective_user proxy\nmax_filedescriptors 8192\nshutdown_lifetime 0 seconds\n"
            ),
        )?;
        let run = |command: &mut Command| -> Done {
            let output = command.output()?;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
        };
        run(Command::new("/usr/lib/squid/security_file_certgen").args([
            "-c",
            "-s",
            &format!("{here}/certs"),
            "-M",
            "16MB",
        ]))?;
        run(Command::new("chown").args(["-R", "proxy:proxy", &here]))?;
        let mut command = Command::new("/usr/sbin/squid");
        command.args(["-N", "-f", &format!("{here}/squid.conf")]).stderr(Stdio::null());
        self.proxy("squid", port, command)
    }

    /// mitmproxy, from the program `mitmdump`.
    pub fn mitmproxy(&self, program: &str) -> Result<Peer, Failure> {
        let port = free_port()?;
        let dir = self.dir.join("mitmproxy");
        std::fs::create_dir(&dir)?;
        let (key, pem) = (std::fs::read(self.dir.join("mitm.key"))?, std::fs::read(self.dir.join("mitm.pem"))?);
        std::fs::write(dir.join("mitmproxy-ca.pem"), [key, pem].concat())?;
        let to = self.upstream.port();
        std::fs::write(
            dir.join("here.py"),
            format!("def server_connect(data):\n    data.server.address = ('127.0.0.1', {to})\n"),
        )?;
        let mut command = Command::new(program);
        let set = |what: &str, value: &Path| format!("{what}={}", value.display());
        command.args(["-q", "--listen-host", "127.0.0.1", "--listen-port", &port.to_string()]);
        command.args(["--set", &set("confdir", &dir), "-s"]).arg(dir.join("here.py"));
        command.args(["--set", &set("ssl_verify_upstream_trusted_ca", &self.dir.join("up-ca.pem"))]);
        command.args(["--set", "http2=false", "--set", "stream_large_bodies=64k", "--set", "flow_detail=0"]);
        self.proxy("mitmproxy", port, command)
    }

    fn proxy(&self, name: &str, port: u16, mut command: Command) -> Result<Peer, Failure> {
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let child = pinned(PROXY_CORE, || Ok(command.spawn()?))?;
        let mut peer = self.peer(name, to, "mitm.pem");
        (peer.by_connect, peer.child) = (true, Some(child));
        wait_for(to)?;
        Ok(peer)
    }

    /// A gate in the process that the shim would start: captured namespace, host's namespace for its calls, spool,
    /// policy of `grants` grants, leases whose placeholders it searches for, and all confinement.
    pub fn gate(&self, name: &str, program: &Path, secret: bool, strict: bool) -> Result<Peer, Failure> {
        let (program, dir, label) = (program.to_owned(), self.dir.clone(), name.replace(' ', "-"));
        let config = GateConfig { strict_audit: strict, ..self.config(10, secret)? };
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (up, came_up) = mpsc::channel();
        std::thread::spawn(move || {
            let gate = start_gate(&program, &dir, &label, config).map_err(|e| e.to_string());
            // The link holds the capture.
            let (told, _link) = match gate {
                Ok((child, address, link)) => (Ok((child, address)), Some(link)),
                Err(error) => (Err(error), None),
            };
            if up.send(told).is_err() {
                return;
            }
            for (mut command, reply) in inbox {
                let _ = reply.send(command.output());
            }
        });
        let (child, address) = came_up.recv()??;
        let ca = format!("{}.pem", name.replace(' ', "-"));
        let to = SocketAddr::from((address, 443));
        let mut peer = self.peer(name, to, &ca);
        (peer.port, peer.site, peer.child) = (443, Site::Namespace(jobs), Some(child));
        Ok(peer)
    }

    /// The gate's code on a socket of the host's, in a process that keeps its rights; recorded, or not at all.
    pub fn gate_in_library(&self, name: &str, recorded: bool) -> Result<Peer, Failure> {
        let port = free_port()?;
        let label = name.replace(", ", "-");
        let orders = self.dir.join(format!("{label}.json"));
        std::fs::write(&orders, serde_json::to_vec(&self.config(10, false)?)?)?;
        let certificate = format!("{label}.pem");
        let mut command = own("gate-in-library");
        command.arg(port.to_string()).arg(orders).arg(self.dir.join(&certificate));
        if recorded {
            command.arg(self.dir.join(format!("{label}.spool")));
        }
        let mut peer = self.proxy(name, port, command)?;
        (peer.by_connect, peer.port, peer.ca) = (false, 443, self.dir.join(certificate));
        Ok(peer)
    }

    /// What such a gate is told; the grant that counts is the last.
    pub fn config(&self, grants: usize, secret: bool) -> Result<GateConfig, Failure> {
        let ca = std::fs::read_to_string(self.dir.join("up-ca.pem"))?;
        let grant = |host: String| -> Result<Grant, Failure> {
            Ok(Grant {
                methods: vec!["GET".into(), "POST".into()],
                paths: ["/bytes/*", "/sink", "/sse", "/v1/chat/completions"].map(String::from).to_vec(),
                connect_to: Some(self.upstream),
                ca_pem: Some(ca.clone()),
                ..Grant::to(host.parse()?)
            })
        };
        let mut grants = (1..grants).map(|n| grant(format!("h{n}.example.org"))).collect::<Result<Vec<_>, _>>()?;
        grants.push(Grant { credential: secret.then(|| "openai".into()), ..grant(HOST.into())? });
        let lease = CredentialLease {
            place: Place::Header { name: "authorization".into(), template: "Bearer {}".into() },
            placeholder: "rf-placeholder-openai-000".into(),
            secret: SecretText::new("sk-live-0123456789abcdef".into()),
        };
        let sandbox = SandboxId::from_parts(1, [1; 8]);
        let closed = GateConfig::closed("analyst".parse()?, sandbox, 65_534, 65_534, Fds::default());
        // More than any run spends, in every unit.
        const BUDGET: &str = "[agent]\nname = \"a\"\nentry = [\"x\"]\n[budget]\nrequests_per_month = 1000000000\n\
            tokens_per_month = 1000000000000\nusd_per_day = 100000\nbytes_per_month = \"100TiB\"\n";
        let budget = Manifest::parse(BUDGET, &|_| Err(String::new()))?.budget;
        Ok(GateConfig { grants, budget, credentials: [("openai".to_owned(), lease)].into(), ..closed })
    }
}

fn start_gate(
    program: &Path,
    dir: &Path,
    name: &str,
    mut config: GateConfig,
) -> Result<(Child, Ipv4Addr, OwnedFd), Failure> {
    let host = std::fs::File::open("/proc/thread-self/ns/net")?;
    ringfence_sys::process::new_network_namespace()?;
    ringfence_sys::netns::make_everything_local()?;
    let Capture { tcp, dns, udp, link } = Capture::attach()?;
    let (ready_read, ready_write) = rustix::pipe::pipe()?;
    let spool =
        std::fs::File::options().create(true).append(true).read(true).open(dir.join(format!("{name}.spool")))?;
    let ledger = rustix::fs::memfd_create("ledger", rustix::fs::MemfdFlags::CLOEXEC)?;
    config.fds = Fds {
        ledger: Some(8),
        tcp: vec![10, 11],
        dns: vec![12, 13],
        udp_sink: vec![14, 15],
        host_netns: Some(6),
        spool: 4,
        ready: 5,
        ..Fds::default()
    };
    let orders = sealed("gate-config", &serde_json::to_vec(&config)?)?;
    let mut fds: Vec<(OwnedFd, i32)> =
        vec![(orders, 3), (ledger, 8), (spool.into(), 4), (ready_write, 5), (host.into(), 6)];
    fds.extend(tcp.into_iter().chain(dns).chain(udp).zip(10..));
    let spawn = Spawn {
        program: program.to_owned(),
        arg0: "ringfence-gate".into(),
        args: vec!["gate-process".into()],
        fds,
        stderr: Stdio::inherit(),
        session: false,
        env: vec![],
    };
    let child = pinned(PROXY_CORE, || Ok(spawn.start()?))?;
    let mut word = BufReader::new(std::fs::File::from(ready_read));
    loop {
        let mut line = String::new();
        if word.read_line(&mut line)? == 0 {
            return Err("the gate ended before it was up".into());
        }
        match serde_json::from_str(&line)? {
            Ready::Trust { ca_pem: pem, .. } => std::fs::write(dir.join(format!("{name}.pem")), pem)?,
            Ready::Up => break,
            Ready::Error(report) => return Err(report.to_string().into()),
        }
    }
    Ok((child, resolve(HOST)?, link))
}

/// Asks the gate for a name's address, as the agent's C library would.
fn resolve(name: &str) -> Result<Ipv4Addr, Failure> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len())?);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.connect("9.9.9.9:53")?;
    socket.send(&query)?;
    let mut answer = [0; 512];
    let count = socket.recv(&mut answer)?;
    // The address ends the only record.
    let four = answer.get(..count).and_then(|a| a.last_chunk::<4>()).ok_or("the gate's DNS answer is short")?;
    Ok(Ipv4Addr::from(*four))
}

impl Peer {
    /// Lets a client work by this peer.
    pub fn load(&self, work: Work, connections: usize, seconds: f64) -> Result<Seen, Failure> {
        let order = Order {
            to: self.to,
            host: HOST.into(),
            port: self.port,
            by_connect: self.by_connect,
            ca: self.ca.to_string_lossy().into_owned(),
            work,
            connections,
            seconds,
        };
        let mut command = Command::new("taskset");
        command.args(["-c", &WORLD_CORE.to_string()]).arg(std::env::current_exe()?);
        command.arg("load").arg(serde_json::to_string(&order)?);
        let output = match &self.site {
            Site::Host => command.output()?,
            Site::Namespace(jobs) => {
                let (reply, answer) = mpsc::channel();
                jobs.send((command, reply))?;
                answer.recv()??
            }
        };
        if !output.status.success() {
            return Err(format!("{}: {}", self.name, String::from_utf8_lossy(&output.stderr).trim()).into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// CPU time that its processes have taken, in seconds.
    pub fn cpu(&self) -> f64 {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        self.processes().iter().filter_map(|pid| stat(*pid)).map(|(_, used)| used as f64 / ticks).sum()
    }

    /// A line of its memory in MiB, such as `VmRSS` or `VmHWM`, over its processes.
    pub fn memory(&self, what: &str) -> f64 {
        let of = |pid: &u32| -> Option<f64> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        self.processes().iter().filter_map(of).fold(0.0, |sum, kib| sum + kib) / 1024.0
    }

    /// Its memory in MiB, where what it shares with others counts in parts.
    pub fn share(&self) -> f64 {
        let of = |pid: &u32| -> Option<f64> {
            let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("Pss:"))?.split_whitespace().next()?.parse().ok()
        };
        self.processes().iter().filter_map(of).fold(0.0, |sum: f64, kib: f64| sum + kib) / 1024.0
    }

    /// Forgets the peak of its memory.
    pub fn forget_peak(&self) {
        for pid in self.processes() {
            let _ = std::fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    /// Its processes.
    pub fn processes(&self) -> Vec<u32> {
        let Some(child) = &self.child else { return vec![] };
        let mut found = vec![child.id()];
        let all: Vec<u32> = std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        found.extend(all.into_iter().filter(|pid| stat(*pid).is_some_and(|(parent, _)| parent == child.id())));
        found
    }
}

/// A process's parent and its CPU time in ticks.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some((u32::try_from(number(1)?).ok()?, number(11)? + number(12)?))
}

fn own(verb: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command.arg(verb);
    command
}

/// Runs `make` on a core; what it starts stays there.
fn pinned<T>(core: usize, make: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let me: Option<Pid> = None;
    let before = sched_getaffinity(me)?;
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(me, &set)?;
    let made = make();
    sched_setaffinity(me, &before)?;
    made
}

fn free_port() -> Result<u16, Failure> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn wait_for(address: SocketAddr) -> Done {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        if started.elapsed() > Duration::from_secs(20) {
            return Err(format!("nothing came up at {address}").into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
