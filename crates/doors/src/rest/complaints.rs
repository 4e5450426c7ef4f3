//! One log line, not a thousand: what strangers send may fill a connection, but not the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line in this time.
const QUIET: Duration = Duration::from_secs(1);

/// Says when a line may be written, and counts those that may not.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Complaints {
    /// Whether a line may be written now; if so, how many were held back since the last one.
    pub(super) fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.duration_since(last) < QUIET) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_a_second_and_the_others_are_counted() {
        let complaints = Complaints::default();
        let start = Instant::now();
        assert_eq!(complaints.allow_at(start), Some(0));
        assert_eq!(complaints.allow_at(start), None);
        assert_eq!(complaints.allow_at(start + QUIET - Duration::from_millis(1)), None);
        assert_eq!(complaints.allow_at(start + QUIET), Some(2));
        assert_eq!(complaints.allow_at(start + QUIET * 2), Some(0));
    }
}
