//! TLS 1.3 with raw public keys (RFC 7250) both ways: no certificate, no authority, no expiry, only pinned keys.
//!
//! Sessions are never resumed: a resumed handshake skips the check of the client's key, so a key that was taken off
//! the list would still get in.

use std::fmt;
use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::rustls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::verify_tls13_signature_with_raw_key;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::crypto::provider;
use super::identity::{Identity, PeerId, PublicKey};

/// What a connection is for. The protocol's version is part of the name that TLS negotiates (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Replication between machines that are paired.
    Session,
    /// One message that pairs two machines, while an invitation is open.
    Pairing,
}

impl Purpose {
    /// The ALPN name.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Session => b"synccli/1",
            Self::Pairing => b"synccli-pair/1",
        }
    }

    pub(super) fn from_alpn(name: &[u8]) -> Option<Self> {
        [Self::Session, Self::Pairing].into_iter().find(|p| p.alpn() == name)
    }
}

/// Whose keys a listener believes. Asked in every handshake, from the connection's own task: it may read a small file
/// but must not wait for a lock that is held during I/O.
pub trait Trust: Send + Sync {
    /// Whether a machine with this key may open sessions.
    fn accepts(&self, id: &PeerId) -> bool;
    /// Whether an invitation is open, so that an unknown key may come as far as showing its token.
    fn invitation_open(&self) -> bool;
}

/// Trusts one key and no invitation.
#[derive(Clone, Copy, Debug)]
pub struct Only(pub PeerId);

impl Trust for Only {
    fn accepts(&self, id: &PeerId) -> bool {
        *id == self.0
    }

    fn invitation_open(&self) -> bool {
        false
    }
}

/// Why no TLS configuration could be made; only a broken build can cause it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot set up TLS: {0}")]
pub struct SetupError(String);

impl From<Error> for SetupError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl From<NoInitialCipherSuite> for SetupError {
    fn from(error: NoInitialCipherSuite) -> Self {
        Self(error.to_string())
    }
}

/// The listening side: shows `identity`, asks `trust` about the client's key, speaks `protocols` (ALPN names).
pub(super) fn server(
    identity: &Identity,
    trust: Arc<dyn Trust>,
    protocols: &[&[u8]],
) -> Result<Arc<QuicServerConfig>, SetupError> {
    let resolver = AlwaysResolvesServerRawPublicKeys::new(identity.certified());
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(KnownClients { trust }))
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config)?))
}

/// The dialing side: shows `identity`, accepts the key `expected` and no other. The key that was shown is left in
/// `shown`.
pub(super) fn client(
    identity: &Identity,
    purpose: Purpose,
    expected: PeerId,
    shown: Arc<OnceLock<PeerId>>,
) -> Result<Arc<QuicClientConfig>, SetupError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedServer { expected, shown }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified())));
    config.alpn_protocols = vec![purpose.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(QuicClientConfig::try_from(config)?))
}

/// The peer's key as it came in the handshake.
fn key_of(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<PublicKey, Error> {
    if !intermediates.is_empty() {
        return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
    }
    PublicKey::from_spki(end_entity.as_ref()).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn verify_signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, dss, &provider().signature_verification_algorithms)
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
}

struct KnownClients {
    trust: Arc<dyn Trust>,
}

impl fmt::Debug for KnownClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownClients")
    }
}

impl ClientCertVerifier for KnownClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let id = key_of(end_entity, intermediates)?.id();
        // The purpose is not known here. An unknown key that comes in through an open invitation is held to pairing
        // right after the handshake, before it may open a stream.
        if self.trust.accepts(&id) || self.trust.invitation_open() {
            return Ok(ClientCertVerified::assertion());
        }
        tracing::info!(peer = %id, "refused an unknown key");
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct PinnedServer {
    expected: PeerId,
    shown: Arc<OnceLock<PeerId>>,
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let id = key_of(end_entity, intermediates)?.id();
        let _ = self.shown.set(id);
        if id == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
