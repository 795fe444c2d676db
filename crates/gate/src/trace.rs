//! Traces go on through the gate: what a call leads to is below the call, which is below what its maker did.
//!
//! # Source
//! W3C Trace Context.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use ringfence_audit::otel::Parent;
use ringfence_model::CallId;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The trace that a request belongs to, if it says so in one way.
pub fn of(headers: &HeaderMap) -> Option<String> {
    let mut all = headers.get_all(&TRACEPARENT).iter();
    let (first, None) = (all.next()?, all.next()) else { return None };
    let text = first.to_str().ok()?;
    Parent::parse(text).map(|parent| format!("00-{}-{}-{}", parent.trace, parent.span, parent.flags))
}

/// Puts the call between its maker and what it leads to. A request that belongs to no trace is put into none: what is
/// outside learns no more than the agent tells.
pub fn go_on(headers: &mut HeaderMap, call: &CallId) {
    let parent = of(headers).as_deref().and_then(Parent::parse);
    let child = parent.and_then(|parent| HeaderValue::try_from(parent.of_child(call.as_str())).ok());
    if let Some(child) = child {
        headers.insert(TRACEPARENT.clone(), child);
    }
}
