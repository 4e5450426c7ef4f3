//! The leader's planner: from tables to decisions, proposed as commands. It plans only when everything it proposed
//! before is applied, so that a decision is made once.

use std::collections::{BTreeMap, BTreeSet};

use base::simulation::{Mark, Plant, mark, planted};
use base::{GroupId, Millis, Mono, NodeId, VmEpoch};
use compute::{Host, Placement, VmDesired, VmPhase, place};
use metadata::Command;

use crate::core::NodeCore;

/// Decisions per run, so that work per flush is bounded.
const DECISIONS_MAX: usize = 64;
/// Between two runs when the tables did not change: nodes come and go without a change of tables.
const INTERVAL: Millis = Millis(500);

/// When to plan.
#[derive(Debug, Default)]
pub(crate) struct Planner {
    /// Something may have changed.
    pub due: bool,
    /// Index of the last proposal of this leader: nothing is planned before it is applied.
    proposed: u64,
    ran: Option<Mono>,
    ran_for: u64,
    pub membership_at: Option<Mono>,
    /// Groups whose promotion is being told to `__meta`.
    telling: BTreeSet<GroupId>,
}

impl Planner {
    pub fn reset(&mut self) {
        *self = Planner { due: true, telling: std::mem::take(&mut self.telling), ..Planner::default() };
    }

    pub fn proposed(&mut self, index: u64) {
        self.proposed = index;
    }

    pub fn telling(&self, group: GroupId) -> bool {
        self.telling.contains(&group)
    }

    pub fn promotion_being_told(&mut self, group: GroupId) {
        self.telling.insert(group);
    }

    pub fn promotion_told(&mut self, group: GroupId) {
        self.telling.remove(&group);
    }
}

impl NodeCore {
    pub(crate) fn drive_planner(&mut self) {
        let active = self.groups.get(&GroupId::META).is_some_and(|g| g.active);
        if !active || !self.planner.due || self.planner.proposed > self.metadata.applied {
            return;
        }
        self.planner.due = false;
        let waited = self.planner.ran.is_none_or(|at| self.now.mono.since(at) >= INTERVAL);
        if !waited && self.planner.ran_for == self.metadata.applied {
            return;
        }
        self.planner.ran = Some(self.now.mono);
        self.planner.ran_for = self.metadata.applied;
        let mut commands = self.plan_replicas();
        commands.extend(self.plan_vms());
        for command in commands.into_iter().take(DECISIONS_MAX) {
            self.propose_command(None, None, command);
        }
    }

    /// Partitions below their target get a replica on the reachable node with the fewest, one at a time each.
    fn plan_replicas(&self) -> Vec<Command> {
        let mut load: BTreeMap<NodeId, usize> = self.metadata.nodes.keys().map(|node| (*node, 0)).collect();
        for replica in self.metadata.partitions.values().flat_map(|p| &p.replicas) {
            *load.entry(replica.node).or_default() += 1;
        }
        let me = self.me();
        let mut commands = Vec::new();
        for partition in self.metadata.partitions.values() {
            if commands.len() >= DECISIONS_MAX {
                break;
            }
            if partition.replicas.len() >= self.metadata.replica_target(partition) {
                continue;
            }
            let holds = |node: &NodeId| partition.replicas.iter().any(|r| r.node == *node);
            let reachable = |node: &NodeId| *node == me || self.peers.reachable(*node, self.now.mono);
            let candidates = load.iter().filter(|(node, _)| !holds(node) && reachable(node));
            let best = candidates.min_by_key(|(node, count)| (**count, **node)).map(|(node, _)| *node);
            if let Some(node) = best {
                *load.entry(node).or_default() += 1;
                commands.push(Command::AddReplica { group: partition.group, node });
            }
        }
        commands
    }

    fn plan_vms(&self) -> Vec<Command> {
        let mut hosts = self.hosts();
        let mut commands = Vec::new();
        let waiting = |vm: &&compute::VmRecord| vm.phase == VmPhase::Pending && vm.desired == VmDesired::Running;
        for vm in self.metadata.vms.values().filter(waiting).take(DECISIONS_MAX) {
            match place(&vm.spec, &hosts) {
                Placement::On { node, why } => {
                    if let Some(host) = hosts.iter_mut().find(|host| host.node == node) {
                        host.used_mib += vm.spec.memory_mib;
                        host.used_cpus += vm.spec.cpus;
                    }
                    let epoch = VmEpoch(vm.epoch.0 + 1);
                    commands.push(Command::AssignVm { vm: vm.id, node, epoch, placement: why });
                }
                Placement::Nowhere { reason } if reason != vm.reason || planted(Plant::ReasonsRepeated) => {
                    mark(Mark::NoNodeForVm);
                    commands.push(Command::ExplainVm { vm: vm.id, reason });
                }
                Placement::Nowhere { .. } => {}
            }
        }
        commands
    }

    fn hosts(&self) -> Vec<Host> {
        let me = self.me();
        let mut hosts: BTreeMap<NodeId, Host> = BTreeMap::new();
        for record in self.metadata.nodes.values() {
            let (member, node) = (&record.member, record.member.node);
            let host = Host {
                node,
                name: member.name.clone(),
                reachable: node == me || self.peers.reachable(node, self.now.mono),
                hypervisors: member.capabilities.hypervisors.clone(),
                cores: member.capabilities.cores,
                memory_mib: member.capabilities.memory_mib,
                used_mib: 0,
                used_cpus: 0,
            };
            hosts.insert(node, host);
        }
        for vm in self.metadata.vms.values() {
            if let Some(host) = vm.assignment.and_then(|assignment| hosts.get_mut(&assignment.node)) {
                host.used_mib += vm.spec.memory_mib;
                host.used_cpus += vm.spec.cpus;
            }
        }
        hosts.into_values().collect()
    }
}
