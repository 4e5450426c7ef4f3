//! What a partition tells its readers.

use bytes::Bytes;

/// News of one partition on one node, in order. The first after a start has `reset`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Update {
    /// Forget everything known: the partition starts (again) from the log's beginning.
    pub reset: bool,
    /// `Some(leader epoch)` while this node leads and may serve reads; `None` otherwise.
    pub leader_epoch: Option<i32>,
    /// Offset after the last committed record.
    pub high_watermark: i64,
    /// First offset that can be read.
    pub log_start_offset: i64,
    /// Batches committed since the last update, in order.
    pub committed: Vec<CommittedBatch>,
}

/// One committed batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommittedBatch {
    /// Raft index of its entry.
    pub index: u64,
    pub base_offset: i64,
    pub last_offset: i64,
    /// Kafka's max timestamp of the batch, in milliseconds since 1970.
    pub max_timestamp: i64,
    pub leader_epoch: i32,
    /// As stored: what a consumer gets.
    pub data: Bytes,
}
