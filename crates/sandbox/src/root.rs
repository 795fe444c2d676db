//! The root file system of a sandbox: the image's layers under a thin layer of this start's own files.
//!
//! Everything is mounted in the shim's private mount namespace, so it is gone when the shim is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags};

use crate::error::SandboxError;
use crate::spec::SandboxSpec;

/// The addresses of the resolver that the agent's files name. Any address would do; these are never routed.
const RESOLV_CONF: &str = "nameserver 198.18.0.1\noptions timeout:2 attempts:1 no-aaaa\n";

/// Where things are mounted for a sandbox.
pub struct Root {
    /// The root directory.
    pub path: PathBuf,
    /// The mounted `/state`, if there is one.
    pub state: Option<PathBuf>,
    /// The sources of the specification's mounts, in order, where the sandbox's root may reach them.
    pub mounts: Vec<PathBuf>,
}

/// Gives the calling process a mount namespace of its own, from which nothing spreads.
///
/// # Errors
/// [`SandboxError::Missing`] where the kernel or the lack of rights refuse.
pub fn private_mounts() -> Result<(), SandboxError> {
    ringfence_sys::process::new_mount_namespace().map_err(|e| {
        SandboxError::missing("mount-namespace", e, "run as root, or allow user namespaces on this host")
    })?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| SandboxError::missing("mount-namespace", e, "run as root"))
}

/// Mounts what does not depend on the gate: the place for everything else, the state volume, the sources.
///
/// # Errors
/// [`SandboxError`] naming the step.
pub fn begin(spec: &SandboxSpec) -> Result<Root, SandboxError> {
    tmpfs(&spec.mount_dir)?;
    let state = spec.state.as_ref().map(|volume| mount_state(spec, volume)).transpose()?;
    // WHY: the container's own root is a stranger to the host and may not walk to these sources, so they are
    // brought here by the shim, and bound from here.
    let mut mounts = Vec::with_capacity(spec.mounts.len());
    for (number, wanted) in spec.mounts.iter().enumerate() {
        let at = spec.mount_dir.join(format!("mount-{number}"));
        bring(&wanted.source, &at)?;
        mounts.push(at);
    }
    Ok(Root { path: spec.mount_dir.join("root"), state, mounts })
}

/// Mounts the layers under the thin layer, with `bundle` in every trust store, and `known_hosts` for SSH.
///
/// # Errors
/// [`SandboxError`] naming the step.
pub fn finish(spec: &SandboxSpec, root: &Root, bundle: &[u8], known_hosts: &str) -> Result<(), SandboxError> {
    let thin = spec.mount_dir.join("thin");
    for folder in [&thin, &root.path] {
        fs::create_dir_all(folder).map_err(SandboxError::step(format!("create `{}`", folder.display())))?;
    }
    fill(spec, &thin, bundle, known_hosts).map_err(SandboxError::step("write the sandbox's own files"))?;
    overlay(spec, &thin, &root.path)
}

fn bring(source: &Path, at: &Path) -> Result<(), SandboxError> {
    let step = || SandboxError::step(format!("mount `{}`", source.display()));
    if source.is_dir() {
        fs::create_dir(at).map_err(step())?;
    } else {
        fs::write(at, []).map_err(step())?;
    }
    rustix::mount::mount_bind(source, at).map_err(|e| step()(e.into()))
}

fn tmpfs(at: &Path) -> Result<(), SandboxError> {
    rustix::mount::mount("ringfence", at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=711,size=16m"))
        .map_err(|e| SandboxError::step(format!("mount a memory file system at `{}`", at.display()))(e.into()))
}

/// Writes what differs from start to start: names, the resolver's address, trust, and empty mount points.
fn fill(spec: &SandboxSpec, thin: &Path, bundle: &[u8], known_hosts: &str) -> std::io::Result<()> {
    let etc = thin.join("etc");
    fs::create_dir_all(&etc)?;
    let name = spec.agent.as_str();
    fs::write(etc.join("hostname"), format!("{name}\n"))?;
    fs::write(etc.join("hosts"), format!("127.0.0.1 localhost {name}\n::1 localhost ip6-localhost ip6-loopback\n"))?;
    fs::write(etc.join("resolv.conf"), RESOLV_CONF)?;
    if !known_hosts.is_empty() {
        fs::create_dir_all(etc.join("ssh"))?;
        fs::write(etc.join("ssh/ssh_known_hosts"), known_hosts)?;
    }
    let system = Path::new("/etc/ssl/certs/ca-certificates.crt").to_path_buf();
    for store in std::iter::once(&system).chain(&spec.trust_stores) {
        let place = below(thin, store)?;
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&place, bundle)?;
    }
    for folder in ["proc", "dev", "tmp", "state", "sys", "run"] {
        fs::create_dir_all(thin.join(folder))?;
    }
    for mount in &spec.mounts {
        let place = below(thin, &mount.target)?;
        if mount.source.is_dir() {
            fs::create_dir_all(&place)?;
        } else {
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&place, [])?;
        }
    }
    make_readable(thin)
}

/// Joins an absolute path of the sandbox below `root`, refusing any way out.
fn below(root: &Path, inside: &Path) -> std::io::Result<PathBuf> {
    let mut path = root.to_path_buf();
    for part in inside.components() {
        match part {
            std::path::Component::Normal(name) => path.push(name),
            std::path::Component::RootDir | std::path::Component::CurDir => {}
            _ => return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "path leaves the sandbox")),
        }
    }
    Ok(path)
}

fn make_readable(folder: &Path) -> std::io::Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            make_readable(&entry.path())?;
        } else {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644))?;
        }
    }
    Ok(())
}

fn overlay(spec: &SandboxSpec, thin: &Path, root: &Path) -> Result<(), SandboxError> {
    let mut lower = thin.display().to_string();
    for layer in spec.layers.iter().rev() {
        let path = layer.display().to_string();
        if path.contains([':', ',', '\\']) {
            return Err(SandboxError::Runtime { doing: "mount the image", why: format!("`{path}` has a `:` or `,`") });
        }
        lower.push(':');
        lower.push_str(&path);
    }
    let mut options = format!("lowerdir={lower}");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if spec.fence.read_only_root {
        flags |= MountFlags::RDONLY;
    } else {
        // Only the tests that show what the read-only root is for come here.
        let (upper, work) = (thin.join(".upper"), thin.join(".work"));
        for folder in [&upper, &work] {
            fs::create_dir_all(folder).map_err(SandboxError::step("create the upper layer"))?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).map_err(SandboxError::step("open it"))?;
        }
        options.push_str(&format!(",upperdir={},workdir={}", upper.display(), work.display()));
    }
    let options = std::ffi::CString::new(options)
        .map_err(|e| SandboxError::Runtime { doing: "mount the image", why: e.to_string() })?;
    rustix::mount::mount("ringfence", root, "overlay", flags, Some(options.as_c_str())).map_err(|e| {
        if e == rustix::io::Errno::NODEV {
            SandboxError::missing("overlayfs", e, "load the kernel module `overlay`")
        } else {
            SandboxError::step("mount the image's layers")(e.into())
        }
    })
}

fn mount_state(spec: &SandboxSpec, volume: &crate::spec::StateVolume) -> Result<PathBuf, SandboxError> {
    let at = spec.mount_dir.join("state");
    fs::create_dir_all(&at).map_err(SandboxError::step("create the mount point of /state"))?;
    if !volume.quota {
        let folder = volume.file.with_extension("folder");
        fs::create_dir_all(&folder).map_err(SandboxError::step("create /state"))?;
        let owner = Some(spec.agent_host_uid());
        chown(&folder, owner, owner).map_err(SandboxError::step("give /state to the agent"))?;
        rustix::mount::mount_bind(&folder, &at).map_err(|e| SandboxError::step("mount /state")(e.into()))?;
        return Ok(at);
    }
    if !volume.file.exists() {
        ringfence_sys::disk::format(&volume.file, volume.size.0, spec.agent_host_uid()).map_err(|e| {
            if e.is_full() {
                return SandboxError::Full { path: volume.file.clone(), why: e.to_string() };
            }
            SandboxError::missing(
                "disk-quota",
                e,
                "install e2fsprogs, or give it up with `[danger] without = [\"disk-quota\"]`",
            )
        })?;
    }
    let (_device_in_use, device) = ringfence_sys::disk::attach(&volume.file).map_err(|e| {
        let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), |s| format!("{e}: {s}"));
        SandboxError::missing(
            "disk-quota",
            why,
            "allow loop devices, or give it up with `[danger] without = [\"disk-quota\"]`",
        )
    })?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount(&device, &at, "ext4", flags, None::<&std::ffi::CStr>)
        .map_err(|e| SandboxError::step("mount /state")(e.into()))?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_sandbox() {
        let root = Path::new("/x/root");
        assert_eq!(below(root, Path::new("/etc/ssl")).unwrap(), root.join("etc/ssl"));
        assert!(below(root, Path::new("/../etc")).is_err());
        assert!(below(root, Path::new("/a/../../etc")).is_err());
    }
}
