//! Which package indexes the host is configured with, and which hosts their files come from.
//!
//! No index is named in this source: where nothing is configured, `uv` itself is asked for its default.
//!
//! # Source
//! uv's reference, "Configuration files" and "Environment variables"; pip's reference, "Configuration"; PEP 503, 691.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine;
use ringfence_image::error::Said;
use ringfence_image::fetch::{FetchError, Fetcher, redact};
use ringfence_model::manifest::Scheme;
use ringfence_model::work::{JobHost, Progress};

use crate::error::LockError;

const PAGE_LIMIT: u64 = 64 << 20;
const TRIES: usize = 4;

/// A package index; its address may hold a user and a password, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Index {
    url: String,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({})", self.shown())
    }
}

impl Index {
    pub(crate) fn new(url: &str) -> Option<Self> {
        // `name=https://…` is how uv names an index.
        let url = match url.split_once('=') {
            Some((name, rest)) if !name.contains('/') => rest,
            _ => url,
        };
        let url = url.trim().trim_end_matches('/');
        (url.starts_with("https://") || url.starts_with("http://")).then(|| Self { url: url.into() })
    }

    /// The address with user and password, for the resolver's environment alone.
    pub(crate) fn secret(&self) -> &str {
        &self.url
    }

    /// The address without them.
    pub(crate) fn shown(&self) -> String {
        redact(&self.url)
    }

    /// `user:password@`, where there is one.
    pub(crate) fn userinfo(&self) -> Option<&str> {
        let rest = self.url.split_once("://")?.1;
        let authority = rest.split('/').next()?;
        let end = authority.rfind('@')?;
        authority.get(..=end)
    }

    pub(crate) fn authorization(&self) -> Option<String> {
        let userinfo = percent_decoded(self.userinfo()?.trim_end_matches('@'));
        Some(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(userinfo)))
    }
}

/// The indexes that resolving uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indexes {
    /// The one that is asked last; `None`: nothing is configured.
    pub default: Option<Index>,
    /// Those that are asked before.
    pub extra: Vec<Index>,
    /// Pages with links to files, beside the indexes.
    pub links: Vec<Index>,
}

impl Indexes {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Index> {
        self.extra.iter().chain(&self.default)
    }

    fn take(&mut self, default: Option<String>, extra: Vec<String>) {
        if self.default.is_none() {
            self.default = default.as_deref().and_then(Index::new);
        }
        for index in extra.iter().filter_map(|url| Index::new(url)) {
            if !self.extra.contains(&index) {
                self.extra.push(index);
            }
        }
    }
}

/// What the host's configuration is read from.
pub(crate) struct Host<'a> {
    /// An environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The text of a file.
    pub read: &'a dyn Fn(&Path) -> Option<String>,
}

/// The indexes of this host: uv's variables, uv's files, pip's variables, pip's files; the first default wins.
pub(crate) fn of_this_host() -> Indexes {
    configured(&Host {
        env: &|name| std::env::var(name).ok().filter(|v| !v.trim().is_empty()),
        read: &|path| std::fs::read_to_string(path).ok(),
    })
}

fn configured(host: &Host<'_>) -> Indexes {
    let env = |name: &str| (host.env)(name);
    let words =
        |name: &str| -> Vec<String> { env(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect() };
    let mut found = Indexes::default();
    let mut extra = words("UV_INDEX");
    extra.extend(words("UV_EXTRA_INDEX_URL"));
    found.take(env("UV_DEFAULT_INDEX").or_else(|| env("UV_INDEX_URL")), extra);
    for path in uv_files(&env) {
        if let Some(table) = (host.read)(&path).and_then(|text| toml::from_str::<toml::Table>(&text).ok()) {
            uv_file(&table, &mut found);
        }
    }
    found.take(env("PIP_INDEX_URL"), words("PIP_EXTRA_INDEX_URL"));
    for path in pip_files(&env) {
        if let Some(text) = (host.read)(&path) {
            pip_file(&text, &mut found);
        }
    }
    found
}

fn uv_files(env: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    if let Some(file) = env("UV_CONFIG_FILE") {
        return vec![file.into()];
    }
    let mut files = vec![config_home(env).join("uv/uv.toml")];
    let folders = env("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into());
    files.extend(folders.split(':').map(|d| Path::new(d).join("uv/uv.toml")));
    files.push("/etc/uv/uv.toml".into());
    files
}

fn pip_files(env: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = env("PIP_CONFIG_FILE").map(PathBuf::from).into_iter().collect();
    files.extend(env("VIRTUAL_ENV").map(|venv| Path::new(&venv).join("pip.conf")));
    files.push(config_home(env).join("pip/pip.conf"));
    files.extend(env("HOME").map(|home| Path::new(&home).join(".pip/pip.conf")));
    files.extend(["/etc/xdg/pip/pip.conf".into(), "/etc/pip.conf".into()]);
    files
}

fn config_home(env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    env("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| env("HOME").map(|home| Path::new(&home).join(".config")))
        .unwrap_or_else(|| "/root/.config".into())
}

fn uv_file(table: &toml::Table, into: &mut Indexes) {
    let text = |v: &toml::Value| v.as_str().map(str::to_owned);
    for entry in table.get("index").and_then(toml::Value::as_array).into_iter().flatten() {
        let url = entry.get("url").and_then(text);
        match entry.get("default").and_then(toml::Value::as_bool) {
            Some(true) => into.take(url, Vec::new()),
            _ => into.take(None, url.into_iter().collect()),
        }
    }
    for table in [Some(table), table.get("pip").and_then(toml::Value::as_table)].into_iter().flatten() {
        let extra = table.get("extra-index-url").and_then(toml::Value::as_array);
        let extra = extra.into_iter().flatten().filter_map(text).collect();
        into.take(table.get("index-url").and_then(text), extra);
    }
}

fn pip_file(text: &str, into: &mut Indexes) {
    let (mut relevant, mut key) = (false, String::new());
    let (mut default, mut extra) = (None, Vec::new());
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = trimmed.strip_prefix('[') {
            relevant = matches!(section.trim_end_matches(']'), "global" | "install" | "download");
            continue;
        }
        let mut value = trimmed;
        if !line.starts_with([' ', '\t'])
            && let Some((k, v)) = trimmed.split_once('=')
        {
            key = k.trim().replace('_', "-");
            value = v.trim();
        }
        match (relevant, key.as_str()) {
            (true, "index-url") if default.is_none() && !value.is_empty() => default = Some(value.to_owned()),
            (true, "extra-index-url") => extra.extend(value.split_whitespace().map(str::to_owned)),
            _ => {}
        }
    }
    into.take(default, extra);
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let pair = text.get(at + 1..at + 3).filter(|_| *byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(pair.unwrap_or(*byte));
        at += if pair.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The host of a URL.
pub(crate) fn host_of(url: &str) -> Option<JobHost> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let default = if scheme == Scheme::Http { 80 } else { 443 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (authority, default),
    };
    (!host.is_empty()).then(|| JobHost { scheme, host: host.to_ascii_lowercase(), port })
}

/// The hosts of the indexes and of the files that they point to, learnt from the pages of some of `names`.
pub(crate) fn hosts(
    indexes: &Indexes,
    names: &[String],
    progress: &dyn Progress,
) -> Result<BTreeSet<JobHost>, LockError> {
    let fetcher = Fetcher::new();
    let mut hosts: BTreeSet<JobHost> = indexes.links.iter().filter_map(|l| host_of(l.secret())).collect();
    let probes: Vec<&str> = names.iter().map(String::as_str).take(TRIES).chain(["pip"]).collect();
    for index in indexes.all() {
        hosts.extend(host_of(index.secret()));
        hosts.extend(file_hosts(&fetcher, index, &probes, progress)?);
    }
    Ok(hosts)
}

fn file_hosts(
    fetcher: &Fetcher,
    index: &Index,
    names: &[&str],
    progress: &dyn Progress,
) -> Result<BTreeSet<JobHost>, LockError> {
    let unreachable = |why: String| LockError::IndexUnreachable { index: index.shown(), why: Said(why) };
    let authorization = index.authorization();
    let mut headers = vec![(
        "accept",
        "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1",
    )];
    headers.extend(authorization.as_deref().map(|a| ("authorization", a)));
    for name in names {
        match fetcher.page(&format!("{}/{name}/", index.shown()), &headers, PAGE_LIMIT, progress) {
            Ok(page) => {
                let hosts = links(&page.media_type, &page.body);
                if !hosts.is_empty() {
                    return Ok(hosts);
                }
            }
            Err(FetchError::Cancelled) => {
                return Err(LockError::from(ringfence_image::ImageError::Cancelled("asking the package index")));
            }
            Err(e) if e.is_absent() => {}
            Err(FetchError::Status(code @ (401 | 403))) => {
                return Err(unreachable(format!("it answers with status {code}: check user and password")));
            }
            Err(e) => return Err(unreachable(e.to_string())),
        }
    }
    Ok(BTreeSet::new())
}

/// Hosts of absolute links in a page of an index; relative ones stay with the index.
fn links(media_type: &str, body: &[u8]) -> BTreeSet<JobHost> {
    if media_type.ends_with("json") {
        let page: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let files = page.get("files").and_then(|f| f.as_array()).cloned().unwrap_or_default();
        return files.iter().filter_map(|f| host_of(f.get("url")?.as_str()?)).collect();
    }
    let text = String::from_utf8_lossy(body);
    text.split("href=")
        .skip(1)
        .filter_map(|rest| {
            let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            host_of(rest.get(1..)?.split(quote).next()?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn found(env: &[(&str, &str)], files: &[(&str, &str)]) -> (Option<String>, Vec<String>) {
        let env: BTreeMap<String, String> = env.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let files: BTreeMap<PathBuf, String> = files.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let indexes = configured(&Host { env: &|name| env.get(name).cloned(), read: &|path| files.get(path).cloned() });
        (indexes.default.map(|i| i.url), indexes.extra.into_iter().map(|i| i.url).collect())
    }

    #[test]
    fn every_place_is_read_in_order() {
        let pip = "[global]\nindex-url = https://pip.example/simple/\nextra-index-url =\n  https://a.example/s\n  \
                   https://b.example/s\n[other]\nindex-url = https://no.example\n";
        let uv = "[[index]]\nname = 'x'\nurl = 'https://x.example/s'\n[[index]]\nurl = 'https://uv.example/s'\ndefault = \
                  true\n[pip]\nextra-index-url = ['https://y.example/s']\n";
        let home = ("HOME", "/h");
        assert_eq!(found(&[home], &[]), (None, vec![]));
        assert_eq!(
            found(&[home], &[("/etc/pip.conf", pip)]),
            (
                Some("https://pip.example/simple".into()),
                vec!["https://a.example/s".into(), "https://b.example/s".into()]
            )
        );
        let both = [("/etc/pip.conf", pip), ("/h/.config/uv/uv.toml", uv)];
        let (default, extra) = found(&[home], &both);
        assert_eq!(default.as_deref(), Some("https://uv.example/s"));
        assert_eq!(extra.len(), 4);
        let env =
            [home, ("PIP_INDEX_URL", "https://p.example/s"), ("UV_INDEX", "n=https://n.example/s https://m.example/s")];
        assert_eq!(
            found(&env, &[]),
            (Some("https://p.example/s".into()), vec!["https://n.example/s".into(), "https://m.example/s".into()])
        );
        let env = [home, ("PIP_INDEX_URL", "https://p.example"), ("UV_INDEX_URL", "https://u.example")];
        assert_eq!(found(&env, &both).0.as_deref(), Some("https://u.example"));
        assert_eq!(found(&[home, ("PIP_INDEX_URL", "file:///x")], &[]).0, None);
    }

    #[test]
    fn passwords_are_not_shown() {
        let index = Index::new("https://me:p%40ss@pkgs.example/simple/").unwrap();
        assert_eq!(index.shown(), "https://pkgs.example/simple");
        assert!(!format!("{index:?}").contains("p%40ss"));
        assert_eq!(index.userinfo(), Some("me:p%40ss@"));
        assert_eq!(index.authorization().unwrap(), "Basic bWU6cEBzcw==");
        assert_eq!(host_of(&index.url).unwrap().host, "pkgs.example");
    }

    #[test]
    fn file_hosts_are_found_in_both_kinds_of_page() {
        let json = br#"{"files": [{"url": "https://files.example/a.whl"}, {"url": "rel.whl"}, {"url": "http://o.example:81/x"}]}"#;
        let shown = |hosts: BTreeSet<JobHost>| -> Vec<String> {
            hosts.iter().map(|h| format!("{}://{}:{}", h.scheme.word(), h.host, h.port)).collect()
        };
        assert_eq!(
            shown(links("application/vnd.pypi.simple.v1+json", json)),
            ["http://o.example:81", "https://files.example:443"]
        );
        let html = b"<a href=\"https://files.example/a#sha256=1\">a</a><a href='../b'>b</a>";
        assert_eq!(shown(links("text/html", html)), ["https://files.example:443"]);
    }
}
