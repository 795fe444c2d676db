//! How a process of ours that reads hostile bytes gives up everything it does not need.
//!
//! Every function here is about the calling thread, so a process with two threads calls them in both.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::thread::{CapabilitySet, CapabilitySets, LinkNameSpaceType};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Which mechanism failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot apply {mechanism}")]
pub struct ConfineError {
    /// Its name.
    pub mechanism: &'static str,
    /// What the kernel or the library said.
    #[source]
    pub source: io::Error,
}

fn failed(mechanism: &'static str, source: impl Into<io::Error>) -> ConfineError {
    ConfineError { mechanism, source: source.into() }
}

/// Moves the calling thread into a network namespace.
///
/// # Errors
/// [`ConfineError`] with what the kernel said.
pub fn enter_network(namespace: BorrowedFd<'_>) -> Result<(), ConfineError> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(|e| failed("network namespace", e))
}

/// Gives the calling thread another user and group, no further groups, and no capability for ever.
///
/// # Errors
/// [`ConfineError`]; the thread must then not go on.
pub fn become_nobody(uid: u32, gid: u32) -> Result<(), ConfineError> {
    for number in 0..64 {
        // SAFETY: prctl with these arguments takes no memory.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } < 0 {
            // The first number that the kernel does not know, or no right to drop: the set below is emptied anyway,
            // and no_new_privs keeps exec from giving anything back.
            break;
        }
    }
    // SAFETY: raw calls, because the wrappers of the C library would change every thread; none takes memory.
    unsafe {
        let no_groups = std::ptr::null::<libc::gid_t>();
        check("groups", libc::syscall(libc::SYS_setgroups, 0_usize, no_groups))?;
        check("gid", libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check("uid", libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none).map_err(|e| failed("capabilities", e))?;
    let left = rustix::thread::capabilities(None).map_err(|e| failed("capabilities", e))?;
    if left.effective.is_empty() && left.permitted.is_empty() && left.inheritable.is_empty() {
        Ok(())
    } else {
        Err(failed("capabilities", io::ErrorKind::PermissionDenied))
    }
}

/// Sets `no_new_privs`, keeps others from reading this process's memory, and dies with the parent.
///
/// # Errors
/// [`ConfineError`]; the thread must then not go on.
pub fn seal_process() -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(|e| failed("no_new_privs", e))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| failed("dumpable", e))?;
    // After the change of user, which clears it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| failed("parent death signal", e))
}

/// Sets `no_new_privs` for a further thread.
///
/// # Errors
/// [`ConfineError`]; the thread must then not go on.
pub fn seal_thread() -> Result<(), ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(|e| failed("no_new_privs", e))
}

/// Takes every file away from the calling thread; open descriptors stay.
///
/// # Errors
/// [`ConfineError`] where the kernel has no Landlock.
pub fn no_files() -> Result<(), ConfineError> {
    crate::landlock::Domain::default().enter().map_err(|e| failed("Landlock", io::Error::other(e)))
}

/// What a thread of a network process may still ask of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Sockets of the Internet families, memory, time, and the descriptors that are open.
    Network,
    /// Making a TCP or UDP socket and nothing towards the network.
    SocketMaking,
}

/// Leaves the calling thread only the system calls of `calls`; every other fails with `EPERM`.
///
/// # Errors
/// [`ConfineError`]; the thread must then not go on.
pub fn only_calls(calls: Calls) -> Result<(), ConfineError> {
    let program = filter(calls).map_err(|e| failed("seccomp", io::Error::other(e)))?;
    seccompiler::apply_filter(&program).map_err(|e| failed("seccomp", io::Error::other(e)))
}

/// Calls that any thread needs: memory, futexes, time, random bytes, its end.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Calls on sockets and on the files that are open.
const NETWORK: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_lseek,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

fn filter(calls: Calls) -> Result<BpfProgram, seccompiler::BackendError> {
    let is = |at: u8, value: i32| {
        SeccompCondition::new(at, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value.unsigned_abs()))
    };
    // PROT_EXEC and the bit of a mask that must stay clear.
    let lacks = |at: u8, bit: i32| {
        let bit = u64::from(bit.unsigned_abs());
        SeccompCondition::new(at, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(bit), 0)
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = COMMON.iter().map(|call| (*call, Vec::new())).collect();
    if calls == Calls::Network {
        rules.extend(NETWORK.iter().map(|call| (*call, Vec::new())));
    }
    rules.insert(
        libc::SYS_socket,
        vec![SeccompRule::new(vec![is(0, libc::AF_INET)?])?, SeccompRule::new(vec![is(0, libc::AF_INET6)?])?],
    );
    rules.insert(libc::SYS_mmap, vec![SeccompRule::new(vec![lacks(2, libc::PROT_EXEC)?])?]);
    rules.insert(libc::SYS_mprotect, vec![SeccompRule::new(vec![lacks(2, libc::PROT_EXEC)?])?]);
    rules.insert(libc::SYS_ioctl, vec![SeccompRule::new(vec![is(1, 0x5421)?])?]); // FIONBIO
    rules.insert(
        libc::SYS_fcntl,
        [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC]
            .into_iter()
            .map(|command| SeccompRule::new(vec![is(1, command)?]))
            .collect::<Result<_, _>>()?,
    );
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = if cfg!(target_arch = "aarch64") { TargetArch::aarch64 } else { TargetArch::x86_64 };
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?.try_into()
}

fn check(mechanism: &'static str, result: libc::c_long) -> Result<(), ConfineError> {
    if result < 0 { Err(failed(mechanism, io::Error::last_os_error())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a thread of its own, since what is given up does not come back.
    fn apart<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(body).join().unwrap()
    }

    #[test]
    fn a_confined_thread_opens_no_file_and_no_other_family() {
        let probe = || {
            let file = std::fs::File::open("/etc/passwd").is_ok();
            let unix = std::os::unix::net::UnixDatagram::unbound().is_ok();
            let inet = std::net::UdpSocket::bind("127.0.0.1:0").is_ok();
            (file, unix, inet)
        };
        assert_eq!(apart(probe), (true, true, true), "with the barrier off all is open");
        let confined = apart(move || {
            seal_thread().unwrap();
            only_calls(Calls::Network).unwrap();
            probe()
        });
        assert_eq!(confined, (false, false, true));
        let unfiled = apart(move || {
            no_files().unwrap();
            probe()
        });
        assert_eq!(unfiled, (false, true, true));
    }

    #[test]
    fn a_thread_that_only_makes_sockets_connects_none() {
        let connected = apart(|| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let to = listener.local_addr().unwrap();
            seal_thread().unwrap();
            only_calls(Calls::SocketMaking).unwrap();
            std::net::TcpStream::connect(to).is_ok()
        });
        assert!(!connected);
    }

    #[test]
    fn another_user_has_no_capability_left() {
        if !rustix::process::getuid().is_root() {
            panic!("this test needs root");
        }
        let (read, seen) = apart(|| {
            become_nobody(65_534, 65_534).unwrap();
            let read = std::fs::read("/etc/shadow").is_ok();
            (read, std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default())
        });
        assert!(!read);
        assert!(seen.contains("CapEff:\t0000000000000000"), "{seen}");
        assert!(std::fs::read("/etc/shadow").is_ok(), "the other threads are as they were");
    }
}
