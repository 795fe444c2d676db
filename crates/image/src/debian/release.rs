//! Release files: signed by Debian, current, and of the suite that was asked for.
//!
//! # Source
//! The signature is checked by `gpgv`, as apt does; only the text that it says was signed is read.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use jiff::{SignedDuration, Timestamp};
use ringfence_model::Digest;

use super::sources::{Keys, Pocket};
use crate::error::{ImageError, OnPath, Said};
use crate::store::Store;

/// What a believed release file says.
#[derive(Debug)]
pub(crate) struct Release {
    /// Path below the suite's folder → digest and size.
    pub files: BTreeMap<String, (Digest, u64)>,
    /// Whether it is Debian's own.
    pub is_debian: bool,
}

/// Checks the signature, the origin and the dates of an `InRelease` file.
pub(crate) fn believe(store: &Store, pocket: &Pocket, url: &str, bytes: &[u8]) -> Result<Release, ImageError> {
    let text = verified(store, pocket, url, bytes)?;
    let release =
        understand(&text, pocket, Timestamp::now()).map_err(|why| ImageError::MirrorSyntax { url: url.into(), why })?;
    match release {
        Judged::Current(release) => Ok(release),
        Judged::Stale(why) => Err(ImageError::MirrorStale { url: url.into(), why }),
    }
}

fn verified(store: &Store, pocket: &Pocket, url: &str, bytes: &[u8]) -> Result<String, ImageError> {
    let refuse = |why: String| ImageError::MirrorSignature { url: url.into(), why: Said(why) };
    if pocket.keys.is_empty() {
        return Err(refuse("there is no keyring to believe".into()));
    }
    let stage = store.stage("release")?;
    let signed = stage.path().join("InRelease");
    let plain = stage.path().join("Release");
    std::fs::write(&signed, bytes).on("write", &signed)?;
    let mut command = Command::new("gpgv");
    for (n, keys) in pocket.keys.iter().enumerate() {
        let ring = stage.path().join(format!("keys-{n}.gpg"));
        let bytes = match keys {
            Keys::File(path) => {
                std::fs::read(path).map_err(|e| refuse(format!("cannot read keyring `{}`: {e}", path.display())))?
            }
            Keys::Inline(text) => text.clone().into_bytes(),
        };
        let bytes = dearmour(&bytes).ok_or_else(|| refuse("a key is not armoured as it should be".into()))?;
        std::fs::write(&ring, bytes).on("write", &ring)?;
        command.arg("--keyring").arg(&ring);
    }
    command.arg("--status-fd").arg("1").arg("--output").arg(&plain).arg(&signed);
    let output = command
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/local/bin")
        .env("LC_ALL", "C")
        .env("GNUPGHOME", stage.path())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| refuse(format!("cannot run `gpgv`: {e}")))?;
    judge(&String::from_utf8_lossy(&output.stdout)).map_err(|why| {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default();
        refuse(format!("{why} ({})", last.trim_start_matches("gpgv: ")))
    })?;
    std::fs::read_to_string(&plain).on("read", &plain)
}

/// At least one good signature, and none that is bad, expired or by a revoked key.
///
/// A signature by a key that the keyring lacks is no fault: Debian signs with the keys of two releases at once.
fn judge(status: &str) -> Result<(), &'static str> {
    let words: Vec<&str> =
        status.lines().filter_map(|l| l.strip_prefix("[GNUPG:] ")?.split_whitespace().next()).collect();
    if words.contains(&"BADSIG") {
        return Err("a signature is wrong");
    }
    let good = words.windows(2).any(|pair| matches!(pair, ["GOODSIG", "VALIDSIG"]));
    let late = words.iter().any(|w| matches!(*w, "EXPSIG" | "EXPKEYSIG" | "REVKEYSIG"));
    match (good || (words.contains(&"GOODSIG") && words.contains(&"VALIDSIG")), late) {
        (true, _) => Ok(()),
        (false, true) => Err("the signing key has expired or was revoked"),
        (false, false) => Err("no signature by a key of the keyring"),
    }
}

/// Takes the armour off a key; a binary keyring is passed on.
fn dearmour(bytes: &[u8]) -> Option<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
    const END: &str = "-----END PGP PUBLIC KEY BLOCK-----";
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|t| t.contains(BEGIN)) else {
        return Some(bytes.to_vec());
    };
    let mut out = Vec::new();
    for block in text.split(BEGIN).skip(1) {
        let body = block.split(END).next()?;
        let (_headers, body) = body.replace('\r', "").split_once("\n\n").map(|(h, b)| (h.to_owned(), b.to_owned()))?;
        // The line that begins with `=` is the checksum.
        let base64: String = body.lines().take_while(|l| !l.starts_with('=')).map(str::trim).collect();
        out.write_all(&base64::engine::general_purpose::STANDARD.decode(base64).ok()?).ok()?;
    }
    Some(out)
}

enum Judged {
    Current(Release),
    Stale(String),
}

fn understand(text: &str, pocket: &Pocket, now: Timestamp) -> Result<Judged, String> {
    let field = |key: &str| {
        text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim).filter(|v| !v.is_empty())
    };
    let date = |key: &str| field(key).map(|v| time(v).ok_or_else(|| format!("its {key} `{v}` is no date"))).transpose();
    let made = date("Date")?.ok_or("it has no date")?;
    // A day is what clocks and time zones may be off.
    if made > now.saturating_add(SignedDuration::from_hours(24)).map_err(|e| e.to_string())? {
        return Ok(Judged::Stale(format!("it is dated {made}, in the future")));
    }
    if let Some(until) = date("Valid-Until")?
        && now > until
    {
        return Ok(Judged::Stale(format!("it was valid until {until}")));
    }
    let is_debian = field("Origin") == Some("Debian");
    let names = [field("Codename"), field("Suite")];
    if is_debian && !names.iter().flatten().any(|n| *n == pocket.suite || n.replace('/', "-") == pocket.suite) {
        return Err(format!("it is of suite `{}`, not `{}`", names[0].unwrap_or("?"), pocket.suite));
    }
    let mut files = BTreeMap::new();
    for line in text.lines().skip_while(|l| *l != "SHA256:").skip(1).take_while(|l| l.starts_with(' ')) {
        let mut words = line.split_whitespace();
        if let (Some(hex), Some(size), Some(path)) = (words.next(), words.next(), words.next()) {
            let digest = format!("sha256:{hex}").parse().map_err(|_| format!("`{hex}` is no digest"))?;
            files.insert(path.to_owned(), (digest, size.parse().map_err(|_| format!("`{size}` is no size"))?));
        }
    }
    Ok(Judged::Current(Release { files, is_debian }))
}

fn time(text: &str) -> Option<Timestamp> {
    let text = text.replace("UTC", "+0000").replace("GMT", "+0000");
    jiff::fmt::rfc2822::parse(&text).ok().map(|z| z.timestamp())
}

/// The folder of the host's apt configuration.
pub(crate) const APT: &str = "/etc/apt";

/// [`APT`] as a path.
pub(crate) fn apt() -> &'static Path {
    Path::new(APT)
}

#[cfg(test)]
mod tests {
    use super::super::Archive;
    use super::*;

    fn pocket(suite: &str) -> Pocket {
        Pocket {
            uri: "http://m.example/debian".into(),
            suite: suite.into(),
            components: vec!["main".into()],
            keys: vec![],
            archive: Archive::Main,
            optional: false,
        }
    }

    const TEXT: &str = "Origin: Debian\nSuite: oldstable\nCodename: bookworm\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n\
                        Valid-Until: Sat, 18 Jul 2026 10:16:37 UTC\nMD5Sum:\n 00 1 x\nSHA256:\n \
                        ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad     7 \
                        main/binary-amd64/Packages.xz\n";

    #[test]
    fn dates_and_suites_are_checked() {
        let at = |t: &str| t.parse::<Timestamp>().unwrap();
        let Ok(Judged::Current(release)) = understand(TEXT, &pocket("bookworm"), at("2026-07-12T00:00:00Z")) else {
            unreachable!()
        };
        assert!(release.is_debian);
        assert_eq!(release.files["main/binary-amd64/Packages.xz"].1, 7);
        for when in ["2026-07-19T00:00:00Z", "2026-07-09T00:00:00Z"] {
            assert!(matches!(understand(TEXT, &pocket("bookworm"), at(when)), Ok(Judged::Stale(_))), "{when}");
        }
        assert!(understand(TEXT, &pocket("trixie"), at("2026-07-12T00:00:00Z")).is_err());
    }

    #[test]
    fn only_good_signatures_count() {
        let s = |words: &[&str]| words.iter().map(|w| format!("[GNUPG:] {w} x\n")).collect::<String>();
        assert!(judge(&s(&["NEWSIG", "GOODSIG", "VALIDSIG"])).is_ok());
        assert!(judge(&s(&["ERRSIG", "NO_PUBKEY", "NEWSIG", "GOODSIG", "VALIDSIG"])).is_ok());
        assert!(judge(&s(&["GOODSIG", "VALIDSIG", "BADSIG"])).is_err());
        assert!(judge(&s(&["EXPKEYSIG", "VALIDSIG"])).is_err());
        assert!(judge(&s(&["ERRSIG", "NO_PUBKEY"])).is_err());
        assert!(judge("").is_err());
        assert!(judge("GOODSIG\nVALIDSIG\n").is_err());
    }

    #[test]
    fn an_unsigned_release_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let mut pocket = pocket("bookworm");
        pocket.keys = vec![Keys::Inline(
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n=xxxx\n-----END PGP PUBLIC KEY BLOCK-----".into(),
        )];
        let error = believe(&store, &pocket, "http://m.example/InRelease", TEXT.as_bytes()).unwrap_err();
        assert!(matches!(error, ImageError::MirrorSignature { .. }), "{error}");
    }
}
