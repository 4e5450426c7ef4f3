//! Error codes: the stable, documented names under which every door reports a failure.

use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal $text:literal),* $(,)?) => {
        /// What went wrong, in one word that programs can match on. The text is stable across releases.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, minicbor::Encode, minicbor::Decode, minicbor::CborLen)]
        #[cbor(index_only)]
        pub enum ErrorCode { $($(#[$doc])* #[n($number)] $name),* }

        impl ErrorCode {
            /// Every code, in order.
            pub const ALL: &[ErrorCode] = &[$(ErrorCode::$name),*];

            /// The stable text: lower case, words joined by `_`.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$name => $text),* }
            }
        }
    };
}

codes! {
    /// A bug: a state that the code says cannot be. Never the caller's fault.
    Internal = 0 "internal",
    /// The request itself is wrong; sending it again does not help.
    InvalidArgument = 1 "invalid_argument",
    /// The thing named does not exist.
    NotFound = 2 "not_found",
    /// A thing of that name exists already.
    AlreadyExists = 3 "already_exists",
    /// The request cannot be carried out in the present state of the thing it names.
    FailedPrecondition = 4 "failed_precondition",
    /// Who asks could not be established.
    Unauthenticated = 5 "unauthenticated",
    /// Who asks may not do this.
    PermissionDenied = 6 "permission_denied",
    /// This node does not lead the group; the answer names who does, if known.
    NotLeader = 7 "not_leader",
    /// The group has no leader that this node knows of; the deadline passed while waiting for one. Nothing was done.
    NoLeader = 8 "no_leader",
    /// A queue is full or a rate is exceeded: nothing was done, try again later.
    Busy = 9 "busy",
    /// The deadline passed. The outcome of a write is then unknown unless it carries a session and sequence.
    DeadlineExceeded = 10 "deadline_exceeded",
    /// The disk is full or the reserve is reached: writes are refused, reads go on.
    DiskFull = 11 "disk_full",
    /// A node that is needed does not answer.
    Unreachable = 12 "unreachable",
    /// The session is unknown or has expired: nothing was applied.
    UnknownSession = 13 "unknown_session",
    /// The data is damaged (checksum, length, order).
    Corrupt = 14 "corrupt",
    /// An offset outside the partition's log.
    OffsetOutOfRange = 15 "offset_out_of_range",
    /// The epoch in the request is older than the current one.
    StaleEpoch = 16 "stale_epoch",
    /// A message or request is larger than allowed.
    TooLarge = 17 "too_large",
    /// The other side speaks a version this one does not.
    UnsupportedVersion = 18 "unsupported_version",
    /// The node is stopping.
    ShuttingDown = 19 "shutting_down",
    /// Leadership changed while the request was under way; its outcome is unknown.
    LeaderChanged = 20 "leader_changed",
    /// A producer's sequence does not follow on what the partition has: something before it is missing.
    OutOfOrder = 21 "out_of_order",
    /// Who asks was a member of the cluster and is none any more.
    Expelled = 22 "expelled",
    /// The history asked for is not kept any more: begin again from the present state.
    Compacted = 23 "compacted",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unique_snake_case() {
        let texts: std::collections::BTreeSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        assert!(texts.iter().all(|t| t.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
    }
}
