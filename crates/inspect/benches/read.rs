//! Prints what reading costs: what stands between an agent's call and its decision, and what runs beside an answer.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringfence_inspect::json::{Limits, Value, parse};
use ringfence_inspect::llm::edit::{ask_for_usage, bound_output, is_usage_event};
use ringfence_inspect::llm::{Framing, Meter, Request, Route, Usage};
use ringfence_inspect::mcp::{List, Payload};
use ringfence_inspect::price::Prices;
use ringfence_inspect::sse::Sse;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limits = Limits::default();
    let route = Route::of("POST", "/v1/chat/completions", None)?.ok_or("a known path")?;
    println!("{:<44} {:>10} {:>10}", "", "µs", "MB/s");
    row("path of a call", 0, || Route::of("POST", black_box("/v1/chat/completions"), None).is_ok());
    for size in [1_024, 64 * 1_024, 1 << 20] {
        let body = chat(size);
        row(&format!("json of a chat, {size} bytes"), body.len(), || parse(black_box(&body), &limits).is_ok());
        row(&format!("chat read whole, {size} bytes"), body.len(), || {
            route.read(None, black_box(&body), &limits).is_ok()
        });
    }
    let body = chat(1_024);
    row("chat read, bounded, asked for usage, written", body.len(), || {
        let Ok(mut reading) = route.read(None, black_box(&body), &limits) else { return false };
        let Some(value) = reading.body.as_mut() else { return false };
        bound_output(&reading.request, value, 100);
        ask_for_usage(&reading.request, value);
        !value.to_bytes().is_empty()
    });

    let event = br#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}],"usage":null}

"#;
    let stream = event.repeat(1_000);
    row("1,000 events taken apart", stream.len(), || {
        let (mut sse, mut rest, mut count) = (Sse::new(1 << 16), black_box(&stream[..]), 0);
        while let Some(piece) = sse.next(&mut rest) {
            count += usize::from(piece.event.is_some());
        }
        count == 1_000
    });
    let request = Request::bare(&route);
    row("1,000 events metered", stream.len(), || {
        let mut meter = Meter::new(&request, Framing::Sse);
        meter.push(black_box(&stream));
        meter.metered().estimate.output > 0
    });
    let data = event.strip_prefix(b"data: ").ok_or("an event")?;
    row("is it the event that only usage brings", data.len(), || !is_usage_event(black_box(data)));
    let vectors = format!("{{\"data\":[{}0]}}", "0.0123456789,".repeat(80_000));
    row("answer of 1 MB of numbers metered", vectors.len(), || {
        let mut meter = Meter::new(&request, Framing::Json);
        meter.push(black_box(vectors.as_bytes()));
        !meter.metered().broken
    });

    let call = br#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"search","arguments":{"query":"something","limit":10}}}"#;
    row("call of a tool", call.len(), || Payload::parse(black_box(call), &limits, 64).is_ok());
    let tool = |n: usize| {
        Value::object([
            ("name", Value::text(format!("tool_{n}"))),
            ("description", Value::text("What it does, in a sentence or two, as servers say it.")),
            ("inputSchema", Value::object([("type", Value::text("object"))])),
        ])
    };
    let tools = Value::object([("tools", (0..50).map(tool).collect::<Value<'_>>())]);
    let size = tools.to_bytes().len();
    row("50 tools pinned and filtered", size, || {
        let mut tools = tools.clone();
        List::Tools.retain(&mut tools, |tool| tool.digest().raw() != &[0; 32]).is_ok()
    });
    let prices = Prices::shipped()?;
    let usage = Usage::estimated(1_000, 1_000);
    row("cost of a call", 0, || {
        prices.price(black_box("gpt-4o-mini-2024-07-18")).is_some_and(|p| p.cost(&usage).0 > 0)
    });
    Ok(())
}

/// The body of a chat of about so many bytes.
fn chat(size: usize) -> Vec<u8> {
    let tools = r#"[{"type":"function","function":{"name":"search","parameters":{"type":"object","properties":{"query":{"type":"string"}}}}}]"#;
    let head = format!(
        r#"{{"model":"gpt-4o-mini","stream":true,"max_tokens":500,"tools":{tools},"messages":[{{"role":"system","content":"You are a careful analyst."}}"#
    );
    let mut body = head.into_bytes();
    let message = br#",{"role":"user","content":"Compare the two reports.\nWhat do they say of growth, and which one is newer? Answer in a table."}"#;
    while body.len() + message.len() < size {
        body.extend_from_slice(message);
    }
    body.extend_from_slice(b"]}");
    body
}

/// Prints the microseconds of a call, the best of five runs of a tenth of a second, and how much it reads.
fn row(what: &str, bytes: usize, mut call: impl FnMut() -> bool) {
    let micros = (0..5)
        .map(|_| {
            let started = Instant::now();
            let mut calls = 0_u32;
            while started.elapsed() < Duration::from_millis(100) {
                assert!(black_box(call()));
                calls += 1;
            }
            started.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
        })
        .fold(f64::INFINITY, f64::min);
    let bytes = u32::try_from(bytes).map_or(0.0, f64::from);
    let rate = if bytes > 0.0 { format!("{:.0}", bytes / micros) } else { String::new() };
    println!("{what:<44} {micros:>10.2} {rate:>10}");
}
