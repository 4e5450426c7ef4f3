//! `topic.create`: a new topic.

use std::collections::BTreeMap;

use base::TopicId;
use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::TopicView;
use crate::Ports;
use crate::common::{WRITE_ERRORS, command, failure};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Letters, digits, `.`, `_` and `-`; muster.events and vm.*.console are muster's own.
    #[schemars(length(min = 1, max = 249))]
    name: String,
    /// How many partitions.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    partitions: u32,
    /// How many nodes keep each partition; by default min(3, nodes), growing as nodes join.
    #[schemars(range(min = 1, max = 512))]
    replication_factor: Option<u16>,
    /// Topic configuration, as Kafka names it.
    #[serde(default)]
    config: BTreeMap<String, String>,
}

fn one() -> u32 {
    1
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("topic.create", "Create a topic", (Method::Post, "/v1/topics"), run)
        .docs(
            "Each partition is a Raft group of its own. Without an explicit factor a topic is elastic: as nodes join, \
             its partitions grow to three replicas.",
        )
        .examples(&[
            Example { command: "muster topic create orders --partitions 3", says: "three partitions, elastic" },
            Example {
                command: "muster topic create scratch --replication-factor 1 --config compression.type=producer",
                says: "one replica, whatever nodes join",
            },
        ])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .positional(&["name"])
        .short(&[("partitions", 'p'), ("replication_factor", 'r')])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<TopicView, OpError> {
    stream::topic::check_name(&input.name).map_err(|error| OpError::field("name", format!("is refused: {error}")))?;
    metadata::free_topic_name(&input.name).map_err(|reason| OpError::field("name", format!("is refused: {reason}")))?;
    for (key, value) in &input.config {
        stream::topic::check_config(key, value)
            .map_err(|error| OpError::field("config", format!("is refused: {error}")))?;
    }
    let mut id = [0; 16];
    call.context.random.fill(&mut id).map_err(failure)?;
    let create = Command::CreateTopic {
        name: input.name.clone(),
        topic_id: TopicId(id),
        partitions: input.partitions,
        replication_factor: input.replication_factor,
        config: input.config.into_iter().collect(),
    };
    let (_, metadata) = command(&call, create).await?;
    let topic = super::find(&metadata, &input.name)?;
    Ok(super::view(&metadata, topic, 0))
}

fn text(output: &Value) -> String {
    let partitions = output["partitions"].as_u64().unwrap_or(0);
    let name = ops::human::text(&output["name"]);
    format!("topic {name} is created: {}", crate::common::count(partitions as usize, "partition"))
}
