//! The reconciler of one node: from what the cluster wants and what runs here to what must be done.
//!
//! It keeps what it asked for and what was reported, so that asking is done once; after a restart of the process it
//! knows only what the hypervisor side reports as still running.

use std::collections::BTreeMap;

use base::simulation::{Mark, mark};
use base::{NodeId, VmEpoch, VmId, VmIncarnation};

use crate::{VmAction, VmDesired, VmPhase, VmRecord, VmReport, VmReportEvent, VmStart};

/// How long a guest may take to power off before it is killed.
const STOP_GRACE_MS: u64 = 10_000;

/// What must be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// By the hypervisor side of this node.
    Act(VmAction),
    /// By the cluster: this is true, and nobody else will say so.
    Report(VmReport),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    /// Asked to start, or running.
    Up,
    /// Asked to stop.
    Stopping,
    /// Ended; nothing runs.
    Down,
    /// Asked to remove.
    Removing,
    /// Removed, and the table does not say so yet.
    Gone,
}

#[derive(Clone, Copy, Debug)]
struct LocalVm {
    epoch: VmEpoch,
    incarnation: VmIncarnation,
    state: Local,
}

/// The reconciler of one node.
#[derive(Debug, Default)]
pub struct Reconciler {
    local: BTreeMap<VmId, LocalVm>,
}

impl Reconciler {
    /// VMs whose hypervisor is believed to run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.local.values().filter(|vm| matches!(vm.state, Local::Up | Local::Stopping)).count()
    }

    /// Takes in what the hypervisor side says, before the cluster hears of it.
    pub fn reported(&mut self, report: &VmReport) {
        let known = self.local.get(&report.vm).copied();
        // A removal is about the assignment, not about one start.
        let removed = report.event == VmReportEvent::Removed;
        let newer = |vm: LocalVm| match removed {
            true => vm.epoch > report.epoch,
            false => (vm.epoch, vm.incarnation) > (report.epoch, report.incarnation),
        };
        if known.is_some_and(newer) {
            mark(Mark::VmReportOutdatedLocally);
            return;
        }
        let state = match (&report.event, known.map(|vm| vm.state)) {
            (VmReportEvent::Started | VmReportEvent::Ready, Some(state @ (Local::Stopping | Local::Removing))) => {
                mark(Mark::VmStartedWhileStopping);
                state
            }
            (VmReportEvent::Started | VmReportEvent::Ready, _) => Local::Up,
            // Kept until the table has let go of it: forgotten now, it would be removed again and again until then.
            (VmReportEvent::Removed, _) => Local::Gone,
            (_, Some(Local::Removing)) => Local::Removing,
            _ => Local::Down,
        };
        let vm = LocalVm { epoch: report.epoch, incarnation: report.incarnation, state };
        self.local.insert(report.vm, vm);
    }

    /// What must be done now, for all VMs. Call when the table or the local truth changed.
    pub fn reconcile<'a>(&mut self, me: NodeId, table: impl Iterator<Item = &'a VmRecord>) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut mine = BTreeMap::new();
        for vm in table {
            if vm.assignment.is_some_and(|a| a.node == me) {
                mine.insert(vm.id, vm);
                steps.extend(self.reconcile_one(vm));
            }
        }
        self.local.retain(|id, local| local.state != Local::Gone || mine.contains_key(id));
        for (id, local) in &mut self.local {
            if !mine.contains_key(id) && local.state != Local::Removing {
                mark(Mark::VmStrayRemoved);
                local.state = Local::Removing;
                steps.push(Step::Act(VmAction::Remove { vm: *id, epoch: local.epoch }));
            }
        }
        steps
    }

    fn reconcile_one(&mut self, vm: &VmRecord) -> Option<Step> {
        let known = self.local.get(&vm.id).copied();
        // What is gone is as good as never here, unless it is to be gone.
        let local = known.filter(|l| l.state != Local::Gone);
        let current = local.is_some_and(|l| l.epoch == vm.epoch && l.incarnation == vm.incarnation);
        match vm.desired {
            VmDesired::Deleted => match known {
                // What was asked under an earlier assignment does not answer for this one.
                Some(LocalVm { state: Local::Removing | Local::Gone, epoch, .. }) if epoch == vm.epoch => None,
                _ => Some(self.act(vm, Local::Removing, VmAction::Remove { vm: vm.id, epoch: vm.epoch })),
            },
            VmDesired::Stopped => match local.map(|l| l.state) {
                // Of an assignment that the table has forgotten, as after a recovery from an older log: under its own name.
                Some(Local::Up) if local.is_some_and(|l| l.epoch < vm.epoch) => {
                    let old = local?;
                    self.local.insert(vm.id, LocalVm { state: Local::Stopping, ..old });
                    let (epoch, incarnation) = (old.epoch, old.incarnation);
                    Some(Step::Act(VmAction::Stop { vm: vm.id, epoch, incarnation, grace_ms: STOP_GRACE_MS }))
                }
                Some(Local::Up) => Some(self.act(vm, Local::Stopping, stop(vm))),
                Some(Local::Stopping | Local::Removing | Local::Gone) => None,
                Some(Local::Down) | None if vm.phase == VmPhase::Stopping => Some(say(vm, VmReportEvent::Stopped)),
                Some(Local::Down) | None => None,
            },
            VmDesired::Running => match (vm.phase, local.map(|l| l.state)) {
                (VmPhase::Starting | VmPhase::Restarting, None | Some(Local::Down)) if !current => {
                    Some(self.act(vm, Local::Up, VmAction::Start(start(vm))))
                }
                // An older start still runs: it must end before the next one begins.
                (VmPhase::Starting | VmPhase::Restarting, Some(Local::Up)) if !current => {
                    mark(Mark::VmOldStartStillRuns);
                    let old = local?;
                    self.local.insert(vm.id, LocalVm { state: Local::Stopping, ..old });
                    Some(Step::Act(VmAction::Stop {
                        vm: vm.id,
                        epoch: old.epoch,
                        incarnation: old.incarnation,
                        grace_ms: 0,
                    }))
                }
                (VmPhase::Booting | VmPhase::Running | VmPhase::Stopping, None) => {
                    mark(Mark::VmFoundGone);
                    Some(say(vm, VmReportEvent::Exited { reason: "gone after the node restarted".into() }))
                }
                (VmPhase::Stopping, Some(Local::Up)) if current => Some(self.act(vm, Local::Stopping, stop(vm))),
                // Started, stopped and started again while this node heard nothing: that start never ran here.
                (VmPhase::Stopping, Some(Local::Down)) if !current => Some(say(vm, VmReportEvent::Stopped)),
                _ => None,
            },
        }
    }

    fn act(&mut self, vm: &VmRecord, state: Local, action: VmAction) -> Step {
        self.local.insert(vm.id, LocalVm { epoch: vm.epoch, incarnation: vm.incarnation, state });
        Step::Act(action)
    }
}

fn start(vm: &VmRecord) -> VmStart {
    VmStart { vm: vm.id, name: vm.name.clone(), epoch: vm.epoch, incarnation: vm.incarnation, spec: vm.spec.clone() }
}

fn stop(vm: &VmRecord) -> VmAction {
    VmAction::Stop { vm: vm.id, epoch: vm.epoch, incarnation: vm.incarnation, grace_ms: STOP_GRACE_MS }
}

fn say(vm: &VmRecord, event: VmReportEvent) -> Step {
    Step::Report(VmReport { vm: vm.id, epoch: vm.epoch, incarnation: vm.incarnation, event })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Assignment, VmSpec, lifecycle};
    use base::Wall;

    fn assigned() -> VmRecord {
        VmRecord {
            id: VmId(1),
            name: "web".into(),
            spec: VmSpec { cpus: 1, memory_mib: 128, image: "minimal".into(), node: None },
            desired: VmDesired::Running,
            phase: VmPhase::Starting,
            assignment: Some(Assignment { node: NodeId(1), epoch: VmEpoch(1) }),
            incarnation: VmIncarnation(1),
            reason: String::new(),
            created: Wall(0),
            changed: Wall(0),
            restarts: 0,
            epoch: VmEpoch(1),
            placement: String::new(),
            leaves: false,
        }
    }

    fn tell(reconciler: &mut Reconciler, vm: &mut VmRecord, incarnation: u64, event: VmReportEvent) {
        let report = VmReport { vm: vm.id, epoch: VmEpoch(1), incarnation: VmIncarnation(incarnation), event };
        reconciler.reported(&report);
        lifecycle::report(vm, NodeId(1), &report, Wall(1));
    }

    #[test]
    fn each_action_is_asked_for_once() {
        let (mut reconciler, mut vm) = (Reconciler::default(), assigned());
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), [Step::Act(VmAction::Start(start(&vm)))]);
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), []);
        tell(&mut reconciler, &mut vm, 1, VmReportEvent::Ready);
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), []);
        lifecycle::stop(&mut vm, Wall(2));
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), [Step::Act(stop(&vm))]);
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), []);
        tell(&mut reconciler, &mut vm, 1, VmReportEvent::Stopped);
        assert_eq!((vm.phase, reconciler.running()), (VmPhase::Stopped, 0));
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), []);
    }

    #[test]
    fn a_killed_vm_is_started_again_under_the_next_incarnation() {
        let (mut reconciler, mut vm) = (Reconciler::default(), assigned());
        reconciler.reconcile(NodeId(1), [&vm].into_iter());
        tell(&mut reconciler, &mut vm, 1, VmReportEvent::Exited { reason: "killed".into() });
        let steps = reconciler.reconcile(NodeId(1), [&vm].into_iter());
        assert_eq!(steps, [Step::Act(VmAction::Start(start(&vm)))]);
        assert_eq!(vm.incarnation, VmIncarnation(2));
    }

    #[test]
    fn after_a_restart_of_the_process_a_vm_that_is_gone_is_reported() {
        let mut vm = assigned();
        vm.phase = VmPhase::Running;
        let steps = Reconciler::default().reconcile(NodeId(1), [&vm].into_iter());
        assert!(matches!(&steps[..], [Step::Report(VmReport { event: VmReportEvent::Exited { .. }, .. })]));
    }

    #[test]
    fn a_start_that_was_stopped_and_wanted_again_before_this_node_heard_of_it_ends_and_begins() {
        let (mut reconciler, mut vm) = (Reconciler::default(), assigned());
        reconciler.reconcile(NodeId(1), [&vm].into_iter());
        lifecycle::stop(&mut vm, Wall(2));
        tell(&mut reconciler, &mut vm, 1, VmReportEvent::Stopped);
        for change in [lifecycle::start, lifecycle::stop, lifecycle::start] {
            change(&mut vm, Wall(3));
        }
        assert_eq!((vm.phase, vm.incarnation), (VmPhase::Stopping, VmIncarnation(2)));
        let steps = reconciler.reconcile(NodeId(1), [&vm].into_iter());
        assert_eq!(steps, [say(&vm, VmReportEvent::Stopped)]);
        tell(&mut reconciler, &mut vm, 2, VmReportEvent::Stopped);
        assert_eq!(vm.incarnation, VmIncarnation(3));
        let steps = reconciler.reconcile(NodeId(1), [&vm].into_iter());
        assert_eq!(steps, [Step::Act(VmAction::Start(start(&vm)))]);
    }

    #[test]
    fn an_adopted_vm_is_left_running() {
        let (mut reconciler, mut vm) = (Reconciler::default(), assigned());
        vm.phase = VmPhase::Running;
        tell(&mut reconciler, &mut vm, 1, VmReportEvent::Ready);
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), []);
    }

    #[test]
    fn a_vm_that_is_gone_is_not_removed_again_while_the_table_still_holds_it() {
        let (mut reconciler, mut vm) = (Reconciler::default(), assigned());
        tell(&mut reconciler, &mut vm, 1, VmReportEvent::Ready);
        lifecycle::delete(&mut vm, Wall(2));
        let remove = Step::Act(VmAction::Remove { vm: vm.id, epoch: VmEpoch(1) });
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), [remove]);
        // The table learns of it only when the report is committed, which may take long.
        let gone =
            VmReport { vm: vm.id, epoch: VmEpoch(1), incarnation: VmIncarnation(1), event: VmReportEvent::Removed };
        reconciler.reported(&gone);
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), []);
        assert_eq!(reconciler.reconcile(NodeId(1), [].into_iter()), []);
        assert!(reconciler.local.is_empty(), "forgotten once the table has let go of it");
    }

    #[test]
    fn a_vm_that_is_no_longer_ours_is_removed() {
        let (mut reconciler, mut vm) = (Reconciler::default(), assigned());
        tell(&mut reconciler, &mut vm, 1, VmReportEvent::Ready);
        vm.assignment = Some(Assignment { node: NodeId(2), epoch: VmEpoch(2) });
        let remove = Step::Act(VmAction::Remove { vm: vm.id, epoch: VmEpoch(1) });
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), [remove]);
        assert_eq!(reconciler.reconcile(NodeId(1), [&vm].into_iter()), []);
    }
}
