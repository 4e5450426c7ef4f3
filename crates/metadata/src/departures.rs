//! How members go: drained, left, removed, lost, forgotten.

use base::limits::NODES_DEPARTED_MAX;
use base::simulation::{Mark, mark};
use base::{ErrorCode, NodeId};
use serde_json::json;

use crate::apply::{Context, refuse};
use crate::{CommandResult, DepartedNode, Metadata, NodeLifecycle};

impl Metadata {
    pub(crate) fn drain_node(&mut self, context: Context, node: NodeId, drain: bool) -> CommandResult {
        let to = if drain { NodeLifecycle::Draining } else { NodeLifecycle::Active };
        match self.nodes.get(&node).map(|record| record.lifecycle) {
            None => self.no_member(node),
            Some(known) if known == to => CommandResult::Done,
            Some(known) if !known.stays() => {
                let message = format!("node {node} is {}, which cannot be taken back", known.as_str());
                refuse(ErrorCode::FailedPrecondition, message)
            }
            Some(_) => self.enter(context, node, to),
        }
    }

    pub(crate) fn remove_node(
        &mut self,
        context: Context,
        node: NodeId,
        dead: bool,
        successor: Option<NodeId>,
    ) -> CommandResult {
        let to = if dead { NodeLifecycle::Removing } else { NodeLifecycle::Leaving };
        let Some(record) = self.nodes.get(&node) else {
            // Asked again by somebody who did not hear that it is done.
            return if self.departed.contains_key(&node) { CommandResult::Done } else { self.no_member(node) };
        };
        let (known, replaced_by) = (record.lifecycle, record.successor);
        let goes = known == to || known == NodeLifecycle::Removing;
        if !goes && !self.staying().any(|other| other.member.node != node) {
            let message = format!("node {node} is the only member that stays: there is nothing to move its data to");
            return refuse(ErrorCode::FailedPrecondition, message);
        }
        if let Some(next) = successor.filter(|next| replaced_by != Some(*next)) {
            if next == node || !self.takes_replicas(next) {
                let message = "whoever is to replace it must be another node that is active";
                return refuse(ErrorCode::FailedPrecondition, message);
            }
            if let Some(other) = replaced_by.filter(|other| self.takes_replicas(*other)) {
                let message = format!("node {node} is being replaced already, by node {other}");
                return refuse(ErrorCode::FailedPrecondition, message);
            }
            if let Some(record) = self.nodes.get_mut(&node) {
                record.successor = Some(next);
            }
        }
        if goes { CommandResult::Done } else { self.enter(context, node, to) }
    }

    /// Whether new replicas and VMs may be placed on a node.
    #[must_use]
    pub fn takes_replicas(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|record| record.lifecycle == NodeLifecycle::Active)
    }

    pub(crate) fn node_lost(&mut self, context: Context, node: NodeId, lost: bool) -> CommandResult {
        let (from, to) = match lost {
            true => (NodeLifecycle::Active, NodeLifecycle::Lost),
            false => (NodeLifecycle::Lost, NodeLifecycle::Active),
        };
        match self.nodes.get(&node).map(|record| record.lifecycle) {
            Some(known) if known == from => self.enter(context, node, to),
            // An operator has decided otherwise meanwhile.
            _ => CommandResult::Done,
        }
    }

    fn enter(&mut self, context: Context, node: NodeId, to: NodeLifecycle) -> CommandResult {
        let Some(record) = self.nodes.get_mut(&node) else { return self.no_member(node) };
        record.lifecycle = to;
        let name = record.member.name.clone();
        self.publish(context, &name, json!({ "event": format!("node.{}", to.as_str()), "node": node.0, "name": name }));
        CommandResult::Done
    }

    /// Whether nothing in the tables needs the node any more.
    #[must_use]
    pub fn is_vacant(&self, node: NodeId) -> bool {
        let replicas = || self.partitions.values().flat_map(|partition| &partition.replicas);
        let vms = || self.vms.values().filter_map(|vm| vm.assignment);
        !replicas().any(|replica| replica.node == node) && !vms().any(|assignment| assignment.node == node)
    }

    pub(crate) fn forget_node(&mut self, context: Context, node: NodeId) -> CommandResult {
        let Some(record) = self.nodes.get(&node) else { return CommandResult::Done };
        if record.lifecycle.stays() {
            let message = format!("node {node} is {}: it stays", record.lifecycle.as_str());
            return refuse(ErrorCode::FailedPrecondition, message);
        }
        if !self.is_vacant(node) {
            return refuse(ErrorCode::FailedPrecondition, format!("node {node} still has replicas or VMs"));
        }
        mark(Mark::NodeForgotten);
        let (name, endpoint) = (record.member.name.clone(), record.member.address.endpoint);
        self.nodes.remove(&node);
        // Its commands that are still under way are refused, never applied late.
        let sessions: Vec<_> = self.sessions.iter().filter(|(_, s)| s.node == node).map(|(id, _)| *id).collect();
        sessions.iter().for_each(|id| drop(self.sessions.remove(id)));
        self.departed.insert(node, DepartedNode { node, name: name.clone(), endpoint, at: context.now });
        while self.departed.len() > NODES_DEPARTED_MAX
            && let Some((oldest, _)) = self.departed.get_min().cloned()
        {
            self.departed.remove(&oldest);
        }
        self.publish(context, &name, json!({ "event": "node.left", "node": node.0, "name": name }));
        CommandResult::Done
    }

    fn no_member(&self, node: NodeId) -> CommandResult {
        refuse(ErrorCode::NotFound, format!("node {node} is not a member"))
    }
}
