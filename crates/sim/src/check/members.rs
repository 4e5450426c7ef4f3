//! Membership: which replica is whose, and who decides in a group.
//!
//! - The id of a replica belongs to one group and one node for ever; no node has two replicas of a group; only its node
//!   speaks for a replica.
//! - Voters change by steps whose majorities overlap (Raft section 6): through a joint configuration, or one at a time.
//!   All that a configuration names was given out for its group. Every node's configuration at an index is the one that
//!   follows from the committed entries.
//! - No change costs fault tolerance. After each entry, joint configurations included, a group survives as many failures of
//!   voters as before it; or, if that is less, as many as it would with all that may vote by the tables that the change was
//!   based on. (So a group shrinks with a cluster that an operator has nodes leave, and to one voter in a recovery.)
//!
//!   All voters count, not only those that are there. Who is there changes while an entry is on its way, and a leader has to
//!   go by what it heard before: judged by the truth at the commit, right changes would look wrong. That somebody goes while
//!   too few of the others are there shows by what follows: the group stops (`voters-dropped-too-early`).
//! - `__meta` has an odd number of voters, at most five, whenever it is not between two configurations (or where a leader
//!   that goes first makes voters of its successors), and all of them are members of the cluster.

use std::collections::{BTreeMap, BTreeSet};

use base::limits::META_VOTERS_MAX;
use base::{GroupId, NodeId, ReplicaId};
use metadata::{Metadata, NodeLifecycle, NodeRecord};
use wire::{Entry, EntryKind, Membership, MembershipChange, MembershipOp};

use super::Commands;

/// See the module.
#[derive(Default)]
pub struct Members {
    owners: BTreeMap<ReplicaId, (GroupId, NodeId)>,
    /// The configurations of each group, by the index from which they hold.
    configurations: BTreeMap<GroupId, BTreeMap<u64, Configuration>>,
    /// Changes of configurations.
    pub changes: u64,
}

/// Who decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Configuration {
    voters: BTreeSet<ReplicaId>,
    /// The old voters while two configurations decide together.
    outgoing: BTreeSet<ReplicaId>,
    learners: BTreeSet<ReplicaId>,
    learners_next: BTreeSet<ReplicaId>,
}

/// What an entry does to a configuration.
struct Change {
    before: Configuration,
    after: Configuration,
    /// The index of `__meta` whose tables it was based on.
    basis: u64,
}

impl Members {
    /// The tables as of the last committed command.
    ///
    /// # Errors
    /// A replica changed its owner, or a node has two of a group.
    pub fn tables(&mut self, before: Option<&Metadata>, state: &Metadata) -> Result<(), String> {
        if before.is_none_or(|before| !before.nodes.ptr_eq(&state.nodes)) {
            for record in state.nodes.values() {
                self.owned(record.meta_replica, GroupId::META, record.member.node)?;
            }
            if let Some(first) = state.nodes.values().next() {
                self.born(GroupId::META, &[first.meta_replica]);
            }
        }
        if before.is_none_or(|before| !before.partitions.ptr_eq(&state.partitions)) {
            for partition in state.partitions.values() {
                let group = partition.group;
                let nodes: BTreeSet<NodeId> = partition.replicas.iter().map(|replica| replica.node).collect();
                if nodes.len() != partition.replicas.len() {
                    return Err(format!("a node has two replicas of group {group}: {:?}", partition.replicas));
                }
                if let Some(stranger) = nodes.iter().find(|node| !state.nodes.contains_key(*node)) {
                    return Err(format!("node {stranger} has a replica of group {group} and is no member"));
                }
                for replica in &partition.replicas {
                    self.owned(replica.replica, group, replica.node)?;
                }
                self.born(group, &partition.born);
            }
        }
        Ok(())
    }

    /// What was given out in another life of the cluster, where that is all that is known of it.
    #[must_use]
    pub fn given_out(&self) -> Members {
        Members { owners: self.owners.clone(), ..Members::default() }
    }

    /// The highest id of a replica that was given out.
    #[must_use]
    pub fn highest(&self) -> ReplicaId {
        self.owners.last_key_value().map(|(replica, _)| *replica).unwrap_or_default()
    }

    fn owned(&mut self, replica: ReplicaId, group: GroupId, node: NodeId) -> Result<(), String> {
        match self.owners.insert(replica, (group, node)) {
            Some((other, owner)) if (other, owner) != (group, node) => Err(format!(
                "replica {replica} is of group {group} on node {node}; it was of group {other} on node {owner}"
            )),
            _ => Ok(()),
        }
    }

    fn born(&mut self, group: GroupId, voters: &[ReplicaId]) {
        self.configurations.entry(group).or_insert_with(|| {
            let first = Configuration { voters: voters.iter().copied().collect(), ..Configuration::default() };
            BTreeMap::from([(0, first)])
        });
    }

    /// A node speaks, or leads, as a replica.
    ///
    /// # Errors
    /// It is another's.
    pub fn speaks(&self, node: NodeId, group: GroupId, replica: ReplicaId) -> Result<(), String> {
        match self.owners.get(&replica) {
            Some(owner) if *owner == (group, node) => Ok(()),
            Some((other, owner)) => Err(format!(
                "node {node} speaks as replica {replica} of group {group}, which is of group {other} on node {owner}"
            )),
            None => {
                Err(format!("node {node} speaks as replica {replica} of group {group}, which nobody has given out"))
            }
        }
    }

    /// An entry was committed that nobody applied before.
    ///
    /// # Errors
    /// It changes the membership in a way that it must not.
    pub fn committed(&mut self, group: GroupId, entry: &Entry, state: Option<&Metadata>) -> Result<(), String> {
        let place = |why: String| format!("group {group}, index {}: {why}", entry.index);
        let Some(Change { before, after, .. }) = self.change(group, entry).map_err(place)? else { return Ok(()) };
        if !overlap(&before, &after) {
            return Err(place(format!("{before:?} and {after:?} could decide without each other")));
        }
        let goes = |record: &NodeRecord| !record.lifecycle.stays() && after.voters.contains(&record.meta_replica);
        let hand_over = state.is_some_and(|state| state.nodes.values().any(goes));
        self.fits(group, hand_over, &after).map_err(place)?;
        self.changes += 1;
        self.configurations.entry(group).or_default().insert(entry.index, after);
        Ok(())
    }

    /// What an entry changes in the configuration of its group, if anything.
    fn change(&self, group: GroupId, entry: &Entry) -> Result<Option<Change>, String> {
        if entry.kind != EntryKind::Membership {
            return Ok(None);
        }
        let change: MembershipChange = wire::decode(&entry.data).map_err(|why| why.to_string())?;
        let Some((_, before)) = self.configurations.get(&group).and_then(|all| all.last_key_value()) else {
            return Err("its members change, and nobody knows the group".into());
        };
        let after = before.changed(&change);
        Ok((after != *before).then(|| Change { before: before.clone(), after, basis: change.basis }))
    }

    /// An entry is about to be [`committed`](Members::committed); `tables` are those of all indexes.
    ///
    /// # Errors
    /// It leaves its group with less fault tolerance, though there are members enough for more.
    pub fn keeps_tolerance(&self, group: GroupId, entry: &Entry, tables: &Commands) -> Result<(), String> {
        let Ok(Some(Change { before, after, basis })) = self.change(group, entry) else { return Ok(()) };
        // Of another life of the cluster, or of long ago: nobody knows what it was based on.
        let Some(state) = tables.at(basis) else { return Ok(()) };
        let votes = |record: &NodeRecord| before.voters.contains(&record.meta_replica);
        let wanted = match state.partitions.get(&group) {
            Some(partition) => state.replica_target(partition),
            None if group == GroupId::META => meta_voters_wanted(state, votes),
            None => return Ok(()),
        };
        let (was, is) = (before.tolerance(), after.tolerance());
        if is >= was.min(tolerance(wanted)) {
            return Ok(());
        }
        Err(format!(
            "group {group}, index {}: {before:?} tolerates {was} failures, {after:?} tolerates {is}, and {wanted} could vote by \
             the tables of index {basis}",
            entry.index
        ))
    }

    fn fits(&self, group: GroupId, hand_over: bool, it: &Configuration) -> Result<(), String> {
        if it.voters.is_empty() {
            return Err(format!("nobody votes: {it:?}"));
        }
        let all = it.voters.iter().chain(&it.outgoing).chain(&it.learners).chain(&it.learners_next);
        for replica in all {
            if self.owners.get(replica).is_none_or(|(of, _)| *of != group) {
                return Err(format!("replica {replica} was not given out for the group: {it:?}"));
            }
        }
        if it.learners.iter().any(|replica| it.voters.contains(replica) || it.outgoing.contains(replica)) {
            return Err(format!("a learner votes: {it:?}"));
        }
        let rests = it.outgoing.is_empty();
        let even = it.voters.len().is_multiple_of(2) && !hand_over;
        if group == GroupId::META && rests && (even || it.voters.len() > META_VOTERS_MAX) {
            return Err(format!("__meta rests with {} voters: {it:?}", it.voters.len()));
        }
        Ok(())
    }

    /// Whether a group goes on without any one of its replicas: at least three vote, and nothing is being changed. The
    /// index from which that holds: whoever has forgotten that it is committed asks those who voted before.
    #[must_use]
    pub fn spares_one(&self, group: GroupId) -> Option<u64> {
        let (index, last) = self.configurations.get(&group)?.last_key_value()?;
        (last.voters.len() >= 3 && last.outgoing.is_empty()).then_some(*index)
    }

    /// A node that has applied a group up to `applied` has this configuration.
    ///
    /// # Errors
    /// Other replicas vote in it than follow from the committed entries.
    pub fn has(&self, node: NodeId, group: GroupId, applied: u64, membership: &Membership) -> Result<(), String> {
        let known = self.configurations.get(&group).and_then(|all| all.range(..=applied).next_back());
        let Some((_, known)) = known else { return Ok(()) };
        let set = |of: &[ReplicaId]| of.iter().copied().collect::<BTreeSet<_>>();
        // A learner that has not seen its own entry may leave itself out.
        if (set(&membership.voters), set(&membership.voters_outgoing)) == (known.voters.clone(), known.outgoing.clone())
        {
            return Ok(());
        }
        Err(format!("node {node} has {membership:?} at index {applied} of group {group}; committed is {known:?}"))
    }
}

impl Configuration {
    /// The configuration after a change; a change that does not fit changes nothing.
    fn changed(&self, change: &MembershipChange) -> Configuration {
        let mut next = self.clone();
        let joint = !self.outgoing.is_empty();
        if change.steps.is_empty() {
            next.outgoing.clear();
            next.learners.append(&mut next.learners_next);
            return next;
        }
        if joint {
            return next;
        }
        if change.steps.len() > 1 {
            next.outgoing.clone_from(&self.voters);
        }
        for step in &change.steps {
            next.voters.remove(&step.replica);
            next.learners.remove(&step.replica);
            next.learners_next.remove(&step.replica);
            match step.op {
                MembershipOp::AddVoter => next.voters.insert(step.replica),
                MembershipOp::AddLearner if next.outgoing.contains(&step.replica) => {
                    next.learners_next.insert(step.replica)
                }
                MembershipOp::AddLearner => next.learners.insert(step.replica),
                MembershipOp::Remove => false,
            };
        }
        next
    }

    /// So many voters may fail, whichever they are, and the others decide.
    fn tolerance(&self) -> usize {
        self.deciding().map(|voters| tolerance(voters.len())).min().unwrap_or(0)
    }

    /// The sets of voters of which each needs a majority.
    fn deciding(&self) -> impl Iterator<Item = &BTreeSet<ReplicaId>> {
        std::iter::once(&self.voters).chain(Some(&self.outgoing).filter(|outgoing| !outgoing.is_empty()))
    }
}

/// So many of the voters of one set may fail.
fn tolerance(voters: usize) -> usize {
    voters.saturating_sub(1) / 2
}

/// How many nodes vote in `__meta`: an odd number, at most five, of those that are well; lost ones count as long as they
/// vote. Three instead of five, if so no failure domain has the majority.
#[must_use]
pub fn meta_voters_wanted(state: &Metadata, votes: impl Fn(&NodeRecord) -> bool) -> usize {
    let counts = |record: &&NodeRecord| match record.lifecycle {
        NodeLifecycle::Lost => votes(record),
        lifecycle => lifecycle.holds_replicas(),
    };
    let domains = metadata::crowding(state.nodes.values().filter(counts).map(NodeRecord::domain));
    let found = |share: usize| domains.iter().map(|nodes| *nodes.min(&share)).sum::<usize>();
    match found(usize::MAX) {
        0..=2 => 1,
        3 | 4 => 3,
        _ if found(2) < 5 && found(1) >= 3 => 3,
        _ => 5,
    }
}

/// Whether whatever decides in one configuration shares a replica with whatever decides in the other.
fn overlap(one: &Configuration, other: &Configuration) -> bool {
    one.deciding().any(|a| other.deciding().any(|b| majorities_meet(a, b)))
}

/// Whether every majority of one set shares a member with every majority of the other.
fn majorities_meet(one: &BTreeSet<ReplicaId>, other: &BTreeSet<ReplicaId>) -> bool {
    let majority = |of: &BTreeSet<ReplicaId>| of.len() / 2 + 1;
    let shared = one.intersection(other).count();
    // Two majorities that avoid each other take of the shared members only what their own ones cannot give.
    let needs = |of: &BTreeSet<ReplicaId>| majority(of).saturating_sub(of.len() - shared);
    needs(one) + needs(other) > shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Wall;
    use metadata::PartitionRecord;
    use wire::{Member, MembershipStep};

    const META: GroupId = GroupId::META;
    const PARTITION: GroupId = GroupId(1);

    fn ids(of: &[u64]) -> BTreeSet<ReplicaId> {
        of.iter().copied().map(ReplicaId).collect()
    }

    /// Replicas 1 to 5 of `__meta` on nodes 1 to 5; the first one votes.
    fn members() -> Members {
        let mut members = Members::default();
        for id in 1..=5 {
            members.owned(ReplicaId(id), META, NodeId(id)).expect("new");
        }
        members.born(META, &[ReplicaId(1)]);
        members
    }

    fn entry(index: u64, steps: &[(MembershipOp, u64)]) -> Entry {
        let steps = steps.iter().map(|(op, id)| MembershipStep { op: *op, replica: ReplicaId(*id) }).collect();
        let data = wire::encode(&MembershipChange { steps, basis: 0 });
        Entry { index, term: 1, kind: EntryKind::Membership, data }
    }

    use MembershipOp::{AddLearner, AddVoter, Remove};

    #[test]
    fn one_voter_becomes_three_and_rests_there() {
        let mut members = members();
        members.committed(META, &entry(3, &[(AddLearner, 2)]), None).expect("a learner");
        members.committed(META, &entry(4, &[(AddLearner, 3)]), None).expect("another");
        members.committed(META, &entry(5, &[(AddVoter, 2), (AddVoter, 3)]), None).expect("joint");
        members.committed(META, &entry(6, &[]), None).expect("left");
        members.committed(META, &entry(7, &[]), None).expect("a second leave changes nothing");
        assert_eq!(members.changes, 4);
        let now = |voters: &[u64]| Membership {
            voters: voters.iter().copied().map(ReplicaId).collect(),
            ..Membership::default()
        };
        assert_eq!(members.has(NodeId(1), META, 9, &now(&[1, 2, 3])), Ok(()));
        assert_eq!(members.has(NodeId(1), META, 4, &now(&[1])), Ok(()), "behind");
        assert!(members.has(NodeId(1), META, 9, &now(&[1])).is_err());
    }

    #[test]
    fn an_even_number_of_voters_and_strangers_are_noticed() {
        assert!(members().committed(META, &entry(3, &[(AddVoter, 2)]), None).is_err(), "two voters");
        assert!(members().committed(META, &entry(3, &[(AddLearner, 9)]), None).is_err(), "a stranger");
        assert!(members().committed(META, &entry(3, &[(Remove, 1)]), None).is_err(), "nobody is left");
        let mut leaves = members();
        leaves.committed(META, &entry(3, &[(AddVoter, 2), (AddLearner, 3)]), None).expect("joint");
        assert!(leaves.committed(META, &entry(4, &[]), None).is_err(), "rests at two");
    }

    /// Tables with nodes 1 to `stay`, which have the replicas of `__meta` with their numbers, and a partition.
    fn tables(stay: u64, lost: &[u64]) -> Commands {
        let mut state = Metadata::default();
        for id in 1..=stay {
            let lifecycle = if lost.contains(&id) { NodeLifecycle::Lost } else { NodeLifecycle::Active };
            let (member, meta_replica) = (Member { node: NodeId(id), ..Member::default() }, ReplicaId(id));
            let record = NodeRecord { member, meta_replica, joined: Wall(0), lifecycle, successor: None };
            state.nodes.insert(NodeId(id), record);
        }
        let (topic, replicas) = ("t".into(), Vec::new());
        let partition =
            PartitionRecord { group: PARTITION, topic, partition: 0, born: Vec::new(), replicas, epoch_base: 0 };
        state.partitions.insert(PARTITION, partition);
        let mut commands = Commands::default();
        commands.recovered(&state);
        commands
    }

    /// Whether a group with these voters may change so.
    fn keeps(group: GroupId, voters: &[u64], steps: &[(MembershipOp, u64)], tables: &Commands) -> bool {
        let mut members = Members::default();
        members.born(group, &voters.iter().copied().map(ReplicaId).collect::<Vec<_>>());
        members.keeps_tolerance(group, &entry(9, steps), tables).is_ok()
    }

    #[test]
    fn a_change_that_costs_tolerance_though_enough_could_vote_is_noticed() {
        for group in [META, PARTITION] {
            let three = |steps: &[(MembershipOp, u64)], tables: &Commands| keeps(group, &[1, 2, 3], steps, tables);
            assert!(three(&[(AddVoter, 4), (AddLearner, 3)], &tables(4, &[])), "one takes the other's place");
            assert!(!three(&[(AddLearner, 3)], &tables(4, &[])), "it goes first");
            assert!(!three(&[(AddLearner, 3)], &tables(3, &[])), "all three could vote");
            assert!(three(&[(AddLearner, 3), (AddLearner, 2)], &tables(2, &[])), "two are left");
            assert!(!three(&[(AddLearner, 3), (AddLearner, 2)], &tables(3, &[])), "joint with one alone");
            assert!(!three(&[(AddLearner, 3)], &tables(3, &[3])), "whoever is lost votes as long as nobody else can");
            assert!(three(&[(AddLearner, 3)], &Commands::default()), "nobody knows the tables");
            assert!(keeps(group, &[1], &[(AddVoter, 2), (AddVoter, 3)], &tables(3, &[])), "more");
        }
        let five: &[u64] = &[1, 2, 3, 4, 5];
        assert!(keeps(META, five, &[(AddLearner, 4), (AddLearner, 5)], &tables(4, &[])), "four are left");
        assert!(!keeps(META, five, &[(AddLearner, 4), (AddLearner, 5)], &tables(5, &[])), "five could vote");
    }

    #[test]
    fn majorities_that_could_miss_each_other_are_noticed() {
        let meet = |one: &[u64], other: &[u64]| majorities_meet(&ids(one), &ids(other));
        assert!(meet(&[1, 2, 3], &[1, 2, 3, 4]));
        assert!(meet(&[1], &[1, 2]), "both of two");
        assert!(!meet(&[1], &[1, 2, 3]), "2 and 3 decide without 1");
        assert!(!meet(&[1, 2, 3], &[1, 2, 3, 4, 5]), "1, 2 and 3, 4, 5");
        assert!(!meet(&[1, 2, 3], &[3, 4, 5]));
        // By brute force, over all pairs of sets of up to five.
        let subsets = |of: u32| (0..32u32).filter(move |it| it & of == *it);
        let majority = |set: u32, of: u32| 2 * set.count_ones() > of.count_ones();
        for (one, other) in (1..32u32).flat_map(|one| (1..32u32).map(move |other| (one, other))) {
            let apart = subsets(one)
                .filter(|a| majority(*a, one))
                .any(|a| subsets(other).any(|b| majority(b, other) && a & b == 0));
            let set = |bits: u32| (0..5).filter(|bit| bits >> bit & 1 == 1).map(ReplicaId).collect();
            assert_eq!(majorities_meet(&set(one), &set(other)), !apart, "{one:b} {other:b}");
        }
    }

    #[test]
    fn a_replica_with_two_owners_and_a_false_voice_are_noticed() {
        let mut members = members();
        assert!(members.owned(ReplicaId(2), META, NodeId(3)).is_err());
        let members = self::members();
        assert_eq!(members.speaks(NodeId(2), META, ReplicaId(2)), Ok(()));
        assert!(members.speaks(NodeId(1), META, ReplicaId(2)).is_err());
        assert!(members.speaks(NodeId(2), GroupId(1), ReplicaId(2)).is_err());
        assert!(members.speaks(NodeId(2), META, ReplicaId(8)).is_err());
    }
}
