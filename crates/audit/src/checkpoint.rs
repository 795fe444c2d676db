//! Checkpoints as signed notes (C2SP `tlog-checkpoint` and `signed-note`), with an Ed25519 key.

use std::io;
use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ringfence_model::digest::Hasher;

use crate::rfc6962::Hash;

/// The signature type of Ed25519 in `signed-note`.
const ED25519_TYPE: u8 = 1;

/// What a checkpoint says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

/// Why a checkpoint is not believed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CheckpointError {
    /// Not of the form.
    #[error("it is not a checkpoint: {0}")]
    Malformed(&'static str),
    /// Of another log.
    #[error("it is of the log `{found}`, not `{wanted}`")]
    Origin {
        /// Which.
        found: String,
        /// Which was wanted.
        wanted: String,
    },
    /// Not signed by the key.
    #[error("no valid signature of `{0}`")]
    Unsigned(String),
}

impl Checkpoint {
    fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root))
    }

    /// Reads a signed note and checks it against `verifier`.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn open(note: &str, verifier: &Verifier) -> Result<Self, CheckpointError> {
        let (body, signatures) =
            note.split_once("\n\n").ok_or(CheckpointError::Malformed("no line between text and signatures"))?;
        let signed = format!("{body}\n");
        let mut lines = body.lines();
        let origin = lines.next().unwrap_or_default().to_owned();
        let size = lines
            .next()
            .filter(|s| !s.starts_with('0') || *s == "0")
            .and_then(|s| s.parse().ok())
            .ok_or(CheckpointError::Malformed("no size"))?;
        let root = lines
            .next()
            .and_then(|s| BASE64.decode(s).ok())
            .and_then(|b| Hash::try_from(b).ok())
            .ok_or(CheckpointError::Malformed("no root hash"))?;
        if origin != verifier.name {
            return Err(CheckpointError::Origin { found: origin, wanted: verifier.name.clone() });
        }
        let believed = signatures.lines().any(|line| {
            line.strip_prefix("\u{2014} ")
                .and_then(|rest| rest.split_once(' '))
                .filter(|(name, _)| *name == verifier.name)
                .and_then(|(_, text)| BASE64.decode(text).ok())
                .is_some_and(|bytes| match bytes.split_first_chunk::<4>() {
                    Some((id, signature)) => *id == verifier.id() && verifier.verify(signed.as_bytes(), signature),
                    None => false,
                })
        });
        if believed { Ok(Self { origin, size, root }) } else { Err(CheckpointError::Unsigned(verifier.name.clone())) }
    }
}

/// The public side of a log's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    /// The log's name, which is also the key's.
    pub name: String,
    /// The Ed25519 public key.
    pub public: [u8; 32],
}

impl Verifier {
    fn id(&self) -> [u8; 4] {
        let mut hasher = Hasher::new();
        hasher.update(self.name.as_bytes());
        hasher.update(&[b'\n', ED25519_TYPE]);
        hasher.update(&self.public);
        let [a, b, c, d, ..] = *hasher.finish().raw();
        [a, b, c, d]
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public).verify(message, signature).is_ok()
    }

    /// The key in `signed-note` verifier form: `name+id+base64`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = vec![ED25519_TYPE];
        bytes.extend_from_slice(&self.public);
        let id: String = self.id().iter().map(|b| format!("{b:02x}")).collect();
        format!("{}+{id}+{}", self.name, BASE64.encode(bytes))
    }

    /// Reads the verifier form.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let mut parts = text.trim().splitn(3, '+');
        let (name, id, key) = (parts.next()?, parts.next()?, parts.next()?);
        let bytes = BASE64.decode(key).ok()?;
        let (kind, public) = bytes.split_first()?;
        let verifier = Self { name: name.into(), public: public.try_into().ok()? };
        let own: String = verifier.id().iter().map(|b| format!("{b:02x}")).collect();
        (*kind == ED25519_TYPE && own == id).then_some(verifier)
    }
}

/// The private side of a log's key.
pub struct Signer {
    name: String,
    pair: Ed25519KeyPair,
}

impl Signer {
    /// Makes a key named `name` from 32 secret random bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the bytes are refused.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> io::Result<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not an Ed25519 seed"))?;
        Ok(Self { name: name.into(), pair })
    }

    /// Reads the key at `path`, or makes it, readable by its owner alone.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn load_or_create(name: &str, path: &Path) -> io::Result<Self> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        match std::fs::read(path) {
            Ok(bytes) => {
                let seed = bytes
                    .as_slice()
                    .try_into()
                    .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the key file is not 32 bytes"))?;
                Self::from_seed(name, seed)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut seed = [0; 32];
                aws_lc_rs::rand::fill(&mut seed).map_err(|_| io::Error::other("no randomness"))?;
                let half = path.with_extension("half");
                let mut file =
                    std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
                file.write_all(&seed)?;
                file.sync_all()?;
                std::fs::rename(&half, path)?;
                Self::from_seed(name, &seed)
            }
            Err(e) => Err(e),
        }
    }

    /// The public side.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        let mut public = [0; 32];
        for (to, from) in public.iter_mut().zip(self.pair.public_key().as_ref()) {
            *to = *from;
        }
        Verifier { name: self.name.clone(), public }
    }

    /// Signs a checkpoint as a note.
    #[must_use]
    pub fn sign(&self, size: u64, root: Hash) -> String {
        let body = Checkpoint { origin: self.name.clone(), size, root }.body();
        let mut signature = self.verifier().id().to_vec();
        signature.extend_from_slice(self.pair.sign(body.as_bytes()).as_ref());
        format!("{body}\n\u{2014} {} {}\n", self.name, BASE64.encode(signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_s_own_unchanged_checkpoints_are_believed() {
        let signer = Signer::from_seed("ringfence.test/log", &[7; 32]).unwrap();
        let verifier = Verifier::from_text(&signer.verifier().to_text()).unwrap();
        let note = signer.sign(42, [9; 32]);
        let open = Checkpoint::open(&note, &verifier).unwrap();
        assert_eq!((open.size, open.root), (42, [9; 32]));
        assert!(Checkpoint::open(&note.replace("\n42\n", "\n43\n"), &verifier).is_err());
        let other = Signer::from_seed("ringfence.test/log", &[8; 32]).unwrap().verifier();
        assert_eq!(Checkpoint::open(&note, &other), Err(CheckpointError::Unsigned("ringfence.test/log".into())));
        for bad in ["", "a\n\n", "a\n1\n\n", "a\n01\nAAAA\n\n"] {
            assert!(Checkpoint::open(bad, &verifier).is_err());
        }
    }
}
