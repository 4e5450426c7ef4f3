//! `kv.list`: keys in order.

use ops::{Call, Column, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KeyView, LIMITS, view};
use crate::Ports;
use crate::common::{READ_ERRORS, read};

/// Bytes of values in one answer; at least one key comes back all the same.
const ANSWER_BYTES_MAX: usize = 4 << 20;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Only keys that begin so.
    #[serde(default)]
    prefix: String,
    /// Only keys behind this one, to go on where an answer ended.
    after: Option<String>,
    /// At most so many.
    #[serde(default = "limit")]
    #[schemars(range(min = 1, max = 10_000))]
    limit: u32,
    /// Without the values.
    #[serde(default)]
    keys_only: bool,
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

fn limit() -> u32 {
    1_000
}

#[derive(Serialize, JsonSchema)]
struct Output {
    keys: Vec<KeyView>,
    /// There are more: ask again with `after` as the last key.
    more: bool,
    /// The state that this shows: watch from the next revision on to miss nothing.
    revision: u64,
}

const COLUMNS: &[Column] = &[
    Column::plain("KEY", "/key"),
    Column::plain("VALUE", "/value"),
    Column::plain("REVISION", "/revision"),
    Column::plain("VERSION", "/version"),
    Column::plain("LEASE", "/lease"),
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("kv.list", "List keys", (Method::Get, "/v1/kv"), run)
        .docs("In the order of the keys' bytes, all of one moment. Linearizable, as kv.get is.")
        .examples(&[
            Example { command: "muster kv list", says: "all keys" },
            Example { command: "muster kv list app/ --keys-only", says: "those that begin with app/, without values" },
        ])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .limits(LIMITS)
        .positional(&["prefix"])
        .aliases(&["ls"])
        .human(Human::Table { rows: "/keys", columns: COLUMNS, empty: "no keys" })
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = read(&call, input.stale).await?;
    let limit = usize::try_from(input.limit).unwrap_or(usize::MAX);
    let mut bytes = 0;
    let mut keys = Vec::new();
    let mut more = false;
    for (key, record) in metadata.kv.range(&input.prefix, input.after.as_deref()) {
        bytes += key.len() + if input.keys_only { 0 } else { record.value.len() };
        more = keys.len() >= limit || (bytes > ANSWER_BYTES_MAX && !keys.is_empty());
        if more {
            break;
        }
        keys.push(view(key, record, !input.keys_only));
    }
    Ok(Output { keys, more, revision: metadata.applied })
}
