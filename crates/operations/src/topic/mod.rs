//! Topics: replicated logs that any Kafka client reads and writes.

use std::collections::BTreeMap;

use base::{ErrorCode, GroupId};
use engine::GroupView;
use metadata::{Metadata, TopicRecord};
use ops::OpError;
use schemars::JsonSchema;
use serde::Serialize;

use crate::common::{Asked, node_name};

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod list;

/// A topic in a list.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TopicView {
    pub name: String,
    /// Kafka's id of it (KIP-516), in hexadecimal digits.
    pub topic_id: String,
    pub partitions: usize,
    /// As asked for; null if elastic: min(3, nodes), growing as nodes join.
    pub replication_factor: Option<u16>,
    /// Voters that the partition with the fewest has.
    pub voters_min: usize,
    /// As it was given.
    pub config: BTreeMap<String, String>,
    pub age_ms: u64,
}

pub(crate) fn view(metadata: &Metadata, topic: &TopicRecord, age_ms: u64) -> TopicView {
    TopicView {
        name: topic.name.clone(),
        topic_id: topic.topic_id.to_string(),
        partitions: topic.partitions.len(),
        replication_factor: topic.replication_factor,
        voters_min: topic.partitions.iter().map(|group| voters(metadata, *group)).min().unwrap_or(0),
        config: topic.config.iter().cloned().collect(),
        age_ms,
    }
}

fn voters(metadata: &Metadata, group: GroupId) -> usize {
    metadata.partitions.get(&group).map_or(0, |p| p.replicas.iter().filter(|replica| replica.voter).count())
}

/// The leader's own view of each group, among all answers: of the highest term, if two claim it.
pub(crate) fn leaders(asked: &[Asked]) -> BTreeMap<GroupId, (base::NodeId, &GroupView)> {
    let mut leaders: BTreeMap<GroupId, (base::NodeId, &GroupView)> = BTreeMap::new();
    for one in asked {
        let Ok(status) = &one.answer else { continue };
        for view in status.groups.iter().filter(|view| view.role == "leader") {
            let newer = leaders.get(&view.group).is_none_or(|(_, other)| other.term < view.term);
            if newer {
                leaders.insert(view.group, (status.node, view));
            }
        }
    }
    leaders
}

/// The topic of that name.
pub(crate) fn find<'a>(metadata: &'a Metadata, name: &str) -> Result<&'a TopicRecord, OpError> {
    metadata.topics.get(name).ok_or_else(|| {
        let error = OpError::new(ErrorCode::NotFound, format!("there is no topic {name:?}"));
        match ops::nearest(name, metadata.topics.keys().map(String::as_str)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint("`muster topic list` shows them all"),
        }
    })
}

/// The names of a partition's nodes: (all replicas, voters).
pub(crate) fn replica_names(metadata: &Metadata, group: GroupId) -> (Vec<String>, Vec<String>) {
    let Some(partition) = metadata.partitions.get(&group) else { return Default::default() };
    let name = |replica: &metadata::ReplicaRecord| node_name(metadata, replica.node);
    let voters = partition.replicas.iter().filter(|replica| replica.voter).map(name).collect();
    (partition.replicas.iter().map(name).collect(), voters)
}
