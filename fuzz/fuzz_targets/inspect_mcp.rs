//! Messages of MCP and A2A, of either side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::json::Limits;
use ringfence_inspect::mcp::{Catalogue, Kind, List, Payload, Pending, answer};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits { bytes: 1 << 16, depth: 32, values: 4096 };
    let Ok(payload) = Payload::parse(bytes, &limits, 16) else { return };
    let sent = payload.to_bytes();
    assert_eq!(Payload::parse(&sent, &limits, 16).expect("what is sent on is read"), payload);
    let mut pending = Pending::new(4);
    for message in &payload.messages {
        let _ = (message.asks(), message.tool_call(), message.subject());
        match message.kind() {
            Kind::Request { id, .. } => drop(pending.asked(id, ())),
            Kind::Response { id } => drop(pending.answered(id)),
            _ => {}
        }
        let Some(result) = message.result() else { continue };
        for list in [List::Prompts, List::Resources, List::Templates, List::Tools] {
            let mut result = result.clone();
            let wanted = |name: &str| name.len() % 2 == 1;
            if list.retain(&mut result, |definition| wanted(definition.name)).is_ok() {
                let left = list.definitions(&result).expect("what is left is a list");
                assert!(left.iter().all(|definition| wanted(definition.name)), "an unwanted one is left");
                let mut catalogue = Catalogue::default();
                catalogue.add(list, &result, left.len()).expect("what is left has one name each");
                assert_eq!(catalogue.iter().count(), left.len());
            }
        }
    }
    assert!(pending.len() <= 4);
    let asked = payload.messages.iter().filter(|message| matches!(message.kind(), Kind::Request { .. })).count();
    let (batch, answers) = (payload.batch, answer::deny(&payload.messages, "c"));
    assert_eq!(answers.len(), asked, "a request has not one answer");
    if let Some(body) = answer::body(batch, answers) {
        Payload::parse(&body, &limits, 16).expect("our own answers are read");
    }
});
