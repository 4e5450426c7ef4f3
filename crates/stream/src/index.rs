//! Where each committed batch of a partition is: offset -> (Raft index, bytes, greatest timestamp, leader epoch).
//! About 24 bytes per batch, in chunks, so that growing never moves what is there.

use crate::CommittedBatch;

/// Batches in one chunk.
const CHUNK_BATCHES: usize = 1_024;

/// One batch's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) index: u64,
    pub(crate) base_offset: i64,
    pub(crate) max_timestamp: i64,
    pub(crate) bytes: u32,
}

#[derive(Clone, Debug)]
struct Chunk {
    base_offset: i64,
    index: u64,
    max_timestamp: i64,
    slots: Vec<Slot>,
}

/// Relative to its chunk.
#[derive(Clone, Copy, Debug)]
struct Slot {
    max_timestamp: i64,
    offset_delta: u32,
    index_delta: u32,
    bytes: u32,
}

/// All batches, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct BatchIndex {
    chunks: Vec<Chunk>,
    /// (first offset, leader epoch) of each run of batches of one epoch.
    epochs: Vec<(i64, i32)>,
}

impl BatchIndex {
    /// Adds the next batch; offsets and indexes only grow (the caller checked).
    pub(crate) fn push(&mut self, batch: &CommittedBatch) {
        if self.epochs.last().is_none_or(|(_, epoch)| *epoch != batch.leader_epoch) {
            self.epochs.push((batch.base_offset, batch.leader_epoch));
        }
        let bytes = u32::try_from(batch.data.len()).unwrap_or(u32::MAX);
        let fits = |chunk: &&mut Chunk| {
            chunk.slots.len() < CHUNK_BATCHES
                && u32::try_from(batch.base_offset - chunk.base_offset).is_ok()
                && u32::try_from(batch.index - chunk.index).is_ok()
        };
        if let Some(chunk) = self.chunks.last_mut().filter(fits) {
            chunk.max_timestamp = chunk.max_timestamp.max(batch.max_timestamp);
            chunk.slots.push(Slot {
                max_timestamp: batch.max_timestamp,
                offset_delta: (batch.base_offset - chunk.base_offset) as u32,
                index_delta: (batch.index - chunk.index) as u32,
                bytes,
            });
            return;
        }
        self.chunks.push(Chunk {
            base_offset: batch.base_offset,
            index: batch.index,
            max_timestamp: batch.max_timestamp,
            slots: vec![Slot { max_timestamp: batch.max_timestamp, offset_delta: 0, index_delta: 0, bytes }],
        });
    }

    /// The batches from the one that contains `offset` on; `offset` is below the end. Before the first batch: all.
    pub(crate) fn places_from(&self, offset: i64) -> impl Iterator<Item = Place> + '_ {
        let chunk = self.chunks.partition_point(|chunk| chunk.base_offset <= offset).saturating_sub(1);
        let slot = self.chunks.get(chunk).map_or(0, |chunk| {
            let after = |slot: &Slot| chunk.base_offset + i64::from(slot.offset_delta) <= offset;
            chunk.slots.partition_point(after).saturating_sub(1)
        });
        self.chunks.get(chunk..).unwrap_or_default().iter().flat_map(Chunk::places).skip(slot)
    }

    /// The first batch that has a record at or after `timestamp`, for certain.
    pub(crate) fn at_timestamp(&self, timestamp: i64) -> Option<Place> {
        let chunk = self.chunks.iter().find(|chunk| chunk.max_timestamp >= timestamp)?;
        chunk.places().find(|place| place.max_timestamp >= timestamp)
    }

    /// The first batch with the greatest timestamp.
    pub(crate) fn max_timestamp(&self) -> Option<Place> {
        let greatest = self.chunks.iter().map(|chunk| chunk.max_timestamp).max()?;
        self.at_timestamp(greatest)
    }

    /// Leader epoch of the record at `offset`.
    pub(crate) fn epoch_at(&self, offset: i64) -> Option<i32> {
        let run = self.epochs.partition_point(|(first, _)| *first <= offset);
        run.checked_sub(1).and_then(|run| self.epochs.get(run)).map(|(_, epoch)| *epoch)
    }
}

impl Chunk {
    fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.slots.iter().map(|slot| Place {
            index: self.index + u64::from(slot.index_delta),
            base_offset: self.base_offset + i64::from(slot.offset_delta),
            max_timestamp: slot.max_timestamp,
            bytes: slot.bytes,
        })
    }
}
