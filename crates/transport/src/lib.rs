//! How the nodes of a cluster reach each other: identity, peers, channels, hello. Over iroh (QUIC, Ed25519).
//!
//! ```text
//!   node 1                                                     node 2
//!   dial --------------- QUIC, TLS 1.3, both keys proven ------> after_handshake: member, or one of few strangers
//!   Hello ------------------------ bidirectional stream -------> judged: cluster, incarnation, recovery, version, node
//!        <---------------------------------- Welcome | Refused
//!   control frames ---- stream of high priority ---------------> control inbox
//!   bulk frames ------- 4 streams, one group always on one ----> bulk inbox
//! ```
//!
//! **Who dials.** Every node dials every other and sends only on the connection that it dialled; it receives on those
//! that it accepted. So two nodes that dial at once need no agreement on which connection survives, and a node that
//! was just admitted can speak first. A second connection from the same node replaces its first.
//!
//! **Threads.** All of QUIC (sockets, handshakes, encryption) and both ends of the control channel run on one thread
//! of raised priority, so that heartbeats go on while the rest of the node burns every core. Encoding, decoding and
//! queueing of bulk frames happen on the node's ordinary threads; what is left of bulk on the QUIC thread is cut into
//! packets one at a time, and the control stream's data goes into the next one.
//!
//! **Nothing waits for a peer.** [`PeerLink::send`] puts messages into a bounded queue per peer and channel and
//! returns; what does not fit is dropped and counted, because Raft sends again. Messages to one peer and channel
//! arrive in the order of sending per Raft group, or not at all.
//!
//! Invariant: this crate knows nothing of Raft's logic. It moves messages and judges only who may speak.

mod accept;
mod close;
mod dial;
mod error;
mod frame;
mod identity;
mod inbox;
mod join;
mod lane;
mod link;
mod log;
mod metrics;
mod peer;
mod roster;
mod transport;
mod twins;

pub use error::{IdentityError, JoinError, SeedFailure, TransportError};
pub use identity::Identity;
pub use inbox::{Inbox, Incoming};
pub use link::PeerLink;
pub use peer::PeerStatus;
pub use roster::{Departed, Local, Members};
pub use transport::{Inboxes, RefusalRecord, Transport, TransportConfig, check_relay};

/// The application protocol in TLS's ALPN. Versions are told apart in the hello, where a refusal can carry a reason.
pub const ALPN: &[u8] = b"muster/peer";
