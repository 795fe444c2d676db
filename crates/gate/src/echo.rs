//! What an upstream sends back of a secret is replaced by the placeholder, in whatever form it sends it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::HeaderValue;
use ringfence_model::SecretText;

use crate::needle::{Needles, Position, forms};

/// Where messages follow each other without an end that shows, a beginning shorter than this is let through, so that the
/// end of a message is not held back because it happens to be the beginning of a secret.
const MIN_HELD_BYTES: usize = 4;

/// What is searched for in answers, prepared once for a secret.
pub struct Masks {
    needles: Option<Needles>,
    placeholder: Bytes,
}

impl Masks {
    /// Prepares the search for secrets in all their forms.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a SecretText>, placeholder: &str) -> Arc<Self> {
        let mut all: Vec<Vec<u8>> = secrets.into_iter().flat_map(|s| forms(s.reveal().as_bytes())).collect();
        let needles = Needles::new(&all);
        all.iter_mut().for_each(zeroize::Zeroize::zeroize);
        Arc::new(Self { needles, placeholder: Bytes::copy_from_slice(placeholder.as_bytes()) })
    }
}

/// When the beginning of what might be a secret goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Once it is clear that it is none.
    All,
    /// At once while it is short: for messages that somebody waits for.
    Long,
}

/// Replaces secrets by their placeholder in what an upstream sends back, wherever chunks are cut.
pub struct EchoGuard {
    masks: Arc<Masks>,
    hold: Hold,
    position: Option<Position>,
    /// The end of what was seen that may begin a secret, and was not let through.
    held: BytesMut,
}

impl EchoGuard {
    /// Guards what `masks` was made for.
    #[must_use]
    pub fn new(masks: Arc<Masks>, hold: Hold) -> Self {
        let position = masks.needles.as_ref().map(Needles::start);
        Self { masks, hold, position, held: BytesMut::new() }
    }

    /// The same guard, for messages that somebody waits for.
    #[must_use]
    pub fn of_messages(self) -> Self {
        Self { hold: Hold::Long, ..self }
    }

    /// Takes a chunk and gives what may go on; `true` if something was replaced.
    pub fn push(&mut self, chunk: Bytes) -> (Bytes, bool) {
        let (Some(needles), Some(position)) = (&self.masks.needles, &mut self.position) else { return (chunk, false) };
        let mut out = BytesMut::new();
        let (mut at, mut found) = (0, false);
        while let Some(hit) = needles.next(position, &chunk, at) {
            match hit.end.checked_sub(hit.length) {
                Some(start) => {
                    out.extend_from_slice(&self.held);
                    out.extend_from_slice(chunk.get(at..start).unwrap_or_default());
                }
                None => {
                    let earlier = hit.length - hit.end;
                    out.extend_from_slice(self.held.get(..self.held.len().saturating_sub(earlier)).unwrap_or_default());
                }
            }
            self.held.clear();
            out.extend_from_slice(&self.masks.placeholder);
            (at, found) = (hit.end, true);
        }
        let mut hold = needles.depth(*position);
        if self.hold == Hold::Long && hold < MIN_HELD_BYTES {
            hold = 0;
        }
        let mut rest = chunk.slice(at..);
        if rest.len() >= hold {
            let tail = rest.split_off(rest.len() - hold);
            out.extend_from_slice(&self.held);
            self.held.clear();
            self.held.extend_from_slice(&tail);
        } else {
            let earlier = self.held.len().saturating_sub(hold - rest.len());
            out.extend_from_slice(&self.held.split_to(earlier));
            self.held.extend_from_slice(&rest);
            rest.clear();
        }
        if out.is_empty() {
            return (rest, found);
        }
        out.extend_from_slice(&rest);
        (out.freeze(), found)
    }

    /// Gives what was held back, at the end.
    pub fn finish(&mut self) -> Bytes {
        self.position = self.masks.needles.as_ref().map(Needles::start);
        self.held.split().freeze()
    }

    /// The same guard at a beginning.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self::new(Arc::clone(&self.masks), self.hold)
    }

    /// Gives what goes on at the end of a message, behind which there may be another one: what only may begin a secret, or
    /// its placeholder where it is half of one. A secret that goes on in the next message is still found there. `true` if
    /// something was replaced.
    pub fn end_message(&mut self) -> (Bytes, bool) {
        let held = self.held.split().freeze();
        match (&self.masks.needles, self.position) {
            (Some(needles), Some(position)) if !held.is_empty() && needles.tells(position) => {
                (self.masks.placeholder.clone(), true)
            }
            _ => (held, false),
        }
    }

    /// Replaces secrets in header values; `true` if there were any.
    pub fn clean(&self, headers: &mut HeaderMap) -> bool {
        let Some(needles) = &self.masks.needles else { return false };
        let mut found = false;
        for value in headers.values_mut() {
            if needles.find(value.as_bytes()).is_none() {
                continue;
            }
            found = true;
            let mut whole = Self::new(Arc::clone(&self.masks), Hold::All);
            let (out, _) = whole.push(Bytes::copy_from_slice(value.as_bytes()));
            let out = [out, whole.finish()].concat();
            *value = HeaderValue::from_bytes(&out).unwrap_or_else(|_| HeaderValue::from_static(""));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use proptest::prelude::*;

    use super::*;

    fn guard(secret: &str, hold: Hold) -> EchoGuard {
        EchoGuard::new(Masks::new([&SecretText::new(secret.into())], "PLACEHOLDER"), hold)
    }

    fn through(guard: &mut EchoGuard, chunks: &[&[u8]]) -> (String, bool) {
        let mut out = Vec::new();
        let mut found = false;
        for chunk in chunks {
            let (bytes, hit) = guard.push(Bytes::copy_from_slice(chunk));
            out.extend_from_slice(&bytes);
            found |= hit;
        }
        out.extend_from_slice(&guard.finish());
        (String::from_utf8(out).unwrap(), found)
    }

    #[test]
    fn an_echo_is_replaced_wherever_it_is_cut() {
        let text = b"{\"key\":\"sk-live-0123456789\"} sk-live-0123456789";
        for at in 0..text.len() {
            let (out, found) = through(&mut guard("sk-live-0123456789", Hold::All), &[&text[..at], &text[at..]]);
            assert!(found);
            assert_eq!(out, "{\"key\":\"PLACEHOLDER\"} PLACEHOLDER", "{at}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        for hold in [Hold::All, Hold::Long] {
            let (out, _) = through(&mut guard("sk-live-0123456789", hold), &bytes);
            assert!(!out.contains("live"), "{out}");
        }
    }

    #[test]
    fn an_echo_in_another_form_is_replaced_too() {
        let secret = "a\"b/c&d=9876543210";
        let hex: String = secret.bytes().map(|b| format!("{b:02X}")).collect();
        for text in [
            serde_json::to_string(secret).unwrap(),
            crate::inject::percent_encoded(secret),
            hex,
            STANDARD.encode(format!("user:{secret}")),
            URL_SAFE.encode(format!("me:{secret}!")),
            STANDARD.encode(secret),
        ] {
            let (out, found) = through(&mut guard(secret, Hold::All), &[text.as_bytes()]);
            assert!(found && out.contains("PLACEHOLDER") && !out.contains("9876543210"), "{text} gave {out}");
        }
    }

    #[test]
    fn the_end_of_a_message_is_not_held_back() {
        let mut guard = guard("sk-live-0123456789", Hold::Long);
        assert_eq!(guard.push(Bytes::from_static(b"yes sk-")).0, &b"yes sk-"[..]);
        assert_eq!(guard.push(Bytes::from_static(b"data: x\n\n")).0, &b"data: x\n\n"[..]);
    }

    fn messages(guard: &mut EchoGuard, messages: &[&[u8]]) -> Vec<String> {
        let one = |message: &&[u8]| {
            let (out, _) = guard.push(Bytes::copy_from_slice(message));
            String::from_utf8([out, guard.end_message().0].concat()).unwrap()
        };
        messages.iter().map(one).collect()
    }

    #[test]
    fn a_secret_in_several_messages_gets_no_further_than_half() {
        let secret = "sk-live-0123456789abcdef";
        for at in 1..secret.len() {
            let (first, second) = secret.split_at(at);
            let out = messages(&mut guard(secret, Hold::All), &[first.as_bytes(), format!("{second} end").as_bytes()]);
            let want = if at < 12 { first } else { "PLACEHOLDER" };
            assert_eq!(out, [want, "PLACEHOLDER end"], "{at}");
        }
        let bytes: Vec<&[u8]> = secret.as_bytes().chunks(1).collect();
        let out = messages(&mut guard(secret, Hold::All), &bytes);
        assert_eq!(out.concat().replace("PLACEHOLDER", ""), "sk-live-012", "{out:?}");
        // What only begins like it goes on whole, message by message.
        let like: [&[u8]; 3] = [b"sk-live-", b"987", b"sk-live-01"];
        assert_eq!(messages(&mut guard(secret, Hold::All), &like).concat().as_bytes(), like.concat());
    }

    #[test]
    fn headers_are_cleaned() {
        let mut headers = HeaderMap::new();
        headers.insert("x-echo", "Bearer sk-live-0123456789".parse().unwrap());
        headers.insert("x-other", "Bearer sk-live".parse().unwrap());
        assert!(guard("sk-live-0123456789", Hold::All).clean(&mut headers));
        assert_eq!(headers["x-echo"], "Bearer PLACEHOLDER");
        assert_eq!(headers["x-other"], "Bearer sk-live");
    }

    #[test]
    fn a_body_without_a_secret_is_not_copied() {
        let body = Bytes::from("nothing here\n".repeat(100));
        let (out, found) = guard("sk-live-0123456789", Hold::All).push(body.clone());
        assert!(!found && out.as_ptr() == body.as_ptr() && out.len() == body.len());
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            parts in prop::collection::vec(
                prop::sample::select(&["abcabd", "abcab", "ab", "abc", "x", "d", "c", "YWJjYWJk", "616263616264", "61", "YW"][..]),
                0..12,
            ),
            cuts in prop::collection::vec(0..90_usize, 0..9),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            let whole = through(&mut guard("abcabd", Hold::All), &[text.as_bytes()]);
            prop_assert_eq!(&through(&mut guard("abcabd", Hold::All), &chunks), &whole);
            let (messages, found) = through(&mut guard("abcabd", Hold::Long), &chunks);
            prop_assert_eq!(found, whole.1);
            for form in ["abcabd", "YWJjYWJk", "616263616264"] {
                prop_assert!(!whole.0.contains(form) && !messages.contains(form));
            }
            if !found {
                prop_assert_eq!(&messages, &text);
                prop_assert_eq!(&whole.0, &text);
            }
        }
    }
}
