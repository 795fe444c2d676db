//! What an agent holds in the stead of a secret: it looks like a key of the same provider, and is of no use anywhere.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringfence_model::SecretText;
use ringfence_model::manifest::Place;

/// Beginnings by which providers and their libraries tell keys; all public. Longer ones come before their beginnings.
const KNOWN: [&str; 68] = [
    "sk-ant-api03-",
    "sk-ant-admin01-",
    "sk-ant-oat01-",
    "sk-ant-",
    "sk-proj-",
    "sk-svcacct-",
    "sk-admin-",
    "sk-or-v1-",
    "sk-lf-",
    "pk-lf-",
    "sk-",
    "sk_live_",
    "sk_test_",
    "rk_live_",
    "rk_test_",
    "pk_live_",
    "pk_test_",
    "whsec_",
    "AIza",
    "ya29.",
    "GOCSPX-",
    "github_pat_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xoxe-",
    "xapp-",
    "AKIA",
    "ASIA",
    "hf_",
    "gsk_",
    "r8_",
    "SG.",
    "key-",
    "npm_",
    "pypi-",
    "dop_v1_",
    "shpat_",
    "shpss_",
    "lin_api_",
    "ntn_",
    "secret_",
    "pplx-",
    "nvapi-",
    "xai-",
    "tvly-",
    "fc-",
    "pcsk_",
    "lsv2_pt_",
    "lsv2_sk_",
    "sntrys_",
    "sbp_",
    "dckr_pat_",
    "hvs.",
    "dapi",
    "PMAK-",
    "figd_",
    "pat-",
    "ATATT3",
    "vercel_",
    "csk-",
    "jina_",
];

/// Random bits that each placeholder has at least.
const MIN_BITS: usize = 96;

/// The longest random part; a library that checks lengths checks those of keys.
const MAX_RANDOM: usize = 256;

/// Makes a placeholder: of the secret's shape where the agent would hold the secret, and of an access token's where it
/// would hold that. `prefix` is how it begins, if the manifest says so.
///
/// Of the secret itself it has the length, the kind of characters and the public beginning, and nothing else.
///
/// # Errors
/// If the host has no randomness.
pub fn placeholder(place: &Place, secret: &SecretText, prefix: Option<&str>) -> Result<String, NoRandomness> {
    let secret = secret.reveal();
    if let Some(prefix) = prefix {
        let body = secret.strip_prefix(prefix).unwrap_or(secret);
        return Ok(format!("{prefix}{}", random(Class::of(body), body.chars().count())?));
    }
    match place {
        Place::GithubApp(_) => Ok(format!("ghs_{}", random(Class::Alphanumeric, 36)?)),
        Place::GoogleServiceAccount(_) => Ok(format!("ya29.{}", random(Class::Alphanumeric, 120)?)),
        Place::ClientCertificate | Place::Oauth2(_) | Place::SshKey => random(Class::Alphanumeric, 43),
        Place::Sigv4(_) => random(Class::Alphanumeric, 40),
        _ => like(secret),
    }
}

/// The host has no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the host has no randomness for a placeholder")]
pub struct NoRandomness;

fn like(secret: &str) -> Result<String, NoRandomness> {
    if is_uuid(secret) {
        return uuid();
    }
    if secret.starts_with("eyJ") && secret.split('.').count() == 3 {
        return jwt();
    }
    if let Some(prefix) = KNOWN.iter().find(|prefix| secret.starts_with(**prefix)) {
        let body = secret.get(prefix.len()..).unwrap_or_default();
        return Ok(format!("{prefix}{}", separated(body)?));
    }
    // A bot's token: its public number, and the secret.
    if let Some((number, rest)) = secret.split_once(':')
        && (6..=12).contains(&number.len())
        && number.bytes().all(|b| b.is_ascii_digit())
    {
        let digits = random_of(b"123456789", number.len())?;
        return Ok(format!("{digits}:{}", random(Class::of(rest), rest.chars().count())?));
    }
    random(Class::of(secret), secret.chars().count())
}

/// Random characters, with the separators that keys of known forms have between their parts.
fn separated(body: &str) -> Result<String, NoRandomness> {
    let parts: Vec<&str> = body.split(['-', '.']).collect();
    let regular = (2..=4).contains(&parts.len()) && parts.iter().all(|part| part.len() >= 4);
    if !regular {
        return random(Class::of(body), body.chars().count());
    }
    let mut out = String::new();
    let mut separators = body.chars().filter(|c| matches!(c, '-' | '.'));
    for (nth, part) in parts.iter().enumerate() {
        // Only the last part has to make it unguessable.
        let last = nth + 1 == parts.len();
        let class = Class::of(part);
        let count = part.chars().count().min(MAX_RANDOM);
        out.push_str(&if last { random(class, count)? } else { random_of(class.alphabet(), count)? });
        out.extend(separators.next());
    }
    Ok(out)
}

/// What a text is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Alphanumeric,
    Digits,
    Hex,
    Lower,
    Upper,
}

impl Class {
    fn of(text: &str) -> Self {
        let all = |allowed: fn(u8) -> bool| text.bytes().all(allowed);
        match () {
            () if text.is_empty() => Self::Alphanumeric,
            () if all(|b| b.is_ascii_digit()) => Self::Digits,
            () if all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => Self::Hex,
            () if all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) => Self::Lower,
            () if all(|b| b.is_ascii_digit() || b.is_ascii_uppercase()) => Self::Upper,
            () => Self::Alphanumeric,
        }
    }

    const fn alphabet(self) -> &'static [u8] {
        match self {
            Self::Alphanumeric => b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
            Self::Digits => b"0123456789",
            Self::Hex => b"0123456789abcdef",
            Self::Lower => b"abcdefghijklmnopqrstuvwxyz0123456789",
            // RFC 4648 §6, which is also what key ids of AWS are made of.
            Self::Upper => b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567",
        }
    }
}

/// `count` random characters of a class, and more if those would be too easy to guess.
fn random(class: Class, count: usize) -> Result<String, NoRandomness> {
    let alphabet = class.alphabet();
    let bits = usize::try_from(alphabet.len().ilog2()).unwrap_or(1).max(1);
    random_of(alphabet, count.clamp(MIN_BITS.div_ceil(bits), MAX_RANDOM))
}

fn random_of(alphabet: &[u8], count: usize) -> Result<String, NoRandomness> {
    let mut out = String::with_capacity(count);
    let mut bytes = [0_u8; 64];
    // The last bytes of the range are left out, so that every character is as likely as any other.
    let fair = 256 - 256 % alphabet.len();
    while out.len() < count {
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        let drawn = bytes.iter().map(|b| usize::from(*b)).filter(|b| *b < fair);
        let characters = drawn.filter_map(|b| alphabet.get(b % alphabet.len())).map(|b| char::from(*b));
        out.extend(characters.take(count - out.len()));
    }
    Ok(out)
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// # Source
/// RFC 9562 §5.4.
fn uuid() -> Result<String, NoRandomness> {
    let hex = |count| random_of(Class::Hex.alphabet(), count);
    Ok(format!("{}-{}-4{}-{}{}-{}", hex(8)?, hex(4)?, hex(3)?, random_of(b"89ab", 1)?, hex(3)?, hex(12)?))
}

/// Three parts that any reader of tokens takes for one, and no verifier.
fn jwt() -> Result<String, NoRandomness> {
    let subject = random(Class::Hex, 32)?;
    let head = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"{subject}","iat":1700000000,"exp":4102444800}}"#));
    Ok(format!("{head}.{claims}.{}", random(Class::Alphanumeric, 43)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Place {
        Place::Header { name: "authorization".into(), template: "{}".into() }
    }

    fn of(secret: &str) -> String {
        placeholder(&header(), &SecretText::new(secret.into()), None).unwrap()
    }

    #[test]
    fn a_placeholder_has_the_form_of_the_secret() {
        for (secret, begins) in [
            ("sk-proj-Abc123def456Ghi789jkl012Mno345pqr678", "sk-proj-"),
            ("sk-abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKL", "sk-"),
            ("sk-ant-api03-Abc_123-def456Ghi789jkl012Mno345pqr678AA", "sk-ant-api03-"),
            ("AIzaSyA1234567890abcdefghijklmnopqrstuv", "AIza"),
            ("ghp_1234567890abcdefghijABCDEFGHIJ123456", "ghp_"),
            ("github_pat_11ABCDEFG0aBcDeFgHiJkL_mNoPqRsTuVwXyZ", "github_pat_"),
            ("xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx", "xoxb-"),
            ("AKIAIOSFODNN7EXAMPLEAAAA", "AKIA"),
            ("hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "hf_"),
            ("gsk_abcdefghijklmnopqrstuvwxyz0123456789", "gsk_"),
            ("r8_abcdefghijklmnopqrstuvwxyz0123456789", "r8_"),
            ("SG.abcdefghijklmnopqrstuv.abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG", "SG."),
            ("sk_test_abcdefghijklmnopqrstuvwx", "sk_test_"),
        ] {
            let made = of(secret);
            assert!(made.starts_with(begins) && made.len() == secret.len(), "{made}");
            let (body, own) = (&made[begins.len()..], &secret[begins.len()..]);
            for at in 0..own.len().saturating_sub(7) {
                assert!(!body.contains(&own[at..at + 8]), "{made}");
            }
        }
        let slack: Vec<String> =
            of("xoxb-123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx").split('-').map(str::to_owned).collect();
        assert_eq!(slack.iter().map(String::len).collect::<Vec<_>>(), [4, 12, 13, 24]);
        assert!(slack[1].bytes().all(|b| b.is_ascii_digit()));
        assert!(of("AKIAIOSFODNN7EXAMPLEAAAA").bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()));
        assert!(is_uuid(&of("123e4567-e89b-12d3-a456-426614174000")));
        let telegram = of("123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw");
        assert_eq!(telegram.split_once(':').map(|(n, t)| (n.len(), t.len())), Some((9, 34)));
        let hex = of("0123456789abcdef0123456789abcdef");
        assert!(hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let jwt = of("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln");
        let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap()).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&claims).unwrap()["sub"].is_string());
    }

    #[test]
    fn a_placeholder_is_unlike_any_other_and_too_long_to_guess() {
        for secret in ["1234", "x", "sk-a", "sk-proj-abc", "a\"b/c d", "0123456789abcdef0123456789abcdef"] {
            let (one, other) = (of(secret), of(secret));
            assert_ne!(one, other);
            assert!(one.len() >= 16 && (secret.len() < 8 || !one.contains(secret)), "{one}");
            assert!(one.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "{one}");
        }
        assert!(of(&"k".repeat(5000)).len() <= MAX_RANDOM);
    }

    #[test]
    fn the_manifest_and_the_place_have_their_say() {
        let secret = SecretText::new("key-of-ours-0123456789abcdef".into());
        assert!(placeholder(&header(), &secret, Some("acme_")).unwrap().starts_with("acme_"));
        let app = ringfence_model::manifest::Manifest::parse(
            "[agent]\nname = \"a\"\nentry = [\"x\"]\n[credential.g]\nfrom = \"env:K\"\ngithub_app = { app_id = 1, installation_id = 2 }\n",
            &|_| Err(String::new()),
        );
        let place = &app.unwrap().credentials["g"].place;
        let made = placeholder(place, &SecretText::new("-----BEGIN PRIVATE KEY-----".into()), None).unwrap();
        assert!(made.starts_with("ghs_") && made.len() == 40, "{made}");
    }

    #[test]
    fn longer_beginnings_come_first() {
        for (at, prefix) in KNOWN.iter().enumerate() {
            assert!(!KNOWN[..at].iter().any(|earlier| prefix.starts_with(earlier)), "{prefix}");
        }
    }
}
