//! JSON Schemas and values. What a value is told not to fit is a place in it, and work has a bound.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::json::{Limits, parse};
use ringfence_inspect::schema::Schema;

fuzz_target!(|input: (&str, &str)| {
    let (Ok(schema), Ok(value)) = (Schema::parse(input.0), parse(input.1.as_bytes(), &Limits::default())) else {
        return;
    };
    let found = schema.fits(&value);
    assert_eq!(found, schema.fits(&value));
    if let Err(misfit) = found {
        assert!(misfit.path.is_empty() || misfit.path.starts_with('/'));
    }
});
