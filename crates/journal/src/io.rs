//! The disk operations under way, and those that wait for space.

use std::collections::{BTreeMap, VecDeque};

use base::simulation::{Mark, Plant, mark, planted};
use base::{Mono, limits};

use crate::api::{DiskDone, DiskError, DiskOp, DiskOpKind, FileId, JournalError, OpId, Output};

/// What an operation is for, and so who is told of its completion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// A step of recovery.
    Recovery(crate::recovery::Asked),
    /// Frame number.
    Frame(u64),
    /// A spare becomes the next segment.
    SegmentRename,
    /// The next segment gets its header and states.
    SegmentOpen,
    /// A new spare is made.
    SpareCreate(u64),
    /// A segment becomes a spare.
    SpareRecycle(u64),
    /// The active checkpoint file's next step.
    CheckpointFile,
    RemoveFile(FileId),
    /// A stretch of a segment for a read of entries.
    Entries(crate::reader::Stretch),
    /// A part of a checkpoint.
    CheckpointPart(Box<crate::reader::Part>),
}

#[derive(Debug)]
struct Flight {
    kind: DiskOpKind,
    purpose: Purpose,
    /// The disk was full for it before.
    starved: bool,
}

/// Operations and outputs.
#[derive(Debug, Default)]
pub(crate) struct Io {
    next: u64,
    flying: BTreeMap<OpId, Flight>,
    waiting: Vec<Flight>,
    retry_at: Option<Mono>,
    full: bool,
    outputs: VecDeque<Output>,
    pub(crate) now: Mono,
}

impl Io {
    pub(crate) fn issue(&mut self, kind: DiskOpKind, purpose: Purpose) {
        self.launch(Flight { kind, purpose, starved: false });
    }

    fn launch(&mut self, flight: Flight) {
        self.next += 1;
        let id = OpId(self.next);
        self.outputs.push_back(Output::Disk(DiskOp { id, kind: flight.kind.clone() }));
        self.flying.insert(id, flight);
    }

    pub(crate) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes a completion. `None`: the operation waits for space.
    ///
    /// # Errors
    /// Every failure but a full disk is one of the node.
    ///
    /// # Panics
    /// If no such operation is under way: its owner no longer knows what the disk did, so nothing may be believed.
    pub(crate) fn settle(
        &mut self,
        id: OpId,
        result: Result<DiskDone, DiskError>,
    ) -> Result<Option<(Purpose, DiskDone)>, JournalError> {
        let flight = self.flying.remove(&id);
        let mut flight = flight.unwrap_or_else(|| panic!("{id:?} is not under way: completed twice, or never issued"));
        let failed = |reason: String| JournalError::Disk { operation: describe(&flight.kind), reason };
        match result {
            Ok(done) if answers(&flight.kind, &done) => {
                self.show_full();
                Ok(Some((flight.purpose, done)))
            }
            Ok(_) => Err(failed("the disk answered another kind of operation".into())),
            Err(DiskError::Io(_))
                if planted(Plant::WriteErrorsIgnored) && matches!(flight.kind, DiskOpKind::Write { .. }) =>
            {
                Ok(Some((flight.purpose, DiskDone::Done)))
            }
            Err(DiskError::Io(reason)) => Err(failed(reason)),
            Err(DiskError::Full) => {
                mark(Mark::OperationWaitedForSpace);
                flight.starved = true;
                self.waiting.push(flight);
                self.retry_at.get_or_insert(self.now.plus(limits::DISK_FULL_RETRY));
                self.show_full();
                Ok(None)
            }
        }
    }

    /// Tries again what waits for space, if it is time.
    pub(crate) fn retry(&mut self) {
        if self.retry_at.is_none_or(|at| at > self.now) {
            return;
        }
        self.retry_at = None;
        for flight in std::mem::take(&mut self.waiting) {
            self.launch(flight);
        }
    }

    /// Gives up an operation that waits for space; `false` if it does not wait.
    pub(crate) fn cancel_waiting(&mut self, purpose: &Purpose) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|flight| flight.purpose != *purpose);
        self.show_full();
        self.waiting.len() < before
    }

    fn show_full(&mut self) {
        let full = !self.waiting.is_empty() || self.flying.values().any(|flight| flight.starved);
        if full != self.full {
            self.full = full;
            self.outputs.push_back(Output::DiskFull(full));
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.flying.is_empty() && self.waiting.is_empty()
    }

    /// Stops everything: completions that still come are of no interest.
    pub(crate) fn fail(&mut self, error: JournalError) {
        self.flying.clear();
        self.waiting.clear();
        self.retry_at = None;
        self.outputs.retain(|output| !matches!(output, Output::Disk(_)));
        self.outputs.push_back(Output::Fatal(error));
    }
}

fn answers(kind: &DiskOpKind, done: &DiskDone) -> bool {
    match kind {
        DiskOpKind::List => matches!(done, DiskDone::Listed(_)),
        DiskOpKind::Read { .. } => matches!(done, DiskDone::Data(_)),
        _ => matches!(done, DiskDone::Done),
    }
}

fn describe(kind: &DiskOpKind) -> String {
    match kind {
        DiskOpKind::List => "listing the journal folder".into(),
        DiskOpKind::Create { file, len } => format!("creating {} with {len} bytes", file.name()),
        DiskOpKind::Read { file, offset, len } => format!("reading {len} bytes of {} at {offset}", file.name()),
        DiskOpKind::Write { file, offset, data, .. } => {
            let len: usize = data.iter().map(bytes::Bytes::len).sum();
            format!("writing {len} bytes of {} at {offset}", file.name())
        }
        DiskOpKind::Rename { from, to } => format!("renaming {} to {}", from.name(), to.name()),
        DiskOpKind::Remove { file } => format!("removing {}", file.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(io: &mut Io) -> OpId {
        let file = FileId::Spare(1);
        io.issue(DiskOpKind::Create { file, len: 4096 }, Purpose::SpareCreate(1));
        match io.poll() {
            Some(Output::Disk(op)) => op.id,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_disk_is_shown_once_and_tried_again_until_there_is_space() {
        let mut io = Io::default();
        let first = create(&mut io);
        assert_eq!(io.settle(first, Err(DiskError::Full)), Ok(None));
        assert_eq!(io.poll(), Some(Output::DiskFull(true)));
        io.now = Mono(199_000_000);
        io.retry();
        assert_eq!(io.poll(), None, "too early");
        io.now = Mono(200_000_000);
        io.retry();
        let Some(Output::Disk(op)) = io.poll() else { panic!("not tried again") };
        assert_eq!(io.settle(op.id, Err(DiskError::Full)), Ok(None));
        assert_eq!(io.poll(), None, "shown already");
        io.now = Mono(400_000_000);
        io.retry();
        let Some(Output::Disk(op)) = io.poll() else { panic!("not tried again") };
        assert_eq!(io.settle(op.id, Ok(DiskDone::Done)), Ok(Some((Purpose::SpareCreate(1), DiskDone::Done))));
        assert_eq!(io.poll(), Some(Output::DiskFull(false)));
    }

    #[test]
    fn other_failures_name_the_operation() {
        let mut io = Io::default();
        let op = create(&mut io);
        let error = io.settle(op, Err(DiskError::Io("bad sector".into()))).expect_err("fatal");
        assert!(error.to_string().contains("creating spare-"), "{error}");
        let op = create(&mut io);
        assert!(io.settle(op, Ok(DiskDone::Listed(Vec::new()))).is_err());
    }

    #[test]
    #[should_panic(expected = "not under way")]
    fn a_completion_of_nothing_is_a_programmers_error() {
        let _ = Io::default().settle(OpId(9), Ok(DiskDone::Done));
    }
}
