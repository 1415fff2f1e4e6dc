//! The side that dials: every address of every name is tried, and every way to fail has its own words.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use quinn::{ClientConfig, Endpoint, Runtime};
use tokio::task::JoinSet;

use super::address::Address;
use super::closed::{Closed, Code};
use super::connection::Connection;
use super::error::ConnectError;
use super::identity::{Identity, PeerId};
use super::listen::{WELCOME, key_of};
use super::offload::WithinMachine;
use super::runtime::Tokio;
use super::tls::{self, Purpose};
use super::tuning::{self, Settings};
use super::vigil;

/// Where connections are dialed from: one socket of each family for all of them, so that what answers within a moment is
/// read at once, and one for those within the machine. Clones share it. For one tokio runtime.
#[derive(Clone, Default)]
pub struct Dialer(Arc<Mutex<Endpoints>>);

#[derive(Default)]
struct Endpoints {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
    within_v4: Option<Endpoint>,
    within_v6: Option<Endpoint>,
}

/// Who dials whom for what: the same for every address of a name.
#[derive(Clone)]
struct Call {
    from: Dialer,
    to: Address,
    identity: Identity,
    expected: PeerId,
    purpose: Purpose,
    settings: Settings,
}

/// The next address is tried when the one before has failed, or after this long (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;

/// Connects once, from a socket of its own: see [`Dialer::connect`].
pub async fn connect(
    to: &Address,
    identity: &Identity,
    expected: PeerId,
    purpose: Purpose,
    settings: Settings,
) -> Result<Connection, ConnectError> {
    Dialer::default().connect(to, &[], identity, expected, purpose, settings).await
}

impl Dialer {
    /// Connects to the machine that is at `to` and at `also`, which must prove the key `expected`, and waits until it lets us in.
    /// The first that answers is used; each has a head start on the next.
    pub async fn connect(
        &self,
        to: &Address,
        also: &[Address],
        identity: &Identity,
        expected: PeerId,
        purpose: Purpose,
        settings: Settings,
    ) -> Result<Connection, ConnectError> {
        let call = |to: &Address| Call {
            from: self.clone(),
            to: to.clone(),
            identity: identity.clone(),
            expected,
            purpose,
            settings,
        };
        let addresses: Vec<_> = std::iter::once(to).chain(also).map(|to| call(to).any_address()).collect();
        let seconds = settings.handshake.as_secs();
        race(addresses.into_iter()).await.unwrap_or(Err(ConnectError::Unreachable { to: to.clone(), seconds }))
    }

    /// The socket for what goes to `address`.
    fn endpoint(&self, address: SocketAddr) -> io::Result<Endpoint> {
        let mut endpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = endpoints.of(address);
        if let Some(endpoint) = kept {
            return Ok(endpoint.clone());
        }
        let local: IpAddr = if address.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = tuning::socket(SocketAddr::new(local, 0))?;
        let socket = Tokio.wrap_udp_socket(socket)?;
        let socket = if tuning::is_loopback(address.ip()) { Arc::new(WithinMachine(socket)) } else { socket };
        let endpoint = Endpoint::new_with_abstract_socket(tuning::endpoint(None), None, socket, Arc::new(Tokio))?;
        Ok(kept.insert(endpoint).clone())
    }

    /// The next one to dial `address` gets a new socket, for a router or firewall on the way may remember something of this one
    /// that does not hold any more, as long as it is used. Who is connected stays so.
    fn renew(&self, address: SocketAddr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).of(address) = None;
    }
}

impl Endpoints {
    fn of(&mut self, address: SocketAddr) -> &mut Option<Endpoint> {
        match (tuning::is_loopback(address.ip()), address.is_ipv6()) {
            (false, false) => &mut self.v4,
            (false, true) => &mut self.v6,
            (true, false) => &mut self.within_v4,
            (true, true) => &mut self.within_v6,
        }
    }
}

/// The first attempt that succeeds, each begun when the one before has failed or after [`STAGGER`]; else how the one failed
/// that says most. `None` if there is none.
async fn race<Attempt>(mut waiting: impl ExactSizeIterator<Item = Attempt>) -> Option<Result<Connection, ConnectError>>
where
    Attempt: Future<Output = Result<Connection, ConnectError>> + Send + 'static,
{
    let mut attempts = JoinSet::new();
    let mut failure: Option<ConnectError> = None;
    loop {
        if let Some(attempt) = waiting.next() {
            attempts.spawn(attempt);
        }
        let ended = if waiting.len() > 0 {
            let Ok(ended) = tokio::time::timeout(STAGGER, attempts.join_next()).await else {
                continue;
            };
            ended
        } else {
            attempts.join_next().await
        };
        match ended {
            Some(Ok(Ok(connection))) => return Some(Ok(connection)),
            Some(Ok(Err(error))) => failure = Some(more_telling(failure, error)),
            // A panic in an attempt: the others go on.
            Some(Err(_)) => {}
            None => return failure.map(Err),
        }
    }
}

async fn resolve(to: &Address, patience: Duration) -> Result<Vec<SocketAddr>, ConnectError> {
    let failed = |source| ConnectError::Resolve { to: to.clone(), source };
    let lookup = tokio::net::lookup_host((to.host(), to.port()));
    let found = match tokio::time::timeout(patience, lookup).await {
        Ok(found) => found.map_err(failed)?,
        Err(_) => {
            return Err(failed(io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer")));
        }
    };
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in found {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has none")));
    }
    Ok(addresses)
}

/// Of two failures, the one from the machine that came nearer to answering.
fn more_telling(before: Option<ConnectError>, now: ConnectError) -> ConnectError {
    fn rank(error: &ConnectError) -> u8 {
        match error {
            ConnectError::Resolve { .. } | ConnectError::Socket { .. } | ConnectError::NoRoute { .. } => 0,
            ConnectError::NotListening { .. } => 1,
            ConnectError::Unreachable { .. } => 2,
            _ => 3,
        }
    }
    match before {
        Some(before) if rank(&before) >= rank(&now) => before,
        _ => now,
    }
}

impl Call {
    /// Every address of the name.
    async fn any_address(self) -> Result<Connection, ConnectError> {
        let addresses = resolve(&self.to, self.settings.handshake).await?;
        let raced = race(addresses.into_iter().map(|address| self.clone().attempt(address))).await;
        let seconds = self.settings.handshake.as_secs();
        raced.unwrap_or(Err(ConnectError::Unreachable { to: self.to, seconds }))
    }

    /// One address, within the handshake's deadline.
    async fn attempt(self, address: SocketAddr) -> Result<Connection, ConnectError> {
        let to = self.to.clone();
        let deadline = self.settings.handshake;
        let refused = async {
            match vigil::closed_port(address).await.kind() {
                io::ErrorKind::ConnectionRefused => Err(ConnectError::NotListening { to: to.clone() }),
                kind => Err(ConnectError::NoRoute { to: to.clone(), source: kind.into() }),
            }
        };
        let dialed = tokio::time::timeout(deadline, first_of(self.dial(address), refused)).await;
        let dialed = dialed.unwrap_or(Err(ConnectError::Unreachable { to, seconds: deadline.as_secs() }));
        if dialed.is_err() {
            self.from.renew(address);
        }
        dialed
    }

    async fn dial(&self, address: SocketAddr) -> Result<Connection, ConnectError> {
        let shown = Arc::new(OnceLock::new());
        let crypto = tls::client(&self.identity, self.purpose, self.expected, Arc::clone(&shown))?;
        let mut config = ClientConfig::new(crypto);
        config.transport_config(tuning::dialing(address.ip(), tuning::packets_to(address.ip()), &self.settings));

        let socket_failed = |source| ConnectError::Socket { to: self.to.clone(), source };
        let endpoint = self.from.endpoint(address).map_err(socket_failed)?;
        // The name is never sent nor checked (keys are), but rustls wants one.
        let connecting = endpoint.connect_with(config, address, "replica");
        let connecting = connecting.map_err(|e| self.explain(Closed::Broken(e.to_string()), &shown))?;
        let connection = connecting.await.map_err(|e| self.explain(e.into(), &shown))?;
        self.welcomed(&connection).await.map_err(|e| self.explain(e, &shown))?;
        let Some(key) = key_of(&connection) else {
            return Err(self.explain(Closed::Broken("the handshake left no key".to_owned()), &shown));
        };
        Ok(Connection::new(connection, key, self.purpose, self.settings))
    }

    /// Waits for the word that the other side knows our key.
    async fn welcomed(&self, connection: &quinn::Connection) -> Result<(), Closed> {
        let mut stream = connection.accept_uni().await?;
        match stream.read_to_end(1).await {
            Ok(bytes) if bytes == [WELCOME] => Ok(()),
            Err(quinn::ReadToEndError::Read(quinn::ReadError::ConnectionLost(e))) => Err(e.into()),
            _ => {
                connection.close(Code::Protocol.to_wire(), b"no welcome");
                Err(Closed::Broken("it did not say the word of welcome".to_owned()))
            }
        }
    }

    /// What the end of a handshake means to a person.
    fn explain(&self, why: Closed, shown: &OnceLock<PeerId>) -> ConnectError {
        /// `access_denied`: what our verifier of client keys sends.
        const ACCESS_DENIED: u8 = 49;
        /// `no_application_protocol` (RFC 7301).
        const NO_APPLICATION_PROTOCOL: u8 = 120;
        let to = self.to.clone();
        if let Some(found) = shown.get().copied().filter(|found| *found != self.expected) {
            return ConnectError::WrongKey { to, expected: self.expected, found };
        }
        match why {
            Closed::Tls { alert: ACCESS_DENIED, .. } | Closed::ByPeer { code: Code::UnknownKey, .. } => {
                match self.purpose {
                    Purpose::Session => ConnectError::UnknownKey { to },
                    Purpose::Pairing => ConnectError::NoInvitation { to },
                }
            }
            Closed::ByPeer { code: Code::NoInvitation, .. } => ConnectError::NoInvitation { to },
            Closed::ByPeer { code: Code::ShuttingDown, .. } | Closed::Refused => ConnectError::Overloaded { to },
            Closed::Tls { alert: NO_APPLICATION_PROTOCOL, .. } => ConnectError::Version { to },
            Closed::Vanished => ConnectError::Unreachable { to, seconds: self.settings.handshake.as_secs() },
            why => ConnectError::Closed { to, why },
        }
    }
}

/// The result of whichever future ends first; the other one is dropped.
async fn first_of<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(value),
        Poll::Pending => b.as_mut().poll(cx),
    })
    .await
}
