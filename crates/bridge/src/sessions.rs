//! Who speaks to which process.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::Server;
use crate::process::Process;

/// Sessions at a time.
const MAX_SESSIONS: usize = 64;

/// A session that nobody uses for so long ends.
const FORGOTTEN: Duration = Duration::from_secs(30 * 60);

/// All sessions.
pub struct Sessions {
    server: Server,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    named: BTreeMap<String, Arc<Process>>,
    /// For calls that name no session.
    shared: Option<Arc<Process>>,
}

impl Sessions {
    /// Sessions with `server`, none yet.
    #[must_use]
    pub fn new(server: Server) -> Self {
        Self { server, open: Mutex::default() }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a session.
    ///
    /// # Errors
    /// If there are too many, or the program cannot be run.
    pub fn begin(&self) -> io::Result<(String, Arc<Process>)> {
        let mut bytes = [0; 24];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let name = URL_SAFE_NO_PAD.encode(bytes);
        let mut open = self.open();
        open.named.retain(|_, process| !process.is_over());
        if open.named.len() >= MAX_SESSIONS {
            // The one that rests longest makes room, unless all are at work.
            let oldest = open.named.iter().filter_map(|(name, process)| Some((process.idle()?, name.clone()))).max();
            let Some((_, oldest)) = oldest else {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many sessions are at work"));
            };
            open.named.remove(&oldest).iter().for_each(|process| process.end());
        }
        let process = Process::start(&self.server, false)?;
        open.named.insert(name.clone(), Arc::clone(&process));
        Ok((name, process))
    }

    /// The process of a session.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<Arc<Process>> {
        let found = self.open().named.get(name).cloned();
        found.filter(|process| !process.is_over())
    }

    /// The process of calls that name no session.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn shared(&self) -> io::Result<Arc<Process>> {
        let mut open = self.open();
        if let Some(process) = open.shared.as_ref().filter(|process| !process.is_over()) {
            return Ok(Arc::clone(process));
        }
        let process = Process::start(&self.server, true)?;
        open.shared = Some(Arc::clone(&process));
        Ok(process)
    }

    /// Ends a session; `false` if there is none of that name.
    #[must_use]
    pub fn end(&self, name: &str) -> bool {
        let ended = self.open().named.remove(name);
        ended.iter().for_each(|process| process.end());
        ended.is_some()
    }

    /// Ends, for ever, sessions that nobody uses.
    pub async fn expire(self: Arc<Self>) {
        loop {
            tokio::time::sleep(FORGOTTEN / 10).await;
            let old = |process: &Arc<Process>| process.idle().is_some_and(|idle| idle > FORGOTTEN);
            let mut open = self.open();
            open.named.retain(|_, process| {
                let keep = !process.is_over() && !old(process);
                if !keep {
                    process.end();
                }
                keep
            });
            if let Some(process) = open.shared.take_if(|process| old(process)) {
                process.end();
            }
        }
    }
}
