//! `vm.start`: it is to run again.

use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use serde_json::Value;

use super::{ByName, VmView};
use crate::Ports;
use crate::common::WRITE_ERRORS;

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("vm.start", "Start a stopped or failed virtual machine", (Method::Post, "/v1/vms/{name}/start"), run)
        .docs("It gets a node again if it has none, and runs under the next incarnation.")
        .examples(&[Example { command: "muster vm start web", says: "web is to run again" }])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Idempotent)
        .errors(WRITE_ERRORS)
        .positional(&["name"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: ByName) -> Result<VmView, OpError> {
    let changed = super::change(&call, &input.name, Command::StartVm { name: input.name.clone() }).await?;
    changed.ok_or_else(|| super::missing(&call.context.core.metadata(), &input.name))
}

fn text(output: &Value) -> String {
    format!("vm {} will start (now {})", ops::human::text(&output["name"]), ops::human::text(&output["phase"]))
}
