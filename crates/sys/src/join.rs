//! Joining a running sandbox: its cgroups, its namespaces, its identity without rights.
//!
//! libcontainer's own way in (a "tenant") does not join the user namespace, so a command run that way would
//! stand outside a part of the fence. This one enters all of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use rustix::process::Resource;
use rustix::process::{Gid, Pid, PidfdFlags, Rlimit, Uid};
use rustix::thread::ThreadNameSpaceType;

/// Directories of the cgroups that process `pid` is in, on cgroup v1, hybrid and v2.
///
/// # Errors
/// Whatever reading `/proc` says.
pub fn cgroups_of(pid: i32) -> io::Result<Vec<PathBuf>> {
    let root = Path::new("/sys/fs/cgroup");
    let unified = root.join("cgroup.controllers").exists();
    let mut found = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/cgroup"))?.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let path = path.trim_start_matches('/');
        let folder = match controllers {
            "" if unified => root.join(path),
            "" => root.join("unified").join(path),
            named if named.starts_with("name=") => root.join(named.trim_start_matches("name=")).join(path),
            v1 => root.join(v1).join(path),
        };
        if folder.join("cgroup.procs").exists() {
            found.push(folder);
        }
    }
    Ok(found)
}

/// Moves the calling process into the cgroups of process `pid`.
///
/// # Errors
/// Whatever writing `cgroup.procs` says.
pub fn join_cgroups(pid: i32) -> io::Result<()> {
    for folder in cgroups_of(pid)? {
        fs::write(folder.join("cgroup.procs"), "0")?;
    }
    Ok(())
}

/// Moves the calling, single-threaded process into the user, mount, PID, IPC, UTS and cgroup namespaces of
/// process `pid`. Children made afterwards are in its PID namespace.
///
/// The network namespace is the shim's own already. Without `user` the user namespace is left as it is.
///
/// # Errors
/// Whatever the kernel says.
pub fn join_namespaces(pid: i32, user: bool) -> io::Result<()> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let mut kinds = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    if user {
        kinds |= ThreadNameSpaceType::USER;
    }
    rustix::thread::move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&process), kinds)?;
    Ok(())
}

/// Drops every capability, bounding set and ambient set included, and every group, and becomes `uid`/`gid`.
///
/// # Errors
/// Whatever the kernel says.
pub fn become_unprivileged(uid: u32, gid: u32) -> io::Result<()> {
    drop_bounding_set()?;
    become_user(uid, gid)?;
    // WHY: the kernel drops capabilities on a change of uid only when the old uid is the namespace's root. One
    // that came by setns is still the host's root, which is nobody here, and would keep them all.
    let none = rustix::thread::CapabilitySets {
        effective: rustix::thread::CapabilitySet::empty(),
        permitted: rustix::thread::CapabilitySet::empty(),
        inheritable: rustix::thread::CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, none)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Becomes `uid`/`gid` without further groups, and leaves capabilities to the kernel's rules.
///
/// # Errors
/// Whatever the kernel says.
pub fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::from_raw(gid), Gid::from_raw(gid), Gid::from_raw(gid))?;
    rustix::thread::set_thread_res_uid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid))?;
    Ok(())
}

/// Sets a resource limit, soft and hard, of the calling process.
///
/// # Errors
/// Whatever the kernel says.
pub fn limit(kind: Resource, most: u64) -> io::Result<()> {
    rustix::process::setrlimit(kind, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(())
}

fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: these prctl calls take numbers only. rustix's form takes named capabilities, and would
        // leave those that are newer than it.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped < 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break; // past the last capability that this kernel knows
            }
            return Err(error);
        }
    }
    // SAFETY: as above.
    let cleared = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    if cleared < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How often the kernel killed for want of memory in the cgroup of process `pid`.
#[must_use]
pub fn oom_kills(cgroups: &[PathBuf]) -> u64 {
    for folder in cgroups {
        for file in ["memory.events", "memory.oom_control"] {
            if let Ok(text) = fs::read_to_string(folder.join(file)) {
                let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
                if let Some(count) = count {
                    return count;
                }
            }
        }
    }
    0
}
