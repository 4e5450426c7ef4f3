//! Records and frames: how bytes lie in a segment.
//!
//! A record is a head of 44 bytes and a payload. A frame is what one write carries: a `Round` record first, then the
//! records of one or more rounds, then zeros up to the next 4 KiB block. A frame counts as a whole or not at all.
//!
//! Why a whole frame: a hard state whose commit index lies in entries that were torn away would stop Raft. Why blocks:
//! a disk tears writes at sectors, and rewrites the whole sector around a partial one; a frame that starts on its own
//! block can be torn without touching what the frame before it made durable. The price is at most one block per write.
//! Why the checksum over the checksums: after a cut the next frame is written over the torn one, and if that is torn
//! too, records of both, each sound by itself and with fitting numbers, must not pass for one frame.

use base::GroupId;
use base::simulation::{Plant, planted};
use bytes::{BufMut, Bytes, BytesMut};
use crc32c::{crc32c, crc32c_append};
use wire::EntryKind;

/// Frames start at multiples of this.
pub(crate) const BLOCK_BYTES: u64 = 4096;
/// Bytes of a record before its payload.
pub(crate) const RECORD_HEAD_BYTES: usize = 44;
const ROUND_PAYLOAD_BYTES: usize = 32;
/// Bytes of the record that opens a frame.
pub(crate) const FRAME_HEAD_BYTES: usize = RECORD_HEAD_BYTES + ROUND_PAYLOAD_BYTES;
/// Payloads up to this size are copied next to their heads; larger ones are handed to the disk as they are. Likewise
/// when they are read back: up to this size they leave the buffer that was read.
pub(crate) const COPY_BYTES_MAX: usize = 4096;

static ZEROS: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Opens a frame.
    Round,
    /// A [`wire::journal::ReplicaState`], at the opening of a segment.
    Replica,
    /// A [`wire::HardState`].
    HardState,
    /// A [`wire::journal::CheckpointPosition`].
    Checkpoint,
    /// The group is gone; no payload.
    Removed,
    /// An entry; its payload is the entry's data.
    Entry(EntryKind),
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Round => 1,
            Kind::Replica => 2,
            Kind::HardState => 3,
            Kind::Checkpoint => 4,
            Kind::Removed => 5,
            Kind::Entry(EntryKind::Noop) => 16,
            Kind::Entry(EntryKind::Membership) => 17,
            Kind::Entry(EntryKind::Command) => 18,
            Kind::Entry(EntryKind::Batch) => 19,
        }
    }

    /// `None` for a code that this version does not know.
    pub(crate) fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            1 => Kind::Round,
            2 => Kind::Replica,
            3 => Kind::HardState,
            4 => Kind::Checkpoint,
            5 => Kind::Removed,
            16 => Kind::Entry(EntryKind::Noop),
            17 => Kind::Entry(EntryKind::Membership),
            18 => Kind::Entry(EntryKind::Command),
            19 => Kind::Entry(EntryKind::Batch),
            _ => return None,
        })
    }
}

/// `bytes` rounded up to whole blocks.
pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// Where the checksums of a segment start from. Two segments' differ, and a CRC over equal bytes from different starts
/// differs: what an earlier life of a recycled file left behind never validates.
pub(crate) fn seed(sequence: u64) -> u32 {
    let sequence = if planted(Plant::OldLivesAccepted) { 0 } else { sequence };
    crc32c(&sequence.to_le_bytes())
}

fn record_crc(seed: u32, length: &[u8], head: &[u8], payload: &[u8]) -> u32 {
    crc32c_append(crc32c_append(crc32c_append(seed, length), head), payload)
}

/// The fields of a record's head that name what it is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct About {
    pub kind: Kind,
    pub group: GroupId,
    pub index: u64,
    pub term: u64,
}

/// Encodes a record's head; returns it with its checksum.
fn encode_head(seed: u32, lsn: u64, about: About, payload: &[u8]) -> ([u8; RECORD_HEAD_BYTES], u32) {
    let mut head = [0u8; RECORD_HEAD_BYTES];
    let length = u32::try_from(payload.len()).expect("a payload fits a segment, and a segment is below 4 GiB");
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[8..16].copy_from_slice(&lsn.to_le_bytes());
    head[16..24].copy_from_slice(&about.group.0.to_le_bytes());
    head[24..32].copy_from_slice(&about.index.to_le_bytes());
    head[32..40].copy_from_slice(&about.term.to_le_bytes());
    head[40] = about.kind.code();
    let crc = record_crc(seed, &head[..4], &head[8..], payload);
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    (head, crc)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A record whose checksum is right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub lsn: u64,
    pub group: GroupId,
    pub index: u64,
    pub term: u64,
    /// See [`Kind::from_code`].
    pub kind: u8,
    pub payload: Bytes,
    crc: u32,
}

/// The record at `at`, if there is a sound one.
pub(crate) fn parse_record(bytes: &Bytes, at: usize, seed: u32) -> Option<Record> {
    let head = bytes.get(at..at.checked_add(RECORD_HEAD_BYTES)?)?;
    let payload_at = at + RECORD_HEAD_BYTES;
    let end = payload_at.checked_add(u32_at(head, 0) as usize)?;
    let payload = bytes.get(payload_at..end)?;
    let crc = u32_at(head, 4);
    if record_crc(seed, &head[..4], &head[8..], payload) != crc && !planted(Plant::TornFramesAccepted) {
        return None;
    }
    Some(Record {
        lsn: u64_at(head, 8),
        group: GroupId(u64_at(head, 16)),
        index: u64_at(head, 24),
        term: u64_at(head, 32),
        kind: head[40],
        payload: bytes.slice(payload_at..end),
        crc,
    })
}

/// What opens a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FrameHead {
    /// Log sequence number of this record; the frame's others follow without gaps.
    pub lsn: u64,
    /// Everything up to this number was durable when the frame was written.
    pub durable_lsn: u64,
    /// Segments below this one were no longer needed when the frame was written.
    pub oldest: u64,
    /// Number of the frame's last record.
    pub last_lsn: u64,
    /// Bytes of the frame without its padding.
    pub bytes: u32,
    records_crc: u32,
}

/// The frame head at the start of `block`, if there is a sound one.
pub(crate) fn parse_frame_head(block: &[u8], seed: u32) -> Option<FrameHead> {
    let head = block.get(..FRAME_HEAD_BYTES)?;
    if u32_at(head, 0) as usize != ROUND_PAYLOAD_BYTES || head[40] != Kind::Round.code() {
        return None;
    }
    let payload = &head[RECORD_HEAD_BYTES..];
    if record_crc(seed, &head[..4], &head[8..RECORD_HEAD_BYTES], payload) != u32_at(head, 4) {
        return None;
    }
    Some(FrameHead {
        lsn: u64_at(head, 8),
        durable_lsn: u64_at(payload, 0),
        oldest: u64_at(payload, 8),
        last_lsn: u64_at(payload, 16),
        bytes: u32_at(payload, 24),
        records_crc: u32_at(payload, 28),
    })
}

/// The records of a frame with their places in it, if every one is sound and they belong together.
pub(crate) fn parse_frame(frame: &Bytes, head: &FrameHead, seed: u32) -> Option<Vec<(u32, Record)>> {
    let content = frame.get(..head.bytes as usize).map(|_| frame.slice(..head.bytes as usize))?;
    let mut records = Vec::new();
    let (mut at, mut lsn, mut crc) = (FRAME_HEAD_BYTES, head.lsn, 0);
    while at < content.len() {
        let record = parse_record(&content, at, seed)?;
        lsn += 1;
        if record.lsn != lsn {
            return None;
        }
        crc = crc32c_append(crc, &record.crc.to_le_bytes());
        let next = at + RECORD_HEAD_BYTES + record.payload.len();
        records.push((u32::try_from(at).ok()?, record));
        at = next;
    }
    let whole = crc == head.records_crc || planted(Plant::TornFramesAccepted);
    (lsn == head.last_lsn && whole).then_some(records)
}

/// Puts a frame together.
#[derive(Debug)]
pub(crate) struct FrameBuilder {
    seed: u32,
    lsn: u64,
    next_lsn: u64,
    parts: Vec<Bytes>,
    buffer: BytesMut,
    bytes: usize,
    records_crc: u32,
}

/// A frame ready to be written.
#[derive(Debug)]
pub(crate) struct Frame {
    pub data: Vec<Bytes>,
    /// With padding.
    pub bytes: u64,
    pub last_lsn: u64,
}

impl FrameBuilder {
    /// An empty frame for the segment `sequence`, whose first record is `lsn`.
    pub(crate) fn new(sequence: u64, lsn: u64) -> Self {
        FrameBuilder {
            seed: seed(sequence),
            lsn,
            next_lsn: lsn + 1,
            // The head's place; it is made last.
            parts: vec![Bytes::new()],
            buffer: BytesMut::new(),
            bytes: FRAME_HEAD_BYTES,
            records_crc: 0,
        }
    }

    /// Bytes so far, without padding.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is nothing but the head.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == FRAME_HEAD_BYTES
    }

    /// Adds a record; returns its place in the frame.
    pub(crate) fn push(&mut self, about: About, payload: &Bytes) -> usize {
        let at = self.bytes;
        let (head, crc) = encode_head(self.seed, self.next_lsn, about, payload);
        self.buffer.put_slice(&head);
        if payload.len() <= COPY_BYTES_MAX {
            self.buffer.put_slice(payload);
        } else {
            self.parts.push(self.buffer.split().freeze());
            self.parts.push(payload.clone());
        }
        self.records_crc = crc32c_append(self.records_crc, &crc.to_le_bytes());
        self.next_lsn += 1;
        self.bytes += RECORD_HEAD_BYTES + payload.len();
        at
    }

    /// Closes the frame.
    pub(crate) fn finish(mut self, durable_lsn: u64, oldest: u64) -> Frame {
        let last_lsn = self.next_lsn - 1;
        let mut payload = [0u8; ROUND_PAYLOAD_BYTES];
        payload[..8].copy_from_slice(&durable_lsn.to_le_bytes());
        payload[8..16].copy_from_slice(&oldest.to_le_bytes());
        payload[16..24].copy_from_slice(&last_lsn.to_le_bytes());
        let content = u32::try_from(self.bytes).expect("a frame fits a segment, and a segment is below 4 GiB");
        payload[24..28].copy_from_slice(&content.to_le_bytes());
        payload[28..].copy_from_slice(&self.records_crc.to_le_bytes());
        let about = About { kind: Kind::Round, group: GroupId(0), index: 0, term: 0 };
        let (head, _) = encode_head(self.seed, self.lsn, about, &payload);
        self.parts[0] = Bytes::from([head.as_slice(), payload.as_slice()].concat());
        if !self.buffer.is_empty() {
            self.parts.push(self.buffer.freeze());
        }
        let bytes = padded(self.bytes as u64);
        let padding = (bytes - self.bytes as u64) as usize;
        if padding > 0 {
            self.parts.push(Bytes::from_static(&ZEROS[..padding]));
        }
        Frame { data: self.parts, bytes, last_lsn }
    }
}

/// A block of zeros.
pub(crate) fn zero_block() -> Bytes {
    Bytes::from_static(&ZEROS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Bytes {
        let mut builder = FrameBuilder::new(7, 100);
        let about = About { kind: Kind::Entry(EntryKind::Batch), group: GroupId(3), index: 9, term: 2 };
        builder.push(about, &Bytes::from_static(b"small"));
        builder.push(About { index: 10, ..about }, &Bytes::from(vec![5u8; 9000]));
        builder.push(About { kind: Kind::Removed, index: 0, ..about }, &Bytes::new());
        Bytes::from(builder.finish(99, 6).data.concat())
    }

    #[test]
    fn a_frame_comes_back_as_it_was_put_together() {
        let bytes = sample();
        assert_eq!(bytes.len() as u64 % BLOCK_BYTES, 0);
        let head = parse_frame_head(&bytes, seed(7)).expect("sound");
        assert_eq!((head.lsn, head.durable_lsn, head.oldest, head.last_lsn), (100, 99, 6, 103));
        let records = parse_frame(&bytes, &head, seed(7)).expect("sound");
        let shown: Vec<_> = records.iter().map(|(_, r)| (r.lsn, r.index, r.payload.len())).collect();
        assert_eq!(shown, [(101, 9, 5), (102, 10, 9000), (103, 0, 0)]);
        assert_eq!(parse_record(&bytes, records[1].0 as usize, seed(7)).as_ref(), Some(&records[1].1));
    }

    #[test]
    fn another_segments_seed_or_any_flipped_bit_is_noticed() {
        let bytes = sample();
        assert_eq!(parse_frame_head(&bytes, seed(8)), None);
        let content = parse_frame_head(&bytes, seed(7)).expect("sound").bytes as usize;
        for at in 0..content {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << (at % 8);
            let damaged = Bytes::from(damaged);
            let whole = parse_frame_head(&damaged, seed(7)).and_then(|head| parse_frame(&damaged, &head, seed(7)));
            assert_eq!(whole, None, "flip at {at} passed");
        }
    }

    #[test]
    fn records_of_two_frames_do_not_pass_for_one() {
        let frame = |data: &[u8]| {
            let mut builder = FrameBuilder::new(1, 1);
            let about = About { kind: Kind::Entry(EntryKind::Command), group: GroupId(0), index: 2, term: 1 };
            for _ in 0..2 {
                builder.push(about, &Bytes::from(vec![data[0]; 4096]));
            }
            builder.finish(0, 1).data.concat()
        };
        let (old, new) = (frame(b"a"), frame(b"b"));
        let cut = FRAME_HEAD_BYTES + RECORD_HEAD_BYTES + 4096;
        let mixed = Bytes::from([&new[..cut], &old[cut..]].concat());
        let head = parse_frame_head(&mixed, seed(1)).expect("the new head is whole");
        assert!(parse_record(&mixed, cut, seed(1)).is_some(), "the old record is sound by itself");
        assert_eq!(parse_frame(&mixed, &head, seed(1)), None);
    }
}
