//! Tables of prices.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::llm::Usage;
use ringfence_inspect::price::{Cost, Prices};

fuzz_target!(|text: &str| {
    let shipped = Prices::shipped().expect("the shipped table is understood");
    let usage = Usage::estimated(1_000, 1_000);
    let _ = shipped.cost(text, &usage);
    if let Ok(prices) = Prices::parse(text) {
        let both = shipped.overlaid(prices.clone());
        for model in ["gpt-4o", "x"] {
            if let Cost::Known(sum) = prices.cost(model, &usage) {
                assert_eq!(both.cost(model, &usage), Cost::Known(sum), "an upper table does not count");
            }
        }
    }
});
