//! System calls that a fenced process must not get through, tried for real by the fence probes.
//!
//! Each tries one thing and says what the kernel answered. They harm nothing where they succeed.

use std::ffi::CString;
use std::io;

use crate::process::{self, Forked};

/// One forbidden thing to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// `bpf(BPF_MAP_CREATE)`.
    Bpf,
    /// `chroot("/tmp")`.
    Chroot,
    /// `io_uring_setup`.
    IoUring,
    /// `keyctl(KEYCTL_GET_KEYRING_ID)`.
    Keyctl,
    /// `mknod` of a block device.
    MakeDevice,
    /// `mount` of a memory file system on `/tmp`.
    Mount,
    /// `unshare(CLONE_NEWUSER)`.
    NewUserNamespace,
    /// A packet socket.
    PacketSocket,
    /// `perf_event_open`.
    PerfEvent,
    /// `ptrace(PTRACE_TRACEME)`.
    Ptrace,
    /// A raw ICMP socket.
    RawSocket,
    /// `setuid(0)`.
    SetUidRoot,
    /// `userfaultfd`.
    Userfaultfd,
    /// A VM socket.
    VsockSocket,
    /// A kernel crypto socket.
    AlgSocket,
}

impl Attempt {
    /// Every attempt with the name of the barrier that it tries.
    pub const ALL: [(Self, &'static str); 15] = [
        (Self::AlgSocket, "crypto-socket"),
        (Self::Bpf, "bpf"),
        (Self::Chroot, "chroot"),
        (Self::IoUring, "io-uring"),
        (Self::Keyctl, "keyring"),
        (Self::MakeDevice, "make-device"),
        (Self::Mount, "mount"),
        (Self::NewUserNamespace, "new-namespace"),
        (Self::PacketSocket, "packet-socket"),
        (Self::PerfEvent, "perf-event"),
        (Self::Ptrace, "ptrace"),
        (Self::RawSocket, "raw-socket"),
        (Self::SetUidRoot, "become-root"),
        (Self::Userfaultfd, "userfaultfd"),
        (Self::VsockSocket, "vm-socket"),
    ];

    /// Tries it in a child, so that one that gets through changes nothing for the next. The inner `Ok` means that
    /// the kernel let it through, the inner error is its refusal. Only for processes with one thread.
    ///
    /// # Errors
    /// If there is no child to try it in, or the child ended otherwise.
    pub fn run_apart(self) -> io::Result<io::Result<()>> {
        match process::fork()? {
            Forked::Child => process::exit_now(match self.run() {
                Ok(()) => 0,
                // An error number fits into an exit code: the highest is 133, and those of death start at 129.
                Err(refusal) => refusal.raw_os_error().filter(|number| (1..=128).contains(number)).unwrap_or(libc::EIO),
            }),
            Forked::Parent(child) => match process::wait_for(child)? {
                0 => Ok(Ok(())),
                number @ 1..=128 => Ok(Err(io::Error::from_raw_os_error(number))),
                code => Err(io::Error::other(format!("the attack ended with code {code}"))),
            },
        }
    }

    /// Tries it. `Ok` means that the kernel let it through.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn run(self) -> io::Result<()> {
        match self {
            Self::AlgSocket => socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
            Self::Bpf => {
                let attr = [1u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]; // one-element hash map
                call(libc::SYS_bpf, [0, address(&attr), size_of_val(&attr), 0, 0])
            }
            Self::Chroot => call(libc::SYS_chroot, [text(c"/tmp"), 0, 0, 0, 0]),
            Self::IoUring => {
                let mut params = [0u8; 120];
                call(libc::SYS_io_uring_setup, [1, params.as_mut_ptr().addr(), 0, 0, 0])
            }
            Self::Keyctl => call(libc::SYS_keyctl, [0, usize::MAX - 2, 0, 0, 0]),
            Self::MakeDevice => {
                let path = CString::new("/tmp/.ringfence-device")?;
                let mode = usize::try_from(libc::S_IFBLK | 0o600).unwrap_or(0);
                let made = call(
                    libc::SYS_mknodat,
                    [usize::try_from(libc::AT_FDCWD as i64 as u64).unwrap_or(0), text(&path), mode, 0x0700, 0],
                );
                if made.is_ok() {
                    let _ = std::fs::remove_file("/tmp/.ringfence-device");
                }
                made
            }
            Self::Mount => {
                call(libc::SYS_mount, [text(c"probe"), text(c"/tmp"), text(c"tmpfs"), 0, 0])?;
                let _ = rustix::mount::unmount("/tmp", rustix::mount::UnmountFlags::DETACH);
                Ok(())
            }
            Self::NewUserNamespace => {
                call(libc::SYS_unshare, [usize::try_from(libc::CLONE_NEWUSER).unwrap_or(0), 0, 0, 0, 0])
            }
            Self::PacketSocket => socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300),
            Self::PerfEvent => {
                let mut attr = [0u32; 32];
                attr[0] = 1; // PERF_TYPE_SOFTWARE
                attr[1] = 128; // size
                call(libc::SYS_perf_event_open, [address(&attr), 0, usize::MAX, usize::MAX, 0])
            }
            Self::Ptrace => call(libc::SYS_ptrace, [0, 0, 0, 0, 0]),
            Self::RawSocket => socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            Self::SetUidRoot => call(libc::SYS_setuid, [0, 0, 0, 0, 0]),
            Self::Userfaultfd => call(libc::SYS_userfaultfd, [1, 0, 0, 0, 0]), // UFFD_USER_MODE_ONLY
            Self::VsockSocket => socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        }
    }
}

/// An anonymous file whose content could be run.
///
/// # Errors
/// The kernel's refusal.
pub fn anonymous_file() -> io::Result<std::fs::File> {
    // Without CLOEXEC, so that the child that is to become the program still has it.
    Ok(std::fs::File::from(rustix::fs::memfd_create("ringfence-probe", rustix::fs::MemfdFlags::empty())?))
}

fn address<T>(value: &[T]) -> usize {
    value.as_ptr().addr()
}

fn text(value: &std::ffi::CStr) -> usize {
    value.as_ptr().addr()
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<()> {
    let number = |n: i32| usize::try_from(n).unwrap_or(0);
    call(libc::SYS_socket, [number(family), number(kind), number(protocol), 0, 0])
}

fn call(number: libc::c_long, arguments: [usize; 5]) -> io::Result<()> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: every pointer among the arguments comes from a value that outlives the call, in `Attempt::run`;
    // the calls tried here write at most into such a value. No safe form exists for calls that must fail.
    let done = unsafe { libc::syscall(number, a, b, c, d, e) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
