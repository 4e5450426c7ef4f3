//! Who asks, and what they may do.

use std::net::IpAddr;

use base::ErrorCode;

use crate::{OpError, Permission};

/// What a door knows of a caller before anybody checked it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Where the call came from; `None` inside the process.
    pub peer: Option<IpAddr>,
    /// The `Authorization` header or its like, unchecked.
    pub token: Option<String>,
}

/// Who asks, established.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// Under which limits are counted and the audit trail is written.
    pub name: String,
    /// The highest permission held; it includes the lower ones.
    pub permission: Permission,
}

/// Establishes who asks.
pub trait Authenticator: Send + Sync {
    /// # Errors
    /// `unauthenticated`, with what to do.
    fn authenticate(&self, credentials: &Credentials) -> Result<Principal, OpError>;
}

/// Whoever reaches the API over the loopback interface is the principal `local`, with every permission; everybody else
/// is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoopbackOnly;

impl Authenticator for LoopbackOnly {
    fn authenticate(&self, credentials: &Credentials) -> Result<Principal, OpError> {
        match credentials.peer {
            Some(peer) if !peer.to_canonical().is_loopback() => Err(OpError::new(
                ErrorCode::Unauthenticated,
                format!("calls from {peer} are not authenticated, so they are refused"),
            )
            .hint("call the API on the node itself, over the loopback interface (for example through ssh)")),
            _ => Ok(Principal { name: "local".into(), permission: Permission::Admin }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_local() {
        let from = |peer: &str| {
            LoopbackOnly.authenticate(&Credentials { peer: Some(peer.parse().unwrap()), ..Default::default() })
        };
        for peer in ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(from(peer).map(|p| p.name), Ok("local".into()), "{peer}");
        }
        for peer in ["10.0.0.1", "0.0.0.0", "fe80::1", "::ffff:10.0.0.1"] {
            assert_eq!(from(peer).map_err(|e| e.code), Err(ErrorCode::Unauthenticated), "{peer}");
        }
    }
}
