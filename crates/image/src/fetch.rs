//! Fetches over HTTP, bounded in size and time, with a few tries.
//!
//! Proxies are taken from the environment, trust anchors from the host's store.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use ringfence_model::work::Progress;
use rustls::crypto::aws_lc_rs;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

const CONNECT: Duration = Duration::from_secs(15);
const ANSWER: Duration = Duration::from_secs(60);
const BODY: Duration = Duration::from_secs(600);
const TRIES: u32 = 3;

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The caller called it off.
    #[error("the download was called off")]
    Cancelled,
    /// The body could not be written down.
    #[error("cannot write the download")]
    Sink(#[source] io::Error),
    /// The server answers, but not with the thing.
    #[error("the server answers with status {0}")]
    Status(u16),
    /// The body is longer than anything of its kind may be.
    #[error("the answer is longer than {0} bytes")]
    TooLong(u64),
    /// No answer.
    #[error("{0}")]
    Unreachable(String),
}

impl FetchError {
    /// Whether the server said that there is no such thing.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Status(404 | 410))
    }

    const fn may_retry(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Status(408 | 429 | 500..=599))
    }
}

/// TLS under the host's own trust anchors.
#[must_use]
pub fn tls() -> TlsConfig {
    let roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|der| Certificate::from_der(der.as_ref()).to_owned())
        .collect();
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
        .root_certs(RootCerts::new_with_certs(&roots))
        .build()
}

/// A client that keeps its connections.
#[derive(Clone)]
pub struct Fetcher(ureq::Agent);

impl Default for Fetcher {
    fn default() -> Self {
        Self::new()
    }
}

/// A small answer, whole.
#[derive(Debug)]
pub struct Page {
    /// Its media type, lower case, without parameters.
    pub media_type: String,
    /// Its bytes.
    pub body: Vec<u8>,
}

impl Fetcher {
    /// Makes a client with the host's trust anchors and proxies.
    #[must_use]
    pub fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .tls_config(tls())
            .user_agent(concat!("ringfence/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(true)
            .max_redirects(5)
            .timeout_connect(Some(CONNECT))
            .timeout_resolve(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER))
            .timeout_recv_body(Some(BODY))
            .build();
        Self(config.new_agent())
    }

    /// Fetches at most `limit` bytes into memory.
    ///
    /// # Errors
    /// [`FetchError`] of the last try.
    pub fn page(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        limit: u64,
        progress: &dyn Progress,
    ) -> Result<Page, FetchError> {
        retrying(progress, || {
            let mut body = Vec::new();
            let media_type = self.once(url, headers, limit, &mut body, progress, &mut |_| ())?;
            Ok(Page { media_type, body })
        })
    }

    /// Streams at most `limit` bytes into a sink that `open` makes anew for each try, and gives back the last sink.
    ///
    /// # Errors
    /// [`FetchError`] of the last try.
    pub fn stream<W: Write>(
        &self,
        url: &str,
        limit: u64,
        progress: &dyn Progress,
        open: &mut dyn FnMut() -> io::Result<W>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<W, FetchError> {
        retrying(progress, || {
            let mut sink = open().map_err(FetchError::Sink)?;
            self.once(url, &[], limit, &mut sink, progress, tell)?;
            Ok(sink)
        })
    }

    fn once(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        limit: u64,
        sink: &mut dyn Write,
        progress: &dyn Progress,
        tell: &mut dyn FnMut(u64),
    ) -> Result<String, FetchError> {
        let mut request = self.0.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = request.call().map_err(understand)?;
        let media_type = response.body().mime_type().unwrap_or_default().to_ascii_lowercase();
        let promised = response.body().content_length();
        // WHY one byte more than the limit: a body of just that length is fine, a longer one must be noticed.
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0u8; 64 << 10];
        let mut done = 0u64;
        loop {
            if progress.is_cancelled() {
                return Err(FetchError::Cancelled);
            }
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(FetchError::Unreachable(format!("the answer broke off: {e}"))),
            };
            done = done.saturating_add(n as u64);
            if done > limit {
                return Err(FetchError::TooLong(limit));
            }
            sink.write_all(buffer.get(..n).unwrap_or_default()).map_err(FetchError::Sink)?;
            tell(n as u64);
        }
        match promised {
            Some(promised) if promised != done => {
                Err(FetchError::Unreachable(format!("the answer broke off after {done} of {promised} bytes")))
            }
            _ => Ok(media_type),
        }
    }
}

fn retrying<T>(progress: &dyn Progress, mut attempt: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt() {
            Err(error) if error.may_retry() && tries < TRIES => {
                for _ in 0..tries * 4 {
                    if progress.is_cancelled() {
                        return Err(FetchError::Cancelled);
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
            done => return done,
        }
    }
}

fn understand(error: ureq::Error) -> FetchError {
    match error {
        ureq::Error::StatusCode(code) => FetchError::Status(code),
        ureq::Error::HostNotFound => FetchError::Unreachable("the host name has no address".into()),
        ureq::Error::Io(e) => FetchError::Unreachable(e.to_string()),
        other => FetchError::Unreachable(other.to_string()),
    }
}

/// Takes user and password out of a URL, for messages.
#[must_use]
pub fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    use ringfence_model::work::Silent;

    use super::*;

    /// Answers each connection with the next of `answers`, then stops.
    fn server(answers: Vec<&'static str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        format!("http://{address}/x")
    }

    #[test]
    fn tries_again_after_a_failure_of_the_server() {
        let url = server(vec![
            "HTTP/1.1 503 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200 ok\r\ncontent-length: 2\r\ncontent-type: Text/Plain; a=b\r\nconnection: close\r\n\r\nhi",
        ]);
        let page = Fetcher::new().page(&url, &[], 10, &Silent).unwrap();
        assert_eq!((page.media_type.as_str(), page.body.as_slice()), ("text/plain", b"hi".as_slice()));
    }

    #[test]
    fn stops_at_the_limit_and_at_absence() {
        let long = "HTTP/1.1 200 ok\r\ncontent-length: 20\r\nconnection: close\r\n\r\n12345678901234567890";
        let absent = "HTTP/1.1 404 no\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        assert!(matches!(Fetcher::new().page(&server(vec![long]), &[], 10, &Silent), Err(FetchError::TooLong(10))));
        assert!(Fetcher::new().page(&server(vec![absent]), &[], 10, &Silent).unwrap_err().is_absent());
    }

    #[test]
    fn a_cut_answer_is_no_answer() {
        let cut = "HTTP/1.1 200 ok\r\ncontent-length: 20\r\nconnection: close\r\n\r\n123";
        let error = Fetcher::new().page(&server(vec![cut, cut, cut]), &[], 100, &Silent).unwrap_err();
        assert!(matches!(error, FetchError::Unreachable(_)), "{error:?}");
    }

    #[test]
    fn urls_are_shown_without_passwords() {
        assert_eq!(redact("https://u:p@h.example/a@b"), "https://h.example/a@b");
        assert_eq!(redact("http://h.example"), "http://h.example");
    }
}
