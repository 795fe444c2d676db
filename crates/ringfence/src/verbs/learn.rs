//! `ringfence learn`: the least grants for what an agent was denied, for a person to review.
//!
//! The agent ran in its fence all the time. What it asked for is in the log; nothing was opened to find out.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use jiff::Timestamp;
use ringfence_audit::{CallIntent, Direction, Event, Outcome};
use ringfence_fleet::api::{AuditLine, AuditRequest};
use ringfence_model::{Report, SandboxId};
use serde::Serialize;

use crate::args::Learn;
use crate::connect;
use crate::print;

/// Paths that are listed one by one; beyond them a grant is for what they share.
const LISTED: usize = 8;

/// Grants that are proposed at most; an agent that tries a thousand hosts is not to be granted them.
const PROPOSED: usize = 64;

pub async fn run(args: Learn) -> Result<ExitCode, Report> {
    let request = AuditRequest { agent: Some(args.agent.clone()), follow: false, from: 0, tail: None, suggest: false };
    let mut lines = Vec::new();
    let client = connect::client_or_start().await?;
    client
        .audit(&request, |line| {
            lines.push(line);
            true
        })
        .await?;
    let learnt = Learnt::from(&lines);
    if args.output.json {
        print::json(&learnt);
    } else {
        print::line(learnt.text(args.agent.as_str()).trim_end());
    }
    Ok(ExitCode::SUCCESS)
}

/// What was denied, by what would allow it.
#[derive(Debug, Default, Serialize)]
struct Learnt {
    grants: Vec<Proposal>,
    /// Models that were denied under a grant which is there, by host.
    models: BTreeMap<String, BTreeSet<String>>,
    /// What no grant can allow: protocols that the gate does not understand, addresses that no name stands for.
    others: BTreeMap<String, u64>,
    /// Hosts beyond those that are proposed.
    left_out: usize,
}

/// A grant to review.
#[derive(Debug, Default, Serialize)]
struct Proposal {
    host: String,
    /// Unset where the agent only asked for the name, and went no further.
    port: Option<u16>,
    methods: BTreeSet<String>,
    paths: BTreeSet<String>,
    /// How often it was asked for, and the first entry.
    times: u64,
    first: u64,
}

impl Learnt {
    fn from(lines: &[AuditLine]) -> Self {
        let starts = starts(lines);
        let mut calls: BTreeMap<(String, u16), Proposal> = BTreeMap::new();
        let mut names: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        let mut learnt = Self::default();
        for line in lines {
            // What came before the agent's first instruction were our own probes.
            let own = line.entry.sandbox.as_ref().and_then(|id| starts.get(id));
            if own.is_none_or(|began| line.entry.time < *began) {
                continue;
            }
            match &line.entry.event {
                Event::CallIntent(call) if call.decision == Outcome::Deny && call.direction == Direction::Egress => {
                    learnt.denied(call, line.index, &mut calls);
                }
                Event::DnsQuery { name, decision: Outcome::Deny, .. } => {
                    names.entry(name.trim_end_matches('.').to_owned()).or_insert((0, line.index)).0 += 1;
                }
                _ => {}
            }
        }
        learnt.grants.extend(calls.into_values());
        for (host, (times, first)) in names {
            if !learnt.grants.iter().any(|grant| grant.host == host) {
                learnt.grants.push(Proposal { host, times, first, ..Proposal::default() });
            }
        }
        learnt.grants.sort_by_key(|grant| grant.first);
        learnt.left_out = learnt.grants.len().saturating_sub(PROPOSED);
        learnt.grants.truncate(PROPOSED);
        learnt
    }

    fn denied(&mut self, call: &CallIntent, index: u64, calls: &mut BTreeMap<(String, u16), Proposal>) {
        match (call.reason.as_str(), &call.method, &call.path) {
            ("model_not_granted", ..) => {
                let model = call.model.clone().unwrap_or_else(|| "(none named)".into());
                self.models.entry(call.host.clone()).or_default().insert(model);
            }
            ("no_grant", Some(method), Some(path)) => {
                let grant = calls.entry((call.host.clone(), call.port)).or_insert_with(|| Proposal {
                    host: call.host.clone(),
                    port: Some(call.port),
                    first: index,
                    ..Proposal::default()
                });
                grant.times += 1;
                grant.methods.insert(method.clone());
                grant.paths.insert(path.clone());
            }
            _ => *self.others.entry(format!("{}:{} ({})", call.host, call.port, call.reason)).or_default() += 1,
        }
    }

    /// Grants as comments, to be put into a manifest and thought about.
    fn text(&self, agent: &str) -> String {
        let mut out =
            format!("# What `{agent}` was denied. Take the `#` off what it is to have, and off nothing else.\n");
        if self.grants.is_empty() && self.models.is_empty() && self.others.is_empty() {
            out.push_str("# Nothing: every call that it made was granted.\n");
        }
        for grant in &self.grants {
            out.push('\n');
            out.push_str(&grant.text());
        }
        for (host, models) in &self.models {
            let models: Vec<&str> = models.iter().map(String::as_str).collect();
            out.push_str(&format!("\n# The grant for {} lacks these models: {}\n", quoted(host), models.join(", ")));
        }
        if !self.others.is_empty() {
            out.push_str("\n# No grant allows these as they were tried:\n");
            for (what, times) in &self.others {
                out.push_str(&format!("#   {}, {times} times\n", print::safe(what)));
            }
        }
        if self.left_out > 0 {
            out.push_str(&format!(
                "\n# And {} further hosts. That is no pattern of a program that does its work.\n",
                self.left_out
            ));
        }
        out
    }
}

/// When each start's first instruction was.
fn starts(lines: &[AuditLine]) -> BTreeMap<SandboxId, Timestamp> {
    let mut starts = BTreeMap::new();
    for line in lines {
        if let (Some(id), Event::Sandbox { action, .. }) = (&line.entry.sandbox, &line.entry.event)
            && action == "start"
        {
            starts.entry(id.clone()).or_insert(line.entry.time);
        }
    }
    starts
}

impl Proposal {
    fn text(&self) -> String {
        let times = if self.times == 1 { "once".to_owned() } else { format!("{} times", self.times) };
        let mut out = format!("# Asked for {times}, first in entry {}.\n", self.first);
        let Some(port) = self.port else {
            out.push_str(
                "# Only the name was asked for: it did not resolve, so what would have been called is not known.\n",
            );
            out.push_str(&format!("# [[grant]]\n# host = {}\n# methods = [\"GET\"]\n", quoted(&self.host)));
            return out;
        };
        out.push_str(&format!("# [[grant]]\n# host = {}\n", quoted(&self.host)));
        if port == 80 {
            out.push_str("# scheme = \"http\"   # in the clear: whoever is on the way reads and changes it\n");
        }
        if !matches!(port, 80 | 443) {
            out.push_str(&format!("# port = {port}\n"));
        }
        out.push_str(&format!("# methods = {}\n", list(&self.methods)));
        if self.paths.len() <= LISTED {
            out.push_str(&format!("# paths = {}\n", list(&self.paths)));
        } else {
            let shared = shared(&self.paths);
            out.push_str(&format!("# paths = [{}]   # {} different ones\n", quoted(&shared), self.paths.len()));
        }
        out
    }
}

/// The longest folder that all paths lie in, and whatever is below.
fn shared(paths: &BTreeSet<String>) -> String {
    let mut common: Option<Vec<&str>> = None;
    for path in paths {
        let parts: Vec<&str> = path.split('/').collect();
        let parts = parts.get(..parts.len().saturating_sub(1)).unwrap_or_default();
        common = Some(match common {
            None => parts.to_vec(),
            Some(known) => known.into_iter().zip(parts).take_while(|(a, b)| a == *b).map(|(a, _)| a).collect(),
        });
    }
    format!("{}/*", common.unwrap_or_default().join("/"))
}

fn list(words: &BTreeSet<String>) -> String {
    let words: Vec<String> = words.iter().map(|w| quoted(w)).collect();
    format!("[{}]", words.join(", "))
}

/// A TOML string of any text, on one line: an agent chose it, and must not get out of the comment.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() || !c.is_ascii() => out.push_str(&format!("\\U{:08X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "this is test code")]
mod tests {
    use super::*;

    #[test]
    fn many_paths_become_the_folder_that_they_share() {
        let paths = |all: &[&str]| all.iter().map(|p| (*p).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(shared(&paths(&["/v1/a/x", "/v1/a/y", "/v1/b"])), "/v1/*");
        assert_eq!(shared(&paths(&["/v1/a", "/v10/a"])), "/*");
        assert_eq!(shared(&paths(&["/a", "/b"])), "/*");
    }

    #[test]
    fn no_text_of_the_agent_leaves_its_string() {
        for text in ["a\"b", "a\\", "a\n[danger]\nwithout = [\"seccomp\"]", "\u{2028}x", "\r# "] {
            let quoted = quoted(text);
            assert_eq!(quoted.lines().count(), 1);
            let read: toml::Table = toml::from_str(&format!("x = {quoted}")).unwrap();
            assert_eq!(read["x"].as_str(), Some(text));
        }
    }
}
