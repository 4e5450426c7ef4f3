//! The VMs of this node: what the reconciler asks for, and reports on their way to `__meta`.

use std::collections::VecDeque;

use base::simulation::{Mark, Plant, mark, planted};
use base::{ErrorCode, GroupId, Millis, Mono};
use compute::{Reconciler, Step, VmReport};
use metadata::{Command, CommandResult};

use crate::core::{NodeCore, Stage};
use crate::requests::Internal;
use crate::{Effect, Reply, Request, RequestError, Target};

/// After a report that could not be taken.
const RETRY: Millis = Millis(200);

/// Whether this node's view of the tables is known to be recent enough to act on.
#[derive(Debug, Default, PartialEq, Eq)]
enum Current {
    #[default]
    No,
    Asking,
    Yes,
}

/// The VM side of the core.
#[derive(Debug, Default)]
pub(crate) struct VmSide {
    pub reconciler: Reconciler,
    /// Reports that the cluster has not taken yet, in order.
    reports: VecDeque<VmReport>,
    /// The first of them is under way.
    reporting: bool,
    /// After a report that could not be taken (a full disk, a deadline).
    retry_at: Option<Mono>,
    current: Current,
    dirty: bool,
    reconciled: u64,
}

impl VmSide {
    /// Whether the tables were current once in this process; they never go back.
    pub fn is_current(&self) -> bool {
        self.current == Current::Yes
    }
}

impl NodeCore {
    pub(crate) fn take_vm_report(&mut self, report: VmReport) {
        self.vms.reconciler.reported(&report);
        self.vms.dirty = true;
        // Each VM has a handful of different things to say per start, and the next start waits for the table: so the
        // queue is bounded by the VMs of this node.
        if !self.vms.reports.contains(&report) {
            self.vms.reports.push_back(report);
        }
    }

    /// Acts on the tables, but never on those that a restarted process finds in its journal before it knows that they
    /// are current: the VM may have been moved or deleted meanwhile.
    pub(crate) fn drive_vms(&mut self) {
        match self.vms.current {
            Current::No if planted(Plant::StaleTablesActedOn) => self.vm_barrier_done(true),
            Current::No => {
                self.vms.current = Current::Asking;
                self.ask(Internal::VmBarrier, Target::Leader(GroupId::META), Request::ReadPoint);
            }
            Current::Asking => {}
            Current::Yes => {
                if self.vms.dirty || self.vms.reconciled != self.metadata.applied {
                    self.vms.dirty = false;
                    self.vms.reconciled = self.metadata.applied;
                    self.reconcile_vms();
                }
            }
        }
        self.report_next();
    }

    fn reconcile_vms(&mut self) {
        let me = self.me();
        for step in self.vms.reconciler.reconcile(me, self.metadata.vms.values()) {
            match step {
                Step::Act(action) => self.effects.push(Effect::Vm(action)),
                Step::Report(report) if !self.vms.reports.contains(&report) => self.vms.reports.push_back(report),
                Step::Report(_) => {}
            }
        }
    }

    fn report_next(&mut self) {
        let waits = self.vms.retry_at.is_some_and(|at| at > self.now.mono);
        if self.vms.reporting || waits || self.stage != Stage::Running {
            return;
        }
        if let Some(report) = self.vms.reports.front().cloned() {
            self.vms.reporting = true;
            let command = Request::Command(Command::ReportVm { node: self.me(), report });
            self.ask(Internal::VmReport, Target::Leader(GroupId::META), command);
        }
    }

    /// The cluster took a report, or refused it as stale; either way it is done with. Otherwise it is sent again.
    pub(crate) fn vm_report_done(&mut self, request: Request, outcome: Result<Reply, RequestError>) {
        self.vms.reporting = false;
        self.vms.dirty = true;
        let Request::Command(Command::ReportVm { report, .. }) = request else { return };
        // Refused for reasons of the session, not of the VM: nothing was judged.
        let unjudged = |code: &ErrorCode| matches!(code, ErrorCode::Busy | ErrorCode::UnknownSession);
        let taken = match &outcome {
            Ok(Reply::Command { result: CommandResult::Refused { code, .. }, .. }) => !unjudged(code),
            outcome => matches!(outcome, Ok(Reply::Command { .. })),
        };
        if !taken {
            // Never at once: the same refusal would come back inside this very call.
            mark(Mark::VmReportRepeated);
            self.vms.retry_at = Some(self.now.mono.plus(RETRY));
            return;
        }
        self.vms.retry_at = None;
        if self.vms.reports.front() == Some(&report) {
            self.vms.reports.pop_front();
        }
        self.report_next();
    }

    pub(crate) fn vm_barrier_done(&mut self, current: bool) {
        self.vms.current = if current { Current::Yes } else { Current::No };
        self.partitions_due |= current;
    }
}
