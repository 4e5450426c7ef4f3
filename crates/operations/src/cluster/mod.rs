//! The cluster as a whole.

pub(crate) mod status;
mod tolerance;
