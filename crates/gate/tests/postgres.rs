//! Sessions of real clients with a real PostgreSQL, through a gate.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

#[path = "support/database.rs"]
mod database;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use database::{DB_HOST, Database, PASSWORD, run};
use ringfence_audit::Outcome;
use ringfence_gate::Barriers;
use ringfence_gate::config::{CredentialLease, GateConfig};
use ringfence_gate::postgres::wire::{self, Message};
use ringfence_gate::shelf::{MAX_HELD_BYTES, PATIENCE};
use ringfence_model::SecretText;
use ringfence_model::manifest::{
    Grant, Place, PostgresRules, PostgresTls, Protocol,
    StatementClass::{self, Ddl, Select, Write},
};
use support::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

fn granted(address: SocketAddr, ca_pem: Option<String>, statements: &[StatementClass]) -> Grant {
    let rules = PostgresRules {
        user: "reader".into(),
        database: "postgres".into(),
        statements: statements.to_vec(),
        functions: Vec::new(),
        tls: if ca_pem.is_some() { PostgresTls::Require } else { PostgresTls::Off },
    };
    Grant {
        port: 5432,
        protocol: Protocol::Postgres(Box::new(rules)),
        connect_to: Some(address),
        credential: Some("db".into()),
        ca_pem,
        ..Grant::to(DB_HOST.parse().unwrap())
    }
}

fn of(database: &Database, statements: &[StatementClass]) -> Grant {
    granted(database.address, Some(database.ca.pem.clone()), statements)
}

fn change(mut grant: Grant, change: impl FnOnce(&mut PostgresRules)) -> Grant {
    if let Protocol::Postgres(rules) = &mut grant.protocol {
        change(rules);
    }
    grant
}

fn configured(grants: Vec<Grant>, password: &str) -> GateConfig {
    let mut config = config(grants);
    let lease = CredentialLease {
        place: Place::Password,
        placeholder: PLACEHOLDER.into(),
        secret: SecretText::new(password.into()),
    };
    config.credentials.insert("db".into(), lease);
    config
}

/// An agent at its gate.
struct Agent {
    fence: Fence,
    at: SocketAddr,
    ca: tempfile::NamedTempFile,
}

impl Agent {
    async fn new(grant: Grant) -> Self {
        Self::knowing(grant, PASSWORD).await
    }

    async fn knowing(grant: Grant, password: &str) -> Self {
        let fence = Fence::of(&configured(vec![grant], password));
        let at = fence.to_name(DB_HOST, 5432).await;
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), fence.gate.ca_pem()).unwrap();
        Self { fence, at, ca }
    }

    fn conninfo(&self, more: &str) -> String {
        format!(
            "host={DB_HOST} hostaddr=127.0.0.1 port={} user=whoever dbname=whatever password={PLACEHOLDER} \
             sslmode=verify-full sslrootcert={} {more}",
            self.at.port(),
            self.ca.path().display()
        )
    }

    async fn psql_with(&self, more: &str, input: &str) -> (bool, String) {
        run("psql", vec!["-X".into(), "-At".into(), "-q".into(), self.conninfo(more)], input).await
    }

    async fn psql(&self, input: &str) -> String {
        self.psql_with("", input).await.1
    }

    async fn raw(&self, settings: &[(&str, &str)]) -> Raw<TcpStream> {
        let mut raw = Raw(TcpStream::connect(self.at).await.unwrap());
        raw.startup(settings).await;
        raw
    }
}

/// A client that says just what a test has it say.
struct Raw<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    async fn say(&mut self, messages: Vec<Message>) {
        let bytes: Vec<u8> = messages.into_iter().flat_map(|message| message.finish().unwrap()).collect();
        self.0.write_all(&bytes).await.unwrap();
    }

    async fn startup(&mut self, settings: &[(&str, &str)]) {
        let first = Message::untyped().u32(wire::VERSION).text("user").text("x");
        let message = settings.iter().fold(first, |message, (name, value)| message.text(name).text(value));
        self.say(vec![message.bytes(&[0])]).await;
    }

    async fn next(&mut self) -> Option<(char, Vec<u8>)> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).await.ok()?;
        let (kind, length) = wire::head(head).unwrap();
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.ok()?;
        Some((char::from(kind), body))
    }

    /// What a query gives, as its rows came.
    async fn rows(&mut self, text: &str) -> Vec<u8> {
        self.say(vec![query(text)]).await;
        let mut rows = Vec::new();
        loop {
            match self.next().await.unwrap() {
                ('D', body) => rows.extend(body),
                ('Z', _) => return rows,
                _ => {}
            }
        }
    }

    /// Types of messages until the server is ready, errors with their code, and the last transaction status.
    async fn until_ready(&mut self) -> String {
        let mut heard = String::new();
        loop {
            match self.next().await {
                None => return format!("{heard}."),
                Some(('S' | 'N', _)) => {}
                Some(('E', body)) => heard.push_str(&format!("E({})", wire::error_code(&body))),
                Some(('Z', body)) => return format!("{heard}Z{}", char::from(body[0])),
                Some((kind, _)) => heard.push(kind),
            }
        }
    }
}

fn query(text: &str) -> Message {
    Message::new(b'Q').text(text)
}

fn parse(name: &str, text: &str) -> Message {
    Message::new(b'P').text(name).text(text).bytes(&[0, 0])
}

fn bind(statement: &str) -> Message {
    Message::new(b'B').text("").text(statement).bytes(&[0; 6])
}

fn execute() -> Message {
    Message::new(b'E').text("").u32(0)
}

fn sync() -> Message {
    Message::new(b'S')
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_and_does_not_write() {
    let database = Database::start();
    let agent = Agent::new(of(&database, &[Select])).await;
    let said = agent
        .psql("select name, current_user, current_database() from t;\ndelete from t;\nselect count(*) from t;\n\\conninfo\n")
        .await;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "one|reader|postgres", "{said}");
    assert_eq!(lines[1], "1", "the session goes on: {said}");
    assert!(said.contains("ERROR:  this statement is not granted"), "{said}");
    assert_eq!(database.rows(), "1");
    // Past the gate the very same statement goes through.
    database.sql("set role reader; begin; delete from t; rollback");
    assert_eq!(database.sql("set role reader; begin; delete from t returning id; rollback"), "1");

    let intents = agent.fence.log.intents();
    let told: Vec<(&str, Outcome, String)> =
        intents.iter().map(|i| (i.reason.as_str(), i.decision, i.sql.as_ref().unwrap().classes.join("+"))).collect();
    assert_eq!(
        told,
        [
            ("grant", Outcome::Allow, String::new()),
            ("grant", Outcome::Allow, "select".into()),
            ("statement_not_granted", Outcome::Deny, "write".into()),
            ("grant", Outcome::Allow, "select".into()),
        ]
    );
    assert_eq!(intents[0].credential.as_deref(), Some("db"));
    assert_eq!(
        (intents[0].protocol.as_str(), intents[0].rules.join(" ")),
        ("postgres", "grant-1 grant-1/secret".into())
    );
    let sql = intents[2].sql.as_ref().unwrap();
    assert_eq!((sql.user.as_str(), sql.verbs.join(" "), sql.tables.join(" ")), ("reader", "delete".into(), "t".into()));
    assert!(said.contains(intents[2].call.as_str()), "the agent is told the id and nothing more: {said}");
    let outcome = agent.fence.log.outcome(2).await;
    assert_eq!(outcome.error, None);
    assert_eq!(outcome.address, Some(database.address.to_string()));
    assert!(!said.contains(PASSWORD));
    let events = serde_json::to_string(&*agent.fence.log.events.lock().unwrap()).unwrap();
    assert!(!events.contains(PASSWORD) && !events.contains("'one'"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_goes_through_and_no_more() {
    let database = Database::start();
    let agent =
        Agent::new(change(of(&database, &[Select, Write]), |rules| rules.functions = vec!["app.f".into()])).await;
    let said = agent
        .psql(
            "begin;\ninsert into t values (2, 'two'), (3, 'it''s');\nsavepoint a;\nupdate t set name = upper(name);\n\
             rollback to a;\ncommit;\ncopy t from stdin;\n4\tfour\n5\tfive\n\\.\ncopy t (id) to stdout;\n\
             delete from t where id > 4;\nselect nextval('s');\ncreate table u (a int);\nselect pg_read_file('x');\n\
             truncate nothing_here;\n",
        )
        .await;
    assert_eq!(said.lines().take(6).collect::<Vec<_>>(), ["1", "2", "3", "4", "5", "1"], "{said}");
    assert_eq!(said.matches("is not granted").count(), 2, "{said}");
    assert!(said.contains("relation \"nothing_here\" does not exist"), "the server's own errors come through: {said}");
    assert_eq!(database.sql("select string_agg(name, ',' order by id) from t"), "one,two,it's,four");
    let outcomes = agent.fence.log.outcomes();
    assert_eq!(outcomes.iter().filter(|o| o.error.as_deref() == Some("sql_error: 42P01")).count(), 1);

    let agent = Agent::new(of(&database, &[Ddl, Select])).await;
    let said = agent
        .psql(
            "create table u (a int primary key, b numeric(3) default 1);\nalter table u add c text;\n\
               create index i on u (lower(c));\ndrop table u;\ninsert into t values (9, 'x');\n\
               create function f() returns int language sql as 'select 1';\ncreate extension dblink;\n",
        )
        .await;
    assert_eq!((said.matches("is not granted").count(), said.matches("ERROR").count()), (3, 3), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_are_decided_when_they_are_prepared_and_recorded_when_they_run() {
    let database = Database::start();
    let script = tempfile::NamedTempFile::new().unwrap();
    let agent = Agent::new(of(&database, &[Select, Write])).await;
    std::fs::write(
        script.path(),
        "\\set x random(1, 1000000)\nselect name from t where id = :x;\nbegin;\n\
         insert into t values (:x, 'x') on conflict do nothing;\ncommit;\n\\startpipeline\nselect 1;\nselect 2;\n\\endpipeline\n",
    )
    .unwrap();
    for mode in ["extended", "prepared"] {
        let before = agent.fence.log.intents().len();
        let args = ["-n", "-M", mode, "-c", "2", "-t", "25", "-f"].map(str::to_owned);
        let args = [&args[..], &[script.path().display().to_string(), agent.conninfo("")]].concat();
        let (good, said) = run("pgbench", args, "").await;
        assert!(good && said.contains("number of transactions actually processed: 50/50"), "{said}");
        let intents = agent.fence.log.intents();
        // Six statements per transaction, two sessions, and a look by pgbench beforehand or none.
        let ran = intents[before..].iter().filter(|i| i.sql.as_ref().unwrap().digest.is_some()).count();
        assert!((300..310).contains(&ran), "{ran}");
    }
    let only_reads = Agent::new(of(&database, &[Select])).await;
    let args = ["-n", "-M", "prepared", "-t", "1", "-f"].map(str::to_owned);
    let args = [&args[..], &[script.path().display().to_string(), only_reads.conninfo("")]].concat();
    let (good, said) = run("pgbench", args, "").await;
    assert!(!good && said.contains("not granted"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_denial_the_conversation_is_where_the_server_would_have_it() {
    let database = Database::start();
    let agent = Agent::new(of(&database, &[Select, Write])).await;
    let mut raw = agent.raw(&[]).await;
    assert_eq!(raw.until_ready().await, "RKZI");
    // A denied statement undoes what its batch did, as any error does.
    raw.say(vec![
        parse("", "insert into t values (2, 'x')"),
        bind(""),
        execute(),
        parse("bad", "create table u (a int)"),
        bind("bad"),
        execute(),
        sync(),
    ])
    .await;
    assert_eq!(raw.until_ready().await, "12CE(42501)ZI");
    assert_eq!(database.rows(), "1");
    // The same in a transaction of one's own, and in a simple query of several statements.
    raw.say(vec![query("begin; insert into t values (2, 'x')")]).await;
    assert_eq!(raw.until_ready().await, "CCZT");
    raw.say(vec![query("select 1; drop table t")]).await;
    assert_eq!(raw.until_ready().await, "E(42501)ZE");
    raw.say(vec![query("select 1")]).await;
    assert_eq!(raw.until_ready().await, "E(25P02)ZE");
    raw.say(vec![query("rollback")]).await;
    assert_eq!(raw.until_ready().await, "CZI");
    assert_eq!(database.rows(), "1");
    // Many at once, each with its own answer.
    raw.say(vec![query("select 1"), query("drop table t"), query("select 2"), query("nonsense"), query("")]).await;
    let mut heard = Vec::new();
    for _ in 0..5 {
        heard.push(raw.until_ready().await);
    }
    assert_eq!(heard, ["TDCZI", "E(42501)ZI", "TDCZI", "E(42501)ZI", "IZI"]);
    // A denied statement was never prepared, and one that was goes on.
    raw.say(vec![parse("good", "select 1"), sync(), bind("bad"), sync(), bind("good"), execute(), sync()]).await;
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(raw.until_ready().await);
    }
    assert_eq!(heard, ["1ZI", "E(26000)ZI", "2DCZI"]);
    // A function by its number, and a text that is too long.
    raw.say(vec![Message::new(b'F').u32(1598).bytes(&[0; 6])]).await;
    assert_eq!(raw.until_ready().await, "E(42501)ZI");
    raw.say(vec![query(&format!("select '{}'", "x".repeat(1 << 20)))]).await;
    assert_eq!(raw.until_ready().await, "E(42501)ZI");
    raw.say(vec![query("select '\u{e9}'"), Message::new(b'Q').bytes(b"select '\xff'\0")]).await;
    assert_eq!((raw.until_ready().await, raw.until_ready().await), ("TDCZI".into(), "E(42501)ZI".into()));
    // Rows of a copy, by the extended protocol and with a `Sync` too early, as libpq sends it.
    raw.say(vec![parse("", "copy t from stdin"), bind(""), execute(), sync()]).await;
    assert_eq!(raw.next().await.unwrap().0, '1');
    assert_eq!((raw.next().await.unwrap().0, raw.next().await.unwrap().0), ('2', 'G'));
    raw.say(vec![Message::new(b'd').bytes(b"7\tseven\n"), Message::new(b'c'), sync(), query("drop table t")]).await;
    assert_eq!((raw.until_ready().await, raw.until_ready().await), ("CZI".into(), "E(42501)ZI".into()));
    assert_eq!(database.rows(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_may_only_read_may_only_read_by_the_server_s_word_too() {
    let database = Database::start();
    database.sql("create function purge() returns int language plpgsql as $$ begin delete from t; return 1; end $$");
    let purge =
        |statements: &[StatementClass]| change(of(&database, statements), |r| r.functions = vec!["purge".into()]);
    let reader = Agent::new(purge(&[Select])).await;
    let said = reader.psql("select purge();\nset transaction_read_only = off;\nbegin read write;\n").await;
    assert!(said.contains("cannot execute DELETE in a read-only transaction"), "{said}");
    assert_eq!(said.matches("is not granted").count(), 2, "{said}");
    assert_eq!(database.rows(), "1");
    // Without that wall the call goes through.
    let writer = Agent::new(purge(&[Select, Write])).await;
    assert_eq!(writer.psql("select purge();").await, "1");
    assert_eq!(database.rows(), "0");
    let stranger = Agent::new(of(&database, &[Select, Write])).await;
    assert!(stranger.psql("select purge();").await.contains("is not granted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_another_s_is_refused() {
    let database = Database::start();
    let stranger = TestCa::new();
    let refused = |said: &str| said.contains("the database could not be reached");
    for (grant, password, want) in [
        (granted(database.address, Some(stranger.pem), &[Select]), PASSWORD, "tls_failed"),
        (Grant { host: "other.example.org".parse().unwrap(), ..of(&database, &[Select]) }, PASSWORD, "tls_failed"),
        (of(&database, &[Select]), "wrong", "session_refused: the database answered 28P01"),
        (change(of(&database, &[Select]), |r| r.user = "nobody".into()), PASSWORD, "session_refused"),
        (Grant { credential: None, ..of(&database, &[Select]) }, PASSWORD, "no_credential"),
    ] {
        let fence = Fence::of(&configured(vec![grant.clone()], password));
        let at = fence.to_name(&grant.host.to_string(), 5432).await;
        let conninfo = format!("host=127.0.0.1 port={} user=x sslmode=require", at.port());
        let (good, said) = run("psql", vec!["-X".into(), conninfo, "-c".into(), "select 1".into()], "").await;
        assert!(!good && refused(&said), "{said}");
        let outcome = fence.log.outcome(0).await;
        assert!(outcome.error.clone().unwrap().starts_with(want), "{:?}", outcome.error);
    }
    let plain = Database::with(false, DB_HOST);
    let agent = Agent::new(of(&plain, &[Select])).await;
    assert!(refused(&agent.psql("select 1").await));
    assert!(agent.fence.log.outcome(0).await.error.unwrap().starts_with("tls_failed: the database has no TLS"));
    let agent = Agent::new(granted(plain.address, None, &[Select])).await;
    assert_eq!(agent.psql("select 1").await, "1", "where the grant says so, it goes without");
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_go_as_the_server_wants_them_and_not_in_cleartext_without_tls() {
    let database = Database::start();
    for user in ["reader", "md5", "clear"] {
        let agent = Agent::new(change(of(&database, &[Select]), |rules| rules.user = user.into())).await;
        assert_eq!(agent.psql("select current_user").await, user);
        let agent =
            Agent::new(change(granted(database.address, None, &[Select]), |rules| rules.user = user.into())).await;
        let said = agent.psql("select current_user").await;
        assert_eq!(said == user, user != "clear", "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_as_the_grant_has_it() {
    let database = Database::start();
    let agent = Agent::new(of(&database, &[Select])).await;
    let (good, said) =
        agent.psql_with("options='-c statement_timeout=1234' application_name=x", "show statement_timeout").await;
    assert!(good && said == "1234ms", "{said}");
    for more in ["options='-c role=postgres'", "options='-c default_transaction_read_only=off'", "replication=database"]
    {
        let (good, said) = agent.psql_with(more, "select 1").await;
        assert!(!good && said.contains("this session is not granted"), "{more}: {said}");
    }
    for mode in ["disable", "allow", "prefer", "require", "verify-ca"] {
        let (good, said) = agent.psql_with(&format!("sslmode={mode}"), "select 1").await;
        assert!(good && said == "1", "{mode}: {said}");
    }
    let (good, said) = agent.psql_with("client_encoding=SJIS", "show client_encoding").await;
    assert!(said.contains("UTF8") || !good, "{said}");

    // TLS from the first byte, for clients that say what is inside.
    for (alpn, good) in [(&[&b"postgresql"[..]][..], true), (&[&b"h2"[..]], false), (&[], false)] {
        let tls = agent.fence.tls(agent.at, DB_HOST, alpn).await;
        let heard = match tls {
            Ok(tls) => {
                let mut raw = Raw(tls);
                raw.startup(&[]).await;
                raw.until_ready().await
            }
            Err(_) => ".".into(),
        };
        assert_eq!(heard == "RKZI", good, "{alpn:?}: {heard}");
    }
    // A later version and its extensions are talked down.
    let mut raw = Raw(TcpStream::connect(agent.at).await.unwrap());
    let first = Message::untyped().u32(wire::VERSION + 2).text("user").text("x").text("_pq_.new").text("1");
    raw.say(vec![first.bytes(&[0])]).await;
    assert_eq!(raw.until_ready().await, "vRKZI");
    // GSSAPI is declined, and then one goes on.
    let mut raw = Raw(TcpStream::connect(agent.at).await.unwrap());
    raw.say(vec![Message::untyped().u32(wire::GSSENC_REQUEST)]).await;
    assert_eq!(raw.0.read_u8().await.unwrap(), b'N');
    raw.startup(&[]).await;
    assert_eq!(raw.until_ready().await, "RKZI");
    // Something else is not taken for PostgreSQL.
    let mut stream = TcpStream::connect(agent.at).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: db.example.org\r\n\r\n").await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    let last = agent.fence.log.intents().len() - 1;
    assert_eq!(agent.fence.log.intent(last).await.reason, "protocol_unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_given_up_by_its_own_agent_and_by_nobody_else() {
    let database = Database::start();
    let agent = Agent::new(change(of(&database, &[Select]), |r| r.functions = vec!["pg_sleep".into()])).await;
    let mut raw = agent.raw(&[]).await;
    let key = loop {
        if let Some(('K', key)) = raw.next().await {
            break key;
        }
    };
    assert_eq!(raw.until_ready().await, "ZI");
    raw.say(vec![query("select pg_sleep(60)")]).await;
    let real = loop {
        let pid =
            database.sql("select pid from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'");
        if !pid.is_empty() {
            break pid;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let own = u32::from_be_bytes(key[..4].try_into().unwrap());
    assert_ne!(own.to_string(), real, "the server's own number stays with the gate");
    let wrong = [&key[..4], &[0, 0, 0, 0]].concat();
    for (key, reason) in [(wrong, "unknown_session"), (key, "grant")] {
        let before = agent.fence.log.intents().len();
        let mut other = Raw(TcpStream::connect(agent.at).await.unwrap());
        other.say(vec![Message::untyped().u32(wire::CANCEL_REQUEST).bytes(&key)]).await;
        assert_eq!(other.0.read(&mut [0; 1]).await.unwrap_or(0), 0);
        assert_eq!(agent.fence.log.intent(before).await.reason, reason);
    }
    assert_eq!(raw.until_ready().await, "TE(57014)ZI");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_does_not_go_to_the_database() {
    let database = Database::start();
    let config = configured(vec![of(&database, &[Select, Write])], PASSWORD);
    for (barriers, held) in
        [(Barriers::default(), true), (Barriers { misdirected_placeholders: false, ..Barriers::default() }, false)]
    {
        let fence = Fence::with(&config, barriers);
        let at = fence.to_name(DB_HOST, 5432).await;
        let mut raw = Raw(TcpStream::connect(at).await.unwrap());
        raw.startup(&[]).await;
        assert_eq!(raw.until_ready().await, "RKZI");
        let text = format!("select '{PLACEHOLDER}'");
        raw.say(vec![query(&text), query("select 1")]).await;
        assert_eq!(raw.until_ready().await, if held { "E(42501)ZI" } else { "TDCZI" });
        assert_eq!(raw.until_ready().await, "TDCZI", "the session goes on");
        let denied = fence.log.intents().into_iter().any(|i| i.reason == "placeholder_misdirected");
        assert_eq!(denied, held);
        // Among parameters and rows it is too late for words, so the session is cut.
        let parameter = Message::new(b'B').text("").text("").bytes(&[0, 0, 0, 1]);
        let parameter = parameter.u32(u32::try_from(PLACEHOLDER.len()).unwrap()).bytes(PLACEHOLDER.as_bytes());
        raw.say(vec![parse("", "select $1::text"), parameter.bytes(&[0, 0]), execute(), sync()]).await;
        assert_eq!(raw.until_ready().await, if held { "." } else { "12DCZI" });
        if held {
            let found = || fence.log.outcomes().into_iter().find(|o| !o.findings.is_empty());
            let session = wait(found, || "no outcome has a finding".into()).await;
            assert_eq!(session.findings, ["placeholder_misdirected"]);
        }
        let mut raw = Raw(TcpStream::connect(at).await.unwrap());
        raw.startup(&[("application_name", PLACEHOLDER)]).await;
        assert_eq!(raw.until_ready().await, if held { "E(28000)." } else { "RKZI" });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_policy_holds_for_sessions_that_are_open() {
    let database = Database::start();
    let config = configured(vec![of(&database, &[Select, Write])], PASSWORD);
    let mut no_writes = config.policy();
    no_writes.guardrails = vec![(
        "org.cedar".into(),
        "forbid (principal, action == Action::\"postgres:query\", resource) when { context.classes.contains(\"write\") };"
            .into(),
    )];
    let mut narrower = config.policy();
    narrower.grants = vec![of(&database, &[Select])];
    let mut none = config.policy();
    none.grants = Vec::new();
    for (prepared, policy, goes_on) in [
        (false, &config.policy(), true),
        (true, &config.policy(), true),
        (false, &no_writes, true),
        // The server keeps a statement that may no longer run.
        (true, &no_writes, false),
        (false, &narrower, false),
        (false, &none, false),
    ] {
        let fence = Fence::of(&config);
        let mut raw = Raw(TcpStream::connect(fence.to_name(DB_HOST, 5432).await).await.unwrap());
        raw.startup(&[]).await;
        assert_eq!(raw.until_ready().await, "RKZI");
        if prepared {
            raw.say(vec![query("prepare p as delete from t")]).await;
            assert_eq!(raw.until_ready().await, "CZI");
        }
        fence.gate.reload(policy).unwrap();
        if goes_on {
            raw.say(vec![query("select 1"), query("begin; delete from t; rollback")]).await;
            assert_eq!(raw.until_ready().await, "TDCZI");
            let allowed = policy.guardrails.is_empty();
            assert_eq!(raw.until_ready().await, if allowed { "CCCZI" } else { "E(42501)ZI" });
        } else {
            assert_eq!(raw.until_ready().await, ".");
            let cut =
                |o: &ringfence_audit::CallOutcome| o.error.as_deref().is_some_and(|why| why.starts_with("revoked"));
            wait(|| fence.log.outcomes().iter().any(cut).then_some(()), || "no outcome".into()).await;
        }
    }
    assert_eq!(database.rows(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_statements_and_their_bytes_count_against_the_budget() {
    let database = Database::start();
    let with = |text: &str| GateConfig { budget: budget(text), ..configured(vec![of(&database, &[Select])], PASSWORD) };

    // The session, two statements in one text, and one that was prepared.
    let fence = Fence::counting(&with("[budget]\nrequests_per_month = 4\n"), &ledger());
    let at = fence.to_name(DB_HOST, 5432).await;
    let mut raw = Raw(TcpStream::connect(at).await.unwrap());
    raw.startup(&[]).await;
    assert_eq!(raw.until_ready().await, "RKZI");
    raw.say(vec![query("select 1; select 2"), parse("", "select 1"), bind(""), execute(), sync()]).await;
    assert_eq!(raw.until_ready().await, "TDCTDCZI");
    assert_eq!(raw.until_ready().await, "12DCZI");
    raw.say(vec![query("select 1"), bind(""), execute(), sync()]).await;
    assert_eq!(raw.until_ready().await, "E(42501)ZI");
    assert_eq!(raw.until_ready().await, "E(26000)ZI", "a text that is asked takes the place of the unnamed statement");
    let mut second = Raw(TcpStream::connect(at).await.unwrap());
    second.startup(&[]).await;
    assert_eq!(second.until_ready().await, "E(28000).");
    let spent = fence.log.intents().iter().filter(|i| i.reason == "budget_exhausted").count();
    assert!(spent >= 2, "{spent}");

    let fence = Fence::counting(&with("[budget]\nbytes_per_month = 4096\n"), &ledger());
    let mut raw = Raw(TcpStream::connect(fence.to_name(DB_HOST, 5432).await).await.unwrap());
    raw.startup(&[]).await;
    assert_eq!(raw.until_ready().await, "RKZI");
    raw.say(vec![query("select repeat('x', 1000) from generate_series(1, 1000)")]).await;
    let heard = raw.until_ready().await;
    assert!(heard.ends_with('.') && heard.len() < 10, "{heard}");
    let cut =
        |o: &ringfence_audit::CallOutcome| o.error.as_deref().is_some_and(|why| why.starts_with("budget_exhausted"));
    wait(|| fence.log.outcomes().iter().any(cut).then_some(()), || "no outcome".into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_session_stays_one_that_may_only_read() {
    let database = Database::start();
    let agent = Agent::new(of(&database, &[Select])).await;
    for text in [
        "reset transaction_read_only",
        "set transaction read write",
        "set transaction_read_only = off",
        "set default_transaction_read_only = off",
        "set session characteristics as transaction read write",
        "update pg_settings set setting = 'off' where name = 'default_transaction_read_only'",
    ] {
        let mut raw = agent.raw(&[]).await;
        assert_eq!(raw.until_ready().await, "RKZI");
        raw.say(vec![query(&format!("begin; {text}"))]).await;
        assert_eq!(raw.until_ready().await, "E(42501)ZI", "{text}");
    }
    for text in ["reset all", "discard all", "reset default_transaction_read_only"] {
        let mut raw = agent.raw(&[]).await;
        assert_eq!(raw.until_ready().await, "RKZI");
        raw.say(vec![query(text), query("show transaction_read_only")]).await;
        assert_eq!(raw.until_ready().await, "CZI", "{text}");
        let rows = raw.next().await.map(|_| raw.next());
        let shown = rows.unwrap().await.unwrap();
        assert!(shown.0 == 'D' && shown.1.ends_with(b"on"), "{text}: {shown:?}");
    }
    // What it is for: a function that the grant names, but that writes.
    database
        .sql("create function hidden() returns int language sql volatile as 'insert into t values (8) returning id'");
    let agent = Agent::new(change(of(&database, &[Select]), |rules| rules.functions = vec!["hidden".into()])).await;
    assert!(agent.psql("select hidden()").await.contains("read-only transaction"));
    let agent =
        Agent::new(change(of(&database, &[Select, Write]), |rules| rules.functions = vec!["hidden".into()])).await;
    assert_eq!(agent.psql("select hidden()").await, "8", "without it, it does write");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_view_by_which_settings_change_is_not_written() {
    let database = Database::start();
    // With a setting of its own, what reads as a string here would end in the middle there.
    let writer = Agent::new(of(&database, &[Ddl, Select, Write])).await;
    let off = "update pg_settings set setting = 'off' where name = 'standard_conforming_strings'";
    for text in [off, "create temp view v as select * from pg_settings"] {
        assert!(writer.psql(text).await.contains("is not granted"), "{text}");
    }
    let mut owner = owner_of(&database).await;
    owner.rows(off).await;
    owner.rows(r"select '\', ' ; insert into t values (77); -- '").await;
    assert_eq!(database.sql("delete from t where id = 77 returning id"), "77", "past the gate it does");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_that_cannot_be_recorded() {
    let database = Database::start();
    let agent = Agent::new(of(&database, &[Select, Write])).await;
    let mut raw = agent.raw(&[]).await;
    assert_eq!(raw.until_ready().await, "RKZI");
    raw.say(vec![parse("p", "delete from t"), sync()]).await;
    assert_eq!(raw.until_ready().await, "1ZI");
    agent.fence.log.broken.store(true, std::sync::atomic::Ordering::Relaxed);
    raw.say(vec![query("delete from t"), bind("p"), execute(), sync()]).await;
    assert_eq!((raw.until_ready().await, raw.until_ready().await), ("E(42501)ZI".into(), "2E(42501)ZI".into()));
    let mut second = agent.raw(&[]).await;
    assert_eq!(second.until_ready().await, "E(28000).");
    assert_eq!(database.rows(), "1");
    agent.fence.log.broken.store(false, std::sync::atomic::Ordering::Relaxed);
    raw.say(vec![bind("p"), execute(), sync()]).await;
    assert_eq!(raw.until_ready().await, "2CZI");
    assert_eq!(database.rows(), "0");
}

/// A server that says, message by message, what a test has it say, and then nothing. It answers what it heard.
async fn scripted(script: Vec<Vec<u8>>) -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut heard, mut buffer) = (Vec::new(), vec![0; 4096]);
        for said in script {
            let Ok(count @ 1..) = stream.read(&mut buffer).await else { break };
            heard.extend_from_slice(&buffer[..count]);
            if stream.write_all(&said).await.is_err() {
                break;
            }
        }
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            heard.extend_from_slice(&buffer[..count]);
        }
        heard
    });
    (address, heard)
}

fn asks(number: u32, content: &[u8]) -> Vec<u8> {
    Message::new(b'R').u32(number).bytes(content).finish().unwrap()
}

/// That the agent is who it says, and what is settled.
fn welcomes() -> Vec<u8> {
    [asks(0, b""), reports("client_encoding", "UTF8"), reports("standard_conforming_strings", "on")].concat()
}

fn reports(name: &str, value: &str) -> Vec<u8> {
    Message::new(b'S').text(name).text(value).finish().unwrap()
}

#[tokio::test]
async fn a_server_that_does_not_say_what_is_settled_gets_no_session() {
    let [utf8, sjis] = ["UTF8", "SJIS"].map(|encoding| reports("client_encoding", encoding));
    let [on, off] = ["on", "off"].map(|value| reports("standard_conforming_strings", value));
    let writable = reports("default_transaction_read_only", "off");
    for (said, opened) in [
        ([utf8.clone(), on.clone()].concat(), true),
        ([utf8.clone(), off].concat(), false),
        ([sjis, on.clone()].concat(), false),
        ([utf8.clone(), on.clone(), writable].concat(), false),
        (utf8, false),
        (on, false),
        (Vec::new(), false),
    ] {
        let (address, _) = scripted(vec![[asks(0, b""), said, ready()].concat()]).await;
        let agent = Agent::new(granted(address, None, &[Select])).await;
        let mut raw = agent.raw(&[]).await;
        assert_eq!(raw.until_ready().await, if opened { "RZI" } else { "E(28000)." });
        if !opened {
            assert!(agent.fence.log.outcome(0).await.error.unwrap().starts_with("unsettled"));
        }
    }
}

fn ready() -> Vec<u8> {
    Message::new(b'Z').bytes(b"I").finish().unwrap()
}

#[tokio::test]
async fn a_server_that_does_not_prove_itself_gets_no_session() {
    let scram = || asks(10, b"SCRAM-SHA-256\0\0");
    // A challenge for another session's nonce, for one made up from ours is not possible without hearing it.
    for (script, want) in [
        (
            vec![scram(), asks(11, b"r=other,s=AAAA,i=4096")],
            "auth_failed: the server's challenge is not for this session",
        ),
        (vec![scram(), [welcomes(), ready()].concat()], "auth_failed: the database did not show"),
        (vec![scram(), asks(12, b"v=AAAA")], "auth_failed: the server does not know the password itself"),
        (vec![scram(), scram()], "auth_failed: the database asks twice"),
        (vec![asks(10, b"SCRAM-SHA-1\0\0")], "auth_failed: the database offers no mechanism"),
        (vec![asks(3, b"")], "auth_failed: the database asks for the password in cleartext"),
        (vec![asks(7, b"")], "auth_failed: the database asks for what the gate cannot show"),
        (vec![ready()], "auth_failed: the database asks for what the gate cannot show"),
        (vec![b"R\xff\xff\xff\xff".to_vec()], "upstream_broke: a message has an impossible length"),
        (vec![b"R\x7f\xff\xff\xff".to_vec()], "upstream_broke: a message before the session is too long"),
        (vec![[asks(0, b""), b"D\0\0\0\x04".to_vec()].concat()], "upstream_broke: the database does not become ready"),
    ] {
        let (address, heard) = scripted(script).await;
        let agent = Agent::new(granted(address, None, &[Select])).await;
        let mut raw = agent.raw(&[]).await;
        assert_eq!(raw.until_ready().await, "E(28000).", "{want}");
        let outcome = agent.fence.log.outcome(0).await;
        assert!(outcome.error.clone().unwrap().starts_with(want), "{:?}, not {want}", outcome.error);
        let heard = heard.await.unwrap();
        assert!(!heard.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes()), "{want}");
    }
}

#[tokio::test]
async fn a_wrong_signature_of_the_server_is_refused_after_a_right_exchange() {
    // The server takes the nonce that it hears, so its challenge is right, but it does not know the password.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap().0;
        let mut buffer = vec![0; 4096];
        assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
        stream.write_all(&asks(10, b"SCRAM-SHA-256\0\0")).await.unwrap();
        let count = stream.read(&mut buffer).await.unwrap();
        let heard = String::from_utf8_lossy(&buffer[..count]).into_owned();
        let nonce = heard.split("r=").nth(1).unwrap().to_owned();
        stream.write_all(&asks(11, format!("r={nonce}x,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096").as_bytes())).await.unwrap();
        assert_ne!(stream.read(&mut buffer).await.unwrap(), 0);
        let forged = format!("v={}=", "A".repeat(43));
        stream.write_all(&[asks(12, forged.as_bytes()), asks(0, b""), ready()].concat()).await.unwrap();
        let _ = stream.read(&mut buffer).await;
    });
    let agent = Agent::new(granted(address, None, &[Select])).await;
    let mut raw = agent.raw(&[]).await;
    assert_eq!(raw.until_ready().await, "E(28000).");
    let why = agent.fence.log.outcome(0).await.error.unwrap();
    assert_eq!(why, "auth_failed: the server does not know the password itself");
}

#[tokio::test]
async fn a_session_ends_when_the_server_leaves_what_was_settled_or_the_protocol() {
    let open = || [welcomes(), ready()].concat();
    for (said, want) in [
        (Message::new(b'S').text("standard_conforming_strings").text("off"), "unsettled"),
        (Message::new(b'S').text("client_encoding").text("SJIS"), "unsettled"),
        (Message::new(b'S').text("default_transaction_read_only").text("off"), "unsettled"),
        (Message::new(b'W').bytes(&[0; 3]), "protocol"),
        (Message::new(b'R').u32(3), "protocol"),
        (Message::new(b'?'), "protocol"),
    ] {
        let (address, _) = scripted(vec![open(), said.finish().unwrap()]).await;
        let agent = Agent::new(granted(address, None, &[Select])).await;
        let mut raw = agent.raw(&[]).await;
        assert_eq!(raw.until_ready().await, "RZI");
        raw.say(vec![query("select 1")]).await;
        assert_eq!(raw.until_ready().await, ".");
        let session = agent.fence.log.outcomes().into_iter().find_map(|outcome| outcome.error);
        let why = match session {
            Some(why) => why,
            None => agent.fence.log.outcome(1).await.error.unwrap_or_default(),
        };
        assert!(why.starts_with(want), "{why}");
    }
}

#[tokio::test]
async fn what_is_denied_does_not_reach_the_server_and_its_word_for_it_is_not_shown() {
    let open = [welcomes(), ready()].concat();
    let failed = [wire::error("ERROR", "42601", "syntax error at or near RINGFENCE", None), ready()].concat();
    let (address, heard) = scripted(vec![open, failed]).await;
    let agent = Agent::new(granted(address, None, &[Select])).await;
    let mut raw = agent.raw(&[("application_name", "app")]).await;
    assert_eq!(raw.until_ready().await, "RZI");
    raw.say(vec![query("delete from a_table_of_ours")]).await;
    assert_eq!(raw.until_ready().await, "E(42501)ZI");
    raw.say(vec![Message::new(b'X')]).await;
    let heard = String::from_utf8_lossy(&heard.await.unwrap()).into_owned();
    assert!(heard.contains("user\0reader\0database\0postgres\0"), "{heard:?}");
    assert!(heard.contains("default_transaction_read_only\0on\0"), "{heard:?}");
    assert!(!heard.contains("a_table_of_ours"), "{heard:?}");
}

#[tokio::test]
async fn bytes_that_are_no_messages_end_a_session() {
    for bytes in [
        &b"Q\xff\xff\xff\xff"[..],
        b"Q\0\0\0\x08a\0b\0",
        b"Q\0\0\0\x05a",
        b"P\0\0\0\x05a",
        b"B\0\0\0\x05a",
        b"E\x7f\xff\xff\xff",
        b"p\0\0\0\x04",
        b"?\0\0\0\x04",
        b"S\0\0\0\x05a",
    ] {
        let (address, _) = scripted(vec![[welcomes(), ready()].concat()]).await;
        let agent = Agent::new(granted(address, None, &[Select])).await;
        let mut raw = agent.raw(&[]).await;
        assert_eq!(raw.until_ready().await, "RZI");
        raw.0.write_all(bytes).await.unwrap();
        assert_eq!(raw.until_ready().await, ".", "{bytes:?}");
        assert!(agent.fence.log.outcome(0).await.error.unwrap().starts_with("protocol"), "{bytes:?}");
    }
}

/// The owner of a database, past the gate.
async fn owner_of(database: &Database) -> Raw<tokio::net::UnixStream> {
    let mut owner = Raw(tokio::net::UnixStream::connect(database.socket()).await.unwrap());
    let first =
        Message::untyped().u32(wire::VERSION).text("user").text("postgres").text("client_encoding").text("UTF8");
    owner.say(vec![first.bytes(&[0])]).await;
    owner.until_ready().await;
    owner
}

/// Parts of texts in which a change hides, or seems to.
const PARTS: &[&str] = &[
    "'",
    "''",
    "\"",
    "$$",
    "$a$",
    "/*",
    "*/",
    "--",
    "\n",
    "\r",
    "E'",
    "e'\\'",
    "\\'",
    "\\",
    "U&'",
    "N'",
    "B'1'",
    "1",
    "1.5",
    "1e",
    ";",
    "; ",
    ";;",
    "select 1",
    "select 'a'",
    "select 1 as x",
    "select $$ ; $$",
    "select E'\\''",
    "select \"t\".id from t",
    "delete from t",
    "insert into t values (7)",
    "update t set id = 8",
    "truncate t",
    "drop table t",
    "select evil()",
    "select \"evil\" ( )",
    "select public . evil()",
    "select (1).evil",
    "select (select 1) . evil",
    "select (array[1])[1].\"evil\"",
    ".evil",
    "select * from evil() x",
    "select * from evil() as x (a)",
    "with x as (delete from t returning *) select * from x",
    "explain analyze delete from t",
    "select * into u from t",
    "create table u (a int)",
    "do $$ begin delete from t; end $$",
    "prepare p as delete from t; execute p",
    "declare c cursor with hold for select evil()",
    "copy (delete from t returning *) to stdout",
    "select nextval('s')",
    "select distinct on (id) evil() from t",
    "select 1 operator(pg_catalog.+) evil()",
    "select set_config('a.b', 'c', false)",
    "select case when true then evil() end",
    "select array[evil()]",
    "select - evil()",
    "values (evil())",
    "table t",
    "begin",
    "commit",
    "rollback",
    "savepoint a",
    " ",
    "\u{a0}",
    "\u{e9}",
    "x",
    "as",
    "evil",
    "(",
    ")",
    "()",
    ",",
    "a$b$",
    "$1",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_text_that_seems_to_read_changes_anything() {
    use proptest::strategy::{Strategy, ValueTree};
    use ringfence_gate::postgres::classify;

    let database = Database::start();
    database.sql(
        "create function evil() returns int language plpgsql as $$ begin insert into t values (9); return 1; end $$;
         create function evil(int) returns int language sql as 'insert into t values (9); select 1'",
    );
    let state = "select (select string_agg(t::text, ',' order by id) from t), (select count(*) from pg_class), \
                 (select last_value from s)";
    let mut owner = owner_of(&database).await;
    let before = owner.rows(state).await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let texts = proptest::collection::vec(proptest::sample::select(PARTS), 1..7);
    let (mut read, mut ran, mut changed) = (0, 0, 0);
    for _ in 0..20_000 {
        let text = texts.new_tree(&mut runner).unwrap().current().concat();
        let summary = classify::understand(&text);
        let harmless = summary.functions.is_empty()
            && summary.classes.iter().all(|class| ["select", "session", "transaction"].contains(class));
        if !harmless && read > ran / 2 {
            // Enough of them show that the texts do change what they are about.
            continue;
        }
        owner.say(vec![query(&text)]).await;
        let heard = owner.until_ready().await;
        ran += 1;
        owner.say(vec![query("rollback"), query("deallocate all"), query("close all")]).await;
        for _ in 0..3 {
            owner.until_ready().await;
        }
        let after = owner.rows(state).await;
        if harmless {
            read += 1;
            assert_eq!(after, before, "{text:?} is {summary:?}, and the server answered {heard}");
        } else if after != before {
            changed += 1;
            let repair = "drop table if exists u; create table if not exists t (id int primary key, name text); \
                          truncate t; insert into t values (1, 'one'); select setval('s', 1, false)";
            owner.say(vec![query(repair)]).await;
            owner.until_ready().await;
            assert_eq!(owner.rows(state).await, before, "{text:?} is undone");
        }
    }
    assert!(read > 1500 && changed > 100, "{read} read, {changed} of {ran} changed something");
}

#[tokio::test]
async fn statements_that_are_held_are_bounded_in_all() {
    let database = Database::start();
    let agent = Agent::new(of(&database, &[Select])).await;
    let mut sessions = Vec::new();
    for _ in 0..66 {
        let mut session = agent.raw(&[]).await;
        assert!(session.until_ready().await.ends_with("ZI"));
        sessions.push(session);
    }
    let long = format!("select 1 -- {}", "x".repeat((1 << 20) - 100));
    let whole = query(&long).finish().unwrap();
    for session in &mut sessions {
        session.0.write_all(&whole[..100]).await.unwrap();
    }
    let held = || agent.fence.gate.held_bytes();
    wait(|| (held() == MAX_HELD_BYTES).then_some(()), || format!("{} are held", held())).await;
    tokio::time::sleep(PATIENCE + Duration::from_secs(1)).await;
    // Those that found no room are refused once they are through; the sessions go on.
    let refused = || agent.fence.log.intents().iter().filter(|i| i.reason == "too_many_bodies").count();
    for session in &mut sessions {
        session.0.write_all(&whole[100..]).await.unwrap();
    }
    let mut heard = Vec::new();
    for session in &mut sessions {
        heard.push(session.until_ready().await);
    }
    assert_eq!((refused(), held()), (2, 0));
    assert_eq!(heard.iter().filter(|heard| heard.starts_with("E(")).count(), 2, "{heard:?}");
    assert!(!sessions[0].rows("select 1").await.is_empty());
}
