//! What is spoken with a host other than HTTP: TCP that nobody looks into, PostgreSQL, and git over SSH.

use serde::{Deserialize, Serialize};

use super::check::ManifestError;
use super::{Credential, Grant, GrantFile, Place, SshRules, Trust};
use crate::Bytes;

/// The port of PostgreSQL.
const POSTGRES_PORT: u16 = 5432;

/// The port of SSH.
const SSH_PORT: u16 = 22;

/// The port that the gate's own resolver answers, whatever the address.
const DNS_PORT: u16 = 53;

/// The longest name that PostgreSQL keeps whole.
const MAX_NAME: usize = 63;

/// Functions by which a session could undo what the gate settled for it.
const NEVER: [&str; 2] = ["pg_catalog.set_config", "set_config"];

/// What is spoken with the hosts of a grant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP, inside TLS or not.
    #[default]
    Http,
    /// PostgreSQL, statement by statement.
    Postgres(Box<PostgresRules>),
    /// Git over SSH, command by command.
    Ssh(Box<SshRules>),
    /// Bytes that nobody looks into.
    Tcp(TcpRules),
}

impl Protocol {
    /// The word for it in the manifest.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Postgres(_) => "postgres",
            Self::Ssh(_) => "ssh",
            Self::Tcp(_) => "tcp",
        }
    }

    /// Whether it is HTTP.
    #[must_use]
    pub const fn is_http(&self) -> bool {
        matches!(self, Self::Http)
    }
}

/// How much may go through connections that nobody looks into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRules {
    /// Bytes per second each way, all connections of the grant together.
    pub bytes_per_second: Option<Bytes>,
    /// Bytes of one connection, both ways together.
    pub max_bytes: Option<Bytes>,
}

/// What an agent may do in a database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresRules {
    /// The role that sessions have, whatever the agent asks for.
    pub user: String,
    /// The database, likewise.
    pub database: String,
    /// Kinds of statements beside those that only steer the session.
    pub statements: Vec<StatementClass>,
    /// Functions that may be called beside those of PostgreSQL that have no effect.
    pub functions: Vec<String>,
    /// Whether the way to the server is TLS.
    pub tls: PostgresTls,
}

impl PostgresRules {
    /// Whether sessions may change nothing.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.statements.iter().all(|class| *class == StatementClass::Select)
    }
}

/// A kind of statement that a grant may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatementClass {
    /// Changes what tables and the like there are.
    Ddl,
    /// Reads.
    Select,
    /// Changes or locks rows.
    Write,
}

impl StatementClass {
    /// The word for it in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ddl => "ddl",
            Self::Select => "select",
            Self::Write => "write",
        }
    }
}

/// Whether the way to a database is TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PostgresTls {
    /// Cleartext.
    Off,
    /// TLS, with a certificate for the granted host.
    #[default]
    Require,
}

/// `protocol` as it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProtocolFile {
    /// `http`
    #[default]
    Http,
    /// `postgres`
    Postgres,
    /// `ssh`
    Ssh,
    /// `tcp`
    Tcp,
}

/// `[grant.postgres]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresFile {
    /// Role.
    pub user: Option<String>,
    /// Database.
    pub database: Option<String>,
    /// `select`, `write`, `ddl`.
    pub statements: Option<Vec<StatementClass>>,
    /// Functions.
    #[serde(default)]
    pub functions: Vec<String>,
    /// `require` or `off`.
    #[serde(default)]
    pub tls: PostgresTls,
}

/// Reads what a grant says of its protocol, and the port that goes with it; `None` for HTTP, whose scheme says.
pub(super) fn understand(number: usize, file: &GrantFile) -> Result<(Protocol, Option<u16>), ManifestError> {
    let grant = Written { number, file };
    let protocol = file.protocol.unwrap_or_default();
    let limited = [(file.bytes_per_second.is_some(), "bytes_per_second"), (file.max_bytes.is_some(), "max_bytes")];
    let (of_postgres, of_ssh) = ((file.postgres.is_some(), "postgres"), (file.ssh.is_some(), "ssh"));
    match protocol {
        ProtocolFile::Http => {
            grant.lacks(&limited, "is for `protocol = \"tcp\"`")?;
            grant.lacks(&[of_postgres], "is for `protocol = \"postgres\"`")?;
            grant.lacks(&[of_ssh], "is for `protocol = \"ssh\"`")?;
            Ok((Protocol::Http, None))
        }
        ProtocolFile::Postgres => {
            grant.lacks(&grant.of_http(), "is about HTTP, and `protocol = \"postgres\"` is not")?;
            grant.lacks(&limited, "is for `protocol = \"tcp\"`")?;
            grant.lacks(&[of_ssh], "is for `protocol = \"ssh\"`")?;
            let port = grant.port(POSTGRES_PORT)?;
            Ok((Protocol::Postgres(Box::new(grant.postgres()?)), Some(port)))
        }
        ProtocolFile::Ssh => {
            grant.lacks(&grant.of_http(), "is about HTTP, and `protocol = \"ssh\"` is not")?;
            grant.lacks(&limited, "is for `protocol = \"tcp\"`")?;
            grant.lacks(&[of_postgres], "is for `protocol = \"postgres\"`")?;
            let of_tls = [(file.ca.is_some(), "ca"), (file.client_certificate.is_some(), "client_certificate")];
            grant.lacks(&of_tls, "is about TLS, and SSH has none")?;
            let port = grant.port(SSH_PORT)?;
            Ok((Protocol::Ssh(Box::new(grant.ssh()?)), Some(port)))
        }
        ProtocolFile::Tcp => {
            let mut content = grant.of_http().to_vec();
            content.extend([
                (file.client_certificate.is_some(), "client_certificate"),
                (file.credential.is_some(), "credential"),
                (file.trust == Some(Trust::Untrusted), "trust"),
                (file.ca.is_some(), "ca"),
                of_postgres,
                of_ssh,
            ]);
            grant.lacks(&content, "needs the content of the call, and nobody looks into `protocol = \"tcp\"`")?;
            if file.port.is_none() {
                return Err(
                    grant.cannot("`protocol = \"tcp\"` has no usual port", "name the port, such as `port = 22`")
                );
            }
            let port = grant.port(0)?;
            for (size, key) in [(file.bytes_per_second, "bytes_per_second"), (file.max_bytes, "max_bytes")] {
                if size.is_some_and(|size| size < Bytes(1024)) {
                    return Err(grant.wrong(key, "too small", "use 1KiB or more"));
                }
            }
            let rules = TcpRules { bytes_per_second: file.bytes_per_second, max_bytes: file.max_bytes };
            Ok((Protocol::Tcp(rules), Some(port)))
        }
    }
}

/// Refuses a credential that cannot be put where the grant's protocol has one.
pub(super) fn check_place(number: usize, grant: &Grant, credential: &Credential) -> Result<(), ManifestError> {
    let (why, hint) = match (&grant.protocol, &credential.place) {
        (Protocol::Postgres(_), Place::Password) | (Protocol::Ssh(_), Place::SshKey) => return Ok(()),
        (Protocol::Postgres(_), _) => {
            ("a session of PostgreSQL has no place for it but the password", "write `password = true` in its table")
        }
        (Protocol::Ssh(_), _) => ("SSH has no place for it but a private key", "write `ssh_key = true` in its table"),
        (_, Place::Password) => {
            ("HTTP has no place for a password by itself", "say where it goes, by `header` or `query`")
        }
        (_, Place::SshKey) => ("only SSH has a place for it", "write `protocol = \"ssh\"`, or say where it goes"),
        _ => return Ok(()),
    };
    let name = grant.credential.clone().unwrap_or_default();
    Err(ManifestError::Value {
        place: format!("grant {number} credential `{name}`"),
        why: why.into(),
        hint: hint.into(),
    })
}

/// Refuses grants of which one would have to guess what is spoken, since a server may speak first.
pub(super) fn check_overlaps(grants: &[Grant]) -> Result<(), ManifestError> {
    for (at, later) in grants.iter().enumerate() {
        let same_place = |earlier: &Grant| earlier.port == later.port && earlier.host.overlaps(&later.host);
        let Some((first, earlier)) = grants.iter().take(at).enumerate().find(|(_, earlier)| {
            same_place(earlier)
                && (earlier.protocol.word() != later.protocol.word()
                    || matches!(later.protocol, Protocol::Postgres(_) | Protocol::Ssh(_)))
        }) else {
            continue;
        };
        let (one, other) = (earlier.protocol.word(), later.protocol.word());
        let why = if one == other {
            format!("grant {} is for the same host and port, and would always be used", first + 1)
        } else {
            format!("grant {} says that `{one}` is spoken on port {}, and this one `{other}`", first + 1, later.port)
        };
        return Err(ManifestError::Unenforceable {
            number: at + 1,
            host: later.host.to_string(),
            why,
            hint: "keep one grant for each host and port that speaks something other than HTTP".into(),
        });
    }
    Ok(())
}

/// One `[[grant]]` as it is written.
pub(super) struct Written<'a> {
    number: usize,
    pub(super) file: &'a GrantFile,
}

impl Written<'_> {
    pub(super) fn cannot(&self, why: &str, hint: &str) -> ManifestError {
        let (number, host) = (self.number, self.file.host.clone());
        ManifestError::Unenforceable { number, host, why: why.into(), hint: hint.into() }
    }

    pub(super) fn wrong(&self, key: &str, why: &str, hint: &str) -> ManifestError {
        let place = format!("grant {} {key}", self.number);
        ManifestError::Value { place, why: why.into(), hint: hint.into() }
    }

    fn lacks(&self, keys: &[(bool, &str)], why: &str) -> Result<(), ManifestError> {
        match keys.iter().find(|(set, _)| *set) {
            None => Ok(()),
            Some((_, key)) => Err(self.cannot(&format!("`{key}` {why}"), &format!("drop `{key}`, or the protocol"))),
        }
    }

    fn of_http(&self) -> [(bool, &'static str); 9] {
        let file = self.file;
        [
            (!file.methods.is_empty(), "methods"),
            (!file.paths.is_empty(), "paths"),
            (!file.models.is_empty(), "models"),
            (file.scheme.is_some(), "scheme"),
            (file.tls.is_some(), "tls"),
            (file.llm.is_some(), "llm"),
            (file.mcp.is_some(), "mcp"),
            (file.a2a.is_some(), "a2a"),
            (file.capture.is_some(), "capture"),
        ]
    }

    fn port(&self, usual: u16) -> Result<u16, ManifestError> {
        match self.file.port.unwrap_or(usual) {
            0 => Err(self.wrong("port `0`", "not a port", "use 1 to 65535")),
            DNS_PORT => Err(self.cannot("the gate's own resolver answers port 53 of every address", "drop the grant")),
            port => Ok(port),
        }
    }

    fn postgres(&self) -> Result<PostgresRules, ManifestError> {
        let hint = "write `[grant.postgres]` with `user` and `database`";
        let Some(file) = &self.file.postgres else {
            return Err(self.wrong("postgres", "the table is missing", hint));
        };
        let name = |key: &str, text: &Option<String>| match text {
            None => Err(self.wrong(&format!("postgres {key}"), "it is missing", hint)),
            Some(text) if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) => Err(
                self.wrong(&format!("postgres {key}"), "not a name", "use 1 to 63 bytes without control characters")
            ),
            Some(text) => Ok(text.clone()),
        };
        let (user, database) = (name("user", &file.user)?, name("database", &file.database)?);
        let mut statements = file.statements.clone().unwrap_or_else(|| vec![StatementClass::Select]);
        statements.sort_unstable();
        statements.dedup();
        for function in &file.functions {
            let plain = |part: &str| {
                !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            };
            let place = format!("postgres functions `{function}`");
            if function.matches('.').count() > 1 || !function.split('.').all(plain) {
                return Err(self.wrong(&place, "not a function", "write `name` or `schema.name` in lower case"));
            }
            if NEVER.contains(&function.as_str()) {
                return Err(self.cannot(
                    &format!("`{function}` undoes what the gate settles for a session"),
                    "drop it: harmless settings may be set without it",
                ));
            }
        }
        if file.tls == PostgresTls::Off && self.file.connect_to.is_none() && !self.file.allow_private {
            return Err(self.cannot(
                "`tls = \"off\"` would send what is asked and answered over the network in cleartext",
                "drop it, or name a private server with `connect_to` or `allow_private`",
            ));
        }
        let of_tls = [(self.file.ca.is_some(), "ca"), (self.file.client_certificate.is_some(), "client_certificate")];
        if let Some((_, key)) = of_tls.iter().find(|(set, _)| *set && file.tls == PostgresTls::Off) {
            return Err(self.cannot(&format!("`{key}` is for TLS, and `tls` is `off`"), "drop one of them"));
        }
        let functions = file.functions.clone();
        Ok(PostgresRules { user, database, statements, functions, tls: file.tls })
    }
}
