//! `vm.stop`: it is to power off.

use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use serde_json::Value;

use super::{ByName, VmView};
use crate::Ports;
use crate::common::WRITE_ERRORS;

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("vm.stop", "Stop a virtual machine", (Method::Post, "/v1/vms/{name}/stop"), run)
        .docs("Asks the guest to power off; after a grace period it is killed. It keeps its disk and stays stopped until it is started.")
        .examples(&[Example { command: "muster vm stop web", says: "web is to power off" }])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Idempotent)
        .errors(WRITE_ERRORS)
        .positional(&["name"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: ByName) -> Result<VmView, OpError> {
    let changed = super::change(&call, &input.name, Command::StopVm { name: input.name.clone() }).await?;
    changed.ok_or_else(|| super::missing(&call.context.core.metadata(), &input.name))
}

fn text(output: &Value) -> String {
    format!("vm {} will stop (now {})", ops::human::text(&output["name"]), ops::human::text(&output["phase"]))
}
