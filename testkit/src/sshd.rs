//! OpenSSH's server as this machine has it, one of its own for one run, with repositories behind it.
//!
//! # Source
//! sshd_config(5), sshd(8) on authorized keys.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// The server's program, which wants to be called by its whole path.
const PROGRAM: &str = "/usr/sbin/sshd";

/// A server on loopback. It ends when this is dropped, or when whoever started it ends.
///
/// Whoever has its key gets a shell in the folder of the repositories, so that nothing but the gate holds an agent back.
pub struct Sshd {
    address: SocketAddr,
    folder: PathBuf,
    server: Child,
}

impl Sshd {
    /// Starts one whose files are in `folder`. Lines of `more` go into its configuration first.
    ///
    /// # Errors
    /// In words, what is missing or failed.
    pub fn start(folder: &Path, more: &str) -> Result<Self, String> {
        if !Path::new(PROGRAM).exists() {
            return Err("there is no OpenSSH server: run `tools/setup --tests`".into());
        }
        let failed = |what: &'static str| move |e: std::io::Error| format!("cannot {what}: {e}");
        let repositories = folder.join("repositories");
        fs::create_dir_all(&repositories).map_err(failed("make a folder for repositories"))?;
        // Privileges are given up into it.
        fs::create_dir_all("/run/sshd").map_err(failed("make /run/sshd"))?;
        for (name, kind) in [("host_ed25519", "ed25519"), ("host_ecdsa", "ecdsa"), ("client", "ed25519")] {
            // Some tests have made it, to have it signed.
            if !folder.join(name).exists() {
                key(&folder.join(name), kind)?;
            }
        }
        let public = fs::read_to_string(folder.join("client.pub")).map_err(failed("read a key"))?;
        let inside = format!("cd {} && eval \\\"$SSH_ORIGINAL_COMMAND\\\"", repositories.display());
        let authorised = folder.join("authorized_keys");
        fs::write(&authorised, format!("command=\"{inside}\" {public}")).map_err(failed("write for sshd"))?;
        fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).map_err(failed("open a folder"))?;
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(failed("find a port"))?;
        let shown = folder.display();
        let text = format!(
            "{more}\nPort {}\nListenAddress 127.0.0.1\nHostKey {shown}/host_ed25519\nHostKey {shown}/host_ecdsa\n\
             AuthorizedKeysFile {shown}/authorized_keys\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin yes\nAcceptEnv GIT_PROTOCOL\nPidFile none\nMaxStartups 100\nSubsystem sftp internal-sftp\n",
            address.port()
        );
        let file = folder.join("sshd_config");
        // Servers since 9.8 shut out addresses that fail often; those before do not know the word.
        for penalties in ["PerSourcePenalties no\n", ""] {
            fs::write(&file, format!("{text}{penalties}")).map_err(failed("write for sshd"))?;
            let good = Command::new(PROGRAM).arg("-t").arg("-f").arg(&file).stderr(Stdio::null()).status();
            if good.is_ok_and(|status| status.success()) {
                break;
            }
        }
        let log = fs::File::create(folder.join("sshd.log")).map_err(failed("make a log"))?;
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", PROGRAM, "-D", "-e", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let server = server.map_err(failed("start sshd"))?;
        let sshd = Self { address, folder: folder.to_owned(), server };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            if started.elapsed() > PATIENCE {
                return Err(format!("sshd does not come up: {}", sshd.log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(sshd)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it says of itself.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("sshd.log")).unwrap_or_default()
    }

    /// A key of the host's as `known_hosts` has it, by its kind, `ed25519` or `ecdsa`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn host_key(&self, kind: &str) -> Result<String, String> {
        let text = fs::read_to_string(self.folder.join(format!("host_{kind}.pub"))).map_err(|e| e.to_string())?;
        Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
    }

    /// The private key that it lets in.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn client_key(&self) -> Result<String, String> {
        fs::read_to_string(self.folder.join("client")).map_err(|e| e.to_string())
    }

    /// Makes a repository with one commit on `main`, and says where it is.
    ///
    /// # Errors
    /// What git says.
    pub fn repository(&self, name: &str) -> Result<PathBuf, String> {
        let path = self.folder.join("repositories").join(name);
        let seed = self.folder.join("seed");
        let git = |folder: &Path, arguments: &[&str]| {
            let output = git().arg("-C").arg(folder).args(arguments).output().map_err(|e| format!("no git: {e}"))?;
            if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
        };
        fs::create_dir_all(&path).and_then(|()| fs::create_dir_all(&seed)).map_err(|e| e.to_string())?;
        git(&path, &["init", "-q", "--bare", "-b", "main"])?;
        fs::write(seed.join("README"), format!("this is {name}\n")).map_err(|e| e.to_string())?;
        git(&seed, &["init", "-q", "-b", "main"])?;
        git(&seed, &["add", "README"])?;
        git(&seed, &["commit", "-q", "--allow-empty", "-m", "first"])?;
        git(&seed, &["push", "-q", &path.display().to_string(), "main"])?;
        Ok(path)
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// Git, as nobody in particular.
#[must_use]
pub fn git() -> Command {
    let mut command = Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_AUTHOR_NAME", "a")
        .env("GIT_AUTHOR_EMAIL", "a@example.org")
        .env("GIT_COMMITTER_NAME", "a")
        .env("GIT_COMMITTER_EMAIL", "a@example.org")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Makes a key of a kind, and its public half beside it.
///
/// # Errors
/// What `ssh-keygen` says.
pub fn key(path: &Path, kind: &str) -> Result<(), String> {
    let made = Command::new("ssh-keygen").args(["-q", "-t", kind, "-N", "", "-C", "test", "-f"]).arg(path).output();
    let made = made.map_err(|e| format!("cannot start ssh-keygen: {e}"))?;
    if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
}
