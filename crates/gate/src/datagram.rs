//! UDP comes in: to port 53 it is answered, to anywhere else it is recorded and dropped.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringfence_audit::Event;
use ringfence_sys::fd;
use tokio::io::Interest;

use crate::Gate;
use crate::dns::Over;

/// How often drops towards one destination are recorded.
const PERIOD: Duration = Duration::from_secs(1);

/// Destinations that are counted apart; drops towards more are counted together.
const MAX_DESTINATIONS: usize = 256;

/// Answers DNS on a socket that gets datagrams to any address.
///
/// # Errors
/// If the socket cannot be set up, or breaks.
pub async fn serve_dns(gate: Arc<Gate>, socket: UdpSocket) -> std::io::Result<()> {
    let (socket, v6) = prepare(socket)?;
    let mut buffer = vec![0; 4096];
    loop {
        let got = receive(&socket, &mut buffer).await?;
        let query = buffer.get(..got.bytes).unwrap_or_default();
        let Some(reply) = gate.resolve(query, Over::Datagram) else { continue };
        // A full queue loses the answer, as any network may; the client asks again.
        let _ = fd::send_from(socket.as_fd(), &reply, got.from, got.to.ip(), v6);
    }
}

/// Records and drops every datagram on a socket.
///
/// # Errors
/// If the socket cannot be set up, or breaks.
pub async fn drop_all(gate: Arc<Gate>, socket: UdpSocket) -> std::io::Result<()> {
    let (socket, _) = prepare(socket)?;
    let mut drops = Drops::default();
    let mut buffer = [0; 1];
    let mut tick = tokio::time::interval(PERIOD);
    loop {
        let due = tokio::select! {
            got = receive(&socket, &mut buffer) => {
                let got = got?;
                let to = SocketAddr::new(got.to.ip().to_canonical(), got.to.port());
                drops.add(to.to_string(), got.wire_bytes as u64, Instant::now()).into_iter().collect()
            }
            _ = tick.tick(), if drops.pending() => drops.due(Instant::now()),
        };
        for event in due {
            // The datagram is dropped whether or not that can be written.
            let _ = gate.recorder.event(event);
        }
    }
}

fn prepare(socket: UdpSocket) -> std::io::Result<(tokio::net::UdpSocket, bool)> {
    let v6 = socket.local_addr()?.is_ipv6();
    fd::tell_destinations(socket.as_fd(), v6)?;
    socket.set_nonblocking(true)?;
    Ok((tokio::net::UdpSocket::from_std(socket)?, v6))
}

async fn receive(socket: &tokio::net::UdpSocket, buffer: &mut [u8]) -> std::io::Result<fd::Datagram> {
    loop {
        socket.readable().await?;
        match socket.try_io(Interest::READABLE, || fd::receive(socket.as_fd(), buffer)) {
            Err(error)
                if matches!(
                    error.kind(),
                    // The last is what an earlier answer came to, not the socket's end.
                    std::io::ErrorKind::WouldBlock
                        | std::io::ErrorKind::InvalidData
                        | std::io::ErrorKind::ConnectionRefused
                ) => {}
            done => return done,
        }
    }
}

/// Counts drops by destination: the first is recorded at once, the rest at most once a second.
#[derive(Default)]
struct Drops {
    table: HashMap<String, Tally>,
}

struct Tally {
    recorded: Instant,
    bytes: u64,
    count: u64,
}

impl Drops {
    fn add(&mut self, destination: String, bytes: u64, now: Instant) -> Option<Event> {
        let full = self.table.len() >= MAX_DESTINATIONS && !self.table.contains_key(&destination);
        let destination = if full { "other destinations".to_owned() } else { destination };
        if let Some(tally) = self.table.get_mut(&destination) {
            tally.bytes += bytes;
            tally.count += 1;
            return None;
        }
        self.table.insert(destination.clone(), Tally { recorded: now, bytes: 0, count: 0 });
        Some(Event::UdpDrop { destination, bytes, count: 1 })
    }

    fn pending(&self) -> bool {
        !self.table.is_empty()
    }

    fn due(&mut self, now: Instant) -> Vec<Event> {
        let mut events = Vec::new();
        self.table.retain(|destination, tally| {
            if now.duration_since(tally.recorded) < PERIOD {
                return true;
            }
            if tally.count == 0 {
                return false;
            }
            events.push(Event::UdpDrop { destination: destination.clone(), bytes: tally.bytes, count: tally.count });
            *tally = Tally { recorded: now, bytes: 0, count: 0 };
            true
        });
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_drop_is_recorded_at_once_and_the_rest_once_a_second() {
        let mut drops = Drops::default();
        let start = Instant::now();
        let first = drops.add("1.1.1.1:9".into(), 5, start);
        assert_eq!(first, Some(Event::UdpDrop { destination: "1.1.1.1:9".into(), bytes: 5, count: 1 }));
        for _ in 0..1000 {
            assert_eq!(drops.add("1.1.1.1:9".into(), 5, start), None);
        }
        assert!(drops.due(start).is_empty());
        let due = drops.due(start + PERIOD);
        assert_eq!(due, [Event::UdpDrop { destination: "1.1.1.1:9".into(), bytes: 5000, count: 1000 }]);
        assert!(drops.due(start + PERIOD * 2).is_empty());
        assert!(!drops.pending());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut drops = Drops::default();
        let now = Instant::now();
        let recorded = (0..10_000).filter(|n| drops.add(format!("1.1.1.1:{n}"), 1, now).is_some()).count();
        assert_eq!((recorded, drops.table.len()), (MAX_DESTINATIONS + 1, MAX_DESTINATIONS + 1));
    }
}
