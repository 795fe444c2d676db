//! Names become addresses that mean the name and nothing else. No query leaves the host from here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringfence_audit::{Event, Outcome};
use ringfence_model::HostName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::dns::{self, Answer, Asked, Over, Say, Zone};
use crate::record::Pace;
use crate::{Gate, proxy};

/// Names that have an address at once; an agent that makes up more gets no answer.
const MAX_NAMES: usize = 16_384;

/// The first synthetic address, and how many there are: 198.18.0.0/15 without its first 256.
///
/// # Source
/// RFC 2544, which sets the block apart for benchmarks; nothing on the Internet is there.
const FIRST: u32 = 0xc612_0100;
const COUNT: u32 = 0x0001_ff00;

/// Denied queries that are recorded per second; the rest are counted.
const DENIED_PER_SECOND: u32 = 50;

/// How long the same allowed answer is not recorded again.
const QUIET: Duration = Duration::from_secs(60);

/// How long a client over TCP may be silent, or not take its answer.
const IDLE: Duration = Duration::from_secs(10);

/// Which names have which addresses.
#[derive(Default)]
pub struct Names {
    tables: Mutex<Tables>,
    log: Mutex<QueryLog>,
}

#[derive(Default)]
struct Tables {
    by_name: HashMap<HostName, Ipv4Addr>,
    by_address: HashMap<Ipv4Addr, HostName>,
}

/// What an address that the agent dialled stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The address itself.
    Address(HostName),
    /// The name that was given this address.
    Name(HostName),
    /// No name: a synthetic address that was never given out.
    Nothing,
}

impl Names {
    /// The address of a name; the same for the life of the gate. `None` when too many names have one.
    pub fn assign(&self, host: &HostName) -> Option<Ipv4Addr> {
        let name = host.name()?;
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(address) = tables.by_name.get(host) {
            return Some(*address);
        }
        if tables.by_name.len() >= MAX_NAMES {
            return None;
        }
        // By hash, so that a name most likely keeps its address over restarts.
        let start = name.bytes().fold(0x811c_9dc5_u32, |hash, b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193));
        let address = (0..COUNT)
            .map(|step| Ipv4Addr::from(FIRST + (start.wrapping_add(step)) % COUNT))
            .find(|address| !tables.by_address.contains_key(address))?;
        tables.by_name.insert(host.clone(), address);
        tables.by_address.insert(address, host.clone());
        Some(address)
    }

    /// What an address stands for.
    #[must_use]
    pub fn meaning(&self, address: IpAddr) -> Meaning {
        let address = address.to_canonical();
        match address {
            IpAddr::V4(v4) if v4.octets().starts_with(&[198, 18]) || v4.octets().starts_with(&[198, 19]) => {
                let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
                tables.by_address.get(&v4).cloned().map_or(Meaning::Nothing, Meaning::Name)
            }
            _ => Meaning::Address(HostName::from_address(address)),
        }
    }
}

/// Which queries were recorded lately.
struct QueryLog {
    allowed: HashMap<(String, String), Instant>,
    denied: Pace,
    unrecorded: u64,
}

impl Default for QueryLog {
    fn default() -> Self {
        Self { allowed: HashMap::new(), denied: Pace::new(DENIED_PER_SECOND), unrecorded: 0 }
    }
}

impl QueryLog {
    /// The event to record for a query, if it is due.
    fn event(&mut self, asked: Asked, now: Instant) -> Option<Event> {
        let Asked { name, rtype, granted, reason } = asked;
        if granted {
            let key = (name.clone(), rtype.clone());
            if self.allowed.get(&key).is_some_and(|at| now.duration_since(*at) < QUIET) {
                return None;
            }
            if self.allowed.len() >= MAX_NAMES {
                self.allowed.retain(|_, at| now.duration_since(*at) < QUIET);
            }
            if self.allowed.len() < MAX_NAMES {
                self.allowed.insert(key, now);
            }
            return Some(Event::DnsQuery { name, rtype, decision: Outcome::Allow, reason: reason.into() });
        }
        if !self.denied.take() {
            self.unrecorded += 1;
            return None;
        }
        let reason = match std::mem::take(&mut self.unrecorded) {
            0 => reason.into(),
            more => format!("{reason}; {more} more denied before it were only counted"),
        };
        Some(Event::DnsQuery { name, rtype, decision: Outcome::Deny, reason })
    }
}

/// What this gate knows about names, by the policy that is in force now.
struct Known<'a>(&'a Gate);

impl Known<'_> {
    fn could_resolve(&self, host: &HostName) -> bool {
        let newer = self.0.newer();
        newer.as_deref().unwrap_or(self.0).policy.could_resolve(host)
    }
}

impl Zone for Known<'_> {
    fn address(&mut self, host: &HostName) -> Say {
        if proxy::is_named(host) {
            return Say::Address(proxy::ADDRESS);
        }
        if !self.could_resolve(host) {
            return Say::Nothing;
        }
        self.0.names.assign(host).map_or(Say::Full, Say::Address)
    }

    fn name(&mut self, address: Ipv4Addr) -> Option<HostName> {
        match self.0.names.meaning(address.into()) {
            Meaning::Name(host) if self.could_resolve(&host) => Some(host),
            _ => None,
        }
    }
}

impl Gate {
    /// Answers one DNS message and records it. `None`: say nothing.
    pub(crate) fn resolve(&self, query: &[u8], over: Over) -> Option<Vec<u8>> {
        let Answer { message, asked } = dns::answer(query, over, &mut Known(self))?;
        let Some(asked) = asked else { return Some(message) };
        let granted = asked.granted;
        let event = self.names.log.lock().unwrap_or_else(PoisonError::into_inner).event(asked, Instant::now());
        match event.map(|event| self.recorder.event(event)) {
            // What cannot be recorded does not happen.
            Some(Err(_)) if granted => None,
            _ => Some(message),
        }
    }
}

/// Answers DNS over a TCP connection until the agent is done: each question in its turn, however many came at once.
///
/// # Source
/// RFC 7766.
pub(crate) async fn serve_stream(gate: &Gate, mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.map(|_| query)
        };
        let query = tokio::time::timeout(IDLE, read).await??;
        let Some(reply) = gate.resolve(&query, Over::Stream) else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        tokio::time::timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_means_its_name_for_ever() {
        let names = Names::default();
        let host: HostName = "api.example.org".parse().unwrap();
        let address = names.assign(&host).unwrap();
        assert_eq!(names.assign(&host), Some(address));
        assert_eq!(names.meaning(address.into()), Meaning::Name(host.clone()));
        assert_eq!(names.meaning(address.to_ipv6_mapped().into()), Meaning::Name(host.clone()));
        assert_eq!(Names::default().assign(&host), Some(address), "stable over restarts");
        assert_eq!(names.meaning([198, 19, 0, 1].into()), Meaning::Nothing);
        assert_eq!(names.meaning([192, 0, 2, 1].into()), Meaning::Address("192.0.2.1".parse().unwrap()));
        let many: std::collections::HashSet<_> =
            (0..5000).map(|n| names.assign(&format!("h{n}.example.org").parse().unwrap()).unwrap()).collect();
        assert_eq!(many.len(), 5000);
        assert!(many.iter().all(|a| u32::from(*a) >= FIRST && u32::from(*a) < FIRST + COUNT));
    }

    #[test]
    fn names_are_bounded_and_no_address_is_given_twice() {
        let names = Names::default();
        let host = |n: usize| format!("h{n}.example.org").parse::<HostName>().unwrap();
        let given: std::collections::HashSet<_> = (0..MAX_NAMES).map(|n| names.assign(&host(n)).unwrap()).collect();
        assert_eq!(given.len(), MAX_NAMES);
        assert_eq!(names.assign(&host(MAX_NAMES)), None, "one more has none");
        let first = names.assign(&host(0)).unwrap();
        assert_eq!(names.meaning(first.into()), Meaning::Name(host(0)), "and takes none from another");
    }

    #[test]
    fn a_flood_of_granted_names_is_recorded_and_remembered_within_bounds() {
        let mut log = QueryLog::default();
        let asked = |n: usize| Asked { name: n.to_string(), rtype: "A".into(), granted: true, reason: "grant" };
        let now = Instant::now();
        assert!((0..MAX_NAMES + 10).all(|n| log.event(asked(n), now).is_some()), "a name may carry data");
        assert_eq!(log.allowed.len(), MAX_NAMES);
        assert!(log.event(asked(MAX_NAMES + 20), now + QUIET).is_some());
        assert_eq!(log.allowed.len(), 1, "what is old makes room");
    }

    #[test]
    fn a_flood_of_denied_names_is_counted_not_recorded() {
        let mut log = QueryLog::default();
        let asked = |n: u32| Asked { name: format!("{n}.evil"), rtype: "A".into(), granted: false, reason: "no_grant" };
        let recorded = (0..1000).filter(|n| log.event(asked(*n), Instant::now()).is_some()).count();
        assert!((50..70).contains(&recorded), "{recorded}");
        assert_eq!(log.unrecorded, 1000 - recorded as u64);
        let granted = Asked { name: "a".into(), rtype: "A".into(), granted: true, reason: "grant" };
        let now = Instant::now();
        assert!(log.event(granted.clone(), now).is_some());
        assert!(log.event(granted.clone(), now).is_none());
        assert!(log.event(granted, now + QUIET).is_some());
    }
}
