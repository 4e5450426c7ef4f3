//! Whether the journal's disk moves.

use base::{Millis, Mono};
use journal::Journal;

/// So many election timeouts a round may take on a disk that moves.
const SLOW: u64 = 3;
/// Between two attempts to hand everything over: each takes a while to be carried out, and is work itself.
const AGAIN: Millis = Millis(250);

/// What was seen of it.
#[derive(Debug, Default)]
pub(crate) struct DiskWatch {
    /// The last durable round, and when it was seen first, or when nothing was outstanding.
    moved: (u64, Mono),
    handed_over: Option<Mono>,
}

impl DiskWatch {
    /// To be asked at each tick.
    pub fn is_stuck(&mut self, journal: &Journal, patience: Millis, now: Mono) -> bool {
        self.look(journal.durable_round(), journal.oldest_pending_since(), patience, now)
    }

    fn look(&mut self, durable: u64, pending: Option<Mono>, patience: Millis, now: Mono) -> bool {
        if pending.is_none() || self.moved.0 != durable {
            self.moved = (durable, now);
        }
        let stands = pending.is_some_and(|since| now.since(since.max(self.moved.1)) > patience);
        let slow = pending.is_some_and(|since| now.since(since) > Millis(patience.0 * SLOW));
        if !(stands || slow) {
            self.handed_over = None;
        }
        stands || slow
    }

    /// Whether it is time to hand over what is led here, of a disk that is stuck.
    pub fn hands_over(&mut self, now: Mono) -> bool {
        let due = self.handed_over.is_none_or(|at| now.since(at) >= AGAIN);
        if due {
            self.handed_over = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Millis = Millis(1_000);

    fn at(ms: u64) -> Mono {
        Mono(ms * 1_000_000)
    }

    #[test]
    fn a_disk_is_stuck_when_nothing_becomes_durable_and_not_when_rounds_wait_for_a_slow_core() {
        let mut watch = DiskWatch::default();
        assert!(!watch.look(7, None, PATIENCE, at(100)));
        assert!(!watch.look(7, Some(at(110)), PATIENCE, at(1_100)));
        assert!(watch.look(7, Some(at(110)), PATIENCE, at(1_111)), "nothing for longer than an election timeout");
        assert!(!watch.look(8, Some(at(200)), PATIENCE, at(1_200)), "it moves again");
        assert!(!watch.look(9, Some(at(1_100)), PATIENCE, at(2_190)), "each waits for long, and the disk moves");
        assert!(!watch.look(10, Some(at(1_900)), PATIENCE, at(3_100)));
        assert!(watch.look(11, Some(at(1_900)), PATIENCE, at(4_901)), "that long is as good as stuck");
    }

    #[test]
    fn what_is_led_is_handed_over_now_and_then_while_the_disk_is_stuck_and_at_once_the_next_time() {
        let mut watch = DiskWatch::default();
        assert!(watch.look(1, Some(at(1)), PATIENCE, at(5_000)));
        assert!(watch.hands_over(at(5_000)));
        assert!(!watch.hands_over(at(5_249)));
        assert!(watch.hands_over(at(5_250)));
        assert!(!watch.look(2, None, PATIENCE, at(5_260)));
        assert!(watch.hands_over(at(5_270)));
    }
}
