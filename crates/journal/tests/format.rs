//! Format 1, kept as files: what it wrote is read for as long as it is supported, and this version still writes it.
//!
//! `MUSTER_WRITE_FIXTURES=1 cargo test -p journal --test format` writes the files anew, after a deliberate change; those of
//! a format that a release has written stay what they are, and a new format has a folder of its own.

mod support;

use base::{GroupId, ReplicaId};
use bytes::Bytes;
use journal::{Checkpoint, FileId, GroupAppend, JournalError, RecoveredGroup};
use support::{FakeDisk, Host, birth, entry};
use wire::{Entry, EntryKind, HardState, Membership, SnapshotMeta};

const SEGMENT: u64 = 32 << 10;
const STATE: &[u8] = b"the state of group 1 as of index 4";
static WAL_1: &[u8] = include_bytes!("fixtures/v1/wal-00000000000000000001");
static WAL_2: &[u8] = include_bytes!("fixtures/v1/wal-00000000000000000002");
static CHECKPOINT: &[u8] = include_bytes!("fixtures/v1/checkpoint-1-4");

fn meta() -> SnapshotMeta {
    let membership = Membership {
        voters: vec![ReplicaId(10), ReplicaId(11)],
        learners: vec![ReplicaId(12)],
        voters_outgoing: vec![ReplicaId(9)],
        learners_next: vec![ReplicaId(9)],
        auto_leave: true,
    };
    SnapshotMeta { index: 4, term: 2, membership }
}

fn log() -> Vec<Entry> {
    let kinds = [EntryKind::Noop, EntryKind::Membership, EntryKind::Command, EntryKind::Batch];
    let entry =
        |(at, kind): (usize, EntryKind)| Entry { index: at as u64 + 3, kind, ..entry(0, 2, &[at as u8; 20][..at]) };
    kinds.into_iter().enumerate().map(entry).collect()
}

/// Two groups, four kinds of entry, a vote, a conflict, a checkpoint, a removal, a second segment, a mark.
fn write() -> Host {
    let mut host = Host::started(SEGMENT);
    host.birth(1, 10);
    host.birth(2, 20);
    host.birth(3, 30);
    let hard_state = Some(HardState { term: 2, vote: ReplicaId(11), commit: 4 });
    let entries = [vec![entry(2, 1, b"old"), entry(3, 1, b"replaced")], log()].concat();
    host.append(vec![GroupAppend { group: GroupId(1), hard_state, entries }]);
    host.settle();
    let state = Bytes::from_static(STATE);
    let checkpoint = Checkpoint { meta: meta(), state, keep_from: 3, hard_state: None, ..birth(1, 10) };
    host.journal.checkpoint(checkpoint);
    host.journal.remove(GroupId(3));
    host.settle();
    host.append(vec![support::entries(2, vec![entry(2, 1, &[7; 5000])])]);
    host.settle();
    host.idle();
    host
}

fn expected() -> Vec<RecoveredGroup> {
    let first = RecoveredGroup {
        group: GroupId(1),
        replica: ReplicaId(10),
        hard_state: HardState { term: 2, vote: ReplicaId(11), commit: 4 },
        checkpoint: meta(),
        checkpoint_bytes: STATE.len() as u64,
        first_index: 3,
        last_index: 6,
        term_runs: vec![(3, 2)],
    };
    let second = RecoveredGroup {
        group: GroupId(2),
        replica: ReplicaId(20),
        hard_state: HardState { term: 1, vote: ReplicaId(0), commit: 1 },
        checkpoint: birth(2, 20).meta,
        checkpoint_bytes: 0,
        first_index: 2,
        last_index: 2,
        term_runs: vec![(2, 1)],
    };
    vec![first, second]
}

#[test]
fn what_format_1_wrote_is_read() {
    let mut disk = FakeDisk::default();
    disk.put(FileId::Wal(1), WAL_1.to_vec());
    disk.put(FileId::Wal(2), WAL_2.to_vec());
    disk.put(FileId::Checkpoint { group: GroupId(1), index: 4 }, CHECKPOINT.to_vec());
    let mut host = Host::on(disk, SEGMENT, 1);
    assert_eq!(host.recover(), Ok(expected()));
    assert_eq!(host.read(1, 3, 9), Ok(log()));
    assert_eq!(host.read(2, 2, 2), Ok(vec![entry(2, 1, &[7; 5000])]));
    assert_eq!(host.read_checkpoint(1), STATE);
}

#[test]
#[allow(clippy::disallowed_methods, reason = "fixtures are files")]
fn this_version_still_writes_format_1() {
    let host = write();
    let kept = |file: &FileId| !matches!(file, FileId::Spare(_));
    let files: Vec<_> = host.disk.names().into_iter().filter(kept).collect();
    let content = |file: &FileId| host.disk.content(*file).expect("it is listed");
    if std::env::var_os("MUSTER_WRITE_FIXTURES").is_some() {
        assert_eq!(base::ClusterVersion::RELEASED.0, 0, "format 1 is released: its files stay what they are");
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1/");
        for file in &files {
            std::fs::write(format!("{folder}{}", file.name()), content(file)).expect("the folder is there");
        }
    }
    let checkpoint = FileId::Checkpoint { group: GroupId(1), index: 4 };
    assert_eq!(files, [FileId::Wal(1), FileId::Wal(2), checkpoint]);
    for (file, fixture) in files.iter().zip([WAL_1, WAL_2, CHECKPOINT]) {
        let differs = content(file).iter().zip(fixture).position(|(now, then)| now != then);
        assert_eq!((differs, content(file).len()), (None, fixture.len()), "{} is written differently", file.name());
    }
}

#[test]
fn a_segment_of_a_later_format_is_refused_by_name_and_nothing_is_touched() {
    let mut disk = write().disk;
    let format = base::version::SEGMENT_FORMAT + 1;
    disk.edit(FileId::Wal(2), |content| {
        content[8..12].copy_from_slice(&format.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&content[..12]), &content[16..48]);
        content[12..16].copy_from_slice(&sum.to_le_bytes());
    });
    let before = disk.clone();
    let mut host = Host::on(disk, SEGMENT, 7);
    let refused = host.recover().expect_err("of a later format");
    assert_eq!(refused, JournalError::NewerFormat { file: FileId::Wal(2).name(), format });
    assert!(refused.to_string().contains("upgrade muster"), "{refused}");
    assert_eq!(host.writes, []);
    for file in before.names() {
        assert_eq!(host.disk.content(file), before.content(file), "{}", file.name());
    }
}
