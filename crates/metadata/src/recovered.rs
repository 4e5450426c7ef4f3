//! What becomes of the state when the majority is gone for good and one survivor goes on alone, as a new incarnation of the
//! cluster (decision 0012). Only what it holds is there; whatever those that are gone may have given out since is not given
//! out again: every id, index and epoch goes up by more than they can have used.

use std::collections::{BTreeMap, BTreeSet};

use base::limits::{NODES_DEPARTED_MAX, RECOVERY_EPOCHS_SKIPPED, RECOVERY_IDS_SKIPPED, RECOVERY_NODES_SKIPPED};
use base::{GroupId, Incarnation, NodeId, RecoveryId, ReplicaId, VmEpoch, VmId, Wall};
use compute::{VmDesired, VmPhase, lifecycle};
use serde_json::json;

use crate::apply::Context;
use crate::state::NextIds;
use crate::{DepartedNode, Metadata, NodeLifecycle, PartitionRecord, ReplicaRecord};

/// What the survivor brings.
#[derive(Clone, Copy, Debug)]
pub struct Survival<'a> {
    /// Who it is: a member.
    pub node: NodeId,
    /// The name of the data that it goes on with.
    pub store: u64,
    /// Names this recovery. Another survivor that is recovered, too, goes on under the same incarnation, and another name.
    pub recovery: RecoveryId,
    /// The partitions of which it has a replica.
    pub kept: &'a BTreeSet<GroupId>,
    /// The last event of the outbox that its replica of the topic of events holds.
    pub published: u64,
    pub now: Wall,
}

/// What a recovery takes away, as far as the survivor knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Losses {
    /// Members: they are none any more.
    pub nodes: Vec<NodeId>,
    /// Topic and partition of which the survivor has no replica: they begin again, empty.
    pub partitions: Vec<(String, u32)>,
    /// VMs that ran elsewhere, or may have: stopped until somebody starts them.
    pub vms: Vec<VmId>,
    /// Join tokens that are good no more.
    pub tokens: usize,
}

impl Metadata {
    /// What a recovery on `node`, which has replicas of the partitions `kept`, takes away.
    #[must_use]
    pub fn losses(&self, node: NodeId, kept: &BTreeSet<GroupId>) -> Losses {
        let lost = self.partitions.values().filter(|partition| !kept.contains(&partition.group));
        let mut partitions: Vec<_> = lost.map(|lost| (lost.topic.clone(), lost.partition)).collect();
        partitions.sort_unstable();
        // Without a node as far as this survivor knows, it may have got one of which it did not hear.
        let elsewhere = self.vms.values().filter(|vm| {
            let runs = vm.desired == VmDesired::Running && vm.phase != VmPhase::Failed;
            runs && vm.assignment.is_none_or(|assignment| assignment.node != node)
        });
        Losses {
            nodes: self.nodes.keys().copied().filter(|other| *other != node).collect(),
            partitions,
            vms: elsewhere.map(|vm| vm.id).collect(),
            tokens: self.tokens.len(),
        }
    }

    /// The state that a new incarnation of the cluster begins with, in which the survivor is the only member; and the
    /// survivor's new replica of each partition that it keeps. It covers an index far beyond the last one.
    ///
    /// # Panics
    /// If the survivor is not a member.
    #[must_use]
    pub fn recovered(&self, survival: Survival<'_>) -> (Metadata, BTreeMap<GroupId, ReplicaId>) {
        let losses = self.losses(survival.node, survival.kept);
        let mut state = self.clone();
        state.applied += RECOVERY_IDS_SKIPPED;
        state.cluster_incarnation = Incarnation(self.cluster_incarnation.0 + 1);
        state.recovery = Some(survival.recovery);
        // All of them: what is added later has to be thought of here.
        let NextIds { node, replica, group, session, vm, token, lease } = &mut state.next;
        *node += RECOVERY_NODES_SKIPPED;
        for id in [replica, group, session, vm, token, lease] {
            *id += RECOVERY_IDS_SKIPPED;
        }
        // Watchers may have seen changes that are gone: they have to list anew.
        state.kv.forget_history(state.applied);
        let context = Context { index: state.applied, now: survival.now, silent: &[] };
        state.tokens.clear();
        state.sessions.clear();
        // Published already, under the producer before this one.
        state.trim_outbox(survival.published);
        // Others may have published more, and under the numbers of what waits here, too.
        state.renumber_outbox(state.outbox_next.max(survival.published + 1) + RECOVERY_IDS_SKIPPED);
        state.tell_of_recovery(context, survival, &losses);
        state.recover_nodes(context, survival);
        let replicas = state.recover_partitions(survival);
        state.recover_vms(context, survival.node);
        (state, replicas)
    }

    /// What this state may give out once more that `other` has given out, if anything.
    #[must_use]
    pub fn gives_out_again(&self, other: &Metadata) -> Option<&'static str> {
        let (mine, theirs) = (&self.next, &other.next);
        let all = [
            ("ids of nodes", mine.node, theirs.node),
            ("ids of replicas", mine.replica, theirs.replica),
            ("ids of groups", mine.group, theirs.group),
            ("ids of sessions", mine.session, theirs.session),
            ("ids of VMs", mine.vm, theirs.vm),
            ("ids of tokens", mine.token, theirs.token),
            ("ids of leases", mine.lease, theirs.lease),
            ("revisions", self.applied, other.applied),
            ("numbers of events", self.outbox_first, other.outbox_next),
        ];
        all.iter().find(|(_, mine, theirs)| mine < theirs).map(|(kind, ..)| *kind)
    }

    fn tell_of_recovery(&mut self, context: Context, survival: Survival<'_>, losses: &Losses) {
        let name = self.nodes.get(&survival.node).map(|record| record.member.name.clone()).unwrap_or_default();
        let lost: Vec<_> = losses.partitions.iter().map(|(topic, partition)| format!("{topic}/{partition}")).collect();
        let event = json!({
            "event": "cluster.recovered", "node": survival.node.0, "name": name,
            "incarnation": self.cluster_incarnation.0, "recovery": survival.recovery.to_string(),
            "nodes_removed": losses.nodes.len(), "partitions_lost": lost, "vms_stopped": losses.vms.len(),
        });
        self.publish(context, &name, event);
    }

    fn recover_nodes(&mut self, context: Context, survival: Survival<'_>) {
        let meta_replica = self.next_replica();
        let others: Vec<_> = self.nodes.values().filter(|it| it.member.node != survival.node).cloned().collect();
        for record in others {
            let (node, name) = (record.member.node, record.member.name);
            self.nodes.remove(&node);
            self.departed
                .insert(node, DepartedNode { node, name, endpoint: record.member.address.endpoint, at: context.now });
        }
        while self.departed.len() > NODES_DEPARTED_MAX
            && let Some((oldest, _)) = self.departed.get_min().cloned()
        {
            self.departed.remove(&oldest);
        }
        let record = self.nodes.get_mut(&survival.node).expect("the survivor is a member");
        record.meta_replica = meta_replica;
        record.member.store = survival.store;
        record.lifecycle = NodeLifecycle::Active;
        record.successor = None;
    }

    fn recover_partitions(&mut self, survival: Survival<'_>) -> BTreeMap<GroupId, ReplicaId> {
        let mut replicas = BTreeMap::new();
        for old in self.partitions.values().cloned().collect::<Vec<_>>() {
            let replica = self.next_replica();
            let record = ReplicaRecord { replica, node: survival.node, voter: true, retired: false };
            if survival.kept.contains(&old.group) {
                replicas.insert(old.group, replica);
                let group = old.group;
                self.partitions.insert(group, PartitionRecord { replicas: vec![record], ..old });
                continue;
            }
            // Another group, that shares nothing with the one that is lost.
            self.next.group += 1;
            let group = GroupId(self.next.group);
            self.partitions.remove(&old.group);
            if let Some(place) = self
                .topics
                .get_mut(&old.topic)
                .and_then(|topic| topic.partitions.iter_mut().find(|known| **known == old.group))
            {
                *place = group;
            }
            let epoch_base = old.epoch_base.saturating_add(RECOVERY_EPOCHS_SKIPPED);
            let fresh = PartitionRecord { group, born: vec![replica], replicas: vec![record], epoch_base, ..old };
            self.partitions.insert(group, fresh);
        }
        replicas
    }

    fn recover_vms(&mut self, context: Context, survivor: NodeId) {
        for id in self.vms.keys().copied().collect::<Vec<_>>() {
            self.change_vm_by_id(context, id, |vm| {
                let epoch = VmEpoch(vm.epoch.0 + RECOVERY_IDS_SKIPPED);
                lifecycle::recovered(vm, survivor, epoch, context.now)
            });
        }
    }
}
