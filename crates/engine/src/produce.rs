//! Produce and log reads: the data path of a partition through the core.

use base::limits::{LOG_READS_FOR_OTHERS_MAX, PARTITION_INFLIGHT_BYTES_MAX};
use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{ErrorCode, GroupId};
use journal::ReadError;
use multiraft::{Proposal, ProposeError, Role};
use stream::StageError;
use wire::{Entry, EntryKind};

use crate::core::NodeCore;
use crate::groups::{Awaited, Group, Waiter};
use crate::requests::{Origin, busy, error};
use crate::{Acks, Produce, ReadLog, Reply, RequestError};

impl NodeCore {
    /// Assigns offsets, proposes, and notes who waits for what.
    pub(crate) fn produce(&mut self, origin: Origin, produce: Produce) {
        if self.disk_full {
            mark(Mark::WriteRefusedDiskFull);
            let message = "this node's disk is full: writes are refused until there is space, reads go on";
            return self.answer(origin, Err(error(ErrorCode::DiskFull, message)));
        }
        let group = produce.group;
        let Some(replica) = self.groups.get_mut(&group).filter(|g| g.active) else {
            let refusal = self.not_leader(group);
            return self.answer(origin, Err(refusal));
        };
        let bytes: usize = produce.batches.iter().map(bytes::Bytes::len).sum();
        if bytes > PARTITION_INFLIGHT_BYTES_MAX {
            // Raft would refuse some of its batches after it took others.
            let message = format!("{bytes} bytes for one partition: one request takes {PARTITION_INFLIGHT_BYTES_MAX}");
            return self.answer(origin, Err(error(ErrorCode::TooLarge, message)));
        }
        let term = replica.term;
        let Some(partition) = replica.partition() else {
            let message = format!("group {group} is not a partition");
            return self.answer(origin, Err(error(ErrorCode::InvalidArgument, message)));
        };
        let staged = match partition.stage(&produce.batches, self.now.wall) {
            Ok(staged) => staged,
            Err(StageError::Duplicate { base_offset, last_offset }) => {
                let committed = last_offset < partition.next_offset();
                mark(if committed { Mark::RepeatCommitted } else { Mark::RepeatInFlight });
                mark_if(Mark::EventRecognised, || {
                    let events = self.metadata.topics.get(metadata::EVENTS_TOPIC);
                    events.is_some_and(|topic| topic.partitions.contains(&group))
                });
                replica.repeats.push((last_offset, origin, base_offset));
                return self.settle_repeats(group);
            }
            Err(refused) => {
                let code = refused.code().unwrap_or(ErrorCode::Internal);
                return self.answer(origin, Err(error(code, refused.to_string())));
            }
        };
        let base_offset = staged.first().map_or(-1, |first| first.base_offset);
        let mut last = None;
        for batch in &staged {
            let proposal = Proposal { group, term, kind: EntryKind::Batch, data: batch.data.clone() };
            let proposed = self.propose(proposal);
            if (proposed.is_ok() || planted(Plant::SpeculateThoughRefused))
                && let Some(partition) = self.groups.get_mut(&group).and_then(|g| g.partition())
            {
                partition.staged(batch);
            }
            match proposed {
                Ok(proposed) => last = Some(proposed.index),
                // Between two proposals of one request nothing happens that could refuse the second but not the first
                // (all of it fits what Raft takes uncommitted), so a refusal leaves no trace.
                Err(refused) => return self.answer(origin, Err(self.refused(group, refused))),
            }
        }
        if let Some(index) = last {
            self.await_produced(origin, group, produce.acks, Waiting { index, term, base_offset });
        }
    }

    fn await_produced(&mut self, origin: Origin, group: GroupId, acks: Acks, waiting: Waiting) {
        let Waiting { index, term, base_offset } = waiting;
        let Some(replica) = self.groups.get_mut(&group) else { return };
        match acks {
            Acks::Leader if !planted(Plant::AcksOneBeforeDurable) => {
                replica.unsynced.insert(index, (origin, base_offset));
            }
            Acks::All if !planted(Plant::AnsweredBeforeCommit) => {
                let what = Awaited::Produced { origin, base_offset };
                replica.waiters.insert(index, Waiter { term, what });
            }
            Acks::None | Acks::Leader | Acks::All => {
                self.answer(origin, Ok(Reply::Produced { base_offset, log_start_offset: 0 }));
            }
        }
    }

    pub(crate) fn refused(&self, group: GroupId, refused: ProposeError) -> RequestError {
        match refused {
            ProposeError::UnknownGroup | ProposeError::NotLeader => self.not_leader(group),
            ProposeError::Invalid(reason) => error(ErrorCode::InvalidArgument, reason),
            ProposeError::Busy => {
                error(ErrorCode::Busy, format!("group {group} has too much under way: try again later"))
            }
        }
    }

    /// Answers repeats whose original is applied by now.
    pub(crate) fn settle_repeats(&mut self, group: GroupId) {
        let Some(replica) = self.groups.get_mut(&group) else { return };
        if replica.repeats.is_empty() {
            return;
        }
        let Some(next_offset) = replica.partition().map(|partition| partition.next_offset()) else { return };
        let (done, waiting) =
            std::mem::take(&mut replica.repeats).into_iter().partition(|(last, ..)| *last < next_offset);
        replica.repeats = waiting;
        let done: Vec<_> = done;
        for (_, origin, base_offset) in done {
            self.answer(origin, Ok(Reply::Produced { base_offset, log_start_offset: 0 }));
        }
    }

    /// After a step-down: who waits only for this node's disk, or for an original that may be lost, is told. Who waits for a
    /// majority goes on: what became of the entry mostly shows a moment later, and a hand-over is to fail nothing.
    pub(crate) fn fail_unsynced(&mut self, group: GroupId) {
        let Some(replica) = self.groups.get_mut(&group) else { return };
        let mut origins: Vec<_> =
            std::mem::take(&mut replica.unsynced).into_values().map(|(origin, _)| origin).collect();
        origins.extend(std::mem::take(&mut replica.repeats).into_iter().map(|(_, origin, _)| origin));
        for origin in origins {
            mark(Mark::WaiterLostAtStepDown);
            let lost = error(ErrorCode::LeaderChanged, "leadership changed while the records were under way");
            self.answer(origin, Err(lost));
        }
    }

    /// The log was replaced by a checkpoint: nobody will ever see here what became of the entries waited for.
    pub(crate) fn fail_replaced(&mut self, group: GroupId) {
        let why = "leadership changed, and this node took the newer state as a whole";
        self.fail_waiting(group, Mark::WaiterLostToSnapshot, why);
    }

    /// The disk is stuck: what became of entries in groups that this node does not lead any more is not seen here until it
    /// moves, and others know it by now. While it leads, nobody does.
    pub(crate) fn fail_led_elsewhere(&mut self) {
        if planted(Plant::StuckWaitersKept) {
            return;
        }
        let waited_for = |group: &Group| group.role != Role::Leader && !group.waiters.is_empty();
        let groups = self.groups.iter().filter(|(_, group)| waited_for(group));
        for group in groups.map(|(id, _)| *id).collect::<Vec<_>>() {
            let why = "leadership changed, and this node's disk is stuck: it does not see what became of the request";
            self.fail_waiting(group, Mark::WaiterLostToStuckDisk, why);
        }
    }

    /// Whoever waits for entries of a group is told that their outcome is unknown here.
    fn fail_waiting(&mut self, group: GroupId, reached: Mark, why: &str) {
        let waiters = self.groups.get_mut(&group).map(|g| std::mem::take(&mut g.waiters)).unwrap_or_default();
        for waiter in waiters.into_values() {
            mark(reached);
            let (Awaited::Command(origin) | Awaited::Produced { origin, .. }) = waiter.what;
            self.answer(origin, Err(error(ErrorCode::LeaderChanged, why)));
        }
    }

    /// Reads committed batches from this node's journal.
    pub(crate) fn read_log(&mut self, origin: Origin, read: &ReadLog) {
        let applied = self.groups.get(&read.group).filter(|g| g.running()).map_or(0, |g| g.applied);
        let high = read.high.min(applied);
        if read.low > high {
            let message = format!("group {} has nothing committed at index {}", read.group, read.low);
            return self.answer(origin, Err(error(ErrorCode::OffsetOutOfRange, message)));
        }
        let bytes_max = (read.bytes_max as usize).min(base::limits::LOG_READ_BYTES_MAX);
        let Some(token) = self.reads.begin_for_others(crate::journal_events::ReadFor::Consumer(origin)) else {
            return self.answer(origin, Err(busy(LOG_READS_FOR_OTHERS_MAX, "reads of the log")));
        };
        self.journal.read(token, read.group, read.low, high, bytes_max);
    }

    pub(crate) fn consumer_read(&mut self, origin: Origin, result: Result<Vec<Entry>, ReadError>) {
        let outcome = match result {
            Ok(entries) => {
                let batches: Vec<_> = entries.into_iter().filter(|e| e.kind == EntryKind::Batch).collect();
                Ok(Reply::Batches {
                    indexes: batches.iter().map(|e| e.index).collect(),
                    batches: batches.into_iter().map(|e| e.data).collect(),
                })
            }
            Err(reason) => Err(error(ErrorCode::OffsetOutOfRange, reason.to_string())),
        };
        self.answer(origin, outcome);
    }
}

/// What a produce request waits for.
struct Waiting {
    index: u64,
    term: u64,
    base_offset: i64,
}
