//! From what is declared to a lock: plans the base, and lets `uv` resolve on top of it, inside the fence.

use std::fs;
use std::path::Path;

use ringfence_image::error::Said;
use ringfence_image::{BasePlan, Layer, Store, build_base, plan_base};
use ringfence_model::digest::Hasher;
use ringfence_model::manifest::{Dependencies, Image};
use ringfence_model::work::{Progress, Runner, Step};
use ringfence_model::{Digest, Manifest};

use crate::declared::{Declared, name_of};
use crate::error::{LockError, OnPath};
use crate::index::{self, Index, Indexes, host_of};
use crate::infer;
use crate::lockfile::{FILE_NAME, Lock};
use crate::uv::{Run, Uv, core_reason, is_network};

/// What locking needs, besides the store.
#[derive(Clone, Copy, Debug)]
pub struct LockInput<'a> {
    /// The agent's folder; the lock is written there.
    pub folder: &'a Path,
    /// The manifest, understood.
    pub manifest: &'a Manifest,
    /// The resolver.
    pub uv: &'a Uv,
    /// Whether to take newer versions where the old lock would still do.
    pub upgrade: bool,
}

/// Gives the folder's lock: the one that is there if it still fits what is declared, else a new one.
///
/// # Errors
/// [`LockError`] of the declarations, the mirror, the index, or because nothing fits.
pub fn lock(
    store: &Store,
    input: &LockInput<'_>,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Lock, LockError> {
    let declared = infer::requirements(input.folder, &input.manifest.dependencies)?;
    refuse_unsupported(&declared)?;
    let image_inputs = image_digest(&input.manifest.image);
    let inputs = inputs_digest(&declared, &input.manifest.dependencies, &image_inputs);
    // WHY an unusable lock is passed over: it is remade, and whoever wants to know reads it with `Lock::read`.
    let old = Lock::read(input.folder).unwrap_or(None);
    if let Some(old) = &old
        && !input.upgrade
        && *old.inputs() == inputs
    {
        return Ok(old.clone());
    }
    let plan = match &old {
        Some(old) if !input.upgrade && *old.image_inputs() == image_inputs => old.base().clone(),
        _ => plan_base(store, &input.manifest.image, progress)?,
    };
    let lock = make(store, input, &declared, &plan, old.as_ref(), (inputs, image_inputs), runner, progress)?;
    lock.write(input.folder)?;
    Ok(lock)
}

/// Resolves anew in the world that a manifest bounds, and writes nothing.
pub(crate) fn resolved(
    store: &Store,
    input: &LockInput<'_>,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Lock, LockError> {
    let declared = infer::requirements(input.folder, &input.manifest.dependencies)?;
    refuse_unsupported(&declared)?;
    let image_inputs = image_digest(&input.manifest.image);
    let inputs = inputs_digest(&declared, &input.manifest.dependencies, &image_inputs);
    let plan = plan_base(store, &input.manifest.image, progress)?;
    make(store, input, &declared, &plan, None, (inputs, image_inputs), runner, progress)
}

#[expect(clippy::too_many_arguments, reason = "the phases of one step, handed on once")]
fn make(
    store: &Store,
    input: &LockInput<'_>,
    declared: &Declared,
    plan: &BasePlan,
    old: Option<&Lock>,
    (inputs, image_inputs): (Digest, Digest),
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<Lock, LockError> {
    let base = build_base(store, plan, runner, progress)?;
    let pylock = if declared.requirements.is_empty() {
        format!(
            "lock-version = \"1.0\"\ncreated-by = \"ringfence\"\nrequires-python = \">={}\"\npackages = []\n",
            plan.python
        )
    } else {
        resolve(store, input, declared, plan, &base, old, runner, progress)?
    };
    Lock::make(&pylock, inputs, image_inputs, input.manifest.dependencies.as_of, plan)
}

/// Whether a folder's lock still fits what is declared.
///
/// # Errors
/// [`LockError`] of the declarations or of a lock that does not parse.
pub fn is_current(folder: &Path, manifest: &Manifest) -> Result<bool, LockError> {
    let declared = infer::requirements(folder, &manifest.dependencies)?;
    let inputs = inputs_digest(&declared, &manifest.dependencies, &image_digest(&manifest.image));
    Ok(Lock::read(folder)?.is_some_and(|lock| *lock.inputs() == inputs))
}

fn image_digest(image: &Image) -> Digest {
    let mut hasher = Hasher::new();
    for part in [&image.suite, &image.mirror, &image.python] {
        hasher.update(format!("{part:?}\n").as_bytes());
    }
    hasher.update(format!("{:?}\n", image.packages).as_bytes());
    hasher.finish()
}

fn inputs_digest(declared: &Declared, wanted: &Dependencies, image: &Digest) -> Digest {
    let mut hasher = Hasher::new();
    hasher.update(b"ringfence lock inputs 1\n");
    hasher.update(image.raw());
    let mut lines: Vec<String> = declared.requirements.iter().map(|r| format!("r {}\n", r.text)).collect();
    lines.extend(declared.constraints.iter().map(|c| format!("c {}\n", c.text)));
    for (mark, list) in [('c', &wanted.constraints), ('v', &wanted.overrides), ('x', &wanted.exclude)] {
        lines.extend(list.iter().map(|text| format!("{mark} {text}\n")));
    }
    lines.extend(wanted.as_of.map(|moment| format!("t {moment}\n")));
    lines.sort();
    lines.extend(declared.index_options.iter().map(|o| format!("o {o}\n")));
    lines.iter().for_each(|line| hasher.update(line.as_bytes()));
    hasher.finish()
}

/// What cannot be pinned by a digest, or needs a program that no image has.
fn refuse_unsupported(declared: &Declared) -> Result<(), LockError> {
    if let Some(option) = declared.index_options.iter().find(|o| !o.contains("://")) {
        return Err(LockError::Unsupported {
            requirement: option.chars().take(120).collect(),
            file: declared.files.first().cloned().unwrap_or_default(),
            why: "a path of this host is not in the image",
        });
    }
    for requirement in &declared.requirements {
        let text = &requirement.text;
        let why = if ["git+", "hg+", "svn+", "bzr+"].iter().any(|vcs| text.contains(vcs)) {
            "a repository has no digest that could be checked"
        } else if text.contains("@ file:") || text.starts_with('/') {
            "a path of this host is not in the image"
        } else {
            continue;
        };
        return Err(LockError::Unsupported {
            requirement: text.chars().take(120).collect(),
            file: requirement.seen.to_string(),
            why,
        });
    }
    Ok(())
}

#[expect(clippy::too_many_arguments, reason = "the phases of one step, handed on once")]
fn resolve(
    store: &Store,
    input: &LockInput<'_>,
    declared: &Declared,
    plan: &BasePlan,
    base: &[Layer],
    old: Option<&Lock>,
    runner: &dyn Runner,
    progress: &dyn Progress,
) -> Result<String, LockError> {
    let tell = |doing: &str| progress.tell(Step { name: "lock".into(), doing: doing.into(), done: 0, total: None });
    let none = Default::default();
    let mut indexes = index::of_this_host();
    if indexes.default.is_none() {
        let run = Run {
            store,
            uv: input.uv,
            agent: &input.manifest.name,
            base,
            runner,
            indexes: &indexes,
            hosts: &none,
            as_of: None,
        };
        let found = run.default_index(&plan.python)?;
        indexes.default = Some(found);
    }
    adopt_options(declared, &mut indexes);
    tell("asking the package index");
    let names: Vec<String> = declared.requirements.iter().filter_map(|r| name_of(&r.text)).collect();
    let mut hosts = index::hosts(&indexes, &names, progress)?;
    // Requirements may name the address of a wheel.
    let addressed = declared.requirements.iter().filter_map(|r| r.text.find("http").and_then(|at| r.text.get(at..)));
    hosts.extend(addressed.filter_map(host_of));

    tell("resolving");
    let stage = store.stage("resolve")?;
    let (source, out) = (stage.path().join("src"), stage.path().join("out"));
    for folder in [&source, &out] {
        fs::create_dir(folder).on("make folder", folder)?;
    }
    let lines =
        |list: &[crate::declared::Requirement]| list.iter().map(|r| format!("{}\n", r.text)).collect::<String>();
    let wanted = &input.manifest.dependencies;
    let own = |list: &[String]| list.iter().map(|text| format!("{text}\n")).collect::<String>();
    for (name, text) in [
        ("requirements.in", lines(&declared.requirements)),
        ("constraints.txt", lines(&declared.constraints) + &own(&wanted.constraints)),
        ("overrides.txt", own(&wanted.overrides) + &left_out(&wanted.exclude)),
    ] {
        let path = source.join(name);
        fs::write(&path, text).on("write", &path)?;
    }
    let target = out.join(FILE_NAME);
    if let Some(old) = old.filter(|_| !input.upgrade) {
        // Its versions are preferred, so that one new requirement moves nothing else.
        fs::write(&target, old.text()).on("write", &target)?;
    }
    let python = format!("/usr/bin/python{}", plan.python);
    let arguments = [
        "pip",
        "compile",
        "requirements.in",
        "--constraint",
        "constraints.txt",
        "--overrides",
        "overrides.txt",
        "--format",
        "pylock.toml",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--quiet",
        "--python",
        &python,
        "--output-file",
        "/out/pylock.toml",
    ];
    let run = Run {
        store,
        uv: input.uv,
        agent: &input.manifest.name,
        base,
        runner,
        indexes: &indexes,
        hosts: &hosts,
        as_of: wanted.as_of,
    };
    let output = run.run("resolve", &arguments.map(str::to_owned), &source, (&out, "/out"))?;
    if output.code != 0 {
        return Err(failed(&output.stderr, &output.denied, &indexes));
    }
    let text = fs::read_to_string(&target).on("read", &target)?;
    Ok(redacted(text, &indexes))
}

/// Overrides by which nobody gets a distribution: they ask for it on a Python that is none.
fn left_out(names: &[String]) -> String {
    names.iter().map(|name| format!("{name}; python_version < '0'\n")).collect()
}

/// Index options of requirements files stand before the host's own.
fn adopt_options(declared: &Declared, indexes: &mut Indexes) {
    for option in &declared.index_options {
        match option.split_once(' ') {
            Some(("--index-url", url)) => indexes.default = Index::new(url).or_else(|| indexes.default.take()),
            Some(("--extra-index-url", url)) => indexes.extra.extend(Index::new(url)),
            Some(("--find-links", url)) => indexes.links.extend(Index::new(url)),
            _ => {}
        }
    }
}

fn failed(stderr: &str, denied: &[String], indexes: &Indexes) -> LockError {
    let mut reason = redacted(core_reason(stderr), indexes);
    if !denied.is_empty() {
        reason.push_str(&format!("; hosts denied: {}", denied.join(", ")));
    }
    if is_network(stderr) {
        let index = indexes.all().last().map(Index::shown).unwrap_or_default();
        return LockError::IndexUnreachable { index, why: Said(reason) };
    }
    LockError::Unresolvable { why: Said(reason) }
}

/// Takes users and passwords of indexes out of a text.
pub(crate) fn redacted(text: String, indexes: &Indexes) -> String {
    indexes
        .all()
        .chain(&indexes.links)
        .filter_map(Index::userinfo)
        .fold(text, |text, userinfo| text.replace(userinfo, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::declared::{Requirement, Seen};

    fn declared(texts: &[&str]) -> Declared {
        let requirements =
            texts.iter().map(|t| Requirement { text: (*t).into(), seen: Seen::new("requirements.txt", 1) }).collect();
        Declared { requirements, ..Declared::default() }
    }

    #[test]
    fn the_order_of_lines_does_not_count_and_their_meaning_does() {
        let image = Digest::of(b"image");
        let plain = Dependencies::default();
        let digest = |texts: &[&str]| inputs_digest(&declared(texts), &plain, &image);
        assert_eq!(digest(&["a", "b"]), digest(&["b", "a"]));
        assert_ne!(digest(&["a", "b"]), digest(&["a", "b>1"]));
        assert_ne!(digest(&["a"]), inputs_digest(&declared(&["a"]), &plain, &Digest::of(b"other")));
        let text = || vec!["b".to_owned()];
        let as_of = Some("2024-08-14T00:00:00Z".parse().unwrap());
        let changed = [
            Dependencies { constraints: text(), ..plain.clone() },
            Dependencies { overrides: text(), ..plain.clone() },
            Dependencies { exclude: text(), ..plain.clone() },
            Dependencies { as_of, ..plain.clone() },
        ];
        let digests: std::collections::BTreeSet<String> =
            changed.iter().map(|wanted| inputs_digest(&declared(&["a"]), wanted, &image).to_string()).collect();
        assert!(digests.len() == 4 && !digests.contains(&digest(&["a"]).to_string()), "{digests:?}");
    }

    #[test]
    fn what_cannot_be_pinned_is_refused() {
        for bad in ["x @ git+https://h.example/x", "git+ssh://h.example/x", "x @ file:///x.whl", "/x.whl"] {
            assert!(matches!(refuse_unsupported(&declared(&[bad])), Err(LockError::Unsupported { .. })), "{bad}");
        }
        refuse_unsupported(&declared(&["x @ https://h.example/x.whl"])).unwrap();
    }

    #[test]
    fn failures_are_told_apart_and_hold_no_password() {
        let indexes = Indexes { default: Index::new("https://u:pw@i.example/simple"), extra: vec![], links: vec![] };
        let solved =
            failed("error: No solution found\n  cause: Because x https://u:pw@i.example/simple", &[], &indexes);
        assert!(matches!(&solved, LockError::Unresolvable { why } if !why.0.contains("pw")), "{solved:?}");
        let down = failed("error: Request failed after 3 retries", &["other.example".into()], &indexes);
        assert!(matches!(&down, LockError::IndexUnreachable { why, .. } if why.0.contains("denied: other.example")));
    }
}
