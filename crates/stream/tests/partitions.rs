//! One partition on a leader and on its followers.
#![allow(clippy::unwrap_used)] // A test's failure is its message.

use base::limits::{PARTITION_INFLIGHT_BYTES_MAX, PARTITION_PRODUCERS_MAX};
use base::{SplitMix64, Wall};
use bytes::Bytes;
use stream::{ApplyError, Partition, ProducerStamp, Record, StageError, Staged, encode_batch};
use wire::EntryKind;

const WALL: Wall = Wall(1_700_000_000_000);

fn batch(records: usize, producer: Option<(i64, i16, i32)>) -> Bytes {
    let record = Record { value: Some("v".into()), timestamp: WALL.0, ..Record::default() };
    let stamp = producer.map(|(id, epoch, base_sequence)| ProducerStamp { id, epoch, base_sequence });
    encode_batch(&vec![record; records], stamp).unwrap()
}

fn stage(partition: &mut Partition, batches: &[Bytes]) -> Result<Vec<Staged>, StageError> {
    let staged = partition.stage(batches, WALL)?;
    staged.iter().for_each(|one| partition.staged(one));
    Ok(staged)
}

/// A leader in `term` with `count` batches of one record each applied, from index 2.
fn leader(term: u64, count: u64) -> Partition {
    let mut partition = Partition::new(0);
    partition.lead(term);
    for index in 0..count {
        let staged = stage(&mut partition, &[batch(1, None)]).unwrap();
        partition.apply(2 + index, term, EntryKind::Batch, &staged[0].data).unwrap();
    }
    partition
}

#[test]
fn the_first_record_has_offset_0_and_epochs_follow_the_term() {
    let mut partition = Partition::new(100);
    assert_eq!(partition.apply(2, 3, EntryKind::Noop, &Bytes::new()), Ok(None));
    partition.lead(3);
    let staged = stage(&mut partition, &[batch(2, None), batch(3, None)]).unwrap();
    assert_eq!(staged.iter().map(|s| (s.base_offset, s.last_offset)).collect::<Vec<_>>(), [(0, 1), (2, 4)]);
    assert_eq!(partition.next_offset(), 0, "nothing is applied yet");
    let first = partition.apply(3, 3, EntryKind::Batch, &staged[0].data).unwrap().unwrap();
    assert_eq!((first.base_offset, first.last_offset, first.leader_epoch, first.index), (0, 1, 103, 3));
    assert_eq!(partition.next_offset(), 2);
    partition.apply(4, 3, EntryKind::Membership, &Bytes::new()).unwrap();
    partition.apply(5, 3, EntryKind::Batch, &staged[1].data).unwrap();
    assert_eq!(partition.next_offset(), 5);
}

#[test]
fn only_a_leader_stages_and_staging_alone_changes_nothing() {
    let mut partition = Partition::new(0);
    assert_eq!(partition.stage(&[batch(1, None)], WALL), Err(StageError::NotLeading));
    partition.lead(1);
    let once = partition.stage(&[batch(1, None)], WALL).unwrap();
    let again = partition.stage(&[batch(1, None)], WALL).unwrap();
    assert_eq!(once, again);
    partition.step_down();
    assert_eq!((partition.leading(), partition.stage(&[batch(1, None)], WALL)), (None, Err(StageError::NotLeading)));
}

#[test]
fn speculation_dies_with_the_leadership() {
    let mut partition = leader(1, 2);
    stage(&mut partition, &[batch(5, Some((7, 0, 0)))]).unwrap();
    partition.step_down();
    partition.lead(3);
    // Neither the offsets nor the producer's sequence of what was lost are held against the new term.
    let staged = stage(&mut partition, &[batch(1, Some((7, 0, 0)))]).unwrap();
    assert_eq!(staged[0].base_offset, 2);
}

#[test]
fn what_does_not_continue_the_partition_is_fatal() {
    let mut follower = Partition::new(10);
    let patched = |offset, epoch| stream::batch::patch(&batch(1, None), offset, epoch).unwrap();
    let apply = |p: &mut Partition, term, data: &Bytes| p.apply(2, term, EntryKind::Batch, data).unwrap_err();
    assert_eq!(apply(&mut follower, 1, &patched(1, 11)), ApplyError::Offset { index: 2, found: 1, expected: 0 });
    assert_eq!(
        apply(&mut follower, 2, &patched(0, 11)),
        ApplyError::Epoch { index: 2, term: 2, found: 11, expected: 12 }
    );
    assert!(matches!(apply(&mut follower, 1, &Bytes::from_static(b"x")), ApplyError::Batch { index: 2, .. }));
    assert_eq!(follower.apply(2, 1, EntryKind::Command, &Bytes::new()), Err(ApplyError::Command { index: 2 }));
    assert_eq!(follower.digest(), Partition::new(10).digest(), "a refused entry leaves no trace");
    // A leader knows what it proposed: another batch at the same offset in its own term cannot be.
    let mut leader = leader(1, 0);
    stage(&mut leader, &[batch(1, None)]).unwrap();
    let other = stream::batch::patch(&batch(2, None), 0, 1).unwrap();
    assert_eq!(leader.apply(2, 1, EntryKind::Batch, &other), Err(ApplyError::Speculation { index: 2 }));
}

#[test]
fn bytes_in_flight_are_bounded_and_come_back() {
    let mut partition = leader(1, 0);
    let value = Bytes::from(vec![0; 1_000_000]);
    let large = encode_batch(&[Record { value: Some(value), ..Record::default() }], None).unwrap();
    let mut staged = Vec::new();
    let busy = loop {
        match stage(&mut partition, std::slice::from_ref(&large)) {
            Ok(mut more) => staged.append(&mut more),
            Err(error) => break error,
        }
    };
    let in_flight_bytes = staged.len() * large.len();
    assert_eq!(busy, StageError::Busy { in_flight_bytes });
    assert!(in_flight_bytes <= PARTITION_INFLIGHT_BYTES_MAX && staged.len() > 30);
    partition.apply(2, 1, EntryKind::Batch, &staged[0].data).unwrap();
    stage(&mut partition, &[large]).unwrap();
}

#[test]
fn the_idempotent_producer() {
    let mut p = leader(1, 1);
    // Unknown producers may start anywhere (their past may be older than what is remembered).
    let first = stage(&mut p, &[batch(3, Some((5, 0, 40)))]).unwrap();
    let retry = |p: &Partition, b| p.stage(&[b], WALL).unwrap_err();
    let duplicate = StageError::Duplicate { base_offset: 1, last_offset: 3 };
    assert_eq!(retry(&p, batch(3, Some((5, 0, 40)))), duplicate, "a retry of what is in flight");
    p.apply(3, 1, EntryKind::Batch, &first[0].data).unwrap();
    assert_eq!(retry(&p, batch(3, Some((5, 0, 40)))), duplicate, "a retry of what is applied");
    let gap = StageError::OutOfOrderSequence { producer_id: 5, sequence: 44, expected: 43 };
    assert_eq!(retry(&p, batch(1, Some((5, 0, 44)))), gap);
    // The same within one request: 43 then 45, and a part-retry.
    let error = p.stage(&[batch(1, Some((5, 0, 43))), batch(1, Some((5, 0, 45)))], WALL).unwrap_err();
    assert_eq!(error, StageError::OutOfOrderSequence { producer_id: 5, sequence: 45, expected: 44 });
    let error = p.stage(&[batch(3, Some((5, 0, 40))), batch(1, Some((5, 0, 43)))], WALL).unwrap_err();
    assert!(matches!(error, StageError::OutOfOrderSequence { .. }));
    // Epochs only go up, and a new one starts at 0.
    let error = retry(&p, batch(1, Some((5, 1, 43))));
    assert_eq!(error, StageError::OutOfOrderSequence { producer_id: 5, sequence: 43, expected: 0 });
    stage(&mut p, &[batch(1, Some((5, 1, 0))), batch(1, Some((5, 1, 1)))]).unwrap();
    let error = retry(&p, batch(1, Some((5, 0, 43))));
    assert_eq!(error, StageError::StaleProducerEpoch { producer_id: 5, epoch: 0, current: 1 });
}

#[test]
fn five_batches_are_remembered_and_sequences_wrap() {
    let mut p = leader(1, 0);
    let start = i32::MAX - 2;
    let sequences = [start, start + 1, start + 2, 0, 1, 2];
    for sequence in sequences {
        stage(&mut p, &[batch(1, Some((1, 0, sequence)))]).unwrap();
    }
    for (offset, sequence) in sequences.into_iter().enumerate().skip(1) {
        let expected = StageError::Duplicate { base_offset: offset as i64, last_offset: offset as i64 };
        assert_eq!(p.stage(&[batch(1, Some((1, 0, sequence)))], WALL), Err(expected));
    }
    let error = p.stage(&[batch(1, Some((1, 0, start)))], WALL).unwrap_err();
    assert_eq!(error, StageError::OutOfOrderSequence { producer_id: 1, sequence: start, expected: 3 });
}

#[test]
fn producers_are_bounded_and_the_quietest_goes_first() {
    let mut p = leader(1, 0);
    let mut index = 2;
    let mut write = |p: &mut Partition, id: i64, sequence: i32| {
        let staged = stage(p, &[batch(1, Some((id, 0, sequence)))]).unwrap();
        p.apply(index, 1, EntryKind::Batch, &staged[0].data).unwrap();
        index += 1;
    };
    for id in 0..PARTITION_PRODUCERS_MAX as i64 {
        write(&mut p, id, 0);
    }
    write(&mut p, 0, 1); // Producer 0 speaks again, so that 1 is the quietest.
    write(&mut p, -1 + 10_000_000, 0);
    let remembered =
        |p: &Partition, id| matches!(p.stage(&[batch(1, Some((id, 0, 0)))], WALL), Err(StageError::Duplicate { .. }));
    assert!(remembered(&p, 0) && !remembered(&p, 1) && remembered(&p, 2));
}

#[test]
fn records_from_the_far_future_and_bad_batches_are_refused_before_anything_changes() {
    let mut p = leader(1, 0);
    let future = Record { timestamp: WALL.0 + 3_600_001, ..Record::default() };
    let ahead = encode_batch(&[future], None).unwrap();
    let error = p.stage(&[batch(1, None), ahead], WALL).unwrap_err();
    assert_eq!(error, StageError::TimestampAhead { timestamp: WALL.0 + 3_600_001 });
    assert!(matches!(p.stage(&[], WALL), Err(StageError::Batch(_))));
    assert!(matches!(p.stage(&[batch(1, None), Bytes::from_static(b"garbage")], WALL), Err(StageError::Batch(_))));
    assert_eq!(stage(&mut p, &[batch(1, None)]).unwrap()[0].base_offset, 0);
}

/// Any mixture of leaders, retries, lost proposals and followers: all replicas end equal, offsets are contiguous and
/// every batch that was accepted in a term that lived is there exactly once.
#[test]
fn replicas_agree_whatever_happens_to_leaders() {
    for seed in 0..200 {
        let mut random = SplitMix64::new(seed);
        let mut replicas = vec![Partition::new(0); 3];
        let mut log: Vec<(u64, EntryKind, Bytes)> = Vec::new();
        let mut applied = 0;
        let mut sequence = 0;
        for term in 1..8 {
            let leader = random.below(3) as usize;
            replicas.iter_mut().for_each(Partition::step_down);
            log.push((term, EntryKind::Noop, Bytes::new()));
            apply_all(&mut replicas, &log, &mut applied);
            replicas[leader].lead(term);
            for _ in 0..random.below(20) {
                let count = 1 + random.below(3) as usize;
                // A retry now and then: it must be recognized, in flight or applied.
                let at = if random.chance(200_000) { sequence - 1 } else { sequence };
                match stage(&mut replicas[leader], &[batch(count, Some((1, 0, at.max(0))))]) {
                    Ok(staged) => {
                        assert_eq!(at.max(0), sequence, "seed {seed}: a retry was taken as new");
                        sequence += count as i32;
                        log.push((term, EntryKind::Batch, staged[0].data.clone()));
                    }
                    Err(error) => assert!(at < sequence, "seed {seed}: {error}"),
                }
                if random.chance(300_000) {
                    apply_all(&mut replicas, &log, &mut applied);
                }
            }
            if random.chance(500_000) {
                // The leader is lost with what it did not commit; the producer starts again from what was applied.
                for (_, _, data) in log.drain(applied..) {
                    sequence -= stream::BatchHeader::parse(&data).map_or(0, |h| h.record_count);
                }
            }
        }
        apply_all(&mut replicas, &log, &mut applied);
        let state = |p: &Partition| (p.next_offset(), p.digest());
        assert!(replicas.iter().all(|p| state(p) == state(&replicas[0])), "seed {seed}");
        assert_eq!(replicas[0].next_offset(), i64::from(sequence), "seed {seed}");
    }
}

fn apply_all(replicas: &mut [Partition], log: &[(u64, EntryKind, Bytes)], applied: &mut usize) {
    for (at, (term, kind, data)) in log.iter().enumerate().skip(*applied) {
        for replica in replicas.iter_mut() {
            replica.apply(at as u64 + 2, *term, *kind, data).unwrap();
        }
    }
    *applied = log.len();
}
