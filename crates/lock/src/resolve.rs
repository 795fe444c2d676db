//! From what is declared to a lock: plans the base, and lets `uv` resolve on top of it, inside the fence.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use ringfence_image::error::Said;
use ringfence_image::{BasePlan, Layer, Store, build_base, build_tools, plan_base};
use ringfence_model::digest::Hasher;
use ringfence_model::manifest::{Dependencies, Image};
use ringfence_model::work::{Progress, Runner, Step};
use ringfence_model::{Digest, Manifest};

use crate::declared::{Declared, name_of};
use crate::error::{LockError, OnPath};
use crate::index::{self, Index, Indexes, host_of};
use crate::infer;
use crate::lockfile::{FILE_NAME, Lock};
use crate::uv::{Run, Uv, core_reason, is_network, whole};

/// What locking needs, besides the store.
#[derive(Clone, Copy, Debug)]
pub struct LockInput<'a> {
    /// The agent's folder; the lock is written there.
    pub folder: &'a Path,
    /// The manifest, understood.
    pub manifest: &'a Manifest,
    /// The resolver.
    pub uv: &'a Uv,
    /// How much of the lock that is there may change.
    pub upgrade: Upgrade<'a>,
    /// Releases after it do not count; the manifest's own date stands before it.
    pub as_of: Option<Timestamp>,
}

/// How much of a lock that is there may change, where it would still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade<'a> {
    /// Nothing.
    Nothing,
    /// The versions of these distributions.
    These(&'a [String]),
    /// Everything.
    All,
}

impl Upgrade<'_> {
    /// Whether the lock that is there is left as it is, where it still fits.
    pub(crate) fn is_nothing(self) -> bool {
        self == Self::Nothing
    }
}

/// What a lock was made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inputs {
    pub declared: Digest,
    pub image: Digest,
}

impl Inputs {
    /// Of what a manifest and its folder say.
    pub(crate) fn of(declared: &Declared, manifest: &Manifest) -> Self {
        let image = image_digest(&manifest.image);
        Self { declared: inputs_digest(declared, &manifest.dependencies, &image), image }
    }
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
    let inputs = Inputs::of(&declared, input.manifest);
    // WHY an unusable lock is passed over: it is remade, and whoever wants to know reads it with `Lock::read`.
    let old = Lock::read(input.folder).unwrap_or(None);
    if let Some(old) = &old
        && input.upgrade.is_nothing()
        && *old.inputs() == inputs.declared
    {
        return Ok(old.clone());
    }
    let plan = match &old {
        Some(old) if input.upgrade.is_nothing() && *old.image_inputs() == inputs.image => old.base().clone(),
        _ => plan_base(store, &input.manifest.image, progress)?,
    };
    let resolver = Resolver { store, uv: input.uv, manifest: input.manifest, runner, progress };
    let mut wanted = input.manifest.dependencies.clone();
    wanted.as_of = wanted.as_of.or(input.as_of);
    let base = build_base(store, &plan, runner, progress)?;
    let lock = resolver.make(&declared, &wanted, &plan, &base, (old.as_ref(), input.upgrade), inputs)?;
    lock.write(input.folder)?;
    Ok(lock)
}

/// What resolving is done with.
#[derive(Clone, Copy)]
pub(crate) struct Resolver<'a> {
    pub store: &'a Store,
    pub uv: &'a Uv,
    pub manifest: &'a Manifest,
    pub runner: &'a dyn Runner,
    pub progress: &'a dyn Progress,
}

impl Resolver<'_> {
    /// Resolves what is declared, bounded as `wanted` says, on a base. The versions of an old lock are preferred but for
    /// those that may change.
    pub(crate) fn make(
        &self,
        declared: &Declared,
        wanted: &Dependencies,
        plan: &BasePlan,
        base: &[Layer],
        old: (Option<&Lock>, Upgrade<'_>),
        inputs: Inputs,
    ) -> Result<Lock, LockError> {
        let declared = &released(declared, wanted);
        refuse_unsupported(declared)?;
        let pylock = if declared.requirements.is_empty() {
            let python = &plan.python;
            format!(
                "lock-version = \"1.0\"\ncreated-by = \"ringfence\"\nrequires-python = \">={python}\"\npackages = []\n"
            )
        } else {
            self.resolve(declared, wanted, plan, base, old)?
        };
        Lock::make(&pylock, inputs.declared, inputs.image, wanted.as_of, plan)
    }

    /// The indexes that count: those that files name before the host's own.
    pub(crate) fn indexes(&self, declared: &Declared, plan: &BasePlan, base: &[Layer]) -> Result<Indexes, LockError> {
        let mut indexes = index::of_this_host();
        if indexes.default.is_none() {
            let none = Default::default();
            let run = Run {
                store: self.store,
                uv: self.uv,
                agent: &self.manifest.name,
                base,
                runner: self.runner,
                indexes: &indexes,
                hosts: &none,
                as_of: None,
            };
            let found = run.default_index(&plan.python)?;
            indexes.default = Some(found);
        }
        adopt_options(declared, &mut indexes);
        Ok(indexes)
    }
}

/// What is declared, with names in the place of repositories and paths for which an override stands, and without what is left out.
fn released(declared: &Declared, wanted: &Dependencies) -> Declared {
    let named = |list: &[String], name: &str| list.iter().any(|text| name_of(text).as_deref() == Some(name));
    let mut declared = declared.clone();
    declared.requirements.retain_mut(|requirement| {
        let Some(name) = meant(&requirement.text) else { return true };
        if named(&wanted.exclude, &name) {
            return false;
        }
        if named(&wanted.overrides, &name) && unreleased(&requirement.text).is_some() {
            requirement.text = name;
        }
        true
    });
    declared
}

/// The distribution that a requirement means: by name, by `#egg=NAME`, or by what a repository is called.
pub(crate) fn meant(requirement: &str) -> Option<String> {
    let egg = || name_of(requirement.split_once("#egg=")?.1);
    let repository = || {
        let address = requirement.split_once("://")?.1.split(['#', '@', ' ', ';']).next()?;
        name_of(address.trim_end_matches('/').trim_end_matches(".git").rsplit('/').next()?)
    };
    name_of(requirement).or_else(egg).or_else(|| unreleased(requirement).and_then(|_| repository()))
}

/// Whether a folder's lock still fits what is declared.
///
/// # Errors
/// [`LockError`] of the declarations or of a lock that does not parse.
pub fn is_current(folder: &Path, manifest: &Manifest) -> Result<bool, LockError> {
    let declared = infer::requirements(folder, &manifest.dependencies)?;
    let inputs = Inputs::of(&declared, manifest);
    Ok(Lock::read(folder)?.is_some_and(|lock| *lock.inputs() == inputs.declared))
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
    lines.extend((!wanted.cure).then(|| "n\n".to_owned()));
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
        let Some(why) = unreleased(&requirement.text) else { continue };
        return Err(LockError::Unsupported {
            requirement: requirement.text.chars().take(120).collect(),
            file: requirement.seen.to_string(),
            why,
        });
    }
    Ok(())
}

/// Why a requirement cannot be pinned to something released, if it cannot.
pub(crate) fn unreleased(requirement: &str) -> Option<&'static str> {
    if ["git+", "hg+", "svn+", "bzr+"].iter().any(|vcs| requirement.contains(vcs)) {
        Some("a repository has no digest that could be checked")
    } else if requirement.contains("@ file:") || requirement.starts_with('/') {
        Some("a path of this host is not in the image")
    } else {
        None
    }
}

impl Resolver<'_> {
    fn resolve(
        &self,
        declared: &Declared,
        wanted: &Dependencies,
        plan: &BasePlan,
        base: &[Layer],
        (old, upgrade): (Option<&Lock>, Upgrade<'_>),
    ) -> Result<String, LockError> {
        let (store, progress) = (self.store, self.progress);
        let tell = |doing: &str| progress.tell(Step { name: "lock".into(), doing: doing.into(), done: 0, total: None });
        let indexes = self.indexes(declared, plan, base)?;
        tell("asking the package index");
        let names: Vec<String> = declared.requirements.iter().filter_map(|r| name_of(&r.text)).collect();
        let mut hosts = index::hosts(&indexes, &names, progress)?;
        // Requirements may name the address of a wheel.
        let addressed =
            declared.requirements.iter().filter_map(|r| r.text.find("http").and_then(|at| r.text.get(at..)));
        hosts.extend(addressed.filter_map(host_of));

        tell("resolving");
        let stage = store.stage("resolve")?;
        let (source, out) = (stage.path().join("src"), stage.path().join("out"));
        for folder in [&source, &out] {
            fs::create_dir(folder).on("make folder", folder)?;
        }
        let lines =
            |list: &[crate::declared::Requirement]| list.iter().map(|r| format!("{}\n", r.text)).collect::<String>();
        let own = |list: &[String]| list.iter().map(|text| format!("{text}\n")).collect::<String>();
        for (name, text) in [
            ("requirements.in", lines(&declared.requirements)),
            ("constraints.txt", lines(&declared.constraints) + &own(&wanted.constraints)),
            ("overrides.txt", own(&wanted.overrides) + &left_out(&wanted.exclude)),
        ] {
            let path = source.join(name);
            fs::write(&path, text).on("write", &path)?;
        }
        let mut layers = base.to_vec();
        layers.extend(build_tools(store, plan, progress)?);
        let target = out.join(FILE_NAME);
        if let Some(old) = old.filter(|_| upgrade != Upgrade::All) {
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
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        if let Upgrade::These(names) = upgrade {
            arguments.extend(names.iter().flat_map(|name| ["--upgrade-package".to_owned(), name.clone()]));
        }
        let run = Run {
            store,
            uv: self.uv,
            agent: &self.manifest.name,
            base: &layers,
            runner: self.runner,
            indexes: &indexes,
            hosts: &hosts,
            as_of: wanted.as_of,
        };
        let output = run.run("resolve", &arguments, &source, (&out, "/out"))?;
        if output.code != 0 {
            return Err(failed(&output.stderr, &output.denied, &indexes));
        }
        let text = fs::read_to_string(&target).on("read", &target)?;
        Ok(redacted(text, &indexes))
    }
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
    LockError::Unresolvable { why: Said(reason), whole: redacted(whole(stderr), indexes).into() }
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
        assert!(matches!(&solved, LockError::Unresolvable { why, .. } if !why.0.contains("pw")), "{solved:?}");
        let down = failed("error: Request failed after 3 retries", &["other.example".into()], &indexes);
        assert!(matches!(&down, LockError::IndexUnreachable { why, .. } if why.0.contains("denied: other.example")));
    }
}
