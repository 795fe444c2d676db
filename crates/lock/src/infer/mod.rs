//! Looks at a source folder and tells what the agent is: kind, entry, port, Python, dependencies, hosts, secrets.
//!
//! Nothing of the folder is executed. Every answer carries where it was seen, and [`Inference::to_toml`] writes them
//! down for a person to correct.

mod entry;
mod grants;
mod imports;
mod render;
pub(crate) mod source;
mod version;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ringfence_model::AgentName;
use ringfence_model::manifest::{Dependencies, Kind};

use crate::declared::{self, Declared, Requirement, Seen};
use crate::error::InferError;

pub use self::grants::{Secret, Setting, Suggestion, Suggestions};
pub use self::version::Python;
pub(crate) use version::meets as takes_python;

/// What a person said on the command line, which wins over what is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `file.py` or `module:object`.
    pub entry: Option<String>,
    /// The kind.
    pub kind: Option<Kind>,
    /// The agent's name.
    pub name: Option<AgentName>,
    /// The agent's port.
    pub port: Option<u16>,
}

/// A requirement that no file declares but the agent needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The requirement.
    pub requirement: String,
    /// Why, in a few words.
    pub why: String,
    /// Where it was seen.
    pub seen: Seen,
}

/// What a folder tells about its agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inference {
    /// The agent's name, after the folder.
    pub name: AgentName,
    /// What it is.
    pub kind: Kind,
    /// Its command line.
    pub entry: Vec<String>,
    /// Where that was seen.
    pub entry_seen: Seen,
    /// Variables that the entry needs.
    pub env: BTreeMap<String, String>,
    /// The port that it listens on.
    pub port: Option<u16>,
    /// The Python that it asks for.
    pub python: Option<Python>,
    /// What its files declare.
    pub declared: Declared,
    /// What must be added to that.
    pub added: Vec<Added>,
    /// Imports that no file declares and whose distribution could only be guessed.
    pub undeclared: Vec<Added>,
    /// Hosts and secrets that it speaks of.
    pub suggestions: Suggestions,
}

/// Looks at `folder`.
///
/// # Errors
/// [`InferError`] if the folder is not there, has no Python, or has no one program that could be the agent.
pub fn look(folder: &Path, options: &Options) -> Result<Inference, InferError> {
    let shown = folder.to_string_lossy().into_owned();
    let meta = std::fs::metadata(folder).map_err(|_| InferError::Missing(shown.clone()))?;
    if !meta.is_dir() {
        return Err(InferError::Missing(shown));
    }
    let mut listing = std::fs::read_dir(folder).map_err(|e| InferError::io(folder, e))?;
    if listing.next().is_none() {
        return Err(InferError::Empty(shown));
    }
    let sources = source::read(folder)?;
    if sources.files.is_empty() {
        return Err(InferError::NoPython(shown));
    }
    let chosen = entry::choose(folder, &sources, options.entry.as_deref(), options.kind)?;
    let declared = declared::find(folder)?;
    let file = sources.files.iter().find(|s| s.path == chosen.file).ok_or(InferError::NoPython(shown))?;
    let start =
        entry::start(&chosen, file, &sources, &declared, options.port.or_else(|| configured_port(folder, &chosen)));
    let (added, undeclared) = additions(&declared, &sources, &start.launchers, &chosen.seen);
    let name = options.name.clone().unwrap_or_else(|| name_of(folder));
    Ok(Inference {
        name,
        kind: chosen.kind,
        entry: start.entry,
        entry_seen: chosen.seen,
        env: start.env,
        port: start.port,
        python: version::choose(&declared.python, &sources),
        added,
        undeclared,
        suggestions: grants::look(&sources),
        declared,
    })
}

/// What is to be locked for a manifest: the files it names or that are found, and what it adds.
///
/// Where nothing is declared at all, the imports say what is needed.
///
/// # Errors
/// [`InferError`] of a file that does not parse.
pub fn requirements(folder: &Path, wanted: &Dependencies) -> Result<Declared, InferError> {
    let mut declared =
        if wanted.files.is_empty() { declared::find(folder)? } else { declared::named(folder, &wanted.files)? };
    if declared.requirements.is_empty() && wanted.add.is_empty() && wanted.files.is_empty() {
        let sources = source::read(folder)?;
        for needed in imports::needed(&sources) {
            declared.requirements.push(Requirement { text: needed.distribution, seen: needed.seen });
        }
    }
    for text in &wanted.add {
        let seen = Seen::new(ringfence_model::manifest::FILE_NAME, 0);
        declared.requirements.push(Requirement { text: text.clone(), seen });
    }
    Ok(declared)
}

/// The Python files of a folder.
pub(crate) fn sources(folder: &Path) -> Result<source::Sources, InferError> {
    source::read(folder)
}

/// The files that run when an agent is started so; all, if none of them is named.
pub(crate) fn reached(sources: &source::Sources, argv: &[String]) -> BTreeSet<String> {
    let named = |word: &String| {
        let place = word.split(':').next().unwrap_or_default().trim_start_matches("./");
        let file = sources.files.iter().find(|s| s.path == place || s.module() == place);
        let below = || sources.files.iter().find(|s| !place.is_empty() && s.module().ends_with(&format!(".{place}")));
        file.or_else(below).map(|source| source.path.clone())
    };
    match argv.iter().skip(1).find_map(named) {
        Some(entry) => entry::reached(sources, &entry),
        None => sources.files.iter().map(|source| source.path.clone()).collect(),
    }
}

/// Names of files whose imports mean something else: `a.b.c` is a name of module `a.b`, which no file `a.py` has.
pub(crate) fn hidden(sources: &source::Sources) -> BTreeSet<String> {
    let is_there = |name: &str, folder: bool| {
        let end = if folder { format!("{name}/") } else { format!("{name}.py") };
        sources.files.iter().any(|s| match folder {
            true => s.path.starts_with(&end) || s.path.contains(&format!("/{end}")),
            false => s.path == end || s.path.ends_with(&format!("/{end}")),
        })
    };
    let deep = sources.files.iter().flat_map(imports::of).filter(|import| import.module.matches('.').count() > 1);
    let firsts: BTreeSet<String> = deep.filter_map(|i| i.module.split('.').next().map(str::to_owned)).collect();
    firsts.into_iter().filter(|first| is_there(first, false) && !is_there(first, true)).collect()
}

/// Variables that sources read as keys.
pub(crate) fn keys(sources: &source::Sources) -> Vec<String> {
    grants::look(sources).secrets.into_iter().map(|secret| secret.env).collect()
}

fn name_of(folder: &Path) -> AgentName {
    let absolute = folder.canonicalize();
    let name = absolute.as_deref().unwrap_or(folder).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    AgentName::from_folder(name)
}

/// The port of `.streamlit/config.toml`.
fn configured_port(folder: &Path, chosen: &entry::Candidate) -> Option<u16> {
    if chosen.kind != Kind::Streamlit {
        return None;
    }
    let text = std::fs::read_to_string(folder.join(".streamlit/config.toml")).ok()?;
    let config: toml::Table = toml::from_str(&text).ok()?;
    config.get("server")?.get("port")?.as_integer().and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
}

/// What is imported or started but not declared: what is sure, and what is a guess.
fn additions(
    declared: &Declared,
    sources: &source::Sources,
    launchers: &[&str],
    entry: &Seen,
) -> (Vec<Added>, Vec<Added>) {
    let has_any = !declared.requirements.is_empty();
    let (mut added, mut guessed) = (Vec::new(), Vec::new());
    for needed in imports::needed(sources) {
        let name = declared::name_of(&needed.distribution).unwrap_or_default();
        if declared.names(&name) || provided(declared, &name) {
            continue;
        }
        let why = if needed.known { "imported" } else { "imported; the name is a guess" };
        let item = Added { requirement: needed.distribution, why: why.into(), seen: needed.seen };
        // A guess beside declared requirements would more likely break the lock than mend it.
        if needed.known || !has_any { added.push(item) } else { guessed.push(item) }
    }
    for launcher in launchers {
        let there = declared.names(launcher)
            || provided(declared, launcher)
            || added.iter().any(|a| declared::name_of(&a.requirement).as_deref() == Some(launcher));
        if !there {
            added.push(Added { requirement: (*launcher).into(), why: "starts the agent".into(), seen: entry.clone() });
        }
    }
    (added, guessed)
}

/// Distributions that well-known declared ones bring with them.
fn provided(declared: &Declared, name: &str) -> bool {
    const BROUGHT: [(&str, &[&str]); 10] = [
        ("chainlit", &["fastapi", "httpx", "pydantic", "starlette", "uvicorn"]),
        ("fastapi", &["pydantic", "starlette", "typing-extensions"]),
        ("flask", &["click", "jinja2", "werkzeug", "markupsafe"]),
        ("gradio", &["fastapi", "httpx", "numpy", "pandas", "pillow", "pydantic", "requests", "starlette", "uvicorn"]),
        ("langchain", &["langchain-core", "langchain-text-splitters", "pydantic", "pyyaml", "sqlalchemy"]),
        ("langchain-community", &["langchain", "langchain-core", "numpy", "pyyaml", "requests"]),
        ("langchain-openai", &["langchain-core", "openai", "tiktoken"]),
        ("openai", &["httpx", "pydantic"]),
        ("pandas", &["numpy", "python-dateutil", "pytz"]),
        ("streamlit", &["altair", "numpy", "pandas", "pillow", "requests", "protobuf", "tornado", "toml"]),
    ];
    let name = declared::normalise(name);
    let extras = ("uvicorn", "fastapi[standard]");
    BROUGHT.iter().any(|(by, brought)| declared.names(by) && brought.contains(&name.as_str()))
        || (name == extras.0 && declared.requirements.iter().any(|r| r.text.replace(' ', "").starts_with(extras.1)))
}
