//! Reads keys back while their writer goes on, through another node than the one that acknowledged them. A read that begins
//! after a put was acknowledged must give that put's value or a later one, whoever leads by now and whatever was restarted,
//! killed or cut meanwhile.
//!
//! A key has one writer, whose rounds rise. So what may be read is any round of the key from the acknowledged one up to the
//! last that was begun: also one whose outcome nobody knows, but none before. An attempt is over long before its key is
//! written again ([`ATTEMPT`]), so that none comes late.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{bail, ensure};

use super::writer::{ATTEMPT, retried, round_of};
use super::{LoadPlan, Written};
use crate::http::Api;

/// A put that was acknowledged.
#[derive(Debug)]
pub(super) struct Put {
    pub path: String,
    pub round: u64,
    /// Which node acknowledged it.
    pub node: usize,
}

/// What one reader was told.
#[derive(Debug, Default)]
pub struct ReadBack {
    /// Whose keys it read.
    writer: usize,
    pub(super) found: Vec<Found>,
    pub failures: Vec<String>,
}

/// What one read gave.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The API of the node that answered.
    node: SocketAddr,
    /// The key's round that was acknowledged before the read began.
    round: u64,
    /// None if there was no such key.
    value: Option<String>,
}

/// A reader of one writer's keys. It ends when nobody can offer it any more. It is offered a put only while it waits for one:
/// what is read is read at once.
pub(super) fn start(
    writer: usize,
    plan: &LoadPlan,
    nodes: &Arc<[SocketAddr]>,
) -> (SyncSender<Put>, JoinHandle<ReadBack>) {
    let (offer, puts) = sync_channel(0);
    let (plan, nodes) = (plan.clone(), Arc::clone(nodes));
    (offer, std::thread::spawn(move || read(writer, &plan, &nodes, &puts)))
}

fn read(writer: usize, plan: &LoadPlan, nodes: &[SocketAddr], puts: &Receiver<Put>) -> ReadBack {
    let apis: Vec<Api> = nodes.iter().map(|node| Api::with_deadline(*node, ATTEMPT)).collect();
    let mut done = ReadBack { writer, ..ReadBack::default() };
    for put in puts {
        let mut node = another(put.node, done.found.len(), nodes.len());
        let outcome = retried(&apis, &mut node, plan.deadline, |api| {
            let answer = api.get(&put.path).map_err(|error| format!("{error:#}"))?;
            match answer.status {
                200 => Ok(Some(answer.body["value"].as_str().unwrap_or_default().to_owned())),
                404 => Ok(None),
                status => Err(format!("{status} {}", answer.body)),
            }
        });
        match outcome {
            Ok(value) => done.found.push(Found { node: nodes[node % nodes.len()], round: put.round, value }),
            Err(said) => done.failures.push(format!(
                "the key of round {} of writer {writer} was not read within {:?}: {said}",
                put.round, plan.deadline
            )),
        }
    }
    done
}

/// The others in turn; the same if there is no other.
fn another(node: usize, turn: usize, nodes: usize) -> usize {
    node + 1 + turn % (nodes - 1).max(1)
}

impl Found {
    /// Whether a writer that began so many rounds may have put it last.
    fn is_current(&self, rounds: u64, plan: &LoadPlan) -> bool {
        let round = self.value.as_deref().and_then(|value| round_of(value, plan.value_bytes));
        round.is_some_and(|round| (self.round..=rounds).contains(&round) && round % plan.keys == self.round % plan.keys)
    }
}

/// Whether no read gave what was older than what had been acknowledged, or what nobody put; and whether there were reads.
pub(super) fn check(readers: &[ReadBack], writers: &[Written], plan: &LoadPlan) -> anyhow::Result<()> {
    for reader in readers {
        let number = reader.writer;
        let rounds = writers.get(number).map_or(0, |writer| writer.rounds);
        if let Some(Found { node, round, value }) = reader.found.iter().find(|found| !found.is_current(rounds, plan)) {
            bail!(
                "stale: {node} gave {value:?} for the key of round {round} of writer {number}, which had been acknowledged"
            );
        }
    }
    let reads = readers.iter().map(|reader| reader.found.len()).sum::<usize>();
    ensure!(readers.is_empty() || reads > 0, "no key was read while the load went on");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it may be read after round 12 was acknowledged; the writer began 25 rounds.
    fn checked(value: Option<&str>) -> anyhow::Result<()> {
        let plan = LoadPlan { keys: 10, value_bytes: 4, ..LoadPlan::moderate() };
        let writers = [Written { rounds: 25, ..Written::default() }];
        let node = SocketAddr::from(([127, 0, 0, 1], 1));
        let found = vec![Found { node, round: 12, value: value.map(str::to_owned) }];
        check(&[ReadBack { found, ..ReadBack::default() }], &writers, &plan)
    }

    #[test]
    fn a_read_gives_what_was_acknowledged_or_what_was_put_later() {
        for value in ["12  ", "22  "] {
            checked(Some(value)).unwrap();
        }
    }

    #[test]
    fn a_stale_or_strange_value_is_noticed() {
        for (value, why) in [
            (Some("2   "), "older"),
            (None, "lost"),
            (Some("13  "), "another key's"),
            (Some("32  "), "not begun"),
            (Some("12"), "changed"),
            (Some(""), "no text"),
        ] {
            let error = checked(value).expect_err(why);
            assert!(error.to_string().starts_with("stale: 127.0.0.1:1 gave"), "{why}: {error:#}");
        }
    }

    #[test]
    fn a_load_whose_readers_read_nothing_is_noticed() {
        let plan = LoadPlan::moderate();
        let error = check(&[ReadBack::default()], &[Written::default()], &plan).expect_err("nothing was read");
        assert!(error.to_string().contains("no key was read"), "{error:#}");
        assert!(check(&[], &[Written::default()], &plan).is_ok(), "it has no readers");
    }

    #[test]
    fn all_nodes_but_the_one_that_acknowledged_are_asked_in_turn() {
        for node in 0..3 {
            let mut asked = [0, 1].map(|turn| another(node, turn, 3) % 3);
            asked.sort_unstable();
            let others: Vec<usize> = (0..3).filter(|other| *other != node).collect();
            assert_eq!(asked.as_slice(), others, "after node {node}");
        }
        assert_eq!(another(0, 7, 2) % 2, 1);
        assert_eq!(another(5, 7, 1), 6, "there is no other");
    }
}
