//! A base out of signed Debian packages: which ones (the plan), where from, and their files.

pub(crate) mod archive;
mod closure;
pub mod contents;
pub(crate) mod packages;
mod release;
pub mod sources;
pub mod version;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ringfence_model::digest::Hasher;
use ringfence_model::work::{Progress, Step};
use ringfence_model::{Digest, manifest};
use serde::{Deserialize, Serialize};

use self::closure::{Exclusions, close};
use self::packages::{Package, Packages};
use self::sources::{DEFAULT_SUITE, Pocket, SUITES};
use crate::error::{ImageError, OnPath, Said};
use crate::fetch::{FetchError, Fetcher, redact};
use crate::interpreter::{self, Interpreter};
use crate::store::{Store, hash_file};

const RELEASE_LIMIT: u64 = 4 << 20;
const LIST_LIMIT: u64 = 256 << 20;
const DEB_LIMIT: u64 = 1 << 30;
const DOWNLOADS: usize = 4;

/// What every base has, besides Python.
const SEEDS: [&str; 10] = [
    "base-files",
    "ca-certificates",
    "libc-bin",
    "libgcc-s1",
    "libgomp1",
    "libstdc++6",
    "media-types",
    "netbase",
    "tzdata",
    "zlib1g",
];

/// The archive that a package comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Archive {
    /// Debian's main archive, with its updates.
    Main,
    /// Debian's security archive.
    Security,
}

/// The packages of a base, pinned; the same plan gives the same layers on any machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasePlan {
    /// Debian suite.
    pub suite: String,
    /// Debian's name of the architecture.
    pub architecture: String,
    /// Python version, such as `3.11`.
    pub python: String,
    /// Mirror that the manifest names; no part of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// The host's interpreter that is the python layer; `None`: Debian's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interpreter: Option<Interpreter>,
    /// Packages by name.
    #[serde(rename = "package")]
    pub packages: Vec<LockedPackage>,
    /// Packages that build from source, in no image; no part of the digest.
    #[serde(default, rename = "tool", skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<LockedPackage>,
}

/// One package of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `amd64`, `all`, …
    pub architecture: String,
    /// Which archive has it.
    pub archive: Archive,
    /// Path below the archive's address.
    pub path: String,
    /// Bytes of the file.
    pub size: u64,
    /// Digest of the file.
    pub sha256: Digest,
}

impl From<Package> for LockedPackage {
    fn from(package: Package) -> Self {
        let Package { name, version, architecture, archive, path, size, sha256, .. } = package;
        Self { name, version, architecture, archive, path, size, sha256 }
    }
}

impl BasePlan {
    /// The plan's name by content; the mirror does not count, since every mirror has the same files.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(b"ringfence base plan 1\n");
        for text in [&self.suite, &self.architecture, &self.python] {
            hasher.update(format!("{text}\n").as_bytes());
        }
        if let Some(i) = &self.interpreter {
            hasher.update(format!("interpreter {} {} {}\n", i.version, i.tree, i.without.join(" ")).as_bytes());
        }
        for p in &self.packages {
            hasher.update(format!("{} {} {} {}\n", p.name, p.version, p.architecture, p.sha256).as_bytes());
        }
        hasher.finish()
    }
}

/// The Python versions that Debian has, with the suite that brings each, newest last.
#[must_use]
pub fn pythons() -> &'static [(&'static str, &'static str)] {
    &SUITES
}

/// The suite for what a manifest asks: the one it names, else the one that has its Python, else the default.
fn suite_for(image: &manifest::Image) -> String {
    let of_python = || SUITES.iter().find(|(_, p)| image.python.as_deref() == Some(*p)).map(|(suite, _)| *suite);
    image.suite.clone().unwrap_or_else(|| of_python().unwrap_or(DEFAULT_SUITE).to_owned())
}

fn no_python(store: &Store, python: &str) -> ImageError {
    let (known, places) = (interpreter::known(store), interpreter::looked_in(store));
    ImageError::NoPython { python: python.into(), places, known }
}

/// Debian's name of this machine's architecture, which is also OCI's.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Chooses and pins the packages of a base, from signed package lists.
///
/// # Errors
/// [`ImageError`] of the mirror, or of packages that are not there.
pub fn plan_base(store: &Store, image: &manifest::Image, progress: &dyn Progress) -> Result<BasePlan, ImageError> {
    let suite = suite_for(image);
    // Known without a mirror: no suite has it, nor has this host.
    if let Some(wanted) = &image.python
        && SUITES.iter().all(|(_, p)| p != wanted)
        && interpreter::candidates(store, wanted).is_empty()
    {
        return Err(no_python(store, wanted));
    }
    let packages = packages(store, &suite, image.mirror.as_deref(), progress)?;
    let debians = default_python(&packages, &suite)?;
    let python = image.python.clone().unwrap_or_else(|| debians.clone());
    let mut seeds: Vec<String> = SEEDS.iter().map(|s| (*s).to_owned()).collect();
    let mut interpreter = None;
    if python == debians {
        seeds.push(format!("python{python}"));
        if packages.named("python3-distutils").is_some() {
            seeds.push("python3-distutils".into());
        }
    } else {
        tell(progress, &format!("looking for Python {python} on this host"), 0, None);
        let chosen = interpreter::choose(store, &python, &packages, &suite, progress)?;
        let (chosen, libraries) = chosen.ok_or_else(|| no_python(store, &python))?;
        seeds.extend(libraries);
        interpreter = Some(chosen);
    }
    seeds.extend(image.packages.iter().cloned());
    let closed = close(&packages, &seeds, &Exclusions::shipped(), &suite)?;
    if interpreter.is_some()
        && let Some(package) = closed.iter().find(|p| is_python(&p.name))
    {
        return Err(ImageError::TwoPythons { package: package.name.clone(), python, debians });
    }
    Ok(BasePlan {
        suite,
        architecture: architecture().into(),
        python,
        mirror: image.mirror.clone(),
        interpreter,
        packages: closed.into_iter().map(LockedPackage::from).collect(),
        tools: Vec::new(),
    })
}

/// What every build from source finds: compilers, a shell, and the small programs that build scripts call.
const TOOLS: [&str; 17] = [
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "g++",
    "gcc",
    "grep",
    "gzip",
    "make",
    "mawk",
    "patch",
    "perl-base",
    "pkg-config",
    "sed",
    "tar",
];

/// Adds to a plan what builds packages from source on top of it: compilers, Python's headers, and `wanted`.
///
/// # Errors
/// [`ImageError`] of the mirror, or of packages that are not there.
pub fn plan_tools(
    store: &Store,
    plan: &BasePlan,
    wanted: &[String],
    progress: &dyn Progress,
) -> Result<BasePlan, ImageError> {
    let packages = packages(store, &plan.suite, plan.mirror.as_deref(), progress)?;
    let mut seeds: Vec<String> = TOOLS.iter().map(|s| (*s).to_owned()).collect();
    if plan.interpreter.is_none() {
        seeds.push(format!("libpython{}-dev", plan.python));
    }
    seeds.extend(wanted.iter().cloned());
    let closed = close(&packages, &seeds, &Exclusions::none(), &plan.suite)?;
    let there: BTreeSet<&str> = plan.packages.iter().map(|p| p.name.as_str()).collect();
    let tools = closed.into_iter().filter(|p| !there.contains(p.name.as_str())).map(LockedPackage::from).collect();
    Ok(BasePlan { tools, ..plan.clone() })
}

/// All packages of a suite.
fn packages(store: &Store, suite: &str, mirror: Option<&str>, progress: &dyn Progress) -> Result<Packages, ImageError> {
    let fetcher = Fetcher::new();
    let mut packages = Packages::default();
    let name = format!("binary-{}/Packages", architecture());
    for list in lists(store, &fetcher, suite, mirror, &name, progress)? {
        let mut text = String::new();
        opened(&list)?.take(LIST_LIMIT).read_to_string(&mut text).on("read", &list.path)?;
        packages.read(&text, list.archive).map_err(|why| ImageError::MirrorSyntax { url: redact(&list.url), why })?;
    }
    Ok(packages)
}

/// Whether a package is part of Debian's own Python.
pub(crate) fn is_python(package: &str) -> bool {
    ["python3", "libpython3"].iter().any(|prefix| package.starts_with(prefix))
}

/// `3.11` of `python3 3.11.2-1+b1`.
fn default_python(packages: &Packages, suite: &str) -> Result<String, ImageError> {
    let missing = || ImageError::NoPackage { suite: suite.into(), name: "python3".into() };
    let version = &packages.named("python3").ok_or_else(missing)?.version;
    let mut numbers = version.split('.');
    let (major, minor) = numbers.next().zip(numbers.next()).ok_or_else(missing)?;
    Ok(format!("{major}.{minor}"))
}

fn tell(progress: &dyn Progress, doing: &str, done: u64, total: Option<u64>) {
    progress.tell(Step { name: "base".into(), doing: doing.into(), done, total });
}

/// A list of a suite, downloaded.
struct List {
    path: PathBuf,
    url: String,
    archive: Archive,
}

/// The lists of this name of all components of a suite, after the signatures of their pockets were believed. A pocket that has no
/// such list is passed over, unless it is a list of packages.
fn lists(
    store: &Store,
    fetcher: &Fetcher,
    suite: &str,
    mirror: Option<&str>,
    name: &str,
    progress: &dyn Progress,
) -> Result<Vec<List>, ImageError> {
    let mut lists = Vec::new();
    for pocket in sources::pockets(suite, mirror, release::apt())? {
        tell(progress, &format!("reading the package list of {}", pocket.suite), 0, None);
        let url = pocket.dist("InRelease");
        let page = match fetcher.page(&url, &[], RELEASE_LIMIT, progress) {
            Err(e) if e.is_absent() && pocket.optional => continue,
            other => other.map_err(|e| failed(&url, e))?,
        };
        let release = release::believe(store, &pocket, &redact(&url), &page.body)?;
        if !release.is_debian {
            continue;
        }
        for component in &pocket.components {
            let found = ["xz", "gz"]
                .iter()
                .map(|ending| format!("{component}/{name}.{ending}"))
                .find_map(|name| release.files.get(&name).map(|file| (name.clone(), *file)));
            let Some((name, (digest, size))) = found else {
                if !name.ends_with("/Packages") {
                    continue;
                }
                return Err(ImageError::MirrorSyntax {
                    url: redact(&url),
                    why: format!("it lists no packages of `{component}` for {}", architecture()),
                });
            };
            // By hash, so that a mirror that is being updated still has the list that the release file speaks of.
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            let urls = [pocket.dist(&format!("{folder}/by-hash/SHA256/{}", digest.hex())), pocket.dist(&name)];
            let path = obtain(store, fetcher, &urls, &digest, size.min(LIST_LIMIT), progress, &|_| ())?;
            lists.push(List { path, url: pocket.dist(&name), archive: pocket.archive });
        }
    }
    Ok(lists)
}

/// A list's text.
fn opened(list: &List) -> Result<Box<dyn Read>, ImageError> {
    let file = fs::File::open(&list.path).on("open", &list.path)?;
    Ok(if list.url.ends_with(".xz") {
        Box::new(liblzma::read::XzDecoder::new_multi_decoder(file))
    } else {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    })
}

fn failed(url: &str, error: FetchError) -> ImageError {
    let url = redact(url);
    match error {
        FetchError::Cancelled => ImageError::Cancelled("downloading packages"),
        FetchError::Sink(e) => ImageError::io("write", std::path::Path::new("debs"), e),
        other => ImageError::MirrorUnreachable { url, why: Said(other.to_string()) },
    }
}

/// Gives the path of a file with this digest, downloading it from the first address that has it.
fn obtain(
    store: &Store,
    fetcher: &Fetcher,
    urls: &[String],
    digest: &Digest,
    size: u64,
    progress: &dyn Progress,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<PathBuf, ImageError> {
    let path = store.deb_path(digest);
    if path.exists() {
        if hash_file(&path)?.0 == *digest {
            tell(size);
            return Ok(path);
        }
        fs::remove_file(&path).on("remove", &path)?;
    }
    let mut last = None;
    for url in urls {
        let mut open = || Ok(Hashed { file: store.temp_file()?, hasher: Hasher::new() });
        match fetcher.stream(url, size, progress, &mut open, &mut |n| tell(n)) {
            Ok(Hashed { mut file, hasher }) => {
                let got = hasher.finish();
                if got != *digest {
                    let why = Said(format!("its digest is `{got}`, not `{digest}`"));
                    last = Some(ImageError::MirrorHash { url: redact(url), why });
                    continue;
                }
                file.flush().on("write", &path)?;
                store.settle(file, &path)?;
                return Ok(path);
            }
            Err(FetchError::TooLong(limit)) => {
                let why = Said(format!("it is longer than the {limit} bytes promised"));
                last = Some(ImageError::MirrorHash { url: redact(url), why });
            }
            Err(FetchError::Sink(e)) => return Err(ImageError::io("write", &path, e)),
            Err(e) if e.is_absent() => {}
            Err(e) => last = Some(failed(url, e)),
        }
    }
    // Nobody has it: that is an answer, and another one than that nobody answers.
    Err(last.unwrap_or_else(|| ImageError::MirrorGone { path: urls.last().map(|u| redact(u)).unwrap_or_default() }))
}

struct Hashed {
    file: tempfile::NamedTempFile,
    hasher: Hasher,
}

impl Write for Hashed {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(buf)?;
        self.hasher.update(buf.get(..n).unwrap_or_default());
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Makes sure that the files of packages of a plan are in the store, a few at a time.
pub(crate) fn download(
    store: &Store,
    plan: &BasePlan,
    packages: &[LockedPackage],
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let missing: Vec<&LockedPackage> = packages.iter().filter(|p| !store.deb_path(&p.sha256).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let pockets = sources::pockets(&plan.suite, plan.mirror.as_deref(), release::apt())?;
    let total: u64 = missing.iter().map(|p| p.size).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failure: Mutex<Option<ImageError>> = Mutex::new(None);
    let fetcher = Fetcher::new();
    let failed = || failure.lock().map_or(true, |f| f.is_some());
    std::thread::scope(|scope| {
        for _ in 0..DOWNLOADS.min(missing.len()) {
            scope.spawn(|| {
                while let Some(package) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if failed() {
                        return;
                    }
                    let report = |n| {
                        let done = done.fetch_add(n, Ordering::Relaxed) + n;
                        tell(progress, "downloading packages", done, Some(total));
                    };
                    if let Err(error) = fetch_package(store, &fetcher, &pockets, package, progress, &report) {
                        if let Ok(mut slot) = failure.lock() {
                            slot.get_or_insert(error);
                        }
                        return;
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}

fn fetch_package(
    store: &Store,
    fetcher: &Fetcher,
    pockets: &[Pocket],
    package: &LockedPackage,
    progress: &dyn Progress,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<(), ImageError> {
    // Packages move from the security archive to the main one with time, so the other addresses come after.
    let (own, other): (BTreeSet<&str>, BTreeSet<&str>) = (
        pockets.iter().filter(|p| p.archive == package.archive).map(|p| p.uri.as_str()).collect(),
        pockets.iter().filter(|p| p.archive != package.archive).map(|p| p.uri.as_str()).collect(),
    );
    let urls: Vec<String> = own.into_iter().chain(other).map(|uri| format!("{uri}/{}", package.path)).collect();
    obtain(store, fetcher, &urls, &package.sha256, package.size.min(DEB_LIMIT), progress, tell).map(|_| ())
}
