//! `ringfence audit` and `ringfence audit verify`

use std::process::ExitCode;

use ringfence_audit::{CallIntent, Direction, Event, Outcome, Verifier};
use ringfence_fleet::api::{AuditLine, AuditRequest, Nothing, VerifyAnswer};
use ringfence_model::{Fault, Report};

use super::NOT_PASSED;
use crate::args::{Audit, AuditVerb, Verify};
use crate::connect;
use crate::print::{self, Ink};

pub async fn run(args: Audit) -> Result<ExitCode, Report> {
    match args.verb {
        Some(AuditVerb::Body(body)) => return super::body::run(body).await,
        Some(AuditVerb::Forget(forget)) => return super::body::forget(forget).await,
        Some(AuditVerb::Verify(verify)) => return self::verify(verify).await,
        None => {}
    }
    let Audit { agent, follow, from, tail, suggest, .. } = args;
    let request = AuditRequest { agent, follow, from, tail, suggest };
    let client = connect::client_or_start().await?;
    let mut day = String::new();
    client
        .audit(&request, |line| {
            if args.output.json {
                print::json_line(&line);
                return true;
            }
            let today = line.entry.time.strftime("%Y-%m-%d, UTC").to_string();
            if day != today {
                print::line(&print::paint(Ink::Dim, &today));
                day = today;
            }
            print::line(&show(&line));
            for text in line.grant.iter().flat_map(|grant| grant.lines()) {
                print::line(&print::paint(Ink::Dim, &format!("{:38}{}", "", print::safe(text))));
            }
            true
        })
        .await?;
    if day.is_empty() && !args.output.json {
        print::line(&request.agent.map_or_else(|| "no entries".into(), |agent| format!("no entries about `{agent}`")));
    }
    Ok(ExitCode::SUCCESS)
}

/// One entry on one line.
fn show(line: &AuditLine) -> String {
    let entry = &line.entry;
    let agent = match (&entry.agent, &entry.event) {
        (Some(agent), _) => agent.as_str(),
        (None, Event::Operator { action, facts, .. }) => operated(action, facts).0.unwrap_or("-"),
        (None, _) => "-",
    };
    let (ink, word, text) = match &entry.event {
        Event::CallIntent(call) => {
            let (ink, word) = verdict(call.decision);
            (ink, word, call_text(call))
        }
        Event::CallOutcome(done) => {
            let status = done.status.map_or_else(|| "no answer".into(), |s| s.to_string());
            let mut text = format!(
                "  \u{2514} {status}, {} B up, {} B down, {:.1} ms",
                done.bytes_up,
                done.bytes_down,
                std::time::Duration::from_micros(done.duration_us).as_secs_f64() * 1000.0
            );
            if let Some(used) = &done.llm {
                text.push_str(&format!(", {} + {} tokens", used.input_tokens, used.output_tokens));
                let usd = used.usd_micro.map(|sum| format!(", ${}.{:06}", sum / 1_000_000, sum % 1_000_000));
                text.push_str(&usd.unwrap_or_default());
            }
            if let Some(error) = &done.error {
                text.push_str(&format!(", {error}"));
            }
            if !done.findings.is_empty() {
                text.push_str(&format!("  [{}]", done.findings.join(", ")));
            }
            (Ink::Dim, "done", text)
        }
        Event::BudgetWarning { scope, limit, used } => {
            (Ink::Warn, "warn", format!("the {scope}'s budget {limit}: {used} taken"))
        }
        Event::DnsQuery { name, rtype, decision, reason } => {
            let (ink, word) = verdict(*decision);
            (ink, word, format!("name {name} {rtype} ({reason})"))
        }
        Event::UdpDrop { destination, bytes, count } => {
            (Ink::Bad, "drop", format!("{count} datagram(s) to {destination}, {bytes} bytes"))
        }
        Event::Sandbox { action, facts } => {
            let code = facts.get("code").map(|c| format!(", code {c}")).unwrap_or_default();
            (Ink::Dim, "life", format!("sandbox {action}{code}"))
        }
        Event::Operator { action, by, result, facts } => {
            let about = operated(action, facts).1.map(|s| format!(" {s}")).unwrap_or_default();
            (Ink::Dim, "oper", format!("{by} {action}{about}: {result}"))
        }
        Event::Probe { name, held, detail } => {
            let (ink, word) = if *held { (Ink::Good, "held") } else { (Ink::Bad, "open") };
            (ink, word, format!("probe {name}: {detail}"))
        }
    };
    let clock = entry.time.strftime("%H:%M:%S%.3f").to_string();
    format!(
        "{:>6}  {}  {:<12} {}  {}",
        line.index,
        print::paint(Ink::Dim, &clock),
        print::safe(agent),
        print::paint(ink, word),
        print::safe(&text)
    )
}

/// The agent that an operator's verb was about, or else what it was about.
fn operated<'a>(
    action: &str,
    facts: &'a serde_json::Map<String, serde_json::Value>,
) -> (Option<&'a str>, Option<&'a str>) {
    let fact = |name: &str| facts.get(name).and_then(serde_json::Value::as_str);
    match (fact("agent"), fact("subject").or_else(|| fact("name"))) {
        (Some(agent), other) => (Some(agent), other),
        (None, other) if matches!(action, "build" | "secret" | "up") => (None, other),
        (None, agent) => (agent, None),
    }
}

const fn verdict(decision: Outcome) -> (Ink, &'static str) {
    match decision {
        Outcome::Allow => (Ink::Good, "pass"),
        Outcome::Deny => (Ink::Bad, "DENY"),
    }
}

fn call_text(call: &CallIntent) -> String {
    let arrow = match call.direction {
        Direction::Egress => "\u{2192}",
        Direction::Ingress => "\u{2190}",
    };
    let host = if call.host.contains(':') { format!("[{}]", call.host) } else { call.host.clone() };
    let what = match (&call.method, &call.path) {
        (Some(method), Some(path)) => format!("{method} {host}:{}{path}", call.port),
        _ => {
            let verbs = call.sql.as_ref().map(|sql| sql.verbs.join(", ")).filter(|verbs| !verbs.is_empty());
            let verbs = verbs.map(|verbs| format!("{} ", verbs.to_uppercase())).unwrap_or_default();
            let git = call.git.as_ref().filter(|git| !git.operation.is_empty());
            let git = git.map(|git| format!("{} {} at ", git.operation, git.repository)).unwrap_or_default();
            format!("{verbs}{git}{host}:{} by {}", call.port, call.protocol)
        }
    };
    let credential = call.credential.as_ref().map(|c| format!(", credential {c}")).unwrap_or_default();
    format!("{arrow} {what}  ({}{credential})", call.reason)
}

async fn verify(args: Verify) -> Result<ExitCode, Report> {
    let answer = match (&args.log, &args.key) {
        (Some(log), Some(key)) => {
            let text = std::fs::read_to_string(key).map_err(|e| {
                Report::new("audit.key", Fault::Caller, format!("cannot read the key `{}`", key.display())).because(&e)
            })?;
            let verifier = Verifier::from_text(&text).ok_or_else(|| {
                Report::new("audit.key", Fault::Caller, format!("`{}` holds no key of a log", key.display()))
                    .hint("it is one line of the form `name+id+base64`, as in `audit.pub` of the supervisor's state")
            })?;
            if !log.is_dir() {
                return Err(Report::new(
                    "audit.missing",
                    Fault::Caller,
                    format!("there is no log in `{}`", log.display()),
                ));
            }
            VerifyAnswer {
                verification: ringfence_audit::verify(log, &verifier, args.at_least),
                checkpoint: std::fs::read_to_string(log.join("checkpoint")).unwrap_or_default(),
                key: verifier.to_text(),
            }
        }
        _ => connect::client_or_start().await?.verify(&Nothing {}).await?,
    };
    let verdict = &answer.verification;
    if args.output.json {
        print::json(&answer);
    } else if verdict.whole {
        print::line(&format!(
            "{} the audit log is whole: {} entries, root {}",
            print::paint(Ink::Good, "\u{2713}"),
            verdict.size,
            verdict.root
        ));
        print::line(&print::paint(Ink::Dim, &format!("  signed by {}", answer.key)));
    } else {
        print::line(&format!("{} the audit log is NOT whole", print::paint(Ink::Bad, "\u{2717}")));
        if let Some(problem) = &verdict.problem {
            let place = problem.entry.map_or_else(String::new, |e| format!("entry {e}: "));
            print::line(&format!("  {place}{}", print::safe(&problem.what)));
        }
    }
    Ok(ExitCode::from(if verdict.whole { 0 } else { NOT_PASSED }))
}
