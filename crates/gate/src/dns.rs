//! DNS messages as an agent's resolver library sends them: one comes in, one goes out, and nothing is remembered. What is
//! answered to what is a table in `docs/reference/dns.md`.
//!
//! # Source
//! RFC 1035 §4; RFC 2308 for negative answers; RFC 6891 for EDNS; RFC 8482 for ANY.

use std::net::Ipv4Addr;

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::{A, HINFO, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};
use ringfence_model::HostName;

/// Seconds that a client may keep what it learnt about a granted name. Its address stays for the life of the gate.
pub const TTL_S: u32 = 30;

/// Seconds that a client may believe that a name does not exist: another policy may grant it.
pub const DENIED_TTL_S: u32 = 5;

/// The largest answer in a datagram to a client that takes so much, which fits every path.
///
/// # Source
/// DNS Flag Day 2020.
pub const MAX_DATAGRAM: u16 = 1232;

/// The largest answer in a datagram to a client that says nothing.
const MIN_DATAGRAM: u16 = 512;

/// Records behind the question that a query may have: OPT, and a signature.
const MAX_ADDITIONALS: u16 = 2;

/// The shortest message.
const HEADER_BYTES: usize = 12;

/// What a message came by, and its answer goes back by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A datagram.
    Datagram,
    /// A TCP connection.
    Stream,
}

/// What the resolver may say about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// It has this address, and no other records.
    Address(Ipv4Addr),
    /// It may have an address, and there is none left.
    Full,
    /// It does not exist, as far as this agent goes.
    Nothing,
}

/// What is known about names.
pub trait Zone {
    /// What may be said about a name.
    fn address(&mut self, host: &HostName) -> Say;

    /// The name that was given an address.
    fn name(&mut self, address: Ipv4Addr) -> Option<HostName>;
}

impl<F: FnMut(&HostName) -> Say> Zone for F {
    fn address(&mut self, host: &HostName) -> Say {
        self(host)
    }

    fn name(&mut self, _: Ipv4Addr) -> Option<HostName> {
        None
    }
}

/// What was asked, and whether it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name as asked, whole.
    pub name: String,
    /// The record type, behind the class where that is not the Internet's.
    pub rtype: String,
    /// Whether a grant covers it.
    pub granted: bool,
    /// Why, as a stable code.
    pub reason: &'static str,
}

/// An answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The message to send back.
    pub message: Vec<u8>,
    /// What to record; `None` for a message that asks nothing.
    pub asked: Option<Asked>,
}

/// Answers one DNS message. `None` for what is not even a query.
#[must_use]
pub fn answer(query: &[u8], over: Over, zone: &mut dyn Zone) -> Option<Answer> {
    let head = Head::read(query)?;
    let refused = |code| Some(Answer { message: head.refusal(code), asked: None });
    if head.opcode != 0 {
        return refused(ResponseCode::NotImp);
    }
    // RFC 9619: one question. Records in the other sections have no place in one either.
    if !matches!(head.counts, [1, 0, 0, 0..=MAX_ADDITIONALS]) {
        return refused(ResponseCode::FormErr);
    }
    let mut decoder = BinDecoder::new(query);
    let message = match Message::read(&mut decoder) {
        Ok(message) if decoder.is_empty() => message,
        _ => return refused(ResponseCode::FormErr),
    };
    let Some(question) = message.queries.first().cloned() else { return refused(ResponseCode::FormErr) };
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.checking_disabled = message.metadata.checking_disabled;
    let mut limit = MIN_DATAGRAM;
    if let Some(asked) = &message.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM);
        // RFC 3225 §3 wants it copied; nothing here is signed. Options are not understood, so none is sent back.
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        reply.set_edns(edns);
        limit = asked.max_payload().clamp(MIN_DATAGRAM, MAX_DATAGRAM);
        if asked.version() != 0 {
            reply.metadata.response_code = ResponseCode::BADVERS;
            return Some(Answer { message: reply.to_vec().ok()?, asked: None });
        }
    }
    let (name, class, rtype) = (question.name().clone(), question.query_class(), question.query_type());
    reply.add_query(question);
    let (granted, reason) = fill(&mut reply, &name, class, rtype, zone);
    let text = name.to_ascii();
    let asked = Asked {
        name: text.strip_suffix('.').unwrap_or(&text).chars().take(MAX_SHOWN).collect(),
        rtype: if class == DNSClass::IN { rtype.to_string() } else { format!("{class} {rtype}") },
        granted,
        reason,
    };
    let limit = if over == Over::Datagram { limit } else { u16::MAX };
    Some(Answer { message: fit(reply, limit)?, asked: Some(asked) })
}

/// The longest name in the log: every byte of a name of 255 escaped.
const MAX_SHOWN: usize = 1024;

/// Says what there is to say; gives whether that is granted, and why.
fn fill(
    reply: &mut Message,
    name: &Name,
    class: DNSClass,
    rtype: RecordType,
    zone: &mut dyn Zone,
) -> (bool, &'static str) {
    if class != DNSClass::IN {
        // CHAOS asks servers about themselves.
        reply.metadata.response_code = ResponseCode::Refused;
        return (false, "dns_class");
    }
    if is_meta(rtype) {
        reply.metadata.response_code = ResponseCode::Refused;
        return (false, "dns_type");
    }
    let text = name.to_ascii();
    let host = text.parse::<HostName>().ok().filter(|host| host.name().is_some());
    let back = host.as_ref().and_then(reversed);
    let own = |data: RData| Record::from_rdata(name.clone(), TTL_S, data);
    let data = match (back.and_then(|address| zone.name(address)), back, &host) {
        (Some(named), _, _) => Name::from_ascii(format!("{named}.")).ok().map(|named| RData::PTR(PTR(named))),
        (None, None, Some(host)) => match zone.address(host) {
            Say::Address(address) => Some(RData::A(A(address))),
            Say::Full => {
                reply.metadata.response_code = ResponseCode::ServFail;
                return (false, "names_exhausted");
            }
            Say::Nothing => None,
        },
        _ => None,
    };
    match data {
        None => {
            // Clients take this as final at once; a refusal would make them ask on.
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.authorities.extend(start_of_authority(&Name::root(), DENIED_TTL_S));
            (false, "no_grant")
        }
        Some(data) => {
            if rtype == RecordType::ANY {
                reply.add_answer(own(RData::HINFO(HINFO::new("RFC8482".into(), String::new()))));
            } else if data.record_type() == rtype {
                reply.add_answer(own(data));
            } else {
                reply.authorities.extend(start_of_authority(name, TTL_S));
            }
            (true, "grant")
        }
    }
}

/// Types that ask for something else than records: zone transfers, signatures, options.
///
/// # Source
/// RFC 6895 §3.1.
fn is_meta(rtype: RecordType) -> bool {
    let code = u16::from(rtype);
    code == 0 || code == 41 || ((128..=255).contains(&code) && rtype != RecordType::ANY)
}

/// The address that a name of the reverse tree is for.
fn reversed(host: &HostName) -> Option<Ipv4Addr> {
    let mut labels = host.name()?.strip_suffix(".in-addr.arpa")?.split('.');
    let mut octets = [0; 4];
    for octet in octets.iter_mut().rev() {
        *octet = labels.next()?.parse().ok()?;
    }
    labels.next().is_none().then(|| octets.into())
}

/// What lets a client keep a negative answer, and for how long. Its names are nobody's.
///
/// # Source
/// RFC 2308 §3, §5; RFC 6761 for `invalid`.
fn start_of_authority(zone: &Name, ttl: u32) -> Option<Record> {
    let (host, mailbox) = (Name::from_ascii("gate.invalid.").ok()?, Name::from_ascii("nobody.invalid.").ok()?);
    let data = SOA::new(host, mailbox, 1, 3600, 600, 86_400, ttl);
    Some(Record::from_rdata(zone.clone(), ttl, RData::SOA(data)))
}

/// The message in at most `limit` bytes; what does not fit is asked for again over TCP.
fn fit(mut reply: Message, limit: u16) -> Option<Vec<u8>> {
    let bytes = reply.to_vec().ok()?;
    if bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    reply.metadata.truncation = true;
    reply.answers.clear();
    reply.authorities.clear();
    reply.to_vec().ok()
}

/// What is read of a message before anything in it is believed.
struct Head {
    id: [u8; 2],
    opcode: u8,
    recursion_desired: u8,
    counts: [u16; 4],
}

impl Head {
    /// `None` for what is no query, so that two servers never answer each other.
    fn read(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let [a, b, flags, _, rest @ ..] = *head;
        let [q1, q2, a1, a2, n1, n2, r1, r2] = rest;
        (flags & 0x80 == 0).then_some(Self {
            id: [a, b],
            opcode: flags >> 3 & 0x0f,
            recursion_desired: flags & 1,
            counts: [[q1, q2], [a1, a2], [n1, n2], [r1, r2]].map(u16::from_be_bytes),
        })
    }

    /// A header alone, to a message that was not read further.
    fn refusal(&self, code: ResponseCode) -> Vec<u8> {
        let [a, b] = self.id;
        let flags = 0x80 | self.opcode << 3 | self.recursion_desired;
        let mut bytes = vec![a, b, flags, 0x80 | code.low()];
        bytes.resize(HEADER_BYTES, 0);
        bytes
    }
}

#[cfg(test)]
mod tests;
