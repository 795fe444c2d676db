//! From a [`SandboxSpec`] to an OCI runtime specification, which libcontainer or any OCI runtime takes.

use std::path::PathBuf;

use oci_spec::runtime::{
    Capabilities, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxIdMappingBuilder, LinuxMemoryBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResourcesBuilder, Mount, MountBuilder,
    PosixRlimitBuilder, PosixRlimitType, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use ringfence_model::SandboxId;
use ringfence_sys::join::Resource;

use crate::error::SandboxError;
use crate::root::Root;
use crate::spec::{AGENT_UID, SandboxSpec, UIDS_PER_AGENT};

/// Files of `/proc` that show or change the host.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
];

/// Trees of `/proc` that only the host may change.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The period over which CPU time is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// The cgroup of a sandbox, below every hierarchy's root.
#[must_use]
pub fn cgroup_path(spec: &SandboxSpec) -> PathBuf {
    PathBuf::from(format!("/ringfence/{}", spec.id))
}

/// The cgroup of a sandbox's gate: beside the sandbox's own, so that neither takes the other's memory.
#[must_use]
pub fn gate_cgroup(id: &SandboxId) -> PathBuf {
    PathBuf::from(format!("ringfence/{id}-gate"))
}

/// Builds the specification.
///
/// # Errors
/// [`SandboxError::Runtime`] if the builder refuses a value.
pub fn specification(spec: &SandboxSpec, root: &Root) -> Result<Spec, SandboxError> {
    build(spec, root)
        .map_err(|e| SandboxError::Runtime { doing: "describe the sandbox to the runtime", why: e.to_string() })
}

fn build(spec: &SandboxSpec, root: &Root) -> Result<Spec, oci_spec::OciSpecError> {
    let none = LinuxCapabilitiesBuilder::default()
        .bounding(Capabilities::new())
        .effective(Capabilities::new())
        .inheritable(Capabilities::new())
        .permitted(Capabilities::new())
        .ambient(Capabilities::new())
        .build()?;
    let mut process = ProcessBuilder::default()
        .terminal(false)
        .args(spec.argv.clone())
        .env(spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>())
        .cwd(spec.cwd.clone())
        .user(UserBuilder::default().uid(AGENT_UID).gid(AGENT_UID).umask(0o022u32).build()?)
        .rlimits(resource_limits(spec).into_iter().map(limit).collect::<Result<Vec<_>, _>>()?)
        .oom_score_adj(500);
    if spec.fence.no_privileges {
        process = process.no_new_privileges(true).capabilities(none);
    } else {
        let all: Capabilities =
            [oci_spec::runtime::Capability::SysAdmin, oci_spec::runtime::Capability::NetRaw].into_iter().collect();
        process = process.no_new_privileges(false).user(UserBuilder::default().uid(0u32).gid(0u32).build()?);
        process = process.capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(all.clone())
                .effective(all.clone())
                .permitted(all)
                .inheritable(Capabilities::new())
                .ambient(Capabilities::new())
                .build()?,
        );
    }
    SpecBuilder::default()
        .version("1.1.0")
        .hostname(spec.agent.as_str())
        .root(RootBuilder::default().path(root.path.clone()).readonly(spec.fence.read_only_root).build()?)
        .process(process.build()?)
        .mounts(mounts(spec, root)?)
        .linux(linux(spec)?)
        .build()
}

/// What each process inside may use up, the agent's and every command's.
#[must_use]
pub fn resource_limits(spec: &SandboxSpec) -> [(Resource, u64); 2] {
    [(Resource::Nofile, u64::from(spec.limits.files)), (Resource::Core, 0)]
}

fn limit((kind, most): (Resource, u64)) -> Result<oci_spec::runtime::PosixRlimit, oci_spec::OciSpecError> {
    let kind = if kind == Resource::Core { PosixRlimitType::RlimitCore } else { PosixRlimitType::RlimitNofile };
    PosixRlimitBuilder::default().typ(kind).soft(most).hard(most).build()
}

fn linux(spec: &SandboxSpec) -> Result<oci_spec::runtime::Linux, oci_spec::OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Cgroup,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Uts,
    ];
    let mut linux = LinuxBuilder::default().cgroups_path(cgroup_path(spec));
    if spec.fence.user_namespace {
        kinds.push(LinuxNamespaceType::User);
        let map = LinuxIdMappingBuilder::default()
            .container_id(0u32)
            .host_id(spec.uid_base())
            .size(UIDS_PER_AGENT)
            .build()?;
        linux = linux.uid_mappings(vec![map]).gid_mappings(vec![map]);
    }
    // The network namespace is the shim's: made beforehand, owned by the host, so that nothing inside has any
    // right over it.
    let namespaces = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    linux = linux.namespaces(namespaces);
    if spec.fence.cgroup {
        let memory = i64::try_from(spec.limits.memory.0).unwrap_or(i64::MAX);
        #[allow(clippy::cast_possible_truncation, reason = "cpus is checked to lie between 0.01 and 4096")]
        let quota = (spec.limits.cpus * CPU_PERIOD_US as f64) as i64;
        linux = linux.resources(
            LinuxResourcesBuilder::default()
                .memory(LinuxMemoryBuilder::default().limit(memory).swap(memory).build()?)
                .cpu(LinuxCpuBuilder::default().period(CPU_PERIOD_US).quota(quota).build()?)
                .pids(LinuxPidsBuilder::default().limit(i64::from(spec.limits.pids)).build()?)
                .build()?,
        );
    } else {
        linux = linux.resources(LinuxResourcesBuilder::default().build()?);
    }
    if spec.fence.masks {
        linux = linux
            .masked_paths(MASKED.map(str::to_owned).to_vec())
            .readonly_paths(READ_ONLY.map(str::to_owned).to_vec());
    } else {
        linux = linux.masked_paths(Vec::new()).readonly_paths(Vec::new());
    }
    linux.build()
}

fn mounts(spec: &SandboxSpec, root: &Root) -> Result<Vec<Mount>, oci_spec::OciSpecError> {
    let tmp = format!("size={}", spec.limits.tmp.0);
    let quiet = ["nosuid", "nodev", "noexec"];
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &quiet)?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "nodev", "noexec", "mode=1777", &tmp])?,
        mount("/tmp", "tmpfs", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777", &tmp])?,
    ];
    match &root.state {
        Some(state) => {
            mounts.push(bind("/state", state, &["bind", "rw", "nosuid", "nodev", "noexec"])?);
        }
        None => mounts.push(mount("/state", "tmpfs", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777", &tmp])?),
    }
    for (wanted, source) in spec.mounts.iter().zip(&root.mounts) {
        let mut options = vec!["bind", "nosuid", "nodev"];
        options.push(if wanted.writable { "rw" } else { "ro" });
        if !wanted.executable {
            options.push("noexec");
        }
        mounts.push(bind(&wanted.target.display().to_string(), source, &options)?);
    }
    Ok(mounts)
}

fn mount(at: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, oci_spec::OciSpecError> {
    MountBuilder::default()
        .destination(at)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

fn bind(at: &str, source: &std::path::Path, options: &[&str]) -> Result<Mount, oci_spec::OciSpecError> {
    MountBuilder::default()
        .destination(at)
        .typ("bind")
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}
