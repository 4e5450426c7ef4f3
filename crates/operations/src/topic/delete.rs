//! `topic.delete`: a topic and its records are gone.

use base::ErrorCode;
use metadata::{Command, EVENTS_TOPIC};
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Ports;
use crate::common::{WRITE_ERRORS, command};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The topic.
    #[schemars(length(min = 1, max = 249))]
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    name: String,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("topic.delete", "Delete a topic and its records", (Method::Delete, "/v1/topics/{name}"), run)
        .docs(
            "There is no way back. The topic of the cluster's events cannot be deleted, nor the console of a VM that \
             is there; that of a VM which is gone can.",
        )
        .examples(&[Example { command: "muster topic delete orders", says: "the topic and all its records are gone" }])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .positional(&["name"])
        .aliases(&["rm"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    if input.name == EVENTS_TOPIC {
        return Err(OpError::field("name", format!("is {EVENTS_TOPIC}, which the cluster itself writes: it stays")));
    }
    command(&call, Command::DeleteTopic { name: input.name.clone() }).await.map_err(|failed| match failed.code {
        // The same, with the nearest name.
        ErrorCode::NotFound => super::find(&call.context.core.metadata(), &input.name).err().unwrap_or(failed),
        _ => failed,
    })?;
    Ok(Output { name: input.name })
}

fn text(output: &Value) -> String {
    format!("topic {} is deleted", ops::human::text(&output["name"]))
}
