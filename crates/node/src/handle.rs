//! How the rest of a node speaks with its core.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use base::{ClusterId, ErrorCode, GroupId, Millis, Mono, NodeId};
use engine::{LeaderInfo, Reply, Request, RequestError, Target};
use kafka::PartitionReader;
use metadata::Metadata;
use runtime::Clock;
use tokio::sync::{Notify, mpsc, oneshot, watch};

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
    /// How many wait for the next state of the cluster.
    looking: AtomicUsize,
    /// Wakes the core when the first one does.
    looks: Notify,
    leaders: RwLock<BTreeMap<GroupId, LeaderInfo>>,
    readers: RwLock<BTreeMap<GroupId, Arc<PartitionReader>>>,
}

impl Default for Views {
    fn default() -> Views {
        Views {
            place: OnceLock::new(),
            changes: watch::Sender::new(0),
            looking: AtomicUsize::new(0),
            looks: Notify::new(),
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

    /// Has the cluster's states shown as they come, until the guard is dropped.
    pub fn look(self: &Arc<Views>) -> Looking {
        // While somebody looks, each turn of the core shows what is new: one more need not wake it.
        if self.looking.fetch_add(1, Ordering::SeqCst) == 0 {
            self.looks.notify_one();
        }
        Looking(self.clone())
    }

    /// Whether somebody waits for the next state of the cluster.
    pub fn is_looked_at(&self) -> bool {
        self.looking.load(Ordering::SeqCst) > 0
    }

    /// Returns when somebody begins to.
    pub async fn looked_at(&self) {
        self.looks.notified().await;
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

/// Somebody waits for the next state of the cluster.
pub(crate) struct Looking(Arc<Views>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.looking.fetch_sub(1, Ordering::SeqCst);
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

    /// The cluster's state, as far as this node has applied it: of now, or, where keys changed that no read was answered with,
    /// of up to a tick ago.
    #[must_use]
    pub fn metadata(&self) -> Arc<Metadata> {
        self.metadata.borrow().clone()
    }

    /// The first state that the core gives out with more than `applied` in it; `None`: the node is stopping.
    pub(crate) async fn metadata_after(&self, applied: u64) -> Option<Arc<Metadata>> {
        let mut view = self.metadata.clone();
        let later = |metadata: &Arc<Metadata>| metadata.applied > applied;
        if let Some(there) = Some(view.borrow().clone()).filter(later) {
            return Some(there);
        }
        let _looking = self.views.look();
        view.wait_for(later).await.ok().map(|metadata| metadata.clone())
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
