//! Small agents that do not start as they are, and what cures them, with real packages inside a test fence.
//!
//! Needs root, `bwrap` and `uv` (on `PATH`, or named by `RINGFENCE_UV`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "../../image/tests/fence/mod.rs"]
mod fence;

use fence::{Fence, folder};
use ringfence_image::Store;
use ringfence_lock::doctor::{Limits, Settled, settle};
use ringfence_lock::{Lock, LockError, LockInput, Upgrade, Uv};
use ringfence_model::Manifest;
use ringfence_model::diagnosis::{Health, Repair};
use ringfence_model::work::Silent;

struct Clinic {
    store: Store,
    fence: Fence,
    uv: Uv,
    _home: tempfile::TempDir,
}

impl Clinic {
    fn open() -> Self {
        let home = tempfile::tempdir().unwrap();
        let uv = Uv::find(None).expect("`uv` is on PATH, or RINGFENCE_UV names it");
        Self { store: Store::open(home.path()).unwrap(), fence: Fence::default(), uv, _home: home }
    }

    fn settle(&self, source: &std::path::Path, more: &str, upgrade: Upgrade<'_>) -> Result<Settled, LockError> {
        let text = format!("[agent]\nname = \"patient\"\nentry = [\"python3\", \"app.py\"]\n{more}");
        let manifest = Manifest::parse(&text, &|_| Err("none".into())).unwrap();
        let input = LockInput { folder: source, manifest: &manifest, uv: &self.uv, upgrade, as_of: None };
        settle(&self.store, &input, Limits::default(), &self.fence, &Silent)
    }

    fn cure(&self, app: &str, requirements: &str) -> Settled {
        let source = folder(&[("app.py", app), ("requirements.txt", requirements)]);
        self.settle(source.path(), "", Upgrade::Nothing).unwrap()
    }
}

fn told(settled: &Settled) -> Vec<(Repair, &str)> {
    settled.diagnosis.changes.iter().map(|change| (change.repair, change.what.as_str())).collect()
}

fn has(lock: &Lock, name: &str) -> bool {
    lock.packages().iter().any(|package| package.name == name)
}

#[test]
fn agents_that_do_not_start_are_cured() {
    let clinic = Clinic::open();
    // It starts: nothing is changed.
    let settled = clinic.cure("import six\n", "six\n");
    assert_eq!((settled.diagnosis.health, told(&settled)), (Health::Starts, vec![]), "{:?}", settled.diagnosis);
    assert_eq!(settled.diagnosis.tries.len(), 1);

    // It only waits for a key.
    let settled = clinic.cure("import sys\nsys.exit('OPENAI_API_KEY is not set')\n", "six\n");
    assert_eq!(settled.diagnosis.health, Health::Waits);
    assert!(settled.diagnosis.why.as_deref().is_some_and(|why| why.contains("key")), "{:?}", settled.diagnosis);

    // It imports what it does not declare.
    let settled = clinic.cure("import yaml\n", "six\n");
    assert_eq!(told(&settled), [(Repair::UndeclaredImport, "pyyaml")]);
    assert!(has(&settled.lock, "pyyaml"));

    // A library took a name out that another, or the agent, still uses.
    let settled = clinic.cure("from werkzeug.urls import url_quote\n", "werkzeug\n");
    assert_eq!(told(&settled), [(Repair::MovedName, "werkzeug<3.0.0")]);
    assert!(settled.diagnosis.changes[0].why.contains("2023-09-30"), "{:?}", settled.diagnosis);
    assert!(settled.diagnosis.wrong[0].contains("werkzeug.urls.url_quote"), "{:?}", settled.diagnosis);

    // Python's packages no longer bring it, and the distribution that has it dropped it as well.
    let settled = clinic.cure("import pkg_resources\n", "six\n");
    let told_ = told(&settled);
    assert_eq!(told_[0], (Repair::UndeclaredImport, "setuptools"));
    assert!(told_[1].0 == Repair::MovedName && told_[1].1.starts_with("setuptools<"), "{told_:?}");

    // A distribution that exists nowhere, pins that fight, and a repository.
    let settled = clinic.cure("import six\n", "six\nringfence-no-such-distribution-9f3a\n");
    assert_eq!(settled.diagnosis.changes[0].repair, Repair::LeftOut);
    let settled = clinic.cure("import flask\n", "flask==2.0.0\nwerkzeug==0.16.0\n");
    assert!(settled.diagnosis.changes.iter().any(|change| change.repair == Repair::PinConflict));
    let settled = clinic.cure("import six\n", "git+https://github.example/benjaminp/six.git\n");
    assert_eq!(told(&settled), [(Repair::Released, "six")]);
    assert!(has(&settled.lock, "six"));
}

#[test]
fn what_was_found_is_in_the_lock_and_stands() {
    let clinic = Clinic::open();
    let source = folder(&[("app.py", "import yaml\n"), ("requirements.txt", "six==1.16.0\n")]);
    let settled = clinic.settle(source.path(), "", Upgrade::Nothing).unwrap();
    assert_eq!(told(&settled), [(Repair::UndeclaredImport, "pyyaml")]);
    // The lock that is there is taken as it is, and says why it is as it is.
    let again = clinic.settle(source.path(), "", Upgrade::Nothing).unwrap();
    assert_eq!((&again.lock, told(&again)), (&settled.lock, told(&settled)));
    assert!(again.diagnosis.tries.is_empty());
    // What was found is tried first when something else changes.
    std::fs::write(source.path().join("requirements.txt"), "six==1.16.0\nidna\n").unwrap();
    let more = clinic.settle(source.path(), "", Upgrade::Nothing).unwrap();
    assert_eq!(more.diagnosis.tries.len(), 1, "{:?}", more.diagnosis);
    assert!(has(&more.lock, "idna") && has(&more.lock, "pyyaml"));
    // Nobody is cured who does not want it.
    let off = clinic.settle(source.path(), "[dependencies]\ncure = false\n", Upgrade::Nothing).unwrap();
    assert!(!has(&off.lock, "pyyaml") && off.diagnosis.tries.is_empty());
}

#[test]
fn what_no_world_cures_is_named() {
    let clinic = Clinic::open();
    let fail = |app: &str| {
        let source = folder(&[("app.py", app), ("requirements.txt", "six\n")]);
        let error = clinic.settle(source.path(), "", Upgrade::Nothing).err().expect("no world cures it");
        assert!(!source.path().join("pylock.toml").exists(), "nothing half-made");
        error
    };
    let error = fail("import surely_nobody_s_module\n");
    let LockError::Unstartable { why, .. } = error else { panic!("another error") };
    assert!(why.0.contains("imports `surely_nobody_s_module`"), "{why:?}");
    let LockError::Unstartable { found, .. } = fail("import autogen\n") else { panic!("another error") };
    assert!(found.questions.iter().any(|question| question.module == "autogen" && question.candidates.len() > 1));
    // Its own fault is no reason not to start it as it is.
    let settled = clinic.cure("x = undefined\n", "six\n");
    assert_eq!((settled.diagnosis.health, told(&settled)), (Health::Broken, vec![]), "{:?}", settled.diagnosis);
    assert!(settled.diagnosis.why.is_some_and(|why| why.contains("undefined")));
}
