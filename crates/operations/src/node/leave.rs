//! `node.leave`: a node that runs goes for good.

use base::ErrorCode;
use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Going, change, check_topics, find_going, goes_already, is_alive, left, name};
use crate::Ports;
use crate::common::{WRITE_ERRORS, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The node's name or id.
    #[schemars(length(min = 1, max = 63))]
    node: String,
    /// Also if topics then have fewer replicas than they were made for.
    #[serde(default)]
    force: bool,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("node.leave", "Let a node leave the cluster for good", (Method::Post, "/v1/nodes/{node}/leave"), run)
        .docs(
            "First everything on it moves away: leaderships, VMs, and each replica once another node has a copy. \
             Nothing is lost, and no group falls below its replicas on the way. Then it is forgotten and its process \
             ends by itself. That cannot be taken back; it can join again with a token and an empty data directory.",
        )
        .examples(&[Example { command: "muster node leave node3", says: "node3 is emptied, then forgotten" }])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Idempotent)
        .errors(WRITE_ERRORS)
        .positional(&["node"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Going, OpError> {
    let metadata = read(&call, false).await?;
    let node = find_going(&metadata, &input.node)?;
    if metadata.nodes.contains_key(&node) && !goes_already(&metadata, node) {
        if !is_alive(&call, node).await {
            let message = format!("{} does not answer, so it cannot leave by itself", input.node);
            let hint = format!("start it, or if it is gone for good: `muster node remove {}`", input.node);
            return Err(OpError::new(ErrorCode::FailedPrecondition, message).hint(hint));
        }
        if !input.force {
            check_topics(&metadata, node)?;
        }
    }
    change(&call, node, Command::RemoveNode { node, dead: false, successor: None }).await
}

fn text(output: &Value) -> String {
    match output["lifecycle"].as_str() {
        Some("gone") => format!("{} has left", name(output)),
        _ => format!(
            "{} leaves: {}; its process ends when they have moved (`muster node list` shows how far it is)",
            name(output),
            left(output)
        ),
    }
}
