//! `ringfence policy`, as somebody who changes a manifest uses it. `prove` needs the solver cvc5.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is test code")]

use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;
use tempfile::TempDir;

const MANIFEST: &str = r#"
[agent]
name = "analyst"
entry = ["python3", "app.py"]

[[grant]]
host = "api.openai.com"
methods = ["POST"]
paths = ["/v1/chat/completions"]
models = ["gpt-4o-mini"]
credential = "openai"

[[grant]]
host = "*.acme.example"
methods = ["GET"]

[credential.openai]
from = "env:OPENAI_API_KEY"
header = "Authorization: Bearer {}"
"#;

const GUARD_RAIL: &str = r#"@id("no-drafts")
forbid (principal, action == Action::"http:request", resource) when { context.path like "/drafts/*" };
"#;

struct Place(TempDir);

impl Place {
    /// A folder with the manifest as it is, and one as it would be.
    fn new(change: impl FnOnce(&str) -> String) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write("ringfence.toml", MANIFEST);
        place.write("new.toml", &change(MANIFEST));
        std::fs::create_dir(place.path().join("rails")).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn run(&self, args: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .arg("policy")
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("RINGFENCE_POLICIES", self.path().join("rails"))
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        format!(
            "$ ringfence policy {}\n{}{}--- exit code {}\n",
            args.join(" "),
            text(&output.stdout),
            text(&output.stderr),
            output.status.code().unwrap()
        )
    }

    fn all(&self, calls: &[&[&str]]) -> String {
        calls.iter().map(|args| self.run(args)).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_policy_is_checked_and_asked() {
    let place = Place::new(str::to_owned);
    place.write("rails/org.cedar", GUARD_RAIL);
    assert_snapshot!(place.all(&[
        &["check"],
        &["check", "ringfence.toml", "--json"],
        &["explain", ".", "GET", "https://api.openai.com/v1/chat/completions"],
        &["explain", ".", "POST https://api.openai.com/v1/chat/completions", "--model", "gpt-4o-mini"],
        &["explain", ".", "GET", "https://files.acme.example/drafts/q3"],
        &["explain", ".", "DNS", "evil.example", "--json"],
        &["explain", ".", "evil.example"],
    ]));
    place.write("rails/org.cedar", "permit (principal, action, resource);");
    assert_snapshot!("a_guard_rail_that_allows", place.run(&["check"]));
    place.write("rails/org.cedar", "forbid (principal, action, resource) when { context.pathh == \"/\" };");
    assert_snapshot!("a_guard_rail_that_speaks_of_nothing", place.run(&["check"]));
}

#[test]
fn cases_pass_or_are_named() {
    let place = Place::new(str::to_owned);
    assert_snapshot!("no_cases", place.run(&["test"]).replace(place.path().to_str().unwrap(), "[DIR]"));
    place.write(
        "ringfence.test.toml",
        r#"
        [[case]]
        name = "the model answers"
        call = "POST https://api.openai.com/v1/chat/completions"
        model = "gpt-4o-mini"
        expect = "allow"
        rule = "grant-1"

        [[case]]
        call = "POST https://api.openai.com/v1/chat/completions"
        model = "gpt-5"
        expect = "deny"
        reason = "model_not_granted"
        "#,
    );
    assert_snapshot!("cases_pass", place.run(&["test"]));
    place.write("bad.toml", "[[case]]\ncall = \"GET https://files.acme.example/\"\nexpect = \"deny\"\n");
    assert_snapshot!(
        "cases_fail",
        place.all(&[&["test", "--cases", "bad.toml"], &["test", "--cases", "bad.toml", "--json"]])
    );
    place.write("empty.toml", "");
    place.write("odd.toml", "[[case]]\ncall = \"GET https://x/\"\nexpects = \"deny\"\n");
    assert_snapshot!(
        "cases_that_are_none",
        place.all(&[&["test", "--cases", "empty.toml"], &["test", "--cases", "odd.toml"]])
    );
}

#[test]
fn a_change_is_shown_by_what_rules_say() {
    let place = Place::new(|old| old.replace("*.acme.example", "files.acme.example"));
    assert_snapshot!(place.all(&[&["diff", ".", "ringfence.toml"], &["diff", ".", "new.toml"]]));
}

#[test]
fn claims_about_every_call_are_proved_or_refuted() {
    let wider = |old: &str| old.replace("/v1/chat/completions", "/v1/*");
    let place = Place::new(wider);
    let first_lines = |text: String| -> String {
        // The solver may give any example, so that only whether it gave one is fixed.
        text.lines()
            .map(|l| if l.starts_with("    the policy allows ") { "    the policy allows [CALL]" } else { l })
            .map(|l| format!("{l}\n"))
            .collect()
    };
    let all = place.all(&[
        &["prove", ".", "--only", "api.openai.com", "--only", "*.acme.example"],
        &["prove", ".", "--only", "api.openai.com"],
        &["prove", ".", "--within", "new.toml"],
        &["prove", "new.toml", "--within", "."],
        &["prove", ".", "--never", "context.method == \"DELETE\"", "--never", "context.method == \"GET\""],
        &["prove", "."],
        &["prove", ".", "--never", "context.methode == \"GET\""],
        &["prove", ".", "--never", "(("],
    ]);
    assert_snapshot!(first_lines(all));
    let example = place.run(&["prove", "new.toml", "--within", ".", "--json"]);
    let call = example.split("\"counterexample\":\"").nth(1).unwrap_or_else(|| panic!("{example}"));
    assert!(call.starts_with("POST https://api.openai.com/v1/") && call.contains("(allow: "), "{call}");
    // A guard-rail takes part in the proof: without it the claim falls.
    let claim = ["prove", ".", "--never", "context.path like \"/drafts/*\""];
    assert!(place.run(&claim).ends_with("exit code 5\n"));
    place.write("rails/org.cedar", GUARD_RAIL);
    assert!(place.run(&claim).ends_with("exit code 0\n"));
}

#[test]
fn a_case_says_what_a_model_is_asked() {
    let place = Place::new(|manifest| manifest.replace("credential = \"openai\"", "[grant.llm]\ntools = [\"search\"]"));
    place.write(
        "ringfence.test.toml",
        r#"
[[case]]
call = "POST https://api.openai.com/v1/chat/completions"
llm = { models = ["gpt-4o-mini"], tools = ["search"] }
model = "gpt-4o-mini"
expect = "allow"

[[case]]
call = "POST https://api.openai.com/v1/chat/completions"
llm = { tools = ["shell"] }
model = "gpt-4o-mini"
expect = "deny"
reason = "llm_not_granted"

[[case]]
call = "POST https://api.openai.com/v1/chat/completions"
llm = { models = ["gpt-4o-mini", "gpt-5"] }
model = "gpt-4o-mini"
expect = "deny"
reason = "model_not_granted"
"#,
    );
    assert_snapshot!(place.run(&["test", "new.toml"]));
}
