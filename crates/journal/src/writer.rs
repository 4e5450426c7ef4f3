//! The open end of the log: frames under way and the change from one segment to the next.
//!
//! Frames may complete in any order; they count in the order they were written. A change of segments waits until every
//! frame of the old one is durable, and the new one takes frames only once its header and states are. So whoever finds
//! a segment's header knows that everything before it was durable, and at most [`limits::ROUNDS_IN_FLIGHT_MAX`] frames
//! at the end of the last segment can be torn.

use std::collections::VecDeque;

use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, Mono, ReplicaId, limits};
use bytes::Bytes;
use wire::HardState;

use crate::api::{DiskOpKind, FileId, JournalError};
use crate::framing::{About, BLOCK_BYTES, FRAME_HEAD_BYTES, Frame, FrameBuilder, Kind, RECORD_HEAD_BYTES};
use crate::index::Place;
use crate::io::{Io, Purpose};
use crate::queue::{CheckpointDraft, Draft, Item, Queue};
use crate::segment::Header;
use crate::table::Table;

/// What a record brings about when its frame is durable.
#[derive(Debug)]
pub(crate) enum Effect {
    Entry {
        group: GroupId,
        index: u64,
        term: u64,
        place: Place,
        ordinal: u64,
    },
    HardState {
        group: GroupId,
        hard_state: HardState,
    },
    Checkpoint {
        order: u64,
        draft: CheckpointDraft,
    },
    Removed {
        order: u64,
        group: GroupId,
    },
    /// The round is written whole.
    Round(u64),
}

#[derive(Debug)]
struct Flying {
    number: u64,
    done: bool,
    durable_lsn: u64,
    last_lsn: u64,
    oldest: u64,
    effects: Vec<Effect>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    sequence: u64,
    /// Where the next frame goes.
    offset: u64,
    bytes: u64,
    /// Nothing but the states at its head so far.
    fresh: bool,
}

#[derive(Debug)]
enum Segment {
    /// A new one is needed.
    Closed,
    /// A spare gets its name.
    Renaming,
    /// It gets its header and states.
    Opening {
        end: u64,
        last_lsn: u64,
        oldest: u64,
    },
    Open(Open),
}

/// Where the log ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct End {
    /// The open segment: number, offset, size; `None` in a new journal.
    pub segment: Option<(u64, u64, u64)>,
    /// Number of the last record.
    pub last_lsn: u64,
    /// Highest number that a durable frame calls durable.
    pub marked_lsn: u64,
}

/// The writing side.
#[derive(Debug)]
pub(crate) struct Writer {
    segment_bytes: u64,
    segment: Segment,
    /// Number of the latest segment, open or being opened.
    sequence: u64,
    next_lsn: u64,
    durable_lsn: u64,
    marked_lsn: u64,
    /// Last record that is not merely a mark.
    data_lsn: u64,
    in_flight: VecDeque<Flying>,
    next_frame: u64,
    /// When a frame last became durable.
    idle_since: Mono,
    /// What frames said of the oldest segment needed, until they are themselves marked durable.
    oldest_said: VecDeque<(u64, u64)>,
    oldest_marked: u64,
}

impl Writer {
    pub(crate) fn new(segment_bytes: u64, end: End, oldest: u64) -> Self {
        let segment = end.segment.map_or(Segment::Closed, |(sequence, offset, bytes)| {
            Segment::Open(Open { sequence, offset, bytes, fresh: false })
        });
        Writer {
            segment_bytes,
            segment,
            sequence: end.segment.map_or(0, |(sequence, ..)| sequence),
            next_lsn: end.last_lsn + 1,
            durable_lsn: end.last_lsn,
            marked_lsn: end.marked_lsn,
            data_lsn: end.last_lsn,
            in_flight: VecDeque::new(),
            next_frame: 0,
            idle_since: Mono(0),
            oldest_said: VecDeque::new(),
            oldest_marked: oldest,
        }
    }

    /// Whether the log has at least its first segment, durable.
    pub(crate) fn has_segment(&self) -> bool {
        self.sequence > 1 || self.sequence == 1 && matches!(self.segment, Segment::Open(_) | Segment::Closed)
    }

    /// Whether a spare is to become the next segment now.
    pub(crate) fn wants_segment(&self) -> bool {
        matches!(self.segment, Segment::Closed) && self.in_flight.is_empty()
    }

    /// Segments below are needed by nothing durable, and that is itself marked durable.
    pub(crate) fn oldest_marked(&self) -> u64 {
        self.oldest_marked
    }

    /// Number of the latest segment, open or being opened.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Begins the next segment with a spare.
    pub(crate) fn begin_segment(&mut self, spare: u64, io: &mut Io) {
        self.sequence += 1;
        self.segment = Segment::Renaming;
        let (from, to) = (FileId::Spare(spare), FileId::Wal(self.sequence));
        io.issue(DiskOpKind::Rename { from, to }, Purpose::SegmentRename);
    }

    /// The next segment has its name: header and states follow.
    ///
    /// # Errors
    /// If the segment is too small for them.
    pub(crate) fn segment_renamed(&mut self, table: &Table, io: &mut Io) -> Result<(), JournalError> {
        let header = Header { sequence: self.sequence, first_lsn: self.next_lsn, bytes: self.segment_bytes };
        let mut builder = FrameBuilder::new(self.sequence, self.next_lsn);
        for (group, state) in table.iter() {
            let about =
                About { kind: Kind::Replica, group, index: state.checkpoint.index, term: state.checkpoint.term };
            let mut state = state.state();
            if planted(Plant::SegmentHeadForgetsVotes) {
                state.hard_state.vote = ReplicaId(0);
            }
            builder.push(about, &wire::encode(&state));
        }
        let oldest = table.oldest(self.sequence);
        let frame = builder.finish(self.durable_lsn, oldest);
        let end = BLOCK_BYTES + frame.bytes;
        if end + BLOCK_BYTES > self.segment_bytes {
            return Err(JournalError::Disk {
                operation: format!("opening {}", FileId::Wal(self.sequence).name()),
                reason: format!(
                    "the states of {} groups take {} bytes, too many for a segment of {}: configure larger segments",
                    table.len(),
                    frame.bytes,
                    self.segment_bytes
                ),
            });
        }
        self.next_lsn = frame.last_lsn + 1;
        self.segment = Segment::Opening { end, last_lsn: frame.last_lsn, oldest };
        let mut data = vec![header.encode()];
        data.extend(frame.data);
        let write = DiskOpKind::Write { file: FileId::Wal(self.sequence), offset: 0, data, sync: true };
        io.issue(write, Purpose::SegmentOpen);
        Ok(())
    }

    /// The next segment is open; returns its number.
    pub(crate) fn segment_opened(&mut self, now: Mono) -> u64 {
        let Segment::Opening { end, last_lsn, oldest } = self.segment else {
            unreachable!("its header was being written");
        };
        let (sequence, bytes) = (self.sequence, self.segment_bytes);
        self.segment = Segment::Open(Open { sequence, offset: end, bytes, fresh: true });
        self.mark(self.durable_lsn, last_lsn, oldest);
        self.durable_lsn = last_lsn;
        self.data_lsn = last_lsn;
        self.idle_since = now;
        sequence
    }

    /// A frame that ends with `last_lsn` is durable and says that `durable_lsn` was, and `oldest` is the oldest needed.
    fn mark(&mut self, durable_lsn: u64, last_lsn: u64, oldest: u64) {
        self.marked_lsn = self.marked_lsn.max(durable_lsn);
        self.oldest_said.push_back((last_lsn, oldest));
        while let Some((lsn, oldest)) = self.oldest_said.front().copied().filter(|said| said.0 <= self.marked_lsn) {
            debug_assert!(lsn <= self.durable_lsn, "a mark covers what is durable");
            self.oldest_marked = self.oldest_marked.max(oldest);
            self.oldest_said.pop_front();
        }
    }

    /// Writes the next frame if there is something to write and a place for it; `false` if not.
    ///
    /// # Panics
    /// If an entry is larger than [`crate::JournalConfig::entry_bytes_max`].
    pub(crate) fn write_next(&mut self, queue: &mut Queue, table: &Table, io: &mut Io) -> bool {
        let Segment::Open(open) = self.segment else { return false };
        if self.in_flight.len() >= limits::ROUNDS_IN_FLIGHT_MAX {
            return false;
        }
        let mut filling = Filling {
            builder: FrameBuilder::new(open.sequence, self.next_lsn),
            effects: Vec::new(),
            open,
            room: usize::try_from(open.bytes - open.offset).unwrap_or(usize::MAX),
        };
        if !filling.fill(queue) {
            self.segment = Segment::Closed;
            return false;
        }
        if filling.effects.is_empty() {
            return false;
        }
        let Filling { builder, effects, .. } = filling;
        self.write(builder, effects, open, table, io);
        true
    }

    /// Writes a durable mark if the log is idle and lacks one.
    pub(crate) fn write_mark(&mut self, table: &Table, io: &mut Io) {
        let Segment::Open(open) = self.segment else { return };
        let due = self.marked_lsn < self.data_lsn
            || self.oldest_said.iter().any(|said| said.1 > self.oldest_marked)
            || table.oldest(self.sequence) > self.oldest_said.back().map_or(self.oldest_marked, |said| said.1);
        // Completions are stamped with the tick before them, so half the bound here keeps the whole one.
        let idle = io.now.since(self.idle_since).0 * 2 >= limits::DURABLE_MARK_IDLE.0;
        if !due || !idle || !self.in_flight.is_empty() {
            return;
        }
        if open.bytes - open.offset < BLOCK_BYTES {
            self.segment = Segment::Closed;
            return;
        }
        mark(Mark::DurableMarkWritten);
        self.write(FrameBuilder::new(open.sequence, self.next_lsn), Vec::new(), open, table, io);
    }

    fn write(&mut self, builder: FrameBuilder, effects: Vec<Effect>, open: Open, table: &Table, io: &mut Io) {
        // Of what is durable now: frames under way can only make more segments dispensable.
        let oldest = table.oldest(open.sequence);
        let Frame { data, bytes, last_lsn } = builder.finish(self.durable_lsn, oldest);
        self.next_lsn = last_lsn + 1;
        self.segment = Segment::Open(Open { offset: open.offset + bytes, fresh: false, ..open });
        let number = self.next_frame;
        self.next_frame += 1;
        let durable_lsn = self.durable_lsn;
        mark_if(Mark::FramesInFlight, || !self.in_flight.is_empty());
        self.in_flight.push_back(Flying { number, done: false, durable_lsn, last_lsn, oldest, effects });
        let sync = !planted(Plant::FramesNotSynced);
        let write = DiskOpKind::Write { file: FileId::Wal(open.sequence), offset: open.offset, data, sync };
        io.issue(write, Purpose::Frame(number));
    }

    /// A frame's write is done. Returns what became durable, in order: nothing while an earlier one is under way.
    pub(crate) fn frame_done(&mut self, number: u64, now: Mono) -> Vec<Effect> {
        let frame = self.in_flight.iter_mut().find(|frame| frame.number == number);
        frame.expect("the frame is under way").done = true;
        mark_if(Mark::FrameDoneOutOfOrder, || self.in_flight.front().is_some_and(|frame| !frame.done));
        let mut effects = Vec::new();
        while self.in_flight.front().is_some_and(|frame| frame.done) {
            let Some(frame) = self.in_flight.pop_front() else { break };
            self.durable_lsn = frame.last_lsn;
            if !frame.effects.is_empty() {
                self.data_lsn = frame.last_lsn;
            }
            self.mark(frame.durable_lsn, frame.last_lsn, frame.oldest);
            self.idle_since = now;
            effects.extend(frame.effects);
        }
        effects
    }
}

/// A frame being filled from the queue.
struct Filling {
    builder: FrameBuilder,
    effects: Vec<Effect>,
    open: Open,
    /// Bytes left in the segment.
    room: usize,
}

impl Filling {
    /// Takes what fits. `false`: the next thing needs a new segment.
    fn fill(&mut self, queue: &mut Queue) -> bool {
        while let Some(order) = queue.next_writable() {
            let item = queue.get_mut(order).expect("it was just found");
            let taken = match item {
                Item::Round(round) if self.fits(round.bytes()) => {
                    let all = round.take_part(usize::MAX);
                    self.push_all(all);
                    true
                }
                Item::Round(_) if !self.builder.is_empty() => return true,
                Item::Round(round) => {
                    let whole = FRAME_HEAD_BYTES + round.bytes() <= limits::ROUND_BYTES_MAX;
                    let front = round.front_bytes();
                    let max = limits::ROUND_BYTES_MAX.max(FRAME_HEAD_BYTES + front).min(self.room);
                    let part = match max.checked_sub(FRAME_HEAD_BYTES) {
                        Some(room) if !whole || self.open.fresh => round.take_part(room),
                        _ => Vec::new(),
                    };
                    let nothing = part.is_empty();
                    assert!(!(nothing && self.open.fresh), "an entry of {front} bytes does not fit into a segment");
                    mark_if(Mark::RoundCutInTwo, || !nothing);
                    self.push_all(part);
                    return !nothing;
                }
                Item::Checkpoint(draft) => {
                    let payload = wire::encode(&draft.position);
                    let meta = &draft.position.meta;
                    let about =
                        About { kind: Kind::Checkpoint, group: draft.group, index: meta.index, term: meta.term };
                    self.push_record(about, &payload)
                }
                Item::Remove(group) => {
                    let about = About { kind: Kind::Removed, group: *group, index: 0, term: 0 };
                    self.push_record(about, &Bytes::new())
                }
            };
            if !taken {
                let full = self.builder.is_empty();
                assert!(!(full && self.open.fresh), "a checkpoint's position does not fit into a segment");
                return !full;
            }
            match queue.take(order).expect("it was just there") {
                Item::Round(round) => self.effects.push(Effect::Round(round.number)),
                Item::Checkpoint(draft) => self.effects.push(Effect::Checkpoint { order, draft }),
                Item::Remove(group) => self.effects.push(Effect::Removed { order, group }),
            }
        }
        true
    }

    fn fits(&self, bytes: usize) -> bool {
        self.builder.bytes() + bytes <= limits::ROUND_BYTES_MAX.min(self.room)
    }

    fn push_record(&mut self, about: About, payload: &Bytes) -> bool {
        let fits = self.fits(RECORD_HEAD_BYTES + payload.len());
        if fits {
            self.builder.push(about, payload);
        }
        fits
    }

    fn push_all(&mut self, drafts: Vec<Draft>) {
        for draft in drafts {
            match draft {
                Draft::HardState { group, hard_state } => {
                    let (index, term) = (hard_state.commit, hard_state.term);
                    let about = About { kind: Kind::HardState, group, index, term };
                    self.builder.push(about, &wire::encode(&hard_state));
                    self.effects.push(Effect::HardState { group, hard_state });
                }
                Draft::Entry { group, entry, ordinal } => {
                    let (index, term) = (entry.index, entry.term);
                    let about = About { kind: Kind::Entry(entry.kind), group, index, term };
                    let at = self.builder.push(about, &entry.data);
                    let place = Place {
                        segment: self.open.sequence,
                        offset: u32::try_from(self.open.offset + at as u64).expect("a segment is below 4 GiB"),
                        bytes: u32::try_from(entry.data.len()).expect("a segment is below 4 GiB"),
                    };
                    self.effects.push(Effect::Entry { group, index, term, place, ordinal });
                }
            }
        }
    }
}
