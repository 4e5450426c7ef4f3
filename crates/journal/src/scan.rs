//! Going through the bytes of a segment: frames as long as they are sound, then the rest for frames that should not be
//! there.

use bytes::{Buf, Bytes, BytesMut};

use base::limits;
use base::simulation::{Mark, Plant, mark, mark_if, planted};

use crate::framing::{
    BLOCK_BYTES, FRAME_HEAD_BYTES, FrameHead, RECORD_HEAD_BYTES, Record, padded, parse_frame, parse_frame_head, seed,
};

/// What comes next.
pub(crate) enum Scanned {
    /// More bytes are needed.
    More,
    /// A sound frame at `offset`, with the places of its records in the file.
    Frame { offset: u64, head: FrameHead, records: Vec<(u64, Record)> },
    /// No sound frame follows.
    End,
}

/// Reads frames in order.
#[derive(Debug)]
pub(crate) struct FrameScan {
    seed: u32,
    file_bytes: u64,
    /// Where `buffer` begins.
    base: u64,
    buffer: BytesMut,
}

impl FrameScan {
    /// Of a segment, from the first frame on.
    pub(crate) fn new(sequence: u64, file_bytes: u64) -> Self {
        FrameScan { seed: seed(sequence), file_bytes, base: BLOCK_BYTES, buffer: BytesMut::new() }
    }

    /// What to read next: offset and length.
    pub(crate) fn wanted(&self) -> (u64, usize) {
        let offset = self.base + self.buffer.len() as u64;
        (offset, bounded(self.file_bytes.saturating_sub(offset)))
    }

    /// Takes what was read there.
    pub(crate) fn feed(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// Where the next frame begins.
    pub(crate) fn offset(&self) -> u64 {
        self.base
    }

    /// The next frame, whose first record must be `lsn`.
    pub(crate) fn next(&mut self, lsn: u64) -> Scanned {
        let left = self.file_bytes - self.base;
        if left < BLOCK_BYTES {
            return Scanned::End;
        }
        if self.buffer.len() < FRAME_HEAD_BYTES {
            return Scanned::More;
        }
        let follows = |head: &FrameHead| head.lsn == lsn || planted(Plant::OldLivesAccepted);
        let Some(head) = parse_frame_head(&self.buffer, self.seed).filter(follows) else {
            mark_if(Mark::FrameHeadUnreadable, || self.buffer[..FRAME_HEAD_BYTES].iter().any(|byte| *byte != 0));
            return Scanned::End;
        };
        let bytes = padded(u64::from(head.bytes));
        if bytes > left || (head.bytes as usize) < FRAME_HEAD_BYTES {
            return Scanned::End;
        }
        let bytes = usize::try_from(bytes).expect("a segment is below 4 GiB");
        if self.buffer.len() < bytes {
            return Scanned::More;
        }
        let frame = Bytes::copy_from_slice(&self.buffer[..bytes]);
        let Some(records) = parse_frame(&frame, &head, self.seed) else {
            mark(Mark::FrameTorn);
            return Scanned::End;
        };
        let offset = self.base;
        self.buffer.advance(bytes);
        self.base += bytes as u64;
        let records = records.into_iter().map(|(at, record)| (offset + u64::from(at), record)).collect();
        Scanned::Frame { offset, head, records }
    }
}

/// Looks through the blocks behind the last sound frame for frame heads written in this life of the file.
#[derive(Debug)]
pub(crate) struct TailScan {
    pub sequence: u64,
    seed: u32,
    file_bytes: u64,
    from: u64,
    at: u64,
    /// Heads found, with where.
    pub heads: Vec<(u64, FrameHead)>,
}

impl TailScan {
    pub(crate) fn new(sequence: u64, file_bytes: u64, from: u64) -> Self {
        TailScan { sequence, seed: seed(sequence), file_bytes, from, at: from, heads: Vec::new() }
    }

    /// What to read next; `None` at the end.
    pub(crate) fn wanted(&self) -> Option<(u64, usize)> {
        let left = self.file_bytes.saturating_sub(self.at);
        (left >= BLOCK_BYTES).then(|| (self.at, bounded(left)))
    }

    /// Takes what was read there, at least a block.
    pub(crate) fn feed(&mut self, data: &[u8]) {
        for block in data.chunks(BLOCK_BYTES as usize) {
            if let Some(head) = parse_frame_head(block, self.seed) {
                self.heads.push((self.at, head));
            }
            self.at += BLOCK_BYTES;
        }
    }

    /// The first head that calls durable what is not there, if `lsn` should have come at the place where the scan began.
    ///
    /// A head is believed only if its number fits the distance: between the two lie at most so many records. A payload
    /// that imitates a frame, written by somebody who cannot know the numbers, does not stop a node.
    pub(crate) fn claim_beyond(&self, lsn: Option<u64>) -> Option<u64> {
        let beyond = |(offset, head): &(u64, FrameHead)| {
            let fits = lsn.is_none_or(|lsn| {
                let records = (offset - self.from) / RECORD_HEAD_BYTES as u64;
                (lsn..=lsn.saturating_add(records)).contains(&head.lsn)
            });
            let claims = head.durable_lsn >= lsn.unwrap_or(1) && head.durable_lsn < head.lsn;
            (fits && claims).then_some(*offset)
        };
        self.heads.iter().find_map(beyond)
    }
}

fn bounded(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(limits::WAL_RECOVERY_READ_BYTES)
}
