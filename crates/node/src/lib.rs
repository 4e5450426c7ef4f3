//! A node: the core on its thread, and around it everything that acts: disk threads, peers, hypervisors, listeners.
//!
//! Drivers carry out effects and hand in what happened. Nothing here decides: what a node does is decided in `engine`,
//! and what this crate adds is order at start and stop.
//!
//! ```text
//!                  ┌───────────── core thread ─────────────┐
//!  transport ─────▶│ Driver: NodeCore::handle, ::flush      │────▶ transport, disk threads, vmm
//!  disk threads ──▶│                                        │────▶ PartitionReader ─▶ Kafka connections
//!  vmm ───────────▶│                                        │────▶ Metadata, leaders ─▶ listeners, operations
//!  NodeHandle ────▶└────────────────────────────────────────┘────▶ replies
//! ```

mod beside;
mod config;
mod console;
mod data_dir;
mod disk;
mod driver;
mod error;
#[cfg(test)]
#[path = "../../wire/tests/fixtures/mod.rs"]
mod fixtures;
mod formation;
mod handle;
mod host;
mod join;
mod listeners;
mod metrics;
mod observe;
mod partition_reads;
mod ports;
pub mod recover;
mod start;
mod tasks;
mod vms;

pub use config::*;
pub use error::NodeError;
pub use handle::NodeHandle;
pub use start::{Node, run};
