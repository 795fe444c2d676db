//! Stories told to the real binary, end to end: real namespaces, real packages, real crashes. They need root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod support;

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::{Host, free_port, kill, lives, wait_until};

/// Somebody else's agent comes up with `init` and `up`, nothing edited; every barrier holds and its page comes out.
fn foreign(app: &str, kind: &str) {
    let host = Host::new();
    let folder = host.copy(&format!("tests/scenarios/foreign/{app}"), app);
    let init = host.json(&["init", &folder, "--port", &free_port().to_string()]);
    assert_eq!(init["kind"], kind);
    let up = host.json(&["up", &folder]);
    let probes = up["probes"].as_array().unwrap();
    assert!(probes.len() > 30, "{probes:?}");
    assert!(probes.iter().all(|p| p["held"] == true), "{probes:?}");
    assert!(probes.iter().any(|p| p["barrier"] == "first-page"));
    assert!(host.ask(&up).unwrap().starts_with("HTTP/1.1 200"));
    let sandbox = up["sandbox"].as_str().unwrap().to_owned();
    host.ok(&["down", app]);
    host.wait_nothing_remains(&sandbox);
}

#[test]
fn somebody_else_s_flask_app_comes_up() {
    foreign("fieldnotes", "wsgi");
}

#[test]
fn somebody_else_s_fastapi_app_comes_up() {
    foreign("linkbox", "asgi");
}

#[test]
fn somebody_else_s_gradio_app_comes_up() {
    foreign("poster", "gradio");
}

#[test]
fn somebody_else_s_streamlit_app_comes_up() {
    foreign("trails", "streamlit");
}

#[test]
fn agents_outlive_the_supervisor_and_calls_go_on_being_recorded() {
    let host = Host::new();
    let up = host.small("survivor");
    let before = host.agent("survivor").unwrap();
    kill(i64::from(host.supervisor_pid()), rustix::process::Signal::KILL);
    // Nobody holds the log now; the gate decides and records all the same.
    assert!(host.ask(&up).unwrap().starts_with("HTTP/1.1 200"));
    let after = host.agent("survivor").unwrap();
    for pid in ["agent_pid", "gate_pid", "shim_pid"] {
        assert_eq!(before[pid], after[pid], "{pid} changed: the agent did not live on");
    }
    let entries = host.ok(&["audit", "survivor", "--json"]);
    let calls = entries.lines().filter(|l| l.contains("\"direction\":\"ingress\"")).count();
    let outcomes = entries.lines().filter(|l| l.contains("call.outcome")).count();
    assert!(calls >= 3 && outcomes >= 3, "two of validation and ours: {calls} {outcomes}");
    assert_eq!(host.json(&["audit", "verify"])["whole"], true);
}

#[test]
fn an_agent_dies_with_its_shim_and_nothing_is_left() {
    let host = Host::new();
    let up = host.small("orphan");
    let view = host.agent("orphan").unwrap();
    kill(view["shim_pid"].as_i64().unwrap(), rustix::process::Signal::KILL);
    wait_until("agent and gate died", || {
        !lives(view["agent_pid"].as_i64().unwrap()) && !lives(view["gate_pid"].as_i64().unwrap())
    });
    wait_until("it is noted", || host.agent("orphan").unwrap()["state"] == "failed");
    host.wait_nothing_remains(up["sandbox"].as_str().unwrap());
    assert!(host.ok(&["start", "orphan", "--json"]).contains("\"url\""));
}

#[test]
fn an_agent_does_not_outlive_its_gate() {
    let host = Host::new();
    let up = host.small("gateless");
    let view = host.agent("gateless").unwrap();
    kill(view["gate_pid"].as_i64().unwrap(), rustix::process::Signal::KILL);
    wait_until("the agent died", || !lives(view["agent_pid"].as_i64().unwrap()));
    wait_until("it is noted", || host.agent("gateless").unwrap()["reason"] == "its gate died");
    host.wait_nothing_remains(up["sandbox"].as_str().unwrap());
}

#[test]
fn calling_a_start_off_leaves_nothing() {
    let host = Host::new();
    let folder = host.copy("tests/scenarios/foreign/fieldnotes", "hasty");
    host.ok(&["init", &folder, "--port", &free_port().to_string()]);
    for after_ms in [150, 700, 1500] {
        let mut up = host.command(&["up", &folder]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        if up.try_wait().unwrap().is_none() {
            kill(i64::from(up.id()), rustix::process::Signal::INT);
            assert_eq!(up.wait().unwrap().code(), Some(130));
        }
        // The supervisor undoes what it began, or the agent came up just before.
        wait_until("the start is over", || host.agent("hasty").is_none_or(|a| a["state"] != "starting"));
        if host.agent("hasty").is_some() {
            host.ok(&["down", "hasty"]);
        }
        wait_until("nothing is left", || {
            fs::read_dir(host.run.join("sandboxes")).map_or(0, Iterator::count) == 0 && host.remains("sb-").is_empty()
        });
    }
    // The last one may still be at its undoing; a start then says so, and does not wait.
    wait_until("it comes up", || {
        let output = host.run(&["up", &folder]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() || text.contains("error[agent.busy]"), "{text}");
        output.status.success()
    });
}

#[test]
fn an_agent_s_life_from_start_to_down() {
    let host = Host::new();
    let up = host.small("mayfly");
    let exec = host.run(&["exec", "mayfly", "--", "python3", "-c", "import sys; print('in'); sys.exit(7)"]);
    assert_eq!((exec.status.code(), exec.stdout.as_slice()), (Some(7), b"in\n".as_slice()));
    host.ok(&["exec", "mayfly", "--", "python3", "-c", "open('/state/kept', 'w').write('x')"]);
    assert_eq!(host.json(&["freeze", "mayfly"])["state"], "frozen");
    assert_eq!(host.json(&["resume", "mayfly"])["state"], "running");
    assert!(host.ask(&up).unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(host.json(&["stop", "mayfly"])["state"], "stopped");
    host.wait_nothing_remains(up["sandbox"].as_str().unwrap());
    let again = host.json(&["start", "mayfly"]);
    assert_eq!(again["url"], up["url"], "the link stays the same");
    assert_eq!(host.ok(&["exec", "mayfly", "--", "python3", "-c", "print(open('/state/kept').read())"]), "x\n");
    assert!(host.ok(&["logs", "mayfly"]).contains("Running on"));
    host.ok(&["down", "mayfly"]);
    host.wait_nothing_remains(again["sandbox"].as_str().unwrap());
    assert!(!host.state().join("agents/mayfly").exists());
    let (code, text) = host.refused(&["logs", "mayfly"]);
    assert_eq!(code, 2);
    assert!(text.contains("error[agent.unknown]"), "{text}");
}

#[test]
fn an_edited_log_is_found_out() {
    let host = Host::new();
    host.small("witness");
    host.ok(&["down", "witness"]);
    assert_eq!(host.json(&["audit", "verify"])["whole"], true);
    host.ok(&["serve", "--stop"]);
    let bundle = fs::read_dir(host.state().join("audit/tile/entries/000.p")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&bundle).unwrap();
    let at = bytes.windows(7).position(|w| w == b"witness").unwrap();
    bytes[at] = b'W';
    fs::write(&bundle, bytes).unwrap();
    let log = host.state().join("audit").display().to_string();
    let key = host.state().join("audit.pub").display().to_string();
    let output = host.run(&["audit", "verify", "--log", &log, "--key", &key, "--json"]);
    assert_eq!(output.status.code(), Some(5));
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["whole"], false);
    assert!(verdict["problem"]["entry"].is_u64(), "{verdict}");
}

#[test]
fn a_denied_call_is_explained_with_the_grant_that_it_lacks() {
    let host = Host::new();
    host.small("caller");
    let code = "import urllib.request as u\ntry: u.urlopen('http://203.0.113.9/x')\nexcept Exception as e: print(e)";
    assert!(host.ok(&["exec", "caller", "--", "python3", "-c", code]).contains("403"));
    let entries = host.ok(&["audit", "caller", "--json"]);
    let line =
        entries.lines().find(|l| l.contains("call.intent") && l.contains("203.0.113.9")).expect("the call is recorded");
    let entry: Value = serde_json::from_str(line).unwrap();
    assert_eq!(entry["decision"], "deny");
    let explained = host.json(&["explain", &entry["index"].to_string()]);
    let grant = explained["grant"].as_str().unwrap();
    assert!(grant.contains("host = \"203.0.113.9\"") && grant.contains("scheme = \"http\""), "{grant}");
    // The same, beside each denial in the log, where that is asked for.
    let shown = host.ok(&["audit", "caller", "--suggest"]);
    let mut after = shown.lines().skip_while(|line| !line.contains("203.0.113.9:80/x")).skip(1).map(str::trim);
    assert!(after.by_ref().take(grant.lines().count()).eq(grant.lines()), "{shown}");
    let entries = host.ok(&["audit", "caller", "--suggest", "--json"]);
    let line = entries.lines().find(|l| l.contains("call.intent") && l.contains("203.0.113.9")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(line).unwrap()["grant"], explained["grant"]);
    assert!(!host.ok(&["audit", "caller"]).contains("[[grant]]"), "nobody asked");
    // What was denied, as grants to review: taken up, they allow the call and nothing wider.
    let learnt = host.ok(&["learn", "caller"]);
    assert!(learnt.lines().all(|line| line.is_empty() || line.starts_with('#')), "{learnt}");
    assert!(!learnt.contains("ringfence-probe"), "our own probes are not the agent's wishes: {learnt}");
    let taken: String = learnt
        .lines()
        .filter(|l| l.starts_with("# [[") || l.contains(" = "))
        .map(|l| l.trim_start_matches("# ").to_owned() + "\n")
        .collect();
    let manifest = fs::read_to_string(host.dir.path().join("caller/ringfence.toml")).unwrap();
    let reviewed = host.dir.path().join("reviewed.toml");
    fs::write(&reviewed, manifest + &taken).unwrap();
    let asked = |call: &str| host.json(&["policy", "explain", reviewed.to_str().unwrap(), call])["decision"].clone();
    assert_eq!(asked("GET http://203.0.113.9/x"), "allow", "{taken}");
    assert_eq!(asked("GET http://203.0.113.9/y"), "deny", "{taken}");
    // The grant that would allow it, tried on what was recorded before anybody lives with it.
    let old = host.dir.path().join("caller/ringfence.toml");
    let new = host.dir.path().join("new.toml");
    let more = "\n[[grant]]\nhost = \"203.0.113.9\"\nport = 80\nscheme = \"http\"\nallow_private = true\n";
    fs::write(&new, fs::read_to_string(&old).unwrap() + more).unwrap();
    let change = ["policy", "diff", old.to_str().unwrap(), new.to_str().unwrap(), "--replay", "caller", "--json"];
    let output = host.run(&change);
    assert_eq!(output.status.code(), Some(5));
    let changes: Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed = changes["replayed"]["newly_allowed"].as_array().unwrap();
    assert!(allowed.iter().any(|c| c["call"] == "GET http://203.0.113.9/x" && c["times"] == 1), "{changes}");
    assert_eq!(changes["replayed"]["newly_denied"], serde_json::json!([]));
}

#[test]
fn a_policy_is_put_in_force_while_its_agent_runs_and_a_bad_one_is_not() {
    let host = Host::new();
    host.small("steered");
    let folder = host.state().parent().unwrap().join("steered");
    let manifest = folder.join("ringfence.toml");
    let before = fs::read_to_string(&manifest).unwrap();
    let resolves = || {
        let program = "import socket; print(socket.gethostbyname('later.example.org'))";
        let command = host.command(&["exec", "steered", "--", "python3", "-c", program]).output().unwrap();
        command.status.success()
    };
    let apply = |text: &str| {
        fs::write(&manifest, text).unwrap();
        host.command(&["policy", "apply", folder.to_str().unwrap()]).output().unwrap()
    };
    assert!(!resolves());
    let granted = format!("{before}\n[[grant]]\nhost = \"later.example.org\"\n");
    let done = apply(&granted);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(resolves(), "without a new start");
    for bad in [
        format!("{granted}\n[limits]\nmemory = \"2GiB\"\n"),
        format!("{before}\n[[grant]]\nhost = \"x.example.org\"\ntls = \"passthrough\"\n"),
        format!("{before}\n[[grant]]\nhost = \"x.example.org\"\npaths = [\"/a/../b\"]\n"),
        "[agent]\nname = \"steered\"\n".to_owned(),
    ] {
        assert!(!apply(&bad).status.success(), "{bad}");
        assert!(resolves(), "the policy before stays in force");
    }
    assert!(apply(&before).status.success());
    assert!(!resolves());
    let log = host.ok(&["audit", "--json"]);
    assert!(log.contains("\"policy.apply\"") && log.contains("\"policy.path\""), "{log}");
}

/// A collector that takes spans, after it has not for a while.
struct Collector {
    address: std::net::SocketAddr,
    taken: std::sync::Arc<std::sync::Mutex<Vec<Value>>>,
}

impl Collector {
    fn start(refusals: usize) -> Self {
        use std::io::{BufRead, BufReader, Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let taken = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = std::sync::Arc::clone(&taken);
        std::thread::spawn(move || {
            for (nth, stream) in listener.incoming().enumerate() {
                let mut stream = BufReader::new(stream.unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).unwrap() > 0 {}
                let lower = head.to_ascii_lowercase();
                let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                let mut body = vec![0; length.parse().unwrap()];
                stream.read_exact(&mut body).unwrap();
                let status = if nth < refusals { "503 Busy" } else { "200 OK" };
                if nth >= refusals {
                    assert!(head.starts_with("POST /v1/traces ") && lower.contains("x-key: k1"), "{head}");
                    kept.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                }
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
                let _ = stream.get_mut().write_all(answer.as_bytes());
            }
        });
        Self { address, taken }
    }

    /// Agent, and attribute of each span.
    fn spans(&self) -> Vec<(String, Value)> {
        let taken = self.taken.lock().unwrap();
        let resources = taken.iter().flat_map(|request| request["resourceSpans"].as_array().unwrap().clone());
        resources
            .flat_map(|resource| {
                let agent = resource["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap().to_owned();
                let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap().clone();
                spans.into_iter().map(move |span| (agent.clone(), span))
            })
            .collect()
    }
}

#[test]
fn calls_are_told_to_a_collector_that_missed_them_at_first() {
    let host = Host::new();
    let collector = Collector::start(1);
    let policies = host.dir.path().join("policies");
    fs::create_dir(&policies).unwrap();
    let headers = policies.join("headers");
    fs::write(&headers, "X-Key: k1\n").unwrap();
    let settings = format!("otlp = \"http://{}\"\nheaders_file = \"{}\"\n", collector.address, headers.display());
    fs::write(policies.join("telemetry.toml"), settings).unwrap();
    let mut serve = host.command(&["serve"]);
    let mut serve = serve.env("RINGFENCE_POLICIES", &policies).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the supervisor is up", || host.run(&["ps"]).status.success());
    let up = host.small("traced");
    assert!(host.ask(&up).unwrap().starts_with("HTTP/1.1 200"));
    wait_until("the spans come", || collector.spans().iter().filter(|(agent, _)| agent == "traced").count() >= 3);
    let entries = host.ok(&["audit", "traced", "--json"]);
    let calls: Vec<String> = entries
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|entry| entry["kind"] == "call.intent" && entry["direction"] == "ingress")
        .map(|entry| entry["call"].as_str().unwrap().to_owned())
        .collect();
    wait_until("every call is told", || {
        let spans = collector.spans();
        calls.iter().all(|call| spans.iter().any(|(_, span)| call.ends_with(span["spanId"].as_str().unwrap())))
    });
    host.ok(&["down", "traced"]);
    host.ok(&["serve", "--stop"]);
    assert!(serve.wait().unwrap().success());
}
