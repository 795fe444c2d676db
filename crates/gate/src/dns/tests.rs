use hickory_proto::op::{MessageType, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use proptest::prelude::*;

use super::*;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);

/// One granted name, one that would be granted were there room, and nothing else.
struct One;

impl Zone for One {
    fn address(&mut self, host: &HostName) -> Say {
        match host.name() {
            Some("api.example.org" | "_sip._tcp.example.org") => Say::Address(ADDRESS),
            Some("full.example.org") => Say::Full,
            _ => Say::Nothing,
        }
    }

    fn name(&mut self, address: Ipv4Addr) -> Option<HostName> {
        (address == ADDRESS).then(|| "api.example.org".parse().unwrap())
    }
}

fn query(name: &str, rtype: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), rtype));
    message
}

fn ask(message: &Message) -> (Message, Asked) {
    let answer = answer(&message.to_vec().unwrap(), Over::Datagram, &mut One).unwrap();
    (Message::from_vec(&answer.message).unwrap(), answer.asked.unwrap())
}

fn code_of(bytes: &[u8]) -> Option<u8> {
    answer(bytes, Over::Datagram, &mut One).map(|answer| {
        assert_eq!(&answer.message[..2], &bytes[..2], "the same id");
        assert_eq!(answer.message[2] & 0x80, 0x80);
        assert_eq!(answer.asked, None);
        answer.message[3] & 0x0f
    })
}

#[test]
fn a_granted_name_has_one_address_and_nothing_else() {
    let (got, asked) = ask(&query("API.example.ORG.", RecordType::A));
    assert_eq!(got.answers.len(), 1);
    assert_eq!((&got.answers[0].data, got.answers[0].ttl), (&RData::A(A(ADDRESS)), TTL_S));
    assert_eq!(got.answers[0].name.to_ascii(), "API.example.ORG.", "as it was asked: 0x20");
    assert_eq!(got.queries[0].name().to_ascii(), "API.example.ORG.");
    assert!(got.metadata.recursion_available && got.metadata.recursion_desired && !got.metadata.authentic_data);
    assert_eq!((asked.granted, asked.reason), (true, "grant"));
    // No AAAA, so that nobody dials past the synthetic address; no HTTPS and SVCB, so no keys for ECH and no HTTP/3.
    for rtype in [
        RecordType::AAAA,
        RecordType::CAA,
        RecordType::CNAME,
        RecordType::DNSKEY,
        RecordType::HTTPS,
        RecordType::MX,
        RecordType::NS,
        RecordType::PTR,
        RecordType::SOA,
        RecordType::SRV,
        RecordType::SVCB,
        RecordType::TXT,
        RecordType::Unknown(65_280),
    ] {
        let (got, asked) = ask(&query("api.example.org.", rtype));
        assert_eq!((got.metadata.response_code, got.answers.len()), (ResponseCode::NoError, 0), "{rtype}");
        let RData::SOA(soa) = &got.authorities[0].data else { panic!("{rtype}") };
        assert_eq!((soa.minimum, got.authorities[0].ttl, asked.granted), (TTL_S, TTL_S, true));
        assert_eq!(got.authorities[0].name.to_ascii(), "api.example.org.");
    }
    let (got, _) = ask(&query("_sip._tcp.example.org.", RecordType::SRV));
    assert_eq!(got.metadata.response_code, ResponseCode::NoError, "names of services are names");
}

#[test]
fn any_is_answered_with_as_little_as_may_be() {
    let (got, asked) = ask(&query("api.example.org.", RecordType::ANY));
    let RData::HINFO(info) = &got.answers[0].data else { panic!() };
    assert_eq!((&info.cpu[..], got.answers.len(), asked.rtype.as_str()), (&b"RFC8482"[..], 1, "ANY"));
    let (got, _) = ask(&query("evil.example.", RecordType::ANY));
    assert_eq!(got.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn all_other_names_do_not_exist_and_are_recorded_whole() {
    let data = format!("{}.{}.{}.evil.example.", "a".repeat(63), "b".repeat(63), "c".repeat(60));
    for rtype in [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::SRV, RecordType::HTTPS] {
        let (got, asked) = ask(&query(&data, rtype));
        assert_eq!(got.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!((got.answers.len(), got.authorities[0].ttl), (0, DENIED_TTL_S));
        assert_eq!(format!("{}.", asked.name), data);
        assert_eq!((asked.rtype, asked.granted, asked.reason), (rtype.to_string(), false, "no_grant"));
    }
    for name in ["example.org.", "a.api.example.org.", "org.", ".", "api.example.org.evil.example."] {
        let (got, asked) = ask(&query(name, RecordType::A));
        assert_eq!((got.metadata.response_code, asked.granted), (ResponseCode::NXDomain, false), "{name}");
    }
}

#[test]
fn names_that_are_none_do_not_exist() {
    // Bytes beyond ASCII, a dot and a zero inside a label, a wildcard, an address.
    for labels in [
        &[&b"\xc3\xa4pi"[..], b"example", b"org"][..],
        &[b"api.example", b"org"],
        &[b"api\0", b"example", b"org"],
        &[b"*", b"example", b"org"],
        &[b"127", b"0", b"0", b"1"],
        &[b"0x7f", b"1"],
        &[b"2130706433"],
    ] {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_labels(labels.iter().copied()).unwrap(), RecordType::A));
        let (got, asked) = ask(&message);
        assert_eq!(got.metadata.response_code, ResponseCode::NXDomain, "{labels:?}");
        assert!(asked.name.is_ascii() && !asked.name.contains('\0') && !asked.granted, "{asked:?}");
    }
    let (got, _) = ask(&query("xn--pi-uia.example.org.", RecordType::A));
    assert_eq!(got.metadata.response_code, ResponseCode::NXDomain, "a name in punycode is a name like any other");
}

#[test]
fn a_synthetic_address_has_its_name_and_others_have_none() {
    let (got, asked) = ask(&query("2.1.18.198.in-addr.arpa.", RecordType::PTR));
    let RData::PTR(name) = &got.answers[0].data else { panic!() };
    assert_eq!((name.0.to_ascii().as_str(), got.answers[0].ttl, asked.granted), ("api.example.org.", TTL_S, true));
    let (got, _) = ask(&query("2.1.18.198.in-addr.arpa.", RecordType::TXT));
    assert_eq!((got.metadata.response_code, got.answers.len()), (ResponseCode::NoError, 0));
    for name in [
        "3.1.18.198.in-addr.arpa.",
        "1.1.18.198.in-addr.arpa.",
        "1.0.0.10.in-addr.arpa.",
        "1.18.198.in-addr.arpa.",
        "0.2.1.18.198.in-addr.arpa.",
        "300.1.18.198.in-addr.arpa.",
        "1.0.0.0.ip6.arpa.",
    ] {
        let (got, asked) = ask(&query(name, RecordType::PTR));
        assert_eq!((got.metadata.response_code, asked.granted), (ResponseCode::NXDomain, false), "{name}");
    }
}

#[test]
fn no_room_is_a_failure_and_not_a_lie() {
    let (got, asked) = ask(&query("full.example.org.", RecordType::A));
    assert_eq!((got.metadata.response_code, asked.granted), (ResponseCode::ServFail, false));
    assert_eq!(asked.reason, "names_exhausted");
}

#[test]
fn other_classes_and_transfers_are_refused() {
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY, DNSClass::NONE, DNSClass::Unknown(7)] {
        let mut message = query("version.bind.", RecordType::TXT);
        message.queries[0].set_query_class(class);
        let (got, asked) = ask(&message);
        assert_eq!((got.metadata.response_code, asked.reason), (ResponseCode::Refused, "dns_class"), "{class}");
        assert_eq!(asked.rtype, format!("{class} TXT"));
        assert!(got.answers.is_empty());
    }
    for rtype in [RecordType::AXFR, RecordType::IXFR, RecordType::OPT, RecordType::TSIG, RecordType::Unknown(249)] {
        let (got, asked) = ask(&query("api.example.org.", rtype));
        assert_eq!((got.metadata.response_code, asked.reason), (ResponseCode::Refused, "dns_type"), "{rtype}");
    }
}

#[test]
fn edns_is_spoken_in_version_zero_and_no_option_comes_back() {
    let mut message = query("api.example.org.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(65_535).set_dnssec_ok(true);
    edns.options_mut().insert(EdnsOption::Unknown(10, b"cookie!!".to_vec()));
    edns.options_mut().insert(EdnsOption::Unknown(65_001, vec![0; 300]));
    message.set_edns(edns);
    let (got, _) = ask(&message);
    let back = got.edns.clone().unwrap();
    assert_eq!((back.version(), back.max_payload(), back.flags().dnssec_ok), (0, MAX_DATAGRAM, true));
    assert!(back.option(EdnsCode::from(10)).is_none() && back.options().as_ref().is_empty());
    assert_eq!(got.answers.len(), 1);
    assert!(ask(&query("api.example.org.", RecordType::A)).0.edns.is_none(), "none is sent to who sent none");

    let mut newer = query("api.example.org.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    newer.set_edns(edns);
    let bytes = newer.to_vec().unwrap();
    let got = answer(&bytes, Over::Datagram, &mut One).unwrap();
    let got = Message::from_vec(&got.message).unwrap();
    assert_eq!((u16::from(got.metadata.response_code), got.answers.len()), (16, 0), "BADVERS");
    assert_eq!(got.edns.unwrap().version(), 0);

    // Two of them.
    let mut bytes = message.to_vec().unwrap();
    bytes.extend(b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
    bytes[11] = 2;
    assert_eq!(code_of(&bytes), Some(1));
}

#[test]
fn what_is_no_question_gets_an_error_or_silence() {
    let good = query("api.example.org.", RecordType::A).to_vec().unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert_eq!(code_of(&good[..11]), None, "no header");
    assert_eq!(code_of(&with(2, 0x81)), None, "an answer");
    for opcode in 1..16 {
        assert_eq!(code_of(&with(2, opcode << 3)), Some(4), "opcode {opcode}");
    }
    for (at, byte) in [(5, 0), (5, 2), (4, 1), (7, 1), (9, 1), (11, 1), (11, 3), (10, 255)] {
        assert_eq!(code_of(&with(at, byte)), Some(1), "count at {at}");
    }
    for end in HEADER_BYTES..good.len() {
        assert_eq!(code_of(&good[..end]), Some(1), "cut at {end}");
    }
    assert_eq!(code_of(&[&good[..], b"\0"].concat()), Some(1), "bytes behind the end");
    let question = |name: &[u8]| [&good[..HEADER_BYTES], name, b"\0\x01\0\x01"].concat();
    assert_eq!(code_of(&question(b"\xc0\x0c")), Some(1), "a name that is itself");
    assert_eq!(code_of(&question(b"\x01a\xc0\x0c")), Some(1), "a loop");
    assert_eq!(code_of(&question(b"\xc0\xff")), Some(1), "a name beyond the end");
    assert_eq!(code_of(&question(b"\x40aaaa\0")), Some(1), "a label of a kind that never was");
    assert_eq!(code_of(&question(&[&[64][..], &[b'a'; 64], b"\0"].concat())), Some(1), "a label of 64");
    let long = [&[63][..], &[b'a'; 63]].concat().repeat(4);
    assert_eq!(code_of(&question(&[&long[..], b"\0"].concat())), Some(1), "a name of 257");
    let response = Message::response(1, hickory_proto::op::OpCode::Query);
    assert_eq!(response.metadata.message_type, MessageType::Response);
    assert_eq!(code_of(&response.to_vec().unwrap()), None);
}

#[test]
fn what_does_not_fit_is_truncated_over_udp_alone() {
    let longest = [63, 63, 63, 55].map(|n| "a".repeat(n)).join(".");
    let (got, _) = ask(&query(&format!("{longest}."), RecordType::A));
    assert!(!got.metadata.truncation && got.to_vec().unwrap().len() <= usize::from(MIN_DATAGRAM), "all answers fit");
    let mut message = Message::response(7, hickory_proto::op::OpCode::Query);
    message.add_query(query("api.example.org.", RecordType::A).queries[0].clone());
    for _ in 0..100 {
        let name = Name::from_ascii("api.example.org.").unwrap();
        message.add_answer(Record::from_rdata(name, TTL_S, RData::A(A(ADDRESS))));
    }
    let cut = Message::from_vec(&fit(message.clone(), MIN_DATAGRAM).unwrap()).unwrap();
    assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1);
    let whole = Message::from_vec(&fit(message, u16::MAX).unwrap()).unwrap();
    assert!(!whole.metadata.truncation && whole.answers.len() == 100);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = answer(&bytes, Over::Datagram, &mut One);
    }

    #[test]
    fn a_damaged_query_is_answered_within_bounds(at in 0..400_usize, to in any::<u8>(), cut in 0..400_usize) {
        let mut message = query("api.example.org.", RecordType::A);
        let mut edns = Edns::new();
        edns.options_mut().insert(EdnsOption::Unknown(10, vec![1; 300]));
        message.set_edns(edns);
        let mut bytes = message.to_vec().unwrap();
        let at = at % bytes.len();
        bytes[at] = to;
        bytes.truncate(bytes.len().saturating_sub(cut % 4));
        if let Some(answer) = answer(&bytes, Over::Datagram, &mut One) {
            prop_assert!(answer.message.len() <= usize::from(MAX_DATAGRAM));
        }
    }
}
