//! `lease.revoke`: a lease ends now.

use base::LeaseId;
use metadata::{Command, CommandResult};
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Ports;
use crate::common::{WRITE_ERRORS, command_result, count, unexpected};
use crate::kv::LIMITS;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The lease.
    lease: u64,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    lease: u64,
    /// Keys that went with it.
    deleted: u64,
    /// Of this change.
    revision: u64,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("lease.revoke", "End a lease, and the keys bound to it", (Method::Delete, "/v1/leases/{lease}"), run)
        .docs("Whoever holds something by it holds it no more.")
        .examples(&[Example { command: "muster lease revoke 7", says: "ends it now" }])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .limits(LIMITS)
        .positional(&["lease"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    match command_result(&call, Command::EndLease { lease: LeaseId(input.lease), expired: false }).await? {
        CommandResult::KeysDeleted { revision, count } => Ok(Output { lease: input.lease, deleted: count, revision }),
        _ => Err(unexpected()),
    }
}

fn text(output: &Value) -> String {
    let deleted = usize::try_from(output["deleted"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
    format!("lease {} is revoked, {} with it", output["lease"], count(deleted, "key"))
}
