//! Texts of SQL, as an agent sends them to a database. What follows a text is seen, whatever the text is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_gate::postgres::classify::understand;

fuzz_target!(|text: &str| {
    let alone = understand(text);
    assert!(!alone.classes.is_empty());
    assert_eq!(alone.note.is_some(), alone.classes.contains(&"other"));
    let followed = understand(&format!("{text}\n;delete from t"));
    assert!(followed.classes.contains(&"write") || followed.classes.contains(&"other"), "{followed:?}");
});
