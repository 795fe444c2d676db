//! A timer that is always near while calls are made.
//!
//! Whenever a timer is set that is due before all others, tokio wakes its own event loop: a write to an eventfd, and
//! another turn to read it. Each call sets some, and where few calls are open they are the nearest nearly always. Beside
//! one that is due within the second they never are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Nearer than all that a call sets.
const PERIOD: Duration = Duration::from_secs(1);

/// The timer; without calls there is none, and an idle gate sleeps.
pub(crate) struct Pulse(Arc<State>);

struct State {
    period: Duration,
    beats: AtomicBool,
    calls: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self::every(PERIOD)
    }
}

impl Pulse {
    fn every(period: Duration) -> Self {
        Self(Arc::new(State { period, beats: AtomicBool::new(false), calls: AtomicU64::new(0) }))
    }

    /// A call is made.
    pub(crate) fn beat(&self) {
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        if self.0.beats.load(Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.0.beats.swap(true, Ordering::Relaxed) {
            return;
        }
        let state = Arc::clone(&self.0);
        runtime.spawn(async move {
            let mut seen = 0;
            loop {
                let calls = state.calls.load(Ordering::Relaxed);
                if std::mem::replace(&mut seen, calls) == calls {
                    break;
                }
                tokio::time::sleep(state.period).await;
            }
            state.beats.store(false, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_beats_while_calls_are_made_and_rests_after() {
        let pulse = Pulse::every(Duration::from_millis(20));
        let beats = || pulse.0.beats.load(Ordering::Relaxed);
        for _ in 0..2 {
            pulse.beat();
            assert!(beats());
            while beats() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        assert_eq!(pulse.0.calls.load(Ordering::Relaxed), 2);
    }
}
