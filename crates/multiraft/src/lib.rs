//! Many Raft groups in one object without I/O, over the `raft` crate.

mod api;
pub use api::*;

use base::{GroupId, Now, ReplicaId};
use bytes::Bytes;
use wire::{Entry, MembershipChange, RaftMessage};

/// All groups of which one node holds a replica.
pub struct MultiRaft {}

impl MultiRaft {
    #[must_use]
    pub fn new(_config: MultiRaftConfig) -> Self {
        MultiRaft {}
    }
    /// Runs a replica. The group must not be there yet.
    pub fn create(&mut self, _init: GroupInit) {}
    /// Forgets a replica; messages to it are refused from now on.
    pub fn remove(&mut self, _group: GroupId) {}
    /// Lets time pass for all groups, by whole ticks of real time; after a gap beyond an election timeout (the process
    /// was paused) leaders step down and the missed ticks are skipped, never replayed.
    pub fn tick(&mut self, _now: Now) {}
    /// Takes a message from another node. A `Snapshot` message is to be stepped only after its checkpoint was pulled.
    ///
    /// # Errors
    /// Whatever is not for this replica or would break an invariant is refused and changes nothing.
    pub fn step(&mut self, _group: GroupId, _message: RaftMessage) -> Result<(), Refused> {
        Ok(())
    }
    /// Appends to the log as leader of the expected term.
    ///
    /// # Errors
    /// Without a trace.
    pub fn propose(&mut self, _proposal: Proposal) -> Result<Proposed, ProposeError> {
        Err(ProposeError::UnknownGroup)
    }
    /// Proposes a membership change, as leader of the expected term, if none is under way.
    ///
    /// # Errors
    /// Without a trace.
    pub fn propose_membership(
        &mut self,
        _group: GroupId,
        _term: u64,
        _change: &MembershipChange,
    ) -> Result<Proposed, ProposeError> {
        Err(ProposeError::UnknownGroup)
    }
    /// Asks for a linearizable read point (Raft section 6.4), as leader.
    ///
    /// # Errors
    /// If this replica does not lead, or has not yet committed in its term.
    pub fn read_index(&mut self, _group: GroupId, _context: Bytes) -> Result<(), ProposeError> {
        Err(ProposeError::UnknownGroup)
    }
    /// Hands leadership to another voter, if this replica leads.
    pub fn transfer_leader(&mut self, _group: GroupId, _to: ReplicaId) {}
    /// Campaigns now.
    pub fn campaign(&mut self, _group: GroupId) {}
    /// Whether this node may campaign at all; `false` while its disk is stuck or full.
    pub fn set_electable(&mut self, _electable: bool) {}
    /// All rounds up to `round` are durable.
    pub fn persisted(&mut self, _round: u64) {}
    /// The state machine has applied up to `index`.
    pub fn applied(&mut self, _group: GroupId, _index: u64) {}
    /// Answers a [`LogRead`]. `None`: the log no longer holds it (a snapshot will be sent).
    pub fn entries_fetched(&mut self, _group: GroupId, _token: u64, _entries: Option<Vec<Entry>>) {}
    /// The checkpoint at `index` is durable; the log on disk now starts at `first_index`. From now on followers that
    /// lag behind it get that snapshot.
    pub fn checkpointed(&mut self, _group: GroupId, _meta: wire::SnapshotMeta, _first_index: u64) {}
    /// The snapshot that [`Output::installs`] asked for is durable and in force.
    pub fn snapshot_installed(&mut self, _group: GroupId, _index: u64) {}
    /// A snapshot sent to a replica arrived there, or did not.
    pub fn snapshot_reported(&mut self, _group: GroupId, _to: ReplicaId, _ok: bool) {}
    /// A replica's node cannot be reached.
    pub fn unreachable(&mut self, _group: GroupId, _replica: ReplicaId) {}
    /// Collects what all groups touched since the last flush ask for, as one round. `round` is the number it gets if
    /// there is something to append.
    pub fn flush(&mut self, _round: u64) -> Output {
        Output::default()
    }
    /// One replica's view, if it is here.
    #[must_use]
    pub fn status(&self, _group: GroupId) -> Option<GroupStatus> {
        None
    }
    /// (role, term, leader) of a group: the cheap part of [`MultiRaft::status`].
    #[must_use]
    pub fn role(&self, _group: GroupId) -> Option<RoleChange> {
        None
    }
    /// The groups here, in order.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        std::iter::empty()
    }
}
