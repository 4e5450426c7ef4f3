//! The bytes of a small journal that holds records of every kind: those of every format stay readable, and stay what they
//! are.

#[path = "../../wire/tests/fixtures/mod.rs"]
mod fixtures;
mod support;

use base::{ClusterVersion, GroupId, ReplicaId};
use bytes::Bytes;
use fixtures::Fixtures;
use journal::{Checkpoint, FileId, GroupAppend, JournalError, RecoveredGroup};
use support::{FakeDisk, Host, birth, entries, voted};
use wire::{Entry, EntryKind, HardState, MembershipChange, SnapshotMeta};

const SEGMENT: u64 = 64 << 10;

fn entry(index: u64, kind: EntryKind, data: Bytes) -> Entry {
    Entry { index, term: 2, kind, data }
}

/// One entry of each kind, and one that fills most of a segment.
fn log() -> Vec<Entry> {
    vec![
        entry(2, EntryKind::Noop, Bytes::new()),
        entry(3, EntryKind::Membership, wire::encode(&MembershipChange::default())),
        entry(4, EntryKind::Command, Bytes::from_static(b"command")),
        entry(5, EntryKind::Batch, Bytes::from_static(b"batch")),
        entry(6, EntryKind::Batch, Bytes::from(vec![0; 30_000])),
        entry(7, EntryKind::Batch, Bytes::from(vec![0; 30_000])),
    ]
}

/// A journal that has opened its second segment, so that its states stand at the head of one.
fn sample() -> FakeDisk {
    let mut host = Host::started(SEGMENT);
    for group in 1..=3 {
        host.birth(group, 10 + group);
    }
    for one in log() {
        host.append(vec![entries(1, vec![one])]);
        host.settle();
    }
    host.append(vec![voted(2, 4, 12, 1)]);
    host.settle();
    let meta = SnapshotMeta { index: 4, term: 2, ..birth(1, 11).meta };
    let state = Bytes::from_static(b"the state");
    host.journal.checkpoint(Checkpoint { meta, state, keep_from: 3, hard_state: None, ..birth(1, 11) });
    host.settle();
    host.journal.remove(GroupId(3));
    host.idle();
    host.disk
}

fn check_recovered(disk: FakeDisk) {
    let mut host = Host::on(disk, SEGMENT, 7);
    let groups: Vec<RecoveredGroup> = host.recover().expect("sound");
    let shown: Vec<_> = groups.iter().map(|it| (it.group.0, it.replica.0, it.first_index, it.last_index)).collect();
    assert_eq!(shown, [(1, 11, 3, 7), (2, 12, 2, 1)]);
    assert_eq!(groups[1].hard_state, HardState { term: 4, vote: ReplicaId(12), commit: 1 });
    assert_eq!(host.read(1, 3, 7).expect("there"), log()[1..]);
    assert_eq!(host.read_checkpoint(1), b"the state");
}

#[test]
fn segments_and_checkpoints() {
    let mut fixtures = Fixtures::of(env!("CARGO_MANIFEST_DIR"), "files");
    let written = sample();
    let mut stored = FakeDisk::default();
    for file in written.names() {
        let content = written.content(file).expect("it is there");
        fixtures.bytes(ClusterVersion::V1, &file.name(), content, |bytes| {
            stored.put(file, bytes.to_vec());
            Ok(())
        });
    }
    fixtures.finish();
    check_recovered(stored);
}

#[test]
fn a_segment_of_a_later_format_is_refused_by_name_and_nothing_is_touched() {
    let mut disk = sample();
    let last = disk.names().into_iter().filter(|file| matches!(file, FileId::Wal(_))).max().expect("a segment");
    let format = base::version::SEGMENT_FORMAT + 1;
    disk.edit(last, |content| {
        content[8..12].copy_from_slice(&format.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&content[..12]), &content[16..48]);
        content[12..16].copy_from_slice(&sum.to_le_bytes());
    });
    let before = disk.clone();
    let mut host = Host::on(disk, SEGMENT, 7);
    let refused = host.recover().expect_err("of a later format");
    assert_eq!(refused, JournalError::NewerFormat { file: last.name(), format });
    assert!(refused.to_string().contains("upgrade muster"), "{refused}");
    assert_eq!(host.writes, []);
    for file in before.names() {
        assert_eq!(host.disk.content(file), before.content(file), "{}", file.name());
    }
}

#[test]
fn appends_of_several_groups_are_one_frame() {
    // The kinds above come in rounds of one record each; this is the other form.
    let mut host = Host::started(SEGMENT);
    host.birth(1, 11);
    host.birth(2, 12);
    let append = |group| GroupAppend { group: GroupId(group), ..entries(group, vec![log()[0].clone()]) };
    host.append(vec![append(1), append(2)]);
    host.settle();
    let mut fixtures = Fixtures::of(env!("CARGO_MANIFEST_DIR"), "frame");
    let content = host.disk.content(FileId::Wal(1)).expect("the first segment").to_vec();
    fixtures.bytes(ClusterVersion::V1, "two-groups", &content, |_| Ok(()));
    fixtures.finish();
}
