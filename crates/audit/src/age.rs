//! Files that only the holder of a key can read, in the format of age, version 1, for X25519 recipients: written as a
//! stream, and read whole.
//!
//! # Source
//! <https://c2sp.org/age>; vectors of C2SP CCTV in `testdata/age`.

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use ringfence_model::manifest::{Recipient, bech32};
use zeroize::Zeroizing;

const VERSION: &str = "age-encryption.org/v1";
const LABEL: &[u8] = b"age-encryption.org/v1/X25519";
const KEY_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
/// Nonce of the payload.
const SALT_BYTES: usize = 16;
/// Columns of a line in a stanza.
const COLUMNS: usize = 64;
/// The largest header that is read.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// What is encrypted at once.
pub const CHUNK_BYTES: usize = 64 << 10;

/// Why a file cannot be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgeError {
    /// It is not what the format says.
    #[error("the file is not one of age, or its header is damaged")]
    Header,
    /// The header is not what was written.
    #[error("the header of the file was changed")]
    Mac,
    /// The key is for none of it.
    #[error("the file is not encrypted to this key")]
    NoMatch,
    /// The payload is not what was written.
    #[error("the content of the file was changed, or cut")]
    Payload,
    /// There are no random bytes.
    #[error("the host has no randomness")]
    Random,
    /// A recipient that is no point to agree with.
    #[error("recipient `{0}` is of low order, and would protect nothing")]
    Recipient(Recipient),
}

/// How long the file is that holds this much.
#[must_use]
pub const fn sealed_len(recipients: usize, plain: u64) -> u64 {
    let stanza = "-> X25519 \n\n".len() + 43 + 43;
    let header = VERSION.len() + 1 + recipients * stanza + "--- \n".len() + 43 + SALT_BYTES;
    header as u64 + plain + chunks(plain) * TAG_BYTES as u64
}

/// How many chunks this much has.
#[must_use]
pub const fn chunks(plain: u64) -> u64 {
    let whole = plain.div_ceil(CHUNK_BYTES as u64);
    if whole == 0 { 1 } else { whole }
}

/// Encrypts what comes, and holds no more than one chunk of it.
pub struct Sealer {
    stream: Stream,
    /// What is not encrypted yet; a whole chunk waits until it is known not to be the last.
    held: Vec<u8>,
}

impl Sealer {
    /// Writes the header.
    ///
    /// # Errors
    /// [`AgeError::Random`] or [`AgeError::Recipient`].
    pub fn begin(to: &[Recipient], out: &mut Vec<u8>) -> Result<Self, AgeError> {
        let (mut key, mut salt) = (Zeroizing::new([0; KEY_BYTES]), [0; SALT_BYTES]);
        rand::fill(key.as_mut_slice()).and_then(|()| rand::fill(&mut salt)).map_err(|_| AgeError::Random)?;
        let mut header = format!("{VERSION}\n");
        for recipient in to {
            header.push_str(&wrap(&key, recipient)?);
        }
        header.push_str("---");
        let mac = mac(&key, header.as_bytes());
        out.extend_from_slice(format!("{header} {}\n", BASE64.encode(mac)).as_bytes());
        out.extend_from_slice(&salt);
        Ok(Self { stream: Stream::new(&key, &salt), held: Vec::new() })
    }

    /// Takes more of the content.
    ///
    /// # Errors
    /// [`AgeError::Payload`] if it cannot be encrypted.
    pub fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<(), AgeError> {
        while !bytes.is_empty() {
            if self.held.len() == CHUNK_BYTES {
                self.stream.seal(&mut self.held, false, out)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.held.len()));
            self.held.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// [`AgeError::Payload`] if it cannot be encrypted.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), AgeError> {
        self.stream.seal(&mut self.held, true, out)
    }
}

/// Whether one can encrypt to it.
///
/// # Errors
/// [`AgeError::Recipient`] or [`AgeError::Random`].
pub fn check(recipient: &Recipient) -> Result<(), AgeError> {
    wrap(&[0; KEY_BYTES], recipient).map(drop)
}

/// The stanza from which a recipient gets the file's key.
fn wrap(key: &[u8; KEY_BYTES], recipient: &Recipient) -> Result<String, AgeError> {
    let own = PrivateKey::generate(&X25519).map_err(|_| AgeError::Random)?;
    let share = own.compute_public_key().map_err(|_| AgeError::Random)?;
    let wrapping =
        agree(&own, share.as_ref(), recipient.raw(), recipient.raw()).ok_or(AgeError::Recipient(*recipient))?;
    let mut body = key.to_vec();
    let sealed = wrapping.seal_in_place_append_tag(zero_nonce(), Aad::empty(), &mut body);
    sealed.map_err(|_| AgeError::Random)?;
    Ok(format!("-> X25519 {}\n{}\n", BASE64.encode(share.as_ref()), BASE64.encode(body)))
}

/// The key that wraps the file's key, between what is ours, the share in the stanza, and the recipient.
fn agree(own: &PrivateKey, share: &[u8], recipient: &[u8], peer: &[u8]) -> Option<LessSafeKey> {
    let peer = UnparsedPublicKey::new(&X25519, peer);
    let salt = [share, recipient].concat();
    agreement::agree(own, peer, (), |secret| Ok(key(secret, &salt, LABEL))).ok()
}

fn unwrap(own: &PrivateKey, share: &[u8], body: &[u8]) -> Result<Option<Zeroizing<[u8; KEY_BYTES]>>, AgeError> {
    let public = own.compute_public_key().map_err(|_| AgeError::Header)?;
    let wrapping = agree(own, share, public.as_ref(), share).ok_or(AgeError::Header)?;
    let mut body = Zeroizing::new(body.to_vec());
    let Ok(plain) = wrapping.open_in_place(zero_nonce(), Aad::empty(), &mut body) else { return Ok(None) };
    Ok(plain.first_chunk().copied().map(Zeroizing::new))
}

/// HKDF of SHA-256, to 32 bytes.
fn derive(secret: &[u8], salt: &[u8], label: &[u8]) -> Zeroizing<[u8; 32]> {
    struct Bytes32;
    impl KeyType for Bytes32 {
        fn len(&self) -> usize {
            32
        }
    }
    let mut out = Zeroizing::new([0; 32]);
    let extracted = Salt::new(HKDF_SHA256, salt).extract(secret);
    let filled = extracted.expand(&[label], Bytes32).and_then(|okm| okm.fill(out.as_mut_slice()));
    debug_assert!(filled.is_ok(), "32 bytes are within what HKDF gives");
    out
}

fn key(secret: &[u8], salt: &[u8], label: &[u8]) -> LessSafeKey {
    LessSafeKey::new(unbound(&derive(secret, salt, label)))
}

#[expect(clippy::expect_used, reason = "the length is the algorithm's own")]
fn unbound(key: &[u8; 32]) -> UnboundKey {
    UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key of 32 bytes")
}

fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn mac(key: &[u8; KEY_BYTES], header: &[u8]) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA256, derive(key, &[], b"header").as_slice());
    hmac::sign(&key, header)
}

/// The payload's chunks, in order.
struct Stream {
    key: LessSafeKey,
    counter: u64,
}

impl Stream {
    fn new(file_key: &[u8; KEY_BYTES], salt: &[u8]) -> Self {
        Self { key: key(file_key, salt, b"payload"), counter: 0 }
    }

    /// The next nonce: a counter of 11 bytes, and one that says whether the chunk is the last.
    fn nonce(&mut self, last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        let [_, _, _, counter @ .., flag] = &mut nonce;
        *counter = self.counter.to_be_bytes();
        *flag = u8::from(last);
        self.counter += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, chunk: &mut Vec<u8>, last: bool, out: &mut Vec<u8>) -> Result<(), AgeError> {
        let nonce = self.nonce(last);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::empty(), chunk).map_err(|_| AgeError::Payload)?;
        out.extend_from_slice(chunk);
        out.extend_from_slice(tag.as_ref());
        chunk.clear();
        Ok(())
    }

    fn open(&mut self, chunk: &[u8], last: bool) -> Result<Vec<u8>, AgeError> {
        let mut held = chunk.to_vec();
        let nonce = self.nonce(last);
        let plain = self.key.open_in_place(nonce, Aad::empty(), &mut held).map_err(|_| AgeError::Payload)?.len();
        held.truncate(plain);
        Ok(held)
    }
}

/// The secret half of a [`Recipient`].
pub struct Identity(PrivateKey);

impl Identity {
    /// Reads the first identity of a file as `age-keygen` writes it; lines that begin with `#` are comments.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'))?;
        if line.bytes().any(|b| b.is_ascii_lowercase()) {
            return None;
        }
        let raw = Zeroizing::new(bech32("age-secret-key-", &Zeroizing::new(line.to_ascii_lowercase()))?);
        PrivateKey::from_private_key(&X25519, raw.as_slice()).ok().map(Self)
    }
}

/// Reads a file.
///
/// # Errors
/// [`AgeError`]; nothing of what could be read is given then.
pub fn open(identity: &Identity, file: &[u8]) -> Result<Vec<u8>, AgeError> {
    let mut header = Header { rest: file, left: MAX_HEADER_BYTES };
    if header.line()? != VERSION.as_bytes() {
        return Err(AgeError::Header);
    }
    let (mut key, mut first) = (None, true);
    let (signed, tag) = loop {
        let at = file.len() - header.rest.len();
        let line = header.line()?;
        if let Some(tag) = line.strip_prefix(b"--- ").filter(|_| !first) {
            break (file.get(..at + "---".len()).unwrap_or_default(), base64::<32>(tag).ok_or(AgeError::Header)?);
        }
        first = false;
        let words = line.strip_prefix(b"-> ").ok_or(AgeError::Header)?;
        let words: Vec<&[u8]> = words.split(|b| *b == b' ').collect();
        if words.iter().any(|word| word.is_empty() || word.iter().any(|b| !(0x21..=0x7e).contains(b))) {
            return Err(AgeError::Header);
        }
        let body = header.body()?;
        if let Some((&b"X25519", arguments)) = words.split_first() {
            let [share] = arguments else { return Err(AgeError::Header) };
            let share = base64::<32>(share).ok_or(AgeError::Header)?;
            if body.len() != KEY_BYTES + TAG_BYTES {
                return Err(AgeError::Header);
            }
            let found = unwrap(&identity.0, &share, &body)?;
            key = key.or(found);
        }
    };
    let key = key.ok_or(AgeError::NoMatch)?;
    aws_lc_rs::constant_time::verify_slices_are_equal(mac(&key, signed).as_ref(), &tag).map_err(|_| AgeError::Mac)?;
    payload(&key, header.rest)
}

fn payload(key: &[u8; KEY_BYTES], rest: &[u8]) -> Result<Vec<u8>, AgeError> {
    let (salt, rest) = rest.split_at_checked(SALT_BYTES).ok_or(AgeError::Header)?;
    let mut stream = Stream::new(key, salt);
    let mut plain = Vec::with_capacity(rest.len());
    let mut chunks = rest.chunks(CHUNK_BYTES + TAG_BYTES).peekable();
    while let Some(chunk) = chunks.next() {
        let opened = stream.open(chunk, chunks.peek().is_none())?;
        // Only what is empty altogether ends with an empty chunk.
        if opened.is_empty() && !plain.is_empty() {
            return Err(AgeError::Payload);
        }
        plain.extend_from_slice(&opened);
    }
    if stream.counter == 0 { Err(AgeError::Payload) } else { Ok(plain) }
}

/// What is left of a file.
struct Header<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Header<'a> {
    fn line(&mut self) -> Result<&'a [u8], AgeError> {
        let end = self.rest.iter().take(self.left).position(|b| *b == b'\n').ok_or(AgeError::Header)?;
        let (line, rest) = self.rest.split_at_checked(end).ok_or(AgeError::Header)?;
        self.rest = rest.get(1..).unwrap_or_default();
        self.left -= end + 1;
        Ok(line)
    }

    /// The body of a stanza: full lines, and one that is not.
    fn body(&mut self) -> Result<Vec<u8>, AgeError> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let bytes = BASE64.decode(line).map_err(|_| AgeError::Header)?;
            body.extend(bytes);
            match line.len() {
                COLUMNS => {}
                0..COLUMNS => return Ok(body),
                _ => return Err(AgeError::Header),
            }
        }
    }
}

fn base64<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    BASE64.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_model::Digest;

    #[test]
    fn every_vector_of_the_standard_is_read_as_it_says() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/age");
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let end = bytes.windows(2).position(|two| two == b"\n\n").unwrap();
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let fields = |name: &str| -> Vec<String> {
                head.lines().filter_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)).collect()
            };
            let age = &bytes[end + 2..];
            let identities = fields("identity");
            let identities = identities.iter().map(|text| Identity::from_text(text).unwrap());
            let opened: Vec<_> = identities.map(|identity| open(&identity, age)).collect();
            let opened = opened.iter().find(|opened| **opened != Err(AgeError::NoMatch)).or(opened.last());
            let read = match opened {
                None => "no key",
                Some(Ok(plain)) => {
                    assert_eq!(fields("payload"), [Digest::of(plain).hex()], "{}", path.display());
                    "success"
                }
                Some(Err(AgeError::Header)) => "header failure",
                Some(Err(AgeError::Mac)) => "HMAC failure",
                Some(Err(AgeError::NoMatch)) => "no match",
                Some(Err(_)) => "payload failure",
            };
            if !identities_missing(&head) {
                assert_eq!(fields("expect"), [read], "{}", path.display());
                seen += 1;
            }
        }
        assert!(seen > 40, "only {seen} vectors were read");
    }

    fn identities_missing(head: &str) -> bool {
        !head.contains("identity: ")
    }

    fn pair() -> (Identity, Recipient) {
        let own = PrivateKey::generate(&X25519).unwrap();
        let public: [u8; 32] = own.compute_public_key().unwrap().as_ref().try_into().unwrap();
        (Identity(own), Recipient::from_raw(public))
    }

    fn sealed(to: &[Recipient], parts: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut sealer = Sealer::begin(to, &mut out).unwrap();
        for part in parts {
            sealer.push(part, &mut out).unwrap();
        }
        sealer.finish(&mut out).unwrap();
        out
    }

    #[test]
    fn what_is_sealed_is_opened_by_each_recipient_and_by_nobody_else() {
        let ((one, to_one), (two, to_two), (other, _)) = (pair(), pair(), pair());
        let plain: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 200_000] {
            let plain = &plain[..length];
            let parts: Vec<&[u8]> = plain.chunks(7_001).collect();
            let file = sealed(&[to_one, to_two], &parts);
            assert_eq!(file.len() as u64, sealed_len(2, length as u64), "{length}");
            for identity in [&one, &two] {
                assert!(open(identity, &file).unwrap() == plain, "{length}");
            }
            assert_eq!(open(&other, &file), Err(AgeError::NoMatch));
        }
    }

    #[test]
    fn no_byte_can_be_changed_nor_left_out() {
        let (identity, to) = pair();
        let file = sealed(&[to], &[b"what was said"]);
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert!(open(&identity, &changed).is_err(), "{at}");
            assert!(open(&identity, &file[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn nothing_is_encrypted_to_a_point_of_low_order() {
        for raw in [[0; 32], std::array::from_fn(|at| u8::from(at == 0))] {
            let recipient = Recipient::from_raw(raw);
            assert_eq!(check(&recipient), Err(AgeError::Recipient(recipient)));
        }
        assert_eq!(check(&pair().1), Ok(()));
    }
}
