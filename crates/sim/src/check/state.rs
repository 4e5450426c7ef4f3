//! The cluster's state: equal everywhere at equal index, with everything in it that was acknowledged, and never read
//! from before an acknowledgement that came earlier.

use std::collections::{BTreeMap, BTreeSet};

use base::GroupId;
use metadata::Metadata;

use crate::queue::NodeIx;

/// See the module.
#[derive(Default)]
pub struct States {
    cursors: BTreeMap<NodeIx, u64>,
    /// What a replica of a partition is at an index, and on which node that was seen first.
    replicas: BTreeMap<(GroupId, u64), (u64, NodeIx)>,
    acked: BTreeMap<u64, AckedCommand>,
    acked_index: u64,
    /// States of `__meta` that were compared with the replayed one.
    pub compared: u64,
    /// States of partitions that were compared with that of another replica, or of an earlier process.
    pub replicas_compared: u64,
}

/// What a client was told of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AckedCommand {
    /// The topic exists from now on.
    Topic(String),
    /// The machine exists from now on.
    Vm(String),
    /// The machine exists no longer, or will soon not.
    NoVm(String),
    /// The token exists from now on.
    Token(u64),
    /// The token is revoked from now on.
    NoToken(u64),
    /// Nothing that shows in the state.
    Other,
}

impl States {
    /// Whether the node's state at that index is the last one that was observed.
    #[must_use]
    pub fn knows(&self, node: NodeIx, index: u64) -> bool {
        self.cursors.get(&node) == Some(&index)
    }

    /// A node has this state now; `expected` is what the committed commands make at its index, if that is still known.
    ///
    /// # Errors
    /// It is another one, or goes back.
    pub fn observed(&mut self, node: NodeIx, state: &Metadata, expected: Option<&Metadata>) -> Result<(), String> {
        let index = state.applied;
        match self.cursors.insert(node, index) {
            Some(last) if last > index => return Err(format!("n{node} went back from index {last} to {index}")),
            _ => {}
        }
        let Some(expected) = expected else { return Ok(()) };
        self.compared += 1;
        if expected == state {
            Ok(())
        } else {
            Err(format!("n{node} at index {index}: {}", difference(expected, state)))
        }
    }

    /// A node's replica of a partition is applied up to an index, and has that digest.
    ///
    /// # Errors
    /// It was another one there before.
    pub fn replica(&mut self, node: NodeIx, group: GroupId, index: u64, digest: u64) -> Result<(), String> {
        let Some((known, first)) = self.replicas.get(&(group, index)) else {
            self.replicas.insert((group, index), (digest, node));
            return Ok(());
        };
        self.replicas_compared += 1;
        if *known == digest {
            return Ok(());
        }
        Err(format!("n{node} has another state of group {group} at index {index} than n{first} had"))
    }

    /// A node's process starts again.
    pub fn restarted(&mut self, node: NodeIx) {
        self.cursors.remove(&node);
    }

    /// The highest index acknowledged so far: what is asked from now on happens behind it.
    #[must_use]
    pub fn acked_index(&self) -> u64 {
        self.acked_index
    }

    /// A client was told that its command, asked for when [`States::acked_index`] was `floor`, took place at `index`.
    ///
    /// # Errors
    /// Another command took place there, or the index is not behind what was acknowledged before.
    pub fn acked(&mut self, index: u64, floor: u64, command: AckedCommand) -> Result<(), String> {
        if index <= floor {
            return Err(format!("{command:?} took place at index {index}, though {floor} was acknowledged before"));
        }
        self.acked_index = self.acked_index.max(index);
        match self.acked.insert(index, command) {
            Some(other) => Err(format!("{other:?} and {:?} took place at one index, {index}", self.acked[&index])),
            None => Ok(()),
        }
    }

    /// A node says that it has everything committed when it was asked, when [`States::acked_index`] was `floor`.
    ///
    /// # Errors
    /// It has not.
    pub fn barrier(&self, node: NodeIx, applied: u64, floor: u64) -> Result<(), String> {
        if applied < floor {
            return Err(format!("n{node} answered a read point at index {applied}; {floor} was acknowledged before"));
        }
        Ok(())
    }

    /// The run is over, and this is a node's state.
    ///
    /// # Errors
    /// The effect of an acknowledged command is missing.
    pub fn finish(&self, node: NodeIx, state: &Metadata) -> Result<(), String> {
        // An unacknowledged delete may have taken place all the same; the clients delete only what they own, so only
        // machines whose last acknowledged command made them and that nobody tried to delete are demanded.
        let mut demanded = BTreeSet::new();
        for (index, command) in &self.acked {
            let missing = |what: &str| Err(format!("n{node}: {what}, acknowledged at index {index}, is missing"));
            match command {
                AckedCommand::Topic(name) if !state.topics.contains_key(name) => return missing(name),
                AckedCommand::Token(id) if !state.tokens.contains_key(id) => return missing(&format!("token {id}")),
                AckedCommand::NoToken(id) if state.tokens.contains_key(id) => {
                    return Err(format!("n{node}: token {id} was revoked at index {index}, and is there"));
                }
                AckedCommand::Vm(name) => {
                    demanded.insert(name);
                }
                AckedCommand::NoVm(name) => {
                    demanded.remove(name);
                }
                _ => {}
            }
        }
        match demanded.into_iter().find(|name| !state.vm_names.contains_key(*name)) {
            Some(name) => Err(format!("n{node}: VM {name} was acknowledged and is missing")),
            None => Ok(()),
        }
    }

    /// A client is about to delete a machine: whether it exists at the end is open from now on.
    pub fn forget_vm(&mut self, name: &str) {
        let open = |command: &mut AckedCommand| {
            if matches!(command, AckedCommand::Vm(known) if known == name) {
                *command = AckedCommand::Other;
            }
        };
        self.acked.values_mut().for_each(open);
    }

    /// A client is about to revoke a token: as with machines.
    pub fn forget_token(&mut self, id: u64) {
        for command in self.acked.values_mut().filter(|command| **command == AckedCommand::Token(id)) {
            *command = AckedCommand::Other;
        }
    }
}

/// Which tables differ.
#[must_use]
pub fn difference(one: &Metadata, other: &Metadata) -> String {
    let tables = [
        ("cluster", one.cluster == other.cluster),
        ("cluster_incarnation", one.cluster_incarnation == other.cluster_incarnation),
        ("recovery", one.recovery == other.recovery),
        ("applied", one.applied == other.applied),
        ("nodes", one.nodes == other.nodes),
        ("topics", one.topics == other.topics),
        ("partitions", one.partitions == other.partitions),
        ("vms", one.vms == other.vms),
        ("vm_names", one.vm_names == other.vm_names),
        ("tokens", one.tokens == other.tokens),
        ("sessions", one.sessions == other.sessions),
        ("outbox", one.outbox == other.outbox),
        ("outbox_next", one.outbox_next == other.outbox_next),
        ("outbox_first", one.outbox_first == other.outbox_first),
        ("departed", one.departed == other.departed),
        ("kv", one.kv == other.kv),
    ];
    let differing: Vec<&str> = tables.iter().filter(|(_, same)| !same).map(|(name, _)| *name).collect();
    match differing.as_slice() {
        [] if one != other => "next ids differ".into(),
        tables => format!("differs in {}", tables.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(applied: u64, outbox_next: u64) -> Metadata {
        let mut state = Metadata::default();
        (state.applied, state.outbox_next) = (applied, outbox_next);
        state
    }

    #[test]
    fn a_state_other_than_the_committed_commands_make_is_noticed() {
        let mut states = States::default();
        states.observed(0, &state(5, 1), Some(&state(5, 1))).expect("as expected");
        assert!(states.knows(0, 5) && !states.knows(0, 6) && !states.knows(1, 5));
        assert!(states.observed(0, &state(6, 3), Some(&state(6, 2))).expect_err("another").contains("outbox_next"));
        states.observed(1, &state(6, 3), None).expect("nobody knows");
        assert_eq!(states.compared, 2);
        assert!(states.observed(1, &state(4, 1), None).is_err(), "goes back");
        states.restarted(1);
        states.observed(1, &state(4, 1), None).expect("a restart may go back");
    }

    #[test]
    fn replicas_that_differ_at_one_index_are_noticed() {
        let mut states = States::default();
        let mut replica = |node, index, digest| states.replica(node, GroupId(3), index, digest);
        assert_eq!((replica(0, 5, 1), replica(1, 6, 2), replica(1, 5, 1)), (Ok(()), Ok(()), Ok(())));
        assert!(replica(2, 6, 1).is_err());
        assert_eq!(states.replicas_compared, 2);
    }

    #[test]
    fn commands_out_of_real_time_order_or_at_one_index_are_noticed() {
        let mut states = States::default();
        states.acked(7, 0, AckedCommand::Other).expect("first");
        assert_eq!(states.acked_index(), 7);
        assert!(states.acked(7, 0, AckedCommand::Other).is_err(), "same index");
        assert!(states.acked(6, 7, AckedCommand::Other).is_err(), "asked after 7 was acknowledged");
        assert!(states.barrier(0, 6, 7).is_err(), "a stale read point");
        states.barrier(0, 7, 7).expect("fresh");
    }

    #[test]
    fn a_missing_effect_is_noticed() {
        let mut states = States::default();
        states.acked(7, 0, AckedCommand::Vm("a".into())).expect("first");
        assert!(states.finish(0, &state(9, 1)).is_err());
        states.acked(8, 0, AckedCommand::NoVm("a".into())).expect("deleted");
        states.finish(0, &state(9, 1)).expect("deleted again");
        states.acked(9, 0, AckedCommand::Token(3)).expect("made");
        assert!(states.finish(0, &state(9, 1)).is_err());
        states.forget_token(3);
        states.acked(10, 0, AckedCommand::NoToken(3)).expect("revoked");
        states.finish(0, &state(10, 1)).expect("revoked");
        states.acked(11, 0, AckedCommand::Topic("t".into())).expect("topic");
        assert!(states.finish(0, &state(9, 1)).is_err());
    }
}
