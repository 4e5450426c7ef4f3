//! Why a request to [`Vmm`](crate::Vmm) was refused, and why an image could not be made.

use base::{ErrorCode, VmEpoch, VmId, VmIncarnation};

/// A request that was refused: nothing was begun.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A request of an epoch (or a start of an incarnation) below the one that this host knows.
    #[error(
        "VM {id} is at epoch {epoch}, incarnation {incarnation} here: a request of epoch {asked_epoch}, incarnation \
         {asked_incarnation} is stale"
    )]
    Stale {
        /// The VM.
        id: VmId,
        /// The epoch known.
        epoch: VmEpoch,
        /// The incarnation known.
        incarnation: VmIncarnation,
        /// The epoch asked for.
        asked_epoch: VmEpoch,
        /// The incarnation asked for.
        asked_incarnation: VmIncarnation,
    },
    /// A start that was begun before and has ended: no incarnation runs twice.
    #[error("VM {0} has run incarnation {1} already: start the next one")]
    AlreadyRan(VmId, VmIncarnation),
    /// Nothing of this VM is on this host.
    #[error("VM {0} is not on this host")]
    NotFound(VmId),
    /// The request itself is wrong.
    #[error("VM {id} cannot be started: {reason}")]
    Invalid {
        /// The VM.
        id: VmId,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many requests for this VM are under way.
    #[error("VM {0} has too many requests under way: try again")]
    Busy(VmId),
    /// [`Vmm::shutdown`](crate::Vmm::shutdown) has begun.
    #[error("this node is stopping: VM {0} is left alone")]
    ShuttingDown(VmId),
    /// A file or directory of the VMs cannot be used.
    #[error("cannot use {path}")]
    Io {
        /// What cannot be used.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl VmmError {
    /// The code under which doors report this.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            VmmError::Stale { .. } => ErrorCode::StaleEpoch,
            VmmError::AlreadyRan(..) => ErrorCode::FailedPrecondition,
            VmmError::NotFound(_) => ErrorCode::NotFound,
            VmmError::Invalid { .. } => ErrorCode::InvalidArgument,
            VmmError::Busy(_) => ErrorCode::Busy,
            VmmError::ShuttingDown(_) => ErrorCode::ShuttingDown,
            VmmError::Io { .. } => ErrorCode::Internal,
        }
    }
}

/// An error and all that caused it, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
