//! What a process of ours does to itself and its children: forks, death signals, reaping.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal};

/// Gives the calling thread a mount namespace of its own.
///
/// # Errors
/// Whatever the kernel says.
pub fn new_mount_namespace() -> io::Result<()> {
    unshare(rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::FS)
}

/// Gives the calling thread an empty network namespace of its own.
///
/// # Errors
/// Whatever the kernel says.
pub fn new_network_namespace() -> io::Result<()> {
    unshare(rustix::thread::UnshareFlags::NEWNET)
}

fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: unsound only with FILES, which would part threads that share descriptors; it is never among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags)? };
    Ok(())
}

/// Makes up to three descriptors the standard ones of this process.
///
/// # Errors
/// Whatever the kernel says.
pub fn place_stdio(given: Vec<OwnedFd>) -> io::Result<()> {
    let mut given = given.into_iter();
    if let Some(fd) = given.next() {
        rustix::stdio::dup2_stdin(fd)?;
    }
    if let Some(fd) = given.next() {
        rustix::stdio::dup2_stdout(fd)?;
    }
    if let Some(fd) = given.next() {
        rustix::stdio::dup2_stderr(fd)?;
    }
    Ok(())
}

/// Closes every descriptor of this process but the standard three, for good.
///
/// Only for a process that goes on without what it was forked with: whatever still thinks that it owns one of them must
/// never be dropped.
///
/// # Errors
/// Whatever the kernel says.
pub fn close_all_but_standard() -> io::Result<()> {
    // SAFETY: a system call on numbers alone.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What `fork` returned.
pub enum Forked {
    /// In the child.
    Child,
    /// In the parent, with the child's pid.
    Parent(Pid),
}

/// Forks. Only for single-threaded processes of ours (the shim).
///
/// # Errors
/// Whatever the kernel says; [`io::ErrorKind::Deadlock`] if the process has a second thread.
pub fn fork() -> io::Result<Forked> {
    // In a sandbox's PID namespace this process has no entry in /proc; its first fork was checked.
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() != 1) {
        return Err(io::Error::new(io::ErrorKind::Deadlock, "fork in a process with more than one thread"));
    }
    // SAFETY: the process has this one thread, so no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?)),
    }
}

/// Ends this process at once, running no destructors.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes no memory and does not return.
    unsafe { libc::_exit(code) }
}

/// Asks the kernel to kill this process when its parent dies.
///
/// # Errors
/// Whatever the kernel says.
pub fn die_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    Ok(())
}

/// Names the calling process for its children, which cannot see their parent from another PID namespace.
///
/// # Errors
/// Whatever the kernel says.
pub fn own_name() -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?)
}

/// Asks the kernel to kill this process when its parent dies, which `parent` names: also when it is dead already.
///
/// # Errors
/// Whatever the kernel says; [`io::ErrorKind::NotFound`] if the parent is gone.
pub fn die_with(parent: &OwnedFd) -> io::Result<()> {
    die_with_parent()?;
    // WHY: a parent that died before the call above sends no signal any more.
    let mut watched = [rustix::event::PollFd::new(parent, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    match rustix::event::poll(&mut watched, Some(&now))? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "the parent is gone")),
    }
}

/// Whether a process has a handler for `signal`, or takes it from its queue. If that cannot be seen it is taken to.
/// Looks for up to 50 ms.
#[must_use]
pub fn heeds(process: Pid, signal: Signal) -> bool {
    let bit = |mask: u64| mask >> (signal.as_raw() - 1) & 1 == 1;
    // Who waits for a signal without a handler blocks it, as small init programs do. Shells block it for a moment
    // while they fork, so that is looked at more than once.
    for _ in 0..5 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap_or_default();
        let mask = |name| status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix(name)?.trim(), 16).ok());
        let (Some(caught), Some(blocked)) = (mask("SigCgt:"), mask("SigBlk:")) else { return true };
        if bit(caught) {
            return true;
        }
        if !bit(blocked) {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    true
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its pid.
    pub pid: i32,
    /// Exit code, or 128 + signal.
    pub code: i32,
}

/// Reaps one child that ended, without waiting.
///
/// # Errors
/// Whatever the kernel says, except that no child is `Ok(None)`.
pub fn reap() -> io::Result<Option<Ended>> {
    match rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => Ok(Some(Ended { pid: pid.as_raw_nonzero().get(), code: code_of(status) })),
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits for one child.
///
/// # Errors
/// Whatever the kernel says.
pub fn wait_for(pid: Pid) -> io::Result<i32> {
    loop {
        match rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(code_of(status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn code_of(status: rustix::process::WaitStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255)
}

/// A descriptor that becomes readable when one of `signals` arrives; they are blocked from now on.
///
/// # Errors
/// Whatever the kernel says.
pub fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: the set is a plain C value, made by sigemptyset and passed to calls that only read it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(std::os::fd::FromRawFd::from_raw_fd(fd))
    }
}

/// Unblocks all signals, as a program about to be started expects them.
///
/// # Errors
/// Whatever the kernel says.
pub fn unblock_signals() -> io::Result<()> {
    // SAFETY: as in `signal_fd`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads the number of one signal that arrived at a [`signal_fd`], if any.
///
/// # Errors
/// Whatever the kernel says.
pub fn next_signal(fd: &OwnedFd) -> io::Result<Option<i32>> {
    let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(fd, &mut buffer) {
        Ok(_) => {
            let number = buffer.first_chunk::<4>().map_or(0, |b| u32::from_ne_bytes(*b));
            Ok(i32::try_from(number).ok())
        }
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Runs the program at `path`, replacing this process; returns only on failure.
pub fn exec(argv: &[String], env: &[(String, String)], path: &std::path::Path) -> io::Error {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(path);
    if let Some(name) = argv.first() {
        command.arg0(name);
    }
    command.args(argv.iter().skip(1)).env_clear().envs(env.iter().map(|(k, v)| (k, v)));
    command.exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_seen() {
        let handler = |script: &str| {
            let mut child = std::process::Command::new("bash")
                .args(["-c", &format!("{script} echo; read")])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
            let heeds = heeds(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), Signal::TERM);
            drop(child.stdin.take());
            child.wait().unwrap();
            heeds
        };
        assert!(handler("trap : TERM;"));
        assert!(!handler(""));
    }

    #[test]
    fn nobody_outlives_a_parent_that_is_gone_already() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let parent = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        let living = die_with(&parent);
        child.kill().unwrap();
        child.wait().unwrap();
        let gone = die_with(&parent).map_err(|e| e.kind());
        rustix::process::set_parent_process_death_signal(None).unwrap();
        assert!(living.is_ok());
        assert_eq!(gone, Err(io::ErrorKind::NotFound));
    }
}
