//! What a folder says that it depends on, in any of the files that people write it in. Nothing is executed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path};

use pep440_rs::{Version, VersionSpecifiers};
use serde::Serialize;

use crate::error::InferError;
use crate::python::{self, Token};

#[cfg(test)]
mod tests;

const FILE_LIMIT: u64 = 4 << 20;
/// How deep requirements files may include one another, and how many in all.
const DEPTH: usize = 16;
const INCLUDED: usize = 64;

/// Something found, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Seen {
    /// File within the folder.
    pub file: String,
    /// 1-based line; 0: the whole file.
    pub line: usize,
}

impl Seen {
    pub(crate) fn new(file: &str, line: usize) -> Self {
        Self { file: file.into(), line }
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

/// A requirement as the resolver takes it (PEP 508), and where it was declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Requirement {
    /// The text.
    pub text: String,
    /// Where.
    pub seen: Seen,
}

/// All that was declared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Declared {
    /// Files read, the first being the one that was found or named.
    pub files: Vec<String>,
    /// Requirements.
    pub requirements: Vec<Requirement>,
    /// Constraints: bounds on what is not required by itself.
    pub constraints: Vec<Requirement>,
    /// Options of requirements files that speak of indexes, such as `--extra-index-url URL`.
    pub index_options: Vec<String>,
    /// Bounds on the Python version, such as `>=3.10`.
    pub python: Vec<Requirement>,
    /// Lines that are no requirements as they stand, and what was made of each, for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Requirement>,
}

impl Declared {
    /// Whether a distribution is declared, by its normalised name.
    #[must_use]
    pub fn names(&self, distribution: &str) -> bool {
        let wanted = normalise(distribution);
        self.requirements.iter().any(|r| name_of(&r.text).is_some_and(|n| n == wanted))
    }

    fn require(&mut self, text: impl Into<String>, seen: Seen) {
        let text = text.into();
        if !text.trim().is_empty() {
            self.requirements.push(Requirement { text: text.trim().into(), seen });
        }
    }
}

/// A distribution's name in its one form.
///
/// # Source
/// PEP 503.
#[must_use]
pub fn normalise(name: &str) -> String {
    let mut out = String::new();
    for c in name.trim().chars() {
        if matches!(c, '-' | '_' | '.') {
            if !out.ends_with('-') {
                out.push('-');
            }
        } else {
            out.extend(c.to_lowercase());
        }
    }
    out
}

/// The normalised name at the beginning of a requirement.
#[must_use]
pub fn name_of(requirement: &str) -> Option<String> {
    let text = requirement.trim();
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).unwrap_or(text.len());
    let name = text.get(..end).filter(|n| n.starts_with(|c: char| c.is_ascii_alphanumeric()))?;
    // `https://…` and `./folder` are no names.
    (!text.get(end..).is_some_and(|rest| rest.starts_with([':', '/', '+']))).then(|| normalise(name))
}

/// Finds the files that declare dependencies, best first, and reads the best.
pub(crate) fn find(folder: &Path) -> Result<Declared, InferError> {
    let mut declared = Declared::default();
    let has = |name: &str| folder.join(name).is_file();
    let requirements = requirements_file(folder);
    if let Some(name) = requirements {
        read_file(folder, &name, &mut declared)?;
    } else {
        for name in ["pyproject.toml", "Pipfile", "environment.yml", "environment.yaml", "setup.cfg", "setup.py"] {
            if has(name) {
                let mut candidate = Declared::default();
                read_file(folder, name, &mut candidate)?;
                if !candidate.requirements.is_empty() {
                    declared = candidate;
                    break;
                }
            }
        }
    }
    if has("pyproject.toml") && !declared.files.iter().any(|f| f == "pyproject.toml") {
        let mut other = Declared::default();
        read_file(folder, "pyproject.toml", &mut other)?;
        declared.python.extend(other.python);
    }
    python_files(folder, &mut declared)?;
    Ok(declared)
}

/// Reads the files that a manifest names.
pub(crate) fn named(folder: &Path, files: &[String]) -> Result<Declared, InferError> {
    let mut declared = Declared::default();
    for file in files {
        read_file(folder, file, &mut declared)?;
    }
    python_files(folder, &mut declared)?;
    Ok(declared)
}

fn requirements_file(folder: &Path) -> Option<String> {
    const FIRST: [&str; 8] = [
        "requirements.txt",
        "requirements.in",
        "requirements/prod.txt",
        "requirements/production.txt",
        "requirements/base.txt",
        "requirements/main.txt",
        "requirements-prod.txt",
        "requirements_prod.txt",
    ];
    if let Some(name) = FIRST.iter().find(|n| folder.join(n).is_file()) {
        return Some((*name).to_owned());
    }
    let mut others: Vec<String> = fs::read_dir(folder)
        .ok()?
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.starts_with("requirements") && n.ends_with(".txt"))
        .filter(|n| !["dev", "test", "doc", "lint", "ci"].iter().any(|w| n.contains(w)))
        .collect();
    others.sort();
    others.into_iter().next()
}

fn text_of(folder: &Path, name: &str) -> Result<String, InferError> {
    let bad = |why: &str| InferError::Dependencies { file: name.into(), why: why.into() };
    let leaves = Path::new(name).components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir));
    if leaves {
        return Err(bad("it is outside of the folder"));
    }
    let path = folder.join(name);
    let meta = fs::metadata(&path).map_err(|_| bad("there is no such file"))?;
    // WHY: a link to a device or a pipe has no length, and reading it may never end.
    if !meta.is_file() {
        return Err(bad("it is no file"));
    }
    if meta.len() > FILE_LIMIT {
        return Err(bad("it is too large"));
    }
    let bytes = fs::read(&path).map_err(|e| InferError::io(&path, e))?;
    decode(&bytes).ok_or_else(|| bad("it is not text"))
}

/// UTF-8 with or without mark, UTF-16 as Windows shells write it, or else Latin-1; nothing of what is no text.
fn decode(bytes: &[u8]) -> Option<String> {
    let wide = |bytes: &[u8], big: bool| {
        let units = bytes.chunks_exact(2).map(|pair| match (pair.first(), pair.get(1)) {
            (Some(a), Some(b)) if big => u16::from_be_bytes([*a, *b]),
            (Some(a), Some(b)) => u16::from_le_bytes([*a, *b]),
            _ => 0,
        });
        String::from_utf16(&units.collect::<Vec<_>>()).ok()
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => wide(rest, false),
        [0xfe, 0xff, rest @ ..] => wide(rest, true),
        // Without a mark, the zeros beside ASCII tell.
        [first, 0, ..] if *first != 0 => wide(bytes, false),
        [0, second, ..] if *second != 0 => wide(bytes, true),
        [0xef, 0xbb, 0xbf, rest @ ..] => Some(narrow(rest)),
        _ => Some(narrow(bytes)),
    };
    text.filter(|text| !text.contains('\0'))
}

/// UTF-8, or else Latin-1, whose control characters would reach a terminal and are left out.
fn narrow(bytes: &[u8]) -> String {
    let latin = |b: &u8| if (0x80..0xa0).contains(b) { char::REPLACEMENT_CHARACTER } else { char::from(*b) };
    std::str::from_utf8(bytes).map_or_else(|_| bytes.iter().map(latin).collect(), str::to_owned)
}

fn read_file(folder: &Path, name: &str, into: &mut Declared) -> Result<(), InferError> {
    let name = name.trim_start_matches("./");
    let base = name.rsplit('/').next().unwrap_or(name);
    match base {
        "pyproject.toml" => pyproject(name, &text_of(folder, name)?, into)?,
        "Pipfile" => pipfile(name, &text_of(folder, name)?, into)?,
        "setup.cfg" => setup_cfg(name, &text_of(folder, name)?, into),
        "setup.py" => setup_py(name, &text_of(folder, name)?, into),
        _ if base.ends_with(".yml") || base.ends_with(".yaml") => environment(name, &text_of(folder, name)?, into),
        _ => return requirements(folder, &clean(name), into, false, &mut Includes::default()),
    }
    into.files.push(name.into());
    Ok(())
}

/// Requirements files that were read, and those that are being read.
#[derive(Default)]
struct Includes {
    open: Vec<String>,
    read: BTreeSet<(String, bool)>,
    projects: BTreeSet<String>,
}

impl Includes {
    /// Whether a file is still to be read: each counts once as requirements and once as constraints.
    ///
    /// Without that, files that include one another twice cost twice as much with each level.
    fn begin(&mut self, name: &str, constraint: bool) -> Result<bool, InferError> {
        let bad = |why: String| Err(InferError::Dependencies { file: name.into(), why });
        if let Some(at) = self.open.iter().position(|open| open == name) {
            let way: Vec<String> = self.open.iter().skip(at + 1).map(|file| format!("`{file}`")).collect();
            let way = if way.is_empty() { String::new() } else { format!(", by way of {}", way.join(", ")) };
            return bad(format!("it includes itself{way}; take out one of these lines"));
        }
        if self.open.len() >= DEPTH {
            return bad(format!("it is included more than {DEPTH} files deep"));
        }
        if !self.read.insert((name.to_owned(), constraint)) {
            return Ok(false);
        }
        if self.read.len() > INCLUDED {
            return bad(format!("it is one of more than {INCLUDED} included files"));
        }
        self.open.push(name.to_owned());
        Ok(true)
    }
}

/// `requirements.txt` and what it includes.
///
/// # Source
/// pip's reference, "Requirements File Format".
fn requirements(
    folder: &Path,
    name: &str,
    into: &mut Declared,
    constraint: bool,
    includes: &mut Includes,
) -> Result<(), InferError> {
    let bad = |why: String| InferError::Dependencies { file: name.into(), why };
    if !includes.begin(name, constraint)? {
        return Ok(());
    }
    let text = text_of(folder, name)?;
    into.files.push(name.into());
    let parent = name.rsplit_once('/').map_or(String::new(), |(p, _)| format!("{p}/"));
    for (number, line) in joined(&text) {
        let seen = Seen::new(name, number);
        if let Some(variable) = variable(&line) {
            let why = format!("line {number} wants the environment variable `{variable}`, which no build gets");
            return Err(bad(why));
        }
        if let Some(path) = local(&line) {
            if !constraint {
                project(folder, path, &seen, into, includes)?;
            }
            continue;
        }
        if !line.starts_with('-') {
            let (text, note) = readable(&line);
            into.notes.extend(note.map(|text| Requirement { text, seen: seen.clone() }));
            let target = if constraint { &mut into.constraints } else { &mut into.requirements };
            target.extend(text.map(|text| Requirement { text, seen }));
            continue;
        }
        let (option, value) = match line.find(|c: char| c == '=' || c.is_whitespace()) {
            Some(at) => (line.get(..at).unwrap_or_default(), line.get(at + 1..).unwrap_or_default().trim()),
            None if line.len() > 2 && !line.starts_with("--") => line.split_at(2),
            None => (line.as_str(), ""),
        };
        match option {
            "-r" | "--requirement" => {
                requirements(folder, &clean(&format!("{parent}{value}")), into, constraint, includes)?;
            }
            "-c" | "--constraint" => {
                requirements(folder, &clean(&format!("{parent}{value}")), into, true, includes)?;
            }
            "-i" | "--index-url" | "--pypi-url" => into.index_options.push(format!("--index-url {value}")),
            "--extra-index-url" | "-f" | "--find-links" => {
                let option = if option == "-f" { "--find-links" } else { option };
                into.index_options.push(format!("{option} {value}"));
            }
            "-e" | "--editable" => into.require(value, seen),
            "--no-cache-dir"
            | "--no-index"
            | "--only-binary"
            | "--no-binary"
            | "--prefer-binary"
            | "--pre"
            | "--require-hashes"
            | "--trusted-host"
            | "--use-feature"
            | "--no-deps"
            | "--upgrade"
            | "-U"
            | "--user"
            | "--break-system-packages"
            | "--config-settings"
            | "--global-option" => {}
            // A rule, as people draw it below a heading.
            rule if rule.bytes().all(|b| b == b'-') => {}
            other => return Err(bad(format!("line {number} has an option that is not known: `{other}`"))),
        }
    }
    includes.open.pop();
    Ok(())
}

/// A line as a requirement, or nothing; and what had to be made of it, if it is none as it stands.
fn readable(line: &str) -> (Option<String>, Option<String>) {
    let (head, hashes) = match line.find(" --") {
        Some(at) => line.split_at(at),
        None => (line, ""),
    };
    let head = head.trim();
    let shown: String = head.chars().take(80).collect();
    let Some(end) = name_of(head)
        .and_then(|_| head.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).or(Some(head.len())))
    else {
        if head.contains("://") || head.starts_with('/') {
            return (Some(line.to_owned()), None);
        }
        return (None, Some(format!("`{shown}` is no requirement, and is left out")));
    };
    let (name, rest) = head.split_at(end);
    let (extras, rest) = match rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((extras, rest)) => (format!("[{extras}]"), rest),
        None => (String::new(), rest),
    };
    let (bound, marker) = rest.split_once(';').map_or((rest, None), |(bound, marker)| (bound, Some(marker)));
    let bound = bound.trim();
    if let Some(place) = bound.strip_prefix('@') {
        if place.trim().starts_with("file:") {
            let what = format!("`{shown}` names a file of another machine; the released {name} is taken");
            return (Some(format!("{name}{extras}")), Some(what));
        }
        return (Some(line.to_owned()), None);
    }
    let plain = bound.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(bound);
    if plain.is_empty() || plain.parse::<VersionSpecifiers>().is_ok() {
        return (Some(line.to_owned()), None);
    }
    let mended = |bound: &str| {
        let marker = marker.map(|marker| format!(" ;{marker}")).unwrap_or_default();
        format!("{name}{extras}{bound}{marker}{hashes}")
    };
    // What conda exports, and what `pip list` prints.
    let version = plain.strip_prefix('=').unwrap_or(plain).split('=').next().unwrap_or_default().trim();
    if (plain.starts_with('=') || bound.len() < rest.len()) && version.parse::<Version>().is_ok() {
        return (Some(mended(&format!("=={version}"))), Some(format!("`{shown}` is read as `{name}=={version}`")));
    }
    if plain.starts_with(['<', '>', '=', '!', '~']) {
        return (Some(mended("")), Some(format!("`{shown}` has a bound that is none; any {name} is taken")));
    }
    (None, Some(format!("`{shown}` is no requirement, and is left out")))
}

/// Lines with continuations joined and comments taken off.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, raw) in text.lines().enumerate() {
        let (number, mut line) = open.take().unwrap_or((index + 1, String::new()));
        let without = match raw.trim_start().starts_with('#') {
            true => "",
            false => raw.find(" #").and_then(|at| raw.get(..at)).unwrap_or(raw),
        };
        if let Some(more) = without.trim_end().strip_suffix('\\') {
            line.push_str(more.trim());
            line.push(' ');
            open = Some((number, line));
            continue;
        }
        line.push_str(without.trim());
        lines.push((number, line));
    }
    lines.extend(open);
    lines.into_iter().map(|(n, l)| (n, l.trim().to_owned())).filter(|(_, l)| !l.is_empty()).collect()
}

fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|p| *p != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The environment variable that a requirement asks for; indexes are judged where they are allowed.
fn variable(line: &str) -> Option<&str> {
    let option = line.starts_with('-') && editable(line).is_none();
    let (_, rest) = line.split_once("${").filter(|_| !option)?;
    rest.split('}').next()
}

/// What an editable line names.
fn editable(line: &str) -> Option<&str> {
    let value = line.strip_prefix("--editable").or_else(|| line.strip_prefix("-e"))?;
    let value = value.strip_prefix('=').unwrap_or(value);
    Some(value.trim().trim_matches(['"', '\'']))
}

/// The path that a line names, if it names one.
fn local(line: &str) -> Option<&str> {
    let text = editable(line).unwrap_or(line);
    let here = text == "." || text == ".." || [".[", "./", "../", "/", "file:"].iter().any(|p| text.starts_with(p));
    // pip takes any word after `-e` for a folder; a name after it is a slip that people make, and is meant.
    here.then(|| text.split([';', ' ']).next().unwrap_or(text))
}

/// What a project within the folder depends on; its source is in the image anyway.
///
/// # Source
/// pip's reference: a relative path is one from where pip is run, not from the requirements file.
fn project(
    folder: &Path,
    path: &str,
    seen: &Seen,
    into: &mut Declared,
    includes: &mut Includes,
) -> Result<(), InferError> {
    let bad = |what: &str| {
        let why =
            format!("line {} names `{path}`, {what}; copy it into the folder, or name a released package", seen.line);
        Err(InferError::Dependencies { file: seen.file.clone(), why })
    };
    let plain = path.strip_prefix("file:").unwrap_or(path);
    let plain = plain.split('[').next().unwrap_or(plain);
    if plain.starts_with('/') {
        return bad("a path of one machine only");
    }
    let plain = clean(plain);
    if plain.split('/').next() == Some("..") {
        return bad("which is outside of the folder");
    }
    if !includes.projects.insert(plain.clone()) {
        return Ok(());
    }
    let at = folder.join(&plain);
    if !at.is_dir() {
        let what = if at.is_file() { "is a file, which is not installed" } else { "is not there, and is left out" };
        into.notes.push(Requirement { text: one(&format!("`{path}` {what}")), seen: seen.clone() });
        return Ok(());
    }
    for file in ["pyproject.toml", "setup.cfg", "setup.py"] {
        let name = if plain.is_empty() { file.to_owned() } else { format!("{plain}/{file}") };
        if !folder.join(&name).is_file() {
            continue;
        }
        let mut own = Declared::default();
        read_file(folder, &name, &mut own)?;
        into.files.append(&mut own.files);
        into.python.append(&mut own.python);
        if !own.requirements.is_empty() {
            into.requirements.append(&mut own.requirements);
            break;
        }
    }
    Ok(())
}

/// PEP 621, and Poetry's own table.
fn pyproject(name: &str, text: &str, into: &mut Declared) -> Result<(), InferError> {
    let document: toml::Table =
        toml::from_str(text).map_err(|e| InferError::Dependencies { file: name.into(), why: one(e.message()) })?;
    let seen = |needle: &str| Seen::new(name, line_with(text, needle));
    let project = document.get("project").and_then(toml::Value::as_table);
    let sources = document.get("tool").and_then(|t| t.get("uv")?.get("sources")?.as_table());
    if let Some(list) = project.and_then(|p| p.get("dependencies")).and_then(toml::Value::as_array) {
        for text in list.iter().filter_map(toml::Value::as_str) {
            let source = sources.and_then(|all| all.iter().find(|(name, _)| name_of(text) == Some(normalise(name))));
            match source.and_then(|(_, source)| elsewhere(text, source)) {
                None => into.require(text, seen(text)),
                Some(Ok(text_there)) => into.require(text_there, seen(text)),
                Some(Err(why)) => into.notes.push(Requirement { text: why, seen: seen(text) }),
            }
        }
    }
    if let Some(bound) = project.and_then(|p| p.get("requires-python")).and_then(toml::Value::as_str) {
        into.python.push(Requirement { text: bound.into(), seen: seen("requires-python") });
    }
    let poetry = document.get("tool").and_then(|t| t.get("poetry")?.get("dependencies")?.as_table());
    for (package, value) in poetry.into_iter().flatten() {
        if package == "python" {
            if let Some(bound) = value.as_str() {
                into.python.push(Requirement { text: poetry_bound(bound), seen: seen("python") });
            }
        } else if project.is_none_or(|p| !p.contains_key("dependencies"))
            && let Some(text) = poetry_requirement(package, value)
        {
            into.require(text, seen(package));
        }
    }
    Ok(())
}

/// A requirement that `[tool.uv.sources]` takes from elsewhere than an index, or why it is left out.
///
/// The index may have a stranger's release of the same name, which must not come in its place.
fn elsewhere(text: &str, source: &toml::Value) -> Option<Result<String, String>> {
    // One for each marker; the first is the one that its author had.
    let source = source.as_array().and_then(|list| list.first()).unwrap_or(source);
    let word = |key: &str| source.get(key).and_then(toml::Value::as_str);
    let (head, marker) = text.split_once(';').map_or((text, String::new()), |(head, m)| (head, format!(" ;{m}")));
    let bound = head.find(['<', '>', '=', '!', '~', '(', '@']).unwrap_or(head.len());
    let name = head.get(..bound).unwrap_or(head).trim();
    if let Some(url) = word("git") {
        let at = ["rev", "tag", "branch"].into_iter().find_map(word).map(|at| format!("@{at}")).unwrap_or_default();
        let below = word("subdirectory").map(|below| format!("#subdirectory={below}")).unwrap_or_default();
        return Some(Ok(format!("{name} @ git+{url}{at}{below}{marker}")));
    }
    if let Some(url) = word("url") {
        return Some(Ok(format!("{name} @ {url}{marker}")));
    }
    let own = source.get("path").is_some() || source.get("workspace").is_some();
    own.then(|| Err(one(&format!("`{name}` is a folder of the author's by `[tool.uv.sources]`, and is left out"))))
}

fn poetry_requirement(package: &str, value: &toml::Value) -> Option<String> {
    let (version, extras) = match value {
        toml::Value::String(version) => (version.clone(), String::new()),
        toml::Value::Array(versions) => return poetry_requirement(package, versions.first()?),
        toml::Value::Table(table) => {
            if table.contains_key("path") || table.get("optional").and_then(toml::Value::as_bool) == Some(true) {
                return None;
            }
            if let Some(git) = table.get("git").and_then(toml::Value::as_str) {
                return Some(format!("{package} @ git+{git}"));
            }
            if let Some(url) = table.get("url").and_then(toml::Value::as_str) {
                return Some(format!("{package} @ {url}"));
            }
            let extras: Vec<&str> = table
                .get("extras")
                .and_then(toml::Value::as_array)
                .map(|list| list.iter().filter_map(toml::Value::as_str).collect())
                .unwrap_or_default();
            let extras = if extras.is_empty() { String::new() } else { format!("[{}]", extras.join(",")) };
            (table.get("version").and_then(toml::Value::as_str).unwrap_or("*").to_owned(), extras)
        }
        _ => return None,
    };
    Some(format!("{package}{extras}{}", poetry_bound(&version)))
}

/// `^1.2` and `~1.2` in the words of PEP 440.
fn poetry_bound(bound: &str) -> String {
    let each = |part: &str| {
        let part = part.trim();
        let numbers = |v: &str| v.split('.').map_while(|n| n.parse::<u64>().ok()).collect::<Vec<_>>();
        let upper = |numbers: &[u64], at: usize| {
            let kept: Vec<String> = numbers
                .iter()
                .take(at + 1)
                .enumerate()
                .map(|(i, n)| if i == at { (n + 1).to_string() } else { n.to_string() })
                .collect();
            kept.join(".")
        };
        if part == "*" || part.is_empty() {
            String::new()
        } else if let Some(version) = part.strip_prefix('^') {
            let numbers = numbers(version);
            let at = numbers.iter().position(|n| *n != 0).unwrap_or(numbers.len().saturating_sub(1));
            format!(">={version},<{}", upper(&numbers, at))
        } else if let Some(version) = part.strip_prefix('~').filter(|v| !v.starts_with('=')) {
            let numbers = numbers(version);
            format!(">={version},<{}", upper(&numbers, usize::from(numbers.len() > 1)))
        } else if part.starts_with(|c: char| c.is_ascii_digit()) {
            format!("=={part}")
        } else {
            part.replace(' ', "")
        }
    };
    let parts: Vec<String> = bound.split("||").next().unwrap_or_default().split(',').map(each).collect();
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(",")
}

fn pipfile(name: &str, text: &str, into: &mut Declared) -> Result<(), InferError> {
    let document: toml::Table =
        toml::from_str(text).map_err(|e| InferError::Dependencies { file: name.into(), why: one(e.message()) })?;
    for (package, value) in document.get("packages").and_then(toml::Value::as_table).into_iter().flatten() {
        if let Some(requirement) = poetry_requirement(package, value) {
            into.require(requirement, Seen::new(name, line_with(text, package)));
        }
    }
    let python = document.get("requires").and_then(|r| r.get("python_version").or(r.get("python_full_version")));
    if let Some(version) = python.and_then(toml::Value::as_str) {
        let minor: Vec<&str> = version.split('.').take(2).collect();
        let seen = Seen::new(name, line_with(text, "python_"));
        into.python.push(Requirement { text: format!("=={}.*", minor.join(".")), seen });
    }
    Ok(())
}

/// The part of conda's `environment.yml` that names packages: a list of `- name=version`, and one of `pip:` below it.
fn environment(name: &str, text: &str, into: &mut Declared) {
    let mut in_list = false;
    let mut pip_indent: Option<usize> = None;
    for (index, raw) in text.lines().enumerate() {
        let line = raw.split(" #").next().unwrap_or_default();
        let trimmed = line.trim();
        let indent = line.len() - line.trim_start().len();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if !trimmed.starts_with('-') && indent == 0 {
            in_list = trimmed == "dependencies:";
            pip_indent = None;
            continue;
        }
        let Some(item) = trimmed.strip_prefix('-').map(|i| i.trim().trim_matches(['"', '\''])) else { continue };
        if !in_list {
            continue;
        }
        let seen = Seen::new(name, index + 1);
        if item == "pip:" {
            pip_indent = Some(indent);
        } else if pip_indent.is_some_and(|pip| indent > pip) {
            if !item.starts_with('-') {
                into.require(item, seen);
            }
        } else {
            pip_indent = None;
            conda(item, seen, into);
        }
    }
}

/// `channel::name=1.2=build` becomes `name==1.2.*`.
fn conda(item: &str, seen: Seen, into: &mut Declared) {
    let item = item.rsplit("::").next().unwrap_or(item);
    let end = item.find(['=', '<', '>', '!', ' ', '~']).unwrap_or(item.len());
    let (package, bound) = item.split_at(end);
    let bound = bound.replace(' ', "");
    let bound = match bound.strip_prefix('=').filter(|b| !b.starts_with('=')) {
        Some(version) => format!("=={}.*", version.split('=').next().unwrap_or_default().trim_end_matches(".*")),
        None => bound,
    };
    if package == "python" {
        into.python.push(Requirement { text: bound, seen });
    } else if !matches!(package, "pip" | "setuptools" | "wheel" | "conda") && !package.starts_with('_') {
        into.require(format!("{package}{bound}"), seen);
    }
}

fn setup_cfg(name: &str, text: &str, into: &mut Declared) {
    let mut section = String::new();
    let mut key = String::new();
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = trimmed.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            section = header.to_owned();
            key.clear();
            continue;
        }
        let mut value = trimmed;
        if !line.starts_with([' ', '\t'])
            && let Some((k, v)) = trimmed.split_once('=')
        {
            key = k.trim().to_owned();
            value = v.trim();
        }
        let seen = Seen::new(name, index + 1);
        match (section.as_str(), key.as_str()) {
            ("options", "install_requires") => into.require(value, seen),
            ("options", "python_requires") => into.python.push(Requirement { text: value.into(), seen }),
            _ => {}
        }
    }
}

/// String literals of `install_requires=[…]`, or of the list that the name there was given.
fn setup_py(name: &str, text: &str, into: &mut Declared) {
    let lines = python::read(text);
    let list = |line: &python::Line, from: usize, into: &mut Declared| {
        if !line.is_op(from, '[') {
            return;
        }
        for (number, token) in line.tokens.iter().skip(from + 1) {
            match token {
                Token::Text { value, formatted: false } => into.require(value, Seen::new(name, *number)),
                Token::Op(']') => break,
                _ => {}
            }
        }
    };
    for line in &lines {
        for caught in python::find(line, "install_requires =") {
            list(line, caught.end, into);
            if let Some(variable) = line.name(caught.end) {
                for other in &lines {
                    if let Some(found) = python::begins(other, &format!("{variable} =")) {
                        list(other, found.end, into);
                    }
                }
            }
        }
        for caught in python::find(line, "python_requires = $s") {
            let bound = caught.texts.first().cloned().unwrap_or_default();
            into.python.push(Requirement { text: bound, seen: Seen::new(name, caught.line) });
        }
    }
}

/// `.python-version` and `runtime.txt`.
fn python_files(folder: &Path, into: &mut Declared) -> Result<(), InferError> {
    for name in [".python-version", "runtime.txt"] {
        if !folder.join(name).is_file() {
            continue;
        }
        let text = text_of(folder, name)?;
        let Some(line) = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')) else { continue };
        let version = line.trim_start_matches("python-").trim_start_matches("cpython-");
        let numbers: Vec<&str> = version.split('.').take(2).collect();
        if numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) && numbers.len() == 2 {
            into.python.push(Requirement { text: format!("=={}.*", numbers.join(".")), seen: Seen::new(name, 1) });
        }
    }
    Ok(())
}

fn line_with(text: &str, needle: &str) -> usize {
    text.lines().position(|l| l.contains(needle)).map_or(0, |at| at + 1)
}

fn one(text: &str) -> String {
    ringfence_model::report::one_line(text)
}
