//! Where secrets come from.

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
    let text = one_line(text.strip_suffix('\n').unwrap_or(&text));
    if !is_usable(&text) {
        return Err(absent(
            "its value is empty, too long, or has control characters".into(),
            "give one line of text, a JSON object or a PEM".into(),
        ));
    }
    Ok(Some(SecretText::new(text)))
}

/// Whether a text may be a secret: not empty, not too long, and without control characters but the line breaks of a PEM.
#[must_use]
pub fn is_usable(text: &str) -> bool {
    let breaks = text.starts_with("-----BEGIN ");
    let control = |c: char| c.is_control() && !(breaks && matches!(c, '\n' | '\r'));
    !text.is_empty() && text.len() <= MAX_BYTES && !text.chars().any(control)
}

/// A JSON object, such as a service account's key, without its line breaks; any other text as it is.
#[must_use]
pub fn one_line(text: &str) -> String {
    if text.starts_with('{')
        && let Ok(object) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
        && let Ok(line) = serde_json::to_string(&object)
    {
        return line;
    }
    text.to_owned()
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
    fn keys_of_many_lines_become_one_and_other_texts_must_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let get = |text: &str| {
            std::fs::write(dir.path().join("s"), text).unwrap();
            let got = fetch("c", &SecretSource::File("s".into()), dir.path(), &env);
            got.map(|secret| secret.unwrap().reveal().to_owned()).map_err(|e| e.why)
        };
        assert_eq!(get("{\n  \"a\": \"b\"\n}\n"), Ok("{\"a\":\"b\"}".into()));
        let pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----";
        assert_eq!(get(&format!("{pem}\n")), Ok(pem.into()));
        assert!(get("a\nb").is_err());
        assert!(get("{\n a").is_err());
        assert!(get("-----BEGIN\u{0}").is_err());
    }
}
