//! Package lists, and the dependencies they speak of.
//!
//! # Source
//! Debian Policy §5.1 (control files) and §7.1 (dependencies).

use std::cmp::Ordering;
use std::collections::BTreeMap;

use ringfence_model::Digest;

use super::Archive;
use super::version::compare;

/// One stanza of a package list, as far as an image needs it.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    pub depends: String,
    pub provides: String,
    pub path: String,
    pub size: u64,
    pub sha256: Digest,
    pub archive: Archive,
}

/// All packages of a suite, each in its newest version.
#[derive(Default)]
pub(crate) struct Packages {
    by_name: BTreeMap<String, Package>,
    /// Virtual name → providers with the version provided.
    provided: BTreeMap<String, Vec<(String, Option<String>)>>,
}

impl Packages {
    /// Adds a package list.
    pub(crate) fn read(&mut self, list: &str, archive: Archive) -> Result<(), String> {
        for stanza in list.split("\n\n") {
            if let Some(package) = understand(stanza, archive)? {
                match self.by_name.get(&package.name) {
                    Some(known) if compare(&known.version, &package.version) != Ordering::Less => {}
                    _ => {
                        self.by_name.insert(package.name.clone(), package);
                    }
                }
            }
        }
        self.provided.clear();
        for package in self.by_name.values() {
            for entry in package.provides.split(',').filter_map(Relation::read) {
                let version = entry.version.map(|(_, v)| v);
                self.provided.entry(entry.name).or_default().push((package.name.clone(), version));
            }
        }
        Ok(())
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Package> {
        self.by_name.get(name)
    }

    /// The package that meets a relation: the real one, else the first provider by name.
    pub(crate) fn meeting(&self, relation: &Relation) -> Option<&Package> {
        if let Some(real) = self.by_name.get(&relation.name)
            && relation.is_met_by(&real.version)
        {
            return Some(real);
        }
        let providers = self.provided.get(&relation.name)?;
        let meets = |version: &Option<String>| match (&relation.version, version) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(version)) => relation.is_met_by(version),
        };
        providers.iter().find(|(_, version)| meets(version)).and_then(|(name, _)| self.by_name.get(name))
    }
}

fn understand(stanza: &str, archive: Archive) -> Result<Option<Package>, String> {
    let mut fields: BTreeMap<&str, String> = BTreeMap::new();
    let mut last = "";
    for line in stanza.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(last) {
                value.push(' ');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            last = match key {
                "Package" | "Version" | "Architecture" | "Depends" | "Pre-Depends" | "Provides" | "Filename"
                | "Size" | "SHA256" => key,
                _ => "",
            };
            if !last.is_empty() {
                fields.insert(key, value.trim().to_owned());
            }
        }
    }
    let Some(name) = fields.remove("Package") else { return Ok(None) };
    let mut need = |key: &str| fields.remove(key).ok_or_else(|| format!("package `{name}` has no {key}"));
    let version = need("Version")?;
    let architecture = need("Architecture")?;
    let path = need("Filename")?;
    let size = need("Size")?.parse().map_err(|_| format!("package `{name}` has no usable size"))?;
    let sha256 = format!("sha256:{}", need("SHA256")?).parse().map_err(|e| format!("package `{name}`: {e}"))?;
    if path.split('/').any(|part| part.is_empty() || part.starts_with('.')) || !path.is_ascii() {
        return Err(format!("package `{name}` has no usable path"));
    }
    let mut depends = fields.remove("Pre-Depends").unwrap_or_default();
    if let Some(more) = fields.remove("Depends") {
        if !depends.is_empty() {
            depends.push(',');
        }
        depends.push_str(&more);
    }
    let provides = fields.remove("Provides").unwrap_or_default();
    Ok(Some(Package { name, version, architecture, depends, provides, path, size, sha256, archive }))
}

/// One alternative of a dependency: a name and perhaps a bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relation {
    pub name: String,
    pub version: Option<(String, String)>,
}

impl Relation {
    /// Reads `name[:arch] [(op version)] [\[archs\]]`.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let text = text.split('[').next()?.trim();
        let (name, bound) = match text.split_once('(') {
            Some((name, bound)) => (name.trim(), Some(bound.trim_end_matches(')').trim())),
            None => (text, None),
        };
        let name = name.split(':').next()?.trim();
        if name.is_empty() {
            return None;
        }
        let version = bound.map(|bound| {
            let at = bound.find(|c: char| !"<>=".contains(c)).unwrap_or(bound.len());
            let (op, version) = bound.split_at(at);
            (op.to_owned(), version.trim().to_owned())
        });
        Some(Self { name: name.to_owned(), version })
    }

    fn is_met_by(&self, have: &str) -> bool {
        let Some((op, want)) = &self.version else { return true };
        let order = compare(have, want);
        match op.as_str() {
            "<<" => order == Ordering::Less,
            "<=" | "<" => order != Ordering::Greater,
            "=" => order == Ordering::Equal,
            ">=" | ">" => order != Ordering::Less,
            ">>" => order == Ordering::Greater,
            _ => false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A list of packages from `name version depends provides` lines.
    pub(crate) fn list(lines: &[(&str, &str, &str, &str)]) -> String {
        lines
            .iter()
            .map(|(name, version, depends, provides)| {
                format!(
                    "Package: {name}\nVersion: {version}\nArchitecture: amd64\nDepends: {depends}\nProvides: \
                     {provides}\nFilename: pool/{name}.deb\nSize: 1\nSHA256: {}\n",
                    Digest::of(name.as_bytes()).hex()
                )
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn reads_relations() {
        let r = |t: &str| Relation::read(t).unwrap();
        assert_eq!(r("libc6 (>= 2.36)").version.unwrap(), (">=".into(), "2.36".into()));
        assert_eq!(r(" python3:any ").name, "python3");
        assert_eq!(r("a (<<1) [amd64]").version.unwrap(), ("<<".into(), "1".into()));
        assert!(Relation::read("  ").is_none());
        for (bound, have, want) in [
            ("(<< 2)", "2", false),
            ("(<= 2)", "2", true),
            ("(= 2)", "2.0", false),
            ("(>= 2)", "1:1", true),
            ("(>> 2)", "2", false),
        ] {
            assert_eq!(r(&format!("x {bound}")).is_met_by(have), want, "{bound} {have}");
        }
    }

    #[test]
    fn the_newest_version_wins_and_providers_meet() {
        let mut packages = Packages::default();
        packages.read(&list(&[("a", "1", "", ""), ("p", "5", "", "v (= 3), w")]), Archive::Main).unwrap();
        packages.read(&list(&[("a", "2", "", "")]), Archive::Security).unwrap();
        packages.read(&list(&[("a", "1.5", "", "")]), Archive::Main).unwrap();
        assert_eq!(packages.named("a").unwrap().version, "2");
        assert_eq!(packages.named("a").unwrap().archive, Archive::Security);
        for (relation, met) in [("v (>= 2)", true), ("v (>= 4)", false), ("w", true), ("w (>= 1)", false), ("x", false)]
        {
            assert_eq!(packages.meeting(&Relation::read(relation).unwrap()).is_some(), met, "{relation}");
        }
    }

    #[test]
    fn hostile_paths_are_refused() {
        let text = list(&[("a", "1", "", "")]).replace("pool/a.deb", "../../etc/passwd");
        assert!(Packages::default().read(&text, Archive::Main).is_err());
    }
}
