//! What the journal promises while it runs and after an orderly restart.

mod support;

use base::{GroupId, ReplicaId, limits};
use bytes::Bytes;
use journal::{Checkpoint, DiskDone, DiskError, DiskOpKind, FileId, GroupAppend, Output, ReadError};
use support::{FakeDisk, Host, birth, entries, entry, voted};
use wire::{Entry, EntryKind, HardState, SnapshotMeta};

const SEGMENT: u64 = 64 << 10;

fn at(index: u64) -> SnapshotMeta {
    SnapshotMeta { index, term: 1, ..SnapshotMeta::default() }
}

fn checkpoint(group: u64, index: u64, state: &[u8], install: bool) -> Checkpoint {
    Checkpoint {
        meta: at(index),
        state: Bytes::copy_from_slice(state),
        install,
        keep_from: index + 1,
        hard_state: None,
        ..birth(group, group)
    }
}

fn run_of(first: u64, last: u64, bytes: usize) -> Vec<Entry> {
    (first..=last).map(|index| entry(index, 1, &vec![index as u8; bytes])).collect()
}

#[test]
fn what_was_persisted_is_there_after_a_restart() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 11);
    host.birth(2, 12);
    let noop = Entry { index: 2, term: 3, kind: EntryKind::Noop, data: Bytes::new() };
    let hard_state = HardState { term: 3, vote: ReplicaId(11), commit: 2 };
    let first = GroupAppend {
        group: GroupId(1),
        hard_state: Some(hard_state),
        entries: vec![noop.clone(), entry(3, 3, b"three")],
    };
    host.append(vec![first, entries(2, vec![entry(2, 1, &[7; 9000])])]);
    host.settle();
    assert_eq!(host.persisted(), Some(1));
    let (mut host, groups) = host.restart();
    assert_eq!(groups.len(), 2);
    assert_eq!((groups[0].replica, groups[0].hard_state), (ReplicaId(11), hard_state));
    assert_eq!((groups[0].first_index, groups[0].last_index), (2, 3));
    assert_eq!(groups[0].term_runs, [(2, 3)]);
    assert_eq!(host.read(1, 2, 9), Ok(vec![noop, entry(3, 3, b"three")]));
    assert_eq!(host.read(2, 2, 2), Ok(vec![entry(2, 1, &[7; 9000])]));
}

#[test]
fn a_read_outside_the_log_says_which_side() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, run_of(2, 5, 10))]);
    host.settle();
    host.journal.checkpoint(Checkpoint { keep_from: 4, ..checkpoint(1, 4, b"state", false) });
    host.settle();
    assert_eq!(host.read(1, 3, 5), Err(ReadError::Compacted(3)));
    assert_eq!(host.read(1, 4, 5), Ok(run_of(4, 5, 10)));
    assert_eq!(host.read(1, 6, 7), Err(ReadError::Beyond(6)));
    assert_eq!(host.read(9, 1, 1), Err(ReadError::Unknown));
}

#[test]
fn entries_are_read_from_memory_until_they_are_durable_and_a_conflicting_suffix_goes_at_once() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, run_of(2, 5, 10))]);
    host.append(vec![entries(1, vec![entry(4, 2, b"new")])]);
    let expected = [run_of(2, 3, 10), vec![entry(4, 2, b"new")]].concat();
    host.journal.read(1, GroupId(1), 2, 9, usize::MAX);
    host.collect();
    assert_eq!(host.outputs.pop_back(), Some(Output::Read { token: 1, result: Ok(expected.clone()) }));
    host.settle();
    assert_eq!(host.read(1, 2, 9), Ok(expected.clone()));
    let (mut host, groups) = host.restart();
    assert_eq!((groups[0].last_index, groups[0].term_runs.clone()), (4, vec![(2, 1), (4, 2)]));
    assert_eq!(host.read(1, 2, 9), Ok(expected));
}

#[test]
fn a_read_is_bounded_but_never_empty_and_takes_few_disk_reads() {
    let mut host = Host::started(1 << 20);
    host.birth(1, 1);
    host.birth(2, 2);
    for index in 2..=21 {
        host.append(vec![entries(1, run_of(index, index, 1000)), entries(2, run_of(index, index, 500))]);
        host.settle();
    }
    host.journal.read(5, GroupId(1), 2, 21, 100_000);
    host.collect();
    assert_eq!(host.pending.len(), 1, "one disk read, over the other group's records: {:?}", host.pending);
    host.settle();
    let Some(Output::Read { result: Ok(read), .. }) = host.outputs.pop_back() else { panic!("no answer") };
    assert_eq!(read, run_of(2, 21, 1000));
    // Each entry lies on a block of its own here, and what is read for it counts.
    host.journal.read(5, GroupId(1), 2, 21, 10_000);
    host.collect();
    let bytes = |op: &journal::DiskOp| match op.kind {
        DiskOpKind::Read { len, .. } => len,
        _ => 0,
    };
    assert!(host.pending.iter().map(bytes).sum::<usize>() < 15_000, "{:?}", host.pending);
    host.settle();
    let Some(Output::Read { result: Ok(read), .. }) = host.outputs.pop_back() else { panic!("no answer") };
    assert_eq!(read, run_of(2, 5, 1000));
    host.journal.read(6, GroupId(1), 3, 21, 0);
    host.settle();
    let Some(Output::Read { result: Ok(read), .. }) = host.outputs.pop_back() else { panic!("no answer") };
    assert_eq!(read, run_of(3, 3, 1000));
}

#[test]
fn rounds_are_reported_in_order_and_at_most_two_are_under_way() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    for index in 2..=6 {
        host.append(vec![entries(1, run_of(index, index, 10))]);
    }
    assert_eq!(host.pending.len(), limits::ROUNDS_IN_FLIGHT_MAX);
    host.complete(1);
    assert_eq!(host.persisted(), None, "the one before it is not durable");
    assert_eq!((host.journal.durable_round(), host.journal.oldest_pending_since()), (0, Some(host.now)));
    host.complete(0);
    assert_eq!(host.persisted(), Some(2));
    assert_eq!(host.pending.len(), 1, "three queued rounds make one write");
    host.settle();
    assert_eq!((host.persisted(), host.journal.oldest_pending_since()), (Some(5), None));
}

#[test]
fn an_idle_log_is_marked_within_the_bound_and_then_left_alone() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.idle();
    host.append(vec![voted(1, 2, 1, 1)]);
    host.settle();
    let before = host.writes.len();
    host.tick(50);
    host.settle();
    host.tick(50);
    host.settle();
    assert_eq!(host.writes.len(), before + 1, "one mark within 100 ms");
    for _ in 0..100 {
        host.tick(50);
        host.settle();
    }
    assert_eq!(host.writes.len(), before + 1, "and no more");
}

#[test]
fn a_checkpoint_is_read_back_in_parts_and_replaces_the_one_before() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, run_of(2, 9, 100))]);
    host.settle();
    let state: Vec<u8> = (0..1_300_000u32).map(|n| n as u8 ^ (n >> 8) as u8).collect();
    host.journal.checkpoint(checkpoint(1, 5, b"first", false));
    host.settle();
    assert_eq!(host.read_checkpoint(1), b"first");
    host.journal.checkpoint(checkpoint(1, 8, &state, false));
    host.settle();
    let done = |index| Output::CheckpointDone { group: GroupId(1), index };
    assert!(host.outputs.contains(&done(5)) && host.outputs.contains(&done(8)));
    assert_eq!(host.read_checkpoint(1), state);
    let group = GroupId(1);
    let files = |host: &Host| {
        let checkpoint = |file: &FileId| matches!(file, FileId::Checkpoint { .. } | FileId::CheckpointTemporary { .. });
        host.disk.names().into_iter().filter(checkpoint).collect::<Vec<_>>()
    };
    assert_eq!(files(&host), [FileId::Checkpoint { group, index: 8 }]);
    let (mut host, groups) = host.restart();
    assert_eq!((groups[0].checkpoint.clone(), groups[0].checkpoint_bytes), (at(8), state.len() as u64));
    assert_eq!((groups[0].first_index, groups[0].last_index), (9, 9));
    assert_eq!(host.read_checkpoint(1), state);
}

#[test]
fn an_install_replaces_the_log_and_rounds_of_its_group_wait_for_it_while_others_go_on() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.birth(2, 2);
    host.append(vec![entries(1, run_of(2, 9, 10))]);
    host.settle();
    let hard_state = Some(HardState { term: 5, vote: ReplicaId(0), commit: 50 });
    host.journal.checkpoint(Checkpoint { hard_state, ..checkpoint(1, 50, b"snapshot", true) });
    host.append(vec![entries(2, run_of(2, 2, 10))]);
    host.append(vec![entries(1, run_of(51, 52, 10))]);
    let wal_writes = |host: &Host| {
        let wal = |op: &&journal::DiskOp| matches!(op.kind, DiskOpKind::Write { file: FileId::Wal(_), .. });
        host.pending.iter().filter(wal).count()
    };
    assert_eq!(wal_writes(&host), 1, "only the other group's round: {:?}", host.pending);
    host.settle();
    assert_eq!(host.persisted(), Some(3));
    let (mut host, groups) = host.restart();
    assert_eq!((groups[0].first_index, groups[0].last_index, groups[0].hard_state.term), (51, 52, 5));
    assert_eq!(host.read(1, 51, 52), Ok(run_of(51, 52, 10)));
    assert_eq!(host.read(1, 9, 9), Err(ReadError::Compacted(9)));
}

#[test]
fn a_removed_group_stays_away_and_its_next_life_may_use_the_same_names() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, run_of(2, 5, 10))]);
    host.journal.checkpoint(checkpoint(1, 5, b"old life", false));
    host.settle();
    host.journal.remove(GroupId(1));
    host.journal.checkpoint(Checkpoint { replica: ReplicaId(2), ..checkpoint(1, 5, b"new life", true) });
    host.append(vec![entries(1, run_of(6, 6, 10))]);
    host.settle();
    assert!(host.outputs.contains(&Output::Removed { group: GroupId(1) }));
    let (mut host, groups) = host.restart();
    assert_eq!((groups[0].replica, groups[0].last_index), (ReplicaId(2), 6));
    assert_eq!(groups[0].hard_state, HardState::default(), "the vote of the old life is not the new one's");
    assert_eq!(host.read_checkpoint(1), b"new life");
    host.journal.remove(GroupId(1));
    host.settle();
    let (host, groups) = host.restart();
    assert!(groups.is_empty());
    let checkpoints = |file: &FileId| matches!(file, FileId::Checkpoint { .. });
    assert_eq!(host.disk.names().iter().filter(|file| checkpoints(file)).count(), 0);
}

#[test]
fn segments_are_recycled_and_an_idle_groups_vote_is_not_forgotten() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.birth(2, 2);
    host.append(vec![voted(2, 7, 2, 1)]);
    for index in 2..=400 {
        host.append(vec![entries(1, run_of(index, index, 2000))]);
        host.settle();
        if index % 20 == 0 {
            host.journal.checkpoint(checkpoint(1, index, format!("state {index}").as_bytes(), false));
            host.settle();
        }
    }
    host.idle();
    let wals: Vec<_> = host.disk.names().into_iter().filter(|file| matches!(file, FileId::Wal(_))).collect();
    let spares = host.disk.names().into_iter().filter(|file| matches!(file, FileId::Spare(_))).count();
    assert!(wals.len() <= 3 && wals[0] > FileId::Wal(10), "{wals:?}");
    assert!((1..=limits::WAL_SPARE_SEGMENTS_MAX).contains(&spares), "{spares} spares");
    let (mut host, groups) = host.restart();
    assert_eq!(groups[1].hard_state, HardState { term: 7, vote: ReplicaId(2), commit: 1 });
    assert_eq!(groups[0].checkpoint.index, 400);
    assert_eq!(host.read_checkpoint(1), b"state 400");
}

#[test]
fn an_idle_group_with_entries_keeps_its_segment() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.birth(2, 2);
    host.append(vec![entries(2, run_of(2, 3, 10))]);
    for index in 2..=100 {
        host.append(vec![entries(1, run_of(index, index, 4000))]);
        host.settle();
        host.journal.checkpoint(checkpoint(1, index, b"", false));
        host.settle();
    }
    host.idle();
    assert!(host.disk.names().contains(&FileId::Wal(1)), "{:?}", host.disk.names());
    let (mut host, _) = host.restart();
    assert_eq!(host.read(2, 2, 3), Ok(run_of(2, 3, 10)));
}

#[test]
fn a_round_larger_than_a_segment_is_split() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    let hard_state = Some(HardState { term: 1, vote: ReplicaId(1), commit: 60 });
    host.append(vec![GroupAppend { group: GroupId(1), hard_state, entries: run_of(2, 60, 5000) }]);
    host.settle();
    assert_eq!(host.persisted(), Some(1));
    let (mut host, groups) = host.restart();
    assert_eq!((groups[0].last_index, groups[0].hard_state.commit), (60, 60));
    assert_eq!(host.read(1, 2, 60), Ok(run_of(2, 60, 5000)));
}

#[test]
fn many_groups_and_large_rounds_stay_within_the_bound_per_write() {
    let mut host = Host::started(64 << 20);
    for group in 1..=3 {
        host.birth(group, group);
    }
    for first in [2, 1002, 2002] {
        host.append((1..=3).map(|group| entries(group, run_of(first, first + 999, 1000))).collect());
    }
    host.settle();
    assert_eq!(host.persisted(), Some(3));
    let largest = host.writes.iter().map(|write| write.2).max();
    assert!(largest <= Some(limits::ROUND_BYTES_MAX), "{largest:?}");
    assert!(host.writes.iter().all(|write| write.1 % 4096 == 0 && write.2 % 4096 == 0));
    let (mut host, _) = host.restart();
    assert_eq!(host.read(3, 2, 3001), Ok(run_of(2, 3001, 1000)));
}

#[test]
fn a_full_disk_loses_nothing_and_goes_on_when_there_is_space() {
    // Room for the open segment, its reserve and little more.
    let mut disk = FakeDisk::default();
    disk.space = Some(2 * SEGMENT as usize + 8192);
    let mut host = Host::on(disk, SEGMENT, 1);
    host.recover().expect("an empty disk");
    host.settle();
    host.birth(1, 1);
    let mut index = 1;
    while !host.outputs.contains(&Output::DiskFull(true)) {
        index += 1;
        host.append(vec![entries(1, run_of(index, index, 4000))]);
        host.settle();
        assert!(index < 100, "never full");
    }
    assert_eq!(host.persisted(), Some(host.rounds), "the reserve took what was under way");
    // Beyond the reserve: rounds wait, reads go on.
    for _ in 0..20 {
        index += 1;
        host.append(vec![entries(1, run_of(index, index, 4000))]);
        host.settle();
    }
    assert_ne!(host.journal.durable_round(), host.rounds);
    assert_eq!(host.read(1, 2, index), Ok(run_of(2, index, 4000)));
    host.outputs.clear();
    for _ in 0..10 {
        host.tick(100);
        host.settle();
    }
    assert!(!host.outputs.contains(&Output::DiskFull(false)), "there is no space yet");
    host.disk.space = None;
    for _ in 0..10 {
        host.tick(100);
        host.settle();
    }
    assert!(host.outputs.contains(&Output::DiskFull(false)));
    assert_eq!(host.journal.durable_round(), host.rounds);
    let (mut host, _) = host.restart();
    assert_eq!(host.read(1, 2, index), Ok(run_of(2, index, 4000)));
}

#[test]
fn a_write_that_fails_for_want_of_space_is_tried_again_in_order() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, run_of(2, 2, 10))]);
    host.append(vec![entries(1, run_of(3, 3, 10))]);
    let first = host.pending.pop_front().expect("two writes").id;
    host.journal.complete(first, Err(DiskError::Full));
    host.settle();
    assert_eq!(host.persisted(), None, "the first waits, so does the second");
    assert!(host.outputs.contains(&Output::DiskFull(true)));
    host.tick(200);
    host.settle();
    assert_eq!(host.persisted(), Some(2));
    assert!(host.outputs.contains(&Output::DiskFull(false)));
}

#[test]
fn a_failing_disk_stops_the_journal_and_says_where() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, run_of(2, 2, 10))]);
    let op = host.pending.pop_front().expect("a write").id;
    host.journal.complete(op, Err(DiskError::Io("bad sector".into())));
    host.collect();
    let Some(Output::Fatal(error)) = host.outputs.pop_back() else { panic!("not fatal") };
    let text = error.to_string();
    assert!(text.contains("wal-00000000000000000001") && text.contains("bad sector"), "{text}");
    host.append(vec![entries(1, run_of(3, 3, 10))]);
    host.journal.complete(op, Ok(DiskDone::Done));
    host.collect();
    assert!(host.pending.is_empty(), "nothing is asked for any more");
}

#[test]
#[should_panic(expected = "leaves a gap")]
fn a_gap_is_a_programmers_error() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.append(vec![entries(1, run_of(3, 3, 10))]);
}

#[test]
#[should_panic(expected = "never created")]
fn an_append_to_nothing_is_a_programmers_error() {
    Host::started(SEGMENT).append(vec![entries(1, run_of(2, 2, 10))]);
}
