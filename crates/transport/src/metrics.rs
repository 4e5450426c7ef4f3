//! What is counted, per peer and channel.

use base::NodeId;
use runtime::{Counter, Gauge, Histogram, LATENCY_BUCKETS_S, Registry};
use wire::Channel;

/// Dense around the interval, [`base::limits::GOSSIP_INTERVAL`], and 50 ms above it.
const HEARTBEAT_GAP_BUCKETS_S: &[f64] =
    &[0.01, 0.05, 0.1, 0.12, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0];

/// Counters of one channel of one peer.
#[derive(Debug)]
pub struct ChannelMetrics {
    pub frames_out: Counter,
    pub bytes_out: Counter,
    pub frames_in: Counter,
    pub bytes_in: Counter,
    pub dropped: Counter,
    /// As of the last scrape.
    pub queued: Gauge,
    /// From a message's being queued to its frame's being written.
    pub delay: Histogram,
    /// Received, of kinds that this version does not know.
    pub not_understood: Counter,
}

/// Counters of one peer.
#[derive(Debug)]
pub struct PeerMetrics {
    control: ChannelMetrics,
    bulk: ChannelMetrics,
    pub connects: Counter,
    pub rtt_seconds: Gauge,
    pub connected: Gauge,
    /// From one node-level heartbeat (gossip) written to the control stream to the next.
    pub heartbeat_gap: Histogram,
}

/// Counters of the node.
#[derive(Debug)]
pub struct NodeMetrics {
    pub refused: Counter,
    pub violations: Counter,
    pub connect_seconds: Histogram,
    /// Messages for nodes that are no peers.
    pub unknown: Counter,
}

impl ChannelMetrics {
    fn new(registry: &Registry, peer: &str, channel: &str) -> Self {
        let labels: &[(&str, &str)] = &[("peer", peer), ("channel", channel)];
        let counter = |name, help| registry.counter(name, help, labels);
        ChannelMetrics {
            frames_out: counter("muster_peer_frames_sent_total", "Frames sent to a peer."),
            bytes_out: counter("muster_peer_bytes_sent_total", "Bytes of frames sent to a peer."),
            frames_in: counter("muster_peer_frames_received_total", "Frames received from a peer."),
            bytes_in: counter("muster_peer_bytes_received_total", "Bytes of frames received from a peer."),
            dropped: counter("muster_peer_messages_dropped_total", "Messages to a peer that were not sent."),
            queued: registry.gauge("muster_peer_messages_queued", "Messages that wait to be written to a peer.", labels),
            delay: registry.histogram(
                "muster_peer_send_delay_seconds",
                "From the core's sending a message to its being written to the peer's stream: the oldest of each frame.",
                labels,
                LATENCY_BUCKETS_S,
            ),
            not_understood: counter(
                "muster_peer_messages_not_understood_total",
                "Messages from a newer peer that were left out.",
            ),
        }
    }
}

impl PeerMetrics {
    pub fn new(registry: &Registry, node: NodeId) -> Self {
        let peer = node.to_string();
        let labels: &[(&str, &str)] = &[("peer", &peer)];
        PeerMetrics {
            control: ChannelMetrics::new(registry, &peer, "control"),
            bulk: ChannelMetrics::new(registry, &peer, "bulk"),
            connects: registry.counter("muster_peer_connects_total", "Connections made to a peer.", labels),
            rtt_seconds: registry.gauge("muster_peer_rtt_seconds", "Round trip to a peer.", labels),
            connected: registry.gauge("muster_peer_connected", "1 while a peer can be sent to.", labels),
            heartbeat_gap: registry.histogram(
                "muster_peer_heartbeat_gap_seconds",
                "Between two node-level heartbeats written to a peer's control stream.",
                labels,
                HEARTBEAT_GAP_BUCKETS_S,
            ),
        }
    }

    pub fn channel(&self, channel: Channel) -> &ChannelMetrics {
        match channel {
            Channel::Control => &self.control,
            Channel::Bulk => &self.bulk,
        }
    }
}

impl NodeMetrics {
    pub fn new(registry: &Registry) -> Self {
        let counter = |name, help| registry.counter(name, help, &[]);
        NodeMetrics {
            refused: counter("muster_peer_hellos_refused_total", "Hellos of other endpoints refused."),
            violations: counter("muster_peer_violations_total", "Connections closed because of what they sent."),
            connect_seconds: registry.histogram(
                "muster_peer_connect_seconds",
                "From dialling a peer to its welcome.",
                &[],
                LATENCY_BUCKETS_S,
            ),
            unknown: counter("muster_peer_messages_unknown_total", "Messages for nodes that are no peers."),
        }
    }
}
