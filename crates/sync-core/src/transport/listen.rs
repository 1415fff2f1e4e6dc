//! The side that is dialed: bounds before authentication, keys checked in the handshake, one word of welcome.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::rustls::pki_types::CertificateDer;
use quinn::{Endpoint, Incoming, ServerConfig};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::closed::{Closed, Code};
use super::connection::Connection;
use super::error::{AcceptError, BindError};
use super::identity::{Identity, PublicKey};
use super::runtime::Tokio;
use super::tls::{self, Purpose, Trust};
use super::tuning::{self, Settings};

/// Handshakes under way at once; more are refused before any cryptography.
const MAX_HANDSHAKES: usize = 64;
/// From this many on, a client must first prove that it receives at its address (RFC 9000, section 8.1.2).
const RETRY_FROM: usize = 16;
/// Connections at once.
const MAX_CONNECTIONS: usize = 256;
/// The byte that tells a client that it was let in: in TLS 1.3 the client believes so before the server has seen its
/// key.
pub(super) const WELCOME: u8 = 0x01;

/// A socket that is listened on.
pub struct Listener {
    endpoint: Endpoint,
    address: SocketAddr,
    server: ServerConfig,
    trust: Arc<dyn Trust>,
    settings: Settings,
    handshakes: Arc<Semaphore>,
}

impl Listener {
    /// Listens on `address`; port 0 takes a free one. Must be called within a tokio runtime.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        trust: Arc<dyn Trust>,
        settings: Settings,
    ) -> Result<Self, BindError> {
        let failed = |source| BindError::Address { address, source };
        let protocols = [Purpose::Session.alpn(), Purpose::Pairing.alpn()];
        let mut server = ServerConfig::with_crypto(tls::server(identity, Arc::clone(&trust), &protocols)?);
        server
            .transport_config(tuning::listening(address.ip(), tuning::USUAL_MTU, &settings))
            .max_incoming(MAX_HANDSHAKES * 2)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(4 << 20);
        let socket = tuning::socket(address).map_err(failed)?;
        let config = tuning::endpoint(Some(identity));
        let endpoint = Endpoint::new(config, Some(server.clone()), socket, Arc::new(Tokio)).map_err(failed)?;
        let address = endpoint.local_addr().map_err(failed)?;
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        Ok(Self { endpoint, address, server, trust, settings, handshakes })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next client that knocks, within the bounds; `None` after [`Listener::close`]. Cheap: the handshake is done by
    /// [`Arrival::establish`], in a task of its own, so that a slow client delays no other. Cancel safe.
    pub async fn accept(&self) -> Option<Arrival> {
        loop {
            let incoming = self.endpoint.accept().await?;
            if self.endpoint.open_connections() >= MAX_CONNECTIONS {
                incoming.refuse();
                continue;
            }
            let Ok(permit) = Arc::clone(&self.handshakes).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let busy = MAX_HANDSHAKES - self.handshakes.available_permits();
            if busy > RETRY_FROM && !incoming.remote_address_validated() && incoming.may_retry() {
                // A failed retry only means that this attempt is dropped; the client sends again.
                let _ = incoming.retry();
                continue;
            }
            let mut server = self.server.clone();
            let peer = incoming.remote_address().ip();
            server.transport_config(tuning::listening(peer, tuning::packets_to(peer), &self.settings));
            return Some(Arrival {
                from: incoming.remote_address(),
                incoming,
                server: Arc::new(server),
                trust: Arc::clone(&self.trust),
                settings: self.settings,
                _permit: permit,
            });
        }
    }

    /// Takes no more clients, closes every connection with [`Code::ShuttingDown`], and waits until the peers were told,
    /// at most a second.
    pub async fn close(&self) {
        self.endpoint.close(Code::ShuttingDown.to_wire(), b"");
        // Only a politeness: a peer that misses it notices by its idle timeout.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }

    pub(super) fn take_no_more(&self) {
        self.endpoint.set_server_config(None);
    }
}

/// A client that knocked.
pub struct Arrival {
    from: SocketAddr,
    incoming: Incoming,
    server: Arc<ServerConfig>,
    trust: Arc<dyn Trust>,
    settings: Settings,
    _permit: OwnedSemaphorePermit,
}

impl Arrival {
    /// Its address, not yet proven.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The handshake: the client proves its key, and is let in for its purpose or told why not.
    pub async fn establish(self) -> Result<Connection, AcceptError> {
        let (from, deadline) = (self.from, self.settings.handshake);
        tokio::time::timeout(deadline, self.handshake()).await.map_err(|_| AcceptError::Deadline { from })?
    }

    async fn handshake(self) -> Result<Connection, AcceptError> {
        let from = self.from;
        let failed = |why: quinn::ConnectionError| AcceptError::Handshake { from, why: why.into() };
        let connecting = self.incoming.accept_with(self.server).map_err(failed)?;
        let connection = connecting.await.map_err(failed)?;
        let purpose = purpose_of(&connection);
        let key = key_of(&connection);
        let (Some(purpose), Some(key)) = (purpose, key) else {
            let why = Closed::Broken("the handshake left no key or protocol".to_owned());
            return Err(AcceptError::Handshake { from, why });
        };
        let connection = Connection::new(connection, key, purpose, self.settings);
        let peer = key.id();
        if purpose == Purpose::Session && !self.trust.accepts(&peer) {
            connection.close(Code::UnknownKey, "").await;
            return Err(AcceptError::UnknownKey { from, peer });
        }
        if purpose == Purpose::Pairing && !self.trust.invitation_open() {
            connection.close(Code::NoInvitation, "").await;
            return Err(AcceptError::NoInvitation { from });
        }
        let mut stream = connection.raw().open_uni().await.map_err(failed)?;
        let lost = |_| AcceptError::Handshake { from, why: connection.close_reason().unwrap_or(Closed::Here) };
        stream.write_all(&[WELCOME]).await.map_err(lost)?;
        // The stream's drop ends it in order.
        drop(stream);
        Ok(connection)
    }
}

/// The negotiated protocol.
pub(super) fn purpose_of(connection: &quinn::Connection) -> Option<Purpose> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    Purpose::from_alpn(&data.protocol?)
}

/// The key that the peer proved.
pub(super) fn key_of(connection: &quinn::Connection) -> Option<PublicKey> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    PublicKey::from_spki(chain.first()?.as_ref())
}
