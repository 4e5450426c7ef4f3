//! Checkpoint files: written under a temporary name, synced, renamed, and only then given a place in the log; the one
//! before is removed once that place is durable. One is written at a time, in pieces, so that a large state never
//! crowds out the log's small writes.

use std::collections::{BTreeMap, VecDeque};

use base::simulation::{Mark, Plant, mark_if, planted};
use base::{GroupId, limits};
use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};

use crate::api::{DiskOpKind, FileId};
use crate::io::{Io, Purpose};

/// CRC-32C of a state, and of each of its chunks.
pub(crate) fn checksums(state: &[u8]) -> (u32, Vec<u32>) {
    let chunks = state.chunks(limits::CHECKPOINT_CHUNK_BYTES);
    let whole = chunks.clone().fold(0, crc32c_append);
    (whole, chunks.map(crc32c).collect())
}

#[derive(Debug)]
struct Job {
    /// Of the checkpoint in the queue.
    order: u64,
    group: GroupId,
    index: u64,
    state: Bytes,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Waiting,
    Creating,
    Writing { from: usize },
    Renaming,
}

/// The checkpoint files under way.
#[derive(Debug, Default)]
pub(crate) struct CheckpointFiles {
    jobs: VecDeque<Job>,
    /// Groups whose end is queued or under way, by its order: their files are still referred to.
    removals: BTreeMap<u64, GroupId>,
    /// Files that nothing refers to any more; `true` while being removed.
    doomed: BTreeMap<FileId, bool>,
    readers: BTreeMap<FileId, usize>,
}

impl CheckpointFiles {
    /// A checkpoint with a state was queued.
    pub(crate) fn write(&mut self, order: u64, group: GroupId, index: u64, state: Bytes) {
        self.jobs.push_back(Job { order, group, index, state, step: Step::Waiting });
    }

    /// A group's end was queued.
    pub(crate) fn removal_queued(&mut self, order: u64, group: GroupId) {
        self.removals.insert(order, group);
    }

    /// A group's end is durable.
    pub(crate) fn removal_durable(&mut self, order: u64) {
        self.removals.remove(&order);
    }

    /// Nothing durable refers to the file any more.
    pub(crate) fn doom(&mut self, file: FileId) {
        mark_if(Mark::CheckpointReplacedWhileRead, || self.readers.contains_key(&file));
        self.doomed.entry(file).or_insert(false);
    }

    /// A read of the file begins.
    pub(crate) fn hold(&mut self, file: FileId) {
        *self.readers.entry(file).or_default() += 1;
    }

    /// A read has ended.
    pub(crate) fn release(&mut self, file: FileId) {
        let readers = self.readers.get_mut(&file).expect("held");
        *readers -= 1;
        if *readers == 0 {
            self.readers.remove(&file);
        }
    }

    /// The file is gone.
    pub(crate) fn removed(&mut self, file: FileId) {
        self.doomed.remove(&file);
    }

    /// Takes the active file's next step. Returns the order of its checkpoint when the file is durable.
    pub(crate) fn step_done(&mut self, io: &mut Io) -> Option<u64> {
        let job = self.jobs.front_mut().expect("a step belongs to a file under way");
        let (group, index) = (job.group, job.index);
        let temporary = FileId::CheckpointTemporary { group, index };
        let from = match job.step {
            Step::Waiting => unreachable!("nothing was asked of the disk yet"),
            Step::Creating => 0,
            Step::Writing { from } => from + limits::CHECKPOINT_WRITE_BYTES,
            Step::Renaming => return self.jobs.pop_front().map(|job| job.order),
        };
        if from < job.state.len() {
            job.step = Step::Writing { from };
            let piece = job.state.slice(from..job.state.len().min(from + limits::CHECKPOINT_WRITE_BYTES));
            let sync = !planted(Plant::CheckpointNotSynced);
            let write = DiskOpKind::Write { file: temporary, offset: from as u64, data: vec![piece], sync };
            io.issue(write, Purpose::CheckpointFile);
        } else {
            job.step = Step::Renaming;
            let to = FileId::Checkpoint { group, index };
            io.issue(DiskOpKind::Rename { from: temporary, to }, Purpose::CheckpointFile);
        }
        None
    }

    /// Begins the next file and removes the doomed ones that nobody reads.
    pub(crate) fn advance(&mut self, io: &mut Io) {
        for (file, removing) in &mut self.doomed {
            if !*removing && !self.readers.contains_key(file) {
                *removing = true;
                io.issue(DiskOpKind::Remove { file: *file }, Purpose::RemoveFile(*file));
            }
        }
        let Some(job) = self.jobs.front_mut().filter(|job| job.step == Step::Waiting) else { return };
        // A new life of a group may reuse a name: not before the old file is gone, and nothing refers to it.
        let referred = self.removals.range(..job.order).any(|(_, group)| *group == job.group);
        if referred || self.doomed.contains_key(&FileId::Checkpoint { group: job.group, index: job.index }) {
            return;
        }
        job.step = Step::Creating;
        let file = FileId::CheckpointTemporary { group: job.group, index: job.index };
        io.issue(DiskOpKind::Create { file, len: 0 }, Purpose::CheckpointFile);
    }
}
