//! `token.revoke`: nobody joins with it any more.

use base::ErrorCode;
use metadata::Command;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Ports;
use crate::common::{WRITE_ERRORS, command};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The token's id, as `token list` shows it.
    id: u64,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    id: u64,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("token.revoke", "Take back a join token", (Method::Delete, "/v1/tokens/{id}"), run)
        .docs("Nodes that joined with it stay members.")
        .examples(&[Example { command: "muster token revoke 3", says: "nobody joins with token 3 any more" }])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .positional(&["id"])
        .aliases(&["rm"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    command(&call, Command::RevokeToken { token_id: input.id }).await.map_err(|error| match error.code {
        ErrorCode::NotFound => error.hint("`muster token list` shows them all"),
        _ => error,
    })?;
    Ok(Output { id: input.id })
}

fn text(output: &Value) -> String {
    format!("join token {} is revoked", output["id"])
}
