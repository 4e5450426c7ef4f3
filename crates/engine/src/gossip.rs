//! Node-level heartbeats: "I am here, and I lead these".

use base::limits::{GOSSIP_INTERVAL, GOSSIP_LEADERS_MAX};
use base::simulation::{Mark, Plant, mark_if, planted};
use base::{GroupId, NodeId};
use wire::{Channel, Gossip, LeaderClaim, Members, PeerMessage};

use crate::core::{NodeCore, Stage};

impl NodeCore {
    /// Tells every node what this one leads, if the interval has passed.
    pub(crate) fn gossip(&mut self) {
        let due = self.leaders.gossiped.is_none_or(|at| self.now.mono.since(at) >= GOSSIP_INTERVAL);
        if self.stage == Stage::Running && due {
            self.gossip_now();
        }
    }

    pub(crate) fn gossip_now(&mut self) {
        self.leaders.gossiped = Some(self.now.mono);
        let claim = |(group, replica): (&GroupId, &crate::groups::Group)| LeaderClaim {
            group: *group,
            term: replica.term,
            replica: replica.replica,
        };
        let mut leaders: Vec<_> = self.groups.iter().filter(|(_, g)| g.active).map(claim).collect();
        if leaders.len() > GOSSIP_LEADERS_MAX {
            // In turn: each message continues where the last one ended.
            let start = leaders.partition_point(|claim| claim.group <= self.leaders.gossiped_through);
            leaders.rotate_left(start);
            leaders.truncate(GOSSIP_LEADERS_MAX);
            self.leaders.gossiped_through = leaders.last().map_or(GroupId(0), |claim| claim.group);
        }
        let gossip = Gossip {
            incarnation: self.config.incarnation,
            leaders,
            meta_applied: self.metadata.applied,
            // A disk that is stuck, or a node about to stop, is no better place for a leader than a full disk.
            disk_full: Some(self.disk_full || !self.raft.is_electable()),
        };
        let me = self.me();
        let nodes: Vec<_> = self.peers.nodes().filter(|node| *node != me).collect();
        for node in nodes {
            self.send(node, Channel::Control, PeerMessage::Gossip(gossip.clone()));
        }
    }

    /// Somebody knows more of the members than this node's table says.
    pub(crate) fn take_members(&mut self, members: Members) {
        let news = self.peers.take_members(self.metadata.applied, members);
        mark_if(Mark::MembersHeardFromAnother, || news);
    }

    pub(crate) fn take_gossip(&mut self, from: NodeId, gossip: Gossip) {
        if let Some(members) = self.peers.news_for(gossip.meta_applied, &self.metadata)
            && !planted(Plant::MembersNotTold)
        {
            self.send(from, Channel::Control, PeerMessage::Members(members));
        }
        self.peers.disk_told(from, gossip.incarnation, gossip.disk_full, self.now.mono);
        for claim in gossip.leaders.iter().take(GOSSIP_LEADERS_MAX) {
            // Of a partition that was deleted, somebody who has not heard of it yet may still speak.
            let deleted = claim.group != GroupId::META
                && claim.group.0 <= self.metadata.groups_given_out()
                && !self.metadata.partitions.contains_key(&claim.group);
            mark_if(Mark::LeaderClaimOfDeletedGroup, || deleted);
            if !deleted {
                self.leaders.learn(claim.group, claim.term, Some(from));
            }
        }
    }
}
