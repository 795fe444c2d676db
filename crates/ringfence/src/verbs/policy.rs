//! `ringfence policy`: what a manifest and the guard-rails allow, asked without making a call.

mod prove;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;

use ringfence_audit::{CallIntent, Direction, Event, LlmAsked, Outcome};
use ringfence_fleet::api::AuditRequest;
use ringfence_model::manifest::FILE_NAME;
use ringfence_model::{AgentName, Fault, Manifest, Report};
use ringfence_policy::{Call, Decision, LlmCall, Policy};
use serde::{Deserialize, Serialize};

use super::{NOT_PASSED, up};
use crate::args::{PolicyApply, PolicyCheck, PolicyDiff, PolicyExplain, PolicyTest, PolicyVerb};
use crate::connect;
use crate::paths::Paths;
use crate::print::{self, Ink, Table};

/// Where the cases of an agent's policy lie, beside its manifest.
const CASES: &str = "ringfence.test.toml";

pub async fn run(verb: PolicyVerb) -> Result<ExitCode, Report> {
    match verb {
        PolicyVerb::Apply(args) => apply(&args).await,
        PolicyVerb::Check(args) => check(&args),
        PolicyVerb::Diff(args) => diff(&args).await,
        PolicyVerb::Explain(args) => explain(&args),
        PolicyVerb::Prove(args) => prove::run(&args).await,
        PolicyVerb::Test(args) => test(&args),
    }
}

/// What `policy` verbs work on: a manifest and its policy under the guard-rails of this host.
struct Subject {
    manifest: Manifest,
    policy: Policy,
}

impl Subject {
    /// Takes a folder with a manifest, or a manifest.
    fn load(place: &Path) -> Result<Self, Report> {
        let (folder, file) = if place.is_dir() {
            (place.to_path_buf(), place.join(FILE_NAME))
        } else {
            let folder = place.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            (folder.to_path_buf(), place.to_path_buf())
        };
        let own = place.is_dir().then_some(&file);
        let (manifest, _) = up::manifest(&file, own.map(|_| folder.as_path()))?;
        let policy = Policy::compile(&manifest.name, &manifest.grants, &Paths::read_guardrails()?)?;
        Ok(Self { manifest, policy })
    }

    fn decide(&self, call: &Call) -> Decision {
        self.policy.decide(&call.request())
    }
}

/// A decision, for scripts.
#[derive(Serialize)]
struct Decided {
    call: String,
    decision: Outcome,
    reason: &'static str,
    why: String,
    rules: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
}

impl Decided {
    fn of(call: &Call, decision: &Decision) -> Self {
        let call = call.to_string();
        match decision {
            Decision::Allow(permit) => Self {
                call,
                decision: Outcome::Allow,
                reason: permit.reason(),
                why: permit.why().to_owned(),
                rules: permit.rules().to_vec(),
                grant: permit.grant().map(|at| at + 1),
                credential: permit.credential().map(str::to_owned),
            },
            Decision::Deny(denial) => Self {
                call,
                decision: Outcome::Deny,
                reason: denial.code,
                why: denial.why.clone(),
                rules: denial.rules.clone(),
                grant: None,
                credential: None,
            },
        }
    }
}

const fn ink(decision: Outcome) -> (Ink, &'static str) {
    match decision {
        Outcome::Allow => (Ink::Good, "allow"),
        Outcome::Deny => (Ink::Bad, "deny"),
    }
}

async fn apply(args: &PolicyApply) -> Result<ExitCode, Report> {
    let request = up::request(&args.folder, args.manifest.as_deref())?;
    let view = connect::client_or_start().await?.apply(&request).await?;
    if args.output.json {
        print::json(&view);
    } else {
        print::line(&format!(
            "{} the policy of {} is in force",
            print::paint(Ink::Good, "\u{2713}"),
            print::paint(Ink::Bold, view.agent.as_str())
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn check(args: &PolicyCheck) -> Result<ExitCode, Report> {
    let subject = Subject::load(&args.place)?;
    let rules = subject.policy.sources();
    if args.output.json {
        let rules: BTreeMap<&str, &str> = rules.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
        print::json(&serde_json::json!({ "agent": subject.manifest.name, "rules": rules }));
        return Ok(ExitCode::SUCCESS);
    }
    print::line(&format!(
        "{} the policy of {} stands: {} from {}, {} in all",
        print::paint(Ink::Good, "\u{2713}"),
        print::paint(Ink::Bold, subject.manifest.name.as_str()),
        count(subject.manifest.grants.len(), "grant"),
        args.place.display(),
        count(rules.len(), "rule"),
    ));
    if args.rules {
        for (id, text) in rules {
            print::line(&format!("\n{}\n{}", print::paint(Ink::Dim, &format!("// {id}")), text.trim_end()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn explain(args: &PolicyExplain) -> Result<ExitCode, Report> {
    let subject = Subject::load(&args.place)?;
    let mut call: Call = args.call.join(" ").parse().map_err(|e: ringfence_policy::CallError| Report::from(e))?;
    call.model.clone_from(&args.model);
    call.websocket = args.websocket;
    let decided = Decided::of(&call, &subject.decide(&call));
    if args.output.json {
        print::json(&decided);
        return Ok(ExitCode::SUCCESS);
    }
    let (colour, word) = ink(decided.decision);
    print::line(&format!("{}  {}", print::paint(colour, word), print::safe(&decided.call)));
    print::line(&format!("  {}: {}", decided.reason, print::safe(&decided.why)));
    if let Some(credential) = &decided.credential {
        print::line(&format!("  with credential `{credential}`"));
    }
    for id in &decided.rules {
        if let Some((_, text)) = subject.policy.sources().iter().find(|(known, _)| known == id) {
            print::line(&format!("\n{}\n{}", print::paint(Ink::Dim, &format!("// {id}")), text.trim_end()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file of cases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFile {
    #[serde(default)]
    case: Vec<Case>,
}

/// One case: a call, and what must be decided about it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    call: String,
    expect: Outcome,
    name: Option<String>,
    model: Option<String>,
    /// What the body asks of a language model.
    llm: Option<LlmCase>,
    #[serde(default)]
    websocket: bool,
    /// The reason's code, where it matters.
    reason: Option<String>,
    /// A rule that must be among those that decided.
    rule: Option<String>,
}

/// What a body asks of a language model, as a case says it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LlmCase {
    api: String,
    models: Vec<String>,
    tools: Vec<String>,
    prompts: Vec<String>,
    streaming: bool,
    format: String,
    max_tokens: Option<u64>,
}

impl Default for LlmCase {
    fn default() -> Self {
        Self {
            api: "openai.chat".into(),
            models: Vec::new(),
            tools: Vec::new(),
            prompts: Vec::new(),
            streaming: false,
            format: "text".into(),
            max_tokens: None,
        }
    }
}

impl From<LlmCase> for LlmCall {
    fn from(case: LlmCase) -> Self {
        let LlmCase { api, models, tools, prompts, streaming, format, max_tokens } = case;
        Self { api, models, tools, prompts, streaming, format, max_tokens }
    }
}

/// How a case went, for scripts.
#[derive(Serialize)]
struct Tried {
    name: String,
    passed: bool,
    expected: String,
    #[serde(flatten)]
    decided: Decided,
}

fn test(args: &PolicyTest) -> Result<ExitCode, Report> {
    let subject = Subject::load(&args.place)?;
    let path = match &args.cases {
        Some(path) => path.clone(),
        None if args.place.is_dir() => args.place.join(CASES),
        None => args.place.with_file_name(CASES),
    };
    let tried = read_cases(&path)?
        .into_iter()
        .map(|case| try_case(&subject, &path, case))
        .collect::<Result<Vec<_>, Report>>()?;
    let failed = tried.iter().filter(|t| !t.passed).count();
    if args.output.json {
        print::json(&tried);
    } else {
        for case in &tried {
            let (colour, mark) = if case.passed { (Ink::Good, "\u{2713}") } else { (Ink::Bad, "\u{2717}") };
            print::line(&format!("{} {}", print::paint(colour, mark), print::safe(&case.name)));
            if !case.passed {
                let Decided { decision, reason, why, rules, .. } = &case.decided;
                print::line(&format!("    expected {}", print::safe(&case.expected)));
                print::line(&format!("    decided  {}: {reason}: {}", ink(*decision).1, print::safe(why)));
                if !rules.is_empty() {
                    print::line(&format!("    by       {}", rules.join(", ")));
                }
            }
        }
        let all = count(tried.len(), "case");
        print::line(&if failed == 0 {
            format!("{all}, all as expected")
        } else {
            format!("{all}, {failed} not as expected")
        });
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(NOT_PASSED) })
}

fn read_cases(path: &Path) -> Result<Vec<Case>, Report> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Report::new("policy.cases", Fault::Caller, format!("cannot read the cases `{}`", path.display()))
            .cause(&e)
            .hint("write `[[case]]` with `call = \"GET https://host/path\"` and `expect = \"allow\"` or `\"deny\"`")
    })?;
    let file: CaseFile = toml::from_str(&text).map_err(|e| {
        Report::new("policy.cases", Fault::Caller, format!("the cases `{}` are not right", path.display()))
            .cause(e.to_string().trim())
            .hint(
                "each `[[case]]` has `call` and `expect`, and may have `name`, `model`, `llm`, `websocket`, `reason`, `rule`",
            )
    })?;
    if file.case.is_empty() {
        return Err(Report::new("policy.cases", Fault::Caller, format!("`{}` has no cases", path.display()))
            .hint("write at least one `[[case]]`: a test of nothing proves nothing"));
    }
    Ok(file.case)
}

fn try_case(subject: &Subject, path: &Path, case: Case) -> Result<Tried, Report> {
    let mut call: Call = case.call.parse().map_err(|e: ringfence_policy::CallError| {
        let report = Report::from(e);
        let cause = format!("in `{}`", path.display());
        report.cause(cause)
    })?;
    (call.model, call.websocket) = (case.model, case.websocket);
    call.llm = case.llm.map(LlmCall::from);
    if let (Some(llm), Some(model)) = (&mut call.llm, &call.model)
        && !llm.models.contains(model)
    {
        llm.models.insert(0, model.clone());
    }
    let decided = Decided::of(&call, &subject.decide(&call));
    let passed = decided.decision == case.expect
        && case.reason.as_ref().is_none_or(|reason| reason == decided.reason)
        && case.rule.as_ref().is_none_or(|rule| decided.rules.contains(rule));
    let mut expected = ink(case.expect).1.to_owned();
    if let Some(reason) = &case.reason {
        expected.push_str(&format!(" for `{reason}`"));
    }
    if let Some(rule) = &case.rule {
        expected.push_str(&format!(" by `{rule}`"));
    }
    let name = case.name.unwrap_or_else(|| format!("{} {}", ink(case.expect).1, decided.call));
    Ok(Tried { name, passed, expected, decided })
}

/// What a change of the policy changes, for scripts.
#[derive(Serialize)]
struct Changes {
    rules_added: BTreeMap<String, String>,
    rules_removed: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replayed: Option<Replayed>,
}

#[derive(Default, Serialize)]
struct Replayed {
    /// Recorded calls, each different one once.
    calls: usize,
    newly_allowed: Vec<Flip>,
    newly_denied: Vec<Flip>,
}

#[derive(Serialize)]
struct Flip {
    /// How often it was recorded.
    times: u64,
    #[serde(flatten)]
    decided: Decided,
}

async fn diff(args: &PolicyDiff) -> Result<ExitCode, Report> {
    let (old, new) = (Subject::load(&args.old)?, Subject::load(&args.new)?);
    let replayed = match &args.replay {
        Some(agent) => Some(replay(&old, &new, recorded(agent).await?)),
        None => None,
    };
    let changes = Changes { rules_added: without(&new, &old), rules_removed: without(&old, &new), replayed };
    let widens = changes.replayed.as_ref().is_some_and(|r| !r.newly_allowed.is_empty());
    let narrows = changes.replayed.as_ref().is_some_and(|r| !r.newly_denied.is_empty());
    if args.output.json {
        print::json(&changes);
    } else {
        show_changes(&changes);
    }
    // For a script that guards a change: replayed traffic that is decided otherwise needs a person.
    Ok(if widens || narrows { ExitCode::from(NOT_PASSED) } else { ExitCode::SUCCESS })
}

/// The rules of `one` that `other` does not have, by what they say and not by their number.
fn without(one: &Subject, other: &Subject) -> BTreeMap<String, String> {
    let known: BTreeSet<&str> = other.policy.sources().iter().map(|(_, text)| text.as_str()).collect();
    let own = one.policy.sources().iter().filter(|(_, text)| !known.contains(text.as_str()));
    own.map(|(id, text)| (id.clone(), text.clone())).collect()
}

fn show_changes(changes: &Changes) {
    if changes.rules_added.is_empty() && changes.rules_removed.is_empty() {
        print::line("the rules are the same");
    }
    for (colour, sign, rules) in [(Ink::Bad, "-", &changes.rules_removed), (Ink::Good, "+", &changes.rules_added)] {
        for (id, text) in rules {
            print::line(&print::paint(Ink::Dim, &format!("{sign} // {id}")));
            for line in text.trim_end().lines() {
                print::line(&print::paint(colour, &format!("{sign} {line}")));
            }
        }
    }
    let Some(replayed) = &changes.replayed else { return };
    print::line(&format!(
        "\nreplayed {}: {} newly allowed, {} newly denied",
        count(replayed.calls, "recorded call"),
        replayed.newly_allowed.len(),
        replayed.newly_denied.len()
    ));
    if replayed.newly_allowed.is_empty() && replayed.newly_denied.is_empty() {
        return;
    }
    let mut table = Table::new(&["NOW", "TIMES", "CALL", "WHY"]);
    for flip in replayed.newly_allowed.iter().chain(&replayed.newly_denied) {
        let (colour, word) = ink(flip.decided.decision);
        table.row(vec![
            (word.to_owned(), Some(colour)),
            (flip.times.to_string(), None),
            (print::safe(&flip.decided.call), None),
            (print::safe(&flip.decided.why), Some(Ink::Dim)),
        ]);
    }
    table.print();
}

/// The calls out of an agent that are in the log, each different one with how often it is.
async fn recorded(agent: &AgentName) -> Result<BTreeMap<Call, u64>, Report> {
    let request = AuditRequest { agent: Some(agent.clone()), follow: false, from: 0, tail: None, suggest: false };
    let mut calls = BTreeMap::new();
    connect::client_or_start()
        .await?
        .audit(&request, |line| {
            if let Event::CallIntent(intent) = &line.entry.event
                && let Some(call) = as_call(intent)
            {
                *calls.entry(call).or_default() += 1;
            }
            true
        })
        .await?;
    Ok(calls)
}

/// The call of an entry, where it says enough to be asked about again.
fn as_call(intent: &CallIntent) -> Option<Call> {
    if intent.direction != Direction::Egress {
        return None;
    }
    let host = if intent.host.contains(':') { format!("[{}]", intent.host) } else { intent.host.clone() };
    let text = match (&intent.method, &intent.path, intent.protocol.as_str()) {
        (Some(method), Some(path), _) => {
            // An entry names no scheme; cleartext goes by its usual port or by a grant that says so.
            let scheme = if intent.port == 80 { "http" } else { "https" };
            format!("{method} {scheme}://{host}:{}{path}", intent.port)
        }
        (None, _, "tls-passthrough") => format!("TLS {host}:{}", intent.port),
        (None, _, "tcp") => format!("TCP {host}:{}", intent.port),
        (None, _, "ssh") => {
            let asked = intent.git.as_ref().filter(|asked| asked.other.is_none() && asked.refs.len() <= 1)?;
            let change = asked.refs.first().map(|change| format!(" {change}")).unwrap_or_default();
            format!("SSH {host}:{} {} {}{change}", intent.port, asked.operation, asked.repository)
        }
        // What calls functions is allowed by them too, and a call in words names none.
        (None, _, "postgres") => {
            let asked = intent.sql.as_ref().filter(|asked| asked.functions.is_empty())?;
            format!("POSTGRES {host}:{} {}", intent.port, asked.classes.join(" "))
        }
        _ => return None,
    };
    let mut call: Call = text.parse().ok()?;
    call.model.clone_from(&intent.model);
    call.llm = intent.llm.as_deref().map(|asked| {
        let LlmAsked { api, models, tools, prompts, streaming, format, max_tokens } = asked.clone();
        LlmCall { api, models, tools, prompts, streaming, format, max_tokens }
    });
    call.websocket = intent.protocol == "websocket";
    Some(call)
}

fn replay(old: &Subject, new: &Subject, calls: BTreeMap<Call, u64>) -> Replayed {
    let mut replayed = Replayed { calls: calls.len(), ..Replayed::default() };
    for (call, times) in calls {
        let (before, after) = (old.decide(&call), new.decide(&call));
        let list = match (before.allows(), after.allows()) {
            (false, true) => &mut replayed.newly_allowed,
            (true, false) => &mut replayed.newly_denied,
            _ => continue,
        };
        list.push(Flip { times, decided: Decided::of(&call, &after) });
    }
    replayed
}
