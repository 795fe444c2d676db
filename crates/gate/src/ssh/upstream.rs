//! The way to a git host: its key first, then the brokered one, then the one command.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence_model::HostName;
use ringfence_policy::Permit;
use russh::client::{self, AuthResult, Handle, Msg};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Names, SshId, cipher};

use super::command::Command;
use super::host::Known;
use super::leash::{Leash, leash};
use super::{CHANNEL_BUFFER, ID, PACKET, Target, WINDOW};
use crate::Gate;
use crate::dial::Route;
use crate::record::Call;
use crate::tcp::IDLE;

/// How long a host may take until the command runs.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A command that runs on a git host.
pub(super) struct Running {
    pub(super) from: ChannelReadHalf,
    pub(super) to: ChannelWriteHalf<Msg>,
    // The session ends with them.
    _session: Handle<Host>,
    _leash: Leash,
}

/// What the host is held against.
pub(super) struct Host {
    name: HostName,
    known: Known,
    /// Why the host was refused, which the library has no words for.
    refused: Arc<Mutex<Option<String>>>,
}

impl Host {
    fn refuse(&self, why: String) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }
}

/// A channel that a host asks for is not opened.
async fn none(reply: client::ChannelOpenHandle) -> Result<(), russh::Error> {
    reply.reject(russh::ChannelOpenFailure::AdministrativelyProhibited).await;
    Ok(())
}

impl client::Handler for Host {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let checked = self.known.check(&self.name, shown);
        checked.as_ref().err().into_iter().for_each(|why| self.refuse(format!("host_key_unknown: {why}")));
        Ok(checked.is_ok())
    }

    async fn kex_done(&mut self, _: Option<&[u8]>, names: &Names, _: &mut client::Session) -> Result<(), russh::Error> {
        // CVE-2023-48795: without strict key exchange, packets before it may have been dropped under this cipher.
        if names.cipher == cipher::CHACHA20_POLY1305 && !names.strict_kex() {
            self.refuse(
                "ssh_failed: the host does not count packets from the first on, and offers no cipher that bears it"
                    .into(),
            );
            return Err(russh::Error::KexInit);
        }
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        none(reply).await
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        none(reply).await
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: Channel<Msg>,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        none(reply).await
    }

    async fn server_channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        none(reply).await
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        none(reply).await
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        none(reply).await
    }

    async fn server_channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        reply: client::ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), russh::Error> {
        none(reply).await
    }
}

fn config(known: &Known) -> client::Config {
    client::Config {
        client_id: SshId::Standard(ID.into()),
        preferred: known.preferred(),
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: CHANNEL_BUFFER,
        inactivity_timeout: Some(IDLE),
        ..client::Config::default()
    }
}

/// Dials, and has the host run a command.
///
/// # Errors
/// What failed, with a stable code before the first colon.
pub(super) async fn open(
    gate: &Gate,
    target: &Target,
    permit: &Permit,
    way: &Route,
    (command, version): (&Command, Option<&str>),
    call: &Call,
) -> Result<Running, String> {
    let (stream, address) = gate.dialler.connect(way).await?;
    call.address(address);
    let (leash, stream) = leash(stream);
    let refused = Arc::new(Mutex::new(None));
    let opening = async {
        let known = Known::read(&target.rules).map_err(|why| format!("host_key_unknown: {why}"))?;
        let config = Arc::new(config(&known));
        let host = Host { name: target.host.clone(), known, refused: Arc::clone(&refused) };
        let broke = |error: russh::Error| format!("ssh_failed: {error}");
        let mut session = client::connect_stream(config, stream, host).await.map_err(broke)?;
        let credential = permit.credential().and_then(|name| gate.credentials.get(name));
        let key = credential.and_then(|credential| credential.ssh_key());
        let key = key.ok_or("no_lease: the grant's key was not leased")?;
        let shown = PrivateKeyWithHashAlg::new(key, None);
        match session.authenticate_publickey(&target.rules.user, shown).await.map_err(broke)? {
            AuthResult::Success => {}
            AuthResult::Failure { partial_success: true, .. } => {
                return Err("auth_failed: the host takes the key, and asks for something more".to_owned());
            }
            AuthResult::Failure { .. } => return Err("auth_failed: the host does not take the key".to_owned()),
        }
        let channel = session.channel_open_session().await.map_err(broke)?;
        if let Some(version) = version {
            channel.set_env(false, "GIT_PROTOCOL", version).await.map_err(broke)?;
        }
        channel.exec(true, command.line()).await.map_err(broke)?;
        let (mut from, to) = channel.split();
        loop {
            match from.wait().await {
                Some(ChannelMsg::Success) => return Ok(Running { from, to, _session: session, _leash: leash }),
                Some(ChannelMsg::WindowAdjusted { .. }) => {}
                Some(ChannelMsg::Failure) => {
                    return Err("upstream_refused: the host does not run the command".to_owned());
                }
                _ => return Err("ssh_failed: the host breaks off before the command runs".to_owned()),
            }
        }
    };
    let opened = tokio::time::timeout(TIMEOUT, opening).await;
    let opened = opened.unwrap_or_else(|_| Err("upstream_timeout: the host took too long to run the command".into()));
    opened.map_err(|why| refused.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(why))
}
