//! Which file starts the agent, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use ringfence_model::manifest::Kind;

use super::imports;
use super::source::{Source, Sources};
use crate::declared::{Declared, Seen};
use crate::doctor::table::{self, Answer};
use crate::error::InferError;
use crate::python::{self, Token};

/// A program that could be the agent.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub file: String,
    pub kind: Kind,
    /// The application object, or the function that makes it.
    pub object: Option<String>,
    /// Whether `object` is a function.
    pub factory: bool,
    pub port: Option<u16>,
    pub seen: Seen,
}

/// How to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    pub entry: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub port: Option<u16>,
    /// Distributions that the entry needs besides what the source imports.
    pub launchers: Vec<&'static str>,
}

const CONVENTIONAL: [&str; 18] = [
    "__main__.py",
    "agent.py",
    "api.py",
    "app.py",
    "application.py",
    "asgi.py",
    "bot.py",
    "chat.py",
    "cli.py",
    "demo.py",
    "home.py",
    "index.py",
    "main.py",
    "manage.py",
    "run.py",
    "server.py",
    "streamlit_app.py",
    "wsgi.py",
];
const ASGI: [&str; 5] = ["FastAPI", "Litestar", "Quart", "Starlette", "FastHTML"];
const WSGI: [&str; 2] = ["Bottle", "Flask"];

/// Picks the program that is the agent.
pub(crate) fn choose(
    folder: &Path,
    sources: &Sources,
    entry: Option<&str>,
    kind: Option<Kind>,
) -> Result<Candidate, InferError> {
    let shown = folder.to_string_lossy().into_owned();
    if let Some(entry) = entry {
        return asked_for(&shown, sources, entry, kind);
    }
    let mut found: Vec<Candidate> = sources.files.iter().filter_map(|s| web(s, sources)).collect();
    if found.is_empty() {
        found = sources.files.iter().filter_map(script).collect();
    }
    if let Some(kind) = kind {
        found.retain(|c| c.kind == kind);
    }
    let imported = imported_files(sources);
    let top: Vec<Candidate> = found.iter().filter(|c| !imported.contains(&c.file)).cloned().collect();
    let found = if top.is_empty() { found } else { top };
    let found = narrowed(folder, found);
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => match sources.files.as_slice() {
            [only] => Ok(plain(only)),
            files => Err(InferError::NoEntry {
                folder: shown,
                example: files.first().map_or_else(|| "main.py".into(), |f| f.path.clone()),
            }),
        },
        several => Err(InferError::AmbiguousEntry {
            folder: shown,
            candidates: several.iter().map(|c| format!("`{}` ({})", c.file, c.kind.word())).collect(),
            example: several.first().map(|c| c.file.clone()).unwrap_or_default(),
        }),
    }
}

/// `file.py`, `module` or `module:object`.
fn asked_for(folder: &str, sources: &Sources, entry: &str, kind: Option<Kind>) -> Result<Candidate, InferError> {
    let (place, object) = entry.split_once(':').map_or((entry, None), |(p, o)| (p, Some(o)));
    let place = place.trim_start_matches("./");
    let source = sources
        .files
        .iter()
        .find(|s| s.path == place || s.module() == place)
        .ok_or_else(|| InferError::UnknownEntry { folder: folder.into(), entry: entry.into() })?;
    let mut candidate = web(source, sources).unwrap_or_else(|| plain(source));
    if let Some(object) = object {
        candidate.object = Some(object.into());
        candidate.factory = false;
        if candidate.kind == Kind::Script {
            candidate.kind = Kind::Asgi;
        }
    }
    if let Some(kind) = kind {
        candidate.kind = kind;
    }
    Ok(candidate)
}

fn plain(source: &Source) -> Candidate {
    Candidate {
        file: source.path.clone(),
        kind: Kind::Script,
        object: None,
        factory: false,
        port: None,
        seen: Seen::new(&source.path, 1),
    }
}

/// What a file serves, if it serves something.
fn web(source: &Source, sources: &Sources) -> Option<Candidate> {
    let imported = imports::of(source);
    let line_of = |name: &str| {
        let below = format!("{name}.");
        let hit = |i: &&imports::Import| !i.optional && (i.module == name || i.module.starts_with(&below));
        (!sources.local.contains(name)).then(|| imported.iter().find(hit).map(|i| i.line)).flatten()
    };
    let candidate = |kind, line| Candidate {
        file: source.path.clone(),
        kind,
        object: None,
        factory: false,
        port: port(source),
        seen: Seen::new(&source.path, line),
    };
    let speaks = [
        "chainlit",
        "streamlit",
        "gradio",
        "FastAPI",
        "Litestar",
        "Quart",
        "Starlette",
        "FastHTML",
        "Bottle",
        "Flask",
        "sgi_application",
    ];
    if !speaks.iter().any(|word| source.has(word)) {
        return None;
    }
    let any = |pattern: &str| source.lines().iter().any(|l| !python::find(l, pattern).is_empty());
    let gradio_mounted = any("mount_gradio_app (") || any("mount_chainlit (");
    if !gradio_mounted {
        if let Some(line) = line_of("chainlit")
            && source.lines().iter().any(|l| l.is_op(0, '@') && l.name(3).is_some_and(|n| n.starts_with("on_")))
        {
            return Some(candidate(Kind::Chainlit, line));
        }
        if let Some(line) = line_of("streamlit") {
            let is_page = source.parent().rsplit('/').next() == Some("pages");
            return (!is_page).then(|| candidate(Kind::Streamlit, line));
        }
        if let Some(line) = line_of("gradio")
            && any(". launch (")
        {
            return Some(candidate(Kind::Gradio, line));
        }
    }
    for (kind, makers) in [(Kind::Asgi, ASGI.as_slice()), (Kind::Wsgi, WSGI.as_slice())] {
        if let Some((object, factory, line)) = application(source, makers) {
            return Some(Candidate { object: Some(object), factory, ..candidate(kind, line) });
        }
    }
    for (pattern, kind) in [("$n = get_asgi_application (", Kind::Asgi), ("$n = get_wsgi_application (", Kind::Wsgi)] {
        if let Some(caught) = source.lines().iter().find_map(|l| python::begins(l, pattern)) {
            return Some(Candidate { object: caught.texts.first().cloned(), ..candidate(kind, caught.line) });
        }
    }
    None
}

/// `app = FastAPI(…)` at the top, or a function `create_app` that makes one.
fn application(source: &Source, makers: &[&str]) -> Option<(String, bool, usize)> {
    for maker in makers {
        for line in source.lines().iter().filter(|l| l.indent == 0) {
            for pattern in [format!("$n = {maker} ("), format!("$n = $n . {maker} (")] {
                if let Some(caught) = python::begins(line, &pattern) {
                    return Some((caught.texts.first()?.clone(), false, caught.line));
                }
            }
            // `app: FastAPI = FastAPI(…)`
            if let Some(caught) = python::begins(line, &format!("$n : {maker} = {maker} (")) {
                return Some((caught.texts.first()?.clone(), false, caught.line));
            }
        }
        let within = source.lines().iter().position(|l| {
            l.indent > 0
                && (!python::find(l, &format!("= {maker} (")).is_empty()
                    || !python::find(l, &format!("return {maker} (")).is_empty())
        });
        if let Some(at) = within {
            let before = source.lines().get(..at).unwrap_or_default();
            let maker = before.iter().rev().find(|l| l.indent == 0)?;
            if maker.first() == Some("def") && maker.name(1).is_some_and(|n| n.contains("app") || n.contains("create"))
            {
                // `app = create_app()` at the top is plainer than a factory.
                let name = maker.name(1)?.to_owned();
                let made = source.lines().iter().filter(|l| l.indent == 0);
                for line in made {
                    if let Some(caught) = python::begins(line, &format!("$n = {name} (")) {
                        return Some((caught.texts.first()?.clone(), false, caught.line));
                    }
                }
                return Some((name, true, maker.number));
            }
        }
    }
    None
}

fn script(source: &Source) -> Option<Candidate> {
    let guard = source.lines().iter().find(|l| l.indent == 0 && l.first() == Some("if") && l.has_name("__name__"));
    let line = match (guard, source.file_name()) {
        (Some(guard), _) => guard.number,
        (None, "__main__.py") => 1,
        (None, name) if source.parent().is_empty() && CONVENTIONAL.contains(&name) => 1,
        _ => return None,
    };
    Some(Candidate { seen: Seen::new(&source.path, line), ..plain(source) })
}

/// Files that other files of the folder import.
fn imported_files(sources: &Sources) -> BTreeSet<String> {
    let files = ByModule::of(sources);
    let imported = sources
        .files
        .iter()
        .flat_map(|source| files.imported_by(source).into_iter().filter(|other| other.path != source.path));
    imported.map(|other| other.path.clone()).collect()
}

/// The files that run when one of them does, by their paths: what it imports, and what that imports.
pub(crate) fn reached(sources: &Sources, entry: &str) -> BTreeSet<String> {
    let files = ByModule::of(sources);
    let mut queue: Vec<&Source> = sources.files.iter().filter(|source| source.path == entry).collect();
    let mut reached: BTreeSet<String> = queue.iter().map(|source| source.path.clone()).collect();
    while let Some(source) = queue.pop() {
        queue.extend(files.imported_by(source).into_iter().filter(|other| reached.insert(other.path.clone())));
    }
    reached
}

/// Files by every name that an import may call them by: the ends of their dotted names.
struct ByModule<'s>(BTreeMap<String, Vec<&'s Source>>);

impl<'s> ByModule<'s> {
    fn of(sources: &'s Sources) -> Self {
        let mut by_end: BTreeMap<String, Vec<&Source>> = BTreeMap::new();
        for source in &sources.files {
            let module = source.module();
            let dots = module.match_indices('.').map(|(at, _)| at + 1);
            for at in std::iter::once(0).chain(dots) {
                by_end.entry(module.get(at..).unwrap_or_default().to_owned()).or_default().push(source);
            }
        }
        Self(by_end)
    }

    /// What a file imports of its own folder; rather too much than too little.
    fn imported_by(&self, source: &Source) -> Vec<&'s Source> {
        let mut names: BTreeSet<String> = relative(source).into_iter().collect();
        for import in imports::of(source) {
            let ends = import.module.match_indices('.').map(|(at, _)| at).chain([import.module.len()]);
            names.extend(ends.filter_map(|at| import.module.get(..at).map(str::to_owned)));
        }
        names.iter().filter_map(|name| self.0.get(name)).flatten().copied().collect()
    }
}

/// The first names of what a file imports relatively.
fn relative(source: &Source) -> Vec<String> {
    if !source.has("from .") {
        return Vec::new();
    }
    let lines = source.lines().iter().filter(|l| l.first() == Some("from") && l.is_op(1, '.'));
    let names = lines.flat_map(|line| {
        line.tokens.iter().skip(1).filter_map(|(_, token)| match token {
            Token::Name(name) if name != "import" => Some(name.clone()),
            _ => None,
        })
    });
    names.collect()
}

/// Prefers what the folder's own start files name, then conventional names, then files nearer to the root.
fn narrowed(folder: &Path, found: Vec<Candidate>) -> Vec<Candidate> {
    if found.len() < 2 {
        return found;
    }
    let mut start = String::new();
    for name in ["Procfile", "Dockerfile"] {
        if let Ok(text) = fs::read_to_string(folder.join(name)) {
            let speaks =
                |l: &&str| ["web:", "worker:", "CMD", "ENTRYPOINT"].iter().any(|w| l.trim_start().starts_with(w));
            start.extend(text.lines().filter(speaks).map(|l| format!("{l} ")));
        }
    }
    let named: Vec<Candidate> = found.iter().filter(|c| speaks_of(&start, &c.file)).cloned().collect();
    if named.len() == 1 {
        return named;
    }
    let conventional: Vec<Candidate> = found
        .iter()
        .filter(|c| CONVENTIONAL.contains(&c.file.rsplit('/').next().unwrap_or_default().to_lowercase().as_str()))
        .cloned()
        .collect();
    let left = if conventional.is_empty() { found } else { conventional };
    let depth = |c: &Candidate| c.file.matches('/').count();
    let least = left.iter().map(depth).min().unwrap_or_default();
    left.into_iter().filter(|c| depth(c) == least).collect()
}

fn speaks_of(start: &str, file: &str) -> bool {
    let module = file.trim_end_matches(".py").replace('/', ".");
    let words = start.split(|c: char| c.is_whitespace() || "\"',[]".contains(c));
    words.into_iter().any(|w| w.trim_start_matches("./") == file || w == module || w.starts_with(&format!("{module}:")))
}

/// A port that the file itself names.
fn port(source: &Source) -> Option<u16> {
    let patterns = ["server_port = $i", "port = $i"];
    source
        .lines()
        .iter()
        .find_map(|l| patterns.iter().find_map(|p| python::find(l, p).into_iter().next()))
        .and_then(|caught| caught.texts.first()?.replace('_', "").parse().ok())
        .filter(|port| *port != 0)
}

/// The command line of a candidate.
pub(crate) fn start(
    candidate: &Candidate,
    source: &Source,
    sources: &Sources,
    declared: &Declared,
    port: Option<u16>,
) -> Start {
    let port = port.or(candidate.port).or(candidate.kind.default_port());
    let number = port.map(|p| p.to_string()).unwrap_or_default();
    let mut env = BTreeMap::new();
    let file = candidate.file.clone();
    let words = |parts: &[&str]| parts.iter().map(|p| (*p).to_owned()).collect::<Vec<String>>();
    let (app_dir, module) = home(source, sources);
    let target = format!("{module}:{}", candidate.object.as_deref().unwrap_or("app"));
    let (entry, launchers) = match candidate.kind {
        Kind::Streamlit => {
            let port = format!("--server.port={number}");
            (words(&["streamlit", "run", &file, &port, "--server.address=127.0.0.1"]), vec!["streamlit"])
        }
        Kind::Chainlit => (
            words(&["chainlit", "run", &file, "--headless", "--host", "127.0.0.1", "--port", &number]),
            vec!["chainlit"],
        ),
        Kind::Gradio => {
            env.insert("GRADIO_SERVER_NAME".to_owned(), "127.0.0.1".to_owned());
            env.insert("GRADIO_SERVER_PORT".to_owned(), number);
            (words(&["python3", &file]), vec!["gradio"])
        }
        Kind::Asgi => {
            let mut entry = words(&["uvicorn", &target, "--host", "127.0.0.1", "--port", &number]);
            if candidate.factory {
                entry.push("--factory".into());
            }
            if !app_dir.is_empty() {
                entry.extend(["--app-dir".into(), app_dir]);
            }
            (entry, vec!["uvicorn"])
        }
        Kind::Wsgi => wsgi(candidate, &app_dir, &module, &number, declared),
        Kind::Mcp | Kind::Script => match source.file_name() {
            "__main__.py" if !source.parent().is_empty() => {
                (words(&["python3", "-m", &source.parent().replace('/', ".")]), vec![])
            }
            _ if let Some((root, module)) = shadowed(source, sources).or_else(|| as_module(source, sources)) => {
                env.insert("PYTHONPATH".to_owned(), root);
                (words(&["python3", "-m", &module]), vec![])
            }
            _ => (words(&["python3", &file]), vec![]),
        },
    };
    if !env.contains_key("PYTHONPATH")
        && matches!(candidate.kind, Kind::Streamlit | Kind::Chainlit | Kind::Gradio | Kind::Mcp | Kind::Script)
    {
        let of_library = |module: &str| match table::brings(module) {
            Answer::Sure(name) => declared.names(name) || launchers.contains(&name),
            _ => false,
        };
        let paths = import_paths(source, sources, &of_library);
        if !paths.is_empty() {
            env.insert("PYTHONPATH".to_owned(), paths.join(":"));
        }
    }
    Start { entry, env, port, launchers }
}

/// Where a package's program must be started from as a module, and its name: a neighbour of it hides a library that it imports, as a
/// file run by its path finds its neighbours first.
fn shadowed(entry: &Source, sources: &Sources) -> Option<(String, String)> {
    let is_file = |path: String| sources.files.iter().any(|s| s.path == path);
    let home = entry.parent();
    let hidden = imports::of(entry).iter().any(|import| {
        // `a.b.c` is a name of module `a.b`, which no file `a.py` has.
        let first = import.module.split('.').next().unwrap_or_default();
        import.module.matches('.').count() > 1 && is_file(format!("{home}/{first}.py"))
    });
    if !hidden || home.is_empty() || !is_file(format!("{home}/__init__.py")) {
        return None;
    }
    let mut root = home;
    while is_file(format!("{root}/__init__.py")) {
        root = root.rsplit_once('/').map_or("", |(above, _)| above);
    }
    let below = entry.path.strip_prefix(root)?.trim_start_matches('/').strip_suffix(".py")?;
    let root = if root.is_empty() { "/app".to_owned() } else { format!("/app/{root}") };
    Some((root, below.replace('/', ".")))
}

/// Where a program must be started from as a module, and its name: it imports relatively, so it must be part of a package.
fn as_module(entry: &Source, sources: &Sources) -> Option<(String, String)> {
    let dots = |line: &python::Line| (1..).take_while(|at| line.is_op(*at, '.')).count();
    let relative = entry.lines().iter().filter(|line| line.indent == 0 && line.first() == Some("from"));
    let level = relative.map(dots).max().filter(|level| *level > 0)?;
    let mut folders = vec!["app"];
    folders.extend(entry.parent().split('/').filter(|part| !part.is_empty()));
    let mut first = folders.len().checked_sub(level)?;
    // The packages that it is in, to the outermost; what has no file of its own is one too, as far as it is asked for.
    let is_package = |upto: usize| {
        let place = folders.get(1..upto).unwrap_or_default().join("/");
        let file = if place.is_empty() { "__init__.py".to_owned() } else { format!("{place}/__init__.py") };
        sources.files.iter().any(|s| s.path == file)
    };
    while first > 0 && is_package(first) {
        first -= 1;
    }
    let (above, package) = folders.split_at(first);
    let stem = entry.file_name().trim_end_matches(".py");
    let module = package.iter().copied().chain((stem != "__main__").then_some(stem)).collect::<Vec<_>>().join(".");
    Some((format!("/{}", above.join("/")), module))
}

/// Folders, as they are in the image, that must be on the module path beside the entry's own: what it imports is there.
fn import_paths(entry: &Source, sources: &Sources, of_library: &dyn Fn(&str) -> bool) -> Vec<String> {
    let home = entry.parent();
    if home.is_empty() {
        return Vec::new();
    }
    let files: BTreeMap<&str, &Source> = sources.files.iter().map(|s| (s.path.as_str(), s)).collect();
    let is_there = |base: &str, first: &str| {
        let place = if base.is_empty() { first.to_owned() } else { format!("{base}/{first}") };
        files.contains_key(format!("{place}.py").as_str())
            || files
                .range(format!("{place}/").as_str()..)
                .next()
                .is_some_and(|(p, _)| p.starts_with(&format!("{place}/")))
    };
    let mut bases = vec![home.to_owned()];
    let (mut seen, mut queue) = (BTreeSet::from([entry.path.as_str()]), vec![entry]);
    while let Some(file) = queue.pop() {
        for import in imports::of(file).iter().filter(|import| !import.optional) {
            let first = import.module.split('.').next().unwrap_or_default();
            let base = match bases.iter().find(|base| is_there(base, first)) {
                Some(base) => base.clone(),
                None if of_library(first) => continue,
                None => match ["", "src"].into_iter().find(|base| is_there(base, first)) {
                    Some(base) => {
                        bases.push(base.to_owned());
                        base.to_owned()
                    }
                    None => continue,
                },
            };
            // The files of the import: each package on the way, and the module.
            let mut place = base;
            for part in import.module.split('.') {
                place = if place.is_empty() { part.to_owned() } else { format!("{place}/{part}") };
                let found = [format!("{place}.py"), format!("{place}/__init__.py")];
                let found = found.iter().filter_map(|path| files.get(path.as_str()));
                queue.extend(found.filter(|file| seen.insert(file.path.as_str())));
            }
        }
    }
    let shown = |base: String| if base.is_empty() { "/app".to_owned() } else { format!("/app/{base}") };
    bases.into_iter().skip(1).map(shown).collect()
}

fn wsgi(
    candidate: &Candidate,
    app_dir: &str,
    module: &str,
    port: &str,
    declared: &Declared,
) -> (Vec<String>, Vec<&'static str>) {
    let object = candidate.object.as_deref().unwrap_or("app");
    let call = if candidate.factory { "()" } else { "" };
    let target = format!("{module}:{object}{call}");
    let flask = candidate.object.is_some() && !object.starts_with("application") && !declared.names("gunicorn");
    if flask && app_dir.is_empty() {
        let entry = ["flask", "--app", &target, "run", "--host", "127.0.0.1", "--port", port];
        return (entry.map(str::to_owned).to_vec(), vec!["flask"]);
    }
    let mut entry: Vec<String> = ["gunicorn", "--bind"].map(str::to_owned).to_vec();
    entry.push(format!("127.0.0.1:{port}"));
    // The image has no writable folder but these, and gunicorn's heartbeat wants memory.
    entry.extend(["--worker-tmp-dir", "/dev/shm", "--workers", "1", "--threads", "8"].map(str::to_owned));
    if !app_dir.is_empty() {
        entry.extend(["--pythonpath".to_owned(), app_dir.to_owned()]);
    }
    entry.push(target);
    (entry, vec!["gunicorn"])
}

/// The folder that must be on the module path, and the module's name from there.
///
/// From the root, unless the file imports its neighbours by their bare names.
fn home(source: &Source, sources: &Sources) -> (String, String) {
    let parent = source.parent();
    if parent.is_empty() {
        return (String::new(), source.module());
    }
    let stem = |s: &Source| s.file_name().trim_end_matches(".py").to_owned();
    let neighbours: BTreeSet<String> =
        sources.files.iter().filter(|s| s.parent() == parent && s.path != source.path).map(stem).collect();
    let is_root = |name: &str| {
        sources.files.iter().any(|s| s.path == format!("{name}.py") || s.path.starts_with(&format!("{name}/")))
    };
    let bare = imports::of(source).iter().any(|i| {
        let first = i.module.split('.').next().unwrap_or_default();
        neighbours.contains(first) && !is_root(first)
    });
    if bare {
        return (parent.to_owned(), stem(source));
    }
    if let Some(below) = parent.strip_prefix("src") {
        let module = source.module();
        let module = module.strip_prefix("src.").unwrap_or(&module).to_owned();
        if below.is_empty() || below.starts_with('/') {
            return ("src".into(), module);
        }
    }
    (String::new(), source.module())
}
