//! `node.drain`: a node gives up its work for a while.

use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use serde_json::Value;

use super::{ByNode, Going, change, left, name};
use crate::Ports;
use crate::common::{WRITE_ERRORS, find_node, read};

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new(
        "node.drain",
        "Take a node's work away, such as before maintenance",
        (Method::Post, "/v1/nodes/{node}/drain"),
        run,
    )
    .docs(
        "Leaderships move to other nodes, VMs are stopped there and started elsewhere (one that may only run on \
             this node waits), and nothing new is placed on it. Its replicas stay and keep up. `node resume` ends it. \
             It comes back by itself as it was: a node that restarts is still drained.",
    )
    .examples(&[Example { command: "muster node drain node2", says: "node2 can be switched off for a while" }])
    .permission(Permission::Admin)
    .scope(Scope::Leader)
    .idempotency(Idempotency::Idempotent)
    .errors(WRITE_ERRORS)
    .positional(&["node"])
    .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: ByNode) -> Result<Going, OpError> {
    let node = find_node(&*read(&call, false).await?, &input.node)?;
    change(&call, node, Command::DrainNode { node, drain: true }).await
}

fn text(output: &Value) -> String {
    format!("{} is draining: {}; `muster node list` shows how far it is", name(output), left(output))
}
