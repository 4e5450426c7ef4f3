//! Node-level heartbeats: "I am here, and I lead these".

use base::limits::{GOSSIP_INTERVAL, GOSSIP_LEADERS, GOSSIP_LEADERS_MAX};
use base::simulation::{Mark, Plant, mark_if, planted};
use base::{ClusterVersion, GroupId, NodeId, ReplicaId};
use multiraft::Role;
use wire::{Channel, Gossip, LeaderClaim, Members, Pace, PeerMessage};

use crate::Effect;
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
            rests: self.raft.rests(*group).then_some(true),
        };
        let mut leaders: Vec<_> = self.groups.iter().filter(|(_, g)| g.active).map(claim).collect();
        // Followers of a group at rest wait for its turn as they would for a heartbeat.
        let turns = (self.config.election_timeout.0 / GOSSIP_INTERVAL.0).saturating_sub(2);
        let turns = usize::try_from(turns).unwrap_or(usize::MAX >> 16);
        let understood = self.metadata.cluster_version >= ClusterVersion::V2;
        self.raft.let_rest(understood && leaders.len() <= turns * GOSSIP_LEADERS_MAX);
        // So many that each has had its turn in time.
        let named = leaders.len().div_ceil(turns.max(1)).clamp(GOSSIP_LEADERS, GOSSIP_LEADERS_MAX);
        if leaders.len() > named {
            // In turn: each message continues where the last one ended.
            let start = leaders.partition_point(|claim| claim.group <= self.leaders.gossiped_through);
            leaders.rotate_left(start);
            leaders.truncate(named);
            self.leaders.gossiped_through = leaders.last().map_or(GroupId(0), |claim| claim.group);
        }
        for claim in &leaders {
            if claim.rests.is_some()
                && let Some(group) = self.groups.get_mut(&claim.group)
            {
                group.stats.claimed();
            }
        }
        let gossip = Gossip {
            incarnation: self.config.incarnation,
            leaders,
            meta_applied: self.metadata.applied,
            // A disk that is stuck, or a node about to stop, is no better place for a leader than a full disk.
            disk_full: Some(self.disk_full || !self.raft.is_electable()),
            pace: Some(self.pace()),
        };
        let me = self.me();
        let nodes: Vec<_> = self.peers.nodes().filter(|node| *node != me).collect();
        for node in nodes {
            self.send(node, Channel::Control, PeerMessage::Gossip(gossip.clone()));
        }
    }

    /// How fast this node's groups beat and elect.
    pub(crate) fn pace(&self) -> Pace {
        Pace { heartbeat_interval: self.config.heartbeat_interval, election_timeout: self.config.election_timeout }
    }

    /// Says, once, that another node has another pace than this one.
    fn compare_pace(&mut self, with: NodeId, theirs: Pace) {
        let mine = self.pace();
        if self.peers.pace_told(with, theirs) && theirs != mine {
            self.effects.push(Effect::Warning(format!(
                "node {with} has {theirs}, this node {mine}: start all nodes with the same --heartbeat-interval-ms and \
                 --election-timeout-ms, or leaders that are alive may be replaced"
            )));
        }
    }

    /// Groups that this node leads and of which the other has a replica, with that.
    pub(crate) fn led_with(&self, node: NodeId) -> Vec<(GroupId, ReplicaId)> {
        let led = self.groups.iter().filter(|(_, group)| group.role == Role::Leader);
        led.filter_map(|(group, _)| Some((*group, self.replica_on(*group, node)?))).collect()
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
        if let Some(pace) = gossip.pace {
            self.compare_pace(from, pace);
        }
        for claim in gossip.leaders.iter().take(GOSSIP_LEADERS_MAX) {
            // Of a partition that was deleted, somebody who has not heard of it yet may still speak.
            let deleted = !self.groups.contains_key(&claim.group)
                && claim.group != GroupId::META
                && claim.group.0 <= self.metadata.groups_given_out()
                && !self.metadata.partitions.contains_key(&claim.group);
            mark_if(Mark::LeaderClaimOfDeletedGroup, || deleted);
            if !deleted {
                self.leaders.learn(claim.group, claim.term, Some(from));
                let heard = self.raft.hear_leader(claim.group, claim.term, claim.replica);
                if let Some(group) = self.groups.get_mut(&claim.group).filter(|_| heard && claim.rests == Some(true)) {
                    group.stats.heard_claim();
                }
            }
        }
        if self.peers.answers(from, self.now.mono, self.config.election_timeout) {
            for (group, replica) in self.led_with(from) {
                self.raft.hear_follower(group, replica);
            }
        }
    }
}
