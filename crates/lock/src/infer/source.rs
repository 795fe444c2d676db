//! The Python files of a folder, read once.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use ignore::WalkBuilder;

use crate::error::InferError;
use crate::python::{self, Line};
use crate::syntax::{self, Syntax};

const FILE_LIMIT: u64 = 2 << 20;
const FILES: usize = 5000;
/// Folders whose files are no part of what runs.
const ASIDE: [&str; 18] = [
    "__pycache__",
    "alembic",
    "bench",
    "benchmarks",
    "build",
    "dist",
    "docs",
    "env",
    "examples",
    "migrations",
    "node_modules",
    "notebooks",
    "site-packages",
    "test",
    "testing",
    "tests",
    "venv",
    "virtualenv",
];

/// One Python file.
pub(crate) struct Source {
    /// Path within the folder, with `/`.
    pub path: String,
    text: String,
    lines: OnceLock<Vec<Line>>,
    pub syntax: Syntax,
}

impl Source {
    /// Its logical lines.
    pub(crate) fn lines(&self) -> &[Line] {
        self.lines.get_or_init(|| python::read(&self.text))
    }

    /// Whether a text occurs in it.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.text.contains(text)
    }

    /// The dotted name that others in the folder import it by, from the folder's root.
    pub(crate) fn module(&self) -> String {
        let stem = self.path.trim_end_matches(".py");
        stem.strip_suffix("/__init__").unwrap_or(stem).replace('/', ".")
    }

    /// The folder it is in; empty for the root.
    pub(crate) fn parent(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    pub(crate) fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// All Python files of a folder.
pub(crate) struct Sources {
    pub files: Vec<Source>,
    /// First names by which modules of the folder can be imported.
    pub local: BTreeSet<String>,
}

/// Reads the Python files of a folder, leaving out tests and what is ignored.
pub(crate) fn read(folder: &Path) -> Result<Sources, InferError> {
    let mut texts = Vec::new();
    let mut local = BTreeSet::new();
    let walker = WalkBuilder::new(folder)
        .parents(false)
        .git_global(false)
        .git_exclude(false)
        .require_git(false)
        .follow_links(false)
        .sort_by_file_name(Ord::cmp)
        .filter_entry(|e| e.depth() == 0 || !is_aside(e.path(), e.file_type().is_some_and(|t| t.is_dir())))
        .build();
    for entry in walker.flatten() {
        let path = entry.path();
        let Some(relative) = path.strip_prefix(folder).ok().and_then(Path::to_str) else { continue };
        if !entry.file_type().is_some_and(|t| t.is_file()) || !relative.ends_with(".py") {
            continue;
        }
        for part in relative.trim_end_matches(".py").split('/') {
            local.insert(part.to_owned());
        }
        if is_test(relative) || texts.len() >= FILES || fs::metadata(path).is_ok_and(|m| m.len() > FILE_LIMIT) {
            continue;
        }
        let bytes = fs::read(path).map_err(|e| InferError::io(path, e))?;
        texts.push((relative.to_owned(), String::from_utf8_lossy(&bytes).into_owned()));
    }
    Ok(Sources { files: of(texts), local })
}

/// Sources of paths and texts.
pub(crate) fn of(texts: Vec<(String, String)>) -> Vec<Source> {
    let read = syntax::read_all(&texts.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>());
    let files = texts.into_iter().zip(read);
    files.map(|((path, text), syntax)| Source { path, text, lines: OnceLock::new(), syntax }).collect()
}

fn is_aside(path: &Path, folder: bool) -> bool {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    folder && (ASIDE.contains(&name) || path.join("pyvenv.cfg").is_file())
}

fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    matches!(name, "setup.py" | "conftest.py" | "noxfile.py" | "tasks.py" | "fabfile.py")
        || name.starts_with("test_")
        || name.ends_with("_test.py")
}
