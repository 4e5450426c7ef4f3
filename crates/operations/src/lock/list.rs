//! `lock.list`: who holds which lock, and who waits.

use std::collections::BTreeSet;

use ops::{Call, Cell, Column, Example, Human, Method, OpError, Operation, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PREFIX, owner_of, prefix_of, queue};
use crate::Ports;
use crate::common::{READ_ERRORS, read};
use crate::kv::LIMITS;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Answer from what this node knows, without asking the leader.
    #[serde(default)]
    stale: bool,
}

#[derive(Serialize, JsonSchema)]
struct Output {
    locks: Vec<LockView>,
}

#[derive(Serialize, JsonSchema)]
struct LockView {
    name: String,
    /// The lease by which it is held.
    lease: u64,
    /// The holder's fencing token.
    token: u64,
    /// As the holder said.
    owner: String,
    /// How many wait for it.
    waiting: usize,
    /// The leases by which they wait, in order; lock.release takes one out of the queue.
    waiting_leases: Vec<u64>,
}

const COLUMNS: &[Column] = &[
    Column::plain("LOCK", "/name"),
    Column::plain("LEASE", "/lease"),
    Column::plain("TOKEN", "/token"),
    Column::plain("OWNER", "/owner"),
    Column::plain("WAITING", "/waiting"),
    Column { title: "THEIR LEASES", pointer: "/waiting_leases", cell: Cell::List },
];

pub(crate) fn operation() -> Operation<Ports> {
    Operation::new("lock.list", "List the locks that are held", (Method::Get, "/v1/locks"), run)
        .docs("A lock that nobody holds does not exist.")
        .examples(&[Example { command: "muster lock list", says: "who holds what, and how many wait" }])
        .scope(Scope::Leader)
        .errors(READ_ERRORS)
        .limits(LIMITS)
        .aliases(&["ls"])
        .human(Human::Table { rows: "/locks", columns: COLUMNS, empty: "no locks" })
}

async fn run(call: Call<Ports>, input: Input) -> Result<Output, OpError> {
    let metadata = read(&call, input.stale).await?;
    let name = |key: &str| Some(key.strip_prefix(PREFIX)?.rsplit_once('/')?.0.to_owned());
    let names: BTreeSet<String> = metadata.kv.range(PREFIX, None).filter_map(|(key, _)| name(key)).collect();
    let mut locks = Vec::new();
    for name in names {
        let queue = queue(&metadata, &name);
        let Some(((lease, token), waiting)) = queue.split_first() else { continue };
        let prefix = prefix_of(&name);
        let key = metadata.kv.keys_of(*lease).find(|key| key.starts_with(&prefix));
        let record = key.and_then(|key| metadata.kv.key(key));
        let owner = record.map(|record| owner_of(&record.value)).unwrap_or_default();
        let waiting_leases: Vec<u64> = waiting.iter().map(|(lease, _)| lease.0).collect();
        let waiting = waiting.len();
        locks.push(LockView { name, lease: lease.0, token: *token, owner, waiting, waiting_leases });
    }
    Ok(Output { locks })
}
