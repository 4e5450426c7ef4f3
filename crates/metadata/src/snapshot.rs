//! The state as bytes, for checkpoints. Numbered fields; a table that a newer version adds is optional.

use base::simulation::{Plant, planted};
use base::{ClusterId, GroupId, Incarnation, NodeId, SessionId, VmId};
use bytes::Bytes;
use compute::VmRecord;
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

use crate::state::NextIds;
use crate::{
    DepartedNode, Metadata, NodeRecord, OutboxEvent, PartitionRecord, SessionRecord, TokenRecord, TopicRecord,
};

/// A checkpoint that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state of __meta cannot be read: {0}")]
pub struct SnapshotError(#[from] wire::WireError);

#[derive(Encode, Decode)]
struct Snapshot {
    #[n(0)]
    cluster: ClusterId,
    #[n(1)]
    cluster_incarnation: Incarnation,
    #[n(2)]
    applied: u64,
    #[n(3)]
    next: NextIds,
    #[n(4)]
    nodes: BTreeMap<NodeId, NodeRecord>,
    #[n(5)]
    topics: BTreeMap<String, TopicRecord>,
    #[n(6)]
    partitions: BTreeMap<GroupId, PartitionRecord>,
    #[n(7)]
    vms: BTreeMap<VmId, VmRecord>,
    #[n(8)]
    tokens: BTreeMap<u64, TokenRecord>,
    #[n(9)]
    sessions: BTreeMap<SessionId, SessionRecord>,
    #[n(10)]
    outbox: BTreeMap<u64, OutboxEvent>,
    #[n(11)]
    outbox_next: u64,
    #[n(12)]
    outbox_dropped: u64,
    #[n(13)]
    #[cbor(default)]
    departed: BTreeMap<NodeId, DepartedNode>,
    /// 1 if it is not there.
    #[n(20)]
    outbox_first: Option<u64>,
}

fn table<K: Ord + Clone, V: Clone>(map: &imbl::OrdMap<K, V>) -> BTreeMap<K, V> {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl Metadata {
    /// The whole state as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        wire::encode(&Snapshot {
            cluster: self.cluster,
            cluster_incarnation: self.cluster_incarnation,
            applied: self.applied,
            next: self.next,
            nodes: table(&self.nodes),
            topics: table(&self.topics),
            partitions: table(&self.partitions),
            vms: table(&self.vms),
            tokens: table(&self.tokens),
            sessions: if planted(Plant::SnapshotMissesSessions) { BTreeMap::new() } else { table(&self.sessions) },
            outbox: table(&self.outbox),
            outbox_next: self.outbox_next,
            outbox_dropped: self.outbox_dropped,
            departed: table(&self.departed),
            outbox_first: Some(self.outbox_first),
        })
    }

    /// The state that `bytes` hold.
    ///
    /// # Errors
    /// If they were not written by [`Metadata::encode`] of this or an older version.
    pub fn decode(bytes: &[u8]) -> Result<Metadata, SnapshotError> {
        let snapshot: Snapshot = wire::decode(bytes)?;
        Ok(Metadata {
            cluster: snapshot.cluster,
            cluster_incarnation: snapshot.cluster_incarnation,
            applied: snapshot.applied,
            vm_names: snapshot.vms.values().map(|vm| (vm.name.clone(), vm.id)).collect(),
            nodes: snapshot.nodes.into_iter().collect(),
            topics: snapshot.topics.into_iter().collect(),
            partitions: snapshot.partitions.into_iter().collect(),
            vms: snapshot.vms.into_iter().collect(),
            tokens: snapshot.tokens.into_iter().collect(),
            sessions: snapshot.sessions.into_iter().collect(),
            outbox: snapshot.outbox.into_iter().collect(),
            outbox_next: snapshot.outbox_next,
            outbox_dropped: snapshot.outbox_dropped,
            departed: snapshot.departed.into_iter().collect(),
            outbox_first: snapshot.outbox_first.unwrap_or(1),
            next: snapshot.next,
        })
    }
}
