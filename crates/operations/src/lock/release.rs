//! `lock.release`: the next one gets the lock.

use base::{ErrorCode, LeaseId};
use metadata::{Command, OnceKey};
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{check_name, queue};
use crate::Ports;
use crate::common::{WRITE_ERRORS, command_result, latest};
use crate::kv::LIMITS;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The lock.
    #[schemars(length(min = 1, max = 256))]
    name: String,
    /// The lease by which it is held, or waited for.
    lease: u64,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    name: String,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("lock.release", "Free a lock", (Method::Post, "/v1/locks/{name}/release"), run)
        .docs("Ends the lease by which the lock is held; whoever waits longest gets it.")
        .examples(&[Example { command: "muster lock release backup 7", says: "the lock that lease 7 holds" }])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .limits(LIMITS)
        .positional(&["name", "lease"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    check_name(&input.name)?;
    let lease = LeaseId(input.lease);
    let metadata = latest(&call).await?;
    if !queue(&metadata, &input.name).iter().any(|(standing, _)| *standing == lease) {
        // Not so any more because the first call under the same key has ended the lease.
        if call.once.as_ref().is_some_and(|once| metadata.once.records.contains_key(&OnceKey(once.next_command()))) {
            return Ok(Output { name: input.name });
        }
        let message = format!("lease {lease} neither holds lock {} nor waits for it", input.name);
        return Err(OpError::new(ErrorCode::NotFound, message).hint("`muster lock list` shows who does"));
    }
    command_result(&call, Command::EndLease { lease, expired: false }).await?;
    Ok(Output { name: input.name })
}

fn text(output: &Value) -> String {
    format!("lock {} is free for the next one", ops::human::text(&output["name"]))
}
