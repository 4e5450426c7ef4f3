//! `topic.list`: all topics.

use ops::{Call, Column, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TopicView;
use crate::Ports;
use crate::common::{READ_ERRORS, age_ms, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    topics: Vec<TopicView>,
}

const COLUMNS: &[Column] = &[
    Column::plain("TOPIC", "/name"),
    Column::plain("PARTITIONS", "/partitions"),
    Column::plain("FACTOR", "/replication_factor"),
    Column::plain("VOTERS", "/voters_min"),
    Column::duration("AGE", "/age_ms"),
    Column::plain("CONFIG", "/config"),
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("topic.list", "List the topics", (Method::Get, "/v1/topics"), run)
        .docs("An empty factor is elastic; voters are those of the partition that has the fewest.")
        .examples(&[Example { command: "muster topic list", says: "every topic" }])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .aliases(&["ls"])
        .human(Human::Table { rows: "/topics", columns: COLUMNS, empty: "no topics" })
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = read(&call, input.stale).await?;
    let topics = metadata.topics.values().map(|topic| super::view(&metadata, topic, age_ms(&call, topic.created)));
    Ok(Output { topics: topics.collect() })
}
