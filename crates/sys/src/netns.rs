//! A network namespace without wires: only `lo`, with every address in the world local to it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The interface index of `lo`, which is 1 in every network namespace.
const LO: u32 = 1;

/// Brings `lo` up and makes every IPv4 and IPv6 address local to this network namespace.
///
/// Afterwards a connection to any address is delivered to a socket in this namespace, or to none.
/// `sys` calls it in a namespace that was just made; no other interface exists there.
///
/// # Errors
/// Whatever the kernel's routing socket says.
pub fn make_everything_local() -> io::Result<()> {
    link_up("lo")?;
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    add_local_default(&mut socket, AddressFamily::Inet)?;
    if std::path::Path::new("/proc/sys/net/ipv6").exists() {
        add_local_default(&mut socket, AddressFamily::Inet6)?;
    }
    Ok(())
}

fn add_local_default(socket: &mut Socket, family: AddressFamily) -> io::Result<()> {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.table = libc::RT_TABLE_LOCAL;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.attributes.push(RouteAttribute::Oif(LO));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(error) => match error.code {
            None => Ok(()),
            Some(_) => Err(error.to_io()),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no acknowledgement from the routing socket")),
    }
}

fn link_up(name: &str) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: an all-zero ifreq is a valid value of that plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or(0);
    // SAFETY: the descriptor is open and SIOCSIFFLAGS reads one ifreq, which lives on this stack. rustix
    // offers no safe form of this ioctl.
    let done = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS, std::ptr::from_ref(&request))
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address to which the gate's own sockets in an agent's namespace are bound. No agent has business there.
pub const GATE_ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 253);
/// The same for IPv6 (RFC 5180 benchmarking range).
pub const GATE_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0xfd);
