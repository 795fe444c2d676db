//! Layers become an image: dependencies, app and profile on a base, and the documents that bind them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ringfence_model::manifest::Kind;
use ringfence_model::work::{Progress, Runner, Step};
use ringfence_model::{Digest, Manifest, Report};

use crate::app;
use crate::bytecode;
use crate::debian::architecture;
use crate::error::{ImageError, OnPath};
use crate::layer::{self, AGENT_ID, EPOCH_TEXT, Layer};
use crate::oci::{self, Descriptor, Empty, History, ImageConfig, ImageManifest, RootFs, RunConfig};
use crate::store::Store;
use crate::tree::{put, put_link};

/// Label with the digest of the manifest.
pub const LABEL_MANIFEST: &str = "dev.ringfence.manifest";
/// Label with the digest of the lock.
pub const LABEL_LOCK: &str = "dev.ringfence.lock";
/// Label with the digest of the policy.
pub const LABEL_POLICY: &str = "dev.ringfence.policy";
/// Label with a JSON list of the certificate bundles in the layers.
pub const LABEL_TRUST_STORES: &str = "dev.ringfence.trust-stores";
/// Label with the agent's name.
pub const LABEL_AGENT: &str = "dev.ringfence.agent";
/// The virtual environment with the agent's dependencies.
pub const VENV: &str = "/opt/venv";

/// What a build needs, besides the store.
#[derive(Clone, Copy, Debug)]
pub struct BuildInput<'a> {
    /// The manifest, understood.
    pub manifest: &'a Manifest,
    /// Digest of the manifest.
    pub manifest_digest: &'a Digest,
    /// The agent's folder.
    pub folder: &'a Path,
    /// Base and python layers, from [`crate::build_base`].
    pub base: &'a [Layer],
    /// The dependencies layer, from [`build_dependencies`].
    pub dependencies: &'a Layer,
    /// Digest of the lock.
    pub lock_digest: &'a Digest,
    /// What the security profile says.
    pub profile: &'a Profile,
}

/// The security profile, as it goes into the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The manifest as JSON: `/etc/ringfence/manifest.json`.
    pub manifest: Vec<u8>,
    /// The seccomp profile as JSON: `/etc/ringfence/seccomp.json`.
    pub seccomp: Vec<u8>,
    /// Digest of the policy: `/etc/ringfence/policy`.
    pub policy: Digest,
}

/// A built image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Digest of the image manifest.
    pub digest: Digest,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
}

/// Builds the layer with a virtual environment at [`VENV`], or finds it where `key` is known.
///
/// `install` is given a folder that holds the bare environment, and fills it. It is called only when the layer is
/// not there. What it leaves is byte-compiled through `runner`.
///
/// # Errors
/// What `install` reports, wrapped; [`ImageError`] of the byte compiler and the store.
pub fn build_dependencies(
    store: &Store,
    key: &Digest,
    base: &[Layer],
    python: &str,
    runner: &dyn Runner,
    progress: &dyn Progress,
    install: &mut dyn FnMut(&Path) -> Result<(), Report>,
) -> Result<Layer, ImageError> {
    let _using = store.using()?;
    let bases: Vec<String> = base.iter().map(|l| l.diff_id.hex()).collect();
    let key = Digest::of(format!("ringfence dependencies 1 {} {key}", bases.join(" ")).as_bytes());
    let _alone = store.alone(&key, progress)?;
    if let Some(layer) = store.recall::<Layer>(&key).filter(|l| layer::is_whole(store, l)) {
        return Ok(layer);
    }
    let stage = stage_dependencies(store, python, install)?;
    let tree = stage.path().join(TREE);
    let tell = |doing: &str| {
        progress.tell(Step { name: "dependencies".into(), doing: doing.into(), done: 0, total: None });
    };
    tell("byte-compiling dependencies");
    let mut below: Vec<_> = base.iter().map(|l| store.layer_dir(&l.diff_id)).collect();
    below.push(tree.clone());
    let roots = [format!("{VENV}/lib/python{python}/site-packages")];
    bytecode::compile(store, runner, "the dependencies", python, below, &roots, &tree)?;
    tell("packing dependencies");
    let layer = layer::commit(store, "dependencies", &tree, progress)?;
    store.remember(&key, &layer)?;
    Ok(layer)
}

/// The folder of a stage that is the root of what is staged.
pub const TREE: &str = "tree";

/// Installs dependencies into a folder of the store that is gone with what is given back, without making a layer of it: for trying.
///
/// # Errors
/// What `install` reports, wrapped; [`ImageError`] of the store.
pub fn stage_dependencies(
    store: &Store,
    python: &str,
    install: &mut dyn FnMut(&Path) -> Result<(), Report>,
) -> Result<tempfile::TempDir, ImageError> {
    let stage = store.stage("dependencies")?;
    let tree = stage.path().join(TREE);
    lay_venv(&tree, python)?;
    let venv = tree.join(VENV.trim_start_matches('/'));
    install(&venv).map_err(|report| ImageError::job("install dependencies", report))?;
    clear_caches(&venv)?;
    Ok(stage)
}

/// A virtual environment as `python3 -m venv --without-pip` would lay it.
fn lay_venv(tree: &Path, python: &str) -> Result<(), ImageError> {
    let venv = VENV.trim_start_matches('/');
    let packages = tree.join(format!("{venv}/lib/python{python}/site-packages"));
    fs::create_dir_all(&packages).on("make folder", &packages)?;
    put_link(tree, &format!("{venv}/bin/python3"), &format!("/usr/bin/python{python}"))?;
    put_link(tree, &format!("{venv}/bin/python"), "python3")?;
    put_link(tree, &format!("{venv}/bin/python{python}"), "python3")?;
    let config = format!("home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n");
    put(tree, &format!("{venv}/pyvenv.cfg"), config.as_bytes())
}

/// Removes byte code and lock files that installing left.
fn clear_caches(venv: &Path) -> Result<(), ImageError> {
    let mut gone = Vec::new();
    layer::walk(venv, "", &mut |path, relative, meta| {
        let name = relative.rsplit('/').next().unwrap_or_default();
        if (meta.is_dir() && name == "__pycache__")
            || (meta.is_file()
                && matches!(name, ".lock" | ".gitignore" | "CACHEDIR.TAG")
                && !relative.contains("site-packages"))
        {
            gone.push(path.to_path_buf());
        }
        Ok(())
    })?;
    for path in gone {
        let done = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match done {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            done => done.on("remove", &path)?,
        }
    }
    Ok(())
}

/// Puts an image together; what did not change is taken from the store.
///
/// # Errors
/// [`ImageError::AppFile`], [`ImageError::EntryMissing`], or of the store.
pub fn build(store: &Store, input: &BuildInput<'_>, progress: &dyn Progress) -> Result<Built, ImageError> {
    let _using = store.using()?;
    let app = app::build(store, input.folder, progress)?;
    let profile = profile(store, input.profile, progress)?;
    let mut layers: Vec<Layer> = input.base.to_vec();
    layers.extend([input.dependencies.clone(), app, profile]);
    for layer in &layers {
        if !layer::is_whole(store, layer) {
            return Err(ImageError::StoreMissing { what: "blob", name: layer.blob.to_string() });
        }
    }
    let config = config(store, input, &layers)?;
    let config_bytes = json(&config, "image configuration")?;
    let config_digest = store.write_blob(&config_bytes)?;
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: oci::MANIFEST.into(),
        config: Descriptor::new(oci::CONFIG, config_digest, config_bytes.len() as u64),
        layers: layers.iter().map(|l| Descriptor::new(oci::LAYER, l.blob, l.size)).collect(),
        annotations: BTreeMap::new(),
    };
    let digest = store.write_blob(&json(&manifest, "image manifest")?)?;
    Ok(Built { digest, layers })
}

fn json<T: serde::Serialize>(document: &T, what: &'static str) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(document).map_err(|e| ImageError::StoreSyntax {
        what,
        name: "a new one".into(),
        why: e.to_string(),
    })
}

fn profile(store: &Store, profile: &Profile, progress: &dyn Progress) -> Result<Layer, ImageError> {
    let policy = format!("{}\n", profile.policy);
    let files: [(&str, &[u8]); 3] = [
        ("etc/ringfence/manifest.json", &profile.manifest),
        ("etc/ringfence/policy", policy.as_bytes()),
        ("etc/ringfence/seccomp.json", &profile.seccomp),
    ];
    let parts: Vec<String> = files.iter().map(|(name, bytes)| format!("{name} {}", Digest::of(bytes))).collect();
    let key = Digest::of(format!("ringfence profile 1 {}", parts.join(" ")).as_bytes());
    if let Some(layer) = store.recall::<Layer>(&key).filter(|l| layer::is_whole(store, l)) {
        return Ok(layer);
    }
    let stage = store.stage("profile")?;
    let tree = stage.path().join("tree");
    for (name, bytes) in files {
        put(&tree, name, bytes)?;
    }
    let layer = layer::commit(store, "profile", &tree, progress)?;
    store.remember(&key, &layer)?;
    Ok(layer)
}

fn config(store: &Store, input: &BuildInput<'_>, layers: &[Layer]) -> Result<ImageConfig, ImageError> {
    let manifest = input.manifest;
    let trust_stores: Vec<&String> = layers.iter().flat_map(|l| &l.trust_stores).collect();
    let labels = BTreeMap::from([
        (LABEL_AGENT.to_owned(), manifest.name.to_string()),
        (LABEL_LOCK.to_owned(), input.lock_digest.to_string()),
        (LABEL_MANIFEST.to_owned(), input.manifest_digest.to_string()),
        (LABEL_POLICY.to_owned(), input.profile.policy.to_string()),
        (LABEL_TRUST_STORES.to_owned(), String::from_utf8_lossy(&json(&trust_stores, "label")?).into_owned()),
    ]);
    let ports = manifest.ingress.iter().map(|i| (format!("{}/tcp", i.port), Empty {})).collect();
    let history = layers
        .iter()
        .map(|l| History { created: EPOCH_TEXT.into(), created_by: format!("ringfence {}", l.name) })
        .collect();
    Ok(ImageConfig {
        created: EPOCH_TEXT.into(),
        architecture: architecture().into(),
        os: "linux".into(),
        config: RunConfig {
            user: format!("{AGENT_ID}:{AGENT_ID}"),
            env: environment(manifest).into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            entrypoint: entry(store, &manifest.entry, layers)?,
            working_dir: "/app".into(),
            exposed_ports: ports,
            labels,
        },
        rootfs: RootFs { kind: "layers".into(), diff_ids: layers.iter().map(|l| l.diff_id).collect() },
        history,
    })
}

/// The environment that an agent finds: ours, what its kind wants, and last what the manifest says.
#[must_use]
pub fn environment(manifest: &Manifest) -> BTreeMap<String, String> {
    let path = format!("{VENV}/bin:/usr/bin:/bin");
    let mut pairs: Vec<(&str, &str)> = vec![
        ("HOME", "/state"),
        ("LANG", "C.UTF-8"),
        ("MPLCONFIGDIR", "/tmp/matplotlib"),
        ("PATH", &path),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONUNBUFFERED", "1"),
        ("VIRTUAL_ENV", VENV),
        ("XDG_CACHE_HOME", "/tmp/cache"),
    ];
    match manifest.kind {
        Kind::Streamlit => pairs.extend([
            ("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false"),
            ("STREAMLIT_GLOBAL_DEVELOPMENT_MODE", "false"),
            ("STREAMLIT_SERVER_FILE_WATCHER_TYPE", "none"),
            ("STREAMLIT_SERVER_HEADLESS", "true"),
        ]),
        Kind::Gradio => pairs.extend([
            ("GRADIO_ANALYTICS_ENABLED", "False"),
            ("GRADIO_SERVER_NAME", "127.0.0.1"),
            ("GRADIO_TEMP_DIR", "/tmp/gradio"),
            ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ]),
        Kind::Chainlit => pairs.extend([("CHAINLIT_APP_ROOT", "/state/chainlit"), ("LITERAL_DISABLE_TELEMETRY", "1")]),
        Kind::Asgi | Kind::Mcp | Kind::Script | Kind::Wsgi => {}
    }
    let mut environment: BTreeMap<String, String> =
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if manifest.kind == Kind::Gradio
        && let Some(ingress) = &manifest.ingress
    {
        environment.insert("GRADIO_SERVER_PORT".into(), ingress.port.to_string());
    }
    environment.extend(manifest.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    environment
}

/// Gives the entry's first word its full path, so that no search path decides what starts.
fn entry(store: &Store, entry: &[String], layers: &[Layer]) -> Result<Vec<String>, ImageError> {
    let Some((program, rest)) = entry.split_first() else {
        return Err(ImageError::EntryMissing { program: String::new(), hint: "write `[agent] entry`".into() });
    };
    let candidates = if program.starts_with('/') {
        vec![program.clone()]
    } else if program.contains('/') {
        vec![format!("/app/{}", program.trim_start_matches("./"))]
    } else {
        vec![format!("{VENV}/bin/{program}"), format!("/usr/bin/{program}")]
    };
    let has = |path: &str| {
        let below = path.trim_start_matches('/');
        layers.iter().any(|l| fs::symlink_metadata(store.layer_dir(&l.diff_id).join(below)).is_ok())
    };
    let Some(found) = candidates.into_iter().find(|c| has(c)) else {
        let hint = match program.as_str() {
            "sh" | "bash" | "dash" => "the image has no shell: write the program itself and its arguments".to_owned(),
            _ => format!("add the package that brings `{program}` to the dependencies, or start it by `python3 FILE`"),
        };
        return Err(ImageError::EntryMissing { program: program.clone(), hint });
    };
    let is_python = found.starts_with(&format!("{VENV}/bin/python"));
    if is_python
        && let Some(script) = rest.first().filter(|a| a.ends_with(".py") && !a.starts_with(['-', '/']))
        && !has(&format!("/app/{}", script.trim_start_matches("./")))
    {
        let hint = "name a file of the agent's folder that is not ignored".to_owned();
        return Err(ImageError::EntryMissing { program: script.clone(), hint });
    }
    let mut full = vec![found];
    full.extend(rest.iter().cloned());
    Ok(full)
}
