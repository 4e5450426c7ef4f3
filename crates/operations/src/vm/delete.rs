//! `vm.delete`: a virtual machine and its disk are gone; its console stays.

use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::ByName;
use crate::Ports;
use crate::common::WRITE_ERRORS;

#[derive(Serialize, JsonSchema)]
struct Output {
    name: String,
    /// Whether nothing is left of it; otherwise its node still has to remove its files.
    gone: bool,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("vm.delete", "Delete a virtual machine and its disk", (Method::Delete, "/v1/vms/{name}"), run)
        .docs(
            "It is killed if it runs. Its record goes when its node has removed its files. The console's topic stays, \
             and a later VM of the same name goes on in it; `topic delete` removes it.",
        )
        .examples(&[Example { command: "muster vm delete web", says: "web is gone, its console stays" }])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .positional(&["name"])
        .aliases(&["rm"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: ByName) -> Result<Output, OpError> {
    let left = super::change(&call, &input.name, Command::DeleteVm { name: input.name.clone() }).await?;
    Ok(Output { name: input.name, gone: left.is_none() })
}

fn text(output: &Value) -> String {
    let gone = if output["gone"] == true { "is deleted" } else { "will be deleted, with its disk" };
    format!("vm {} {gone}", ops::human::text(&output["name"]))
}
