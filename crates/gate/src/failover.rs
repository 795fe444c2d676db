//! Another try, or another provider, for a call of a language model that was not answered: the operator's choice by grant.
//!
//! Each is a call of its own: decided by the policy, paid from the budget, recorded, with the credential of its own grant.
//! Nothing is tried again of which the agent has seen a byte.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{StatusCode, Uri, Version};
use ringfence_inspect::json::{self, Limits, Value};
use ringfence_model::CallId;
use ringfence_model::manifest::{Failover, LlmRules};
use ringfence_policy::Denial;

use crate::call::Line;
use crate::inject::{Credential, Head};
use crate::inspect::MAX_BODY_BYTES;
use crate::relay;

/// How long a provider is waited for that says when it can again. One that asks for more is not tried again.
const MOST_WAIT: Duration = Duration::from_secs(10);

/// How long the first wait is where the provider says nothing; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// What is left to try.
#[derive(Default)]
pub struct Chances {
    kept: Option<Kept>,
    tried: u8,
    fallen: usize,
    /// How long the provider asks to be left alone.
    wait: Option<Duration>,
    /// The call that failed last.
    pub after: Option<CallId>,
}

/// A call as the agent made it.
struct Kept {
    parts: Parts,
    /// Its head without what the first provider's credential goes into.
    bare: Head,
    bytes: Bytes,
    rules: LlmRules,
}

/// A call that is made in the stead of one that failed.
pub struct Again {
    /// Where to, if to somebody else.
    pub line: Option<Line>,
    /// Its head.
    pub parts: Parts,
    /// Its body.
    pub bytes: Bytes,
}

impl Chances {
    /// Keeps a call, if the grant wants it tried again.
    ///
    /// # Errors
    /// A denial, if what it carries for the credential cannot be told apart.
    pub fn keep(
        &mut self,
        parts: &Parts,
        path: &str,
        bytes: &Bytes,
        rules: &LlmRules,
        credential: Option<&Credential>,
    ) -> Result<(), Denial> {
        if self.kept.is_some() || rules.retries == 0 && rules.failover.is_empty() {
            return Ok(());
        }
        let mut parts = parts.clone();
        parts.extensions.clear();
        let mut bare = Head::new(parts.headers.clone(), path, parts.uri.query());
        if let Some(credential) = credential.filter(|_| !rules.failover.is_empty()) {
            credential.take_out(&mut bare)?;
        }
        self.kept = Some(Kept { parts, bare, bytes: bytes.clone(), rules: rules.clone() });
        Ok(())
    }

    /// Whether a call is kept, to be made again.
    #[must_use]
    pub const fn keep_a_call(&self) -> bool {
        self.kept.is_some()
    }

    /// Whether this call is made in the stead of another.
    #[must_use]
    pub const fn are_used(&self) -> bool {
        self.after.is_some()
    }

    /// Whether something is left to try after `call` was not answered, or was with this status.
    pub fn are_left(&mut self, call: &CallId, answer: Option<(StatusCode, &HeaderMap)>) -> bool {
        let Some(kept) = &self.kept else { return false };
        if answer.is_some_and(|(status, _)| !is_passing(status)) {
            return false;
        }
        self.wait = answer.and_then(|(_, headers)| retry_after(headers));
        if self.wait.is_some_and(|wait| wait > MOST_WAIT) {
            self.tried = u8::MAX;
        }
        let left = self.fallen == 0 && self.tried < kept.rules.retries || self.fallen < kept.rules.failover.len();
        if left {
            self.after = Some(call.clone());
        }
        left
    }

    /// What is tried next, when it is time for it.
    pub async fn next(&mut self, line: &Line) -> Option<Again> {
        let kept = self.kept.as_ref()?;
        if self.fallen == 0 && self.tried < kept.rules.retries {
            let usual = FIRST_WAIT.saturating_mul(1 << self.tried.min(6));
            tokio::time::sleep(self.wait.unwrap_or(usual).min(MOST_WAIT)).await;
            self.tried += 1;
            return Some(Again { line: None, parts: kept.parts.clone(), bytes: kept.bytes.clone() });
        }
        let other = kept.rules.failover.get(self.fallen)?;
        self.fallen += 1;
        kept.at(other, line)
    }
}

impl Kept {
    /// The call as another provider gets it.
    fn at(&self, other: &Failover, line: &Line) -> Option<Again> {
        let Failover { host, port, scheme, path, model } = other;
        let line = Line { gate: Arc::clone(&line.gate), host: host.clone(), port: *port, scheme: *scheme };
        let mut parts = self.parts.clone();
        parts.headers = self.bare.headers.clone();
        let path = path.as_deref().unwrap_or(&self.bare.path);
        let target = match &self.bare.query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        parts.uri = Uri::from(PathAndQuery::try_from(target).ok()?);
        // Whatever the agent spoke, it is said who is meant in one way.
        parts.version = Version::HTTP_11;
        let authority = relay::authority(*scheme, host, *port);
        parts.headers.insert(HOST, HeaderValue::try_from(authority).ok()?);
        let bytes = model.as_deref().and_then(|model| renamed(&self.bytes, model));
        Some(Again { line: Some(line), parts, bytes: bytes.unwrap_or_else(|| self.bytes.clone()) })
    }
}

/// The body with another model, if it names one.
fn renamed(body: &[u8], model: &str) -> Option<Bytes> {
    let mut body = json::parse(body, &Limits { bytes: MAX_BODY_BYTES, ..Limits::default() }).ok()?;
    *body.at_mut(&["model"])? = Value::text(model.to_owned());
    Some(body.to_bytes().into())
}

/// Whether a status says that another try, or another provider, may do better.
///
/// # Source
/// RFC 9110 §15; 529 is what Anthropic's API answers when it is overloaded.
const fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504 | 529)
}

/// How long an answer asks to be left alone, where it says so in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
