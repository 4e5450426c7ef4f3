//! Puts keys, one after the other, and remembers what each must hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use serde_json::json;

use super::reader::Put;
use super::watcher::Change;
use super::{Acknowledged, LoadPlan};
use crate::http::Api;

/// One attempt ends after this long, on the node too: long before the same key is written again.
pub(super) const ATTEMPT: Duration = Duration::from_secs(3);
/// Before the next attempt.
const RETRY: Duration = Duration::from_millis(10);

/// What one writer did.
#[derive(Debug, Default)]
pub struct Written {
    pub(crate) prefix: String,
    /// Every key by its number: what it must hold at least, and what it may hold instead.
    pub(crate) keys: BTreeMap<u64, Held>,
    pub acknowledged: Vec<Acknowledged>,
    /// The same, as changes that a watcher must have been told.
    pub(crate) puts: Vec<Change>,
    /// So many rounds were begun, from 1 on.
    pub(crate) rounds: u64,
    /// From the first attempt to the acknowledgement.
    pub took: Vec<Duration>,
    pub failures: Vec<String>,
}

/// A key's history, as far as it matters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// The last value that was acknowledged.
    pub acknowledged: Option<u64>,
    /// Later ones whose outcome is unknown.
    pub perhaps: Vec<u64>,
}

/// Puts until it is told to stop. Some of what was acknowledged is offered to a reader, which takes it if it has time.
pub(super) fn write(
    number: usize,
    plan: &LoadPlan,
    nodes: &[SocketAddr],
    stop: &AtomicBool,
    reader: Option<&SyncSender<Put>>,
) -> Written {
    let apis: Vec<Api> = nodes.iter().map(|node| Api::with_deadline(*node, ATTEMPT)).collect();
    let mut done = Written { prefix: format!("{}/{number}/", plan.topic), ..Written::default() };
    // Each begins with another node, and stays with one as long as it serves.
    let mut node = number;
    for round in 1.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        done.rounds = round;
        let key = round % plan.keys;
        let path = format!("/v1/kv/{}", done.path(key));
        let body = json!({ "value": value(round, plan.value_bytes) });
        let began = Instant::now();
        let outcome = retried(&apis, &mut node, plan.deadline, |api| {
            let attempted = Instant::now();
            let answer = api.put(&path, &body).map_err(|error| format!("{error:#}"))?;
            if answer.status != 200 {
                return Err(format!("{} {}", answer.status, answer.body));
            }
            // 0, which no change has, if it says none.
            let revision = answer.body["revision"].as_u64().unwrap_or_default();
            Ok((Acknowledged { attempted, at: Instant::now() }, revision))
        });
        let held = done.keys.entry(key).or_default();
        match outcome {
            Ok((acknowledged, revision)) => {
                *held = Held { acknowledged: Some(round), perhaps: Vec::new() };
                done.took.push(acknowledged.at - began);
                done.acknowledged.push(acknowledged);
                done.puts.push(Change { revision, writer: number, key, round });
                if let Some(reader) = reader
                    && round.is_multiple_of(plan.puts_per_read)
                {
                    // A reader that is busy takes none: nobody waits for it.
                    let _ = reader.try_send(Put { path, round, node });
                }
            }
            Err(said) => {
                held.perhaps.push(round);
                done.failures
                    .push(format!("key {key} of writer {number} was not put within {:?}: {said}", plan.deadline));
            }
        }
        std::thread::sleep(plan.writer_pause);
    }
    done
}

/// Tries an operation at one node, and through the next ones until its deadline is over. The node that it ends with is the
/// one that did it; of a failure, what was said last.
pub(super) fn retried<T>(
    apis: &[Api],
    node: &mut usize,
    deadline: Duration,
    attempt: impl Fn(&Api) -> Result<T, String>,
) -> Result<T, String> {
    let began = Instant::now();
    loop {
        let said = match attempt(&apis[*node % apis.len()]) {
            Ok(done) => return Ok(done),
            Err(said) => said,
        };
        *node += 1;
        if began.elapsed() >= deadline {
            return Err(said);
        }
        std::thread::sleep(RETRY);
    }
}

/// What a key is given in a round.
fn value(round: u64, bytes: usize) -> String {
    format!("{round:<bytes$}")
}

/// In which round a value was given; none if it never was, to the last byte.
pub(super) fn round_of(text: &str, bytes: usize) -> Option<u64> {
    text.trim_end().parse().ok().filter(|round| value(*round, bytes) == text)
}

impl Written {
    /// A key's name in a path.
    fn path(&self, key: u64) -> String {
        format!("{}{key:06}", self.prefix).replace('/', "%2F")
    }

    /// Whether a key may hold this.
    pub(crate) fn may_hold(&self, key: u64, value: Option<u64>) -> bool {
        let Some(held) = self.keys.get(&key) else { return value.is_none() };
        value == held.acknowledged || value.is_some_and(|value| held.perhaps.contains(&value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_was_changed_is_of_no_round() {
        assert_eq!((value(12, 4).as_str(), value(12345, 4).as_str()), ("12  ", "12345"));
        assert_eq!((round_of("12  ", 4), round_of("12345", 4)), (Some(12), Some(12345)));
        for changed in ["12", "12 ", "12   ", "012 ", "+12 ", " 12 ", "", "x"] {
            assert_eq!(round_of(changed, 4), None, "{changed:?}");
        }
    }

    #[test]
    fn a_key_holds_what_was_acknowledged_last_or_what_nobody_knows_the_outcome_of() {
        let held = |acknowledged, perhaps: &[u64]| Held { acknowledged, perhaps: perhaps.to_vec() };
        let keys = BTreeMap::from([(1, held(Some(5), &[])), (2, held(Some(6), &[7])), (3, held(None, &[8]))]);
        let done = Written { keys, ..Written::default() };
        assert!(done.may_hold(1, Some(5)));
        assert!(!done.may_hold(1, Some(4)), "older than what was acknowledged");
        assert!(!done.may_hold(1, None), "lost");
        assert!(done.may_hold(2, Some(6)) && done.may_hold(2, Some(7)) && !done.may_hold(2, None));
        assert!(done.may_hold(3, None) && done.may_hold(3, Some(8)));
        assert!(!done.may_hold(9, Some(1)), "nobody wrote it");
    }
}
