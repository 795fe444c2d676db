//! Where Debian packages come from: the host's apt configuration, or the manifest's mirror.
//!
//! Only Debian's own entries count. Third-party entries are told apart by their suite and components here, and by
//! the origin in their signed release file later.

use std::fs;
use std::path::{Path, PathBuf};

use super::Archive;
use crate::error::{ImageError, OnPath};

/// Suites by name and the Python they bring, newest last; the table chooses a suite for a wanted Python.
pub const SUITES: [(&str, &str); 3] = [("bullseye", "3.9"), ("bookworm", "3.11"), ("trixie", "3.13")];
/// The suite when nothing is asked for.
pub const DEFAULT_SUITE: &str = "bookworm";
const FLOATING: [&str; 6] = ["stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"];
const NAMED: [&str; 7] = ["stretch", "buster", "bullseye", "bookworm", "trixie", "forky", "duke"];
const KEYRINGS: [&str; 2] =
    ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Whose signature is believed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Keys {
    /// A keyring file.
    File(PathBuf),
    /// An ASCII-armoured key in the configuration itself.
    Inline(String),
}

/// One suite at one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pocket {
    pub uri: String,
    pub suite: String,
    pub components: Vec<String>,
    pub keys: Vec<Keys>,
    pub archive: Archive,
    /// Whether it may be missing: a mirror that the manifest names need not have all pockets.
    pub optional: bool,
}

impl Pocket {
    /// The address of a file below the pocket's `dists` folder.
    pub(crate) fn dist(&self, file: &str) -> String {
        format!("{}/dists/{}/{file}", self.uri, self.suite)
    }
}

/// The pockets of `suite`, from the manifest's mirror or the host's apt configuration below `etc`.
pub(crate) fn pockets(suite: &str, mirror: Option<&str>, etc: &Path) -> Result<Vec<Pocket>, ImageError> {
    let found = match mirror {
        Some(mirror) => from_mirror(suite, mirror),
        None => from_host(suite, &read_host(etc)?),
    };
    if found.is_empty() {
        return Err(ImageError::MirrorUnconfigured { suite: suite.into() });
    }
    Ok(found)
}

fn default_keys() -> Vec<Keys> {
    KEYRINGS.iter().map(PathBuf::from).filter(|p| p.exists()).map(Keys::File).take(1).collect()
}

fn from_mirror(suite: &str, mirror: &str) -> Vec<Pocket> {
    let uri = mirror.trim_end_matches('/').to_owned();
    let security = format!("{uri}-security");
    let pocket = |uri: &str, suffix: &str, archive, optional| Pocket {
        uri: uri.into(),
        suite: format!("{suite}{suffix}"),
        components: vec!["main".into()],
        keys: default_keys(),
        archive,
        optional,
    };
    vec![
        pocket(&uri, "", Archive::Main, false),
        pocket(&uri, "-updates", Archive::Main, true),
        pocket(&security, "-security", Archive::Security, true),
    ]
}

fn from_host(suite: &str, entries: &[Entry]) -> Vec<Pocket> {
    let mut pockets: Vec<Pocket> = Vec::new();
    for entry in entries {
        if !entry.components.iter().any(|c| c == "main") || entry.skip {
            continue;
        }
        let Some(suffix) = debian_suffix(&entry.suite) else { continue };
        let archive = if suffix == "-updates" || suffix.is_empty() { Archive::Main } else { Archive::Security };
        let keys = if entry.keys.is_empty() { default_keys() } else { entry.keys.clone() };
        let pocket = Pocket {
            uri: entry.uri.trim_end_matches('/').into(),
            suite: format!("{suite}{suffix}"),
            components: vec!["main".into()],
            keys,
            archive,
            optional: false,
        };
        if !pockets.iter().any(|p| p.uri == pocket.uri && p.suite == pocket.suite) {
            pockets.push(pocket);
        }
    }
    if pockets.iter().any(|p| p.archive == Archive::Main) { pockets } else { Vec::new() }
}

/// What follows the code name in a suite of Debian: nothing, `-updates` or `-security`.
fn debian_suffix(suite: &str) -> Option<&'static str> {
    let (name, suffix) = match suite.split_once(['-', '/']) {
        None => (suite, ""),
        Some((name, "security")) => (name, "-security"),
        // Until buster the security suite was called `buster/updates`.
        Some((name, "updates")) if suite.contains('/') => (name, "-security"),
        Some((name, "updates")) => (name, "-updates"),
        Some(_) => return None,
    };
    (FLOATING.contains(&name) || NAMED.contains(&name)).then_some(suffix)
}

#[derive(Debug, Default)]
struct Entry {
    uri: String,
    suite: String,
    components: Vec<String>,
    keys: Vec<Keys>,
    skip: bool,
}

fn read_host(etc: &Path) -> Result<Vec<Entry>, ImageError> {
    let mut files = vec![etc.join("sources.list")];
    let folder = etc.join("sources.list.d");
    if folder.is_dir() {
        let mut more = Vec::new();
        for entry in fs::read_dir(&folder).on("list", &folder)? {
            more.push(entry.on("list", &folder)?.path());
        }
        more.sort();
        files.extend(more);
    }
    let mut entries = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        match file.extension().and_then(|e| e.to_str()) {
            Some("list") => entries.extend(text.lines().filter_map(one_line)),
            Some("sources") => entries.extend(text.replace("\r\n", "\n").split("\n\n").flat_map(deb822)),
            _ => {}
        }
    }
    entries.retain(|e| e.uri.starts_with("http://") || e.uri.starts_with("https://"));
    Ok(entries)
}

/// `deb [options] uri suite component…`
fn one_line(line: &str) -> Option<Entry> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    let rest = rest.trim();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let mut entry = Entry {
        uri: words.next()?.into(),
        suite: words.next()?.trim_end_matches('/').into(),
        components: words.map(str::to_owned).collect(),
        ..Entry::default()
    };
    for option in options.split_whitespace() {
        if let Some(keys) = option.strip_prefix("signed-by=") {
            entry.keys = keys.split(',').filter(|k| k.starts_with('/')).map(|k| Keys::File(k.into())).collect();
        }
    }
    Some(entry)
}

fn deb822(stanza: &str) -> Vec<Entry> {
    let mut fields: Vec<(String, Vec<String>)> = Vec::new();
    for line in stanza.lines().filter(|l| !l.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            if let Some((_, lines)) = fields.last_mut() {
                lines.push(line.trim().to_owned());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            fields.push((key.to_ascii_lowercase(), vec![value.trim().to_owned()]));
        }
    }
    let field = |key: &str| fields.iter().find(|(k, _)| k == key).map(|(_, lines)| lines.as_slice()).unwrap_or(&[]);
    let words = |key: &str| -> Vec<String> {
        field(key).iter().flat_map(|l| l.split_whitespace()).map(str::to_owned).collect()
    };
    if !words("types").iter().any(|t| t == "deb") {
        return Vec::new();
    }
    let skip = words("enabled").first().is_some_and(|e| e == "no");
    let signed = field("signed-by");
    let keys = if signed.iter().any(|l| l.contains("BEGIN PGP PUBLIC KEY")) {
        // A line with only a dot stands for an empty one.
        let lines: Vec<&str> = signed.iter().map(|l| if l == "." { "" } else { l.as_str() }).collect();
        vec![Keys::Inline(lines.join("\n"))]
    } else {
        words("signed-by").iter().filter(|k| k.starts_with('/')).map(|k| Keys::File(k.into())).collect()
    };
    let mut entries = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            entries.push(Entry {
                uri: uri.clone(),
                suite: suite.trim_end_matches('/').into(),
                components: words("components"),
                keys: keys.clone(),
                skip,
            });
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = etc.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        etc
    }

    fn shown(suite: &str, etc: &Path) -> Vec<String> {
        pockets(suite, None, etc)
            .map(|p| p.into_iter().map(|p| format!("{} {} {:?}", p.uri, p.suite, p.archive)).collect())
            .unwrap_or_default()
    }

    const SOURCES: &str = "Types: deb\n# a comment\nURIs: http://mirror.example/debian/\nSuites: bookworm \
                           bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\nTypes: deb deb-src\nURIs: \
                           http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n";

    #[test]
    fn reads_both_forms_and_ignores_third_parties() {
        let etc = host(&[
            (
                "sources.list",
                "deb-src http://mirror.example/debian bookworm main\n# deb http://x.example bookworm main\n",
            ),
            ("sources.list.d/debian.sources", SOURCES),
            ("sources.list.d/cloud.list", "deb https://cloud.example/apt cloud-sdk-bookworm main\n"),
            ("sources.list.d/docker.list", "deb [arch=amd64 signed-by=/d.gpg] https://d.example bookworm stable\n"),
            ("sources.list.d/backports.list", "deb http://mirror.example/debian bookworm-backports main\n"),
            ("sources.list.d/cd.list", "deb cdrom:[x] bookworm main\n"),
            (
                "sources.list.d/off.sources",
                "Types: deb\nEnabled: no\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n",
            ),
        ]);
        assert_eq!(
            shown("bookworm", etc.path()),
            [
                "http://mirror.example/debian bookworm Main",
                "http://mirror.example/debian bookworm-updates Main",
                "http://mirror.example/debian-security bookworm-security Security",
            ]
        );
        let keys = &pockets("bookworm", None, etc.path()).unwrap()[0].keys;
        assert_eq!(keys, &[Keys::File("/k.gpg".into())]);
    }

    #[test]
    fn another_suite_comes_from_the_same_place() {
        let etc = host(&[(
            "sources.list",
            "deb http://m.example/debian stable main contrib\ndeb http://s.example stable-security main\n",
        )]);
        assert_eq!(
            shown("trixie", etc.path()),
            ["http://m.example/debian trixie Main", "http://s.example trixie-security Security"]
        );
    }

    #[test]
    fn a_host_without_debian_says_so() {
        let etc = host(&[("sources.list", "deb http://archive.example/ubuntu noble main\n")]);
        assert!(matches!(pockets("bookworm", None, etc.path()), Err(ImageError::MirrorUnconfigured { .. })));
        let named = pockets("bookworm", Some("http://m.example/debian/"), etc.path()).unwrap();
        assert_eq!(named[2].uri, "http://m.example/debian-security");
    }

    #[test]
    fn inline_keys_keep_their_lines() {
        let stanza = "Types: deb\nURIs: http://m.example\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN \
                      PGP PUBLIC KEY BLOCK-----\n .\n AAAA\n -----END PGP PUBLIC KEY BLOCK-----\n";
        let entries = deb822(stanza);
        let Keys::Inline(key) = &entries[0].keys[0] else { unreachable!() };
        assert!(key.contains("BLOCK-----\n\nAAAA\n-----END"), "{key}");
    }
}
