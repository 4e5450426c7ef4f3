//! A hypervisor host without hypervisors: takes the actions of a node's reconciler, answers with reports after seeded
//! delays, and lets machines die now and then. Machines outlive the process that started them; the next one is told which
//! run and which are gone, as `vmm` does.

use std::collections::BTreeMap;

use base::{SplitMix64, VmEpoch, VmId, VmIncarnation};
use compute::{GUEST_SHUTDOWN, VmAction, VmReport, VmReportEvent};

use crate::time::{Nanos, ms};

/// One node's machines. They lose power with the node.
pub struct VmHost {
    running: BTreeMap<VmId, (VmEpoch, VmIncarnation)>,
    /// Ended when nobody heard it: the next process finds their records.
    lost: BTreeMap<VmId, (VmEpoch, VmIncarnation)>,
    /// The newest epoch and incarnation ever asked for here: the shim's directory, which outlives the process.
    newest: BTreeMap<VmId, (VmEpoch, VmIncarnation)>,
    random: SplitMix64,
    /// Chance per million that a machine ends some time after its start, because it dies or powers itself off.
    pub exits: u64,
    /// Chance per million that a start fails.
    pub failures: u64,
    /// Machines that died unasked.
    pub died: u64,
}

impl VmHost {
    /// A host without machines.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        VmHost {
            running: BTreeMap::new(),
            lost: BTreeMap::new(),
            newest: BTreeMap::new(),
            random: SplitMix64::new(seed),
            exits: 0,
            failures: 0,
            died: 0,
        }
    }

    /// Carries out an action: the reports that follow, with their delays.
    ///
    /// # Errors
    /// The action belongs to an epoch, or a start to an incarnation, older than one seen for the machine: something
    /// that was fenced acts (DESIGN 9, invariant 3).
    pub fn act(&mut self, action: &VmAction) -> Result<Vec<(Nanos, VmReport)>, String> {
        match action {
            VmAction::Start(start) => self.start(start.vm, start.epoch, start.incarnation),
            VmAction::Stop { vm, epoch, incarnation, grace_ms } => {
                self.fence(*vm, *epoch)?;
                let delay = ms(self.random.between(20, (*grace_ms).clamp(20, 1_000)));
                Ok(vec![(delay, report(*vm, *epoch, *incarnation, VmReportEvent::Stopped))])
            }
            VmAction::Remove { vm, epoch } => {
                self.fence(*vm, *epoch)?;
                let incarnation = self.newest.get(vm).map_or(VmIncarnation(0), |(_, incarnation)| *incarnation);
                self.running.remove(vm);
                // Often at once: the report is then there before anything else can happen.
                let delay = if self.random.chance(300_000) { 0 } else { ms(self.random.between(5, 50)) };
                Ok(vec![(delay, report(*vm, *epoch, incarnation, VmReportEvent::Removed))])
            }
        }
    }

    fn start(
        &mut self,
        vm: VmId,
        epoch: VmEpoch,
        incarnation: VmIncarnation,
    ) -> Result<Vec<(Nanos, VmReport)>, String> {
        self.fence(vm, epoch)?;
        if let Some((_, newest)) = self.newest.get(&vm).filter(|(_, newest)| incarnation < *newest) {
            return Err(format!("start of {vm:?} as incarnation {incarnation}, though {newest} was started"));
        }
        self.newest.insert(vm, (epoch, incarnation));
        if self.running.get(&vm) == Some(&(epoch, incarnation)) {
            return Ok(Vec::new());
        }
        if self.random.chance(self.failures) {
            let failed = VmReportEvent::Failed { reason: "the simulated hypervisor does not start".into() };
            return Ok(vec![(ms(20), report(vm, epoch, incarnation, failed))]);
        }
        self.running.insert(vm, (epoch, incarnation));
        self.lost.remove(&vm);
        let started = ms(self.random.between(5, 60));
        let ready = started + ms(self.random.between(100, 1_500));
        let mut out = vec![(started, report(vm, epoch, incarnation, VmReportEvent::Started))];
        if self.random.chance(self.exits) {
            let dies = started + ms(self.random.between(1, 4_000));
            let itself = self.random.chance(250_000);
            let reason = if itself { GUEST_SHUTDOWN } else { "the simulated hypervisor was killed" };
            let exited = VmReportEvent::Exited { reason: reason.into() };
            if ready < dies {
                out.push((ready, report(vm, epoch, incarnation, VmReportEvent::Ready)));
            }
            out.push((dies, report(vm, epoch, incarnation, exited)));
        } else {
            out.push((ready, report(vm, epoch, incarnation, VmReportEvent::Ready)));
        }
        Ok(out)
    }

    fn fence(&mut self, vm: VmId, epoch: VmEpoch) -> Result<(), String> {
        match self.newest.get(&vm) {
            Some((newest, _)) if epoch < *newest => {
                Err(format!("{vm:?} under epoch {epoch}, though {newest} was seen"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the report is still true when its time comes; a machine that was stopped in between does not get ready.
    pub fn speak(&mut self, report: &VmReport) -> bool {
        let current = self.running.get(&report.vm) == Some(&(report.epoch, report.incarnation));
        match report.event {
            VmReportEvent::Started | VmReportEvent::Ready => current,
            VmReportEvent::Exited { .. } => {
                if current {
                    self.running.remove(&report.vm);
                    self.died += 1;
                }
                current
            }
            VmReportEvent::Stopped => {
                if current {
                    self.running.remove(&report.vm);
                }
                // What a host does for one machine it does in order: once a later start was asked for, the stop of an
                // earlier one has long been answered.
                self.newest.get(&report.vm).is_none_or(|newest| (report.epoch, report.incarnation) >= *newest)
            }
            VmReportEvent::Failed { .. } | VmReportEvent::Removed => true,
        }
    }

    /// The machines that run here.
    #[must_use]
    pub fn running(&self) -> &BTreeMap<VmId, (VmEpoch, VmIncarnation)> {
        &self.running
    }

    /// A report's time has come, and the process that it was for is gone. The end of a machine, if that is what it tells.
    pub fn happen_unheard(&mut self, due: &VmReport) -> Option<VmReport> {
        let start = (due.epoch, due.incarnation);
        let ends = matches!(due.event, VmReportEvent::Exited { .. } | VmReportEvent::Stopped);
        if !ends || self.running.get(&due.vm) != Some(&start) {
            return None;
        }
        self.running.remove(&due.vm);
        self.lost.insert(due.vm, start);
        let exited = VmReportEvent::Exited { reason: "ended under the eyes of another process".into() };
        Some(report(due.vm, due.epoch, due.incarnation, exited))
    }

    /// A process was told of that end.
    pub fn tell_lost(&mut self, vm: VmId) {
        self.lost.remove(&vm);
    }

    /// The node lost power, and its machines with it.
    pub fn crash(&mut self) {
        self.lost.append(&mut self.running);
    }

    /// A new process looks for machines: what it is told at once, and what later.
    pub fn adopt(&mut self) -> (Vec<VmReport>, Vec<(Nanos, VmReport)>) {
        let (mut at_once, mut later) = (Vec::new(), Vec::new());
        for (vm, (epoch, incarnation)) in &self.running {
            at_once.push(report(*vm, *epoch, *incarnation, VmReportEvent::Started));
            let ready = ms(self.random.between(1, 300));
            later.push((ready, report(*vm, *epoch, *incarnation, VmReportEvent::Ready)));
        }
        for (vm, (epoch, incarnation)) in std::mem::take(&mut self.lost) {
            // A record that had not reached the disk says nothing.
            if self.random.chance(700_000) {
                let exited = VmReportEvent::Exited { reason: "ended while nobody watched".into() };
                at_once.push(report(vm, epoch, incarnation, exited));
            }
        }
        (at_once, later)
    }
}

fn report(vm: VmId, epoch: VmEpoch, incarnation: VmIncarnation, event: VmReportEvent) -> VmReport {
    VmReport { vm, epoch, incarnation, event }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(epoch: u64) -> VmAction {
        VmAction::Stop { vm: VmId(1), epoch: VmEpoch(epoch), incarnation: VmIncarnation(1), grace_ms: 100 }
    }

    #[test]
    fn whatever_is_older_than_what_was_seen_is_refused() {
        let mut host = VmHost::new(1);
        host.start(VmId(1), VmEpoch(2), VmIncarnation(3)).expect("first");
        assert!(host.start(VmId(1), VmEpoch(1), VmIncarnation(4)).is_err(), "older epoch");
        assert!(host.start(VmId(1), VmEpoch(2), VmIncarnation(2)).is_err(), "older incarnation");
        assert!(host.act(&stop(1)).is_err());
        assert!(host.act(&stop(2)).is_ok());
        host.crash();
        assert!(host.start(VmId(1), VmEpoch(1), VmIncarnation(4)).is_err(), "even after a crash");
        assert!(host.start(VmId(1), VmEpoch(3), VmIncarnation(4)).is_ok());
    }

    #[test]
    fn a_machine_that_died_is_not_ready() {
        let mut host = VmHost::new(1);
        let reports = host.start(VmId(1), VmEpoch(1), VmIncarnation(1)).expect("started");
        host.crash();
        assert!(reports.iter().all(|(_, report)| !host.speak(report)), "{reports:?}");
    }
}
