//! Trying a world: resolved, installed, and the agent started in it, inside the fence and without a network.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_image::{
    BasePlan, Layer, Sought, Store, TREE, VENV, build_app, build_base, environment, open_to_jobs, package_of,
    plan_base, plan_tools,
};
use ringfence_model::manifest::Kind;
use ringfence_model::work::{Job, JobMount, Progress, Runner};
use ringfence_model::{Bytes, Manifest};
use serde::Serialize;
use tempfile::TempDir;

use super::report::{MAX_REPORT, Probed};
use super::world::World;
use crate::error::{LockError, OnPath};
use crate::infer;
use crate::install::{InstallInput, try_out};
use crate::lockfile::Lock;
use crate::resolve::{Inputs, Resolver, Upgrade};
use crate::uv::Uv;

const PROBE: &str = include_str!("../../data/probe.py");

/// Where the probe finds itself and what is asked of it, and where it reports.
const INPUT: &str = "/opt/probe";
const OUTPUT: &str = "/out";

/// What stands for keys that nobody gave.
const NO_KEY: &str = "sk-no-key-00000000000000000000000000000000000000";

/// How long an agent may take to start.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a program must live to count as started.
const SETTLE: Duration = Duration::from_secs(8);

/// What trying needs.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    /// The store.
    pub store: &'a Store,
    /// The agent's folder.
    pub folder: &'a Path,
    /// Its manifest.
    pub manifest: &'a Manifest,
    /// Variables that its source reads as keys.
    pub keys: &'a [String],
    /// What its locks are made from.
    pub(crate) inputs: Inputs,
    /// The resolver.
    pub uv: &'a Uv,
    /// The fence.
    pub runner: &'a dyn Runner,
    /// Somebody who wants to know.
    pub progress: &'a dyn Progress,
}

/// A world that could be installed.
pub struct Tried {
    /// What was resolved.
    pub lock: Lock,
    /// What happened.
    pub probed: Probed,
    /// What is installed: distributions by the first parts of the paths that they own.
    pub owners: BTreeMap<String, String>,
    /// Where it is installed.
    pub(crate) stage: TempDir,
    /// What it stands on.
    pub(crate) base: Vec<Layer>,
}

/// The lock that is there, and how much of it may change.
pub type Before<'a> = (Option<&'a Lock>, Upgrade<'a>);

#[derive(Serialize)]
struct Request<'a> {
    kind: &'a str,
    mode: &'a str,
    argv: &'a [String],
    modules: &'a [String],
    env: BTreeMap<String, String>,
    port: Option<u16>,
    patience: u64,
    settle: u64,
}

impl Bench<'_> {
    /// The resolver, as it stands here.
    pub(crate) const fn resolver(&self) -> Resolver<'_> {
        Resolver {
            store: self.store,
            uv: self.uv,
            manifest: self.manifest,
            runner: self.runner,
            progress: self.progress,
        }
    }

    /// Tries a world.
    ///
    /// # Errors
    /// [`LockError`] if it cannot be resolved or installed.
    pub fn try_world(&self, world: &World, modules: &[String], before: Before<'_>) -> Result<Tried, LockError> {
        let manifest =
            Manifest { dependencies: world.dependencies.clone(), image: world.image.clone(), ..self.manifest.clone() };
        let declared = infer::requirements(self.folder, &world.dependencies)?;
        let kept = before.0.map(Lock::base).filter(|_| world.image == self.manifest.image && before.1.is_nothing());
        let mut plan = match kept {
            Some(plan) => BasePlan { tools: Vec::new(), ..plan.clone() },
            None => plan_base(self.store, &world.image, self.progress)?,
        };
        if !world.tools.is_empty() {
            plan = plan_tools(self.store, &plan, &world.tools, self.progress)?;
        }
        let base = build_base(self.store, &plan, self.runner, self.progress)?;
        let lock = self.resolver().make(&declared, &world.dependencies, &plan, &base, before, self.inputs)?;
        let input = InstallInput { agent: &manifest.name, lock: &lock, base: &base, uv: self.uv };
        let stage = try_out(self.store, &input, self.runner, self.progress)?;
        let tree = stage.path().join(TREE);
        let app = build_app(self.store, self.folder, self.progress)?;
        let mut layers: Vec<PathBuf> =
            base.iter().chain([&app]).map(|l: &Layer| self.store.layer_dir(&l.diff_id)).collect();
        layers.push(tree.clone());
        let owners = owners(&tree, &lock.base().python);
        let mut probed = self.probe(&manifest, &layers, "start", &[])?;
        if !probed.errors.is_empty() && !modules.is_empty() {
            // All that is missing at once, not one thing a try.
            probed.imports = self.probe(&manifest, &layers, "imports", modules)?.imports;
        }
        Ok(Tried { lock, probed, owners, stage, base })
    }

    /// Debian's package of a file, for the suite of a world; an unreachable mirror knows none.
    pub(crate) fn package_of(&self, world: &World, sought: Sought<'_>) -> Option<String> {
        package_of(self.store, &world.image, sought, self.progress).ok().flatten()
    }

    fn probe(
        &self,
        manifest: &Manifest,
        layers: &[PathBuf],
        mode: &str,
        modules: &[String],
    ) -> Result<Probed, LockError> {
        let stage = self.store.stage("probe")?;
        let (input, output) = (stage.path().join("in"), stage.path().join("out"));
        for folder in [&input, &output] {
            fs::create_dir(folder).on("make folder", folder)?;
        }
        let mut env = environment(manifest);
        env.insert("HOME".into(), "/tmp".into());
        env.extend(self.keys.iter().map(|name| (name.clone(), NO_KEY.to_owned())));
        env.extend(manifest.env.clone());
        let request = Request {
            kind: kind(manifest.kind),
            mode,
            argv: &manifest.entry,
            modules,
            env: env.clone(),
            port: None,
            patience: PATIENCE.as_secs(),
            settle: SETTLE.as_secs(),
        };
        let text = serde_json::to_vec(&request).unwrap_or_default();
        for (name, bytes) in [("probe.py", PROBE.as_bytes()), ("request.json", &text)] {
            let path = input.join(name);
            fs::write(&path, bytes).on("write", &path)?;
        }
        open_to_jobs(&input)?;
        let python = format!("{VENV}/bin/python3");
        let script = format!("{INPUT}/probe.py");
        let (asked, said) = (format!("{INPUT}/request.json"), format!("{OUTPUT}/report.json"));
        let argv = [python.as_str(), "-I", "-S", "-B", &script, &asked, &said];
        let mount =
            |source: &Path, target: &str, writable| JobMount { source: source.into(), target: target.into(), writable };
        let job = Job {
            purpose: "start".into(),
            layers: layers.to_vec(),
            mounts: vec![mount(&input, INPUT, false), mount(&output, OUTPUT, true)],
            argv: argv.map(str::to_owned).to_vec(),
            env,
            cwd: "/app".into(),
            hosts: Vec::new(),
            memory: Bytes::gib(3),
            timeout: PATIENCE + Duration::from_secs(30),
        };
        let done = self.runner.run(&job).map_err(|report| LockError::job("start", report))?;
        let path = output.join("report.json");
        let length = fs::metadata(&path).map(|meta| meta.len()).unwrap_or_default();
        if length > MAX_REPORT as u64 {
            return Ok(Probed { probe_error: Some("the report is too large".into()), ..Probed::default() });
        }
        match fs::read_to_string(&path) {
            Ok(text) => {
                Ok(Probed::read(&text).unwrap_or_else(|why| Probed { probe_error: Some(why), ..Probed::default() }))
            }
            Err(_) => Ok(Probed {
                probe_error: Some(done.stderr),
                signal: (done.code > 128).then_some(done.code - 128),
                ..Probed::default()
            }),
        }
    }
}

/// How the probe calls a kind.
const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Asgi => "fastapi",
        Kind::Wsgi => "flask",
        other => other.word(),
    }
}

/// Distributions by the first parts of what they brought, from their records.
fn owners(tree: &Path, python: &str) -> BTreeMap<String, String> {
    let packages = tree.join(VENV.trim_start_matches('/')).join(format!("lib/python{python}/site-packages"));
    let mut owners = BTreeMap::new();
    for entry in fs::read_dir(packages).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(stem) = name.strip_suffix(".dist-info") else { continue };
        let distribution = crate::declared::normalise(stem.rsplit_once('-').map_or(stem, |(name, _)| name));
        let record = fs::read_to_string(entry.path().join("RECORD")).unwrap_or_default();
        for line in record.lines() {
            let path = line.split(',').next().unwrap_or_default();
            let first = path.split('/').next().unwrap_or_default();
            let module = first.split('.').next().unwrap_or_default();
            if !module.is_empty() && !first.ends_with(".dist-info") && !first.starts_with("..") {
                owners.entry(module.to_owned()).or_insert_with(|| distribution.clone());
            }
        }
    }
    owners
}
