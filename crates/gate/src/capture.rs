//! Bodies that are kept as evidence, where a grant asks for it: encrypted while they go by, for whoever holds a key that
//! is not on this host.
//!
//! Kept is what the agent sent before a secret was put into it, and what it got after secrets were taken out. The
//! outcome of the call has the digest of what was kept. Where nothing asks for it, nothing is done.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use ringfence_audit::CapturedBody;
use ringfence_audit::age::{self, Sealer};
use ringfence_audit::capture::{self, HEAD_BYTES, Way};
use ringfence_model::digest::Hasher;
use ringfence_model::manifest::{Capture, Recipient};
use ringfence_model::{Bytes as Size, CallId};
use ringfence_policy::{Denial, Permit};

use crate::Gate;
use crate::record::Call;

/// Bodies that are captured at once. Each holds up to 64 KiB that are not encrypted yet.
const MAX_OPEN: usize = 1024;

/// Nothing more fits.
const FULL: &str = "capture_full";
/// It could not be written.
const FAILED: &str = "capture_failed";

/// Where the agent's captured bodies are kept. What is there stays; when it is full, nothing more is taken, so that an
/// agent cannot push out what it did before.
#[derive(Default)]
pub struct Store(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    file: Option<File>,
    most: u64,
    /// What bodies that are being captured may yet take.
    promised: u64,
    open: usize,
}

impl Store {
    /// Keeps up to `most` bytes in `file`, behind what whole parts are there.
    ///
    /// # Errors
    /// Whatever reading gives.
    pub fn keep_in(&self, file: File, most: Size) -> io::Result<()> {
        let whole = capture::whole_until(&file)?;
        if whole < (&file).seek(SeekFrom::End(0))? {
            file.set_len(whole)?;
        }
        let mut inner = self.inner();
        (inner.file, inner.most) = (Some(file), most.0);
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets room aside for a body of at most `bytes`.
    fn room(self: &Arc<Self>, recipients: usize, bytes: u64) -> Result<Room, &'static str> {
        let left = age::sealed_len(recipients, bytes) + (age::chunks(bytes) + 1) * HEAD_BYTES as u64;
        let mut inner = self.inner();
        let Some(mut file) = inner.file.as_ref() else { return Err(FAILED) };
        // The operator may have emptied it meanwhile.
        let used = file.seek(SeekFrom::End(0)).map_err(|_| FAILED)?;
        if inner.open >= MAX_OPEN || used.saturating_add(inner.promised).saturating_add(left) > inner.most {
            return Err(FULL);
        }
        inner.promised += left;
        inner.open += 1;
        Ok(Room { store: Arc::clone(self), left })
    }
}

/// Room that is set aside for one body.
struct Room {
    store: Arc<Store>,
    left: u64,
}

impl Room {
    /// Writes a part, whole or not at all.
    fn write(&mut self, call: &CallId, way: Way, part: &[u8]) -> io::Result<()> {
        let mut inner = self.store.inner();
        let takes = (HEAD_BYTES + part.len()) as u64;
        let left = self.left.checked_sub(takes).ok_or(io::ErrorKind::StorageFull)?;
        let mut file = inner.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let before = file.seek(SeekFrom::End(0))?;
        if let Err(error) = capture::write(&mut file, call, way, part) {
            // What is torn would hide what comes behind it.
            file.set_len(before)?;
            return Err(error);
        }
        self.left = left;
        inner.promised = inner.promised.saturating_sub(takes);
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut inner = self.store.inner();
        inner.promised = inner.promised.saturating_sub(self.left);
        inner.open -= 1;
    }
}

/// What is to be captured of a call that is not made yet.
pub struct Wanted {
    request: Option<Room>,
    response: Option<Room>,
    rules: Capture,
    missed: Option<&'static str>,
}

/// What is being captured of a call.
#[derive(Default)]
pub struct Seals {
    /// Of what the agent sends.
    pub request: Option<Box<Seal>>,
    /// Of what it gets.
    pub response: Option<Box<Seal>>,
}

impl Wanted {
    /// What the grant of a call asks for, with room for it. `length`: of the request, where it is known.
    ///
    /// # Errors
    /// A denial, if there is no room and the grant says that there must be.
    pub fn of(gate: &Gate, permit: &Permit, length: Option<usize>) -> Result<Option<Self>, Denial> {
        let Some(rules) = gate.grant(permit).and_then(|grant| grant.capture.as_ref()) else { return Ok(None) };
        let mut missed = None;
        let mut room = |asked: bool, bytes: u64| {
            let room = asked.then(|| gate.captures.room(rules.to.len(), bytes));
            room.and_then(|room| room.map_err(|why| missed = Some(why)).ok())
        };
        let most = rules.most.0;
        let request = room(rules.request, length.map_or(most, |length| most.min(length as u64)));
        let response = room(rules.response, most);
        match missed {
            Some(why) if rules.required => {
                let words = "the grant requires that the call is captured, and there is no room for it";
                Err(Denial::new(why, words))
            }
            _ => Ok(Some(Self { request, response, rules: rules.clone(), missed })),
        }
    }

    /// Begins, now that the call has an id.
    #[must_use]
    pub fn begin(self, call: &Arc<Call>) -> Seals {
        let Self { request, response, rules, missed } = self;
        if let Some(why) = missed {
            call.not_captured(why);
        }
        let seal = |room: Option<Room>, way| {
            room.map(|room| {
                Box::new(Seal {
                    call: Arc::clone(call),
                    room,
                    way,
                    to: rules.to.clone(),
                    required: rules.required,
                    left: rules.most.0,
                    sealer: None,
                    written: Hasher::new(),
                    captured: 0,
                    held: 0,
                    cut: false,
                })
            })
        };
        Seals { request: seal(request, Way::Request), response: seal(response, Way::Response) }
    }
}

impl Seals {
    /// Captures a request that is there as a whole, before any of it leaves.
    ///
    /// # Errors
    /// Why the call must not be made.
    pub fn whole_request(&mut self, body: &Bytes) -> Result<(), String> {
        let Some(mut seal) = self.request.take() else { return Ok(()) };
        seal.push(body)?;
        seal.finish().map_err(str::to_owned)
    }
}

/// A body that is being captured. One that is dropped before its end is captured as far as it went by.
pub struct Seal {
    call: Arc<Call>,
    room: Room,
    way: Way,
    to: Vec<Recipient>,
    required: bool,
    /// How much more of the body may be captured.
    left: u64,
    /// None before the first byte, and after the end.
    sealer: Option<Sealer>,
    /// What was written of the file, by digest and length.
    written: Hasher,
    captured: u64,
    /// How much of the body that is.
    held: u64,
    cut: bool,
}

/// Why a body breaks off that must be captured.
const BROKEN: &str = "capture_failed: the body could not be captured, and the grant requires it";

impl Seal {
    /// Takes what goes by.
    ///
    /// # Errors
    /// Why it must not go on.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.cut |= fits < bytes.len();
        let Some(bytes) = bytes.get(..fits).filter(|bytes| !bytes.is_empty()) else { return Ok(()) };
        let mut out = Vec::new();
        let sealed = match &mut self.sealer {
            Some(sealer) => sealer.push(bytes, &mut out),
            None => {
                Sealer::begin(&self.to, &mut out).and_then(|sealer| self.sealer.insert(sealer).push(bytes, &mut out))
            }
        };
        self.left -= fits as u64;
        self.held += fits as u64;
        sealed.map_err(io::Error::other).and_then(|()| self.write(&out)).or_else(|error| self.fail(&error))
    }

    /// All of it went by.
    ///
    /// # Errors
    /// Why it must not count as gone by.
    pub fn finish(&mut self) -> Result<(), &'static str> {
        let Some(sealer) = self.sealer.take() else { return Ok(()) };
        let mut out = Vec::new();
        let sealed = sealer.finish(&mut out).map_err(io::Error::other);
        sealed.and_then(|()| self.write(&out)).or_else(|error| self.fail(&error))?;
        if self.captured > 0 {
            let digest = std::mem::take(&mut self.written).finish();
            let body = CapturedBody { bytes: self.captured, digest, holds: self.held, cut: self.cut };
            self.call.captured(self.way, body);
        }
        Ok(())
    }

    fn write(&mut self, out: &[u8]) -> io::Result<()> {
        if !out.is_empty() {
            self.room.write(self.call.id(), self.way, out)?;
            self.written.update(out);
            self.captured += out.len() as u64;
        }
        Ok(())
    }

    /// Gives the capture up, and the call with it if the grant says so.
    fn fail(&mut self, error: &io::Error) -> Result<(), &'static str> {
        tracing::error!(%error, "a body could not be captured");
        self.call.not_captured(FAILED);
        (self.sealer, self.left, self.captured) = (None, 0, 0);
        if self.required { Err(BROKEN) } else { Ok(()) }
    }
}

impl Drop for Seal {
    fn drop(&mut self) {
        if self.sealer.is_some() {
            self.cut = true;
            // Nothing more goes by that could be stopped.
            let _ = self.finish();
        }
    }
}
