//! `cluster.status`: the cluster in one screen.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, NodeId};
use engine::Request;
use metadata::Metadata;
use ops::{Call, Column, Example, Human, Method, NoInput, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use wire::Pace;

use super::tolerance::{self, Voters};
use super::version::{self, VersionView};
use crate::Ports;
use crate::common::{Asked, ask_every_node, count, node_name};
use crate::node::list::{NodeView, best_informed, views};
use crate::topic::leaders;
use crate::vm::VmView;

/// Rows of one kind that the human form shows, so that everything fits one screen.
const ROWS_SHOWN_MAX: usize = 8;

#[derive(Serialize, JsonSchema)]
struct Output {
    /// The cluster's id, in hexadecimal digits.
    cluster: String,
    /// How often it was recovered from a lost majority.
    incarnation: u64,
    /// The node that answered.
    answered_by: String,
    /// What can be lost, or what is missing already.
    fault_tolerance: String,
    /// What is set up in a way that does harm, and what to do; empty as it should be.
    warnings: Vec<String>,
    version: VersionView,
    meta: MetaView,
    nodes: Vec<NodeView>,
    vms: Vec<VmView>,
    topics: Vec<TopicStatus>,
}

/// The cluster's own group.
#[derive(Serialize, JsonSchema)]
struct MetaView {
    /// Who leads it; null if no node that answered does.
    leader: Option<String>,
    /// The highest Raft term that a node names; null while unknown.
    term: Option<u64>,
    /// Committed index; null while unknown.
    commit: Option<u64>,
    voters: Vec<String>,
    learners: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct TopicStatus {
    name: String,
    partitions: usize,
    /// As asked for; null if elastic.
    replication_factor: Option<u16>,
    /// Voters of the partition that has the fewest.
    voters_min: usize,
    /// Who leads each partition, in order; null if no node that answered does.
    leaders: Vec<Option<String>>,
    /// Records in it so far: the sum of the partitions' high watermarks; null if one is unknown.
    records: Option<i64>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("cluster.status", "Show the cluster: nodes, leaders, VMs, topics", (Method::Get, "/v1/status"), run)
        .docs(
            "Asks every member how it is, under one deadline; who does not answer is listed as unreachable with the \
             reason. Tables are answered from what this node knows, so that it works without a leader too.",
        )
        .examples(&[
            Example { command: "muster status", says: "the whole cluster in one screen" },
            Example { command: "muster status --output json", says: "the same for programs" },
        ])
        .scope(Scope::EveryNode)
        .words(&["status"])
        .errors(crate::common::READ_ERRORS)
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, _: NoInput) -> Result<Output, OpError> {
    let core = &call.context.core;
    let metadata = core.metadata();
    let asked = ask_every_node(&call, &metadata).await;
    if asked.is_empty() {
        return Err(not_a_member_yet(&call).await);
    }
    let leaders = leaders(&asked);
    let topics = metadata.topics.values().map(|topic| {
        let led: Vec<_> = topic.partitions.iter().map(|group| leaders.get(group)).collect();
        let view = crate::topic::view(&metadata, topic, 0);
        TopicStatus {
            name: view.name,
            partitions: view.partitions,
            replication_factor: view.replication_factor,
            voters_min: view.voters_min,
            leaders: led.iter().map(|leader| leader.map(|(node, _)| node_name(&metadata, *node))).collect(),
            records: led.iter().map(|leader| leader.and_then(|(_, view)| view.high_watermark)).sum(),
        }
    });
    let vms = metadata.vm_names.values().filter_map(|id| metadata.vms.get(id));
    Ok(Output {
        cluster: metadata.cluster.to_string(),
        incarnation: metadata.cluster_incarnation.0,
        answered_by: node_name(&metadata, core.me()),
        fault_tolerance: fault_tolerance(&metadata, &asked),
        warnings: uneven_pace(&asked).into_iter().collect(),
        version: version::view(&metadata),
        meta: meta_view(&metadata, &asked),
        nodes: views(&metadata, &asked),
        vms: vms.map(|vm| crate::vm::view(&call, &metadata, vm)).collect(),
        topics: topics.collect(),
    })
}

/// This node knows of no member, not even itself: it says why.
pub(crate) async fn not_a_member_yet(call: &Call<Ports>) -> OpError {
    let status = call.context.core.request(engine::Target::Here, call.deadline, Request::Status).await;
    let reason = match status {
        Ok(engine::Reply::Status(status)) => status.reason,
        Ok(_) => String::new(),
        Err(error) => error.message,
    };
    OpError::new(base::ErrorCode::NoLeader, format!("this node is not part of a cluster yet: {reason}"))
        .hint("wait until it has joined; its log says what it waits for")
}

fn meta_view(metadata: &Metadata, asked: &[Asked]) -> MetaView {
    let leaders = leaders(asked);
    let leader = leaders.get(&GroupId::META);
    let best = best_informed(asked);
    let views = asked.iter().filter_map(|one| one.answer.as_ref().ok()).flat_map(|status| &status.groups);
    let meta = || views.clone().filter(|view| view.group == GroupId::META);
    let names = |nodes: Option<&Vec<NodeId>>| {
        nodes.into_iter().flatten().map(|node| node_name(metadata, *node)).collect::<Vec<_>>()
    };
    MetaView {
        leader: leader.map(|(node, _)| node_name(metadata, *node)),
        term: meta().map(|view| view.term).max(),
        commit: meta().map(|view| view.commit).max(),
        voters: names(best.map(|status| &status.meta_voters)),
        learners: names(best.map(|status| &status.meta_learners)),
    }
}

fn fault_tolerance(metadata: &Metadata, asked: &[Asked]) -> String {
    let alive: BTreeSet<NodeId> = asked
        .iter()
        .filter(|one| one.answer.as_ref().is_ok_and(|status| status.ready))
        .map(|one| one.record.member.node)
        .collect();
    let meta = best_informed(asked).map(|status| status.meta_voters.clone()).unwrap_or_default();
    let names: Vec<String> = metadata.partitions.values().map(|p| format!("{}/{}", p.topic, p.partition)).collect();
    let partitions = metadata.partitions.values().zip(&names).map(|(partition, name)| Voters {
        name,
        nodes: partition.replicas.iter().filter(|replica| replica.voter).map(|replica| replica.node).collect(),
    });
    let groups: Vec<_> = [Voters { name: "__meta", nodes: meta }].into_iter().chain(partitions).collect();
    let zones = metadata.nodes.values().filter_map(|record| Some((record.member.node, record.zone()?))).collect();
    tolerance::describe(metadata.nodes.len(), &alive, &zones, &groups)
}

/// If not all nodes that answer have the same pace: who has which.
fn uneven_pace(asked: &[Asked]) -> Option<String> {
    let mut names: BTreeMap<Pace, Vec<&str>> = BTreeMap::new();
    for one in asked {
        if let Some(pace) = one.answer.as_ref().ok().and_then(|status| status.pace) {
            names.entry(pace).or_default().push(&one.record.member.name);
        }
    }
    let told: Vec<String> = names.iter().map(|(pace, names)| format!("{} with {pace}", names.join(", "))).collect();
    (told.len() > 1).then(|| {
        format!(
            "the nodes do not keep one pace: {}; start all with the same --heartbeat-interval-ms and --election-timeout-ms, or \
             leaders that are alive may be replaced",
            told.join("; ")
        )
    })
}

const NODE_COLUMNS: &[Column] = &[
    Column::plain("NODE", "/name"),
    Column::plain("STATE", "/state"),
    Column::plain("LIFECYCLE", "/lifecycle"),
    Column::plain("META", "/meta_role"),
    Column::plain("KAFKA", "/kafka"),
    Column::plain("API", "/api"),
    Column::plain("CORES", "/cores"),
    Column { title: "MEMORY", pointer: "/memory_mib", cell: ops::Cell::Mebibytes },
    Column::plain("VMS", "/vms_running"),
    Column::plain("VERSION", "/version"),
    Column::plain("REASON", "/reason"),
];

const TOPIC_COLUMNS: &[Column] = &[
    Column::plain("TOPIC", "/name"),
    Column::plain("PARTITIONS", "/partitions"),
    Column::plain("VOTERS", "/voters_min"),
    Column::plain("RECORDS", "/records"),
    Column::plain("LEADERS", "/leaders"),
];

fn text(output: &Value) -> String {
    let rows = |name: &str| output[name].as_array().cloned().unwrap_or_default();
    let (nodes, vms) = (rows("nodes"), rows("vms"));
    let cluster: String = ops::human::text(&output["cluster"]).chars().take(8).collect();
    let meta = |name: &str| match &output["meta"][name] {
        Value::Null => "unknown".into(),
        value => ops::human::text(value),
    };
    let recovered = match output["incarnation"].as_u64() {
        None | Some(0) => String::new(),
        Some(incarnation) => format!(", incarnation {incarnation}"),
    };
    let mut text = format!(
        "cluster {cluster}{recovered}: {}, {}\n{}\n__meta: leader {}, term {}, commit {}\n",
        count(nodes.len(), "node"),
        ops::human::text(&output["fault_tolerance"]),
        version::text(&output["version"]),
        meta("leader"),
        meta("term"),
        meta("commit"),
    );
    for warning in rows("warnings") {
        text.push_str(&format!("warning: {}\n", ops::human::text(&warning)));
    }
    // Nodes that are not well come first, so that they are never among the rows left out.
    let (well, unwell): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node["state"] == "ready");
    let nodes: Vec<Value> = if unwell.len() + well.len() > ROWS_SHOWN_MAX {
        unwell.into_iter().chain(well).collect()
    } else {
        rows("nodes")
    };
    text.push_str(&section(NODE_COLUMNS, &nodes, "muster node list"));
    text.push_str(&section(crate::vm::list::COLUMNS, &vms, "muster vm list"));
    let topics: Vec<Value> = rows("topics").into_iter().map(summarize_leaders).collect();
    text.push_str(&section(TOPIC_COLUMNS, &topics, "muster topic list"));
    text.trim_end().to_owned()
}

/// `node1×3,node2` instead of a name per partition; partitions without a known leader are counted too.
fn summarize_leaders(mut topic: Value) -> Value {
    let mut counts: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for leader in topic["leaders"].as_array().into_iter().flatten() {
        let name = leader.as_str().unwrap_or("none known").to_owned();
        *counts.entry(name).or_default() += 1;
    }
    let shown = counts.iter().map(|(name, n)| if *n == 1 { name.clone() } else { format!("{name}×{n}") });
    topic["leaders"] = shown.collect::<Vec<_>>().into();
    topic
}

fn section(columns: &[Column], rows: &[Value], all: &str) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let shown = &rows[..rows.len().min(ROWS_SHOWN_MAX)];
    let mut text = format!("\n{}\n", ops::human::json_table(columns, shown));
    if rows.len() > shown.len() {
        text.push_str(&format!("... and {} more: `{all}`\n", rows.len() - shown.len()));
    }
    text
}
