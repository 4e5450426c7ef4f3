//! `vm.inspect`: everything the cluster knows of one virtual machine.

use ops::{Call, Example, Method, OpError, Operation, Scope};
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

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("vm.inspect", "Show one virtual machine", (Method::Get, "/v1/vms/{name}"), run)
        .docs("What was asked for, who runs it and why there, and what became of it.")
        .examples(&[Example { command: "muster vm inspect web", says: "all that is known of web" }])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .positional(&["name"])
        .aliases(&["show", "describe"])
}

async fn run(call: Call<Ports>, input: Input) -> Result<VmView, OpError> {
    let metadata = read(&call, input.stale).await?;
    Ok(super::view(&call, &metadata, super::find(&metadata, &input.name)?))
}
