//! Topics and where their partitions live.

use std::collections::BTreeMap;

use base::limits::ELASTIC_REPLICATION_FACTOR;
use base::{ErrorCode, GroupId, NodeId, TopicId};
use serde_json::json;
use stream::topic;

use crate::apply::{Context, refuse};
use crate::domains::spread;
use crate::{CommandResult, EVENTS_TOPIC, Metadata, NodeLifecycle, PartitionRecord, ReplicaRecord, TopicRecord};

/// The topic that holds the console of a VM.
#[must_use]
pub fn console_topic(vm: &str) -> String {
    format!("vm.{vm}.console")
}

/// A topic that only muster makes and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OwnTopic<'a> {
    Events,
    Console { vm: &'a str },
}

impl OwnTopic<'_> {
    fn of(name: &str) -> Option<OwnTopic<'_>> {
        if name == EVENTS_TOPIC {
            return Some(OwnTopic::Events);
        }
        let vm = name.strip_prefix("vm.")?.strip_suffix(".console")?;
        (!vm.is_empty()).then_some(OwnTopic::Console { vm })
    }
}

/// Whether clients may make and write topics of that name: `muster.events` and `vm.*.console` are muster's own, so that
/// what is read there is what happened, and what a guest printed.
///
/// # Errors
/// With a sentence that says whose it is.
pub fn free_topic_name(name: &str) -> Result<(), String> {
    let what = match OwnTopic::of(name) {
        None => return Ok(()),
        Some(OwnTopic::Events) => "the cluster's events".to_owned(),
        Some(OwnTopic::Console { vm }) => format!("the console of a VM named {vm}"),
    };
    Err(format!("the topic name {name} is kept for {what}: only muster makes and writes it"))
}

impl Metadata {
    pub(crate) fn create_topic(
        &mut self,
        context: Context,
        name: &str,
        topic_id: TopicId,
        partitions: u32,
        replication_factor: Option<u16>,
        config: &[(String, String)],
    ) -> CommandResult {
        let nodes = self.staying().count();
        let asked = replication_factor.map_or(-1, i64::from);
        let checked = topic::check_name(name)
            .and_then(|()| topic::check_partitions(i64::from(partitions)))
            .and_then(|partitions| Ok((partitions, topic::check_replication_factor(asked, nodes)?)));
        let (partitions, factor) = match checked {
            Ok((partitions, factor)) => (partitions, factor.map_or(ELASTIC_REPLICATION_FACTOR.min(nodes), usize::from)),
            Err(broken) => return refuse(ErrorCode::InvalidArgument, broken.to_string()),
        };
        if self.topics.contains_key(name) {
            return refuse(ErrorCode::AlreadyExists, format!("topic {name} exists already"));
        }
        let groups: Vec<_> =
            (0..partitions).map(|partition| self.create_partition(context, name, partition, factor)).collect();
        let record = TopicRecord {
            name: name.to_owned(),
            topic_id,
            partitions: groups.clone(),
            replication_factor,
            config: config.to_vec(),
            created: context.now,
        };
        self.topics.insert(name.to_owned(), record);
        let event = json!({ "event": "topic.created", "topic": name, "partitions": partitions });
        self.publish(context, name, event);
        CommandResult::TopicCreated { topic_id, groups }
    }

    pub(crate) fn delete_topic(&mut self, context: Context, name: &str) -> CommandResult {
        let kept = match OwnTopic::of(name) {
            Some(OwnTopic::Events) => Some(format!("{name} is built in and cannot be deleted")),
            Some(OwnTopic::Console { vm }) if self.vm_names.contains_key(vm) => {
                Some(format!("{name} is the console of VM {vm}: it can be deleted once the VM is"))
            }
            // Of a VM that is gone, the console stays until somebody deletes it.
            Some(OwnTopic::Console { .. }) | None => None,
        };
        if let Some(reason) = kept {
            return refuse(ErrorCode::FailedPrecondition, reason);
        }
        let Some(topic) = self.topics.remove(name) else {
            return refuse(ErrorCode::NotFound, format!("there is no topic {name}"));
        };
        for group in &topic.partitions {
            self.partitions.remove(group);
        }
        self.publish(context, name, json!({ "event": "topic.deleted", "topic": name }));
        CommandResult::Done
    }

    fn create_partition(&mut self, context: Context, topic: &str, partition: u32, factor: usize) -> GroupId {
        self.next.group += 1;
        let group = GroupId(self.next.group);
        let replicas: Vec<_> = self
            .emptiest_nodes(factor, group, context.silent)
            .into_iter()
            .map(|node| ReplicaRecord { replica: self.next_replica(), node, voter: true, retired: false })
            .collect();
        let record = PartitionRecord {
            group,
            topic: topic.to_owned(),
            partition,
            born: replicas.iter().map(|r| r.replica).collect(),
            replicas,
            epoch_base: 0,
        };
        self.partitions.insert(group, record);
        group
    }

    /// `count` nodes with the fewest replicas, spread over the failure domains, in an order that spreads the first places
    /// (preferred leaders). Those that drain or are lost only where there are no others; those that are silent not at all, or the group might never have a
    /// majority: it gets its other replicas when there is somebody to have them.
    fn emptiest_nodes(&self, count: usize, group: GroupId, silent: &[NodeId]) -> Vec<NodeId> {
        let nodes = || self.staying().map(|node| node.member.node);
        let mut load: BTreeMap<NodeId, (usize, usize)> =
            nodes().filter(|node| !silent.contains(node)).map(|node| (node, (0, 0))).collect();
        if load.is_empty() {
            load.extend(nodes().map(|node| (node, (0, 0))));
        }
        let shunned = |node: &NodeId| self.nodes.get(node).is_none_or(|node| node.lifecycle != NodeLifecycle::Active);
        for partition in self.partitions.values() {
            for (place, replica) in partition.replicas.iter().enumerate() {
                if let Some((all, first)) = load.get_mut(&replica.node) {
                    *all += 1;
                    *first += usize::from(place == 0);
                }
            }
        }
        let mut nodes: Vec<_> = load.iter().map(|(node, (all, first))| (shunned(node), *all, *first, *node)).collect();
        nodes.sort_unstable();
        let welcome = nodes.iter().filter(|(shunned, ..)| !shunned).count();
        if welcome >= count {
            nodes.truncate(welcome);
        }
        let candidates: Vec<_> = nodes.iter().map(|node| (*node, self.domain_of(node.3))).collect();
        let mut nodes = spread(&candidates, count);
        // Among those chosen, whoever leads least comes first; ties rotate with the group.
        nodes.sort_unstable_by_key(|(shunned, _, first, node)| (*shunned, *first, (node.0 + group.0) % 64, *node));
        nodes.into_iter().map(|(_, _, _, node)| node).collect()
    }
}
