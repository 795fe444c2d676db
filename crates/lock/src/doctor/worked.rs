//! When a folder's code was worked on last, from the history of its repository.
//!
//! The repository is a stranger's: the host's `git` reads commits in it and nothing else. What a repository's own configuration could
//! have it run is turned off, and no object is fetched.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Files whose change is work on the code, or on what it needs.
const WORK: [&str; 13] = [
    "*.py",
    "*.ipynb",
    "*requirements*.txt",
    "*requirements*.in",
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
    "Pipfile",
    "Pipfile.lock",
    "poetry.lock",
    "uv.lock",
    "environment.yml",
    "environment.yaml",
];

/// How many commits are looked at, how much is read, and for how long.
const COMMITS: &str = "-n24";
const OUTPUT: u64 = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(5);

/// A commit that changes more folders than this beside ours is about all of a collection, and not about ours.
const FOLDERS: usize = 8;

/// When the code in a folder was last worked on; of a collection's mass edits, none counts unless there is nothing else.
#[must_use]
pub fn worked_on(folder: &Path) -> Option<Timestamp> {
    let folder = folder.canonicalize().ok()?;
    let repository = folder.ancestors().find(|above| above.join(".git").exists())?;
    let prefix = folder.strip_prefix(repository).ok()?.to_str()?.to_owned();
    newest(&log(&folder, repository)?, &prefix)
}

/// The date of the newest commit that is about the folder: `\0DATE\n`, then paths from the repository's root on.
fn newest(log: &str, prefix: &str) -> Option<Timestamp> {
    let commits: Vec<(Timestamp, Vec<&str>)> = log
        .split('\0')
        .filter_map(|commit| {
            let (date, paths) = commit.trim_start().split_once('\n').unwrap_or((commit.trim(), ""));
            let date = date.trim().parse().ok()?;
            Some((date, paths.lines().filter(|path| !path.is_empty()).collect()))
        })
        .collect();
    let own = commits.iter().find(|(_, paths)| !is_mass_edit(paths, prefix));
    // The oldest of mass edits: later ones say even less of when it was written.
    own.or(commits.last()).map(|(date, _)| *date)
}

fn is_mass_edit(paths: &[&str], prefix: &str) -> bool {
    let outside = paths.iter().filter(|path| !prefix.is_empty() && !path.starts_with(prefix));
    let folders: BTreeSet<&str> = outside.map(|path| path.rsplit_once('/').map_or("", |(folder, _)| folder)).collect();
    folders.len() > FOLDERS
}

fn log(folder: &Path, repository: &Path) -> Option<String> {
    let owner = std::fs::metadata(repository).ok()?;
    let mut command = Command::new("git");
    command.args(["--no-pager", "--no-replace-objects", "-c", "safe.directory=*"]);
    for setting in [
        "core.fsmonitor=false",
        "core.hooksPath=/dev/null",
        "core.attributesFile=/dev/null",
        "core.excludesFile=/dev/null",
        "log.showSignature=false",
        "log.mailmap=false",
        "protocol.allow=never",
    ] {
        command.args(["-c", setting]);
    }
    command.args(["log", COMMITS, "--format=%x00%aI", "--name-only", "--no-renames", "--full-diff"]);
    command.args(["--no-ext-diff", "--no-textconv", "--no-show-signature", "--no-notes", "HEAD", "--"]);
    command.args(WORK);
    command.current_dir(folder).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    for (name, value) in [
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_ATTR_NOSYSTEM", "1"),
        ("GIT_NO_LAZY_FETCH", "1"),
        ("GIT_OPTIONAL_LOCKS", "0"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("HOME", "/nonexistent"),
        ("LC_ALL", "C"),
    ] {
        command.env(name, value);
    }
    if unix_root() && owner.uid() != 0 {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0).spawn().ok()?;
    let mut from = child.stdout.take()?.take(OUTPUT);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map(|_| bytes)
    });
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until && !reader.is_finished() {
        std::thread::sleep(Duration::from_millis(5));
    }
    // What was read until now counts: the newest commits come first.
    drop(child.kill());
    drop(child.wait());
    let bytes = reader.join().ok()?.ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn unix_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mass_edits_do_not_count() {
        let many: String = (0..20).map(|n| format!("all/{n}/main.py\n")).collect();
        let log = format!(
            "\02025-05-01T00:00:00+02:00\n\nall/one/main.py\n{many}\n\02024-03-01T00:00:00Z\n\nall/one/main.py\nREADME.md\n\
             \02023-01-01T00:00:00Z\n\nall/one/main.py\n"
        );
        assert_eq!(newest(&log, "all/one").unwrap().to_string(), "2024-03-01T00:00:00Z");
        assert_eq!(newest(&log, "").unwrap().to_string(), "2025-04-30T22:00:00Z", "a repository of its own");
        let only = format!("\02025-05-01T00:00:00Z\n\nall/one/main.py\n{many}");
        assert_eq!(newest(&only, "all/one").unwrap().to_string(), "2025-05-01T00:00:00Z");
        assert_eq!(newest("", "x"), None);
        assert_eq!(newest("\0junk\n", "x"), None);
    }

    #[test]
    fn a_repository_runs_nothing() {
        let home = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            let done = Command::new("git")
                .args(["-c", "user.name=a", "-c", "user.email=a@example.com"])
                .args(arguments)
                .current_dir(home.path())
                .env("GIT_AUTHOR_DATE", "2024-02-03T04:05:06Z")
                .output()
                .unwrap();
            assert!(done.status.success(), "{done:?}");
        };
        run(&["init", "-q"]);
        std::fs::write(home.path().join("main.py"), "print(1)\n").unwrap();
        run(&["add", "."]);
        run(&["commit", "-q", "-m", "one"]);
        std::fs::write(home.path().join("notes.md"), "later\n").unwrap();
        run(&["add", "."]);
        let later = ["-c", "core.hooksPath=/dev/null", "commit", "-q", "-m", "two", "--date=2025-01-01T00:00:00Z"];
        run(&later);
        let mark = home.path().join("ran");
        let script = home.path().join("evil.sh");
        std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", mark.display())).unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for key in ["core.fsmonitor", "core.pager", "pager.log", "diff.external", "gpg.program", "core.sshCommand"] {
            run(&["config", key, script.to_str().unwrap()]);
        }
        run(&["config", "log.showSignature", "true"]);
        assert_eq!(worked_on(home.path()).unwrap().to_string(), "2024-02-03T04:05:06Z");
        assert!(!mark.exists());
        assert_eq!(worked_on(Path::new("/proc")), None);
    }
}
