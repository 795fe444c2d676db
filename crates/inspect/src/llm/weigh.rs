//! The estimate of tokens, made without a tokeniser.
//!
//! A text counts one token for every four ASCII characters and one for every other character, and at least one for every
//! word. Tokenisers in use give English prose about that, code a little more, and CJK about as much. What is not text
//! counts by its kind: see [`IMAGE_TOKENS`], [`SOUND_BYTES_PER_TOKEN`] and [`PAGE_BYTES_PER_TOKEN`].

use crate::json::Value;

/// What an image counts: the most that Anthropic counts, and more than a high-detail image of 1024 by 1024 pixels counts
/// at OpenAI.
pub const IMAGE_TOKENS: u64 = 1_600;

/// Base64 characters of sound or moving pictures for each token. Google counts 32 tokens per second of sound, for which
/// strongly compressed sound takes about five thousand characters.
pub const SOUND_BYTES_PER_TOKEN: u64 = 160;

/// Base64 characters of a document for each token.
pub const PAGE_BYTES_PER_TOKEN: u64 = 16;

/// Counts the tokens of texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    ascii: u64,
    other: u64,
    words: u64,
    fixed: u64,
    in_word: bool,
}

impl Tally {
    /// Adds a text.
    pub(super) fn text(&mut self, text: &str) {
        self.begin();
        self.bytes(text.as_bytes());
    }

    /// Begins a text that comes in parts.
    pub(super) const fn begin(&mut self) {
        self.in_word = false;
    }

    /// Adds a part of a text in UTF-8, which may be cut anywhere.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        let Some((first, rest)) = bytes.split_first() else { return };
        self.words += u64::from(!self.in_word && !is_space(*first));
        // A character in more than one byte begins with one from 0xc0 on; what continues it does not count again.
        // No sum of so few overflows a byte, and sums of bytes are quick.
        for part in bytes.chunks(255) {
            self.ascii += u64::from(part.iter().map(|b| u8::from(*b < 0x80)).sum::<u8>());
            self.other += u64::from(part.iter().map(|b| u8::from(*b >= 0xc0)).sum::<u8>());
        }
        for (before, part) in bytes.chunks(255).zip(rest.chunks(255)) {
            let begins = |(a, b): (&u8, &u8)| u8::from(is_space(*a) & !is_space(*b));
            self.words += u64::from(before.iter().zip(part).map(begins).sum::<u8>());
        }
        self.in_word = bytes.last().is_some_and(|last| !is_space(*last));
    }

    /// Adds tokens.
    pub(super) const fn tokens(&mut self, count: u64) {
        self.fixed = self.fixed.saturating_add(count);
    }

    /// The estimate.
    pub(super) fn total(&self) -> u64 {
        (self.ascii.div_ceil(4) + self.other).max(self.words).saturating_add(self.fixed)
    }

    /// Adds a whole value: its texts, keys and numbers, and what is not text by its kind.
    pub(super) fn value(&mut self, value: &Value<'_>) {
        self.within(value, "", None);
    }

    fn within(&mut self, value: &Value<'_>, key: &str, kind: Option<Kind>) {
        match value {
            Value::Text(text) => self.leaf(text, key, kind),
            Value::Number(_) => self.tokens(1),
            Value::Bool(_) | Value::Null => {}
            Value::List(list) => list.iter().for_each(|value| self.within(value, key, kind)),
            Value::Object(object) => {
                let said = ["media_type", "mimeType", "mime_type"].iter().find_map(|k| object.get(k)?.as_str());
                let kind = said.map_or(kind, Kind::of_mime);
                for (key, value) in object.iter() {
                    self.text(key);
                    self.within(value, key, Kind::of_key(key).or(kind));
                }
            }
        }
    }

    fn leaf(&mut self, text: &str, key: &str, kind: Option<Kind>) {
        if let Some((mime, data)) = text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
            return self.media(Kind::of_mime(mime), data);
        }
        match key {
            "b64_json" | "bytes" | "data" | "file_data" | "images" | "audio" => self.media(kind, text),
            // A picture that the provider fetches.
            "image_url" | "url" | "fileUri" | "file_uri" if kind == Some(Kind::Image) => self.tokens(IMAGE_TOKENS),
            _ => self.text(text),
        }
    }

    fn media(&mut self, kind: Option<Kind>, data: &str) {
        let length = data.len() as u64;
        match kind {
            None => self.text(data),
            Some(Kind::Document) => self.tokens(length.div_ceil(PAGE_BYTES_PER_TOKEN)),
            Some(Kind::Image) => self.tokens(IMAGE_TOKENS),
            Some(Kind::Sound) => self.tokens(length.div_ceil(SOUND_BYTES_PER_TOKEN)),
        }
    }
}

const fn is_space(byte: u8) -> bool {
    (byte == b' ') | (byte == b'\t') | (byte == b'\n') | (byte == b'\r')
}

/// What is not text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Document,
    Image,
    Sound,
}

impl Kind {
    fn of_mime(mime: &str) -> Option<Self> {
        let (class, _) = mime.split_once('/').unwrap_or((mime, ""));
        match class {
            "image" => Some(Self::Image),
            "audio" | "video" => Some(Self::Sound),
            "application" if !mime.contains("json") && !mime.contains("xml") => Some(Self::Document),
            _ => None,
        }
    }

    fn of_key(key: &str) -> Option<Self> {
        match key {
            "image" | "images" | "image_url" | "input_image" => Some(Self::Image),
            "audio" | "input_audio" | "video" | "video_url" => Some(Self::Sound),
            "document" | "file" | "file_data" | "input_file" => Some(Self::Document),
            _ => None,
        }
    }
}

/// Estimates the tokens of a text.
#[must_use]
pub fn estimate_tokens(text: &str) -> u64 {
    let mut tally = Tally::default();
    tally.text(text);
    tally.total()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::json::{Limits, parse};

    fn of(text: &str) -> u64 {
        let mut tally = Tally::default();
        tally.value(&parse(text.as_bytes(), &Limits::default()).unwrap());
        tally.total()
    }

    #[test]
    fn texts_count_by_characters_and_words() {
        assert_eq!(estimate_tokens(""), 0);
        assert_eq!(estimate_tokens("a"), 1);
        assert_eq!(estimate_tokens("a b c d e"), 5);
        assert_eq!(estimate_tokens("internationalisation"), 5);
        assert_eq!(estimate_tokens("日本語"), 3);
        assert_eq!(estimate_tokens("été"), 3);
    }

    #[test]
    fn what_is_no_text_counts_by_its_kind() {
        let long = "A".repeat(16_000);
        for (text, want) in [
            (format!(r#"[{{"image_url":{{"url":"data:image/png;base64,{long}"}}}}]"#), IMAGE_TOKENS),
            (r#"[{"image_url":{"url":"https://example.org/x.png"}}]"#.to_owned(), IMAGE_TOKENS),
            (format!(r#"[{{"source":{{"media_type":"image/png","data":"{long}"}}}}]"#), IMAGE_TOKENS),
            (format!(r#"[{{"inlineData":{{"mimeType":"audio/wav","data":"{long}"}}}}]"#), 100),
            (format!(r#"[{{"input_audio":{{"format":"wav","data":"{long}"}}}}]"#), 100),
            (format!(r#"[{{"image":{{"format":"png","source":{{"bytes":"{long}"}}}}}}]"#), IMAGE_TOKENS),
            (format!(r#"[{{"document":{{"format":"pdf","source":{{"bytes":"{long}"}}}}}}]"#), 1_000),
            (format!(r#"[{{"images":["{long}","{long}"]}}]"#), 2 * IMAGE_TOKENS),
            (format!(r#"[{{"source":{{"media_type":"text/plain","data":"{long}"}}}}]"#), 4_000),
            (format!(r#"[{{"text":"{long}"}}]"#), 4_000),
        ] {
            let given = of(&text);
            assert!((want..want + 20).contains(&given), "{} counts {given}", &text[..60.min(text.len())]);
        }
        assert_eq!(of("[1,2,3]"), 3);
    }

    proptest! {
        #[test]
        fn more_text_never_counts_less(a in "\\PC{0,40}", b in "\\PC{0,40}") {
            let both = estimate_tokens(&format!("{a}{b}"));
            prop_assert!(both >= estimate_tokens(&a).max(estimate_tokens(&b)));
        }
    }
}
