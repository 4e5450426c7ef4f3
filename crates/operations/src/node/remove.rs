//! `node.remove`: a node that is dead is given up.

use base::ErrorCode;
use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Going, change, find_going, is_alive, is_removing, left, name};
use crate::Ports;
use crate::common::{WRITE_ERRORS, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The node's name or id.
    #[schemars(length(min = 1, max = 63))]
    node: String,
    /// Also if it answers.
    #[serde(default)]
    force: bool,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("node.remove", "Give up a node that is dead", (Method::Delete, "/v1/nodes/{node}"), run)
        .docs(
            "The operator's word that it runs no more: its VMs start elsewhere at once, its replicas are made anew \
             from the other copies, and it is forgotten. Make sure that the machine is off: a VM of a node that is \
             merely cut off would run twice until that node hears of it. It cannot be taken back; should the machine \
             return, the cluster refuses it until it joins anew with an empty data directory.",
        )
        .examples(&[Example { command: "muster node remove node3", says: "node3 burnt down" }])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Idempotent)
        .errors(WRITE_ERRORS)
        .positional(&["node"])
        .aliases(&["rm"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Going, OpError> {
    let metadata = read(&call, false).await?;
    let node = find_going(&metadata, &input.node)?;
    let asks = metadata.nodes.contains_key(&node) && !is_removing(&metadata, node) && !input.force;
    if asks && is_alive(&call, node).await {
        let message = format!("{} answers: it is not dead", input.node);
        let hint =
            format!("`muster node leave {}` moves everything away first; --force gives it up all the same", input.node);
        return Err(OpError::new(ErrorCode::FailedPrecondition, message).hint(hint));
    }
    change(&call, node, Command::RemoveNode { node, dead: true, successor: None }).await
}

fn text(output: &Value) -> String {
    match output["lifecycle"].as_str() {
        Some("gone") => format!("{} is removed", name(output)),
        _ => format!(
            "{} is being removed: {}, which are made anew elsewhere (`muster node list` shows how far it is)",
            name(output),
            left(output)
        ),
    }
}
