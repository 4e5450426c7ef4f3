//! A deterministic simulator of whole clusters, and the checkers that judge what they do (DESIGN 9).
//!
//! **Real:** `engine::NodeCore` of every node, and in it the journal, multiraft, the metadata and stream state machines,
//! the VM planner and reconciler; the codec of peer frames (every frame is encoded and decoded).
//!
//! With clients that contend for locks also the operations that they call, and the pipeline that carries those out (`api.rs`).
//!
//! **Simulated:** the machines' clocks, disks, network connections and hypervisors; the driver that carries out effects
//! (`drive.rs`, which decides nothing, like the real one); clients. A run knows no real clock, no thread and no
//! randomness but its seed: the same seed gives a byte-identical trace.
//!
//! **Where the promise ends.** Faults stay inside what the design promises to survive:
//!
//! | fault | inside the promise | outside it |
//! |---|---|---|
//! | disk | latency, completions in any order, a stuck or full disk; one that fails to change what it should and says so (the node stops, and is started again); at a power loss every unsynced write is kept, lost or torn at 512-byte sectors, independently; a synced write may be partly there if its completion was not seen | losing what was synced |
//! | bits at rest | one at a time flips, in what lies below a durable mark: the node finds it by a checksum and stops, for good, or until it flips back (what was read was wrong, not what is there); the others go on without it, also if all of them lose power at that moment | flips above the last durable mark (in the last 100 ms before a crash): they look like a torn tail; flips on a majority |
//! | network | loss, delay, repeated frames, reordering between channels and between peers, broken and flapping connections, one-way and two-way partitions; bits that flip in parts of checkpoints, which have a checksum from end to end | other frames changed (the transport is authenticated), frames of strangers |
//! | process | power loss or a kill (the machine goes on, with what was written and its VMs) at any moment, also the moment at which a rare state is reached, and again soon after; restart after any time, any number of nodes at once, pauses of any length, processes that run up to 30 ms late; what a process sent before its end may still arrive | two processes on one data directory; a node that lost its disk and goes on as what it was, without asking to join (the real one does not start) |
//! | leadership | handed over on request, to whichever node, by one group or by all that a node leads (as before a stop) | |
//! | addresses | a node that starts again at another one; if another one has moved before, it is told where the others are | two nodes that moved, of which neither has heard of the other and nobody tells them |
//! | clock | any wall clock, jumps; monotonic clocks with any origin, seen to jump forward after a pause, up to 2% fast or slow | a monotonic clock that goes backwards |
//! | membership | joins, leaves, drains, removals and replacements (by a machine that joins for that, or by another member; by another one yet if that goes, too) at any time, also under load and faults; a machine is lost for good while every group can spare it, and an operator says so; machines that went join as other nodes; who must not join is refused: lost machines that come back wiped, with their old key, and joiners with a token that is spent, has expired or was revoked | two machines lost for good before the first one's replicas are made anew |
//! | versions | nodes of two versions side by side; one after another is restarted as the newer one, and now and then goes back before or after the new version is active (then it stops, and is upgraded again) | a node that reads what its version does not know and goes on |
//! | VMs | machines that die, power themselves off, do not start, outlive the process that watched them, or fit nowhere | a machine of a removed node that runs on: an operator's word says that it does not |
//!
//! A [`Mistake`] lies outside the line, on purpose: the tests plant them to show that the checkers notice.
//!
//! **One run:** node 0 forms the cluster and the others are admitted; clients create topics and VMs, produce, read and
//! wait at read points while the fault injector draws from its set; then faults stop, every node and every partition
//! that clients write to must accept writes within 10 virtual seconds (25, if the faults kept the cluster from forming
//! until then; 15 more while a node still has to go), and all nodes must converge. The checkers are in [`check`].

mod api;
pub mod check;
mod config;
mod consumers;
mod coverage;
mod departures;
pub mod disk;
mod drive;
mod explore;
mod finale;
mod formation;
mod intruders;
mod locks;
mod mistake;
mod nemesis;
mod net;
mod node;
pub mod plants;
mod queue;
pub mod records;
mod recovery;
mod requests;
mod run;
mod schedule;
mod shared;
mod shrink;
mod stats;
pub mod time;
mod timeline;
mod trace;
mod upgrades;
mod vmhost;
mod watch;
mod workload;
mod world;

pub use check::Violation;
pub use config::{Fault, FaultSet, Only, SimConfig};
pub use coverage::marks_table;
pub use explore::Explorer;
pub use mistake::{Mistake, Seam};
pub use recovery::{Forgotten, Lives, recover_in_the_middle};
pub use run::{Outcome, Sweep, commit, replay_command, run, sweep, sweep_watched};
pub use schedule::{Injection, Schedule, Shot};
pub use shrink::{Shrunk, TRIES_MAX, shrink};
pub use stats::Stats;
