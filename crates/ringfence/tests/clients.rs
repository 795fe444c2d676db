//! Clients that nobody here wrote, in an agent behind the real gate: each does its work, each is told no in a way that
//! it understands, and the log has what each did. The agent is `tests/scenarios/clients`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failure here is a failed test"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringfence_testkit::ca::Ca;
use ringfence_testkit::claude_server::{self, ClaudeServer};
use ringfence_testkit::manifest::{self, Played};
use ringfence_testkit::model_server::{self, ModelServer};
use ringfence_testkit::postgres::Postgres;
use ringfence_testkit::sshd::Sshd;
use ringfence_testkit::web::{self, Web};
use serde_json::Value;
use support::Host;

const GRPC: &str = "grpc.clients.example";
const MCP: &str = "mcp.clients.example";
const NOTES: &str = "notes.mcp.ringfence.internal";
const SSH: &str = "ssh.clients.example";
const READER: &str = "reader.clients.example";
const WRITER: &str = "writer.clients.example";

const OPENAI_KEY: &str = "sk-clients-secret-of-openai";
const READER_PASSWORD: &str = "clients-secret-of-the-reader";
const WRITER_PASSWORD: &str = "clients-secret-of-the-writer";
const ANTHROPIC_KEY: &str = "sk-ant-clients-secret-of-anthropic";

/// Longer than all checks together take.
const PATIENCE: Duration = Duration::from_secs(240);

/// What the log must have: host, path, protocol, decision, reason.
const CALLS: &[(&str, &str, &str, &str, &str)] = &[
    (web::HOST, "/open/requests/json", "http/1.1", "allow", "grant"),
    (web::HOST, "/open/requests/echo", "http/1.1", "allow", "grant"),
    (web::HOST, "/open/requests/stream", "http/1.1", "allow", "grant"),
    (web::HOST, "/shut/requests", "http/1.1", "deny", "no_grant"),
    (web::HOST, "/open/urllib/echo", "http/1.1", "allow", "grant"),
    (web::HOST, "/shut/urllib", "http/1.1", "deny", "no_grant"),
    (web::HOST, "/open/httpx-h1/echo", "http/1.1", "allow", "grant"),
    (web::HOST, "/shut/httpx-h1", "http/1.1", "deny", "no_grant"),
    (web::HOST, "/open/httpx-h2/echo", "h2", "allow", "grant"),
    (web::HOST, "/open/httpx-async/echo", "h2", "allow", "grant"),
    (web::HOST, "/shut/httpx-h2", "h2", "deny", "no_grant"),
    (web::HOST, "/open/aiohttp/echo", "http/1.1", "allow", "grant"),
    (web::HOST, "/open/aiohttp/ws", "websocket", "allow", "grant"),
    (web::HOST, "/shut/aiohttp", "http/1.1", "deny", "no_grant"),
    (web::HOST, "/open/websockets/ws", "websocket", "allow", "grant"),
    (web::HOST, "/open/websockets-sync/ws", "websocket", "allow", "grant"),
    (web::HOST, "/shut/websockets", "websocket", "deny", "no_grant"),
    (web::HOST, "/open/curl-h1/echo", "http/1.1", "allow", "grant"),
    (web::HOST, "/open/curl-h2/echo", "h2", "allow", "grant"),
    (web::HOST, "/shut/curl", "h2", "deny", "no_grant"),
    (web::HOST, "/git/open.git/git-upload-pack", "h2", "allow", "grant"),
    (web::HOST, "/git/open.git/git-receive-pack", "h2", "deny", "no_grant"),
    (web::HOST, "/git/shut.git/info/refs", "h2", "deny", "no_grant"),
    (web::HOST, "/files/simple/fencepin/", "http/1.1", "allow", "grant"),
    (web::HOST, "/files/shut/fencepin/", "http/1.1", "deny", "no_grant"),
    (web::HOST, "/open/node/echo", "http/1.1", "allow", "grant"),
    (web::HOST, "/open/node/ws", "websocket", "allow", "grant"),
    (web::HOST, "/shut/node", "http/1.1", "deny", "no_grant"),
    (web::HOST, "/files/npm/fencepin", "http/1.1", "allow", "grant"),
    (web::HOST, "/files/npm/fencepin/fencepin-1.0.0.tgz", "http/1.1", "allow", "grant"),
    (web::HOST, "/files/shut/fencepin", "http/1.1", "deny", "no_grant"),
    (GRPC, "/fence.Numbers/Double", "h2", "allow", "grant"),
    (GRPC, "/fence.Numbers/Count", "h2", "allow", "grant"),
    (GRPC, "/fence.Numbers/Add", "h2", "allow", "grant"),
    (GRPC, "/fence.Numbers/Echo", "h2", "allow", "grant"),
    (GRPC, "/fence.Numbers/Secret", "h2", "deny", "no_grant"),
    (model_server::HOST, "/v1/models", "http/1.1", "deny", "no_grant"),
    (claude_server::HOST, "/v1/models", "http/1.1", "deny", "no_grant"),
];

/// What the log must have of models and MCP: host, what was asked (the model, or method and name), decision, reason.
const ASKED: &[(&str, &str, &str, &str)] = &[
    (model_server::HOST, "openai.chat gpt-4o-mini", "allow", "grant"),
    (model_server::HOST, "openai.chat gpt-4o", "deny", "model_not_granted"),
    (model_server::HOST, "openai.chat gpt-4o-mini", "deny", "budget_exhausted"),
    (claude_server::HOST, "anthropic.messages claude-haiku-4-5", "allow", "grant"),
    (claude_server::HOST, "anthropic.messages claude-opus-4-5", "deny", "model_not_granted"),
    (claude_server::HOST, "anthropic.messages claude-haiku-4-5", "deny", "budget_exhausted"),
    (MCP, "initialize", "allow", "grant"),
    (MCP, "tools/list", "allow", "grant"),
    (MCP, "tools/call add", "allow", "grant"),
    (MCP, "resources/read docs://intro", "allow", "grant"),
    (MCP, "tools/call shell", "deny", "rpc_not_granted"),
    (NOTES, "initialize", "allow", "grant"),
    (NOTES, "tools/call remember", "allow", "grant"),
    (NOTES, "tools/call forget", "deny", "rpc_not_granted"),
];

/// What the log of the agent's own MCP server must have.
const CALLS_OF_NOTES: &[(&str, &str, &str, &str, &str)] = &[
    (web::HOST, "/open/notes/json", "http/1.1", "allow", "grant"),
    (web::HOST, "/open/requests/json", "http/1.1", "deny", "no_grant"),
    ("127.0.0.1", "/mcp", "http/1.1", "allow", "ingress"),
];

/// What the log must have of databases: host, kinds of statements, decision, reason.
const QUERIED: &[(&str, &str, &str, &str)] = &[
    (READER, "", "allow", "grant"),
    (READER, "select", "allow", "grant"),
    (READER, "transaction", "allow", "grant"),
    (READER, "write", "deny", "statement_not_granted"),
    (READER, "other", "deny", "statement_not_granted"),
    (WRITER, "write", "allow", "grant"),
    (WRITER, "ddl", "deny", "statement_not_granted"),
];

/// What the log must have of git over SSH: operation, repository and refs, or what else was asked for; decision, reason.
const RUN: &[(&str, &str, &str)] = &[
    ("fetch acme/open", "allow", "grant"),
    ("fetch acme/shut", "deny", "repository_not_granted"),
    ("push acme/open", "allow", "grant"),
    ("push acme/open create refs/heads/agent/mine", "allow", "grant"),
    ("push acme/open update refs/heads/main", "deny", "ref_not_granted"),
    ("id", "deny", "command_not_granted"),
    ("subsystem sftp", "deny", "command_not_granted"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_nobody_here_wrote_work_and_understand_a_no() {
    let world = World::start().await;
    let host = Host::new();
    let folder = host.copy("tests/scenarios/clients", "clients");
    let folder_of_init = host.copy("tests/scenarios/clients", "proposed");
    host.ok(&["init", &folder_of_init, "--name", "proposed"]);
    let proposed = fs::read_to_string(Path::new(&folder_of_init).join("ringfence.toml")).unwrap();
    let text = manifest::read(&repository("tests/scenarios/clients")).unwrap();
    for credential in ["[credential.anthropic]", "[credential.openai]"] {
        let of = |text: &str| text.split_once(credential).map(|(_, rest)| header(rest));
        assert!(of(&text).is_some() && of(&text) == of(&proposed), "`init` proposes another header: {proposed}");
    }
    let derived = manifest::derive(&text, &world.played(), &world.folder.path().join("ca.pem")).unwrap();
    let unknown = format!("SHA256:{}", "A".repeat(43));
    assert!(derived.contains(&unknown));
    let derived = derived.replace(&unknown, &world.sshd.host_key("ed25519").unwrap());
    fs::write(Path::new(&folder).join("ringfence.toml"), derived).unwrap();
    let up = host
        .command(&["up", &folder])
        .envs([("OPENAI_API_KEY", OPENAI_KEY), ("ANTHROPIC_API_KEY", ANTHROPIC_KEY)])
        .envs([("READER_PASSWORD", READER_PASSWORD), ("WRITER_PASSWORD", WRITER_PASSWORD)])
        .env("DEPLOY_KEY", world.sshd.client_key().unwrap())
        .output()
        .unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));

    let lines = tokio::task::block_in_place(|| lines(&host));
    let failed: Vec<String> = lines
        .iter()
        .filter(|line| line["ok"] != true)
        .map(|line| format!("{}: {}", line["check"], line["detail"].as_str().unwrap_or_default()))
        .collect();
    let entries = entries_of(&host, "clients");
    let unhappy: Vec<String> = entries
        .iter()
        .filter(|e| e["decision"] == "deny" || e["error"].is_string())
        .map(|e| {
            format!(
                "{} {} {}{}: {} {} {}",
                e["kind"], e["call"], e["host"], e["path"], e["reason"], e["why"], e["error"]
            )
        })
        .collect();
    let (failures, unhappy) = (failed.join("\n"), unhappy.join("\n"));
    assert!(failed.is_empty(), "{} of {} failed:\n{failures}\n{unhappy}", failed.len(), lines.len());
    let documented = documented();
    let tried: BTreeMap<&str, &str> =
        lines.iter().map(|line| (line["client"].as_str().unwrap(), line["version"].as_str().unwrap())).collect();
    assert!(tried.keys().eq(documented.keys()), "docs/reference/clients.md has {documented:?}, and tried is {tried:?}");
    for (client, version) in tried {
        // Debian's programs change their last digits with each repair; they stand there without.
        let same =
            version.strip_prefix(&*documented[client]).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        assert!(same, "docs/reference/clients.md has another version than {client} {version}");
    }

    let of_notes = entries_of(&host, "clients-mcp-notes");
    let wrong = CALLS.iter().filter_map(|expected| misses(&entries, expected));
    let wrong: Vec<String> =
        wrong.chain(CALLS_OF_NOTES.iter().filter_map(|expected| misses(&of_notes, expected))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, said, decision, reason) in ASKED {
        let found = entries.iter().any(|e| {
            e["host"] == *name && e["decision"] == *decision && e["reason"] == *reason && asked(e).any(|a| a == *said)
        });
        assert!(found, "not in the log: {name} {said} {decision} {reason}");
    }
    for (name, classes, decision, reason) in QUERIED {
        let found = entries.iter().any(|e| {
            let told = e["sql"]["classes"].as_array().into_iter().flatten().filter_map(Value::as_str);
            e["host"] == *name
                && e["protocol"] == "postgres"
                && e["decision"] == *decision
                && e["reason"] == *reason
                && told.collect::<Vec<_>>().join("+") == *classes
        });
        assert!(found, "not in the log: {name} {classes} {decision} {reason}");
    }
    for (said, decision, reason) in RUN {
        let found = entries.iter().any(|e| {
            let git = &e["git"];
            let words = [&git["operation"], &git["repository"], &git["other"]];
            let words = words.into_iter().chain(git["refs"].as_array().into_iter().flatten());
            e["host"] == SSH
                && e["protocol"] == "ssh"
                && e["decision"] == *decision
                && e["reason"] == *reason
                && words.filter_map(Value::as_str).collect::<Vec<_>>().join(" ") == *said
        });
        assert!(found, "not in the log: {said} {decision} {reason}");
    }
    let rows = "select (select count(*) from items), (select count(*) from notes)";
    assert_eq!(world.database.sql("sales", rows).as_deref(), Ok("2|200"));
    let unknown = entries.iter().filter(|e| e["kind"] == "dns.query" && e["name"] == "elsewhere.example");
    assert!(unknown.clone().count() > 0 && unknown.clone().all(|e| e["decision"] == "deny"));
    // Libraries try again what may pass; a no is final.
    for (name, said, decision, reason) in ASKED.iter().filter(|a| a.2 == "deny" && ![MCP, NOTES].contains(&a.0)) {
        let times = entries.iter().filter(|e| {
            e["host"] == *name && e["decision"] == *decision && e["reason"] == *reason && asked(e).any(|a| a == *said)
        });
        assert_eq!(times.count(), 1, "{name} {said}: the library tried again");
    }
    assert_eq!(host.json(&["audit", "verify"])["whole"], true);
    // The agent ran to its end, and its server ended with it.
    support::wait_until("the server ends", || host.agent("clients-mcp-notes").unwrap()["state"] == "stopped");
    host.ok(&["down", "clients"]);
    host.assert_nothing_half_made();
}

/// The first header that a manifest, or a proposal for one, names.
fn header(manifest: &str) -> String {
    let line = manifest.lines().map(|line| line.trim_start_matches("# ")).find(|line| line.starts_with("header = "));
    line.expect("a header").to_owned()
}

/// Why the log does not have a call as it should, if so.
fn misses(
    entries: &[Value],
    (host, path, protocol, decision, reason): &(&str, &str, &str, &str, &str),
) -> Option<String> {
    let of_it: Vec<&Value> =
        entries.iter().filter(|e| e["kind"] == "call.intent" && e["host"] == *host && e["path"] == *path).collect();
    let as_it_should = |e: &&&Value| e["protocol"] == *protocol && e["decision"] == *decision && e["reason"] == *reason;
    if of_it.is_empty() || of_it.iter().any(|e| !as_it_should(&e)) {
        return Some(format!("{host}{path} should be {protocol} {decision} {reason}, and is {of_it:#?}"));
    }
    if *decision == "deny" {
        return None;
    }
    // Some end their side of a WebSocket without a word of TLS.
    let broke = |error: &str| *protocol != "websocket" || !error.contains("without sending TLS close_notify");
    let ended = |call: &Value| entries.iter().find(|e| e["kind"] == "call.outcome" && e["call"] == *call);
    let bad =
        of_it.iter().map(|e| ended(&e["call"])).find(|o| o.is_none_or(|o| o["error"].as_str().is_some_and(broke)));
    bad.map(|outcome| format!("{host}{path} ended as {outcome:#?}"))
}

/// What a call asks of models and MCP servers.
fn asked(entry: &Value) -> impl Iterator<Item = String> {
    let llm = entry["llm"]["api"].as_str().map(|api| format!("{api} {}", entry["model"].as_str().unwrap_or_default()));
    let rpc = entry["rpc"].as_array().into_iter().flatten().map(|said| {
        format!("{} {}", said["method"].as_str().unwrap_or_default(), said["name"].as_str().unwrap_or_default())
            .trim_end()
            .to_owned()
    });
    llm.into_iter().chain(rpc)
}

/// The lines of all checks, once the agent has done them.
fn lines(host: &Host) -> Vec<Value> {
    let until = Instant::now() + PATIENCE;
    loop {
        let log = host.ok(&["logs", "clients"]);
        let mut lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        if let Some(last) = lines.pop_if(|line| line["done"].is_u64()) {
            assert_eq!(last["done"], lines.len(), "{log}");
            return lines;
        }
        let state = host.agent("clients").unwrap()["state"].clone();
        assert!(state == "running" && Instant::now() < until, "the agent is {state}, and said:\n{log}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The log, once every call that was let through has ended there.
fn entries_of(host: &Host, agent: &str) -> Vec<Value> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let text = host.ok(&["audit", agent, "--json"]);
        let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let count = |kind: &str, decision: &Value| {
            entries.iter().filter(|e| e["kind"] == kind && e["decision"] == *decision).count()
        };
        let open = count("call.intent", &"allow".into()) - count("call.outcome", &Value::Null);
        if open == 0 || Instant::now() > until {
            return entries;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Client and version, as the documentation has them.
fn documented() -> BTreeMap<String, String> {
    let table = fs::read_to_string(repository("docs/reference/clients.md")).unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.map(|row| row.split(" | ").map(str::to_owned).collect::<Vec<_>>());
    cells.filter(|row| row[0] != "client").map(|row| (row[0].clone(), row[1].clone())).collect()
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// The world outside: servers on loopback, with certificates of an authority of their own.
struct World {
    // Ends before its folder does.
    database: Postgres,
    sshd: Sshd,
    folder: tempfile::TempDir,
    web: Web,
    openai: ModelServer,
    anthropic: ClaudeServer,
    python: Child,
    grpc: SocketAddr,
    mcp: SocketAddr,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::generate("clients").unwrap();
        ca.write_pem(&folder.path().join("ca.pem")).unwrap();
        let tls = |name: &str| ca.issue(&[name]).unwrap().server_config().unwrap();
        repositories(&folder.path().join("git"));
        let web = Web::start(tls(web::HOST), folder.path().to_owned()).await.unwrap();
        let openai = ModelServer::start(tls(model_server::HOST), OPENAI_KEY, |_| {}).await.unwrap();
        let anthropic = ClaudeServer::start(tls(claude_server::HOST), ANTHROPIC_KEY).await.unwrap();
        let home = folder.path().join("database");
        fs::create_dir(&home).unwrap();
        // The server is another user, who has to get there.
        fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let [shown, shown_key] = ca.issue(&[READER, WRITER]).unwrap().pems();
        let database = Postgres::start(&home, Some([&shown, &shown_key])).unwrap();
        fill(&database);
        let home = folder.path().join("ssh");
        fs::create_dir(&home).unwrap();
        let sshd = Sshd::start(&home, "").unwrap();
        for name in ["acme/open.git", "acme/shut.git"] {
            sshd.repository(name).unwrap();
        }
        let (certificate, key) = (folder.path().join("python.pem"), folder.path().join("python.key"));
        ca.issue(&[GRPC, MCP]).unwrap().write_pem(&certificate, &key).unwrap();
        let mut python = Command::new(
            support::environment("upstreams", &repository("tests/scenarios/upstreams/requirements.txt"))
                .join("bin/python"),
        )
        .arg(repository("tests/scenarios/upstreams/serve.py"))
        .args([&certificate, &key, &folder.path().join("files")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
        let mut line = String::new();
        BufReader::new(python.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ports: Value = serde_json::from_str(&line).expect("the servers of Python print their ports");
        let at = |name: &str| ([127, 0, 0, 1], u16::try_from(ports[name].as_u64().unwrap()).unwrap()).into();
        Self { grpc: at("grpc"), mcp: at("mcp"), folder, database, sshd, web, openai, anthropic, python }
    }

    fn played(&self) -> Vec<Played> {
        vec![
            Played { host: web::HOST, address: self.web.address() },
            Played { host: model_server::HOST, address: self.openai.address() },
            Played { host: claude_server::HOST, address: self.anthropic.address() },
            Played { host: GRPC, address: self.grpc },
            Played { host: MCP, address: self.mcp },
            Played { host: READER, address: self.database.address() },
            Played { host: WRITER, address: self.database.address() },
            Played { host: SSH, address: self.sshd.address() },
        ]
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.python.kill();
        let _ = self.python.wait();
    }
}

/// Two roles that may do everything in a database with two tables.
fn fill(database: &Postgres) {
    database.sql("postgres", "create database sales").unwrap();
    let sql = format!(
        "create role reader login password '{READER_PASSWORD}';
         create role writer login password '{WRITER_PASSWORD}';
         create table items (id int primary key, name text);
         insert into items values (1, 'one'), (2, 'two');
         create table notes (id int primary key, name text);
         grant all on items, notes to public;"
    );
    database.sql("sales", &sql).unwrap();
}

/// Two repositories of two commits each; one is granted.
fn repositories(root: &Path) {
    let git = |folder: &Path, args: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=a", "-c", "user.email=a@clients.example", "-c", "init.defaultBranch=main"])
            .args(args)
            .current_dir(folder)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for name in ["open", "shut"] {
        let work = root.join(name);
        fs::create_dir_all(&work).unwrap();
        git(&work, &["init", "--quiet"]);
        fs::write(work.join("README"), format!("{name}\n")).unwrap();
        git(&work, &["add", "README"]);
        git(&work, &["commit", "--quiet", "--message=first"]);
        git(&work, &["commit", "--quiet", "--allow-empty", "--message=second"]);
        git(root, &["clone", "--quiet", "--bare", name, &format!("{name}.git")]);
    }
}
