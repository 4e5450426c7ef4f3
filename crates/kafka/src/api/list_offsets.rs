//! ListOffsets (key 2): the first, the last, and the offset at a time.

use std::sync::Arc;

use base::limits::REQUEST_DEADLINE_DEFAULT;
use base::{ErrorCode, GroupId};
use bytes::Bytes;
use engine::{ReadLog, Reply, Request, Target};
use futures::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::ListOffsetsRequest;
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsResponse, ListOffsetsTopicResponse,
};
use stream::{ListOffset, ListQuery, Reader};

use crate::dispatch::{Context, Outcome};
use crate::listener::Shared;
use crate::topics::{TopicRef, View};
use crate::{Broker, errors};

pub(crate) async fn answer<B: Broker>(
    shared: Arc<Shared<B>>,
    context: Context,
    request: ListOffsetsRequest,
) -> Outcome {
    let view = shared.view(false);
    let topics = request.topics.into_iter().map(|topic| {
        let (shared, view, name) = (&shared, &view, topic.name);
        async move {
            let reference = TopicRef::Name(name.0.clone());
            let one = |partition| lookup(shared, view, &reference, partition, context.version);
            let partitions = join_all(topic.partitions.iter().map(one)).await;
            ListOffsetsTopicResponse::default().with_name(name).with_partitions(partitions)
        }
    });
    let topics = join_all(topics).await;
    context.answer(ListOffsetsResponse::default().with_topics(topics))
}

/// Since when the answer has room for a leader epoch.
const LEADER_EPOCHS_SINCE: i16 = 4;

/// What was found: offset, timestamp and leader epoch, each -1 for "none".
#[derive(Clone, Copy)]
struct Found {
    offset: i64,
    timestamp: i64,
    leader_epoch: i32,
}

const NOTHING: Found = Found { offset: -1, timestamp: -1, leader_epoch: -1 };

async fn lookup<B: Broker>(
    shared: &Shared<B>,
    view: &View,
    topic: &TopicRef,
    partition: &ListOffsetsPartition,
    version: i16,
) -> ListOffsetsPartitionResponse {
    let result = match view.partition(topic, partition.partition_index) {
        Ok(group) => find(shared, group, partition, version).await,
        Err(error) => Err(error),
    };
    let (error_code, found) = match result {
        Ok(found) => (0, found),
        Err(error) => (error.code(), NOTHING),
    };
    let response = ListOffsetsPartitionResponse::default()
        .with_partition_index(partition.partition_index)
        .with_error_code(error_code)
        .with_timestamp(found.timestamp)
        .with_offset(found.offset);
    if version >= LEADER_EPOCHS_SINCE { response.with_leader_epoch(found.leader_epoch) } else { response }
}

async fn find<B: Broker>(
    shared: &Shared<B>,
    group: GroupId,
    partition: &ListOffsetsPartition,
    version: i16,
) -> Result<Found, ResponseError> {
    let query = match (partition.timestamp, version) {
        (-1, _) => ListQuery::Latest,
        (-2, _) => ListQuery::Earliest,
        (-3, 7..) => ListQuery::MaxTimestamp,
        // The earliest on the leader's own disk: everything is.
        (-4, 8..) => ListQuery::Earliest,
        // The latest in tiered storage: there is none.
        (-5, 9..) => return Ok(NOTHING),
        (0.., _) => ListQuery::Timestamp(partition.timestamp),
        _ => return Err(ResponseError::UnsupportedVersion),
    };
    let client_epoch = Some(partition.current_leader_epoch).filter(|epoch| *epoch >= 0);
    let reader = shared.broker.reader(group).ok_or(ResponseError::NotLeaderOrFollower)?;
    let decision = reader.read().list_offset(query, client_epoch);
    match decision {
        ListOffset::Found { offset, timestamp, leader_epoch } => Ok(Found { offset, timestamp, leader_epoch }),
        ListOffset::InBatch { index, leader_epoch, data } => {
            let batch = match data {
                Some(batch) => batch,
                None => read_batch(shared, group, index).await?,
            };
            let (offset, timestamp) = Reader::look_into(query, &batch).map_err(|_| errors::read(ErrorCode::Corrupt))?;
            Ok(Found { offset, timestamp, leader_epoch })
        }
        ListOffset::NotFound => Ok(NOTHING),
        ListOffset::NotLeader => Err(ResponseError::NotLeaderOrFollower),
        ListOffset::FencedEpoch => Err(ResponseError::FencedLeaderEpoch),
        ListOffset::UnknownEpoch => Err(ResponseError::UnknownLeaderEpoch),
    }
}

async fn read_batch<B: Broker>(shared: &Shared<B>, group: GroupId, index: u64) -> Result<Bytes, ResponseError> {
    let request = Request::ReadLog(ReadLog { group, low: index, high: index, bytes_max: 0 });
    match shared.broker.request(Target::Here, REQUEST_DEADLINE_DEFAULT, request).await {
        Ok(Reply::Batches { batches, .. }) => {
            batches.into_iter().next().ok_or_else(|| errors::read(ErrorCode::Internal))
        }
        Ok(_) => Err(errors::read(ErrorCode::Internal)),
        Err(error) => Err(errors::read(error.code)),
    }
}
