//! Between the core and the hypervisor side: actions there, reports and console lines back.

use std::sync::Arc;
use std::time::Duration;

use base::VmId;
use compute::{VmAction, VmReport, VmReportEvent};
use engine::Event;
use tokio::sync::mpsc;
use vmm::{StartVm, VmEvent, VmEventKind, Vmm, VmmError};

use crate::console::ConsoleLines;

/// Carries out the core's actions, in order.
pub(crate) async fn take_actions(vmm: Arc<Vmm>, mut actions: mpsc::Receiver<VmAction>, reports: mpsc::Sender<Event>) {
    while let Some(action) = actions.recv().await {
        let (report, outcome) = match action {
            VmAction::Start(start) => {
                let (vm, epoch, incarnation) = (start.vm, start.epoch, start.incarnation);
                let spec = StartVm {
                    id: vm,
                    name: start.name,
                    epoch,
                    incarnation,
                    cpus: start.spec.cpus,
                    memory_mib: start.spec.memory_mib,
                    image: start.spec.image,
                };
                let failed = |reason| VmReport { vm, epoch, incarnation, event: VmReportEvent::Failed { reason } };
                match vmm.start(spec).await {
                    Ok(()) => continue,
                    Err(error) => (failed(error.to_string()), Err(error)),
                }
            }
            // A VM that this host does not know does not run here: stopped and removed it is.
            VmAction::Stop { vm, epoch, incarnation, grace_ms } => {
                let outcome = vmm.stop(vm, epoch, Duration::from_millis(grace_ms)).await;
                (VmReport { vm, epoch, incarnation, event: VmReportEvent::Stopped }, outcome)
            }
            VmAction::Remove { vm, epoch } => {
                let outcome = vmm.remove(vm, epoch).await;
                let incarnation = base::VmIncarnation(0);
                (VmReport { vm, epoch, incarnation, event: VmReportEvent::Removed }, outcome)
            }
        };
        if let Err(error) = outcome {
            log(report.vm, &error);
            if reports.send(Event::Vm(report)).await.is_err() {
                return;
            }
        }
    }
}

fn log(vm: VmId, error: &VmmError) {
    tracing::warn!(%vm, %error, "the hypervisor side refused");
}

/// Turns what happens to VMs into reports and console lines.
pub(crate) async fn take_events(
    mut events: mpsc::Receiver<VmEvent>,
    reports: mpsc::Sender<Event>,
    console: mpsc::Sender<ConsoleLines>,
) {
    while let Some(event) = events.recv().await {
        let VmEvent { id: vm, epoch, incarnation, kind } = event;
        let reported = match kind {
            VmEventKind::Preparing { what } => {
                tracing::info!(%vm, what, "preparing");
                continue;
            }
            VmEventKind::Unready { reason } => {
                tracing::warn!(%vm, reason, "the guest agent is silent");
                continue;
            }
            VmEventKind::Console { lines, dropped } => {
                if dropped > 0 {
                    tracing::warn!(%vm, dropped, "console lines lost: they came faster than they were taken");
                }
                // A full queue loses lines rather than holding up reports.
                if console.try_send(ConsoleLines { vm, epoch, incarnation, lines }).is_err() {
                    tracing::warn!(%vm, "console lines lost: the log does not take them");
                }
                continue;
            }
            VmEventKind::Started { pid, hypervisor, adopted } => {
                tracing::info!(%vm, %incarnation, pid, hypervisor, adopted, "VM started");
                VmReportEvent::Started
            }
            VmEventKind::Ready { .. } => VmReportEvent::Ready,
            VmEventKind::Exited { reason, detail, .. } => {
                tracing::warn!(%vm, %incarnation, detail, "VM ended");
                VmReportEvent::Exited { reason: reason.to_string() }
            }
            VmEventKind::Failed { reason } => {
                tracing::warn!(%vm, %incarnation, reason, "VM failed");
                VmReportEvent::Failed { reason }
            }
            VmEventKind::Stopped { .. } => VmReportEvent::Stopped,
            VmEventKind::Removed => VmReportEvent::Removed,
        };
        let report = VmReport { vm, epoch, incarnation, event: reported };
        if reports.send(Event::Vm(report)).await.is_err() {
            return;
        }
    }
}
