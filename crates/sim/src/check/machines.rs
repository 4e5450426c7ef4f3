//! Virtual machines: the table calls one running only when its present start said so, and what its user was told of
//! starting and stopping it stays.

use std::collections::{BTreeMap, BTreeSet};

use base::{VmEpoch, VmId, VmIncarnation};
use compute::{GUEST_SHUTDOWN, VmDesired, VmPhase, VmReport, VmReportEvent};
use metadata::Metadata;

/// See the module.
#[derive(Default)]
pub struct Machines {
    /// Starts that said that they are ready.
    ready: BTreeSet<(VmId, VmEpoch, VmIncarnation)>,
    /// Starts that ended because the guest powered itself off.
    off: BTreeSet<(VmId, VmEpoch, VmIncarnation)>,
    /// What its user was told last; `None` while an answer is out.
    wanted: BTreeMap<String, Option<VmDesired>>,
}

impl Machines {
    /// A machine speaks.
    pub fn said(&mut self, report: &VmReport) {
        let start = (report.vm, report.epoch, report.incarnation);
        match &report.event {
            VmReportEvent::Ready => self.ready.insert(start),
            VmReportEvent::Exited { reason } if reason == GUEST_SHUTDOWN => self.off.insert(start),
            _ => false,
        };
    }

    /// A node has this state now.
    ///
    /// # Errors
    /// It calls a start running that never was.
    pub fn observed(&self, state: &Metadata) -> Result<(), String> {
        for vm in state.vms.values().filter(|vm| vm.phase == VmPhase::Running) {
            if !self.ready.contains(&(vm.id, vm.epoch, vm.incarnation)) {
                let (name, epoch, incarnation) = (&vm.name, vm.epoch, vm.incarnation);
                return Err(format!(
                    "VM {name} is running as {epoch}/{incarnation}, which never said that it is ready"
                ));
            }
        }
        Ok(())
    }

    /// The machine's user asks for something.
    pub fn asked(&mut self, name: &str) {
        self.wanted.insert(name.to_owned(), None);
    }

    /// It was told that this is what the cluster wants from now on.
    pub fn acked(&mut self, name: &str, desired: VmDesired) {
        self.wanted.insert(name.to_owned(), Some(desired));
    }

    /// The run is over.
    ///
    /// # Errors
    /// The cluster wants something else than the user was told, and it is not that the guest powered itself off.
    pub fn finish(&self, state: &Metadata) -> Result<(), String> {
        for (name, wanted) in &self.wanted {
            if let (Some(wanted), Some(vm)) = (wanted, state.vm(name))
                && vm.desired != *wanted
                && !(vm.desired == VmDesired::Stopped && self.off.contains(&(vm.id, vm.epoch, vm.incarnation)))
            {
                return Err(format!("VM {name} was acknowledged to be {wanted:?}, and is to be {:?}", vm.desired));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use compute::{VmRecord, VmSpec};

    fn state(phase: VmPhase, desired: VmDesired) -> Metadata {
        let record = VmRecord {
            id: VmId(1),
            name: "web".into(),
            spec: VmSpec { cpus: 1, memory_mib: 128, image: "minimal".into(), node: None },
            desired,
            phase,
            assignment: None,
            incarnation: VmIncarnation(2),
            reason: String::new(),
            created: base::Wall(0),
            changed: base::Wall(0),
            restarts: 0,
            epoch: VmEpoch(1),
            placement: String::new(),
            leaves: false,
        };
        let mut state = Metadata::default();
        state.vms.insert(record.id, record);
        state.vm_names.insert("web".into(), VmId(1));
        state
    }

    #[test]
    fn a_start_that_never_was_ready_is_noticed() {
        let mut machines = Machines::default();
        let said = |incarnation| VmReport {
            vm: VmId(1),
            epoch: VmEpoch(1),
            incarnation: VmIncarnation(incarnation),
            event: VmReportEvent::Ready,
        };
        let running = state(VmPhase::Running, VmDesired::Running);
        machines.said(&said(1));
        assert!(machines.observed(&running).is_err(), "an earlier start");
        machines.said(&said(2));
        assert_eq!(machines.observed(&running), Ok(()));
    }

    #[test]
    fn only_the_present_start_of_a_guest_powers_itself_off() {
        let mut machines = Machines::default();
        let off = |incarnation| VmReport {
            vm: VmId(1),
            epoch: VmEpoch(1),
            incarnation: VmIncarnation(incarnation),
            event: VmReportEvent::Exited { reason: GUEST_SHUTDOWN.into() },
        };
        let stopped = state(VmPhase::Stopped, VmDesired::Stopped);
        machines.acked("web", VmDesired::Running);
        machines.said(&off(1));
        assert!(machines.finish(&stopped).is_err(), "an earlier start");
        machines.said(&off(2));
        assert_eq!(machines.finish(&stopped), Ok(()));
        assert!(machines.finish(&state(VmPhase::Stopped, VmDesired::Deleted)).is_err());
    }

    #[test]
    fn a_wish_that_was_acknowledged_and_forgotten_is_noticed() {
        let mut machines = Machines::default();
        let stopped = state(VmPhase::Stopped, VmDesired::Stopped);
        machines.acked("web", VmDesired::Running);
        assert!(machines.finish(&stopped).is_err());
        machines.asked("web");
        assert_eq!(machines.finish(&stopped), Ok(()), "the answer is out");
        machines.acked("web", VmDesired::Stopped);
        assert_eq!(machines.finish(&stopped), Ok(()));
    }
}
