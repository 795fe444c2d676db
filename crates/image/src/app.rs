//! The agent's own source, as the layer `/app`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ignore::WalkBuilder;
use ringfence_model::Digest;
use ringfence_model::digest::Hasher;
use ringfence_model::work::{Progress, Step};

use crate::error::{ImageError, OnPath};
use crate::layer::{self, Layer};
use crate::store::{Store, hash_file};

/// Names that never go into an image, at any depth: history, environments of other machines, caches, secrets.
const NEVER: [&str; 22] = [
    ".DS_Store",
    ".aws",
    ".direnv",
    ".git",
    ".gitignore",
    ".gnupg",
    ".hg",
    ".idea",
    ".ipynb_checkpoints",
    ".mypy_cache",
    ".netrc",
    ".nox",
    ".pytest_cache",
    ".ruff_cache",
    ".ssh",
    ".svn",
    ".tox",
    ".venv",
    ".vscode",
    "__pycache__",
    "node_modules",
    "venv",
];
/// Our own files at the top of the folder.
const OURS: [&str; 2] = ["ringfence.lock", "ringfence.toml"];
/// A file with further patterns, in the syntax of `.gitignore`.
const IGNORE_FILE: &str = ".ringfenceignore";
const LIMIT: u64 = 8 << 30;
/// A file this young may still change without its times showing it.
const SETTLED: Duration = Duration::from_secs(2);

struct Entry {
    path: PathBuf,
    relative: String,
    kind: Kind,
}

enum Kind {
    File { executable: bool },
    Folder,
    Link(String),
}

/// Builds the layer of a source folder, or finds it where nothing changed.
///
/// # Errors
/// [`ImageError`] of the folder or the store.
pub fn build(store: &Store, folder: &Path, progress: &dyn Progress) -> Result<Layer, ImageError> {
    let (entries, outline, settled) = look(folder)?;
    let quick = Digest::of(format!("ringfence app outline 1 {outline}").as_bytes());
    if let Some(layer) = store.recall::<Layer>(&quick)
        && layer::is_whole(store, &layer)
    {
        return Ok(layer);
    }
    progress.tell(Step { name: "app".into(), doing: "packing the source".into(), done: 0, total: None });
    let key = content_key(&entries)?;
    let layer = match store.recall::<Layer>(&key).filter(|l| layer::is_whole(store, l)) {
        Some(layer) => layer,
        None => {
            let stage = store.stage("app")?;
            let tree = stage.path().join("tree");
            copy(&entries, &tree.join("app"), progress)?;
            let layer = layer::commit(store, "app", &tree, progress)?;
            store.remember(&key, &layer)?;
            layer
        }
    };
    if settled {
        store.remember(&quick, &layer)?;
    }
    Ok(layer)
}

fn refuse(path: &str, why: impl Into<String>) -> ImageError {
    ImageError::AppFile { path: path.into(), why: why.into() }
}

/// Lists what goes in, sorted, with a digest of names, sizes and times, and whether all is older than [`SETTLED`].
fn look(folder: &Path) -> Result<(Vec<Entry>, Digest, bool), ImageError> {
    let folder = folder.canonicalize().on("find folder", folder)?;
    let walker = WalkBuilder::new(&folder)
        .hidden(false)
        .parents(false)
        .git_global(false)
        .git_exclude(false)
        .require_git(false)
        .ignore(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .follow_links(false)
        .sort_by_file_name(Ord::cmp)
        .filter_entry(|entry| entry.depth() == 0 || !is_left_out(entry.path(), entry.depth()))
        .build();
    let recent = SystemTime::now().checked_sub(SETTLED).and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    let recent = recent.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    let (mut entries, mut hasher, mut settled, mut bytes) = (Vec::new(), Hasher::new(), true, 0u64);
    for entry in walker {
        let entry = entry.map_err(|e| refuse(&folder.to_string_lossy(), e.to_string()))?;
        let path = entry.into_path();
        let Ok(relative) = path.strip_prefix(&folder) else { continue };
        if relative.as_os_str().is_empty() {
            continue;
        }
        let relative = relative.to_str().ok_or_else(|| refuse(&relative.to_string_lossy(), "its name is not UTF-8"))?;
        let relative = relative.to_owned();
        let meta = fs::symlink_metadata(&path).on("look at", &path)?;
        let kind = if meta.is_dir() {
            Kind::Folder
        } else if meta.is_symlink() {
            Kind::Link(link_target(&path, &relative)?)
        } else if meta.is_file() {
            bytes = bytes.saturating_add(meta.len());
            Kind::File { executable: meta.permissions().mode() & 0o111 != 0 }
        } else {
            continue;
        };
        if bytes > LIMIT {
            return Err(refuse(&relative, format!("the folder holds more than {LIMIT} bytes")));
        }
        settled &= meta.ctime() < recent && meta.mtime() < recent;
        let stamp = format!(
            "{relative}\0{} {} {} {}.{} {}.{}\n",
            meta.ino(),
            meta.len(),
            meta.mode(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec()
        );
        hasher.update(stamp.as_bytes());
        entries.push(Entry { path, relative, kind });
    }
    Ok((entries, hasher.finish(), settled))
}

fn is_left_out(path: &Path, depth: usize) -> bool {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return false };
    let env_file = name == ".env" || (name.starts_with(".env.") && !name.ends_with(".example"));
    let streamlit_secret =
        name == "secrets.toml" && path.parent().and_then(Path::file_name).is_some_and(|p| p == ".streamlit");
    let compiled = path.extension().is_some_and(|e| e == "pyc" || e == "pyo");
    NEVER.contains(&name)
        || env_file
        || streamlit_secret
        || compiled
        || name == IGNORE_FILE
        || (depth == 1 && OURS.contains(&name))
}

/// A link must stay within the folder, wherever the folder is.
fn link_target(path: &Path, relative: &str) -> Result<String, ImageError> {
    let target = fs::read_link(path).on("read link", path)?;
    let mut depth = Path::new(relative).components().count().saturating_sub(1);
    for part in target.components() {
        match part {
            Component::ParentDir if depth == 0 => return Err(refuse(relative, "it is a link out of the folder")),
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir => {
                return Err(refuse(relative, "it is a link to an absolute path"));
            }
        }
    }
    target.to_str().map(str::to_owned).ok_or_else(|| refuse(relative, "its target is not UTF-8"))
}

fn content_key(entries: &[Entry]) -> Result<Digest, ImageError> {
    let mut hasher = Hasher::new();
    hasher.update(b"ringfence app 1\n");
    for entry in entries {
        let line = match &entry.kind {
            Kind::Folder => format!("d {}\n", entry.relative),
            Kind::Link(target) => format!("l {}\0{target}\n", entry.relative),
            Kind::File { executable } => {
                format!("f {} {executable} {}\n", entry.relative, hash_file(&entry.path)?.0)
            }
        };
        hasher.update(line.as_bytes());
    }
    Ok(hasher.finish())
}

fn copy(entries: &[Entry], to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    fs::create_dir_all(to).on("make folder", to)?;
    for entry in entries {
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled("packing the source"));
        }
        let place = to.join(&entry.relative);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).on("make folder", parent)?;
        }
        match &entry.kind {
            Kind::File { .. } => fs::copy(&entry.path, &place).map(|_| ()).on("copy", &entry.path)?,
            Kind::Folder => fs::create_dir_all(&place).on("make folder", &place)?,
            Kind::Link(target) => symlink(target, &place).on("make link", &place)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ringfence_model::work::Silent;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        home
    }

    #[test]
    fn secrets_history_and_ignored_files_stay_out() {
        let source = folder(&[
            ("app.py", "x"),
            ("pkg/mod.py", "x"),
            ("data/keep.csv", "x"),
            ("data/drop.csv", "x"),
            (".gitignore", "*.log\n"),
            (".ringfenceignore", "/data/drop.csv\n"),
            ("x.log", "x"),
            (".env", "SECRET"),
            (".env.local", "SECRET"),
            (".env.example", "x"),
            (".streamlit/secrets.toml", "SECRET"),
            (".streamlit/config.toml", "x"),
            (".git/config", "x"),
            ("venv/bin/python", "x"),
            ("pkg/__pycache__/mod.pyc", "x"),
            ("ringfence.toml", "x"),
            ("pylock.toml", "x"),
        ]);
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let layer = build(&store, source.path(), &Silent).unwrap();
        let mut files = Vec::new();
        layer::walk(&store.layer_dir(&layer.diff_id), "", &mut |_, relative, meta| {
            if meta.is_file() {
                files.push(relative.to_owned());
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(
            files,
            [
                "app/.env.example",
                "app/.streamlit/config.toml",
                "app/app.py",
                "app/data/keep.csv",
                "app/pkg/mod.py",
                "app/pylock.toml"
            ]
        );
    }

    #[test]
    fn a_change_is_seen_and_none_is_not() {
        let source = folder(&[("app.py", "one")]);
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let one = build(&store, source.path(), &Silent).unwrap();
        assert_eq!(build(&store, source.path(), &Silent).unwrap(), one);
        fs::write(source.path().join("app.py"), "two").unwrap();
        let two = build(&store, source.path(), &Silent).unwrap();
        assert_ne!(one.diff_id, two.diff_id);
        let elsewhere = folder(&[("app.py", "one")]);
        assert_eq!(build(&store, elsewhere.path(), &Silent).unwrap(), one);
    }

    #[test]
    fn links_out_of_the_folder_are_refused() {
        for (target, ok) in [("app.py", true), ("../app/app.py", false), ("/etc/passwd", false), ("a/../../x", false)] {
            let source = folder(&[("app.py", "x")]);
            symlink(target, source.path().join("link")).unwrap();
            let home = tempfile::tempdir().unwrap();
            let store = Store::open(home.path()).unwrap();
            assert_eq!(build(&store, source.path(), &Silent).is_ok(), ok, "{target}");
        }
    }
}
