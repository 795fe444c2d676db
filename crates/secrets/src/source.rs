//! Where secrets come from, and what an agent holds in their stead.

use std::path::Path;
use std::process::Command;

use ringfence_model::manifest::SecretSource;
use ringfence_model::{Explain, Fault, SecretText};

/// The largest secret taken, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
#[error("credential `{credential}` has no value: {why}")]
pub struct SourceError {
    /// The credential.
    pub credential: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub remedy: String,
}

impl Explain for SourceError {
    fn code(&self) -> &'static str {
        "credential.absent"
    }

    fn fault(&self) -> Fault {
        Fault::Caller
    }

    fn hint(&self) -> Option<String> {
        Some(self.remedy.clone())
    }
}

/// Fetches the secret of `credential` with the caller's own rights. `Ok(None)` for one that lies in the vault.
///
/// Relative files are taken from `folder`.
///
/// # Errors
/// [`SourceError`].
pub fn fetch(
    credential: &str,
    source: &SecretSource,
    folder: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<SecretText>, SourceError> {
    let absent = |why: String, remedy: String| SourceError { credential: credential.into(), why, remedy };
    let text = match source {
        SecretSource::Vault(_) => return Ok(None),
        SecretSource::Env(name) => env(name).filter(|v| !v.is_empty()).ok_or_else(|| {
            absent(
                format!("the environment has no `{name}`"),
                format!("set it: `export {name}=…`, then run the command again"),
            )
        })?,
        SecretSource::File(path) => std::fs::read_to_string(folder.join(path))
            .map_err(|e| absent(format!("cannot read `{path}`: {e}"), "check the file that `from` names".into()))?,
        SecretSource::Exec(argv) => {
            let program = argv.first().map_or("", String::as_str);
            let output = Command::new(program).args(argv.iter().skip(1)).output().map_err(|e| {
                absent(format!("cannot run `{program}`: {e}"), "check the program that `from` names".into())
            })?;
            if !output.status.success() {
                return Err(absent(
                    format!("`{program}` failed: {}", output.status),
                    "run it by hand to see why".into(),
                ));
            }
            String::from_utf8(output.stdout)
                .map_err(|_| absent(format!("`{program}` printed no text"), "print the secret as UTF-8".into()))?
        }
    };
    let text = text.strip_suffix('\n').unwrap_or(&text).to_owned();
    if text.is_empty() || text.len() > MAX_BYTES || text.chars().any(char::is_control) {
        return Err(absent(
            "its value is empty, too long, or has control characters".into(),
            "give one line of text".into(),
        ));
    }
    Ok(Some(SecretText::new(text)))
}

/// What the agent sees instead of a secret: it says what it is, and is of no use anywhere.
///
/// It keeps the first characters that client libraries check for, such as `sk-`.
#[must_use]
pub fn placeholder(credential: &str, secret: &SecretText, random: [u8; 8]) -> String {
    let prefix = secret
        .reveal()
        .split_once('-')
        .map(|(head, _)| head)
        .filter(|head| (1..=4).contains(&head.len()) && head.bytes().all(|b| b.is_ascii_lowercase()))
        .map_or(String::new(), |head| format!("{head}-"));
    let tail: String = random.iter().map(|b| format!("{b:02x}")).collect();
    let name: String = credential.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    format!("{prefix}ringfence-placeholder-{name}-{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        (name == "KEY").then(|| "sk-abc".to_owned())
    }

    #[test]
    fn fetches_from_each_source_and_explains_absence() {
        let here = Path::new("/");
        let get = |source| fetch("c", &source, here, &env);
        assert_eq!(get(SecretSource::Env("KEY".into())).unwrap().unwrap().reveal(), "sk-abc");
        assert_eq!(get(SecretSource::Exec(vec!["echo".into(), "x".into()])).unwrap().unwrap().reveal(), "x");
        assert!(get(SecretSource::Vault("v".into())).unwrap().is_none());
        for source in [
            SecretSource::Env("NONE".into()),
            SecretSource::File("/nonexistent".into()),
            SecretSource::Exec(vec!["false".into()]),
            SecretSource::Exec(vec!["/nonexistent".into()]),
        ] {
            let error = get(source).unwrap_err();
            assert_eq!(error.code(), "credential.absent");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn placeholders_look_right_to_clients_and_hold_nothing() {
        let made = placeholder("openai", &SecretText::new("sk-live-1234567890".into()), [1; 8]);
        assert_eq!(made, "sk-ringfence-placeholder-openai-0101010101010101");
        assert!(!placeholder("x", &SecretText::new("supersecret".into()), [1; 8]).contains("supersecret"));
    }
}
