//! The replicas that this node holds: how they are born, what they are, and how they go.

use std::collections::{BTreeMap, VecDeque};

use base::simulation::{Mark, Plant, mark_if, planted};
use base::{GroupId, Mono, NodeId, ReplicaId};
use bytes::Bytes;
use journal::Checkpoint;
use multiraft::{GroupInit, Role};
use stream::{Partition, Update};
use wire::{Entry, HardState, Membership, SnapshotMeta};

use crate::core::NodeCore;
use crate::requests::Origin;
use crate::stats::GroupStats;
use crate::{Effect, Formation};

/// Index and term of the checkpoint that every group is born with.
pub(crate) const BIRTH: u64 = 1;

/// What a replica's entries are applied to.
pub(crate) enum Machine {
    /// The tables of `__meta`, which are the core's own.
    Meta,
    Partition(Box<Partition>),
}

/// How far a replica has come in this process.
pub(crate) enum GroupStage {
    /// Its birth checkpoint is being written.
    Birth(Box<Checkpoint>),
    /// What the journal holds is being applied.
    Replay {
        hard_state: HardState,
        checkpoint: SnapshotMeta,
        recovered: Box<journal::RecoveredGroup>,
        unapplied: Vec<Entry>,
    },
    /// Raft runs it.
    Running,
}

/// Somebody who waits for an entry.
pub(crate) struct Waiter {
    pub term: u64,
    pub what: Awaited,
}

pub(crate) enum Awaited {
    Command(Origin),
    /// The last batch of a produce request; its first offset is the answer.
    Produced {
        origin: Origin,
        base_offset: i64,
    },
}

/// One replica of a group on this node.
pub(crate) struct Group {
    pub replica: ReplicaId,
    pub machine: Machine,
    pub stage: GroupStage,
    pub applied: u64,
    pub applied_term: u64,
    /// As of `applied`.
    pub membership: Membership,
    /// Of a partition, the newest table of `__meta` that a change of its members up to `applied` was based on.
    pub basis: u64,
    pub role: Role,
    pub term: u64,
    /// Leads, and has applied its own Noop: proposals are taken.
    pub active: bool,
    /// Since when it is, or was last.
    pub led_since: Option<Mono>,
    /// Who waits for which index to be applied.
    pub waiters: BTreeMap<u64, Waiter>,
    /// acks=1: who waits for which index to be durable here.
    pub unsynced: BTreeMap<u64, (Origin, i64)>,
    /// Rounds under way: (round, last index appended in it).
    pub rounds: VecDeque<(u64, u64)>,
    /// Repeats of batches that are still in flight: (last offset, who, base offset).
    pub repeats: Vec<(i64, Origin, i64)>,
    pub stats: GroupStats,
    update: Update,
}

impl Group {
    pub fn new(replica: ReplicaId, machine: Machine, stage: GroupStage) -> Group {
        Group {
            replica,
            machine,
            stage,
            applied: 0,
            applied_term: 0,
            membership: Membership::default(),
            basis: 0,
            role: Role::Follower,
            term: 0,
            active: false,
            led_since: None,
            waiters: BTreeMap::new(),
            unsynced: BTreeMap::new(),
            rounds: VecDeque::new(),
            repeats: Vec::new(),
            stats: GroupStats::default(),
            update: Update { reset: true, ..Update::default() },
        }
    }

    pub fn running(&self) -> bool {
        matches!(self.stage, GroupStage::Running)
    }

    pub fn partition(&mut self) -> Option<&mut Partition> {
        match &mut self.machine {
            Machine::Partition(partition) => Some(partition),
            Machine::Meta => None,
        }
    }

    pub fn committed(&mut self, batch: stream::CommittedBatch) {
        self.update.committed.push(batch);
    }

    /// News for the readers, if this is a partition.
    pub fn take_update(&mut self) -> Option<Update> {
        let Machine::Partition(partition) = &self.machine else { return None };
        let mut update = std::mem::take(&mut self.update);
        update.leader_epoch = partition.leading().and_then(|term| partition.leader_epoch(term));
        update.high_watermark = partition.next_offset();
        update.log_start_offset = partition.log_start_offset();
        Some(update)
    }
}

impl NodeCore {
    /// What recovery leaves to do about `__meta`.
    pub(crate) fn form_meta(&mut self, recovered: Option<journal::RecoveredGroup>) {
        match (recovered, self.config.formation.clone()) {
            (Some(recovered), _) => self.recover_group(recovered, Machine::Meta),
            (None, Formation::Bootstrap) => {
                let replica = ReplicaId(1);
                let state = metadata::Metadata::bootstrap(self.config.cluster, self.config.me.clone(), self.now.wall);
                self.give_birth(GroupId::META, replica, Machine::Meta, vec![replica], state.encode());
            }
            (None, Formation::Join(accepted)) if planted(Plant::JoinerFormsItsOwn) => {
                let (me, replica) = (self.config.me.clone(), accepted.meta_replica);
                let state = metadata::Metadata::bootstrap(self.config.cluster, me, self.now.wall);
                self.give_birth(GroupId::META, replica, Machine::Meta, vec![replica], state.encode());
            }
            (None, Formation::Join(accepted)) => self.await_checkpoint(accepted.meta_replica),
            (None, Formation::Restart) => self.fatal(
                "the journal is empty, but this node was a member of a cluster: its data is gone. Restore the data \
                 directory, or wipe it and join anew with a token"
                    .into(),
            ),
        }
    }

    /// A joiner's replica of `__meta`: it has nothing and is told everything.
    fn await_checkpoint(&mut self, replica: ReplicaId) {
        let checkpoint = Checkpoint {
            group: GroupId::META,
            replica,
            meta: SnapshotMeta::default(),
            state: Bytes::new(),
            install: true,
            keep_from: 1,
            hard_state: None,
        };
        self.write_birth(checkpoint, Machine::Meta);
    }

    fn give_birth(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        machine: Machine,
        voters: Vec<ReplicaId>,
        state: Bytes,
    ) {
        let membership = Membership { voters, ..Membership::default() };
        let checkpoint = Checkpoint {
            group,
            replica,
            meta: SnapshotMeta { index: BIRTH, term: BIRTH, membership },
            state,
            install: true,
            keep_from: BIRTH + 1,
            hard_state: Some(HardState { term: BIRTH, vote: ReplicaId(0), commit: BIRTH }),
        };
        self.write_birth(checkpoint, machine);
    }

    fn write_birth(&mut self, checkpoint: Checkpoint, machine: Machine) {
        let stage = GroupStage::Birth(Box::new(checkpoint.clone()));
        self.groups.insert(checkpoint.group, Group::new(checkpoint.replica, machine, stage));
        self.journal.checkpoint(checkpoint);
    }

    /// A birth checkpoint is durable: the replica may speak.
    pub(crate) fn born(&mut self, group: GroupId) {
        let Some(entry) = self.groups.get_mut(&group) else { return };
        let GroupStage::Birth(checkpoint) = std::mem::replace(&mut entry.stage, GroupStage::Running) else { return };
        entry.applied = checkpoint.meta.index;
        entry.applied_term = checkpoint.meta.term;
        entry.membership = checkpoint.meta.membership.clone();
        let hard_state = checkpoint.hard_state.unwrap_or_default();
        entry.stats.begins_in(hard_state.term);
        let preferred = checkpoint.meta.membership.voters.first() == Some(&checkpoint.replica);
        let init = GroupInit {
            group,
            replica: checkpoint.replica,
            hard_state,
            membership: checkpoint.meta.membership.clone(),
            first_index: checkpoint.meta.index + 1,
            last_index: checkpoint.meta.index,
            term_runs: Vec::new(),
            applied: checkpoint.meta.index,
            unapplied: Vec::new(),
            campaign: preferred,
            checkpoint: checkpoint.meta,
        };
        self.raft.create(init);
        self.answer_early_vote(group);
        self.unpublished.insert(group);
        if group == GroupId::META {
            self.meta_born(checkpoint.state);
        }
    }

    fn meta_born(&mut self, state: Bytes) {
        if !state.is_empty() {
            match metadata::Metadata::decode(&state) {
                Ok(metadata) => {
                    self.room.replaced(state.len() as u64);
                    self.adopt_metadata(metadata);
                }
                Err(error) => return self.fatal(format!("the birth state of __meta is unreadable: {error}")),
            }
            self.effects.push(Effect::Formed);
        }
        self.recovered();
    }

    /// Takes a whole new state of the cluster.
    pub(crate) fn adopt_metadata(&mut self, metadata: metadata::Metadata) {
        if metadata.cluster != self.config.cluster {
            return self.fatal(format!(
                "the journal is that of a node of cluster {}, but this node was started as one of cluster {}: journal \
                 and cluster record of the data directory do not belong together",
                metadata.cluster, self.config.cluster
            ));
        }
        if let Some(reason) = self.outdated(metadata.cluster_version) {
            return self.fatal(reason);
        }
        self.peers.follow(&self.metadata.nodes, &metadata);
        self.metadata.replace(metadata);
        self.shown.changed(false);
        self.partitions_due = true;
    }

    /// Lets the partitions here follow the table: born, recovered, or removed. Only the leader's committed word counts,
    /// and what the table does not know *yet* is left alone: a group with a higher number than any in it, and, until the
    /// table is known to be current, a replica found in the journal. Nor is any born until then: a restarted process begins
    /// with an older table than the one it stopped with, and a replica that it removed would come back under its old id,
    /// without its memory.
    pub(crate) fn sync_partitions(&mut self) {
        let me = self.me();
        let wanted: Vec<_> = self
            .metadata
            .partitions
            .values()
            .filter_map(|p| p.replicas.iter().find(|r| r.node == me).map(|r| (p.group, r.replica)))
            .filter(|(group, replica)| self.groups.get(group).is_none_or(|g| g.replica != *replica))
            .collect();
        let highest = self.metadata.groups_given_out();
        let gone = |group: &GroupId, core: &NodeCore| {
            let record = core.metadata.partitions.get(group);
            *group != GroupId::META
                && (group.0 <= highest || planted(Plant::UnknownReplicaRemoved))
                && !record.is_some_and(|p| p.replicas.iter().any(|r| r.node == me))
        };
        let current = self.vms.is_current() || planted(Plant::UnknownReplicaRemoved);
        let parked = current.then(|| self.parked.keys()).into_iter().flatten();
        let held: Vec<_> = self.groups.keys().chain(parked).copied().filter(|g| gone(g, self)).collect();
        for group in held {
            self.remove_group(group);
        }
        for (group, replica) in wanted {
            self.start_partition(group, replica, me);
        }
        mark_if(Mark::ReplicaParked, || !self.parked.is_empty());
    }

    fn start_partition(&mut self, group: GroupId, replica: ReplicaId, me: NodeId) {
        if self.removing.contains(&group) {
            return; // Its predecessor's removal is under way; `removed` calls again.
        }
        let Some(record) = self.metadata.partitions.get(&group) else { return };
        debug_assert!(record.replicas.iter().any(|r| r.node == me));
        let machine = Machine::Partition(Box::new(Partition::new(record.epoch_base)));
        let born = record.born.clone();
        match self.parked.remove(&group) {
            Some(recovered) if recovered.replica == replica => self.recover_group(recovered, machine),
            Some(_) if self.vms.is_current() => self.remove_group(group),
            Some(recovered) => drop(self.parked.insert(group, recovered)),
            // Another replica id than before: the old one is forgotten first.
            None if self.groups.contains_key(&group) => self.remove_group(group),
            None if self.vms.is_current() => self.give_birth(group, replica, machine, born, Bytes::new()),
            // It may have lived here and been removed, of which a restarted process does not know yet.
            None => {}
        }
    }

    fn remove_group(&mut self, group: GroupId) {
        let parked = self.parked.remove(&group);
        mark_if(Mark::ParkedReplicaRemoved, || parked.is_some());
        self.early_votes.remove(&group);
        if let Some(entry) = self.groups.remove(&group) {
            mark_if(Mark::ReplicaRemovedWithRound, || !entry.rounds.is_empty());
            self.abandon(entry, "the partition was deleted");
            self.raft.remove(group);
        }
        self.leaders.forget(group);
        self.unpublished.remove(&group);
        if self.removing.insert(group) {
            self.journal.remove(group);
        }
        self.effects.push(Effect::Unpublish { group });
    }

    /// The journal has forgotten a group.
    pub(crate) fn removed(&mut self, group: GroupId) {
        self.removing.remove(&group);
        self.partitions_due = true;
    }

    pub(crate) fn recover_group(&mut self, recovered: journal::RecoveredGroup, machine: Machine) {
        let group = recovered.group;
        let stage = GroupStage::Replay {
            hard_state: recovered.hard_state,
            checkpoint: recovered.checkpoint.clone(),
            unapplied: Vec::new(),
            recovered: Box::new(recovered.clone()),
        };
        let mut entry = Group::new(recovered.replica, machine, stage);
        entry.applied = recovered.checkpoint.index;
        entry.applied_term = recovered.checkpoint.term;
        entry.membership = recovered.checkpoint.membership.clone();
        self.groups.insert(group, entry);
        if recovered.checkpoint_bytes > 0 {
            self.load_checkpoint(group, recovered.checkpoint_bytes);
        } else {
            self.replay_next(group);
        }
    }
}
