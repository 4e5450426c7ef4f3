//! One group's log as Raft sees it: the terms of all of it, the entries of its recent part, the rest on disk.
//!
//! Entries above the applied index are always here, because Raft asks for them in ways that cannot wait. Older ones
//! stay while they fit the budget; what a lagging follower needs beyond that is read from disk: the request waits here
//! with Raft's own note of what it is for, until [`crate::Group::entries_fetched`] answers it.

use std::cell::RefCell;
use std::collections::VecDeque;

use base::limits::{LOG_READ_BYTES_MAX, RAFT_RESIDENT_BYTES_MAX};
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use raft::eraftpb::{Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use wire::SnapshotMeta;

use crate::convert;

/// Log reads of one group waiting for the disk; beyond it a follower waits for its next heartbeat.
const READS_MAX: usize = 16;
/// Followers that one log read can serve.
const READERS_MAX: usize = 16;

/// See the module.
pub(crate) struct GroupLog {
    /// What Raft starts from; used once.
    initial: RaftState,
    /// (first index of the run, term), from the index before the log's first one upwards.
    runs: Vec<(u64, u64)>,
    last: u64,
    /// The entries up to and including `last`, without a gap.
    resident: VecDeque<Entry>,
    resident_bytes: usize,
    /// Entries above it are pinned.
    applied: u64,
    /// What a follower gets that lags behind the log.
    checkpoint: SnapshotMeta,
    reads: RefCell<Reads>,
}

#[derive(Default)]
struct Reads {
    waiting: Vec<Waiting>,
    token: u64,
    /// While Raft's callbacks run: what the disk answered.
    answer: Option<Answer>,
}

struct Waiting {
    token: u64,
    low: u64,
    high: u64,
    bytes_max: usize,
    asked: bool,
    readers: Vec<GetEntriesContext>,
}

struct Answer {
    low: u64,
    /// `None`: no longer on disk.
    entries: Option<Vec<Entry>>,
}

/// A read that has to be carried out: (token, low, high inclusive, bytes).
pub(crate) type ReadRequest = (u64, u64, u64, usize);

impl GroupLog {
    /// A log whose entry before the first has index and term `before`, with `runs` of terms after it, ending in
    /// `last`, of which `resident` is in memory. Tokens count up from `token`.
    pub(crate) fn new(
        initial: RaftState,
        before: (u64, u64),
        runs: Vec<(u64, u64)>,
        last: u64,
        resident: Vec<Entry>,
        checkpoint: SnapshotMeta,
        token: u64,
    ) -> GroupLog {
        let mut all = vec![before];
        all.extend(runs);
        let resident_bytes = resident.iter().map(convert::entry_bytes).sum();
        GroupLog {
            initial,
            runs: all,
            last,
            applied: last - resident.len() as u64,
            resident: resident.into(),
            resident_bytes,
            checkpoint,
            reads: RefCell::new(Reads { token, ..Reads::default() }),
        }
    }

    /// Index before the first one.
    fn before(&self) -> u64 {
        self.runs[0].0
    }

    pub(crate) fn first(&self) -> u64 {
        self.before() + 1
    }

    fn resident_first(&self) -> u64 {
        self.last + 1 - self.resident.len() as u64
    }

    /// Term of an index between the one before the first and the last.
    pub(crate) fn term_at(&self, index: u64) -> Option<u64> {
        if index < self.before() || index > self.last {
            return None;
        }
        let run = self.runs.partition_point(|(first, _)| *first <= index);
        Some(self.runs[run - 1].1)
    }

    /// Adds entries; those already here from the first one's index on are replaced (Raft section 5.3).
    pub(crate) fn append(&mut self, mut entries: Vec<Entry>) {
        if planted(Plant::ConflictingSuffixKept) {
            entries.retain(|entry| entry.index > self.last);
        }
        let Some(first) = entries.first().map(|entry| entry.index) else { return };
        assert!(first > self.applied && first <= self.last + 1, "entry {first} does not fit the log");
        self.truncate(first);
        for entry in entries {
            if self.runs.last().is_none_or(|(_, term)| *term != entry.term) {
                self.runs.push((entry.index, entry.term));
            }
            self.last = entry.index;
            self.resident_bytes += convert::entry_bytes(&entry);
            self.resident.push_back(entry);
        }
    }

    fn truncate(&mut self, from: u64) {
        while self.last >= from {
            mark(Mark::ConflictingEntryTruncated);
            let Some(entry) = self.resident.pop_back() else { unreachable!("entries above applied are resident") };
            self.resident_bytes -= convert::entry_bytes(&entry);
            self.last -= 1;
        }
        while self.runs.len() > 1 && self.runs.last().is_some_and(|(first, _)| *first >= from) {
            self.runs.pop();
        }
    }

    /// Entries up to `index` may leave the memory.
    pub(crate) fn applied(&mut self, index: u64) {
        self.applied = self.applied.max(index);
        while self.resident_bytes > RAFT_RESIDENT_BYTES_MAX {
            match self.resident.front() {
                Some(entry) if entry.index <= self.applied => {
                    self.resident_bytes -= convert::entry_bytes(entry);
                    self.resident.pop_front();
                }
                _ => break,
            }
        }
    }

    /// A checkpoint is durable, and the log on disk now starts at `first`.
    pub(crate) fn checkpointed(&mut self, meta: SnapshotMeta, first: u64) {
        self.checkpoint = meta;
        let before = first.saturating_sub(1).min(self.applied);
        let Some(term) = self.term_at(before).filter(|_| before > self.before()) else { return };
        let run = self.runs.partition_point(|(first, _)| *first <= before);
        self.runs.drain(..run - 1);
        self.runs[0] = (before, term);
        while self.resident.front().is_some_and(|entry| entry.index <= before) {
            let Some(entry) = self.resident.pop_front() else { break };
            self.resident_bytes -= convert::entry_bytes(&entry);
        }
    }

    /// Everything is replaced by a checkpoint.
    pub(crate) fn install(&mut self, meta: SnapshotMeta) {
        self.runs = vec![(meta.index, meta.term)];
        self.last = meta.index;
        self.applied = meta.index;
        self.resident.clear();
        self.resident_bytes = 0;
        self.checkpoint = meta;
        self.forget_reads();
    }

    pub(crate) fn set_checkpoint(&mut self, meta: SnapshotMeta) {
        self.checkpoint = meta;
    }

    /// Nobody waits for the disk any more (the leader they were for is gone).
    pub(crate) fn forget_reads(&mut self) {
        self.reads.get_mut().waiting.clear();
    }

    /// Reads that were not handed out yet.
    pub(crate) fn take_reads(&mut self) -> Vec<ReadRequest> {
        let waiting = self.reads.get_mut().waiting.iter_mut().filter(|read| !read.asked);
        waiting
            .map(|read| {
                read.asked = true;
                (read.token, read.low, read.high, read.bytes_max)
            })
            .collect()
    }

    /// Takes the disk's answer; Raft is to be called back with each of the contexts, then [`GroupLog::answered`].
    pub(crate) fn answer(&mut self, token: u64, entries: Option<Vec<Entry>>) -> Vec<GetEntriesContext> {
        let Some(at) = self.reads.get_mut().waiting.iter().position(|read| read.token == token) else {
            mark(Mark::CatchUpReadTooLate);
            return Vec::new();
        };
        mark_if(Mark::CatchUpReadCompacted, || entries.is_none());
        let read = self.reads.get_mut().waiting.swap_remove(at);
        if entries.as_ref().is_some_and(|entries| !self.fits(read.low, entries)) {
            // Not what was asked for: as if it never came. The follower's next heartbeat asks again.
            return Vec::new();
        }
        self.reads.get_mut().answer = Some(Answer { low: read.low, entries });
        read.readers
    }

    pub(crate) fn answered(&mut self) {
        self.reads.get_mut().answer = None;
    }

    /// Whether entries read from disk are this log's from `low` on.
    fn fits(&self, low: u64, entries: &[Entry]) -> bool {
        !entries.is_empty()
            && entries
                .iter()
                .zip(low..)
                .all(|(entry, index)| entry.index == index && self.term_at(index) == Some(entry.term))
    }

    /// Committed entries after `from` up to `to` that change the membership; they are resident.
    pub(crate) fn has_membership_between(&self, from: u64, to: u64) -> bool {
        self.resident.iter().any(|entry| {
            entry.index > from && entry.index <= to && entry.get_entry_type() != raft::eraftpb::EntryType::EntryNormal
        })
    }

    fn read_later(&self, low: u64, high: u64, bytes_max: u64, context: GetEntriesContext) -> raft::Error {
        let mut reads = self.reads.borrow_mut();
        if let Some(read) = reads.waiting.iter_mut().find(|read| read.low == low) {
            if read.readers.len() < READERS_MAX {
                mark(Mark::CatchUpReadShared);
                read.readers.push(context);
            }
        } else if reads.waiting.len() < READS_MAX {
            mark(Mark::CatchUpReadFromDisk);
            reads.token += 1;
            let token = reads.token;
            reads.waiting.push(Waiting {
                token,
                low,
                high: (high - 1).min(self.resident_first() - 1),
                bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX).min(LOG_READ_BYTES_MAX),
                asked: false,
                readers: vec![context],
            });
        }
        raft::Error::Store(StorageError::LogTemporarilyUnavailable)
    }
}

/// Clones entries while they fit, at least one.
fn fitting<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: u64) -> Vec<Entry> {
    let mut bytes = 0u64;
    let mut out = Vec::new();
    for entry in entries {
        bytes = bytes.saturating_add(convert::entry_bytes(entry) as u64);
        if bytes > bytes_max && !out.is_empty() {
            break;
        }
        out.push(entry.clone());
    }
    out
}

impl Storage for GroupLog {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.before() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        assert!(low <= high && high <= self.last + 1, "entries {low}..{high} of a log that ends at {}", self.last);
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let first = self.resident_first();
        if low >= first {
            let range = (low - first) as usize..(high - first) as usize;
            return Ok(fitting(self.resident.range(range), bytes_max));
        }
        if !context.can_async() {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        if let Some(answer) = self.reads.borrow().answer.as_ref().filter(|answer| answer.low == low) {
            return match &answer.entries {
                None => Err(raft::Error::Store(StorageError::Compacted)),
                Some(entries) => Ok(fitting(entries.iter().take((high - low) as usize), bytes_max)),
            };
        }
        Err(self.read_later(low, high, bytes_max, context))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let missing = if index < self.before() { StorageError::Compacted } else { StorageError::Unavailable };
        self.term_at(index).ok_or(raft::Error::Store(missing))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.checkpoint.index == 0 || self.checkpoint.index < request_index {
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        mark(Mark::SnapshotOffered);
        Ok(convert::snapshot_to_raft(&self.checkpoint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, len: usize) -> Entry {
        Entry { index, term, data: vec![0; len].into(), context: vec![3].into(), ..Default::default() }
    }

    fn log() -> GroupLog {
        let checkpoint = SnapshotMeta { index: 1, term: 1, ..Default::default() };
        GroupLog::new(RaftState::default(), (1, 1), Vec::new(), 1, Vec::new(), checkpoint, 0)
    }

    fn terms(log: &GroupLog) -> Vec<Option<u64>> {
        (0..=log.last + 1).map(|index| log.term_at(index)).collect()
    }

    fn read(log: &GroupLog, low: u64, high: u64, can_async: bool) -> raft::Result<Vec<u64>> {
        let entries = log.entries(low, high, None, GetEntriesContext::empty(can_async))?;
        Ok(entries.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn a_conflicting_suffix_is_replaced() {
        let mut log = log();
        log.append(vec![entry(2, 1, 1), entry(3, 2, 1), entry(4, 2, 1), entry(5, 3, 1)]);
        log.append(vec![entry(4, 4, 1)]);
        assert_eq!(terms(&log), [None, Some(1), Some(1), Some(2), Some(4), None]);
        assert_eq!(read(&log, 2, 5, false), Ok(vec![2, 3, 4]));
        log.append(vec![entry(2, 5, 1)]);
        assert_eq!(terms(&log), [None, Some(1), Some(5), None]);
    }

    #[test]
    fn what_is_applied_leaves_memory_by_budget_and_comes_back_from_disk() {
        let mut log = log();
        let size = RAFT_RESIDENT_BYTES_MAX / 2;
        log.append((2..10).map(|index| entry(index, 1, size)).collect());
        log.applied(1);
        assert_eq!(read(&log, 2, 10, false).map(|e| e.len()), Ok(8), "nothing applied, nothing evicted");
        log.applied(7);
        let unavailable = Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable));
        assert_eq!(read(&log, 2, 10, true), unavailable);
        assert_eq!(read(&log, 2, 10, true), unavailable);
        let reads = log.take_reads();
        assert_eq!(reads.len(), 1, "one read serves both");
        assert_eq!((reads[0].1, reads[0].2), (2, 7), "only what is not resident");
        assert!(log.take_reads().is_empty());

        let contexts = log.answer(reads[0].0, Some(vec![entry(2, 1, 1), entry(3, 1, 1)]));
        assert_eq!(contexts.len(), 2);
        assert_eq!(read(&log, 2, 10, true), Ok(vec![2, 3]));
        log.answered();
        assert_eq!(read(&log, 2, 10, true), unavailable);
    }

    #[test]
    fn an_answer_that_is_not_this_logs_counts_as_none() {
        let mut log = log();
        log.append((2..10).map(|index| entry(index, 1, RAFT_RESIDENT_BYTES_MAX)).collect());
        log.applied(9);
        for wrong in [vec![], vec![entry(3, 1, 1)], vec![entry(2, 9, 1)], vec![entry(2, 1, 1), entry(4, 1, 1)]] {
            let _ = read(&log, 2, 10, true);
            let token = log.take_reads()[0].0;
            assert!(log.answer(token, Some(wrong)).is_empty());
        }
        let _ = read(&log, 2, 10, true);
        let token = log.take_reads()[0].0;
        assert_eq!(log.answer(token, None).len(), 1);
        assert_eq!(read(&log, 2, 10, true), Err(raft::Error::Store(StorageError::Compacted)));
    }

    #[test]
    fn first_last_and_terms_are_right_after_a_checkpoint_and_after_an_install() {
        let mut log = log();
        log.append(vec![entry(2, 1, 1), entry(3, 2, 1), entry(4, 2, 1), entry(5, 3, 1)]);
        log.applied(4);
        log.checkpointed(SnapshotMeta { index: 4, term: 2, ..Default::default() }, 4);
        assert_eq!((log.first(), log.last), (4, 5));
        assert_eq!(terms(&log), [None, None, None, Some(2), Some(2), Some(3), None]);
        assert_eq!(read(&log, 3, 6, true), Err(raft::Error::Store(StorageError::Compacted)));
        assert_eq!(log.snapshot(0, 1).unwrap().get_metadata().index, 4);

        log.install(SnapshotMeta { index: 20, term: 7, ..Default::default() });
        assert_eq!((log.first(), log.last, log.term_at(20), log.term_at(5)), (21, 20, Some(7), None));
        log.append(vec![entry(21, 8, 1)]);
        assert_eq!(read(&log, 21, 22, false), Ok(vec![21]));
    }

    #[test]
    fn the_term_of_an_entry_that_is_not_there_is_unknown_and_never_0() {
        let mut log = log();
        log.append(vec![entry(2, 3, 1), entry(3, 3, 1)]);
        log.applied(3);
        log.checkpointed(SnapshotMeta { index: 3, term: 3, ..Default::default() }, 3);
        let missing = |why| -> raft::Result<u64> { Err(raft::Error::Store(why)) };
        let terms: Vec<raft::Result<u64>> = (1..5).map(|index| log.term(index)).collect();
        assert_eq!(terms, [missing(StorageError::Compacted), Ok(3), Ok(3), missing(StorageError::Unavailable)]);
    }

    #[test]
    fn a_snapshot_that_would_be_too_old_is_not_given() {
        let log = log();
        assert!(log.snapshot(2, 1).is_err());
    }
}
