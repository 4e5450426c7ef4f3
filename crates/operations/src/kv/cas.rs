//! `kv.cas`: a key gets a value if it is what the caller thinks (compare and set).

use base::ErrorCode;
use metadata::KeyExpect;
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Encoding, LIMITS, Put, bytes_of, check_key, life, put, put_text};
use crate::Ports;
use crate::common::WRITE_ERRORS;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The key.
    #[schemars(length(min = 1, max = 1024))]
    key: String,
    /// At most 1 MiB; on the command line `-` reads it from standard input.
    value: String,
    /// Only if its last change was that revision; 0: only if it does not exist.
    revision: Option<u64>,
    /// Only if it holds this value. This one and the new one together have at most 1 MiB.
    expect: Option<String>,
    /// How both values are written here.
    #[serde(default)]
    encoding: Encoding,
    /// The key goes by itself after so many seconds.
    #[schemars(range(min = 1, max = 604_800))]
    ttl_s: Option<u32>,
    /// The key goes when this lease ends.
    lease: Option<u64>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("kv.cas", "Give a key a value if it is as expected", (Method::Post, "/v1/kv/{key}/cas"), run)
        .docs(
            "Compare and set: says what the key must be, by revision or by value, and fails with failed_precondition, \
             naming its revision, if it is something else. Of several callers that expect the same, one succeeds.",
        )
        .examples(&[
            Example {
                command: "muster kv cas app/leader node1 --revision 0 --ttl-s 10",
                says: "only if nobody has it",
            },
            Example { command: "muster kv cas app/count 8 --expect 7", says: "only if it is 7" },
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
    let expect = match (input.revision, input.expect) {
        (Some(0), None) => KeyExpect::Absent,
        (Some(revision), None) => KeyExpect::Revision(revision),
        (None, Some(value)) => KeyExpect::Value(bytes_of("expect", value, input.encoding)?),
        _ => return Err(OpError::field("revision", "is refused: name a revision or an expected value, one of them")),
    };
    let life = life(input.ttl_s, input.lease)?;
    put(&call, input.key, value, Some(expect), life).await.map_err(|error| match error.code {
        ErrorCode::FailedPrecondition => error.hint("read it again with `muster kv get`, and decide anew"),
        _ => error,
    })
}
