//! Small agents that do not start as they are, and what cures them, with real packages inside a test fence.
//!
//! Needs root, `bwrap` and `uv` (on `PATH`, or named by `RINGFENCE_UV`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "../../image/tests/fence/mod.rs"]
mod fence;

use std::path::Path;

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

    fn settle(&self, source: &Path, more: &str, upgrade: Upgrade<'_>) -> Result<Settled, LockError> {
        self.start(source, PLAIN, more, upgrade)
    }

    fn start(&self, source: &Path, entry: &str, more: &str, upgrade: Upgrade<'_>) -> Result<Settled, LockError> {
        let kind = if entry == PLAIN { "" } else { "kind = \"asgi\"\n" };
        let text = format!("[agent]\nname = \"patient\"\n{kind}entry = {entry}\n{more}");
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

/// Settles the app of `tests/apps` that needs a repair, and gives the changes that were made.
fn cured(clinic: &Clinic, app: &str, entry: &str) -> Settled {
    let source = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps").join(app)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), source.path().join(file.file_name())).unwrap();
    }
    let settled = clinic.start(source.path(), entry, "", Upgrade::Nothing);
    settled.unwrap_or_else(|error| panic!("{app}: {}", ringfence_model::Report::from(error)))
}

/// What is changed for an app: each change by its repair and how what is said begins.
fn is_cured(clinic: &Clinic, app: &str, entry: &str, health: Health, changes: &[(Repair, &str)]) {
    let settled = cured(clinic, app, entry);
    let found = &settled.diagnosis;
    assert_eq!(found.health, health, "{app}: {found:?}");
    assert_eq!(found.changes.len(), changes.len(), "{app}: {found:?}");
    for (change, (repair, what)) in found.changes.iter().zip(changes) {
        assert!(change.repair == *repair && change.what.starts_with(what), "{app}: {found:?}");
        assert!(!change.why.is_empty() && !found.wrong.is_empty(), "{app}: {found:?}");
    }
}

const PLAIN: &str = r#"["python3", "app.py"]"#;

#[test]
fn what_is_not_declared_is_added() {
    let clinic = Clinic::open();
    is_cured(&clinic, "healthy", PLAIN, Health::Starts, &[]);
    is_cured(&clinic, "undeclared-import", PLAIN, Health::Starts, &[(Repair::UndeclaredImport, "pyyaml")]);
    let launched = r#"["uvicorn", "app:app", "--port", "8000"]"#;
    is_cured(&clinic, "launcher", launched, Health::Starts, &[(Repair::Launcher, "uvicorn")]);
    is_cured(&clinic, "optional-dependency", PLAIN, Health::Starts, &[(Repair::OptionalDependency, "httpx[http2]")]);
    // Python's packages no longer bring it, and the distribution that has it dropped it as well.
    let settled = clinic.cure("import pkg_resources\n", "six\n");
    let told_ = told(&settled);
    assert_eq!(told_[0], (Repair::UndeclaredImport, "setuptools"));
    assert!(told_[1].0 == Repair::MovedName && told_[1].1.starts_with("setuptools>="), "{told_:?}");
    // It only waits for a key.
    let settled = clinic.cure("import sys\nsys.exit('OPENAI_API_KEY is not set')\n", "six\n");
    assert_eq!(settled.diagnosis.health, Health::Waits);
    assert!(settled.diagnosis.why.as_deref().is_some_and(|why| why.contains("key")), "{:?}", settled.diagnosis);
}

#[test]
fn what_drifted_is_held() {
    let clinic = Clinic::open();
    is_cured(&clinic, "moved-name", PLAIN, Health::Starts, &[(Repair::MovedName, "werkzeug>=2.3,<3.0.0")]);
    is_cured(&clinic, "binary-fit", PLAIN, Health::Starts, &[(Repair::BinaryFit, "numpy<2")]);
    is_cured(&clinic, "changed-call", PLAIN, Health::Starts, &[(Repair::ChangedCall, "httpx<0.28")]);
    is_cured(&clinic, "other-lock", PLAIN, Health::Starts, &[(Repair::OtherLock, "Pipfile.lock")]);
    is_cured(&clinic, "date", PLAIN, Health::Starts, &[(Repair::Date, "2020-01-1")]);
}

#[test]
fn what_cannot_be_resolved_is_loosened() {
    let clinic = Clinic::open();
    let settled = cured(&clinic, "pin-conflict", PLAIN);
    assert!(told(&settled).iter().any(|(repair, _)| *repair == Repair::PinConflict), "{:?}", settled.diagnosis);
    let nowhere = "ringfence-no-such-distribution-9f3a";
    is_cured(&clinic, "left-out", PLAIN, Health::Starts, &[(Repair::LeftOut, nowhere)]);
    let settled = clinic.cure("import six\n", "Package Version\n-------\nsix=1.16.0=py_0\nidna @ file:///tmp/idna\n");
    let wrong = &settled.diagnosis.wrong;
    assert!(wrong.len() == 3 && wrong[1].starts_with("requirements.txt:3: `six=1.16.0=py_0`"), "{wrong:?}");
    assert!(settled.lock.packages().iter().any(|p| p.name == "six" && p.version.as_deref() == Some("1.16.0")));
    is_cured(&clinic, "released", PLAIN, Health::Starts, &[(Repair::Released, "six")]);
}

#[test]
fn what_does_not_build_is_built_or_stood_in_for() {
    let clinic = Clinic::open();
    is_cured(&clinic, "wheel", PLAIN, Health::Starts, &[(Repair::Wheel, "pyyaml==6")]);
    is_cured(&clinic, "python", PLAIN, Health::Starts, &[(Repair::Python, "3.1")]);
    let tools = [(Repair::BuildTool, "libpq-dev"), (Repair::SystemLibrary, "libpq5")];
    is_cured(&clinic, "build-tool", PLAIN, Health::Waits, &tools);
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
