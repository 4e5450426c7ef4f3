//! Another process of this node: its data directory was copied, or restored from a backup. Members let one of the two speak,
//! the one that was there first, and refuse the other one, which is told so at each attempt to reach them. One that is told
//! so for long, by more members than let it speak, ends. Not at once: where the same directory was moved, the process before
//! may be gone and its connections not yet. And not on the word of a few: they may have met the other one in a gap.

use std::collections::BTreeMap;

use base::limits::TWIN_AFTER;
use base::{Incarnation, Mono, NodeId};

use crate::Effect;
use crate::core::{NodeCore, Stage};

/// What is known of another process.
#[derive(Debug, Default)]
pub(crate) struct Twin {
    /// Since when members have said so again and again.
    since: Option<Mono>,
    /// Who said so, and when last.
    by: BTreeMap<NodeId, Mono>,
}

impl NodeCore {
    /// A member refuses this process because of another one of the same node.
    pub(crate) fn told_of_twin(&mut self, by: NodeId, other: Incarnation) {
        let now = self.now.mono;
        self.twin.by.retain(|_, last| now.since(*last) < TWIN_AFTER);
        let since = self.twin.since.filter(|_| !self.twin.by.is_empty()).unwrap_or(now);
        self.twin.since = Some(since);
        self.twin.by.insert(by, now);
        let (refusing, me) = (&self.twin.by, self.me());
        let hears = |node: &NodeId| *node != me && !refusing.contains_key(node) && self.peers.reachable(*node, now);
        let outvoted = refusing.len() > self.peers.nodes().filter(hears).count();
        if now.since(since) < TWIN_AFTER || !outvoted || self.stage == Stage::Stopped {
            return;
        }
        let mine = self.config.incarnation;
        if other > mine {
            self.effects.push(Effect::Outdone { by: other });
        }
        let what = match other > mine {
            true => format!(
                "a later process of this node than this one was there (incarnation {other}; this is {mine}): the \
                 data directory is an older copy of the node's, and lacks what the node has acknowledged since"
            ),
            false => format!(
                "another process of this node is there (incarnation {other}; this is {mine}): one of the two data \
                 directories is a copy of the other, and lacks what the other one acknowledged"
            ),
        };
        self.fatal(format!(
            "node {by} says that {what}. Nothing was changed in the cluster. If this one is the copy, remove it; to \
             add a node, join with a token and an empty data directory. If the other one is the copy, stop that one \
             first"
        ));
    }
}
