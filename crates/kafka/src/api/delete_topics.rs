//! DeleteTopics (key 20), by name or id.

use std::sync::Arc;

use base::{Millis, TopicId};
use futures::future::join_all;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_topics_response::{DeletableTopicResult, DeleteTopicsResponse};
use kafka_protocol::messages::{DeleteTopicsRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use metadata::Command;

use crate::Broker;
use crate::api::create_topics::{command_result, deadline};
use crate::dispatch::{Context, Outcome};
use crate::listener::Shared;
use crate::topics::{TopicRef, Uuid};

pub(crate) async fn answer<B: Broker>(
    shared: Arc<Shared<B>>,
    context: Context,
    request: DeleteTopicsRequest,
) -> Outcome {
    let deadline = deadline(request.timeout_ms);
    let by_state = request.topics.iter().map(|topic| match &topic.name {
        Some(name) => TopicRef::Name(name.0.clone()),
        None => TopicRef::Id(TopicId(topic.topic_id.into_bytes())),
    });
    let by_name = request.topic_names.iter().map(|name| TopicRef::Name(name.0.clone()));
    let wanted: Vec<TopicRef> = by_state.chain(by_name).collect();
    let responses = join_all(wanted.into_iter().map(|topic| delete(&shared, topic, deadline))).await;
    context.answer(DeleteTopicsResponse::default().with_responses(responses))
}

async fn delete<B: Broker>(shared: &Arc<Shared<B>>, wanted: TopicRef, deadline: Millis) -> DeletableTopicResult {
    let found = shared.view(true).topic(&wanted).map(|topic| (topic.name.clone(), topic.topic_id));
    let (name, topic_id) = match &wanted {
        TopicRef::Name(name) => (Some(name.clone()), found.as_ref().map_or(Uuid::nil(), |f| Uuid::from_bytes(f.1.0))),
        TopicRef::Id(id) => {
            (found.as_ref().ok().map(|(name, _)| StrBytes::from_string(name.clone())), Uuid::from_bytes(id.0))
        }
    };
    let result = match found {
        Ok((name, topic_id)) => remove(shared, name, topic_id, deadline).await,
        Err(error) => Err((error, "there is no such topic".to_owned())),
    };
    let response = DeletableTopicResult::default().with_name(name.map(TopicName)).with_topic_id(topic_id);
    match result {
        Ok(()) => response.with_error_message(None),
        Err((error, message)) => {
            response.with_error_code(error.code()).with_error_message(Some(StrBytes::from_string(message)))
        }
    }
}

async fn remove<B: Broker>(
    shared: &Arc<Shared<B>>,
    name: String,
    topic_id: TopicId,
    deadline: Millis,
) -> Result<(), (ResponseError, String)> {
    command_result(shared, Command::DeleteTopic { name: name.clone() }, deadline).await?;
    // By now it may have been made anew under another id, which is not this one.
    let gone = |topic: Option<&metadata::TopicRecord>| topic.is_none_or(|topic| topic.topic_id != topic_id);
    shared.wait_until(deadline, |view| gone(view.metadata.topics.get(&name))).await;
    Ok(())
}
