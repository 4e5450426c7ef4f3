//! `kv.get`: what a key holds.

use ops::{Call, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{KeyView, LIMITS, bytes_in, check_key, missing, value_text, view};
use crate::Ports;
use crate::common::{READ_ERRORS, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// The key.
    #[schemars(length(min = 1, max = 1024))]
    key: String,
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("kv.get", "Show what a key holds", (Method::Get, "/v1/kv/{key}"), run)
        .docs(
            "Linearizable: sees every change that was acknowledged before the call, through whichever node. With \
             --stale this node answers at once from what it has applied, but for the last 25 ms. Bytes that are no text, and \
             text with control characters, come in base64; the command line writes into a file or a pipe the bytes that were \
             put, and adds nothing.",
        )
        .examples(&[
            Example { command: "muster kv get app/color", says: "the value and nothing else" },
            Example { command: "muster kv get app/color -o json", says: "with revisions and lease" },
        ])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .limits(LIMITS)
        .positional(&["key"])
        .human(Human::Bytes { text: value_text, bytes: bytes_in })
}

async fn run(call: Call<Ports>, input: Input) -> Result<KeyView, OpError> {
    check_key(&input.key)?;
    let metadata = read(&call, input.stale).await?;
    let record = metadata.kv.key(&input.key).ok_or_else(|| missing(&input.key))?;
    Ok(view(&input.key, record, true))
}
