//! Who trusts whom: identities, invitations, and the one exchange that makes two machines known to each other.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fs::{StateDir, StateError};
use crate::options::DEFAULT_PORT;
use crate::transport::pairing::{self, PairError, Token};
use crate::transport::{
    Address, ConnectError, Connection, Identity, IdentityError, PeerId, Settings, StreamError, Trust,
};

/// How long an invitation is open, in seconds.
const INVITATION: u64 = 600;

/// Why identity or trust could not be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum PairingError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The key in it, or the lack of randomness.
    #[error("the identity in the state directory: {0}")]
    Identity(#[from] IdentityError),
    /// Not a token.
    #[error("{0}")]
    Token(String),
    /// The other side.
    #[error(transparent)]
    Pair(#[from] PairError),
}

/// The identity in a state directory, made at first use.
///
/// # Errors
/// [`PairingError`] if it cannot be read or made.
pub fn identity(state: &StateDir) -> Result<Identity, PairingError> {
    let mut generated = Ok(());
    let bytes = state.identity_key(|| match Identity::generate() {
        Ok((_, bytes)) => bytes,
        Err(error) => {
            generated = Err(error);
            Vec::new()
        }
    })?;
    generated?;
    Ok(Identity::from_bytes(&bytes)?)
}

/// The id of the identity in a state directory.
///
/// # Errors
/// [`PairingError`].
pub fn id(state_dir: &Path) -> Result<PeerId, PairingError> {
    Ok(identity(&StateDir::open(state_dir)?)?.id())
}

/// Opens an invitation for ten minutes, for one master; a daemon that runs sees it at once.
///
/// # Errors
/// [`PairingError`].
pub fn invite(state_dir: &Path) -> Result<Token, PairingError> {
    let state = StateDir::open(state_dir)?;
    let token = Token::generate(identity(&state)?.id())?;
    let now = now();
    state.add_invitation(&token.secret.digest(), now + INVITATION, now)?;
    Ok(token)
}

/// Redeems a token at a replica; from then on both sides know each other's keys. Returns the replica's id.
///
/// # Errors
/// [`PairingError`], which tells what to do next.
pub async fn pair(state_dir: &Path, host: &str, port: u16, token: &str) -> Result<PeerId, PairingError> {
    let state = StateDir::open(state_dir)?;
    let token: Token = token.trim().parse().map_err(|e: pairing::TokenError| PairingError::Token(e.to_string()))?;
    let address = Address::new(host, port);
    pairing::pair(&address, &identity(&state)?, &token, Settings::default()).await.map_err(|error| match error {
        // Nobody was paired yet: it is the token that names another machine, or another state directory of that one.
        PairError::Connect(ConnectError::WrongKey { to, expected, found }) => PairingError::Token(format!(
            "the token is of the identity {expected}, and {to} shows {found}: run `syncd invite` as the user and with the \
             --state-dir or --config of the daemon that listens there"
        )),
        error => PairingError::Pair(error),
    })?;
    state.remember(&address.to_string(), &token.replica.to_string())?;
    Ok(token.replica)
}

/// What a person has to do before a replica can be reached; `None` if it is paired with.
///
/// # Errors
/// [`PairingError`] if the state directory cannot be read.
pub fn unpaired(state_dir: &Path, host: &str, port: u16) -> Result<Option<String>, PairingError> {
    let address = Address::new(host, port);
    let known = StateDir::at(state_dir).known(&address.to_string())?;
    Ok(known.is_none().then(|| not_paired(&address)))
}

/// Says that an address is not paired with, and what to do.
pub(crate) fn not_paired(address: &Address) -> String {
    format!("not paired with {address}: {}", how_to_pair(address))
}

/// The command that pairs with an address, as a person types it.
fn how_to_pair(address: &Address) -> String {
    let port = if address.port() == DEFAULT_PORT { String::new() } else { format!(":{}", address.port()) };
    // An IPv6 address is typed in brackets.
    let host = if address.host().contains(':') { format!("[{}]", address.host()) } else { address.host().to_owned() };
    format!("on that host run `syncd invite`, then here `synccli pair {host}{port} TOKEN`")
}

/// Trust as a daemon's state directory has it, read anew for every client: what a command changes there counts at once.
pub(crate) struct StateTrust(StateDir);

impl StateTrust {
    pub(crate) fn new(state: StateDir) -> Self {
        Self(state)
    }

    /// Lets a client redeem an invitation.
    pub(crate) async fn serve_pairing(&self, connection: &Connection) -> Result<Option<PeerId>, StreamError> {
        pairing::serve(connection, |secret, peer| {
            let redeemed = self.0.consume_invitation(&secret.digest(), now());
            match redeemed
                .and_then(|open| if open { self.0.trust(&peer.to_string()).map(|()| true) } else { Ok(false) })
            {
                Ok(paired) => paired,
                Err(error) => {
                    tracing::error!(%error, "cannot pair");
                    false
                }
            }
        })
        .await
    }
}

impl Trust for StateTrust {
    fn accepts(&self, id: &PeerId) -> bool {
        self.0.is_trusted(&id.to_string()).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look up a master");
            false
        })
    }

    fn invitation_open(&self) -> bool {
        self.0.invitation_open(now()).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look up invitations");
            false
        })
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
