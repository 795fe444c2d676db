//! The certificate authority of a host: it issues the certificates under which people reach agents.
//!
//! It is *not* the authority by which a gate opens an agent's own calls: each gate makes that one in memory for one
//! start, and it never leaves the gate. This crate leans on `model` alone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use ringfence_model::{Explain, Fault, SecretText};
use time::{Duration, OffsetDateTime};

/// How long the host's authority is valid.
const AUTHORITY_DAYS: i64 = 3650;

/// How long an issued certificate is valid; each start issues a new one.
const LEAF_DAYS: i64 = 90;

/// Why no certificate could be issued.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The library refused.
    #[error("cannot {doing}: {why}")]
    Certificate {
        /// What was being done.
        doing: &'static str,
        /// Its word.
        why: String,
    },
    /// The file system refused.
    #[error("cannot use `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Its word.
        #[source]
        source: io::Error,
    },
}

impl Explain for IdentityError {
    fn code(&self) -> &'static str {
        match self {
            Self::Certificate { .. } => "identity.certificate",
            Self::File { .. } => "identity.file",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::File { .. } => Fault::Host,
            Self::Certificate { .. } => Fault::Us,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::File { path, source } if source.kind() == io::ErrorKind::InvalidData => Some(format!(
                "put `{0}` back from a backup; or move it away, and a new authority is made that browsers must trust anew",
                path.display()
            )),
            _ => None,
        }
    }
}

/// The host's authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    path: PathBuf,
}

/// A certificate with its key.
pub struct Issued {
    /// Certificate chain in PEM, leaf first.
    pub chain_pem: String,
    /// The leaf's key in PEM.
    pub key_pem: SecretText,
}

impl Authority {
    /// Takes up the authority kept in `folder`, or makes it. `now_s` is the time in seconds since 1970.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_create(folder: &Path, now_s: i64) -> Result<Self, IdentityError> {
        let (cert_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
        let file = |path: &Path| {
            let path = path.to_path_buf();
            move |source| IdentityError::File { path, source }
        };
        let refused = |doing| move |e: rcgen::Error| IdentityError::Certificate { doing, why: e.to_string() };
        if !cert_path.exists() || !key_path.exists() {
            let key = KeyPair::generate().map_err(refused("make a key"))?;
            let now = time_at(now_s)?;
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, "Ringfence host authority");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.not_before = now - Duration::HOUR;
            params.not_after = now + Duration::days(AUTHORITY_DAYS);
            let cert = params.self_signed(&key).map_err(refused("make the host's authority"))?;
            write(&key_path, key.serialize_pem().as_bytes(), 0o600).map_err(file(&key_path))?;
            write(&cert_path, cert.pem().as_bytes(), 0o644).map_err(file(&cert_path))?;
        }
        let pem = fs::read_to_string(&cert_path).map_err(file(&cert_path))?;
        let key = fs::read_to_string(&key_path).map_err(file(&key_path))?;
        let broken = |path: &Path| {
            let broken = file(path);
            move |e: rcgen::Error| broken(io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
        };
        let key = KeyPair::from_pem(&key).map_err(broken(&key_path))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(broken(&cert_path))?;
        Ok(Self { issuer, pem, path: cert_path })
    }

    /// The file with the authority's certificate, which browsers and clients may be told to trust.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The authority's certificate in PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Issues a server certificate for addresses and names.
    ///
    /// # Errors
    /// [`IdentityError::Certificate`].
    pub fn issue(&self, names: &[&str], addresses: &[IpAddr], now_s: i64) -> Result<Issued, IdentityError> {
        let refused = |doing| move |e: rcgen::Error| IdentityError::Certificate { doing, why: e.to_string() };
        let key = KeyPair::generate().map_err(refused("make a key"))?;
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(refused("name a certificate"))?;
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name.push(DnType::CommonName, "Ringfence agent");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let now = time_at(now_s)?;
        params.not_before = now - Duration::HOUR;
        params.not_after = now + Duration::days(LEAF_DAYS);
        let cert = params.signed_by(&key, &self.issuer).map_err(refused("issue a certificate"))?;
        Ok(Issued { chain_pem: format!("{}{}", cert.pem(), self.pem), key_pem: SecretText::new(key.serialize_pem()) })
    }
}

fn time_at(now_s: i64) -> Result<OffsetDateTime, IdentityError> {
    OffsetDateTime::from_unix_timestamp(now_s)
        .map_err(|e| IdentityError::Certificate { doing: "read the clock", why: e.to_string() })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let half = path.with_extension("half");
    let mut file = File::options().write(true).create(true).truncate(true).mode(mode).open(&half)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&half, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_authority_stays_the_same_and_its_key_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::load_or_create(dir.path(), 1_800_000_000).unwrap();
        let again = Authority::load_or_create(dir.path(), 1_800_000_000).unwrap();
        assert_eq!(first.pem(), again.pem());
        assert_eq!(fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
        let issued = again.issue(&["localhost"], &["127.0.0.1".parse().unwrap()], 1_800_000_000).unwrap();
        assert_eq!(issued.chain_pem.matches("BEGIN CERTIFICATE").count(), 2);
    }

    #[test]
    fn a_broken_key_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        Authority::load_or_create(dir.path(), 1_800_000_000).unwrap();
        fs::write(dir.path().join("ca.key"), "not a key").unwrap();
        let Err(error) = Authority::load_or_create(dir.path(), 1_800_000_000) else { panic!("it was taken") };
        assert_eq!((error.code(), error.fault()), ("identity.file", Fault::Host));
        assert!(error.hint().unwrap().contains("ca.key"));
        assert_eq!(fs::read_to_string(dir.path().join("ca.key")).unwrap(), "not a key", "nothing is overwritten");
    }
}
