//! The core of a node: everything that decides, and nothing that acts.
//!
//! [`NodeCore`] joins the journal, the Raft groups, the tables of `__meta`, the partitions and the planners on one
//! thread, without I/O: [`Event`]s in, [`Effect`]s out. A driver hands in what happened, then calls
//! [`NodeCore::flush`] once, which gives one journal round for all groups. The simulator runs this same object over
//! virtual disks and networks.
//!
//! ```text
//!              Event                                                        Effect
//!   Tick, Peer, Request, Vm ──▶ requests ─▶ propose ─┐              ┌─▶ Send, Reply, Vm, Publish, Metadata
//!                                                    ▼              │
//!                                               multiraft ──────────┤
//!                                                    │ rounds       │ committed entries
//!   Disk (completions) ───────▶ journal ◀────────────┘              └─▶ apply ─▶ metadata, stream
//!                                  └─▶ Disk (operations)
//! ```
//!
//! Never here: tokio, files, sockets, clocks, randomness. Every queue has a bound in [`base::limits`].

mod api;
mod apply;
mod balance;
mod checkpoints;
mod core;
mod directory;
mod disk_watch;
mod gossip;
mod groups;
mod journal_events;
mod leases;
mod membership;
mod once;
mod outbox;
mod planner;
mod produce;
mod raft_io;
pub mod recover;
mod replay;
mod requests;
mod room;
mod session;
mod shown;
mod stats;
mod status;
mod superseded;
mod tables;
mod twin;
mod vitals;
mod vms;
mod work;

pub use api::*;
pub use core::NodeCore;
pub use vitals::*;
pub use work::{Work, Worked};
