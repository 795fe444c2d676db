//! `[budget]`: what an agent may spend in a span of time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check::{ManifestError, value};
use crate::Bytes;

/// The most that a counter holds; more is refused where it is written.
pub const MOST: u64 = (1 << 48) - 1;

/// How long a call waits at most for a budget, where nothing is said.
const WAIT: Duration = Duration::from_secs(30);

/// From which part of a limit on somebody is warned, where nothing is said, in hundredths.
const WARN_AT: u8 = 80;

/// What an agent may spend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Limits over all calls.
    pub limits: Vec<Limit>,
    /// Limits over the calls made for each user of the agent.
    pub user: Option<UserBudget>,
    /// Limits over the calls of each tool.
    pub tools: BTreeMap<String, Vec<Limit>>,
    /// What becomes of a call for which nothing is left.
    pub when_spent: WhenSpent,
    /// From which part of a limit on somebody is warned, in hundredths.
    pub warn_at: u8,
}

/// Limits over the calls made for each user of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserBudget {
    /// The header by which the agent says for whom it calls, lower case. It is not sent on.
    pub header: String,
    /// The limits.
    pub limits: Vec<Limit>,
}

/// So much of a unit in a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// What is counted.
    pub unit: Unit,
    /// Over which span.
    pub window: Window,
    /// The most of it; of money in millionths of a US dollar.
    pub most: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Bytes of bodies and streams, both ways.
    Bytes,
    /// Calls.
    Requests,
    /// Tokens of language models, in and out.
    Tokens,
    /// Money, in millionths of a US dollar.
    Usd,
}

/// A span of time. Spans begin with the calendar's, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A month.
    Month,
}

/// What becomes of a call for which nothing is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenSpent {
    /// It is refused, and told when there is some again.
    #[default]
    Refuse,
    /// It waits its turn for at most so long, and is refused then.
    Wait(Duration),
}

impl Unit {
    /// The word in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Usd => "usd",
        }
    }
}

impl Window {
    /// The word in the manifest.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }
}

impl fmt::Display for Limit {
    /// As in the manifest: `usd_per_day = 5.00`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unit, window, most } = self;
        write!(f, "{}_per_{} = ", unit.word(), window.word())?;
        match unit {
            Unit::Usd => write!(f, "{}.{:02}", most / 1_000_000, most % 1_000_000 / 10_000),
            _ => write!(f, "{most}"),
        }
    }
}

impl Budget {
    /// Whether anything is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }

    /// Whether some limit counts this.
    #[must_use]
    pub fn counts(&self, unit: Unit) -> bool {
        self.all().any(|limit| limit.unit == unit)
    }

    fn all(&self) -> impl Iterator<Item = &Limit> {
        let user = self.user.iter().flat_map(|user| &user.limits);
        self.limits.iter().chain(user).chain(self.tools.values().flatten())
    }

    /// Reads the budget that an operator gives to all agents of a host together: a file with what stands below
    /// `[budget]` in a manifest, users and tools aside.
    ///
    /// # Errors
    /// [`ManifestError`] names the first fault.
    pub fn parse_shared(text: &str) -> Result<Self, ManifestError> {
        let file: BudgetFile = toml::from_str(text).map_err(|error| super::check::toml_error(text, &error))?;
        if file.user.is_some() || !file.tool.is_empty() {
            return Err(value("budget of the host", "users and tools are of one agent", "say them in its manifest"));
        }
        understand(file)
    }
}

macro_rules! limits_file {
    ($(#[$doc:meta])* $name:ident { $($(#[$own_attribute:meta])* $own:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$own_attribute])* pub $own: $kind,)*
            /// Dollars in a minute.
            pub usd_per_minute: Option<f64>,
            /// Dollars in an hour.
            pub usd_per_hour: Option<f64>,
            /// Dollars in a day.
            pub usd_per_day: Option<f64>,
            /// Dollars in a month.
            pub usd_per_month: Option<f64>,
            /// Tokens in a minute.
            pub tokens_per_minute: Option<u64>,
            /// Tokens in an hour.
            pub tokens_per_hour: Option<u64>,
            /// Tokens in a day.
            pub tokens_per_day: Option<u64>,
            /// Tokens in a month.
            pub tokens_per_month: Option<u64>,
            /// Calls in a minute.
            pub requests_per_minute: Option<u64>,
            /// Calls in an hour.
            pub requests_per_hour: Option<u64>,
            /// Calls in a day.
            pub requests_per_day: Option<u64>,
            /// Calls in a month.
            pub requests_per_month: Option<u64>,
            /// Bytes in a minute.
            pub bytes_per_minute: Option<Bytes>,
            /// Bytes in an hour.
            pub bytes_per_hour: Option<Bytes>,
            /// Bytes in a day.
            pub bytes_per_day: Option<Bytes>,
            /// Bytes in a month.
            pub bytes_per_month: Option<Bytes>,
        }

        impl $name {
            fn limits(&self, place: &str) -> Result<Vec<Limit>, ManifestError> {
                let mut limits = Vec::new();
                for (window, usd, tokens, requests, bytes) in [
                    (Window::Minute, self.usd_per_minute, self.tokens_per_minute, self.requests_per_minute, self.bytes_per_minute),
                    (Window::Hour, self.usd_per_hour, self.tokens_per_hour, self.requests_per_hour, self.bytes_per_hour),
                    (Window::Day, self.usd_per_day, self.tokens_per_day, self.requests_per_day, self.bytes_per_day),
                    (Window::Month, self.usd_per_month, self.tokens_per_month, self.requests_per_month, self.bytes_per_month),
                ] {
                    let usd = usd.map(|usd| micro_dollars(place, window, usd)).transpose()?;
                    for (unit, most) in [
                        (Unit::Usd, usd),
                        (Unit::Tokens, tokens),
                        (Unit::Requests, requests),
                        (Unit::Bytes, bytes.map(|bytes| bytes.0)),
                    ] {
                        let Some(most) = most else { continue };
                        if most > MOST {
                            let key = format!("{place} {}_per_{}", unit.word(), window.word());
                            return Err(value(key, "more than can be counted", "leave it out for no limit"));
                        }
                        limits.push(Limit { unit, window, most });
                    }
                }
                Ok(limits)
            }
        }
    };
}

limits_file! {
    /// `[budget]`
    BudgetFile {
        /// `refuse` or `wait`.
        when_spent: Option<String>,
        /// How long a call waits at most, in seconds.
        wait_s: Option<u64>,
        /// From which part of a limit on somebody is warned, from 0 to 1.
        warn_at: Option<f64>,
        /// `[budget.user]`
        user: Option<UserBudgetFile>,
        /// `[budget.tool.NAME]`
        #[serde(default)]
        tool: BTreeMap<String, ToolBudgetFile>,
    }
}

limits_file! {
    /// `[budget.user]`
    UserBudgetFile {
        /// The header that names the user.
        header: String,
    }
}

limits_file! {
    /// `[budget.tool.NAME]`
    ToolBudgetFile {}
}

fn micro_dollars(place: &str, window: Window, usd: f64) -> Result<u64, ManifestError> {
    const MOST_USD: f64 = 1e8;
    if !(0.0..=MOST_USD).contains(&usd) {
        let key = format!("{place} usd_per_{} `{usd}`", window.word());
        return Err(value(key, "not a sum of money", "write dollars, such as `5.0`"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
    Ok((usd * 1e6).round() as u64)
}

pub(super) fn understand(file: BudgetFile) -> Result<Budget, ManifestError> {
    let limits = file.limits("[budget]")?;
    let when_spent = match (file.when_spent.as_deref(), file.wait_s) {
        (None | Some("refuse"), None) => WhenSpent::Refuse,
        (Some("wait"), wait) => WhenSpent::Wait(wait.map_or(WAIT, Duration::from_secs)),
        (None | Some("refuse"), Some(_)) => {
            let hint = "write `when_spent = \"wait\"`, or drop `wait_s`";
            return Err(value("[budget] wait_s", "nothing waits", hint));
        }
        (Some(other), _) => {
            return Err(value(format!("[budget] when_spent `{other}`"), "not known", "write `refuse` or `wait`"));
        }
    };
    let warn_at = match file.warn_at {
        None => WARN_AT,
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was checked")]
        Some(part) if part > 0.0 && part <= 1.0 => (part * 100.0).round() as u8,
        Some(part) => {
            return Err(value(format!("[budget] warn_at `{part}`"), "not a part of a limit", "write `0.8` or alike"));
        }
    };
    let user = file.user.map(user).transpose()?;
    let mut tools = BTreeMap::new();
    for (name, tool) in file.tool {
        let place = format!("[budget.tool.{name}]");
        let limits = tool.limits(&place)?;
        if let Some(limit) = limits.iter().find(|limit| limit.unit != Unit::Requests) {
            let why = format!("what a tool's call takes in {} is not known", limit.unit.word());
            return Err(value(place, why, "limit its `requests_per_…`"));
        }
        tools.insert(name, limits);
    }
    Ok(Budget { limits, user, tools, when_spent, warn_at })
}

fn user(file: UserBudgetFile) -> Result<UserBudget, ManifestError> {
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if !plain(&file.header) {
        return Err(value(format!("[budget.user] header `{}`", file.header), "not a header name", "write `x-user`"));
    }
    Ok(UserBudget { limits: file.limits("[budget.user]")?, header: file.header.to_ascii_lowercase() })
}
