//! The journal once it has recovered: takes rounds, checkpoints, removals and reads, and moves everything on.

use std::collections::VecDeque;

use base::simulation::{Plant, planted};
use base::{GroupId, Mono};
use bytes::Bytes;
use wire::journal::CheckpointPosition;

use crate::api::{Checkpoint, DiskDone, JournalConfig, JournalError, Output, Round};
use crate::files::{CheckpointFiles, checksums};
use crate::io::{Io, Purpose};
use crate::pool::Pool;
use crate::queue::{CheckpointDraft, Item, Queue, RoundDraft};
use crate::reader::{self, Range, Reader};
use crate::recovery::Recovered;
use crate::table::Table;
use crate::view::Views;
use crate::writer::{Effect, Writer};

/// The running journal.
#[derive(Debug)]
pub(crate) struct Running {
    table: Table,
    views: Views,
    queue: Queue,
    writer: Writer,
    pool: Pool,
    files: CheckpointFiles,
    reader: Reader,
    /// Rounds that are not durable, with when they were queued.
    pending: VecDeque<(u64, Mono)>,
    last_round: u64,
    durable_round: u64,
}

impl Running {
    /// Goes on from what recovery found; the first segment or a spare is asked for at once.
    pub(crate) fn begin(config: &JournalConfig, found: Recovered, io: &mut Io) -> Self {
        let Recovered { table, end, segments, spares, next_spare, oldest } = found;
        let mut pool = Pool::new(config.segment_bytes, &segments, spares, next_spare);
        pool.forget_below(oldest);
        let mut running = Running {
            views: Views::of(&table),
            table,
            queue: Queue::default(),
            writer: Writer::new(config.segment_bytes, end, oldest),
            pool,
            files: CheckpointFiles::default(),
            reader: Reader::default(),
            pending: VecDeque::new(),
            last_round: 0,
            durable_round: 0,
        };
        running.advance(io);
        running
    }

    pub(crate) fn oldest_pending_since(&self) -> Option<Mono> {
        self.pending.front().map(|(_, since)| *since)
    }

    pub(crate) fn log_bytes(&self) -> u64 {
        self.pool.bytes()
    }

    pub(crate) fn durable_round(&self) -> u64 {
        self.durable_round
    }

    pub(crate) fn append(&mut self, round: Round, io: &mut Io) {
        assert!(round.number == self.last_round + 1, "round {} follows round {}", round.number, self.last_round);
        self.last_round = round.number;
        let mut drafts = VecDeque::new();
        for append in round.groups {
            self.views.append(append, &mut drafts);
        }
        self.pending.push_back((round.number, io.now));
        self.queue.push(Item::Round(RoundDraft::new(round.number, drafts)));
        self.advance(io);
    }

    pub(crate) fn checkpoint(&mut self, checkpoint: Checkpoint, io: &mut Io) {
        let Checkpoint { group, replica, .. } = checkpoint;
        let index = checkpoint.meta.index;
        // A state is a function of the log: at one index there is one, and its file is not written twice.
        let latest = self.views.latest_checkpoint(group).filter(|latest| latest.0 == index && latest.1 > 0);
        let (bytes, crc, chunks, writes) = match latest {
            Some((_, bytes, crc)) => (bytes, crc, Vec::new(), false),
            None => {
                let (crc, chunks) = checksums(&checkpoint.state);
                (checkpoint.state.len() as u64, crc, chunks, !checkpoint.state.is_empty())
            }
        };
        let order = self.queue.next_order();
        let (first_index, anew) = self.views.checkpoint(&checkpoint, (bytes, crc), order);
        let barrier = anew || checkpoint.hard_state.is_some();
        let Checkpoint { meta, state, hard_state, .. } = checkpoint;
        let position = CheckpointPosition { replica, meta, bytes, crc, install: anew, first_index, hard_state };
        let draft = CheckpointDraft { group, position, chunks, ready: !writes, barrier };
        self.queue.push(Item::Checkpoint(draft));
        if writes {
            self.files.write(order, group, index, state);
        }
        self.advance(io);
    }

    pub(crate) fn remove(&mut self, group: GroupId, io: &mut Io) {
        if !self.views.remove(group) {
            io.output(Output::Removed { group });
            return;
        }
        let order = self.queue.push(Item::Remove(group));
        self.files.removal_queued(order, group);
        self.advance(io);
    }

    pub(crate) fn read(&mut self, range: Range, io: &mut Io) {
        for segment in self.reader.read(range, self.views.get(range.group), &self.table, io) {
            self.pool.hold(segment);
        }
    }

    pub(crate) fn read_checkpoint(&mut self, token: u64, group: GroupId, part: (u64, usize), io: &mut Io) {
        let state = self.views.get(group).and(self.table.get(group));
        if let Some(file) = reader::read_checkpoint(token, group, part, state, io) {
            self.files.hold(file);
        }
    }

    pub(crate) fn tick(&mut self, io: &mut Io) {
        self.advance(io);
        self.writer.write_mark(&self.table, io);
        self.advance(io);
    }

    pub(crate) fn complete(&mut self, purpose: Purpose, done: DiskDone, io: &mut Io) -> Result<(), JournalError> {
        let data = match done {
            DiskDone::Data(data) => data,
            DiskDone::Done | DiskDone::Listed(_) => Bytes::new(),
        };
        match purpose {
            Purpose::Recovery(_) => unreachable!("recovery waits for everything it asked for"),
            Purpose::Frame(number) => {
                let effects = self.writer.frame_done(number, io.now);
                self.take_effect(effects, io);
            }
            Purpose::SegmentRename => self.writer.segment_renamed(&self.table, io)?,
            Purpose::SegmentOpen => self.pool.opened(self.writer.segment_opened(io.now)),
            Purpose::SpareCreate(spare) => self.pool.created(spare),
            Purpose::SpareRecycle(spare) => self.pool.recycled(spare, io),
            Purpose::CheckpointFile => {
                if let Some(order) = self.files.step_done(io) {
                    self.queue.ready(order);
                    if planted(Plant::OldCheckpointRemovedEarly)
                        && let Some(Item::Checkpoint(draft)) = self.queue.get_mut(order)
                    {
                        let old = self.table.get(draft.group).and_then(|group| group.file(draft.group));
                        old.into_iter().for_each(|file| self.files.doom(file));
                    }
                }
            }
            Purpose::RemoveFile(file) => self.files.removed(file),
            Purpose::Entries(stretch) => {
                self.pool.release(stretch.segment());
                self.reader.entries_done(stretch, &data, io)?;
            }
            Purpose::CheckpointPart(part) => {
                self.files.release(part.file());
                reader::checkpoint_done(*part, &data, io)?;
            }
        }
        self.advance(io);
        Ok(())
    }

    /// Does whatever has become possible.
    fn advance(&mut self, io: &mut Io) {
        self.pool.forget_below(match planted(Plant::SegmentReusedEarly) {
            true => self.table.oldest(self.writer.sequence()),
            false => self.writer.oldest_marked(),
        });
        while self.writer.write_next(&mut self.queue, &self.table, io) {}
        if self.writer.wants_segment()
            && let Some(spare) = self.pool.take_spare()
        {
            self.writer.begin_segment(spare, io);
        }
        self.pool.advance(io);
        // A checkpoint file without a log would look like a log that was lost.
        if self.writer.has_segment() {
            self.files.advance(io);
        }
    }

    /// Brings about what became durable, in the order of the log.
    fn take_effect(&mut self, effects: Vec<Effect>, io: &mut Io) {
        const CHECKED: &str = "what is appended was checked against the view, which runs ahead of the table";
        let mut persisted = None;
        for effect in effects {
            match effect {
                Effect::Entry { group, index, term, place, ordinal } => {
                    self.table.append(group, index, term, place).expect(CHECKED);
                    self.views.entry_durable(group, ordinal);
                }
                Effect::HardState { group, hard_state } => {
                    self.table.set_hard_state(group, hard_state).expect(CHECKED);
                }
                Effect::Round(number) => {
                    self.pending.pop_front();
                    self.durable_round = number;
                    persisted = Some(number);
                }
                Effect::Checkpoint { order, draft } => {
                    report(&mut persisted, io);
                    self.checkpoint_durable(order, draft, io);
                }
                Effect::Removed { order, group } => {
                    report(&mut persisted, io);
                    let file = self.table.remove(group);
                    self.files.removal_durable(order);
                    file.into_iter().for_each(|file| self.files.doom(file));
                    io.output(Output::Removed { group });
                }
            }
        }
        report(&mut persisted, io);
    }

    fn checkpoint_durable(&mut self, order: u64, draft: CheckpointDraft, io: &mut Io) {
        let CheckpointDraft { group, position, mut chunks, .. } = draft;
        let (index, first) = (position.meta.index, position.first_index);
        if let Some(kept) = self.table.get(group).filter(|kept| kept.checkpoint.index == index && position.bytes > 0)
            && chunks.is_empty()
        {
            chunks.clone_from(&kept.checkpoint_chunks);
        }
        let old = self.table.checkpoint(group, position, chunks);
        let old = old.expect("what is queued was checked against the view, which runs ahead of the table");
        old.into_iter().for_each(|file| self.files.doom(file));
        self.views.checkpoint_durable(group, order, first);
        io.output(Output::CheckpointDone { group, index });
    }
}

fn report(persisted: &mut Option<u64>, io: &mut Io) {
    if let Some(round) = persisted.take() {
        io.output(Output::Persisted { round });
    }
}
