//! One replica of a partition: what is applied, and on its leader what is proposed on top of it.
//!
//! A leader assigns offsets before entries are committed. It may do so only from a state that contains everything
//! before its term (its own `Noop` is applied: [`Partition::lead`]), advances only after a proposal was accepted
//! ([`Partition::staged`]), and forgets all of it when it stops leading ([`Partition::step_down`]). Every replica
//! checks the offsets again when the entries are applied, so that a mistake stops the group instead of spreading.

use std::collections::{BTreeMap, VecDeque};

use base::limits::{PARTITION_INFLIGHT_BYTES_MAX, RECORD_TIMESTAMP_AHEAD_MAX};
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{Wall, hash64};
use bytes::Bytes;
use wire::EntryKind;

use crate::CommittedBatch;
use crate::batch::{self, BatchError, BatchHeader};
use crate::producer::{ProducerState, ProducerTable, Verdict};

/// The replicated state of one partition, and the leader's speculation on top of it.
#[derive(Clone, Debug)]
pub struct Partition {
    epoch_base: u32,
    log_start_offset: i64,
    next_offset: i64,
    producers: ProducerTable,
    /// Of the entries applied.
    log_digest: u64,
    speculation: Option<Speculation>,
}

/// What the leader has proposed and not yet seen applied.
#[derive(Clone, Debug)]
struct Speculation {
    term: u64,
    next_offset: i64,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// Producers with batches in flight: their state after the last of them, and how many there are.
    producers: BTreeMap<i64, (ProducerState, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct InFlight {
    base_offset: i64,
    crc: u32,
    bytes: usize,
}

/// A batch with its offset, ready to be proposed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Staged {
    /// The entry's payload: the batch with base offset and leader epoch set.
    pub data: Bytes,
    pub base_offset: i64,
    pub last_offset: i64,
}

/// Why batches are not taken. Nothing changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StageError {
    #[error("this node does not lead the partition")]
    NotLeading,
    #[error("{in_flight_bytes} bytes of the partition are under way, more is not taken: try again later")]
    Busy { in_flight_bytes: usize },
    /// A retry of batches that were taken before. Answer with `base_offset` once [`Partition::next_offset`] has
    /// passed `last_offset` (until then the original is still in flight, and may yet be lost).
    #[error("these batches were taken before, at offset {base_offset}")]
    Duplicate { base_offset: i64, last_offset: i64 },
    #[error("producer {producer_id} sends sequence {sequence}, expected is {expected}")]
    OutOfOrderSequence { producer_id: i64, sequence: i32, expected: i32 },
    #[error("producer {producer_id} writes under epoch {epoch}, the current one is {current}")]
    StaleProducerEpoch { producer_id: i64, epoch: i16, current: i16 },
    #[error("a record's timestamp {timestamp} is more than {RECORD_TIMESTAMP_AHEAD_MAX} ahead of the clock")]
    TimestampAhead { timestamp: i64 },
    #[error(transparent)]
    Batch(#[from] BatchError),
}

impl StageError {
    /// The code under which the failure is reported; `None` for a duplicate, which is no failure.
    #[must_use]
    pub fn code(&self) -> Option<base::ErrorCode> {
        use base::ErrorCode;
        Some(match self {
            StageError::NotLeading => ErrorCode::NotLeader,
            StageError::Busy { .. } => ErrorCode::Busy,
            StageError::Duplicate { .. } => return None,
            StageError::OutOfOrderSequence { .. } => ErrorCode::OutOfOrder,
            StageError::StaleProducerEpoch { .. } => ErrorCode::StaleEpoch,
            StageError::TimestampAhead { .. } => ErrorCode::InvalidArgument,
            StageError::Batch(BatchError::TooLarge { .. }) => ErrorCode::TooLarge,
            StageError::Batch(BatchError::Crc { .. } | BatchError::Truncated { .. }) => ErrorCode::Corrupt,
            StageError::Batch(_) => ErrorCode::InvalidArgument,
        })
    }
}

/// Why an entry cannot be applied. Fatal for the group: it is never skipped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("entry {index} holds no valid record batch")]
    Batch { index: u64, source: BatchError },
    #[error("entry {index} has base offset {found}, the partition continues at {expected}")]
    Offset { index: u64, found: i64, expected: i64 },
    #[error("entry {index} of term {term} has leader epoch {found} instead of {expected}")]
    Epoch { index: u64, term: u64, found: i32, expected: i64 },
    #[error("entry {index} is not what this leader proposed at its place")]
    Speculation { index: u64 },
    #[error("entry {index} is a command, and a partition takes none")]
    Command { index: u64 },
}

impl Partition {
    /// An empty partition, whose first record gets offset 0.
    #[must_use]
    pub fn new(epoch_base: u32) -> Partition {
        Partition {
            epoch_base,
            log_start_offset: 0,
            next_offset: 0,
            producers: ProducerTable::default(),
            log_digest: 0,
            speculation: None,
        }
    }

    /// Offset after the last applied record: the high watermark of this replica.
    #[must_use]
    pub fn next_offset(&self) -> i64 {
        self.next_offset
    }

    /// First offset that can be read.
    #[must_use]
    pub fn log_start_offset(&self) -> i64 {
        self.log_start_offset
    }

    /// The leader epoch of a term, as Kafka clients see it; `None` if it exceeds their 31 bits.
    #[must_use]
    pub fn leader_epoch(&self, term: u64) -> Option<i32> {
        u64::from(self.epoch_base).checked_add(term).and_then(|epoch| i32::try_from(epoch).ok())
    }

    /// A hash of everything applied so far, in order, and of the state that it made (offsets, producers): replicas at
    /// the same index have the same. It takes time in proportion to the producers remembered.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let offsets = [self.log_start_offset as u64, self.next_offset as u64];
        hash64(&[self.log_digest, u64::from(self.epoch_base), offsets[0], offsets[1], self.producers.digest()])
    }

    /// This replica leads in `term` and has applied its own `Noop`: offsets are assigned from here on.
    pub fn lead(&mut self, term: u64) {
        self.speculation = Some(Speculation {
            term,
            next_offset: self.next_offset,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            producers: BTreeMap::new(),
        });
    }

    /// This replica no longer leads: what it proposed may or may not come back as applied entries.
    pub fn step_down(&mut self) {
        mark_if(Mark::StepDownWithSpeculation, || self.speculation.as_ref().is_some_and(|s| !s.in_flight.is_empty()));
        if planted(Plant::SpeculationKept) {
            return;
        }
        self.speculation = None;
    }

    /// The term in which this replica assigns offsets.
    #[must_use]
    pub fn leading(&self) -> Option<u64> {
        self.speculation.as_ref().map(|speculation| speculation.term)
    }

    /// Assigns offsets to batches, all or none, and changes nothing: propose the payloads in order, in one proposal,
    /// and call [`Partition::staged`] for each one accepted. `wall` is the leader's clock. Checksums are not looked
    /// at: whoever took the batches from the network did.
    ///
    /// # Errors
    /// See [`StageError`]; for a request of several batches that is partly a retry, `OutOfOrderSequence`.
    pub fn stage(&self, batches: &[Bytes], wall: Wall) -> Result<Vec<Staged>, StageError> {
        let speculation = self.speculation.as_ref().ok_or(StageError::NotLeading)?;
        let leader_epoch = self.leader_epoch(speculation.term).ok_or(StageError::NotLeading)?;
        let headers = self.check(batches, wall)?;
        let bytes: usize = batches.iter().map(Bytes::len).sum();
        let in_flight_bytes = speculation.in_flight_bytes;
        // A request larger than the bound still passes when nothing is under way, or it could never pass.
        if in_flight_bytes > 0 && in_flight_bytes.saturating_add(bytes) > PARTITION_INFLIGHT_BYTES_MAX {
            return Err(StageError::Busy { in_flight_bytes });
        }
        self.judge(speculation, &headers)?;
        let mut next_offset = speculation.next_offset;
        let mut out = Vec::with_capacity(batches.len());
        for (batch, header) in batches.iter().zip(headers) {
            let data = batch::patch(batch, next_offset, leader_epoch)?;
            let last_offset = next_offset + i64::from(header.last_offset_delta);
            out.push(Staged { data, base_offset: next_offset, last_offset });
            next_offset = last_offset + 1;
        }
        Ok(out)
    }

    fn check(&self, batches: &[Bytes], wall: Wall) -> Result<Vec<BatchHeader>, StageError> {
        if batches.is_empty() {
            return Err(BatchError::Empty.into());
        }
        let latest = wall.plus(RECORD_TIMESTAMP_AHEAD_MAX);
        let mut headers = Vec::with_capacity(batches.len());
        for batch in batches {
            let header = BatchHeader::parse(batch)?;
            header.check_produced()?;
            if header.max_timestamp > latest.0 {
                return Err(StageError::TimestampAhead { timestamp: header.max_timestamp });
            }
            headers.push(header);
        }
        Ok(headers)
    }

    /// Checks the sequences of all batches against what is applied, in flight, and earlier in the same request.
    fn judge(&self, speculation: &Speculation, headers: &[BatchHeader]) -> Result<(), StageError> {
        let mut ahead: BTreeMap<i64, ProducerState> = BTreeMap::new();
        let mut duplicates: Option<(i64, i64)> = None;
        let mut fresh = false;
        for header in headers {
            let id = header.producer_id;
            let past = ahead.get(&id).or_else(|| self.producer(speculation, id));
            let verdict = match past {
                Some(past) if header.has_producer() => past.judge(header),
                _ => Verdict::Next,
            };
            let sequence = header.base_sequence;
            match verdict {
                Verdict::Next => {
                    fresh = true;
                    if header.has_producer() {
                        let state = ProducerState::record(past.cloned(), header);
                        ahead.insert(id, state);
                    }
                }
                Verdict::Duplicate { base_offset, last_offset } => {
                    duplicates = Some((duplicates.map_or(base_offset, |(first, _)| first), last_offset));
                }
                Verdict::OutOfOrder { expected } => {
                    mark(Mark::SequenceOutOfOrder);
                    return Err(StageError::OutOfOrderSequence { producer_id: id, sequence, expected });
                }
                Verdict::StaleEpoch { current } => {
                    mark(Mark::ProducerEpochStale);
                    let epoch = header.producer_epoch;
                    return Err(StageError::StaleProducerEpoch { producer_id: id, epoch, current });
                }
            }
            if let (true, Some(_)) = (fresh, duplicates) {
                mark(Mark::RequestPartlyRepeated);
                return Err(StageError::OutOfOrderSequence { producer_id: id, sequence, expected: sequence });
            }
        }
        match duplicates {
            Some((base_offset, last_offset)) => Err(StageError::Duplicate { base_offset, last_offset }),
            None => Ok(()),
        }
    }

    fn producer<'a>(&'a self, speculation: &'a Speculation, id: i64) -> Option<&'a ProducerState> {
        let in_flight = speculation.producers.get(&id).filter(|_| !planted(Plant::InFlightSequencesIgnored));
        in_flight.map(|(state, _)| state).or_else(|| self.producers.get(id))
    }

    /// The proposal of a staged batch was accepted: the next one follows it.
    ///
    /// # Panics
    /// If the batches are not handed over in the order in which they were staged, or this replica does not lead:
    /// offsets would be given out twice.
    pub fn staged(&mut self, staged: &Staged) {
        let header = BatchHeader::parse(&staged.data).expect("stage() made the batch");
        let speculation = self.speculation.as_mut().expect("only a leader stages");
        assert_eq!(staged.base_offset, speculation.next_offset, "staged batches are handed over in order");
        speculation.next_offset = staged.last_offset + 1;
        let bytes = staged.data.len();
        speculation.in_flight.push_back(InFlight { base_offset: staged.base_offset, crc: header.crc, bytes });
        speculation.in_flight_bytes += bytes;
        if header.has_producer() {
            let id = header.producer_id;
            let (past, count) = match speculation.producers.remove(&id) {
                Some((state, count)) => (Some(state), count),
                None => (self.producers.get(id).cloned(), 0),
            };
            speculation.producers.insert(id, (ProducerState::record(past, &header), count + 1));
        }
    }

    /// Applies a committed entry. A batch comes back for the readers; other kinds change nothing.
    ///
    /// # Errors
    /// The entry does not continue the partition. That is a bug or damage, and fatal for the group.
    pub fn apply(
        &mut self,
        index: u64,
        term: u64,
        kind: EntryKind,
        data: &Bytes,
    ) -> Result<Option<CommittedBatch>, ApplyError> {
        match kind {
            EntryKind::Noop | EntryKind::Membership => return Ok(None),
            EntryKind::Command => return Err(ApplyError::Command { index }),
            EntryKind::Batch => {}
        }
        let header = BatchHeader::parse(data).map_err(|source| ApplyError::Batch { index, source })?;
        if header.base_offset != self.next_offset || header.last_offset_delta < 0 {
            return Err(ApplyError::Offset { index, found: header.base_offset, expected: self.next_offset });
        }
        let expected = i64::from(self.epoch_base).saturating_add_unsigned(term);
        if i64::from(header.leader_epoch) != expected {
            return Err(ApplyError::Epoch { index, term, found: header.leader_epoch, expected });
        }
        self.settle(index, term, &header)?;
        self.next_offset = header.last_offset() + 1;
        let remembers = self.speculation.is_some() || !planted(Plant::ProducersOnLeaderOnly);
        if header.has_producer() && remembers {
            self.producers.apply(&header);
        }
        let base_offset = header.base_offset;
        self.log_digest = hash64(&[self.log_digest, index, term, base_offset as u64, u64::from(header.crc)]);
        Ok(Some(CommittedBatch {
            index,
            base_offset,
            last_offset: header.last_offset(),
            max_timestamp: header.max_timestamp,
            leader_epoch: header.leader_epoch,
            data: data.clone(),
        }))
    }

    /// Takes an applied batch out of what is in flight. Under this leader's term, nothing else can come back.
    fn settle(&mut self, index: u64, term: u64, header: &BatchHeader) -> Result<(), ApplyError> {
        let Some(speculation) = self.speculation.as_mut() else { return Ok(()) };
        let found = InFlight { base_offset: header.base_offset, crc: header.crc, bytes: header.bytes };
        if speculation.term != term || speculation.in_flight.front() != Some(&found) {
            return Err(ApplyError::Speculation { index });
        }
        speculation.in_flight.pop_front();
        speculation.in_flight_bytes -= found.bytes;
        if let Some((_, count)) = speculation.producers.get_mut(&header.producer_id) {
            *count -= 1;
            if *count == 0 {
                speculation.producers.remove(&header.producer_id);
            }
        }
        Ok(())
    }
}
