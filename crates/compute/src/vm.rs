//! What a virtual machine is to the cluster: what was asked for, who runs it, and what became of it.

use base::{NodeId, VmEpoch, VmId, VmIncarnation, Wall};
use minicbor::{Decode, Encode};

/// What the user asked for.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct VmSpec {
    /// Virtual CPUs, `1..=`[`base::limits::VM_CPUS_MAX`].
    #[n(0)]
    pub cpus: u32,
    /// Guest memory, at least [`base::limits::VM_MEMORY_MIB_MIN`].
    #[n(1)]
    pub memory_mib: u64,
    /// Name of the image; `minimal` is built in.
    #[n(2)]
    pub image: String,
    /// Only on this node, if given.
    #[n(3)]
    pub node: Option<NodeId>,
}

/// What the user wants to be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum VmDesired {
    #[n(0)]
    Running,
    #[n(1)]
    Stopped,
    /// Gone, with its files; the record goes when the node says so.
    #[n(2)]
    Deleted,
}

/// What is true, as far as the cluster was told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
#[cbor(index_only)]
pub enum VmPhase {
    /// No node yet; the reason says why.
    #[n(0)]
    Pending,
    /// A node has it and starts the hypervisor.
    #[n(1)]
    Starting,
    /// The hypervisor runs; the guest agent has not said hello yet.
    #[n(2)]
    Booting,
    /// The guest agent said hello.
    #[n(3)]
    Running,
    /// It ended by itself and will be started again under the next incarnation.
    #[n(4)]
    Restarting,
    #[n(5)]
    Stopping,
    #[n(6)]
    Stopped,
    /// It ended too often, or cannot be started; the reason says why.
    #[n(7)]
    Failed,
    #[n(8)]
    Deleting,
}

impl VmPhase {
    /// As people and programs see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            VmPhase::Pending => "Pending",
            VmPhase::Starting => "Starting",
            VmPhase::Booting => "Booting",
            VmPhase::Running => "Running",
            VmPhase::Restarting => "Restarting",
            VmPhase::Stopping => "Stopping",
            VmPhase::Stopped => "Stopped",
            VmPhase::Failed => "Failed",
            VmPhase::Deleting => "Deleting",
        }
    }
}

/// Which node has a VM. A report under an older epoch is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub struct Assignment {
    #[n(0)]
    pub node: NodeId,
    #[n(1)]
    pub epoch: VmEpoch,
}

/// A virtual machine in the replicated state.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct VmRecord {
    #[n(0)]
    pub id: VmId,
    #[n(1)]
    pub name: String,
    #[n(2)]
    pub spec: VmSpec,
    #[n(3)]
    pub desired: VmDesired,
    #[n(4)]
    pub phase: VmPhase,
    #[n(5)]
    pub assignment: Option<Assignment>,
    /// The hypervisor start that is wanted or under way; 0 before the first.
    #[n(6)]
    pub incarnation: VmIncarnation,
    /// Why it is in this phase; empty if there is nothing to say.
    #[n(7)]
    pub reason: String,
    #[n(8)]
    pub created: Wall,
    /// Last change of phase.
    #[n(9)]
    pub changed: Wall,
    /// Starts in a row that ended soon after.
    #[n(10)]
    pub restarts: u32,
    /// The epoch given out last.
    #[n(11)]
    pub epoch: VmEpoch,
    /// Why it was placed where it is.
    #[n(12)]
    pub placement: String,
    /// Its node is to be free of it: once it has stopped there, it is placed anew.
    #[n(13)]
    #[cbor(default)]
    pub leaves: bool,
}

/// What a node's reconciler asks its hypervisor to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VmAction {
    Start(VmStart),
    /// Ask the guest to power off; kill it after `grace_ms`.
    Stop {
        vm: VmId,
        epoch: VmEpoch,
        incarnation: VmIncarnation,
        grace_ms: u64,
    },
    /// Kill it if it runs and remove its files.
    Remove {
        vm: VmId,
        epoch: VmEpoch,
    },
}

/// Everything needed to start a hypervisor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmStart {
    pub vm: VmId,
    pub name: String,
    pub epoch: VmEpoch,
    pub incarnation: VmIncarnation,
    pub spec: VmSpec,
}

/// What a node reports of a VM that it has.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct VmReport {
    #[n(0)]
    pub vm: VmId,
    #[n(1)]
    pub epoch: VmEpoch,
    #[n(2)]
    pub incarnation: VmIncarnation,
    #[n(3)]
    pub event: VmReportEvent,
}

/// Why a VM ended whose guest powered itself off: it is not started again.
pub const GUEST_SHUTDOWN: &str = "guest-shutdown";

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum VmReportEvent {
    /// The hypervisor process runs.
    #[n(0)]
    Started,
    /// The guest agent said hello.
    #[n(1)]
    Ready,
    /// It ended without being asked to. If the reason is [`GUEST_SHUTDOWN`], the guest wanted it.
    #[n(2)]
    Exited {
        #[n(0)]
        reason: String,
    },
    /// It could not be started.
    #[n(3)]
    Failed {
        #[n(0)]
        reason: String,
    },
    /// It ended because it was asked to.
    #[n(4)]
    Stopped,
    /// Its files are gone.
    #[n(5)]
    Removed,
}
