//! What a committed change makes of a membership: the crate's own answer, for whoever has no Raft at hand.

use raft::eraftpb::{ConfChangeSingle, ConfChangeType};
use raft::{Changer, ProgressTracker};
use wire::{Membership, MembershipChange};

use crate::convert;

/// The membership after a change (Raft section 6; more than one step enters a joint configuration, which the leader
/// ends with a change without steps). `None` if it does not fit: then it changes nothing, on all replicas alike.
#[must_use]
pub fn changed(membership: &Membership, change: &MembershipChange) -> Option<Membership> {
    let tracker = restored(membership)?;
    let mut changer = Changer::new(&tracker);
    let change = convert::conf_change(change);
    let (after, _) = if change.leave_joint() {
        changer.leave_joint()
    } else if let Some(auto_leave) = change.enter_joint() {
        changer.enter_joint(auto_leave, change.get_changes())
    } else {
        changer.simple(change.get_changes())
    }
    .ok()?;
    Some(convert::membership(&after.to_conf_state()))
}

/// The crate's view of a membership, made by changes, as the crate itself does it when it starts.
fn restored(membership: &Membership) -> Option<ProgressTracker> {
    let step = |kind: ConfChangeType, id: &base::ReplicaId| {
        let mut step = ConfChangeSingle { node_id: id.0, ..Default::default() };
        step.set_change_type(kind);
        step
    };
    let Membership { voters, learners, voters_outgoing, learners_next, auto_leave } = membership;
    let add = |of: &[base::ReplicaId]| of.iter().map(|id| step(ConfChangeType::AddNode, id)).collect::<Vec<_>>();
    let learn = learners.iter().chain(learners_next).map(|id| step(ConfChangeType::AddLearnerNode, id));
    let joint = !voters_outgoing.is_empty();
    let mut tracker = ProgressTracker::new(1);
    let mut one_by_one = add(if joint { voters_outgoing } else { voters });
    if !joint {
        one_by_one.extend(learn.clone());
    }
    for step in one_by_one {
        let (conf, changes) = Changer::new(&tracker).simple(&[step]).ok()?;
        tracker.apply_conf(conf, changes, 1);
    }
    if joint {
        let mut at_once: Vec<_> = voters_outgoing.iter().map(|id| step(ConfChangeType::RemoveNode, id)).collect();
        at_once.extend(add(voters));
        at_once.extend(learn);
        let (conf, changes) = Changer::new(&tracker).enter_joint(*auto_leave, &at_once).ok()?;
        tracker.apply_conf(conf, changes, 1);
    }
    Some(tracker)
}

#[cfg(test)]
mod tests {
    use base::{ReplicaId, SplitMix64};
    use wire::{MembershipOp, MembershipStep};

    use super::*;

    fn ids(of: &[u64]) -> Vec<ReplicaId> {
        of.iter().copied().map(ReplicaId).collect()
    }

    fn step(op: MembershipOp, replica: u64) -> MembershipStep {
        MembershipStep { op, replica: ReplicaId(replica) }
    }

    fn change(steps: Vec<MembershipStep>) -> MembershipChange {
        MembershipChange { steps, basis: 0 }
    }

    #[test]
    fn one_voter_becomes_three_through_a_joint_configuration() {
        let one = Membership { voters: ids(&[1]), learners: ids(&[2, 3]), ..Membership::default() };
        let promote = change(vec![step(MembershipOp::AddVoter, 2), step(MembershipOp::AddVoter, 3)]);
        let joint = changed(&one, &promote).expect("it fits");
        assert_eq!(joint.voters, ids(&[1, 2, 3]));
        assert_eq!((joint.voters_outgoing.clone(), joint.auto_leave), (ids(&[1]), true));
        assert_eq!(changed(&joint, &promote), None, "one change at a time");
        let three = changed(&joint, &MembershipChange::default()).expect("the end of it");
        assert_eq!(three, Membership { voters: ids(&[1, 2, 3]), ..Membership::default() });
        assert_eq!(changed(&three, &MembershipChange::default()), None, "nothing to end");
    }

    #[test]
    fn a_voter_demoted_in_a_joint_change_becomes_a_learner_when_it_ends() {
        let two = Membership { voters: ids(&[1, 2]), ..Membership::default() };
        let steps = vec![step(MembershipOp::AddLearner, 1), step(MembershipOp::AddVoter, 3)];
        let joint = changed(&two, &change(steps)).expect("it fits");
        assert_eq!(joint.learners_next, ids(&[1]));
        let after = changed(&joint, &MembershipChange::default()).expect("the end of it");
        assert_eq!(after, Membership { voters: ids(&[2, 3]), learners: ids(&[1]), ..Membership::default() });
    }

    #[test]
    fn nobody_removes_the_last_voter() {
        let one = Membership { voters: ids(&[1]), ..Membership::default() };
        assert_eq!(changed(&one, &change(vec![step(MembershipOp::Remove, 1)])), None);
    }

    /// Whatever a history of changes makes, it makes it too when each step begins from what is written down of it.
    #[test]
    fn a_membership_that_is_restored_is_the_one_that_was() {
        let mut joint_seen = 0;
        for seed in 0..200 {
            let mut random = SplitMix64::new(seed);
            let mut written = Membership { voters: ids(&[1]), ..Membership::default() };
            let mut lived = restored(&written).expect("one voter");
            for _ in 0..30 {
                let steps = (0..random.below(4)).map(|at| {
                    let op = [MembershipOp::AddVoter, MembershipOp::AddLearner, MembershipOp::Remove];
                    step(op[random.below(3) as usize], 1 + (at * 2 + random.below(2)) % 6)
                });
                let change = change(steps.collect());
                let raw = convert::conf_change(&change);
                let mut changer = Changer::new(&lived);
                let outcome = match (raw.leave_joint(), raw.enter_joint()) {
                    (true, _) => changer.leave_joint(),
                    (_, Some(auto_leave)) => changer.enter_joint(auto_leave, raw.get_changes()),
                    _ => changer.simple(raw.get_changes()),
                };
                let after = changed(&written, &change);
                assert_eq!(after.is_some(), outcome.is_ok(), "seed {seed}: {written:?}, {change:?}");
                if let (Some(after), Ok((conf, changes))) = (after, outcome) {
                    lived.apply_conf(conf, changes, 1);
                    assert_eq!(after, convert::membership(&lived.conf().to_conf_state()), "seed {seed}");
                    assert_eq!(convert::check_membership(&after), Ok(()), "seed {seed}: {after:?}");
                    joint_seen += u64::from(!after.voters_outgoing.is_empty());
                    written = after;
                }
            }
        }
        assert!(joint_seen > 100, "{joint_seen} joint configurations");
    }
}
