//! Digests of bodies, taken while they go by: what an entry of the log holds of a body that it does not hold.
//!
//! Hashed is what is on the wire: a request's body as it left, after everything the gate changed in it, and an answer's as
//! it came, before anything was masked, filtered or decoded. Either can then be held against what the other side kept.

use bytes::Bytes;
use ringfence_model::Digest;
use ringfence_model::digest::Hasher;

/// The largest body that is hashed: downloads of gigabytes are not slowed down for it.
pub const MAX_HASHED_BYTES: u64 = 16 << 20;

/// The digest of a body as far as it went by.
#[derive(Default)]
pub enum BodyHash {
    /// Nothing went by yet.
    #[default]
    Empty,
    /// There will be none.
    Given,
    /// What went by, and how much more may.
    Running(Hasher, u64),
}

impl BodyHash {
    /// The digest of a body that is at least this long.
    #[must_use]
    pub const fn of_length(least: u64) -> Self {
        if least > MAX_HASHED_BYTES { Self::Given } else { Self::Empty }
    }

    /// Takes what goes by.
    pub fn push(&mut self, bytes: &Bytes) {
        if bytes.is_empty() {
            return;
        }
        if matches!(self, Self::Empty) {
            *self = Self::Running(Hasher::new(), MAX_HASHED_BYTES);
        }
        let Self::Running(hasher, left) = self else { return };
        match left.checked_sub(bytes.len() as u64) {
            Some(rest) => {
                hasher.update(bytes);
                *left = rest;
            }
            None => *self = Self::Given,
        }
    }

    /// Gives it up: the body is not whole, or holds what a digest would help to guess.
    pub fn stop(&mut self) {
        *self = Self::Given;
    }

    /// The digest, once all went by; none of an empty body, nor of one that is too large. Only the first call gives it.
    pub fn finish(&mut self) -> Option<Digest> {
        match std::mem::replace(self, Self::Given) {
            Self::Empty | Self::Given => None,
            Self::Running(hasher, _) => Some(hasher.finish()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_by_in_parts_has_the_digest_of_the_whole() {
        let mut hash = BodyHash::default();
        for part in ["", "ab", "", "c"] {
            hash.push(&Bytes::from_static(part.as_bytes()));
        }
        assert_eq!(hash.finish(), Some(Digest::of(b"abc")));
        assert_eq!(hash.finish(), None);
        assert_eq!(BodyHash::default().finish(), None, "an empty body has none");
    }

    #[test]
    fn what_is_larger_than_the_bound_has_none() {
        let most = usize::try_from(MAX_HASHED_BYTES).unwrap();
        let body = Bytes::from(vec![7; most]);
        let mut hash = BodyHash::of_length(MAX_HASHED_BYTES);
        hash.push(&body);
        assert_eq!(hash.finish(), Some(Digest::of(&body)));
        let mut hash = BodyHash::default();
        hash.push(&body);
        hash.push(&Bytes::from_static(b"x"));
        assert_eq!(hash.finish(), None);
        let mut hash = BodyHash::of_length(MAX_HASHED_BYTES + 1);
        hash.push(&Bytes::from_static(b"x"));
        assert_eq!(hash.finish(), None);
        let mut hash = BodyHash::default();
        hash.push(&Bytes::from_static(b"x"));
        hash.stop();
        assert_eq!(hash.finish(), None);
    }
}
