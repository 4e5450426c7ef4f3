//! The journal of a node: one write-ahead log for all its Raft groups, and checkpoint files.

mod api;
pub use api::*;

use base::{GroupId, Mono};

/// The journal of one node, without I/O.
#[derive(Debug)]
pub struct Journal {}

impl Journal {
    /// A journal that knows nothing yet; call [`Journal::start`].
    #[must_use]
    pub fn new(_config: JournalConfig) -> Self {
        Journal {}
    }
    /// Begins recovery. Ends with [`Output::Recovered`] or [`Output::Fatal`].
    pub fn start(&mut self) {}
    /// Queues a round. Several queued rounds may be written as one.
    pub fn append(&mut self, _round: Round) {}
    /// Writes a checkpoint file, then its position into the log. Also the birth of a replica (then synchronous state is
    /// empty). Ends with [`Output::CheckpointDone`].
    pub fn checkpoint(&mut self, _checkpoint: Checkpoint) {}
    /// Forgets a group. Ends with [`Output::Removed`].
    pub fn remove(&mut self, _group: GroupId) {}
    /// Reads entries `low..=high`, at most about `bytes_max` bytes but at least one entry.
    pub fn read(&mut self, _token: u64, _group: GroupId, _low: u64, _high: u64, _bytes_max: usize) {}
    /// Reads a part of the group's latest checkpoint, verified against its checksum.
    pub fn read_checkpoint(&mut self, _token: u64, _group: GroupId, _offset: u64, _len: usize) {}
    /// Hands in a completion.
    pub fn complete(&mut self, _op: OpId, _result: Result<DiskDone, DiskError>) {}
    /// Lets time pass: durable marks on idle, retries of a full disk.
    pub fn tick(&mut self, _now: Mono) {}
    /// The next output, if any. Call until `None` after every other call.
    pub fn poll(&mut self) -> Option<Output> {
        None
    }
    /// When the oldest round that is not durable was queued: a stuck disk shows here.
    #[must_use]
    pub fn oldest_pending_since(&self) -> Option<Mono> {
        None
    }
    /// The highest round number that is durable.
    #[must_use]
    pub fn durable_round(&self) -> u64 {
        0
    }
}
