//! Entries of the audit log, as `ringfence audit --json` prints them, and what they say about calls.

use serde::Deserialize;

use crate::show::{self, Cell, short};

/// The longest name of a call that is shown.
const WIDTH: usize = 62;

/// One entry: the fields that this demonstration reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Entry {
    pub index: u64,
    pub sandbox: Option<String>,
    pub kind: String,
    pub call: Option<String>,
    pub direction: Option<String>,
    pub protocol: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub method: Option<String>,
    pub path: Option<String>,
    pub decision: Option<String>,
    pub reason: Option<String>,
    pub why: Option<String>,
    pub credential: Option<String>,
    pub status: Option<u16>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub error: Option<String>,
    pub findings: Vec<String>,
    pub name: Option<String>,
    pub rtype: Option<String>,
    pub destination: Option<String>,
    pub bytes: u64,
    pub count: u64,
}

impl Entry {
    fn is_egress_intent(&self) -> bool {
        self.kind == "call.intent" && self.direction.as_deref() == Some("egress")
    }

    /// Whether it is about something that left the agent, or was to.
    pub fn is_outbound(&self) -> bool {
        self.is_egress_intent() || matches!(self.kind.as_str(), "dns.query" | "udp.drop")
    }

    /// Whether it was let through.
    pub fn allowed(&self) -> bool {
        self.decision.as_deref() == Some("allow")
    }

    /// Whether it was refused. A datagram that is dropped was, too.
    pub fn denied(&self) -> bool {
        self.decision.as_deref() == Some("deny") || self.kind == "udp.drop"
    }

    /// The host, name or address that it is about.
    pub fn target(&self) -> &str {
        self.host.as_deref().or(self.name.as_deref()).or(self.destination.as_deref()).unwrap_or_default()
    }

    /// The reason, in its short form and in words.
    pub fn reason_in_full(&self) -> String {
        match (self.reason.as_deref(), self.why.as_deref()) {
            (Some(code), Some(why)) if !why.is_empty() => format!("{code}: {why}"),
            (Some(code), _) => code.to_owned(),
            _ if self.kind == "udp.drop" => "UDP leaves for nowhere".into(),
            _ => String::new(),
        }
    }

    /// What was called, in one line.
    pub fn what(&self) -> String {
        let text = match self.kind.as_str() {
            "dns.query" => format!("DNS {} {}", self.rtype.as_deref().unwrap_or("?"), self.target()),
            "udp.drop" => format!("UDP {}", self.target()),
            _ => {
                let scheme = match (self.protocol.as_deref(), self.port) {
                    (Some("tcp"), _) => "tcp",
                    (Some("tls-passthrough"), _) => "tls",
                    (_, Some(80)) => "http",
                    _ => "https",
                };
                let port = self.port.filter(|port| *port != 443 && *port != 80);
                format!(
                    "{}{scheme}://{}{}{}",
                    self.method.as_ref().map(|method| format!("{method} ")).unwrap_or_default(),
                    self.target(),
                    port.map(|port| format!(":{port}")).unwrap_or_default(),
                    self.path.as_deref().unwrap_or_default(),
                )
            }
        };
        short(&text, WIDTH)
    }
}

/// Whether every call that was let through has come to its end.
pub fn settled(entries: &[Entry]) -> bool {
    entries.iter().filter(|e| e.is_egress_intent() && e.allowed()).all(|intent| outcome(entries, intent).is_some())
}

/// How the call of an intent ended.
pub fn outcome<'a>(entries: &'a [Entry], intent: &Entry) -> Option<&'a Entry> {
    entries.iter().find(|e| e.kind == "call.outcome" && e.call.is_some() && e.call == intent.call)
}

/// A row for each thing that left the agent, or was to.
pub fn rows(entries: &[Entry]) -> Vec<Vec<Cell>> {
    let mut rows = vec![["entry", "decision", "call", "outcome", "reason"].map(Cell::faint).into_iter().collect()];
    for entry in entries.iter().filter(|entry| entry.is_outbound()) {
        let decision = if entry.allowed() { "allow" } else { "deny" };
        let came = match entry.kind.as_str() {
            "udp.drop" => format!("{} dropped, {}", entry.count, show::bytes(entry.bytes)),
            "dns.query" if entry.allowed() => "answered".into(),
            _ if !entry.allowed() => "not sent".into(),
            _ => outcome(entries, entry).map_or_else(|| "under way".into(), came_of_it),
        };
        rows.push(vec![
            Cell::plain(format!("#{}", entry.index)),
            Cell::judged(decision, entry.allowed()),
            Cell::plain(entry.what()),
            Cell::plain(came),
            Cell::faint(entry.reason_in_full()),
        ]);
    }
    rows
}

fn came_of_it(outcome: &Entry) -> String {
    let mut text = match (&outcome.error, outcome.status) {
        (Some(error), _) => short(error, 48),
        (None, Some(status)) => status.to_string(),
        (None, None) => "ended".into(),
    };
    text += &format!(", {} up, {} down", show::bytes(outcome.bytes_up), show::bytes(outcome.bytes_down));
    for finding in &outcome.findings {
        text += &format!(", {finding}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_named_as_people_name_them() {
        let entry = |json: &str| serde_json::from_str::<Entry>(json).unwrap();
        for (json, want) in [
            (
                r#"{"v":1,"index":4,"kind":"call.intent","direction":"egress","protocol":"h2","host":"a.example","port":443,"method":"GET","path":"/x","decision":"allow"}"#,
                "GET https://a.example/x",
            ),
            (
                r#"{"kind":"call.intent","direction":"egress","protocol":"tcp","host":"203.0.113.77","port":4444,"decision":"deny"}"#,
                "tcp://203.0.113.77:4444",
            ),
            (
                r#"{"kind":"dns.query","name":"b.example","rtype":"A","decision":"deny","reason":"no_grant"}"#,
                "DNS A b.example",
            ),
        ] {
            assert_eq!(entry(json).what(), want);
            assert!(entry(json).is_outbound());
        }
        assert!(!entry(r#"{"kind":"call.intent","direction":"ingress","host":"a"}"#).is_outbound());
    }
}
