//! The conversation with the agent's client: what it may ask for is handed on, and all else is answered with no.

use std::sync::Arc;

use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session as Talk};
use russh::{Channel, ChannelId, ChannelOpenFailure, Error, Pty};
use tokio::sync::{Semaphore, oneshot};

use super::{MAX_CHANNELS, Session, exec};

/// The code of what is denied whatever the policy says.
pub(super) const NOT_GRANTED: &str = "command_not_granted";

/// Why a connection is not led on.
const FORWARDING: &str = "no connection is led on through a git host";

/// The agent's side of a session.
pub(super) struct Agent {
    session: Arc<Session>,
    /// Whoever waits for the client to be let in.
    let_in: Option<oneshot::Sender<()>>,
    channels: Arc<Semaphore>,
}

impl Agent {
    /// One, and what is heard once it is let in.
    pub(super) fn new(session: Arc<Session>) -> (Self, oneshot::Receiver<()>) {
        let (let_in, heard) = oneshot::channel();
        (Self { session, let_in: Some(let_in), channels: Arc::new(Semaphore::new(MAX_CHANNELS)) }, heard)
    }

    async fn no(&self, why: &str, other: &str) {
        self.session.deny(NOT_GRANTED, why, other).await;
    }
}

impl Handler for Agent {
    type Error = Error;

    /// Who it is, the sandbox says; whichever user it names, the grant's is used.
    async fn auth_none(&mut self, _: &str) -> Result<Auth, Error> {
        // Nobody waits any more if it took too long; then the connection is cut.
        let _ = self.let_in.take().map(|let_in| let_in.send(()));
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Talk,
    ) -> Result<(), Error> {
        match Arc::clone(&self.channels).try_acquire_owned() {
            Ok(place) => {
                reply.accept().await;
                tokio::spawn(exec::serve(Arc::clone(&self.session), channel, place));
            }
            Err(_) => reply.reject(ChannelOpenFailure::ResourceShortage).await,
        }
        Ok(())
    }

    // What is asked for on a channel, the channel hears too. Only the answer is given here, since the library keeps one
    // answer that is due for each channel.
    async fn exec_request(&mut self, channel: ChannelId, _: &[u8], talk: &mut Talk) -> Result<(), Error> {
        talk.channel_success(channel)
    }

    // A yes, so that there is somebody who can be told why not.
    async fn shell_request(&mut self, channel: ChannelId, talk: &mut Talk) -> Result<(), Error> {
        talk.channel_success(channel)
    }

    async fn subsystem_request(&mut self, channel: ChannelId, _: &str, talk: &mut Talk) -> Result<(), Error> {
        talk.channel_success(channel)
    }

    async fn env_request(&mut self, channel: ChannelId, _: &str, _: &str, talk: &mut Talk) -> Result<(), Error> {
        talk.channel_failure(channel)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        talk: &mut Talk,
    ) -> Result<(), Error> {
        self.no("no terminal is opened", "pty-req").await;
        talk.channel_failure(channel)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        talk: &mut Talk,
    ) -> Result<(), Error> {
        self.no(FORWARDING, "x11-req").await;
        talk.channel_failure(channel)
    }

    async fn agent_request(&mut self, _: ChannelId, _: &mut Talk) -> Result<bool, Error> {
        self.no("no keys of the agent's are asked for", "auth-agent-req@openssh.com").await;
        Ok(false)
    }

    // A reply that is dropped says no.
    async fn channel_open_x11(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Talk,
    ) -> Result<(), Error> {
        self.no(FORWARDING, "x11").await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        _: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Talk,
    ) -> Result<(), Error> {
        self.no(FORWARDING, &format!("direct-tcpip {host}:{port}")).await;
        Ok(())
    }

    async fn channel_open_forwarded_tcpip(
        &mut self,
        _: Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _: ChannelOpenHandle,
        _: &mut Talk,
    ) -> Result<(), Error> {
        self.no(FORWARDING, "forwarded-tcpip").await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        _: Channel<Msg>,
        path: &str,
        _: ChannelOpenHandle,
        _: &mut Talk,
    ) -> Result<(), Error> {
        self.no(FORWARDING, &format!("direct-streamlocal {path}")).await;
        Ok(())
    }

    async fn tcpip_forward(&mut self, host: &str, port: &mut u32, _: &mut Talk) -> Result<bool, Error> {
        self.no(FORWARDING, &format!("tcpip-forward {host}:{port}")).await;
        Ok(false)
    }

    async fn streamlocal_forward(&mut self, path: &str, _: &mut Talk) -> Result<bool, Error> {
        self.no(FORWARDING, &format!("streamlocal-forward {path}")).await;
        Ok(false)
    }
}
