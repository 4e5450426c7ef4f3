//! Members of the cluster.

pub(crate) mod list;
