//! Room for the state of `__meta`: a command that could make it larger than a checkpoint can carry is not proposed. Once the
//! state had outgrown that, no node could make a checkpoint and none could join, and the log would grow for ever.
//!
//! How large the state is shows only when it is encoded, for a checkpoint. What was applied since, and what is proposed and
//! not applied yet, counts with the most that it can have added ([`Command::growth_max`]). When that may have taken half of
//! what was left, the state is encoded anew. So every node knows a size that its state does not exceed, whoever leads next
//! too.
//!
//! Only proposals are refused, by what one node has counted: applying gives the same everywhere. A quarter of the bound is
//! kept for what is never refused: that things go, and what nodes say of themselves.

use std::collections::BTreeMap;

use base::{ErrorCode, Millis, Mono};
use metadata::Command;

use crate::RequestError;
use crate::core::NodeCore;
use crate::requests::error;

/// An entry that changes no table: the state names its index.
const INDEX_BYTES: u64 = 16;

/// Between two encodings for no other reason than that something was refused, ...
const LOOK_INTERVAL: Millis = Millis(5_000);
/// ... and where something was deleted since.
const LOOK_AGAIN: Millis = Millis(500);

/// How large a state may be that takes more in, in bytes, if a checkpoint may have that many.
fn limit(checkpoint_bytes_max: u64) -> u64 {
    checkpoint_bytes_max - checkpoint_bytes_max / 4
}

/// What is known of the size of the state, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// When it was last encoded.
    encoded: u64,
    /// The most that was added after that and before an encoding that is under way.
    before: u64,
    /// The most that was added since.
    added: u64,
    /// The same of what this node has proposed and not applied, by index, and all of it together.
    proposed: BTreeMap<u64, u64>,
    under_way: u64,
    /// Something was refused since the state was last encoded: it is to be known whether that was right.
    refused: bool,
    /// When it was last encoded for that.
    looked: Option<Mono>,
    /// Commands were applied since that may have taken something away.
    shrunk: bool,
}

impl Room {
    /// The state cannot be larger, once all that is under way is applied.
    fn most(&self) -> u64 {
        self.encoded + self.before + self.added + self.under_way
    }

    /// This node proposed a command at `index`.
    pub fn proposed(&mut self, index: u64, growth: u64) {
        let replaced = self.proposed.insert(index, growth).unwrap_or(0);
        self.under_way = self.under_way + growth - replaced;
    }

    /// The entry at `index` was applied; `command`: what it held, and in how many bytes.
    pub fn applied(&mut self, index: u64, command: Option<(&Command, usize)>) {
        self.added += command.map_or(INDEX_BYTES, |(command, bytes)| command.growth_max(bytes));
        self.shrunk |= command.is_some_and(|(command, _)| !command.fills_state());
        while let Some(first) = self.proposed.first_entry().filter(|first| *first.key() <= index) {
            self.under_way -= first.remove();
        }
    }

    /// Whether the state is to be encoded, so that its size is known.
    pub fn is_due(&self, checkpoint_bytes_max: u64, now: Mono) -> bool {
        let limit = limit(checkpoint_bytes_max);
        let half_of_the_rest = limit.saturating_sub(self.encoded) / 2;
        // Where nothing is left there is no need to know it, unless somebody asks; and he may ask all the time.
        let interval = if self.shrunk { LOOK_AGAIN } else { LOOK_INTERVAL };
        let asked = self.refused && self.looked.is_none_or(|at| now.since(at) >= interval);
        self.added > 0 && (asked || self.before + self.added >= half_of_the_rest.max(limit / 64))
    }

    /// The state is being encoded as it is now.
    pub fn encoding(&mut self, now: Mono) {
        self.before += std::mem::take(&mut self.added);
        if std::mem::take(&mut self.refused) {
            (self.looked, self.shrunk) = (Some(now), false);
        }
    }

    /// The state that was being encoded has that many bytes.
    pub fn encoded(&mut self, bytes: u64) {
        let most = self.encoded + self.before;
        debug_assert!(bytes <= most, "the state has {bytes} bytes, and was thought to have {most} at most");
        (self.encoded, self.before) = (bytes, 0);
    }

    /// This node leads anew: what it proposed before was applied, or replaced by another leader.
    pub fn forget_proposed(&mut self) {
        self.proposed.clear();
        self.under_way = 0;
    }

    /// The whole state is another, of that many bytes.
    pub fn replaced(&mut self, bytes: u64) {
        (self.encoded, self.before, self.added) = (bytes, 0, 0);
    }
}

impl NodeCore {
    /// How much a command may add, or why there is no room for it.
    pub(crate) fn room_for(&mut self, command: &Command, bytes: usize) -> Result<u64, RequestError> {
        let growth = command.growth_max(bytes);
        let (room, limit) = (&mut self.room, limit(self.config.checkpoint_bytes_max));
        if !command.fills_state() || room.most() + growth <= limit {
            return Ok(growth);
        }
        room.refused = true;
        let encoded = room.encoded;
        if encoded + growth > limit {
            let message = format!(
                "the cluster's state is full: at its last checkpoint it had {encoded} of {limit} bytes, and this may \
                 add {growth}. Delete topics, VMs or keys first"
            );
            return Err(error(ErrorCode::TooLarge, message));
        }
        // The next encoding shows how much of what was counted is really there.
        let message = "the cluster's state may be full: that is being looked at, try again";
        Err(error(ErrorCode::Busy, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 4_000_000;

    fn put(bytes: usize) -> Command {
        let value = bytes::Bytes::from(vec![7; bytes]);
        Command::PutKey { key: "k".into(), value, expect: None, life: metadata::KeyLife::Lasting }
    }

    #[test]
    fn what_is_proposed_or_applied_counts_once_and_until_it_is_measured() {
        let (mut room, put) = (Room::default(), put(1_000));
        let growth = put.growth_max(1_000);
        room.replaced(500);
        room.proposed(7, growth);
        room.proposed(8, growth);
        // Another leader's entry came in its place, and then this node led again.
        room.proposed(8, growth);
        assert_eq!(room.most(), 500 + 2 * growth);
        room.applied(7, Some((&put, 1_000)));
        assert_eq!(room.most(), 500 + 2 * growth);
        room.encoding(Mono(0));
        room.applied(9, None);
        assert_eq!((room.most(), room.under_way, room.proposed.len()), (500 + growth + INDEX_BYTES, 0, 0));
        room.encoded(1_600);
        assert_eq!(room.most(), 1_600 + INDEX_BYTES);
    }

    #[test]
    fn it_is_measured_when_half_of_what_was_left_may_be_gone_or_somebody_was_refused() {
        let mut room = Room::default();
        room.replaced(1_000_000);
        let put = put(100_000);
        let mut applied = 0;
        while !room.is_due(MAX, Mono(0)) {
            applied += 1;
            room.applied(applied, Some((&put, 100_000)));
        }
        // Of 3,000,000 bytes 2,000,000 were left, and a put counts with 204,096.
        assert_eq!(applied, 5);
        room.encoding(Mono(0));
        room.encoded(1_100_000);
        assert!(!room.is_due(MAX, Mono(0)));
        room.refused = true;
        assert!(!room.is_due(MAX, Mono(0)), "nothing was applied since");
        room.applied(applied + 1, None);
        assert!(room.is_due(MAX, Mono(0)));
        // Whoever goes on asking has it encoded again after a while, and not each time.
        room.encoding(Mono(0));
        room.encoded(1_100_000);
        room.refused = true;
        room.applied(applied + 2, None);
        let at = |millis: u64| Mono(millis * 1_000_000);
        assert!(!room.is_due(MAX, at(LOOK_INTERVAL.0 - 1)));
        assert!(room.is_due(MAX, at(LOOK_INTERVAL.0)));
        assert!(!room.is_due(MAX, at(LOOK_AGAIN.0)));
        let delete = Command::DeleteKeys { key: "k".into(), prefix: false, expect: None };
        room.applied(applied + 3, Some((&delete, 50)));
        assert!(room.is_due(MAX, at(LOOK_AGAIN.0)));
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "was thought to have")]
    fn a_state_that_grew_more_than_was_counted_is_noticed() {
        let mut room = Room::default();
        room.replaced(100);
        room.encoding(Mono(0));
        room.encoded(101);
    }
}
