//! Topics and partitions as pure state machines.
//!
//! - [`batch`]: Kafka's record batch v2 as opaque bytes behind a 61-byte header, which is read, checked and patched;
//!   records are encoded and decoded only for muster's own writers and for timestamp lookup.
//! - [`Partition`]: what one replica knows of a partition (next offset, producers) and, while it leads, what it has
//!   proposed and not yet seen applied. Offsets are assigned here and checked again when entries are applied.
//! - [`Reader`]: what may be served to consumers: it takes [`Update`]s and plans fetches and offset lookups.
//! - [`topic`]: the rules for topic names, partition counts and topic configuration.
//!
//! ```text
//!  produce bytes --split/check--> Partition::stage --> (propose) --> Partition::staged
//!                                                          |
//!                   committed entry --> Partition::apply --+--> CommittedBatch --> Update --> Reader --> fetch
//! ```
//!
//! Invariants: batches of a partition are contiguous in offsets from the log's start; an offset is never given out
//! twice; nothing above the high watermark is ever readable. This crate knows no sockets and no Kafka requests.

pub mod batch;
mod index;
mod partition;
mod producer;
mod reader;
pub mod record;
pub mod topic;
mod update;

pub use batch::{BatchError, BatchHeader, Compression};
pub use partition::{ApplyError, Partition, StageError, Staged};
pub use reader::{FetchPlan, ListOffset, ListQuery, Reader, UpdateError};
pub use record::{EncodeError, ProducerStamp, Record, encode_batch};
pub use update::*;
