//! Finding the supervisor, and starting one where there is none.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ringfence_fleet::Client;
use ringfence_model::{Fault, Report};

use crate::env;
use crate::paths::Paths;

/// How long a supervisor may take to come up.
const PATIENCE: Duration = Duration::from_secs(15);

/// A client of the supervisor of these folders, which must run.
pub fn client() -> Client {
    Client::at(&Paths::from_env().socket())
}

/// A client of the supervisor of these folders; one is started where none runs.
///
/// # Errors
/// A report if it does not come up.
pub async fn client_or_start() -> Result<Client, Report> {
    let paths = Paths::from_env();
    let client = Client::at(&paths.socket());
    if client.is_there().await {
        return Ok(client);
    }
    let failed = |what: &str, why: &std::io::Error| {
        Report::new("supervisor.start", Fault::Host, format!("cannot start a supervisor: cannot {what}"))
            .because(why)
            .hint(match why.kind() {
                ErrorKind::PermissionDenied => "run as root",
                ErrorKind::StorageFull => "free some space: `df -h`",
                _ => "set RINGFENCE_STATE to a folder that can be written, or make this one so",
            })
    };
    std::fs::create_dir_all(&paths.state).map_err(|e| failed(&format!("create `{}`", paths.state.display()), &e))?;
    let log_path = paths.supervisor_log();
    let log = File::create(&log_path).map_err(|e| failed(&format!("write `{}`", log_path.display()), &e))?;
    let program = std::env::current_exe().map_err(|e| failed("find our own program", &e))?;
    let mut command = Command::new(program);
    command
        .args(["serve", "--on-demand"])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        // It outlives this command: it gets what it needs of the environment, and no secrets.
        .env_clear()
        .envs(std::env::vars().filter(|(name, _)| {
            ["PATH", "HOME", "LANG", "RUST_BACKTRACE"].contains(&name.as_str())
                || ["SSL_CERT_", "UV_", "PIP_"].iter().any(|p| name.starts_with(p))
                || name.to_lowercase().ends_with("_proxy")
                || env::ALL.iter().any(|v| v.name == name)
        }));
    let mut child = command.spawn().map_err(|e| failed("run it", &e))?;
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if client.is_there().await {
            return Ok(client);
        }
        if let Ok(Some(status)) = child.try_wait() {
            // Another command may have started one at the same moment.
            if client.is_there().await {
                return Ok(client);
            }
            let text = std::fs::read_to_string(&log_path).unwrap_or_default();
            return Err(from_log(&text, &status).unwrap_or_else(|| {
                let fault = fault(&status);
                let report = Report::new("supervisor.start", fault, format!("the supervisor ended at once: {status}"));
                if text.is_empty() {
                    report
                        .cause(format!("nothing is in `{}`", log_path.display()))
                        .hint("see whether the disk is full: `df -h`; `ringfence serve` shows what it says")
                } else {
                    report.hint(format!("see `{}`", log_path.display()))
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Report::new("supervisor.start", Fault::Us, "the supervisor does not come up")
        .hint(format!("see `{}`", log_path.display())))
}

/// Whose doing it was, by the exit code.
fn fault(status: &ExitStatus) -> Fault {
    match status.code() {
        Some(2) => Fault::Caller,
        Some(3) => Fault::Host,
        Some(4) => Fault::Peer,
        _ => Fault::Us,
    }
}

/// The report that a supervisor printed before it ended.
fn from_log(text: &str, status: &ExitStatus) -> Option<Report> {
    let at = text.rfind("error[")?;
    let mut lines = text.get(at..)?.lines();
    let (code, message) = lines.next()?.strip_prefix("error[")?.split_once("]: ")?;
    let mut report = Report::new(code, fault(status), message);
    for line in lines {
        match line.trim_start().split_once(": ") {
            Some(("cause", cause)) => report = report.cause(cause),
            Some(("hint", hint)) => report = report.hint(hint),
            _ => break,
        }
    }
    Some(report)
}
