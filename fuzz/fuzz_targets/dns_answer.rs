//! The messages that an agent sends to port 53: of one granted name, and of none.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use ringfence_gate::dns::{MAX_DATAGRAM, Over, Say, Zone, answer};
use ringfence_model::HostName;

struct One(bool);

impl Zone for One {
    fn address(&mut self, host: &HostName) -> Say {
        if self.0 && host.name() == Some("a.bc") { Say::Address([198, 18, 1, 2].into()) } else { Say::Nothing }
    }

    fn name(&mut self, address: Ipv4Addr) -> Option<HostName> {
        if self.0 && address.octets() == [198, 18, 1, 2] { "a.bc".parse().ok() } else { None }
    }
}

fuzz_target!(|bytes: &[u8]| {
    for granted in [false, true] {
        for over in [Over::Datagram, Over::Stream] {
            let Some(answer) = answer(bytes, over, &mut One(granted)) else { continue };
            assert!(answer.message.len() >= 12, "a header at least");
            assert_eq!(answer.message[..2], bytes[..2], "to whom it was asked");
            assert!(over == Over::Stream || answer.message.len() <= usize::from(MAX_DATAGRAM));
            // RFC 1035 section 4.1.1: bytes 6 and 7 count the answers.
            let answers = u16::from_be_bytes([answer.message[6], answer.message[7]]);
            assert!(answers <= u16::from(granted), "nothing is said of what is not granted");
            assert!(granted || answer.asked.is_none_or(|asked| !asked.granted));
        }
    }
});
