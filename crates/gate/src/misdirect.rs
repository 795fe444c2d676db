//! Placeholders where they do not belong: an agent that sends one to anybody but its own grant was talked into it, or is
//! broken. Such a call is denied, or cut off where its body streams.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use memchr::{memchr, memchr2};
use ringfence_policy::Denial;

use crate::coding::{CodingError, Codings, Decoder};
use crate::config::CredentialLease;
use crate::inspect::MAX_BODY_BYTES;
use crate::needle::{Hit, Needles, Position, forms};

/// How much of a streaming body is searched, and the largest body of known length that is read before its call is made.
pub const MAX_SEARCHED_BYTES: usize = 64 * 1024;

/// The code of a denial, and of the finding where a body streams.
pub const MISDIRECTED: &str = "placeholder_misdirected";

/// The placeholders of all leases, ready to be searched for in every form.
#[derive(Clone, Default)]
pub struct Placeholders(Option<Arc<All>>);

struct All {
    needles: Needles,
    /// The credential of each needle.
    owners: Vec<String>,
}

/// Whose placeholder was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misdirected {
    /// The credential.
    pub credential: String,
}

impl All {
    fn owner(&self, hit: Option<Hit>) -> Option<Misdirected> {
        let owner = self.owners.get(hit?.needle)?;
        Some(Misdirected { credential: owner.clone() })
    }
}

impl Misdirected {
    /// The denial, which names where it was.
    #[must_use]
    pub fn denial(&self, place: &str) -> Denial {
        let credential = &self.credential;
        Denial::new(
            MISDIRECTED,
            format!("the placeholder of credential `{credential}` is in {place}, where it does not belong"),
        )
    }
}

impl Placeholders {
    /// Prepares the search.
    #[must_use]
    pub fn new(leases: &BTreeMap<String, CredentialLease>) -> Self {
        let (mut texts, mut owners) = (Vec::new(), Vec::new());
        for (name, lease) in leases {
            for form in forms(lease.placeholder.as_bytes()) {
                texts.push(form);
                owners.push(name.clone());
            }
        }
        Self(Needles::new(&texts).map(|needles| Arc::new(All { needles, owners })))
    }

    /// Whether there is nothing to search for.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whose placeholder is in a text, also under percent-escapes and escapes of JSON.
    #[must_use]
    pub fn find(&self, text: &[u8]) -> Option<Misdirected> {
        let all = self.0.as_ref()?;
        // Escapes make a text longer, never shorter.
        if all.needles.exceed(text) {
            return None;
        }
        if memchr2(b'%', b'\\', text).is_some() {
            return Layers::new(Arc::clone(all)).push(text);
        }
        all.owner(all.needles.find(text))
    }

    /// How much of two texts that follow each other has to be looked at together, to find what is cut between them.
    #[must_use]
    pub fn reach(&self) -> usize {
        // An escape of JSON has six bytes.
        self.0.as_ref().map_or(0, |all| all.needles.longest() * 6)
    }

    /// Looks through all that goes before a body.
    ///
    /// # Errors
    /// The denial.
    pub fn check_head(&self, host: &str, path: &str, query: Option<&str>, headers: &HeaderMap) -> Result<(), Denial> {
        if self.is_empty() {
            return Ok(());
        }
        let denied = |text: &[u8], place: &dyn Fn() -> String| match self.find(text) {
            Some(found) => Err(found.denial(&place())),
            None => Ok(()),
        };
        denied(host.as_bytes(), &|| "the host".into())?;
        denied(path.as_bytes(), &|| "the path".into())?;
        denied(query.unwrap_or_default().as_bytes(), &|| "the query".into())?;
        for (name, value) in headers {
            denied(name.as_str().as_bytes(), &|| "a header's name".into())?;
            denied(value.as_bytes(), &|| format!("the header `{name}`"))?;
        }
        Ok(())
    }

    /// Looks through a body that is there as a whole.
    ///
    /// # Errors
    /// The denial: [`MISDIRECTED`], or `body_encoded` for one that cannot be decoded.
    pub fn check_body(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), Denial> {
        if self.is_empty() || body.is_empty() {
            return Ok(());
        }
        let codings = Codings::of(headers).map_err(|e| unreadable(&e))?;
        let found = if codings.is_empty() {
            self.find(body)
        } else {
            // The coded form is searched too, since the header may lie.
            let decoded = crate::coding::decode(&codings, body, MAX_BODY_BYTES as u64).map_err(|e| unreadable(&e))?;
            self.find(body).or_else(|| self.find(&decoded))
        };
        found.map_or(Ok(()), |found| Err(found.denial("the body")))
    }

    /// A search over all of something that comes in parts and is not encoded; `None` if there is nothing to search for.
    #[must_use]
    pub fn search_all(&self) -> Option<Search> {
        let all = Arc::clone(self.0.as_ref()?);
        Some(Search { layers: Layers::new(all), left: usize::MAX, decoder: None })
    }

    /// A search over the beginning of a streaming body; `None` if there is nothing to search for.
    ///
    /// # Errors
    /// The denial `body_encoded` for a coding that cannot be undone.
    pub fn search(&self, headers: &HeaderMap) -> Result<Option<Search>, Denial> {
        let Some(all) = &self.0 else { return Ok(None) };
        let codings = Codings::of(headers).map_err(|e| unreadable(&e))?;
        let decoder = Some(codings).filter(|codings| !codings.is_empty());
        let decoder = decoder.map(|codings| codings.decoder(MAX_BODY_BYTES as u64)).transpose();
        let decoder = decoder.map_err(|e| unreadable(&e))?;
        Ok(Some(Search { layers: Layers::new(Arc::clone(all)), left: MAX_SEARCHED_BYTES, decoder }))
    }
}

fn unreadable(error: &CodingError) -> Denial {
    Denial::new("body_encoded", format!("the body cannot be searched for placeholders: {error}"))
}

/// A search for placeholders over the chunks of a body.
pub struct Search {
    layers: Layers,
    left: usize,
    decoder: Option<Decoder>,
}

impl Search {
    /// Looks through a chunk; the chunk must not go on if this fails.
    ///
    /// # Errors
    /// The denial: [`MISDIRECTED`], or `body_encoded` for what is not what its header says.
    pub fn check(&mut self, chunk: &[u8]) -> Result<(), Denial> {
        if self.left == 0 {
            return Ok(());
        }
        let decoded;
        let text = match &mut self.decoder {
            None => chunk,
            Some(decoder) => {
                let mut out = Vec::new();
                for piece in chunk.chunks(1024) {
                    out.extend(decoder.push(piece).map_err(|e| unreadable(&e))?);
                    if out.len() >= self.left {
                        break;
                    }
                }
                decoded = out;
                &decoded
            }
        };
        let text = text.get(..self.left.min(text.len())).unwrap_or_default();
        self.left -= text.len();
        if self.left == 0 {
            self.decoder = None;
        }
        self.layers.push(text).map_or(Ok(()), |found| Err(found.denial("the body")))
    }
}

/// A text as it is, and without its escapes.
struct Layers {
    all: Arc<All>,
    plain: Position,
    percent: Unescaped,
    json: Unescaped,
}

/// A text without one kind of escape, as far as it was seen.
struct Unescaped {
    mark: u8,
    /// Where its search stands; `None` as long as the text without escapes is the text.
    position: Option<Position>,
    /// An escape that is not complete yet.
    pending: Vec<u8>,
}

impl Layers {
    fn new(all: Arc<All>) -> Self {
        let plain = all.needles.start();
        let layer = |mark| Unescaped { mark, position: None, pending: Vec::new() };
        Self { all, plain, percent: layer(b'%'), json: layer(b'\\') }
    }

    fn push(&mut self, chunk: &[u8]) -> Option<Misdirected> {
        let before = self.plain;
        let mut hit = self.all.needles.next(&mut self.plain, chunk, 0);
        for layer in [&mut self.percent, &mut self.json] {
            if hit.is_some() {
                break;
            }
            if layer.position.is_none() && memchr(layer.mark, chunk).is_none() {
                continue;
            }
            let mut position = layer.position.unwrap_or(before);
            let text = layer.unescape(chunk);
            hit = self.all.needles.next(&mut position, &text, 0);
            // Once both searches stand at the same place again there is nothing to do until the next escape.
            layer.position = (!layer.pending.is_empty() || position != self.plain).then_some(position);
        }
        self.all.owner(hit)
    }
}

impl Unescaped {
    fn unescape(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.pending);
        text.extend_from_slice(chunk);
        let mut out = Vec::with_capacity(text.len());
        let mut rest = text.as_slice();
        while let Some(at) = memchr(self.mark, rest) {
            let (plain, escape) = rest.split_at(at);
            out.extend_from_slice(plain);
            let (byte, length) = if self.mark == b'%' { percent_escape(escape) } else { json_escape(escape) };
            if length > escape.len() {
                self.pending = escape.to_vec();
                return out;
            }
            out.push(byte);
            rest = escape.get(length..).unwrap_or_default();
        }
        out.extend_from_slice(rest);
        out
    }
}

/// The byte that an escape stands for, and the length of the escape; longer than the text if more of it is needed.
fn percent_escape(text: &[u8]) -> (u8, usize) {
    match text {
        [_, high, low, ..] => match (hex(*high), hex(*low)) {
            (Some(high), Some(low)) => (high << 4 | low, 3),
            _ => (b'%', 1),
        },
        _ => (0, 3),
    }
}

fn json_escape(text: &[u8]) -> (u8, usize) {
    match text {
        [_] => (0, 2),
        [_, b'u', digits @ ..] => match digits {
            [a, b, c, d, ..] => match (hex(*a), hex(*b), hex(*c), hex(*d)) {
                (Some(0), Some(0), Some(high), Some(low)) => (high << 4 | low, 6),
                // Beyond Latin-1: no placeholder holds such a character.
                (Some(_), Some(_), Some(_), Some(_)) => (0xff, 6),
                _ => (b'u', 2),
            },
            _ => (0, 6),
        },
        [_, other, ..] => (*other, 2),
        [] => (0, 1),
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use http::header::CONTENT_ENCODING;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use ringfence_model::SecretText;
    use ringfence_model::manifest::Place;

    use super::*;

    const PLACEHOLDER: &str = "sk-Qm3vT8yL0pZ4wN7c";

    fn placeholders() -> Placeholders {
        let lease = CredentialLease {
            place: Place::Query { name: "key".into() },
            placeholder: PLACEHOLDER.into(),
            secret: SecretText::new("s".into()),
        };
        Placeholders::new(&BTreeMap::from([("key".to_owned(), lease)]))
    }

    fn written() -> Vec<String> {
        let all_percent: String = PLACEHOLDER.bytes().map(|b| format!("%{b:02x}")).collect();
        let all_json: String = PLACEHOLDER.bytes().map(|b| format!("\\u{b:04X}")).collect();
        let hex: String = PLACEHOLDER.bytes().map(|b| format!("{b:02X}")).collect();
        let mut all = vec![
            PLACEHOLDER.to_owned(),
            all_percent,
            all_json,
            hex,
            PLACEHOLDER.replace('Q', "%51"),
            format!("\\n\\\"{}", PLACEHOLDER.replace('v', "\\u0076")),
        ];
        all.extend(["", "u:", "us:", "user:"].map(|user| STANDARD.encode(format!("{user}{PLACEHOLDER}!"))));
        all
    }

    #[test]
    fn a_placeholder_is_found_however_it_is_written_and_cut() {
        let placeholders = placeholders();
        for text in written() {
            let text = format!("{{\"a\": \"{text}\"}}");
            assert_eq!(placeholders.find(text.as_bytes()).unwrap().credential, "key", "{text}");
            for at in 0..text.len() {
                let mut search = placeholders.search(&HeaderMap::new()).unwrap().unwrap();
                let (one, two) = text.as_bytes().split_at(at);
                let denied = search.check(one).and_then(|()| search.check(two)).unwrap_err();
                assert_eq!(denied.code, MISDIRECTED, "{text} cut at {at}");
            }
        }
        assert!(placeholders.find(b"sk-Qm3vT8yL0pZ4wN7 %zz \\u12 100% \\").is_none());
    }

    #[test]
    fn a_coded_body_is_searched_decoded() {
        use std::io::Write as _;
        let placeholders = placeholders();
        let body = format!("{}{PLACEHOLDER}", "x".repeat(3000));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(body.as_bytes()).unwrap();
        let coded = [
            ("gzip", gzip.finish().unwrap()),
            ("zstd", zstd::encode_all(body.as_bytes(), 3).unwrap()),
            ("br", crate::coding::samples::brotli(body.as_bytes())),
        ];
        for (coding, bytes) in coded {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
            assert_eq!(placeholders.check_body(&headers, &bytes).unwrap_err().code, MISDIRECTED, "{coding}");
            let mut search = placeholders.search(&headers).unwrap().unwrap();
            let cut = bytes.chunks(7).find_map(|chunk| search.check(chunk).err());
            assert_eq!(cut.unwrap().code, MISDIRECTED, "{coding}");
            if coding != "br" {
                assert_eq!(placeholders.check_body(&headers, b"not that at all").unwrap_err().code, "body_encoded");
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        assert_eq!(placeholders.check_body(&headers, b"x").unwrap_err().code, "body_encoded");
        assert!(placeholders.search(&headers).is_err());
        assert!(Placeholders::default().check_body(&headers, b"x").is_ok(), "nothing to search for");
    }

    #[test]
    fn only_the_beginning_of_a_stream_is_searched() {
        let mut search = placeholders().search(&HeaderMap::new()).unwrap().unwrap();
        assert!(search.check(&vec![b'x'; MAX_SEARCHED_BYTES]).is_ok());
        assert!(search.check(PLACEHOLDER.as_bytes()).is_ok());
        assert!(Placeholders::default().search(&HeaderMap::new()).unwrap().is_none());
    }

    #[test]
    fn heads_are_searched_everywhere() {
        let placeholders = placeholders();
        let plain = |host: &str, path: &str, query: Option<&str>, header: Option<(&str, &str)>| {
            let mut headers = HeaderMap::new();
            if let Some((name, value)) = header {
                headers.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
            placeholders.check_head(host, path, query, &headers).map_err(|denial| denial.code)
        };
        assert_eq!(plain("a.example", "/", None, Some(("x", "y"))), Ok(()));
        let lower = PLACEHOLDER.to_ascii_lowercase();
        assert_eq!(plain(&format!("{lower}.example"), "/", None, None), Err(MISDIRECTED));
        assert_eq!(plain("a.example", &format!("/{PLACEHOLDER}"), None, None), Err(MISDIRECTED));
        assert_eq!(plain("a.example", "/", Some(&format!("k={PLACEHOLDER}")), None), Err(MISDIRECTED));
        let basic = format!("Basic {}", STANDARD.encode(format!("me:{PLACEHOLDER}")));
        assert_eq!(plain("a.example", "/", None, Some(("authorization", &basic))), Err(MISDIRECTED));
        assert_eq!(plain("a.example", "/", None, Some((&format!("x-{lower}"), "y"))), Err(MISDIRECTED));
    }

    proptest! {
        #[test]
        fn any_cut_of_a_search_finds_the_same(
            parts in prop::collection::vec(
                prop::sample::select(&["%", "5", "1", "\\", "u00", "51", "Qm3vT8yL0pZ4wN7c", "sk-", "%51m3vT8yL0pZ4wN7c", "\\u0051m3vT8yL0pZ4wN7c", "x"][..]),
                0..14,
            ),
            cuts in prop::collection::vec(0..120_usize, 0..9),
        ) {
            let text = parts.concat();
            let placeholders = placeholders();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut search = placeholders.search(&HeaderMap::new()).unwrap().unwrap();
            let found = cuts.windows(2).any(|w| search.check(&text.as_bytes()[w[0]..w[1]]).is_err());
            prop_assert_eq!(found, placeholders.find(text.as_bytes()).is_some());
        }
    }
}
