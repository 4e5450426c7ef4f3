//! What a node's core takes in and gives out. Both sets are closed: drivers carry them out and decide nothing.

use std::collections::BTreeMap;

use base::{
    ClusterVersion, ErrorCode, GroupId, Incarnation, LeaseId, Mono, NodeId, ReplicaId, RequestId, VersionRange,
};
use bytes::Bytes;
use compute::{VmAction, VmReport};
use journal::{DiskDone, DiskError, DiskOp, OpId};
use metadata::{Command, CommandResult};
use minicbor::{Decode, Encode};
use multiraft::Role;
use wire::{Channel, Entry, JoinAccepted, Member, Pace, PeerMessage};

use crate::{Work, Worked};

/// What a node is told once, at start.
#[derive(Clone, Debug, PartialEq)]
pub struct CoreConfig {
    /// This node (0 in `me.node` is wrong). It acts as one that can `me.versions`.
    pub me: Member,
    pub cluster: base::ClusterId,
    pub formation: Formation,
    /// Of this process; higher than at every earlier start of the node.
    pub incarnation: Incarnation,
    /// Seeds election timeouts and other choices.
    pub seed: u64,
    /// Bytes of one journal segment.
    pub segment_bytes: u64,
    /// Least election timeout; see [`base::limits::ELECTION_TIMEOUT_MIN`].
    pub election_timeout: base::Millis,
    pub heartbeat_interval: base::Millis,
    /// `__meta` is checkpointed, and its log truncated, after this many entries;
    /// [`base::limits::META_CHECKPOINT_ENTRIES`] outside simulations.
    pub checkpoint_entries: u64,
    /// Entries that stay readable behind a checkpoint; [`base::limits::META_CHECKPOINT_KEEP_ENTRIES`].
    pub checkpoint_keep_entries: u64,
    /// Bytes of a checkpoint sent in one message; [`base::limits::CHECKPOINT_CHUNK_BYTES`].
    pub checkpoint_part_bytes: usize,
    /// Bytes of a checkpoint, at most; [`base::limits::CHECKPOINT_BYTES_MAX`] outside tests.
    pub checkpoint_bytes_max: u64,
    /// A member that was silent for this long is lost, and its replicas are made anew elsewhere;
    /// [`base::limits::NODE_LOST_AFTER`] by default.
    pub node_lost_after: base::Millis,
    /// Emit [`Effect::Applied`] and [`Effect::Role`] for checkers.
    pub observe: bool,
}

/// How this node came to be in its cluster.
#[derive(Clone, Debug, PartialEq)]
pub enum Formation {
    /// It forms a new cluster, if its journal is empty.
    Bootstrap,
    /// It was admitted and waits for `__meta`'s checkpoint, if its journal is empty.
    Join(Box<JoinAccepted>),
    /// It was in the cluster before: an empty journal is fatal.
    Restart,
}

/// What happened outside.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "short-lived, moved once, and boxing would cost an allocation each")]
pub enum Event {
    /// At least every 10 ms or so; the core keeps its own pace.
    Tick,
    /// A disk operation ended.
    Disk {
        op: OpId,
        result: Result<DiskDone, DiskError>,
    },
    /// A peer spoke (its hello was accepted).
    Peer {
        from: NodeId,
        messages: Vec<PeerMessage>,
    },
    /// A connection to a peer came up, with the peer's process incarnation.
    PeerUp {
        node: NodeId,
        incarnation: Incarnation,
    },
    PeerDown {
        node: NodeId,
    },
    /// Somebody on this node asks for something; exactly one [`Effect::Reply`] follows, by the deadline.
    Request {
        id: RequestId,
        deadline: Mono,
        target: Target,
        request: Request,
    },
    /// A member refuses this node as one that is no member any more.
    Expelled {
        by: NodeId,
    },
    /// A member refuses this node because it cannot work at the cluster version that is active there.
    Outdated {
        by: NodeId,
        active: ClusterVersion,
    },
    /// A member of a newer incarnation of the cluster, recovered from a lost majority, refuses this node.
    Superseded {
        by: NodeId,
    },
    /// A member refuses this process, because another one of the same node is there, or was there later.
    Twin {
        by: NodeId,
        other: Incarnation,
    },
    /// The hypervisor side reports.
    Vm(VmReport),
    /// What [`Effect::Work`] came to.
    Worked(Worked),
    /// How much waits to be handed in; only told on, in [`crate::Vitals`].
    Waiting(crate::Arrivals),
    /// The driver's answer to [`Effect::ListTasks`] or [`Effect::ReadPartition`].
    Answered {
        ticket: u64,
        outcome: Result<Reply, RequestError>,
    },
}

/// Where a request is carried out; any node takes any request and passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// On this node.
    Here,
    /// On that node.
    Node(NodeId),
    /// On whichever node leads the group, waiting for a leader until the deadline if need be.
    Leader(GroupId),
}

/// What can be asked of a core. Encodable, because it may be forwarded.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[expect(clippy::large_enum_variant, reason = "short-lived, moved once, and boxing would cost an allocation each")]
pub enum Request {
    /// A change to the cluster's state; target `Leader(GroupId::META)`. Applied once, however often it is retried inside.
    #[n(0)]
    Command(#[n(0)] Command),
    /// Appends record batches to a partition. With target `Here` a node that does not lead answers `not_leader`.
    #[n(1)]
    Produce(#[n(0)] Produce),
    /// Reads committed batches of a partition from this node's log, for fetches below the tail; target `Here`.
    #[n(2)]
    ReadLog(#[n(0)] ReadLog),
    /// This node's own view of itself; target `Here` or `Node`.
    #[n(3)]
    Status,
    /// Waits until this node has applied all that was committed in `__meta` when the request arrived (linearizable
    /// read point); target `Here`.
    #[n(4)]
    Barrier,
    /// Hands leadership of a group to a node; target `Leader(group)`.
    #[n(5)]
    TransferLeader {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        to: NodeId,
    },
    /// Hands away every leadership this node has, before it stops; target `Here`.
    #[n(6)]
    StepDown,
    /// Asks the leader of `__meta` for an index such that a read after it is linearizable; used by [`Request::Barrier`].
    #[n(7)]
    ReadPoint,
    /// The tasks of this node's supervision tree; target `Here` or `Node`. The driver answers ([`Effect::ListTasks`]).
    #[n(8)]
    Tasks,
    /// Committed batches of a partition from an offset on, for readers on nodes without a replica; target
    /// `Leader(group)`. The driver answers ([`Effect::ReadPartition`]).
    #[n(9)]
    ReadPartition(#[n(0)] ReadPartition),
    /// Renews a lease of the key-value store; target `Leader(GroupId::META)`. Granted after a quorum round that began later
    /// than this arrived: whoever holds the lease may count its time from when this was sent.
    #[n(10)]
    KeepLease {
        #[n(0)]
        lease: LeaseId,
    },
    /// What this node counted of its consensus, and how it stands; target `Here` or `Node`.
    #[n(16)]
    Vitals {
        /// Single groups that are listed.
        #[n(0)]
        listed_max: u32,
    },
}

/// Where to read in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ReadPartition {
    #[n(0)]
    pub group: GroupId,
    /// Below the first offset that is kept, reading starts there.
    #[n(1)]
    pub offset: i64,
    /// At least one batch comes back all the same.
    #[n(2)]
    pub bytes_max: u32,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct PartitionBatches {
    /// In order; the first holds the offset asked for. Empty at the high watermark.
    #[cbor(n(0), with = "wire::blob::list")]
    pub batches: Vec<Bytes>,
    #[n(1)]
    pub high_watermark: i64,
    #[n(2)]
    pub log_start_offset: i64,
}

/// When the producer wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Acks {
    /// Not at all.
    #[n(0)]
    None,
    /// When the leader has it on disk.
    #[n(1)]
    Leader,
    /// When it is committed.
    #[n(2)]
    All,
}

/// Batches for one partition. All are appended, in order, or none.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Produce {
    #[n(0)]
    pub group: GroupId,
    #[n(1)]
    pub acks: Acks,
    /// Kafka record batches v2, checked for length and CRC by whoever took them from the network.
    #[cbor(n(2), with = "wire::blob::list")]
    pub batches: Vec<Bytes>,
}

/// A range of a partition's log, by Raft index.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ReadLog {
    #[n(0)]
    pub group: GroupId,
    #[n(1)]
    pub low: u64,
    /// Inclusive; at most what is committed.
    #[n(2)]
    pub high: u64,
    /// At least one batch comes back all the same.
    #[n(3)]
    pub bytes_max: u32,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum Reply {
    /// The command was applied at `index`, and this node has applied that index too.
    #[n(0)]
    Command {
        #[n(0)]
        index: u64,
        #[n(1)]
        result: CommandResult,
    },
    #[n(1)]
    Produced {
        /// Offset of the first record.
        #[n(0)]
        base_offset: i64,
        #[n(1)]
        log_start_offset: i64,
    },
    /// Batches in log order, each with its Raft index.
    #[n(2)]
    Batches {
        #[n(0)]
        indexes: Vec<u64>,
        #[cbor(n(1), with = "wire::blob::list")]
        batches: Vec<Bytes>,
    },
    #[n(3)]
    Status(#[n(0)] Box<NodeStatus>),
    #[n(4)]
    Done,
    #[n(5)]
    ReadPoint {
        #[n(0)]
        index: u64,
    },
    #[n(6)]
    Tasks(#[n(0)] Vec<TaskLine>),
    #[n(7)]
    PartitionBatches(#[n(0)] PartitionBatches),
    /// The lease lives for this long from when the request was sent.
    #[n(8)]
    LeaseKept {
        #[n(0)]
        ttl_ms: u64,
    },
    #[n(14)]
    Vitals(#[n(0)] Box<crate::Vitals>),
}

/// One task of a node's supervision tree.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TaskLine {
    /// Its place in the tree, such as `transport/peer/2`.
    #[n(0)]
    pub path: String,
    /// `running`, `restarting`, `ended`, `failed`.
    #[n(1)]
    pub state: String,
    /// Milliseconds in that state.
    #[n(2)]
    pub since_ms: u64,
    /// Starts after the first.
    #[n(3)]
    pub restarts: u64,
    /// Why it was restarted or ended last.
    #[n(4)]
    pub cause: Option<String>,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    #[n(0)]
    pub code: ErrorCode,
    /// For people: what happened, to what, what to do.
    #[n(1)]
    pub message: String,
    /// With `not_leader`: who leads, if known.
    #[n(2)]
    pub leader: Option<NodeId>,
}

/// One node's view of itself and of its peers.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct NodeStatus {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub incarnation: Incarnation,
    /// Joined, recovered, and a leader of `__meta` is known.
    #[n(2)]
    pub ready: bool,
    /// If not ready: why.
    #[n(3)]
    pub reason: String,
    #[n(4)]
    pub meta_applied: u64,
    #[n(5)]
    pub groups: Vec<GroupView>,
    /// Milliseconds since each peer was heard of.
    #[n(6)]
    pub peers: BTreeMap<NodeId, u64>,
    #[n(7)]
    pub disk_full: bool,
    /// VMs that run on this node now.
    #[n(8)]
    pub vms_running: u32,
    /// The voters of `__meta`, as this node sees it; the old ones until a change of them is complete.
    #[n(9)]
    pub meta_voters: Vec<NodeId>,
    /// The learners of `__meta`, as this node sees it.
    #[n(10)]
    pub meta_learners: Vec<NodeId>,
    /// The cluster versions that the process can.
    #[n(24)]
    #[cbor(default)]
    pub versions: VersionRange,
    /// The active one, as this node has applied it.
    #[n(25)]
    #[cbor(default)]
    pub cluster_version: ClusterVersion,
    /// The release that runs.
    #[n(26)]
    #[cbor(default)]
    pub release: String,
    /// How fast its groups beat and elect. An older one does not say.
    #[n(27)]
    pub pace: Option<Pace>,
}

/// One group as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GroupView {
    #[n(0)]
    pub group: GroupId,
    #[n(1)]
    pub replica: ReplicaId,
    /// `leader`, `follower`, `candidate`, `learner`, `recovering`.
    #[n(2)]
    pub role: String,
    #[n(3)]
    pub term: u64,
    #[n(4)]
    pub leader: Option<NodeId>,
    #[n(5)]
    pub commit: u64,
    #[n(6)]
    pub applied: u64,
    #[n(7)]
    pub last_index: u64,
    /// Partitions: offset after the last committed record.
    #[n(8)]
    pub high_watermark: Option<i64>,
}

/// What the outside must do. Of one flush, what is there to see comes first, then what is to be done, then the answers to
/// whoever asked, and last that the node ends. What is to be done is ordered only per (peer, channel), where urgent messages
/// ([`PeerMessage::is_urgent`]) may overtake the others, and among disk operations as the journal orders them.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Disk(DiskOp),
    Send {
        to: NodeId,
        channel: Channel,
        messages: Vec<PeerMessage>,
    },
    Reply {
        id: RequestId,
        outcome: Result<Reply, RequestError>,
    },
    /// News for the readers of a partition.
    Publish {
        group: GroupId,
        update: stream::Update,
    },
    /// The partition is gone from this node.
    Unpublish {
        group: GroupId,
    },
    /// Groups whose leader, as far as this node knows, changed.
    Leaders(Vec<LeaderInfo>),
    /// The cluster's state changed: [`crate::NodeCore::metadata`], whose clone is cheap.
    Metadata {
        /// It is to be shown before anybody is answered. Otherwise only keys changed, and no read was answered that must
        /// see them: it is enough to show it to those who wait for it, and to all within a tick.
        at_once: bool,
    },
    /// The members are these from now on, this node among them: nobody else is connected.
    Members {
        members: Vec<Member>,
        /// Former members: they are told so when they call.
        departed: Vec<(NodeId, base::EndpointId)>,
    },
    Vm(VmAction),
    /// Somebody asks for the tasks of this node's supervision tree; answer with [`Event::Answered`].
    ListTasks {
        ticket: u64,
    },
    /// Somebody on another node reads a partition that this node leads; answer with [`Event::Answered`].
    ReadPartition {
        ticket: u64,
        read: ReadPartition,
    },
    /// Something that takes long, to be done beside the core by [`Work::carry_out`]; answer with [`Event::Worked`].
    Work(Work),
    /// The node's own `__meta` replica is durable: from now on it restarts with [`Formation::Restart`].
    Formed,
    /// Recovery is done; requests are carried out from now on (before, they wait).
    Recovered,
    /// For checkers, if [`CoreConfig::observe`]: an entry was applied.
    Applied {
        group: GroupId,
        entry: Entry,
    },
    /// For checkers, if [`CoreConfig::observe`]: a role in force (its term and vote are durable).
    Role {
        group: GroupId,
        replica: ReplicaId,
        role: Role,
        term: u64,
    },
    /// The cluster has forgotten this node: it stops, and what runs on it.
    Departed {
        /// It was asked to leave.
        asked: bool,
        reason: String,
    },
    /// A later process of this node was at work than this one is: the data here is an older copy's. Kept, so that no later
    /// start on it passes for a later process.
    Outdone {
        by: Incarnation,
    },
    /// Something is not as it should be, and the node goes on: for its log.
    Warning(String),
    /// The node must stop, and say why.
    Fatal(String),
}

/// Who leads a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderInfo {
    pub group: GroupId,
    /// `None`: unknown.
    pub leader: Option<NodeId>,
    /// The highest term seen for the group; the leader's, if there is one.
    pub term: u64,
}
