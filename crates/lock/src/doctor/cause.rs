//! What an error means: which module or name is missing and who wants it, or what the agent only waits for.

use std::collections::BTreeSet;

use super::report::{Frame, Phase, Probed, Raised};

/// Whether an agent starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does.
    Started,
    /// It does, and stops for want of something that is not part of it.
    Blocked(Blocked),
    /// Its dependencies are wrong, for these reasons.
    Failed(Vec<Cause>),
    /// Its own code is wrong.
    Broken(Cause),
}

/// What an agent stops for, though its dependencies are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blocked {
    /// A key, a password or a setting.
    Secret,
    /// A host.
    Network,
    /// A service that should run beside it.
    Service,
    /// A file.
    Data,
    /// A screen, a microphone or another device.
    Device,
    /// Somebody who types.
    Input,
}

/// Whose code it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The agent's own.
    Agent,
    /// Python's.
    Python,
    /// A package's, by the first part of its path below the packages' folder.
    Package(String),
}

/// Why an agent fails.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// There is no such module.
    NoModule {
        /// Its dotted name.
        module: String,
        /// Who imports it.
        by: Owner,
        /// Distributions that the error's text says to install.
        told: Vec<String>,
    },
    /// There is no such program to start the agent with.
    NoProgram {
        /// Its name.
        program: String,
    },
    /// The module is there, the name in it is not.
    NoName {
        /// The module.
        module: String,
        /// The name.
        name: String,
        /// Who wants it.
        by: Owner,
    },
    /// A library of the system is missing.
    NoLibrary {
        /// Its file name, such as `libGL.so.1`.
        file: String,
        /// Which package loads it.
        by: Owner,
    },
    /// A compiled package was made for another version of what it is called with.
    Binary {
        /// What is called, such as `numpy`.
        of: String,
        /// The package.
        by: Owner,
        /// What is said.
        said: String,
    },
    /// A library asks for a newer release of another one than it finds.
    Floor {
        /// The other one's distribution.
        of: String,
        /// The release from which it would do.
        least: String,
        /// Which library.
        by: Owner,
        /// What is said.
        said: String,
    },
    /// A library says itself what it lacks.
    Told {
        /// Distributions.
        distributions: Vec<String>,
        /// Which library.
        by: Owner,
        /// What is said.
        said: String,
    },
    /// A call does not fit what is called.
    Call {
        /// What is called, as the text has it, such as `Client.__init__`.
        callee: String,
        /// What is said.
        said: String,
        /// Who calls.
        by: Owner,
    },
    /// The syntax is of another Python.
    Syntax {
        /// Whose code.
        by: Owner,
        /// File and line.
        at: String,
        /// What is said.
        said: String,
    },
    /// Something else is raised.
    Other {
        /// The error's type.
        kind: String,
        /// Its text.
        said: String,
        /// Where it is raised.
        by: Owner,
    },
    /// It ended, or did not answer, and nothing says why.
    Silent {
        /// How far it came and how it ended.
        said: String,
    },
}

const SAID: usize = 600;

/// Judges what happened. `own` are the first parts of the agent's own modules.
#[must_use]
pub fn judge(probed: &Probed, own: &BTreeSet<String>) -> Verdict {
    let start = judge_start(probed, own);
    let Verdict::Failed(mut causes) = start else { return start };
    // What else is missing, so that one try answers it all. By itself it is nothing: not all that is imported is reached.
    let failed = probed.imports.iter().filter(|import| !import.ok).filter_map(|import| import.error.as_ref());
    for raised in failed {
        match understand(raised, own) {
            Meaning::Wrong(cause) if !causes.contains(&cause) => causes.push(cause),
            _ => {}
        }
    }
    Verdict::Failed(causes)
}

fn judge_start(probed: &Probed, own: &BTreeSet<String>) -> Verdict {
    let mut causes = BTreeSet::new();
    let mut blocked = BTreeSet::new();
    let mut broken = None;
    for raised in &probed.errors {
        match understand(raised, own) {
            Meaning::Blocked(what) => drop(blocked.insert(what)),
            Meaning::Wrong(cause) => drop(causes.insert(cause)),
            Meaning::Own(cause) => drop(broken.get_or_insert(cause)),
            Meaning::Harmless => {}
        }
    }
    if !causes.is_empty() {
        return Verdict::Failed(causes.into_iter().collect());
    }
    if let Some(cause) = broken {
        return Verdict::Broken(cause);
    }
    if let Some(what) = blocked.into_iter().next() {
        return Verdict::Blocked(what);
    }
    // What the probe did not see through says nothing of the agent.
    if let Some(why) = &probed.probe_error {
        return silent(cut(&format!("the probe that starts it failed: {why}")));
    }
    let served = probed.answered || probed.phase == Phase::Settled;
    match (served, probed.exit, probed.signal) {
        (_, _, Some(signal)) => silent(format!("signal {signal} ended it")),
        (_, Some(code), None) if code != 0 => quiet(code, probed),
        _ if probed.waits_for_input => Verdict::Blocked(Blocked::Input),
        (true, _, _) => Verdict::Started,
        (false, Some(_), None) => silent("it ended before it answered".into()),
        (false, None, None) => silent("it lives, and does not answer".into()),
    }
}

fn silent(said: String) -> Verdict {
    Verdict::Failed(vec![Cause::Silent { said }])
}

/// An end with an error status and without a traceback: its last words decide.
fn quiet(code: i32, probed: &Probed) -> Verdict {
    let words = format!("{}\n{}", tail(&probed.stdout), tail(&probed.stderr));
    if let Some(what) = waits_for("", &words) {
        return Verdict::Blocked(what);
    }
    let usage = code == 2 && ["usage:", "Usage:"].iter().any(|word| words.contains(word));
    if usage {
        return Verdict::Blocked(Blocked::Input);
    }
    let told = told(&words);
    let last = words.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let said = cut(&format!("it ended with status {code}: {last}"));
    match told.is_empty() {
        true => silent(said),
        false => Verdict::Failed(vec![Cause::Told { distributions: told, by: Owner::Agent, said }]),
    }
}

enum Meaning {
    Wrong(Cause),
    Own(Cause),
    Blocked(Blocked),
    Harmless,
}

fn understand(raised: &Raised, own: &BTreeSet<String>) -> Meaning {
    let by = raised.frames.last().map_or(Owner::Agent, owner);
    if raised.seen_in == "spawn"
        && raised.name() == "FileNotFoundError"
        && let Some(program) = between(&raised.message, "directory: '", "'")
    {
        let program = program.rsplit('/').next().unwrap_or(program).to_owned();
        return Meaning::Wrong(Cause::NoProgram { program });
    }
    // Whoever catches an error and raises another of a more general kind has not changed why.
    let missing = raised.chain.iter().rev().chain([raised]).filter(|r| is_import(r)).find_map(import);
    if let Some(cause) = missing.filter(|_| !is_wait(raised)) {
        return match &cause {
            Cause::NoModule { module, .. } | Cause::NoName { module, .. } if is_own(module, own) => Meaning::Own(cause),
            _ => Meaning::Wrong(cause),
        };
    }
    let said = || cut(&raised.message);
    match raised.name() {
        "KeyboardInterrupt" | "CancelledError" | "BrokenPipeError" | "SystemExit" => return Meaning::Harmless,
        "EOFError" => return Meaning::Blocked(Blocked::Input),
        "SyntaxError" | "IndentationError" | "TabError" => {
            let last = raised.frames.last();
            let at = last.map(|f| format!("{}:{}", f.file, f.line.unwrap_or_default())).unwrap_or_default();
            let own = by == Owner::Agent;
            let cause = Cause::Syntax { by, at, said: said() };
            return if own { Meaning::Own(cause) } else { Meaning::Wrong(cause) };
        }
        _ => {}
    }
    if let Some(file) = library(&raised.message).filter(|_| by != Owner::Agent) {
        return Meaning::Wrong(Cause::NoLibrary { file, by });
    }
    if let Some(cause) = binary(raised, &by).or_else(|| floor(raised, &by)) {
        return Meaning::Wrong(cause);
    }
    // A library that is given nothing where it wants something: a setting that nobody gave.
    let nothing = by != Owner::Agent && raised.message.contains("NoneType") && !while_importing(raised);
    if nothing && matches!(raised.name(), "AttributeError" | "TypeError") {
        return Meaning::Blocked(Blocked::Secret);
    }
    if let Some(cause) = attribute(raised, own, &by).or_else(|| call(raised, own, &by)) {
        return Meaning::Wrong(cause);
    }
    if let Some(what) = raised.chain.iter().chain([raised]).find_map(|r| waits_for(r.name(), &r.message)) {
        return Meaning::Blocked(what);
    }
    let distributions = told(&raised.message);
    if !distributions.is_empty() {
        return Meaning::Wrong(Cause::Told { distributions, by, said: said() });
    }
    let other = Cause::Other { kind: raised.kind.clone(), said: said(), by: by.clone() };
    // What a library raises when it is used, and not when it is imported, is an answer to how it is used.
    match by {
        Owner::Agent => Meaning::Own(other),
        _ if while_importing(raised) || is_drift(raised.name()) => Meaning::Wrong(other),
        _ => Meaning::Own(other),
    }
}

/// Whether an error is raised while a library is imported: its own top level runs.
fn while_importing(raised: &Raised) -> bool {
    let top = |frame: &Frame| frame.function == "<module>" && matches!(owner(frame), Owner::Package(_));
    raised.frames.iter().any(top)
}

/// Whether a type of error says that what is called is no longer what it was.
fn is_drift(kind: &str) -> bool {
    ["Removed", "Deprecat", "Pydantic", "NotImplemented", "Moved", "Unsupported"].iter().any(|word| kind.contains(word))
}

fn is_import(raised: &Raised) -> bool {
    matches!(raised.name(), "ImportError" | "ModuleNotFoundError")
}

/// Whether an error that follows a failed import is about something else: the import had a way around it.
fn is_wait(raised: &Raised) -> bool {
    !is_import(raised) && waits_for(raised.name(), &raised.message).is_some() && told(&raised.message).is_empty()
}

/// What an import lacks.
fn import(raised: &Raised) -> Option<Cause> {
    let message = &raised.message;
    let by = importer(raised);
    if let Some(module) = between(message, "No module named '", "'").or_else(|| after(message, "No module named ")) {
        let module = module.trim_matches(['\'', '"']).to_owned();
        return Some(Cause::NoModule { module, by, told: told(message) });
    }
    if let Some(name) = between(message, "cannot import name '", "'") {
        let module =
            between(message, "from partially initialized module '", "'").or_else(|| between(message, "from '", "'"))?;
        return Some(Cause::NoName { module: module.into(), name: name.into(), by });
    }
    if let Some(file) = library(message) {
        return Some(Cause::NoLibrary { file, by });
    }
    if let Some(cause) = binary(raised, &by).or_else(|| floor(raised, &by)) {
        return Some(cause);
    }
    let distributions = told(message);
    if !distributions.is_empty() {
        return Some(Cause::Told { distributions, by, said: cut(message) });
    }
    // A library's own words, such as that another is too old.
    Some(Cause::Other { kind: raised.kind.clone(), said: cut(message), by })
}

/// Who wants what was imported: the innermost code that is not the import machinery's.
fn importer(raised: &Raised) -> Owner {
    let machinery = |frame: &&Frame| {
        let python = owner(frame) == Owner::Python;
        python && (frame.file.contains("importlib") || frame.file.starts_with("<frozen"))
    };
    raised.frames.iter().rev().find(|frame| !machinery(frame)).map_or(Owner::Agent, owner)
}

/// Whose code a frame is of.
fn owner(frame: &Frame) -> Owner {
    let file = frame.file.as_str();
    let packages = ["/site-packages/", "/dist-packages/"].iter().find_map(|mark| Some(file.split_once(mark)?.1));
    if let Some(rest) = packages {
        let first = rest.split('/').next().unwrap_or(rest);
        return Owner::Package(first.split('.').next().unwrap_or(first).to_owned());
    }
    let python = file.starts_with("<frozen") || is_standard(file);
    if python { Owner::Python } else { Owner::Agent }
}

/// `/usr/lib/python3.11/…` and the like.
fn is_standard(file: &str) -> bool {
    file.match_indices("/lib/python3").any(|(at, mark)| {
        let rest = file.get(at + mark.len()..).unwrap_or_default();
        rest.starts_with('.') || rest.starts_with('/')
    })
}

/// Compiled code that was made for another version.
fn binary(raised: &Raised, by: &Owner) -> Option<Cause> {
    const NUMPY: [&str; 6] = [
        "numpy.dtype size changed",
        "numpy.core.multiarray failed to import",
        "_ARRAY_API not found",
        "compiled using NumPy 1",
        "numpy.ufunc size changed",
        "module compiled against API version",
    ];
    let said = &raised.message;
    let numpy =
        NUMPY.iter().any(|words| said.contains(words)) || (said.contains("requires numpy") && is_import(raised));
    let of = if numpy {
        "numpy".to_owned()
    } else {
        // Cython's own check, of any extension type.
        let (before, _) = said.split_once(" size changed, may indicate binary incompatibility")?;
        before.rsplit(' ').next()?.split('.').next()?.to_owned()
    };
    Some(Cause::Binary { of, by: by.clone(), said: cut(said) })
}

/// A library of the system that is missing: its file, or `libNAME.so` where only its name is told.
fn library(message: &str) -> Option<String> {
    if let Some((file, _)) = message.split_once(": cannot open shared object file") {
        return Some(file.rsplit([' ', '/', '\'', '"']).next().unwrap_or(file).to_owned());
    }
    let name = |name: &str| {
        let name = plain(name).to_lowercase();
        let name = name.strip_prefix("lib").unwrap_or(&name);
        let named = name.len() > 1 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_+".contains(&b));
        named.then(|| format!("lib{name}.so"))
    };
    for (mark, behind) in [
        (" library not found", false),
        (" shared library not found", false),
        ("no library called ", true),
        ("failed to find lib", true),
        ("Unable to find lib", true),
        ("unable to find the shared library ", true),
    ] {
        let Some(at) = message.find(mark) else { continue };
        let word = match behind {
            true => message.get(at + mark.len()..).and_then(|rest| rest.split_whitespace().next()),
            false => message.get(..at).and_then(|rest| rest.split_whitespace().next_back()),
        };
        if let Some(file) = word.and_then(name) {
            return Some(file);
        }
    }
    None
}

/// A library that asks for a newer release of another one.
fn floor(raised: &Raised, by: &Owner) -> Option<Cause> {
    let message = &raised.message;
    let lower = message.to_lowercase();
    if !["requires", "required", "needs"].iter().any(|word| lower.contains(word)) {
        return None;
    }
    // Compiled code leaves no frames: what it calls itself counts.
    let called = message.split_once(" requires ").and_then(|(before, _)| before.split_whitespace().next_back());
    let by = match called.map(plain).filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("this")) {
        Some(name) if *by == Owner::Agent => Owner::Package(name.to_lowercase().replace('-', "_")),
        _ => by.clone(),
    };
    let (of, least) = newer(message).or_else(|| at_least(message)).filter(|_| by != Owner::Agent)?;
    Some(Cause::Floor { of: crate::declared::normalise(&of), least, by, said: cut(message) })
}

/// `requires NumPy 2.0 or newer`, or `requires version '3.1' or newer of 'openpyxl'`.
fn newer(message: &str) -> Option<(String, String)> {
    let mark = [" or newer", " or later", " or higher", " or greater", " or above"];
    let (at, mark) = mark.iter().find_map(|mark| Some((message.find(mark)?, mark)))?;
    let (before, behind) = (message.get(..at)?, message.get(at + mark.len()..)?);
    let mut words = before.split_whitespace().rev().map(plain);
    let least = words.next().filter(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let of = words.find(|word| !word.is_empty() && !word.eq_ignore_ascii_case("version"))?;
    let of = match behind.trim_start().strip_prefix("of ") {
        Some(rest) => plain(rest.split_whitespace().next()?),
        None => of,
    };
    Some((of.to_owned(), least.to_owned()))
}

/// `tokenizers>=0.14 is required`.
fn at_least(message: &str) -> Option<(String, String)> {
    let (before, behind) = message.split_once(">=")?;
    let of = plain(before.split_whitespace().next_back()?);
    let end = behind.trim_start().find(|c: char| !(c.is_ascii_alphanumeric() || c == '.'));
    let least = behind.trim_start().get(..end.unwrap_or(behind.trim_start().len()))?.trim_end_matches('.');
    let named = !of.is_empty() && of.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    (named && least.starts_with(|c: char| c.is_ascii_digit())).then(|| (of.to_owned(), least.to_owned()))
}

fn plain(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_ascii_alphanumeric())
}

/// A name that a module does not have.
fn attribute(raised: &Raised, own: &BTreeSet<String>, by: &Owner) -> Option<Cause> {
    if raised.name() != "AttributeError" {
        return None;
    }
    let message = &raised.message;
    if let Some(module) = between(message, "module '", "'") {
        let name = between(message, "has no attribute '", "'")?;
        let whose = is_own(module, own);
        return (!whose).then(|| Cause::NoName { module: module.into(), name: name.into(), by: by.clone() });
    }
    // Of an object: drift if a library says so of a library's object; the agent's own objects are its own affair.
    let class =
        between(message, "'", "' object has no attribute").or_else(|| between(message, "type object '", "'"))?;
    let plain =
        matches!(class, "NoneType" | "str" | "int" | "float" | "dict" | "list" | "tuple" | "bytes" | "set" | "bool");
    let drift = *by != Owner::Agent || !plain;
    drift.then(|| Cause::Call { callee: class.into(), said: cut(message), by: by.clone() })
}

/// A call that does not fit.
fn call(raised: &Raised, own: &BTreeSet<String>, by: &Owner) -> Option<Cause> {
    const MARKS: [&str; 5] = [
        " got an unexpected keyword argument",
        " missing ",
        " takes ",
        " got multiple values for argument",
        " got some positional-only arguments",
    ];
    if raised.name() != "TypeError" {
        return None;
    }
    let message = &raised.message;
    let at = MARKS.iter().filter_map(|mark| message.find(mark)).min();
    let callee =
        at.and_then(|at| message.get(..at)).map(|text| text.trim_end_matches("()").rsplit(' ').next().unwrap_or(text));
    match (callee, by) {
        (Some(callee), _) if !own.contains(callee.split('.').next().unwrap_or(callee)) => {
            Some(Cause::Call { callee: callee.into(), said: cut(message), by: by.clone() })
        }
        (_, Owner::Agent) => None,
        _ => Some(Cause::Call { callee: String::new(), said: cut(message), by: by.clone() }),
    }
}

fn is_own(module: &str, own: &BTreeSet<String>) -> bool {
    own.contains(module.split('.').next().unwrap_or(module))
}

/// What an agent waits for, by the type and the text of an error.
fn waits_for(kind: &str, text: &str) -> Option<Blocked> {
    let lower = text.to_lowercase();
    let any = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let secret_kind = [
        "Auth",
        "Credential",
        "Secret",
        "Unauthorized",
        "PermissionDenied",
        "Forbidden",
        "APIKey",
        "ApiKey",
        "InvalidToken",
    ];
    let named = kind == "KeyError" && is_setting(text);
    if named
        || secret_kind.iter().any(|word| kind.contains(word))
        || any(&[
            "api_key",
            "api key",
            "apikey",
            "api token",
            "access token",
            "_token",
            "credential",
            "secrets.toml",
            "st.secrets",
        ])
        || any(&[
            "no secrets",
            "environment variable",
            "not authenticated",
            "unauthorized",
            "401",
            "invalid key",
            "_key ",
        ])
        || (any(&["must be set", "is not set", "not set", "missing", "please set", "please provide"])
            && any(&["key", "token", "password", "env"]))
    {
        return Some(Blocked::Secret);
    }
    let device = any(&[
        "no display name",
        "couldn't connect to display",
        "cannot connect to x server",
        "could not connect to display",
        "error querying device",
        "no default input device",
        "no default output device",
        "invalid input device",
        "no available audio device",
        "can't open camera",
    ]);
    if device || kind == "PortAudioError" {
        return Some(Blocked::Device);
    }
    let network_kind =
        ["ConnectError", "ConnectTimeout", "Connection", "gaierror", "herror", "URLError", "MaxRetryError", "SSLError"];
    let beside = any(&["localhost", "127.0.0.1", "::1"]) && any(&["refused", "connect", "111"]);
    if beside || any(&["connection refused", "[errno 111]"]) || kind == "ConnectionRefusedError" {
        return Some(Blocked::Service);
    }
    let unreachable = any(&[
        "name or service not known",
        "temporary failure in name resolution",
        "network is unreachable",
        "failed to resolve",
        "could not resolve",
        "name resolution",
        "max retries exceeded",
        "cannot assign requested address",
        "getaddrinfo",
        "no address associated",
        "offline mode",
        "dns resolution failed",
        "hostname lookup",
        "address lookup failed",
        "could not contact dns",
        "couldn't connect to",
    ]);
    if unreachable || network_kind.iter().any(|word| kind.contains(word)) || kind.ends_with("Timeout") {
        return Some(Blocked::Network);
    }
    if kind == "FileNotFoundError"
        || kind == "NotADirectoryError"
        || (kind != "ImportError" && any(&["no such file or directory"]))
    {
        return Some(Blocked::Data);
    }
    any(&["read-only file system"]).then_some(Blocked::Data)
}

/// `'OPENAI_API_KEY'` and the like.
fn is_setting(text: &str) -> bool {
    let name = text.trim().trim_matches(['\'', '"']);
    name.len() > 2 && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

/// Distributions that a text says to install: what follows `pip install`, `uv add` and the like.
fn told(text: &str) -> Vec<String> {
    const MARKS: [&str; 5] = ["pip install ", "pip3 install ", "uv add ", "poetry add ", "uv pip install "];
    let mut found = BTreeSet::new();
    for mark in MARKS {
        for (at, _) in text.match_indices(mark) {
            let rest = text.get(at + mark.len()..).unwrap_or_default();
            let end = rest.find(['\n', '`', ')', ';', ',']).unwrap_or(rest.len());
            let words = rest.get(..end).unwrap_or_default().split_whitespace();
            let quoted = |word: &str| word.trim_matches(['"', '\'', '`', '.', '’', '”']).to_owned();
            let plain = |word: &String| {
                let name = word.split(['[', '=', '<', '>', '!', '~']).next().unwrap_or_default();
                !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                    && !word.starts_with('-')
            };
            // A sentence goes on after the first word that is no option.
            if words.clone().take(2).any(|word| word == "-r") {
                continue;
            }
            let named = words.skip_while(|word| word.starts_with('-')).map(quoted).take_while(plain);
            let sentence = |word: &String| {
                matches!(word.as_str(), "to" | "and" | "or" | "in" | "for" | "it" | "the" | "if" | "with")
            };
            found.extend(named.take_while(|word| !sentence(word)).take(4));
        }
    }
    found.into_iter().collect()
}

fn between<'t>(text: &'t str, before: &str, behind: &str) -> Option<&'t str> {
    let rest = after(text, before)?;
    rest.split_once(behind).map(|(found, _)| found)
}

fn after<'t>(text: &'t str, before: &str) -> Option<&'t str> {
    text.split_once(before).map(|(_, rest)| rest.lines().next().unwrap_or(rest))
}

fn cut(text: &str) -> String {
    let mut short: String = text.trim().chars().take(SAID).collect();
    if short.len() < text.trim().len() {
        short.push('…');
    }
    short
}

fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(4096);
    (from..text.len()).find_map(|at| text.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
