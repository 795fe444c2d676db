//! A real PostgreSQL server on loopback, with TLS by the test's own authority.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::TestCa;

pub const DB_HOST: &str = "db.example.org";
pub const PASSWORD: &str = "real-password-of-the-database";

pub struct Database {
    pub address: SocketAddr,
    pub ca: TestCa,
    folder: tempfile::TempDir,
    server: Child,
}

/// The newest server that Debian's package brought.
fn programs() -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|folder| folder.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("no PostgreSQL server: run tools/setup --tests")
}

/// PostgreSQL does not run as root.
fn owner() -> Option<(u32, u32)> {
    let id = |flag: &str, user: &[&str]| {
        let out = Command::new("id").arg(flag).args(user).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().parse::<u32>().unwrap()
    };
    (id("-u", &[]) == 0).then(|| (id("-u", &["postgres"]), id("-g", &["postgres"])))
}

fn as_owner(program: &Path) -> Command {
    // The server ends with the test, however that ends.
    let mut command = Command::new("setpriv");
    if let Some((user, group)) = owner() {
        command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
    }
    command.args(["--pdeathsig", "QUIT"]).arg(program).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn done(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

impl Database {
    /// A server with roles `reader` (its password by SCRAM), `md5` and `clear` (by those), and a table `t` with a row.
    pub fn start() -> Self {
        Self::with("on", DB_HOST)
    }

    pub fn with(ssl: &str, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let own = |path: &Path| {
            if let Some((user, group)) = owner() {
                chown(path, Some(user), Some(group)).unwrap();
            }
        };
        own(folder.path());
        own(&data);
        let programs = programs();
        let initdb = as_owner(&programs.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale", "--username=postgres", "-D"])
            .arg(&data)
            .output()
            .unwrap();
        done(&initdb);
        let ca = TestCa::new();
        let (certificate, key) = ca.leaf(name);
        for (file, text) in [
            ("server.crt", certificate),
            ("server.key", key.serialize_pem()),
            (
                "pg_hba.conf",
                "local all all trust\nhost all md5 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password\n\
                 host all all 127.0.0.1/32 scram-sha-256\n"
                    .into(),
            ),
        ] {
            let path = data.join(file);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            own(&path);
        }
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = as_owner(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &address.port().to_string(), "-k"])
            .arg(folder.path())
            .args(["-h", "127.0.0.1", "-F", "-c", &format!("ssl={ssl}"), "-c", "max_connections=30"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let database = Self { address, ca, folder, server };
        let started = Instant::now();
        while !database.owner_psql("select 1").status.success() {
            assert!(started.elapsed() < Duration::from_secs(60), "PostgreSQL does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
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

    fn owner_psql(&self, sql: &str) -> Output {
        let mut command = Command::new("psql");
        command.args(["-X", "-At", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]);
        command.arg(self.folder.path()).args(["-p", &self.address.port().to_string(), "-c", sql]).output().unwrap()
    }

    /// What the database's owner gets, past the gate.
    pub fn sql(&self, sql: &str) -> String {
        done(&self.owner_psql(sql))
    }

    /// A socket to the server for its owner, past the gate.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join(format!(".s.PGSQL.{}", self.address.port()))
    }

    pub fn rows(&self) -> String {
        self.sql("select count(*) from t")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let stop = as_owner(&programs().join("pg_ctl"))
            .args(["stop", "-m", "immediate", "-s", "-D"])
            .arg(self.folder.path().join("data"))
            .status();
        if !stop.is_ok_and(|status| status.success()) {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
    }
}

/// A client's command line, and what it hears.
pub async fn run(program: &str, args: Vec<String>, input: &str) -> (bool, String) {
    let (path, input) = (client(program), input.to_owned());
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

fn client(program: &str) -> PathBuf {
    let beside = programs().join(program);
    if beside.exists() { beside } else { program.into() }
}
