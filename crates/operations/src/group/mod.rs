//! Raft groups.

pub(crate) mod list;
