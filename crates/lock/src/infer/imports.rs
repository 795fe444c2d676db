//! What a source imports, and which distributions bring it.

use std::collections::{BTreeMap, BTreeSet};

use crate::declared::Seen;
use crate::syntax::{self, When};

use super::source::{Source, Sources};

const STDLIB: &str = include_str!("../../data/stdlib.txt");
const DISTRIBUTIONS: &str = include_str!("../../data/distributions.txt");

/// One imported module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// Dotted name as written; for `from a import b` also `a.b`.
    pub module: String,
    pub line: usize,
    /// Whether the source gets by without it.
    pub optional: bool,
}

/// All absolute imports of a file.
pub(crate) fn of(source: &Source) -> Vec<Import> {
    let import = |i: &syntax::Import| Import {
        module: i.module.clone(),
        line: i.line,
        optional: matches!(i.when, When::Guarded | When::Typing),
    };
    source.syntax.imports.iter().map(import).collect()
}

/// A distribution that the source needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Needed {
    pub distribution: String,
    pub seen: Seen,
    /// Whether the table knows it; else its name was guessed from the import.
    pub known: bool,
}

/// The distributions behind the imports that are neither local nor Python's own, sorted by name.
pub(crate) fn needed(sources: &Sources) -> Vec<Needed> {
    let stdlib: BTreeSet<&str> = STDLIB.lines().filter(|l| !l.starts_with('#')).collect();
    let table = table();
    let mut found: BTreeMap<String, Needed> = BTreeMap::new();
    for source in &sources.files {
        for import in of(source) {
            let first = import.module.split('.').next().unwrap_or_default();
            if import.optional || stdlib.contains(first) || sources.local.contains(first) || first.starts_with('_') {
                continue;
            }
            let (distribution, known) = match distribution(&table, &import.module) {
                Some(name) => (name.to_owned(), true),
                // `google` alone is a namespace of many.
                None if matches!(first, "google" | "azure") => continue,
                None => (first.replace('_', "-").to_lowercase(), COMMON.contains(&first)),
            };
            found.entry(distribution.clone()).or_insert_with(|| Needed {
                distribution,
                seen: Seen::new(&source.path, import.line),
                known,
            });
        }
    }
    found.into_values().collect()
}

/// Imports that bear the name of their distribution and are too well known to be called a guess.
const COMMON: [&str; 44] = [
    "aiohttp",
    "altair",
    "anthropic",
    "bokeh",
    "boto3",
    "chainlit",
    "crewai",
    "dash",
    "django",
    "fastapi",
    "flask",
    "gradio",
    "groq",
    "gunicorn",
    "httpx",
    "jinja2",
    "langchain",
    "langgraph",
    "litellm",
    "loguru",
    "lxml",
    "matplotlib",
    "networkx",
    "nltk",
    "numpy",
    "ollama",
    "openai",
    "pandas",
    "plotly",
    "polars",
    "pydantic",
    "redis",
    "requests",
    "rich",
    "scipy",
    "seaborn",
    "spacy",
    "sqlalchemy",
    "starlette",
    "streamlit",
    "torch",
    "tqdm",
    "transformers",
    "uvicorn",
];

fn table() -> BTreeMap<&'static str, &'static str> {
    DISTRIBUTIONS.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(' ')).collect()
}

fn distribution<'t>(table: &BTreeMap<&'t str, &'t str>, module: &str) -> Option<&'t str> {
    let mut prefix = module;
    loop {
        if let Some(found) = table.get(prefix) {
            return Some(found);
        }
        prefix = prefix.rsplit_once('.')?.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        super::super::source::of(vec![(path.into(), text.into())]).remove(0)
    }

    #[test]
    fn imports_are_mapped_and_local_names_are_not() {
        let text = "import os, cv2 as c, numpy as np\nfrom sklearn.svm import SVC\nfrom . import x\nfrom utils import y\n\
                    import google.generativeai as genai\nfrom google.cloud import storage\nimport helper_thing\n\
                    try:\n    import ujson\nexcept ImportError:\n    ujson = None\n\
                    if TYPE_CHECKING:\n    import typing_only\nfrom llama_index.core import (\n  A,\n  B)\n";
        let sources = Sources {
            files: vec![source("app.py", text), source("utils.py", "import yaml\n")],
            local: ["app", "utils", "helper_thing"].map(str::to_owned).into(),
        };
        let found: Vec<String> =
            needed(&sources).iter().map(|n| format!("{} {} {}", n.distribution, n.seen, n.known)).collect();
        assert_eq!(
            found,
            [
                "PyYAML utils.py:1 true",
                "google-cloud-storage app.py:6 true",
                "google-generativeai app.py:5 true",
                "llama-index-core app.py:14 true",
                "numpy app.py:1 true",
                "opencv-python-headless app.py:1 true",
                "scikit-learn app.py:2 true",
            ]
        );
    }

    #[test]
    fn guesses_say_so() {
        let sources = Sources { files: vec![source("a.py", "import some_thing.deep\n")], local: BTreeSet::new() };
        let found = needed(&sources);
        assert_eq!((found[0].distribution.as_str(), found[0].known), ("some-thing", false));
    }
}
