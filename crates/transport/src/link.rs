//! The transport as the engine's driver sees it, so that a simulator can stand in for it.

use base::NodeId;
use wire::{Channel, PeerMessage};

/// Carries messages to other nodes.
pub trait PeerLink: Send + Sync + 'static {
    /// Queues `messages` for `to` and returns at once. They arrive in order per channel and Raft group, or not at all:
    /// what does not fit, or what is for a node that is unknown or was out of reach for long, is dropped and counted.
    fn send(&self, to: NodeId, channel: Channel, messages: Vec<PeerMessage>);
}
