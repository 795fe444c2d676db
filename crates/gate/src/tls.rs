//! The authority that exists for one start of one sandbox, in memory; and what upstreams must show.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use ringfence_model::manifest::{Grant, PostgresTls, Protocol, Scheme, TlsMode};
use ringfence_model::{AgentName, Explain, Fault, HostName, SecretText};
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::{CertificateError, CipherSuite, ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use crate::inject::Credential;

/// Names that have a certificate at once.
const MAX_LEAVES: usize = 512;

/// How long a leaf is handed out; it is valid for longer.
const LEAF_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// TLS sessions that are remembered per upstream trust.
const SESSIONS: usize = 32;

/// Why TLS cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate cannot be made.
    #[error("cannot make a certificate for `{name}`")]
    Certificate {
        /// For whom.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// TLS refuses the configuration.
    #[error("cannot configure TLS")]
    Config(#[from] rustls::Error),
    /// PEM text that is none.
    #[error("the PEM text of {what} is not usable: {why}")]
    Pem {
        /// Which.
        what: String,
        /// Why.
        why: String,
    },
    /// A name that no certificate can carry.
    #[error("`{0}` cannot stand in a certificate")]
    Name(String),
    /// The host has no trust anchors.
    #[error("the host's trust store is empty: {0}")]
    NoTrust(String),
    /// No random bytes.
    #[error("the random generator failed")]
    Random,
}

impl Explain for TlsError {
    fn code(&self) -> &'static str {
        match self {
            Self::Certificate { .. } => "gate.certificate",
            Self::Config(_) => "gate.tls",
            Self::Name(_) => "gate.name",
            Self::NoTrust(_) => "gate.no_trust",
            Self::Pem { .. } => "gate.pem",
            Self::Random => "gate.random",
        }
    }

    fn fault(&self) -> Fault {
        match self {
            Self::NoTrust(_) | Self::Random => Fault::Host,
            Self::Name(_) | Self::Pem { .. } => Fault::Caller,
            _ => Fault::Us,
        }
    }
}

/// The one provider of cryptography; a process-wide default is never used.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// What the gate prefers on the agent's side, which is memory of one host: of the two suites that every client of TLS 1.3
/// has, the one whose hash the processor computes. SHA-384 was a tenth of what a new connection costs.
fn agents_provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// Signs certificates for the names that the agent may reach.
pub struct Authority {
    ca_pem: String,
    ssh: crate::ssh::host::Authority,
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn rustls::server::ProducesTickets>,
    leaves: Mutex<HashMap<HostName, (Instant, Arc<ServerConfig>)>>,
}

impl Authority {
    /// Makes a new authority; its key never leaves this process.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn generate(agent: &AgentName) -> Result<Self, TlsError> {
        let failed = |source| TlsError::Certificate { name: format!("Ringfence {agent}"), source };
        let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("Ringfence gate of {agent}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, 3650);
        let ca_key = key()?;
        let ca_pem = params.self_signed(&ca_key).map_err(failed)?.pem();
        Ok(Self {
            ca_pem,
            ssh: crate::ssh::host::Authority::generate().map_err(|_| TlsError::Random)?,
            issuer: Issuer::new(params, ca_key),
            leaf_key: key()?,
            provider: agents_provider(),
            tickets: rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|_| TlsError::Random)?,
            leaves: Mutex::default(),
        })
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The same for hosts that speak SSH.
    #[must_use]
    pub const fn ssh(&self) -> &crate::ssh::host::Authority {
        &self.ssh
    }

    /// What the gate shows an agent that speaks to `host`. Ask only for hosts that the policy could allow.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn server_config(&self, host: &HostName) -> Result<Arc<ServerConfig>, TlsError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, config)) = leaves.get(host)
            && made.elapsed() < LEAF_AGE
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.leaf(host)?);
        if leaves.len() >= MAX_LEAVES {
            leaves.clear();
        }
        leaves.insert(host.clone(), (Instant::now(), Arc::clone(&config)));
        Ok(config)
    }

    fn leaf(&self, host: &HostName) -> Result<ServerConfig, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = host.to_string();
        // X.520 bounds a common name to 64 characters; clients read the alternative name.
        params.distinguished_name.push(DnType::CommonName, name.chars().take(64).collect::<String>());
        params.subject_alt_names = vec![match host {
            HostName::Address(address) => SanType::IpAddress(*address),
            HostName::Name(text) => {
                SanType::DnsName(text.as_str().try_into().map_err(|_| TlsError::Name(name.clone()))?)
            }
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, 90);
        let certificate =
            params.signed_by(&self.leaf_key, &self.issuer).map_err(|source| TlsError::Certificate { name, source })?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ignore_client_order = true;
        config.ticketer = Arc::clone(&self.tickets);
        config.send_tls13_tickets = 1;
        Ok(config)
    }
}

/// Gives a certificate its time: from yesterday on, for clocks that differ.
fn set_validity(params: &mut CertificateParams, days: i64) {
    let today = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let day = |days: i64| {
        let date = today.saturating_add(jiff::Span::new().try_days(days).unwrap_or_default());
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(-1);
    params.not_after = day(days);
}

/// The server's side for people who come in.
///
/// # Errors
/// [`TlsError`] if chain or key are not usable.
pub fn ingress_config(chain_pem: &str, key_pem: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |what: &str, why: &dyn std::fmt::Display| TlsError::Pem { what: what.into(), why: why.to_string() };
    let chain = certificates("the ingress certificate", chain_pem)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| pem("the ingress key", &e))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    // WebSockets over HTTP/2 are rare in servers of agents, so people get HTTP/1.1 alone.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|_| TlsError::Random)?;
    Ok(Arc::new(config))
}

fn certificates(what: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |why: String| TlsError::Pem { what: what.into(), why };
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| error(e.to_string()))?;
    if found.is_empty() { Err(error("it holds no certificate".into())) } else { Ok(found) }
}

/// Which protocols are offered to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// HTTP/2, else HTTP/1.1.
    Any,
    /// HTTP/1.1 alone, as WebSockets need.
    Http1,
}

/// Whom each grant believes.
///
/// Each grant has a configuration of its own, so that no TLS session is resumed by another grant or with another
/// credential.
pub struct Trust {
    system: Option<Arc<RootCertStore>>,
    grants: HashMap<usize, Pair>,
}

struct Pair {
    any: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl Trust {
    /// Loads the trust store of the host, where a grant needs it, and what each grant has of its own.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(grants: &[Grant], credentials: &BTreeMap<String, Credential>) -> Result<Self, TlsError> {
        Self::load_with(grants, credentials, || system_roots().map(Arc::new))
    }

    /// As [`Trust::load`], for a process whose files are out of reach: with the host's trust store as it was loaded before,
    /// or as `system_pem` has it.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load_after(
        grants: &[Grant],
        credentials: &BTreeMap<String, Credential>,
        before: &Self,
        system_pem: Option<&str>,
    ) -> Result<Self, TlsError> {
        let system = || match (&before.system, system_pem) {
            (Some(system), _) => Ok(Arc::clone(system)),
            (None, Some(pem)) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates("the host's trust store", pem)?);
                Ok(Arc::new(roots))
            }
            (None, None) => Err(TlsError::NoTrust("it was not handed over".into())),
        };
        Self::load_with(grants, credentials, system)
    }

    fn load_with(
        grants: &[Grant],
        credentials: &BTreeMap<String, Credential>,
        host: impl FnOnce() -> Result<Arc<RootCertStore>, TlsError>,
    ) -> Result<Self, TlsError> {
        let opened = |g: &Grant| match &g.protocol {
            Protocol::Http => g.scheme == Scheme::Https && g.tls == TlsMode::Inspect,
            Protocol::Postgres(rules) => rules.tls == PostgresTls::Require,
            Protocol::Ssh(_) | Protocol::Tcp(_) => false,
        };
        let needed = grants.iter().any(|g| opened(g) && g.ca_pem.is_none());
        let system = needed.then(host).transpose()?;
        let mut pairs = HashMap::new();
        for (at, grant) in grants.iter().enumerate().filter(|(_, grant)| opened(grant)) {
            let roots = match (&grant.ca_pem, &system) {
                (Some(pem), _) => Arc::new(own_roots(at, pem)?),
                (None, Some(system)) => Arc::clone(system),
                (None, None) => continue,
            };
            let shown = match &grant.client_certificate {
                Some(name) => {
                    let why =
                        || TlsError::Pem { what: format!("credential `{name}`"), why: "it was not leased".into() };
                    let lease = credentials.get(name).ok_or_else(why)?.lease();
                    Some(ClientCertificate::read(name, &lease.secret)?)
                }
                None => None,
            };
            pairs.insert(at, Pair::new(roots, shown)?);
        }
        Ok(Self { system, grants: pairs })
    }

    pub(crate) fn client(&self, grant: usize, offer: Offer) -> Option<Arc<ClientConfig>> {
        let pair = self.grants.get(&grant)?;
        Some(Arc::clone(match offer {
            Offer::Any => &pair.any,
            Offer::Http1 => &pair.http1,
        }))
    }
}

impl Pair {
    fn new(roots: Arc<RootCertStore>, certificate: Option<ClientCertificate>) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match certificate {
            Some(ClientCertificate { chain, key }) => config.with_client_auth_cert(chain, key)?,
            None => config.with_no_client_auth(),
        };
        config.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS);
        let mut http1 = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { any: Arc::new(config), http1: Arc::new(http1) })
    }
}

/// The host's trust store as PEM text, for a gate that cannot read it any more. Empty if there is none.
#[must_use]
pub fn system_pem() -> String {
    let found = rustls_native_certs::load_native_certs();
    let mut text = String::new();
    for certificate in found.certs {
        let body = base64::engine::general_purpose::STANDARD.encode(&certificate);
        let _ = writeln!(text, "-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----");
    }
    text
}

/// What an upstream is shown of who calls.
pub(crate) struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl ClientCertificate {
    /// Reads a chain, leaf first, and its key from one PEM text, and holds them against each other.
    pub(crate) fn read(credential: &str, secret: &SecretText) -> Result<Self, TlsError> {
        // Variables of the environment often carry line breaks as `\n`.
        let pem = SecretText::new(secret.reveal().replace("\\n", "\n"));
        let what = format!("credential `{credential}`");
        let chain = certificates(&what, pem.reveal())?;
        let wrong = |why: &dyn std::fmt::Display| TlsError::Pem { what: what.clone(), why: why.to_string() };
        let key = PrivateKeyDer::from_pem_slice(pem.reveal().as_bytes())
            .map_err(|_| wrong(&"it holds no private key beside the certificate"))?;
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider()).map_err(|e| wrong(&e))?;
        Ok(Self { chain, key })
    }
}

/// Says why a TLS handshake with an upstream failed: a stable code, the library's words, and what to do.
pub(crate) fn failure(error: &std::io::Error) -> String {
    if let Some(alert) = alert(error) {
        return alert;
    }
    let (code, hint) = match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(wrong)) => match wrong {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                ("tls_expired", "; the upstream must renew its certificate, or this host's clock is wrong")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                ("tls_not_yet_valid", "; compare this host's clock")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                ("tls_wrong_name", "; somebody else answers there: grant the name that the certificate has")
            }
            CertificateError::UnknownIssuer => {
                ("tls_unknown_issuer", "; if the upstream has an authority of its own, name it with `ca`")
            }
            _ => ("tls_certificate", "; the upstream needs another certificate"),
        },
        _ => ("tls_failed", ""),
    };
    format!("{code}: {error}{hint}")
}

/// What an upstream says that wants to know who calls, or knows it and does not want to.
pub(crate) fn alert(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    use rustls::AlertDescription as Alert;
    let mut next = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(rustls::Error::AlertReceived(alert)) = inner.and_then(|e| e.downcast_ref())
            && matches!(
                alert,
                Alert::CertificateRequired
                    | Alert::BadCertificate
                    | Alert::UnsupportedCertificate
                    | Alert::CertificateRevoked
                    | Alert::CertificateExpired
                    | Alert::CertificateUnknown
                    | Alert::UnknownCA
            )
        {
            let hint = "the upstream takes no caller without a certificate that it knows: see `client_certificate`";
            return Some(format!("tls_client_certificate: it sent the alert {alert:?}; {hint}"));
        }
        next = error.source();
    }
    None
}

fn own_roots(at: usize, pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&format!("`ca` of grant {}", at + 1), pem)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err(TlsError::NoTrust(if why.is_empty() { "no certificate was found".into() } else { why }));
    }
    Ok(roots)
}

/// The name that an upstream's certificate must carry.
pub(crate) fn server_name(host: &HostName) -> Option<ServerName<'static>> {
    match host {
        HostName::Address(address) => Some(ServerName::IpAddress((*address).into())),
        HostName::Name(name) => ServerName::try_from(name.clone()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_made_once_per_name() {
        let authority = Authority::generate(&"analyst".parse().unwrap()).unwrap();
        let host = "api.example.org".parse().unwrap();
        let first = authority.server_config(&host).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.server_config(&host).unwrap()));
        let long = format!("{}.{}.example.org", "a".repeat(63), "b".repeat(63)).parse().unwrap();
        authority.server_config(&long).unwrap();
        authority.server_config(&"192.0.2.1".parse().unwrap()).unwrap();
    }
}
