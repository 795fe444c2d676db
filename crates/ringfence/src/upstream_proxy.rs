//! `upstream-proxy.toml`, beside the guard-rails: the proxy between this host and the Internet.

use ringfence_gate::config::UpstreamProxy;
use ringfence_model::manifest::Scheme;
use ringfence_model::{Fault, HostPattern, Report, SecretText};
use serde::Deserialize;

/// What was written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    url: String,
    user: Option<String>,
    password_file: Option<String>,
    #[serde(default)]
    no_proxy: Vec<String>,
    ca: Option<String>,
}

/// What it means; the files that it names are read when a gate is started.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    proxy: UpstreamProxy,
    password_file: Option<String>,
    ca: Option<String>,
}

fn wrong(key: &str, why: impl std::fmt::Display, hint: &str) -> Report {
    Report::new("policy.upstream_proxy", Fault::Host, format!("the upstream proxy's `{key}` is not usable: {why}"))
        .hint(hint)
}

impl ProxySettings {
    /// Reads and checks the file's text.
    ///
    /// # Errors
    /// A report that names the key.
    pub fn parse(text: &str) -> Result<Self, Report> {
        let written: Written = toml::from_str(text).map_err(|e| {
            let message = e.message().replace('\n', " ");
            Report::new("policy.upstream_proxy", Fault::Host, format!("cannot read the upstream proxy: {message}"))
                .hint("the keys are `url`, `user`, `password_file`, `no_proxy` and `ca`")
        })?;
        let hint = "write it as `http://proxy.corp:3128`; the user goes into `user`";
        let bad = |why: &str| wrong("url", format!("`{}` {why}", shown(&written.url)), hint);
        let (scheme, rest) = match written.url.split_once("://") {
            Some(("http", rest)) => (Scheme::Http, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            _ => return Err(bad("is neither `http://` nor `https://`")),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(bad("has more than host and port"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().ok().filter(|p| *p != 0).ok_or_else(|| bad("has no valid port"))?)
            }
            _ => (authority, if scheme == Scheme::Http { 80 } else { 443 }),
        };
        let host = host.parse().map_err(|_| bad("names no host"))?;
        if written.password_file.is_some() && written.user.is_none() {
            return Err(wrong("password_file", "there is no `user`", "say `user` too"));
        }
        if written.user.as_ref().is_some_and(|user| user.contains(':') || user.chars().any(char::is_control)) {
            return Err(wrong("user", "it has a colon or a control character", "write the bare name"));
        }
        if written.ca.is_some() && scheme == Scheme::Http {
            return Err(wrong("ca", "the proxy speaks no TLS", "write `https://` in `url`, or drop `ca`"));
        }
        let pattern = |text: &String| {
            let folded = text.strip_prefix('.').map_or_else(|| text.clone(), |suffix| format!("*.{suffix}"));
            let hint = "write a host, an address, or `*.suffix`";
            folded.parse::<HostPattern>().map_err(|e| wrong("no_proxy", e, hint))
        };
        let no_proxy = written.no_proxy.iter().map(pattern).collect::<Result<_, _>>()?;
        let proxy = UpstreamProxy { scheme, host, port, user: written.user, password: None, no_proxy, ca_pem: None };
        Ok(Self { proxy, password_file: written.password_file, ca: written.ca })
    }

    /// The proxy as a gate is told, with password and authorities read.
    ///
    /// # Errors
    /// A report that names the file.
    pub fn read(&self) -> Result<UpstreamProxy, Report> {
        let text = |key: &str, path: &String| {
            std::fs::read_to_string(path).map_err(|e| {
                wrong(key, format!("cannot read `{path}`: {e}"), "name a file that root can read, by its whole path")
            })
        };
        let mut proxy = self.proxy.clone();
        if let Some(path) = &self.password_file {
            let password = SecretText::new(text("password_file", path)?);
            proxy.password = Some(SecretText::new(password.reveal().trim_end_matches(['\r', '\n']).to_owned()));
        }
        proxy.ca_pem = self.ca.as_ref().map(|path| text("ca", path)).transpose()?;
        Ok(proxy)
    }
}

/// An address for an error, without what may be a password.
fn shown(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("…@{rest}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_with_its_password() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "pass word\n").unwrap();
        let text = format!(
            "url = \"http://proxy.corp:3128/\"\nuser = \"host-7\"\npassword_file = {path:?}\nno_proxy = [\".corp\", \"*.in.example\", \"10.0.0.1\"]"
        );
        let error = ProxySettings::parse(&text).unwrap_err().to_string();
        assert!(error.contains("no_proxy"), "one label is too broad: {error}");
        let settings = ProxySettings::parse(&text.replace(".corp\",", ".corp.example\",")).unwrap();
        assert!(settings.proxy.password.is_none(), "nothing is read before it is needed");
        let proxy = settings.read().unwrap();
        assert_eq!((proxy.scheme, proxy.host.to_string().as_str(), proxy.port), (Scheme::Http, "proxy.corp", 3128));
        assert_eq!(proxy.password.unwrap().reveal(), "pass word");
        let covers = |host: &str| proxy.no_proxy.iter().any(|p| p.covers(&host.parse().unwrap()));
        assert!(covers("a.corp.example") && covers("b.in.example") && covers("10.0.0.1") && !covers("corp.example"));
        let v6 = ProxySettings::parse("url = \"https://[fd00::1]\"").unwrap().read().unwrap();
        assert_eq!((v6.port, v6.host.to_string().as_str()), (443, "fd00::1"));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_password_is_shown() {
        for (text, want) in [
            ("", "url"),
            ("url = \"socks5://a:1\"", "url"),
            ("url = \"http://u:geheim@a:1\"", "url"),
            ("url = \"http://a:0\"", "port"),
            ("url = \"http://a:x\"", "port"),
            ("url = \"http://127.1:3128\"", "host"),
            ("url = \"http://a/x\"", "url"),
            ("url = \"http://a\"\nca = \"/x\"", "ca"),
            ("url = \"http://a\"\npassword_file = \"/x\"", "password_file"),
            ("url = \"http://a\"\nuser = \"a:b\"", "user"),
            ("url = \"http://a\"\nproxy = 1", "proxy"),
        ] {
            let report = ProxySettings::parse(text).unwrap_err();
            let shown = format!("{report:?} {report}");
            assert!(shown.contains(want) && !shown.contains("geheim"), "{text}: {shown}");
        }
        let missing = ProxySettings::parse("url = \"http://a\"\nuser = \"u\"\npassword_file = \"/nowhere\"").unwrap();
        assert!(missing.read().unwrap_err().to_string().contains("password_file"));
    }
}
