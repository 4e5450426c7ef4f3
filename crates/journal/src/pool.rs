//! The segment files: which are there, which wait as spares, which may go.
//!
//! One spare is always kept ahead. It is the reserve: when not even that can be made the disk counts as full, while
//! the open segment still has room for votes and terms.

use std::collections::{BTreeMap, VecDeque};

use base::limits;
use base::simulation::{Mark, mark, mark_if};

use crate::api::{DiskOpKind, FileId};
use crate::io::{Io, Purpose};

#[derive(Debug)]
struct Live {
    bytes: u64,
    /// Reads under way.
    readers: usize,
}

/// All segment files.
#[derive(Debug)]
pub(crate) struct Pool {
    segment_bytes: u64,
    live: BTreeMap<u64, Live>,
    spares: VecDeque<u64>,
    creating: Option<u64>,
    /// Renames to spares under way.
    recycling: usize,
    next_spare: u64,
    /// Segments below are not needed by anything durable.
    oldest: u64,
}

impl Pool {
    pub(crate) fn new(segment_bytes: u64, live: &BTreeMap<u64, u64>, spares: VecDeque<u64>, next_spare: u64) -> Self {
        let live = live.iter().map(|(sequence, bytes)| (*sequence, Live { bytes: *bytes, readers: 0 })).collect();
        Pool { segment_bytes, live, spares, creating: None, recycling: 0, next_spare, oldest: 0 }
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        let live: u64 = self.live.values().map(|live| live.bytes).sum();
        live + self.spares.len() as u64 * self.segment_bytes
    }

    /// Takes a spare for the next segment, if there is one.
    pub(crate) fn take_spare(&mut self) -> Option<u64> {
        mark_if(Mark::LogWaitedForSpare, || self.spares.is_empty());
        self.spares.pop_front()
    }

    /// The segment is open.
    pub(crate) fn opened(&mut self, sequence: u64) {
        self.live.insert(sequence, Live { bytes: self.segment_bytes, readers: 0 });
    }

    /// A read of the segment begins: the file stays what it is until [`Pool::release`].
    pub(crate) fn hold(&mut self, sequence: u64) {
        self.live.get_mut(&sequence).expect("what is indexed is there").readers += 1;
    }

    /// A read has ended.
    pub(crate) fn release(&mut self, sequence: u64) {
        self.live.get_mut(&sequence).expect("held").readers -= 1;
    }

    /// It is durable, and known to be, that nothing needs segments below `oldest`.
    pub(crate) fn forget_below(&mut self, oldest: u64) {
        self.oldest = self.oldest.max(oldest);
    }

    /// A spare was made.
    pub(crate) fn created(&mut self, spare: u64) {
        self.creating = None;
        self.spares.push_back(spare);
    }

    /// A segment has become a spare.
    pub(crate) fn recycled(&mut self, spare: u64, io: &mut Io) {
        mark(Mark::SegmentRecycled);
        self.recycling -= 1;
        self.spares.push_back(spare);
        // If the disk has no room for a new one, this one serves as well.
        if let Some(creating) = self.creating
            && io.cancel_waiting(&Purpose::SpareCreate(creating))
        {
            mark(Mark::SpareCameFromRecycling);
            self.creating = None;
            let file = FileId::Spare(creating);
            io.issue(DiskOpKind::Remove { file }, Purpose::RemoveFile(file));
        }
    }

    fn new_spare(&mut self) -> u64 {
        self.next_spare += 1;
        self.next_spare - 1
    }

    /// Reuses or removes what is no longer needed and keeps a spare ahead.
    pub(crate) fn advance(&mut self, io: &mut Io) {
        let free = |(sequence, live): (&u64, &Live)| (live.readers == 0).then_some((*sequence, live.bytes));
        let free: Vec<_> = self.live.range(..self.oldest).filter_map(free).collect();
        for (sequence, bytes) in free {
            self.live.remove(&sequence);
            let file = FileId::Wal(sequence);
            let kept = self.spares.len() + self.recycling;
            if bytes == self.segment_bytes && kept < limits::WAL_SPARE_SEGMENTS_MAX {
                self.recycling += 1;
                let spare = self.new_spare();
                let to = FileId::Spare(spare);
                io.issue(DiskOpKind::Rename { from: file, to }, Purpose::SpareRecycle(spare));
            } else {
                mark(Mark::SegmentRemoved);
                io.issue(DiskOpKind::Remove { file }, Purpose::RemoveFile(file));
            }
        }
        if self.spares.is_empty() && self.recycling == 0 && self.creating.is_none() {
            let spare = self.new_spare();
            self.creating = Some(spare);
            let file = FileId::Spare(spare);
            io.issue(DiskOpKind::Create { file, len: self.segment_bytes }, Purpose::SpareCreate(spare));
        }
    }
}
