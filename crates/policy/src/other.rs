//! What is asked of a policy about protocols other than HTTP: TCP that nobody looks into, and PostgreSQL.

use cedar_policy::RestrictedExpression;
use ringfence_model::HostName;
use ringfence_model::manifest::{Grant, PostgresRules, Protocol};

use crate::compile::{Action, Policy, quoted, set};
use crate::decide::{Denial, Permit, Rules, first_grant, pair};

/// Kinds of statements that only steer the session; every grant for a database has them.
const ALWAYS: [&str; 2] = ["session", "transaction"];

/// A statement, or several that are sent as one, to a database.
#[derive(Clone, Debug)]
pub struct PostgresQuery<'a> {
    /// Where it goes.
    pub host: &'a HostName,
    /// The port.
    pub port: u16,
    /// What it does: `select`, `write`, `ddl`, `session`, `transaction`, or `other` for what no grant allows.
    pub classes: &'a [&'static str],
    /// Functions that it calls, but for those of PostgreSQL that have no effect.
    pub functions: &'a [String],
}

/// The conditions under which statements are allowed.
pub(crate) fn conditions(number: usize, rules: &PostgresRules) -> Vec<String> {
    let classes: Vec<String> =
        ALWAYS.into_iter().chain(rules.statements.iter().map(|class| class.word())).map(str::to_owned).collect();
    let functions = match rules.functions.as_slice() {
        // An empty literal has no type of its own to be checked against.
        [] => "context.functions.isEmpty()".to_owned(),
        functions => format!("{}.containsAll(context.functions)", set(functions)),
    };
    vec![format!("context.grant == {number}"), format!("{}.containsAll(context.classes)", set(&classes)), functions]
}

/// The conditions under which a session is opened.
pub(crate) fn session_conditions(number: usize, rules: &PostgresRules) -> Vec<String> {
    vec![
        format!("context.grant == {number}"),
        format!("context.user == {}", quoted(&rules.user)),
        format!("context.database == {}", quoted(&rules.database)),
    ]
}

impl Policy {
    /// The first grant for this host and port, if it is for something other than HTTP, and its place.
    ///
    /// It is a question of routing: what then goes through is decided anew.
    #[must_use]
    pub fn other_than_http(&self, host: &HostName, port: u16) -> Option<(usize, &Grant)> {
        let (at, grant) = self.grants().iter().enumerate().find(|(_, g)| g.port == port && g.host.covers(host))?;
        (!grant.protocol.is_http()).then_some((at, grant))
    }

    pub(crate) fn tcp(&self, host: &HostName, port: u16, rules: Rules) -> Result<Permit, Denial> {
        let rules = self.ask(Action::TcpConnect, host, port, Vec::new(), rules, || {
            Denial::new("no_grant", format!("no grant for TCP covers {host}:{port}"))
        })?;
        Ok(self.permit(rules, None, |number| format!("grant {number} lets TCP to {host}:{port} through unseen")))
    }

    fn database(&self, host: &HostName, port: u16) -> Result<(usize, &Grant, &PostgresRules), Denial> {
        match self.other_than_http(host, port).map(|(at, grant)| (at, grant, &grant.protocol)) {
            Some((at, grant, Protocol::Postgres(rules))) => Ok((at, grant, rules)),
            _ => Err(Denial::new("no_grant", format!("no grant for a database covers {host}:{port}"))),
        }
    }

    pub(crate) fn session(&self, host: &HostName, port: u16, rules: Rules) -> Result<Permit, Denial> {
        let (at, grant, granted) = self.database(host, port)?;
        let context =
            vec![("grant".to_owned(), number(at)), pair("user", &granted.user), pair("database", &granted.database)];
        let mut deciding = self.ask(Action::PostgresConnect, host, port, context, rules, || {
            Denial::new("no_grant", format!("no rule lets a session with {host}:{port} be opened"))
        })?;
        if let Some(credential) = &grant.credential {
            let context = vec![
                pair("method", "CONNECT"),
                pair("path", &format!("/{}", granted.database)),
                pair("scheme", "postgres"),
                ("websocket".to_owned(), RestrictedExpression::new_bool(false)),
                pair("credential", credential),
            ];
            let secret = self.ask(Action::SecretUse, host, port, context, rules, || {
                Denial::new("secret_denied", format!("no rule lets this session use credential `{credential}`"))
            });
            deciding.extend(secret.map_err(|denial| Denial { code: "secret_denied", ..denial })?);
        }
        let (user, database) = (&granted.user, &granted.database);
        self.of_grant(at, deciding, grant.credential.clone(), format!("covers database `{database}` as `{user}`"))
    }

    pub(crate) fn query(&self, query: &PostgresQuery<'_>, rules: Rules) -> Result<Permit, Denial> {
        let PostgresQuery { host, port, classes, functions } = *query;
        let (at, _, granted) = self.database(host, port)?;
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let context = vec![
            ("grant".to_owned(), number(at)),
            pair("user", &granted.user),
            pair("database", &granted.database),
            ("classes".to_owned(), RestrictedExpression::new_set(classes.iter().map(|class| text(class)))),
            ("functions".to_owned(), RestrictedExpression::new_set(functions.iter().map(|name| text(name)))),
        ];
        let deciding = self.ask(Action::PostgresQuery, host, port, context, rules, || {
            let why = misfit(granted, classes, functions);
            Denial::new("statement_not_granted", format!("grant {} covers {host}:{port}, but not {why}", at + 1))
        })?;
        self.of_grant(at, deciding, None, format!("covers statements of kind {}", classes.join(", ")))
    }

    /// A permit by the grant whose rules speak for the session.
    pub(crate) fn of_grant(
        &self,
        at: usize,
        rules: Vec<String>,
        credential: Option<String>,
        what: String,
    ) -> Result<Permit, Denial> {
        if first_grant(&rules) != Some(at) {
            return Err(Denial::new("no_grant", format!("grant {} is not the one that allows it", at + 1)));
        }
        Ok(self.permit(rules, credential, |number| format!("grant {number} {what}")))
    }
}

pub(crate) fn number(at: usize) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(at + 1).unwrap_or(i64::MAX))
}

/// How a grant for a database misses a statement, in words.
fn misfit(rules: &PostgresRules, classes: &[&'static str], functions: &[String]) -> String {
    let granted = |class: &str| ALWAYS.contains(&class) || rules.statements.iter().any(|c| c.word() == class);
    match classes.iter().find(|class| !granted(class)) {
        Some(&"other") => "this statement, which no grant allows".to_owned(),
        Some(class) => format!("statements of kind `{class}`"),
        None => match functions.iter().find(|name| !rules.functions.contains(name)) {
            Some(name) => format!("a call of `{name}`, which may have effects"),
            None => "this statement".to_owned(),
        },
    }
}
