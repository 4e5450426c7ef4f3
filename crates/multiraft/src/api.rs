//! What goes into the groups and what comes out of them.

use base::{GroupId, ReplicaId};
use bytes::Bytes;
use wire::{Entry, EntryKind, HardState, Membership, RaftMessage, SnapshotMeta};

/// How the groups of one node keep time and bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiRaftConfig {
    /// Seeds election timeouts (DESIGN 3, "Determinism"); the node's own.
    pub seed: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: u32,
    /// Least ticks without a leader before a campaign; the greatest is one less than twice this.
    pub election_ticks: u32,
}

/// A replica to run: newly born, or recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInit {
    pub group: GroupId,
    pub replica: ReplicaId,
    /// Durable already.
    pub hard_state: HardState,
    /// The checkpoint that the log stands on (index, term, membership as of it).
    pub checkpoint: SnapshotMeta,
    /// Membership as of `applied`: that of the checkpoint, with the membership entries up to `applied` on top.
    pub membership: Membership,
    /// First index that the log still holds on disk.
    pub first_index: u64,
    /// Last index on disk.
    pub last_index: u64,
    /// Terms of `first_index..=last_index` as runs: (first index of the run, term).
    pub term_runs: Vec<(u64, u64)>,
    /// Last index whose effect the state machine has.
    pub applied: u64,
    /// The entries `applied + 1 ..= last_index`, in memory.
    pub unapplied: Vec<Entry>,
    /// Campaign at once instead of waiting for a timeout: the preferred leader of a newborn group, a single voter.
    pub campaign: bool,
}

/// What Raft calls a role.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    Follower,
    PreCandidate,
    Candidate,
    Leader,
}

/// One replica's view of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub role: Role,
    pub term: u64,
    /// 0: none known.
    pub leader: ReplicaId,
    pub vote: ReplicaId,
    /// As candidate, or as one that asks first whether it would be elected ([`Role::PreCandidate`]); `None` otherwise.
    pub votes: Option<Votes>,
    pub commit: u64,
    pub applied: u64,
    pub first_index: u64,
    pub last_index: u64,
    /// Highest index that is durable here.
    pub persisted: u64,
    pub membership: Membership,
    /// As leader: what each replica is known to have.
    pub progress: Vec<ReplicaProgress>,
}

/// What voters answered a candidate so far, its own vote among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Votes {
    pub granted: usize,
    pub rejected: usize,
}

/// How far one replica has come: the cheap part of [`GroupStatus`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indexes {
    pub term: u64,
    pub commit: u64,
    pub last_index: u64,
}

/// Ticks of all groups of one node since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TickCounts {
    pub passed: u64,
    /// Missed, and never to be made good: the time lost, in ticks.
    pub skipped: u64,
    /// Gaps beyond an election timeout, after each of which every leader stepped down.
    pub pauses: u64,
}

/// A leader's knowledge of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaProgress {
    pub replica: ReplicaId,
    /// Highest index known to be durable there.
    pub matched: u64,
    /// Heard from within the last election timeout.
    pub active: bool,
    /// Waits for a snapshot.
    pub snapshot: bool,
}

/// Everything that one [`crate::MultiRaft::flush`] asks for. Appends and sends may be carried out at the same time:
/// whatever must wait for the disk is held back inside and comes out of a later flush.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Output {
    /// Number of the round that `appends` make; 0 if there are none.
    pub round: u64,
    pub appends: Vec<GroupAppend>,
    /// Messages to replicas of other nodes, in order per replica.
    pub sends: Vec<Outgoing>,
    /// Entries to apply now, in order per group; report with [`crate::MultiRaft::applied`].
    pub committed: Vec<Committed>,
    /// Changes of term, role or leader, at most one per group. `Leader` only once the term is durable here. To be taken
    /// note of before `committed`. A leader that appears in another term than before has stepped down in between.
    pub roles: Vec<RoleChange>,
    /// A snapshot that was accepted: replace state and log by the checkpoint (pulled beforehand), then report with
    /// [`crate::MultiRaft::snapshot_installed`] once it is durable. All rounds of that group are durable when it is
    /// asked for, and none follows before the report. Entries of that group that were handed out as committed and are
    /// not applied yet are part of the checkpoint.
    pub installs: Vec<Install>,
    /// Log reads that Raft needs for a follower that lags; answer with [`crate::MultiRaft::entries_fetched`].
    pub reads: Vec<LogRead>,
    /// Answers to [`crate::MultiRaft::read_index`].
    pub read_states: Vec<ReadState>,
    /// Membership changes that were applied, with the new membership.
    pub memberships: Vec<(GroupId, Membership)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupAppend {
    pub group: GroupId,
    pub hard_state: Option<HardState>,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub group: GroupId,
    pub message: RaftMessage,
    /// A heartbeat that came due by the clock, not one that a read asked for in between.
    pub beat: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub group: GroupId,
    /// Never empty, consecutive. `Noop` and `Membership` entries are among them (the latter already in force in Raft).
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleChange {
    pub group: GroupId,
    pub role: Role,
    pub term: u64,
    /// 0: none known.
    pub leader: ReplicaId,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    pub group: GroupId,
    pub meta: SnapshotMeta,
    /// To be made durable in the same moment as the checkpoint.
    pub hard_state: Option<HardState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRead {
    pub group: GroupId,
    pub token: u64,
    pub low: u64,
    /// Inclusive.
    pub high: u64,
    pub bytes_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadState {
    pub group: GroupId,
    pub context: Bytes,
    /// Reads are linearizable once this index is applied; `None`: the read was dropped, ask again with a fresh context.
    pub index: Option<u64>,
}

/// Why a proposal left no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error("this node has no replica of the group")]
    UnknownGroup,
    /// Not leader, or leader of another term than expected.
    #[error("not the leader in the expected term")]
    NotLeader,
    /// Too many uncommitted bytes, or a leadership transfer or membership change is under way, or (for a read) nothing
    /// is committed yet in this term: try again.
    #[error("busy")]
    Busy,
    /// Can never succeed as it is, such as a membership change that leaves no voters.
    #[error("cannot be proposed: {0}")]
    Invalid(&'static str),
}

/// What a replica cannot run from; see [`GroupInit::check`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("group {group} cannot run: {what}; its durable state was lost or damaged")]
pub struct InvalidInit {
    pub group: GroupId,
    pub what: &'static str,
}

/// Why a message was not taken. None of these is an error of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("no replica of that group here")]
    UnknownGroup,
    #[error("addressed to another replica")]
    WrongReplica,
    #[error("the sender is not a member of the group")]
    Stranger,
    #[error("would break an invariant: {0}")]
    Invalid(&'static str),
    /// This replica acknowledged more than it has: what its node wrote is gone. It must not go on: in an election it
    /// would speak for a log that is not its own.
    #[error("the group's leader knows that this replica has entries up to {acknowledged}; it has them up to {last}")]
    LogLost { acknowledged: u64, last: u64 },
}

/// A proposal's place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    pub index: u64,
    pub term: u64,
}

/// What [`crate::MultiRaft::propose`] takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    pub group: GroupId,
    /// The term in which the caller believes this replica to lead.
    pub term: u64,
    /// `Command` or `Batch`.
    pub kind: EntryKind,
    pub data: Bytes,
}
