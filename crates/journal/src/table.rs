//! What is durable, of all groups: the state that the records of the log add up to. Recovery and running apply the same
//! records through the same functions, so that what is found after a crash is what was known before it.

use std::collections::BTreeMap;

use base::{GroupId, ReplicaId};
use wire::journal::{CheckpointPosition, ReplicaState};
use wire::{HardState, SnapshotMeta};

use crate::api::{FileId, RecoveredGroup};
use crate::index::{Log, Place};

/// Why a record cannot be: a defect of the log, or of whoever appended it.
pub(crate) type Reason = &'static str;

/// One replica's durable state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    pub replica: ReplicaId,
    pub hard_state: HardState,
    pub checkpoint: SnapshotMeta,
    pub checkpoint_bytes: u64,
    pub checkpoint_crc: u32,
    /// CRC-32C of each [`base::limits::CHECKPOINT_CHUNK_BYTES`] of the checkpoint, so that a part can be verified.
    pub checkpoint_chunks: Vec<u32>,
    pub log: Log,
}

impl Group {
    /// As the opening of a segment keeps it.
    pub(crate) fn state(&self) -> ReplicaState {
        ReplicaState {
            replica: self.replica,
            hard_state: self.hard_state,
            checkpoint: self.checkpoint.clone(),
            checkpoint_bytes: self.checkpoint_bytes,
            checkpoint_crc: self.checkpoint_crc,
            first_index: self.log.first(),
            last_index: self.log.next() - 1,
        }
    }

    /// The checkpoint's file, if it has one.
    pub(crate) fn file(&self, group: GroupId) -> Option<FileId> {
        (self.checkpoint_bytes > 0).then_some(FileId::Checkpoint { group, index: self.checkpoint.index })
    }

    /// As recovery reports it.
    pub(crate) fn recovered(&self, group: GroupId) -> RecoveredGroup {
        RecoveredGroup {
            group,
            replica: self.replica,
            hard_state: self.hard_state,
            checkpoint: self.checkpoint.clone(),
            checkpoint_bytes: self.checkpoint_bytes,
            first_index: self.log.first(),
            last_index: self.log.next() - 1,
            term_runs: self.log.terms().to_vec(),
        }
    }

    /// Whether the state makes sense once the whole log was read.
    ///
    /// # Errors
    /// What does not.
    pub(crate) fn check(&self) -> Result<(), Reason> {
        if !self.log.is_whole() {
            return Err("entries that a replica still needs are missing");
        }
        if self.log.next() <= self.checkpoint.index {
            return Err("a replica's log ends before its checkpoint");
        }
        if self.hard_state.commit >= self.log.next() {
            return Err("a replica's commit index lies beyond its log");
        }
        Ok(())
    }
}

/// All groups.
#[derive(Debug, Default)]
pub(crate) struct Table {
    groups: BTreeMap<GroupId, Group>,
    /// How many groups' logs begin in each segment.
    pins: BTreeMap<u64, usize>,
}

impl Table {
    pub(crate) fn get(&self, group: GroupId) -> Option<&Group> {
        self.groups.get(&group)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (GroupId, &Group)> {
        self.groups.iter().map(|(id, group)| (*id, group))
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The oldest segment that is needed, while `current` is written to.
    pub(crate) fn oldest(&self, current: u64) -> u64 {
        self.pins.keys().next().map_or(current, |oldest| current.min(*oldest))
    }

    fn pin(&mut self, before: Option<u64>, after: Option<u64>) {
        if before == after {
            return;
        }
        if let Some(segment) = before {
            let count = self.pins.get_mut(&segment).expect("a log's oldest segment is counted");
            *count -= 1;
            if *count == 0 {
                self.pins.remove(&segment);
            }
        }
        if let Some(segment) = after {
            *self.pins.entry(segment).or_default() += 1;
        }
    }

    fn put(&mut self, id: GroupId, group: Option<Group>) -> Option<Group> {
        let after = group.as_ref().and_then(|group| group.log.oldest_segment());
        let old = match group {
            Some(group) => self.groups.insert(id, group),
            None => self.groups.remove(&id),
        };
        let before = old.as_ref().and_then(|group| group.log.oldest_segment());
        self.pin(before, after);
        old
    }

    /// An entry.
    ///
    /// # Errors
    /// If it fits no log.
    pub(crate) fn append(&mut self, id: GroupId, index: u64, term: u64, place: Place) -> Result<(), Reason> {
        let group = self.groups.get_mut(&id).ok_or("an entry of a group that is not there")?;
        if index <= group.checkpoint.index {
            return Err("an entry at or below its group's checkpoint");
        }
        let before = group.log.oldest_segment();
        group.log.append(index, term, place)?;
        let after = group.log.oldest_segment();
        self.pin(before, after);
        Ok(())
    }

    /// A hard state.
    ///
    /// # Errors
    /// If it takes the term back.
    pub(crate) fn set_hard_state(&mut self, id: GroupId, hard_state: HardState) -> Result<(), Reason> {
        let group = self.groups.get_mut(&id).ok_or("a hard state of a group that is not there")?;
        if hard_state.term < group.hard_state.term {
            return Err("a hard state whose term is lower than the one before");
        }
        group.hard_state = hard_state;
        Ok(())
    }

    /// A checkpoint. Returns the file of the one before, if nothing needs it any more.
    ///
    /// # Errors
    /// If it takes the group back.
    pub(crate) fn checkpoint(
        &mut self,
        id: GroupId,
        position: CheckpointPosition,
        chunks: Vec<u32>,
    ) -> Result<Option<FileId>, Reason> {
        let next = position.meta.index + 1;
        let before = self.groups.get(&id).and_then(|group| group.file(id));
        let same = self.groups.get_mut(&id).filter(|group| group.replica == position.replica);
        match same {
            Some(group) if !position.install => {
                if position.meta.index < group.checkpoint.index || group.log.next() < next {
                    return Err("a checkpoint outside its group's log");
                }
                let oldest = group.log.oldest_segment();
                group.log.trim(position.first_index.min(next));
                group.hard_state = position.hard_state.unwrap_or(group.hard_state);
                group.checkpoint = position.meta;
                group.checkpoint_bytes = position.bytes;
                group.checkpoint_crc = position.crc;
                group.checkpoint_chunks = chunks;
                let after = group.log.oldest_segment();
                self.pin(oldest, after);
            }
            same => {
                let group = Group {
                    replica: position.replica,
                    hard_state: position.hard_state.or(same.map(|group| group.hard_state)).unwrap_or_default(),
                    checkpoint: position.meta,
                    checkpoint_bytes: position.bytes,
                    checkpoint_crc: position.crc,
                    checkpoint_chunks: chunks,
                    log: Log::empty(next, next),
                };
                self.put(id, Some(group));
            }
        }
        let now = self.groups.get(&id).and_then(|group| group.file(id));
        Ok(before.filter(|before| Some(*before) != now))
    }

    /// A group's end. Returns its checkpoint's file.
    pub(crate) fn remove(&mut self, id: GroupId) -> Option<FileId> {
        self.put(id, None).and_then(|group| group.file(id))
    }

    /// A replica's state as of the opening of the first segment that is left.
    pub(crate) fn load(&mut self, id: GroupId, state: ReplicaState) {
        let group = Group {
            replica: state.replica,
            hard_state: state.hard_state,
            checkpoint: state.checkpoint,
            checkpoint_bytes: state.checkpoint_bytes,
            checkpoint_crc: state.checkpoint_crc,
            checkpoint_chunks: Vec::new(),
            log: Log::empty(state.first_index, state.last_index.saturating_add(1)),
        };
        self.put(id, Some(group));
    }

    /// Keeps the checksums that recovery computed.
    pub(crate) fn set_chunks(&mut self, id: GroupId, chunks: Vec<u32>) {
        if let Some(group) = self.groups.get_mut(&id) {
            group.checkpoint_chunks = chunks;
        }
    }
}
