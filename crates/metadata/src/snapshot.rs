//! The state as bytes, for checkpoints. Numbered fields; a table that a newer version adds is optional.
//!
//! A reader that left out what it does not know would from then on differ from the others without a sign of it. So the
//! state says at which cluster version it is, which a reader must be able to; and what was read, encoded again, must give
//! the same bytes. A newer node therefore encodes the state of an older version as that version does: what a version adds
//! is encoded as nothing (`None`) as long as it is empty.

use base::simulation::{Plant, planted};
use base::{ClusterId, ClusterVersion, GroupId, Incarnation, NodeId, RecoveryId, SessionId, VersionRange, VmId};
use bytes::Bytes;
use compute::VmRecord;
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

use crate::state::NextIds;
use crate::{
    DepartedNode, KvStore, Metadata, NodeRecord, OnceKey, OnceRecord, OnceTable, OutboxEvent, PartitionRecord,
    SessionRecord, TokenRecord, TopicRecord,
};

/// A checkpoint that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    #[error("the state of __meta cannot be read: {0}")]
    Unreadable(#[from] wire::WireError),
    /// Written at a version that this binary does not know.
    #[error(
        "the state of __meta is at cluster version {version}, this node's muster can {}: upgrade muster on this node. Nothing is \
         lost",
        VersionRange::BINARY
    )]
    Newer { version: ClusterVersion },
    /// It holds something that this binary would have dropped.
    #[error(
        "the state of __meta holds more than this node's muster reads of cluster version {version}: upgrade muster on this \
         node. Nothing is lost"
    )]
    UnknownContent { version: ClusterVersion },
}

/// About the bytes of all that is no key, in a small cluster.
const OTHER_TABLES: usize = 64 << 10;

/// What every version reads of the state.
#[derive(Encode, Decode)]
struct SnapshotVersion {
    #[n(23)]
    cluster_version: ClusterVersion,
}

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
    #[n(14)]
    kv: Option<KvStore>,
    #[n(15)]
    once: Option<BTreeMap<OnceKey, OnceRecord>>,
    /// 1 if it is not there.
    #[n(20)]
    outbox_first: Option<u64>,
    #[n(23)]
    cluster_version: ClusterVersion,
    #[n(24)]
    version_hold: Option<ClusterVersion>,
    #[n(25)]
    recovery: Option<RecoveryId>,
}

fn table<K: Ord + Clone, V: Clone>(map: &imbl::OrdMap<K, V>) -> BTreeMap<K, V> {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

impl Metadata {
    /// The whole state as bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        // By name: whoever adds a table says here what becomes of it.
        let Metadata {
            cluster,
            cluster_incarnation,
            recovery,
            applied,
            nodes,
            topics,
            partitions,
            vms,
            vm_names: _, // Follows from `vms`.
            tokens,
            sessions,
            outbox,
            outbox_next,
            outbox_dropped,
            outbox_first,
            departed,
            kv,
            once,
            cluster_version,
            version_hold,
            next,
        } = self;
        let about = kv.encoded_about();
        let kv = if planted(Plant::HistoryNotInSnapshot) { kv.without_history() } else { kv.clone() };
        let snapshot = Snapshot {
            cluster: *cluster,
            cluster_incarnation: *cluster_incarnation,
            applied: *applied,
            next: *next,
            nodes: table(nodes),
            topics: table(topics),
            partitions: table(partitions),
            vms: table(vms),
            tokens: table(tokens),
            sessions: if planted(Plant::SnapshotMissesSessions) { BTreeMap::new() } else { table(sessions) },
            outbox: table(outbox),
            outbox_next: *outbox_next,
            outbox_dropped: *outbox_dropped,
            departed: table(departed),
            once: (!once.records.is_empty()).then(|| table(&once.records)),
            kv: Some(kv).filter(|kv| *kv != KvStore::default()),
            cluster_version: *cluster_version,
            version_hold: *version_hold,
            outbox_first: (*outbox_first != 1).then_some(*outbox_first),
            recovery: *recovery,
        };
        wire::encode_of_size(&snapshot, about + about / 16 + OTHER_TABLES)
    }

    /// The state that `bytes` hold.
    ///
    /// # Errors
    /// If they were not written by [`Metadata::encode`] of this or an older version, or hold anything that this version
    /// does not know.
    pub fn decode(bytes: &[u8]) -> Result<Metadata, SnapshotError> {
        let SnapshotVersion { cluster_version: version } = wire::decode(bytes)?;
        if version > ClusterVersion::NEWEST {
            return Err(SnapshotError::Newer { version });
        }
        let snapshot: Snapshot = wire::decode(bytes)?;
        match wire::is_encoding_of(bytes, &snapshot) {
            true => Ok(Metadata::from(snapshot)),
            false => Err(SnapshotError::UnknownContent { version }),
        }
    }
}

impl From<Snapshot> for Metadata {
    fn from(snapshot: Snapshot) -> Metadata {
        let mut once = OnceTable::default();
        snapshot.once.into_iter().flatten().for_each(|(key, record)| once.insert(key, record));
        Metadata {
            once,
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
            kv: snapshot.kv.unwrap_or_default(),
            outbox_first: snapshot.outbox_first.unwrap_or(1),
            next: snapshot.next,
            cluster_version: snapshot.cluster_version,
            version_hold: snapshot.version_hold,
            recovery: snapshot.recovery,
        }
    }
}
