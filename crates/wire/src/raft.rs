//! Raft's messages, entries and states in muster's own shape. The `raft` crate's protobuf types never reach a disk or
//! a network; `multiraft` converts at its edge.

use base::ReplicaId;
use bytes::Bytes;
use minicbor::{Decode, Encode};

/// What an entry of the replicated log is. An empty `Noop` opens every leader's term.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum EntryKind {
    /// Opens a leader's term (Raft section 5.4.2); carries nothing.
    #[n(0)]
    Noop,
    /// A [`MembershipChange`], encoded.
    #[n(1)]
    Membership,
    /// A command of a state machine (`__meta`).
    #[n(2)]
    Command,
    /// A record batch of a partition.
    #[n(3)]
    Batch,
}

/// One entry of a group's replicated log.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Entry {
    /// Position in the log, from 1 up. Index 1 belongs to the birth checkpoint: the first entry is 2.
    #[n(0)]
    pub index: u64,
    /// Term of the leader that proposed it.
    #[n(1)]
    pub term: u64,
    /// What `data` is.
    #[n(2)]
    pub kind: EntryKind,
    /// The payload; empty for a `Noop`.
    #[cbor(n(3), with = "crate::blob")]
    pub data: Bytes,
}

/// What a replica must have on disk before it speaks (Raft figure 2, "persistent state").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct HardState {
    /// Latest term seen.
    #[n(0)]
    pub term: u64,
    /// Replica voted for in `term`; 0 is nobody.
    #[n(1)]
    pub vote: ReplicaId,
    /// Highest index known to be committed.
    #[n(2)]
    pub commit: u64,
}

/// Who belongs to a group (Raft section 6; joint consensus while `voters_outgoing` is not empty).
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Membership {
    /// Replicas whose majority decides.
    #[n(0)]
    pub voters: Vec<ReplicaId>,
    /// Replicas that receive the log and have no vote.
    #[n(1)]
    pub learners: Vec<ReplicaId>,
    /// The old voters, whose majority is needed too while a joint change is under way.
    #[n(2)]
    pub voters_outgoing: Vec<ReplicaId>,
    /// Voters of the old configuration that become learners when the joint change ends.
    #[n(3)]
    pub learners_next: Vec<ReplicaId>,
    /// Whether the leader ends the joint change by itself.
    #[n(4)]
    pub auto_leave: bool,
}

/// What happens to one replica in a membership change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum MembershipOp {
    /// Becomes a voter.
    #[n(0)]
    AddVoter,
    /// Becomes a learner (or is demoted to one).
    #[n(1)]
    AddLearner,
    /// Leaves the group.
    #[n(2)]
    Remove,
}

/// One replica's part in a membership change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct MembershipStep {
    /// What happens.
    #[n(0)]
    pub op: MembershipOp,
    /// To whom.
    #[n(1)]
    pub replica: ReplicaId,
}

/// The payload of an [`EntryKind::Membership`] entry. Without steps it leaves the joint configuration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct MembershipChange {
    /// The steps, made in one joint change when there is more than one.
    #[n(0)]
    pub steps: Vec<MembershipStep>,
    /// Index of `__meta` that the leader had applied when it decided on the change. Whoever leads after it decides on no
    /// other change before it has applied as much: it would undo what it does not know the reason of.
    #[n(1)]
    #[cbor(default)]
    pub basis: u64,
}

/// The kinds of Raft message that cross the network. `Propose` is not among them: proposals are forwarded as requests,
/// never as Raft messages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum RaftMessageKind {
    /// AppendEntries.
    #[n(0)]
    Append,
    /// Answer to `Append`.
    #[n(1)]
    AppendResponse,
    /// RequestVote.
    #[n(2)]
    Vote,
    /// Answer to `Vote`.
    #[n(3)]
    VoteResponse,
    /// PreVote (Raft dissertation section 9.6).
    #[n(4)]
    PreVote,
    /// Answer to `PreVote`.
    #[n(5)]
    PreVoteResponse,
    /// Heartbeat; carries the ReadIndex context, if any.
    #[n(6)]
    Heartbeat,
    /// Answer to `Heartbeat`.
    #[n(7)]
    HeartbeatResponse,
    /// A checkpoint is to be installed; its bytes are pulled separately.
    #[n(8)]
    Snapshot,
    /// Leadership transfer: campaign now.
    #[n(9)]
    TimeoutNow,
    /// ReadIndex, asked by a follower.
    #[n(10)]
    ReadIndex,
    /// Answer to `ReadIndex`.
    #[n(11)]
    ReadIndexResponse,
}

/// What a checkpoint covers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct SnapshotMeta {
    /// Last index whose effect the checkpoint contains.
    #[n(0)]
    pub index: u64,
    /// Term of that index.
    #[n(1)]
    pub term: u64,
    /// Membership as of that index.
    #[n(2)]
    pub membership: Membership,
}

/// One message between two replicas of a group. Fields as in the `raft` crate's `Message`.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct RaftMessage {
    #[n(0)]
    pub kind: RaftMessageKind,
    /// Sender.
    #[n(1)]
    pub from: ReplicaId,
    /// Addressee.
    #[n(2)]
    pub to: ReplicaId,
    /// The sender's term (0 for messages that carry none).
    #[n(3)]
    pub term: u64,
    /// Term of the entry at `index`.
    #[n(4)]
    pub log_term: u64,
    /// The index before the entries, or what an answer speaks of.
    #[n(5)]
    pub index: u64,
    #[n(6)]
    pub entries: Vec<Entry>,
    /// The sender's commit index.
    #[n(7)]
    pub commit: u64,
    /// Term of the entry at `commit`.
    #[n(8)]
    pub commit_term: u64,
    #[n(9)]
    pub reject: bool,
    /// With `reject`: where the follower's log may match.
    #[n(10)]
    pub reject_hint: u64,
    /// With a request for a snapshot: least index it must cover.
    #[n(11)]
    pub request_snapshot: u64,
    /// ReadIndex context or campaign kind.
    #[cbor(n(12), with = "crate::blob")]
    pub context: Bytes,
    /// Election priority; unused, 0.
    #[n(13)]
    pub priority: i64,
    /// Of a `Snapshot` message.
    #[n(14)]
    pub snapshot: Option<SnapshotMeta>,
}

impl RaftMessage {
    /// A message that says only this: everything else in it is empty.
    #[must_use]
    pub fn new(kind: RaftMessageKind, from: ReplicaId, to: ReplicaId, term: u64) -> RaftMessage {
        RaftMessage {
            kind,
            from,
            to,
            term,
            log_term: 0,
            index: 0,
            entries: Vec::new(),
            commit: 0,
            commit_term: 0,
            reject: false,
            reject_hint: 0,
            request_snapshot: 0,
            context: Bytes::new(),
            priority: 0,
            snapshot: None,
        }
    }
}
