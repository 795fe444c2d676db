//! The program `uv`: where it is, and how it is run inside the fence.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use ringfence_image::error::Said;
use ringfence_image::{Layer, Store, open_to_jobs};
use ringfence_model::work::{Job, JobHost, JobMount, JobOutput, Runner};
use ringfence_model::{AgentName, Bytes};

use crate::error::{LockError, OnPath};
use crate::index::{Index, Indexes};

/// The variable that names the program.
pub const ENV_UV: &str = "RINGFENCE_UV";
const INSIDE: &str = "/opt/uv/uv";

/// The program `uv`, found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uv {
    path: PathBuf,
}

impl Uv {
    /// Finds it: at `path`, where `RINGFENCE_UV` says, on `PATH`, or in the home folder's `.local/bin`.
    ///
    /// # Errors
    /// [`LockError::NoUv`].
    pub fn find(path: Option<&Path>) -> Result<Self, LockError> {
        let named = path.map(PathBuf::from).or_else(|| std::env::var_os(ENV_UV).map(PathBuf::from));
        if let Some(path) = named {
            return Self::at(&path).ok_or(LockError::NoUv);
        }
        let mut folders: Vec<PathBuf> =
            std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
        folders.extend(std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/bin")));
        folders.iter().find_map(|folder| Self::at(&folder.join("uv"))).or_else(Self::of_python).ok_or(LockError::NoUv)
    }

    /// The program itself, not a shim: a script would look for what is not in the sandbox.
    fn at(path: &Path) -> Option<Self> {
        let path = path.canonicalize().ok()?;
        let mut magic = [0u8; 4];
        File::open(&path).ok()?.read_exact(&mut magic).ok()?;
        (magic == *b"\x7fELF").then_some(Self { path })
    }

    /// The one that `pip install uv` brought, where only a shim is on `PATH`.
    fn of_python() -> Option<Self> {
        let code = "from uv import find_uv_bin; print(find_uv_bin())";
        let output = Command::new("python3").args(["-I", "-c", code]).current_dir("/").output().ok()?;
        Self::at(Path::new(String::from_utf8(output.stdout).ok()?.trim()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// One run of `uv` on top of a base.
pub(crate) struct Run<'a> {
    pub store: &'a Store,
    pub uv: &'a Uv,
    pub agent: &'a AgentName,
    pub base: &'a [Layer],
    pub runner: &'a dyn Runner,
    pub indexes: &'a Indexes,
    pub hosts: &'a BTreeSet<JobHost>,
    /// The last moment whose releases count, also of what builds a package.
    pub as_of: Option<Timestamp>,
}

impl Run<'_> {
    /// Runs `uv` with `arguments`; `source` is seen at `/src`, `out` at its own place and writable.
    pub(crate) fn run(
        &self,
        purpose: &'static str,
        arguments: &[String],
        source: &Path,
        out: (&Path, &str),
    ) -> Result<JobOutput, LockError> {
        let cache = self.cache()?;
        open_to_jobs(source)?;
        let mut layers: Vec<PathBuf> = self.base.iter().map(|l| self.store.layer_dir(&l.diff_id)).collect();
        layers.push(self.store.bench());
        let mount =
            |source: &Path, target: &str, writable| JobMount { source: source.into(), target: target.into(), writable };
        let mut argv = vec![INSIDE.to_owned()];
        argv.extend(arguments.iter().cloned());
        let job = Job {
            purpose: purpose.into(),
            layers,
            mounts: vec![
                mount(&self.uv.path, INSIDE, false),
                mount(source, "/src", false),
                mount(out.0, out.1, true),
                mount(&cache, "/cache", true),
            ],
            argv,
            env: self.env(),
            cwd: "/src".into(),
            hosts: self.hosts.iter().cloned().collect(),
            memory: Bytes::gib(3),
            timeout: Duration::from_secs(1800),
        };
        self.runner.run(&job).map_err(|report| LockError::job(purpose, report))
    }

    /// One cache per agent: what one agent's packages leave in it, no other agent is built from.
    fn cache(&self) -> Result<PathBuf, LockError> {
        let path = self.store.root().join("uv").join(self.agent.as_str());
        fs::create_dir_all(&path).on("make folder", &path)?;
        Ok(path)
    }

    fn env(&self) -> BTreeMap<String, String> {
        let mut env: BTreeMap<String, String> = [
            ("HOME", "/tmp"),
            ("LANG", "C.UTF-8"),
            ("NO_COLOR", "1"),
            ("PATH", "/usr/bin:/bin"),
            ("PYTHONDONTWRITEBYTECODE", "1"),
            ("PYTHONHASHSEED", "0"),
            // What is built shall not know when.
            ("SOURCE_DATE_EPOCH", "315532800"),
            ("UV_CACHE_DIR", "/cache"),
            ("UV_HTTP_TIMEOUT", "120"),
            ("UV_LINK_MODE", "copy"),
            ("UV_NO_CONFIG", "1"),
            ("UV_NO_PROGRESS", "1"),
            ("UV_PYTHON_DOWNLOADS", "never"),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
        if let Some(moment) = self.as_of {
            env.insert("UV_EXCLUDE_NEWER".into(), moment.to_string());
        }
        if let Some(default) = &self.indexes.default {
            env.insert("UV_DEFAULT_INDEX".into(), default.secret().into());
        }
        if !self.indexes.extra.is_empty() {
            let extra: Vec<&str> = self.indexes.extra.iter().map(Index::secret).collect();
            env.insert("UV_INDEX".into(), extra.join(" "));
        }
        if !self.indexes.links.is_empty() {
            let links: Vec<&str> = self.indexes.links.iter().map(Index::secret).collect();
            env.insert("UV_FIND_LINKS".into(), links.join(","));
        }
        // WHY not pip's way of taking the best version of any index: whoever may publish on a public index could then
        // stand in for a private package. uv takes a package from the first index that has it; a host may say otherwise.
        if let Ok(strategy) = std::env::var("UV_INDEX_STRATEGY") {
            env.insert("UV_INDEX_STRATEGY".into(), strategy);
        }
        env
    }

    /// The index that `uv` takes when none is configured.
    pub(crate) fn default_index(&self, python: &str) -> Result<Index, LockError> {
        let stage = self.store.stage("index")?;
        let (source, out) = (stage.path().join("src"), stage.path().join("out"));
        for folder in [&source, &out] {
            fs::create_dir(folder).on("make folder", folder)?;
        }
        let empty = source.join("empty.in");
        fs::write(&empty, "").on("write", &empty)?;
        let python = format!("/usr/bin/python{python}");
        let arguments = [
            "pip",
            "compile",
            "--quiet",
            "--offline",
            "--no-header",
            "--emit-index-url",
            "--python",
            &python,
            "empty.in",
        ];
        let output = self.run("index", &arguments.map(str::to_owned), &source, (&out, "/out"))?;
        let found = output.stdout.lines().find_map(|l| Index::new(l.strip_prefix("--index-url")?.trim()));
        found.ok_or_else(|| LockError::Uv { why: Said(core_reason(&output.stderr)) })
    }
}

/// The few lines of what `uv` says that tell why.
pub(crate) fn core_reason(stderr: &str) -> String {
    const LINES: usize = 6;
    const LENGTH: usize = 900;
    let told: Vec<String> = stderr
        .lines()
        .map(|l| l.trim_start_matches([' ', '│', '├', '╰', '─', '▶', '×', '┃']).trim())
        .filter(|l| !l.is_empty())
        .filter(|l| {
            !["Resolved", "Using", "Prepared", "Building", "Downloading", "Built", "warning:"]
                .iter()
                .any(|w| l.starts_with(w))
        })
        .map(|l| l.trim_start_matches("error: ").trim_start_matches("cause: ").to_owned())
        .collect();
    let text = told.into_iter().take(LINES).collect::<Vec<_>>().join("; ");
    match text.char_indices().nth(LENGTH) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None if text.is_empty() => "it said nothing".into(),
        None => text,
    }
}

/// All that `uv` says, without its frames, on one line; of very much, the beginning and the end.
pub(crate) fn whole(stderr: &str) -> String {
    const HALF: usize = 32 << 10;
    let words: Vec<&str> = stderr
        .lines()
        .flat_map(|line| line.trim_start_matches([' ', '│', '├', '╰', '─', '▶', '×', '┃']).split_whitespace())
        .collect();
    let text = words.join(" ");
    match (text.get(..HALF), text.len().checked_sub(HALF).and_then(|at| text.get(at..))) {
        (Some(head), Some(tail)) if text.len() > 2 * HALF => format!("{head} … {tail}"),
        _ => text,
    }
}

/// Whether what `uv` says is that nobody answered.
pub(crate) fn is_network(stderr: &str) -> bool {
    ["Request failed after", "Failed to fetch", "error sending request", "dns error", "tcp connect error", "timed out"]
        .iter()
        .any(|words| stderr.contains(words))
        && !stderr.contains("No solution found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_short() {
        let said = "  × No solution found when resolving dependencies:\n  ╰─▶ Because a was not found\n      and you \
                    require a.\nwarning: x\n";
        assert_eq!(
            core_reason(said),
            "No solution found when resolving dependencies:; Because a was not found; and you require a."
        );
        assert!(core_reason(&"word ".repeat(1000)).chars().count() < 1000);
        assert!(is_network("error: Request failed after 3 retries"));
        assert!(!is_network(said));
    }

    #[test]
    fn a_shim_is_not_taken() {
        let home = tempfile::tempdir().unwrap();
        let shim = home.path().join("uv");
        fs::write(&shim, "#!/bin/sh\n").unwrap();
        assert!(Uv::at(&shim).is_none());
        assert!(matches!(Uv::find(Some(&shim)), Err(LockError::NoUv)));
    }
}
