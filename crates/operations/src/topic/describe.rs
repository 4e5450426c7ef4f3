//! `topic.describe`: one topic, partition by partition.

use ops::{Call, Column, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TopicView;
use crate::Ports;
use crate::common::{READ_ERRORS, age_ms, ask_every_node, node_name, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The topic.
    #[schemars(length(min = 1, max = 249))]
    name: String,
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    topic: TopicView,
    partitions: Vec<PartitionView>,
    /// Nodes that did not say what they know, with the reason: `name: reason`.
    unreachable: Vec<String>,
}

#[derive(Serialize, JsonSchema)]
struct PartitionView {
    partition: usize,
    /// Its Raft group.
    group: u64,
    /// Who leads it; null if no node that answered does.
    leader: Option<String>,
    /// Raft term; null while unknown.
    term: Option<u64>,
    /// Offset after the last committed record; null while unknown.
    high_watermark: Option<i64>,
    replicas: Vec<String>,
    voters: Vec<String>,
}

const LINES: &[Column] = &[
    Column::plain("name", "/name"),
    Column::plain("topic id", "/topic_id"),
    Column::plain("partitions", "/partitions"),
    Column::plain("replication factor", "/replication_factor"),
    Column::plain("voters min", "/voters_min"),
    Column::plain("config", "/config"),
    Column::duration("age", "/age_ms"),
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("topic.describe", "Show one topic, partition by partition", (Method::Get, "/v1/topics/{name}"), run)
        .docs("Leaders and offsets are what the nodes themselves say; what no node says is shown as unknown.")
        .examples(&[Example { command: "muster topic describe muster.events", says: "leaders, replicas, offsets" }])
        .scope(Scope::EveryNode)
        .errors(READ_ERRORS)
        .positional(&["name"])
        .aliases(&["inspect", "show"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = read(&call, input.stale).await?;
    let topic = super::find(&metadata, &input.name)?;
    let asked = ask_every_node(&call, &metadata).await;
    let leaders = super::leaders(&asked);
    let partitions = topic.partitions.iter().enumerate().map(|(partition, group)| {
        let leader = leaders.get(group);
        let (replicas, voters) = super::replica_names(&metadata, *group);
        PartitionView {
            partition,
            group: group.0,
            leader: leader.map(|(node, _)| node_name(&metadata, *node)),
            term: leader.map(|(_, view)| view.term),
            high_watermark: leader.and_then(|(_, view)| view.high_watermark),
            replicas,
            voters,
        }
    });
    let silent = asked.iter().filter_map(|one| {
        let error = one.answer.as_ref().err()?;
        Some(format!("{}: {}", one.record.member.name, error.message))
    });
    Ok(Output {
        topic: super::view(&metadata, topic, age_ms(&call, topic.created)),
        partitions: partitions.collect(),
        unreachable: silent.collect(),
    })
}

fn text(output: &Value) -> String {
    let mut text = ops::human::record(LINES, &output["topic"]);
    let rows: Vec<Vec<String>> = output["partitions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            let cell = |name: &str| match &row[name] {
                Value::Null => "unknown".to_owned(),
                value => ops::human::text(value),
            };
            ["partition", "group", "leader", "term", "high_watermark", "replicas", "voters"].map(cell).to_vec()
        })
        .collect();
    let header = ["PARTITION", "GROUP", "LEADER", "TERM", "HIGH WATERMARK", "REPLICAS", "VOTERS"];
    text.push_str("\n\n");
    text.push_str(&ops::human::table(&header, &rows));
    for silent in output["unreachable"].as_array().into_iter().flatten() {
        text.push_str("\nno answer from ");
        text.push_str(&ops::human::text(silent));
    }
    text
}
