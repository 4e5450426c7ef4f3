//! The one ordered applier: committed entries to state machines, and answers to whoever waits for them.

use base::simulation::{Mark, Plant, mark, planted};
use base::{ErrorCode, GroupId};
use metadata::{CommandEnvelope, CommandResult};
use multiraft::Role;
use wire::{Entry, EntryKind, MembershipChange};

use crate::core::NodeCore;
use crate::groups::{Awaited, Machine, Waiter};
use crate::requests::error;
use crate::{Effect, Reply};

impl NodeCore {
    /// Applies one committed entry. An error is fatal: an entry is never skipped.
    pub(crate) fn apply_entry(&mut self, group: GroupId, entry: &Entry) {
        let Some(replica) = self.groups.get_mut(&group) else { return };
        if entry.index != replica.applied + 1 {
            let (index, applied) = (entry.index, replica.applied);
            return self.fatal(format!("group {group}: entry {index} is to be applied behind entry {applied}"));
        }
        if entry.kind == EntryKind::Membership {
            match wire::decode::<MembershipChange>(&entry.data) {
                Ok(change) => replica.basis = replica.basis.max(change.basis),
                Err(error) => return self.fatal(format!("group {group}: membership entry unreadable: {error}")),
            }
        }
        let mut result = None;
        match &mut replica.machine {
            Machine::Partition(partition) => {
                match partition.apply(entry.index, entry.term, entry.kind, &entry.data) {
                    Ok(Some(batch)) => replica.committed(batch),
                    Ok(None) => {}
                    Err(error) => return self.fatal(format!("group {group}: {error}")),
                }
                self.unpublished.insert(group);
            }
            Machine::Meta => match self.apply_meta(entry) {
                Ok(outcome) => {
                    result = outcome;
                }
                Err(_) if planted(Plant::UnappliableSkipped) => self.metadata.skip(entry.index),
                Err(reason) => return self.fatal(format!("__meta entry {}: {reason}", entry.index)),
            },
        }
        self.applied(group, entry, result);
    }

    fn apply_meta(&mut self, entry: &Entry) -> Result<Option<CommandResult>, String> {
        match entry.kind {
            EntryKind::Noop | EntryKind::Membership => {
                self.metadata.skip(entry.index);
                self.shown.changed(true);
                self.room.applied(entry.index, None);
                Ok(None)
            }
            EntryKind::Command => {
                let mut envelope =
                    CommandEnvelope::read(&entry.data, self.config.me.versions).map_err(|error| error.to_string())?;
                if planted(Plant::LocalClockInApply) {
                    envelope.wall = self.now.wall;
                }
                let keys_only = envelope.command.changes_keys_only();
                self.shown.changed(keys_only);
                self.partitions_due |= !keys_only;
                let before = self.metadata.nodes.clone();
                let result = self.metadata.apply(entry.index, &envelope);
                self.room.applied(entry.index, Some((&envelope.command, entry.data.len())));
                self.peers.follow(&before, &self.metadata);
                if self.groups.get(&GroupId::META).is_some_and(|meta| meta.active) {
                    self.leases.applied(&result, &self.metadata, self.now.mono);
                }
                match self.outdated(self.metadata.cluster_version) {
                    Some(reason) => Err(reason),
                    None => Ok(Some(result)),
                }
            }
            EntryKind::Batch => Err("a record batch does not belong here".into()),
        }
    }

    /// Why this node cannot go on in a cluster at that version; `None`: it can.
    pub(crate) fn outdated(&self, active: base::ClusterVersion) -> Option<String> {
        let versions = self.config.me.versions;
        (!versions.contains(active)).then(|| {
            format!(
                "the cluster is at cluster version {active}, this node can {versions}: upgrade muster on this node, or raise its \
                 --cluster-version-max. Nothing is lost"
            )
        })
    }

    /// A member has applied what this node has not, and cannot: nobody will speak to this node again.
    pub(crate) fn refused_as_outdated(&mut self, by: base::NodeId, active: base::ClusterVersion) {
        if let Some(reason) = self.outdated(active) {
            self.fatal(format!("node {by} refuses this node: {reason}"));
        }
    }

    fn applied(&mut self, group: GroupId, entry: &Entry, result: Option<CommandResult>) {
        let Some(replica) = self.groups.get_mut(&group) else { return };
        replica.applied = entry.index;
        replica.applied_term = entry.term;
        let mut settled: Vec<(u64, Waiter)> = Vec::new();
        if let Some(waiter) = replica.waiters.remove(&entry.index) {
            settled.push((entry.index, waiter));
        }
        // An entry of a newer term at or below a waiter's place means that the waiter's entry is gone.
        if replica.waiters.first_key_value().is_some_and(|(_, w)| w.term < entry.term) {
            let (lost, kept) = std::mem::take(&mut replica.waiters).into_iter().partition(|(_, w)| w.term < entry.term);
            mark(Mark::WaiterLostToNewerTerm);
            replica.waiters = kept;
            let lost: std::collections::BTreeMap<u64, Waiter> = lost;
            settled.extend(lost);
        }
        let leads = replica.role == Role::Leader && replica.term == entry.term;
        if self.config.observe {
            self.effects.push(Effect::Applied { group, entry: entry.clone() });
        }
        for (index, waiter) in settled {
            self.settle(index, entry, waiter, result.clone());
        }
        if group == GroupId::META {
            self.checkpoints.count(entry.data.len());
            self.meta_advanced();
        } else {
            self.settle_repeats(group);
        }
        if entry.kind == EntryKind::Noop && leads {
            self.activate(group, entry.term);
        }
    }

    fn settle(&mut self, index: u64, entry: &Entry, waiter: Waiter, result: Option<CommandResult>) {
        let kept = index == entry.index && waiter.term == entry.term || planted(Plant::ReplacedEntryAnswered);
        match waiter.what {
            Awaited::Command(origin) => {
                let outcome = match result {
                    Some(result) if kept => Ok(Reply::Command { index, result }),
                    _ => Err(error(ErrorCode::LeaderChanged, "leadership changed before the command was committed")),
                };
                self.answer(origin, outcome);
            }
            Awaited::Produced { origin, base_offset } => {
                let outcome = match kept {
                    true => Ok(Reply::Produced { base_offset, log_start_offset: 0 }),
                    false => {
                        Err(error(ErrorCode::LeaderChanged, "leadership changed before the records were committed"))
                    }
                };
                self.answer(origin, outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base::ReplicaId;
    use bytes::Bytes;
    use stream::Partition;

    use super::*;
    use crate::groups::{Group, GroupStage};
    use crate::requests::tests::core;

    const PARTITION: GroupId = GroupId(7);

    /// A core that has applied `__meta` and a partition up to index 4.
    fn core_at_4() -> NodeCore {
        let mut core = core();
        core.metadata.skip(4);
        let partition = Machine::Partition(Box::new(Partition::new(0)));
        for (group, machine) in [(GroupId::META, Machine::Meta), (PARTITION, partition)] {
            let mut replica = Group::new(ReplicaId(1), machine, GroupStage::Running);
            replica.applied = 4;
            core.groups.insert(group, replica);
        }
        core
    }

    #[test]
    fn an_entry_is_applied_right_behind_the_one_before_it_or_the_node_ends() {
        for group in [GroupId::META, PARTITION] {
            for index in 1..=8 {
                let mut core = core_at_4();
                let entry = Entry { index, term: 1, kind: EntryKind::Noop, data: Bytes::new() };
                core.apply_entry(group, &entry);
                let fatal = core.effects.iter().find_map(|effect| match effect {
                    Effect::Fatal(reason) => Some(reason.clone()),
                    _ => None,
                });
                let out_of_order = format!("group {group}: entry {index} is to be applied behind entry 4");
                let expected = (index != 5).then_some(out_of_order);
                assert_eq!(fatal, expected, "entry {index}");
                let applied = if index == 5 { 5 } else { 4 };
                assert_eq!(core.groups[&group].applied, applied, "entry {index}");
                assert_eq!(core.metadata.applied, if group == GroupId::META { applied } else { 4 }, "entry {index}");
            }
        }
    }
}
