//! The first block of a segment: what the file is and what it follows.

use base::simulation::{Mark, mark_if};
use bytes::Bytes;
use crc32c::{crc32c, crc32c_append};

use crate::JournalError;
use crate::api::FileId;
use crate::framing::BLOCK_BYTES;

const MAGIC: [u8; 8] = *b"musterWL";
/// The format that this version writes and reads.
pub(crate) const FORMAT: u32 = base::version::SEGMENT_FORMAT;
const HEADER_BYTES: usize = 48;

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    /// Number of the segment, from 1 up, without gaps; seeds its checksums.
    pub sequence: u64,
    /// Number of its first record. It was written only after every record before that was durable.
    pub first_lsn: u64,
    /// Size of the file.
    pub bytes: u64,
}

impl Header {
    /// The first block of the file.
    pub(crate) fn encode(&self) -> Bytes {
        let mut block = vec![0u8; BLOCK_BYTES as usize];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        block[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        block[24..32].copy_from_slice(&self.first_lsn.to_le_bytes());
        block[32..40].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc(&block);
        block[12..16].copy_from_slice(&crc.to_le_bytes());
        Bytes::from(block)
    }

    /// Reads the first block of the file `Wal(sequence)`; `None` if it was never opened as that segment (zeros, or what
    /// an earlier life of the file left) or is damaged.
    ///
    /// # Errors
    /// If a newer version wrote it.
    pub(crate) fn decode(block: &[u8], sequence: u64) -> Result<Option<Header>, JournalError> {
        let Some(header) = block.get(..HEADER_BYTES).filter(|header| header[..8] == MAGIC) else {
            return Ok(None);
        };
        let format = u32::from_le_bytes(header[8..12].try_into().expect("four bytes"));
        // Every format has its checksum here, over these bytes: a flipped bit is no newer version.
        let sound = header[12..16] == crc(block).to_le_bytes();
        if sound && format > FORMAT {
            return Err(JournalError::NewerFormat { file: FileId::Wal(sequence).name(), format });
        }
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        mark_if(Mark::OldHeaderFound, || sound && number(16) != sequence);
        let valid = sound && format == FORMAT && number(16) == sequence;
        Ok(valid.then(|| Header { sequence, first_lsn: number(24), bytes: number(32) }))
    }
}

fn crc(block: &[u8]) -> u32 {
    crc32c_append(crc32c(&block[..12]), &block[16..HEADER_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_only_as_what_it_is() {
        let header = Header { sequence: 3, first_lsn: 77, bytes: 1 << 20 };
        let block = header.encode();
        assert_eq!(Header::decode(&block, 3), Ok(Some(header)));
        assert_eq!(Header::decode(&block, 4), Ok(None), "a recycled file");
        assert_eq!(Header::decode(&block[..20], 3), Ok(None), "cut short");
        assert_eq!(Header::decode(&[0; 4096], 3), Ok(None), "prezeroed");
        for at in 0..HEADER_BYTES {
            let mut damaged = block.to_vec();
            damaged[at] ^= 0x10;
            assert_eq!(Header::decode(&damaged, 3), Ok(None), "byte {at}");
        }
        let mut newer = block.to_vec();
        newer[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        let sum = crc(&newer);
        newer[12..16].copy_from_slice(&sum.to_le_bytes());
        let file = FileId::Wal(3).name();
        assert_eq!(Header::decode(&newer, 3), Err(JournalError::NewerFormat { file, format: FORMAT + 1 }));
    }
}
