//! The verbs that read: logs, audit entries, explanations; and `exec`, which reads what a command says.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use ringfence_audit::{CallIntent, Direction, Entry, Event, Outcome, log};
use ringfence_fleet::Sink;
use ringfence_fleet::api::{AuditLine, AuditRequest, ExecEvent, ExecRequest, Explanation, LogLine, LogsRequest};
use ringfence_model::{AgentName, Fault, Manifest, Report};
use ringfence_sandbox::control::{self, Shim};

/// How many entries are read in one go.
const PORTION: u64 = 1024;

pub(super) async fn logs(
    path: &Path,
    request: &LogsRequest,
    sink: &Sink<LogLine>,
    lives: impl Fn() -> bool,
) -> Result<(), Report> {
    let mut lines: Vec<LogLine> = Vec::new();
    for file in [path.with_extension("log.1"), path.to_path_buf()] {
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            if let Ok(line) = serde_json::from_str(line) {
                lines.push(line);
            }
        }
    }
    let mut offset = fs::metadata(path).map_or(0, |m| m.len());
    let skip = request.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
    for line in lines.iter().skip(skip) {
        if !sink.send(line).await {
            return Ok(());
        }
    }
    if request.follow {
        sink.begin().await;
    }
    while request.follow && !sink.is_closed() {
        let living = lives();
        if let Ok(mut file) = File::open(path) {
            let end = file.metadata().map_or(0, |m| m.len());
            if end < offset {
                offset = 0; // it was put aside and begun anew
            }
            if end > offset && file.seek(SeekFrom::Start(offset)).is_ok() {
                let mut reader = BufReader::new(file.take(end - offset));
                let mut line = String::new();
                while reader.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                    offset += line.len() as u64;
                    if let Ok(line) = serde_json::from_str::<LogLine>(&line)
                        && !sink.send(&line).await
                    {
                        return Ok(());
                    }
                    line.clear();
                }
            }
        }
        if !living {
            break;
        }
        tokio::select! {
            () = sink.closed() => break,
            () = tokio::time::sleep(Duration::from_millis(150)) => {}
        }
    }
    Ok(())
}

fn broken(what: &str, why: &dyn std::error::Error) -> Report {
    Report::new("audit.file", Fault::Us, format!("cannot read {what}"))
        .because(why)
        .hint("run `ringfence audit verify`")
}

pub(super) fn portion(folder: &Path, size: u64, from: u64, to: u64) -> Result<Vec<AuditLine>, Report> {
    let entries = log::read_range(folder, size, from, to).map_err(|e| broken("the audit log", &e))?;
    (from..)
        .zip(entries)
        .map(|(index, bytes)| {
            serde_json::from_slice::<Entry>(&bytes)
                .map(|entry| AuditLine { index, entry, grant: None })
                .map_err(|e| broken(&format!("entry {index}"), &e))
        })
        .collect()
}

/// Whether an entry is about `agent`: it says so, or an operator's verb names it.
fn is_about(line: &AuditLine, agent: &AgentName) -> bool {
    line.entry.agent.as_ref() == Some(agent)
        || matches!(&line.entry.event, Event::Operator { facts, .. }
            if ["agent", "subject"].iter().any(|k| facts.get(*k).is_some_and(|v| v == agent.as_str())))
}

pub(super) async fn audit(
    folder: &Path,
    mut grown: tokio::sync::watch::Receiver<u64>,
    request: &AuditRequest,
    manifest_of: &(dyn Fn(&AgentName) -> Option<Manifest> + Sync),
    sink: &Sink<AuditLine>,
) -> Result<(), Report> {
    let mut size = log::size_on_disk(folder);
    let wanted = |line: &AuditLine| request.agent.as_ref().is_none_or(|agent| is_about(line, agent));
    let mut at = request.from;
    if let Some(tail) = request.tail {
        // Walk back until enough are found.
        let mut found = 0;
        at = size;
        while at > request.from && found < tail {
            let from = at.saturating_sub(PORTION).max(request.from);
            for line in portion(folder, size, from, at)?.iter().rev() {
                at = line.index;
                if wanted(line) {
                    found += 1;
                    if found == tail {
                        break;
                    }
                }
            }
        }
    }
    loop {
        while at < size {
            let to = (at + PORTION).min(size);
            for mut line in portion(folder, size, at, to)? {
                if !wanted(&line) {
                    continue;
                }
                line.grant = if request.suggest { suggested(&line.entry, manifest_of) } else { None };
                if !sink.send(&line).await {
                    return Ok(());
                }
            }
            at = to;
        }
        if !request.follow {
            return Ok(());
        }
        sink.begin().await;
        tokio::select! {
            () = sink.closed() => return Ok(()),
            changed = grown.changed() => if changed.is_err() { return Ok(()) },
        }
        size = log::size_on_disk(folder);
    }
}

pub(super) fn explain(
    folder: &Path,
    size: u64,
    number: u64,
    manifest_of: &dyn Fn(&AgentName) -> Option<Manifest>,
) -> Result<Explanation, Report> {
    if number >= size {
        return Err(Report::new("audit.no_entry", Fault::Caller, format!("the audit log has no entry {number}")).hint(
            match size {
                0 => "it is empty yet".to_owned(),
                1 => "it holds one entry, 0".to_owned(),
                _ => format!("it holds entries 0 to {}", size - 1),
            },
        ));
    }
    let line = portion(folder, size, number, number + 1)?
        .pop()
        .ok_or_else(|| Report::new("audit.no_entry", Fault::Us, format!("entry {number} is missing")))?;
    let mut text = Vec::new();
    let mut outcome = None;
    let mut grant = None;
    match &line.entry.event {
        Event::CallIntent(call) => {
            outcome = find_outcome(folder, size, number, call)?;
            explain_call(&line, call, &mut text);
            grant = suggested(&line.entry, manifest_of);
        }
        Event::BudgetWarning { scope, limit, used } => text.push(format!(
            "Much of a budget is taken: {used} of `{limit}`, which the {scope} has. Calls are refused, or wait, once all of it is."
        )),
        Event::DnsQuery { name, rtype, decision, reason } => {
            text.push(format!("The agent asked for the {rtype} address of `{name}`."));
            text.push(match decision {
                Outcome::Allow => "A grant could cover that name, so the gate answered with an address of its own. No query left this host.".into(),
                Outcome::Deny => format!("It was refused ({reason}), and no query left this host: names that no grant covers do not resolve, so they carry nothing out."),
            });
        }
        Event::UdpDrop { destination, bytes, count } => text.push(format!(
            "The agent sent {count} datagram(s), {bytes} bytes, to {destination}. Datagrams other than name queries are dropped, always."
        )),
        Event::Sandbox { action, facts } => text.push(explain_life(&line, action, facts)),
        Event::Operator { action, by, result, facts } => {
            let about = ["agent", "subject", "name"].iter().find_map(|k| facts.get(*k)?.as_str());
            let about = about.map(|a| format!(" of `{a}`")).unwrap_or_default();
            text.push(match result.as_str() {
                "begun" => format!("{by} began `{action}`{about}. Another entry says how it ended."),
                "ok" => format!("{by} did `{action}`{about}, with success."),
                code => format!("{by} tried `{action}`{about}, which failed with `{code}`."),
            });
        }
        Event::Probe { name, held, detail } => text.push(format!(
            "The probe `{name}` {}: {detail}.",
            if *held { "held" } else { "did not hold" }
        )),
        Event::CallOutcome(done) => text.push(format!("This is how call {} ended.", done.call)),
    }
    Ok(Explanation { line, outcome, text, grant })
}

fn explain_life(line: &AuditLine, action: &str, facts: &serde_json::Map<String, serde_json::Value>) -> String {
    let who = line.entry.agent.as_ref().map_or_else(|| "The agent".into(), |a| format!("`{a}`"));
    let code = facts.get("code").map(|code| format!(" with code {code}")).unwrap_or_default();
    let program = facts.get("argv").and_then(|argv| argv.get(0)?.as_str()).unwrap_or("a command");
    match (action, facts.get("why").and_then(serde_json::Value::as_str)) {
        ("start", _) => format!("The sandbox of {who} was made."),
        ("exec", _) => format!("An operator ran `{program}` inside the sandbox of {who}."),
        ("freeze", _) => format!("Every process of {who} was frozen."),
        ("resume", _) => format!("{who}, which was frozen, ran on."),
        ("exit", Some("gate_died")) => format!("The gate of {who} died, and it was killed at once."),
        ("exit", Some("killed")) => format!("{who} was killed; it ended{code}."),
        ("exit", Some("stopped")) => format!("{who} was stopped; it ended{code}."),
        ("exit", _) if facts.get("out_of_memory").is_some_and(|o| *o == true) => {
            format!("{who} needed more memory than it has; it ended{code}.")
        }
        ("exit", _) => format!("{who} ended by itself{code}."),
        (other, _) => format!("The sandbox went through `{other}`{code}."),
    }
}

fn explain_call(line: &AuditLine, call: &CallIntent, text: &mut Vec<String>) {
    let agent = line.entry.agent.as_ref();
    let host = if call.host.contains(':') { format!("[{}]", call.host) } else { call.host.clone() };
    let what = match (&call.method, &call.path) {
        (Some(method), Some(path)) => format!("{method} {path} at {host}:{}", call.port),
        _ => format!("a connection to {host}:{}", call.port),
    };
    text.push(match call.direction {
        Direction::Egress => {
            let who = agent.map_or_else(|| "The agent".into(), |a| format!("Agent `{a}`"));
            format!("{who} tried {what} by {}.", call.protocol)
        }
        Direction::Ingress => {
            let whom = agent.map_or_else(|| "the agent".into(), |a| format!("agent `{a}`"));
            format!("Somebody asked {whom} for {what}.")
        }
    });
    let verdict = match call.decision {
        Outcome::Allow => "allowed",
        Outcome::Deny => "denied",
    };
    text.push(format!("It was {verdict}: {}.", call.why.trim_end_matches('.')));
    if call.rules.is_empty() {
        if call.decision == Outcome::Deny {
            text.push("No rule allowed it; what no rule allows is denied.".into());
        }
    } else {
        text.push(format!("Rules that decided: {}.", call.rules.join(", ")));
    }
    if let Some(credential) = &call.credential {
        text.push(format!("The gate put credential `{credential}` into the call; the agent never held it."));
    }
    if call.trust.as_deref() == Some("untrusted") {
        text.push("What came back was written by strangers and labels the session so.".into());
    }
}

fn find_outcome(folder: &Path, size: u64, from: u64, call: &CallIntent) -> Result<Option<AuditLine>, Report> {
    let mut at = from + 1;
    // A call's outcome lies close behind it; a long stream's may lie further.
    let end = size.min(from + 64 * PORTION);
    while at < end {
        let to = (at + PORTION).min(end);
        for line in portion(folder, size, at, to)? {
            if matches!(&line.entry.event, Event::CallOutcome(done) if done.call == call.call) {
                return Ok(Some(line));
            }
        }
        at = to;
    }
    Ok(None)
}

/// The grant that would allow what an entry says was denied, as TOML, if a grant could.
fn suggested(entry: &Entry, manifest_of: &dyn Fn(&AgentName) -> Option<Manifest>) -> Option<String> {
    let Event::CallIntent(call) = &entry.event else { return None };
    if call.decision != Outcome::Deny || call.direction != Direction::Egress {
        return None;
    }
    suggestion(call, entry.agent.as_ref().and_then(manifest_of).as_ref())
}

fn suggestion(call: &CallIntent, manifest: Option<&Manifest>) -> Option<String> {
    if call.reason != "no_grant" {
        return None;
    }
    let mut text = format!("[[grant]]\nhost = \"{}\"\n", call.host);
    match (call.port, call.protocol.as_str()) {
        (443, _) => {}
        (80, "http/1.1") => text.push_str("scheme = \"http\"\n"),
        (port, _) => text.push_str(&format!("port = {port}\n")),
    }
    if let Some(method) = &call.method {
        text.push_str(&format!("methods = [\"{method}\"]\n"));
    }
    if let Some(path) = &call.path {
        text.push_str(&format!("paths = [\"{path}\"]\n"));
    }
    let own = manifest.is_some_and(|m| m.grants.iter().any(|g| g.host.to_string() == call.host));
    own.then(|| text.insert_str(0, "# or widen the grant that the manifest has for this host\n"));
    Some(text)
}

pub(super) async fn exec(shim: Shim, request: ExecRequest, sink: Sink<ExecEvent>) -> Result<(), Report> {
    let failed = |what: &str, why: &dyn std::error::Error| {
        Report::new("exec.step", Fault::Us, format!("cannot {what}")).because(why)
    };
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed("make a pipe", &e));
    let ((in_reader, in_writer), (out_reader, out_writer), (err_reader, err_writer)) = (pipe()?, pipe()?, pipe()?);
    sink.begin().await;
    let argv = request.argv.clone();
    let run =
        tokio::task::spawn_blocking(move || control::exec(&shim, &argv, &[], [in_reader, out_writer, err_writer]));
    let stdin = request.stdin;
    let feed = tokio::task::spawn_blocking(move || {
        use std::io::Write;
        let _ = File::from(in_writer).write_all(&stdin);
    });
    let pump = |reader: OwnedFd, wrap: fn(Vec<u8>) -> ExecEvent| {
        let sink = sink.clone();
        let handle = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let mut reader = File::from(reader);
            let mut chunk = vec![0; 16 << 10];
            while let Ok(n) = reader.read(&mut chunk) {
                let part = chunk.get(..n).unwrap_or_default().to_vec();
                if n == 0 || !handle.block_on(sink.send(&wrap(part))) {
                    break;
                }
            }
        })
    };
    let (out, err) = (pump(out_reader, ExecEvent::Out), pump(err_reader, ExecEvent::Err));
    let code = run.await.map_err(|e| failed("wait for the command", &e))??;
    let _ = tokio::join!(out, err);
    feed.abort();
    sink.send(&ExecEvent::Exit(code)).await;
    Ok(())
}
