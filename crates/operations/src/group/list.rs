//! `group.list`: every Raft group as every node sees it.

use base::GroupId;
use metadata::Metadata;
use ops::{Call, Example, Human, Method, NoInput, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::Ports;
use crate::common::{ask_every_node, node_name};

#[derive(Serialize, JsonSchema)]
struct Output {
    nodes: Vec<NodeGroups>,
}

#[derive(Serialize, JsonSchema)]
struct NodeGroups {
    node: String,
    id: u64,
    /// Whether it answered.
    reachable: bool,
    /// Why it did not; empty if it did.
    reason: String,
    groups: Vec<GroupEntry>,
}

/// One replica, as its node sees it.
#[derive(Serialize, JsonSchema)]
struct GroupEntry {
    group: u64,
    /// `__meta`, or `TOPIC/PARTITION`.
    name: String,
    replica: u64,
    /// `leader`, `follower`, `candidate`, `learner` or `recovering`.
    role: String,
    term: u64,
    /// Who leads, as far as this node knows.
    leader: Option<String>,
    commit: u64,
    applied: u64,
    last_index: u64,
    /// Of a partition: offset after the last committed record.
    high_watermark: Option<i64>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("group.list", "List the Raft groups as every node sees them", (Method::Get, "/v1/groups"), run)
        .docs("Asks every node, under one deadline. One that does not answer is listed with the reason.")
        .examples(&[Example { command: "muster group list", says: "roles, terms, leaders and indexes" }])
        .scope(Scope::EveryNode)
        .aliases(&["ls"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, _: NoInput) -> Result<Output, OpError> {
    let metadata = call.context.core.metadata();
    let asked = ask_every_node(&call, &metadata).await;
    let nodes = asked.into_iter().map(|one| {
        let (groups, reason) = match one.answer {
            Ok(status) => (status.groups.into_iter().map(|view| entry(&metadata, view)).collect(), None),
            Err(error) => (Vec::new(), Some(error.message)),
        };
        let member = one.record.member;
        let reachable = reason.is_none();
        NodeGroups { node: member.name, id: member.node.0, reachable, reason: reason.unwrap_or_default(), groups }
    });
    Ok(Output { nodes: nodes.collect() })
}

fn entry(metadata: &Metadata, view: engine::GroupView) -> GroupEntry {
    GroupEntry {
        group: view.group.0,
        name: group_name(metadata, view.group),
        replica: view.replica.0,
        role: view.role,
        term: view.term,
        leader: view.leader.map(|node| node_name(metadata, node)),
        commit: view.commit,
        applied: view.applied,
        last_index: view.last_index,
        high_watermark: view.high_watermark,
    }
}

/// `__meta`, or `TOPIC/PARTITION`.
pub(crate) fn group_name(metadata: &Metadata, group: GroupId) -> String {
    match metadata.partitions.get(&group) {
        _ if group == GroupId::META => "__meta".into(),
        Some(partition) => format!("{}/{}", partition.topic, partition.partition),
        None => format!("#{group}"),
    }
}

fn text(output: &Value) -> String {
    let mut rows = Vec::new();
    for node in output["nodes"].as_array().into_iter().flatten() {
        let name = ops::human::text(&node["node"]);
        if node["reachable"] == false {
            let reason = format!("unreachable: {}", ops::human::text(&node["reason"]));
            rows.push(vec!["-".into(), name.clone(), reason]);
        }
        for group in node["groups"].as_array().into_iter().flatten() {
            let cell = |field: &str| ops::human::text(&group[field]);
            let mut row = vec![cell("name"), name.clone()];
            row.extend(["role", "term", "leader", "commit", "applied", "last_index", "high_watermark"].map(cell));
            rows.push(row);
        }
    }
    rows.sort();
    let header = ["GROUP", "NODE", "ROLE", "TERM", "LEADER", "COMMIT", "APPLIED", "LAST", "HIGH WATERMARK"];
    ops::human::table(&header, &rows)
}
