//! Reads a Python source as its compiler does, and tells what it needs to be there: modules, names in them, a version.
//!
//! Nothing is evaluated. Decision 0050 says why this is a library.
//!
//! # Source
//! The Python Language Reference, chapters 5 and 7.

use std::collections::{BTreeMap, BTreeSet};

use ruff_python_ast::visitor::{self, Visitor};
use ruff_python_ast::{
    ExceptHandler, Expr, ExprAttribute, ExprCall, Mod, Parameter, PythonVersion, Stmt, StmtImport, StmtImportFrom,
};
use ruff_python_parser::{Mode, ParseOptions, Parsed, parse_unchecked};
use serde::{Deserialize, Serialize};

/// Beyond it a file is no program that somebody wrote.
pub(crate) const MAX_SOURCE: usize = 1 << 20;

/// Minor versions that the parser tells apart.
const MINORS: std::ops::RangeInclusive<u8> = 8..=14;

/// Stack that reading a byte may take: an operator per two bytes nests a tree by one.
const STACK_A_BYTE: usize = 1 << 10;
const STACK: usize = 8 << 20;

/// Threads that read, and the fewest files that are worth one.
const MAX_THREADS: usize = 4;
const SHARE: usize = 32;

/// When an import happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum When {
    /// As soon as the module is.
    Start,
    /// When a function is called, or on a condition.
    Later,
    /// It may fail: the source goes on without.
    Guarded,
    /// Never: it is for type checkers.
    Typing,
}

/// One imported module or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Import {
    /// Dotted name as written; for `from a import b` also `a.b`.
    pub module: String,
    /// Whether the last part may be a name in a module instead of one.
    pub may_be_name: bool,
    pub line: usize,
    pub when: When,
}

/// A name of an imported module that the source uses, such as `openai.ChatCompletion`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    pub name: String,
    pub line: usize,
    pub when: When,
}

/// Why a source is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub line: usize,
    pub why: String,
    /// It is of a Python before 3.
    pub python2: bool,
}

/// A minor version, and the line that asks for it.
type Bound = Option<(u8, usize)>;

/// What a source needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Syntax {
    pub imports: Vec<Import>,
    pub uses: Vec<Use>,
    /// The least and the greatest minor version of Python 3 that reads it, where there are such, and the line that says so.
    pub least: Bound,
    pub greatest: Bound,
    pub broken: Option<Broken>,
}

/// Reads sources, on a stack that the deepest of them cannot exhaust.
///
/// A source that could not be read, since no memory was left for that, is as if it were empty.
pub(crate) fn read_all(sources: &[&str]) -> Vec<Syntax> {
    let largest = sources.iter().map(|s| s.len()).filter(|len| *len <= MAX_SOURCE).max().unwrap_or_default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    let share = sources.len().div_ceil(threads).max(SHARE);
    std::thread::scope(|scope| {
        let shares: Vec<_> = sources
            .chunks(share)
            .map(|share| {
                let work = || share.iter().map(|source| read(source)).collect::<Vec<Syntax>>();
                let stack = STACK + largest * STACK_A_BYTE;
                (share, std::thread::Builder::new().stack_size(stack).spawn_scoped(scope, work).ok())
            })
            .collect();
        let none = |share: &[&str]| vec![Syntax::default(); share.len()];
        shares
            .into_iter()
            .flat_map(|(share, work)| work.and_then(|w| w.join().ok()).unwrap_or_else(|| none(share)))
            .collect()
    })
}

fn read(source: &str) -> Syntax {
    if source.len() > MAX_SOURCE {
        let why = format!("it is larger than {} MiB", MAX_SOURCE >> 20);
        return Syntax { broken: Some(Broken { line: 1, why, python2: false }), ..Syntax::default() };
    }
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    let lines = Lines::of(source);
    // What the oldest reads, all do: no syntax went out since.
    let mut parsed = parse(source, *MINORS.start());
    let (mut least, mut greatest) = (None, None);
    if !parsed.unsupported_syntax_errors().is_empty() {
        parsed = parse(source, *MINORS.end());
        (least, greatest) = versions(source, &lines, &parsed);
    }
    let mut reader = Reader::new(&lines);
    if let Mod::Module(module) = parsed.syntax() {
        reader.visit_body(&module.body);
    }
    let (imports, uses) = reader.end();
    let python2 = is_python2(source);
    let broken = parsed.errors().first().map(|error| {
        let line = lines.at(error.location.start().to_usize());
        Broken { line, why: error.error.to_string(), python2 }
    });
    // `except A, e` has a meaning again in 3.14, and another one.
    let again = least.filter(|(minor, _)| python2 && *minor == *MINORS.end());
    let broken = broken.or_else(|| again.map(|(_, line)| Broken { line, why: "it is of Python 2".into(), python2 }));
    Syntax { imports, uses, least, greatest, broken }
}

fn parse(source: &str, minor: u8) -> Parsed<Mod> {
    parse_unchecked(source, ParseOptions::from(Mode::Module).with_target_version(PythonVersion { major: 3, minor }))
}

/// The versions that read a source which some version reads.
fn versions(source: &str, lines: &Lines, newest: &Parsed<Mod>) -> (Bound, Bound) {
    let first = |parsed: &Parsed<Mod>| {
        parsed.unsupported_syntax_errors().first().map(|error| lines.at(error.range.start().to_usize()))
    };
    let missing = |minor: u8| first(&parse(source, minor));
    let greatest = first(newest).and_then(|line| {
        let minor = MINORS.rev().find(|minor| missing(*minor).is_none())?;
        Some((minor, line))
    });
    let least = missing(*MINORS.start()).and_then(|line| {
        let minor = MINORS.into_iter().find(|minor| missing(*minor).is_none())?;
        Some((minor, line))
    });
    (least, greatest)
}

/// Whether a source has the marks of Python 2: `print` and `exec` as statements, `except A, e`, or old octal numbers.
fn is_python2(source: &str) -> bool {
    source.lines().map(str::trim_start).any(|line| {
        let after = |word: &str| line.strip_prefix(word).and_then(|rest| rest.trim_start().chars().next());
        let printed = line.starts_with("print ") || line.starts_with("print\"") || line.starts_with("print'");
        let statement = printed && after("print").is_some_and(|c| !matches!(c, '(' | '=' | '.' | ',' | ')'));
        let named = |text: &str| text.trim().bytes().all(|b| b.is_ascii_lowercase());
        let caught = line.strip_prefix("except ").and_then(|rest| rest.trim_end().strip_suffix(':')?.rsplit_once(','));
        let caught = caught.is_some_and(|(what, name)| !what.contains('(') && named(name));
        statement || caught || line.starts_with("exec \"") || line.starts_with("exec '")
    })
}

/// The names that a module has once it was imported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Exports {
    pub names: BTreeSet<String>,
    /// Modules all of whose names it takes, each with the dots before its name.
    pub stars: Vec<(u32, String)>,
    /// It makes up names as it is asked for them.
    pub made: bool,
}

/// Reads what a module has; of a source that cannot be read, nothing is sure.
pub(crate) fn exports(source: &str) -> Exports {
    let unsure = || Exports { made: true, ..Exports::default() };
    if source.len() > MAX_SOURCE {
        return unsure();
    }
    std::thread::scope(|scope| {
        let work = || {
            let parsed = parse(source, *MINORS.end());
            let mut names = Names(Exports::default());
            if let Mod::Module(module) = parsed.syntax() {
                names.visit_body(&module.body);
            }
            names.0
        };
        let thread =
            std::thread::Builder::new().stack_size(STACK + source.len() * STACK_A_BYTE).spawn_scoped(scope, work);
        thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(unsure)
    })
}

/// Collects what is bound outside of functions and classes.
struct Names(Exports);

impl<'a> Visitor<'a> for Names {
    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        match stmt {
            Stmt::FunctionDef(function) => {
                self.0.made |= function.name.as_str() == "__getattr__";
                self.0.names.insert(function.name.to_string());
            }
            Stmt::ClassDef(class) => drop(self.0.names.insert(class.name.to_string())),
            Stmt::Import(import) => {
                let bound = |alias: &ruff_python_ast::Alias| match &alias.asname {
                    Some(name) => name.to_string(),
                    None => alias.name.split('.').next().unwrap_or_default().to_owned(),
                };
                self.0.names.extend(import.names.iter().map(bound));
            }
            Stmt::ImportFrom(import) => {
                for alias in &import.names {
                    if alias.name.as_str() == "*" {
                        let module = import.module.as_ref().map(ToString::to_string).unwrap_or_default();
                        self.0.stars.push((import.level, module));
                    } else {
                        self.0.names.insert(alias.asname.as_ref().unwrap_or(&alias.name).to_string());
                    }
                }
            }
            _ => visitor::walk_stmt(self, stmt),
        }
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Name(name) if name.ctx.is_store() => drop(self.0.names.insert(name.id.to_string())),
            // What stands in them is bound elsewhere.
            Expr::Lambda(_) => {}
            _ => visitor::walk_expr(self, expr),
        }
    }
}

/// Where lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn of(source: &str) -> Self {
        Self(source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    /// The line of an offset, from 1.
    fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|end| *end < offset) + 1
    }
}

struct Reader<'a> {
    lines: &'a Lines,
    imports: Vec<Import>,
    uses: BTreeMap<String, Use>,
    /// What names stand for modules.
    modules: BTreeMap<String, String>,
    /// Names that are given anew, and so may stand for something else.
    bound: BTreeSet<String>,
    when: When,
}

impl<'a> Reader<'a> {
    fn new(lines: &'a Lines) -> Self {
        Self {
            lines,
            imports: Vec::new(),
            uses: BTreeMap::new(),
            modules: BTreeMap::new(),
            bound: BTreeSet::new(),
            when: When::Start,
        }
    }

    /// Whatever comes at the earliest `when`.
    fn within(&mut self, when: When, visit: impl FnOnce(&mut Self)) {
        let before = self.when;
        self.when = before.max(when);
        visit(self);
        self.when = before;
    }

    fn import(&mut self, module: String, may_be_name: bool, at: usize) {
        let line = self.lines.at(at);
        self.imports.push(Import { module, may_be_name, line, when: self.when });
    }

    fn plain(&mut self, import: &StmtImport) {
        for alias in &import.names {
            let module = alias.name.as_str();
            self.import(module.to_owned(), false, import.range.start().to_usize());
            let (name, stands_for) = match &alias.asname {
                Some(name) => (name.as_str(), module),
                None => {
                    let first = module.split('.').next().unwrap_or_default();
                    (first, first)
                }
            };
            self.modules.insert(name.to_owned(), stands_for.to_owned());
        }
    }

    /// Relative imports are of the folder's own.
    fn from(&mut self, import: &StmtImportFrom) {
        let (0, Some(base)) = (import.level, &import.module) else { return };
        let at = import.range.start().to_usize();
        self.import(base.to_string(), false, at);
        for alias in import.names.iter().filter(|alias| alias.name.as_str() != "*") {
            self.import(format!("{base}.{}", alias.name), true, alias.range.start().to_usize());
            // It may be no module; then its attributes say nothing.
            self.bound.insert(alias.asname.as_ref().unwrap_or(&alias.name).to_string());
        }
    }

    /// `importlib.import_module("a.b")` and `__import__("a.b")`.
    fn dynamic(&mut self, call: &ExprCall) {
        let called = match &*call.func {
            Expr::Name(name) => name.id.as_str(),
            Expr::Attribute(attribute) => attribute.attr.as_str(),
            _ => return,
        };
        if !matches!(called, "import_module" | "__import__") {
            return;
        }
        if let Some(Expr::StringLiteral(text)) = call.arguments.args.first() {
            let module = text.value.to_str();
            let plain = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
            if !module.is_empty() && !module.starts_with('.') && module.len() < 200 && module.chars().all(plain) {
                self.import(module.to_owned(), false, call.range.start().to_usize());
            }
        }
    }

    /// Notes what is used of a module, and gives what a chain of names begins with.
    fn attribute<'e>(&mut self, attribute: &'e ExprAttribute) -> &'e Expr {
        // The first name alone: what is below it may be an object that answers to any.
        let mut first = attribute;
        while let Expr::Attribute(inner) = &*first.value {
            first = inner;
        }
        let root = &*first.value;
        if let Expr::Name(name) = root
            && let Some(module) = self.modules.get(name.id.as_str())
        {
            let name = format!("{module}.{}", first.attr);
            let line = self.lines.at(attribute.range.start().to_usize());
            let found = Use { name: name.clone(), line, when: self.when };
            let known = self.uses.entry(name).or_insert_with(|| found.clone());
            if found.when < known.when {
                *known = found;
            }
        }
        root
    }

    fn bind(&mut self, name: &str) {
        self.bound.insert(name.to_owned());
    }

    /// What was found, less what is said by names that stand for something else as well.
    fn end(mut self) -> (Vec<Import>, Vec<Use>) {
        self.modules.retain(|name, _| self.bound.contains(name));
        let unsure: BTreeSet<&String> = self.modules.values().collect();
        let sure = |used: &Use| used.name.rsplit_once('.').is_none_or(|(base, _)| !unsure.contains(&base.to_owned()));
        let uses = self.uses.into_values().filter(sure).collect();
        (self.imports, uses)
    }
}

impl<'a> Visitor<'a> for Reader<'_> {
    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        match stmt {
            Stmt::Import(import) => self.plain(import),
            Stmt::ImportFrom(import) => self.from(import),
            Stmt::FunctionDef(function) => {
                self.bind(function.name.as_str());
                for decorator in &function.decorator_list {
                    self.visit_decorator(decorator);
                }
                self.visit_parameters(&function.parameters);
                self.within(When::Later, |reader| visitor::walk_body(reader, &function.body));
            }
            Stmt::If(branch) if is_for_types(&branch.test) => {
                self.within(When::Typing, |reader| visitor::walk_body(reader, &branch.body));
                for clause in &branch.elif_else_clauses {
                    self.visit_elif_else_clause(clause);
                }
            }
            Stmt::If(_) | Stmt::Match(_) => self.within(When::Later, |reader| visitor::walk_stmt(reader, stmt)),
            Stmt::Try(attempt) if attempt.handlers.iter().any(catches_imports) => {
                self.within(When::Guarded, |reader| visitor::walk_body(reader, &attempt.body));
                for handler in &attempt.handlers {
                    let when = if catches_imports(handler) { When::Guarded } else { When::Later };
                    self.within(when, |reader| reader.visit_except_handler(handler));
                }
                for body in [&attempt.orelse, &attempt.finalbody] {
                    visitor::walk_body(self, body);
                }
            }
            _ => visitor::walk_stmt(self, stmt),
        }
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Name(name) if name.ctx.is_store() || name.ctx.is_del() => self.bind(name.id.as_str()),
            Expr::Call(call) => self.dynamic(call),
            // The whole chain at once: a long one is not looked at from each of its names.
            Expr::Attribute(attribute) => {
                let root = self.attribute(attribute);
                return self.visit_expr(root);
            }
            Expr::Lambda(_) => return self.within(When::Later, |reader| visitor::walk_expr(reader, expr)),
            _ => {}
        }
        visitor::walk_expr(self, expr);
    }

    fn visit_parameter(&mut self, parameter: &'a Parameter) {
        self.bind(parameter.name.as_str());
        visitor::walk_parameter(self, parameter);
    }
}

/// `if TYPE_CHECKING:` and `if typing.TYPE_CHECKING:`.
fn is_for_types(test: &Expr) -> bool {
    match test {
        Expr::Name(name) => name.id.as_str() == "TYPE_CHECKING",
        Expr::Attribute(attribute) => attribute.attr.as_str() == "TYPE_CHECKING",
        _ => false,
    }
}

/// Whether a handler is for imports that fail.
fn catches_imports(handler: &ExceptHandler) -> bool {
    const NAMES: [&str; 4] = ["ImportError", "ModuleNotFoundError", "Exception", "BaseException"];
    let ExceptHandler::ExceptHandler(handler) = handler;
    let is = |expr: &Expr| matches!(expr, Expr::Name(name) if NAMES.contains(&name.id.as_str()));
    match handler.type_.as_deref() {
        None => true,
        Some(Expr::Tuple(tuple)) => tuple.elts.iter().any(is),
        Some(expr) => is(expr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(source: &str) -> Syntax {
        read_all(&[source]).remove(0)
    }

    fn imports(source: &str) -> Vec<String> {
        of(source).imports.into_iter().map(|i| format!("{} {} {:?}", i.module, i.line, i.when)).collect()
    }

    fn uses(source: &str) -> Vec<String> {
        of(source).uses.into_iter().map(|u| format!("{} {} {:?}", u.name, u.line, u.when)).collect()
    }

    #[test]
    fn imports_say_when_they_happen() {
        let source = "import os, a.b as c\nfrom d.e import (f,\n  g as h)\nfrom . import own\nfrom .x import y\n\
                      def late():\n    import in_function\n    from z import *\nif x:\n    import on_condition\n\
                      try:\n    import maybe\nexcept ImportError:\n    import instead\n\
                      try:\n    import must\nexcept KeyError:\n    pass\n\
                      from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import types_only\nelse:\n    import real\n\
                      class C:\n    import in_class\n\
                      import importlib\nm = importlib.import_module('dyn.amic')\n__import__('other')\n";
        assert_eq!(
            imports(source),
            [
                "os 1 Start",
                "a.b 1 Start",
                "d.e 2 Start",
                "d.e.f 2 Start",
                "d.e.g 3 Start",
                "in_function 7 Later",
                "z 8 Later",
                "on_condition 10 Later",
                "maybe 12 Guarded",
                "instead 14 Guarded",
                "must 16 Start",
                "typing 19 Start",
                "typing.TYPE_CHECKING 19 Start",
                "types_only 21 Typing",
                "real 23 Start",
                "in_class 25 Start",
                "importlib 26 Start",
                "dyn.amic 27 Start",
                "other 28 Start",
            ]
        );
    }

    #[test]
    fn uses_are_of_modules_and_one_name_deep() {
        let source = "import openai, streamlit as st\nimport a.b\nimport json\nfrom x import y\n\
                      def f(json):\n    return openai.ChatCompletion.create(), json.loads('')\n\
                      st.set_page_config()\nst.session_state.anything.at.all\na.b.c()\ny.z\n";
        assert_eq!(
            uses(source),
            [
                "a.b 9 Start",
                "openai.ChatCompletion 6 Later",
                "streamlit.session_state 8 Start",
                "streamlit.set_page_config 7 Start",
            ]
        );
    }

    #[test]
    fn the_syntax_says_which_python_reads_it() {
        for (source, least) in [
            ("x = 1", None),
            ("if (n := 1): pass", None),
            ("match x:\n    case 1: pass", Some((10, 1))),
            ("match = 3\nmatch.group(1)", None),
            ("x = 1\ntry:\n    pass\nexcept* ValueError:\n    pass", Some((11, 4))),
            ("type X = int", Some((12, 1))),
            ("def f[T](x: T): pass", Some((12, 1))),
            ("f\"{a[\"b\"]}\"", Some((12, 1))),
            ("with (open(a) as b, open(c) as d): pass", Some((9, 1))),
        ] {
            let syntax = of(source);
            assert_eq!((syntax.least, syntax.greatest, syntax.broken), (least, None, None), "{source}");
        }
    }

    #[test]
    fn what_is_no_python_3_says_where() {
        for (source, line, python2) in [
            ("x = 1\nprint \"hello\"\n", 2, true),
            ("try:\n    pass\nexcept IOError, e:\n    pass\n", 3, true),
            ("def f(:\n", 1, false),
            ("<<<<<<< HEAD\nx = 1\n", 1, false),
            ("x = (\n", 2, false),
        ] {
            let broken = of(source).broken.unwrap_or_else(|| panic!("{source}"));
            assert_eq!((broken.line, broken.python2), (line, python2), "{source} {}", broken.why);
        }
        assert_eq!(of("\u{feff}import a\n").imports.len(), 1);
        assert!(of(&"#".repeat(MAX_SOURCE + 1)).broken.is_some());
    }

    #[test]
    fn deep_and_long_sources_end_well() {
        let size = MAX_SOURCE / 2;
        for source in [
            "(".repeat(size),
            "-".repeat(size) + "1",
            "1".to_owned() + &"+1".repeat(size / 2),
            "a".to_owned() + &".a".repeat(size / 2),
            "not ".repeat(size / 4) + "a",
            "lambda:".repeat(size / 7) + "a",
            "a if a else ".repeat(size / 12) + "a",
            "if a:\n".to_owned() + &(1..700).map(|n| " ".repeat(n) + "if a:\n").collect::<String>(),
            "if a: pass\n".to_owned() + &"elif a: pass\n".repeat(size / 13),
            "x = ".to_owned() + &"[".repeat(150) + &"]".repeat(150),
            "a".to_owned() + &"[0]".repeat(size / 3),
            "a".to_owned() + &"()".repeat(size / 2),
            "f'{".repeat(size / 3),
            "a, ".repeat(size / 3),
        ] {
            let _ = of(&source);
        }
    }
}
