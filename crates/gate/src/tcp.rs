//! TCP that nobody looks into: for protocols that the gate does not speak, to hosts that a grant names for just that.
//!
//! No word is waited for, since in some of these protocols the server speaks first. What can be held is held: where
//! it goes, how fast, how much, and for how long nothing is said.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use ringfence_model::HostName;
use ringfence_model::manifest::{Grant, Protocol, TcpRules};
use ringfence_policy::{Denial, Policy};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::budget::{Account, Amounts, Behalf};
use crate::dial::NoAddress;
use crate::misdirect::Placeholders;
use crate::record::{Call, Subject};
use crate::{Gate, call, decide, relay};

/// How the log names it.
const PROTOCOL: &str = "tcp";

/// After how long without a byte either way a connection is cut.
pub(crate) const IDLE: Duration = Duration::from_secs(60 * 60);

/// One direction's buffer.
const BUFFER: usize = 16 * 1024;

/// The rates of all grants that have one, by place. A rate is shared by all connections of its grant.
#[derive(Default)]
pub struct Rates(Vec<Option<[Bucket; 2]>>);

impl Rates {
    /// The rates of these grants, full.
    #[must_use]
    pub fn new(grants: &[Grant]) -> Self {
        let rate = |grant: &Grant| match grant.protocol {
            Protocol::Tcp(TcpRules { bytes_per_second: Some(rate), .. }) => {
                Some([Bucket::new(rate.0), Bucket::new(rate.0)])
            }
            _ => None,
        };
        Self(grants.iter().map(rate).collect())
    }

    fn of(&self, grant: usize) -> [Option<&Bucket>; 2] {
        match self.0.get(grant) {
            Some(Some([up, down])) => [Some(up), Some(down)],
            _ => [None, None],
        }
    }
}

/// A token bucket that holds one second's bytes. Whoever takes more than there are waits for them, in turn.
struct Bucket {
    per_second: f64,
    state: Mutex<(Instant, f64)>,
}

impl Bucket {
    #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the byte")]
    fn new(per_second: u64) -> Self {
        let per_second = per_second.max(1) as f64;
        Self { per_second, state: Mutex::new((Instant::now(), per_second)) }
    }

    /// Takes bytes; the answer is how long to wait before they may go.
    fn take(&self, bytes: usize, now: Instant) -> Duration {
        let bytes = f64::from(u32::try_from(bytes).unwrap_or(u32::MAX));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = now.saturating_duration_since(state.0).as_secs_f64() * self.per_second;
        let left = (state.1 + earned).min(self.per_second) - bytes;
        *state = (now.max(state.0), left);
        if left >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-left / self.per_second) }
    }
}

/// Serves a connection that a grant for TCP covers, if it does.
pub async fn serve<S>(gate: Arc<Gate>, stream: S, host: HostName, port: u16)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let subject = Subject::connection(PROTOCOL, host.to_string(), port);
    let permit = match decide::tcp(&gate.policy, &host, port) {
        Ok(permit) => permit,
        Err(denial) => return drop(gate.recorder.deny(subject, &denial).await),
    };
    let (Some(at), Some(grant)) = (permit.grant(), gate.grant(&permit)) else { return };
    let Protocol::Tcp(rules) = grant.protocol else { return };
    let way = match gate.dialler.addresses(grant, &host, port, &gate.recorder).await {
        Err(NoAddress::Denied(denial)) => return drop(gate.recorder.deny(subject, &denial).await),
        Err(NoAddress::Failed(why)) => Err(why),
        Ok(way) => Ok(way),
    };
    let account = match call::account(&gate, Amounts::CALL, Behalf::default()).await {
        Ok(account) => account,
        Err(spent) => {
            return drop(gate.recorder.deny(subject, &Denial::new("budget_exhausted", spent.why())).await);
        }
    };
    // An intent that cannot be recorded is not carried out; `allow` has said so.
    let Ok(call) = gate.recorder.allow(subject, &permit, false).await else { return };
    let connected = match way {
        Ok(way) => gate.dialler.connect(&way).await,
        Err(why) => Err(why),
    };
    let (upstream, address) = match connected {
        Ok(connected) => connected,
        Err(why) => {
            if let Some(account) = account {
                account.give_back();
            }
            return call.failed(why);
        }
    };
    call.address(address);
    let tunnel = Tunnel {
        call: &call,
        account: account.as_deref(),
        rates: gate.rates.of(at),
        left: AtomicU64::new(rules.max_bytes.map_or(u64::MAX, |bytes| bytes.0)),
        quiet: Quiet::new(IDLE),
    };
    let allows = |policy: &Policy| decide::tcp(policy, &host, port).is_ok();
    let done = tokio::select! {
        done = tunnel.run(&gate.placeholders, stream, upstream) => done,
        () = gate.until_denied(allows) => Err(relay::REVOKED.to_owned()),
    };
    if let Err(why) = done {
        call.failed(why);
    }
}

/// One connection as both its directions see it.
struct Tunnel<'a> {
    call: &'a Call,
    account: Option<&'a Account>,
    rates: [Option<&'a Bucket>; 2],
    /// Bytes that may still go through.
    left: AtomicU64,
    quiet: Quiet,
}

/// Notices when nothing goes through a connection for too long.
pub(crate) struct Quiet {
    last: Mutex<Instant>,
    most: Duration,
}

impl Quiet {
    pub(crate) fn new(most: Duration) -> Self {
        Self { last: Mutex::new(Instant::now()), most }
    }

    /// A byte went through.
    pub(crate) fn broken(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until it has been quiet for too long, and says so.
    pub(crate) async fn too_long(&self) -> String {
        loop {
            let quiet = self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            if quiet >= self.most {
                return "idle_timeout: nothing was said either way".into();
            }
            tokio::time::sleep(self.most - quiet).await;
        }
    }
}

impl Tunnel<'_> {
    /// Relays both ways until both sides are done; either may be done before the other.
    async fn run<A, B>(&self, placeholders: &Placeholders, agent: A, upstream: B) -> Result<(), String>
    where
        A: AsyncRead + AsyncWrite + Unpin,
        B: AsyncRead + AsyncWrite + Unpin,
    {
        let (mut from_agent, mut to_agent) = tokio::io::split(agent);
        let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
        let [up_rate, down_rate] = self.rates;
        let up = async {
            let mut search = placeholders.search(&HeaderMap::new()).map_err(cut)?;
            let mut buffer = vec![0; BUFFER];
            loop {
                let bytes = self.next(&mut from_agent, &mut buffer, up_rate, "tunnel_up").await?;
                if let Some(Err(denial)) = search.as_mut().map(|search| search.check(bytes)) {
                    self.call.found(denial.code);
                    return Err(cut(denial));
                }
                self.call.sent(bytes.len());
                if pass(&mut to_upstream, bytes, "tunnel_up").await? {
                    return Ok(());
                }
            }
        };
        let down = async {
            let mut buffer = vec![0; BUFFER];
            loop {
                let bytes = self.next(&mut from_upstream, &mut buffer, down_rate, "tunnel_down").await?;
                self.call.received(bytes.len());
                if pass(&mut to_agent, bytes, "tunnel_down").await? {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            done = async { tokio::try_join!(up, down) } => done.map(drop),
            why = self.quiet.too_long() => Err(why),
        }
    }

    /// The next bytes of one direction, once they may go; none at its end.
    async fn next<'b, R: AsyncRead + Unpin>(
        &self,
        from: &mut R,
        buffer: &'b mut [u8],
        rate: Option<&Bucket>,
        way: &str,
    ) -> Result<&'b [u8], String> {
        let count = from.read(buffer).await.map_err(|e| format!("{way}: {e}"))?;
        self.quiet.broken();
        let allowed =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(count as u64));
        if allowed.is_err() {
            return Err("max_bytes: the grant lets no more through on one connection".into());
        }
        if self.account.is_some_and(|account| !account.bytes(count)) {
            return Err("budget_exhausted: no bytes are left".into());
        }
        if let Some(wait) = rate.map(|bucket| bucket.take(count, Instant::now())).filter(|wait| !wait.is_zero()) {
            tokio::time::sleep(wait).await;
            self.quiet.broken();
        }
        Ok(buffer.get(..count).unwrap_or_default())
    }
}

/// Why a connection is cut, with its code.
fn cut(denial: Denial) -> String {
    format!("{}: {}", denial.code, denial.why)
}

/// Sends bytes on; at the end of one direction says so to the other side, and answers `true`.
async fn pass<W: AsyncWrite + Unpin>(to: &mut W, bytes: &[u8], way: &str) -> Result<bool, String> {
    let done = if bytes.is_empty() { to.shutdown().await } else { to.write_all(bytes).await };
    done.map_err(|e| format!("{way}: {e}"))?;
    Ok(bytes.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_audit::{Event, Record, RecordError};

    use super::*;
    use crate::record::Recorder;

    struct Nowhere;

    impl Record for Nowhere {
        fn record(&self, _: jiff::Timestamp, _: Event) -> Result<u64, RecordError> {
            Ok(1)
        }
    }

    #[tokio::test]
    async fn a_connection_on_which_nothing_is_said_ends_and_no_other() {
        let host: HostName = "git.example.org".parse().unwrap();
        let grant = Grant {
            port: 22,
            protocol: Protocol::Tcp(TcpRules::default()),
            ..Grant::to("git.example.org".parse().unwrap())
        };
        let policy = Policy::compile(&"analyst".parse().unwrap(), &[grant], &[]).unwrap();
        let permit = decide::tcp(&policy, &host, 22).unwrap();
        let subject = Subject::connection(PROTOCOL, host.to_string(), 22);
        let call = Arc::new(Recorder::new(Arc::new(Nowhere))).allow(subject, &permit, false).await.unwrap();
        let idle = Duration::from_millis(300);
        let tunnel = Tunnel {
            call: &call,
            account: None,
            rates: [None, None],
            left: AtomicU64::new(u64::MAX),
            quiet: Quiet::new(idle),
        };
        let (mut agent, agents_end) = tokio::io::duplex(64);
        let (_upstream, upstreams_end) = tokio::io::duplex(64);
        let started = Instant::now();
        let talk = async {
            for _ in 0..4 {
                tokio::time::sleep(idle / 3).await;
                agent.write_all(b"x").await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let placeholders = Placeholders::default();
        let ended = tokio::select! {
            ended = tunnel.run(&placeholders, agents_end, upstreams_end) => ended,
            () = talk => unreachable!(),
        };
        assert!(ended.unwrap_err().starts_with("idle_timeout"));
        assert!(started.elapsed() >= idle * 2, "each byte begins the wait anew");
    }

    proptest! {
        #[test]
        fn no_more_goes_than_the_rate_and_one_second_beforehand(
            takes in proptest::collection::vec((1_usize..5000, 0_u64..2000), 1..50)
        ) {
            let bucket = Bucket::new(10_000);
            let start = Instant::now();
            let (mut now, mut sent) = (start, 0);
            for (bytes, pause_ms) in takes {
                now += bucket.take(bytes, now) + Duration::from_millis(pause_ms);
                sent += bytes;
                let most = 10_000.0 + 10_000.0 * now.duration_since(start).as_secs_f64();
                prop_assert!(f64::from(u32::try_from(sent).unwrap()) <= most + 1.0);
            }
        }
    }
}
