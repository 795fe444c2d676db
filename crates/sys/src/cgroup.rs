//! A cgroup of our own making, with limits, for a process that no container runtime puts into one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup, in each hierarchy that counts memory or tasks. Its folders go when it is dropped, if it is empty then.
pub struct Group {
    folders: Vec<PathBuf>,
}

impl Group {
    /// Makes the cgroup `path` (relative, such as `ringfence/NAME`) with so many bytes of memory and so many tasks.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where neither cgroup v2 nor the v1 controllers are mounted; else what the
    /// kernel says.
    pub fn make(path: &Path, memory: u64, tasks: u64) -> io::Result<Self> {
        let root = Path::new(ROOT);
        let mut group = Self { folders: Vec::new() };
        if root.join("cgroup.controllers").exists() {
            delegate(root, path)?;
            let folder = group.folder(root, path)?;
            fs::write(folder.join("memory.max"), memory.to_string())?;
            // Swap would only put the end off; a kernel without it has no such file.
            let _ = fs::write(folder.join("memory.swap.max"), "0");
            fs::write(folder.join("pids.max"), tasks.to_string())?;
            return Ok(group);
        }
        for (controller, file, most) in [("memory", "memory.limit_in_bytes", memory), ("pids", "pids.max", tasks)] {
            let hierarchy = root.join(controller);
            if !hierarchy.join("cgroup.procs").exists() {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no cgroup controller `{controller}`")));
            }
            let folder = group.folder(&hierarchy, path)?;
            fs::write(folder.join(file), most.to_string())?;
            if controller == "memory" {
                // As above: only where the kernel counts swap.
                let _ = fs::write(folder.join("memory.memsw.limit_in_bytes"), most.to_string());
            }
        }
        Ok(group)
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&self, pid: i32) -> io::Result<()> {
        self.folders.iter().try_for_each(|folder| fs::write(folder.join("cgroup.procs"), pid.to_string()))
    }

    fn folder(&mut self, hierarchy: &Path, path: &Path) -> io::Result<PathBuf> {
        let folder = hierarchy.join(path);
        fs::create_dir_all(&folder)?;
        self.folders.push(folder.clone());
        Ok(folder)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for folder in &self.folders {
            let _ = fs::remove_dir(folder);
            // The folder that all share goes with the last of them; until then this fails, rightly.
            let _ = folder.parent().map(fs::remove_dir);
        }
    }
}

/// Cgroup v2 gives controllers to children only where each parent passes them on.
fn delegate(root: &Path, path: &Path) -> io::Result<()> {
    let mut parent = root.to_path_buf();
    for part in path.parent().unwrap_or(Path::new("")).components() {
        fs::write(parent.join("cgroup.subtree_control"), "+memory +pids")?;
        parent.push(part);
        fs::create_dir_all(&parent)?;
    }
    fs::write(parent.join("cgroup.subtree_control"), "+memory +pids")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Runs a program that fills 64 MiB of memory, in a group with that much or none of it to spare.
    fn filled(name: &str, memory: u64) -> bool {
        let path = PathBuf::from(format!("ringfence/test-{name}-{}", std::process::id()));
        let group = Group::make(&path, memory, 8).unwrap();
        // It waits until it is in the group.
        let mut child = Command::new("head")
            .args(["-c", "1", "/dev/stdin"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        group.take(i32::try_from(child.id()).unwrap()).unwrap();
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        let mut child = Command::new("tail")
            .args(["-c", "64M", "/dev/stdin"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        group.take(i32::try_from(child.id()).unwrap()).unwrap();
        let mut input = child.stdin.take().unwrap();
        let chunk = vec![1u8; 1 << 20];
        for _ in 0..64 {
            if io::Write::write_all(&mut input, &chunk).is_err() {
                break;
            }
        }
        drop(input);
        let done = child.wait().unwrap().success();
        drop(group);
        assert!(!Path::new(ROOT).join("memory").join(&path).exists() && !Path::new(ROOT).join(&path).exists());
        done
    }

    #[test]
    fn who_takes_more_memory_than_its_group_has_is_ended() {
        assert!(!filled("small", 16 << 20));
        assert!(filled("large", 256 << 20), "with a higher limit it ends well");
    }
}
