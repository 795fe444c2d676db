//! Hudsucker as a process: its defaults, one thread, and TCP_NODELAY on both sides.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hudsucker::Proxy;
use hudsucker::certificate_authority::RcgenAuthority;
use hudsucker::rcgen::{Issuer, KeyPair};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;

use crate::{Done, pki};

/// Every name is this machine.
#[derive(Clone)]
struct Here;

impl tower_service::Service<Name> for Here {
    type Response = std::iter::Once<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Name) -> Self::Future {
        Box::pin(async { Ok(std::iter::once(SocketAddr::from(([127, 0, 0, 1], 0)))) })
    }
}

/// Serves for ever on `port`.
pub fn main(port: u16, dir: &str) -> Done {
    let read = |name: &str| std::fs::read_to_string(format!("{dir}/{name}"));
    let issuer = Issuer::from_ca_cert_pem(&read("mitm.pem")?, KeyPair::from_pem(&read("mitm.key")?)?)?;
    let ca = RcgenAuthority::new(issuer, 1_000, rustls::crypto::aws_lc_rs::default_provider());
    let mut config = pki::client_config(&format!("{dir}/up-ca.pem"))?;
    // The connector says itself which protocols it speaks.
    config.alpn_protocols.clear();
    let mut tcp = HttpConnector::new_with_resolver(Here);
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async move {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        // What is accepted inherits it.
        socket.set_nodelay(true)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
        let listener = socket.listen(1024)?;
        let proxy = Proxy::builder().with_listener(listener).with_ca(ca).with_http_connector(connector).build()?;
        proxy.start().await?;
        Ok(())
    })
}
