//! The first conversation with the agent, and the one with the server.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use ringfence_model::manifest::PostgresTls;
use ringfence_policy::{Denial, Permit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::auth::{self, Ask, Mechanism, Scram};
use super::wire::{self, Message};
use super::{Io, Stream, Target, settings};
use crate::dial::Route;
use crate::record::Call;
use crate::stream::ReadAhead;
use crate::tls::{self, Offer};
use crate::{Gate, relay};

/// How long each of the two conversations may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The name of the protocol inside TLS, for whoever asks.
const ALPN: &[u8] = b"postgresql";

/// The longest message of a server before the session is open.
const MAX_MESSAGE: usize = 64 * 1024;

/// Messages of a server before the session is open.
const MAX_MESSAGES: usize = 256;

/// What an agent wants.
pub enum Hello {
    /// That another session's statement be given up.
    Cancel {
        /// Which, as [`super::cancel`] told its owner.
        pid: u32,
        /// The key likewise.
        key: Vec<u8>,
    },
    /// A session.
    Session(Session),
}

/// A session as the agent asked for it, less what the grant decides.
#[derive(Default)]
pub struct Session {
    /// Settings that it begins with.
    pub settings: Vec<(String, String)>,
    /// Whether the agent asked for a later version than 3.0, and by which extensions.
    pub newer: Option<Vec<String>>,
}

/// Why there is no session.
pub struct Refused {
    /// The agent, if it can still be told.
    pub agent: Option<Io>,
    /// Why.
    pub denial: Denial,
}

impl Refused {
    fn broken(code: &'static str, why: impl Into<String>) -> Self {
        Self { agent: None, denial: Denial::new(code, why) }
    }
}

/// Hears what an agent wants, after TLS if it asks for that.
///
/// # Errors
/// [`Refused`].
pub async fn hear<S: Stream + 'static>(gate: &Gate, stream: S, target: &Target) -> Result<(Io, Hello), Refused> {
    match tokio::time::timeout(TIMEOUT, conversation(gate, stream, target)).await {
        Ok(heard) => heard,
        Err(_) => Err(Refused::broken("protocol_unknown", "the client waits for the server to speak")),
    }
}

async fn conversation<S: Stream + 'static>(gate: &Gate, stream: S, target: &Target) -> Result<(Io, Hello), Refused> {
    let unknown = |why: &str| Refused::broken("protocol_unknown", why);
    let mut io: Io = Box::new(stream);
    let mut in_tls = false;
    // TLS and GSSAPI may be asked for once each.
    for _ in 0..3 {
        let mut head = [0; 8];
        io.read_exact(&mut head).await.map_err(|_| unknown("it broke off before it said anything"))?;
        if head.first() == Some(&0x16) && !in_tls {
            // A client that begins with TLS has to say what is inside.
            let ahead = ReadAhead::new(io, Bytes::copy_from_slice(&head));
            io = accept_tls(gate, ahead, target, true).await?;
            in_tls = true;
            continue;
        }
        let [a, b, c, d, code @ ..] = head;
        let (length, code) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes(code));
        let body = usize::try_from(length).ok().and_then(|length| length.checked_sub(8));
        let body = body.filter(|body| *body <= wire::MAX_STARTUP).ok_or_else(|| unknown("it is no PostgreSQL"))?;
        match code {
            wire::SSL_REQUEST if body == 0 && !in_tls => {
                io.write_all(b"S").await.map_err(|_| unknown("it broke off in its first words"))?;
                io = accept_tls(gate, ReadAhead::new(io, Bytes::new()), target, false).await?;
                in_tls = true;
            }
            wire::GSSENC_REQUEST if body == 0 => {
                io.write_all(b"N").await.map_err(|_| unknown("it broke off in its first words"))?;
            }
            _ => {
                let mut rest = vec![0; body];
                io.read_exact(&mut rest).await.map_err(|_| unknown("it broke off in its first words"))?;
                return match code {
                    wire::CANCEL_REQUEST => cancellation(io, &rest),
                    code if code >> 16 == wire::VERSION >> 16 => {
                        let heard = match gate.placeholders.find(&rest) {
                            Some(found) => Err(found.denial("the first message")),
                            None => session(code, &rest),
                        };
                        match heard {
                            Ok(hello) => Ok((io, Hello::Session(hello))),
                            Err(denial) => Err(Refused { agent: Some(io), denial }),
                        }
                    }
                    _ => Err(unknown("it is no PostgreSQL of version 3")),
                };
            }
        }
    }
    Err(unknown("it asks for encryption too often"))
}

fn cancellation(io: Io, rest: &[u8]) -> Result<(Io, Hello), Refused> {
    let mut body = wire::Body::new(rest);
    match body.u32() {
        Some(pid) if (1..=256).contains(&body.rest().len()) => {
            Ok((io, Hello::Cancel { pid, key: body.rest().to_vec() }))
        }
        _ => Err(Refused::broken("protocol_unknown", "it asks to cancel nothing")),
    }
}

/// Reads the first message. User and database are the grant's, so what it says of them does not count.
fn session(version: u32, body: &[u8]) -> Result<Session, Denial> {
    let unknown = |why: &str| Denial::new("protocol_unknown", why);
    let refused = |name: &str| {
        let name: String = name.chars().take(63).collect();
        Denial::new("setting_not_granted", format!("no grant allows a session to begin with `{name}`"))
    };
    let mut found = Session::default();
    let mut extensions = Vec::new();
    for (name, value) in wire::parameters(body).map_err(unknown)? {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "user" | "database" => {}
            "replication" => return Err(refused("replication")),
            "options" => {
                for (name, value) in wire::options(&value).map_err(unknown)? {
                    found.add(&name, value).map_err(|()| refused(&name))?;
                }
            }
            _ if name.starts_with("_pq_.") => extensions.push(name),
            _ => found.add(&name, value).map_err(|()| refused(&name))?,
        }
    }
    found.newer = (version != wire::VERSION || !extensions.is_empty()).then_some(extensions);
    Ok(found)
}

impl Session {
    fn add(&mut self, name: &str, value: String) -> Result<(), ()> {
        if name == "client_encoding" {
            // Every session has UTF-8, and says so to its client.
            return Ok(());
        }
        if !settings::may_begin_with(name, &value) {
            return Err(());
        }
        self.settings.push((name.to_owned(), value));
        Ok(())
    }
}

/// Opens TLS as the server would.
async fn accept_tls<S: Stream + 'static>(gate: &Gate, stream: S, target: &Target, direct: bool) -> Result<Io, Refused> {
    let failed = |why: String| Refused::broken("tls_handshake", why);
    let config = gate
        .authority
        .server_config(&target.host)
        .map_err(|error| Refused::broken("no_certificate", relay::chain(&error)))?;
    let mut config = (*config).clone();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let start = start.await.map_err(|e| failed(format!("the agent's TLS handshake failed: {e}")))?;
    let named = start.client_hello().server_name().map(str::to_owned);
    if let Some(named) = named.filter(|named| named.parse().ok().as_ref() != Some(&target.host)) {
        let why = format!("TLS names `{named}`, but the connection was made for {}", target.host);
        return Err(Refused::broken("host_mismatch", why));
    }
    let stream = start.into_stream(Arc::new(config)).await;
    let stream = stream.map_err(|e| failed(format!("the agent's TLS handshake failed: {e}")))?;
    if direct && stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(Refused::broken("protocol_unknown", "it speaks TLS, and not of PostgreSQL"));
    }
    Ok(Box::new(stream))
}

/// A session with a server that is open.
pub struct Opened {
    /// The connection.
    pub stream: Io,
    /// How it was reached.
    pub way: Route,
    /// What the server told of itself, as its messages.
    pub told: Vec<u8>,
    /// By which the session's statement can be given up: number and key.
    pub cancel: Option<(u32, Vec<u8>)>,
}

/// Dials, opens TLS, and proves who the session is for.
///
/// # Errors
/// What failed, with a stable code before the first colon.
pub async fn open(
    gate: &Gate,
    target: &Target,
    permit: &Permit,
    way: &Route,
    hello: &Session,
    call: &Call,
) -> Result<Opened, String> {
    let (stream, address) = gate.dialler.connect(way).await?;
    let way = way.again(&address);
    call.address(address);
    let opening = async {
        let (io, binding) = encrypted(gate, target, stream).await?;
        let password = match permit.credential() {
            Some(name) => Some(gate.credentials.get(name).ok_or("no_lease: the credential was not leased")?),
            None => None,
        };
        let password = password.map(|credential| credential.lease().secret.reveal());
        let mut opening = Opening { io, in_tls: target.rules.tls == PostgresTls::Require, binding, password };
        opening.greet(target, hello).await?;
        opening.authenticate(target).await?;
        opening.settle(way, target.rules.read_only()).await
    };
    match tokio::time::timeout(TIMEOUT, opening).await {
        Ok(opened) => opened,
        Err(_) => Err("upstream_timeout: the database took too long to open a session".into()),
    }
}

/// The connection as its grant wants it, and what binds an authentication to it.
pub(super) async fn encrypted<S: Stream + 'static>(
    gate: &Gate,
    target: &Target,
    mut stream: S,
) -> Result<(Io, Option<Vec<u8>>), String> {
    let broke = |e: std::io::Error| format!("upstream_broke: {e}");
    if target.rules.tls == PostgresTls::Off {
        return Ok((Box::new(stream), None));
    }
    let request = Message::untyped().u32(wire::SSL_REQUEST).finish().unwrap_or_default();
    stream.write_all(&request).await.map_err(broke)?;
    // One byte and no more: whatever is behind it has to be inside TLS.
    if stream.read_u8().await.map_err(broke)? != b'S' {
        return Err("tls_failed: the database has no TLS".into());
    }
    let config = gate.trust.client(target.at, Offer::Http1).ok_or("tls_failed: no trust anchors")?;
    let mut config = (*config).clone();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let name = tls::server_name(&target.host).ok_or("tls_failed: the host has no name for TLS")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = stream.map_err(|e| format!("tls_failed: {e}"))?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let binding = certificate.and_then(|certificate| auth::server_end_point(certificate));
    Ok((Box::new(stream), binding))
}

/// A session with a server that is being opened.
struct Opening<'a> {
    io: Io,
    in_tls: bool,
    binding: Option<Vec<u8>>,
    password: Option<&'a str>,
}

impl Opening<'_> {
    async fn greet(&mut self, target: &Target, hello: &Session) -> Result<(), String> {
        let rules = &target.rules;
        let mut message = Message::untyped().u32(wire::VERSION);
        // What comes last counts, so what the gate settles comes last.
        for (name, value) in &hello.settings {
            message = message.text(name).text(value);
        }
        message = message.text("user").text(&rules.user).text("database").text(&rules.database);
        for (name, value) in settled(rules.read_only()) {
            message = message.text(name).text(value);
        }
        self.send(message.bytes(&[0])).await
    }

    async fn send(&mut self, message: Message) -> Result<(), String> {
        let bytes = message.finish().ok_or("upstream_broke: a message is too long")?;
        self.io.write_all(&bytes).await.map_err(|e| format!("upstream_broke: {e}"))
    }

    /// The next message that is not a notice.
    async fn next(&mut self) -> Result<(u8, Vec<u8>), String> {
        for _ in 0..MAX_MESSAGES {
            let mut head = [0; 5];
            self.io.read_exact(&mut head).await.map_err(|e| format!("upstream_broke: {e}"))?;
            let (kind, length) = wire::head(head).map_err(|why| format!("upstream_broke: {why}"))?;
            if length > MAX_MESSAGE {
                return Err("upstream_broke: a message before the session is too long".into());
            }
            let mut body = vec![0; length];
            self.io.read_exact(&mut body).await.map_err(|e| format!("upstream_broke: {e}"))?;
            match kind {
                b'N' | b'v' => {}
                b'E' => return Err(format!("session_refused: the database answered {}", wire::error_code(&body))),
                _ => return Ok((kind, body)),
            }
        }
        Err("upstream_broke: the database says too much before the session".into())
    }

    fn password(&self) -> Result<&str, String> {
        self.password.ok_or_else(|| "no_credential: the database asks for a password, and the grant names none".into())
    }

    async fn authenticate(&mut self, target: &Target) -> Result<(), String> {
        let failed = |why: &str| format!("auth_failed: {why}");
        let mut scram: Option<Scram> = None;
        loop {
            let (kind, body) = self.next().await?;
            let asked = (kind == b'R').then(|| auth::ask(&body)).flatten();
            let (ask, content) = asked.ok_or_else(|| failed("the database asks for what the gate cannot show"))?;
            let answer = match (ask, &mut scram) {
                (Ask::Nothing, None) => return Ok(()),
                (Ask::Nothing, Some(scram)) if scram.is_verified() => return Ok(()),
                (Ask::Nothing, Some(_)) => return Err(failed("the database did not show that it knows the password")),
                (Ask::Cleartext, None) if self.in_tls => Message::new(b'p').text(self.password()?),
                (Ask::Cleartext, _) => return Err(failed("the database asks for the password in cleartext")),
                (Ask::Md5(salt), None) => {
                    Message::new(b'p').text(&auth::md5_answer(&target.rules.user, self.password()?, salt))
                }
                (Ask::Sasl, None) => {
                    let mechanism = Mechanism::of(content, self.binding.is_some())
                        .ok_or_else(|| failed("the database offers no mechanism that the gate knows"))?;
                    let begun = Scram::new(self.password()?, mechanism, self.binding.as_deref(), &nonce()?);
                    let first = begun.first();
                    scram = Some(begun);
                    let length = u32::try_from(first.len()).map_err(|_| failed("it is too long"))?;
                    Message::new(b'p').text(mechanism.name()).u32(length).bytes(first.as_bytes())
                }
                (Ask::SaslMore, Some(scram)) => {
                    Message::new(b'p').bytes(scram.last(content).map_err(failed)?.as_bytes())
                }
                (Ask::SaslEnd, Some(scram)) => {
                    scram.verify(content).map_err(failed)?;
                    continue;
                }
                _ => return Err(failed("the database asks twice")),
            };
            self.send(answer).await?;
        }
    }

    /// Hears what the server tells of itself, until it is ready.
    async fn settle(mut self, way: Route, read_only: bool) -> Result<Opened, String> {
        let (mut told, mut cancel) = (Vec::new(), None);
        let mut unsettled: BTreeSet<&str> = REPORTED.into_iter().collect();
        for _ in 0..MAX_MESSAGES {
            let (kind, body) = self.next().await?;
            match kind {
                b'K' => {
                    let mut body = wire::Body::new(&body);
                    cancel = body.u32().filter(|_| body.rest().len() <= 256).map(|pid| (pid, body.rest().to_vec()));
                }
                b'S' => {
                    if !still_settled(&body, read_only) {
                        return Err(UNSETTLED.into());
                    }
                    let named = wire::Body::new(&body).text();
                    unsettled.retain(|name| Some(name.as_bytes()) != named);
                    let message = Message::new(b'S').bytes(&body).finish();
                    told.extend(message.ok_or("upstream_broke: a message is too long")?);
                }
                // A pooler in between may keep what it was asked for from the server.
                b'Z' if !unsettled.is_empty() => return Err(UNSETTLED.into()),
                b'Z' => return Ok(Opened { stream: self.io, way, told, cancel }),
                _ => break,
            }
        }
        Err("upstream_broke: the database does not become ready".into())
    }
}

/// Why a session is over.
pub(super) const UNSETTLED: &str = "unsettled: the database has a setting that the gate relies on in another way";

/// What every server reports of that.
const REPORTED: [&str; 2] = ["client_encoding", "standard_conforming_strings"];

/// What every session has, whatever the agent asks for: what [`super::lex`] presumes, and a second wall around those
/// that may only read.
fn settled(read_only: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    let always = [("client_encoding", "UTF8"), ("standard_conforming_strings", "on")];
    always.into_iter().chain(read_only.then_some(("default_transaction_read_only", "on")))
}

/// Whether a server's word about a setting is what was settled. A session in which it is not is over.
pub(super) fn still_settled(body: &[u8], read_only: bool) -> bool {
    let mut body = wire::Body::new(body);
    let (Some(name), Some(value)) = (body.text(), body.text()) else { return false };
    settled(read_only).all(|(settled, wanted)| name != settled.as_bytes() || value == wanted.as_bytes())
}

fn nonce() -> Result<String, String> {
    let mut random = [0; 18];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| "random: the random generator failed")?;
    Ok(STANDARD_NO_PAD.encode(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(pairs: &[(&str, &str)]) -> Result<Session, Denial> {
        let message = pairs.iter().fold(Message::untyped(), |message, (name, value)| message.text(name).text(value));
        session(wire::VERSION, &message.bytes(&[0]).finish().unwrap()[4..])
    }

    #[test]
    fn a_session_begins_with_what_is_harmless() {
        let hello = first(&[
            ("user", "root"),
            ("database", "other"),
            ("application_name", "x"),
            ("client_encoding", "SJIS"),
            ("options", "-c statement_timeout=5 -c search_path=app"),
        ])
        .unwrap();
        let names: Vec<&str> = hello.settings.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["application_name", "statement_timeout", "search_path"]);
        assert!(hello.newer.is_none());
        assert_eq!(first(&[("_pq_.x", "1")]).ok().and_then(|s| s.newer), Some(vec!["_pq_.x".to_owned()]));
        for (name, value) in [
            ("replication", "database"),
            ("options", "-c default_transaction_read_only=off"),
            ("options", "-c standard_conforming_strings=off"),
            ("options", "-d 5"),
            ("Default_Transaction_Read_Only", "off"),
            ("role", "postgres"),
            ("session_replication_role", "replica"),
            ("search_path", "evil, pg_catalog"),
        ] {
            assert!(first(&[(name, value)]).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn a_server_s_word_is_held_against_what_was_settled() {
        for (body, read_only, good) in [
            (&b"client_encoding\0UTF8\0"[..], false, true),
            (b"client_encoding\0SJIS\0", false, false),
            (b"standard_conforming_strings\0off\0", false, false),
            (b"default_transaction_read_only\0off\0", true, false),
            (b"default_transaction_read_only\0off\0", false, true),
            (b"TimeZone\0UTC\0", true, true),
            (b"TimeZone", true, false),
        ] {
            assert_eq!(still_settled(body, read_only), good, "{body:?}");
        }
    }
}
