//! Checks of what a replica starts from, and the log and configuration that follow from it.

use base::limits;
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use raft::{Config, RaftState, ReadOnlyOption};
use wire::HardState;

use crate::api::{GroupInit, InvalidInit, MultiRaftConfig};
use crate::convert;
use crate::log::GroupLog;

impl GroupInit {
    /// Whether a replica can run from this. What fails here was lost or damaged on disk: the node must not start on
    /// it, because a replica that forgot what it acknowledged breaks its group.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> Result<(), InvalidInit> {
        let fail = |what| Err(InvalidInit { group: self.group, what });
        let checkpoint = self.checkpoint.index;
        if self.replica.0 == 0 {
            return fail("replica 0");
        }
        if self.first_index == 0 || self.first_index > checkpoint + 1 {
            return fail("a gap between checkpoint and log");
        }
        if self.last_index + 1 < self.first_index || self.last_index < checkpoint {
            return fail("the log ends before its checkpoint");
        }
        if self.applied < checkpoint || self.applied > self.last_index {
            return fail("applied lies outside of checkpoint and log");
        }
        if self.hard_state.commit > self.last_index {
            return fail("committed entries are missing at the end of the log");
        }
        // A replica without any checkpoint knows no member and waits for a snapshot.
        let blank = checkpoint == 0 && self.membership.voters.is_empty() && self.last_index == 0;
        if !blank {
            let check = |membership| convert::check_membership(membership);
            if let Err(what) = check(&self.membership).and(check(&self.checkpoint.membership)) {
                return fail(what);
            }
            if self.checkpoint.term == 0 {
                return fail("a checkpoint without a term");
            }
        }
        self.check_terms().or_else(fail)?;
        self.check_unapplied().or_else(fail)
    }

    fn check_terms(&self) -> Result<(), &'static str> {
        let empty = self.first_index > self.last_index;
        match self.term_runs.first() {
            None if !empty => return Err("no terms for the log"),
            Some(_) if empty => return Err("terms for an empty log"),
            Some((first, _)) if *first != self.first_index => return Err("terms do not begin with the log"),
            _ => {}
        }
        let ordered = |pair: &[(u64, u64)]| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1;
        if !self.term_runs.windows(2).all(ordered) || self.term_runs.iter().any(|(_, term)| *term == 0) {
            return Err("terms out of order");
        }
        match self.term_runs.last() {
            Some((first, term)) if *first > self.last_index || *term > self.hard_state.term => {
                Err("terms beyond the log or the hard state")
            }
            _ => Ok(()),
        }
    }

    fn check_unapplied(&self) -> Result<(), &'static str> {
        if self.unapplied.len() as u64 != self.last_index - self.applied {
            return Err("unapplied entries are missing");
        }
        for (entry, index) in self.unapplied.iter().zip(self.applied + 1..) {
            let run = self.term_runs.partition_point(|(first, _)| *first <= index);
            if entry.index != index || run == 0 || self.term_runs[run - 1].1 != entry.term {
                return Err("unapplied entries do not fit the log");
            }
            if entry.kind == wire::EntryKind::Membership {
                convert::membership_change(&entry.data)?;
            }
        }
        Ok(())
    }

    /// What of the hard state is known: what is applied was committed, even if the note of it never reached the disk.
    pub(crate) fn known_hard_state(&self) -> HardState {
        mark_if(Mark::AppliedBeyondDurableCommit, || self.applied > self.hard_state.commit);
        HardState { commit: self.hard_state.commit.max(self.applied), ..self.hard_state }
    }

    pub(crate) fn log(self, token: u64) -> GroupLog {
        let initial = RaftState {
            hard_state: convert::hard_state_to_raft(&self.known_hard_state()),
            conf_state: convert::conf_state(&self.membership),
        };
        let mut runs = self.term_runs;
        let before = if self.first_index == self.checkpoint.index + 1 {
            (self.checkpoint.index, self.checkpoint.term)
        } else {
            // The term before the first entry is not on disk any more; the first entry takes its place.
            let term = runs[0].1;
            if runs.get(1).is_some_and(|(first, _)| *first == self.first_index + 1) {
                mark(Mark::FirstTermLostAtStart);
                runs.remove(0);
            } else {
                runs[0].0 += 1;
            }
            (self.first_index, term)
        };
        runs.retain(|(first, _)| *first <= self.last_index);
        let resident = self.unapplied.into_iter().map(convert::entry_to_raft).collect();
        GroupLog::new(initial, before, runs, self.last_index, resident, self.checkpoint, token)
    }
}

/// The crate's configuration of one replica.
pub(crate) fn raft_config(config: &MultiRaftConfig, replica: u64, applied: u64) -> Config {
    Config {
        id: replica,
        election_tick: config.election_ticks as usize,
        heartbeat_tick: config.heartbeat_ticks as usize,
        applied,
        max_size_per_msg: limits::RAFT_MESSAGE_BYTES_MAX,
        max_inflight_msgs: limits::RAFT_INFLIGHT_MAX,
        max_uncommitted_size: limits::RAFT_UNCOMMITTED_BYTES_MAX,
        check_quorum: !planted(Plant::CheckQuorumOff),
        pre_vote: !planted(Plant::PreVoteOff),
        read_only_option: if planted(Plant::ReadsTrustLease) {
            ReadOnlyOption::LeaseBased
        } else {
            ReadOnlyOption::Safe
        },
        // Without a bound of its own: messages are split on their way out.
        batch_append: true,
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use base::{GroupId, ReplicaId};
    use raft::Storage;
    use wire::{Entry, EntryKind, Membership, SnapshotMeta};

    use super::*;

    fn init() -> GroupInit {
        let membership = Membership { voters: vec![ReplicaId(1)], ..Default::default() };
        let entry = |index, term| Entry { index, term, kind: EntryKind::Noop, data: Default::default() };
        GroupInit {
            group: GroupId(1),
            replica: ReplicaId(1),
            hard_state: HardState { term: 3, vote: ReplicaId(1), commit: 6 },
            checkpoint: SnapshotMeta { index: 5, term: 2, membership: membership.clone() },
            membership,
            first_index: 3,
            last_index: 7,
            term_runs: vec![(3, 1), (5, 2), (7, 3)],
            applied: 5,
            unapplied: vec![entry(6, 2), entry(7, 3)],
            campaign: false,
        }
    }

    #[test]
    fn a_log_kept_behind_its_checkpoint_starts_one_later_because_of_the_lost_term() {
        init().check().unwrap();
        let log = init().log(0);
        assert_eq!((log.first(), log.last_index()), (4, Ok(7)));
        let terms: Vec<_> = (2..9).map(|index| log.term_at(index)).collect();
        assert_eq!(terms, [None, Some(1), Some(1), Some(2), Some(2), Some(3), None]);
        assert_eq!(log.initial_state().unwrap().hard_state.commit, 6);
    }

    #[test]
    fn lost_or_damaged_state_is_named() {
        type Breaking = fn(&mut GroupInit);
        let broken: Vec<(&str, Breaking)> = vec![
            ("gap", |init| init.first_index = 7),
            ("missing at the end", |init| init.hard_state.commit = 8),
            ("outside", |init| init.applied = 4),
            ("unapplied", |init| init.unapplied.truncate(1)),
            ("fit the log", |init| init.unapplied[0].term = 1),
            ("terms", |init| init.term_runs[1].1 = 1),
            ("terms", |init| init.hard_state.term = 2),
            ("without voters", |init| init.membership.voters.clear()),
            ("replica 0", |init| init.replica = ReplicaId(0)),
        ];
        for (what, breaking) in broken {
            let mut init = init();
            breaking(&mut init);
            let error = init.check().expect_err(what).to_string();
            assert!(error.contains(what), "{error} does not speak of {what}");
        }
    }
}
