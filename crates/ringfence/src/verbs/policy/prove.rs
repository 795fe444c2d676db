//! `ringfence policy prove`: claims about every call that could ever be made, settled by a solver.

use std::process::ExitCode;

use cedar_policy::{EntityTypeName, EntityUid, EvalResult, PolicySet, RequestEnv, Schema};
use cedar_policy_symcc::solver::LocalSolver;
use cedar_policy_symcc::{CedarSymCompiler, CompiledPolicySet, Env};
use ringfence_model::{Fault, Report};
use ringfence_policy::{Call, Policy, SCHEMA};
use serde::Serialize;

use super::super::NOT_PASSED;
use super::Subject;
use crate::args::PolicyProve;
use crate::print::{self, Ink};

/// Every way out of an agent.
const WAYS: [&str; 9] = [
    "http:request",
    "secret:use",
    "tls:connect",
    "tcp:connect",
    "postgres:connect",
    "postgres:query",
    "ssh:exec",
    "ssh:push",
    "dns:resolve",
];

/// Requests with content; the ways of which `--never` speaks.
const REQUESTS: [&str; 1] = ["http:request"];

/// Something to be proved: whatever the policy allows by these ways, `bound` allows too.
struct Claim {
    text: String,
    bound: PolicySet,
    ways: &'static [&'static str],
}

/// How a claim stands, for scripts.
#[derive(Serialize)]
struct Proof {
    claim: String,
    proved: bool,
    /// A call that the policy allows against the claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    counterexample: Option<String>,
}

pub async fn run(args: &PolicyProve) -> Result<ExitCode, Report> {
    let subject = Subject::load(&args.place)?;
    let claims = claims(args)?;
    let policy = subject.policy.provable(&subject.manifest.name)?;
    let schema: Schema = SCHEMA.parse().map_err(|e| internal("read the schema", &e))?;
    let mut proofs = Vec::new();
    for claim in &claims {
        proofs.push(prove(&subject, &policy, claim, &schema).await?);
    }
    if args.output.json {
        print::json(&proofs);
    } else {
        for proof in &proofs {
            let (colour, mark) = if proof.proved { (Ink::Good, "\u{2713}") } else { (Ink::Bad, "\u{2717}") };
            print::line(&format!("{} {}", print::paint(colour, mark), print::safe(&proof.claim)));
            if let Some(call) = &proof.counterexample {
                print::line(&format!("    the policy allows {}", print::safe(call)));
            }
        }
    }
    Ok(if proofs.iter().all(|p| p.proved) { ExitCode::SUCCESS } else { ExitCode::from(NOT_PASSED) })
}

fn claims(args: &PolicyProve) -> Result<Vec<Claim>, Report> {
    let mut claims = Vec::new();
    if !args.only.is_empty() {
        let hosts: Vec<String> = args.only.iter().map(ToString::to_string).collect();
        let text = format!("no host but {} is ever reached", hosts.join(", "));
        claims.push(Claim { text, bound: Policy::only(&args.only)?, ways: &WAYS });
    }
    if let Some(place) = &args.within {
        let other = Subject::load(place)?;
        let text = format!("nothing is allowed that {} does not allow", place.display());
        // Asked about the same agent, whatever the other manifest calls it.
        let bound = other.policy.provable(&Subject::load(&args.place)?.manifest.name)?;
        claims.push(Claim { text, bound, ways: &WAYS });
    }
    for condition in &args.never {
        let text = format!("no request is allowed where {condition}");
        let bound = Policy::never(condition).map_err(|e| {
            let report = Report::new("policy.condition", Fault::Caller, format!("`{condition}` is no condition"));
            report.because(&e).hint("write one in Cedar, such as `context.method == \"DELETE\"`")
        })?;
        claims.push(Claim { text, bound, ways: &REQUESTS });
    }
    if claims.is_empty() {
        return Err(Report::new("policy.claim", Fault::Caller, "there is nothing to prove")
            .hint("claim something with `--only`, `--within` or `--never`"));
    }
    Ok(claims)
}

async fn prove(subject: &Subject, policy: &PolicySet, claim: &Claim, schema: &Schema) -> Result<Proof, Report> {
    for way in claim.ways {
        let env = environment(way)?;
        let own = CompiledPolicySet::compile(policy, &env, schema).map_err(|e| internal("compile the policy", &e))?;
        let bound = CompiledPolicySet::compile(&claim.bound, &env, schema).map_err(|e| {
            let report = Report::new("policy.condition", Fault::Caller, format!("cannot state that {}", claim.text));
            report.because(&e).hint("see policies/ringfence.cedarschema for what a condition may speak about")
        })?;
        // One for each question: a solver that gave up must not answer the next.
        let solver = LocalSolver::cvc5().map_err(|e| {
            Report::new("policy.solver", Fault::Host, "cannot run the solver `cvc5`")
                .because(&e)
                .hint("install it: `apt install cvc5`; or name it in the variable CVC5")
        })?;
        let mut compiler = CedarSymCompiler::new(solver).map_err(|e| internal("start the solver", &e))?;
        let found = compiler.check_implies_with_counterexample_opt(&own, &bound).await.map_err(|e| {
            Report::new("policy.unsettled", Fault::Host, format!("the solver could not settle that {}", claim.text))
                .because(&e)
                .hint("this is neither a proof nor a refutation; try a narrower claim")
        })?;
        if let Some(found) = found {
            return Ok(Proof {
                claim: claim.text.clone(),
                proved: false,
                counterexample: Some(example(subject, way, &found)),
            });
        }
    }
    Ok(Proof { claim: claim.text.clone(), proved: true, counterexample: None })
}

fn environment(way: &str) -> Result<RequestEnv, Report> {
    let kind = |name: &str| name.parse::<EntityTypeName>().map_err(|e| internal("name a kind", &e));
    let action: EntityUid = format!("Action::\"{way}\"").parse().map_err(|e| internal("name an action", &e))?;
    Ok(RequestEnv::new(kind("Agent")?, action, kind("Host")?))
}

/// The solver's example as a call, and what the policy itself says of it.
fn example(subject: &Subject, way: &str, found: &Env) -> String {
    let of_host = |name: &str| {
        let host = found.entities.get(found.request.resource()?)?;
        host.attr(name).and_then(Result::ok)
    };
    let of_call = |name: &str| found.request.context()?.get(name);
    let text = |value: Option<EvalResult>| match value {
        Some(EvalResult::String(text)) => text,
        _ => String::new(),
    };
    let port = match of_host("port") {
        Some(EvalResult::Long(port)) => port,
        _ => 0,
    };
    let name = text(of_host("name"));
    let words = match way {
        "dns:resolve" => format!("DNS {name}"),
        "tls:connect" => format!("TLS {name}:{port}"),
        "tcp:connect" => format!("TCP {name}:{port}"),
        "postgres:connect" => format!("POSTGRES {name}:{port}"),
        "postgres:query" => format!("POSTGRES {name}:{port} {}", words_of(of_call("classes"))),
        "ssh:exec" => {
            format!("SSH {name}:{port} {} {}", text(of_call("operation")), text(of_call("repository")))
        }
        "ssh:push" => {
            let (change, to) = (text(of_call("change")), text(of_call("ref")));
            format!("SSH {name}:{port} push {} {change} {to}", text(of_call("repository")))
        }
        _ => {
            format!("{} {}://{name}:{port}{}", text(of_call("method")), text(of_call("scheme")), text(of_call("path")))
        }
    };
    let credential = text(of_call("credential"));
    let with = if credential.is_empty() { String::new() } else { format!(" with credential `{credential}`") };
    let Ok(mut call) = words.parse::<Call>() else { return format!("{words}{with}") };
    call.model = Some(text(of_call("model"))).filter(|m| !m.is_empty());
    let decided = subject.decide(&call);
    format!("{call}{with} ({})", decided.explain())
}

fn internal(what: &str, why: &dyn std::error::Error) -> Report {
    Report::new("policy.proof", Fault::Us, format!("cannot {what} for the proof")).because(why)
}

/// The texts of a set, in order and with spaces between.
fn words_of(value: Option<EvalResult>) -> String {
    let Some(EvalResult::Set(set)) = value else { return String::new() };
    let mut words: Vec<String> = set
        .iter()
        .filter_map(|word| if let EvalResult::String(word) = word { Some(word.clone()) } else { None })
        .collect();
    words.sort();
    words.join(" ")
}
