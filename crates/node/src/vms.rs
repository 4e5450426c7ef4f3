//! Between the core and the hypervisor side: actions there, reports and console lines back.

use std::sync::Arc;
use std::time::Duration;

use compute::{VmAction, VmReport, VmReportEvent};
use engine::Event;
use tokio::sync::mpsc;
use vmm::{AdoptedVm, StartVm, VmEvent, VmEventKind, Vmm, VmmError};

use crate::console::ConsoleLines;

/// A VM that has too many requests under way is asked again after this long, ...
const BUSY_RETRY: Duration = Duration::from_millis(50);
/// ... this often.
const BUSY_RETRIES: usize = 100;

/// Carries out the core's actions, in order.
///
/// A refusal is reported only where it says what is true: that a start failed, or that a VM which this host does not
/// know does not run here. A node that stops judges nothing: its next process finds the same wishes and goes on.
pub(crate) async fn take_actions(vmm: Arc<Vmm>, mut actions: mpsc::Receiver<VmAction>, reports: mpsc::Sender<Event>) {
    while let Some(action) = actions.recv().await {
        let (vm, refused) = match action {
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
                let outcome = unless_busy(|| vmm.start(spec.clone())).await;
                let failed = |reason| VmReport { vm, epoch, incarnation, event: VmReportEvent::Failed { reason } };
                let says = |error: &VmmError| match error {
                    VmmError::ShuttingDown(_) => None,
                    error => Some(failed(error.to_string())),
                };
                (vm, outcome.map_err(|error| (says(&error), error)))
            }
            VmAction::Stop { vm, epoch, incarnation, grace_ms } => {
                let outcome = unless_busy(|| vmm.stop(vm, epoch, Duration::from_millis(grace_ms))).await;
                let stopped = VmReport { vm, epoch, incarnation, event: VmReportEvent::Stopped };
                (vm, outcome.map_err(|error| (unknown(&error).then_some(stopped), error)))
            }
            VmAction::Remove { vm, epoch } => {
                let outcome = unless_busy(|| vmm.remove(vm, epoch)).await;
                let incarnation = base::VmIncarnation(0);
                let removed = VmReport { vm, epoch, incarnation, event: VmReportEvent::Removed };
                (vm, outcome.map_err(|error| (unknown(&error).then_some(removed), error)))
            }
        };
        let Err((report, error)) = refused else { continue };
        tracing::warn!(%vm, %error, "the hypervisor side refused");
        if let Some(report) = report
            && reports.send(Event::Vm(report)).await.is_err()
        {
            return;
        }
    }
}

fn unknown(error: &VmmError) -> bool {
    matches!(error, VmmError::NotFound(_))
}

async fn unless_busy<R>(mut ask: impl FnMut() -> R) -> Result<(), VmmError>
where
    R: Future<Output = Result<(), VmmError>>,
{
    for _ in 0..BUSY_RETRIES {
        match ask().await {
            Err(VmmError::Busy(_)) => tokio::time::sleep(BUSY_RETRY).await,
            outcome => return outcome,
        }
    }
    ask().await
}

/// Tells the core, before its first decision, what runs here: it would take a VM of which it has not heard for lost. The
/// same news comes again from the VM itself.
pub(crate) fn say_adopted(reports: &mpsc::Sender<Event>, adopted: Vec<AdoptedVm>) {
    for AdoptedVm { id: vm, epoch, incarnation, .. } in adopted {
        let report = VmReport { vm, epoch, incarnation, event: VmReportEvent::Started };
        // The queue is new and has room for all of them.
        let _ = reports.try_send(Event::Vm(report));
    }
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
