//! Texts that are searched for in whatever form somebody writes them, in one pass and wherever chunks are cut.

use std::collections::HashMap;
use std::fmt::Write as _;

use aho_corasick::automaton::{Automaton, StateID};
use aho_corasick::nfa::contiguous::NFA;
use aho_corasick::{Anchored, MatchKind};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// A form that is shorter than this, and is not the text itself, says too little to be searched for.
const MIN_FORM_BYTES: usize = 8;

/// How a text may be written: as it is, in JSON, percent-encoded, in base64 wherever in the encoded it begins, and in
/// hexadecimal. Letters count without their case.
///
/// Base64 has three forms by where the text begins within three bytes; of each only the characters that the text alone
/// decides are there.
#[must_use]
pub(crate) fn forms(text: &[u8]) -> Vec<Vec<u8>> {
    if text.is_empty() {
        return Vec::new();
    }
    let mut all = vec![text.to_vec()];
    let mut more = Vec::new();
    if let Ok(plain) = std::str::from_utf8(text) {
        let json = serde_json::to_string(plain).unwrap_or_default();
        let json = json.get(1..json.len().saturating_sub(1)).unwrap_or_default().to_owned();
        more.extend([json.clone(), json.replace('/', "\\/"), ascii_json(&json)]);
        more.push(percent(plain, b"-._~"));
        more.push(percent(plain, b"-._~!$&'()*+,;=:@"));
        more.push(percent(plain, b"-._~!$&'()*+,;=:@/?"));
        more.push(percent(plain, b"-._*").replace("%20", "+"));
    }
    for skip in 0..3_usize {
        let padded = [vec![0; skip], text.to_vec()].concat();
        // Characters before this one hold bits of what stands before the text, those after `to` of what follows it.
        let (from, to) = ((skip * 8).div_ceil(6), padded.len() * 8 / 6);
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&padded);
            let certain = encoded.get(from..to).unwrap_or_default();
            more.extend([certain.to_owned(), certain.replace('/', "\\/"), percent(certain, b"-._~")]);
        }
    }
    more.push(text.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }));
    all.extend(more.into_iter().filter(|form| form.len() >= MIN_FORM_BYTES.min(text.len())).map(String::into_bytes));
    all.sort_unstable();
    all.dedup();
    all
}

/// JSON text with every character beyond ASCII escaped.
fn ascii_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
}

/// Percent-encodes everything but letters, digits and `plain`.
#[must_use]
pub(crate) fn percent(text: &str, plain: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Many needles, searched for at once in time linear to the text.
pub(crate) struct Needles {
    nfa: NFA,
    start: StateID,
    /// How much of a needle has been seen in each state that is on the way to one, and the length of the shortest that it
    /// may become.
    depths: HashMap<StateID, (usize, usize)>,
    lengths: Vec<usize>,
    shortest: usize,
    skip: Skip,
}

/// Where a search stands between two chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position(StateID);

/// A needle that was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Which one, by the order in which they were given.
    pub(crate) needle: usize,
    /// The place in the chunk behind its last byte.
    pub(crate) end: usize,
    /// Its length; it may have begun in an earlier chunk.
    pub(crate) length: usize,
}

impl Needles {
    /// Prepares a search; `None` if there is nothing to search for, or more than any automaton can hold.
    pub(crate) fn new(needles: &[Vec<u8>]) -> Option<Self> {
        if needles.is_empty() || needles.iter().any(Vec::is_empty) {
            return None;
        }
        let nfa = NFA::builder()
            .match_kind(MatchKind::Standard)
            .ascii_case_insensitive(true)
            .prefilter(false)
            .build(needles)
            .ok()?;
        let start = nfa.start_state(Anchored::No).ok()?;
        let mut depths = HashMap::new();
        for needle in needles {
            let mut state = start;
            for (at, byte) in needle.iter().enumerate() {
                state = nfa.next_state(Anchored::No, state, *byte);
                let (_, shortest) = depths.entry(state).or_insert((at + 1, needle.len()));
                *shortest = needle.len().min(*shortest);
            }
        }
        let lengths: Vec<usize> = needles.iter().map(Vec::len).collect();
        let shortest = lengths.iter().copied().min().unwrap_or(0);
        Some(Self { nfa, start, depths, lengths, shortest, skip: Skip::new(needles) })
    }

    pub(crate) const fn start(&self) -> Position {
        Position(self.start)
    }

    /// How many of the last bytes could be the beginning of a needle.
    pub(crate) fn depth(&self, position: Position) -> usize {
        self.depths.get(&position.0).map_or(0, |(depth, _)| *depth)
    }

    /// Whether so much of a needle has been seen that it can hardly be anything else: half of it, and no less than the
    /// shortest form that is searched for.
    pub(crate) fn tells(&self, position: Position) -> bool {
        self.depths.get(&position.0).is_some_and(|(depth, all)| *depth >= MIN_FORM_BYTES && depth * 2 >= *all)
    }

    /// The length of the longest needle.
    pub(crate) fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Goes on from `from` to the end of the first needle, behind which the search begins anew, or of the text.
    pub(crate) fn next(&self, position: &mut Position, text: &[u8], from: usize) -> Option<Hit> {
        let mut at = from;
        loop {
            if position.0 == self.start {
                at = self.skip.next(text, at);
            }
            let byte = *text.get(at)?;
            position.0 = self.nfa.next_state(Anchored::No, position.0, byte);
            at += 1;
            if self.nfa.is_special(position.0) && self.nfa.is_match(position.0) {
                let needle = self.nfa.match_pattern(position.0, 0).as_usize();
                position.0 = self.start;
                return Some(Hit { needle, end: at, length: self.lengths.get(needle).copied().unwrap_or(0) });
            }
        }
    }

    /// Whether a text is too short for any needle to be in it.
    pub(crate) fn exceed(&self, text: &[u8]) -> bool {
        text.len() < self.shortest
    }

    /// The first needle in a text that is there as a whole.
    pub(crate) fn find(&self, text: &[u8]) -> Option<Hit> {
        self.next(&mut self.start(), text, 0)
    }
}

/// Jumps over text in which no needle can begin.
///
/// # Source
/// S. Wu, U. Manber: A fast algorithm for multi-pattern searching (1994), with blocks of three bytes.
struct Skip {
    /// The length of the shortest needle; of longer ones only so much counts.
    window: usize,
    /// By the hash of a block: how far the window may be moved, so that the block stands where a needle has it.
    shifts: Vec<u8>,
}

const BLOCK: usize = 3;

impl Skip {
    fn new(needles: &[Vec<u8>]) -> Self {
        let window = needles.iter().map(Vec::len).min().unwrap_or(0);
        if window < BLOCK + 1 {
            return Self { window, shifts: Vec::new() };
        }
        let most = u8::try_from(window - BLOCK + 1).unwrap_or(u8::MAX);
        let mut shifts = vec![most; 1 << 12];
        for needle in needles {
            for (at, block) in needle.windows(BLOCK).take(window - BLOCK + 1).enumerate() {
                let shift = u8::try_from(window - BLOCK - at).unwrap_or(u8::MAX);
                if let Some(slot) = shifts.get_mut(Self::hash(block)) {
                    *slot = shift.min(*slot);
                }
            }
        }
        Self { window, shifts }
    }

    /// Without regard to the case of letters.
    fn hash(block: &[u8]) -> usize {
        block.iter().fold(0_usize, |hash, byte| (hash << 4 ^ hash >> 8 ^ usize::from(byte | 0x20)) & 0xfff)
    }

    /// The first place from `at` on where a needle may begin.
    fn next(&self, text: &[u8], at: usize) -> usize {
        if self.shifts.is_empty() {
            return at;
        }
        let mut end = at + self.window;
        while let Some(block) = text.get(end - BLOCK..end) {
            match self.shifts.get(Self::hash(block)) {
                Some(0) | None => return end - self.window,
                Some(shift) => end += usize::from(*shift),
            }
        }
        (end - self.window).min(text.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needles(texts: &[&str]) -> Needles {
        Needles::new(&texts.iter().map(|t| t.as_bytes().to_vec()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_text_is_found_in_every_form() {
        let secret = "sk-L1ve/0123+45&67\"89\u{e9}";
        let all = Needles::new(&forms(secret.as_bytes())).unwrap();
        let hex: String = secret.bytes().map(|b| format!("{b:02x}")).collect();
        let json = serde_json::to_string(secret).unwrap();
        let mut written = vec![
            secret.to_owned(),
            secret.to_ascii_uppercase(),
            json.clone(),
            json.replace('/', "\\/"),
            json.replace('\u{e9}', "\\u00e9"),
            json.replace('\u{e9}', "\\u00E9"),
            percent(secret, b"-._~"),
            percent(secret, b"-._~").to_ascii_lowercase(),
            hex.clone(),
            hex.to_uppercase(),
        ];
        for before in ["", "a", "ab", "user:", "user1:", "user12:"] {
            for after in ["", "x", "xy", "xyz"] {
                let whole = format!("{before}{secret}{after}");
                for encoded in [STANDARD_NO_PAD.encode(&whole), URL_SAFE_NO_PAD.encode(&whole)] {
                    written.push(percent(&encoded, b""));
                    written.push(encoded.replace('/', "\\/"));
                    written.push(encoded);
                }
            }
        }
        for text in written {
            assert!(all.find(text.as_bytes()).is_some(), "{text}");
            assert!(all.find(format!("some {text} more").as_bytes()).is_some(), "{text}");
        }
        assert!(all.find(b"sk-L1ve/0123+45&67 89").is_none());
        assert!(forms(b"").is_empty() && Needles::new(&[]).is_none());
    }

    #[test]
    fn a_long_text_without_a_needle_costs_little() {
        let all = Needles::new(&forms(b"sk-live-0123456789abcdef")).unwrap();
        let text = "The quick brown fox, {\"role\":\"user\"} and more. ".repeat(1400).into_bytes();
        let mut looked = 0;
        let mut at = 0;
        while at < text.len() {
            let next = all.skip.next(&text, at);
            looked += (next == at) as usize;
            at = next.max(at + 1);
        }
        assert!(looked * 20 < text.len(), "{looked} of {}", text.len());
    }

    proptest! {
        #[test]
        fn what_is_jumped_over_holds_nothing(
            texts in prop::collection::vec("[abc]{1,9}", 1..5),
            hay in "[abcd]{0,80}",
            cuts in prop::collection::vec(0..80_usize, 0..6),
        ) {
            let given: Vec<&str> = texts.iter().map(String::as_str).collect();
            let all = needles(&given);
            // What the field's own search finds, from the end of one match to the next.
            let plain = aho_corasick::AhoCorasick::new(&given).unwrap();
            let want: Vec<usize> = plain.find_iter(&hay).map(|m| m.end()).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(hay.len())).collect();
            cuts.extend([0, hay.len()]);
            cuts.sort_unstable();
            let (mut got, mut position) = (Vec::new(), all.start());
            for cut in cuts.windows(2) {
                let mut at = cut[0];
                while let Some(hit) = all.next(&mut position, &hay.as_bytes()[..cut[1]], at) {
                    got.push(hit.end);
                    at = hit.end;
                }
            }
            prop_assert_eq!(got, want);
        }
    }
}
