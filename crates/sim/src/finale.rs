//! The end of a run: faults stop, and the cluster must accept writes within 10 virtual seconds; then the clients stop,
//! and all nodes must come to the same state, with everything in it that was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, NodeId};
use compute::{VmDesired, VmPhase, VmRecord};
use engine::{GroupView, Reply};
use metadata::{NodeLifecycle, NodeRecord, crowding, spread};
use multiraft::Role;

use crate::check::{Judged, Violation, outlasts};
use crate::node::{HOST_MEMORY_MIB, SimNode};
use crate::queue::{Ev, NodeIx};
use crate::requests::Outcome;
use crate::time::{Nanos, ms};
use crate::world::World;

/// From the end of the faults until every node and partition accepts writes.
const ACCEPT: Nanos = ms(10_000);
/// The same, if the faults kept the cluster from forming until then.
const FORM_AND_ACCEPT: Nanos = ms(25_000);
/// How much longer it may take if a node still has to leave: VMs are stopped, replicas made elsewhere.
const DEPART: Nanos = ms(15_000);
/// From the last answer until all nodes are equal.
const CONVERGE: Nanos = ms(10_000);
/// Once everything accepts writes again, nobody has a reason to campaign. Most runs look no longer than they need for
/// the rest; in one of [`WATCHES`] nothing happens for this long.
const WATCH: Nanos = ms(2_500);
const WATCHES: u64 = 8;
/// What the fault injector asked for last may still be under way for this long.
const DISTURBED: Nanos = ms(2_500);
/// Between two looks.
const LOOK: Nanos = ms(100);
/// At so many looks a log may have grown after all nodes were equal; [`WATCH`] has 25.
const GROWN_MAX: u32 = 6;

/// State of the finale.
#[derive(Default)]
pub struct Finale {
    /// When the faults stopped.
    pub began: Option<Nanos>,
    /// The clients make no more requests.
    pub quiet: bool,
    quiet_since: Option<Nanos>,
    /// No change of leaders is excused after this.
    disturbed_until: Nanos,
    /// The terms of groups that have no reason to change leaders any more, as of when that was seen first.
    terms: BTreeMap<GroupId, u64>,
    /// Since when all nodes are equal.
    equal_since: Option<Nanos>,
    /// The ends of the logs at the last look at nodes that were equal, and at how many looks they were others than before.
    logs: Option<BTreeMap<GroupId, u64>>,
    grown: u32,
    formed_before: bool,
    accepted_nodes: BTreeSet<NodeIx>,
    accepted_groups: BTreeSet<GroupId>,
    probing_nodes: BTreeSet<NodeIx>,
    probing_groups: BTreeSet<GroupId>,
    /// Values used by probes.
    pub values: u64,
}

impl World {
    /// Faults stop.
    pub fn heal(&mut self) {
        self.trace.line(self.queue.now, "**", || "faults stop".into());
        self.finale.began = Some(self.queue.now);
        self.finale.formed_before = self.forming.formed_at.is_some();
        self.mend_all();
        self.queue.after(LOOK, Ev::Finale);
    }

    /// Looks how far the finale is.
    pub fn finale_step(&mut self) {
        self.resume_drained();
        match self.finale.quiet_since {
            None if self.finale.quiet => self.await_silence(),
            None => self.await_acceptance(),
            Some(since) => self.await_convergence(since),
        }
        if !self.done {
            self.queue.after(LOOK, Ev::Finale);
        }
    }

    fn await_acceptance(&mut self) {
        let began = self.finale.began.unwrap_or(0);
        let nodes: BTreeSet<NodeIx> = self.nodes.iter().filter(|it| !it.retired).map(|it| it.ix).collect();
        let groups: BTreeSet<GroupId> = self.groups_to_probe().into_iter().collect();
        if nodes.is_subset(&self.finale.accepted_nodes)
            && groups.is_subset(&self.finale.accepted_groups)
            && self.formed()
            && self.nodes.iter().all(|it| it.order.is_none())
            && !self.operator_waits()
        {
            self.stats.accepted_after = self.queue.now - began;
            self.trace.line(self.queue.now, "**", || "everything accepts writes".into());
            self.finale.quiet = true;
            return;
        }
        let limit = if self.finale.formed_before { ACCEPT } else { FORM_AND_ACCEPT };
        let orders = self.nodes.iter().any(|it| it.order.is_some());
        if self.queue.now > began + limit + if orders { DEPART } else { 0 } {
            let orders: Vec<_> =
                self.nodes.iter().filter_map(|it| Some((it.ix, it.order?, self.left_on(it.id())))).collect();
            let without: Vec<_> = groups.difference(&self.finale.accepted_groups).collect();
            let nodes: Vec<_> = nodes.difference(&self.finale.accepted_nodes).collect();
            let describe = self.describe();
            let what =
                format!("no write through nodes {nodes:?}, to groups {without:?}, or orders {orders:?}: {describe}");
            return self.fail("writes are accepted within 10 s after the last fault", what);
        }
        for node in nodes {
            if self.nodes[node].recovered
                && !self.finale.accepted_nodes.contains(&node)
                && self.finale.probing_nodes.insert(node)
            {
                self.probe_node(node);
            }
        }
        for group in groups {
            if !self.finale.accepted_groups.contains(&group)
                && !self.finale.probing_groups.contains(&group)
                && let Some(node) = self.some_running()
            {
                self.finale.probing_groups.insert(group);
                self.probe_group(group, node);
            }
        }
    }

    /// What still belongs to a node, by the last committed word.
    fn left_on(&self, node: NodeId) -> Vec<String> {
        let Some(state) = self.checks.commands.last() else { return Vec::new() };
        let groups = state.partitions.values().filter(|p| p.replicas.iter().any(|r| r.node == node));
        let vms = state.vms.values().filter(|vm| vm.assignment.is_some_and(|at| at.node == node));
        let groups = groups.map(|p| format!("group {}: {:?}", p.group, p.replicas));
        groups.chain(vms.map(|vm| format!("VM {}: {:?} {:?}", vm.name, vm.desired, vm.phase))).collect()
    }

    /// A probe was answered.
    pub fn probe_answered(&mut self, of: Result<NodeIx, GroupId>, outcome: &Outcome) {
        let ok = matches!(outcome, Outcome::Ok(Reply::Command { .. } | Reply::Produced { .. }));
        match of {
            Ok(node) => {
                self.finale.probing_nodes.remove(&node);
                if ok {
                    self.finale.accepted_nodes.insert(node);
                }
            }
            Err(group) => {
                self.finale.probing_groups.remove(&group);
                if ok {
                    self.finale.accepted_groups.insert(group);
                }
            }
        }
    }

    fn await_silence(&mut self) {
        if self.outstanding() == 0 {
            self.trace.line(self.queue.now, "**", || "the clients are done".into());
            self.finale.quiet_since = Some(self.queue.now);
        }
    }

    /// The fault injector's request was answered, and may have consequences.
    pub fn disturbed(&mut self) {
        self.finale.disturbed_until = self.queue.now + DISTURBED;
    }

    /// No group comes to another term in the end, once the replicas of all have met, and its leader is the one that it
    /// should have. (One that stood for an election when its node went down comes back with that term, and the others
    /// have to follow.)
    fn watch_terms(&mut self) {
        let elections = &self.checks.elections;
        let risen = self.finale.terms.iter().find(|(group, term)| elections.term_of(**group) != **term);
        if let Some((group, term)) = risen.map(|(group, term)| (*group, *term)) {
            let now = elections.term_of(group);
            let what =
                format!("group {group} was in term {term}, is in {now}, and nothing is wrong: {}", self.describe());
            return self.fail("no elections once everything accepts writes again", what);
        }
        let disturbed = self.queue.now < self.finale.disturbed_until || self.injector_waits();
        if disturbed || self.unsettled_group().is_some() || self.replicas_move() {
            return;
        }
        let state = self.nodes.iter().find_map(|it| it.core.as_ref()).map(engine::NodeCore::metadata);
        let strays = self.strays();
        let groups = state.into_iter().flat_map(|state| state.partitions.keys()).chain([&GroupId::META]);
        let stay = groups.filter(|group| strays.get(group).is_none_or(|(_, home)| self.is_retired(*home)));
        let terms: Vec<_> = stay.map(|group| (*group, elections.term_of(*group))).collect();
        for (group, term) in terms {
            self.finale.terms.entry(group).or_insert(term);
        }
    }

    /// Partitions that another node leads than that of their first replica: which one leads, and which should.
    fn strays(&self) -> BTreeMap<GroupId, (NodeId, NodeId)> {
        let mut strays = BTreeMap::new();
        for node in &self.nodes {
            let Some(core) = &node.core else { continue };
            let leads = |group| core.raft_status(group).is_some_and(|status| status.role == Role::Leader);
            for partition in core.metadata().partitions.values().filter(|partition| leads(partition.group)) {
                let home = partition.replicas.first().map(|first| first.node).filter(|home| *home != node.id());
                strays.extend(home.map(|home| (partition.group, (node.id(), home))));
            }
        }
        strays
    }

    fn is_retired(&self, node: NodeId) -> bool {
        self.places.get(&node).is_some_and(|place| self.nodes[*place].retired)
    }

    /// A partition whose leadership should have gone back to its first replica by now. A node that was lost again soon
    /// after it got leaderships back may have to wait for longer than a run does.
    fn stray_that_could_go(&self) -> Option<String> {
        let state = self.nodes.iter().find_map(|it| it.core.as_ref()).map(engine::NodeCore::metadata)?;
        let serves = |node: NodeId| {
            let active = |record: &NodeRecord| record.lifecycle == NodeLifecycle::Active;
            !self.is_retired(node) && state.nodes.get(&node).is_some_and(active)
        };
        let waits = |leader: NodeId, home: NodeId| {
            let core = self.nodes.iter().find(|it| it.id() == leader).and_then(|it| it.core.as_ref());
            core.is_some_and(|core| core.keeps_leaderships_from(home))
        };
        let could_go = |leader: NodeId, home: NodeId| serves(home) && !waits(leader, home);
        let (group, (leader, home)) = self.strays().into_iter().find(|(_, (leader, home))| could_go(*leader, *home))?;
        Some(format!("node {leader} leads group {group} still, and node {home} ought to"))
    }

    /// Some partition gets or loses a replica, and perhaps another leader.
    fn replicas_move(&self) -> bool {
        self.checks.commands.last().is_some_and(|state| {
            state.partitions.values().any(|partition| {
                let moves = partition.replicas.iter().any(|replica| replica.retired || !replica.voter);
                let nodes = || self.nodes.iter().filter(|it| it.runs());
                let crowded = nodes().any(|node| state.spreads_better_on(partition, node.id()));
                moves || crowded || !state.replica_plan(partition).spare.is_empty()
            })
        })
    }

    fn await_convergence(&mut self, since: Nanos) {
        self.watch_terms();
        let watches = self.cfg.seed.is_multiple_of(WATCHES);
        match self.differences().or_else(|| watches.then(|| self.stray_that_could_go()).flatten()) {
            None => {
                let equal_since = *self.finale.equal_since.get_or_insert(self.queue.now);
                if watches && self.queue.now < equal_since + WATCH {
                    return self.watch_logs();
                }
                self.done = true;
                self.final_checks();
            }
            // A leadership that had to wait may go back while all are watched, and for a moment nobody leads.
            Some(what) if self.queue.now > since + CONVERGE + self.finale.equal_since.map_or(0, |_| WATCH) => {
                let what = format!("{what}: {}", self.describe());
                self.fail("all nodes converge within 10 s after the last write", what);
            }
            Some(_) => {}
        }
    }

    /// Once all are equal and nobody asks for anything, the logs grow only by what was still to be done (a learner is
    /// promoted, a machine comes up): whatever follows from an entry comes to an end.
    fn watch_logs(&mut self) {
        let status = self.nodes.iter().find_map(|it| it.core.as_ref()).map(engine::NodeCore::status);
        let ends = status.into_iter().flat_map(|status| status.groups).map(|view| (view.group, view.last_index));
        let ends: BTreeMap<GroupId, u64> = ends.collect();
        if self.finale.logs.as_ref().is_some_and(|before| *before != ends) {
            self.finale.grown += 1;
        }
        self.finale.logs = Some(ends);
        if self.finale.grown > GROWN_MAX {
            let what = format!("at {} looks a log had grown: {}", self.finale.grown, self.describe());
            self.fail("a cluster that nobody asks for anything stops writing", what);
        }
    }

    /// A group of which not every replica is there and follows one leader in one term.
    fn unsettled_group(&self) -> Option<String> {
        let mut seen: BTreeMap<GroupId, Vec<(NodeId, GroupView)>> = BTreeMap::new();
        for node in self.nodes.iter().filter(|it| !it.retired) {
            let Some(core) = &node.core else { return Some(format!("n{} is down", node.ix)) };
            for view in core.status().groups {
                seen.entry(view.group).or_default().push((node.id(), view));
            }
        }
        let settled = |replicas: &[(NodeId, GroupView)]| {
            let Some((leader, led)) = replicas.iter().find(|(_, view)| view.role == "leader") else { return false };
            replicas.iter().all(|(node, view)| {
                let follows = matches!(view.role.as_str(), "follower" | "learner") || node == leader;
                follows && view.term == led.term && view.leader == Some(*leader)
            })
        };
        let (group, replicas) = seen.into_iter().find(|(_, replicas)| !settled(replicas))?;
        Some(format!("the replicas of group {group} have not settled: {replicas:?}"))
    }

    /// What still differs between the nodes.
    fn differences(&self) -> Option<String> {
        let mut applied = BTreeSet::new();
        for node in self.nodes.iter().filter(|it| !it.retired) {
            let Some(core) = &node.core else { return Some(format!("n{} is down", node.ix)) };
            applied.insert(core.metadata().applied);
        }
        if applied.len() > 1 {
            return Some(format!("__meta is applied up to {applied:?}"));
        }
        if let Some(what) = self.nodes.iter().find_map(foreign_replicas).or_else(|| self.unsettled_group()) {
            return Some(what);
        }
        let unheard = |it: &SimNode| Some((it.ix, self.unheard_address(it.ix)?));
        if let Some((moved, who)) = self.nodes.iter().filter(|it| !it.retired).find_map(unheard) {
            return Some(format!("n{who} does not know where n{moved} is"));
        }
        if let Some(what) = self.nodes.iter().find_map(untold_voters).or_else(|| self.crowded_voters()) {
            return Some(what);
        }
        if let Some(state) = self.nodes.iter().find_map(|it| it.core.as_ref()).map(engine::NodeCore::metadata) {
            if !state.outbox.is_empty() {
                return Some(format!("{} events wait in the outbox", state.outbox.len()));
            }
            if let Some(lease) = state.kv.leases.values().find(|lease| !outlasts(state, lease.id)) {
                return Some(format!("nobody renews leases, and there is {lease:?}"));
            }
            if let Some(what) = self.checks.locks.overstays(state) {
                return Some(what);
            }
            if let Some(what) = self.version_unsettled(state) {
                return Some(what);
            }
            if let Some(what) = state.vms.values().find_map(|vm| self.vm_unsettled(vm)) {
                return Some(what);
            }
        }
        for group in self.checks.partitions.groups() {
            let end = self.checks.partitions.end(group);
            if let Some(what) = self.consumers.behind(group, end).filter(|_| !self.checks.commands.is_deleted(group)) {
                return Some(what);
            }
            for node in self.nodes.iter().filter(|it| !it.retired) {
                // A node without a replica of the partition publishes nothing of it.
                if let Some(view) = self.checks.partitions.view(node.ix, group)
                    && view != end
                {
                    return Some(format!("n{} has {view} of {end} records of group {group}", node.ix));
                }
            }
        }
        None
    }

    /// Voters of a group of which too many share a failure domain, although others could vote.
    fn crowded_voters(&self) -> Option<String> {
        let state = self.checks.commands.last()?;
        let runs = |node: &NodeId| self.nodes.iter().any(|it| it.runs() && it.id() == *node);
        let crowded = state
            .partitions
            .values()
            .find(|partition| state.nodes.keys().any(|node| runs(node) && state.spreads_better_on(partition, *node)));
        if let Some(partition) = crowded {
            return Some(format!("group {} could be spread better: {:?}", partition.group, partition.replicas));
        }
        let leads = |it: &&SimNode| it.core.as_ref()?.raft_status(GroupId::META).filter(|s| s.role == Role::Leader);
        let voters = self.nodes.iter().find_map(|it| leads(&it))?.membership.voters;
        let eligible = state.nodes.values().filter(|record| {
            let votes = voters.contains(&record.meta_replica);
            record.lifecycle.holds_replicas() && (votes || runs(&record.member.node))
        });
        let eligible: Vec<_> = eligible.map(|record| (record.meta_replica, record.domain())).collect();
        let of = |replicas: &[base::ReplicaId]| {
            crowding(eligible.iter().filter(|(replica, _)| replicas.contains(replica)).map(|(_, domain)| *domain))
        };
        let best = spread(&eligible, eligible.iter().filter(|(replica, _)| voters.contains(replica)).count());
        if of(&voters) > of(&best) {
            return Some(format!("{voters:?} vote in __meta, {best:?} would be spread better"));
        }
        let able = eligible.len() >= voters.len();
        let lost = |record: &&NodeRecord| {
            record.lifecycle == NodeLifecycle::Lost && voters.contains(&record.meta_replica) && able
        };
        if let Some(record) = state.nodes.values().find(lost) {
            return Some(format!("node {} is lost and votes in __meta, and {eligible:?} could", record.member.node));
        }
        let records = state.nodes.values().filter(|record| voters.contains(&record.meta_replica));
        let in_one = |counts: Vec<usize>| counts.first().is_some_and(|most| 2 * most >= counts.iter().sum());
        let three = spread(&eligible, 3);
        let needless = voters.len() > 3 && in_one(crowding(records.map(NodeRecord::domain))) && !in_one(of(&three));
        needless.then(|| {
            format!("one failure domain has the majority of {voters:?} in __meta, and none would of {three:?}")
        })
    }

    /// What a machine lacks to what its user wants.
    fn vm_unsettled(&self, vm: &VmRecord) -> Option<String> {
        let hosts: Vec<NodeIx> =
            self.nodes.iter().filter(|node| node.host.running().contains_key(&vm.id)).map(|node| node.ix).collect();
        let place = vm.assignment.and_then(|assignment| self.places.get(&assignment.node)).copied();
        // Nothing moves a machine from a node that is lost, yet.
        if place.is_some_and(|place| self.nodes[place].retired) {
            return None;
        }
        // Waits for a node that has room for it, or for the one that it belongs to.
        let lost = |node: base::NodeId| {
            self.was_member(node) || self.places.get(&node).is_some_and(|place| self.nodes[*place].retired)
        };
        let nowhere = vm.spec.memory_mib > HOST_MEMORY_MIB || vm.spec.node.is_some_and(lost);
        let settled = match (vm.desired, vm.phase) {
            (VmDesired::Running, VmPhase::Pending) if nowhere => hosts.is_empty(),
            // It failed too often while the faults went on.
            (VmDesired::Running, VmPhase::Failed) => true,
            (VmDesired::Running, VmPhase::Running) => hosts.len() == 1 && hosts.first().copied() == place,
            (VmDesired::Stopped, VmPhase::Stopped | VmPhase::Failed | VmPhase::Pending) => hosts.is_empty(),
            _ => false,
        };
        let (name, desired, phase, reason) = (&vm.name, vm.desired, vm.phase, &vm.reason);
        (!settled)
            .then(|| format!("VM {name} is to be {desired:?}, is {phase:?} ({reason}) at {place:?}, runs at {hosts:?}"))
    }

    fn final_checks(&mut self) {
        let verdict = self.checks.partitions.finish(|group| self.checks.commands.is_deleted(group));
        self.check("acknowledged records stay", verdict);
        let verdict = self.checks.contact.finish();
        self.check("election timeouts are spread", verdict);
        // A retired node has no state; the others have all come to the same.
        let alive = self.nodes.iter().find_map(|it| it.core.as_ref());
        if let Some(state) = alive.map(|core| core.metadata().clone()) {
            let verdict = self.checks.replacements.finish(&state);
            self.check("successors take over", verdict);
            match self.checks.names.finish(&state, self.queue.now) {
                Ok(Judged { names, operations, undecided }) => {
                    (self.stats.names, self.stats.names_operations) = (names, operations);
                    self.stats.names_undecided = undecided;
                }
                Err(why) => self.fail("contended names are linearizable", why),
            }
        }
        for node in 0..self.nodes.len() {
            let Some(core) = &self.nodes[node].core else { continue };
            let state = core.metadata().clone();
            let verdict = self.checks.states.finish(node, &state);
            self.check("acknowledged commands stay", verdict.and(self.checks.machines.finish(&state)));
            let events = state.topics.get(metadata::EVENTS_TOPIC).and_then(|topic| topic.partitions.first()).copied();
            let published = self.checks.partitions.texts(events.unwrap_or_default());
            let verdict = self.checks.events.finish(published, &state);
            self.check("events are published once, in order", verdict);
        }
    }
}

/// A group that a node leads, and of which the table names other voters than Raft has.
fn untold_voters(node: &SimNode) -> Option<String> {
    let core = node.core.as_ref()?;
    core.metadata().partitions.values().find_map(|partition| {
        let status = core.raft_status(partition.group).filter(|status| status.role == Role::Leader)?;
        let told: BTreeSet<_> = partition.replicas.iter().filter(|it| it.voter).map(|it| it.replica).collect();
        let voters: BTreeSet<_> = status.membership.voters.iter().copied().collect();
        let group = partition.group;
        (told != voters).then(|| format!("the table says that {told:?} vote in group {group}; {voters:?} do"))
    })
}

/// Groups that a node has and should not have, or the other way round.
fn foreign_replicas(node: &SimNode) -> Option<String> {
    let core = node.core.as_ref()?;
    let partitions = core.metadata().partitions.values();
    let mut wanted: BTreeSet<GroupId> =
        partitions.filter(|p| p.replicas.iter().any(|r| r.node == node.id())).map(|p| p.group).collect();
    wanted.insert(GroupId::META);
    let held: BTreeSet<GroupId> = core.status().groups.into_iter().map(|view| view.group).collect();
    (held != wanted).then(|| format!("n{} has replicas of {held:?}, and should have those of {wanted:?}", node.ix))
}

impl Violation {
    /// Of a node's code that panicked.
    #[must_use]
    pub fn panic(at: Nanos, detail: String) -> Self {
        Violation { invariant: "nothing panics", at, detail }
    }
}
