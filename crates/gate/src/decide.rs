//! Phase three: the policy is asked. Nothing is decided here; [`Policy::decide`] decides.

use http::request::Parts;
use ringfence_model::HostName;
use ringfence_model::manifest::{Scheme, TlsMode};
use ringfence_policy::{Decision, Denial, HttpRequest, Permit, Policy, Request};

/// What becomes of a new connection.
///
/// # Errors
/// The denial, if no grant could allow anything on it.
pub fn connection(policy: &Policy, host: &HostName, port: u16, scheme: Scheme) -> Result<TlsMode, Denial> {
    policy.route(host, port, scheme).ok_or_else(|| {
        let ask = HttpRequest { host, port, scheme, method: "GET", path: "/", websocket: false, model: None };
        match policy.decide(&Request::Http(ask)) {
            Decision::Deny(denial) => denial,
            Decision::Allow(_) => Denial::new("no_grant", format!("no grant covers {host}:{port}")),
        }
    })
}

/// Decides about a TLS connection that stays closed.
///
/// # Errors
/// The denial.
pub fn passthrough(policy: &Policy, host: &HostName, port: u16) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::TlsConnect { host, port }))
}

/// What the policy is asked about an HTTP request.
#[must_use]
pub fn question<'a>(
    host: &'a HostName,
    port: u16,
    scheme: Scheme,
    parts: &'a Parts,
    websocket: bool,
    model: Option<&'a str>,
) -> HttpRequest<'a> {
    HttpRequest { host, port, scheme, method: parts.method.as_str(), path: parts.uri.path(), websocket, model }
}

/// Decides about an HTTP request.
///
/// # Errors
/// The denial.
pub fn http(policy: &Policy, question: HttpRequest<'_>) -> Result<Permit, Denial> {
    permit(policy.decide(&Request::Http(question)))
}

fn permit(decision: Decision) -> Result<Permit, Denial> {
    match decision {
        Decision::Allow(permit) => Ok(permit),
        Decision::Deny(denial) => Err(denial),
    }
}
