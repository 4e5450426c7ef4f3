//! Join tokens: who may become a member.

use base::limits::JOIN_TOKENS_MAX;
use base::simulation::{Plant, planted};
use base::{ErrorCode, Wall};
use sha2::{Digest, Sha256};

use crate::apply::{Context, refuse};
use crate::{CommandResult, Metadata, TokenRecord};

/// What the cluster keeps of a token's secret. The secret has 256 random bits, so one round of SHA-256 is enough.
#[must_use]
pub fn token_hash(secret: &[u8; 32]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

impl Metadata {
    pub(crate) fn create_token(&mut self, context: Context, hash: [u8; 32], expires: Wall, uses: u32) -> CommandResult {
        let dead: Vec<_> = self
            .tokens
            .iter()
            .filter(|(_, t)| t.expires < context.now || t.uses_left == 0)
            .map(|(id, _)| *id)
            .collect();
        // Spent tokens are kept so that their use is told apart from a foreign token, until there are too many.
        if self.tokens.len() >= JOIN_TOKENS_MAX {
            for id in &dead {
                self.tokens.remove(id);
            }
        }
        if self.tokens.len() >= JOIN_TOKENS_MAX {
            return refuse(ErrorCode::Busy, format!("{JOIN_TOKENS_MAX} join tokens are outstanding: revoke some"));
        }
        if uses == 0 {
            return refuse(ErrorCode::InvalidArgument, "a token must be good for at least one use");
        }
        self.next.token += 1;
        let id = self.next.token;
        let record = TokenRecord { id, secret_hash: hash, expires, uses_left: uses, created: context.now };
        self.tokens.insert(id, record);
        CommandResult::TokenCreated { token_id: id }
    }

    pub(crate) fn revoke_token(&mut self, id: u64) -> CommandResult {
        match self.tokens.remove(&id) {
            Some(_) => CommandResult::Done,
            None => refuse(ErrorCode::NotFound, format!("there is no join token {id}")),
        }
    }

    /// Checks a token and takes one use of it.
    pub(crate) fn use_token(&mut self, now: Wall, id: u64, secret: &[u8; 32]) -> Result<(), CommandResult> {
        let deny = |message: String| Err(refuse(ErrorCode::PermissionDenied, message));
        let again = "make a new one with `muster token create`";
        let hash = token_hash(secret);
        match self.tokens.get_mut(&id) {
            Some(token) if token.secret_hash != hash => deny(format!("join token {id} has another secret")),
            Some(token) if token.uses_left == 0 => deny(format!("join token {id} was used already; {again}")),
            Some(token) if token.expires < now && !planted(Plant::ExpiredTokensTaken) => {
                deny(format!("join token {id} has expired; {again}"))
            }
            Some(token) => {
                token.uses_left -= 1;
                Ok(())
            }
            None => deny(format!("join token {id} is unknown here or was revoked; {again}")),
        }
    }
}
