use super::*;
use crate::report::Report;

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text, &|path| Ok(format!("pem of {path}")))
}

fn refused(text: &str) -> String {
    Report::from(parse(text).unwrap_err()).to_string()
}

const AGENT: &str = "[agent]\nname = \"a\"\nentry = [\"python3\", \"x.py\"]\n";

#[test]
fn reads_the_design_s_example() {
    let manifest = parse(
        r#"
[agent]
name = "analyst"
kind = "streamlit"
entry = ["streamlit", "run", "app.py"]

[limits]
memory = "1GiB"
cpus = 1.0
pids = 128
disk = "2GiB"

[[grant]]
host = "api.openai.com"
methods = ["post"]
paths = ["/v1/chat/completions"]
credential = "openai"
models = ["gpt-4o-mini"]

[[grant]]
host = "*.wikipedia.org"
methods = ["GET"]
trust = "untrusted"

[credential.openai]
from = "env:OPENAI_API_KEY"
header = "Authorization: Bearer {}"

[budget]
usd_per_day = 5.0
tokens_per_minute = 100_000

[ingress]
port = 8501
"#,
    )
    .unwrap();
    assert_eq!(manifest.name.as_str(), "analyst");
    assert_eq!(manifest.grants[0].methods, ["POST"]);
    assert_eq!(manifest.grants[0].port, 443);
    assert_eq!(manifest.grants[1].trust, Trust::Untrusted);
    assert_eq!(manifest.limits.disk, Bytes::gib(2));
    assert_eq!(manifest.credentials["openai"].env.as_deref(), Some("OPENAI_API_KEY"));
    assert_eq!(manifest.ingress.unwrap().publish.to_string(), "127.0.0.1:8501");
    assert_eq!(manifest.health.path, "/_stcore/health");
    let shown: Vec<String> = manifest.budget.limits.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["tokens_per_minute = 100000", "usd_per_day = 5.00"]);
}

#[test]
fn unknown_keys_name_the_nearest() {
    assert_eq!(
        refused(&format!("{AGENT}\n[[grant]]\nhost = \"a.com\"\nmethod = [\"GET\"]\n")),
        "error[manifest.unknown_key]: unknown manifest key `method` at line 7\n  hint: did you mean `methods`?"
    );
    assert!(refused(&format!("{AGENT}[limit]\n")).contains("did you mean `limits`?"));
    assert!(refused(&format!("{AGENT}[zzzzzzzz]\n")).contains("keys known here: agent, image"));
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    for key in
        ["paths = [\"/v1\"]", "methods = [\"GET\"]", "models = [\"m\"]", "trust = \"untrusted\"", "credential = \"c\""]
    {
        let text = format!(
            "{AGENT}[[grant]]\nhost = \"a.com\"\ntls = \"passthrough\"\n{key}\n[credential.c]\nfrom = \"env:C\"\nquery = \"k\"\n"
        );
        assert!(refused(&text).contains("error[manifest.unenforceable]: grant 1 for `a.com`"), "{key}");
    }
    let cleartext = format!(
        "{AGENT}[[grant]]\nhost = \"a.com\"\nscheme = \"http\"\ncredential = \"c\"\n[credential.c]\nfrom = \"env:C\"\nquery = \"k\"\n"
    );
    assert!(refused(&cleartext).contains("cleartext"));
}

#[test]
fn values_are_checked_with_their_place() {
    for (tail, want) in [
        ("[[grant]]\nhost = \"*\"\n", "grant 1 host `*`"),
        ("[[grant]]\nhost = \"a.com\"\ncredential = \"nope\"\n", "no such credential"),
        ("[[grant]]\nhost = \"a.com\"\npaths = [\"v1\"]\n", "grant 1 paths `v1`"),
        ("[credential.x]\nfrom = \"OPENAI\"\nquery = \"k\"\n", "[credential.x] from"),
        ("[credential.x]\nfrom = \"env:A\"\n", "just one of `basic`, `client_certificate`, `form`"),
        ("[credential.x]\nfrom = \"env:A\"\nheader = \"Authorization: Bearer\"\n", "needs `{}` once"),
        ("[limits]\nmemory = \"lots\"\n", "is not a size"),
        ("[limits]\ncpus = 0.0\n", "[limits] cpus"),
        ("[ingress]\nport = 1\npublish = \"0.0.0.0\"\nauth = \"none\"\n", "open the agent to the network"),
        ("[image]\npython = \"two\"\n", "not a version"),
        ("[danger]\nwithout = [\"everything\"]\n", "no such mechanism"),
        ("[budget]\nusd_per_day = -1.0\n", "[budget] usd_per_day `-1` is not usable: not a sum of money"),
        ("[budget]\ntokens_per_day = 999999999999999\n", "more than can be counted"),
        ("[budget]\nwhen_spent = \"panic\"\n", "write `refuse` or `wait`"),
        ("[budget]\nwait_s = 3\n", "nothing waits"),
        ("[budget]\nwarn_at = 80.0\n", "not a part of a limit"),
        ("[budget.user]\nheader = \"x user\"\n", "not a header name"),
        ("[budget.tool.search]\ntokens_per_day = 3\n", "limit its `requests_per_…`"),
        ("[[grant]]\nhost = \"a.com\"\n[grant.llm]\nmax_tokens = 0\n", "no answer has no tokens"),
        ("[[grant]]\nhost = \"a.com\"\n[grant.llm]\nformats = [\"yaml\"]\n", "known: grammar, json"),
        ("[[grant]]\nhost = \"a.com\"\n[grant.llm]\nsystem_prompts = [\"abc\"]\n", "64 hexadecimal digits"),
    ] {
        let shown = refused(&format!("{AGENT}{tail}"));
        assert!(shown.contains(want), "{tail} gave {shown}");
    }
    assert!(refused("[agent]\nname = \"a\"\n").contains("[agent] entry"));
    assert!(refused("x = ").contains("at line 1"));
}

#[test]
fn round_trips_through_json() {
    let manifest = parse(&format!("{AGENT}[[grant]]\nhost = \"a.com\"\nca = \"x.pem\"\n")).unwrap();
    let json = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    assert_eq!(manifest.grants[0].ca_pem.as_deref(), Some("pem of x.pem"));
}

#[test]
fn a_grant_of_a_host_alone_is_what_a_manifest_with_a_host_alone_says() {
    let manifest = parse(&format!("{AGENT}[[grant]]\nhost = \"a.com\"\n")).unwrap();
    assert_eq!(manifest.grants, [Grant::to("a.com".parse().unwrap())]);
}

fn place(key: &str) -> Result<Place, String> {
    let text = format!("{AGENT}[credential.x]\nfrom = \"env:A\"\n{key}\n");
    parse(&text).map(|m| m.credentials["x"].place.clone()).map_err(|e| Report::from(e).to_string())
}

#[test]
fn each_place_of_a_credential_is_understood() {
    let path = Place::Path { before: "bot".into(), after: String::new() };
    for text in ["path = \"/bot{}/\"", "path = \"/bot{}/…\"", "path = \"bot{}\""] {
        assert_eq!(place(text), Ok(path.clone()), "{text}");
    }
    let json = Place::Json { keys: vec!["auth".into(), "api_key".into()] };
    assert_eq!(place("json = \"auth.api_key\""), Ok(json.clone()));
    assert_eq!(place("json = \"/auth/api_key\""), Ok(json));
    assert_eq!(place("json = \"/a~1b\""), Ok(Place::Json { keys: vec!["a/b".into()] }));
    assert_eq!(place("form = \"token\""), Ok(Place::Form { name: "token".into() }));
    for (text, template) in [("me", "me:{}"), ("{}", "{}"), ("{}:", "{}:"), ("me@x:{}", "me@x:{}")] {
        assert_eq!(place(&format!("basic = \"{text}\"")), Ok(Place::Basic { template: template.into() }));
    }
    let Ok(Place::Sigv4(sigv4)) =
        place("sigv4 = { region = \"eu-central-1\", service = \"s3\", access_key_id = \"AKIA1\" }")
    else {
        panic!("no sigv4")
    };
    assert_eq!((sigv4.service.as_str(), sigv4.access_key_id.as_deref()), ("s3", Some("AKIA1")));
    for (region, url) in [
        ("eu-central-1", "https://sts.eu-central-1.amazonaws.com/"),
        ("cn-north-1", "https://sts.cn-north-1.amazonaws.com.cn/"),
    ] {
        let role = "assume_role = { role_arn = \"arn:aws:iam::1:role/agent\" }";
        let Ok(Place::Sigv4(sigv4)) = place(&format!("sigv4 = {{ region = \"{region}\", service = \"s3\", {role} }}"))
        else {
            panic!("no sigv4")
        };
        let role = sigv4.assume_role.unwrap();
        assert_eq!((role.endpoint.url().as_str(), role.session_name.as_str()), (url, "ringfence"));
    }
    let Ok(Place::Oauth2(oauth2)) = place(
        "oauth2 = { token_url = \"https://login.example.org:8443/t?x=1\", client_id = \"c\", scopes = [\"a\"], \
         grant = \"client_credentials\", ca = \"idp.pem\", connect_to = \"10.0.0.1:1\" }",
    ) else {
        panic!("no oauth2")
    };
    assert_eq!(oauth2.endpoint.url(), "https://login.example.org:8443/t?x=1");
    assert_eq!(oauth2.endpoint.ca_pem.as_deref(), Some("pem of idp.pem"));
    assert_eq!(oauth2.client_auth, ClientAuth::Basic);
    let Ok(google) = place("google_service_account = { scopes = [\"https://www.googleapis.com/auth/x\"] }") else {
        panic!("no google_service_account")
    };
    assert_eq!(google.endpoint().unwrap().url(), "https://oauth2.googleapis.com/token");
    let Ok(Place::GithubApp(github)) = place("github_app = { app_id = 12, installation_id = \"34\" }") else {
        panic!("no github_app")
    };
    assert_eq!((github.app_id.as_str(), github.installation_id.as_str()), ("12", "34"));
    assert_eq!(github.api.url(), "https://api.github.com/");
}

#[test]
fn places_that_mean_nothing_are_refused() {
    for (key, want) in [
        ("query = \"k\"\nform = \"f\"", "just one of"),
        ("header = \"Host: {}\"", "frames the call"),
        ("path = \"/bot/\"", "`{}` once"),
        ("path = \"/a/bot{}\"", "not one segment"),
        ("json = \"a..b\"", "names no field"),
        ("form = \"\"", "not a field name"),
        ("basic = \"a:b\"", "no colon"),
        ("basic = \"{}:{}\"", "more than once"),
        ("sigv4 = { region = \"\", service = \"s3\" }", "sigv4.region"),
        ("sigv4 = { region = \"x\", service = \"s3\", key = 1 }", "unknown manifest key `key`"),
        ("sigv4 = { region = \"x\", service = \"s3\", assume_role = { role_arn = \"agent\" } }", "role_arn"),
        (
            "sigv4 = { region = \"x\", service = \"s3\", assume_role = { role_arn = \"arn:aws:iam::1:role/a\", session_name = \"a b\" } }",
            "session_name",
        ),
        (
            "sigv4 = { region = \"x\", service = \"s3\", assume_role = { role_arn = \"arn:aws:iam::1:role/a\", external_id = \"a b\" } }",
            "external_id",
        ),
        (
            "sigv4 = { region = \"x\", service = \"s3\", assume_role = { role_arn = \"arn:aws:iam::1:role/a\", sts_url = \"http://sts.example.org/\" } }",
            "sts_url",
        ),
        ("oauth2 = { token_url = \"http://a.com/t\", client_id = \"c\", grant = \"client_credentials\" }", "cleartext"),
        ("oauth2 = { token_url = \"https://a.com/t\", client_id = \"c\", grant = \"password\" }", "password"),
        (
            "oauth2 = { token_url = \"https://u@a.com/t\", client_id = \"c\", grant = \"refresh_token\" }",
            "plain address",
        ),
        ("google_service_account = { scopes = [] }", "needs scopes"),
        ("github_app = { app_id = \"a/b\", installation_id = 1 }", "github_app.app_id"),
        ("query = \"k\"\nplaceholder = \"a b\"", "[credential.x] placeholder"),
    ] {
        let shown = place(key).unwrap_err();
        assert!(shown.contains(want), "{key} gave {shown}");
    }
}

#[test]
fn a_client_certificate_is_a_credential_for_handshakes_alone() {
    let with = |grant: &str, credential: &str| {
        format!(
            "{AGENT}[[grant]]\nhost = \"a.example\"\n{grant}\n[credential.bank]\nfrom = \"env:BANK\"\n{credential}\n[credential.key]\nfrom = \"env:K\"\nquery = \"k\"\n"
        )
    };
    let place = "client_certificate = true";
    let manifest = parse(&with("client_certificate = \"bank\"\ncredential = \"key\"", place)).unwrap();
    assert_eq!(manifest.grants[0].client_certificate.as_deref(), Some("bank"));
    let bank = &manifest.credentials["bank"];
    assert_eq!((&bank.place, bank.env.as_deref()), (&Place::ClientCertificate, None), "the agent sees nothing of it");
    for (grant, credential, want) in [
        ("client_certificate = \"bank\"", "query = \"k\"", "no client certificate"),
        ("client_certificate = \"other\"", place, "no such credential"),
        ("credential = \"bank\"", place, "goes into no call"),
        ("client_certificate = \"bank\"\nscheme = \"http\"", place, "shown in TLS"),
        ("client_certificate = \"bank\"\ntls = \"passthrough\"", place, "passthrough"),
        ("", "client_certificate = true\nquery = \"k\"", "just one of"),
        ("", "client_certificate = false", "just one of"),
        ("", "client_certificate = true\nenv = \"B\"", "no placeholder"),
        ("", "client_certificate = true\nplaceholder = \"sk-\"", "no placeholder"),
    ] {
        let text = refused(&with(grant, credential));
        assert!(text.contains(want), "{grant} {credential}: {text}");
    }
}

#[test]
fn a_grant_names_no_address_in_an_odd_form() {
    for host in ["127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.0.0.01", "fe80::1%eth0", "1.2.3.4.5"]
    {
        let text = refused(&format!("{AGENT}[[grant]]\nhost = \"{host}\"\n"));
        assert!(text.contains(host) && text.contains("grant 1 host"), "{text}");
    }
}

#[test]
fn a_server_is_granted_to_its_agent_and_has_a_manifest_of_its_own() {
    let text = r#"
[agent]
name = "analyst"
entry = ["python3", "main.py"]
env = { LEVEL = "1" }

[[grant]]
host = "api.example.org"

[mcp.files]
command = ["python3", "-m", "files", "/state"]
env = { ROOT = "/state" }
trust = "untrusted"

[mcp.files.allow]
tools = ["read_*"]

[mcp.files.limits]
memory = "128MiB"

[[mcp.files.grant]]
host = "backend.example.org"
credential = "backend"

[mcp.files.credential.backend]
from = "env:BACKEND"
header = "Authorization: Bearer {}"
"#;
    let manifest = Manifest::parse(text, &|_| Err(String::new())).unwrap();
    let [other, grant] = &manifest.grants[..] else { panic!("{:?}", manifest.grants) };
    assert_eq!(other.host.to_string(), "api.example.org");
    assert_eq!(grant.host.to_string(), "files.mcp.ringfence.internal");
    assert_eq!((grant.trust, grant.connect_to), (Trust::Untrusted, None));
    assert_eq!(grant.rpc.as_ref().unwrap().tools, Some(vec!["read_*".to_owned()]));
    assert!(manifest.credentials.is_empty(), "what the server may use is not the agent's");

    let server = manifest.of_server("files").unwrap();
    assert_eq!((server.name.as_str(), server.kind), ("analyst-mcp-files", Kind::Mcp));
    assert_eq!(server.server_of, Some(ServerOf { agent: manifest.name.clone(), server: "files".into() }));
    assert_eq!(server.grants[0].host.to_string(), "backend.example.org");
    assert_eq!(server.env.keys().collect::<Vec<_>>(), ["ROOT"]);
    assert_eq!(server.limits.memory, Bytes::mib(128));
    assert!(server.credentials.contains_key("backend") && server.servers.is_empty());
    assert!(manifest.of_server("other").is_none());

    let address = "127.0.0.1:4711".parse().unwrap();
    let led = manifest.with_doors(&[Door { server: "files".into(), address, ca_pem: "PEM".into() }]);
    assert_eq!((led.grants[1].connect_to, led.grants[1].credential.as_deref()), (Some(address), Some("mcp.files")));
    assert_eq!(led.grants[0], manifest.grants[0]);
    assert_eq!(led.credentials["mcp.files"].place.word(), "header");
    assert_eq!(Server::variable("my-files"), "MCP_MY_FILES_URL");
    assert_eq!(Server::url("files"), "https://files.mcp.ringfence.internal/mcp");
}

#[test]
fn servers_that_are_not_right_are_refused() {
    let refused = |more: &str| {
        let text = format!("[agent]\nname = \"a\"\nentry = [\"x\"]\n{more}");
        Manifest::parse(&text, &|_| Err(String::new())).unwrap_err().to_string()
    };
    let long = "x".repeat(40);
    for (more, said) in [
        ("[mcp.files]\n", "[mcp.files] command is not usable: it is missing"),
        ("[mcp.Files]\ncommand = [\"x\"]\n", "not a name that a host can have"),
        ("[mcp.\"a.b\"]\ncommand = [\"x\"]\n", "not a name that a host can have"),
        (&format!("[mcp.{long}]\ncommand = [\"x\"]\n"), "too long"),
        ("[mcp.f]\ncommand = [\"x\"]\nenv = { \"A B\" = \"\" }\n", "[mcp.f] env `A B`"),
        ("[mcp.f]\ncommand = [\"x\"]\n[[mcp.f.grant]]\nhost = \"h.example\"\ncredential = \"c\"\n", "[mcp.f] grant 1"),
        ("[mcp.f]\ncommand = [\"x\"]\n[mcp.f.limits]\npids = 1\n", "[mcp.f] [limits] pids"),
        ("[mcp.f]\ncommand = [\"x\"]\n[mcp.f.allow.pins]\nt = \"no\"\n", "[mcp.f] mcp pins `t`"),
        ("[[grant]]\nhost = \"f.mcp.ringfence.internal\"\n", "Ringfence's own"),
        ("[[grant]]\nhost = \"*.ringfence.internal\"\n", "Ringfence's own"),
        ("[mcp.f]\ncommands = [\"x\"]\n", "unknown manifest key `commands`"),
    ] {
        let error = refused(more);
        assert!(error.contains(said), "{more}: {error}");
    }
    let text = "[agent]\nname = \"a\"\nkind = \"mcp\"\nentry = [\"x\"]\n";
    let error = Manifest::parse(text, &|_| Err(String::new())).unwrap_err().to_string();
    assert!(error.contains("nobody could reach it"), "{error}");
    let served = Manifest::parse(&format!("{text}[ingress]\nport = 8000\n"), &|_| Err(String::new())).unwrap();
    assert_eq!((served.kind, served.health.path.as_str()), (Kind::Mcp, "/health"));
}

#[test]
fn a_provider_to_fall_back_on_is_granted_itself() {
    let text = |failover: &str, more: &str| {
        format!(
            "[agent]\nname = \"a\"\nentry = [\"x\"]\n[[grant]]\nhost = \"a.example\"\n[grant.llm]\nretries = 1\n\
             [[grant.llm.failover]]\nhost = \"b.example\"\n{failover}\n{more}"
        )
    };
    let granted = "[[grant]]\nhost = \"b.example\"\nscheme = \"http\"\nport = 8080\n";
    let manifest = Manifest::parse(&text("model = \"m\"", granted), &|_| Err(String::new())).unwrap();
    let [to] = &manifest.grants[0].llm.failover[..] else { panic!() };
    assert_eq!((to.host.to_string().as_str(), to.port, to.scheme), ("b.example", 8080, Scheme::Http));
    assert_eq!((to.model.as_deref(), &to.path), (Some("m"), &None));
    for (failover, more, said) in [
        ("", "", "no grant covers it"),
        ("port = 443", granted, "no grant covers it"),
        ("", "[[grant]]\nhost = \"b.example\"\ntls = \"passthrough\"\n", "no grant covers it"),
        ("", "[[grant]]\nhost = \"b.example\"\nport = 1\nprotocol = \"tcp\"\n", "no grant covers it"),
        ("path = \"x\"", granted, "not a path"),
        ("paths = 1", granted, "unknown manifest key"),
    ] {
        let error = Manifest::parse(&text(failover, more), &|_| Err(String::new())).unwrap_err().to_string();
        assert!(error.contains(said), "{failover} {more}: {error}");
    }
    let error = Manifest::parse(&text("", granted).replace("retries = 1", "retries = 9"), &|_| Err(String::new()));
    assert!(error.unwrap_err().to_string().contains("retries"));
}

#[test]
fn a_grant_may_speak_something_other_than_http() {
    let manifest = parse(&format!(
        r#"{AGENT}
[[grant]]
host = "git.example.org"
port = 22
protocol = "tcp"
bytes_per_second = "1MiB"

[[grant]]
host = "db.example.org"
protocol = "postgres"
credential = "db"
ca = "db.pem"
[grant.postgres]
user = "reporting"
database = "sales"
statements = ["write", "select", "write"]
functions = ["nextval", "app.refresh"]

[[grant]]
host = "warehouse.example.org"
protocol = "postgres"
port = 6432
connect_to = "10.0.0.5:6432"
[grant.postgres]
user = "r"
database = "w"
tls = "off"

[credential.db]
from = "env:PGPASSWORD"
password = true
"#
    ))
    .unwrap();
    let [tcp, db, warehouse] = manifest.grants.as_slice() else { panic!() };
    assert_eq!(tcp.protocol, Protocol::Tcp(TcpRules { bytes_per_second: Some(Bytes::mib(1)), max_bytes: None }));
    assert_eq!((tcp.port, db.port, warehouse.port), (22, 5432, 6432));
    let Protocol::Postgres(rules) = &db.protocol else { panic!() };
    assert_eq!(rules.statements, [StatementClass::Select, StatementClass::Write]);
    assert!(!rules.read_only());
    let Protocol::Postgres(rules) = &warehouse.protocol else { panic!() };
    assert_eq!((rules.statements.as_slice(), rules.tls), (&[StatementClass::Select][..], PostgresTls::Off));
    assert!(rules.read_only());
    assert_eq!(manifest.credentials["db"].place, Place::Password);
    let written = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&written).unwrap(), manifest);
}

#[test]
fn a_grant_for_another_protocol_says_only_what_can_be_enforced() {
    const DB: &str = "host = \"db.example.org\"\nprotocol = \"postgres\"";
    const ROLE: &str = "[grant.postgres]\nuser = \"u\"\ndatabase = \"d\"";
    for (grants, want) in [
        ("host = \"a.example\"\nprotocol = \"tcp\"".to_owned(), "no usual port"),
        ("host = \"a.example\"\nport = 53\nprotocol = \"tcp\"".to_owned(), "resolver answers port 53"),
        ("host = \"a.example\"\nport = 0\nprotocol = \"tcp\"".to_owned(), "not a port"),
        ("host = \"a.example\"\nport = 1\nprotocol = \"tcp\"\nmax_bytes = 3".to_owned(), "too small"),
        ("host = \"a.example\"\nport = 1\nmax_bytes = 3000".to_owned(), "`max_bytes` is for"),
        (format!("host = \"a.example\"\n{ROLE}"), "`postgres` is for"),
        (DB.to_owned(), "the table is missing"),
        (format!("{DB}\n[grant.postgres]\nuser = \"u\""), "it is missing"),
        (format!("{DB}\n[grant.postgres]\nuser = \"\"\ndatabase = \"d\""), "not a name"),
        (format!("{DB}\nmethods = [\"GET\"]\n{ROLE}"), "`methods` is about HTTP"),
        (format!("{DB}\ntls = \"inspect\"\n{ROLE}"), "`tls` is about HTTP"),
        (format!("{DB}\nmax_bytes = 3000\n{ROLE}"), "`max_bytes` is for"),
        (format!("{DB}\n{ROLE}\ntls = \"off\""), "cleartext"),
        (format!("{DB}\nallow_private = true\nca = \"x\"\n{ROLE}\ntls = \"off\""), "`ca` is for TLS"),
        (
            format!("{DB}\nallow_private = true\nclient_certificate = \"x\"\n{ROLE}\ntls = \"off\""),
            "`client_certificate` is for TLS",
        ),
        (format!("{DB}\n{ROLE}\nfunctions = [\"A\"]"), "not a function"),
        (format!("{DB}\n{ROLE}\nfunctions = [\"set_config\"]"), "undoes"),
        (format!("{DB}\n{ROLE}\nstatements = [\"grant\"]"), "unknown variant `grant`"),
        (format!("{DB}\ncredential = \"web\"\n{ROLE}"), "no place for it but the password"),
        ("host = \"a.example\"\ncredential = \"db\"".to_owned(), "no place for a password"),
    ] {
        let text = format!(
            "{AGENT}[[grant]]\n{grants}\n[credential.db]\nfrom = \"env:P\"\npassword = true\n\
             [credential.web]\nfrom = \"env:W\"\nheader = \"X: {{}}\"\n"
        );
        let said = refused(&text);
        assert!(said.contains(want), "{grants}: {said}");
    }
    for key in [
        "methods = [\"GET\"]",
        "paths = [\"/\"]",
        "models = [\"m\"]",
        "credential = \"c\"",
        "client_certificate = \"c\"",
        "scheme = \"https\"",
    ] {
        let said = refused(&format!("{AGENT}[[grant]]\nhost = \"a.example\"\nport = 1\nprotocol = \"tcp\"\n{key}\n"));
        assert!(said.contains("nobody looks into"), "{key}: {said}");
    }
}

const SSH: &str = "host = \"git.example.org\"\nprotocol = \"ssh\"\ncredential = \"key\"";
const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";

fn with_key(grant: &str) -> String {
    format!(
        "{AGENT}[[grant]]\n{grant}\n[credential.key]\nfrom = \"file:k\"\nssh_key = true\n[credential.web]\nfrom = \"env:W\"\nheader = \"X: {{}}\"\n"
    )
}

#[test]
fn a_grant_for_git_over_ssh_is_understood() {
    let read = |ssh: &str| {
        let manifest = parse(&with_key(&format!("{SSH}\n[grant.ssh]\n{ssh}"))).unwrap();
        let written = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&written).unwrap(), manifest);
        assert_eq!((manifest.grants[0].port, &manifest.credentials["key"].place), (22, &Place::SshKey));
        let Protocol::Ssh(rules) = manifest.grants[0].protocol.clone() else { panic!() };
        *rules
    };
    let rules = read(&format!("host_keys = [\"{ED25519} comment\"]\nrepositories = [\"acme/site.git\", \"docs-*\"]"));
    assert_eq!((rules.user.as_str(), rules.host_keys.as_slice()), ("git", &[ED25519.to_owned()][..]));
    assert_eq!(rules.repositories, ["acme/site", "docs-*"]);
    assert_eq!(
        (rules.operations.as_slice(), rules.refs.len(), rules.absolute()),
        (&[GitOperation::Fetch][..], 0, false)
    );
    let rules = read(
        "host_keys = [\"SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU\"]\nrepositories = [\"/srv/*\"]\n\
         operations = [\"push\", \"fetch\", \"push\"]\nrefs = [\"refs/heads/agent/*\"]\nchanges = [\"create\"]\nuser = \"deploy\"",
    );
    assert_eq!(rules.operations, [GitOperation::Fetch, GitOperation::Push]);
    assert_eq!((rules.changes.as_slice(), rules.absolute()), (&[RefChange::Create][..], true));
}

#[test]
fn a_grant_for_git_over_ssh_says_only_what_can_be_enforced() {
    let keys = format!("host_keys = [\"{ED25519}\"]");
    let all = format!("{keys}\nrepositories = [\"x\"]");
    let ssh = |text: &str| format!("{SSH}\n[grant.ssh]\n{text}");
    for (grant, want) in [
        (SSH.to_owned(), "the table is missing"),
        (ssh(""), "no key is trusted because it was seen first"),
        (ssh(&keys), "ssh repositories"),
        (ssh(&all).replace("credential = \"key\"", ""), "no git host lets in who shows no key"),
        (ssh(&all).replace("\"key\"", "\"web\""), "no place for it but a private key"),
        ("host = \"a.example\"\ncredential = \"key\"".to_owned(), "only SSH has a place for it"),
        (format!("host = \"a.example\"\n[grant.ssh]\n{all}"), "`ssh` is for"),
        (ssh(&all).replace("protocol", "methods = [\"GET\"]\nprotocol"), "`methods` is about HTTP"),
        (ssh(&all).replace("protocol", "ca = \"x\"\nprotocol"), "`ca` is about TLS"),
        (ssh(&all).replace("protocol", "max_bytes = 3000\nprotocol"), "`max_bytes` is for"),
        (ssh(&format!("{all}\nuser = \"-x\"")), "not a user"),
        (ssh(&all.replace(ED25519, "ssh-rsa AAAA")), "RSA keys are not supported"),
        (ssh(&all.replace(ED25519, "ssh-ed25519")), "not a key"),
        (ssh(&all.replace(ED25519, "SHA256:x")), "not a fingerprint"),
        (ssh(&all.replace("\"x\"", "\"../x\"")), "no repository has such a name"),
        (ssh(&all.replace("\"x\"", "\"~x\"")), "no repository has such a name"),
        (ssh(&all.replace("\"x\"", "\"-x\"")), "no repository has such a name"),
        (ssh(&all.replace("\"x\"", "\"x y\"")), "no repository has such a name"),
        (ssh(&all.replace("\"x\"", "\"/x\", \"y\"")), "two ways"),
        (ssh(&format!("{all}\noperations = []")), "an empty list grants nothing"),
        (ssh(&format!("{all}\noperations = [\"shell\"]")), "unknown variant `shell`"),
        (ssh(&format!("{all}\noperations = [\"push\"]")), "say which refs"),
        (ssh(&format!("{all}\nrefs = [\"refs/*\"]")), "none is granted"),
        (ssh(&format!("{all}\noperations = [\"push\"]\nrefs = [\"main\"]")), "not a glob of refs"),
    ] {
        let said = refused(&with_key(&grant));
        assert!(said.contains(want), "{grant}: {said}");
    }
}

#[test]
fn one_host_and_port_speaks_one_protocol() {
    let grant = |host: &str, port: u16, protocol: &str| {
        let more = if protocol == "postgres" { "\n[grant.postgres]\nuser = \"u\"\ndatabase = \"d\"" } else { "" };
        format!("[[grant]]\nhost = \"{host}\"\nport = {port}\nprotocol = \"{protocol}\"{more}\n")
    };
    for (one, two, clash) in [
        (grant("a.example.org", 443, "http"), grant("a.example.org", 443, "tcp"), true),
        (grant("*.example.org", 443, "tcp"), grant("a.example.org", 443, "http"), true),
        (grant("*.b.example.org", 22, "http"), grant("*.example.org", 22, "tcp"), true),
        (grant("a.example.org", 1, "postgres"), grant("a.example.org", 1, "tcp"), true),
        (grant("a.example.org", 1, "postgres"), grant("*.example.org", 1, "postgres"), true),
        (grant("a.example.org", 1, "tcp"), grant("a.example.org", 1, "tcp"), false),
        (grant("a.example.org", 443, "http"), grant("a.example.org", 22, "tcp"), false),
        (grant("a.example.org", 22, "http"), grant("b.example.org", 22, "tcp"), false),
        (grant("*.a.example.org", 22, "http"), grant("a.example.org", 22, "tcp"), false),
        (grant("*.xa.example.org", 22, "http"), grant("*.a.example.org", 22, "tcp"), false),
    ] {
        let read = parse(&format!("{AGENT}{one}{two}"));
        assert_eq!(read.is_err(), clash, "{one}{two}");
        if let Err(error) = read {
            assert!(error.to_string().starts_with("grant 2 for"), "{error}");
        }
    }
}
