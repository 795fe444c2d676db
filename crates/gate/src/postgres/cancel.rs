//! A session's statement is given up, by a connection of its own that names the session by number and key.
//!
//! Agents never learn a server's own number and key: they get others, which mean a session of this gate and nothing
//! elsewhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence_audit::SqlAsked;
use ringfence_model::HostName;
use ringfence_policy::Denial;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::wire::{self, Message};
use super::{Target, startup};
use crate::dial::Route;
use crate::record::Call;
use crate::{Gate, decide};

/// How long a server may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Which sessions are open, by the number and key that their agents know.
#[derive(Clone, Default)]
pub struct Sessions(Arc<Mutex<HashMap<(u32, u32), Known>>>);

#[derive(Clone)]
struct Known {
    host: HostName,
    port: u16,
    way: Route,
    pid: u32,
    key: Vec<u8>,
}

/// A session's entry, for as long as it is open.
pub struct Entry {
    sessions: Sessions,
    id: (u32, u32),
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.sessions.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

impl Sessions {
    /// Enters a session, and gives the number and key that its agent may know.
    ///
    /// # Errors
    /// If the random generator fails.
    pub(super) fn enter(
        &self,
        target: &Target,
        way: &Route,
        (pid, key): (u32, Vec<u8>),
    ) -> Result<(Entry, u32, u32), String> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let mut random = [0; 8];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| "random: the random generator failed")?;
            let number = u64::from_be_bytes(random);
            let id = ((number >> 33) as u32, u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0));
            if sessions.contains_key(&id) {
                continue;
            }
            let (host, port) = (target.host.clone(), target.port);
            sessions.insert(id, Known { host, port, way: way.clone(), pid, key });
            return Ok((Entry { sessions: self.clone(), id }, id.0, id.1));
        }
    }

    fn known(&self, target: &Target, pid: u32, key: &[u8]) -> Option<Known> {
        let key = u32::from_be_bytes(key.try_into().ok()?);
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(&(pid, key)).filter(|known| known.host == target.host && known.port == target.port).cloned()
    }
}

/// Has a server give up what one of this agent's own sessions does. No answer is due.
pub(super) async fn serve(gate: &Gate, target: &Target, pid: u32, key: &[u8]) {
    let asked = SqlAsked { classes: vec!["session".into()], verbs: vec!["cancel".into()], ..SqlAsked::default() };
    let subject = target.subject(asked);
    let decided = gate
        .sessions
        .known(target, pid, key)
        .ok_or_else(|| Denial::new("unknown_session", "it names no open session of this agent with this host"))
        .and_then(|known| Ok((known, decide::statement(&gate.policy, &target.host, target.port, &["session"], &[])?)));
    let (known, permit) = match decided {
        Ok(decided) => decided,
        Err(denial) => return drop(gate.recorder.deny(subject, &denial).await),
    };
    // An intent that cannot be recorded is not carried out; `allow` has said so.
    let Ok(call) = gate.recorder.allow(subject, &permit, target.untrusted()).await else { return };
    match tokio::time::timeout(TIMEOUT, pass_on(gate, target, &known, &call)).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => call.failed(why),
        Err(_) => call.failed("upstream_timeout: the database took too long"),
    }
}

async fn pass_on(gate: &Gate, target: &Target, known: &Known, call: &Call) -> Result<(), String> {
    // The session's own way, which was checked when it was opened.
    let (stream, address) = gate.dialler.connect(&known.way).await?;
    call.address(address);
    let (mut io, _) = startup::encrypted(gate, target, stream).await?;
    let message = Message::untyped().u32(wire::CANCEL_REQUEST).u32(known.pid).bytes(&known.key).finish();
    let message = message.ok_or("upstream_broke: a message is too long")?;
    io.write_all(&message).await.map_err(|e| format!("upstream_broke: {e}"))?;
    io.flush().await.map_err(|e| format!("upstream_broke: {e}"))?;
    // The server closes once it has done so; how it closes is no matter.
    let _ = io.read(&mut [0; 1]).await;
    Ok(())
}
