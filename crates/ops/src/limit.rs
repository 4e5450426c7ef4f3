//! How much one principal may ask of one operation: calls at once, and calls per second (a token bucket).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base::{ErrorCode, Mono};

use crate::{Limits, OpError};

type Key = (String, &'static str);

#[derive(Default)]
pub(crate) struct Limiter {
    table: Arc<Mutex<BTreeMap<Key, Bucket>>>,
}

struct Bucket {
    /// Thousandths of calls that may be made at once.
    tokens: u64,
    filled: Mono,
    under_way: u32,
}

/// A call under way; dropping it makes room for another.
pub(crate) struct Permit {
    table: Arc<Mutex<BTreeMap<Key, Bucket>>>,
    key: Key,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = table.get_mut(&self.key) {
            bucket.under_way = bucket.under_way.saturating_sub(1);
        }
    }
}

impl Limiter {
    pub fn admit(
        &self,
        principal: &str,
        operation: &'static str,
        limits: &Limits,
        now: Mono,
    ) -> Result<Permit, OpError> {
        let key = (principal.to_owned(), operation);
        let full = u64::from(limits.burst) * 1_000;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if !table.contains_key(&key) && table.len() >= base::limits::OPERATION_LIMITS_TRACKED_MAX {
            // A bucket idle for a minute has refilled, whatever its rate (burst / per_second is below that).
            table.retain(|_, bucket| bucket.under_way > 0 || now.since(bucket.filled).0 < 60_000);
            if table.len() >= base::limits::OPERATION_LIMITS_TRACKED_MAX {
                return Err(OpError::new(ErrorCode::Busy, "too many callers at once").hint("try again in a minute"));
            }
        }
        let bucket = table.entry(key.clone()).or_insert(Bucket { tokens: full, filled: now, under_way: 0 });
        if bucket.under_way >= limits.concurrent {
            let message = format!("{} calls of {operation} by {principal} are under way already", limits.concurrent);
            return Err(OpError::new(ErrorCode::Busy, message).hint("wait for one to end, then try again"));
        }
        let elapsed = now.since(bucket.filled).0;
        if elapsed > 0 {
            let refill = elapsed.saturating_mul(u64::from(limits.per_second));
            bucket.tokens = bucket.tokens.saturating_add(refill).min(full);
            bucket.filled = now;
        }
        let Some(left) = bucket.tokens.checked_sub(1_000) else {
            let message = format!("{principal} calls {operation} more than {} times a second", limits.per_second);
            return Err(OpError::new(ErrorCode::Busy, message).hint("wait a second, then try again"));
        };
        bucket.tokens = left;
        bucket.under_way += 1;
        Ok(Permit { table: Arc::clone(&self.table), key })
    }
}

#[cfg(test)]
mod tests {
    use base::Millis;

    use super::*;

    fn limits(concurrent: u32, per_second: u32, burst: u32) -> Limits {
        Limits { concurrent, per_second, burst, ..Limits::default() }
    }

    #[test]
    fn calls_at_once_are_counted_and_released() {
        let limiter = Limiter::default();
        let limits = limits(2, 1_000, 1_000);
        let first = limiter.admit("a", "op", &limits, Mono(0)).unwrap();
        let _second = limiter.admit("a", "op", &limits, Mono(0)).unwrap();
        assert_eq!(limiter.admit("a", "op", &limits, Mono(0)).err().map(|e| e.code), Some(ErrorCode::Busy));
        assert!(limiter.admit("b", "op", &limits, Mono(0)).is_ok(), "another principal has its own room");
        assert!(limiter.admit("a", "other", &limits, Mono(0)).is_ok(), "so has another operation");
        drop(first);
        assert!(limiter.admit("a", "op", &limits, Mono(0)).is_ok());
    }

    #[test]
    fn the_rate_holds_in_the_long_run_and_the_burst_after_a_pause() {
        let limiter = Limiter::default();
        let limits = limits(10, 2, 3);
        let mut admitted = 0;
        for ms in 0..10_000 {
            admitted += usize::from(limiter.admit("a", "op", &limits, Mono(0).plus(Millis(ms))).is_ok());
        }
        assert_eq!(admitted, 3 + 19, "a burst of 3, then 2 a second");
    }

    #[test]
    fn the_table_stays_bounded() {
        let limiter = Limiter::default();
        let limits = limits(1, 1, 1);
        for n in 0..base::limits::OPERATION_LIMITS_TRACKED_MAX {
            assert!(limiter.admit(&n.to_string(), "op", &limits, Mono(0)).is_ok());
        }
        assert_eq!(limiter.admit("late", "op", &limits, Mono(0)).err().map(|e| e.code), Some(ErrorCode::Busy));
        assert!(limiter.admit("late", "op", &limits, Mono(0).plus(Millis(60_000))).is_ok());
        assert_eq!(limiter.table.lock().unwrap().len(), 1);
    }
}
