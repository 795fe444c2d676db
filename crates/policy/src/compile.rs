//! From manifest grants and guard-rail files to checked Cedar rules.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::str::FromStr;

use cedar_policy::{
    Effect, EntityId, EntityTypeName, EntityUid, PolicyId, PolicySet, Schema, ValidationMode, Validator,
};
use ringfence_inspect::schema::Schema as ArgumentSchema;
use ringfence_model::manifest::{GitOperation, Grant, LlmRules, Protocol, RpcRules, Scheme, TlsMode};
use ringfence_model::report::one_line;
use ringfence_model::{AgentName, Explain, Fault, HostName, HostPattern};

use crate::index::Index;
use crate::{other, path, ssh};

/// The schema that every rule is checked against, in Cedar's schema language.
pub const SCHEMA: &str = include_str!("../../../policies/ringfence.cedarschema");

/// Grants and guard-rails that were understood and checked.
pub struct Policy {
    pub(crate) grants: Vec<Grant>,
    pub(crate) names: Names,
    pub(crate) all: PolicySet,
    pub(crate) index: Index,
    /// Whether any guard-rail speaks of what a request body says.
    pub(crate) guard_rails_ask_for_content: bool,
    /// Of each grant, what arguments of tools may be.
    pub(crate) schemas: Vec<BTreeMap<String, ArgumentSchema>>,
    sources: Vec<(String, String)>,
}

/// Cedar names that every decision needs, made once.
pub(crate) struct Names {
    pub(crate) agent: EntityUid,
    pub(crate) host: EntityTypeName,
    pub(crate) actions: [EntityUid; Action::ALL.len()],
}

/// What is asked to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    DnsResolve,
    HttpRequest,
    IngressRequest,
    PostgresConnect,
    PostgresQuery,
    RpcCall,
    SecretUse,
    SshExec,
    SshPush,
    TcpConnect,
    TlsConnect,
}

impl Action {
    pub(crate) const ALL: [Self; 11] = [
        Self::DnsResolve,
        Self::HttpRequest,
        Self::IngressRequest,
        Self::SecretUse,
        Self::TlsConnect,
        Self::RpcCall,
        Self::TcpConnect,
        Self::PostgresConnect,
        Self::PostgresQuery,
        Self::SshExec,
        Self::SshPush,
    ];

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::DnsResolve => "dns:resolve",
            Self::HttpRequest => "http:request",
            Self::IngressRequest => "ingress:request",
            Self::PostgresConnect => "postgres:connect",
            Self::PostgresQuery => "postgres:query",
            Self::RpcCall => "rpc:call",
            Self::SecretUse => "secret:use",
            Self::SshExec => "ssh:exec",
            Self::SshPush => "ssh:push",
            Self::TcpConnect => "tcp:connect",
            Self::TlsConnect => "tls:connect",
        }
    }

    pub(crate) const fn slot(self) -> usize {
        match self {
            Self::DnsResolve => 0,
            Self::HttpRequest => 1,
            Self::IngressRequest => 2,
            Self::SecretUse => 3,
            Self::TlsConnect => 4,
            Self::RpcCall => 5,
            Self::TcpConnect => 6,
            Self::PostgresConnect => 7,
            Self::PostgresQuery => 8,
            Self::SshExec => 9,
            Self::SshPush => 10,
        }
    }
}

/// Why grants or guard-rails make no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A grant's path glob covers no path that is ever decided.
    #[error("grant {number} path `{path}` can match no request")]
    Path {
        /// 1-based number of the grant.
        number: usize,
        /// The glob.
        path: String,
        /// Why no request can match.
        #[source]
        why: path::PathError,
    },
    /// A schema of a tool's arguments that cannot be enforced.
    #[error("grant {number} mcp schemas `{tool}` cannot be enforced: {why}")]
    Arguments {
        /// 1-based number of the grant.
        number: usize,
        /// The tool.
        tool: String,
        /// Why.
        why: ringfence_inspect::schema::SchemaError,
    },
    /// A guard-rail file that is not Cedar.
    #[error("cannot read guard-rail file `{file}`: {why}")]
    Syntax {
        /// Its name.
        file: String,
        /// What the parser says, with line and column where known.
        why: String,
    },
    /// A rule that speaks of what the schema does not know.
    #[error("rule `{rule}` does not fit the schema: {why}")]
    Schema {
        /// Its id.
        rule: String,
        /// What the validator says.
        why: String,
    },
    /// A guard-rail that allows.
    #[error("guard-rail `{rule}` allows, and guard-rails may only forbid")]
    Permits {
        /// Its id.
        rule: String,
    },
    /// A guard-rail with a slot, which nothing would ever fill.
    #[error("guard-rail file `{file}` has a template")]
    Template {
        /// The file's name.
        file: String,
    },
    /// Two guard-rails with one id.
    #[error("two guard-rails are called `{rule}`")]
    Twice {
        /// The id.
        rule: String,
    },
    /// A compiled rule that Cedar refuses; ours to mend.
    #[error("cannot compile rule `{rule}`: {why}")]
    Compile {
        /// Its id.
        rule: String,
        /// What Cedar says.
        why: String,
    },
}

impl Explain for PolicyError {
    fn code(&self) -> &'static str {
        match self {
            Self::Arguments { .. } => "policy.arguments",
            Self::Compile { .. } => "policy.compile",
            Self::Path { .. } => "policy.path",
            Self::Permits { .. } => "policy.guard_rail_permits",
            Self::Schema { .. } => "policy.schema",
            Self::Syntax { .. } => "policy.syntax",
            Self::Template { .. } => "policy.template",
            Self::Twice { .. } => "policy.twice",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::Compile { .. } => Fault::Us,
            _ => Fault::Caller,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Arguments { .. } => Some(
                "write it in the keywords that docs/guide/models.md lists; `pattern` says what `format` would".into(),
            ),
            Self::Permits { .. } => Some("write what is allowed as a `[[grant]]` of the manifest".into()),
            Self::Schema { .. } => Some("see policies/ringfence.cedarschema for what rules may speak about".into()),
            Self::Twice { .. } => Some("give each rule its own `@id(\"…\")`".into()),
            Self::Template { .. } => Some("replace `?principal` or `?resource` by what is meant".into()),
            _ => None,
        }
    }
}

/// What arguments of a grant's tools may be.
fn argument_schemas(number: usize, grant: &Grant) -> Result<BTreeMap<String, ArgumentSchema>, PolicyError> {
    let written = grant.rpc.iter().flat_map(|rules| &rules.schemas);
    let read = written.map(|(tool, text)| match ArgumentSchema::parse(text) {
        Ok(schema) => Ok((tool.clone(), schema)),
        Err(why) => Err(PolicyError::Arguments { number, tool: tool.clone(), why }),
    });
    read.collect()
}

impl Policy {
    /// Compiles and checks the grants of one agent, and the guard-rails that hold over it.
    ///
    /// Each guard-rail is a file name and Cedar text. The rules of grant *n* have the ids `grant-n`,
    /// `grant-n/dns`, `grant-n/secret`; a guard-rail's id is `file:@id`, or `file:index` without `@id`.
    ///
    /// # Errors
    /// [`PolicyError`] names the first rule that cannot be enforced as written.
    pub fn compile(agent: &AgentName, grants: &[Grant], guard_rails: &[(String, String)]) -> Result<Self, PolicyError> {
        let schema = Schema::from_str(SCHEMA).map_err(|e| compile_error("schema", &e))?;
        let names = Names::new(agent)?;
        let mut index = Index::default();
        let mut all = PolicySet::new();
        let mut sources = Vec::new();
        let mut add = |id: String, text: &str, action: Action, host: Option<&HostPattern>| {
            let rule =
                cedar_policy::Policy::parse(Some(PolicyId::new(&id)), text).map_err(|e| compile_error(&id, &e))?;
            all.add(rule.clone()).map_err(|e| compile_error(&id, &e))?;
            index.add(&[action], host, rule);
            sources.push((id, text.to_owned()));
            Ok(())
        };
        for (at, grant) in grants.iter().enumerate() {
            let number = at + 1;
            for rule in grant_rules(agent, number, grant, Hosts::ByEntity)? {
                add(rule.id, &rule.text, rule.action, Some(&grant.host))?;
            }
        }
        let ingress = format!(
            "permit (principal == Agent::{}, action == Action::\"ingress:request\", resource)\nwhen {{ context.authenticated }};",
            quoted(agent.as_str())
        );
        add("ingress".into(), &ingress, Action::IngressRequest, None)?;

        let mut guard_rails_ask_for_content = false;
        for (file, text) in guard_rails {
            guard_rails_ask_for_content |= text.contains("model") || text.contains("llm");
            let set = PolicySet::from_str(text).map_err(|e| syntax_error(file, &e))?;
            if set.templates().next().is_some() {
                return Err(PolicyError::Template { file: file.clone() });
            }
            // Ids by place follow the order in the file: `policy0`, `policy1`, …
            let mut rules: Vec<_> = set.policies().cloned().collect();
            rules.sort_by_key(|rule| rule.id().to_string().trim_start_matches("policy").parse::<u64>().unwrap_or(0));
            for (at, rule) in rules.iter().enumerate() {
                let id = match rule.annotation("id") {
                    Some(own) if !own.is_empty() => format!("{file}:{}", one_line(own)),
                    _ => format!("{file}:{}", at + 1),
                };
                if rule.effect() == Effect::Permit {
                    return Err(PolicyError::Permits { rule: id });
                }
                let rule = rule.new_id(PolicyId::new(&id));
                all.add(rule.clone()).map_err(|_| PolicyError::Twice { rule: id.clone() })?;
                sources.push((id, rule.to_cedar().unwrap_or_default()));
                index.add_guard_rail(&names, rule);
            }
        }

        let checked = Validator::new(schema).validate(&all, ValidationMode::Strict);
        // Cedar finds them in any order; people get the same one each time.
        let errors = checked.validation_errors().map(|e| (e.policy_id().to_string(), one_line(&e.to_string())));
        if let Some((rule, why)) = errors.min() {
            return Err(PolicyError::Schema { rule, why });
        }
        index.seal().map_err(|e| compile_error("index", &*e))?;
        let schemas = grants.iter().enumerate().map(|(at, grant)| argument_schemas(at + 1, grant));
        let schemas = schemas.collect::<Result<_, _>>()?;
        Ok(Self { grants: grants.to_vec(), names, all, index, guard_rails_ask_for_content, schemas, sources })
    }

    /// Every rule by id, as Cedar text.
    #[must_use]
    pub fn sources(&self) -> &[(String, String)] {
        &self.sources
    }

    /// The same rules for a symbolic proof: with the host's name said where deciding can take it from the entity, and
    /// without the door for people.
    ///
    /// # Errors
    /// [`PolicyError`], which [`Policy::compile`] would have given before.
    pub fn provable(&self, agent: &AgentName) -> Result<PolicySet, PolicyError> {
        let mut rules = Vec::new();
        for (at, grant) in self.grants.iter().enumerate() {
            let grant = grant_rules(agent, at + 1, grant, Hosts::ByEntityAndName)?;
            rules.extend(grant.into_iter().map(|rule| (rule.id, rule.text)));
        }
        // Ids of guard-rails are `file:rule`; no other has a colon.
        rules.extend(self.sources.iter().filter(|(id, _)| id.contains(':')).cloned());
        set_of(rules)
    }

    /// The claim that only these hosts are reached, as rules that a policy may be held against: whatever the policy
    /// allows, they allow.
    ///
    /// # Errors
    /// [`PolicyError`] if a text of ours does not parse.
    pub fn only(hosts: &[HostPattern]) -> Result<PolicySet, PolicyError> {
        let rules = hosts.iter().enumerate().map(|(at, host)| {
            let condition = match host {
                HostPattern::Below(suffix) => {
                    format!("resource.name like {}", glob(&format!("*.{suffix}"), Stars::First))
                }
                HostPattern::Exact(host) => format!("resource.name == {}", quoted(&host.to_string())),
            };
            (format!("host-{}", at + 1), format!("permit (principal, action, resource) when {{ {condition} }};"))
        });
        set_of(rules.collect())
    }

    /// The claim that no request meets `condition`, a Cedar expression, as [`Policy::only`] states its own.
    ///
    /// # Errors
    /// [`PolicyError`] if it is no Cedar expression.
    pub fn never(condition: &str) -> Result<PolicySet, PolicyError> {
        let text = format!(
            "permit (principal, action == Action::{}, resource) unless {{ {condition} }};",
            quoted(Action::HttpRequest.word())
        );
        set_of(vec![("never".into(), text)])
    }

    /// The grants it was compiled from; a [`crate::Permit`] names one by its place.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }
}

fn set_of(rules: Vec<(String, String)>) -> Result<PolicySet, PolicyError> {
    let mut set = PolicySet::new();
    for (id, text) in rules {
        let rule = cedar_policy::Policy::parse(Some(PolicyId::new(&id)), text).map_err(|e| compile_error(&id, &e))?;
        set.add(rule).map_err(|e| compile_error(&id, &e))?;
    }
    Ok(set)
}

impl Names {
    fn new(agent: &AgentName) -> Result<Self, PolicyError> {
        let kind = |word: &str| EntityTypeName::from_str(word).map_err(|e| compile_error(word, &e));
        let action = kind("Action")?;
        Ok(Self {
            agent: EntityUid::from_type_name_and_id(kind("Agent")?, EntityId::new(agent.as_str())),
            host: kind("Host")?,
            actions: Action::ALL.map(|a| EntityUid::from_type_name_and_id(action.clone(), EntityId::new(a.word()))),
        })
    }

    pub(crate) fn action(&self, action: Action) -> EntityUid {
        let [dns, http, ingress, secret, tls, rpc, tcp, session, query, exec, push] = &self.actions;
        match action {
            Action::DnsResolve => dns,
            Action::HttpRequest => http,
            Action::IngressRequest => ingress,
            Action::SecretUse => secret,
            Action::TlsConnect => tls,
            Action::RpcCall => rpc,
            Action::TcpConnect => tcp,
            Action::PostgresConnect => session,
            Action::PostgresQuery => query,
            Action::SshExec => exec,
            Action::SshPush => push,
        }
        .clone()
    }
}

/// How a rule names its host.
#[derive(Clone, Copy)]
enum Hosts {
    /// As is enough for deciding, where an entity has its own name as attribute.
    ByEntity,
    /// As a proof needs it, which knows nothing of that.
    ByEntityAndName,
}

struct GrantRule {
    id: String,
    text: String,
    action: Action,
}

/// The rules that one grant stands for.
fn grant_rules(agent: &AgentName, number: usize, grant: &Grant, hosts: Hosts) -> Result<Vec<GrantRule>, PolicyError> {
    let scope = |action: Action| match &grant.host {
        HostPattern::Below(_) => format!(
            "permit (principal == Agent::{}, action == Action::{}, resource)",
            quoted(agent.as_str()),
            quoted(action.word())
        ),
        HostPattern::Exact(host) => format!(
            "permit (principal == Agent::{}, action == Action::{}, resource == Host::{})",
            quoted(agent.as_str()),
            quoted(action.word()),
            quoted(&host.to_string())
        ),
    };
    let host = match &grant.host {
        HostPattern::Below(suffix) => {
            Some(format!("resource.name like {}", glob(&format!("*.{suffix}"), Stars::First)))
        }
        HostPattern::Exact(host) if matches!(hosts, Hosts::ByEntityAndName) => {
            Some(format!("resource.name == {}", quoted(&host.to_string())))
        }
        HostPattern::Exact(_) => None,
    };
    let rule = |id: String, action: Action, conditions: Vec<String>| {
        let conditions: Vec<String> = host.iter().cloned().chain(conditions).collect();
        let when =
            if conditions.is_empty() { String::new() } else { format!("\nwhen {{ {} }}", conditions.join(" && ")) };
        GrantRule { id, text: format!("{}{when};", scope(action)), action }
    };
    let mut rules = Vec::new();
    if matches!(&grant.host, HostPattern::Below(_) | HostPattern::Exact(HostName::Name(_))) {
        rules.push(rule(format!("grant-{number}/dns"), Action::DnsResolve, Vec::new()));
    }
    let port = format!("resource.port == {}", grant.port);
    let with_port =
        |conditions: Vec<String>| -> Vec<String> { std::iter::once(port.clone()).chain(conditions).collect() };
    if let (Protocol::Postgres(_) | Protocol::Ssh(_), Some(credential)) = (&grant.protocol, &grant.credential) {
        let scheme = format!("context.scheme == {}", quoted(grant.protocol.word()));
        let conditions = with_port(vec![scheme, format!("context.credential == {}", quoted(credential))]);
        rules.push(rule(format!("grant-{number}/secret"), Action::SecretUse, conditions));
    }
    match &grant.protocol {
        Protocol::Http => {}
        Protocol::Postgres(postgres) => {
            let conditions = with_port(other::conditions(number, postgres));
            rules.push(rule(format!("grant-{number}/query"), Action::PostgresQuery, conditions));
            let conditions = with_port(other::session_conditions(number, postgres));
            rules.push(rule(format!("grant-{number}"), Action::PostgresConnect, conditions));
            return Ok(rules);
        }
        Protocol::Ssh(granted) => {
            if granted.operations.contains(&GitOperation::Push) {
                let conditions = with_port(ssh::push_conditions(number, granted));
                rules.push(rule(format!("grant-{number}/push"), Action::SshPush, conditions));
            }
            let conditions = with_port(ssh::conditions(number, granted));
            rules.push(rule(format!("grant-{number}"), Action::SshExec, conditions));
            return Ok(rules);
        }
        Protocol::Tcp(_) => {
            rules.push(rule(format!("grant-{number}"), Action::TcpConnect, vec![port]));
            return Ok(rules);
        }
    }
    if grant.scheme == Scheme::Https && grant.tls == TlsMode::Passthrough {
        rules.push(rule(format!("grant-{number}"), Action::TlsConnect, vec![port]));
        return Ok(rules);
    }
    let mut conditions = vec![port, format!("context.scheme == {}", quoted(grant.scheme.word()))];
    if !grant.methods.is_empty() {
        conditions.push(format!("{}.contains(context.method)", set(&grant.methods)));
    }
    if !grant.paths.is_empty() {
        let globs = grant
            .paths
            .iter()
            .map(|path| {
                let path =
                    path::normalise(path).map_err(|why| PolicyError::Path { number, path: path.clone(), why })?;
                Ok(format!("context.path like {}", glob(&path, Stars::All)))
            })
            .collect::<Result<Vec<_>, PolicyError>>()?;
        conditions.push(format!("({})", globs.join(" || ")));
    }
    if !grant.models.is_empty() {
        let models = set(&grant.models);
        conditions.push(format!("context has model && {models}.contains(context.model)"));
        conditions.push(format!("(if context has llm then {models}.containsAll(context.llm.models) else true)"));
    }
    conditions.extend(llm_conditions(&grant.llm));
    if let Some(credential) = &grant.credential {
        let mut conditions = conditions.clone();
        conditions.push(format!("context.credential == {}", quoted(credential)));
        rules.push(rule(format!("grant-{number}/secret"), Action::SecretUse, conditions));
    }
    if let Some(rpc) = &grant.rpc {
        let conditions = rpc_conditions(number, grant.port, rpc);
        rules.push(rule(format!("grant-{number}/rpc"), Action::RpcCall, conditions));
    }
    rules.push(rule(format!("grant-{number}"), Action::HttpRequest, conditions));
    Ok(rules)
}

/// Methods of MCP by which one thing is asked for, and the list of a grant that covers it.
const ABOUT: [(&str, &[&str]); 3] = [
    ("tools", &["tools/call"]),
    ("prompts", &["prompts/get"]),
    ("resources", &["resources/read", "resources/subscribe", "resources/unsubscribe"]),
];

/// What a server asks of an agent, and not of one that was not granted it.
const ASKED_BY_SERVER: [&str; 3] = ["sampling/createMessage", "elicitation/create", "roots/list"];

fn rpc_conditions(number: usize, port: u16, rules: &RpcRules) -> Vec<String> {
    let mut conditions = vec![format!("resource.port == {port}"), format!("context.grant == {number}")];
    let granted = [rules.sampling, rules.elicitation, rules.roots];
    for (method, _) in ASKED_BY_SERVER.iter().zip(granted).filter(|(_, granted)| !granted) {
        conditions.push(format!("context.method != {}", quoted(method)));
    }
    if let Some(methods) = &rules.methods {
        let own = match methods.as_slice() {
            [] => "false".to_owned(),
            methods => format!("{}.contains(context.method)", set(methods)),
        };
        conditions.push(format!("(context.from_server || {own})"));
    }
    let lists = [&rules.tools, &rules.prompts, &rules.resources];
    for ((_, methods), globs) in ABOUT.iter().zip(lists) {
        let Some(globs) = globs else { continue };
        let methods: Vec<String> = methods.iter().map(ToString::to_string).collect();
        let one: Vec<String> =
            globs.iter().map(|text| format!("context.name like {}", glob(text, Stars::All))).collect();
        let any = if one.is_empty() { "false".to_owned() } else { one.join(" || ") };
        conditions.push(format!(
            "(!{}.contains(context.method) || (if context has name then ({any}) else false))",
            set(&methods)
        ));
    }
    conditions
}

fn llm_conditions(rules: &LlmRules) -> Vec<String> {
    if rules.decide_nothing() {
        return Vec::new();
    }
    let mut conditions = vec!["context has llm".to_owned()];
    if let Some(tools) = &rules.tools {
        // An empty literal has no type of its own to be checked against.
        conditions.push(match tools.as_slice() {
            [] => "context.llm.tools.isEmpty()".to_owned(),
            tools => format!("{}.containsAll(context.llm.tools)", set(tools)),
        });
    }
    if !rules.system_prompts.is_empty() {
        let prompts: Vec<String> = rules.system_prompts.iter().map(ToString::to_string).collect();
        conditions.push("!context.llm.prompts.isEmpty()".to_owned());
        conditions.push(format!("{}.containsAll(context.llm.prompts)", set(&prompts)));
    }
    if rules.streaming == Some(false) {
        conditions.push("!context.llm.streaming".to_owned());
    }
    if !rules.formats.is_empty() {
        conditions.push(format!("{}.contains(context.llm.format)", set(&rules.formats)));
    }
    conditions
}

pub(crate) fn set(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(", "))
}

/// A Cedar string literal for any text.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        push_escaped(&mut out, c);
    }
    out.push('"');
    out
}

/// Which stars of a text stand for any text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stars {
    All,
    First,
}

/// A Cedar pattern literal for `like`.
pub(crate) fn glob(text: &str, stars: Stars) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for (at, c) in text.char_indices() {
        match c {
            '*' if stars == Stars::All || at == 0 => out.push('*'),
            '*' => out.push_str("\\*"),
            _ => push_escaped(&mut out, c),
        }
    }
    out.push('"');
    out
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        ' '..='~' => out.push(c),
        _ => {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        }
    }
}

fn compile_error(rule: &str, error: &dyn std::error::Error) -> PolicyError {
    PolicyError::Compile { rule: rule.to_owned(), why: one_line(&error.to_string()) }
}

fn syntax_error(file: &str, error: &cedar_policy::ParseErrors) -> PolicyError {
    let why = error.iter().map(|e| one_line(&e.to_string())).collect::<Vec<_>>().join("; ");
    PolicyError::Syntax { file: file.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn eval(expression: &str) -> bool {
        let rule = format!("permit(principal, action, resource) when {{ {expression} }};");
        let set = PolicySet::from_str(&rule).unwrap_or_else(|e| panic!("{rule}: {e}"));
        let uid = |t: &str| EntityUid::from_str(t).unwrap();
        let request = cedar_policy::Request::new(
            uid("A::\"a\""),
            uid("Action::\"b\""),
            uid("H::\"c\""),
            cedar_policy::Context::empty(),
            None,
        )
        .unwrap();
        cedar_policy::Authorizer::new().is_authorized(&request, &set, &cedar_policy::Entities::empty()).decision()
            == cedar_policy::Decision::Allow
    }

    proptest! {
        #[test]
        fn no_text_leaves_its_quotes(text in "\\PC{0,24}", other in "\\PC{0,24}") {
            let same = format!("{} == {}", quoted(&text), quoted(&other));
            prop_assert_eq!(eval(&same), text == other);
        }

        #[test]
        fn a_glob_means_what_it_says(text in "[a*\"\\\\/ä]{0,8}", subject in "[a*\"\\\\/ä]{0,8}") {
            let rule = format!("{} like {}", quoted(&subject), glob(&text, Stars::All));
            prop_assert_eq!(eval(&rule), matches(&text.chars().collect::<Vec<_>>(), &subject.chars().collect::<Vec<_>>()));
        }
    }

    fn matches(glob: &[char], text: &[char]) -> bool {
        match glob.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|at| matches(rest, &text[at..])),
            Some((c, rest)) => text.first() == Some(c) && matches(rest, &text[1..]),
        }
    }
}
