//! `lease.grant`: a new lease.

use metadata::{Command, CommandResult};
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Ports;
use crate::common::{WRITE_ERRORS, command_result, unexpected};
use crate::kv::LIMITS;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Seconds that it lives without being renewed.
    #[schemars(range(min = 1, max = 604_800))]
    ttl_s: u32,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    lease: u64,
    ttl_s: u32,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("lease.grant", "Make a lease", (Method::Post, "/v1/leases"), run)
        .docs(
            "Keys that are bound to it go when it ends: when it is revoked, or was not renewed in time. A change of leaders \
             starts its time anew, so that it may live longer, never shorter. Count its time from when you called.",
        )
        .examples(&[Example { command: "muster lease grant 30", says: "30 s, from its last renewal on" }])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .limits(LIMITS)
        .positional(&["ttl_s"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    match command_result(&call, Command::GrantLease { ttl_ms: u64::from(input.ttl_s) * 1_000 }).await? {
        CommandResult::LeaseGranted { lease } => Ok(Output { lease: lease.0, ttl_s: input.ttl_s }),
        _ => Err(unexpected()),
    }
}

fn text(output: &Value) -> String {
    let lease = &output["lease"];
    format!("lease {lease}, for {} s; `muster lease keep {lease}` renews it", output["ttl_s"])
}
