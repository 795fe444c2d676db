//! Locks that other tools wrote into a folder: which versions an agent was last known to work with.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pep440_rs::Version;

use crate::declared::normalise;

/// The largest lock that is read; with hashes of all files, one of some hundred packages has a few MiB.
const LIMIT: u64 = 32 << 20;
const PACKAGES: usize = 5_000;

/// The versions that another tool's lock pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// The lock's name in the folder.
    pub file: String,
    /// Requirements such as `six==1.16.0`, sorted by name.
    pub pins: Vec<String>,
}

/// The lock of a folder that another tool wrote, if there is one and it reads.
///
/// A distribution that a lock has in several versions, for several environments, is not pinned.
#[must_use]
pub fn pins(folder: &Path) -> Option<Pins> {
    type Reader = fn(&str) -> Option<Vec<(String, String)>>;
    const LOCKS: [(&str, Reader); 6] = [
        ("uv.lock", packages),
        ("poetry.lock", packages),
        ("pdm.lock", packages),
        ("Pipfile.lock", pipfile),
        ("requirements.lock", lines),
        ("requirements-lock.txt", lines),
    ];
    LOCKS.iter().find_map(|(file, read)| {
        let path = folder.join(file);
        let meta = fs::symlink_metadata(&path).ok().filter(|meta| meta.is_file() && meta.len() <= LIMIT)?;
        let found = read(&fs::read_to_string(&path).ok().filter(|_| meta.len() > 0)?)?;
        let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, version) in found.into_iter().take(PACKAGES) {
            // What is no version of a release is no bound: a folder of the agent's own, or junk.
            if version.parse::<Version>().is_ok_and(|version| !version.is_local()) && is_name(&name) {
                versions.entry(normalise(&name)).or_default().push(version);
            }
        }
        let one = |(name, mut versions): (String, Vec<String>)| {
            versions.dedup();
            (versions.len() == 1).then(|| format!("{name}=={}", versions.pop().unwrap_or_default()))
        };
        let pins: Vec<String> = versions.into_iter().filter_map(one).collect();
        (!pins.is_empty()).then(|| Pins { file: (*file).to_owned(), pins })
    })
}

fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    plain && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// `[[package]]` tables, as uv, Poetry and PDM write them; not the folder's own, nor what comes from a repository.
fn packages(text: &str) -> Option<Vec<(String, String)>> {
    let document: toml::Table = toml::from_str(text).ok()?;
    let released = |package: &toml::Table| {
        let source = package.get("source").and_then(toml::Value::as_table);
        let elsewhere = ["git", "directory", "editable", "virtual", "path"];
        let kind = source.and_then(|source| source.get("type")?.as_str()).unwrap_or_default();
        !source.is_some_and(|source| elsewhere.iter().any(|key| source.contains_key(*key)))
            && !elsewhere.contains(&kind)
            && !package.contains_key("git")
    };
    let word = |package: &toml::Table, key: &str| package.get(key)?.as_str().map(str::to_owned);
    let list = document.get("package")?.as_array()?.iter().filter_map(toml::Value::as_table).filter(|p| released(p));
    Some(list.filter_map(|package| Some((word(package, "name")?, word(package, "version")?))).collect())
}

/// Pipenv's `default` group.
fn pipfile(text: &str) -> Option<Vec<(String, String)>> {
    let document: serde_json::Value = serde_json::from_str(text).ok()?;
    let group = document.get("default")?.as_object()?;
    let version = |of: &serde_json::Value| of.get("version")?.as_str()?.strip_prefix("==").map(str::to_owned);
    Some(group.iter().filter_map(|(name, of)| Some((name.clone(), version(of)?))).collect())
}

/// Lines of exact pins, as pip-tools and Rye write them.
fn lines(text: &str) -> Option<Vec<(String, String)>> {
    let pinned = |line: &str| {
        let line = line.split([';', '#', '\\', ' ']).next()?.trim();
        let (name, version) = line.split_once("==")?;
        Some((name.split('[').next()?.to_owned(), version.to_owned()))
    };
    Some(
        text.lines()
            .filter(|line| !line.trim_start().starts_with('-'))
            .filter_map(|line| pinned(line.trim()))
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, text: &str) -> Option<Vec<String>> {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(file), text).unwrap();
        let found = pins(home.path());
        assert!(found.as_ref().is_none_or(|pins| pins.file == file));
        found.map(|pins| pins.pins)
    }

    #[test]
    fn locks_of_other_tools_are_read() {
        let uv = "version = 1\n[[package]]\nname = \"app\"\nversion = \"0.1\"\nsource = { virtual = \".\" }\n[[package]]\nname = \
                  \"Six_X\"\nversion = \"1.16.0\"\nsource = { registry = \"https://i.example/simple\" }\n[[package]]\nname = \
                  \"numpy\"\nversion = \"1.26\"\n[[package]]\nname = \"numpy\"\nversion = \"2.0\"\n[[package]]\nname = \
                  \"torch\"\nversion = \"2.1+cpu\"\n";
        assert_eq!(of("uv.lock", uv).unwrap(), ["six-x==1.16.0"]);
        let poetry = "[[package]]\nname = \"idna\"\nversion = \"3.7\"\n[[package]]\nname = \"own\"\nversion = \"1\"\n\
                      [package.source]\ntype = \"git\"\nurl = \"https://g.example/own\"\n";
        assert_eq!(of("poetry.lock", poetry).unwrap(), ["idna==3.7"]);
        let pipenv = r#"{"default": {"six": {"version": "==1.16.0"}, "own": {"git": "x"}}, "develop": {"x": {"version": "==1"}}}"#;
        assert_eq!(of("Pipfile.lock", pipenv).unwrap(), ["six==1.16.0"]);
        let rye = "# generated\n-e file:.\nidna==3.7 \\\n    --hash=sha256:aa\nuvicorn[standard]==0.30.1 ; x\n";
        assert_eq!(of("requirements.lock", rye).unwrap(), ["idna==3.7", "uvicorn==0.30.1"]);
        for junk in ["", "[[", "[package]\n", "[[package]]\nname = \"a b\"\nversion = \"1\"\n"] {
            assert_eq!(of("uv.lock", junk), None, "{junk}");
        }
        assert_eq!(of("Pipfile.lock", "[]"), None);
    }
}
