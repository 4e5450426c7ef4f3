//! Results kept under (principal, operation, Idempotency-Key), so that a retry gets the first call's result.
//!
//! Kept in the memory of the node that took the call. Through another node, or after a restart, the retry runs again, and
//! the cluster recognises its commands (see [`crate::Once`]). Only successes are kept; a failure may be tried again under the same key.
//! Of an input only a digest is kept: a thousand values of a mebibyte each would be a gibibyte.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use base::{ErrorCode, Mono, limits};
use serde_json::Value;

use crate::OpError;

type Key = (String, &'static str, String);
type Table = Arc<Mutex<BTreeMap<Key, Entry>>>;

struct Entry {
    /// Of key and input: [`crate::Once::digest`].
    call: [u8; 32],
    /// `None` while the first call is under way.
    result: Option<Value>,
    since: Mono,
}

#[derive(Default)]
pub(crate) struct Results {
    table: Table,
}

/// What to do with a call that carries a key.
pub(crate) enum Claim {
    /// Carry it out.
    First(Turn),
    /// It was carried out before, with this result.
    Again(Value),
}

/// The right to carry out the call; dropping it without a result lets the next one try.
pub(crate) struct Turn {
    table: Table,
    key: Option<Key>,
}

impl Turn {
    /// Keeps the call's result.
    pub fn keep(mut self, result: &Value, now: Mono) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.key.take().and_then(|key| table.get_mut(&key)) {
            entry.result = Some(result.clone());
            entry.since = now;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        }
    }
}

impl Results {
    pub fn claim(
        &self,
        principal: &str,
        operation: &'static str,
        key: &str,
        call: [u8; 32],
        now: Mono,
    ) -> Result<Claim, OpError> {
        let key = (principal.to_owned(), operation, key.to_owned());
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = table.get(&key) {
            return match &entry.result {
                _ if entry.call != call => Err(OpError::new(
                    ErrorCode::InvalidArgument,
                    format!("the Idempotency-Key was used before for another {operation}"),
                )
                .hint("choose a new key for every new request, and keep it for its retries")),
                Some(result) if now.since(entry.since) <= limits::IDEMPOTENCY_KEPT => Ok(Claim::Again(result.clone())),
                Some(_) => Ok(Claim::First(start(&self.table, &mut table, key, call, now))),
                None => Err(OpError::new(ErrorCode::Busy, "the first call with this Idempotency-Key is under way")
                    .hint("wait for it, then try again")),
            };
        }
        if table.len() >= limits::IDEMPOTENCY_RESULTS_MAX {
            table.retain(|_, entry| entry.result.is_none() || now.since(entry.since) <= limits::IDEMPOTENCY_KEPT);
        }
        if table.len() >= limits::IDEMPOTENCY_RESULTS_MAX {
            let oldest = table.iter().filter(|(_, e)| e.result.is_some()).min_by_key(|(_, e)| e.since);
            match oldest.map(|(key, _)| key.clone()) {
                Some(oldest) => drop(table.remove(&oldest)),
                None => return Err(OpError::new(ErrorCode::Busy, "too many calls with an Idempotency-Key at once")),
            }
        }
        Ok(Claim::First(start(&self.table, &mut table, key, call, now)))
    }
}

fn start(shared: &Table, table: &mut BTreeMap<Key, Entry>, key: Key, call: [u8; 32], now: Mono) -> Turn {
    table.insert(key.clone(), Entry { call, result: None, since: now });
    Turn { table: Arc::clone(shared), key: Some(key) }
}

#[cfg(test)]
mod tests {
    use base::Millis;
    use serde_json::json;

    use super::*;

    fn claim(results: &Results, key: &str, input: &Value, ms: u64) -> Result<Claim, ErrorCode> {
        let call = crate::Once::of("a", "op", key, input).digest();
        results.claim("a", "op", key, call, Mono(0).plus(Millis(ms))).map_err(|e| e.code)
    }

    #[test]
    fn a_retry_gets_the_first_result_until_it_is_forgotten() {
        let results = Results::default();
        let input = json!({"n": 1});
        let Ok(Claim::First(turn)) = claim(&results, "k", &input, 0) else { panic!("the first is carried out") };
        assert_eq!(claim(&results, "k", &input, 0).err(), Some(ErrorCode::Busy), "while it is under way");
        turn.keep(&json!("done"), Mono(0));
        assert!(matches!(claim(&results, "k", &input, 1), Ok(Claim::Again(value)) if value == "done"));
        assert_eq!(claim(&results, "k", &json!({"n": 2}), 1).err(), Some(ErrorCode::InvalidArgument));
        let late = limits::IDEMPOTENCY_KEPT.0 + 1;
        assert!(matches!(claim(&results, "k", &input, late), Ok(Claim::First(_))));
    }

    #[test]
    fn a_failure_may_be_tried_again() {
        let results = Results::default();
        let input = json!({});
        drop(claim(&results, "k", &input, 0));
        assert!(matches!(claim(&results, "k", &input, 0), Ok(Claim::First(_))));
    }

    #[test]
    fn the_oldest_result_makes_room() {
        let results = Results::default();
        for n in 0..=limits::IDEMPOTENCY_RESULTS_MAX {
            let Ok(Claim::First(turn)) = claim(&results, &n.to_string(), &json!({}), 0) else { panic!("{n}") };
            turn.keep(&json!(n), Mono(n as u64));
        }
        assert_eq!(results.table.lock().unwrap().len(), limits::IDEMPOTENCY_RESULTS_MAX);
        assert!(matches!(claim(&results, "0", &json!({}), 1), Ok(Claim::First(_))));
    }
}
