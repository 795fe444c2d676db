//! `ringfence host`: what this host can and cannot enforce, found by trying.

use std::path::Path;
use std::process::{Command, ExitCode};

use ringfence_sys::attack::Attempt;
use serde::Serialize;

use super::NOT_PASSED;
use crate::args::Json;
use crate::print::{self, Ink, Table};

/// What one trial found.
#[derive(Debug, Serialize)]
pub struct Check {
    /// The mechanism.
    mechanism: &'static str,
    /// What it is for.
    purpose: &'static str,
    /// Whether it is there.
    there: bool,
    /// Whether nothing starts without it.
    needed: bool,
    /// What was found.
    found: String,
    /// What to do where it is missing.
    remedy: &'static str,
}

pub fn run(args: Json) -> ExitCode {
    let checks = checks();
    let missing = checks.iter().filter(|c| c.needed && !c.there).count();
    if args.json {
        print::json(&checks);
    } else {
        let mut table = Table::new(&["", "MECHANISM", "FOR", "FOUND"]);
        for check in &checks {
            let (mark, ink) = match (check.there, check.needed) {
                (true, _) => ("\u{2713}", Ink::Good),
                (false, true) => ("\u{2717}", Ink::Bad),
                (false, false) => ("-", Ink::Warn),
            };
            table.row(vec![
                (mark.into(), Some(ink)),
                (check.mechanism.into(), Some(Ink::Bold)),
                (check.purpose.into(), None),
                (print::safe(&check.found), Some(Ink::Dim)),
            ]);
        }
        table.print();
        for check in checks.iter().filter(|c| !c.there) {
            print::line(&format!("  {}: {}", print::paint(Ink::Warn, check.mechanism), check.remedy));
        }
        print::line(&if missing == 0 {
            print::paint(Ink::Good, "this host can enforce the whole fence")
        } else {
            print::paint(
                Ink::Bad,
                &format!("{missing} mechanism(s) that the fence needs are missing: agents do not start here"),
            )
        });
    }
    ExitCode::from(if missing == 0 { 0 } else { NOT_PASSED })
}

fn checks() -> Vec<Check> {
    vec![
        check("root", "making namespaces and uid ranges", true, root(), "run as root"),
        check("kernel", "the system calls below", true, kernel(), "use Linux 6.2 or newer"),
        check(
            "user-namespace",
            "a uid range of its own for each agent",
            true,
            user_namespace(),
            "raise /proc/sys/user/max_user_namespaces, and run where no filter forbids user namespaces",
        ),
        check(
            "network-namespace",
            "a network without wires",
            true,
            in_thread(ringfence_sys::process::new_network_namespace),
            "run as root, or allow user namespaces",
        ),
        check(
            "sk-lookup",
            "capture of every connection",
            true,
            in_thread(capture),
            "use Linux 5.9 or newer with CONFIG_BPF_SYSCALL, as root",
        ),
        check("overlayfs", "the read-only root", true, filesystem("overlay"), "load the kernel module `overlay`"),
        check("cgroup", "memory, CPU and process limits", true, cgroup(), "mount the cpu, memory and pids controllers"),
        check("seccomp", "the system call filter", true, seccomp(), "use a kernel with CONFIG_SECCOMP_FILTER"),
        check("landlock", "file rights beneath the mounts", true, landlock(), "boot with `lsm=landlock,…`"),
        check("disk-quota", "the size of /state", true, disk(), "allow loop devices and install e2fsprogs"),
        check("gpgv", "signatures of Debian's package lists", true, program("gpgv"), "install the package `gpgv`"),
        check("uv", "resolving Python dependencies", true, uv(), "install it: `pip install uv`, or set RINGFENCE_UV"),
        check(
            "runc",
            "another OCI runtime behind the same bundle",
            false,
            program("runc"),
            "install the package `runc` to use it",
        ),
        check("kvm", "sandboxes in virtual machines", false, file("/dev/kvm"), "enable virtualisation for this host"),
    ]
}

fn check(
    mechanism: &'static str,
    purpose: &'static str,
    needed: bool,
    found: Result<String, String>,
    remedy: &'static str,
) -> Check {
    let there = found.is_ok();
    Check { mechanism, purpose, there, needed, found: found.unwrap_or_else(|e| e), remedy }
}

fn root() -> Result<String, String> {
    let uid = rustix::process::geteuid();
    if uid.is_root() { Ok("uid 0".into()) } else { Err(format!("uid {}", uid.as_raw())) }
}

fn kernel() -> Result<String, String> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 2) { Ok(release) } else { Err(release) }
}

/// Tries something in a thread of its own, which then ends.
fn in_thread(attempt: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<String, String> {
    match std::thread::spawn(attempt).join() {
        Ok(Ok(())) => Ok("tried, works".into()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the trial itself failed".into()),
    }
}

fn capture() -> std::io::Result<()> {
    ringfence_sys::process::new_network_namespace()?;
    ringfence_sys::netns::make_everything_local()?;
    ringfence_sys::capture::Capture::attach().map(drop)
}

/// Tries it in a child, since only a process with one thread may.
fn user_namespace() -> Result<String, String> {
    let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    match Attempt::NewUserNamespace.run_apart() {
        Ok(Ok(())) => Ok("tried, works".into()),
        Ok(Err(_)) if most.trim() == "0" => Err("switched off".into()),
        Ok(Err(refusal)) => Err(refusal.to_string()),
        Err(error) => Err(format!("the trial itself failed: {error}")),
    }
}

fn filesystem(name: &str) -> Result<String, String> {
    let text = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if text.lines().any(|l| l.split_whitespace().last() == Some(name)) {
        Ok("in the kernel".into())
    } else {
        Err("not in /proc/filesystems".into())
    }
}

fn cgroup() -> Result<String, String> {
    let root = Path::new("/sys/fs/cgroup");
    let wanted = ["cpu", "memory", "pids"];
    let (form, has): (_, Vec<&str>) = if root.join("cgroup.controllers").exists() {
        let text = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        ("v2", wanted.into_iter().filter(|w| text.split_whitespace().any(|c| c == *w)).collect())
    } else {
        let form = if root.join("unified").exists() { "hybrid" } else { "v1" };
        (form, wanted.into_iter().filter(|w| root.join(w).join("cgroup.procs").exists()).collect())
    };
    let found = format!("{form}: {}", has.join(", "));
    if has.len() == wanted.len() { Ok(found) } else { Err(found) }
}

fn seccomp() -> Result<String, String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
        .map_err(|_| "not in this kernel".to_owned())?;
    if text.contains("errno") { Ok(text.trim().to_owned()) } else { Err(text.trim().to_owned()) }
}

fn landlock() -> Result<String, String> {
    match ringfence_sys::landlock::kernel_abi() {
        Some(abi) if abi >= 3 => Ok(format!("ABI {abi}")),
        Some(abi) => Err(format!("ABI {abi}; 3 is needed")),
        None => Err("not in this kernel, or switched off".into()),
    }
}

fn disk() -> Result<String, String> {
    if !Path::new("/dev/loop-control").exists() {
        return Err("no /dev/loop-control".into());
    }
    for path in ["/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4", "/bin/mkfs.ext4"] {
        if Path::new(path).exists() {
            return Ok(format!("loop devices, {path}"));
        }
    }
    Err("no mkfs.ext4".into())
}

fn program(name: &str) -> Result<String, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|p| p.is_file())
        .map(|p| p.display().to_string())
        .ok_or_else(|| "not on PATH".into())
}

fn uv() -> Result<String, String> {
    let found = crate::env::read(crate::env::UV).map_or_else(|| program("uv"), Ok)?;
    let output = Command::new(&found).arg("--version").output().map_err(|e| format!("{found}: {e}"))?;
    if output.status.success() {
        Ok(format!("{} at {found}", String::from_utf8_lossy(&output.stdout).trim()))
    } else {
        Err(format!("{found} does not run"))
    }
}

fn file(path: &str) -> Result<String, String> {
    if Path::new(path).exists() { Ok(path.into()) } else { Err(format!("no {path}")) }
}
