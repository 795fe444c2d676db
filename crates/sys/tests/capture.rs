//! Barrier: in an agent's network namespace every connection and datagram ends at the gate's sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failed test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use ringfence_sys::{capture::Capture, netns};

/// Runs `body` in a thread of its own network namespace; needs root.
fn in_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                ringfence_sys::process::new_network_namespace().expect("root is needed");
                body()
            })
            .join()
            .unwrap()
    })
}

fn blocking(fd: &OwnedFd) -> OwnedFd {
    let fd = fd.try_clone().unwrap();
    rustix::io::ioctl_fionbio(&fd, false).unwrap();
    fd
}

#[test]
fn every_destination_ends_at_the_gate() {
    in_namespace(|| {
        netns::make_everything_local().unwrap();
        let capture = Capture::attach().unwrap();
        let v4 = TcpListener::from(blocking(&capture.tcp[0]));
        let v6 = TcpListener::from(blocking(&capture.tcp[1]));
        for (listener, target) in [
            (&v4, "93.184.216.34:443"),
            (&v4, "10.0.0.1:22"),
            (&v4, "169.254.169.254:80"),
            (&v6, "[2606:4700::1111]:443"),
            (&v6, "[fe80::1%1]:80"),
            (&v6, "[fd00:ec2::254]:80"),
        ] {
            let target: SocketAddr = target.parse().unwrap();
            let mut client = TcpStream::connect_timeout(&target, Duration::from_secs(2)).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            assert_eq!(server.local_addr().unwrap().ip(), target.ip());
            assert_eq!(server.local_addr().unwrap().port(), target.port());
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
        let dns = UdpSocket::from(blocking(&capture.dns[0]));
        let sink = UdpSocket::from(blocking(&capture.udp[0]));
        let sink6 = UdpSocket::from(blocking(&capture.udp[1]));
        for (socket, from, to) in [
            (&dns, "0.0.0.0:0", "8.8.8.8:53"),
            (&sink, "0.0.0.0:0", "8.8.8.8:123"),
            (&sink6, "[::]:0", "[2001:4860::8888]:443"),
        ] {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            UdpSocket::bind(from).unwrap().send_to(b"ping", to).unwrap();
            let mut got = [0; 16];
            assert_eq!(socket.recv(&mut got).unwrap(), 4);
        }
    });
}

#[test]
fn the_agents_own_loopback_stays_its_own() {
    in_namespace(|| {
        netns::make_everything_local().unwrap();
        let _capture = Capture::attach().unwrap();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let own = TcpListener::bind(address).unwrap();
            let mut client = TcpStream::connect(own.local_addr().unwrap()).unwrap();
            client.write_all(b"own").unwrap();
            let mut got = [0; 3];
            own.accept().unwrap().0.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"own");
        }
    });
}

#[test]
fn without_the_capture_nothing_answers_and_with_its_sockets_gone_nothing_passes() {
    in_namespace(|| {
        netns::make_everything_local().unwrap();
        let target: SocketAddr = "93.184.216.34:443".parse().unwrap();
        assert!(TcpStream::connect_timeout(&target, Duration::from_millis(500)).is_err());
        let Capture { tcp, dns, udp, link } = Capture::attach().unwrap();
        drop((tcp, dns, udp));
        assert!(TcpStream::connect_timeout(&target, Duration::from_millis(500)).is_err());
        drop(link);
    });
}

/// The attack works with the barrier off: an agent that shares a namespace with an upstream reaches it.
#[test]
fn without_the_barrier_the_agent_reaches_any_listener() {
    in_namespace(|| {
        netns::make_everything_local().unwrap();
        let outside = TcpListener::bind("93.184.216.34:8443").unwrap();
        TcpStream::connect_timeout(&outside.local_addr().unwrap(), Duration::from_secs(1)).unwrap();
        let _capture = Capture::attach().unwrap();
        outside.set_nonblocking(true).unwrap();
        while outside.accept().is_ok() {}
        TcpStream::connect_timeout(&outside.local_addr().unwrap(), Duration::from_secs(1)).unwrap();
        assert!(outside.accept().is_err(), "the connection must have gone to the gate");
    });
}
