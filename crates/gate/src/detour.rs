//! Headers by which a request asks its upstream to take it for another one: for another method, another path, another
//! host. Some frameworks and proxies obey them, so what they ask for is decided as if the request said so itself.
//!
//! What a query (`?_method=DELETE`) or a form's field says is the upstream's own API and is not read here.
//!
//! # Source
//! RFC 7239 for `Forwarded`; the documentation of Rails, Symfony, ASP.NET, IIS URL Rewrite, Traefik and Google APIs for the
//! others.

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, Uri};
use ringfence_policy::{Denial, HttpRequest, Policy};

use crate::{decide, identify};

const METHODS: [&str; 3] = ["x-http-method", "x-http-method-override", "x-method-override"];

const PATHS: [&str; 5] =
    ["x-forwarded-uri", "x-original-uri", "x-original-url", "x-rewrite-url", "x-waws-unencoded-url"];

const HOSTS: [&str; 5] =
    ["x-forwarded-host", "x-forwarded-server", "x-host", "x-http-host-override", "x-original-host"];

const FORWARDED: &str = "forwarded";

/// Names that mean something to the gate, or that it writes itself.
const OWN: [&str; 5] =
    ["content-encoding", "content-length", "content-type", "proxy-authorization", "transfer-encoding"];

/// Holds what a permitted request asks for beside itself against the policy. `question` is the request as it was decided,
/// and `path` its one form.
///
/// # Errors
/// A denial: `method_override`, `path_override` or `host_mismatch`.
pub fn check(policy: &Policy, question: &HttpRequest<'_>, path: &str, headers: &HeaderMap) -> Result<(), Denial> {
    for (name, value) in headers {
        let name = name.as_str();
        if !name.starts_with('x') && name != FORWARDED {
            continue;
        }
        let Some(said) = value.to_str().ok().map(str::trim).filter(|said| said.len() <= 2048) else {
            if kind(name).is_some() {
                return Err(Denial::new("host_mismatch", format!("nobody can tell what `{name}` asks for")));
            }
            continue;
        };
        match kind(name) {
            None => {}
            Some(Kind::Method) => {
                for method in said.split(',').map(|method| method.trim().to_ascii_uppercase()) {
                    let asked = HttpRequest { method: &method, ..question.clone() };
                    decide::http(policy, asked).map_err(|denial| {
                        let why = format!("`{name}` asks for {method}, which is not granted: {}", denial.why);
                        Denial::new("method_override", why)
                    })?;
                }
            }
            Some(Kind::Path) if is_path(said, path) => {}
            Some(Kind::Path) => {
                let why = format!("`{name}` asks for another path than the request");
                return Err(Denial::new("path_override", why));
            }
            Some(Kind::Host) => hosts(name, said.split(',').map(str::trim), question)?,
            Some(Kind::Forwarded) => {
                let pairs = said.split([',', ';']).filter_map(|pair| pair.split_once('='));
                let named = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case("host"));
                hosts(name, named.map(|(_, value)| value.trim().trim_matches('"')), question)?;
            }
        }
    }
    Ok(())
}

enum Kind {
    Forwarded,
    Host,
    Method,
    Path,
}

fn kind(name: &str) -> Option<Kind> {
    let is_one_of = |names: &[&str]| names.contains(&name);
    Some(match () {
        () if name == FORWARDED => Kind::Forwarded,
        () if is_one_of(&HOSTS) => Kind::Host,
        () if is_one_of(&METHODS) => Kind::Method,
        () if is_one_of(&PATHS) => Kind::Path,
        () => return None,
    })
}

fn hosts<'a>(name: &str, named: impl Iterator<Item = &'a str>, question: &HttpRequest<'_>) -> Result<(), Denial> {
    for text in named {
        if !identify::names(text, question.host, question.port) {
            let said: String = text.chars().take(120).collect();
            let why = format!("`{name}` names `{said}`, but the request is to {}", question.host);
            return Err(Denial::new("host_mismatch", why));
        }
    }
    Ok(())
}

/// Whether `said`, a path or a whole URL, leads where the request does.
fn is_path(said: &str, path: &str) -> bool {
    let Ok(uri) = said.parse::<Uri>() else { return false };
    let asked = uri.path_and_query().map_or("/", PathAndQuery::path);
    uri.authority().is_none_or(|_| uri.scheme().is_some())
        && ringfence_policy::path::normalise(asked).is_ok_and(|asked| asked == path)
}

/// Takes away headers that are another one to servers that know no difference between `_` and `-`, as those of CGI and
/// WSGI are: those of a name that means something here or upstream, and `credential`'s.
///
/// # Source
/// RFC 3875 §4.1.18.
pub fn strip_lookalikes(headers: &mut HeaderMap, credential: Option<&str>) {
    let is_taken = |name: &HeaderName| {
        let dashed = name.as_str().replace('_', "-");
        credential == Some(dashed.as_str()) || OWN.contains(&dashed.as_str()) || kind(&dashed).is_some()
    };
    let lookalikes: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().contains('_') && is_taken(name)).cloned().collect();
    for name in lookalikes {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use ringfence_model::HostName;
    use ringfence_model::manifest::{Grant, Scheme};

    use super::*;

    fn policy() -> Policy {
        let mut grant = Grant::to("api.example.org".parse().unwrap());
        (grant.methods, grant.paths) = (vec!["GET".into(), "POST".into()], vec!["/v1/*".into()]);
        Policy::compile(&"analyst".parse().unwrap(), &[grant], &[]).unwrap()
    }

    fn asked(name: &'static str, value: &str) -> Result<(), &'static str> {
        let host: HostName = "api.example.org".parse().unwrap();
        let question = HttpRequest {
            host: &host,
            port: 443,
            scheme: Scheme::Https,
            method: "POST",
            path: "/v1/a%62c",
            websocket: false,
            model: None,
            llm: None,
        };
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        check(&policy(), &question, "/v1/abc", &headers).map_err(|denial| denial.code)
    }

    #[test]
    fn what_a_header_asks_for_is_decided() {
        for (name, value, want) in [
            ("x-http-method-override", "GET", Ok(())),
            ("x-http-method-override", "get", Ok(())),
            ("x-http-method-override", "DELETE", Err("method_override")),
            ("x-http-method", "patch", Err("method_override")),
            ("x-method-override", "GET, DELETE", Err("method_override")),
            ("x-method-override", "", Err("method_override")),
            ("x-original-url", "/v1/abc", Ok(())),
            ("x-original-url", "/v1/abc?b=c", Ok(())),
            ("x-original-url", "https://api.example.org/v1/%61bc", Ok(())),
            ("x-original-url", "/admin", Err("path_override")),
            ("x-rewrite-url", "/v1/../admin", Err("path_override")),
            ("x-rewrite-url", "admin", Err("path_override")),
            ("x-forwarded-uri", "", Err("path_override")),
            ("x-forwarded-host", "api.example.org", Ok(())),
            ("x-forwarded-host", "api.example.org:443", Ok(())),
            ("x-forwarded-host", "evil.example", Err("host_mismatch")),
            ("x-forwarded-host", "api.example.org, evil.example", Err("host_mismatch")),
            ("x-host", "evil.example", Err("host_mismatch")),
            ("forwarded", "for=192.0.2.1;proto=https", Ok(())),
            ("forwarded", "for=192.0.2.1;Host=\"api.example.org\"", Ok(())),
            ("forwarded", "for=a, for=b; host=evil.example", Err("host_mismatch")),
            ("x-forwarded-host", "\u{fc}ber", Err("host_mismatch")),
            ("x-forwarded-for", "192.0.2.1", Ok(())),
            ("x-other", "\u{fc}ber", Ok(())),
        ] {
            assert_eq!(asked(name, value), want, "{name}: {value}");
        }
    }

    #[test]
    fn lookalikes_of_what_counts_are_taken_away() {
        let mut headers = HeaderMap::new();
        for name in
            ["content_length", "x_api_key", "x_http_method_override", "authorization", "my_own", "x_forwarded-host"]
        {
            headers.insert(HeaderName::from_static(name), "1".parse().unwrap());
        }
        strip_lookalikes(&mut headers, Some("x-api-key"));
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "my_own"]);
    }
}
