//! Forms with files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringfence_inspect::llm::form::Form;

fuzz_target!(|bytes: &[u8]| {
    if let Some(Ok(form)) = Form::read("multipart/form-data; boundary=x", bytes, 1 << 16) {
        let inside: usize = form.parts().iter().map(|part| part.body.len() + part.name.len()).sum();
        assert!(inside <= bytes.len(), "parts are not apart");
        if let Ok(Some(text)) = form.text("model") {
            assert_eq!(form.parts().iter().filter(|part| part.name == "model").count(), 1);
            assert!(form.parts().iter().any(|part| part.body == text.as_bytes()));
        }
    }
});
