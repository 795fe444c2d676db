//! Prints what the gate adds to a keep-alive HTTPS request: direct and through the gate, at one and at 32 at once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this is test code"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::client::conn::http1::SendRequest;
use ringfence_audit::{Origin, Spool};
use ringfence_gate::Gate;
use ringfence_gate::accept::{self, Capture};
use support::{HOST, TestCa, Upstream, config, get, grant, h1_over, keyed};
use tokio::net::{TcpListener, TcpStream};

type Client = SendRequest<BoxBody<Bytes, Infallible>>;

/// How long each measurement runs.
const RUN: Duration = Duration::from_secs(3);

fn main() {
    // Upstream, gate and client each have a thread of their own, as they have processes of their own in life.
    let ca = TestCa::new();
    println!("{:<34} {:>9} {:>9} {:>11}", "", "p50 µs", "p99 µs", "c=32 req/s");
    for (protocol, alpn) in
        [("HTTP/1.1 upstream", &[&b"http/1.1"[..]][..]), ("HTTP/2 upstream", &[&b"h2"[..], b"http/1.1"])]
    {
        let acceptor = ca.acceptor(HOST, alpn);
        let upstream = on_own_thread(async move { Upstream::start(Some(acceptor)).await });
        let pem = ca.pem.clone();
        let direct = measure(upstream.address, pem.clone());
        report(&format!("direct (client speaks HTTP/1.1), {protocol}"), direct, None);
        for (what, with_key) in [("through the gate", false), ("with a secret and its search", true)] {
            let mut granted = grant(upstream.address, &ca);
            granted.methods = vec!["GET".into()];
            if with_key {
                granted = keyed(granted);
            }
            let dir = tempfile::tempdir().unwrap();
            let file =
                std::fs::File::options().create(true).read(true).append(true).open(dir.path().join("spool")).unwrap();
            let (address, ca_pem) = on_own_thread(async move {
                let origin = Origin { source: "gate:bench".into(), agent: None, sandbox: None };
                let spool = Spool::open(file, origin, 1).unwrap();
                let gate = Gate::open(&config(vec![granted]), std::sync::Arc::new(spool)).unwrap();
                let ca_pem = gate.ca_pem().to_owned();
                let to = (gate.names().assign(&HOST.parse().unwrap()).unwrap(), 443).into();
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let address = listener.local_addr().unwrap();
                tokio::spawn(accept::serve(gate, listener, Capture::Fixed(to)));
                (address, ca_pem)
            });
            let through = measure(address, ca_pem);
            report(&format!("  {what}"), through, Some(direct));
        }
    }
}

/// Runs `make` on a new thread with a runtime of its own, which goes on running.
fn on_own_thread<T: Send + 'static>(make: impl Future<Output = T> + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            send.send(make.await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    receive.recv().unwrap()
}

#[derive(Clone, Copy)]
struct Measured {
    p50: f64,
    p99: f64,
    per_second: f64,
}

fn report(what: &str, measured: Measured, direct: Option<Measured>) {
    let Measured { p50, p99, per_second } = measured;
    let ratio = direct.map_or(String::new(), |d| {
        format!("  p50 +{:.0} µs, {:.0} % of the requests", p50 - d.p50, 100.0 * per_second / d.per_second)
    });
    println!("{what:<34} {p50:>9.0} {p99:>9.0} {per_second:>11.0}{ratio}");
}

fn measure(address: std::net::SocketAddr, ca_pem: String) -> Measured {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = connect(address, &ca_pem).await;
        for _ in 0..200 {
            once(&mut client).await;
        }
        let mut times = Vec::new();
        let started = Instant::now();
        while started.elapsed() < RUN {
            let at = Instant::now();
            once(&mut client).await;
            times.push(at.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        let nth = |share: usize| times[(times.len() - 1) * share / 100];
        let (p50, p99) = (nth(50), nth(99));
        let mut clients = Vec::new();
        for _ in 0..32 {
            clients.push(connect(address, &ca_pem).await);
        }
        let started = Instant::now();
        let counts = futures_util::future::join_all(clients.into_iter().map(|mut client| async move {
            let mut count = 0_u32;
            while started.elapsed() < RUN {
                once(&mut client).await;
                count += 1;
            }
            count
        }))
        .await;
        let per_second = f64::from(counts.iter().sum::<u32>()) / started.elapsed().as_secs_f64();
        Measured { p50, p99, per_second }
    })
}

async fn connect(address: std::net::SocketAddr, ca_pem: &str) -> Client {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let connector = support::connector(ca_pem, &[b"http/1.1"]);
    h1_over(connector.connect(HOST.try_into().unwrap(), stream).await.unwrap()).await
}

async fn once(client: &mut Client) {
    client.ready().await.unwrap();
    let response = client.send_request(get("/fast")).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
}
