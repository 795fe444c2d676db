//! How an error reaches a person: what failed, on what, why, what to do next.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose doing a failure is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// What was asked for cannot be: bad manifest, unknown agent, bad option.
    Caller,
    /// The host lacks something that the fence needs.
    Host,
    /// Somebody else failed: a package index, a mirror, an upstream.
    Peer,
    /// Ringfence itself failed.
    Us,
}

/// An error that can say its stable code and what to do next.
///
/// A message says only its own part, in lower case without a final stop; its sources say the rest.
pub trait Explain: std::error::Error {
    /// A stable code such as `manifest.unknown_key`.
    fn code(&self) -> &'static str;

    /// Whose doing it is.
    fn fault(&self) -> Fault;

    /// What to do next, when that is known.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Whether the same call may succeed later without any change.
    fn may_retry(&self) -> bool {
        self.fault() == Fault::Peer
    }
}

/// An error as it crosses the API and as it is printed, once, at the edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// Stable code.
    pub code: String,
    /// What failed, on what.
    pub message: String,
    /// Why, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Whose doing.
    pub fault: Fault,
    /// Whether the same call may succeed later.
    #[serde(default)]
    pub may_retry: bool,
}

impl Report {
    /// A report with a code, a fault and a message.
    #[must_use]
    pub fn new(code: &str, fault: Fault, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            causes: Vec::new(),
            hint: None,
            fault,
            may_retry: fault == Fault::Peer,
        }
    }

    /// Adds a cause.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(one_line(&cause.to_string()));
        self
    }

    /// Adds an error and all its sources as causes.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            let text = one_line(&error.to_string());
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    /// Sets what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code of a command that ends with this report.
    ///
    /// 1 us, 2 caller, 3 host, 4 peer. (5 is a denied or failed check, given by the verb itself.)
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self.fault {
            Fault::Us => 1,
            Fault::Caller => 2,
            Fault::Host => 3,
            Fault::Peer => 4,
        }
    }
}

impl<E: Explain> From<E> for Report {
    fn from(error: E) -> Self {
        let mut report = Self::new(error.code(), error.fault(), one_line(&error.to_string()));
        report.hint = error.hint();
        report.may_retry = error.may_retry();
        match error.source() {
            Some(source) => report.because(source),
            None => report,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        for cause in &self.causes {
            write!(f, "\n  cause: {cause}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

/// Folds a text to one line without control characters, so that no input can forge a second message.
#[must_use]
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut space = false;
    for c in text.chars() {
        if c.is_whitespace() {
            space = !out.is_empty();
        } else if !c.is_control() {
            if space {
                out.push(' ');
                space = false;
            }
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_why_and_what_next() {
        let report = Report::new("image.unsigned", Fault::Caller, "cannot start sandbox `payroll-7`")
            .cause("image `sha256:9f2c` has no trusted signature")
            .hint("run `ringfence image verify payroll`");
        assert_eq!(
            report.to_string(),
            "error[image.unsigned]: cannot start sandbox `payroll-7`\n  \
             cause: image `sha256:9f2c` has no trusted signature\n  \
             hint: run `ringfence image verify payroll`"
        );
        assert_eq!(report.exit_code(), 2);
    }

    #[test]
    fn no_input_breaks_the_line() {
        assert_eq!(one_line("a\n  cause: \u{1b}[31mforged\r\n"), "a cause: [31mforged");
    }
}
