//! PostgreSQL as this machine has it, a server of its own for one run.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who gets in over TCP, and by what: roles `md5` and `clear` by those, all others by SCRAM. The owner has the socket.
const ACCESS: &str = "local all all trust\nhost all md5 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password\n\
                      host all all 127.0.0.1/32 scram-sha-256\n";

/// A server on loopback. It ends when this is dropped, or when whoever started it ends.
pub struct Postgres {
    address: SocketAddr,
    folder: PathBuf,
    server: Child,
}

impl Postgres {
    /// Starts one whose files are in `folder`, which becomes its own. With `tls`, a certificate and its key as PEM, it speaks
    /// TLS.
    ///
    /// # Errors
    /// In words, what is missing or failed.
    pub fn start(folder: &Path, tls: Option<[&str; 2]>) -> Result<Self, String> {
        let programs = programs()?;
        let owner = owner()?;
        let failed = |what: &'static str| move |e: std::io::Error| format!("cannot {what}: {e}");
        let own = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?;
            owner.map_or(Ok(()), |(user, group)| chown(path, Some(user), Some(group)))
        };
        let data = folder.join("data");
        std::fs::create_dir(&data).map_err(failed("make a folder for PostgreSQL"))?;
        own(folder, 0o755).and_then(|()| own(&data, 0o700)).map_err(failed("give a folder to PostgreSQL"))?;
        let made = as_owner(owner, &programs.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale", "--username=postgres", "-D"])
            .arg(&data)
            .output();
        done(&made.map_err(failed("start initdb"))?)?;
        let [certificate, key] = tls.unwrap_or_default();
        for (name, text) in [("pg_hba.conf", ACCESS), ("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            std::fs::write(&path, text).and_then(|()| own(&path, 0o600)).map_err(failed("write for PostgreSQL"))?;
        }
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(failed("find a port"))?;
        let server = as_owner(owner, &programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &address.port().to_string(), "-h", "127.0.0.1", "-F", "-c", "max_connections=100", "-k"])
            .arg(folder)
            .args(["-c", if tls.is_some() { "ssl=on" } else { "ssl=off" }])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let server = server.map_err(failed("start PostgreSQL"))?;
        let postgres = Self { address, folder: folder.to_owned(), server };
        let started = Instant::now();
        while let Err(why) = postgres.sql("postgres", "select 1") {
            if started.elapsed() > PATIENCE {
                return Err(format!("PostgreSQL does not come up: {why}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(postgres)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its socket, for its owner.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join(format!(".s.PGSQL.{}", self.address.port()))
    }

    /// What its owner gets for a text of SQL in a database.
    ///
    /// # Errors
    /// What `psql` says.
    pub fn sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let output = Command::new(client("psql")?)
            .args(["-X", "-At", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-h"])
            .arg(&self.folder)
            .args(["-p", &self.address.port().to_string(), "-c", sql])
            .output();
        done(&output.map_err(|e| format!("cannot start psql: {e}"))?)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let stop = || {
            let mut command = as_owner(owner()?, &programs()?.join("pg_ctl"));
            command.args(["stop", "-m", "immediate", "-s", "-D"]).arg(self.folder.join("data"));
            command.status().map_err(|e| e.to_string())
        };
        if !stop().is_ok_and(|status| status.success()) {
            let _ = self.server.kill();
        }
        let _ = self.server.wait();
    }
}

/// A client's program: the one that came with the server, or else the one that is found.
///
/// # Errors
/// If there is no server.
pub fn client(program: &str) -> Result<PathBuf, String> {
    let beside = programs()?.join(program);
    Ok(if beside.exists() { beside } else { program.into() })
}

/// Where the newest server is that Debian's package brought.
fn programs() -> Result<PathBuf, String> {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let servers = installed.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    let version = |folder: &PathBuf| {
        let name = folder.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        name.and_then(|name| name.parse::<u32>().ok())
    };
    let newest = servers.filter(|folder| folder.join("initdb").exists()).max_by_key(version);
    newest.ok_or_else(|| "there is no PostgreSQL server: run `tools/setup --tests`".into())
}

/// User and group of the server, where this is root: as root it does not run.
fn owner() -> Result<Option<(u32, u32)>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let id = |flag: &str| {
        let output =
            Command::new("id").args([flag, "postgres"]).output().map_err(|e| format!("cannot start id: {e}"))?;
        done(&output)?.parse::<u32>().map_err(|_| "there is no user `postgres`".to_owned())
    };
    Ok(Some((id("-u")?, id("-g")?)))
}

/// A program that runs as the owner, and ends with whoever started it, however that ends.
fn as_owner(owner: Option<(u32, u32)>, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Some((user, group)) = owner {
        command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()]);
    }
    command.args(["--pdeathsig", "QUIT"]).arg(program).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    command
}

fn done(output: &Output) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{}{}", text(&output.stdout), text(&output.stderr)))
}
