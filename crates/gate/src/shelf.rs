//! How much of what must be whole to be understood a gate holds at once: bodies, messages, statements. Each has a bound of
//! its own; this is the bound of all of them together, so that many large ones wait for each other and not for the kernel
//! to end the gate.
//!
//! It is taken up as bytes come, so that what is small costs next to nothing, and given back when they have gone on. What
//! waits for more while it holds some could wait for ever for others that do the same, so nothing waits for long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What a gate holds at once, counted in KiB; and what is made of it on its way, a few times as much at worst, has room in
/// the memory that a gate may have.
pub const MAX_HELD_BYTES: usize = 64 << 20;

/// How long one call, message or answer waits in all for others to end, and how much longer some do: where one that gives
/// up is enough for the others, not all do so at once.
pub const PATIENCE: Duration = Duration::from_secs(2);
const SPREAD: Duration = Duration::from_millis(500);

/// Why something is not held.
pub(crate) const FULL: &str = "too_many_bodies";

const KIB: usize = 1024;

/// What is left of the room for what is held.
pub(crate) struct Shelf {
    free: Arc<Semaphore>,
    all: usize,
}

/// What one call, message or answer holds.
pub(crate) struct Load {
    free: Arc<Semaphore>,
    taken: Option<Arc<Taken>>,
    patience: Duration,
    waiting: Option<Waiting>,
}

type Waiting = Pin<Box<dyn Future<Output = (Result<OwnedSemaphorePermit, Full>, Duration)> + Send + Sync>>;

/// Room that is free again once nobody has it any more.
struct Taken {
    free: Arc<Semaphore>,
    kib: AtomicUsize,
}

/// There was no room for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gate holds {} MiB of bodies that must be whole; make fewer large calls at once", MAX_HELD_BYTES >> 20)]
pub(crate) struct Full;

impl Full {
    /// The same for an outcome: its code, a colon, and why.
    pub(crate) fn why(self) -> String {
        format!("{FULL}: {self}")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.free.add_permits(self.kib.load(Ordering::Relaxed));
    }
}

impl Shelf {
    /// An empty one. Only tests have one without a bound.
    pub(crate) fn new(bounded: bool) -> Self {
        let all = if bounded { MAX_HELD_BYTES / KIB } else { Semaphore::MAX_PERMITS };
        Self { free: Arc::new(Semaphore::new(all)), all }
    }

    /// Nothing yet.
    pub(crate) fn load(&self) -> Load {
        Load { free: Arc::clone(&self.free), taken: None, patience: PATIENCE, waiting: None }
    }

    /// What is held now, in bytes.
    pub(crate) fn held(&self) -> usize {
        (self.all - self.free.available_permits()) * KIB
    }
}

impl Load {
    /// How much more is needed to hold so many bytes.
    fn missing(&self, bytes: usize) -> Option<u32> {
        let has = self.taken.as_ref().map_or(0, |taken| taken.kib.load(Ordering::Relaxed));
        let more = bytes.div_ceil(KIB).checked_sub(has).filter(|more| *more > 0)?;
        Some(u32::try_from(more).unwrap_or(u32::MAX))
    }

    fn take(&mut self, permit: OwnedSemaphorePermit) {
        let more = permit.num_permits();
        permit.forget();
        match &self.taken {
            Some(taken) => drop(taken.kib.fetch_add(more, Ordering::Relaxed)),
            None => self.taken = Some(Arc::new(Taken { free: Arc::clone(&self.free), kib: more.into() })),
        }
    }

    /// Holds so many bytes in all, once there is room.
    ///
    /// # Errors
    /// [`Full`], if there is none for a while.
    pub(crate) async fn hold(&mut self, bytes: usize) -> Result<(), Full> {
        std::future::poll_fn(|cx| self.poll_hold(cx, bytes)).await
    }

    /// As [`Load::hold`].
    pub(crate) fn poll_hold(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<Result<(), Full>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                let (got, left) = ready!(waiting.as_mut().poll(cx));
                (self.waiting, self.patience) = (None, left);
                self.take(got?);
            }
            let Some(more) = self.missing(bytes) else { return Poll::Ready(Ok(())) };
            match Arc::clone(&self.free).try_acquire_many_owned(more) {
                Ok(permit) => self.take(permit),
                Err(_) => self.waiting = Some(Box::pin(wait(Arc::clone(&self.free), more, self.patience))),
            }
        }
    }

    /// Holds no more than so many bytes any longer; whoever has nothing left has all its patience again.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if bytes == 0 {
            (self.taken, self.patience, self.waiting) = (None, PATIENCE, None);
        }
        let Some(taken) = &self.taken else { return };
        let (has, keeps) = (taken.kib.load(Ordering::Relaxed), bytes.div_ceil(KIB));
        if let Some(less) = has.checked_sub(keeps).filter(|less| *less > 0) {
            taken.kib.store(keeps, Ordering::Relaxed);
            self.free.add_permits(less);
        }
    }

    /// Bytes that are held for as long as anybody has them, even when this holds nothing any more.
    pub(crate) fn around(&self, bytes: Bytes) -> Bytes {
        match &self.taken {
            Some(taken) if !bytes.is_empty() => Bytes::from_owner(Held { bytes, _taken: Arc::clone(taken) }),
            _ => bytes,
        }
    }
}

async fn wait(free: Arc<Semaphore>, more: u32, patience: Duration) -> (Result<OwnedSemaphorePermit, Full>, Duration) {
    let more_patience = if patience == PATIENCE { SPREAD.mul_f32(random()) } else { Duration::ZERO };
    let until = Instant::now() + patience + more_patience;
    let got = tokio::time::timeout_at(until, free.acquire_many_owned(more)).await;
    let got = got.ok().and_then(Result::ok).ok_or(Full);
    (got, until.saturating_duration_since(Instant::now()))
}

/// From nought to one.
fn random() -> f32 {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f32::from(u8::from_le_bytes(byte)) / 255.0
}

struct Held {
    bytes: Bytes,
    _taken: Arc<Taken>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[tokio::test]
    async fn what_is_held_never_passes_the_bound_and_who_waits_goes_on() {
        let shelf = Shelf::new(true);
        let mut loads: Vec<Load> = (0..20).map(|_| shelf.load()).collect();
        // Each has a part, and none of them can have all of what it wants.
        for mib in 1..=3 {
            for load in &mut loads {
                load.hold(mib * MIB).await.unwrap();
            }
        }
        assert_eq!(shelf.held(), 60 * MIB);
        let shelf = Arc::new(shelf);
        let rest = loads.into_iter().map(|mut load| {
            let shelf = Arc::clone(&shelf);
            tokio::spawn(async move {
                let held = load.hold(4 * MIB).await;
                assert!(shelf.held() <= MAX_HELD_BYTES);
                held.is_ok()
            })
        });
        let mut whole = 0;
        for one in rest.collect::<Vec<_>>() {
            whole += usize::from(one.await.unwrap());
        }
        assert_eq!(whole, 20, "each that ended made room for another");
        assert_eq!(shelf.held(), 0);
    }

    #[tokio::test]
    async fn who_waits_too_long_gives_up_and_the_others_go_on() {
        let shelf = Shelf::new(true);
        let (mut one, mut two) = (shelf.load(), shelf.load());
        one.hold(40 * MIB).await.unwrap();
        two.hold(20 * MIB).await.unwrap();
        // Each has what the other wants.
        let more = |mut load: Load| async move { load.hold(60 * MIB).await.map(|()| load) };
        let mut kept = match tokio::join!(more(one), more(two)) {
            (Ok(kept), Err(Full)) | (Err(Full), Ok(kept)) => kept,
            (one, two) => panic!("{} {}", one.is_ok(), two.is_ok()),
        };
        assert_eq!(shelf.held(), 60 * MIB);
        kept.shrink(MIB);
        assert_eq!(shelf.held(), MIB);
        kept.shrink(0);
        assert_eq!(shelf.held(), 0);
    }

    #[tokio::test]
    async fn patience_is_for_all_of_a_load_and_comes_back_with_the_last_byte() {
        let shelf = Shelf::new(true);
        let (mut all, mut late) = (shelf.load(), shelf.load());
        all.hold(MAX_HELD_BYTES).await.unwrap();
        for patience in [PATIENCE, Duration::ZERO] {
            let started = Instant::now();
            assert_eq!(late.hold(1).await, Err(Full));
            assert!(started.elapsed() >= patience && started.elapsed() < patience + 2 * SPREAD);
        }
        late.shrink(0);
        assert_eq!(late.patience, PATIENCE);
    }

    #[tokio::test]
    async fn bytes_are_held_for_as_long_as_somebody_has_them() {
        let shelf = Shelf::new(true);
        let mut load = shelf.load();
        load.hold(3).await.unwrap();
        let bytes = load.around(Bytes::from_static(b"abc"));
        drop(load);
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!((&part[..], shelf.held()), (&b"bc"[..], KIB));
        drop(part);
        assert_eq!(shelf.held(), 0);
    }

    #[tokio::test]
    async fn without_the_bound_more_is_held() {
        let shelf = Shelf::new(false);
        let mut load = shelf.load();
        load.hold(2 * MAX_HELD_BYTES).await.unwrap();
        assert_eq!(shelf.held(), 2 * MAX_HELD_BYTES);
    }
}
