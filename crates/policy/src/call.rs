//! A call as people and test files write it, to be decided without being made.
//!
//! ```text
//! POST https://api.example.org/v1/chat     a request of the agent; the port is the scheme's own unless it is named
//! DNS api.example.org                      a name that the agent asks for
//! TLS api.example.org:443                  a connection that stays closed to the gate
//! TCP git.example.org:22                   a connection that nobody looks into
//! POSTGRES db.example.org:5432             a session with a database
//! POSTGRES db.example.org:5432 write       a statement in it that does this
//! SSH git.example.org fetch acme/site      a command of git with a repository
//! SSH git.example.org push acme/site update refs/heads/main
//!                                          a ref that a push changes
//! ```

use std::fmt;
use std::str::FromStr;

use ringfence_model::manifest::{GitOperation, RefChange, Scheme, bare_name};
use ringfence_model::{Explain, Fault, HostName};

use crate::other::PostgresQuery;
use crate::{HttpRequest, LlmCall, Request, SshExec, SshPush};

/// What a statement may do, in words.
const CLASSES: [&str; 6] = ["ddl", "other", "select", "session", "transaction", "write"];

/// A call that nobody makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    kind: Kind,
    host: HostName,
    port: u16,
    /// The model that the body names.
    pub model: Option<String>,
    /// What the body asks of a language model.
    pub llm: Option<LlmCall>,
    /// Whether it asks to become a WebSocket.
    pub websocket: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Dns,
    Postgres { classes: Vec<&'static str> },
    Ssh { operation: GitOperation, repository: String, push: Option<(RefChange, String)> },
    Tcp,
    Tls,
    Http { method: String, https: bool, path: String },
}

/// Why a text is no call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a call: {why}")]
pub struct CallError {
    text: String,
    why: String,
}

impl Explain for CallError {
    fn code(&self) -> &'static str {
        "policy.call"
    }

    fn fault(&self) -> Fault {
        Fault::Caller
    }

    fn hint(&self) -> Option<String> {
        Some(
            "write `GET https://host/path`, `DNS name`, `POSTGRES host:port`, `SSH host fetch repository`, \
             `TCP host:port` or `TLS host:port`"
                .into(),
        )
    }
}

impl FromStr for Call {
    type Err = CallError;

    fn from_str(text: &str) -> Result<Self, CallError> {
        let bad = |why: &str| CallError { text: text.chars().take(120).collect(), why: why.into() };
        let (word, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(|| bad("it is one word"))?;
        let rest = rest.trim();
        let (kind, authority, usual) = match word {
            "DNS" => (Kind::Dns, rest, Some(0)),
            "POSTGRES" => {
                let mut words = rest.split_whitespace();
                let authority = words.next().unwrap_or_default();
                let class = |word: &str| CLASSES.into_iter().find(|class| *class == word);
                let classes = words.map(class).collect::<Option<Vec<_>>>();
                let classes = classes.ok_or_else(|| bad("it names no known kind of statement"))?;
                (Kind::Postgres { classes }, authority, Some(5432))
            }
            "SSH" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                let (authority, kind) = ssh(&words).ok_or_else(|| bad("it is not `host operation repository`"))?;
                (kind, authority, Some(22))
            }
            "TCP" => (Kind::Tcp, rest, None),
            "TLS" => (Kind::Tls, rest, None),
            method => {
                let (scheme, rest) = rest.split_once("://").ok_or_else(|| bad("it names no URL"))?;
                let https = match scheme {
                    "https" | "wss" => true,
                    "http" | "ws" => false,
                    _ => return Err(bad("its scheme is neither http nor https")),
                };
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (authority, path) = rest.split_at(end);
                // Queries are not matched, and a fragment is never sent.
                let path = path.split(['?', '#']).next().unwrap_or_default();
                let path = if path.is_empty() { "/" } else { path };
                let kind = Kind::Http { method: method.to_owned(), https, path: path.to_owned() };
                (kind, authority, Some(if https { 443 } else { 80 }))
            }
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') && (!host.contains(':') || host.ends_with(']')) => {
                (host, Some(port.parse::<u16>().map_err(|_| bad("its port is no number below 65536"))?))
            }
            _ => (authority, None),
        };
        let host = host.parse().map_err(|_| bad("its host is neither a name nor an address"))?;
        let port = port.or(usual).ok_or_else(|| bad("it names no port"))?;
        Ok(Self { kind, host, port, model: None, llm: None, websocket: false })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = match &self.host {
            HostName::Address(std::net::IpAddr::V6(v6)) => format!("[{v6}]"),
            other => other.to_string(),
        };
        match &self.kind {
            Kind::Dns => write!(f, "DNS {}", self.host)?,
            Kind::Postgres { classes } => {
                write!(f, "POSTGRES {bracketed}:{}", self.port)?;
                for class in classes {
                    write!(f, " {class}")?;
                }
            }
            Kind::Ssh { operation, repository, push } => {
                write!(f, "SSH {bracketed}:{} {} {repository}", self.port, operation.word())?;
                if let Some((change, name)) = push {
                    write!(f, " {} {name}", change.word())?;
                }
            }
            Kind::Tcp => write!(f, "TCP {bracketed}:{}", self.port)?,
            Kind::Tls => write!(f, "TLS {bracketed}:{}", self.port)?,
            Kind::Http { method, https, path } => {
                let (scheme, usual) = if *https { ("https", 443) } else { ("http", 80) };
                write!(f, "{method} {scheme}://{bracketed}")?;
                if self.port != usual {
                    write!(f, ":{}", self.port)?;
                }
                f.write_str(path)?;
            }
        }
        if let Some(model) = &self.model {
            write!(f, " (model {model})")?;
        }
        if self.websocket {
            f.write_str(" (WebSocket)")?;
        }
        Ok(())
    }
}

impl Call {
    /// What is asked of a policy.
    #[must_use]
    pub fn request(&self) -> Request<'_> {
        let (host, port) = (&self.host, self.port);
        match &self.kind {
            Kind::Dns => Request::DnsResolve { host },
            Kind::Postgres { classes } if classes.is_empty() => Request::PostgresConnect { host, port },
            Kind::Postgres { classes } => Request::PostgresQuery(PostgresQuery { host, port, classes, functions: &[] }),
            Kind::Ssh { operation, repository, push: None } => {
                Request::SshExec(SshExec { host, port, operation: *operation, repository })
            }
            Kind::Ssh { repository, push: Some((change, name)), .. } => {
                Request::SshPush(SshPush { host, port, repository, name, change: *change })
            }
            Kind::Tcp => Request::TcpConnect { host, port },
            Kind::Tls => Request::TlsConnect { host, port },
            Kind::Http { method, https, path } => Request::Http(HttpRequest {
                host,
                port,
                scheme: if *https { Scheme::Https } else { Scheme::Http },
                method,
                path,
                websocket: self.websocket,
                model: self.model.as_deref(),
                llm: self.llm.as_ref(),
            }),
        }
    }
}

/// `host operation repository`, and for a ref that is pushed `change ref`.
fn ssh<'a>(words: &[&'a str]) -> Option<(&'a str, Kind)> {
    let (&[authority, operation, repository], rest) = words.split_first_chunk::<3>()?;
    let operation = GitOperation::ALL.into_iter().find(|one| one.word() == operation)?;
    let push = match rest {
        [] => None,
        [change, name] if operation == GitOperation::Push => {
            let change = RefChange::ALL.into_iter().find(|one| one.word() == *change)?;
            Some((change, (*name).to_owned()))
        }
        _ => return None,
    };
    let repository = bare_name(repository)?.to_owned();
    Some((authority, Kind::Ssh { operation, repository, push }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_is_what_it_says() {
        for (text, shown) in [
            ("POST https://API.example.org/v1?x=1#y", "POST https://api.example.org/v1"),
            ("GET http://a.example:8080", "GET http://a.example:8080/"),
            ("GET https://a.example:443/", "GET https://a.example/"),
            ("GET https://[2001:db8::1]:8443/x", "GET https://[2001:db8::1]:8443/x"),
            ("GET https://[2001:db8::1]/x", "GET https://[2001:db8::1]/x"),
            ("DNS a.example", "DNS a.example"),
            ("TLS a.example:443", "TLS a.example:443"),
            ("TCP A.example:22", "TCP a.example:22"),
            ("POSTGRES a.example", "POSTGRES a.example:5432"),
            ("SSH a.example fetch acme/site.git", "SSH a.example:22 fetch acme/site"),
            ("SSH a.example:2222 push /x update refs/heads/y", "SSH a.example:2222 push /x update refs/heads/y"),
            ("POSTGRES a.example:1  write select", "POSTGRES a.example:1 write select"),
        ] {
            assert_eq!(text.parse::<Call>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "GET",
            "GET a.example",
            "GET ftp://a/x",
            "GET https://:1/",
            "TLS a.example",
            "TCP a.example",
            "POSTGRES",
            "POSTGRES a.example drop",
            "SSH a.example fetch",
            "SSH a.example shell x",
            "SSH a.example fetch x update y",
            "SSH a.example push x break y",
            "GET https://a:x/",
        ] {
            assert!(text.parse::<Call>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_shown_is_read_again(text in "(GET|DNS|TCP|TLS|POSTGRES|SSH a fetch|SSH|[A-Z]{0,3}) ?(https?://)?\\PC{0,30}") {
            if let Ok(call) = text.parse::<Call>() {
                let again: Call = call.to_string().parse().unwrap();
                prop_assert_eq!(again, call);
            }
        }
    }
}
