//! Prints the cost of one decision with 10, 100 and 1,000 grants, by slice and by all rules.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringfence_model::manifest::{Grant, Scheme};
use ringfence_policy::{HttpRequest, Policy, Request};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("{:>7} {:>12} {:>14} {:>12}", "grants", "sliced µs", "unsliced µs", "compile ms");
    for count in [10, 100, 1000] {
        let grants = (0..count)
            .map(|n| {
                let host = format!("h{n}.example.org").parse()?;
                Ok(Grant { methods: vec!["POST".into()], paths: vec!["/v1/*".into()], ..Grant::to(host) })
            })
            .collect::<Result<Vec<_>, ringfence_model::host::HostPatternError>>()?;
        let started = Instant::now();
        let policy = Policy::compile(&"bench".parse()?, &grants, &[])?;
        let compiled = started.elapsed();
        let host = format!("h{}.example.org", count - 1).parse()?;
        let request = Request::Http(HttpRequest {
            host: &host,
            port: 443,
            scheme: Scheme::Https,
            method: "POST",
            path: "/v1/chat/completions",
            websocket: false,
            model: None,
            llm: None,
        });
        let sliced = cost(|| policy.decide(black_box(&request)).allows());
        let unsliced = cost(|| policy.decide_unsliced(black_box(&request)).allows());
        println!("{count:>7} {sliced:>12.2} {unsliced:>14.2} {:>12.1}", compiled.as_secs_f64() * 1e3);
    }
    Ok(())
}

/// Microseconds per call, the best of five runs of a tenth of a second.
fn cost(mut call: impl FnMut() -> bool) -> f64 {
    (0..5)
        .map(|_| {
            let started = Instant::now();
            let mut calls = 0_u32;
            while started.elapsed() < Duration::from_millis(100) {
                assert!(black_box(call()));
                calls += 1;
            }
            started.elapsed().as_secs_f64() * 1e6 / f64::from(calls)
        })
        .fold(f64::INFINITY, f64::min)
}
