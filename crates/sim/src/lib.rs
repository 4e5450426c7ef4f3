//! A deterministic simulator of whole clusters, and the checkers that judge what they do (DESIGN 9).
//!
//! **Real:** `engine::NodeCore` of every node, and in it the journal, multiraft, the metadata and stream state machines,
//! the VM planner and reconciler; the codec of peer frames (every frame is encoded and decoded).
//!
//! **Simulated:** the machines' clocks, disks, network connections and hypervisors; the driver that carries out effects
//! (`drive.rs`, which decides nothing, like the real one); clients. A run knows no real clock, no thread and no
//! randomness but its seed: the same seed gives a byte-identical trace.
//!
//! **Where the promise ends.** Faults stay inside what the design promises to survive:
//!
//! | fault | inside the promise | outside it |
//! |---|---|---|
//! | disk | latency, completions in any order, a stuck or full disk; at a power loss every unsynced write is kept, lost or torn at 512-byte sectors, independently; a synced write may be partly there if its completion was not seen | losing or changing what was synced: found by checksums, answered by stopping |
//! | network | loss, delay, reordering between channels and between peers, broken connections, one-way and two-way partitions | frames changed or repeated (the transport is authenticated and ordered), frames of strangers |
//! | process | crash at any moment, restart after any time, any number of nodes at once, pauses of any length | two processes on one data directory; a node that lost its disk and comes back under its old id |
//! | clock | any wall clock, jumps; monotonic clocks with any origin, seen to jump forward after a pause | a monotonic clock that goes backwards |
//! | VMs | machines that die or do not start | |
//!
//! The mistakes of [`Plant`] lie outside the line, on purpose: the tests plant them to show that the checkers notice.
//!
//! **One run:** node 0 forms the cluster and the others are admitted; clients create topics and VMs, produce, read and
//! wait at read points while the fault injector draws from its set; then faults stop, every node and partition must
//! accept writes within 10 virtual seconds, and all nodes must converge. The checkers are in [`check`].

pub mod check;
mod config;
mod consumers;
pub mod disk;
mod drive;
mod finale;
mod formation;
mod nemesis;
mod net;
mod node;
mod queue;
pub mod records;
mod requests;
mod run;
mod shared;
mod stats;
pub mod time;
mod trace;
mod vmhost;
mod workload;
mod world;

pub use check::Violation;
pub use config::{Fault, FaultSet, Plant, SimConfig};
pub use run::{Outcome, Sweep, commit, replay_command, run, sweep};
pub use stats::Stats;
