//! `token.create`: a line of text with which a new host joins.

use std::net::SocketAddr;

use base::{ErrorCode, Millis, Wall};
use metadata::{Command, CommandResult, Metadata, token_hash};
use ops::{Call, Example, Human, Idempotency, Method, OpError, Operation, Permission, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wire::{JoinToken, TokenRecovery, TokenSeed};

use crate::Ports;
use crate::common::{WRITE_ERRORS, command, failure, unexpected};

/// Members that a token names; any one of them that answers is enough.
const SEEDS_MAX: usize = 16;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// How many nodes it may admit.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 512))]
    uses: u32,
    /// Minutes until it expires.
    #[serde(default = "day")]
    #[schemars(range(min = 1, max = 525_600))]
    expires_in_minutes: u32,
}

fn one() -> u32 {
    1
}

fn day() -> u32 {
    u32::try_from(base::limits::JOIN_TOKEN_TTL_DEFAULT.0 / 60_000).unwrap_or(u32::MAX)
}

#[derive(Serialize, JsonSchema)]
struct Output {
    /// The name under which it is listed and revoked.
    id: u64,
    /// The token itself. Shown only now: the cluster keeps only a hash of its secret.
    token: String,
    uses: u32,
    /// Milliseconds since 1970.
    expires_ms: i64,
    /// What to run on the new host.
    command: String,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("token.create", "Make a token with which new nodes join", (Method::Post, "/v1/tokens"), run)
        .docs(
            "The token holds a secret of 256 random bits and the addresses of members; whoever has it can add nodes \
             to the cluster until it is used up, expires or is revoked. It is shown once. Repeated through another node \
             under the same Idempotency-Key, the call makes a second token: `muster token list` shows both, and `muster \
             token revoke` takes one back.",
        )
        .examples(&[
            Example { command: "muster token create", says: "a token for one node, good for a day" },
            Example { command: "muster token create --uses 10 --expires-in-minutes 60", says: "for ten nodes" },
        ])
        .permission(Permission::Admin)
        .scope(Scope::Leader)
        .idempotency(Idempotency::Keyed)
        .errors(WRITE_ERRORS)
        .human(Human::Text(text))
}

async fn run(mut call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    // The secret is made here, and the cluster keeps only its hash: a retry elsewhere gives another token, not half of one.
    call.once = None;
    let mut secret = [0; 32];
    call.context.random.fill(&mut secret).map_err(failure)?;
    let expires = call.clock.now().wall.plus(Millis(u64::from(input.expires_in_minutes) * 60_000));
    let create = Command::CreateToken { secret_hash: token_hash(&secret), expires, uses: input.uses };
    let (result, metadata) = command(&call, create).await?;
    let CommandResult::TokenCreated { token_id } = result else { return Err(unexpected()) };
    output(&metadata, token_id, secret, input.uses, expires)
}

fn output(metadata: &Metadata, id: u64, secret: [u8; 32], uses: u32, expires: Wall) -> Result<Output, OpError> {
    let seeds: Vec<TokenSeed> = metadata
        .nodes
        .values()
        .map(|node| &node.member.address)
        .take(SEEDS_MAX)
        .map(|address| TokenSeed {
            endpoint: address.endpoint,
            direct: address.direct.clone(),
            relay_url: address.relay_url.clone(),
        })
        .collect();
    if seeds.is_empty() {
        return Err(OpError::new(ErrorCode::FailedPrecondition, "this node knows of no member to join through"));
    }
    let incarnation = metadata.cluster_incarnation;
    let recovery = metadata.recovery.map(|id| TokenRecovery { incarnation, id });
    let token = JoinToken { cluster: metadata.cluster, id, secret, seeds, recovery };
    let command = if only_here(&token) {
        format!("muster join {token}")
    } else {
        format!("muster join {token} --peer-listen ADDR:PORT")
    };
    Ok(Output { id, token: token.to_string(), uses, expires_ms: expires.0, command })
}

fn text(output: &Value) -> String {
    let field = |name: &str| output.get(name).map(ops::human::text).unwrap_or_default();
    let note = match field("token").parse() {
        Ok(token) if only_here(&token) => {
            "Only this host can use it, for the members listen for peers on loopback: start members with \
             --peer-listen ADDR:PORT to let others in."
        }
        _ => "ADDR:PORT is an address of the new host that the members reach, such as 10.0.0.2:7401.",
    };
    format!("{}\n\nRun on the new host:\n\n  {}\n\n{note}", field("token"), field("command"))
}

/// Whether every member that the token names can be reached from its own host alone.
fn only_here(token: &JoinToken) -> bool {
    let loopback = |text: &String| text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    token.seeds.iter().all(|seed| seed.relay_url.is_none() && seed.direct.iter().all(loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_from_where_a_token_can_be_used() {
        for (direct, here) in [
            (&["127.0.0.1:7401"][..], true),
            (&["127.0.0.1:7401", "[::1]:7401"], true),
            (&["127.0.0.1:7401", "10.0.0.1:7401"], false),
        ] {
            let direct = direct.iter().map(ToString::to_string).collect();
            let seeds = vec![TokenSeed { endpoint: base::EndpointId([1; 32]), direct, relay_url: None }];
            let token = JoinToken { cluster: base::ClusterId([2; 16]), id: 1, secret: [3; 32], seeds, recovery: None };
            assert_eq!(only_here(&token), here, "{token:?}");
            let shown = text(&serde_json::json!({ "token": token.to_string(), "command": "muster join" }));
            assert_eq!(shown.contains("Only this host can use it"), here, "{shown}");
        }
    }
}
