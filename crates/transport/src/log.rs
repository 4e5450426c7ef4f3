//! One log line, not a thousand: repeated complaints about the same thing are held back for a while.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The same line again after this long.
const QUIET: Duration = Duration::from_secs(30);
/// Different lines remembered.
const LINES_MAX: usize = 256;

/// Remembers what was said when.
#[derive(Debug, Default)]
pub struct LogLimiter {
    said: Mutex<BTreeMap<String, Said>>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    held_back: u64,
}

impl LogLimiter {
    /// Whether a line about `what` may be written now; if so, how many were held back since the last one.
    pub fn allow(&self, what: &str) -> Option<u64> {
        self.allow_at(what, Instant::now())
    }

    fn allow_at(&self, what: &str, now: Instant) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = said.get_mut(what) {
            if now.duration_since(last.at) < QUIET {
                last.held_back += 1;
                return None;
            }
            last.at = now;
            return Some(std::mem::take(&mut last.held_back));
        }
        if said.len() >= LINES_MAX {
            said.retain(|_, last| now.duration_since(last.at) < QUIET);
        }
        if said.len() >= LINES_MAX {
            // So many different complaints within half a minute are an attack on the log: say no more.
            return None;
        }
        said.insert(what.to_owned(), Said { at: now, held_back: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_lines_are_held_back_and_counted_and_different_ones_are_bounded() {
        let limiter = LogLimiter::default();
        let start = Instant::now();
        assert_eq!(limiter.allow_at("a", start), Some(0));
        assert_eq!(limiter.allow_at("a", start), None);
        assert_eq!(limiter.allow_at("a", start), None);
        assert_eq!(limiter.allow_at("b", start), Some(0));
        assert_eq!(limiter.allow_at("a", start + QUIET), Some(2));
        let later = start + QUIET * 3;
        let said = (0..1_000).filter(|n| limiter.allow_at(&format!("line {n}"), later).is_some()).count();
        assert_eq!(said, LINES_MAX);
    }
}
