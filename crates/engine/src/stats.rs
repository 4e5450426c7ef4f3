//! Counting what consensus does, for [`Vitals`]. Time is what events say; counting changes nothing and, but for queues
//! that grow to what is under way, allocates nothing.

use std::collections::VecDeque;

use base::{GroupId, Histogram, Mono};
use multiraft::{Proposal, ProposeError, Proposed, Role, RoleChange};
use wire::{Entry, RaftMessage, RaftMessageKind};

use crate::core::NodeCore;
use crate::groups::Group;
use crate::vitals::{Arrivals, Elections, GroupTotals, GroupVitals, Queues, Ticks, Vitals};

/// Of the whole node.
pub(crate) struct Stats {
    started: Mono,
    elections: Elections,
    heartbeats_sent: Histogram,
    heartbeats_received: Histogram,
    committed: Histogram,
    synced: Histogram,
    /// Rounds handed to the journal and not durable, with when.
    rounds: VecDeque<(u64, Mono)>,
    /// As the driver said last.
    pub arrivals: Option<Arrivals>,
}

/// Of one replica.
#[derive(Default)]
pub(crate) struct GroupStats {
    elections: Elections,
    term: u64,
    /// The last term in which this replica was a candidate, and the last of which it knew a leader.
    candidate_in: u64,
    leader_in: u64,
    /// As leader: when heartbeats left last.
    beat: Option<Mono>,
    /// As follower: when a heartbeat came last.
    heard: Option<Mono>,
    /// As leader: proposals that are not committed, with when they were made.
    proposed: VecDeque<(u64, Mono)>,
}

impl GroupStats {
    /// The replica starts in that term.
    pub fn begins_in(&mut self, term: u64) {
        self.term = term;
    }

    /// A leader at rest said that it leads: what passes until its next heartbeat is no gap.
    pub fn claimed(&mut self) {
        self.beat = None;
    }

    /// The leader at rest said so to this follower.
    pub fn heard_claim(&mut self) {
        self.heard = None;
    }

    /// A change of term, role or leader; `led`: as leader of an older term or until now.
    fn role_changed(&mut self, led: bool, change: &RoleChange, node: &mut Elections) {
        let mut count = |what: fn(&mut Elections) -> &mut u64| {
            *what(&mut self.elections) += 1;
            *what(node) += 1;
        };
        if led {
            count(|it| &mut it.step_downs);
        }
        if change.term > self.term {
            self.term = change.term;
            count(|it| &mut it.term_changes);
        }
        if change.role == Role::PreCandidate {
            count(|it| &mut it.pre_votes);
        }
        // A single voter may lead before anybody saw it as a candidate.
        if matches!(change.role, Role::Candidate | Role::Leader) && change.term > self.candidate_in {
            self.candidate_in = change.term;
            count(|it| &mut it.started);
        }
        if change.leader.0 != 0 && change.term > self.leader_in {
            self.leader_in = change.term;
            count(|it| &mut it.leader_changes);
            if change.role == Role::Leader {
                count(|it| &mut it.won);
            }
        }
        self.beat = None;
        self.heard = None;
        self.proposed.clear();
    }
}

impl Stats {
    pub fn new(now: Mono) -> Self {
        Stats {
            started: now,
            elections: Elections::default(),
            heartbeats_sent: Histogram::default(),
            heartbeats_received: Histogram::default(),
            committed: Histogram::default(),
            synced: Histogram::default(),
            rounds: VecDeque::new(),
            arrivals: None,
        }
    }

    /// See [`GroupStats::role_changed`].
    pub fn role_changed(&mut self, led: bool, group: &mut GroupStats, change: &RoleChange) {
        group.role_changed(led, change, &mut self.elections);
    }

    /// Heartbeats of a group that came due left.
    pub fn beat(&mut self, group: &mut GroupStats, now: Mono) {
        // One for each follower; they leave together.
        if group.beat == Some(now) {
            return;
        }
        if let Some(last) = group.beat.replace(now) {
            self.heartbeats_sent.observe(last, now);
        }
    }

    /// A heartbeat of a group's leader came.
    fn heard(&mut self, group: &mut GroupStats, now: Mono) {
        if let Some(last) = group.heard.replace(now) {
            self.heartbeats_received.observe(last, now);
        }
    }

    /// An entry was committed.
    fn committed(&mut self, group: &mut GroupStats, index: u64, now: Mono) {
        while let Some((proposed, at)) = group.proposed.front().copied()
            && proposed <= index
        {
            group.proposed.pop_front();
            // What lies below was taken back: it is another entry that was committed in its place.
            if proposed == index {
                self.committed.observe(at, now);
            }
        }
    }

    pub fn round_began(&mut self, round: u64, now: Mono) {
        self.rounds.push_back((round, now));
    }

    pub fn rounds_persisted(&mut self, up_to: u64, now: Mono) {
        while let Some((round, began)) = self.rounds.front().copied()
            && round <= up_to
        {
            self.rounds.pop_front();
            self.synced.observe(began, now);
        }
    }
}

impl NodeCore {
    /// Proposes, and notes when.
    pub(crate) fn propose(&mut self, proposal: Proposal) -> Result<Proposed, ProposeError> {
        let group = proposal.group;
        let proposed = self.raft.propose(proposal)?;
        if let Some(entry) = self.groups.get_mut(&group) {
            entry.stats.proposed.push_back((proposed.index, self.now.mono));
        }
        Ok(proposed)
    }

    /// A message that Raft took.
    pub(crate) fn count_received(&mut self, group: GroupId, kind: RaftMessageKind) {
        if kind == RaftMessageKind::Heartbeat
            && let Some(entry) = self.groups.get_mut(&group)
        {
            self.stats.heard(&mut entry.stats, self.now.mono);
        }
    }

    /// A message that leaves, if it is a heartbeat that came `due`.
    pub(crate) fn count_sent(&mut self, group: GroupId, message: &RaftMessage, due: bool) {
        debug_assert!(!due || message.kind == RaftMessageKind::Heartbeat);
        if due && let Some(entry) = self.groups.get_mut(&group) {
            self.stats.beat(&mut entry.stats, self.now.mono);
        }
    }

    /// Entries that Raft hands out as committed.
    pub(crate) fn count_committed(&mut self, group: GroupId, entries: &[Entry]) {
        let Some(entry) = self.groups.get_mut(&group).filter(|entry| !entry.stats.proposed.is_empty()) else { return };
        for committed in entries {
            self.stats.committed(&mut entry.stats, committed.index, self.now.mono);
        }
    }

    /// What this node counted, and how it stands; `listed_max` groups by themselves.
    #[must_use]
    pub fn vitals(&self, listed_max: usize) -> Vitals {
        let now = self.now.mono;
        let (listed, groups, mut queues) = self.survey_groups(listed_max);
        self.requests.depths(&mut queues);
        queues.rounds = self.stats.rounds.len() as u64;
        queues.log_reads = self.reads.under_way() as u64;
        queues.outbox = self.metadata.outbox.len() as u64;
        let ticks = self.raft.ticks();
        let silence = |node| self.peers.silence(node, now).map(|silence| (node, silence.0));
        Vitals {
            node: self.me(),
            incarnation: self.config.incarnation,
            counted_ms: now.since(self.stats.started).0,
            ready: self.readiness().0,
            elections: self.stats.elections,
            ticks: Ticks { passed: ticks.passed, skipped: ticks.skipped, pauses: ticks.pauses },
            heartbeats_sent: self.stats.heartbeats_sent.distribution(),
            heartbeats_received: self.stats.heartbeats_received.distribution(),
            committed: self.stats.committed.distribution(),
            synced: self.stats.synced.distribution(),
            queues,
            groups,
            listed,
            meta_applied: self.metadata.applied,
            disk_full: self.disk_full,
            peers: self.peers.nodes().filter(|node| *node != self.me()).filter_map(silence).collect(),
            heartbeat_interval_ms: self.config.heartbeat_interval.0,
            log_bytes: self.journal.log_bytes(),
            vms_running: u32::try_from(self.vms.reconciler.running()).unwrap_or(u32::MAX),
            arrivals: self.stats.arrivals,
        }
    }

    fn survey_groups(&self, listed_max: usize) -> (Vec<GroupVitals>, GroupTotals, Queues) {
        let (mut totals, mut queues) = (GroupTotals::default(), Queues::default());
        let mut all: Vec<GroupVitals> = self.groups.iter().map(|(id, group)| self.group_vitals(*id, group)).collect();
        for (one, group) in all.iter().zip(self.groups.values()) {
            totals.all += 1;
            totals.led += u64::from(group.active);
            totals.recovering += u64::from(!group.running());
            totals.without_leader += u64::from(one.leader.is_none());
            totals.term_max = totals.term_max.max(one.term);
            let lag = one.commit.saturating_sub(one.applied);
            queues.unapplied += lag;
            queues.unapplied_max = queues.unapplied_max.max(lag);
            queues.proposals += group.stats.proposed.len() as u64;
        }
        let rank = |one: &GroupVitals| (one.leader.is_some(), std::cmp::Reverse(one.term), one.group);
        if listed_max < all.len() {
            all.select_nth_unstable_by_key(listed_max, rank);
            all.truncate(listed_max);
        }
        all.sort_unstable_by_key(rank);
        (all, totals, queues)
    }

    fn group_vitals(&self, id: GroupId, group: &Group) -> GroupVitals {
        let raft = self.raft.indexes(id);
        GroupVitals {
            group: id,
            term: raft.map_or(group.term, |raft| raft.term),
            leader: self.leaders.leader(id),
            elections: group.stats.elections,
            commit: raft.map_or(group.applied, |raft| raft.commit),
            applied: group.applied,
        }
    }
}

#[cfg(test)]
mod tests {
    use base::{Millis, ReplicaId};

    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(0).plus(Millis(ms))
    }

    fn change(role: Role, term: u64, leader: u64) -> RoleChange {
        RoleChange { group: GroupId(7), role, term, leader: ReplicaId(leader) }
    }

    #[test]
    fn elections_terms_and_leaders_are_counted_once_each() {
        let (mut stats, mut group) = (Stats::new(at(0)), GroupStats::default());
        group.begins_in(1);
        let story = [
            (false, change(Role::Follower, 2, 9)),
            (false, change(Role::Follower, 2, 0)), // The leader fell silent,
            (false, change(Role::Follower, 2, 9)), // and was there again: no change of leaders.
            (false, change(Role::PreCandidate, 2, 0)),
            (false, change(Role::Candidate, 3, 0)),
            (false, change(Role::Candidate, 4, 0)), // A tie, and once more.
            (false, change(Role::Leader, 4, 1)),
            (true, change(Role::Leader, 6, 1)), // Stepped down and won in between: at once, as a single voter does.
            (true, change(Role::Follower, 7, 0)),
            (false, change(Role::Follower, 7, 9)),
        ];
        for (led, change) in &story {
            stats.role_changed(*led, &mut group, change);
        }
        let expected =
            Elections { pre_votes: 1, started: 3, won: 2, term_changes: 5, leader_changes: 4, step_downs: 2 };
        assert_eq!(group.elections, expected);
        // The node's counts outlive a group.
        stats.role_changed(false, &mut GroupStats::default(), &change(Role::Follower, 1, 1));
        assert_eq!(stats.elections.leader_changes, 5);
    }

    #[test]
    fn the_gaps_between_heartbeats_end_with_a_leadership() {
        let (mut stats, mut group) = (Stats::new(at(0)), GroupStats::default());
        // Two followers: each flush sends two.
        for ms in [100, 100, 250, 250, 400, 400] {
            stats.beat(&mut group, at(ms));
        }
        stats.role_changed(true, &mut group, &change(Role::Follower, 2, 9));
        for ms in [5_000, 5_170] {
            stats.heard(&mut group, at(ms));
        }
        stats.role_changed(false, &mut group, &change(Role::Leader, 3, 1));
        stats.beat(&mut group, at(60_000));
        let (sent, received) = (stats.heartbeats_sent.distribution(), stats.heartbeats_received.distribution());
        assert_eq!((sent.count(), sent.max_us()), (2, Some(150_000)));
        assert_eq!((received.count(), received.max_us()), (1, Some(170_000)));
    }

    #[test]
    fn commits_and_syncs_are_timed_from_what_they_are_for() {
        let (mut stats, mut group) = (Stats::new(at(0)), GroupStats::default());
        group.proposed.extend([(5, at(10)), (6, at(11)), (7, at(11))]);
        stats.committed(&mut group, 5, at(13));
        stats.committed(&mut group, 7, at(21));
        let committed = stats.committed.distribution();
        assert_eq!((committed.count(), committed.max_us()), (2, Some(10_000)), "6 was never committed by itself");
        assert!(group.proposed.is_empty());

        stats.round_began(1, at(0));
        stats.round_began(2, at(4));
        stats.round_began(3, at(9));
        stats.rounds_persisted(2, at(10));
        let synced = stats.synced.distribution();
        assert_eq!((synced.count(), synced.max_us(), stats.rounds.len()), (2, Some(10_000), 1));
    }
}
