//! From files to state: list, read the segments in order, decide where the log ends, make that end safe, verify the
//! checkpoints.
//!
//! Where a sound frame should follow and none does, the log ends (a torn tail, cut) or is damaged (refused). It is
//! damaged if anything durable says that more was durable: a later segment's header, or a frame found further on in the
//! last segment whose durable mark lies beyond.
//!
//! After a cut, what is left of the tail must never validate again once new frames stand before it: frame heads found
//! there are overwritten with zeros. And what was read may not be on the disk yet (if only the process died, the
//! operating system still shows what it has not written): the frames beyond the last durable mark are written once
//! more, as they are, with a sync, before anybody is told of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::simulation::{Mark, Plant, mark, mark_if, planted};
use base::{GroupId, limits};
use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};
use wire::HardState;
use wire::journal::{CheckpointPosition, ReplicaState};

use crate::api::{DiskDone, DiskOpKind, FileId, JournalConfig, JournalError};
use crate::framing::{BLOCK_BYTES, Kind, Record, zero_block};
use crate::index::Place;
use crate::io::{Io, Purpose};
use crate::scan::{FrameScan, Scanned, TailScan};
use crate::segment::Header;
use crate::table::Table;
use crate::writer::End;

/// What recovery asked the disk for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    List,
    Header(u64),
    Frames,
    Tail,
    Checkpoint,
    /// The frames beyond the last mark, to be written again where they are.
    Uncertain(u64),
    /// A write or removal of the last step.
    Settling,
}

/// What recovery found.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub table: Table,
    pub end: End,
    /// Segment files with their sizes.
    pub segments: BTreeMap<u64, u64>,
    pub spares: VecDeque<u64>,
    pub next_spare: u64,
    /// Segments below are leftovers.
    pub oldest: u64,
}

/// A checkpoint file being verified.
#[derive(Debug)]
struct Check {
    group: GroupId,
    file: FileId,
    bytes: u64,
    expected: u32,
    at: u64,
    crc: u32,
    chunks: Vec<u32>,
}

/// Recovery under way.
#[derive(Debug)]
pub(crate) struct Recovery {
    segment_bytes: u64,
    segments: BTreeMap<u64, u64>,
    spares: BTreeMap<u64, u64>,
    checkpoints: BTreeMap<FileId, u64>,
    headers: BTreeMap<u64, Header>,
    /// Files to remove at the end.
    remove: Vec<FileId>,
    /// Headers that are still being read.
    left: usize,
    first: u64,
    at: u64,
    scan: FrameScan,
    /// Where the frames of the segment before `at` ended.
    previous_end: u64,
    table: Table,
    last_lsn: u64,
    marked_lsn: u64,
    /// What the frames say of the oldest segment needed.
    oldest: u64,
    /// Frames of the present segment not known to be durable: offset, last number.
    uncertain: VecDeque<(u64, u64)>,
    tails: VecDeque<TailScan>,
    /// The open segment and where its frames end.
    end: Option<(u64, u64)>,
    zero: Vec<u64>,
    checks: VecDeque<Check>,
}

fn corrupt(file: FileId, offset: u64, reason: impl Into<String>) -> JournalError {
    JournalError::Corrupt { file: file.name(), offset, reason: reason.into() }
}

fn ask(io: &mut Io, kind: DiskOpKind, asked: Asked) {
    io.issue(kind, Purpose::Recovery(asked));
}

impl Recovery {
    pub(crate) fn start(config: &JournalConfig, io: &mut Io) -> Self {
        ask(io, DiskOpKind::List, Asked::List);
        Recovery {
            segment_bytes: config.segment_bytes,
            segments: BTreeMap::new(),
            spares: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            headers: BTreeMap::new(),
            remove: Vec::new(),
            left: 0,
            first: 0,
            at: 0,
            scan: FrameScan::new(0, BLOCK_BYTES),
            previous_end: 0,
            table: Table::default(),
            last_lsn: 0,
            marked_lsn: 0,
            oldest: 0,
            uncertain: VecDeque::new(),
            tails: VecDeque::new(),
            end: None,
            zero: Vec::new(),
            checks: VecDeque::new(),
        }
    }

    /// Takes a completion; `Some` when everything is done.
    ///
    /// # Errors
    /// If the journal must not be used.
    pub(crate) fn complete(
        mut self: Box<Self>,
        asked: Asked,
        done: DiskDone,
        io: &mut Io,
    ) -> Result<Result<Recovered, Box<Self>>, JournalError> {
        match (asked, done) {
            (Asked::List, DiskDone::Listed(files)) => self.listed(files, io)?,
            (Asked::Header(sequence), DiskDone::Data(data)) => self.header(sequence, &data, io)?,
            (Asked::Frames, DiskDone::Data(data)) => {
                self.expect_data(FileId::Wal(self.at), self.scan.wanted(), &data)?;
                self.scan.feed(&data);
                self.read_frames(io)?;
            }
            (Asked::Tail, DiskDone::Data(data)) => self.tail(&data, io)?,
            (Asked::Checkpoint, DiskDone::Data(data)) => self.checkpoint(&data, io)?,
            (Asked::Uncertain(offset), DiskDone::Data(data)) => {
                let file = FileId::Wal(self.end.map_or(0, |end| end.0));
                ask(io, DiskOpKind::Write { file, offset, data: vec![data], sync: true }, Asked::Settling);
            }
            (Asked::Settling, _) => {}
            (asked, _) => unreachable!("{asked:?} is answered with what was asked for"),
        }
        // Each step asks for the next; the last ones, `settle` and `clean`, have nothing more to ask for.
        Ok(if io.is_idle() && !self.clean(io) { Ok(self.result()) } else { Err(self) })
    }

    fn expect_data(&self, file: FileId, wanted: (u64, usize), data: &Bytes) -> Result<(), JournalError> {
        if data.len() == wanted.1 {
            return Ok(());
        }
        Err(corrupt(file, wanted.0 + data.len() as u64, "the file ends before its length"))
    }

    fn listed(&mut self, files: Vec<(FileId, u64)>, io: &mut Io) -> Result<(), JournalError> {
        for (file, bytes) in files {
            match file {
                FileId::Wal(sequence) => drop(self.segments.insert(sequence, bytes)),
                // Of another size: from an unfinished creation, or made under another configuration.
                FileId::Spare(_) if bytes != self.segment_bytes => {
                    mark(Mark::UnfinishedSpareFound);
                    self.remove.push(file);
                }
                FileId::Spare(spare) => drop(self.spares.insert(spare, bytes)),
                FileId::Checkpoint { .. } => drop(self.checkpoints.insert(file, bytes)),
                FileId::CheckpointTemporary { .. } => {
                    mark(Mark::HalfWrittenCheckpointFound);
                    self.remove.push(file);
                }
            }
        }
        self.left = self.segments.len();
        for sequence in self.segments.keys() {
            let file = FileId::Wal(*sequence);
            ask(io, DiskOpKind::Read { file, offset: 0, len: BLOCK_BYTES as usize }, Asked::Header(*sequence));
        }
        if self.left == 0 { self.find_chain(io) } else { Ok(()) }
    }

    fn header(&mut self, sequence: u64, data: &[u8], io: &mut Io) -> Result<(), JournalError> {
        if let Some(header) = Header::decode(data, sequence)? {
            let bytes = self.segments.get(&sequence).copied().unwrap_or(0);
            if bytes < header.bytes {
                return Err(corrupt(
                    FileId::Wal(sequence),
                    bytes,
                    format!("the file has lost its end ({})", header.bytes),
                ));
            }
            self.headers.insert(sequence, header);
        }
        self.left -= 1;
        if self.left == 0 { self.find_chain(io) } else { Ok(()) }
    }

    /// The segments that make up the log: backwards from the last one opened.
    fn find_chain(&mut self, io: &mut Io) -> Result<(), JournalError> {
        let Some(last) = self.headers.keys().next_back().copied() else {
            return self.without_segments(io);
        };
        self.first = last;
        while self.headers.contains_key(&(self.first - 1)) {
            self.first -= 1;
        }
        if self.segments.contains_key(&(self.first - 1)) {
            return Err(corrupt(FileId::Wal(self.first - 1), 0, "the header of a segment that was in use"));
        }
        self.last_lsn = self.headers[&self.first].first_lsn.saturating_sub(1);
        self.begin_segment(self.first);
        self.read_frames(io)
    }

    /// Nothing was ever opened, or everything is damaged.
    fn without_segments(&mut self, io: &mut Io) -> Result<(), JournalError> {
        let stranger = self.segments.keys().find(|sequence| **sequence > 1).map(|sequence| FileId::Wal(*sequence));
        if let Some(file) = stranger.or(self.checkpoints.keys().next().copied()) {
            return Err(corrupt(file, 0, "the segments that this file belongs to are missing or damaged"));
        }
        self.scan_tails(None, io)
    }

    fn begin_segment(&mut self, sequence: u64) {
        self.previous_end = self.scan.offset();
        self.at = sequence;
        self.scan = FrameScan::new(sequence, self.headers[&sequence].bytes);
        // Whatever comes before a segment was durable before it was opened.
        self.uncertain.clear();
    }

    fn read_frames(&mut self, io: &mut Io) -> Result<(), JournalError> {
        loop {
            if self.headers.get(&(self.at + 1)).is_some_and(|next| next.first_lsn == self.last_lsn + 1) {
                self.begin_segment(self.at + 1);
            }
            match self.scan.next(self.last_lsn + 1) {
                Scanned::More => {
                    let (offset, len) = self.scan.wanted();
                    let read = DiskOpKind::Read { file: FileId::Wal(self.at), offset, len };
                    ask(io, read, Asked::Frames);
                    return Ok(());
                }
                Scanned::Frame { offset, head, records } => {
                    self.marked_lsn = self.marked_lsn.max(head.durable_lsn);
                    self.oldest = self.oldest.max(head.oldest);
                    self.uncertain.push_back((offset, head.last_lsn));
                    while self.uncertain.front().is_some_and(|frame| frame.1 <= self.marked_lsn) {
                        self.uncertain.pop_front();
                    }
                    self.last_lsn = head.last_lsn;
                    self.apply_frame(offset, records)?;
                }
                Scanned::End => return self.frames_end(io),
            }
        }
    }

    fn apply_frame(&mut self, offset: u64, records: Vec<(u64, Record)>) -> Result<(), JournalError> {
        let file = FileId::Wal(self.at);
        let opening = offset == BLOCK_BYTES;
        let mut listed = BTreeSet::new();
        for (at, record) in records {
            let group = record.group;
            let applied = match Kind::from_code(record.kind) {
                Some(Kind::Replica) if opening => {
                    listed.insert(group);
                    self.apply_replica(&record)
                }
                Some(kind) => self.apply(kind, at, &record).map_err(str::to_owned),
                None => Err(format!("a record of unknown kind {}", record.kind)),
            };
            applied.map_err(|reason| corrupt(file, at, format!("group {group}: {reason}")))?;
        }
        if opening && listed.len() != self.table.len() {
            return Err(corrupt(file, offset, "the segment opens without a replica that is there"));
        }
        Ok(())
    }

    /// The first segment that is left is where states come from; all others must agree with what the log adds up to.
    fn apply_replica(&mut self, record: &Record) -> Result<(), String> {
        let state: ReplicaState = wire::decode(&record.payload).map_err(|error| error.to_string())?;
        if self.at == self.first {
            mark(Mark::StateFromSegmentHead);
            self.table.load(record.group, state);
            return Ok(());
        }
        let known = self.table.get(record.group).map(crate::table::Group::state);
        if known.as_ref() == Some(&state) { Ok(()) } else { Err(format!("opens as {state:?}, the log says {known:?}")) }
    }

    fn apply(&mut self, kind: Kind, offset: u64, record: &Record) -> Result<(), &'static str> {
        let id = record.group;
        match kind {
            Kind::Round => Err("a frame within a frame"),
            Kind::Replica => Err("a replica's state outside the opening of a segment"),
            Kind::HardState => {
                let hard_state: HardState = wire::decode(&record.payload).map_err(|_| "a malformed hard state")?;
                self.table.set_hard_state(id, hard_state)
            }
            Kind::Checkpoint => {
                let position: CheckpointPosition =
                    wire::decode(&record.payload).map_err(|_| "a malformed checkpoint position")?;
                self.table.checkpoint(id, position, Vec::new()).map(drop)
            }
            Kind::Removed => {
                self.table.remove(id);
                Ok(())
            }
            Kind::Entry(_) => {
                let offset = u32::try_from(offset).map_err(|_| "an entry beyond 4 GiB")?;
                let bytes = u32::try_from(record.payload.len()).map_err(|_| "an entry beyond 4 GiB")?;
                let place = Place { segment: self.at, offset, bytes };
                self.table.append(id, record.index, record.term, place)
            }
        }
    }

    /// No sound frame follows in the present segment.
    fn frames_end(&mut self, io: &mut Io) -> Result<(), JournalError> {
        let offset = self.scan.offset();
        if self.headers.contains_key(&(self.at + 1)) {
            let reason = format!("{} says that more was durable here", FileId::Wal(self.at + 1).name());
            return Err(corrupt(FileId::Wal(self.at), offset, reason));
        }
        if offset > BLOCK_BYTES {
            self.end = Some((self.at, offset));
        } else if self.at > self.first {
            // Its opening was torn: it never came into use, and the one before is whole.
            mark(Mark::SegmentOpeningTorn);
            self.end = Some((self.at - 1, self.previous_end));
        } else if self.at > 1 {
            return Err(corrupt(FileId::Wal(self.at), offset, "the opening of the only segment that is left"));
        }
        self.scan_tails(self.end, io)
    }

    /// What lies behind the end, in its segment and in files beyond, must not claim to have been durable.
    fn scan_tails(&mut self, end: Option<(u64, u64)>, io: &mut Io) -> Result<(), JournalError> {
        if let Some((sequence, offset)) = end {
            self.tails.push_back(TailScan::new(sequence, self.headers[&sequence].bytes, offset));
        }
        let last = end.map_or(0, |end| end.0);
        for (sequence, bytes) in self.segments.range(last + 1..) {
            self.tails.push_back(TailScan::new(*sequence, *bytes, 0));
            mark(Mark::UnopenedSegmentFound);
            self.remove.push(FileId::Wal(*sequence));
        }
        self.next_tail(io)
    }

    fn tail(&mut self, data: &Bytes, io: &mut Io) -> Result<(), JournalError> {
        if let Some(scan) = self.tails.front_mut() {
            let wanted = scan.wanted().unwrap_or_default();
            let file = FileId::Wal(scan.sequence);
            scan.feed(data);
            self.expect_data(file, wanted, data)?;
        }
        self.next_tail(io)
    }

    fn next_tail(&mut self, io: &mut Io) -> Result<(), JournalError> {
        while let Some(scan) = self.tails.front() {
            if let Some((offset, len)) = scan.wanted() {
                ask(io, DiskOpKind::Read { file: FileId::Wal(scan.sequence), offset, len }, Asked::Tail);
                return Ok(());
            }
            let next = self.end.map(|_| self.last_lsn + 1);
            if let Some(claim) = scan.claim_beyond(next) {
                let file = FileId::Wal(scan.sequence);
                let offset = self.end.filter(|end| end.0 == scan.sequence).map_or(0, |end| end.1);
                let reason = format!("what is here was durable, says the mark at byte {claim}");
                return Err(corrupt(file, offset, reason));
            }
            if self.end.is_some_and(|end| end.0 == scan.sequence) {
                mark_if(Mark::FrameBehindTheEnd, || !scan.heads.is_empty());
                self.zero = scan.heads.iter().map(|head| head.0).collect();
            }
            self.tails.pop_front();
        }
        self.check_table()?;
        self.find_checks()?;
        self.next_check(io);
        Ok(())
    }

    fn check_table(&self) -> Result<(), JournalError> {
        let Some((last, offset)) = self.end else { return Ok(()) };
        if self.oldest < self.first && self.oldest > 0 {
            // Of those that are needed, older ones may be there.
            return Err(corrupt(FileId::Wal(self.first - 1), 0, "the segment is needed and missing"));
        }
        for (id, group) in self.table.iter() {
            group.check().map_err(|reason| corrupt(FileId::Wal(last), offset, format!("group {id}: {reason}")))?;
        }
        Ok(())
    }

    fn find_checks(&mut self) -> Result<(), JournalError> {
        for (id, group) in self.table.iter() {
            let Some(file) = group.file(id) else { continue };
            let (bytes, expected) = (group.checkpoint_bytes, group.checkpoint_crc);
            match self.checkpoints.remove(&file) {
                Some(found) if found == bytes => {}
                Some(found) => {
                    let reason = format!("the checkpoint has {found} bytes, the log says {bytes}");
                    return Err(corrupt(file, found.min(bytes), reason));
                }
                None => return Err(corrupt(file, 0, "the checkpoint is missing")),
            }
            self.checks.push_back(Check { group: id, file, bytes, expected, at: 0, crc: 0, chunks: Vec::new() });
        }
        // Of a checkpoint whose place never reached the log, or whose successor's did.
        self.remove.extend(self.checkpoints.keys().inspect(|_| mark(Mark::StrayCheckpointFound)));
        Ok(())
    }

    fn checkpoint(&mut self, data: &Bytes, io: &mut Io) -> Result<(), JournalError> {
        if let Some(check) = self.checks.front_mut() {
            if data.len() as u64 != (check.bytes - check.at).min(limits::CHECKPOINT_CHUNK_BYTES as u64) {
                return Err(corrupt(check.file, check.at + data.len() as u64, "the file ends before its length"));
            }
            check.crc = crc32c_append(check.crc, data);
            check.chunks.push(crc32c(data));
            check.at += data.len() as u64;
            if check.at == check.bytes {
                if check.crc != check.expected {
                    return Err(corrupt(check.file, 0, "the checkpoint does not have the checksum that the log says"));
                }
                let chunks = std::mem::take(&mut check.chunks);
                self.table.set_chunks(check.group, chunks);
                self.checks.pop_front();
            }
        }
        self.next_check(io);
        Ok(())
    }

    fn next_check(&mut self, io: &mut Io) {
        match self.checks.front() {
            Some(check) => {
                let len = (check.bytes - check.at).min(limits::CHECKPOINT_CHUNK_BYTES as u64) as usize;
                ask(io, DiskOpKind::Read { file: check.file, offset: check.at, len }, Asked::Checkpoint);
            }
            None => self.settle(io),
        }
    }

    /// Makes the end safe.
    fn settle(&mut self, io: &mut Io) {
        if let Some((sequence, end)) = self.end {
            let file = FileId::Wal(sequence);
            for offset in std::mem::take(&mut self.zero) {
                let data = vec![zero_block()];
                ask(io, DiskOpKind::Write { file, offset, data, sync: true }, Asked::Settling);
            }
            let uncertain = self.uncertain.front().map_or(end, |frame| frame.0.min(end));
            // The header was written together with the first frame.
            let mut offset = if uncertain == BLOCK_BYTES { 0 } else { uncertain };
            while offset < end && !planted(Plant::UncertainNotRewritten) {
                let len = (end - offset).min(limits::WAL_RECOVERY_READ_BYTES as u64) as usize;
                mark(Mark::FrameWrittenAgain);
                ask(io, DiskOpKind::Read { file, offset, len }, Asked::Uncertain(offset));
                offset += len as u64;
            }
        }
    }

    /// Removes leftovers: only now that what makes them leftovers is durable. `false` if there are none.
    fn clean(&mut self, io: &mut Io) -> bool {
        let leftovers = std::mem::take(&mut self.remove);
        for file in &leftovers {
            if let FileId::Wal(sequence) = file {
                self.segments.remove(sequence);
            }
            ask(io, DiskOpKind::Remove { file: *file }, Asked::Settling);
        }
        !leftovers.is_empty()
    }

    fn result(self: Box<Self>) -> Recovered {
        let segment = self.end.map(|(sequence, offset)| (sequence, offset, self.headers[&sequence].bytes));
        Recovered {
            table: self.table,
            end: End { segment, last_lsn: self.last_lsn, marked_lsn: self.marked_lsn },
            segments: self.segments,
            next_spare: self.spares.keys().next_back().map_or(1, |spare| spare + 1),
            spares: self.spares.into_keys().collect(),
            oldest: self.first,
        }
    }
}
