//! Landlock beneath the mounts: what the agent may read, run and write, even if a mount were wrong.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

/// What a Landlock domain allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Domain {
    /// Trees that may be read and run.
    pub run: Vec<PathBuf>,
    /// Trees that may be read, but not run.
    pub read: Vec<PathBuf>,
    /// Trees that may be read and written, but not run.
    pub write: Vec<PathBuf>,
}

/// Why the domain could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The kernel has no Landlock, or it is switched off.
    #[error("the kernel does not enforce Landlock")]
    Missing,
    /// The kernel refused.
    #[error("Landlock refused the domain: {0}")]
    Refused(String),
}

/// The lowest ABI with which the fence is whole: file rights up to truncate (3).
const REQUIRED: ABI = ABI::V3;

/// The newest ABI that this code asks for where the kernel has it.
const WANTED: ABI = ABI::V6;

impl Domain {
    /// Puts the calling thread, and all it starts, into this domain. Paths that do not exist are passed over.
    ///
    /// Signals and abstract sockets towards the outside of the domain are closed too, where the kernel can.
    ///
    /// # Errors
    /// [`LandlockError`]; the thread is then as it was.
    pub fn enter(&self) -> Result<(), LandlockError> {
        let refused = |e: landlock::RulesetError| LandlockError::Refused(e.to_string());
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        let write = (AccessFs::from_all(WANTED) & !AccessFs::Execute & !AccessFs::MakeBlock & !AccessFs::MakeChar)
            & !AccessFs::IoctlDev;
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(REQUIRED))
            .map_err(refused)?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(WANTED))
            .map_err(refused)?
            .scope(Scope::from_all(WANTED))
            .map_err(refused)?
            .create()
            .map_err(refused)?;
        for (paths, access) in [(&self.run, read | AccessFs::Execute), (&self.read, read), (&self.write, write)] {
            for path in paths {
                if let Ok(fd) = PathFd::new(path) {
                    let access = if path.is_dir() { access } else { access & AccessFs::from_file(WANTED) };
                    rules = rules.add_rule(PathBeneath::new(fd, access)).map_err(refused)?;
                }
            }
        }
        let status = rules.restrict_self().map_err(refused)?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err(LandlockError::Missing),
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        }
    }
}

/// The ABI of the running kernel's Landlock, or `None` where there is none.
#[must_use]
pub fn kernel_abi() -> Option<i64> {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call reads no memory and only returns a number. The `landlock` crate keeps
    // its own form of this private.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            CREATE_RULESET_VERSION,
        )
    };
    (abi > 0).then_some(abi)
}

/// The domain of an agent: the image may be read and run; `/tmp`, `/dev/shm` and `writable` may be written.
#[must_use]
pub fn agent_domain(writable: &[PathBuf]) -> Domain {
    let all = |paths: &[&str]| paths.iter().map(|p| Path::new(p).to_path_buf()).collect::<Vec<_>>();
    Domain {
        run: all(&["/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/opt", "/app"]),
        read: all(&["/"]),
        write: all(&[
            "/tmp",
            "/dev/shm",
            "/dev/null",
            "/dev/zero",
            "/dev/full",
            "/dev/random",
            "/dev/urandom",
            "/dev/tty",
            "/dev/pts",
            "/dev/ptmx",
            "/proc",
        ])
        .into_iter()
        .chain(writable.iter().cloned())
        .collect(),
    }
}
