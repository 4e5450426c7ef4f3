//! What the host reports of its VMs, and what it is asked to do with them.

use base::{VmEpoch, VmId, VmIncarnation};
use std::fmt;
use std::path::PathBuf;

/// Start this VM. One (epoch, incarnation) is started at most once; see [`Vmm::start`](crate::Vmm::start).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartVm {
    /// The VM.
    pub id: VmId,
    /// Its name: ASCII letters, digits, `.`, `_`, `-`; the guest greets with it.
    pub name: String,
    /// The assignment that this start belongs to.
    pub epoch: VmEpoch,
    /// Which start this is.
    pub incarnation: VmIncarnation,
    /// Virtual processors, from 1.
    pub cpus: u32,
    /// Guest memory in MiB, from [`base::limits::VM_MEMORY_MIB_MIN`].
    pub memory_mib: u64,
    /// The image: [`IMAGE_MINIMAL`](crate::IMAGE_MINIMAL).
    pub image: String,
}

/// One thing that happened to one VM. Events of a VM come in the order in which they happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmEvent {
    /// The VM.
    pub id: VmId,
    /// The assignment under which it happened.
    pub epoch: VmEpoch,
    /// The start to which it happened.
    pub incarnation: VmIncarnation,
    /// What happened.
    pub kind: VmEventKind,
}

/// What happened to a VM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmEventKind {
    /// Something slow is being done before the start, such as a download: text for people.
    Preparing {
        /// What is being done.
        what: String,
    },
    /// The hypervisor runs the guest.
    Started {
        /// The hypervisor's process.
        pid: u32,
        /// The hypervisor, such as `qemu 7.2.22 (tcg)`; only its kind for an adopted VM.
        hypervisor: String,
        /// True if it ran already when this process came: a restarted daemon took it over.
        adopted: bool,
    },
    /// The host got the guest agent's hello.
    Ready {
        /// What the guest claims of itself.
        agent: AgentInfo,
    },
    /// The guest agent, once ready, has fallen silent. [`Ready`](Self::Ready) follows if it speaks again.
    Unready {
        /// Since when, in words.
        reason: String,
    },
    /// What the guest wrote on its console.
    Console {
        /// Lines without their ends, each at most [`base::limits::CONSOLE_LINE_BYTES_MAX`].
        lines: Vec<String>,
        /// Lines thrown away before these because events were not taken quickly enough.
        dropped: u64,
    },
    /// The VM ended without having been told to by [`Vmm::stop`](crate::Vmm::stop). Last event of its incarnation.
    Exited {
        /// Why.
        reason: ExitReason,
        /// The same for people, with what the hypervisor said.
        detail: String,
        /// The hypervisor's exit code, if it ended by itself and was our child.
        exit_code: Option<i32>,
    },
    /// The VM could not be started. Last event of its incarnation.
    Failed {
        /// What went wrong and what to do.
        reason: String,
    },
    /// [`Vmm::stop`](crate::Vmm::stop) is done: the VM does not run. Last event of its incarnation.
    Stopped {
        /// True if the guest powered off by itself within its grace time.
        graceful: bool,
    },
    /// [`Vmm::remove`](crate::Vmm::remove) is done: nothing of the VM is left on this host. Last event of the VM.
    Removed,
}

/// What a guest claims of itself: shown, never trusted. Each text is at most 256 bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AgentInfo {
    /// The agent's release.
    pub version: String,
    /// The random id of this boot of the guest.
    pub boot_id: String,
    /// The guest kernel's release.
    pub kernel: String,
    /// Processors that the guest sees.
    pub cpus: u32,
    /// Memory that the guest sees, in MiB.
    pub memory_mib: u64,
    /// The guest kernel's age when it said hello, in milliseconds.
    pub uptime_ms: u64,
}

/// Why a VM ended that had not been told to stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest reset itself (a reboot, or a panic that its kernel answers with one).
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest agent did not say hello in time.
    AgentTimeout,
    /// The hypervisor was killed by a signal.
    Killed,
    /// The hypervisor ended by itself, with an error or without saying why.
    HypervisorFailed,
    /// The hypervisor had gone when a restarted daemon looked for it.
    Lost,
    /// A start under a higher epoch or incarnation took its place.
    Superseded,
    /// This node is stopping.
    HostShutdown,
}

impl ExitReason {
    /// The stable text: lower case, words joined by `-`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ExitReason::GuestShutdown => "guest-shutdown",
            ExitReason::GuestReset => "guest-reset",
            ExitReason::GuestPanicked => "guest-panicked",
            ExitReason::AgentTimeout => "agent-timeout",
            ExitReason::Killed => "killed",
            ExitReason::HypervisorFailed => "hypervisor-failed",
            ExitReason::Lost => "lost",
            ExitReason::Superseded => "superseded",
            ExitReason::HostShutdown => "host-shutdown",
        }
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A VM that [`Vmm::adopt`](crate::Vmm::adopt) took over from an earlier daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AdoptedVm {
    /// The VM.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// The assignment under which it runs.
    pub epoch: VmEpoch,
    /// Which start it is.
    pub incarnation: VmIncarnation,
    /// The hypervisor's process.
    pub pid: u32,
}

/// How QEMU or another hypervisor runs guest code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accelerator {
    /// The processor does, by way of the host kernel.
    Kvm,
    /// Translated instruction by instruction: works everywhere, about ten times slower.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        })
    }
}

/// A hypervisor found on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hypervisor {
    /// What it is: `qemu`.
    pub kind: &'static str,
    /// Its program.
    pub path: PathBuf,
    /// Its release, such as `7.2.22`.
    pub version: String,
    /// What will run guest code.
    pub accelerator: Accelerator,
    /// Why that accelerator: what the KVM self-test found.
    pub accelerator_reason: String,
}

impl fmt::Display for Hypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind, self.version, self.accelerator)
    }
}
