//! Names become addresses that mean the name and nothing else. No query leaves the host from here.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use ringfence_audit::{Event, Outcome};
use ringfence_model::HostName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::record::Pace;
use crate::{Gate, proxy};

/// Seconds that a client may keep an answer. The address stays for the life of the gate.
const TTL_S: u32 = 30;

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

/// What was asked, and whether it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name as asked, whole.
    pub name: String,
    /// The record type.
    pub rtype: String,
    /// Whether a grant covers it.
    pub granted: bool,
}

/// An answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message to send back.
    pub message: Vec<u8>,
    /// What to record; `None` for a message that asks nothing.
    pub asked: Option<Asked>,
}

/// What the resolver may say about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// It has this address, and no other records.
    Address(Ipv4Addr),
    /// It does not exist, as far as this agent goes.
    Nothing,
}

/// Answers one DNS message. `None` for what is not even a query.
///
/// # Source
/// RFC 1035 §4; RFC 6891 for the OPT record.
#[must_use]
pub fn answer(query: &[u8], say: &mut dyn FnMut(&HostName) -> Say) -> Option<Answer> {
    let query = Message::from_vec(query).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        reply.set_edns(edns);
    }
    let mut asked = None;
    match query.queries.as_slice() {
        _ if query.metadata.op_code != OpCode::Query => reply.metadata.response_code = ResponseCode::NotImp,
        [question] => {
            reply.add_query(question.clone());
            let text = question.name().to_ascii();
            let host = text.parse::<HostName>().ok().filter(|host| host.name().is_some());
            let said = match (&host, question.query_class()) {
                (Some(host), DNSClass::IN) => say(host),
                _ => Say::Nothing,
            };
            match said {
                Say::Address(address) if question.query_type() == RecordType::A => {
                    reply.add_answer(Record::from_rdata(question.name().clone(), TTL_S, RData::A(A(address))));
                }
                Say::Address(_) => {}
                // Clients take this as final at once; a refusal would make them ask on.
                Say::Nothing => reply.metadata.response_code = ResponseCode::NXDomain,
            }
            asked = Some(Asked {
                name: text.strip_suffix('.').unwrap_or(&text).chars().take(253).collect(),
                rtype: question.query_type().to_string(),
                granted: matches!(said, Say::Address(_)),
            });
        }
        _ => reply.metadata.response_code = ResponseCode::FormErr,
    }
    Some(Answer { message: reply.to_vec().ok()?, asked })
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
        let Asked { name, rtype, granted } = asked;
        if granted {
            self.allowed.retain(|_, at| now.duration_since(*at) < QUIET);
            if self.allowed.len() >= MAX_NAMES || self.allowed.contains_key(&(name.clone(), rtype.clone())) {
                return None;
            }
            self.allowed.insert((name.clone(), rtype.clone()), now);
            return Some(Event::DnsQuery { name, rtype, decision: Outcome::Allow, reason: "grant".into() });
        }
        if !self.denied.take() {
            self.unrecorded += 1;
            return None;
        }
        let reason = match std::mem::take(&mut self.unrecorded) {
            0 => "no_grant".into(),
            more => format!("no_grant; {more} more denied before it were only counted"),
        };
        Some(Event::DnsQuery { name, rtype, decision: Outcome::Deny, reason })
    }
}

impl Gate {
    /// Answers one DNS message and records it. `None`: say nothing.
    pub(crate) fn resolve(&self, query: &[u8]) -> Option<Vec<u8>> {
        let mut say = |host: &HostName| {
            if proxy::is_named(host) {
                return Say::Address(proxy::ADDRESS);
            }
            let newer = self.newer();
            if !newer.as_deref().unwrap_or(self).policy.could_resolve(host) {
                return Say::Nothing;
            }
            self.names.assign(host).map_or(Say::Nothing, Say::Address)
        };
        let Answer { message, asked } = answer(query, &mut say)?;
        let asked = asked?;
        let granted = asked.granted;
        let event = self.names.log.lock().unwrap_or_else(PoisonError::into_inner).event(asked, Instant::now());
        match event.map(|event| self.recorder.event(event)) {
            // What cannot be recorded does not happen.
            Some(Err(_)) if granted => None,
            _ => Some(message),
        }
    }
}

/// Answers DNS over a TCP connection until the agent is done.
///
/// # Source
/// RFC 7766.
pub(crate) async fn serve_stream(gate: &Gate, mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    loop {
        let idle = Duration::from_secs(10);
        let length = tokio::time::timeout(idle, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(idle, stream.read_exact(&mut query)).await??;
        let Some(reply) = gate.resolve(&query) else { return Ok(()) };
        let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        stream.write_all(&framed).await?;
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    use super::*;

    fn ask(name: &str, rtype: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
        message.to_vec().unwrap()
    }

    fn say(host: &HostName) -> Say {
        if host.to_string() == "api.example.org" { Say::Address([198, 18, 1, 2].into()) } else { Say::Nothing }
    }

    #[test]
    fn a_granted_name_has_one_address_and_nothing_else() {
        let got = answer(&ask("API.example.org.", RecordType::A), &mut say).unwrap();
        let message = Message::from_vec(&got.message).unwrap();
        assert_eq!(message.answers.len(), 1);
        assert_eq!(message.answers[0].data, RData::A(A([198, 18, 1, 2].into())));
        assert!(got.asked.unwrap().granted);
        for rtype in [RecordType::AAAA, RecordType::HTTPS, RecordType::TXT, RecordType::MX] {
            let got = answer(&ask("api.example.org.", rtype), &mut say).unwrap();
            let message = Message::from_vec(&got.message).unwrap();
            assert_eq!((message.metadata.response_code, message.answers.len()), (ResponseCode::NoError, 0));
        }
    }

    #[test]
    fn all_other_names_do_not_exist_and_are_recorded_whole() {
        let data = format!("{}.{}.{}.evil.example.", "a".repeat(63), "b".repeat(63), "c".repeat(60));
        let got = answer(&ask(&data, RecordType::TXT), &mut say).unwrap();
        let message = Message::from_vec(&got.message).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
        let asked = got.asked.unwrap();
        assert_eq!(format!("{}.", asked.name), data);
        assert_eq!((asked.rtype.as_str(), asked.granted), ("TXT", false));
    }

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
    fn a_flood_of_denied_names_is_counted_not_recorded() {
        let mut log = QueryLog::default();
        let asked = |n: u32| Asked { name: format!("{n}.evil"), rtype: "A".into(), granted: false };
        let recorded = (0..1000).filter(|n| log.event(asked(*n), Instant::now()).is_some()).count();
        assert!((50..70).contains(&recorded), "{recorded}");
        assert_eq!(log.unrecorded, 1000 - recorded as u64);
        let granted = Asked { name: "a".into(), rtype: "A".into(), granted: true };
        let now = Instant::now();
        assert!(log.event(granted.clone(), now).is_some());
        assert!(log.event(granted.clone(), now).is_none());
        assert!(log.event(granted, now + QUIET).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = answer(&bytes, &mut say);
        }
    }
}
