//! `kv.put`: a key gets a value.

use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Encoding, LIMITS, Put, bytes_of, check_key, life, put, put_text};
use crate::Ports;
use crate::common::WRITE_ERRORS;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Text of 1 to 1024 bytes; `/` groups keys for listing and watching.
    #[schemars(length(min = 1, max = 1024))]
    key: String,
    /// At most 1 MiB; on the command line `-` reads it from standard input.
    value: String,
    /// How the value is written here.
    #[serde(default)]
    encoding: Encoding,
    /// The key goes by itself after so many seconds.
    #[schemars(range(min = 1, max = 604_800))]
    ttl_s: Option<u32>,
    /// The key goes when this lease ends.
    lease: Option<u64>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("kv.put", "Give a key a value", (Method::Put, "/v1/kv/{key}"), run)
        .docs(
            "Durable on return: a majority of the voters has it on disk. Without a time or a lease the key lasts, even if it \
             had one before. Values are small things that every node holds in memory: configuration, who leads what; \
             put data into topics. A retry may undo what others have put since, unless it carries the first call's \
             Idempotency-Key.",
        )
        .examples(&[
            Example { command: "muster kv put app/color blue", says: "sets it, whatever it was" },
            Example { command: "muster kv put app/seen now --ttl-s 30", says: "gone after 30 s, unless put again" },
            Example { command: "muster kv put app/config -", says: "the value from standard input" },
        ])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .limits(LIMITS)
        .positional(&["key", "value"])
        .stdin("value")
        .human(Human::Text(put_text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Put, OpError> {
    check_key(&input.key)?;
    let value = bytes_of("value", input.value, input.encoding)?;
    let life = life(input.ttl_s, input.lease)?;
    put(&call, input.key, value, None, life).await
}
