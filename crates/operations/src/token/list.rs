//! `token.list`: the join tokens, without their secrets.

use ops::{Call, Column, Example, Human, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Ports;
use crate::common::{READ_ERRORS, age_ms, read};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    tokens: Vec<TokenView>,
}

#[derive(Serialize, JsonSchema)]
struct TokenView {
    id: u64,
    /// `usable`, `used` or `expired`.
    state: String,
    uses_left: u32,
    /// Milliseconds until it expires; 0 if it has.
    expires_in_ms: u64,
    age_ms: u64,
}

const COLUMNS: &[Column] = &[
    Column::plain("ID", "/id"),
    Column::plain("STATE", "/state"),
    Column::plain("USES LEFT", "/uses_left"),
    Column::duration("EXPIRES IN", "/expires_in_ms"),
    Column::duration("AGE", "/age_ms"),
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("token.list", "List the join tokens", (Method::Get, "/v1/tokens"), run)
        .docs("Secrets are not shown: the cluster keeps only their hashes.")
        .examples(&[Example { command: "muster token list", says: "every token and how often it may be used" }])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .aliases(&["ls"])
        .human(Human::Table {
            rows: "/tokens",
            columns: COLUMNS,
            empty: "no tokens: make one with `muster token create`",
        })
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = read(&call, input.stale).await?;
    let now = call.clock.now().wall;
    let tokens = metadata.tokens.values().map(|token| TokenView {
        id: token.id,
        state: match token.uses_left {
            0 => "used",
            _ if token.expires < now => "expired",
            _ => "usable",
        }
        .into(),
        uses_left: token.uses_left,
        expires_in_ms: u64::try_from(token.expires.0.saturating_sub(now.0)).unwrap_or(0),
        age_ms: age_ms(&call, token.created),
    });
    Ok(Output { tokens: tokens.collect() })
}
