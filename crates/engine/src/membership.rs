//! Who belongs to which group: `__meta`'s voters at 1, 3 or 5, and partitions that grow onto new nodes and leave those
//! that go. Learners first; they become voters when they have caught up, in one change with those whose place they take;
//! one change at a time.
//!
//! A voter that goes becomes a learner first and is removed in a second change. By then a majority of those who stay has
//! on its disk that the first one is committed (decision 0010), so that whoever was removed is not needed any more.

use std::collections::{BTreeMap, BTreeSet};

use base::limits::META_VOTERS_MAX;
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, Millis, ReplicaId};
use metadata::{Command, NodeLifecycle};
use multiraft::{GroupStatus, ReplicaProgress};
use wire::{Membership, MembershipChange, MembershipOp, MembershipStep};

use crate::core::NodeCore;
use crate::requests::Internal;
use crate::{Request, Target};

/// A learner this close behind the commit index has caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;
/// Between two looks at the groups this node leads.
const INTERVAL: Millis = Millis(50);
/// Between two looks as long as the tables stay as they are and nothing was to be changed.
const INTERVAL_WHEN_SETTLED: Millis = Millis(500);

/// How many voters a metadata group over nodes of these failure domains has: odd, and at most five, so that each one added
/// adds fault tolerance. Fewer where those that share a domain would be the majority and fewer need not have it in one: of
/// zones a, a, a, b and c, three outlive each zone and five do not. The second value: whether no domain need have the majority.
#[must_use]
pub(crate) fn meta_voter_target<D: Ord>(domains: impl IntoIterator<Item = D>) -> (usize, bool) {
    let sizes = metadata::crowding(domains);
    let most = sizes.iter().sum::<usize>().clamp(1, META_VOTERS_MAX);
    let most = if most.is_multiple_of(2) { most - 1 } else { most };
    let minority = |count: usize, size: usize| size.min((count - 1) / 2);
    let outlives = |count: &usize| sizes.iter().map(|size| minority(*count, *size)).sum::<usize>() >= *count;
    let spread = (1..=most).rev().step_by(2).find(outlives);
    (spread.unwrap_or(most), spread.is_some())
}

/// What a group is to become.
#[derive(Debug, Default)]
struct Goal {
    /// All that are to be in it.
    members: Vec<ReplicaId>,
    /// Those of them that are to vote, if there is a choice.
    electors: Vec<ReplicaId>,
    /// Those that vote only where there are not enough electors.
    tolerated: Vec<ReplicaId>,
    /// So many are to vote.
    voters: usize,
    /// So many can be found of whom no failure domain has the majority.
    outlives_domains: bool,
    /// The zones of those whose nodes have one.
    zones: BTreeMap<ReplicaId, String>,
}

/// What a replica fails together with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Domain<'a> {
    Zone(&'a str),
    Own(ReplicaId),
}

impl Goal {
    fn domain(&self, replica: ReplicaId) -> Domain<'_> {
        self.zones.get(&replica).map_or(Domain::Own(replica), |zone| Domain::Zone(zone))
    }

    /// Whether these would have lost their majority with one failure domain.
    fn crowded<'r>(&self, voters: impl IntoIterator<Item = &'r ReplicaId>) -> bool {
        let load = metadata::crowding(voters.into_iter().map(|replica| self.domain(*replica)));
        load.first().is_some_and(|most| 2 * most >= load.iter().sum())
    }
}

/// The next step towards it.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Change(MembershipChange),
    /// The leader is not to vote any more: another one has to take over before it can go.
    GiveWayTo(ReplicaId),
}

fn change(steps: impl IntoIterator<Item = (MembershipOp, ReplicaId)>) -> Step {
    let steps = steps.into_iter().map(|(op, replica)| MembershipStep { op, replica }).collect();
    Step::Change(MembershipChange { steps, basis: 0 })
}

/// The next step that brings a group towards its goal. `None`: nothing to do now.
fn next_step(status: &GroupStatus, goal: &Goal) -> Option<Step> {
    let Membership { voters, learners, voters_outgoing, .. } = &status.membership;
    if !voters_outgoing.is_empty() {
        return None; // The leader is leaving a joint configuration.
    }
    if let Some(new) = goal.members.iter().find(|replica| !voters.contains(replica) && !learners.contains(replica)) {
        return Some(change([(MembershipOp::AddLearner, *new)]));
    }
    if let Some(old) = learners.iter().find(|replica| !goal.members.contains(replica)) {
        return Some(change([(MembershipOp::Remove, *old)]));
    }
    let chosen = chosen_voters(status, goal)?;
    let promoted = chosen.iter().filter(|replica| !voters.contains(replica)).map(|r| (MembershipOp::AddVoter, *r));
    let demoted = voters.iter().filter(|replica| !chosen.contains(replica)).map(|r| (MembershipOp::AddLearner, *r));
    if chosen.contains(&status.replica) {
        // All at once, so that the group never rests at an even number of voters on its way to an odd one, nor at fewer.
        let mut steps: Vec<_> = promoted.chain(demoted).collect();
        if planted(Plant::VotersDroppedFirst) && steps.iter().any(|(op, _)| *op == MembershipOp::AddLearner) {
            steps.retain(|(op, _)| *op == MembershipOp::AddLearner);
        }
        return (!steps.is_empty()).then(|| change(steps));
    }
    let successor = |p: &&ReplicaProgress| voters.contains(&p.replica) && chosen.contains(&p.replica) && p.active;
    match status.progress.iter().filter(successor).max_by_key(|p| p.matched) {
        Some(best) => Some(Step::GiveWayTo(best.replica)),
        None if chosen.iter().any(|replica| voters.contains(replica)) => None,
        None => Some(change(promoted)),
    }
}

/// Whether a replica is heard of and has nearly all that is committed.
pub(crate) fn caught_up(progress: &ReplicaProgress, commit: u64) -> bool {
    let close = progress.matched > 0 && progress.matched + CAUGHT_UP_ENTRIES >= commit;
    progress.active && !progress.snapshot && close
}

/// Who is to vote, if there are enough that can.
fn chosen_voters(status: &GroupStatus, goal: &Goal) -> Option<BTreeSet<ReplicaId>> {
    let voters = &status.membership.voters;
    let progress = |replica: &ReplicaId| status.progress.iter().find(|p| p.replica == *replica);
    let active = |replica: &ReplicaId| progress(replica).is_some_and(|p| p.active);
    let ready = |replica: &ReplicaId| progress(replica).is_some_and(|p| caught_up(p, status.commit));
    let able =
        |replica: &&ReplicaId| voters.contains(replica) || planted(Plant::LearnersPromotedAtOnce) || ready(replica);
    // Who leads, votes already and is heard of is not replaced without need.
    let sorted = |among: &[ReplicaId]| {
        let mut among: Vec<ReplicaId> = among.iter().filter(able).copied().collect();
        among.sort_by_key(|r| (*r != status.replica, !voters.contains(r), !active(r)));
        among
    };
    let (electors, tolerated) = (sorted(&goal.electors), sorted(&goal.tolerated));
    let so_many = electors.len().min(goal.voters);
    let electors: Vec<_> = electors.into_iter().map(|replica| (replica, goal.domain(replica))).collect();
    let spread = metadata::spread(&electors, so_many);
    mark_if(Mark::VotersSpread, || !electors.iter().take(so_many).all(|(replica, _)| spread.contains(replica)));
    let chosen: BTreeSet<_> = spread.into_iter().chain(tolerated).take(goal.voters).collect();
    // Whoever goes is needed as long as too many of those who stay are not there.
    let well = chosen.iter().filter(|replica| active(replica)).count();
    // Fewer vote only because of zones where as many could: not while one of them is silent, whose place is to be taken.
    let needless = chosen.len() < voters.len() && goal.electors.len() >= voters.len();
    let most = if needless { chosen.len().saturating_sub(1) } else { chosen.len() / 2 };
    let decides = well > most || planted(Plant::VotersDroppedTooEarly);
    // Those who do better are waited for where it would get worse until they have caught up.
    let worse = goal.outlives_domains && goal.crowded(&chosen) && !goal.crowded(voters);
    mark_if(Mark::VotersWaitForZone, || worse);
    (goal.voters > 0 && chosen.len() == goal.voters && decides && !worse).then_some(chosen)
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
        self.hand_over_when_drained();
    }

    fn drive_meta_members(&mut self) {
        let Some(meta) = self.groups.get(&GroupId::META).filter(|g| g.active) else { return };
        let mut goal = Goal::default();
        for record in self.metadata.nodes.values() {
            let (replica, lifecycle) = (record.meta_replica, record.lifecycle);
            goal.zones.extend(record.zone().map(|zone| (replica, zone.to_owned())));
            if lifecycle.holds_replicas() {
                goal.electors.push(replica);
            } else if lifecycle == NodeLifecycle::Lost && meta.membership.voters.contains(&replica) {
                goal.tolerated.push(replica);
            }
            // Whoever goes hears of it to the end.
            if lifecycle.stays() || !self.metadata.is_vacant(record.member.node) {
                goal.members.push(replica);
            }
        }
        let domains = |of: &[ReplicaId]| of.iter().map(|replica| goal.domain(*replica)).collect::<Vec<_>>();
        let (electors, tolerated) = (domains(&goal.electors), domains(&goal.tolerated));
        // Nobody waits for the lost to stand against a zone.
        let (_, outlives_domains) = meta_voter_target(electors.iter());
        let (voters, _) = meta_voter_target(electors.iter().chain(&tolerated));
        (goal.voters, goal.outlives_domains) = (voters, outlives_domains);
        self.change_members(GroupId::META, &goal);
    }

    fn drive_partition_members(&mut self) {
        let (now, settled) = (self.now.mono, self.planner.settled_for == Some(self.metadata.applied));
        // A leadership is gained without a change of tables.
        if settled && self.planner.partitions_at.is_some_and(|at| now.since(at) < INTERVAL_WHEN_SETTLED) {
            return;
        }
        self.planner.partitions_at = Some(now);
        let unsettled = self.unsettled_partitions();
        self.planner.settled_for = unsettled.is_empty().then_some(self.metadata.applied);
        for group in unsettled {
            let Some(partition) = self.metadata.partitions.get(&group) else { continue };
            // Its members were changed for reasons that this node has not heard of yet.
            if self.groups.get(&group).is_some_and(|g| g.basis > self.metadata.applied) {
                mark(Mark::MembersAheadOfTable);
                continue;
            }
            let plan = self.metadata.replica_plan(partition);
            let members: Vec<_> = partition.replicas.iter().filter(|r| !r.retired).map(|r| r.replica).collect();
            let electors: Vec<_> = plan.keep.iter().map(|r| r.replica).collect();
            let goal = Goal {
                // Until all replicas of the target are there, they only learn.
                voters: plan.keep.len() + plan.missing,
                // A node that holds a retired replica gets another one only when that is gone.
                tolerated: members.iter().filter(|replica| !electors.contains(replica)).copied().collect(),
                members,
                electors,
                ..Goal::default()
            };
            self.change_members(group, &goal);
            self.tell_members(group);
        }
    }

    /// Groups that this node leads and whose members are not yet those that the table wants, or not those that it shows.
    fn unsettled_partitions(&self) -> Vec<GroupId> {
        let led = self.groups.iter().filter(|(group, replica)| **group != GroupId::META && replica.active);
        let unsettled = |(group, replica): &(&GroupId, &crate::groups::Group)| {
            let Some(partition) = self.metadata.partitions.get(*group) else { return false };
            let Membership { voters, learners, voters_outgoing, .. } = &replica.membership;
            let as_told = |r: &metadata::ReplicaRecord| r.voter && !r.retired && voters.contains(&r.replica);
            let same = voters.len() == partition.replicas.len() && partition.replicas.iter().all(as_told);
            !(same && learners.is_empty() && voters_outgoing.is_empty())
        };
        led.filter(unsettled).map(|(group, _)| *group).collect()
    }

    fn change_members(&mut self, group: GroupId, goal: &Goal) {
        let Some(status) = self.raft.status(group) else { return };
        match next_step(&status, goal) {
            Some(Step::Change(mut change)) => {
                change.basis = self.metadata.applied;
                let demotes = |s: &MembershipStep| {
                    s.op == MembershipOp::AddLearner && status.membership.voters.contains(&s.replica)
                };
                let promotes = change.steps.iter().any(|s| s.op == MembershipOp::AddVoter);
                let alone = promotes && !goal.electors.contains(&status.replica);
                // Refused while another change is under way; the next look comes soon.
                if self.raft.propose_membership(group, status.term, &change).is_ok() {
                    if change.steps.iter().any(demotes) {
                        mark(Mark::VoterDemoted);
                    }
                    if alone {
                        mark(Mark::LeaderHadNoSuccessor);
                    }
                }
            }
            Some(Step::GiveWayTo(successor)) => {
                mark(Mark::LeaderGaveWay);
                self.raft.transfer_leader(group, successor);
            }
            None => {}
        }
    }

    /// The table of members follows what Raft has decided.
    fn tell_members(&mut self, group: GroupId) {
        let (Some(entry), Some(partition)) = (self.groups.get(&group), self.metadata.partitions.get(&group)) else {
            return;
        };
        let Membership { voters, learners, voters_outgoing, .. } = &entry.membership;
        if !voters_outgoing.is_empty() || self.planner.telling(group) {
            return;
        }
        let news = partition.replicas.iter().find_map(|r| {
            let replica = r.replica;
            match (voters.contains(&replica), r.voter) {
                (votes, told) if votes != told => Some(Command::ReplicaVoter { group, replica, demoted: !votes }),
                (false, _) if r.retired && !learners.contains(&replica) => {
                    Some(Command::RemoveReplica { group, replica })
                }
                _ => None,
            }
        });
        if let Some(command) = news {
            self.planner.members_being_told(group);
            self.ask(Internal::MembersTold(group), Target::Leader(GroupId::META), Request::Command(command));
        }
    }

    /// Whether a node's replica of `__meta` has left the group, of which this node is the leader.
    pub(crate) fn left_meta(&self, replica: ReplicaId) -> bool {
        self.groups.get(&GroupId::META).is_some_and(|meta| {
            let Membership { voters, learners, voters_outgoing, learners_next, .. } = &meta.membership;
            let mut all = voters.iter().chain(learners).chain(voters_outgoing).chain(learners_next);
            voters_outgoing.is_empty() && !all.any(|known| *known == replica)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use multiraft::Role;

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
            votes: None,
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

    fn ids(of: &[u64]) -> Vec<ReplicaId> {
        of.iter().copied().map(ReplicaId).collect()
    }

    fn goal(members: &[u64], voters: usize) -> Goal {
        Goal { members: ids(members), electors: ids(members), voters, ..Goal::default() }
    }

    fn steps(status: &GroupStatus, goal: &Goal) -> Vec<(MembershipOp, u64)> {
        match next_step(status, goal) {
            Some(Step::Change(change)) => change.steps.iter().map(|s| (s.op, s.replica.0)).collect(),
            None => Vec::new(),
            Some(Step::GiveWayTo(replica)) => panic!("the leader is to give way to {replica}"),
        }
    }

    /// Of voters and learners; the first voter leads.
    fn led(voters: &[u64], learners: &[(u64, u64)]) -> GroupStatus {
        let mut status = status(voters, learners);
        let voter = |replica: &u64| ReplicaProgress {
            replica: ReplicaId(*replica),
            matched: 1000,
            active: true,
            snapshot: false,
        };
        status.progress.extend(voters.iter().map(voter));
        status.replica = ReplicaId(voters[0]);
        status
    }

    use MembershipOp::{AddLearner, AddVoter, Remove};

    #[test]
    fn voters_are_one_three_or_five() {
        let targets: Vec<_> = (1..=8).map(|nodes| meta_voter_target(0..nodes).0).collect();
        assert_eq!(targets, [1, 1, 3, 3, 5, 5, 5, 5]);
    }

    #[test]
    fn no_more_voters_than_can_outlive_each_zone_where_any_number_can() {
        let target = |zones: &str| meta_voter_target(zones.chars());
        assert_eq!(target("aaabc"), (3, true));
        assert_eq!(target("aabbc"), (5, true));
        assert_eq!(target("aaabcd"), (5, true));
        assert_eq!(target("aaaabc"), (3, true));
        assert_eq!(target("aab"), (3, false), "one zone has the majority whatever is done");
        assert_eq!(target("aaabb"), (5, false));
        assert_eq!(target("aaaaa"), (5, false));
        assert_eq!(target("a"), (1, false));
    }

    #[test]
    fn newcomers_learn_first_one_by_one() {
        assert_eq!(steps(&status(&[1], &[]), &goal(&[1, 2, 3], 3)), [(AddLearner, 2)]);
    }

    #[test]
    fn learners_are_promoted_together_when_all_have_caught_up() {
        assert_eq!(steps(&status(&[1], &[(2, 1000), (3, 10)]), &goal(&[1, 2, 3], 3)), []);
        let ready = status(&[1], &[(2, 1000), (3, 990)]);
        assert_eq!(steps(&ready, &goal(&[1, 2, 3], 3)), [(AddVoter, 2), (AddVoter, 3)]);
        assert_eq!(steps(&status(&[1], &[(2, 1000)]), &goal(&[1, 2], 1)), [], "an even number adds no fault tolerance");
    }

    #[test]
    fn whoever_goes_is_replaced_in_one_change_and_removed_in_a_second_one() {
        let mut goal = goal(&[1, 2, 4], 3);
        assert_eq!(steps(&led(&[1, 2, 3], &[]), &goal), [(AddLearner, 4)]);
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 10)]), &goal), [], "it has not caught up");
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 1000)]), &goal), [(AddVoter, 4), (AddLearner, 3)]);
        assert_eq!(steps(&led(&[1, 2, 4], &[(3, 0)]), &goal), [(Remove, 3)], "wherever it is");
        assert_eq!(steps(&led(&[1, 2, 4], &[]), &goal), []);
        goal.members.push(ReplicaId(3));
        assert_eq!(steps(&led(&[1, 2, 4], &[(3, 0)]), &goal), [], "it is to learn to the end");
    }

    #[test]
    fn without_a_substitute_the_others_go_on_with_an_odd_number() {
        assert_eq!(steps(&led(&[1, 2, 3], &[]), &goal(&[1, 2], 1)), [(AddLearner, 2), (AddLearner, 3)]);
    }

    #[test]
    fn a_voter_that_goes_is_needed_while_one_that_stays_is_silent() {
        let mut status = led(&[1, 2, 3], &[]);
        let two = goal(&[1, 2], 2);
        assert_eq!(steps(&status, &two), [(AddLearner, 3)]);
        status.progress.iter_mut().for_each(|p| p.active = p.replica != ReplicaId(2));
        assert_eq!(steps(&status, &two), [], "one of two decides nothing");
    }

    #[test]
    fn a_leader_that_goes_gives_way_first() {
        let status = led(&[3, 1, 2], &[(4, 1000)]);
        let goal = goal(&[1, 2, 4], 3);
        assert!(matches!(next_step(&status, &goal), Some(Step::GiveWayTo(ReplicaId(1 | 2)))));
        let mut alone = status.clone();
        alone.progress.iter_mut().for_each(|p| p.active = p.replica == ReplicaId(3) || p.replica == ReplicaId(4));
        assert_eq!(next_step(&alone, &goal), None, "nobody hears it");
    }

    #[test]
    fn the_only_voter_makes_another_one_before_it_gives_way() {
        let goal = goal(&[1], 1);
        assert_eq!(steps(&led(&[3], &[]), &goal), [(AddLearner, 1)]);
        assert_eq!(steps(&led(&[3], &[(1, 1000)]), &goal), [(AddVoter, 1)]);
        assert_eq!(next_step(&led(&[3, 1], &[]), &goal), Some(Step::GiveWayTo(ReplicaId(1))));
        assert_eq!(steps(&led(&[1, 3], &[]), &goal), [(AddLearner, 3)]);
        assert_eq!(steps(&led(&[1], &[(3, 1000)]), &goal), [(Remove, 3)]);
    }

    /// Voters (the first leads) and learners that have caught up, with their zones; `-`: none. What the leader does about it.
    fn check_zones(voters: &str, learners: &str, count: usize, expect: &[(MembershipOp, u64)]) {
        let all: Vec<(u64, char)> = (1..).zip(voters.chars().chain(learners.chars())).collect();
        let (voting, learning) = all.split_at(voters.len());
        let numbers = |of: &[(u64, char)]| of.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        let caught_up: Vec<_> = learning.iter().map(|(id, _)| (*id, 1000)).collect();
        let mut goal = goal(&numbers(&all), count);
        let zones = all.iter().filter(|(_, zone)| *zone != '-').map(|(id, zone)| (ReplicaId(*id), zone.to_string()));
        goal.zones = zones.collect();
        assert_eq!(steps(&led(&numbers(voting), &caught_up), &goal), expect, "{voters} {learners}");
    }

    #[test]
    fn voters_are_spread_over_zones_and_nobody_is_replaced_for_nothing() {
        check_zones("---", "---", 3, &[]);
        check_zones("abc", "abc", 3, &[]);
        check_zones("aab", "ab", 3, &[]);
        check_zones("aab", "c", 3, &[(AddVoter, 4), (AddLearner, 2)]);
        check_zones("aab", "-", 3, &[(AddVoter, 4), (AddLearner, 2)]);
        check_zones("aaa", "bc", 3, &[(AddVoter, 4), (AddVoter, 5), (AddLearner, 2), (AddLearner, 3)]);
        check_zones("aaa", "b", 3, &[(AddVoter, 4), (AddLearner, 3)]);
        check_zones("baa", "b", 3, &[]);
        check_zones("a", "abc", 3, &[(AddVoter, 3), (AddVoter, 4)]);
        check_zones("aaabb", "c", 5, &[(AddVoter, 6), (AddLearner, 3)]);
    }

    #[test]
    fn a_voter_is_not_replaced_for_its_zone_by_one_that_has_not_caught_up() {
        let mut goal = goal(&[1, 2, 3, 4], 3);
        goal.zones = [(1, "a"), (2, "a"), (3, "b"), (4, "c")].map(|(id, zone)| (ReplicaId(id), zone.into())).into();
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 10)]), &goal), []);
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 1000)]), &goal), [(AddVoter, 4), (AddLearner, 2)]);
    }

    #[test]
    fn no_zone_gets_the_majority_while_somebody_else_is_still_to_catch_up() {
        let mut goal = goal(&[1, 2, 4, 5], 3);
        goal.zones =
            [(1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "c")].map(|(id, zone)| (ReplicaId(id), zone.into())).into();
        goal.outlives_domains = true;
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 1000), (5, 10)]), &goal), [], "5 is to take the place of 3");
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 1000), (5, 1000)]), &goal), [(AddVoter, 5), (AddLearner, 3)]);
        goal.outlives_domains = false;
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 1000), (5, 10)]), &goal), [(AddVoter, 4), (AddLearner, 3)]);
    }

    /// Nodes of zones a, a, b and c; the voter in c is lost, and nobody else is in another zone.
    #[test]
    fn a_lost_voter_is_replaced_though_its_zone_was_the_only_other_one() {
        let zones = [(1, "a"), (2, "a"), (3, "b"), (4, "c")].map(|(id, zone)| (ReplicaId(id), zone.into())).into();
        let (members, electors, tolerated) = (ids(&[1, 2, 3, 4]), ids(&[1, 2, 3]), ids(&[4]));
        let mut goal = Goal { members, electors, tolerated, voters: 3, zones, ..Goal::default() };
        goal.outlives_domains = meta_voter_target(goal.electors.iter().map(|replica| goal.domain(*replica))).1;
        assert_eq!(steps(&led(&[1, 3, 4], &[(2, 1000)]), &goal), [(AddVoter, 2), (AddLearner, 4)]);
    }

    #[test]
    fn zones_make_voters_fewer_only_when_all_who_go_on_voting_are_there() {
        let mut goal = goal(&[1, 2, 3, 4, 5], 3);
        let zones = [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")];
        goal.zones = zones.map(|(id, zone)| (ReplicaId(id), zone.into())).into();
        let mut status = led(&[1, 2, 3, 4, 5], &[]);
        assert_eq!(steps(&status, &goal), [(AddLearner, 2), (AddLearner, 3)]);
        status.progress.iter_mut().for_each(|p| p.active = p.replica != ReplicaId(5));
        assert_eq!(steps(&status, &goal), [], "5 of 5 may lose one more, 3 of 3 none");
    }

    #[test]
    fn a_lost_voter_is_replaced_where_there_is_somebody_and_kept_where_there_is_not() {
        let lost = |members: &[u64], electors: &[u64], voters| Goal {
            members: ids(members),
            electors: ids(electors),
            tolerated: ids(&[3]),
            voters,
            ..Goal::default()
        };
        assert_eq!(steps(&led(&[1, 2, 3], &[]), &lost(&[1, 2, 3], &[1, 2], 3)), []);
        let four = lost(&[1, 2, 3, 4], &[1, 2, 4], 3);
        assert_eq!(steps(&led(&[1, 2, 3], &[(4, 1000)]), &four), [(AddVoter, 4), (AddLearner, 3)]);
        assert_eq!(steps(&led(&[1, 2, 4], &[(3, 0)]), &four), []);
    }

    /// A node was lost and came back after its replica 3 had been retired, and meanwhile the one that was made instead, 4,
    /// is to go with its node: 3 has to go first, or its node never gets another one.
    #[test]
    fn a_retired_voter_goes_though_its_place_is_taken_by_one_that_will_go_too() {
        let (members, electors, tolerated) = (ids(&[1, 2, 4]), ids(&[1, 2]), ids(&[4]));
        let goal = Goal { members, electors, tolerated, voters: 3, ..Goal::default() };
        assert_eq!(steps(&led(&[1, 3, 4], &[(2, 1000)]), &goal), [(AddVoter, 2), (AddLearner, 3)]);
        let both = [(AddVoter, 2), (AddVoter, 4), (AddLearner, 3), (AddLearner, 5)];
        assert_eq!(steps(&led(&[1, 3, 5], &[(2, 1000), (4, 1000)]), &goal), both);
        assert_eq!(steps(&led(&[1, 3, 5], &[(2, 1000), (4, 10)]), &goal), [], "it has not caught up");
        assert_eq!(steps(&led(&[1, 2, 4], &[]), &goal), []);
    }
}
