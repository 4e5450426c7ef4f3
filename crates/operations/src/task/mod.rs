//! The tasks that make up a running node.

pub(crate) mod list;
