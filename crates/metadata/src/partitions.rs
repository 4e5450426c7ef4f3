//! Replicas of partitions, and how an elastic topic grows.

use base::limits::ELASTIC_REPLICATION_FACTOR;
use base::simulation::{Mark, mark};
use base::{ErrorCode, GroupId, NodeId, ReplicaId};

use crate::apply::refuse;
use crate::domains::spread;
use crate::{CommandResult, Metadata, NodeLifecycle, NodeRecord, PartitionRecord, ReplicaRecord};

/// What is to become of a partition's replicas.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ReplicaPlan {
    /// These count towards the target: voters first, then in the order in which they were made.
    pub keep: Vec<ReplicaRecord>,
    /// These can be retired: there are enough others.
    pub spare: Vec<ReplicaId>,
    /// So many are to be made.
    pub missing: usize,
}

impl Metadata {
    /// Every group with an id up to this one exists or existed; a higher one is not known here yet.
    #[must_use]
    pub fn groups_given_out(&self) -> u64 {
        self.next.group
    }

    /// How many replicas the partition should have now.
    #[must_use]
    pub fn replica_target(&self, partition: &PartitionRecord) -> usize {
        match self.topics.get(&partition.topic).and_then(|topic| topic.replication_factor) {
            Some(factor) => usize::from(factor).min(self.staying().count()),
            None => ELASTIC_REPLICATION_FACTOR.min(self.staying().count()),
        }
    }

    /// Members that are not on their way out.
    pub fn staying(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().filter(|node| node.lifecycle.stays())
    }

    /// What is to become of the partition's replicas. Those on nodes that are lost or go are not spared before there are as
    /// many others as there should be: so no group falls below its target on the way, and the only copy never goes.
    #[must_use]
    pub fn replica_plan(&self, partition: &PartitionRecord) -> ReplicaPlan {
        let target = self.replica_target(partition);
        let mut counted: Vec<ReplicaRecord> =
            partition.replicas.iter().filter(|r| !r.retired && self.holds(r.node)).copied().collect();
        // Of too many (a lost node came back) the newest goes, and first those that do not vote yet; but where two share a
        // failure domain and there is another one, one of the two.
        counted.sort_by_key(|r| (!r.voter, r.replica));
        let counted: Vec<_> = counted.iter().map(|r| (*r, self.domain_of(r.node))).collect();
        let mut keep = spread(&counted, target);
        keep.sort_by_key(|r| (!r.voter, r.replica));
        let enough = keep.len() >= target && !keep.is_empty();
        let others = partition.replicas.iter().filter(|r| !r.retired && !keep.contains(r));
        // One that is there and votes is let go only when all others do: whoever takes its place may not come.
        let learns = keep.iter().any(|kept| !kept.voter);
        let needed = |r: &&ReplicaRecord| learns && r.voter && self.holds(r.node);
        let spare = others.filter(|r| enough && !needed(r)).map(|r| r.replica).collect();
        ReplicaPlan { missing: target.saturating_sub(keep.len()), keep, spare }
    }

    pub(crate) fn add_replica(&mut self, group: GroupId, node: NodeId) -> CommandResult {
        match self.nodes.get(&node).map(|node| node.lifecycle) {
            None => return refuse(ErrorCode::NotFound, format!("node {node} is not a member")),
            Some(NodeLifecycle::Active) => {}
            Some(other) => {
                let message = format!("node {node} is {}: it gets no replicas", other.as_str());
                return refuse(ErrorCode::FailedPrecondition, message);
            }
        }
        let Some(partition) = self.partitions.get(&group) else {
            return refuse(ErrorCode::NotFound, format!("there is no group {group}"));
        };
        if partition.replicas.iter().any(|replica| replica.node == node) {
            return refuse(ErrorCode::AlreadyExists, format!("node {node} has a replica of group {group}"));
        }
        if self.replica_plan(partition).missing == 0 && !self.spreads_better_on(partition, node) {
            return refuse(ErrorCode::FailedPrecondition, format!("group {group} has all its replicas"));
        }
        let replica = self.next_replica();
        if let Some(partition) = self.partitions.get_mut(&group) {
            partition.replicas.push(ReplicaRecord { replica, node, voter: false, retired: false });
        }
        CommandResult::ReplicaAdded { replica }
    }

    pub(crate) fn replica_voter(&mut self, group: GroupId, replica: ReplicaId, voter: bool) -> CommandResult {
        let record = self.partitions.get_mut(&group).and_then(|p| p.replicas.iter_mut().find(|r| r.replica == replica));
        match record {
            Some(record) => {
                record.voter = voter;
                CommandResult::Done
            }
            None => refuse(ErrorCode::NotFound, format!("group {group} has no replica {replica}")),
        }
    }

    pub(crate) fn retire_replica(&mut self, group: GroupId, replica: ReplicaId) -> CommandResult {
        let Some(partition) = self.partitions.get(&group) else {
            return refuse(ErrorCode::NotFound, format!("there is no group {group}"));
        };
        if !self.replica_plan(partition).spare.contains(&replica) {
            let message = format!("replica {replica} of group {group} cannot be spared");
            return refuse(ErrorCode::FailedPrecondition, message);
        }
        let record = self.partitions.get_mut(&group).and_then(|p| p.replicas.iter_mut().find(|r| r.replica == replica));
        if let Some(record) = record {
            record.retired = true;
        }
        CommandResult::Done
    }

    pub(crate) fn remove_replica(&mut self, group: GroupId, replica: ReplicaId) -> CommandResult {
        let Some(partition) = self.partitions.get_mut(&group) else {
            return refuse(ErrorCode::NotFound, format!("there is no group {group}"));
        };
        // Once retired it is never taken into the group again, so this cannot come too late.
        if !partition.replicas.iter().any(|r| r.replica == replica && r.retired) {
            let message = format!("group {group} has no replica {replica} that was retired");
            return refuse(ErrorCode::FailedPrecondition, message);
        }
        mark(Mark::ReplicaLeft);
        partition.replicas.retain(|r| r.replica != replica);
        CommandResult::Done
    }
}
