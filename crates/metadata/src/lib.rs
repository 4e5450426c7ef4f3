//! The replicated cluster state of `__meta`: one closed, versioned [`Command`] enum, and [`Metadata`], the tables it
//! changes. One module per subject; [`Metadata::apply`] only dispatches.
//!
//! Invariants: apply is deterministic (no clock, no randomness, no hash order: such values travel in the command or
//! follow from the index), never fails half way (a refusal changes nothing but the session's memory of it), and every
//! transition that people care about goes into the outbox in the same step.

mod apply;
mod command;
mod departures;
mod domains;
mod growth;
mod kv;
mod nodes;
mod once;
mod outbox;
mod partitions;
mod recovered;
mod sessions;
mod snapshot;
mod state;
mod tokens;
mod topics;
mod version;
mod vms;

pub use command::*;
pub use domains::{Domain, ZONE_LABEL, crowding, spread};
pub use kv::{KeyChange, KeyChanged, KeyRecord, KvStore, LeaseRecord, no_lease, valid_key};
pub use once::{OnceKey, OnceRecord, OnceTable};
pub use partitions::ReplicaPlan;
pub use recovered::{Losses, Survival};
pub use snapshot::SnapshotError;
pub use state::*;
pub use tokens::token_hash;
pub use topics::{console_topic, free_topic_name};
pub use version::CommandError;
pub use vms::valid_vm_name;

/// The topic that every transition is published to.
pub const EVENTS_TOPIC: &str = "muster.events";
