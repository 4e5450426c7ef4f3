//! What is left of a cluster on one node.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, NodeId, VersionRange};
use journal::RecoveredGroup;
use metadata::{CommandEnvelope, EVENTS_TOPIC, Metadata, PartitionRecord};
use stream::{BatchHeader, Partition};
use wire::{Entry, EntryKind, Membership, MembershipChange, SnapshotMeta};

use super::RecoverError;
use super::offline::Offline;
use crate::outbox::producer_id;

/// How far a replica's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LogEnd {
    /// Of the last entry. The survivor with the highest (term, index) of the last entry knows most.
    pub last_term: u64,
    pub last_index: u64,
    /// Known to be committed; what lies beyond may be, too.
    pub commit: u64,
    /// The latest term heard of.
    pub term: u64,
}

impl LogEnd {
    fn of(group: &RecoveredGroup) -> LogEnd {
        LogEnd {
            last_term: group.term_runs.last().map_or(group.checkpoint.term, |(_, term)| *term),
            last_index: group.last_index,
            commit: group.hard_state.commit,
            term: group.hard_state.term,
        }
    }
}

/// A replica of a partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Remains {
    pub end: LogEnd,
    /// Offset after the last record.
    pub next_offset: i64,
    /// Whether it votes, so that it has what a majority acknowledged, or most of it.
    pub voter: bool,
    pub membership: Membership,
    pub(super) birth: SnapshotMeta,
}

/// What one node holds of its cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Survivor {
    pub node: NodeId,
    /// The state at the end of its log.
    pub metadata: Metadata,
    /// Of `__meta`.
    pub meta: LogEnd,
    /// Of `__meta`.
    pub membership: Membership,
    /// The partitions of which it has a replica with its data.
    pub partitions: BTreeMap<GroupId, Remains>,
    /// The last event of the outbox in its replica of the topic of events.
    pub published: u64,
}

impl Survivor {
    /// The partitions that it brings along.
    #[must_use]
    pub fn kept(&self) -> BTreeSet<GroupId> {
        self.partitions.keys().copied().collect()
    }

    /// What a recovery from it takes away, as far as it knows.
    #[must_use]
    pub fn losses(&self) -> metadata::Losses {
        self.metadata.losses(self.node, &self.kept())
    }
}

pub(super) fn read(node: NodeId, journal: &mut Offline<'_>) -> Result<Survivor, RecoverError> {
    let groups: BTreeMap<GroupId, RecoveredGroup> =
        journal.groups().iter().map(|group| (group.group, group.clone())).collect();
    let found = groups.get(&GroupId::META).filter(|meta| meta.checkpoint_bytes > 0).ok_or(RecoverError::NeverFormed)?;
    let (metadata, membership) = read_meta(found, journal)?;
    if !metadata.nodes.contains_key(&node) {
        return Err(RecoverError::NoMember(node));
    }
    let events = metadata.topics.get(EVENTS_TOPIC).and_then(|topic| topic.partitions.first()).copied();
    let mut survivor =
        Survivor { node, meta: LogEnd::of(found), membership, partitions: BTreeMap::new(), published: 0, metadata };
    for record in survivor.metadata.partitions.clone().values() {
        // Under another id it is what the group had removed before.
        let mine = |replica: &&metadata::ReplicaRecord| replica.node == node;
        let Some(found) = groups.get(&record.group) else { continue };
        if record.replicas.iter().find(mine).is_none_or(|mine| mine.replica != found.replica) {
            continue;
        }
        let mut published = 0;
        let outbox = (events == Some(record.group)).then(|| producer_id(&survivor.metadata));
        let remains = read_partition(record, found, journal, |header| {
            if Some(header.producer_id) == outbox {
                published = published.max(u64::try_from(header.base_sequence).unwrap_or(0) + 1);
            }
        })?;
        survivor.published = survivor.published.max(published);
        survivor.partitions.insert(record.group, remains);
    }
    Ok(survivor)
}

/// All entries of a log behind its checkpoint, in order.
fn each_entry(
    found: &RecoveredGroup,
    journal: &mut Offline<'_>,
    mut take: impl FnMut(&Entry) -> Result<(), String>,
) -> Result<(), RecoverError> {
    let mut next = found.checkpoint.index + 1;
    while next <= found.last_index {
        for entry in journal.read(found.group, next, found.last_index)? {
            take(&entry).map_err(|why| RecoverError::group(found.group, format!("entry {}: {why}", entry.index)))?;
            next = entry.index + 1;
        }
    }
    Ok(())
}

/// A change of members that does not fit changes nothing, as it did not when it was committed.
fn change_members(membership: &mut Membership, entry: &Entry) -> Result<(), String> {
    let change: MembershipChange = wire::decode(&entry.data).map_err(|error| error.to_string())?;
    if let Some(after) = multiraft::changed(membership, &change) {
        *membership = after;
    }
    Ok(())
}

fn read_meta(found: &RecoveredGroup, journal: &mut Offline<'_>) -> Result<(Metadata, Membership), RecoverError> {
    let state = journal.read_checkpoint(GroupId::META, found.checkpoint_bytes)?;
    let mut metadata = Metadata::decode(&state)?;
    let mut membership = found.checkpoint.membership.clone();
    each_entry(found, journal, |entry| {
        match entry.kind {
            EntryKind::Command => {
                let envelope: CommandEnvelope = wire::decode(&entry.data).map_err(|error| error.to_string())?;
                metadata.apply(entry.index, &envelope);
                return Ok(());
            }
            EntryKind::Membership => change_members(&mut membership, entry)?,
            EntryKind::Noop => {}
            EntryKind::Batch => return Err("a record batch does not belong here".into()),
        }
        metadata.skip(entry.index);
        Ok(())
    })?;
    match VersionRange::BINARY.objection(metadata.cluster_version) {
        None => Ok((metadata, membership)),
        Some(reason) => Err(RecoverError::Newer(reason)),
    }
}

fn read_partition(
    record: &PartitionRecord,
    found: &RecoveredGroup,
    journal: &mut Offline<'_>,
    mut seen: impl FnMut(&BatchHeader),
) -> Result<Remains, RecoverError> {
    if found.checkpoint_bytes > 0 || found.first_index != found.checkpoint.index + 1 {
        return Err(RecoverError::group(found.group, "its log does not begin with its birth"));
    }
    let mut membership = found.checkpoint.membership.clone();
    let mut partition = Partition::new(record.epoch_base);
    each_entry(found, journal, |entry| {
        if entry.kind == EntryKind::Membership {
            change_members(&mut membership, entry)?;
        }
        partition.apply(entry.index, entry.term, entry.kind, &entry.data).map_err(|error| error.to_string())?;
        if entry.kind == EntryKind::Batch {
            seen(&BatchHeader::parse(&entry.data).map_err(|error| error.to_string())?);
        }
        Ok(())
    })?;
    let voter = membership.voters.contains(&found.replica) || membership.voters_outgoing.contains(&found.replica);
    let birth = found.checkpoint.clone();
    Ok(Remains { end: LogEnd::of(found), next_offset: partition.next_offset(), voter, membership, birth })
}
