//! What goes into the journal and what comes out of it. See the crate's documentation for the order of things.

use base::{GroupId, ReplicaId};
use bytes::Bytes;
use wire::{Entry, HardState, SnapshotMeta};

/// Names one disk operation until its completion.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(pub u64);

/// A file in the data directory's `journal` folder. The driver maps it to a path ([`FileId::name`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FileId {
    /// A write-ahead log segment, by its sequence number.
    Wal(u64),
    /// A spare: a prezeroed or recycled segment file that waits to be renamed to `Wal`.
    Spare(u64),
    /// The state of a group as of an index.
    Checkpoint { group: GroupId, index: u64 },
    /// A checkpoint that is being written; renamed when it is whole and synced, removed at start.
    CheckpointTemporary { group: GroupId, index: u64 },
}

impl FileId {
    /// The file's name in the folder.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            FileId::Wal(sequence) => format!("wal-{sequence:020}"),
            FileId::Spare(number) => format!("spare-{number:020}"),
            FileId::Checkpoint { group, index } => format!("checkpoint-{group}-{index}"),
            FileId::CheckpointTemporary { group, index } => format!("checkpoint-{group}-{index}.tmp"),
        }
    }

    /// The file of that name; `None` for a stranger.
    #[must_use]
    pub fn parse(name: &str) -> Option<FileId> {
        let (kind, rest) = name.split_once('-')?;
        let file = match kind {
            "wal" => FileId::Wal(rest.parse().ok()?),
            "spare" => FileId::Spare(rest.parse().ok()?),
            "checkpoint" => {
                let (group, index) = rest.split_once('-')?;
                let group = GroupId(group.parse().ok()?);
                match index.strip_suffix(".tmp") {
                    Some(index) => FileId::CheckpointTemporary { group, index: index.parse().ok()? },
                    None => FileId::Checkpoint { group, index: index.parse().ok()? },
                }
            }
            _ => return None,
        };
        (file.name() == name).then_some(file)
    }
}

impl JournalConfig {
    /// Smallest segment.
    pub const SEGMENT_BYTES_MIN: u64 = 16 << 10;

    /// Largest data of one entry that fits beside the states of a few groups.
    #[must_use]
    pub fn entry_bytes_max(&self) -> usize {
        usize::try_from(self.segment_bytes / 2).unwrap_or(usize::MAX)
    }
}

/// One operation on the disk. Operations in flight may complete in any order; the journal issues dependent ones only
/// after the completion of what they depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskOp {
    pub id: OpId,
    pub kind: DiskOpKind,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskOpKind {
    /// All files of the folder that have a [`FileId`] ([`FileId::parse`]), with their lengths; strangers are left
    /// alone. The folder is synced first, so that what is listed is durable under its name: a rename that an earlier
    /// process made may not be.
    List,
    /// Makes the file with `len` zero bytes really written (not sparse), durable with its name; replaces an old one.
    Create { file: FileId, len: u64 },
    /// Reads up to `len` bytes; fewer at the end of the file.
    Read { file: FileId, offset: u64, len: usize },
    /// Writes `data` (in order, one after the other) at `offset` of an existing file, making it longer if need be.
    /// With `sync` it is durable on completion.
    Write { file: FileId, offset: u64, data: Vec<Bytes>, sync: bool },
    /// Renames, replacing; durable on completion.
    Rename { from: FileId, to: FileId },
    /// Removes; durable on completion. A missing file is not an error.
    Remove { file: FileId },
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DiskDone {
    Listed(Vec<(FileId, u64)>),
    Data(Bytes),
    /// Create, Write, Rename, Remove.
    Done,
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiskError {
    /// No space left (or a quota, or the configured reserve). The file is as it was, or longer with zeros.
    #[error("no space left on the disk")]
    Full,
    /// Anything else; fatal for the node.
    #[error("{0}")]
    Io(String),
}

/// What the journal is told once, when a node or a simulated node starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalConfig {
    /// Bytes of one segment; [`base::limits::WAL_SEGMENT_BYTES`] outside tests and simulations. A multiple of 4096, from
    /// [`JournalConfig::SEGMENT_BYTES_MIN`] to below 4 GiB.
    pub segment_bytes: u64,
}

/// One replica's part of a commit round.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupAppend {
    pub group: GroupId,
    /// If it changed.
    pub hard_state: Option<HardState>,
    /// Consecutive entries. An index at or below the log's last one truncates the log there first: the conflicting
    /// suffix is gone once the round is durable.
    pub entries: Vec<Entry>,
}

/// One write and one sync for all groups. Rounds become durable in the order of their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// From 1 up, without gaps, within one start of the process.
    pub number: u64,
    pub groups: Vec<GroupAppend>,
}

/// A replica that is to exist from now on, or the state of a group to go on from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    pub group: GroupId,
    /// A group that is here under another replica must be removed first.
    pub replica: ReplicaId,
    /// Index, term and membership that `state` covers.
    pub meta: SnapshotMeta,
    /// The state machine's snapshot; empty for a birth.
    pub state: Bytes,
    /// Whether the group's whole log up to `meta.index` and beyond is replaced (an installed snapshot: the log is then
    /// empty behind it), or only what lies before `keep_from` may go.
    pub install: bool,
    /// Without `install`: the first index that stays readable (at most `meta.index + 1`).
    pub keep_from: u64,
    /// Hard state to be durable together with it, if it changes.
    pub hard_state: Option<HardState>,
}

/// What recovery found of one replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoveredGroup {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub hard_state: HardState,
    /// The latest durable checkpoint.
    pub checkpoint: SnapshotMeta,
    /// Bytes of that checkpoint's state (0 for a birth).
    pub checkpoint_bytes: u64,
    /// First index that [`crate::Journal::read`] returns; `checkpoint.index + 1` or less.
    pub first_index: u64,
    /// Last index in the log; `checkpoint.index` if the log is empty behind it.
    pub last_index: u64,
    /// The terms of `first_index..=last_index` as runs: (first index of the run, term).
    pub term_runs: Vec<(u64, u64)>,
}

/// What the journal asks for or reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Carry this out and hand its completion to [`crate::Journal::complete`].
    Disk(DiskOp),
    /// Recovery is done; appends are taken from now on.
    Recovered(Vec<RecoveredGroup>),
    /// Every round up to this number is durable.
    Persisted { round: u64 },
    /// Answer to [`crate::Journal::read`]: consecutive entries from the first index asked for, at least one.
    Read { token: u64, result: Result<Vec<Entry>, ReadError> },
    /// The checkpoint is durable, and the log before it may be forgotten.
    CheckpointDone { group: GroupId, index: u64 },
    /// Answer to [`crate::Journal::read_checkpoint`]: `data` starts at the offset asked for; `total` and `crc`
    /// (CRC-32C) are of the whole state.
    CheckpointRead { token: u64, result: Result<CheckpointPart, ReadError> },
    /// The group is forgotten, durably.
    Removed { group: GroupId },
    /// The disk is full: rounds wait, nothing is lost; refuse new writes. `false`: there is space again.
    DiskFull(bool),
    /// The node must stop: the journal is damaged or the disk failed.
    Fatal(JournalError),
}

/// A part of a checkpoint's state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointPart {
    /// Index of the checkpoint (the latest one).
    pub meta: SnapshotMeta,
    pub offset: u64,
    pub data: Bytes,
    pub total: u64,
    pub crc: u32,
}

/// Why a read gave nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// Truncated behind a checkpoint, overwritten, or the group is gone.
    #[error("the log no longer holds index {0}")]
    Compacted(u64),
    /// Beyond the log's end.
    #[error("the log ends before index {0}")]
    Beyond(u64),
    /// The group has no such thing.
    #[error("no such group or checkpoint")]
    Unknown,
}

/// Why the node must stop.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JournalError {
    /// Damage below a durable mark, or in a checkpoint.
    #[error("{file} is damaged at byte {offset}: {reason}")]
    Corrupt { file: String, offset: u64, reason: String },
    /// The disk refused an operation.
    #[error("{operation} failed: {reason}")]
    Disk { operation: String, reason: String },
    /// Written by a newer version.
    #[error(
        "{file} was written by a newer version (format {format}, this one reads format {}): upgrade muster on this node. \
         Nothing was changed",
        base::version::SEGMENT_FORMAT
    )]
    NewerFormat { file: String, format: u32 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_files_and_strangers_do_not() {
        let group = GroupId(7);
        for file in [
            FileId::Wal(1),
            FileId::Spare(u64::MAX),
            FileId::Checkpoint { group, index: 3 },
            FileId::CheckpointTemporary { group, index: 3 },
        ] {
            assert_eq!(FileId::parse(&file.name()), Some(file));
        }
        let many = "9".repeat(40);
        for stranger in ["", "wal", "wal-1", "wal-+0000000000000000001", "lost+found", "checkpoint-1-2.bak", &many] {
            assert_eq!(FileId::parse(stranger), None, "{stranger}");
        }
    }
}
