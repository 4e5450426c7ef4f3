//! Virtual machines on one host: finds a hypervisor, makes images, starts, watches and ends guests.
//!
//! [`Vmm`] is told what to run and reports what happens as [`VmEvent`]s; it never decides where a VM runs, nor whether
//! one that ended starts again. Each VM has a supervisor, one task that owns all of it:
//!
//! ```text
//!            start                  image made, process spawned,
//!   idle ───────────► launching ──────────────────────────────► running
//!    ▲                    │          control and console open     │
//!    └──── Failed ────────┴───── Exited / Stopped ◄── process gone ┘
//! ```
//!
//! Invariants:
//! - One (epoch, incarnation) runs at most once; a request below the highest epoch seen here is refused. Both survive
//!   the daemon, in the VM's `record.json`.
//! - Each incarnation ends with exactly one of `Exited`, `Failed`, `Stopped`, or the VM's `Removed`.
//! - A hypervisor outlives its daemon. The next daemon takes it over ([`Vmm::adopt`]) or ends it; a process that only
//!   happens to have its id is never touched.
//! - Whatever a guest writes is bounded and cannot block its supervisor; whoever takes events slowly loses console
//!   lines, by number, and nothing else.

mod agent;
mod backend;
mod console;
mod error;
mod event;
mod image;
mod kvm;
mod launch;
mod outbox;
mod process;
mod record;
mod running;
mod supervisor;
mod sys;
mod tsc;
mod vmm;

pub use error::VmmError;
pub use event::{Accelerator, AdoptedVm, AgentInfo, ExitReason, Hypervisor, StartVm, VmEvent, VmEventKind};
pub use image::{IMAGE_MINIMAL, IMAGES, ImageError};
pub use vmm::{Vmm, VmmConfig};
