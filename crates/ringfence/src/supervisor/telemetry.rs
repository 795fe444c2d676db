//! Calls as spans of OpenTelemetry, sent to a collector: the log read again, entry by entry.
//!
//! What is sent is made of the entries alone, so that a trace says what the log says. A collector that does not answer
//! holds nothing up: it gets what it missed later, from where it was left. A span may come twice, with the same id.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringfence_audit::{CallOutcome, Entry, Event, log, otel};
use ringfence_model::{CallId, Fault, Report, SecretText};
use serde::Deserialize;
use tokio::sync::watch;

use super::db::Db;
use super::lock;
use super::recorder::tracing_line;
use crate::paths::Paths;

/// The fact that remembers up to where entries were sent.
const NEXT: &str = "telemetry.next";

/// Entries that are read in one go, and so spans in one request.
const PORTION: u64 = 512;

/// Calls under way that are kept in mind; of those before, what is known is sent.
const MAX_OPEN: usize = 8192;

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a collector that does not answer is left alone: at first, and at the most.
const REST: Duration = Duration::from_secs(1);
const MOST_REST: Duration = Duration::from_secs(300);

/// How often the settings are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// `telemetry.toml`, beside the guard-rails.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Address of the collector, such as `http://127.0.0.1:4318`; `/v1/traces` is added.
    otlp: String,
    /// A file with headers, `Name: value` on each line, such as a key.
    headers_file: Option<PathBuf>,
}

impl Settings {
    /// Reads and checks the file's text.
    ///
    /// # Errors
    /// A report that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, Report> {
        let settings: Self = toml::from_str(text).map_err(|e| {
            let message = e.message().replace('\n', " ");
            Report::new("telemetry.settings", Fault::Host, format!("cannot read the telemetry settings: {message}"))
                .hint("the keys are `otlp` and `headers_file`")
        })?;
        let plain = ["http://", "https://"].iter().any(|scheme| settings.otlp.starts_with(scheme));
        if !plain || settings.otlp.contains(['?', '#', '@', ' ']) {
            return Err(Report::new(
                "telemetry.settings",
                Fault::Host,
                "the telemetry settings' `otlp` is no address of a collector",
            )
            .hint("write it as `http://127.0.0.1:4318`; keys go into `headers_file`"));
        }
        Ok(settings)
    }

    fn url(&self) -> String {
        format!("{}/v1/traces", self.otlp.trim_end_matches('/'))
    }

    fn headers(&self) -> Result<Vec<(String, SecretText)>, String> {
        let Some(path) = &self.headers_file else { return Ok(Vec::new()) };
        let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read `{}`: {e}", path.display()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let (name, value) =
                    line.split_once(':').ok_or_else(|| format!("`{}` has a line without `:`", path.display()))?;
                Ok((name.trim().to_owned(), SecretText::new(value.trim().to_owned())))
            })
            .collect()
    }
}

/// Sends what the log says for as long as the supervisor lives.
pub fn start(folder: PathBuf, db: Arc<Mutex<Db>>, mut grown: watch::Receiver<u64>, runtime: &tokio::runtime::Handle) {
    runtime.spawn(async move {
        let mut exporter = Exporter {
            folder,
            db,
            sent: None,
            wanted: true,
            open: BTreeMap::new(),
            client: None,
            rest: None,
            said: None,
        };
        loop {
            let more = tokio::time::timeout(LOOK, grown.changed()).await;
            if matches!(more, Ok(Err(_))) {
                return;
            }
            let size = *grown.borrow_and_update();
            let work = tokio::task::spawn_blocking(move || {
                exporter.round(size);
                exporter
            });
            match work.await {
                Ok(back) => exporter = back,
                Err(_) => return,
            }
        }
    });
}

struct Exporter {
    folder: PathBuf,
    db: Arc<Mutex<Db>>,
    /// Up to where entries were sent.
    sent: Option<u64>,
    /// Whether somebody wanted spans, as far as this supervisor or one before it knows.
    wanted: bool,
    /// Calls under way: where in the log each was announced.
    open: BTreeMap<CallId, (u64, Entry)>,
    client: Option<ureq::Agent>,
    /// Until when the collector is left alone, and for how long it was.
    rest: Option<(Instant, Duration)>,
    /// What was complained of last, so that it is said once.
    said: Option<String>,
}

impl Exporter {
    fn round(&mut self, size: u64) {
        let settings = match settings() {
            Ok(Some(settings)) => settings,
            Ok(None) => {
                // What happens while nobody wants it is not sent later, not by the next supervisor either.
                if std::mem::take(&mut self.wanted) {
                    let _ = lock(&self.db).put_fact(NEXT, "");
                }
                self.sent = Some(size);
                self.open.clear();
                return;
            }
            Err(report) => return self.complain(&report.to_string()),
        };
        self.wanted = true;
        if self.rest.is_some_and(|(until, _)| Instant::now() < until) {
            return;
        }
        let mut at = match self.sent {
            Some(sent) => sent,
            None => {
                lock(&self.db).fact(NEXT).ok().flatten().and_then(|text| text.parse().ok()).unwrap_or(size).min(size)
            }
        };
        self.sent = Some(at);
        while at < size {
            let to = (at + PORTION).min(size);
            match self.portion(&settings, size, at, to) {
                Ok(()) => {
                    if self.said.take().is_some() {
                        tracing_line("telemetry: the collector takes spans again");
                    }
                    self.rest = None;
                    at = to;
                    self.sent = Some(at);
                    // A supervisor that comes after this one must see the beginnings of what is under way.
                    let first = self.open.values().map(|(index, _)| *index).min().unwrap_or(at);
                    let _ = lock(&self.db).put_fact(NEXT, &first.to_string());
                }
                Err(why) => {
                    let rest = self.rest.map_or(REST, |(_, rest)| (rest * 2).min(MOST_REST));
                    self.rest = Some((Instant::now() + rest, rest));
                    return self.complain(&why);
                }
            }
        }
    }

    fn complain(&mut self, why: &str) {
        if self.said.as_deref() != Some(why) {
            tracing_line(&format!("telemetry: {why}"));
            self.said = Some(why.to_owned());
        }
    }

    /// Sends what a portion of the log ends: calls that were denied, and those whose outcome it has.
    fn portion(&mut self, settings: &Settings, size: u64, from: u64, to: u64) -> Result<(), String> {
        let entries = log::read_range(&self.folder, size, from, to).map_err(|e| format!("cannot read the log: {e}"))?;
        let mut open = self.open.clone();
        let mut over: Vec<(Entry, Option<CallOutcome>)> = Vec::new();
        for (index, bytes) in (from..).zip(entries) {
            let Ok(entry) = serde_json::from_slice::<Entry>(&bytes) else { continue };
            match &entry.event {
                Event::CallIntent(intent) if intent.decision == ringfence_audit::Outcome::Deny => {
                    over.push((entry, None))
                }
                Event::CallIntent(intent) => {
                    open.insert(intent.call.clone(), (index, entry));
                }
                Event::CallOutcome(outcome) => {
                    if let Some((_, begun)) = open.remove(&outcome.call) {
                        over.push((begun, Some(outcome.clone())));
                    }
                }
                _ => {}
            }
        }
        while open.len() > MAX_OPEN {
            over.extend(open.pop_first().map(|(_, (_, begun))| (begun, None)));
        }
        let spans: Vec<_> =
            over.iter().filter_map(|(entry, outcome)| Some((entry, otel::span(entry, outcome.as_ref())?))).collect();
        if !spans.is_empty() {
            let body = otel::request(spans, env!("CARGO_PKG_VERSION")).to_string();
            self.post(settings, body)?;
        }
        self.open = open;
        Ok(())
    }

    fn post(&mut self, settings: &Settings, body: String) -> Result<(), String> {
        let url = settings.url();
        let client = self.client.get_or_insert_with(client);
        let mut request = client.post(&url).header("content-type", "application/json");
        for (name, value) in settings.headers()? {
            request = request.header(name, value.reveal());
        }
        let status = request.send(body).map_err(|e| format!("`{url}` took no spans: {e}"))?.status().as_u16();
        match status {
            200..=299 => Ok(()),
            // What can be tried again, by the protocol.
            429 | 502 | 503 | 504 => Err(format!("`{url}` answered {status}")),
            // What will never be taken must not hold up the rest.
            _ => {
                self.complain(&format!("`{url}` answered {status}, and these spans are lost"));
                Ok(())
            }
        }
    }
}

fn settings() -> Result<Option<Settings>, Report> {
    let path = Paths::telemetry();
    match std::fs::read_to_string(&path) {
        Ok(text) => Settings::parse(&text).map(Some),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(unreadable(&path, &e)),
    }
}

fn unreadable(path: &Path, why: &std::io::Error) -> Report {
    Report::new("telemetry.settings", Fault::Host, format!("cannot read `{}`", path.display())).cause(why)
}

fn client() -> ureq::Agent {
    ureq::Agent::config_builder()
        .tls_config(ringfence_image::fetch::tls())
        .user_agent(concat!("ringfence/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(PATIENCE))
        .build()
        .new_agent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_not_right_are_refused() {
        let settings = Settings::parse("otlp = \"http://127.0.0.1:4318/\"\n").unwrap();
        assert_eq!(settings.url(), "http://127.0.0.1:4318/v1/traces");
        for wrong in ["", "otlp = 1", "otlp = \"127.0.0.1\"", "otlp = \"http://u:p@h\"", "otlp = \"http://h\"\nx = 1"] {
            assert_eq!(Settings::parse(wrong).unwrap_err().code, "telemetry.settings", "{wrong}");
        }
    }
}
