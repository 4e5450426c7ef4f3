//! Virtual machines in the replicated state; the rules of their phases are `compute`'s.

use base::limits::{VM_CPUS_MAX, VM_MEMORY_MIB_MIN, VM_NAME_BYTES_MAX, VMS_MAX};
use base::simulation::{Mark, mark};
use base::{ErrorCode, NodeId, VmEpoch, VmId, VmIncarnation};
use compute::lifecycle::{self, Outcome};
use compute::{VmDesired, VmPhase, VmRecord, VmReport, VmSpec};
use serde_json::json;

use crate::apply::{Context, refuse};
use crate::{CommandResult, Metadata, NodeLifecycle, console_topic};

/// Whether the name can be a VM's: a DNS label (RFC 1123), for it is part of a host name and of a topic name.
///
/// # Errors
/// With a sentence that says what is wrong.
pub fn valid_vm_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > VM_NAME_BYTES_MAX {
        return Err(format!("a VM name has 1 to {VM_NAME_BYTES_MAX} characters, \"{name}\" has {}", name.len()));
    }
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !name.chars().all(inside) || name.starts_with('-') || name.ends_with('-') {
        return Err(format!(
            "\"{name}\" is not a VM name: lower-case letters, digits and \"-\" inside, such as \"web-1\""
        ));
    }
    Ok(())
}

fn valid_spec(spec: &VmSpec) -> Result<(), String> {
    if spec.cpus == 0 || spec.cpus > VM_CPUS_MAX {
        return Err(format!("a VM has 1 to {VM_CPUS_MAX} CPUs, not {}", spec.cpus));
    }
    if spec.memory_mib < VM_MEMORY_MIB_MIN {
        return Err(format!("a VM needs at least {VM_MEMORY_MIB_MIN} MiB of memory, not {}", spec.memory_mib));
    }
    if spec.image.is_empty() {
        return Err("a VM needs an image; `minimal` is built in".into());
    }
    Ok(())
}

impl Metadata {
    /// A VM by name.
    #[must_use]
    pub fn vm(&self, name: &str) -> Option<&VmRecord> {
        self.vm_names.get(name).and_then(|id| self.vms.get(id))
    }

    pub(crate) fn create_vm(&mut self, context: Context, name: &str, spec: &VmSpec) -> CommandResult {
        if let Err(reason) = valid_vm_name(name).and_then(|()| valid_spec(spec)) {
            return refuse(ErrorCode::InvalidArgument, reason);
        }
        if self.vm_names.contains_key(name) {
            return refuse(ErrorCode::AlreadyExists, format!("VM {name} exists already"));
        }
        if self.vms.len() >= VMS_MAX {
            return refuse(ErrorCode::FailedPrecondition, format!("the cluster has {VMS_MAX} VMs, its maximum"));
        }
        if let Some(node) = spec.node.filter(|node| !self.nodes.contains_key(node)) {
            return refuse(ErrorCode::NotFound, format!("node {node} is not a member"));
        }
        self.next.vm += 1;
        let id = VmId(self.next.vm);
        let record = VmRecord {
            id,
            name: name.to_owned(),
            spec: spec.clone(),
            desired: VmDesired::Running,
            phase: VmPhase::Pending,
            assignment: None,
            incarnation: VmIncarnation(0),
            reason: String::new(),
            created: context.now,
            changed: context.now,
            restarts: 0,
            epoch: VmEpoch(0),
            placement: String::new(),
            leaves: false,
        };
        self.publish_vm(context, &record);
        self.vms.insert(id, record);
        self.vm_names.insert(name.to_owned(), id);
        let topic = console_topic(name);
        if !self.topics.contains_key(&topic) {
            // An earlier VM of the name may have left its console behind: it goes on there.
            self.create_topic(context, &topic, self.derived_topic_id(context.index), 1, None, &[]);
        }
        CommandResult::VmCreated { vm: id }
    }

    pub(crate) fn change_vm(
        &mut self,
        context: Context,
        name: &str,
        change: impl FnOnce(&mut VmRecord) -> Outcome,
    ) -> CommandResult {
        match self.vm_names.get(name).copied() {
            Some(id) => self.change_vm_by_id(context, id, change),
            None => refuse(ErrorCode::NotFound, format!("there is no VM {name}")),
        }
    }

    pub(crate) fn assign_vm(
        &mut self,
        context: Context,
        vm: VmId,
        node: NodeId,
        epoch: VmEpoch,
        placement: String,
    ) -> CommandResult {
        match self.nodes.get(&node).map(|node| node.lifecycle) {
            Some(NodeLifecycle::Active) => {}
            Some(other) => {
                let message = format!("node {node} is {}: it gets no VMs", other.as_str());
                return refuse(ErrorCode::FailedPrecondition, message);
            }
            None => return refuse(ErrorCode::NotFound, format!("node {node} is not a member")),
        }
        self.change_vm_by_id(context, vm, |vm| lifecycle::assign(vm, node, epoch, placement, context.now))
    }

    pub(crate) fn evict_vm(&mut self, context: Context, vm: VmId, epoch: VmEpoch) -> CommandResult {
        let host = self.vms.get(&vm).and_then(|vm| vm.assignment).and_then(|at| self.nodes.get(&at.node));
        let Some((name, lifecycle)) = host.map(|node| (node.member.name.clone(), node.lifecycle)) else {
            return refuse(ErrorCode::FailedPrecondition, format!("VM {vm} is on no node"));
        };
        if !lifecycle.hands_over() {
            return refuse(ErrorCode::FailedPrecondition, format!("node {name} is {}", lifecycle.as_str()));
        }
        let dead = lifecycle == NodeLifecycle::Removing;
        let reason = format!("node {name} is {}", lifecycle.as_str());
        self.change_vm_by_id(context, vm, |vm| lifecycle::evict(vm, epoch, dead, &reason, context.now))
    }

    pub(crate) fn explain_vm(&mut self, context: Context, vm: VmId, reason: &str) -> CommandResult {
        self.change_vm_by_id(context, vm, |vm| {
            if vm.phase != VmPhase::Pending || vm.reason == reason {
                return Outcome::Same;
            }
            reason.clone_into(&mut vm.reason);
            Outcome::Changed
        })
    }

    pub(crate) fn report_vm(&mut self, context: Context, node: NodeId, report: &VmReport) -> CommandResult {
        self.change_vm_by_id(context, report.vm, |vm| lifecycle::report(vm, node, report, context.now))
    }

    pub(crate) fn change_vm_by_id(
        &mut self,
        context: Context,
        id: VmId,
        change: impl FnOnce(&mut VmRecord) -> Outcome,
    ) -> CommandResult {
        let Some(vm) = self.vms.get(&id) else {
            mark(Mark::VmCommandTooLate);
            return refuse(ErrorCode::NotFound, format!("there is no VM with id {id}"));
        };
        // On a copy, so that a refusal leaves no trace and unchanged tables keep sharing their structure.
        let mut vm = vm.clone();
        let before = vm.clone();
        match change(&mut vm) {
            Outcome::Refused(code, message) => return refuse(code, message),
            Outcome::Same if vm == before => {}
            Outcome::Same => drop(self.vms.insert(id, vm)),
            Outcome::Changed => {
                self.publish_vm(context, &vm);
                self.vms.insert(id, vm);
            }
            Outcome::Gone => {
                self.vms.remove(&id);
                self.vm_names.remove(&vm.name);
                self.publish_vm_phase(context, &vm, "Deleted");
            }
        }
        CommandResult::Done
    }

    fn publish_vm(&mut self, context: Context, vm: &VmRecord) {
        self.publish_vm_phase(context, vm, vm.phase.as_str());
    }

    fn publish_vm_phase(&mut self, context: Context, vm: &VmRecord, phase: &str) {
        let node = vm.assignment.map(|assignment| assignment.node);
        let node_name = node.and_then(|node| self.nodes.get(&node)).map(|node| node.member.name.clone());
        let event = json!({
            "event": format!("vm.{}", phase.to_lowercase()), "vm": vm.name, "vm_id": vm.id.0, "phase": phase,
            "node": node.map(|node| node.0), "node_name": node_name, "epoch": vm.epoch.0,
            "incarnation": vm.incarnation.0, "reason": vm.reason,
        });
        self.publish(context, &vm.name, event);
    }
}
