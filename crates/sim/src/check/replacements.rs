//! Nodes that are replaced (`node replace`): what the successor is promised.
//!
//! - A replica that a partition needs because a node goes is made on that node's successor, unless the successor has one
//!   already, is not active, or cannot be heard. No other node gets it, unless it is the successor of another one that has a
//!   replica there.
//! - In the end the successor votes where it took the other one's place.
//!
//! Nothing else is promised. A successor that is named when its node goes already may come too late: perhaps it was decided
//! before where the replica is made. VMs go wherever there is room, and who votes in `__meta` follows from the failure
//! domains, as with any node that goes; whether they do is judged elsewhere (`finale.rs`).

use std::collections::BTreeMap;

use base::{GroupId, NodeId};
use metadata::{Command, Metadata, PartitionRecord};

use crate::time::{Nanos, ms};

/// What a node says is heard within this time, where nothing is wrong.
const HEARD: Nanos = ms(500);

/// See the module.
#[derive(Default)]
pub struct Replacements {
    /// By group and successor.
    promises: BTreeMap<(GroupId, NodeId), Promise>,
    /// Replicas that successors got.
    pub taken_over: u64,
    /// Successors that were named when their node went already: as the first one, or in place of another one.
    pub named_late: u64,
    pub changed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Promise {
    since: Nanos,
    kept: bool,
}

impl Replacements {
    /// A command was committed, between these two states; `unheard_at`: when some node that runs may not have heard of
    /// another one, last.
    ///
    /// # Errors
    /// A replica that a successor was to get is made elsewhere.
    pub fn committed(
        &mut self,
        (before, after): (&Metadata, &Metadata),
        command: &Command,
        now: Nanos,
        unheard_at: impl Fn(NodeId) -> Nanos,
    ) -> Result<(), String> {
        match command.body() {
            Command::RemoveNode { node, .. } => self.promised(before, after, *node, now),
            Command::AddReplica { group, node } => self.added(before, after, (*group, *node), unheard_at)?,
            _ => {}
        }
        self.promises.retain(|(group, successor), promise| stands(after, *group, *successor, promise.kept));
        Ok(())
    }

    /// Perhaps a node is to be replaced from now on. What a partition lacked before may have been decided on before, too.
    fn promised(&mut self, before: &Metadata, after: &Metadata, node: NodeId, now: Nanos) {
        let (Some(was), Some(is)) = (before.nodes.get(&node), after.nodes.get(&node)) else { return };
        if !was.lifecycle.stays() && is.successor != was.successor {
            let counter = if was.successor.is_none() { &mut self.named_late } else { &mut self.changed };
            *counter += 1;
        }
        let Some(successor) = is.successor.filter(|_| was.lifecycle != is.lifecycle) else { return };
        let settled = |partition: &PartitionRecord| {
            let moves = before.nodes.keys().any(|other| before.spreads_better_on(partition, *other));
            before.replica_plan(partition).missing == 0 && !moves
        };
        for partition in after.partitions.values().filter(|partition| settled(partition)) {
            let group = partition.group;
            if !holds(partition, successor) && stands(after, group, successor, false) {
                self.promises.insert((group, successor), Promise { since: now, kept: false });
            }
        }
    }

    fn added(
        &mut self,
        before: &Metadata,
        after: &Metadata,
        (group, node): (GroupId, NodeId),
        unheard_at: impl Fn(NodeId) -> Nanos,
    ) -> Result<(), String> {
        let has = |state: &Metadata| state.partitions.get(&group).is_some_and(|partition| holds(partition, node));
        if has(before) || !has(after) {
            return Ok(());
        }
        if let Some(promise) = self.promises.get_mut(&(group, node)) {
            self.taken_over += u64::from(!promise.kept);
            promise.kept = true;
            return Ok(());
        }
        if before.partitions.get(&group).is_some_and(|partition| takes_a_place(before, partition, node)) {
            return Ok(());
        }
        let of_group = (group, NodeId(0))..=(group, NodeId(u64::MAX));
        let mut waits = self.promises.range(of_group).filter(|(_, promise)| !promise.kept);
        let heard = waits.find(|((_, successor), promise)| unheard_at(*successor) + HEARD < promise.since);
        if let Some(((_, successor), promise)) = heard {
            let since = crate::time::show(promise.since);
            return Err(format!(
                "node {node} gets a replica of group {group} that node {successor} is to get since {since}"
            ));
        }
        // The successor could not be heard, perhaps.
        self.promises.retain(|(of, _), promise| *of != group || promise.kept);
        Ok(())
    }

    /// The run is over, and the nodes that were replaced are gone.
    ///
    /// # Errors
    /// A successor has not taken over what it was to.
    pub fn finish(&self, state: &Metadata) -> Result<(), String> {
        for ((group, successor), promise) in &self.promises {
            let Some(partition) = state.partitions.get(group) else { continue };
            let plan = state.replica_plan(partition);
            let votes = partition.replicas.iter().any(|it| it.node == *successor && it.voter);
            // It may have become one too many, when a node that was lost came back.
            let spared = promise.kept && !plan.keep.iter().any(|it| it.node == *successor);
            if !votes && !spared {
                return Err(format!("node {successor} has not taken over in group {group}: {partition:?}"));
            }
        }
        Ok(())
    }
}

fn holds(partition: &PartitionRecord, node: NodeId) -> bool {
    partition.replicas.iter().any(|replica| replica.node == node)
}

/// Whether a node is the successor of one that has a replica of the partition.
fn takes_a_place(state: &Metadata, partition: &PartitionRecord, successor: NodeId) -> bool {
    let replaced = |node: NodeId| state.nodes.get(&node).is_some_and(|record| record.successor == Some(successor));
    partition.replicas.iter().any(|it| replaced(it.node))
}

/// Whether a successor still has to get a replica of a group, or to keep the one that it got.
fn stands(state: &Metadata, group: GroupId, successor: NodeId, kept: bool) -> bool {
    let Some(partition) = state.partitions.get(&group).filter(|_| state.takes_replicas(successor)) else {
        return false;
    };
    if kept {
        return partition.replicas.iter().any(|it| it.node == successor && !it.retired);
    }
    takes_a_place(state, partition, successor) && state.replica_plan(partition).missing > 0
}

#[cfg(test)]
mod tests {
    use base::{ReplicaId, Wall};
    use metadata::{CommandEnvelope, CommandResult, NodeLifecycle, NodeRecord, ReplicaRecord};
    use wire::Member;

    use super::*;

    const GROUP: GroupId = GroupId(1);

    /// Four nodes, and a partition with voters on the first three.
    fn tables() -> Metadata {
        let mut state = Metadata::default();
        for id in 1..=4 {
            let record = NodeRecord {
                member: Member { node: NodeId(id), ..Member::default() },
                meta_replica: ReplicaId(id),
                joined: Wall(0),
                lifecycle: NodeLifecycle::Active,
                successor: None,
            };
            state.nodes.insert(NodeId(id), record);
        }
        let replica =
            |id: u64| ReplicaRecord { replica: ReplicaId(10 + id), node: NodeId(id), voter: true, retired: false };
        let partition = PartitionRecord {
            group: GROUP,
            topic: "t".into(),
            partition: 0,
            born: vec![ReplicaId(11)],
            replicas: (1..=3).map(replica).collect(),
            epoch_base: 0,
        };
        state.partitions.insert(GROUP, partition);
        state
    }

    /// A run of its own.
    struct Run {
        state: Metadata,
        checker: Replacements,
        /// When the nodes were not heard of, last.
        unheard_at: Nanos,
    }

    impl Run {
        fn new() -> Run {
            Run { state: tables(), checker: Replacements::default(), unheard_at: 0 }
        }

        fn commit(&mut self, command: Command) -> Result<(), String> {
            let before = self.state.clone();
            let index = before.applied + 1;
            let result = self.state.apply(index, &CommandEnvelope::new(None, Wall(0), command.clone()));
            assert!(!matches!(result, CommandResult::Refused { .. }), "{command:?}: {result:?}");
            let unheard_at = self.unheard_at;
            self.checker.committed((&before, &self.state), &command, ms(10_000), |_| unheard_at)
        }

        /// Node 3 is replaced.
        fn replace(&mut self, with: u64) {
            let (node, successor) = (NodeId(3), Some(NodeId(with)));
            self.commit(Command::RemoveNode { node, dead: true, successor }).expect("nothing is decided yet");
        }

        fn add(&mut self, node: u64) -> Result<(), String> {
            self.commit(Command::AddReplica { group: GROUP, node: NodeId(node) })
        }
    }

    /// A fifth node that has nothing, as the fourth.
    fn with_a_choice() -> Run {
        let mut run = Run::new();
        let mut fifth = run.state.nodes[&NodeId(4)].clone();
        (fifth.member.node, fifth.meta_replica) = (NodeId(5), ReplicaId(5));
        run.state.nodes.insert(NodeId(5), fifth);
        run
    }

    #[test]
    fn the_successor_gets_the_replica_and_votes_in_the_end() {
        let mut run = with_a_choice();
        run.replace(4);
        assert!(run.checker.finish(&run.state).is_err(), "nobody has it yet");
        run.add(4).expect("as promised");
        assert!(run.checker.finish(&run.state).is_err(), "it only learns");
        let replica = run.state.partitions[&GROUP].replicas.last().expect("just made").replica;
        run.commit(Command::ReplicaVoter { group: GROUP, replica, demoted: false }).expect("as promised");
        assert_eq!((run.checker.finish(&run.state), run.checker.taken_over), (Ok(()), 1));
    }

    #[test]
    fn another_node_gets_it_only_if_the_successor_cannot_be_heard() {
        let mut run = with_a_choice();
        run.replace(4);
        assert!(run.add(5).expect_err("node 4 is there").contains("node 4"));
        let mut run = with_a_choice();
        run.replace(4);
        run.unheard_at = ms(9_600);
        run.add(5).expect("node 4 may have been away");
        assert_eq!((run.checker.finish(&run.state), run.checker.taken_over), (Ok(()), 0));
        let mut run = with_a_choice();
        run.replace(4);
        run.commit(Command::DrainNode { node: NodeId(4), drain: true }).expect("no replica");
        run.add(5).expect("node 4 gets nothing new");
    }

    #[test]
    fn successors_of_two_that_go_may_come_in_any_order() {
        let mut run = with_a_choice();
        run.replace(4);
        run.commit(Command::RemoveNode { node: NodeId(2), dead: true, successor: Some(NodeId(5)) })
            .expect("no replica");
        run.add(5).expect("it takes the place of node 2");
        assert!(run.checker.finish(&run.state).is_err(), "node 4 is still to get its one");
        run.add(4).expect("as promised");
        assert_eq!(run.checker.taken_over, 1);
    }

    #[test]
    fn who_is_named_late_is_counted_and_promised_nothing() {
        let mut run = with_a_choice();
        let go = |with: Option<u64>| Command::RemoveNode { node: NodeId(3), dead: true, successor: with.map(NodeId) };
        let counted = |run: &Run| (run.checker.named_late, run.checker.changed);
        run.commit(go(None)).expect("no replica");
        run.commit(go(Some(4))).expect("no replica");
        assert_eq!(counted(&run), (1, 0));
        run.commit(go(Some(4))).expect("said again");
        run.commit(Command::DrainNode { node: NodeId(4), drain: true }).expect("no replica");
        run.commit(go(Some(5))).expect("no replica");
        assert_eq!(counted(&run), (1, 1));
        run.commit(Command::DrainNode { node: NodeId(4), drain: false }).expect("no replica");
        run.add(4).expect("decided before, perhaps");
        assert_eq!((run.checker.finish(&run.state), run.checker.taken_over), (Ok(()), 0));
    }

    #[test]
    fn what_nobody_was_promised_goes_anywhere() {
        let mut run = with_a_choice();
        run.commit(Command::RemoveNode { node: NodeId(3), dead: true, successor: None }).expect("no successor");
        run.add(5).expect("anywhere");
        let mut run = with_a_choice();
        run.replace(2);
        run.add(5).expect("the successor has one already");
        // Node 3 was lost before, so somebody may have decided before it was replaced.
        let mut run = with_a_choice();
        run.commit(Command::NodeLost { node: NodeId(3), lost: true }).expect("no replica");
        run.replace(4);
        run.add(5).expect("decided before, perhaps");
    }
}
