//! How a host shows who it is: the gate to the agent, by an authority that lives as long as the gate; the upstream to the
//! gate, by keys and authorities that the grant names.

use std::borrow::Cow;

use ringfence_model::HostName;
use ringfence_model::manifest::{Grant, Protocol, SshRules};
use russh::keys::ssh_key::certificate::{Builder, CertType};
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::ssh_key::{self, Fingerprint};
use russh::keys::{Algorithm, Certificate, EcdsaCurve, HashAlg, PrivateKey, PublicKey, PublicKeyOrCertificate};
use russh::{Preferred, cipher, compression, kex, mac};
use zeroize::Zeroizing;

/// How long before and after it is made a certificate of the gate's counts, in seconds.
const VALID: u64 = 24 * 60 * 60;

/// Kinds of keys that prove who somebody is. RSA is not among them: the library's signs in a time that tells of the key.
const KEYS: [Algorithm; 4] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
];

const KEX: [kex::Name; 9] = [
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// Ciphers that authenticate what they hide, so that no separate digest is agreed on.
const CIPHERS: [cipher::Name; 3] = [cipher::AES_256_GCM, cipher::AES_128_GCM, cipher::CHACHA20_POLY1305];

/// What either side of the gate speaks.
pub(super) fn preferred() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(&KEX),
        key: Cow::Borrowed(&KEYS),
        host_key_certificates: Cow::Borrowed(&[]),
        cipher: Cow::Borrowed(&CIPHERS),
        mac: Cow::Borrowed(&[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM]),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// Signs the gate's own key for the hosts that an agent speaks with. Both keys never leave the process.
pub struct Authority {
    ca: PrivateKey,
    host: PrivateKey,
    public: String,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// If there is no randomness.
    pub fn generate() -> Result<Self, &'static str> {
        let failed = |_: ssh_key::Error| "no key can be made";
        let (ca, host) = (new_key()?, new_key()?);
        let public = ca.public_key().to_openssh().map_err(failed)?;
        Ok(Self { ca, host, public })
    }

    /// The key that the agent must believe, as OpenSSH writes one.
    #[must_use]
    pub fn public(&self) -> &str {
        self.public.trim_end()
    }

    /// The gate's key, and its certificate for a host.
    ///
    /// # Errors
    /// If it cannot be signed.
    pub fn leaf(&self, host: &HostName) -> Result<(PrivateKey, Certificate), &'static str> {
        let failed = |_: ssh_key::Error| "no certificate can be made";
        let now = now();
        let mut nonce = [0_u8; Builder::RECOMMENDED_NONCE_SIZE];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| "the random generator failed")?;
        let subject = self.host.public_key().key_data().clone();
        let mut certificate =
            Builder::new(nonce, subject, now.saturating_sub(VALID), now.saturating_add(VALID)).map_err(failed)?;
        certificate.cert_type(CertType::Host).map_err(failed)?;
        certificate.key_id("ringfence").map_err(failed)?;
        certificate.valid_principal(host.to_string()).map_err(failed)?;
        Ok((self.host.clone(), certificate.sign(&self.ca).map_err(failed)?))
    }
}

fn new_key() -> Result<PrivateKey, &'static str> {
    let mut seed = Zeroizing::new([0_u8; 32]);
    aws_lc_rs::rand::fill(seed.as_mut()).map_err(|_| "the random generator failed")?;
    Ok(Ed25519Keypair::from_seed(&seed).into())
}

fn now() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0)
}

/// Reads a private key as OpenSSH writes it.
///
/// # Errors
/// Why it cannot be used.
pub fn private_key(text: &str) -> Result<PrivateKey, &'static str> {
    let text = Zeroizing::new(format!("{}\n", text.trim()));
    let key = PrivateKey::from_openssh(text.as_bytes())
        .map_err(|_| "it is no private key as `ssh-keygen` writes it, `-----BEGIN OPENSSH PRIVATE KEY-----`")?;
    if key.is_encrypted() {
        return Err("it has a passphrase: keep it without one, in the vault");
    }
    if KEYS.contains(&key.algorithm()) {
        Ok(key)
    } else {
        Err("it is neither Ed25519 nor ECDSA: make another by `ssh-keygen -t ed25519`")
    }
}

/// Keys by which an upstream is known.
#[derive(Clone, Debug)]
pub struct Known {
    keys: Vec<Fingerprint>,
    authorities: Vec<Fingerprint>,
    /// Kinds that the host may be asked for.
    kinds: Vec<Algorithm>,
}

impl Known {
    /// Reads what a grant says.
    ///
    /// # Errors
    /// Which text is no key.
    pub fn read(rules: &SshRules) -> Result<Self, String> {
        let mut kinds = Vec::new();
        let mut read = |text: &String| {
            let wrong = |_| format!("`{text}` is no public key");
            if text.starts_with("SHA256:") {
                kinds.extend(KEYS);
                return text.parse::<Fingerprint>().map_err(wrong);
            }
            let key = PublicKey::from_openssh(text).map_err(wrong)?;
            kinds.push(key.algorithm());
            Ok(key.fingerprint(HashAlg::Sha256))
        };
        let keys = rules.host_keys.iter().map(&mut read).collect::<Result<_, _>>()?;
        let authorities = rules.host_authorities.iter().map(read).collect::<Result<Vec<Fingerprint>, _>>()?;
        if !authorities.is_empty() {
            // A key that an authority signed may be of any kind.
            kinds = KEYS.to_vec();
        }
        kinds.sort_by_key(|kind| KEYS.iter().position(|known| known == kind));
        kinds.dedup();
        Ok(Self { keys, authorities, kinds })
    }

    /// What the host is asked for: no kind of key that could not be known.
    pub(super) fn preferred(&self) -> Preferred {
        let signed = if self.authorities.is_empty() { Vec::new() } else { KEYS.to_vec() };
        Preferred { key: Cow::Owned(self.kinds.clone()), host_key_certificates: Cow::Owned(signed), ..preferred() }
    }

    /// Whether a host is the one that the grant means.
    ///
    /// # Errors
    /// Why not, with the fingerprint of what it showed.
    pub fn check(&self, host: &HostName, shown: &PublicKeyOrCertificate) -> Result<(), String> {
        let key = shown.public_key();
        let fingerprint = key.fingerprint(HashAlg::Sha256);
        if KEYS.contains(&key.algorithm()) && self.keys.contains(&fingerprint) {
            return Ok(());
        }
        match shown.certificate() {
            None => Err(format!("the host has the key {fingerprint}, which the grant does not name")),
            Some(certificate) => self
                .check_certificate(host, certificate)
                .map_err(|why| format!("the host's certificate for the key {fingerprint} is not believed: {why}")),
        }
    }

    fn check_certificate(&self, host: &HostName, certificate: &Certificate) -> Result<(), &'static str> {
        if certificate.cert_type() != CertType::Host {
            return Err("it is not for a host");
        }
        if !certificate.valid_principals().contains(&host.to_string()) {
            return Err("it is not for this host");
        }
        if !certificate.critical_options().is_empty() {
            return Err("it has options that the gate does not know");
        }
        certificate
            .validate_at(now(), &self.authorities)
            .map_err(|_| "no authority of the grant's signed it, or it is out of date")
    }
}

/// Whether every grant's keys can be read.
///
/// # Errors
/// The number of the first grant whose keys cannot, and why.
pub(crate) fn check_all(grants: &[Grant]) -> Result<(), (usize, String)> {
    for (at, grant) in grants.iter().enumerate() {
        if let Protocol::Ssh(rules) = &grant.protocol {
            Known::read(rules).map_err(|why| (at + 1, why))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ringfence_model::manifest::{GitOperation, RefChange};

    use super::*;

    fn rules(host_keys: Vec<String>, host_authorities: Vec<String>) -> SshRules {
        SshRules {
            user: "git".into(),
            host_keys,
            host_authorities,
            repositories: vec!["*".into()],
            operations: GitOperation::ALL.to_vec(),
            refs: Vec::new(),
            changes: RefChange::ALL.to_vec(),
        }
    }

    fn text(key: &PrivateKey) -> String {
        key.public_key().to_openssh().unwrap()
    }

    fn plain(key: &PrivateKey) -> PublicKeyOrCertificate {
        key.public_key().clone().into()
    }

    #[test]
    fn a_host_is_known_by_its_key_or_its_fingerprint_and_no_other() {
        let (own, other) = (new_key().unwrap(), new_key().unwrap());
        let host: HostName = "git.example.org".parse().unwrap();
        let fingerprint = own.public_key().fingerprint(HashAlg::Sha256).to_string();
        for written in [text(&own), fingerprint] {
            let known = Known::read(&rules(vec![written], Vec::new())).unwrap();
            assert_eq!(known.check(&host, &plain(&own)), Ok(()));
            let why = known.check(&host, &plain(&other)).unwrap_err();
            assert!(why.contains(&other.public_key().fingerprint(HashAlg::Sha256).to_string()), "{why}");
        }
        for wrong in ["ssh-ed25519 AAAA", "SHA256:x", "ssh-rsa AAAAB3NzaC1yc2E="] {
            assert!(Known::read(&rules(vec![wrong.into()], Vec::new())).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_certificate_counts_for_its_host_from_its_authority_and_in_its_time() {
        let authority = Authority::generate().unwrap();
        let host: HostName = "git.example.org".parse().unwrap();
        let (key, certificate) = authority.leaf(&host).unwrap();
        let known = |signer: &str| Known::read(&rules(Vec::new(), vec![signer.to_owned()])).unwrap();
        let shown = PublicKeyOrCertificate::from(certificate);
        assert_eq!(known(authority.public()).check(&host, &shown), Ok(()));
        assert!(known(authority.public()).check(&"www.example.org".parse().unwrap(), &shown).is_err());
        assert!(known(&text(&new_key().unwrap())).check(&host, &shown).is_err());
        assert!(known(authority.public()).check(&host, &plain(&key)).is_err(), "a key by itself");
        let signed = |kind: CertType, after: u64, before: u64| {
            let mut built = Builder::new([0; 16], key.public_key().key_data().clone(), after, before).unwrap();
            built.cert_type(kind).unwrap();
            built.key_id("x").unwrap();
            built.valid_principal("git.example.org").unwrap();
            PublicKeyOrCertificate::from(built.sign(&authority.ca).unwrap())
        };
        let check = |shown| known(authority.public()).check(&host, &shown);
        assert_eq!(check(signed(CertType::Host, 0, now() + 60)), Ok(()));
        assert!(check(signed(CertType::User, 0, now() + 60)).is_err());
        assert!(check(signed(CertType::Host, 0, now() - 60)).is_err());
        assert!(check(signed(CertType::Host, now() + 60, now() + 120)).is_err());
    }

    #[test]
    fn a_private_key_is_one_that_can_be_used() {
        let key = new_key().unwrap();
        let written = key.to_openssh(ssh_key::LineEnding::LF).unwrap();
        assert_eq!(private_key(&written).unwrap().public_key(), key.public_key());
        assert!(private_key(written.trim_end()).is_ok());
        for bad in ["", "x", "-----BEGIN OPENSSH PRIVATE KEY-----\n-----END OPENSSH PRIVATE KEY-----"] {
            assert!(private_key(bad).is_err());
        }
    }
}
