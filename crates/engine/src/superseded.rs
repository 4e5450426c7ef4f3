//! The cluster was recovered without this node, says a member of its newer incarnation. A node that has a leader goes on: its
//! majority is there, and somebody recovered what was none. One without a leader has nothing to wait for, and says so.

use base::limits::{NODE_UNREACHABLE_AFTER, SUPERSEDED_AFTER};
use base::simulation::{Mark, mark};
use base::{GroupId, Mono, NodeId};

use crate::core::{NodeCore, Stage};

/// What is known of a newer incarnation.
#[derive(Debug, Default)]
pub(crate) struct Superseded {
    /// Who said so last, and when.
    told: Option<(NodeId, Mono)>,
    /// Since when this node has no leader of `__meta`.
    leaderless: Option<Mono>,
}

impl NodeCore {
    /// A member of a newer incarnation of the cluster refuses this node.
    pub(crate) fn superseded(&mut self, by: NodeId) {
        self.superseded.told = Some((by, self.now.mono));
    }

    pub(crate) fn superseded_tick(&mut self) {
        let now = self.now.mono;
        let (me, peers) = (self.me(), &self.peers);
        let there = |leader: NodeId| leader == me || peers.reachable(leader, now);
        if self.leaders.leader(GroupId::META).is_some_and(there) {
            self.superseded.leaderless = None;
            return;
        }
        let since = *self.superseded.leaderless.get_or_insert(now);
        let Some((by, at)) = self.superseded.told else { return };
        // Said again at each attempt to reach it.
        let lately = now.since(at) < NODE_UNREACHABLE_AFTER || at >= since;
        if now.since(since) < SUPERSEDED_AFTER || !lately || self.stage == Stage::Stopped {
            return;
        }
        mark(Mark::NodeSuperseded);
        let incarnation = self.metadata.cluster_incarnation;
        self.fatal(format!(
            "node {by} says that the cluster was recovered without this node, and this node has no leader: its data is of an \
             older incarnation of the cluster. If a majority of incarnation {incarnation} can still come together, then {by} \
             was recovered by mistake: wipe that one, and start this one again. Otherwise what only this node has is lost to \
             the recovered cluster: keep a copy of the data directory if that matters, wipe it, and join anew with a token. \
             VMs that run here are left as they are"
        ));
    }
}
