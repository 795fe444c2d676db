//! `pylock.toml`: the Python packages as PEP 751 has them, and in `[tool.ringfence]` the Debian packages and what the
//! lock was made from.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;

use jiff::Timestamp;
use ringfence_image::{BasePlan, LockedPackage};
use ringfence_model::Digest;
use ringfence_model::diagnosis::{Change, Health};
use ringfence_model::work::JobHost;
use serde::{Deserialize, Serialize};
use toml_edit::Value;

use crate::error::{LockError, OnPath};
use crate::index::host_of;

/// The name of the lock in an agent's folder.
pub const FILE_NAME: &str = "pylock.toml";
const FORMAT: u64 = 1;
const LIMIT: u64 = 64 << 20;

/// A lock that was read or made.
#[derive(Clone, Debug, PartialEq)]
pub struct Lock {
    text: String,
    inputs: Digest,
    image_inputs: Digest,
    base: BasePlan,
    packages: Vec<PythonPackage>,
    hosts: BTreeSet<JobHost>,
    as_of: Option<Timestamp>,
    recorded: Option<Recorded>,
}

/// What the doctor found when the lock was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recorded {
    /// Whether it starts.
    pub health: Health,
    /// What it waits for, or what its code raises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was wrong with what the folder says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrong: Vec<String>,
    /// What was changed so that it starts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

/// One locked Python package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PythonPackage {
    /// Its name.
    pub name: String,
    /// Its version, where it has one.
    pub version: Option<String>,
    /// Whether it has a wheel; else it is built from source.
    pub has_wheel: bool,
}

#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    packages: Vec<WrittenPackage>,
    tool: Option<WrittenTool>,
}

#[derive(Deserialize)]
struct WrittenPackage {
    name: String,
    version: Option<String>,
    #[serde(default)]
    wheels: Vec<WrittenFile>,
    sdist: Option<WrittenFile>,
    archive: Option<WrittenFile>,
    vcs: Option<toml::Table>,
    directory: Option<toml::Table>,
}

#[derive(Deserialize)]
struct WrittenFile {
    url: Option<String>,
}

#[derive(Deserialize)]
struct WrittenTool {
    ringfence: Option<WrittenOurs>,
}

#[derive(Deserialize)]
struct WrittenOurs {
    format: u64,
    inputs: Digest,
    image: Digest,
    as_of: Option<Timestamp>,
    base: BasePlan,
    doctor: Option<Recorded>,
}

fn unusable(why: impl Into<String>) -> LockError {
    LockError::Unusable { file: FILE_NAME, why: why.into() }
}

impl Lock {
    /// Reads the lock of a folder; `None` if there is none, or none of ours.
    ///
    /// # Errors
    /// [`LockError::Unusable`] if it does not parse.
    pub fn read(folder: &Path) -> Result<Option<Self>, LockError> {
        let path = folder.join(FILE_NAME);
        match std::fs::metadata(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).on("look at", &path),
            Ok(meta) if meta.len() > LIMIT => return Err(unusable("it is too large")),
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(&path).on("read", &path)?;
        Self::parse(text)
    }

    fn parse(text: String) -> Result<Option<Self>, LockError> {
        let written: Written = toml::from_str(&text).map_err(|e| unusable(e.message()))?;
        let Some(ours) = written.tool.and_then(|t| t.ringfence) else { return Ok(None) };
        if ours.format != FORMAT {
            return Err(unusable(format!("it has format {}, and this version reads {FORMAT}", ours.format)));
        }
        let mut hosts = BTreeSet::new();
        let mut packages = Vec::new();
        for package in written.packages {
            if package.vcs.is_some() || package.directory.is_some() {
                return Err(unusable(format!("package `{}` comes from no released file", package.name)));
            }
            let has_wheel = !package.wheels.is_empty() || package.archive.is_some();
            let files = package.wheels.iter().chain(&package.sdist).chain(&package.archive);
            hosts.extend(files.filter_map(|f| host_of(f.url.as_deref()?)));
            packages.push(PythonPackage { name: package.name, version: package.version, has_wheel });
        }
        let WrittenOurs { inputs, image: image_inputs, as_of, base, doctor: recorded, .. } = ours;
        Ok(Some(Self { inputs, image_inputs, base, packages, hosts, as_of, recorded, text }))
    }

    /// Makes a lock of what `uv` wrote.
    pub(crate) fn make(
        pylock: &str,
        inputs: Digest,
        image: Digest,
        as_of: Option<Timestamp>,
        base: &BasePlan,
    ) -> Result<Self, LockError> {
        let mut text =
            String::from("# Pins every package of this agent's image. Written by `ringfence lock`; do not edit.\n");
        text.push_str(pylock.trim_end());
        text.push_str("\n\n[tool.ringfence]\n");
        let _ = write!(text, "format = {FORMAT}\ninputs = \"{inputs}\"\nimage = \"{image}\"\n");
        let _ = as_of.map(|moment| writeln!(text, "as_of = \"{moment}\""));
        text.push_str("\n[tool.ringfence.base]\n");
        for (key, value) in [("suite", &base.suite), ("architecture", &base.architecture), ("python", &base.python)] {
            let _ = writeln!(text, "{key} = {}", quoted(value));
        }
        if let Some(mirror) = &base.mirror {
            let _ = writeln!(text, "mirror = {}", quoted(mirror));
        }
        if let Some(i) = &base.interpreter {
            let without = i.without.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
            let _ = writeln!(
                text,
                "interpreter = {{ source = {}, version = {}, tree = \"{}\", without = [{without}] }}",
                quoted(i.source.as_str()),
                quoted(&i.version),
                i.tree
            );
        }
        write_packages(&mut text, "package", &base.packages);
        if !base.tools.is_empty() {
            write_packages(&mut text, "tool", &base.tools);
        }
        Self::parse(text)?.ok_or_else(|| unusable("the resolver wrote none"))
    }

    /// Writes the lock into a folder, whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), LockError> {
        let path = folder.join(FILE_NAME);
        let mut file = tempfile::NamedTempFile::new_in(folder).on("make file in", folder)?;
        std::io::Write::write_all(&mut file, self.text.as_bytes()).on("write", &path)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode).on("set mode of", &path)?;
        file.persist(&path).map_err(|e| e.error).on("write", &path)?;
        Ok(())
    }

    /// The same lock, with what the doctor found.
    pub(crate) fn recording(&self, recorded: &Recorded) -> Result<Self, LockError> {
        let key =
            |name: &str, inner: toml::Table| toml::Table::from_iter([(name.to_owned(), toml::Value::Table(inner))]);
        let table = toml::Table::try_from(recorded).map_err(|e| unusable(e.to_string()))?;
        let table = key("tool", key("ringfence", key("doctor", table)));
        let text = format!("{}\n{}", self.text, toml::to_string(&table).map_err(|e| unusable(e.to_string()))?);
        Self::parse(text)?.ok_or_else(|| unusable("the record was not taken"))
    }

    /// What the doctor found when it was made.
    pub(crate) const fn recorded(&self) -> Option<&Recorded> {
        self.recorded.as_ref()
    }

    /// The last moment whose releases counted.
    pub(crate) const fn as_of(&self) -> Option<Timestamp> {
        self.as_of
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The lock's name by content.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.text.as_bytes())
    }

    /// The Debian packages.
    #[must_use]
    pub const fn base(&self) -> &BasePlan {
        &self.base
    }

    /// The Python packages.
    #[must_use]
    pub fn packages(&self) -> &[PythonPackage] {
        &self.packages
    }

    /// Digest of what the lock was made from.
    #[must_use]
    pub const fn inputs(&self) -> &Digest {
        &self.inputs
    }

    pub(crate) const fn image_inputs(&self) -> &Digest {
        &self.image_inputs
    }

    /// Hosts of the locked files.
    pub(crate) const fn hosts(&self) -> &BTreeSet<JobHost> {
        &self.hosts
    }
}

fn write_packages(text: &mut String, key: &str, packages: &[LockedPackage]) {
    let _ = writeln!(text, "{key} = [");
    for p in packages {
        let archive = serde_json::to_value(p.archive).ok().and_then(|v| v.as_str().map(str::to_owned));
        let _ = writeln!(
            text,
            "    {{ name = {}, version = {}, architecture = {}, archive = {}, path = {}, size = {}, sha256 = \"{}\" }},",
            quoted(&p.name),
            quoted(&p.version),
            quoted(&p.architecture),
            quoted(&archive.unwrap_or_default()),
            quoted(&p.path),
            p.size,
            p.sha256
        );
    }
    text.push_str("]\n");
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use ringfence_image::Interpreter;
    use ringfence_image::debian::Archive;
    use ringfence_image::interpreter::Source;

    use super::*;

    fn plan() -> BasePlan {
        BasePlan {
            suite: "bookworm".into(),
            architecture: "amd64".into(),
            python: "3.11".into(),
            mirror: Some("http://m.example/debian".into()),
            interpreter: None,
            packages: vec![LockedPackage {
                name: "libc6".into(),
                version: "2.36-9+deb12u1".into(),
                architecture: "amd64".into(),
                archive: Archive::Security,
                path: "pool/g/libc6.deb".into(),
                size: 7,
                sha256: Digest::of(b"libc6"),
            }],
            tools: Vec::new(),
        }
    }

    const PYLOCK: &str = "lock-version = \"1.0\"\ncreated-by = \"uv\"\n\n[[packages]]\nname = \"six\"\nversion = \"1\"\nwheels = \
                          [{ url = \"https://f.example/six.whl\", hashes = { sha256 = \"aa\" } }]\n\n[[packages]]\nname = \
                          \"old\"\nversion = \"2\"\nsdist = { url = \"https://g.example/old.tar.gz\", hashes = {} }\n";

    #[test]
    fn a_lock_reads_as_it_was_written() {
        let lock = Lock::make(PYLOCK, Digest::of(b"i"), Digest::of(b"g"), None, &plan()).unwrap();
        let home = tempfile::tempdir().unwrap();
        lock.write(home.path()).unwrap();
        let read = Lock::read(home.path()).unwrap().unwrap();
        assert_eq!(read, lock);
        assert_eq!(read.base(), &plan());
        assert_eq!(read.packages().iter().map(|p| p.has_wheel).collect::<Vec<_>>(), [true, false]);
        assert_eq!(read.hosts().len(), 2);
    }

    #[test]
    fn an_interpreter_of_the_host_is_in_the_lock() {
        let interpreter = Some(Interpreter {
            source: Source::Pyenv,
            version: "3.12.1".into(),
            tree: Digest::of(b"tree"),
            without: vec!["nis.cpython-312-x86_64-linux-gnu.so".into()],
        });
        let base = BasePlan { python: "3.12".into(), interpreter, ..plan() };
        let lock = Lock::make(PYLOCK, Digest::of(b"i"), Digest::of(b"g"), None, &base).unwrap();
        assert_eq!(lock.base(), &base);
        assert_ne!(base.digest(), BasePlan { interpreter: None, ..base.clone() }.digest());
        // Who installed it does not count: the same tree is the same image.
        let mut moved = base.clone();
        moved.interpreter.as_mut().unwrap().source = Source::Uv;
        assert_eq!(moved.digest(), base.digest());
    }

    #[test]
    fn build_tools_are_in_the_lock_and_not_in_the_image() {
        let tools = vec![LockedPackage { name: "g++".into(), ..plan().packages[0].clone() }];
        let base = BasePlan { tools, ..plan() };
        let lock = Lock::make(PYLOCK, Digest::of(b"i"), Digest::of(b"g"), None, &base).unwrap();
        assert_eq!(lock.base(), &base);
        assert_eq!(base.digest(), plan().digest());
    }

    #[test]
    fn other_locks_are_told_apart() {
        let home = tempfile::tempdir().unwrap();
        assert!(Lock::read(home.path()).unwrap().is_none());
        assert!(Lock::parse(PYLOCK.into()).unwrap().is_none(), "a lock of another tool");
        assert!(matches!(Lock::parse("[[".into()), Err(LockError::Unusable { .. })));
        let lock = Lock::make(PYLOCK, Digest::of(b"i"), Digest::of(b"g"), None, &plan()).unwrap();
        let newer = lock.text().replace("format = 1", "format = 2");
        assert!(matches!(Lock::parse(newer), Err(LockError::Unusable { .. })));
        let vcs = format!("{PYLOCK}[[packages]]\nname = \"v\"\nvcs = {{ type = \"git\" }}\n");
        assert!(Lock::make(&vcs, Digest::of(b"i"), Digest::of(b"g"), None, &plan()).is_err());
    }
}
