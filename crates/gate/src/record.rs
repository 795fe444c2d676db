//! Phase seven, and before phase six: the intent of a call before its first byte leaves, its outcome after.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use ringfence_audit::capture::Way;
use ringfence_audit::{
    CallIntent, CallOutcome, Captured, CapturedBody, Direction, Event, GitAsked, LlmAsked, LlmUsed, Outcome, Record,
    RecordError, RpcSaid, SqlAsked,
};
use ringfence_model::{CallId, Digest};
use ringfence_policy::{Denial, Permit};

use crate::pulse::Pulse;

/// Denials that are answered at once, per second; more have to wait for their answer.
const DENIALS_PER_SECOND: u32 = 200;

/// How often the same may be denied before its answers come later and later: an agent in a loop burns no more tokens than
/// it must, and has time to be noticed. It is forgotten after a while without.
const LOOP_AFTER: u32 = 20;
const LOOP_STEP: Duration = Duration::from_millis(100);
const LOOP_MOST: Duration = Duration::from_secs(2);
const LOOP_FORGOTTEN: Duration = Duration::from_secs(60);
const MAX_LOOPS: usize = 256;

/// The longest path that an entry carries, in bytes.
const MAX_PATH_BYTES: usize = 2048;

/// Records calls, and gives them their ids.
pub struct Recorder {
    log: Arc<dyn Record>,
    pace: Pace,
    loops: Mutex<HashMap<Again, (u32, Instant)>>,
    /// Whether somebody is about to settle what may wait.
    settling: AtomicBool,
    /// What was not put into the log yet: the last bytes of an answer need not wait for it.
    ended: Mutex<Vec<(Timestamp, CallOutcome)>>,
    /// Calls under way.
    open: AtomicUsize,
    pulse: Pulse,
    random: Mutex<Random>,
}

/// What makes a denial the same as one before: why, where, and by which method.
type Again = (&'static str, String, Option<String>);

/// What is known of a call before it is decided.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Which way.
    pub direction: Direction,
    /// `http/1.1`, `h2`, `websocket`, `tls-passthrough`, `tcp`, `postgres`, `ssh`.
    pub protocol: &'static str,
    /// Host as policy sees it.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Method, for HTTP.
    pub method: Option<String>,
    /// Path without query, for HTTP.
    pub path: Option<String>,
    /// Model named in the body.
    pub model: Option<String>,
    /// What it asks of a language model.
    pub llm: Option<LlmAsked>,
    /// The messages of MCP or A2A in it.
    pub rpc: Vec<RpcSaid>,
    /// The call that failed, if this one is made in its stead.
    pub after: Option<CallId>,
    /// The trace that it belongs to, and the span that it was made in.
    pub trace: Option<String>,
    /// What it asks of a database.
    pub sql: Option<SqlAsked>,
    /// What it asks of a git host.
    pub git: Option<GitAsked>,
}

impl Subject {
    /// A connection of which nothing but its destination is known.
    #[must_use]
    pub fn connection(protocol: &'static str, host: String, port: u16) -> Self {
        Self {
            direction: Direction::Egress,
            protocol,
            host,
            port,
            method: None,
            path: None,
            model: None,
            llm: None,
            rpc: Vec::new(),
            after: None,
            trace: None,
            sql: None,
            git: None,
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.settle();
    }
}

impl Recorder {
    /// Records to `log`.
    #[must_use]
    pub fn new(log: Arc<dyn Record>) -> Self {
        Self {
            log,
            pace: Pace::new(DENIALS_PER_SECOND),
            loops: Mutex::default(),
            settling: AtomicBool::new(false),
            ended: Mutex::default(),
            open: AtomicUsize::new(0),
            pulse: Pulse::default(),
            random: Mutex::default(),
        }
    }

    /// What is done each time that nothing was recorded for a while.
    pub(crate) fn at_rest(&self, rest: fn()) {
        self.pulse.at_rest(rest);
    }

    /// Records any event, now.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn event(&self, event: Event) -> Result<(), RecordError> {
        self.pulse.beat();
        self.put_ended();
        let done = self.log.record(Timestamp::now(), event).map(drop);
        if let Err(error) = &done {
            tracing::error!(%error, "cannot record");
        }
        done
    }

    /// Records how a call ended, at the latest when the event loop has done what is ready now: outcomes of one turn,
    /// and the intents among them, are one write.
    fn outcome(self: &Arc<Self>, outcome: CallOutcome) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).push((Timestamp::now(), outcome));
        if self.settling.swap(true, Ordering::AcqRel) {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(turn) => {
                let recorder = Arc::clone(self);
                turn.spawn(async move { recorder.settle() });
            }
            Err(_) => self.settle(),
        }
    }

    /// Puts outcomes into the log, which everything recorded after them has to follow.
    fn put_ended(&self) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        for (time, outcome) in ended.drain(..) {
            if let Err(error) = self.log.record_soon(time, Event::CallOutcome(outcome)) {
                // The call is over; the next intent will fail and stop the next call.
                tracing::error!(%error, "cannot record");
            }
        }
    }

    fn settle(&self) {
        self.settling.store(false, Ordering::Release);
        self.put_ended();
        if let Err(error) = self.log.settle() {
            tracing::error!(%error, "cannot record");
        }
    }

    /// Records that a call is about to be made, and follows it to its end.
    ///
    /// # Errors
    /// [`RecordError`]; the call must then not be made.
    pub async fn allow(
        self: &Arc<Self>,
        subject: Subject,
        permit: &Permit,
        untrusted: bool,
    ) -> Result<Arc<Call>, RecordError> {
        let mut intent = intent(self.new_id(), subject, Outcome::Allow);
        intent.reason = permit.reason().into();
        intent.why = permit.why().into();
        intent.rules = permit.rules().to_vec();
        intent.credential = permit.credential().map(str::to_owned);
        intent.trust = untrusted.then(|| "untrusted".into());
        self.begin(intent).await
    }

    /// Records that the gate itself is about to call, to get an access token for a credential.
    ///
    /// # Errors
    /// [`RecordError`]; the call must then not be made.
    pub async fn own(self: &Arc<Self>, subject: Subject, credential: &str) -> Result<Arc<Call>, RecordError> {
        let mut intent = intent(self.new_id(), subject, Outcome::Allow);
        intent.reason = "credential_token".into();
        intent.why = format!("the gate gets an access token for credential `{credential}`");
        intent.credential = Some(credential.to_owned());
        self.begin(intent).await
    }

    /// Intents of one turn of the event loop are one write: whoever is ready to call puts its own beside this one, before
    /// the first of them to go on writes all. A call that is the only one waits for no other.
    async fn begin(self: &Arc<Self>, intent: CallIntent) -> Result<Arc<Call>, RecordError> {
        self.pulse.beat();
        self.put_ended();
        let id = intent.call.clone();
        let recorded = self.log.record_soon(Timestamp::now(), Event::CallIntent(intent));
        let number = recorded.inspect_err(|error| tracing::error!(%error, "cannot record"))?;
        let call = Arc::new(Call {
            id,
            started: Instant::now(),
            recorder: Arc::clone(self),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            ending: Mutex::default(),
        });
        if self.open.fetch_add(1, Ordering::Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        if let Err(error) = self.log.durable(number) {
            tracing::error!(%error, "cannot record");
            // The intent may come into the log yet, and must not stand there as if it had been followed.
            call.failed("unrecorded: the intent could not be written, and the call was not made");
            return Err(error);
        }
        Ok(call)
    }

    /// Records a denial. A flood of them is slowed down, so that it cannot fill the disk.
    pub async fn deny(&self, subject: Subject, denial: &Denial) -> CallId {
        self.pace.wait().await;
        let held = self.looping(&subject, denial, Instant::now());
        let id = self.new_id();
        let mut intent = intent(id.clone(), subject, Outcome::Deny);
        intent.reason = denial.code.into();
        intent.why.clone_from(&denial.why);
        intent.rules.clone_from(&denial.rules);
        // Nothing is let through, so an entry that cannot be written stops nothing more; `event` says so.
        let _ = self.event(Event::CallIntent(intent));
        if !held.is_zero() {
            tokio::time::sleep(held).await;
        }
        id
    }

    /// How long the answer to a denial is held back, because the same was denied so often.
    fn looping(&self, subject: &Subject, denial: &Denial, now: Instant) -> Duration {
        // People who come in share nothing but the door: one must not be held up for another.
        if subject.direction == Direction::Ingress {
            return Duration::ZERO;
        }
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let again = (denial.code, subject.host.clone(), subject.method.clone());
        if loops.len() >= MAX_LOOPS && !loops.contains_key(&again) {
            loops.retain(|_, (_, last)| now.duration_since(*last) < LOOP_FORGOTTEN);
            if loops.len() >= MAX_LOOPS {
                loops.clear();
            }
        }
        let (count, last) = loops.entry(again).or_insert((0, now));
        if now.duration_since(*last) >= LOOP_FORGOTTEN {
            *count = 0;
        }
        *last = now;
        *count = count.saturating_add(1);
        (LOOP_STEP * count.saturating_sub(LOOP_AFTER)).min(LOOP_MOST)
    }

    fn new_id(&self) -> CallId {
        let random = self.random.lock().unwrap_or_else(PoisonError::into_inner).next();
        CallId::from_parts(u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0), random)
    }
}

/// Random numbers for ids, fetched for many ids at once.
#[derive(Default)]
struct Random {
    ready: Vec<[u8; 8]>,
}

impl Random {
    fn next(&mut self) -> [u8; 8] {
        if self.ready.is_empty() {
            let mut bytes = [0; 512];
            // Ids need not be secret, so the clock serves should the generator fail.
            if aws_lc_rs::rand::fill(&mut bytes).is_err() {
                return Timestamp::now().as_nanosecond().to_le_bytes().first_chunk().copied().unwrap_or_default();
            }
            self.ready = bytes.as_chunks().0.to_vec();
        }
        self.ready.pop().unwrap_or_default()
    }
}

fn intent(call: CallId, subject: Subject, decision: Outcome) -> CallIntent {
    let short = |text: String| match text.char_indices().nth(MAX_PATH_BYTES) {
        Some((at, _)) => text.get(..at).unwrap_or_default().to_owned(),
        None => text,
    };
    CallIntent {
        call,
        direction: subject.direction,
        protocol: subject.protocol.into(),
        host: subject.host,
        port: subject.port,
        method: subject.method,
        path: subject.path.map(short),
        model: subject.model,
        llm: subject.llm.map(Box::new),
        rpc: subject.rpc,
        sql: subject.sql.map(Box::new),
        git: subject.git.map(Box::new),
        decision,
        reason: String::new(),
        why: String::new(),
        rules: Vec::new(),
        credential: None,
        trust: None,
        after: subject.after,
        trace: subject.trace,
    }
}

/// An allowed call under way. When the last part of it is done or dropped, its outcome is recorded.
pub struct Call {
    id: CallId,
    started: Instant,
    recorder: Arc<Recorder>,
    up: AtomicU64,
    down: AtomicU64,
    ending: Mutex<Ending>,
}

#[derive(Default)]
struct Ending {
    status: Option<u16>,
    address: Option<Arc<str>>,
    error: Option<String>,
    findings: Vec<String>,
    llm: Option<LlmUsed>,
    digest_up: Option<Digest>,
    digest_down: Option<Digest>,
    captured: Option<Box<Captured>>,
}

impl Call {
    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &CallId {
        &self.id
    }

    /// Counts bytes towards the upstream.
    pub fn sent(&self, bytes: usize) {
        self.up.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes back.
    pub fn received(&self, bytes: usize) {
        self.down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes the digest of the body that went to the upstream, now that all of it has; the first stays.
    pub fn digest_up(&self, digest: Option<Digest>) {
        let mut ending = self.ending();
        ending.digest_up = ending.digest_up.or(digest);
    }

    /// Notes the digest of the body that came back, now that all of it has; the first stays.
    pub fn digest_down(&self, digest: Option<Digest>) {
        let mut ending = self.ending();
        ending.digest_down = ending.digest_down.or(digest);
    }

    /// Notes what was captured of one of its bodies.
    pub fn captured(&self, way: Way, body: CapturedBody) {
        let mut ending = self.ending();
        let captured = ending.captured.get_or_insert_default();
        match way {
            Way::Request => captured.request = Some(body),
            Way::Response => captured.response = Some(body),
        }
    }

    /// Notes why something was not captured; the first reason stays.
    pub fn not_captured(&self, why: &str) {
        self.ending().captured.get_or_insert_default().missed.get_or_insert_with(|| why.to_owned());
    }

    /// Notes the status of the answer.
    pub fn status(&self, status: u16) {
        self.ending().status = Some(status);
    }

    /// Notes the address that was dialled.
    pub fn address(&self, address: Arc<str>) {
        self.ending().address = Some(address);
    }

    /// Notes why it failed; the first reason stays.
    pub fn failed(&self, error: impl Into<String>) {
        self.ending().error.get_or_insert_with(|| error.into());
    }

    /// Notes what inspection found, each kind once.
    pub fn found(&self, finding: &str) {
        let mut ending = self.ending();
        if !ending.findings.iter().any(|f| f == finding) {
            ending.findings.push(finding.to_owned());
        }
    }

    /// Notes what a language model used.
    pub fn llm(&self, used: LlmUsed) {
        self.ending().llm = Some(used);
    }

    fn ending(&self) -> std::sync::MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.recorder.open.fetch_sub(1, Ordering::Relaxed);
        let ending = std::mem::take(&mut *self.ending());
        let outcome = CallOutcome {
            call: self.id.clone(),
            status: ending.status,
            bytes_up: self.up.load(Ordering::Relaxed),
            bytes_down: self.down.load(Ordering::Relaxed),
            duration_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            address: ending.address.map(|address| address.to_string()),
            error: ending.error,
            findings: ending.findings,
            llm: ending.llm.map(Box::new),
            digest_up: ending.digest_up,
            digest_down: ending.digest_down,
            captured: ending.captured,
        };
        self.recorder.outcome(outcome);
    }
}

/// Lets so many pass per second, and the rest wait.
pub(crate) struct Pace {
    per_second: u32,
    state: Mutex<(Instant, f64)>,
}

impl Pace {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second, state: Mutex::new((Instant::now(), f64::from(per_second))) }
    }

    /// Takes one at once if there is one.
    pub(crate) fn take(&self) -> bool {
        self.advance(1.0).is_none()
    }

    async fn wait(&self) {
        while let Some(wait) = self.advance(1.0) {
            tokio::time::sleep(wait).await;
        }
    }

    fn advance(&self, want: f64) -> Option<Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let rate = f64::from(self.per_second);
        let have = (state.1 + now.duration_since(state.0).as_secs_f64() * rate).min(rate);
        if have >= want {
            *state = (now, have - want);
            return None;
        }
        *state = (now, have);
        Some(Duration::from_secs_f64((want - have) / rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_in_a_loop_is_answered_later_and_later_and_another_call_is_not() {
        struct Nowhere;
        impl Record for Nowhere {
            fn record(&self, _: Timestamp, _: Event) -> Result<u64, RecordError> {
                Ok(1)
            }
        }
        let recorder = Recorder::new(Arc::new(Nowhere));
        let began = Instant::now();
        let denial = Denial::new("no_grant", "");
        let held = |host: &str, after: Duration| {
            recorder.looping(&Subject::connection("tcp", host.into(), 443), &denial, began + after)
        };
        let all: Vec<Duration> = (0..60).map(|_| held("a.example", Duration::ZERO)).collect();
        assert!(all[..20].iter().all(Duration::is_zero));
        assert_eq!((all[20], all[59]), (LOOP_STEP, LOOP_MOST));
        assert!(held("b.example", Duration::ZERO).is_zero());
        assert!(held("a.example", LOOP_FORGOTTEN).is_zero());
        for nth in 0..2 * MAX_LOOPS {
            held(&format!("{nth}.example"), Duration::ZERO);
        }
        assert!(recorder.loops.lock().unwrap().len() <= MAX_LOOPS);
    }

    #[test]
    fn a_pace_lets_its_number_pass_and_no_more() {
        let pace = Pace::new(50);
        let passed = (0..200).filter(|_| pace.take()).count();
        assert!((50..60).contains(&passed), "{passed}");
    }
}
