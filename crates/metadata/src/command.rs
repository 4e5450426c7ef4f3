//! The commands of `__meta`: the closed, versioned set of changes to the replicated cluster state.

use base::{
    ClusterVersion, ErrorCode, GroupId, Incarnation, LeaseId, NodeId, ReplicaId, SessionId, TopicId, VmEpoch, VmId,
    Wall,
};
use bytes::Bytes;
use compute::{VmReport, VmSpec};
use minicbor::{Decode, Encode};
use wire::Member;

use crate::OnceKey;

/// A command as it stands in the log. Whatever is random or read from a clock travels in it: apply has neither.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CommandEnvelope {
    /// Who sent it, so that a retry is applied once; `None` for the leader's own planner, whose commands are idempotent.
    #[n(0)]
    pub origin: Option<CommandOrigin>,
    /// The leader's wall clock when it was proposed.
    #[n(1)]
    pub wall: Wall,
    #[n(2)]
    pub command: Command,
    /// Nodes that the leader had not heard of for a while when it was proposed: nothing is born on them.
    #[n(3)]
    #[cbor(default)]
    pub silent: Vec<NodeId>,
    /// The cluster version that one must be able to, to read the rest; read first ([`CommandEnvelope::read`]).
    #[n(4)]
    pub version: ClusterVersion,
}

impl CommandEnvelope {
    /// A command, proposed while all nodes are there.
    #[must_use]
    pub fn new(origin: Option<CommandOrigin>, wall: Wall, command: Command) -> CommandEnvelope {
        let version = command.since();
        CommandEnvelope { origin, wall, command, silent: Vec::new(), version }
    }
}

/// A command's place in its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CommandOrigin {
    #[n(0)]
    pub session: SessionId,
    /// From 1 up.
    #[n(1)]
    pub sequence: u64,
    /// Results up to here were received and may be forgotten.
    #[n(2)]
    pub acknowledged: u64,
}

/// A change to the cluster's state.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Command {
    /// A node's process registers its session; the sessions of its earlier processes end.
    #[n(0)]
    OpenSession {
        #[n(0)]
        node: NodeId,
        #[n(1)]
        incarnation: Incarnation,
    },
    /// A stranger with a token becomes a member; the same endpoint asking again gets the same answer.
    #[n(1)]
    AdmitNode {
        #[n(0)]
        token_id: u64,
        #[cbor(n(1), with = "minicbor::bytes")]
        secret: [u8; 32],
        /// `node` is ignored.
        #[n(2)]
        member: Member,
    },
    /// A member says where it is, what it can carry and how it wants to be called, at each start.
    #[n(2)]
    UpdateNode {
        #[n(0)]
        member: Member,
    },
    #[n(3)]
    CreateToken {
        /// BLAKE3 or SHA-256 are not needed: the secret has 256 random bits; see `tokens.rs`.
        #[cbor(n(0), with = "minicbor::bytes")]
        secret_hash: [u8; 32],
        #[n(1)]
        expires: Wall,
        /// How many nodes it may admit.
        #[n(2)]
        uses: u32,
    },
    #[n(4)]
    RevokeToken {
        #[n(0)]
        token_id: u64,
    },
    #[n(5)]
    CreateTopic {
        #[n(0)]
        name: String,
        #[n(1)]
        topic_id: TopicId,
        /// 1 or more.
        #[n(2)]
        partitions: u32,
        /// `None`: elastic, min(3, nodes), growing as nodes join.
        #[n(3)]
        replication_factor: Option<u16>,
        /// Kafka's topic configuration, as given.
        #[n(4)]
        config: Vec<(String, String)>,
    },
    #[n(6)]
    DeleteTopic {
        #[n(0)]
        name: String,
    },
    /// Planner: a partition gets one more replica on a node.
    #[n(7)]
    AddReplica {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        node: NodeId,
    },
    /// A partition's leader says that a replica became a voter, or is none any more.
    #[n(8)]
    ReplicaVoter {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        replica: ReplicaId,
        #[n(2)]
        #[cbor(default)]
        demoted: bool,
    },
    #[n(9)]
    CreateVm {
        #[n(0)]
        name: String,
        #[n(1)]
        spec: VmSpec,
    },
    #[n(10)]
    StopVm {
        #[n(0)]
        name: String,
    },
    #[n(11)]
    StartVm {
        #[n(0)]
        name: String,
    },
    #[n(12)]
    DeleteVm {
        #[n(0)]
        name: String,
    },
    /// Planner: a node gets the VM under a new epoch (refused unless `epoch` is the next one).
    #[n(13)]
    AssignVm {
        #[n(0)]
        vm: VmId,
        #[n(1)]
        node: NodeId,
        #[n(2)]
        epoch: VmEpoch,
        /// Why here.
        #[n(3)]
        placement: String,
    },
    /// Planner: why a VM stays pending.
    #[n(14)]
    ExplainVm {
        #[n(0)]
        vm: VmId,
        #[n(1)]
        reason: String,
    },
    /// A node says what became of a VM; refused under a stale epoch.
    #[n(15)]
    ReportVm {
        #[n(0)]
        node: NodeId,
        #[n(1)]
        report: VmReport,
    },
    /// The leader published the outbox up to here.
    #[n(16)]
    TrimOutbox {
        #[n(0)]
        through: u64,
    },
    /// A member is to give up its work for a while, or takes it up again.
    #[n(17)]
    DrainNode {
        #[n(0)]
        node: NodeId,
        /// `false`: it takes up its work again.
        #[n(1)]
        drain: bool,
    },
    /// A member is to go for good.
    #[n(18)]
    RemoveNode {
        #[n(0)]
        node: NodeId,
        /// It runs no more, says an operator: what it did is done elsewhere without waiting for it.
        #[n(1)]
        dead: bool,
        /// Who gets its replicas, if it can take them; otherwise whoever has the fewest. `None` leaves it as it was said before.
        #[n(2)]
        successor: Option<NodeId>,
    },
    /// Planner: a member was not heard of for too long, or is heard of again.
    #[n(19)]
    NodeLost {
        #[n(0)]
        node: NodeId,
        #[n(1)]
        lost: bool,
    },
    /// Planner: nothing of the cluster is left on a member that goes.
    #[n(20)]
    ForgetNode {
        #[n(0)]
        node: NodeId,
    },
    /// A partition's leader says that the group has a retired replica no more.
    #[n(21)]
    RemoveReplica {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        replica: ReplicaId,
    },
    /// Planner: a VM leaves a node that is to be free of it (refused unless it is there under `epoch`).
    #[n(22)]
    EvictVm {
        #[n(0)]
        vm: VmId,
        #[n(1)]
        epoch: VmEpoch,
    },
    /// Planner: a partition can do without a replica (refused if it cannot). There is no way back.
    #[n(23)]
    RetireReplica {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        replica: ReplicaId,
    },
    /// A key gets a value.
    #[n(24)]
    PutKey {
        #[n(0)]
        key: String,
        #[cbor(n(1), with = "wire::blob")]
        value: Bytes,
        /// What the key must be for this, if that matters.
        #[n(2)]
        expect: Option<KeyExpect>,
        /// What becomes of the key in time.
        #[n(3)]
        life: KeyLife,
    },
    #[n(25)]
    DeleteKeys {
        /// The key, or what the keys begin with.
        #[n(0)]
        key: String,
        #[n(1)]
        prefix: bool,
        /// What the key must be for this, if that matters; not with `prefix`.
        #[n(2)]
        expect: Option<KeyExpect>,
    },
    #[n(26)]
    GrantLease {
        /// Time to live, in milliseconds.
        #[n(0)]
        ttl_ms: u64,
    },
    /// A command that is carried out once, however often it comes under that name.
    #[n(28)]
    Once {
        #[n(0)]
        key: OnceKey,
        #[n(1)]
        command: Box<Command>,
    },
    /// A lease ends, and the keys bound to it go.
    #[n(27)]
    EndLease {
        #[n(0)]
        lease: LeaseId,
        /// Its time was over, says the leader.
        #[n(1)]
        expired: bool,
    },
    /// Planner: from now on everything up to `version` may be used (refused unless every member can it). Never lowered.
    #[n(40)]
    SetClusterVersion {
        #[n(0)]
        version: ClusterVersion,
    },
    /// An operator holds the cluster at a version, or lets it rise again (`None`).
    #[n(41)]
    HoldVersion {
        /// Not below the active one.
        #[n(0)]
        at: Option<ClusterVersion>,
    },
}

impl Command {
    /// What is to be done, without the name under which it is done once.
    #[must_use]
    pub fn body(&self) -> &Command {
        match self {
            Command::Once { command, .. } => command,
            body => body,
        }
    }

    /// Whether it changes nothing but keys, their leases, and what is known of commands that were carried out.
    #[must_use]
    pub fn changes_keys_only(&self) -> bool {
        matches!(
            self.body(),
            Command::PutKey { .. } | Command::DeleteKeys { .. } | Command::GrantLease { .. } | Command::EndLease { .. }
        )
    }
}

/// What a key must be for a command to change it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum KeyExpect {
    /// Not there.
    #[n(0)]
    Absent,
    /// Last changed at that revision.
    #[n(1)]
    Revision(#[n(0)] u64),
    /// Of that value.
    #[n(2)]
    Value(#[cbor(n(0), with = "wire::blob")] Bytes),
}

/// How long a key lives if nobody deletes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub enum KeyLife {
    /// For good.
    #[n(0)]
    Lasting,
    /// As long as that lease.
    #[n(1)]
    Bound(#[n(0)] LeaseId),
    /// So many milliseconds, under a new lease of its own.
    #[n(2)]
    Ttl(#[n(0)] u64),
}

/// What applying a command gave.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum CommandResult {
    /// Done; nothing to tell.
    #[n(0)]
    Done,
    #[n(1)]
    SessionOpened {
        #[n(0)]
        session: SessionId,
    },
    #[n(2)]
    NodeAdmitted {
        #[n(0)]
        node: NodeId,
        #[n(1)]
        meta_replica: ReplicaId,
    },
    #[n(3)]
    TokenCreated {
        #[n(0)]
        token_id: u64,
    },
    #[n(4)]
    TopicCreated {
        #[n(0)]
        topic_id: TopicId,
        #[n(1)]
        groups: Vec<GroupId>,
    },
    #[n(5)]
    VmCreated {
        #[n(0)]
        vm: VmId,
    },
    #[n(6)]
    ReplicaAdded {
        #[n(0)]
        replica: ReplicaId,
    },
    /// Refused, deterministically; nothing changed.
    #[n(7)]
    Refused {
        #[n(0)]
        code: ErrorCode,
        #[n(1)]
        message: String,
    },
    #[n(8)]
    KeyPut {
        /// Of this change: the index of its entry in `__meta`.
        #[n(0)]
        revision: u64,
        /// Changes of the key since it was created, this one among them.
        #[n(1)]
        version: u64,
        #[n(2)]
        lease: Option<LeaseId>,
    },
    #[n(9)]
    KeysDeleted {
        #[n(0)]
        revision: u64,
        #[n(1)]
        count: u64,
    },
    #[n(10)]
    LeaseGranted {
        #[n(0)]
        lease: LeaseId,
    },
}
