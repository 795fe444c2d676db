//! The program that is shown, as its operator uses it: by its command line, and by nothing else.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::log::Entry;

/// The variable that holds the key. Only `up` is given it.
pub const KEY_VARIABLE: &str = "OPENAI_API_KEY";

/// Locking and building from nothing, on a slow machine and a slow line.
const UP: Duration = Duration::from_secs(45 * 60);
const ELSE: Duration = Duration::from_secs(120);

/// Clearing up: somebody waits for it with a finger on Ctrl-C.
const STOP: Duration = Duration::from_secs(30);

/// The program.
pub struct Product {
    program: PathBuf,
    running: Mutex<Option<Pid>>,
}

/// What `up --json` says.
#[derive(Debug, Deserialize)]
pub struct Started {
    /// This start of the sandbox.
    pub sandbox: String,
    /// The image's digest.
    #[serde(default)]
    pub image: String,
    /// The link that people open.
    pub url: String,
    /// PEM file of the authority that the link's certificate is from.
    pub ca: PathBuf,
    /// How long each step took.
    #[serde(default)]
    pub took_ms: Steps,
    /// What the probes found.
    #[serde(default)]
    pub probes: Vec<Probe>,
}

/// Steps and how long each took, in milliseconds, in the order in which they were taken.
#[derive(Debug, Default)]
pub struct Steps(pub Vec<(String, f64)>);

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Steps;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("steps with their milliseconds")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Steps, A::Error> {
                let mut steps = Vec::new();
                while let Some(step) = map.next_entry()? {
                    steps.push(step);
                }
                Ok(Steps(steps))
            }
        }
        from.deserialize_map(InOrder)
    }
}

/// One probe of the fence.
#[derive(Debug, Deserialize)]
pub struct Probe {
    /// What was attacked.
    pub barrier: String,
    /// Whether it held.
    pub held: bool,
    /// What was seen.
    #[serde(default)]
    pub detail: String,
}

/// An agent as `ps --json` lists it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Listed {
    /// Its name.
    pub agent: String,
    /// Its process on this host, while it runs.
    #[serde(default)]
    pub agent_pid: Option<i32>,
}

/// One use of the command line.
struct Call<'a> {
    arguments: Vec<OsString>,
    key: Option<&'a str>,
    /// Whether its messages go to the terminal.
    aloud: bool,
    /// Whether it is out of reach of the terminal's Ctrl-C.
    sheltered: bool,
    patience: Duration,
}

/// What came of it.
pub struct Done {
    status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    stderr: String,
}

fn call<'a>(arguments: &[&str]) -> Call<'a> {
    let arguments = arguments.iter().map(OsString::from).collect();
    Call { arguments, key: None, aloud: false, sheltered: false, patience: ELSE }
}

impl Product {
    /// Names the program.
    pub fn at(program: &Path) -> Result<Self, String> {
        let found = program.canonicalize().map_err(|e| format!("cannot find `{}`: {e}", program.display()))?;
        Ok(Self { program: found, running: Mutex::new(None) })
    }

    /// The program's file.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Takes an example all the way to a running agent.
    pub async fn up(&self, example: &Path, manifest: &Path, key: &str) -> Result<Started, String> {
        let mut up = call(&["up"]);
        up.arguments.extend([example.as_os_str(), OsStr::new("--manifest"), manifest.as_os_str()].map(OsString::from));
        up.arguments.push("--json".into());
        (up.key, up.aloud, up.patience) = (Some(key), true, UP);
        let done = self.run(up).await?;
        if !done.status.success() {
            return Err(format!("`ringfence up` ended with {}; its own words are above", done.status));
        }
        serde_json::from_str(&done.stdout).map_err(|e| format!("cannot read `ringfence up --json`: {e}"))
    }

    /// The agents that there are.
    pub async fn agents(&self) -> Result<Vec<Listed>, String> {
        let done = self.run(call(&["ps", "--json"])).await?.checked("ps --json")?;
        agents(&done.stdout)
    }

    /// Stops an agent.
    pub async fn down(&self, agent: &str) -> Result<(), String> {
        let down = Call { sheltered: true, patience: STOP, ..call(&["down", agent]) };
        self.run(down).await?.checked(&format!("down {agent}")).map(drop)
    }

    /// Stops the supervisor.
    pub async fn stop_supervisor(&self) -> Result<(), String> {
        let stop = Call { sheltered: true, patience: STOP, ..call(&["serve", "--stop"]) };
        self.run(stop).await?.checked("serve --stop").map(drop)
    }

    /// Runs Python inside an agent's sandbox.
    pub async fn python(&self, agent: &str, script: &str) -> Result<Done, String> {
        self.run(call(&["exec", agent, "--", "python3", "-c", script]))
            .await?
            .checked(&format!("exec {agent} -- python3"))
    }

    /// What the audit log says about one start of one agent.
    pub async fn log(&self, agent: &str, sandbox: &str) -> Result<Vec<Entry>, String> {
        let done = self.run(call(&["audit", agent, "--json"])).await?.checked(&format!("audit {agent} --json"))?;
        let mut entries = Vec::new();
        for value in values(&done.stdout)? {
            let entry: Entry = serde_json::from_value(value).map_err(|e| format!("cannot read an audit entry: {e}"))?;
            if entry.sandbox.as_deref() == Some(sandbox) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    /// The verdict on the whole audit log, in its own words.
    pub async fn verify_log(&self) -> Result<String, String> {
        let done = self.run(call(&["audit", "verify"])).await?.checked("audit verify")?;
        let verdict = done.everything().trim().to_owned();
        if verdict.is_empty() { Err("`ringfence audit verify` said nothing".into()) } else { Ok(verdict) }
    }

    /// Asks what is running to end.
    pub fn interrupt(&self) {
        if let Some(pid) = *self.running.lock().unwrap_or_else(PoisonError::into_inner) {
            // It may have ended just now.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits until nothing is running.
    pub async fn idle(&self) {
        while self.running.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn run(&self, call: Call<'_>) -> Result<Done, String> {
        let shown = call.arguments.first().map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
        let mut command = tokio::process::Command::new(&self.program);
        command.args(&call.arguments).env_remove(KEY_VARIABLE).stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(if call.aloud { Stdio::inherit() } else { Stdio::piped() }).kill_on_drop(true);
        if let Some(key) = call.key {
            command.env(KEY_VARIABLE, key);
        }
        if call.sheltered {
            command.process_group(0);
        }
        let child = command.spawn().map_err(|e| format!("cannot run `{}`: {e}", self.program.display()))?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let _running = Running::note(&self.running, pid);
        let output = tokio::time::timeout(call.patience, child.wait_with_output())
            .await
            .map_err(|_| format!("`ringfence {shown}` did not end in {} s", call.patience.as_secs()))?
            .map_err(|e| format!("cannot wait for `ringfence {shown}`: {e}"))?;
        Ok(Done {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// Notes what is running for as long as it lives.
struct Running<'a>(&'a Mutex<Option<Pid>>);

impl<'a> Running<'a> {
    fn note(running: &'a Mutex<Option<Pid>>, pid: Option<Pid>) -> Self {
        *running.lock().unwrap_or_else(PoisonError::into_inner) = pid;
        Self(running)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Done {
    fn checked(self, verb: &str) -> Result<Self, String> {
        if self.status.success() {
            return Ok(self);
        }
        let why = self.stderr.trim();
        let why = if why.is_empty() { self.stdout.trim() } else { why };
        Err(format!("`ringfence {verb}` ended with {}: {why}", self.status))
    }

    /// Everything it said.
    pub fn everything(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// The JSON values in a text, one after another; a list stands for what is in it.
fn values(text: &str) -> Result<Vec<Value>, String> {
    let mut all = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter() {
        match value.map_err(|e| format!("what should be JSON is not: {e}"))? {
            Value::Array(many) => all.extend(many),
            one => all.push(one),
        }
    }
    Ok(all)
}

/// The agents in what `ps --json` printed.
pub fn agents(text: &str) -> Result<Vec<Listed>, String> {
    let parse = |value| serde_json::from_value(value).map_err(|e| format!("cannot read `ringfence ps --json`: {e}"));
    values(text)?.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_read_from_a_list_or_from_lines() {
        for text in [
            r#"[{"agent":"a","agent_pid":7,"more":1},{"agent":"b","agent_pid":null}]"#,
            "{\"agent\":\"a\",\"agent_pid\":7}\n{\"agent\":\"b\"}\n",
        ] {
            let got: Vec<_> = agents(text).unwrap().into_iter().map(|a| (a.agent, a.agent_pid)).collect();
            assert_eq!(got, [("a".to_owned(), Some(7)), ("b".to_owned(), None)]);
        }
        assert!(agents("").unwrap().is_empty());
        assert!(agents("not JSON").is_err());
    }
}
