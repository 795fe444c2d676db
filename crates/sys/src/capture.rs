//! Capture of everything that leaves: an `sk_lookup` program that hands each TCP connection and each
//! datagram in a network namespace to a socket of the gate, whatever its destination.
//!
//! The program runs where the kernel would look for a listening socket. It leaves 127.0.0.0/8 and ::1
//! alone and gives all else to one of six sockets, by family and protocol. If the socket is gone it drops,
//! so a dead gate means no network. It lives as long as the [`Capture`] value (a BPF link): when its owner
//! dies the namespace has no listener for outside addresses, and connections are refused.
//!
//! # Source
//! Linux `Documentation/bpf/prog_sk_lookup.rst`; `struct bpf_sk_lookup` in `include/uapi/linux/bpf.h`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::netns::{GATE_ADDRESS_V4, GATE_ADDRESS_V6};

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;
const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;

const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_SK_RELEASE: i32 = 86;
const HELPER_SK_ASSIGN: i32 = 124;

/// How many sockets the capture hands connections to.
const SOCKETS: u32 = 6;

/// The sockets that receive everything, and the program that sends it there.
pub struct Capture {
    /// Listening TCP sockets, IPv4 then IPv6; an accepted socket's local address is the destination asked for.
    pub tcp: [OwnedFd; 2],
    /// UDP sockets that get every datagram to port 53.
    pub dns: [OwnedFd; 2],
    /// UDP sockets that get every other datagram.
    pub udp: [OwnedFd; 2],
    /// Keeps the program attached.
    pub link: OwnedFd,
}

impl Capture {
    /// Opens the sockets in the calling thread's network namespace and attaches the program to it.
    ///
    /// # Errors
    /// Whatever the kernel says; `EPERM` without the capabilities BPF and NET_ADMIN.
    pub fn attach() -> io::Result<Self> {
        let tcp = [listener(AddressFamily::INET)?, listener(AddressFamily::INET6)?];
        let dns = [datagrams(AddressFamily::INET, 53)?, datagrams(AddressFamily::INET6, 53)?];
        let udp = [datagrams(AddressFamily::INET, 9)?, datagrams(AddressFamily::INET6, 9)?];
        let map = create_map()?;
        for (key, socket) in (0u32..).zip(tcp.iter().chain(&dns).chain(&udp)) {
            put(&map, key, socket)?;
        }
        let program = load(&map)?;
        let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
        let link = link(&program, namespace.as_fd().as_raw_fd())?;
        Ok(Self { tcp, dns, udp, link })
    }
}

fn listener(family: AddressFamily) -> io::Result<OwnedFd> {
    let socket = bound(family, SocketType::STREAM, 443)?;
    net::listen(&socket, 1024)?;
    Ok(socket)
}

fn datagrams(family: AddressFamily, port: u16) -> io::Result<OwnedFd> {
    bound(family, SocketType::DGRAM, port)
}

fn bound(family: AddressFamily, kind: SocketType, port: u16) -> io::Result<OwnedFd> {
    let socket = net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    let address: IpAddr = if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
        set_freebind_v6(&socket)?;
        GATE_ADDRESS_V6.into()
    } else {
        GATE_ADDRESS_V4.into()
    };
    net::bind(&socket, &SocketAddr::new(address, port))?;
    Ok(socket)
}

/// Lets an IPv6 socket bind to an address that is local by route only.
fn set_freebind_v6(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open; the option reads one int, which lives on this stack. rustix has
    // IP_FREEBIND for IPv4 only.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_FREEBIND,
            std::ptr::from_ref(&on).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One BPF instruction, as the kernel lays it out.
#[derive(Clone, Copy)]
#[repr(C)]
struct Insn {
    code: u8,
    /// Destination in the low four bits, source in the high.
    regs: u8,
    offset: i16,
    imm: i32,
}

const fn insn(code: u8, dst: u8, src: u8, offset: i16, imm: i32) -> Insn {
    Insn { code, regs: dst | (src << 4), offset, imm }
}

// Instruction classes, named as in the kernel's samples.
const fn mov64_reg(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}
const fn mov64_imm(dst: u8, imm: i32) -> Insn {
    insn(0xb7, dst, 0, 0, imm)
}
const fn add64_imm(dst: u8, imm: i32) -> Insn {
    insn(0x07, dst, 0, 0, imm)
}
const fn and64_imm(dst: u8, imm: i32) -> Insn {
    insn(0x57, dst, 0, 0, imm)
}
const fn ldx_u32(dst: u8, src: u8, offset: i16) -> Insn {
    insn(0x61, dst, src, offset, 0)
}
const fn stx_u32(dst: u8, src: u8, offset: i16) -> Insn {
    insn(0x63, dst, src, offset, 0)
}
const fn jeq_imm(dst: u8, imm: i32, offset: i16) -> Insn {
    insn(0x15, dst, 0, offset, imm)
}
const fn jne_imm(dst: u8, imm: i32, offset: i16) -> Insn {
    insn(0x55, dst, 0, offset, imm)
}
const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}
const fn exit() -> Insn {
    insn(0x95, 0, 0, 0, 0)
}

/// `SK_DROP` and `SK_PASS`.
const DROP: i32 = 0;
const PASS: i32 = 1;

// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;

fn program(map: i32) -> Vec<Insn> {
    // `::1` in network order: three zero words and 1, which reads as 0x01000000 on a little-endian host.
    let one = i32::from_ne_bytes(1u32.to_be_bytes());
    // 127.x.x.x in network order: the first byte in memory.
    let (mask, loopback) = (i32::from_ne_bytes([255, 0, 0, 0]), i32::from_ne_bytes([127, 0, 0, 0]));
    let jump_after = |from: usize, to: usize| i16::try_from(to - from - 1).unwrap_or(i16::MAX);
    let mut code = vec![
        /* 0 */ mov64_reg(6, 1),
        /* 1 */ ldx_u32(2, 6, FAMILY),
        /* 2 */ mov64_imm(8, 0), // r8: key, 0 for IPv4
        /* 3 */ jeq_imm(2, libc::AF_INET, jump_after(3, 14)),
        /* 4: IPv6 */ mov64_imm(8, 1),
        /* 5 */ ldx_u32(3, 6, LOCAL_IP6),
        /* 6 */ jne_imm(3, 0, jump_after(6, 17)),
        /* 7 */ ldx_u32(3, 6, LOCAL_IP6 + 4),
        /* 8 */ jne_imm(3, 0, jump_after(8, 17)),
        /* 9 */ ldx_u32(3, 6, LOCAL_IP6 + 8),
        /* 10 */ jne_imm(3, 0, jump_after(10, 17)),
        /* 11 */ ldx_u32(3, 6, LOCAL_IP6 + 12),
        /* 12 */ jeq_imm(3, one, jump_after(12, 40)),
        /* 13 */ insn(0x05, 0, 0, jump_after(13, 17), 0),
        /* 14: IPv4 */ ldx_u32(3, 6, LOCAL_IP4),
        /* 15 */ and64_imm(3, mask),
        /* 16 */ jeq_imm(3, loopback, jump_after(16, 40)),
        /* 17: captured */ ldx_u32(4, 6, PROTOCOL),
        /* 18 */ jeq_imm(4, libc::IPPROTO_TCP, jump_after(18, 23)),
        /* 19 */ add64_imm(8, 2),
        /* 20 */ ldx_u32(5, 6, LOCAL_PORT),
        /* 21 */ jeq_imm(5, 53, jump_after(21, 23)),
        /* 22 */ add64_imm(8, 2),
        /* 23 */ stx_u32(10, 8, -4),
        /* 24 */ insn(0x18, 1, 1, 0, map), // r1 = map
        /* 25 */ insn(0, 0, 0, 0, 0),
        /* 26 */ mov64_reg(2, 10),
        /* 27 */ add64_imm(2, -4),
        /* 28 */ call(HELPER_MAP_LOOKUP),
        /* 29 */ jeq_imm(0, 0, jump_after(29, 38)),
        /* 30 */ mov64_reg(7, 0),
        /* 31 */ mov64_reg(1, 6),
        /* 32 */ mov64_reg(2, 7),
        /* 33 */ mov64_imm(3, 0),
        /* 34 */ call(HELPER_SK_ASSIGN),
        /* 35 */ mov64_reg(9, 0),
        /* 36 */ mov64_reg(1, 7),
        /* 37 */ insn(0x05, 0, 0, jump_after(37, 42), 0),
        /* 38: no socket */ mov64_imm(0, DROP),
        /* 39 */ exit(),
        /* 40: loopback */ mov64_imm(0, PASS),
        /* 41 */ exit(),
        /* 42 */ call(HELPER_SK_RELEASE),
        /* 43 */ jeq_imm(9, 0, jump_after(43, 46)),
        /* 44 */ mov64_imm(0, DROP),
        /* 45 */ exit(),
        /* 46 */ mov64_imm(0, PASS),
        /* 47 */ exit(),
    ];
    code.shrink_to_fit();
    code
}

/// `union bpf_attr`, as far as the commands used here need it.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Attr {
    const fn zeroed() -> Self {
        Self([0; 128])
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn set_u32(&mut self, at: usize, value: u32) {
        self.set(at, &value.to_ne_bytes());
    }

    fn set_fd(&mut self, at: usize, fd: i32) {
        self.set(at, &fd.to_ne_bytes());
    }

    fn set_ptr<T>(&mut self, at: usize, pointer: *const T) {
        self.set(at, &(pointer.addr() as u64).to_ne_bytes());
    }
}

fn bpf(command: u32, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: `attr` is a live, aligned, zero-padded bpf_attr of the size given; every pointer in it was
    // taken from a value that the caller keeps alive over this call. No safe wrapper is in use here.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(done).map_err(io::Error::other) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor to us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn create_map() -> io::Result<OwnedFd> {
    let mut attr = Attr::zeroed();
    attr.set_u32(0, MAP_TYPE_SOCKMAP);
    attr.set_u32(4, 4); // key size
    attr.set_u32(8, 8); // value size: a socket's descriptor or cookie
    attr.set_u32(12, SOCKETS);
    bpf(BPF_MAP_CREATE, &mut attr).map(owned)
}

fn put(map: &OwnedFd, key: u32, socket: &OwnedFd) -> io::Result<()> {
    let value = u64::try_from(socket.as_raw_fd()).map_err(io::Error::other)?;
    let mut attr = Attr::zeroed();
    attr.set_fd(0, map.as_raw_fd());
    attr.set_ptr(8, std::ptr::from_ref(&key));
    attr.set_ptr(16, std::ptr::from_ref(&value));
    bpf(BPF_MAP_UPDATE_ELEM, &mut attr).map(|_| ())
}

fn load(map: &OwnedFd) -> io::Result<OwnedFd> {
    let code = program(map.as_raw_fd());
    let licence = c"Dual BSD/GPL";
    let mut attr = Attr::zeroed();
    attr.set_u32(0, PROG_TYPE_SK_LOOKUP);
    attr.set_u32(4, u32::try_from(code.len()).map_err(io::Error::other)?);
    attr.set_ptr(8, code.as_ptr());
    attr.set_ptr(16, licence.as_ptr());
    attr.set_u32(68, ATTACH_SK_LOOKUP); // expected_attach_type
    bpf(BPF_PROG_LOAD, &mut attr).map(owned)
}

fn link(program: &OwnedFd, namespace: i32) -> io::Result<OwnedFd> {
    let mut attr = Attr::zeroed();
    attr.set_fd(0, program.as_raw_fd());
    attr.set_fd(4, namespace);
    attr.set_u32(8, ATTACH_SK_LOOKUP);
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}
