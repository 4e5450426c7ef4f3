//! Produce (key 0): checks batches, hands them to the engine, answers when it does.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::limits::PRODUCER_ID_RESERVED_MAX;
use base::{ErrorCode, GroupId, Millis};
use bytes::Bytes;
use engine::{Acks, Produce, Reply, Request, RequestError, Target};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_request::PartitionProduceData;
use kafka_protocol::messages::produce_response::{
    LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{BrokerId, ProduceRequest};
use kafka_protocol::protocol::StrBytes;
use stream::{BatchError, batch};

use crate::api::create_topics::deadline;
use crate::dispatch::{Context, Outcome};
use crate::listener::Shared;
use crate::topics::{TopicRef, View};
use crate::{Broker, errors};

/// Since when topics are named by id.
const TOPIC_IDS_SINCE: i16 = 13;
/// Since when the answer names the leader when this node is not it.
const LEADERS_SINCE: i16 = 10;

/// What came of one partition.
struct Done {
    index: i32,
    group: Option<GroupId>,
    result: Result<(i64, i64), (ResponseError, String)>,
}

/// Checks everything and hands it to the engine before it returns, so that the requests of a connection keep their
/// order; partitions do not wait for each other.
pub(crate) fn start<B: Broker>(
    shared: &Arc<Shared<B>>,
    context: Context,
    request: ProduceRequest,
) -> BoxFuture<'static, Outcome> {
    let by_id = context.version >= TOPIC_IDS_SINCE;
    let view = shared.view(by_id);
    let acks = match (request.acks, &request.transactional_id) {
        (_, Some(_)) => Err(refusal(ResponseError::InvalidTxnState, "transactions are not available yet")),
        (0, None) => Ok(Acks::None),
        (1, None) => Ok(Acks::Leader),
        (-1, None) => Ok(Acks::All),
        _ => Err(refusal(ResponseError::InvalidRequiredAcks, "acks must be 0, 1 or all (-1)")),
    };
    let wants_answer = request.acks != 0;
    let deadline = deadline(request.timeout_ms);
    let mut topics = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let reference = TopicRef::of(&topic.name, topic.topic_id, context.version, TOPIC_IDS_SINCE);
        let start = |data| match &acks {
            Ok(acks) => one(shared, &view, &reference, data, *acks, deadline),
            Err(refused) => failed(data.index, None, refused.clone()),
        };
        let partitions: Vec<BoxFuture<'static, Done>> = topic.partition_data.into_iter().map(start).collect();
        topics.push(async move { (topic.name, topic.topic_id, join_all(partitions).await) });
    }
    let shared = shared.clone();
    async move {
        let topics = join_all(topics).await;
        if !wants_answer {
            // Kafka's way to tell a producer that wants no answers: it will reconnect and look for the leader.
            let failed = topics.iter().flat_map(|(.., done)| done).find_map(|done| done.result.as_ref().err());
            return match failed {
                None => Outcome::Silence,
                Some((error, message)) => Outcome::Close(format!("a produce with acks=0 failed: {error}: {message}")),
            };
        }
        let view = shared.view(false);
        let mut leaders = BTreeSet::new();
        let mut responses = Vec::with_capacity(topics.len());
        for (name, topic_id, done) in topics {
            let describe = |done| describe(&shared, &view, context.version, done, &mut leaders);
            let partitions = done.into_iter().map(describe).collect();
            let topic = TopicProduceResponse::default().with_name(name).with_topic_id(topic_id);
            responses.push(topic.with_partition_responses(partitions));
        }
        let endpoint = |node| {
            let broker = view.broker(node)?;
            let endpoint = NodeEndpoint::default().with_node_id(BrokerId(broker.id)).with_host(broker.host);
            Some(endpoint.with_port(broker.port).with_rack(broker.rack))
        };
        let endpoints = leaders.into_iter().filter_map(endpoint).collect();
        context.answer(ProduceResponse::default().with_responses(responses).with_node_endpoints(endpoints))
    }
    .boxed()
}

fn refusal(error: ResponseError, message: impl Into<String>) -> (ResponseError, String) {
    (error, message.into())
}

fn failed(index: i32, group: Option<GroupId>, refused: (ResponseError, String)) -> BoxFuture<'static, Done> {
    std::future::ready(Done { index, group, result: Err(refused) }).boxed()
}

fn one<B: Broker>(
    shared: &Shared<B>,
    view: &View,
    topic: &TopicRef,
    data: PartitionProduceData,
    acks: Acks,
    deadline: Millis,
) -> BoxFuture<'static, Done> {
    let index = data.index;
    // A console holds what a guest printed and the events what happened: a client's words among them would be forged.
    // Muster's own producers do not come this way. The error is Kafka's for its own internal topics.
    if let Err(reason) = view.name(topic).map_or(Ok(()), metadata::free_topic_name) {
        return failed(index, None, refusal(ResponseError::InvalidTopicException, reason));
    }
    let group = match view.partition(topic, index) {
        Ok(group) => group,
        Err(error) => return failed(index, None, refusal(error, "there is no such topic or partition")),
    };
    let batches = match check(data.records) {
        Ok(batches) => batches,
        Err(error) => return failed(index, Some(group), refusal(errors::batch(&error), error.to_string())),
    };
    let request = Request::Produce(Produce { group, acks, batches });
    let reply = shared.broker.request(Target::Here, deadline, request);
    async move { Done { index, group: Some(group), result: outcome(reply.await) } }.boxed()
}

/// The batches, whole and with the right checksums; at least one.
fn check(records: Option<Bytes>) -> Result<Vec<Bytes>, BatchError> {
    let batches = batch::split(records.unwrap_or_default())?;
    if batches.is_empty() {
        return Err(BatchError::Empty);
    }
    for one in &batches {
        let header = batch::check_produced(one)?;
        if (0..=PRODUCER_ID_RESERVED_MAX).contains(&header.producer_id) {
            return Err(BatchError::ReservedProducer { producer_id: header.producer_id });
        }
    }
    Ok(batches)
}

fn outcome(reply: Result<Reply, RequestError>) -> Result<(i64, i64), (ResponseError, String)> {
    match reply {
        Ok(Reply::Produced { base_offset, log_start_offset }) => Ok((base_offset, log_start_offset)),
        Ok(other) => Err(refusal(errors::produce(ErrorCode::Internal), format!("an unexpected reply: {other:?}"))),
        Err(error) => Err(refusal(errors::produce(error.code), error.message)),
    }
}

fn describe<B: Broker>(
    shared: &Shared<B>,
    view: &View,
    version: i16,
    done: Done,
    leaders: &mut BTreeSet<base::NodeId>,
) -> PartitionProduceResponse {
    let response = PartitionProduceResponse::default().with_index(done.index).with_log_append_time_ms(-1);
    let (error, message) = match done.result {
        Ok((base_offset, log_start_offset)) => {
            return response.with_base_offset(base_offset).with_log_start_offset(log_start_offset);
        }
        Err(failure) => failure,
    };
    let response = response
        .with_error_code(error.code())
        .with_error_message(Some(StrBytes::from_string(message)))
        .with_base_offset(-1)
        .with_log_start_offset(-1);
    let leader = done.group.and_then(|group| shared.leader(view, group));
    match leader {
        Some(leader) if error == ResponseError::NotLeaderOrFollower && version >= LEADERS_SINCE => {
            leaders.insert(leader.node);
            let current = LeaderIdAndEpoch::default().with_leader_id(BrokerId(leader.id));
            response.with_current_leader(current.with_leader_epoch(leader.epoch))
        }
        _ => response,
    }
}
