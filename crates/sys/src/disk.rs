//! Volumes with a size: an ext4 file system in a sparse file, on a loop device that frees itself.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// Why a volume could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// `mkfs.ext4` is not there or failed.
    #[error("cannot make a file system in `{path}`: {why}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What mkfs said.
        why: String,
    },
    /// The kernel refused.
    #[error("cannot {doing} `{path}`")]
    Kernel {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's word.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// Whether the disk that the volume was to lie on has no room.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            // The program says it in words only.
            Self::Format { why, .. } => why.contains("No space left on device"),
            Self::Kernel { source, .. } => source.kind() == io::ErrorKind::StorageFull,
        }
    }
}

/// Makes a file with an empty ext4 file system of `size` bytes whose root belongs to `owner`.
///
/// # Errors
/// [`DiskError`]; no half-made file is left.
pub fn format(path: &Path, size: u64, owner: u32) -> Result<(), DiskError> {
    let half = path.with_extension("half");
    let kernel = |doing| move |source| DiskError::Kernel { doing, path: path.to_path_buf(), source };
    let done = (|| {
        let file = File::options().write(true).create(true).truncate(true).open(&half).map_err(kernel("create"))?;
        file.set_len(size).map_err(kernel("size"))?;
        drop(file);
        let program = ["/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4", "/bin/mkfs.ext4"]
            .iter()
            .find(|p| Path::new(p).exists())
            .ok_or_else(|| DiskError::Format {
                path: path.to_path_buf(),
                why: "`mkfs.ext4` is not installed (package e2fsprogs)".into(),
            })?;
        let output = Command::new(program)
            .args(["-q", "-F", "-m", "0", "-O", "^resize_inode", "-E"])
            .arg(format!("root_owner={owner}:{owner},lazy_itable_init=1,lazy_journal_init=1,nodiscard"))
            .arg(&half)
            .output()
            .map_err(kernel("run mkfs.ext4 on"))?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
            return Err(DiskError::Format { path: path.to_path_buf(), why });
        }
        std::fs::rename(&half, path).map_err(kernel("rename"))
    })();
    if done.is_err() {
        let _ = std::fs::remove_file(&half);
    }
    done
}

#[repr(C)]
struct LoopInfo64 {
    words: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    rest: [u8; 64 + 64 + 32 + 16],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// Binds `file` to a free loop device that the kernel frees when its last user is gone.
///
/// Keep the returned descriptor until the device is mounted.
///
/// # Errors
/// [`DiskError::Kernel`].
pub fn attach(path: &Path) -> Result<(OwnedFd, PathBuf), DiskError> {
    let kernel = |doing| move |source| DiskError::Kernel { doing, path: path.to_path_buf(), source };
    let file = File::options().read(true).write(true).open(path).map_err(kernel("open"))?;
    let control =
        File::options().read(true).write(true).open("/dev/loop-control").map_err(kernel("get a loop device for"))?;
    for _ in 0..32 {
        // SAFETY: the descriptor is open and this ioctl takes no argument. rustix has no loop ioctls.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(kernel("get a loop device for")(io::Error::last_os_error()));
        }
        let device = PathBuf::from(format!("/dev/loop{number}"));
        if !device.exists() {
            make_node(&device, number).map_err(kernel("make a loop device for"))?;
        }
        let opened = File::options().read(true).write(true).open(&device).map_err(kernel("open a loop device for"))?;
        let config = LoopConfig {
            fd: u32::try_from(file.as_raw_fd()).unwrap_or(u32::MAX),
            block_size: 0,
            info: LoopInfo64 {
                words: [0; 5],
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_AUTOCLEAR,
                rest: [0; 176],
            },
            reserved: [0; 8],
        };
        // SAFETY: the descriptor is open and the ioctl reads one loop_config, laid out as in linux/loop.h and
        // alive on this stack.
        let done = unsafe { libc::ioctl(opened.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(&config)) };
        if done == 0 {
            return Ok((opened.into(), device));
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(kernel("bind a loop device to")(error));
        }
        // Somebody else took that device between the two calls: ask for the next.
    }
    Err(kernel("get a loop device for")(io::ErrorKind::ResourceBusy.into()))
}

fn make_node(device: &Path, number: i32) -> io::Result<()> {
    let minor = u32::try_from(number).map_err(io::Error::other)?;
    match rustix::fs::mknodat(
        rustix::fs::CWD,
        device,
        rustix::fs::FileType::BlockDevice,
        rustix::fs::Mode::from_raw_mode(0o600),
        rustix::fs::makedev(7, minor),
    ) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
