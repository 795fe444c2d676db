//! Which addresses may be dialled: the check and the dial are of the same address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use ringfence_audit::{Event, Outcome};
use ringfence_model::HostName;
use ringfence_model::manifest::Grant;
use ringfence_policy::Denial;
use tokio::net::TcpStream;

use crate::record::Recorder;
use crate::room::{Placed, Room};
use crate::stream::ReadAhead;
use crate::upstream_proxy::{Proxy, Wire};

/// How long all attempts to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// When the next address is tried beside those under way.
///
/// # Source
/// RFC 8305 §5.
const STAGGER: Duration = Duration::from_millis(250);

/// Addresses that are tried at most.
const MAX_ADDRESSES: usize = 8;

/// How long a lookup may take whose answer is only checked, since a proxy dials.
const CHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// After how long the lookup of a name is recorded again, and how many names are remembered.
const RECORDED_AGAIN: Duration = Duration::from_secs(300);
const MAX_RECORDED: usize = 1024;

/// Finds and dials addresses in the host's namespace.
pub struct Dialler {
    resolver: TokioResolver,
    /// Names whose lookup is in the log, and since when.
    recorded: Mutex<HashMap<String, Instant>>,
    /// Whether addresses are checked at all; only tests say no.
    guarded: bool,
    /// Whom calls go through, where the operator says so.
    proxy: Option<Proxy>,
    room: Room,
}

/// Where a connection goes: addresses that were checked, to be dialled as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    addresses: Vec<SocketAddr>,
    /// What a proxy at these addresses is asked for; `None`: they are the upstream's own.
    asking_for: Option<(HostName, u16)>,
}

/// Why there is no address to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// The name's addresses must not be dialled.
    Denied(Denial),
    /// The name has none.
    Failed(String),
}

impl Dialler {
    /// Reads the host's resolver configuration and hosts file, once; the files may be out of reach later.
    ///
    /// # Errors
    /// What the resolver library says, in words.
    pub fn system() -> Result<Self, String> {
        let (config, options) = hickory_resolver::system_conf::read_system_conf().unwrap_or_else(|error| {
            tracing::warn!(%error, "no resolver configuration; only the hosts file is asked");
            (ResolverConfig::default(), ResolverOpts::default())
        });
        Self::asking(config, options)
    }

    /// Asks one server about names, instead of those of the host. For tests, which say what a name resolves to, and when to
    /// what else.
    ///
    /// # Errors
    /// What the resolver library says, in words.
    pub fn danger_asking(server: SocketAddr) -> Result<Self, String> {
        let mut udp = ConnectionConfig::udp();
        udp.port = server.port();
        let server = NameServerConfig::new(server.ip(), true, vec![udp]);
        let mut options = ResolverOpts::default();
        // Every lookup is a new one.
        options.positive_max_ttl = Some(Duration::ZERO);
        options.negative_max_ttl = Some(Duration::ZERO);
        Self::asking(ResolverConfig::from_parts(None, vec![], vec![server]), options)
    }

    /// The same, through a proxy or not; unguarded only in tests.
    #[must_use]
    pub fn going(&self, proxy: Option<Proxy>, guarded: bool) -> Self {
        Self { resolver: self.resolver.clone(), recorded: Mutex::default(), guarded, proxy, room: Room::default() }
    }

    fn asking(config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, String> {
        options.cache_size = 64;
        options.use_hosts_file = ResolveHosts::Always;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { resolver, recorded: Mutex::default(), guarded: true, proxy: None, room: Room::default() })
    }

    /// The addresses that a call may go to, each checked.
    ///
    /// # Errors
    /// [`NoAddress`].
    pub async fn addresses(
        &self,
        grant: &Grant,
        host: &HostName,
        port: u16,
        recorder: &Recorder,
    ) -> Result<Route, NoAddress> {
        if let Some(address) = grant.connect_to {
            // What the operator wrote is private as often as not; but nobody means a metadata service.
            return self.checked(vec![address.ip()], address.port(), true, host).map(Route::to);
        }
        if let Some(proxy) = self.proxy.as_ref().filter(|proxy| !grant.allow_private && proxy.is_for(host)) {
            return self.through(proxy, host, port, recorder).await;
        }
        let found: Vec<IpAddr> = match host {
            HostName::Address(address) => vec![*address],
            HostName::Name(name) => {
                self.refuse_metadata(name)?;
                self.record(name, recorder)?;
                self.look_up(name).await.map_err(|e| NoAddress::Failed(format!("dns_failed: {e}")))?
            }
        };
        self.checked(found, port, grant.allow_private, host).map(Route::to)
    }

    /// The way through a proxy. The policy has decided; the proxy can only fail the call.
    async fn through(
        &self,
        proxy: &Proxy,
        host: &HostName,
        port: u16,
        recorder: &Recorder,
    ) -> Result<Route, NoAddress> {
        let found = match host {
            HostName::Address(address) => vec![*address],
            HostName::Name(name) => {
                self.refuse_metadata(name)?;
                self.record(name, recorder)?;
                // Behind a proxy there may be no resolver that knows the Internet; then there is nothing to check.
                match tokio::time::timeout(CHECK_TIMEOUT, self.look_up(name)).await {
                    Ok(Ok(found)) => found,
                    Ok(Err(_)) | Err(_) => Vec::new(),
                }
            }
        };
        // The proxy picks one of them, so each must be one that may be dialled.
        for address in found.into_iter().filter(|_| self.guarded) {
            self.checked(vec![address], port, false, host)?;
        }
        let unreachable = |why: String| NoAddress::Failed(format!("upstream_proxy_unreachable: {why}"));
        let found = match proxy.host() {
            HostName::Address(address) => vec![*address],
            HostName::Name(name) => self.look_up(name).await.map_err(|e| unreachable(e.to_string()))?,
        };
        let addresses = match self.checked(found, proxy.port(), true, proxy.host()) {
            Ok(addresses) => addresses,
            Err(NoAddress::Denied(denial)) => return Err(unreachable(denial.why)),
            Err(NoAddress::Failed(why)) => return Err(unreachable(why)),
        };
        Ok(Route { addresses, asking_for: Some((host.clone(), port)) })
    }

    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, hickory_resolver::net::NetError> {
        // With its final dot, so that no search list is tried.
        Ok(self.resolver.lookup_ip(format!("{name}.")).await?.iter().collect())
    }

    fn checked(
        &self,
        found: Vec<IpAddr>,
        port: u16,
        allow_private: bool,
        host: &HostName,
    ) -> Result<Vec<SocketAddr>, NoAddress> {
        if !self.guarded {
            return Ok(found.into_iter().take(MAX_ADDRESSES).map(|address| SocketAddr::new(address, port)).collect());
        }
        checked(found, port, allow_private, host)
    }

    /// Metadata services have names too. Where a proxy resolves them, the address is never seen.
    fn refuse_metadata(&self, name: &str) -> Result<(), NoAddress> {
        if !self.guarded || !METADATA_NAMES.contains(&name) {
            return Ok(());
        }
        Err(NoAddress::Denied(Denial::new("private_address", format!("{name} is a metadata service"))))
    }

    /// Records that a name is looked up, once in a while: under a wildcard a name can carry data, and a lookup
    /// leaves the host.
    fn record(&self, name: &str, recorder: &Recorder) -> Result<(), NoAddress> {
        let mut recorded = self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded.get(name).is_some_and(|at| at.elapsed() < RECORDED_AGAIN) {
            return Ok(());
        }
        let looked_up = Event::DnsQuery {
            name: name.to_owned(),
            rtype: "A AAAA".into(),
            decision: Outcome::Allow,
            reason: "dial".into(),
        };
        recorder
            .event(looked_up)
            .map_err(|e| NoAddress::Denied(Denial::new("unrecorded", format!("the lookup cannot be recorded: {e}"))))?;
        if recorded.len() >= MAX_RECORDED {
            recorded.clear();
        }
        recorded.insert(name.to_owned(), Instant::now());
        Ok(())
    }

    /// Connects to the first address that answers, and gives what the log says of it.
    ///
    /// # Errors
    /// The last attempt's error, in words.
    pub(crate) async fn connect(&self, route: &Route) -> Result<(Placed<Wire>, Arc<str>), String> {
        let first = route.addresses.first().ok_or("connect_failed: there is no address")?;
        let place = self.room.place(*first).await?;
        let (wire, address) = self.wire(route).await?;
        Ok((Placed::new(wire, place), address))
    }

    /// Says how connections are ended that nobody uses, when there is room for no other.
    pub(crate) fn room_made_by(&self, make: impl Fn() + Send + 'static) {
        self.room.made_by(make);
    }

    async fn wire(&self, route: &Route) -> Result<(Wire, Arc<str>), String> {
        let code = if route.asking_for.is_some() { "upstream_proxy_unreachable" } else { "connect_failed" };
        let (stream, address) = match tokio::time::timeout(CONNECT_TIMEOUT, race(&route.addresses)).await {
            Ok(done) => done.map_err(|e| format!("{code}: {e}"))?,
            Err(_) => return Err(format!("{code}: timed out")),
        };
        match (&route.asking_for, &self.proxy) {
            (None, _) => Ok((ReadAhead::new(stream.into(), Bytes::new()), address.to_string().into())),
            (Some((host, port)), Some(proxy)) => {
                let wire = proxy.tunnel(stream, host, *port).await?;
                Ok((wire, format!("proxy {address}").into()))
            }
            (Some(_), None) => Err("upstream_proxy_unreachable: there is no proxy any more".into()),
        }
    }
}

impl Route {
    const fn to(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, asking_for: None }
    }

    /// The same way once more, to the one address that [`Dialler::connect`] said it dialled.
    pub(crate) fn again(&self, dialled: &str) -> Self {
        let dialled = dialled.strip_prefix("proxy ").unwrap_or(dialled);
        let mut again = self.clone();
        again.addresses.retain(|address| address.to_string() == dialled);
        again
    }
}

/// Names of metadata services.
///
/// # Source
/// The documentation of Google Cloud, AWS, Azure, Tencent Cloud, Alibaba Cloud, Oracle Cloud and Equinix Metal.
const METADATA_NAMES: [&str; 10] = [
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.oraclecloud.com",
    "metadata.packet.net",
    "metadata.platformequinix.com",
    "metadata.tencentyun.com",
];

/// Whether an address is one of this host's. The kernel is asked which address it would speak from: towards itself it is
/// the same. No packet leaves.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = std::net::UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    // No way there: nothing to dial either.
    from.is_ok_and(|from| from.ip() == address)
}

/// Keeps the addresses that may be dialled; denies if none is left.
fn checked(found: Vec<IpAddr>, port: u16, allow_private: bool, host: &HostName) -> Result<Vec<SocketAddr>, NoAddress> {
    let mut refused = None;
    let mut kept = Vec::new();
    for address in found.into_iter().map(|a| a.to_canonical()) {
        match refusal(address) {
            Some(Refusal::Never(kind)) => refused = Some((address, kind)),
            Some(Refusal::Private(kind)) if !allow_private => refused = Some((address, kind)),
            // Where people come in to agents, and whatever else listens on this host.
            None if !allow_private && is_own(address) => refused = Some((address, "this host's own")),
            _ => kept.push(SocketAddr::new(address, port)),
        }
    }
    kept.truncate(MAX_ADDRESSES);
    match (kept.is_empty(), refused) {
        (false, _) => Ok(kept),
        (true, Some((address, kind))) => {
            Err(NoAddress::Denied(Denial::new("private_address", format!("{host} is at {address}, which is {kind}"))))
        }
        (true, None) => Err(NoAddress::Failed("dns_failed: the name has no address".into())),
    }
}

async fn race(addresses: &[SocketAddr]) -> std::io::Result<(TcpStream, SocketAddr)> {
    let attempt = |address: SocketAddr| async move {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>((stream, address))
    };
    let mut waiting = addresses.iter().copied();
    let mut under_way = FuturesUnordered::new();
    let mut last: std::io::Error = std::io::ErrorKind::AddrNotAvailable.into();
    under_way.extend(waiting.next().map(attempt));
    while !under_way.is_empty() {
        tokio::select! {
            Some(done) = under_way.next() => match done {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    last = error;
                    under_way.extend(waiting.next().map(attempt));
                }
            },
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => under_way.extend(waiting.next().map(attempt)),
        }
    }
    Err(last)
}

/// Why an address is not on the Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing that a grant says lets it be dialled.
    Never(&'static str),
    /// `allow_private` lets it be dialled.
    Private(&'static str),
}

/// Why an address must not be dialled for a name on the Internet.
///
/// # Source
/// IANA's special-purpose address registries (RFC 6890); RFC 6052 and RFC 8215 for NAT64, RFC 3056 for 6to4,
/// RFC 4380 for Teredo.
#[must_use]
pub fn refusal(address: IpAddr) -> Option<Refusal> {
    match address.to_canonical() {
        IpAddr::V4(v4) => refusal_v4(v4),
        IpAddr::V6(v6) => refusal_v6(v6),
    }
}

fn refusal_v4(address: Ipv4Addr) -> Option<Refusal> {
    use Refusal::{Never, Private};
    Some(match address.octets() {
        [169, 254, 169, 254] | [100, 100, 100, 200] | [192, 0, 0, 192] => Never("a metadata service"),
        [0, ..] => Never("unspecified"),
        [224..=239, ..] => Never("multicast"),
        [255, 255, 255, 255] => Never("broadcast"),
        [240..=255, ..] => Never("reserved"),
        [198, 18 | 19, ..] => Never("synthetic"),
        [127, ..] => Private("loopback"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Private("private"),
        [169, 254, ..] => Private("link-local"),
        [100, 64..=127, ..] => Private("shared by a carrier"),
        [192, 0, 0, _] => Private("for protocol assignments"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Private("for documentation"),
        [192, 88, 99, _] => Private("a 6to4 relay"),
        _ => return None,
    })
}

fn refusal_v6(address: Ipv6Addr) -> Option<Refusal> {
    use Refusal::{Never, Private};
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    Some(match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Never("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Private("loopback"),
        // IPv4-compatible and IPv4-translated forms carry an IPv4 address in a way that no host needs.
        [0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Never("an IPv4 address in another form"),
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe] => {
            Never("a metadata service")
        }
        // NAT64 and 6to4: the IPv4 address inside is where it goes. Whatever is refused there is refused for ever,
        // since a grant that means a private address can name it as it is.
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => match refusal_v4(embedded(high, low))? {
            Never(kind) | Private(kind) => Never(kind),
        },
        [0x0064, 0xff9b, 1, ..] => Never("local NAT64"),
        [0x2001, 0, ..] => Never("Teredo"),
        [0xff00..=0xffff, ..] => Never("multicast"),
        [0xfc00..=0xfdff, ..] => Private("private"),
        [0xfe80..=0xfebf, ..] => Private("link-local"),
        [0xfec0..=0xfeff, ..] => Private("site-local"),
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => Private("for documentation"),
        [0x0100, 0, 0, 0, ..] => Never("discarded"),
        // The Internet is 2000::/3; all else is not given to anybody.
        [0x2000..=0x3fff, ..] => return None,
        _ => Never("reserved"),
    })
}

#[cfg(test)]
mod tests {
    use ringfence_audit::{Record, RecordError};
    use ringfence_sys::confine::{self, Calls};

    use super::*;
    use crate::dns::{Over, Say, answer};

    #[test]
    fn names_are_found_by_a_thread_that_gave_up_all_else() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = server.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok((count, from)) = server.recv_from(&mut buffer) {
                let mut say = |_: &HostName| Say::Address([1, 2, 3, 4].into());
                if let Some(reply) = answer(&buffer[..count], Over::Datagram, &mut say) {
                    server.send_to(&reply.message, from).unwrap();
                }
            }
        });
        let found = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut udp = ConnectionConfig::udp();
            udp.port = port;
            let local = NameServerConfig::new("127.0.0.1".parse().unwrap(), true, vec![udp]);
            let config = ResolverConfig::from_parts(None, vec![], vec![local]);
            let dialler = Dialler::asking(config, ResolverOpts::default()).unwrap();
            confine::seal_thread().unwrap();
            confine::no_files().unwrap();
            confine::only_calls(Calls::Network).unwrap();
            assert!(is_own("127.0.0.1".parse().unwrap()), "it can still tell what is the host's own");
            let found = runtime.block_on(dialler.resolver.lookup_ip("api.example.org.")).unwrap();
            // A confined thread cannot take its runtime down by the book; the process does.
            std::mem::forget(runtime);
            found.iter().collect::<Vec<_>>()
        });
        assert_eq!(found.join().unwrap(), ["1.2.3.4".parse::<IpAddr>().unwrap()]);
    }

    fn grant(host: &str) -> Grant {
        Grant::to(host.parse().unwrap())
    }

    struct Log {
        full: bool,
        seen: Arc<Mutex<Vec<Event>>>,
    }

    impl Record for Log {
        fn record(&self, _: jiff::Timestamp, event: Event) -> Result<u64, RecordError> {
            if self.full {
                return Err(RecordError::TooLarge { bytes: 0 });
            }
            self.seen.lock().unwrap().push(event);
            Ok(1)
        }
    }

    #[tokio::test]
    async fn a_name_is_in_the_log_before_it_is_looked_up() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let mut udp = ConnectionConfig::udp();
        udp.port = server.local_addr().unwrap().port();
        let local = NameServerConfig::new("127.0.0.1".parse().unwrap(), true, vec![udp]);
        let mut options = ResolverOpts::default();
        (options.timeout, options.attempts) = (Duration::from_millis(50), 1);
        let dialler = Dialler::asking(ResolverConfig::from_parts(None, vec![], vec![local]), options).unwrap();
        let grant = grant("*.example.org");
        let host: HostName = "c2vjcmv0.example.org".parse().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = |full| Recorder::new(Arc::new(Log { full, seen: Arc::clone(&seen) }));
        let asked = || server.recv_from(&mut [0; 512]).is_ok();

        let denied = dialler.addresses(&grant, &host, 443, &log(true)).await;
        assert!(matches!(denied, Err(NoAddress::Denied(d)) if d.code == "unrecorded"));
        assert!(!asked(), "nothing left");

        let _ = dialler.addresses(&grant, &host, 443, &log(false)).await;
        assert!(asked(), "with a log the lookup leaves");
        assert!(
            matches!(&seen.lock().unwrap()[..], [Event::DnsQuery { name, .. }] if name == "c2vjcmv0.example.org"),
            "{seen:?}"
        );
    }

    #[tokio::test]
    async fn no_operator_means_a_metadata_service() {
        let dialler = Dialler::asking(ResolverConfig::default(), ResolverOpts::default()).unwrap();
        let recorder = Recorder::new(Arc::new(Log { full: false, seen: Arc::default() }));
        let mut grant = grant("api.example.org");
        let host: HostName = "api.example.org".parse().unwrap();
        grant.connect_to = Some("127.0.0.1:8443".parse().unwrap());
        let route = Route::to(vec!["127.0.0.1:8443".parse().unwrap()]);
        assert_eq!(dialler.addresses(&grant, &host, 443, &recorder).await, Ok(route));
        grant.connect_to = Some("169.254.169.254:80".parse().unwrap());
        assert!(matches!(dialler.addresses(&grant, &host, 443, &recorder).await, Err(NoAddress::Denied(_))));
    }

    #[test]
    fn the_internet_may_be_dialled_and_nothing_else() {
        let never = |text: &str| matches!(refusal(text.parse().unwrap()), Some(Refusal::Never(_)));
        let private = |text: &str| matches!(refusal(text.parse().unwrap()), Some(Refusal::Private(_)));
        for open in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "2002:808:808::1",
            "64:ff9b::808:808",
        ] {
            assert_eq!(refusal(open.parse().unwrap()), None, "{open}");
        }
        for address in [
            "127.0.0.1",
            "127.255.255.255",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "fec0::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "192.0.2.1",
            "2001:db8::1",
        ] {
            assert!(private(address), "{address}");
        }
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fd00:ec2::254",
            "100.100.100.200",
            "224.0.0.1",
            "239.1.1.1",
            "255.255.255.255",
            "240.0.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "::",
            "::7f00:1",
            "::ffff:0:7f00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "2001::1",
            "ff02::1",
            "100::1",
            "4000::1",
        ] {
            assert!(never(address), "{address}");
        }
    }

    #[test]
    fn a_private_grant_reaches_private_addresses_but_never_metadata() {
        let host = "intranet.example.org".parse().unwrap();
        let check = |text: &str, allow: bool| checked(vec![text.parse().unwrap()], 443, allow, &host);
        assert!(matches!(check("10.0.0.1", false), Err(NoAddress::Denied(d)) if d.code == "private_address"));
        assert!(check("10.0.0.1", true).is_ok(), "with the barrier off the address is dialled");
        assert!(matches!(check("169.254.169.254", true), Err(NoAddress::Denied(_))));
        let mixed = checked(vec!["10.0.0.1".parse().unwrap(), "1.1.1.1".parse().unwrap()], 443, false, &host);
        assert_eq!(mixed, Ok(vec!["1.1.1.1:443".parse().unwrap()]));
        assert!(matches!(checked(vec![], 443, true, &host), Err(NoAddress::Failed(_))));
    }
}
