//! Settings of a session: which may be changed by whoever speaks in it.

use super::lex::Kind;

/// Settings that change how things are shown, or how long is waited, and nothing else.
const HARMLESS: [&str; 27] = [
    "application_name",
    "bytea_output",
    "client_min_messages",
    "cursor_tuple_fraction",
    "datestyle",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "enable_hashjoin",
    "enable_indexscan",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_seqscan",
    "extra_float_digits",
    "geqo",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "statement_timeout",
    "timezone",
    "transaction_isolation",
    "xmlbinary",
    "xmloption",
];

/// Settings that decide whether a session may write.
const READ_ONLY: [&str; 2] = ["default_transaction_read_only", "transaction_read_only"];

/// What changing a setting amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nobody may.
    Refused(String),
    /// It steers the session.
    Session,
    /// It steers a transaction.
    Transaction,
    /// It lets the session write.
    Write,
}

/// Whether a setting may have any value. `name` is in lower case.
#[must_use]
pub fn is_harmless(name: &str) -> bool {
    HARMLESS.contains(&name)
}

/// Whether a setting may have this value when a session begins. `name` is in lower case.
#[must_use]
pub fn may_begin_with(name: &str, value: &str) -> bool {
    is_harmless(name) || (name == "search_path" && !value.to_ascii_lowercase().contains("pg_catalog"))
}

/// What `SET …` amounts to. Words are in lower case.
pub fn set(tokens: &[(Kind, String)], mut note: impl FnMut(Effect)) {
    let mut rest = tokens.get(1..).unwrap_or_default();
    let word = |rest: &[(Kind, String)], at: usize| {
        rest.get(at).filter(|(kind, _)| *kind == Kind::Word).map(|(_, text)| text.clone()).unwrap_or_default()
    };
    if word(rest, 0) == "session" && word(rest, 1) == "characteristics" {
        return transaction(rest, note);
    }
    if word(rest, 0) == "session" && word(rest, 1) == "authorization" {
        return match word(rest, 2).as_str() {
            "default" if rest.len() == 3 => note(Effect::Session),
            _ => note(Effect::Refused("no grant allows another role".into())),
        };
    }
    if matches!(word(rest, 0).as_str(), "local" | "session") {
        rest = rest.get(1..).unwrap_or_default();
    }
    match word(rest, 0).as_str() {
        "transaction" => transaction(rest, note),
        "constraints" => note(Effect::Transaction),
        "role" if word(rest, 1) == "none" && rest.len() == 2 => note(Effect::Session),
        "time" if word(rest, 1) == "zone" => note(Effect::Session),
        "names" => note(encoding(rest.get(1..).unwrap_or_default())),
        name => {
            let is_set = rest.get(1).is_some_and(|(kind, text)| *kind == Kind::Symbol(b'=') || text == "to");
            let value = rest.get(2..).unwrap_or_default();
            note(match name {
                _ if !is_set => refused(name),
                "client_encoding" => encoding(value),
                "search_path" => search_path(value),
                _ if READ_ONLY.contains(&name) => Effect::Write,
                _ if is_harmless(name) => Effect::Session,
                _ => refused(name),
            });
        }
    }
}

/// What `RESET …` amounts to: what a session began with is what the gate settled.
pub fn reset(tokens: &[(Kind, String)], mut note: impl FnMut(Effect)) {
    let words: Vec<&str> = tokens.iter().skip(1).map(|(_, text)| text.as_str()).collect();
    note(match words.as_slice() {
        ["all" | "role" | "search_path" | "client_encoding"] | ["session", "authorization"] | ["time", "zone"] => {
            Effect::Session
        }
        ["default_transaction_read_only"] => Effect::Session,
        // Versions before 16 take a transaction back to what the server was compiled with.
        ["transaction_read_only"] => Effect::Write,
        [name] if is_harmless(name) => Effect::Session,
        _ => refused(words.first().copied().unwrap_or_default()),
    });
}

fn refused(name: &str) -> Effect {
    Effect::Refused(format!("no grant allows changing `{}`", name.chars().take(63).collect::<String>()))
}

fn transaction(rest: &[(Kind, String)], mut note: impl FnMut(Effect)) {
    // A snapshot is another session's view, and changes nothing.
    note(Effect::Transaction);
    if rest.windows(2).any(|pair| matches!(pair, [(_, read), (_, write)] if read == "read" && write == "write")) {
        note(Effect::Write);
    }
}

fn encoding(value: &[(Kind, String)]) -> Effect {
    match value {
        [(Kind::Text | Kind::Word, text)]
            if matches!(
                text.trim_matches('\'').to_ascii_lowercase().as_str(),
                "utf8" | "utf-8" | "unicode" | "default"
            ) =>
        {
            Effect::Session
        }
        _ => Effect::Refused("no grant allows another encoding than UTF8".into()),
    }
}

/// Where names without a schema are looked for. Were PostgreSQL's own schema not the first, a name of its own would no
/// longer stand for its own function.
fn search_path(value: &[(Kind, String)]) -> Effect {
    let plain = |part: &[(Kind, String)]| match part {
        [(Kind::Word, text)] => text != "pg_catalog",
        // Strings of other forms, or in several parts, can say it without showing it.
        [(Kind::Quoted, text)] => !text.contains("pg_catalog"),
        [(Kind::Text, text)] => text.starts_with('\'') && !text.to_ascii_lowercase().contains("pg_catalog"),
        _ => false,
    };
    if !value.split(|(kind, _)| *kind == Kind::Symbol(b',')).all(plain) {
        return Effect::Refused("no grant allows another place for `pg_catalog`".into());
    }
    Effect::Session
}
