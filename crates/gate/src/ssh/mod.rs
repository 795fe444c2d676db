//! Git over SSH, command by command.
//!
//! The gate is a server to the agent and a client to the git host. The agent shows no key: who it is, its sandbox says.
//! The gate has the key that the grant names, and shows it to a host that has shown its own before. What the agent asks to
//! be run is understood ([`command`]), decided, and in the log before the host hears of it; a push is held until its list
//! of refs ([`push`]) is decided as well. Nothing else that SSH can do is done.
//!
//! - `agent`: the conversation with the agent; `exec`: one command of it; `upstream`: the way to the host
//! - [`host`]: how hosts are known, the gate by the agent and the upstream by the gate
//! - `leash`: a connection that can be cut

mod agent;
pub mod command;
mod exec;
pub mod host;
mod leash;
pub mod push;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use ringfence_audit::GitAsked;
use ringfence_model::manifest::{Grant, Protocol, SshRules, Trust};
use ringfence_model::{CallId, HostName};
use ringfence_policy::{Denial, Policy};
use russh::{MethodKind, MethodSet, SshId, server};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Gate;
use crate::record::Subject;
use crate::tcp::IDLE;

/// How the log names it.
const PROTOCOL: &str = "ssh";

/// How the gate names itself.
const ID: &str = "SSH-2.0-ringfence";

/// Connections of one agent at once. Each has buffers of its own towards either side.
pub const MAX_SESSIONS: usize = 32;

/// Commands of one connection at once.
pub const MAX_CHANNELS: usize = 4;

/// How long a client may take until it is let in.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// How long a client may take to hear the last words.
const FAREWELL: Duration = Duration::from_secs(10);

/// What either side may send ahead on a channel, and at once.
const WINDOW: u32 = 1024 * 1024;
const PACKET: u32 = 32 * 1024;

/// Messages that wait on a channel. The library takes no more from the connection then.
const CHANNEL_BUFFER: usize = 8;

/// What all sessions of an agent share.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<Semaphore>);

impl Default for Sessions {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_SESSIONS)))
    }
}

/// Where a session goes.
struct Target {
    host: HostName,
    port: u16,
    grant: Grant,
    rules: SshRules,
}

impl Target {
    fn of(policy: &Policy, host: &HostName, port: u16) -> Option<Self> {
        let (_, grant) = policy.other_than_http(host, port)?;
        let Protocol::Ssh(rules) = &grant.protocol else { return None };
        Some(Self { host: host.clone(), port, grant: grant.clone(), rules: (**rules).clone() })
    }

    /// What is known of a command, for the log.
    fn subject(&self, asked: GitAsked) -> Subject {
        let user = self.rules.user.clone();
        Subject {
            git: Some(GitAsked { user, ..asked }),
            ..Subject::connection(PROTOCOL, self.host.to_string(), self.port)
        }
    }

    fn untrusted(&self) -> bool {
        self.grant.trust == Trust::Untrusted
    }
}

/// A session as all of its parts see it.
struct Session {
    gate: Arc<Gate>,
    host: HostName,
    port: u16,
    _place: Option<OwnedSemaphorePermit>,
}

impl Session {
    /// Records what is denied whatever the policy says.
    async fn deny(&self, code: &'static str, why: &str, other: &str) -> CallId {
        let gate = self.gate.latest();
        let other = Some(other.chars().take(256).collect::<String>()).filter(|other| !other.is_empty());
        let asked = GitAsked { other, ..GitAsked::default() };
        let subject = match Target::of(&gate.policy, &self.host, self.port) {
            Some(target) => target.subject(asked),
            None => Subject::connection(PROTOCOL, self.host.to_string(), self.port),
        };
        gate.recorder.deny(subject, &Denial::new(code, why)).await
    }
}

/// What the agent's client speaks with.
fn config(gate: &Gate, host: &HostName) -> Result<server::Config, &'static str> {
    let (key, certificate) = gate.authority.ssh().leaf(host)?;
    Ok(server::Config {
        server_id: SshId::Standard(ID.into()),
        methods: MethodSet::from(&[MethodKind::None][..]),
        auth_rejection_time: Duration::from_secs(1),
        keys: vec![key],
        certificates: vec![certificate],
        preferred: host::preferred(),
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: CHANNEL_BUFFER,
        max_auth_attempts: 6,
        inactivity_timeout: Some(IDLE),
        ..server::Config::default()
    })
}

/// Serves a connection to a host and port where a grant says that SSH is spoken.
pub async fn serve<S>(gate: Arc<Gate>, stream: S, host: HostName, port: u16)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let place = Arc::clone(&gate.git_sessions.0).try_acquire_owned();
    let full = place.is_err();
    let session = Arc::new(Session { gate: Arc::clone(&gate), host, port, _place: place.ok() });
    if full {
        session.deny("too_many_connections", "too many sessions over SSH are open", "").await;
        return;
    }
    let config = match config(&gate, &session.host) {
        Ok(config) => Arc::new(config),
        Err(why) => return drop(session.deny("no_certificate", why, "").await),
    };
    let (leash, stream) = leash::leash(stream);
    let (agent, let_in) = agent::Agent::new(Arc::clone(&session));
    let greeting = async {
        let mut running = server::run_stream(config, stream, agent).await?;
        tokio::select! {
            ended = &mut running => Err(ended.err().unwrap_or(russh::Error::Disconnect)),
            heard = let_in => heard.map(|()| running).map_err(|_| russh::Error::Disconnect),
        }
    };
    let mut running = match tokio::time::timeout(HANDSHAKE, greeting).await {
        Ok(Ok(running)) => running,
        Ok(Err(error)) => {
            let why = format!("no session over SSH came about: {error}");
            return drop(session.deny("protocol_unknown", &why, "").await);
        }
        Err(_) => return drop(session.deny("protocol_unknown", "the client takes too long to begin", "").await),
    };
    let allows = |policy: &Policy| Target::of(policy, &session.host, port).is_some();
    tokio::select! {
        // What came of it, its commands say.
        _ = &mut running => {}
        // Commands that run end by themselves then, and say so; none is begun.
        () = gate.until_denied(allows) => drop(tokio::time::timeout(FAREWELL, running).await),
    }
    drop(leash);
}
