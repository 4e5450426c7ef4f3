//! Commands that are carried out once, whoever sends them, however often: what a client repeats through another node, or
//! another process of the same, under the same Idempotency-Key. Within one process the session does that already.

use base::limits::{IDEMPOTENCY_KEPT, ONCE_MAX};
use base::simulation::{Mark, Plant, mark, planted};
use base::{ErrorCode, Wall};
use imbl::OrdMap;
use minicbor::{Decode, Encode};

use crate::apply::{Context, refuse};
use crate::{Command, CommandResult, Metadata};

/// The name of such a command.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Encode, Decode)]
#[cbor(transparent)]
pub struct OnceKey(#[cbor(n(0), with = "minicbor::bytes")] pub [u8; 16]);

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct OnceRecord {
    /// Index at which it was carried out.
    #[n(0)]
    pub index: u64,
    #[n(1)]
    pub at: Wall,
    #[n(2)]
    pub result: CommandResult,
}

/// The results that are kept: for [`IDEMPOTENCY_KEPT`], and [`ONCE_MAX`] of them at most.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OnceTable {
    pub records: OrdMap<OnceKey, OnceRecord>,
    /// The oldest first.
    order: OrdMap<u64, OnceKey>,
}

impl OnceTable {
    pub(crate) fn insert(&mut self, key: OnceKey, record: OnceRecord) {
        self.order.insert(record.index, key);
        self.records.insert(key, record);
    }

    fn forget_old(&mut self, now: Wall) {
        while let Some((index, key)) = self.order.get_min().copied() {
            let kept = |record: &OnceRecord| record.at.plus(IDEMPOTENCY_KEPT) >= now;
            if self.records.len() <= ONCE_MAX && self.records.get(&key).is_some_and(kept) {
                return;
            }
            self.order.remove(&index);
            self.records.remove(&key);
        }
    }
}

impl Metadata {
    pub(crate) fn apply_once(&mut self, context: Context, key: OnceKey, command: &Command) -> CommandResult {
        if matches!(command, Command::Once { .. }) {
            return refuse(ErrorCode::InvalidArgument, "a command that is carried out once holds another one");
        }
        self.once.forget_old(context.now);
        if let Some(known) = self.once.records.get(&key).filter(|_| !planted(Plant::OnceForgotten)) {
            mark(Mark::CommandOnceAgain);
            return known.result.clone();
        }
        let result = self.dispatch(context, command);
        // What was refused changed nothing, and may be tried again.
        if !matches!(result, CommandResult::Refused { .. }) {
            self.once.insert(key, OnceRecord { index: context.index, at: context.now, result: result.clone() });
        }
        result
    }
}
