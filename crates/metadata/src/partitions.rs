//! Replicas of partitions, and how an elastic topic grows.

use base::limits::ELASTIC_REPLICATION_FACTOR;
use base::{ErrorCode, GroupId, NodeId, ReplicaId};

use crate::apply::refuse;
use crate::{CommandResult, Metadata, PartitionRecord, ReplicaRecord};

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
            Some(factor) => usize::from(factor),
            None => ELASTIC_REPLICATION_FACTOR.min(self.nodes.len()),
        }
    }

    pub(crate) fn add_replica(&mut self, group: GroupId, node: NodeId) -> CommandResult {
        if !self.nodes.contains_key(&node) {
            return refuse(ErrorCode::NotFound, format!("node {node} is not a member"));
        }
        let Some(partition) = self.partitions.get(&group) else {
            return refuse(ErrorCode::NotFound, format!("there is no group {group}"));
        };
        if partition.replicas.iter().any(|replica| replica.node == node) {
            return refuse(ErrorCode::AlreadyExists, format!("node {node} has a replica of group {group}"));
        }
        if partition.replicas.len() >= self.replica_target(partition) {
            return refuse(ErrorCode::FailedPrecondition, format!("group {group} has all its replicas"));
        }
        let replica = self.next_replica();
        if let Some(partition) = self.partitions.get_mut(&group) {
            partition.replicas.push(ReplicaRecord { replica, node, voter: false });
        }
        CommandResult::ReplicaAdded { replica }
    }

    pub(crate) fn replica_voter(&mut self, group: GroupId, replica: ReplicaId) -> CommandResult {
        let record = self.partitions.get_mut(&group).and_then(|p| p.replicas.iter_mut().find(|r| r.replica == replica));
        match record {
            Some(record) => {
                record.voter = true;
                CommandResult::Done
            }
            None => refuse(ErrorCode::NotFound, format!("group {group} has no replica {replica}")),
        }
    }
}
