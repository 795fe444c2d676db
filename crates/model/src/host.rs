//! Where a call goes, and which hosts a grant covers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A host as policy sees it: a lower-case DNS name without final dot, or an IP address.
///
/// # Source
/// RFC 1123 §2.1 for names; underscores are taken too, because real names carry them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostName {
    /// An IP address. IPv4-mapped IPv6 addresses are folded to IPv4.
    Address(IpAddr),
    /// A DNS name.
    Name(String),
}

/// Why a text is not a host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a host name or address")]
pub struct HostNameError(String);

impl HostName {
    /// Takes an address, folding `::ffff:a.b.c.d` to `a.b.c.d`.
    #[must_use]
    pub fn from_address(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }

    /// The DNS name, where it is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Address(_) => None,
            Self::Name(name) => Some(name),
        }
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let bad = || HostNameError(text.chars().take(80).collect());
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::from_address(address));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(bad());
        }
        // A last label of digits only is how inet_aton forms such as `127.1` would pass for names.
        if name.rsplit('.').next().is_none_or(|tld| tld.bytes().all(|b| b.is_ascii_digit()) || tld.starts_with("0x")) {
            return Err(bad());
        }
        Ok(Self::Name(name))
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostName({self})")
    }
}

/// Which hosts a grant covers: one host, or every name below a suffix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// `*.example.com`: every name that ends in `.example.com`, at any depth, but not `example.com`.
    Below(String),
    /// Just this host.
    Exact(HostName),
}

/// Why a text is not a host pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HostPatternError {
    /// `*` or `*.com`.
    #[error("host pattern `{0}` covers too much: a wildcard needs at least two labels after `*.`")]
    Broad(String),
    /// Neither a host nor `*.suffix`.
    #[error("`{0}` is not a host, an address or `*.suffix`")]
    Malformed(String),
}

impl HostPattern {
    /// Whether the pattern covers `host`.
    #[must_use]
    pub fn covers(&self, host: &HostName) -> bool {
        match (self, host) {
            (Self::Below(suffix), HostName::Name(name)) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
            }
            (Self::Below(_), HostName::Address(_)) => false,
            (Self::Exact(want), _) => want == host,
        }
    }

    /// Whether some host is covered by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let within =
            |one: &str, all: &str| one.strip_suffix(all).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        match (self, other) {
            (Self::Exact(host), pattern) | (pattern, Self::Exact(host)) => pattern.covers(host),
            (Self::Below(one), Self::Below(two)) => within(one, two) || within(two, one),
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostPatternError;

    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        let bad = || HostPatternError::Malformed(text.chars().take(80).collect());
        if text == "*" {
            return Err(HostPatternError::Broad(text.into()));
        }
        if let Some(suffix) = text.strip_prefix("*.") {
            let host: HostName = suffix.parse().map_err(|_| bad())?;
            let HostName::Name(name) = host else { return Err(bad()) };
            if !name.contains('.') {
                return Err(HostPatternError::Broad(text.into()));
            }
            return Ok(Self::Below(name));
        }
        text.parse().map(Self::Exact).map_err(|_| bad())
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Below(suffix) => write!(f, "*.{suffix}"),
            Self::Exact(host) => write!(f, "{host}"),
        }
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostPattern({self})")
    }
}

macro_rules! serde_as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(HostName, HostPattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_folded_to_one_form() {
        for (text, want) in [
            ("API.OpenAI.com.", "api.openai.com"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[::1]", "::1"),
            ("_dmarc.example.org", "_dmarc.example.org"),
        ] {
            assert_eq!(text.parse::<HostName>().unwrap().to_string(), want);
        }
        for bad in ["", ".", "a..b", "-a.com", "a b.com", "127.1", "0x7f.1", "1.2.3.0x4", "ä.de", "a.com:80", "a/b"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wildcard_covers_names_below_and_nothing_else() {
        let pattern: HostPattern = "*.wikipedia.org".parse().unwrap();
        for (host, want) in [
            ("en.wikipedia.org", true),
            ("a.b.wikipedia.org", true),
            ("wikipedia.org", false),
            ("evilwikipedia.org", false),
            ("wikipedia.org.evil.com", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(pattern.covers(&host.parse().unwrap()), want, "{host}");
        }
        assert!(matches!("*".parse::<HostPattern>(), Err(HostPatternError::Broad(_))));
        assert!(matches!("*.com".parse::<HostPattern>(), Err(HostPatternError::Broad(_))));
        assert!("a.*.com".parse::<HostPattern>().is_err());
    }
}
