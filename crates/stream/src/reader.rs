//! What a consumer may get from a partition on this node, decided without I/O.
//!
//! A reader is fed with [`Update`]s. It indexes every committed batch, keeps the recent ones in memory, and answers
//! fetches and offset lookups with a plan: bytes at hand, a range of the log to read, or nothing yet. Everything it
//! shows is committed.

use std::collections::VecDeque;

use base::limits::{FETCH_BATCHES_MAX, PARTITION_TAIL_BYTES};
use bytes::Bytes;

use crate::batch::BatchError;
use crate::index::BatchIndex;
use crate::record::decode_batch;
use crate::{BatchHeader, CommittedBatch, Update};

/// One partition as its readers on this node see it.
#[derive(Clone, Debug)]
pub struct Reader {
    leader_epoch: Option<i32>,
    /// Offset after the last batch taken in: all that are handed in are committed.
    high_watermark: i64,
    log_start_offset: i64,
    last_index: u64,
    index: BatchIndex,
    tail: VecDeque<CommittedBatch>,
    tail_bytes: usize,
    tail_bytes_max: usize,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader::new()
    }
}

/// An update that does not continue what the reader has: a bug of whoever sent it. The reader must be given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("batch at offset {found} does not continue the partition at {expected}")]
    Gap { found: i64, expected: i64 },
    #[error("batch at Raft index {found} does not come after {last}")]
    Index { found: u64, last: u64 },
    #[error("the high watermark moves to {found}, but the committed batches reach to {end}")]
    HighWatermark { found: i64, end: i64 },
}

/// How to answer a fetch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FetchPlan {
    /// These batches, the first of which contains the offset. Empty only if the first batch exceeds the bytes allowed
    /// and one batch was not insisted on.
    Tail(Vec<Bytes>),
    /// Read entries `low..=high` of the partition's log, stop after `bytes_max` (one batch comes in any case), and
    /// answer with what came.
    ReadLog {
        low: u64,
        high: u64,
        bytes_max: u32,
        from_offset: i64,
        /// What the batches in the range come to.
        bytes: usize,
    },
    /// Nothing yet: the offset is the high watermark.
    Wait,
    OutOfRange,
    /// This node does not lead the partition (now).
    NotLeader,
    /// The client knows an older leader.
    FencedEpoch,
    /// The client knows a newer leader than this node does.
    UnknownEpoch,
}

/// An offset asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListQuery {
    /// First offset that can be read.
    Earliest,
    /// The high watermark.
    Latest,
    /// The first record at or after this time, in milliseconds since 1970.
    Timestamp(i64),
    /// The record with the greatest timestamp.
    MaxTimestamp,
}

/// How to answer an offset lookup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ListOffset {
    Found {
        offset: i64,
        /// -1: not asked for.
        timestamp: i64,
        /// -1: the partition is empty.
        leader_epoch: i32,
    },
    /// It is in the batch at this Raft index; hand its bytes (`data`, or read from the log) to
    /// [`Reader::look_into`].
    InBatch {
        index: u64,
        leader_epoch: i32,
        data: Option<Bytes>,
    },
    /// No record is that late.
    NotFound,
    NotLeader,
    FencedEpoch,
    UnknownEpoch,
}

impl Reader {
    /// A reader that knows nothing and leads nothing.
    #[must_use]
    pub fn new() -> Reader {
        Reader::with_tail(PARTITION_TAIL_BYTES)
    }

    /// As [`Reader::new`], keeping that many bytes of recent batches in memory.
    #[must_use]
    pub fn with_tail(tail_bytes_max: usize) -> Reader {
        Reader {
            leader_epoch: None,
            high_watermark: 0,
            log_start_offset: 0,
            last_index: 0,
            index: BatchIndex::default(),
            tail: VecDeque::new(),
            tail_bytes: 0,
            tail_bytes_max,
        }
    }

    /// Takes in news.
    ///
    /// # Errors
    /// It does not fit what came before.
    pub fn apply(&mut self, update: Update) -> Result<(), UpdateError> {
        if update.reset {
            *self = Reader {
                log_start_offset: update.log_start_offset,
                high_watermark: update.log_start_offset,
                ..Reader::with_tail(self.tail_bytes_max)
            };
        }
        for batch in update.committed {
            self.push(batch)?;
        }
        if update.high_watermark != self.high_watermark {
            return Err(UpdateError::HighWatermark { found: update.high_watermark, end: self.high_watermark });
        }
        self.leader_epoch = update.leader_epoch;
        self.log_start_offset = update.log_start_offset;
        Ok(())
    }

    fn push(&mut self, batch: CommittedBatch) -> Result<(), UpdateError> {
        if batch.base_offset != self.high_watermark || batch.last_offset < batch.base_offset {
            return Err(UpdateError::Gap { found: batch.base_offset, expected: self.high_watermark });
        }
        if batch.index <= self.last_index {
            return Err(UpdateError::Index { found: batch.index, last: self.last_index });
        }
        self.index.push(&batch);
        self.high_watermark = batch.last_offset + 1;
        self.last_index = batch.index;
        self.tail_bytes += batch.data.len();
        self.tail.push_back(batch);
        while self.tail_bytes > self.tail_bytes_max
            && let Some(oldest) = self.tail.pop_front()
        {
            self.tail_bytes -= oldest.data.len();
        }
        Ok(())
    }

    /// Offset after the last record that can be read.
    #[must_use]
    pub fn high_watermark(&self) -> i64 {
        self.high_watermark
    }

    /// First offset that can be read.
    #[must_use]
    pub fn log_start_offset(&self) -> i64 {
        self.log_start_offset
    }

    /// This node's leader epoch, while it leads and may serve reads.
    #[must_use]
    pub fn leader_epoch(&self) -> Option<i32> {
        self.leader_epoch
    }

    /// Bytes from `offset` to the high watermark, counted no further than `enough`: whether a long poll is due.
    #[must_use]
    pub fn bytes_available(&self, offset: i64, enough: usize) -> usize {
        if offset >= self.high_watermark || offset < self.log_start_offset {
            return 0;
        }
        let mut sum = 0;
        for place in self.index.places_from(offset) {
            sum += place.bytes as usize;
            if sum >= enough {
                break;
            }
        }
        sum
    }

    /// Decides a fetch of about `bytes_max` bytes from `offset`; with `min_one`, one batch comes however large.
    /// `current_leader_epoch` is what the client believes, if it says (KIP-320).
    #[must_use]
    pub fn plan_fetch(
        &self,
        offset: i64,
        bytes_max: usize,
        current_leader_epoch: Option<i32>,
        min_one: bool,
    ) -> FetchPlan {
        match self.compare_epoch(current_leader_epoch) {
            EpochCheck::Current => {}
            EpochCheck::NotLeader => return FetchPlan::NotLeader,
            EpochCheck::Fenced => return FetchPlan::FencedEpoch,
            EpochCheck::Unknown => return FetchPlan::UnknownEpoch,
        }
        if offset < self.log_start_offset || offset > self.high_watermark {
            return FetchPlan::OutOfRange;
        }
        if offset == self.high_watermark {
            return FetchPlan::Wait;
        }
        if self.tail.front().is_some_and(|batch| batch.base_offset <= offset) {
            return FetchPlan::Tail(self.tail_from(offset, bytes_max, min_one));
        }
        let mut range: Option<(u64, u64)> = None;
        let mut bytes = 0usize;
        for (count, place) in self.index.places_from(offset).enumerate() {
            let sum = bytes.saturating_add(place.bytes as usize);
            let insist = range.is_none() && min_one;
            if (sum > bytes_max && !insist) || count >= FETCH_BATCHES_MAX {
                break;
            }
            bytes = sum;
            range = Some((range.map_or(place.index, |(low, _)| low), place.index));
        }
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        match range {
            Some((low, high)) => FetchPlan::ReadLog { low, high, bytes_max, from_offset: offset, bytes },
            None => FetchPlan::Tail(Vec::new()),
        }
    }

    fn tail_from(&self, offset: i64, bytes_max: usize, min_one: bool) -> Vec<Bytes> {
        let first = self.tail.partition_point(|batch| batch.last_offset < offset);
        let mut out: Vec<Bytes> = Vec::new();
        let mut bytes = 0usize;
        for batch in self.tail.range(first..) {
            bytes = bytes.saturating_add(batch.data.len());
            let insist = out.is_empty() && min_one;
            if (bytes > bytes_max && !insist) || out.len() >= FETCH_BATCHES_MAX {
                break;
            }
            out.push(batch.data.clone());
        }
        out
    }

    /// Decides an offset lookup.
    #[must_use]
    pub fn list_offset(&self, query: ListQuery, current_leader_epoch: Option<i32>) -> ListOffset {
        let epoch = match (self.compare_epoch(current_leader_epoch), self.leader_epoch) {
            (EpochCheck::Current, Some(epoch)) => epoch,
            (EpochCheck::Fenced, _) => return ListOffset::FencedEpoch,
            (EpochCheck::Unknown, _) => return ListOffset::UnknownEpoch,
            _ => return ListOffset::NotLeader,
        };
        let place = match query {
            ListQuery::Earliest => {
                let offset = self.log_start_offset;
                let leader_epoch = self.index.epoch_at(offset).unwrap_or(-1);
                return ListOffset::Found { offset, timestamp: -1, leader_epoch };
            }
            ListQuery::Latest => {
                return ListOffset::Found { offset: self.high_watermark, timestamp: -1, leader_epoch: epoch };
            }
            ListQuery::Timestamp(timestamp) => self.index.at_timestamp(timestamp),
            ListQuery::MaxTimestamp => self.index.max_timestamp(),
        };
        match place {
            Some(place) => ListOffset::InBatch {
                index: place.index,
                leader_epoch: self.index.epoch_at(place.base_offset).unwrap_or(-1),
                data: self.in_tail(place.base_offset),
            },
            None => ListOffset::NotFound,
        }
    }

    /// (offset, timestamp) of the record that `query` asks for, in the batch that [`Reader::list_offset`] named.
    ///
    /// Compressed records are not looked into. For them a time lookup gives the batch's first record (the consumer
    /// may then see records of the same batch that are somewhat earlier, and misses none), and the lookup of the
    /// greatest timestamp gives the batch's last offset, as Kafka up to 3.5 does. The same goes for records that do
    /// not hold what their header promises: what producers put behind the header is not checked.
    ///
    /// # Errors
    /// The batch is damaged.
    pub fn look_into(query: ListQuery, batch: &Bytes) -> Result<(i64, i64), BatchError> {
        let header = BatchHeader::parse(batch)?;
        let wanted = match query {
            ListQuery::Timestamp(timestamp) => timestamp,
            ListQuery::MaxTimestamp => header.max_timestamp,
            ListQuery::Earliest | ListQuery::Latest => header.base_timestamp,
        };
        let records = decode_batch(batch).unwrap_or_default();
        let found = records.iter().find(|(_, record)| record.timestamp >= wanted);
        Ok(match (found, query) {
            (Some((offset, record)), _) => (*offset, record.timestamp),
            (None, ListQuery::MaxTimestamp) => (header.last_offset(), header.max_timestamp),
            (None, _) => (header.base_offset, header.base_timestamp),
        })
    }

    fn in_tail(&self, base_offset: i64) -> Option<Bytes> {
        let at = self.tail.binary_search_by_key(&base_offset, |batch| batch.base_offset).ok()?;
        self.tail.get(at).map(|batch| batch.data.clone())
    }

    fn compare_epoch(&self, client: Option<i32>) -> EpochCheck {
        match (self.leader_epoch, client) {
            (None, _) => EpochCheck::NotLeader,
            (Some(mine), Some(theirs)) if theirs < mine => EpochCheck::Fenced,
            (Some(mine), Some(theirs)) if theirs > mine => EpochCheck::Unknown,
            _ => EpochCheck::Current,
        }
    }
}

enum EpochCheck {
    Current,
    NotLeader,
    Fenced,
    Unknown,
}
