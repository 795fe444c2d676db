//! The life of one HTTP request of the agent, phase by phase.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use ringfence_audit::{Direction, RecordError};
use ringfence_model::manifest::{Scheme, Trust};
use ringfence_model::{CallId, HostName};
use ringfence_policy::{Denial, Permit};

use crate::body::{DownBody, UpBody};
use crate::config::CredentialLease;
use crate::dial::NoAddress;
use crate::inspect::EchoGuard;
use crate::record::{Call, Subject};
use crate::relay::{Checkin, Outgoing};
use crate::{Gate, decide, identify, inject, inspect, relay};

/// A connection of the agent that speaks HTTP, with the host and port that it was made for.
pub struct Line {
    pub(crate) gate: Arc<Gate>,
    pub(crate) host: HostName,
    pub(crate) port: u16,
    pub(crate) scheme: Scheme,
}

/// Why a request got no answer of the upstream.
enum Refused {
    /// The policy, or a rule of the gate, said no.
    Denied(Subject, Denial),
    /// It was allowed and failed.
    Failed(CallId, &'static str),
    /// It was allowed, and could not be recorded.
    Unrecorded(RecordError),
}

/// Answers one request.
pub async fn answer(line: &Line, request: Request<Incoming>) -> Response<DownBody> {
    match serve(line, request).await {
        Ok(response) => response,
        Err(Refused::Denied(subject, denial)) => {
            let id = line.gate.recorder.deny(subject, &denial).await;
            refusal(StatusCode::FORBIDDEN, "ringfence.denied", "this call is not granted", Some(&id))
        }
        Err(Refused::Failed(id, message)) => refusal(StatusCode::BAD_GATEWAY, "ringfence.upstream", message, Some(&id)),
        Err(Refused::Unrecorded(error)) => {
            tracing::error!(%error, "a call was refused because it could not be recorded");
            refusal(StatusCode::FORBIDDEN, "ringfence.denied", "this call is not granted", None)
        }
    }
}

async fn serve(line: &Line, request: Request<Incoming>) -> Result<Response<DownBody>, Refused> {
    let gate = &line.gate;
    let (mut parts, body) = request.into_parts();
    let websocket = is_websocket(&parts);
    let mut subject = subject(line, &parts, websocket);

    // identify
    if let Err(denial) = identify::request(&parts, &line.host, line.port, line.scheme) {
        return Err(Refused::Denied(subject, denial));
    }

    // decide
    let mut read = None;
    let mut body = Some(body);
    let question = decide::question(&line.host, line.port, line.scheme, &parts, websocket, None);
    let permit = if let Some(known) = gate.decisions.known(&question) {
        Ok(known)
    } else if gate.policy.needs_model(&question)
        && let Some(body) = body.take()
    {
        match inspect::read_model(&parts.headers, body).await {
            Ok((bytes, model)) => (read, subject.model) = (Some(bytes), model),
            Err(denial) => return Err(Refused::Denied(subject, denial)),
        }
        let model = subject.model.as_deref();
        let question = decide::question(&line.host, line.port, line.scheme, &parts, websocket, model);
        decide::http(&gate.policy, question).map(Arc::new)
    } else {
        gate.decisions.decide(&gate.policy, question)
    };
    let permit = match permit {
        Ok(permit) => permit,
        Err(denial) => return Err(Refused::Denied(subject, denial)),
    };
    let way = match relay::way(gate, &permit, &line.host, line.port, websocket).await {
        Ok(way) => Ok(way),
        Err(NoAddress::Denied(denial)) => return Err(Refused::Denied(subject, denial)),
        Err(NoAddress::Failed(why)) => Err(why),
    };

    // record the intent; without it nothing leaves
    let untrusted = gate.grant(&permit).is_some_and(|grant| grant.trust == Trust::Untrusted);
    let call = gate.recorder.allow(subject, &permit, untrusted).map_err(Refused::Unrecorded)?;
    let failed = |why: String, message: &'static str| {
        call.failed(why);
        Refused::Failed(call.id().clone(), message)
    };
    const UNREACHABLE: &str = "the upstream could not be reached";
    let way = way.map_err(|why| failed(why, UNREACHABLE))?;

    // inspect and inject
    let lease = lease(gate, &permit).map_err(|why| failed(why, "the credential could not be used"))?;
    let agent_side = parts.extensions.remove::<OnUpgrade>();
    let (method, was_http10) = (parts.method.clone(), parts.version == Version::HTTP_10);
    let body = match (read, body) {
        (Some(bytes), _) => UpBody::Whole { bytes: Some(bytes), call: Arc::clone(&call) },
        (None, Some(inner)) => UpBody::Stream { inner, call: Arc::clone(&call), search: gate.leaks.search() },
        (None, None) => UpBody::Whole { bytes: None, call: Arc::clone(&call) },
    };
    let outgoing = prepare(gate, parts, body, websocket, lease, &call)
        .map_err(|why| failed(why, "the credential could not be used"))?;

    // relay
    let sent = relay::send(gate, &permit, way, &line.host, line.port, outgoing, &call).await;
    let (response, checkin) = sent.map_err(|why| failed(why, UNREACHABLE))?;
    call.status(response.status().as_u16());
    let echo = lease.map(EchoGuard::new);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return upgraded(response, agent_side.filter(|_| websocket), echo, call)
            .map_err(|(why, id)| Refused::Failed(id, why));
    }

    // inspect what comes back; the outcome is recorded when its last byte is through
    brought_back(response, &method, was_http10, echo, checkin, &call)
        .map_err(|why| failed(why, "the answer could not be inspected"))
}

fn subject(line: &Line, parts: &Parts, websocket: bool) -> Subject {
    Subject {
        direction: Direction::Egress,
        protocol: match parts.version {
            _ if websocket => "websocket",
            Version::HTTP_2 => "h2",
            _ => "http/1.1",
        },
        host: line.host.to_string(),
        port: line.port,
        method: Some(parts.method.as_str().to_owned()),
        path: Some(parts.uri.path().to_owned()),
        model: None,
    }
}

/// Whether a request asks to become a WebSocket.
///
/// # Source
/// RFC 6455 §4.1.
pub(crate) fn is_websocket(parts: &Parts) -> bool {
    let has = |name, token: &str| {
        parts
            .headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|value| value.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
    };
    parts.version == Version::HTTP_11
        && parts.method == Method::GET
        && has(UPGRADE, "websocket")
        && has(CONNECTION, "upgrade")
}

/// Puts back what makes a WebSocket handshake, after the rest between neighbours was taken away.
pub(crate) fn ask_for_websocket(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

fn lease<'a>(gate: &'a Gate, permit: &Permit) -> Result<Option<&'a CredentialLease>, String> {
    match permit.credential() {
        None => Ok(None),
        Some(name) => gate.leases.get(name).map(Some).ok_or_else(|| format!("no_lease: {name}")),
    }
}

/// The request as it will be sent: without what is between neighbours, with the secret in its place.
fn prepare(
    gate: &Gate,
    parts: Parts,
    body: UpBody,
    websocket: bool,
    lease: Option<&CredentialLease>,
    call: &Call,
) -> Result<Outgoing, String> {
    let mut query = parts.uri.query().map(str::to_owned);
    let mut headers = parts.headers;
    relay::strip_hop_by_hop(&mut headers);
    // The gate itself answers with 100, as soon as it wants the body.
    headers.remove(EXPECT);
    if websocket {
        ask_for_websocket(&mut headers);
    }
    let own = lease.and_then(inject::own_header);
    if let Some(lease) = lease {
        // WHY first inject, then search: the agent's placeholder in its own place is gone by then, in a header as
        // in the query, so that whatever is found is where it does not belong.
        inject::inject(lease, &mut headers, &mut query).map_err(|why| format!("inject: {why}"))?;
        // What comes back must be readable, or an echo of the secret could pass.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.remove("sec-websocket-extensions");
    }
    if gate.leaks.occur_in_head(&headers, query.as_deref(), own.as_ref()) {
        call.found("placeholder_leak");
    }
    if let UpBody::Whole { bytes: Some(bytes), .. } = &body
        && gate.leaks.occur_in(bytes.get(..inspect::MAX_SEARCHED_BYTES.min(bytes.len())).unwrap_or_default())
    {
        call.found("placeholder_leak");
    }
    Ok(Outgoing { method: parts.method, headers, query, body, websocket })
}

/// The answer as the agent gets it.
fn brought_back(
    response: Response<Incoming>,
    method: &Method,
    was_http10: bool,
    mut echo: Option<EchoGuard>,
    checkin: Option<Checkin>,
    call: &Arc<Call>,
) -> Result<Response<DownBody>, String> {
    let (mut parts, body) = response.into_parts();
    let coded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if parts.headers.get_all(TRANSFER_ENCODING).iter().any(coded) {
        return Err("transfer_coded: the upstream sent its answer in a transfer coding that was not asked for".into());
    }
    relay::strip_hop_by_hop(&mut parts.headers);
    let bodiless = *method == Method::HEAD
        || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || http_body::Body::is_end_stream(&body);
    if let Some(guard) = &echo {
        let encoded = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
        if !bodiless && parts.headers.get_all(CONTENT_ENCODING).iter().any(encoded) {
            return Err("encoded_echo_uninspectable: the upstream encoded an answer that was to be searched".into());
        }
        if guard.clean(&mut parts.headers) {
            call.found("secret_echo_redacted");
        }
        if bodiless {
            echo = None;
        } else {
            // Its length may change.
            parts.headers.remove(CONTENT_LENGTH);
        }
    }
    parts.version = if was_http10 { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(Response::from_parts(parts, DownBody::relayed(body, Arc::clone(call), echo, checkin)))
}

/// The upstream agreed to a WebSocket; from here on bytes are relayed both ways.
fn upgraded(
    mut response: Response<Incoming>,
    agent: Option<OnUpgrade>,
    echo: Option<EchoGuard>,
    call: Arc<Call>,
) -> Result<Response<DownBody>, (&'static str, CallId)> {
    let Some(agent) = agent else {
        call.failed("unasked_upgrade: the upstream switched protocols unasked");
        return Err(("the upstream could not be understood", call.id().clone()));
    };
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    relay::strip_hop_by_hop(&mut parts.headers);
    ask_for_websocket(&mut parts.headers);
    parts.extensions.clear();
    if echo.as_ref().is_some_and(|guard| guard.clean(&mut parts.headers)) {
        call.found("secret_echo_redacted");
    }
    tokio::spawn(async move {
        let done = match tokio::try_join!(agent, upstream) {
            Ok((agent, upstream)) => relay::tunnel(TokioIo::new(agent), TokioIo::new(upstream), &call, echo).await,
            Err(error) => Err(format!("upgrade_failed: {error}")),
        };
        if let Err(why) = done {
            call.failed(why);
        }
    });
    Ok(Response::from_parts(parts, DownBody::Own(None)))
}

/// What the agent is told: that it was refused, and by which id the operator finds out why.
fn refusal(status: StatusCode, code: &str, message: &str, id: Option<&CallId>) -> Response<DownBody> {
    let id = id.map_or("", CallId::as_str);
    let text = format!(r#"{{"error":{{"code":"{code}","message":"{message}","call":"{id}"}}}}"#);
    let mut response = Response::new(DownBody::own(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
