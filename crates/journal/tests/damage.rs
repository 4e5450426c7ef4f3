//! Damage is refused with file and offset, or lies above the last durable mark and is cut. It is never believed.

mod support;

use base::{GroupId, SplitMix64};
use bytes::Bytes;
use journal::{Checkpoint, DiskOpKind, FileId, GroupAppend, JournalError, Output, RecoveredGroup};
use support::{FakeDisk, Host, birth, entry};
use wire::{Entry, HardState, SnapshotMeta};

const SEGMENT: u64 = 32 << 10;

type Found = Vec<(RecoveredGroup, Vec<Entry>)>;

/// What a journal on `disk` comes up with.
fn found(disk: FakeDisk) -> Result<Found, JournalError> {
    let mut host = Host::on(disk, SEGMENT, 3);
    let groups = host.recover()?;
    let mut found = Vec::new();
    for group in groups {
        let entries = match group.first_index <= group.last_index {
            true => host.read(group.group.0, group.first_index, group.last_index).expect("it is there"),
            false => Vec::new(),
        };
        found.push((group, entries));
    }
    Ok(found)
}

fn round(host: &mut Host, index: u64, bytes: usize) {
    let hard_state = Some(HardState { term: 1, commit: index - 1, ..HardState::default() });
    let entries = vec![entry(index, 1, &vec![index as u8; bytes])];
    host.append(vec![GroupAppend { group: GroupId(1), hard_state, entries }]);
    host.settle();
}

/// A small log, with what is found after each of its rounds.
fn small_log(rounds: u64, bytes: usize) -> (Host, Vec<Found>) {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    let mut states = Vec::new();
    for index in 2..2 + rounds {
        round(&mut host, index, bytes);
        states.push(found(host.disk.clone()).expect("sound"));
    }
    (host, states)
}

/// Flips one bit of each byte of a file; `judge` gets the byte's place and what is found.
fn flip_all(disk: &FakeDisk, file: FileId, step: usize, mut judge: impl FnMut(u64, Result<Found, JournalError>)) {
    let bytes = disk.content(file).expect("it is there").len();
    for at in (0..bytes).step_by(step) {
        let mut damaged = disk.clone();
        damaged.edit(file, |content| content[at] ^= 1 << (at % 8));
        judge(at as u64, found(damaged));
    }
}

/// Where the frames of a file that hold something end.
fn content_end(disk: &FakeDisk, file: FileId) -> u64 {
    let content = disk.content(file).expect("it is there");
    content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

#[test]
fn a_flipped_bit_below_the_mark_is_refused_with_file_and_offset() {
    let (mut host, states) = small_log(1, 300);
    host.idle();
    let disk = host.disk;
    let mark_at = content_end(&disk, FileId::Wal(1)) / 4096 * 4096;
    let (mut refused, mut harmless) = (0, 0);
    flip_all(&disk, FileId::Wal(1), 1, |at, found| match found {
        Ok(found) => {
            assert_eq!(Some(&found), states.last(), "flip at {at} changed what is found");
            harmless += 1;
        }
        Err(JournalError::Corrupt { file, offset, .. }) => {
            assert!(at < mark_at, "flip at {at}, in the mark itself");
            assert_eq!(file, FileId::Wal(1).name());
            assert!(offset <= at && at < offset + 8192, "flip at {at}, refused for {offset}");
            refused += 1;
        }
        Err(JournalError::NewerFormat { .. }) => assert!((8..12).contains(&at), "flip at {at}"),
        Err(other) => panic!("flip at {at}: {other}"),
    });
    assert!(refused > 500 && harmless > 4096, "{refused} refused, {harmless} harmless");
}

#[test]
fn a_flipped_bit_above_the_mark_cuts_the_tail_and_nothing_more() {
    let (host, states) = small_log(2, 300);
    let disk = host.disk;
    let last_at = content_end(&disk, FileId::Wal(1)) / 4096 * 4096;
    let mut cut = 0;
    flip_all(&disk, FileId::Wal(1), 1, |at, found| match found {
        Ok(found) if found == states[1] => {}
        Ok(found) => {
            assert!(at >= last_at, "flip at {at} below the mark was cut");
            assert_eq!(found, states[0], "flip at {at}");
            cut += 1;
        }
        Err(_) => assert!(at < last_at, "flip at {at} above the mark was refused"),
    });
    assert!(cut > 300, "{cut} cuts");
}

#[test]
fn a_flipped_bit_in_any_of_several_segments_is_refused_or_changes_nothing() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    (2..22).for_each(|index| round(&mut host, index, 3000));
    host.idle();
    let disk = host.disk;
    let sound = found(disk.clone()).expect("sound");
    assert_eq!(sound[0].1.len(), 20);
    let wals: Vec<_> = disk.names().into_iter().filter(|file| matches!(file, FileId::Wal(_))).collect();
    assert!(wals.len() > 3);
    for wal in wals {
        let mut refused = 0;
        flip_all(&disk, wal, 7, |at, found| match found {
            Ok(found) => assert_eq!(found, sound, "flip at {at} of {wal:?}"),
            Err(JournalError::Corrupt { file, .. }) => {
                assert_eq!(file, wal.name(), "flip at {at}");
                refused += 1;
            }
            Err(JournalError::NewerFormat { .. }) => {}
            Err(other) => panic!("{other}"),
        });
        assert!(refused > 10, "{wal:?}: {refused} refused");
    }
}

#[test]
fn a_lost_or_shortened_segment_is_refused() {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    (2..22).for_each(|index| round(&mut host, index, 3000));
    host.idle();
    for sequence in [1, 2, 3] {
        let mut disk = host.disk.clone();
        disk.delete(FileId::Wal(sequence));
        assert!(matches!(found(disk), Err(JournalError::Corrupt { .. })), "segment {sequence} was not missed");
        let mut disk = host.disk.clone();
        disk.edit(FileId::Wal(sequence), |content| content.truncate(9000));
        let Err(JournalError::Corrupt { file, offset, .. }) = found(disk) else { panic!("shortened {sequence}") };
        assert_eq!((file, offset), (FileId::Wal(sequence).name(), 9000));
    }
}

#[test]
fn a_zeroed_stretch_below_the_mark_is_refused() {
    let (mut host, _) = small_log(1, 300);
    host.idle();
    for block in 0..3 {
        let mut disk = host.disk.clone();
        disk.edit(FileId::Wal(1), |content| content[block * 4096..(block + 1) * 4096].fill(0));
        let Err(JournalError::Corrupt { file, .. }) = found(disk) else { panic!("block {block} was not missed") };
        assert_eq!(file, FileId::Wal(1).name());
    }
}

fn with_checkpoint() -> (Host, FileId) {
    let mut host = Host::started(64 << 10);
    host.birth(1, 1);
    round(&mut host, 2, 10);
    let meta = SnapshotMeta { index: 2, term: 1, ..SnapshotMeta::default() };
    let state: Bytes = (0..1_500_000u32).map(|n| (n * 7) as u8).collect();
    host.journal.checkpoint(Checkpoint { meta, state, keep_from: 3, hard_state: None, ..birth(1, 1) });
    host.idle();
    (host, FileId::Checkpoint { group: GroupId(1), index: 2 })
}

#[test]
fn a_damaged_missing_or_shortened_checkpoint_is_refused() {
    let (host, checkpoint) = with_checkpoint();
    let changes: [fn(&mut FakeDisk, FileId); 4] = [
        |disk, file| disk.edit(file, |content| content[0] ^= 1),
        |disk, file| disk.edit(file, |content| content[1_400_000] ^= 0x80),
        |disk, file| disk.edit(file, |content| content.truncate(1_499_999)),
        |disk, file| disk.delete(file),
    ];
    for change in changes {
        let mut disk = host.disk.clone();
        change(&mut disk, checkpoint);
        let Err(JournalError::Corrupt { file, .. }) = found(disk) else { panic!("not refused") };
        assert_eq!(file, checkpoint.name());
    }
}

#[test]
fn checkpoints_without_their_log_are_refused() {
    let (mut host, checkpoint) = with_checkpoint();
    host.disk.delete(FileId::Wal(1));
    let Err(JournalError::Corrupt { file, .. }) = found(host.disk) else { panic!("not refused") };
    assert_eq!(file, checkpoint.name());
}

#[test]
fn leftovers_are_removed() {
    let (mut host, checkpoint) = with_checkpoint();
    let group = GroupId(1);
    let temporary = FileId::CheckpointTemporary { group, index: 9 };
    let unreferred = FileId::Checkpoint { group, index: 9 };
    host.disk.put(temporary, vec![1; 100]);
    host.disk.put(unreferred, vec![1; 100]);
    host.disk.put(FileId::Spare(77), vec![0; 100]);
    let (host, groups) = host.restart();
    assert_eq!(groups.len(), 1);
    let names = host.disk.names();
    assert!(names.contains(&checkpoint));
    for gone in [temporary, unreferred, FileId::Spare(77)] {
        assert!(!names.contains(&gone), "{gone:?} is still there");
    }
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let (mut host, _) = small_log(1, 10);
    host.disk.edit(FileId::Wal(1), |content| {
        content[8] = 2;
        let sum = crc32c::crc32c_append(crc32c::crc32c(&content[..12]), &content[16..48]);
        content[12..16].copy_from_slice(&sum.to_le_bytes());
    });
    let expected = JournalError::NewerFormat { file: FileId::Wal(1).name(), format: 2 };
    assert_eq!(found(host.disk), Err(expected));
}

#[test]
fn any_bytes_in_any_file_end_in_an_answer() {
    let mut random = SplitMix64::new(5);
    let (host, _) = small_log(2, 300);
    let sound = host.disk.content(FileId::Wal(1)).expect("it is there").to_vec();
    for _ in 0..300 {
        let mut disk = FakeDisk::default();
        for _ in 0..random.below(5) {
            let number = random.below(4);
            let mut content =
                if random.chance(500_000) { sound.clone() } else { vec![0; random.below(40_000) as usize] };
            for _ in 0..random.below(3) {
                let from = random.below(content.len() as u64 + 1) as usize;
                let to = content.len().min(from + random.below(9000) as usize);
                content[from..to].fill_with(|| random.next_u64() as u8);
            }
            let group = GroupId(number);
            let files = [FileId::Wal(number), FileId::Spare(number), FileId::Checkpoint { group, index: 1 }];
            disk.put(files[random.below(3) as usize], content);
        }
        // Either is right; a panic or an endless loop is not.
        let _ = found(disk);
    }
}

#[test]
fn an_entry_that_rots_while_the_node_runs_stops_it_when_read() {
    let (mut host, _) = small_log(2, 300);
    let at =
        host.disk.content(FileId::Wal(1)).and_then(|all| all.iter().rposition(|byte| *byte == 3)).expect("entry 3");
    host.disk.edit(FileId::Wal(1), |content| content[at] ^= 1);
    host.journal.read(1, GroupId(1), 2, 3, 10_000);
    host.settle();
    let Some(Output::Fatal(JournalError::Corrupt { file, offset, .. })) = host.outputs.pop_back() else {
        panic!("{:?}", host.outputs)
    };
    assert_eq!(file, FileId::Wal(1).name());
    assert!(offset < at as u64 && at as u64 - offset < 400);
}

#[test]
fn a_checkpoint_that_rots_while_the_node_runs_is_not_handed_out() {
    let (mut host, checkpoint) = with_checkpoint();
    host.disk.edit(checkpoint, |content| content[600_000] ^= 1);
    host.journal.read_checkpoint(1, GroupId(1), 0, 1000);
    host.settle();
    assert!(matches!(host.outputs.pop_back(), Some(Output::CheckpointRead { result: Ok(_), .. })), "the first part");
    host.journal.read_checkpoint(2, GroupId(1), 599_000, 2000);
    host.settle();
    let Some(Output::Fatal(JournalError::Corrupt { file, offset, .. })) = host.outputs.pop_back() else {
        panic!("{:?}", host.outputs)
    };
    assert_eq!((file, offset), (checkpoint.name(), 512 << 10));
}

#[test]
fn a_tail_that_was_cut_never_comes_back() {
    // Two frames are under way: the second arrives, the first does not. After the cut, a frame of the first one's size
    // must not bring the second back.
    let mut host = Host::started(SEGMENT);
    host.birth(1, 1);
    host.idle();
    for index in 2..=3 {
        host.append(vec![support::entries(1, vec![entry(index, 1, &[0xaa; 100])])]);
    }
    assert!(host.pending.iter().all(|op| matches!(op.kind, DiskOpKind::Write { .. })) && host.pending.len() == 2);
    host.complete(1);
    host.pending.clear();
    let mut host = Host::on(host.disk, SEGMENT, 4);
    let groups = host.recover().expect("a torn tail is cut");
    assert_eq!(groups[0].last_index, 1);
    host.settle();
    host.append(vec![support::entries(1, vec![entry(2, 2, &[0xbb; 100])])]);
    host.settle();
    let (_, groups) = host.restart();
    assert_eq!((groups[0].last_index, groups[0].term_runs.clone()), (2, vec![(2, 2)]));
}
