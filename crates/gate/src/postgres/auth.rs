//! How a session shows a server who it is, and the server shows that it knew before; no I/O.
//!
//! # Source
//! RFC 5802 and RFC 7677 (SCRAM-SHA-256), RFC 5929 §4 (`tls-server-end-point`); PostgreSQL 17, §53.3.

use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use zeroize::{Zeroize, Zeroizing};

/// The fewest and the most rounds that a server may ask for: fewer make a stolen proof worth trying passwords on, more
/// are work that the server has the gate do.
const ROUNDS: std::ops::RangeInclusive<u32> = 4096..=200_000;

/// What a server may ask a session for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing; the session is open.
    Nothing,
    /// The password as it is.
    Cleartext,
    /// Its MD5 digest with this salt.
    Md5([u8; 4]),
    /// One of several mechanisms, named behind.
    Sasl,
    /// The next message of the mechanism.
    SaslMore,
    /// The last message of the mechanism.
    SaslEnd,
}

/// What an authentication message asks for, and its content. `None` for ways that the gate does not go.
#[must_use]
pub fn ask(body: &[u8]) -> Option<(Ask, &[u8])> {
    let (number, rest) = body.split_first_chunk::<4>()?;
    let ask = match u32::from_be_bytes(*number) {
        0 => Ask::Nothing,
        3 => Ask::Cleartext,
        5 => Ask::Md5(*rest.first_chunk()?),
        10 => Ask::Sasl,
        11 => Ask::SaslMore,
        12 => Ask::SaslEnd,
        _ => return None,
    };
    Some((ask, rest))
}

/// The answer to [`Ask::Md5`].
#[must_use]
pub fn md5_answer(user: &str, password: &str, salt: [u8; 4]) -> String {
    let hex = |parts: [&[u8]; 2]| {
        let mut md5 = Md5::new();
        parts.iter().for_each(|part| md5.update(part));
        md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let inner = Zeroizing::new(hex([password.as_bytes(), user.as_bytes()]));
    format!("md5{}", hex([inner.as_bytes(), &salt]))
}

/// The mechanism that is used, of those that a server offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Without a binding to the channel.
    Plain,
    /// Bound to the certificate of the channel.
    Plus,
}

impl Mechanism {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "SCRAM-SHA-256",
            Self::Plus => "SCRAM-SHA-256-PLUS",
        }
    }

    /// The best of those offered.
    #[must_use]
    pub fn of(offered: &[u8], can_bind: bool) -> Option<Self> {
        let names: Vec<&[u8]> = offered.split(|byte| *byte == 0).collect();
        [Self::Plus, Self::Plain]
            .into_iter()
            .filter(|mechanism| can_bind || *mechanism == Self::Plain)
            .find(|mechanism| names.contains(&mechanism.name().as_bytes()))
    }
}

/// One authentication by SCRAM-SHA-256, from the client's side.
pub struct Scram {
    password: Zeroizing<Vec<u8>>,
    gs2: String,
    bound: Vec<u8>,
    first_bare: String,
    nonce: String,
    expected: Option<[u8; 32]>,
    verified: bool,
}

impl Scram {
    /// Begins one. `binding` is what [`server_end_point`] gives, where there is TLS and a certificate with such a value.
    #[must_use]
    pub fn new(password: &str, mechanism: Mechanism, binding: Option<&[u8]>, nonce: &str) -> Self {
        let (gs2, bound) = match (mechanism, binding) {
            (Mechanism::Plus, Some(binding)) => ("p=tls-server-end-point,,", binding.to_vec()),
            // `y` says: could have bound, but the server does not offer it. A server that did offers is then warned
            // that somebody took the offer away.
            (_, Some(_)) => ("y,,", Vec::new()),
            (_, None) => ("n,,", Vec::new()),
        };
        let password = match stringprep::saslprep(password) {
            Ok(prepared) => prepared.into_owned().into_bytes(),
            // As PostgreSQL does with a password that cannot be prepared.
            Err(_) => password.as_bytes().to_vec(),
        };
        Self {
            password: Zeroizing::new(password),
            gs2: gs2.into(),
            bound,
            // PostgreSQL takes the user from the first message of the session.
            first_bare: format!("n=,r={nonce}"),
            nonce: nonce.into(),
            expected: None,
            verified: false,
        }
    }

    /// The client's first message.
    #[must_use]
    pub fn first(&self) -> String {
        format!("{}{}", self.gs2, self.first_bare)
    }

    /// The client's last message, as an answer to the server's first.
    ///
    /// # Errors
    /// Why the server's message is no answer.
    pub fn last(&mut self, server_first: &[u8]) -> Result<String, &'static str> {
        let server_first = std::str::from_utf8(server_first).map_err(|_| "the server's challenge is not text")?;
        let mut parts = server_first.split(',');
        let mut part = |name: &str| parts.next().and_then(|part| part.strip_prefix(name));
        let nonce = part("r=").filter(|nonce| nonce.len() > self.nonce.len() && nonce.starts_with(&self.nonce));
        let nonce = nonce.ok_or("the server's challenge is not for this session")?;
        let salt =
            part("s=").and_then(|salt| STANDARD.decode(salt).ok()).ok_or("the server's challenge has no salt")?;
        let rounds = part("i=").and_then(|rounds| rounds.parse::<u32>().ok()).filter(|rounds| ROUNDS.contains(rounds));
        let rounds = rounds.and_then(NonZeroU32::new).ok_or("the server asks for too few rounds, or too many")?;
        if self.expected.is_some() || nonce.len() > 256 || salt.len() > 256 {
            return Err("the server's challenge is not one");
        }
        let mut channel = self.gs2.clone().into_bytes();
        channel.extend_from_slice(&self.bound);
        let without_proof = format!("c={},r={nonce}", STANDARD.encode(&channel));
        let message = format!("{},{server_first},{without_proof}", self.first_bare);

        let mut salted = Zeroizing::new([0_u8; 32]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, &self.password, salted.as_mut());
        let client_key = Zeroizing::new(hmac_of(salted.as_ref(), b"Client Key"));
        let stored_key = digest::digest(&digest::SHA256, client_key.as_ref());
        let mut signature = hmac_of(stored_key.as_ref(), message.as_bytes());
        for (byte, key) in signature.iter_mut().zip(client_key.iter()) {
            *byte ^= key;
        }
        let server_key = Zeroizing::new(hmac_of(salted.as_ref(), b"Server Key"));
        self.expected = Some(hmac_of(server_key.as_ref(), message.as_bytes()));
        self.password.zeroize();
        Ok(format!("{without_proof},p={}", STANDARD.encode(signature)))
    }

    /// Verifies the server's last message: that it knew the password before it was told anything.
    ///
    /// # Errors
    /// Why it did not.
    pub fn verify(&mut self, server_last: &[u8]) -> Result<(), &'static str> {
        let wrong = "the server does not know the password itself";
        let signature = server_last.strip_prefix(b"v=").ok_or(wrong)?;
        let signature = signature.split(|byte| *byte == b',').next().unwrap_or_default();
        let signature = STANDARD.decode(signature).map_err(|_| wrong)?;
        let expected = self.expected.as_ref().ok_or(wrong)?;
        verify_slices_are_equal(expected, &signature).map_err(|_| wrong)?;
        self.verified = true;
        Ok(())
    }

    /// Whether the server was verified.
    #[must_use]
    pub const fn is_verified(&self) -> bool {
        self.verified
    }
}

fn hmac_of(key: &[u8], message: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message);
    tag.as_ref().first_chunk().copied().unwrap_or_default()
}

/// What binds an authentication to a server's certificate; `None` where its signature has no single digest.
#[must_use]
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }
    let (_, inner, _) = element(certificate, 0x30)?;
    let (_, _, rest) = element(inner, 0x30)?;
    let (_, algorithm, _) = element(rest, 0x30)?;
    let (_, oid, _) = element(algorithm, 0x06)?;
    let algorithm = match oid {
        // MD5 and SHA-1 count as SHA-256.
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 4 | 5 | 11] | [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => {
            &digest::SHA256
        }
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 12] => &digest::SHA384,
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 13] => &digest::SHA512,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 2] => &digest::SHA256,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 3] => &digest::SHA384,
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 4] => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// The first element of some DER: itself, its content, and what is behind it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8], &[u8])> {
    let (found, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(*first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(length)?;
    (*found == tag).then_some((der, content, behind))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The exchange of RFC 7677 §3, whose client names itself in its first message.
    fn vector() -> Scram {
        let mut scram = Scram::new("pencil", Mechanism::Plain, None, "rOprNGfwEbeRWgbNEkqO");
        scram.first_bare = "n=user,r=rOprNGfwEbeRWgbNEkqO".into();
        scram
    }

    const CHALLENGE: &[u8] = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    #[test]
    fn the_exchange_of_the_standard() {
        let mut scram = vector();
        assert_eq!(scram.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        assert_eq!(
            scram.last(CHALLENGE).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert!(scram.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=").is_err());
        assert!(!scram.is_verified());
        scram.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        assert!(scram.is_verified());
    }

    #[test]
    fn a_challenge_that_is_none_is_refused() {
        let good = std::str::from_utf8(CHALLENGE).unwrap();
        for bad in [
            String::new(),
            good.replace("r=rOpr", "r=xOpr"),
            good.replace("%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", ""),
            good.replace("i=4096", "i=1"),
            good.replace("i=4096", "i=4294967295"),
            good.replace("i=4096", "i=x"),
            good.replace("s=W22Z", "s=*"),
            good.replace("s=", "m=x,s="),
        ] {
            assert!(vector().last(bad.as_bytes()).is_err(), "{bad}");
        }
        for end in [&b"e=other-error"[..], b"", b"v=", b"v=AAAA"] {
            let mut scram = vector();
            assert!(scram.verify(end).is_err(), "before any challenge");
            scram.last(CHALLENGE).unwrap();
            assert!(scram.verify(end).is_err());
        }
    }

    #[test]
    fn the_strongest_mechanism_is_taken() {
        let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0";
        assert_eq!(Mechanism::of(both, true), Some(Mechanism::Plus));
        assert_eq!(Mechanism::of(both, false), Some(Mechanism::Plain));
        assert_eq!(Mechanism::of(b"SCRAM-SHA-256-PLUS\0\0", false), None);
        assert_eq!(Mechanism::of(b"SCRAM-SHA-1\0\0", true), None);
        assert!(Scram::new("x", Mechanism::Plain, Some(b"e"), "n").first().starts_with("y,,"));
        assert!(Scram::new("x", Mechanism::Plus, Some(b"e"), "n").first().starts_with("p=tls-server-end-point,,"));
    }

    #[test]
    fn md5_is_as_postgresql_has_it() {
        // md5(md5("secret" || "joe") || salt), by `md5sum`.
        assert_eq!(md5_answer("joe", "secret", *b"abcd"), "md504b590e28ca03d93dbfaa35428dd6b74");
    }

    #[test]
    fn a_certificate_is_bound_by_the_digest_of_its_signature() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(
            server_end_point(certificate.der()).unwrap(),
            digest::digest(&digest::SHA384, certificate.der()).as_ref()
        );
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["a".into()]).unwrap().self_signed(&key).unwrap();
        assert_eq!(server_end_point(certificate.der()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = server_end_point(&bytes);
            let _ = ask(&bytes);
            let mut scram = vector();
            let _ = scram.last(&bytes);
            let _ = scram.verify(&bytes);
        }
    }
}
