//! `kv.watch`: the changes of keys, as they come, from a revision on, without gaps.

use std::collections::VecDeque;

use base::ErrorCode;
use base::limits::{API_WAITS_MAX, KV_VALUE_BYTES_MAX};
use futures::StreamExt;
use metadata::{KeyChange, KeyChanged, Metadata};
use ops::{Call, Example, Human, Limits, Method, OpError, Operation, Scope, Typed};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{KeyView, value_text, view};
use crate::Ports;
use crate::common::{READ_ERRORS, read};

/// Changes that are taken from the history at once; more only if they are of one revision, and those have no values. They are
/// what a watcher that does not read holds.
const PREPARED_MAX: usize = 256;
/// Nor are more taken above so many bytes, as the history counts them.
const PREPARED_BYTES_MAX: u64 = KV_VALUE_BYTES_MAX as u64;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Only keys that begin so; with `exact`, only this key.
    #[serde(default)]
    prefix: String,
    /// Only the key of that name.
    #[serde(default)]
    exact: bool,
    /// The first revision to tell of; by default what comes from now on.
    from_revision: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum What {
    /// The watch has begun: everything of later revisions follows.
    Watching,
    /// The key got a value.
    Put,
    /// The key was deleted.
    Deleted,
    /// The key's lease ended.
    Expired,
}

/// One change, or the beginning.
#[derive(Serialize, JsonSchema)]
struct Item {
    what: What,
    /// Of the change; all changes of one revision came at once. To go on later, watch from the next one.
    revision: u64,
    key: Option<String>,
    /// The key as it is then; null if it went.
    now: Option<KeyView>,
}

pub(crate) fn operation() -> Operation<Ports> {
    Operation::streaming("kv.watch", "Show the changes of keys as they come", (Method::Get, "/v1/kv-changes"), run)
        .docs(
            "Every change, in order, none left out and none twice: after a broken connection watch from the revision \
             behind the last one seen, through any node. The cluster keeps the last 65,536 changes (32 MiB of them); \
             who is further behind fails with `compacted`, and begins with kv.list and the revision that it gives.",
        )
        .examples(&[
            Example { command: "muster kv watch app/", says: "what happens to keys that begin with app/" },
            Example { command: "muster kv watch app/color --exact", says: "to this key" },
            Example { command: "muster kv watch --from-revision 1200", says: "also what has happened since" },
        ])
        .scope(Scope::Local)
        .errors(ERRORS)
        .limits(Limits { concurrent: API_WAITS_MAX, ..Limits::default() })
        .positional(&["prefix"])
        .human(Human::Text(text))
}

const ERRORS: &[ErrorCode] = &[
    ErrorCode::Compacted,
    ErrorCode::NotFound,
    ErrorCode::NoLeader,
    ErrorCode::NotLeader,
    ErrorCode::LeaderChanged,
    ErrorCode::Unreachable,
    ErrorCode::ShuttingDown,
];

/// It holds no state of the cluster: one of long ago keeps all that has been replaced since, and each watcher that does not
/// read may have one of another time.
struct Watching {
    call: Call<Ports>,
    input: Input,
    /// All up to here was told, or is ready.
    told: u64,
    /// As the history has them: their values are shared until they are told.
    ready: VecDeque<KeyChange>,
    over: bool,
}

async fn run(call: Call<Ports>, input: Input) -> Result<Typed<Item>, OpError> {
    debug_assert!(READ_ERRORS.iter().all(|code| ERRORS.contains(code)));
    let metadata = read(&call, false).await?;
    let told = match input.from_revision {
        None => metadata.applied,
        Some(from) if from > metadata.applied + 1 => {
            let problem = format!("is refused: the cluster is at revision {}", metadata.applied);
            return Err(OpError::field("from_revision", problem));
        }
        Some(from) => from.saturating_sub(1),
    };
    metadata.kv.changes_after(told).map(drop).map_err(|kept| compacted(told, kept))?;
    let begin = Item { what: What::Watching, revision: told, key: None, now: None };
    let watching = Watching { call, input, told, ready: VecDeque::new(), over: false };
    let changes = futures::stream::unfold(watching, |mut watching| async move {
        let item = watching.next().await?;
        Some((item, watching))
    });
    Ok(futures::stream::iter([Ok(begin)]).chain(changes).boxed())
}

fn compacted(told: u64, kept: u64) -> OpError {
    OpError::new(
        ErrorCode::Compacted,
        format!("the changes since revision {told} are not kept: only those since {kept}"),
    )
    .hint("begin anew: `muster kv list`, then watch from the revision behind the one that it gives")
}

impl Watching {
    async fn next(&mut self) -> Option<Result<Item, OpError>> {
        loop {
            if self.over {
                return None;
            }
            if let Some(change) = self.ready.pop_front() {
                return Some(Ok(item(&change)));
            }
            let metadata = self.call.context.core.metadata_after(self.told).await;
            if let Err(error) = self.prepare(&metadata) {
                self.over = true;
                return Some(Err(error));
            }
        }
    }

    /// The next changes that are wanted, of whole revisions.
    fn prepare(&mut self, metadata: &Metadata) -> Result<(), OpError> {
        let wanted = |change: &KeyChange| match self.input.exact {
            true => change.key == self.input.prefix,
            false => change.key.starts_with(&self.input.prefix),
        };
        let changes = metadata.kv.changes_after(self.told).map_err(|kept| compacted(self.told, kept))?;
        self.told = metadata.applied;
        let mut bytes = 0;
        for change in changes {
            let enough = self.ready.len() >= PREPARED_MAX || bytes >= PREPARED_BYTES_MAX;
            if enough && self.ready.back().is_some_and(|last| last.revision < change.revision) {
                self.told = change.revision - 1;
                break;
            }
            if wanted(change) {
                bytes += change.bytes();
                self.ready.push_back(change.clone());
            }
        }
        Ok(())
    }
}

fn item(change: &KeyChange) -> Item {
    let (what, now) = match &change.what {
        KeyChanged::Put(record) => (What::Put, Some(view(&change.key, record, true))),
        KeyChanged::Deleted => (What::Deleted, None),
        KeyChanged::Expired => (What::Expired, None),
    };
    Item { what, revision: change.revision, key: Some(change.key.clone()), now }
}

fn text(item: &Value) -> String {
    let key = ops::human::text(&item["key"]);
    match item["what"].as_str() {
        Some("watching") => String::new(),
        Some("put") => format!("{} put {key} {}", item["revision"], ops::human::one_line(&value_text(&item["now"]))),
        Some(what) => format!("{} {what} {key}", item["revision"]),
        None => String::new(),
    }
}
