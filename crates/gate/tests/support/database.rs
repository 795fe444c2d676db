//! A real PostgreSQL server on loopback, with TLS by the test's own authority.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ringfence_testkit::postgres::{self, Postgres};

use super::TestCa;

pub const DB_HOST: &str = "db.example.org";
pub const PASSWORD: &str = "real-password-of-the-database";

pub struct Database {
    pub address: SocketAddr,
    pub ca: TestCa,
    // Ends before its folder does.
    server: Postgres,
    _folder: tempfile::TempDir,
}

impl Database {
    /// A server with roles `reader` (its password by SCRAM), `md5` and `clear` (by those), and a table `t` with a row.
    pub fn start() -> Self {
        Self::with(true, DB_HOST)
    }

    pub fn with(tls: bool, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = TestCa::new();
        let (certificate, key) = ca.leaf(name);
        let key = key.serialize_pem();
        let server = Postgres::start(folder.path(), tls.then_some([&certificate, &key])).unwrap();
        let database = Self { address: server.address(), ca, server, _folder: folder };
        database.sql(&format!(
            "create role reader login password '{PASSWORD}';
             create role clear login password '{PASSWORD}';
             set password_encryption = 'md5'; create role md5 login password '{PASSWORD}';
             create table t (id int primary key, name text);
             insert into t values (1, 'one');
             create sequence s;
             grant all on t, s to public; grant all on schema public to public;"
        ));
        database
    }

    /// What the database's owner gets, past the gate.
    pub fn sql(&self, sql: &str) -> String {
        self.server.sql("postgres", sql).unwrap()
    }

    /// A socket to the server for its owner, past the gate.
    pub fn socket(&self) -> PathBuf {
        self.server.socket()
    }

    pub fn rows(&self) -> String {
        self.sql("select count(*) from t")
    }
}

/// A client's command line, and what it hears.
pub async fn run(program: &str, args: Vec<String>, input: &str) -> (bool, String) {
    let (path, input) = (postgres::client(program).unwrap(), input.to_owned());
    tokio::task::spawn_blocking(move || {
        let mut child = Command::new(path)
            .args(&args)
            .env("LC_ALL", "C")
            .env_remove("PGPASSWORD")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
    })
    .await
    .unwrap()
}
