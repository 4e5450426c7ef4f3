//! Watches the writers' keys through one node, again and again from the change behind the last one that it was told of:
//! whatever happens to the node meanwhile, every change must come, once, in order, and the same through all nodes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::writer::round_of;
use super::{LoadPlan, Written};
use crate::http::{Api, nobody_listened};

/// A watch begins anew after so long, so that where it begins is tried often.
const STREAM: Duration = Duration::from_secs(1);
/// Until it begins.
const ANSWER: Duration = Duration::from_secs(5);
/// Before the next one: the cluster keeps 32 MiB of changes, and `soak snapshot` puts large values.
const RETRY: Duration = Duration::from_millis(20);
/// From the load's end until its last change has come.
const CATCH_UP: Duration = Duration::from_secs(60);
/// The load goes on.
pub(super) const ENDLESS: u64 = u64::MAX;

/// A key was given a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub revision: u64,
    pub writer: usize,
    pub key: u64,
    pub round: u64,
}

/// What one watcher was told.
#[derive(Debug)]
pub struct Watched {
    /// The API of its node.
    pub(crate) node: SocketAddr,
    from: u64,
    pub(crate) changes: Vec<Change>,
    /// What should not have been said.
    failure: Option<String>,
    /// Why a watch did not begin, or ended before its time, the last time.
    said: String,
}

/// Watches until the change of the revision `until` has come, which may be set meanwhile.
pub(super) fn watch(node: SocketAddr, plan: &LoadPlan, from: u64, until: &AtomicU64) -> Watched {
    let mut done = Watched { node, from, changes: Vec::new(), failure: None, said: String::new() };
    let api = Api::following(node, ANSWER, STREAM);
    let mut over: Option<Instant> = None;
    while done.wants(until) {
        let ending = until.load(Ordering::SeqCst) != ENDLESS;
        if ending && over.get_or_insert_with(Instant::now).elapsed() >= CATCH_UP {
            break;
        }
        let path = format!("/v1/kv-changes?prefix={}%2F&from_revision={}", plan.topic, done.told() + 1);
        let answer = api.follow(&path, |line| {
            // One that ends a stream is no change; the next stream says more.
            let goes_on = done.take(line, plan).unwrap_or_else(|error| {
                done.failure = Some(format!("{error:#}"));
                false
            });
            goes_on && done.wants(until)
        });
        match answer {
            Ok(answer) if answer.status == 200 => {}
            // Not what is kept, or later than what there is: waiting does not help.
            Ok(answer) if [400, 410].contains(&answer.status) => done.failure = Some(answer.body.to_string()),
            Ok(answer) => done.said = answer.body.to_string(),
            // Nobody starts it again.
            Err(error) if ending && nobody_listened(&error) => break,
            Err(error) => done.said = format!("{error:#}"),
        }
        std::thread::sleep(RETRY);
    }
    done
}

impl Watched {
    /// The revision of the last change that it was told.
    fn told(&self) -> u64 {
        self.changes.last().map_or(self.from, |change| change.revision)
    }

    fn wants(&self, until: &AtomicU64) -> bool {
        self.failure.is_none() && self.told() < until.load(Ordering::SeqCst)
    }

    /// Takes a line of a stream; whether that goes on behind it.
    fn take(&mut self, line: &str, plan: &LoadPlan) -> anyhow::Result<bool> {
        let item: Value = serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        if !item["error"].is_null() {
            ensure!(!line.contains("compacted"), "{line}");
            line.clone_into(&mut self.said);
            return Ok(false);
        }
        let (revision, told) = (item["revision"].as_u64().context("no revision")?, self.told());
        match item["what"].as_str() {
            Some("watching") => {
                ensure!(revision == told, "it begins behind {revision}, not behind {told}");
            }
            Some("put") => {
                ensure!(revision > told, "revision {revision} comes after {told}");
                let change = change(&item, revision, plan).with_context(|| format!("what nobody put: {line}"))?;
                self.changes.push(change);
            }
            _ => bail!("what nobody did: {line}"),
        }
        Ok(true)
    }

    /// Of changes up to where it got: whether each that was acknowledged is there, and each that is there was given.
    fn check_told(&self, writers: &[Written], keys: u64) -> anyhow::Result<()> {
        let puts = writers.iter().flat_map(|writer| &writer.puts).filter(|put| put.revision <= self.told());
        for put in puts {
            let at = self.changes.binary_search_by_key(&put.revision, |change| change.revision);
            let told = at.ok().map(|at| self.changes[at]);
            ensure!(told == Some(*put), "{put:?} was acknowledged, and told was {told:?}");
        }
        let given = |change: &Change| {
            let rounds = writers.get(change.writer).map_or(0, |writer| writer.rounds);
            (1..=rounds).contains(&change.round) && change.key == change.round % keys
        };
        let alien = self.changes.iter().find(|change| !given(change));
        ensure!(alien.is_none(), "{alien:?} was never put");
        Ok(())
    }
}

fn change(item: &Value, revision: u64, plan: &LoadPlan) -> Option<Change> {
    let rest = item["key"].as_str()?.strip_prefix(&plan.topic)?.strip_prefix('/')?;
    let (writer, key) = rest.split_once('/')?;
    let round = round_of(item["now"]["value"].as_str()?, plan.value_bytes)?;
    Some(Change { revision, writer: writer.parse().ok()?, key: key.parse().ok()?, round })
}

/// Whether all watchers were told the same, and all that was acknowledged. Those of nodes that do not run need not have been
/// told all.
pub(super) fn check(
    watched: &[Watched],
    writers: &[Written],
    keys: u64,
    runs: impl Fn(SocketAddr) -> bool,
) -> anyhow::Result<()> {
    let Some(most) = watched.iter().max_by_key(|it| it.changes.len()) else { return Ok(()) };
    let last = last_put(writers);
    for it in watched {
        let context = || format!("the watcher of {}", it.node);
        if let Some(failure) = &it.failure {
            bail!("{} was told {failure}", context());
        }
        it.check_told(writers, keys).with_context(context)?;
        let differ = it.changes.iter().zip(&most.changes).position(|(one, other)| one != other);
        let pair = differ.map(|at| (it.changes[at], most.changes[at]));
        ensure!(pair.is_none(), "{} and that of {} were told different things: {pair:?}", context(), most.node);
        let complete = it.told() >= last || !runs(it.node);
        ensure!(complete, "{} got to revision {} of {last}; last it heard: {}", context(), it.told(), it.said);
    }
    Ok(())
}

/// The revision of the last change that was acknowledged.
pub(super) fn last_put(writers: &[Written]) -> u64 {
    writers.iter().flat_map(|writer| &writer.puts).map(|put| put.revision).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan() -> LoadPlan {
        LoadPlan { keys: 10, value_bytes: 4, ..LoadPlan::moderate() }
    }

    /// Of round `round` of writer 0, in the revision of ten times that.
    fn put(round: u64) -> Change {
        Change { revision: round * 10, writer: 0, key: round % 10, round }
    }

    /// Whose rounds 1, 2 and 12 were acknowledged; 13 was not.
    fn writers() -> [Written; 1] {
        [Written { puts: [1, 2, 12].map(put).to_vec(), rounds: 13, ..Written::default() }]
    }

    fn watched(changes: &[Change]) -> Watched {
        let node = SocketAddr::from(([127, 0, 0, 1], 1));
        Watched { node, from: 5, changes: changes.to_vec(), failure: None, said: String::new() }
    }

    fn line(revision: u64, key: &str, value: &str) -> String {
        json!({ "what": "put", "revision": revision, "key": key, "now": { "value": value } }).to_string()
    }

    fn refused(watched: &[Watched], why: &str) {
        let error = check(watched, &writers(), 10, |_| true).expect_err(why);
        assert!(format!("{error:#}").contains(why), "{error:#} is not that {why}");
    }

    #[test]
    fn what_all_were_told_and_was_put_is_enough() {
        let all = [1, 2, 12].map(put);
        check(&[watched(&all), watched(&all)], &writers(), 10, |_| true).unwrap();
        // An attempt whose answer was lost came too, and one whose outcome nobody knows.
        let lost = Change { revision: 15, ..put(2) };
        let more = watched(&[put(1), lost, put(2), put(12), put(13)]);
        check(&[more], &writers(), 10, |_| true).unwrap();
        // One whose node is gone got as far as it got.
        check(&[watched(&all), watched(&all[..1])], &writers(), 10, |_| false).unwrap();
        assert!(check(&[], &writers(), 10, |_| true).is_ok());
        assert_eq!(last_put(&writers()), 120);
    }

    #[test]
    fn a_gap_is_noticed_also_of_what_nobody_acknowledged() {
        refused(&[watched(&[put(1), put(12)])], "was acknowledged, and told was None");
        refused(&[watched(&[put(1), put(2)])], "got to revision 20 of 120");
        refused(&[watched(&[])], "got to revision 5 of 120");
        let lost = Change { revision: 15, ..put(2) };
        let (whole, gap) = (watched(&[put(1), lost, put(2), put(12)]), watched(&[put(1), put(2), put(12)]));
        refused(&[whole, gap], "were told different things");
    }

    #[test]
    fn a_changed_value_or_key_is_noticed() {
        refused(&[watched(&[put(1), Change { round: 1, ..put(2) }, put(12)])], "was acknowledged, and told was Some");
        refused(&[watched(&[put(1), put(2), put(12), put(14)])], "was never put");
        refused(&[watched(&[put(1), put(2), put(12), Change { key: 4, ..put(13) }])], "was never put");
        refused(&[watched(&[put(1), put(2), put(12), Change { writer: 1, ..put(13) }])], "was never put");
    }

    #[test]
    fn lines_are_taken_in_order_and_a_watch_goes_on_where_the_last_one_broke_off() {
        let mut it = watched(&[]);
        for (text, goes_on) in [
            (json!({ "what": "watching", "revision": 5 }).to_string(), true),
            (line(10, "load/0/000001", "1   "), true),
            (json!({ "error": { "code": "leader_changed" } }).to_string(), false),
            (json!({ "what": "watching", "revision": 10 }).to_string(), true),
            (line(20, "load/0/000002", "2   "), true),
        ] {
            assert_eq!(it.take(&text, &plan()).unwrap(), goes_on, "{text}");
        }
        assert_eq!((it.told(), it.changes.as_slice()), (20, [put(1), put(2)].as_slice()));
        assert!(it.wants(&AtomicU64::new(ENDLESS)) && it.wants(&AtomicU64::new(21)) && !it.wants(&AtomicU64::new(20)));
        for (text, why) in [
            (line(20, "load/0/000002", "2   "), "revision 20 comes after 20"),
            (line(10, "load/0/000001", "1   "), "revision 10 comes after 20"),
            (json!({ "what": "watching", "revision": 30 }).to_string(), "it begins behind 30, not behind 20"),
            (line(30, "load/0/000003", "3"), "what nobody put"),
            (line(30, "other/0/000003", "3   "), "what nobody put"),
            (json!({ "what": "deleted", "revision": 30, "key": "load/0/000003" }).to_string(), "what nobody did"),
            (json!({ "error": { "code": "compacted" } }).to_string(), "compacted"),
        ] {
            let error = it.take(&text, &plan()).expect_err(why);
            assert!(format!("{error:#}").contains(why), "{error:#} is not that {why}");
        }
        assert_eq!(it.told(), 20, "none of it was taken");
    }
}
