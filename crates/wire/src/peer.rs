//! What the nodes of one cluster say to each other, once their hello was accepted.

use std::fmt;

use base::{ClusterVersion, GroupId, Incarnation, Millis, ReplicaId};
use bytes::Bytes;
use minicbor::{Decode, Encode};

use crate::Member;
use crate::codec::{FORMAT, WireError};
use crate::raft::{RaftMessage, RaftMessageKind};

/// Of the length before each message of a frame.
const LENGTH_BYTES: usize = 4;

/// The two kinds of stream between two peers (DESIGN 8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Channel {
    /// Heartbeats, votes, gossip, small requests: never waits behind bulk.
    Control,
    /// Appends, their answers, checkpoints, large requests.
    Bulk,
}

/// What one write to a peer carries: the messages of one flush.
///
/// ```text
/// | format: 1 byte | length: u32 LE | message: CBOR | length | message | ...
/// ```
///
/// Each message has its length, so that one of a kind that the reader does not know costs neither its neighbours nor the
/// connection: a newer node may say more than an older one understands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerFrame {
    pub messages: Vec<PeerMessage>,
    /// Messages that were left out, because they are, or hold, something of a kind that this version does not know.
    pub unknown: u64,
}

impl PeerFrame {
    /// The messages as one frame.
    ///
    /// # Panics
    /// If a message has 4 GiB or more: every message is bounded far below that.
    #[must_use]
    pub fn encode(messages: &[PeerMessage]) -> Bytes {
        let mut out = vec![FORMAT];
        for message in messages {
            let at = out.len();
            out.extend_from_slice(&[0; LENGTH_BYTES]);
            minicbor::encode(message, &mut out).expect("encoding into memory cannot fail");
            let length = u32::try_from(out.len() - at - LENGTH_BYTES).expect("a message is far below 4 GiB");
            out[at..at + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        }
        Bytes::from(out)
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// Another format, a length that does not fit, or a message of a known kind that is not what it should be.
    pub fn decode(bytes: &[u8]) -> Result<PeerFrame, WireError> {
        let malformed = |reason: &str| WireError::Malformed { what: "PeerFrame", reason: reason.to_owned() };
        let (&format, mut rest) = bytes.split_first().ok_or(WireError::Empty)?;
        if format != FORMAT {
            return Err(WireError::UnknownFormat(format));
        }
        let mut frame = PeerFrame::default();
        while !rest.is_empty() {
            let (length, after) =
                rest.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| malformed("it ends inside a length"))?;
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let (message, after) =
                after.split_at_checked(length).ok_or_else(|| malformed("it ends inside a message"))?;
            match decode_message(message)? {
                Some(message) => frame.messages.push(message),
                None => frame.unknown += 1,
            }
            rest = after;
        }
        Ok(frame)
    }
}

/// `None`: of an unknown kind.
fn decode_message(bytes: &[u8]) -> Result<Option<PeerMessage>, WireError> {
    let mut decoder = minicbor::Decoder::new(bytes);
    match decoder.decode::<PeerMessage>() {
        Ok(message) => match bytes.len() - decoder.position() {
            0 => Ok(Some(message)),
            left => Err(WireError::TrailingBytes(left)),
        },
        Err(error) if error.is_unknown_variant() => Ok(None),
        Err(error) => Err(WireError::Malformed { what: "PeerMessage", reason: error.to_string() }),
    }
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

    /// The first cluster version at which it may be sent. Whoever adds a message says so here.
    #[must_use]
    pub fn since(&self) -> ClusterVersion {
        match self {
            PeerMessage::Raft { .. }
            | PeerMessage::Gossip(_)
            | PeerMessage::Forward(_)
            | PeerMessage::ForwardReply(_)
            | PeerMessage::CheckpointPull(_)
            | PeerMessage::CheckpointChunk(_)
            | PeerMessage::Members(_) => ClusterVersion::V1,
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
    /// Whether the sender's disk is full, or it can lead nothing for another reason: leaderships are not to be moved
    /// there. An older one does not say.
    #[n(3)]
    pub disk_full: Option<bool>,
    /// How fast its groups beat and elect. An older one does not say.
    #[n(4)]
    pub pace: Option<Pace>,
}

/// How fast a node's groups beat and elect. It is to be the same on all members: where one beats slower than another one
/// elects, leaders are replaced that are alive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
pub struct Pace {
    #[n(0)]
    pub heartbeat_interval: Millis,
    /// The least one.
    #[n(1)]
    pub election_timeout: Millis,
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (interval, timeout) = (self.heartbeat_interval.0, self.election_timeout.0);
        write!(f, "heartbeats every {interval} ms and an election timeout of {timeout} ms")
    }
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
    /// The leader is at rest: it sends no heartbeats of its own.
    #[n(3)]
    pub rests: Option<bool>,
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
    #[derive(Clone, Encode, Decode, PartialEq, Debug)]
    struct OldGossip {
        #[n(0)]
        incarnation: Incarnation,
        #[n(1)]
        leaders: Vec<LeaderClaim>,
        #[n(2)]
        meta_applied: u64,
    }

    #[test]
    fn versions_that_say_more_of_themselves_and_those_that_do_not_understand_each_other() {
        let old = OldGossip { incarnation: Incarnation(3), leaders: Vec::new(), meta_applied: 9 };
        let read: Gossip = crate::decode(&crate::encode(&old)).expect("an older node's");
        let new = Gossip { incarnation: Incarnation(3), meta_applied: 9, ..Gossip::default() };
        assert_eq!(read, new);
        let pace = Pace { heartbeat_interval: Millis(150), election_timeout: Millis(1_000) };
        let full = Gossip { disk_full: Some(true), ..new.clone() };
        for more in [full.clone(), Gossip { pace: Some(pace), ..full }, Gossip { pace: Some(pace), ..new }] {
            assert_eq!(crate::decode(&crate::encode(&more)), Ok(more.clone()));
            assert_eq!(crate::decode(&crate::encode(&more)), Ok(old.clone()));
        }
    }

    /// A frame of messages that are given as CBOR.
    fn frame(messages: &[&[u8]]) -> Vec<u8> {
        let length = |message: &&[u8]| u32::try_from(message.len()).expect("short").to_le_bytes();
        let framed = |message: &&[u8]| [length(message).as_slice(), message].concat();
        [vec![FORMAT], messages.iter().flat_map(framed).collect()].concat()
    }

    fn gossip() -> PeerMessage {
        PeerMessage::Gossip(Gossip { meta_applied: 7, ..Gossip::default() })
    }

    #[test]
    fn frames_round_trip() {
        for messages in [vec![], vec![gossip()], vec![gossip(), PeerMessage::Members(Members::default())]] {
            let read = PeerFrame::decode(&PeerFrame::encode(&messages));
            assert_eq!(read, Ok(PeerFrame { messages, unknown: 0 }));
        }
    }

    #[test]
    fn a_message_of_an_unknown_kind_costs_only_itself() {
        let known = minicbor::to_vec(gossip()).expect("memory");
        // Kind 99 with a map inside; and a Raft message of kind 77.
        let unknown: &[u8] = &[0x82, 0x18, 99, 0x81, 0xa1, 1, 2];
        let inside: &[u8] = &[0x82, 0, 0x82, 0, 0x81, 0x18, 77];
        let read = PeerFrame::decode(&frame(&[unknown, &known, inside, &known])).expect("readable");
        assert_eq!(read, PeerFrame { messages: vec![gossip(), gossip()], unknown: 2 });
    }

    #[test]
    fn a_damaged_frame_is_refused_as_a_whole() {
        let known = minicbor::to_vec(gossip()).expect("memory");
        let malformed = |bytes: &[u8]| assert!(matches!(PeerFrame::decode(bytes), Err(WireError::Malformed { .. })));
        malformed(&frame(&[&known[..3]]));
        malformed(&frame(&[&[]]));
        malformed(&frame(&[&known])[..7]);
        malformed(&[FORMAT, 1, 0]);
        assert_eq!(PeerFrame::decode(&[]), Err(WireError::Empty));
        assert_eq!(PeerFrame::decode(&[9]), Err(WireError::UnknownFormat(9)));
        let trailing = [known.as_slice(), &[0]].concat();
        assert_eq!(PeerFrame::decode(&frame(&[&trailing])), Err(WireError::TrailingBytes(1)));
    }
}
