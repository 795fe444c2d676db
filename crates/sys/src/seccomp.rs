//! System call filters, from data to the kernel.
//!
//! A profile is a JSON file of named filters in `seccompiler`'s form (policies/seccomp). All of them are
//! put on the calling thread, one above the other; the strictest answer counts.

use std::io;

use seccompiler::{BpfProgram, TargetArch};

/// The profile of agents, as shipped.
pub const AGENT_PROFILE: &str = include_str!("../../../policies/seccomp/agent.json");

/// Filters compiled for this machine, in the order in which they are put on.
#[derive(Clone, Debug)]
pub struct Filters(Vec<BpfProgram>);

/// Why a profile was refused.
#[derive(Debug, thiserror::Error)]
#[error("seccomp profile is not usable: {0}")]
pub struct ProfileError(String);

impl Filters {
    /// Compiles a profile.
    ///
    /// # Errors
    /// [`ProfileError`] if it does not parse or names a system call that this architecture lacks.
    pub fn compile(profile: &str) -> Result<Self, ProfileError> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| ProfileError(e.to_string()))?;
        let mut filters: Vec<_> = seccompiler::compile_from_json(profile.as_bytes(), arch)
            .map_err(|e| ProfileError(e.to_string()))?
            .into_iter()
            .collect();
        if filters.is_empty() {
            return Err(ProfileError("it holds no filter".into()));
        }
        // WHY: of two filters that both answer with an error number, the one put on last wins; by name,
        // "no_such_call" comes after "agent".
        filters.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self(filters.into_iter().map(|(_, program)| program).collect()))
    }

    /// Puts the filters on the calling thread and all it starts. Sets no_new_privs.
    ///
    /// # Errors
    /// Whatever the kernel says.
    pub fn apply(&self) -> io::Result<()> {
        for filter in &self.0 {
            seccompiler::apply_filter(filter).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_profile_compiles_and_bad_ones_do_not() {
        Filters::compile(AGENT_PROFILE).unwrap();
        assert!(Filters::compile("{}").is_err());
        assert!(Filters::compile("{").is_err());
        let unknown = r#"{"a":{"mismatch_action":"allow","match_action":"trap","filter":[{"syscall":"nope"}]}}"#;
        assert!(Filters::compile(unknown).unwrap_err().to_string().contains("nope"));
    }

    #[test]
    fn dangerous_calls_are_not_on_the_list() {
        for call in [
            "io_uring_setup",
            "bpf",
            "keyctl",
            "add_key",
            "request_key",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "userfaultfd",
            "perf_event_open",
            "mount",
            "umount2",
            "move_mount",
            "fsopen",
            "fsmount",
            "open_tree",
            "mount_setattr",
            "pivot_root",
            "chroot",
            "setns",
            "unshare",
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "reboot",
            "open_by_handle_at",
            "name_to_handle_at",
            "fanotify_init",
            "pidfd_getfd",
            "kcmp",
            "swapon",
            "quotactl",
            "syslog",
            "acct",
            "iopl",
            "ioperm",
            "modify_ldt",
            "vhangup",
            "settimeofday",
            "clock_settime",
            "adjtimex",
            "sethostname",
        ] {
            assert!(!AGENT_PROFILE.contains(&format!("\"syscall\": \"{call}\"")), "{call}");
        }
    }
}
