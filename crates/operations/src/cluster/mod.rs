//! The cluster as a whole.

pub(crate) mod consensus;
pub(crate) mod status;
mod tolerance;
