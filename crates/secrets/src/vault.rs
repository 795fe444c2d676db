//! Secrets sealed at rest: one file, each value under AES-256-GCM with its name as associated data.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ringfence_model::{Explain, Fault, SecretText};

/// Why the vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The file system refused.
    #[error("cannot {doing} `{path}`")]
    File {
        /// What was being done.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Its word.
        #[source]
        source: io::Error,
    },
    /// A value does not open: another key sealed it, or it was changed.
    #[error("secret `{0}` does not open: it was sealed by another key, or changed")]
    Sealed(String),
    /// The cipher refused.
    #[error("the cipher refused")]
    Cipher,
}

impl Explain for VaultError {
    fn code(&self) -> &'static str {
        match self {
            Self::Cipher => "vault.cipher",
            Self::File { .. } => "vault.file",
            Self::Sealed(_) => "vault.sealed",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::File { .. } => Fault::Host,
            _ => Fault::Us,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File { path, source, .. }
                if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                Some(format!(
                    "put it back from a backup; or move `{}` away and give the secrets again",
                    path.parent().unwrap_or(path).join("vault.*").display()
                ))
            }
            Self::Sealed(_) => Some("give the secret again: run `ringfence up` with its source present".into()),
            _ => None,
        }
    }
}

/// The vault, open. The key lies in a file of its own beside it, readable by its owner alone.
pub struct Vault {
    path: PathBuf,
    key: RandomizedNonceKey,
    sealed: BTreeMap<String, String>,
}

impl Vault {
    /// Opens or begins the vault in `folder`.
    ///
    /// # Errors
    /// [`VaultError::File`].
    pub fn open(folder: &Path) -> Result<Self, VaultError> {
        let key_path = folder.join("vault.key");
        let key = load_key(&key_path).map_err(|source| VaultError::File { doing: "read", path: key_path, source })?;
        let path = folder.join("vault.json");
        let sealed = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| VaultError::File {
                doing: "read",
                path: path.clone(),
                source: e.into(),
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(VaultError::File { doing: "read", path, source }),
        };
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| VaultError::Cipher)?;
        Ok(Self { path, key, sealed })
    }

    /// Seals `secret` under `name`, in place of what was there.
    ///
    /// # Errors
    /// [`VaultError`]; what was there before is there still.
    pub fn put(&mut self, name: &str, secret: &SecretText) -> Result<(), VaultError> {
        let mut text = secret.reveal().as_bytes().to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(name), &mut text).map_err(|_| VaultError::Cipher)?;
        let mut whole = nonce.as_ref().to_vec();
        whole.append(&mut text);
        let before = self.sealed.insert(name.into(), BASE64.encode(whole));
        self.save().inspect_err(|_| {
            match before {
                Some(before) => self.sealed.insert(name.into(), before),
                None => self.sealed.remove(name),
            };
        })
    }

    /// Opens the secret under `name`.
    ///
    /// # Errors
    /// [`VaultError::Sealed`] if it does not open.
    pub fn get(&self, name: &str) -> Result<Option<SecretText>, VaultError> {
        let Some(text) = self.sealed.get(name) else { return Ok(None) };
        let broken = || VaultError::Sealed(name.into());
        let whole = BASE64.decode(text).map_err(|_| broken())?;
        let (nonce, sealed) = whole.split_first_chunk::<NONCE_LEN>().ok_or_else(broken)?;
        let mut sealed = sealed.to_vec();
        let opened = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name), &mut sealed)
            .map_err(|_| broken())?;
        String::from_utf8(opened.to_vec()).map(|text| Some(SecretText::new(text))).map_err(|_| broken())
    }

    /// Removes the secret under `name`, if there is one.
    ///
    /// # Errors
    /// [`VaultError::File`].
    pub fn remove(&mut self, name: &str) -> Result<(), VaultError> {
        if self.sealed.remove(name).is_some() { self.save() } else { Ok(()) }
    }

    /// Removes every secret whose name begins with `prefix`.
    ///
    /// # Errors
    /// [`VaultError::File`].
    pub fn remove_below(&mut self, prefix: &str) -> Result<(), VaultError> {
        let before = self.sealed.len();
        self.sealed.retain(|name, _| !name.starts_with(prefix));
        if self.sealed.len() == before { Ok(()) } else { self.save() }
    }

    fn save(&self) -> Result<(), VaultError> {
        let failed = |source| VaultError::File { doing: "write", path: self.path.clone(), source };
        let text = serde_json::to_vec(&self.sealed).map_err(|e| failed(e.into()))?;
        write_private(&self.path, &text).map_err(failed)
    }
}

fn load_key(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(key) if key.len() == 32 => Ok(key),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the key file is not 32 bytes")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut key = vec![0; 32];
            aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
            write_private(path, &key)?;
            Ok(key)
        }
        Err(e) => Err(e),
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let half = path.with_extension("half");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&half, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_back_and_do_not_lie_in_the_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = Vault::open(dir.path()).unwrap();
        vault.put("agent/a/openai", &SecretText::new("sk-real-1".into())).unwrap();
        vault.put("agent/b/openai", &SecretText::new("sk-real-2".into())).unwrap();
        drop(vault);
        for file in ["vault.json", "vault.key"] {
            let bytes = fs::read(dir.path().join(file)).unwrap();
            assert!(!bytes.windows(7).any(|w| w == b"sk-real"), "{file}");
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let mut vault = Vault::open(dir.path()).unwrap();
        assert_eq!(vault.get("agent/a/openai").unwrap().unwrap().reveal(), "sk-real-1");
        vault.remove_below("agent/a/").unwrap();
        assert!(vault.get("agent/a/openai").unwrap().is_none());
        assert!(vault.get("agent/b/openai").unwrap().is_some());
    }

    #[test]
    fn a_value_moved_to_another_name_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = Vault::open(dir.path()).unwrap();
        vault.put("a", &SecretText::new("x".into())).unwrap();
        let text = fs::read_to_string(dir.path().join("vault.json")).unwrap().replace("\"a\"", "\"b\"");
        fs::write(dir.path().join("vault.json"), text).unwrap();
        assert!(matches!(Vault::open(dir.path()).unwrap().get("b"), Err(VaultError::Sealed(_))));
    }
}
