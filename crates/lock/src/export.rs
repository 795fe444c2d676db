//! A lock in the words of other platforms: pip's requirements, Streamlit's Community Cloud, a Dockerfile.
//!
//! # Source
//! pip's reference, "Requirements File Format" and "Secure installs"; Streamlit's documentation, "App dependencies for your Community
//! Cloud app"; Docker's reference of the Dockerfile.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ringfence_model::manifest::Kind;
use ringfence_model::{Explain, Fault, Manifest};
use serde::Deserialize;

use crate::lockfile::Lock;

/// Pythons that the Community Cloud offers.
const CLOUD_PYTHONS: [&str; 5] = ["3.9", "3.10", "3.11", "3.12", "3.13"];

/// For whom a lock is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// pip, and whatever reads its requirements.
    Requirements,
    /// Streamlit's Community Cloud, and Hugging Face's Spaces of that SDK.
    Streamlit,
    /// `docker build`.
    Docker,
}

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Its path within the folder.
    pub path: &'static str,
    /// Its text.
    pub text: String,
}

/// Why a lock could not be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It does not read as a lock of Python packages.
    #[error("cannot read the packages of `pylock.toml`: {0}")]
    Lock(String),
    /// A package has no digest that another installer could check.
    #[error("package `{0}` of the lock has no digest")]
    NoDigest(String),
    /// The platform does not run such an agent.
    #[error("the platform does not run this agent: {0}")]
    Unfit(String),
    /// A file of that name is there and says something else.
    #[error("`{}` is there already, and differs", .0.display())]
    There(PathBuf),
    /// A file could not be written.
    #[error("cannot write `{}`", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        why: io::Error,
    },
}

impl Explain for ExportError {
    fn code(&self) -> &'static str {
        match self {
            Self::Lock(_) => "export.lock",
            Self::NoDigest(_) => "export.no_digest",
            Self::Unfit(_) => "export.unfit",
            Self::There(_) => "export.there",
            Self::Io { .. } => "export.io",
        }
    }

    fn fault(&self) -> Fault {
        if matches!(self, Self::Io { .. }) { Fault::Host } else { Fault::Caller }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Lock(_) | Self::NoDigest(_) => Some("lock again with `ringfence lock`".into()),
            Self::Unfit(_) => Some("export for another target: `requirements` or `docker`".into()),
            Self::There(_) => Some("name another folder with `--out`, or replace it with `--force`".into()),
            Self::Io { .. } => None,
        }
    }

    fn may_retry(&self) -> bool {
        false
    }
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Option<String>,
    marker: Option<String>,
    #[serde(default)]
    wheels: Vec<File>,
    sdist: Option<File>,
    archive: Option<File>,
}

#[derive(Deserialize)]
struct File {
    url: Option<String>,
    #[serde(default)]
    hashes: toml::Table,
}

/// The files of a lock for a target.
///
/// # Errors
/// [`ExportError`] of the lock, or because the target does not run such an agent.
pub fn export(lock: &Lock, manifest: &Manifest, target: Target) -> Result<Vec<Exported>, ExportError> {
    let requirements = Exported { path: "requirements.txt", text: requirements(lock)? };
    match target {
        Target::Requirements => Ok(vec![requirements]),
        Target::Streamlit => streamlit(lock, manifest, requirements),
        Target::Docker => Ok(vec![docker(lock, manifest), ignored(), requirements]),
    }
}

/// Writes files into a folder: all of them, or none.
///
/// # Errors
/// [`ExportError::There`] for a file that differs, unless it may be replaced; [`ExportError::Io`].
pub fn write(files: &[Exported], folder: &Path, replace: bool) -> Result<(), ExportError> {
    let differs = |file: &Exported| fs::read(folder.join(file.path)).is_ok_and(|there| there != file.text.as_bytes());
    if let Some(file) = files.iter().find(|file| !replace && differs(file)) {
        return Err(ExportError::There(folder.join(file.path)));
    }
    for file in files {
        let path = folder.join(file.path);
        let fail = |why| ExportError::Io { path: path.clone(), why };
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(fail)?;
        let mut whole = tempfile::NamedTempFile::new_in(parent).map_err(fail)?;
        io::Write::write_all(&mut whole, file.text.as_bytes()).map_err(fail)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        whole.as_file().set_permissions(mode).map_err(fail)?;
        whole.persist(&path).map_err(|error| fail(error.error))?;
    }
    Ok(())
}

/// Exact pins with the digests of all files, in the order of their names.
fn requirements(lock: &Lock) -> Result<String, ExportError> {
    let mut written: Written = toml::from_str(lock.text()).map_err(|e| ExportError::Lock(e.message().to_owned()))?;
    written.packages.sort_by(|a, b| a.name.cmp(&b.name));
    let mut text = format!(
        "# Every package of this agent for Python {}, exported from pylock.toml by `ringfence export`.\n",
        lock.base().python
    );
    for package in &written.packages {
        let files = package.wheels.iter().chain(&package.sdist).chain(&package.archive);
        let digest = |file: &File| Some(format!("sha256:{}", file.hashes.get("sha256")?.as_str()?));
        let digests: BTreeSet<String> = files.filter_map(digest).collect();
        if digests.is_empty() {
            return Err(ExportError::NoDigest(package.name.clone()));
        }
        let address = package.archive.as_ref().and_then(|file| file.url.as_deref());
        let what = match (&package.version, address) {
            (_, Some(url)) => format!("{} @ {url}", package.name),
            (Some(version), None) => format!("{}=={version}", package.name),
            (None, None) => return Err(ExportError::Lock(format!("`{}` has no version", package.name))),
        };
        let marker = package.marker.as_ref().map(|marker| format!(" ; {marker}")).unwrap_or_default();
        let _ = write!(text, "{what}{marker}");
        for digest in digests {
            let _ = write!(text, " \\\n    --hash={digest}");
        }
        text.push('\n');
    }
    Ok(text)
}

/// Debian packages that the manifest or the doctor added.
fn libraries(lock: &Lock, manifest: &Manifest) -> BTreeSet<String> {
    let found = lock.recorded().into_iter().flat_map(|recorded| &recorded.changes);
    let found = found.filter(|change| change.repair == ringfence_model::diagnosis::Repair::SystemLibrary);
    found.map(|change| change.what.clone()).chain(manifest.image.packages.iter().cloned()).collect()
}

fn streamlit(lock: &Lock, manifest: &Manifest, requirements: Exported) -> Result<Vec<Exported>, ExportError> {
    let python = &lock.base().python;
    if manifest.kind != Kind::Streamlit {
        return Err(ExportError::Unfit(format!("it is of kind `{}`", manifest.kind.word())));
    }
    if !CLOUD_PYTHONS.contains(&python.as_str()) {
        return Err(ExportError::Unfit(format!("it is locked for Python {python}, which is not offered there")));
    }
    if !lock.packages().iter().any(|package| package.name == "streamlit") {
        return Err(ExportError::Unfit("its lock has no `streamlit`".into()));
    }
    let mut files = vec![requirements];
    let libraries = libraries(lock, manifest);
    if !libraries.is_empty() {
        let text = libraries.into_iter().map(|name| name + "\n").collect();
        files.push(Exported { path: "packages.txt", text });
    }
    // Spaces and other hosts read it; the Community Cloud asks for the version when an app is deployed.
    files.push(Exported { path: "runtime.txt", text: format!("python-{python}\n") });
    Ok(files)
}

fn docker(lock: &Lock, manifest: &Manifest) -> Exported {
    // Inside the fence the gate stands before the agent; a container is reached by its own address.
    let open = |text: &String| text.replace("127.0.0.1", "0.0.0.0");
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let base = lock.base();
    let image = format!("python:{}-slim-{}", base.python, base.suite);
    let install = |packages: &str| {
        format!(
            "RUN apt-get update \\\n && apt-get install -y --no-install-recommends {packages} \\\n && rm -rf \
             /var/lib/apt/lists/*\n"
        )
    };
    let mut text = format!("# Exported from pylock.toml by `ringfence export docker`.\nFROM {image} AS build\n");
    if lock.packages().iter().any(|package| !package.has_wheel) {
        let built = lock.recorded().into_iter().flat_map(|recorded| &recorded.changes);
        let built = built.filter(|change| change.repair == ringfence_model::diagnosis::Repair::BuildTool);
        let mut packages: BTreeSet<&str> = built.map(|change| change.what.as_str()).collect();
        packages.extend(["g++", "make"]);
        text.push_str(&install(&packages.into_iter().collect::<Vec<_>>().join(" ")));
    }
    text.push_str(
        "COPY requirements.txt /tmp/requirements.txt\nRUN python3 -m venv /opt/venv \\\n && /opt/venv/bin/pip install \
         --no-cache-dir --no-deps --require-hashes -r /tmp/requirements.txt\n\n",
    );
    let _ = writeln!(text, "FROM {image}");
    let libraries: Vec<String> = libraries(lock, manifest).into_iter().collect();
    if !libraries.is_empty() {
        text.push_str(&install(&libraries.join(" ")));
    }
    text.push_str("COPY --from=build /opt/venv /opt/venv\nCOPY . /app\nWORKDIR /app\n");
    text.push_str("ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1\n");
    for (name, value) in &manifest.env {
        let _ = writeln!(text, "ENV {name}={}", quoted(&open(value)));
    }
    if let Some(ingress) = &manifest.ingress {
        let _ = writeln!(text, "EXPOSE {}", ingress.port);
    }
    text.push_str("USER 65532:65532\n");
    let entry: Vec<String> = manifest.entry.iter().map(|word| quoted(&open(word))).collect();
    let _ = writeln!(text, "CMD [{}]", entry.join(", "));
    Exported { path: "Dockerfile", text }
}

fn ignored() -> Exported {
    let names =
        [".env", ".env.*", ".git", ".streamlit/secrets.toml", ".venv", "**/__pycache__", "node_modules", "venv"];
    Exported { path: ".dockerignore", text: names.map(|name| format!("{name}\n")).concat() }
}

#[cfg(test)]
mod tests {
    use ringfence_image::BasePlan;
    use ringfence_model::Digest;
    use ringfence_model::diagnosis::{Change, Health, Repair, Sure};

    use super::*;
    use crate::lockfile::Recorded;

    fn lock(streamlit: &str) -> Lock {
        let pylock = format!(
            "lock-version = \"1.0\"\ncreated-by = \"uv\"\n[[packages]]\nname = \"{streamlit}\"\nversion = \"1.40.0\"\nmarker = \
             \"sys_platform == 'linux'\"\nwheels = [{{ url = \"https://f.example/s.whl\", hashes = {{ sha256 = \"bb\" }} }}]\nsdist = {{ \
             url = \"https://f.example/s.tar.gz\", hashes = {{ sha256 = \"aa\" }} }}\n[[packages]]\nname = \"ada\"\nversion = \
             \"1\"\nsdist = {{ url = \"https://f.example/ada.tar.gz\", hashes = {{ sha256 = \"cc\" }} }}\n"
        );
        let base = BasePlan {
            suite: "bookworm".into(),
            architecture: "amd64".into(),
            python: "3.11".into(),
            mirror: None,
            interpreter: None,
            packages: Vec::new(),
            tools: Vec::new(),
        };
        let lock = Lock::make(&pylock, Digest::of(b"i"), Digest::of(b"g"), None, &base).unwrap();
        let change = |repair, what: &str| Change { repair, what: what.into(), why: "w".into(), sure: Sure::Certain };
        let changes = vec![change(Repair::SystemLibrary, "libgl1"), change(Repair::BuildTool, "libpq-dev")];
        lock.recording(&Recorded { health: Health::Starts, why: None, wrong: Vec::new(), changes }).unwrap()
    }

    fn manifest(kind: &str) -> Manifest {
        let text = format!(
            "[agent]\nname = \"a\"\nkind = \"{kind}\"\nentry = [\"streamlit\", \"run\", \"app.py\", \
             \"--server.address=127.0.0.1\"]\nenv = {{ GREETING = \"say \\\"hi\\\"\" }}\n[ingress]\nport = 8501\n"
        );
        Manifest::parse(&text, &|_| Err("none".into())).unwrap()
    }

    const PINS: &str = "# Every package of this agent for Python 3.11, exported from pylock.toml by `ringfence export`.\nada==1 \\\n    \
                        --hash=sha256:cc\nstreamlit==1.40.0 ; sys_platform == 'linux' \\\n    --hash=sha256:aa \\\n    \
                        --hash=sha256:bb\n";

    #[test]
    fn pins_and_digests_are_those_of_the_lock() {
        let files = export(&lock("streamlit"), &manifest("streamlit"), Target::Requirements).unwrap();
        assert_eq!(files, [Exported { path: "requirements.txt", text: PINS.into() }]);
    }

    #[test]
    fn a_platform_gets_what_it_reads_or_says_why_not() {
        let files = export(&lock("streamlit"), &manifest("streamlit"), Target::Streamlit).unwrap();
        let texts: Vec<(&str, &str)> = files.iter().map(|f| (f.path, f.text.as_str())).collect();
        assert_eq!(texts, [("requirements.txt", PINS), ("packages.txt", "libgl1\n"), ("runtime.txt", "python-3.11\n")]);
        for (lock, manifest) in [(lock("streamlit"), manifest("script")), (lock("other"), manifest("streamlit"))] {
            let error = export(&lock, &manifest, Target::Streamlit).unwrap_err();
            assert_eq!(error.code(), "export.unfit", "{error}");
        }
    }

    #[test]
    fn a_dockerfile_builds_the_same_packages() {
        let files = export(&lock("streamlit"), &manifest("streamlit"), Target::Docker).unwrap();
        let text = &files[0].text;
        for line in [
            "FROM python:3.11-slim-bookworm AS build\n",
            " && apt-get install -y --no-install-recommends g++ libpq-dev make \\\n",
            "--no-deps --require-hashes -r /tmp/requirements.txt\n",
            " && apt-get install -y --no-install-recommends libgl1 \\\n",
            "ENV GREETING=\"say \\\"hi\\\"\"\n",
            "EXPOSE 8501\n",
            "USER 65532:65532\n",
            "CMD [\"streamlit\", \"run\", \"app.py\", \"--server.address=0.0.0.0\"]\n",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_there_is_not_written_over() {
        let home = tempfile::tempdir().unwrap();
        let files = export(&lock("streamlit"), &manifest("streamlit"), Target::Streamlit).unwrap();
        fs::write(home.path().join("runtime.txt"), "python-3.9\n").unwrap();
        let error = write(&files, home.path(), false).unwrap_err();
        assert!(matches!(&error, ExportError::There(path) if path.ends_with("runtime.txt")), "{error}");
        assert!(!home.path().join("requirements.txt").exists(), "all or nothing");
        write(&files, home.path(), true).unwrap();
        write(&files, home.path(), false).unwrap();
        assert_eq!(fs::read_to_string(home.path().join("runtime.txt")).unwrap(), "python-3.11\n");
    }
}
