//! Virtual machines.

use base::ErrorCode;
use compute::VmRecord;
use metadata::Metadata;
use ops::{Call, OpError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Ports;
use crate::common::{age_ms, node_name};

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod inspect;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod wait;

/// A VM, as everybody sees it.
#[derive(Clone, PartialEq, Serialize, JsonSchema)]
pub(crate) struct VmView {
    pub id: u64,
    pub name: String,
    /// `Pending`, `Starting`, `Booting`, `Running`, `Restarting`, `Stopping`, `Stopped`, `Failed` or `Deleting`.
    pub phase: String,
    /// What it should be: `running`, `stopped` or `deleted`.
    pub desired: String,
    /// Why it is in its phase; empty if there is nothing to say.
    pub reason: String,
    /// The node that has it; null while none has.
    pub node: Option<String>,
    /// Counts its assignments to a node; a higher one fences all lower ones.
    pub epoch: u64,
    /// Counts the starts of its hypervisor.
    pub incarnation: u64,
    pub cpus: u32,
    pub memory_mib: u64,
    pub image: String,
    /// The only node that may have it, if it was asked for.
    pub pinned_to: Option<String>,
    /// Why it was placed where it is.
    pub placement: String,
    /// Starts in a row that ended soon after.
    pub restarts: u32,
    /// The topic that holds its console.
    pub console_topic: String,
    pub age_ms: u64,
    /// Since it entered its phase.
    pub phase_ms: u64,
}

/// Names one VM.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByName {
    /// The VM.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

pub(crate) fn view(call: &Call<Ports>, metadata: &Metadata, vm: &VmRecord) -> VmView {
    VmView {
        id: vm.id.0,
        name: vm.name.clone(),
        phase: vm.phase.as_str().into(),
        desired: format!("{:?}", vm.desired).to_lowercase(),
        reason: vm.reason.clone(),
        node: vm.assignment.map(|assignment| node_name(metadata, assignment.node)),
        epoch: vm.epoch.0,
        incarnation: vm.incarnation.0,
        cpus: vm.spec.cpus,
        memory_mib: vm.spec.memory_mib,
        image: vm.spec.image.clone(),
        pinned_to: vm.spec.node.map(|node| node_name(metadata, node)),
        placement: vm.placement.clone(),
        restarts: vm.restarts,
        console_topic: metadata::console_topic(&vm.name),
        age_ms: age_ms(call, vm.created),
        phase_ms: age_ms(call, vm.changed),
    }
}

/// The VM of that name.
pub(crate) fn find<'a>(metadata: &'a Metadata, name: &str) -> Result<&'a VmRecord, OpError> {
    metadata.vm(name).ok_or_else(|| missing(metadata, name))
}

/// There is no such VM.
pub(crate) fn missing(metadata: &Metadata, name: &str) -> OpError {
    let error = OpError::new(ErrorCode::NotFound, format!("there is no VM {name:?}"));
    match ops::nearest(name, metadata.vm_names.keys().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint("`muster vm list` shows them all"),
    }
}

/// Has a command about one VM applied, and shows the VM afterwards (`None` if it is gone).
pub(crate) async fn change(
    call: &Call<Ports>,
    name: &str,
    change: metadata::Command,
) -> Result<Option<VmView>, OpError> {
    match crate::common::command(call, change).await {
        Ok((_, metadata)) => Ok(metadata.vm(name).map(|vm| view(call, &metadata, vm))),
        Err(error) if error.code == ErrorCode::NotFound => {
            let metadata = call.context.core.metadata();
            Err(if metadata.vm(name).is_some() { error } else { missing(&metadata, name) })
        }
        Err(error) => Err(error),
    }
}
