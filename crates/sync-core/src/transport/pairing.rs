//! How two machines come to know each other: a token, printed on one and typed on the other.
//!
//! The token carries the replica's id, so the replica is authenticated before the secret is sent to it, and a secret
//! that works once, so the replica knows that this client's key belongs to the person who has the token.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE32_NOPAD_NOCASE;

use super::address::Address;
use super::closed::Code;
use super::connection::Connection;
use super::crypto;
use super::dial::connect;
use super::error::{ConnectError, StreamError};
use super::identity::{Identity, IdentityError, PeerId};
use super::tls::Purpose;
use super::tuning::Settings;
use crate::hash::Digest;

/// A frame with the secret, from the client.
const REDEEM: u16 = 1;
/// A frame with one byte, from the server: 1 paired, 0 refused.
const ANSWER: u16 = 2;
const VERSION: u8 = 1;
/// Neither message is longer.
const MAX_BODY: usize = 64;
/// For the whole exchange after the handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// The part of a token that only the invited person has: 128 random bits. Never printed but as part of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; 16]);

impl Secret {
    /// What a replica keeps of it: enough to recognise the secret, not enough to make the token.
    pub fn digest(&self) -> Digest {
        Digest(blake3::derive_key("synccli 1 pairing secret", &self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What `syncd invite` prints: `sync1-` and 84 characters of base32, the last of them a checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The replica that invites.
    pub replica: PeerId,
    /// What it will recognise.
    pub secret: Secret,
}

impl Token {
    const PREFIX: &'static str = "sync1-";
    const CHECKSUM: usize = 4;

    /// A new token of `replica`, with a random secret.
    pub fn generate(replica: PeerId) -> Result<Self, IdentityError> {
        let mut secret = [0; 16];
        crypto::random(&mut secret).map_err(|()| IdentityError::NoRandomness)?;
        Ok(Self { replica, secret: Secret(secret) })
    }

    fn payload(&self) -> [u8; 48] {
        let mut payload = [0; 48];
        let (id, secret) = payload.split_at_mut(32);
        id.copy_from_slice(&self.replica.0);
        secret.copy_from_slice(&self.secret.0);
        payload
    }
}

fn checksum(payload: &[u8]) -> [u8; Token::CHECKSUM] {
    let [a, b, c, d, ..] = blake3::derive_key("synccli 1 token checksum", payload);
    [a, b, c, d]
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = self.payload();
        let bytes = [&payload[..], &checksum(&payload)].concat();
        write!(f, "{}{}", Self::PREFIX, BASE32_NOPAD_NOCASE.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let body = text.strip_prefix(Self::PREFIX).ok_or(TokenError::NoToken)?;
        if body.len() > 128 {
            return Err(TokenError::Damaged);
        }
        let bytes = BASE32_NOPAD_NOCASE.decode(body.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let bytes: [u8; 48 + Self::CHECKSUM] = bytes.try_into().map_err(|_| TokenError::Damaged)?;
        let (payload, sum) = bytes.split_at(48);
        if checksum(payload) != sum {
            return Err(TokenError::Damaged);
        }
        let (mut id, mut secret) = ([0; 32], [0; 16]);
        id.copy_from_slice(&payload[..32]);
        secret.copy_from_slice(&payload[32..]);
        Ok(Self { replica: PeerId(id), secret: Secret(secret) })
    }
}

/// A text that is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else.
    #[error("not a token: it begins with `sync1-`; run `syncd invite` on the replica and use the line it prints")]
    NoToken,
    /// A token with something missing or mistyped.
    #[error("the token is damaged or incomplete; copy the whole line that `syncd invite` printed")]
    Damaged,
}

/// Why two machines are not paired.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The replica does not take the token.
    #[error(
        "{to} does not take this token: it was used already, or is older than 10 minutes; run `syncd invite` again"
    )]
    Refused {
        /// What was dialed.
        to: Address,
    },
    /// The connection failed meanwhile; whether the replica knows us now is not known.
    #[error("pairing with {to} was cut off: {why}; run `syncd invite` there and pair again")]
    Cut {
        /// What was dialed.
        to: Address,
        /// What happened.
        why: StreamError,
    },
    /// The replica did not answer.
    #[error("{to} did not answer to the token in time; run `syncd invite` there and pair again")]
    Deadline {
        /// What was dialed.
        to: Address,
    },
}

/// Redeems `token` at `to`. Afterwards the replica knows `identity`; the caller keeps `token.replica` for `to`.
pub async fn pair(to: &Address, identity: &Identity, token: &Token, settings: Settings) -> Result<(), PairError> {
    let connection = connect(to, identity, token.replica, Purpose::Pairing, settings).await?;
    let answered = tokio::time::timeout(PATIENCE, redeem(&connection, &token.secret)).await;
    match answered {
        Err(_) => Err(PairError::Deadline { to: to.clone() }),
        Ok(Err(why)) => Err(PairError::Cut { to: to.clone(), why }),
        Ok(Ok(paired)) => {
            connection.close(Code::Done, "").await;
            if paired { Ok(()) } else { Err(PairError::Refused { to: to.clone() }) }
        }
    }
}

async fn redeem(connection: &Connection, secret: &Secret) -> Result<bool, StreamError> {
    let (mut writer, mut reader) = connection.open_bi().await?;
    writer.send(REDEEM, VERSION, Bytes::copy_from_slice(&secret.0)).await?;
    writer.finish()?;
    let answer = reader.next(MAX_BODY).await?.ok_or(StreamError::Truncated)?;
    Ok(answer.kind == ANSWER && answer.body.first() == Some(&1))
}

/// The listening side, for a connection whose purpose is [`Purpose::Pairing`]: reads the one message and asks `accept`,
/// which uses the secret up, remembers the peer, and says whether it did. Returns the peer that is paired now.
pub async fn serve(
    connection: &Connection,
    accept: impl FnOnce(&Secret, &PeerId) -> bool,
) -> Result<Option<PeerId>, StreamError> {
    let served = tokio::time::timeout(PATIENCE, answer(connection, accept)).await;
    match served {
        Ok(Ok(paired)) => {
            // The client closes when it has heard the answer; that it did not is its loss alone.
            let _ = connection.finish(PATIENCE).await;
            Ok(paired.then(|| connection.peer()))
        }
        Ok(Err(error)) => {
            connection.close(Code::Protocol, "one message with a secret was expected").await;
            Err(error)
        }
        Err(_) => {
            connection.close(Code::Cancelled, "no secret came in time").await;
            Err(StreamError::Truncated)
        }
    }
}

async fn answer(connection: &Connection, accept: impl FnOnce(&Secret, &PeerId) -> bool) -> Result<bool, StreamError> {
    let (mut writer, mut reader) = connection.accept_bi().await?;
    let message = reader.next(MAX_BODY).await?.ok_or(StreamError::Truncated)?;
    let secret = <[u8; 16]>::try_from(&message.body[..]).map_err(|_| StreamError::Truncated)?;
    let paired = message.kind == REDEEM && accept(&Secret(secret), &connection.peer());
    writer.send(ANSWER, VERSION, Bytes::from(vec![u8::from(paired)])).await?;
    writer.finish()?;
    Ok(paired)
}
