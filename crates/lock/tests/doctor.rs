//! Small agents that do not start as they are, and what cures them, with real packages inside a test fence.
//!
//! Needs root, `bwrap` and `uv` (on `PATH`, or named by `RINGFENCE_UV`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "../../image/tests/fence/mod.rs"]
mod fence;

use std::process::Command;

use fence::{Fence, folder};
use ringfence_image::Store;
use ringfence_lock::Uv;
use ringfence_lock::doctor::{Bench, Blocked, Hints, Limits, Outcome, Repair, Verdict, World, search};
use ringfence_lock::history::Past;
use ringfence_model::Manifest;
use ringfence_model::work::Silent;

fn index(uv: &Uv) -> String {
    let output = Command::new(uv.path())
        .args(["pip", "compile", "--quiet", "--no-header", "--emit-index-url", "-"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.lines().find_map(|line| line.strip_prefix("--index-url ")).expect("an index").to_owned()
}

struct Clinic {
    store: Store,
    fence: Fence,
    uv: Uv,
    index: String,
    _home: tempfile::TempDir,
}

impl Clinic {
    fn open() -> Self {
        let home = tempfile::tempdir().unwrap();
        let uv = Uv::find(None).expect("`uv` is on PATH, or RINGFENCE_UV names it");
        let index = index(&uv);
        Self { store: Store::open(home.path()).unwrap(), fence: Fence::default(), uv, index, _home: home }
    }

    fn cure(&self, files: &[(&str, &str)], entry: &str, more: &str) -> Outcome {
        let source = folder(files);
        let text = format!("[agent]\nname = \"patient\"\nentry = {entry}\n{more}");
        let manifest = Manifest::parse(&text, &|_| Err("none".into())).unwrap();
        let bench = Bench {
            store: &self.store,
            folder: source.path(),
            manifest: &manifest,
            keys: &[],
            uv: &self.uv,
            runner: &self.fence,
            progress: &Silent,
        };
        let hints = Hints::look(source.path(), &manifest.dependencies).unwrap();
        let mut past = Past::of(&self.index, &Silent).unwrap();
        let world = World::plain(manifest.dependencies.clone(), manifest.image.clone());
        search(&bench, world, &hints, &mut past, Limits::default()).unwrap()
    }
}

const SCRIPT: &str = "[\"python3\", \"app.py\"]";

fn told(outcome: &Outcome) -> Vec<(Repair, &str)> {
    outcome.world.changes.iter().map(|change| (change.repair, change.what.as_str())).collect()
}

#[test]
fn agents_that_do_not_start_are_cured() {
    let clinic = Clinic::open();
    // It starts: nothing is changed.
    let outcome = clinic.cure(&[("app.py", "import six\n"), ("requirements.txt", "six\n")], SCRIPT, "");
    assert_eq!((outcome.verdict.clone(), told(&outcome)), (Ok(Verdict::Started), vec![]), "{:?}", outcome.attempts);
    assert_eq!(outcome.attempts.len(), 1);

    // It only waits for a key.
    let app = "import os\nos.environ['OPENAI_API_KEY']\n";
    let outcome = clinic.cure(&[("app.py", app), ("requirements.txt", "six\n")], SCRIPT, "");
    assert_eq!(outcome.verdict, Ok(Verdict::Blocked(Blocked::Secret)));

    // It imports what it does not declare.
    let outcome = clinic.cure(&[("app.py", "import yaml\n"), ("requirements.txt", "six\n")], SCRIPT, "");
    assert_eq!(outcome.verdict, Ok(Verdict::Started), "{:?}", outcome.attempts);
    assert_eq!(told(&outcome), [(Repair::UndeclaredImport, "pyyaml")]);
    assert!(outcome.lock.unwrap().packages().iter().any(|package| package.name == "pyyaml"));

    // A library took a name out that another, or the agent, still uses.
    let files = [("app.py", "from werkzeug.urls import url_quote\n"), ("requirements.txt", "werkzeug\n")];
    let outcome = clinic.cure(&files, SCRIPT, "");
    assert_eq!(outcome.verdict, Ok(Verdict::Started), "{:?}", outcome.attempts);
    assert_eq!(told(&outcome), [(Repair::MovedName, "werkzeug<3.0.0")]);
    assert!(outcome.world.changes[0].why.contains("2023-09-30"), "{:?}", outcome.world.changes);

    // Python's packages no longer bring it, and the distribution that has it dropped it as well.
    let outcome = clinic.cure(&[("app.py", "import pkg_resources\n"), ("requirements.txt", "six\n")], SCRIPT, "");
    assert_eq!(outcome.verdict, Ok(Verdict::Started), "{:?}", outcome.attempts);
    let told = told(&outcome);
    assert_eq!(told[0], (Repair::UndeclaredImport, "setuptools"));
    assert!(told[1].0 == Repair::MovedName && told[1].1.starts_with("setuptools<"), "{told:?}");

    // A distribution that exists nowhere, and pins that fight.
    let lines = "six\nringfence-no-such-distribution-9f3a\n";
    let outcome = clinic.cure(&[("app.py", "import six\n"), ("requirements.txt", lines)], SCRIPT, "");
    assert_eq!(outcome.verdict, Ok(Verdict::Started), "{:?}", outcome.attempts);
    assert_eq!(outcome.world.changes[0].repair, Repair::LeftOut);
    let lines = "flask==2.0.0\nwerkzeug==0.16.0\n";
    let outcome = clinic.cure(&[("app.py", "import flask\n"), ("requirements.txt", lines)], SCRIPT, "");
    assert!(outcome.starts(), "{:?}", outcome.attempts);
    assert!(outcome.world.changes.iter().any(|change| change.repair == Repair::PinConflict));
}

#[test]
fn what_no_world_cures_is_named() {
    let clinic = Clinic::open();
    let outcome =
        clinic.cure(&[("app.py", "import surely_nobody_s_module\n"), ("requirements.txt", "six\n")], SCRIPT, "");
    assert!(!outcome.starts() && told(&outcome).is_empty(), "{:?}", outcome.attempts);
    let outcome = clinic.cure(&[("app.py", "x = undefined\n"), ("requirements.txt", "six\n")], SCRIPT, "");
    assert!(matches!(&outcome.verdict, Ok(Verdict::Broken(_))), "{:?}", outcome.attempts);
    let outcome = clinic.cure(&[("app.py", "import autogen\n"), ("requirements.txt", "six\n")], SCRIPT, "");
    assert!(outcome.questions.iter().any(|question| question.module == "autogen" && question.candidates.len() > 1));
}
