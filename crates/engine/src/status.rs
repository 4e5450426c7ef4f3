//! One node's view of itself.

use base::GroupId;
use multiraft::{GroupStatus, Role};

use crate::core::{NodeCore, Stage};
use crate::directory::node_of;
use crate::groups::{Group, GroupStage, Machine};
use crate::{GroupView, NodeStatus};

impl NodeCore {
    /// This node's view of itself and of its peers.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let (ready, reason) = self.readiness();
        let now = self.now.mono;
        let me = self.me();
        let on_nodes = |replicas: &[base::ReplicaId]| {
            replicas.iter().filter_map(|r| node_of(&self.metadata, &self.peers, GroupId::META, *r)).collect()
        };
        let meta = self.groups.get(&GroupId::META).map(|g| &g.membership);
        NodeStatus {
            node: me,
            incarnation: self.config.incarnation,
            ready,
            reason,
            meta_applied: self.metadata.applied,
            groups: self.groups.iter().map(|(id, group)| self.view(*id, group)).collect(),
            peers: self
                .peers
                .nodes()
                .filter(|node| *node != me)
                .filter_map(|node| self.peers.silence(node, now).map(|silence| (node, silence.0)))
                .collect(),
            disk_full: self.disk_full,
            vms_running: u32::try_from(self.vms.reconciler.running()).unwrap_or(u32::MAX),
            // Between two configurations nothing is decided without the old voters.
            meta_voters: meta
                .map(|m| on_nodes(if m.voters_outgoing.is_empty() { &m.voters } else { &m.voters_outgoing }))
                .unwrap_or_default(),
            meta_learners: meta.map(|m| on_nodes(&m.learners)).unwrap_or_default(),
            versions: self.config.me.versions,
            cluster_version: self.metadata.cluster_version,
            release: self.config.me.capabilities.version.clone(),
            pace: Some(self.pace()),
        }
    }

    /// One group here as Raft has it, for checkers.
    #[must_use]
    pub fn raft_status(&self, group: GroupId) -> Option<GroupStatus> {
        self.raft.status(group)
    }

    /// The term of an entry in this node's log of a group, for checkers; `None` if the log does not hold it.
    #[must_use]
    pub fn log_term(&self, group: GroupId, index: u64) -> Option<u64> {
        self.raft.log_term(group, index)
    }

    /// The term that this node is in for a group, for checkers.
    #[must_use]
    pub fn term(&self, group: GroupId) -> Option<u64> {
        self.raft.term(group)
    }

    /// The index up to which a partition's replica here is applied, and a digest of its state, for checkers; `None` if
    /// there is no such replica, or it is not running.
    #[must_use]
    pub fn partition_digest(&self, group: GroupId) -> Option<(u64, u64)> {
        let group = self.groups.get(&group).filter(|group| group.running())?;
        match &group.machine {
            Machine::Partition(partition) => Some((group.applied, partition.digest())),
            Machine::Meta => None,
        }
    }

    /// Groups of which somebody waits here to see an entry applied, for checkers.
    pub fn awaited(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.iter().filter(|(_, group)| !group.waiters.is_empty()).map(|(id, _)| *id)
    }

    pub(crate) fn readiness(&self) -> (bool, String) {
        match self.stage {
            Stage::New | Stage::Recovering => return (false, "recovering".into()),
            Stage::Stopped => return (false, "stopped".into()),
            Stage::Running => {}
        }
        let me = self.me();
        if !self.metadata.nodes.contains_key(&me) {
            return (false, "joining: waits for the cluster's state".into());
        }
        if self.leaders.leader(GroupId::META).is_none() {
            return (false, self.no_leader_yet(GroupId::META));
        }
        if !self.session.is_open() {
            return (false, "waits for the leader to register this process".into());
        }
        (true, String::new())
    }

    /// What keeps a group without a leader, as far as this node can tell.
    pub(crate) fn no_leader_yet(&self, group: GroupId) -> String {
        let now = self.now.mono;
        let me = self.me();
        let heard: Vec<String> = self
            .peers
            .nodes()
            .filter(|node| *node != me)
            .map(|node| match self.peers.silence(node, now) {
                Some(silence) => format!("node {node} heard {silence} ago"),
                None => format!("node {node} never heard"),
            })
            .collect();
        let heard = if heard.is_empty() { "no other node known".to_owned() } else { heard.join(", ") };
        match self.raft.status(group) {
            Some(status) => {
                let asked_for = if status.role == Role::PreCandidate { "pre-votes" } else { "votes" };
                let votes = status.votes.map_or_else(String::new, |votes| {
                    format!("{asked_for} {} for it and {} against, ", votes.granted, votes.rejected)
                });
                format!(
                    "no leader yet for group {group}: term {}, voted for replica {}, {votes}voters {:?}; {heard}",
                    status.term,
                    status.vote,
                    status.membership.voters.iter().map(|r| r.0).collect::<Vec<_>>()
                )
            }
            None => {
                let replicas = self.metadata.partitions.get(&group).into_iter().flat_map(|it| &it.replicas);
                format!(
                    "no leader known for group {group}, of which this node has no replica: last term heard of {}, replicas \
                     on nodes {:?}; {heard}",
                    self.leaders.term(group),
                    replicas.map(|replica| replica.node.0).collect::<Vec<_>>()
                )
            }
        }
    }

    fn view(&self, id: GroupId, group: &Group) -> GroupView {
        let raft = self.raft.status(id);
        let learner = group.membership.learners.contains(&group.replica);
        let role = match (&group.stage, group.role) {
            (GroupStage::Birth(_) | GroupStage::Replay { .. }, _) => "recovering",
            (_, Role::Leader) => "leader",
            (_, Role::Candidate | Role::PreCandidate) => "candidate",
            (_, Role::Follower) if learner => "learner",
            (_, Role::Follower) => "follower",
        };
        let high_watermark = match &group.machine {
            Machine::Partition(partition) => Some(partition.next_offset()),
            Machine::Meta => None,
        };
        GroupView {
            group: id,
            replica: group.replica,
            role: role.into(),
            term: raft.as_ref().map_or(group.term, |s| s.term),
            leader: self.leaders.leader(id),
            commit: raft.as_ref().map_or(0, |s| s.commit),
            applied: group.applied,
            last_index: raft.as_ref().map_or(group.applied, |s| s.last_index),
            high_watermark,
        }
    }
}
