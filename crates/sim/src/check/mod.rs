//! The checkers: what must never happen (DESIGN 9), judged from what nodes emit and what clients saw.
//!
//! A checker is told facts and answers `Err(why)` at the first one that contradicts an earlier one. The facts are what a
//! driver or a client sees, and what a node's core lets checkers look at (`engine/src/status.rs`): the terms in its logs,
//! its configurations, and digests of its state.

mod commands;
mod contact;
mod election;
mod events;
mod keys;
mod leaders;
mod locks;
mod log;
mod machines;
mod members;
mod names;
mod partition;
mod replacements;
mod state;

pub use commands::Commands;
pub use contact::{Contact, Unfit};
pub use election::Elections;
pub use events::Events;
pub use keys::{Leases, Watcher, key_in};
pub use leaders::Leaders;
pub use locks::{LASTING, Locks, outlasts};
pub use log::{Held, Logs, Seen};
pub use machines::Machines;
pub use members::{Members, meta_voters_wanted};
pub use names::{Asked, Judged, MachineOp, MachineTold, Names, TopicOp, TopicTold};
pub use partition::{Ack, Partitions};
pub use replacements::Replacements;
pub use state::{AckedCommand, States};

/// All checkers of one run.
#[derive(Default)]
pub struct Checks {
    pub elections: Elections,
    pub logs: Logs,
    pub members: Members,
    pub replacements: Replacements,
    pub commands: Commands,
    pub partitions: Partitions,
    pub states: States,
    pub names: Names,
    pub events: Events,
    pub contact: Contact,
    pub leaders: Leaders,
    pub machines: Machines,
    pub leases: Leases,
    pub locks: Locks,
    /// One on each node, wherever that goes.
    pub watchers: std::collections::BTreeMap<usize, Watcher>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name of the invariant.
    pub invariant: &'static str,
    /// Virtual nanoseconds.
    pub at: u64,
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {} s: {}", self.invariant, crate::time::show(self.at), self.detail)
    }
}
