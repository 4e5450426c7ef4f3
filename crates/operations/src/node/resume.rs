//! `node.resume`: a drained node takes up its work again.

use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use serde_json::Value;

use super::{ByNode, Going, change, name};
use crate::Ports;
use crate::common::{WRITE_ERRORS, find_node, read};

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("node.resume", "Let a drained node work again", (Method::Post, "/v1/nodes/{node}/resume"), run)
        .docs("The end of `node drain`. What moved away stays where it is; what is new may be placed here again.")
        .examples(&[Example { command: "muster node resume node2", says: "node2 gets work again" }])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Idempotent)
        .errors(WRITE_ERRORS)
        .positional(&["node"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: ByNode) -> Result<Going, OpError> {
    let node = find_node(&*read(&call, false).await?, &input.node)?;
    change(&call, node, Command::DrainNode { node, drain: false }).await
}

fn text(output: &Value) -> String {
    format!("{} is {}", name(output), ops::human::text(&output["lifecycle"]))
}
