//! A runner for tests: an overlay of the layers in a bubblewrap sandbox. It stands in for the real fence, which is
//! a crate above this one. Needs root and `bwrap`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringfence_image::{Store, build_base, plan_base};
use ringfence_model::work::{Job, JobOutput, Progress, Runner, Silent, Step};
use ringfence_model::{Fault, Report};

/// Runs jobs with `bwrap`, and counts them.
#[derive(Default)]
pub struct Fence {
    /// Jobs run so far.
    pub jobs: AtomicUsize,
}

struct Mounted(tempfile::TempDir);

impl Mounted {
    fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    fn overlay(layers: &[PathBuf]) -> Self {
        let home = tempfile::tempdir().unwrap();
        for folder in ["root", "upper", "work"] {
            std::fs::create_dir(home.path().join(folder)).unwrap();
        }
        let lower: Vec<&str> = layers.iter().rev().map(|l| l.to_str().unwrap()).collect();
        let here = home.path().to_str().unwrap();
        let options = format!("lowerdir={},upperdir={here}/upper,workdir={here}/work", lower.join(":"));
        let status = Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(home.path().join("root"))
            .status()
            .expect("mount");
        assert!(status.success(), "an overlay can be mounted (as root)");
        Self(home)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.root()).status();
    }
}

impl Runner for Fence {
    fn run(&self, job: &Job) -> Result<JobOutput, Report> {
        self.jobs.fetch_add(1, Ordering::SeqCst);
        let mounted = Mounted::overlay(&job.layers);
        let mut command = Command::new("bwrap");
        command.args(["--unshare-all", "--die-with-parent", "--clearenv", "--uid", "65532", "--gid", "65532"]);
        if !job.hosts.is_empty() {
            command.arg("--share-net");
        }
        command.arg("--bind").arg(mounted.root()).arg("/");
        if !job.hosts.is_empty() {
            for file in ["/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt"] {
                command.args(["--ro-bind", file, file]);
            }
        }
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/state"]);
        for mount in &job.mounts {
            command.arg(if mount.writable { "--bind" } else { "--ro-bind" }).arg(&mount.source).arg(&mount.target);
        }
        command.args(["--remount-ro", "/", "--chdir"]).arg(&job.cwd);
        command.args(["--setenv", "SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"]);
        for (name, value) in &job.env {
            command.args(["--setenv", name, value]);
        }
        let output = command
            .arg("--")
            .args(&job.argv)
            .output()
            .map_err(|e| Report::new("test.bwrap", Fault::Host, "cannot run bwrap").cause(e))?;
        Ok(JobOutput {
            code: output.status.code().unwrap_or(255),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            denied: Vec::new(),
        })
    }
}

/// A progress that is called off after so many steps.
#[allow(dead_code)]
pub struct CalledOff(pub AtomicUsize, pub usize);

impl Progress for CalledOff {
    fn tell(&self, _: Step) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst) >= self.1
    }
}

/// A folder of small files.
#[allow(dead_code)]
pub fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).unwrap();
        std::fs::write(path, text).unwrap();
    }
    home
}

/// Lays a Debian Python as if somebody had installed it below a prefix of their own, found through the store.
#[allow(dead_code)]
pub fn lay_host_python(store: &Store, suite: &str, python: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let from = Store::open(scratch.path()).unwrap();
    let image = ringfence_model::manifest::Image {
        suite: Some(suite.into()),
        mirror: None,
        python: None,
        packages: Vec::new(),
    };
    let plan = plan_base(&from, &image, &Silent).unwrap();
    assert_eq!(plan.python, python);
    let base = build_base(&from, &plan, &Fence::default(), &Silent).unwrap();
    let prefix = store.root().join(format!("pythons/{python}-of-{suite}"));
    std::fs::create_dir_all(prefix.parent().unwrap()).unwrap();
    let tree = from.layer_dir(&base[1].diff_id).join("usr");
    assert!(Command::new("cp").arg("-a").args([&tree, &prefix]).status().expect("cp").success());
    let version = &plan.packages.iter().find(|p| p.name == format!("python{python}")).unwrap().version;
    let headers = prefix.join(format!("include/python{python}"));
    std::fs::create_dir_all(&headers).unwrap();
    let line = format!("#define PY_VERSION \"{}\"\n", version.split('-').next().unwrap());
    std::fs::write(headers.join("patchlevel.h"), line).unwrap();
}
