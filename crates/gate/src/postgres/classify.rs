//! What SQL does, from its tokens: kinds of statements and functions that may have effects. What is not understood is
//! `other`, which no grant allows.
//!
//! Nothing is parsed to a tree, since a tree of another grammar than the server's would be an answer about another
//! text. Instead every word that changes something counts wherever it stands, and everything that looks like a call
//! counts as one, unless its place shows that it is none.

use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

use aws_lc_rs::digest::{Context, SHA256};

use super::lex::{self, Kind, Token};
use super::settings;

/// Functions of PostgreSQL without effects: what its catalogue calls immutable or stable and can be called from SQL,
/// less those that run a text as SQL, more some that are volatile and harmless.
static HARMLESS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| include_str!("functions.txt").lines().collect());

/// Functions that change something that `write` is about.
const WRITES: [&str; 3] = ["nextval", "pg_notify", "setval"];

/// Words before a parenthesis that make no call: reserved ones, those with a syntax of their own, names of types with
/// a length, and parts of clauses.
static NO_CALL: LazyLock<HashSet<&'static str>> = LazyLock::new(|| include_str!("no_call.txt").lines().collect());

/// Those of them that are not reserved, so that functions may be called so, and behind what they make no call.
const NOT_RESERVED: [(&str, &[&str]); 13] = [
    ("by", &["group", "order", "partition"]),
    ("conflict", &["on"]),
    ("filter", &[")"]),
    ("hash", &["by"]),
    ("include", &[")"]),
    ("inherits", &[")"]),
    ("key", &["foreign", "primary"]),
    ("list", &["by"]),
    ("materialized", &["as", "not"]),
    ("over", &[")"]),
    ("passing", &[")"]),
    ("range", &["by"]),
    ("sets", &["grouping"]),
];

/// The view by whose change a session changes any of its settings, as may a view on it.
const SETTINGS: &str = "pg_settings";

/// What a text of SQL does. Several statements in one text count together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Kinds: `select`, `write`, `ddl`, `session`, `transaction`, `other`.
    pub classes: Vec<&'static str>,
    /// Functions that may have effects.
    pub functions: Vec<String>,
    /// How many statements there are.
    pub statements: u64,
    /// First words of the statements.
    pub verbs: Vec<String>,
    /// What the statements seem to be about; for people.
    pub tables: Vec<String>,
    /// `sha256:` digest of the text with every constant replaced by `?`.
    pub digest: String,
    /// Whether the server keeps a statement of it that may be run later.
    pub keeps: bool,
    /// Why it is `other`.
    pub note: Option<String>,
}

/// Statements, functions or tables of one text that are told at most.
const MAX_TOLD: usize = 32;

/// Finds out what a text does.
#[must_use]
pub fn understand(text: &str) -> Summary {
    let mut found = Found::default();
    let mut verbs: Vec<String> = Vec::new();
    let mut statements = 0;
    let mut digest = Context::new(&SHA256);
    match lex::tokens(text) {
        Err(why) => {
            found.other(why);
            digest.update(text.as_bytes());
        }
        Ok(tokens) => {
            for statement in tokens.split(|token| token.kind == Kind::Symbol(b';')).filter(|s| !s.is_empty()) {
                let statement = Statement { text, tokens: statement, leading: Leading::Any };
                statements += 1;
                if verbs.len() < MAX_TOLD {
                    verbs.push(statement.word(0).unwrap_or_else(|| "(".into()).chars().take(40).collect());
                }
                statement.classify(&mut found, 0);
            }
            let whole = Statement { text, tokens: &tokens, leading: Leading::Any };
            if whole.names(SETTINGS) && ["ddl", "write"].iter().any(|class| found.classes.contains(class)) {
                found.other(format!("changing `{SETTINGS}` changes settings"));
            }
            for token in &tokens {
                match token.kind {
                    Kind::Number | Kind::Text => digest.update(b"?"),
                    _ => digest.update(token.of(text).as_bytes()),
                }
                digest.update(b" ");
            }
        }
    }
    if found.classes.is_empty() {
        found.classes.insert("session");
    }
    verbs.dedup();
    let hex: String = digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Summary {
        classes: found.classes.into_iter().collect(),
        functions: found.functions.into_iter().collect(),
        statements,
        verbs,
        tables: found.tables.into_iter().take(MAX_TOLD).collect(),
        digest: format!("sha256:{hex}"),
        keeps: found.keeps,
        note: found.note,
    }
}

/// What is known of a text that cannot be read at all.
#[must_use]
pub fn unreadable(why: &str) -> Summary {
    Summary { classes: vec!["other"], verbs: Vec::new(), note: Some(why.to_owned()), ..understand("") }
}

#[derive(Default)]
struct Found {
    classes: BTreeSet<&'static str>,
    functions: BTreeSet<String>,
    tables: BTreeSet<String>,
    keeps: bool,
    note: Option<String>,
}

impl Found {
    fn other(&mut self, why: impl Into<String>) {
        self.classes.insert("other");
        self.note.get_or_insert_with(|| why.into());
    }

    /// Notes what calling a function amounts to.
    fn called(&mut self, name: &str) {
        let own = match name.split_once('.') {
            None => Some(name),
            Some(("pg_catalog", own)) => Some(own),
            Some(("information_schema", own)) if own.starts_with("_pg_") => return,
            Some(_) => None,
        };
        match own {
            Some(own) if WRITES.contains(&own) => {
                self.classes.insert("write");
            }
            Some(own) if HARMLESS.contains(own) => {}
            _ if self.functions.len() < MAX_TOLD => {
                self.functions.insert(name.chars().take(128).collect());
            }
            _ => self.other("it calls too many functions"),
        }
    }
}

/// One statement, or one within another.
#[derive(Clone, Copy)]
struct Statement<'a> {
    text: &'a str,
    tokens: &'a [Token],
    /// What kind of statement it stands in, where that says how names before parentheses are read.
    leading: Leading,
}

/// Kinds of statements in which a name before a parenthesis may be that of a table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leading {
    Alter,
    Any,
    Create,
    /// With the places of its first `ON` and `USING`.
    CreateIndex(Option<usize>, Option<usize>),
}

/// Parts that a name has at most: database, schema, table, column. More are taken for an expression's.
const MAX_PARTS: usize = 4;

/// The longest `SET`, in tokens.
const MAX_SETTING: usize = 200;

/// Statements within statements that are looked into.
const MAX_DEPTH: u32 = 3;

impl<'a> Statement<'a> {
    fn kind(&self, at: usize) -> Option<Kind> {
        self.tokens.get(at).map(|token| token.kind)
    }

    fn of(&self, at: usize) -> &'a str {
        self.tokens.get(at).map_or("", |token| token.of(self.text))
    }

    /// The word at a place in lower case, as keywords are compared; `None` for quoted names.
    fn word(&self, at: usize) -> Option<String> {
        (self.kind(at)? == Kind::Word).then(|| self.of(at).to_ascii_lowercase())
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.kind(at) == Some(Kind::Word) && self.of(at).eq_ignore_ascii_case(word)
    }

    fn is_one_of(&self, at: usize, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(at, word))
    }

    /// Whether a word makes no call of the parenthesis behind it.
    fn begins_clause(&self, at: usize) -> bool {
        let Some(word) = self.word(at).filter(|word| NO_CALL.contains(word.as_str())) else { return false };
        match NOT_RESERVED.iter().find(|(name, _)| *name == word) {
            None => true,
            Some((_, behind)) => at.checked_sub(1).is_some_and(|before| {
                self.is_one_of(before, behind) || (behind.contains(&")") && self.is_symbol(before, b')'))
            }),
        }
    }

    fn is_symbol(&self, at: usize, symbol: u8) -> bool {
        self.kind(at) == Some(Kind::Symbol(symbol))
    }

    fn has(&self, words: &[&str]) -> bool {
        (0..self.tokens.len()).any(|at| self.is_one_of(at, words))
    }

    /// Whether something of this name stands anywhere.
    fn names(&self, name: &str) -> bool {
        // WHY: with an encoding of one byte and a Turkish locale, a server makes that letter a plain `i`.
        (0..self.tokens.len()).any(|at| {
            matches!(self.kind(at), Some(Kind::Quoted | Kind::Word)) && self.part(at).replace('\u{130}', "i") == name
        })
    }

    fn from(&self, at: usize) -> Self {
        Self { text: self.text, tokens: self.tokens.get(at..).unwrap_or_default(), leading: Leading::Any }
    }

    /// The place behind the parenthesis that closes the one at `at`.
    fn behind(&self, at: usize) -> usize {
        let steps = self.tokens.get(at).and_then(|token| usize::try_from(token.pair).ok()).filter(|steps| *steps > 0);
        steps.map_or(self.tokens.len(), |steps| (at + steps + 1).min(self.tokens.len()))
    }

    /// The place of the parenthesis that the one at `at` closes.
    fn opening(&self, at: usize) -> Option<usize> {
        let steps = self.tokens.get(at)?.pair.checked_neg()?;
        at.checked_sub(usize::try_from(steps).ok().filter(|steps| *steps > 0)?)
    }

    fn classify(self, found: &mut Found, depth: u32) {
        if depth > MAX_DEPTH {
            return found.other("statements stand within statements too often");
        }
        let first = self.word(0).unwrap_or_default();
        let second = |word: &str| self.is(1, word);
        found.keeps |= matches!(first.as_str(), "declare" | "prepare");
        match first.as_str() {
            "select" | "values" | "table" | "with" => self.scan("select", found),
            "" if self.is_symbol(0, b'(') => self.scan("select", found),
            "insert" | "update" | "delete" | "merge" => self.scan("write", found),
            "explain" => self.explain(found, depth),
            "declare" if self.has(&["cursor"]) => self.scan("select", found),
            "fetch" | "move" => self.scan("select", found),
            "prepare" if !second("transaction") => self.prepare(found, depth),
            "execute" | "close" | "deallocate" | "discard" | "listen" | "unlisten" | "show" => {
                self.scan("session", found);
            }
            "begin" | "start" | "abort" | "savepoint" | "release" => self.transaction(found),
            "commit" | "end" | "rollback" if !second("prepared") => self.transaction(found),
            "set" | "reset" if self.tokens.len() > MAX_SETTING => found.other("a setting has too many values"),
            "set" => settings::set(&self.settings(), found_setting(found)),
            "reset" => settings::reset(&self.settings(), found_setting(found)),
            "copy" => self.copy(found),
            "truncate" | "lock" | "notify" => self.scan("write", found),
            "call" => self.scan("write", found),
            // These hold no expressions.
            "analyze" | "analyse" | "vacuum" | "cluster" | "reindex" | "refresh" => {
                found.classes.insert("ddl");
            }
            "comment" if !self.has(&["role", "database", "extension", "tablespace", "subscription"]) => {
                self.scan("ddl", found);
            }
            "create" => self.create(found),
            "alter" => self.alter(found),
            "drop" => self.drop_things(found),
            "" => found.other("it begins with no word"),
            word => {
                found.other(format!("no grant allows `{}`", word.chars().take(40).collect::<String>().to_uppercase()))
            }
        }
    }

    fn settings(&self) -> Vec<(Kind, String)> {
        let token = |token: &Token| {
            let text = token.of(self.text);
            match token.kind {
                Kind::Word => (Kind::Word, text.to_ascii_lowercase()),
                kind => (kind, text.to_owned()),
            }
        };
        self.tokens.iter().map(token).collect()
    }

    fn transaction(&self, found: &mut Found) {
        found.classes.insert("transaction");
        if (0..self.tokens.len()).any(|at| self.is(at, "read") && self.is(at + 1, "write")) {
            found.classes.insert("write");
        }
    }

    /// What is explained counts as if it were done, since it may be.
    fn explain(self, found: &mut Found, depth: u32) {
        let mut at = 1;
        if self.is_symbol(1, b'(')
            && !self.is_one_of(2, &["select", "with", "values", "table"])
            && !self.is_symbol(2, b'(')
        {
            at = self.behind(1);
        }
        while self.is_one_of(at, &["analyze", "analyse", "verbose"]) {
            at += 1;
        }
        found.classes.insert("select");
        self.from(at).classify(found, depth + 1);
    }

    fn prepare(self, found: &mut Found, depth: u32) {
        let mut at = 2;
        if self.is_symbol(at, b'(') {
            at = self.behind(at);
        }
        if !self.is(at, "as") {
            return found.other("`PREPARE` is not understood");
        }
        found.classes.insert("session");
        self.from(at + 1).classify(found, depth + 1);
    }

    /// `COPY` between a table or query and the client; not with files and programs of the server.
    fn copy(self, found: &mut Found) {
        let mut at = 1;
        if self.is_symbol(at, b'(') {
            at = self.behind(at);
        }
        while at < self.tokens.len() && !self.is_one_of(at, &["from", "to"]) {
            at = if self.is_symbol(at, b'(') { self.behind(at) } else { at + 1 };
        }
        if !self.is_one_of(at + 1, &["stdin", "stdout"]) {
            return found.other("`COPY` reaches files or programs of the server");
        }
        let kind = if self.is(at, "from") { "write" } else { "select" };
        self.scan(kind, found);
    }

    /// The first words behind `CREATE` and the like, up to the kind of thing.
    fn thing(&self) -> Option<(usize, String)> {
        const MANNERS: [&str; 11] = [
            "concurrently",
            "global",
            "local",
            "materialized",
            "or",
            "recursive",
            "replace",
            "temp",
            "temporary",
            "unique",
            "unlogged",
        ];
        (1..self.tokens.len()).find(|at| !self.is_one_of(*at, &MANNERS)).and_then(|at| Some((at, self.word(at)?)))
    }

    fn create(self, found: &mut Found) {
        let thing = self.thing();
        let allowed = match thing.as_ref().map(|(_, word)| word.as_str()) {
            Some("table" | "view" | "index" | "sequence" | "type" | "domain" | "statistics") => true,
            // What may be created within is looked at only by itself.
            Some("schema") => {
                !self.has(&["authorization", "grant"]) && !(1..self.tokens.len()).any(|at| self.is(at, "create"))
            }
            _ => false,
        };
        if !allowed {
            return found.other("no grant allows creating this kind of thing");
        }
        let place = |word: &str| (0..self.tokens.len()).find(|at| self.is(*at, word));
        let leading = match thing {
            Some((_, word)) if word == "index" => Leading::CreateIndex(place("on"), place("using")),
            _ => Leading::Create,
        };
        Self { leading, ..self }.scan("ddl", found);
    }

    fn alter(self, found: &mut Found) {
        let allowed = self.thing().is_some_and(|(_, word)| {
            ["table", "view", "index", "sequence", "type", "domain", "schema", "statistics"].contains(&word.as_str())
        });
        // Owners, triggers, rules and row security are about who may do what.
        const RIGHTS: [&str; 7] = ["disable", "enable", "force", "owner", "rule", "security", "trigger"];
        if !allowed || self.has(&RIGHTS) {
            return found.other("no grant allows altering this");
        }
        Self { leading: Leading::Alter, ..self }.scan("ddl", found);
    }

    fn drop_things(self, found: &mut Found) {
        let allowed = self.thing().is_some_and(|(_, word)| {
            ["table", "view", "index", "sequence", "type", "domain", "schema", "statistics"].contains(&word.as_str())
        });
        if !allowed {
            return found.other("no grant allows dropping this kind of thing");
        }
        found.classes.insert("ddl");
    }

    /// Goes through a whole statement for what changes something, and for calls.
    fn scan(self, kind: &'static str, found: &mut Found) {
        found.classes.insert(kind);
        for (at, token) in self.tokens.iter().enumerate() {
            let before = at.checked_sub(1);
            match token.kind {
                Kind::Symbol(b'(') => self.call(at, found),
                Kind::Symbol(b'.') => self.selection(at, found),
                // Behind a dot stands a name, whatever it is called.
                Kind::Word if before.is_some_and(|b| self.is_symbol(b, b'.')) => {}
                Kind::Word => self.keyword(at, found),
                _ => {}
            }
        }
    }

    fn keyword(&self, at: usize, found: &mut Found) {
        let before = |words: &[&str]| at.checked_sub(1).is_some_and(|before| self.is_one_of(before, words));
        if self.is_one_of(at, &["insert", "update", "delete", "merge"]) {
            // `ON DELETE CASCADE` of a definition is no deletion.
            if !(matches!(self.leading, Leading::Create | Leading::Alter) && before(&["on"])) {
                found.classes.insert("write");
            }
        } else if self.is(at, "into") && !before(&["insert", "merge"]) {
            found.classes.insert("ddl");
        } else if self.is(at, "for") && self.is_one_of(at + 1, &["share", "key", "no"]) {
            found.classes.insert("write");
        } else if self.is_one_of(at, &["from", "join", "into", "update", "table", "copy", "using"]) {
            let mut name = at + 1;
            if self.is(name, "only") {
                name += 1;
            }
            self.table(name, found);
        }
    }

    fn table(&self, at: usize, found: &mut Found) {
        if found.tables.len() >= MAX_TOLD || !matches!(self.kind(at), Some(Kind::Quoted | Kind::Word)) {
            return;
        }
        let mut end = at;
        while self.is_symbol(end + 1, b'.') && matches!(self.kind(end + 2), Some(Kind::Quoted | Kind::Word)) {
            end += 2;
        }
        let function =
            self.is_symbol(end + 1, b'(') && !self.is_one_of(at.saturating_sub(1), &["into", "table", "copy"]);
        if !(function || at == end && self.begins_clause(at)) {
            found.tables.insert(self.name(at, end).chars().take(128).collect());
        }
    }

    /// A name of one part or more, as it counts.
    fn name(&self, first: usize, last: usize) -> String {
        (first..=last).filter(|at| !self.is_symbol(*at, b'.')).map(|at| self.part(at)).collect::<Vec<_>>().join(".")
    }

    fn part(&self, at: usize) -> String {
        let text = self.of(at);
        match self.kind(at) {
            // It is one name, and no grant has it.
            Some(Kind::Quoted) if text.contains('.') => text.to_owned(),
            Some(Kind::Quoted) => text.get(1..text.len().saturating_sub(1)).unwrap_or_default().replace("\"\"", "\""),
            _ => text.to_ascii_lowercase(),
        }
    }

    /// Notes what is called by the parenthesis at `at`, if anything is.
    fn call(&self, at: usize, found: &mut Found) {
        let Some(last) = at.checked_sub(1) else { return };
        if !matches!(self.kind(last), Some(Kind::Quoted | Kind::Word)) {
            return;
        }
        let mut first = last;
        while first >= 2
            && self.is_symbol(first - 1, b'.')
            && matches!(self.kind(first - 2), Some(Kind::Quoted | Kind::Word))
        {
            first -= 2;
        }
        let simple = first == last;
        let dotted = first.checked_sub(1).is_some_and(|before| self.is_symbol(before, b'.'));
        let keyword = simple && !dotted && (first == 0 || self.begins_clause(last));
        if (keyword && self.kind(last) == Some(Kind::Word)) || (!dotted && self.is_no_call(first, at)) {
            return;
        }
        let name = self.name(first, last);
        if !(matches!(name.as_str(), "set_config" | "pg_catalog.set_config") && self.sets_harmless(at)) {
            found.called(&name);
        }
    }

    /// Notes the call that `.name` at `dot` may be: behind an expression `(a).f` is `f(a)`, whatever the type of `a`.
    /// Behind a name it is a part of it.
    fn selection(&self, dot: usize, found: &mut Found) {
        let is_name = |at: usize| matches!(self.kind(at), Some(Kind::Quoted | Kind::Word));
        if !is_name(dot + 1) {
            return;
        }
        let mut base = dot.checked_sub(1);
        for _ in 0..MAX_PARTS {
            let Some(at) = base.filter(|at| is_name(*at)) else { break };
            if at == 0 || !self.is_symbol(at - 1, b'.') {
                return;
            }
            base = at.checked_sub(2);
        }
        found.called(&self.part(dot + 1));
    }

    /// `set_config('jit', …`: one that a plain `SET` could do with any value.
    fn sets_harmless(&self, open: usize) -> bool {
        let text = self.of(open + 1);
        self.kind(open + 1) == Some(Kind::Text)
            && self.is_symbol(open + 2, b',')
            && text
                .strip_prefix('\'')
                .and_then(|rest| rest.strip_suffix('\''))
                .is_some_and(|name| settings::is_harmless(&name.to_ascii_lowercase()))
    }

    /// Whether a name before a parenthesis names something that is not called: a table with its columns, an alias, a
    /// type.
    fn is_no_call(&self, first: usize, open: usize) -> bool {
        let Some(before) = first.checked_sub(1) else { return false };
        let earlier = |steps: usize| before.checked_sub(steps);
        if self.kind(before) == Some(Kind::Symbol(b':')) {
            // `x::numeric(3)`, but not the two ends of a slice.
            let touching = earlier(1).and_then(|at| Some(self.tokens.get(at)?.touches(self.tokens.get(before)?)));
            return touching == Some(true) && earlier(1).is_some_and(|at| self.is_symbol(at, b':'));
        }
        if self.is_one_of(before, &["as", "into", "recursive"]) {
            return true;
        }
        if self.is(before, "with") {
            return earlier(1).is_none_or(|at| self.is_symbol(at, b'(') || self.is(at, "as"));
        }
        if before == 0 && self.is_one_of(0, &["execute", "prepare", "copy"]) {
            return true;
        }
        match self.leading {
            Leading::Create if self.is_one_of(before, &["table", "exists", "view", "references", "of"]) => return true,
            Leading::Alter if self.is(before, "references") => return true,
            Leading::CreateIndex(on, using) => {
                let only = self.is(before, "only") && earlier(1) == on;
                return Some(before) == on || only || (Some(before) == using && using > on);
            }
            _ => {}
        }
        if self.is_symbol(before, b',') {
            return self.is_common_table(open);
        }
        self.is_symbol(before, b')') && self.are_names(open) && self.is_alias(before)
    }

    /// `, name (a, b) AS (SELECT`: one of several tables behind `WITH`.
    fn is_common_table(&self, open: usize) -> bool {
        let mut at = self.behind(open);
        if !self.is(at, "as") || !self.are_names(open) {
            return false;
        }
        at += 1;
        if self.is(at, "not") {
            at += 1;
        }
        if self.is(at, "materialized") {
            at += 1;
        }
        // These are reserved: no column of a function's result can be called so.
        self.is_symbol(at, b'(') && self.is_one_of(at + 1, &["select", "with", "table"])
    }

    /// Whether there is nothing but names with commas between in the parentheses at `open`.
    fn are_names(&self, open: usize) -> bool {
        let inside = open + 1..self.behind(open).saturating_sub(1);
        !inside.is_empty()
            && inside.enumerate().all(|(nth, at)| match self.kind(at) {
                Some(Kind::Quoted | Kind::Word) => nth % 2 == 0,
                Some(Kind::Symbol(b',')) => nth % 2 == 1,
                _ => false,
            })
    }

    /// Whether what stands behind the parenthesis that `close` closes can only be another name for a table:
    /// `FROM (SELECT …) x (…)`, `FROM f(…) x (…)`.
    fn is_alias(&self, close: usize) -> bool {
        const BEFORE_TABLE: [&str; 3] = ["from", "join", "lateral"];
        let Some(open) = self.opening(close) else { return false };
        let at_table =
            |at: usize| at.checked_sub(1).is_some_and(|b| self.is_one_of(b, &BEFORE_TABLE) || self.is_symbol(b, b','));
        if at_table(open) {
            return self.is_one_of(open + 1, &["select", "with", "values", "table"]);
        }
        let Some(last) = open.checked_sub(1) else { return false };
        let mut first = last;
        while first >= 2 && self.is_symbol(first - 1, b'.') {
            first -= 2;
        }
        // Behind `OPERATOR(…)` comes what it is applied to.
        matches!(self.kind(last), Some(Kind::Quoted | Kind::Word))
            && !(first == last && self.begins_clause(last))
            && at_table(first)
    }
}

fn found_setting(found: &mut Found) -> impl FnMut(settings::Effect) + '_ {
    |effect| match effect {
        settings::Effect::Refused(why) => found.other(why),
        settings::Effect::Session => {
            found.classes.insert("session");
        }
        settings::Effect::Transaction => {
            found.classes.insert("transaction");
        }
        settings::Effect::Write => {
            found.classes.insert("write");
        }
    }
}
