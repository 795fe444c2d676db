//! A throw-away certificate authority, for servers that exist for one run.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// Why a certificate cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// It cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// TLS does not take it.
    #[error("cannot use a certificate: {0}")]
    Use(#[from] rustls::Error),
    /// A PEM text holds no certificate.
    #[error("cannot read certificates: {0}")]
    Pem(String),
}

/// A certificate authority. Its key lives in memory and ends with it.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A server's certificate with its key.
pub struct Leaf {
    certificate: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Ca {
    /// Makes one.
    ///
    /// # Errors
    /// [`CaError::Make`].
    pub fn generate(name: &str) -> Result<Self, CaError> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    /// Its certificate, as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Writes its certificate to a file, as PEM.
    ///
    /// # Errors
    /// Whatever writing gives.
    pub fn write_pem(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, self.pem())
    }

    /// Issues a certificate for a server with these names or addresses.
    ///
    /// # Errors
    /// [`CaError::Make`], also for a name that is none.
    pub fn issue(&self, names: &[&str]) -> Result<Leaf, CaError> {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, names.first().copied().unwrap_or("server"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &*self.issuer)?;
        Ok(Leaf { certificate: certificate.der().clone(), pem: certificate.pem(), key })
    }
}

impl Leaf {
    /// Writes certificate and key to files, as PEM, for a server of somebody else's.
    ///
    /// # Errors
    /// Whatever writing gives.
    pub fn write_pem(&self, certificate: &Path, key: &Path) -> std::io::Result<()> {
        std::fs::write(certificate, &self.pem)?;
        std::fs::write(key, self.key.serialize_pem())
    }

    /// Certificate and key, as PEM.
    #[must_use]
    pub fn pems(&self) -> [String; 2] {
        [self.pem.clone(), self.key.serialize_pem()]
    }

    /// What a server needs to speak TLS with it, offering HTTP/2 and HTTP/1.1.
    ///
    /// # Errors
    /// [`CaError::Use`].
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, CaError> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

/// What a client needs that believes these authorities and no others; it offers HTTP/1.1.
///
/// # Errors
/// [`CaError::Pem`] if there is no certificate in `ca_pem`.
pub fn client_config(ca_pem: &str) -> Result<Arc<ClientConfig>, CaError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.map_err(|e| CaError::Pem(e.to_string()))?)?;
    }
    if roots.is_empty() {
        return Err(CaError::Pem("there is none in the text".into()));
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
