//! Real clusters of the built binary, for tests: processes, ports, disks, faults, stock clients.
//!
//! A [`Cluster`] starts `muster` as a user would, on free ports and in a temporary folder, and looks at it only through
//! its ports, its command line and its files. Nothing here sleeps for a while and hopes: [`wait_until`] polls a
//! condition under a deadline, and its error says what was seen instead. When a test fails, logs and data are kept and
//! the test says where.
//!
//! Invariants: this crate imports no other crate of muster but `linear`, which knows nothing of it. It ends only processes
//! that it started, and hypervisors that work in a folder of its own; both by id.

mod binary;
mod buckets;
mod cluster;
mod enclave;
mod exposition;
mod http;
mod kcat;
mod load;
mod loop_disk;
mod network;
mod node;
mod ports;
mod process;
mod small_disk;
mod trickle;
mod wait;

pub use binary::muster_binary;
pub use buckets::Buckets;
pub use cluster::{Cluster, Folder};
pub use enclave::{Enclave, Network};
pub use exposition::{Labels, Scrape};
pub use http::{Answer, Api, Text, nobody_listened};
pub use kcat::{Kcat, Record};
pub use load::{Acknowledged, Given, Load, LoadPlan, Outcome, Produced, ReadBack, Watched, Written};
pub use loop_disk::{Frozen, LoopDisk};
pub use network::{Cuts, enter_own_network};
pub use node::{Node, Start};
pub use ports::{free_port, tcp_is_closed};
pub use process::{Finished, Process, Signal, run};
pub use small_disk::SmallDisk;
pub use trickle::{Trickle, Trickled};
pub use wait::{holds_for, wait_until};
