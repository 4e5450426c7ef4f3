//! The node's core, pure.

mod api;
pub use api::*;

use base::Now;

/// Everything of one node that decides: groups, tables, journal, planner. Events in, effects out.
pub struct NodeCore {}

impl NodeCore {
    /// A core at rest; the first [`NodeCore::flush`] starts recovery.
    #[must_use]
    pub fn new(_config: CoreConfig, _now: Now) -> Self {
        NodeCore {}
    }
    /// Takes in what happened. Cheap; several events may come before one flush.
    pub fn handle(&mut self, _now: Now, _event: Event) {}
    /// Gives out what follows from all events since the last flush.
    pub fn flush(&mut self, _now: Now) -> Vec<Effect> {
        Vec::new()
    }
    /// The state of the cluster, as far as this node has applied it.
    #[must_use]
    pub fn metadata(&self) -> &metadata::Metadata {
        unimplemented!()
    }
    /// This node's view of itself.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        NodeStatus::default()
    }
}
