//! Captured bodies, told to the real binary: kept, taken out, found out, and removed. Needs root, and `age`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{Host, free_port};

/// A server that answers what it got, with more around it; it ends with the test.
fn upstream() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {}
            let length = head.to_ascii_lowercase();
            let length = length.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let answer = format!("<got {}>", String::from_utf8(body).unwrap());
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
            let _ = stream.get_mut().write_all(format!("{head}{answer}").as_bytes());
        }
    });
    port
}

struct World {
    host: Host,
    key: PathBuf,
    folder: String,
}

impl World {
    fn new() -> Self {
        let host = Host::new();
        let key = host.dir.path().join("key.txt");
        let made = Command::new("age-keygen").arg("-o").arg(&key).output();
        assert!(made.expect("age-keygen: run `tools/setup --tests`").status.success());
        let to = fs::read_to_string(&key).unwrap();
        let to = to.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap().to_owned();
        let folder = host.copy("tests/scenarios/foreign/fieldnotes", "kept");
        host.ok(&["init", &folder, "--name", "kept", "--port", &free_port().to_string()]);
        let upstream = upstream();
        let grant = |name: &str, more: &str| {
            format!(
                "\n[[grant]]\nhost = \"{name}.example.org\"\nscheme = \"http\"\nconnect_to = \"127.0.0.1:{upstream}\"\n{more}"
            )
        };
        let capture = format!("capture = {{ to = [\"{to}\"], most = \"1KiB\" }}\n");
        let manifest = Path::new(&folder).join("ringfence.toml");
        let text = fs::read_to_string(&manifest).unwrap() + &grant("kept", &capture) + &grant("plain", "");
        fs::write(manifest, text).unwrap();
        host.ok(&["up", &folder]);
        Self { host, key, folder }
    }

    /// Has the agent post something; gives the call's id.
    fn post(&self, to: &str, body: &str) -> String {
        let code =
            format!("import urllib.request as u; print(u.urlopen('http://{to}.example.org/x', b'{body}').read())");
        let printed = self.host.ok(&["exec", "kept", "--", "python3", "-c", &code]);
        assert!(printed.contains(&format!("<got {body}>")), "{printed}");
        let log = self.host.ok(&["audit", "kept", "--json"]);
        let mut entries = log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let call = entries.rfind(|e| e["kind"] == "call.outcome" && e["bytes_up"] == body.len()).expect("its outcome");
        call["call"].as_str().unwrap().to_owned()
    }

    fn captures(&self) -> PathBuf {
        self.host.state().join("agents/kept/captures")
    }

    fn refused(&self, args: &[&str], code: &str) {
        let (exit, text) = self.host.refused(args);
        assert!(exit != 0 && text.contains(&format!("error[{code}]")) && text.contains("hint: "), "{text}");
    }
}

#[test]
fn captured_bodies_are_taken_out_by_the_holder_of_the_key_and_held_against_the_log() {
    let world = World::new();
    nobody_reads_it_without_the_key(&world);
    what_is_not_there_or_not_what_the_log_says_is_not_given(&world);
}

fn nobody_reads_it_without_the_key(world: &World) {
    let host = &world.host;
    let call = world.post("kept", "the agent said this");
    let raw = fs::read(world.captures()).unwrap();
    assert!(!raw.windows(9).any(|w| w == b"said this"), "it can be read without the key");
    assert_eq!(fs::metadata(world.captures()).unwrap().permissions().mode() & 0o777, 0o600);
    // The stock tool reads what comes out.
    let out = host.dir.path().join("body.age");
    host.ok(&["audit", "body", &call, "-o", out.to_str().unwrap()]);
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let age = Command::new("age").arg("-d").arg("-i").arg(&world.key).arg(&out).output().unwrap();
    assert_eq!(String::from_utf8(age.stdout).unwrap(), "the agent said this");
    // So do we.
    let key = world.key.to_str().unwrap();
    assert_eq!(host.ok(&["audit", "body", &call, "--identity", key]), "the agent said this");
    assert_eq!(host.ok(&["audit", "body", &call, "--response", "-i", key]), "<got the agent said this>");
    let other = host.dir.path().join("other.txt");
    assert!(Command::new("age-keygen").arg("-o").arg(&other).output().unwrap().status.success());
    world.refused(&["audit", "body", &call, "-i", other.to_str().unwrap()], "capture.decrypt");
    let pipe = host.run(&["audit", "body", &call]);
    assert!(pipe.stdout == fs::read(&out).unwrap(), "a pipe gets the file");
    // A body that goes on is captured up to the bound.
    let long = world.post("kept", &"x".repeat(3000));
    let output = host.run(&["audit", "body", &long, "-i", key]);
    assert_eq!(output.stdout, [b'x'; 1024]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("this is the first 1KiB of it"));
    // Taking evidence out is on the record.
    let log = host.ok(&["audit", "--json"]);
    assert!(log.lines().any(|l| l.contains("\"action\":\"body\"") && l.contains(&call)), "{log}");
}

fn what_is_not_there_or_not_what_the_log_says_is_not_given(world: &World) {
    let host = &world.host;
    host.ok(&["audit", "forget", "kept"]);
    let plain = world.post("plain", "nobody keeps this");
    assert_eq!(fs::metadata(world.captures()).unwrap().len(), 0, "without `capture` nothing is written");
    world.refused(&["audit", "body", &plain], "capture.none");
    world.refused(&["audit", "body", "c-000000000000000000000000000"], "audit.no_call");
    assert_eq!(host.refused(&["audit", "body", "x"]).0, 2);
    let call = world.post("kept", "first");
    let raw = fs::read(world.captures()).unwrap();
    for at in [raw.len() - 1, raw.len() / 4] {
        let mut changed = raw.clone();
        changed[at] ^= 1;
        fs::write(world.captures(), &changed).unwrap();
        let way = if at == raw.len() - 1 { "--response" } else { "--request" };
        world.refused(&["audit", "body", &call, way], "capture.changed");
    }
    fs::write(world.captures(), &raw).unwrap();
    host.ok(&["audit", "body", &call, "-o", host.dir.path().join("a").to_str().unwrap()]);
    let said = host.ok(&["audit", "forget", "kept"]);
    assert!(said.contains("of captured bodies of `kept`"), "{said}");
    world.refused(&["audit", "body", &call], "capture.gone");
    // The gate goes on behind what was removed.
    let call = world.post("kept", "second");
    assert_eq!(host.ok(&["audit", "body", &call, "-i", world.key.to_str().unwrap()]), "second");
    // A policy that is applied cannot smuggle in a key that is none.
    let manifest = Path::new(&world.folder).join("ringfence.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("to = [\"age1", "to = [\"age1q")).unwrap();
    let (_, text) = host.refused(&["policy", "apply", &world.folder]);
    assert!(text.contains("error[manifest.value]: manifest value grant") && text.contains("age-keygen"), "{text}");
    host.ok(&["down", "kept", "--keep-state"]);
    assert!(!world.captures().exists() && host.state().join("agents/kept/state.img").exists());
    world.refused(&["audit", "body", &call], "capture.gone");
}
