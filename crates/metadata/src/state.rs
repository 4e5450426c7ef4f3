//! The replicated state: tables that share structure, so that a clone is cheap.

use base::{ClusterId, GroupId, Incarnation, NodeId, ReplicaId, SessionId, TopicId, VmId, Wall};
use compute::VmRecord;
use imbl::OrdMap;
use minicbor::{Decode, Encode};
use wire::Member;

/// The state of the cluster as of one index of `__meta`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metadata {
    pub cluster: ClusterId,
    pub cluster_incarnation: Incarnation,
    /// Index of `__meta` whose effect this contains.
    pub applied: u64,
    pub nodes: OrdMap<NodeId, NodeRecord>,
    pub topics: OrdMap<String, TopicRecord>,
    pub partitions: OrdMap<GroupId, PartitionRecord>,
    pub vms: OrdMap<VmId, VmRecord>,
    pub vm_names: OrdMap<String, VmId>,
    pub tokens: OrdMap<u64, TokenRecord>,
    pub sessions: OrdMap<SessionId, SessionRecord>,
    pub outbox: OrdMap<u64, OutboxEvent>,
    /// Sequence of the next outbox event, from 1 up.
    pub outbox_next: u64,
    /// Events lost because the outbox was full.
    pub outbox_dropped: u64,
    pub(crate) next: NextIds,
}

/// The ids to be given out next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(crate) struct NextIds {
    #[n(0)]
    pub node: u64,
    #[n(1)]
    pub replica: u64,
    #[n(2)]
    pub group: u64,
    #[n(3)]
    pub session: u64,
    #[n(4)]
    pub vm: u64,
    #[n(5)]
    pub token: u64,
}

/// A member of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct NodeRecord {
    #[n(0)]
    pub member: Member,
    /// Its replica of `__meta`.
    #[n(1)]
    pub meta_replica: ReplicaId,
    #[n(2)]
    pub joined: Wall,
}

/// A topic.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct TopicRecord {
    #[n(0)]
    pub name: String,
    #[n(1)]
    pub topic_id: TopicId,
    /// The group of each partition, by partition number.
    #[n(2)]
    pub partitions: Vec<GroupId>,
    /// `None`: elastic.
    #[n(3)]
    pub replication_factor: Option<u16>,
    #[n(4)]
    pub config: Vec<(String, String)>,
    #[n(5)]
    pub created: Wall,
}

/// A partition: a Raft group of its own.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct PartitionRecord {
    #[n(0)]
    pub group: GroupId,
    #[n(1)]
    pub topic: String,
    #[n(2)]
    pub partition: u32,
    /// The voters that the group was born with; the first is the preferred leader.
    #[n(3)]
    pub born: Vec<ReplicaId>,
    /// All its replicas.
    #[n(4)]
    pub replicas: Vec<ReplicaRecord>,
    /// Leader epoch = this + term.
    #[n(5)]
    pub epoch_base: u32,
}

/// One replica of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ReplicaRecord {
    #[n(0)]
    pub replica: ReplicaId,
    #[n(1)]
    pub node: NodeId,
    /// Whether the group's leader reported it a voter (born voters are).
    #[n(2)]
    pub voter: bool,
}

/// A join token, without its secret.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct TokenRecord {
    #[n(0)]
    pub id: u64,
    #[cbor(n(1), with = "minicbor::bytes")]
    pub secret_hash: [u8; 32],
    #[n(2)]
    pub expires: Wall,
    #[n(3)]
    pub uses_left: u32,
    #[n(4)]
    pub created: Wall,
}

/// A client session and the results it may still ask for again.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct SessionRecord {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub incarnation: Incarnation,
    /// Results by sequence, those not acknowledged yet.
    #[n(2)]
    pub results: std::collections::BTreeMap<u64, crate::CommandResult>,
    /// Every sequence up to here was acknowledged: asking again is a mistake.
    #[n(3)]
    pub acknowledged: u64,
}

/// A transition that waits to be published in `muster.events`.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct OutboxEvent {
    #[n(0)]
    pub sequence: u64,
    #[n(1)]
    pub wall: Wall,
    /// Record key (such as the VM's name).
    #[n(2)]
    pub key: String,
    /// Record value: JSON.
    #[n(3)]
    pub json: String,
}
