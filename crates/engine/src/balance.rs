//! Leaderships go home. A partition's first replica is the one that ought to lead it: the table spreads the first places
//! over the nodes, so that each serves its share. After a failure or a drain others lead, and would do so for good.
//!
//! Whoever leads in the place of the first replica hands over once nothing speaks against it: the replica votes and has
//! caught up, its node is meant to serve, has been heard of for a while (a longer one if it was lost again soon after
//! it got leaderships back, see [`backoff`]) and has a disk that writes, and the members of the group are those of the
//! table, so that this never interferes with replicas that move. What has just changed is left alone: a leader keeps
//! what it got for [`PREFERRED_LEADER_AFTER`], whoever asked for it. A transfer that comes to nothing costs the group
//! an election timeout without writes, so few are under way at a time, and none is tried again soon, or before others
//! had their turn (see [`transfers`]).

mod backoff;
mod transfers;

use std::collections::BTreeMap;

use backoff::Backoff;
use base::limits::PREFERRED_LEADER_AFTER;
use base::simulation::{Mark, Plant, mark, planted};
use base::{GroupId, Millis, Mono, NodeId, ReplicaId};
use metadata::{NodeLifecycle, PartitionRecord, ReplicaRecord};
use multiraft::GroupStatus;
use transfers::Transfers;
use wire::Membership;

use crate::core::NodeCore;
use crate::membership::caught_up;

/// Between two looks at the groups this node leads.
const INTERVAL: Millis = Millis(250);

/// What is on its way home, and what came of it before.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    looked: Option<Mono>,
    transfers: Transfers,
    backoff: Backoff,
}

/// A group that this node leads in the place of `home`.
struct Stray {
    group: GroupId,
    home: ReplicaRecord,
}

impl NodeCore {
    pub(crate) fn drive_balance(&mut self) {
        let now = self.now.mono;
        let due = self.balance.looked.is_none_or(|at| now.since(at) >= INTERVAL);
        if !due || planted(Plant::LeadersNotReturned) {
            return;
        }
        self.balance.looked = Some(now);
        let (groups, peers, members) = (&self.groups, &self.peers, &self.metadata.nodes);
        let leads = |group: GroupId| groups.get(&group).is_some_and(|replica| replica.active);
        self.balance.transfers.look(now, leads);
        self.balance.backoff.look(now, |node| peers.heard_for(node, now));
        self.balance.backoff.forget_others(|node| members.contains_key(&node));
        for Stray { group, home } in self.strays() {
            mark(Mark::LeadershipReturned);
            self.balance.transfers.begin(group, now);
            self.balance.backoff.returned(home.node, now);
            self.raft.transfer_leader(group, home.replica);
        }
    }

    /// Groups that this node leads in another replica's place, and can hand to it now; not more than may be under way.
    fn strays(&self) -> Vec<Stray> {
        let (me, now, transfers) = (self.me(), self.now.mono, &self.balance.transfers);
        let room = transfers.room();
        if room == 0 {
            return Vec::new();
        }
        let mut ready: BTreeMap<NodeId, bool> = BTreeMap::new();
        let settled = |since: Option<Mono>| since.is_some_and(|at| now.since(at) >= PREFERRED_LEADER_AFTER);
        let led = self.groups.iter().filter(|(_, replica)| replica.active && settled(replica.led_since));
        let waiting = led.filter_map(|(group, _)| {
            let partition = self.metadata.partitions.get(group)?;
            let home = *partition.replicas.first().filter(|first| first.node != me)?;
            let ready = *ready.entry(home.node).or_insert_with(|| self.is_ready_to_lead(home.node));
            (ready && !transfers.is_under_way(*group)).then_some((Stray { group: *group, home }, partition))
        });
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_by_key(|(stray, _)| transfers.turn(stray.group));
        let goes = |(stray, partition): &(Stray, &PartitionRecord)| {
            let status = self.stays(partition, stray.home.replica).then(|| self.raft.status(stray.group)).flatten();
            status.is_some_and(|status| goes_home(&status, partition))
        };
        waiting.into_iter().filter(goes).map(|(stray, _)| stray).take(room).collect()
    }

    /// A node that is to serve, that has been there for long enough, and whose disk writes.
    fn is_ready_to_lead(&self, node: NodeId) -> bool {
        let (record, now) = (self.metadata.nodes.get(&node), self.now.mono);
        record.is_some_and(|record| record.lifecycle == NodeLifecycle::Active)
            && self.peers.heard_for(node, now).is_some_and(|span| span >= self.balance.backoff.span(node))
            && self.peers.has_space(node, now)
    }

    /// Whether this node gives no leaderships back to another one yet, because that was lost again soon after it got
    /// some, for checkers.
    #[must_use]
    pub fn keeps_leaderships_from(&self, node: NodeId) -> bool {
        let span = self.balance.backoff.span(node);
        let heard_for = self.peers.heard_for(node, self.now.mono);
        span > PREFERRED_LEADER_AFTER && heard_for.is_none_or(|heard| heard < span)
    }

    /// A replica that is not about to be retired.
    fn stays(&self, partition: &PartitionRecord, replica: ReplicaId) -> bool {
        self.metadata.replica_plan(partition).keep.iter().any(|kept| kept.replica == replica)
    }
}

/// Whether the group's members are at rest, and the first of them can take over without delay.
fn goes_home(status: &GroupStatus, partition: &PartitionRecord) -> bool {
    let Membership { voters, learners, voters_outgoing, .. } = &status.membership;
    let as_told = |r: &ReplicaRecord| r.voter && !r.retired && voters.contains(&r.replica);
    let same = voters.len() == partition.replicas.len() && partition.replicas.iter().all(as_told);
    let home = partition.replicas.first().map(|first| first.replica);
    let progress = status.progress.iter().find(|progress| Some(progress.replica) == home);
    same && learners.is_empty()
        && voters_outgoing.is_empty()
        && progress.is_some_and(|progress| caught_up(progress, status.commit))
}

#[cfg(test)]
mod tests {
    use multiraft::{ReplicaProgress, Role};

    use super::*;

    fn partition(replicas: &[(u64, bool)]) -> PartitionRecord {
        let record = |(replica, voter): &(u64, bool)| ReplicaRecord {
            replica: ReplicaId(*replica),
            node: NodeId(*replica),
            voter: *voter,
            retired: false,
        };
        PartitionRecord {
            group: GroupId(7),
            topic: "t".to_owned(),
            partition: 0,
            born: replicas.iter().map(|(replica, _)| ReplicaId(*replica)).collect(),
            replicas: replicas.iter().map(record).collect(),
            epoch_base: 0,
        }
    }

    /// Led by replica 2; replica 1 has everything up to `matched`.
    fn status(voters: &[u64], matched: u64, active: bool) -> GroupStatus {
        GroupStatus {
            group: GroupId(7),
            replica: ReplicaId(2),
            role: Role::Leader,
            term: 3,
            leader: ReplicaId(2),
            vote: ReplicaId(2),
            votes: None,
            commit: 1000,
            applied: 1000,
            first_index: 2,
            last_index: 1000,
            persisted: 1000,
            membership: Membership { voters: voters.iter().copied().map(ReplicaId).collect(), ..Membership::default() },
            progress: vec![ReplicaProgress { replica: ReplicaId(1), matched, active, snapshot: false }],
        }
    }

    #[test]
    fn a_first_replica_that_is_there_and_has_everything_gets_its_leadership_back() {
        let table = partition(&[(1, true), (2, true), (3, true)]);
        assert!(goes_home(&status(&[1, 2, 3], 1000, true), &table));
        assert!(!goes_home(&status(&[1, 2, 3], 100, true), &table), "it lags");
        assert!(!goes_home(&status(&[1, 2, 3], 1000, false), &table), "it is not heard of");
    }

    #[test]
    fn no_leadership_moves_while_members_do() {
        let table = partition(&[(1, true), (2, true), (3, false)]);
        assert!(!goes_home(&status(&[1, 2], 1000, true), &table), "a replica is being made");
        let table = partition(&[(1, true), (2, true), (3, true)]);
        assert!(!goes_home(&status(&[1, 2], 1000, true), &table), "Raft is behind the table");
        let mut joint = status(&[1, 2, 3], 1000, true);
        joint.membership.voters_outgoing = vec![ReplicaId(2)];
        assert!(!goes_home(&joint, &table), "two configurations are in force");
        let mut retired = table;
        retired.replicas[0].retired = true;
        assert!(!goes_home(&status(&[1, 2, 3], 1000, true), &retired), "it is on its way out");
    }
}
