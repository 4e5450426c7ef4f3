//! Reading back: entries from memory and disk, parts of checkpoints. Everything that comes from disk is verified.

use std::collections::BTreeMap;

use base::{GroupId, limits};
use bytes::Bytes;
use crc32c::crc32c;
use wire::{Entry, EntryKind};

use crate::api::{CheckpointPart, DiskOpKind, FileId, JournalError, Output, ReadError};
use crate::framing::{COPY_BYTES_MAX, Kind, RECORD_HEAD_BYTES, parse_record, seed};
use crate::index::Place;
use crate::io::{Io, Purpose};
use crate::table::{Group, Table};
use crate::view::{Found, View};

/// One disk read that serves some entries of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stretch {
    job: u64,
    segment: u64,
    offset: u64,
    len: usize,
    /// (slot of the job, index, place).
    wanted: Vec<(usize, u64, Place)>,
}

/// One disk read of a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    token: u64,
    group: GroupId,
    file: FileId,
    /// Where the read begins, at a chunk.
    from: u64,
    len: usize,
    /// What its chunks' checksums must be.
    chunks: Vec<u32>,
    /// What was asked for; `data` is filled in.
    part: CheckpointPart,
    want: usize,
}

#[derive(Debug)]
struct Job {
    token: u64,
    group: GroupId,
    slots: Vec<Option<Entry>>,
    /// Disk reads under way.
    left: usize,
}

/// Reads under way.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    jobs: BTreeMap<u64, Job>,
    next: u64,
}

/// A range of a group's log to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub token: u64,
    pub group: GroupId,
    pub low: u64,
    pub high: u64,
    pub bytes_max: usize,
}

impl Stretch {
    fn of(job: u64, slot: usize, index: u64, place: Place) -> Self {
        let (segment, offset, len) = (place.segment, u64::from(place.offset), record_bytes(place));
        Stretch { job, segment, offset, len, wanted: vec![(slot, index, place)] }
    }

    /// Takes the place in if it lies close behind.
    fn extend(&mut self, slot: usize, index: u64, place: Place) -> bool {
        let (end, offset) = (self.offset + self.len as u64, u64::from(place.offset));
        let near = place.segment == self.segment && offset >= end && offset - end <= limits::WAL_READ_GAP_BYTES;
        if near {
            self.len = (offset - self.offset) as usize + record_bytes(place);
            self.wanted.push((slot, index, place));
        }
        near
    }

    /// The segment that is read.
    pub(crate) fn segment(&self) -> u64 {
        self.segment
    }
}

impl Part {
    /// The file that is read.
    pub(crate) fn file(&self) -> FileId {
        self.file
    }
}

fn record_bytes(place: Place) -> usize {
    RECORD_HEAD_BYTES + place.bytes as usize
}

fn damaged(segment: u64, offset: u64, reason: &str) -> JournalError {
    JournalError::Corrupt { file: FileId::Wal(segment).name(), offset, reason: reason.into() }
}

impl Reader {
    /// Begins a read. Returns the segments it reads, which must stay until their stretches are done.
    pub(crate) fn read(&mut self, range: Range, view: Option<&View>, table: &Table, io: &mut Io) -> Vec<u64> {
        let token = range.token;
        let refuse = |error: ReadError, io: &mut Io| io.output(Output::Read { token, result: Err(error) });
        let Some(view) = view else {
            refuse(ReadError::Unknown, io);
            return Vec::new();
        };
        if range.low < view.first() {
            refuse(ReadError::Compacted(range.low), io);
            return Vec::new();
        }
        if range.low >= view.next() {
            refuse(ReadError::Beyond(range.low), io);
            return Vec::new();
        }
        let high = range.high.clamp(range.low, view.next() - 1);
        let (slots, stretches) = self.plan(Range { high, ..range }, view, table.get(range.group));
        if stretches.is_empty() {
            io.output(Output::Read { token, result: Ok(slots.into_iter().flatten().collect()) });
            return Vec::new();
        }
        self.jobs.insert(self.next, Job { token, group: range.group, slots, left: stretches.len() });
        self.next += 1;
        let segments = stretches.iter().map(Stretch::segment).collect();
        for stretch in stretches {
            let (file, offset, len) = (FileId::Wal(stretch.segment), stretch.offset, stretch.len);
            io.issue(DiskOpKind::Read { file, offset, len }, Purpose::Entries(stretch));
        }
        segments
    }

    fn plan(&self, range: Range, view: &View, group: Option<&Group>) -> (Vec<Option<Entry>>, Vec<Stretch>) {
        let (mut slots, mut stretches) = (Vec::new(), Vec::<Stretch>::new());
        // What is returned, and what is read for it: a group that wrote little lies scattered among the others.
        let (mut bytes, mut read) = (0usize, 0usize);
        for index in range.low..=range.high {
            let (size, entry, place) = match view.find(index) {
                Found::Memory(entry) => (entry.data.len(), Some(entry.clone()), None),
                Found::Disk => {
                    let place = group.and_then(|group| group.log.place(index));
                    let place = place.expect("what is readable is in memory or indexed");
                    (place.bytes as usize, None, Some(place))
                }
            };
            bytes = bytes.saturating_add(size);
            if bytes.max(read) > range.bytes_max && !slots.is_empty() {
                break;
            }
            if let Some(place) = place {
                let slot = slots.len();
                let before = stretches.last().map_or(0, |stretch| stretch.len);
                let full = stretches.len() >= limits::WAL_READ_STRETCHES_MAX;
                if stretches.last_mut().is_some_and(|stretch| stretch.extend(slot, index, place)) {
                    read += stretches.last().map_or(0, |stretch| stretch.len - before);
                } else if full {
                    break;
                } else {
                    read += record_bytes(place);
                    stretches.push(Stretch::of(self.next, slot, index, place));
                }
            }
            slots.push(entry);
        }
        (slots, stretches)
    }

    /// Takes what a stretch read.
    ///
    /// # Errors
    /// If it is not what was written.
    pub(crate) fn entries_done(&mut self, stretch: Stretch, data: &Bytes, io: &mut Io) -> Result<(), JournalError> {
        let job = self.jobs.get_mut(&stretch.job).expect("a stretch belongs to a job");
        let seed = seed(stretch.segment);
        for (slot, index, place) in &stretch.wanted {
            let offset = u64::from(place.offset);
            let record = parse_record(data, (offset - stretch.offset) as usize, seed)
                .filter(|record| record.group == job.group && record.index == *index);
            let Some(record) = record else {
                return Err(damaged(stretch.segment, offset, "an entry that was durable does not read back"));
            };
            let kind = entry_kind(record.kind)
                .ok_or_else(|| damaged(stretch.segment, offset, "an entry reads back as something else"))?;
            // A small entry that is kept must not keep the whole stretch in memory.
            let small = record.payload.len() <= COPY_BYTES_MAX;
            let data = if small { Bytes::copy_from_slice(&record.payload) } else { record.payload };
            job.slots[*slot] = Some(Entry { index: *index, term: record.term, kind, data });
        }
        job.left -= 1;
        if job.left == 0
            && let Some(job) = self.jobs.remove(&stretch.job)
        {
            io.output(Output::Read { token: job.token, result: Ok(job.slots.into_iter().flatten().collect()) });
        }
        Ok(())
    }
}

fn entry_kind(code: u8) -> Option<EntryKind> {
    match Kind::from_code(code) {
        Some(Kind::Entry(kind)) => Some(kind),
        _ => None,
    }
}

/// Begins a read of a checkpoint; returns its file, which must stay until the read is done.
pub(crate) fn read_checkpoint(
    token: u64,
    id: GroupId,
    (offset, len): (u64, usize),
    group: Option<&Group>,
    io: &mut Io,
) -> Option<FileId> {
    let Some(group) = group else {
        io.output(Output::CheckpointRead { token, result: Err(ReadError::Unknown) });
        return None;
    };
    let total = group.checkpoint_bytes;
    if offset > total {
        io.output(Output::CheckpointRead { token, result: Err(ReadError::Beyond(offset)) });
        return None;
    }
    let (meta, crc) = (group.checkpoint.clone(), group.checkpoint_crc);
    let part = CheckpointPart { meta, offset, data: Bytes::new(), total, crc };
    let want = len.min(limits::LOG_READ_BYTES_MAX).min(usize::try_from(total - offset).unwrap_or(usize::MAX));
    let file = match group.file(id) {
        Some(file) if want > 0 => file,
        _ => {
            io.output(Output::CheckpointRead { token, result: Ok(part) });
            return None;
        }
    };
    let chunk = limits::CHECKPOINT_CHUNK_BYTES as u64;
    let (first, last) = (offset / chunk, (offset + want as u64).div_ceil(chunk));
    let (from, to) = (first * chunk, (last * chunk).min(total));
    let chunks = group.checkpoint_chunks[first as usize..last as usize].to_vec();
    let read = Part { token, group: id, file, from, len: (to - from) as usize, chunks, part, want };
    io.issue(DiskOpKind::Read { file, offset: from, len: read.len }, Purpose::CheckpointPart(Box::new(read)));
    Some(file)
}

/// Takes what the read gave.
///
/// # Errors
/// If it is not what was written.
pub(crate) fn checkpoint_done(read: Part, data: &Bytes, io: &mut Io) -> Result<(), JournalError> {
    let mut sums = data.chunks(limits::CHECKPOINT_CHUNK_BYTES).map(crc32c);
    let bad = read.chunks.iter().position(|sum| sums.next() != Some(*sum));
    if let Some(at) = bad.or((data.len() != read.len).then_some(0)) {
        return Err(JournalError::Corrupt {
            file: read.file.name(),
            offset: read.from + (at * limits::CHECKPOINT_CHUNK_BYTES) as u64,
            reason: format!("the checkpoint of group {} does not read back as it was written", read.group),
        });
    }
    let at = (read.part.offset - read.from) as usize;
    let part = CheckpointPart { data: data.slice(at..at + read.want), ..read.part };
    io.output(Output::CheckpointRead { token: read.token, result: Ok(part) });
    Ok(())
}
