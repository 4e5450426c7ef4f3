//! After a restart: apply what the journal holds, chunk by chunk, before Raft runs the replica. Memory stays bounded,
//! because only entries above the commit index are kept.

use base::GroupId;
use base::limits::LOG_READ_BYTES_MAX;
use base::simulation::{Mark, Plant, mark, planted};
use multiraft::GroupInit;
use wire::{Entry, EntryKind, Membership, MembershipChange, MembershipOp};

use crate::core::NodeCore;
use crate::groups::GroupStage;
use crate::journal_events::ReadFor;
use crate::{Effect, Formation};

impl NodeCore {
    /// The checkpoint of `__meta` is loaded.
    pub(crate) fn checkpoint_loaded(&mut self, group: GroupId, state: &[u8]) {
        match metadata::Metadata::decode(state) {
            Ok(metadata) => {
                self.adopt_metadata(metadata);
                self.replay_next(group);
            }
            Err(error) => self.fatal(format!("the checkpoint of __meta is unreadable: {error}")),
        }
    }

    /// Reads the next chunk, or hands the replica to Raft when all is read.
    pub(crate) fn replay_next(&mut self, group: GroupId) {
        let Some(entry) = self.groups.get(&group) else { return };
        let GroupStage::Replay { recovered, unapplied, .. } = &entry.stage else { return };
        let next = unapplied.last().map_or(entry.applied, |last| last.index) + 1;
        if next > recovered.last_index {
            return self.replay_done(group);
        }
        let high = recovered.last_index;
        let token = self.reads.begin(ReadFor::Replay(group));
        self.journal.read(token, group, next, high, LOG_READ_BYTES_MAX);
    }

    /// A chunk was read.
    pub(crate) fn replay(&mut self, group: GroupId, entries: Vec<Entry>) {
        for log_entry in entries {
            let Some(entry) = self.groups.get_mut(&group) else { return };
            let GroupStage::Replay { hard_state, unapplied, .. } = &mut entry.stage else { return };
            if log_entry.index > hard_state.commit {
                mark(Mark::UncommittedEntryAtStart);
                unapplied.push(log_entry);
                continue;
            }
            if log_entry.kind == EntryKind::Membership && !planted(Plant::MembershipLostOnRestart) {
                match wire::decode::<MembershipChange>(&log_entry.data) {
                    Ok(change) => apply_membership(&mut entry.membership, &change),
                    Err(error) => return self.fatal(format!("group {group}: membership entry unreadable: {error}")),
                }
            }
            self.apply_entry(group, &log_entry);
        }
        self.replay_next(group);
    }

    fn replay_done(&mut self, group: GroupId) {
        let Some(entry) = self.groups.get_mut(&group) else { return };
        let GroupStage::Replay { hard_state, checkpoint, recovered, unapplied } =
            std::mem::replace(&mut entry.stage, GroupStage::Running)
        else {
            return;
        };
        let single = entry.membership.voters == [entry.replica] && entry.membership.voters_outgoing.is_empty();
        self.raft.create(GroupInit {
            group,
            replica: entry.replica,
            hard_state,
            checkpoint,
            membership: entry.membership.clone(),
            first_index: recovered.first_index,
            last_index: recovered.last_index,
            term_runs: recovered.term_runs,
            applied: entry.applied,
            unapplied,
            campaign: single,
        });
        let applied = entry.applied;
        self.answer_early_vote(group);
        self.unpublished.insert(group);
        if group == GroupId::META {
            if applied > 0 && self.config.formation != Formation::Restart {
                mark(Mark::FormedBeforeItWasNoted);
                self.effects.push(Effect::Formed);
            }
            self.recovered();
        }
    }
}

/// What a membership entry does to a membership: as the `raft` crate's `confchange` (Raft section 6; more than one
/// step enters a joint configuration that the leader leaves by itself).
pub(crate) fn apply_membership(membership: &mut Membership, change: &MembershipChange) {
    if change.steps.is_empty() {
        membership.learners.append(&mut membership.learners_next);
        membership.voters_outgoing.clear();
        membership.auto_leave = false;
        return sort(membership);
    }
    if change.steps.len() > 1 {
        membership.voters_outgoing = membership.voters.clone();
        membership.auto_leave = true;
    }
    for step in &change.steps {
        let replica = step.replica;
        membership.voters.retain(|r| *r != replica);
        membership.learners.retain(|r| *r != replica);
        membership.learners_next.retain(|r| *r != replica);
        match step.op {
            MembershipOp::AddVoter => membership.voters.push(replica),
            MembershipOp::AddLearner if membership.voters_outgoing.contains(&replica) => {
                membership.learners_next.push(replica);
            }
            MembershipOp::AddLearner => membership.learners.push(replica),
            MembershipOp::Remove => {}
        }
    }
    sort(membership);
}

fn sort(membership: &mut Membership) {
    membership.voters.sort_unstable();
    membership.learners.sort_unstable();
    membership.learners_next.sort_unstable();
    membership.voters_outgoing.sort_unstable();
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::ReplicaId;
    use wire::MembershipStep;

    fn ids(of: &[u64]) -> Vec<ReplicaId> {
        of.iter().copied().map(ReplicaId).collect()
    }

    #[test]
    fn one_voter_becomes_three_through_a_joint_configuration() {
        let mut membership = Membership { voters: ids(&[1]), learners: ids(&[2, 3]), ..Membership::default() };
        let promote = |replica| MembershipStep { op: MembershipOp::AddVoter, replica: ReplicaId(replica) };
        apply_membership(&mut membership, &MembershipChange { steps: vec![promote(2), promote(3)] });
        assert_eq!(membership.voters, ids(&[1, 2, 3]));
        assert_eq!((membership.voters_outgoing.clone(), membership.auto_leave), (ids(&[1]), true));
        apply_membership(&mut membership, &MembershipChange::default());
        assert_eq!(membership, Membership { voters: ids(&[1, 2, 3]), ..Membership::default() });
    }

    #[test]
    fn a_voter_demoted_in_a_joint_change_becomes_a_learner_when_it_ends() {
        let mut membership = Membership { voters: ids(&[1, 2]), ..Membership::default() };
        let steps = vec![
            MembershipStep { op: MembershipOp::AddLearner, replica: ReplicaId(1) },
            MembershipStep { op: MembershipOp::AddVoter, replica: ReplicaId(3) },
        ];
        apply_membership(&mut membership, &MembershipChange { steps });
        assert_eq!(membership.learners_next, ids(&[1]));
        apply_membership(&mut membership, &MembershipChange::default());
        assert_eq!(membership, Membership { voters: ids(&[2, 3]), learners: ids(&[1]), ..Membership::default() });
    }
}
