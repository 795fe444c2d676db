//! Certificates for one run: the upstream's, and the authority that the peers sign with.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Done, Failure, HOST};

/// Writes `up-ca.pem`, `up.pem` and `up.key` for the upstream, `mitm.pem` and `mitm.key` for the peers.
pub fn write(dir: &Path) -> Done {
    let authority = |name: &str| -> Result<(String, CertificateParams, KeyPair), Failure> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        Ok((params.self_signed(&key)?.pem(), params, key))
    };
    let (pem, params, key) = authority("Upstreams")?;
    std::fs::write(dir.join("up-ca.pem"), &pem)?;
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec![HOST.to_owned()])?;
    leaf.use_authority_key_identifier_extension = true;
    std::fs::write(dir.join("up.pem"), leaf.signed_by(&leaf_key, &issuer)?.pem())?;
    std::fs::write(dir.join("up.key"), leaf_key.serialize_pem())?;
    let (pem, _, key) = authority("Proxies")?;
    std::fs::write(dir.join("mitm.pem"), &pem)?;
    std::fs::write(dir.join("mitm.key"), key.serialize_pem())?;
    Ok(())
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The upstream's side.
pub fn server_config(dir: &str) -> Result<Arc<ServerConfig>, Failure> {
    let chain = vec![CertificateDer::from_pem_file(format!("{dir}/up.pem"))?];
    let key = PrivateKeyDer::from_pem_file(format!("{dir}/up.key"))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// A client that believes one authority.
pub fn client_config(ca: &str) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
