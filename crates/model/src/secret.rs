//! Secrets that redact themselves.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// A secret value: wiped when dropped, never shown by `Debug`, compared in constant time.
///
/// It serialises to its real value, because it must cross the pipe to the one gate that injects it;
/// a log line or an audit entry must be built from [`fmt::Debug`] or not at all.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(extend("writeOnly" = true)))]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Takes ownership of a secret value.
    #[must_use]
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The real value. Call it only where the value is used.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for SecretText {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(self.0.as_bytes(), other.0.as_bytes()).is_ok()
    }
}

impl Eq for SecretText {}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing() {
        let secret = SecretText::new("sk-live-123".into());
        assert!(!format!("{secret:?}").contains("123"));
        assert_eq!(secret, SecretText::new("sk-live-123".into()));
        assert_ne!(secret, SecretText::new("sk-live-124".into()));
    }
}
