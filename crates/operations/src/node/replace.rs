//! `node.replace`: another node takes a node's place.

use base::ErrorCode;
use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Going, change, find_going, going, is_alive, left, name};
use crate::Ports;
use crate::common::{WRITE_ERRORS, find_node, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Name or id of the node that goes.
    #[schemars(length(min = 1, max = 63))]
    node: String,
    /// Name or id of the node that takes its place; it has joined already.
    #[schemars(length(min = 1, max = 63))]
    with: String,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new(
        "node.replace",
        "Put another node in a node's place",
        (Method::Post, "/v1/nodes/{node}/replace"),
        run,
    )
    .docs(
        "The new node gets every replica that the old one has and it does not have yet; VMs go wherever there is \
             room. An old node that answers hands over in good order, as with `node leave`; one that does not is given \
             up, as with `node remove`: then make sure that its machine is off. A node that leaves or is removed already \
             can be given a successor so, but not a second one while the first is active.",
    )
    .examples(&[Example { command: "muster node replace node3 --with node4", says: "node4 takes over what node3 has" }])
    .permission(Permission::Admin)
    .scope(Scope::Leader)
    .idempotency(Idempotency::Idempotent)
    .errors(WRITE_ERRORS)
    .positional(&["node"])
    .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Going, OpError> {
    let metadata = read(&call, false).await?;
    let (node, with) = (find_going(&metadata, &input.node)?, find_node(&metadata, &input.with)?);
    if !metadata.nodes.contains_key(&node) {
        // Asked again by somebody who did not hear that it is done.
        return Ok(going(&metadata, node));
    }
    if !is_alive(&call, with).await {
        let message = format!("{} does not answer: it cannot take anything over", input.with);
        return Err(OpError::new(ErrorCode::FailedPrecondition, message).hint("start it first"));
    }
    let dead = !is_alive(&call, node).await;
    change(&call, node, Command::RemoveNode { node, dead, successor: Some(with) }).await
}

fn text(output: &Value) -> String {
    match output["lifecycle"].as_str() {
        Some("gone") => format!("{} is gone: there is nothing left to take over", name(output)),
        _ => format!(
            "{} is {}: {}, and move away (`muster node list` shows how far it is)",
            name(output),
            ops::human::text(&output["lifecycle"]),
            left(output)
        ),
    }
}
