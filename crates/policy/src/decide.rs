//! The decision: a request and a policy in, a permit or a denial out.

use std::collections::{HashMap, HashSet};

use cedar_policy::{Authorizer, Context, Entities, Entity, EntityId, EntityUid, PolicySet, RestrictedExpression};
use ringfence_inspect::json::Value;
use ringfence_model::HostName;
use ringfence_model::manifest::{Grant, RpcRules, Scheme, TlsMode, glob_covers};

use crate::compile::{Action, Policy};
use crate::other::PostgresQuery;
use crate::path::{self, PathError};
use crate::ssh::{SshExec, SshPush};

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Request<'a> {
    /// The agent asks for a name's address.
    DnsResolve {
        /// The name.
        host: &'a HostName,
    },
    /// The agent makes an HTTP request.
    Http(HttpRequest<'a>),
    /// The agent, or the server that it speaks with, says something by MCP or A2A.
    Rpc(RpcRequest<'a>),
    /// A person makes an HTTP request to the agent.
    Ingress(IngressRequest<'a>),
    /// The agent opens a session with a database.
    PostgresConnect {
        /// The host.
        host: &'a HostName,
        /// The port.
        port: u16,
    },
    /// The agent has a database do something.
    PostgresQuery(PostgresQuery<'a>),
    /// The agent has git do something with a repository, over SSH.
    SshExec(SshExec<'a>),
    /// The agent pushes a ref, over SSH.
    SshPush(SshPush<'a>),
    /// The agent opens a TCP connection that nobody looks into.
    TcpConnect {
        /// The host.
        host: &'a HostName,
        /// The port.
        port: u16,
    },
    /// The agent opens a TLS connection that stays closed to the gate.
    TlsConnect {
        /// The server name.
        host: &'a HostName,
        /// The port.
        port: u16,
    },
}

/// An HTTP request of the agent.
#[derive(Clone, Debug)]
pub struct HttpRequest<'a> {
    /// Where it goes.
    pub host: &'a HostName,
    /// The port.
    pub port: u16,
    /// Cleartext or TLS.
    pub scheme: Scheme,
    /// The method, as sent; methods are case-sensitive.
    pub method: &'a str,
    /// The path without query, as sent; it is brought to its one form before it is decided.
    pub path: &'a str,
    /// Whether it asks to become a WebSocket.
    pub websocket: bool,
    /// The model that the body names, where [`Policy::needs_content`] asked for it.
    pub model: Option<&'a str>,
    /// What the body asks of a language model, if it is such a call and was understood.
    pub llm: Option<&'a LlmCall>,
}

/// What a call asks of a language model, in one form for all APIs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LlmCall {
    /// The API, such as `openai`.
    pub api: String,
    /// Every model that may run.
    pub models: Vec<String>,
    /// Names of the tools that a model is offered; of those that the provider runs, the word for their kind.
    pub tools: Vec<String>,
    /// `sha256:` digests of the system prompts.
    pub prompts: Vec<String>,
    /// Whether the answer comes as a stream.
    pub streaming: bool,
    /// The form that the answer is to have: `text`, `json`, `json_schema`, `grammar`.
    pub format: String,
    /// The most tokens that may come out, where that is bounded.
    pub max_tokens: Option<u64>,
}

impl LlmCall {
    fn record(&self) -> Result<RestrictedExpression, String> {
        let text = |text: &String| RestrictedExpression::new_string(text.clone());
        let set = |texts: &[String]| RestrictedExpression::new_set(texts.iter().map(text));
        let mut fields = vec![
            ("api".to_owned(), text(&self.api)),
            ("format".to_owned(), text(&self.format)),
            ("models".to_owned(), set(&self.models)),
            ("prompts".to_owned(), set(&self.prompts)),
            ("streaming".to_owned(), RestrictedExpression::new_bool(self.streaming)),
            ("tools".to_owned(), set(&self.tools)),
        ];
        let most = self.max_tokens.map(|most| i64::try_from(most).unwrap_or(i64::MAX));
        fields.extend(most.map(|most| ("max_tokens".to_owned(), RestrictedExpression::new_long(most))));
        RestrictedExpression::new_record(fields).map_err(|e| e.to_string())
    }
}

/// A message of MCP or A2A, inside an HTTP request that was allowed.
#[derive(Clone, Debug)]
pub struct RpcRequest<'a> {
    /// The grant that allowed the request, as [`Permit::grant`] has it.
    pub grant: usize,
    /// Where it goes.
    pub host: &'a HostName,
    /// The port.
    pub port: u16,
    /// The method.
    pub method: &'a str,
    /// What it is about: the tool or prompt by name, the resource by address.
    pub name: Option<&'a str>,
    /// Arguments of a tool: each by its path, with `.` between, and its value as text.
    pub arguments: &'a [(String, String)],
    /// The same as they came.
    pub value: Option<&'a Value<'a>>,
    /// Whether the server says it.
    pub from_server: bool,
}

/// An HTTP request of a person to the agent.
#[derive(Clone, Debug)]
pub struct IngressRequest<'a> {
    /// The host that the person named.
    pub host: &'a HostName,
    /// The port.
    pub port: u16,
    /// The method.
    pub method: &'a str,
    /// The path without query, as sent.
    pub path: &'a str,
    /// Whether it asks to become a WebSocket.
    pub websocket: bool,
    /// Whether the person showed what the manifest asks for.
    pub authenticated: bool,
}

/// Allow with a permit, or deny with the reason.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Allowed.
    Allow(Permit),
    /// Denied.
    Deny(Denial),
}

impl Decision {
    /// Whether it allows.
    #[must_use]
    pub const fn allows(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The decision in words, for people: verdict, reason and rules.
    #[must_use]
    pub fn explain(&self) -> String {
        let (verdict, code, why, rules) = match self {
            Self::Allow(permit) => ("allow", permit.reason, &permit.why, &permit.rules),
            Self::Deny(denial) => ("deny", denial.code, &denial.why, &denial.rules),
        };
        let rules = if rules.is_empty() { String::new() } else { format!(" ({})", rules.join(", ")) };
        format!("{verdict}: {code}: {why}{rules}")
    }
}

/// Proof that a request was allowed. Only [`Policy::decide`] makes one, and whatever relays demands one.
///
/// ```compile_fail
/// let forged = ringfence_policy::Permit { grant: Some(0), credential: None };
/// ```
#[derive(Clone, Debug)]
pub struct Permit {
    grant: Option<usize>,
    credential: Option<String>,
    path: Option<String>,
    rules: Vec<String>,
    reason: &'static str,
    why: String,
}

impl Permit {
    /// The place of the grant that gives the call its route, from 0; `None` for ingress.
    #[must_use]
    pub const fn grant(&self) -> Option<usize> {
        self.grant
    }

    /// The credential to inject.
    #[must_use]
    pub fn credential(&self) -> Option<&str> {
        self.credential.as_deref()
    }

    /// The path in the form that was decided, which is the only one that may be sent.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    /// Ids of the rules that decided.
    #[must_use]
    pub fn rules(&self) -> &[String] {
        &self.rules
    }

    /// A stable code: `grant` or `ingress`.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.reason
    }

    /// The reason in words.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }
}

/// Why a request was denied; for the operator, never for the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// A stable code: `no_grant`, `guard_rail`, `llm_not_granted`, `model_not_granted`, `path_ambiguous`, `secret_denied`,
    /// `statement_not_granted`, `repository_not_granted`, `ref_not_granted`, `policy_error`, or one of the gate's own.
    pub code: &'static str,
    /// The reason in words.
    pub why: String,
    /// Ids of the rules that decided.
    pub rules: Vec<String>,
}

impl Denial {
    /// A denial that no rule made, such as one for a malformed request.
    #[must_use]
    pub fn new(code: &'static str, why: impl Into<String>) -> Self {
        Self { code, why: why.into(), rules: Vec::new() }
    }
}

/// Which rules are asked.
#[derive(Clone, Copy)]
pub(crate) enum Rules {
    All,
    Slice,
}

/// What Cedar answered: the rules that decided, or the denial.
pub(crate) type Verdict = Result<Vec<String>, Denial>;

impl Policy {
    /// Decides. Total and free of panics; on any doubt it denies.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        self.decide_by(request, Rules::Slice)
    }

    /// Decides by asking every rule; slower, and always of the same answer as [`Policy::decide`].
    #[must_use]
    pub fn decide_unsliced(&self, request: &Request<'_>) -> Decision {
        self.decide_by(request, Rules::All)
    }

    /// Whether a name may be resolved at all.
    #[must_use]
    pub fn could_resolve(&self, host: &HostName) -> bool {
        self.decide(&Request::DnsResolve { host }).allows()
    }

    /// Whether some request to this host, port and scheme could be allowed, and what then becomes of TLS.
    ///
    /// The first grant in manifest order says. It is a question of routing: each request is decided anew.
    #[must_use]
    pub fn route(&self, host: &HostName, port: u16, scheme: Scheme) -> Option<TlsMode> {
        let here = |g: &&Grant| g.protocol.is_http() && g.port == port && g.scheme == scheme && g.host.covers(host);
        let grant = self.grants.iter().find(here)?;
        let resolvable = matches!(host, HostName::Address(_)) || self.could_resolve(host);
        resolvable.then_some(grant.tls)
    }

    /// Whether the decision needs what the body says, so that the body must be read first.
    #[must_use]
    pub fn needs_content(&self, request: &HttpRequest<'_>) -> bool {
        let Ok(path) = path::normalise(request.path) else { return false };
        let mut covering = self.grants.iter().filter(|g| Misfit::of(g, request, &path).is_none());
        let Some(first) = covering.next() else { return false };
        self.guard_rails_ask_for_content || !first.models.is_empty() || !first.llm.decide_nothing()
    }

    fn decide_by(&self, request: &Request<'_>, rules: Rules) -> Decision {
        let decided = match request {
            Request::DnsResolve { host } => self.dns(host, rules),
            Request::Http(http) => self.http(http, rules),
            Request::Ingress(ingress) => self.ingress(ingress, rules),
            Request::PostgresConnect { host, port } => self.session(host, *port, rules),
            Request::PostgresQuery(query) => self.query(query, rules),
            Request::Rpc(rpc) => self.rpc(rpc, rules),
            Request::SshExec(exec) => self.ssh(exec, rules),
            Request::SshPush(push) => self.ssh_push(push, rules),
            Request::TcpConnect { host, port } => self.tcp(host, *port, rules),
            Request::TlsConnect { host, port } => self.tls(host, *port, rules),
        };
        match decided {
            Ok(permit) => Decision::Allow(permit),
            Err(denial) => Decision::Deny(denial),
        }
    }

    fn dns(&self, host: &HostName, rules: Rules) -> Result<Permit, Denial> {
        let rules = self.ask(Action::DnsResolve, host, 0, Vec::new(), rules, || {
            Denial::new("no_grant", format!("no grant covers {host}"))
        })?;
        Ok(self.permit(rules, None, |number| format!("grant {number} covers {host}")))
    }

    fn tls(&self, host: &HostName, port: u16, rules: Rules) -> Result<Permit, Denial> {
        let rules = self.ask(Action::TlsConnect, host, port, Vec::new(), rules, || {
            Denial::new("no_grant", format!("no passthrough grant covers {host}:{port}"))
        })?;
        Ok(self.permit(rules, None, |number| format!("grant {number} lets TLS to {host}:{port} through closed")))
    }

    fn http(&self, request: &HttpRequest<'_>, rules: Rules) -> Result<Permit, Denial> {
        let path = path::normalise(request.path).map_err(ambiguous)?;
        let llm = request.llm.map(LlmCall::record).transpose().map_err(|why| Denial::new("policy_error", why))?;
        let context = || {
            let mut context = vec![
                pair("method", request.method),
                pair("path", &path),
                pair("scheme", request.scheme.word()),
                ("websocket".to_owned(), RestrictedExpression::new_bool(request.websocket)),
            ];
            context.extend(request.model.map(|model| pair("model", model)));
            context.extend(llm.clone().map(|llm| ("llm".to_owned(), llm)));
            context
        };
        let (host, port) = (request.host, request.port);
        let mut deciding =
            self.ask(Action::HttpRequest, host, port, context(), rules, || self.why_not(request, &path))?;
        let credential = first_grant(&deciding).and_then(|at| self.grants.get(at)).and_then(|g| g.credential.clone());
        if let Some(credential) = &credential {
            let mut context = context();
            context.push(pair("credential", credential));
            let secret = self.ask(Action::SecretUse, host, port, context, rules, || {
                Denial::new("secret_denied", format!("no rule lets this call use credential `{credential}`"))
            });
            match secret {
                Ok(rules) => deciding.extend(rules),
                Err(denial) => return Err(Denial { code: "secret_denied", ..denial }),
            }
        }
        let (method, path_text) = (request.method, path.as_str());
        let mut permit = self
            .permit(deciding, credential, |number| format!("grant {number} covers {method} {host}:{port}{path_text}"));
        permit.path = Some(path);
        Ok(permit)
    }

    fn rpc(&self, request: &RpcRequest<'_>, rules: Rules) -> Result<Permit, Denial> {
        let RpcRequest { grant, host, port, method, name, arguments, value, from_server } = request;
        let granted = self.grants.get(*grant).and_then(|grant| grant.rpc.as_ref());
        let Some(granted) = granted else {
            return Err(Denial::new("rpc_not_granted", format!("grant {} is for no such server", grant + 1)));
        };
        if *method == "tools/call"
            && let Some((argument, why)) = name.and_then(|tool| argument_misfit(granted, tool, arguments))
        {
            let why = format!("grant {} covers the tool, but {why}", grant + 1);
            return Err(Denial { rules: vec![format!("grant-{}/rpc", grant + 1)], ..Denial::new(argument, why) });
        }
        let schema = self.schemas.get(*grant).zip(*name).and_then(|(schemas, tool)| schemas.get(tool));
        if let Some(schema) = schema.filter(|_| *method == "tools/call") {
            let none = Value::object::<String>([]);
            if let Err(misfit) = schema.fits(value.unwrap_or(&none)) {
                let place = if misfit.path.is_empty() { "the arguments do" } else { misfit.path.as_str() };
                let does = if misfit.path.is_empty() { "" } else { " does" };
                let why =
                    format!("grant {} covers the tool, but {place}{does} not fit `{}`", grant + 1, misfit.keyword);
                let rules = vec![format!("grant-{}/rpc", grant + 1)];
                return Err(Denial { rules, ..Denial::new("argument_not_granted", why) });
            }
        }
        let said: Vec<RestrictedExpression> =
            arguments.iter().map(|(path, value)| RestrictedExpression::new_string(format!("{path}={value}"))).collect();
        let mut context = vec![
            pair("method", method),
            ("grant".to_owned(), RestrictedExpression::new_long(i64::try_from(grant + 1).unwrap_or(i64::MAX))),
            ("from_server".to_owned(), RestrictedExpression::new_bool(*from_server)),
            ("arguments".to_owned(), RestrictedExpression::new_set(said)),
        ];
        context.extend(name.map(|name| pair("name", name)));
        let rules = self.ask(Action::RpcCall, host, *port, context, rules, || {
            let about = name.map(|name| format!(" of `{name}`")).unwrap_or_default();
            Denial::new("rpc_not_granted", format!("grant {} covers {host}, but not `{method}`{about}", grant + 1))
        })?;
        let about = name.map(|name| format!(" of `{name}`")).unwrap_or_default();
        Ok(self.permit(rules, None, |number| format!("grant {number} covers `{method}`{about}")))
    }

    fn ingress(&self, request: &IngressRequest<'_>, rules: Rules) -> Result<Permit, Denial> {
        // People's paths are matched by guard-rails alone; one of no single form is matched as it came.
        let path = path::normalise(request.path).unwrap_or_else(|_| request.path.to_owned());
        let context = vec![
            pair("method", request.method),
            pair("path", &path),
            ("websocket".to_owned(), RestrictedExpression::new_bool(request.websocket)),
            ("authenticated".to_owned(), RestrictedExpression::new_bool(request.authenticated)),
        ];
        let rules = self.ask(Action::IngressRequest, request.host, request.port, context, rules, || {
            Denial::new("not_authenticated", "the request shows no valid token or session")
        })?;
        let why = "the request is authenticated, or needs not be".to_owned();
        Ok(Permit { grant: None, credential: None, path: None, rules, reason: "ingress", why })
    }

    pub(crate) fn permit(
        &self,
        rules: Vec<String>,
        credential: Option<String>,
        why: impl FnOnce(usize) -> String,
    ) -> Permit {
        let grant = first_grant(&rules);
        Permit { grant, credential, path: None, why: why(grant.map_or(0, |at| at + 1)), rules, reason: "grant" }
    }

    /// Asks Cedar. Answers with the rules that allow, or a denial; `otherwise` says why no rule allows.
    pub(crate) fn ask(
        &self,
        action: Action,
        host: &HostName,
        port: u16,
        context: Vec<(String, RestrictedExpression)>,
        rules: Rules,
        otherwise: impl FnOnce() -> Denial,
    ) -> Verdict {
        let text = host.to_string();
        let set: &PolicySet = match rules {
            Rules::All => &self.all,
            Rules::Slice => match self.index.slice(action, host, &text) {
                Some(set) => set,
                None => &self.all,
            },
        };
        if set.is_empty() {
            return Err(otherwise());
        }
        let broken = |e: &dyn std::error::Error| Denial::new("policy_error", format!("cannot ask the policy: {e}"));
        let uid = EntityUid::from_type_name_and_id(self.names.host.clone(), EntityId::new(&text));
        let attributes = HashMap::from([
            ("name".to_owned(), RestrictedExpression::new_string(text)),
            ("port".to_owned(), RestrictedExpression::new_long(i64::from(port))),
            ("address".to_owned(), RestrictedExpression::new_bool(host.name().is_none())),
        ]);
        let resource = Entity::new(uid.clone(), attributes, HashSet::new()).map_err(|e| broken(&e))?;
        let entities = Entities::from_entities([resource], None).map_err(|e| broken(&e))?;
        let context = Context::from_pairs(context).map_err(|e| broken(&e))?;
        let request =
            cedar_policy::Request::new(self.names.agent.clone(), self.names.action(action), uid, context, None)
                .map_err(|e| broken(&e))?;
        let answer = Authorizer::new().is_authorized(&request, set, &entities);
        let mut deciding: Vec<String> = answer.diagnostics().reason().map(ToString::to_string).collect();
        deciding.sort_by(|a, b| (grant_number(a), a).cmp(&(grant_number(b), b)));
        // WHY: Cedar passes over a rule that cannot be evaluated. Were that rule a `forbid`, passing over it
        // would allow; so any error denies.
        if let Some(error) = answer.diagnostics().errors().next() {
            return Err(Denial {
                code: "policy_error",
                why: format!("a rule could not be evaluated: {error}"),
                rules: deciding,
            });
        }
        match answer.decision() {
            cedar_policy::Decision::Allow => Ok(deciding),
            cedar_policy::Decision::Deny if deciding.is_empty() => Err(otherwise()),
            cedar_policy::Decision::Deny => {
                let why = format!("guard-rail {} forbids it", deciding.join(", "));
                Err(Denial { code: "guard_rail", why, rules: deciding })
            }
        }
    }

    /// Says for people how the nearest grant misses the request.
    fn why_not(&self, request: &HttpRequest<'_>, path: &str) -> Denial {
        let HttpRequest { host, port, .. } = request;
        let mut nearest: Option<(Misfit, usize, &Grant)> = None;
        for (at, grant) in self.grants.iter().enumerate().filter(|(_, g)| g.host.covers(host)) {
            let misfit = Misfit::of(grant, request, path).unwrap_or_else(|| content_misfit(grant, request).0);
            if nearest.is_none_or(|(best, ..)| misfit > best) {
                nearest = Some((misfit, at + 1, grant));
            }
        }
        let Some((misfit, number, grant)) = nearest else {
            return Denial::new("no_grant", format!("no grant covers {host}"));
        };
        let miss = misfit.words(grant, request, path);
        match misfit {
            Misfit::Model => {
                Denial::new("model_not_granted", format!("grant {number} covers {host}:{port}, but {miss}"))
            }
            Misfit::Llm => Denial::new("llm_not_granted", format!("grant {number} covers {host}:{port}, but {miss}")),
            _ => Denial::new("no_grant", format!("grant {number} covers {host}, but {miss}")),
        }
    }
}

/// Why the arguments of a tool's call are not those that a grant asks for.
fn argument_misfit(rules: &RpcRules, tool: &str, arguments: &[(String, String)]) -> Option<(&'static str, String)> {
    let wanted = rules.arguments.get(tool)?;
    wanted.iter().find_map(|(path, globs)| {
        let mut given = arguments.iter().filter(|(given, _)| given == path).map(|(_, value)| value).peekable();
        if given.peek().is_none() {
            return Some(("argument_not_granted", format!("only with argument `{path}`")));
        }
        let other = given.find(|value| !globs.iter().any(|glob| glob_covers(glob, value)));
        other.map(|_| ("argument_not_granted", format!("not with this value of argument `{path}`")))
    })
}

/// How a grant that covers all else misses what the body says, and the same in words.
fn content_misfit(grant: &Grant, request: &HttpRequest<'_>) -> (Misfit, String) {
    if !grant.models.is_empty() {
        let Some(model) = request.model else { return (Misfit::Model, "only with a model that the body names".into()) };
        let further = request.llm.iter().flat_map(|llm| &llm.models).map(String::as_str);
        if let Some(model) = std::iter::once(model).chain(further).find(|m| !grant.models.iter().any(|g| g == m)) {
            return (Misfit::Model, format!("not model `{model}`"));
        }
    }
    let Some(llm) = request.llm else { return (Misfit::Llm, "only for calls of a language model".into()) };
    let rules = &grant.llm;
    let tool = rules.tools.as_ref().and_then(|granted| llm.tools.iter().find(|tool| !granted.contains(tool)));
    let miss = if let Some(tool) = tool {
        format!("not with tool `{tool}`")
    } else if rules.streaming == Some(false) && llm.streaming {
        "not as a stream".into()
    } else if !rules.formats.is_empty() && !rules.formats.contains(&llm.format) {
        format!("not in format `{}`", llm.format)
    } else if let [first, ..] = llm.prompts.as_slice() {
        format!("not with the system prompt {first}")
    } else {
        "only with a pinned system prompt".into()
    };
    (Misfit::Llm, miss)
}

/// How a grant misses a request; what is further down came nearer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Misfit {
    Host,
    Protocol,
    Closed,
    Port,
    Method,
    Path,
    /// A model that the body names, or that it names none.
    Model,
    /// Something else that the body asks for.
    Llm,
}

impl Misfit {
    /// What the body says aside.
    fn of(grant: &Grant, request: &HttpRequest<'_>, path: &str) -> Option<Self> {
        let covers = |glob: &String| path::normalise(glob).is_ok_and(|glob| glob_covers(&glob, path));
        if !grant.host.covers(request.host) {
            Some(Self::Host)
        } else if !grant.protocol.is_http() {
            Some(Self::Protocol)
        } else if grant.tls == TlsMode::Passthrough && grant.scheme == Scheme::Https {
            Some(Self::Closed)
        } else if grant.port != request.port || grant.scheme != request.scheme {
            Some(Self::Port)
        } else if !grant.methods.is_empty() && !grant.methods.iter().any(|m| m == request.method) {
            Some(Self::Method)
        } else if !grant.paths.is_empty() && !grant.paths.iter().any(covers) {
            Some(Self::Path)
        } else {
            None
        }
    }

    fn words(self, grant: &Grant, request: &HttpRequest<'_>, path: &str) -> String {
        match self {
            Self::Host => "not this host".into(),
            Self::Protocol => format!("only by the protocol `{}`", grant.protocol.word()),
            Self::Closed => "only as closed TLS".into(),
            Self::Port => format!("not {} on port {}", request.scheme.word(), request.port),
            Self::Method => format!("not method {}", request.method),
            Self::Path => format!("not path {path}"),
            Self::Model | Self::Llm => content_misfit(grant, request).1,
        }
    }
}

pub(crate) fn pair(key: &str, value: &str) -> (String, RestrictedExpression) {
    (key.to_owned(), RestrictedExpression::new_string(value.to_owned()))
}

fn ambiguous(error: PathError) -> Denial {
    Denial::new("path_ambiguous", format!("the path can be read in more than one way: {error}"))
}

/// The number in `grant-n` or `grant-n/…`.
fn grant_number(rule: &str) -> Option<usize> {
    let rest = rule.strip_prefix("grant-")?;
    rest.split('/').next()?.parse().ok()
}

/// The place of the first grant among rules, from 0.
pub(crate) fn first_grant(rules: &[String]) -> Option<usize> {
    rules.iter().filter_map(|rule| grant_number(rule)).min().and_then(|number| number.checked_sub(1))
}
