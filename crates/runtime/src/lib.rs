//! What every part of a running node stands on: the supervision tree, the clocks, metrics, and threads that the
//! scheduler prefers.
//!
//! ```text
//!   Supervisor --- root token ---+--- task "transport/endpoint"   started first, stopped last
//!                                +--- task "transport/peer/2"
//!                                +--- task "engine" (critical)    started last, stopped first
//! ```
//!
//! Every long-lived task of a node is started through the [`Supervisor`], which restarts it when it fails, remembers
//! why, and ends the node (with the reason) when a critical task keeps failing. Stopping goes in the reverse order of
//! starting, within one deadline.
//!
//! Invariant: this crate has no domain knowledge. It never speaks of groups, topics or machines.

mod clock;
mod exposition;
mod metrics;
mod punctual;
mod supervisor;
mod sys;
mod thread;

pub use clock::Clock;
pub use exposition::{Exposition, Family, Kind, Labels};
pub use metrics::{Counter, Gauge, Histogram, LATENCY_BUCKETS_S, Registry};
pub use punctual::{PULSE, Pulse, spawn_punctual_thread};
pub use supervisor::{
    Cause, HistoryEntry, Intensity, NodeEnd, RestartPolicy, ShutdownReport, Supervisor, SupervisorError, TaskContext,
    TaskFailure, TaskResult, TaskSnapshot, TaskSpec, TaskState,
};
pub use thread::{PriorityRuntime, spawn_priority_thread, take_ready};

pub use tokio_util::sync::CancellationToken;
