//! What is asked of a policy about git over SSH.

use cedar_policy::RestrictedExpression;
use ringfence_model::HostName;
use ringfence_model::manifest::{GitOperation, Grant, Protocol, RefChange, SshRules, glob_covers};

use crate::compile::{Action, Policy, Stars, glob, quoted, set};
use crate::decide::{Denial, Permit, Rules, pair};
use crate::other::number;

/// A command of git on a host.
#[derive(Clone, Copy, Debug)]
pub struct SshExec<'a> {
    /// Where it goes.
    pub host: &'a HostName,
    /// The port.
    pub port: u16,
    /// What is done.
    pub operation: GitOperation,
    /// With which repository, by its name without `.git` at the end.
    pub repository: &'a str,
}

/// One ref that a push is to change.
#[derive(Clone, Copy, Debug)]
pub struct SshPush<'a> {
    /// Where it goes.
    pub host: &'a HostName,
    /// The port.
    pub port: u16,
    /// The repository, as for [`SshExec`].
    pub repository: &'a str,
    /// The ref.
    pub name: &'a str,
    /// What becomes of it.
    pub change: RefChange,
}

fn any(what: &str, globs: &[String]) -> String {
    let globs: Vec<String> = globs.iter().map(|text| format!("{what} like {}", glob(text, Stars::All))).collect();
    format!("({})", globs.join(" || "))
}

fn words<T: Copy>(all: &[T], word: fn(T) -> &'static str) -> String {
    set(&all.iter().map(|one| word(*one).to_owned()).collect::<Vec<_>>())
}

/// The conditions under which commands are allowed.
pub(crate) fn conditions(number: usize, rules: &SshRules) -> Vec<String> {
    vec![
        format!("context.grant == {number}"),
        format!("context.user == {}", quoted(&rules.user)),
        format!("{}.contains(context.operation)", words(&rules.operations, GitOperation::word)),
        any("context.repository", &rules.repositories),
    ]
}

/// The conditions under which a ref may be pushed.
pub(crate) fn push_conditions(number: usize, rules: &SshRules) -> Vec<String> {
    vec![
        format!("context.grant == {number}"),
        format!("context.user == {}", quoted(&rules.user)),
        format!("{}.contains(context.change)", words(&rules.changes, RefChange::word)),
        any("context.repository", &rules.repositories),
        any("context.ref", &rules.refs),
    ]
}

impl Policy {
    fn git_host(&self, host: &HostName, port: u16) -> Result<(usize, &Grant, &SshRules), Denial> {
        match self.other_than_http(host, port).map(|(at, grant)| (at, grant, &grant.protocol)) {
            Some((at, grant, Protocol::Ssh(rules))) => Ok((at, grant, rules)),
            _ => Err(Denial::new("no_grant", format!("no grant for SSH covers {host}:{port}"))),
        }
    }

    pub(crate) fn ssh(&self, exec: &SshExec<'_>, rules: Rules) -> Result<Permit, Denial> {
        let SshExec { host, port, operation, repository } = *exec;
        let (at, grant, granted) = self.git_host(host, port)?;
        let context = vec![
            ("grant".to_owned(), number(at)),
            pair("user", &granted.user),
            pair("operation", operation.word()),
            pair("repository", repository),
        ];
        let mut deciding = self.ask(Action::SshExec, host, port, context, rules, || {
            let why = misfit(granted, operation, repository);
            Denial::new("repository_not_granted", format!("grant {} covers {host}:{port}, but not {why}", at + 1))
        })?;
        if let Some(credential) = &grant.credential {
            let context = vec![
                pair("method", operation.word()),
                pair("path", &format!("/{}", repository.trim_start_matches('/'))),
                pair("scheme", "ssh"),
                ("websocket".to_owned(), RestrictedExpression::new_bool(false)),
                pair("credential", credential),
            ];
            let secret = self.ask(Action::SecretUse, host, port, context, rules, || {
                Denial::new("secret_denied", format!("no rule lets this command use credential `{credential}`"))
            });
            deciding.extend(secret.map_err(|denial| Denial { code: "secret_denied", ..denial })?);
        }
        let what = format!("covers {} of `{repository}`", operation.word());
        self.of_grant(at, deciding, grant.credential.clone(), what)
    }

    pub(crate) fn ssh_push(&self, push: &SshPush<'_>, rules: Rules) -> Result<Permit, Denial> {
        let SshPush { host, port, repository, name, change } = *push;
        let (at, _, granted) = self.git_host(host, port)?;
        let context = vec![
            ("grant".to_owned(), number(at)),
            pair("user", &granted.user),
            pair("repository", repository),
            pair("ref", name),
            pair("change", change.word()),
        ];
        let deciding = self.ask(Action::SshPush, host, port, context, rules, || {
            let why = if granted.changes.contains(&change) {
                format!("grant {} covers pushes to `{repository}`, but not to `{name}`", at + 1)
            } else {
                format!("grant {} covers pushes to `{repository}`, but none that would {} a ref", at + 1, change.word())
            };
            Denial::new("ref_not_granted", why)
        })?;
        self.of_grant(at, deciding, None, format!("lets a push {} `{name}`", change.word()))
    }
}

/// How a grant for a git host misses a command, in words.
fn misfit(rules: &SshRules, operation: GitOperation, repository: &str) -> String {
    if !rules.repositories.iter().any(|glob| glob_covers(glob, repository)) {
        return format!("repository `{repository}`");
    }
    if !rules.operations.contains(&operation) {
        return format!("`{}`", operation.word());
    }
    "this command".to_owned()
}
