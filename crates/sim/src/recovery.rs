//! The majority is lost for good: a run in two halves. In the first one a cluster lives under faults until all its machines
//! but one are gone; what the survivor's disk holds becomes the whole cluster (`engine::recover`), the other machines are
//! set up anew, and a second run begins with it, with all its faults, checks and its finale. In between: nothing that the
//! survivor knew to be committed is another, and nothing that was given out is given out again.

use base::{GroupId, Incarnation, RecoveryId, hash64};
use engine::recover::{Survivor, inspect, recover};
use journal::{DiskDone, DiskError, DiskOp, DiskOpKind, OpId};
use metadata::Metadata;

use crate::check::{Checks, Violation, Watcher};
use crate::config::SimConfig;
use crate::disk::VirtualDisk;
use crate::node::{SimNode, Stage, segment_bytes};
use crate::queue::NodeIx;
use crate::stats::Stats;
use crate::time::ms;
use crate::world::World;

/// Names the data of a survivor.
const STORE: u64 = 1_000;
/// Names the recovery.
const RECOVERY: RecoveryId = RecoveryId([7; 16]);

/// Runs both halves; how the second one ended, or what went wrong before.
///
/// # Errors
/// The first violation.
pub fn recover_in_the_middle(cfg: &SimConfig) -> Result<Stats, Violation> {
    let mut before = World::new(cfg.clone());
    before.run_until(ms(cfg.seconds * 1_000));
    if let Some(violation) = before.violation {
        return Err(violation);
    }
    let wrong = |detail: String| Violation { invariant: "a survivor can be recovered", at: before.queue.now, detail };
    let start = cfg.seed as usize % cfg.nodes;
    let formed = |ix: &NodeIx| before.nodes[*ix].stage == Stage::Formed && !before.nodes[*ix].retired;
    let Some(survivor) = (start..start + cfg.nodes).map(|ix| ix % cfg.nodes).find(formed) else {
        return Err(wrong("no node has ever been in the cluster".into()));
    };
    let (end, life) = revive(before, survivor)?;
    let mut world = World::of(cfg.clone(), life.nodes, life.checks);
    world.run();
    if let Some(violation) = world.violation {
        return Err(violation);
    }
    let at = world.queue.now;
    for (group, offset) in end.known {
        let verdict = world.checks.partitions.continues(&end.checks.partitions, group, offset);
        verdict.map_err(|detail| Violation { invariant: "a survivor's records stay", at, detail })?;
    }
    Ok(world.stats)
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
}

fn revive(mut before: World, ix: NodeIx) -> Result<(End, Life), Violation> {
    let at = before.queue.now;
    let wrong = |detail: String| Violation { invariant: "a survivor can be recovered", at, detail };
    let seed = before.cfg.seed;
    let applied = before.nodes[ix].core.as_ref().map_or(0, |core| core.metadata().applied);
    let views: Vec<_> = before.checks.partitions.groups().into_iter().collect();
    let views: Vec<_> =
        views.iter().filter_map(|group| Some((*group, before.checks.partitions.view(ix, *group)?))).collect();
    before.end_process(ix, seed.is_multiple_of(2));
    let World { nodes, checks, cfg, .. } = before;
    let mut nodes: Vec<Option<SimNode>> = nodes.into_iter().map(Some).collect();
    let mut survivor = nodes[ix].take().ok_or_else(|| wrong("it is gone".into()))?;
    let bytes = segment_bytes(seed);
    let id = survivor.id();
    let (mut old, mut new) = (Hands::of(&mut survivor.disk), VirtualDisk::new(seed));
    let found = inspect(id, bytes, &mut |kind| old.only_read(kind)).map_err(|error| wrong(error.to_string()))?;
    let mut writes = Hands::of(&mut new);
    let wall = base::Wall(1_735_689_600_000);
    let names = (STORE, RECOVERY, wall);
    let state = recover(&found, bytes, (&mut |kind| old.only_read(kind), &mut |kind| writes.carry_out(kind)), names);
    let state = state.map_err(|error| wrong(error.to_string()))?;
    new.crash(); // It was durable.
    check_state(&found, &state, &checks, applied).map_err(wrong)?;
    let again = {
        let mut reads = Hands::of(&mut new);
        inspect(id, bytes, &mut |kind| reads.only_read(kind)).map_err(|error| wrong(error.to_string()))?
    };
    check_again(&found, &again, &state).map_err(wrong)?;

    let watchers = (0..cfg.nodes).map(|node| (node, Watcher::from(&state))).collect();
    let mut fresh = Checks { members: checks.members.given_out(), watchers, ..Checks::default() };
    fresh.commands.recovered(&state);
    let tables = fresh.members.tables(None, &state);
    tables.map_err(wrong)?;
    fresh.events.recovered(found.published, state.outbox_first);
    let known = views.into_iter().filter_map(|(group, view)| {
        let remains = found.partitions.get(&group)?;
        Some((group, view.min(remains.next_offset)))
    });
    let known = known.collect();
    let survivor = survivor.survive(seed, new, STORE, &state);
    let nodes = (0..cfg.nodes).map(|place| match nodes[place].take() {
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
    Ok((End { checks, known }, Life { nodes, checks: fresh }))
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
    if state.recovery != Some(RECOVERY) {
        return Err(format!("it is of recovery {:?}, and not of {RECOVERY}", state.recovery));
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
        disk.mood = crate::disk::DiskMood::default();
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
