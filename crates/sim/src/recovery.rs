//! The majority is lost for good: a run in two halves. In the first one a cluster lives under faults until all its machines
//! but one are gone; what the survivor's disk holds becomes the whole cluster (`engine::recover`), the other machines are
//! set up anew, and a second run begins with it, with all its faults, checks and its finale. In between: nothing that the
//! survivor knew to be committed is another, and nothing that was given out is given out again.

use base::{GroupId, Incarnation, LeaseId, NodeId, RecoveryId, VersionRange, Wall, hash64};
use engine::CoreConfig;
use engine::recover::{Survivor, inspect, recover};
use journal::{DiskDone, DiskError, DiskOp, DiskOpKind, OpId};
use metadata::Metadata;

use crate::check::{Checks, Violation, Watcher};
use crate::config::SimConfig;
use crate::disk::{DiskMood, VirtualDisk};
use crate::node::{SimNode, Stage, segment_bytes};
use crate::queue::NodeIx;
use crate::stats::Stats;
use crate::time::ms;
use crate::workload::Client;
use crate::world::World;

/// Names the data of a survivor.
const STORE: u64 = 1_000;

/// What both halves came to.
pub struct Lives {
    /// Of the second half.
    pub stats: Stats,
    /// One of those that were lost, if there was more than the survivor.
    pub forgotten: Option<Forgotten>,
}

/// A member of the first half as it was when the majority was lost: its disk turns up again, and nobody has wiped it.
pub struct Forgotten {
    /// For its next process.
    pub config: CoreConfig,
    pub disk: VirtualDisk,
    /// A member of the second half.
    pub refused_by: NodeId,
}

/// Runs both halves; how the second one ended, or what went wrong before.
///
/// # Errors
/// The first violation.
pub fn recover_in_the_middle(cfg: &SimConfig) -> Result<Lives, Violation> {
    let mut before = World::new(cfg.clone());
    before.run_until(ms(cfg.seconds * 1_000));
    if let Some(violation) = before.violation {
        return Err(violation);
    }
    let at = before.queue.now;
    let wrong = |detail: String| Violation { invariant: "a survivor can be recovered", at, detail };
    let (count, seed) = (before.nodes.len(), cfg.seed as usize);
    let mut survivors = (seed % count..).take(count).map(|ix| ix % count).filter(|ix| may_survive(&before, *ix));
    let Some(survivor) = survivors.next() else {
        return Err(wrong("no node has ever been in the cluster".into()));
    };
    let lost = survivors.next();
    let (end, life) = revive(before, survivor, lost).map_err(wrong)?;
    let mut world = World::of(cfg.clone(), life.nodes, life.checks);
    world.clients.iter_mut().zip(life.leases).for_each(|(client, lease)| client.inherit(lease));
    world.run();
    if let Some(violation) = world.violation {
        return Err(violation);
    }
    let at = world.queue.now;
    for (group, offset) in end.known {
        let verdict = world.checks.partitions.continues(&end.checks.partitions, group, offset);
        verdict.map_err(|detail| Violation { invariant: "a survivor's records stay", at, detail })?;
    }
    if let (Some(forgotten), Some(state)) = (&life.forgotten, world.checks.commands.last()) {
        let verdict = forgotten.is_no_member(state);
        verdict.map_err(|detail| Violation { invariant: "whoever was lost is refused", at, detail })?;
    }
    Ok(Lives { stats: world.stats, forgotten: life.forgotten })
}

/// Whether an operator would take this machine. Of one that was removed, whose table does not have itself yet, or on whose
/// disk a bit flipped, he would be told to take another one.
fn may_survive(world: &World, ix: NodeIx) -> bool {
    let it = &world.nodes[ix];
    let recovered = it.core.as_ref().filter(|_| it.recovered);
    let in_table = recovered.is_none_or(|core| core.metadata().nodes.contains_key(&it.id()));
    let member = it.stage == Stage::Formed && !it.retired && !world.was_member(it.id());
    member && in_table && !it.disk.is_rotten()
}

/// What is known of the first half.
struct End {
    checks: Checks,
    /// Partitions that the survivor keeps, and up to where it knew their records to be committed.
    known: Vec<(GroupId, i64)>,
}

/// What the second half begins with.
struct Life {
    nodes: Vec<SimNode>,
    checks: Checks,
    /// What each client of the first half held, whose successor goes on with it.
    leases: Vec<Option<LeaseId>>,
    forgotten: Option<Forgotten>,
}

fn revive(mut before: World, ix: NodeIx, lost: Option<NodeIx>) -> Result<(End, Life), String> {
    let seed = before.cfg.seed;
    let applied = before.nodes[ix].core.as_ref().map_or(0, |core| core.metadata().applied);
    let views: Vec<_> = before.checks.partitions.groups().into_iter().collect();
    let views: Vec<_> =
        views.iter().filter_map(|group| Some((*group, before.checks.partitions.view(ix, *group)?))).collect();
    for ended in std::iter::once(ix).chain(lost) {
        before.end_process(ended, seed.is_multiple_of(2));
    }
    let World { nodes, checks, clients, .. } = before;
    let mut nodes: Vec<Option<SimNode>> = nodes.into_iter().map(Some).collect();
    let count = nodes.len();
    let mut survivor = nodes[ix].take().ok_or("it is gone")?;
    let (found, state, disk) = rewrite(&mut survivor, seed)?;
    check_state(&found, &state, &checks, applied)?;
    let fresh = checks_after(count, &checks, &found, &state)?;
    let known = views.into_iter().filter_map(|(group, view)| {
        let remains = found.partitions.get(&group)?;
        Some((group, view.min(remains.next_offset)))
    });
    let known = known.collect();
    let id = survivor.id();
    let lost = lost.and_then(|place| nodes[place].take().map(|lost| (place, lost)));
    let forgotten = match lost {
        None => None,
        Some((place, mut lost)) => {
            let forgotten = Forgotten::of(&mut lost, seed, id);
            nodes[place] = Some(lost);
            forgotten
        }
    };
    let survivor = survivor.survive(seed, disk, STORE, &state);
    let nodes = (0..count).map(|place| match nodes[place].take() {
        None => None,
        Some(mut lost) => {
            lost.boot += 1;
            lost.renew(seed);
            lost.clock = SimNode::new(place, hash64(&[seed, 12])).clock;
            Some(lost)
        }
    });
    let mut nodes: Vec<Option<SimNode>> = nodes.collect();
    nodes[ix] = Some(survivor);
    let nodes = nodes.into_iter().flatten().collect();
    let leases = clients.iter().map(Client::lease).collect();
    Ok((End { checks, known }, Life { nodes, checks: fresh, leases, forgotten }))
}

/// Makes what is on the survivor's disk the whole cluster, on another disk.
fn rewrite(survivor: &mut SimNode, seed: u64) -> Result<(Survivor, Metadata, VirtualDisk), String> {
    let (id, bytes, recovery) = (survivor.id(), segment_bytes(seed), recovery_of(seed));
    let (mut old, mut new) = (Hands::of(&mut survivor.disk), VirtualDisk::new(seed));
    let found = inspect(id, bytes, &mut |kind| old.only_read(kind)).map_err(|error| error.to_string())?;
    let mut writes = Hands::of(&mut new);
    let first = (STORE, recovery, Wall(1_735_689_600_000));
    let state = recover(&found, bytes, (&mut |kind| old.only_read(kind), &mut |kind| writes.carry_out(kind)), first);
    let state = state.map_err(|error| error.to_string())?;
    if state.recovery != Some(recovery) {
        return Err(format!("it was recovered as {recovery}, and is of recovery {:?}", state.recovery));
    }
    new.crash(); // It was durable.
    let again = {
        let mut reads = Hands::of(&mut new);
        inspect(id, bytes, &mut |kind| reads.only_read(kind)).map_err(|error| error.to_string())?
    };
    check_again(&found, &again, &state)?;
    Ok((found, state, new))
}

/// The recovery of a run.
fn recovery_of(seed: u64) -> RecoveryId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&hash64(&[seed, 13]).to_be_bytes());
    RecoveryId(id)
}

/// What the second half is judged by: what was given out before, and what it begins with.
fn checks_after(nodes: usize, before: &Checks, found: &Survivor, state: &Metadata) -> Result<Checks, String> {
    let watchers = (0..nodes).map(|node| (node, Watcher::from(state))).collect();
    let mut fresh = Checks { members: before.members.given_out(), watchers, ..Checks::default() };
    fresh.commands.recovered(state);
    fresh.members.tables(None, state)?;
    fresh.events.recovered(found.published, state.outbox_first);
    fresh.leases.recovered(state);
    Ok(fresh)
}

impl Forgotten {
    /// What is on a machine that is to be set up anew. Whoever finds it later starts it as what is installed by then.
    fn of(lost: &mut SimNode, seed: u64, refused_by: NodeId) -> Option<Forgotten> {
        let mut config = lost.config(seed)?;
        config.me.versions = VersionRange::BINARY;
        let mut disk = std::mem::replace(&mut lost.disk, VirtualDisk::new(seed));
        disk.mood = DiskMood::default();
        Some(Forgotten { config, disk, refused_by })
    }

    /// Nothing that it can say of itself makes it a member; its incarnation is an older one besides.
    fn is_no_member(&self, state: &Metadata) -> Result<(), String> {
        let me = &self.config.me;
        let known = state.node_of(&me.address.endpoint).map(|record| record.member.node);
        match known.or(Some(me.node).filter(|node| state.nodes.contains_key(node))) {
            None => Ok(()),
            Some(node) => Err(format!("{me:?} is known as node {node}")),
        }
    }
}

/// Nothing that was committed before is another, and nothing that was given out comes again.
fn check_state(found: &Survivor, state: &Metadata, before: &Checks, applied: u64) -> Result<(), String> {
    let end = found.metadata.applied;
    if end < found.meta.commit {
        return Err(format!("its log ends at {end}; it had {} committed", found.meta.commit));
    }
    // Behind what it applied its log may go on with what never was committed.
    if end <= applied
        && let Some(known) = before.commands.at(end)
        && *known != found.metadata
    {
        return Err(format!("its state at index {end} is not what was committed"));
    }
    let newest = before.commands.last().map_or(0, |state| state.applied).max(end);
    if state.applied <= newest {
        return Err(format!("it goes on at index {}; {newest} was reached before", state.applied));
    }
    let waited: Vec<_> = found.metadata.outbox.range(found.published + 1..).map(|(_, event)| &event.key).collect();
    if !state.outbox.values().map(|event| &event.key).take(waited.len()).eq(waited.iter().copied()) {
        return Err(format!("events about {waited:?} waited; now there are {:?}", state.outbox));
    }
    if state.kv.changes_after(newest).is_ok() {
        return Err(format!("who watched keys up to {newest} is not told that changes may be gone"));
    }
    let replicas = state.partitions.values().flat_map(|partition| &partition.replicas).map(|it| it.replica);
    let metas = state.nodes.values().map(|it| it.meta_replica);
    if let Some(used) = replicas.chain(metas).find(|replica| *replica <= before.members.highest()) {
        return Err(format!("replica {used} was given out before"));
    }
    if let Some(last) = before.commands.last()
        && let Some(kind) = state.gives_out_again(last)
    {
        return Err(format!("{kind} that were given out before are given out again"));
    }
    let back = state.vms.values().find(|vm| {
        let known = before.commands.last().and_then(|state| state.vms.get(&vm.id));
        known.is_some_and(|known| known.epoch >= vm.epoch)
    });
    if let Some(vm) = back {
        return Err(format!("VM {} has epoch {}, which was given out before", vm.name, vm.epoch));
    }
    if state.cluster_incarnation != Incarnation(found.metadata.cluster_incarnation.0 + 1) || state.nodes.len() != 1 {
        return Err(format!("incarnation {}, {} nodes", state.cluster_incarnation, state.nodes.len()));
    }
    Ok(())
}

/// The new journal holds what it should.
fn check_again(found: &Survivor, again: &Survivor, state: &Metadata) -> Result<(), String> {
    if again.metadata != *state {
        return Err("the new journal holds another state than was written".into());
    }
    for (group, remains) in &found.partitions {
        let Some(kept) = again.partitions.get(group) else { return Err(format!("group {group} was not kept")) };
        if kept.next_offset != remains.next_offset || kept.membership.voters.len() != 1 {
            return Err(format!("group {group} was {remains:?}, is {kept:?}"));
        }
        if kept.end.last_term <= remains.end.term || kept.end.commit != kept.end.last_index {
            return Err(format!("group {group} ends as {:?} behind {:?}", kept.end, remains.end));
        }
    }
    Ok(())
}

/// Carries out one operation after the other, at once.
struct Hands<'a> {
    disk: &'a mut VirtualDisk,
    next: u64,
}

impl<'a> Hands<'a> {
    fn of(disk: &'a mut VirtualDisk) -> Hands<'a> {
        disk.mood = DiskMood::default();
        Hands { disk, next: 0 }
    }

    fn carry_out(&mut self, kind: DiskOpKind) -> Result<DiskDone, DiskError> {
        self.next += 1;
        let id = OpId(u64::MAX - self.next);
        self.disk.submit(DiskOp { id, kind }, 0).map_err(DiskError::Io)?;
        self.disk.complete(id).unwrap_or_else(|| Err(DiskError::Io("it was lost".into())))
    }

    fn only_read(&mut self, kind: DiskOpKind) -> Result<DiskDone, DiskError> {
        match kind {
            DiskOpKind::List | DiskOpKind::Read { .. } => self.carry_out(kind),
            _ => Ok(DiskDone::Done),
        }
    }
}
