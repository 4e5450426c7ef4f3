//! What a node tells of its consensus: counts since its process started, and how things stand.

use std::collections::BTreeMap;

use base::{Distribution, GroupId, Incarnation, NodeId};
use minicbor::{Decode, Encode};

/// The answer to [`crate::Request::Vitals`]. What is counted is counted since this process started, over all groups that
/// have, or had, a replica on the node.
#[derive(Clone, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Vitals {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub incarnation: Incarnation,
    /// Milliseconds since the process's core started.
    #[n(2)]
    pub counted_ms: u64,
    /// See [`crate::NodeStatus::ready`].
    #[n(3)]
    pub ready: bool,
    #[n(4)]
    pub elections: Elections,
    #[n(5)]
    pub ticks: Ticks,
    /// Between heartbeats of a group that this node leads, as the clock asks for them; those that reads ask for in between
    /// do not count.
    #[n(6)]
    pub heartbeats_sent: Distribution,
    /// Between heartbeats of a group's leader, whatever they were for.
    #[n(7)]
    pub heartbeats_received: Distribution,
    /// From proposing an entry, as leader, to its commit.
    #[n(8)]
    pub committed: Distribution,
    /// From handing a round to the journal to its being durable.
    #[n(9)]
    pub synced: Distribution,
    #[n(10)]
    pub queues: Queues,
    #[n(11)]
    pub groups: GroupTotals,
    /// Single groups: those without a leader first, then those with the highest terms. As many as were asked for.
    #[n(12)]
    pub listed: Vec<GroupVitals>,
    /// Index of `__meta` that this node has applied.
    #[n(13)]
    pub meta_applied: u64,
    #[n(14)]
    pub disk_full: bool,
    /// Milliseconds since each peer was heard of.
    #[n(15)]
    pub peers: BTreeMap<NodeId, u64>,
    /// The time between heartbeats that the node aims for, in milliseconds.
    #[n(16)]
    pub heartbeat_interval_ms: u64,
    /// Bytes that the files of the journal's log take, spare ones too.
    #[n(17)]
    pub log_bytes: u64,
    /// VMs that run on this node now.
    #[n(18)]
    pub vms_running: u32,
    /// What the core has not seen yet; None: nobody told it, or the node's release is older than this.
    #[n(19)]
    pub arrivals: Option<Arrivals>,
}

/// What waits to be handed to the core, as its driver said at the last tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Arrivals {
    /// Frames of peers on the control channel.
    #[n(0)]
    pub control: u64,
    /// Frames of peers on the bulk channel.
    #[n(1)]
    pub bulk: u64,
    /// Disk operations that ended.
    #[n(2)]
    pub disk: u64,
    /// Reports of the hypervisor side.
    #[n(3)]
    pub vms: u64,
    /// Requests of this node's clients.
    #[n(4)]
    pub requests: u64,
}

/// What this node's replicas went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Elections {
    /// Times that a replica began to ask whether an election has a chance (PreVote; Raft section 9.6), which changes no term.
    #[n(0)]
    pub pre_votes: u64,
    /// Candidacies in a new term.
    #[n(1)]
    pub started: u64,
    #[n(2)]
    pub won: u64,
    /// Moves to a higher term, whoever brought it about.
    #[n(3)]
    pub term_changes: u64,
    /// Terms of which a leader became known, this node or another.
    #[n(4)]
    pub leader_changes: u64,
    /// Leaderships of this node that ended, handed over ones too.
    #[n(5)]
    pub step_downs: u64,
}

/// Raft's ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Ticks {
    #[n(0)]
    pub passed: u64,
    /// Missed because the core did not get to run, and never made good.
    #[n(1)]
    pub skipped: u64,
    /// Times that the core did not run for longer than an election timeout.
    #[n(2)]
    pub pauses: u64,
}

/// What is under way at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct Queues {
    /// Requests that this node took and has not answered.
    #[n(0)]
    pub requests: u64,
    /// Of these, those that wait for a leader, a session or recovery.
    #[n(1)]
    pub requests_waiting: u64,
    /// Entries proposed by this node and not committed.
    #[n(2)]
    pub proposals: u64,
    /// Rounds handed to the journal and not durable.
    #[n(3)]
    pub rounds: u64,
    /// Entries committed and not applied, over all groups: the apply lag.
    #[n(4)]
    pub unapplied: u64,
    /// The same of the group that has most.
    #[n(5)]
    pub unapplied_max: u64,
    /// Reads of the log and of checkpoints under way.
    #[n(6)]
    pub log_reads: u64,
    /// Questions that the node's driver has not answered.
    #[n(7)]
    pub questions: u64,
    /// Events of the cluster that wait for being published.
    #[n(8)]
    pub outbox: u64,
}

/// The groups that have a replica here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Encode, Decode)]
pub struct GroupTotals {
    #[n(0)]
    pub all: u64,
    /// Led by this node, which takes proposals.
    #[n(1)]
    pub led: u64,
    /// Of which this node knows no leader.
    #[n(2)]
    pub without_leader: u64,
    /// Being born or recovered.
    #[n(3)]
    pub recovering: u64,
    #[n(4)]
    pub term_max: u64,
}

/// One group as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GroupVitals {
    #[n(0)]
    pub group: GroupId,
    #[n(1)]
    pub term: u64,
    #[n(2)]
    pub leader: Option<NodeId>,
    #[n(3)]
    pub elections: Elections,
    #[n(4)]
    pub commit: u64,
    #[n(5)]
    pub applied: u64,
}
