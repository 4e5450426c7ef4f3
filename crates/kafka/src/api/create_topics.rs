//! CreateTopics (key 19).

use std::collections::BTreeMap;
use std::sync::Arc;

use base::limits::{REQUEST_DEADLINE_DEFAULT, REQUEST_DEADLINE_MAX, TOPIC_READY_WAIT};
use base::{ErrorCode, GroupId, Millis, TopicId};
use engine::{Reply, Request, Target};
use futures::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::CreateTopicsRequest;
use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult, CreateTopicsResponse,
};
use kafka_protocol::protocol::StrBytes;
use metadata::{Command, CommandResult};
use stream::topic::{self, TopicError};

use crate::dispatch::{Context, Outcome};
use crate::listener::Shared;
use crate::topics::{Uuid, View};
use crate::{Broker, errors};

/// Set on the topic itself (Kafka's `ConfigSource.TOPIC_CONFIG`).
const SOURCE_TOPIC: i8 = 1;

/// A topic to be made, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NewTopic {
    pub(crate) name: String,
    pub(crate) partitions: u32,
    /// `None`: elastic.
    pub(crate) replication_factor: Option<u16>,
    pub(crate) config: Vec<(String, String)>,
}

type Failure = (ResponseError, String);

pub(crate) async fn answer<B: Broker>(
    shared: Arc<Shared<B>>,
    context: Context,
    request: CreateTopicsRequest,
) -> Outcome {
    let deadline = deadline(request.timeout_ms);
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for topic in &request.topics {
        *times.entry(topic.name.as_str()).or_default() += 1;
    }
    let view = shared.view(false);
    let checked = request.topics.iter().map(|topic| {
        if times.get(topic.name.as_str()).is_some_and(|times| *times > 1) {
            return Err((ResponseError::InvalidRequest, "the request names this topic more than once".to_owned()));
        }
        check(topic, &view)
    });
    let checked: Vec<Result<NewTopic, Failure>> = checked.collect();
    let results = checked.into_iter().map(|topic| async {
        let topic = topic?;
        let id = if request.validate_only { None } else { Some(create(&shared, topic.clone(), deadline).await?) };
        Ok::<_, Failure>((topic, id))
    });
    let results = join_all(results).await;
    let made: Vec<&str> = results.iter().flatten().filter(|(_, id)| id.is_some()).map(|(t, _)| &*t.name).collect();
    if !made.is_empty() {
        // The topics exist; that their leaders may still be missing when the time is up is no failure.
        let wait = TOPIC_READY_WAIT.min(deadline);
        shared.wait_until(wait, |view| made.iter().all(|name| shared.has_leaders(view, name))).await;
    }
    let nodes = view.metadata.nodes.len();
    let describe = |(topic, result): (&CreatableTopic, Result<(NewTopic, Option<TopicId>), Failure>)| match result {
        Ok((made, id)) => success(made, id, nodes),
        Err((error, message)) => CreatableTopicResult::default()
            .with_name(topic.name.clone())
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_string(message)))
            .with_configs(None),
    };
    let topics = request.topics.iter().zip(results).map(describe).collect();
    context.answer(CreateTopicsResponse::default().with_topics(topics))
}

fn success(topic: NewTopic, id: Option<TopicId>, nodes: usize) -> CreatableTopicResult {
    let elastic = base::limits::ELASTIC_REPLICATION_FACTOR.min(nodes);
    let factor = topic.replication_factor.map_or(elastic, usize::from);
    let config = |(name, value): (String, String)| {
        CreatableTopicConfigs::default()
            .with_name(StrBytes::from_string(name))
            .with_value(Some(StrBytes::from_string(value)))
            .with_config_source(SOURCE_TOPIC)
    };
    CreatableTopicResult::default()
        .with_name(TopicName(StrBytes::from_string(topic.name)))
        .with_topic_id(id.map_or(Uuid::nil(), |id| Uuid::from_bytes(id.0)))
        .with_error_message(None)
        .with_num_partitions(i32::try_from(topic.partitions).unwrap_or(i32::MAX))
        .with_replication_factor(i16::try_from(factor).unwrap_or(i16::MAX))
        .with_configs(Some(topic.config.into_iter().map(config).collect()))
}

fn check(topic: &CreatableTopic, view: &View) -> Result<NewTopic, Failure> {
    let refuse = |error: ResponseError| move |reason: TopicError| (error, reason.to_string());
    let name = topic.name.as_str();
    topic::check_name(name).map_err(refuse(ResponseError::InvalidTopicException))?;
    if view.metadata.topics.contains_key(name) {
        return Err((ResponseError::TopicAlreadyExists, format!("topic '{name}' exists already")));
    }
    metadata::free_topic_name(name).map_err(|reason| (ResponseError::InvalidTopicException, reason))?;
    topic::check_collision(name, view.metadata.topics.keys().map(String::as_str))
        .map_err(refuse(ResponseError::InvalidTopicException))?;
    if !topic.assignments.is_empty() {
        let message = "replicas cannot be assigned by hand: leave the assignments out, and muster places them";
        return Err((ResponseError::InvalidReplicaAssignment, message.to_owned()));
    }
    let partitions =
        topic::check_partitions(i64::from(topic.num_partitions)).map_err(refuse(ResponseError::InvalidPartitions))?;
    let nodes = view.metadata.nodes.len();
    let replication_factor = topic::check_replication_factor(i64::from(topic.replication_factor), nodes)
        .map_err(refuse(ResponseError::InvalidReplicationFactor))?;
    let mut config: BTreeMap<String, String> = BTreeMap::new();
    for entry in &topic.configs {
        // A null value stands for the default.
        let Some(value) = &entry.value else { continue };
        topic::check_config(&entry.name, value).map_err(refuse(ResponseError::InvalidConfig))?;
        config.insert(entry.name.to_string(), value.to_string());
    }
    Ok(NewTopic { name: name.to_owned(), partitions, replication_factor, config: config.into_iter().collect() })
}

/// Makes one topic and waits until this node knows it.
pub(crate) async fn create<B: Broker>(
    shared: &Arc<Shared<B>>,
    topic: NewTopic,
    deadline: Millis,
) -> Result<TopicId, Failure> {
    let name = topic.name.clone();
    let topic_id = new_topic_id().map_err(|error| (ResponseError::UnknownServerError, error))?;
    let command = Command::CreateTopic {
        name: topic.name,
        topic_id,
        partitions: topic.partitions,
        replication_factor: topic.replication_factor,
        config: topic.config,
    };
    match command_result(shared, command, deadline).await? {
        CommandResult::TopicCreated { topic_id, .. } => {
            shared.wait_until(deadline, |view| view.metadata.topics.contains_key(&name)).await;
            Ok(topic_id)
        }
        other => Err((ResponseError::UnknownServerError, format!("an unexpected result: {other:?}"))),
    }
}

/// Has `__meta` apply a command.
pub(crate) async fn command_result<B: Broker>(
    shared: &Arc<Shared<B>>,
    command: Command,
    deadline: Millis,
) -> Result<CommandResult, Failure> {
    let request = Request::Command(command);
    match shared.broker.request(Target::Leader(GroupId::META), deadline, request).await {
        Ok(Reply::Command { result: CommandResult::Refused { code, message }, .. }) => {
            Err((errors::admin(code), message))
        }
        Ok(Reply::Command { result, .. }) => Ok(result),
        Ok(other) => Err((errors::admin(ErrorCode::Internal), format!("an unexpected reply: {other:?}"))),
        Err(error) => Err((errors::admin(error.code), error.message)),
    }
}

/// The deadline of a request that says how long it waits; 0 or less is the default.
pub(crate) fn deadline(timeout_ms: i32) -> Millis {
    match u64::try_from(timeout_ms) {
        Ok(timeout_ms @ 1..) => Millis(timeout_ms).min(REQUEST_DEADLINE_MAX),
        _ => REQUEST_DEADLINE_DEFAULT,
    }
}

/// A random id (UUID version 4), as Kafka's are.
fn new_topic_id() -> Result<TopicId, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| format!("the system gives no random bytes: {error}"))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(TopicId(bytes))
}
