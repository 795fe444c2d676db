//! Attacks on the fence, run inside the very sandbox, with just what the agent has.
//!
//! A barrier holds if its attack fails. The barrier tests run the same attacks with the barrier off, and there
//! they succeed; so a probe that says "held" is a probe that can say otherwise.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as SocketAddrOfUnix, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_sys::attack::Attempt;
use serde::{Deserialize, Serialize};

/// How long an attack over the network may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a canary outside says to whoever reaches it.
pub const CANARY: &str = "ringfence-canary: you are outside the fence\n";

/// What the attacks aim at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// TCP listeners outside that say [`CANARY`], each with what the attack is called.
    pub tcp: Vec<(String, SocketAddr)>,
    /// UDP sockets outside that answer with [`CANARY`].
    pub udp: Vec<(String, SocketAddr)>,
    /// Names that no grant covers.
    pub names: Vec<String>,
    /// Unix sockets outside that must not be reached.
    pub sockets: Vec<PathBuf>,
}

/// What one probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The barrier.
    pub barrier: String,
    /// Whether it held.
    pub held: bool,
    /// What was seen.
    pub detail: String,
}

fn finding(barrier: impl Into<String>, outcome: Result<String, String>) -> Finding {
    let (held, detail) = match outcome {
        Ok(refusal) => (true, refusal),
        Err(breach) => (false, breach),
    };
    Finding { barrier: barrier.into(), held, detail }
}

/// Runs every attack. Call it in a confined process that then ends.
#[must_use]
pub fn run(targets: &Targets) -> Vec<Finding> {
    let mut findings = vec![
        finding("write-root", write_file("/usr/.ringfence-probe")),
        finding("write-app", write_file("/app/.ringfence-probe")),
        finding("write-trust", write_file("/etc/ssl/certs/ca-certificates.crt")),
        finding("run-written-code", run_written_code()),
        finding("run-anonymous-code", run_anonymous_code()),
        finding("host-memory", read_file("/proc/kcore")),
        finding("host-keys", read_file("/proc/keys")),
        finding("kernel-settings", write_existing("/proc/sys/kernel/core_pattern")),
        finding("sysrq", write_existing("/proc/sysrq-trigger")),
        finding("host-processes", see_host_processes()),
        finding("interfaces", see_interfaces()),
    ];
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (name, address) in &targets.tcp {
            running.push(scope.spawn(move || finding(format!("connect-{name}"), connect(*address))));
        }
        for (name, address) in &targets.udp {
            running.push(scope.spawn(move || finding(format!("datagram-{name}"), datagram(*address))));
        }
        for name in &targets.names {
            running.push(scope.spawn(move || finding("connect-name", connect_name(name))));
        }
        for socket in &targets.sockets {
            running.push(scope.spawn(move || finding("supervisor-socket", reach_socket(socket))));
        }
        for thread in running {
            findings.push(thread.join().unwrap_or_else(|_| finding("probe", Err("the probe itself failed".into()))));
        }
    });
    // Last, when this process has one thread again.
    for (attempt, name) in Attempt::ALL {
        let outcome = match attempt.run_apart() {
            Ok(Ok(())) => Err("the kernel let it through".into()),
            Ok(Err(refusal)) => Ok(word(&refusal)),
            Err(error) => Err(format!("it could not be tried: {}", word(&error))),
        };
        findings.push(finding(name, outcome));
    }
    findings
}

fn word(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn write_file(path: &str) -> Result<String, String> {
    let existed = Path::new(path).exists();
    match fs::File::options().append(true).create(true).open(path) {
        Ok(_) => {
            if !existed {
                let _ = fs::remove_file(path);
            }
            Err(format!("`{path}` could be written"))
        }
        Err(refusal) => Ok(word(&refusal)),
    }
}

/// Writes into a setting what it holds already, so that a breach changes nothing.
fn write_existing(path: &str) -> Result<String, String> {
    // A file that cannot be read takes a command; `h` is the one that only asks for help.
    let bytes = fs::read(path).ok().filter(|b| !b.is_empty()).unwrap_or_else(|| b"h".to_vec());
    let opened = match fs::File::options().write(true).open(path) {
        Ok(file) => file,
        Err(refusal) => return Ok(word(&refusal)),
    };
    if let Ok(meta) = opened.metadata()
        && std::os::unix::fs::FileTypeExt::is_char_device(&meta.file_type())
    {
        return Ok("masked".into());
    }
    match (&opened).write_all(&bytes) {
        Ok(()) => Err(format!("`{path}` could be written")),
        Err(refusal) => Ok(word(&refusal)),
    }
}

fn read_file(path: &str) -> Result<String, String> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(refusal) => return Ok(word(&refusal)),
    };
    match file.read(&mut [0; 16]) {
        Ok(0) => Ok("empty".into()),
        Ok(_) => Err(format!("`{path}` could be read")),
        Err(refusal) => Ok(word(&refusal)),
    }
}

/// Writes a program into every writable place and tries to run it.
fn run_written_code() -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt;
    let mut last = "nothing is writable".to_owned();
    for folder in ["/tmp", "/state", "/dev/shm"] {
        let path = Path::new(folder).join(".ringfence-probe");
        if fs::write(&path, b"\x7fELF").is_err() {
            continue;
        }
        let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o755));
        let run = std::process::Command::new(&path).status();
        let _ = fs::remove_file(&path);
        match run {
            Err(refusal) if refusal.kind() == std::io::ErrorKind::PermissionDenied => last = word(&refusal),
            // Any other answer means that the kernel looked into the file to run it.
            Err(_) | Ok(_) => return Err(format!("a program written to `{folder}` was taken for running")),
        }
    }
    Ok(last)
}

/// Puts a program into an anonymous file, which no mount and no Landlock rule covers, and tries to run it.
fn run_anonymous_code() -> Result<String, String> {
    let file = match ringfence_sys::attack::anonymous_file() {
        Ok(file) => file,
        Err(refusal) => return Ok(word(&refusal)),
    };
    if let Err(refusal) = (&file).write_all(b"\x7fELF") {
        return Ok(word(&refusal));
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    match std::process::Command::new(path).status() {
        Err(refusal) if refusal.kind() == std::io::ErrorKind::PermissionDenied => Ok(word(&refusal)),
        Err(_) | Ok(_) => Err("a program in an anonymous file was taken for running".into()),
    }
}

fn see_host_processes() -> Result<String, String> {
    let Ok(entries) = fs::read_dir("/proc") else { return Ok("no /proc".into()) };
    let mut own = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        own += 1;
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if ["kthreadd\n", "ringfence\n", "ringfence-gate\n", "ringfence-shim\n"].contains(&comm.as_str())
            && name.to_string_lossy() != std::process::id().to_string()
        {
            return Err(format!("process {} of the host is in sight: {}", name.to_string_lossy(), comm.trim()));
        }
    }
    Ok(format!("{own} processes in sight, all inside"))
}

fn see_interfaces() -> Result<String, String> {
    let Ok(text) = fs::read_to_string("/proc/net/dev") else { return Ok("no /proc/net/dev".into()) };
    let others: Vec<&str> =
        text.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).filter(|n| *n != "lo").collect();
    if others.is_empty() { Ok("only lo".into()) } else { Err(format!("interfaces {}", others.join(", "))) }
}

/// Whether the bytes that came back are the gate's denial.
fn is_denial(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    text.starts_with("HTTP/1.1 403") && text.contains("ringfence.denied")
}

fn connect(address: SocketAddr) -> Result<String, String> {
    let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(stream) => stream,
        Err(refusal) => return Ok(word(&refusal)),
    };
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let _ = stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes());
    let mut answer = Vec::new();
    let _ = stream.take(4096).read_to_end(&mut answer);
    if answer.is_empty() {
        Ok("closed by the gate".into())
    } else if is_denial(&answer) {
        Ok("denied by the gate".into())
    } else {
        Err(format!("{address} answered"))
    }
}

fn connect_name(name: &str) -> Result<String, String> {
    match (name, 443).to_socket_addrs() {
        Err(refusal) => Ok(word(&refusal)),
        Ok(mut found) => match found.next() {
            None => Ok("no address".into()),
            Some(address) => Err(format!("`{name}` has the address {}", address.ip())),
        },
    }
}

fn datagram(address: SocketAddr) -> Result<String, String> {
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = match UdpSocket::bind(local) {
        Ok(socket) => socket,
        Err(refusal) => return Ok(word(&refusal)),
    };
    let _ = socket.set_read_timeout(Some(Duration::from_millis(200)));
    if let Err(refusal) = socket.send_to(b"probe", address) {
        return Ok(word(&refusal));
    }
    match socket.recv(&mut [0; 64]) {
        Ok(_) => Err(format!("{address} answered")),
        Err(_) => Ok("no answer".into()),
    }
}

/// `@NAME` is a socket without a file.
fn reach_socket(path: &Path) -> Result<String, String> {
    let reached = match path.to_str().and_then(|path| path.strip_prefix('@')) {
        Some(name) => SocketAddrOfUnix::from_abstract_name(name).and_then(|name| UnixStream::connect_addr(&name)),
        None => UnixStream::connect(path),
    };
    match reached {
        Ok(_) => Err(format!("`{}` could be reached", path.display())),
        Err(refusal) => Ok(word(&refusal)),
    }
}
