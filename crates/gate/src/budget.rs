//! What an agent may spend: taken before a call, settled after it, and never twice.
//!
//! A counter belongs to a scope, a unit and a window. It lives in a file that the gate maps ([`Counters`]), so that it is
//! still there when gate or supervisor are killed, and so that all gates of a host can count against one. A counter is
//! one number of 64 bits, the window's in its upper part, and changes by compare-and-swap alone: however many calls are
//! made at once, they never take more than there is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use ringfence_inspect::price::Prices;
use ringfence_model::Digest;
use ringfence_model::manifest::{Budget, Limit, Unit, WhenSpent, Window};
use ringfence_sys::shared::Counters;
use tokio::sync::Mutex;

use crate::config::NewPolicy;

/// Counters in one file.
pub const COUNTERS: usize = 8192;

/// Numbers in one file: each counter has its key beside it.
pub const NUMBERS: usize = 2 * COUNTERS;

/// How many places a counter may stand in.
const PROBES: usize = 64;

/// The bits of a counter that count; those above tell the window.
const COUNT_BITS: u32 = 48;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// How often a call that waits looks again, at least.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Calls that wait at once; further ones are refused.
const MAX_WAITING: usize = 256;

/// What a call takes, or took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Bytes.
    pub bytes: u64,
    /// Calls.
    pub requests: u64,
    /// Tokens.
    pub tokens: u64,
    /// Millionths of a US dollar.
    pub usd: u64,
}

impl Amounts {
    /// One call, and nothing else.
    pub const CALL: Self = Self { bytes: 0, requests: 1, tokens: 0, usd: 0 };

    const fn of(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Bytes => self.bytes,
            Unit::Requests => self.requests,
            Unit::Tokens => self.tokens,
            Unit::Usd => self.usd,
        }
    }
}

/// On whose behalf a call is made, beside the agent's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behalf<'a> {
    /// The user that the agent names.
    pub user: Option<&'a str>,
    /// The tool that is called.
    pub tool: Option<&'a str>,
}

/// Whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// The agent's.
    Agent,
    /// All agents' of the host.
    Host,
    /// One tool's.
    Tool(String),
    /// One user's; in words, only that it is a user's.
    User,
}

impl Scope {
    /// A word for it.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Host => "host",
            Self::Tool(_) => "tool",
            Self::User => "user",
        }
    }
}

/// A limit that leaves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// Whose.
    pub scope: Scope,
    /// Which.
    pub limit: Limit,
    /// How much is taken.
    pub used: u64,
    /// When there is some again; `None` if no time helps.
    pub again: Option<Duration>,
}

impl Spent {
    /// The reason in words.
    #[must_use]
    pub fn why(&self) -> String {
        let whose = match &self.scope {
            Scope::Tool(name) => format!("tool `{name}`"),
            scope => scope.word().to_owned(),
        };
        let left = self.limit.most.saturating_sub(self.used);
        format!("the budget `{}` of the {whose} has {left} left, and the call may take more", self.limit)
    }
}

/// A limit of which much is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Whose.
    pub scope: Scope,
    /// Which.
    pub limit: Limit,
    /// How much is taken.
    pub used: u64,
}

/// All that is counted for the calls of one agent.
pub struct Ledger {
    files: Files,
    lines: Vec<Line>,
    user: Option<(HeaderName, Vec<Limit>)>,
    tools: BTreeMap<String, Vec<Limit>>,
    when_spent: WhenSpent,
    warn_at: u8,
    /// Whoever holds it is next, so that calls are served in the order in which they came.
    turn: Mutex<()>,
    waiting: Arc<tokio::sync::Semaphore>,
    prices: Prices,
    clock: fn() -> Timestamp,
}

/// A limit and where it is counted.
#[derive(Clone, Debug)]
struct Line {
    scope: Scope,
    limit: Limit,
    key: u64,
}

/// The files that are counted in.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// The agent's.
    pub own: Option<Arc<Counters>>,
    /// The host's.
    pub shared: Option<Arc<Counters>>,
}

/// Why there is no ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A budget and no file to count in.
    #[error("a budget is set, and there is no file to count in")]
    NoFile,
    /// The header that names users is none.
    #[error("`{0}` is not a header name")]
    Header(String),
}

impl Ledger {
    /// What counts against the agent's budget, and the host's where there is one.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn new(agent: &Budget, host: &Budget, files: Files, prices: Prices) -> Result<Self, LedgerError> {
        if !agent.is_empty() && files.own.is_none() || !host.is_empty() && files.shared.is_none() {
            return Err(LedgerError::NoFile);
        }
        let line = |scope: Scope| {
            move |limit: &Limit| Line { key: key(&scope, "", *limit), scope: scope.clone(), limit: *limit }
        };
        let mut lines: Vec<Line> = host.limits.iter().map(line(Scope::Host)).collect();
        lines.extend(agent.limits.iter().map(line(Scope::Agent)));
        let user = agent.user.as_ref().map(|user| {
            let name = user.header.parse().map_err(|_| LedgerError::Header(user.header.clone()))?;
            Ok((name, user.limits.clone()))
        });
        Ok(Self {
            files,
            lines,
            user: user.transpose()?,
            tools: agent.tools.clone(),
            when_spent: agent.when_spent,
            warn_at: agent.warn_at,
            turn: Mutex::default(),
            waiting: Arc::new(tokio::sync::Semaphore::new(MAX_WAITING)),
            prices,
            clock: Timestamp::now,
        })
    }

    /// What a gate's configuration says.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn of(config: &NewPolicy, files: Files) -> Result<Self, String> {
        let shipped = Prices::shipped().map_err(|e| e.to_string())?;
        let prices = match &config.prices {
            Some(own) => shipped.overlaid(Prices::parse(own).map_err(|e| e.to_string())?),
            None => shipped,
        };
        Self::new(&config.budget, &config.host_budget, files, prices).map_err(|e| e.to_string())
    }

    /// The files that are counted in.
    #[must_use]
    pub fn files(&self) -> Files {
        self.files.clone()
    }

    /// What calls cost.
    #[must_use]
    pub const fn prices(&self) -> &Prices {
        &self.prices
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.user.is_none() && self.tools.is_empty()
    }

    /// Whether some limit counts this.
    #[must_use]
    pub fn counts(&self, unit: Unit) -> bool {
        let users = self.user.iter().flat_map(|(_, limits)| limits);
        self.lines.iter().map(|line| &line.limit).chain(users).any(|limit| limit.unit == unit)
    }

    /// The header by which the agent names its users.
    #[must_use]
    pub fn user_header(&self) -> Option<&HeaderName> {
        self.user.as_ref().map(|(name, _)| name)
    }

    /// The least that is left of a unit, over all limits that count it now; `None` if none does.
    #[must_use]
    pub fn left(&self, unit: Unit, behalf: Behalf<'_>) -> Option<u64> {
        let now = (self.clock)();
        let lines = self.lines_for(behalf).into_iter().filter(|line| line.limit.unit == unit);
        lines.map(|line| line.limit.most.saturating_sub(self.used(&line, now))).min()
    }

    fn used(&self, line: &Line, now: Timestamp) -> u64 {
        let window = window_number(line.limit.window, now);
        self.counter(line, now).map_or(u64::MAX, |counter| used_in(counter.load(Ordering::SeqCst), window))
    }

    /// Takes what a call may cost. Waits for it where the operator wants that.
    ///
    /// # Errors
    /// [`Spent`] if there is not so much left; nothing is taken then.
    pub async fn reserve(
        self: &Arc<Self>,
        want: Amounts,
        behalf: Behalf<'_>,
    ) -> Result<(Reservation, Vec<Warning>), Spent> {
        let first = match self.try_reserve(want, behalf) {
            Err(spent) => spent,
            taken => return taken,
        };
        let WhenSpent::Wait(most) = self.when_spent else { return Err(first) };
        let Ok(_waiting) = self.waiting.try_acquire() else { return Err(first) };
        let queue = async {
            let _turn = self.turn.lock().await;
            loop {
                match self.try_reserve(want, behalf) {
                    // No time helps if a call may take more than there ever is.
                    Err(spent) if want.of(spent.limit.unit) > spent.limit.most => return Err(spent),
                    Err(spent) => {
                        let again = spent.again.unwrap_or(LOOK_AGAIN);
                        tokio::time::sleep(again.clamp(Duration::from_millis(1), LOOK_AGAIN)).await;
                    }
                    taken => return taken,
                }
            }
        };
        tokio::time::timeout(most, queue).await.unwrap_or(Err(first))
    }

    /// Takes what a call may cost, now or not at all.
    ///
    /// # Errors
    /// [`Spent`].
    pub fn try_reserve(
        self: &Arc<Self>,
        want: Amounts,
        behalf: Behalf<'_>,
    ) -> Result<(Reservation, Vec<Warning>), Spent> {
        let now = (self.clock)();
        let mut taken = Reservation { ledger: Arc::clone(self), lines: Vec::new(), want, settled: false };
        let mut warnings = Vec::new();
        for line in self.lines_for(behalf) {
            let window = window_number(line.limit.window, now);
            let amount = want.of(line.limit.unit);
            let spent = |used, again| Spent { scope: line.scope.clone(), limit: line.limit, used, again };
            // A full file refuses: what cannot be counted is not spent.
            let Some(counter) = self.counter(&line, now) else {
                taken.give_back();
                return Err(spent(line.limit.most, None));
            };
            // Of what is not known before, some must be left.
            let least = amount.max(u64::from(line.limit.unit == Unit::Bytes));
            match add(counter, window, amount, least, line.limit.most) {
                Ok((before, after)) => {
                    let mark = self.mark(line.limit.most);
                    if before < mark && mark <= after {
                        warnings.push(Warning { scope: line.scope.clone(), limit: line.limit, used: after });
                    }
                    taken.lines.push((line, window));
                }
                Err(used) => {
                    taken.give_back();
                    return Err(spent(used, Some(until_next(line.limit.window, now))));
                }
            }
        }
        Ok((taken, warnings))
    }

    fn mark(&self, most: u64) -> u64 {
        match self.warn_at {
            0 => u64::MAX,
            part => (u128::from(most) * u128::from(part)).div_ceil(100).try_into().unwrap_or(u64::MAX),
        }
    }

    /// Every limit that a call counts against.
    fn lines_for(&self, behalf: Behalf<'_>) -> Vec<Line> {
        let mut lines = self.lines.clone();
        if let Some((_, limits)) = &self.user {
            // A call for nobody is a call for one user of that kind.
            let user = behalf.user.unwrap_or_default();
            lines.extend(limits.iter().map(|limit| Line {
                scope: Scope::User,
                limit: *limit,
                key: key(&Scope::User, user, *limit),
            }));
        }
        if let Some((tool, limits)) = behalf.tool.and_then(|tool| self.tools.get_key_value(tool)) {
            let scope = Scope::Tool(tool.clone());
            lines.extend(limits.iter().map(|limit| Line {
                scope: scope.clone(),
                limit: *limit,
                key: key(&scope, tool, *limit),
            }));
        }
        lines
    }

    /// The counter of a limit. A counter that no call needs any more makes room.
    fn counter(&self, line: &Line, now: Timestamp) -> Option<&AtomicU64> {
        let Files { own, shared } = &self.files;
        let file = if line.scope == Scope::Host { shared.as_ref() } else { own.as_ref() }?;
        let all = file.all();
        let start = usize::try_from(line.key % COUNTERS as u64).ok()?;
        let places = (0..PROBES).map(|step| 2 * ((start + step) % COUNTERS));
        for at in places.clone() {
            let own = all.get(at)?;
            match own.compare_exchange(0, line.key, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return all.get(at + 1),
                Err(there) if there == line.key => return all.get(at + 1),
                Err(_) => {}
            }
        }
        for at in places {
            let (own, counter) = (all.get(at)?, all.get(at + 1)?);
            let (there, value) = (own.load(Ordering::SeqCst), counter.load(Ordering::SeqCst));
            let window = window_of_key(there);
            let age = window_number(window, now).wrapping_sub(value >> COUNT_BITS) & 0xffff;
            if age > 1 && own.compare_exchange(there, line.key, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                counter.store(0, Ordering::SeqCst);
                return Some(counter);
            }
        }
        None
    }
}

/// What a call has taken. Until it is settled, it counts as spent.
#[must_use = "what is reserved must be settled or given back"]
pub struct Reservation {
    ledger: Arc<Ledger>,
    lines: Vec<(Line, u64)>,
    want: Amounts,
    settled: bool,
}

impl Reservation {
    /// What was reserved.
    #[must_use]
    pub const fn amounts(&self) -> Amounts {
        self.want
    }

    /// Counts bytes that went by. `false` if there are none left: the stream must end.
    pub fn bytes(&mut self, count: u64) -> bool {
        self.want.bytes = self.want.bytes.saturating_add(count);
        let now = (self.ledger.clock)();
        let mut left = true;
        for (line, window) in self.lines.iter().filter(|(line, _)| line.limit.unit == Unit::Bytes) {
            let Some(counter) = self.ledger.counter(line, now) else { return false };
            // They are through already, so they count, even above the limit.
            let current = window_number(line.limit.window, now).max(*window);
            let used = add(counter, current, count, 0, COUNT).map_or(u64::MAX, |(_, after)| after);
            left &= used < line.limit.most;
        }
        left
    }

    /// Whether bytes are counted.
    #[must_use]
    pub fn counts_bytes(&self) -> bool {
        self.lines.iter().any(|(line, _)| line.limit.unit == Unit::Bytes)
    }

    /// The call is over, and so much was used in the end; bytes were counted as they went.
    pub fn settle(mut self, used: Amounts) {
        self.correct(used);
    }

    /// Nothing was sent.
    pub fn give_back(&mut self) {
        let none = Amounts { bytes: self.want.bytes, ..Amounts::default() };
        self.correct(none);
    }

    fn correct(&mut self, used: Amounts) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let now = (self.ledger.clock)();
        for (line, window) in &self.lines {
            if line.limit.unit == Unit::Bytes {
                continue;
            }
            let (taken, used) = (self.want.of(line.limit.unit), used.of(line.limit.unit));
            if let Some(counter) = self.ledger.counter(line, now) {
                change(counter, *window, taken, used);
            }
        }
    }
}

/// What one call has taken, as all parts of it share that.
#[derive(Default)]
pub struct Account {
    taken: std::sync::Mutex<Option<Reservation>>,
    counts_bytes: bool,
}

impl Account {
    /// Holds what was reserved.
    #[must_use]
    pub fn new(reservation: Reservation) -> Self {
        Self { counts_bytes: reservation.counts_bytes(), taken: std::sync::Mutex::new(Some(reservation)) }
    }

    /// Counts bytes that went by; `false` if there are none left.
    pub fn bytes(&self, count: usize) -> bool {
        !self.counts_bytes || self.taken().as_mut().is_none_or(|taken| taken.bytes(count as u64))
    }

    /// The call is over, and so much was used in the end.
    pub fn settle(&self, used: Amounts) {
        if let Some(taken) = self.taken().take() {
            taken.settle(used);
        }
    }

    /// No model ran: the call was made, and its bytes went by, and that is all.
    pub fn ran_no_model(&self) {
        if let Some(taken) = self.taken().as_mut() {
            taken.correct(Amounts::CALL);
        }
    }

    /// Nothing was sent.
    pub fn give_back(&self) {
        if let Some(mut taken) = self.taken().take() {
            taken.give_back();
        }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Option<Reservation>> {
        self.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Adds to a counter if at least `least` is left, and then `amount` must be. Gives what was used before and after, or
/// what is used.
fn add(counter: &AtomicU64, window: u64, amount: u64, least: u64, most: u64) -> Result<(u64, u64), u64> {
    let mut seen = counter.load(Ordering::SeqCst);
    loop {
        let used = used_in(seen, window);
        if used.saturating_add(least.max(amount)) > most.min(COUNT) {
            return Err(used);
        }
        let next = (window & 0xffff) << COUNT_BITS | (used + amount);
        match counter.compare_exchange_weak(seen, next, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return Ok((used, used + amount)),
            Err(now) => seen = now,
        }
    }
}

/// Puts what was used in the place of what was taken, if the window is still the same.
fn change(counter: &AtomicU64, window: u64, taken: u64, used: u64) {
    let _ = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |value| {
        let count = (value & COUNT).saturating_sub(taken).saturating_add(used).min(COUNT);
        (value >> COUNT_BITS == window & 0xffff).then_some(value & !COUNT | count)
    });
}

const fn used_in(value: u64, window: u64) -> u64 {
    if value >> COUNT_BITS == window & 0xffff { value & COUNT } else { 0 }
}

/// The key of a counter. Its lowest bits tell the window; it is never zero.
fn key(scope: &Scope, name: &str, limit: Limit) -> u64 {
    let text = format!("{}\0{name}\0{}\0{}", scope.word(), limit.unit.word(), limit.window.word());
    let digest = Digest::of(text.as_bytes());
    let bits = digest.raw().first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let window = match limit.window {
        Window::Minute => 0,
        Window::Hour => 1,
        Window::Day => 2,
        Window::Month => 3,
    };
    bits & !7 | 4 | window
}

const fn window_of_key(key: u64) -> Window {
    match key & 3 {
        0 => Window::Minute,
        1 => Window::Hour,
        2 => Window::Day,
        _ => Window::Month,
    }
}

/// The number of the window that a moment is in. Numbers go up with time.
fn window_number(window: Window, now: Timestamp) -> u64 {
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    match window {
        Window::Minute => seconds / 60,
        Window::Hour => seconds / 3_600,
        Window::Day => seconds / 86_400,
        Window::Month => {
            let date = now.to_zoned(TimeZone::UTC).date();
            u64::from(date.year().unsigned_abs()) * 12 + u64::from(date.month().unsigned_abs())
        }
    }
}

/// How long until the next window.
fn until_next(window: Window, now: Timestamp) -> Duration {
    let seconds = match window {
        Window::Minute => 60,
        Window::Hour => 3_600,
        Window::Day => 86_400,
        Window::Month => {
            let date = now.to_zoned(TimeZone::UTC).date();
            let next = date.first_of_month().saturating_add(jiff::Span::new().months(1));
            let start = next.to_zoned(TimeZone::UTC).map_or(now, |zoned| zoned.timestamp());
            return Duration::try_from(start.duration_since(now)).unwrap_or_default();
        }
    };
    let into = now.as_millisecond().rem_euclid(seconds * 1_000);
    Duration::from_millis(u64::try_from(seconds * 1_000 - into).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use proptest::prelude::*;

    use super::*;

    fn file() -> File {
        File::from(rustix::fs::memfd_create("budget", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
    }

    fn budget(text: &str) -> Budget {
        let text = format!("[agent]\nname = \"a\"\nentry = [\"x\"]\n{text}");
        ringfence_model::Manifest::parse(&text, &|_| Ok(String::new())).unwrap().budget
    }

    fn ledger(text: &str, file: &File) -> Arc<Ledger> {
        let own = Some(Arc::new(Counters::map(file, NUMBERS).unwrap()));
        let files = Files { own, shared: None };
        Arc::new(Ledger::new(&budget(text), &Budget::default(), files, Default::default()).unwrap())
    }

    const ONE: Amounts = Amounts::CALL;

    #[test]
    fn many_at_once_never_take_more_than_there_is() {
        let file = file();
        let ledgers: Vec<_> = (0..4).map(|_| ledger("[budget]\ntokens_per_month = 1000\n", &file)).collect();
        let want = Amounts { tokens: 7, ..ONE };
        let taken: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = ledgers
                .iter()
                .map(|ledger| {
                    scope.spawn(move || {
                        let take = |_| ledger.try_reserve(want, Behalf::default()).is_ok();
                        (0..200).map(take).filter(|taken| *taken).count() as u64
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1000 / 7);
        assert_eq!(ledgers[0].left(Unit::Tokens, Behalf::default()), Some(1000 - taken * 7));
    }

    #[test]
    fn what_was_spent_is_known_to_the_next_process() {
        let file = file();
        let first = ledger("[budget]\nrequests_per_month = 2\n", &file);
        first.try_reserve(ONE, Behalf::default()).unwrap().0.settle(ONE);
        drop(first);
        let second = ledger("[budget]\nrequests_per_month = 2\nusd_per_day = 1.0\n", &file);
        second.try_reserve(ONE, Behalf::default()).unwrap().0.settle(ONE);
        let spent = second.try_reserve(ONE, Behalf::default()).map(drop).unwrap_err();
        assert_eq!((spent.limit.unit, spent.used), (Unit::Requests, 2));
        assert!(spent.again.unwrap() <= Duration::from_secs(31 * 86_400));
    }

    #[test]
    fn a_refused_call_takes_nothing_of_any_limit() {
        let ledger = ledger("[budget]\ntokens_per_day = 1000\nrequests_per_day = 9\nusd_per_day = 0.000005\n", &file());
        let want = Amounts { tokens: 10, usd: 6, ..ONE };
        assert_eq!(ledger.try_reserve(want, Behalf::default()).map(drop).unwrap_err().limit.unit, Unit::Usd);
        assert_eq!(ledger.left(Unit::Tokens, Behalf::default()), Some(1000));
        assert_eq!(ledger.left(Unit::Requests, Behalf::default()), Some(9));
    }

    #[test]
    fn what_was_not_used_is_there_again_and_what_was_used_beyond_is_gone() {
        let ledger = ledger("[budget]\ntokens_per_month = 100\n", &file());
        let want = Amounts { tokens: 60, ..ONE };
        let left = || ledger.left(Unit::Tokens, Behalf::default()).unwrap();
        let (first, _) = ledger.try_reserve(want, Behalf::default()).unwrap();
        assert!(ledger.try_reserve(want, Behalf::default()).is_err());
        first.settle(Amounts { tokens: 10, ..ONE });
        assert_eq!(left(), 90);
        let (second, _) = ledger.try_reserve(want, Behalf::default()).unwrap();
        second.settle(Amounts { tokens: 200, ..ONE });
        assert_eq!(left(), 0);
        assert!(ledger.try_reserve(Amounts { tokens: 1, ..ONE }, Behalf::default()).is_err());
    }

    #[test]
    fn what_is_dropped_counts_as_spent_and_what_was_never_sent_does_not() {
        let ledger = ledger("[budget]\nrequests_per_month = 10\n", &file());
        drop(ledger.try_reserve(ONE, Behalf::default()).unwrap());
        ledger.try_reserve(ONE, Behalf::default()).unwrap().0.give_back();
        assert_eq!(ledger.left(Unit::Requests, Behalf::default()), Some(9));
    }

    #[test]
    fn bytes_end_a_stream_at_their_limit() {
        let ledger = ledger("[budget]\nbytes_per_month = \"1kB\"\n", &file());
        let (mut call, _) = ledger.try_reserve(ONE, Behalf::default()).unwrap();
        assert!(call.bytes(900));
        assert!(!call.bytes(100));
        call.settle(ONE);
        assert!(ledger.try_reserve(ONE, Behalf::default()).is_err(), "none is left");
    }

    #[test]
    fn users_and_tools_have_their_own() {
        let text = "[budget.user]\nheader = \"x-user\"\nrequests_per_month = 1\n[budget.tool.search]\nrequests_per_month = 2\n";
        let ledger = ledger(text, &file());
        let take = |user, tool| ledger.try_reserve(ONE, Behalf { user, tool }).map(drop).map_err(|spent| spent.scope);
        assert_eq!(take(Some("a"), None), Ok(()));
        assert_eq!(take(Some("a"), None), Err(Scope::User));
        assert_eq!(take(Some("b"), Some("search")), Ok(()));
        assert_eq!(take(None, Some("search")), Ok(()));
        assert_eq!(take(None, None), Err(Scope::User), "nobody is one user");
        assert_eq!(take(Some("c"), Some("search")), Err(Scope::Tool("search".into())));
        assert_eq!(take(Some("d"), Some("other")), Ok(()));
    }

    #[test]
    fn more_users_than_there_are_counters_are_refused_and_none_is_forgotten() {
        let ledger = ledger("[budget.user]\nheader = \"x\"\nrequests_per_month = 1\n", &file());
        let take = |user: usize| {
            let user = format!("user-{user}");
            ledger.try_reserve(ONE, Behalf { user: Some(&user), tool: None }).is_ok()
        };
        let all = 2 * COUNTERS;
        let served: Vec<usize> = (0..all).filter(|user| take(*user)).collect();
        assert!(served.len() <= COUNTERS && served.len() > COUNTERS / 2, "{}", served.len());
        assert!(served.into_iter().all(|user| !take(user)), "nobody is served twice");
    }

    #[test]
    fn a_counter_of_a_window_that_is_over_makes_room() {
        let file = file();
        let mut early =
            Arc::into_inner(ledger("[budget.user]\nheader = \"x\"\nrequests_per_minute = 1\n", &file)).unwrap();
        early.clock = || Timestamp::from_second(1_000_000_000).unwrap();
        let early = Arc::new(early);
        for user in 0..2 * COUNTERS {
            let user = user.to_string();
            drop(early.try_reserve(ONE, Behalf { user: Some(&user), tool: None }));
        }
        let late = ledger("[budget.user]\nheader = \"x\"\nrequests_per_minute = 1\n", &file);
        for user in 0..COUNTERS / 2 {
            let user = format!("late {user}");
            assert!(late.try_reserve(ONE, Behalf { user: Some(&user), tool: None }).is_ok());
        }
    }

    #[test]
    fn a_limit_warns_once() {
        let ledger = ledger("[budget]\nrequests_per_month = 10\nwarn_at = 0.5\n", &file());
        let warned = |_| ledger.try_reserve(ONE, Behalf::default()).unwrap().1.len();
        assert_eq!((0..10).map(warned).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    }

    #[tokio::test]
    async fn a_call_waits_its_turn_where_the_operator_wants_that() {
        let ledger = ledger("[budget]\nrequests_per_month = 1\nwhen_spent = \"wait\"\nwait_s = 5\n", &file());
        let (mut first, _) = ledger.try_reserve(ONE, Behalf::default()).unwrap();
        let waiting = tokio::spawn({
            let ledger = Arc::clone(&ledger);
            async move { ledger.reserve(ONE, Behalf::default()).await.is_ok() }
        });
        tokio::time::sleep(Duration::from_millis(120)).await;
        assert!(!waiting.is_finished());
        first.give_back();
        assert!(waiting.await.unwrap());
        let never = Amounts { requests: 2, ..ONE };
        assert!(ledger.reserve(never, Behalf::default()).await.is_err(), "no time helps");
    }

    #[test]
    fn without_a_file_there_is_no_budget() {
        let made = Ledger::new(
            &budget("[budget]\nusd_per_day = 1.0\n"),
            &Budget::default(),
            Files::default(),
            Default::default(),
        );
        assert_eq!(made.map(drop), Err(LedgerError::NoFile));
    }

    proptest! {
        #[test]
        fn windows_follow_each_other(second in 0_i64..4_000_000_000, window in 0..4_u64) {
            let window = window_of_key(window);
            let now = Timestamp::from_second(second).unwrap();
            let next = now + jiff::SignedDuration::try_from(until_next(window, now)).unwrap();
            prop_assert_eq!(window_number(window, next), window_number(window, now) + 1);
            let last = next - jiff::SignedDuration::from_millis(1);
            prop_assert_eq!(window_number(window, last), window_number(window, now));
        }
    }
}
