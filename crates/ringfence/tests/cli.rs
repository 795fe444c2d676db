//! What a person sees: the real binary's output and exit codes, whole, as snapshots. Needs root for the supervisor.
//!
//! A new output is a diff to read: `INSTA_UPDATE=always cargo test -p ringfence --test cli`, then `git diff`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is test code")]

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use support::transcript;
use tempfile::TempDir;

/// Folders of its own for one test, with a supervisor if a verb starts one; that ends with the test.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        // A short path, since a socket's may have 108 bytes.
        let place = Self { dir: tempfile::Builder::new().prefix("rf").tempdir_in("/tmp").unwrap() };
        std::fs::create_dir(place.dir.path().join("src")).unwrap();
        place
    }

    /// One with these files in `src`.
    fn with(files: &[(&str, &str)]) -> Self {
        let place = Self::new();
        for (name, text) in files {
            std::fs::write(place.dir.path().join("src").join(name), text).unwrap();
        }
        place
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn output(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("RINGFENCE_STATE", self.path().join("s"))
            .env("RINGFENCE_RUN", self.path().join("r"))
            .output()
            .unwrap()
    }

    /// Ends the supervisor, if one runs, and waits until it has let go of its state.
    fn stop_supervisor(&self) {
        let Ok(lock) = std::fs::File::open(self.path().join("s/supervisor.lock")) else { return };
        let _ = self.output(&["serve", "--stop"]);
        let until = Instant::now() + Duration::from_secs(5);
        while lock.try_lock().is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs a command; gives its line, exit code, and both streams, with what differs from run to run taken out.
    fn run(&self, args: &[&str]) -> String {
        let text = transcript(args, &self.output(args));
        text.replace(&self.path().display().to_string(), "[DIR]").replace(env!("CARGO_PKG_VERSION"), "[VERSION]")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stop_supervisor();
    }
}

const STREAMLIT: &str = "import streamlit as st\n\nst.title(\"hello\")\n";

#[test]
fn help() {
    assert_snapshot!(Place::new().run(&["--help"]));
}

#[test]
fn help_of_every_verb() {
    let place = Place::new();
    let help = String::from_utf8(place.output(&["--help"]).stdout).unwrap();
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let verbs = list.lines().map(|l| l.split_whitespace().next().unwrap()).filter(|verb| *verb != "help");
    let mut all: Vec<String> = verbs.map(|verb| place.run(&[verb, "--help"])).collect();
    let nested = [
        ["audit", "verify"],
        ["policy", "check"],
        ["policy", "diff"],
        ["policy", "explain"],
        ["policy", "prove"],
        ["policy", "test"],
        ["secret", "put"],
        ["secret", "rm"],
    ];
    for verb in nested {
        all.push(place.run(&[verb[0], verb[1], "--help"]));
    }
    assert_snapshot!(all.join("\n\n"));
}

#[test]
fn version() {
    assert_snapshot!(Place::new().run(&["--version"]));
}

#[test]
fn without_a_verb() {
    let output = Place::new().output(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: ringfence <COMMAND>"));
}

#[test]
fn unknown_verb() {
    assert_snapshot!(Place::new().run(&["upp"]));
}

#[test]
fn unknown_option() {
    assert_snapshot!(Place::new().run(&["up", "--force"]));
}

#[test]
fn bad_agent_name() {
    assert_snapshot!(Place::new().run(&["logs", "No Such Name"]));
}

#[test]
fn init_of_a_missing_folder() {
    assert_snapshot!(Place::new().run(&["init", "nowhere"]));
}

#[test]
fn up_of_a_missing_folder() {
    assert_snapshot!(Place::new().run(&["up", "nowhere"]));
}

#[test]
fn up_of_a_file() {
    assert_snapshot!(Place::with(&[("app.py", STREAMLIT)]).run(&["up", "src/app.py"]));
}

#[test]
fn init_of_an_empty_folder() {
    assert_snapshot!(Place::new().run(&["init", "src"]));
}

#[test]
fn init_of_a_folder_without_python() {
    assert_snapshot!(Place::with(&[("notes.txt", "hello\n")]).run(&["init", "src"]));
}

#[test]
fn init_with_two_entry_points() {
    let place = Place::with(&[("people.py", STREAMLIT), ("sales.py", STREAMLIT)]);
    assert_snapshot!(place.run(&["init", "src"]));
}

#[test]
fn init_with_an_entry_that_is_not_there() {
    assert_snapshot!(Place::with(&[("app.py", STREAMLIT)]).run(&["init", "src", "--entry", "other.py"]));
}

#[test]
fn init_writes_a_manifest_once() {
    let place = Place::with(&[("app.py", STREAMLIT), ("requirements.txt", "streamlit\n")]);
    let first = place.run(&["init", "src"]);
    let manifest = std::fs::read_to_string(place.path().join("src/ringfence.toml")).unwrap();
    let again = place.run(&["init", "src"]);
    assert_eq!(std::fs::read_to_string(place.path().join("src/ringfence.toml")).unwrap(), manifest);
    assert_snapshot!(format!("{first}\n\n{again}"));
}

#[test]
fn up_without_a_manifest() {
    assert_snapshot!(Place::with(&[("app.py", STREAMLIT)]).run(&["up", "src"]));
}

#[test]
fn up_with_another_manifest_that_is_not_there() {
    assert_snapshot!(Place::with(&[("app.py", STREAMLIT)]).run(&["up", "src", "--manifest", "other.toml"]));
}

/// `up` of a folder with this after a sound `[agent]`.
fn up_with(rest: &str) -> String {
    let manifest = format!("[agent]\nname = \"a\"\nentry = [\"python3\", \"app.py\"]\n\n{rest}");
    Place::with(&[("app.py", "print()\n"), ("ringfence.toml", &manifest)]).run(&["up", "src"])
}

#[test]
fn up_with_an_unknown_key() {
    assert_snapshot!(up_with("[[grant]]\nhost = \"api.example.com\"\nmethod = [\"GET\"]\n"));
}

#[test]
fn up_with_paths_on_a_passthrough_grant() {
    assert_snapshot!(up_with("[[grant]]\nhost = \"api.example.com\"\ntls = \"passthrough\"\npaths = [\"/v1\"]\n"));
}

#[test]
fn up_with_a_manifest_that_is_no_toml() {
    assert_snapshot!(up_with("[[grant\n"));
}

#[test]
fn up_with_a_credential_that_is_not_declared() {
    assert_snapshot!(up_with("[[grant]]\nhost = \"api.example.com\"\ncredential = \"openai\"\n"));
}

#[test]
fn agents_that_are_not_there() {
    let place = Place::new();
    let verbs: [&[&str]; 9] = [
        &["ps"],
        &["logs", "nobody"],
        &["explain", "1000"],
        &["exec", "nobody", "--", "id"],
        &["stop", "nobody"],
        &["start", "nobody"],
        &["freeze", "nobody"],
        &["resume", "nobody"],
        &["down", "nobody"],
    ];
    let all: Vec<String> = verbs.iter().map(|verb| place.run(verb)).collect();
    assert_snapshot!(all.join("\n\n"));
}

/// Lets a verb start a supervisor, and ends that; both are in the log then.
fn supervise_once(place: &Place) {
    assert_eq!(place.output(&["logs", "nobody"]).status.code(), Some(2));
    place.stop_supervisor();
}

#[test]
fn a_fresh_log_is_whole() {
    let place = Place::new();
    supervise_once(&place);
    let output = place.output(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_log_that_was_touched_ends_with_five() {
    let place = Place::new();
    supervise_once(&place);
    let (log, key) = (place.path().join("s/audit"), place.path().join("s/audit.pub"));
    let verify = ["audit", "verify", "--log", log.to_str().unwrap(), "--key", key.to_str().unwrap()];
    assert_eq!(place.output(&verify).status.code(), Some(0), "{}", place.run(&verify));
    let touched = touch(&log);
    assert!(touched > 0, "there is something to touch");
    assert_eq!(place.output(&verify).status.code(), Some(5), "{}", place.run(&verify));
}

/// Changes one byte in the middle of every file of entries below `folder`; says of how many.
fn touch(folder: &Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            count += touch(&entry.path());
        } else if entry.path().components().any(|c| c.as_os_str() == "entries") {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
                std::fs::write(entry.path(), bytes).unwrap();
                count += 1;
            }
        }
    }
    count
}

#[test]
fn serve_stop_without_a_supervisor() {
    assert_snapshot!(Place::new().run(&["serve", "--stop"]));
}

#[test]
fn state_that_cannot_be_made() {
    let place = Place::new();
    std::fs::write(place.path().join("s"), "a file").unwrap();
    assert_snapshot!(place.run(&["logs", "nobody"]));
}
