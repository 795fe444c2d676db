//! A CPython of the host as the python layer, where the Debian suite has another version.
//!
//! Looked for where relocatable or self-built interpreters live, never among Debian's packages. Nothing of it runs on
//! the host: files are read here, and it runs for the first time as a job inside the fence.
//! Decision 0051 says why the host's.

mod copy;
mod elf;

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringfence_model::work::{Job, Progress, Runner};
use ringfence_model::{Bytes, Digest};
use serde::{Deserialize, Serialize};

use self::copy::Entry;
use crate::debian::BasePlan;
use crate::debian::packages::{Packages, Relation};
use crate::debian::sources::SUITES;
use crate::error::{ImageError, OnPath, Said};
use crate::layer::open_to_jobs;
use crate::store::Store;

/// The oldest minor version that is looked for; what runs in the fence is not written for older ones.
const OLDEST: u32 = 8;
/// Bytes of one program or library.
const CODE_LIMIT: u64 = 256 << 20;
const HEADER_LIMIT: u64 = 64 << 10;
/// Prefixes in one folder that are looked at.
const PREFIXES: usize = 256;
/// Modules without which hardly any agent starts: an interpreter that cannot have them here is refused.
const ESSENTIAL: [&str; 12] = [
    "_bz2",
    "_ctypes",
    "_decimal",
    "_elementtree",
    "_hashlib",
    "_lzma",
    "_socket",
    "_sqlite3",
    "_ssl",
    "_struct",
    "pyexpat",
    "zlib",
];
/// Which package brings a library that CPython may be linked with. Later suites say so by `Provides`.
const LIBRARIES: [(&str, &str); 40] = [
    ("ld-linux-aarch64.so.1", "libc6"),
    ("ld-linux-x86-64.so.2", "libc6"),
    ("libb2.so.1", "libb2-1"),
    ("libbz2.so.1.0", "libbz2-1.0"),
    ("libc.so.6", "libc6"),
    ("libcrypt.so.1", "libcrypt1"),
    ("libcrypto.so.1.1", "libssl1.1"),
    ("libcrypto.so.3", "libssl3"),
    ("libdb-5.3.so", "libdb5.3"),
    ("libdl.so.2", "libc6"),
    ("libedit.so.2", "libedit2"),
    ("libexpat.so.1", "libexpat1"),
    ("libffi.so.7", "libffi7"),
    ("libffi.so.8", "libffi8"),
    ("libgcc_s.so.1", "libgcc-s1"),
    ("libgdbm.so.6", "libgdbm6"),
    ("libgdbm_compat.so.4", "libgdbm-compat4"),
    ("liblzma.so.5", "liblzma5"),
    ("libm.so.6", "libc6"),
    ("libmpdec.so.3", "libmpdec3"),
    ("libmpdec.so.4", "libmpdec4"),
    ("libncurses.so.6", "libncurses6"),
    ("libncursesw.so.6", "libncursesw6"),
    ("libnsl.so.2", "libnsl2"),
    ("libpanel.so.6", "libncurses6"),
    ("libpanelw.so.6", "libncursesw6"),
    ("libpthread.so.0", "libc6"),
    ("libreadline.so.8", "libreadline8"),
    ("libresolv.so.2", "libc6"),
    ("librt.so.1", "libc6"),
    ("libsqlite3.so.0", "libsqlite3-0"),
    ("libssl.so.1.1", "libssl1.1"),
    ("libssl.so.3", "libssl3"),
    ("libstdc++.so.6", "libstdc++6"),
    ("libtinfo.so.6", "libtinfo6"),
    ("libtirpc.so.3", "libtirpc3"),
    ("libutil.so.1", "libc6"),
    ("libuuid.so.1", "libuuid1"),
    ("libz.so.1", "zlib1g"),
    ("libzstd.so.1", "libzstd1"),
];
/// Imports every extension module there is, and says which version that is.
const PROBE: &str = "import importlib, os, platform, sys\n\
     where = os.path.join(sys.prefix, 'lib', 'python%d.%d' % sys.version_info[:2], 'lib-dynload')\n\
     for name in sorted(os.listdir(where)) if os.path.isdir(where) else ():\n\
     \x20   if name.endswith('.so'):\n\
     \x20       importlib.import_module(name.split('.')[0])\n\
     for name in sys.argv[1:]:\n\
     \x20   importlib.import_module(name)\n\
     print(platform.python_implementation(), platform.python_version())\n";

/// Who put an interpreter on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Somebody, into the folder `pythons` of the store.
    Store,
    /// `uv python install`.
    Uv,
    /// pyenv.
    Pyenv,
    /// Somebody, into `/opt/python` or `/usr/local`.
    Host,
}

impl Source {
    /// As a lock writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Uv => "uv",
            Self::Pyenv => "pyenv",
            Self::Host => "host",
        }
    }
}

/// The interpreter of a plan, where it is not Debian's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interpreter {
    /// Where it came from when it was chosen; no part of the digest, since the same tree may be elsewhere.
    pub source: Source,
    /// With its patch level, such as `3.12.1`.
    pub version: String,
    /// Digest of the files of it that go into the image.
    pub tree: Digest,
    /// Extension modules left out, since the suite has no library for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
}

/// An interpreter found on the host.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    source: Source,
    prefix: PathBuf,
    version: String,
}

/// A folder of prefixes, or a prefix.
struct Place {
    source: Source,
    path: PathBuf,
    is_prefix: bool,
}

/// Where interpreters are looked for, the preferred first.
fn places(store: Option<&Store>) -> Vec<Place> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = var("HOME");
    let in_home = |below: &str| home.as_ref().map(|h| h.join(below));
    let uv = var("UV_PYTHON_INSTALL_DIR")
        .or_else(|| var("XDG_DATA_HOME").map(|d| d.join("uv/python")))
        .or_else(|| in_home(".local/share/uv/python"));
    let pyenv = var("PYENV_ROOT").or_else(|| in_home(".pyenv")).map(|root| root.join("versions"));
    let folders = [
        (Source::Store, store.map(|s| s.root().join("pythons"))),
        (Source::Uv, uv),
        (Source::Pyenv, pyenv),
        (Source::Host, Some("/opt/python".into())),
    ];
    let folders = folders.into_iter().filter_map(|(source, path)| {
        path.filter(|p| p.is_absolute()).map(|path| Place { source, path, is_prefix: false })
    });
    folders.chain([Place { source: Source::Host, path: "/usr/local".into(), is_prefix: true }]).collect()
}

/// The prefixes of a place, without Debian's own and each once.
fn prefixes(place: &Place) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    if place.is_prefix {
        paths.push(place.path.clone());
    } else if let Ok(listing) = fs::read_dir(&place.path) {
        paths.extend(listing.take(PREFIXES).filter_map(Result::ok).map(|e| e.path()));
    }
    // uv keeps a link of the minor version beside each interpreter.
    let real: BTreeSet<PathBuf> = paths.iter().filter_map(|p| p.canonicalize().ok()).filter(|p| p.is_dir()).collect();
    real.into_iter().filter(|p| p != Path::new("/usr") && p != Path::new("/")).collect()
}

/// What says where interpreters are looked for.
pub(crate) fn looked_in(store: &Store) -> String {
    let shown: Vec<String> = places(Some(store)).iter().map(|p| format!("`{}`", p.path.display())).collect();
    shown.join(", ")
}

/// Minor versions, such as `3.12`, for which there is an interpreter on this host, oldest first. Cheap: lists folders.
///
/// Whether one fits a suite is known only when a base is planned.
#[must_use]
pub fn host_pythons() -> Vec<String> {
    let mut minors = BTreeSet::new();
    for prefix in places(None).iter().flat_map(prefixes) {
        let Ok(listing) = fs::read_dir(prefix.join("bin")) else { continue };
        let names = listing.filter_map(Result::ok).filter_map(|e| e.file_name().into_string().ok());
        minors.extend(names.filter_map(|n| n.strip_prefix("python3.")?.parse::<u32>().ok()));
    }
    let there =
        |minor: &u32| places(None).iter().flat_map(prefixes).any(|p| version(&p, &format!("3.{minor}")).is_some());
    minors.into_iter().filter(|m| *m >= OLDEST).filter(there).map(|m| format!("3.{m}")).collect()
}

/// Minor versions of Python that a base may have here, oldest first: of Debian's suites, the store and this host.
#[must_use]
pub fn available_pythons(store: &Store) -> Vec<String> {
    let of_suites = SUITES.iter().filter_map(|(_, python)| python.strip_prefix("3.")?.parse::<u32>().ok());
    let here = (OLDEST..OLDEST + 24).filter(|minor| !candidates(store, &format!("3.{minor}")).is_empty());
    of_suites.chain(here).collect::<BTreeSet<u32>>().into_iter().map(|minor| format!("3.{minor}")).collect()
}

/// Everything that can be had here, for people: suites, then the host.
pub(crate) fn known(store: &Store) -> String {
    let mut known: Vec<String> = SUITES.iter().map(|(suite, p)| format!("{p} ({suite})")).collect();
    let mut host: BTreeSet<String> = host_pythons().into_iter().collect();
    host.extend((OLDEST..OLDEST + 24).map(|m| format!("3.{m}")).filter(|p| !candidates(store, p).is_empty()));
    host.retain(|p| SUITES.iter().all(|(_, of_suite)| p != of_suite));
    known.extend(host.into_iter().map(|p| format!("{p} (this host)")));
    known.join(", ")
}

/// The folder with the headers of a chosen interpreter, if this host has them.
pub(crate) fn headers(store: &Store, chosen: &Interpreter, python: &str) -> Option<PathBuf> {
    let of_version = candidates(store, python).into_iter().filter(|found| found.version == chosen.version);
    of_version.map(|found| found.prefix.join(format!("include/python{python}"))).find(|headers| headers.is_dir())
}

/// Interpreters of a minor version, the preferred first: by source, then the newest patch level.
pub(crate) fn candidates(store: &Store, python: &str) -> Vec<Found> {
    let minor = python.strip_prefix("3.").and_then(|m| m.parse::<u32>().ok());
    if minor.is_none_or(|m| m < OLDEST) {
        return Vec::new();
    }
    let mut found = Vec::new();
    for place in places(Some(store)) {
        let of_place = prefixes(&place).into_iter().filter_map(|prefix| {
            version(&prefix, python).map(|version| Found { source: place.source, prefix, version })
        });
        found.extend(of_place);
    }
    found.sort_by(|a, b| {
        a.source.cmp(&b.source).then_with(|| patch(&b.version).cmp(&patch(&a.version))).then(a.prefix.cmp(&b.prefix))
    });
    found
}

/// `3.12.1` as the header file of a prefix says, if that prefix holds this minor version whole.
fn version(prefix: &Path, python: &str) -> Option<String> {
    let is_file = |path: String| fs::symlink_metadata(prefix.join(path)).is_ok_and(|m| m.is_file());
    if !is_file(format!("bin/python{python}")) || !is_file(format!("lib/python{python}/os.py")) {
        return None;
    }
    let mut text = String::new();
    let header = copy::open(&prefix.join(format!("include/python{python}/patchlevel.h"))).ok()?;
    header.take(HEADER_LIMIT).read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("#define PY_VERSION")?.trim().strip_prefix('"'))?;
    let version = line.split('"').next()?;
    let fits = version.strip_prefix(python).is_some_and(|rest| rest.starts_with('.'));
    let plain = version.len() < 32 && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".+".contains(&b));
    (fits && plain).then(|| version.to_owned())
}

/// Orders patch levels: releases after their candidates.
fn patch(version: &str) -> (u32, bool, String) {
    let text = version.split('.').nth(2).unwrap_or_default();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (digits.parse().unwrap_or(0), rest.is_empty() || rest == "+", rest.to_owned())
}

/// Chooses the first interpreter of a minor version that the suite can carry; gives it with the packages it needs.
///
/// `None` if there is none at all.
pub(crate) fn choose(
    store: &Store,
    python: &str,
    packages: &Packages,
    suite: &str,
    progress: &dyn Progress,
) -> Result<Option<(Interpreter, Vec<String>)>, ImageError> {
    let mut refused = None;
    for found in candidates(store, python) {
        match examine(&found, python, packages, suite, progress) {
            Ok(chosen) => return Ok(Some(chosen)),
            Err(error @ ImageError::Cancelled(_)) => return Err(error),
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    refused.map_or(Ok(None), Err)
}

fn examine(
    found: &Found,
    python: &str,
    packages: &Packages,
    suite: &str,
    progress: &dyn Progress,
) -> Result<(Interpreter, Vec<String>), ImageError> {
    let refuse = |why: String| ImageError::Interpreter { path: found.prefix.clone(), why };
    let entries = copy::list(&found.prefix, python)?;
    let glibc = packages.named("libc6").and_then(|p| elf::numbers(&p.version)).unwrap_or_default();
    let own: BTreeSet<&str> =
        entries.iter().filter(|e| e.to.starts_with("usr/lib/libpython")).map(Entry::name).collect();
    let (mut seeds, mut without) = (BTreeSet::new(), Vec::new());
    for entry in entries.iter().filter(|e| e.is_code()) {
        let wants = elf::read(&contents(&entry.from)?).map_err(|why| refuse(format!("`{}`: {why}", entry.name())))?;
        if wants.glibc > glibc {
            let ((major, minor), (have_major, have)) = (wants.glibc, glibc);
            return Err(refuse(format!(
                "`{}` is built for glibc {major}.{minor}, and suite `{suite}` has {have_major}.{have}",
                entry.name()
            )));
        }
        let outside = wants.libraries.iter().filter(|l| !own.contains(l.as_str()));
        let providers: Result<Vec<&str>, &String> = outside.map(|l| provider(l, packages).ok_or(l)).collect();
        match providers {
            Ok(providers) => seeds.extend(providers.into_iter().map(str::to_owned)),
            Err(_) if is_dispensable(entry) => without.push(entry.name().to_owned()),
            Err(library) => {
                return Err(refuse(format!(
                    "`{}` needs the library `{library}`, which no package of suite `{suite}` is known to bring",
                    entry.name()
                )));
            }
        }
    }
    let tree = copy::take(&entries, &without, None, progress)?;
    let interpreter = Interpreter { source: found.source, version: found.version.clone(), tree, without };
    Ok((interpreter, seeds.into_iter().collect()))
}

fn contents(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    copy::open(path)?.take(CODE_LIMIT).read_to_end(&mut bytes).on("read", path)?;
    Ok(bytes)
}

/// The package of the suite that brings a library.
fn provider(library: &str, packages: &Packages) -> Option<&'static str> {
    let (_, name) = LIBRARIES.iter().find(|(soname, _)| *soname == library)?;
    packages.meeting(&Relation { name: (*name).to_owned(), version: None }).map(|_| *name)
}

/// Whether an extension module may be left out.
fn is_dispensable(entry: &Entry) -> bool {
    let module = entry.name().split('.').next().unwrap_or_default();
    entry.to.contains("/lib-dynload/") && !ESSENTIAL.contains(&module)
}

/// Copies the interpreter of a plan below `root`, from wherever this host has the same tree.
pub(crate) fn place(
    store: &Store,
    interpreter: &Interpreter,
    python: &str,
    root: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let mut changed = None;
    let missing = |why: String| ImageError::InterpreterMissing {
        version: interpreter.version.clone(),
        why: Said(why),
        places: looked_in(store),
    };
    for found in candidates(store, python).into_iter().filter(|f| f.version == interpreter.version) {
        let entries = copy::list(&found.prefix, python)?;
        if copy::take(&entries, &interpreter.without, None, progress)? != interpreter.tree {
            changed.get_or_insert(found.prefix);
            continue;
        }
        if copy::take(&entries, &interpreter.without, Some(root), progress)? == interpreter.tree {
            return Ok(());
        }
        return Err(missing(format!("`{}` changes while it is copied", found.prefix.display())));
    }
    Err(missing(match changed {
        Some(prefix) => format!("the one at `{}` has other files than when it was locked", prefix.display()),
        None => "this host has none".into(),
    }))
}

/// Runs the interpreter of a plan for the first time, inside the fence: it must import all that it has.
pub(crate) fn probe(
    store: &Store,
    plan: &BasePlan,
    interpreter: &Interpreter,
    base: PathBuf,
    root: &Path,
    runner: &dyn Runner,
) -> Result<(), ImageError> {
    open_to_jobs(root)?;
    let mut argv = vec![format!("/usr/bin/python{}", plan.python)];
    argv.extend(["-I", "-S", "-B", "-W", "ignore", "-c", PROBE].map(str::to_owned));
    argv.extend(["ssl", "sqlite3", "ctypes", "lzma", "bz2", "zlib", "hashlib", "decimal"].map(str::to_owned));
    let job = Job {
        purpose: "python".into(),
        layers: vec![base, root.to_path_buf(), store.bench()],
        mounts: Vec::new(),
        argv,
        env: [("LANG", "C.UTF-8"), ("PATH", "/usr/bin")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        cwd: "/".into(),
        hosts: Vec::new(),
        memory: Bytes::gib(1),
        timeout: Duration::from_secs(120),
    };
    let output = runner.run(&job).map_err(|report| ImageError::job("try Python", report))?;
    let wanted = format!("CPython {}", interpreter.version);
    if output.code == 0 && output.stdout.trim() == wanted {
        return Ok(());
    }
    let last = output.stderr.lines().last().unwrap_or_default();
    let said: String = if output.code == 0 { output.stdout.trim() } else { last }.chars().take(300).collect();
    let why = format!("in the image it does not start as {wanted}: code {}, `{said}`", output.code);
    Err(ImageError::Interpreter { path: format!("/usr/bin/python{}", plan.python).into(), why })
}

#[cfg(test)]
mod tests {
    use ringfence_model::work::Silent;

    use super::*;
    use crate::debian::Archive;
    use crate::debian::packages::tests::list;

    /// A prefix whose code is this very program, which is linked with the C library and little else.
    fn lay(store: &Store, name: &str, version: &str, modules: &[&str]) -> PathBuf {
        let minor: Vec<&str> = version.split('.').take(2).collect();
        let (python, prefix) = (minor.join("."), store.root().join("pythons").join(name));
        for folder in ["bin", &format!("include/python{python}"), &format!("lib/python{python}/lib-dynload")] {
            fs::create_dir_all(prefix.join(folder)).unwrap();
        }
        let own = std::env::current_exe().unwrap();
        let program = prefix.join(format!("bin/python{python}"));
        fs::copy(&own, &program).unwrap();
        for module in modules {
            fs::hard_link(&program, prefix.join(format!("lib/python{python}/lib-dynload/{module}.cpython.so")))
                .unwrap();
        }
        fs::write(prefix.join(format!("lib/python{python}/os.py")), "").unwrap();
        let header = format!("#define PY_VERSION_HEX 1\n#define PY_VERSION \t \"{version}\"\n");
        fs::write(prefix.join(format!("include/python{python}/patchlevel.h")), header).unwrap();
        prefix
    }

    fn store() -> (tempfile::TempDir, Store) {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        (home, store)
    }

    fn packages(lines: &[(&str, &str, &str, &str)]) -> Packages {
        let mut packages = Packages::default();
        packages.read(&list(lines), Archive::Main).unwrap();
        packages
    }

    const SUITE: [(&str, &str, &str, &str); 2] = [("libc6", "2.99-1", "", ""), ("libgcc-s1", "1", "", "")];

    #[test]
    fn the_newest_patch_of_what_is_whole_comes_first() {
        let (_home, store) = store();
        for (name, version) in [("a", "3.33.9"), ("b", "3.33.10rc1"), ("c", "3.33.10"), ("d", "3.34.1")] {
            lay(&store, name, version, &[]);
        }
        let broken = lay(&store, "e", "3.33.11", &[]);
        fs::remove_file(broken.join("lib/python3.33/os.py")).unwrap();
        let liar = lay(&store, "f", "3.33.12", &[]);
        fs::write(liar.join("include/python3.33/patchlevel.h"), "#define PY_VERSION \"3.34.12\"\n").unwrap();
        std::os::unix::fs::symlink(store.root().join("pythons/c"), store.root().join("pythons/link")).unwrap();
        let versions: Vec<String> = candidates(&store, "3.33").into_iter().map(|f| f.version).collect();
        assert_eq!(versions, ["3.33.10", "3.33.10rc1", "3.33.9"]);
        assert!(candidates(&store, "3.7").is_empty() && candidates(&store, "2.7").is_empty());
        assert!(known(&store).contains("3.11 (bookworm)"));
    }

    #[test]
    fn a_library_that_nobody_brings_costs_a_module_or_the_interpreter() {
        let (_home, store) = store();
        lay(&store, "a", "3.33.1", &["_gdbm"]);
        let choose = |suite: &[(&str, &str, &str, &str)]| choose(&store, "3.33", &packages(suite), "s", &Silent);
        let (chosen, seeds) = choose(&SUITE).unwrap().unwrap();
        assert!(chosen.without.is_empty() && seeds.contains(&"libc6".to_owned()), "{chosen:?} {seeds:?}");
        assert_eq!((chosen.source, chosen.version.as_str()), (Source::Store, "3.33.1"));
        let error = choose(&SUITE[..1]).unwrap_err().to_string();
        assert!(error.contains("libgcc_s.so.1") && error.contains("suite `s`"), "{error}");

        // The program itself is content now, and only a module wants what nobody has.
        let prefix = store.root().join("pythons/a");
        let mut bare = fs::read("/proc/self/exe").unwrap();
        let at = bare.windows(14).position(|w| w == b"libgcc_s.so.1\0").unwrap();
        bare[at..at + 14].copy_from_slice(b"libm.so.6\0\0\0\0\0");
        fs::remove_file(prefix.join("bin/python3.33")).unwrap();
        fs::write(prefix.join("bin/python3.33"), &bare).unwrap();
        let (chosen, _) = choose(&SUITE[..1]).unwrap().unwrap();
        assert_eq!(chosen.without, ["_gdbm.cpython.so"]);
        fs::rename(
            prefix.join("lib/python3.33/lib-dynload/_gdbm.cpython.so"),
            prefix.join("lib/python3.33/lib-dynload/_ssl.cpython.so"),
        )
        .unwrap();
        let error = choose(&SUITE[..1]).unwrap_err().to_string();
        assert!(error.contains("_ssl"), "{error}");
    }

    #[test]
    fn an_interpreter_for_a_newer_glibc_is_refused() {
        let (_home, store) = store();
        lay(&store, "a", "3.33.1", &[]);
        let old = [("libc6", "2.4-1", "", ""), ("libgcc-s1", "1", "", "")];
        let error = choose(&store, "3.33", &packages(&old), "s", &Silent).unwrap_err().to_string();
        assert!(error.contains("glibc") && error.contains("has 2.4"), "{error}");
        assert!(choose(&store, "3.32", &packages(&old), "s", &Silent).unwrap().is_none());
    }

    #[test]
    fn a_tree_that_is_gone_or_changed_is_noticed() {
        let (_home, store) = store();
        let prefix = lay(&store, "a", "3.33.1", &[]);
        let (chosen, _) = choose(&store, "3.33", &packages(&SUITE), "s", &Silent).unwrap().unwrap();
        let place = || {
            let out = tempfile::tempdir().unwrap();
            place(&store, &chosen, "3.33", out.path(), &Silent)
        };
        place().unwrap();
        // The same tree elsewhere is as good.
        let moved = store.root().join("pythons/other");
        fs::rename(&prefix, &moved).unwrap();
        place().unwrap();
        fs::write(moved.join("lib/python3.33/os.py"), "evil").unwrap();
        let error = place().unwrap_err();
        assert!(
            matches!(&error, ImageError::InterpreterMissing { why, .. } if why.0.contains("other files")),
            "{error:?}"
        );
        fs::remove_dir_all(&moved).unwrap();
        let error = place().unwrap_err();
        assert!(
            matches!(&error, ImageError::InterpreterMissing { why, places, .. }
            if why.0.contains("none") && places.contains("pythons")),
            "{error:?}"
        );
    }
}
