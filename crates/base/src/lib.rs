//! The ground floor: names for things (ids), quantities (time, limits), seeded randomness and error codes.
//!
//! Every other crate speaks in these types, so that an offset is never passed where an index is meant.
//! This crate never does I/O and never reads a clock: time and randomness are values that come from outside.

mod error;
mod histogram;
mod ids;
pub mod limits;
mod random;
pub mod simulation;
mod time;
pub mod version;

pub use error::ErrorCode;
pub use histogram::{Distribution, Histogram};
pub use ids::{
    ClusterId, EndpointId, GroupId, Incarnation, LeaseId, NodeId, RecoveryId, ReplicaId, RequestId, SessionId, TopicId,
    VmEpoch, VmId, VmIncarnation,
};
pub use random::{SplitMix64, hash64};
pub use time::{Millis, Mono, Now, Wall};
pub use version::{ClusterVersion, VersionRange};
