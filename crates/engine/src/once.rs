//! Requests of other nodes that must not be carried out twice, however often they arrive.

use std::collections::BTreeSet;

use base::limits::FORWARDS_REMEMBERED_MAX;

/// Requests of one node that were carried out here and must not be again, by their ids, which the node counts up. A
/// request so late that this many younger ones overtook it is taken for a repeat: its node hears nothing, and reports an
/// unknown outcome.
#[derive(Default)]
pub(crate) struct Once {
    below: u64,
    seen: BTreeSet<u64>,
}

impl Once {
    /// Whether this id comes for the first time.
    pub fn first_time(&mut self, id: u64) -> bool {
        if id < self.below || !self.seen.insert(id) {
            return false;
        }
        if self.seen.len() > FORWARDS_REMEMBERED_MAX
            && let Some(oldest) = self.seen.pop_first()
        {
            self.below = oldest + 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_be_done_twice_is_done_once_in_whatever_order_it_comes() {
        let mut once = Once::default();
        for id in [5, 3, 9] {
            assert!(once.first_time(id));
            assert!(!once.first_time(id), "{id} again");
        }
        // The memory is bounded: what was forgotten counts as done, never as new.
        for id in 100..100 + FORWARDS_REMEMBERED_MAX as u64 {
            assert!(once.first_time(id));
        }
        assert!(once.seen.len() <= FORWARDS_REMEMBERED_MAX);
        assert!(!once.first_time(3) && !once.first_time(9) && !once.first_time(7));
    }
}
