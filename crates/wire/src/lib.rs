//! Muster's own encodings: what peers say to each other, what the journal stores, what host and guest exchange.
//!
//! Everything is CBOR (RFC 8949) with numbered fields, by way of `minicbor`: a field is never renumbered, a new field
//! is optional, and a reader skips numbers it does not know, so that versions N and N+1 understand each other.
//! Top-level values stand behind one format byte ([`encode`], [`decode`]). What must not be skipped (commands, the state of
//! `__meta`) is used only when all members can read it: see `base::version`.
//!
//! Invariant: this crate holds no logic, only shapes, and decoding any bytes ends in a value or a [`WireError`],
//! never in a panic or an allocation that the input's length does not justify.

pub mod agent;
pub mod blob;
mod codec;
mod hello;
pub mod journal;
mod member;
mod peer;
mod raft;
mod token;

pub use codec::{WireError, decode, encode, encode_of_size, is_encoding_of};
pub use hello::{
    Hello, HelloAck, HelloPurpose, JoinAccepted, JoinRequest, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Refusal,
};
pub use member::{Capabilities, Member, NodeAddress};
pub use peer::{
    Channel, CheckpointChunk, CheckpointPull, Forward, ForwardReply, Gossip, LeaderClaim, Members, Pace, PeerFrame,
    PeerMessage,
};
pub use raft::{
    Entry, EntryKind, HardState, Membership, MembershipChange, MembershipOp, MembershipStep, RaftMessage,
    RaftMessageKind, SnapshotMeta,
};
pub use token::{JoinToken, TokenError, TokenRecovery, TokenSeed};
