//! What every verb prints about an agent that is up: the real binary's output, whole, as snapshots. Needs root.
//!
//! A new output is a diff to read: `INSTA_UPDATE=always cargo test -p ringfence --test outputs`, then `git diff`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod support;

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use insta::assert_snapshot;
use regex::Regex;
use serde_json::Value;
use support::{Host, free_port, transcript, wait_until};

/// What differs from run to run, and what stands for it.
const DIFFERS: [(&str, &str); 21] = [
    (r"\bsb-[0-9a-f]{27}\b", "[SANDBOX]"),
    (r"\bc-[0-9a-f]{27}\b", "[CALL]"),
    (r"sha256:[0-9a-f]{64}", "[DIGEST]"),
    (r"\b[0-9a-f]{64}\b", "[HASH]"),
    (r"(ringfence\.dev/audit)\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+", "$1+[KEY]"),
    (r"(ringfence\.dev/audit) [A-Za-z0-9+/=]{80,}", "$1 [SIGNATURE]"),
    (r"\\n\d+\\n[A-Za-z0-9+/=]{44}\\n", r"\n[N]\n[ROOT]\n"),
    (r"\btoken=[A-Za-z0-9_-]{32}", "token=[TOKEN]"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[TIME]"),
    (r"\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d", "[TIME]"),
    (r"\d{4}-\d\d-\d\d, UTC", "[DAY], UTC"),
    (r"\b\d\d:\d\d:\d\d\.\d{3}\b", "[CLOCK]"),
    // These stand in columns, which move with them.
    (r"STARTED +( .*\n.*) \d+ (s|min) ago +", "STARTED $1 N s ago  "),
    (r"MEMORY +( .*\n.*) \d+(\.\d)?MiB +", "MEMORY  $1 NN.NMiB  "),
    (r"\b\d+\.\d ms\b", "[N] ms"),
    (r#""(\w+_pid|memory_bytes|seq|index|duration_us|size)":\d+"#, r#""$1":[N]"#),
    (r"\b(entry|entries 0 to|whole:) \d+", "$1 [N]"),
    (r"(?m)^(\$ ringfence explain) \d+", "$1 [N]"),
    (r"(?m)^ {0,5}\d+(  \[CLOCK\])", "     N$1"),
    (r"(?m)^.*agent_unreachable.*\n", ""),
    (r"\[::1\]:\d+", "[::1]:[PORT]"),
];

/// A host of its own, and what verbs print there.
struct Shown {
    host: Host,
    port: u16,
}

impl Shown {
    fn new() -> Self {
        Self { host: Host::new(), port: free_port() }
    }

    /// Runs a verb in the folder of the host; gives its line, exit code, and both streams, without what differs.
    fn run(&self, args: &[&str]) -> String {
        self.settled(&transcript(args, &self.host.command(args).current_dir(self.host.dir.path()).output().unwrap()))
    }

    fn all(&self, verbs: &[&[&str]]) -> String {
        verbs.iter().map(|verb| self.run(verb)).collect::<Vec<_>>().join("\n\n")
    }

    fn settled(&self, text: &str) -> String {
        let text = text.replace(self.host.dir.path().to_str().unwrap(), "[DIR]");
        let text = text.replace(self.host.run.to_str().unwrap(), "[RUN]");
        let port = Regex::new(&format!(r"\b{}\b", self.port)).unwrap();
        let text = port.replace_all(&text, "[PORT]").into_owned();
        DIFFERS.iter().fold(text, |text, (what, with)| Regex::new(what).unwrap().replace_all(&text, *with).into_owned())
    }

    /// The number of the first entry in which all of these stand.
    fn entry(&self, parts: &[&str]) -> String {
        let log = self.host.ok(&["audit", "--json"]);
        let line =
            log.lines().find(|l| parts.iter().all(|p| l.contains(p))).unwrap_or_else(|| panic!("{parts:?}: {log}"));
        serde_json::from_str::<Value>(line).unwrap()["index"].to_string()
    }
}

/// The entries of an `audit` as a set: which there are and how each looks, but not how often and in which order, which
/// is up to how soon the agent answered and whose spool was read first.
fn each_once(transcript: &str) -> String {
    let is_entry = |line: &&str| line.starts_with(' ');
    let before = transcript.lines().take_while(|line| !is_entry(line));
    let entries: BTreeSet<&str> = transcript.lines().filter(is_entry).collect();
    let after = transcript.lines().skip_while(|line| !is_entry(line)).filter(|line| !is_entry(line));
    before.chain(entries).chain(after).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_each_verb_prints_in_the_life_of_an_agent() {
    let shown = Shown::new();
    let host = &shown.host;
    let port = shown.port.to_string();
    host.copy("tests/scenarios/foreign/fieldnotes", "notes");

    assert_snapshot!("init", shown.run(&["init", "notes", "--port", &port]));
    assert_snapshot!(
        "init_json",
        shown.run(&["init", "notes", "--port", &port, "--name", "notes", "--force", "--json"])
    );
    // The first build may have much to say on a terminal; here nobody looks.
    assert_snapshot!("build", shown.all(&[&["build", "notes"], &["build", "notes", "--json"]]));
    assert_snapshot!("up", shown.run(&["up", "notes"]));
    assert_snapshot!("up_again", shown.run(&["up", "notes"]));
    assert_snapshot!("ps", shown.all(&[&["ps"], &["ps", "--json"]]));
    assert_snapshot!("logs", shown.all(&[&["logs", "notes"], &["logs", "notes", "--tail", "2", "--json"]]));

    let call = "import urllib.request as u\ntry: u.urlopen('http://203.0.113.9/x')\nexcept Exception as e: print(e)";
    let fails = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)";
    assert_snapshot!(
        "exec",
        shown.all(&[
            &["exec", "notes", "--", "python3", "-c", call],
            &["exec", "notes", "--", "python3", "-c", fails],
            &["exec", "notes", "--", "no-such-program"],
        ])
    );
    let denied = shown.entry(&["call.intent", "203.0.113.9"]);
    assert_snapshot!("explain_denied", shown.all(&[&["explain", &denied], &["explain", &denied, "--json"]]));
    let answered: Value = host
        .ok(&["audit", "--json"])
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .find(|e| e["kind"] == "call.outcome" && e["status"] == 200 && e["agent"] == "notes")
        .unwrap();
    let allowed = shown.entry(&["call.intent", answered["call"].as_str().unwrap()]);
    assert_snapshot!("explain_allowed", shown.all(&[&["explain", &allowed], &["explain", &allowed, "--json"]]));
    let others = [
        shown.entry(&["dns.query", "ringfence-probe.example"]),
        shown.entry(&["udp.drop"]),
        shown.entry(&["\"kind\":\"probe\"", "chroot"]),
        shown.entry(&["\"kind\":\"operator\"", "\"up\"", "begun"]),
        shown.entry(&["\"kind\":\"operator\"", "\"up\"", "agent.exists"]),
        shown.entry(&["\"kind\":\"sandbox\"", "\"exec\"", "\"notes\""]),
        "999999".to_owned(),
    ];
    let explained: Vec<String> = others.iter().map(|n| shown.run(&["explain", n])).collect();
    assert_snapshot!("explain_others", explained.join("\n\n"));

    assert_snapshot!(
        "freeze_and_resume",
        shown.all(&[
            &["freeze", "notes"],
            &["freeze", "notes"],
            &["exec", "notes", "--", "python3", "--version"],
            &["ps"],
            &["resume", "notes"],
            &["resume", "notes"],
            &["freeze", "notes", "--json"],
            &["resume", "notes", "--json"],
        ])
    );
    assert_snapshot!(
        "stop",
        shown.all(&[
            &["stop", "notes", "--grace", "0"],
            &["stop", "notes"],
            &["ps"],
            &["logs", "notes", "--tail", "1", "--follow"],
            &["freeze", "notes"],
            &["exec", "notes", "--", "python3", "--version"],
        ])
    );
    assert_snapshot!("start", shown.all(&[&["start", "notes"], &["start", "notes"]]));
    assert_snapshot!("stop_json", shown.run(&["stop", "notes", "--grace", "0", "--json"]));
    let mut up = host.json(&["up", host.dir.path().join("notes").to_str().unwrap()]);
    for took in up["took_ms"].as_object_mut().unwrap().values_mut() {
        *took = took.is_u64().into();
    }
    for probe in up["probes"].as_array_mut().unwrap() {
        assert!(!probe["detail"].as_str().unwrap().is_empty());
        *probe = format!("{} held: {}", probe["barrier"].as_str().unwrap(), probe["held"]).into();
    }
    assert_snapshot!("up_json", shown.settled(&serde_json::to_string_pretty(&up).unwrap()));

    assert_snapshot!("audit", each_once(&shown.run(&["audit", "notes"])));
    assert_snapshot!("audit_nobody", shown.all(&[&["audit", "nobody"], &["audit", "nobody", "--json"]]));
    assert_snapshot!("audit_verify", shown.all(&[&["audit", "verify"], &["audit", "verify", "--json"]]));

    assert_snapshot!("serve_stop", shown.all(&[&["serve", "--stop"], &["serve", "--stop"]]));
    host.ok(&["stop", "notes", "--grace", "0"]);
    assert_snapshot!(
        "down",
        shown.all(&[&["down", "notes"], &["down", "notes"], &["down", "--all"], &["down", "--all", "--json"], &["ps"]])
    );
}

/// An agent without pages, which gave up a barrier and then failed.
#[test]
fn what_is_printed_about_an_agent_that_failed() {
    let shown = Shown::new();
    let folder = shown.host.dir.path().join("brief");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("main.py"), "import sys, time\nprint('hello')\ntime.sleep(1)\nsys.exit(3)\n").unwrap();
    let init = shown.run(&["init", "brief"]);
    let manifest = folder.join("ringfence.toml");
    let text = std::fs::read_to_string(&manifest).unwrap() + "\n[danger]\nwithout = [\"seccomp\"]\n";
    std::fs::write(&manifest, text).unwrap();
    // What falls with the filter is up to the kernel; this falls everywhere.
    let up = shown.run(&["up", "brief"]);
    let up = Regex::new(r"\d+ of \d+ held").unwrap().replace(&up, "[N] of [N] held").into_owned();
    let up: Vec<&str> = up.lines().filter(|l| !l.contains("  ✗") || l.contains("✗ ptrace")).collect();
    let up = up.join("\n");
    wait_until("it failed", || shown.host.agent("brief").unwrap()["state"] == "failed");
    assert_snapshot!([init, up, shown.all(&[&["ps"], &["logs", "brief"], &["down", "--all"]])].join("\n\n"));
}

/// What `init` says about folders that declare or need more.
#[test]
fn what_is_seen_in_other_folders() {
    let shown = Shown::new();
    for (folder, name) in [
        ("examples/analyst", "analyst"),
        ("tests/scenarios/foreign/linkbox", "linkbox"),
        ("tests/scenarios/foreign/poster", "poster"),
        ("tests/scenarios/foreign/trails", "trails"),
    ] {
        shown.host.copy(folder, name);
    }
    assert_snapshot!(shown.all(&[
        &["init", "analyst"],
        &["init", "linkbox"],
        &["init", "poster", "--name", "gallery", "--port", "9000"],
        &["init", "trails"],
    ]));
}

#[test]
fn secrets() {
    let shown = Shown::new();
    let put = |args: &[&str], input: &[u8]| {
        use std::io::Write;
        let mut child = shown
            .host
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        shown.settled(&transcript(args, &child.wait_with_output().unwrap()))
    };
    let said = [
        put(&["secret", "put", "openai"], b"sk-much-too-secret\n"),
        put(&["secret", "put", "openai"], b""),
        put(&["secret", "put", "openai"], b"two\nlines\n"),
        put(&["secret", "put", "not a name"], b"sk-much-too-secret"),
        shown.run(&["secret", "rm", "openai"]),
        shown.run(&["secret", "rm", "openai"]),
        each_once(&shown.run(&["audit"])),
    ]
    .join("\n\n");
    assert!(!said.contains("too-secret"), "{said}");
    assert_snapshot!(said);
}

/// Every row but what was found in it, which is up to the host; the last two rows say nothing about the fence.
#[test]
fn host() {
    let shown = Shown::new();
    let text = shown.run(&["host"]);
    let text = Regex::new(r"(?m)^[✓-](  (runc|kvm) )").unwrap().replace_all(&text, "?$1");
    let text = Regex::new(r"(?m)^  (runc|kvm): .*\n").unwrap().replace_all(&text, "");
    let table = text.lines().find(|l| l.ends_with("FOUND")).expect("a header");
    let found = table.chars().count() - "FOUND".len();
    let cut = |line: &str| match line.starts_with(['✓', '✗', '?']) {
        true => line.chars().take(found).chain("[FOUND]".chars()).collect(),
        false => line.to_owned(),
    };
    assert_snapshot!(text.lines().map(cut).collect::<Vec<String>>().join("\n"));
    let checks = shown.host.json(&["host"]);
    for check in checks.as_array().unwrap() {
        assert!(check["there"] == true || check["needed"] == false, "{check}");
        for text in ["mechanism", "purpose", "found", "remedy"] {
            assert!(!check[text].as_str().unwrap().is_empty(), "{check}");
        }
    }
}

/// A supervisor in the foreground says where it is, refuses a second one, and ends when it is told to.
#[test]
fn serve() {
    let shown = Shown::new();
    let first = shown.host.command(&["serve"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("it listens", || shown.host.run.join("supervisor.sock").exists());
    let second = shown.run(&["serve"]);
    let stop = shown.run(&["serve", "--stop"]);
    let first = shown.settled(&transcript(&["serve"], &first.wait_with_output().unwrap()));
    assert_snapshot!([first, second, stop].join("\n\n"));
}

/// What bash offers once it has read the script.
#[test]
fn completions_for_bash_complete() {
    let shown = Shown::new();
    let folder = shown.host.dir.path();
    std::fs::write(folder.join("script"), shown.host.ok(&["completions", "bash"])).unwrap();
    let offered = |words: &str| {
        let script = format!(
            "source ./script; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _ringfence ringfence \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo ${{COMPREPLY[@]}}"
        );
        let output = Command::new("bash").args(["-c", &script]).current_dir(folder).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(offered("ringfence ex"), "export explain exec");
    assert_eq!(offered("ringfence audit ver"), "verify");
    assert_eq!(offered("ringfence up --re"), "--replace");
    assert_eq!(offered("ringfence secret p"), "put");
}

/// The scripts of the shells that need not be here name every verb, and begin as that shell wants it.
#[test]
fn completions_know_every_verb() {
    let shown = Shown::new();
    let help = shown.host.ok(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let verbs: Vec<&str> = list.lines().map(|l| l.split_whitespace().next().unwrap()).collect();
    assert!(verbs.len() > 15, "{verbs:?}");
    for (shell, first, offers) in [
        ("bash", "_ringfence() {", "ringfence,VERB)"),
        ("fish", "# Print an optspec for argparse", "-a \"VERB\""),
        ("zsh", "#compdef ringfence", "'VERB:"),
    ] {
        let script = shown.host.ok(&["completions", shell]);
        assert!(script.starts_with(first), "{shell}: {}", script.lines().next().unwrap());
        for verb in &verbs {
            assert!(script.contains(&offers.replace("VERB", verb)), "{shell} does not offer `{verb}`");
        }
    }
}
