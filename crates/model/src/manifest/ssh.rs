//! Git over SSH: which repositories of a host, what may be done there, and how the host is known.

use serde::{Deserialize, Serialize};

use super::check::ManifestError;
use super::protocol::Written;

/// The longest name of a repository, and the longest of a ref.
pub const MAX_GIT_NAME: usize = 512;

/// The longest name of a user.
const MAX_USER: usize = 64;

/// Kinds of keys that a host may be known by. RSA is left out: see docs/decisions.
const KEY_KINDS: [&str; 4] = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"];

/// What an agent may do at a git host over SSH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshRules {
    /// The user that the gate is there, whatever the agent asks for.
    pub user: String,
    /// Keys that the host may show: `KIND BASE64`, or `SHA256:` and a fingerprint.
    pub host_keys: Vec<String>,
    /// Authorities that may have signed the host's key, in the same forms.
    pub host_authorities: Vec<String>,
    /// Globs of repositories, without `.git` at their end. All are absolute paths, or none is.
    pub repositories: Vec<String>,
    /// What may be done with them.
    pub operations: Vec<GitOperation>,
    /// Globs of refs that may be pushed.
    pub refs: Vec<String>,
    /// What a push may do to a ref.
    pub changes: Vec<RefChange>,
}

impl SshRules {
    /// Whether repositories are named by absolute paths.
    #[must_use]
    pub fn absolute(&self) -> bool {
        self.repositories.iter().any(|glob| glob.starts_with('/'))
    }
}

/// What is done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GitOperation {
    /// `git archive --remote`.
    Archive,
    /// `git fetch`, `git clone`, `git ls-remote`.
    Fetch,
    /// `git push`.
    Push,
}

impl GitOperation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Archive, Self::Fetch, Self::Push];

    /// The word for it in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Fetch => "fetch",
            Self::Push => "push",
        }
    }
}

/// What a push does to a ref.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefChange {
    /// Makes it.
    Create,
    /// Takes it away.
    Delete,
    /// Has it mean another commit, whether that follows from the one before or not.
    Update,
}

impl RefChange {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Create, Self::Delete, Self::Update];

    /// The word for it in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Update => "update",
        }
    }
}

/// `[grant.ssh]`
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshFile {
    /// User; `git`.
    pub user: Option<String>,
    /// Keys of the host.
    #[serde(default)]
    pub host_keys: Vec<String>,
    /// Keys of those who sign the host's.
    #[serde(default)]
    pub host_authorities: Vec<String>,
    /// Globs of repositories.
    #[serde(default)]
    pub repositories: Vec<String>,
    /// `fetch`, `push`, `archive`.
    pub operations: Option<Vec<GitOperation>>,
    /// Globs of refs.
    #[serde(default)]
    pub refs: Vec<String>,
    /// `create`, `update`, `delete`.
    pub changes: Option<Vec<RefChange>>,
}

/// Whether a byte may stand in the name of a repository: none that a shell, a URL or git reads in a way of its own.
#[must_use]
pub const fn is_of_repository(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'.' | b'_' | b'-' | b'+' | b'@' | b'=' | b',' | b':')
}

/// The name of a repository less what git reads it without: a `/` or `.git` at its end. `None` where something is left of
/// either, or nothing is left.
#[must_use]
pub fn bare_name(name: &str) -> Option<&str> {
    let name = name.strip_suffix('/').unwrap_or(name);
    let name = name.strip_suffix(".git").unwrap_or(name);
    (!name.is_empty() && !name.ends_with('/') && !name.ends_with(".git")).then_some(name)
}

impl Written<'_> {
    /// Reads `[grant.ssh]`.
    pub(super) fn ssh(&self) -> Result<SshRules, ManifestError> {
        let Some(file) = &self.file.ssh else {
            return Err(self.wrong(
                "ssh",
                "the table is missing",
                "write `[grant.ssh]` with `host_keys` and `repositories`",
            ));
        };
        if self.file.credential.is_none() {
            return Err(self.wrong(
                "credential",
                "it is missing, and no git host lets in who shows no key",
                "name a `[credential.NAME]` with `ssh_key = true`",
            ));
        }
        let user = file.user.clone().unwrap_or_else(|| "git".into());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-@+".contains(&b);
        if user.is_empty() || user.len() > MAX_USER || user.starts_with('-') || !user.bytes().all(plain) {
            let hint = "use up to 64 of A-Z, a-z, 0-9, `.`, `_`, `-`, `@` and `+`";
            return Err(self.wrong(&format!("ssh user `{user}`"), "not a user", hint));
        }
        if file.host_keys.is_empty() && file.host_authorities.is_empty() {
            return Err(self.cannot(
                "nothing says which key the host has, and no key is trusted because it was seen first",
                "write `host_keys = [\"ssh-ed25519 AAAA…\"]` as the host's operator publishes it, or `SHA256:…`",
            ));
        }
        let keys = |key: &str, written: &[String]| {
            written.iter().map(|text| self.host_key(key, text)).collect::<Result<Vec<_>, _>>()
        };
        let host_keys = keys("host_keys", &file.host_keys)?;
        let host_authorities = keys("host_authorities", &file.host_authorities)?;
        let repositories = self.repositories(&file.repositories)?;
        let mut operations = file.operations.clone().unwrap_or_else(|| vec![GitOperation::Fetch]);
        operations.sort_unstable();
        operations.dedup();
        let pushes = operations.contains(&GitOperation::Push);
        if pushes && file.refs.is_empty() {
            return Err(self.wrong(
                "ssh refs",
                "it is missing, and `push` is granted",
                "say which refs may be pushed, such as `refs = [\"refs/heads/agent/*\"]`",
            ));
        }
        if !pushes && (!file.refs.is_empty() || file.changes.is_some()) {
            return Err(
                self.cannot("`refs` and `changes` are about pushes, and none is granted", "add `push` to `operations`")
            );
        }
        for glob in &file.refs {
            let plain = |b: u8| b.is_ascii_graphic() && !b"~^:?[\\".contains(&b);
            if !glob.starts_with("refs/")
                || glob.len() > MAX_GIT_NAME
                || !glob.bytes().all(plain)
                || glob.contains("..")
            {
                let hint = "write it whole, such as `refs/heads/agent/*`; `*` stands for any text";
                return Err(self.wrong(&format!("ssh refs `{glob}`"), "not a glob of refs", hint));
            }
        }
        let mut changes = file.changes.clone().unwrap_or_else(|| vec![RefChange::Create, RefChange::Update]);
        changes.sort_unstable();
        changes.dedup();
        if changes.is_empty() || operations.is_empty() {
            return Err(self.cannot("an empty list grants nothing", "drop it, or the grant"));
        }
        let refs = file.refs.clone();
        Ok(SshRules { user, host_keys, host_authorities, repositories, operations, refs, changes })
    }

    /// A key or a fingerprint, without comment.
    fn host_key(&self, key: &str, text: &str) -> Result<String, ManifestError> {
        let shown: String = text.chars().take(40).collect();
        let wrong = |why: &str| {
            let hint = "write `ssh-ed25519 AAAA…` as in known_hosts, or `SHA256:` and its 43 characters";
            Err(self.wrong(&format!("ssh {key} `{shown}`"), why, hint))
        };
        let base64 = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
        if let Some(digest) = text.strip_prefix("SHA256:") {
            let digest = digest.trim_end_matches('=');
            if digest.len() != 43 || !base64(digest) {
                return wrong("not a fingerprint by SHA-256");
            }
            return Ok(format!("SHA256:{digest}"));
        }
        let mut words = text.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("ssh-rsa"), _) => wrong("RSA keys are not supported"),
            (Some(kind), Some(blob)) if KEY_KINDS.contains(&kind) && blob.len() > 40 && base64(blob) => {
                Ok(format!("{kind} {blob}"))
            }
            _ => wrong("not a key that a host could have"),
        }
    }

    fn repositories(&self, written: &[String]) -> Result<Vec<String>, ManifestError> {
        if written.is_empty() {
            return Err(self.wrong(
                "ssh repositories",
                "it is missing",
                "name them, such as `repositories = [\"acme/site\"]`; `*` stands for any text",
            ));
        }
        let mut names = Vec::with_capacity(written.len());
        for glob in written {
            let plain = |b: u8| is_of_repository(b) || b == b'*';
            let dots = |part: &str| part.is_empty() || part == "." || part == "..";
            let relative = |name: &str| name.strip_prefix('/').unwrap_or(name).to_owned();
            let good = |name: &&str| {
                name.len() <= MAX_GIT_NAME
                    && name.bytes().all(plain)
                    && !name.starts_with('-')
                    && !relative(name).split('/').any(dots)
            };
            let name = bare_name(glob).filter(good).ok_or_else(|| {
                self.wrong(
                    &format!("ssh repositories `{glob}`"),
                    "no repository has such a name here",
                    "write it as behind the colon of `git@host:acme/site.git`; `*` stands for any text",
                )
            })?;
            names.push(name.to_owned());
        }
        let absolute = written.iter().filter(|glob| glob.starts_with('/')).count();
        if absolute != 0 && absolute != written.len() {
            return Err(self.cannot(
                "some repositories are absolute paths and others are not, so `/x` could be read in two ways",
                "begin all of them with `/`, or none",
            ));
        }
        Ok(names)
    }
}
