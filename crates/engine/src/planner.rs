//! The leader's planner: from tables to decisions, proposed as commands. It plans only when everything it proposed
//! before is applied, so that a decision is made once.

use std::collections::{BTreeMap, BTreeSet};

use base::limits::REPLICAS_BUILDING_MAX;
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, Millis, Mono, NodeId, VmEpoch};
use compute::{Host, Placement, VmDesired, VmPhase, place};
use metadata::{Command, NodeLifecycle, PartitionRecord};

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
    /// When the partitions that this node leads were looked at last, and for which tables all of them were as they ought
    /// to be.
    pub partitions_at: Option<Mono>,
    pub settled_for: Option<u64>,
    /// Tables and reachable nodes for which no replica was to be made or to go.
    content_for: Option<(u64, Vec<NodeId>)>,
    /// Groups of which a change of members is being told to `__meta`.
    telling: BTreeSet<GroupId>,
    /// Since when this node plans, as leader of `__meta`.
    since: Option<Mono>,
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

    pub fn members_being_told(&mut self, group: GroupId) {
        self.telling.insert(group);
    }

    pub fn members_told(&mut self, group: GroupId) {
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
        // Not by one that could not follow: its own word on what it can may still be on the way.
        let version = self.metadata.next_version().filter(|version| self.config.me.versions.contains(*version));
        let version = version.map(|version| Command::SetClusterVersion { version });
        let mut commands: Vec<Command> = version.into_iter().collect();
        commands.extend(self.plan_nodes());
        let seen = (self.metadata.applied, self.reachable_nodes());
        if self.planner.content_for.as_ref() != Some(&seen) {
            let mut replicas = self.plan_retirements();
            replicas.extend(self.plan_replicas(&seen.1));
            self.planner.content_for = replicas.is_empty().then_some(seen);
            commands.extend(replicas);
        }
        commands.extend(self.plan_evictions());
        commands.extend(self.plan_vms());
        for command in commands.into_iter().take(DECISIONS_MAX) {
            self.propose_command(None, None, command);
        }
    }

    /// Members that are lost, that are back, or that can be forgotten.
    fn plan_nodes(&mut self) -> Vec<Command> {
        let now = self.now.mono;
        let since = *self.planner.since.get_or_insert(now);
        let mut commands = Vec::new();
        for record in self.metadata.nodes.values() {
            let node = record.member.node;
            if node == self.me() {
                continue;
            }
            // What the leader before this one saw is not known: the time starts in full.
            let watched = now.since(since);
            let silence = self.peers.silence(node, now).map_or(watched, |silence| silence.min(watched));
            match record.lifecycle {
                NodeLifecycle::Active if silence >= self.config.node_lost_after => {
                    mark(Mark::NodeLost);
                    commands.push(Command::NodeLost { node, lost: true });
                }
                NodeLifecycle::Lost if self.peers.reachable(node, now) => {
                    mark(Mark::LostNodeReturned);
                    commands.push(Command::NodeLost { node, lost: false });
                }
                NodeLifecycle::Leaving | NodeLifecycle::Removing
                    if self.left_meta(record.meta_replica) && self.metadata.is_vacant(node) =>
                {
                    commands.push(Command::ForgetNode { node });
                }
                _ => {}
            }
        }
        commands
    }

    /// Nodes that can get replicas now.
    fn reachable_nodes(&self) -> Vec<NodeId> {
        let reachable = |node: &NodeId| *node == self.me() || self.peers.reachable(*node, self.now.mono);
        let active = |node: &&metadata::NodeRecord| node.lifecycle == NodeLifecycle::Active;
        self.metadata.nodes.values().filter(active).map(|node| node.member.node).filter(reachable).collect()
    }

    /// Replicas that their partitions can do without: on nodes that go or are lost, or too many.
    fn plan_retirements(&self) -> Vec<Command> {
        let spare = self.metadata.partitions.values().flat_map(|partition| {
            let plan = self.metadata.replica_plan(partition);
            plan.spare.into_iter().map(|replica| Command::RetireReplica { group: partition.group, replica })
        });
        spare.take(DECISIONS_MAX).collect()
    }

    /// Partitions below their target get a replica on a reachable node: in the failure domain with the fewest of the
    /// partition's, there on the node with the fewest of all; one at a time each, and not more at once than the cluster
    /// makes in its spare time. What is complete and would be spread better with another one gets that, and then loses one.
    fn plan_replicas(&self, reachable: &[NodeId]) -> Vec<Command> {
        let mut load: BTreeMap<NodeId, usize> = reachable.iter().map(|node| (*node, 0)).collect();
        let mut building = 0;
        for replica in self.metadata.partitions.values().flat_map(|p| &p.replicas) {
            if let Some(count) = load.get_mut(&replica.node) {
                *count += 1;
                building += usize::from(!replica.voter && !replica.retired);
            }
        }
        let mut commands = Vec::new();
        for partition in self.metadata.partitions.values() {
            if building + commands.len() >= REPLICAS_BUILDING_MAX {
                break;
            }
            if let Some(node) = self.place_of_replica(partition, &load) {
                *load.entry(node).or_default() += 1;
                commands.push(Command::AddReplica { group: partition.group, node });
            }
        }
        commands
    }

    /// Where the partition's next replica is made, if it is to get one; `load` are the replicas on each node that can have it.
    fn place_of_replica(&self, partition: &PartitionRecord, load: &BTreeMap<NodeId, usize>) -> Option<NodeId> {
        let table = &self.metadata;
        let complete = table.replica_plan(partition).missing == 0;
        let holds = |node: &NodeId| partition.replicas.iter().any(|r| r.node == *node);
        let fits = |node: &NodeId| if complete { table.spreads_better_on(partition, *node) } else { !holds(node) };
        let replaced = partition.replicas.iter().filter_map(|r| table.nodes.get(&r.node)?.successor);
        let successors: Vec<NodeId> = replaced.filter(|_| !planted(Plant::SuccessorsIgnored)).collect();
        let rank = |(node, count): &(&NodeId, &usize)| {
            let crowd = table.replicas_in(partition, table.domain_of(**node));
            (!successors.contains(node), crowd, **count, **node)
        };
        let best = load.iter().filter(|(node, _)| fits(node)).min_by_key(rank).map(|(node, _)| *node);
        mark_if(Mark::ReplicaSpread, || complete && best.is_some());
        mark_if(Mark::ReplicaForSuccessor, || best.is_some_and(|node| successors.contains(&node)));
        best
    }

    /// VMs on nodes that are to be free of them.
    fn plan_evictions(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        for vm in self.metadata.vms.values() {
            let Some(assignment) = vm.assignment else { continue };
            let Some(node) = self.metadata.nodes.get(&assignment.node) else { continue };
            let dead = node.lifecycle == NodeLifecycle::Removing;
            let under_way = vm.leaves && vm.phase == VmPhase::Stopping || vm.desired == VmDesired::Deleted;
            if node.lifecycle.hands_over() && (dead || !under_way) {
                commands.push(Command::EvictVm { vm: vm.id, epoch: assignment.epoch });
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
                closed: (record.lifecycle != NodeLifecycle::Active).then(|| record.lifecycle.as_str().to_owned()),
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

#[cfg(test)]
mod tests {
    use base::{ClusterId, ReplicaId, TopicId, VersionRange, Wall};
    use metadata::{CommandEnvelope, Metadata, NodeRecord};
    use wire::Member;

    use super::*;
    use crate::requests::tests::{at, core};

    fn apply(core: &mut NodeCore, command: Command) {
        let index = core.metadata.applied + 1;
        core.metadata.apply(index, &CommandEnvelope::new(None, Wall(0), command));
    }

    /// Two more nodes came to one that has all replicas of so many partitions.
    fn of_three_nodes(partitions: u32) -> NodeCore {
        let mut core = core();
        let member = Member { versions: VersionRange::BINARY, ..Member::default() };
        core.metadata.replace(Metadata::bootstrap(ClusterId([1; 16]), member, Wall(0)));
        let (name, topic_id) = ("many".into(), TopicId([2; 16]));
        let config = Vec::new();
        apply(&mut core, Command::CreateTopic { name, topic_id, partitions, replication_factor: None, config });
        let mut tables = core.metadata.clone();
        let first = tables.nodes.get(&NodeId(1)).expect("the founder").clone();
        for id in [2, 3] {
            let member = Member { node: NodeId(id), ..first.member.clone() };
            let record = NodeRecord { member, meta_replica: ReplicaId(id), ..first.clone() };
            tables.nodes.insert(NodeId(id), record);
        }
        core.metadata.replace(tables);
        core
    }

    #[test]
    fn no_more_replicas_are_made_at_once_than_the_bound() {
        let mut core = of_three_nodes(100);
        let nodes = [1, 2, 3].map(NodeId);
        let planned = core.plan_replicas(&nodes);
        assert!(core.metadata.partitions.len() > REPLICAS_BUILDING_MAX && planned.len() == REPLICAS_BUILDING_MAX);
        for command in planned {
            apply(&mut core, command);
        }
        assert!(core.plan_replicas(&nodes).is_empty(), "as many are being made as may be");
        let made = |p: &PartitionRecord| p.replicas.iter().find(|r| !r.voter).map(|r| (p.group, r.replica));
        let building: Vec<_> = core.metadata.partitions.values().filter_map(made).collect();
        assert_eq!(building.len(), REPLICAS_BUILDING_MAX);
        for (group, replica) in building.into_iter().take(10) {
            apply(&mut core, Command::ReplicaVoter { group, replica, demoted: false });
        }
        assert_eq!(core.plan_replicas(&nodes).len(), 10, "one for each that is ready");
    }

    #[test]
    fn a_node_is_lost_when_it_was_silent_for_the_delay_and_a_new_leader_waits_all_of_it_anew() {
        let mut core = of_three_nodes(1);
        let delay = core.config.node_lost_after.0;
        // Node 2 spoke once, and node 3 speaks now and then.
        core.peers.heard(NodeId(2), at(0).mono);
        let planned = |core: &mut NodeCore, ms: u64| {
            core.now = at(ms);
            let planned = core.plan_nodes();
            core.peers.heard(NodeId(3), at(ms).mono);
            planned
        };
        let lost = [Command::NodeLost { node: NodeId(2), lost: true }];
        assert_eq!(planned(&mut core, 0), []);
        assert_eq!(planned(&mut core, delay - 1), []);
        assert_eq!(planned(&mut core, delay), lost);

        // What the leader before it counted is nothing to one that begins to lead.
        core.planner.reset();
        assert_eq!(planned(&mut core, 2 * delay - 1), []);
        assert_eq!(planned(&mut core, 3 * delay - 2), []);
        assert_eq!(planned(&mut core, 3 * delay - 1), lost);
    }
}
