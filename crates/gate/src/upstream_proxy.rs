//! A proxy between this host and the Internet, where the operator says that there is one: calls that the policy allowed
//! are dialled through it, by CONNECT. It can fail a call and never allow one; TLS to the upstream is inside, and is held
//! against the upstream's name as ever.
//!
//! # Source
//! RFC 9110 §9.3.6; RFC 7617 for the credentials.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ringfence_model::manifest::{Grant, Scheme};
use ringfence_model::{HostName, SecretText};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::UpstreamProxy;
use crate::stream::ReadAhead;
use crate::token::Aborted;
use crate::{relay, tls};

/// How long the proxy may take over TLS and its answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The largest head of its answer.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// A connection towards an upstream. What came behind the proxy's answer is read first.
pub(crate) type Wire = ReadAhead<Transport>;

/// What a connection towards an upstream is made of.
pub(crate) enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The proxy as it is used.
pub struct Proxy {
    config: UpstreamProxy,
    authorization: Option<HeaderValue>,
    tls: Option<Arc<ClientConfig>>,
}

/// What the proxy is trusted by, where TLS is spoken with it. No agent may call by it.
#[must_use]
pub fn route(config: &UpstreamProxy) -> Option<Grant> {
    let mut route = Grant::to(config.host.to_string().parse().ok()?);
    (route.port, route.scheme) = (config.port, config.scheme);
    route.ca_pem.clone_from(&config.ca_pem);
    Some(route)
}

impl Proxy {
    /// Makes ready. `tls` is for a proxy over TLS.
    ///
    /// # Errors
    /// Why it cannot be used, in words.
    pub fn new(config: &UpstreamProxy, tls: Option<Arc<ClientConfig>>) -> Result<Self, &'static str> {
        if config.scheme == Scheme::Https && tls.is_none() {
            return Err("there are no trust anchors for it");
        }
        let authorization = match (&config.user, &config.password) {
            (None, None) => None,
            (Some(user), _) if user.contains(':') || user.chars().any(char::is_control) => {
                return Err("its user name has a colon or a control character");
            }
            (Some(user), password) => {
                let password = password.as_ref().map_or("", SecretText::reveal);
                let pair = SecretText::new(format!("{user}:{password}"));
                let text = SecretText::new(format!("Basic {}", STANDARD.encode(pair.reveal())));
                let mut value =
                    HeaderValue::from_str(text.reveal()).map_err(|_| "its user cannot stand in a header")?;
                value.set_sensitive(true);
                Some(value)
            }
            (None, Some(_)) => return Err("it has a password and no user"),
        };
        Ok(Self { config: config.clone(), authorization, tls })
    }

    /// Its host.
    #[must_use]
    pub const fn host(&self) -> &HostName {
        &self.config.host
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.config.port
    }

    /// Whether calls to a host go through it.
    #[must_use]
    pub fn is_for(&self, host: &HostName) -> bool {
        !self.config.no_proxy.iter().any(|pattern| pattern.covers(host))
    }

    /// Has the proxy, at the other end of `stream`, connect to an upstream.
    ///
    /// # Errors
    /// What failed, with a stable code before the first colon.
    pub(crate) async fn tunnel(&self, stream: TcpStream, host: &HostName, port: u16) -> Result<Wire, String> {
        match tokio::time::timeout(TIMEOUT, self.ask(stream, host, port)).await {
            Ok(asked) => asked,
            Err(_) => Err("upstream_proxy_timeout: it did not answer".into()),
        }
    }

    async fn ask(&self, stream: TcpStream, host: &HostName, port: u16) -> Result<Wire, String> {
        let stream = match (self.config.scheme, &self.tls) {
            (Scheme::Http, _) => Transport::Tcp(stream),
            (Scheme::Https, Some(config)) => {
                let name = tls::server_name(&self.config.host).ok_or("upstream_proxy_tls: it has no name for TLS")?;
                let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
                Transport::Tls(Box::new(stream.map_err(|e| format!("upstream_proxy_tls: {}", tls::failure(&e)))?))
            }
            (Scheme::Https, None) => return Err("upstream_proxy_tls: there are no trust anchors".into()),
        };
        let broke = |e: &dyn std::error::Error| format!("upstream_proxy_broke: {}", relay::chain(e));
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broke(&e))?;
        let _connection = Aborted(tokio::spawn(connection.with_upgrades()));
        let request = self.request(host, port).map_err(|e| broke(&e))?;
        let response = sender.send_request(request).await.map_err(|e| broke(&e))?;
        match response.status() {
            status if status.is_success() => {}
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                let hint = if self.authorization.is_some() {
                    "it does not know `user` with this password"
                } else {
                    "say `user` and `password_file` in `upstream-proxy.toml`"
                };
                return Err(format!("upstream_proxy_auth: it wants to know who calls (407); {hint}"));
            }
            StatusCode::FORBIDDEN => {
                return Err(format!("upstream_proxy_refused: it does not let calls to {host}:{port} through (403)"));
            }
            status => return Err(format!("upstream_proxy_failed: it answered {}", status.as_u16())),
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|e| broke(&e))?;
        let parts = upgraded
            .downcast::<TokioIo<Transport>>()
            .map_err(|_| "upstream_proxy_broke: its connection is another".to_owned())?;
        Ok(ReadAhead::new(parts.io.into_inner(), parts.read_buf))
    }

    fn request(&self, host: &HostName, port: u16) -> Result<Request<Empty<Bytes>>, http::Error> {
        let target = match host {
            HostName::Address(std::net::IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
            _ => format!("{host}:{port}"),
        };
        let mut request = Request::connect(&target).header(HOST, &target).header(USER_AGENT, "ringfence");
        if let Some(authorization) = &self.authorization {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        request.body(Empty::new())
    }
}

impl From<TcpStream> for Transport {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
