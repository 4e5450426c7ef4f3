//! `node.list`: every member, and how it is.

use std::collections::BTreeMap;

use engine::NodeStatus;
use metadata::Metadata;
use ops::{Call, Cell, Column, Example, Human, Method, NoInput, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::Serialize;

use crate::Ports;
use crate::common::{Asked, ask_every_node};

/// One member.
#[derive(Clone, Serialize, JsonSchema)]
pub(crate) struct NodeView {
    pub id: u64,
    pub name: String,
    /// `ready`; `joining`: it answers but cannot take part yet; `unreachable`: it does not answer.
    pub state: String,
    /// Why it is not ready, or cannot go although it is to; empty if there is nothing to say.
    pub reason: String,
    /// What the cluster does with it: `active`; `draining`: it gets no work; `lost`: silent for so long that its replicas
    /// are made anew elsewhere; `leaving` or `removing`: everything moves away, then it is forgotten.
    pub lifecycle: String,
    /// Replicas of partitions on it.
    pub replicas: usize,
    /// VMs that are assigned to it, whether they run or not.
    pub vms_assigned: usize,
    /// `leader`, `voter` or `learner` of the cluster's own group; null while unknown.
    pub meta_role: Option<String>,
    /// Where Kafka clients reach it.
    pub kafka: String,
    /// Where its API listens.
    pub api: String,
    /// Where its peers reach it (UDP).
    pub peer: Vec<String>,
    /// URL of the relay by which its peers reach it too; null if it has none.
    pub relay: Option<String>,
    /// Its identity towards its peers, an Ed25519 public key, which it keeps for ever.
    pub endpoint: String,
    pub cores: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub architecture: String,
    /// Found there, with versions.
    pub hypervisors: Vec<String>,
    /// `kvm` or `tcg`; empty without a hypervisor.
    pub accelerator: String,
    pub labels: BTreeMap<String, String>,
    /// Its failure domain, by its label `zone`; null: it is one of its own.
    pub zone: Option<String>,
    /// The release of muster that runs there; the last one that was heard of if it does not answer.
    pub version: String,
    /// The lowest cluster version that it can.
    pub cluster_version_min: u16,
    /// The highest: what the cluster can rise to depends on whoever has the lowest of these.
    pub cluster_version_max: u16,
    /// The active cluster version, as the node has applied it; null while unknown.
    pub cluster_version: Option<u16>,
    /// VMs that run there now; null while unknown.
    pub vms_running: Option<u32>,
    /// Whether its disk is full, so that it takes no writes; null while unknown.
    pub disk_full: Option<bool>,
    /// Index of the cluster's own log that it has applied; null while unknown.
    pub meta_applied: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    nodes: Vec<NodeView>,
}

const COLUMNS: &[Column] = &[
    Column::plain("NODE", "/name"),
    Column::plain("ID", "/id"),
    Column::plain("STATE", "/state"),
    Column::plain("LIFECYCLE", "/lifecycle"),
    Column::plain("META", "/meta_role"),
    Column::plain("REPLICAS", "/replicas"),
    Column::plain("VMS", "/vms_assigned"),
    Column::plain("KAFKA", "/kafka"),
    Column::plain("API", "/api"),
    Column::plain("CORES", "/cores"),
    Column { title: "MEMORY", pointer: "/memory_mib", cell: Cell::Mebibytes },
    Column::plain("ACCEL", "/accelerator"),
    Column::plain("VERSION", "/version"),
    Column::plain("CLUSTER", "/cluster_version_max"),
    Column::plain("ZONE", "/zone"),
    Column::plain("LABELS", "/labels"),
    Column::plain("REASON", "/reason"),
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("node.list", "List the nodes of the cluster", (Method::Get, "/v1/nodes"), run)
        .docs(
            "Asks every member how it is, under one deadline of 2 s. A member that does not answer is listed as \
             unreachable with the reason. Which members there are is answered from what this node knows.",
        )
        .examples(&[Example { command: "muster node list", says: "every node, its state, addresses and size" }])
        .scope(Scope::EveryNode)
        .aliases(&["ls"])
        .human(Human::Table { rows: "/nodes", columns: COLUMNS, empty: "no nodes yet" })
}

async fn run(call: Call<Ports>, _: NoInput) -> Result<Output, OpError> {
    let metadata = call.context.core.metadata();
    let asked = ask_every_node(&call, &metadata).await;
    Ok(Output { nodes: views(&metadata, &asked) })
}

/// How the members are, from what they answered.
pub(crate) fn views(metadata: &Metadata, asked: &[Asked]) -> Vec<NodeView> {
    let best = best_informed(asked);
    let answers = || asked.iter().filter_map(|one| one.answer.as_ref().ok());
    // Whoever heard of it last.
    let heard = |node| answers().filter_map(|status| status.peers.get(&node).copied()).min();
    asked.iter().map(|one| view(metadata, one, best, heard(one.record.member.node))).collect()
}

/// The answer of whoever has applied most of the cluster's log.
pub(crate) fn best_informed(asked: &[Asked]) -> Option<&NodeStatus> {
    asked.iter().filter_map(|one| one.answer.as_ref().ok()).max_by_key(|status| status.meta_applied)
}

fn view(metadata: &Metadata, asked: &Asked, best: Option<&NodeStatus>, heard: Option<u64>) -> NodeView {
    let member = &asked.record.member;
    let (state, reason) = match &asked.answer {
        Ok(status) if status.ready => ("ready", String::new()),
        Ok(status) => ("joining", status.reason.clone()),
        Err(error) => (
            "unreachable",
            match heard {
                Some(ms) => format!("{}; last heard of {} ago", error.message, ops::human::duration(ms)),
                None => error.message.clone(),
            },
        ),
    };
    let answer = asked.answer.as_ref().ok();
    let leads =
        |status: &NodeStatus| status.groups.iter().any(|g| g.group == base::GroupId::META && g.role == "leader");
    let meta_role = match best {
        _ if answer.is_some_and(leads) => Some("leader"),
        Some(status) if status.meta_voters.contains(&member.node) => Some("voter"),
        Some(status) if status.meta_learners.contains(&member.node) => Some("learner"),
        _ => None,
    };
    let (replicas, vms_assigned) = super::load(metadata, member.node);
    let kept = super::kept_by(metadata, member.node).filter(|_| reason.is_empty());
    let reason = kept.unwrap_or(reason);
    NodeView {
        id: member.node.0,
        name: member.name.clone(),
        state: state.into(),
        reason,
        lifecycle: asked.record.lifecycle.as_str().into(),
        replicas,
        vms_assigned,
        meta_role: meta_role.map(str::to_owned),
        kafka: member.address.kafka.clone(),
        api: member.address.api.clone(),
        peer: member.address.direct.clone(),
        relay: member.address.relay_url.clone(),
        endpoint: member.address.endpoint.to_string(),
        cores: member.capabilities.cores,
        memory_mib: member.capabilities.memory_mib,
        disk_mib: member.capabilities.disk_mib,
        architecture: member.capabilities.architecture.clone(),
        hypervisors: member.capabilities.hypervisors.clone(),
        accelerator: member.capabilities.accelerator.clone(),
        labels: member.labels.clone(),
        zone: asked.record.zone().map(str::to_owned),
        version: answer.map_or_else(|| member.capabilities.version.clone(), |status| status.release.clone()),
        cluster_version_min: answer.map_or(member.versions, |status| status.versions).min.0,
        cluster_version_max: answer.map_or(member.versions, |status| status.versions).max.0,
        cluster_version: answer.map(|status| status.cluster_version.0),
        vms_running: answer.map(|status| status.vms_running),
        disk_full: answer.map(|status| status.disk_full),
        meta_applied: answer.map(|status| status.meta_applied),
    }
}
