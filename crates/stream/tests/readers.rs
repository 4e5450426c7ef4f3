//! The reader against a naive model that keeps every batch in a list.
#![allow(clippy::unwrap_used)] // A test's failure is its message.

use base::SplitMix64;
use base::limits::{FETCH_BATCHES_MAX, PARTITION_TAIL_BYTES};
use bytes::Bytes;
use stream::{
    BatchHeader, CommittedBatch, FetchPlan, ListOffset, ListQuery, Reader, Record, Update, UpdateError, batch,
    encode_batch,
};

#[derive(Default)]
struct Model {
    batches: Vec<CommittedBatch>,
}

impl Model {
    fn end(&self) -> i64 {
        self.batches.last().map_or(0, |batch| batch.last_offset + 1)
    }

    /// Makes the next batch, of 1 to 4 records with timestamps around `timestamp`.
    fn grow(&mut self, random: &mut SplitMix64, value_bytes: u64, epoch: i32) -> CommittedBatch {
        let record = |random: &mut SplitMix64| Record {
            value: Some(vec![b'v'; random.below(value_bytes + 1) as usize].into()),
            timestamp: random.below(1000) as i64,
            ..Record::default()
        };
        let records: Vec<Record> = (0..1 + random.below(4)).map(|_| record(random)).collect();
        let data = batch::patch(&encode_batch(&records, None).unwrap(), self.end(), epoch).unwrap();
        let header = BatchHeader::parse(&data).unwrap();
        let index = self.batches.last().map_or(2, |batch| batch.index) + 1 + random.below(3);
        let batch = CommittedBatch {
            index,
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            max_timestamp: header.max_timestamp,
            leader_epoch: epoch,
            data,
        };
        self.batches.push(batch.clone());
        batch
    }

    /// What a fetch must return: from the batch that contains the offset, as many as fit.
    fn fetch(&self, offset: i64, bytes_max: usize, min_one: bool) -> Vec<Bytes> {
        let mut out: Vec<Bytes> = Vec::new();
        let mut bytes = 0;
        for batch in self.batches.iter().filter(|batch| batch.last_offset >= offset) {
            bytes += batch.data.len();
            if out.len() == FETCH_BATCHES_MAX || (bytes > bytes_max && !(out.is_empty() && min_one)) {
                break;
            }
            out.push(batch.data.clone());
        }
        out
    }

    /// Carries out a plan the way a node reads its log.
    fn carry_out(&self, plan: FetchPlan) -> Vec<Bytes> {
        match plan {
            FetchPlan::Tail(batches) => batches,
            FetchPlan::ReadLog { low, high, bytes_max, bytes, .. } => {
                let range = self.batches.iter().filter(|batch| (low..=high).contains(&batch.index));
                let batches: Vec<Bytes> = range.map(|batch| batch.data.clone()).collect();
                assert_eq!(batches.iter().map(Bytes::len).sum::<usize>(), bytes);
                assert!(bytes <= bytes_max as usize || batches.len() == 1, "the plan keeps to the bytes allowed");
                batches
            }
            other => panic!("no data: {other:?}"),
        }
    }

    fn records(&self) -> impl Iterator<Item = (i64, i64)> + '_ {
        let decode = |batch: &CommittedBatch| stream::record::decode_batch(&batch.data).unwrap();
        self.batches.iter().flat_map(decode).map(|(offset, record)| (offset, record.timestamp))
    }

    fn list(&self, reader: &Reader, query: ListQuery) -> Option<(i64, i64)> {
        match reader.list_offset(query, None) {
            ListOffset::NotFound => None,
            ListOffset::InBatch { index, data, leader_epoch } => {
                let batch = self.batches.iter().find(|batch| batch.index == index).unwrap();
                assert!(data.is_none_or(|data| data == batch.data));
                assert_eq!(leader_epoch, batch.leader_epoch);
                Some(Reader::look_into(query, &batch.data).unwrap())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn update(model: &Model, epoch: Option<i32>, committed: Vec<CommittedBatch>) -> Update {
    Update { leader_epoch: epoch, high_watermark: model.end(), committed, ..Update::default() }
}

fn check_against_model(seed: u64, batches: u64, value_bytes: u64) {
    let mut random = SplitMix64::new(seed);
    let (mut model, mut reader) = (Model::default(), Reader::new());
    let mut epoch = 1;
    while (model.batches.len() as u64) < batches {
        epoch += i32::from(random.chance(50_000));
        let committed = (0..random.below(8)).map(|_| model.grow(&mut random, value_bytes, epoch)).collect();
        reader.apply(update(&model, Some(epoch), committed)).unwrap();
    }
    assert_eq!(reader.high_watermark(), model.end());
    for _ in 0..200 {
        let offset = random.below(model.end() as u64) as i64;
        let bytes_max = random.below(value_bytes * 20 + 100) as usize;
        let min_one = random.chance(500_000);
        let plan = reader.plan_fetch(offset, bytes_max, None, min_one);
        let expected = model.fetch(offset, bytes_max, min_one);
        assert_eq!(model.carry_out(plan), expected, "seed {seed}, offset {offset}, bytes {bytes_max}, {min_one}");
        let enough = random.below(5000) as usize;
        let all: usize = model.batches.iter().filter(|b| b.last_offset >= offset).map(|b| b.data.len()).sum();
        let available = reader.bytes_available(offset, enough);
        assert!(available >= enough.min(all) && available <= all);
    }
    for timestamp in [-1, 0, 1, 500, 998, 999, 1000] {
        let expected = model.records().find(|(_, at)| *at >= timestamp);
        assert_eq!(model.list(&reader, ListQuery::Timestamp(timestamp)), expected, "seed {seed}, time {timestamp}");
    }
    let greatest = model.records().map(|(_, at)| at).max();
    let expected = model.records().find(|(_, at)| Some(*at) == greatest);
    assert_eq!(model.list(&reader, ListQuery::MaxTimestamp), expected);
}

#[test]
fn fetches_and_lookups_match_the_model() {
    for seed in 0..60 {
        check_against_model(seed, 1 + seed * 5, 200);
    }
}

#[test]
fn they_match_beyond_the_tail_and_over_many_chunks() {
    check_against_model(1, 3_000, 1_500);
    check_against_model(2, 60, (PARTITION_TAIL_BYTES / 4) as u64);
}

#[test]
fn the_edges_of_a_partition() {
    let mut random = SplitMix64::new(1);
    let (mut model, mut reader) = (Model::default(), Reader::new());
    assert_eq!(reader.plan_fetch(0, 100, None, true), FetchPlan::NotLeader);
    assert_eq!(reader.list_offset(ListQuery::Latest, None), ListOffset::NotLeader);
    reader.apply(update(&model, Some(4), vec![])).unwrap();
    assert_eq!(reader.plan_fetch(0, 100, None, true), FetchPlan::Wait);
    assert_eq!(reader.plan_fetch(1, 100, None, true), FetchPlan::OutOfRange);
    assert_eq!(reader.plan_fetch(-1, 100, None, true), FetchPlan::OutOfRange);
    assert_eq!(reader.list_offset(ListQuery::MaxTimestamp, None), ListOffset::NotFound);
    let empty = ListOffset::Found { offset: 0, timestamp: -1, leader_epoch: -1 };
    assert_eq!(reader.list_offset(ListQuery::Earliest, None), empty);

    let batch = model.grow(&mut random, 10, 4);
    reader.apply(update(&model, Some(4), vec![batch.clone()])).unwrap();
    let end = model.end();
    assert_eq!(reader.plan_fetch(end, 100, None, true), FetchPlan::Wait);
    assert_eq!(reader.plan_fetch(end + 1, 100, None, true), FetchPlan::OutOfRange);
    assert_eq!(reader.plan_fetch(end - 1, 0, None, true), FetchPlan::Tail(vec![batch.data]));
    assert_eq!(reader.plan_fetch(end - 1, 0, None, false), FetchPlan::Tail(vec![]));
    for (epoch, plan, list) in [
        (3, FetchPlan::FencedEpoch, ListOffset::FencedEpoch),
        (5, FetchPlan::UnknownEpoch, ListOffset::UnknownEpoch),
        (4, FetchPlan::Wait, ListOffset::Found { offset: end, timestamp: -1, leader_epoch: 4 }),
    ] {
        assert_eq!(reader.plan_fetch(end, 100, Some(epoch), true), plan);
        assert_eq!(reader.list_offset(ListQuery::Latest, Some(epoch)), list);
    }
    reader.apply(update(&model, None, vec![])).unwrap();
    assert_eq!(reader.plan_fetch(0, 100, None, true), FetchPlan::NotLeader);
}

#[test]
fn updates_must_continue_and_a_reset_starts_over() {
    let mut random = SplitMix64::new(1);
    let mut model = Model::default();
    let (first, second) = (model.grow(&mut random, 10, 1), model.grow(&mut random, 10, 1));
    let mut reader = Reader::new();
    let error = reader.apply(update(&model, None, vec![second.clone()])).unwrap_err();
    assert_eq!(error, UpdateError::Gap { found: second.base_offset, expected: 0 });
    let mut reader = Reader::new();
    let error = reader.apply(update(&model, None, vec![first.clone()])).unwrap_err();
    assert_eq!(error, UpdateError::HighWatermark { found: model.end(), end: second.base_offset });
    let mut reader = Reader::new();
    let back = CommittedBatch { index: first.index, ..second.clone() };
    let error = reader.apply(update(&model, None, vec![first.clone(), back])).unwrap_err();
    assert_eq!(error, UpdateError::Index { found: first.index, last: first.index });

    let mut reader = Reader::new();
    reader.apply(update(&model, Some(1), vec![first.clone(), second])).unwrap();
    let reset = Update {
        reset: true,
        leader_epoch: Some(1),
        high_watermark: first.last_offset + 1,
        committed: vec![first.clone()],
        ..Update::default()
    };
    reader.apply(reset).unwrap();
    assert_eq!(reader.high_watermark(), first.last_offset + 1);
    assert_eq!(reader.plan_fetch(0, 1000, None, true), FetchPlan::Tail(vec![first.data]));
}

#[test]
fn what_cannot_be_looked_into_is_answered_by_batch() {
    let mut random = SplitMix64::new(3);
    let mut model = Model::default();
    let batch = (0..100).map(|_| model.grow(&mut random, 10, 1)).last().unwrap();
    let header = BatchHeader::parse(&batch.data).unwrap();
    let mut compressed = batch.data.to_vec();
    compressed[22] = 4; // zstd; the bytes behind are not, but nobody looks.
    let compressed = Bytes::from(compressed);
    let by_time = Reader::look_into(ListQuery::Timestamp(header.max_timestamp), &compressed);
    assert_eq!(by_time, Ok((batch.base_offset, header.base_timestamp)));
    let by_max = Reader::look_into(ListQuery::MaxTimestamp, &compressed);
    assert_eq!(by_max, Ok((batch.last_offset, header.max_timestamp)));
}
