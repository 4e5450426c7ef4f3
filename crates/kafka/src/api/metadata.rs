//! Metadata (key 3): brokers, topics, and who leads what. Topics that do not exist are made, if allowed.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::limits::TOPIC_READY_WAIT;
use base::{GroupId, TopicId};
use engine::{Request, Target};
use futures::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_response::{
    MetadataResponse, MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use metadata::{ReplicaRecord, TopicRecord};
use tracing::info;

use crate::Broker;
use crate::api::create_topics::{self, NewTopic};
use crate::dispatch::{Context, Outcome};
use crate::listener::Shared;
use crate::topics::{TopicRef, Uuid, View, broker_id};

/// What everybody may do while there is no authorization, as the bits that Kafka assigns to operations: on a topic
/// (read, write, create, delete, alter, describe, describe and alter configs), and on the cluster (create, alter,
/// describe, cluster action, describe and alter configs, idempotent write).
const TOPIC_OPERATIONS: i32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;
const CLUSTER_OPERATIONS: i32 = 1 << 5 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12;
const WRITE: i32 = 1 << 4;
/// "Not asked for."
const OPERATIONS_UNKNOWN: i32 = i32::MIN;

pub(crate) async fn answer<B: Broker>(shared: Arc<Shared<B>>, context: Context, request: MetadataRequest) -> Outcome {
    let wanted = wanted(&request, context.version);
    // Until version 4 clients could not say, and meant yes.
    let creates = shared.config.auto_create_topics && (request.allow_auto_topic_creation || context.version < 4);
    if creates {
        create_missing(&shared, &wanted).await;
    }
    let view = shared.view(true);
    let operations = if request.include_topic_authorized_operations { TOPIC_OPERATIONS } else { OPERATIONS_UNKNOWN };
    let topics = match &wanted {
        None => view.metadata.topics.values().map(|topic| describe(&shared, &view, topic, operations)).collect(),
        Some(wanted) => wanted.iter().map(|topic| find(&shared, &view, topic, operations, creates)).collect(),
    };
    let controller = shared.broker.leader(GroupId::META).and_then(|(node, _)| broker_id(node)).unwrap_or(-1);
    let brokers = view.brokers().map(|broker| {
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(broker.id))
            .with_host(broker.host)
            .with_port(broker.port)
            .with_rack(broker.rack)
    });
    let mut response = MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(Some(StrBytes::from_string(view.metadata.cluster.to_string())))
        .with_controller_id(BrokerId(controller))
        .with_topics(topics);
    if request.include_cluster_authorized_operations {
        response.cluster_authorized_operations = CLUSTER_OPERATIONS;
    }
    context.answer(response)
}

/// The topics asked for; `None` is all.
fn wanted(request: &MetadataRequest, version: i16) -> Option<Vec<TopicRef>> {
    let topics = request.topics.as_ref().filter(|topics| version > 0 || !topics.is_empty())?;
    let reference = |topic: &kafka_protocol::messages::metadata_request::MetadataRequestTopic| match &topic.name {
        Some(name) => TopicRef::Name(name.0.clone()),
        None => TopicRef::Id(TopicId(topic.topic_id.into_bytes())),
    };
    Some(topics.iter().map(reference).collect())
}

/// Makes the topics that do not exist, with one partition, and waits a moment for their leaders. What does not work
/// shows in the answer as a topic that is not there, or has no leader yet: clients ask again.
async fn create_missing<B: Broker>(shared: &Arc<Shared<B>>, wanted: &Option<Vec<TopicRef>>) {
    let view = shared.view(false);
    let mut missing: BTreeSet<&str> = wanted
        .iter()
        .flatten()
        .filter_map(|topic| match topic {
            TopicRef::Name(name) => Some(name.as_str()),
            TopicRef::Id(_) => None,
        })
        .filter(|name| !view.metadata.topics.contains_key(*name))
        .filter(|name| stream::topic::check_name(name).is_ok())
        .collect();
    let named = missing.len();
    missing.retain(|name| metadata::free_topic_name(name).is_ok());
    if missing.len() < named {
        // A console is made with its VM, perhaps a moment ago through another node: it must not be denied.
        let _ = shared.broker.request(Target::Here, TOPIC_READY_WAIT, Request::Barrier).await;
    }
    if missing.is_empty() {
        return;
    }
    let create = |name: &&str| {
        let topic = NewTopic { name: (*name).to_owned(), partitions: 1, replication_factor: None, config: Vec::new() };
        create_topics::create(shared, topic, TOPIC_READY_WAIT)
    };
    let results = join_all(missing.iter().map(create)).await;
    let made: Vec<&str> = missing.iter().zip(results).filter_map(|(name, result)| result.ok().map(|_| *name)).collect();
    if !made.is_empty() {
        info!(topics = ?made, "topics made because a client asked for them");
        shared.wait_until(TOPIC_READY_WAIT, |view| made.iter().all(|name| shared.has_leaders(view, name))).await;
    }
}

/// A topic that does not exist and `creates` says should have been made: one whose name is never made for clients is
/// refused for good. Otherwise it may come yet, as a console does, and clients ask again.
fn find<B: Broker>(
    shared: &Shared<B>,
    view: &View,
    wanted: &TopicRef,
    operations: i32,
    creates: bool,
) -> MetadataResponseTopic {
    match (view.topic(wanted), wanted) {
        (Ok(topic), _) => describe(shared, view, topic, operations),
        (Err(error), TopicRef::Id(id)) => MetadataResponseTopic::default()
            .with_error_code(error.code())
            .with_topic_id(Uuid::from_bytes(id.0))
            .with_name(None),
        (Err(error), TopicRef::Name(name)) => {
            let reserved = creates && metadata::free_topic_name(name).is_err();
            let invalid = reserved || stream::topic::check_name(name).is_err();
            let error = if invalid { ResponseError::InvalidTopicException } else { error };
            MetadataResponseTopic::default().with_error_code(error.code()).with_name(Some(TopicName(name.clone())))
        }
    }
}

fn describe<B: Broker>(shared: &Shared<B>, view: &View, topic: &TopicRecord, operations: i32) -> MetadataResponseTopic {
    let partitions = topic.partitions.iter().enumerate().map(|(index, group)| partition(shared, view, index, *group));
    let operations = if metadata::free_topic_name(&topic.name).is_ok() { operations } else { operations & !WRITE };
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_string(topic.name.clone()))))
        .with_topic_id(Uuid::from_bytes(topic.topic_id.0))
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(operations)
}

fn partition<B: Broker>(shared: &Shared<B>, view: &View, index: usize, group: GroupId) -> MetadataResponsePartition {
    let replicas = view.metadata.partitions.get(&group).map(|record| record.replicas.as_slice()).unwrap_or_default();
    let nodes = |keep: fn(&&ReplicaRecord) -> bool| {
        replicas.iter().filter(keep).filter_map(|replica| broker_id(replica.node)).map(BrokerId).collect()
    };
    let leader = shared.leader(view, group);
    MetadataResponsePartition::default()
        .with_error_code(if leader.is_some() { 0 } else { ResponseError::LeaderNotAvailable.code() })
        .with_partition_index(i32::try_from(index).unwrap_or(i32::MAX))
        .with_leader_id(BrokerId(leader.map_or(-1, |leader| leader.id)))
        .with_leader_epoch(leader.map_or(-1, |leader| leader.epoch))
        .with_replica_nodes(nodes(|_| true))
        .with_isr_nodes(nodes(|replica| replica.voter))
}
