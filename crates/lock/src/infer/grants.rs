//! Which hosts and secrets a source speaks of. Suggestions only: they are written as comments, for a person to grant.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::source::Sources;
use crate::declared::Seen;
use crate::python::{self, Token};

const SERVICES: &str = include_str!("../../data/services.toml");

/// A grant that the source seems to want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggestion {
    /// Host or `*.suffix`.
    pub host: String,
    /// Methods; empty: all.
    pub methods: Vec<String>,
    /// Name of the credential, if it wants one.
    pub credential: Option<String>,
    /// Whether what comes back is written by strangers.
    pub untrusted: bool,
    /// Whether it is cleartext.
    pub cleartext: bool,
    /// A port other than the scheme's own.
    pub port: Option<u16>,
    /// Where it was seen.
    pub seen: Vec<Seen>,
}

/// A credential that the source seems to want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Name in the manifest.
    pub name: String,
    /// The environment variable.
    pub env: String,
    /// `header = "…"` or `query = "…"`, as written; `None`: nobody knows.
    pub place: Option<String>,
    /// Where it was seen.
    pub seen: Vec<Seen>,
}

/// A plain variable that the source reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Where it was seen.
    pub seen: Vec<Seen>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestions {
    /// Hosts.
    pub grants: Vec<Suggestion>,
    /// Secrets.
    pub secrets: Vec<Secret>,
    /// Plain variables.
    pub settings: Vec<Setting>,
}

#[derive(Deserialize)]
struct Table {
    service: Vec<Service>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    name: String,
    imports: Vec<String>,
    env: Vec<String>,
    host: String,
    #[serde(default)]
    methods: Vec<String>,
    header: Option<String>,
    query: Option<String>,
    #[serde(default)]
    trust: Option<String>,
}

impl Service {
    fn place(&self) -> Option<String> {
        match (&self.header, &self.query) {
            (Some(header), _) => Some(format!("header = {header:?}")),
            (None, Some(query)) => Some(format!("query = {query:?}")),
            (None, None) => None,
        }
    }
}

/// Looks through all files.
pub(crate) fn look(sources: &Sources) -> Suggestions {
    let services = toml::from_str::<Table>(SERVICES).map(|t| t.service).unwrap_or_default();
    let variables = variables(sources);
    let imported = imported(sources);
    let mut found = Suggestions::default();
    for service in &services {
        let mut seen = imports_of(&imported, &service.imports);
        let mut read: Vec<&String> = service.env.iter().filter(|e| variables.contains_key(*e)).collect();
        for name in &read {
            seen.extend(variables.get(*name).into_iter().flatten().cloned());
        }
        if seen.is_empty() {
            continue;
        }
        if read.is_empty() {
            read.extend(service.env.first());
        }
        found.grants.push(Suggestion {
            host: service.host.clone(),
            methods: service.methods.clone(),
            credential: read.first().map(|_| service.name.clone()),
            untrusted: service.trust.as_deref() == Some("untrusted"),
            cleartext: false,
            port: None,
            seen: unique(seen.clone()),
        });
        for (number, env) in read.into_iter().enumerate() {
            let name = if number == 0 { service.name.clone() } else { name_for(env) };
            found.secrets.push(Secret { name, env: env.clone(), place: service.place(), seen: unique(seen.clone()) });
        }
    }
    for (variable, seen) in variables {
        if services.iter().any(|s| s.env.contains(&variable)) || is_ours(&variable) {
            continue;
        }
        if is_secret(&variable) {
            found.secrets.push(Secret { name: name_for(&variable), env: variable, place: None, seen });
        } else {
            found.settings.push(Setting { name: variable, seen });
        }
    }
    for ((host, cleartext, port), seen) in addresses(sources) {
        if !found.grants.iter().any(|g| covers(&g.host, &host)) {
            found.grants.push(Suggestion {
                host,
                methods: Vec::new(),
                credential: None,
                untrusted: false,
                cleartext,
                port,
                seen,
            });
        }
    }
    found
}

fn covers(pattern: &str, host: &str) -> bool {
    pattern == host || pattern.strip_prefix('*').is_some_and(|suffix| host.ends_with(suffix))
}

fn unique(mut seen: Vec<Seen>) -> Vec<Seen> {
    seen.sort();
    seen.dedup();
    seen
}

/// Modules that are imported and not the folder's own, and where.
fn imported(sources: &Sources) -> BTreeMap<&str, Vec<Seen>> {
    let mut found: BTreeMap<&str, Vec<Seen>> = BTreeMap::new();
    for source in &sources.files {
        for import in &source.syntax.imports {
            let first = import.module.split('.').next().unwrap_or_default();
            if !sources.local.contains(first) {
                found.entry(&import.module).or_default().push(Seen::new(&source.path, import.line));
            }
        }
    }
    found
}

fn imports_of(imported: &BTreeMap<&str, Vec<Seen>>, names: &[String]) -> Vec<Seen> {
    let below = |module: &str, name: &str| {
        module.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let hits = imported.iter().filter(|(module, _)| names.iter().any(|name| below(module, name)));
    unique(hits.flat_map(|(_, seen)| seen).cloned().collect())
}

/// Variables that are read from the environment or from Streamlit's secrets.
fn variables(sources: &Sources) -> BTreeMap<String, Vec<Seen>> {
    // Each pattern has one of these.
    const MARKS: [&str; 4] = ["environ", "getenv", "secrets", "config"];
    const PATTERNS: [&str; 9] = [
        "environ [ $s ]",
        "environ . get ( $s",
        "environ . setdefault ( $s",
        "environ . pop ( $s",
        "getenv ( $s",
        "st . secrets [ $s ]",
        "st . secrets . get ( $s",
        "streamlit . secrets [ $s ]",
        "config ( $s )",
    ];
    let mut found: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    for source in sources.files.iter().filter(|source| MARKS.iter().any(|mark| source.has(mark))) {
        let speaks = |line: &&python::Line| {
            let of = |(_, token): &(usize, Token)| matches!(token, Token::Name(name) if MARKS.contains(&name.as_str()));
            line.tokens.iter().any(of)
        };
        for line in source.lines().iter().filter(speaks) {
            for pattern in PATTERNS {
                for caught in python::find(line, pattern) {
                    // `os.environ["X"] = …` sets it.
                    let set = line.is_op(caught.end, '=') && !line.is_op(caught.end + 1, '=');
                    let Some(name) = caught.texts.first().filter(|n| is_variable(n) && !set) else { continue };
                    found.entry(name.clone()).or_default().push(Seen::new(&source.path, caught.line));
                }
            }
        }
    }
    found.into_iter().map(|(name, seen)| (name, unique(seen))).collect()
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn is_secret(name: &str) -> bool {
    let upper = name.to_uppercase();
    ["API_KEY", "APIKEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "ACCESS_KEY", "PRIVATE_KEY", "CREDENTIAL"]
        .iter()
        .any(|word| upper.contains(word))
        || upper.ends_with("_KEY")
        || upper.ends_with("_PASS")
}

/// Variables that the image sets itself.
fn is_ours(name: &str) -> bool {
    matches!(name, "HOME" | "PATH" | "LANG" | "USER" | "PORT" | "TMPDIR" | "PYTHONPATH" | "VIRTUAL_ENV" | "HOSTNAME")
        || name.starts_with("STREAMLIT_")
        || name.starts_with("GRADIO_")
}

fn name_for(env: &str) -> String {
    let lower = env.to_lowercase().replace('_', "-");
    let short = ["-api-key", "-api-token", "-token", "-key"].iter().find_map(|s| lower.strip_suffix(s));
    short.unwrap_or(&lower).trim_matches('-').to_owned()
}

type Address = (String, bool, Option<u16>);

/// Hosts of URLs in string literals, formatted ones too as far as the host is plain.
fn addresses(sources: &Sources) -> BTreeMap<Address, Vec<Seen>> {
    let mut found: BTreeMap<Address, Vec<Seen>> = BTreeMap::new();
    for source in sources.files.iter().filter(|source| source.has("https://") || source.has("http://")) {
        for line in source.lines() {
            // A string that stands alone is documentation.
            if line.tokens.len() == 1 {
                continue;
            }
            for (number, token) in &line.tokens {
                let Token::Text { value, .. } = token else { continue };
                for address in urls(value) {
                    found.entry(address).or_default().push(Seen::new(&source.path, *number));
                }
            }
        }
    }
    found.into_iter().map(|(address, seen)| (address, unique(seen))).collect()
}

fn urls(text: &str) -> Vec<Address> {
    // Prose with links in it is not a call.
    let mut found = Vec::new();
    for (scheme, cleartext) in [("https://", false), ("http://", true)] {
        for (at, _) in text.match_indices(scheme) {
            let before = text.get(..at).unwrap_or_default();
            if before.ends_with(['(', '"', '\'', '<']) || before.ends_with("href=") {
                continue;
            }
            let rest = text.get(at + scheme.len()..).unwrap_or_default();
            let end = rest.find(['/', '?', '#', ' ', '\n', '"', '\'', ')', ',', '<']).unwrap_or(rest.len());
            let authority = rest.get(..end).unwrap_or_default();
            let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            let (host, port) = match authority.rsplit_once(':') {
                Some((host, port)) => (host, port.parse::<u16>().ok()),
                None => (authority, None),
            };
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            if is_host(&host) {
                found.push((host, cleartext, port));
            }
        }
    }
    found
}

fn is_host(host: &str) -> bool {
    const PROSE: [&str; 9] = [
        "schemas.microsoft.com",
        "schemas.xmlsoap.org",
        "www.w3.org",
        "schema.org",
        "json-schema.org",
        "fonts.googleapis.com",
        "fonts.gstatic.com",
        "img.shields.io",
        "stackoverflow.com",
    ];
    let labels: Vec<&str> = host.split('.').collect();
    let plain = |l: &&str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let top = labels.last().copied().unwrap_or_default();
    labels.len() >= 2
        && labels.iter().all(plain)
        && top.len() >= 2
        && top.bytes().all(|b| b.is_ascii_alphabetic())
        && !PROSE.contains(&host)
        && !["example", "invalid", "localhost", "test"].contains(&top)
        && !host.starts_with("example.")
        && !host.ends_with(".example.com")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn looked(text: &str) -> Suggestions {
        look(&Sources {
            files: super::super::source::of(vec![("a.py".into(), text.into())]),
            local: BTreeSet::from(["a".to_owned()]),
        })
    }

    #[test]
    fn services_are_known_by_import_and_by_variable() {
        let found = looked("from openai import OpenAI\nk = os.getenv('DEEPSEEK_API_KEY', '')\n");
        let shown: Vec<String> =
            found.grants.iter().map(|g| format!("{} {:?} {}", g.host, g.credential, g.seen[0])).collect();
        assert_eq!(shown, ["api.openai.com Some(\"openai\") a.py:1", "api.deepseek.com Some(\"deepseek\") a.py:2"]);
        assert_eq!(found.secrets[0].env, "OPENAI_API_KEY");
        assert_eq!(found.secrets[0].place.as_deref(), Some("header = \"Authorization: Bearer {}\""));
    }

    #[test]
    fn other_variables_are_sorted_into_secrets_and_settings() {
        let found = looked(
            "a = os.environ['MY_SERVICE_TOKEN']\nb = environ.get('MODEL')\nc = st.secrets[\"db_password\"]\nos.environ['X'] = \
             '1'\nd = os.environ['HOME']\n",
        );
        let secrets: Vec<&str> = found.secrets.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(secrets, ["my-service", "db-password"]);
        assert_eq!(found.settings.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["MODEL"]);
    }

    #[test]
    fn addresses_are_taken_from_calls_not_from_prose() {
        let found = looked(
            "'see https://docs.prose.org'\nrequests.get(f'https://api.weather.io/v1/{x}')\nurl = \
             'http://intranet.corp.net:8080/x'\nx = f'https://{host}/y'\nz = '[link](https://prose.net)'\nw = \
             'http://localhost:1/'\nv = 'https://example.com'\n",
        );
        let shown: Vec<String> =
            found.grants.iter().map(|g| format!("{} {} {:?}", g.host, g.cleartext, g.port)).collect();
        assert_eq!(shown, ["api.weather.io false None", "intranet.corp.net true Some(8080)"]);
    }

    #[test]
    fn the_table_of_services_makes_usable_manifests() {
        let table: Table = toml::from_str(SERVICES).unwrap();
        for service in &table.service {
            service.host.parse::<ringfence_model::HostPattern>().unwrap();
            assert!(service.env.is_empty() || service.place().is_some(), "{}", service.name);
        }
    }
}
