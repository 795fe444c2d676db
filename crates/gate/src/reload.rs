//! A policy takes the place of another while calls are made.
//!
//! A gate never changes. A new policy makes a new gate, which shares with the old one what outlives a policy: names that
//! were given out, the authority, the recorder, the counters. From then on each request, lookup and connection is decided
//! by the new one, also on connections that were open before. A policy that is not right makes none, and the old one stays.

use std::sync::{Arc, PoisonError, RwLock};

use ringfence_model::{Fault, Report};
use ringfence_policy::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::config::{NewPolicy, Ready};
use crate::{Gate, GateError};

/// The largest configuration that is taken.
const MAX_CONFIG_BYTES: u32 = 16 << 20;

/// The gate that counts now, as all that came before it know.
pub struct Current {
    newer: RwLock<Option<Arc<Gate>>>,
    changes: watch::Sender<u64>,
}

impl Default for Current {
    fn default() -> Self {
        Self { newer: RwLock::default(), changes: watch::Sender::new(0) }
    }
}

impl Gate {
    /// The gate that took the place of this one, if one did.
    pub(crate) fn newer(&self) -> Option<Arc<Self>> {
        self.current.newer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The gate that decides now.
    #[must_use]
    pub fn latest(self: &Arc<Self>) -> Arc<Self> {
        self.newer().unwrap_or_else(|| Arc::clone(self))
    }

    /// Puts another policy in force.
    ///
    /// # Errors
    /// [`GateError`]; the policy that is in force stays so.
    pub fn reload(self: &Arc<Self>, policy: &NewPolicy) -> Result<(), GateError> {
        let next = self.latest().with(policy)?;
        *self.current.newer.write().unwrap_or_else(PoisonError::into_inner) = Some(next);
        self.current.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Ends once a later policy no longer allows what `allows` asks it about; of what runs on without being asked again.
    pub(crate) async fn until_denied(self: &Arc<Self>, allows: impl Fn(&Policy) -> bool) {
        let mut changes = self.current.changes.subscribe();
        // The policy may have changed while the way to the upstream was opened.
        while allows(&self.latest().policy) {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Takes policies from whoever started the gate: four bytes of length, lowest first, and a [`NewPolicy`] as JSON. Answers
/// each with a line of [`Ready`].
///
/// # Errors
/// If the channel breaks. The policy that is in force stays so.
pub async fn serve(gate: Arc<Gate>, mut channel: UnixStream) -> std::io::Result<()> {
    loop {
        let length = channel.read_u32_le().await?;
        if length > MAX_CONFIG_BYTES {
            return Err(std::io::Error::other("the configuration is too large"));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        channel.read_exact(&mut bytes).await?;
        let read = serde_json::from_slice::<NewPolicy>(&bytes);
        let answer = match read {
            Ok(policy) => match gate.reload(&policy) {
                Ok(()) => Ready::Up,
                Err(error) => Ready::Error(error.into()),
            },
            Err(error) => {
                let report = Report::new("gate.config", Fault::Us, "cannot read the gate's new policy");
                Ready::Error(report.because(&error))
            }
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        channel.write_all(&line).await?;
    }
}
