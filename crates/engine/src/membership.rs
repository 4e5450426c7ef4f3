//! Who belongs to which group: `__meta`'s voters at 1, 3 or 5, and partitions that grow onto new nodes. Learners
//! first; they become voters when they have caught up; one change at a time.

use base::limits::META_VOTERS_MAX;
use base::{GroupId, Millis, ReplicaId};
use metadata::Command;
use multiraft::GroupStatus;
use wire::{MembershipChange, MembershipOp, MembershipStep};

use crate::core::NodeCore;
use crate::requests::Internal;
use crate::{Request, Target};

/// A learner this close behind the commit index has caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// Between two looks at the groups this node leads.
const INTERVAL: Millis = Millis(50);

/// How many voters a metadata group over `nodes` nodes has: odd, at most five, so that each one added adds fault
/// tolerance.
#[must_use]
pub(crate) fn meta_voter_target(nodes: usize) -> usize {
    let most = nodes.clamp(1, META_VOTERS_MAX);
    if most.is_multiple_of(2) { most - 1 } else { most }
}

/// The next change that brings a group towards its replicas, of which `voters` are to vote. `None`: nothing to do now.
fn next_change(status: &GroupStatus, replicas: &[ReplicaId], voters: usize) -> Option<MembershipChange> {
    let membership = &status.membership;
    if !membership.voters_outgoing.is_empty() {
        return None; // The leader is leaving a joint configuration.
    }
    let known = |replica: &ReplicaId| membership.voters.contains(replica) || membership.learners.contains(replica);
    if let Some(new) = replicas.iter().find(|replica| !known(replica)) {
        let steps = vec![MembershipStep { op: MembershipOp::AddLearner, replica: *new }];
        return Some(MembershipChange { steps });
    }
    let missing = voters.saturating_sub(membership.voters.len());
    let ready: Vec<_> = status
        .progress
        .iter()
        .filter(|p| membership.learners.contains(&p.replica) && replicas.contains(&p.replica))
        .filter(|p| p.active && !p.snapshot && p.matched + CAUGHT_UP_ENTRIES >= status.commit && p.matched > 0)
        .map(|p| MembershipStep { op: MembershipOp::AddVoter, replica: p.replica })
        .take(missing)
        .collect();
    // All at once, so that the group never rests at an even number of voters on its way to an odd one.
    (missing > 0 && ready.len() == missing).then_some(MembershipChange { steps: ready })
}

impl NodeCore {
    pub(crate) fn drive_membership(&mut self) {
        let due = self.planner.membership_at.is_none_or(|at| self.now.mono.since(at) >= INTERVAL);
        if !due {
            return;
        }
        self.planner.membership_at = Some(self.now.mono);
        self.drive_meta_members();
        self.drive_partition_members();
    }

    fn drive_meta_members(&mut self) {
        if !self.groups.get(&GroupId::META).is_some_and(|g| g.active) {
            return;
        }
        let replicas: Vec<_> = self.metadata.nodes.values().map(|node| node.meta_replica).collect();
        self.change_members(GroupId::META, &replicas, meta_voter_target(replicas.len()));
    }

    fn drive_partition_members(&mut self) {
        let growing: Vec<_> = self
            .metadata
            .partitions
            .values()
            .filter(|p| p.replicas.iter().any(|r| !r.voter))
            .map(|p| p.group)
            .filter(|group| self.groups.get(group).is_some_and(|g| g.active))
            .collect();
        for group in growing {
            let Some(partition) = self.metadata.partitions.get(&group) else { continue };
            let replicas: Vec<_> = partition.replicas.iter().map(|r| r.replica).collect();
            let told: Vec<_> = partition.replicas.iter().filter(|r| r.voter).map(|r| r.replica).collect();
            // Until all replicas of the target are there, they only learn.
            let all = replicas.len() >= self.metadata.replica_target(partition);
            let voters = if all { replicas.len() } else { told.len() };
            self.change_members(group, &replicas, voters);
            self.tell_promotions(group, &told);
        }
    }

    fn change_members(&mut self, group: GroupId, replicas: &[ReplicaId], voters: usize) {
        let Some(status) = self.raft.status(group) else { return };
        if let Some(change) = next_change(&status, replicas, voters) {
            // Refused while another change is under way; the next look comes soon.
            let _ = self.raft.propose_membership(group, status.term, &change);
        }
    }

    /// The table of members follows what Raft has decided.
    fn tell_promotions(&mut self, group: GroupId, told: &[ReplicaId]) {
        let Some(entry) = self.groups.get(&group) else { return };
        if !entry.membership.voters_outgoing.is_empty() || self.planner.telling(group) {
            return;
        }
        let promoted = entry.membership.voters.iter().find(|replica| !told.contains(replica)).copied();
        if let Some(replica) = promoted {
            self.planner.promotion_being_told(group);
            let command = Request::Command(Command::ReplicaVoter { group, replica });
            self.ask(Internal::Promoted(group), Target::Leader(GroupId::META), command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multiraft::{ReplicaProgress, Role};
    use wire::Membership;

    fn status(voters: &[u64], learners: &[(u64, u64)]) -> GroupStatus {
        let ids = |of: Vec<u64>| of.into_iter().map(ReplicaId).collect::<Vec<_>>();
        let progress = |(replica, matched): &(u64, u64)| ReplicaProgress {
            replica: ReplicaId(*replica),
            matched: *matched,
            active: true,
            snapshot: false,
        };
        GroupStatus {
            group: GroupId::META,
            replica: ReplicaId(1),
            role: Role::Leader,
            term: 2,
            leader: ReplicaId(1),
            vote: ReplicaId(1),
            commit: 1000,
            applied: 1000,
            first_index: 2,
            last_index: 1000,
            persisted: 1000,
            membership: Membership {
                voters: ids(voters.to_vec()),
                learners: ids(learners.iter().map(|l| l.0).collect()),
                ..Membership::default()
            },
            progress: learners.iter().map(progress).collect(),
        }
    }

    fn steps(status: &GroupStatus, replicas: &[u64], voters: usize) -> Vec<(MembershipOp, u64)> {
        let replicas: Vec<_> = replicas.iter().copied().map(ReplicaId).collect();
        let change = next_change(status, &replicas, voters).unwrap_or_default();
        change.steps.iter().map(|s| (s.op, s.replica.0)).collect()
    }

    #[test]
    fn voters_are_one_three_or_five() {
        let targets: Vec<_> = (1..=8).map(meta_voter_target).collect();
        assert_eq!(targets, [1, 1, 3, 3, 5, 5, 5, 5]);
    }

    #[test]
    fn newcomers_learn_first_one_by_one() {
        assert_eq!(steps(&status(&[1], &[]), &[1, 2, 3], 3), [(MembershipOp::AddLearner, 2)]);
    }

    #[test]
    fn learners_are_promoted_together_when_all_have_caught_up() {
        assert_eq!(steps(&status(&[1], &[(2, 1000), (3, 10)]), &[1, 2, 3], 3), []);
        let ready = status(&[1], &[(2, 1000), (3, 990)]);
        assert_eq!(steps(&ready, &[1, 2, 3], 3), [(MembershipOp::AddVoter, 2), (MembershipOp::AddVoter, 3)]);
        assert_eq!(steps(&status(&[1], &[(2, 1000)]), &[1, 2], 1), [], "an even number adds no fault tolerance");
    }
}
