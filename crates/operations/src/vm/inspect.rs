//! `vm.inspect`: everything the cluster knows of one virtual machine.

use ops::{Call, Cell, Column, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::Deserialize;

use super::VmView;
use crate::Ports;
use crate::common::{READ_ERRORS, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The VM.
    #[schemars(length(min = 1, max = 63))]
    name: String,
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

const LINES: &[Column] = &[
    Column::plain("name", "/name"),
    Column::plain("id", "/id"),
    Column::plain("phase", "/phase"),
    Column::duration("in it for", "/phase_ms"),
    Column::plain("reason", "/reason"),
    Column::plain("desired", "/desired"),
    Column::plain("node", "/node"),
    Column::plain("pinned to", "/pinned_to"),
    Column::plain("placement", "/placement"),
    Column::plain("epoch", "/epoch"),
    Column::plain("incarnation", "/incarnation"),
    Column::plain("restarts", "/restarts"),
    Column::plain("cpus", "/cpus"),
    Column { title: "memory", pointer: "/memory_mib", cell: Cell::Mebibytes },
    Column::plain("image", "/image"),
    Column::plain("console topic", "/console_topic"),
    Column::duration("age", "/age_ms"),
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("vm.inspect", "Show one virtual machine", (Method::Get, "/v1/vms/{name}"), run)
        .docs("What was asked for, who runs it and why there, and what became of it.")
        .examples(&[Example { command: "muster vm inspect web", says: "all that is known of web" }])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .positional(&["name"])
        .aliases(&["show", "describe"])
        .human(Human::Record(LINES))
}

async fn run(call: Call<Ports>, input: Input) -> Result<VmView, OpError> {
    let metadata = read(&call, input.stale).await?;
    Ok(super::view(&call, &metadata, super::find(&metadata, &input.name)?))
}
