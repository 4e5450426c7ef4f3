//! `lease.list`: the leases.

use ops::{Call, Column, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Ports;
use crate::common::{READ_ERRORS, age_ms, read};
use crate::kv::LIMITS;

/// Keys shown of one lease.
const KEYS_SHOWN_MAX: usize = 16;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    leases: Vec<LeaseView>,
}

#[derive(Serialize, JsonSchema)]
struct LeaseView {
    lease: u64,
    /// Milliseconds that it lives without being renewed.
    ttl_ms: u64,
    age_ms: u64,
    /// How many keys are bound to it.
    key_count: usize,
    /// The first of them.
    keys: Vec<String>,
}

const COLUMNS: &[Column] = &[
    Column::plain("LEASE", "/lease"),
    Column::duration("TTL", "/ttl_ms"),
    Column::duration("AGE", "/age_ms"),
    Column::plain("KEYS", "/key_count"),
    Column { title: "FIRST KEYS", pointer: "/keys", cell: ops::Cell::List },
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("lease.list", "List the leases", (Method::Get, "/v1/leases"), run)
        .docs("With the keys that are bound to each. How much of its time is left only the leader of __meta knows.")
        .examples(&[Example { command: "muster lease list", says: "every lease and its keys" }])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .limits(LIMITS)
        .aliases(&["ls"])
        .human(Human::Table { rows: "/leases", columns: COLUMNS, empty: "no leases" })
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = read(&call, input.stale).await?;
    let view = |record: &metadata::LeaseRecord| LeaseView {
        lease: record.id.0,
        ttl_ms: record.ttl_ms,
        age_ms: age_ms(&call, record.granted),
        key_count: metadata.kv.keys_of(record.id).count(),
        keys: metadata.kv.keys_of(record.id).take(KEYS_SHOWN_MAX).cloned().collect(),
    };
    Ok(Output { leases: metadata.kv.leases.values().map(view).collect() })
}
