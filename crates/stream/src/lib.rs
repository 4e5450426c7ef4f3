//! Topics and partitions as pure state machines.

mod update;
pub use update::*;
