//! Join tokens: one line of text that a new node needs to find and enter a cluster.
//!
//! `muster1_` + base64url( CBOR + CRC-32C ): the checksum tells a mistyped token from a foreign one.

use std::fmt;
use std::str::FromStr;

use base::{ClusterId, EndpointId, Incarnation, RecoveryId};
use data_encoding::BASE64URL_NOPAD;
use minicbor::{Decode, Encode};

const PREFIX: &str = "muster1_";

/// What a join token says.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct JoinToken {
    #[n(0)]
    pub cluster: ClusterId,
    /// The token's public name, under which it is listed and revoked.
    #[n(1)]
    pub id: u64,
    /// 32 random bytes; the cluster keeps only their hash.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// Members to call, in order.
    #[n(3)]
    pub seeds: Vec<TokenSeed>,
    /// The last recovery of the cluster, if there was one.
    #[n(4)]
    pub recovery: Option<TokenRecovery>,
}

/// Which of several clusters of the same name a token is for: one that goes on after a lost majority.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct TokenRecovery {
    /// Of the cluster, since then.
    #[n(0)]
    pub incarnation: Incarnation,
    #[n(1)]
    pub id: RecoveryId,
}

/// One member that a token's holder may call.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct TokenSeed {
    #[n(0)]
    pub endpoint: EndpointId,
    /// `ip:port`, UDP.
    #[n(1)]
    pub direct: Vec<String>,
    #[n(2)]
    pub relay_url: Option<String>,
}

/// A text that is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Something else altogether.
    #[error("not a muster join token: it must start with \"{PREFIX}\"; make one with `muster token create`")]
    Prefix,
    /// Cut short or mistyped.
    #[error("the join token is damaged (cut short or mistyped); copy it again, whole")]
    Damaged,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("cluster", &self.cluster)
            .field("id", &self.id)
            .field("seeds", &self.seeds)
            .field("recovery", &self.recovery)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = crate::encode(self).to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (value, crc) = bytes.split_last_chunk::<4>().ok_or(TokenError::Damaged)?;
        if crc32c::crc32c(value) != u32::from_le_bytes(*crc) {
            return Err(TokenError::Damaged);
        }
        crate::decode(value).map_err(|_| TokenError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips_and_every_flipped_character_is_noticed() {
        let token = JoinToken {
            cluster: ClusterId([7; 16]),
            id: 3,
            secret: [9; 32],
            seeds: vec![TokenSeed {
                endpoint: EndpointId([1; 32]),
                direct: vec!["127.0.0.1:7401".into()],
                relay_url: None,
            }],
            recovery: Some(TokenRecovery { incarnation: Incarnation(1), id: RecoveryId([5; 16]) }),
        };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("secret"), "secrets are not printed");
        for at in PREFIX.len()..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = String::from_utf8(bad).expect("ascii");
            assert_eq!(bad.parse::<JoinToken>(), Err(TokenError::Damaged), "position {at}");
        }
        assert_eq!("hello".parse::<JoinToken>(), Err(TokenError::Prefix));
    }
}
