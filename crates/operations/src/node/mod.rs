//! Members of the cluster: how they are, and how they go.

use base::{ErrorCode, Millis, NodeId};
use engine::{Reply, Request, Target};
use metadata::{Command, Metadata, NodeLifecycle};
use ops::{Call, OpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Ports;
use crate::common::{command, count, find_node, node_name, within};

pub(crate) mod drain;
pub(crate) mod leave;
pub(crate) mod list;
pub(crate) mod remove;
pub(crate) mod replace;
pub(crate) mod resume;

/// How long a node may take to show that it lives.
const ALIVE_WAIT: Millis = Millis(1_000);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByNode {
    /// The node's name or id.
    #[schemars(length(min = 1, max = 63))]
    pub node: String,
}

/// What becomes of a node.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Going {
    pub id: u64,
    pub name: String,
    /// `active`, `draining`, `lost`, `leaving`, `removing`, or `gone`.
    pub lifecycle: String,
    /// Replicas of partitions on it.
    pub replicas: usize,
    /// VMs that are assigned to it.
    pub vms: usize,
}

/// A node as the tables have it.
pub(crate) fn going(metadata: &Metadata, node: NodeId) -> Going {
    let lifecycle = metadata.nodes.get(&node).map_or("gone", |record| record.lifecycle.as_str());
    let departed = metadata.departed.get(&node).map(|departed| departed.name.clone());
    let (replicas, vms) = load(metadata, node);
    let name = departed.unwrap_or_else(|| node_name(metadata, node));
    Going { id: node.0, name, lifecycle: lifecycle.into(), replicas, vms }
}

/// Replicas and VMs on a node.
pub(crate) fn load(metadata: &Metadata, node: NodeId) -> (usize, usize) {
    let replicas = metadata.partitions.values().flat_map(|p| &p.replicas).filter(|r| r.node == node).count();
    let vms = metadata.vms.values().filter(|vm| vm.assignment.is_some_and(|at| at.node == node)).count();
    (replicas, vms)
}

/// Why a node that is to go does not: partitions for whose replicas there is no other node.
pub(crate) fn kept_by(metadata: &Metadata, node: NodeId) -> Option<String> {
    if metadata.nodes.get(&node).is_none_or(|record| record.lifecycle.stays()) {
        return None;
    }
    let on = |partition: &metadata::PartitionRecord, node: NodeId| partition.replicas.iter().any(|r| r.node == node);
    let nowhere = |partition: &&metadata::PartitionRecord| {
        let room = metadata.nodes.keys().any(|other| metadata.takes_replicas(*other) && !on(partition, *other));
        on(partition, node) && metadata.replica_plan(partition).missing > 0 && !room
    };
    let stuck = metadata.partitions.values().filter(nowhere).count();
    let away: Vec<&str> = metadata
        .staying()
        .filter(|record| !record.lifecycle.holds_replicas())
        .map(|record| record.member.name.as_str())
        .collect();
    let remedy = match away.is_empty() {
        true => "add a node".to_owned(),
        false => format!("add a node, or bring back or remove {}", away.join(", ")),
    };
    (stuck > 0).then(|| format!("{} has nowhere else to go: {remedy}", count(stuck, "replica")))
}

/// Has the cluster change what becomes of a node.
async fn change(call: &Call<Ports>, node: NodeId, order: Command) -> Result<Going, OpError> {
    let (_, metadata) = command(call, order).await?;
    Ok(going(&metadata, node))
}

/// Whether a node answers.
async fn is_alive(call: &Call<Ports>, node: NodeId) -> bool {
    if node == call.context.core.me() {
        return true;
    }
    let deadline = call.clock.now().mono.plus(ALIVE_WAIT);
    let answer = call.context.core.request(Target::Node(node), deadline, Request::Status);
    within(call, deadline, answer).await.is_ok_and(|reply| matches!(reply, Reply::Status(_)))
}

/// Topics whose explicit replication factor the others cannot give without the node.
fn short_topics(metadata: &Metadata, node: NodeId) -> Vec<String> {
    let others = metadata.staying().filter(|other| other.member.node != node).count();
    let wants = |topic: &&metadata::TopicRecord| topic.replication_factor.is_some_and(|f| usize::from(f) > others);
    metadata.topics.values().filter(wants).map(|topic| topic.name.clone()).collect()
}

/// Refuses what would leave topics with fewer replicas than they were made for.
fn check_topics(metadata: &Metadata, node: NodeId) -> Result<(), OpError> {
    let short = short_topics(metadata, node);
    if short.is_empty() {
        return Ok(());
    }
    let shown: Vec<&str> = short.iter().take(3).map(String::as_str).collect();
    let message = format!(
        "{} would have fewer replicas than asked for without {}, such as {}",
        count(short.len(), "topic"),
        node_name(metadata, node),
        shown.join(", ")
    );
    Err(OpError::new(ErrorCode::FailedPrecondition, message).hint("add a node first, or say --force"))
}

/// A node that goes already goes on.
fn goes_already(metadata: &Metadata, node: NodeId) -> bool {
    metadata.nodes.get(&node).is_some_and(|record| !record.lifecycle.stays())
}

fn is_removing(metadata: &Metadata, node: NodeId) -> bool {
    metadata.nodes.get(&node).is_some_and(|record| record.lifecycle == NodeLifecycle::Removing)
}

/// A member, or one that was removed lately (asked for again by somebody who did not hear that it is done).
fn find_going(metadata: &Metadata, wanted: &str) -> Result<NodeId, OpError> {
    find_node(metadata, wanted).or_else(|missing| {
        if missing.code != ErrorCode::NotFound {
            return Err(missing);
        }
        let departed = |node: &&metadata::DepartedNode| node.name == wanted || node.node.to_string() == wanted;
        metadata.departed.values().rev().find(departed).map(|node| node.node).ok_or(missing)
    })
}

fn left(output: &Value) -> String {
    let number = |name: &str| usize::try_from(output[name].as_u64().unwrap_or_default()).unwrap_or_default();
    format!("{} and {} are on it", count(number("replicas"), "replica"), count(number("vms"), "VM"))
}

fn name(output: &Value) -> String {
    ops::human::text(&output["name"])
}
