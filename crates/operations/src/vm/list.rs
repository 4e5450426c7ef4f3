//! `vm.list`: all virtual machines.

use ops::{Call, Column, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::VmView;
use crate::Ports;
use crate::common::{READ_ERRORS, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    vms: Vec<VmView>,
}

pub(crate) const COLUMNS: &[Column] = &[
    Column::plain("VM", "/name"),
    Column::plain("PHASE", "/phase"),
    Column::plain("NODE", "/node"),
    Column::plain("EPOCH", "/epoch"),
    Column::plain("INCARNATION", "/incarnation"),
    Column::duration("AGE", "/age_ms"),
    Column::plain("REASON", "/reason"),
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("vm.list", "List the virtual machines", (Method::Get, "/v1/vms"), run)
        .docs("Phases are what the nodes reported under the current epoch.")
        .examples(&[Example { command: "muster vm list", says: "every VM, its phase and node" }])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .aliases(&["ls"])
        .human(Human::Table { rows: "/vms", columns: COLUMNS, empty: "no VMs: make one with `muster vm create NAME`" })
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = read(&call, input.stale).await?;
    let vms = metadata.vm_names.values().filter_map(|id| metadata.vms.get(id));
    Ok(Output { vms: vms.map(|vm| super::view(&call, &metadata, vm)).collect() })
}
