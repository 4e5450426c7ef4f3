//! How much the journal itself costs: entries of 1 KiB over 100 groups in rounds of 200, on a disk that is memory.
//!
//! The pure layers read no clock, this file included; time it from outside:
//!
//! ```sh
//! cargo bench -p journal --bench throughput --no-run   # prints the program's path
//! time PROGRAM append    # 100,000 entries of 1 KiB
//! time PROGRAM recover   # ... and a recovery of them
//! time PROGRAM read      # ... and all of them read back
//! ```

use std::collections::BTreeMap;

use base::{GroupId, ReplicaId};
use bytes::Bytes;
use journal::{Checkpoint, DiskDone, DiskOpKind, FileId, GroupAppend, Journal, JournalConfig, Output, Round};
use wire::{Entry, EntryKind, HardState, SnapshotMeta};

const GROUPS: u64 = 100;
const ROUNDS: u64 = 500;
const ENTRIES_PER_GROUP: u64 = 2;

#[derive(Default)]
struct Memory {
    files: BTreeMap<FileId, Vec<u8>>,
    writes: u64,
}

impl Memory {
    fn run(&mut self, kind: DiskOpKind) -> DiskDone {
        match kind {
            DiskOpKind::List => {
                return DiskDone::Listed(self.files.iter().map(|(file, data)| (*file, data.len() as u64)).collect());
            }
            DiskOpKind::Read { file, offset, len } => {
                let data = &self.files[&file];
                let from = offset as usize;
                return DiskDone::Data(Bytes::copy_from_slice(&data[from..data.len().min(from + len)]));
            }
            DiskOpKind::Create { file, len } => drop(self.files.insert(file, vec![0; len as usize])),
            DiskOpKind::Write { file, offset, data, .. } => {
                self.writes += 1;
                let content = self.files.get_mut(&file).expect("it was created");
                let mut at = offset as usize;
                for part in data {
                    content[at..at + part.len()].copy_from_slice(&part);
                    at += part.len();
                }
            }
            DiskOpKind::Rename { from, to } => {
                let data = self.files.remove(&from).expect("it is there");
                self.files.insert(to, data);
            }
            DiskOpKind::Remove { file } => drop(self.files.remove(&file)),
        }
        DiskDone::Done
    }

    fn settle(&mut self, journal: &mut Journal) {
        while let Some(output) = journal.poll() {
            match output {
                Output::Disk(op) => {
                    let done = self.run(op.kind);
                    journal.complete(op.id, Ok(done));
                }
                Output::Fatal(error) => panic!("{error}"),
                _ => {}
            }
        }
    }
}

fn start(memory: &mut Memory) -> Journal {
    let mut journal = Journal::new(JournalConfig { segment_bytes: base::limits::WAL_SEGMENT_BYTES });
    journal.start();
    memory.settle(&mut journal);
    journal
}

fn main() {
    let mut memory = Memory::default();
    let mut journal = start(&mut memory);
    for group in (0..GROUPS).map(GroupId) {
        let meta = SnapshotMeta { index: 1, term: 1, ..SnapshotMeta::default() };
        let (replica, state) = (ReplicaId(group.0 + 1), Bytes::new());
        let (install, keep_from, hard_state) = (false, 2, None);
        journal.checkpoint(Checkpoint { group, replica, meta, state, install, keep_from, hard_state });
    }
    memory.settle(&mut journal);
    memory.writes = 0;
    let data = Bytes::from(vec![7; 1024]);
    for number in 1..=ROUNDS {
        let append = |group| {
            let first = 2 + (number - 1) * ENTRIES_PER_GROUP;
            let entry = |index| Entry { index, term: 1, kind: EntryKind::Batch, data: data.clone() };
            let entries: Vec<_> = (first..first + ENTRIES_PER_GROUP).map(entry).collect();
            let hard_state = Some(HardState { term: 1, vote: ReplicaId(1), commit: first - 1 });
            GroupAppend { group: GroupId(group), hard_state, entries }
        };
        journal.append(Round { number, groups: (0..GROUPS).map(append).collect() });
        memory.settle(&mut journal);
    }
    assert_eq!(journal.durable_round(), ROUNDS, "everything is durable");
    let entries = GROUPS * ENTRIES_PER_GROUP * ROUNDS;
    println!("appended {entries} entries of {} bytes in {} writes", data.len(), memory.writes);
    let phase = std::env::args().nth(1).unwrap_or_default();
    if phase == "append" {
        return;
    }
    drop(journal);
    let mut journal = start(&mut memory);
    println!("recovered them");
    if phase == "recover" {
        return;
    }
    for group in (0..GROUPS).map(GroupId) {
        journal.read(1, group, 2, u64::MAX, usize::MAX);
        memory.settle(&mut journal);
    }
    println!("read them back");
}
