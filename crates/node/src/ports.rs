//! What the Kafka listener and the operations need of a node, given by its handle.

use std::sync::Arc;
use std::time::Duration;

use base::limits::REQUEST_DEADLINE_DEFAULT;
use base::{ErrorCode, GroupId, Millis, Mono, NodeId};
use engine::{PartitionBatches, ReadPartition, Reply, Request, RequestError, Target};
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use kafka::PartitionReader;
use metadata::Metadata;
use operations::{ConsoleFrom, ConsoleLine, ConsoleLog, Core, Images, LineStream, Random, TaskView, Tasks};
use tokio::sync::watch;

use crate::console::partition;
use crate::handle::NodeHandle;

/// Bytes asked for at once when a console is read.
const READ_BYTES: u32 = 1 << 20;
/// Between two looks at a console whose leader is another node.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

impl kafka::Broker for NodeHandle {
    fn request(
        &self,
        target: Target,
        deadline: Millis,
        request: Request,
    ) -> impl Future<Output = Result<Reply, RequestError>> + Send + 'static {
        self.request_within(deadline, target, request)
    }

    fn metadata(&self) -> Arc<Metadata> {
        NodeHandle::metadata(self)
    }

    fn leader(&self, group: GroupId) -> Option<(NodeId, u64)> {
        let info = NodeHandle::leader(self, group)?;
        info.leader.map(|node| (node, info.term))
    }

    fn reader(&self, group: GroupId) -> Option<Arc<PartitionReader>> {
        NodeHandle::reader(self, group)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.views.changes.subscribe()
    }
}

impl Core for NodeHandle {
    fn me(&self) -> NodeId {
        NodeHandle::me(self)
    }

    fn request(
        &self,
        target: Target,
        deadline: Mono,
        request: Request,
    ) -> BoxFuture<'static, Result<Reply, RequestError>> {
        Box::pin(NodeHandle::request(self, target, deadline, request))
    }

    fn metadata(&self) -> Arc<Metadata> {
        NodeHandle::metadata(self)
    }

    fn metadata_after(&self, applied: u64) -> BoxFuture<'static, Arc<Metadata>> {
        let handle = self.clone();
        Box::pin(async move {
            match handle.metadata_after(applied).await {
                Some(metadata) => metadata,
                // The node is stopping: there is no later state.
                None => std::future::pending().await,
            }
        })
    }
}

impl Images for NodeHandle {
    fn names(&self) -> Vec<String> {
        vmm::IMAGES.iter().map(ToString::to_string).collect()
    }
}

impl Random for NodeHandle {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), RequestError> {
        getrandom::fill(bytes).map_err(|error| RequestError {
            code: ErrorCode::Internal,
            message: format!("the operating system gives no random bytes: {error}"),
            leader: None,
        })
    }
}

impl Tasks for NodeHandle {
    fn list(&self, node: NodeId, deadline: Mono) -> BoxFuture<'static, Result<Vec<TaskView>, RequestError>> {
        let asked = NodeHandle::request(self, Target::Node(node), deadline, Request::Tasks);
        Box::pin(async move {
            let lines = match asked.await? {
                Reply::Tasks(lines) => lines,
                other => return Err(unexpected(&other)),
            };
            let view = |line: engine::TaskLine| TaskView {
                path: line.path,
                state: line.state,
                since_ms: line.since_ms,
                restarts: line.restarts,
                cause: line.cause,
            };
            Ok(lines.into_iter().map(view).collect())
        })
    }
}

fn unexpected(reply: &Reply) -> RequestError {
    RequestError { code: ErrorCode::Internal, message: format!("unexpected answer {reply:?}"), leader: None }
}

impl ConsoleLog for NodeHandle {
    fn read(
        &self,
        topic: &str,
        from: ConsoleFrom,
        follow: bool,
        deadline: Mono,
    ) -> BoxFuture<'static, Result<LineStream, RequestError>> {
        let (handle, topic) = (self.clone(), topic.to_owned());
        Box::pin(async move {
            let Some(group) = partition(&handle, &topic) else {
                let message = format!("there is no topic {topic}");
                return Err(RequestError { code: ErrorCode::NotFound, message, leader: None });
            };
            // The first read says where the log begins and ends, and fails clearly if nobody leads.
            let first = batches(&handle, group, 0, 1, deadline).await?;
            let start = match from {
                ConsoleFrom::Start => first.log_start_offset,
                ConsoleFrom::Tail(lines) => {
                    first.log_start_offset.max(first.high_watermark.saturating_sub(i64::from(lines)))
                }
            };
            let end = if follow { i64::MAX } else { first.high_watermark };
            let reading = Reading { handle, group, next: start, end };
            let lines = stream::unfold(Some(reading), |reading| async move {
                let mut reading = reading?;
                match reading.step().await {
                    Ok(None) => None,
                    Ok(Some(lines)) => Some((lines.into_iter().map(Ok).collect(), Some(reading))),
                    Err(error) => Some((vec![Err(error)], None)),
                }
            });
            Ok(lines.flat_map(stream::iter).boxed())
        })
    }
}

async fn batches(
    handle: &NodeHandle,
    group: GroupId,
    offset: i64,
    bytes_max: u32,
    deadline: Mono,
) -> Result<PartitionBatches, RequestError> {
    let request = Request::ReadPartition(ReadPartition { group, offset, bytes_max });
    match NodeHandle::request(handle, Target::Leader(group), deadline, request).await? {
        Reply::PartitionBatches(read) => Ok(read),
        other => Err(unexpected(&other)),
    }
}

/// A console being read.
struct Reading {
    handle: NodeHandle,
    group: GroupId,
    next: i64,
    end: i64,
}

impl Reading {
    /// The next lines; `None` at the end.
    async fn step(&mut self) -> Result<Option<Vec<ConsoleLine>>, RequestError> {
        loop {
            if self.next >= self.end {
                return Ok(None);
            }
            let deadline = runtime::Clock.now().mono.plus(REQUEST_DEADLINE_DEFAULT);
            let news = self.handle.reader(self.group).map(|reader| reader.subscribe());
            let read = batches(&self.handle, self.group, self.next, READ_BYTES, deadline).await?;
            if read.batches.is_empty() {
                if self.end != i64::MAX {
                    return Ok(None);
                }
                wait_for_news(news).await;
                continue;
            }
            let mut lines = Vec::new();
            for batch in &read.batches {
                self.take(batch, &mut lines)?;
            }
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }

    fn take(&mut self, batch: &bytes::Bytes, lines: &mut Vec<ConsoleLine>) -> Result<(), RequestError> {
        let corrupt = |error: ::stream::BatchError| RequestError {
            code: ErrorCode::Corrupt,
            message: format!("offset {} holds something that is no console line: {error}", self.next),
            leader: None,
        };
        let header = ::stream::BatchHeader::parse(batch).map_err(corrupt)?;
        let (next, end) = (self.next, self.end);
        for (offset, record) in ::stream::record::decode_batch(batch).map_err(corrupt)? {
            if offset >= next && offset < end {
                let text = record.value.as_deref().unwrap_or_default();
                let line = String::from_utf8_lossy(text).into_owned();
                lines.push(ConsoleLine { offset, timestamp_ms: record.timestamp, line });
            }
        }
        self.next = header.last_offset() + 1;
        Ok(())
    }
}

async fn wait_for_news(news: Option<watch::Receiver<()>>) {
    let waited = async {
        match news {
            // An error means that the replica left this node: the next read finds out who has it.
            Some(mut news) => drop(news.changed().await),
            None => std::future::pending().await,
        }
    };
    // Bounded, because a follower's own replica may lag behind the leader that is asked.
    let _ = tokio::time::timeout(FOLLOW_INTERVAL, waited).await;
}
