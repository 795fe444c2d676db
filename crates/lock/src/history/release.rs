//! The releases of a distribution, oldest version first.

use std::collections::BTreeMap;
use std::str::FromStr;

use jiff::Timestamp;
use pep440_rs::{Version, VersionSpecifiers};
use ringfence_image::fetch::{FetchError, Fetcher};
use ringfence_model::work::Progress;
use serde::Deserialize;

use super::HistoryError;
use crate::declared::normalise;
use crate::index::Indexes;

/// A page of an index; the largest that are seen have 40 MB.
const PAGE: u64 = 64 << 20;

/// One version of a distribution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Its version.
    pub version: Version,
    /// When its first file was uploaded, where the index says so.
    pub time: Option<Timestamp>,
    /// Which Pythons it takes.
    pub python: Option<VersionSpecifiers>,
    /// Its smallest wheel.
    pub wheel: Option<File>,
    /// Tags of all its wheels, such as `cp311-cp311-manylinux_2_17_x86_64`.
    pub tags: Vec<String>,
    /// Its makers have taken it back.
    pub yanked: bool,
}

/// A file of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Where it is.
    pub url: String,
    /// Its length in bytes, where the index says so.
    pub size: Option<u64>,
}

impl Release {
    /// Whether a Python of this minor version may have it.
    #[must_use]
    pub fn takes(&self, minor: u8) -> bool {
        // A patch level that no bound excludes by accident.
        let python = Version::new([3, u64::from(minor), 30]);
        self.python.as_ref().is_none_or(|bounds| bounds.contains(&python))
    }

    /// Whether it is what a resolver takes unless told otherwise.
    #[must_use]
    pub fn is_usual(&self) -> bool {
        !self.yanked && !self.version.any_prerelease()
    }
}

#[derive(Deserialize)]
struct Page {
    files: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    filename: String,
    url: String,
    size: Option<u64>,
    upload_time: Option<Timestamp>,
    requires_python: Option<String>,
    #[serde(default)]
    yanked: Yanked,
}

/// `false`, `true`, or why.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Yanked {
    #[default]
    No,
    Said(bool),
    Why(#[expect(dead_code, reason = "that there is a reason is the answer")] String),
}

/// Asks the indexes for a distribution; the first that has it answers.
///
/// # Errors
/// [`HistoryError`].
pub(crate) fn ask(indexes: &Indexes, name: &str, progress: &dyn Progress) -> Result<Vec<Release>, HistoryError> {
    let name = normalise(name);
    let fetcher = Fetcher::new();
    for index in indexes.all() {
        let authorization = index.authorization();
        let mut headers = vec![("accept", "application/vnd.pypi.simple.v1+json")];
        headers.extend(authorization.as_deref().map(|a| ("authorization", a)));
        let base = format!("{}/{name}/", index.shown());
        match fetcher.page(&base, &headers, PAGE, progress) {
            Ok(page) => return releases(&name, &base, &page.body),
            Err(FetchError::Cancelled) => return Err(HistoryError::Cancelled),
            Err(e) if e.is_absent() => {}
            Err(e) => return Err(HistoryError::Unreachable { name, why: e.to_string() }),
        }
    }
    Err(HistoryError::NoDistribution(name))
}

/// Reads what an index answers for a distribution, in the form of PEP 691. Relative addresses are below `base`.
///
/// # Errors
/// [`HistoryError::Syntax`].
pub fn releases(name: &str, base: &str, page: &[u8]) -> Result<Vec<Release>, HistoryError> {
    let syntax = |why: String| HistoryError::Syntax { name: name.into(), why };
    let page: Page = serde_json::from_slice(page).map_err(|e| syntax(e.to_string()))?;
    let mut found: BTreeMap<Version, Release> = BTreeMap::new();
    for file in page.files {
        let Some((version, tag)) = version_of(name, &file.filename) else { continue };
        let yanked = !matches!(file.yanked, Yanked::No | Yanked::Said(false));
        let release = found.entry(version.clone()).or_insert_with(|| Release {
            version,
            time: None,
            // What does not parse bounds nothing, as for resolvers.
            python: file.requires_python.as_deref().and_then(|text| VersionSpecifiers::from_str(text).ok()),
            wheel: None,
            tags: Vec::new(),
            yanked: true,
        });
        release.yanked &= yanked;
        release.time = [release.time, file.upload_time].into_iter().flatten().min();
        let Some(tag) = tag else { continue };
        let url = if file.url.contains("://") { file.url } else { joined(base, &file.url) };
        let smaller = release.wheel.as_ref().is_none_or(|wheel| file.size < wheel.size);
        if smaller {
            release.wheel = Some(File { url, size: file.size });
        }
        release.tags.push(tag);
    }
    Ok(found.into_values().collect())
}

/// The version of a file of this distribution, and of a wheel its tags.
fn version_of(name: &str, file: &str) -> Option<(Version, Option<String>)> {
    if let Some(stem) = file.strip_suffix(".whl") {
        let mut parts = stem.splitn(3, '-');
        let (of, version, tags) = (parts.next()?, parts.next()?, parts.next()?);
        return (normalise(of) == name).then_some((Version::from_str(version).ok()?, Some(tags.to_owned())));
    }
    let stem = [".tar.gz", ".zip", ".tar.bz2", ".tgz"].iter().find_map(|end| file.strip_suffix(end))?;
    let (of, version) = stem.rsplit_once('-')?;
    (normalise(of) == name).then_some((Version::from_str(version).ok()?, None))
}

/// A relative address below another, whose last part is a folder.
fn joined(base: &str, relative: &str) -> String {
    let after = base.find("://").map_or(0, |at| at + 3);
    let root = base.get(after..).and_then(|rest| rest.find('/')).map_or(base.len(), |at| after + at);
    if relative.starts_with('/') {
        return format!("{}{relative}", base.get(..root).unwrap_or(base));
    }
    let mut folder = base.trim_end_matches('/');
    let mut rest = relative;
    while let Some(up) = rest.strip_prefix("../") {
        rest = up;
        folder = folder.rfind('/').filter(|at| *at >= root).and_then(|at| folder.get(..at)).unwrap_or(folder);
    }
    format!("{folder}/{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_make_releases() {
        let page = br#"{"files": [
            {"filename": "a_b-1.0-py3-none-any.whl", "url": "../../f/a.whl", "size": 10, "upload-time": "2024-01-02T00:00:00.5Z", "requires-python": ">=3.8,<3.12"},
            {"filename": "a-b-1.0.tar.gz", "url": "https://f.example/a.tar.gz", "upload-time": "2024-01-01T00:00:00Z", "yanked": "broken"},
            {"filename": "A.B-0.9.zip", "url": "/x.zip", "yanked": true},
            {"filename": "a_b-1.10rc1-py3-none-any.whl", "url": "x.whl", "size": 9, "requires-python": "whatever"},
            {"filename": "a_b-1.10rc1-cp312-cp312-win_amd64.whl", "url": "y.whl", "size": 8, "yanked": false},
            {"filename": "other-3.0.tar.gz", "url": "o"},
            {"filename": "a_b-1.2.exe", "url": "e"}
        ]}"#;
        let found = releases("a-b", "https://i.example/simple/a-b/", page).unwrap();
        let versions: Vec<String> = found.iter().map(|r| r.version.to_string()).collect();
        assert_eq!(versions, ["0.9", "1.0", "1.10rc1"]);
        let (old, one, next) = (&found[0], &found[1], &found[2]);
        assert!(old.yanked && old.wheel.is_none() && !old.is_usual());
        assert!(!one.yanked && one.is_usual() && !next.is_usual());
        assert_eq!(one.time.unwrap().to_string(), "2024-01-01T00:00:00Z");
        assert_eq!(one.wheel.as_ref().unwrap().url, "https://i.example/f/a.whl");
        assert!(one.takes(8) && one.takes(11) && !one.takes(12) && next.takes(13));
        assert_eq!(next.wheel.as_ref().unwrap().url, "https://i.example/simple/a-b/y.whl");
        assert_eq!(next.tags, ["py3-none-any", "cp312-cp312-win_amd64"]);
        assert!(releases("a-b", "", b"<html>").is_err());
    }

    #[test]
    fn addresses_stay_on_their_host() {
        for (relative, want) in [
            ("x.whl", "https://h.example/a/b/x.whl"),
            ("../x.whl", "https://h.example/a/x.whl"),
            ("../../../../x.whl", "https://h.example/x.whl"),
            ("/x.whl", "https://h.example/x.whl"),
        ] {
            assert_eq!(joined("https://h.example/a/b/", relative), want);
        }
    }
}
