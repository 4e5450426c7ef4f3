//! How a VM's phase follows from requests and reports. Deterministic: runs inside apply on every replica.
//!
//! ```text
//!             assign           started         ready
//! Pending ──────────▶ Starting ───────▶ Booting ─────▶ Running
//!                        ▲                 │              │
//!                        └── Restarting ◀──┴── exited ────┘      any ── stop ──▶ Stopping ─▶ Stopped
//! ```

use base::limits::VM_RESTARTS_MAX;
use base::simulation::{Mark, Plant, mark, planted};
use base::{ErrorCode, NodeId, VmEpoch, VmIncarnation, Wall};

use crate::{Assignment, GUEST_SHUTDOWN, VmDesired, VmPhase, VmRecord, VmReport, VmReportEvent};

/// A run shorter than this counts as a start that failed.
const SHORT_RUN_MS: i64 = 60_000;

/// What became of a request or report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The phase changed; publish it.
    Changed,
    /// Nothing to do.
    Same,
    /// The VM is gone: remove its record.
    Gone,
    /// Not possible.
    Refused(ErrorCode, String),
}

/// A node gets the VM. The epoch must be the next one, so that a planner's repeated decision is taken once.
pub fn assign(vm: &mut VmRecord, node: NodeId, epoch: VmEpoch, placement: String, now: Wall) -> Outcome {
    if vm.phase != VmPhase::Pending || vm.desired != VmDesired::Running {
        mark(Mark::VmPlacedTooLate);
        return Outcome::Refused(ErrorCode::FailedPrecondition, format!("VM {} is not pending", vm.name));
    }
    if epoch.0 != vm.epoch.0 + 1 {
        let reason = format!("epoch {epoch} is not the one after {}", vm.epoch);
        return Outcome::Refused(ErrorCode::StaleEpoch, reason);
    }
    vm.epoch = epoch;
    vm.assignment = Some(Assignment { node, epoch });
    vm.placement = placement;
    next_incarnation(vm, VmPhase::Starting, String::new(), now)
}

/// The user wants it stopped.
pub fn stop(vm: &mut VmRecord, now: Wall) -> Outcome {
    match (vm.desired, vm.phase) {
        (VmDesired::Deleted, _) => {
            Outcome::Refused(ErrorCode::FailedPrecondition, format!("VM {} is being deleted", vm.name))
        }
        (VmDesired::Stopped, _) => Outcome::Same,
        (VmDesired::Running, VmPhase::Pending | VmPhase::Failed) => {
            vm.desired = VmDesired::Stopped;
            enter(vm, VmPhase::Stopped, "stopped before it ran".into(), now)
        }
        (VmDesired::Running, _) => {
            vm.desired = VmDesired::Stopped;
            enter(vm, VmPhase::Stopping, String::new(), now)
        }
    }
}

/// The user wants it to run (again).
pub fn start(vm: &mut VmRecord, now: Wall) -> Outcome {
    match (vm.desired, vm.phase) {
        (VmDesired::Deleted, _) => {
            Outcome::Refused(ErrorCode::FailedPrecondition, format!("VM {} is being deleted", vm.name))
        }
        (VmDesired::Running, phase) if phase != VmPhase::Failed => Outcome::Same,
        (_, VmPhase::Stopping) => {
            // The stop is under way; the report of its end, whatever end it is, starts it again.
            vm.desired = VmDesired::Running;
            vm.restarts = 0;
            Outcome::Same
        }
        _ => {
            vm.desired = VmDesired::Running;
            vm.restarts = 0;
            if vm.assignment.is_none() {
                return enter(vm, VmPhase::Pending, String::new(), now);
            }
            next_incarnation(vm, VmPhase::Starting, String::new(), now)
        }
    }
}

/// The user wants it gone.
pub fn delete(vm: &mut VmRecord, now: Wall) -> Outcome {
    if vm.assignment.is_none() {
        mark(Mark::VmDeletedBeforeItRan);
        return Outcome::Gone;
    }
    if vm.desired == VmDesired::Deleted {
        return Outcome::Same;
    }
    vm.desired = VmDesired::Deleted;
    enter(vm, VmPhase::Deleting, String::new(), now)
}

/// Its node is to be free of it. A node that is `dead` is not waited for; otherwise it is stopped there first. Wherever
/// it is placed next, it runs under the next epoch.
pub fn evict(vm: &mut VmRecord, epoch: VmEpoch, dead: bool, reason: &str, now: Wall) -> Outcome {
    if vm.assignment.is_none_or(|assignment| assignment.epoch != epoch) {
        let reason = format!("VM {} is not assigned under epoch {epoch}", vm.name);
        return Outcome::Refused(ErrorCode::StaleEpoch, reason);
    }
    match (vm.desired, vm.phase) {
        (VmDesired::Deleted, _) if dead => Outcome::Gone,
        // Its node removes it anyway.
        (VmDesired::Deleted, _) => Outcome::Same,
        (VmDesired::Running, VmPhase::Failed) | (_, VmPhase::Stopped) => {
            (vm.assignment, vm.leaves) = (None, false);
            Outcome::Changed
        }
        _ if dead => unassigned(vm, reason, now),
        _ if vm.leaves => Outcome::Same,
        (_, VmPhase::Stopping) => {
            vm.leaves = true;
            Outcome::Same
        }
        _ => {
            vm.leaves = true;
            enter(vm, VmPhase::Stopping, reason.to_owned(), now)
        }
    }
}

/// The cluster was recovered with `survivor` as its only node: from now on epochs count from `epoch`. What ran elsewhere may
/// still run, and is not started before somebody says so; what runs here is started anew, under the new epoch.
pub fn recovered(vm: &mut VmRecord, survivor: NodeId, epoch: VmEpoch, now: Wall) -> Outcome {
    vm.epoch = epoch;
    let Some(assignment) = vm.assignment.filter(|assignment| assignment.node == survivor) else {
        let node = vm.assignment.map(|assignment| assignment.node);
        (vm.assignment, vm.leaves) = (None, false);
        return match (vm.desired, vm.phase) {
            (VmDesired::Deleted, _) => Outcome::Gone,
            (VmDesired::Stopped, _) | (_, VmPhase::Failed) => {
                vm.desired = VmDesired::Stopped;
                enter(vm, VmPhase::Stopped, String::new(), now)
            }
            _ => {
                vm.desired = VmDesired::Stopped;
                let place = match node {
                    Some(node) => format!("it ran on node {node}, which the recovered cluster does not have"),
                    None => "it may run on a node that the recovered cluster does not have".to_owned(),
                };
                let reason =
                    format!("{place}; `muster vm start {}` once it is sure that it runs there no more", vm.name);
                enter(vm, VmPhase::Stopped, reason, now)
            }
        };
    };
    vm.assignment = Some(Assignment { node: assignment.node, epoch });
    vm.leaves = false;
    match (vm.desired, vm.phase) {
        (VmDesired::Running, phase) if phase != VmPhase::Failed => {
            next_incarnation(vm, VmPhase::Starting, "the cluster was recovered".into(), now)
        }
        _ => Outcome::Same,
    }
}

/// It runs nowhere, and belongs to no node.
fn unassigned(vm: &mut VmRecord, reason: &str, now: Wall) -> Outcome {
    mark(Mark::VmMovedAway);
    vm.assignment = None;
    vm.leaves = false;
    let phase = if vm.desired == VmDesired::Running { VmPhase::Pending } else { VmPhase::Stopped };
    enter(vm, phase, reason.to_owned(), now)
}

/// A node says what happened. Nothing is believed under another epoch or incarnation than the current one.
pub fn report(vm: &mut VmRecord, node: NodeId, report: &VmReport, now: Wall) -> Outcome {
    let current = vm.assignment == Some(Assignment { node, epoch: report.epoch });
    // A removal is about the assignment, not about one start.
    let removed = report.event == VmReportEvent::Removed;
    let stale = !current || (report.incarnation != vm.incarnation && !removed);
    if stale && !planted(Plant::StaleReportAccepted) {
        mark(Mark::VmReportStale);
        let reason = format!(
            "report under epoch {} incarnation {} from node {node}, but VM {} is at epoch {} incarnation {}",
            report.epoch, report.incarnation, vm.name, vm.epoch, vm.incarnation
        );
        return Outcome::Refused(ErrorCode::StaleEpoch, reason);
    }
    match &report.event {
        VmReportEvent::Started if vm.phase == VmPhase::Starting || vm.phase == VmPhase::Restarting => {
            enter(vm, VmPhase::Booting, String::new(), now)
        }
        VmReportEvent::Ready if matches!(vm.phase, VmPhase::Starting | VmPhase::Restarting | VmPhase::Booting) => {
            enter(vm, VmPhase::Running, String::new(), now)
        }
        VmReportEvent::Started | VmReportEvent::Ready => Outcome::Same,
        VmReportEvent::Exited { reason } => exited(vm, reason, now),
        VmReportEvent::Failed { reason } if vm.desired == VmDesired::Running && vm.phase != VmPhase::Stopping => {
            enter(vm, VmPhase::Failed, reason.clone(), now)
        }
        VmReportEvent::Failed { reason } => stopped(vm, reason, now),
        VmReportEvent::Stopped => stopped(vm, "", now),
        VmReportEvent::Removed if vm.desired == VmDesired::Deleted => Outcome::Gone,
        VmReportEvent::Removed => Outcome::Same,
    }
}

fn exited(vm: &mut VmRecord, reason: &str, now: Wall) -> Outcome {
    if vm.phase == VmPhase::Failed || vm.phase == VmPhase::Stopped {
        return Outcome::Same;
    }
    if vm.desired != VmDesired::Running || vm.phase == VmPhase::Stopping || reason == GUEST_SHUTDOWN {
        return stopped(vm, reason, now);
    }
    let ran_long = vm.phase == VmPhase::Running && now.0 - vm.changed.0 > SHORT_RUN_MS;
    vm.restarts = if ran_long { 1 } else { vm.restarts + 1 };
    if vm.restarts > VM_RESTARTS_MAX {
        mark(Mark::VmGaveUp);
        let reason = format!("ended {} times in a row, last: {reason}; `muster vm start` tries again", vm.restarts);
        return enter(vm, VmPhase::Failed, reason, now);
    }
    next_incarnation(vm, VmPhase::Restarting, reason.to_owned(), now)
}

fn stopped(vm: &mut VmRecord, reason: &str, now: Wall) -> Outcome {
    match (vm.desired, vm.phase) {
        // The node's removal report follows.
        (VmDesired::Deleted, _) => Outcome::Same,
        (VmDesired::Running, VmPhase::Stopping) if vm.leaves => {
            let reason = vm.reason.clone();
            unassigned(vm, &reason, now)
        }
        // Started again while the stop was under way.
        (VmDesired::Running, VmPhase::Stopping) => {
            mark(Mark::VmStartedAgainWhileStopping);
            next_incarnation(vm, VmPhase::Starting, String::new(), now)
        }
        // Its end was told of before; this must not undo what its users want since.
        (VmDesired::Running, VmPhase::Failed) | (VmDesired::Stopped, VmPhase::Stopped) => Outcome::Same,
        _ => {
            vm.desired = VmDesired::Stopped;
            enter(vm, VmPhase::Stopped, reason.to_owned(), now)
        }
    }
}

fn next_incarnation(vm: &mut VmRecord, phase: VmPhase, reason: String, now: Wall) -> Outcome {
    vm.incarnation = VmIncarnation(vm.incarnation.0 + 1);
    enter(vm, phase, reason, now)
}

fn enter(vm: &mut VmRecord, phase: VmPhase, reason: String, now: Wall) -> Outcome {
    vm.phase = phase;
    vm.reason = reason;
    vm.changed = now;
    Outcome::Changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VmSpec;
    use base::VmId;

    fn pending() -> VmRecord {
        VmRecord {
            id: VmId(1),
            name: "web".into(),
            spec: VmSpec { cpus: 1, memory_mib: 128, image: "minimal".into(), node: None },
            desired: VmDesired::Running,
            phase: VmPhase::Pending,
            assignment: None,
            incarnation: VmIncarnation(0),
            reason: String::new(),
            created: Wall(0),
            changed: Wall(0),
            restarts: 0,
            epoch: VmEpoch(0),
            placement: String::new(),
            leaves: false,
        }
    }

    fn running() -> VmRecord {
        let mut vm = pending();
        assert_eq!(assign(&mut vm, NodeId(1), VmEpoch(1), "why".into(), Wall(1)), Outcome::Changed);
        say(&mut vm, 1, 1, VmReportEvent::Started, 2);
        say(&mut vm, 1, 1, VmReportEvent::Ready, 3);
        assert_eq!(vm.phase, VmPhase::Running);
        vm
    }

    fn say(vm: &mut VmRecord, epoch: u64, incarnation: u64, event: VmReportEvent, at: i64) -> Outcome {
        let said = VmReport { vm: vm.id, epoch: VmEpoch(epoch), incarnation: VmIncarnation(incarnation), event };
        report(vm, NodeId(1), &said, Wall(at))
    }

    fn killed() -> VmReportEvent {
        VmReportEvent::Exited { reason: "killed".into() }
    }

    #[test]
    fn a_recovery_fences_every_vm_and_starts_only_what_is_surely_nowhere_else() {
        let (mut here, mut elsewhere) = (running(), running());
        assert_eq!(recovered(&mut here, NodeId(1), VmEpoch(100), Wall(9)), Outcome::Changed);
        assert_eq!((here.phase, here.epoch), (VmPhase::Starting, VmEpoch(100)));
        assert!(matches!(say(&mut here, 1, 1, killed(), 10), Outcome::Refused(ErrorCode::StaleEpoch, _)));

        assert_eq!(recovered(&mut elsewhere, NodeId(2), VmEpoch(100), Wall(9)), Outcome::Changed);
        assert_eq!((elsewhere.phase, elsewhere.assignment), (VmPhase::Stopped, None));
        assert!(elsewhere.reason.contains("muster vm start web"), "{}", elsewhere.reason);
        assert_eq!(start(&mut elsewhere, Wall(11)), Outcome::Changed);
        assert_eq!(elsewhere.phase, VmPhase::Pending);
        assert!(matches!(
            assign(&mut elsewhere, NodeId(2), VmEpoch(2), String::new(), Wall(12)),
            Outcome::Refused(ErrorCode::StaleEpoch, _)
        ));

        // The survivor may not have heard that it was given to a node.
        let mut nowhere = running();
        (nowhere.assignment, nowhere.phase) = (None, VmPhase::Pending);
        assert_eq!(recovered(&mut nowhere, NodeId(1), VmEpoch(100), Wall(9)), Outcome::Changed);
        assert_eq!((nowhere.phase, nowhere.desired), (VmPhase::Stopped, VmDesired::Stopped));
        assert_eq!(
            nowhere.reason,
            "it may run on a node that the recovered cluster does not have; `muster vm start web` once it is sure that it \
             runs there no more"
        );

        let mut deleted = running();
        delete(&mut deleted, Wall(5));
        assert_eq!(recovered(&mut deleted, NodeId(2), VmEpoch(100), Wall(9)), Outcome::Gone);
    }

    #[test]
    fn a_killed_vm_restarts_under_the_next_incarnation() {
        let mut vm = running();
        assert_eq!(say(&mut vm, 1, 1, killed(), 10), Outcome::Changed);
        assert_eq!((vm.phase, vm.incarnation, vm.reason.as_str()), (VmPhase::Restarting, VmIncarnation(2), "killed"));
        assert!(matches!(say(&mut vm, 1, 1, VmReportEvent::Ready, 11), Outcome::Refused(ErrorCode::StaleEpoch, _)));
    }

    #[test]
    fn reports_under_another_epoch_or_node_are_refused() {
        let mut vm = running();
        assert!(matches!(say(&mut vm, 2, 1, killed(), 10), Outcome::Refused(ErrorCode::StaleEpoch, _)));
        let said = VmReport { vm: vm.id, epoch: VmEpoch(1), incarnation: VmIncarnation(1), event: killed() };
        assert!(matches!(report(&mut vm, NodeId(2), &said, Wall(9)), Outcome::Refused(ErrorCode::StaleEpoch, _)));
        assert_eq!(vm.phase, VmPhase::Running);
    }

    #[test]
    fn a_crash_loop_ends_in_failed_and_start_tries_again() {
        let mut vm = running();
        for n in 1..=u64::from(VM_RESTARTS_MAX) + 1 {
            say(&mut vm, 1, n, killed(), 10);
        }
        assert_eq!(vm.phase, VmPhase::Failed);
        assert_eq!(start(&mut vm, Wall(20)), Outcome::Changed);
        assert_eq!((vm.phase, vm.restarts), (VmPhase::Starting, 0));
    }

    #[test]
    fn a_long_run_forgives_earlier_ends() {
        let mut vm = running();
        vm.restarts = VM_RESTARTS_MAX;
        say(&mut vm, 1, 1, killed(), 3 + SHORT_RUN_MS + 1);
        assert_eq!((vm.phase, vm.restarts), (VmPhase::Restarting, 1));
    }

    #[test]
    fn stop_start_and_delete() {
        let mut vm = running();
        assert_eq!(stop(&mut vm, Wall(4)), Outcome::Changed);
        assert_eq!(start(&mut vm, Wall(5)), Outcome::Same);
        assert_eq!(say(&mut vm, 1, 1, VmReportEvent::Stopped, 6), Outcome::Changed);
        assert_eq!((vm.phase, vm.incarnation), (VmPhase::Starting, VmIncarnation(2)));
        assert_eq!(delete(&mut vm, Wall(7)), Outcome::Changed);
        assert!(matches!(stop(&mut vm, Wall(8)), Outcome::Refused(..)));
        assert_eq!(say(&mut vm, 1, 2, VmReportEvent::Stopped, 9), Outcome::Same);
        assert_eq!(say(&mut vm, 1, 2, VmReportEvent::Removed, 9), Outcome::Gone);
        assert_eq!(delete(&mut pending(), Wall(1)), Outcome::Gone);
    }

    #[test]
    fn a_start_while_a_stop_is_under_way_is_not_undone_by_reports_of_the_run_before() {
        let failed = || VmReportEvent::Failed { reason: "no hypervisor".into() };
        for end in [VmReportEvent::Stopped, failed(), killed(), VmReportEvent::Exited { reason: GUEST_SHUTDOWN.into() }]
        {
            let mut vm = pending();
            assign(&mut vm, NodeId(1), VmEpoch(1), String::new(), Wall(1));
            assert_eq!(stop(&mut vm, Wall(4)), Outcome::Changed);
            assert_eq!(start(&mut vm, Wall(5)), Outcome::Same);
            assert_eq!(say(&mut vm, 1, 1, end.clone(), 6), Outcome::Changed);
            let now = (vm.phase, vm.desired, vm.incarnation);
            assert_eq!(now, (VmPhase::Starting, VmDesired::Running, VmIncarnation(2)), "{end:?}");
            assert!(matches!(say(&mut vm, 1, 1, VmReportEvent::Stopped, 7), Outcome::Refused(..)), "another run's");
            assert_eq!(say(&mut vm, 1, 2, failed(), 8), Outcome::Changed);
            assert_eq!(say(&mut vm, 1, 2, VmReportEvent::Stopped, 9), Outcome::Same);
            assert_eq!((vm.phase, vm.desired), (VmPhase::Failed, VmDesired::Running), "its users still want it");
        }
    }

    #[test]
    fn a_vm_that_is_to_leave_a_node_stops_there_before_it_is_placed_anew() {
        let mut vm = running();
        assert!(matches!(evict(&mut vm, VmEpoch(2), false, "", Wall(4)), Outcome::Refused(ErrorCode::StaleEpoch, _)));
        assert_eq!(evict(&mut vm, VmEpoch(1), false, "node a is draining", Wall(4)), Outcome::Changed);
        assert_eq!(evict(&mut vm, VmEpoch(1), false, "node a is draining", Wall(5)), Outcome::Same);
        assert!(matches!(assign(&mut vm, NodeId(2), VmEpoch(2), String::new(), Wall(5)), Outcome::Refused(..)));
        assert_eq!(say(&mut vm, 1, 1, VmReportEvent::Stopped, 6), Outcome::Changed);
        assert_eq!((vm.phase, vm.assignment, vm.desired), (VmPhase::Pending, None, VmDesired::Running));
        assert_eq!(vm.reason, "node a is draining");
        assert_eq!(assign(&mut vm, NodeId(2), VmEpoch(2), String::new(), Wall(7)), Outcome::Changed);
        assert!(!vm.leaves);
        assert!(matches!(say(&mut vm, 1, 1, VmReportEvent::Ready, 8), Outcome::Refused(ErrorCode::StaleEpoch, _)));
    }

    #[test]
    fn a_dead_node_is_not_waited_for() {
        let mut vm = running();
        assert_eq!(evict(&mut vm, VmEpoch(1), true, "", Wall(4)), Outcome::Changed);
        assert_eq!((vm.phase, vm.assignment), (VmPhase::Pending, None));
        let mut deleted = running();
        delete(&mut deleted, Wall(4));
        assert_eq!(evict(&mut deleted, VmEpoch(1), false, "", Wall(5)), Outcome::Same);
        assert_eq!(evict(&mut deleted, VmEpoch(1), true, "", Wall(5)), Outcome::Gone);
        let mut stopped = running();
        stop(&mut stopped, Wall(4));
        say(&mut stopped, 1, 1, VmReportEvent::Stopped, 5);
        assert_eq!(evict(&mut stopped, VmEpoch(1), false, "", Wall(6)), Outcome::Changed);
        assert_eq!((stopped.phase, stopped.assignment), (VmPhase::Stopped, None));
        assert_eq!(start(&mut stopped, Wall(7)), Outcome::Changed);
        assert_eq!(stopped.phase, VmPhase::Pending);
    }

    #[test]
    fn a_guest_that_powers_off_stays_off() {
        let mut vm = running();
        say(&mut vm, 1, 1, VmReportEvent::Exited { reason: GUEST_SHUTDOWN.into() }, 10);
        assert_eq!((vm.phase, vm.desired), (VmPhase::Stopped, VmDesired::Stopped));
    }

    #[test]
    fn an_assignment_is_taken_once() {
        let mut vm = pending();
        assert!(matches!(assign(&mut vm, NodeId(1), VmEpoch(2), String::new(), Wall(1)), Outcome::Refused(..)));
        assert_eq!(assign(&mut vm, NodeId(1), VmEpoch(1), String::new(), Wall(1)), Outcome::Changed);
        assert!(matches!(assign(&mut vm, NodeId(2), VmEpoch(2), String::new(), Wall(1)), Outcome::Refused(..)));
    }
}
