//! What the nodes of one cluster say to each other, once their hello was accepted.

use base::{GroupId, Incarnation, ReplicaId};
use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::Member;
use crate::raft::{RaftMessage, RaftMessageKind};

/// The two kinds of stream between two peers (DESIGN 8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Channel {
    /// Heartbeats, votes, gossip, small requests: never waits behind bulk.
    Control,
    /// Appends, their answers, checkpoints, large requests.
    Bulk,
}

/// What one write to a peer carries: the messages of one flush.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct PeerFrame {
    #[n(0)]
    pub messages: Vec<PeerMessage>,
}

/// One message between nodes.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum PeerMessage {
    /// Between two replicas of `group`.
    #[n(0)]
    Raft {
        #[n(0)]
        group: GroupId,
        #[n(1)]
        message: RaftMessage,
    },
    /// Node-level heartbeat, with what the sender leads.
    #[n(1)]
    Gossip(#[n(0)] Gossip),
    /// A request that the addressee should carry out.
    #[n(2)]
    Forward(#[n(0)] Forward),
    /// Its outcome.
    #[n(3)]
    ForwardReply(#[n(0)] ForwardReply),
    /// Asks for a part of a checkpoint.
    #[n(4)]
    CheckpointPull(#[n(0)] CheckpointPull),
    /// A part of a checkpoint.
    #[n(5)]
    CheckpointChunk(#[n(0)] CheckpointChunk),
    /// Tells a node whose table is behind who the members are.
    #[n(6)]
    Members(#[n(0)] Members),
}

impl PeerMessage {
    /// Keeps leadership alive: what Raft sends besides its log, and the node's own heartbeats. On a stream that it shares with
    /// others it goes first; those of either kind keep their order among themselves.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        match self {
            PeerMessage::Gossip(_) => true,
            PeerMessage::Raft { message, .. } => !matches!(
                message.kind,
                RaftMessageKind::Append | RaftMessageKind::AppendResponse | RaftMessageKind::Snapshot
            ),
            _ => false,
        }
    }
}

/// Sent to every node on the control channel, every [`base::limits::GOSSIP_INTERVAL`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Gossip {
    /// The sending process.
    #[n(0)]
    pub incarnation: Incarnation,
    /// Groups that the sender leads (a part of them, in turn, if they are many).
    #[n(1)]
    pub leaders: Vec<LeaderClaim>,
    /// Index of `__meta` that the sender has applied.
    #[n(2)]
    pub meta_applied: u64,
    /// Whether the sender's disk is full; an older one does not say.
    #[n(3)]
    pub disk_full: Option<bool>,
}

/// The members of the cluster, for a node that has not applied the entries that say so: it takes no connection from a
/// member of which it has not heard, and just that one may lead.
#[derive(Clone, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct Members {
    /// Index of `__meta` that the sender has applied.
    #[n(0)]
    pub meta_applied: u64,
    #[n(1)]
    pub members: Vec<Member>,
    /// The replica of `__meta` of each of them.
    #[n(2)]
    pub meta_replicas: Vec<ReplicaId>,
}

/// "I lead this group in this term."
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct LeaderClaim {
    #[n(0)]
    pub group: GroupId,
    #[n(1)]
    pub term: u64,
    #[n(2)]
    pub replica: ReplicaId,
}

/// A request under way from the node that took it to the node that can carry it out.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Forward {
    /// The sender's name for it.
    #[n(0)]
    pub id: u64,
    /// Milliseconds left of the caller's deadline.
    #[n(1)]
    pub deadline_ms: u64,
    /// The engine's request, encoded. The addressee carries it out or refuses it; it never passes it on, so that wrong
    /// beliefs about leaders cannot make a request circle.
    #[cbor(n(2), with = "crate::blob")]
    pub body: Bytes,
}

/// The outcome of a [`Forward`].
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct ForwardReply {
    /// As in the `Forward`.
    #[n(0)]
    pub id: u64,
    /// The engine's reply, encoded.
    #[cbor(n(1), with = "crate::blob")]
    pub body: Bytes,
}

/// "Send me bytes of your checkpoint of this group."
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CheckpointPull {
    #[n(0)]
    pub group: GroupId,
    /// Index that the checkpoint covers.
    #[n(1)]
    pub index: u64,
    /// First byte wanted.
    #[n(2)]
    pub offset: u64,
}

/// Bytes of a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct CheckpointChunk {
    #[n(0)]
    pub group: GroupId,
    #[n(1)]
    pub index: u64,
    #[n(2)]
    pub offset: u64,
    /// Bytes in the whole checkpoint; 0 means that the sender no longer has it.
    #[n(3)]
    pub total: u64,
    /// CRC-32C of the whole.
    #[n(4)]
    pub crc: u32,
    #[cbor(n(5), with = "crate::blob")]
    pub data: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version had it.
    #[derive(Encode, Decode, PartialEq, Debug)]
    struct OldGossip {
        #[n(0)]
        incarnation: Incarnation,
        #[n(1)]
        leaders: Vec<LeaderClaim>,
        #[n(2)]
        meta_applied: u64,
    }

    #[test]
    fn versions_that_say_whether_their_disk_is_full_and_those_that_do_not_understand_each_other() {
        let old = OldGossip { incarnation: Incarnation(3), leaders: Vec::new(), meta_applied: 9 };
        let read: Gossip = crate::decode(&crate::encode(&old)).expect("an older node's");
        let new = Gossip { incarnation: Incarnation(3), meta_applied: 9, ..Gossip::default() };
        assert_eq!(read, new);
        let full = Gossip { disk_full: Some(true), ..new };
        assert_eq!(crate::decode(&crate::encode(&full)), Ok(full.clone()));
        assert_eq!(crate::decode(&crate::encode(&full)), Ok(old));
    }
}
