//! The journal of a node: one write-ahead log for all its Raft groups, and checkpoint files.
//!
//! It is sans-IO: calls put work in, [`Journal::poll`] gives [`Output`]s, among them disk operations whose completions
//! come back through [`Journal::complete`]. Operations may complete in any order. It knows entries, hard states and
//! checkpoints, but not what a leader is.
//!
//! # The log
//!
//! ```text
//! wal-…1          wal-…2          wal-…3                                        spare-…1
//! ┌────────────┐  ┌────────────┐  ┌────────┬────────┬───────┬─────┬──────────┐  ┌────────────┐
//! │ …          │  │ …          │  │ header │ states │ frame │ …   │ zeros or │  │ zeros or   │
//! └────────────┘  └────────────┘  │ 4 KiB  │ (frame)│       │     │ old life │  │ old life   │
//!                                 └────────┴────────┴───────┴─────┴──────────┘  └────────────┘
//! header  "musterWL", format u32, CRC u32, sequence u64, first LSN u64, size u64
//! frame   one write: Round record, records, zeros up to a multiple of 4 KiB; whole or not at all
//! record  length u32, CRC u32, LSN u64, group u64, index u64, term u64, kind u8, 3 zeros, payload
//! Round   durable LSN u64, oldest segment needed u64, last LSN u64, bytes u32, CRC of the record CRCs u32
//! ```
//!
//! Numbers are little-endian, checksums CRC-32C, those of records seeded with the segment's sequence number, so that
//! what an earlier life of a recycled file left never validates. LSNs count records, without gaps, across segments. The
//! payload of an entry is its data as it is; other payloads are in [`wire::journal`].
//!
//! # Invariants
//!
//! - A round is reported as persisted only when its frames and all before them are durable.
//! - A frame starts on its own block, so a torn write never damages what an earlier one made durable.
//! - Each frame says what was durable when it was written; an idle log gets a frame that says it (a *mark*). Damage
//!   below a mark is refused at start, with file and offset; above it the log is cut. A frame found behind the cut is
//!   zeroed before anything new is written, so that it can never be taken for what follows.
//! - A segment is opened only when every frame before it is durable, and used only when its header and the states of
//!   all replicas are. Segments are numbered without gaps.
//! - A segment is reused only when no log has an entry in it, a durable frame says so, and a later durable frame marks
//!   that one. The states at the head of the open segment stand in for everything older: recycling forgets no vote.
//! - A checkpoint counts from the record in the log that names its size and checksum; its file is durable before, and
//!   the file before it is removed after.
//! - A full disk stops nothing for good: the operation waits and is tried again. The spare that is kept ahead is the
//!   reserve: when it cannot be made the disk counts as full, before the open segment is.
//!
//! # The seam for partition segments
//!
//! Immutable files of record batches (DESIGN 4, "Partition segments") will be written by a module beside `files`, from
//! the same queue: a batch of segment writes takes its place in the log as a [`wire::journal::CheckpointPosition`] does
//! now, with the segments in a new optional field of it, and `Table::checkpoint` then trims the group's log behind what
//! they hold. Nothing else in the log changes for it.

mod api;
mod files;
mod framing;
mod index;
mod io;
mod pool;
mod queue;
mod reader;
mod recovery;
mod running;
mod scan;
mod segment;
mod table;
mod view;
mod writer;

pub use api::*;

use base::{GroupId, Mono};

use crate::framing::BLOCK_BYTES;
use crate::io::{Io, Purpose};
use crate::reader::Range;
use crate::recovery::Recovery;
use crate::running::Running;

/// The journal of one node, without I/O.
#[derive(Debug)]
pub struct Journal {
    config: JournalConfig,
    io: Io,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    New,
    Recovering(Box<Recovery>),
    Running(Box<Running>),
    /// After [`Output::Fatal`]: everything is ignored, the process is about to stop.
    Failed,
}

impl Journal {
    /// A journal that knows nothing yet; call [`Journal::start`].
    ///
    /// # Panics
    /// If the segment size is not what [`JournalConfig`] says.
    #[must_use]
    pub fn new(config: JournalConfig) -> Self {
        let bytes = config.segment_bytes;
        let fits = (JournalConfig::SEGMENT_BYTES_MIN..1 << 32).contains(&bytes) && bytes.is_multiple_of(BLOCK_BYTES);
        assert!(fits, "segments of {bytes} bytes");
        Journal { config, io: Io::default(), phase: Phase::New }
    }

    /// Begins recovery. Ends with [`Output::Recovered`] or [`Output::Fatal`].
    pub fn start(&mut self) {
        assert!(matches!(self.phase, Phase::New), "a journal starts once");
        self.phase = Phase::Recovering(Box::new(Recovery::start(&self.config, &mut self.io)));
    }

    /// Queues a round. Several queued rounds may be written as one.
    ///
    /// # Panics
    /// Like all calls that change something: before [`Output::Recovered`]; and if the round does not follow the one
    /// before it, an entry leaves a gap or lies at or below its group's checkpoint, or a hard state goes back.
    pub fn append(&mut self, round: Round) {
        self.run(|running, io| running.append(round, io));
    }

    /// Writes a checkpoint file, then its position into the log. Also the birth of a replica (its state is then empty).
    /// Ends with [`Output::CheckpointDone`].
    ///
    /// # Panics
    /// If it lies below the group's latest checkpoint or, without `install`, beyond its log.
    pub fn checkpoint(&mut self, checkpoint: Checkpoint) {
        self.run(|running, io| running.checkpoint(checkpoint, io));
    }

    /// Forgets a group. Ends with [`Output::Removed`]. Until then a crash brings it back.
    pub fn remove(&mut self, group: GroupId) {
        self.run(|running, io| running.remove(group, io));
    }

    /// Reads entries `low..=high` as appended so far, durable or not: at most about `bytes_max` bytes, which other groups'
    /// records in between count towards when they are read along, but at least one entry. Ends with [`Output::Read`].
    pub fn read(&mut self, token: u64, group: GroupId, low: u64, high: u64, bytes_max: usize) {
        self.run(|running, io| running.read(Range { token, group, low, high, bytes_max }, io));
    }

    /// Reads a part of the group's latest checkpoint, verified against its checksum: at most `len` bytes, at most
    /// [`base::limits::LOG_READ_BYTES_MAX`]. Ends with [`Output::CheckpointRead`].
    pub fn read_checkpoint(&mut self, token: u64, group: GroupId, offset: u64, len: usize) {
        self.run(|running, io| running.read_checkpoint(token, group, (offset, len), io));
    }

    fn run(&mut self, call: impl FnOnce(&mut Running, &mut Io)) {
        match &mut self.phase {
            Phase::Running(running) => call(running, &mut self.io),
            Phase::Failed => {}
            Phase::New | Phase::Recovering(_) => panic!("the journal has not recovered yet"),
        }
    }

    /// Hands in a completion.
    ///
    /// # Panics
    /// If no such operation is under way.
    pub fn complete(&mut self, op: OpId, result: Result<DiskDone, DiskError>) {
        if matches!(self.phase, Phase::Failed) {
            return;
        }
        let outcome = match self.io.settle(op, result) {
            Ok(Some((purpose, done))) => self.completed(purpose, done),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            self.io.fail(error);
            self.phase = Phase::Failed;
        }
    }

    fn completed(&mut self, purpose: Purpose, done: DiskDone) -> Result<(), JournalError> {
        let (recovery, asked) = match (std::mem::replace(&mut self.phase, Phase::Failed), purpose) {
            (Phase::Recovering(recovery), Purpose::Recovery(asked)) => (recovery, asked),
            (Phase::Running(mut running), purpose) => {
                let outcome = running.complete(purpose, done, &mut self.io);
                self.phase = Phase::Running(running);
                return outcome;
            }
            (phase, purpose) => unreachable!("{purpose:?} in {phase:?}"),
        };
        match recovery.complete(asked, done, &mut self.io)? {
            Err(recovery) => self.phase = Phase::Recovering(recovery),
            Ok(found) => {
                let groups = found.table.iter().map(|(id, group)| group.recovered(id)).collect();
                self.io.output(Output::Recovered(groups));
                let running = Running::begin(&self.config, found, &mut self.io);
                self.phase = Phase::Running(Box::new(running));
            }
        }
        Ok(())
    }

    /// Lets time pass: durable marks on idle, retries of a full disk. To be called at least every
    /// [`base::limits::TICK`].
    pub fn tick(&mut self, now: Mono) {
        self.io.now = self.io.now.max(now);
        self.io.retry();
        if let Phase::Running(running) = &mut self.phase {
            running.tick(&mut self.io);
        }
    }

    /// The next output, if any. Call until `None` after every other call.
    pub fn poll(&mut self) -> Option<Output> {
        self.io.poll()
    }

    /// When the oldest round that is not durable was queued, to the tick: a stuck disk shows here.
    #[must_use]
    pub fn oldest_pending_since(&self) -> Option<Mono> {
        match &self.phase {
            Phase::Running(running) => running.oldest_pending_since(),
            _ => None,
        }
    }

    /// Bytes of the log's files, spare ones too; checkpoints do not count.
    #[must_use]
    pub fn log_bytes(&self) -> u64 {
        match &self.phase {
            Phase::Running(running) => running.log_bytes(),
            _ => 0,
        }
    }

    /// The highest round number that is durable.
    #[must_use]
    pub fn durable_round(&self) -> u64 {
        match &self.phase {
            Phase::Running(running) => running.durable_round(),
            _ => 0,
        }
    }
}
