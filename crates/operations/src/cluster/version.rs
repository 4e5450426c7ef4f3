//! `cluster.version`: at which version the nodes work together, and what keeps it from rising.

use metadata::Metadata;
use ops::{Call, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Ports;
use crate::common::{READ_ERRORS, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

/// The version at which the nodes work together: what a newer one brings is used when all nodes can it.
#[derive(Serialize, JsonSchema)]
pub(super) struct VersionView {
    /// The active cluster version. It only rises.
    active: u16,
    /// The highest that all nodes can.
    possible: u16,
    /// Where an operator holds it; null if nobody does.
    held_at: Option<u16>,
    /// Nodes that can less than some other one: they keep the cluster from rising.
    waits_for: Vec<String>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new(
        "cluster.version",
        "Show the cluster's version, and what keeps it from rising",
        (Method::Get, "/v1/cluster/version"),
        run,
    )
    .docs(
        "The version at which the nodes work together, which is not the release that runs on each: `node list` shows that \
         one. After the last node of an upgrade it rises by itself, unless `cluster hold` keeps it.",
    )
    .examples(&[
        Example { command: "muster cluster version", says: "whether an upgrade is complete, and which nodes it waits for" },
        Example { command: "muster cluster version --output json", says: "the same for programs" },
    ])
    .scope(Scope::Leader)
    .errors(READ_ERRORS)
    .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<VersionView, OpError> {
    let metadata = read(&call, input.stale).await?;
    if metadata.nodes.is_empty() {
        return Err(super::status::not_a_member_yet(&call).await);
    }
    Ok(view(&metadata))
}

pub(super) fn view(metadata: &Metadata) -> VersionView {
    let nodes = || metadata.nodes.values().map(|node| &node.member);
    let most = nodes().map(|member| member.versions.max).max().unwrap_or_default();
    VersionView {
        active: metadata.cluster_version.0,
        possible: nodes().map(|member| member.versions.max).min().unwrap_or_default().0,
        held_at: metadata.version_hold.map(|hold| hold.0),
        waits_for: nodes().filter(|member| member.versions.max < most).map(|member| member.name.clone()).collect(),
    }
}

/// `cluster version: 2`, and why it is not more.
pub(crate) fn text(version: &Value) -> String {
    let (active, held_at) = (&version["active"], &version["held_at"]);
    let waits: Vec<_> = version["waits_for"].as_array().into_iter().flatten().map(ops::human::text).collect();
    let waits = waits.join(", ");
    let why = match (waits.is_empty(), held_at.is_null()) {
        (false, true) => format!(" (rises when {waits} can more: upgrade muster there)"),
        (false, false) => format!(" (held at {held_at}, and {waits} can less than the others)"),
        (true, false) => format!(" (held at {held_at})"),
        (true, true) => String::new(),
    };
    format!("cluster version: {active}{why}")
}
