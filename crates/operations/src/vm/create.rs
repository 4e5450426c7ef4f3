//! `vm.create`: a new virtual machine, that is to run.

use base::ErrorCode;
use compute::VmSpec;
use metadata::Command;
use ops::{Call, Example, FollowUp, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::VmView;
use crate::Ports;
use crate::common::{WRITE_ERRORS, command, find_node};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Lower-case letters, digits and `-`: it is part of a host name.
    #[schemars(length(min = 1, max = 63))]
    name: String,
    /// Virtual CPUs.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 256))]
    cpus: u32,
    /// Guest memory in MiB.
    #[serde(default = "memory")]
    #[schemars(range(min = 80))]
    memory_mib: u64,
    /// The image to boot, by name; `minimal` is built in.
    #[serde(default = "minimal")]
    #[schemars(length(min = 1, max = 128))]
    image: String,
    /// Only on this node, by name or id.
    node: Option<String>,
}

fn one() -> u32 {
    1
}

fn memory() -> u64 {
    128
}

fn minimal() -> String {
    "minimal".into()
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("vm.create", "Create a virtual machine and start it", (Method::Post, "/v1/vms"), run)
        .docs(
            "Answers as soon as the cluster has recorded it; a node is chosen and the hypervisor started afterwards. \
             While no node can carry it, it stays Pending with the reason. Its console is the topic vm.NAME.console.",
        )
        .examples(&[
            Example { command: "muster vm create web", says: "1 CPU, 128 MiB, the built-in image" },
            Example { command: "muster vm create web --cpus 2 --memory-mib 512 --node node2", says: "on node2 only" },
            Example { command: "muster vm create web --wait", says: "and show what happens until it runs" },
        ])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .positional(&["name"])
        .short(&[("cpus", 'c'), ("memory_mib", 'm')])
        .follow_up(FollowUp { flag: "wait", operation: "vm.wait", help: "Show what happens until it runs" })
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<VmView, OpError> {
    metadata::valid_vm_name(&input.name).map_err(|reason| OpError::field("name", format!("is refused: {reason}")))?;
    check_image(&call.context.images.names(), &input.image)?;
    let node = match &input.node {
        Some(wanted) => Some(find_node(&call.context.core.metadata(), wanted)?),
        None => None,
    };
    let spec = VmSpec { cpus: input.cpus, memory_mib: input.memory_mib, image: input.image, node };
    let (_, metadata) =
        command(&call, Command::CreateVm { name: input.name.clone(), spec }).await.map_err(|error| {
            if error.code == ErrorCode::AlreadyExists {
                error.hint(format!("look at it with `muster vm inspect {}`, or choose another name", input.name))
            } else {
                error
            }
        })?;
    Ok(super::view(&call, &metadata, super::find(&metadata, &input.name)?))
}

/// Refuses what no node could boot: the VM would fail later, where nobody looks.
fn check_image(known: &[String], image: &str) -> Result<(), OpError> {
    if known.iter().any(|name| name == image) {
        return Ok(());
    }
    let problem = format!("is refused: no image is called {image:?}, there is {}", known.join(", "));
    let refused = OpError::field("image", problem);
    Err(match ops::nearest(image, known.iter().map(String::as_str)) {
        Some(near) => refused.hint(format!("did you mean `{near}`?")),
        None if image.contains('/') => {
            refused.hint("an image has a name, not a path; `muster up --kernel FILE` gives `minimal` another kernel")
        }
        None => refused,
    })
}

fn text(output: &Value) -> String {
    format!(
        "vm {} is created; its console is the topic {}",
        output["name"].as_str().unwrap_or_default(),
        output["console_topic"].as_str().unwrap_or_default()
    )
}
