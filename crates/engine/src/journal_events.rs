//! What the journal reports, and the reads that are under way in it.

use std::collections::BTreeMap;

use base::limits::LOG_READS_FOR_OTHERS_MAX;
use base::simulation::{Mark, Plant, mark, planted};
use base::{GroupId, NodeId};
use journal::{CheckpointPart, Output, ReadError};
use wire::Entry;

use crate::core::{NodeCore, Stage};
use crate::requests::Origin;
use crate::{Effect, Reply};

/// Why something is being read from the journal.
pub(crate) enum ReadFor {
    /// Recovery of a replica.
    Replay(GroupId),
    /// Raft, for a follower that lags.
    Raft { group: GroupId, token: u64 },
    /// A consumer.
    Consumer(Origin),
    /// Our own checkpoint, at recovery.
    Load { group: GroupId, loaded: Vec<u8> },
    /// Our checkpoint, for a joiner.
    Serve { to: NodeId, group: GroupId, index: u64 },
}

impl ReadFor {
    /// Asked for from outside, as often as somebody likes; the others are bounded by the groups that are here.
    fn is_for_others(&self) -> bool {
        matches!(self, ReadFor::Consumer(_) | ReadFor::Serve { .. })
    }
}

/// Reads under way, by token.
#[derive(Default)]
pub(crate) struct Reads {
    next: u64,
    under_way: BTreeMap<u64, ReadFor>,
    for_others: usize,
}

impl Reads {
    /// The token of a read for one of our own groups.
    pub fn begin(&mut self, what: ReadFor) -> u64 {
        self.for_others += usize::from(what.is_for_others());
        self.next += 1;
        self.under_way.insert(self.next, what);
        self.next
    }

    /// The same of a read for others; `None` while there are [`LOG_READS_FOR_OTHERS_MAX`].
    pub fn begin_for_others(&mut self, what: ReadFor) -> Option<u64> {
        debug_assert!(what.is_for_others());
        (self.for_others < LOG_READS_FOR_OTHERS_MAX).then(|| self.begin(what))
    }

    /// How many there are.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    fn end(&mut self, token: u64) -> Option<ReadFor> {
        let what = self.under_way.remove(&token)?;
        self.for_others -= usize::from(what.is_for_others());
        Some(what)
    }
}

impl NodeCore {
    /// Takes everything that the journal has to say; whether there was anything.
    pub(crate) fn pump_journal(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.journal.poll() {
            any = true;
            match output {
                Output::Disk(op) => self.effects.push(Effect::Disk(op)),
                Output::Recovered(groups) => self.journal_recovered(groups),
                Output::Persisted { round } => self.persisted(round),
                Output::Read { token, result } => self.log_was_read(token, result),
                Output::CheckpointDone { group, index } => self.checkpoint_done(group, index),
                Output::CheckpointRead { token, result } => self.checkpoint_was_read(token, result),
                Output::Removed { group } => self.removed(group),
                Output::DiskFull(full) => {
                    mark(if full { Mark::DiskFull } else { Mark::DiskFullOver });
                    self.disk_full = full;
                }
                Output::Fatal(error) => self.fatal(error.to_string()),
            }
            if self.stage == Stage::Stopped {
                return false;
            }
        }
        any
    }

    fn journal_recovered(&mut self, groups: Vec<journal::RecoveredGroup>) {
        self.parked = groups.into_iter().map(|group| (group.group, group)).collect();
        let meta = self.parked.remove(&GroupId::META);
        self.form_meta(meta);
    }

    /// `__meta` is there: requests are carried out from now on.
    pub(crate) fn recovered(&mut self) {
        if self.stage == Stage::Recovering {
            self.stage = Stage::Running;
            self.shown.changed(false);
            self.partitions_due = true;
            self.effects.push(Effect::Recovered);
        }
    }

    fn persisted(&mut self, round: u64) {
        self.stats.rounds_persisted(round, self.now.mono);
        self.raft.persisted(round);
        let mut answers = Vec::new();
        for group in self.groups.values_mut() {
            let mut durable = 0;
            while let Some((number, last)) = group.rounds.front().copied()
                && number <= round
            {
                durable = last;
                group.rounds.pop_front();
            }
            if durable > 0 && !group.unsynced.is_empty() {
                let rest = group.unsynced.split_off(&(durable + 1));
                answers.extend(std::mem::replace(&mut group.unsynced, rest).into_values());
            }
        }
        for (origin, base_offset) in answers {
            self.answer(origin, Ok(Reply::Produced { base_offset, log_start_offset: 0 }));
        }
    }

    fn log_was_read(&mut self, token: u64, result: Result<Vec<Entry>, ReadError>) {
        match (self.reads.end(token), result) {
            (Some(ReadFor::Replay(group)), Ok(entries)) => self.replay(group, entries),
            (Some(ReadFor::Replay(group)), Err(error)) if self.groups.contains_key(&group) => {
                self.fatal(format!("group {group} cannot be recovered: {error}"));
            }
            (Some(ReadFor::Raft { group, token }), result) => {
                self.raft.entries_fetched(group, token, result.ok());
            }
            (Some(ReadFor::Consumer(origin)), result) => self.consumer_read(origin, result),
            _ => {}
        }
    }

    fn checkpoint_was_read(&mut self, token: u64, result: Result<CheckpointPart, ReadError>) {
        match (self.reads.end(token), result) {
            (Some(ReadFor::Load { group, loaded }), Ok(part)) => self.load_part(group, loaded, part),
            (Some(ReadFor::Load { group, .. }), Err(error)) => {
                self.fatal(format!("the checkpoint of group {group} cannot be read: {error}"));
            }
            (Some(ReadFor::Serve { to, group, index }), result) => self.serve_part(to, group, index, result.ok()),
            _ => {}
        }
    }

    /// What a disk does to leadership.
    ///
    /// A disk that has made nothing durable for an election timeout, while a round was outstanding, is stuck: leadership
    /// goes elsewhere, and this node does not campaign until the disk moves again. So is one that takes three times as
    /// long for a round, though it moves. Whatever is between says more of a core with too much to do than of its disk, and
    /// to hand everything over then would be more work still. Whoever waits here for what others lead by then is told so.
    ///
    /// A full disk takes no writes, but others may: leadership goes to voters that have space, and only to such, so that
    /// where every disk is full the leaders stay, and reads go on. For the same reason it may be won again. Disks on the
    /// brink do not move it to and fro: the one must have been full for a while, and the other have had space for longer.
    pub(crate) fn watch_disk(&mut self) {
        let (now, patience) = (self.now.mono, self.config.election_timeout);
        let stuck = self.disk_watch.is_stuck(&self.journal, patience, now) && !planted(Plant::StuckDiskIgnored);
        let abstains = self.abstains_until.is_some_and(|until| now < until);
        self.raft.set_electable(!stuck && !abstains);
        if stuck {
            self.fail_led_elsewhere();
        }
        if stuck && self.disk_watch.hands_over(now) {
            mark(Mark::DiskStuck);
            self.hand_over_leaderships();
        }
        self.disk_full_since = self.disk_full.then(|| self.disk_full_since.unwrap_or(now));
        if self.disk_full_since.is_some_and(|since| now.since(since) > self.config.election_timeout) {
            self.disk_full_since = Some(now);
            self.hand_over_to_space();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_for_others_are_bounded_and_those_of_our_own_groups_are_not_held_up() {
        let mut reads = Reads::default();
        let serve = || ReadFor::Serve { to: NodeId(2), group: GroupId::META, index: 7 };
        let consumer = || ReadFor::Consumer(Origin::Local(1));
        let first = reads.begin_for_others(serve()).expect("there is room");
        for _ in 1..LOG_READS_FOR_OTHERS_MAX {
            reads.begin_for_others(consumer()).expect("there is room");
        }
        assert_eq!(reads.begin_for_others(consumer()), None);
        let own = reads.begin(ReadFor::Replay(GroupId::META));
        assert!(reads.end(own).is_some() && reads.end(own).is_none());
        assert_eq!(reads.begin_for_others(serve()), None, "one of our own made no room");
        assert!(reads.end(first).is_some());
        assert!(reads.begin_for_others(consumer()).is_some());
    }
}
