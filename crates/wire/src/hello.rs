//! The first words on a connection. Nothing else is read before the hello was accepted.

use base::{ClusterId, ClusterVersion, ErrorCode, Incarnation, NodeId, RecoveryId, ReplicaId, VersionRange};
use minicbor::{Decode, Encode};

use crate::member::Member;

/// The peer protocol that this version speaks.
pub const PROTOCOL_VERSION: u32 = base::version::PEER_PROTOCOL;
/// The oldest it still understands.
pub const PROTOCOL_VERSION_MIN: u32 = base::version::PEER_PROTOCOL_MIN;

/// Sent by the dialler, first.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Hello {
    #[n(0)]
    pub protocol: u32,
    #[n(1)]
    pub purpose: HelloPurpose,
    /// The cluster versions that the caller can.
    #[n(2)]
    pub versions: VersionRange,
}

/// Why the dialler calls.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum HelloPurpose {
    /// A member speaks to a member.
    #[n(0)]
    Member {
        #[n(0)]
        cluster: ClusterId,
        /// Of the cluster: raised by a recovery from a lost majority.
        #[n(1)]
        cluster_incarnation: Incarnation,
        #[n(2)]
        node: NodeId,
        /// Of the calling process.
        #[n(3)]
        incarnation: Incarnation,
        /// Which recovery the cluster's incarnation came of, if there was one.
        #[n(4)]
        recovery: Option<RecoveryId>,
        /// Names the directory, on the machine on which it works, that holds the node's data. As long as a process works there
        /// no other one does. Not said by older versions.
        #[n(5)]
        home: Option<u64>,
    },
    /// A stranger with a token asks to become a member.
    #[n(1)]
    Join(#[n(0)] Box<JoinRequest>),
}

/// What a stranger says of itself. Its endpoint id is that of the connection, never a claim.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct JoinRequest {
    /// The cluster that the token names.
    #[n(0)]
    pub cluster: ClusterId,
    /// The token's public name.
    #[n(1)]
    pub token_id: u64,
    /// Proof of possession.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// Everything needed to reach and use it (`node` is 0 and ignored).
    #[n(3)]
    pub member: Member,
}

/// The answer to a hello.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum HelloAck {
    /// To a member: go on.
    #[n(0)]
    Welcome {
        #[n(0)]
        node: NodeId,
        #[n(1)]
        incarnation: Incarnation,
        /// Where the answering process works; see [`HelloPurpose::Member`].
        #[n(2)]
        home: Option<u64>,
    },
    /// To a stranger: you are a member now. The connection closes; call again as a member.
    #[n(1)]
    Joined(#[n(0)] Box<JoinAccepted>),
    /// No, and why.
    #[n(2)]
    Refused(#[n(0)] Refusal),
}

/// What a new member must know to take part.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct JoinAccepted {
    #[n(0)]
    pub cluster: ClusterId,
    #[n(1)]
    pub cluster_incarnation: Incarnation,
    /// Its own id.
    #[n(2)]
    pub node: NodeId,
    /// Its replica of `__meta`.
    #[n(3)]
    pub meta_replica: ReplicaId,
    /// All members, itself included.
    #[n(4)]
    pub members: Vec<Member>,
    /// The replica of `__meta` on each member, in the order of `members`.
    #[n(5)]
    pub meta_replicas: Vec<ReplicaId>,
    /// Which recovery the cluster's incarnation came of, if there was one.
    #[n(6)]
    pub recovery: Option<RecoveryId>,
}

/// Why a hello was refused.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Refusal {
    #[n(0)]
    pub code: ErrorCode,
    /// A sentence for people: what is wrong and what to do.
    #[n(1)]
    pub reason: String,
    /// If the caller cannot work at the active cluster version: which that is. It never gets lower.
    #[n(2)]
    pub active: Option<ClusterVersion>,
    /// If there is, or was, another process of the caller's node: its incarnation.
    #[n(3)]
    pub other: Option<Incarnation>,
}

impl Refusal {
    /// No, for a reason that needs nothing more.
    #[must_use]
    pub fn new(code: ErrorCode, reason: impl Into<String>) -> Refusal {
        Refusal { code, reason: reason.into(), active: None, other: None }
    }
}
