//! `capture` of a grant: the bodies of its calls are kept, for whoever holds a key that is not on the host.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::check::{ManifestError, value};
use crate::Bytes;

/// What is captured of one body where nothing is said, and at least and at most.
const USUAL: Bytes = Bytes::mib(1);
const LEAST: Bytes = Bytes(1 << 10);
const MOST: Bytes = Bytes::mib(16);

/// Recipients of one capture.
const MAX_RECIPIENTS: usize = 8;

/// What may be kept of one agent, where nothing is said.
pub const USUAL_CAPTURES: Bytes = Bytes::mib(256);

/// `capture = { … }`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureFile {
    /// `age1…` recipients.
    pub to: Vec<String>,
    /// Whether what the agent sends is captured.
    pub request: Option<bool>,
    /// Whether what it gets is.
    pub response: Option<bool>,
    /// How much of each body.
    pub most: Option<Bytes>,
    /// Whether a call that cannot be captured is not made.
    #[serde(default)]
    pub required: bool,
}

/// Which bodies are captured, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// Who can read them; never empty.
    pub to: Vec<Recipient>,
    /// Whether what the agent sends is captured.
    pub request: bool,
    /// Whether what it gets is.
    pub response: bool,
    /// How much of each body is captured.
    pub most: Bytes,
    /// Whether a call that cannot be captured is not made.
    pub required: bool,
}

/// The public key of whoever can read what was captured, written `age1…`.
///
/// # Source
/// age-encryption.org/v1, "The X25519 recipient type".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Recipient([u8; 32]);

/// Why a text is not a recipient. None of it is repeated: it may be the secret half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipientError {
    /// A character is wrong, or several.
    #[error("its checksum is wrong: a character is missing or mistyped")]
    Checksum,
    /// It is of another kind.
    #[error("it is not a native age recipient, which begins with `age1` and has 62 characters")]
    Kind,
    /// It is the secret half.
    #[error("it is a secret key, which belongs on no machine that captures")]
    Secret,
}

impl Recipient {
    /// Takes a raw X25519 public key.
    #[must_use]
    pub const fn from_raw(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// The raw X25519 public key.
    #[must_use]
    pub const fn raw(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Recipient {
    type Err = RecipientError;

    fn from_str(text: &str) -> Result<Self, RecipientError> {
        if text.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-") {
            return Err(RecipientError::Secret);
        }
        // A recipient is written in lower case only.
        if !text.starts_with("age1") || text.len() != 62 || text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(RecipientError::Kind);
        }
        bech32("age", text).map(Self).ok_or(RecipientError::Checksum)
    }
}

/// The 32 bytes that a Bech32 text in lower case stands for, if its prefix and its checksum are right.
///
/// # Source
/// BIP 173, without its bound on the length.
#[must_use]
pub fn bech32(prefix: &str, text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.strip_prefix(prefix)?.strip_prefix('1')?.bytes().map(digit).collect();
    let digits = digits?;
    let spread = prefix.bytes().map(|b| b >> 5).chain([0]).chain(prefix.bytes().map(|b| b & 31));
    if checksum(spread.chain(digits.iter().copied())) != 1 {
        return None;
    }
    let (mut raw, mut at, mut bits, mut held) = ([0; 32], 0, 0, 0_u32);
    for digit in digits.get(..digits.len().checked_sub(6)?)? {
        (held, bits) = ((held << 5 | u32::from(*digit)) & 0xfff, bits + 5);
        if bits >= 8 {
            bits -= 8;
            *raw.get_mut(at)? = u8::try_from(held >> bits & 0xff).ok()?;
            at += 1;
        }
    }
    // What is left over is no whole digit, and empty.
    (at == raw.len() && bits < 5 && held & ((1 << bits) - 1) == 0).then_some(raw)
}

const DIGITS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";

fn digit(letter: u8) -> Option<u8> {
    DIGITS.iter().position(|d| *d == letter).and_then(|at| u8::try_from(at).ok())
}

fn checksum(digits: impl Iterator<Item = u8>) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    digits.fold(1, |sum, digit| {
        let shifted = (sum & 0x01ff_ffff) << 5 ^ u32::from(digit);
        GENERATOR.iter().enumerate().filter(|(bit, _)| sum >> (25 + bit) & 1 == 1).fold(shifted, |sum, (_, g)| sum ^ g)
    })
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut digits, mut bits, mut held) = (Vec::with_capacity(58), 0, 0_u32);
        for byte in self.0 {
            (held, bits) = ((held << 8 | u32::from(byte)) & 0xfff, bits + 8);
            while bits >= 5 {
                bits -= 5;
                digits.push((held >> bits & 31) as u8);
            }
        }
        digits.push((held << (5 - bits) & 31) as u8);
        let spread = [3, 3, 3, 0, 1, 7, 5];
        let sum = checksum(spread.into_iter().chain(digits.iter().copied()).chain([0; 6])) ^ 1;
        digits.extend((0..6).rev().map(|at| (sum >> (5 * at) & 31) as u8));
        let letters = digits.iter().filter_map(|digit| DIGITS.get(usize::from(*digit)));
        write!(f, "age1{}", letters.map(|letter| char::from(*letter)).collect::<String>())
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Recipient {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Recipient {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads what a grant says of captures.
pub(super) fn understand(number: usize, file: CaptureFile) -> Result<Capture, ManifestError> {
    let place = |key: &str| format!("grant {number} capture {key}");
    let hint = "make a key with `age-keygen` on a machine of your own, and write its public key, `age1…`";
    if file.to.is_empty() {
        return Err(value(place("to"), "nobody could read what is captured", hint));
    }
    if file.to.len() > MAX_RECIPIENTS {
        let why = format!("it names {}", file.to.len());
        return Err(value(place("to"), why, format!("name at most {MAX_RECIPIENTS}")));
    }
    let mut to: Vec<Recipient> = Vec::with_capacity(file.to.len());
    for (nth, text) in file.to.iter().enumerate() {
        let recipient = text.parse().map_err(|e| value(format!("{} {}", place("to"), nth + 1), e, hint))?;
        if to.contains(&recipient) {
            return Err(value(format!("{} {}", place("to"), nth + 1), "it is named twice", "drop one of them"));
        }
        to.push(recipient);
    }
    let (request, response) = (file.request.unwrap_or(true), file.response.unwrap_or(true));
    if !request && !response {
        return Err(value(place("request and response"), "nothing is left to capture", "drop `capture`"));
    }
    let most = file.most.unwrap_or(USUAL);
    if most < LEAST || most > MOST {
        return Err(value(place(&format!("most `{most}`")), "out of range", format!("use {LEAST} to {MOST}")));
    }
    Ok(Capture { to, request, response, most, required: file.required })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `age-keygen`.
    const ONE: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";

    #[test]
    fn a_recipient_is_read_and_written_as_age_does() {
        let recipient: Recipient = ONE.parse().unwrap();
        assert_eq!(recipient.to_string(), ONE);
        for byte in [0, 1, 0x7f, 0xff] {
            let recipient = Recipient::from_raw([byte; 32]);
            assert_eq!(recipient.to_string().parse(), Ok(recipient));
        }
    }

    #[test]
    fn no_mistyped_character_goes_unseen() {
        for at in 4..ONE.len() {
            for other in DIGITS {
                let mut text = ONE.as_bytes().to_vec();
                let own = std::mem::replace(&mut text[at], *other);
                let text = String::from_utf8(text).unwrap();
                let read = text.parse::<Recipient>();
                assert_eq!(read.is_ok(), own == *other, "{text}");
            }
        }
        for bad in ["", "age1", "ssh-ed25519 AAAA", "age1yubikey1qwerty", &ONE.to_uppercase(), &ONE[..61]] {
            assert_eq!(bad.parse::<Recipient>(), Err(RecipientError::Kind), "{bad}");
        }
        let secret = "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0";
        assert_eq!(secret.parse::<Recipient>(), Err(RecipientError::Secret));
    }

    #[test]
    fn what_means_nothing_is_refused_and_no_secret_is_repeated() {
        let file = || CaptureFile { to: vec![ONE.into()], request: None, response: None, most: None, required: false };
        let whole = understand(1, file()).unwrap();
        assert!(whole.request && whole.response && !whole.required && whole.most == Bytes::mib(1));
        let secret = "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0";
        for (file, why) in [
            (CaptureFile { to: vec![], ..file() }, "grant 1 capture to is not usable: nobody could read"),
            (
                CaptureFile { to: vec![ONE.into(), ONE.into()], ..file() },
                "grant 1 capture to 2 is not usable: it is named twice",
            ),
            (
                CaptureFile { to: vec![ONE.replace('z', "y")], ..file() },
                "grant 1 capture to 1 is not usable: its checksum",
            ),
            (
                CaptureFile { to: vec![secret.into()], ..file() },
                "grant 1 capture to 1 is not usable: it is a secret key",
            ),
            (CaptureFile { request: Some(false), response: Some(false), ..file() }, "nothing is left to capture"),
            (CaptureFile { most: Some(Bytes(1023)), ..file() }, "capture most `1023B` is not usable: out of range"),
            (CaptureFile { most: Some(Bytes::mib(17)), ..file() }, "capture most `17MiB` is not usable"),
            (CaptureFile { to: vec![ONE.into(); 9], ..file() }, "it names 9"),
        ] {
            let error = understand(1, file).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("EGTZVFF"), "{error}");
        }
    }
}
