//! Ids are types, so that one kind cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An agent's name: 1 to 40 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct AgentName(
    #[cfg_attr(feature = "schema", schemars(regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")))] String,
);

/// Why a text is not an agent name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an agent name: use 1 to 40 of a-z, 0-9 and `-`, with a letter or digit at both ends")]
pub struct AgentNameError(String);

impl AgentName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a valid name out of any folder name, or `agent` when nothing of it can be kept.
    #[must_use]
    pub fn from_folder(folder: &str) -> Self {
        let mut name = String::new();
        for c in folder.chars().flat_map(char::to_lowercase) {
            if c.is_ascii_lowercase() || c.is_ascii_digit() {
                name.push(c);
            } else if !name.is_empty() && !name.ends_with('-') {
                name.push('-');
            }
            if name.len() == 40 {
                break;
            }
        }
        let name = name.trim_matches('-');
        Self(if name.is_empty() { "agent".into() } else { name.into() })
    }
}

impl FromStr for AgentName {
    type Err = AgentNameError;

    fn from_str(text: &str) -> Result<Self, AgentNameError> {
        let inner_ok = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let ends_ok = !text.starts_with('-') && !text.ends_with('-');
        if text.is_empty() || text.len() > 40 || !inner_ok || !ends_ok {
            return Err(AgentNameError(text.chars().take(60).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for AgentName {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentName({})", self.0)
    }
}

/// Makes a text id type whose values sort by the time they were made.
macro_rules! timed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Makes an id from a time in milliseconds since 1970 and 8 random bytes.
            #[must_use]
            pub fn from_parts(unix_ms: u64, random: [u8; 8]) -> Self {
                Self(format!("{}{:011x}{:016x}", $prefix, unix_ms, u64::from_be_bytes(random)))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

timed_id!(
    /// One start of one sandbox.
    SandboxId,
    "sb-"
);
timed_id!(
    /// One call through a gate; its intent and its outcome carry the same id.
    CallId,
    "c-"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!("analyst".parse::<AgentName>().is_ok());
        for bad in ["", "-a", "a-", "A", "a_b", "ä", &"a".repeat(41)] {
            assert!(bad.parse::<AgentName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn folders_become_names() {
        for (folder, want) in [("My App_v2", "my-app-v2"), ("", "agent"), ("---", "agent"), ("Ünï", "n")] {
            assert_eq!(AgentName::from_folder(folder).as_str(), want);
        }
    }

    #[test]
    fn ids_sort_by_time() {
        let early = CallId::from_parts(1, [255; 8]);
        let late = CallId::from_parts(2, [0; 8]);
        assert!(early < late);
    }
}
