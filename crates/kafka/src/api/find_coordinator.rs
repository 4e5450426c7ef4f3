//! FindCoordinator (key 10): refused, in words, until there are coordinators. With a code that clients do not try again on,
//! as they would where a coordinator is merely not available at the moment.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::find_coordinator_response::{Coordinator, FindCoordinatorResponse};
use kafka_protocol::messages::{BrokerId, FindCoordinatorRequest};
use kafka_protocol::protocol::StrBytes;

use crate::dispatch::{Context, Outcome};

const MESSAGE: &str = "consumer groups are not available yet";

pub(crate) fn answer(context: Context, request: FindCoordinatorRequest) -> Outcome {
    let code = ResponseError::UnsupportedVersion.code();
    let message = Some(StrBytes::from_static_str(MESSAGE));
    if context.version < 4 {
        let response = FindCoordinatorResponse::default()
            .with_error_code(code)
            .with_error_message(message)
            .with_node_id(BrokerId(-1))
            .with_port(-1);
        return context.answer(response);
    }
    let refuse = |key| {
        Coordinator::default()
            .with_key(key)
            .with_node_id(BrokerId(-1))
            .with_port(-1)
            .with_error_code(code)
            .with_error_message(message.clone())
    };
    let coordinators = request.coordinator_keys.into_iter().map(refuse).collect();
    context.answer(FindCoordinatorResponse::default().with_coordinators(coordinators))
}
