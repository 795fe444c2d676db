//! A timer that is always near while calls are made, and what is done when none are.
//!
//! Whenever a timer is set that is due before all others, tokio wakes its own event loop: a write to an eventfd, and
//! another turn to read it. Each call sets some, and where few calls are open they are the nearest nearly always. Beside
//! one that is due within the second they never are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Nearer than all that a call sets.
const PERIOD: Duration = Duration::from_secs(1);

/// So many periods without work, and the gate rests.
const SILENT_PERIODS: u32 = 5;

/// The timer; without work there is none, and an idle gate sleeps.
pub(crate) struct Pulse(Arc<State>);

struct State {
    period: Duration,
    beats: AtomicBool,
    work: AtomicU64,
    rest: OnceLock<fn()>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self::every(PERIOD)
    }
}

impl Pulse {
    fn every(period: Duration) -> Self {
        let (beats, work, rest) = (AtomicBool::new(false), AtomicU64::new(0), OnceLock::new());
        Self(Arc::new(State { period, beats, work, rest }))
    }

    /// What is done each time that there was no work for a while; the first that is set stays.
    pub(crate) fn at_rest(&self, rest: fn()) {
        let _ = self.0.rest.set(rest);
    }

    /// There is work.
    pub(crate) fn beat(&self) {
        self.0.work.fetch_add(1, Ordering::Relaxed);
        if self.0.beats.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.0.beats.swap(true, Ordering::Relaxed) {
            return;
        }
        let state = Arc::clone(&self.0);
        runtime.spawn(async move {
            let (mut seen, mut silent) = (0, 0);
            while silent < SILENT_PERIODS {
                tokio::time::sleep(state.period).await;
                let work = state.work.load(Ordering::Relaxed);
                silent = if std::mem::replace(&mut seen, work) == work { silent + 1 } else { 0 };
            }
            state.beats.store(false, Ordering::Relaxed);
            if let Some(rest) = state.rest.get() {
                rest();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static RESTS: AtomicU64 = AtomicU64::new(0);

    #[tokio::test]
    async fn it_beats_while_there_is_work_and_rests_after() {
        let pulse = Pulse::every(Duration::from_millis(5));
        pulse.at_rest(|| _ = RESTS.fetch_add(1, Ordering::Relaxed));
        let beats = || pulse.0.beats.load(Ordering::Relaxed);
        for rests in 0..2 {
            pulse.beat();
            assert!(beats());
            assert_eq!(RESTS.load(Ordering::Relaxed), rests);
            while RESTS.load(Ordering::Relaxed) == rests {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert!(!beats(), "an idle gate has no timer");
        }
    }
}
