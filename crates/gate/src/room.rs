//! How many connections an agent may have the gate open. Each takes a port of the host's, a descriptor and memory, and
//! whoever answers sees the host and not the agent.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::stream::writes_through;

/// Connections of one gate to upstreams, idle ones too.
pub const MAX_UPSTREAM_CONNECTIONS: usize = 1024;

/// Those of them to one address and port. The host has some 28,000 ports for each such pair, for all its agents.
pub const MAX_CONNECTIONS_TO_ONE: usize = 512;

/// How long a call waits for others to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Addresses that are counted apart; those without connections are forgotten beyond it.
const MAX_COUNTED: usize = 256;

/// Why a call is not made now.
pub(crate) const FULL: &str = "too_many_connections";

/// What is left of the connections.
pub(crate) struct Room {
    all: Arc<Semaphore>,
    each: Mutex<HashMap<SocketAddr, Weak<Semaphore>>>,
    /// Ends the connections that nobody uses.
    make: Mutex<Option<Box<dyn Fn() + Send>>>,
}

/// One connection's place.
pub(crate) struct Place {
    _all: OwnedSemaphorePermit,
    _one: OwnedSemaphorePermit,
}

impl Default for Room {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MAX_UPSTREAM_CONNECTIONS)), each: Mutex::default(), make: Mutex::default() }
    }
}

impl Room {
    /// Says how connections are ended that nobody uses, when a place is wanted and none is left.
    pub(crate) fn made_by(&self, make: impl Fn() + Send + 'static) {
        *self.make.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(make));
    }

    /// A place for a connection to `address`, once there is one.
    ///
    /// # Errors
    /// [`FULL`], if there is none for a while.
    pub(crate) async fn place(&self, address: SocketAddr) -> Result<Place, String> {
        let one = self.of(address);
        if self.all.available_permits() == 0 || one.available_permits() == 0 {
            self.make.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|make| make());
        }
        let places = async {
            let one = one.acquire_owned().await.ok()?;
            Some(Place { _one: one, _all: Arc::clone(&self.all).acquire_owned().await.ok()? })
        };
        match tokio::time::timeout(PATIENCE, places).await {
            Ok(Some(place)) => Ok(place),
            Ok(None) | Err(_) => Err(format!(
                "{FULL}: {MAX_UPSTREAM_CONNECTIONS} are open, or {MAX_CONNECTIONS_TO_ONE} to {address}; end some, or make fewer calls at once"
            )),
        }
    }

    fn of(&self, address: SocketAddr) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = each.get(&address).and_then(Weak::upgrade) {
            return one;
        }
        if each.len() >= MAX_COUNTED {
            each.retain(|_, one| one.strong_count() > 0);
        }
        let one = Arc::new(Semaphore::new(MAX_CONNECTIONS_TO_ONE));
        each.insert(address, Arc::downgrade(&one));
        one
    }
}

/// A connection and its place, which is free again when it ends.
pub(crate) struct Placed<S> {
    stream: S,
    _place: Place,
}

impl<S> Placed<S> {
    pub(crate) const fn new(stream: S, place: Place) -> Self {
        Self { stream, _place: place }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

writes_through!(Placed);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_never_has_it_all_and_places_come_free() {
        let room = Room::default();
        let one: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let mut held = Vec::new();
        for _ in 0..MAX_CONNECTIONS_TO_ONE {
            held.push(room.place(one).await.unwrap());
        }
        assert!(room.place(one).await.is_err_and(|why| why.starts_with(FULL)));
        for port in 1.. {
            if room.all.available_permits() == 0 {
                break;
            }
            held.push(room.place((std::net::Ipv4Addr::LOCALHOST, port).into()).await.unwrap());
        }
        assert_eq!(held.len(), MAX_UPSTREAM_CONNECTIONS);
        let other = "192.0.2.2:443".parse().unwrap();
        assert!(room.place(other).await.is_err());
        held.pop();
        assert!(room.place(other).await.is_ok());
        assert!(room.each.lock().unwrap().len() <= MAX_CONNECTIONS_TO_ONE + MAX_COUNTED, "only those in use are kept");
    }

    #[tokio::test]
    async fn who_is_idle_makes_room() {
        let room = Room::default();
        let one: SocketAddr = "192.0.2.1:443".parse().unwrap();
        let idle = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..MAX_CONNECTIONS_TO_ONE {
            let place = room.place(one).await.unwrap();
            idle.lock().unwrap().push(place);
        }
        assert!(room.place(one).await.is_err());
        let ended = Arc::clone(&idle);
        room.made_by(move || ended.lock().unwrap().clear());
        assert!(room.place(one).await.is_ok());
    }
}
