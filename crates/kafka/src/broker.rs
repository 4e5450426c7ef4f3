//! What the listener needs of its node.

use std::sync::Arc;

use base::{GroupId, Millis, NodeId};
use engine::{Reply, Request, RequestError, Target};
use metadata::Metadata;
use tokio::sync::watch;

use crate::PartitionReader;

/// A node, as its Kafka listener sees it. Clones are handles to the same node.
pub trait Broker: Clone + Send + Sync + 'static {
    /// Hands a request to the engine, to be answered within `deadline` from now.
    ///
    /// The request is handed over before this returns, not when the future is first polled: requests handed over one
    /// after another reach the engine in that order. When the engine's queue is full, the answer is `busy`.
    fn request(
        &self,
        target: Target,
        deadline: Millis,
        request: Request,
    ) -> impl Future<Output = Result<Reply, RequestError>> + Send + 'static;

    /// The cluster's state, as far as this node has applied it.
    fn metadata(&self) -> Arc<Metadata>;

    /// Who leads a group, and in which term; `None` if this node does not know.
    fn leader(&self, group: GroupId) -> Option<(NodeId, u64)>;

    /// The partition's reader, if this node has a replica.
    fn reader(&self, group: GroupId) -> Option<Arc<PartitionReader>>;

    /// Changes whenever [`Broker::metadata`] or [`Broker::leader`] may answer differently.
    fn changes(&self) -> watch::Receiver<u64>;
}
