//! The replicated state: tables that share structure, so that a clone is cheap.

use base::{
    ClusterId, ClusterVersion, EndpointId, GroupId, Incarnation, NodeId, RecoveryId, ReplicaId, SessionId, TopicId,
    VmId, Wall,
};
use compute::VmRecord;
use imbl::OrdMap;
use minicbor::{Decode, Encode};
use wire::Member;

use crate::{CommandResult, KvStore, OnceTable};

/// The state of the cluster as of one index of `__meta`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Metadata {
    pub cluster: ClusterId,
    pub cluster_incarnation: Incarnation,
    /// Which recovery that incarnation came of, if there was one.
    pub recovery: Option<RecoveryId>,
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
    /// Sequence of the first event under the producer that publishes now: each recovery of the cluster begins another one.
    pub outbox_first: u64,
    /// Former members, so that they are told why nobody speaks to them: the last
    /// [`base::limits::NODES_DEPARTED_MAX`] of them.
    pub departed: OrdMap<NodeId, DepartedNode>,
    pub kv: KvStore,
    /// Commands that were carried out once, and are not again.
    pub once: OnceTable,
    /// What may be used: every member can it, and every later one must.
    pub cluster_version: ClusterVersion,
    /// An operator does not want it to rise beyond this.
    pub version_hold: Option<ClusterVersion>,
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
    #[n(6)]
    #[cbor(default)]
    pub lease: u64,
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
    #[n(3)]
    #[cbor(default)]
    pub lifecycle: NodeLifecycle,
    /// Of one that goes: who is to get its replicas.
    #[n(4)]
    pub successor: Option<NodeId>,
}

/// What the cluster does with a member.
///
/// ```text
///          drain
///   Active ◀─────▶ Draining      any ── leave ──▶ Leaving ──┐
///      ▲   resume                 │                  │      ├─▶ forgotten, once nothing is left on it
///      └──▶ Lost                  └─ remove ─▶ Removing ────┘
///       silent for long
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Encode, Decode)]
#[cbor(index_only)]
pub enum NodeLifecycle {
    #[default]
    #[n(0)]
    Active,
    /// Gets nothing new; leaderships and VMs move away, replicas stay.
    #[n(1)]
    Draining,
    /// Silent for too long: its replicas are made anew elsewhere, where there is room, until it is heard of again.
    #[n(2)]
    Lost,
    /// Everything moves away, and it takes part in that; then it is forgotten.
    #[n(3)]
    Leaving,
    /// Dead, by an operator's word: as leaving, but nothing is expected of it.
    #[n(4)]
    Removing,
}

impl NodeLifecycle {
    /// As people and programs see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            NodeLifecycle::Active => "active",
            NodeLifecycle::Draining => "draining",
            NodeLifecycle::Lost => "lost",
            NodeLifecycle::Leaving => "leaving",
            NodeLifecycle::Removing => "removing",
        }
    }

    /// Whether it remains a member.
    #[must_use]
    pub fn stays(self) -> bool {
        !matches!(self, NodeLifecycle::Leaving | NodeLifecycle::Removing)
    }

    /// Whether a replica on it counts as one of those that a group should have.
    #[must_use]
    pub fn holds_replicas(self) -> bool {
        matches!(self, NodeLifecycle::Active | NodeLifecycle::Draining)
    }

    /// Whether it is to be free of VMs and leaderships.
    #[must_use]
    pub fn hands_over(self) -> bool {
        matches!(self, NodeLifecycle::Draining | NodeLifecycle::Leaving | NodeLifecycle::Removing)
    }
}

/// A former member.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct DepartedNode {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub name: String,
    #[n(2)]
    pub endpoint: EndpointId,
    /// When it was forgotten.
    #[n(3)]
    pub at: Wall,
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
    /// It is to go, for good: as soon as the group has enough others.
    #[n(3)]
    #[cbor(default)]
    pub retired: bool,
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
    /// Results by sequence, those not acknowledged yet. They share structure as the tables do: each command changes them, and
    /// would otherwise copy them all, with those of the sessions beside it.
    #[cbor(n(2), with = "crate::sessions::results")]
    pub results: OrdMap<u64, CommandResult>,
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
