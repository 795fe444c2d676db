//! Descriptors that another process of ours left to this one, and datagrams with their original destination.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Takes over a descriptor by the number that whoever started this process named.
///
/// It is closed on exec from now on. Numbers 0, 1 and 2 are not given away.
///
/// # Errors
/// If no such descriptor is open.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: fcntl takes no memory; an unopened number is answered with EBADF.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the number is open, and by the contract between our processes nothing else here owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A datagram that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Bytes put into the buffer.
    pub bytes: usize,
    /// Bytes that it had on the wire.
    pub wire_bytes: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Where it was sent to, whatever the receiving socket is bound to.
    pub to: SocketAddr,
}

/// Asks the kernel to tell the original destination of each datagram that `socket` receives.
///
/// # Errors
/// Whatever the kernel says.
pub fn tell_destinations(socket: BorrowedFd<'_>, v6: bool) -> io::Result<()> {
    let set = |level: libc::c_int, name: libc::c_int| {
        let on: libc::c_int = 1;
        // SAFETY: `on` lives through the call and its size is what is passed.
        let done =
            unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), size::<libc::c_int>()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    if v6 {
        set(libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR)?;
    }
    // Datagrams over IPv4 that reach an IPv6 socket are told of by the IPv4 option.
    set(libc::SOL_IP, libc::IP_RECVORIGDSTADDR)
}

/// Room for one original destination of either family and then some.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// Receives one datagram and its original destination.
///
/// # Errors
/// Whatever the kernel says, and [`io::ErrorKind::InvalidData`] where no destination is told.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Datagram> {
    // SAFETY: all-zero is a valid value of these plain C structures.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { mem::zeroed() };
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size::<libc::sockaddr_storage>();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `message` is to a live local or to `buffer`, with its true length.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_TRUNC | libc::MSG_DONTWAIT) };
    let wire_bytes = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let from = address(&name).ok_or(io::ErrorKind::InvalidData)?;
    let mut to = None;
    // SAFETY: the kernel filled `message`; the CMSG macros stay within msg_controllen.
    unsafe {
        let mut head = libc::CMSG_FIRSTHDR(&raw const message);
        while !head.is_null() {
            let (level, kind) = ((*head).cmsg_level, (*head).cmsg_type);
            let wanted = match (level, kind) {
                (libc::SOL_IP, libc::IP_ORIGDSTADDR) => size::<libc::sockaddr_in>(),
                (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => size::<libc::sockaddr_in6>(),
                _ => 0,
            };
            if wanted > 0 && (*head).cmsg_len as usize >= libc::CMSG_LEN(wanted) as usize {
                let mut storage: libc::sockaddr_storage = mem::zeroed();
                std::ptr::copy_nonoverlapping(libc::CMSG_DATA(head), (&raw mut storage).cast::<u8>(), wanted as usize);
                to = to.or_else(|| address(&storage));
            }
            head = libc::CMSG_NXTHDR(&raw const message, head);
        }
    }
    let to = to.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Datagram { bytes: wire_bytes.min(buffer.len()), wire_bytes, from, to })
}

/// Sends a datagram to `to` that seems to come from the address `from`, which is local here.
///
/// # Errors
/// Whatever the kernel says.
pub fn send_from(socket: BorrowedFd<'_>, bytes: &[u8], to: SocketAddr, from: IpAddr, v6: bool) -> io::Result<()> {
    // SAFETY: all-zero is a valid value of these plain C structures.
    let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { mem::zeroed() };
    let mut control = Control([0; 128]);
    let name_length = fill(&mut name, to, v6);
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_length;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: `control` is aligned and larger than one header with either structure; sendmsg reads only live
    // locals and `bytes`.
    let sent = unsafe {
        let head = libc::CMSG_FIRSTHDR(&raw const message);
        if head.is_null() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match (from, v6) {
            (IpAddr::V4(from), false) => {
                let mut info: libc::in_pktinfo = mem::zeroed();
                info.ipi_spec_dst.s_addr = u32::from_ne_bytes(from.octets());
                (*head).cmsg_level = libc::SOL_IP;
                (*head).cmsg_type = libc::IP_PKTINFO;
                (*head).cmsg_len = libc::CMSG_LEN(size::<libc::in_pktinfo>()) as _;
                std::ptr::copy_nonoverlapping(
                    (&raw const info).cast::<u8>(),
                    libc::CMSG_DATA(head),
                    size_of_val(&info),
                );
                message.msg_controllen = libc::CMSG_SPACE(size::<libc::in_pktinfo>()) as _;
            }
            (from, _) => {
                let mut info: libc::in6_pktinfo = mem::zeroed();
                info.ipi6_addr.s6_addr = mapped(from).octets();
                (*head).cmsg_level = libc::SOL_IPV6;
                (*head).cmsg_type = libc::IPV6_PKTINFO;
                (*head).cmsg_len = libc::CMSG_LEN(size::<libc::in6_pktinfo>()) as _;
                std::ptr::copy_nonoverlapping(
                    (&raw const info).cast::<u8>(),
                    libc::CMSG_DATA(head),
                    size_of_val(&info),
                );
                message.msg_controllen = libc::CMSG_SPACE(size::<libc::in6_pktinfo>()) as _;
            }
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The size of a plain C structure, as socket calls take it.
fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}

fn family(number: libc::c_int) -> libc::sa_family_t {
    libc::sa_family_t::try_from(number).unwrap_or(0)
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Writes `address` in the form that a socket of the family takes, and returns its length.
fn fill(storage: &mut libc::sockaddr_storage, address: SocketAddr, v6: bool) -> libc::socklen_t {
    // SAFETY: sockaddr_storage is at least as large as, and aligned for, either structure written here.
    unsafe {
        match (address, v6) {
            (SocketAddr::V4(v4), false) => {
                let to = (&raw mut *storage).cast::<libc::sockaddr_in>();
                (*to).sin_family = family(libc::AF_INET);
                (*to).sin_port = v4.port().to_be();
                (*to).sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                size::<libc::sockaddr_in>()
            }
            (address, _) => {
                let to = (&raw mut *storage).cast::<libc::sockaddr_in6>();
                (*to).sin6_family = family(libc::AF_INET6);
                (*to).sin6_port = address.port().to_be();
                (*to).sin6_addr.s6_addr = mapped(address.ip()).octets();
                if let SocketAddr::V6(v6) = address {
                    (*to).sin6_scope_id = v6.scope_id();
                }
                size::<libc::sockaddr_in6>()
            }
        }
    }
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in, and the storage is larger and aligned.
            let v4 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is a sockaddr_in6, and the storage is larger and aligned.
            let v6 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_datagram_tells_where_it_was_sent_and_is_answered_from_there() {
        for (bind, v6) in [("0.0.0.0:0", false), ("[::]:0", true)] {
            let socket = UdpSocket::bind(bind).unwrap();
            tell_destinations(socket.as_fd(), v6).unwrap();
            let port = socket.local_addr().unwrap().port();
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
            client.send_to(b"hello", ("127.9.8.7", port)).unwrap();
            let mut buffer = [0; 3];
            let got = loop {
                match receive(socket.as_fd(), &mut buffer) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
                    other => break other.unwrap(),
                }
            };
            assert_eq!((got.bytes, got.wire_bytes, &buffer), (3, 5, b"hel"));
            assert_eq!(got.to.ip().to_canonical(), "127.9.8.7".parse::<IpAddr>().unwrap());
            assert_eq!(got.to.port(), port);
            send_from(socket.as_fd(), b"back", got.from, got.to.ip(), v6).unwrap();
            let mut buffer = [0; 16];
            let (count, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..count], from.ip()), (&b"back"[..], "127.9.8.7".parse::<IpAddr>().unwrap()));
        }
    }

    #[test]
    fn only_open_descriptors_are_adopted() {
        assert!(adopt(1).is_err());
        assert!(adopt(1_000_000).is_err());
    }
}
