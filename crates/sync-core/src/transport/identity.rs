//! Who a machine is: an Ed25519 key made once, and the id that is the BLAKE3 hash of its public half.
//!
//! Not for keeping the key: its bytes come from and go to the state directory through the caller.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use data_encoding::{BASE32_NOPAD_NOCASE, BASE64};
use quinn::rustls;
use rustls::crypto::aws_lc_rs::sign::any_eddsa_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::crypto;

/// What precedes the 32 bytes of an Ed25519 private key in PKCS #8 version 1 (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// What precedes the 32 bytes of an Ed25519 public key in a SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A machine's private key, ready for handshakes. Cheap to clone; the key itself is never printed.
#[derive(Clone)]
pub struct Identity {
    certified: Arc<CertifiedKey>,
    public: PublicKey,
    /// Derived from the private key, so that a restarted daemon still recognises the connections of the one before it
    /// and can tell their peers at once that they are gone.
    reset: [u8; 32],
}

impl Identity {
    /// A new identity, and the bytes to keep: the private key as PEM text (PKCS #8), which other tools read too.
    pub fn generate() -> Result<(Self, Vec<u8>), IdentityError> {
        let mut seed = [0_u8; 32];
        crypto::random(&mut seed).map_err(|()| IdentityError::NoRandomness)?;
        let mut der = PKCS8_PREFIX.to_vec();
        der.extend_from_slice(&seed);
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(&der));
        Ok((Self::from_bytes(pem.as_bytes())?, pem.into_bytes()))
    }

    /// The identity that was kept. `bytes` are those of [`Identity::generate`]; any Ed25519 key in PEM will do.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(bytes).map_err(|e| IdentityError::NotPem(e.to_string()))?;
        let signing = any_eddsa_type(&der).map_err(|_| IdentityError::NotEd25519)?;
        let spki = signing.public_key().ok_or(IdentityError::NotEd25519)?;
        let public = PublicKey::from_spki(spki.as_ref()).ok_or(IdentityError::NotEd25519)?;
        let certificate = CertificateDer::from(spki.as_ref().to_vec());
        let certified = Arc::new(CertifiedKey::new(vec![certificate], signing));
        let reset = blake3::derive_key("synccli 1 stateless reset", der.secret_pkcs8_der());
        Ok(Self { certified, public, reset })
    }

    /// The id others pin.
    pub fn id(&self) -> PeerId {
        self.public.id()
    }

    pub(super) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    pub(super) fn reset_key(&self) -> [u8; 32] {
        self.reset
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.id())
    }
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key in a SubjectPublicKeyInfo; `None` unless it is the one DER form of an Ed25519 key, so that every key
    /// has exactly one id.
    pub fn from_spki(spki: &[u8]) -> Option<Self> {
        let key = spki.strip_prefix(&SPKI_PREFIX)?;
        Some(Self(key.try_into().ok()?))
    }

    /// The SubjectPublicKeyInfo (RFC 8410) of the key.
    pub fn to_spki(&self) -> Vec<u8> {
        [&SPKI_PREFIX[..], &self.0].concat()
    }

    /// BLAKE3 of the SubjectPublicKeyInfo.
    pub fn id(&self) -> PeerId {
        PeerId(*blake3::hash(&self.to_spki()).as_bytes())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// The name of a machine: the BLAKE3 hash of its public key's SubjectPublicKeyInfo.
///
/// As text: 52 characters of lower-case base32 in 13 groups of four; read back in either case, with or without the
/// groups.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = BASE32_NOPAD_NOCASE.encode(&self.0).to_ascii_lowercase();
        for (at, c) in text.chars().enumerate() {
            if at > 0 && at % 4 == 0 {
                f.write_str("-")?;
            }
            write!(f, "{c}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PeerId {
    type Err = PeerIdError;

    fn from_str(text: &str) -> Result<Self, PeerIdError> {
        // Bounded before anything is copied: the longest form has 64 characters.
        if text.len() > 80 {
            return Err(PeerIdError);
        }
        let plain: String = text.chars().filter(|c| *c != '-').collect();
        let bytes = BASE32_NOPAD_NOCASE.decode(plain.as_bytes()).map_err(|_| PeerIdError)?;
        Ok(Self(bytes.try_into().map_err(|_| PeerIdError)?))
    }
}

/// A text that is no [`PeerId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an identity: 52 letters and digits are expected, as `syncd id` prints them")]
pub struct PeerIdError;

/// Why there is no usable identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The file holds something else.
    #[error(
        "the identity key is no PEM private key ({0}); restore it from a backup, or remove it and pair this machine again"
    )]
    NotPem(String),
    /// The file holds another kind of key.
    #[error("the identity key is no Ed25519 key; restore it from a backup, or remove it and pair this machine again")]
    NotEd25519,
    /// The kernel gave no random bytes.
    #[error("cannot make an identity key: the system gives no random bytes")]
    NoRandomness,
}
