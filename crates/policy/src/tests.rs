use proptest::prelude::*;
use ringfence_model::manifest::{
    GitOperation, Grant, LlmRules, PostgresRules, PostgresTls, Protocol, RefChange, Scheme, SshRules, StatementClass,
    TcpRules, TlsMode,
};
use ringfence_model::{AgentName, HostName};

use crate::{
    Decision, HttpRequest, IngressRequest, LlmCall, Policy, PolicyError, PostgresQuery, Request, SshExec, SshPush,
};

fn agent() -> AgentName {
    "analyst".parse().unwrap()
}

fn grant(host: &str) -> Grant {
    Grant::to(host.parse().unwrap())
}

fn compile(grants: &[Grant]) -> Policy {
    Policy::compile(&agent(), grants, &[]).unwrap()
}

fn guarded(grants: &[Grant], text: &str) -> Result<Policy, PolicyError> {
    Policy::compile(&agent(), grants, &[("org.cedar".into(), text.into())])
}

fn ask(policy: &Policy, host: &str, method: &str, path: &str, model: Option<&str>) -> Decision {
    let host: HostName = host.parse().unwrap();
    let request =
        HttpRequest { host: &host, port: 443, scheme: Scheme::Https, method, path, websocket: false, model, llm: None };
    policy.decide(&Request::Http(request))
}

fn code(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allow(permit) => permit.reason(),
        Decision::Deny(denial) => denial.code,
    }
}

#[test]
fn nothing_is_allowed_without_a_grant() {
    let policy = compile(&[]);
    assert_eq!(code(&ask(&policy, "api.openai.com", "GET", "/", None)), "no_grant");
    assert!(!policy.could_resolve(&"api.openai.com".parse().unwrap()));
}

#[test]
fn a_grant_covers_what_it_says_and_nothing_else() {
    let mut openai = grant("api.openai.com");
    openai.methods = vec!["POST".into()];
    openai.paths = vec!["/v1/*".into()];
    let policy = compile(&[openai, grant("*.wikipedia.org"), grant("192.0.2.7")]);
    for (host, method, path, want) in [
        ("api.openai.com", "POST", "/v1/chat/completions", "grant"),
        ("api.openai.com", "POST", "/%76%31/chat", "grant"),
        ("api.openai.com", "GET", "/v1/chat", "no_grant"),
        ("api.openai.com", "post", "/v1/chat", "no_grant"),
        ("api.openai.com", "POST", "/v2", "no_grant"),
        ("api.openai.com", "POST", "/v1/../v2", "path_ambiguous"),
        ("api.openai.com", "POST", "/v1/%2e%2e/v2", "path_ambiguous"),
        ("openai.com", "POST", "/v1/chat", "no_grant"),
        ("en.wikipedia.org", "GET", "/wiki/Cedar", "grant"),
        ("wikipedia.org", "GET", "/", "no_grant"),
        ("evilwikipedia.org", "GET", "/", "no_grant"),
        ("192.0.2.7", "GET", "/", "grant"),
        ("192.0.2.8", "GET", "/", "no_grant"),
    ] {
        let decision = ask(&policy, host, method, path, None);
        assert_eq!(code(&decision), want, "{method} {host}{path}: {}", decision.explain());
    }
    assert!(policy.could_resolve(&"en.wikipedia.org".parse().unwrap()));
    assert!(!policy.could_resolve(&"wikipedia.org".parse().unwrap()));
}

#[test]
fn the_first_grant_that_matches_gives_credential_and_path() {
    let mut first = grant("a.example.org");
    first.paths = vec!["/only".into()];
    let mut second = grant("*.example.org");
    second.credential = Some("key".into());
    let mut third = grant("a.example.org");
    third.credential = Some("other".into());
    let policy = compile(&[first, second, third]);
    let Decision::Allow(permit) = ask(&policy, "a.example.org", "GET", "/%61b", None) else { panic!() };
    assert_eq!(permit.grant(), Some(1));
    assert_eq!(permit.credential(), Some("key"));
    assert_eq!(permit.path(), Some("/ab"));
    assert_eq!(permit.rules(), ["grant-2", "grant-3", "grant-2/secret"]);
}

#[test]
fn a_grant_with_models_needs_one_of_them() {
    let mut llm = grant("llm.example.org");
    llm.models = vec!["small".into(), "mini \"x\"".into()];
    let policy = compile(&[llm]);
    let host = "llm.example.org".parse().unwrap();
    let request = HttpRequest {
        host: &host,
        port: 443,
        scheme: Scheme::Https,
        method: "POST",
        path: "/",
        websocket: false,
        model: None,
        llm: None,
    };
    assert!(policy.needs_content(&request));
    for (model, want) in [
        (Some("small"), "grant"),
        (Some("mini \"x\""), "grant"),
        (Some("large"), "model_not_granted"),
        (None, "model_not_granted"),
    ] {
        assert_eq!(code(&ask(&policy, "llm.example.org", "POST", "/", model)), want);
    }
    assert!(!compile(&[grant("llm.example.org")]).needs_content(&request));
}

#[test]
fn a_grant_says_what_a_model_may_be_asked() {
    let pinned = ringfence_model::Digest::of(b"prompt");
    let mut llm = grant("llm.example.org");
    llm.models = vec!["small".into()];
    llm.llm.tools = Some(vec!["search".into()]);
    llm.llm.system_prompts = vec![pinned];
    llm.llm.streaming = Some(false);
    llm.llm.formats = vec!["json".into()];
    let no_tools = Grant { llm: LlmRules { tools: Some(Vec::new()), ..LlmRules::default() }, ..grant("b.example.org") };
    let policy = compile(&[llm, no_tools]);
    let good = LlmCall {
        api: "openai.chat".into(),
        models: vec!["small".into()],
        tools: vec!["search".into()],
        prompts: vec![pinned.to_string()],
        streaming: false,
        format: "json".into(),
        max_tokens: None,
    };
    let decide = |host: &str, llm: Option<&LlmCall>| {
        let host = host.parse().unwrap();
        let request = HttpRequest {
            host: &host,
            port: 443,
            scheme: Scheme::Https,
            method: "POST",
            path: "/v1",
            websocket: false,
            model: Some("small"),
            llm,
        };
        assert!(policy.needs_content(&request));
        match policy.decide(&Request::Http(request)) {
            Decision::Allow(_) => ("grant", String::new()),
            Decision::Deny(denial) => (denial.code, denial.why),
        }
    };
    type Change<'a> = &'a dyn Fn(&mut LlmCall);
    let with = |change: Change<'_>| {
        let mut call = good.clone();
        change(&mut call);
        decide("llm.example.org", Some(&call))
    };
    assert_eq!(with(&|_| {}).0, "grant");
    assert_eq!(with(&|call| call.tools.clear()).0, "grant", "it need not offer any");
    let changes: [(Change<'_>, &str, &str); 6] = [
        (&|call| call.models.push("large".into()), "model_not_granted", "not model `large`"),
        (&|call| call.tools.push("shell".into()), "llm_not_granted", "not with tool `shell`"),
        (&|call| call.prompts.push("sha256:0".into()), "llm_not_granted", "not with the system prompt"),
        (&|call| call.prompts.clear(), "llm_not_granted", "only with a pinned system prompt"),
        (&|call| call.streaming = true, "llm_not_granted", "not as a stream"),
        (&|call| call.format = "text".into(), "llm_not_granted", "not in format `text`"),
    ];
    for (change, code, why) in changes {
        let (said, words) = with(change);
        assert!(said == code && words.contains(why), "{said}: {words}");
    }
    assert_eq!(decide("llm.example.org", None).0, "llm_not_granted", "what is not understood is no such call");
    assert_eq!(decide("b.example.org", Some(&good)).0, "llm_not_granted");
    assert_eq!(decide("b.example.org", Some(&LlmCall { tools: Vec::new(), ..good.clone() })).0, "grant");
    assert_eq!(decide("b.example.org", None).0, "llm_not_granted");
}

#[test]
fn passthrough_allows_closed_tls_alone() {
    let mut closed = grant("db.example.org");
    closed.tls = TlsMode::Passthrough;
    let policy = compile(&[closed]);
    let host: HostName = "db.example.org".parse().unwrap();
    assert!(policy.decide(&Request::TlsConnect { host: &host, port: 443 }).allows());
    assert!(!policy.decide(&Request::TlsConnect { host: &host, port: 444 }).allows());
    assert_eq!(code(&ask(&policy, "db.example.org", "GET", "/", None)), "no_grant");
    assert_eq!(policy.route(&host, 443, Scheme::Https), Some(TlsMode::Passthrough));
    assert_eq!(policy.route(&host, 80, Scheme::Http), None);
}

#[test]
fn ingress_needs_authentication_and_obeys_guard_rails() {
    let rail = r#"@id("admin") forbid (principal, action == Action::"ingress:request", resource) when { context.path like "/admin*" };"#;
    let policy = guarded(&[], rail).unwrap();
    let host = "agent.example.org".parse().unwrap();
    let ask = |path, authenticated| {
        let request = IngressRequest { host: &host, port: 8501, method: "GET", path, websocket: false, authenticated };
        code(&policy.decide(&Request::Ingress(request)))
    };
    assert_eq!(ask("/", true), "ingress");
    assert_eq!(ask("/", false), "not_authenticated");
    assert_eq!(ask("/admin", true), "guard_rail");
}

#[test]
fn a_guard_rail_forbids_and_says_so() {
    let mut keyed = grant("a.example.org");
    keyed.credential = Some("key".into());
    let rail = r#"
        @id("no-delete") forbid (principal, action == Action::"http:request", resource) when { context.method == "DELETE" };
        forbid (principal, action == Action::"secret:use", resource) when { context.path like "/public/*" };
        forbid (principal == Agent::"somebody-else", action, resource);
    "#;
    let policy = guarded(&[keyed], rail).unwrap();
    let Decision::Deny(denial) = ask(&policy, "a.example.org", "DELETE", "/", None) else { panic!() };
    assert_eq!((denial.code, denial.rules.as_slice()), ("guard_rail", ["org.cedar:no-delete".to_owned()].as_slice()));
    assert_eq!(code(&ask(&policy, "a.example.org", "GET", "/", None)), "grant");
    let Decision::Deny(denial) = ask(&policy, "a.example.org", "GET", "/public/x", None) else { panic!() };
    assert_eq!((denial.code, denial.rules.as_slice()), ("secret_denied", ["org.cedar:2".to_owned()].as_slice()));
}

fn tcp(host: &str, port: u16) -> Grant {
    Grant { port, protocol: Protocol::Tcp(TcpRules::default()), ..grant(host) }
}

fn database(host: &str, statements: &[StatementClass], functions: &[&str]) -> Grant {
    let rules = PostgresRules {
        user: "reporting".into(),
        database: "sales".into(),
        statements: statements.to_vec(),
        functions: functions.iter().map(ToString::to_string).collect(),
        tls: PostgresTls::Require,
    };
    Grant { port: 5432, protocol: Protocol::Postgres(Box::new(rules)), credential: Some("db".into()), ..grant(host) }
}

#[test]
fn a_grant_for_tcp_covers_connections_and_no_request() {
    let policy = compile(&[tcp("git.example.org", 22), tcp("*.example.net", 443), grant("www.example.org")]);
    let decide = |host: &str, port: u16| {
        let host = host.parse().unwrap();
        code(&policy.decide(&Request::TcpConnect { host: &host, port }))
    };
    for (host, port, want) in [
        ("git.example.org", 22, "grant"),
        ("git.example.org", 23, "no_grant"),
        ("a.example.net", 443, "grant"),
        ("example.net", 443, "no_grant"),
        ("www.example.org", 443, "no_grant"),
    ] {
        assert_eq!(decide(host, port), want, "{host}:{port}");
    }
    assert_eq!(code(&ask(&policy, "a.example.net", "GET", "/", None)), "no_grant");
    let why = ask(&policy, "a.example.net", "GET", "/", None).explain();
    assert_eq!(why, "deny: no_grant: grant 2 covers a.example.net, but only by the protocol `tcp`");
    let a = "a.example.net".parse().unwrap();
    assert_eq!(policy.route(&a, 443, Scheme::Https), None);
    assert!(!policy.decide(&Request::TlsConnect { host: &a, port: 443 }).allows());
    assert_eq!(policy.other_than_http(&a, 443).map(|(at, _)| at), Some(1));
    assert!(policy.other_than_http(&"www.example.org".parse().unwrap(), 443).is_none());
}

#[test]
fn a_grant_for_a_database_covers_what_statements_it_names() {
    use StatementClass::{Select, Write};
    let policy = compile(&[
        database("db.example.org", &[Select], &[]),
        database("rw.example.org", &[Select, Write], &["nextval"]),
    ]);
    let query = |host: &str, classes: &[&'static str], functions: &[&str]| {
        let host = host.parse().unwrap();
        let functions: Vec<String> = functions.iter().map(ToString::to_string).collect();
        let query = PostgresQuery { host: &host, port: 5432, classes, functions: &functions };
        policy.decide(&Request::PostgresQuery(query))
    };
    for (host, classes, functions, want) in [
        ("db.example.org", &["select"][..], &[][..], "grant"),
        ("db.example.org", &["select", "transaction", "session"], &[], "grant"),
        ("db.example.org", &["select", "write"], &[], "statement_not_granted"),
        ("db.example.org", &["select"], &["nextval"], "statement_not_granted"),
        ("db.example.org", &["other"], &[], "statement_not_granted"),
        ("rw.example.org", &["select", "write"], &["nextval"], "grant"),
        ("rw.example.org", &["ddl"], &[], "statement_not_granted"),
        ("rw.example.org", &["select"], &["nextval", "pg_read_file"], "statement_not_granted"),
        ("no.example.org", &["select"], &[], "no_grant"),
    ] {
        let decision = query(host, classes, functions);
        assert_eq!(code(&decision), want, "{host} {classes:?} {functions:?}: {}", decision.explain());
    }
    let why = query("db.example.org", &["select"], &["pg_read_file"]).explain();
    assert!(why.contains("a call of `pg_read_file`, which may have effects"), "{why}");
    let host = "db.example.org".parse().unwrap();
    let Decision::Allow(permit) = policy.decide(&Request::PostgresConnect { host: &host, port: 5432 }) else {
        panic!()
    };
    assert_eq!((permit.grant(), permit.credential()), (Some(0), Some("db")));
    assert_eq!(permit.rules(), ["grant-1", "grant-1/secret"]);
    assert!(!policy.decide(&Request::PostgresConnect { host: &host, port: 5433 }).allows());
}

fn git_host(repositories: &[&str], operations: &[GitOperation], refs: &[&str]) -> Grant {
    let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
    let rules = SshRules {
        user: "git".into(),
        host_keys: Vec::new(),
        host_authorities: Vec::new(),
        repositories: texts(repositories),
        operations: operations.to_vec(),
        refs: texts(refs),
        changes: vec![RefChange::Create, RefChange::Update],
    };
    Grant {
        port: 22,
        protocol: Protocol::Ssh(Box::new(rules)),
        credential: Some("key".into()),
        ..grant("git.example.org")
    }
}

#[test]
fn a_grant_for_git_covers_the_repositories_operations_and_refs_that_it_names() {
    use GitOperation::{Archive, Fetch, Push};
    let policy = compile(&[git_host(&["acme/*", "site"], &[Fetch, Push], &["refs/heads/agent/*"])]);
    let host: HostName = "git.example.org".parse().unwrap();
    for (operation, repository, want) in [
        (Fetch, "acme/x", "grant"),
        (Push, "site", "grant"),
        (Archive, "site", "repository_not_granted"),
        (Fetch, "acme", "repository_not_granted"),
        (Fetch, "sites", "repository_not_granted"),
        (Fetch, "/acme/x", "repository_not_granted"),
    ] {
        let decision = policy.decide(&Request::SshExec(SshExec { host: &host, port: 22, operation, repository }));
        assert_eq!(code(&decision), want, "{operation:?} {repository}: {}", decision.explain());
    }
    let exec = SshExec { host: &host, port: 22, operation: Fetch, repository: "site" };
    let Decision::Allow(permit) = policy.decide(&Request::SshExec(exec)) else { panic!() };
    assert_eq!(
        (permit.credential(), permit.rules()),
        (Some("key"), &["grant-1".to_owned(), "grant-1/secret".into()][..])
    );
    assert_eq!(code(&policy.decide(&Request::SshExec(SshExec { port: 23, ..exec }))), "no_grant");
    for (repository, name, change, want) in [
        ("site", "refs/heads/agent/x", RefChange::Create, "grant"),
        ("site", "refs/heads/agent/x", RefChange::Delete, "ref_not_granted"),
        ("site", "refs/heads/main", RefChange::Update, "ref_not_granted"),
        ("other", "refs/heads/agent/x", RefChange::Create, "ref_not_granted"),
    ] {
        let push = SshPush { host: &host, port: 22, repository, name, change };
        assert_eq!(code(&policy.decide(&Request::SshPush(push))), want, "{repository} {name} {change:?}");
    }
    let reader = compile(&[git_host(&["*"], &[Fetch], &[])]);
    let push = SshPush { host: &host, port: 22, repository: "site", name: "refs/heads/x", change: RefChange::Create };
    assert!(!reader.decide(&Request::SshPush(push)).allows());
    let rail = r#"forbid (principal, action == Action::"ssh:push", resource) when { context.ref like "*/main" || context.change == "update" };"#;
    let guarded = guarded(&[git_host(&["*"], &[Fetch, Push], &["refs/*"])], rail).unwrap();
    for (name, change, allowed) in [
        ("refs/heads/x", RefChange::Create, true),
        ("refs/heads/main", RefChange::Create, false),
        ("refs/heads/x", RefChange::Update, false),
    ] {
        assert_eq!(guarded.decide(&Request::SshPush(SshPush { name, change, ..push })).allows(), allowed, "{name}");
    }
}

#[test]
fn guard_rails_hold_over_databases() {
    let host = "db.example.org".parse().unwrap();
    let all = [StatementClass::Ddl, StatementClass::Select, StatementClass::Write];
    for (rail, open, select, write) in [
        (
            r#"forbid (principal, action == Action::"postgres:query", resource) when { context.classes.contains("write") };"#,
            true,
            true,
            false,
        ),
        (
            r#"forbid (principal, action == Action::"postgres:query", resource) unless { context.database == "hr" };"#,
            true,
            false,
            false,
        ),
        (
            r#"forbid (principal, action == Action::"postgres:connect", resource) when { context.user == "reporting" };"#,
            false,
            true,
            true,
        ),
        (
            r#"forbid (principal, action == Action::"secret:use", resource) when { context.scheme == "postgres" };"#,
            false,
            true,
            true,
        ),
    ] {
        let policy = guarded(&[database("db.example.org", &all, &[])], rail).unwrap();
        let allows = |classes: &[&'static str]| {
            let query = PostgresQuery { host: &host, port: 5432, classes, functions: &[] };
            policy.decide(&Request::PostgresQuery(query)).allows()
        };
        assert_eq!(policy.decide(&Request::PostgresConnect { host: &host, port: 5432 }).allows(), open, "{rail}");
        assert_eq!((allows(&["select"]), allows(&["write"])), (select, write), "{rail}");
    }
}

#[test]
fn a_rule_that_cannot_be_evaluated_denies() {
    let rail = r#"forbid (principal, action, resource) when { resource.port * 9223372036854775807 > 0 };"#;
    let policy = guarded(&[grant("a.example.org")], rail).unwrap();
    assert_eq!(code(&ask(&policy, "a.example.org", "GET", "/", None)), "policy_error");
}

#[test]
fn guard_rails_that_cannot_hold_are_refused() {
    for (text, want) in [
        ("forbid (principal, action, resource", "policy.syntax"),
        ("permit (principal, action, resource);", "policy.guard_rail_permits"),
        ("forbid (principal, action, resource == ?resource);", "policy.template"),
        (r#"forbid (principal, action == Action::"http:reqest", resource);"#, "policy.schema"),
        (r#"forbid (principal, action, resource) when { resource.nam == "x" };"#, "policy.schema"),
        (r#"forbid (principal, action, resource) when { context.method == "GET" };"#, "policy.schema"),
        (
            r#"forbid (principal, action == Action::"http:request", resource) when { context.model == "x" };"#,
            "policy.schema",
        ),
        (
            r#"@id("a") forbid (principal, action, resource); @id("a") forbid (principal, action, resource);"#,
            "policy.twice",
        ),
    ] {
        let error = guarded(&[], text).err().unwrap_or_else(|| panic!("taken: {text}"));
        assert_eq!(ringfence_model::Explain::code(&error), want, "{error}");
        assert!(!error.to_string().contains('\n'));
    }
    let example = include_str!("../../../policies/example-guard-rails.cedar");
    guarded(&[grant("a.example.org")], example).unwrap();
    let mut bad = grant("a.example.org");
    bad.paths = vec!["/a/../b".into()];
    assert!(matches!(Policy::compile(&agent(), &[bad], &[]), Err(PolicyError::Path { number: 1, .. })));
}

#[test]
fn a_denial_names_the_nearest_grant() {
    let mut a = grant("a.example.org");
    a.methods = vec!["POST".into()];
    let mut b = grant("a.example.org");
    b.paths = vec!["/v1/*".into()];
    let policy = compile(&[a, b]);
    let why = ask(&policy, "a.example.org", "GET", "/v2", None).explain();
    assert_eq!(why, "deny: no_grant: grant 2 covers a.example.org, but not path /v2");
}

const HOSTS: [&str; 8] = [
    "a.b.example.org",
    "b.example.org",
    "example.org",
    "x.example.org",
    "a.b.test.net",
    "test.net",
    "192.0.2.7",
    "::1",
];
const PATTERNS: [&str; 9] = [
    "a.b.example.org",
    "*.b.example.org",
    "*.example.org",
    "x.example.org",
    "*.test.net",
    "test.net",
    "192.0.2.7",
    "::1",
    "b.example.org",
];
const RAILS: [&str; 8] = [
    "forbid (principal, action, resource) when { resource.name like \"*.b.example.org\" };",
    "forbid (principal, action == Action::\"http:request\", resource == Host::\"test.net\");",
    "forbid (principal == Agent::\"other\", action, resource);",
    "forbid (principal, action in [Action::\"secret:use\", Action::\"dns:resolve\"], resource == Host::\"x.example.org\");",
    "forbid (principal, action, resource is Host) when { resource.address };",
    "forbid (principal == Agent::\"analyst\", action == Action::\"http:request\", resource) when { context.method == \"PUT\" };",
    "forbid (principal, action == Action::\"http:request\", resource) when { context has model && context.model == \"big\" };",
    "forbid (principal, action == Action::\"tls:connect\", resource) unless { resource.port == 443 };",
];

fn any_grant() -> impl Strategy<Value = Grant> {
    (
        prop::sample::select(&PATTERNS[..]),
        any::<bool>(),
        prop::collection::vec(prop::sample::select(&["GET", "PUT"][..]), 0..2),
        prop::collection::vec(prop::sample::select(&["/a/*", "/*b", "/a/b", "*"][..3]), 0..2),
        prop::collection::vec(prop::sample::select(&["big", "small"][..]), 0..2),
        any::<bool>(),
        0..4_u8,
    )
        .prop_map(|(host, https, methods, paths, models, keyed, closed)| {
            let text = |v: Vec<&str>| v.into_iter().map(str::to_owned).collect::<Vec<_>>();
            let mut grant = grant(host);
            grant.scheme = if https { Scheme::Https } else { Scheme::Http };
            if https && closed == 0 {
                grant.tls = TlsMode::Passthrough;
            } else if closed == 1 {
                grant.protocol = Protocol::Tcp(TcpRules::default());
            } else {
                (grant.methods, grant.paths, grant.models) = (text(methods), text(paths), text(models));
                grant.credential = keyed.then(|| "key".to_owned());
            }
            grant
        })
}

fn any_rails() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(prop::sample::select(&RAILS[..]), 0..4)
        .prop_map(|texts| texts.into_iter().enumerate().map(|(at, t)| (format!("{at}.cedar"), t.to_owned())).collect())
}

/// Every request of a small world.
fn each_request(mut check: impl FnMut(&Request<'_>)) {
    for host in HOSTS {
        let host: HostName = host.parse().unwrap();
        check(&Request::DnsResolve { host: &host });
        check(&Request::TlsConnect { host: &host, port: 443 });
        check(&Request::TcpConnect { host: &host, port: 443 });
        for method in ["GET", "PUT"] {
            for path in ["/a/b", "/c"] {
                for model in [None, Some("big")] {
                    for scheme in [Scheme::Http, Scheme::Https] {
                        let http = HttpRequest {
                            host: &host,
                            port: 443,
                            scheme,
                            method,
                            path,
                            websocket: false,
                            model,
                            llm: None,
                        };
                        check(&Request::Http(http));
                    }
                }
                for authenticated in [false, true] {
                    let ingress =
                        IngressRequest { host: &host, port: 443, method, path, websocket: true, authenticated };
                    check(&Request::Ingress(ingress));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sliced_equals_unsliced(grants in prop::collection::vec(any_grant(), 0..5), rails in any_rails()) {
        let policy = Policy::compile(&agent(), &grants, &rails).unwrap();
        each_request(|request| {
            assert_eq!(policy.decide(request).explain(), policy.decide_unsliced(request).explain(), "{request:?}");
        });
    }

    #[test]
    fn adding_a_forbid_never_allows_more(grants in prop::collection::vec(any_grant(), 0..5), rails in any_rails(), extra in any_rails()) {
        let before = Policy::compile(&agent(), &grants, &rails).unwrap();
        let extra = extra.into_iter().map(|(file, text)| (format!("extra-{file}"), text));
        let more: Vec<_> = rails.into_iter().chain(extra).collect();
        let after = Policy::compile(&agent(), &grants, &more).unwrap();
        each_request(|request| {
            assert!(before.decide(request).allows() || !after.decide(request).allows(), "{request:?}");
        });
    }

    #[test]
    fn adding_a_grant_never_denies_more(grants in prop::collection::vec(any_grant(), 0..5), extra in any_grant(), at in 0..5_usize) {
        let before = compile(&grants);
        let mut more = grants;
        more.insert(at.min(more.len()), extra);
        let after = compile(&more);
        each_request(|request| {
            assert!(!before.decide(request).allows() || after.decide(request).allows(), "{request:?}");
        });
    }

    #[test]
    fn no_input_makes_it_panic(host in "[a-z0-9.:-]{1,20}", method in "\\PC{0,8}", path in "\\PC{0,20}", model in "\\PC{0,8}") {
        let policy = compile(&[grant("*.example.org")]);
        if let Ok(host) = host.parse::<HostName>() {
            let request = HttpRequest { host: &host, port: 1, scheme: Scheme::Http, method: &method, path: &path, websocket: true, model: Some(&model), llm: None };
            let _ = policy.decide(&Request::Http(request)).explain();
        }
    }
}

#[test]
fn without_its_one_form_a_path_climbs_out_of_its_grant() {
    use cedar_policy::{Authorizer, Context, Entities, Entity, EntityUid, Request as Asked, RestrictedExpression};
    let mut granted = grant("files.example.org");
    granted.paths = vec!["/public/*".into()];
    let policy = compile(&[granted]);
    for climbing in ["/public/../admin", "/public/%2e%2e/admin", "/public/..%2fadmin", "/public//../admin"] {
        assert_eq!(code(&ask(&policy, "files.example.org", "GET", climbing, None)), "path_ambiguous", "{climbing}");
        // The same rules, asked about the path as it came.
        let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
        let host: EntityUid = "Host::\"files.example.org\"".parse().unwrap();
        let known = [
            ("name".to_owned(), text("files.example.org")),
            ("port".to_owned(), RestrictedExpression::new_long(443)),
            ("address".to_owned(), RestrictedExpression::new_bool(false)),
        ];
        let entity = Entity::new(host.clone(), known.into_iter().collect(), Default::default()).unwrap();
        let context = Context::from_pairs([
            ("method".to_owned(), text("GET")),
            ("path".to_owned(), text(climbing)),
            ("scheme".to_owned(), text("https")),
            ("websocket".to_owned(), RestrictedExpression::new_bool(false)),
        ])
        .unwrap();
        let agent_uid = "Agent::\"analyst\"".parse().unwrap();
        let asked = Asked::new(agent_uid, "Action::\"http:request\"".parse().unwrap(), host, context, None).unwrap();
        let entities = Entities::from_entities([entity], None).unwrap();
        let answer = Authorizer::new().is_authorized(&asked, &policy.provable(&agent()).unwrap(), &entities);
        assert_eq!(answer.decision(), cedar_policy::Decision::Allow, "with the barrier off {climbing} gets through");
    }
}

#[test]
fn a_schema_of_arguments_that_cannot_be_enforced_is_refused() {
    let text = "[agent]\nname = \"a\"\nentry = [\"x\"]\n[[grant]]\nhost = \"h.example\"\n[grant.mcp.schemas.search]\n\
                type = \"object\"\nFORMAT\n[grant.mcp.schemas.search.properties.path]\ntype = \"string\"\n";
    let compile = |text: &str| {
        let manifest = ringfence_model::Manifest::parse(text, &|_| Err(String::new())).unwrap();
        Policy::compile(&manifest.name, &manifest.grants, &[])
    };
    assert!(compile(&text.replace("FORMAT\n", "")).is_ok());
    let error = compile(&text.replace("FORMAT", "format = \"binary\"")).err().unwrap();
    assert_eq!(
        error.to_string(),
        "grant 1 mcp schemas `search` cannot be enforced: `format: binary` is not known, so it could not be enforced"
    );
    let json = text.split("[grant.mcp.schemas").next().unwrap().to_owned()
        + "[grant.mcp.schemas]\nsearch = '{\"type\": \"object\"}'\n";
    assert!(compile(&json).is_ok());
}
