//! Phase four: what the content of a call gives away, out and back.
//!
//! Out: placeholders where they do not belong, and the model that a body names. Back: the real secret, which
//! an upstream might echo. Bodies stream; only as much is held back as an answer needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use memchr::memmem::Finder;

use crate::config::CredentialLease;

/// The largest body that is read whole, to learn the model that it names.
pub const MAX_BODY_BYTES: usize = 4 * 1024 * 1024;

/// How much of a body is searched for placeholders.
pub const MAX_SEARCHED_BYTES: usize = 64 * 1024;

/// A partial match shorter than this is let through, so that the end of a message is not held back because it
/// happens to be the beginning of a secret. So many bytes of a secret, at most, are ever let through.
const MIN_HELD_BYTES: usize = 4;

/// The placeholders of all leases, ready to be searched for.
#[derive(Clone, Default)]
pub struct Placeholders {
    finders: Arc<[(String, Finder<'static>)]>,
    longest: usize,
}

impl Placeholders {
    /// Prepares the search.
    #[must_use]
    pub fn new(leases: &BTreeMap<String, CredentialLease>) -> Self {
        let finders: Arc<[_]> = leases
            .iter()
            .filter(|(_, lease)| !lease.placeholder.is_empty())
            .map(|(name, lease)| (name.clone(), Finder::new(lease.placeholder.as_bytes()).into_owned()))
            .collect();
        let longest = finders.iter().map(|(_, f)| f.needle().len()).max().unwrap_or(0);
        Self { finders, longest }
    }

    /// Whether any placeholder is in `text`.
    #[must_use]
    pub fn occur_in(&self, text: &[u8]) -> bool {
        self.finders.iter().any(|(_, finder)| finder.find(text).is_some())
    }

    /// Whether any placeholder is in a header, its own aside, or in the query.
    #[must_use]
    pub fn occur_in_head(&self, headers: &HeaderMap, query: Option<&str>, own: Option<&HeaderName>) -> bool {
        !self.finders.is_empty()
            && (query.is_some_and(|q| self.occur_in(q.as_bytes()))
                || headers.iter().any(|(name, value)| Some(name) != own && self.occur_in(value.as_bytes())))
    }

    /// A search over the beginning of a streaming body; `None` if there is nothing to search for.
    #[must_use]
    pub fn search(&self) -> Option<Search> {
        (!self.finders.is_empty()).then(|| Search {
            placeholders: self.clone(),
            left: MAX_SEARCHED_BYTES,
            carry: Vec::new(),
        })
    }
}

/// A search for placeholders over the chunks of a body.
pub struct Search {
    placeholders: Placeholders,
    left: usize,
    carry: Vec<u8>,
}

impl Search {
    /// Whether a placeholder ends in this chunk.
    pub fn finds(&mut self, chunk: &[u8]) -> bool {
        let chunk = chunk.get(..self.left.min(chunk.len())).unwrap_or_default();
        if chunk.is_empty() {
            return false;
        }
        self.left -= chunk.len();
        let keep = self.placeholders.longest.saturating_sub(1);
        if self.carry.is_empty() && self.placeholders.occur_in(chunk) {
            return true;
        }
        self.carry.extend_from_slice(chunk);
        let found = self.placeholders.occur_in(&self.carry);
        self.carry.drain(..self.carry.len().saturating_sub(keep));
        found
    }
}

/// Replaces a secret by its placeholder in what an upstream sends back, wherever chunks are cut.
pub struct EchoGuard {
    stages: Vec<Redactor>,
}

impl EchoGuard {
    /// Guards a secret in the forms that an echo takes: as it is, in JSON, and in a URL.
    #[must_use]
    pub fn new(lease: &CredentialLease) -> Self {
        let plain = lease.secret.reveal();
        let mut forms = vec![plain.to_owned()];
        let json = serde_json::to_string(plain).unwrap_or_default();
        forms.extend(json.get(1..json.len().saturating_sub(1)).map(str::to_owned));
        forms.push(crate::inject::percent_encoded(plain));
        // The longest first, so that no form hides within another's remains.
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        forms.retain(|form| !form.is_empty());
        let stages = forms.iter().map(|form| Redactor::new(form.as_bytes(), lease.placeholder.as_bytes())).collect();
        for form in &mut forms {
            zeroize::Zeroize::zeroize(form);
        }
        Self { stages }
    }

    /// Takes a chunk and gives what may go on; `true` if something was replaced.
    pub fn push(&mut self, chunk: Bytes) -> (Bytes, bool) {
        let mut found = false;
        let mut chunk = chunk;
        for stage in &mut self.stages {
            let (out, hit) = stage.push(chunk);
            chunk = out;
            found |= hit;
        }
        (chunk, found)
    }

    /// Gives what was held back, at the end.
    pub fn finish(&mut self) -> (Bytes, bool) {
        let mut found = false;
        let mut tail = Bytes::new();
        for stage in &mut self.stages {
            let (mut out, hit) = stage.push(tail);
            found |= hit;
            let rest = stage.finish();
            if !rest.is_empty() {
                out = [out.as_ref(), rest.as_ref()].concat().into();
            }
            tail = out;
        }
        (tail, found)
    }

    /// Replaces the secret in header values; `true` if it was there.
    pub fn clean(&self, headers: &mut HeaderMap) -> bool {
        let mut found = false;
        for value in headers.values_mut() {
            for stage in &self.stages {
                if stage.finder.find(value.as_bytes()).is_none() {
                    continue;
                }
                found = true;
                let mut whole = Redactor::new(stage.finder.needle(), &stage.placeholder);
                let (mut out, _) = whole.push(Bytes::copy_from_slice(value.as_bytes()));
                out = [out, whole.finish()].concat().into();
                *value = HeaderValue::from_bytes(&out).unwrap_or_else(|_| HeaderValue::from_static(""));
            }
        }
        found
    }
}

/// Replaces one text by another over chunks.
struct Redactor {
    finder: Finder<'static>,
    placeholder: Vec<u8>,
    /// The end of what was seen that begins the needle.
    carry: Vec<u8>,
    /// How much of `carry` was let through already.
    sent: usize,
}

impl Redactor {
    fn new(needle: &[u8], placeholder: &[u8]) -> Self {
        Self { finder: Finder::new(needle).into_owned(), placeholder: placeholder.to_vec(), carry: Vec::new(), sent: 0 }
    }

    fn push(&mut self, chunk: Bytes) -> (Bytes, bool) {
        if chunk.is_empty() {
            return (chunk, false);
        }
        if self.carry.is_empty() && self.finder.find(&chunk).is_none() {
            let held = self.overlap(&chunk);
            if held == 0 {
                return (chunk, false);
            }
            let mut chunk = chunk;
            let tail = chunk.split_off(chunk.len() - held);
            self.carry = tail.to_vec();
            self.sent = 0;
            if held < MIN_HELD_BYTES {
                self.sent = held;
                chunk = [chunk, tail].concat().into();
            }
            return (chunk, false);
        }
        let mut seen = std::mem::take(&mut self.carry);
        seen.extend_from_slice(&chunk);
        let mut out = BytesMut::with_capacity(seen.len());
        let mut at = self.sent;
        let mut search_from = 0;
        let mut found = false;
        while let Some(hit) = seen.get(search_from..).and_then(|rest| self.finder.find(rest)) {
            let hit = search_from + hit;
            out.extend_from_slice(seen.get(at..hit).unwrap_or_default());
            out.extend_from_slice(&self.placeholder);
            search_from = hit + self.finder.needle().len();
            at = search_from;
            found = true;
        }
        let rest = seen.get(search_from..).unwrap_or_default();
        let held_from = seen.len() - self.overlap(rest);
        let held = seen.len() - held_from;
        let until = if held < MIN_HELD_BYTES { seen.len() } else { held_from.max(at) };
        out.extend_from_slice(seen.get(at..until).unwrap_or_default());
        self.carry = seen.get(held_from..).unwrap_or_default().to_vec();
        self.sent = until - held_from;
        (out.freeze(), found)
    }

    fn finish(&mut self) -> Bytes {
        let carry = std::mem::take(&mut self.carry);
        let sent = std::mem::take(&mut self.sent);
        Bytes::copy_from_slice(carry.get(sent..).unwrap_or_default())
    }

    /// How many bytes at the end of `text` begin the needle without being all of it.
    fn overlap(&self, text: &[u8]) -> usize {
        let needle = self.finder.needle();
        let most = text.len().min(needle.len().saturating_sub(1));
        (1..=most).rev().find(|n| text.ends_with(needle.get(..*n).unwrap_or_default())).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_model::SecretText;
    use ringfence_model::manifest::Place;

    use super::*;

    fn lease(secret: &str) -> CredentialLease {
        CredentialLease {
            place: Place::Header { name: "authorization".into(), template: "Bearer {}".into() },
            placeholder: "PLACEHOLDER".into(),
            secret: SecretText::new(secret.into()),
        }
    }

    fn through(guard: &mut EchoGuard, chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let mut found = false;
        for chunk in chunks {
            let (bytes, hit) = guard.push(Bytes::copy_from_slice(chunk));
            out.extend_from_slice(&bytes);
            found |= hit;
        }
        let (bytes, hit) = guard.finish();
        out.extend_from_slice(&bytes);
        (out, found | hit)
    }

    #[test]
    fn an_echo_is_replaced_wherever_it_is_cut() {
        let text = b"{\"key\":\"sk-live-0123456789\"} sk-live-0123456789";
        for at in 0..text.len() {
            let (out, found) = through(&mut EchoGuard::new(&lease("sk-live-0123456789")), &[&text[..at], &text[at..]]);
            let out = String::from_utf8(out).unwrap();
            assert!(found);
            assert!(!out.contains("0123456789"), "{at}: {out}");
            assert_eq!(out.matches("PLACEHOLDER").count(), 2, "{at}: {out}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        let (out, _) = through(&mut EchoGuard::new(&lease("sk-live-0123456789")), &bytes);
        assert!(!String::from_utf8(out).unwrap().contains("live"));
    }

    #[test]
    fn an_echo_in_json_or_in_a_url_is_replaced_too() {
        let secret = "a\"b/c&d=9876543210";
        for text in [serde_json::to_string(secret).unwrap(), crate::inject::percent_encoded(secret)] {
            let (out, found) = through(&mut EchoGuard::new(&lease(secret)), &[text.as_bytes()]);
            assert!(found && !String::from_utf8(out).unwrap().contains("9876543210"), "{text}");
        }
    }

    #[test]
    fn the_end_of_a_message_is_not_held_back() {
        let mut guard = EchoGuard::new(&lease("sk-live-0123456789"));
        assert_eq!(guard.push(Bytes::from_static(b"yes sk-")).0, &b"yes sk-"[..]);
        assert_eq!(guard.push(Bytes::from_static(b"data: x\n\n")).0, &b"data: x\n\n"[..]);
    }

    #[test]
    fn headers_are_cleaned() {
        let mut headers = HeaderMap::new();
        headers.insert("x-echo", "Bearer sk-live-0123456789".parse().unwrap());
        assert!(EchoGuard::new(&lease("sk-live-0123456789")).clean(&mut headers));
        assert_eq!(headers["x-echo"], "Bearer PLACEHOLDER");
    }

    #[test]
    fn a_placeholder_is_found_over_chunks_and_only_at_the_beginning() {
        let leases = BTreeMap::from([("key".to_owned(), lease("s"))]);
        let placeholders = Placeholders::new(&leases);
        let mut search = placeholders.search().unwrap();
        assert!(!search.finds(b"xxPLACE"));
        assert!(search.finds(b"HOLDERxx"));
        let mut search = placeholders.search().unwrap();
        assert!(!search.finds(&vec![b'x'; MAX_SEARCHED_BYTES]));
        assert!(!search.finds(b"PLACEHOLDER"));
        assert!(Placeholders::default().search().is_none());
    }

    proptest! {
        #[test]
        fn no_cut_lets_a_secret_through(
            parts in prop::collection::vec(prop::sample::select(&["abcabd", "abcab", "ab", "abc", "x", "d", "c"][..]), 0..12),
            cuts in prop::collection::vec(0..60_usize, 0..8),
        ) {
            let text = parts.concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            let mut lease = lease("abcabd");
            lease.placeholder = "_".into();
            let (out, found) = through(&mut EchoGuard::new(&lease), &chunks);
            let out = String::from_utf8(out).unwrap();
            prop_assert_eq!(found, text.contains("abcabd"));
            prop_assert!(!out.contains("abcabd"));
            if !found {
                prop_assert_eq!(out, text);
            } else {
                prop_assert_eq!(out.matches('_').count(), text.matches("abcabd").count());
            }
        }
    }
}
