//! The real process, confined, around a network namespace without wires. Needs root.
//!
//! This file is its own gate: started with `gate-process N` it is one, so that the confinement is that of a
//! main thread and not of a test's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use libtest_mimic::{Arguments, Failed, Trial};
use ringfence_audit::{Entry, Event, Outcome};
use ringfence_gate::config::{Fds, GateConfig, IngressConfig, Ready};
use ringfence_model::SecretText;
use ringfence_model::manifest::IngressAuth;
use ringfence_sys::capture::Capture;
use ringfence_sys::spawn::{Spawn, sealed};
use rustls::{ClientConnection, StreamOwned};
use support::{HOST, PLACEHOLDER, SECRET, TestCa, Upstream, config, grant, keyed};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    if let [_, verb, fd] = args.as_slice()
        && verb == "gate-process"
    {
        return ringfence_gate::process::main(fd.parse().unwrap());
    }
    let tests = vec![
        Trial::test("a_confined_gate_serves_a_namespace_without_wires", || held(confined_gate)),
        Trial::test("a_gate_that_lacks_a_lease_does_not_start", || held(refused_gate)),
        Trial::test("nobody_looks_into_a_gate_not_even_its_own_user", || held(closed_gate)),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

#[expect(clippy::unnecessary_wraps, reason = "what fails here panics; a trial wants a result")]
fn held(test: fn()) -> Result<(), Failed> {
    test();
    Ok(())
}

struct Running {
    child: std::process::Child,
    certificate: Option<String>,
    ready: Option<Ready>,
    spool: std::path::PathBuf,
    _capture: Option<OwnedFd>,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn events(&self) -> Vec<Event> {
        let lines = BufReader::new(std::fs::File::open(&self.spool).unwrap()).lines();
        lines.map(|line| serde_json::from_str::<Entry>(&line.unwrap()).unwrap().event).collect()
    }

    fn wait_for(&self, what: impl Fn(&Event) -> bool) -> Event {
        let started = Instant::now();
        loop {
            if let Some(event) = self.events().into_iter().find(&what) {
                return event;
            }
            assert!(started.elapsed() < Duration::from_secs(5), "not recorded; {:#?}", self.events());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts a gate for the calling thread's namespace, which becomes one without wires.
fn start(mut config: GateConfig, ingress: Option<TcpListener>) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let spool = dir.path().join("spool");
    let host = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    ringfence_sys::process::new_network_namespace().unwrap();
    ringfence_sys::netns::make_everything_local().unwrap();
    let capture = Capture::attach().unwrap();
    let (ready_read, ready_write) = rustix::pipe::pipe().unwrap();
    let log = std::fs::File::options().create(true).append(true).read(true).open(&spool).unwrap();
    config.fds = Fds {
        tcp: vec![4, 5],
        dns: vec![6, 7],
        udp_sink: vec![8, 9],
        host_netns: Some(10),
        spool: 11,
        ready: 12,
        ..Fds::default()
    };
    let mut all: Vec<OwnedFd> = Vec::new();
    all.extend(capture.tcp);
    all.extend(capture.dns);
    all.extend(capture.udp);
    all.extend([host.into(), log.into(), ready_write]);
    if let (Some(listener), Some(wanted)) = (ingress, &mut config.ingress) {
        wanted.listener_fd = 13;
        all.push(listener.into());
    }
    let orders = sealed("gate-config", &serde_json::to_vec(&config).unwrap()).unwrap();
    let mut fds = vec![(orders, 3)];
    fds.extend(all.into_iter().zip(4..));
    let child = Spawn {
        program: std::env::current_exe().unwrap(),
        arg0: "gate".into(),
        args: vec!["gate-process".into(), "3".into()],
        fds,
        stderr: Stdio::inherit(),
        session: false,
        env: vec![],
    }
    .start()
    .unwrap();
    let mut line = String::new();
    let mut word = BufReader::new(std::fs::File::from(ready_read));
    word.read_line(&mut line).unwrap();
    let mut certificate = None;
    let mut ready = serde_json::from_str(&line).ok();
    if let Some(Ready::Trust { ca_pem: pem, .. }) = ready {
        certificate = Some(pem);
        line.clear();
        word.read_line(&mut line).unwrap();
        ready = serde_json::from_str(&line).ok();
    }
    Running { child, certificate, ready, spool, _capture: Some(capture.link), _dir: dir }
}

fn query(name: &str, rtype: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    message.to_vec().unwrap()
}

fn first_address(reply: &[u8]) -> Option<Ipv4Addr> {
    match Message::from_vec(reply).unwrap().answers.first().map(|record| record.data.clone()) {
        Some(RData::A(a)) => Some(a.0),
        _ => None,
    }
}

fn resolve(server: &str, name: &str) -> Option<Ipv4Addr> {
    let server: SocketAddr = server.parse().unwrap();
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // A connected socket takes an answer from the very address that it asked, and from no other.
    socket.connect(server).unwrap();
    socket.send(&query(name, RecordType::A)).unwrap();
    let mut buffer = [0; 512];
    let count = socket.recv(&mut buffer).expect("an answer from the address that was asked");
    first_address(&buffer[..count])
}

fn tls_to(address: SocketAddr, name: &str, ca: &str) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let connector = support::connector(ca, &[b"http/1.1"]);
    let connection =
        ClientConnection::new(Arc::clone(connector.config()), name.to_owned().try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut stream = StreamOwned::new(connection, stream);
    stream.flush()?;
    Ok(stream)
}

fn exchange(stream: &mut (impl Read + Write), request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut out = Vec::new();
    // A peer that closes without a TLS goodbye is at its end all the same.
    let _ = stream.read_to_end(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn confined_gate() {
    assert!(rustix::process::getuid().is_root(), "this test needs root: it makes a network namespace");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ca = TestCa::new();
    let upstream = runtime.block_on(Upstream::start(Some(ca.acceptor(HOST, &[b"h2", b"http/1.1"]))));
    let mut config = config(vec![keyed(grant(upstream.address, &ca))]);
    // Confined as it is, it must be able to wait for the disk.
    config.strict_audit = true;
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let door_address = door.local_addr().unwrap();
    let (chain, key) = ca.leaf("localhost");
    config.ingress = Some(IngressConfig {
        agent_port: 8501,
        listener_fd: 0,
        cert_chain_pem: chain,
        key_pem: SecretText::new(key.serialize_pem()),
        auth: IngressAuth::Token,
        token: SecretText::new("the-token".into()),
        public_origin: format!("https://localhost:{}", door_address.port()),
    });
    let (ready, done) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    // The gate dies with the thread that started it, so that thread stays until the end.
    let agent = std::thread::spawn(move || {
        let running = in_namespace(config, door);
        ready.0.send(()).unwrap();
        let _ = done.1.recv();
        drop(running);
    });
    ready.1.recv().expect("the agent's side holds");
    // This thread never left the host's namespace: it is a person who comes in.
    let mut person = tls_to(door_address, "localhost", &ca.pem).unwrap();
    let request =
        "GET /hello?x=1 HTTP/1.1\r\nHost: localhost\r\nX-Ringfence-Token: the-token\r\nConnection: close\r\n\r\n";
    let answer = exchange(&mut person, request);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("from the agent"), "{answer}");
    done.0.send(()).unwrap();
    agent.join().unwrap();
}

/// What the agent sees, from a thread in its namespace.
fn in_namespace(config: GateConfig, door: TcpListener) -> Running {
    let running = start(config, Some(door));
    assert_eq!(running.ready, Some(Ready::Up));
    let ca = running.certificate.clone().unwrap();

    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line} not in {status}");
    }
    for server in ["8.8.8.8:53", "10.1.2.3:53", "[2001:4860:4860::8888]:53"] {
        assert!(resolve(server, "api.example.org.").is_some(), "{server}");
    }
    assert_eq!(resolve("8.8.8.8:53", "data.evil.example."), None);
    let address = resolve("9.9.9.9:53", "api.example.org.").unwrap();
    let mut tcp = TcpStream::connect("1.1.1.1:53").unwrap();
    let asked = query("api.example.org.", RecordType::A);
    tcp.write_all(&[&u16::try_from(asked.len()).unwrap().to_be_bytes()[..], &asked].concat()).unwrap();
    let mut length = [0; 2];
    tcp.read_exact(&mut length).unwrap();
    let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
    tcp.read_exact(&mut reply).unwrap();
    assert_eq!(first_address(&reply), Some(address), "DNS over TCP says the same");

    let mut stream = tls_to((address, 443).into(), HOST, &ca).unwrap();
    let request = format!("GET /echo-secret HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    let answer = exchange(&mut stream, &request);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(PLACEHOLDER), "{answer}");
    assert!(!answer.contains(SECRET));
    running.wait_for(|e| matches!(e, Event::CallOutcome(o) if o.status == Some(200)));

    for wild in ["93.184.216.34:443", "[2606:2800:220:1::1]:443"] {
        let to: SocketAddr = wild.parse().unwrap();
        let refused = tls_to(to, "evil.example", &ca).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(refused.contains("AccessDenied"), "{refused}");
        let host = to.ip().to_string();
        running.wait_for(|e| {
            matches!(e, Event::CallIntent(i) if i.decision == Outcome::Deny && (i.host == host || i.host == "evil.example"))
        });
    }
    for (bind, to) in [("0.0.0.0:0", "1.2.3.4:4321"), ("[::]:0", "[2001:db8::9]:4321")] {
        UdpSocket::bind(bind).unwrap().send_to(b"out", to).unwrap();
        running.wait_for(|e| matches!(e, Event::UdpDrop { destination, bytes: 3, .. } if destination == to));
    }
    assert!(
        running
            .events()
            .iter()
            .any(|e| matches!(e, Event::DnsQuery { name, decision: Outcome::Deny, .. } if name == "data.evil.example"))
    );

    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
    println!(
        "  gate {}",
        status.lines().filter(|l| l.contains("Rss") || l.contains("VmRSS")).collect::<Vec<_>>().join(" ")
    );
    let agent = TcpListener::bind((IpAddr::from(Ipv4Addr::LOCALHOST), 8501)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = agent.accept().unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("get /hello?x=1 ") && head.contains("host: localhost\r\n"), "{head}");
        assert!(head.contains("x-forwarded-for: 127.0.0.1") && !head.contains("the-token"), "{head}");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nfrom the agent").unwrap();
    });
    running
}

/// What cannot be enforced is not served: the error is said on the pipe, and the process ends.
fn refused_gate() {
    std::thread::spawn(|| {
        let ca = TestCa::new();
        let mut config = config(vec![grant("127.0.0.1:1".parse().unwrap(), &ca)]);
        config.credentials.clear();
        config.grants[0].credential = Some("missing".into());
        let running = start(config, None);
        let Some(Ready::Error(report)) = &running.ready else { panic!("{:?}", running.ready) };
        assert_eq!(report.code, "gate.no_lease");
    })
    .join()
    .unwrap();
}

/// What of a process another one of the same user may open, by the shell's word.
fn opened(pid: u32) -> Vec<&'static str> {
    let mut kinds = vec!["auxv", "environ", "maps", "mem", "fd/0", "root/etc", "cwd/."];
    kinds.retain(|kind| {
        let path = format!("/proc/{pid}/{kind}");
        let script = if kind.contains('/') { format!("ls {path}") } else { format!("exec 3<{path}") };
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).uid(65_534).gid(65_534).current_dir("/");
        shell.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    });
    kinds
}

fn closed_gate() {
    std::thread::spawn(|| {
        let ca = TestCa::new();
        let running = start(config(vec![keyed(grant("127.0.0.1:1".parse().unwrap(), &ca))]), None);
        assert_eq!(running.ready, Some(Ready::Up));
        let pid = running.child.id();
        assert_eq!(opened(pid), [""; 0], "of a gate nothing");
        // What root sees: the secret is in its memory and nowhere else.
        for kind in ["cmdline", "environ"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{kind}")).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains(SECRET), "{kind}");
        }
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let leads = std::fs::read_link(entry.unwrap().path()).unwrap();
            assert!(!leads.to_string_lossy().contains("gate-config"), "its orders are closed: {leads:?}");
        }
        drop(running);

        let mut open = std::process::Command::new("sleep");
        let mut open = open.arg("60").uid(65_534).gid(65_534).current_dir("/").stdin(Stdio::null()).spawn().unwrap();
        let of_open = opened(open.id());
        open.kill().unwrap();
        open.wait().unwrap();
        assert_eq!(of_open.len(), 7, "of a process like any other everything: {of_open:?}");
    })
    .join()
    .unwrap();
}
