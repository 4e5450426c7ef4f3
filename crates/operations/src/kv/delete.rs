//! `kv.delete`: a key, or all keys with a prefix, go.

use metadata::{Command, CommandResult, KeyExpect};
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{LIMITS, check_key};
use crate::Ports;
use crate::common::{WRITE_ERRORS, command_result, count, unexpected};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The key.
    #[schemars(length(min = 1, max = 1024))]
    key: String,
    /// All keys that begin so, at most 10,000 at once.
    #[serde(default)]
    prefix: bool,
    /// Only if its last change was that revision.
    revision: Option<u64>,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    /// Keys that went; 0 if there was none.
    deleted: u64,
    /// Of this change.
    revision: u64,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("kv.delete", "Delete a key", (Method::Delete, "/v1/kv/{key}"), run)
        .docs(
            "Deleting what is not there is no error: it says that nothing went. A retry may take away what others have put \
             since, unless it carries the first call's Idempotency-Key.",
        )
        .examples(&[
            Example { command: "muster kv delete app/color", says: "this key" },
            Example { command: "muster kv delete app/ --prefix", says: "all keys that begin with app/" },
        ])
        .permission(Permission::Operate)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .limits(LIMITS)
        .positional(&["key"])
        .aliases(&["rm"])
        .human(Human::Text(text))
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    check_key(&input.key)?;
    if input.prefix && input.revision.is_some() {
        return Err(OpError::field("revision", "is refused: only a single key has one"));
    }
    let expect = input.revision.map(KeyExpect::Revision);
    let delete = Command::DeleteKeys { key: input.key, prefix: input.prefix, expect };
    match command_result(&call, delete).await? {
        CommandResult::KeysDeleted { revision, count } => Ok(Output { deleted: count, revision }),
        _ => Err(unexpected()),
    }
}

fn text(output: &Value) -> String {
    match output["deleted"].as_u64() {
        Some(0) | None => "there was nothing to delete".into(),
        Some(deleted) => format!("{} deleted", count(usize::try_from(deleted).unwrap_or(usize::MAX), "key")),
    }
}
