//! The control API of a supervisor, asked by a program that has only its description, and by hand for what such a
//! program does not do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod support;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Host, wait_until};

/// Longer than the whole run of Schemathesis takes.
const PATIENCE: &str = "240";

/// A supervisor in the foreground, and nothing else.
struct Supervisor {
    host: Host,
    child: Child,
}

impl Supervisor {
    fn start() -> Self {
        let host = Host::without_store();
        let log = fs::File::create(host.dir.path().join("log")).unwrap();
        let child = host.command(&["serve"]).stderr(log).spawn().unwrap();
        let supervisor = Self { host, child };
        wait_until("it listens", || UnixStream::connect(supervisor.socket()).is_ok());
        supervisor
    }

    fn socket(&self) -> PathBuf {
        self.host.run.join("supervisor.sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.host.dir.path().join("log")).unwrap()
    }

    fn open(&self) -> UnixStream {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Asks for a verb: status, what the answer is written in, and its lines.
    fn ask(&self, verb: &str, body: &[u8]) -> (u16, String, Vec<Value>) {
        let mut stream = self.open();
        let length = body.len();
        let head = format!("POST /v1/{verb} HTTP/1.1\r\nhost: supervisor\r\ncontent-type: application/json\r\n");
        write!(stream, "{head}connection: close\r\ncontent-length: {length}\r\n\r\n").unwrap();
        stream.write_all(body).unwrap();
        answer(stream)
    }

    /// Asks, and gives status and code of the refusal.
    fn refused(&self, verb: &str, body: &Value) -> (u16, String) {
        let (status, kind, lines) = self.ask(verb, body.to_string().as_bytes());
        assert_eq!((kind.as_str(), lines.len()), ("application/json", 1), "{lines:?}");
        (status, lines[0]["error"]["code"].as_str().unwrap().to_owned())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads an answer in chunks to its end.
fn answer(stream: UnixStream) -> (u16, String, Vec<Value>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
    let mut kind = String::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some(("content-type", value)) => value.clone_into(&mut kind),
            Some(_) => {}
            None => break,
        }
    }
    let mut lines = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let mut chunk = vec![0; usize::from_str_radix(line.trim_end(), 16).unwrap() + 2];
        reader.read_exact(&mut chunk).unwrap();
        if chunk.len() == 2 {
            return (status, kind, lines);
        }
        lines.push(serde_json::from_slice(&chunk).unwrap());
    }
}

/// A port on loopback behind which the socket is, for a program that cannot speak to a socket.
struct Bridge {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Bridge {
    fn to(socket: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, over) = (listener.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let done = Arc::clone(&over);
        thread::spawn(move || {
            for inside in listener.incoming() {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(inside), Ok(outside)) = (inside, UnixStream::connect(&socket)) else { continue };
                let (mut up, mut down) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
                let (mut inside, mut outside) = (inside, outside);
                thread::spawn(move || {
                    let _ = io::copy(&mut up, &mut down);
                    let _ = down.shutdown(std::net::Shutdown::Write);
                });
                thread::spawn(move || {
                    let _ = io::copy(&mut outside, &mut inside);
                    let _ = inside.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { address, over }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = std::net::TcpStream::connect(self.address);
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Every verb is asked for what its description allows and for what it does not, and answers as it is described.
#[test]
fn it_answers_as_it_is_described() {
    let supervisor = Supervisor::start();
    let bridge = Bridge::to(supervisor.socket());
    let scenario = repository("tests/scenarios/control-api");
    let program = support::environment("control-api", &scenario.join("requirements.txt")).join("bin/schemathesis");
    let output = Command::new("timeout")
        .args([PATIENCE, program.to_str().unwrap(), "--no-color", "--config-file"])
        .arg(scenario.join("schemathesis.toml"))
        .args(["run", repository("docs/reference/control-api.json").to_str().unwrap()])
        .args(["--url", &format!("http://{}", bridge.address)])
        .env("SCHEMATHESIS_HOOKS", scenario.join("hooks.py"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(supervisor.host.dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}\n{}", String::from_utf8_lossy(&output.stderr), supervisor.log());
    // Not one verb was left out but the one that ends the supervisor.
    let (all, asked) = (ringfence_fleet::api::VERBS.len(), ringfence_fleet::api::VERBS.len() - 1);
    assert!(said.contains(&format!("Selected: {asked}/{all}")) && said.contains(&format!("Tested: {asked}")), "{said}");
    let log = supervisor.log();
    assert!(log.lines().count() == 1 && log.contains("listening at"), "{log}");
    let (status, _, lines) = supervisor.ask("verify", b"{}");
    assert_eq!((status, &lines[0]["item"]["whole"]), (200, &json!(true)), "{lines:?}");
}

#[test]
fn a_request_that_is_not_one_is_answered_with_what_is_wrong_with_it() {
    let supervisor = Supervisor::start();
    for (verb, body, status, code) in [
        ("ps", "", 400, "api.request"),
        ("ps", "{", 400, "api.request"),
        ("ps", "[]", 400, "api.request"),
        ("ps", "{} {}", 400, "api.request"),
        ("ps", "{\"unknown\": 1}", 400, "api.request"),
        ("freeze", "[\"analyst\"]", 400, "api.request"),
        ("freeze", "{\"agent\": \"analyst\", \"agent\": \"other\"}", 400, "api.request"),
        ("freeze", "{\"agent\": \"../other\"}", 400, "api.request"),
        ("freeze", "{\"agent\": \"analyst\"}", 422, "agent.unknown"),
        ("explain", "{\"entry\": 1e3}", 400, "api.request"),
        ("secret", "{\"name\": \"a\\nb\"}", 422, "secret.name"),
        ("secret", "{\"name\": \"a\", \"value\": \"\"}", 422, "secret.input"),
        ("secret", "{\"name\": \"a\", \"value\": \"k\\r\\nx-other: 1\"}", 422, "secret.input"),
        ("nothing", "{}", 404, "api.unknown_verb"),
        ("../v1/ps", "{}", 404, "api.unknown_verb"),
    ] {
        let (got, kind, lines) = supervisor.ask(verb, body.as_bytes());
        let error = &lines[0]["error"];
        assert_eq!(
            (got, kind.as_str(), error["code"].as_str()),
            (status, "application/json", Some(code)),
            "{verb} {body}"
        );
        assert!(!error["message"].as_str().unwrap().contains('\n') && error["hint"].is_string(), "{error}");
    }
    let deep = format!("{{\"agent\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(supervisor.ask("freeze", deep.as_bytes()).0, 400);
}

/// What a caller sends at length is not repeated at length, and the log still gets its entry.
#[test]
fn long_names_are_cut_where_they_are_repeated() {
    let supervisor = Supervisor::start();
    let long = "x".repeat(1 << 20);
    let (status, _, lines) = supervisor.ask("secret", json!({ "name": long }).to_string().as_bytes());
    assert!(status == 422 && lines[0].to_string().len() < 1000, "{status}");
    let manifest = format!("[agent]\nname = \"{long}\"\nentry = [\"python3\", \"main.py\"]\n");
    let up = json!({ "folder": "/", "manifest": manifest, "ca_files": {}, "secrets": {}, "replace": false });
    assert_eq!(supervisor.refused("up", &up).0, 422);
    let (_, _, lines) = supervisor.ask("audit", br#"{"follow": false, "from": 0}"#);
    let recorded: Vec<&str> = lines.iter().filter_map(|line| line["item"]["action"].as_str()).collect();
    assert_eq!(recorded, ["secret", "up"], "{}", supervisor.log());
}

/// What is followed begins at once, goes on, and ends with its caller; the supervisor ends when it is told.
#[test]
fn streams_begin_go_on_and_end() {
    let mut supervisor = Supervisor::start();
    let (status, kind, lines) = supervisor.ask("audit", br#"{"follow": false, "from": 0}"#);
    assert_eq!((status, kind.as_str(), lines), (200, "application/x-ndjson", vec![json!("end")]));
    let mut stream = supervisor.open();
    let body = r#"{"follow": true, "from": 0}"#;
    let head = "POST /v1/audit HTTP/1.1\r\nhost: supervisor\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut next = |until: &str| {
        let mut line = String::new();
        while !line.contains(until) {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "it ended before `{until}`");
        }
    };
    next("HTTP/1.1 200 OK");
    assert_eq!(supervisor.refused("secret", &json!({ "name": "none" })), (422, "secret.unknown".into()));
    next("secret.unknown");
    let (status, _, lines) = supervisor.ask("shutdown", b"{}");
    assert_eq!((status, lines), (200, vec![json!({ "item": {} })]));
    assert!(supervisor.child.wait().unwrap().success());
}
