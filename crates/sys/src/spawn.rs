//! Starting our own helper processes with descriptors at agreed numbers.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A process to start: which program, with which arguments, and which descriptors at which numbers.
pub struct Spawn {
    /// Absolute path.
    pub program: PathBuf,
    /// What it is called in `ps`.
    pub arg0: String,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Descriptors and the numbers that they have in the child, from 3 up. All others are closed.
    pub fds: Vec<(OwnedFd, RawFd)>,
    /// Where its standard error goes; input and output are `/dev/null`.
    pub stderr: Stdio,
    /// Whether it gets a session of its own, so that a terminal's signals do not reach it.
    pub session: bool,
    /// The whole environment.
    pub env: Vec<(String, String)>,
}

impl Spawn {
    /// Starts it.
    ///
    /// # Errors
    /// Whatever fork and exec say.
    pub fn start(self) -> io::Result<Child> {
        let highest = self.fds.iter().map(|(_, to)| *to).max().unwrap_or(2);
        // Lift every descriptor above the agreed numbers first, so that placing one never overwrites another.
        let mut lifted = Vec::with_capacity(self.fds.len());
        for (fd, to) in &self.fds {
            lifted.push((rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), highest + 1)?, *to));
        }
        let session = self.session;
        let places: Vec<(RawFd, RawFd)> = lifted.iter().map(|(fd, to)| (fd.as_raw_fd(), *to)).collect();
        let mut command = Command::new(&self.program);
        command
            .arg0(&self.arg0)
            .args(&self.args)
            .env_clear()
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.stderr);
        // SAFETY: between fork and exec the closure calls only setsid, sigprocmask, dup2 and close_range, which are
        // async-signal-safe, and touches memory allocated before the fork without growing it.
        unsafe {
            command.pre_exec(move || {
                if session && libc::setsid() < 0 {
                    return Err(io::Error::last_os_error());
                }
                // A mask of blocked signals goes through exec; with the shim's own, a gate would not hear SIGTERM.
                crate::process::unblock_signals()?;
                for (from, to) in &places {
                    if libc::dup2(*from, *to) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                // WHY: CLOEXEC instead of close, because std reports a failed exec over a descriptor of its own.
                let first = libc::c_uint::try_from(highest + 1).unwrap_or(3);
                let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(4);
                if libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn();
        drop(lifted);
        child
    }
}

/// Puts `bytes` into a sealed anonymous file, read from its start, for a child to inherit.
///
/// # Errors
/// Whatever the kernel says.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags};
    use std::io::{Seek, Write};
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}

/// Reads an inherited anonymous file whole, whatever its offset is.
///
/// # Errors
/// Whatever the kernel says; [`io::ErrorKind::FileTooLarge`] past `at_most`.
pub fn read_whole(fd: &OwnedFd, at_most: usize) -> io::Result<Vec<u8>> {
    let size = usize::try_from(rustix::fs::fstat(fd)?.st_size).map_err(io::Error::other)?;
    if size > at_most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; size];
    let mut at = 0;
    while at < size {
        let read = rustix::io::pread(fd, bytes.get_mut(at..).unwrap_or_default(), at as u64)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at += read;
    }
    Ok(bytes)
}
