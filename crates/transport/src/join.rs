//! Asking for membership: each seed of the token is called in turn until one decides.

use std::sync::Arc;
use std::time::Duration;

use base::ErrorCode;
use base::limits::{JOIN_ANSWER_BYTES_MAX, JOIN_DEADLINE};
use wire::{Hello, HelloAck, HelloPurpose, JoinAccepted, JoinRequest, PROTOCOL_VERSION, Refusal, TokenSeed};

use crate::close;
use crate::dial::{DialError, connect, endpoint_addr, say_hello};
use crate::error::{JoinError, SeedFailure};
use crate::transport::Shared;

/// Beyond the cluster's own deadline, for the way there and back.
const MARGIN: Duration = Duration::from_secs(2);

/// Calls the seeds in order.
pub async fn join(shared: Arc<Shared>, seeds: Vec<TokenSeed>, request: JoinRequest) -> Result<JoinAccepted, JoinError> {
    if seeds.is_empty() {
        return Err(JoinError::NoSeeds);
    }
    let versions = request.member.versions;
    let hello = Hello { protocol: PROTOCOL_VERSION, purpose: HelloPurpose::Join(Box::new(request)), versions };
    let mut failures = Vec::new();
    for seed in seeds {
        let reason = match ask(&shared, &seed, &hello).await {
            Ok(accepted) => return Ok(accepted),
            Err(DialError::Refused(refusal)) if is_final(refusal.code) => {
                let address = seed.direct.join(", ");
                tracing::warn!(address, code = %refusal.code, reason = refusal.reason, "the join was refused");
                return Err(JoinError::Refused { endpoint: seed.endpoint, address, refusal });
            }
            Err(error) => error.to_string(),
        };
        tracing::warn!(endpoint = %seed.endpoint, addresses = seed.direct.join(", "), reason, "a seed cannot take this node in");
        failures.push(SeedFailure { endpoint: seed.endpoint, addresses: seed.direct, reason });
    }
    Err(JoinError::Unreachable(failures))
}

async fn ask(shared: &Shared, seed: &TokenSeed, hello: &Hello) -> Result<JoinAccepted, DialError> {
    let addr = endpoint_addr(seed.endpoint, &seed.direct, seed.relay_url.as_deref())?;
    let conn = connect(&shared.endpoint, addr).await?;
    let wait = Duration::from_millis(JOIN_DEADLINE.0) + MARGIN;
    let answer = say_hello(&conn, hello, JOIN_ANSWER_BYTES_MAX, wait).await;
    close::close(&conn, close::GOODBYE, "understood");
    match answer? {
        HelloAck::Joined(accepted) => Ok(*accepted),
        HelloAck::Refused(refusal) => Err(DialError::Refused(refusal)),
        HelloAck::Welcome { .. } => {
            Err(DialError::Refused(Refusal::new(ErrorCode::Internal, "it welcomed a joiner as a member")))
        }
    }
}

/// Whether another member would say the same. What depends on this one member, or on the moment, is worth a try
/// elsewhere.
fn is_final(code: ErrorCode) -> bool {
    !matches!(
        code,
        ErrorCode::Busy
            | ErrorCode::NotLeader
            | ErrorCode::NoLeader
            | ErrorCode::LeaderChanged
            | ErrorCode::DeadlineExceeded
            | ErrorCode::Unreachable
            | ErrorCode::ShuttingDown
            | ErrorCode::FailedPrecondition
            | ErrorCode::DiskFull
            | ErrorCode::Internal
    )
}
