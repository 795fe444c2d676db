//! Phase two: what a connection speaks and where it means to go. Pure functions over bytes; hostile ones.

use http::header::HOST;
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Version};
use ringfence_model::HostName;
use ringfence_model::manifest::{Scheme, TlsMode};
use ringfence_policy::Denial;

use crate::{Barriers, framing};

/// The longest ClientHello that is read, in bytes of TLS records.
pub const MAX_HELLO_BYTES: usize = 16 * 1024;

/// How an HTTP/2 client that knows what it speaks to begins.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speech {
    /// An HTTP/1 request.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// Too few bytes to say.
    More,
    /// A TLS ClientHello.
    Tls(ClientHello),
    /// Nothing that is known here, and why.
    Unknown(&'static str),
}

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name, where one is given.
    pub server_name: Option<String>,
    /// Protocols offered.
    pub alpn: Vec<Vec<u8>>,
    /// Whether it carries an encrypted ClientHello; the outer name is the one that counts.
    pub encrypted: bool,
}

/// Says what the first bytes of a connection are.
#[must_use]
pub fn speech(bytes: &[u8]) -> Speech {
    match bytes {
        [] => Speech::More,
        [0x16, ..] => client_hello(bytes),
        _ if H2_PREFACE.starts_with(bytes) && bytes.len() < H2_PREFACE.len() => Speech::More,
        _ if bytes.starts_with(H2_PREFACE) => Speech::Http2,
        _ => request_line(bytes),
    }
}

/// An HTTP/1 request begins with a method in capitals and a space.
fn request_line(bytes: &[u8]) -> Speech {
    const LONGEST: usize = 24;
    match bytes.iter().take(LONGEST).position(|b| !b.is_ascii_uppercase() && *b != b'-' && *b != b'_') {
        Some(at) if at > 0 && bytes.get(at) == Some(&b' ') => Speech::Http1,
        None if bytes.len() < LONGEST => Speech::More,
        _ => Speech::Unknown("it begins with neither TLS nor HTTP"),
    }
}

/// Parses the ClientHello at the beginning of a connection, however it is cut into records.
///
/// # Source
/// RFC 8446 §4.1.2 and §5.1; RFC 6066 §3 for the name; RFC 7301 for ALPN; RFC 9849 for ECH.
#[must_use]
pub fn client_hello(bytes: &[u8]) -> Speech {
    let mut handshake = Vec::new();
    let mut rest = Reader(bytes);
    loop {
        if let Some(length) = handshake.get(1..4).and_then(|l| <[u8; 3]>::try_from(l).ok()) {
            let [a, b, c] = length.map(usize::from);
            let length = a << 16 | b << 8 | c;
            if handshake.first() != Some(&1) {
                return Speech::Unknown("the first TLS message is not a ClientHello");
            }
            if length > MAX_HELLO_BYTES {
                return Speech::Unknown("the ClientHello is too large");
            }
            if let Some(body) = handshake.get(4..4 + length) {
                return match hello_body(body) {
                    Some(hello) => Speech::Tls(hello),
                    None => Speech::Unknown("the ClientHello is malformed"),
                };
            }
        }
        let header = match rest.take(5) {
            Some([0x16, 3, _, high, low]) => usize::from(*high) << 8 | usize::from(*low),
            Some(_) => return Speech::Unknown("the TLS record is malformed"),
            None if bytes.len() >= MAX_HELLO_BYTES => return Speech::Unknown("the ClientHello is too large"),
            None => return Speech::More,
        };
        if header == 0 || header > MAX_HELLO_BYTES {
            return Speech::Unknown("the TLS record is malformed");
        }
        // A record that is not whole yet may already hold a whole ClientHello, but never less than its end.
        let Some(fragment) = rest.take(header) else {
            if bytes.len() >= MAX_HELLO_BYTES {
                return Speech::Unknown("the ClientHello is too large");
            }
            return Speech::More;
        };
        handshake.extend_from_slice(fragment);
    }
}

fn hello_body(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    body.take(2 + 32)?;
    body.short_vector()?;
    body.long_vector()?;
    body.short_vector()?;
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(body.long_vector()?);
    let (mut names, mut protocols) = (0, 0);
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let mut data = Reader(extensions.long_vector()?);
        match kind {
            0 => {
                names += 1;
                hello.server_name = server_name(&mut data)?;
            }
            16 => {
                protocols += 1;
                let mut list = Reader(data.long_vector()?);
                while !list.0.is_empty() {
                    hello.alpn.push(list.short_vector()?.to_vec());
                }
            }
            0xfe0d => hello.encrypted = true,
            _ => {}
        }
    }
    // Twice the same extension is an error, and a chance for two parsers to disagree.
    (names <= 1 && protocols <= 1 && body.0.is_empty()).then_some(hello)
}

fn server_name(data: &mut Reader<'_>) -> Option<Option<String>> {
    let mut list = Reader(data.long_vector()?);
    let mut found = None;
    while !list.0.is_empty() {
        let kind = list.byte()?;
        let name = list.long_vector()?;
        if kind != 0 || found.is_some() {
            return None;
        }
        found = Some(String::from_utf8(name.to_vec()).ok()?);
    }
    Some(found)
}

/// Reads from the front of a slice, and never past its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn short_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(usize::from(length))
    }

    fn long_vector(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }
}

/// Where DNS over TLS is spoken, and the protocol by which it names itself anywhere.
///
/// # Source
/// RFC 7858 §3.1, §9.2.
const DOT_PORT: u16 = 853;
const DOT_ALPN: &[u8] = b"dot";

/// The denial of a connection to a port, under the name of what it would have been.
#[must_use]
pub fn renamed(denial: Denial, port: u16) -> Denial {
    if port == DOT_PORT && denial.code == "no_grant" {
        return Denial::new("dns_over_tls", format!("names are asked of the gate; {}", denial.why));
    }
    denial
}

/// What becomes of a TLS connection that a grant allows, by what its ClientHello says beside the name.
///
/// # Errors
/// A denial: `dns_over_tls` or `ech_refused`.
pub fn hello(hello: &ClientHello, mode: TlsMode, port: u16, barriers: Barriers) -> Result<TlsMode, Denial> {
    if barriers.encrypted_dns && port != DOT_PORT && hello.alpn.iter().any(|protocol| protocol == DOT_ALPN) {
        return Err(Denial::new("dns_over_tls", "TLS offers DNS inside, on a port that is granted for something else"));
    }
    // Where TLS is opened the outer name counts, and the gate has no key for an inner one. Where it stays closed an
    // inner name would be for the upstream alone to see.
    if barriers.encrypted_hello && mode == TlsMode::Passthrough && hello.encrypted {
        return Err(Denial::new(
            "ech_refused",
            "the ClientHello may hide another server name, and is relayed unopened",
        ));
    }
    Ok(mode)
}

/// Holds an HTTP request against the host and port that its connection was made for.
///
/// # Errors
/// A denial: `proxy_form`, `host_mismatch` or `framing_ambiguous`.
pub fn request(parts: &Parts, host: &HostName, port: u16, scheme: Scheme) -> Result<(), Denial> {
    let h2 = parts.version == Version::HTTP_2;
    if parts.method == Method::CONNECT {
        return Err(Denial::new("proxy_form", "CONNECT asks for a proxy, and there is none"));
    }
    if !h2 && parts.uri.authority().is_some() {
        return Err(Denial::new("proxy_form", "the request names a whole URL, as to a proxy"));
    }
    if parts.uri.scheme_str().is_some_and(|said| said != scheme.word()) {
        return Err(Denial::new("host_mismatch", "the request's scheme is not that of its connection"));
    }
    let mut named = parts.headers.get_all(HOST).iter();
    let header = named.next().map(|value| value.to_str().unwrap_or_default());
    if named.next().is_some() {
        return Err(Denial::new("host_mismatch", "the request names its host twice"));
    }
    let texts = [parts.uri.authority().map(Authority::as_str), header];
    if texts.iter().all(Option::is_none) {
        return Err(Denial::new("host_mismatch", "the request names no host"));
    }
    for text in texts.into_iter().flatten() {
        if !names(text, host, port) {
            let said: String = text.chars().take(120).collect();
            return Err(Denial::new(
                "host_mismatch",
                format!("the request names `{said}`, but its connection was made for {host}:{port}"),
            ));
        }
    }
    framing::check(&parts.headers)
        .map_err(|why| Denial::new("framing_ambiguous", format!("where the request ends is unclear: {why}")))
}

/// Whether `text`, as in a Host header, names this host and port.
pub(crate) fn names(text: &str, host: &HostName, port: u16) -> bool {
    // As nearly every client writes it; a name in its one form reads in no other way.
    if host.name() == Some(text) {
        return true;
    }
    let Ok(authority) = text.parse::<Authority>() else { return false };
    if text.contains('@') || authority.port().is_some() && authority.port_u16() != Some(port) {
        return false;
    }
    authority.host().parse::<HostName>().is_ok_and(|named| named == *host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A ClientHello as a real client makes it.
    pub(crate) fn hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
        let roots = rustls::RootCertStore::empty();
        let mut config = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        let name = name.to_owned().try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// Cuts the one record of a ClientHello into records of `size` bytes.
    fn fragment(bytes: &[u8], size: usize) -> Vec<u8> {
        bytes[5..]
            .chunks(size)
            .flat_map(|chunk| {
                let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
                [&[0x16, 3, 1], &length[..], chunk].concat()
            })
            .collect()
    }

    #[test]
    fn a_real_hello_is_understood_however_it_is_cut() {
        let bytes = hello("api.example.org", &[b"h2", b"http/1.1"]);
        let want = Speech::Tls(ClientHello {
            server_name: Some("api.example.org".into()),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            encrypted: false,
        });
        assert_eq!(speech(&bytes), want);
        for cut in 0..bytes.len() {
            assert_eq!(speech(&bytes[..cut]), Speech::More, "{cut}");
        }
        for size in [1, 3, 50] {
            assert_eq!(speech(&fragment(&bytes, size)), want);
        }
        let Speech::Tls(bare) = speech(&hello("192.0.2.1", &[])) else { panic!() };
        assert_eq!(bare.server_name, None);
    }

    #[test]
    fn speech_is_told_by_its_first_bytes() {
        for (bytes, want) in [
            (&b""[..], Speech::More),
            (b"GET / HTTP/1.1\r\n", Speech::Http1),
            (b"G", Speech::More),
            (b"M-SEARCH * HTTP/1.1", Speech::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0", Speech::Http2),
            (b"PRI * HTTP/2.0\r\n", Speech::More),
            (b"PRI ", Speech::More),
        ] {
            assert_eq!(speech(bytes), want, "{bytes:?}");
        }
        for bytes in [
            &b"SSH-2.0-OpenSSH\r\n"[..],
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b" GET /",
            b"get / HTTP/1.1",
            b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x02\x01\x00\x05",
            b"\x16\x03\x01\x00\x04\x02\0\0\0",
        ] {
            assert!(matches!(speech(bytes), Speech::Unknown(_)), "{bytes:?}");
        }
    }

    #[test]
    fn two_names_in_one_hello_are_refused() {
        let bytes = hello("api.example.org", &[]);
        let at = bytes.windows(2).rposition(|w| w == b"\0\0").unwrap();
        assert!(at > 0);
        let mut list = vec![0, 4, b'a', b'.', b'd', b'e'];
        list.insert(0, 0);
        let one = [&[0_u8][..], &[0, 4], b"a.de"].concat();
        let two = [one.clone(), one].concat();
        let mut data = Vec::new();
        data.extend(u16::try_from(two.len()).unwrap().to_be_bytes());
        data.extend(two);
        assert_eq!(server_name(&mut Reader(&data)), None);
    }

    #[test]
    fn a_request_must_name_what_it_was_dialled_for() {
        let host: HostName = "api.example.org".parse().unwrap();
        let code = |uri: &str, hosts: &[&str], method: &str, version: Version| {
            let mut request = http::Request::builder().method(method).uri(uri).version(version);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            super::request(&parts, &host, 443, Scheme::Https).map_or_else(|d| d.code, |()| "ok")
        };
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        for (uri, hosts, method, version, want) in [
            ("/", &["api.example.org"][..], "GET", one, "ok"),
            ("/", &["API.example.org:443"], "GET", one, "ok"),
            ("https://api.example.org/", &[], "GET", two, "ok"),
            ("https://api.example.org/", &["api.example.org"], "GET", two, "ok"),
            ("https://api.example.org/", &["evil.example"], "GET", two, "host_mismatch"),
            ("http://api.example.org/", &[], "GET", two, "host_mismatch"),
            ("https://evil.example/", &[], "GET", two, "host_mismatch"),
            ("/", &["evil.example"], "GET", one, "host_mismatch"),
            ("/", &["api.example.org:8443"], "GET", one, "host_mismatch"),
            ("/", &["x@api.example.org"], "GET", one, "host_mismatch"),
            ("/", &["api.example.org", "evil.example"], "GET", one, "host_mismatch"),
            ("/", &["api.example.org", "api.example.org"], "GET", one, "host_mismatch"),
            ("/", &[""], "GET", one, "host_mismatch"),
            ("/", &[], "GET", one, "host_mismatch"),
            ("https://api.example.org/", &["api.example.org"], "GET", one, "proxy_form"),
            ("api.example.org:443", &["api.example.org"], "CONNECT", one, "proxy_form"),
        ] {
            assert_eq!(code(uri, hosts, method, version), want, "{method} {uri} {hosts:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = speech(&bytes);
            let _ = client_hello(&[&[0x16, 3, 1][..], &bytes].concat());
        }

        #[test]
        fn a_damaged_hello_makes_it_neither_panic_nor_wait_for_ever(at in 0..2000_usize, to in any::<u8>(), size in 1..80_usize) {
            let mut bytes = hello("api.example.org", &[b"h2"]);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = speech(&bytes);
            let _ = speech(&fragment(&bytes, size));
            bytes.resize(MAX_HELLO_BYTES + 64, 0);
            prop_assert_ne!(speech(&bytes), Speech::More);
        }
    }
}
