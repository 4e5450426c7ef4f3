//! How the rest of a node speaks with its core.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use base::{ClusterId, ErrorCode, GroupId, Millis, Mono, NodeId};
use engine::{LeaderInfo, Reply, Request, RequestError, Target};
use kafka::PartitionReader;
use metadata::Metadata;
use runtime::Clock;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests handed over and not yet seen by the core; above it they are answered "busy".
pub(crate) const REQUEST_QUEUE: usize = 8_192;

/// A request on its way to the core.
pub(crate) struct Asked {
    pub deadline: Mono,
    pub target: Target,
    pub request: Request,
    pub reply: oneshot::Sender<Result<Reply, RequestError>>,
}

/// What the core's driver gives out for all to see.
pub(crate) struct Views {
    /// Who this node is, once that is known.
    pub place: OnceLock<(NodeId, ClusterId)>,
    /// Counts changes of metadata and leaders.
    pub changes: watch::Sender<u64>,
    leaders: RwLock<BTreeMap<GroupId, LeaderInfo>>,
    readers: RwLock<BTreeMap<GroupId, Arc<PartitionReader>>>,
}

impl Default for Views {
    fn default() -> Views {
        Views {
            place: OnceLock::new(),
            changes: watch::Sender::new(0),
            leaders: RwLock::default(),
            readers: RwLock::default(),
        }
    }
}

impl Views {
    /// Metadata or leaders changed.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn set_leaders(&self, changed: Vec<LeaderInfo>) {
        let mut leaders = self.leaders.write().unwrap_or_else(PoisonError::into_inner);
        leaders.extend(changed.into_iter().map(|info| (info.group, info)));
        drop(leaders);
        self.changed();
    }

    pub fn reader(&self, group: GroupId) -> Option<Arc<PartitionReader>> {
        self.readers.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    pub fn reader_or_new(&self, group: GroupId) -> Arc<PartitionReader> {
        if let Some(reader) = self.reader(group) {
            return reader;
        }
        let mut readers = self.readers.write().unwrap_or_else(PoisonError::into_inner);
        readers.entry(group).or_default().clone()
    }

    /// The partition is gone: those who wait on its reader are woken and find it so.
    pub fn remove(&self, group: GroupId) {
        if let Some(reader) = self.readers.write().unwrap_or_else(PoisonError::into_inner).remove(&group) {
            reader.close();
        }
        self.leaders.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    fn leader(&self, group: GroupId) -> Option<LeaderInfo> {
        self.leaders.read().unwrap_or_else(PoisonError::into_inner).get(&group).copied()
    }
}

/// A node, as its listeners and operations see it. Clones are handles to the same node.
#[derive(Clone)]
pub struct NodeHandle {
    pub(crate) queue: mpsc::Sender<Asked>,
    pub(crate) views: Arc<Views>,
    pub(crate) metadata: watch::Receiver<Arc<Metadata>>,
}

impl NodeHandle {
    /// This node; 0 before it has formed or joined a cluster.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.views.place.get().map_or(NodeId(0), |(node, _)| *node)
    }

    /// Its cluster.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.views.place.get().map_or(ClusterId::default(), |(_, cluster)| *cluster)
    }

    /// Asks the core. The request is handed over at once, in the order of calls; the answer comes by the deadline.
    pub fn request(
        &self,
        target: Target,
        deadline: Mono,
        request: Request,
    ) -> impl Future<Output = Result<Reply, RequestError>> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        let sent = self.queue.try_send(Asked { deadline, target, request, reply });
        async move {
            let failed = |code, message: &str| RequestError { code, message: message.into(), leader: None };
            match sent {
                Ok(()) => {
                    answer.await.unwrap_or_else(|_| Err(failed(ErrorCode::ShuttingDown, "this node is stopping")))
                }
                Err(mpsc::error::TrySendError::Full(_)) => {
                    Err(failed(ErrorCode::Busy, "this node has too many requests under way: try again later"))
                }
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    Err(failed(ErrorCode::ShuttingDown, "this node is stopping"))
                }
            }
        }
    }

    /// The same with a deadline from now.
    pub fn request_within(
        &self,
        within: Millis,
        target: Target,
        request: Request,
    ) -> impl Future<Output = Result<Reply, RequestError>> + Send + 'static {
        self.request(target, Clock.now().mono.plus(within), request)
    }

    /// The cluster's state, as far as this node has applied it.
    #[must_use]
    pub fn metadata(&self) -> Arc<Metadata> {
        self.metadata.borrow().clone()
    }

    /// Who leads a group, if this node knows, and the highest term it knows of.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<LeaderInfo> {
        self.views.leader(group)
    }

    /// The reader of a partition that has a replica here.
    #[must_use]
    pub fn reader(&self, group: GroupId) -> Option<Arc<PartitionReader>> {
        self.views.reader(group)
    }
}
