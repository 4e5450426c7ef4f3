//! Payloads of journal records: what the write-ahead log keeps beside entries, whose data stands there as it is.
//! How records lie in a segment (lengths, checksums, sequence numbers) is the `journal` crate's matter.

use base::ReplicaId;
use minicbor::{Decode, Encode};

use crate::raft::{HardState, SnapshotMeta};

/// One replica as of the opening of a segment, so that older segments can be reused without forgetting a vote.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ReplicaState {
    #[n(0)]
    pub replica: ReplicaId,
    #[n(1)]
    pub hard_state: HardState,
    /// The latest durable checkpoint.
    #[n(2)]
    pub checkpoint: SnapshotMeta,
    /// Bytes of its file; 0: it has none (an empty state).
    #[n(3)]
    pub checkpoint_bytes: u64,
    /// CRC-32C of the file.
    #[n(4)]
    pub checkpoint_crc: u32,
    /// First index of the log that stays readable.
    #[n(5)]
    pub first_index: u64,
    /// Last index of the log.
    #[n(6)]
    pub last_index: u64,
}

/// A checkpoint came into force.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CheckpointPosition {
    #[n(0)]
    pub replica: ReplicaId,
    /// Index, term and membership that it covers.
    #[n(1)]
    pub meta: SnapshotMeta,
    /// Bytes of its file; 0: it has none (an empty state).
    #[n(2)]
    pub bytes: u64,
    /// CRC-32C of the file.
    #[n(3)]
    pub crc: u32,
    /// Whether the log is empty behind it, or goes on.
    #[n(4)]
    pub install: bool,
    /// Without `install`: the first index that stays readable.
    #[n(5)]
    pub first_index: u64,
    /// In force from the same moment, if it changed.
    #[n(6)]
    pub hard_state: Option<HardState>,
}
