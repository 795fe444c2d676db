//! Phase three: the policy is asked. Nothing is decided here; [`Policy::decide`] decides, and [`Decisions`] remembers.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;
use ringfence_model::HostName;
use ringfence_model::manifest::{Scheme, TlsMode};
use ringfence_policy::{
    Decision, Denial, HttpRequest, LlmCall, Permit, Policy, PostgresQuery, Request, SshExec, SshPush,
};

/// What becomes of a new connection.
///
/// # Errors
/// The denial, if no grant could allow anything on it.
pub fn connection(policy: &Policy, host: &HostName, port: u16, scheme: Scheme) -> Result<TlsMode, Denial> {
    policy.route(host, port, scheme).ok_or_else(|| {
        let ask =
            HttpRequest { host, port, scheme, method: "GET", path: "/", websocket: false, model: None, llm: None };
        match policy.decide(&Request::Http(ask)) {
            Decision::Deny(denial) => denial,
            Decision::Allow(_) => Denial::new("no_grant", format!("no grant covers {host}:{port}")),
        }
    })
}

/// Decides about a TLS connection that stays closed.
///
/// # Errors
/// The denial.
pub fn passthrough(policy: &Policy, host: &HostName, port: u16) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::TlsConnect { host, port }))
}

/// Decides about a TCP connection that nobody looks into.
///
/// # Errors
/// The denial.
pub fn tcp(policy: &Policy, host: &HostName, port: u16) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::TcpConnect { host, port }))
}

/// Decides about a session with a database.
///
/// # Errors
/// The denial.
pub fn database(policy: &Policy, host: &HostName, port: u16) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::PostgresConnect { host, port }))
}

/// Decides about a statement in a session with a database.
///
/// # Errors
/// The denial.
pub fn statement(
    policy: &Policy,
    host: &HostName,
    port: u16,
    classes: &[&'static str],
    functions: &[String],
) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::PostgresQuery(PostgresQuery { host, port, classes, functions })))
}

/// Decides about a command of git over SSH.
///
/// # Errors
/// The denial.
pub fn git(policy: &Policy, exec: SshExec<'_>) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::SshExec(exec)))
}

/// Decides about a ref that is pushed over SSH.
///
/// # Errors
/// The denial.
pub fn push(policy: &Policy, push: SshPush<'_>) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::SshPush(push)))
}

/// What the policy is asked about an HTTP request.
#[must_use]
pub fn question<'a>(
    host: &'a HostName,
    port: u16,
    scheme: Scheme,
    parts: &'a Parts,
    websocket: bool,
) -> HttpRequest<'a> {
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    HttpRequest { host, port, scheme, method, path, websocket, model: None, llm: None }
}

/// Decides about an HTTP request.
///
/// # Errors
/// The denial.
pub fn http(policy: &Policy, question: HttpRequest<'_>) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::Http(question)))
}

/// Requests that are remembered, the longest path among them, and how much text of a body.
const MAX_REMEMBERED: usize = 256;
const MAX_REMEMBERED_PATH: usize = 512;
const MAX_REMEMBERED_TEXT: usize = 2048;

/// Permits of requests that were asked about before.
///
/// [`Policy::decide`] is a function of the policy, which never changes here, and of the request: it sees no clock, no
/// chance and no state. So the same request has the same answer, and a request is the same only if all that the
/// policy sees of it is, what its body says among it. What is denied is not remembered.
pub struct Decisions {
    slots: Mutex<Vec<Option<Remembered>>>,
    /// What became of connections, by host; of each host the last port and scheme.
    routes: Mutex<HashMap<HostName, (u16, Scheme, TlsMode)>>,
    /// Keyed anew in each process, so that no agent knows which requests share a slot.
    hasher: RandomState,
}

struct Remembered {
    host: HostName,
    port: u16,
    scheme: Scheme,
    method: String,
    path: String,
    websocket: bool,
    /// Whether its body was read; if not, nothing here says that it need not be.
    read: bool,
    model: Option<String>,
    llm: Option<LlmCall>,
    permit: Arc<Permit>,
}

impl Remembered {
    fn answers(&self, question: &HttpRequest<'_>, body_read: bool) -> bool {
        let Self { host, port, scheme, method, path, websocket, read, model, llm, permit: _ } = self;
        let HttpRequest { host: h, port: p, scheme: s, method: m, path: t, websocket: w, model: o, llm: l } = question;
        *read == body_read
            && host == *h
            && port == p
            && scheme == s
            && method == m
            && path == t
            && websocket == w
            && model.as_deref() == *o
            && llm.as_ref() == *l
    }
}

impl Default for Decisions {
    fn default() -> Self {
        Self { slots: Mutex::default(), routes: Mutex::default(), hasher: RandomState::new() }
    }
}

impl Decisions {
    /// What becomes of a new connection, as [`connection`] says.
    ///
    /// # Errors
    /// The denial.
    pub fn connection(&self, policy: &Policy, host: &HostName, port: u16, scheme: Scheme) -> Result<TlsMode, Denial> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, mode)) = routes.get(host).filter(|(p, s, _)| (*p, *s) == (port, scheme)) {
            return Ok(*mode);
        }
        let mode = connection(policy, host, port, scheme)?;
        if routes.len() >= MAX_REMEMBERED {
            routes.clear();
        }
        routes.insert(host.clone(), (port, scheme, mode));
        Ok(mode)
    }

    /// The permit of a request that was allowed before without its body being read.
    #[must_use]
    pub fn known(&self, question: &HttpRequest<'_>) -> Option<Arc<Permit>> {
        self.find(question, false)
    }

    fn find(&self, question: &HttpRequest<'_>, read: bool) -> Option<Arc<Permit>> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let found = slots.get(self.slot(question, read))?.as_ref()?;
        found.answers(question, read).then(|| Arc::clone(&found.permit))
    }

    /// Decides about a request, unless the same was allowed before. `read` says whether its body was read, be it that
    /// nothing was found in it that decides.
    ///
    /// # Errors
    /// The denial.
    pub fn decide(&self, policy: &Policy, question: HttpRequest<'_>, read: bool) -> Result<Arc<Permit>, Denial> {
        if let Some(permit) = self.find(&question, read) {
            return Ok(permit);
        }
        let permit = Arc::new(http(policy, question.clone())?);
        let text = question.model.map_or(0, str::len) + question.llm.map_or(0, text);
        if question.path.len() <= MAX_REMEMBERED_PATH && text <= MAX_REMEMBERED_TEXT {
            let at = self.slot(&question, read);
            let HttpRequest { host, port, scheme, method, path, websocket, model, llm } = question;
            let remembered = Remembered {
                host: host.clone(),
                port,
                scheme,
                method: method.to_owned(),
                path: path.to_owned(),
                websocket,
                read,
                model: model.map(str::to_owned),
                llm: llm.cloned(),
                permit: Arc::clone(&permit),
            };
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.is_empty() {
                slots.resize_with(MAX_REMEMBERED, || None);
            }
            if let Some(slot) = slots.get_mut(at) {
                *slot = Some(remembered);
            }
        }
        Ok(permit)
    }

    fn slot(&self, question: &HttpRequest<'_>, read: bool) -> usize {
        let HttpRequest { host, port, method, path, model, llm, .. } = question;
        let hash = self.hasher.hash_one((host, port, method, path, read, model, llm));
        usize::try_from(hash % MAX_REMEMBERED as u64).unwrap_or(0)
    }
}

/// How much is to be remembered of a call.
fn text(call: &LlmCall) -> usize {
    let LlmCall { api, models, tools, prompts, streaming: _, format, max_tokens: _ } = call;
    let sets = [models, tools, prompts].into_iter().flatten().map(|text| text.len() + size_of::<String>());
    api.len() + format.len() + sets.sum::<usize>()
}

fn permit(decision: Decision) -> Result<Permit, Denial> {
    match decision {
        Decision::Allow(permit) => Ok(permit),
        Decision::Deny(denial) => Err(denial),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_model::manifest::Grant;

    use super::*;

    fn policy() -> Policy {
        let grant = |host: &str, methods: &[&str], paths: &[&str], credential: Option<&str>| Grant {
            methods: methods.iter().map(ToString::to_string).collect(),
            paths: paths.iter().map(ToString::to_string).collect(),
            credential: credential.map(str::to_owned),
            ..Grant::to(host.parse().unwrap())
        };
        let models = Grant { models: vec!["m".into()], ..grant("a.example.org", &["POST"], &["/m/*"], None) };
        let grants = [
            models,
            grant("a.example.org", &["GET"], &["/v1/*"], Some("key")),
            grant("*.example.org", &[], &["/v1/x", "/b*"], None),
        ];
        let rail = "forbid (principal, action, resource) when { context has path && context.path like \"*/no*\" };";
        Policy::compile(&"analyst".parse().unwrap(), &grants, &[("rail".into(), rail.into())]).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_what_would_be_decided(
            asked in proptest::collection::vec(
                ("[ab]", prop_oneof![Just(443_u16), Just(80)], any::<bool>(), "GET|POST|get", "(/v1|/m|/b|/%76|/no|/x|/\\.\\.){1,2}", any::<bool>()),
                1..60,
            )
        ) {
            let (policy, decisions) = (policy(), Decisions::default());
            for (host, port, https, method, path, websocket) in &asked {
                let host = format!("{host}.example.org").parse().unwrap();
                let scheme = if *https { Scheme::Https } else { Scheme::Http };
                let question =
                    HttpRequest { host: &host, port: *port, scheme, method, path, websocket: *websocket, model: None, llm: None };
                let known = decisions.known(&question);
                prop_assert!(known.is_none() || !policy.needs_content(&question));
                if known.is_none() && policy.needs_content(&question) {
                    continue;
                }
                let route = connection(&policy, &host, *port, scheme);
                prop_assert_eq!(decisions.connection(&policy, &host, *port, scheme), route);
                let fresh = http(&policy, question.clone());
                let answer = match known {
                    Some(permit) => Ok(permit),
                    None => decisions.decide(&policy, question.clone(), false),
                };
                prop_assert_eq!(format!("{:?}", fresh), format!("{:?}", answer));
                let with_model = HttpRequest { model: Some("m"), ..question };
                prop_assert!(decisions.known(&with_model).is_none());
                for model in ["m", "n"] {
                    let read = HttpRequest { model: Some(model), ..with_model.clone() };
                    let fresh = http(&policy, read.clone());
                    prop_assert_eq!(format!("{:?}", fresh), format!("{:?}", decisions.decide(&policy, read, true)));
                }
            }
        }
    }

    #[test]
    fn one_request_is_remembered_and_no_other() {
        let (policy, decisions) = (policy(), Decisions::default());
        let host = "a.example.org".parse().unwrap();
        let ask = |method, path| HttpRequest {
            host: &host,
            port: 443,
            scheme: Scheme::Https,
            method,
            path,
            websocket: false,
            model: None,
            llm: None,
        };
        let permit = decisions.decide(&policy, ask("GET", "/v1/x"), false).unwrap();
        assert!(Arc::ptr_eq(&permit, &decisions.known(&ask("GET", "/v1/x")).unwrap()));
        assert!(decisions.known(&ask("GET", "/v1/y")).is_none());
        assert!(decisions.known(&ask("POST", "/v1/x")).is_none());
        assert!(decisions.decide(&policy, ask("GET", "/v1/no"), false).is_err());
        assert!(decisions.known(&ask("GET", "/v1/no")).is_none());
        let long = format!("/v1/{}", "x".repeat(MAX_REMEMBERED_PATH));
        assert!(decisions.decide(&policy, ask("GET", &long), false).is_ok());
        assert!(decisions.known(&ask("GET", &long)).is_none());
    }

    #[test]
    fn what_was_read_is_remembered_as_it_was_and_spares_nobody_the_reading() {
        let (policy, decisions) = (policy(), Decisions::default());
        let host = "a.example.org".parse().unwrap();
        let (method, path, scheme) = ("POST", "/m/x", Scheme::Https);
        let bare =
            HttpRequest { host: &host, port: 443, scheme, method, path, websocket: false, model: None, llm: None };
        let asks = |model| HttpRequest { model: Some(model), ..bare.clone() };
        assert!(policy.needs_content(&bare));
        let first = decisions.decide(&policy, asks("m"), true).unwrap();
        assert!(Arc::ptr_eq(&first, &decisions.decide(&policy, asks("m"), true).unwrap()));
        assert_eq!(decisions.decide(&policy, asks("n"), true).unwrap_err().code, "model_not_granted");
        let _ = decisions.decide(&policy, bare.clone(), true);
        assert!(decisions.known(&bare).is_none(), "the next body may name a model");
        assert!(decisions.known(&asks("m")).is_none());
        let call = |tool: &str| LlmCall { models: vec!["m".into()], tools: vec![tool.into()], ..LlmCall::default() };
        let (search, shell) = (call("search"), call("shell"));
        let with = |llm| HttpRequest { llm: Some(llm), ..asks("m") };
        let first = decisions.decide(&policy, with(&search), true).unwrap();
        assert!(Arc::ptr_eq(&first, &decisions.decide(&policy, with(&search), true).unwrap()));
        assert!(!Arc::ptr_eq(&first, &decisions.decide(&policy, with(&shell), true).unwrap()));
        let large = call(&"x".repeat(MAX_REMEMBERED_TEXT));
        let first = decisions.decide(&policy, with(&large), true).unwrap();
        assert!(!Arc::ptr_eq(&first, &decisions.decide(&policy, with(&large), true).unwrap()));
    }
}
