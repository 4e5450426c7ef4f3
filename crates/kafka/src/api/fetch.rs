//! Fetch (key 1): records from an offset on, waiting for them if there are too few.
//!
//! Fetch sessions (KIP-227) are not kept: a client that asks for one is told "session 0", which means that it has to
//! name its partitions each time; that is the protocol's own way of a broker whose session cache is full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base::limits::{FETCH_BYTES_MAX, FETCH_WAIT_MAX, REQUEST_DEADLINE_DEFAULT};
use base::{ErrorCode, GroupId, NodeId};
use bytes::{Bytes, BytesMut};
use engine::{ReadLog, Reply, Request, RequestError, Target};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchPartition;
use kafka_protocol::messages::fetch_response::{
    FetchResponse, FetchableTopicResponse, LeaderIdAndEpoch, NodeEndpoint, PartitionData,
};
use kafka_protocol::messages::{BrokerId, FetchRequest};
use stream::{BatchHeader, FetchPlan};
use tokio::time::{Instant, timeout_at};
use tracing::error;

use crate::dispatch::{Context, Outcome};
use crate::listener::Shared;
use crate::topics::{TopicRef, View};
use crate::{Broker, PartitionReader, errors};

/// Since when topics are named by id.
const TOPIC_IDS_SINCE: i16 = 13;
/// Since when the answer names the leader when this node is not it, and how to reach it.
const LEADERS_SINCE: i16 = 12;
const ENDPOINTS_SINCE: i16 = 16;
/// The session epoch of a client that wants no session, or its session ended.
const SESSION_FINAL: i32 = -1;
const READ_COMMITTED: i8 = 1;

/// One partition of the request.
struct Asked {
    topic: usize,
    partition: FetchPartition,
    source: Result<(GroupId, Arc<PartitionReader>), (Option<GroupId>, ResponseError)>,
}

/// What comes back for it.
struct Got {
    result: Result<Bytes, ResponseError>,
    high_watermark: i64,
    log_start_offset: i64,
}

/// The records that the answer may bring, in bytes.
pub(crate) fn bytes_max(request: &FetchRequest) -> usize {
    usize::try_from(request.max_bytes).unwrap_or(0).min(FETCH_BYTES_MAX)
}

pub(crate) async fn answer<B: Broker>(shared: Arc<Shared<B>>, context: Context, request: FetchRequest) -> Outcome {
    if request.session_id != 0 && request.session_epoch != SESSION_FINAL {
        let code = ResponseError::FetchSessionIdNotFound.code();
        return context.answer(FetchResponse::default().with_error_code(code));
    }
    let view = shared.view(context.version >= TOPIC_IDS_SINCE);
    let asked = asked(&shared, &view, &request, context.version);
    wait(&asked, &request).await;
    let got = read(&shared, &asked, bytes_max(&request)).await;
    let view = shared.view(false);
    let mut leaders = BTreeSet::new();
    let named = request
        .topics
        .iter()
        .map(|t| FetchableTopicResponse::default().with_topic(t.topic.clone()).with_topic_id(t.topic_id));
    let mut responses: Vec<FetchableTopicResponse> = named.collect();
    for (asked, got) in asked.iter().zip(got) {
        let data = describe(&shared, &view, context.version, &request, asked, got, &mut leaders);
        if let Some(topic) = responses.get_mut(asked.topic) {
            topic.partitions.push(data);
        }
    }
    let mut response = FetchResponse::default().with_responses(responses);
    if context.version >= ENDPOINTS_SINCE {
        let endpoint = |node| {
            let broker = view.broker(node)?;
            let endpoint = NodeEndpoint::default().with_node_id(BrokerId(broker.id)).with_host(broker.host);
            Some(endpoint.with_port(broker.port).with_rack(broker.rack))
        };
        response.node_endpoints = leaders.into_iter().filter_map(endpoint).collect();
    }
    context.answer(response)
}

fn asked<B: Broker>(shared: &Shared<B>, view: &View, request: &FetchRequest, version: i16) -> Vec<Asked> {
    let mut out = Vec::new();
    for (at, topic) in request.topics.iter().enumerate() {
        let reference = TopicRef::of(&topic.topic, topic.topic_id, version, TOPIC_IDS_SINCE);
        for partition in &topic.partitions {
            let source = match view.partition(&reference, partition.partition) {
                Err(error) => Err((None, error)),
                Ok(group) => match shared.broker.reader(group) {
                    Some(reader) => Ok((group, reader)),
                    None => Err((Some(group), ResponseError::NotLeaderOrFollower)),
                },
            };
            out.push(Asked { topic: at, partition: partition.clone(), source });
        }
    }
    out
}

impl Asked {
    fn plan(&self, reader: &PartitionReader, bytes_max: usize, min_one: bool) -> FetchPlan {
        let client_epoch = Some(self.partition.current_leader_epoch).filter(|epoch| *epoch >= 0);
        let own_max = usize::try_from(self.partition.partition_max_bytes).unwrap_or(0);
        reader.read().plan_fetch(self.partition.fetch_offset, bytes_max.min(own_max), client_epoch, min_one)
    }

    /// Bytes at hand, up to `enough`; `None` if the partition has something to say other than records.
    fn available(&self, enough: usize) -> Option<usize> {
        let (_, reader) = self.source.as_ref().ok()?;
        match self.plan(reader, 0, false) {
            FetchPlan::Wait => Some(0),
            FetchPlan::Tail(_) | FetchPlan::ReadLog { .. } => {
                Some(reader.read().bytes_available(self.partition.fetch_offset, enough))
            }
            _ => None,
        }
    }
}

/// Waits until there is as much as the client wants at least, an error to tell, or the time is up.
async fn wait(asked: &[Asked], request: &FetchRequest) {
    let wait = u64::try_from(request.max_wait_ms).unwrap_or(0).min(FETCH_WAIT_MAX.0);
    let enough = usize::try_from(request.min_bytes).unwrap_or(0).min(bytes_max(request));
    let deadline = Instant::now() + Duration::from_millis(wait);
    let readers = asked.iter().filter_map(|asked| asked.source.as_ref().ok());
    let mut changes: Vec<_> = readers.map(|(_, reader)| reader.subscribe()).collect();
    if wait == 0 || changes.is_empty() {
        return;
    }
    loop {
        changes.iter_mut().for_each(|change| drop(change.borrow_and_update()));
        let mut available = 0usize;
        for one in asked {
            match one.available(enough) {
                Some(bytes) => available = available.saturating_add(bytes),
                None => return,
            }
        }
        if available >= enough {
            return;
        }
        let mut any: FuturesUnordered<_> = changes.iter_mut().map(|change| change.changed()).collect();
        if timeout_at(deadline, any.next()).await.is_err() {
            return;
        }
    }
}

/// Reads all partitions, in the order asked, within `budget` bytes. The first that has records gives one batch at
/// least, so that a batch larger than what the client allows does not stop it for good (KIP-74).
async fn read<B: Broker>(shared: &Shared<B>, asked: &[Asked], mut budget: usize) -> Vec<Got> {
    let mut min_one = true;
    let mut reads = Vec::with_capacity(asked.len());
    for one in asked {
        let (plan, high_watermark, log_start_offset) = match &one.source {
            Err((_, error)) => (Err(*error), -1, -1),
            Ok((_, reader)) => {
                let plan = one.plan(reader, budget, min_one);
                let reader = reader.read();
                (Ok(plan), reader.high_watermark(), reader.log_start_offset())
            }
        };
        let bytes = match &plan {
            Ok(FetchPlan::Tail(batches)) => batches.iter().map(Bytes::len).sum(),
            Ok(FetchPlan::ReadLog { bytes, .. }) => *bytes,
            _ => 0,
        };
        min_one &= bytes == 0;
        budget = budget.saturating_sub(bytes);
        let group = one.source.as_ref().ok().map(|(group, _)| *group);
        reads.push(async move {
            let result = match (plan, group) {
                (Ok(plan), Some(group)) => carry_out(shared, group, plan).await,
                (Err(error), _) => Err(error),
                (Ok(_), None) => Err(ResponseError::UnknownServerError),
            };
            Got { result, high_watermark, log_start_offset }
        });
    }
    join_all(reads).await
}

async fn carry_out<B: Broker>(shared: &Shared<B>, group: GroupId, plan: FetchPlan) -> Result<Bytes, ResponseError> {
    match plan {
        FetchPlan::Tail(batches) => Ok(join(&batches)),
        FetchPlan::ReadLog { low, high, bytes_max, from_offset, .. } => {
            let request = Request::ReadLog(ReadLog { group, low, high, bytes_max });
            let reply = shared.broker.request(Target::Here, REQUEST_DEADLINE_DEFAULT, request).await;
            from_log(group, reply, from_offset)
        }
        FetchPlan::Wait => Ok(Bytes::new()),
        FetchPlan::OutOfRange => Err(ResponseError::OffsetOutOfRange),
        FetchPlan::NotLeader => Err(ResponseError::NotLeaderOrFollower),
        FetchPlan::FencedEpoch => Err(ResponseError::FencedLeaderEpoch),
        FetchPlan::UnknownEpoch => Err(ResponseError::UnknownLeaderEpoch),
    }
}

/// Checks that what was read is what was asked for: a consumer must never skip records unnoticed.
fn from_log(group: GroupId, reply: Result<Reply, RequestError>, from_offset: i64) -> Result<Bytes, ResponseError> {
    let batches = match reply {
        Ok(Reply::Batches { batches, .. }) => batches,
        Ok(_) => return Err(errors::read(ErrorCode::Internal)),
        Err(error) => return Err(errors::read(error.code)),
    };
    let mut next = None;
    for batch in &batches {
        let header = BatchHeader::parse(batch).map_err(|_| errors::read(ErrorCode::Corrupt))?;
        let follows = match next {
            None => (header.base_offset..=header.last_offset()).contains(&from_offset),
            Some(next) => header.base_offset == next,
        };
        if !follows {
            error!(%group, from_offset, found = header.base_offset, "the log does not hold what its index says");
            return Err(errors::read(ErrorCode::Internal));
        }
        next = Some(header.last_offset() + 1);
    }
    if batches.is_empty() { Err(errors::read(ErrorCode::Internal)) } else { Ok(join(&batches)) }
}

/// One byte string; a single batch is not copied.
fn join(batches: &[Bytes]) -> Bytes {
    if let [one] = batches {
        return one.clone();
    }
    let mut out = BytesMut::with_capacity(batches.iter().map(Bytes::len).sum());
    batches.iter().for_each(|batch| out.extend_from_slice(batch));
    out.freeze()
}

fn describe<B: Broker>(
    shared: &Shared<B>,
    view: &View,
    version: i16,
    request: &FetchRequest,
    asked: &Asked,
    got: Got,
    leaders: &mut BTreeSet<NodeId>,
) -> PartitionData {
    let data = PartitionData::default()
        .with_partition_index(asked.partition.partition)
        .with_preferred_read_replica(BrokerId(-1))
        .with_aborted_transactions((request.isolation_level == READ_COMMITTED).then(Vec::new));
    let error = match got.result {
        Ok(records) => {
            return data
                .with_high_watermark(got.high_watermark)
                .with_last_stable_offset(got.high_watermark)
                .with_log_start_offset(got.log_start_offset)
                .with_records(Some(records));
        }
        Err(error) => error,
    };
    let data = data
        .with_error_code(error.code())
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_records(Some(Bytes::new()));
    let group = match &asked.source {
        Ok((group, _)) => Some(*group),
        Err((group, _)) => *group,
    };
    let moved = matches!(error, ResponseError::NotLeaderOrFollower | ResponseError::FencedLeaderEpoch);
    match group.filter(|_| moved && version >= LEADERS_SINCE).and_then(|group| shared.leader(view, group)) {
        None => data,
        Some(leader) => {
            leaders.insert(leader.node);
            let current = LeaderIdAndEpoch::default().with_leader_id(BrokerId(leader.id));
            data.with_current_leader(current.with_leader_epoch(leader.epoch))
        }
    }
}
