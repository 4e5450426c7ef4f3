//! What a partition remembers of idempotent producers (KIP-98): the last few batches of each, so that a retry is
//! recognized and a gap is refused.

use std::collections::{BTreeMap, VecDeque};

use base::hash64;
use base::limits::{PARTITION_PRODUCERS_MAX, PRODUCER_BATCHES_KEPT};

use crate::batch::BatchHeader;

/// One producer's recent past in one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ProducerState {
    epoch: i16,
    /// The last batches under `epoch`, oldest first; never empty.
    batches: VecDeque<ProducedBatch>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ProducedBatch {
    base_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
    last_offset: i64,
}

/// What the past says about a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Next,
    Duplicate { base_offset: i64, last_offset: i64 },
    OutOfOrder { expected: i32 },
    StaleEpoch { current: i16 },
}

impl ProducerState {
    /// Judges a batch by Kafka's rules (`ProducerAppendInfo`, `ProducerStateEntry.findDuplicateBatch`).
    pub(crate) fn judge(&self, header: &BatchHeader) -> Verdict {
        if header.producer_epoch < self.epoch {
            return Verdict::StaleEpoch { current: self.epoch };
        }
        if header.producer_epoch > self.epoch {
            return if header.base_sequence == 0 { Verdict::Next } else { Verdict::OutOfOrder { expected: 0 } };
        }
        let last_sequence = last_sequence(header);
        let same = |batch: &&ProducedBatch| {
            batch.base_sequence == header.base_sequence && batch.last_sequence == last_sequence
        };
        if let Some(batch) = self.batches.iter().find(same) {
            return Verdict::Duplicate { base_offset: batch.base_offset, last_offset: batch.last_offset };
        }
        let expected = self.batches.back().map_or(header.base_sequence, |last| sequence_plus(last.last_sequence, 1));
        if header.base_sequence == expected { Verdict::Next } else { Verdict::OutOfOrder { expected } }
    }

    /// Takes a batch that was accepted, whose header carries its final offset, into the past.
    pub(crate) fn record(past: Option<ProducerState>, header: &BatchHeader) -> ProducerState {
        let mut state = match past {
            Some(state) if state.epoch == header.producer_epoch => state,
            _ => ProducerState { epoch: header.producer_epoch, batches: VecDeque::new() },
        };
        if state.batches.len() >= PRODUCER_BATCHES_KEPT {
            state.batches.pop_front();
        }
        state.batches.push_back(ProducedBatch {
            base_sequence: header.base_sequence,
            last_sequence: last_sequence(header),
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
        });
        state
    }

    fn last_offset(&self) -> i64 {
        self.batches.back().map_or(-1, |batch| batch.last_offset)
    }
}

/// All producers of one partition, as applied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ProducerTable {
    producers: BTreeMap<i64, ProducerState>,
    /// (last offset, producer): who wrote longest ago comes first.
    by_age: BTreeMap<i64, i64>,
}

impl ProducerTable {
    pub(crate) fn get(&self, producer_id: i64) -> Option<&ProducerState> {
        self.producers.get(&producer_id)
    }

    /// A hash of all that is remembered.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = 0;
        for (id, state) in &self.producers {
            digest = hash64(&[digest, *id as u64, state.epoch as u64]);
            for batch in &state.batches {
                let sequences = (batch.base_sequence as u64) << 32 | u64::from(batch.last_sequence as u32);
                digest = hash64(&[digest, sequences, batch.base_offset as u64, batch.last_offset as u64]);
            }
        }
        self.by_age.iter().fold(digest, |digest, (at, id)| hash64(&[digest, *at as u64, *id as u64]))
    }

    /// Takes in an applied batch; the same log gives the same table everywhere, what is forgotten included.
    pub(crate) fn apply(&mut self, header: &BatchHeader) {
        let past = self.producers.remove(&header.producer_id);
        if let Some(past) = &past {
            self.by_age.remove(&past.last_offset());
        }
        let state = ProducerState::record(past, header);
        self.by_age.insert(state.last_offset(), header.producer_id);
        self.producers.insert(header.producer_id, state);
        while self.producers.len() > PARTITION_PRODUCERS_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.producers.remove(&oldest);
        }
    }
}

fn last_sequence(header: &BatchHeader) -> i32 {
    sequence_plus(header.base_sequence, header.last_offset_delta)
}

/// Sequences run from 0 to `i32::MAX` and start again at 0.
fn sequence_plus(sequence: i32, by: i32) -> i32 {
    ((i64::from(sequence) + i64::from(by)) & i64::from(i32::MAX)) as i32
}
