//! Leases: times to live that keys are bound to.

pub(crate) mod grant;
pub(crate) mod keep;
pub(crate) mod list;
pub(crate) mod revoke;

use base::{ErrorCode, GroupId, LeaseId};
use engine::{Reply, Request, Target};
use ops::{Call, OpError};

use crate::Ports;
use crate::common::{failure, unexpected};

/// Renews a lease; it lives for so many milliseconds from when this was called.
pub(crate) async fn renew(call: &Call<Ports>, lease: LeaseId, deadline: base::Mono) -> Result<u64, OpError> {
    let asked = call.context.core.request(Target::Leader(GroupId::META), deadline, Request::KeepLease { lease });
    match asked.await.map_err(failure)? {
        Reply::LeaseKept { ttl_ms } => Ok(ttl_ms),
        _ => Err(unexpected()),
    }
}

/// What renewing may fail with.
pub(crate) const KEEP_ERRORS: &[ErrorCode] = &[
    ErrorCode::NotFound,
    ErrorCode::NoLeader,
    ErrorCode::NotLeader,
    ErrorCode::LeaderChanged,
    ErrorCode::Unreachable,
    ErrorCode::ShuttingDown,
];
